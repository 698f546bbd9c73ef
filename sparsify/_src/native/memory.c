// Scratch memory of threads, and the lock on the indices that products read.

#define _GNU_SOURCE
#include "memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

enum {
  KEPT = 64 << 20,     // bytes of each scratch that a thread keeps between calls
  HUGE_PAGE = 2 << 20  // bytes: panels are read at random, and few pages are found faster than many
};

static void *allocate(int64_t bytes) {
  const size_t page = bytes > HUGE_PAGE / 8 ? HUGE_PAGE : 64, size = ((size_t)bytes + page - 1) / page * page;
  void *memory = aligned_alloc(page, size);
#ifdef MADV_HUGEPAGE
  if (memory && page == HUGE_PAGE) madvise(memory, size, MADV_HUGEPAGE);  // a wish: what becomes of it is all the same
#endif
  return memory;
}

#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
#define UNLOCKED PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP  // who reads on and on must not keep a writer out
#else
#define UNLOCKED PTHREAD_RWLOCK_INITIALIZER
#endif
static pthread_rwlock_t indices_lock = UNLOCKED;
static void unlocked(void) {
  static const pthread_rwlock_t fresh = UNLOCKED;
  indices_lock = fresh;
}
void indices_hold(void) { pthread_rwlock_rdlock(&indices_lock); }
void indices_release(void) { pthread_rwlock_unlock(&indices_lock); }

static pthread_key_t scratch_key;
static void scratch_free(void *all) {
  for (int i = 0; i < SCRATCHES; i++) free(((scratch *)all)[i].memory);
  free(all);
}
__attribute__((constructor)) static void begin(void) {
  pthread_key_create(&scratch_key, scratch_free);
  pthread_atfork(NULL, NULL, unlocked);  // a child has one thread, which is in no product
}

scratch *scratch_get(int which, int64_t bytes) {
  scratch *all = pthread_getspecific(scratch_key);
  if (!all) {
    all = calloc(SCRATCHES, sizeof *all);
    if (!all || pthread_setspecific(scratch_key, all)) return free(all), NULL;
  }
  scratch *own = all + which;
  if (own->bytes < bytes) {
    free(own->memory);
    own->memory = allocate(bytes);
    own->bytes = own->memory ? bytes : 0;
  }
  return own->memory ? own : NULL;
}

void scratch_give_back(scratch *own) {
  if (!own || own->bytes <= KEPT) return;
  free(own->memory);
  own->memory = NULL;
  own->bytes = 0;
}

// Copies `count` arrays, one after the other in one go: no product sees some of them old and some new.
int sparsify_put(int64_t count, void *const *to, const void *const *from, const int64_t *bytes) {
  pthread_rwlock_wrlock(&indices_lock);
  for (int64_t i = 0; i < count; i++) memcpy(to[i], from[i], (size_t)bytes[i]);
  pthread_rwlock_unlock(&indices_lock);
  return DONE;
}
