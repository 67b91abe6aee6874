// The dense sweep and its scoring on a GPU.
#include "../core/scoring.h"
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4; // loads in flight a thread

// An image as three axes, slowest first: (C, H, W), or (H, W, C) for channels_last.  The kernel needs
// to know no more of the layout than this.
template <class Number> struct Axes {
  Number outer, middle, inner;

  __device__ Axes(bool channels_last, int64_t channel, int64_t row, int64_t column)
      : outer(static_cast<Number>(channels_last ? row : channel)),
        middle(static_cast<Number>(channels_last ? column : row)),
        inner(static_cast<Number>(channels_last ? channel : column)) {}
};

// A block writes kThreads * kUnroll words of copy m at a time; the grid is (copies, tiles of a copy).
// An image is read once for each of its positions, so it stays in the cache: the cost is the writing.
template <class T, int bytes> __global__ void __launch_bounds__(kThreads)
    occlude_kernel(const T* images, T* out, const T* fill, const int64_t* positions, int64_t count, Shape shape,
                   bool channels_last, Strides from, Grid grid) {
  constexpr int elements = bytes / sizeof(T); // of a word
  constexpr int64_t tile = kThreads * kUnroll;
  const int64_t size = shape.c * shape.h * shape.w, words = size / elements, per_image = grid.positions();
  const Axes<uint32_t> extent(channels_last, shape.c, shape.h, shape.w);
  const Axes<int64_t> step(channels_last, from.c, from.h, from.w);
  for (int64_t m = blockIdx.x; m < count; m += gridDim.x) {
    const int64_t position = positions[m];
    if (position < 0 || position >= shape.n * per_image) __trap();
    const int64_t n = position / per_image;
    const Window box = grid.window(position - n * per_image, shape.h, shape.w);
    // The window as a range of each axis, perhaps an empty one.
    const Axes<uint32_t> first(channels_last, 0, box.top, box.left);
    const Axes<uint32_t> last(channels_last, shape.c, larger<int64_t>(box.bottom, 0),
                              larger<int64_t>(box.right, 0));
    const T* patch = fill + n * from.n;
    const auto* source = reinterpret_cast<const Word<bytes>*>(images + n * size);
    auto* target = reinterpret_cast<Word<bytes>*>(out + m * size);
    for (int64_t start = blockIdx.y * tile; start < words; start += gridDim.y * tile) {
      Word<bytes> word[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t k = start + u * kThreads + threadIdx.x;
        if (k < words) word[u] = source[k];
      }
      // Divisions of 64 bits once a tile; within it 32 are enough.
      const int64_t start_line = start * elements / extent.inner, start_outer = start_line / extent.middle;
      const auto start_inner = static_cast<uint32_t>(start * elements - start_line * extent.inner);
      const auto start_middle = static_cast<uint32_t>(start_line - start_outer * extent.middle);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const uint32_t k = u * kThreads + threadIdx.x;
        if (start + k >= words) break;
        uint32_t z = start_inner + k * elements, y = start_middle + z / extent.inner;
        uint32_t x = static_cast<uint32_t>(start_outer) + y / extent.middle;
        z %= extent.inner;
        y %= extent.middle;
        const bool outside = x < first.outer || x >= last.outer || y < first.middle || y >= last.middle ||
                             z + elements <= first.inner || z >= last.inner;
        if (z + elements > extent.inner || !outside) {
          T element[elements];
          memcpy(element, &word[u], bytes);
#pragma unroll
          for (int e = 0; e < elements; ++e) {
            if (x >= first.outer && x < last.outer && y >= first.middle && y < last.middle && z >= first.inner &&
                z < last.inner)
              element[e] = patch[x * step.outer + y * step.middle + z * step.inner];
            if (++z == extent.inner) {
              z = 0;
              if (++y == extent.middle) {
                y = 0;
                ++x;
              }
            }
          }
          memcpy(&word[u], element, bytes);
        }
        target[start + k] = word[u];
      }
    }
  }
}

template <class T, int bytes> int occlude(const void* images, void* out, const void* fill,
                                          const int64_t* positions, int64_t count, Shape shape, Strides image,
                                          Strides from, Grid grid, Where where) {
  const int64_t words = shape.c * shape.h * shape.w * static_cast<int64_t>(sizeof(T)) / bytes;
  return launch(&occlude_kernel<T, bytes>, dim3(blocks_for(count, 1), blocks_for(words, kThreads * kUnroll)),
                kThreads, 0, where, static_cast<const T*>(images), static_cast<T*>(out),
                static_cast<const T*>(fill), positions, count, shape, image.w != 1, from, grid);
}

// The widest access that keeps every copy aligned: 16 bytes for most images, 4, or one element.
template <class T> int occlude_widest(const void* images, void* out, const void* fill, const int64_t* positions,
                                      int64_t count, Shape shape, Strides image, Strides from, Grid grid,
                                      Where where) {
  const uint64_t bytes = static_cast<uint64_t>(shape.c * shape.h * shape.w) * sizeof(T);
  const uint64_t all = bytes | reinterpret_cast<uintptr_t>(images) | reinterpret_cast<uintptr_t>(out);
  constexpr int narrow = sizeof(T) < 4 ? 4 : sizeof(T);
  const auto run = all % 16 == 0       ? &occlude<T, 16>
                   : all % narrow == 0 ? &occlude<T, narrow>
                                       : &occlude<T, sizeof(T)>;
  return run(images, out, fill, positions, count, shape, image, from, grid, where);
}

template <class T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// A warp a row.  Reductions are butterflies in a fixed order, so a score never depends on the launch.
template <class T> __global__ void __launch_bounds__(kThreads)
    score_kernel(const T* outputs, const int64_t* positions, int64_t count, int64_t classes, int64_t images,
                 int64_t per_image, Score kind, const int64_t* labels, const double* references,
                 const double* baseline, double* scores, int32_t* bad) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t m = grid_first() / kWarp; m < count; m += grid_step() / kWarp) {
    const int64_t position = positions[m];
    if (position < 0 || position >= images * per_image) __trap();
    const int64_t n = position / per_image;
    const T* row = outputs + m * classes;
    const int64_t label = labels ? labels[n] : 0;
    if (labels && (label < 0 || label >= classes)) __trap();
    T poison = 0; // as on the CPU: NaN exactly where an output is not finite
    double score = 0;
    if (kind == Score::kError) {
      T best = row[0];
      int64_t at = 0;
      for (int64_t k = lane; k < classes; k += kWarp) {
        const T value = row[k];
        poison += value * T{0};
        if (value > best) {
          best = value;
          at = k;
        }
      }
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const T value = __shfl_xor_sync(kAllLanes, best, offset);
        const int64_t index = __shfl_xor_sync(kAllLanes, at, offset);
        if (outranks(value, index, best, at)) {
          best = value;
          at = index;
        }
      }
      score = at == label ? 0.0 : 1.0;
    } else if (kind == Score::kScoreDrop) {
      for (int64_t k = lane; k < classes; k += kWarp) poison += row[k] * T{0};
      score = baseline[n] - static_cast<double>(row[label]);
    } else {
      const double* reference = references + n * classes;
      double dot = 0, own = 0, other = 0;
      for (int64_t k = lane; k < classes; k += kWarp) {
        const T output = row[k];
        const auto value = static_cast<double>(output);
        poison += output * T{0};
        dot += value * reference[k];
        own += value * value;
        other += reference[k] * reference[k];
      }
      score = baseline[n] - cosine(warp_sum(dot), warp_sum(own), warp_sum(other));
    }
    const bool broken = __any_sync(kAllLanes, !(poison == T{0}));
    if (lane == 0) {
      scores[position] = score;
      if (broken) atomicOr(bad, 1);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const double* scores, int64_t images, int64_t per_image, double* sum, double* squares) {
  for (int64_t p = grid_first(); p < per_image; p += grid_step()) {
    double total = sum[p], total_squares = squares[p];
    for (int64_t n = 0; n < images; ++n) {
      const double value = scores[n * per_image + p];
      total += value;
      total_squares += value * value;
    }
    sum[p] = total;
    squares[p] = total_squares;
  }
}

} // namespace

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int workers(Where) { return 1; }

int occlude_positions(const void* images, void* out, const void* fill, const int64_t* positions, int64_t count,
                      int itemsize, Shape shape, Strides image, Strides fill_strides, Grid grid, Where where) {
  const auto run = itemsize == 1   ? &occlude_widest<uint8_t>
                   : itemsize == 2 ? &occlude_widest<uint16_t>
                   : itemsize == 4 ? &occlude_widest<uint32_t>
                                   : &occlude_widest<uint64_t>;
  return run(images, out, fill, positions, count, shape, image, fill_strides, grid, where);
}

int sweep_score(const void* outputs, Dtype dtype, const int64_t* positions, int64_t count, int64_t classes,
                int64_t images, int64_t per_image, Score kind, const int64_t* labels, const double* references,
                const double* baseline, double* scores, int32_t* bad, Where where) {
  const auto run = [&](auto kernel, auto* typed) {
    return launch(kernel, blocks_for(count, kThreads / kWarp), kThreads, 0, where, typed, positions, count,
                  classes, images, per_image, kind, labels, references, baseline, scores, bad);
  };
  return dtype == Dtype::kFloat64 ? run(&score_kernel<double>, static_cast<const double*>(outputs))
                                  : run(&score_kernel<float>, static_cast<const float*>(outputs));
}

int sweep_accumulate(const double* scores, int64_t images, int64_t per_image, double* sum, double* squares,
                     Where where) {
  return launch(&accumulate_kernel, blocks_for(per_image, kThreads), kThreads, 0, where, scores, images, per_image,
                sum, squares);
}

} // namespace occfast
