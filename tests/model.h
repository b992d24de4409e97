/* model.h - what tests of networks and methods share: weights by the golden files' formula, a batch
 * made by hand, a small set of pictures, whole files. */
#ifndef CTR_TEST_MODEL_H
#define CTR_TEST_MODEL_H

#include "fake_device.h"

/* Sanitizers take ten times the time: the heaviest networks do without them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MODEL_SLOW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MODEL_SLOW 1
#endif
#endif
#ifndef MODEL_SLOW
#define MODEL_SLOW 0
#endif

/* Between memory's [kh, kw, in, out] and a file's [out, in, kh, kw]; others as they are. */
TEST_FN void model_layout(const ctr_var *v, const ctr_real *from, ctr_real *to, int to_file)
{
    const int64_t *s = v->value->shape;
    int64_t taps = s[0] * s[1], in = s[2], out = s[3], t, i, o;
    if (!v->conv) {
        memcpy(to, from, (size_t)v->value->size * sizeof *to);
        return;
    }
    for (t = 0; t < taps; t++)
        for (i = 0; i < in; i++)
            for (o = 0; o < out; o++) {
                int64_t memory = (t * in + i) * out + o, file = (o * in + i) * taps + t;
                if (to_file) to[file] = from[memory];
                else to[memory] = from[file];
            }
}

/* The formula at the head of golden_net.txt, seeded by the name behind `skip` characters. */
TEST_FN void model_fill_var(ctr_ctx *ctx, const ctr_var *v, size_t skip)
{
    int64_t n = v->value->size, i;
    int64_t first = v->conv ? v->value->shape[3] : v->value->shape[0];
    double *d = test_doubles(n);
    ctr_real *file = test_reals(n), *memory = test_reals(n);
    golden_fill_param(v->name + skip, d, (size_t)n,
                      v->value->rank > 1 ? (size_t)(n / first) : 0);
    for (i = 0; i < n; i++) file[i] = (ctr_real)d[i];
    model_layout(v, file, memory, 0);
    ctr_tensor_write(ctx, v->value, memory, n);
    free(d);
    free(file);
    free(memory);
}

TEST_FN void model_fill(ctr_ctx *ctx, const ctr_vars *vars, const char *prefix)
{
    int i;
    for (i = 0; i < vars->count; i++) model_fill_var(ctx, &vars->list[i], strlen(prefix));
}

/* A variable's value, or its gradient, in a file's layout; the caller frees it. */
TEST_FN ctr_real *model_read(ctr_ctx *ctx, const ctr_var *v, int gradient)
{
    int64_t n = v->value->size;
    ctr_real *memory = test_reals(n), *file = test_reals(n);
    if (gradient) ctr_tensor_read_grad(ctx, v->value, memory, n);
    else ctr_tensor_read(ctx, v->value, memory, n);
    model_layout(v, memory, file, 1);
    free(memory);
    return file;
}

/* ------------------------------------------------------------------------- a method's state */

TEST_FN void model_no_number_(void *user, const char *name, int64_t *value)
{
    (void)user;
    (void)name;
    (void)value;
}

/* Calls fn for each tensor of a method's state. */
TEST_FN void model_visit(ctr_method *method, void *user,
                         void (*fn)(void *, const char *, ctr_tensor *, int))
{
    ctr_visitor v;
    v.user = user;
    v.tensor_fn = fn;
    v.number_fn = model_no_number_;
    ctr_method_visit(method, &v);
}

TEST_FN ctr_var model_var(const char *name, ctr_tensor *t, int conv)
{
    ctr_var v;
    memset(&v, 0, sizeof v);
    snprintf(v.name, sizeof v.name, "%s", name);
    v.value = t;
    v.conv = conv;
    return v;
}

typedef struct model_search_ {
    const char *name;
    ctr_var found;
} model_search_;

TEST_FN void model_search_tensor_(void *user, const char *name, ctr_tensor *t, int conv)
{
    model_search_ *s = (model_search_ *)user;
    if (strcmp(name, s->name) == 0) s->found = model_var(name, t, conv);
}

/* One piece of a method's state by its name; value NULL if there is none. */
TEST_FN ctr_var model_state(ctr_method *method, const char *name)
{
    model_search_ s;
    memset(&s, 0, sizeof s);
    s.name = name;
    model_visit(method, &s, model_search_tensor_);
    return s.found;
}

/* The same of one that must be there. */
TEST_FN ctr_tensor *model_tensor(ctr_method *method, const char *name)
{
    ctr_tensor *t = model_state(method, name).value;
    test_true(name, t != NULL);
    return t;
}

/* The user of a visit that fills or compares a state with golden records. */
typedef struct model_walk {
    ctr_ctx *ctx;
    golden_file *g;
    const char *kind;               /* records are "kind:param:name" and "kind:buffer:name" */
    double worst, bound;
    int compared;
} model_walk;

TEST_FN void model_compare(model_walk *w, const char *name, ctr_tensor *t, int conv)
{
    ctr_var v = model_var(name, t, conv);
    char key[192];
    ctr_real *x = model_read(w->ctx, &v, 0);
    double e;
    snprintf(key, sizeof key, "%s:%s:%s", w->kind, strstr(name, ".running_") ? "buffer" : "param",
             name);
    e = test_digest(w->g, key, x, t->size, TEST_DOUBLE ? 0 : 1e-3);
    test_error(key, e, w->bound);
    w->worst = e > w->worst ? e : w->worst;
    w->compared++;
    free(x);
}

/* Each row of x [n, d] to length 1. */
TEST_FN void model_unit_rows(ctr_real *x, int64_t n, int64_t d)
{
    int64_t i, j;
    for (i = 0; i < n; i++) {
        double norm = 0;
        for (j = 0; j < d; j++) norm += (double)x[i * d + j] * (double)x[i * d + j];
        for (j = 0; j < d; j++) x[i * d + j] = (ctr_real)((double)x[i * d + j] / sqrt(norm));
    }
}

/* A hash of the values of a table, by their bits. */
TEST_FN uint64_t model_hash(ctr_ctx *ctx, const ctr_vars *vars)
{
    uint64_t h = UINT64_C(14695981039346656037);
    int i;
    for (i = 0; i < vars->count; i++) {
        ctr_real *v = model_read(ctx, &vars->list[i], 0);
        int64_t k;
        for (k = 0; k < vars->list[i].value->size; k++) {
            uint64_t bits = 0;
            memcpy(&bits, &v[k], sizeof v[k]);
            h = (h ^ bits) * UINT64_C(1099511628211);
            h ^= h >> 29;
        }
        free(v);
    }
    return h;
}

/* A batch of fill(name) as views [views * n, h, w, 3]; model_batch_free gives it back. */
TEST_FN ctr_batch model_batch(const char *name, int64_t n, int views, int64_t h, int64_t w)
{
    ctr_batch b;
    int64_t size = views * n * h * w * 3;
    memset(&b, 0, sizeof b);
    b.n = n;
    b.views = views;
    b.h = h;
    b.w = w;
    b.c = 3;
    b.pixels = test_reals(size);
    test_fill_real(name, b.pixels, size, 1.0);
    return b;
}

TEST_FN void model_batch_free(ctr_batch *b)
{
    free(b->pixels);
    b->pixels = NULL;
}

/* n pictures [n, size, size, 3] of smooth colour, in `classes` classes that differ in hue. */
TEST_FN uint8_t *model_pictures(int64_t n, int64_t size, int32_t *labels, int classes)
{
    uint8_t *p = (uint8_t *)test_alloc((size_t)(n * size * size * 3));
    uint32_t seed = golden_fnv("pictures");
    int64_t i, k, per = size * size * 3;
    for (i = 0; i < n; i++) {
        if (labels) labels[i] = (int32_t)(i % classes);
        for (k = 0; k < per; k++) {
            int64_t x = k / 3 % size, y = k / 3 / size;
            int64_t wave = (x * (1 + i % 3) + y * (1 + i % 4) + 40 * (k % 3) * (i % classes)) * 8;
            p[i * per + k] =
                (uint8_t)((wave + (golden_bits(seed, (size_t)(i * per + k)) & 63)) & 255);
        }
    }
    return p;
}

/* A whole file; *size its bytes. NULL if it is not there. The caller frees it. */
TEST_FN unsigned char *model_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    unsigned char *bytes = NULL;
    long length;
    *size = 0;
    if (!f) return NULL;
    if (fseek(f, 0, SEEK_END) == 0 && (length = ftell(f)) >= 0 && fseek(f, 0, SEEK_SET) == 0) {
        bytes = (unsigned char *)test_alloc((size_t)length);
        *size = fread(bytes, 1, (size_t)length, f);
    }
    fclose(f);
    return bytes;
}

TEST_FN int model_file_write(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    size_t done;
    if (!f) return 0;
    done = fwrite(bytes, 1, size, f);
    return fclose(f) == 0 && done == size;
}

/* The files have the same bytes, and some. */
TEST_FN int model_same_files(const char *what, const char *a, const char *b)
{
    size_t n, m;
    unsigned char *x = model_file(a, &n), *y = model_file(b, &m);
    int ok;
    if (!x || !y || n != m || n == 0) {
        printf("     %s: %lu bytes in %s, %lu in %s\n", what, (unsigned long)n, a, (unsigned long)m,
               b);
        ok = test_true(what, 0);
    } else {
        ok = test_bytes(what, x, y, n);
    }
    free(x);
    free(y);
    return ok;
}

#endif /* CTR_TEST_MODEL_H */
