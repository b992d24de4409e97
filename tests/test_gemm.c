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

/* A set that this processor or build has goes by its name and is the best; any other is the scalar
   one. */
static void kernel_sets(void)
{
    static const ctr_kernels sets[2] = { CTR_KERNELS_AVX2, CTR_KERNELS_NEON };
    static const char *const names[2] = { "avx2", "neon" };
    const char *best = ctr_kernels_name(contexts[3]);
    int i;
    test_group("sets of kernels by name");
    for (i = 0; i < 2; i++) {
        ctr_ctx *ctx = test_ctx(1, sets[i]);
        test_text(names[i], ctr_kernels_name(ctx), strcmp(best, names[i]) ? "scalar" : names[i]);
        ctr_ctx_destroy(ctx);
    }
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
