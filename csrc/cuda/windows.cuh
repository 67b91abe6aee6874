// Where the pixels of windows of occluded activations lie, for the kernels that read them.
#pragma once

#include "launch.cuh"

namespace occfast {

// Where the pixels of one row of a window lie. Pixels [low, high) are read, the others are padding. Pixel j is at
// address from[r] + j * bytes, where r is the number of cuts that are not greater than j.
template <int kCuts> struct Row {
  int cut[kCuts], low, high;
  uint64_t from[kCuts + 1];

  // Returns the address of pixel j, or 0 for padding.
  __device__ uint64_t operator()(int j, int bytes) const {
    if (j < low || j >= high) return 0;
    int piece = 0;
#pragma unroll
    for (const int value : cut) piece += j >= value;
    return from[piece] + static_cast<uint64_t>(int64_t{j} * bytes);
  }
};

// Columns of a map as columns of a window, at most one past its last.
struct Columns {
  int64_t first, count;
  __device__ int operator()(int64_t column) const {
    return static_cast<int>(smaller(larger(column - first, int64_t{0}), count));
  }
};

OCCFAST_HD uint64_t address(const void* p) { return reinterpret_cast<uint64_t>(p); }

// Row i of window m. A pixel has `bytes` bytes.  speaks: whether this thread reports a wrong number of the window.
__device__ __forceinline__ Row<2> row_of(const GatherWindows& g, int64_t m, int64_t i, int64_t bytes,
                                         bool speaks) {
  const int64_t y = g.origins[2 * m] + i, x = g.origins[2 * m + 1], n = g.images[m];
  Row<2> row{};
  if (n < 0 || n >= g.shape.n) {
    OCCFAST_REQUIRE(!speaks, "GatherWindows: images: one is not among the maps");
    return row;
  }
  if (y < 0 || y >= g.shape.h) return row;
  const Columns column{x, g.width};
  row.low = column(0);
  row.high = column(g.shape.w);
  row.from[0] = row.from[2] =
      address(g.maps) + static_cast<uint64_t>(((n * g.shape.h + y) * g.shape.w + x) * bytes);
  if (!g.patches) return row;
  const int64_t v = y - g.patch_origins[2 * m], left = g.patch_origins[2 * m + 1];
  if (v < 0 || v >= g.patch_height) return row;
  row.cut[0] = column(left);
  row.cut[1] = column(left + g.patch_width);
  row.from[1] =
      address(g.patches) + static_cast<uint64_t>(((m * g.patch_height + v) * g.patch_width + x - left) * bytes);
  return row;
}

// Row i of window e.
__device__ __forceinline__ Row<4> row_of(const GatherPieces& g, int64_t e, int64_t i, int64_t bytes, bool speaks) {
  const int64_t m = e % g.count, n = g.images[m], r = g.rows[m], s = g.columns[m];
  const int64_t y = g.origins[2 * e] + i, x = g.origins[2 * e + 1];
  Row<4> row{};
  const bool image = n >= 0 && n < g.shape.n;
  if (const bool cuts = r >= 0 && r < g.strip_rows, more = s >= 0 && s < g.strip_columns;
      !(image && cuts && more)) {
    if (!speaks) return row;
    OCCFAST_REQUIRE(image, "GatherPieces: images: one is not among the maps");
    OCCFAST_REQUIRE(cuts, "GatherPieces: rows: one has no cuts");
    OCCFAST_REQUIRE(more, "GatherPieces: columns: one has no cuts");
  }
  if (y < 0 || y >= g.shape.h) return row;
  const Columns column{x, g.width};
  row.low = column(0);
  row.high = column(g.shape.w);
  // The address of what would be column 0 of the window, from a number of pixels.
  const auto at = [&](const void* piece, int64_t pixels) {
    return address(piece) + static_cast<uint64_t>((pixels + x) * bytes);
  };
  const int64_t whole = (n * g.shape.h + y) * g.shape.w;
  row.from[0] = row.from[4] = at(g.maps, whole);
  const Cuts &v = g.row_cuts[r], &h = g.column_cuts[s];
  if (y < v.low || y >= v.high) return row;
  row.cut[0] = column(h.low);
  row.cut[3] = larger(column(h.high), row.cut[0]);
  row.cut[1] = smaller(larger(column(h.full_low), row.cut[0]), row.cut[3]);
  row.cut[2] = smaller(larger(column(h.full_high), row.cut[1]), row.cut[3]);
  if (y >= v.full_low && y < v.full_high) {
    const auto strip = [&](int edge) {
      return at(g.column_strips, ((edge * g.strip_columns + s) * g.shape.h + y) * g.strip_width - h.strip[edge]);
    };
    row.from[1] = strip(0);
    row.from[2] = at(g.full, whole);
    row.from[3] = strip(1);
    return row;
  }
  const int edge = y < v.full_low ? 0 : 1;
  const auto corner = [&](int side) {
    const int64_t piece = ((edge - g.first_edge[0]) * g.column_edges + side - g.first_edge[1]) * g.count + m;
    return at(g.corners, (piece * g.corner_height + y - v.corner[edge]) * g.corner_width - h.corner[side]);
  };
  row.from[1] = corner(0);
  row.from[2] = at(g.row_strips, ((edge * g.strip_rows + r) * g.strip_height + y - v.strip[edge]) * g.shape.w);
  row.from[3] = corner(1);
  return row;
}

template <class Gather> constexpr int kCutsOf = 2;
template <> constexpr int kCutsOf<GatherPieces> = 4;

// The bits of all addresses that a kernel reads pixels from: zero where they all are multiples of a power of two.
inline uint64_t addresses(const GatherWindows& g) { return address(g.maps) | address(g.patches); }
inline uint64_t addresses(const GatherPieces& g) {
  return address(g.maps) | address(g.full) | address(g.row_strips) | address(g.column_strips) | address(g.corners);
}

// The bits of the padding, repeated to a word.
template <int bytes, class Gather> Word<bytes> padding_word(const Gather& g) {
  unsigned char bits[16];
  for (int k = 0; k < 16; ++k) bits[k] = static_cast<unsigned char>(g.padding >> (8 * (k % g.itemsize)));
  Word<bytes> word;
  memcpy(&word, bits, bytes);
  return word;
}

} // namespace occfast
