// Noisy occluders on a GPU.  One pass over memory copies the batch and paints it.
#include "../core/scalar.h"
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;                              // loads in flight per thread
constexpr int64_t kTileBytes = 16 * kThreads * kUnroll; // part of an image that a block copies at a time

// Copies elements first .. last - 1 by all threads of the block, in 16-byte accesses if the addresses allow it.
template <class T>
__device__ void copy_elements(const T* __restrict__ from, T* __restrict__ to, int64_t first, int64_t last) {
  constexpr int64_t elements = 16 / sizeof(T); // of a word
  const auto target = reinterpret_cast<uintptr_t>(to + first), source = reinterpret_cast<uintptr_t>(from + first);
  const int64_t lead = static_cast<int64_t>((16 - target % 16) % 16 / sizeof(T));
  const bool together = target % 16 == source % 16 && first + lead < last;
  const int64_t start = together ? first + lead : last;
  const int64_t words = (last - start) / elements, rest = start + words * elements;
#pragma unroll 1
  for (int64_t k = first + threadIdx.x; k < start; k += kThreads) to[k] = from[k];
  const auto* sources = reinterpret_cast<const Word<16>*>(from + start);
  auto* copies = reinterpret_cast<Word<16>*>(to + start);
#pragma unroll 1
  for (int64_t base = threadIdx.x; base < words; base += kThreads * kUnroll) {
    Word<16> word[kUnroll]; // all loads before the first store
#pragma unroll
    for (int64_t u = 0; u < kUnroll; ++u)
      if (base + u * kThreads < words) word[u] = sources[base + u * kThreads];
#pragma unroll
    for (int64_t u = 0; u < kUnroll; ++u)
      if (base + u * kThreads < words) copies[base + u * kThreads] = word[u];
  }
#pragma unroll 1
  for (int64_t k = rest + threadIdx.x; k < last; k += kThreads) to[k] = from[k];
}

// A quad is four pixels of a row (the last one may have fewer), which share one Philox counter. A line is a row of
// one channel, or for channels_last a row of pixels with all channels: lines are contiguous in memory. A block
// copies its lines and waits, then its threads paint the quads of the box in these lines. With six
// blocks to a multiprocessor no register is spilled.
template <class T> __global__ void __launch_bounds__(kThreads, 6)
    paint_kernel(const T* images, T* out, Shape shape, bool channels_last, const int64_t* sample_ids,
                 const int32_t* boxes, const uint8_t* kinds, const float* levels, const float* intensities,
                 Key key, float low, float high, int32_t* outside, int64_t tile) {
  const int64_t quads = (shape.w + 3) / 4, depth = channels_last ? shape.c : 1, length = shape.w * depth;
  const int64_t lines = shape.h * (channels_last ? 1 : shape.c), size = shape.c * shape.h * shape.w;
  const int me = static_cast<int>(threadIdx.x);
  int beyond = 0;
  for (int64_t n = blockIdx.x; n < shape.n; n += gridDim.x) {
    const int32_t top = boxes[4 * n], left = boxes[4 * n + 1];
    const int32_t bottom = boxes[4 * n + 2], right = boxes[4 * n + 3];
    const int kind = kinds[n];
    const float level = levels[n];
    if (top < 0 || left < 0 || bottom > shape.h || right > shape.w) {
      beyond = 1;
      continue;
    }
    const bool empty = top >= bottom || left >= right;
    // The box as rows of quads. A thread visits every kThreads-th quad, plane by plane, so many planes, rows and
    // quads farther than the last one. That takes divisions once per image, none per quad.
    const int height = empty ? 1 : bottom - top, start = left / 4, width = empty ? 1 : (right + 3) / 4 - start;
    const int quad_step = kThreads % width, plane_step = kThreads / width / height;
    const int row_step = kThreads / width - plane_step * height;
    for (int64_t first = blockIdx.y * tile; first < lines; first += gridDim.y * tile) {
      const int64_t last = smaller(first + tile, lines);
      if (outside) {
        bool found = false;
        for (int64_t k = first * length + me; k < last * length; k += kThreads)
          found |= Scalar<T>::is_outside(images[n * size + k], low, high);
        if (found) *outside = 1; // every thread writes the same value
        if (out == images) __syncthreads();
      }
      if (out != images) copy_elements(images + n * size, out + n * size, first * length, last * length);
      if (empty) continue;
      if (out != images) __syncthreads();
      // The number of lines of the box before a line of the image.
      const auto before = [&](int64_t line) {
        const int64_t plane = line / shape.h, row = line - plane * shape.h - top;
        return plane * height + smaller(larger(row, int64_t{0}), int64_t{height});
      };
      const int64_t begin = before(first);
      const int count = static_cast<int>(before(last) - begin) * width;
      int64_t plane = begin / height;
      int row = static_cast<int>(begin - plane * height) + me / width, quad = me % width;
      plane += row / height;
      row %= height;
      for (int k = me; k < count; k += kThreads) {
        const int i = top + row, q = start + quad;
        T* pixel = out + n * size + ((plane * shape.h + i) * shape.w + int64_t{4} * q) * depth;
        for (int64_t c = plane; c < plane + depth; ++c, ++pixel) {
          const float intensity = intensities[n * shape.c + c];
          Words noise = philox(pixel_counter(sample_ids[n], shape.h, quads, c, i, q), key);
#pragma unroll 1
          for (int32_t lane = 0; lane < 4; ++lane) {
            const int32_t j = 4 * q + lane;
            if (j >= left && j < right)
              pixel[lane * depth] = Scalar<T>::from_unit(noisy_pixel(kind, intensity, level, noise.x), low, high);
            noise = Words{noise.y, noise.z, noise.w, 0};
          }
        }
        quad += quad_step;
        row += row_step;
        plane += plane_step;
        if (quad >= width) {
          quad -= width;
          ++row;
        }
        if (row >= height) {
          row -= height;
          ++plane;
        }
      }
    }
  }
  // At the end, where few values are in registers.
  OCCFAST_REQUIRE(beyond == 0 || me != 0 || blockIdx.y != 0,
                  "paint_occluders: boxes: one reaches beyond its image");
}

template <class T> int paint(const PaintOccluders& args, ExecContext context) {
  const Shape shape = args.shape;
  const bool channels_last = args.strides.w != 1;
  const int64_t length = shape.w * (channels_last ? shape.c : 1), lines = shape.h * (channels_last ? 1 : shape.c);
  const int64_t bytes = larger<int64_t>(1, length * static_cast<int64_t>(sizeof(T)));
  const int64_t fit = larger<int64_t>(1, kTileBytes / bytes);
  const int64_t tiles = (lines + fit - 1) / fit, tile = (lines + tiles - 1) / larger<int64_t>(tiles, 1);
  return launch(&paint_kernel<T>, dim3(blocks_for(shape.n, 1), blocks_for(tiles, 1)), kThreads, 0, context,
                static_cast<const T*>(args.images), static_cast<T*>(args.out), shape, channels_last,
                args.sample_ids, args.occluders.boxes, args.occluders.kind, args.occluders.level,
                args.occluders.intensity, key_of(args.seed), args.low, args.high, args.outside, tile);
}

__global__ void __launch_bounds__(kThreads) draw_kernel(__grid_constant__ const DrawOccluders args) {
  const Occluders& to = args.occluders;
  for (int64_t k = grid_first(); k < args.n; k += grid_step())
    draw_occluder(args.sample_ids[k], args.locations, args.params, args.channels, args.image_height,
                  args.image_width, to.boxes + 4 * k, to.kind + k, to.level + k, to.intensity + args.channels * k);
}

__global__ void __launch_bounds__(kThreads)
    philox_kernel(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words) {
  for (int64_t k = grid_first(); k < n; k += grid_step()) {
    const uint32_t* c = counters + 4 * k;
    const Words out = philox(Words{c[0], c[1], c[2], c[3]}, Key{keys[2 * k], keys[2 * k + 1]});
    words[4 * k] = out.x;
    words[4 * k + 1] = out.y;
    words[4 * k + 2] = out.z;
    words[4 * k + 3] = out.w;
  }
}

__global__ void __launch_bounds__(kThreads) normals_kernel(const uint32_t* words, int64_t n, float* values) {
  for (int64_t k = grid_first(); k < n; k += grid_step()) values[k] = normal_from_word(words[k]);
}

} // namespace

int draw_occluders(const DrawOccluders& args, ExecContext context) {
  return launch(&draw_kernel, blocks_for(args.n, kThreads), kThreads, 0, context, args);
}

int paint_occluders(const PaintOccluders& args, ExecContext context) {
  const auto run = args.dtype == Dtype::kUint8      ? &paint<uint8_t>
                   : args.dtype == Dtype::kFloat16  ? &paint<Half>
                   : args.dtype == Dtype::kBFloat16 ? &paint<BFloat16>
                                                    : &paint<float>;
  return run(args, context);
}

int philox_words(const uint32_t* counters, const uint32_t* keys, int64_t n, uint32_t* words, ExecContext context) {
  return launch(&philox_kernel, blocks_for(n, kThreads), kThreads, 0, context, counters, keys, n, words);
}

int normals(const uint32_t* words, int64_t n, float* values, ExecContext context) {
  return launch(&normals_kernel, blocks_for(n, kThreads), kThreads, 0, context, words, n, values);
}

} // namespace occfast
