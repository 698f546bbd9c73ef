// The kernels for one instruction set, ISA with vectors of BYTES. product.c includes this for each; it includes itself
// for each type REAL of the values and INDEX of the indices.

#ifndef REAL
#define REAL float
#define REAL_BYTES 4
#define INDEX int32_t
#include "product_body.h"
#undef INDEX
#define INDEX int64_t
#include "product_body.h"
#undef REAL
#undef REAL_BYTES
#define REAL double
#define REAL_BYTES 8
#include "product_body.h"
#undef INDEX
#define INDEX int32_t
#include "product_body.h"
#undef REAL
#undef REAL_BYTES
#undef INDEX
#else

#define V NAME(vector)
#define LANES ((int)(BYTES / sizeof(REAL)))
typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

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

// Lanes of a and b in turn: those of their lower halves, or of their higher.
#ifdef __clang__
INLINE V NAME(low)(V a, V b) { return __builtin_shufflevector(a, b, LOW); }
INLINE V NAME(high)(V a, V b) { return __builtin_shufflevector(a, b, HIGH); }
#else
#if REAL_BYTES == 4
typedef int32_t NAME(lanes) __attribute__((vector_size(BYTES)));
#else
typedef int64_t NAME(lanes) __attribute__((vector_size(BYTES)));
#endif
INLINE V NAME(low)(V a, V b) { return __builtin_shuffle(a, b, (NAME(lanes)){LOW}); }
INLINE V NAME(high)(V a, V b) { return __builtin_shuffle(a, b, (NAME(lanes)){HIGH}); }
#endif

// r[i] lane j <-> r[j] lane i
INLINE void NAME(transpose)(V *r) {
  V t[LANES];
  UNROLL for (int step = 1; step < LANES; step *= 2) {
    UNROLL for (int i = 0; i < LANES / 2; i++) {
      t[2 * i] = NAME(low)(r[i], r[i + LANES / 2]);
      t[2 * i + 1] = NAME(high)(r[i], r[i + LANES / 2]);
    }
    UNROLL for (int i = 0; i < LANES; i++) r[i] = t[i];
  }
}

// lane i of the result: the sum of the lanes of r[i]
INLINE V NAME(sums)(V *r) {
  UNROLL for (int half = LANES / 2; half > 0; half /= 2)
    UNROLL for (int i = 0; i < half; i++) r[i] = NAME(low)(r[i], r[i + half]) + NAME(high)(r[i], r[i + half]);
  return r[0];
}

// The row where share k of all begins: a multiple of TILE. Rows count a little, so that empty ones are split too.
static int64_t NAME(share)(const INDEX *starts, int64_t rows, int64_t k, int64_t all) {
  if (k >= all) return rows;
  int64_t wanted = (starts[rows] + rows) / all * k, low = 0, high = rows;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (starts[middle] + middle < wanted) low = middle + 1;
    else high = middle;
  }
  return low / TILE * TILE;
}

// The first of the sorted indices e..end that reaches `limit`.
INLINE int64_t NAME(up_to)(const INDEX *indices, int64_t e, int64_t end, int64_t limit) {
  while (e < end && indices[e] < limit) e++;
  return e;
}

// How often index[from..to] does not rise from one to the next.
INLINE INDEX NAME(falls)(const INDEX *restrict index, int64_t from, int64_t to) {
  INDEX falls = 0;
  for (int64_t e = from + 1; e < to; e++) falls += index[e] <= index[e - 1];
  return falls;
}

// Whether a run of indices, and of positions in the other order, rises within these bounds; `order` may be missing.
// Runs are short.
INLINE int NAME(rises)(const INDEX *indices, const INDEX *order, int64_t from, int64_t to, int64_t least, int64_t limit,
                       int64_t nnz) {
  if (from == to) return 1;
  int outside = (indices[from] < least) | (indices[to - 1] >= limit);
  if (order) outside |= (order[from] < 0) | (order[to - 1] >= nnz);
  for (int64_t e = from + 1; e < to; e++) {
    outside |= indices[e] <= indices[e - 1];
    if (order) outside |= order[e] <= order[e - 1];
  }
  return !outside;
}

// Two lines of memory that are needed soon.
INLINE void NAME(fetch)(const void *from) {
  __builtin_prefetch(from);
  __builtin_prefetch((const char *)from + 64);
}

// x[from..from + width][first..last] -> panel[last - first][width], zero past the batch and, up to a multiple of LANES,
// past `last`. Sums over the batch are added to `totals`, if there.
static void NAME(pack)(const REAL *restrict x, int64_t batch, int64_t features, int64_t from, int width, int64_t first,
                       int64_t last, REAL *restrict panel, REAL *restrict totals) {
  for (int b = 0; b < width; b += LANES) {
    const int64_t rows = batch - from - b;
    for (int64_t j = first; j < last; j += LANES) {
      const int columns = last - j < LANES ? (int)(last - j) : LANES;
      const REAL *source = x + (from + b) * features + j;
      int64_t stride = features;
      REAL corner[LANES * LANES];
      if (rows < LANES || columns < LANES) {
        memset(corner, 0, sizeof corner);
        for (int i = 0; i < rows && i < LANES; i++)
          memcpy(corner + i * LANES, source + i * stride, columns * sizeof(REAL));
        source = corner;
        stride = LANES;
      }
      V r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const V *)(source + i * stride);
      if (totals) {
        V total = {0};
        UNROLL for (int i = 0; i < LANES; i++) total += r[i];
        for (int i = 0; i < columns; i++) totals[j + i] += total[i];
      }
      NAME(transpose)(r);
      UNROLL for (int i = 0; i < LANES; i++) *(V *)(panel + (j - first + i) * width + b) = r[i];
    }
  }
}

// tile[count][width] -> y[from..from + width][first..first + count]
static void NAME(unpack)(const REAL *restrict tile, int width, REAL *restrict y, int64_t batch, int64_t features,
                         int64_t from, int64_t first, int count) {
  for (int b = 0; b < width; b += LANES)
    for (int q = 0; q < count; q += LANES) {
      const int64_t rows = batch - from - b;
      const int columns = count - q < LANES ? count - q : LANES;
      REAL *target = y + (from + b) * features + first + q;
      REAL corner[LANES * LANES];
      const int inside = rows >= LANES && columns == LANES;
      REAL *place = inside ? target : corner;
      const int64_t stride = inside ? features : LANES;
      V r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const V *)(tile + (q + i) * width + b);
      NAME(transpose)(r);
      UNROLL for (int i = 0; i < LANES; i++) *(V *)(place + i * stride) = r[i];
      if (!inside)
        for (int i = 0; i < rows && i < LANES; i++)
          memcpy(target + i * features, corner + i * LANES, columns * sizeof(REAL));
    }
}

// Rows first..last of a panel that is N vectors wide: the columns start..limit of it. The sums of a row stay in
// registers; between blocks of columns they rest in `partial`, and `reached` says how far each row is.
#define FORWARD(N)                                                                                                     \
  static int NAME(forward_##N)(const problem *p, const block *k) {                                                     \
    enum { W = N * LANES };                                                                                            \
    const INDEX *restrict crow = p->starts, *restrict col = p->indices;                                                \
    const REAL *restrict values = p->values, *restrict bias = p->bias, *restrict panel = k->panel;                     \
    REAL *partial = k->partial, tile[TILE * W] __attribute__((aligned(64)));                                           \
    INDEX *reached = k->reached;                                                                                       \
    for (int64_t r0 = k->first_row; r0 < k->last_row; r0 += TILE) {                                                    \
      const int count = k->last_row - r0 < TILE ? (int)(k->last_row - r0) : TILE;                                      \
      for (int q = 0; q < count; q++) {                                                                                \
        const int64_t r = r0 + q;                                                                                      \
        int64_t e = k->first ? crow[r] : reached[r - k->first_row], end = crow[r + 1];                                 \
        V a[N], c[N];                                                                                                  \
        UNROLL for (int i = 0; i < N; i++) {                                                                           \
          if (k->first) a[i] = (V){0} + (bias ? bias[r] : 0);                                                          \
          else a[i] = *(const V *)(partial + (r - k->first_row) * W + LANES * i);                                      \
          c[i] = (V){0};                                                                                               \
        }                                                                                                              \
        if (!k->last) reached[r - k->first_row] = end = NAME(up_to)(col, e, end, k->limit);                            \
        if (k->check && !NAME(rises)(col, NULL, e, end, k->start, k->limit, p->nnz)) return OUTSIDE;                   \
        if (k->partial) {                                                                                              \
          const int64_t next = k->first || r + 1 == k->last_row ? crow[r + 1] : reached[r + 1 - k->first_row];         \
          NAME(fetch)(values + next);                                                                                  \
          NAME(fetch)(values + next + 64 / REAL_BYTES * 2);                                                            \
          NAME(fetch)(col + next);                                                                                     \
          NAME(fetch)(col + next + 64 / sizeof(INDEX) * 2);                                                            \
        }                                                                                                              \
        for (; e + 1 < end; e += 2) {                                                                                  \
          const V *x = (const V *)(panel + (col[e] - k->start) * W);                                                   \
          const V *z = (const V *)(panel + (col[e + 1] - k->start) * W);                                               \
          const REAL v = values[e], w = values[e + 1];                                                                 \
          UNROLL for (int i = 0; i < N; i++) {                                                                         \
            a[i] += v * x[i];                                                                                          \
            c[i] += w * z[i];                                                                                          \
          }                                                                                                            \
        }                                                                                                              \
        UNROLL for (int i = 0; i < N; i++) a[i] += c[i];                                                               \
        if (e < end) {                                                                                                 \
          const V *x = (const V *)(panel + (col[e] - k->start) * W);                                                   \
          const REAL v = values[e];                                                                                    \
          UNROLL for (int i = 0; i < N; i++) a[i] += v * x[i];                                                         \
        }                                                                                                              \
        REAL *rest = k->last ? tile + q * W : partial + (r - k->first_row) * W;                                        \
        UNROLL for (int i = 0; i < N; i++) *(V *)(rest + LANES * i) = a[i];                                            \
      }                                                                                                                \
      if (k->last) NAME(unpack)(tile, W, p->result, p->batch, p->out, k->from, r0, count);                             \
    }                                                                                                                  \
    return 0;                                                                                                          \
  }
FORWARD(1)
FORWARD(2)
FORWARD(4)
#if MOST_VECTORS == 8
FORWARD(8)
#endif
#undef FORWARD

// gv[where[i]]: the sum of the lanes of dots[i]; added to what earlier panels gave.
INLINE void NAME(settle)(V *dots, const int64_t *where, int count, REAL *restrict gv, int add) {
  V s = NAME(sums)(dots);
  if (add)
    for (int i = 0; i < count; i++) gv[where[i]] += s[i];
  else
    for (int i = 0; i < count; i++) gv[where[i]] = s[i];
}

// Columns first..last: x and the sums of gx stay in registers, each g is loaded once for both gradients. The sums over
// the batch that gv needs are made for LANES connections together.
#define BACKWARD(N)                                                                                                    \
  INLINE int NAME(backward_any_##N)(const problem *p, const block *k, const int need_x, const int need_v) {            \
    enum { W = N * LANES, AHEAD = 24 };                                                                                \
    const INDEX *restrict ccol = p->starts, *restrict row = p->indices, *restrict order = p->order;                    \
    const REAL *restrict values = p->values, *restrict panel = k->panel;                                               \
    REAL *gv = p->grad_values, *partial = k->partial;                                                                  \
    INDEX *reached = k->reached;                                                                                       \
    REAL tile[TILE * W] __attribute__((aligned(64))), xs[TILE * W] __attribute__((aligned(64)));                       \
    V dots[LANES];                                                                                                     \
    int64_t where[LANES];                                                                                              \
    const int64_t nnz = ccol[p->in];                                                                                   \
    int pending = 0;                                                                                                   \
    for (int64_t c0 = k->first_row; c0 < k->last_row; c0 += TILE) {                                                    \
      const int count = k->last_row - c0 < TILE ? (int)(k->last_row - c0) : TILE;                                      \
      if (need_v) NAME(pack)(p->x, p->batch, p->in, k->from, W, c0, c0 + count, xs, 0);                                \
      for (int q = 0; q < count; q++) {                                                                                \
        const int64_t c = c0 + q;                                                                                      \
        int64_t e = k->first ? ccol[c] : reached[c - k->first_row], end = ccol[c + 1];                                 \
        V a[N], x[N];                                                                                                  \
        UNROLL for (int i = 0; i < N; i++) {                                                                           \
          if (need_x && k->first) a[i] = (V){0};                                                                       \
          else if (need_x) a[i] = *(const V *)(partial + (c - k->first_row) * W + LANES * i);                          \
          if (need_v) x[i] = *(const V *)(xs + q * W + LANES * i);                                                     \
        }                                                                                                              \
        if (!k->last) reached[c - k->first_row] = end = NAME(up_to)(row, e, end, k->limit);                            \
        if (k->check && !NAME(rises)(row, order, e, end, k->start, k->limit, nnz)) return OUTSIDE;                     \
        const int64_t next = k->first || c + 1 == k->last_row ? ccol[c + 1] : reached[c + 1 - k->first_row];           \
        if (k->partial) {                                                                                              \
          NAME(fetch)(row + next);                                                                                     \
          NAME(fetch)(row + next + 64 / sizeof(INDEX) * 2);                                                            \
          NAME(fetch)(order + next);                                                                                   \
          NAME(fetch)(order + next + 64 / sizeof(INDEX) * 2);                                                          \
        }                                                                                                              \
        for (; e < end; e++) {                                                                                         \
          const V *g = (const V *)(panel + (row[e] - k->start) * W);                                                   \
          const int64_t place = order[e], later = e + AHEAD < end ? e + AHEAD : e + AHEAD + next - end;                \
          const int64_t place_later = order[(uint64_t)later < (uint64_t)nnz ? later : nnz - 1];                        \
          const REAL v = need_x ? values[place] : 0;                                                                   \
          if (need_x) __builtin_prefetch(values + place_later);                                                        \
          if (need_v) __builtin_prefetch(gv + place_later, 1);                                                         \
          V d = {0};                                                                                                   \
          UNROLL for (int i = 0; i < N; i++) {                                                                         \
            V loaded = g[i];                                                                                           \
            IN_REGISTER(loaded);                                                                                       \
            if (need_x) a[i] += v * loaded;                                                                            \
            if (need_v) d += x[i] * loaded;                                                                            \
          }                                                                                                            \
          if (need_v) {                                                                                                \
            dots[pending] = d;                                                                                         \
            where[pending] = place;                                                                                    \
            if (++pending == LANES) {                                                                                  \
              NAME(settle)(dots, where, LANES, gv, k->from != 0);                                                      \
              pending = 0;                                                                                             \
            }                                                                                                          \
          }                                                                                                            \
        }                                                                                                              \
        REAL *rest = k->last ? tile + q * W : partial + (c - k->first_row) * W;                                        \
        if (need_x) UNROLL for (int i = 0; i < N; i++) *(V *)(rest + LANES * i) = a[i];                                \
      }                                                                                                                \
      if (need_x && k->last) NAME(unpack)(tile, W, p->result, p->batch, p->in, k->from, c0, count);                    \
    }                                                                                                                  \
    if (pending) NAME(settle)(dots, where, pending, gv, k->from != 0);                                                 \
    return 0;                                                                                                          \
  }                                                                                                                    \
  static int NAME(backward_##N)(const problem *p, const block *k) {                                                    \
    if (p->result && p->grad_values) return NAME(backward_any_##N)(p, k, 1, 1);                                        \
    if (p->result) return NAME(backward_any_##N)(p, k, 1, 0);                                                          \
    return NAME(backward_any_##N)(p, k, 0, 1);                                                                         \
  }
BACKWARD(1)
BACKWARD(2)
BACKWARD(4)
#if MOST_VECTORS == 8
BACKWARD(8)
#endif
#undef BACKWARD

// Whether the indices of the rows first..last rise within each row, as positions in the other order do, and lead
// nowhere outside. Each thread looks at its own share just before it reads it, when it must come into the cache anyway;
// where a share is so large that it would leave the cache again, each run of it is looked at as it is used. So no
// product leaves its arrays, whoever wrote the indices.
static int NAME(sound)(const problem *p, int64_t first, int64_t last, int64_t features, int starts_only) {
  const INDEX *restrict starts = p->starts, *restrict indices = p->indices, *restrict order = p->order;
  const INDEX nnz = (INDEX)p->nnz;
  INDEX falls = 0, order_falls = 0;  // all but those from one row to the next
  int outside = 0;
  for (int64_t r = first; r < last; r++) {
    const INDEX begin = starts[r], end = starts[r + 1];
    if (begin < 0 || begin > end || end > nnz) return 0;
    if (begin == end || starts_only) continue;
    outside |= (indices[begin] < 0) | (indices[end - 1] >= features);
    if (order) outside |= (order[begin] < 0) | (order[end - 1] >= nnz);
    if (begin > starts[first]) {
      falls -= indices[begin] <= indices[begin - 1];
      if (order) order_falls -= order[begin] <= order[begin - 1];
    }
  }
  if (outside || first >= last || starts_only) return !outside;
  falls += NAME(falls)(indices, starts[first], starts[last]);
  if (order) order_falls += NAME(falls)(order, starts[first], starts[last]);
  return !falls && !order_falls;
}

// One input: a dot product a row, with gathers; nothing is packed.
static int NAME(single)(const problem *p) {
  const INDEX *restrict crow = p->starts, *restrict col = p->indices;
  const REAL *restrict values = p->values, *restrict bias = p->bias, *restrict x = p->x;
  REAL *restrict y = p->result;
  const int64_t chunks = 8 * (int64_t)p->threads;
  int status = 0;
#pragma omp parallel for num_threads(p->threads) schedule(dynamic, 1) reduction(| : status)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = NAME(share)(crow, p->out, chunk, chunks), last = NAME(share)(crow, p->out, chunk + 1, chunks);
    if (!NAME(sound)(p, first, last, p->in, 0)) {
      status = OUTSIDE;
      continue;
    }
    for (int64_t r = first; r < last; r++) {
      REAL s[8] = {0};
      int64_t e = crow[r], end = crow[r + 1];
      for (; e + 8 <= end; e += 8) UNROLL for (int i = 0; i < 8; i++) s[i] += values[e + i] * x[col[e + i]];
      for (; e < end; e++) s[0] += values[e] * x[col[e]];
      y[r] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7])) + (bias ? bias[r] : 0);
    }
  }
  return status;
}

// Both directions: the rows of the result (outputs forward, inputs backward) in a share for each thread, the batch in
// panels, a panel's features in blocks. Each thread packs for itself: that costs little more than to fetch what another
// packed, and nobody waits.
static int NAME(run)(const problem *p, int backward) {
  if (!backward && p->batch == 1) return NAME(single)(p);
#if MOST_VECTORS == 8
#define FORMS_OF(name) {NAME(name##_1), NAME(name##_2), NAME(name##_4), NAME(name##_8)}
#else
#define FORMS_OF(name) {NAME(name##_1), NAME(name##_2), NAME(name##_4)}
#endif
  static int (*const forms[2][4])(const problem *, const block *) = {FORMS_OF(forward), FORMS_OF(backward)};
#undef FORMS_OF
  const INDEX *starts = p->starts;
  const int64_t rows = backward ? p->in : p->out, features = backward ? p->out : p->in, nnz = p->nnz;
  if (starts[0] != 0 || starts[rows] != nnz) return OUTSIDE;
  const int fitting = panel_vectors(p->batch, LANES, MOST_VECTORS);
  const int64_t blocks = block_count(rows, features, nnz, fitting * BYTES), size = (features + blocks - 1) / blocks;
  int most = fitting, status = 0;
  while (most > 1 && size * most * BYTES > MOST_PANEL) most /= 2;
  while (!backward && most > 4 && most / 2 * LANES * p->threads >= p->batch) most /= 2;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    // Forward, threads share the panels out and then the rows; backward, where the batch is summed up, the rows alone.
    const int own = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t panels = (p->batch + most * LANES - 1) / (most * LANES);
    const int groups = backward ? 1 : divisor(all, panels), sharers = all / groups;
    const int64_t first = NAME(share)(starts, rows, own / groups, sharers);
    const int64_t last = NAME(share)(starts, rows, own / groups + 1, sharers);
    const int64_t panel_bytes = (size + LANES) * most * BYTES;
    const int64_t partial_bytes = blocks > 1 ? (last - first) * most * BYTES : 0;
    scratch *memory = scratch_get(panel_bytes + partial_bytes + (blocks > 1 ? (last - first) * sizeof(INDEX) : 0));
    status = !memory ? NO_MEMORY : NAME(sound)(p, first, last, features, blocks > 1) ? 0 : OUTSIDE;
    char *panel = memory ? memory->memory : 0, *partial = blocks > 1 ? panel + panel_bytes : 0;
    char *reached = blocks > 1 ? partial + partial_bytes : 0;
    REAL *totals = own == 0 ? p->grad_bias : 0;
    for (int64_t n = own % groups; n < panels && !status && (first < last || totals); n += groups) {
      const int64_t from = n * most * LANES;
      const int vectors = panel_vectors(p->batch - from, LANES, most), width = vectors * LANES;
      for (int64_t start = 0; start < features && !status; start += size) {
        const int64_t limit = start + size < features ? start + size : features;
        const int check = blocks > 1 && n == own % groups;
        const int begins = start == 0, ends = limit == features;
        const block k = {start, limit, from, first, last, begins, ends, check, panel, partial, reached};
        NAME(pack)(backward ? p->grad : p->x, p->batch, features, from, width, start, limit, (REAL *)panel, totals);
        status |= forms[backward][__builtin_ctz(vectors)](p, &k);
      }
    }
    scratch_give_back(memory);
  }
  return status;
}
#undef V
#undef LANES
#undef LOW
#undef HIGH
#endif
