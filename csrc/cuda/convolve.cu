// Windows of occluded activations and their convolution in one pass on a GPU: an implicit matrix product.
//
// A block computes the outputs of some pixels for some channels. It looks up where the pixels under a few taps of
// the kernel lie, and copies slices of them, and of the weights, into shared memory: the next slice while it
// multiplies the present one. Windows never reach global memory.
#include <type_traits>

#include "mma.cuh"
#include "windows.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kPixels = kThreads; // whose outputs a block computes at a time
constexpr int kTaps = 9;          // of the kernel, looked up at a time
constexpr int kBlock = 32;        // output channels of a block of weights
constexpr int kSliceBytes = 64;   // of each pixel in a slice: 8 to 32 channels
constexpr int kPitchBytes = 80;   // from pixel to pixel, so that threads that read together use different banks

// The sizes of the result.
struct Output {
  int64_t pixels, area, columns; // of all windows, of one, of a row of it
  bool whole;                    // every four channels can be written in one access
};

// Up to a number of channels of an output pixel: value to the memory at `to`, of which `left` are channels.
template <int count, class T>
__device__ __forceinline__ void put(const T (&value)[count], T* to, int64_t left, bool whole) {
  if (whole) {
    if (left <= 0) return;
    Word<count * sizeof(T)> word;
    memcpy(&word, value, sizeof word);
    *reinterpret_cast<Word<count * sizeof(T)>*>(to) = word;
    return;
  }
#pragma unroll
  for (int k = 0; k < count; ++k)
    if (k < left) to[k] = value[k];
}

template <class S> __device__ __forceinline__ S rectified(S value, bool relu) {
  return relu && S{0} > value ? S{0} : value; // NaN stays
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// The outputs that a thread computes by multiply-adds: those of 8 pixels, for groups of channels that make up 16
// bytes. Each starts at the bias and adds up tap by tap and channel by channel, as cpu/convolve.cpp does: it has
// the same bits.
template <class T, int kN> struct Scalars {
  static constexpr int kGroup = 16 / sizeof(T), kGroups = kN / (8 * kGroup), kRows = 8;
  static constexpr int kSkewBytes = 16; // behind a row of weights
  T sums[kRows][kGroups][kGroup];

  __device__ static int pixel(int r) { return static_cast<int>(threadIdx.x) / 8 + r * (kPixels / kRows); }
  __device__ static int channel(int q) { return (q * 8 + static_cast<int>(threadIdx.x) % 8) * kGroup; }

  __device__ void start(const T* bias) {
#pragma unroll
    for (int q = 0; q < kGroups; ++q)
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const T value = __ldg(bias + channel(q) + k);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r][q][k] = value;
      }
  }

  template <class Weights>
  __device__ void multiply(const unsigned char* pixels, const Weights& weights, int depth) {
#pragma unroll 1
    for (int first = 0; first < depth; first += kGroup) {
      T x[kRows][kGroup];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto word = *reinterpret_cast<const Word<16>*>(pixels + pixel(r) * kPitchBytes + first * sizeof(T));
        memcpy(x[r], &word, 16);
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (first + k >= depth) break; // a product with 0 would turn -0 into 0
        T w[kGroups][kGroup];
#pragma unroll
        for (int q = 0; q < kGroups; ++q) {
          const auto word = *reinterpret_cast<const Word<16>*>(&weights[first + k][channel(q)]);
          memcpy(w[q], &word, 16);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int q = 0; q < kGroups; ++q)
#pragma unroll
            for (int c = 0; c < kGroup; ++c) sums[r][q][c] = multiply_add(x[r][k], w[q][c], sums[r][q][c]);
      }
    }
  }

  // out: the first pixel and channel of the block, of `pixels` pixels and `left` channels.
  __device__ void finish(T* out, int64_t channels, int64_t pixels, int64_t left, bool relu, bool whole) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (pixel(r) >= pixels) continue;
#pragma unroll
      for (int q = 0; q < kGroups; ++q) {
        T value[kGroup];
#pragma unroll
        for (int k = 0; k < kGroup; ++k) value[k] = rectified(sums[r][q][k], relu);
        put(value, out + pixel(r) * channels + channel(q), left - channel(q), whole);
      }
    }
  }
};

// The same by products of matrices: a warp computes 32 pixels, in float from factors in TF32 or of 16 bits.
template <class T, int kN> struct Matrices {
  static constexpr int kRows = 2, kColumns = kN / 8;
  static constexpr int kSkewBytes = sizeof(T) == 4 ? 32 : 16;
  float sums[kRows][kColumns][4];

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int top() { return static_cast<int>(threadIdx.x) / kWarp * kWarp; }

  __device__ static float number(T value) {
    if constexpr (std::is_same_v<T, Half>) {
      return float_from_half(value);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return float_from_bfloat16(value);
    } else {
      return value;
    }
  }
  __device__ static T rounded(float value) {
    if constexpr (std::is_same_v<T, Half>) {
      return half_from_float(value);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bfloat16_from_float(value);
    } else {
      return value;
    }
  }

  __device__ void start(const T* bias) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float value = number(bias[j * 8 + lane() % 4 * 2 + k]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r][j][k] = sums[r][j][k + 2] = value;
      }
  }

  // What lies behind `depth` in a slice is zero.
  template <class Weights>
  __device__ void multiply(const unsigned char* pixels, const Weights& weights, int depth) {
    constexpr int kStep = 32 / sizeof(T); // channels of a product
#pragma unroll 1
    for (int first = 0; first < depth; first += kStep) {
      uint32_t a[kRows][4];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        load_matrices<false>(a[r], pixels + (top() + r * 16 + lane() % 16) * kPitchBytes + first * sizeof(T) +
                                       lane() / 16 * 16);
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (int k = 0; k < 4; ++k) a[r][k] = tf32_bits(from_bits(a[r][k]));
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        uint32_t b[4]; // two columns of products
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            b[k] = tf32_bits(weights[first + lane() % 4 + k % 2 * 4][(j + k / 2) * 8 + lane() / 4]);
        } else {
          load_matrices<true>(b, &weights[first + lane() % 16][(j + lane() / 16) * 8]);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          add_product<T>(sums[r][j], a[r], {b[0], b[1]});
          add_product<T>(sums[r][j + 1], a[r], {b[2], b[3]});
        }
      }
    }
  }

  __device__ void finish(T* out, int64_t channels, int64_t pixels, int64_t left, bool relu, bool whole) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = top() + r * 16 + half * 8 + lane() / 4;
        if (pixel >= pixels) continue;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int channel = j * 8 + lane() % 4 * 2;
          const T value[2] = {rounded(rectified(sums[r][j][half * 2], relu)),
                              rounded(rectified(sums[r][j][half * 2 + 1], relu))};
          put(value, out + pixel * channels + channel, left - channel, whole);
        }
      }
  }
};

// Blocks that share a multiprocessor, at least: so many that nothing spills.
template <class Sums, class Gather> constexpr int kResident = 3;
template <class T> constexpr int kResident<Matrices<T, 2 * kBlock>, GatherPieces> = 2;

// The address of pixel j of a row, or 0 for padding. Without an index into the row, which stays in registers.
template <int kCuts> __device__ __forceinline__ uint64_t pixel_of(const Row<kCuts>& row, int j, int bytes) {
  if (j < row.low || j >= row.high) return 0;
  uint64_t from = row.from[0];
#pragma unroll
  for (int k = 0; k < kCuts; ++k)
    if (j >= row.cut[k]) from = row.from[k + 1];
  return from + static_cast<uint64_t>(int64_t{j} * bytes);
}

// T: of pixels and weights.  Sums: how they are multiplied, kN channels at a time.  bytes: of an asynchronous
// copy.
template <class T, template <class, int> class Sums, int kN, int bytes, class Gather>
__global__ void __launch_bounds__(kThreads, kResident<Sums<T, kN>, Gather>)
    convolve_kernel(Gather g, Convolution conv, Output size, Word<bytes> padding) {
  constexpr int kDepth = kSliceBytes / sizeof(T),
                kRow = kN + Sums<T, kN>::kSkewBytes / static_cast<int>(sizeof(T));
  __shared__ __align__(16) unsigned char pixels[2][kPixels * kPitchBytes];
  __shared__ __align__(16) T weights[2][kDepth][kRow];
  __shared__ uint64_t addresses[kTaps][kPixels];
  const int me = static_cast<int>(threadIdx.x), C = static_cast<int>(g.shape.c);
  const int kernel_width = static_cast<int>(conv.kernel[1]),
            taps = static_cast<int>(conv.kernel[0]) * kernel_width;
  const int64_t blocks = (conv.channels + kBlock - 1) / kBlock, products = int64_t{taps} * C;
  const int64_t tiles = (size.pixels + kPixels - 1) / kPixels;
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t pixel = tile * kPixels + me, e = pixel / size.area;
    const int rest = static_cast<int>(pixel - e * size.area), i = rest / static_cast<int>(size.columns);
    const int column = (rest - i * static_cast<int>(size.columns)) * static_cast<int>(conv.stride[1]);
    for (int64_t n = int64_t{blockIdx.x} * (kN / kBlock); n < blocks; n += int64_t{gridDim.x} * (kN / kBlock)) {
      Sums<T, kN> sums;
      sums.start(static_cast<const T*>(conv.bias) + n * kBlock);
      for (int first_tap = 0; first_tap < taps; first_tap += kTaps) {
        const int last_tap = smaller(first_tap + kTaps, taps), depth = (last_tap - first_tap) * C;
        __syncthreads(); // until the addresses and slices before have been read

        // This thread looks up the pixels under the taps of output pixel `me`.
#pragma unroll 1
        for (int tap = first_tap; tap < last_tap;) {
          const int y = tap / kernel_width, end = smaller((y + 1) * kernel_width, last_tap);
          Row<kCutsOf<Gather>> row{};
          if (pixel < size.pixels)
            row = row_of(g, e, i * conv.stride[0] + y * conv.dilation[0], C * static_cast<int>(sizeof(T)),
                         rest == 0 && tap == 0 && n == 0);
#pragma unroll 1
          for (; tap < end; ++tap) {
            const int x = column + (tap - y * kernel_width) * static_cast<int>(conv.dilation[1]);
            addresses[tap - first_tap][me] = pixel_of(row, x, C * static_cast<int>(sizeof(T)));
          }
        }
        // Starts to copy a slice of the pixels, and of the weights.
        const auto fetch = [&](int slice) {
          constexpr int kWords = kSliceBytes / bytes, kStep = kThreads / kWords;
          const int k = slice * kDepth + me % kWords * (bytes / static_cast<int>(sizeof(T)));
          const int tap = k / C, at = (k - tap * C) * static_cast<int>(sizeof(T));
          unsigned char* to = pixels[slice % 2] + me / kWords * kPitchBytes + me % kWords * bytes;
#pragma unroll 4
          for (int p = me / kWords; p < kPixels; p += kStep, to += kStep * kPitchBytes) {
            Word<bytes> word{};
            if (k < depth) {
              if (const uint64_t from = addresses[tap][p]) {
                copy_async<bytes>(to, reinterpret_cast<const unsigned char*>(from) + at);
                continue;
              }
              word = padding;
            }
            *reinterpret_cast<Word<bytes>*>(to) = word;
          }
          constexpr int kWordsOfRow = kN * static_cast<int>(sizeof(T)) / 16, kGroup = 16 / sizeof(T);
#pragma unroll
          for (int word = me; word < kDepth * kWordsOfRow; word += kThreads) {
            const int row = word / kWordsOfRow, channel = word % kWordsOfRow * kGroup;
            T* target = &weights[slice % 2][row][channel];
            if (slice * kDepth + row < depth) {
              const int64_t line =
                  (n + channel / kBlock) * products + int64_t{first_tap} * C + slice * kDepth + row;
              copy_async<16>(target, static_cast<const T*>(conv.weights) + line * kBlock + channel % kBlock);
            } else {
              *reinterpret_cast<Word<16>*>(target) = Word<16>{};
            }
          }
        };
        __syncthreads(); // until all addresses are known
        if (depth > 0) fetch(0);
        for (int slice = 0; slice * kDepth < depth; ++slice) {
          wait_for_copies();
          __syncthreads(); // until all have this slice, and nobody reads the one before
          if ((slice + 1) * kDepth < depth) fetch(slice + 1);
          sums.multiply(pixels[slice % 2], weights[slice % 2], smaller(kDepth, depth - slice * kDepth));
        }
      }
      const int64_t channel = n * kBlock;
      sums.finish(static_cast<T*>(g.out) + tile * kPixels * conv.channels + channel, conv.channels,
                  size.pixels - tile * kPixels, conv.channels - channel, conv.relu, size.whole);
    }
  }
}

template <class T, template <class, int> class Sums, int kN, int bytes, class Gather>
int start(const Gather& g, const Convolution& conv, const Output& size, ExecContext context) {
  const dim3 grid(blocks_for(conv.channels, kN), blocks_for(size.pixels, kPixels));
  return launch(&convolve_kernel<T, Sums, kN, bytes, Gather>, grid, kThreads, 0, context, g, conv, size,
                padding_word<bytes>(g));
}

// Copies 16 bytes at a time where pixels are aligned to as many, and then computes 64 channels at a time if it
// can.
template <class T, template <class, int> class Sums, class Gather>
int choose(const Gather& g, const Convolution& conv, const Output& size, ExecContext context) {
  if ((static_cast<uint64_t>(g.shape.c) * sizeof(T) | addresses(g)) % 16 != 0)
    return start<T, Sums, kBlock, sizeof(T)>(g, conv, size, context);
  if constexpr (sizeof(T) < 8) // sums of 64 channels in double take too many registers
    if ((conv.channels + kBlock - 1) / kBlock % 2 == 0)
      return start<T, Sums, 2 * kBlock, 16>(g, conv, size, context);
  return start<T, Sums, kBlock, 16>(g, conv, size, context);
}

template <class Gather>
int convolve(const Gather& g, int64_t entries, const Convolution& conv, ExecContext context) {
  const int64_t reach[2] = {(conv.kernel[0] - 1) * conv.dilation[0] + 1,
                            (conv.kernel[1] - 1) * conv.dilation[1] + 1};
  const int64_t rows = (g.height - reach[0]) / conv.stride[0] + 1,
                columns = (g.width - reach[1]) / conv.stride[1] + 1;
  constexpr int64_t kMost = 1 << 20; // within a window and a pixel, 32 bits are enough
  if (g.height * g.width > kMost || g.shape.c > kMost || address(conv.weights) % 16 != 0)
    return cudaErrorInvalidValue;
  const bool whole = conv.channels % 4 == 0 && address(g.out) % 16 == 0;
  const Output size{entries * rows * columns, rows * columns, columns, whole};
  switch (conv.dtype) {
  case Dtype::kFloat16:
    return choose<Half, Matrices>(g, conv, size, context);
  case Dtype::kBFloat16:
    return choose<BFloat16, Matrices>(g, conv, size, context);
  case Dtype::kFloat32:
    if (conv.tf32 && has_tensor_cores()) return choose<float, Matrices>(g, conv, size, context);
    return choose<float, Scalars>(g, conv, size, context);
  case Dtype::kFloat64:
    return choose<double, Scalars>(g, conv, size, context);
  case Dtype::kUint8:
    break;
  }
  return cudaErrorInvalidValue;
}

} // namespace

int convolve_windows(const GatherWindows& args, const Convolution& conv, ExecContext context) {
  return convolve(args, args.count, conv, context);
}
int convolve_pieces(const GatherPieces& args, const Convolution& conv, ExecContext context) {
  return convolve(args, args.entries, conv, context);
}

int64_t convolution_block(Dtype dtype) {
  if (dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64) return kBlock;
  return dtype != Dtype::kUint8 && has_tensor_cores() ? kBlock : 0;
}

} // namespace occfast
