// Windows of occluded activations on a GPU.  A thread moves one word of one pixel, of 16 bytes if the size of a
// pixel is a multiple of them, so accesses of neighboring threads coalesce.
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 256;

__device__ int64_t entries(const GatherWindows& g) { return g.count; }
__device__ int64_t entries(const GatherPieces& g) { return g.entries; }

// The pixel, of `bytes` bytes, at row i and column j of window m; null for padding.
__device__ const char* pixel_of(const GatherWindows& g, int64_t m, int64_t i, int64_t j, int64_t bytes) {
  const int64_t n = g.images[m], y = g.origins[2 * m] + i, x = g.origins[2 * m + 1] + j;
  if (n < 0 || n >= g.shape.n) __trap();
  if (y < 0 || y >= g.shape.h || x < 0 || x >= g.shape.w) return nullptr;
  if (g.patches) {
    const int64_t v = y - g.patch_origins[2 * m], u = x - g.patch_origins[2 * m + 1];
    if (v >= 0 && v < g.patch_height && u >= 0 && u < g.patch_width)
      return static_cast<const char*>(g.patches) + ((m * g.patch_height + v) * g.patch_width + u) * bytes;
  }
  return static_cast<const char*>(g.maps) + ((n * g.shape.h + y) * g.shape.w + x) * bytes;
}

__device__ const char* pixel_of(const GatherPieces& g, int64_t e, int64_t i, int64_t j, int64_t bytes) {
  const int64_t m = e % g.count, n = g.images[m], r = g.rows[m], s = g.columns[m];
  const int64_t y = g.origins[2 * e] + i, x = g.origins[2 * e + 1] + j;
  if (n < 0 || n >= g.shape.n) __trap();
  if (y < 0 || y >= g.shape.h || x < 0 || x >= g.shape.w) return nullptr;
  const Cuts &v = g.row_cuts[r], &h = g.column_cuts[s];
  const int64_t whole = ((n * g.shape.h + y) * g.shape.w + x) * bytes;
  if (y < v.low || y >= v.high || x < h.low || x >= h.high) return static_cast<const char*>(g.maps) + whole;
  const int row = y < v.full_low ? 0 : y < v.full_high ? -1 : 1; // the edge that the pixel depends on, -1 for none
  const int column = x < h.full_low ? 0 : x < h.full_high ? -1 : 1;
  if (row < 0 && column < 0) return static_cast<const char*>(g.full) + whole;
  if (column < 0)
    return static_cast<const char*>(g.row_strips) +
           (((row * g.strip_rows + r) * g.strip_height + y - v.strip[row]) * g.shape.w + x) * bytes;
  if (row < 0)
    return static_cast<const char*>(g.column_strips) +
           (((column * g.strip_columns + s) * g.shape.h + y) * g.strip_width + x - h.strip[column]) * bytes;
  const int64_t piece = ((row - g.first_edge[0]) * g.column_edges + column - g.first_edge[1]) * g.count + m;
  return static_cast<const char*>(g.corners) +
         ((piece * g.corner_height + y - v.corner[row]) * g.corner_width + x - h.corner[column]) * bytes;
}

template <int bytes, class Gather> __global__ void __launch_bounds__(kThreads)
    gather_kernel(Gather g, int64_t pixel_bytes, Word<bytes> padding) {
  const int64_t words = pixel_bytes / bytes, total = entries(g) * g.height * g.width * words;
  for (int64_t k = grid_first(); k < total; k += grid_step()) {
    const int64_t pixel = k / words, line = pixel / g.width, e = line / g.height;
    const char* source = pixel_of(g, e, line - e * g.height, pixel - line * g.width, pixel_bytes);
    const auto* from = reinterpret_cast<const Word<bytes>*>(source);
    static_cast<Word<bytes>*>(g.out)[k] = source ? from[k - pixel * words] : padding;
  }
}

template <int bytes, class Gather> int start(const Gather& g, int64_t count, ExecContext context) {
  // The bits of the padding, repeated to a word.
  unsigned char bits[16];
  for (int k = 0; k < 16; ++k) bits[k] = static_cast<unsigned char>(g.padding >> (8 * (k % g.itemsize)));
  Word<bytes> padding;
  memcpy(&padding, bits, bytes);
  const int64_t pixel_bytes = g.shape.c * g.itemsize, total = count * g.height * g.width * (pixel_bytes / bytes);
  return launch(&gather_kernel<bytes, Gather>, dim3(blocks_for(total, kThreads)), dim3(kThreads), 0, context, g,
                pixel_bytes, padding);
}

uint64_t address(const void* p) { return reinterpret_cast<uint64_t>(p); }
uint64_t addresses(const GatherWindows& g) { return address(g.maps) | address(g.patches) | address(g.out); }
uint64_t addresses(const GatherPieces& g) {
  return address(g.maps) | address(g.full) | address(g.row_strips) | address(g.column_strips) |
         address(g.corners) | address(g.out);
}

// Moves words of the largest size that divides a pixel and every address.
template <class Gather> int gather(const Gather& g, int64_t count, ExecContext context) {
  const uint64_t fits = static_cast<uint64_t>(g.shape.c * g.itemsize) | addresses(g);
  if (fits % 16 == 0) return start<16>(g, count, context);
  if (fits % 8 == 0) return start<8>(g, count, context);
  if (fits % 4 == 0) return start<4>(g, count, context);
  return start<2>(g, count, context);
}

} // namespace

int gather_windows(const GatherWindows& args, ExecContext context) { return gather(args, args.count, context); }
int gather_pieces(const GatherPieces& args, ExecContext context) { return gather(args, args.entries, context); }

} // namespace occfast
