// The dense sweep and its scoring on the CPU.
#include <cstring>

#include "../core/scoring.h"
#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15; // minimum per thread: less costs more than it saves

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

template <class T> void occlude(const OccludePositions& args, ExecContext context) {
  const Shape shape = args.shape;
  const Strides image = args.strides, from = args.fill_strides;
  const Grid grid = args.grid;
  const int64_t* positions = args.positions;
  const int64_t size = shape.c * shape.h * shape.w, per_image = grid.positions();
  const auto bytes = static_cast<int64_t>(sizeof(T)) * size;
  parallel_for(args.count, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), context,
               [&](int64_t first, int64_t last) {
                 for (int64_t m = first; m < last; ++m) {
                   const int64_t n = positions[m] / per_image;
                   T* target = static_cast<T*>(args.out) + m * size;
                   std::memcpy(target, static_cast<const T*>(args.images) + n * image.n, bytes);
                   fill_window(target, static_cast<const T*>(args.fill) + n * from.n,
                               grid.window(positions[m] % per_image, shape.h, shape.w), shape.c, image, from);
                 }
               });
}

template <class T> double score_of(const T* row, int64_t classes, Score kind, int64_t label,
                                   const double* reference, double baseline, bool& finite) {
  // The sum of zero times each value is NaN exactly if a value is not finite. It vectorizes.
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

template <class T> void score(const SweepScore& args, ExecContext context) {
  const int64_t classes = args.classes;
  const auto body = [&](int64_t first, int64_t last) {
    bool all_finite = true;
    for (int64_t m = first; m < last; ++m) {
      const int64_t n = args.positions[m] / args.per_image;
      bool finite = true;
      args.scores[args.positions[m]] =
          score_of(static_cast<const T*>(args.outputs) + m * classes, classes, args.kind,
                   args.labels ? args.labels[n] : 0, args.references ? args.references + n * classes : nullptr,
                   args.baseline ? args.baseline[n] : 0.0, finite);
      all_finite = all_finite && finite;
    }
    if (!all_finite) {
#pragma omp atomic write
      *args.bad = 1;
    }
  };
  parallel_for(args.count, larger<int64_t>(1, 8192 / larger<int64_t>(classes, 1)), context, body);
}

} // namespace

const char* error_text(int) { return "no error is possible on the CPU"; }

int workers(ExecContext context) {
  int used = 1;
#pragma omp parallel num_threads(context.threads)
  {
#pragma omp single
    used = omp_get_num_threads();
  }
  return used;
}

int occlude_positions(const OccludePositions& args, ExecContext context) {
  const auto run = args.itemsize == 1   ? &occlude<uint8_t>
                   : args.itemsize == 2 ? &occlude<uint16_t>
                   : args.itemsize == 4 ? &occlude<uint32_t>
                                        : &occlude<uint64_t>;
  run(args, context);
  return 0;
}

int sweep_score(const SweepScore& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kFloat64 ? &score<double> : &score<float>;
  run(args, context);
  return 0;
}

int sweep_accumulate(const SweepAccumulate& args, ExecContext context) {
  const double* scores = args.scores;
  double *sum = args.sum, *squares = args.squares;
  const int64_t images = args.images, per_image = args.per_image;
  parallel_for(per_image, 4096, context, [&](int64_t first, int64_t last) {
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
