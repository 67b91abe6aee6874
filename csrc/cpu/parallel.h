// Loops over the threads of a call.
#pragma once

#include <omp.h>

#include "../api.h"

namespace occfast {

// Calls body(first, last) on pieces of [0, count), each at least grain long. Inside another parallel region it
// runs serially, like the operators of PyTorch.
template <class Body> void parallel_for(int64_t count, int64_t grain, ExecContext context, const Body& body) {
  const int64_t pieces =
      omp_in_parallel() ? 1 : smaller<int64_t>(context.threads, (count + grain - 1) / larger<int64_t>(grain, 1));
  if (pieces <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(pieces))
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t first = count * me / team, last = count * (me + 1) / team;
    if (first < last) body(first, last);
  }
}

// Calls body(task) for every task of [0, count). Each thread takes the next task when it is free.
template <class Body> void parallel_tasks(int64_t count, ExecContext context, const Body& body) {
  const int64_t team = omp_in_parallel() ? 1 : larger<int64_t>(1, smaller<int64_t>(context.threads, count));
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(team)) if (team > 1)
  for (int64_t task = 0; task < count; ++task) body(task);
}

} // namespace occfast
