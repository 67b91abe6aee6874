// The convolution of windows of occluded activations on the CPU, in one pass with gathering them.
//
// A few windows are gathered into a buffer that stays in the cache and multiplied from there. Windows are never
// written to memory, and the cost of a rectangle is that of its pixels. The inner loop is a register tile: a few
// pixels times two registers of channels.
#include <cstring>
#include <memory>
#include <utility>

#include "parallel.h"
#include "vector.h"
#include "windows.h"

namespace occfast {
namespace {

constexpr int64_t kBufferBytes = 1 << 18; // of windows: fits a level-2 cache together with a block of weights

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

template <class Gather> int convolve_any(const Gather& g, const Convolution& conv, ExecContext context) {
  const auto run =
      conv.dtype == Dtype::kFloat32 ? &convolve<float, uint32_t, Gather> : &convolve<double, uint64_t, Gather>;
  run(g, conv, context);
  return 0;
}

} // namespace

int convolve_windows(const GatherWindows& args, const Convolution& conv, ExecContext context) {
  return convolve_any(args, conv, context);
}
int convolve_pieces(const GatherPieces& args, const Convolution& conv, ExecContext context) {
  return convolve_any(args, conv, context);
}

int64_t convolution_block(Dtype dtype) {
  if (dtype == Dtype::kFloat32) return kBlock<float>;
  return dtype == Dtype::kFloat64 ? kBlock<double> : 0;
}

} // namespace occfast
