/* test_vec.c - the kernel verbs of VEC: elementwise, reductions, rows, norms, pooling, optimisers.
 * run: float double asan asandouble smoke
 *
 * Every verb, overwriting and accumulating, on sizes with remainders and on sizes of several
 * chunks, at addresses that are not aligned: the best kernels and the scalar ones against plain
 * loops in double; the same bytes with 1, 2 and 3 threads; nothing written behind the output.
 */
#include "test.h"

enum { SPACE = 400000, ARRAYS = 6, CANARIES = 24 };

/* A call of a verb. run writes to out; ref to the same numbers in double and returns how many. Both
   find in out what was there before. */
typedef struct verb_case verb_case;
struct verb_case {
    const char *name;
    void (*run)(ctr_ctx *ctx, const verb_case *c, ctr_real *out);
    int64_t (*ref)(const verb_case *c, double *out);
    int64_t d[6];
    int op, acc;
};

static ctr_real *reals[ARRAYS];      /* the inputs, one number off alignment */
static double *doubles[ARRAYS];
static int32_t *indices;             /* -1, 0, 1, ... in no order */

static void make_inputs(void)
{
    char name[16];
    int64_t i;
    int k;
    for (k = 0; k < ARRAYS; k++) {
        reals[k] = test_reals(SPACE + 1) + 1;
        doubles[k] = test_doubles(SPACE);
        snprintf(name, sizeof name, "vec:%d", k);
        test_fill(name, doubles[k], SPACE, 2.0);
        for (i = 0; i < SPACE; i++) {
            if (k == 3) doubles[k][i] = (double)(float)(0.5 + fabs(doubles[k][i]));
            reals[k][i] = (ctr_real)doubles[k][i];
        }
    }
    indices = (int32_t *)test_alloc(SPACE * sizeof *indices);
    for (i = 0; i < SPACE; i++) indices[i] = (int32_t)((i * 7919 + 5) % 61) - 1;
}

static void free_inputs(void)
{
    int k;
    for (k = 0; k < ARRAYS; k++) {
        free(reals[k] - 1);
        free(doubles[k]);
    }
    free(indices);
}

static double plus(const verb_case *c, double before, double value)
{
    return c->acc ? before + value : value;
}

/* ------------------------------------------------------------------------ numbers one at a time */

static void run_fill(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_fill(ctx, c->d[0], CTR_TEST_R(-2.5), out);
}
static int64_t ref_fill(const verb_case *c, double *out)
{
    int64_t i;
    for (i = 0; i < c->d[0]; i++) out[i] = -2.5;
    return c->d[0];
}

static void run_move(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    size_t bytes = (size_t)c->d[0] * sizeof *out;
    if (c->op == 0) ctr_k_zero(ctx, bytes, out);
    if (c->op == 1) ctr_k_copy(ctx, bytes, reals[0], out);
    if (c->op == 2) ctr_k_upload(ctx, bytes, reals[0], out);
    if (c->op == 3) ctr_k_download(ctx, bytes, reals[0], out);
}
static int64_t ref_move(const verb_case *c, double *out)
{
    int64_t i;
    for (i = 0; i < c->d[0]; i++) out[i] = c->op ? doubles[0][i] : 0;
    return c->d[0];
}

/* op: 0: a x; 1: x + y; 2: a x + b y */
static void run_axpby(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_axpby(ctx, c->d[0], c->op == 1 ? 1 : CTR_TEST_R(0.75), reals[0],
                c->op == 0 ? 0 : c->op == 1 ? 1 : CTR_TEST_R(-1.25), out);
}
static int64_t ref_axpby(const verb_case *c, double *out)
{
    int64_t i;
    for (i = 0; i < c->d[0]; i++)
        out[i] = c->op == 0   ? 0.75 * doubles[0][i]
                 : c->op == 1 ? doubles[0][i] + out[i]
                              : 0.75 * doubles[0][i] - 1.25 * out[i];
    return c->d[0];
}

static double apply(int op, double x, double y)
{
    return op == CTR_ADD ? x + y : op == CTR_SUB ? x - y : op == CTR_MUL ? x * y : x / y;
}
static void run_binary(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_binary(ctx, (ctr_binary)c->op, c->d[0], reals[0], reals[3], out, c->acc);
}
static int64_t ref_binary(const verb_case *c, double *out)
{
    int64_t i;
    for (i = 0; i < c->d[0]; i++)
        out[i] = plus(c, out[i], apply(c->op, doubles[0][i], doubles[3][i]));
    return c->d[0];
}

/* d: outer, mid, inner */
static void run_broadcast(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_broadcast(ctx, (ctr_binary)c->op, c->d[0], c->d[1], c->d[2], reals[0], reals[3], out,
                    c->acc);
}
static int64_t ref_broadcast(const verb_case *c, double *out)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2], i;
    for (i = 0; i < n; i++) {
        int64_t o = i / (c->d[1] * c->d[2]), in = i % c->d[2];
        out[i] = plus(c, out[i], apply(c->op, doubles[0][i], doubles[3][o * c->d[2] + in]));
    }
    return n;
}

static double unary(int op, double x)
{
    switch (op) {
    case CTR_RELU: return x > 0 ? x : 0;
    case CTR_GELU: return 0.5 * x * erfc(-x / sqrt(2.0));
    case CTR_SIGMOID: return 1 / (1 + exp(-x));
    case CTR_TANH: return tanh(x);
    case CTR_EXP: return exp(x);
    case CTR_LOG: return log(x);
    case CTR_SOFTPLUS: return x > 0 ? x + log(1 + exp(-x)) : log(1 + exp(x));
    default: return sqrt(x);
    }
}
static double slope(int op, double x)
{
    double y = unary(op, x);
    switch (op) {
    case CTR_RELU: return x > 0 ? 1 : 0;
    case CTR_GELU: return 0.5 * erfc(-x / sqrt(2.0)) + x * exp(-x * x / 2) / sqrt(2 * acos(-1.0));
    case CTR_SIGMOID: return y * (1 - y);
    case CTR_TANH: return 1 - y * y;
    case CTR_EXP: return y;
    case CTR_LOG: return 1 / x;
    case CTR_SOFTPLUS: return 1 / (1 + exp(-x));
    default: return 0.5 / y;
    }
}
/* log and sqrt take the positive numbers */
static int unary_input(int op) { return op == CTR_LOG || op == CTR_SQRT ? 3 : 0; }
static void run_unary(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_unary(ctx, (ctr_unary)c->op, c->d[0], reals[unary_input(c->op)], out);
}
static int64_t ref_unary(const verb_case *c, double *out)
{
    int64_t i;
    for (i = 0; i < c->d[0]; i++) out[i] = unary(c->op, doubles[unary_input(c->op)][i]);
    return c->d[0];
}
static void run_unary_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    const ctr_real *x = reals[unary_input(c->op)];
    ctr_real *y = test_reals(c->d[0]);
    int64_t i;
    for (i = 0; i < c->d[0]; i++) y[i] = (ctr_real)unary(c->op, (double)x[i]);
    ctr_k_unary_grad(ctx, (ctr_unary)c->op, c->d[0], x, y, reals[1], out, c->acc);
    free(y);
}
static int64_t ref_unary_grad(const verb_case *c, double *out)
{
    const double *x = doubles[unary_input(c->op)];
    int64_t i;
    for (i = 0; i < c->d[0]; i++) out[i] = plus(c, out[i], doubles[1][i] * slope(c->op, x[i]));
    return c->d[0];
}

/* --------------------------------------------------------------------- sums, and moving numbers */

static void run_reduce(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_reduce(ctx, c->d[0], c->d[1], c->d[2], CTR_TEST_R(0.5), reals[0], out, c->acc);
}
static int64_t ref_reduce(const verb_case *c, double *out)
{
    int64_t o, m, i;
    for (o = 0; o < c->d[0]; o++)
        for (i = 0; i < c->d[2]; i++) {
            double s = 0;
            for (m = 0; m < c->d[1]; m++) s += doubles[0][(o * c->d[1] + m) * c->d[2] + i];
            out[o * c->d[2] + i] = plus(c, out[o * c->d[2] + i], 0.5 * s);
        }
    return c->d[0] * c->d[2];
}

static void run_expand(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_expand(ctx, c->d[0], c->d[1], c->d[2], CTR_TEST_R(0.5), reals[0], out, c->acc);
}
static int64_t ref_expand(const verb_case *c, double *out)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2], i;
    for (i = 0; i < n; i++) {
        int64_t o = i / (c->d[1] * c->d[2]), in = i % c->d[2];
        out[i] = plus(c, out[i], 0.5 * doubles[0][o * c->d[2] + in]);
    }
    return n;
}

static void run_dot(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_dot(ctx, c->d[0], reals[3], reals[3] + 7, out);
}
static int64_t ref_dot(const verb_case *c, double *out)
{
    int64_t i;
    out[0] = 0;
    for (i = 0; i < c->d[0]; i++) out[0] += doubles[3][i] * doubles[3][i + 7];
    return 1;
}

/* d: the shape of x; op: the permutation as four digits */
static void permutation(const verb_case *c, int perm[4])
{
    int i, digits = c->op;
    for (i = 3; i >= 0; i--, digits /= 10) perm[i] = digits % 10;
}
static void run_permute(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int perm[4];
    permutation(c, perm);
    ctr_k_permute(ctx, c->d, perm, reals[0], out, c->acc);
}
static int64_t ref_permute(const verb_case *c, double *out)
{
    int64_t at[4], to, n = c->d[0] * c->d[1] * c->d[2] * c->d[3], i, rest;
    int perm[4], j;
    permutation(c, perm);
    for (i = 0; i < n; i++) {
        for (rest = i, j = 3; j >= 0; j--) {
            at[j] = rest % c->d[j];
            rest /= c->d[j];
        }
        for (to = 0, j = 0; j < 4; j++) to = to * c->d[perm[j]] + at[perm[j]];
        out[to] = plus(c, out[to], doubles[0][i]);
    }
    return n;
}

/* d: rows, cols, ldx, ldy */
static void run_copy_rows(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_copy_rows(ctx, c->d[0], c->d[1], reals[0], c->d[2], out, c->d[3], c->acc);
}
static int64_t ref_copy_rows(const verb_case *c, double *out)
{
    int64_t r, i;
    for (r = 0; r < c->d[0]; r++)
        for (i = 0; i < c->d[1]; i++)
            out[r * c->d[3] + i] = plus(c, out[r * c->d[3] + i], doubles[0][r * c->d[2] + i]);
    return c->d[0] > 0 ? (c->d[0] - 1) * c->d[3] + c->d[1] : 0;
}

/* d: rows, width, n; some indices lie outside */
static void run_gather(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_gather(ctx, c->d[0], c->d[1], c->d[2], indices, reals[0], out);
}
static int64_t ref_gather(const verb_case *c, double *out)
{
    int64_t k, i;
    for (k = 0; k < c->d[2]; k++)
        for (i = 0; i < c->d[1]; i++)
            out[k * c->d[1] + i] = indices[k] < 0 || indices[k] >= c->d[0]
                                       ? 0 : doubles[0][indices[k] * c->d[1] + i];
    return c->d[2] * c->d[1];
}
static void run_scatter(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_scatter(ctx, c->d[0], c->d[1], c->d[2], indices, reals[0], out, c->acc);
}
static int64_t ref_scatter(const verb_case *c, double *out)
{
    int64_t k, i;
    for (i = 0; i < c->d[0] * c->d[1]; i++) out[i] = plus(c, out[i], 0);
    for (k = 0; k < c->d[2]; k++)
        for (i = 0; i < c->d[1]; i++)
            if (indices[k] >= 0 && indices[k] < c->d[0])
                out[indices[k] * c->d[1] + i] += doubles[0][k * c->d[1] + i];
    return c->d[0] * c->d[1];
}

/* -------------------------------------------------------------------------- rows, d: rows, cols */

static void softmax_row(const double *x, int64_t n, double *y, int logarithm)
{
    double max = x[0], s = 0;
    int64_t i;
    for (i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    for (i = 0; i < n; i++) s += exp(x[i] - max);
    for (i = 0; i < n; i++) y[i] = logarithm ? x[i] - max - log(s) : exp(x[i] - max) / s;
}
static void run_softmax(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_softmax(ctx, c->d[0], c->d[1], reals[0], out, c->op);
}
static int64_t ref_softmax(const verb_case *c, double *out)
{
    int64_t r;
    for (r = 0; r < c->d[0]; r++)
        softmax_row(doubles[0] + r * c->d[1], c->d[1], out + r * c->d[1], c->op);
    return c->d[0] * c->d[1];
}

/* y of the gradient verbs comes from the plain loops, rounded to ctr_real */
static ctr_real *rounded(const double *v, int64_t n)
{
    ctr_real *r = test_reals(n);
    int64_t i;
    for (i = 0; i < n; i++) r[i] = (ctr_real)v[i];
    return r;
}
static void run_softmax_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    double *y = test_doubles(c->d[0] * c->d[1]);
    ctr_real *yr;
    ref_softmax(c, y);
    yr = rounded(y, c->d[0] * c->d[1]);
    ctr_k_softmax_grad(ctx, c->d[0], c->d[1], yr, reals[1], out, c->op, c->acc);
    free(y);
    free(yr);
}
static int64_t ref_softmax_grad(const verb_case *c, double *out)
{
    int64_t n = c->d[1], r, i;
    double *y = test_doubles(c->d[0] * n);
    ref_softmax(c, y);
    for (r = 0; r < c->d[0]; r++) {
        const double *dy = doubles[1] + r * n, *yr = y + r * n;
        double s = 0;
        for (i = 0; i < n; i++) s += c->op ? dy[i] : dy[i] * yr[i];
        for (i = 0; i < n; i++)
            out[r * n + i] = plus(c, out[r * n + i],
                                  c->op ? dy[i] - exp(yr[i]) * s : yr[i] * (dy[i] - s));
    }
    free(y);
    return c->d[0] * n;
}

/* out: y, then 1 / norm */
static void run_normalize(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_normalize(ctx, c->d[0], c->d[1], reals[0], out, out + c->d[0] * c->d[1]);
}
static int64_t ref_normalize(const verb_case *c, double *out)
{
    int64_t n = c->d[1], r, i;
    for (r = 0; r < c->d[0]; r++) {
        double s = 0;
        for (i = 0; i < n; i++) s += doubles[0][r * n + i] * doubles[0][r * n + i];
        for (i = 0; i < n; i++) out[r * n + i] = doubles[0][r * n + i] / sqrt(s);
        out[c->d[0] * n + r] = n > 0 ? 1 / sqrt(s) : 0;
    }
    return c->d[0] * n + c->d[0];
}
static void run_normalize_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int64_t n = c->d[0] * c->d[1];
    double *y = test_doubles(n + c->d[0]);
    ctr_real *yr;
    ref_normalize(c, y);
    yr = rounded(y, n + c->d[0]);
    ctr_k_normalize_grad(ctx, c->d[0], c->d[1], yr, yr + n, reals[1], out, c->acc);
    free(y);
    free(yr);
}
static int64_t ref_normalize_grad(const verb_case *c, double *out)
{
    int64_t n = c->d[1], r, i;
    double *y = test_doubles(c->d[0] * n + c->d[0]);
    ref_normalize(c, y);
    for (r = 0; r < c->d[0]; r++) {
        const double *dy = doubles[1] + r * n, *yr = y + r * n;
        double s = 0;
        for (i = 0; i < n; i++) s += dy[i] * yr[i];
        for (i = 0; i < n; i++)
            out[r * n + i] = plus(c, out[r * n + i], (dy[i] - yr[i] * s) * y[c->d[0] * n + r]);
    }
    free(y);
    return c->d[0] * n;
}

/* Targets 0..cols-1; every fifth row is ignored. */
static void nll_targets(const verb_case *c, int32_t *t)
{
    int64_t r;
    for (r = 0; r < c->d[0]; r++)
        t[r] = r % 5 == 4 || c->op ? -100 : (int32_t)(r * 13 % c->d[1]);
}
static void run_nll(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int32_t *t = (int32_t *)test_alloc((size_t)(c->d[0] + 1) * sizeof *t);
    nll_targets(c, t);
    ctr_k_nll(ctx, c->d[0], c->d[1], -100, t, reals[0], out);
    free(t);
}
static int64_t ref_nll(const verb_case *c, double *out)
{
    int32_t *t = (int32_t *)test_alloc((size_t)(c->d[0] + 1) * sizeof *t);
    int64_t r;
    out[0] = out[1] = 0;
    nll_targets(c, t);
    for (r = 0; r < c->d[0]; r++)
        if (t[r] != -100) {
            out[0] -= doubles[0][r * c->d[1] + t[r]];
            out[1] += 1;
        }
    if (out[1] > 0) out[0] /= out[1];
    free(t);
    return 2;
}
static void run_nll_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int32_t *t = (int32_t *)test_alloc((size_t)(c->d[0] + 1) * sizeof *t);
    ctr_real loss[2], dloss = CTR_TEST_R(1.5);
    double plain[2];
    nll_targets(c, t);
    ref_nll(c, plain);
    loss[0] = (ctr_real)plain[0];
    loss[1] = (ctr_real)plain[1];
    ctr_k_nll_grad(ctx, c->d[0], c->d[1], -100, t, loss, &dloss, out, c->acc);
    free(t);
}
static int64_t ref_nll_grad(const verb_case *c, double *out)
{
    int32_t *t = (int32_t *)test_alloc((size_t)(c->d[0] + 1) * sizeof *t);
    double plain[2];
    int64_t r, i;
    nll_targets(c, t);
    ref_nll(c, plain);
    for (i = 0; i < c->d[0] * c->d[1]; i++) out[i] = plus(c, out[i], 0);
    for (r = 0; r < c->d[0]; r++)
        if (t[r] != -100) out[r * c->d[1] + t[r]] -= 1.5 / plain[1];
    free(t);
    return c->d[0] * c->d[1];
}

/* d: m, columns; op: pairs (0), three classes and some alone (1), all alone (2). out: the five
   numbers, lse, positives, and the gradient for d loss = 1.5 */
#define CONTRAST_SCALE 0.75
static void contrast_ids(const verb_case *c, int32_t *ids)
{
    int64_t i, m = c->d[0];
    for (i = 0; i < m; i++)
        ids[i] = c->op == 0 ? (int32_t)(i % ((m + 1) / 2))
                            : c->op == 1 && i % 4 ? (int32_t)(i % 3) : (int32_t)(1000 + i);
}
static void run_contrast(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int64_t m = c->d[0], d = c->d[1];
    int32_t *ids = (int32_t *)test_alloc((size_t)(m + 1) * sizeof *ids);
    ctr_real dloss = CTR_TEST_R(1.5), scale = CTR_TEST_R(CONTRAST_SCALE);
    ctr_real *lse = out + CTR_CONTRAST_OUT, *positives = lse + m;
    contrast_ids(c, ids);
    ctr_k_contrast(ctx, m, d, ids, reals[0], scale, lse, positives, out);
    ctr_k_contrast_grad(ctx, m, d, ids, reals[0], scale, lse, positives, out, &dloss,
                        positives + m, c->acc);
    free(ids);
}
static double contrast_s(const verb_case *c, int64_t i, int64_t j)
{
    double s = 0;
    int64_t k, d = c->d[1];
    for (k = 0; k < d; k++) s += doubles[0][i * d + k] * doubles[0][j * d + k];
    return CONTRAST_SCALE * s;
}
/* One anchor: adds its part to out (sums until the caller divides), sets lse and positives. */
static void contrast_anchor(const verb_case *c, const int32_t *ids, int64_t i, double *out,
                            double *negatives)
{
    double sum = 0, near_sum = 0, count = 0, best = -1e30, max = -1e30, s;
    int64_t j, m = c->d[0];
    for (j = 0; j < m; j++) {
        if (j == i) continue;
        s = contrast_s(c, i, j);
        sum += exp(s);
        max = s > max ? s : max;
        if (ids[j] != ids[i]) {
            out[4] += s;
            *negatives += 1;
            continue;
        }
        best = s > best ? s : best;
        near_sum += s;
        count += 1;
    }
    out[CTR_CONTRAST_OUT + i] = m > 1 ? log(sum) : 0;
    out[CTR_CONTRAST_OUT + m + i] = count;
    out[3] += near_sum;
    if (!(count > 0)) return;
    out[0] += log(sum) - near_sum / count;
    out[1] += 1;
    out[2] += best >= max ? 1 : 0;
}
/* d loss / d s_ij for the sum over anchors */
static double contrast_slope(const verb_case *c, const int32_t *ids, const double *lse,
                             const double *positives, int64_t i, int64_t j)
{
    if (j == i || !(positives[i] > 0)) return 0;
    return exp(contrast_s(c, i, j) - lse[i]) - (ids[i] == ids[j] ? 1 / positives[i] : 0);
}
static int64_t ref_contrast(const verb_case *c, double *out)
{
    int64_t m = c->d[0], d = c->d[1], i, j, k;
    int32_t *ids = (int32_t *)test_alloc((size_t)(m + 1) * sizeof *ids);
    double *lse = out + CTR_CONTRAST_OUT, *positives = lse + m, *grad = positives + m;
    double pairs = 0, negatives = 0, anchors;
    contrast_ids(c, ids);
    for (i = 0; i < CTR_CONTRAST_OUT; i++) out[i] = 0;
    for (i = 0; i < m; i++) {
        contrast_anchor(c, ids, i, out, &negatives);
        pairs += positives[i];
    }
    anchors = out[1];
    for (i = 0; i < m * d; i++) grad[i] = plus(c, grad[i], 0);
    for (i = 0; i < m; i++)
        for (j = 0; j < m; j++) {
            double g = contrast_slope(c, ids, lse, positives, i, j) +
                       contrast_slope(c, ids, lse, positives, j, i);
            if (anchors > 0) g *= 1.5 * CONTRAST_SCALE / anchors;
            for (k = 0; k < d; k++) grad[i * d + k] += g * doubles[0][j * d + k];
        }
    out[0] = anchors > 0 ? out[0] / anchors : 0;
    out[2] = anchors > 0 ? out[2] / anchors : 0;
    out[3] = pairs > 0 ? out[3] / pairs : 0;
    out[4] = negatives > 0 ? out[4] / negatives : 0;
    free(ids);
    return CTR_CONTRAST_OUT + 2 * m + m * d;
}

/* ---------------------------------------------------------------------- norms, d: rows, columns */

static void run_norm_stats(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_norm_stats(ctx, c->d[0], c->d[1], reals[c->op], out, out + c->d[1]);
}
static int64_t ref_norm_stats(const verb_case *c, double *out)
{
    int64_t j, r, n = c->d[1];
    const double *x = doubles[c->op];
    for (j = 0; j < n; j++) {
        double mean = 0, var = 0;
        for (r = 0; r < c->d[0]; r++) mean += x[r * n + j];
        mean /= (double)c->d[0];
        for (r = 0; r < c->d[0]; r++) var += (x[r * n + j] - mean) * (x[r * n + j] - mean);
        out[j] = mean;
        out[n + j] = var / (double)c->d[0];
    }
    return 2 * n;
}

/* op bits: 1 relu, 2 residual, 4 gamma and beta, 8 statistics of the batch, 16 no dx */
static double norm_forward(const verb_case *c, const double *stats, int64_t i)
{
    int64_t j = i % c->d[1];
    double y = (doubles[0][i] - stats[j]) / sqrt(stats[c->d[1] + j] + 0.25);
    if (c->op & 4) y = y * doubles[3][j] + doubles[4][j];
    if (c->op & 2) y += doubles[1][i];
    return (c->op & 1) && y < 0 ? 0 : y;
}
static ctr_norm_args norm_args(const verb_case *c, const ctr_real *stats)
{
    ctr_norm_args a;
    memset(&a, 0, sizeof a);
    a.rows = c->d[0];
    a.c = c->d[1];
    a.x = reals[0];
    a.mean = stats;
    a.var = stats + a.c;
    a.gamma = c->op & 4 ? reals[3] : NULL;
    a.beta = c->op & 4 ? reals[4] : NULL;
    a.residual = c->op & 2 ? reals[1] : NULL;
    a.eps = CTR_TEST_R(0.25);
    a.relu = c->op & 1;
    a.batch_stats = (c->op & 8) != 0;
    return a;
}
static double *norm_stats(const verb_case *c)
{
    verb_case s = *c;
    double *stats = test_doubles(2 * c->d[1]);
    s.op = 0;
    ref_norm_stats(&s, stats);
    return stats;
}
static void run_norm(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    double *stats = norm_stats(c);
    ctr_real *s = rounded(stats, 2 * c->d[1]);
    ctr_norm_args a = norm_args(c, s);
    a.y = out;
    ctr_k_norm(ctx, &a);
    free(stats);
    free(s);
}
static int64_t ref_norm(const verb_case *c, double *out)
{
    double *stats = norm_stats(c);
    int64_t i;
    for (i = 0; i < c->d[0] * c->d[1]; i++) out[i] = norm_forward(c, stats, i);
    free(stats);
    return c->d[0] * c->d[1];
}
/* out: dgamma, dbeta, dresidual, dx */
static void run_norm_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int64_t n = c->d[0] * c->d[1];
    double *stats = norm_stats(c), *y = test_doubles(n);
    ctr_real *s = rounded(stats, 2 * c->d[1]), *yr;
    ctr_norm_args a = norm_args(c, s);
    ref_norm(c, y);
    yr = rounded(y, n);
    a.y = yr;
    a.dy = reals[2];
    a.dgamma = out;
    a.dbeta = out + a.c;
    a.dresidual = out + 2 * a.c;
    a.dx = c->op & 16 ? NULL : out + 2 * a.c + n;
    a.dx_acc = a.dresidual_acc = a.dgamma_acc = a.dbeta_acc = c->acc;
    ctr_k_norm_grad(ctx, &a);
    free(stats);
    free(s);
    free(y);
    free(yr);
}
static int64_t ref_norm_grad(const verb_case *c, double *out)
{
    int64_t ch = c->d[1], rows = c->d[0], n = rows * ch, j, r;
    double *stats = norm_stats(c), *y = test_doubles(n), *dr = out + 2 * ch, *dx = out + 2 * ch + n;
    ref_norm(c, y);
    for (j = 0; j < ch; j++) {
        double rstd = 1 / sqrt(stats[ch + j] + 0.25), sum = 0, product = 0;
        double gamma = c->op & 4 ? doubles[3][j] : 1;
        for (r = 0; r < rows; r++) {
            int64_t i = r * ch + j;
            double g = (c->op & 1) && !(y[i] > 0) ? 0 : doubles[2][i];
            sum += g;
            product += g * (doubles[0][i] - stats[j]) * rstd;
        }
        out[j] = plus(c, out[j], product);
        out[ch + j] = plus(c, out[ch + j], sum);
        for (r = 0; r < rows; r++) {
            int64_t i = r * ch + j;
            double g = (c->op & 1) && !(y[i] > 0) ? 0 : doubles[2][i];
            double xhat = (doubles[0][i] - stats[j]) * rstd, d = g;
            if (c->op & 8) d = g - sum / (double)rows - xhat * product / (double)rows;
            dr[i] = plus(c, dr[i], g);
            if (!(c->op & 16)) dx[i] = plus(c, dx[i], gamma * rstd * d);
        }
    }
    free(stats);
    free(y);
    return 2 * ch + 2 * n;
}

/* out: y, then mean and rstd of every row */
static void run_layer_norm(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_k_layer_norm(ctx, c->d[0], c->d[1], CTR_TEST_R(0.25), reals[0], reals[3], reals[4], out,
                     out + c->d[0] * c->d[1]);
}
static int64_t ref_layer_norm(const verb_case *c, double *out)
{
    int64_t n = c->d[1], r, i;
    for (r = 0; r < c->d[0]; r++) {
        const double *x = doubles[0] + r * n;
        double mean = 0, var = 0, *stats = out + c->d[0] * n + 2 * r;
        for (i = 0; i < n; i++) mean += x[i] / (double)n;
        for (i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / (double)n;
        stats[0] = mean;
        stats[1] = 1 / sqrt(var + 0.25);
        for (i = 0; i < n; i++)
            out[r * n + i] = (x[i] - mean) * stats[1] * doubles[3][i] + doubles[4][i];
    }
    return c->d[0] * n + 2 * c->d[0];
}
/* out: dx, then dy xhat */
static void run_layer_norm_grad(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    int64_t n = c->d[0] * c->d[1];
    double *y = test_doubles(n + 2 * c->d[0]);
    ctr_real *stats;
    ref_layer_norm(c, y);
    stats = rounded(y + n, 2 * c->d[0]);
    ctr_k_layer_norm_grad(ctx, c->d[0], c->d[1], reals[0], stats, reals[3], reals[2],
                          c->op ? NULL : out, c->acc, out + n);
    free(y);
    free(stats);
}
static int64_t ref_layer_norm_grad(const verb_case *c, double *out)
{
    int64_t n = c->d[1], r, i, all = c->d[0] * n;
    double *y = test_doubles(all + 2 * c->d[0]);
    ref_layer_norm(c, y);
    for (r = 0; r < c->d[0]; r++) {
        const double *x = doubles[0] + r * n, *dy = doubles[2] + r * n;
        double mean = y[all + 2 * r], rstd = y[all + 2 * r + 1], sum = 0, product = 0;
        for (i = 0; i < n; i++) {
            sum += doubles[3][i] * dy[i] / (double)n;
            product += doubles[3][i] * dy[i] * (x[i] - mean) * rstd / (double)n;
        }
        for (i = 0; i < n; i++) {
            double xhat = (x[i] - mean) * rstd;
            if (!c->op)
                out[r * n + i] = plus(c, out[r * n + i],
                                      rstd * (doubles[3][i] * dy[i] - sum - xhat * product));
            out[all + r * n + i] = dy[i] * xhat;
        }
    }
    free(y);
    return 2 * all;
}

/* op: percent */
static void run_dropout(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_rng rng;
    ctr_rng_init(&rng, 77, CTR_STREAM_DROPOUT, 1, 2, 3);
    ctr_k_dropout(ctx, c->d[0], c->op / 100.0, rng.key, rng.counter, reals[0], out, c->acc);
}
static int64_t ref_dropout(const verb_case *c, double *out)
{
    ctr_rng rng;
    int64_t i;
    ctr_rng_init(&rng, 77, CTR_STREAM_DROPOUT, 1, 2, 3);
    for (i = 0; i < c->d[0]; i++) {
        double keep = ctr_rng_uniform(&rng) >= c->op / 100.0 ? 1 / (1 - c->op / 100.0) : 0;
        out[i] = plus(c, out[i], keep * doubles[0][i]);
    }
    return c->d[0];
}

/* ------------------------------------------------ pooling, d: n, h, w, c, size, stride; op: pad */

static ctr_pool_shape pool_shape(const verb_case *c)
{
    ctr_pool_shape s;
    s.n = c->d[0];
    s.h = c->d[1];
    s.w = c->d[2];
    s.c = c->d[3];
    s.size = c->d[4];
    s.stride = c->d[5];
    s.pad = c->op;
    s.oh = (s.h + 2 * s.pad - s.size) / s.stride + 1;
    s.ow = (s.w + 2 * s.pad - s.size) / s.stride + 1;
    return s;
}
/* The pixels of the window at output i: their places in at, how many as the result. */
static int window(const ctr_pool_shape *s, int64_t i, int64_t *at)
{
    int64_t ch = i % s->c, ox = i / s->c % s->ow, oy = i / s->c / s->ow % s->oh;
    int64_t image = i / s->c / s->ow / s->oh, y, x;
    int count = 0;
    for (y = oy * s->stride - s->pad; y < oy * s->stride - s->pad + s->size; y++)
        for (x = ox * s->stride - s->pad; x < ox * s->stride - s->pad + s->size; x++)
            if (y >= 0 && x >= 0 && y < s->h && x < s->w)
                at[count++] = ((image * s->h + y) * s->w + x) * s->c + ch;
    return count;
}
/* out: y, then the gradient of x for dy */
static void run_avg_pool(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_pool_shape s = pool_shape(c);
    ctr_k_avg_pool(ctx, &s, reals[0], out);
    ctr_k_avg_pool_grad(ctx, &s, reals[1], out + s.n * s.oh * s.ow * s.c, c->acc);
}
static int64_t ref_avg_pool(const verb_case *c, double *out)
{
    ctr_pool_shape s = pool_shape(c);
    int64_t n = s.n * s.oh * s.ow * s.c, in = s.n * s.h * s.w * s.c, i, at[64];
    int k, count;
    for (i = 0; i < in; i++) out[n + i] = plus(c, out[n + i], 0);
    for (i = 0; i < n; i++) {
        count = window(&s, i, at);
        out[i] = 0;
        for (k = 0; k < count; k++) {
            out[i] += doubles[0][at[k]] / count;
            out[n + at[k]] += doubles[1][i] / count;
        }
    }
    return n + in;
}
static void run_max_pool(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_pool_shape s = pool_shape(c);
    int64_t n = s.n * s.oh * s.ow * s.c;
    int32_t *which = (int32_t *)test_alloc((size_t)n * sizeof *which);
    ctr_k_max_pool(ctx, &s, reals[0], out, which);
    ctr_k_max_pool_grad(ctx, &s, which, reals[1], out + n, c->acc);
    free(which);
}
static int64_t ref_max_pool(const verb_case *c, double *out)
{
    ctr_pool_shape s = pool_shape(c);
    int64_t n = s.n * s.oh * s.ow * s.c, in = s.n * s.h * s.w * s.c, i, at[64], best;
    int k, count;
    for (i = 0; i < in; i++) out[n + i] = plus(c, out[n + i], 0);
    for (i = 0; i < n; i++) {
        count = window(&s, i, at);
        best = at[0];
        for (k = 1; k < count; k++)
            if (doubles[0][at[k]] > doubles[0][best]) best = at[k];
        out[i] = doubles[0][best];
        out[n + best] += doubles[1][i];
    }
    return n + in;
}

/* ----------------------------------------------------------------------------- optimisers, d: n */

/* op bits: 1 momentum, 2 Nesterov, 4 LARS, 8 its form inside, 16 LARC; out: w, m */
static void run_sgd(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_optim_args a;
    memset(&a, 0, sizeof a);
    a.n = c->d[0];
    a.w = out;
    a.m = out + a.n;
    a.g = reals[0];
    a.lr = 0.125;
    a.momentum = c->op & 1 ? 0.75 : 0;
    a.decay = 0.0625;
    a.trust = 0.25;
    a.nesterov = (c->op & 2) != 0;
    a.adapt = (c->op & 4) != 0;
    a.form = c->op & 8 ? CTR_LARS_INSIDE : c->op & 16 ? CTR_LARS_LARC : CTR_LARS_OUTSIDE;
    ctr_k_sgd(ctx, &a);
}
static int64_t ref_sgd(const verb_case *c, double *out)
{
    int64_t n = c->d[0], i;
    double ww = 0, uu = 0, gg = 0, ratio = 1, mu = c->op & 1 ? 0.75 : 0;
    for (i = 0; i < n; i++) {
        double u = doubles[0][i] + 0.0625 * out[i];
        ww += out[i] * out[i];
        gg += doubles[0][i] * doubles[0][i];
        uu += u * u;
    }
    if ((c->op & 4) && ww > 0 && uu > 0)
        ratio = c->op & 16 ? 0.25 * sqrt(ww) / (sqrt(gg) + 0.0625 * sqrt(ww) + 1e-8)
                           : 0.25 * sqrt(ww) / sqrt(uu);
    for (i = 0; i < n; i++) {
        double d = ratio * (doubles[0][i] + 0.0625 * out[i]), *m = &out[n + i];
        if (c->op & 8) {
            *m = mu * *m + 0.125 * d;
            out[i] -= *m;
        } else {
            *m = mu * *m + d;
            out[i] -= 0.125 * (c->op & 2 ? d + mu * *m : *m);
        }
    }
    return 2 * n;
}

/* out: v, w, m; v must not be negative */
static void run_adamw(ctr_ctx *ctx, const verb_case *c, ctr_real *out)
{
    ctr_optim_args a;
    int64_t i;
    memset(&a, 0, sizeof a);
    a.n = c->d[0];
    a.v = out;
    a.w = out + a.n;
    a.m = out + 2 * a.n;
    a.g = reals[0];
    a.lr = 0.125;
    a.decay = 0.0625;
    a.beta1 = 0.75;
    a.beta2 = 0.875;
    a.eps = 0.5;
    a.correct1 = 0.4375;
    a.correct2 = 0.3125;
    for (i = 0; i < a.n; i++) a.v[i] = a.v[i] < 0 ? -a.v[i] : a.v[i];
    ctr_k_adamw(ctx, &a);
}
static int64_t ref_adamw(const verb_case *c, double *out)
{
    int64_t n = c->d[0], i;
    double *v = out, *w = out + n, *m = out + 2 * n;
    for (i = 0; i < n; i++) {
        double g = doubles[0][i];
        m[i] = 0.75 * m[i] + 0.25 * g;
        v[i] = 0.875 * fabs(v[i]) + 0.125 * g * g;
        w[i] = w[i] * (1 - 0.125 * 0.0625) -
               0.125 / 0.4375 * m[i] / (sqrt(v[i]) / sqrt(0.3125) + 0.5);
    }
    return 3 * n;
}

/* ------------------------------------------------------------------------------------- checking */

static ctr_ctx *contexts[6];
static const char *const context_names[6] = { "scalar", "scalar, 2 threads", "scalar, 3 threads",
                                              "best", "best, 2 threads", "best, 3 threads" };

static void check(const verb_case *c)
{
    ctr_real *out[6], *start;
    double *want = test_doubles(SPACE);
    int64_t n, i, k;
    char what[200];
    static int calls;
    if (test_quick() && calls++ % 4) {
        free(want);
        return;
    }
    for (i = 0; i < SPACE; i++) want[i] = doubles[5][i];
    n = c->ref(c, want);
    if (n > SPACE - CANARIES) test_true("the test's own buffers are large enough", 0);
    for (k = 0; k < 6; k++) {
        start = test_reals(n + CANARIES + 1);
        out[k] = start + 1;
        for (i = 0; i < n + CANARIES; i++) out[k][i] = reals[5][i];
        c->run(contexts[k], c, out[k]);
        snprintf(what, sizeof what, "%s %ld %ld %ld %ld, op %d, acc %d, %s", c->name, (long)c->d[0],
                 (long)c->d[1], (long)c->d[2], (long)c->d[3], c->op, c->acc, context_names[k]);
        if (k % 3 == 0) {
            test_near(what, out[k], want, n, test_bound(1e-12, 4e-6), test_bound(1e-12, 4e-6));
            for (i = n; i < n + CANARIES && out[k][i] == reals[5][i]; i++) { }
            test_true("nothing behind the output changed", i == n + CANARIES);
        } else {
            test_bytes(what, out[k], out[k - k % 3], (size_t)(n + CANARIES) * sizeof(ctr_real));
        }
    }
    for (k = 0; k < 6; k++) {
        test_fine(contexts[k], c->name);
        free(out[k] - 1);
    }
    free(want);
}

static void one(const char *name, void (*run)(ctr_ctx *, const verb_case *, ctr_real *),
                int64_t (*ref)(const verb_case *, double *), int op, int acc, int64_t a, int64_t b,
                int64_t d, int64_t e)
{
    verb_case c;
    memset(&c, 0, sizeof c);
    c.name = name;
    c.run = run;
    c.ref = ref;
    c.op = op;
    c.acc = acc;
    c.d[0] = a;
    c.d[1] = b;
    c.d[2] = d;
    c.d[3] = e;
    check(&c);
}

static const int64_t lengths[] = { 0, 1, 3, 7, 8, 9, 15, 17, 33, 1000, 50021 };
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static void test_elementwise(void)
{
    int64_t n;
    int i, op, acc;
    test_group("zero, copy, upload, download, fill, axpby, binary, unary, unary_grad, dropout");
    for (i = 0; i < LENGTHS; i++) {
        n = lengths[i];
        one("fill", run_fill, ref_fill, 0, 0, n, 0, 0, 0);
        for (op = 0; op < 4; op++) one("move", run_move, ref_move, op, 0, n, 0, 0, 0);
        for (op = 0; op < 3; op++) one("axpby", run_axpby, ref_axpby, op, 0, n, 0, 0, 0);
        for (op = CTR_RELU; op <= CTR_SOFTPLUS; op++)
            one("unary", run_unary, ref_unary, op, 0, n, 0, 0, 0);
        for (acc = 0; acc < 2; acc++) {
            for (op = CTR_ADD; op <= CTR_DIV; op++)
                one("binary", run_binary, ref_binary, op, acc, n, 0, 0, 0);
            for (op = CTR_RELU; op <= CTR_SOFTPLUS; op++)
                one("unary_grad", run_unary_grad, ref_unary_grad, op, acc, n, 0, 0, 0);
            one("dropout", run_dropout, ref_dropout, 30, acc, n, 0, 0, 0);
        }
    }
}

static void test_shapes(void)
{
    static const int64_t d[][3] = { { 1, 1, 1 }, { 1, 5, 7 }, { 3, 5, 1 }, { 2, 3, 33 },
                                    { 1, 2053, 17 }, { 1, 40009, 1 }, { 7, 1031, 3 },
                                    { 300, 5, 9 }, { 1, 3, 20011 }, { 2, 0, 3 }, { 20000, 2, 1 } };
    size_t i;
    int op, acc;
    test_group("broadcast, reduce, expand, dot");
    for (i = 0; i < sizeof d / sizeof *d; i++)
        for (acc = 0; acc < 2; acc++) {
            for (op = CTR_ADD; op <= CTR_DIV; op++)
                one("broadcast", run_broadcast, ref_broadcast, op, acc, d[i][0], d[i][1], d[i][2],
                    0);
            one("reduce", run_reduce, ref_reduce, 0, acc, d[i][0], d[i][1], d[i][2], 0);
            one("expand", run_expand, ref_expand, 0, acc, d[i][0], d[i][1], d[i][2], 0);
        }
    for (i = 0; i < LENGTHS; i++) one("dot", run_dot, ref_dot, 0, 0, lengths[i], 0, 0, 0);
}

static void test_moves(void)
{
    static const int perms[] = { 123, 132, 213, 231, 312, 321, 1023, 1230, 3210, 2013, 3012 };
    size_t i;
    int acc;
    test_group("permute, copy_rows, gather, scatter");
    for (acc = 0; acc < 2; acc++) {
        for (i = 0; i < sizeof perms / sizeof *perms; i++) {
            one("permute", run_permute, ref_permute, perms[i], acc, 2, 3, 5, 7);
            one("permute", run_permute, ref_permute, perms[i], acc, 1, 33, 1, 17);
            one("permute", run_permute, ref_permute, perms[i], acc, 5, 40, 11, 23);
        }
        one("permute", run_permute, ref_permute, 321, acc, 1, 1, 0, 4);
        one("copy_rows", run_copy_rows, ref_copy_rows, 0, acc, 5, 7, 9, 11);
        one("copy_rows", run_copy_rows, ref_copy_rows, 0, acc, 1, 1, 1, 1);
        one("copy_rows", run_copy_rows, ref_copy_rows, 0, acc, 3001, 17, 40, 33);
        one("copy_rows", run_copy_rows, ref_copy_rows, 0, acc, 0, 17, 40, 33);
        one("scatter", run_scatter, ref_scatter, 0, acc, 40, 5, 70, 0);
        one("scatter", run_scatter, ref_scatter, 0, acc, 61, 1, 1, 0);
        one("scatter", run_scatter, ref_scatter, 0, acc, 50, 257, 301, 0);
        one("scatter", run_scatter, ref_scatter, 0, acc, 3, 4, 0, 0);
    }
    one("gather", run_gather, ref_gather, 0, 0, 40, 5, 70, 0);
    one("gather", run_gather, ref_gather, 0, 0, 61, 1, 1, 0);
    one("gather", run_gather, ref_gather, 0, 0, 50, 257, 301, 0);
    one("gather", run_gather, ref_gather, 0, 0, 3, 4, 0, 0);
}

static void test_rows(void)
{
    static const int64_t d[][2] = { { 1, 1 }, { 3, 2 }, { 5, 7 }, { 4, 8 }, { 17, 33 }, { 0, 5 },
                                    { 301, 129 }, { 3, 5003 } };
    size_t i;
    int acc, op;
    test_group("softmax, normalize, nll and their gradients");
    for (i = 0; i < sizeof d / sizeof *d; i++) {
        int64_t r = d[i][0], n = d[i][1];
        one("normalize", run_normalize, ref_normalize, 0, 0, r, n, 0, 0);
        for (op = 0; op < 2; op++) {
            one("softmax", run_softmax, ref_softmax, op, 0, r, n, 0, 0);
            one("nll", run_nll, ref_nll, op, 0, r, n, 0, 0);
            for (acc = 0; acc < 2; acc++) {
                one("softmax_grad", run_softmax_grad, ref_softmax_grad, op, acc, r, n, 0, 0);
                one("nll_grad", run_nll_grad, ref_nll_grad, op, acc, r, n, 0, 0);
            }
        }
        for (acc = 0; acc < 2; acc++)
            one("normalize_grad", run_normalize_grad, ref_normalize_grad, 0, acc, r, n, 0, 0);
    }
    test_group("contrast and its gradient");
    for (acc = 0; acc < 2; acc++)
        for (op = 0; op < 3; op++) {
            one("contrast", run_contrast, ref_contrast, op, acc, 1, 3, 0, 0);
            one("contrast", run_contrast, ref_contrast, op, acc, 2, 4, 0, 0);
            one("contrast", run_contrast, ref_contrast, op, acc, 9, 1, 0, 0);
            one("contrast", run_contrast, ref_contrast, op, acc, 34, 17, 0, 0);
            one("contrast", run_contrast, ref_contrast, op, acc, 258, 6, 0, 0);
            one("contrast", run_contrast, ref_contrast, op, acc, 300, 40, 0, 0);
        }
}

static void test_norms(void)
{
    static const int64_t d[][2] = { { 1, 1 }, { 2, 3 }, { 7, 5 }, { 64, 8 }, { 65, 33 },
                                    { 1031, 67 }, { 3000, 16 }, { 5, 1030 }, { 36, 20 }, { 24, 48 },
                                    { 264, 128 } };
    size_t i;
    int acc, op;
    test_group("norm_stats, norm, layer_norm and their gradients");
    for (i = 0; i < sizeof d / sizeof *d; i++) {
        int64_t r = d[i][0], n = d[i][1];
        one("norm_stats", run_norm_stats, ref_norm_stats, 0, 0, r, n, 0, 0);
        one("norm_stats", run_norm_stats, ref_norm_stats, 3, 0, r, n, 0, 0);
        for (op = 0; op < 8; op++) one("norm", run_norm, ref_norm, op, 0, r, n, 0, 0);
        one("layer_norm", run_layer_norm, ref_layer_norm, 0, 0, r, n, 0, 0);
        for (acc = 0; acc < 2; acc++) {
            for (op = 0; op < 32; op++)
                one("norm_grad", run_norm_grad, ref_norm_grad, op, acc, r, n, 0, 0);
            for (op = 0; op < 2; op++)
                one("layer_norm_grad", run_layer_norm_grad, ref_layer_norm_grad, op, acc, r, n, 0,
                    0);
        }
    }
}

/* Rows that are larger than the caches take another way to memory: aligned to a vector and not. */
static void test_far_norms(void)
{
    enum { ROWS = 140000, C = 16, N = ROWS * C };
    ctr_real *from = test_reals(3 * N + 64), *to = test_reals(8 * N + 64), k[4 * C], sums[4 * C];
    ctr_norm_args a;
    int64_t i;
    int c, shift, residual;
    char what[100];
    test_group("norm of 9 MB and its gradient");
    for (i = 0; i < 3 * N; i++) from[i] = (ctr_real)sin((double)i * (double)i);
    for (i = 0; i < 4 * C; i++) k[i] = (ctr_real)(1 + 0.01 * (double)i);
    for (shift = 0; shift < (test_quick() ? 1 : 2); shift++)
        for (residual = 0; residual < 2; residual++) {
            double y = 0, dx = 0, dr = 0;
            for (c = 0; c < 2; c++) {
                ctr_real *out = (ctr_real *)(((uintptr_t)to + 63) / 64 * 64) + shift + c * 4 * N;
                memset(&a, 0, sizeof a);
                a.rows = ROWS;
                a.c = C;
                a.x = from;
                a.mean = k;
                a.var = k + C;
                a.gamma = k + 2 * C;
                a.beta = k + 3 * C;
                a.residual = residual ? from + N : NULL;
                a.relu = a.batch_stats = 1;
                a.y = out;
                ctr_k_norm(contexts[3 * c + 1], &a);
                a.dy = from + 2 * N;
                a.dx = out + N;
                a.dresidual = residual ? out + 2 * N : NULL;
                a.dgamma = sums + 2 * C * c;
                a.dbeta = a.dgamma + C;
                ctr_k_norm_grad(contexts[3 * c + 1], &a);
            }
            for (i = 0; i < N; i++) {
                const ctr_real *p = (ctr_real *)(((uintptr_t)to + 63) / 64 * 64) + shift + i;
                y = fmax(y, fabs((double)(p[0] - p[4 * N])));
                dx = fmax(dx, fabs((double)(p[N] - p[5 * N])));
                if (residual) dr = fmax(dr, fabs((double)(p[2 * N] - p[6 * N])));
            }
            snprintf(what, sizeof what, "y, dx, dresidual: %s, %s",
                     residual ? "residual" : "no residual", shift ? "not aligned" : "aligned");
            test_error(what, y, 1e-6);
            test_error(what, dx, 1e-5);
            test_error(what, dr, 0);
            for (i = 0; i < 2 * C; i++)
                test_error("dgamma and dbeta", fabs((double)(sums[i] - sums[2 * C + i])), 0.02);
        }
    free(from);
    free(to);
}

static void test_pools_and_optimisers(void)
{
    static const int64_t d[][7] = { { 1, 1, 1, 1, 1, 1, 0 }, { 2, 5, 6, 3, 3, 2, 1 },
                                    { 3, 8, 8, 17, 2, 2, 0 }, { 1, 7, 5, 9, 3, 1, 0 },
                                    { 5, 16, 15, 33, 3, 2, 1 }, { 1, 9, 9, 2, 4, 3, 2 } };
    verb_case c;
    size_t i;
    int acc, j;
    test_group("max_pool, avg_pool and their gradients");
    for (i = 0; i < sizeof d / sizeof *d; i++)
        for (acc = 0; acc < 2; acc++) {
            memset(&c, 0, sizeof c);
            for (j = 0; j < 6; j++) c.d[j] = d[i][j];
            c.op = (int)d[i][6];
            c.acc = acc;
            c.name = "avg_pool";
            c.run = run_avg_pool;
            c.ref = ref_avg_pool;
            check(&c);
            c.name = "max_pool";
            c.run = run_max_pool;
            c.ref = ref_max_pool;
            check(&c);
        }
    test_group("sgd, adamw");
    for (i = 0; i < LENGTHS; i++) {
        for (j = 0; j < 24; j++)
            if (!(j & 8) || !(j & 2)) one("sgd", run_sgd, ref_sgd, j, 0, lengths[i], 0, 0, 0);
        one("adamw", run_adamw, ref_adamw, 0, 0, lengths[i], 0, 0, 0);
    }
}

/* ------------------------------------------------------------------------------- special values */

static ctr_real from_bits(uint64_t for_double, uint32_t for_float)
{
    ctr_real v;
    if (TEST_DOUBLE) memcpy(&v, &for_double, sizeof v);
    else memcpy(&v, &for_float, sizeof v);
    return v;
}

/* With -ffast-math, which the library survives but does not ask for, another order of operations
   and reciprocals instead of quotients cost digits. */
static double loose(double bound, double fast_math)
{
#ifdef __FAST_MATH__
    return bound > fast_math ? bound : fast_math;
#else
    (void)fast_math;
    return bound;
#endif
}

/* One bad number anywhere, in any part, is found; the largest finite number is none. */
static void test_finite(void)
{
    static const int64_t sizes[] = { 1, 9, 1000, 70001, 200000 };
    ctr_real bad[4], *v = test_reals(200000);
    int64_t n, at;
    size_t i, j, k;
    int c;
    bad[0] = from_bits((uint64_t)0x7ff80000u << 32, 0x7fc00000u); /* NaN */
    bad[1] = from_bits((uint64_t)0xfff80000u << 32, 0xffc00001u); /* -NaN */
    bad[2] = from_bits((uint64_t)0x7ff00000u << 32, 0x7f800000u); /* infinity */
    bad[3] = from_bits((uint64_t)0xfff00000u << 32, 0xff800000u);
    test_group("finite");
    for (c = 0; c < 6; c++) {
        for (i = 0; i < 200000; i++) v[i] = from_bits(((uint64_t)0x7fefffffu << 32) | 0xffffffffu,
                                                      0x7f7fffffu);
        test_true("nothing is finite", ctr_k_finite(contexts[c], 0, v));
        for (i = 0; i < 5; i++) {
            n = sizes[i];
            test_true("the largest numbers are finite", ctr_k_finite(contexts[c], n, v));
            for (j = 0; j < 4; j++)
                for (k = 0; k < 9; k++) {
                    ctr_real keep;
                    at = (n - 1) * (int64_t)k / 8;
                    keep = v[at];
                    v[at] = bad[j];
                    test_true("a number that is not finite is found",
                              !ctr_k_finite(contexts[c], n, v));
                    v[at] = keep;
                }
        }
    }
    free(v);
}

/* exp and log over their whole range, relative to the C library in double; the kernels of
   softmax by way of rows [0, -x]. */
static void test_exp(void)
{
    enum { N = 20001 };
    ctr_real *x = test_reals(2 * N), *y = test_reals(2 * N);
    double worst, e;
    int64_t i;
    int c;
    char what[100];
    test_group("accuracy of exp and log");
    for (c = 0; c < 6; c += 3) {
        for (i = 0; i < N; i++) x[i] = (ctr_real)(-87.0 + 175.0 * (double)i / (N - 1));
        ctr_k_unary(contexts[c], CTR_EXP, N, x, y);
        for (worst = 0, i = 0; i < N; i++) {
            e = fabs((double)y[i] / exp((double)x[i]) - 1);
            if (!(e <= worst)) worst = e;
        }
        snprintf(what, sizeof what, "exp from -87 to 88, relative, %s", context_names[c]);
        test_error(what, worst, test_bound(1e-15, 3e-7));
        for (i = 0; i < N; i++) x[i] = (ctr_real)exp((double)x[i]);
        ctr_k_unary(contexts[c], CTR_LOG, N, x, y);
        for (worst = 0, i = 0; i < N; i++) {
            e = fabs((double)y[i] - log((double)x[i]));
            if (!(e <= worst)) worst = e;
        }
        snprintf(what, sizeof what, "log of that, absolute, %s", context_names[c]);
        test_error(what, worst, test_bound(1e-13, 1e-5));
        for (i = 0; i < N; i++) {
            x[2 * i] = 0;
            x[2 * i + 1] = (ctr_real)(-86.0 * (double)i / (N - 1));
        }
        ctr_k_softmax(contexts[c], N, 2, x, y, 0);
        for (worst = 0, i = 0; i < N; i++) {
            double p = exp((double)x[2 * i + 1]);
            e = fabs((double)y[2 * i + 1] / (p / (1 + p)) - 1);
            if (!(e <= worst)) worst = e;
        }
        snprintf(what, sizeof what, "softmax of rows [0, 0..-86], relative, %s", context_names[c]);
        test_error(what, worst, loose(test_bound(1e-14, 6e-7), 1e-5));
    }
    free(x);
    free(y);
}

/* A mask of -1e30 gives exactly nothing; large numbers and equal masks do no harm. */
static void test_masks(void)
{
    static const double rows[4][4] = { { 0, -1e30, -1e30, 0 }, { -1e30, -1e30, -1e30, -1e30 },
                                       { 3e4, 3e4, -3e4, 0 }, { 100, 12, 11.5, -88 } };
    ctr_real x[16], y[16];
    int c, i;
    test_group("softmax with masks");
    for (c = 0; c < 6; c++) {
        for (i = 0; i < 16; i++) x[i] = (ctr_real)rows[i / 4][i % 4];
        ctr_k_softmax(contexts[c], 4, 4, x, y, 0);
        test_error("half", fabs((double)y[0] - 0.5), loose(0, 1e-7));
        test_equal("masked", (double)(y[1] + y[2]), 0);
        test_error("all masked", fabs((double)y[5] - 0.25), loose(0, 1e-7));
        test_error("two large ones", fabs((double)y[8] - 0.5), loose(0, 1e-7));
        test_equal("a difference of 6e4", (double)y[10], 0);
        test_error("e^-88, or 0 as it is below 2^-126", fabs((double)y[13] - exp(-88.0)), 1.2e-38);
        ctr_k_softmax(contexts[c], 4, 4, x, y, 1);
        test_true("the logarithm of a masked one is finite and at most -1e29",
                  golden_finite_((double)y[1]) && y[1] <= CTR_TEST_R(-1e29));
        test_error("log_softmax", fabs((double)y[12] + exp(-88.0)), 1e-6);
    }
}

int main(int argc, char **argv)
{
    int k;
    test_begin("test_vec", argc, argv);
    make_inputs();
    for (k = 0; k < 6; k++)
        contexts[k] = test_ctx(1 + k % 3, k < 3 ? CTR_KERNELS_SCALAR : CTR_KERNELS_AUTO);
    test_text("the name of the scalar kernels", ctr_kernels_name(contexts[0]), "scalar");
    printf("     the best kernels here: %s\n", ctr_kernels_name(contexts[3]));
    test_elementwise();
    test_shapes();
    test_moves();
    test_rows();
    test_norms();
    test_far_norms();
    test_pools_and_optimisers();
    test_finite();
    test_exp();
    test_masks();
    for (k = 0; k < 6; k++) ctr_ctx_destroy(contexts[k]);
    free_inputs();
    return test_end();
}
