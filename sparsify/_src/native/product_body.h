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

// Lanes of a and b in turn: those of their lower halves, or of their higher.
#ifdef __clang__
INLINE VECTOR NAME(low)(VECTOR a, VECTOR b) { return __builtin_shufflevector(a, b, LOW); }
INLINE VECTOR NAME(high)(VECTOR a, VECTOR b) { return __builtin_shufflevector(a, b, HIGH); }
#else
#if REAL_BYTES == 4
typedef int32_t NAME(lanes) __attribute__((vector_size(BYTES)));
#else
typedef int64_t NAME(lanes) __attribute__((vector_size(BYTES)));
#endif
INLINE VECTOR NAME(low)(VECTOR a, VECTOR b) { return __builtin_shuffle(a, b, (NAME(lanes)){LOW}); }
INLINE VECTOR NAME(high)(VECTOR a, VECTOR b) { return __builtin_shuffle(a, b, (NAME(lanes)){HIGH}); }
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
// Runs are short. `errors` is an int, here and below: GCC does not vectorize a loop over a bool.
INLINE bool NAME(rises)(const INDEX *indices, const INDEX *order, int64_t from, int64_t to, int64_t least,
                        int64_t limit, int64_t nnz) {
  if (from == to) return true;
  int errors = (indices[from] < least) | (indices[to - 1] >= limit);
  if (order) errors |= (order[from] < 0) | (order[to - 1] >= nnz);
  for (int64_t e = from + 1; e < to; e++) {
    errors |= indices[e] <= indices[e - 1];
    if (order) errors |= order[e] <= order[e - 1];
  }
  return !errors;
}

// Two lines of memory that are needed soon.
INLINE void NAME(prefetch)(const void *from) {
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
      VECTOR r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const VECTOR *)(source + i * stride);
      if (totals) {
        VECTOR total = {0};
        UNROLL for (int i = 0; i < LANES; i++) total += r[i];
        for (int i = 0; i < columns; i++) totals[j + i] += total[i];
      }
      NAME(transpose)(r);
      UNROLL for (int i = 0; i < LANES; i++) *(VECTOR *)(panel + (j - first + i) * width + b) = r[i];
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
      const bool is_whole = rows >= LANES && columns == LANES;
      REAL *place = is_whole ? target : corner;
      const int64_t stride = is_whole ? features : LANES;
      VECTOR r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const VECTOR *)(tile + (q + i) * width + b);
      NAME(transpose)(r);
      UNROLL for (int i = 0; i < LANES; i++) *(VECTOR *)(place + i * stride) = r[i];
      if (!is_whole)
        for (int i = 0; i < rows && i < LANES; i++)
          memcpy(target + i * features, corner + i * LANES, columns * sizeof(REAL));
    }
}

// One block of a panel that is so many vectors wide, forward: for the rows first_row..last_row, the columns
// start..limit. The sums of a row stay in registers, those of every second connection apart, so that no sum waits for
// the one before; between blocks they rest in `partial`, and `reached` says how far each row is.
INLINE int NAME(forward)(const product *p, const block *b, const int vectors) {
  const int width = vectors * LANES;
  const INDEX *restrict crow = p->starts, *restrict col = p->indices;
  const REAL *restrict values = p->values, *restrict bias = p->bias, *restrict panel = b->panel;
  REAL *partial = b->partial, tile[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  INDEX *reached = b->reached;
  for (int64_t r0 = b->first_row; r0 < b->last_row; r0 += TILE) {
    const int count = b->last_row - r0 < TILE ? (int)(b->last_row - r0) : TILE;
    for (int q = 0; q < count; q++) {
      const int64_t r = r0 + q;
      int64_t e = b->is_first_block ? crow[r] : reached[r - b->first_row], end = crow[r + 1];
      VECTOR sums[MOST_VECTORS], others[MOST_VECTORS];
      UNROLL for (int i = 0; i < vectors; i++) {
        if (b->is_first_block) sums[i] = (VECTOR){0} + (bias ? bias[r] : 0);
        else sums[i] = *(const VECTOR *)(partial + (r - b->first_row) * width + LANES * i);
        others[i] = (VECTOR){0};
      }
      if (!b->is_last_block) reached[r - b->first_row] = end = NAME(up_to)(col, e, end, b->limit);
      if (b->checks_indices && !NAME(rises)(col, NULL, e, end, b->start, b->limit, p->nnz)) return OUTSIDE;
      if (b->partial) {
        const int64_t next = b->is_first_block || r + 1 == b->last_row ? crow[r + 1] : reached[r + 1 - b->first_row];
        NAME(prefetch)(values + next);
        NAME(prefetch)(values + next + 64 / REAL_BYTES * 2);
        NAME(prefetch)(col + next);
        NAME(prefetch)(col + next + 64 / sizeof(INDEX) * 2);
      }
      for (; e + 1 < end; e += 2) {
        const VECTOR *x = (const VECTOR *)(panel + (col[e] - b->start) * width);
        const VECTOR *z = (const VECTOR *)(panel + (col[e + 1] - b->start) * width);
        const REAL v = values[e], w = values[e + 1];
        UNROLL for (int i = 0; i < vectors; i++) {
          sums[i] += v * x[i];
          others[i] += w * z[i];
        }
      }
      UNROLL for (int i = 0; i < vectors; i++) sums[i] += others[i];
      if (e < end) {
        const VECTOR *x = (const VECTOR *)(panel + (col[e] - b->start) * width);
        const REAL v = values[e];
        UNROLL for (int i = 0; i < vectors; i++) sums[i] += v * x[i];
      }
      REAL *rest = b->is_last_block ? tile + q * width : partial + (r - b->first_row) * width;
      UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(rest + LANES * i) = sums[i];
    }
    if (b->is_last_block) NAME(unpack)(tile, width, p->result, p->batch, p->out, b->from, r0, count);
  }
  return DONE;
}

// The compiler makes a function of its own for each width: the loops over vectors are unrolled.
static int NAME(forward_1)(const product *p, const block *b) { return NAME(forward)(p, b, 1); }
static int NAME(forward_2)(const product *p, const block *b) { return NAME(forward)(p, b, 2); }
static int NAME(forward_4)(const product *p, const block *b) { return NAME(forward)(p, b, 4); }
#if MOST_VECTORS == 8
static int NAME(forward_8)(const product *p, const block *b) { return NAME(forward)(p, b, 8); }
#endif

// gv[where[i]]: the sum of the lanes of dots[i]; added to what earlier panels gave if `adds`.
INLINE void NAME(store_sums)(VECTOR *dots, const int64_t *where, int count, REAL *restrict gv, bool adds) {
  VECTOR s = NAME(sums)(dots);
  if (adds)
    for (int i = 0; i < count; i++) gv[where[i]] += s[i];
  else
    for (int i = 0; i < count; i++) gv[where[i]] = s[i];
}

// The same backward: for the columns first_row..last_row, the rows start..limit. x and the sums of gx stay in
// registers, each g is loaded once for both gradients. The sums over the batch that gv needs are made for LANES
// connections together.
INLINE int NAME(backward_any)(const product *p, const block *b, const int vectors, const bool needs_x,
                              const bool needs_values) {
  enum { AHEAD = 24 };  // connections from one that is used to one whose values are fetched
  const int width = vectors * LANES;
  const INDEX *restrict ccol = p->starts, *restrict row = p->indices, *restrict order = p->order;
  const REAL *restrict values = p->values, *restrict panel = b->panel;
  REAL *gv = p->grad_values, *partial = b->partial;
  INDEX *reached = b->reached;
  REAL tile[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  REAL xs[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  VECTOR dots[LANES];
  int64_t where[LANES];
  const int64_t nnz = ccol[p->in];
  int pending = 0;
  for (int64_t c0 = b->first_row; c0 < b->last_row; c0 += TILE) {
    const int count = b->last_row - c0 < TILE ? (int)(b->last_row - c0) : TILE;
    if (needs_values) NAME(pack)(p->x, p->batch, p->in, b->from, width, c0, c0 + count, xs, NULL);
    for (int q = 0; q < count; q++) {
      const int64_t c = c0 + q;
      int64_t e = b->is_first_block ? ccol[c] : reached[c - b->first_row], end = ccol[c + 1];
      VECTOR sums[MOST_VECTORS], x[MOST_VECTORS];
      UNROLL for (int i = 0; i < vectors; i++) {
        if (needs_x && b->is_first_block) sums[i] = (VECTOR){0};
        else if (needs_x) sums[i] = *(const VECTOR *)(partial + (c - b->first_row) * width + LANES * i);
        if (needs_values) x[i] = *(const VECTOR *)(xs + q * width + LANES * i);
      }
      if (!b->is_last_block) reached[c - b->first_row] = end = NAME(up_to)(row, e, end, b->limit);
      if (b->checks_indices && !NAME(rises)(row, order, e, end, b->start, b->limit, nnz)) return OUTSIDE;
      const int64_t next = b->is_first_block || c + 1 == b->last_row ? ccol[c + 1] : reached[c + 1 - b->first_row];
      if (b->partial) {
        NAME(prefetch)(row + next);
        NAME(prefetch)(row + next + 64 / sizeof(INDEX) * 2);
        NAME(prefetch)(order + next);
        NAME(prefetch)(order + next + 64 / sizeof(INDEX) * 2);
      }
      for (; e < end; e++) {
        const VECTOR *g = (const VECTOR *)(panel + (row[e] - b->start) * width);
        const int64_t place = order[e], later = e + AHEAD < end ? e + AHEAD : e + AHEAD + next - end;
        const int64_t place_later = order[(uint64_t)later < (uint64_t)nnz ? later : nnz - 1];
        const REAL v = needs_x ? values[place] : 0;
        if (needs_x) __builtin_prefetch(values + place_later);
        if (needs_values) __builtin_prefetch(gv + place_later, 1);
        VECTOR dot = {0};
        UNROLL for (int i = 0; i < vectors; i++) {
          VECTOR loaded = g[i];
          IN_REGISTER(loaded);
          if (needs_x) sums[i] += v * loaded;
          if (needs_values) dot += x[i] * loaded;
        }
        if (needs_values) {
          dots[pending] = dot;
          where[pending] = place;
          if (++pending == LANES) {
            NAME(store_sums)(dots, where, LANES, gv, b->from != 0);
            pending = 0;
          }
        }
      }
      REAL *rest = b->is_last_block ? tile + q * width : partial + (c - b->first_row) * width;
      if (needs_x) UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(rest + LANES * i) = sums[i];
    }
    if (needs_x && b->is_last_block) NAME(unpack)(tile, width, p->result, p->batch, p->in, b->from, c0, count);
  }
  if (pending) NAME(store_sums)(dots, where, pending, gv, b->from != 0);
  return DONE;
}

INLINE int NAME(backward)(const product *p, const block *b, const int vectors) {
  if (p->result && p->grad_values) return NAME(backward_any)(p, b, vectors, true, true);
  if (p->result) return NAME(backward_any)(p, b, vectors, true, false);
  return NAME(backward_any)(p, b, vectors, false, true);
}

static int NAME(backward_1)(const product *p, const block *b) { return NAME(backward)(p, b, 1); }
static int NAME(backward_2)(const product *p, const block *b) { return NAME(backward)(p, b, 2); }
static int NAME(backward_4)(const product *p, const block *b) { return NAME(backward)(p, b, 4); }
#if MOST_VECTORS == 8
static int NAME(backward_8)(const product *p, const block *b) { return NAME(backward)(p, b, 8); }
#endif

// Whether the indices of the rows first..last rise within each row, as positions in the other order do, and lead
// nowhere outside. Each thread looks at its own share just before it reads it, when it must come into the cache anyway;
// where a share is so large that it would leave the cache again, each run of it is looked at as it is used. So no
// product leaves its arrays, whoever wrote the indices.
static bool NAME(is_sound)(const product *p, int64_t first, int64_t last, int64_t features, bool checks_starts_only) {
  const INDEX *restrict starts = p->starts, *restrict indices = p->indices, *restrict order = p->order;
  const INDEX nnz = (INDEX)p->nnz;
  INDEX falls = 0, order_falls = 0;  // all but those from one row to the next
  int errors = 0;
  for (int64_t r = first; r < last; r++) {
    const INDEX begin = starts[r], end = starts[r + 1];
    if (begin < 0 || begin > end || end > nnz) return false;
    if (begin == end || checks_starts_only) continue;
    errors |= (indices[begin] < 0) | (indices[end - 1] >= features);
    if (order) errors |= (order[begin] < 0) | (order[end - 1] >= nnz);
    if (begin > starts[first]) {
      falls -= indices[begin] <= indices[begin - 1];
      if (order) order_falls -= order[begin] <= order[begin - 1];
    }
  }
  if (errors || first >= last || checks_starts_only) return !errors;
  falls += NAME(falls)(indices, starts[first], starts[last]);
  if (order) order_falls += NAME(falls)(order, starts[first], starts[last]);
  return !falls && !order_falls;
}

// One input: a dot product a row, with gathers; nothing is packed.
static int NAME(forward_single)(const product *p) {
  const INDEX *restrict crow = p->starts, *restrict col = p->indices;
  const REAL *restrict values = p->values, *restrict bias = p->bias, *restrict x = p->x;
  REAL *restrict y = p->result;
  const int64_t chunks = 8 * (int64_t)p->threads;
  int status = DONE;
#pragma omp parallel for num_threads(p->threads) schedule(dynamic, 1) reduction(| : status)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = NAME(share)(crow, p->out, chunk, chunks), last = NAME(share)(crow, p->out, chunk + 1, chunks);
    if (!NAME(is_sound)(p, first, last, p->in, false)) {
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
static int NAME(run)(const product *p) {
  const bool is_backward = p->is_backward;
  if (!is_backward && p->batch == 1) return NAME(forward_single)(p);
  static int (*const forms[2][4])(const product *, const block *) = {
#if MOST_VECTORS == 8
      [false] = {NAME(forward_1), NAME(forward_2), NAME(forward_4), NAME(forward_8)},
      [true] = {NAME(backward_1), NAME(backward_2), NAME(backward_4), NAME(backward_8)},
#else
      [false] = {NAME(forward_1), NAME(forward_2), NAME(forward_4)},
      [true] = {NAME(backward_1), NAME(backward_2), NAME(backward_4)},
#endif
  };
  const INDEX *starts = p->starts;
  const int64_t rows = is_backward ? p->in : p->out, features = is_backward ? p->out : p->in, nnz = p->nnz;
  if (starts[0] != 0 || starts[rows] != nnz) return OUTSIDE;
  const int fitting = panel_vectors(p->batch, LANES, MOST_VECTORS);
  const int64_t blocks = block_count(rows, features, nnz, fitting * BYTES), size = (features + blocks - 1) / blocks;
  int most = fitting, status = DONE;
  while (most > 1 && size * most * BYTES > MOST_PANEL) most /= 2;
  while (!is_backward && most > 4 && most / 2 * LANES * p->threads >= p->batch) most /= 2;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    // Forward, threads share the panels out and then the rows; backward, where the batch is summed up, the rows alone.
    const int own = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t panels = (p->batch + most * LANES - 1) / (most * LANES);
    const int groups = is_backward ? 1 : divisor(all, panels), sharers = all / groups;
    const int64_t first = NAME(share)(starts, rows, own / groups, sharers);
    const int64_t last = NAME(share)(starts, rows, own / groups + 1, sharers);
    const int64_t panel_bytes = (size + LANES) * most * BYTES;
    const int64_t partial_bytes = blocks > 1 ? (last - first) * most * BYTES : 0;
    scratch *memory = scratch_get(panel_bytes + partial_bytes + (blocks > 1 ? (last - first) * sizeof(INDEX) : 0));
    status = !memory ? NO_MEMORY : NAME(is_sound)(p, first, last, features, blocks > 1) ? DONE : OUTSIDE;
    char *panel = memory ? memory->memory : NULL, *partial = blocks > 1 ? panel + panel_bytes : NULL;
    char *reached = blocks > 1 ? partial + partial_bytes : NULL;
    REAL *totals = own == 0 ? p->grad_bias : NULL;
    for (int64_t n = own % groups; n < panels && !status && (first < last || totals); n += groups) {
      const int64_t from = n * most * LANES;
      const int vectors = panel_vectors(p->batch - from, LANES, most), width = vectors * LANES;
      for (int64_t start = 0; start < features && !status; start += size) {
        const int64_t limit = start + size < features ? start + size : features;
        const bool checks_indices = blocks > 1 && n == own % groups;
        const block b = {.start = start,
                         .limit = limit,
                         .from = from,
                         .first_row = first,
                         .last_row = last,
                         .is_first_block = start == 0,
                         .is_last_block = limit == features,
                         .checks_indices = checks_indices,
                         .panel = panel,
                         .partial = partial,
                         .reached = reached};
        NAME(pack)(is_backward ? p->grad : p->x, p->batch, features, from, width, start, limit, (REAL *)panel, totals);
        status |= forms[is_backward][__builtin_ctz(vectors)](p, &b);
      }
    }
    scratch_give_back(memory);
  }
  return status;
}
#undef VECTOR
#undef LANES
#undef LOW
#undef HIGH
#endif
