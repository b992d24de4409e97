/* test_loss.c - NT-Xent and SupCon.
 * run: float double asan asandouble smoke
 *
 * 1. Values, gradients and counts that PyTorch computed (tests/golden/golden_loss.txt), on the CPU
 *    with one and three threads, scalar and best kernels, and on the fake device.
 * 2. The same against plain loops written here, for labels that the golden file does not have:
 *    unlabelled images, all labels distinct, one class, three views.
 * 3. Gradients against central differences (double build).
 * 4. What is known by hand: one image, one dimension, zero rows, scale, order of images, chance.
 * 5. The flat functions give the same bytes; wrong arguments give one clear line.
 * 6. Batches of many tiles against plain loops, warm and cold, with equal rows and zero rows; the
 *    same bytes with 1, 2, 3 and 7 threads; far less memory than a matrix of similarities.
 */
#include "fake_device.h"

enum { NT_XENT, SUPCON };

typedef struct loss_case {
    int kind, views;
    int64_t n, d;
    double t;
    const int32_t *labels;          /* [n] or NULL */
} loss_case;

static int64_t rows(const loss_case *c) { return c->views * c->n; }

/* ------------------------------------------------------------------- the losses in plain loops */

static int same(const loss_case *c, int64_t i, int64_t j)
{
    int32_t a;
    if (i % c->n == j % c->n) return 1;
    if (c->kind == NT_XENT || !c->labels) return 0;
    a = c->labels[i % c->n];
    return a >= 0 && a == c->labels[j % c->n];
}

/* Formula at the head of golden_loss.txt; returns the loss, *count: anchors with a positive. */
static double reference(const loss_case *c, const double *z, int64_t *count)
{
    int64_t m = rows(c), i, j, k;
    double *u = test_doubles(m * c->d), *s = test_doubles(m), total = 0;
    *count = 0;
    for (i = 0; i < m; i++) {
        double q = 0;
        for (k = 0; k < c->d; k++) q += z[i * c->d + k] * z[i * c->d + k];
        for (k = 0; k < c->d; k++) u[i * c->d + k] = q > 0 ? z[i * c->d + k] / sqrt(q) : 0;
    }
    for (i = 0; i < m; i++) {
        double sum = 0, positive = 0, top = -1e300;
        int64_t positives = 0;
        for (j = 0; j < m; j++) {
            s[j] = 0;
            for (k = 0; k < c->d; k++) s[j] += u[i * c->d + k] * u[j * c->d + k] / c->t;
            if (j != i && s[j] > top) top = s[j];
        }
        for (j = 0; j < m; j++) {
            if (j == i) continue;
            sum += exp(s[j] - top);
            if (!same(c, i, j)) continue;
            positive += s[j];
            positives++;
        }
        if (!positives) continue;
        total += top + log(sum) - positive / (double)positives;
        ++*count;
    }
    free(u);
    free(s);
    return *count ? total / (double)*count : 0;
}

/* ---------------------------------------------------------------------- the library's, two ways */

static ctr_tensor *op(ctr_ctx *ctx, const loss_case *c, ctr_tensor *z)
{
    return c->kind == NT_XENT ? ctr_loss_nt_xent(ctx, z, c->views, c->t)
                              : ctr_loss_supcon(ctx, z, c->views, c->labels, c->t);
}

/* Value and gradient by operations on a leaf. */
static double by_op(ctr_ctx *ctx, const loss_case *c, const ctr_real *z, ctr_real *dz)
{
    int64_t shape[2];
    ctr_tensor *leaf, *loss;
    double value;
    shape[0] = rows(c);
    shape[1] = c->d;
    leaf = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor_write(ctx, leaf, z, leaf->size);
    ctr_step_begin(ctx);
    loss = op(ctx, c, leaf);
    value = (double)ctr_tensor_item(ctx, loss);
    ctr_backward(ctx, loss);
    ctr_tensor_read_grad(ctx, leaf, dz, leaf->size);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, leaf);
    return value;
}

static double by_flat(ctr_ctx *ctx, const loss_case *c, const ctr_real *z, ctr_real *dz)
{
    return c->kind == NT_XENT
               ? ctr_loss_nt_xent_flat(ctx, c->n, c->views, c->d, z, c->t, dz)
               : ctr_loss_supcon_flat(ctx, c->n, c->views, c->d, z, c->labels, c->t, dz);
}

/* ---------------------------------------------------------------------------------- the golden
 * file */

/* "ntxent:2:3:16:0.5" and "supcon0:..." into a case with its input; 0 if it is none. */
static int parse(const char *key, loss_case *c, int32_t *labels, ctr_real *z)
{
    int zero = 0, views, n, d, i;
    char name[64];
    memset(c, 0, sizeof *c);
    c->kind = key[0] == 'n' ? NT_XENT : SUPCON;
    key += 6;
    if (*key == '0') {
        zero = 1;
        key++;
    }
    if (sscanf(key, ":%d:%d:%d:%lf", &views, &n, &d, &c->t) != 4) return 0;
    c->views = views;
    c->n = n;
    c->d = d;
    for (i = 0; i < n; i++) labels[i] = i % 3;
    c->labels = c->kind == SUPCON ? labels : NULL;
    snprintf(name, sizeof name, "z:%d:%d", n, d);
    test_fill_real(name, z, rows(c) * d, 1.0);
    if (zero) memset(z + d, 0, (size_t)d * sizeof *z);
    return 1;
}

/* Value and gradient of one record. A gradient is a difference of numbers of size 1 / T: in float
   it cannot be closer to zero than their digits allow, hence the floor. */
static void golden_case(ctr_ctx *ctx, golden_file *g, const char *base)
{
    enum { MOST = 3 * 17 * 64 };
    static ctr_real z[MOST], dz[MOST], flat[MOST];
    int32_t labels[17];
    double got, bound = test_bound(1e-8, 1e-4), want;
    char key[160];
    loss_case c;
    if (!test_true("a key that can be read", parse(base, &c, labels, z))) return;
    got = by_op(ctx, &c, z, dz);
    snprintf(key, sizeof key, "%s:loss", base);
    want = golden_get(g, key, NULL)[0];
    test_error(key, fabs(got - want) / (1 + fabs(want)), bound);
    snprintf(key, sizeof key, "%s:dz", base);
    test_error(key, test_digest(g, key, dz, rows(&c) * c.d, TEST_DOUBLE ? 0.0 : 0.02 / c.t),
               bound);
    snprintf(key, sizeof key, "%s flat value", base);
    test_equal(key, by_flat(ctx, &c, z, flat), got);
    snprintf(key, sizeof key, "%s flat gradient", base);
    test_bytes(key, flat, dz, (size_t)(rows(&c) * c.d) * sizeof *dz);
    test_fine(ctx, base);
}

static void golden_all(ctr_ctx *ctx)
{
    golden_file g;
    size_t i;
    char base[96];
    if (!test_golden_open(&g, "golden_loss.txt")) return;
    for (i = 0; i < g.count; i++) {
        size_t n = strlen(g.records[i].key);
        if (!golden_ends_(g.records[i].key, ":loss") || n >= sizeof base) continue;
        snprintf(base, sizeof base, "%.*s", (int)(n - 5), g.records[i].key);
        golden_case(ctx, &g, base);
    }
    golden_close(&g);
}

/* Unit vectors in the plane by their angles in degrees: values that stand in METHODS' appendix A.
 */
static void angles(ctr_ctx *ctx)
{
    static const double views[8] = { 0, 40, 80, 120, 10, 55, 85, 140 };
    static const double points[6] = { 0, 10, 20, 50, 60, 80 };
    static const int32_t classes[6] = { 0, 0, 0, 1, 1, 2 };
    static const double t[5] = { 0.07, 0.1, 0.2, 0.5, 1 };
    static const double want[5] = { .2311152553, .3752961798, .7181412757, 1.1962715706,
                                    1.4950531827 };
    ctr_real z[16];
    double got, bound = test_bound(1e-8, 1e-5);
    char name[64];
    int i;
    for (i = 0; i < 8; i++) {
        z[2 * i] = CTR_TEST_R(cos(views[i] * 3.14159265358979323846 / 180));
        z[2 * i + 1] = CTR_TEST_R(sin(views[i] * 3.14159265358979323846 / 180));
    }
    for (i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "NT-Xent of eight angles, T %g", t[i]);
        got = ctr_loss_nt_xent_flat(ctx, 4, 2, 2, z, t[i], NULL);
        test_error(name, fabs(got - want[i]), bound);
    }
    for (i = 0; i < 6; i++) {
        z[2 * i] = CTR_TEST_R(cos(points[i] * 3.14159265358979323846 / 180));
        z[2 * i + 1] = CTR_TEST_R(sin(points[i] * 3.14159265358979323846 / 180));
    }
    got = ctr_loss_supcon_flat(ctx, 6, 1, 2, z, classes, 0.1, NULL);
    test_error("SupCon of six angles, T 0.1", fabs(got - .7200604451), bound);
}

/* ---------------------------------------------------------------------- other labels, plain loops
 */

typedef struct check_user {
    const loss_case *c;
    ctr_tensor *leaf;
} check_user;

static ctr_tensor *check_loss(ctr_ctx *ctx, void *user)
{
    const check_user *u = (const check_user *)user;
    return op(ctx, u->c, u->leaf);
}

static void gradient_check(ctr_ctx *ctx, const loss_case *c, const ctr_real *z, const char *name)
{
    check_user u;
    int64_t shape[2];
    shape[0] = rows(c);
    shape[1] = c->d;
    u.c = c;
    u.leaf = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor_write(ctx, u.leaf, z, u.leaf->size);
    test_error(name, ctr_gradient_check(ctx, check_loss, &u, u.leaf, 1e-5, 40), 1e-6);
    ctr_tensor_destroy(ctx, u.leaf);
}

/* Loss, count of anchors (by the verb itself, on the CPU) and gradient of one labelling. */
static void labelled_case(ctr_ctx *ctx, const char *what, const loss_case *c, int on_cpu)
{
    int64_t m = rows(c), i, count;
    double *z = test_doubles(m * c->d), want, got;
    ctr_real *zr = test_reals(m * c->d), *dz = test_reals(m * c->d);
    ctr_real *note = test_reals(2 * m), *unit = test_reals(m * c->d), out[CTR_CONTRAST_OUT];
    int32_t *ids = (int32_t *)test_alloc((size_t)m * sizeof *ids);
    char name[128];
    test_fill(what, z, m * c->d, 1.0);
    for (i = 0; i < m * c->d; i++) zr[i] = (ctr_real)z[i];
    want = reference(c, z, &count);
    got = by_op(ctx, c, zr, dz);
    snprintf(name, sizeof name, "%s, value", what);
    test_error(name, fabs(got - want) / (1 + fabs(want)), test_bound(1e-12, 1e-5));
    if (on_cpu) {
        for (i = 0; i < m; i++)
            ids[i] = c->labels && c->labels[i % c->n] >= 0 ? c->labels[i % c->n]
                                                           : -2 - (int32_t)(i % c->n);
        ctr_k_normalize(ctx, m, c->d, zr, unit, note);
        ctr_k_contrast(ctx, m, c->d, ids, unit, (ctr_real)(1 / c->t), note, note + m, out);
        snprintf(name, sizeof name, "%s, anchors that count", what);
        test_equal(name, (double)out[1], (double)count);
        snprintf(name, sizeof name, "%s, the verb's loss", what);
        test_error(name, fabs((double)out[0] - want) / (1 + fabs(want)), test_bound(1e-12, 1e-5));
    }
    snprintf(name, sizeof name, "%s, gradient by differences", what);
    if (TEST_DOUBLE) gradient_check(ctx, c, zr, name);
    test_fine(ctx, what);
    free(z);
    free(zr);
    free(dz);
    free(note);
    free(unit);
    free(ids);
}

static void labelled(ctr_ctx *ctx, int on_cpu)
{
    static const int32_t some[7] = {2, -1, 0, 2, -1, 0, 5}, none[7] = {-1, -1, -1, -1, -1, -1, -1};
    static const int32_t apart[7] = { 4, 9, 1, 0, 77, 3, 2 }, one[7] = { 3, 3, 3, 3, 3, 3, 3 };
    static const int32_t large[7] = { 2147483647, 0, 2147483647, 1, -2147483647, 1, 0 };
    static const struct {
        const char *name;
        int kind, views;
        const int32_t *labels;
        double t;
    } c[] = {{"some unlabelled, 2 views", SUPCON, 2, some, 0.5},
             {"some unlabelled, 3 views", SUPCON, 3, some, 0.1},
             {"some unlabelled, 1 view", SUPCON, 1, some, 0.5},
             {"all unlabelled, 2 views", SUPCON, 2, none, 0.2},
             {"all distinct, 2 views", SUPCON, 2, apart, 0.5},
             {"one class, 1 view", SUPCON, 1, one, 0.3},
             {"one class, 4 views", SUPCON, 4, one, 1},
             {"large labels, 2 views", SUPCON, 2, large, 0.5},
             {"NT-Xent, 2 views", NT_XENT, 2, NULL, 0.07},
             {"NT-Xent, 3 views", NT_XENT, 3, NULL, 0.5},
             {"NT-Xent, 5 views", NT_XENT, 5, NULL, 5}};
    size_t i;
    for (i = 0; i < sizeof c / sizeof *c; i++) {
        loss_case k;
        k.kind = c[i].kind;
        k.views = c[i].views;
        k.n = 7;
        k.d = 5;
        k.t = c[i].t;
        k.labels = c[i].labels;
        labelled_case(ctx, c[i].name, &k, on_cpu);
    }
}

/* ------------------------------------------------------------------------------- known by hand */

/* The largest size of an entry; what is not a number counts as huge. */
static double largest(const ctr_real *x, int64_t n)
{
    double most = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        if (!golden_finite_((double)x[i])) return GOLDEN_BAD;
        if (fabs((double)x[i]) > most) most = fabs((double)x[i]);
    }
    return most;
}

static void by_hand_no_positive(ctr_ctx *ctx)
{
    static const int32_t apart[4] = { 0, 1, 2, 3 }, none[4] = { -1, -1, -1, -1 };
    ctr_real z[12], dz[12];
    int i;
    test_fill_real("no positive", z, 12, 1.0);
    for (i = 0; i < 12; i++) dz[i] = 1;
    test_equal("one view, labels all distinct: exactly 0",
               ctr_loss_supcon_flat(ctx, 4, 1, 3, z, apart, 0.1, dz), 0);
    test_equal("and a gradient of exactly 0", largest(dz, 12), 0);
    for (i = 0; i < 12; i++) dz[i] = 1;
    test_equal("one view, nothing labelled: exactly 0",
               ctr_loss_supcon_flat(ctx, 4, 1, 3, z, none, 0.1, dz), 0);
    test_equal("and a gradient of exactly 0", largest(dz, 12), 0);
    test_fine(ctx, "batches without a positive");
}

/* n = 1: the only other row is the positive, so the loss is 0 at any temperature. d = 1: cosines
   are
   +-1, and unit rows have no direction to move in. */
static void by_hand_small(ctr_ctx *ctx)
{
    static const double t[5] = { 0.05, 0.1, 0.5, 1, 10 };
    ctr_real z[16], dz[16], tiny = CTR_TEST_R(1e-6), e[4];
    double got, want, a;
    int i, k;
    test_fill_real("small", z, 16, 1.0);
    for (i = 0; i < 5; i++) {
        test_error("one image: the loss is 0",
                   fabs(ctr_loss_nt_xent_flat(ctx, 1, 2, 8, z, t[i], dz)), test_bound(1e-14, 1e-5));
        test_error("one image: nothing pulls", largest(dz, 16), test_bound(1e-12, 1e-4));
        /* rows +, -, +, -: the positive at cosine 1, two others at -1 */
        e[0] = e[2] = 3;
        e[1] = e[3] = -2;
        got = ctr_loss_nt_xent_flat(ctx, 2, 2, 1, e, t[i], dz);
        a = exp(-2 / t[i]);
        want = log(1 + 2 * a);
        test_error("one dimension, four rows: ln(1 + 2 exp(-2/T))", fabs(got - want),
                   test_bound(1e-14, 2e-6));
        test_error("one dimension: nothing to move", largest(dz, 4), test_bound(1e-12, 1e-5));
    }
    /* equal rows: no row stands out, the loss is the chance's */
    for (k = 2; k < 5; k++) {
        for (i = 0; i < 12; i++) z[i] = CTR_TEST_R(0.25);
        got = ctr_loss_nt_xent_flat(ctx, 12 / k / 1, k, 1, z, 0.5, NULL);
        want = log((double)(12 / k * k - 1));
        test_error("equal rows: ln(rows - 1)", fabs(got - want), test_bound(1e-14, 2e-6));
        test_error("chance", fabs(ctr_loss_nt_xent_chance(12 / k, k) - want), 1e-14);
    }
    test_equal("chance of one row", ctr_loss_nt_xent_chance(1, 1), 0);
    /* tiny and huge rows have directions, too */
    test_fill_real("small", z, 16, 1.0);
    got = ctr_loss_nt_xent_flat(ctx, 4, 2, 2, z, 0.5, NULL);
    for (i = 0; i < 16; i++) z[i] *= i / 2 % 2 ? tiny : 1 / tiny;
    want = ctr_loss_nt_xent_flat(ctx, 4, 2, 2, z, 0.5, NULL);
    test_error("the length of rows does not matter", fabs(got - want), test_bound(1e-13, 1e-5));
    test_fine(ctx, "small batches");
}

/* All rows zero: all cosines 0. One zero row: finite, its gradient exactly zero. */
static void by_hand_zero(ctr_ctx *ctx)
{
    ctr_real z[24], dz[24];
    double got;
    int i;
    memset(z, 0, sizeof z);
    got = ctr_loss_nt_xent_flat(ctx, 4, 2, 3, z, 0.1, dz);
    test_error("zero rows: ln 7", fabs(got - log(7.0)), test_bound(1e-14, 1e-6));
    test_equal("zero rows: gradient exactly 0", largest(dz, 24), 0);
    test_fill_real("zero row", z, 24, 1.0);
    for (i = 6; i < 9; i++) z[i] = 0;
    got = ctr_loss_nt_xent_flat(ctx, 4, 2, 3, z, 0.1, dz);
    test_true("a zero row: a finite loss", golden_finite_(got) && got > 0);
    test_equal("a zero row: its gradient exactly 0", largest(dz + 6, 3), 0);
    test_true("a zero row: the others move", largest(dz, 24) > 1e-3 && largest(dz, 24) < 100);
    test_fine(ctx, "zero rows");
}

/* A cold temperature must not overflow: at T = 1e-3 a cosine is 1000 in the exponent. */
static void by_hand_cold(ctr_ctx *ctx)
{
    loss_case c;
    double z[24], want, got;
    ctr_real zr[24], dz[24];
    int64_t count;
    int i;
    c.kind = NT_XENT;
    c.views = 2;
    c.n = 4;
    c.d = 3;
    c.t = 1e-3;
    c.labels = NULL;
    test_fill("cold", z, 24, 1.0);
    for (i = 0; i < 24; i++) zr[i] = (ctr_real)z[i];
    want = reference(&c, z, &count);
    got = by_op(ctx, &c, zr, dz);
    test_error("T = 0.001", fabs(got - want) / want, test_bound(1e-12, 1e-5));
    test_true("its gradient is finite and not zero", largest(dz, 24) > 1 && largest(dz, 24) < 1e5);
    test_fine(ctx, "a cold temperature");
}

static void refusals(ctr_ctx *ctx)
{
    static const int32_t labels[3] = { 0, 0, 1 };
    ctr_real z[12] = { 0 }, nan_value;
    int64_t shape[3] = { 3, 4, 1 };
    ctr_tensor *odd, *deep, *whole;
    uint32_t bits32 = 0x7fc00000u;
    uint64_t bits64 = (uint64_t)0x7ff80000u << 32;
    double nan_double;
    test_fill_real("refused", z, 12, 1.0);
    memcpy(&nan_double, &bits64, sizeof nan_double);
    memcpy(&nan_value, TEST_DOUBLE ? (const void *)&bits64 : (const void *)&bits32,
           sizeof nan_value);
    odd = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    deep = ctr_tensor_create(ctx, CTR_F32, 3, shape, 1);
    whole = ctr_tensor_create(ctx, CTR_I32, 2, shape, 0);
    ctr_step_begin(ctx);
    ctr_loss_nt_xent(ctx, odd, 2, 0.5);
    test_fails(ctx, "three rows of two views", CTR_E_SHAPE, "loss_nt_xent");
    ctr_loss_nt_xent(ctx, odd, 1, 0.5);
    test_fails(ctx, "NT-Xent of one view", CTR_E_SHAPE, "views");
    ctr_loss_nt_xent(ctx, odd, 0, 0.5);
    test_fails(ctx, "no views", CTR_E_SHAPE, "views");
    ctr_loss_nt_xent(ctx, odd, -3, 0.5);
    test_fails(ctx, "a negative number of views", CTR_E_SHAPE, "views");
    ctr_loss_nt_xent(ctx, deep, 3, 0.5);
    test_fails(ctx, "three dimensions", CTR_E_SHAPE, "loss_nt_xent");
    ctr_loss_supcon(ctx, deep, 3, labels, 0.5);
    test_fails(ctx, "three dimensions with labels", CTR_E_SHAPE, "loss_supcon");
    ctr_loss_nt_xent(ctx, whole, 3, 0.5);
    test_fails(ctx, "whole numbers", CTR_E_VALUE, "loss_nt_xent");
    ctr_loss_nt_xent(ctx, odd, 3, 0);
    test_fails(ctx, "temperature 0", CTR_E_VALUE, "temperature");
    ctr_loss_supcon(ctx, odd, 3, labels, -0.5);
    test_fails(ctx, "temperature below 0", CTR_E_VALUE, "temperature");
    ctr_loss_nt_xent(ctx, odd, 3, nan_double);
    test_fails(ctx, "temperature NaN", CTR_E_VALUE, "temperature");
    ctr_step_end(ctx);
    test_equal("a refused flat call gives 0", ctr_loss_nt_xent_flat(ctx, 3, 2, 2, z, 0, NULL), 0);
    test_fails(ctx, "flat: temperature 0", CTR_E_VALUE, "temperature");
    ctr_loss_nt_xent_flat(ctx, 3, 2, 0, z, 0.5, NULL);
    test_fails(ctx, "flat: no numbers", CTR_E_SHAPE, "at least 1 number");
    ctr_loss_nt_xent_flat(ctx, 0, 2, 2, z, 0.5, NULL);
    test_true("flat: no images", ctr_error(ctx) != CTR_OK && ctr_error_text(ctx)[0]);
    ctr_error_clear(ctx);
    ctr_tensor_destroy(ctx, odd);
    ctr_tensor_destroy(ctx, deep);
    ctr_tensor_destroy(ctx, whole);
    test_true("the context works afterwards",
              ctr_loss_nt_xent_flat(ctx, 3, 2, 2, z, 0.5, NULL) > 0);
    test_fine(ctx, "after the refusals");
}

/* Views of one image may be exchanged, and so may images: only the order of sums changes. */
static void symmetries(ctr_ctx *ctx)
{
    ctr_real z[40], y[40], dz[40], dy[40];
    double a, b, worst = 0;
    int i, k;
    test_fill_real("symmetry", z, 40, 1.0);
    for (i = 0; i < 10; i++)              /* rows of view 1 and 2 exchanged, images turned round */
        for (k = 0; k < 4; k++) y[(9 - i) * 4 + k] = z[i * 4 + k];
    a = ctr_loss_nt_xent_flat(ctx, 5, 2, 4, z, 0.3, dz);
    b = ctr_loss_nt_xent_flat(ctx, 5, 2, 4, y, 0.3, dy);
    test_error("the order does not matter to the loss", fabs(a - b), test_bound(1e-14, 1e-6));
    for (i = 0; i < 10; i++)
        for (k = 0; k < 4; k++) {
            double e = fabs((double)(dz[i * 4 + k] - dy[(9 - i) * 4 + k]));
            worst = e > worst ? e : worst;
        }
    test_error("nor to the gradient", worst, test_bound(1e-14, 1e-6));
    for (worst = 0, i = 0; i < 10;
         i++) { /* the loss depends on directions: gradients stand upright */
        double dot = 0;
        for (k = 0; k < 4; k++) dot += (double)dz[i * 4 + k] * (double)z[i * 4 + k];
        worst = fabs(dot) > worst ? fabs(dot) : worst;
    }
    test_error("gradients are perpendicular to their rows", worst, test_bound(1e-14, 1e-6));
}

/* ---------------------------------------------------------------------- batches of many tiles */

/* The gradient to z in plain loops, see the formula at the head of bench/loss.c: with
   g_ij = (exp(s_ij - lse_i) - [j positive] / positives_i) / anchors the unit rows get
   sum_j (g_ij + g_ji) u_j / T, of which z gets what stands upright on it, over its length. */
static void plain_gradient(const loss_case *c, const double *z, double *dz)
{
    int64_t m = rows(c), d = c->d, i, j, k, anchors = 0;
    double *u = test_doubles(m * d), *length = test_doubles(m), *lse = test_doubles(m);
    double *positives = test_doubles(m), *s = test_doubles(m * m), along;
    for (i = 0; i < m; i++) {
        for (k = 0; k < d; k++) length[i] += z[i * d + k] * z[i * d + k];
        length[i] = sqrt(length[i]);
        for (k = 0; k < d && length[i] > 0; k++) u[i * d + k] = z[i * d + k] / length[i];
    }
    for (i = 0; i < m; i++) {
        double top = -1e300;
        for (j = 0; j < m; j++) {
            for (k = 0; k < d; k++) s[i * m + j] += u[i * d + k] * u[j * d + k] / c->t;
            if (j == i) continue;
            top = s[i * m + j] > top ? s[i * m + j] : top;
            positives[i] += same(c, i, j);
        }
        for (j = 0; j < m; j++)
            if (j != i) lse[i] += exp(s[i * m + j] - top);
        lse[i] = top + log(lse[i]);
        anchors += positives[i] > 0;
    }
    for (i = 0; i < m; i++) {
        double *g = dz + i * d;
        memset(g, 0, (size_t)d * sizeof *g);
        for (j = 0; j < m; j++) {
            double e = 0;
            if (j == i) continue;
            if (positives[i] > 0) e += exp(s[i * m + j] - lse[i]);
            if (positives[j] > 0) e += exp(s[i * m + j] - lse[j]);
            if (same(c, i, j)) e -= 2 / positives[i];
            for (k = 0; k < d; k++) g[k] += e * u[j * d + k] / (c->t * (double)anchors);
        }
        for (along = 0, k = 0; k < d; k++) along += g[k] * u[i * d + k];
        for (k = 0; k < d; k++)
            g[k] = length[i] > 0 ? (g[k] - along * u[i * d + k]) / length[i] : 0;
    }
    free(u);
    free(length);
    free(lse);
    free(positives);
    free(s);
}

/* Views of one image are alike, but every third image's second view is its neighbour's: some
   anchors find their positive, and some do not. */
static void alike(const loss_case *c, double *z)
{
    int64_t i, k, m = rows(c);
    double *images = test_doubles(c->n * c->d);
    test_fill("alike", images, c->n * c->d, 1.0);
    test_fill("noise", z, m * c->d, 0.3);
    for (i = 0; i < m; i++) {
        int64_t image = i % c->n, other = i / c->n == 1 && image % 3 == 0;
        for (k = 0; k < c->d; k++)
            z[i * c->d + k] =
                (double)(float)(z[i * c->d + k] + images[(image + other) % c->n * c->d + k]);
    }
    free(images);
}

/* Loss and gradient against plain loops. In float a similarity is off by some 1e-7 / T, and so is
   every term of the gradient, relatively. */
static void tiled_case(ctr_ctx *ctx, const char *what, const loss_case *c, const double *z)
{
    int64_t i, size = rows(c) * c->d, count;
    ctr_real *zr = test_reals(size), *dz = test_reals(size);
    double *want = test_doubles(size), got, value = reference(c, z, &count), slack = 1e-6 / c->t;
    char name[128];
    for (i = 0; i < size; i++) zr[i] = (ctr_real)z[i];
    plain_gradient(c, z, want);
    got = by_op(ctx, c, zr, dz);
    snprintf(name, sizeof name, "%s, T %g: loss", what, c->t);
    test_error(name, fabs(got - value), test_bound(1e-11, 1e-6 + slack));
    snprintf(name, sizeof name, "%s, T %g: gradient", what, c->t);
    test_near(name, dz, want, size, test_bound(1e-11, 5e-6 + slack), 1e-12);
    test_fine(ctx, what);
    free(zr);
    free(dz);
    free(want);
}

/* The verb's other numbers, which make up the report. */
static void tiled_report(ctr_ctx *ctx, const char *what, const loss_case *c, const double *z)
{
    int64_t m = rows(c), d = c->d, i, j, k;
    ctr_real *zr = test_reals(m * d), *unit = test_reals(m * d), *note = test_reals(2 * m);
    ctr_real out[CTR_CONTRAST_OUT];
    int32_t *ids = (int32_t *)test_alloc((size_t)m * sizeof *ids);
    double right = 0, anchors = 0, near_sum = 0, far_sum = 0, pairs = 0;
    for (i = 0; i < m * d; i++) zr[i] = (ctr_real)z[i];
    for (i = 0; i < m; i++)
        ids[i] = c->labels && c->labels[i % c->n] >= 0 ? c->labels[i % c->n]
                                                       : -2 - (int32_t)(i % c->n);
    ctr_k_normalize(ctx, m, d, zr, unit, note);
    ctr_k_contrast(ctx, m, d, ids, unit, (ctr_real)(1 / c->t), note, note + m, out);
    for (i = 0; i < m; i++) {
        double best = -1e300, top = -1e300, count = 0;
        for (j = 0; j < m; j++) {
            double s = 0;
            if (j == i) continue;
            for (k = 0; k < d; k++) s += (double)unit[i * d + k] * (double)unit[j * d + k] / c->t;
            if (same(c, i, j)) {
                count++;
                near_sum += s;
                best = s > best ? s : best;
            } else {
                far_sum += s;
            }
            top = s > top ? s : top;
        }
        anchors += count > 0;
        right += count > 0 && best >= top;
        pairs += count;
        if ((double)note[m + i] != count) test_equal("positives", (double)note[m + i], count);
    }
    test_equal(what, (double)out[1], anchors);
    test_true("some anchors find their positive, others do not", right > 0 && right < anchors);
    test_error("share of anchors that do", fabs((double)out[2] - right / anchors), 1.5 / anchors);
    test_error("mean over positives", fabs((double)out[3] - near_sum / pairs) * c->t,
               test_bound(1e-13, 1e-6));
    test_error("mean over negatives",
               fabs((double)out[4] - far_sum / ((double)m * (double)(m - 1) - pairs)) * c->t,
               test_bound(1e-13, 1e-6));
    test_fine(ctx, what);
    free(zr);
    free(unit);
    free(note);
    free(ids);
}

/* Rows and columns that are no multiples of tiles, panels or vectors. T 0.034 and 0.033 are on both
   sides of what one shift of exp can do. */
static void tiled(ctr_ctx *ctx)
{
    static const struct {
        const char *name;
        int kind, views;
        int64_t n, d;
        int classes;
    } c[] = {{"2 views of 301, 17 columns", NT_XENT, 2, 301, 17, 0},
             {"3 views of 67, 40 columns", NT_XENT, 3, 67, 40, 0},
             {"2 views of 51, 300 columns", SUPCON, 2, 51, 300, 7},
             {"385 of 4 classes", SUPCON, 1, 385, 9, 4},
             {"2 views of 950, many classes", SUPCON, 2, 950, 3, 400}};
    static const double t[6] = { 0.5, 0.01, 0.05, 0.034, 0.033, 10 };
    int32_t labels[950];
    loss_case k;
    double *z;
    size_t i, j, many = test_quick() ? 4 : 5;
    for (i = 0; i < many; i++) {
        k.kind = c[i].kind;
        k.views = c[i].views;
        k.n = c[i].n;
        k.d = c[i].d;
        for (j = 0; j < 950; j++)
            labels[j] = j % 11 == 3 ? -1 : (int32_t)(j * j % 1009) % (c[i].classes + 1) - 1;
        k.labels = k.kind == SUPCON ? labels : NULL;
        z = test_doubles(rows(&k) * k.d);
        alike(&k, z);
        for (j = 0; j < (i == 4 || test_quick() ? 2 : 6); j++) {
            k.t = t[j];
            tiled_case(ctx, c[i].name, &k, z);
        }
        tiled_report(ctx, c[i].name, &k, z);
        free(z);
    }
}

/* Rows that occur many times, and zero rows. */
static void duplicates(ctr_ctx *ctx)
{
    static const double t[3] = { 0.5, 0.05, 0.01 };
    int32_t labels[157];
    loss_case c;
    int64_t i, k;
    int j;
    double *z = test_doubles(2 * 157 * 20);
    for (i = 0; i < 157; i++) labels[i] = (int32_t)(i % 13);
    test_fill("duplicates", z, 2 * 157 * 20, 1.0);
    for (i = 0; i < 2 * 157; i++)
        for (k = 0; k < 20; k++) z[i * 20 + k] = i % 7 == 5 ? 0 : z[i % 5 * 20 + k];
    c.views = 2;
    c.n = 157;
    c.d = 20;
    for (j = 0; j < 6; j++) {
        c.kind = j % 2 ? SUPCON : NT_XENT;
        c.labels = j % 2 ? labels : NULL;
        c.t = t[j / 2];
        tiled_case(ctx, j % 2 ? "equal and zero rows, classes" : "equal and zero rows", &c, z);
    }
    free(z);
}

/* A row that is not a number makes the loss one that is not. */
static void not_finite(ctr_ctx *ctx)
{
    ctr_real z[100 * 4];
    uint32_t bits32 = 0x7fc00000u;
    uint64_t bits64 = (uint64_t)0x7ff80000u << 32;
    test_fill_real("not finite", z, 400, 1.0);
    memcpy(&z[203], TEST_DOUBLE ? (const void *)&bits64 : (const void *)&bits32, sizeof z[0]);
    test_true("NaN in, NaN out",
              !golden_finite_(ctr_loss_nt_xent_flat(ctx, 50, 2, 4, z, 0.5, NULL)));
    test_true("NaN in, NaN out, cold",
              !golden_finite_(ctr_loss_nt_xent_flat(ctx, 50, 2, 4, z, 0.01, NULL)));
    test_fine(ctx, "a row that is not a number");
}

/* All that a context takes for loss and gradient of m rows, input and tiles included, against the
   matrix of similarities. */
static void memory(ctr_kernels kernels, const char *name)
{
    enum { D = 16 };
    int64_t m = test_quick() ? 2048 : 4096;
    size_t matrix = (size_t)(m * m) * sizeof(ctr_real);
    ctr_ctx *ctx = test_ctx(2, kernels);
    ctr_real *z = test_reals(m * D), *dz = test_reals(m * D);
    ctr_memory stats;
    test_fill_real("memory", z, m * D, 1.0);
    ctr_loss_nt_xent_flat(ctx, m / 2, 2, D, z, 0.2, dz);
    stats = ctr_memory_stats(ctx);
    test_true("the loss ran", largest(dz, m * D) > 0 && largest(dz, m * D) < 1);
    test_error(name, (double)stats.peak / (double)matrix, 1.0 / 8);
    test_error("the step's part of it", (double)stats.slab_peak / (double)matrix, 1.0 / 32);
    test_fine(ctx, name);
    ctr_ctx_destroy(ctx);
    free(z);
    free(dz);
}

/* Bytes of value and gradient for batches that are cut into many tiles. */
static void threads_of(int kind, int64_t n, int64_t d, double t)
{
    static const int counts[4] = { 1, 2, 3, 7 };
    ctr_real *z = test_reals(2 * n * d), *dz = test_reals(2 * n * d);
    ctr_real *first = test_reals(2 * n * d);
    int32_t *labels = (int32_t *)test_alloc((size_t)n * sizeof *labels);
    loss_case c;
    double value = 0, got;
    int i;
    char name[64];
    for (i = 0; i < n; i++) labels[i] = i % 23 - 1;
    c.kind = kind;
    c.views = 2;
    c.n = n;
    c.d = d;
    c.t = t;
    c.labels = kind == SUPCON ? labels : NULL;
    test_fill_real("threads", z, 2 * n * d, 1.0);
    for (i = 0; i < 4; i++) {
        ctr_ctx *ctx = test_ctx(counts[i], CTR_KERNELS_AUTO);
        got = by_flat(ctx, &c, z, i ? dz : first);
        if (!i) value = got;
        snprintf(name, sizeof name, "%d rows, T %g, %d threads", (int)(2 * n), t, counts[i]);
        test_equal(name, got, value);
        if (i) test_bytes(name, dz, first, (size_t)(2 * n * d) * sizeof *dz);
        test_fine(ctx, name);
        ctr_ctx_destroy(ctx);
    }
    free(z);
    free(dz);
    free(first);
    free(labels);
}

static void threads(void)
{
    threads_of(NT_XENT, 96, 40, 0.1);
    threads_of(NT_XENT, 301, 33, 0.1);
    threads_of(NT_XENT, 301, 33, 0.01);
    threads_of(SUPCON, 203, 20, 0.2);
    if (!test_quick()) threads_of(SUPCON, 1000, 5, 0.02);
}

static void all(ctr_ctx *ctx, const char *where, int on_cpu)
{
    char name[96];
    snprintf(name, sizeof name, "golden values, %s", where);
    test_group(name);
    golden_all(ctx);
    angles(ctx);
    snprintf(name, sizeof name, "labels, %s", where);
    test_group(name);
    labelled(ctx, on_cpu);
    snprintf(name, sizeof name, "known by hand, %s", where);
    test_group(name);
    by_hand_no_positive(ctx);
    by_hand_small(ctx);
    by_hand_zero(ctx);
    by_hand_cold(ctx);
    symmetries(ctx);
    snprintf(name, sizeof name, "refusals, %s", where);
    test_group(name);
    refusals(ctx);
    snprintf(name, sizeof name, "many tiles, %s", where);
    test_group(name);
    if (on_cpu) tiled(ctx);
    duplicates(ctx);
    not_finite(ctx);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    fake_device *fake;
    test_begin("test_loss", argc, argv);
    if (test_on_device())
        test_skip("the verbs, and many tiles by them", "they get the host's memory here");
    ctx = test_ctx(1, CTR_KERNELS_SCALAR);
    all(ctx, "scalar, 1 thread", !test_on_device());
    ctr_ctx_destroy(ctx);
    ctx = test_ctx(3, CTR_KERNELS_AUTO);
    all(ctx, "best kernels, 3 threads", !test_on_device());
    ctr_ctx_destroy(ctx);
    fake = fake_device_open();
    ctx = fake_device_ctx(fake);
    all(ctx, "fake device", 0);
    ctr_ctx_destroy(ctx);
    test_true("the fake device ran the verbs of the loss",
              fake_device_ran(fake, "contrast") && fake_device_ran(fake, "contrast_grad"));
    fake_device_close(fake);
    test_group("threads");
    threads();
    test_group("memory");
    memory(CTR_KERNELS_AUTO, "peak memory of the loss over its matrix, best kernels");
    if (!test_quick()) memory(CTR_KERNELS_SCALAR, "peak memory of the loss, scalar");
    return test_end();
}
