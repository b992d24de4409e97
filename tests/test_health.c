/* test_health.c - the measures of a batch of embeddings.
 * run: float double asan smoke
 *
 * Against numbers of a float64 numpy program, against sums over all pairs written out here, and on
 * batches whose answer is known: constant, spread evenly, on a line, with zero rows.
 */
#include "test.h"

static ctr_health measure(ctr_ctx *ctx, int64_t n, int views, int64_t d, const ctr_real *z,
                          const int32_t *labels)
{
    ctr_health h;
    test_true("measured", ctr_health_measure(ctx, n, views, d, z, labels, &h));
    test_fine(ctx, "no error");
    return h;
}

/* numpy: std(0).mean(), eigenvalues of cov, means over pairs */
static void test_numpy(ctr_ctx *ctx)
{
    double bound = test_bound(5e-9, 2e-6);
    int32_t labels[11];
    ctr_real *z = test_reals(110);
    ctr_health h;
    int i;
    test_group("11 images, 2 views, d 5, against numpy");
    test_fill_real("eval.health", z, 110, 3.0);
    for (i = 0; i < 11; i++) labels[i] = i % 3;
    h = measure(ctx, 11, 2, 5, z, labels);
    test_equal("rows", (double)h.rows, 22);
    test_equal("d", (double)h.d, 5);
    test_error("std", fabs(h.std - 0.4405612814), bound);
    test_error("its reference", fabs(h.std_reference - 1 / sqrt(5.0)), 1e-15);
    test_error("effective rank", fabs(h.rank - 4.203894359), 10 * bound);
    test_equal("the most it can be", h.rank_cap, 5);
    test_error("alignment", fabs(h.alignment - 2.317635485), bound);
    test_error("uniformity", fabs(h.uniformity + 2.705931407), bound);
    test_error("positive", fabs(h.positive + 0.1588177425), bound);
    test_error("negative", fabs(h.negative + 0.01893541475), bound);
    test_error("false negatives", fabs(h.false_negatives - 0.2727272727), 1e-9);
    test_equal("verdict", h.verdict, CTR_HEALTH_GOOD);
    labels[0] = labels[4] = -1;
    labels[7] = 0;
    labels[3] = 2;
    labels[6] = 0;
    labels[9] = 2;
    {
        int j, same = 0, all = 0;
        for (i = 0; i < 11; i++)
            for (j = i + 1; j < 11; j++) {
                if (labels[i] < 0 || labels[j] < 0) continue;
                all++;
                same += labels[i] == labels[j];
            }
        h = measure(ctx, 11, 2, 5, z, labels);
        test_error("unlabelled images take no part",
                   fabs(h.false_negatives - (double)same / all), 1e-15);
    }
    h = measure(ctx, 11, 2, 5, z, NULL);
    test_equal("without labels", h.false_negatives, -1);
    free(z);
}

/* All pairs written out, on a batch with zero rows that needs more than one block of rows. */
static void test_pairs(ctr_ctx *ctx)
{
    enum { N = 103, V = 3, D = 9, R = N * V };
    ctr_real *z = test_reals(R * D);
    double *u = test_doubles(R * D), pos = 0, neg = 0, align = 0, unif = 0, np = 0, nn = 0;
    double bound = test_bound(1e-9, 3e-6);
    ctr_health h;
    int i, j, k;
    test_group("309 rows with zero rows, against sums over pairs");
    test_fill_real("health.pairs", z, R * D, 0.01);
    for (k = 0; k < D; k++) z[5 * D + k] = z[250 * D + k] = 0;
    for (i = 0; i < R; i++) {
        double s = 0;
        for (k = 0; k < D; k++) s += (double)z[i * D + k] * (double)z[i * D + k];
        for (k = 0; k < D && s > 0; k++) u[i * D + k] = (double)z[i * D + k] / sqrt(s);
    }
    for (i = 0; i < R; i++)
        for (j = 0; j < R; j++) {
            double s = 0, q = 0;
            if (i == j) continue;
            for (k = 0; k < D; k++) {
                double t = u[i * D + k] - u[j * D + k];
                s += u[i * D + k] * u[j * D + k];
                q += t * t;
            }
            if (i % N == j % N) {
                pos += s;
                align += q;
                np++;
            } else {
                neg += s;
                unif += exp(-2 * q);
                nn++;
            }
        }
    h = measure(ctx, N, V, D, z, NULL);
    test_equal("zero rows are counted", (double)h.zero_rows, 2);
    test_error("positive", fabs(h.positive - pos / np), bound);
    test_error("negative", fabs(h.negative - neg / nn), bound);
    test_error("alignment", fabs(h.alignment - align / np), bound);
    test_error("uniformity", fabs(h.uniformity - log(unif / nn)), bound);
    free(z);
    free(u);
}

static void test_verdicts(ctr_ctx *ctx)
{
    enum { N = 40, D = 16 };
    ctr_real *z = test_reals(N * D);
    ctr_health h;
    char text[256];
    int i, k;
    test_group("verdicts");
    for (i = 0; i < N * D; i++) z[i] = (ctr_real)(0.1 + 0.3 * (i % D)); /* each row the same */
    h = measure(ctx, N, 1, D, z, NULL);
    test_equal("constant rows are collapsed", h.verdict, CTR_HEALTH_COLLAPSED);
    test_error("std 0", h.std, 1e-6);
    test_equal("rank 0, not the rank of the rounding", h.rank, 0);
    test_error("cosine 1", fabs(h.negative - 1), 1e-6);
    for (i = 0; i < N; i++) /* the same direction at different lengths is collapsed too */
        for (k = 0; k < D; k++) z[i * D + k] *= (ctr_real)(1 + i);
    h = measure(ctx, N, 1, D, z, NULL);
    test_equal("multiples of one row are collapsed", h.verdict, CTR_HEALTH_COLLAPSED);
    memset(z, 0, N * D * sizeof *z);
    h = measure(ctx, N, 1, D, z, NULL);
    test_equal("zero rows are collapsed", h.verdict, CTR_HEALTH_COLLAPSED);
    test_equal("all of them zero", (double)h.zero_rows, N);
    for (i = 0; i < N; i++) z[i * D] = CTR_TEST_R(i % 2 ? 1 : -1);
    h = measure(ctx, N, 1, D, z, NULL);
    test_equal("two opposite points are narrow", h.verdict, CTR_HEALTH_NARROW);
    test_error("rank 1", fabs(h.rank - 1), 1e-6);
    memset(z, 0, N * D * sizeof *z);
    for (i = 0; i < 2 * D; i++) z[i * D + i / 2] = CTR_TEST_R(i % 2 ? 1 : -1);
    h = measure(ctx, 2 * D, 1, D, z, NULL); /* plus and minus each axis: spread evenly */
    test_error("spread evenly: std at its reference", fabs(h.std - 0.25), 1e-6);
    test_error("and full rank", fabs(h.rank - (double)D), 1e-4);
    test_equal("is good", h.verdict, CTR_HEALTH_GOOD);
    h = measure(ctx, 1, 2, D, z, NULL);
    test_equal("one image says nothing", h.verdict, CTR_HEALTH_UNKNOWN);
    test_error("but its views have an alignment", fabs(h.alignment - 4), 1e-6);
    ctr_health_describe(&h, text, sizeof text);
    test_true("described", strstr(text, "unknown") && strstr(text, "alignment 4.000"));
    ctr_health_describe(&h, text, 10);
    test_equal("cut to the room there is", (double)strlen(text), 9);
    test_text("names", ctr_verdict_name(CTR_HEALTH_COLLAPSED), "collapsed");
    free(z);
}

static void test_errors(ctr_ctx *ctx)
{
    ctr_real z[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3 };
    ctr_health h;
    test_group("errors");
    memset(&z[7], 0xff, sizeof z[7]); /* a NaN, and no compiler flag can fold it away */
    test_true("NaN is refused", !ctr_health_measure(ctx, 4, 1, 3, z, NULL, &h));
    test_fails(ctx, "the row is named", CTR_E_NUMBER, "row 2");
    test_true("no rows", !ctr_health_measure(ctx, 0, 1, 3, z, NULL, &h));
    test_fails(ctx, "no rows", CTR_E_SHAPE, "at least 1");
    test_true("no views", !ctr_health_measure(ctx, 2, 0, 3, z, NULL, &h));
    test_fails(ctx, "no views", CTR_E_SHAPE, "at least 1");
}

/* The same bits for any number of threads; every failed allocation ends cleanly. */
static void test_robust(void)
{
    enum { N = 300, D = 24 };
    ctr_real *z = test_reals(N * D);
    ctr_health one, many;
    test_allocator watch;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    long at, failed = 0;
    int threads;
    test_group("threads and memory");
    test_fill_real("health.threads", z, N * D, 1.0);
    for (threads = 1; threads <= 3; threads++) {
        ctx = test_ctx(threads, CTR_KERNELS_AUTO);
        ctr_health_measure(ctx, N / 2, 2, D, z, NULL, &many);
        if (threads == 1) one = many;
        test_bytes("the same for any number of threads", &one, &many, sizeof one);
        ctr_ctx_destroy(ctx);
    }
    config.threads = 1;
    for (at = 1; at < 60; at++) {
        config.allocator = test_allocator_init(&watch);
        ctx = ctr_ctx_create(&config);
        watch.fail_at = watch.calls + at;
        if (ctr_health_measure(ctx, N / 2, 2, D, z, NULL, &many)) at = 60;
        else failed += test_fails(ctx, "a failed allocation", CTR_E_MEMORY, "memory");
        ctr_ctx_destroy(ctx);
        test_true("gives all back", watch.live == 0 && watch.bad_frees == 0);
    }
    test_true("several allocations were failed", failed >= 5);
    free(z);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_health", argc, argv);
    ctx = test_ctx(2, CTR_KERNELS_AUTO);
    test_numpy(ctx);
    test_pairs(ctx);
    test_verdicts(ctx);
    test_errors(ctx);
    ctr_ctx_destroy(ctx);
    test_robust();
    return test_end();
}
