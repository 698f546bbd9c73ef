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

#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "vectors.h"

enum {
  TILE = 32,             // rows of the result that are transposed back together
  AHEAD = 24,            // connections from one that is used backward to one whose values are fetched
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

#define BODY "product_body.h"
#include "each_isa.h"

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
  indices_hold();
  const int status = forms[p->real_bytes == 8][p->index_bytes == 8][level](p);
  indices_release();
  return status;
}
