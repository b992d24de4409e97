/* test_gemm.c - the matrix product.
 * run: float double asan asandouble smoke
 *
 * C = alpha op(A) op(B) + beta C for every transposition, on sizes around the edges of the kernels'
 * tiles, with rows that are wider than the matrix, against plain loops in double. beta = 0 must not
 * read C; what lies between the rows must not change; 1, 2 and 3 threads give the same bytes. The
 * largest size has several blocks, slabs of k and ranges of columns, and rows of A that are copied.
 */
#include "test.h"

typedef struct gemm_case {
    int ta, tb;
    int64_t m, n, k, pad_a, pad_b, pad_c;
    double alpha, beta;
} gemm_case;

static ctr_ctx *contexts[6];

static void gemm_loops(const gemm_case *g, const double *a, int64_t lda, const double *b,
                       int64_t ldb, double *c, int64_t ldc)
{
    int64_t i, j, l;
    for (i = 0; i < g->m; i++)
        for (j = 0; j < g->n; j++) {
            double s = 0;
            for (l = 0; l < g->k; l++)
                s += a[g->ta ? l * lda + i : i * lda + l] * b[g->tb ? j * ldb + l : l * ldb + j];
            c[i * ldc + j] = g->alpha * s + (g->beta == 0 ? 0 : g->beta * c[i * ldc + j]);
        }
}

/* An operand of rows x cols with rows ld apart, in both types, one number off alignment. */
static ctr_real *operand(const char *name, int64_t n, double **plain)
{
    ctr_real *r = test_reals(n + 1) + 1;
    int64_t i;
    *plain = test_doubles(n);
    test_fill(name, *plain, n, 1.0);
    for (i = 0; i < n; i++) r[i] = (ctr_real)(*plain)[i];
    return r;
}

/* Runs one context; the result (with what lies between the rows) goes to out[m * ldc]. */
static void gemm_run(ctr_ctx *ctx, const gemm_case *g, const ctr_real *a, int64_t lda,
                     const ctr_real *b, int64_t ldb, const double *before, ctr_real *out,
                     int64_t ldc)
{
    int64_t i;
    uint64_t nan_double = (uint64_t)0x7ff80000u << 32;
    uint32_t nan_float = 0x7fc00000u;
    for (i = 0; i < g->m * ldc; i++) {
        out[i] = (ctr_real)before[i];
        if (g->beta == 0 && i % ldc < g->n) {
            if (TEST_DOUBLE) memcpy(&out[i], &nan_double, sizeof *out);
            else memcpy(&out[i], &nan_float, sizeof *out);
        }
    }
    ctr_k_gemm(ctx, g->ta, g->tb, g->m, g->n, g->k, (ctr_real)g->alpha, a, lda, b, ldb,
               (ctr_real)g->beta, out, ldc);
    test_fine(ctx, "gemm");
}

static void check(const gemm_case *g)
{
    int64_t lda = (g->ta ? g->m : g->k) + g->pad_a, ldb = (g->tb ? g->k : g->n) + g->pad_b;
    int64_t ldc = g->n + g->pad_c, size = g->m * ldc;
    double *a, *b, *c, scale = (fabs(g->alpha) * (double)g->k + fabs(g->beta));
    ctr_real *ar = operand("gemm:a", (g->ta ? g->k : g->m) * lda, &a);
    ctr_real *br = operand("gemm:b", (g->tb ? g->n : g->k) * ldb, &b);
    ctr_real *cr = operand("gemm:c", size, &c), *out[6];
    double *want = test_doubles(size);
    char what[160];
    int k;
    memcpy(want, c, (size_t)size * sizeof *want);
    gemm_loops(g, a, lda, b, ldb, want, ldc);
    for (k = 0; k < 6; k++) {
        out[k] = test_reals(size);
        gemm_run(contexts[k], g, ar, lda, br, ldb, c, out[k], ldc);
        snprintf(what, sizeof what, "%c%c %ldx%ldx%ld, alpha %g, beta %g, %s %d threads",
                 g->ta ? 'T' : 'N', g->tb ? 'T' : 'N', (long)g->m, (long)g->n, (long)g->k, g->alpha,
                 g->beta, k < 3 ? "scalar" : "best", 1 + k % 3);
        if (k % 3 == 0)
            test_near(what, out[k], want, size, 0, test_bound(1e-15, 1e-7) * (scale + 16));
        else
            test_bytes(what, out[k], out[k - k % 3], (size_t)size * sizeof(ctr_real));
    }
    for (k = 0; k < 6; k++) free(out[k]);
    free(ar - 1);
    free(br - 1);
    free(cr - 1);
    free(a);
    free(b);
    free(c);
    free(want);
}

static void check_all(int64_t m, int64_t n, int64_t k, int64_t pad, double alpha, double beta)
{
    gemm_case g;
    int t;
    for (t = 0; t < 4; t++) {
        g.ta = t & 1;
        g.tb = t >> 1;
        g.m = m;
        g.n = n;
        g.k = k;
        g.pad_a = pad;
        g.pad_b = 2 * pad;
        g.pad_c = pad;
        g.alpha = alpha;
        g.beta = beta;
        check(&g);
    }
}

/* A set that this processor or build has goes by its name, any other is the scalar one; the best is
   taken. Whoever has AVX-512 has AVX2. */
static void kernel_sets(void)
{
    static const ctr_kernels sets[3] = { CTR_KERNELS_AVX2, CTR_KERNELS_NEON, CTR_KERNELS_AVX512 };
    static const char *const names[3] = { "avx2", "neon", "avx512" };
    const char *best = ctr_kernels_name(contexts[3]);
    int i;
    test_group("sets of kernels by name");
    for (i = 0; i < 3; i++) {
        ctr_ctx *ctx = test_ctx(1, sets[i]);
        int has = !strcmp(best, names[i]) || (!strcmp(best, "avx512") && i == 0);
        test_text(names[i], ctr_kernels_name(ctx), has ? names[i] : "scalar");
        ctr_ctx_destroy(ctx);
    }
}

/* Wide products, convolutions by both ways and the contrastive loss have AVX2's bits. */
static void wide_bits(void)
{
    static const int64_t products[][3] = { { 61, 33, 70 }, { 100, 96, 401 }, { 7, 31, 64 },
                                           { 200, 17, 9 }, { 13, 160, 800 } };
    static const int64_t convs[][5] = { { 5, 9, 16, 48, 1 }, { 3, 12, 64, 40, 1 },
                                        { 20, 8, 160, 136, 1 }, { 4, 11, 24, 64, 2 },
                                        { 2, 10, 3, 32, 1 } };
    ctr_ctx *ctx[2];
    size_t i;
    int k, ta;
    test_group("AVX-512 has the bits of AVX2");
    if (strcmp(ctr_kernels_name(contexts[3]), "avx512")) {
        test_skip("AVX-512", "this processor or build has none");
        return;
    }
    ctx[0] = test_ctx(2, CTR_KERNELS_AVX2);
    ctx[1] = test_ctx(2, CTR_KERNELS_AVX512);
    for (i = 0; i < 5; i++) {
        int64_t m = products[i][0], n = products[i][1], p = products[i][2];
        ctr_real *a = test_reals(m * p), *b = test_reals(p * n), *c[2];
        test_fill_real("a", a, m * p, 1);
        test_fill_real("b", b, p * n, 1);
        for (ta = 0; ta < 2; ta++) {
            for (k = 0; k < 2; k++) {
                c[k] = test_reals(m * n);
                test_fill_real("c", c[k], m * n, 1);
                ctr_k_gemm(ctx[k], ta, 1 - ta, m, n, p, 1, a, ta ? m : p, b, ta ? n : p,
                           (ctr_real)ta, c[k], n);
            }
            test_bytes("product", c[0], c[1], (size_t)(m * n) * sizeof **c);
            free(c[0]);
            free(c[1]);
        }
        free(a);
        free(b);
    }
    for (i = 0; i < 5; i++) {
        ctr_conv_shape s;
        int64_t nx, nw, ny;
        ctr_real *x, *w, *y, *out[2][3];
        memset(&s, 0, sizeof s);
        s.n = convs[i][0];
        s.h = s.w = convs[i][1];
        s.c = convs[i][2];
        s.oc = convs[i][3];
        s.stride = convs[i][4];
        s.kh = s.kw = 3;
        s.pad = 1;
        s.oh = s.ow = (s.h - 1) / s.stride + 1;
        nx = s.n * s.h * s.w * s.c;
        nw = 9 * s.c * s.oc;
        ny = s.n * s.oh * s.ow * s.oc;
        x = test_reals(nx);
        w = test_reals(nw);
        y = test_reals(ny);
        test_fill_real("x", x, nx, 1);
        test_fill_real("w", w, nw, 1);
        test_fill_real("y", y, ny, 1);
        for (k = 0; k < 2; k++) {
            out[k][0] = test_reals(ny);
            out[k][1] = test_reals(nx);
            out[k][2] = test_reals(nw);
            ctr_k_conv_forward(ctx[k], &s, x, w, out[k][0]);
            ctr_k_conv_input(ctx[k], &s, y, w, out[k][1], 0);
            ctr_k_conv_weight(ctx[k], &s, x, y, out[k][2], 0);
        }
        test_bytes("forward", out[0][0], out[1][0], (size_t)ny * sizeof *y);
        test_bytes("to the input", out[0][1], out[1][1], (size_t)nx * sizeof *y);
        test_bytes("to the weights", out[0][2], out[1][2], (size_t)nw * sizeof *y);
        for (k = 0; k < 6; k++) free(out[k / 3][k % 3]);
        free(x);
        free(w);
        free(y);
    }
    for (k = 0; k < 2; k++) ctr_ctx_destroy(ctx[k]);
}

int main(int argc, char **argv)
{
    static const int64_t edges[] = { 1, 2, 3, 5, 6, 7, 8, 12, 13, 15, 16, 17, 24, 31, 33 };
    static const int64_t large[][3] = { { 97, 101, 103 }, { 200, 33, 517 }, { 64, 300, 64 },
                                        { 6, 1000, 300 }, { 513, 7, 129 }, { 1, 700, 900 },
                                        { 700, 1, 900 }, { 129, 257, 1 }, { 96, 96, 1031 },
                                        { 203, 261, 1101 } };
    size_t i, j;
    int k;
    test_begin("test_gemm", argc, argv);
    for (k = 0; k < 6; k++)
        contexts[k] = test_ctx(1 + k % 3, k < 3 ? CTR_KERNELS_SCALAR : CTR_KERNELS_AUTO);
    kernel_sets();
    wide_bits();
    test_group("small sizes, every transposition");
    for (i = 0; i < sizeof edges / sizeof *edges; i++)
        for (j = 0; j < sizeof edges / sizeof *edges; j += test_quick() ? 4 : 1)
            check_all(edges[i], edges[j], edges[(3 * i + j) % 15], (int64_t)(i % 3), 1,
                      (i + j) % 2 ? 1 : 0);
    test_group("alpha and beta");
    for (i = 0; i < 16; i++) {
        static const double factor[4] = { 0, 1, -0.5, 2.25 };
        check_all(19, 23, 9, 3, factor[i / 4], factor[i % 4]);
    }
    test_group("nothing to do");
    check_all(0, 5, 7, 1, 1, 0);
    check_all(5, 0, 7, 1, 1, 0);
    check_all(5, 7, 0, 1, 1, 0);
    check_all(5, 7, 0, 1, 1, 0.5);
    test_group("large sizes");
    for (i = 0; i < sizeof large / sizeof *large; i += test_quick() ? 3 : 1)
        check_all(large[i][0], large[i][1], large[i][2], (int64_t)(i % 2), 1, i % 2 ? 1 : 0);
    for (k = 0; k < 6; k++) ctr_ctx_destroy(contexts[k]);
    return test_end();
}
