// The kernels for one type REAL and one instruction set with vectors of BYTES; native.c includes this for each.

#define V NAME(vector)
#define LANES ((int)(BYTES / sizeof(REAL)))
#define Q NAME(quarter)
#define QUARTER ((int)(16 / sizeof(REAL)))
typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL))));
typedef REAL Q __attribute__((vector_size(16), aligned(sizeof(REAL))));

// x[from..from + width][first..last] -> panel[first..last][width]; entries past the batch are zero.
static void NAME(pack)(const REAL *restrict x, int64_t batch, int64_t features, int64_t from, int width, int64_t first,
                       int64_t last, REAL *restrict panel) {
  REAL tile[TILE][TILE];
  for (int64_t j0 = first; j0 < last; j0 += TILE) {
    int columns = last - j0 < TILE ? (int)(last - j0) : TILE;
    for (int b = 0; b < width; b += TILE) {
      int64_t left = batch - from - b;
      int rows = left < 0 ? 0 : left < TILE ? (int)left : TILE, bs = width - b < TILE ? width - b : TILE;
      if (rows < TILE) memset(tile, 0, sizeof tile);
      const REAL *source = x + (from + b) * features + j0;
      if (columns == TILE)
        for (int i = 0; i < rows; i++) memcpy(tile[i], source + i * features, sizeof tile[i]);
      else
        for (int i = 0; i < rows; i++) memcpy(tile[i], source + i * features, columns * sizeof(REAL));
      REAL *target = panel + j0 * width + b;
      if (bs == TILE)
        for (int j = 0; j < columns; j++)
          for (int i = 0; i < TILE; i++) target[j * width + i] = tile[i][j];
      else
        for (int j = 0; j < columns; j++)
          for (int i = 0; i < bs; i++) target[j * width + i] = tile[i][j];
    }
  }
}

// tile[count][width] -> y[from..][first..first + count]
INLINE void NAME(unpack)(const REAL *restrict tile, int width, REAL *restrict y, int64_t batch, int64_t features,
                         int64_t from, int64_t first, int count) {
  int rows = batch - from < width ? (int)(batch - from) : width;
  REAL *target = y + from * features + first;
  if (count == TILE)
    for (int b = 0; b < rows; b++)
      for (int i = 0; i < TILE; i++) target[b * features + i] = tile[i * width + b];
  else
    for (int b = 0; b < rows; b++)
      for (int i = 0; i < count; i++) target[b * features + i] = tile[i * width + b];
}

// The lanes of v added up: quarters of 16 bytes first, then within one.
INLINE REAL NAME(sum)(V v) {
  union {
    V whole;
    Q quarters[BYTES / 16];
  } parts = {v};
  Q s = parts.quarters[0];
  UNROLL for (int i = 1; i < BYTES / 16; i++) s += parts.quarters[i];
  return sizeof(REAL) == 8 ? s[0] + s[1] : (s[0] + s[2 % QUARTER]) + (s[1] + s[3 % QUARTER]);
}

// Rows first..last of one panel; N vectors wide. Two chains of sums hide the latency where registers allow.
#define FORWARD(N)                                                                                                     \
  static void NAME(forward_panel_##N)(int64_t first, int64_t last, const int64_t *restrict crow,                       \
                                      const int64_t *restrict col, const REAL *restrict values,                        \
                                      const REAL *restrict bias, const REAL *restrict panel, REAL *restrict y,         \
                                      int64_t batch, int64_t features, int64_t from) {                                 \
    enum { W = N * BYTES / sizeof(REAL), PAIRS = N <= 4 };                                                             \
    REAL tile[TILE * W] __attribute__((aligned(64)));                                                                  \
    for (int64_t r0 = first; r0 < last; r0 += TILE) {                                                                  \
      int count = last - r0 < TILE ? (int)(last - r0) : TILE;                                                          \
      for (int q = 0; q < count; q++) {                                                                                \
        int64_t e = crow[r0 + q], end = crow[r0 + q + 1];                                                              \
        V a[N], c[N];                                                                                                  \
        UNROLL for (int k = 0; k < N; k++) a[k] = (V){0} + (bias ? bias[r0 + q] : 0);                                  \
        if (PAIRS) {                                                                                                   \
          UNROLL for (int k = 0; k < N; k++) c[k] = (V){0};                                                            \
          for (; e + 1 < end; e += 2) {                                                                                \
            const V *p = (const V *)(panel + col[e] * W), *s = (const V *)(panel + col[e + 1] * W);                    \
            REAL v = values[e], w = values[e + 1];                                                                     \
            UNROLL for (int k = 0; k < N; k++) {                                                                       \
              a[k] += v * p[k];                                                                                        \
              c[k] += w * s[k];                                                                                        \
            }                                                                                                          \
          }                                                                                                            \
          UNROLL for (int k = 0; k < N; k++) a[k] += c[k];                                                             \
        }                                                                                                              \
        for (; e < end; e++) {                                                                                         \
          const V *p = (const V *)(panel + col[e] * W);                                                                \
          REAL v = values[e];                                                                                          \
          UNROLL for (int k = 0; k < N; k++) a[k] += v * p[k];                                                         \
        }                                                                                                              \
        UNROLL for (int k = 0; k < N; k++) *(V *)(tile + q * W + LANES * k) = a[k];                                    \
      }                                                                                                                \
      NAME(unpack)(tile, W, y, batch, features, from, r0, count);                                                      \
    }                                                                                                                  \
  }
FORWARD(2)
FORWARD(4)
FORWARD(8)
#undef FORWARD

// Columns first..last of one panel: x and the sums of gx stay in registers, each g is loaded once for both gradients.
#define BACKWARD(N)                                                                                                    \
  INLINE void NAME(backward_any_##N)(int64_t first, int64_t last, const int64_t *restrict ccol,                        \
                                     const int64_t *restrict row, const REAL *restrict values,                         \
                                     const REAL *restrict xs, const REAL *restrict gs, REAL *restrict gx,              \
                                     REAL *restrict gv, int64_t batch, int64_t features, int64_t from, int need_x,     \
                                     int need_v) {                                                                     \
    enum { W = N * BYTES / sizeof(REAL) };                                                                             \
    REAL tile[TILE * W] __attribute__((aligned(64)));                                                                  \
    for (int64_t c0 = first; c0 < last; c0 += TILE) {                                                                  \
      int count = last - c0 < TILE ? (int)(last - c0) : TILE;                                                          \
      for (int q = 0; q < count; q++) {                                                                                \
        V a[N], x[N];                                                                                                  \
        UNROLL for (int k = 0; k < N; k++) {                                                                           \
          a[k] = (V){0};                                                                                               \
          if (need_v) x[k] = *(const V *)(xs + (c0 + q) * W + LANES * k);                                              \
        }                                                                                                              \
        for (int64_t e = ccol[c0 + q]; e < ccol[c0 + q + 1]; e++) {                                                    \
          const V *g = (const V *)(gs + row[e] * W);                                                                   \
          V d = (V){0};                                                                                                \
          REAL v = need_x ? values[e] : 0;                                                                             \
          UNROLL for (int k = 0; k < N; k++) {                                                                         \
            V loaded = g[k];                                                                                           \
            if (need_x) a[k] += v * loaded;                                                                            \
            if (need_v) d += x[k] * loaded;                                                                            \
          }                                                                                                            \
          if (need_v) gv[e] = from ? gv[e] + NAME(sum)(d) : NAME(sum)(d);                                            \
        }                                                                                                              \
        if (need_x) UNROLL for (int k = 0; k < N; k++) *(V *)(tile + q * W + LANES * k) = a[k];                        \
      }                                                                                                                \
      if (need_x) NAME(unpack)(tile, W, gx, batch, features, from, c0, count);                                         \
    }                                                                                                                  \
  }                                                                                                                    \
  static void NAME(backward_panel_##N)(int64_t first, int64_t last, const int64_t *ccol, const int64_t *row,           \
                                       const REAL *values, const REAL *xs, const REAL *gs, REAL *gx, REAL *gv,         \
                                       int64_t batch, int64_t features, int64_t from) {                                \
    if (gx && gv)                                                                                                      \
      NAME(backward_any_##N)(first, last, ccol, row, values, xs, gs, gx, gv, batch, features, from, 1, 1);             \
    else if (gx)                                                                                                       \
      NAME(backward_any_##N)(first, last, ccol, row, values, xs, gs, gx, gv, batch, features, from, 1, 0);             \
    else                                                                                                               \
      NAME(backward_any_##N)(first, last, ccol, row, values, xs, gs, gx, gv, batch, features, from, 0, 1);             \
  }
BACKWARD(2)
BACKWARD(4)
BACKWARD(8)
#undef BACKWARD

// One input at a time: a dot product a row.
static void NAME(forward_single)(int64_t first, int64_t last, const int64_t *restrict crow, const int64_t *restrict col,
                                 const REAL *restrict values, const REAL *restrict bias, const REAL *restrict x,
                                 REAL *restrict y) {
  for (int64_t r = first; r < last; r++) {
    REAL s[8] = {0};
    int64_t e = crow[r], end = crow[r + 1];
    for (; e + 8 <= end; e += 8) UNROLL for (int i = 0; i < 8; i++) s[i] += values[e + i] * x[col[e + i]];
    for (; e < end; e++) s[0] += values[e] * x[col[e]];
    y[r] = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7])) + (bias ? bias[r] : 0);
  }
}

static int NAME(forward)(int64_t out, int64_t in, int64_t batch, int threads, const int64_t *crow, const int64_t *col,
                         const REAL *values, const REAL *bias, const REAL *x, REAL *y) {
  int packs = batch > 3, vectors = panel_vectors(in, batch, BYTES, LANES, 8, 640 * 1024), width = vectors * LANES;
  int64_t panels = (batch + width - 1) / width, blocks = (in + 255) / 256;
  REAL *packed = packs ? allocate(panels * in * width * (int64_t)sizeof(REAL)) : 0;
  if (packs && !packed) return 1;
#pragma omp parallel num_threads(threads)
  {
    int own = THREAD, all = omp_get_num_threads();
    int64_t first = share(crow, out, own, all), last = share(crow, out, own + 1, all);
    if (packs) {
#pragma omp for schedule(static)
      for (int64_t task = 0; task < panels * blocks; task++) {
        int64_t p = task / blocks, j = task % blocks * 256;
        NAME(pack)(x, batch, in, p * width, width, j, j + 256 < in ? j + 256 : in, packed + p * in * width);
      }
      for (int64_t p = 0; p < panels; p++) {
        const REAL *panel = packed + p * in * width;
        if (vectors == 8) NAME(forward_panel_8)(first, last, crow, col, values, bias, panel, y, batch, out, p * width);
        else if (vectors == 4) NAME(forward_panel_4)(first, last, crow, col, values, bias, panel, y, batch, out, p * width);
        else NAME(forward_panel_2)(first, last, crow, col, values, bias, panel, y, batch, out, p * width);
      }
    } else {
      for (int64_t b = 0; b < batch; b++)
        NAME(forward_single)(first, last, crow, col, values, bias, x + b * in, y + b * out);
    }
  }
  free(packed);
  return 0;
}

static int NAME(backward)(int64_t out, int64_t in, int64_t batch, int threads, const int64_t *ccol, const int64_t *row,
                          const int64_t *order, const REAL *values, const REAL *x, const REAL *gy, REAL *gx, REAL *gv) {
  int64_t nnz = ccol[in], size = sizeof(REAL);
  int vectors = panel_vectors(out, batch, BYTES, LANES, MOST_BACKWARD, 640 * 1024), width = vectors * LANES;
  int64_t panels = (batch + width - 1) / width, out_blocks = (out + 255) / 256, in_blocks = gv ? (in + 255) / 256 : 0;
  REAL *gs = allocate(panels * out * width * size), *xs = gv ? allocate(panels * in * width * size) : 0;
  REAL *by_column = allocate(nnz * size), *grads = gv ? allocate(nnz * size) : 0;
  int64_t *rows = allocate(nnz * (int64_t)sizeof *rows);
  int failed = !gs || !by_column || !rows || (gv && (!xs || !grads));
  if (!failed) {
#pragma omp parallel num_threads(threads)
    {
      int64_t blocks = in_blocks + out_blocks;
#pragma omp for schedule(static) nowait
      for (int64_t task = 0; task < panels * blocks; task++) {
        int64_t p = task / blocks, block = task % blocks;
        int of_x = block < in_blocks;
        int64_t features = of_x ? in : out, j = (of_x ? block : block - in_blocks) * 256;
        NAME(pack)(of_x ? x : gy, batch, features, p * width, width, j, j + 256 < features ? j + 256 : features,
                   (of_x ? xs : gs) + p * features * width);
      }
#pragma omp for schedule(static)
      for (int64_t e = 0; e < nnz; e++) {
        by_column[e] = values[order[e]];
        rows[e] = row[order[e]];
      }
      int own = THREAD, all = omp_get_num_threads();
      int64_t first = share(ccol, in, own, all), last = share(ccol, in, own + 1, all);
      for (int64_t p = 0; p < panels; p++) {
        const REAL *xp = gv ? xs + p * in * width : 0, *gp = gs + p * out * width;
        if (vectors == 8)
          NAME(backward_panel_8)(first, last, ccol, rows, by_column, xp, gp, gx, grads, batch, in, p * width);
        else if (vectors == 4)
          NAME(backward_panel_4)(first, last, ccol, rows, by_column, xp, gp, gx, grads, batch, in, p * width);
        else
          NAME(backward_panel_2)(first, last, ccol, rows, by_column, xp, gp, gx, grads, batch, in, p * width);
      }
      if (gv)
        for (int64_t e = ccol[first]; e < ccol[last]; e++) gv[order[e]] = panels ? grads[e] : 0;
    }
  }
  free(gs);
  free(xs);
  free(by_column);
  free(grads);
  free(rows);
  return failed;
}
#undef V
#undef LANES
#undef Q
#undef QUARTER
