// What product.c and convolution.c share: scratch memory of a thread, and the lock on indices. memory.c has it.

#ifndef SPARSIFY_MEMORY_H
#define SPARSIFY_MEMORY_H

#include "library.h"

#pragma GCC visibility push(hidden)

// A buffer of this thread that lives as long as it: to get fresh pages from the system for each call costs more than a
// small product. It never shrinks, but what is larger than KEPT is given back after the call.
typedef struct {
  int64_t bytes;
  void *memory;  // NULL where there is none
  int failed;     // for who uses it: whether something has gone wrong
} scratch;

// A thread has two, of which one may be read by other threads.
enum { OWN, COMMON, SCRATCHES };

scratch *scratch_get(int which, int64_t bytes);  // at least so many bytes; NULL where there is no memory
void scratch_give_back(scratch *);               // NULL may be given

// Products hold the indices that they read, as many at a time as like, and `sparsify_put` writes them alone.
void indices_hold(void);
void indices_release(void);

#pragma GCC visibility pop

#endif
