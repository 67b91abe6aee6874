// Windows of occluded activations, and convolutions of them, on the CPU.
//
// A convolution gathers a few windows into a buffer that stays in the cache and multiplies from
// there, so a window never travels to memory, and rectangles of any size cost what their pixels
// cost.  The inner loop is the usual register tile: a few pixels times two vectors of channels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15;  // below this a second thread costs more than it saves
constexpr int64_t kBufferBytes = 1 << 18; // of windows: with a panel of weights it fits a level-2 cache

// One row of a window, put together from left to right.
template <class T> struct Row {
  T* to;
  int64_t at, end, C; // the next column of the map to write, and one past the last
  void fill(int64_t until, T value) {
    until = smaller(until, end);
    if (until <= at) return;
    std::fill(to, to + (until - at) * C, value);
    to += (until - at) * C;
    at = until;
  }
  // Columns at ... until - 1 from a row of pixels whose first is column `first` of the map.
  void copy(int64_t until, const T* pixels, int64_t first) {
    until = smaller(until, end);
    if (until <= at) return;
    std::memcpy(to, pixels + (at - first) * C, (until - at) * C * sizeof(T));
    to += (until - at) * C;
    at = until;
  }
};

int64_t entries(const GatherWindows& g) { return g.count; }
int64_t entries(const GatherPieces& g) { return g.entries; }

// Row i of window m.
template <class T> void gather_row(const GatherWindows& g, int64_t m, int64_t i, T* to) {
  const int64_t C = g.shape.c, W = g.shape.w, y = g.origins[2 * m] + i, x = g.origins[2 * m + 1];
  const T padding = static_cast<T>(g.padding);
  Row<T> row{to, x, x + g.width, C};
  if (y >= 0 && y < g.shape.h) {
    const T* map = static_cast<const T*>(g.maps) + (g.images[m] * g.shape.h + y) * W * C;
    row.fill(0, padding);
    if (g.patches) {
      const int64_t top = g.patch_origins[2 * m], left = g.patch_origins[2 * m + 1];
      if (y >= top && y < top + g.patch_height) {
        const T* patch = static_cast<const T*>(g.patches) + (m * g.patch_height + y - top) * g.patch_width * C;
        row.copy(smaller(left, W), map, 0);
        row.copy(smaller(left + g.patch_width, W), patch, left);
      }
    }
    row.copy(W, map, 0);
  }
  row.fill(row.end, padding);
}

// Row i of window e.
template <class T> void gather_row(const GatherPieces& g, int64_t e, int64_t i, T* to) {
  const int64_t C = g.shape.c, H = g.shape.h, W = g.shape.w, m = e % g.count, n = g.images[m];
  const int64_t y = g.origins[2 * e] + i, x = g.origins[2 * e + 1];
  const T padding = static_cast<T>(g.padding);
  Row<T> row{to, x, x + g.width, C};
  if (y < 0 || y >= H) {
    row.fill(row.end, padding);
    return;
  }
  row.fill(0, padding);
  const T* map = static_cast<const T*>(g.maps) + (n * H + y) * W * C;
  const int64_t r = g.rows[m], s = g.columns[m];
  const Cuts &v = g.row_cuts[r], &h = g.column_cuts[s];
  if (y >= v.low && y < v.high) {
    row.copy(smaller(h.low, W), map, 0);
    if (y < v.full_low || y >= v.full_high) {
      const int64_t edge = y < v.full_low ? 0 : 1;
      const T* strip = static_cast<const T*>(g.row_strips);
      const T* corner = static_cast<const T*>(g.corners);
      const int64_t corner_row = g.corner_width * C;
      strip += ((edge * g.strip_rows + r) * g.strip_height + y - v.strip[edge]) * W * C;
      const int64_t piece = g.count * g.corner_height * corner_row;
      corner += ((edge - g.first_edge[0]) * g.column_edges - g.first_edge[1]) * piece +
                (m * g.corner_height + y - v.corner[edge]) * corner_row;
      row.copy(smaller(h.full_low, W), corner, h.corner[0]);
      row.copy(smaller(h.full_high, W), strip, 0);
      row.copy(smaller(h.high, W), corner + piece, h.corner[1]);
    } else {
      const T* strip = static_cast<const T*>(g.column_strips) + (s * H + y) * g.strip_width * C;
      row.copy(smaller(h.full_low, W), strip, h.strip[0]);
      row.copy(smaller(h.full_high, W), static_cast<const T*>(g.full) + (n * H + y) * W * C, 0);
      row.copy(smaller(h.high, W), strip + g.strip_columns * H * g.strip_width * C, h.strip[1]);
    }
  }
  row.copy(W, map, 0);
  row.fill(row.end, padding);
}

template <class T, class Gather> void gather(const Gather& g, Where where) {
  const int64_t size = g.width * g.shape.c;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * size;
  parallel_for(entries(g) * g.height, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), where,
               [&](int64_t first, int64_t last) {
                 for (int64_t k = first; k < last; ++k)
                   gather_row(g, k / g.height, k % g.height, static_cast<T*>(g.out) + k * size);
               });
}

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kPixels = 10; // 20 sums, 2 weights and a pixel in 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kPixels = 6; // 12 sums, 2 weights and a pixel in 16 registers
#else
constexpr int kVectorBytes = 16, kPixels = 4;
#endif

template <class T> struct Vectors {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  static constexpr int kBlock = 2 * kLanes; // output channels of a panel of weights
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(sizeof(T))));
};

// Up to kBlock output channels of P pixels, `step` numbers from one to the next: bias plus, over taps
// and channels, pixel times weight.  The
// build forbids contraction for the noise's sake; here a fused multiply-add is what is wanted.
#if defined(__clang__)
#define OCCFAST_FUSED
#else
#define OCCFAST_FUSED __attribute__((optimize("fp-contract=fast")))
#endif

template <class T, int P> OCCFAST_FUSED void multiply(const T* const* pixels, const int64_t* taps, int64_t n_taps,
                                                      int64_t C, const T* weights, const T* bias, bool relu,
                                                      T* out, int64_t step, int64_t channels) {
#if defined(__clang__)
#pragma clang fp contract(fast)
#endif
  using Vector = typename Vectors<T>::Vector;
  constexpr int kLanes = Vectors<T>::kLanes;
  Vector sums[P][2];
  const Vector first = *reinterpret_cast<const Vector*>(bias);
  const Vector second = *reinterpret_cast<const Vector*>(bias + kLanes);
  for (int p = 0; p < P; ++p) {
    sums[p][0] = first;
    sums[p][1] = second;
  }
  for (int64_t t = 0; t < n_taps; ++t) {
    const T* at[P];
    for (int p = 0; p < P; ++p) at[p] = pixels[p] + taps[t];
    for (int64_t c = 0; c < C; ++c, weights += 2 * kLanes) {
      const Vector a = *reinterpret_cast<const Vector*>(weights);
      const Vector b = *reinterpret_cast<const Vector*>(weights + kLanes);
      for (int p = 0; p < P; ++p) {
        const Vector x = at[p][c] - Vector{};
        sums[p][0] += x * a;
        sums[p][1] += x * b;
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int k = 0; k < 2; ++k) {
      Vector value = sums[p][k];
      if (relu) value = Vector{} > value ? Vector{} : value; // NaN stays
      const int64_t rest = channels - k * kLanes;
      if (rest >= kLanes) {
        std::memcpy(out + p * step + k * kLanes, &value, sizeof value);
      } else if (rest > 0) {
        std::memcpy(out + p * step + k * kLanes, &value, rest * sizeof(T));
      }
    }
  }
}

template <class T> using Multiply = void (*)(const T* const*, const int64_t*, int64_t, int64_t, const T*, const T*,
                                             bool, T*, int64_t, int64_t);

template <class T, int... P> Multiply<T> multiply_for(int64_t pixels, std::integer_sequence<int, P...>) {
  static constexpr Multiply<T> kTable[] = {&multiply<T, P + 1>...};
  return kTable[pixels - 1];
}

// T is the number type for the sums; its bits are gathered as U.
template <class T, class U, class Gather> void convolve(const Gather& g, const Convolution& conv, Where where) {
  constexpr int64_t kBlock = Vectors<T>::kBlock;
  const int64_t C = g.shape.c, O = conv.channels, n_taps = conv.kernel[0] * conv.kernel[1];
  const int64_t out_h = (g.height - (conv.kernel[0] - 1) * conv.dilation[0] - 1) / conv.stride[0] + 1;
  const int64_t out_w = (g.width - (conv.kernel[1] - 1) * conv.dilation[1] - 1) / conv.stride[1] + 1;
  const int64_t window = g.height * g.width * C, area = out_h * out_w, count = entries(g);
  const int64_t fitting = larger<int64_t>(1, kBufferBytes / static_cast<int64_t>(window * sizeof(T)));
  const int64_t chunk = smaller(fitting, (count + where.threads - 1) / where.threads);
  std::unique_ptr<int64_t[]> taps(new int64_t[n_taps]);
  for (int64_t t = 0; t < n_taps; ++t)
    taps[t] = (t / conv.kernel[1] * conv.dilation[0] * g.width + t % conv.kernel[1] * conv.dilation[1]) * C;
  parallel_for((count + chunk - 1) / chunk, 1, where, [&](int64_t first, int64_t last) {
    std::unique_ptr<U[]> buffer(new U[chunk * window]);
    std::unique_ptr<const T*[]> pixels(new const T*[chunk * area]); // the first one that each output reads
    const T* windows = reinterpret_cast<const T*>(buffer.get());
    for (int64_t e = 0, p = 0; e < chunk; ++e)
      for (int64_t i = 0; i < out_h; ++i)
        for (int64_t j = 0; j < out_w; ++j, ++p)
          pixels[p] = windows + e * window + (i * conv.stride[0] * g.width + j * conv.stride[1]) * C;
    for (int64_t k = first; k < last; ++k) {
      const int64_t from = k * chunk, until = smaller(from + chunk, count);
      for (int64_t e = from; e < until; ++e)
        for (int64_t i = 0; i < g.height; ++i)
          gather_row(g, e, i, buffer.get() + (e - from) * window + i * g.width * C);
      T* out = static_cast<T*>(g.out) + from * area * O;
      for (int64_t block = 0; block < O; block += kBlock) {
        const T* weights = static_cast<const T*>(conv.weights) + block * n_taps * C;
        const T* bias = static_cast<const T*>(conv.bias) + block;
        for (int64_t p = 0, end = (until - from) * area; p < end; p += kPixels)
          multiply_for<T>(smaller<int64_t>(kPixels, end - p), std::make_integer_sequence<int, kPixels>())(
              pixels.get() + p, taps.get(), n_taps, C, weights, bias, conv.relu, out + p * O + block, O,
              smaller(O - block, kBlock));
      }
    }
  });
}

template <class Gather> int gather_any(const Gather& g, int itemsize, Where where) {
  const auto run = itemsize == 2   ? &gather<uint16_t, Gather>
                   : itemsize == 4 ? &gather<uint32_t, Gather>
                                   : &gather<uint64_t, Gather>;
  run(g, where);
  return 0;
}

template <class Gather> int convolve_any(const Gather& g, const Convolution& conv, Dtype dtype, Where where) {
  const auto run =
      dtype == Dtype::kFloat32 ? &convolve<float, uint32_t, Gather> : &convolve<double, uint64_t, Gather>;
  run(g, conv, where);
  return 0;
}

} // namespace

int gather_windows(const GatherWindows& g, int itemsize, Where where) { return gather_any(g, itemsize, where); }
int gather_pieces(const GatherPieces& g, int itemsize, Where where) { return gather_any(g, itemsize, where); }

int convolve_windows(const GatherWindows& g, const Convolution& conv, Dtype dtype, Where where) {
  return convolve_any(g, conv, dtype, where);
}
int convolve_pieces(const GatherPieces& g, const Convolution& conv, Dtype dtype, Where where) {
  return convolve_any(g, conv, dtype, where);
}

int64_t convolution_block(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? Vectors<float>::kBlock : Vectors<double>::kBlock;
}

} // namespace occfast
