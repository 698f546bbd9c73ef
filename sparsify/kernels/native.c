// Sparse linear layers on CPU: y = x W^T + b and its gradients, for a W that is given by its connections.
//
// Activations come and go row-major, (batch, features). Each call packs them into panels, (panel, features, width): a
// connection is then one weight times one contiguous run of the batch, the accumulators stay in registers over a whole
// row, and nothing is gathered. Work is split by connections, not by rows, and every result is computed by one thread in
// one order, so it does not depend on the number of threads.
//
// Vector extensions of GCC and Clang, compiled for AVX-512, AVX2 and the baseline, chosen at run time; no intrinsics.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define omp_get_num_threads() 1
#define THREAD 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define PASTE2(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE2(a, b, c)
#define NAME(x) PASTE(x, TYPE, ISA)
enum { TILE = 16 };  // features that are unpacked together

// The row where the share of thread k begins; a multiple of TILE. Rows count a little, so empty ones are split too.
static int64_t share(const int64_t *start, int64_t rows, int k, int threads) {
  if (k >= threads) return rows;
  int64_t wanted = (start[rows] + rows) / threads * k, low = 0, high = rows;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (start[middle] + middle < wanted) low = middle + 1;
    else high = middle;
  }
  return low / TILE * TILE;
}

static void *allocate(int64_t bytes) { return aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64); }

// Vectors a panel is wide: the most that keep it within `cache` bytes and that the batch fills, of 2, 4 and 8.
static int panel_vectors(int64_t features, int64_t batch, int64_t bytes, int64_t lanes, int most, int64_t cache) {
  int vectors = most;
  while (vectors > 2 && (features * vectors * bytes > cache || vectors / 2 * lanes >= batch)) vectors /= 2;
  return vectors;
}

#define TYPE f32
#define REAL float
#define ISA base
#define BYTES 16
#define MOST_BACKWARD 4
#include "native_body.h"
#undef TYPE
#undef REAL
#define TYPE f64
#define REAL double
#include "native_body.h"
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
#include "native_body.h"
#undef TYPE
#undef REAL
#define TYPE f32
#define REAL float
#include "native_body.h"
#undef ISA
#undef BYTES
#undef MOST_BACKWARD
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
#define MOST_BACKWARD 8
#include "native_body.h"
#undef TYPE
#undef REAL
#define TYPE f64
#define REAL double
#include "native_body.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// 0: baseline, 1: AVX2 with FMA, 2: AVX-512
int sparsify_level(void) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

#ifdef __x86_64__
#define CHOOSE(name, ...)                              \
  int level = sparsify_level();                        \
  if (level == 2) return name##_avx512(__VA_ARGS__);   \
  if (level == 1) return name##_avx2(__VA_ARGS__);     \
  return name##_base(__VA_ARGS__)
#else
#define CHOOSE(name, ...) return name##_base(__VA_ARGS__)
#endif

#define EXPORT(type, real)                                                                                             \
  int sparsify_forward_##type(int64_t out, int64_t in, int64_t batch, int threads, const int64_t *crow,                \
                              const int64_t *col, const real *values, const real *bias, const real *x, real *y) {      \
    CHOOSE(forward_##type, out, in, batch, threads, crow, col, values, bias, x, y);                                    \
  }                                                                                                                    \
  int sparsify_backward_##type(int64_t out, int64_t in, int64_t batch, int threads, const int64_t *ccol,               \
                               const int64_t *row, const int64_t *order, const real *values, const real *x,            \
                               const real *gy, real *gx, real *gv) {                                                   \
    CHOOSE(backward_##type, out, in, batch, threads, ccol, row, order, values, x, gy, gx, gv);                         \
  }
EXPORT(f32, float)
EXPORT(f64, double)
