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
static void NAME(pack)(const sizes *s, const REAL *restrict x, int64_t channels, int64_t channel, int64_t pixels,
                       const int32_t *restrict at, REAL *restrict panel, REAL *total) {
  const int64_t between = channels * pixels;  // from one image to the next
  const REAL *first = x + s->from * between + channel * pixels;
  REAL sum = 0;
  if (s->layout == ALONG) {
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
static void NAME(unpack)(const sizes *s, const REAL *restrict panel, const int32_t *restrict at, REAL *restrict y,
                         int64_t channels, int64_t channel, int64_t pixels) {
  const int64_t between = channels * pixels;
  REAL *first = y + s->from * between + channel * pixels;
  if (s->layout == ALONG) {
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

// The sum of a channel in all images.
static REAL NAME(total)(const sizes *s, const REAL *restrict x, int64_t channels, int64_t channel, int64_t pixels) {
  VECTOR sums = {0};
  REAL sum = 0;
  for (int64_t i = 0; i < s->images; i++) {
    const REAL *first = x + ((s->from + i) * channels + channel) * pixels;
    int64_t p = 0;
    for (; p + LANES <= pixels; p += LANES) sums += *(const VECTOR *)(first + p);
    for (; p < pixels; p++) sum += first[p];
  }
  for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
  return sum;
}

// Zeros at these places of a channel.
static void NAME(clear)(const sizes *s, REAL *restrict channel, const int32_t *restrict places, int64_t count) {
  if (s->layout == ACROSS)
    for (int64_t i = 0; i < count; i++) *(VECTOR *)(channel + (int64_t)places[i] * LANES) = (VECTOR){0};
  else
    for (int64_t i = 0; i < count; i++) channel[places[i]] = 0;
}

// What one thread makes of a panel.
typedef struct {
  const convolution *c;
  const sizes *s;
  const REAL *panel;       // its first channel
  const int32_t *offsets;  // of each connection that is met, in places
  const int64_t *begins;   // of each row, or of each phase and channel of a share: its first connection; one more
  const REAL *weights;     // of each connection that is met
  REAL *sums;              // of the rows, or of the channels of a share: packed, or in the result itself
  const REAL *x;           // backward, laid out as `sums` is
  REAL *found;             // backward, of each connection that is met: the gradient of its value
  int64_t row, group;      // in `sums` and x: numbers from a row to the next, and backward from a group's first row to the
                           // next group's
  int64_t channels;        // backward, of each group in the share
} NAME(job);

// Where a strip begins in each row of the sums.
INLINE int64_t NAME(in_row)(const sizes *s, int64_t strip, const int vectors) {
  return s->layout == AS_IT_IS ? s->at[strip * vectors] : strip * vectors * LANES;
}

// One strip of the rows first..last, forward.
INLINE void NAME(forward)(const NAME(job) *j, int64_t strip, int64_t first, int64_t last, const int vectors) {
  const sizes *s = j->s;
  const int64_t unit = s->unit * sizeof(REAL), of_group = s->outs / j->c->groups;
  const int64_t group_places = s->ins / j->c->groups * s->x_places;
  const REAL *restrict bias = j->c->linear.bias;
  int64_t at[8];
  UNROLL for (int i = 0; i < vectors; i++) at[i] = s->at[strip * vectors + i] * (int64_t)sizeof(REAL);
  REAL *to = j->sums + NAME(in_row)(s, strip, vectors);
  for (int64_t r = first; r < last; r++, to += j->row) {
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
    UNROLL for (int i = 0; i < vectors; i++) *(VECTOR *)(to + i * LANES) = sums[i];
  }
}

// One strip of all channels of a share, backward. The sums of lanes that values' gradients need are made for LANES
// connections together.
INLINE void NAME(backward)(const NAME(job) *j, int64_t strip, int64_t phase, const int vectors, const bool needs_x,
                           const bool needs_values) {
  const sizes *s = j->s;
  const int64_t unit = s->unit * sizeof(REAL), groups = j->c->groups;
  const int64_t *begins = j->begins + phase * groups * j->channels;
  const char *panel = (const char *)j->panel;
  const bool overlaps = s->layout == AS_IT_IS && strip == s->strips - 1;
  REAL *restrict found = j->found + begins[0];
  const int64_t in_row = NAME(in_row)(s, strip, vectors);
  int64_t at[8];
  VECTOR dots[LANES];
  int pending = 0;
  UNROLL for (int i = 0; i < vectors; i++) at[i] = s->at[strip * vectors + i] * (int64_t)sizeof(REAL);
  for (int64_t group = 0; group < groups; group++) {
    int64_t here = group * j->group + in_row;
    for (int64_t channel = 0; channel < j->channels; channel++, here += j->row, begins++) {
      const int32_t *restrict offset = j->offsets + begins[0], *end = j->offsets + begins[1];
      const REAL *restrict weight = j->weights + begins[0];
      VECTOR sums[8], x[8];
      UNROLL for (int i = 0; i < vectors; i++) {
        if (needs_x) sums[i] = (VECTOR){0};
        if (needs_values) x[i] = *(const VECTOR *)(j->x + here + i * LANES);
      }
      if (needs_values && overlaps)  // what the strip before had counts for nothing here
        UNROLL for (int i = 0; i < vectors; i++)
          x[i] = (VECTOR)((NAME(integers))x[i] & ((const NAME(integers) *)s->counted)[i]);
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
  }
  if (pending) {
    const VECTOR last = NAME(sums)(dots);
    for (int i = 0; i < pending; i++) found[i] += last[i];
  }
}

typedef void (*NAME(forward_form))(const NAME(job) *, int64_t strip, int64_t first, int64_t last);
typedef void (*NAME(backward_form))(const NAME(job) *, int64_t strip, int64_t phase, bool needs_x, bool needs_values);
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
#define FORMS_OF(way) \
  NULL, NAME(way##_1), NAME(way##_2), NULL, NAME(way##_4), NULL, NAME(way##_6), NAME(way##_7), NAME(way##_8)
#else
#define FORMS_OF(way) NULL, NAME(way##_1), NAME(way##_2), NULL, NAME(way##_4)
#endif
static const NAME(forward_form) NAME(forward_forms)[] = {FORMS_OF(forward)};
static const NAME(backward_form) NAME(backward_forms)[] = {FORMS_OF(backward)};
#undef FORMS_OF
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

// What all threads read.
typedef struct {
  REAL *panel, *sums;        // the panel's first channel; forward, of each row
  int32_t *leads, *offsets;  // forward, where each column leads, and each connection
  int64_t *begins;           // forward, of each row: its first connection
} NAME(shared);

// Zeros wherever nothing is packed: before the first channel, in the channels first..last, and after the last.
static void NAME(clear_panel)(const sizes *s, REAL *panel, int64_t places, int64_t first, int64_t last, int64_t all) {
  if (first == 0 && s->before) memset(panel - s->before, 0, s->before * sizeof(REAL));
  for (int64_t channel = first; channel < last; channel++)
    NAME(clear)(s, panel + channel * places * s->unit, s->holes, s->hole_count);
  if (last == all) memset(panel + all * places * s->unit, 0, s->after * sizeof(REAL));
}

// Forward, a thread's part of a panel, or of images as they are: strips, and rows where there are few of them.
static void NAME(forward_share)(NAME(job) *j, REAL *sums, int64_t own, int64_t all) {
  const sizes *s = j->s;
  const product *p = &j->c->linear;
  const int64_t strips = s->strips * (s->layout == AS_IT_IS ? s->images : 1);
  const int64_t parts = strips >= 4 * all ? 1 : (4 * all + strips - 1) / strips, units = strips * parts;
  const REAL *x = p->x;
  for (int64_t u = units * own / all; u < units * (own + 1) / all; u++) {
    const int64_t strip = u / parts % s->strips, image = u / parts / s->strips;
    const int64_t first = p->out * (u % parts) / parts, last = p->out * (u % parts + 1) / parts;
    if (s->layout == AS_IT_IS) j->panel = x + (s->from + image) * s->ins * s->in_pixels;
    j->sums = sums + (image * s->outs + first) * j->row;
    NAME(forward_forms)[s->width](j, strip, first, last);
  }
}

static int NAME(run_forward)(const convolution *c, const sizes *all_sizes, scratch *common, const NAME(shared) *m,
                             int64_t images) {
  const product *p = &c->linear;
  for (int64_t i = 0; i < p->in; i++) {
    int64_t phase, shift;
    tap_leads(c, all_sizes->grid, i % all_sizes->taps, &phase, &shift);
    m->leads[i] = (int32_t)(i / all_sizes->taps * all_sizes->x_places + phase * all_sizes->area + shift);
  }
  int status = DONE;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    const int64_t own = omp_get_thread_num(), all = omp_get_num_threads();
    sizes s = *all_sizes;
    const bool packs = s.layout != AS_IT_IS;
    const int64_t pack_first = s.ins * own / all, pack_last = s.ins * (own + 1) / all;
    NAME(job) j = {.c = c, .s = &s, .panel = m->panel, .offsets = m->offsets, .begins = m->begins, .weights = p->values};
    REAL *sums = packs ? m->sums : (REAL *)p->result + s.from * s.outs * s.out_pixels;
    j.row = packs ? s.vectors * LANES : s.out_pixels;
    const int64_t first = share_begins(p->starts, p->index_bytes, p->out, 1, own, all);
    const int64_t last = share_begins(p->starts, p->index_bytes, p->out, 1, own + 1, all);
    status = NAME(prepare_forward)(c, m->leads, first, last, m->begins, m->offsets);
    if (packs) NAME(clear_panel)(&s, m->panel, s.x_places, pack_first, pack_last, s.ins);
    for (int64_t done = 0; done < images; done += s.images, s.from += s.images) {
      if (images - done < s.images) s.images = images - done;
      for (int64_t channel = pack_first; packs && channel < pack_last; channel++)
        NAME(pack)(&s, p->x, s.ins, channel, s.in_pixels, s.source_at, m->panel + channel * s.x_places * s.unit, NULL);
      const bool failed = anybody_failed(common, status);
      if (!failed) NAME(forward_share)(&j, sums, own, all);
      if (!packs) continue;
#pragma omp barrier
      for (int64_t r = first; r < last && !failed; r++)
        NAME(unpack)(&s, sums + r * j.row, s.result_at, p->result, s.outs, r, s.out_pixels);
    }
  }
  return status;
}

// Backward, a thread's columns of a panel: those of channels of each group from `first` on.
static void NAME(backward_packed)(NAME(job) *j, REAL *sums, REAL *x, int64_t first) {
  const sizes *s = j->s;
  const product *p = &j->c->linear;
  const bool needs_x = p->result, needs_values = p->grad_values;
  const int64_t of_group = s->ins / j->c->groups, channels = j->channels * j->c->groups;
  j->sums = sums;
  j->x = x;
  for (int64_t i = 0; needs_values && i < channels; i++) {
    const int64_t channel = i / j->channels * of_group + first + i % j->channels;
    NAME(pack)(s, p->x, s->ins, channel, s->in_pixels, s->result_at, x + i * j->row, NULL);
  }
  for (int64_t phase = 0; phase < s->phases; phase++)
    for (int64_t strip = s->first_strip[phase]; strip < s->first_strip[phase + 1]; strip++)
      NAME(backward_forms)[s->width](j, strip, phase, needs_x, needs_values);
  for (int64_t i = 0; needs_x && i < channels; i++) {
    const int64_t channel = i / j->channels * of_group + first + i % j->channels;
    NAME(unpack)(s, sums + i * j->row, s->result_at, p->result, s->ins, channel, s->in_pixels);
  }
}

// The same of images as they are.
static void NAME(backward_as_it_is)(NAME(job) *j, int64_t first) {
  const sizes *s = j->s;
  const product *p = &j->c->linear;
  const REAL *grad = p->grad, *x = p->x;
  REAL *result = p->result;
  for (int64_t image = s->from; image < s->from + s->images; image++) {
    const int64_t here = (image * s->ins + first) * s->in_pixels;
    j->panel = grad + image * s->outs * s->out_pixels;
    j->x = x + here;
    if (result) j->sums = result + here;
    for (int64_t strip = 0; strip < s->strips; strip++)
      NAME(backward_forms)[s->width](j, strip, 0, result, p->grad_values);
  }
}

static int NAME(run_backward)(const convolution *c, const sizes *all_sizes, scratch *common, const NAME(shared) *m,
                              int64_t images) {
  const product *p = &c->linear;
  const int bytes = p->index_bytes;
  int status = DONE;
#pragma omp parallel num_threads(p->threads) reduction(| : status)
  {
    const int64_t own = omp_get_thread_num(), all = omp_get_num_threads();
    sizes s = *all_sizes;
    const bool packs = s.layout != AS_IT_IS;
    const int64_t of_group = s.ins / c->groups;
    const int64_t pack_first = s.outs * own / all, pack_last = s.outs * (own + 1) / all;
    const int64_t first = share_begins(p->starts, bytes, of_group, s.taps, own, all);
    const int64_t last = share_begins(p->starts, bytes, of_group, s.taps, own + 1, all);
    NAME(job) j = {.c = c, .s = &s, .panel = m->panel, .channels = last - first};
    j.row = packs ? s.vectors * LANES : s.in_pixels;
    j.group = (packs ? j.channels : of_group) * j.row;
    const int64_t begin = index_of(p->starts, bytes, first * s.taps), end = index_of(p->starts, bytes, last * s.taps);
    if (begin < 0 || begin > end || end > p->nnz) status = OUTSIDE;
    scratch *private = NULL;
    REAL *sums = NULL, *x = NULL;
    int64_t *places = NULL;
    if (!status && first < last) {
      const int64_t met = end - begin, padded = met + 2 * LANES, channels = j.channels * c->groups;
      const int64_t of_result = packs ? channels * j.row * (int64_t)sizeof(REAL) : 0;
      const int64_t of_begins = (s.phases * channels + 1) * 8;
      private = scratch_get(OWN, 2 * of_result + met * 8 + of_begins + padded * (2 * REAL_BYTES + 4));
      if (!private) status = NO_MEMORY;
      else {
        sums = private->memory;
        x = (REAL *)((char *)sums + of_result);
        places = (int64_t *)((char *)x + of_result);
        int64_t *begins = places + met;
        REAL *weights = (REAL *)((char *)begins + of_begins);
        j.found = weights + padded;
        int32_t *offsets = (int32_t *)(j.found + padded);
        memset(j.found, 0, padded * sizeof(REAL));
        status = NAME(prepare_backward)(c, &s, first, last, begins, offsets, weights, places);
        j.begins = begins;
        j.offsets = offsets;
        j.weights = weights;
        for (int64_t i = 0; packs && p->grad_values && i < channels; i++)
          NAME(clear)(&s, x + i * j.row, s.idle, s.idle_count);
      }
    }
    if (packs) NAME(clear_panel)(&s, m->panel, s.y_places, pack_first, pack_last, s.outs);
    bool failed = false;
    for (int64_t done = 0; done < images; done += s.images, s.from += s.images) {
      if (images - done < s.images) s.images = images - done;
      for (int64_t channel = pack_first; channel < pack_last; channel++) {
        REAL *total = p->grad_bias ? (REAL *)p->grad_bias + channel : NULL;
        if (packs)
          NAME(pack)(&s, p->grad, s.outs, channel, s.out_pixels, s.source_at, m->panel + channel * s.y_places * s.unit,
                     total);
        else if (total) {
          const REAL sum = NAME(total)(&s, p->grad, s.outs, channel, s.out_pixels);
          *total = s.from ? *total + sum : sum;
        }
      }
      failed = anybody_failed(common, status);
      if (!failed && first < last) {
        if (packs) NAME(backward_packed)(&j, sums, x, first);
        else NAME(backward_as_it_is)(&j, first);
      }
#pragma omp barrier
    }
    if (p->grad_values && !failed && first < last) {
      REAL *restrict gv = p->grad_values;
      const bool is_first = all_sizes->from == 0;
      for (int64_t e = 0; e < end - begin; e++) gv[places[e]] = is_first ? j.found[e] : gv[places[e]] + j.found[e];
    }
    scratch_give_back(private);
  }
  return status;
}

// A convolution of the images from..from + images; LANES of them at a time if lanes go across images, else all.
static int NAME(run)(const convolution *c, int64_t from, int64_t images, layout how) {
  const product *p = &c->linear;
  const bool backward = p->is_backward, packs = how != AS_IT_IS;
  sizes s;
  const int64_t tables = (measure(c, &s, from, how == ACROSS ? LANES : images, how, LANES, MOST_VECTORS) + 63) / 64 * 64;
  const int64_t sources = backward ? s.outs : s.ins, places = backward ? s.y_places : s.x_places;
  const int64_t starts = backward ? p->in : p->out;
  if (index_of(p->starts, p->index_bytes, 0) != 0 || index_of(p->starts, p->index_bytes, starts) != p->nnz)
    return OUTSIDE;
  if (sources * places + s.before >= INT32_MAX) return NO_MEMORY;  // no machine has a panel of so many vectors
  if (s.vectors >= INT32_MAX / (how == ACROSS ? 1 : LANES)) return NO_MEMORY;
  const int64_t panel = packs ? (s.before + sources * places * s.unit + s.after) * REAL_BYTES : 0;
  const int64_t panel_bytes = (panel + 63) / 64 * 64;
  const int64_t begins_bytes = backward ? 0 : (p->out + 1) * 8, indices_bytes = backward ? 0 : (p->in + p->nnz) * 4;
  const int64_t sums_bytes = backward || !packs ? 0 : s.outs * s.vectors * BYTES;
  scratch *common = scratch_get(COMMON, tables + panel_bytes + sums_bytes + begins_bytes + indices_bytes);
  if (!common) return NO_MEMORY;
  common->failed = 0;
  char *memory = common->memory;
  lay_out(c, &s, memory, MOST_VECTORS);
  NAME(shared) m = {.panel = (REAL *)(memory + tables) + s.before, .sums = (REAL *)(memory + tables + panel_bytes)};
  m.begins = (int64_t *)(memory + tables + panel_bytes + sums_bytes);
  m.leads = (int32_t *)((char *)m.begins + begins_bytes);
  m.offsets = m.leads + p->in;
  const int status = (backward ? NAME(run_backward) : NAME(run_forward))(c, &s, common, &m, images);
  scratch_give_back(common);
  return status;
}

#undef VECTOR
#undef LANES
#undef LOW
#undef HIGH
#endif
