// What an evolution does to a topology, in linear time: topology.py says what each function means, and does the same
// without them where there is no compiler. They return 0, or one of these two.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

enum { NO_MEMORY = 1, OUTSIDE = 2 };

// Sorts numbers in [0, total): radix sort, 11 bits at a time.
int sparsify_sort(int64_t *numbers, int64_t n, int64_t total) {
  enum { BITS = 11, SIZE = 1 << BITS };
  int64_t *from = numbers, *to = malloc((size_t)n * sizeof *to), *spare = to;
  if (!to) return NO_MEMORY;
  for (int shift = 0; shift < 63 && (total - 1) >> shift; shift += BITS) {
    int64_t start[SIZE + 1] = {0};
    for (int64_t i = 0; i < n; i++) start[(from[i] >> shift & (SIZE - 1)) + 1]++;
    for (int d = 0; d < SIZE; d++) start[d + 1] += start[d];
    for (int64_t i = 0; i < n; i++) to[start[from[i] >> shift & (SIZE - 1)]++] = from[i];
    int64_t *swap = from;
    from = to;
    to = swap;
  }
  if (from != numbers) memcpy(numbers, from, (size_t)n * sizeof *numbers);
  free(spare);
  return 0;
}

// flat[e] = row * in + col, for what begins at 0, ends at nnz, and rises within each row.
#define FLAT(name, INDEX)                                                                                              \
  int name(const INDEX *crow, const INDEX *col, int64_t nnz, int64_t out, int64_t in, int threads, int64_t *flat) {    \
    int outside = crow[0] != 0 || crow[out] != nnz;                                                                    \
    _Pragma("omp parallel for num_threads(threads) schedule(static) reduction(| : outside)")                           \
    for (int64_t r = 0; r < out; r++) {                                                                                \
      const int64_t begin = crow[r], end = crow[r + 1];                                                                \
      if (begin < 0 || begin > end || end > nnz) {                                                                     \
        outside = 1;                                                                                                   \
        continue;                                                                                                      \
      }                                                                                                                \
      int64_t before = -1;                                                                                             \
      for (int64_t e = begin; e < end; e++) {                                                                          \
        outside |= (col[e] <= before) | (col[e] >= in);                                                                \
        before = col[e];                                                                                               \
        flat[e] = r * in + before;                                                                                     \
      }                                                                                                                \
    }                                                                                                                  \
    return outside ? OUTSIDE : 0;                                                                                      \
  }
FLAT(sparsify_flat_32, int32_t)
FLAT(sparsify_flat_64, int64_t)

// CSR and CSC of a topology, which must be sorted, unique and in range: a counting sort by column, in which each thread
// counts and then places a run of the connections.
#define INDEX_OF(name, INDEX)                                                                                          \
  int name(const int64_t *flat, int64_t nnz, int64_t out, int64_t in, int threads, INDEX *crow, INDEX *col,            \
           INDEX *ccol, INDEX *csc_row, INDEX *csc_order) {                                                            \
    int outside = nnz && (flat[0] < 0 || flat[nnz - 1] >= out * in);                                                   \
    _Pragma("omp parallel for num_threads(threads) schedule(static) reduction(| : outside)")                           \
    for (int64_t e = 1; e < nnz; e++) outside |= flat[e] <= flat[e - 1];                                               \
    if (outside) return OUTSIDE;                                                                                       \
    INDEX *places = calloc((size_t)(threads * in), sizeof(INDEX));                                                     \
    if (!places) return NO_MEMORY;                                                                                     \
    _Pragma("omp parallel num_threads(threads)") {                                                                     \
      const int own = omp_get_thread_num(), all = omp_get_num_threads();                                               \
      const int64_t first = nnz / all * own, last = own + 1 < all ? nnz / all * (own + 1) : nnz;                       \
      INDEX *place = places + own * in;                                                                                \
      int64_t row = first ? flat[first - 1] / in : -1;                                                                 \
      for (int64_t e = first; e < last; e++) {                                                                         \
        while (flat[e] >= (row + 1) * in) crow[++row] = (INDEX)e;                                                      \
        col[e] = (INDEX)(flat[e] - row * in);                                                                          \
        place[col[e]]++;                                                                                               \
      }                                                                                                                \
      if (own + 1 == all)                                                                                              \
        while (row < out) crow[++row] = (INDEX)nnz;                                                                    \
      _Pragma("omp barrier") _Pragma("omp single") {                                                                   \
        INDEX reached = 0;                                                                                             \
        for (int64_t c = 0; c < in; c++) {                                                                             \
          ccol[c] = reached;                                                                                           \
          for (int t = 0; t < all; t++) {                                                                              \
            INDEX count = places[t * in + c];                                                                          \
            places[t * in + c] = reached;                                                                              \
            reached += count;                                                                                          \
          }                                                                                                            \
        }                                                                                                              \
        ccol[in] = reached;                                                                                            \
      }                                                                                                                \
      row = first < last ? flat[first] / in : 0;                                                                       \
      for (int64_t e = first; e < last; e++) {                                                                         \
        while (flat[e] >= (row + 1) * in) row++;                                                                       \
        const INDEX to = place[col[e]]++;                                                                              \
        csc_row[to] = (INDEX)row;                                                                                      \
        csc_order[to] = (INDEX)e;                                                                                      \
      }                                                                                                                \
    }                                                                                                                  \
    free(places);                                                                                                      \
    return 0;                                                                                                          \
  }
INDEX_OF(sparsify_index_32, int32_t)
INDEX_OF(sparsify_index_64, int64_t)

// The sum of well-mixed bits of each number (splitmix64): another one for every other set of numbers.
int sparsify_digest(const int64_t *flat, int64_t nnz, int threads, int64_t *digest) {
  uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
  for (int64_t e = 0; e < nnz; e++) {
    uint64_t mixed = (uint64_t)flat[e] + 0x9E3779B97F4A7C15;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
    sum += mixed ^ mixed >> 31;
  }
  *digest = (int64_t)sum;
  return 0;
}

// The places of sorted ranks among what sorted `flat` leaves free.
int sparsify_places(const int64_t *flat, int64_t nnz, const int64_t *rank, int64_t count, int64_t *place) {
  int64_t before = 0;
  for (int64_t i = 0; i < count; i++) {
    while (before < nnz && flat[before] - before <= rank[i]) before++;
    place[i] = rank[i] + before;
  }
  return 0;
}

// The first of sorted places that sorted `flat` holds too; -1 where there is none.
int sparsify_common(const int64_t *flat, int64_t nnz, const int64_t *places, int64_t count, int64_t *common) {
  *common = -1;
  for (int64_t i = 0, e = 0; i < count && *common < 0; i++) {
    while (e < nnz && flat[e] < places[i]) e++;
    if (e < nnz && flat[e] == places[i]) *common = places[i];
  }
  return 0;
}

// Sorted `flat` without what does not survive, and with sorted `grown`, n in all; `origin` is where each comes from. No
// branch depends on which survives or comes next: each would be a coin's.
int sparsify_merge(const int64_t *flat, const uint8_t *survives, int64_t nnz, const int64_t *grown, int64_t count,
                    int64_t n, int64_t *merged, int64_t *origin) {
  int64_t *kept = origin + count, last = 0, k = 0, g = 0;  // read from the end of what is written from the start
  for (int64_t e = 0; e < nnz && last < n - count; e++) {
    kept[last] = e;
    last += survives[e] != 0;
  }
  while (k < last && g < count) {
    const int64_t old = kept[k], a = flat[old], b = grown[g];
    const int comes = b < a;
    merged[k + g] = comes ? b : a;
    origin[k + g] = comes ? nnz + g : old;
    k += !comes;
    g += comes;
  }
  for (; k < last; k++) {
    merged[k + g] = flat[kept[k]];
    origin[k + g] = kept[k];
  }
  for (; g < count; g++) {
    merged[k + g] = grown[g];
    origin[k + g] = nnz + g;
  }
  return 0;
}

// Positions of the `count` lowest of n scores, ascending; among equals the first. NaN is above all. Radix select: the
// bits of a number, turned so that they order as numbers do, are fixed eleven at a time from the highest.
#define LOWEST(name, REAL, KEY)                                                                                        \
  static inline KEY name##_key(REAL score) {                                                                           \
    const KEY sign = (KEY)1 << (8 * sizeof(KEY) - 1);                                                                  \
    score += 0; /* -0 becomes 0 */                                                                                     \
    if (score != score) return ~(KEY)0;                                                                                \
    KEY bits;                                                                                                          \
    memcpy(&bits, &score, sizeof bits);                                                                                \
    return bits & sign ? ~bits : bits | sign;                                                                          \
  }                                                                                                                    \
  int name(const REAL *scores, int64_t n, int64_t count, int64_t *positions) {                                         \
    if (count > n) return OUTSIDE;                                                                                     \
    enum { BITS = 11, SIZE = 1 << BITS };                                                                              \
    KEY prefix = 0, known = 0; /* of the highest key to be taken: its bits, and which are known */                     \
    int64_t left = count;      /* how many to take of those with this prefix */                                        \
    for (int shift = 8 * sizeof(KEY) - BITS; known != ~(KEY)0; shift = shift > BITS ? shift - BITS : 0) {              \
      int64_t counts[SIZE] = {0};                                                                                      \
      for (int64_t i = 0; i < n; i++) {                                                                                \
        const KEY key = name##_key(scores[i]);                                                                         \
        counts[key >> shift & (SIZE - 1)] += (key & known) == prefix;                                                  \
      }                                                                                                                \
      KEY digit = 0;                                                                                                   \
      while (left > counts[digit]) left -= counts[digit++];                                                            \
      prefix |= digit << shift;                                                                                        \
      known |= (KEY)(SIZE - 1) << shift;                                                                               \
    }                                                                                                                  \
    for (int64_t i = 0, taken = 0; taken < count; i++) { /* no branch on the score: it would be a coin's */            \
      const KEY key = name##_key(scores[i]);                                                                           \
      const int tied = (key == prefix) & (left > 0);                                                                   \
      positions[taken] = i;                                                                                            \
      taken += (key < prefix) | tied;                                                                                  \
      left -= tied;                                                                                                    \
    }                                                                                                                  \
    return 0;                                                                                                          \
  }
LOWEST(sparsify_lowest_32, float, uint32_t)
LOWEST(sparsify_lowest_64, double, uint64_t)

// Some entries of each of `count` arrays: copied to a sample where `take`, else compared with what stands there. A row
// for each array: its address, that of the positions, how many these are, bytes of an entry, address of the sample.
// Returns 1 where an entry differs.
int sparsify_sample(int64_t count, const int64_t *rows, int take) {
  for (const int64_t *row = rows; row < rows + 5 * count; row += 5) {
    const char *array = (const char *)(intptr_t)row[0];
    const int64_t *positions = (const int64_t *)(intptr_t)row[1];
    const size_t bytes = (size_t)row[3];
    char *sample = (char *)(intptr_t)row[4];
    for (int64_t i = 0; i < row[2]; i++, sample += bytes) {
      const char *entry = array + (size_t)positions[i] * bytes;
      if (take)
        memcpy(sample, entry, bytes);
      else if (memcmp(sample, entry, bytes))
        return 1;
    }
  }
  return 0;
}
