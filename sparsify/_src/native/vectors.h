// What product.c and convolution.c do with vectors. vectors_body.h is included for each type and instruction set.

#ifndef SPARSIFY_VECTORS_H
#define SPARSIFY_VECTORS_H

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

#endif
