// A subset of CUDA that runs on the CPU, for tests only.
//
// This file replaces CUDA's <cuda_runtime.h>.  With its folder first on the include path, the unchanged .cu
// files of the project compile as C++ (g++ -x c++ -I tests/emulator -I csrc ...), and a kernel launched with
// cudaLaunchKernelEx runs before the call returns.  tests/emulator/build.py makes a pybind11 module or a
// program from any list of .cu files, with AddressSanitizer and UBSan.
//
// Blocks run one after the other. The threads of a block are fibers (ucontext) on the operating system's
// thread that launched the kernel, so a run is deterministic and needs no locks. A fiber runs until it
// reaches a barrier or a warp operation, and continues when the threads it waits for have arrived.  1,024
// real threads and their barriers would be hundreds of times slower, and AddressSanitizer's interface for
// fibers finds errors on their stacks. Odd blocks run their threads last to first, so that a missing
// barrier causes an error in one order or the other. The program ends with a message if a thread never
// reaches a barrier or warp operation, if a shuffle reads a lane that takes no part, or if lanes of one mask
// reach different operations.  __trap() ends the launch, which returns cudaErrorLaunchFailure. A failed assertion
// prints its message and ends it with cudaErrorAssert.
//
// The emulator does not detect races between blocks or within a warp, nor misuse of caches and memory order.
// __shared__ arrays keep the values of the previous block, as they may on a GPU.  Dynamic shared memory
// starts as 0xCD bytes and its end is guarded. The instructions that csrc/cuda/mma.cuh wraps are in mma.h. Not
// emulated: textures, cooperative groups, __activemask, streams (all work is immediate), device-side launches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// -- types ----------------------------------------------------------------------------------------

#define EMULATED_VECTOR(type, scalar, bytes2, bytes4)                                                             \
  struct alignas(bytes2) type##2 { scalar x, y; };                                                                \
  struct type##3 { scalar x, y, z; };                                                                             \
  struct alignas(bytes4) type##4 { scalar x, y, z, w; };                                                          \
  inline type##2 make_##type##2(scalar x, scalar y) { return {x, y}; }                                            \
  inline type##3 make_##type##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                               \
  inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATED_VECTOR(char, signed char, 2, 4)
EMULATED_VECTOR(uchar, unsigned char, 2, 4)
EMULATED_VECTOR(short, short, 4, 8)
EMULATED_VECTOR(ushort, unsigned short, 4, 8)
EMULATED_VECTOR(int, int, 8, 16)
EMULATED_VECTOR(uint, unsigned, 8, 16)
EMULATED_VECTOR(longlong, long long, 16, 16)
EMULATED_VECTOR(ulonglong, unsigned long long, 16, 16)
EMULATED_VECTOR(float, float, 8, 16)
EMULATED_VECTOR(double, double, 16, 16)
#undef EMULATED_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorAssert = 710,
  cudaErrorLaunchFailure = 719
};

using cudaStream_t = struct CUstream_st*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

// The built-in variables of a kernel, set before each step of a thread.
inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

// -- machine --------------------------------------------------------------------------------------

namespace emulator {

constexpr size_t kStackBytes = size_t{1} << 18, kGuardBytes = 4096;
constexpr size_t kSharedBytes = 48 * 1024, kSharedBytesOptIn = 227 * 1024; // as of sm_90

struct Trap {
  cudaError_t error;
};

// A warp operation of the lanes of a mask. It is complete when all running lanes of the mask have arrived. Two
// banks of values are used in turn, since no lane arrives a second time before all have left the first.
struct Meeting {
  uint32_t mask = 0, arrived = 0, present[2] = {0, 0};
  uint64_t generation = 0;
  const char* what = nullptr;
  alignas(16) unsigned char value[2][32][16];
};

struct Warp {
  uint32_t alive = 0;
  std::deque<Meeting> meetings; // one for each mask; a deque, so that addresses stay
};

// An asynchronous copy into shared memory that has not arrived yet.
struct Copy {
  void* to;
  size_t bytes;
  unsigned char value[16];
};

struct Fiber {
  ucontext_t context{};
  unsigned char* stack = nullptr;
  void* fake_stack = nullptr; // AddressSanitizer's
  uint3 index{};
  unsigned lane = 0, warp = 0;
  bool done = true;
  const uint64_t* awaited = nullptr; // continues when *awaited is no longer `seen`
  uint64_t seen = 0;
  const char* waits_for = nullptr;
  std::vector<Copy> copies;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (!stack) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStackBytes);
#endif
    munmap(stack - kGuardBytes, kStackBytes + kGuardBytes);
  }
};

struct Machine {
  std::mutex launching;
  ucontext_t host{};
  void* host_fake_stack = nullptr;
  const void* host_stack = nullptr;
  size_t host_stack_bytes = 0;
  std::vector<std::unique_ptr<Fiber>> fibers; // kept from launch to launch
  Fiber* current = nullptr;
  std::function<void()> body;
  std::vector<Warp> warps;
  unsigned alive = 0, at_barrier = 0; // threads of the block
  uint64_t barrier_generation = 0;
  int barrier_votes = 0, barrier_result = 0;
  bool trapped = false;
  cudaError_t trap_error = cudaSuccess;
  void* dynamic_shared = nullptr;
  std::map<const void*, size_t> shared_limit; // of kernels with a raised limit
  cudaError_t last_error = cudaSuccess;
};

inline Machine machine;

inline void* dynamic_shared() { return machine.dynamic_shared; }

[[noreturn]] inline void fail(const char* what, const char* where) {
  std::fprintf(stderr, "CUDA emulator: %s (%s); block (%u, %u, %u), thread (%u, %u, %u)\n", what, where,
               blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::fflush(stderr);
  std::abort();
}

// Switches from the fiber to the host.  enter() switches from the host to a fiber.
inline void leave() {
  Fiber* fiber = machine.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber->fake_stack, machine.host_stack, machine.host_stack_bytes);
#endif
  swapcontext(&fiber->context, &machine.host);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &machine.host_stack, &machine.host_stack_bytes);
#endif
}

inline void enter(Fiber& fiber) {
  machine.current = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.host_fake_stack, fiber.stack, kStackBytes);
#endif
  swapcontext(&machine.host, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.host_fake_stack, nullptr, nullptr);
#endif
}

inline void complete(Meeting& meeting) {
  meeting.present[meeting.generation & 1] = meeting.arrived;
  meeting.arrived = 0;
  ++meeting.generation;
}

inline bool is_complete(const Meeting& meeting, const Warp& warp) {
  return meeting.arrived != 0 && (meeting.mask & warp.alive & ~meeting.arrived) == 0;
}

inline void complete_barrier() {
  machine.at_barrier = 0;
  machine.barrier_result = machine.barrier_votes;
  machine.barrier_votes = 0;
  ++machine.barrier_generation;
}

inline void wait(const uint64_t& generation, uint64_t seen, const char* what) {
  Fiber& me = *machine.current;
  me.awaited = &generation;
  me.seen = seen;
  me.waits_for = what;
  leave();
  me.awaited = nullptr;
}

// Ends a thread and completes the operations that waited only for it.
inline void retire(Fiber& fiber) {
  fiber.done = true;
  Warp& warp = machine.warps[fiber.warp];
  warp.alive &= ~(1u << fiber.lane);
  for (Meeting& meeting : warp.meetings)
    if (is_complete(meeting, warp)) complete(meeting);
  if (--machine.alive > 0 && machine.at_barrier == machine.alive) complete_barrier();
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.host_stack, &machine.host_stack_bytes);
#endif
  for (;;) { // a fiber is reused for one thread after the other
    try {
      machine.body();
    } catch (const Trap& trap) {
      machine.trapped = true;
      machine.trap_error = trap.error;
    }
    machine.current->copies.clear();
    retire(*machine.current);
    leave();
  }
}

inline std::unique_ptr<Fiber> new_fiber() {
  auto fiber = std::make_unique<Fiber>();
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) fail("no memory for a stack", "mmap");
  fiber->stack = static_cast<unsigned char*>(memory) + kGuardBytes;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber->context, &fiber_main, 0);
  // Hides the size: AddressSanitizer's swapcontext clears the shadow memory of a stack whose size it sees.
  fiber->context.uc_stack.ss_size = 0;
  return fiber;
}

// Runs one block. Returns false if a thread trapped.
inline bool run_block(uint3 block) {
  blockIdx = block;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  machine.alive = threads;
  machine.at_barrier = 0;
  machine.barrier_votes = 0;
  machine.warps.assign((threads + 31) / 32, Warp{});
  for (unsigned k = 0; k < threads; ++k) {
    Fiber& fiber = *machine.fibers[k];
    fiber.index = uint3{k % blockDim.x, k / blockDim.x % blockDim.y, k / (blockDim.x * blockDim.y)};
    fiber.lane = k % 32;
    fiber.warp = k / 32;
    fiber.done = false;
    fiber.awaited = nullptr;
    machine.warps[fiber.warp].alive |= 1u << fiber.lane;
  }
  const bool backwards = (block.x + block.y + block.z) % 2 == 1;
  while (machine.alive > 0) {
    bool progress = false;
    const Fiber* stuck = nullptr;
    for (unsigned k = 0; k < threads; ++k) {
      Fiber& fiber = *machine.fibers[backwards ? threads - 1 - k : k];
      if (fiber.done) continue;
      if (fiber.awaited && *fiber.awaited == fiber.seen) {
        stuck = &fiber;
        continue;
      }
      progress = true;
      enter(fiber);
      if (machine.trapped) return false;
    }
    if (!progress) {
      threadIdx = stuck->index;
      fail("deadlock: not every thread reaches this", stuck->waits_for);
    }
  }
  return true;
}

inline cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  const std::lock_guard<std::mutex> lock(machine.launching);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const auto limit = machine.shared_limit.find(kernel);
  const bool possible = grid.x > 0 && grid.x <= 0x7FFFFFFFu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 &&
                        grid.z <= 65535 && threads > 0 && threads <= 1024 && block.z <= 64;
  if (!possible) return machine.last_error = cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > (limit == machine.shared_limit.end() ? kSharedBytes : limit->second))
    return machine.last_error = cudaErrorInvalidValue;
  gridDim = grid;
  blockDim = block;
  machine.body = std::move(body);
  machine.trapped = false;
  while (machine.fibers.size() < threads) machine.fibers.push_back(new_fiber());
  void* shared = nullptr;
  if (config.dynamicSmemBytes && posix_memalign(&shared, 128, config.dynamicSmemBytes) != 0)
    fail("no memory", "dynamic shared memory");
  machine.dynamic_shared = shared;
  for (unsigned z = 0; z < grid.z && !machine.trapped; ++z)
    for (unsigned y = 0; y < grid.y && !machine.trapped; ++y)
      for (unsigned x = 0; x < grid.x && !machine.trapped; ++x) {
        if (shared) std::memset(shared, 0xCD, config.dynamicSmemBytes);
        run_block(uint3{x, y, z});
      }
  std::free(shared);
  if (!machine.trapped) return cudaSuccess;
  machine.fibers.clear(); // the other threads of the block are suspended
  return machine.last_error = machine.trap_error;
}

// -- barriers and warp operations -------------------------------------------------------------------

inline int block_barrier(int vote, const char* what) {
  machine.barrier_votes += vote != 0;
  const uint64_t generation = machine.barrier_generation;
  if (++machine.at_barrier == machine.alive) {
    complete_barrier();
  } else {
    wait(machine.barrier_generation, generation, what);
  }
  return machine.barrier_result;
}

// The values that the lanes of a mask pass to a warp operation.
template <class T> struct Brought {
  const unsigned char (*value)[16];
  uint32_t present;
  const char* what;

  T from(unsigned lane) const {
    if (!(present >> lane & 1)) fail("reads a lane that takes no part", what);
    T result;
    std::memcpy(&result, value[lane], sizeof result);
    return result;
  }
};

template <class T> Brought<T> meet(unsigned mask, const T& value, const char* what) {
  static_assert(sizeof(T) <= 16, "a warp operation moves 16 bytes at most");
  const Fiber& me = *machine.current;
  if (!(mask >> me.lane & 1)) fail("the mask does not name the calling lane", what);
  Warp& warp = machine.warps[me.warp];
  auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                            [&](const Meeting& meeting) { return meeting.mask == mask; });
  if (found == warp.meetings.end()) {
    warp.meetings.emplace_back();
    found = std::prev(warp.meetings.end());
    found->mask = mask;
  }
  Meeting& meeting = *found;
  if (meeting.arrived == 0) meeting.what = what;
  if (std::strcmp(meeting.what, what) != 0) fail("lanes of one mask are at different operations", what);
  const uint64_t generation = meeting.generation;
  const unsigned bank = generation & 1;
  std::memcpy(meeting.value[bank][me.lane], &value, sizeof value);
  meeting.arrived |= 1u << me.lane;
  if (is_complete(meeting, warp)) {
    complete(meeting);
  } else {
    wait(meeting.generation, generation, what);
  }
  return Brought<T>{meeting.value[bank], meeting.present[bank], what};
}

template <class T, class Combine> T reduce(unsigned mask, T value, const char* what, Combine combine) {
  const auto brought = meet(mask, value, what);
  bool any = false;
  T result{};
  for (unsigned lane = 0; lane < 32; ++lane)
    if (brought.present >> lane & 1) {
      result = any ? combine(result, brought.from(lane)) : brought.from(lane);
      any = true;
    }
  return result;
}

} // namespace emulator

inline void __syncthreads() { emulator::block_barrier(0, "__syncthreads"); }
inline int __syncthreads_count(int vote) { return emulator::block_barrier(vote, "__syncthreads_count"); }
inline int __syncthreads_or(int vote) { return emulator::block_barrier(vote, "__syncthreads_or") > 0; }
inline int __syncthreads_and(int vote) { return emulator::block_barrier(!vote, "__syncthreads_and") == 0; }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulator::meet(mask, 0, "__syncwarp"); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { throw emulator::Trap{cudaErrorLaunchFailure}; }
namespace emulator {
[[noreturn]] inline void assertion_failed(const char* message) {
  std::fprintf(stderr, "block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.\n", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, message);
  std::fflush(stderr);
  throw Trap{cudaErrorAssert};
}
} // namespace emulator

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = emulator::machine.current->lane;
  const unsigned base = lane & ~(static_cast<unsigned>(width) - 1);
  return emulator::meet(mask, value, "__shfl_sync").from(base + (static_cast<unsigned>(source) & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = emulator::machine.current->lane, source = lane ^ static_cast<unsigned>(bits);
  const auto brought = emulator::meet(mask, value, "__shfl_xor_sync");
  const unsigned end = (lane & ~(static_cast<unsigned>(width) - 1)) + width;
  return source < end ? brought.from(source) : value;
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::machine.current->lane;
  const auto brought = emulator::meet(mask, value, "__shfl_down_sync");
  const unsigned end = (lane & ~(static_cast<unsigned>(width) - 1)) + width;
  return lane + delta < end ? brought.from(lane + delta) : value;
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = emulator::machine.current->lane, within = lane & (static_cast<unsigned>(width) - 1);
  const auto brought = emulator::meet(mask, value, "__shfl_up_sync");
  return within >= delta ? brought.from(lane - delta) : value;
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const auto brought = emulator::meet(mask, vote, "__ballot_sync");
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((brought.present >> lane & 1) && brought.from(lane)) result |= 1u << lane;
  return result;
}
inline int __any_sync(unsigned mask, int vote) {
  return emulator::reduce(mask, vote != 0, "__any_sync", [](bool a, bool b) { return a || b; });
}
inline int __all_sync(unsigned mask, int vote) {
  return emulator::reduce(mask, vote != 0, "__all_sync", [](bool a, bool b) { return a && b; });
}
template <class T> T __reduce_add_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, "__reduce_add_sync", [](T a, T b) { return a + b; });
}
template <class T> T __reduce_min_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, "__reduce_min_sync", [](T a, T b) { return std::min(a, b); });
}
template <class T> T __reduce_max_sync(unsigned mask, T value) {
  return emulator::reduce(mask, value, "__reduce_max_sync", [](T a, T b) { return std::max(a, b); });
}

// -- atomics: one fiber runs at a time, so a plain update is one ---------------------------------------

template <class T> T atomicExch(T* address, std::common_type_t<T> value) { return std::exchange(*address, value); }
template <class T> T atomicAdd(T* address, std::common_type_t<T> value) {
  // Integers wrap on a GPU; here through the unsigned type, since UBSan watches.
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return std::exchange(*address, static_cast<T>(static_cast<Unsigned>(*address) + static_cast<Unsigned>(value)));
  } else {
    return std::exchange(*address, *address + value);
  }
}
template <class T> T atomicSub(T* address, std::common_type_t<T> value) {
  return atomicAdd(address, T(0) - value);
}
template <class T> T atomicMin(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, std::min(*address, value));
}
template <class T> T atomicMax(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, std::max(*address, value));
}
template <class T> T atomicAnd(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, *address & value);
}
template <class T> T atomicOr(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, *address | value);
}
template <class T> T atomicXor(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, *address ^ value);
}
template <class T> T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}

// -- loads, stores, arithmetic -------------------------------------------------------------------------

template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldca(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcg(T* address, T value) { *address = value; }
template <class T> void __stcs(T* address, T value) { *address = value; }

template <class T> T emulated_cast(const void* from) {
  T result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
inline unsigned __float_as_uint(float x) { return emulated_cast<unsigned>(&x); }
inline int __float_as_int(float x) { return emulated_cast<int>(&x); }
inline float __uint_as_float(unsigned x) { return emulated_cast<float>(&x); }
inline float __int_as_float(int x) { return emulated_cast<float>(&x); }
inline long long __double_as_longlong(double x) { return emulated_cast<long long>(&x); }
inline double __longlong_as_double(long long x) { return emulated_cast<double>(&x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
using std::max;
using std::min;

// -- host functions --------------------------------------------------------------------------------------

template <class... Parameters, class... Arguments> cudaError_t
cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  return emulator::run_grid(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulator::machine.last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emulator::machine.last_error; }
inline const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
  case cudaSuccess:
    return "no error";
  case cudaErrorInvalidValue:
    return "invalid argument";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  case cudaErrorAssert:
    return "device-side assert triggered";
  case cudaErrorLaunchFailure:
    return "unspecified launch failure";
  }
  return "unrecognized error code";
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > emulator::kSharedBytesOptIn) return cudaErrorInvalidValue;
  emulator::machine.shared_limit[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 2
           : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                            : static_cast<int>(emulator::kSharedBytesOptIn);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

#include "mma.h"
