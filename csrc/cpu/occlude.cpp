// Noisy occluders on the CPU: 64 Philox counters of a box at a time, in vector registers.
#include <cstring>

#include "../core/occluder.h"
#include "../core/scalar.h"
#include "parallel.h"
#include "philox_lanes.h"

namespace occfast {
namespace {

constexpr int64_t kQuads = 64; // counters a step: 256 pixels

// value[4 q + k] = pixel k of quad q, where block[q] is its counter.  Plain loops over arrays, so that
// the compiler turns each into vector code.
void noisy_pixels(int kind, float intensity, float level, const uint32_t* block, Words rest, Key key,
                  float* value) {
  if (kind != kSaltAndPepper && kind != kSpeckle && kind != kGaussian) {
    for (int64_t k = 0; k < 4 * kQuads; ++k) value[k] = intensity;
    return;
  }
  alignas(64) uint32_t word[4 * kQuads];
  alignas(64) float pixel[4 * kQuads]; // in the order of the words: all first pixels, all second ones, ...
  philox_lanes(block, kQuads, rest, key, word);
  if (kind == kSaltAndPepper) {
    for (int64_t k = 0; k < 4 * kQuads; ++k) pixel[k] = salt_and_pepper_pixel(intensity, level, word[k]);
  } else {
    const float sigma = deviation(kind, intensity, level);
    // One normal in 300 lies in the tail: its root and polynomial are worked out only where they occur.
    for (int64_t first = 0; first < 4 * kQuads; first += 64) {
      alignas(64) float x[64], w[64], z[64];
      int tails = 0;
      for (int64_t k = 0; k < 64; ++k) {
        const NormalPoint point = normal_point(word[first + k]);
        x[k] = point.x;
        w[k] = point.w;
        z[k] = normal_centre(point.w);
        tails += point.w >= kTail;
      }
      if (tails)
        for (int64_t k = 0; k < 64; ++k)
          if (w[k] >= kTail) z[k] = normal_tail(w[k]);
      for (int64_t k = 0; k < 64; ++k)
        pixel[first + k] = in_unit(intensity + sigma * signed_by(z[k] * x[k], word[first + k]));
    }
  }
  for (int64_t q = 0; q < kQuads; ++q)
    for (int64_t k = 0; k < 4; ++k) value[4 * q + k] = pixel[k * kQuads + q];
}

// A channel of a box: its quads, row after row, in steps of kQuads.
template <class T> void paint_box(T* plane, Strides strides, const int32_t* box, int kind, float intensity,
                                  float level, Words counter, int64_t quads, Key key, float low, float high) {
  const int64_t top = box[0], left = box[1], bottom = box[2], right = box[3];
  const int64_t first_quad = left / 4, across = (right + 3) / 4 - first_quad, count = (bottom - top) * across;
  alignas(64) uint32_t block[kQuads] = {};
  alignas(64) float value[4 * kQuads];
  alignas(64) T stored[4 * kQuads];
  for (int64_t done = 0; done < count; done += kQuads) {
    const int64_t stop = smaller(done + kQuads, count);
    const auto each_run = [&](const auto& body) { // body(row of the box, quad in it, length, place in the step)
      for (int64_t q = done; q < stop;) {
        const int64_t at = q % across, run = smaller(across - at, stop - q);
        body(q / across, at, run, q - done);
        q += run;
      }
    };
    each_run([&](int64_t row, int64_t at, int64_t run, int64_t place) {
      const auto base = static_cast<uint32_t>((top + row) * quads + first_quad + at) + counter.x;
      for (int64_t q = 0; q < run; ++q) block[place + q] = base + static_cast<uint32_t>(q);
    });
    noisy_pixels(kind, intensity, level, block, counter, key, value);
    for (int64_t k = 0; k < 4 * kQuads; ++k) stored[k] = Scalar<T>::from_unit(value[k], low, high);
    each_run([&](int64_t row, int64_t at, int64_t run, int64_t place) {
      const int64_t start = 4 * (first_quad + at);
      const int64_t first = larger(start, left), last = smaller(start + 4 * run, right);
      T* target = plane + (top + row) * strides.h;
      const T* source = stored + 4 * place - start;
      if (strides.w == 1) {
        std::memcpy(target + first, source + first, (last - first) * sizeof(T));
      } else {
        for (int64_t j = first; j < last; ++j) target[j * strides.w] = source[j];
      }
    });
  }
}

template <class T> void paint(const void* images, void* out, Shape shape, Strides strides,
                              const int64_t* sample_ids, const int32_t* boxes, const uint8_t* kinds,
                              const float* levels, const float* intensities, uint64_t seed, float low, float high,
                              int32_t* outside, Where where) {
  const int64_t size = shape.c * shape.h * shape.w, quads = (shape.w + 3) / 4;
  const Key key = key_of(seed);
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
      if (boxes[4 * n] == boxes[4 * n + 2]) continue;
      for (int64_t c = 0; c < shape.c; ++c)
        paint_box(image + c * strides.c, strides, boxes + 4 * n, kinds[n], intensities[n * shape.c + c], levels[n],
                  pixel_counter(sample_ids[n], shape.h, quads, c, 0, 0), quads, key, low, high);
    }
  });
}

} // namespace

int draw_occluders(const int64_t* sample_ids, int64_t n, const double* cdf, const int64_t* row_centers,
                   int64_t rows, const int64_t* column_centers, int64_t columns, int64_t channels,
                   int64_t image_height, int64_t image_width, OccluderLaw law, int32_t* boxes, uint8_t* kind,
                   float* level, float* intensity, Where where) {
  parallel_for(n, 256, where, [&](int64_t first, int64_t last) {
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
