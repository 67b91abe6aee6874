// Matrix products in which every sum has one order, whatever the number of threads.
//
// (A library's own may split a sum over its threads.)  Rows of the result are shared out; the sum
// over k runs in blocks that depend on its length alone.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

#include "parallel.h"

namespace occfast {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6;
#else
constexpr int kVectorBytes = 16, kTileRows = 6;
#endif
constexpr int64_t kPanelRows = 4 * kTileRows; // of A, packed by one thread at a time
constexpr int64_t kDepth = 384;               // longest run of k: a panel of B stays in the L1 cache

template <class T> struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

// a * b + c, in one rounding where the machine can.
inline Vector<float>::type multiply_add(Vector<float>::type a, Vector<float>::type b, Vector<float>::type c) {
#if defined(__AVX512F__)
  return (Vector<float>::type)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vector<float>::type)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline Vector<double>::type multiply_add(Vector<double>::type a, Vector<double>::type b, Vector<double>::type c) {
#if defined(__AVX512F__)
  return (Vector<double>::type)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vector<double>::type)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Aligned memory that is not set to zero.
template <class T> struct Scratch {
  explicit Scratch(int64_t count)
      : data(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data;
};

template <class T> struct Matrix {
  const T* data;
  int64_t row, column; // strides
};

// out[r][:] (a kTileRows x two vectors tile) = or += a[k][r] * b[k][:] over k.
template <class T> void tile(int64_t depth, const T* a, const T* b, T* out, int64_t pitch, bool add) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  V sum[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = V{};
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += 2 * lanes) {
    const V low = *reinterpret_cast<const V*>(b), high = *reinterpret_cast<const V*>(b + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const V factor = a[r] - V{};
      sum[r][0] = multiply_add(factor, low, sum[r][0]);
      sum[r][1] = multiply_add(factor, high, sum[r][1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    V* low = reinterpret_cast<V*>(out + r * pitch);
    V* high = reinterpret_cast<V*>(out + r * pitch + lanes);
    *low = add ? *low + sum[r][0] : sum[r][0];
    *high = add ? *high + sum[r][1] : sum[r][1];
  }
}

// out [m, n], contiguous, = A [m, k] B [k, n].  symmetric: A B is known to be (B is A transposed), and
// only the half above the diagonal is computed.
template <class T> void matrix_product(Matrix<T> a, Matrix<T> b, int64_t m, int64_t n, int64_t k, bool symmetric,
                                       T* out, Where where) {
  constexpr int64_t width = 2 * Vector<T>::lanes;
  if (m == 0 || n == 0) return;
  if (k == 0) {
    std::memset(out, 0, static_cast<size_t>(m * n) * sizeof(T));
    return;
  }
  const int64_t runs = (k + kDepth - 1) / kDepth, panels = (n + width - 1) / width;
  // B as panels [panel][k][width], filled up with zeros.
  const Scratch<T> packed(panels * k * width);
  parallel_for(panels, 1, where, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * width, used = smaller(width, n - column);
      T* to = packed.data + panel * k * width;
      for (int64_t row = 0; row < k; ++row, to += width) {
        const T* from = b.data + row * b.row + column * b.column;
        for (int64_t j = 0; j < used; ++j) to[j] = from[j * b.column];
        for (int64_t j = used; j < width; ++j) to[j] = 0;
      }
    }
  });
  parallel_tasks((m + kPanelRows - 1) / kPanelRows, where, [&](int64_t task) {
    alignas(64) T block[kPanelRows * (kDepth + 1)];
    alignas(64) T edge[kTileRows * width];
    const int64_t top = task * kPanelRows, bottom = smaller(m, top + kPanelRows);
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t from = k * run / runs, depth = k * (run + 1) / runs - from;
      for (int64_t i = 0; i < kPanelRows; ++i) { // [tile][k][row of the tile]
        T* to = block + i / kTileRows * kTileRows * depth + i % kTileRows;
        const T* row = a.data + (top + i) * a.row + from * a.column;
        for (int64_t kk = 0; kk < depth; ++kk) to[kk * kTileRows] = top + i < m ? row[kk * a.column] : T{0};
      }
      for (int64_t panel = symmetric ? top / width : 0; panel < panels; ++panel) {
        const int64_t left = panel * width, right = smaller(n, left + width);
        const T* strip = packed.data + panel * k * width + from * width;
        for (int64_t i = top; i < bottom; i += kTileRows) {
          if (symmetric && right <= i) continue;
          const T* rows = block + (i - top) * depth;
          T* target = out + i * n + left;
          const bool whole = i + kTileRows <= m && left + width <= n && (!symmetric || left >= i + kTileRows);
          if (whole) {
            tile(depth, rows, strip, target, n, run > 0);
            if (symmetric && run + 1 == runs)
              for (int64_t j = 0; j < width; ++j)
                for (int64_t r = 0; r < kTileRows; ++r) out[(left + j) * n + i + r] = target[r * n + j];
            continue;
          }
          tile(depth, rows, strip, edge, width, false);
          for (int64_t r = 0; r < smaller<int64_t>(kTileRows, m - i); ++r)
            for (int64_t j = symmetric ? larger<int64_t>(0, i + r - left) : 0; j < right - left; ++j) {
              T& value = target[r * n + j];
              value = run > 0 ? value + edge[r * width + j] : edge[r * width + j];
              if (symmetric && run + 1 == runs) out[(left + j) * n + i + r] = value;
            }
        }
      }
    }
  });
}

} // namespace occfast
