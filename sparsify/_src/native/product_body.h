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

#include "vectors_body.h"

// Chains of sums forward where panels are four vectors wide, or would be if there were fewer threads. Each panel of a
// batch has as many, narrow ones too: a result must not depend on how the batch is cut.
#define WIDE_CHAINS (BYTES == 64 ? 1 : 2)

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

// Whether the rows first..last begin and end within the indices, one after the other.
INLINE bool NAME(starts_rise)(const INDEX *restrict starts, int64_t first, int64_t last, int64_t nnz) {
  int errors = 0;  // an int, because GCC does not vectorize a loop over a bool
  for (int64_t r = first; r < last; r++) errors |= starts[r] > starts[r + 1];
  return !errors && (first >= last || (starts[first] >= 0 && starts[last] <= nnz));
}

// Two lines of memory that are needed soon.
INLINE void NAME(prefetch)(const void *from) {
  __builtin_prefetch(from);
  __builtin_prefetch((const char *)from + 64);
}

// x[from..from + width][first..last] -> panel[last - first][width], zero past the batch and, up to a multiple of LANES,
// past `last`. `totals`, if there, gets the sums over the batch: what comes later of it is added to what came first.
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
        for (int i = 0; i < columns; i++) totals[j + i] = from + b ? totals[j + i] + total[i] : total[i];
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
// start..limit. The sums of a row stay in registers; between blocks they rest in `partial`, and `reached` says how far
// each row is. With two chains every second connection has sums of its own, so that no sum waits for the one before.
INLINE int NAME(forward)(const product *p, block *b, const int vectors, const int chains) {
  const int width = vectors * LANES;
  const INDEX *restrict crow = p->starts, *restrict col = p->indices;
  const REAL *restrict values = p->values, *restrict bias = p->bias, *restrict panel = b->panel;
  const int64_t start = b->start;
  const uint64_t size = (uint64_t)(b->limit - start);
  REAL *partial = b->partial, tile[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  INDEX *reached = b->reached;
  int64_t errors = 0;
  for (int64_t r0 = b->first_row; r0 < b->last_row; r0 += TILE) {
    const int count = b->last_row - r0 < TILE ? (int)(b->last_row - r0) : TILE;
    for (int q = 0; q < count; q++) {
      const int64_t r = r0 + q, end = crow[r + 1];
      int64_t e = b->is_first_block ? crow[r] : reached[r - b->first_row], before = start - 1;
      VECTOR sums[2][MOST_VECTORS];
      UNROLL for (int i = 0; i < vectors; i++) {
        if (b->is_first_block) sums[0][i] = (VECTOR){0} + (bias ? bias[r] : 0);
        else sums[0][i] = *(const VECTOR *)(partial + (r - b->first_row) * width + LANES * i);
        if (chains == 2) sums[1][i] = (VECTOR){0};
      }
      if (b->partial) {
        const int64_t next = b->is_first_block || r + 1 == b->last_row ? end : reached[r + 1 - b->first_row];
        NAME(prefetch)(values + next);
        NAME(prefetch)(values + next + 64 / REAL_BYTES * 2);
        NAME(prefetch)(col + next);
        NAME(prefetch)(col + next + 64 / sizeof(INDEX) * 2);
      }
#define ADD(chain)                                                                     \
  if (e >= end) break;                                                                 \
  {                                                                                    \
    const int64_t c = col[e];                                                          \
    if ((uint64_t)(c - start) >= size) break;                                          \
    const VECTOR *x = (const VECTOR *)(panel + (c - start) * width);                   \
    const REAL v = values[e++];                                                        \
    errors |= c - before - 1;                                                          \
    before = c;                                                                        \
    UNROLL for (int i = 0; i < vectors; i++) sums[chain][i] += v * x[i];               \
  }
      if (chains == 2) {
        for (;;) {
          ADD(0)
          ADD(1)
        }
        UNROLL for (int i = 0; i < vectors; i++) sums[0][i] += sums[1][i];
      } else
        for (;;) {
          ADD(0)
        }
#undef ADD
      if (b->is_last_block) errors |= e - end;
      else reached[r - b->first_row] = (INDEX)e;
      REAL *rest = b->is_last_block ? tile + q * width : partial + (r - b->first_row) * width;
      UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(rest + LANES * i) = sums[0][i];
    }
    if (b->is_last_block) NAME(unpack)(tile, width, p->result, p->batch, p->out, b->from, r0, count);
  }
  return errors < 0 ? OUTSIDE : DONE;
}

// The compiler makes a function of its own for each width: the loops over vectors are unrolled.
static int NAME(forward_1)(const product *p, block *b) {
  return b->chains == 1 ? NAME(forward)(p, b, 1, 1) : NAME(forward)(p, b, 1, 2);
}
static int NAME(forward_2)(const product *p, block *b) {
  return b->chains == 1 ? NAME(forward)(p, b, 2, 1) : NAME(forward)(p, b, 2, 2);
}
static int NAME(forward_4)(const product *p, block *b) { return NAME(forward)(p, b, 4, WIDE_CHAINS); }
#if MOST_VECTORS == 8
static int NAME(forward_8)(const product *p, block *b) { return NAME(forward)(p, b, 8, WIDE_CHAINS); }
#endif

// The sums of the lanes of dots[..count], added to what earlier panels left in `rest`: into gv at `where` in the last
// panel, else into `rest`, where LANES fit.
INLINE void NAME(store_sums)(VECTOR *dots, const int64_t *where, int count, REAL *restrict gv, REAL *restrict rest,
                             bool is_first, bool is_last) {
  VECTOR s = NAME(sums)(dots);
  if (!is_first) s += *(const VECTOR *)rest;
  if (!is_last) *(VECTOR *)rest = s;
  else
    for (int i = 0; i < count; i++) gv[where[i]] = s[i];
}

// The connection that is AHEAD of e, where `next` follows `end`.
INLINE int64_t NAME(after)(int64_t e, int64_t end, int64_t next, int64_t nnz) {
  const int64_t later = e + AHEAD < end ? e + AHEAD : e + AHEAD - end + next;
  return (uint64_t)later < (uint64_t)nnz ? later : nnz - 1;
}

// The same backward: for the columns first_row..last_row, the rows start..limit. x and the sums of gx stay in
// registers, each g is loaded once for both gradients. The sums over the batch that gv needs are made for LANES
// connections together. In `values` and gv, connections are in another order: the first panel leaves what it reads in
// `weights`, in the order in which it comes, and the last puts into place what all have added up in `dot_sums`.
INLINE int NAME(backward_any)(const product *p, block *b, const int vectors, const bool needs_x,
                              const bool needs_values, const bool is_only_panel) {
  const int width = vectors * LANES;
  const bool is_first = is_only_panel || b->is_first_panel, is_last = is_only_panel || b->is_last_panel;
  const INDEX *restrict ccol = p->starts, *restrict row = p->indices, *restrict order = p->order;
  const REAL *restrict values = p->values, *restrict panel = b->panel;
  REAL *restrict gv = p->grad_values, *weights = b->weights, *dot_sums = b->dot_sums, *partial = b->partial;
  INDEX *restrict reached = b->reached;
  const int64_t start = b->start, nnz = p->nnz;
  const uint64_t size = (uint64_t)(b->limit - start);
  REAL tile[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  REAL xs[TILE * MOST_VECTORS * LANES] __attribute__((aligned(64)));
  VECTOR dots[LANES];
  int64_t where[LANES], errors = 0;
  int pending = 0;
  for (int64_t c0 = b->first_row; c0 < b->last_row; c0 += TILE) {
    const int count = b->last_row - c0 < TILE ? (int)(b->last_row - c0) : TILE;
    if (needs_values) NAME(pack)(p->x, p->batch, p->in, b->from, width, c0, c0 + count, xs, NULL);
    for (int q = 0; q < count; q++) {
      const int64_t c = c0 + q;
      int64_t e = b->is_first_block ? ccol[c] : reached[c - b->first_row], end = ccol[c + 1];
      int64_t next = end, before = start - 1, place_before = -1;
      VECTOR sums[MOST_VECTORS], x[MOST_VECTORS];
      UNROLL for (int i = 0; i < vectors; i++) {
        if (needs_x && b->is_first_block) sums[i] = (VECTOR){0};
        else if (needs_x) sums[i] = *(const VECTOR *)(partial + (c - b->first_row) * width + LANES * i);
        if (needs_values) x[i] = *(const VECTOR *)(xs + q * width + LANES * i);
      }
      if (partial) {
        if (!b->is_first_block && c + 1 < b->last_row) next = reached[c + 1 - b->first_row];
        if (!b->is_last_block) reached[c - b->first_row] = (INDEX)(end = NAME(up_to)(row, e, end, b->limit));
        NAME(prefetch)(row + next);
        NAME(prefetch)(row + next + 64 / sizeof(INDEX) * 2);
        if (is_first || is_last) {
          NAME(prefetch)(order + next);
          NAME(prefetch)(order + next + 64 / sizeof(INDEX) * 2);
        }
      }
      for (; e < end; e++) {
        const int64_t r = row[e];
        if ((uint64_t)(r - start) >= size) break;
        const VECTOR *g = (const VECTOR *)(panel + (r - start) * width);
        REAL v = 0;
        if (is_first) {
          const int64_t place = order[e], later = order[NAME(after)(e, end, next, nnz)];
          if ((uint64_t)place >= (uint64_t)nnz) return OUTSIDE;
          errors |= (r - before - 1) | (place - place_before - 1);
          before = r;
          place_before = place;
          if (needs_x) {
            v = values[place];
            if (!is_only_panel) *weights++ = v;
            __builtin_prefetch(values + later);
          }
          if (needs_values && is_last) __builtin_prefetch(gv + later, 1);
        } else {
          if (needs_x) v = *weights++;
          if (needs_values && is_last) __builtin_prefetch(gv + order[NAME(after)(e, end, next, nnz)], 1);
        }
        VECTOR dot = {0};
        UNROLL for (int i = 0; i < vectors; i++) {
          VECTOR loaded = g[i];
          IN_REGISTER(loaded);
          if (needs_x) sums[i] += v * loaded;
          if (needs_values) dot += x[i] * loaded;
        }
        if (needs_values) {
          dots[pending] = dot;
          if (is_last) where[pending] = order[e];
          if (++pending == LANES) {
            NAME(store_sums)(dots, where, pending, gv, dot_sums, is_first, is_last);
            if (!is_only_panel) dot_sums += LANES;
            pending = 0;
          }
        }
      }
      errors |= e - end;
      REAL *rest = b->is_last_block ? tile + q * width : partial + (c - b->first_row) * width;
      if (needs_x) UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(rest + LANES * i) = sums[i];
    }
    if (needs_x && b->is_last_block) NAME(unpack)(tile, width, p->result, p->batch, p->in, b->from, c0, count);
  }
  if (pending) NAME(store_sums)(dots, where, pending, gv, dot_sums, is_first, is_last);
  if (is_only_panel) return errors < 0 ? OUTSIDE : DONE;
  b->weights = weights;
  b->dot_sums = dot_sums + (pending ? LANES : 0);
  return errors < 0 ? OUTSIDE : DONE;
}

INLINE int NAME(backward_panel)(const product *p, block *b, const int vectors, const bool is_only_panel) {
  if (p->result && p->grad_values) return NAME(backward_any)(p, b, vectors, true, true, is_only_panel);
  if (p->result) return NAME(backward_any)(p, b, vectors, true, false, is_only_panel);
  return NAME(backward_any)(p, b, vectors, false, true, is_only_panel);
}

INLINE int NAME(backward)(const product *p, block *b, const int vectors) {
  if (b->is_first_panel && b->is_last_panel) return NAME(backward_panel)(p, b, vectors, true);
  return NAME(backward_panel)(p, b, vectors, false);
}

static int NAME(backward_1)(const product *p, block *b) { return NAME(backward)(p, b, 1); }
static int NAME(backward_2)(const product *p, block *b) { return NAME(backward)(p, b, 2); }
static int NAME(backward_4)(const product *p, block *b) { return NAME(backward)(p, b, 4); }
#if MOST_VECTORS == 8
static int NAME(backward_8)(const product *p, block *b) { return NAME(backward)(p, b, 8); }
#endif

// Whether the indices of the rows first..last rise within each row and are below `limit`; no branch depends on them.
static bool NAME(rises)(const INDEX *restrict starts, const INDEX *restrict indices, int64_t first, int64_t last,
                        int64_t limit) {
  INDEX falls = 0;  // all but those from one row to the next
  int errors = 0;
  for (int64_t r = first; r < last; r++) {
    const INDEX begin = starts[r], end = starts[r + 1];
    if (begin == end) continue;
    errors |= (indices[begin] < 0) | (indices[end - 1] >= limit);
    if (begin > starts[first]) falls -= indices[begin] <= indices[begin - 1];
  }
  if (errors || first >= last) return !errors;
  for (int64_t e = starts[first] + 1; e < starts[last]; e++) falls += indices[e] <= indices[e - 1];
  return !falls;
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
    if (!NAME(starts_rise)(crow, first, last, p->nnz) || !NAME(rises)(crow, col, first, last, p->in)) {
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
// panels, a panel's features in blocks.
static int NAME(run)(const product *p) {
  const bool is_backward = p->is_backward;
  if (!is_backward && p->batch == 1) return NAME(forward_single)(p);
  static int (*const forms[2][4])(const product *, block *) = {
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
  const int64_t blocks = block_count(p->room, rows, features, nnz, fitting * BYTES);
  const int64_t size = (features + blocks - 1) / blocks;
  int most = fitting, status = DONE;
  while (most > 1 && size * most * BYTES > MOST_PANEL) most /= 2;
  while (!is_backward && most > 4 && most / 2 * LANES * p->threads >= p->batch) most /= 2;
  const int64_t panels = (p->batch + most * LANES - 1) / (most * LANES);
  const int64_t panel_bytes = (size + LANES) * most * BYTES;
  char *common = NULL;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    // Forward, threads share the panels out and then the rows; backward, where the batch is summed up, the rows alone.
    const int own = omp_get_thread_num(), all = omp_get_num_threads();
    const int groups = is_backward ? 1 : divisor(all, panels), sharers = all / groups;
    const bool packs_alone = sharers < p->sharers;
    const int64_t first = NAME(share)(starts, rows, own / groups, sharers);
    const int64_t last = NAME(share)(starts, rows, own / groups + 1, sharers);
    const bool is_sound = NAME(starts_rise)(starts, first, last, nnz);
    const int64_t own_panels = packs_alone ? panel_bytes : own == 0 ? 2 * groups * panel_bytes : 0;
    const int64_t partial_bytes = blocks > 1 ? (last - first) * most * BYTES : 0;
    const int64_t reached_bytes = blocks > 1 ? ((last - first) * sizeof(INDEX) + 63) / 64 * 64 : 0;
    const int64_t met = is_backward && is_sound && panels > 1 ? starts[last] - starts[first] : 0;
    const int64_t met_bytes = (met + LANES * blocks) * REAL_BYTES;
    scratch *memory = scratch_get(OWN, own_panels + partial_bytes + reached_bytes + 2 * met_bytes);
    status = !memory ? NO_MEMORY : is_sound ? DONE : OUTSIDE;
    char *panel = memory ? memory->memory : NULL, *partial = panel + own_panels, *reached = partial + partial_bytes;
    char *weights = reached + reached_bytes, *dot_sums = weights + met_bytes;
    if (!packs_alone) {
      if (own == 0) common = panel;
#pragma omp barrier
      if (!common) status |= NO_MEMORY;
    }
    // In turn with `common`, two panels for each group: one may be packed while the other is still read.
    for (int64_t round = 0, turn = 0; round * groups < panels; round++) {
      const int64_t n = round * groups + own % groups, from = n * most * LANES;
      const int vectors = panel_vectors(p->batch - from, LANES, most), width = vectors * LANES;
      block b = {.from = from,
                 .chains = fitting >= 4 ? WIDE_CHAINS : 2,
                 .first_row = first,
                 .last_row = last,
                 .is_first_panel = n == 0,
                 .is_last_panel = n == panels - 1,
                 .partial = blocks > 1 ? partial : NULL,
                 .reached = blocks > 1 ? reached : NULL,
                 .weights = weights,
                 .dot_sums = dot_sums};
      for (int64_t start = 0; start < features; start += size, turn ^= 1) {
        const int64_t limit = start + size < features ? start + size : features;
        int64_t packed = start, packed_to = limit;
        bool packs = !status && (first < last || own == 0);
        REAL *totals = own == 0 ? p->grad_bias : NULL;
        if (!packs_alone) {
          const int64_t part = ((limit - start + LANES - 1) / LANES + sharers - 1) / sharers * LANES;
          panel = common + (turn * groups + own % groups) * panel_bytes;
          packed = start + part * (own / groups);
          packed_to = packed + part < limit ? packed + part : limit;
          packs = common != NULL;  // whatever became of this thread: others need its part
          totals = p->grad_bias;
        }
        if (packs && n < panels && packed < packed_to)
          NAME(pack)(is_backward ? p->grad : p->x, p->batch, features, from, width, packed, packed_to,
                     (REAL *)panel + (packed - start) * width, totals);
        if (!packs_alone) {
#pragma omp barrier
        }
        if (n >= panels || first >= last || status) continue;
        b.start = start;
        b.limit = limit;
        b.is_first_block = start == 0;
        b.is_last_block = limit == features;
        b.panel = panel;
        status |= forms[is_backward][__builtin_ctz(vectors)](p, &b);
      }
    }
    if (!packs_alone) {
#pragma omp barrier
    }
    scratch_give_back(memory);
  }
  return status;
}
#undef WIDE_CHAINS
#undef VECTOR
#undef LANES
#undef LOW
#undef HIGH
#endif
