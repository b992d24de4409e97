/* test_ops.c - every differentiable operation.
 * run: float double asan asandouble tsan smoke valgrind
 *
 * 1. Values and gradients against plain loops in double, written here: the gradient is taken from
 *    them by central differences. On the CPU with one and three threads, with the best kernels, and
 *    on the fake device; with leaves, with intermediate tensors that are used a second time, and
 *    through views with the operation applied twice, so that every gradient is also accumulated.
 *    Scalar kernels must give the same bytes everywhere.
 * 2. Values and gradients that PyTorch computed (tests/golden/golden_ops.txt).
 * 3. Wrong shapes and values: one clear line, a harmless tensor, a context that works afterwards.
 */
#include "fake_device.h"

enum { MAX_IN = 6, MAX_P = 8 };

typedef struct op_case op_case;
struct op_case {
    const char *name;
    const char *shapes;                  /* "5x7|7" */
    const char *kinds;                   /* a letter for each input, see fill_input */
    const char *out;                     /* the shape of the output */
    ctr_tensor *(*op)(ctr_ctx *ctx, ctr_tensor **in, const op_case *c);
    void (*ref)(const op_case *c, double *const *in, double *out);
    int p[MAX_P];
    int inputs, rank[MAX_IN], out_rank;  /* filled in by parse */
    int64_t shape[MAX_IN][4], size[MAX_IN], out_shape[4], out_size;
};

/* --------------------------------------------------------------- the operations and their loops */

static ctr_tensor *op_binary(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    switch (c->p[0]) {
    case 0: return ctr_add(ctx, in[0], in[1]);
    case 1: return ctr_sub(ctx, in[0], in[1]);
    case 2: return ctr_mul(ctx, in[0], in[1]);
    case 3: return ctr_div(ctx, in[0], in[1]);
    default: return ctr_bias(ctx, in[0], in[1]);
    }
}
static void ref_binary(const op_case *c, double *const *in, double *out)
{
    int64_t i;
    for (i = 0; i < c->out_size; i++) {
        double x = in[0][i], y = in[1][i % c->size[1]];
        out[i] = c->p[0] == 1 ? x - y : c->p[0] == 2 ? x * y : c->p[0] == 3 ? x / y : x + y;
    }
}

/* both operands are one tensor */
static ctr_tensor *op_self(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    ctr_tensor *twice[2];
    twice[0] = twice[1] = in[0];
    return op_binary(ctx, twice, c);
}
static void ref_self(const op_case *c, double *const *in, double *out)
{
    int64_t i;
    for (i = 0; i < c->out_size; i++) {
        double x = in[0][i];
        out[i] = c->p[0] == 1 ? 0 : c->p[0] == 2 ? x * x : c->p[0] == 3 ? 1 : 2 * x;
    }
}

static ctr_tensor *op_affine(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return c->p[0] ? ctr_add_scalar(ctx, in[0], -0.75) : ctr_scale(ctx, in[0], -1.5);
}
static void ref_affine(const op_case *c, double *const *in, double *out)
{
    int64_t i;
    for (i = 0; i < c->out_size; i++) out[i] = c->p[0] ? in[0][i] - 0.75 : in[0][i] * -1.5;
}

static ctr_tensor *op_unary(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    switch (c->p[0]) {
    case 0: return ctr_relu(ctx, in[0]);
    case 1: return ctr_gelu(ctx, in[0]);
    case 2: return ctr_sigmoid(ctx, in[0]);
    case 3: return ctr_tanh(ctx, in[0]);
    case 4: return ctr_exp(ctx, in[0]);
    case 5: return ctr_log(ctx, in[0]);
    case 7: return ctr_softplus(ctx, in[0]);
    default: return ctr_sqrt(ctx, in[0]);
    }
}
static void ref_unary(const op_case *c, double *const *in, double *out)
{
    int64_t i;
    for (i = 0; i < c->out_size; i++) {
        double x = in[0][i];
        switch (c->p[0]) {
        case 0: out[i] = x > 0 ? x : 0; break;
        case 1: out[i] = x * 0.5 * (1 + erf(x / sqrt(2.0))); break;
        case 2: out[i] = 1 / (1 + exp(-x)); break;
        case 3: out[i] = tanh(x); break;
        case 4: out[i] = exp(x); break;
        case 5: out[i] = log(x); break;
        case 7: out[i] = log(1 + exp(x)); break;
        default: out[i] = sqrt(x); break;
        }
    }
}

static ctr_tensor *op_matmul(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return ctr_matmul(ctx, in[0], c->p[0], in[1], c->p[1]);
}
static void ref_matmul(const op_case *c, double *const *in, double *out)
{
    int64_t m = c->out_shape[0], n = c->out_shape[1], k = c->shape[0][!c->p[0]], i, j, l;
    int64_t lda = c->shape[0][1], ldb = c->shape[1][1];
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++) {
            double s = 0;
            for (l = 0; l < k; l++)
                s += in[0][c->p[0] ? l * lda + i : i * lda + l] *
                     in[1][c->p[1] ? j * ldb + l : l * ldb + j];
            out[i * n + j] = s;
        }
}

static ctr_tensor *op_batch(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return ctr_matmul_batch(ctx, in[0], c->p[0], in[1], c->p[1]);
}
static void ref_batch(const op_case *c, double *const *in, double *out)
{
    int64_t m = c->out_shape[1], n = c->out_shape[2], k = c->shape[0][2 - c->p[0]], b, i, j, l;
    for (b = 0; b < c->out_shape[0]; b++)
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++) {
                double s = 0;
                for (l = 0; l < k; l++)
                    s += in[0][b * m * k + (c->p[0] ? l * m + i : i * k + l)] *
                         in[1][b * k * n + (c->p[1] ? j * k + l : l * n + j)];
                out[(b * m + i) * n + j] = s;
            }
}

static ctr_tensor *op_conv(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return ctr_conv(ctx, in[0], in[1], c->p[0], c->p[1]);
}
static void ref_conv(const op_case *c, double *const *in, double *out)
{
    const int64_t *x = c->shape[0], *w = c->shape[1], *y = c->out_shape;
    int64_t n, oy, ox, o, ky, kx, i;
    for (n = 0; n < y[0]; n++)
        for (oy = 0; oy < y[1]; oy++)
            for (ox = 0; ox < y[2]; ox++)
                for (o = 0; o < y[3]; o++) {
                    double s = 0;
                    for (ky = 0; ky < w[0]; ky++)
                        for (kx = 0; kx < w[1]; kx++) {
                            int64_t iy = oy * c->p[0] + ky - c->p[1];
                            int64_t ix = ox * c->p[0] + kx - c->p[1];
                            if (iy < 0 || ix < 0 || iy >= x[1] || ix >= x[2]) continue;
                            for (i = 0; i < x[3]; i++)
                                s += in[0][((n * x[1] + iy) * x[2] + ix) * x[3] + i] *
                                     in[1][((ky * w[1] + kx) * w[2] + i) * w[3] + o];
                        }
                    out[((n * y[1] + oy) * y[2] + ox) * y[3] + o] = s;
                }
}

/* Numbers before and behind an axis of input i. */
static void around(const op_case *c, int i, int axis, int64_t *outer, int64_t *inner)
{
    int j;
    *outer = *inner = 1;
    for (j = 0; j < c->rank[i]; j++) {
        if (j < axis) *outer *= c->shape[i][j];
        if (j > axis) *inner *= c->shape[i][j];
    }
}

static ctr_tensor *op_sum(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return c->p[1] ? ctr_mean(ctx, in[0], c->p[0]) : ctr_sum(ctx, in[0], c->p[0]);
}
static void ref_sum(const op_case *c, double *const *in, double *out)
{
    int64_t outer = 1, mid = c->size[0], inner = 1, o, m, i;
    if (c->p[0] >= 0) {
        around(c, 0, c->p[0], &outer, &inner);
        mid = c->shape[0][c->p[0]];
    }
    for (o = 0; o < outer; o++)
        for (i = 0; i < inner; i++) {
            double s = 0;
            for (m = 0; m < mid; m++) s += in[0][(o * mid + m) * inner + i];
            out[o * inner + i] = c->p[1] ? s / (double)mid : s;
        }
}

/* p: a rank and a shape that may hold -1 */
static ctr_tensor *op_reshape(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    int64_t shape[4];
    int i;
    for (i = 0; i < 4; i++) shape[i] = c->p[1 + i];
    return ctr_reshape(ctx, in[0], c->p[0], shape);
}
static void ref_same(const op_case *c, double *const *in, double *out)
{
    memcpy(out, in[0], (size_t)c->out_size * sizeof *out);
}

static ctr_tensor *op_permute(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return c->p[4] ? ctr_transpose(ctx, in[0]) : ctr_permute(ctx, in[0], c->p);
}
static void ref_permute(const op_case *c, double *const *in, double *out)
{
    int64_t at[4], i, j, from, rest;
    for (i = 0; i < c->out_size; i++) {
        rest = i;
        for (j = c->rank[0] - 1; j >= 0; j--) {
            at[c->p[j]] = rest % c->out_shape[j];
            rest /= c->out_shape[j];
        }
        for (from = 0, j = 0; j < c->rank[0]; j++) from = from * c->shape[0][j] + at[j];
        out[i] = in[0][from];
    }
}

static ctr_tensor *op_concat(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return ctr_concat(ctx, c->inputs, in, c->p[0]);
}
static void ref_concat(const op_case *c, double *const *in, double *out)
{
    int64_t outer, inner, o;
    int i;
    around(c, 0, c->p[0], &outer, &inner);
    for (o = 0; o < outer; o++)
        for (i = 0; i < c->inputs; i++) {
            int64_t cols = c->shape[i][c->p[0]] * inner;
            memcpy(out, in[i] + o * cols, (size_t)cols * sizeof *out);
            out += cols;
        }
}

static ctr_tensor *op_slice(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return ctr_slice(ctx, in[0], c->p[0], c->p[1], c->p[2]);
}
static void ref_slice(const op_case *c, double *const *in, double *out)
{
    int64_t outer, inner, o, all = c->shape[0][c->p[0]], i;
    around(c, 0, c->p[0], &outer, &inner);
    for (o = 0; o < outer; o++)
        for (i = 0; i < c->p[2] * inner; i++)
            *out++ = in[0][(o * all + c->p[1]) * inner + i];
}

/* An I32 tensor that lives until the step ends. */
static ctr_tensor *temp_i32(ctr_ctx *ctx, int64_t n, const int32_t *from)
{
    ctr_tensor *t = ctr_tensor_temp(ctx, CTR_I32, 1, &n);
    ctr_tensor_write_i32(ctx, t, from, n);
    return t;
}

/* p[0] rows, p[1..] which */
static ctr_tensor *op_gather(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    int32_t index[MAX_P];
    int i;
    for (i = 0; i < c->p[0]; i++) index[i] = c->p[1 + i];
    return ctr_gather(ctx, in[0], temp_i32(ctx, c->p[0], index));
}
static void ref_gather(const op_case *c, double *const *in, double *out)
{
    int64_t width = c->size[0] / c->shape[0][0];
    int i;
    for (i = 0; i < c->p[0]; i++)
        memcpy(out + i * width, in[0] + c->p[1 + i] * width, (size_t)width * sizeof *out);
}

static ctr_tensor *op_rows(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return c->p[0] == 0   ? ctr_normalize(ctx, in[0])
           : c->p[0] == 1 ? ctr_softmax(ctx, in[0])
                          : ctr_log_softmax(ctx, in[0]);
}
static void ref_rows(const op_case *c, double *const *in, double *out)
{
    int64_t cols = c->shape[0][c->rank[0] - 1], rows = c->size[0] / cols, r, i;
    for (r = 0; r < rows; r++) {
        const double *x = in[0] + r * cols;
        double *y = out + r * cols, s = 0, max = x[0];
        for (i = 0; i < cols; i++) max = x[i] > max ? x[i] : max;
        for (i = 0; i < cols; i++) s += c->p[0] ? exp(x[i] - max) : x[i] * x[i];
        for (i = 0; i < cols; i++)
            y[i] = c->p[0] == 0   ? (s > 0 ? x[i] / sqrt(s) : 0)
                   : c->p[0] == 1 ? exp(x[i] - max) / s
                                  : x[i] - max - log(s);
    }
}

/* p[0]: 0 classes with ignored rows, 1 every row ignored, 2 soft targets in the second input */
static void ce_target(const op_case *c, int32_t *target)
{
    int64_t r;
    for (r = 0; r < c->shape[0][0]; r++)
        target[r] = c->p[0] == 1 || r % 4 == 1 ? -7 : (int32_t)((5 * r + 3) % c->shape[0][1]);
}
static ctr_tensor *op_ce(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    int32_t target[64];
    if (c->p[0] == 2) return ctr_cross_entropy_soft(ctx, in[0], in[1]);
    ce_target(c, target);
    return ctr_cross_entropy(ctx, in[0], temp_i32(ctx, c->shape[0][0], target), -7);
}
static void ref_ce(const op_case *c, double *const *in, double *out)
{
    int64_t rows = c->shape[0][0], cols = c->shape[0][1], r, i;
    double sum = 0, count = 0;
    int32_t target[64];
    ce_target(c, target);
    for (r = 0; r < rows; r++) {
        const double *x = in[0] + r * cols;
        double s = 0;
        for (i = 0; i < cols; i++) s += exp(x[i]);
        if (c->p[0] == 2)
            for (i = 0; i < cols; i++) sum += in[1][r * cols + i] * (log(s) - x[i]);
        else if (target[r] != -7)
            sum += log(s) - x[target[r]];
        if (c->p[0] == 2 || target[r] != -7) count += 1;
    }
    out[0] = count > 0 ? sum / count : 0;
}

/* p: mode, groups, relu, affine, residual. Inputs: x, mean, var, [gamma, beta], [residual]. */
static ctr_tensor *op_bn(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    ctr_norm norm;
    memset(&norm, 0, sizeof norm);
    norm.mean = in[1];
    norm.var = in[2];
    norm.gamma = c->p[3] ? in[3] : NULL;
    norm.beta = c->p[3] ? in[4] : NULL;
    norm.momentum = CTR_TEST_R(0.1);
    norm.eps = CTR_TEST_R(1e-3);
    return ctr_batch_norm(ctx, in[0], &norm, (ctr_norm_mode)c->p[0], c->p[1],
                          c->p[4] ? in[3 + 2 * c->p[3]] : NULL, c->p[2]);
}
static void ref_bn(const op_case *c, double *const *in, double *out)
{
    int64_t ch = c->shape[0][c->rank[0] - 1], rows = c->size[0] / ch / c->p[1], g, j, r;
    double eps = (double)CTR_TEST_R(1e-3);
    for (g = 0; g < c->p[1]; g++)
        for (j = 0; j < ch; j++) {
            const double *x = in[0] + g * rows * ch + j;
            double mean = in[1][j], var = in[2][j];
            if (c->p[0] != CTR_NORM_EVAL) {
                for (mean = 0, r = 0; r < rows; r++) mean += x[r * ch] / (double)rows;
                for (var = 0, r = 0; r < rows; r++)
                    var += (x[r * ch] - mean) * (x[r * ch] - mean) / (double)rows;
            }
            for (r = 0; r < rows; r++) {
                double y = (x[r * ch] - mean) / sqrt(var + eps);
                if (c->p[3]) y = y * in[3][j] + in[4][j];
                if (c->p[4]) y += in[3 + 2 * c->p[3]][(g * rows + r) * ch + j];
                out[(g * rows + r) * ch + j] = c->p[2] && y < 0 ? 0 : y;
            }
        }
}

static ctr_tensor *op_ln(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    (void)c;
    return ctr_layer_norm(ctx, in[0], in[1], in[2], 1e-5);
}
static void ref_ln(const op_case *c, double *const *in, double *out)
{
    int64_t cols = c->shape[0][c->rank[0] - 1], rows = c->size[0] / cols, r, i;
    for (r = 0; r < rows; r++) {
        const double *x = in[0] + r * cols;
        double mean = 0, var = 0;
        for (i = 0; i < cols; i++) mean += x[i] / (double)cols;
        for (i = 0; i < cols; i++) var += (x[i] - mean) * (x[i] - mean) / (double)cols;
        for (i = 0; i < cols; i++)
            out[r * cols + i] = (x[i] - mean) / sqrt(var + 1e-5) * in[1][i] + in[2][i];
    }
}

/* p: percent, and how many masks of the step come first */
static ctr_tensor *op_dropout(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    int i;
    ctr_draws_at(ctx, 3, 11);
    for (i = 0; i < c->p[1]; i++) ctr_dropout(ctx, in[0], 0.5);
    return ctr_dropout(ctx, in[0], c->p[0] / 100.0);
}
static void ref_dropout(const op_case *c, double *const *in, double *out)
{
    ctr_rng rng;
    int64_t i;
    ctr_rng_init(&rng, 1, CTR_STREAM_DROPOUT, 3, 11, c->p[1]);
    for (i = 0; i < c->out_size; i++)
        out[i] = ctr_rng_uniform(&rng) >= c->p[0] / 100.0 ? in[0][i] / (1 - c->p[0] / 100.0) : 0;
}

/* p: kind (0 max, 1 average, 2 global), size, stride, pad */
static ctr_tensor *op_pool(ctr_ctx *ctx, ctr_tensor **in, const op_case *c)
{
    return c->p[0] == 0   ? ctr_max_pool(ctx, in[0], c->p[1], c->p[2], c->p[3])
           : c->p[0] == 1 ? ctr_avg_pool(ctx, in[0], c->p[1], c->p[2], c->p[3])
                          : ctr_global_pool(ctx, in[0]);
}
static double pool_window(const op_case *c, const double *x, int64_t oy, int64_t ox)
{
    const int64_t *s = c->shape[0];
    int64_t iy, ix, y0 = oy * c->p[2] - c->p[3], x0 = ox * c->p[2] - c->p[3];
    int64_t size_y = c->p[0] == 2 ? s[1] : c->p[1], size_x = c->p[0] == 2 ? s[2] : c->p[1];
    double max = -1e300, sum = 0, count = 0;
    if (c->p[0] == 2) y0 = x0 = 0;
    for (iy = y0; iy < y0 + size_y; iy++)
        for (ix = x0; ix < x0 + size_x; ix++) {
            if (iy < 0 || ix < 0 || iy >= s[1] || ix >= s[2]) continue;
            max = x[(iy * s[2] + ix) * s[3]] > max ? x[(iy * s[2] + ix) * s[3]] : max;
            sum += x[(iy * s[2] + ix) * s[3]];
            count += 1;
        }
    return c->p[0] == 0 ? max : sum / count;
}
static void ref_pool(const op_case *c, double *const *in, double *out)
{
    const int64_t *s = c->shape[0];
    int64_t oh = c->p[0] == 2 ? 1 : c->out_shape[1], ow = c->p[0] == 2 ? 1 : c->out_shape[2];
    int64_t n, oy, ox, ch;
    for (n = 0; n < s[0]; n++)
        for (oy = 0; oy < oh; oy++)
            for (ox = 0; ox < ow; ox++)
                for (ch = 0; ch < s[3]; ch++)
                    *out++ = pool_window(c, in[0] + n * s[1] * s[2] * s[3] + ch, oy, ox);
}

/* ------------------------------------------------------------------------------------ the table */

#define C_(name, shapes, kinds, out, op, ref) { name, shapes, kinds, out, op, ref
#define P_(...) { __VA_ARGS__ }, 0, { 0 }, 0, { { 0 } }, { 0 }, { 0 }, 0 }

static op_case cases[] = {
    C_("add", "5x7|5x7", "nn", "5x7", op_binary, ref_binary), P_(0),
    C_("add", "2x3x5x7|7", "nn", "2x3x5x7", op_binary, ref_binary), P_(0),
    C_("add", "3x5x7|5x7", "nn", "3x5x7", op_binary, ref_binary), P_(0),
    C_("add", "37|1", "nn", "37", op_binary, ref_binary), P_(0),
    C_("add", "3x4|", "nn", "3x4", op_binary, ref_binary), P_(0),
    C_("add", "|", "nn", "", op_binary, ref_binary), P_(0),
    C_("add", "9x3|9x3", "nN", "9x3", op_binary, ref_binary), P_(0),
    C_("sub", "5x7|5x7", "nn", "5x7", op_binary, ref_binary), P_(1),
    C_("sub", "4x3x17|17", "nn", "4x3x17", op_binary, ref_binary), P_(1),
    C_("mul", "5x7|5x7", "nn", "5x7", op_binary, ref_binary), P_(2),
    C_("mul", "2x3x5x7|7", "nn", "2x3x5x7", op_binary, ref_binary), P_(2),
    C_("mul", "6x9|", "nn", "6x9", op_binary, ref_binary), P_(2),
    C_("mul", "6x9|9", "Nn", "6x9", op_binary, ref_binary), P_(2),
    C_("div", "5x7|5x7", "np", "5x7", op_binary, ref_binary), P_(3),
    C_("div", "4x3x5|5", "np", "4x3x5", op_binary, ref_binary), P_(3),
    C_("div", "33|1", "np", "33", op_binary, ref_binary), P_(3),
    C_("bias", "3x5x33|33", "nn", "3x5x33", op_binary, ref_binary), P_(4),
    C_("add of a tensor to itself", "19", "n", "19", op_self, ref_self), P_(0),
    C_("sub of a tensor from itself", "19", "n", "19", op_self, ref_self), P_(1),
    C_("mul of a tensor by itself", "19", "n", "19", op_self, ref_self), P_(2),
    C_("div of a tensor by itself", "19", "p", "19", op_self, ref_self), P_(3),
    C_("scale", "3x11", "n", "3x11", op_affine, ref_affine), P_(0),
    C_("add_scalar", "3x11", "n", "3x11", op_affine, ref_affine), P_(1),
    C_("relu", "5x13", "k", "5x13", op_unary, ref_unary), P_(0),
    C_("softplus", "5x13", "n", "5x13", op_unary, ref_unary), P_(7),
    C_("gelu", "5x13", "n", "5x13", op_unary, ref_unary), P_(1),
    C_("sigmoid", "5x13", "n", "5x13", op_unary, ref_unary), P_(2),
    C_("tanh", "5x13", "n", "5x13", op_unary, ref_unary), P_(3),
    C_("exp", "5x13", "n", "5x13", op_unary, ref_unary), P_(4),
    C_("log", "5x13", "p", "5x13", op_unary, ref_unary), P_(5),
    C_("sqrt", "5x13", "p", "5x13", op_unary, ref_unary), P_(6),
    C_("matmul", "5x7|7x3", "nn", "5x3", op_matmul, ref_matmul), P_(0, 0),
    C_("matmul", "7x5|7x3", "nn", "5x3", op_matmul, ref_matmul), P_(1, 0),
    C_("matmul", "5x7|3x7", "nn", "5x3", op_matmul, ref_matmul), P_(0, 1),
    C_("matmul", "7x5|3x7", "nn", "5x3", op_matmul, ref_matmul), P_(1, 1),
    C_("matmul", "1x1|1x1", "nn", "1x1", op_matmul, ref_matmul), P_(0, 0),
    C_("matmul", "17x19|19x18", "nn", "17x18", op_matmul, ref_matmul), P_(0, 0),
    C_("matmul", "9x18|17x18", "nN", "9x17", op_matmul, ref_matmul), P_(0, 1),
    C_("matmul_batch", "3x5x7|3x7x2", "nn", "3x5x2", op_batch, ref_batch), P_(0, 0),
    C_("matmul_batch", "2x7x5|2x7x3", "nn", "2x5x3", op_batch, ref_batch), P_(1, 0),
    C_("matmul_batch", "4x5x7|4x3x7", "nn", "4x5x3", op_batch, ref_batch), P_(0, 1),
    C_("matmul_batch", "1x7x5|1x3x7", "nn", "1x5x3", op_batch, ref_batch), P_(1, 1),
    C_("matmul_batch", "3x9x18|3x17x18", "nN", "3x9x17", op_batch, ref_batch), P_(0, 1),
    C_("matmul_batch", "3x9x18|3x18x4", "Nn", "3x9x4", op_batch, ref_batch), P_(0, 0),
    C_("conv", "2x5x6x3|3x3x3x4", "nn", "2x5x6x4", op_conv, ref_conv), P_(1, 1),
    C_("conv", "2x7x6x3|3x3x3x5", "nn", "2x4x3x5", op_conv, ref_conv), P_(2, 1),
    C_("conv", "1x5x7x2|5x5x2x3", "nn", "1x3x5x3", op_conv, ref_conv), P_(1, 1),
    C_("conv", "1x8x8x2|1x1x2x9", "nn", "1x4x4x9", op_conv, ref_conv), P_(2, 0),
    C_("conv", "2x4x4x17|1x1x17x5", "nn", "2x4x4x5", op_conv, ref_conv), P_(1, 0),
    C_("conv", "1x9x8x2|7x7x2x3", "nn", "1x4x3x3", op_conv, ref_conv), P_(2, 2),
    C_("conv", "1x4x5x2|3x1x2x3", "nn", "1x2x5x3", op_conv, ref_conv), P_(1, 0),
    C_("conv", "1x7x7x2|3x3x2x3", "nn", "1x2x2x3", op_conv, ref_conv), P_(3, 0),
    C_("conv", "1x5x5x3|3x3x3x4", "Nn", "1x5x5x4", op_conv, ref_conv), P_(1, 1),
    C_("conv", "1x5x5x3|3x3x3x4", "nN", "1x5x5x4", op_conv, ref_conv), P_(1, 1),
    C_("sum", "3x5x7", "n", "", op_sum, ref_sum), P_(-1, 0),
    C_("sum", "3x5x7", "n", "5x7", op_sum, ref_sum), P_(0, 0),
    C_("sum", "3x5x7", "n", "3x7", op_sum, ref_sum), P_(1, 0),
    C_("sum", "3x5x7", "n", "3x5", op_sum, ref_sum), P_(2, 0),
    C_("sum", "2x3x4x5", "n", "2x3x5", op_sum, ref_sum), P_(2, 0),
    C_("mean", "4x9", "n", "", op_sum, ref_sum), P_(-1, 1),
    C_("mean", "4x9", "n", "9", op_sum, ref_sum), P_(0, 1),
    C_("mean", "4x9", "n", "4", op_sum, ref_sum), P_(1, 1),
    C_("reshape", "2x3x5", "n", "6x5", op_reshape, ref_same), P_(2, -1, 5),
    C_("reshape", "30", "n", "2x3x1x5", op_reshape, ref_same), P_(4, 2, 3, 1, 5),
    C_("reshape", "1x1", "n", "", op_reshape, ref_same), P_(0),
    C_("permute", "2x3x4x5", "n", "5x3x2x4", op_permute, ref_permute), P_(3, 1, 0, 2),
    C_("permute", "2x3x7", "n", "7x2x3", op_permute, ref_permute), P_(2, 0, 1),
    C_("permute", "9", "n", "9", op_permute, ref_permute), P_(0),
    C_("transpose", "5x11", "n", "11x5", op_permute, ref_permute), P_(1, 0, 0, 0, 1),
    C_("concat", "2x5|3x5", "nn", "5x5", op_concat, ref_concat), P_(0),
    C_("concat", "3x2|3x5|3x1", "nNn", "3x8", op_concat, ref_concat), P_(1),
    C_("concat", "2x3x1x4|2x3x2x4", "nn", "2x3x3x4", op_concat, ref_concat), P_(2),
    C_("concat", "7", "n", "7", op_concat, ref_concat), P_(0),
    C_("slice", "7x5", "n", "3x5", op_slice, ref_slice), P_(0, 2, 3),
    C_("slice", "3x9", "n", "3x4", op_slice, ref_slice), P_(1, 5, 4),
    C_("slice", "2x3x4x5", "n", "2x3x1x5", op_slice, ref_slice), P_(2, 3, 1),
    C_("gather", "5x7", "n", "4x7", op_gather, ref_gather), P_(4, 3, 0, 3, 1),
    C_("gather", "3x2x5", "n", "6x2x5", op_gather, ref_gather), P_(6, 2, 2, 2, 0, 1, 0),
    C_("gather", "9", "n", "2", op_gather, ref_gather), P_(2, 8, 8),
    C_("normalize", "5x7", "n", "5x7", op_rows, ref_rows), P_(0),
    C_("normalize", "2x3x17", "n", "2x3x17", op_rows, ref_rows), P_(0),
    C_("normalize, one column", "4x1", "p", "4x1", op_rows, ref_rows), P_(0),
    C_("softmax", "5x7", "n", "5x7", op_rows, ref_rows), P_(1),
    C_("softmax", "3x33", "n", "3x33", op_rows, ref_rows), P_(1),
    C_("softmax, one column", "4x1", "n", "4x1", op_rows, ref_rows), P_(1),
    C_("log_softmax", "5x7", "n", "5x7", op_rows, ref_rows), P_(2),
    C_("log_softmax", "2x2x19", "n", "2x2x19", op_rows, ref_rows), P_(2),
    C_("cross_entropy", "9x7", "n", "", op_ce, ref_ce), P_(0),
    C_("cross_entropy", "5x2", "n", "", op_ce, ref_ce), P_(0),
    C_("cross_entropy, all ignored", "3x4", "n", "", op_ce, ref_ce), P_(1),
    C_("cross_entropy_soft", "9x7|9x7", "nS", "", op_ce, ref_ce), P_(2),
    C_("batch_norm", "7x5|5|5|5|5", "nNPnn", "7x5", op_bn, ref_bn), P_(0, 1, 0, 1, 0),
    C_("batch_norm", "2x3x3x4|4|4|4|4", "nNPnn", "2x3x3x4", op_bn, ref_bn), P_(0, 1, 0, 1, 0),
    C_("batch_norm, groups", "6x2x1x3|3|3|3|3", "nNPnn", "6x2x1x3", op_bn, ref_bn),
        P_(0, 3, 0, 1, 0),
    C_("batch_norm, relu", "7x5|5|5|5|5", "nNPnn", "7x5", op_bn, ref_bn), P_(0, 1, 1, 1, 0),
    C_("batch_norm, residual, relu, groups", "8x3|3|3|3|3|8x3", "nNPnnn", "8x3", op_bn, ref_bn),
        P_(0, 2, 1, 1, 1),
    C_("batch_norm, residual", "8x3|3|3|3|3|8x3", "nNPnnn", "8x3", op_bn, ref_bn),
        P_(1, 1, 0, 1, 1),
    C_("batch_norm, no gamma, no beta", "9x3|3|3", "nNP", "9x3", op_bn, ref_bn), P_(1, 1, 0, 0, 0),
    C_("batch_norm, frozen gamma and beta", "9x3|3|3|3|3", "nNPNN", "9x3", op_bn, ref_bn),
        P_(1, 1, 0, 1, 0),
    C_("batch_norm, evaluation", "7x5|5|5|5|5", "nNPnn", "7x5", op_bn, ref_bn), P_(2, 1, 0, 1, 0),
    C_("batch_norm, evaluation, relu, residual", "7x5|5|5|5|5|7x5", "nNPnnn", "7x5", op_bn, ref_bn),
        P_(2, 1, 1, 1, 1),
    C_("batch_norm, evaluation of one row", "1x5|5|5|5|5", "nNPnn", "1x5", op_bn, ref_bn),
        P_(2, 1, 0, 1, 0),
    C_("layer_norm", "5x7|7|7", "nnn", "5x7", op_ln, ref_ln), P_(0),
    C_("layer_norm", "2x3x17|17|17", "nnn", "2x3x17", op_ln, ref_ln), P_(0),
    C_("layer_norm, frozen input", "5x7|7|7", "Nnn", "5x7", op_ln, ref_ln), P_(0),
    C_("dropout", "5x7", "n", "5x7", op_dropout, ref_dropout), P_(40, 0),
    C_("dropout, third mask", "37", "n", "37", op_dropout, ref_dropout), P_(75, 2),
    C_("dropout of nothing", "9", "n", "9", op_dropout, ref_dropout), P_(0, 0),
    C_("max_pool", "2x5x6x3", "d", "2x3x3x3", op_pool, ref_pool), P_(0, 3, 2, 1),
    C_("max_pool", "1x6x6x2", "d", "1x3x3x2", op_pool, ref_pool), P_(0, 2, 2, 0),
    C_("max_pool", "1x5x4x2", "d", "1x3x2x2", op_pool, ref_pool), P_(0, 3, 1, 0),
    C_("avg_pool", "2x5x6x3", "n", "2x2x3x3", op_pool, ref_pool), P_(1, 2, 2, 0),
    C_("avg_pool", "1x5x6x2", "n", "1x3x3x2", op_pool, ref_pool), P_(1, 3, 2, 1),
    C_("avg_pool", "1x4x4x2", "n", "1x1x1x2", op_pool, ref_pool), P_(1, 4, 4, 0),
    C_("global_pool", "2x3x5x7", "n", "2x7", op_pool, ref_pool), P_(2)
};

/* "5x7" to a shape; returns where the text goes on. */
static const char *parse_shape(const char *s, int *rank, int64_t *shape, int64_t *size)
{
    int i;
    for (i = 0; i < 4; i++) shape[i] = 1;
    *rank = 0;
    *size = 1;
    while (*s >= '0' && *s <= '9') {
        char *end;
        shape[*rank] = strtol(s, &end, 10);
        *size *= shape[(*rank)++];
        s = *end == 'x' ? end + 1 : end;
    }
    return s;
}

static void parse(op_case *c)
{
    const char *s = c->shapes;
    c->inputs = 0;
    for (;;) {
        int i = c->inputs++;
        s = parse_shape(s, &c->rank[i], c->shape[i], &c->size[i]);
        if (*s++ != '|') break;
    }
    parse_shape(c->out, &c->out_rank, c->out_shape, &c->out_size);
}

/* n numbers in [-2, 2); p positive, 0.5 to 2; k at least 0.05 away from zero; d all different by at
   least 0.01; s rows that sum to 1. A capital: no gradient. */
static void fill_input(const op_case *c, int i, double *x)
{
    char name[200];
    int64_t j, n = c->size[i], cols = c->rank[i] ? c->shape[i][c->rank[i] - 1] : 1;
    char kind = c->kinds[i];
    snprintf(name, sizeof name, "%d:%s:%s", i, c->name, c->shapes);
    test_fill(name, x, n, 2.0);
    for (j = 0; j < n; j++) {
        if (kind == 'p' || kind == 'P') x[j] = 0.5 + 0.375 * (x[j] + 2);
        if (kind == 'k') x[j] += x[j] < 0 ? -0.05 : 0.05;
        if (kind == 'd') x[j] = 0.01 * (double)((j * 7919 + 13) % 1009) - 5;
        if (kind == 'S') x[j] = 0.1 + fabs(x[j]);
    }
    for (j = 0; kind == 'S' && j < n; j++)
        if (j % cols == cols - 1) {
            int64_t k;
            double s = 0;
            for (k = j - cols + 1; k <= j; k++) s += x[k];
            for (k = j - cols + 1; k <= j; k++) x[k] /= s;
        }
    for (j = 0; j < n; j++) x[j] = (double)(float)x[j];
}

static int wants_grad(const op_case *c, int i) { return c->kinds[i] >= 'a'; }

/* d (sum dy ref(x)) / dx of input i, by central differences of fourth order on the loops in
   double. */
static void numeric_gradient(const op_case *c, double **x, const double *dy, int i, double *grad)
{
    static const double step[4] = { -2, -1, 1, 2 }, weight[4] = { 1, -8, 8, -1 };
    double *y = test_doubles(c->out_size), h = 1e-4;
    int64_t j, k;
    int s;
    for (j = 0; j < c->size[i]; j++) {
        double keep = x[i][j];
        grad[j] = 0;
        for (s = 0; s < 4; s++) {
            double sum = 0;
            x[i][j] = keep + step[s] * h;
            c->ref(c, x, y);
            for (k = 0; k < c->out_size; k++) sum += y[k] * dy[k];
            grad[j] += weight[s] * sum / (12 * h);
        }
        x[i][j] = keep;
    }
    free(y);
}

/* ------------------------------------------------------------------------------- running a case */

typedef struct op_result {
    ctr_real *y, *grad[MAX_IN];
} op_result;

static void result_init(const op_case *c, op_result *r)
{
    int i;
    r->y = test_reals(c->out_size);
    for (i = 0; i < c->inputs; i++) r->grad[i] = test_reals(c->size[i]);
}

static void result_free(const op_case *c, op_result *r)
{
    int i;
    free(r->y);
    for (i = 0; i < c->inputs; i++) free(r->grad[i]);
}

static ctr_tensor *leaf(ctr_ctx *ctx, int rank, const int64_t *shape, const double *x, int grad)
{
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, rank, shape, grad);
    ctr_real *r = test_reals(t->size);
    int64_t i;
    for (i = 0; i < t->size; i++) r[i] = (ctr_real)x[i];
    ctr_tensor_write(ctx, t, r, t->size);
    free(r);
    return t;
}

enum { MODE_LEAF, MODE_SHARED, MODE_VIEW, MODES };

/* What the operation sees in place of leaf t: itself, an intermediate tensor, or a view of a
   view. */
static ctr_tensor *disguise(ctr_ctx *ctx, ctr_tensor *t, int mode)
{
    int64_t flat = t->size;
    if (mode == MODE_SHARED) return ctr_scale(ctx, t, 1.0);
    if (mode == MODE_VIEW)
        return ctr_reshape(ctx, ctr_reshape(ctx, t, 1, &flat), t->rank, t->shape);
    return t;
}

/* MODE_SHARED: loss = sum(y dy) + sum over the inputs of sum(u 0.5 u), whose gradient is u more; it
   arrives before the operation's own. MODE_VIEW: the operation is applied twice. */
static void run_graph(ctr_ctx *ctx, const op_case *c, int mode, ctr_tensor **leaves, ctr_tensor *dy,
                      op_result *r)
{
    ctr_tensor *u[MAX_IN], *y, *loss;
    int i;
    for (i = 0; i < c->inputs; i++) u[i] = disguise(ctx, leaves[i], mode);
    y = ctr_keep(ctx, c->op(ctx, u, c));
    test_true("rank of the output", y->rank == c->out_rank);
    test_true("shape of the output", memcmp(y->shape, c->out_shape, sizeof y->shape) == 0);
    if (mode == MODE_SHARED) {
        loss = ctr_sum(ctx, ctr_mul(ctx, y, dy), -1);
        for (i = 0; i < c->inputs; i++)
            if (wants_grad(c, i))
                loss = ctr_add(ctx, loss, ctr_scale(ctx, ctr_sum(ctx, ctr_mul(ctx, u[i], u[i]), -1),
                                                    0.5));
        ctr_backward(ctx, loss);
    } else if (mode == MODE_VIEW) {
        ctr_draws_at(ctx, 3, 11);
        ctr_backward_from(ctx, ctr_add(ctx, y, c->op(ctx, u, c)), dy);
    } else {
        ctr_backward_from(ctx, y, dy);
    }
    ctr_tensor_read(ctx, y, r->y, c->out_size);
    for (i = 0; i < c->inputs; i++)
        if (wants_grad(c, i)) ctr_tensor_read_grad(ctx, leaves[i], r->grad[i], c->size[i]);
        else test_true("no gradient where none is wanted", !ctr_tensor_has_grad(ctx, leaves[i]));
}

static void run_case(ctr_ctx *ctx, const op_case *c, int mode, double **x, const double *dy,
                     op_result *r)
{
    ctr_tensor *leaves[MAX_IN], *gradient;
    int i;
    for (i = 0; i < c->inputs; i++)
        leaves[i] = leaf(ctx, c->rank[i], c->shape[i], x[i], wants_grad(c, i));
    gradient = leaf(ctx, c->out_rank, c->out_shape, dy, 0);
    ctr_step_begin(ctx);
    run_graph(ctx, c, mode, leaves, gradient, r);
    ctr_step_end(ctx);
    test_fine(ctx, c->name);
    for (i = 0; i < c->inputs; i++) ctr_tensor_destroy(ctx, leaves[i]);
    ctr_tensor_destroy(ctx, gradient);
}

/* What a mode's gradient is, from the plain one. */
static double expected(int mode, double gradient, double x)
{
    return mode == MODE_SHARED ? gradient + x : mode == MODE_VIEW ? 2 * gradient : gradient;
}

enum { ON_SCALAR, ON_THREADS, ON_FAKE, ON_BEST, ON_BEST_THREADS, PLACES };
static const char *const place_names[] = { "scalar", "scalar, 3 threads", "fake device",
                                           "best kernels", "best kernels, 2 threads" };

/* The fake device runs the CPU's kernels, so a real one has other bytes. */
static int same_bytes(int place) { return place != ON_FAKE || !test_on_device(); }

static void check_case(const op_case *c, ctr_ctx **places)
{
    double *x[MAX_IN], *grad[MAX_IN], *y = test_doubles(c->out_size), *dy, *want;
    op_result results[PLACES];
    char what[256];
    int i, mode, place, base;
    int64_t j;
    dy = test_doubles(c->out_size);
    test_fill(c->name, dy, c->out_size, 1.0);
    for (i = 0; i < c->inputs; i++) {
        x[i] = test_doubles(c->size[i]);
        grad[i] = test_doubles(c->size[i]);
        fill_input(c, i, x[i]);
    }
    c->ref(c, x, y);
    for (i = 0; i < c->inputs; i++)
        if (wants_grad(c, i)) numeric_gradient(c, x, dy, i, grad[i]);
    for (mode = 0; mode < MODES; mode++) {
        if (mode == MODE_VIEW && c->op == op_dropout) continue; /* the second mask is another one */
        for (place = 0; place < PLACES; place++) {
            result_init(c, &results[place]);
            run_case(places[place], c, mode, x, dy, &results[place]);
            snprintf(what, sizeof what, "%s %s, value, mode %d, %s", c->name, c->shapes, mode,
                     place_names[place]);
            test_near(what, results[place].y, y, c->out_size, test_bound(1e-12, 1e-4),
                      test_bound(1e-12, 1e-6));
            base = place < ON_BEST ? ON_SCALAR : ON_BEST;
            if (same_bytes(place))
                test_bytes(what, results[place].y, results[base].y,
                           (size_t)c->out_size * sizeof(ctr_real));
            for (i = 0; i < c->inputs; i++) {
                if (!wants_grad(c, i)) continue;
                want = test_doubles(c->size[i]);
                for (j = 0; j < c->size[i]; j++) want[j] = expected(mode, grad[i][j], x[i][j]);
                snprintf(what, sizeof what, "%s %s, gradient %d, mode %d, %s", c->name, c->shapes,
                         i, mode, place_names[place]);
                test_near(what, results[place].grad[i], want, c->size[i], test_bound(1e-6, 1e-4),
                          test_bound(1e-9, 1e-5));
                if (same_bytes(place))
                    test_bytes(what, results[place].grad[i], results[base].grad[i],
                               (size_t)c->size[i] * sizeof(ctr_real));
                free(want);
            }
        }
        for (place = 0; place < PLACES; place++) result_free(c, &results[place]);
    }
    for (i = 0; i < c->inputs; i++) {
        free(x[i]);
        free(grad[i]);
    }
    free(y);
    free(dy);
}

static void test_cases(void)
{
    ctr_ctx *places[PLACES];
    fake_device *fake = fake_device_open();
    static const char *const verbs[] = {
        "zero", "copy", "upload", "download", "fill", "axpby", "binary", "broadcast", "unary",
        "unary_grad", "reduce", "expand", "permute", "copy_rows", "gather", "scatter", "softmax",
        "softmax_grad", "normalize", "normalize_grad", "nll", "nll_grad", "gemm", "conv_forward",
        "conv_input", "conv_weight", "max_pool", "max_pool_grad", "avg_pool", "avg_pool_grad",
        "norm_stats", "norm", "norm_grad", "layer_norm", "layer_norm_grad", "dropout"
    };
    size_t i;
    places[ON_SCALAR] = test_ctx(1, CTR_KERNELS_SCALAR);
    places[ON_THREADS] = test_ctx(3, CTR_KERNELS_SCALAR);
    places[ON_FAKE] = fake_device_ctx(fake);
    places[ON_BEST] = test_ctx(1, CTR_KERNELS_AUTO);
    places[ON_BEST_THREADS] = test_ctx(2, CTR_KERNELS_AUTO);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        parse(&cases[i]);
        if (i == 0 || strcmp(cases[i].name, cases[i - 1].name) != 0) test_group(cases[i].name);
        check_case(&cases[i], places);
    }
    test_group("the operations reach every verb on the fake device");
    for (i = 0; i < sizeof verbs / sizeof *verbs; i++)
        test_true(verbs[i], fake_device_ran(fake, verbs[i]));
    for (i = 0; i < PLACES; i++) ctr_ctx_destroy(places[i]);
    test_group("the fake device got its memory back");
    fake_device_close(fake);
}

/* ------------------------------------------------------------------- values computed by PyTorch */

/* One key of golden_ops.txt: inputs filled by name, dimensions a[0..]. */
typedef struct golden_case {
    golden_file *g;
    ctr_ctx *ctx;
    char key[96];
    int64_t a[8];
    double worst;
    const char *worst_what;
} golden_case;

static void golden_note(golden_case *k, const char *what, double error)
{
    if (!(error <= k->worst)) {
        k->worst = error;
        k->worst_what = what;
    }
}

/* A leaf of n = product of the shape numbers: base + scale * fill("PREFIX:KEY"). */
static ctr_tensor *golden_leaf(const golden_case *k, const char *prefix, int rank,
                               const int64_t *shape, double scale, double base, int grad)
{
    char name[128];
    int64_t n = 1, i;
    double *v;
    ctr_tensor *t;
    for (i = 0; i < rank; i++) n *= shape[i];
    v = test_doubles(n);
    snprintf(name, sizeof name, "%s:%s", prefix, k->key);
    golden_fill(name, v, (size_t)n, scale);
    for (i = 0; i < n; i++) v[i] += base;
    t = leaf(k->ctx, rank, shape, v, grad);
    free(v);
    return t;
}

/* Compares KEY:what with a tensor's value or gradient. In float, what cancels to nearly nothing
   (rows of one number, two rows a batch norm) is compared on the scale of what it is the difference
   of. */
static void golden_compare(golden_case *k, const char *what, const ctr_tensor *t, int grad)
{
    ctr_real *v = test_reals(t->size);
    char key[128];
    double floor_rms = test_bound(1e-5, 1e-2);
    snprintf(key, sizeof key, "%s:%s", k->key, what);
    if (grad) ctr_tensor_read_grad(k->ctx, t, v, t->size);
    else ctr_tensor_read(k->ctx, t, v, t->size);
    golden_note(k, what, ctr_error(k->ctx) ? GOLDEN_BAD
                                           : test_digest(k->g, key, v, t->size, floor_rms));
    free(v);
}

/* Backward from y with the gradient fill("dy:KEY"), then KEY:y. */
static void golden_backward(golden_case *k, ctr_tensor *y)
{
    ctr_tensor *dy = golden_leaf(k, "dy", y->rank, y->shape, 1.0, 0.0, 0);
    ctr_keep(k->ctx, y);
    ctr_backward_from(k->ctx, y, dy);
    golden_compare(k, "y", y, 0);
    ctr_tensor_destroy(k->ctx, dy);
}

static void golden_rows(golden_case *k, const char *op)
{
    static const char *const unary[] = { "gelu", "sigmoid", "tanh" };
    ctr_ctx *ctx = k->ctx;
    int rank = 2, i;
    double scale = strncmp(op, "rownorm", 7) == 0 ? 1.0 : 4.0;
    ctr_tensor *x, *y;
    for (i = 0; i < 3; i++)
        if (strcmp(op, unary[i]) == 0) rank = 1;
    if (rank == 2 && scale > 1 && k->a[0] == 4) scale = 60.0;
    x = golden_leaf(k, "x", rank, k->a, scale, 0.0, 1);
    if (strcmp(op, "rownorm0") == 0) {
        ctr_real *v = test_reals(x->size);
        ctr_tensor_read(ctx, x, v, x->size);
        memset(v + k->a[1], 0, (size_t)k->a[1] * sizeof *v);
        ctr_tensor_write(ctx, x, v, x->size);
        free(v);
    }
    ctr_step_begin(ctx);
    y = strcmp(op, "gelu") == 0          ? ctr_gelu(ctx, x)
        : strcmp(op, "sigmoid") == 0     ? ctr_sigmoid(ctx, x)
        : strcmp(op, "tanh") == 0        ? ctr_tanh(ctx, x)
        : strcmp(op, "softmax") == 0     ? ctr_softmax(ctx, x)
        : strcmp(op, "log_softmax") == 0 ? ctr_log_softmax(ctx, x)
                                         : ctr_normalize(ctx, x);
    golden_backward(k, y);
    golden_compare(k, "dx", x, 1);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
}

static void golden_linear(golden_case *k, const char *op)
{
    ctr_ctx *ctx = k->ctx;
    int norm = strcmp(op, "layernorm") == 0;
    int64_t in[2], w_shape[2];
    ctr_tensor *x, *w, *b;
    in[0] = k->a[0];
    in[1] = w_shape[1] = k->a[1];
    w_shape[0] = k->a[2];
    x = golden_leaf(k, "x", 2, in, norm ? 1.0 : 1.0, 0.0, 1);
    w = norm ? golden_leaf(k, "w", 1, &in[1], 1.0, 0.0, 1)
             : golden_leaf(k, "w", 2, w_shape, 1.0, 0.0, 1);
    b = golden_leaf(k, "b", 1, norm ? &in[1] : &w_shape[0], 1.0, 0.0, 1);
    ctr_step_begin(ctx);
    golden_backward(k, norm ? ctr_layer_norm(ctx, x, w, b, 1e-5)
                            : ctr_bias(ctx, ctr_matmul(ctx, x, 0, w, 1), b));
    golden_compare(k, "dx", x, 1);
    golden_compare(k, "dw", w, 1);
    golden_compare(k, "db", b, 1);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
    ctr_tensor_destroy(ctx, w);
    ctr_tensor_destroy(ctx, b);
}

/* Running statistics after the commit are stored whole. */
static void golden_running(golden_case *k, const char *what, const ctr_tensor *t)
{
    ctr_real *v = test_reals(t->size);
    char key[128];
    snprintf(key, sizeof key, "%s:%s", k->key, what);
    ctr_tensor_read(k->ctx, t, v, t->size);
    golden_note(k, what, golden_array_error_(k->g, key, v, !TEST_DOUBLE, (size_t)t->size));
    free(v);
}

static void golden_bn(golden_case *k, const char *op)
{
    ctr_ctx *ctx = k->ctx;
    int eval = strcmp(op, "bneval") == 0, groups = strcmp(op, "bn2") == 0 ? 2 : 1;
    ctr_norm norm;
    ctr_tensor *x = golden_leaf(k, "x", 4, k->a, 1.0, 0.0, 1);
    norm.gamma = golden_leaf(k, "w", 1, &k->a[3], 1.0, 0.0, 1);
    norm.beta = golden_leaf(k, "b", 1, &k->a[3], 1.0, 0.0, 1);
    norm.mean = golden_leaf(k, "rm", 1, &k->a[3], 1.0, 0.0, 0);
    norm.var = golden_leaf(k, "rv", 1, &k->a[3], 0.5, 1.0, 0);
    norm.momentum = CTR_TEST_R(0.1);
    norm.eps = CTR_TEST_R(1e-5);
    ctr_step_begin(ctx);
    golden_backward(k, ctr_batch_norm(ctx, x, &norm, eval ? CTR_NORM_EVAL : CTR_NORM_TRAIN, groups,
                                      NULL, 0));
    golden_compare(k, "dx", x, 1);
    golden_compare(k, "dw", norm.gamma, 1);
    golden_compare(k, "db", norm.beta, 1);
    ctr_commit(ctx);
    ctr_step_end(ctx);
    if (!eval) {
        golden_running(k, "mean", norm.mean);
        golden_running(k, "var", norm.var);
    }
    ctr_tensor_destroy(ctx, x);
    ctr_tensor_destroy(ctx, norm.gamma);
    ctr_tensor_destroy(ctx, norm.beta);
    ctr_tensor_destroy(ctx, norm.mean);
    ctr_tensor_destroy(ctx, norm.var);
}

static void golden_ce(golden_case *k, const char *op)
{
    ctr_ctx *ctx = k->ctx;
    ctr_tensor *x = golden_leaf(k, "x", 2, k->a, 3.0, 0.0, 1), *t, *loss;
    char key[128];
    ctr_real value;
    double error;
    ctr_step_begin(ctx);
    if (strcmp(op, "ce") == 0) {
        int32_t target[64];
        int64_t r;
        for (r = 0; r < k->a[0]; r++)
            target[r] = r % 4 == 1 ? -1 : (int32_t)((5 * r + 3) % k->a[1]);
        loss = ctr_cross_entropy(ctx, x, temp_i32(ctx, k->a[0], target), -1);
    } else {
        t = golden_leaf(k, "t", 2, k->a, 3.0, 0.0, 0);
        ctr_tensor *soft = ctr_softmax(ctx, t);
        loss = ctr_cross_entropy_soft(ctx, x, soft);
        ctr_tensor_destroy(ctx, t);
    }
    ctr_backward(ctx, loss);
    value = ctr_tensor_item(ctx, loss);
    snprintf(key, sizeof key, "%s:loss", k->key);
    error = golden_array_error_(k->g, key, &value, !TEST_DOUBLE, 1);
    golden_note(k, "loss", error);
    golden_compare(k, "dx", x, 1);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
}

static void golden_pool(golden_case *k, const char *op)
{
    ctr_ctx *ctx = k->ctx;
    ctr_tensor *x = golden_leaf(k, "x", 4, k->a, 1.0, 0.0, 1);
    ctr_step_begin(ctx);
    golden_backward(k, strcmp(op, "maxpool") == 0   ? ctr_max_pool(ctx, x, 3, 2, 1)
                       : strcmp(op, "avgpool") == 0 ? ctr_avg_pool(ctx, x, 2, 2, 0)
                                                    : ctr_global_pool(ctx, x));
    golden_compare(k, "dx", x, 1);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
}

/* Weights are OIHW in the file and HWIO here: v[h][w][i][o] = u[o][i][h][w], or back. */
static void hwio(const int64_t *a, const double *u, double *v, int back)
{
    int64_t in = a[3], out = a[4], k = a[5], o, i, y, x;
    for (o = 0; o < out; o++)
        for (i = 0; i < in; i++)
            for (y = 0; y < k; y++)
                for (x = 0; x < k; x++) {
                    int64_t ours = ((y * k + x) * in + i) * out + o;
                    int64_t theirs = ((o * in + i) * k + y) * k + x;
                    if (back) v[theirs] = u[ours];
                    else v[ours] = u[theirs];
                }
}

/* conv:N:H:W:CIN:COUT:K:S:P */
static void golden_conv(golden_case *k)
{
    ctr_ctx *ctx = k->ctx;
    int64_t w_shape[4], n = k->a[3] * k->a[4] * k->a[5] * k->a[5], i;
    double *u = test_doubles(n), *v = test_doubles(n);
    ctr_real *r = test_reals(n);
    ctr_tensor *x = golden_leaf(k, "x", 4, k->a, 1.0, 0.0, 1), *w;
    char name[128];
    w_shape[0] = w_shape[1] = k->a[5];
    w_shape[2] = k->a[3];
    w_shape[3] = k->a[4];
    snprintf(name, sizeof name, "w:%s", k->key);
    golden_fill(name, u, (size_t)n, 1.0);
    hwio(k->a, u, v, 0);
    w = leaf(ctx, 4, w_shape, v, 1);
    ctr_step_begin(ctx);
    golden_backward(k, ctr_conv(ctx, x, w, (int)k->a[6], (int)k->a[7]));
    golden_compare(k, "dx", x, 1);
    ctr_tensor_read_grad(ctx, w, r, n);
    for (i = 0; i < n; i++) u[i] = (double)r[i];
    hwio(k->a, u, v, 1);
    snprintf(name, sizeof name, "%s:dw", k->key);
    golden_note(k, "dw", golden_digest_error(k->g, name, v, (size_t)n, 0.0));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
    ctr_tensor_destroy(ctx, w);
    free(u);
    free(v);
    free(r);
}

/* Runs the operation of one record; 0 if this program does not know it. */
static int golden_run(golden_case *k)
{
    char op[32];
    const char *at = strchr(k->key, ':');
    int i;
    snprintf(op, sizeof op, "%.*s", (int)(at - k->key), k->key);
    for (i = 0; i < 8; i++) k->a[i] = 1;
    for (i = 0; i < 8 && at; i++) {
        k->a[i] = strtol(at + 1, NULL, 10);
        at = strchr(at + 1, ':');
    }
    k->worst = -1;
    k->worst_what = "nothing";
    if (strcmp(op, "hash") == 0) return 0;
    if (strcmp(op, "conv") == 0) golden_conv(k);
    else if (strcmp(op, "linear") == 0 || strcmp(op, "layernorm") == 0) golden_linear(k, op);
    else if (op[0] == 'b' && op[1] == 'n') golden_bn(k, op);
    else if (op[0] == 'c' && op[1] == 'e') golden_ce(k, op);
    else if (strcmp(op, "maxpool") == 0 || strcmp(op, "avgpool") == 0 || strcmp(op, "gap") == 0)
        golden_pool(k, op);
    else golden_rows(k, op);
    return 1;
}

static void test_golden(ctr_ctx *ctx, const char *place)
{
    golden_file g;
    golden_case k;
    char before[96], what[160];
    size_t i;
    int count = 0;
    if (!test_golden_open(&g, "golden_ops.txt")) return;
    before[0] = 0;
    for (i = 0; i < g.count; i++) {
        memset(&k, 0, sizeof k);
        k.g = &g;
        k.ctx = ctx;
        snprintf(k.key, sizeof k.key, "%s", g.records[i].key);
        if (strrchr(k.key, ':')) *strrchr(k.key, ':') = 0;
        if (strcmp(k.key, before) == 0) continue;
        snprintf(before, sizeof before, "%s", k.key);
        if (strncmp(k.key, "hash", 4) == 0) continue;
        if (test_quick() && count % 5) {
            count++;
            continue;
        }
        test_true("a key of golden_ops.txt is known", golden_run(&k));
        test_fine(ctx, k.key);
        snprintf(what, sizeof what, "%s:%s, %s", k.key, k.worst_what, place);
        test_error(what, k.worst, test_bound(1e-8, 1e-4));
        count++;
    }
    test_true("golden_ops.txt has more than 140 operations", count > 140);
    golden_close(&g);
}

static void test_golden_places(void)
{
    fake_device *fake;
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    test_group("values computed by PyTorch, best kernels");
    test_golden(ctx, "best kernels");
    ctr_ctx_destroy(ctx);
    if (test_quick()) return;
    fake = fake_device_open();
    ctx = fake_device_ctx(fake);
    test_group("values computed by PyTorch, fake device");
    test_golden(ctx, "fake device");
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
}

/* ------------------------------------------------------------------------------ wrong arguments */

static ctr_tensor *zeros(ctr_ctx *ctx, const char *text)
{
    int64_t shape[4], size;
    int rank;
    parse_shape(text, &rank, shape, &size);
    return ctr_tensor_temp(ctx, CTR_F32, rank, shape);
}

/* The tensor that came back must be safe to use; afterwards the context works again. */
static void refused(ctr_ctx *ctx, const char *what, ctr_tensor *t, ctr_status status,
                    const char *word)
{
    ctr_real back = 7;
    ctr_tensor *sum;
    test_true("an operation that failed returns a tensor", t != NULL && t->data != NULL);
    test_true("of size 0", t->size == 0);
    sum = ctr_sum(ctx, ctr_relu(ctx, ctr_add(ctx, t, t)), -1);  /* shadows of the first error */
    ctr_backward(ctx, sum);
    ctr_commit(ctx);
    back = ctr_tensor_item(ctx, sum);
    test_equal("ctr_tensor_item after an error", (double)back, 0);
    test_fails(ctx, what, status, word);
    ctr_step_begin(ctx);
    t = zeros(ctx, "2x3");
    ctr_tensor_fill(ctx, t, 2);
    test_equal("the context works after its error was cleared",
               (double)ctr_tensor_item(ctx, ctr_sum(ctx, t, -1)), 12);
    ctr_step_begin(ctx);
}

static void test_refusals_shapes(ctr_ctx *ctx)
{
    ctr_tensor *pair[2];
    int64_t six = 6, minus[2] = { -1, -1 }, big[5] = { 2, 2, 2, 1, 1 };
    int twice[2] = { 0, 0 }, outside[2] = { 0, 2 };
    refused(ctx, "add", ctr_add(ctx, zeros(ctx, "2x3"), zeros(ctx, "2")), CTR_E_SHAPE, "add");
    refused(ctx, "add, wider", ctr_add(ctx, zeros(ctx, "3"), zeros(ctx, "2x3")), CTR_E_SHAPE,
            "[2, 3]");
    refused(ctx, "sub", ctr_sub(ctx, zeros(ctx, "2x3"), zeros(ctx, "3x2")), CTR_E_SHAPE, "sub");
    refused(ctx, "mul", ctr_mul(ctx, zeros(ctx, "5"), zeros(ctx, "4")), CTR_E_SHAPE, "mul");
    refused(ctx, "div", ctr_div(ctx, zeros(ctx, "5"), zeros(ctx, "4")), CTR_E_SHAPE, "div");
    refused(ctx, "bias", ctr_bias(ctx, zeros(ctx, "2x5"), zeros(ctx, "4")), CTR_E_SHAPE, "bias");
    refused(ctx, "matmul, rank", ctr_matmul(ctx, zeros(ctx, "6"), 0, zeros(ctx, "2x3"), 0),
            CTR_E_SHAPE, "matmul");
    refused(ctx, "matmul_batch, rank",
            ctr_matmul_batch(ctx, zeros(ctx, "2x3"), 0, zeros(ctx, "3x2"), 0), CTR_E_SHAPE,
            "matmul_batch");
    refused(ctx, "matmul_batch, batches",
            ctr_matmul_batch(ctx, zeros(ctx, "2x3x4"), 0, zeros(ctx, "3x4x2"), 0), CTR_E_SHAPE,
            "matmul_batch");
    refused(ctx, "matmul, inner", ctr_matmul(ctx, zeros(ctx, "2x3"), 0, zeros(ctx, "2x3"), 0),
            CTR_E_SHAPE, "matmul");
    refused(ctx, "conv, channels",
            ctr_conv(ctx, zeros(ctx, "1x4x4x3"), zeros(ctx, "3x3x2x5"), 1, 1), CTR_E_SHAPE, "conv");
    refused(ctx, "conv, too small",
            ctr_conv(ctx, zeros(ctx, "1x2x4x3"), zeros(ctx, "3x3x3x5"), 1, 0), CTR_E_SHAPE, "conv");
    refused(ctx, "conv, rank", ctr_conv(ctx, zeros(ctx, "4x4x3"), zeros(ctx, "3x3x3x5"), 1, 1),
            CTR_E_SHAPE, "conv");
    refused(ctx, "reshape", ctr_reshape(ctx, zeros(ctx, "2x4"), 1, &six), CTR_E_SHAPE, "reshape");
    refused(ctx, "reshape, two open", ctr_reshape(ctx, zeros(ctx, "2x4"), 2, minus), CTR_E_SHAPE,
            "reshape");
    refused(ctx, "reshape, rank", ctr_reshape(ctx, zeros(ctx, "2x4"), 5, big), CTR_E_SHAPE,
            "reshape");
    refused(ctx, "permute, twice", ctr_permute(ctx, zeros(ctx, "2x4"), twice), CTR_E_VALUE,
            "permute");
    refused(ctx, "permute, outside", ctr_permute(ctx, zeros(ctx, "2x4"), outside), CTR_E_VALUE,
            "permute");
    refused(ctx, "transpose", ctr_transpose(ctx, zeros(ctx, "2x4x3")), CTR_E_SHAPE, "transpose");
    pair[0] = zeros(ctx, "2x3");
    pair[1] = zeros(ctx, "2x4");
    refused(ctx, "concat", ctr_concat(ctx, 2, pair, 0), CTR_E_SHAPE, "concat");
    pair[0] = zeros(ctx, "2x3");
    refused(ctx, "concat of nothing", ctr_concat(ctx, 0, pair, 0), CTR_E_VALUE, "concat");
    pair[0] = zeros(ctx, "2x3");
    refused(ctx, "concat, axis", ctr_concat(ctx, 1, pair, 2), CTR_E_VALUE, "concat");
    refused(ctx, "slice", ctr_slice(ctx, zeros(ctx, "2x3"), 1, 2, 2), CTR_E_VALUE, "slice");
    refused(ctx, "slice, far beyond", ctr_slice(ctx, zeros(ctx, "2x3"), 1, 1, INT64_MAX),
            CTR_E_VALUE, "slice");
    refused(ctx, "conv, a pad of 2^30", ctr_conv(ctx, zeros(ctx, "1x3x3x1"), zeros(ctx, "3x3x1x1"),
                                                 1, 1 << 30), CTR_E_VALUE, "pad 0..65535");
    refused(ctx, "slice, axis", ctr_slice(ctx, zeros(ctx, "2x3"), 2, 0, 1), CTR_E_VALUE, "slice");
    refused(ctx, "slice, before", ctr_slice(ctx, zeros(ctx, "2x3"), 0, -1, 1), CTR_E_VALUE,
            "slice");
    refused(ctx, "gather, reals", ctr_gather(ctx, zeros(ctx, "2x3"), zeros(ctx, "2")), CTR_E_SHAPE,
            "gather");
    refused(ctx, "sum", ctr_sum(ctx, zeros(ctx, "2x3"), 2), CTR_E_VALUE, "sum");
    refused(ctx, "mean", ctr_mean(ctx, zeros(ctx, "2x3"), -2), CTR_E_VALUE, "mean");
}

static void test_refusals_values(ctr_ctx *ctx)
{
    int32_t target[3] = { 0, 4, 1 };
    int64_t three = 3;
    ctr_norm norm;
    ctr_tensor *integers;
    refused(ctx, "conv, even kernel",
            ctr_conv(ctx, zeros(ctx, "1x4x4x3"), zeros(ctx, "2x2x3x5"), 1, 1), CTR_E_VALUE, "conv");
    refused(ctx, "conv, stride 0",
            ctr_conv(ctx, zeros(ctx, "1x4x4x3"), zeros(ctx, "3x3x3x5"), 0, 1), CTR_E_VALUE, "conv");
    refused(ctx, "cross_entropy, length", ctr_cross_entropy(ctx, zeros(ctx, "4x3"),
            temp_i32(ctx, 3, target), -1), CTR_E_SHAPE, "cross_entropy");
    integers = zeros(ctx, "3x4");
    ctr_tensor_fill(ctx, integers, 1);
    refused(ctx, "cross_entropy, class", ctr_cross_entropy(ctx, integers,
            temp_i32(ctx, 3, target), -1), CTR_E_VALUE, "cross_entropy");
    refused(ctx, "cross_entropy, reals", ctr_cross_entropy(ctx, zeros(ctx, "4x3"),
            zeros(ctx, "4"), -1), CTR_E_SHAPE, "cross_entropy");
    refused(ctx, "cross_entropy_soft", ctr_cross_entropy_soft(ctx, zeros(ctx, "4x3"),
            zeros(ctx, "3x4")), CTR_E_SHAPE, "cross_entropy_soft");
    memset(&norm, 0, sizeof norm);
    refused(ctx, "batch_norm of one row", ctr_batch_norm(ctx, zeros(ctx, "1x3"), &norm,
            CTR_NORM_BATCH, 1, NULL, 0), CTR_E_SHAPE, "batch_norm");
    refused(ctx, "batch_norm of one row a group", ctr_batch_norm(ctx, zeros(ctx, "4x3"), &norm,
            CTR_NORM_BATCH, 4, NULL, 0), CTR_E_SHAPE, "batch_norm");
    refused(ctx, "batch_norm, groups", ctr_batch_norm(ctx, zeros(ctx, "4x3"), &norm,
            CTR_NORM_BATCH, 3, NULL, 0), CTR_E_SHAPE, "batch_norm");
    refused(ctx, "batch_norm, nothing to evaluate with", ctr_batch_norm(ctx, zeros(ctx, "4x3"),
            &norm, CTR_NORM_EVAL, 1, NULL, 0), CTR_E_STATE, "batch_norm");
    refused(ctx, "batch_norm, residual", ctr_batch_norm(ctx, zeros(ctx, "4x3"), &norm,
            CTR_NORM_BATCH, 1, zeros(ctx, "4x2"), 0), CTR_E_SHAPE, "batch_norm");
    norm.gamma = zeros(ctx, "4");
    refused(ctx, "batch_norm, channels", ctr_batch_norm(ctx, zeros(ctx, "4x3"), &norm,
            CTR_NORM_BATCH, 1, NULL, 0), CTR_E_SHAPE, "batch_norm");
    refused(ctx, "layer_norm", ctr_layer_norm(ctx, zeros(ctx, "4x3"), zeros(ctx, "4"),
            zeros(ctx, "3"), 1e-5), CTR_E_SHAPE, "layer_norm");
    refused(ctx, "dropout", ctr_dropout(ctx, zeros(ctx, "4x3"), 1.0), CTR_E_VALUE, "dropout");
    refused(ctx, "dropout, negative", ctr_dropout(ctx, zeros(ctx, "4x3"), -0.1), CTR_E_VALUE,
            "dropout");
    refused(ctx, "max_pool, pad", ctr_max_pool(ctx, zeros(ctx, "1x4x4x3"), 2, 2, 2), CTR_E_VALUE,
            "max_pool");
    refused(ctx, "avg_pool, size", ctr_avg_pool(ctx, zeros(ctx, "1x4x4x3"), 5, 1, 0), CTR_E_VALUE,
            "avg_pool");
    refused(ctx, "avg_pool, stride", ctr_avg_pool(ctx, zeros(ctx, "1x4x4x3"), 2, 0, 0), CTR_E_VALUE,
            "avg_pool");
    refused(ctx, "global_pool", ctr_global_pool(ctx, zeros(ctx, "4x3")), CTR_E_SHAPE,
            "global_pool");
    integers = ctr_tensor_temp(ctx, CTR_I32, 1, &three);
    refused(ctx, "relu of whole numbers", ctr_relu(ctx, integers), CTR_E_VALUE, "relu");
    integers = ctr_tensor_temp(ctx, CTR_I32, 1, &three);
    refused(ctx, "add of whole numbers", ctr_add(ctx, zeros(ctx, "3"), integers), CTR_E_VALUE,
            "add");
}

static void test_refusals(void)
{
    fake_device *fake = fake_device_open();
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    test_group("wrong arguments");
    ctr_step_begin(ctx);
    test_refusals_shapes(ctx);
    test_refusals_values(ctx);
    ctr_ctx_destroy(ctx);
    ctx = fake_device_ctx(fake);
    test_group("wrong arguments, fake device");
    ctr_step_begin(ctx);
    test_refusals_shapes(ctx);
    test_refusals_values(ctx);
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
}

/* -------------------------------------------------------------------------------- special cases */

/* A zero row: zero vector, zero gradient, in value and by backward. */
static void test_zero_row(ctr_ctx *ctx)
{
    static const double x[6] = { 3, 4, 0, 0, 0, 0 }, dy[6] = { 1, 1, 1, 1, 1, 1 };
    static const double y[6] = { 0.6, 0.8, 0, 0, 0, 0 }, dx[6] = { 0.032, -0.024, 0.2, 0, 0, 0 };
    int64_t shape[2] = { 2, 3 };
    ctr_real v[6];
    ctr_tensor *t = leaf(ctx, 2, shape, x, 1), *g = leaf(ctx, 2, shape, dy, 0), *n;
    ctr_step_begin(ctx);
    n = ctr_keep(ctx, ctr_normalize(ctx, t));
    ctr_backward_from(ctx, n, g);
    ctr_tensor_read(ctx, n, v, 6);
    test_near("a zero row stays zero", v, y, 6, 1e-6, 0);
    ctr_tensor_read_grad(ctx, t, v, 6);
    test_near("and its gradient is zero", v, dx, 6, test_bound(1e-12, 1e-5), 0);
    test_equal("exactly", (double)(v[3] * v[3] + v[4] * v[4] + v[5] * v[5]), 0);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
    ctr_tensor_destroy(ctx, g);
}

/* Logits of 1e4 must neither overflow nor lose the loss. */
static void test_large_logits(ctr_ctx *ctx)
{
    static const double x[6] = { 1e4, 0, -1e4, -1e4, -1e4, -1e4 };
    int32_t target[2] = { 1, 2 };
    int64_t shape[2] = { 2, 3 };
    ctr_tensor *t = leaf(ctx, 2, shape, x, 1);
    ctr_real v[6];
    double want = (1e4 + log(3.0)) / 2;
    ctr_step_begin(ctx);
    test_error("cross entropy of logits of 1e4",
               fabs((double)ctr_tensor_item(ctx, ctr_cross_entropy(ctx, t, temp_i32(ctx, 2, target),
                                                                   -1)) - want) / want,
               test_bound(1e-12, 1e-6));
    ctr_tensor_read(ctx, ctr_softmax(ctx, t), v, 6);
    test_equal("softmax of logits of 1e4", (double)(v[0] + v[1] + v[2]), 1);
    test_error("softmax of equal logits", fabs((double)v[4] - 1 / 3.0), test_bound(1e-15, 1e-6));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
}

/* Running statistics change at the commit and not before; not at all when the step fails; BATCH and
   EVAL never touch them. Two groups count as two updates with the unbiased variance. */
static void test_running_stats(ctr_ctx *ctx)
{
    static const double x[4] = { 1, 3, 5, 9 }, zero[1] = { 0 }, one[1] = { 1 };
    int64_t shape[2] = { 4, 1 };
    ctr_norm norm;
    ctr_real v;
    ctr_tensor *t = leaf(ctx, 2, shape, x, 0);
    double mean = 0.9 * (0.1 * 2) + 0.1 * 7, var = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 8;
    norm.gamma = norm.beta = NULL;
    norm.mean = leaf(ctx, 1, &shape[1], zero, 0);
    norm.var = leaf(ctx, 1, &shape[1], one, 0);
    norm.momentum = CTR_TEST_R(0.1);
    norm.eps = CTR_TEST_R(1e-5);
    ctr_step_begin(ctx);
    ctr_batch_norm(ctx, t, &norm, CTR_NORM_TRAIN, 2, NULL, 0);
    test_equal("the running mean before the commit", (double)ctr_tensor_item(ctx, norm.mean), 0);
    ctr_step_end(ctx);
    ctr_step_begin(ctx);
    ctr_commit(ctx);
    test_equal("the running mean of a step that was dropped",
               (double)ctr_tensor_item(ctx, norm.mean), 0);
    ctr_batch_norm(ctx, t, &norm, CTR_NORM_BATCH, 2, NULL, 0);
    ctr_batch_norm(ctx, t, &norm, CTR_NORM_EVAL, 2, NULL, 0);
    ctr_commit(ctx);
    test_equal("the running mean after BATCH and EVAL", (double)ctr_tensor_item(ctx, norm.mean), 0);
    test_equal("the running variance after BATCH and EVAL", (double)ctr_tensor_item(ctx, norm.var),
               1);
    ctr_batch_norm(ctx, t, &norm, CTR_NORM_TRAIN, 2, NULL, 0);
    ctr_commit(ctx);
    v = ctr_tensor_item(ctx, norm.mean);
    test_error("the running mean of two groups", fabs((double)v - mean), test_bound(1e-12, 1e-6));
    v = ctr_tensor_item(ctx, norm.var);
    test_error("the running variance of two groups", fabs((double)v - var),
               test_bound(1e-12, 1e-6));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
    ctr_tensor_destroy(ctx, norm.mean);
    ctr_tensor_destroy(ctx, norm.var);
}

/* A mask has the share of zeros that was asked for, another one for the next call, the same one for
   the same place of another run. */
static void test_dropout_masks(ctr_ctx *ctx)
{
    enum { N = 20000 };
    int64_t n = N, i, zeros_count = 0, differ = 0;
    ctr_real *a = test_reals(n), *b = test_reals(n), *again = test_reals(n);
    ctr_tensor *x;
    ctr_step_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
    ctr_tensor_fill(ctx, x, 1);
    ctr_draws_at(ctx, 2, 5);
    ctr_tensor_read(ctx, ctr_dropout(ctx, x, 0.3), a, n);
    ctr_tensor_read(ctx, ctr_dropout(ctx, x, 0.3), b, n);
    ctr_step_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
    ctr_tensor_fill(ctx, x, 1);
    ctr_tensor_read(ctx, ctr_dropout(ctx, x, 0.3), again, n);
    test_bytes("the same mask at the same place", a, again, (size_t)n * sizeof *a);
    ctr_draws_at(ctx, 2, 6);
    ctr_step_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
    ctr_tensor_fill(ctx, x, 1);
    ctr_tensor_read(ctx, ctr_dropout(ctx, x, 0.3), again, n);
    test_true("another mask at another position", memcmp(a, again, (size_t)n * sizeof *a) != 0);
    for (i = 0; i < n; i++) {
        zeros_count += a[i] == 0;
        differ += (a[i] == 0) != (b[i] == 0);
    }
    /* five standard deviations of a binomial distribution */
    test_error("share of zeros at p = 0.3", fabs((double)zeros_count / N - 0.3),
               5 * sqrt(0.3 * 0.7 / N));
    test_error("share where two masks differ", fabs((double)differ / N - 0.42),
               5 * sqrt(0.42 * 0.58 / N));
    ctr_step_end(ctx);
    free(a);
    free(b);
    free(again);
}

static void test_special(void)
{
    fake_device *fake = fake_device_open();
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    int round;
    for (round = 0; round < 2; round++) {
        test_group(round ? "special cases, fake device" : "special cases");
        test_zero_row(ctx);
        test_large_logits(ctx);
        test_running_stats(ctx);
        test_dropout_masks(ctx);
        test_fine(ctx, "special cases");
        ctr_ctx_destroy(ctx);
        ctx = round ? NULL : fake_device_ctx(fake);
    }
    fake_device_close(fake);
}

int main(int argc, char **argv)
{
    test_begin("test_ops", argc, argv);
    test_cases();
    test_special();
    test_refusals();
    test_golden_places();
    return test_end();
}
