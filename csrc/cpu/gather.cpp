// Windows of occluded activations on the CPU.
#include "parallel.h"
#include "windows.h"

namespace occfast {
namespace {

constexpr int64_t kGrainBytes = 1 << 15; // minimum per thread: less costs more than it saves

template <class T, class Gather> void gather(const Gather& g, ExecContext context) {
  const int64_t size = g.width * g.shape.c;
  const auto bytes = static_cast<int64_t>(sizeof(T)) * size;
  parallel_for(entries(g) * g.height, larger<int64_t>(1, kGrainBytes / larger<int64_t>(bytes, 1)), context,
               [&](int64_t first, int64_t last) {
                 for (int64_t k = first; k < last; ++k)
                   gather_row(g, k / g.height, k % g.height, static_cast<T*>(g.out) + k * size);
               });
}

template <class Gather> int gather_any(const Gather& g, ExecContext context) {
  const auto run = g.itemsize == 2   ? &gather<uint16_t, Gather>
                   : g.itemsize == 4 ? &gather<uint32_t, Gather>
                                     : &gather<uint64_t, Gather>;
  run(g, context);
  return 0;
}

} // namespace

int gather_windows(const GatherWindows& args, ExecContext context) { return gather_any(args, context); }
int gather_pieces(const GatherPieces& args, ExecContext context) { return gather_any(args, context); }

} // namespace occfast
