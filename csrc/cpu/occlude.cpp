// Noisy occluders on the CPU: the pixels of a box, one pack of registers (lanes.h) at a time.
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../core/occluder.h"
#include "../core/scalar.h"
#include "lanes.h"
#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kStep = 256; // counters whose pixels are drawn before they are stored

// Copies a row by two moves of a fixed length, which may overlap. A call of memcpy for each row of a box would
// cost as much as its pixels.
template <int64_t kBytes> OCCFAST_HD void copy_ends(const char* from, char* to, int64_t bytes) {
  char first[kBytes], last[kBytes];
  std::memcpy(first, from, kBytes);
  std::memcpy(last, from + bytes - kBytes, kBytes);
  std::memcpy(to, first, kBytes);
  std::memcpy(to + bytes - kBytes, last, kBytes);
}

OCCFAST_HD void copy_row(const void* source, void* target, int64_t bytes) {
  const auto* from = static_cast<const char*>(source);
  auto* to = static_cast<char*>(target);
  if (bytes > 128 || bytes < 4) {
    std::memcpy(to, from, bytes);
  } else if (bytes >= 64) {
    copy_ends<64>(from, to, bytes);
  } else if (bytes >= 32) {
    copy_ends<32>(from, to, bytes);
  } else if (bytes >= 16) {
    copy_ends<16>(from, to, bytes);
  } else if (bytes >= 8) {
    copy_ends<8>(from, to, bytes);
  } else {
    copy_ends<4>(from, to, bytes);
  }
}

// Advises huge pages for a large output.  glibc maps blocks over 32 MiB anew at each call, and faulting them in
// page by page costs more than the copy.
inline void expect_fresh_memory(void* out, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(out) + kPage - 1) / kPage * kPage;
  if (bytes > (int64_t{32} << 20))
    madvise(reinterpret_cast<void*>(first), (bytes - kPage) / kPage * kPage, MADV_HUGEPAGE);
#else
  (void)out, (void)bytes;
#endif
}

// value[4 q + k] = pixel k of the quad at offset[q] from the first counter of the channel, in packs of kQuads.
// Each kind has a function of its own, not inlined, so that its constants have all registers.
template <int kKind> [[gnu::noinline]] void noisy_pixels(float intensity, float level, const uint32_t* offset,
                                                         int64_t count, Words first, Key key, float* value) {
  for (int64_t q = 0; q < count; q += kQuads)
    store(noisy_pixel(kKind, intensity, level, philox_pack(offset + q, first, key)), value + 4 * q);
}

template <>
void noisy_pixels<kNoNoise>(float intensity, float, const uint32_t*, int64_t count, Words, Key, float* value) {
  for (int64_t k = 0; k < 4 * count; ++k) value[k] = intensity;
}

// Paints a box in all channels: its quads, row after row, in steps of kStep.
template <class T> void paint_box(T* image, Shape shape, Strides strides, int64_t sample, const int32_t* box,
                                  int kind, float level, const float* intensities, Key key, float low,
                                  float high) {
  const int64_t top = box[0], left = box[1], bottom = box[2], right = box[3], quads = (shape.w + 3) / 4;
  const int64_t first_quad = left / 4, across = (right + 3) / 4 - first_quad, count = (bottom - top) * across;
  const auto draw = kind == kSaltAndPepper ? &noisy_pixels<kSaltAndPepper>
                    : kind == kSpeckle     ? &noisy_pixels<kSpeckle>
                    : kind == kGaussian    ? &noisy_pixels<kGaussian>
                                           : &noisy_pixels<kNoNoise>;
  alignas(kRegisterBytes) uint32_t offset[kStep + kQuads]; // of each quad's counter from the channel's first one
  alignas(kRegisterBytes) float value[4 * (kStep + kQuads)];
  alignas(kRegisterBytes) T stored[4 * (kStep + kQuads)];
  for (int64_t done = 0; done < count; done += kStep) {
    const int64_t stop = smaller(done + kStep, count);
    const auto each_run = [&](const auto& body) { // calls body(row, first quad, length, offset in the step)
      for (int64_t q = done, row = done / across, at = done % across; q < stop; ++row, at = 0) {
        const int64_t run = smaller(across - at, stop - q);
        body(top + row, first_quad + at, run, q - done);
        q += run;
      }
    };
    each_run([&](int64_t row, int64_t quad, int64_t run, int64_t place) {
      const auto first = static_cast<uint32_t>(row * quads + quad);
      for (int64_t k = 0; k < run; k += kLanes) { // past the end of the run: the next run overwrites it
        const WordLanes next = counting() + (first + static_cast<uint32_t>(k));
        std::memcpy(offset + place + k, &next, sizeof next);
      }
    });
    for (int64_t c = 0; c < shape.c; ++c) {
      draw(intensities[c], level, offset, stop - done, pixel_counter(sample, shape.h, quads, c, 0, 0), key, value);
      for (int64_t k = 0; k < 4 * (stop - done); ++k) stored[k] = Scalar<T>::from_unit(value[k], low, high);
      each_run([&](int64_t row, int64_t quad, int64_t run, int64_t place) {
        const int64_t first = larger(4 * quad, left), last = smaller(4 * (quad + run), right);
        T* target = image + c * strides.c + row * strides.h + first * strides.w;
        const T* source = stored + 4 * (place - quad) + first;
        if (strides.w == 1) {
          copy_row(source, target, (last - first) * static_cast<int64_t>(sizeof(T)));
        } else {
          for (int64_t k = 0; k < last - first; ++k) target[k * strides.w] = source[k];
        }
      });
    }
  }
}

constexpr int64_t kPart = 2048; // numbers of an image that are copied and checked at a time

template <class T> bool any_outside(const T* values, int64_t count, float low, float high) {
  bool found = false;
  for (int64_t k = 0; k < count; ++k) found |= Scalar<T>::is_outside(values[k], low, high);
  return found;
}

// The loop above in vectors: compilers leave it scalar.
bool any_outside(const float* values, int64_t count, float low, float high) {
  MaskLanes inside = ~MaskLanes{};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    FloatLanes some;
    std::memcpy(&some, values + k, sizeof some);
    inside &= (some >= low) & (some <= high); // false for NaN
  }
  bool found = false;
  for (int64_t lane = 0; lane < kLanes; ++lane) found |= inside[lane] == 0;
  for (; k < count; ++k) found |= Scalar<float>::is_outside(values[k], low, high);
  return found;
}

template <class T> void paint(const PaintOccluders& args, ExecContext context) {
  const Shape shape = args.shape;
  const Strides strides = args.strides;
  const Occluders occluders = args.occluders;
  const void* images = args.images;
  void* out = args.out;
  const float low = args.low, high = args.high;
  const int64_t size = shape.c * shape.h * shape.w;
  const Key key = key_of(args.seed);
  if (out != images) expect_fresh_memory(out, shape.n * size * static_cast<int64_t>(sizeof(T)));
  parallel_for(shape.n, 1, context, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      T* image = static_cast<T*>(out) + n * strides.n;
      const T* source = static_cast<const T*>(images) + n * strides.n;
      bool found = false;
      // Each part is copied and checked while it is in the level-1 cache.
      for (int64_t begin = 0; begin < size; begin += kPart) {
        const int64_t count = smaller<int64_t>(kPart, size - begin);
        if (out != images) std::memcpy(image + begin, source + begin, count * sizeof(T));
        if (args.outside) found |= any_outside(source + begin, count, low, high);
      }
      if (found) {
#pragma omp atomic write
        *args.outside = 1;
      }
      paint_box(image, shape, strides, args.sample_ids[n], occluders.boxes + 4 * n, occluders.kind[n],
                occluders.level[n], occluders.intensity + n * shape.c, key, low, high);
    }
  });
}

} // namespace

int draw_occluders(const DrawOccluders& args, ExecContext context) {
  const Occluders& to = args.occluders;
  parallel_for(args.n, 64, context, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      draw_occluder(args.sample_ids[k], args.locations, args.params, args.channels, args.image_height,
                    args.image_width, to.boxes + 4 * k, to.kind + k, to.level + k,
                    to.intensity + args.channels * k);
  });
  return 0;
}

int paint_occluders(const PaintOccluders& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kUint8      ? &paint<uint8_t>
                   : args.dtype == Dtype::kFloat16  ? &paint<Half>
                   : args.dtype == Dtype::kBFloat16 ? &paint<BFloat16>
                                                    : &paint<float>;
  run(args, context);
  return 0;
}

int philox_words(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words, ExecContext) {
  for (int64_t k = 0; k < n; ++k) {
    const uint32_t* c = counters + 4 * k;
    const Words out = philox(Words{c[0], c[1], c[2], c[3]}, Key{keys[2 * k], keys[2 * k + 1]});
    words[4 * k] = out.x;
    words[4 * k + 1] = out.y;
    words[4 * k + 2] = out.z;
    words[4 * k + 3] = out.w;
  }
  return 0;
}

int normals(const uint32_t* words, int64_t n, float* values, ExecContext context) {
  parallel_for(n, 4096, context, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) values[k] = normal_from_word(words[k]);
  });
  return 0;
}

} // namespace occfast
