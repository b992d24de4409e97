/* test_cluster.c - k-means, agreement of partitions, balanced codes, whitening.
 * run: float double asan smoke
 *
 * Against golden_cluster.txt (scikit-learn, scipy, the authors' formulas in float64) and plain
 * loops over everything; then the cases at the edge, bad input, threads and failing memory. It
 * looks at private parts, so it is its own implementation.
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC
#endif
#include "fake_device.h"

static ctr_real *filled(const char *name, int64_t n)
{
    ctr_real *x = test_reals(n);
    test_fill_real(name, x, n, 1.0);
    return x;
}

/* a value that no arithmetic made: -ffast-math cannot fold it away */
static void poison(ctr_real *x)
{
    memset(x, 0xff, sizeof *x);
}

/* ------------------------------------------------------------------------------------- k-means */

/* The points of the golden file: nine clouds. */
static ctr_real *clouds(void)
{
    ctr_real *x = test_reals(2400);
    double noise[2400], centre[54];
    int i;
    golden_fill("kmeans.x", noise, 2400, 0.35);
    golden_fill("kmeans.centre", centre, 54, 1.0);
    for (i = 0; i < 2400; i++) x[i] = (ctr_real)(noise[i] + centre[i / 6 % 9 * 6 + i % 6]);
    return x;
}

static void golden_kmeans(ctr_ctx *ctx, golden_file *g, int spherical, int k, int iterations)
{
    ctr_real *x = clouds(), c[240];
    ctr_kmeans_config config = ctr_kmeans_config_default();
    ctr_kmeans_result r;
    int32_t a[400];
    int64_t sizes[40], counted[40];
    const double *want, *inertia;
    size_t count = 0, i;
    char key[64], part[96];
    int wrong = 0;
    config.k = k;
    config.iterations = iterations;
    config.spherical = spherical;
    config.start = x;
    sprintf(key, "%s:%d:%d", spherical ? "spherical" : "kmeans", k, iterations);
    test_true(key, ctr_kmeans_run(ctx, 400, 6, x, &config, c, a, sizes, &r));
    want = golden_get(g, key, &count);
    memset(counted, 0, sizeof counted);
    for (i = 0; i < count; i++) {
        wrong += a[i] != (int32_t)want[i];
        counted[a[i]]++;
    }
    test_equal(key, wrong + (count != 400), 0);
    test_bytes("sizes", sizes, counted, (size_t)k * sizeof *sizes);
    sprintf(part, "%s:inertia", key);
    inertia = golden_get(g, part, NULL);
    test_error(part, inertia ? fabs(r.inertia / *inertia - 1) : GOLDEN_BAD,
               test_bound(1e-12, 1e-5));
    sprintf(part, "%s:centroids", key);
    test_error(part, test_digest(g, part, c, k * 6, 0), test_bound(1e-10, 1e-5));
    test_true("converged if it stopped early", r.converged == (r.iterations < iterations));
    test_true("nothing was empty", r.refilled == 0 && r.filled == k);
    free(x);
}

static void test_kmeans_golden(ctr_ctx *ctx)
{
    golden_file g;
    test_group("k-means against scikit-learn");
    if (!test_golden_open(&g, "golden_cluster.txt")) return;
    golden_kmeans(ctx, &g, 0, 1, 4);
    golden_kmeans(ctx, &g, 0, 2, 1);
    golden_kmeans(ctx, &g, 0, 9, 3);
    golden_kmeans(ctx, &g, 0, 12, 5);
    golden_kmeans(ctx, &g, 0, 12, 100);
    golden_kmeans(ctx, &g, 0, 40, 2);
    golden_kmeans(ctx, &g, 1, 2, 1);
    golden_kmeans(ctx, &g, 1, 12, 4);
    test_fine(ctx, "no error");
    golden_close(&g);
}

static double square_distance(int64_t d, const ctr_real *a, const ctr_real *b)
{
    double sum = 0;
    int64_t l;
    for (l = 0; l < d; l++) sum += ((double)a[l] - (double)b[l]) * ((double)a[l] - (double)b[l]);
    return sum;
}

/* The worst excess of a point's distance over that of its nearest centroid. */
static double assignment_excess(int64_t n, int64_t d, const ctr_real *x, int64_t k,
                                const ctr_real *c, const int32_t *a)
{
    double worst = 0;
    int64_t i, j;
    for (i = 0; i < n; i++) {
        double own, least = 1e300;
        if (a[i] < 0 || a[i] >= k) return 1e300;
        for (j = 0; j < k; j++) {
            double t = square_distance(d, x + i * d, c + j * d);
            if (t < least) least = t;
        }
        own = square_distance(d, x + i * d, c + a[i] * d);
        if (own - least > worst) worst = own - least;
    }
    return worst;
}

/* n and k reach over the edges of the blocks (1024 points x 1024 centroids). */
static void test_kmeans_loops(ctr_ctx *ctx)
{
    enum { N = 2100, K = 1030, D = 5 };
    static int32_t a[N], own[N];
    static int64_t sizes[K];
    ctr_real *x = filled("kmeans.large", N * D), *c = test_reals(K * D), mean[D];
    ctr_kmeans_config config = ctr_kmeans_config_default();
    ctr_kmeans_result r;
    double inertia = 0, excess;
    int64_t i, l, count = 0;
    test_group("k-means against plain loops");
    config.k = K;
    config.iterations = 3;
    config.min_points = 0;
    test_true("runs", ctr_kmeans_run(ctx, N, D, x, &config, c, a, sizes, &r));
    test_error("nearest", assignment_excess(N, D, x, K, c, a), test_bound(1e-14, 2e-6));
    for (i = 0; i < N; i++) inertia += square_distance(D, x + i * D, c + a[i] * D);
    test_error("inertia", fabs(r.inertia / inertia - 1), 1e-12);
    test_true("assigns", ctr_kmeans_assign(ctx, N, D, x, K, c, 0, own, &inertia));
    test_bytes("the same alone", a, own, sizeof a);
    test_equal("inertia alone", inertia, r.inertia);
    config.k = 1;
    config.iterations = 1;
    test_true("k = 1", ctr_kmeans_run(ctx, N, D, x, &config, mean, NULL, NULL, NULL));
    for (l = 0, excess = 0; l < D; l++) {
        double sum = 0, off;
        for (i = 0; i < N; i++) sum += (double)x[i * D + l];
        off = fabs(sum / N - (double)mean[l]);
        excess = off > excess ? off : excess;
    }
    test_error("k = 1 is the mean", excess, test_bound(1e-15, 1e-7));
    for (i = 0; i < N * D; i++) x[i] = (ctr_real)((double)x[i] + 1024); /* 2^-13 is the last bit */
    config.k = 20;
    config.iterations = 10;
    test_true("far from zero", ctr_kmeans_run(ctx, N, D, x, &config, c, a, sizes, &r));
    for (i = 0; i < 20; i++) count += sizes[i];
    test_equal("sizes add up", (double)count, N);
    test_error("far from zero", assignment_excess(N, D, x, 20, c, a), test_bound(1e-11, 2e-3));
    free(x);
    free(c);
}

/* Each iteration may only lower the inertia; more starts and better ones lower its end. */
static void test_kmeans_progress(ctr_ctx *ctx)
{
    ctr_real *x = clouds(), c[90], again[90];
    ctr_kmeans_config config;
    ctr_kmeans_result r, best, first;
    double before = 1e300, plus = 0, points = 0;
    int i, rises = 0;
    ctr_kmeans_config_init(&config);
    test_group("k-means goes down");
    test_true("the defaults", config.k == 10 && config.iterations == 20 && config.restarts == 1 &&
                                  config.init == CTR_KMEANS_POINTS && config.min_points == 39);
    config.k = 15;
    for (i = 0; i < 12; i++) {
        config.iterations = i;
        test_true("runs", ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &r));
        rises += r.inertia > before * (1 + 1e-7);
        before = r.inertia;
    }
    test_equal("rises", rises, 0);
    config.iterations = 200;
    ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &first);
    test_true("converged", first.converged && first.iterations < 200);
    config.start = c;
    ctr_kmeans_run(ctx, 400, 6, x, &config, again, NULL, NULL, &r);
    test_true("from there it stands still", r.iterations <= 1 && r.converged);
    test_bytes("at the same centroids", c, again, sizeof c);
    config.start = NULL;
    config.tolerance = 0.05;
    ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &r);
    test_true("a tolerance stops it earlier", r.converged && r.iterations < first.iterations &&
                                                  r.inertia > first.inertia);
    config.tolerance = 0;
    config.restarts = 8;
    ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &best);
    test_true("the best of eight", best.inertia < first.inertia && best.restart > 0);
    before = 1e300;
    for (config.restarts = 1; config.restarts <= 8; config.restarts++) {
        ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &r);
        rises += r.inertia > before || r.restart >= config.restarts;
        before = r.inertia;
    }
    test_equal("one more start never harms", rises, 0);
    config.restarts = 1;
    config.k = 9;
    config.iterations = 0;
    for (i = 1; i < 40; i++) {
        config.seed = (uint64_t)i;
        config.init = CTR_KMEANS_POINTS;
        ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &r);
        points += r.inertia;
        config.init = CTR_KMEANS_PLUSPLUS;
        ctr_kmeans_run(ctx, 400, 6, x, &config, c, NULL, NULL, &r);
        plus += r.inertia;
    }
    test_true("k-means++ starts lower", plus < 0.9 * points);
    test_fine(ctx, "no error");
    free(x);
}

/* The chance that k-means++ draws a point is its squared distance's share. */
static void test_kmeans_plus(ctr_ctx *ctx)
{
    static const ctr_real x[4] = { 0, 1, 3, CTR_TEST_R(-2) };
    ctr_kmeans_config config = ctr_kmeans_config_default();
    ctr_real c[2];
    double chi = 0;
    int drawn[4][4], i, j;
    test_group("k-means++ draws by squared distance");
    memset(drawn, 0, sizeof drawn);
    config.k = 2;
    config.iterations = 0;
    config.init = CTR_KMEANS_PLUSPLUS;
    config.min_points = 0;
    for (i = 0; i < 4000; i++) {
        int from = 0, to = 0;
        config.seed = (uint64_t)i;
        ctr_kmeans_run(ctx, 4, 1, x, &config, c, NULL, NULL, NULL);
        for (j = 0; j < 4; j++) {
            if (x[j] == c[0]) from = j;
            if (x[j] == c[1]) to = j;
        }
        drawn[from][to]++;
    }
    for (i = 0; i < 4; i++) {
        double total = 0, all = 0;
        for (j = 0; j < 4; j++) {
            total += drawn[i][j];
            all += (double)((x[i] - x[j]) * (x[i] - x[j]));
        }
        chi += (total - 1000) * (total - 1000) / 1000;
        for (j = 0; j < 4; j++) {
            double want = total * (double)((x[i] - x[j]) * (x[i] - x[j])) / all;
            if (j == i) test_equal("never itself", drawn[i][j], 0);
            else chi += (drawn[i][j] - want) * (drawn[i][j] - want) / want;
        }
    }
    test_error("chi square of 11 degrees", chi, 31.3); /* 0.1 % lie beyond */
}

static void test_kmeans_empty(ctr_ctx *ctx)
{
    /* three points about (4, 8); the second and third centroid are out of reach */
    static const ctr_real x[8] = { 4, 7, 4, 9, 3, 8, 5, 8 };
    static const ctr_real pair[10] = { 0.5f, 1.5f, 0.5f, 1.5f, 0.5f, 1.5f, 4, 6, 4, 6 };
    static const ctr_real two[4] = { 1, 5, 100, 100 };
    ctr_real start[6] = { 4, 8, 1000, 1000, 2000, 2000 }, c[6], same[30], many[15];
    ctr_kmeans_config config = ctr_kmeans_config_default();
    ctr_kmeans_result r;
    int64_t sizes[8], i;
    int32_t a[10];
    ctr_real e = CTR_TEST_R(1.0 / 1024);
    test_group("empty clusters are filled");
    config.k = 2;
    config.iterations = 1;
    config.min_points = 0;
    config.start = start;
    test_true("runs", ctr_kmeans_run(ctx, 4, 2, x, &config, c, a, sizes, &r));
    test_true("halves of the largest, moved apart",
              c[0] == 4 - 4 * e && c[1] == 8 + 8 * e && c[2] == 4 + 4 * e && c[3] == 8 - 8 * e);
    test_true("both have points", r.refilled == 1 && r.filled == 2 && sizes[0] == 2);
    config.k = 4; /* of six and four points the six are halved first, then the four */
    config.start = two;
    ctr_kmeans_run(ctx, 10, 1, pair, &config, c, a, sizes, &r);
    test_true("the larger one first", c[0] == 1 - e && c[2] == 1 + e && c[1] == 5 - 5 * e &&
                                          c[3] == 5 + 5 * e && r.refilled == 2);
    config.start = start;
    config.k = 3;
    config.iterations = 0;
    ctr_kmeans_run(ctx, 4, 2, x, &config, c, a, sizes, &r);
    test_true("the farthest points in the end", r.refilled == 2 && r.filled == 3);
    config.iterations = 30;
    ctr_kmeans_run(ctx, 4, 2, x, &config, c, a, sizes, &r);
    test_true("none is left empty", r.filled == 3 && sizes[0] * sizes[1] * sizes[2] == 2);
    config.start = NULL;
    for (i = 0; i < 30; i++) same[i] = (ctr_real)(i / 3 % 3 + 1); /* ten points, three places */
    config.k = 5;
    for (i = 0; i < 6; i++) {
        config.seed = (uint64_t)i;
        config.init = i % 2 ? CTR_KMEANS_PLUSPLUS : CTR_KMEANS_POINTS;
        ctr_kmeans_run(ctx, 10, 3, same, &config, many, a, sizes, &r);
        test_true("no more clusters than places", r.filled == 3);
        test_error("each on its place", r.inertia, 1e-9);
    }
    for (i = 0; i < 30; i++) same[i] = 0;
    ctr_kmeans_run(ctx, 10, 3, same, &config, many, a, sizes, &r);
    test_true("all points are zero", r.filled == 1 && r.inertia <= 0);
    config.iterations = 0;
    ctr_kmeans_run(ctx, 10, 3, same, &config, many, a, sizes, &r);
    test_true("nothing to fill with", r.filled == 1 && r.refilled == 0);
    config.spherical = 1;
    ctr_kmeans_run(ctx, 10, 3, same, &config, many, a, sizes, &r);
    test_true("and have no direction", r.filled == 1 && golden_finite_(r.inertia));
    test_fine(ctx, "no error");
}

static void test_kmeans_edges(ctr_ctx *ctx)
{
    ctr_real *x = filled("kmeans.edge", 60), c[60], unit[60];
    ctr_kmeans_config config = ctr_kmeans_config_default();
    ctr_kmeans_result r;
    int64_t sizes[30], i, l;
    int32_t a[60];
    double worst = 0;
    int wrong = 0;
    test_group("k-means at the edge");
    config.min_points = 0;
    config.k = 20;
    ctr_kmeans_run(ctx, 20, 3, x, &config, c, a, sizes, &r);
    for (i = 0; i < 20; i++) wrong += sizes[i] != 1;
    test_true("n = k", wrong == 0 && r.inertia <= 0 && r.converged);
    config.k = 3;
    ctr_kmeans_run(ctx, 60, 1, x, &config, c, a, sizes, &r);
    test_error("d = 1", assignment_excess(60, 1, x, 3, c, a), 1e-6);
    config.k = 1;
    ctr_kmeans_run(ctx, 1, 60, x, &config, c, a, sizes, &r);
    test_bytes("one point", c, x, 60 * sizeof *x);
    config.k = 6;
    config.spherical = 1;
    for (i = 0; i < 20; i++)
        for (l = 0; l < 3; l++) unit[3 * i + l] = x[3 * i + l] * (ctr_real)(1 << i % 8);
    ctr_kmeans_run(ctx, 20, 3, unit, &config, c, a, sizes, &r);
    for (i = 0; i < 6; i++) {
        double square = 0;
        for (l = 0; l < 3; l++) square += (double)c[3 * i + l] * (double)c[3 * i + l];
        worst = fabs(square - 1) > worst ? fabs(square - 1) : worst;
    }
    test_error("unit centroids", worst, test_bound(1e-14, 1e-6));
    ctr_kmeans_run(ctx, 20, 3, x, &config, unit, a + 20, sizes, &r);
    test_bytes("lengths do not matter", a, a + 20, 20 * sizeof *a);
    for (i = 0; i < 18; i++) c[i] *= 7;
    ctr_kmeans_assign(ctx, 20, 3, x, 6, c, 1, a + 40, NULL);
    test_bytes("nor do the centroids'", a, a + 40, 20 * sizeof *a);
    test_true("the defaults", ctr_kmeans_run(ctx, 20, 3, x, NULL, c, NULL, NULL, NULL));
    test_fine(ctx, "no error");
    free(x);
}

static void kmeans_refuses(ctr_ctx *ctx, const char *what, const ctr_kmeans_config *c, int64_t n,
                           int64_t d, ctr_status status, const char *word)
{
    static ctr_real x[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    ctr_real centroids[12];
    ctr_kmeans_result r;
    test_equal(what, ctr_kmeans_run(ctx, n, d, x, c, centroids, NULL, NULL, &r), 0);
    test_fails(ctx, what, status, word);
}

static void test_kmeans_errors(ctr_ctx *ctx)
{
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_real x[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, out[12];
    int32_t a[6];
    test_group("k-means refuses");
    c.k = 7;
    kmeans_refuses(ctx, "k above n", &c, 6, 2, CTR_E_VALUE, "at most the number of points, 6");
    c.k = 0;
    kmeans_refuses(ctx, "k = 0", &c, 6, 2, CTR_E_VALUE, "got 0");
    c.k = 2;
    kmeans_refuses(ctx, "n = 0", &c, 0, 2, CTR_E_SHAPE, "0 x 2");
    kmeans_refuses(ctx, "d = 0", &c, 6, 0, CTR_E_SHAPE, "6 x 0");
    c.iterations = -1;
    kmeans_refuses(ctx, "iterations", &c, 6, 2, CTR_E_VALUE, "iterations");
    c.iterations = 20;
    c.restarts = 0;
    kmeans_refuses(ctx, "restarts", &c, 6, 2, CTR_E_VALUE, "restarts");
    c.restarts = 1;
    c.tolerance = -0.5;
    kmeans_refuses(ctx, "tolerance", &c, 6, 2, CTR_E_VALUE, "tolerance");
    c.tolerance = 0;
    c.init = (ctr_kmeans_init)7;
    kmeans_refuses(ctx, "init", &c, 6, 2, CTR_E_VALUE, "init");
    c.init = CTR_KMEANS_POINTS;
    test_equal("NULL", ctr_kmeans_run(ctx, 6, 2, NULL, &c, out, NULL, NULL, NULL), 0);
    test_fails(ctx, "NULL", CTR_E_SHAPE, "NULL");
    poison(&x[5]);
    test_equal("NaN", ctr_kmeans_run(ctx, 6, 2, x, &c, out, NULL, NULL, NULL), 0);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 2 of the points");
    test_equal("NaN", ctr_kmeans_assign(ctx, 2, 2, x, 3, x, 0, a, NULL), 0);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 2 of the centroids");
    c.start = x + 2;
    test_equal("NaN", ctr_kmeans_run(ctx, 2, 2, x, &c, out, NULL, NULL, NULL), 0);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 1 of the centroids");
    test_equal("k", ctr_kmeans_assign(ctx, 2, 2, x, 0, x, 0, a, NULL), 0);
    test_fails(ctx, "k", CTR_E_VALUE, "got 0");
}

typedef struct heard { int warnings; char text[256]; } heard;

static void hear(void *user, ctr_log_level level, const char *text)
{
    heard *h = (heard *)user;
    h->warnings += level == CTR_LOG_WARN && strstr(text, "kmeans") != NULL;
    snprintf(h->text, sizeof h->text, "%s", text);
}

static void test_kmeans_warning(void)
{
    ctr_config config = ctr_config_default();
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_real *x = filled("kmeans.few", 78), out[4];
    ctr_ctx *ctx;
    heard h;
    memset(&h, 0, sizeof h);
    config.log_user = &h;
    config.log_fn = hear;
    ctx = ctr_ctx_create(&config);
    test_group("few points are told to the log");
    c.k = 2;
    ctr_kmeans_run(ctx, 78, 1, x, &c, out, NULL, NULL, NULL);
    test_equal("39 each are enough", h.warnings, 0);
    ctr_kmeans_run(ctx, 77, 1, x, &c, out, NULL, NULL, NULL);
    test_equal("fewer are told", h.warnings, 1);
    c.min_points = 0;
    ctr_kmeans_run(ctx, 4, 1, x, &c, out, NULL, NULL, NULL);
    test_equal("unless none are asked for", h.warnings, 1);
    ctr_ctx_destroy(ctx);
    free(x);
}

/* ---- on a device ---- */

static void hear_device(void *user, ctr_log_level level, const char *text)
{
    heard *h = (heard *)user;
    if (level != CTR_LOG_INFO || !strstr(text, "on the CPU, not the device")) return;
    h->warnings++;
    snprintf(h->text, sizeof h->text, "%s", text);
}

/* What a run writes, but for the points of each cluster. */
typedef struct kmeans_all {
    ctr_real centroids[40 * 6];
    int32_t assignment[400], again[400];
    double inertia;
    ctr_kmeans_result result;
} kmeans_all;

/* A run and an assignment on a device, or NULL, with the scalar kernels. */
static kmeans_all kmeans_on(const ctr_device *device, int spherical, heard *h)
{
    ctr_config config = ctr_config_default();
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_real *x = clouds();
    kmeans_all out;
    ctr_ctx *ctx;
    memset(&out, 0, sizeof out);
    memset(h, 0, sizeof *h);
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    config.device = device;
    config.log_fn = hear_device;
    config.log_user = h;
    ctx = test_host_create(&config);
    c.k = 40;
    c.min_points = 0;
    c.spherical = spherical;
    c.init = spherical ? CTR_KMEANS_PLUSPLUS : CTR_KMEANS_POINTS;
    test_true("a run", ctr_kmeans_run(ctx, 400, 6, x, &c, out.centroids, out.assignment, NULL,
                                      &out.result));
    test_true("an assignment", ctr_kmeans_assign(ctx, 400, 6, x, 40, out.centroids, spherical,
                                                 out.again, &out.inertia));
    test_fine(ctx, "no error");
    ctr_ctx_destroy(ctx);
    free(x);
    return out;
}

/* The fake device's verbs are the scalar kernels: the same bits as on the CPU. */
static void test_kmeans_device(void)
{
    fake_device *fake = fake_device_open();
    ctr_device without = fake->device;
    kmeans_all on_cpu, on_device, lacking;
    heard h;
    int spherical;
    test_group("on a device");
    without.segment_sum = NULL;
    for (spherical = 0; spherical < 2; spherical++) {
        on_cpu = kmeans_on(NULL, spherical, &h);
        test_equal("nothing to say on the CPU", h.warnings, 0);
        on_device = kmeans_on(&fake->device, spherical, &h);
        test_equal("nothing to say on the device", h.warnings, 0);
        test_bytes("the same result", &on_device, &on_cpu, sizeof on_cpu);
        lacking = kmeans_on(&without, spherical, &h);
        test_true("without a verb the log says so", h.warnings == 2 && strstr(h.text, "no kernel"));
        test_bytes("the same result", &lacking, &on_cpu, sizeof on_cpu);
        fake->fail_at = fake->allocations + 3;
        lacking = kmeans_on(&fake->device, spherical, &h);
        test_true("without memory, too", h.warnings == 1 && strstr(h.text, "memory"));
        test_bytes("the same result", &lacking, &on_cpu, sizeof on_cpu);
        fake->fail_at = 0;
    }
    test_true("the verbs ran", fake_device_ran(fake, "nearest") &&
                                   fake_device_ran(fake, "segment_sum"));
    fake_device_close(fake);
}

#if CTR_HAS_AVX2_
/* The best of a row: the fast kernel and the scalar one, with many equal values. */
static void test_kmeans_kernels(ctr_ctx *ctx)
{
    float product[67], half[67];
    int64_t n, i;
    int wrong = 0, round;
    if (ctx->kernels < CTR_KERNELS_AVX2) return;
    test_group("the largest of a row, AVX2 and scalar");
    for (n = 0; n <= 67; n++)
        for (round = 0; round < 8; round++) {
            float best[2] = { 1, 1 };
            int32_t which[2] = { 77, 77 };
            for (i = 0; i < n; i++) {
                product[i] = (float)(golden_bits((uint32_t)(n * 8 + round), (size_t)i) %
                                     (round % 2 ? 3 : 1000));
                half[i] = (float)(i % 3);
            }
            if (round == 6) best[0] = best[1] = 5000;
            ctr_kmeans_best_scalar_(n, product, half, 100, &best[0], &which[0]);
            ctr_kmeans_best_avx2_(n, product, half, 100, &best[1], &which[1]);
            wrong += best[0] != best[1] || which[0] != which[1];
        }
    test_equal("differences", wrong, 0);
}
#endif

/* ----------------------------------------------------------------------------------- agreement */

static int32_t class_of(double hash, int classes)
{
    return (int32_t)floor((hash + 1) / 2 * classes);
}

/* The partitions of the golden file. */
static void partitions(int a_count, int b_count, int32_t *a, int32_t *b)
{
    double first[600], second[600], same[600];
    int i;
    golden_fill("agree.a", first, 600, 1.0);
    golden_fill("agree.b", second, 600, 1.0);
    golden_fill("agree.same", same, 600, 1.0);
    for (i = 0; i < 600; i++) {
        a[i] = class_of(first[i], a_count);
        b[i] = same[i] > -0.2 ? (5 * a[i] + 3) % b_count : class_of(second[i], b_count);
    }
}

static void golden_agreement(ctr_ctx *ctx, golden_file *g, int a_count, int b_count)
{
    int32_t a[600], b[600], match[60];
    ctr_agreement r;
    const double *want;
    double accuracy, hits = 0, worst;
    size_t count = 0;
    char key[64];
    int i;
    partitions(a_count, b_count, a, b);
    sprintf(key, "agree:%d:%d", a_count, b_count);
    test_true(key, ctr_agreement_measure(ctx, 600, a, b, &r));
    test_true(key, ctr_agreement_match(ctx, 600, a, b, match, &accuracy));
    want = golden_get(g, key, &count);
    if (!test_true(key, count == 5)) return;
    worst = fabs(r.nmi - want[0]) + fabs(r.nmi_geometric - want[1]) + fabs(r.ari - want[2]) +
            fabs(r.purity - want[3]) + fabs(accuracy - want[4]);
    test_error(key, worst, 1e-12);
    test_true("parts", r.points == 600 && r.clusters == a_count && r.classes == b_count);
    for (i = 0; i < 600; i++) hits += match[a[i]] == b[i];
    test_error("the match gives the accuracy", fabs(hits / 600 - accuracy), 1e-12);
}

static void test_agreement_golden(ctr_ctx *ctx)
{
    golden_file g;
    test_group("agreement against scikit-learn and scipy");
    if (!test_golden_open(&g, "golden_cluster.txt")) return;
    golden_agreement(ctx, &g, 7, 5);
    golden_agreement(ctx, &g, 40, 3);
    golden_agreement(ctx, &g, 3, 40);
    golden_agreement(ctx, &g, 60, 60);
    golden_agreement(ctx, &g, 1, 4);
    golden_agreement(ctx, &g, 5, 1);
    test_fine(ctx, "no error");
    golden_close(&g);
}

/* The best of all one-to-one maps of rows to columns, by trying them. */
static int64_t best_match(int64_t rows, int64_t columns, const int64_t *table, int64_t r, int taken)
{
    int64_t j, best = -1;
    if (r == rows) return 0;
    for (j = 0; j < columns; j++) {
        int64_t t;
        if (taken >> j & 1) continue;
        t = table[r * columns + j] + best_match(rows, columns, table, r + 1, taken | 1 << j);
        if (t > best) best = t;
    }
    return best;
}

static void test_agreement_match(ctr_ctx *ctx)
{
    int64_t table[49];
    int32_t a[500], b[500];
    int round, i, wrong = 0;
    test_group("Hungarian algorithm against all permutations");
    for (round = 0; round < 60; round++) {
        int rows = 1 + round % 6, columns = rows + round / 6 % (8 - rows), n = 0, swap = round % 2;
        double accuracy;
        memset(table, 0, sizeof table);
        for (i = 0; i < rows * columns; i++) {
            int count = (int)(golden_bits((uint32_t)round, (size_t)i) % (round < 30 ? 3 : 11));
            table[i] = count;
            for (; count > 0; count--, n++) {
                a[n] = 10 * (i / columns); /* gaps between the numbers */
                b[n] = i % columns;
            }
        }
        if (n == 0) continue;
        ctr_agreement_match(ctx, n, swap ? b : a, swap ? a : b, NULL, &accuracy);
        wrong += fabs(accuracy * n - (double)best_match(rows, columns, table, 0, 0)) > 1e-9;
    }
    test_equal("worse matches", wrong, 0);
    test_fine(ctx, "no error");
}

static void test_agreement_edges(ctr_ctx *ctx)
{
    int32_t a[8] = { 0, 0, 1, 1, 2, 2, -1, 3 }, b[8] = { 5, 5, 9, 9, 0, 0, 0, -4 };
    int32_t one[4] = { 3, 3, 3, 3 }, all[4] = { 0, 1, 2, 3 }, x[4] = { 0, 0, 1, 1 };
    int32_t y[4] = { 0, 1, 0, 1 }, match[4], top[1] = { CTR_MAX_CLASSES };
    ctr_agreement r;
    double accuracy;
    test_group("agreement at the edge");
    ctr_agreement_measure(ctx, 8, a, b, &r);
    test_true("renumbered, negative left out",
              r.points == 6 && r.clusters == 3 && r.classes == 3 && r.ari == 1 && r.purity == 1);
    test_error("NMI 1", fabs(r.nmi - 1) + fabs(r.nmi_geometric - 1), 1e-15);
    ctr_agreement_match(ctx, 8, a, b, match, &accuracy);
    test_true("matched", accuracy == 1 && match[0] == 5 && match[1] == 9 && match[2] == 0 &&
                             match[3] == -1);
    ctr_agreement_measure(ctx, 4, one, one, &r);
    test_true("one part each", r.nmi == 1 && r.nmi_geometric == 1 && r.ari == 1 && r.purity == 1);
    ctr_agreement_measure(ctx, 4, one, all, &r);
    test_true("one against all", r.nmi == 0 && r.nmi_geometric == 0 && r.ari == 0 &&
                                     r.purity == 0.25);
    ctr_agreement_measure(ctx, 4, all, all, &r);
    test_true("all apart", r.ari == 1 && r.purity == 1 && fabs(r.nmi - 1) < 1e-15);
    ctr_agreement_measure(ctx, 4, x, y, &r);
    test_true("independent", fabs(r.nmi) < 1e-15 && r.purity == 0.5);
    test_error("worse than chance", fabs(r.ari + 0.5), 1e-15);
    ctr_agreement_measure(ctx, 1, x, y, &r);
    test_true("a single point", r.nmi == 1 && r.ari == 1 && r.points == 1);
    ctr_agreement_measure(ctx, 0, NULL, NULL, &r);
    test_true("no point", r.points == 0 && r.nmi == 0 && r.ari == 0);
    test_true("no match", ctr_agreement_match(ctx, 0, NULL, NULL, match, &accuracy) &&
                              accuracy == 0);
    a[0] = a[1] = a[2] = a[3] = a[4] = a[5] = -1;
    ctr_agreement_measure(ctx, 8, a, b, &r);
    test_equal("none that counts", (double)r.points, 0);
    test_fine(ctx, "no error");
    ctr_agreement_measure(ctx, 1, top, x, &r);
    test_fails(ctx, "cluster too large", CTR_E_VALUE, "cluster 0");
    ctr_agreement_match(ctx, 1, x, top, match, &accuracy);
    test_fails(ctx, "label too large", CTR_E_VALUE, "label 0");
    ctr_agreement_measure(ctx, -1, x, y, &r);
    test_fails(ctx, "n below 0", CTR_E_VALUE, "-1 points");
    ctr_agreement_match(ctx, 3, NULL, y, match, &accuracy);
    test_fails(ctx, "NULL", CTR_E_VALUE, "NULL");
}

/* ----------------------------------------------------------------------------------- whitening */

/* a = q value q^T by the private solver: what is wrong with it, relative to the largest value. */
static double eigen_error(int64_t n, const double *a)
{
    double *t = test_doubles(n * n), *v = test_doubles(n * n), *value = test_doubles(n);
    double *scratch = test_doubles(3 * n), worst = 0, largest = 1e-300;
    int64_t i, j, k;
    memcpy(t, a, (size_t)(n * n) * sizeof *t);
    ctr_pca_eigen_(n, t, v, value, scratch);
    for (i = 0; i < n; i++) largest = fabs(value[i]) > largest ? fabs(value[i]) : largest;
    for (i = 0; i < n; i++)
        for (j = 0; j < n; j++) {
            double product = 0, dot = 0;
            for (k = 0; k < n; k++) {
                product += a[j * n + k] * v[i * n + k];
                dot += v[i * n + k] * v[j * n + k];
            }
            product = fabs(product - value[i] * v[i * n + j]) / largest;
            dot = fabs(dot - (i == j));
            if (!(product < 1e30) || !(dot < 1e30)) worst = GOLDEN_BAD;
            worst = product > worst ? product : worst;
            worst = dot > worst ? dot : worst;
        }
    free(t);
    free(v);
    free(value);
    free(scratch);
    return worst;
}

static void test_eigen(void)
{
    static double a[40 * 40], x[40 * 40];
    int64_t n, i, j, k;
    int kind;
    test_group("eigenvectors of symmetric matrices");
    for (n = 1; n <= 40; n += n < 6 ? 1 : 17)
        for (kind = 0; kind < 6; kind++) {
            golden_fill("cluster.eigen", x, (size_t)(n * n), 1.0);
            for (i = 0; i < n; i++)
                for (j = 0; j < n; j++) {
                    double sum = 0;
                    for (k = 0; k < (kind == 2 ? 2 : n); k++) sum += x[i * n + k] * x[j * n + k];
                    if (kind == 0) sum = x[i * n + j] + x[j * n + i];
                    if (kind == 3) sum = i == j;
                    if (kind == 4) sum = 0;
                    if (kind == 5) sum *= 1e-100;
                    a[i * n + j] = sum;
                }
            test_error("A v = value v, v unit and orthogonal", eigen_error(n, a), 2e-14);
        }
}

static void golden_whiten(ctr_ctx *ctx, golden_file *g, int k, double power, double epsilon)
{
    double x[1350], mix[81];
    ctr_real y[1350], out[1350], mean[9], matrix[81];
    ctr_whiten_config config;
    char key[64];
    int i, j, c;
    golden_fill("whiten.x", x, 1350, 1.0);
    golden_fill("whiten.mix", mix, 81, 1.0);
    for (i = 0; i < 150; i++)
        for (j = 0; j < 9; j++) {
            double sum = 0.5;
            for (c = 0; c < 9; c++) sum += x[i * 9 + c] * mix[c * 9 + j];
            y[i * 9 + j] = (ctr_real)sum;
        }
    ctr_whiten_config_init(&config);
    config.k = k;
    config.power = power;
    config.epsilon = epsilon;
    sprintf(key, "whiten:%d:%g:%g", k, power, epsilon);
    test_equal(key, ctr_whiten_fit(ctx, 150, 9, y, &config, mean, matrix), k);
    test_true(key, ctr_whiten_apply(ctx, 150, 9, y, k, mean, matrix, 1, out));
    test_error(key, test_digest(g, key, out, 150 * k, 0), test_bound(1e-8, 2e-4));
}

/* Variance 1 on every axis and nothing between them; a constant and a repeated column fall away. */
static void test_whiten_shapes(ctr_ctx *ctx)
{
    enum { N = 700, D = 40 };
    ctr_real *x = filled("whiten.large", N * D), *out = test_reals(N * D);
    ctr_real *mean = test_reals(D), *matrix = test_reals(D * D);
    ctr_whiten_config config = ctr_whiten_config_default();
    double worst = 0;
    int64_t i, j, l;
    int zero = 0;
    test_group("whitening");
    for (i = 0; i < N; i++) {
        x[i * D + 7] = 3;
        x[i * D + 9] = x[i * D + 4];
    }
    test_equal("all axes", ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix), D);
    test_true("applied", ctr_whiten_apply(ctx, N, D, x, D, mean, matrix, 0, out));
    for (j = 0; j < D; j++)
        for (l = 0; l < D; l++) {
            double sum = 0;
            for (i = 0; i < N; i++) sum += (double)out[i * D + j] * (double)out[i * D + l];
            sum = fabs(sum / (N - 1) - (j == l && j < D - 2));
            worst = sum > worst ? sum : worst;
        }
    test_error("covariance is 1, and 0 beyond the rank", worst, test_bound(1e-11, 2e-5));
    config.k = 3; /* so few that they are iterated for */
    test_equal("some axes", ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix), 3);
    test_true("applied", ctr_whiten_apply(ctx, N, D, x, 3, mean, matrix, 1, out));
    for (worst = 0, i = 0; i < N; i++) {
        double sum = 0;
        for (j = 0; j < 3; j++) sum += (double)out[i * 3 + j] * (double)out[i * 3 + j];
        worst = fabs(sum - 1) > worst ? fabs(sum - 1) : worst;
    }
    test_error("unit rows", worst, test_bound(1e-14, 1e-6));
    for (i = 0; i < N * D; i++) x[i] = 5;
    ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix);
    ctr_whiten_apply(ctx, N, D, x, 3, mean, matrix, 1, out);
    for (i = 0; i < N * 3; i++) zero += out[i] != 0;
    test_equal("equal points are at zero", zero, 0);
    test_fine(ctx, "no error");
    config.k = D + 1;
    test_equal("k", ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix), 0);
    test_fails(ctx, "k above d", CTR_E_VALUE, "= 40, got 41");
    config.k = 2;
    config.epsilon = -1;
    ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix);
    test_fails(ctx, "epsilon", CTR_E_VALUE, "epsilon");
    config.epsilon = 0;
    ctr_whiten_fit(ctx, 0, D, x, &config, mean, matrix);
    test_fails(ctx, "no points", CTR_E_SHAPE, "0 x 40");
    ctr_whiten_apply(ctx, N, D, NULL, 2, mean, matrix, 0, out);
    test_fails(ctx, "NULL", CTR_E_SHAPE, "NULL");
    poison(&x[2 * D]);
    ctr_whiten_fit(ctx, N, D, x, &config, mean, matrix);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 2 of the points");
    free(x);
    free(out);
    free(mean);
    free(matrix);
}

/* ------------------------------------------------------------------------------------- sinkhorn */

static void golden_sinkhorn(ctr_ctx *ctx, golden_file *g, int n, int k, double epsilon,
                            int iterations)
{
    ctr_sinkhorn_config config = ctr_sinkhorn_config_default();
    ctr_real *scores, *codes = test_reals(n * k);
    const double *want;
    double residual = -1;
    char key[64], part[80];
    sprintf(key, "sinkhorn.%d.%d", n, k);
    scores = filled(key, n * k);
    config.epsilon = epsilon;
    config.iterations = iterations;
    sprintf(key, "sinkhorn:%d:%d:%g:%d", n, k, epsilon, iterations);
    test_true(key, ctr_sinkhorn_run(ctx, n, k, scores, &config, codes, &residual));
    test_error(key, test_digest(g, key, codes, n * k, 0), test_bound(1e-10, 1e-5));
    sprintf(part, "%s:residual", key);
    want = golden_get(g, part, NULL);
    test_error(part, want ? fabs(residual - *want) : GOLDEN_BAD, test_bound(1e-10, 1e-5));
    ctr_sinkhorn_run(ctx, n, k, scores, &config, scores, NULL);
    test_bytes("in place", scores, codes, (size_t)(n * k) * sizeof *codes);
    free(scores);
    free(codes);
}

static void test_golden_codes(ctr_ctx *ctx)
{
    golden_file g;
    test_group("Sinkhorn against the authors' formula, whitening against numpy");
    if (!test_golden_open(&g, "golden_cluster.txt")) return;
    golden_sinkhorn(ctx, &g, 24, 10, 0.05, 3);
    golden_sinkhorn(ctx, &g, 37, 11, 0.01, 3);
    golden_sinkhorn(ctx, &g, 16, 50, 0.05, 1);
    golden_sinkhorn(ctx, &g, 64, 7, 0.25, 20);
    golden_whiten(ctx, &g, 9, -0.5, 0);
    golden_whiten(ctx, &g, 4, -0.5, 0);
    golden_whiten(ctx, &g, 4, -0.25, 0.1);
    golden_whiten(ctx, &g, 3, 0, 0);
    test_fine(ctx, "no error");
    golden_close(&g);
}

static void test_sinkhorn_edges(ctr_ctx *ctx)
{
    enum { N = 90, K = 33 };
    ctr_real *x = filled("sinkhorn.edge", N * K), *q = test_reals(N * K), *far = test_reals(N * K);
    ctr_sinkhorn_config config;
    double residual, before = 1e300, worst = 0;
    int64_t i, j;
    int rises = 0, bad = 0;
    ctr_sinkhorn_config_init(&config);
    test_group("Sinkhorn at the edge");
    test_true("the defaults", config.epsilon == 0.05 && config.iterations == 3);
    for (i = 1; i < 40; i++) {
        config.iterations = (int)i;
        ctr_sinkhorn_run(ctx, N, K, x, &config, q, &residual);
        rises += residual > before * (1 + 1e-6) + 1e-6;
        before = residual;
    }
    test_equal("the residual never rises", rises, 0);
    test_error("and goes to zero", residual, 0.02);
    for (i = 0; i < N; i++) {
        double sum = 0;
        for (j = 0; j < K; j++) sum += (double)q[i * K + j];
        worst = fabs(sum - 1) > worst ? fabs(sum - 1) : worst;
    }
    test_error("rows sum to 1", worst, test_bound(1e-12, 1e-6));
    config.iterations = 3;
    ctr_sinkhorn_run(ctx, N, K, x, &config, q, NULL);
    for (i = 0; i < N * K; i++) far[i] = x[i] + 512;
    ctr_sinkhorn_run(ctx, N, K, far, &config, far, NULL);
    for (worst = 0, i = 0; i < N * K; i++)
        worst = fabs((double)far[i] - (double)q[i]) > worst ? fabs((double)(far[i] - q[i])) : worst;
    test_error("a constant on all scores changes nothing", worst, test_bound(1e-10, 2e-3));
    config.epsilon = 1e-4; /* exponents of 10,000 */
    for (i = 0; i < N * K; i++) far[i] = x[i] * 1000;
    ctr_sinkhorn_run(ctx, N, K, far, &config, q, &residual);
    for (i = 0; i < N * K; i++) bad += !golden_finite_((double)q[i]) || q[i] < 0;
    test_true("huge exponents", bad == 0 && golden_finite_(residual));
    ctr_sinkhorn_run(ctx, N, 1, x, NULL, q, &residual);
    test_true("one prototype", q[0] == 1 && residual < 1e-6);
    ctr_sinkhorn_run(ctx, 1, K, x, &config, q, &residual);
    for (worst = 0, i = 0; i < K; i++) worst += fabs((double)q[i] - 1.0 / K);
    test_error("one point belongs to all alike", worst, 1e-5);
    for (i = 0; i < N * K; i++) x[i] = 3;
    ctr_sinkhorn_run(ctx, N, K, x, &config, q, &residual);
    test_error("equal scores are balanced", residual, 1e-6);
    test_fine(ctx, "no error");
    config.epsilon = 0;
    test_equal("epsilon", ctr_sinkhorn_run(ctx, N, K, x, &config, q, NULL), 0);
    test_fails(ctx, "epsilon", CTR_E_VALUE, "epsilon");
    config.epsilon = 0.05;
    config.iterations = 0;
    ctr_sinkhorn_run(ctx, N, K, x, &config, q, NULL);
    test_fails(ctx, "iterations", CTR_E_VALUE, "iterations");
    ctr_sinkhorn_run(ctx, N, 0, x, NULL, q, NULL);
    test_fails(ctx, "k = 0", CTR_E_SHAPE, "90 x 0");
    poison(&x[K]);
    ctr_sinkhorn_run(ctx, N, K, x, NULL, q, NULL);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 1 of the scores");
    free(x);
    free(q);
    free(far);
}

/* --------------------------------------------------------------------------- threads and memory */

enum { ALL_N = 1300, ALL_D = 6, ALL_K = 30 };

/* What everything gives, to compare bytes; first cleared, so that no byte is left to chance. */
typedef struct everything {
    ctr_real centroids[3][ALL_K * ALL_D];
    int32_t assignment[4][ALL_N];
    int64_t sizes[3][ALL_K];
    double number[16];
    ctr_agreement agreement;
    ctr_real mean[2][ALL_D], matrix[2][ALL_D * ALL_D], white[ALL_N * ALL_D], codes[ALL_N * ALL_D];
} everything;

static int run_everything(ctr_ctx *ctx, int64_t n, const ctr_real *x, everything *e)
{
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_whiten_config w = ctr_whiten_config_default();
    ctr_kmeans_result r;
    int i;
    memset(e, 0, sizeof *e);
    c.k = n < 500 ? 5 : ALL_K;
    c.iterations = 4;
    c.restarts = 2;
    for (i = 0; i < 3; i++) {
        c.spherical = i == 1;
        c.init = i == 2 ? CTR_KMEANS_PLUSPLUS : CTR_KMEANS_POINTS;
        c.tolerance = i == 2 ? 1e-3 : 0;
        if (!ctr_kmeans_run(ctx, n, ALL_D, x, &c, e->centroids[i], e->assignment[i], e->sizes[i],
                            &r))
            return 0;
        e->number[2 * i] = r.inertia;
        e->number[2 * i + 1] = r.iterations + 100 * r.restart;
    }
    w.k = 1;
    return ctr_kmeans_assign(ctx, n, ALL_D, x, c.k, e->centroids[0], 0, e->assignment[3],
                             &e->number[6]) &&
           ctr_whiten_fit(ctx, n, ALL_D, x, &w, e->mean[0], e->matrix[0]) &&
           ctr_whiten_fit(ctx, n, ALL_D, x, NULL, e->mean[1], e->matrix[1]) &&
           ctr_whiten_apply(ctx, n, ALL_D, x, ALL_D, e->mean[1], e->matrix[1], 1, e->white) &&
           ctr_sinkhorn_run(ctx, n, ALL_D, x, NULL, e->codes, &e->number[8]) &&
           ctr_agreement_measure(ctx, n, e->assignment[0], e->assignment[2], &e->agreement) &&
           ctr_agreement_match(ctx, n, e->assignment[0], e->assignment[1], NULL, &e->number[7]);
}

static void test_threads(void)
{
    static everything e[3];
    ctr_real *x = filled("cluster.all", ALL_N * ALL_D);
    int i;
    test_group("threads do not change a bit");
    for (i = 0; i < 3; i++) {
        ctr_ctx *ctx = test_ctx(i + 1, CTR_KERNELS_AUTO);
        test_true("runs", run_everything(ctx, ALL_N, x, &e[i]));
        test_fine(ctx, "no error");
        ctr_ctx_destroy(ctx);
    }
    test_bytes("1 and 2 threads", &e[0], &e[1], sizeof e[0]);
    test_bytes("1 and 3 threads", &e[0], &e[2], sizeof e[0]);
    free(x);
}

static void test_memory(void)
{
    static everything e;
    ctr_real *x = filled("cluster.all", ALL_N * ALL_D);
    ctr_config config = ctr_config_default();
    test_allocator watch;
    ctr_ctx *ctx;
    long at, failed = 0, done = 0;
    test_group("every allocation fails once");
    config.threads = 1;
    for (at = 1; at < 500 && !done; at++) {
        config.allocator = test_allocator_init(&watch);
        ctx = ctr_ctx_create(&config);
        watch.fail_at = watch.calls + at;
        done = run_everything(ctx, 60, x, &e);
        if (!done) failed += test_fails(ctx, "a failed allocation", CTR_E_MEMORY, "memory");
        ctr_ctx_destroy(ctx);
        test_true("gives all back", watch.live == 0 && watch.bad_frees == 0);
    }
    test_true("and without failure it runs through", done && failed > 70);
    free(x);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_cluster", argc, argv);
    ctx = test_ctx(2, CTR_KERNELS_AUTO);
    test_kmeans_golden(ctx);
    test_kmeans_loops(ctx);
    test_kmeans_progress(ctx);
    test_kmeans_plus(ctx);
    test_kmeans_empty(ctx);
    test_kmeans_edges(ctx);
    test_kmeans_errors(ctx);
    test_kmeans_warning();
    test_kmeans_device();
#if CTR_HAS_AVX2_
    test_kmeans_kernels(ctx);
#endif
    test_eigen();
    test_golden_codes(ctx);
    test_whiten_shapes(ctx);
    test_sinkhorn_edges(ctx);
    test_agreement_golden(ctx);
    test_agreement_match(ctx);
    test_agreement_edges(ctx);
    ctr_ctx_destroy(ctx);
    test_threads();
    test_memory();
    return test_end();
}
