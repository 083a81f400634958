// SPDX-License-Identifier: BSD-3-Clause
/* To be loaded before a program (LD_PRELOAD): ends it at the first call that real-time code must
 * not make, while watch_calls is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

__attribute__((visibility("default"))) int watch_calls = 0;

static void refuse(const char* name, size_t length) {
  if (!watch_calls) return;
  if (write(2, name, length) < 0) _exit(98);
  _exit(97);
}

#define WATCH(result, name, parameters, arguments)                    \
  result name parameters {                                            \
    static result(*original) parameters;                              \
    refuse(#name " was called\n", sizeof(#name " was called\n") - 1); \
    if (!original) *(void**)&original = dlsym(RTLD_NEXT, #name);      \
    return original arguments;                                        \
  }

/* NOTE: not calloc, which dlsym itself calls. Glibc's own takes no way through malloc. */
WATCH(void*, malloc, (size_t size), (size))
WATCH(void*, realloc, (void* old, size_t size), (old, size))
WATCH(void*, aligned_alloc, (size_t alignment, size_t size), (alignment, size))
WATCH(int, posix_memalign, (void** out, size_t alignment, size_t size), (out, alignment, size))
WATCH(void*, mmap, (void* at, size_t size, int protection, int flags, int file, off_t offset),
      (at, size, protection, flags, file, offset))
WATCH(int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))
WATCH(int, pthread_cond_wait, (pthread_cond_t * condition, pthread_mutex_t* mutex),
      (condition, mutex))

void free(void* block) {
  static void (*original)(void*);
  if (block) refuse("free was called\n", sizeof("free was called\n") - 1);
  if (!original) *(void**)&original = dlsym(RTLD_NEXT, "free");
  original(block);
}
