// The functions of topology.c that exist twice. topology.c includes this with BITS 32, for indices INDEX of int32_t and
// scores REAL of float, whose bits KEY holds, and with BITS 64, for int64_t and double. NAMED(flat) is sparsify_flat_32
// or sparsify_flat_64.

// flat[e] = row * in + col, for what begins at 0, ends at nnz, and rises within each row.
int NAMED(flat)(const INDEX *crow, const INDEX *col, int64_t nnz, int64_t out, int64_t in, int threads, int64_t *flat) {
  int errors = crow[0] != 0 || crow[out] != nnz;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : errors)
  for (int64_t r = 0; r < out; r++) {
    const int64_t begin = crow[r], end = crow[r + 1];
    if (begin < 0 || begin > end || end > nnz) {
      errors = true;
      continue;
    }
    int64_t before = -1;
    for (int64_t e = begin; e < end; e++) {
      errors |= (col[e] <= before) | (col[e] >= in);
      before = col[e];
      flat[e] = r * in + before;
    }
  }
  return errors ? OUTSIDE : DONE;
}

// CSR and CSC of a topology, which must be sorted, unique and in range: a counting sort by column, in which each thread
// counts and then places a run of the connections.
int NAMED(index)(const int64_t *flat, int64_t nnz, int64_t out, int64_t in, int threads, INDEX *crow, INDEX *col,
                 INDEX *ccol, INDEX *csc_row, INDEX *csc_order) {
  int errors = nnz && (flat[0] < 0 || flat[nnz - 1] >= out * in);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : errors)
  for (int64_t e = 1; e < nnz; e++) errors |= flat[e] <= flat[e - 1];
  if (errors) return OUTSIDE;
  INDEX *places = calloc((size_t)(threads * in), sizeof(INDEX));
  if (!places) return NO_MEMORY;
#pragma omp parallel num_threads(threads)
  {
    const int own = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t first = nnz / all * own, last = own + 1 < all ? nnz / all * (own + 1) : nnz;
    INDEX *place = places + own * in;
    int64_t row = first ? flat[first - 1] / in : -1;
    for (int64_t e = first; e < last; e++) {
      while (flat[e] >= (row + 1) * in) crow[++row] = (INDEX)e;
      col[e] = (INDEX)(flat[e] - row * in);
      place[col[e]]++;
    }
    if (own + 1 == all)
      while (row < out) crow[++row] = (INDEX)nnz;
#pragma omp barrier
#pragma omp single
    {
      INDEX reached = 0;
      for (int64_t c = 0; c < in; c++) {
        ccol[c] = reached;
        for (int t = 0; t < all; t++) {
          INDEX count = places[t * in + c];
          places[t * in + c] = reached;
          reached += count;
        }
      }
      ccol[in] = reached;
    }
    row = first < last ? flat[first] / in : 0;
    for (int64_t e = first; e < last; e++) {
      while (flat[e] >= (row + 1) * in) row++;
      const INDEX to = place[col[e]]++;
      csc_row[to] = (INDEX)row;
      csc_order[to] = (INDEX)e;
    }
  }
  free(places);
  return DONE;
}

// The bits of a score, turned so that they order as scores do. NaN is above all; -0 and 0 are equal.
static inline KEY NAMED(key)(REAL score) {
  const KEY sign = (KEY)1 << (BITS - 1);
  score += 0;  // -0 becomes 0
  if (score != score) return ~(KEY)0;
  KEY bits;
  memcpy(&bits, &score, sizeof bits);
  return bits & sign ? ~bits : bits | sign;
}

// Positions of the `count` lowest of n scores, ascending; among equals the first. Radix select: the bits of the highest
// key to be taken are found a digit at a time, from the highest.
int NAMED(lowest)(const REAL *scores, int64_t n, int64_t count, int64_t *positions) {
  if (count > n) return OUTSIDE;
  KEY prefix = 0, known = 0;  // of the highest key to be taken: its bits, and which are known
  int64_t left = count;       // how many to take of those with this prefix
  for (int shift = BITS - DIGIT_BITS; known != ~(KEY)0; shift = shift > DIGIT_BITS ? shift - DIGIT_BITS : 0) {
    int64_t counts[DIGITS] = {0};
    for (int64_t i = 0; i < n; i++) {
      const KEY key = NAMED(key)(scores[i]);
      counts[key >> shift & (DIGITS - 1)] += (key & known) == prefix;
    }
    KEY digit = 0;
    while (left > counts[digit]) left -= counts[digit++];
    prefix |= digit << shift;
    known |= (KEY)(DIGITS - 1) << shift;
  }
  for (int64_t i = 0, taken = 0; taken < count; i++) {  // no branch on the score: it would be a coin's
    const KEY key = NAMED(key)(scores[i]);
    const bool is_tied = (key == prefix) & (left > 0);
    positions[taken] = i;
    taken += (key < prefix) | is_tied;
    left -= is_tied;
  }
  return DONE;
}
