// Vectors of BYTES of the type REAL: product_body.h and convolution_body.h begin with this.

#define VECTOR NAME(vector)
#define LANES ((int)(BYTES / sizeof(REAL)))
typedef REAL VECTOR __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

#if BYTES == 2 * REAL_BYTES
#define LOW 0, 2
#define HIGH 1, 3
#elif BYTES == 4 * REAL_BYTES
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#elif BYTES == 8 * REAL_BYTES
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif

#if REAL_BYTES == 4
typedef int32_t NAME(integers) __attribute__((vector_size(BYTES), aligned(4), may_alias));
#else
typedef int64_t NAME(integers) __attribute__((vector_size(BYTES), aligned(8), may_alias));
#endif

// Lanes of a and b in turn: those of their lower halves, or of their higher.
#ifdef __clang__
INLINE VECTOR NAME(low)(VECTOR a, VECTOR b) { return __builtin_shufflevector(a, b, LOW); }
INLINE VECTOR NAME(high)(VECTOR a, VECTOR b) { return __builtin_shufflevector(a, b, HIGH); }
#else
INLINE VECTOR NAME(low)(VECTOR a, VECTOR b) { return __builtin_shuffle(a, b, (NAME(integers)){LOW}); }
INLINE VECTOR NAME(high)(VECTOR a, VECTOR b) { return __builtin_shuffle(a, b, (NAME(integers)){HIGH}); }
#endif

// r[i] lane j <-> r[j] lane i
INLINE void NAME(transpose)(VECTOR *r) {
  VECTOR t[LANES];
  UNROLL for (int step = 1; step < LANES; step *= 2) {
    UNROLL for (int i = 0; i < LANES / 2; i++) {
      t[2 * i] = NAME(low)(r[i], r[i + LANES / 2]);
      t[2 * i + 1] = NAME(high)(r[i], r[i + LANES / 2]);
    }
    UNROLL for (int i = 0; i < LANES; i++) r[i] = t[i];
  }
}

// lane i of the result: the sum of the lanes of r[i]
INLINE VECTOR NAME(sums)(VECTOR *r) {
  UNROLL for (int half = LANES / 2; half > 0; half /= 2)
    UNROLL for (int i = 0; i < half; i++) r[i] = NAME(low)(r[i], r[i + half]) + NAME(high)(r[i], r[i + half]);
  return r[0];
}
