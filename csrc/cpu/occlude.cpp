// Noisy occluders on the CPU: the pixels of a box, packs of four vector registers at a time.
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

// Two moves of a fixed length, which may overlap: a call of memcpy for each row of a box costs as much as
// its pixels.
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

// Memory of this size is fresh from the kernel at each call (glibc maps blocks over 32 MiB and gives them
// back), and taking it page by page costs more than the copy: ask for huge pages.  Only advice.
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

// value[4 q + k] = pixel k of the quad at offset[q] from the channel's first counter, for packs of kQuads.
// One function a kind, and none of them inlined, so that the constants of one kind have all registers.
template <int kKind> [[gnu::noinline]] void noisy_pixels(float intensity, float level, const uint32_t* offset,
                                                         int64_t count, Words first, Key key, float* value) {
  for (int64_t q = 0; q < count; q += kQuads)
    store(noisy_pixel(kKind, intensity, level, philox_pack(offset + q, first, key)), value + 4 * q);
}

template <>
void noisy_pixels<kNoNoise>(float intensity, float, const uint32_t*, int64_t count, Words, Key, float* value) {
  for (int64_t k = 0; k < 4 * count; ++k) value[k] = intensity;
}

// A box in all channels: its quads, row after row, in steps of kStep.
template <class T> void paint_box(T* image, Shape shape, Strides strides, int64_t sample, const int32_t* box,
                                  int kind, float level, const float* intensities, Key key, float low,
                                  float high) {
  const int64_t top = box[0], left = box[1], bottom = box[2], right = box[3], quads = (shape.w + 3) / 4;
  const int64_t first_quad = left / 4, across = (right + 3) / 4 - first_quad, count = (bottom - top) * across;
  const auto draw = kind == kSaltAndPepper ? &noisy_pixels<kSaltAndPepper>
                    : kind == kSpeckle     ? &noisy_pixels<kSpeckle>
                    : kind == kGaussian    ? &noisy_pixels<kGaussian>
                                           : &noisy_pixels<kNoNoise>;
  alignas(kRegister) uint32_t offset[kStep + kQuads]; // of each quad's counter from the channel's first one
  alignas(kRegister) float value[4 * (kStep + kQuads)];
  alignas(kRegister) T stored[4 * (kStep + kQuads)];
  for (int64_t done = 0; done < count; done += kStep) {
    const int64_t stop = smaller(done + kStep, count);
    const auto each_run = [&](const auto& body) { // body(row, first quad, length, place in the step)
      for (int64_t q = done, row = done / across, at = done % across; q < stop; ++row, at = 0) {
        const int64_t run = smaller(across - at, stop - q);
        body(top + row, first_quad + at, run, q - done);
        q += run;
      }
    };
    each_run([&](int64_t row, int64_t quad, int64_t run, int64_t place) {
      const auto first = static_cast<uint32_t>(row * quads + quad);
      for (int64_t k = 0; k < run; k += kLanes) { // beyond the run: for the next one to overwrite
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

template <class T> void paint(const void* images, void* out, Shape shape, Strides strides,
                              const int64_t* sample_ids, const int32_t* boxes, const uint8_t* kinds,
                              const float* levels, const float* intensities, uint64_t seed, float low, float high,
                              int32_t* outside, Where where) {
  const int64_t size = shape.c * shape.h * shape.w;
  const Key key = key_of(seed);
  if (out != images) expect_fresh_memory(out, shape.n * size * static_cast<int64_t>(sizeof(T)));
  parallel_for(shape.n, 1, where, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      T* image = static_cast<T*>(out) + n * strides.n;
      if (out != images) std::memcpy(image, static_cast<const T*>(images) + n * strides.n, size * sizeof(T));
      if (outside) { // while the image is in the cache
        int found = 0;
        for (int64_t k = 0; k < size; ++k) found |= Scalar<T>::is_outside(image[k], low, high);
        if (found) {
#pragma omp atomic write
          *outside = 1;
        }
      }
      paint_box(image, shape, strides, sample_ids[n], boxes + 4 * n, kinds[n], levels[n],
                intensities + n * shape.c, key, low, high);
    }
  });
}

} // namespace

int draw_occluders(const int64_t* sample_ids, int64_t n, const double* cdf, const int64_t* row_centers,
                   int64_t rows, const int64_t* column_centers, int64_t columns, int64_t channels,
                   int64_t image_height, int64_t image_width, OccluderLaw law, int32_t* boxes, uint8_t* kind,
                   float* level, float* intensity, Where where) {
  parallel_for(n, 64, where, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      draw_occluder(sample_ids[k], cdf, row_centers, rows, column_centers, columns, channels, image_height,
                    image_width, law, boxes + 4 * k, kind + k, level + k, intensity + channels * k);
  });
  return 0;
}

int paint_occluders(const void* images, void* out, Dtype dtype, Shape shape, Strides strides,
                    const int64_t* sample_ids, const int32_t* boxes, const uint8_t* kind, const float* level,
                    const float* intensity, uint64_t seed, float low, float high, int32_t* outside, Where where) {
  const auto run = dtype == Dtype::kUint8      ? &paint<uint8_t>
                   : dtype == Dtype::kFloat16  ? &paint<Half>
                   : dtype == Dtype::kBFloat16 ? &paint<BFloat16>
                                               : &paint<float>;
  run(images, out, shape, strides, sample_ids, boxes, kind, level, intensity, seed, low, high, outside, where);
  return 0;
}

int philox_words(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words, Where) {
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

int normals(const uint32_t* words, int64_t n, float* values, Where where) {
  parallel_for(n, 4096, where, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) values[k] = normal_from_word(words[k]);
  });
  return 0;
}

} // namespace occfast
