// Includes BODY once for each instruction set ISA, with vectors of BYTES, of which MOST_VECTORS fit into the registers as
// sums and as many again as factors. Before each, a pragma tells the compiler which instructions it may use.

#define ISA base
#define BYTES 16
#define MOST_VECTORS 4
#include BODY
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
#include BODY
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
#include BODY
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#undef ISA
#undef BYTES
#undef MOST_VECTORS
#undef BODY
