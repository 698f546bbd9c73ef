// What product.c and topology.c share with each other and with library.py, which declares all of it a second time.

#ifndef SPARSIFY_LIBRARY_H
#define SPARSIFY_LIBRARY_H

#include <stdbool.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

// What the functions of the library return. Where threads fail, each in its way, their statuses are joined by `|`.
enum {
  DONE = 0,
  NO_MEMORY = 1,  // memory for the work could not be allocated
  OUTSIDE = 2     // an index leads out of an array, or indices are unsorted; what the results hold is undefined
};

// One call of sparsify_linear: a product of a sparse layer, or gradients of it; backward `result` and `grad_values` are
// not both NULL. Any change here goes into library.Product too. When the library is loaded, library.py compares that
// class's size with sparsify_product_size().
typedef struct {
  int64_t out, in;               // features of the layer: its weight is (out, in)
  int64_t batch, nnz;            // rows of x, and connections
  int64_t room;                  // bytes of a cache that a block of a panel may fill
  const void *starts, *indices;  // forward the CSR, `crow` and `col`; backward the CSC, `ccol` and `csc_row`
  const void *order;             // backward `csc_order`: where in `values` each connection is; forward NULL
  const void *values, *bias;     // (nnz) in the order of the CSR, and (out); bias may be NULL, backward it is not read
  const void *x, *grad;          // (batch, in), and the gradient of y, (batch, out); forward `grad` is NULL
  void *result;                  // forward y, (batch, out); backward the gradient of x, (batch, in), or NULL
  void *grad_values;             // (nnz), or NULL
  void *grad_bias;               // (out), or NULL
  int level;                     // of the instruction sets, at most sparsify_level()
  int real_bytes, index_bytes;   // 4 or 8 each: of a number of `values` or x, and of an index
  int threads, sharers;          // and how many threads that need the same panel, at least, pack it together
  bool is_backward;
} product;

// One call of sparsify_convolution. `linear` says all that a convolution shares with a linear map: its weight is (out,
// in) with a column for each channel of a group and each tap, channel * taps + tap. `x` is (batch, channels, pixels) and
// y (batch, out, pixels) with other pixels; each has three dimensions, of which some may be 1.
typedef struct {
  product linear;
  int64_t groups;
  int64_t size[3], out_size[3];  // of x and of y
  int64_t kernel[3], stride[3], padding[3], dilation[3];
} convolution;

#endif
