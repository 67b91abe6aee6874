// Windows of occluded activations, and their convolution, on the CPU.
//
// A convolution gathers a few windows into a buffer that stays in the cache and multiplies from there. Windows
// are never written to memory, and the cost of a rectangle is that of its pixels. The inner loop is a register
// tile: a few pixels times two registers of channels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "parallel.h"
#include "vector.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15;  // minimum per thread: less costs more than it saves
constexpr int64_t kBufferBytes = 1 << 18; // of windows: fits a level-2 cache together with a block of weights

// One row of a window, assembled from left to right.
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

template <class T, class Gather> void gather(const Gather& g, ExecContext context) {
  const int64_t size = g.width * g.shape.c;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * size;
  parallel_for(entries(g) * g.height, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), context,
               [&](int64_t first, int64_t last) {
                 for (int64_t k = first; k < last; ++k)
                   gather_row(g, k / g.height, k % g.height, static_cast<T*>(g.out) + k * size);
               });
}

#if defined(__AVX512F__)
constexpr int kPixels = 10; // 20 sums, 2 weights and a pixel in 32 registers
#elif defined(__AVX2__)
constexpr int kPixels = 6; // 12 sums, 2 weights and a pixel in 16 registers
#else
constexpr int kPixels = 4;
#endif

template <class T> constexpr int64_t kBlock = 2 * kLanesOf<T>; // output channels of a block of weights

// Up to kBlock output channels of P pixels, which lie `step` numbers apart in out: bias plus the sum of pixel
// times weight over taps and channels.
template <class T, int P> void multiply(const T* const* pixels, const int64_t* taps, int64_t n_taps, int64_t C,
                                        const T* weights, const T* bias, bool relu, T* out, int64_t step,
                                        int64_t channels) {
  constexpr int64_t kLanes = kLanesOf<T>;
  Vector<T> sums[P][2];
  const Vector<T> first = load(bias), second = load(bias + kLanes);
  for (int p = 0; p < P; ++p) {
    sums[p][0] = first;
    sums[p][1] = second;
  }
  for (int64_t t = 0; t < n_taps; ++t, weights += C * kBlock<T>) {
    const T* at[P];
    for (int p = 0; p < P; ++p) at[p] = pixels[p] + taps[t];
    add_products<P>(sums, C, weights, [&](int p, int64_t c) { return at[p][c]; });
  }
  for (int p = 0; p < P; ++p) {
    for (int k = 0; k < 2; ++k) {
      Vector<T> value = sums[p][k];
      if (relu) value = Vector<T>{} > value ? Vector<T>{} : value; // NaN stays
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

// T is the type of the sums. The bits of its numbers are gathered as U.
template <class T, class U, class Gather>
void convolve(const Gather& g, const Convolution& conv, ExecContext context) {
  const int64_t C = g.shape.c, O = conv.channels, n_taps = conv.kernel[0] * conv.kernel[1];
  const int64_t out_h = (g.height - (conv.kernel[0] - 1) * conv.dilation[0] - 1) / conv.stride[0] + 1;
  const int64_t out_w = (g.width - (conv.kernel[1] - 1) * conv.dilation[1] - 1) / conv.stride[1] + 1;
  const int64_t window = g.height * g.width * C, area = out_h * out_w, count = entries(g);
  const int64_t fitting = larger<int64_t>(1, kBufferBytes / static_cast<int64_t>(window * sizeof(T)));
  const int64_t chunk = smaller(fitting, (count + context.threads - 1) / context.threads);
  std::unique_ptr<int64_t[]> taps(new int64_t[n_taps]);
  for (int64_t t = 0; t < n_taps; ++t)
    taps[t] = (t / conv.kernel[1] * conv.dilation[0] * g.width + t % conv.kernel[1] * conv.dilation[1]) * C;
  parallel_for((count + chunk - 1) / chunk, 1, context, [&](int64_t first, int64_t last) {
    std::unique_ptr<U[]> buffer(new U[chunk * window]);
    std::unique_ptr<const T*[]> pixels(new const T*[chunk * area]); // the first pixel that each output reads
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
      for (int64_t block = 0; block < O; block += kBlock<T>) {
        const T* weights = static_cast<const T*>(conv.weights) + block * n_taps * C;
        const T* bias = static_cast<const T*>(conv.bias) + block;
        for (int64_t p = 0, end = (until - from) * area; p < end; p += kPixels)
          multiply_for<T>(smaller<int64_t>(kPixels, end - p), std::make_integer_sequence<int, kPixels>())(
              pixels.get() + p, taps.get(), n_taps, C, weights, bias, conv.relu, out + p * O + block, O,
              smaller(O - block, kBlock<T>));
      }
    }
  });
}

template <class Gather> int gather_any(const Gather& g, ExecContext context) {
  const auto run = g.itemsize == 2   ? &gather<uint16_t, Gather>
                   : g.itemsize == 4 ? &gather<uint32_t, Gather>
                                     : &gather<uint64_t, Gather>;
  run(g, context);
  return 0;
}

template <class Gather> int convolve_any(const Gather& g, const Convolution& conv, ExecContext context) {
  const auto run =
      conv.dtype == Dtype::kFloat32 ? &convolve<float, uint32_t, Gather> : &convolve<double, uint64_t, Gather>;
  run(g, conv, context);
  return 0;
}

} // namespace

int gather_windows(const GatherWindows& args, ExecContext context) { return gather_any(args, context); }
int gather_pieces(const GatherPieces& args, ExecContext context) { return gather_any(args, context); }

int convolve_windows(const GatherWindows& args, const Convolution& conv, ExecContext context) {
  return convolve_any(args, conv, context);
}
int convolve_pieces(const GatherPieces& args, const Convolution& conv, ExecContext context) {
  return convolve_any(args, conv, context);
}

int64_t convolution_block(Dtype dtype) { return dtype == Dtype::kFloat32 ? kBlock<float> : kBlock<double>; }

} // namespace occfast
