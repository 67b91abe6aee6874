// Windows of occluded activations on a GPU.
//
// A block moves some rows of windows. First one thread of each row finds out in which pieces its pixels lie, then
// one thread of each pixel where it lies. Then all threads move words, of 16 bytes if the size of a pixel is a
// multiple of them. Accesses of neighboring threads coalesce.
#include "windows.cuh"

namespace occfast {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;    // loads in flight per thread
constexpr int kRows = 64;     // of windows that a block moves at a time, at most
constexpr int kPixels = 1024; // whose addresses it holds at a time
constexpr int kWords = 2048;  // that it moves at a time, unless one row has more

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
    if (me < count) {
      const int64_t window = (first + me) / g.height, i = first + me - window * g.height;
      held[me] = row_of(g, window, i, pixel_bytes, i == 0);
    }
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
  const int64_t words = g.shape.c * g.itemsize / bytes, row_words = g.width * words;
  if (row_words == 0) return cudaSuccess;
  if (words > 1 << 20 || g.width > 1 << 20) return cudaErrorInvalidValue; // within a row, 32 bits are enough
  const int64_t rows = smaller<int64_t>(kRows, larger<int64_t>(1, kWords / row_words));
  return launch(&gather_kernel<bytes, Gather>, blocks_for(count * g.height, rows), kThreads, 0, context, g,
                count * g.height, rows, words, padding_word<bytes>(g));
}

// Moves words of the largest size that divides a pixel and every address.
template <class Gather> int gather(const Gather& g, int64_t count, ExecContext context) {
  const uint64_t fits = static_cast<uint64_t>(g.shape.c * g.itemsize) | addresses(g) | address(g.out);
  if (fits % 16 == 0) return start<16>(g, count, context);
  if (fits % 8 == 0) return start<8>(g, count, context);
  if (fits % 4 == 0) return start<4>(g, count, context);
  return start<2>(g, count, context);
}

} // namespace

int gather_windows(const GatherWindows& args, ExecContext context) { return gather(args, args.count, context); }
int gather_pieces(const GatherPieces& args, ExecContext context) { return gather(args, args.entries, context); }

} // namespace occfast
