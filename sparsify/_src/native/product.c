// Sparse linear layers on CPU, forward and backward: sparsify_linear, near the end, is the only way in for products.
//
// What is computed. W is (out, in) and holds numbers at `nnz` places only, its connections. Forward: y = x W^T + bias.
// Backward, from `grad`, the gradient of y: gx = grad W, the gradient of x; gv, for each connection the sum over the
// batch of its input times its output's gradient; and the sum of `grad` over the batch, the gradient of the bias.
// Python decides which of these it needs; a missing one is a NULL pointer in `product` (library.h).
//
// What is read. `starts` and `indices` say where the connections are. Forward they are the CSR of W: connections
// sorted by output, starts[r]..starts[r + 1] are those of output r, `indices` are their inputs. Backward they are the
// CSC, sorted by input, and `order` says where in `values` each connection is. `Rows` are those of the result: outputs
// forward, inputs backward. `Features` are those of what is read at random: inputs forward, outputs backward.
//
// Panels. x, y and their gradients are (batch, features) row after row, so one feature of the batch is scattered over
// memory. So a piece of the batch, a panel, is first transposed into a buffer of (features, width): `pack`. A
// connection is then one number times one contiguous run of `width` batch entries. A panel is 1, 2, 4 or 8 vectors
// wide: what a processor's registers can hold the sums of, and no more than the batch fills.
//
// Tiles. The sums of one row stay in registers until the row is done. They then wait in a tile, (32 rows, width), which
// is transposed back into the result when it is full: `unpack`. Backward, x is packed tile by tile in the same way.
//
// Blocks. A panel of many features does not fit into the second-level cache. Then it is made and used in blocks of
// features, which fill `room`: half of that cache as a rule. Between blocks the sums of each row rest in `partial`, and
// `reached` holds the row's next connection.
//
// Values backward. The CSC meets connections in another order than `values` and gv have them. Where a batch is several
// panels, the first leaves the values that it reads in `weights`, one after the other, and all add up the gradients in
// `dot_sums` in that order; the last puts them into gv. So values are searched once, not once a panel.
//
// Shares. Rows are divided among the threads so that each share has about as many connections (`share`). Forward, where
// there are enough panels, threads divide these first. Few threads pack for themselves, and nobody waits. From
// `sharers` on, threads that need the same panel pack it together, a part each, into one of two buffers by turns, and
// wait for each other once a block: else packing, which does not get shorter, would be most of what they do. How fast
// this is with many cores was not measured: there were two.
// A result is always computed by one thread in one order: it does not depend on the number of threads, to the last bit.
// A batch of one is done without a panel, by `forward_single`.
//
// Three instruction sets, from one text. There are no intrinsics, only the vector extensions of GCC and Clang.
// product.c includes product_body.h once for each instruction set: the baseline of the processor (vectors of 16 bytes),
// AVX2 (32) and AVX-512 (64). Before each, a pragma tells the compiler which instructions it may use. product_body.h
// includes itself four times more, for float or double and for indices of 32 or 64 bits. Each time REAL, INDEX, ISA
// and BYTES are defined, and NAME(run) becomes, for example, run_float_int32_t_avx2. Inside, `forward` and `backward`
// are inlined into one function for each width, because the sums stay in registers only if the width is a constant.
// A debugger steps through them line by line: compile with -O0 -g, then `break forward_float_int32_t_avx2`.
// sparsify_linear picks a form from a table at each call; sparsify_level says which sets this machine has.
//
// Who checks indices, and when. Python checks that each array is plain memory that is long enough (library.address).
// C checks the numbers in them, at every call, because anybody may have written to a tensor: that they lead nowhere
// outside, and rise within each row. Each thread first looks at the `starts` of its share (`starts_rise`). An index is
// looked at when it is used, in the shadow of the loads that it leads to: what is below `start` or beyond the block
// ends the run, and a row that is not done at the end of its last block was out of order.
//
// Locks. Products hold `indices_lock` for reading, as many at a time as like. sparsify_put, which replaces the indices
// of layers while other threads may use them, holds it for writing. A child process starts with a fresh lock. ctypes
// gives Python's own lock back during a call. Scratch memory belongs to a thread, so it needs no lock.
//
// Errors. A function returns DONE, NO_MEMORY or OUTSIDE (library.h), and library.py raises. Threads go on to the end of
// the parallel region and join their statuses. Nothing is printed, and results are then left half written.

#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "library.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define PASTE2(a, b, c, d) a##_##b##_##c##_##d
#define PASTE(a, b, c, d) PASTE2(a, b, c, d)
#define NAME(x) PASTE(x, REAL, INDEX, ISA)

// Holds a vector in a register: GCC would load it again for each use, and loads are what the backward pass waits for.
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v)
#endif

enum {
  TILE = 32,             // rows of the result that are transposed back together
  AHEAD = 24,            // connections from one that is used backward to one whose values are fetched
  KEPT = 16 << 20,       // bytes of scratch that a thread keeps between calls
  MOST_PANEL = 64 << 20  // bytes of a panel, however many features there are
};

// One block of one panel: the features start..limit of the batch entries from `from` on.
typedef struct {
  int64_t start, limit, from, first_row, last_row;
  int chains;                          // forward, of sums
  bool is_first_block, is_last_block;  // of the panel's
  bool is_first_panel, is_last_panel;  // of the batch's
  const void *panel;
  void *partial, *reached, *weights, *dot_sums;
} block;

// Products read indices, and `sparsify_put` writes them: never at the same time, in whichever threads they run.
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

static void *allocate(int64_t bytes) { return aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64); }

// A buffer of this thread that lives as long as it: to get fresh pages from the system for each call costs more than a
// small product. It never shrinks, but what is larger than KEPT is given back after the call.
typedef struct {
  int64_t bytes;
  void *memory;
} scratch;
static pthread_key_t scratch_key;
static void scratch_free(void *own) {
  free(((scratch *)own)->memory);
  free(own);
}
__attribute__((constructor)) static void begin(void) {
  pthread_key_create(&scratch_key, scratch_free);
  pthread_atfork(NULL, NULL, unlocked);  // a child has one thread, which is in no product
}
static scratch *scratch_get(int64_t bytes) {
  scratch *own = pthread_getspecific(scratch_key);
  if (!own) {
    own = calloc(1, sizeof *own);
    if (!own || pthread_setspecific(scratch_key, own)) return free(own), NULL;
  }
  if (own->bytes < bytes) {
    free(own->memory);
    own->memory = allocate(bytes);
    own->bytes = own->memory ? bytes : 0;
  }
  return own->memory ? own : NULL;
}
static void scratch_give_back(scratch *own) {
  if (!own || own->bytes <= KEPT) return;
  free(own->memory);
  own->memory = NULL;
  own->bytes = 0;
}

// Vectors a panel is wide, of 1, 2, 4, 8: no more than `most` and than the batch fills.
static int panel_vectors(int64_t batch, int lanes, int most) {
  int vectors = 1;
  while (vectors < most && vectors * lanes < batch) vectors *= 2;
  return vectors;
}

// The greatest divisor of `all` that is at most `most`.
static int divisor(int all, int64_t most) {
  int found = most < all ? (int)most : all;
  while (all % found) found--;
  return found;
}

// Blocks of features: a block of the panel fills `room`, but a row finds at least eight connections in it, or to stop
// and go on would cost more than the cache gives.
static int64_t block_count(int64_t room, int64_t rows, int64_t features, int64_t nnz, int64_t bytes) {
  const int64_t blocks = (features * bytes + room - 1) / room, most = nnz / (8 * rows + 1);
  return blocks < most ? blocks : most > 1 ? most : 1;
}

#define ISA base
#define BYTES 16
#define MOST_VECTORS 4
#include "product_body.h"
#undef ISA
#undef BYTES

#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define BYTES 32
#include "product_body.h"
#undef ISA
#undef BYTES
#undef MOST_VECTORS
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma")
#endif
#define ISA avx512
#define BYTES 64
#define MOST_VECTORS 8
#include "product_body.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(__x86_64__)
#define LEVELS 3
#define FORMS(real, index) {run_##real##_##index##_base, run_##real##_##index##_avx2, run_##real##_##index##_avx512}
#else
#define LEVELS 1
#define FORMS(real, index) {run_##real##_##index##_base}
#endif

// The instruction sets of this machine: 0 the baseline, 1 AVX2 with FMA, 2 AVX-512.
int sparsify_level(void) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// For library.py, to compare with that of its own declaration.
int64_t sparsify_product_size(void) { return sizeof(product); }

int sparsify_linear(const product *p) {
  static int (*const forms[2][2][LEVELS])(const product *) = {
      {FORMS(float, int32_t), FORMS(float, int64_t)}, {FORMS(double, int32_t), FORMS(double, int64_t)}};
  const bool fits_half_a_vector = p->batch * p->real_bytes <= 32;
  const int level = p->level == 2 && fits_half_a_vector ? 1 : p->level;
  pthread_rwlock_rdlock(&indices_lock);
  const int status = forms[p->real_bytes == 8][p->index_bytes == 8][level](p);
  pthread_rwlock_unlock(&indices_lock);
  return status;
}

// Copies `count` arrays, one after the other in one go: no product sees some of them old and some new.
int sparsify_put(int64_t count, void *const *to, const void *const *from, const int64_t *bytes) {
  pthread_rwlock_wrlock(&indices_lock);
  for (int64_t i = 0; i < count; i++) memcpy(to[i], from[i], (size_t)bytes[i]);
  pthread_rwlock_unlock(&indices_lock);
  return DONE;
}
