/* test_losses.c - the losses of LOSS other than NT-Xent and SupCon, and those of AGREE.
 * run: float double asan asandouble smoke valgrind
 *
 * 1. Values, gradients and counts that PyTorch computed from the authors' formulas
 *    (tests/golden/golden_losses.txt), on the CPU with one and three threads, scalar and best
 *    kernels, and on the fake device; the flat functions give the same bytes.
 * 2. Values of unit vectors in the plane that are known from elsewhere.
 * 3. Gradients against central differences (double build).
 * 4. What is known by hand: chance, collapse, zero rows, duplicates, cold temperatures, CLIP's
 *    clamp, NPID's constant, scores of a bank, random mining, what goes into the report.
 * 5. Planned memory, no allocation in a third step, allocations that fail, threads, one clear line
 *    for wrong arguments.
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC
#endif
#include "fake_device.h"

#define PI_ 3.14159265358979323846

enum {
    INFONCE, CLIP, SIGLIP, DCL, REGRESSION, NEGCOS, BARLOW, VICREG, SWAV, NCE, ALIGN, UNIFORM,
    SIAMESE, TRIPLET, KINDS
};
static const char *const kind_name[KINDS] = {
    "infonce", "clip", "siglip", "dcl", "regression", "negcos", "barlow", "vicreg", "swav", "nce",
    "align", "uniform", "siamese", "triplet"
};

enum { MOST_ROWS = 5 * 17, MOST = MOST_ROWS * 64, INPUTS = 4 };

typedef struct loss_case {
    int kind, args;
    int64_t n, d;
    double a[6];                    /* the numbers of the key behind n and d */
    int32_t ids[MOST_ROWS];
    ctr_real x[INPUTS][MOST];       /* the inputs' content */
    int64_t rows[INPUTS], cols[INPUTS];
    int inputs, learn;              /* the first `learn` of them get a gradient */
    ctr_real other[MOST];           /* negatives or codes */
    int64_t other_rows;
    double z;                       /* NPID's constant */
    ctr_triplet_config triplet;
    double active;
} loss_case;

static loss_case the_case;

/* ------------------------------------------------------------------------------ cases from keys */

static int key_kind(const char *key)
{
    int k;
    for (k = 0; k < KINDS; k++) {
        size_t n = strlen(kind_name[k]);
        if (!strncmp(key, kind_name[k], n) && key[n] == ':') return k;
    }
    return -1;
}

/* rows of length 1, in place */
static void unit(ctr_real *x, int64_t rows, int64_t d)
{
    int64_t i, j;
    for (i = 0; i < rows; i++) {
        double q = 0;
        for (j = 0; j < d; j++) q += (double)x[i * d + j] * (double)x[i * d + j];
        for (j = 0; j < d && q > 0; j++) x[i * d + j] = (ctr_real)((double)x[i * d + j] / sqrt(q));
    }
}

static void softmax(ctr_real *x, int64_t rows, int64_t d)
{
    int64_t i, j;
    for (i = 0; i < rows; i++) {
        double sum = 0;
        for (j = 0; j < d; j++) sum += exp((double)x[i * d + j]);
        for (j = 0; j < d; j++) x[i * d + j] = (ctr_real)(exp((double)x[i * d + j]) / sum);
    }
}

/* What depends on the kind alone: number of inputs, labels, config, a second array. */
static void prepare(loss_case *c)
{
    char name[64];
    int64_t i, n = c->n;
    c->inputs = c->learn = 2;
    if (c->kind == DCL || c->kind == SWAV || c->kind == NCE || c->kind == UNIFORM ||
        c->kind == TRIPLET)
        c->inputs = c->learn = 1;
    if (c->kind == REGRESSION || c->kind == NEGCOS) c->learn = 1;
    for (i = 0; i < 2; i++) {
        c->rows[i] = c->kind == DCL ? 2 * n : c->kind == SWAV ? (int64_t)c->a[0] * n : n;
        c->cols[i] = c->d;
    }
    for (i = 2; i < 4; i++) c->rows[i] = c->cols[i] = 1;
    if (c->kind == CLIP || c->kind == SIGLIP) {
        c->inputs = c->learn = c->kind == CLIP ? 3 : 4;
        c->x[2][0] = (ctr_real)c->a[0];
        c->x[3][0] = (ctr_real)c->a[1];
    }
    for (i = 0; i < n; i++) c->ids[i] = (int32_t)(c->kind == SIAMESE ? i % 3 != 1 : i % 3);
    if (c->kind == TRIPLET && n > 4) c->ids[n - 1] = -1;
    c->other_rows = c->kind == INFONCE ? (int64_t)c->a[0] : (int64_t)c->a[1] * n;
    if (c->kind == INFONCE) {
        snprintf(name, sizeof name, "neg:%d:%d", (int)c->other_rows, (int)c->d);
        test_fill_real(name, c->other, c->other_rows * c->d, 1.0);
        unit(c->other, c->other_rows, c->d);
    }
    if (c->kind == SWAV) {
        snprintf(name, sizeof name, "codes:%d:%d", (int)n, (int)c->d);
        test_fill_real(name, c->other, c->other_rows * c->d, 4.0);
        softmax(c->other, c->other_rows, c->d);
    }
    c->triplet = ctr_triplet_default();
    if (c->kind != TRIPLET) return;
    c->triplet.margin = c->a[0];
    c->triplet.mining = (ctr_mining)(int)c->a[1];
    c->triplet.squared = (int)c->a[2];
    c->triplet.normalize = (int)c->a[3];
    c->triplet.soft = (int)c->a[4];
    c->triplet.mean_active = (int)c->a[5];
}

/* "infonce:3:16:33:0.07" into a case with its inputs; 0 if it is none. */
static int parse(const char *key, loss_case *c)
{
    int n, d, i, used = 0;
    char name[64];
    c->kind = key_kind(key);
    if (c->kind < 0) return 0;
    key += strlen(kind_name[c->kind]);
    if (sscanf(key, ":%d:%d%n", &n, &d, &used) != 2) return 0;
    c->n = n;
    c->d = d;
    memset(c->a, 0, sizeof c->a);
    for (c->args = 0; c->args < 6 && key[used] == ':'; c->args++) {
        char *end;
        c->a[c->args] = strtod(key + used + 1, &end);
        used = (int)(end - key);
    }
    prepare(c);
    for (i = 0; i < c->inputs && i < 2; i++) {
        snprintf(name, sizeof name, "%s:%d:%d:%d", kind_name[c->kind], i, n, d);
        test_fill_real(name, c->x[i], c->rows[i] * c->cols[i], 1.0);
    }
    return key[used] == 0;
}

/* ------------------------------------------------------------------------- the library's losses */

static ctr_tensor *constant(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x)
{
    int64_t shape[2];
    ctr_tensor *t;
    shape[0] = rows;
    shape[1] = cols;
    t = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
    ctr_tensor_write(ctx, t, x, rows * cols);
    return t;
}

static ctr_tensor *build(ctr_ctx *ctx, loss_case *c, ctr_tensor *const *x)
{
    const double *a = c->a;
    const int32_t *ids = c->kind == CLIP && a[1] == 0 ? NULL : c->ids;
    switch (c->kind) {
    case INFONCE:
        return ctr_loss_infonce(ctx, x[0], x[1],
                                a[0] > 0 ? constant(ctx, c->other_rows, c->d, c->other) : NULL,
                                a[1]);
    case CLIP: return ctr_loss_clip(ctx, x[0], x[1], x[2], ids);
    case SIGLIP: return ctr_loss_siglip(ctx, x[0], x[1], x[2], x[3], a[2] == 0 ? NULL : ids);
    case DCL: return ctr_loss_dcl(ctx, x[0], a[0]);
    case REGRESSION: return ctr_loss_regression(ctx, x[0], x[1]);
    case NEGCOS: return ctr_loss_negative_cosine(ctx, x[0], x[1]);
    case BARLOW: return ctr_loss_barlow_twins(ctx, x[0], x[1], a[0]);
    case VICREG: return ctr_loss_vicreg(ctx, x[0], x[1], a[0], a[1], a[2]);
    case SWAV:
        return ctr_loss_swav(ctx, x[0], (int)a[0], constant(ctx, c->other_rows, c->d, c->other),
                             (int)a[1], a[2]);
    case NCE:
        c->z = 0;
        return ctr_loss_nce(ctx, x[0], a[1], (ctr_nce_form)(int)a[0], (int64_t)a[2], &c->z);
    case ALIGN: return ctr_loss_alignment(ctx, x[0], x[1], a[0]);
    case UNIFORM: return ctr_loss_uniformity(ctx, x[0], a[0]);
    case SIAMESE: return ctr_loss_siamese(ctx, x[0], x[1], c->ids, a[0]);
    default: return ctr_loss_triplet(ctx, x[0], c->ids, &c->triplet, &c->active);
    }
}

static void leaves(ctr_ctx *ctx, const loss_case *c, ctr_tensor **x)
{
    int i;
    for (i = 0; i < INPUTS; i++) {
        int64_t shape[2];
        shape[0] = c->rows[i];
        shape[1] = c->cols[i];
        x[i] = i < c->inputs ? ctr_tensor_create(ctx, CTR_F32, 2, shape, 1) : NULL;
        if (x[i]) ctr_tensor_write(ctx, x[i], c->x[i], x[i]->size);
    }
}

/* Value and gradients by operations on leaves. */
static double by_op(ctr_ctx *ctx, loss_case *c, ctr_real dx[INPUTS][MOST])
{
    ctr_tensor *x[INPUTS], *loss;
    double value;
    int i;
    leaves(ctx, c, x);
    ctr_step_begin(ctx);
    loss = build(ctx, c, x);
    value = (double)ctr_tensor_item(ctx, loss);
    ctr_backward(ctx, loss);
    for (i = 0; i < c->learn; i++) ctr_tensor_read_grad(ctx, x[i], dx[i], x[i]->size);
    for (; i < c->inputs; i++)
        if (ctr_tensor_has_grad(ctx, x[i])) test_true("no gradient goes into the target", 0);
    ctr_step_end(ctx);
    for (i = 0; i < INPUTS; i++) ctr_tensor_destroy(ctx, x[i]);
    return value;
}

/* 0 if the kind has no flat function. */
static int by_flat(ctr_ctx *ctx, loss_case *c, ctr_real dx[INPUTS][MOST], double *value)
{
    const double *a = c->a;
    int64_t n = c->n, d = c->d;
    switch (c->kind) {
    case INFONCE:
        *value = ctr_loss_infonce_flat(ctx, n, d, c->x[0], c->x[1], c->other_rows,
                                       a[0] > 0 ? c->other : NULL, a[1], dx[0], dx[1]);
        return 1;
    case CLIP:
        *value = ctr_loss_clip_flat(ctx, n, d, c->x[0], c->x[1], (double)c->x[2][0],
                                    a[1] == 0 ? NULL : c->ids, dx[0], dx[1], dx[2]);
        return 1;
    case BARLOW:
        *value = ctr_loss_barlow_twins_flat(ctx, n, d, c->x[0], c->x[1], a[0], dx[0], dx[1]);
        return 1;
    case VICREG:
        *value = ctr_loss_vicreg_flat(ctx, n, d, c->x[0], c->x[1], a[0], a[1], a[2], dx[0], dx[1]);
        return 1;
    case TRIPLET:
        *value = ctr_loss_triplet_flat(ctx, n, d, c->x[0], c->ids, &c->triplet, dx[0]);
        return 1;
    default: return 0;
    }
}

/* ----------------------------------------------------------------------------- the golden file */

static ctr_real got_dx[INPUTS][MOST], flat_dx[INPUTS][MOST];

/* The smallest standard deviation of a column: batch norm divides by it. */
static double least_std(const loss_case *c)
{
    double least = 1;
    int64_t i, j, k;
    for (i = 0; i < 2; i++)
        for (j = 0; j < c->d; j++) {
            double sum = 0, square = 0;
            for (k = 0; k < c->n; k++) sum += (double)c->x[i][k * c->d + j] / (double)c->n;
            for (k = 0; k < c->n; k++) {
                double t = (double)c->x[i][k * c->d + j] - sum;
                square += t * t / (double)c->n;
            }
            least = CTR_MIN_(least, sqrt(square + 1e-5));
        }
    return least;
}

/* The size of the numbers whose differences make a gradient: in float it cannot be closer to zero
   than their digits allow. */
static double slope_size(const loss_case *c)
{
    const double *a = c->a, n = (double)c->n;
    switch (c->kind) {
    case INFONCE: return 1 / a[1] / n;
    case DCL: return 1 / a[0] / n;
    case SWAV: return 1 / a[2] / n;
    case NCE: return (double)c->d / a[1] / n;
    case CLIP: return exp(a[0]) / n;
    case SIGLIP: return (double)c->n * exp(a[0]) / n;
    case UNIFORM: return a[0] / n;
    case BARLOW: return (1 + a[0] * (double)c->d) / n / least_std(c);
    case VICREG: return (a[0] + a[1] + a[2] * (double)c->d) / n / (double)c->d;
    default: return 2 / n;
    }
}

static void golden_case(ctr_ctx *ctx, golden_file *g, const char *base)
{
    loss_case *c = &the_case;
    double got, flat, want, bound = test_bound(1e-8, 1e-4);
    char key[160];
    int i;
    if (!test_true("a key that can be read", parse(base, c))) return;
    got = by_op(ctx, c, got_dx);
    snprintf(key, sizeof key, "%s:loss", base);
    want = golden_get(g, key, NULL)[0];
    test_error(key, fabs(got - want) / (1 + fabs(want)), bound);
    for (i = 0; i < c->learn; i++) {
        snprintf(key, sizeof key, "%s:d%d", base, i);
        test_error(key, test_digest(g, key, got_dx[i], c->rows[i] * c->cols[i],
                                    (TEST_DOUBLE ? 1e-4 : 0.05) * slope_size(c)), bound);
    }
    if (c->kind == TRIPLET) {
        snprintf(key, sizeof key, "%s:active", base);
        test_error(key, fabs(c->active - golden_get(g, key, NULL)[0]), 1e-12);
    }
    if (by_flat(ctx, c, flat_dx, &flat)) {
        snprintf(key, sizeof key, "%s flat", base);
        test_equal(key, flat, got);
        for (i = 0; i < c->learn; i++)
            test_bytes(key, flat_dx[i], got_dx[i],
                       (size_t)(c->rows[i] * c->cols[i]) * sizeof(ctr_real));
    }
    test_fine(ctx, base);
}

static void golden_all(ctr_ctx *ctx)
{
    golden_file g;
    size_t i, seen = 0;
    char base[96];
    if (!test_golden_open(&g, "golden_losses.txt")) return;
    for (i = 0; i < g.count; i++) {
        size_t n = strlen(g.records[i].key);
        if (!golden_ends_(g.records[i].key, ":loss") || n >= sizeof base) continue;
        snprintf(base, sizeof base, "%.*s", (int)(n - 5), g.records[i].key);
        if (!test_quick() || seen % 5 == 0 || strstr(base, ":17:")) golden_case(ctx, &g, base);
        seen++;
    }
    golden_close(&g);
}

/* ---------------------------------------------------------------- values known from elsewhere */

static void plane(ctr_real *z, int n, const double *degrees)
{
    int i;
    for (i = 0; i < n; i++) {
        z[2 * i] = CTR_TEST_R(cos(degrees[i] * PI_ / 180));
        z[2 * i + 1] = CTR_TEST_R(sin(degrees[i] * PI_ / 180));
    }
}

/* A loss of up to two constant matrices [n, d] by its number, without gradients. */
static double value_of(ctr_ctx *ctx, int kind, int64_t n, int64_t d, const ctr_real *a,
                       const ctr_real *b, double p, double q)
{
    ctr_tensor *x, *y, *loss, *s[2];
    ctr_real number[2];
    double value;
    number[0] = (ctr_real)p;
    number[1] = (ctr_real)q;
    ctr_step_begin(ctx);
    x = constant(ctx, n, d, a);
    y = constant(ctx, n, d, b ? b : a);
    s[0] = constant(ctx, 1, 1, &number[0]);
    s[1] = constant(ctx, 1, 1, &number[1]);
    switch (kind) {
    case INFONCE: loss = ctr_loss_infonce(ctx, x, y, NULL, p); break;
    case CLIP: loss = ctr_loss_clip(ctx, x, y, s[0], NULL); break;
    case SIGLIP: loss = ctr_loss_siglip(ctx, x, y, s[0], s[1], NULL); break;
    case DCL: loss = ctr_loss_dcl(ctx, x, p); break;
    case REGRESSION: loss = ctr_loss_regression(ctx, x, y); break;
    case NEGCOS: loss = ctr_loss_negative_cosine(ctx, x, y); break;
    case BARLOW: loss = ctr_loss_barlow_twins(ctx, x, y, p); break;
    case VICREG: loss = ctr_loss_vicreg(ctx, x, y, 25, 25, 1); break;
    case SWAV: loss = ctr_loss_swav(ctx, x, 2, y, 2, p); break;
    case ALIGN: loss = ctr_loss_alignment(ctx, x, y, p); break;
    default: loss = ctr_loss_uniformity(ctx, x, p); break;
    }
    value = (double)ctr_tensor_item(ctx, loss);
    ctr_step_end(ctx);
    return value;
}

static void known_angles(ctr_ctx *ctx)
{
    static const double v0[4] = { 0, 40, 80, 120 }, v1[4] = { 10, 55, 85, 140 };
    static const double both[8] = { 0, 40, 80, 120, 10, 55, 85, 140 };
    ctr_real a[8], b[8], z[16];
    double bound = test_bound(1e-9, 1e-5), got;
    plane(a, 4, v0);
    plane(b, 4, v1);
    plane(z, 8, both);
    got = value_of(ctx, CLIP, 4, 2, a, b, log(1 / 0.07), 0);
    test_error("CLIP of eight angles, scale 1/0.07", fabs(got - .1584699429), bound);
    got = value_of(ctx, CLIP, 4, 2, a, b, log(100.0), 0);
    test_error("CLIP of eight angles, scale 100", fabs(got - .0003444240), bound);
    got = value_of(ctx, SIGLIP, 4, 2, a, b, log(10.0), -10);
    test_error("SigLIP of eight angles, 10 and -10", fabs(got - 1.0485428322), bound);
    got = value_of(ctx, DCL, 8, 2, z, NULL, 0.5, 0);
    test_error("DCL of eight angles, T 0.5", fabs(got - .8195385837), bound);
    got = value_of(ctx, DCL, 8, 2, z, NULL, 0.1, 0);
    test_error("DCL of eight angles, T 0.1", fabs(got + 1.0633908483), bound);
    got = value_of(ctx, REGRESSION, 4, 2, a, b, 0, 0) + value_of(ctx, REGRESSION, 4, 2, b, a, 0, 0);
    test_error("BYOL of eight angles, both directions", fabs(got - .1133791018), bound);
    got = value_of(ctx, NEGCOS, 4, 2, a, b, 0, 0);
    test_error("SimSiam of eight angles", fabs(got + .9716552245), bound);
}

/* Five points on an ellipse, made unit rows; labels 0, 0, 1, 1, 2: 12 triplets. */
static void known_triplets(ctr_ctx *ctx)
{
    static const int32_t labels[5] = { 0, 0, 1, 1, 2 };
    static const struct {
        const char *name;
        int squared, soft, mean_active;
        double want;
    } c[] = { { "squared, mean", 1, 0, 0, .0961233740 },
              { "squared, active", 1, 0, 1, .1441850609 },
              { "plain, mean", 0, 0, 0, .0687221962 },
              { "plain, active", 0, 0, 1, .1649332709 },
              { "plain, soft", 0, 1, 0, .5719029842 } };
    ctr_real z[10];
    size_t i;
    for (i = 0; i < 5; i++) {
        z[2 * i] = CTR_TEST_R(2 * cos((double)i * 20 * PI_ / 180));
        z[2 * i + 1] = CTR_TEST_R(0.5 * sin((double)i * 20 * PI_ / 180));
    }
    for (i = 0; i < sizeof c / sizeof *c; i++) {
        ctr_triplet_config k = ctr_triplet_default();
        k.mining = CTR_MINE_ALL;
        k.squared = c[i].squared;
        k.soft = c[i].soft;
        k.mean_active = c[i].mean_active;
        test_error(c[i].name, fabs(ctr_loss_triplet_flat(ctx, 5, 2, z, labels, &k, NULL) -
                                   c[i].want), test_bound(1e-9, 1e-5));
    }
}

/* 32 prototypes, each view sure of its own: T 0.1, codes as Sinkhorn's eps 0.05 leaves them. */
static void known_swav(ctr_ctx *ctx)
{
    ctr_real *scores = test_reals(64 * 32), *codes = test_reals(64 * 32);
    int i;
    for (i = 0; i < 64; i++) scores[i * 32 + i % 32] = 1;
    for (i = 0; i < 64 * 32; i++) codes[i] = 20 * scores[i];
    softmax(codes, 64, 32);
    test_error("SwAV of one-hot scores and codes",
               fabs(value_of(ctx, SWAV, 64, 32, scores, codes, 0.1, 0) - .0014070473),
               test_bound(1e-9, 1e-6));
    free(scores);
    free(codes);
}

/* ---------------------------------------------------------------------- central differences */

typedef struct check_user {
    loss_case *c;
    ctr_tensor **x;
} check_user;

static ctr_tensor *check_loss(ctr_ctx *ctx, void *user)
{
    const check_user *u = (const check_user *)user;
    ctr_tensor *loss = build(ctx, u->c, u->x);
    u->c->z = 0;
    return loss;
}

/* NPID's Z is a constant to the gradient, so it is no function of the scores' differences. */
static void gradient_checks(ctr_ctx *ctx)
{
    static const char *const keys[] = {
        "infonce:5:4:0:0.3", "infonce:5:4:7:0.3", "clip:5:4:1.5:0", "clip:5:4:1.5:1",
        "siglip:5:4:1:-1:0", "siglip:5:4:1:-1:1", "dcl:4:3:0.3", "regression:5:4", "negcos:5:4",
        "barlow:7:3:0.0051", "barlow:4:9:0.5", "vicreg:7:3:25:25:1", "vicreg:4:9:25:25:1",
        "swav:4:6:3:2:0.1", "nce:4:7:1:0.3:100", "nce:4:7:2:0.3:100", "align:5:4:2", "align:5:4:1",
        "align:5:4:3", "uniform:6:3:2", "siamese:6:4:3", "triplet:9:4:0.3:0:1:1:0:0",
        "triplet:9:4:0.3:1:0:1:1:0", "triplet:9:4:0.5:2:1:0:0:1", "triplet:9:4:0.5:2:0:1:0:0",
        "triplet:9:4:0.5:3:1:1:0:0" };
    loss_case *c = &the_case;
    size_t k;
    int i;
    if (!TEST_DOUBLE) {
        test_skip("central differences", "they need the double build");
        return;
    }
    for (k = 0; k < sizeof keys / sizeof *keys; k++) {
        ctr_tensor *x[INPUTS];
        check_user u;
        if (!test_true(keys[k], parse(keys[k], c))) continue;
        leaves(ctx, c, x);
        u.c = c;
        u.x = x;
        for (i = 0; i < c->learn; i++)
            test_error(keys[k], ctr_gradient_check(ctx, check_loss, &u, x[i], 1e-5, 0), 2e-7);
        for (i = 0; i < INPUTS; i++) ctr_tensor_destroy(ctx, x[i]);
    }
    test_fine(ctx, "central differences");
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

/* Embeddings on one point: what the losses call chance, and nothing else. */
static void by_hand_chance(ctr_ctx *ctx)
{
    ctr_real a[48], zero[48];
    double bound = test_bound(1e-13, 5e-6), v;
    int i;
    for (i = 0; i < 48; i++) a[i] = CTR_TEST_R(i % 6 - 2.25);
    memset(zero, 0, sizeof zero);
    v = ctr_loss_infonce_chance(7);
    test_error("InfoNCE's chance of 7 negatives", fabs(v - log(8.0)), 1e-14);
    test_error("InfoNCE", fabs(value_of(ctx, INFONCE, 8, 6, a, a, 0.2, 0) - v), bound);
    test_error("InfoNCE of zero rows", fabs(value_of(ctx, INFONCE, 8, 6, zero, a, 0.2, 0) - v),
               bound);
    test_error("CLIP", fabs(value_of(ctx, CLIP, 8, 6, a, a, 1, 0) - v), bound);
    v = ctr_loss_siglip_chance(8, -3);
    test_error("SigLIP", fabs(value_of(ctx, SIGLIP, 8, 6, zero, a, 1, -3) - v), bound);
    test_error("SigLIP's chance", fabs(v - log(1 + exp(3.0)) - 7 * log(1 + exp(-3.0))), 1e-13);
    test_error("DCL", fabs(value_of(ctx, DCL, 8, 6, a, NULL, 0.1, 0) - ctr_loss_dcl_chance(4)),
               test_bound(1e-13, 1e-5));
    test_error("DCL's chance", fabs(ctr_loss_dcl_chance(4) - log(6.0)), 1e-14);
    for (i = 0; i < 16; i++) a[i] = CTR_TEST_R(0.5);
    v = ctr_loss_swav_chance(2);
    test_error("SwAV's chance", fabs(v - log(2.0)), 1e-14);
    test_error("SwAV of equal scores", fabs(value_of(ctx, SWAV, 8, 2, zero, a, 0.1, 0) - v), bound);
    test_error("BYOL of equal rows", fabs(value_of(ctx, REGRESSION, 8, 2, a, a, 0, 0)), 1e-6);
    test_error("BYOL of a zero row", fabs(value_of(ctx, REGRESSION, 8, 2, zero, a, 0, 0) - 2), 0);
    test_error("VICReg on one point", fabs(value_of(ctx, VICREG, 8, 2, a, a, 0, 0) - 24.75),
               test_bound(1e-12, 1e-5));
    test_error("Barlow Twins on one point", fabs(value_of(ctx, BARLOW, 8, 2, a, a, 0.5, 0) - 2),
               test_bound(1e-12, 1e-6));
    test_error("uniformity of one point", fabs(value_of(ctx, UNIFORM, 8, 2, a, NULL, 2, 0)), bound);
    test_error("alignment of one point", fabs(value_of(ctx, ALIGN, 8, 2, a, a, 1, 0)), 0);
    test_fine(ctx, "chance");
}

/* One candidate, or none: exactly 0, and a gradient that is there and 0. */
static void by_hand_nothing(ctr_ctx *ctx)
{
    static const int32_t apart[4] = { 0, 1, 2, 3 }, one[4] = { 5, 5, 5, 5 };
    static const int32_t none[4] = { -1, -1, -1, -1 };
    const int32_t *labels[3];
    ctr_real a[12], b[12], da[12], db[12];
    int i, k;
    labels[0] = apart;
    labels[1] = one;
    labels[2] = none;
    test_fill_real("nothing:a", a, 12, 1.0);
    test_fill_real("nothing:b", b, 12, 1.0);
    test_equal("InfoNCE of one row", ctr_loss_infonce_flat(ctx, 1, 12, a, b, 0, NULL, 0.1, da, db),
               0);
    test_error("its gradient", largest(da, 12) + largest(db, 12), 0);
    test_equal("InfoNCE with an empty queue",
               ctr_loss_infonce_flat(ctx, 4, 3, a, b, 0, a, 0.1, da, db), 0);
    test_error("its gradient", largest(da, 12) + largest(db, 12), 0);
    test_equal("CLIP of one pair", ctr_loss_clip_flat(ctx, 1, 12, a, b, 3, NULL, da, db, NULL), 0);
    for (k = 0; k < 3; k++)
        for (i = 0; i < 4; i++) {
            ctr_triplet_config c = ctr_triplet_default();
            c.mining = (ctr_mining)i;
            da[0] = 1;
            test_equal("no triplet", ctr_loss_triplet_flat(ctx, 4, 3, a, labels[k], &c, da), 0);
            test_equal("and no pull", largest(da, 12), 0);
        }
    test_equal("chances of nothing", ctr_loss_infonce_chance(0) + ctr_loss_dcl_chance(1) +
               ctr_loss_nce_chance(CTR_NCE_NPID, 0) + ctr_loss_swav_chance(0) +
               ctr_loss_siglip_chance(0, 1), 0);
    test_fine(ctx, "nothing to contrast");
}

/* A row of zeros, rows that coincide, temperatures near 0: finite, and zero rows get no gradient
   where rows are normalised. */
static void by_hand_extreme(ctr_ctx *ctx)
{
    static const char *const keys[] = {
        "infonce:5:4:0:1e-6", "infonce:5:4:7:1e-6", "clip:5:4:9:1", "clip:5:4:-9:0",
        "siglip:5:4:5:-10:1", "dcl:4:3:1e-6", "regression:5:4", "barlow:5:4:0.0051",
        "vicreg:5:4:25:25:1", "swav:4:6:3:2:1e-6", "nce:4:7:0:0.05:100", "nce:4:7:1:1e-3:100",
        "nce:4:7:2:1e-6:100", "align:5:4:1", "align:5:4:0.5", "uniform:6:3:20", "siamese:6:4:3",
        "triplet:6:4:0.2:0:0:0:0:0", "triplet:6:4:0.2:0:0:1:1:0", "triplet:6:4:0.2:1:0:1:0:0" };
    loss_case *c = &the_case;
    size_t k;
    int i, j;
    for (k = 0; k < sizeof keys / sizeof *keys; k++) {
        char name[96];
        double value;
        test_true(keys[k], parse(keys[k], c));
        for (i = 0; i < 2; i++)
            for (j = 0; j < c->d; j++) {     /* row 0 zero, rows 2 and 3 one point in both inputs */
                c->x[i][j] = 0;
                c->x[i][2 * c->d + j] = c->x[i][3 * c->d + j] = c->x[0][2 * c->d + j];
            }
        value = by_op(ctx, c, got_dx);
        snprintf(name, sizeof name, "%s with zeros and twins", keys[k]);
        test_true(name, golden_finite_(value));
        for (i = 0; i < c->learn; i++) {
            int normalized = c->kind != BARLOW && c->kind != VICREG && c->kind != SWAV &&
                             c->kind != NCE && c->kind != SIAMESE && c->triplet.normalize;
            test_true(name, largest(got_dx[i], c->rows[i] * c->cols[i]) < 1e9);
            if (normalized && i < 2) test_equal(name, largest(got_dx[i], c->d), 0);
        }
        test_fine(ctx, name);
    }
}

/* Rows of one direction and different lengths: distances of rounding's size are none. */
static void by_hand_twins(ctr_ctx *ctx)
{
    enum { M = 17, D = 64 };
    ctr_real z[M * D], dz[M * D];
    int32_t labels[M];
    ctr_triplet_config c = ctr_triplet_default();
    double got;
    int i;
    test_fill_real("twins", z, D, 1.0);
    for (i = 0; i < M * D; i++) {
        z[i] = z[i % D] * (ctr_real)(1 + 0.37 * (i / D));
        labels[i / D] = i / D % 2;
    }
    c.mining = CTR_MINE_ALL;
    c.squared = 0;
    got = ctr_loss_triplet_flat(ctx, M, D, z, labels, &c, dz);
    test_error("plain distances of twins: the margin", fabs(got - 0.2), test_bound(1e-13, 1e-7));
    test_equal("and no pull", largest(dz, M * D), 0);
    test_fine(ctx, "twins");
}

/* Negatives and codes that could take a gradient get none. */
static void by_hand_constants(ctr_ctx *ctx)
{
    int64_t shape[2] = { 6, 4 }, half[2] = { 3, 4 };
    ctr_real x[24];
    ctr_tensor *a = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor *b = ctr_tensor_create(ctx, CTR_F32, 2, half, 1);
    test_fill_real("constants", x, 24, 1.0);
    ctr_tensor_write(ctx, a, x, 24);
    ctr_tensor_write(ctx, b, x, 12);
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_loss_infonce(ctx, b, b, a, 0.1));
    test_true("none for the negatives",
              ctr_tensor_has_grad(ctx, b) && !ctr_tensor_has_grad(ctx, a));
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_loss_swav(ctx, a, 2, b, 1, 0.1));
    test_true("none for the codes", ctr_tensor_has_grad(ctx, a) && !ctr_tensor_has_grad(ctx, b));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, a);
    ctr_tensor_destroy(ctx, b);
    test_fine(ctx, "constants");
}

/* Above ln 100 CLIP counts as if it were there, and can come back. */
static void by_hand_clamp(ctr_ctx *ctx)
{
    static const double s[3] = { 4.605170185988092, 7, -1 };
    ctr_real a[20], b[20], ds[3];
    double v[3];
    int i;
    test_fill_real("clamp:a", a, 20, 1.0);
    test_fill_real("clamp:b", b, 20, 1.0);
    for (i = 0; i < 3; i++)
        v[i] = ctr_loss_clip_flat(ctx, 5, 4, a, b, s[i], NULL, NULL, NULL, &ds[i]);
    test_error("CLIP above ln 100: the value there", fabs(v[1] - v[0]), test_bound(1e-10, 1e-3));
    test_error("and the gradient", fabs((double)(ds[1] - ds[0])), test_bound(1e-9, 1e-2));
    test_true("which is not zero", fabs((double)ds[1]) > 0.1);
    v[1] = ctr_loss_clip_flat(ctx, 5, 4, a, b, 0, NULL, NULL, NULL, NULL);
    test_error("CLIP below 0: the value at 0", fabs(v[2] - v[1]), test_bound(1e-12, 1e-5));
}

/* The first call sets Z, later ones keep it. */
static void by_hand_npid(ctr_ctx *ctx)
{
    ctr_real s[4 * 9];
    double z = 0, first, want;
    ctr_tensor *t;
    int i;
    for (i = 0; i < 36; i++) s[i] = CTR_TEST_R(0.25);
    ctr_step_begin(ctx);
    t = constant(ctx, 4, 9, s);
    first = (double)ctr_tensor_item(ctx, ctr_loss_nce(ctx, t, 0.5, CTR_NCE_NPID, 100, &z));
    test_error("Z of equal scores", fabs(z - 100 * exp(0.5)), test_bound(1e-11, 1e-3));
    want = ctr_loss_nce_chance(CTR_NCE_NPID, 8);
    test_error("NPID at P = 1/N", fabs(first - want), 3e-5); /* the authors' 1e-7 */
    test_error("NPID's chance of 4096", fabs(ctr_loss_nce_chance(CTR_NCE_NPID, 4096) - 9.317888),
               1e-6);
    first = (double)ctr_tensor_item(ctx, ctr_loss_nce(ctx, t, 0.5, CTR_NCE_PIRL, 0, NULL));
    test_error("PIRL of equal scores", fabs(first - want), test_bound(1e-5, 3e-5));
    first = (double)ctr_tensor_item(ctx, ctr_loss_nce(ctx, t, 0.5, CTR_NCE_INFO, 0, NULL));
    test_error("InfoNCE of equal scores", fabs(first - ctr_loss_nce_chance(CTR_NCE_INFO, 8)),
               test_bound(1e-13, 1e-6));
    z = 20;                                 /* P = exp(0.5) / 20, noise 8 / 100 */
    first = (double)ctr_tensor_item(ctx, ctr_loss_nce(ctx, t, 0.5, CTR_NCE_NPID, 100, &z));
    want = exp(0.5) / 20;
    want = -log(want / (want + 0.08 + 1e-7)) - 8 * log(0.08 / (want + 0.08 + 1e-7));
    test_error("NPID with its own Z", fabs(first - want), test_bound(1e-12, 1e-5));
    test_equal("which stays", z, 20);
    ctr_step_end(ctx);
    test_fine(ctx, "NPID");
}

/* Scores against plain loops, and their gradient; an index occurs more than once. */
static void by_hand_bank(ctr_ctx *ctx)
{
    enum { N = 3, D = 5, IMAGES = 7, COLS = 6 };
    ctr_real q[N * D], bank[IMAGES * D], got[N * COLS], dq[N * D], probe[N * COLS], u[N * D];
    int32_t index[N * COLS];
    int64_t shape[2] = { N, D };
    ctr_tensor *leaf, *scores;
    double worst = 0, slope_error = 0;
    int i, j, k;
    test_fill_real("bank:q", q, N * D, 2.0);
    test_fill_real("bank:v", bank, IMAGES * D, 1.0);
    test_fill_real("bank:probe", probe, N * COLS, 1.0);
    unit(bank, IMAGES, D);
    memcpy(u, q, sizeof u);
    unit(u, N, D);
    for (i = 0; i < N * COLS; i++) index[i] = i * 5 % IMAGES;
    index[3] = index[2];
    leaf = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor_write(ctx, leaf, q, N * D);
    ctr_step_begin(ctx);
    scores = ctr_nce_scores(ctx, leaf, constant(ctx, IMAGES, D, bank), index, COLS);
    ctr_tensor_read(ctx, scores, got, N * COLS);
    ctr_backward_from(ctx, scores, constant(ctx, N, COLS, probe));
    ctr_tensor_read_grad(ctx, leaf, dq, N * D);
    ctr_step_end(ctx);
    for (i = 0; i < N; i++) {
        double g[D] = { 0 }, along = 0, length = 0;
        for (j = 0; j < COLS; j++) {
            double s = 0;
            for (k = 0; k < D; k++) {
                double b = (double)bank[index[i * COLS + j] * D + k];
                s += (double)u[i * D + k] * b;
                g[k] += (double)probe[i * COLS + j] * b;
            }
            worst = CTR_MAX_(worst, fabs(s - (double)got[i * COLS + j]));
        }
        for (k = 0; k < D; k++) {               /* through the normalisation */
            along += g[k] * (double)u[i * D + k];
            length += (double)q[i * D + k] * (double)q[i * D + k];
        }
        for (k = 0; k < D; k++)
            slope_error = CTR_MAX_(slope_error,
                                   fabs((g[k] - along * (double)u[i * D + k]) / sqrt(length) -
                                        (double)dq[i * D + k]));
    }
    test_error("scores of a bank", worst, test_bound(1e-14, 1e-6));
    test_error("their gradient", slope_error, test_bound(1e-13, 1e-5));
    ctr_tensor_destroy(ctx, leaf);
    test_fine(ctx, "a bank");
}

/* Random mining: with one negative there is no choice; with more, those that fit and no others, and
   the same again for the same draw. */
static void by_hand_random(ctr_ctx *ctx)
{
    static const int32_t single[4] = { 0, 0, 0, 1 };
    static const int32_t classes[6] = { 0, 0, 1, 2, 3, 4 };
    ctr_triplet_config c = ctr_triplet_default(), all = c;
    ctr_real z[24];
    double v, lowest = 1e9, highest = -1e9, dist[6];
    int i, j;
    test_fill_real("random mining", z, 24, 1.0);
    c.mining = CTR_MINE_RANDOM;
    c.margin = all.margin = 0.9;
    all.mining = CTR_MINE_ALL;
    all.mean_active = 1;
    test_error("one negative: as all that are active",
               fabs(ctr_loss_triplet_flat(ctx, 4, 4, z, single, &c, NULL) -
                    ctr_loss_triplet_flat(ctx, 4, 4, z, single, &all, NULL)),
               test_bound(1e-14, 1e-6));
    /* on a line: positives at 0 and 0.5, negatives at 0.7, 0.9, 1.2 and far away */
    z[0] = 0;
    z[1] = CTR_TEST_R(0.5);
    z[2] = CTR_TEST_R(0.7);
    z[3] = CTR_TEST_R(0.9);
    z[4] = CTR_TEST_R(1.2);
    z[5] = 9;
    for (i = 0; i < 6; i++) dist[i] = (double)z[i];
    c.normalize = c.squared = 0;
    c.margin = 0.55;
    for (j = 0; j < 200; j++) {
        ctr_draws_at(ctx, 0, j);
        v = 2 * ctr_loss_triplet_flat(ctx, 6, 1, z, classes, &c, NULL);
        lowest = v < lowest ? v : lowest;
        highest = v > highest ? v : highest;
        if (j == 7) test_equal("the same draw again", 2 * ctr_loss_triplet_flat(ctx, 6, 1, z,
                               classes, &c, NULL), v);
    }
    /* of anchor 0 fit 0.7 and 0.9, of anchor 1 all three: losses 1.05 - d and 1.05 - (d - 0.5) */
    test_error("the largest of 200 draws", fabs(highest - ((1.05 - dist[2]) + (1.05 - 0.2))), 1e-6);
    test_error("the smallest", fabs(lowest - ((1.05 - dist[3]) + (1.05 - 0.7))), 1e-6);
    ctr_draws_at(ctx, 0, 0);
    test_fine(ctx, "random mining");
}

/* What goes into the report: 4 queries, one of them with a nearer negative, one with a tie. */
static void by_hand_report(ctr_ctx *ctx)
{
    static const ctr_real q[8] = { 1, 0, 0, 1, -1, 0, 0, -1 }, k[8] = { 1, 0, 0, 1, 0, -1, -1, 0 };
    static const int32_t labels[4] = { 0, 0, 1, 1 }, ids[4] = { 1, 2, 3, 3 };
    ctr_triplet_config c = ctr_triplet_default();
    ctr_report r;
    ctr_tensor *a, *b, *s;
    ctr_real zero = 0;
    double z = 1;
    ctr_step_begin(ctx);
    a = constant(ctx, 4, 2, q);
    b = constant(ctx, 4, 2, k);
    s = constant(ctx, 1, 1, &zero);
    memset(&r, 0, sizeof r);
    ctr_loss_infonce_(ctx, a, b, NULL, 0.5, &r);
    test_equal("InfoNCE: accuracy", r.accuracy, 0.5);
    test_error("positives", fabs(r.positive - 0.5), 1e-6);
    test_error("negatives", fabs(r.negative + 1.0 / 6), 1e-6); /* rows of cosines: 1 0 0 -1, ... */
    ctr_loss_clip_(ctx, a, b, s, ids, &r);
    test_equal("CLIP with ids: accuracy", r.accuracy, 1);
    ctr_loss_infonce_(ctx, a, a, constant(ctx, 4, 2, k), 0.5, &r);
    test_equal("ties are no success", r.accuracy, 0);
    test_error("positives of equal rows", fabs(r.positive - 1), 1e-6);
    r.accuracy = -1;
    ctr_loss_infonce_(ctx, a, b, ctr_slice(ctx, b, 0, 0, 0), 0.5, &r);
    test_equal("no negatives: nothing to say", r.accuracy, -1);
    ctr_loss_siglip_(ctx, a, b, s, s, NULL, &r);
    test_equal("SigLIP: accuracy", r.accuracy, 0.5);
    ctr_loss_nce_(ctx, ctr_matmul(ctx, a, 0, b, 1), 0.5, CTR_NCE_NPID, 10, &z, &r);
    test_equal("NCE: accuracy of column 0", r.accuracy, 0.25);
    ctr_loss_regression_(ctx, a, b, &r);
    test_error("BYOL: mean cosine", fabs(r.positive - 0.5), 1e-6);
    r.positive = 0;
    ctr_loss_negative_cosine_(ctx, a, b, &r);
    test_error("SimSiam: mean cosine", fabs(r.positive - 0.5), 1e-6);
    r.positive = 0;
    ctr_loss_barlow_twins_(ctx, a, b, 1, &r);
    test_error("Barlow Twins: mean cosine", fabs(r.positive - 0.5), 1e-6);
    r.positive = 0;
    ctr_loss_vicreg_(ctx, a, b, 1, 1, 1, &r);
    test_error("VICReg: mean cosine", fabs(r.positive - 0.5), 1e-6);
    c.mining = CTR_MINE_ALL;
    ctr_loss_triplet_(ctx, a, labels, &c, &r); /* right angles inside, right or straight across */
    test_equal("triplets: active", r.active, 0.5);
    test_equal("triplets: none is nearest alone", r.accuracy, 0);
    test_error("triplets: positives", fabs(r.positive), 1e-6);
    test_error("triplets: negatives", fabs(r.negative + 0.5), 1e-6);
    ctr_step_end(ctx);
    test_fine(ctx, "reports");
}

/* Chance of Barlow Twins: independent numbers, 400 batches of them. */
static void by_hand_barlow(ctr_ctx *ctx)
{
    enum { N = 12, D = 5, TRIES = 400 };
    ctr_real a[N * D], b[N * D];
    double sum = 0, want = ctr_loss_barlow_twins_chance(N, D, 0.5);
    ctr_rng rng;
    int i, j;
    ctr_rng_init(&rng, 5, CTR_STREAM_USER, 0, 0, 0);
    for (j = 0; j < TRIES; j++) {
        for (i = 0; i < N * D; i++) {
            a[i] = (ctr_real)ctr_rng_normal(&rng);
            b[i] = (ctr_real)ctr_rng_normal(&rng);
        }
        sum += ctr_loss_barlow_twins_flat(ctx, N, D, a, b, 0.5, NULL, NULL);
    }
    test_error("Barlow Twins of independent columns", fabs(sum / (int)TRIES / want - 1), 0.03);
    test_equal("triplets at chance", ctr_loss_triplet_chance(NULL), 0.2);
    test_fine(ctx, "Barlow Twins at chance");
}

/* ------------------------------------------------------------------ memory, threads, refusals */

static const char *const one_of_each[KINDS] = {
    "infonce:17:16:33:0.07", "clip:17:16:2.65926:1", "siglip:17:16:0:0.5:1", "dcl:17:16:0.1",
    "regression:17:16", "negcos:17:16", "barlow:17:64:0.0051", "vicreg:17:64:25:25:1",
    "swav:17:16:5:2:0.1", "nce:17:16:0:0.1:1000", "align:17:16:2", "uniform:17:16:2",
    "siamese:17:16:2", "triplet:17:64:0.2:0:1:1:0:0" };

static void step(ctr_ctx *ctx, loss_case *c, ctr_tensor *const *x)
{
    ctr_step_begin(ctx);
    ctr_backward(ctx, build(ctx, c, x));
    ctr_step_end(ctx);
}

/* A plan knows what a step needs; after one step the next allocates nothing. */
static void memory(void)
{
    int k, i;
    for (k = 0; k < KINDS; k++) {
        ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
        loss_case *c = &the_case;
        ctr_tensor *x[INPUTS];
        size_t planned;
        uint64_t before;
        if (!test_true(one_of_each[k], parse(one_of_each[k], c))) continue;
        leaves(ctx, c, x);
        ctr_plan_begin(ctx);
        step(ctx, c, x);
        planned = ctr_plan_end(ctx);
        test_fine(ctx, "a plan");
        ctr_step_reserve(ctx, planned);
        for (i = 0; i < 2; i++) step(ctx, c, x);
        before = ctr_memory_stats(ctx).allocations;
        step(ctx, c, x);
        test_equal("allocations of a third step",
                   (double)(ctr_memory_stats(ctx).allocations - before), 0);
        test_true("the plan was enough", ctr_memory_stats(ctx).slab_peak <= planned);
        test_true("and not three times as much", 3 * ctr_memory_stats(ctx).slab_peak > planned);
        test_fine(ctx, one_of_each[k]);
        for (i = 0; i < INPUTS; i++) ctr_tensor_destroy(ctx, x[i]);
        ctr_ctx_destroy(ctx);
    }
}

/* One step on an allocator whose at-th call from here fails, then one on a good one. 1: it was
   reached; *refused counts the errors (a kernel may do without the memory it asks for). */
static int fail_once(loss_case *c, long at, long *refused)
{
    ctr_config config = ctr_config_default();
    test_allocator watch;
    ctr_tensor *x[INPUTS];
    ctr_ctx *ctx;
    int i, reached;
    config.allocator = test_allocator_init(&watch);
    config.threads = 1;
    ctx = ctr_ctx_create(&config);
    leaves(ctx, c, x);
    watch.fail_at = watch.calls + at;
    step(ctx, c, x);
    reached = watch.calls >= watch.fail_at;
    if (ctr_error(ctx) != CTR_OK) {
        test_fails(ctx, "an allocation fails", CTR_E_MEMORY, "");
        ++*refused;
    }
    watch.fail_at = 0;
    step(ctx, c, x);
    test_fine(ctx, "the step after it");
    for (i = 0; i < INPUTS; i++) ctr_tensor_destroy(ctx, x[i]);
    ctr_ctx_destroy(ctx);
    test_true("all memory came back", !watch.live && !watch.bad_frees);
    return reached;
}

static void no_memory(void)
{
    int k;
    for (k = 0; k < KINDS; k++) {
        long at, refused = 0;
        if (!test_true(one_of_each[k], parse(one_of_each[k], &the_case))) continue;
        for (at = 1; at < 1000 && fail_once(&the_case, at, &refused); at++) { }
        test_true("some failed", refused > 0 && at < 1000);
    }
}

static void threads(void)
{
    static const int counts[4] = { 1, 2, 3, 7 };
    loss_case *c = &the_case;
    double first = 0, got;
    int k, i, j;
    for (k = 0; k < KINDS; k++)
        for (i = 0; i < 4; i++) {
            ctr_ctx *ctx = test_ctx(counts[i], CTR_KERNELS_AUTO);
            test_true(one_of_each[k], parse(one_of_each[k], c));
            got = by_op(ctx, c, i ? got_dx : flat_dx);
            if (!i) first = got;
            test_equal(one_of_each[k], got, first);
            for (j = 0; j < c->learn && i; j++)
                test_bytes(one_of_each[k], got_dx[j], flat_dx[j],
                           (size_t)(c->rows[j] * c->cols[j]) * sizeof(ctr_real));
            test_fine(ctx, one_of_each[k]);
            ctr_ctx_destroy(ctx);
        }
}

static double nan_value(void)
{
    uint64_t bits = (uint64_t)0x7ff80000u << 32;
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* T_: what is called, its status, a word of the line that tells; tests() ends with the loss. */
#define T_(call, status, word)                                                                     \
    do {                                                                                           \
        (void)(call);                                                                              \
        test_fails(ctx, #call, status, word);                                                      \
    } while (0)

static void refuse_contrast(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *other, ctr_tensor *deep,
                            ctr_tensor *whole, ctr_tensor *wide)
{
    static const int32_t index[6] = { 0, 1, 5, -1, 0, 0 };
    double z = 0, bad = nan_value();
    T_(ctr_loss_infonce(ctx, a, other, NULL, 0.1), CTR_E_SHAPE, "loss_infonce");
    T_(ctr_loss_infonce(ctx, deep, deep, NULL, 0.1), CTR_E_SHAPE, "loss_infonce");
    T_(ctr_loss_infonce(ctx, whole, whole, NULL, 0.1), CTR_E_VALUE, "loss_infonce");
    T_(ctr_loss_infonce(ctx, a, a, wide, 0.1), CTR_E_SHAPE, "negatives");
    T_(ctr_loss_infonce(ctx, a, a, NULL, 0), CTR_E_VALUE, "temperature");
    T_(ctr_loss_infonce(ctx, a, a, NULL, -1), CTR_E_VALUE, "temperature");
    T_(ctr_loss_infonce(ctx, a, a, NULL, bad), CTR_E_VALUE, "temperature");
    T_(ctr_loss_infonce(ctx, a, a, NULL, 1e-320), CTR_E_VALUE, "temperature");
    T_(ctr_loss_clip(ctx, a, other, wide, NULL), CTR_E_SHAPE, "loss_clip");
    T_(ctr_loss_clip(ctx, a, a, wide, NULL), CTR_E_SHAPE, "log scale");
    T_(ctr_loss_siglip(ctx, a, a, wide, wide, NULL), CTR_E_SHAPE, "loss_siglip");
    T_(ctr_loss_siglip(ctx, a, a, ctr_slice(ctx, ctr_slice(ctx, a, 0, 0, 1), 1, 0, 1), a, NULL),
       CTR_E_SHAPE, "bias");
    T_(ctr_loss_dcl(ctx, other, 0.1), CTR_E_SHAPE, "loss_dcl");
    T_(ctr_loss_dcl(ctx, ctr_slice(ctx, a, 0, 0, 2), 0.1), CTR_E_SHAPE, "2 images");
    T_(ctr_loss_dcl(ctx, a, 0), CTR_E_VALUE, "temperature");
    T_(ctr_loss_nce(ctx, ctr_slice(ctx, a, 1, 0, 1), 0.1, CTR_NCE_INFO, 0, NULL), CTR_E_SHAPE,
       "1 + negatives");
    T_(ctr_loss_nce(ctx, a, 0.1, CTR_NCE_NPID, 0, &z), CTR_E_VALUE, "images");
    T_(ctr_loss_nce(ctx, a, 0.1, CTR_NCE_NPID, 9, NULL), CTR_E_VALUE, "Z");
    T_(ctr_loss_nce(ctx, a, 0.1, (ctr_nce_form)3, 9, &z), CTR_E_VALUE, "form");
    T_(ctr_loss_nce(ctx, a, -3, CTR_NCE_INFO, 9, &z), CTR_E_VALUE, "temperature");
    T_(ctr_loss_nce(ctx, ctr_scale(ctx, a, 1e30), 1e-8, CTR_NCE_NPID, 9, &z), CTR_E_NUMBER, "Z");
    test_equal("a Z that is not finite is not kept", z, 0);
    T_(ctr_nce_scores(ctx, a, wide, index, 1), CTR_E_SHAPE, "nce_scores");
    T_(ctr_nce_scores(ctx, a, a, NULL, 1), CTR_E_VALUE, "index");
    T_(ctr_nce_scores(ctx, a, a, index, 0), CTR_E_VALUE, "columns");
    T_(ctr_nce_scores(ctx, a, a, index, 1), CTR_E_VALUE, "index 5 of query 2");
    T_(ctr_loss_alignment(ctx, a, other, 2), CTR_E_SHAPE, "loss_alignment");
    T_(ctr_loss_alignment(ctx, a, a, 0), CTR_E_VALUE, "power");
    T_(ctr_loss_uniformity(ctx, ctr_slice(ctx, a, 0, 0, 1), 2), CTR_E_SHAPE, "2 rows");
    T_(ctr_loss_uniformity(ctx, a, 21), CTR_E_VALUE, "at most 20");
    T_(ctr_loss_uniformity(ctx, a, 0), CTR_E_VALUE, "t must");
}

static void refuse_others(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *other, ctr_tensor *deep)
{
    static const int32_t two[4] = { 0, 1, 2, 1 }, labels[4] = { 0, 0, 1, 1 };
    ctr_triplet_config c = ctr_triplet_default();
    ctr_tensor *row = ctr_slice(ctx, a, 0, 0, 1), *broken;
    double bad = nan_value(), active = 1;
    int nine = 9;
    T_(ctr_loss_regression(ctx, a, other), CTR_E_SHAPE, "loss_regression");
    T_(ctr_loss_negative_cosine(ctx, deep, a), CTR_E_SHAPE, "loss_negative_cosine");
    T_(ctr_loss_barlow_twins(ctx, row, row, 1), CTR_E_SHAPE, "batch of 1");
    T_(ctr_loss_barlow_twins(ctx, a, other, 1), CTR_E_SHAPE, "loss_barlow_twins");
    T_(ctr_loss_barlow_twins(ctx, a, a, -1), CTR_E_VALUE, "lambda");
    T_(ctr_loss_vicreg(ctx, row, row, 1, 1, 1), CTR_E_SHAPE, "batch of 1");
    T_(ctr_loss_vicreg(ctx, a, a, -1, 1, 1), CTR_E_VALUE, "similarity");
    T_(ctr_loss_vicreg(ctx, a, a, 1, bad, 1), CTR_E_VALUE, "variance");
    T_(ctr_loss_vicreg(ctx, a, a, 1, 1, -2), CTR_E_VALUE, "covariance");
    T_(ctr_loss_swav(ctx, a, 1, a, 1, 0.1), CTR_E_VALUE, "at least 2 views");
    T_(ctr_loss_swav(ctx, a, 3, a, 1, 0.1), CTR_E_VALUE, "equal size");
    T_(ctr_loss_swav(ctx, a, 2, a, 3, 0.1), CTR_E_VALUE, "loss_swav");
    T_(ctr_loss_swav(ctx, a, 2, a, 1, 0.1), CTR_E_SHAPE, "assign n");
    T_(ctr_loss_swav(ctx, a, 2, a, 2, 0), CTR_E_VALUE, "temperature");
    T_(ctr_loss_triplet(ctx, a, NULL, NULL, &active), CTR_E_SHAPE, "no labels");
    test_equal("a refused loss has no active share", active, 0);
    T_(ctr_loss_triplet(ctx, deep, labels, NULL, NULL), CTR_E_SHAPE, "loss_triplet");
    c.margin = -1;
    T_(ctr_loss_triplet(ctx, a, labels, &c, NULL), CTR_E_VALUE, "margin");
    ctr_triplet_config_init(&c);
    memcpy(&c.mining, &nine, sizeof c.mining);
    T_(ctr_loss_triplet(ctx, a, labels, &c, NULL), CTR_E_VALUE, "mining");
    T_(ctr_loss_siamese(ctx, a, a, two, 1), CTR_E_VALUE, "got 2 for pair 2");
    T_(ctr_loss_siamese(ctx, a, a, NULL, 1), CTR_E_VALUE, "same");
    T_(ctr_loss_siamese(ctx, a, a, labels, 0), CTR_E_VALUE, "margin");
    broken = ctr_scale(ctx, a, 1);
    ctr_k_fill(ctx, 1, (ctr_real)bad, (ctr_real *)broken->data);
    T_(ctr_loss_triplet(ctx, broken, labels, NULL, NULL), CTR_E_NUMBER, "not finite");
    T_(ctr_loss_siamese(ctx, broken, a, labels, 1), CTR_E_NUMBER, "not finite");
}

static void refusals(ctr_ctx *ctx)
{
    static const int32_t labels[4] = { 0, 0, 1, 1 };
    ctr_real z[12];
    int64_t shape[3] = { 4, 3, 1 }, three[2] = { 3, 3 }, broad[2] = { 4, 5 };
    ctr_tensor *a, *other, *deep, *whole, *wide;
    test_fill_real("refused", z, 12, 1.0);
    a = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor_write(ctx, a, z, 12);
    other = ctr_tensor_create(ctx, CTR_F32, 2, three, 1);
    deep = ctr_tensor_create(ctx, CTR_F32, 3, shape, 1);
    whole = ctr_tensor_create(ctx, CTR_I32, 2, shape, 0);
    wide = ctr_tensor_create(ctx, CTR_F32, 2, broad, 1);
    ctr_step_begin(ctx);
    refuse_contrast(ctx, a, other, deep, whole, wide);
    refuse_others(ctx, a, other, deep);
    ctr_step_end(ctx);
    T_(ctr_loss_infonce_flat(ctx, 4, 3, z, z, 0, NULL, -1, NULL, NULL), CTR_E_VALUE,
       "temperature");
    T_(ctr_loss_clip_flat(ctx, 0, 3, z, z, 0, NULL, NULL, NULL, NULL), CTR_E_SHAPE, "loss_clip");
    T_(ctr_loss_barlow_twins_flat(ctx, 1, 3, z, z, 1, NULL, NULL), CTR_E_SHAPE, "batch of 1");
    T_(ctr_loss_vicreg_flat(ctx, 1, 3, z, z, 1, 1, 1, NULL, NULL), CTR_E_SHAPE, "batch of 1");
    T_(ctr_loss_triplet_flat(ctx, 4, 3, z, NULL, NULL, NULL), CTR_E_SHAPE, "no labels");
    ctr_tensor_destroy(ctx, a);
    ctr_tensor_destroy(ctx, other);
    ctr_tensor_destroy(ctx, deep);
    ctr_tensor_destroy(ctx, whole);
    ctr_tensor_destroy(ctx, wide);
    test_true("the context works afterwards",
              ctr_loss_triplet_flat(ctx, 4, 3, z, labels, NULL, NULL) >= 0);
    test_fine(ctx, "after the refusals");
}

static void all(ctr_ctx *ctx, const char *where)
{
    char name[96];
    snprintf(name, sizeof name, "golden values, %s", where);
    test_group(name);
    golden_all(ctx);
    known_angles(ctx);
    known_triplets(ctx);
    known_swav(ctx);
    snprintf(name, sizeof name, "known by hand, %s", where);
    test_group(name);
    by_hand_chance(ctx);
    by_hand_nothing(ctx);
    by_hand_extreme(ctx);
    by_hand_twins(ctx);
    by_hand_constants(ctx);
    by_hand_clamp(ctx);
    by_hand_npid(ctx);
    by_hand_bank(ctx);
    by_hand_random(ctx);
    by_hand_report(ctx);
    snprintf(name, sizeof name, "refusals, %s", where);
    test_group(name);
    refusals(ctx);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    fake_device *fake;
    test_begin("test_losses", argc, argv);
    ctx = test_ctx(1, CTR_KERNELS_SCALAR);
    all(ctx, "scalar, 1 thread");
    test_group("central differences");
    gradient_checks(ctx);
    by_hand_barlow(ctx);
    ctr_ctx_destroy(ctx);
    ctx = test_ctx(3, CTR_KERNELS_AUTO);
    all(ctx, "best kernels, 3 threads");
    ctr_ctx_destroy(ctx);
    fake = fake_device_open();
    ctx = fake_device_ctx(fake);
    all(ctx, "fake device");
    ctr_ctx_destroy(ctx);
    test_true("the fake device ran the verbs of the losses",
              fake_device_ran(fake, "gemm") && fake_device_ran(fake, "softmax_grad") &&
              fake_device_ran(fake, "gather") && fake_device_ran(fake, "norm_grad"));
    fake_device_close(fake);
    test_group("planned memory, allocations");
    memory();
    test_group("no memory");
    no_memory();
    test_group("threads");
    threads();
    return test_end();
}
