// Sparse convolutions on CPU, forward and backward: sparsify_convolution is the only way in.
//
// What is computed. A convolution is a sparse product (product.c) whose columns are channels and taps: output o at a
// pixel is the sum, over the connections of row o, of a value times the input's channel at that pixel, shifted by the
// tap. Nothing like im2col is made: a connection is one number times some vectors that begin at an offset.
//
// Panels. LANES images at a time, or what is left of the batch, are packed into a panel: (channel, place, lane). It
// has zeros around each image, as many as `padding`, so that a shift never needs to be looked at. Where there are
// images enough, lanes are images: one vector is one pixel of LANES images, and every load is aligned. Of a few images
// lanes are neighbouring places: a vector begins at any number.
//
// As it is. A window of one tap that neither pads nor skips reads a channel from its first pixel to its last, as it lies
// in memory. Then nothing is packed where that is faster (`should_stay`): strips go along the pixels of x and y, and the
// last one of a channel ends with it, so that it has some pixels of the one before once more. Pixels that a window of one
// tap skips never come here: kernels/geometry.py has left them out.
//
// Places. With a stride of s, neighbouring outputs read inputs that are s apart. So places are sorted by phase, what is
// left when a padded coordinate is divided by the stride: phase after phase, each a grid of the quotients. Within one,
// a shift is a number that is added. A tap always leads from the outputs, which lie on such a grid too, to one phase.
//
// Strips. So many vectors of sums stay in registers while all connections of a row are added up: a strip. `at` says
// where each of its vectors begins. All rows go over a strip before the next one, because they read the same places.
//
// Backward. The gradient of x at a place is the same sum over the columns of its channel, in the other direction: with
// offsets of the opposite sign, into a panel of y's gradient. Each phase has its own taps. The loads serve the gradient
// of the values too, whose sums over strips and images are kept in the order in which connections are met (`found`).
//
// Shares. Forward, threads share out strips and rows; backward, columns, because values' gradients are sums over all
// the rest. Panels are packed together. A result is computed by one thread in one order: it does not depend on the
// number of threads.
//
// Who checks indices. `prepare_forward` and `prepare_backward` look at each at every call, and leave offsets.

#include "vectors.h"

#include <stdlib.h>
#include <string.h>

#include "memory.h"

// How images are computed with: packed, and then lanes go across images or along the pixels, or as they are.
typedef enum { ACROSS, ALONG, AS_IT_IS } layout;

// What follows from the sizes, of the images of one panel.
typedef struct {
  layout layout;
  int64_t from, images;         // of the batch
  int64_t taps, ins, outs;      // taps of a window, channels of x and of y
  int64_t in_pixels, out_pixels;
  int64_t phases, grid[3], area;  // phases, and the places of one
  int64_t x_places, y_places;   // of a channel: in a panel of x forward, of y's gradient backward
  int64_t unit;                 // numbers from one place to the next
  int64_t before, after;        // numbers that are read before the first channel of a panel, and after the last
  int lanes, width;             // of a vector, and vectors of a strip
  int64_t strips, vectors;      // of all phases of the result; `vectors` is a multiple of `width`
  int64_t *first_strip;         // of each phase of the result, and one more
  int32_t *source_at, *result_at;  // of each pixel, and where lanes are places of each image's: its place in the panel
                                   // that is read, and its number among the vectors of the result, in lanes
  int64_t *at;                  // of each vector of the result: where it begins in a channel of the panel, in numbers
  int32_t *holes, *idle;        // places of a channel of the panel where nothing is packed, and vectors of the result
  int64_t hole_count, idle_count;  // that no pixel has, or where lanes are places, numbers of these
  void *counted;                // of images as they are: ones in the lanes of the last strip that none before has
} sizes;

static int64_t of(const int64_t three[3]) { return three[0] * three[1] * three[2]; }

// The place in a grid, or -1.
static int64_t place(const int64_t grid[3], int64_t z, int64_t y, int64_t x) {
  return (z * grid[1] + y) * grid[2] + x;
}

static int64_t index_of(const void *indices, int bytes, int64_t e) {
  return bytes == 4 ? ((const int32_t *)indices)[e] : ((const int64_t *)indices)[e];
}

// Where tap t leads: the phase of x, and how far within it.
static void tap_leads(const convolution *c, const int64_t grid[3], int64_t t, int64_t *phase, int64_t *shift) {
  const int64_t *k = c->kernel, *s = c->stride, *d = c->dilation;
  const int64_t z = t / (k[1] * k[2]) * d[0], y = t / k[2] % k[1] * d[1], x = t % k[2] * d[2];
  *phase = place(s, z % s[0], y % s[1], x % s[2]);
  *shift = place(grid, z / s[0], y / s[1], x / s[2]);
}

// Vectors of a strip, of those there are functions for: the fewest steps, each of which costs two vectors more.
static int strip_width(int64_t vectors, int most) {
  static const int widths[] = {8, 7, 6, 4, 2, 1};
  int best = 1;
  int64_t least = INT64_MAX;
  for (int i = 0; i < 6; i++) {
    const int64_t cost = (vectors + widths[i] - 1) / widths[i] * (widths[i] + 2);
    if (widths[i] > most || cost >= least) continue;
    best = widths[i];
    least = cost;
  }
  return best;
}

// The same of images as they are, where no strip is longer than the pixels.
static int width_as_it_is(int64_t pixels, int64_t lanes, int most) {
  const int64_t full = pixels / lanes;
  return strip_width((pixels + lanes - 1) / lanes, full < most ? (int)full : most);
}

// Fills `s` but for its arrays; returns how many bytes these need.
static int64_t measure(const convolution *c, sizes *s, int64_t from, int64_t images, layout how, int lanes, int most) {
  const bool backward = c->linear.is_backward, across = how == ACROSS;
  *s = (sizes){.layout = how, .from = from, .images = images, .lanes = lanes, .taps = of(c->kernel)};
  s->outs = c->linear.out;
  s->ins = c->linear.in / s->taps * c->groups;
  s->in_pixels = of(c->size);
  s->out_pixels = of(c->out_size);
  s->phases = of(c->stride);
  for (int i = 0; i < 3; i++) s->grid[i] = (c->size[i] + 2 * c->padding[i] + c->stride[i] - 1) / c->stride[i];
  s->area = of(s->grid);
  s->unit = across ? lanes : 1;
  const int64_t copies = how == ALONG ? images : 1;  // of the places of one image
  s->x_places = s->phases * s->area * copies;
  s->y_places = s->area * copies;
  int64_t furthest = 0;
  for (int64_t t = 0; t < s->taps; t++) {
    int64_t phase, shift;
    tap_leads(c, s->grid, t, &phase, &shift);
    if (shift > furthest) furthest = shift;
  }
  s->before = backward ? (furthest * s->unit + lanes - 1) / lanes * lanes : 0;
  s->after = 2 * lanes;
  const int64_t pixels = backward ? s->in_pixels : s->out_pixels, sources = backward ? s->out_pixels : s->in_pixels;
  const int64_t runs = backward ? s->phases : 1;
  const int64_t most_vectors = across ? pixels : copies * (runs * ((s->area + lanes - 1) / lanes) + runs);
  s->vectors = most_vectors + runs * (most - 1);
  const int64_t places = backward ? s->y_places : s->x_places;
  const int64_t marks = places + s->vectors * (across ? 1 : lanes);  // of which some are holes
  return (runs + 1 + s->vectors) * 8 + ((pixels + sources) * copies + marks) * 4 + most * 64;
}

static void in_grid(const int64_t size[3], int64_t pixel, int64_t three[3]) {
  three[0] = pixel / (size[1] * size[2]);
  three[1] = pixel / size[2] % size[1];
  three[2] = pixel % size[2];
}

// Those of 0..all that are not among `some`, at the beginning of `missing`, which has room for all.
static int64_t find_missing(const int32_t *some, int64_t count, int64_t all, int32_t *missing) {
  memset(missing, 0, all * sizeof *missing);
  for (int64_t i = 0; i < count; i++) missing[some[i]] = 1;
  int64_t found = 0;
  for (int64_t i = 0; i < all; i++)
    if (!missing[i]) missing[found++] = (int32_t)i;
  return found;
}

// Lays out the strips of images as they are: they go along the pixels, and the last ends with them.
static void lay_out_as_it_is(const convolution *c, sizes *s, int most) {
  const int64_t lanes = s->lanes, bytes = c->linear.real_bytes;
  s->width = width_as_it_is(s->in_pixels, lanes, most);
  const int64_t of_strip = s->width * lanes;
  s->strips = (s->in_pixels + of_strip - 1) / of_strip;
  s->vectors = s->strips * s->width;
  s->first_strip[0] = 0;
  s->first_strip[1] = s->strips;
  const int64_t again = s->strips * of_strip - s->in_pixels;  // pixels of the last strip that the one before has too
  for (int64_t v = 0; v < s->vectors; v++) s->at[v] = v * lanes - (v < s->vectors - s->width ? 0 : again);
  s->counted = s->at + s->vectors;
  memset(s->counted, 0, again * bytes);
  memset((char *)s->counted + again * bytes, 255, (of_strip - again) * bytes);
}

// Fills the arrays of `s` in `memory`.
static void lay_out(const convolution *c, sizes *s, void *memory, int most) {
  const bool backward = c->linear.is_backward, across = s->layout == ACROSS;
  const int64_t runs = backward ? s->phases : 1, copies = across ? 1 : s->images, lanes = s->lanes;
  const int64_t pixels = backward ? s->in_pixels : s->out_pixels, sources = backward ? s->out_pixels : s->in_pixels;
  const int64_t *result = backward ? c->size : c->out_size, *source = backward ? c->out_size : c->size;
  s->first_strip = memory;
  s->at = s->first_strip + runs + 1;
  if (s->layout == AS_IT_IS) {
    lay_out_as_it_is(c, s, most);
    return;
  }
  s->source_at = (int32_t *)(s->at + s->vectors);
  s->result_at = s->source_at + sources * copies;
  for (int64_t p = 0; p < sources; p++) {
    int64_t q[3], phase = 0, position;
    in_grid(source, p, q);
    if (backward) position = place(s->grid, q[0], q[1], q[2]);
    else {
      int64_t rest[3];
      for (int i = 0; i < 3; i++) {
        rest[i] = (q[i] + c->padding[i]) % c->stride[i];
        q[i] = (q[i] + c->padding[i]) / c->stride[i];
      }
      phase = place(c->stride, rest[0], rest[1], rest[2]);
      position = phase * s->area + place(s->grid, q[0], q[1], q[2]);
    }
    for (int64_t i = 0; i < copies; i++)
      s->source_at[i * sources + p] = (int32_t)(position + i * (backward ? 1 : s->phases) * s->area);
  }
  // Of each pixel of the result: its phase, and its place there. How many vectors each phase has then says how wide
  // strips are best.
  int64_t total = 0;
  s->width = most;
  for (int pass = 0; pass < 2; pass++) {
    int64_t v = 0, strips = 0;
    for (int64_t phase = 0; phase < runs; phase++) {
      s->first_strip[phase] = strips;
      const int64_t begin = v;
      int64_t r[3] = {0, 0, 0}, lowest[3], count[3];
      if (backward) in_grid(c->stride, phase, r);
      for (int i = 0; i < 3; i++) {  // the quotients of the pixels of this phase are lowest..lowest + count
        if (!backward) lowest[i] = 0, count[i] = c->out_size[i];
        else {
          const int64_t first = c->padding[i] - r[i], end = c->padding[i] + c->size[i] - r[i];
          lowest[i] = first <= 0 ? 0 : (first + c->stride[i] - 1) / c->stride[i];
          const int64_t beyond = end <= 0 ? 0 : (end + c->stride[i] - 1) / c->stride[i];
          count[i] = beyond > lowest[i] ? beyond - lowest[i] : 0;
        }
      }
      const int64_t start = place(s->grid, lowest[0], lowest[1], lowest[2]);
      const int64_t length = !of(count) ? 0
                                        : place(s->grid, lowest[0] + count[0] - 1, lowest[1] + count[1] - 1,
                                                lowest[2] + count[2] - 1) - start + 1;
      const int64_t each = across ? of(count) : (length + lanes - 1) / lanes;  // vectors of an image, or of all
      if (pass) {
        for (int64_t z = 0, n = 0; z < count[0]; z++)
          for (int64_t y = 0; y < count[1]; y++)
            for (int64_t x = 0; x < count[2]; x++, n++) {
              const int64_t here = place(s->grid, lowest[0] + z, lowest[1] + y, lowest[2] + x);
              int64_t q[3] = {lowest[0] + z, lowest[1] + y, lowest[2] + x};
              if (backward)
                for (int i = 0; i < 3; i++) q[i] = q[i] * c->stride[i] + r[i] - c->padding[i];
              const int64_t pixel = place(result, q[0], q[1], q[2]);
              if (across) {
                s->at[v + n] = here * s->unit;
                s->result_at[pixel] = (int32_t)(v + n);
              } else
                for (int64_t i = 0; i < copies; i++)
                  s->result_at[i * pixels + pixel] = (int32_t)((v + i * each) * lanes + here - start);
            }
        if (!across)
          for (int64_t i = 0; i < copies; i++)
            for (int64_t n = 0; n < each; n++)
              s->at[v + i * each + n] = start + n * lanes + i * (backward ? 1 : s->phases) * s->area;
      }
      v += each * copies;
      if (!pass) {
        total += v - begin;
        v = begin;
        continue;
      }
      for (; (v - begin) % s->width; v++) s->at[v] = s->at[v - 1];  // a strip is full; nobody reads what is too much
      strips += (v - begin) / s->width;
    }
    if (pass) {
      s->first_strip[runs] = s->strips = strips;
      s->vectors = v;
      const int64_t places = backward ? s->y_places : s->x_places, numbers = across ? v : v * lanes;
      s->holes = s->result_at + pixels * copies;
      s->hole_count = find_missing(s->source_at, sources * copies, places, s->holes);
      s->idle = s->holes + places;
      s->idle_count = find_missing(s->result_at, pixels * copies, numbers, s->idle);
    } else s->width = strip_width((total + runs - 1) / runs, most);
  }
}

// Waits for all threads, and tells whether the status of one is an error.
static bool anybody_failed(scratch *common, int status) {
  int failed;
  if (status) {
#pragma omp atomic write
    common->failed = 1;
  }
#pragma omp barrier
#pragma omp atomic read
  failed = common->failed;
  return failed;
}

// The first of the sorted numbers starts[column * step], column <= columns, that reaches `wanted`: where a share begins.
static int64_t share_begins(const void *starts, int bytes, int64_t columns, int64_t step, int64_t k, int64_t all) {
  if (k <= 0) return 0;  // whatever `starts` holds: each column is of a share
  if (k >= all) return columns;
  const int64_t wanted = (index_of(starts, bytes, columns * step) + columns) / all * k;
  int64_t low = 0, high = columns;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (index_of(starts, bytes, middle * step) + middle < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

#define INDEX any  // the functions of convolution_body.h exist once for both kinds of indices
#define BODY "convolution_body.h"
#include "each_isa.h"

#if defined(__x86_64__)
#define LEVELS 3
#define FORMS(real) {run_##real##_any_base, run_##real##_any_avx2, run_##real##_any_avx512}
#else
#define LEVELS 1
#define FORMS(real) {run_##real##_any_base}
#endif

// For library.py, to compare with that of its own declaration.
int64_t sparsify_convolution_size(void) { return sizeof(convolution); }

// Whether images can be computed with as they are: each connection reads all pixels of a channel, one after the other,
// and as many come out.
static bool can_stay(const convolution *c, int64_t lanes) {
  for (int i = 0; i < 3; i++)
    if (c->kernel[i] != 1 || c->stride[i] != 1 || c->padding[i] || c->out_size[i] != c->size[i]) return false;
  return of(c->size) >= lanes;
}

// Whether that is faster than to pack them LANES at a time, by what was measured. To pack or unpack a number takes as long
// as .9 vectors; each strip takes two vectors more, and a vector that is not aligned is two forward, and 1.5 backward.
static bool should_stay(const convolution *c, int64_t lanes, int most) {
  const product *p = &c->linear;
  const int64_t pixels = of(c->size), width = width_as_it_is(pixels, lanes, most), of_strip = width * lanes;
  const double unaligned = pixels % lanes == 0 ? 1 : p->is_backward ? 1.5 : 2;
  const double vectors = unaligned * (double)((pixels + of_strip - 1) / of_strip) * (width + 2) * most / (most + 2);
  const double numbers = ((1. + p->is_backward) * p->in * c->groups + p->out) * pixels;
  return p->nnz * (vectors - (double)pixels / lanes) < .9 * numbers;
}

int sparsify_convolution(const convolution *c) {
  typedef int form(const convolution *, int64_t from, int64_t images, layout);
  static form *const forms[2][LEVELS] = {FORMS(float), FORMS(double)};
  const product *p = &c->linear;
  const int64_t lanes = (p->level == 2 ? 64 : p->level == 1 ? 32 : 16) / p->real_bytes;
  form *run = forms[p->real_bytes == 8][p->level];
  const layout small = can_stay(c, lanes) ? AS_IT_IS : ALONG;  // of a few images
  int64_t full = p->batch / lanes * lanes;  // images of which a vector holds one pixel each
  if ((p->batch - full) * 2 > lanes) full = p->batch;
  if (small == AS_IT_IS && should_stay(c, lanes, p->level == 2 ? 8 : 4)) full = 0;
  int status = DONE;
  indices_hold();
  if (full) status = run(c, 0, full, ACROSS);
  if (full < p->batch && status == DONE) status = run(c, full, p->batch - full, small);
  indices_release();
  return status;
}
