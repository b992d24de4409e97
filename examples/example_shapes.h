/* example_shapes.h - pictures of coloured shapes and sentences about them, for examples that need
 * images with captions: "a small red circle at the top", "a blue cross above a green ring".
 *
 * One quarter of all pairs of a colour and a shape is held out: training never sees a red triangle,
 * say, though it sees red things and triangles. Nothing here knows anything about learning. */

#ifndef EX_SHAPES_H
#define EX_SHAPES_H

#include "../contrastive.h"
#include "example.h"

enum { EX_COLOURS = 8, EX_SHAPES = 6, EX_SIDE = 32, EX_CAPTION = 96 };

EX_FN const char *ex_colour_name(int colour)
{
    static const char *const names[EX_COLOURS] = {
        "red", "green", "blue", "yellow", "purple", "orange", "cyan", "white"
    };
    return names[colour];
}

EX_FN const char *ex_shape_name(int shape)
{
    static const char *const names[EX_SHAPES] = {
        "circle", "square", "triangle", "cross", "ring", "diamond"
    };
    return names[shape];
}

/* Two of the eight colours of each shape, one or two of the six shapes of each colour. */
EX_FN int ex_held_out(int colour, int shape)
{
    return (colour + 3 * shape) % 4 == 0;
}

typedef struct ex_object {
    int colour, shape, large;
    double x, y, r;                /* centre and half the side, in pixels */
} ex_object;

typedef struct ex_scene {
    int count, where;              /* 1 or 2 objects; ex_where_name of the first */
    ex_object object[2];
    double shade;                  /* of the background */
} ex_scene;

/* Where one object is in the picture, or the first of two as seen from the second. */
EX_FN const char *ex_where_name(int count, int where)
{
    static const char *const names[2][4] = {
        { "on the left", "on the right", "at the top", "at the bottom" },
        { "to the left of", "to the right of", "above", "below" }
    };
    return names[count - 1][where];
}

/* Is the point (u, v) of -1..1 inside the shape? */
EX_FN int ex_inside(int shape, double u, double v)
{
    double a = u < 0 ? -u : u, b = v < 0 ? -v : v, rr = u * u + v * v;
    switch (shape) {
    case 0: return rr < 1;
    case 1: return a < 0.85 && b < 0.85;
    case 2: return v < 0.8 && v > -1 && a < (v + 1) * 0.55;
    case 3: return (a < 0.3 && b < 1) || (b < 0.3 && a < 1);
    case 4: return rr < 1 && rr > 0.3;
    default: return a + b < 1.1;
    }
}

/* A colour and a shape: held out (1) or not (0), or any (-1). */
EX_FN void ex_object_draw(ctr_rng *rng, int held_out, ex_object *o)
{
    do {
        o->colour = (int)ctr_rng_below(rng, EX_COLOURS);
        o->shape = (int)ctr_rng_below(rng, EX_SHAPES);
    } while (held_out >= 0 && ex_held_out(o->colour, o->shape) != held_out);
}

/* Scene `index` of a kind: count objects, from combinations that are held out or not. */
EX_FN void ex_scene_draw(uint64_t seed, int64_t index, int count, int held_out, ex_scene *s)
{
    const double half = EX_SIDE / 2.0;
    ctr_rng rng;
    int i;
    ctr_rng_init(&rng, seed, CTR_STREAM_USER, 100 + count + 2 * held_out, index, 0);
    memset(s, 0, sizeof *s);
    s->count = count;
    s->where = (int)ctr_rng_below(&rng, 4);
    s->shade = ctr_rng_range(&rng, 20, 90);
    for (i = 0; i < count; i++) {
        ex_object *o = &s->object[i];
        double along = (s->where % 2 ? 1 : -1) * (i ? -1 : 1) * (count == 2 ? 7.5 : 6);
        double across;
        do {
            ex_object_draw(&rng, held_out, o);
        } while (i && (o->colour == s->object[0].colour || o->shape == s->object[0].shape));
        o->large = (int)ctr_rng_below(&rng, 2);
        o->r = (count == 2 ? 5 : o->large ? 8.5 : 5.5) + ctr_rng_range(&rng, -0.7, 0.7);
        along += ctr_rng_range(&rng, -1.5, 1.5);
        across = ctr_rng_range(&rng, -4, 4);
        o->x = half + (s->where < 2 ? along : across);
        o->y = half + (s->where < 2 ? across : along);
    }
}

/* The scene as pixels [32, 32, 3]: 3 x 3 points a pixel, and noise. */
EX_FN void ex_scene_render(uint64_t seed, int64_t index, const ex_scene *s, uint8_t *pixels)
{
    static const int rgb[EX_COLOURS][3] = {
        { 220, 40, 40 }, { 40, 170, 60 }, { 50, 80, 230 }, { 235, 220, 50 },
        { 150, 50, 190 }, { 245, 140, 30 }, { 60, 210, 220 }, { 240, 240, 240 }
    };
    ctr_rng rng;
    int x, y, c, i, k;
    ctr_rng_init(&rng, seed, CTR_STREAM_USER, 99, index, s->count);
    for (y = 0; y < EX_SIDE; y++)
        for (x = 0; x < EX_SIDE; x++, pixels += 3) {
            double share[2] = { 0, 0 };
            for (i = 0; i < s->count; i++) {
                const ex_object *o = &s->object[i];
                for (k = 0; k < 9; k++)
                    share[i] += ex_inside(o->shape, (x + (k % 3 + 0.5) / 3 - o->x) / o->r,
                                          (y + (k / 3 + 0.5) / 3 - o->y) / o->r) / 9.0;
            }
            for (c = 0; c < 3; c++) {
                double v = s->shade;
                for (i = 0; i < s->count; i++)
                    v += share[i] * (rgb[s->object[i].colour][c] - v);
                v += ctr_rng_range(&rng, -12, 12);
                pixels[c] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
            }
        }
}

EX_FN const char *ex_article(const char *word) { return *word == 'o' ? "an" : "a"; }

/* A sentence about the scene; form (0..3) says how much of it is told of a single object. */
EX_FN void ex_scene_caption(const ex_scene *s, int form, char text[EX_CAPTION])
{
    const ex_object *a = &s->object[0], *b = &s->object[1];
    const char *one = ex_colour_name(a->colour), *two = ex_colour_name(b->colour);
    if (s->count == 2)
        snprintf(text, EX_CAPTION, "%s %s %s %s %s %s %s", ex_article(one), one,
                 ex_shape_name(a->shape), ex_where_name(2, s->where), ex_article(two), two,
                 ex_shape_name(b->shape));
    else if (form == 0)
        snprintf(text, EX_CAPTION, "%s %s %s", ex_article(one), one, ex_shape_name(a->shape));
    else if (form == 1)
        snprintf(text, EX_CAPTION, "a picture of %s %s %s", ex_article(one), one,
                 ex_shape_name(a->shape));
    else if (form == 2)
        snprintf(text, EX_CAPTION, "a %s %s %s", a->large ? "large" : "small", one,
                 ex_shape_name(a->shape));
    else
        snprintf(text, EX_CAPTION, "%s %s %s %s", ex_article(one), one, ex_shape_name(a->shape),
                 ex_where_name(1, s->where));
}

/* ---- pictures with captions ------------------------------------------------------------------ */

/* Pictures, and what is said about each: a picture's label is the number of its caption. */
typedef struct ex_pairs {
    ctr_dataset *images;
    int64_t n, count;              /* images, captions */
    uint8_t *pixels;               /* what follows: NULL for pictures of the user's */
    int32_t *labels;
    char (*captions)[EX_CAPTION];
    ex_scene *scenes;
} ex_pairs;

typedef enum ex_pairs_kind {
    EX_PAIRS_TRAIN,                /* by turns of one object and of two, nothing held out */
    EX_PAIRS_SEEN, EX_PAIRS_HELD_OUT, /* one object: combinations as in training, or the others */
    EX_PAIRS_SCENES                /* two objects, combinations as in training */
} ex_pairs_kind;

/* n pictures of a kind, from scene `first` on: other numbers, other pictures. */
EX_FN ex_pairs ex_pairs_draw(ctr_ctx *ctx, const ex_options *o, ex_pairs_kind kind, int64_t n,
                             int64_t first)
{
    ex_pairs p;
    size_t bytes = EX_SIDE * EX_SIDE * 3, count = (size_t)n;
    int64_t i, j;
    memset(&p, 0, sizeof p);
    p.n = n;
    p.pixels = (uint8_t *)calloc(count, bytes);
    p.labels = (int32_t *)calloc(count, sizeof *p.labels);
    p.captions = (char (*)[EX_CAPTION])calloc(count, EX_CAPTION);
    p.scenes = (ex_scene *)calloc(count, sizeof *p.scenes);
    if (!p.pixels || !p.labels || !p.captions || !p.scenes)
        ex_die(o, 1, "no memory for %ld pictures", (long)n);
    for (i = 0; i < n; i++) {
        int objects = kind == EX_PAIRS_SCENES || (kind == EX_PAIRS_TRAIN && i % 2) ? 2 : 1;
        ex_scene *s = &p.scenes[i];
        ex_scene_draw(o->seed, first + i, objects, kind == EX_PAIRS_HELD_OUT, s);
        ex_scene_render(o->seed, first + i, s, p.pixels + (size_t)i * bytes);
        ex_scene_caption(s, (int)(i / 2 % 4), p.captions[p.count]);
        for (j = 0; strcmp(p.captions[j], p.captions[p.count]); j++) { }
        p.labels[i] = (int32_t)j;  /* what was said before keeps its number */
        p.count += j == p.count;
    }
    p.images = ctr_dataset_from_memory(ctx, p.pixels, n, EX_SIDE, EX_SIDE, 3, p.labels);
    return p;
}

EX_FN void ex_pairs_free(ctr_ctx *ctx, ex_pairs *p)
{
    ctr_dataset_destroy(ctx, p->images);
    free(p->pixels);
    free(p->labels);
    free(p->captions);
    free(p->scenes);
}

EX_FN const char *ex_pairs_caption(const ex_pairs *p, int64_t number)
{
    return p->captions ? p->captions[number] : ctr_dataset_class_name(p->images, number);
}

/* A false sentence about a scene of two objects. kind 0: a colour that is not there, 1: the shapes
 * exchanged, so that each colour is with the other one, 2: the relation turned round. */
EX_FN void ex_scene_lie(const ex_scene *s, int kind, char text[EX_CAPTION])
{
    ex_scene f = *s;
    if (kind == 0) {
        do {
            f.object[0].colour = (f.object[0].colour + 1) % EX_COLOURS;
        } while (f.object[0].colour == s->object[1].colour);
    } else if (kind == 1) {
        f.object[0].shape = s->object[1].shape;
        f.object[1].shape = s->object[0].shape;
    } else {
        f.where ^= 1;
    }
    ex_scene_caption(&f, 0, text);
}

#endif /* EX_SHAPES_H */
