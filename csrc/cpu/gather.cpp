// Windows of kept activations with a dirty rectangle pasted over them, on the CPU.
#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15; // below this a second thread costs more than it saves

template <class T> void windows(const GatherWindows& g, Where where) {
  const T* maps = static_cast<const T*>(g.maps);
  const T* patches = static_cast<const T*>(g.patches);
  T* out = static_cast<T*>(g.out);
  const T padding = static_cast<T>(g.padding);
  const int64_t C = g.shape.c, row = g.width * C;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * row;
  parallel_for(g.count * g.height, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), where,
               [&](int64_t first, int64_t last) {
                 for (int64_t k = first; k < last; ++k) {
                   const int64_t m = k / g.height, y = g.origins[2 * m] + k % g.height, x = g.origins[2 * m + 1];
                   T* to = out + k * row;
                   if (y < 0 || y >= g.shape.h) {
                     std::fill(to, to + row, padding);
                     continue;
                   }
                   // The columns of the window that lie in the map, and of those the ones under the patch.
                   const int64_t left = clamp(-x, g.width), right = clamp(g.shape.w - x, g.width);
                   int64_t from = right, until = right;
                   const T* patch = nullptr;
                   if (patches) {
                     const int64_t i = y - g.patch_origins[2 * m], j = x - g.patch_origins[2 * m + 1];
                     if (i >= 0 && i < g.patch_height) {
                       from = smaller(larger(left, -j), right);
                       until = smaller(larger(from, g.patch_width - j), right);
                       patch = patches + ((m * g.patch_height + i) * g.patch_width + from + j) * C;
                     }
                   }
                   const T* map = maps + ((g.images[m] * g.shape.h + y) * g.shape.w + x) * C;
                   std::fill(to, to + left * C, padding);
                   std::memcpy(to + left * C, map + left * C, (from - left) * C * sizeof(T));
                   if (until > from) std::memcpy(to + from * C, patch, (until - from) * C * sizeof(T));
                   std::memcpy(to + until * C, map + until * C, (right - until) * C * sizeof(T));
                   std::fill(to + right * C, to + row, padding);
                 }
               });
}

// One row of a window, put together from left to right.
template <class T> struct Row {
  T* to;
  int64_t at, end, C; // the next column of the map to write, and one past the last
  void fill(int64_t until, T value) {
    if (until > end) until = end;
    if (until <= at) return;
    std::fill(to, to + (until - at) * C, value);
    to += (until - at) * C;
    at = until;
  }
  // Columns at ... until - 1 from a row of pixels whose first is column `first` of the map.
  void copy(int64_t until, const T* pixels, int64_t first) {
    if (until > end) until = end;
    if (until <= at) return;
    std::memcpy(to, pixels + (at - first) * C, (until - at) * C * sizeof(T));
    to += (until - at) * C;
    at = until;
  }
};

template <class T> void pieces(const GatherPieces& g, Where where) {
  const T* maps = static_cast<const T*>(g.maps);
  const T* full = static_cast<const T*>(g.full);
  const T* row_strips = static_cast<const T*>(g.row_strips);
  const T* column_strips = static_cast<const T*>(g.column_strips);
  const T* corners = static_cast<const T*>(g.corners);
  const T padding = static_cast<T>(g.padding);
  const int64_t C = g.shape.c, H = g.shape.h, W = g.shape.w;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * g.width * C;
  parallel_for(
      g.entries * g.height, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), where,
      [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; ++k) {
          const int64_t e = k / g.height, m = e % g.count, n = g.images[m];
          const int64_t y = g.origins[2 * e] + k % g.height, x = g.origins[2 * e + 1];
          Row<T> row{static_cast<T*>(g.out) + k * g.width * C, x, x + g.width, C};
          if (y < 0 || y >= H) {
            row.fill(row.end, padding);
            continue;
          }
          row.fill(0, padding);
          const T* map = maps + (n * H + y) * W * C;
          const Cuts v = g.row_cuts[g.rows[m]], h = g.column_cuts[g.columns[m]];
          if (y >= v.low && y < v.high) {
            const int64_t i = g.rows[m], j = g.columns[m];
            const bool before = y < v.full_low, after = !before && y >= v.full_high;
            row.copy(smaller(h.low, W), map, 0);
            if (before || after) {
              const int64_t part = after ? 1 : 0;
              const T* strip =
                  row_strips
                      ? row_strips + ((part * g.strip_rows + i) * g.strip_height + y - v.strip[part]) * W * C
                      : nullptr;
              const T* corner = corners
                                    ? corners + ((2 * part * g.count + m) * g.corner_height + y - v.corner[part]) *
                                                    g.corner_width * C
                                    : nullptr;
              row.copy(smaller(h.full_low, W), corner, h.corner[0]);
              row.copy(smaller(h.full_high, W), strip, 0);
              row.copy(smaller(h.high, W), corner + g.count * g.corner_height * g.corner_width * C, h.corner[1]);
            } else {
              const T* strip = column_strips ? column_strips + (j * H + y) * g.strip_width * C : nullptr;
              row.copy(smaller(h.full_low, W), strip, h.strip[0]);
              row.copy(smaller(h.full_high, W), full + (n * H + y) * W * C, 0);
              row.copy(smaller(h.high, W), strip + g.strip_columns * H * g.strip_width * C, h.strip[1]);
            }
          }
          row.copy(W, map, 0);
          row.fill(row.end, padding);
        }
      });
}

} // namespace

int gather_pieces(const GatherPieces& g, int itemsize, Where where) {
  const auto run = itemsize == 2 ? &pieces<uint16_t> : itemsize == 4 ? &pieces<uint32_t> : &pieces<uint64_t>;
  run(g, where);
  return 0;
}

int gather_windows(const GatherWindows& g, int itemsize, Where where) {
  const auto run = itemsize == 2 ? &windows<uint16_t> : itemsize == 4 ? &windows<uint32_t> : &windows<uint64_t>;
  run(g, where);
  return 0;
}

} // namespace occfast
