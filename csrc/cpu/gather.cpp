// Windows of kept activations with a dirty rectangle pasted over them, on the CPU.
#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15; // below this a second thread costs more than it saves

template <class T> void gather(const GatherWindows& g, Where where) {
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

} // namespace

int gather_windows(const GatherWindows& g, int itemsize, Where where) {
  const auto run = itemsize == 2 ? &gather<uint16_t> : itemsize == 4 ? &gather<uint32_t> : &gather<uint64_t>;
  run(g, where);
  return 0;
}

} // namespace occfast
