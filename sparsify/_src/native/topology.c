// What an evolution does to a topology, in linear time: topology.py says what each function means, and does the same
// without them where there is no compiler. They return one of the statuses in library.h.

#include <stdlib.h>
#include <string.h>

#include "library.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };  // radix sort and radix select look at so many bits at a time

#define PASTED(name, bits) sparsify_##name##_##bits
#define PASTE(name, bits) PASTED(name, bits)
#define NAMED(name) PASTE(name, BITS)

#define BITS 32
#define INDEX int32_t
#define REAL float
#define KEY uint32_t
#include "topology_body.h"
#undef BITS
#undef INDEX
#undef REAL
#undef KEY

#define BITS 64
#define INDEX int64_t
#define REAL double
#define KEY uint64_t
#include "topology_body.h"
#undef BITS
#undef INDEX
#undef REAL
#undef KEY

// Sorts numbers in [0, total): radix sort, a digit at a time, from the lowest.
int sparsify_sort(int64_t *numbers, int64_t n, int64_t total) {
  int64_t *from = numbers, *to = malloc((size_t)n * sizeof *to), *spare = to;
  if (!to) return NO_MEMORY;
  for (int shift = 0; shift < 63 && (total - 1) >> shift; shift += DIGIT_BITS) {
    int64_t start[DIGITS + 1] = {0};
    for (int64_t i = 0; i < n; i++) start[(from[i] >> shift & (DIGITS - 1)) + 1]++;
    for (int d = 0; d < DIGITS; d++) start[d + 1] += start[d];
    for (int64_t i = 0; i < n; i++) to[start[from[i] >> shift & (DIGITS - 1)]++] = from[i];
    int64_t *swap = from;
    from = to;
    to = swap;
  }
  if (from != numbers) memcpy(numbers, from, (size_t)n * sizeof *numbers);
  free(spare);
  return DONE;
}

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
  return DONE;
}

// The places of sorted numbers among what sorted `flat` leaves free: 0 is the first of these.
int sparsify_places(const int64_t *flat, int64_t nnz, const int64_t *number, int64_t count, int64_t *place) {
  int64_t before = 0;
  for (int64_t i = 0; i < count; i++) {
    while (before < nnz && flat[before] - before <= number[i]) before++;
    place[i] = number[i] + before;
  }
  return DONE;
}

// The first of sorted places that sorted `flat` holds too; -1 where there is none.
int sparsify_common(const int64_t *flat, int64_t nnz, const int64_t *places, int64_t count, int64_t *common) {
  *common = -1;
  for (int64_t i = 0, e = 0; i < count && *common < 0; i++) {
    while (e < nnz && flat[e] < places[i]) e++;
    if (e < nnz && flat[e] == places[i]) *common = places[i];
  }
  return DONE;
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
    const bool is_grown = b < a;
    merged[k + g] = is_grown ? b : a;
    origin[k + g] = is_grown ? nnz + g : old;
    k += !is_grown;
    g += is_grown;
  }
  for (; k < last; k++) {
    merged[k + g] = flat[kept[k]];
    origin[k + g] = kept[k];
  }
  for (; g < count; g++) {
    merged[k + g] = grown[g];
    origin[k + g] = nnz + g;
  }
  return DONE;
}

// Some entries of each of `count` arrays: copied to a sample where `takes`, else compared with what stands there. A row
// for each array: its address, that of the positions, how many these are, bytes of an entry, address of the sample.
// Returns 1 where an entry differs.
int sparsify_sample(int64_t count, const int64_t *rows, bool takes) {
  for (const int64_t *row = rows; row < rows + 5 * count; row += 5) {
    const char *array = (const char *)(intptr_t)row[0];
    const int64_t *positions = (const int64_t *)(intptr_t)row[1];
    const size_t bytes = (size_t)row[3];
    char *sample = (char *)(intptr_t)row[4];
    for (int64_t i = 0; i < row[2]; i++, sample += bytes) {
      const char *entry = array + (size_t)positions[i] * bytes;
      if (takes)
        memcpy(sample, entry, bytes);
      else if (memcmp(sample, entry, bytes))
        return 1;
    }
  }
  return 0;
}
