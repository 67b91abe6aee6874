// The dense sweep and its scoring on the CPU.
#include <cstring>

#include "../core/scoring.h"
#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15; // below this a second thread costs more than it saves

template <class T>
void fill_window(T* out, const T* fill, const Window& box, int64_t channels, Strides to, Strides from) {
  const bool channels_last = to.c == 1 && channels > 1;
  for (int64_t i = box.top; i < box.bottom; ++i) {
    if (channels_last) {
      for (int64_t j = box.left; j < box.right; ++j)
        for (int64_t c = 0; c < channels; ++c)
          out[i * to.h + j * to.w + c] = fill[i * from.h + j * from.w + c * from.c];
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        T* row = out + c * to.c + i * to.h;
        const T* source = fill + c * from.c + i * from.h;
        for (int64_t j = box.left; j < box.right; ++j) row[j * to.w] = source[j * from.w];
      }
    }
  }
}

template <class T> void occlude(const void* images, void* out, const void* fill, const int64_t* positions,
                                int64_t count, Shape shape, Strides image, Strides from, Grid grid, Where where) {
  const int64_t size = shape.c * shape.h * shape.w;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * size;
  const int64_t per_image = grid.positions();
  parallel_for(count, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), where,
               [&](int64_t first, int64_t last) {
                 for (int64_t m = first; m < last; ++m) {
                   const int64_t n = positions[m] / per_image;
                   T* target = static_cast<T*>(out) + m * size;
                   std::memcpy(target, static_cast<const T*>(images) + n * image.n, bytes);
                   fill_window(target, static_cast<const T*>(fill) + n * from.n,
                               grid.window(positions[m] % per_image, shape.h, shape.w), shape.c, image, from);
                 }
               });
}

template <class T> double score_of(const T* row, int64_t classes, Score kind, int64_t label,
                                   const double* reference, double baseline, bool& finite) {
  // A sum of zeros times the values is NaN exactly where a value is not finite; it vectorizes.
  T poison = 0;
  for (int64_t k = 0; k < classes; ++k) poison += row[k] * T{0};
  finite = poison == T{0};
  if (kind == Score::kError) {
    int64_t best = 0;
    for (int64_t k = 1; k < classes; ++k)
      if (row[k] > row[best]) best = k;
    return best == label ? 0.0 : 1.0;
  }
  if (kind == Score::kScoreDrop) return baseline - static_cast<double>(row[label]);
  double dot = 0, own = 0, other = 0;
  for (int64_t k = 0; k < classes; ++k) {
    const auto value = static_cast<double>(row[k]);
    dot += value * reference[k];
    own += value * value;
    other += reference[k] * reference[k];
  }
  return baseline - cosine(dot, own, other);
}

template <class T> void score(const void* outputs, const int64_t* positions, int64_t count, int64_t classes,
                              int64_t per_image, Score kind, const int64_t* labels, const double* references,
                              const double* baseline, double* scores, int32_t* bad, Where where) {
  parallel_for(
      count, larger<int64_t>(1, 8192 / larger<int64_t>(classes, 1)), where, [&](int64_t first, int64_t last) {
        bool all_finite = true;
        for (int64_t m = first; m < last; ++m) {
          const int64_t n = positions[m] / per_image;
          bool finite = true;
          scores[positions[m]] =
              score_of(static_cast<const T*>(outputs) + m * classes, classes, kind, labels ? labels[n] : 0,
                       references ? references + n * classes : nullptr, baseline ? baseline[n] : 0.0, finite);
          all_finite = all_finite && finite;
        }
        if (!all_finite) {
#pragma omp atomic write
          *bad = 1;
        }
      });
}

} // namespace

const char* error_text(int) { return "no error is possible on the CPU"; }

int workers(Where where) {
  int used = 1;
#pragma omp parallel num_threads(where.threads)
  {
#pragma omp single
    used = omp_get_num_threads();
  }
  return used;
}

int occlude_positions(const void* images, void* out, const void* fill, const int64_t* positions, int64_t count,
                      int itemsize, Shape shape, Strides image, Strides fill_strides, Grid grid, Where where) {
  const auto run = itemsize == 1   ? &occlude<uint8_t>
                   : itemsize == 2 ? &occlude<uint16_t>
                   : itemsize == 4 ? &occlude<uint32_t>
                                   : &occlude<uint64_t>;
  run(images, out, fill, positions, count, shape, image, fill_strides, grid, where);
  return 0;
}

int sweep_score(const void* outputs, Dtype dtype, const int64_t* positions, int64_t count, int64_t classes,
                int64_t, int64_t per_image, Score kind, const int64_t* labels, const double* references,
                const double* baseline, double* scores, int32_t* bad, Where where) {
  const auto run = dtype == Dtype::kFloat64 ? &score<double> : &score<float>;
  run(outputs, positions, count, classes, per_image, kind, labels, references, baseline, scores, bad, where);
  return 0;
}

int sweep_accumulate(const double* scores, int64_t images, int64_t per_image, double* sum, double* squares,
                     Where where) {
  parallel_for(per_image, 4096, where, [&](int64_t first, int64_t last) {
    for (int64_t n = 0; n < images; ++n)
      for (int64_t p = first; p < last; ++p) {
        const double value = scores[n * per_image + p];
        sum[p] += value;
        squares[p] += value * value;
      }
  });
  return 0;
}

} // namespace occfast
