// The dense sweep and its scoring on a GPU.
#include "../core/scoring.h"
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4; // loads in flight per thread

// The three axes of an image, slowest first: (C, H, W), or (H, W, C) for channels_last. The kernel depends on the
// layout through them alone.
template <class Number> struct Axes {
  Number outer, middle, inner;

  __device__ Axes(bool channels_last, int64_t channel, int64_t row, int64_t column)
      : outer(static_cast<Number>(channels_last ? row : channel)),
        middle(static_cast<Number>(channels_last ? column : row)),
        inner(static_cast<Number>(channels_last ? channel : column)) {}
};

// A block writes kThreads * kUnroll words of copy m at a time. The grid is (copies, tiles of a copy). An image
// is read once for each of its positions and stays in the cache, so writing dominates the cost.
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
    if (position < 0 || position >= shape.n * per_image) {
      OCCFAST_REQUIRE(threadIdx.x != 0 || blockIdx.y != 0, "occlude_positions: positions: one is of no image");
      continue;
    }
    const int64_t n = position / per_image;
    const Window box = grid.window(position - n * per_image, shape.h, shape.w);
    // The window as a range of each axis, which may be empty.
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
      // 64-bit divisions once per tile; within a tile 32 bits suffice.
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

template <class T, int bytes> int occlude(const OccludePositions& args, ExecContext context) {
  const Shape shape = args.shape;
  const int64_t words = shape.c * shape.h * shape.w * static_cast<int64_t>(sizeof(T)) / bytes;
  return launch(&occlude_kernel<T, bytes>, dim3(blocks_for(args.count, 1), blocks_for(words, kThreads * kUnroll)),
                kThreads, 0, context, static_cast<const T*>(args.images), static_cast<T*>(args.out),
                static_cast<const T*>(args.fill), args.positions, args.count, shape, args.strides.w != 1,
                args.fill_strides, args.grid);
}

// Uses the widest access that keeps every copy aligned: 16 bytes for most images, else 4 or one element.
template <class T> int occlude_widest(const OccludePositions& args, ExecContext context) {
  const uint64_t bytes = static_cast<uint64_t>(args.shape.c * args.shape.h * args.shape.w) * sizeof(T);
  const uint64_t all = bytes | reinterpret_cast<uintptr_t>(args.images) | reinterpret_cast<uintptr_t>(args.out);
  constexpr int narrow = sizeof(T) < 4 ? 4 : sizeof(T);
  const auto run = all % 16 == 0       ? &occlude<T, 16>
                   : all % narrow == 0 ? &occlude<T, narrow>
                                       : &occlude<T, sizeof(T)>;
  return run(args, context);
}

// One warp per row. Reductions are butterflies in a fixed order, so scores do not depend on the launch.
template <class T> __global__ void __launch_bounds__(kThreads)
    score_kernel(const T* outputs, const int64_t* positions, int64_t count, int64_t classes, int64_t images,
                 int64_t per_image, Score kind, const int64_t* labels, const double* references,
                 const double* baseline, double* scores, int32_t* bad) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t m = grid_first() / kWarp; m < count; m += grid_step() / kWarp) {
    const int64_t position = positions[m];
    if (position < 0 || position >= images * per_image) {
      OCCFAST_REQUIRE(lane != 0, "sweep_score: positions: one is of no image");
      continue;
    }
    const int64_t n = position / per_image;
    const T* row = outputs + m * classes;
    const int64_t label = labels ? labels[n] : 0;
    if (labels && (label < 0 || label >= classes)) {
      OCCFAST_REQUIRE(lane != 0, "sweep_score: labels: one is no class");
      continue;
    }
    T poison = 0; // as on the CPU: NaN exactly if an output is not finite
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

// A block adds up the scores of kWarp positions. All its warps load, each the scores of other images, so that many
// loads are in flight. Then one warp adds the scores and one their squares, in the order of the images as on the
// CPU: a sum depends neither on the launch nor on how the images are divided into calls.
constexpr int kSumThreads = 256, kSumWarps = kSumThreads / kWarp, kSumLoads = 8;

__global__ void __launch_bounds__(kSumThreads)
    accumulate_kernel(const double* __restrict__ scores, int64_t images, int64_t per_image,
                      double* __restrict__ sum, double* __restrict__ squares) {
  constexpr int kImages = kSumWarps * kSumLoads;
  __shared__ double held[kImages][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t first = int64_t{blockIdx.x} * kWarp; first < per_image; first += int64_t{gridDim.x} * kWarp) {
    const int64_t p = first + lane;
    double* to = p >= per_image ? nullptr : warp == 0 ? sum + p : warp == 1 ? squares + p : nullptr;
    double total = to ? *to : 0.0;
    for (int64_t start = 0; start < images; start += kImages) {
      double value[kSumLoads];
#pragma unroll
      for (int u = 0; u < kSumLoads; ++u) {
        const int64_t n = start + u * kSumWarps + warp;
        value[u] = p < per_image && n < images ? scores[n * per_image + p] : 0.0;
      }
      __syncthreads(); // until the images before have been added
#pragma unroll
      for (int u = 0; u < kSumLoads; ++u) held[u * kSumWarps + warp][lane] = value[u];
      __syncthreads();
      const int count = static_cast<int>(smaller<int64_t>(kImages, images - start));
      if (!to) continue;
      for (int k = 0; k < count; ++k) total += warp == 0 ? held[k][lane] : held[k][lane] * held[k][lane];
    }
    if (to) *to = total;
  }
}

} // namespace

const char* error_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

int workers(ExecContext) { return 1; }

int occlude_positions(const OccludePositions& args, ExecContext context) {
  const auto run = args.itemsize == 1   ? &occlude_widest<uint8_t>
                   : args.itemsize == 2 ? &occlude_widest<uint16_t>
                   : args.itemsize == 4 ? &occlude_widest<uint32_t>
                                        : &occlude_widest<uint64_t>;
  return run(args, context);
}

int sweep_score(const SweepScore& args, ExecContext context) {
  const auto run = [&](auto kernel, auto* outputs) {
    return launch(kernel, blocks_for(args.count, kThreads / kWarp), kThreads, 0, context, outputs, args.positions,
                  args.count, args.classes, args.images, args.per_image, args.kind, args.labels, args.references,
                  args.baseline, args.scores, args.bad);
  };
  return args.dtype == Dtype::kFloat64 ? run(&score_kernel<double>, static_cast<const double*>(args.outputs))
                                       : run(&score_kernel<float>, static_cast<const float*>(args.outputs));
}

int sweep_accumulate(const SweepAccumulate& args, ExecContext context) {
  return launch(&accumulate_kernel, blocks_for(args.per_image, kWarp), kSumThreads, 0, context, args.scores,
                args.images, args.per_image, args.sum, args.squares);
}

} // namespace occfast
