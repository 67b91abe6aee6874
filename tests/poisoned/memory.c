// Preloaded into a process, hands out memory whose bytes are all 0xFF: NaN in every floating-point type, -1 as an
// integer.  So are the bytes behind each block, and those of freed blocks.  What is read without having been written
// shows in the result.
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { kBehind = 512 };

extern void* __libc_malloc(size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static void* filled(void* block, size_t bytes) { return block ? memset(block, 0xFF, bytes) : block; }

void* malloc(size_t bytes) { return filled(__libc_malloc(bytes + kBehind), bytes + kBehind); }

void* memalign(size_t alignment, size_t bytes) {
  return filled(__libc_memalign(alignment, bytes + kBehind), bytes + kBehind);
}

void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** block, size_t alignment, size_t bytes) {
  void* found = memalign(alignment, bytes);
  if (found == NULL) return ENOMEM;
  *block = found;
  return 0;
}

void free(void* block) {
  if (block == NULL) return;
  memset(block, 0xFF, malloc_usable_size(block));
  __libc_free(block);
}
