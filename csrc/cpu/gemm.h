// Matrix products in which every sum has one order, whatever the number of threads.
//
// A library may split a sum over its threads. Here the threads share out the rows of the result, and the sum over
// k runs in blocks that depend on its length alone.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "parallel.h"
#include "vector.h"

namespace occfast {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int64_t kPanelRows = 4 * kTileRows; // of A, packed by one thread at a time
constexpr int64_t kDepth = 384;               // longest run of k: a panel of B stays in the level-1 cache

// Aligned memory, not initialized.
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

// The tile out[r][0 ... two registers), for kTileRows rows: = or += the sum of a[k][r] * b[k][...] over k.
template <class T> void tile(int64_t depth, const T* a, const T* b, T* out, int64_t pitch, bool add) {
  Vector<T> sums[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) sums[r][0] = sums[r][1] = Vector<T>{};
  add_products<kTileRows>(sums, depth, b, [&](int r, int64_t k) { return a[k * kTileRows + r]; });
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    T *low = out + r * pitch, *high = low + kLanesOf<T>;
    store(add ? load(low) + sums[r][0] : sums[r][0], low);
    store(add ? load(high) + sums[r][1] : sums[r][1], high);
  }
}

// out [m, n], contiguous, = A [m, k] B [k, n].  symmetric: B is A transposed, and only the half above the diagonal
// is computed.
template <class T> void matrix_product(Matrix<T> a, Matrix<T> b, int64_t m, int64_t n, int64_t k, bool symmetric,
                                       T* out, ExecContext context) {
  constexpr int64_t width = 2 * kLanesOf<T>;
  if (m == 0 || n == 0) return;
  if (k == 0) {
    std::memset(out, 0, static_cast<size_t>(m * n) * sizeof(T));
    return;
  }
  const int64_t runs = (k + kDepth - 1) / kDepth, panels = (n + width - 1) / width;
  // B as panels [panel][k][width], filled with zeros up to width.
  const Scratch<T> packed(panels * k * width);
  parallel_for(panels, 1, context, [&](int64_t first, int64_t last) {
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
  parallel_tasks((m + kPanelRows - 1) / kPanelRows, context, [&](int64_t task) {
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
