// Noisy occluders on the CPU: one row of a box at a time, eight Philox counters side by side.
#include <cstring>

#include "../core/occluder.h"
#include "../core/scalar.h"
#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kQuads = 8; // counters a step: 32 pixels

// value[k] = the pixels (channel, row, 4 * first_quad + k), k < 4 * kQuads.  Plain arrays and no
// calls that stay calls, so that the compiler turns every loop into vector code.
template <int kind>
void noisy_pixels(float* value, Words first, Key key, float intensity, float level) {
  uint32_t word[4][kQuads], x[kQuads], y[kQuads], z[kQuads], w[kQuads];
  for (int64_t q = 0; q < kQuads; ++q) {
    x[q] = first.x + static_cast<uint32_t>(q);
    y[q] = first.y;
    z[q] = first.z;
    w[q] = first.w;
  }
  for (int64_t q = 0; q < kQuads; ++q) {
    const Words out = philox(Words{x[q], y[q], z[q], w[q]}, key);
    word[0][q] = out.x;
    word[1][q] = out.y;
    word[2][q] = out.z;
    word[3][q] = out.w;
  }
  for (int lane = 0; lane < 4; ++lane)
    for (int64_t q = 0; q < kQuads; ++q)
      value[4 * q + lane] = noisy_pixel(kind, intensity, level, word[lane][q]);
}

void noisy_row(int kind, float* value, Words first, Key key, float intensity, float level) {
  switch (kind) {
  case kSaltAndPepper:
    return noisy_pixels<kSaltAndPepper>(value, first, key, intensity, level);
  case kSpeckle:
    return noisy_pixels<kSpeckle>(value, first, key, intensity, level);
  case kGaussian:
    return noisy_pixels<kGaussian>(value, first, key, intensity, level);
  default:
    for (int64_t k = 0; k < 4 * kQuads; ++k) value[k] = intensity;
  }
}

template <class T>
void paint(const void* images, void* out, Shape shape, Strides strides, const int64_t* sample_ids,
           const int32_t* boxes, const uint8_t* kinds, const float* levels, const float* intensities,
           uint64_t seed, float low, float high, Where where) {
  const int64_t size = shape.c * shape.h * shape.w, quads = (shape.w + 3) / 4;
  const Key key = key_of(seed);
  parallel_for(shape.n, 1, where, [&](int64_t first, int64_t last) {
    float value[4 * kQuads];
    for (int64_t n = first; n < last; ++n) {
      T* image = static_cast<T*>(out) + n * strides.n;
      if (out != images) std::memcpy(image, static_cast<const T*>(images) + n * strides.n, size * sizeof(T));
      const int32_t* box = boxes + 4 * n;
      for (int64_t c = 0; c < shape.c; ++c)
        for (int64_t i = box[0]; i < box[2]; ++i)
          for (int64_t quad = box[1] / 4; 4 * quad < box[3]; quad += kQuads) {
            noisy_row(kinds[n], value, pixel_counter(sample_ids[n], shape.h, quads, c, i, quad), key,
                      intensities[n * shape.c + c], levels[n]);
            const int64_t start = larger<int64_t>(box[1], 4 * quad);
            const int64_t stop = smaller<int64_t>(box[3], 4 * (quad + kQuads));
            T* row = image + c * strides.c + i * strides.h;
            for (int64_t j = start; j < stop; ++j)
              row[j * strides.w] = Scalar<T>::from_unit(value[j - 4 * quad], low, high);
          }
    }
  });
}

} // namespace

int draw_occluders(const int64_t* sample_ids, int64_t n, const double* cdf, const int64_t* row_centers,
                   int64_t rows, const int64_t* column_centers, int64_t columns, int64_t channels,
                   int64_t image_height, int64_t image_width, OccluderLaw law, int32_t* boxes,
                   uint8_t* kind, float* level, float* intensity, Where where) {
  parallel_for(n, 256, where, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      draw_occluder(sample_ids[k], cdf, row_centers, rows, column_centers, columns, channels, image_height,
                    image_width, law, boxes + 4 * k, kind + k, level + k, intensity + channels * k);
  });
  return 0;
}

int paint_occluders(const void* images, void* out, Dtype dtype, Shape shape, Strides strides,
                    const int64_t* sample_ids, const int32_t* boxes, const uint8_t* kind,
                    const float* level, const float* intensity, uint64_t seed, float low, float high,
                    Where where) {
  const auto run = dtype == Dtype::kUint8      ? &paint<uint8_t>
                   : dtype == Dtype::kFloat16  ? &paint<Half>
                   : dtype == Dtype::kBFloat16 ? &paint<BFloat16>
                                               : &paint<float>;
  run(images, out, shape, strides, sample_ids, boxes, kind, level, intensity, seed, low, high, where);
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
