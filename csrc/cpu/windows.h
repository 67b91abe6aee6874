// Windows of occluded activations on the CPU, a row at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "../api.h"

namespace occfast {

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

inline int64_t entries(const GatherWindows& g) { return g.count; }
inline int64_t entries(const GatherPieces& g) { return g.entries; }

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

} // namespace occfast
