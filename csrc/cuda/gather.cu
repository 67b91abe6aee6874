// Windows of occluded activations on a GPU.
//
// A block moves some rows of windows. First one thread of each row finds out in which pieces its pixels lie, then
// one thread of each pixel where it lies. Then all threads move words, of 16 bytes if the size of a pixel is a
// multiple of them. Accesses of neighboring threads coalesce.
#include "launch.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;    // loads in flight per thread
constexpr int kRows = 64;     // of windows that a block moves at a time, at most
constexpr int kPixels = 1024; // whose addresses it holds at a time
constexpr int kWords = 2048;  // that it moves at a time, unless one row has more

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

// Row `line` % height of window `line` / height. A pixel has `bytes` bytes.
__device__ Row<2> row_of(const GatherWindows& g, int64_t line, int64_t bytes) {
  const int64_t m = line / g.height, y = g.origins[2 * m] + line - m * g.height, x = g.origins[2 * m + 1];
  const int64_t n = g.images[m];
  Row<2> row{};
  if (n < 0 || n >= g.shape.n) {
    // The first row of a window speaks for all.
    OCCFAST_REQUIRE(line != m * g.height, "gather_windows: images: one is not among the maps");
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

__device__ Row<4> row_of(const GatherPieces& g, int64_t line, int64_t bytes) {
  const int64_t e = line / g.height, m = e % g.count, n = g.images[m], r = g.rows[m], s = g.columns[m];
  const int64_t y = g.origins[2 * e] + line - e * g.height, x = g.origins[2 * e + 1];
  Row<4> row{};
  const bool image = n >= 0 && n < g.shape.n;
  if (const bool cuts = r >= 0 && r < g.strip_rows, more = s >= 0 && s < g.strip_columns;
      !(image && cuts && more)) {
    if (line != e * g.height) return row;
    OCCFAST_REQUIRE(image, "gather_pieces: images: one is not among the maps");
    OCCFAST_REQUIRE(cuts, "gather_pieces: rows: one has no cuts");
    OCCFAST_REQUIRE(more, "gather_pieces: columns: one has no cuts");
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

template <int bytes, class Gather> __global__ void __launch_bounds__(kThreads)
    gather_kernel(Gather g, int64_t lines, int rows, int words, Word<bytes> padding) {
  __shared__ Row<kCutsOf<Gather>> held[kRows];
  __shared__ uint64_t addresses[kPixels];
  const int me = static_cast<int>(threadIdx.x), width = static_cast<int>(g.width), pixel_bytes = words * bytes;
  // A thread visits pixels kThreads apart and words kThreads apart. Only their first one takes a division.
  const int first_row = me / width, first_pixel = me / words;
  const int row_step = kThreads / width, column_step = kThreads % width;
  const int pixel_step = kThreads / words, word_step = kThreads % words;
  for (int64_t first = int64_t{blockIdx.x} * rows; first < lines; first += int64_t{gridDim.x} * rows) {
    const int count = static_cast<int>(smaller<int64_t>(rows, lines - first)), pixels = count * width;
    auto* out = static_cast<Word<bytes>*>(g.out) + first * width * words;
    __syncthreads(); // until the rows before have been read
    if (me < count) held[me] = row_of(g, first + me, pixel_bytes);
    int row = first_row, column = me - row * width;
    for (int start = 0; start < pixels; start += kPixels) {
      const int some = smaller(kPixels, pixels - start), all = some * words;
      __syncthreads();
#pragma unroll 1
      for (int k = me; k < some; k += kThreads) {
        addresses[k] = held[row](column, pixel_bytes);
        row += row_step;
        column += column_step;
        if (column >= width) {
          column -= width;
          ++row;
        }
      }
      __syncthreads();
      int pixel = first_pixel, k = me - pixel * words;
#pragma unroll 1
      for (int at = me; at < all; at += kThreads * kUnroll) {
        Word<bytes> word[kUnroll]; // all loads before the first store
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          word[u] = padding;
          const uint64_t from = at + u * kThreads < all ? addresses[pixel] : 0;
          if (from) word[u] = __ldg(reinterpret_cast<const Word<bytes>*>(from) + k);
          pixel += pixel_step;
          k += word_step;
          if (k >= words) {
            k -= words;
            ++pixel;
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
          if (at + u * kThreads < all) out[at + u * kThreads] = word[u];
      }
      out += all;
    }
  }
}

template <int bytes, class Gather> int start(const Gather& g, int64_t count, ExecContext context) {
  // The bits of the padding, repeated to a word.
  unsigned char bits[16];
  for (int k = 0; k < 16; ++k) bits[k] = static_cast<unsigned char>(g.padding >> (8 * (k % g.itemsize)));
  Word<bytes> padding;
  memcpy(&padding, bits, bytes);
  const int64_t words = g.shape.c * g.itemsize / bytes, row_words = g.width * words;
  if (row_words == 0) return cudaSuccess;
  if (words > 1 << 20 || g.width > 1 << 20) return cudaErrorInvalidValue; // within a row, 32 bits are enough
  const int64_t rows = smaller<int64_t>(kRows, larger<int64_t>(1, kWords / row_words));
  return launch(&gather_kernel<bytes, Gather>, blocks_for(count * g.height, rows), kThreads, 0, context, g,
                count * g.height, rows, words, padding);
}

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
