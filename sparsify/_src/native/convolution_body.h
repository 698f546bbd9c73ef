// The kernels for one instruction set, ISA with vectors of BYTES. convolution.c includes this for each; it includes
// itself for each type REAL of the values.

#ifndef REAL
#define REAL float
#define REAL_BYTES 4
#include "convolution_body.h"
#undef REAL
#undef REAL_BYTES
#define REAL double
#define REAL_BYTES 8
#include "convolution_body.h"
#undef REAL
#undef REAL_BYTES
#else

#include "vectors_body.h"

// x[from..from + images][channel][pixel] -> panel[at[pixel]], for one channel. `total`, if there, gets the sum of all.
static void NAME(pack_channel)(const sizes *s, const REAL *restrict x, int64_t channels, int64_t channel,
                               int64_t pixels, const int32_t *restrict at, REAL *restrict panel, REAL *total) {
  const int64_t between = channels * pixels;  // from one image to the next
  const REAL *first = x + s->from * between + channel * pixels;
  REAL sum = 0;
  if (!s->across) {
    for (int64_t i = 0; i < s->images; i++, at += pixels)
      for (int64_t p = 0; p < pixels; p++) panel[at[p]] = first[i * between + p];
    if (total)
      for (int64_t i = 0; i < s->images; i++)
        for (int64_t p = 0; p < pixels; p++) sum += first[i * between + p];
  } else {
    VECTOR sums = {0};
    for (int64_t p = 0; p < pixels; p += LANES) {
      // The last pixels are taken together with some before them, if there are any.
      const int64_t from = p + LANES <= pixels || pixels < LANES ? p : pixels - LANES;
      const int columns = pixels < LANES ? (int)pixels : LANES;
      VECTOR r[LANES];
      if (columns == LANES && s->images == LANES) {
        UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const VECTOR *)(first + i * between + from);
      } else {
        UNROLL for (int i = 0; i < LANES; i++) r[i] = (VECTOR){0};
        for (int i = 0; i < s->images; i++) memcpy(&r[i], first + i * between + from, columns * sizeof(REAL));
      }
      NAME(transpose)(r);
      if (columns == LANES) {
        UNROLL for (int i = 0; i < LANES; i++) *(VECTOR *)(panel + (int64_t)at[from + i] * LANES) = r[i];
      } else
        for (int i = 0; i < columns; i++) *(VECTOR *)(panel + (int64_t)at[from + i] * LANES) = r[i];
      if (total)
        for (int i = (int)(p - from); i < columns; i++) sums += r[i];
    }
    if (total)
      for (int i = 0; i < LANES; i++) sum += sums[i];
  }
  if (total) *total = s->from ? *total + sum : sum;
}

// panel[at[pixel]] -> y[from..from + images][channel][pixel]
static void NAME(unpack_channel)(const sizes *s, const REAL *restrict panel, const int32_t *restrict at,
                                 REAL *restrict y, int64_t channels, int64_t channel, int64_t pixels) {
  const int64_t between = channels * pixels;
  REAL *first = y + s->from * between + channel * pixels;
  if (!s->across) {
    for (int64_t i = 0; i < s->images; i++, at += pixels)
      for (int64_t p = 0; p < pixels; p++) first[i * between + p] = panel[at[p]];
    return;
  }
  for (int64_t p = 0; p < pixels; p += LANES) {
    const int64_t from = p + LANES <= pixels || pixels < LANES ? p : pixels - LANES;
    const int columns = pixels < LANES ? (int)pixels : LANES;
    VECTOR r[LANES];
    if (columns == LANES) {
      UNROLL for (int i = 0; i < LANES; i++) r[i] = *(const VECTOR *)(panel + (int64_t)at[from + i] * LANES);
    } else {
      UNROLL for (int i = 0; i < LANES; i++) r[i] = (VECTOR){0};
      for (int i = 0; i < columns; i++) r[i] = *(const VECTOR *)(panel + (int64_t)at[from + i] * LANES);
    }
    NAME(transpose)(r);
    if (columns == LANES && s->images == LANES) {
      UNROLL for (int i = 0; i < LANES; i++) *(VECTOR *)(first + i * between + from) = r[i];
    } else
      for (int i = 0; i < s->images; i++) memcpy(first + i * between + from, &r[i], columns * sizeof(REAL));
  }
}

// Zeros at these places of a channel.
static void NAME(clear)(const sizes *s, REAL *restrict channel, const int32_t *restrict places, int64_t count) {
  if (s->across)
    for (int64_t i = 0; i < count; i++) *(VECTOR *)(channel + (int64_t)places[i] * LANES) = (VECTOR){0};
  else
    for (int64_t i = 0; i < count; i++) channel[places[i]] = 0;
}

// What threads share of a panel and what is made of it.
typedef struct {
  const convolution *c;
  const sizes *s;
  const REAL *panel;       // its first channel
  const int32_t *offsets;  // of each connection that is met, in places
  const int64_t *begins;   // of each row, or of each phase and channel of a share: its first connection; one more
  const REAL *weights;     // of each connection that is met
  REAL *sums, *x;          // (row, vector, lane) of the result, and of x backward
  REAL *found;             // backward, of each connection that is met: the gradient of its value
  int64_t channels;        // backward, of the share
} NAME(job);

// One strip of the rows first..last, forward.
INLINE void NAME(forward)(const NAME(job) *j, int64_t strip, int64_t first, int64_t last, const int vectors) {
  const sizes *s = j->s;
  const int64_t unit = s->unit * sizeof(REAL), of_group = s->outs / j->c->groups;
  const int64_t group_places = s->ins / j->c->groups * s->x_places;
  const REAL *restrict bias = j->c->linear.bias;
  int64_t at[8];
  UNROLL for (int i = 0; i < vectors; i++) at[i] = s->at[strip * vectors + i] * (int64_t)sizeof(REAL);
  for (int64_t r = first; r < last; r++) {
    const char *panel = (const char *)j->panel + (of_group == s->outs ? 0 : r / of_group * group_places * unit);
    const int32_t *restrict offset = j->offsets + j->begins[r], *end = j->offsets + j->begins[r + 1];
    const REAL *restrict weight = j->weights + j->begins[r];
    VECTOR sums[8], more[4];
    UNROLL for (int i = 0; i < vectors; i++) sums[i] = (VECTOR){0} + (bias ? bias[r] : 0);
    if (vectors <= 4) {  // of which each would wait for the one before
      UNROLL for (int i = 0; i < vectors; i++) more[i] = (VECTOR){0};
      for (; offset + 1 < end; offset += 2, weight += 2) {
        const char *one = panel + offset[0] * unit, *two = panel + offset[1] * unit;
        const REAL v = weight[0], w = weight[1];
        UNROLL for (int i = 0; i < vectors; i++) {
          sums[i] += v * *(const VECTOR *)(one + at[i]);
          more[i] += w * *(const VECTOR *)(two + at[i]);
        }
      }
      UNROLL for (int i = 0; i < vectors; i++) sums[i] += more[i];
    }
    for (; offset < end; offset++, weight++) {
      const char *one = panel + *offset * unit;
      const REAL v = *weight;
      UNROLL for (int i = 0; i < vectors; i++) sums[i] += v * *(const VECTOR *)(one + at[i]);
    }
    REAL *to = j->sums + (r * s->vectors + strip * vectors) * LANES;
    UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(to + i * LANES) = sums[i];
  }
}

// One strip of all channels of a share, backward. The sums of lanes that values' gradients need are made for LANES
// connections together.
INLINE void NAME(backward)(const NAME(job) *j, int64_t strip, int64_t phase, const int vectors, const bool needs_x,
                           const bool needs_values) {
  const sizes *s = j->s;
  const int64_t unit = s->unit * sizeof(REAL), *begins = j->begins + phase * j->channels;
  const char *panel = (const char *)j->panel;
  REAL *restrict found = j->found + begins[0];
  int64_t at[8];
  VECTOR dots[LANES];
  int pending = 0;
  UNROLL for (int i = 0; i < vectors; i++) at[i] = s->at[strip * vectors + i] * (int64_t)sizeof(REAL);
  for (int64_t channel = 0; channel < j->channels; channel++) {
    const int64_t here = (channel * s->vectors + strip * vectors) * LANES;
    const int32_t *restrict offset = j->offsets + begins[channel], *end = j->offsets + begins[channel + 1];
    const REAL *restrict weight = j->weights + begins[channel];
    VECTOR sums[8], x[8];
    UNROLL for (int i = 0; i < vectors; i++) {
      if (needs_x) sums[i] = (VECTOR){0};
      if (needs_values) x[i] = *(const VECTOR *)(j->x + here + i * LANES);
    }
    for (; offset < end; offset++) {
      const char *g = panel + *offset * unit;
      const REAL v = needs_x ? *weight++ : 0;
      VECTOR dot = {0};
      UNROLL for (int i = 0; i < vectors; i++) {
        VECTOR loaded = *(const VECTOR *)(g + at[i]);
        IN_REGISTER(loaded);
        if (needs_x) sums[i] += v * loaded;
        if (needs_values) dot += x[i] * loaded;
      }
      if (needs_values) {
        dots[pending] = dot;
        if (++pending == LANES) {
          *(VECTOR *)found += NAME(sums)(dots);
          found += LANES;
          pending = 0;
        }
      }
    }
    if (needs_x) UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(j->sums + here + i * LANES) = sums[i];
  }
  if (pending) {
    const VECTOR last = NAME(sums)(dots);
    for (int i = 0; i < pending; i++) found[i] += last[i];
  }
}

#define WIDTH(n)                                                                                                  \
  static void NAME(forward_##n)(const NAME(job) *j, int64_t strip, int64_t first, int64_t last) {                 \
    NAME(forward)(j, strip, first, last, n);                                                                      \
  }                                                                                                               \
  static void NAME(backward_##n)(const NAME(job) *j, int64_t strip, int64_t phase, bool needs_x, bool needs_v) {  \
    if (needs_x && needs_v) NAME(backward)(j, strip, phase, n, true, true);                                       \
    else if (needs_x) NAME(backward)(j, strip, phase, n, true, false);                                            \
    else NAME(backward)(j, strip, phase, n, false, true);                                                         \
  }
WIDTH(1)
WIDTH(2)
WIDTH(4)
#if MOST_VECTORS == 8
WIDTH(6)
WIDTH(7)
WIDTH(8)
#endif
#undef WIDTH

// The offsets of the connections of the rows first..last, and where the rows begin. `leads` is where each column does.
static int NAME(prepare_forward)(const convolution *c, const int32_t *restrict leads, int64_t first, int64_t last,
                                 int64_t *restrict begins, int32_t *restrict offsets) {
  const product *p = &c->linear;
  const int bytes = p->index_bytes;
  int64_t errors = 0;
  for (int64_t r = first; r < last; r++) {
    const int64_t begin = index_of(p->starts, bytes, r), end = index_of(p->starts, bytes, r + 1);
    if (begin < 0 || begin > end || end > p->nnz) return OUTSIDE;
    begins[r] = begin;
    int64_t before = -1;
    for (int64_t e = begin; e < end; e++) {
      const int64_t column = index_of(p->indices, bytes, e);
      if ((uint64_t)column >= (uint64_t)p->in) return OUTSIDE;
      errors |= column - before - 1;
      before = column;
      offsets[e] = leads[column];
    }
  }
  if (last == p->out) begins[last] = p->nnz;
  return errors < 0 ? OUTSIDE : DONE;
}

// The same backward, of the columns of the channels first..last of each group, by phase, channel and tap: `begins` of
// each phase and channel, `offsets`, `weights`, and in `places` where each connection is in `values`.
static int NAME(prepare_backward)(const convolution *c, const sizes *s, int64_t first, int64_t last,
                                  int64_t *restrict begins, int32_t *restrict offsets, REAL *restrict weights,
                                  int64_t *restrict places) {
  const product *p = &c->linear;
  const int bytes = p->index_bytes;
  const int64_t of_group = s->outs / c->groups, own = last - first, channels = own * c->groups, taps = s->taps;
  const REAL *restrict values = p->values;
  memset(begins, 0, (s->phases * channels + 1) * sizeof *begins);
  for (int fills = 0; fills < 2; fills++) {
    int64_t errors = 0;
    for (int64_t channel = first; channel < last; channel++)
      for (int64_t t = 0; t < taps; t++) {
        const int64_t column = channel * taps + t;
        const int64_t begin = index_of(p->starts, bytes, column), end = index_of(p->starts, bytes, column + 1);
        if (begin < 0 || begin > end || end > p->nnz) return OUTSIDE;
        int64_t phase, shift, before = -1, place_before = -1;
        tap_leads(c, s->grid, t, &phase, &shift);
        int64_t *next = begins + phase * channels + (channel - first);  // of group 0
        for (int64_t e = begin; e < end; e++) {
          const int64_t row = index_of(p->indices, bytes, e);
          if ((uint64_t)row >= (uint64_t)p->out) return OUTSIDE;
          int64_t *counter = c->groups == 1 ? next : next + row / of_group * own;
          if (!fills) {
            ++*counter;
            errors |= row - before - 1;
            before = row;
            continue;
          }
          const int64_t place = index_of(p->order, bytes, e), here = (*counter)++;
          if ((uint64_t)place >= (uint64_t)p->nnz) return OUTSIDE;
          errors |= place - place_before - 1;
          place_before = place;
          places[here] = place;
          weights[here] = values[place];
          offsets[here] = (int32_t)(row * s->y_places - shift);
        }
      }
    if (errors < 0) return OUTSIDE;
    // Counts become beginnings; when all is filled in, each has become the next one's.
    const int64_t all = s->phases * channels;
    if (!fills)
      for (int64_t i = 0, sum = 0; i <= all; i++) {
        const int64_t count = i < all ? begins[i] : 0;
        begins[i] = sum;
        sum += count;
      }
    else {
      memmove(begins + 1, begins, all * sizeof *begins);
      begins[0] = 0;
    }
  }
  return DONE;
}

// A convolution of the images from..from + images, LANES of them at a time if lanes go `across` images, else all.
static int NAME(run)(const convolution *c, int64_t from, int64_t images, bool across) {
  typedef void (*forward_form)(const NAME(job) *, int64_t, int64_t, int64_t);
  typedef void (*backward_form)(const NAME(job) *, int64_t, int64_t, bool, bool);
#if MOST_VECTORS == 8
  static const forward_form forward_forms[] = {NULL, NAME(forward_1), NAME(forward_2), NULL, NAME(forward_4),
                                               NULL, NAME(forward_6), NAME(forward_7), NAME(forward_8)};
  static const backward_form backward_forms[] = {NULL, NAME(backward_1), NAME(backward_2), NULL, NAME(backward_4),
                                                 NULL, NAME(backward_6), NAME(backward_7), NAME(backward_8)};
#else
  static const forward_form forward_forms[] = {NULL, NAME(forward_1), NAME(forward_2), NULL, NAME(forward_4)};
  static const backward_form backward_forms[] = {NULL, NAME(backward_1), NAME(backward_2), NULL, NAME(backward_4)};
#endif
  const product *p = &c->linear;
  const bool backward = p->is_backward, needs_x = backward && p->result, needs_values = backward && p->grad_values;
  const int64_t most_images = across ? LANES : images, columns = p->in / of(c->kernel);  // channels of a group
  sizes s;
  const int64_t tables = (measure(c, &s, from, most_images, across, LANES, MOST_VECTORS) + 63) / 64 * 64;
  const int64_t sources = backward ? s.outs : s.ins, places = backward ? s.y_places : s.x_places;
  const int64_t starts = backward ? p->in : p->out;
  if (index_of(p->starts, p->index_bytes, 0) != 0 || index_of(p->starts, p->index_bytes, starts) != p->nnz)
    return OUTSIDE;
  if (sources * places + s.before >= INT32_MAX) return NO_MEMORY;  // no machine has a panel of so many vectors
  if (s.vectors >= INT32_MAX / (across ? 1 : LANES)) return NO_MEMORY;
  // All threads read the tables, the panel, and forward what is prepared.
  const int64_t panel_bytes = ((s.before + sources * places * s.unit + s.after) * REAL_BYTES + 63) / 64 * 64;
  const int64_t leads_bytes = (p->in * 4 + 63) / 64 * 64, begins_bytes = ((p->out + 1) * 8 + 63) / 64 * 64;
  const int64_t offsets_bytes = (p->nnz * 4 + 63) / 64 * 64;
  const int64_t forward_bytes =
      backward ? 0 : leads_bytes + begins_bytes + offsets_bytes + s.outs * s.vectors * BYTES;
  scratch *common = scratch_get(COMMON, tables + panel_bytes + forward_bytes);
  if (!common) return NO_MEMORY;
  common->failed = 0;
  char *memory = common->memory;
  lay_out(c, &s, memory, MOST_VECTORS);
  REAL *panel = (REAL *)(memory + tables) + s.before;
  int32_t *leads = (int32_t *)(memory + tables + panel_bytes);
  int64_t *begins = (int64_t *)((char *)leads + leads_bytes);
  int32_t *offsets = (int32_t *)((char *)begins + begins_bytes);
  REAL *sums = (REAL *)((char *)offsets + offsets_bytes);
  if (!backward)
    for (int64_t i = 0; i < p->in; i++) {
      int64_t phase, shift;
      tap_leads(c, s.grid, i % s.taps, &phase, &shift);
      leads[i] = (int32_t)(i / s.taps * s.x_places + phase * s.area + shift);
    }
  int status = DONE;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    const int64_t own = omp_get_thread_num(), all = omp_get_num_threads();
    sizes here = s;
    NAME(job) j = {.c = c, .s = &here, .panel = panel, .channels = 0};
    // Of each thread: which channels it packs, and which rows it prepares and unpacks; backward, which columns it has.
    const int64_t pack_first = sources * own / all, pack_last = sources * (own + 1) / all;
    const int64_t first = share_begins(p->starts, p->index_bytes, backward ? columns : p->out, backward ? s.taps : 1,
                                       own, all);
    const int64_t last = share_begins(p->starts, p->index_bytes, backward ? columns : p->out, backward ? s.taps : 1,
                                      own + 1, all);
    int64_t *own_places = NULL;
    scratch *private = NULL;
    if (!backward) {
      status = NAME(prepare_forward)(c, leads, first, last, begins, offsets);
      j.begins = begins;
      j.offsets = offsets;
      j.weights = p->values;
      j.sums = sums;
    } else if (first < last) {
      const int64_t begin = index_of(p->starts, p->index_bytes, first * s.taps);
      const int64_t end = index_of(p->starts, p->index_bytes, last * s.taps);
      if (begin < 0 || begin > end || end > p->nnz) status = OUTSIDE;
      else {
        const int64_t met = end - begin, channels = (last - first) * c->groups;
        const int64_t of_result = channels * s.vectors * BYTES, of_places = met * 8;
        const int64_t of_begins = (s.phases * channels + 1) * 8, padded = met + 2 * LANES;
        private = scratch_get(OWN, 2 * of_result + of_places + of_begins + padded * (2 * REAL_BYTES + 4) + 4 * 64);
        if (!private) status = NO_MEMORY;
        else {
          j.sums = private->memory;
          j.x = (REAL *)((char *)j.sums + of_result);
          own_places = (int64_t *)((char *)j.x + of_result);
          int64_t *own_begins = own_places + met;
          REAL *weights = (REAL *)(own_begins + s.phases * channels + 1);
          j.found = weights + padded;
          int32_t *own_offsets = (int32_t *)(j.found + padded);
          memset(j.found, 0, padded * sizeof(REAL));
          for (int64_t i = 0; needs_values && i < channels; i++)
            NAME(clear)(&s, j.x + i * s.vectors * LANES, s.idle, s.idle_count);
          status = NAME(prepare_backward)(c, &s, first, last, own_begins, own_offsets, weights, own_places);
          j.begins = own_begins;
          j.offsets = own_offsets;
          j.weights = weights;
          j.channels = channels;
        }
      }
    }
    if (own == 0 && s.before) memset(panel - s.before, 0, s.before * sizeof(REAL));
    for (int64_t i = pack_first; i < pack_last; i++)
      NAME(clear)(&s, panel + i * places * s.unit, s.holes, s.hole_count);
    if (own == all - 1) memset(panel + sources * places * s.unit, 0, s.after * sizeof(REAL));
    int failed = 0;
    for (int64_t done = 0; done < images; done += most_images) {
      here.from = from + done;
      here.images = images - done < most_images ? images - done : most_images;
      for (int64_t channel = pack_first; channel < pack_last; channel++)
        NAME(pack_channel)(&here, backward ? p->grad : p->x, sources, channel, backward ? s.out_pixels : s.in_pixels,
                           s.source_at, panel + channel * places * s.unit,
                           p->grad_bias ? (REAL *)p->grad_bias + channel : NULL);
      if (status) {
#pragma omp atomic write
        common->failed = 1;
      }
#pragma omp barrier
#pragma omp atomic read
      failed = common->failed;
      if (!backward) {
        if (!failed) {
          // Strips, and rows where there are few of them.
          const int64_t parts = s.strips >= 4 * all ? 1 : (4 * all + s.strips - 1) / s.strips, units = s.strips * parts;
          for (int64_t u = units * own / all; u < units * (own + 1) / all; u++)
            forward_forms[s.width](&j, u / parts, p->out * (u % parts) / parts, p->out * (u % parts + 1) / parts);
        }
#pragma omp barrier
        if (!failed)
          for (int64_t r = first; r < last; r++)
            NAME(unpack_channel)(&here, sums + r * s.vectors * LANES, s.result_at, p->result, s.outs, r, s.out_pixels);
      } else {
        if (!failed) {
          for (int64_t i = 0; needs_values && i < j.channels; i++) {
            const int64_t channel = i / (last - first) * columns + first + i % (last - first);
            NAME(pack_channel)(&here, p->x, s.ins, channel, s.in_pixels, s.result_at, j.x + i * s.vectors * LANES, NULL);
          }
          for (int64_t phase = 0; j.channels && phase < s.phases; phase++)
            for (int64_t strip = s.first_strip[phase]; strip < s.first_strip[phase + 1]; strip++)
              backward_forms[s.width](&j, strip, phase, needs_x, needs_values);
          for (int64_t i = 0; needs_x && i < j.channels; i++) {
            const int64_t channel = i / (last - first) * columns + first + i % (last - first);
            NAME(unpack_channel)(&here, j.sums + i * s.vectors * LANES, s.result_at, p->result, s.ins, channel,
                                 s.in_pixels);
          }
        }
#pragma omp barrier
      }
    }
    if (needs_values && !failed && j.channels) {
      REAL *restrict gv = p->grad_values;
      for (int64_t e = 0; e < j.begins[s.phases * j.channels]; e++)
        gv[own_places[e]] = from ? gv[own_places[e]] + j.found[e] : j.found[e];
    }
    scratch_give_back(private);
  }
  scratch_give_back(common);
  return status;
}

#undef VECTOR
#undef LANES
#undef LOW
#undef HIGH
#endif
