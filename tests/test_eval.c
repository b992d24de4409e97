/* test_eval.c - neighbours, k-NN, retrieval, linear probe, principal components, t-SNE.
 * run: float double asan smoke
 *
 * Against golden_eval.txt, scikit-learn's logistic regression, float64 numpy and plain loops over
 * everything; then the cases at the edge, bad input, threads and failing memory. It looks at
 * private parts, so it is its own implementation.
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

/* ----------------------------------------------------------------------------------- neighbours */

/* The k nearest by sorting everything, in double. */
static void neighbours_loops(int64_t n, int64_t d, const ctr_real *x, const ctr_real *q,
                             int64_t self, int64_t k, int64_t *index, double *cosine)
{
    int64_t found, i, j, at;
    for (found = 0; found < k; found++) {
        index[found] = -1;
        cosine[found] = 0;
        for (i = 0; i < n; i++) {
            double dot = 0, a = 0, b = 0, s;
            int taken = i == self;
            for (at = 0; at < found; at++) taken |= index[at] == i;
            if (taken) continue;
            for (j = 0; j < d; j++) {
                dot += (double)x[i * d + j] * (double)q[j];
                a += (double)x[i * d + j] * (double)x[i * d + j];
                b += (double)q[j] * (double)q[j];
            }
            s = a > 0 && b > 0 ? dot / sqrt(a) / sqrt(b) : 0;
            if (index[found] >= 0 && s <= cosine[found]) continue;
            index[found] = i;
            cosine[found] = s;
        }
    }
}

/* n and queries reach over the edges of tiles (72 queries x 256 points) and blocks. */
static void test_neighbours(ctr_ctx *ctx)
{
    enum { N = 1100, Q = 530, D = 7, K = 5 };
    static int64_t index[Q * K], own[N * K];
    static ctr_real cosine[Q * K], own_cosine[N * K];
    ctr_real *x = filled("eval.data", N * D), *q = filled("eval.queries", Q * D);
    ctr_points data = ctr_points_make(N, D, x, NULL), queries = ctr_points_make(Q, D, q, NULL);
    double expected[K], worst = 0;
    int64_t found[K], i, j;
    int wrong = 0;
    test_group("neighbours against plain loops");
    for (j = 0; j < D; j++) x[9 * D + j] = q[3 * D + j] = 0;
    test_equal("found", (double)ctr_neighbors_find(ctx, &data, &queries, K, index, cosine), K);
    test_equal("found among themselves",
               (double)ctr_neighbors_find(ctx, &data, NULL, K, own, own_cosine), K);
    for (i = 0; i < Q; i += test_quick() ? 37 : 7) {
        neighbours_loops(N, D, x, q + i * D, -1, K, found, expected);
        for (j = 0; j < K; j++) {
            wrong += i != 3 && index[i * K + j] != found[j];
            worst = fmax(worst, fabs((double)cosine[i * K + j] - expected[j]));
        }
    }
    for (i = 0; i < N; i += test_quick() ? 97 : 11) {
        neighbours_loops(N, D, x, x + i * D, i, K, found, expected);
        for (j = 0; j < K; j++) {
            wrong += own[i * K + j] != found[j];
            worst = fmax(worst, fabs((double)own_cosine[i * K + j] - expected[j]));
        }
    }
    test_equal("wrong neighbours", wrong, 0);
    test_error("cosines", worst, test_bound(1e-14, 1e-6));
    for (j = 0; j < K; j++) /* all equal: the lowest indices, in order */
        test_true("a zero query", index[3 * K + j] == j && cosine[3 * K + j] == 0);
    test_fine(ctx, "no error");
    free(x);
    free(q);
}

static void test_neighbour_edges(ctr_ctx *ctx)
{
    ctr_real x[8] = { 1, 0, 0, 1, 1, 0, 2, 0 }; /* rows 0, 2 and 3 point the same way */
    ctr_points data = ctr_points_make(4, 2, x, NULL), one = ctr_points_make(1, 2, x, NULL);
    int64_t index[24];
    ctr_real cosine[24];
    test_group("neighbours at the edge");
    test_equal("k above n", (double)ctr_neighbors_find(ctx, &data, &one, 6, index, cosine), 4);
    test_true("equals by index", index[0] == 0 && index[1] == 2 && index[2] == 3 && index[3] == 1);
    test_true("slots beyond are empty", index[4] == -1 && index[5] == -1 && cosine[5] == 0);
    test_equal("without itself", (double)ctr_neighbors_find(ctx, &data, NULL, 6, index, cosine), 3);
    test_true("left out by its index, not by its value", index[0] == 2 && index[1] == 3 &&
                                                             index[2] == 1 && index[3] == -1);
    test_equal("alone", (double)ctr_neighbors_find(ctx, &one, NULL, 2, index, NULL), 0);
    test_true("no neighbour", index[0] == -1 && index[1] == -1);
    test_fine(ctx, "none of that is an error");
    ctr_neighbors_find(ctx, &data, &one, 0, index, NULL);
    test_fails(ctx, "k 0", CTR_E_VALUE, "k must be at least 1");
    one.d = 1;
    ctr_neighbors_find(ctx, &data, &one, 1, index, NULL);
    test_fails(ctx, "other d", CTR_E_SHAPE, "same d");
    one.d = 2;
    one.n = 0;
    ctr_neighbors_find(ctx, &data, &one, 1, index, NULL);
    test_fails(ctx, "no query", CTR_E_SHAPE, "queries");
    poison(&x[5]);
    ctr_neighbors_find(ctx, &data, NULL, 1, index, NULL);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 2 of the data");
}

/* ----------------------------------------------------------------------------------------- k-NN */

typedef struct golden_set {
    ctr_real train[480], test[240];
    int32_t train_label[60], test_label[30];
} golden_set;

static void golden_make(golden_set *s)
{
    double centre[40], a[480], b[240];
    int i, c;
    golden_fill("knn.centre", centre, 40, 0.6);
    golden_fill("knn.train", a, 480, 1.0);
    golden_fill("knn.test", b, 240, 1.0);
    for (i = 0; i < 60; i++) s->train_label[i] = (7 * i + i / 9) % 5;
    for (i = 0; i < 30; i++) s->test_label[i] = (3 * i + i / 4) % 5;
    for (i = 0; i < 480; i++) {
        c = s->train_label[i / 8];
        s->train[i] = (ctr_real)(centre[c * 8 + i % 8] + a[i]);
    }
    for (i = 0; i < 240; i++) {
        c = s->test_label[i / 8];
        s->test[i] = (ctr_real)(centre[c * 8 + i % 8] + b[i]);
    }
}

static void golden_predictions(golden_file *g, const char *key, const int32_t *predicted)
{
    size_t count, i;
    const double *v = golden_get(g, key, &count);
    int wrong = v == NULL || count == 0;
    for (i = 0; i < count; i++) wrong += (int32_t)v[i] != predicted[i];
    test_equal(key, wrong, 0);
}

/* The sums of votes, made from the neighbours as the classifier makes them; it leaves out the
   common factor exp(s_0 / 0.1). */
static void golden_votes(ctr_ctx *ctx, golden_file *g, const golden_set *s, int k)
{
    ctr_points train = ctr_points_make(60, 8, s->train, s->train_label);
    ctr_points test = ctr_points_make(30, 8, s->test, NULL);
    int64_t index[30 * 60];
    ctr_real cosine[30 * 60], votes[150];
    char key[32];
    int i, j;
    ctr_neighbors_find(ctx, &train, &test, k, index, cosine);
    memset(votes, 0, sizeof votes);
    for (i = 0; i < 30; i++)
        for (j = 0; j < k; j++)
            votes[i * 5 + s->train_label[index[i * k + j]]] +=
                (ctr_real)exp((double)cosine[i * k + j] / 0.1);
    sprintf(key, "knn:%d:votes", k);
    test_error(key, test_digest(g, key, votes, 150, 0), test_bound(1e-9, 1e-5));
}

/* ---- on a device ---- */

static int heard_lines;
static char heard_text[256];
static void hear_device(void *user, ctr_log_level level, const char *text)
{
    (void)user;
    if (level != CTR_LOG_INFO || !strstr(text, "on the CPU, not the device")) return;
    heard_lines++;
    snprintf(heard_text, sizeof heard_text, "%s", text);
}

enum { DEVICE_N = 1300, DEVICE_Q = 30, DEVICE_D = 5, DEVICE_K = 1100 };
typedef struct found_all {
    int64_t index[DEVICE_Q * DEVICE_K], own[DEVICE_N * 3];
    ctr_real cosine[DEVICE_Q * DEVICE_K], own_cosine[DEVICE_N * 3];
    int32_t predicted[DEVICE_N];
    ctr_knn_result knn;
} found_all;

/* k neighbours of queries, of all points among themselves, and a vote in which every third point
   has no label, on a device or NULL, with the scalar kernels. */
static void found_on(const ctr_device *device, int64_t k, found_all *out)
{
    ctr_real *x = filled("eval.data", DEVICE_N * DEVICE_D);
    ctr_real *q = filled("eval.queries", DEVICE_Q * DEVICE_D);
    static int32_t labels[DEVICE_N];
    ctr_points data = ctr_points_make(DEVICE_N, DEVICE_D, x, labels);
    ctr_points queries = ctr_points_make(DEVICE_Q, DEVICE_D, q, NULL);
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    int i;
    memset(out, 0, sizeof *out);
    heard_lines = 0;
    for (i = 0; i < DEVICE_N; i++) labels[i] = i % 3 - 1;
    memcpy(x + 7 * DEVICE_D, x + 3 * DEVICE_D, DEVICE_D * sizeof *x); /* equals */
    memset(x + 9 * DEVICE_D, 0, DEVICE_D * sizeof *x);                /* no direction */
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    config.device = device;
    config.log_fn = hear_device;
    ctx = test_host_create(&config);
    test_equal("of queries", (double)ctr_neighbors_find(ctx, &data, &queries, k, out->index,
                                                        out->cosine), (double)k);
    test_equal("of themselves",
               (double)ctr_neighbors_find(ctx, &data, NULL, 3, out->own, out->own_cosine), 3);
    test_true("a vote", ctr_knn_classify(ctx, &data, NULL, NULL, out->predicted, &out->knn));
    test_fine(ctx, "no error");
    ctr_ctx_destroy(ctx);
    free(x);
    free(q);
}

/* The fake device's verbs are the scalar kernels: the same bits as on the CPU, as long as the
   compiler adds in the order that is written. */
static void same_found(const found_all *a, const found_all *b)
{
#ifdef __FAST_MATH__
    int64_t i;
    double worst = 0;
    for (i = 0; i < DEVICE_Q * DEVICE_K; i++)
        worst = fmax(worst, fabs((double)(a->cosine[i] - b->cosine[i])));
    for (i = 0; i < DEVICE_N * 3; i++)
        worst = fmax(worst, fabs((double)(a->own_cosine[i] - b->own_cosine[i])));
    test_error("the same cosines", worst, 1e-6);
    test_bytes("the same neighbours", a->index, b->index, sizeof a->index);
    test_bytes("the same neighbours of their own", a->own, b->own, sizeof a->own);
    test_bytes("the same votes", a->predicted, b->predicted, sizeof a->predicted);
#else
    test_bytes("the same result", a, b, sizeof *a);
#endif
}

static void test_neighbours_device(void)
{
    static found_all on_cpu, on_device;
    fake_device *fake = fake_device_open();
    ctr_device without = fake->device;
    test_group("on a device");
    without.neighbors = NULL;
    found_on(NULL, 40, &on_cpu);
    test_equal("nothing to say on the CPU", heard_lines, 0);
    found_on(&fake->device, 40, &on_device);
    test_equal("nothing to say on the device", heard_lines, 0);
    test_true("the verb ran", fake_device_ran(fake, "neighbors"));
    same_found(&on_device, &on_cpu);
    found_on(&without, 40, &on_device);
    test_true("without the verb the log says so", heard_lines == 3 &&
                                                      strstr(heard_text, "no kernel"));
    same_found(&on_device, &on_cpu);
    fake->fail_at = fake->allocations + 4;
    found_on(&fake->device, 40, &on_device);
    test_true("without memory, too", heard_lines == 1 && strstr(heard_text, "memory"));
    same_found(&on_device, &on_cpu);
    fake->fail_at = 0;
    found_on(NULL, DEVICE_K, &on_cpu);
    found_on(&fake->device, DEVICE_K, &on_device);
    test_true("more neighbours than it has", heard_lines == 1 && strstr(heard_text, "too many"));
    same_found(&on_device, &on_cpu);
    fake_device_close(fake);
}

static void test_knn_golden(ctr_ctx *ctx)
{
    static const int all[] = { 1, 5, 20, 60 };
    golden_file g;
    golden_set s;
    ctr_points train, test;
    ctr_knn_config c = ctr_knn_config_default();
    ctr_knn_result r;
    int32_t predicted[60];
    char key[32];
    int i;
    test_group("k-NN against PyTorch");
    golden_make(&s);
    train = ctr_points_make(60, 8, s.train, s.train_label);
    test = ctr_points_make(30, 8, s.test, s.test_label);
    if (!test_golden_open(&g, "golden_eval.txt")) return;
    for (i = 0; i < 4; i++) {
        const double *share;
        c.k = all[i];
        test_true("classified", ctr_knn_classify(ctx, &train, &test, &c, predicted, &r));
        sprintf(key, "knn:%d", all[i]);
        golden_predictions(&g, key, predicted);
        sprintf(key, "knn:%d:accuracy", all[i]);
        share = golden_get(&g, key, NULL);
        test_error(key, share ? fabs(r.top1 - *share) : GOLDEN_BAD, 1e-12);
        golden_votes(ctx, &g, &s, all[i]);
        test_true("leave one out", ctr_knn_classify(ctx, &train, NULL, &c, predicted, &r));
        sprintf(key, "knn:%d:self", all[i]);
        golden_predictions(&g, key, predicted);
    }
    test_fine(ctx, "no error");
    golden_close(&g);
}

static void test_knn_edges(ctr_ctx *ctx)
{
    ctr_real x[8] = { 1, 0, 0.9f, 0.1f, 0, 1, 0.1f, 0.9f };
    int32_t y[4] = { 4, -1, 2, 2 }, none[4] = { -1, -1, -1, -1 }, predicted[4];
    ctr_points train = ctr_points_make(4, 2, x, y), test = train;
    ctr_knn_config c;
    ctr_knn_result r;
    test_group("k-NN at the edge");
    ctr_knn_config_init(&c);
    test_true("defaults", c.k == 0 && c.temperature == 0.1);
    c.k = 1;
    test_true("classified", ctr_knn_classify(ctx, &train, &test, &c, predicted, &r));
    test_true("an unlabelled point never votes", predicted[1] == 4 && r.voters == 3);
    test_true("and is not counted", r.counted == 3 && r.correct == 3 && r.top1 == 1);
    test_equal("classes", r.classes, 5);
    test_true("described", strstr(r.text, "k 1 of 3") && strstr(r.text, "3 points"));
    c.k = 100;
    ctr_knn_classify(ctx, &train, &test, &c, predicted, &r);
    test_equal("k above n is lowered", (double)r.k, 3);
    c.temperature = 1e-3; /* exp(1 / 1e-3) would overflow */
    test_true("tiny temperature", ctr_knn_classify(ctx, &train, &test, &c, predicted, &r));
    test_true("acts like the nearest", predicted[0] == 4 && predicted[2] == 2);
    test.labels = NULL;
    ctr_knn_classify(ctx, &train, &test, NULL, predicted, &r);
    test_true("test points without labels", r.counted == 0 && r.top1 == 0 && predicted[3] == 2);
    memset(x, 0, sizeof x); /* all cosines 0: two votes against one */
    ctr_knn_classify(ctx, &train, &test, NULL, predicted, &r);
    test_true("zero rows", predicted[0] == 2);
    train.n = 1;
    ctr_knn_classify(ctx, &train, NULL, NULL, predicted, &r);
    test_true("one point, left out: nobody votes", predicted[0] == -1 && r.correct == 0);
    test_fine(ctx, "none of that is an error");
    train.n = 4;
    train.labels = none;
    test_true("no label", !ctr_knn_classify(ctx, &train, NULL, NULL, predicted, &r));
    test_fails(ctx, "no label", CTR_E_VALUE, "has a label");
    none[2] = -2;
    ctr_knn_classify(ctx, &train, NULL, NULL, predicted, &r);
    test_fails(ctx, "a label below -1", CTR_E_VALUE, "label 2 of the training points");
    none[2] = CTR_MAX_CLASSES;
    ctr_knn_classify(ctx, &train, NULL, NULL, predicted, &r);
    test_fails(ctx, "an absurd label", CTR_E_VALUE, "label 2");
    train.labels = y;
    c.temperature = 0;
    ctr_knn_classify(ctx, &train, NULL, &c, predicted, &r);
    test_fails(ctx, "temperature 0", CTR_E_VALUE, "temperature");
    poison(&x[7]);
    ctr_knn_classify(ctx, &train, NULL, NULL, predicted, &r);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 3");
}

/* ------------------------------------------------------------- retrieval, confusion, intervals */

/* The example that pytorch-metric-learning tests its calculator with. */
static void test_retrieval(ctr_ctx *ctx)
{
    static const int32_t lists[6][5] = { { 0, 1, 1, 2, 2 }, { 1, 0, 1, 1, 3 }, { 4, 4, 4, 4, 2 },
                                         { 3, 1, 3, 1, 3 }, { 0, 0, 4, 2, 2 }, { 1, 2, 0, 1, 2 } };
    static const int32_t query[7] = { 1, 1, 2, 3, 4, 5, -1 };
    /* 3 of class 1, 5 of 2, 4 of 3, 5 of 4, 5 of 5, 4 of 0 */
    static const int32_t data[26] = { 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3,
                                      3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5 };
    static const int start[6] = { 0, 4, 7, 12, 16, 21 };
    int64_t index[35];
    ctr_retrieval r;
    int i, j, used[6];
    test_group("retrieval");
    for (i = 0; i < 35; i++) index[i] = -1;
    for (i = 0; i < 6; i++) {
        memset(used, 0, sizeof used);
        for (j = 0; j < 5; j++) index[i * 5 + j] = start[lists[i][j]] + used[lists[i][j]]++;
    }
    test_true("measured", ctr_retrieval_measure(ctx, 7, 5, index, query, 26, data, 0, &r));
    test_equal("queries that count", (double)r.queries, 6);
    test_error("recall at 1", fabs(r.recall[0] - 2.0 / 6), 1e-12);
    test_error("recall at 5", fabs(r.recall[1] - 5.0 / 6), 1e-12);
    test_error("recall at k", fabs(r.recall[3] - 5.0 / 6), 1e-12);
    test_error("R-precision",
               fabs(r.r_precision - (2.0 / 3 + 2.0 / 3 + 0.2 + 0.5 + 0.2 + 0) / 6), 1e-12);
    test_error("MAP@R", fabs(r.map_r - ((0.5 + 2.0 / 3) / 3 + (1 + 2.0 / 3) / 3 + 1.0 / 25 +
                                        (1 + 2.0 / 3) / 4 + 1.0 / 15) / 6), 1e-12);
    test_error("MRR", fabs(r.mrr - (0.5 + 1 + 0.2 + 1 + 1.0 / 3 + 0) / 6), 1e-12);
    test_error("mAP of the lists", fabs(r.map - ((0.5 + 2.0 / 3) / 3 + (1 + 2.0 / 3 + 0.75) / 3 +
                                                 0.2 / 5 + (1 + 2.0 / 3 + 0.6) / 4 +
                                                 1.0 / 3 / 5 + 0) / 6), 1e-12);
    test_fine(ctx, "no error");
    index[3] = 26;
    ctr_retrieval_measure(ctx, 7, 5, index, query, 26, data, 0, &r);
    test_fails(ctx, "an index outside", CTR_E_VALUE, "index 26 of query 0");
    ctr_retrieval_measure(ctx, 7, 5, index, NULL, 26, data, 0, &r);
    test_fails(ctx, "no labels", CTR_E_VALUE, "needs labels");
}

static void test_confusion(ctr_ctx *ctx)
{
    static const int32_t truth[8] = { 0, 0, 0, 1, 1, -1, 3, 3 };
    int32_t found[8] = { 0, 0, 1, 1, 0, 2, 3, 3 };
    int64_t m[16];
    double share[4], low, high;
    test_group("confusion matrix, intervals");
    test_true("counted", ctr_confusion_count(ctx, 8, truth, found, 4, m));
    test_true("entries", m[0] == 2 && m[1] == 1 && m[4] == 1 && m[5] == 1 && m[15] == 2);
    test_equal("nothing else", (double)(m[2] + m[3] + m[6] + m[7] + m[10] + m[12] + m[14]), 0);
    test_error("mean", fabs(ctr_confusion_accuracy(4, m, share) - (2.0 / 3 + 0.5 + 1) / 3), 1e-15);
    test_true("a class without points", share[2] == -1 && share[3] == 1);
    found[7] = 4;
    test_true("refused", !ctr_confusion_count(ctx, 8, truth, found, 4, m));
    test_fails(ctx, "a class too many", CTR_E_VALUE, "point 7");
    ctr_share_interval(8, 10, &low, &high); /* Wilson's for 8 of 10: 0.4902 to 0.9433 */
    test_error("8 of 10, low", fabs(low - 0.490162), 1e-5);
    test_error("8 of 10, high", fabs(high - 0.943318), 1e-5);
    ctr_share_interval(0, 0, &low, &high);
    test_true("of nothing", low == 0 && high == 1);
    ctr_share_interval(5, 5, &low, &high);
    test_true("of all", low > 0.56 && low < 0.57 && high == 1);
}

/* ---------------------------------------------------------------------------------------- probe */

/* n points in c overlapping classes; feature j is scaled by 1 + j and moved by 10 j. */
static ctr_real *classes_make(const char *name, int64_t n, int64_t d, int c, int32_t *y)
{
    double *centre = test_doubles(c * d), *noise = test_doubles(n * d);
    ctr_real *x = test_reals(n * d);
    int64_t i, j;
    golden_fill("eval.centre", centre, (size_t)(c * d), 0.5);
    golden_fill(name, noise, (size_t)(n * d), 1.0);
    for (i = 0; i < n; i++) {
        y[i] = (int32_t)((7 * i + i / 9) % c);
        for (j = 0; j < d; j++)
            x[i * d + j] = (ctr_real)((centre[y[i] * d + j] + noise[i * d + j]) * (double)(1 + j) +
                                      10.0 * (double)j);
    }
    free(centre);
    free(noise);
    return x;
}

/* scikit-learn 1.9, tol 1e-10: loss at its minimum, share right on train and on test */
typedef struct probe_case {
    int n, d, c;
    double l2, loss, train, test;
} probe_case;

static const probe_case probe_cases[] = {
    { 300, 12, 4, 1, 1.189115058, 0.6900, 0.6700 },
    { 300, 12, 4, 0.1, 0.8400066977, 0.7767, 0.7525 },
    { 300, 12, 4, 0.01, 0.6303880264, 0.7633, 0.7475 },
    { 300, 12, 4, 0.001, 0.5808350327, 0.7667, 0.7450 },
    { 90, 130, 3, 1, 0.3774071326, 1.0000, 1.0000 },
    { 90, 130, 3, 0.1, 0.09798848573, 1.0000, 1.0000 },
    { 90, 130, 3, 0.01, 0.01951750573, 1.0000, 1.0000 },
    { 90, 130, 3, 0.001, 0.003341060141, 1.0000, 1.0000 },
};

static void test_probe_loss(ctr_ctx *ctx)
{
    int32_t y[300], ty[400];
    size_t i;
    test_group("probe at given l2 against scikit-learn");
    for (i = 0; i < sizeof probe_cases / sizeof *probe_cases; i++) {
        const probe_case *p = probe_cases + i;
        ctr_real *x = classes_make("eval.train", p->n, p->d, p->c, y);
        ctr_real *t = classes_make("eval.test", 400, p->d, p->c, ty);
        ctr_points train = ctr_points_make(p->n, p->d, x, y);
        ctr_points test = ctr_points_make(400, p->d, t, ty);
        ctr_probe_config c = ctr_probe_config_default();
        ctr_probe_result r;
        char what[64];
        c.l2_count = 1;
        c.l2[0] = p->l2;
        test_true("fitted", ctr_probe_run(ctx, &train, &test, &c, NULL, &r));
        sprintf(what, "loss, %d x %d, l2 %g", p->n, p->d, p->l2);
        test_error(what, fabs(r.train_loss / p->loss - 1), 5e-5);
        test_error("right on train", fabs(r.train_top1 - p->train), 0.0035);
        test_error("right on test", fabs(r.top1 - p->test), 0.005);
        test_true("converged", r.converged && r.l2 == p->l2 && r.held_out == 0);
        free(x);
        free(t);
    }
    test_fine(ctx, "no error");
}

/* The gradient that L-BFGS follows, by differences; one part is held out. */
static void test_probe_gradient(ctr_ctx *ctx)
{
    enum { M = 40, D = 5, C = 3, SIZE = (D + 1) * C };
    int32_t y[M], part[M];
    double w[SIZE], grad[SIZE], other[SIZE], loss[M], worst = 0, h = test_bound(1e-5, 1e-2);
    ctr_real z[M * (D + 1)], weight[SIZE], logit[M * C], rest[M * C], g[SIZE];
    ctr_probe_ p;
    int i;
    test_group("probe: gradient");
    golden_fill("eval.w", w, SIZE, 1.0);
    test_fill_real("eval.z", z, M * (D + 1), 1.0);
    memset(&p, 0, sizeof p);
    for (i = 0; i < M; i++) {
        y[i] = i % C;
        part[i] = i % 5;
    }
    p.ctx = ctx;
    p.m = M;
    p.e = D + 1;
    p.c = C;
    p.z = z;
    p.y = y;
    p.part = part;
    p.l2 = 0.3;
    p.skip = 2;
    p.count = M - M / 5;
    p.weight = weight;
    p.logit = logit;
    p.rest = rest;
    p.grad = g;
    p.loss = loss;
    ctr_probe_eval_(&p, w, grad);
    for (i = 0; i < SIZE; i++) {
        double keep = w[i], up, down;
        w[i] = keep + h;
        up = ctr_probe_eval_(&p, w, other);
        w[i] = keep - h;
        down = ctr_probe_eval_(&p, w, other);
        w[i] = keep;
        worst = fmax(worst, fabs((up - down) / (2 * h) - grad[i]));
    }
    test_error("by central differences", worst, test_bound(1e-9, 1e-4));
}

/* B^-1 v by the blocks, multiplied back by B written out. */
static void test_probe_factor(ctr_ctx *ctx)
{
    enum { M = 1100, E = 150, C = 3 };
    ctr_real *z = filled("eval.factor", M * E), *logit = filled("eval.logit", M * C);
    ctr_real *chol = test_reals(E * E), *turn = test_reals(E * C), *weighted = test_reals(1024 * E);
    double *b = test_doubles(E * E), *v = test_doubles(E * C), *x = test_doubles(E * C), worst = 0;
    ctr_probe_ p;
    int64_t i, j, k;
    test_group("probe: the factored matrix");
    memset(&p, 0, sizeof p);
    p.ctx = ctx;
    p.m = M;
    p.e = E;
    p.c = C;
    p.z = z;
    p.l2 = 0.01;
    p.logit = logit;
    p.chol = chol;
    p.turn = turn;
    p.weighted = weighted;
    for (i = 0; i < M; i++) {
        double sum = 0, square = 0, a;
        for (k = 0; k < C; k++) {
            a = exp((double)logit[i * C + k]);
            sum += a;
            square += a * a;
        }
        a = (1 - square / (sum * sum)) / (double)(C * M);
        for (j = 0; j < E; j++)
            for (k = 0; k < E; k++)
                b[j * E + k] += a * (double)z[i * E + j] * (double)z[i * E + k];
    }
    for (j = 0; j < E; j++) b[j * E + j] += 0.01;
    golden_fill("eval.v", v, E * C, 1.0);
    memcpy(x, v, E * C * sizeof *x);
    ctr_probe_factor_(&p);
    ctr_probe_solve_(&p, x);
    for (i = 0; i < E; i++)
        for (k = 0; k < C; k++) {
            double sum = 0;
            for (j = 0; j < E; j++) sum += b[i * E + j] * x[j * C + k];
            worst = fmax(worst, fabs(sum - v[i * C + k]));
        }
    test_error("B (B^-1 v) - v", worst, test_bound(1e-12, 1e-4));
    free(z);
    free(logit);
    free(chol);
    free(turn);
    free(weighted);
    free(b);
    free(v);
    free(x);
}

static void test_probe_grid(ctr_ctx *ctx)
{
    int32_t y[300], ty[400], predicted[400];
    ctr_real *x = classes_make("eval.train", 300, 12, 4, y);
    ctr_real *t = classes_make("eval.test", 400, 12, 4, ty);
    ctr_points train = ctr_points_make(300, 12, x, y), test = ctr_points_make(400, 12, t, ty);
    ctr_probe_config c;
    ctr_probe_result r, again;
    int64_t i, right = 0;
    test_group("probe with held-out points");
    ctr_probe_config_init(&c);
    test_true("chosen", ctr_probe_run(ctx, &train, &test, NULL, predicted, &r));
    test_true("ten parts, so each point once", r.held_out == 300 && r.points == 300);
    test_true("from the grid", r.l2 <= 1 && r.l2 > 0.9e-5 && r.converged);
    test_true("about as good as the best of the grid", r.top1 >= 0.7525 - 0.025);
    for (i = 0; i < 400; i++) right += predicted[i] == ty[i];
    test_true("predictions are what is counted", right == r.correct && r.counted == 400);
    test_true("described", strstr(r.text, "300 labels") && strstr(r.text, "in 10 parts") &&
                               strlen(r.text) < sizeof r.text - 1);
    for (i = 0; i < c.l2_count / 2; i++) { /* the order of the grid does not matter */
        double swap = c.l2[i];
        c.l2[i] = c.l2[c.l2_count - 1 - i];
        c.l2[c.l2_count - 1 - i] = swap;
    }
    ctr_probe_run(ctx, &train, &test, &c, NULL, &again);
    test_bytes("grid in any order", &r, &again, sizeof r);
    c.folds = 1;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &r);
    test_true("one part", r.held_out >= 26 && r.held_out <= 30);
    c.labels_per_class = 10;
    c.folds = 0;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &r);
    test_true("ten labels a class", r.points == 40 && strstr(r.text, "(10 a class)"));
    test_true("are better than chance, worse than all", r.top1 > 0.4 && r.top1 < 0.7525);
    c.seed = 2;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &again);
    test_true("another seed draws others", again.train_loss != r.train_loss);
    test_fine(ctx, "no error");
    free(x);
    free(t);
}

static void test_probe_edges(ctr_ctx *ctx)
{
    int32_t y[300], all[300], predicted[300];
    ctr_real *x = classes_make("eval.train", 300, 12, 4, y);
    ctr_points train = ctr_points_make(300, 12, x, y), test = train;
    ctr_probe_config c = ctr_probe_config_default();
    ctr_probe_result r, s;
    int i;
    test_group("probe at the edge");
    c.l2_count = 1;
    c.l2[0] = 0.1;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &r);
    for (i = 0; i < 300; i++) {
        x[i * 12 + 5] = 1234.5f; /* constant features drop out, large or small */
        all[i] = i % 3 ? -1 : y[i];
    }
    test_true("a constant feature", ctr_probe_run(ctx, &train, &test, &c, NULL, &s));
    test_true("is no use and no harm", s.converged && s.train_loss > r.train_loss);
    train.labels = all;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &s);
    test_equal("unlabelled points are left out", (double)s.points, 100);
    test_equal("but tested where the test has labels", (double)s.counted, 300);
    for (i = 0; i < 300; i++) all[i] = 0;
    test_true("one class", ctr_probe_run(ctx, &train, &test, NULL, predicted, &s));
    test_true("is all it says", predicted[7] == 0 && s.train_top1 == 1 && s.classes == 1);
    for (i = 1; i < 300; i++) all[i] = -1;
    all[0] = 2;
    test_true("one point", ctr_probe_run(ctx, &train, &test, NULL, predicted, &s));
    test_true("is all it knows", s.points == 1 && s.held_out == 0 && predicted[9] == 2);
    all[1] = 1;
    test_true("two points of two classes", ctr_probe_run(ctx, &train, &test, NULL, NULL, &s));
    test_true("both learnt", s.train_top1 == 1 && s.held_out == 0);
    train.n = 1;
    all[0] = 0;
    test_true("n = 1", ctr_probe_run(ctx, &train, &test, NULL, NULL, &s));
    train.n = 300;
    memset(x, 0, 3600 * sizeof *x);
    train.labels = y;
    test_true("all zero", ctr_probe_run(ctx, &train, &test, NULL, NULL, &s));
    test_true("converges", s.converged);
    test_error("gives the largest class", fabs(s.train_top1 - 100.0 / 300), 1e-12);
    test_fine(ctx, "none of that is an error");
    for (i = 0; i < 300; i++) all[i] = -1;
    train.labels = all;
    ctr_probe_run(ctx, &train, &test, NULL, NULL, &s);
    test_fails(ctx, "no label", CTR_E_VALUE, "has a label");
    train.labels = y;
    c.l2[0] = 0;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &s);
    test_fails(ctx, "l2 0", CTR_E_VALUE, "l2[0]");
    c.l2[0] = 1;
    c.held_out = 0.9;
    ctr_probe_run(ctx, &train, &test, &c, NULL, &s);
    test_fails(ctx, "too much held out", CTR_E_VALUE, "held_out");
    poison(&x[12 * 299]);
    ctr_probe_run(ctx, &train, &test, NULL, NULL, &s);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 299 of the t");
    free(x);
}

/* ----------------------------------------------------------------------------------------- maps */

static void test_pca_golden(ctr_ctx *ctx)
{
    golden_file g;
    ctr_real x[240], mean[6], axes[36], out[240], some[120];
    double column[6] = { 0 }, variance[6], total;
    const double *v, *a, *p;
    double bound = test_bound(1e-9, 3e-5), worst = 0;
    ctr_points data = ctr_points_make(40, 6, x, NULL);
    int i, j;
    test_group("principal components against numpy");
    test_fill_real("pca", x, 240, 1.0);
    for (i = 0; i < 240; i++) x[i] *= (ctr_real)(6 - i % 6);
    for (i = 0; i < 240; i++) column[i % 6] += (double)x[i] / 40;
    if (!test_golden_open(&g, "golden_eval.txt")) return;
    test_true("fitted", ctr_pca_fit(ctx, &data, 6, mean, axes, variance, &total));
    test_true("applied", ctr_pca_apply(ctx, &data, 6, mean, axes, out));
    v = golden_get(&g, "pca:variance", NULL);
    a = golden_get(&g, "pca:axes", NULL);
    p = golden_get(&g, "pca:projection", NULL);
    test_true("golden values", v && a && p);
    for (i = 0; v && a && p && i < 6; i++) {
        double largest = 0;
        test_error("variance", fabs(variance[i] / v[i] - 1), bound);
        test_error("mean", fabs((double)mean[i] - column[i]), test_bound(1e-14, 1e-6));
        total -= variance[i];
        for (j = 0; j < 6; j++) {
            double axis = (double)axes[i * 6 + j];
            test_error("axis", fabs(fabs(axis) - a[i * 6 + j]), bound);
            if (fabs(axis) > fabs(largest)) largest = axis;
        }
        test_true("its largest entry is positive", largest > 0);
    }
    test_error("the variances sum to the total", fabs(total), test_bound(1e-12, 1e-5));
    for (i = 0; p && i < 40; i++)
        for (j = 0; j < 3; j++)
            worst = fmax(worst, fabs(fabs((double)out[i * 6 + j]) - p[i * 3 + j]));
    test_error("projection", worst, 3 * bound);
    ctr_pca_fit(ctx, &data, 3, mean, some, variance, NULL);
    test_near("three of them are the same three", some, column, 0, 0, 1);
    for (worst = 0, i = 0; i < 18; i++) worst = fmax(worst, fabs((double)(some[i] - axes[i])));
    test_error("three of six", worst, bound);
    test_fine(ctx, "no error");
    golden_close(&g);
}

/* Fewer points than dimensions, a plane within them, and a few directions out of many. */
static void test_pca_shapes(ctr_ctx *ctx)
{
    enum { N = 50, D = 300, K = 4 };
    ctr_real *x = test_reals(N * D), *noise = filled("eval.noise", N * D), mean[D], axes[K * D];
    double variance[K], direction[2][D], a, b, *u = test_doubles(N);
    ctr_points data = ctr_points_make(N, D, x, NULL);
    int i, j;
    test_group("principal components of other shapes");
    golden_fill("eval.direction", direction[0], D, 1.0);
    golden_fill("eval.direction2", direction[1], D, 0.3);
    golden_fill("eval.u", u, N, 1.0);
    for (i = 0; i < N; i++)
        for (j = 0; j < D; j++)
            x[i * D + j] = (ctr_real)(5 + u[i] * direction[0][j] +
                                      u[(i * 7) % N] * direction[1][j]);
    test_true("a plane in 300 dimensions", ctr_pca_fit(ctx, &data, K, mean, axes, variance, NULL));
    test_true("two variances", variance[0] > variance[1] && variance[1] > 0.1);
    test_error("the others nothing", variance[2] / variance[0], 1e-10);
    for (j = 0, a = b = 0; j < D; j++) {
        a += (double)axes[j] * (double)axes[j];
        b += (double)axes[j] * (double)axes[D + j];
    }
    test_error("unit axes", fabs(a - 1), 1e-5);
    test_error("at right angles", fabs(b), 1e-5);
    for (i = 0; i < N * D; i++) x[i] += CTR_TEST_R(0.3) * noise[i];
    test_true("with noise", ctr_pca_fit(ctx, &data, K, mean, axes, variance, NULL));
    for (j = 0, a = 0; j < N; j++) { /* the variance along the first axis, counted */
        double t = 0;
        for (i = 0; i < D; i++) t += ((double)x[j * D + i] - (double)mean[i]) * (double)axes[i];
        a += t * t / (N - 1);
    }
    test_error("variance is what the axis sees", fabs(a / variance[0] - 1), 1e-5);
    for (i = 0; i < N * D; i++) x[i] = 3;
    test_true("constant points", ctr_pca_fit(ctx, &data, K, mean, axes, variance, NULL));
    test_true("vary nowhere", variance[0] == 0 && axes[5] == 0 && mean[7] == 3);
    data.n = 1;
    test_true("one point", ctr_pca_fit(ctx, &data, 1, mean, axes, variance, NULL));
    test_equal("varies nowhere", variance[0], 0);
    test_fine(ctx, "none of that is an error");
    ctr_pca_fit(ctx, &data, 301, mean, axes, variance, NULL);
    test_fails(ctx, "more axes than dimensions", CTR_E_VALUE, "k must be");
    poison(&x[2]);
    ctr_pca_fit(ctx, &data, 1, mean, axes, variance, NULL);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 0");
    free(x);
    free(noise);
    free(u);
}

/* P, divergence and gradient at a given map against float64 numpy. */
static void test_tsne_numpy(ctr_ctx *ctx)
{
    enum { N = 40, D = 6 };
    ctr_real *x = filled("eval.tsne", N * D);
    double probe[N * N], y[2 * N], p = 0, dot = 0, square = 0, z = 0, kl;
    ctr_points data = ctr_points_make(N, D, x, NULL);
    ctr_tsne_ t;
    ctr_bag_ bag;
    int i, c;
    test_group("t-SNE against numpy");
    golden_fill("eval.probe", probe, N * N, 1.0);
    golden_fill("eval.map", y, 2 * N, 1.0);
    ctr_bag_open_(&bag, ctx);
    test_true("opened", ctr_tsne_open_(&t, &bag, &data, 0));
    t.perplexity = 10;
    ctr_tsne_neighbours_(&t);
    for (i = 0; i < N * N; i++) p += (double)t.p[i] * probe[i];
    test_error("P", fabs(p + 0.02992307471), 1e-6); /* the bisection ends at 1e-5 */
    for (i = 0; i < N; i++) {
        t.y0[i] = (ctr_real)y[2 * i];
        t.y1[i] = (ctr_real)y[2 * i + 1];
    }
    ctr_parallel_(ctx, (N + CTR_TSNE_CHUNK_ - 1) / CTR_TSNE_CHUNK_, ctr_tsne_force_job_, &t);
    for (i = 0; i < N; i++) z += t.force[5 * i + 4];
    for (i = 0; i < N; i++)
        for (c = 0; c < 2; c++) {
            double grad = 4 * (t.force[5 * i + c] - t.force[5 * i + 2 + c] / z);
            dot += grad * probe[i * N + c];
            square += grad * grad;
        }
    test_error("gradient", fabs(dot + 0.01077909762), 1e-6);
    test_error("its square", fabs(square - 0.00956190293), 1e-6);
    kl = ctr_tsne_divergence_(&t);
    test_error("divergence", fabs(kl - 1.350135917), test_bound(1e-5, 2e-5));
    ctr_bag_close_(&bag);
    test_fine(ctx, "no error");
    free(x);
}

/* Five blobs that are far apart stay apart, and the divergence falls as the map is worked on. */
static void test_tsne_map(ctr_ctx *ctx)
{
    enum { N = 203, D = 10 };
    ctr_real *x = test_reals(N * D), *y = test_reals(2 * N);
    double *noise = test_doubles(N * D), centre[50], before, after, own = 0, other = 1e300;
    ctr_points data = ctr_points_make(N, D, x, NULL);
    ctr_tsne_config c;
    int i, j;
    test_group("t-SNE of five blobs");
    golden_fill("eval.blobs", centre, 50, 4.0);
    golden_fill("eval.blob", noise, N * D, 0.5);
    for (i = 0; i < N * D; i++) x[i] = (ctr_real)(centre[(i / D) % 5 * D + i % D] + noise[i]);
    ctr_tsne_config_init(&c);
    c.perplexity = 15;
    c.unit_rows = 0;
    c.iterations = 0;
    test_true("the start", ctr_tsne_map(ctx, &data, &c, y, &before));
    c.iterations = 600;
    test_true("mapped", ctr_tsne_map(ctx, &data, &c, y, &after));
    test_true("the divergence fell", after > 0 && after < 0.5 * before && after < 1);
    for (i = 0; i < N; i++) /* single link: the farthest nearest neighbour, the nearest stranger */
        for (j = 0; j < N; j++) {
            double a = (double)(y[2 * i] - y[2 * j]), b = (double)(y[2 * i + 1] - y[2 * j + 1]);
            double far = sqrt(a * a + b * b);
            if (i % 5 != j % 5) other = fmin(other, far);
            else own += far / ((double)N * (double)N / 5);
        }
    test_true("blobs are apart", other > own);
    for (i = 0, before = after = 0; i < N; i++) {
        before += (double)y[2 * i] / (double)N;
        after += (double)y[2 * i + 1] / (double)N;
    }
    test_error("centred", fabs(before) + fabs(after), 1e-4);
    test_fine(ctx, "no error");
    free(x);
    free(y);
    free(noise);
}

static void test_tsne_edges(ctr_ctx *ctx)
{
    ctr_real x[60] = { 0 }, y[40];
    ctr_points data = ctr_points_make(3, 3, x, NULL);
    ctr_tsne_config c = ctr_tsne_config_default();
    double kl;
    int64_t n;
    int i, finite = 1;
    test_group("t-SNE at the edge");
    test_fill_real("eval.few", x, 60, 1.0);
    for (n = 1; n <= 20; n++) {
        data.n = n;
        poison(&y[0]);
        poison(&y[2 * n - 1]);
        test_true("mapped", ctr_tsne_map(ctx, &data, &c, y, &kl));
        for (i = 0; i < 2 * n; i++) finite &= ctr_real_finite_(y[i]);
    }
    test_true("1 to 20 points are finite", finite);
    for (i = 0; i < 60; i++) x[i] = 1;
    test_true("equal points", ctr_tsne_map(ctx, &data, &c, y, &kl));
    for (i = 0; i < 40; i++) finite &= ctr_real_finite_(y[i]);
    test_true("are finite", finite);
    memset(x, 0, sizeof x);
    data.d = 1;
    test_true("zero rows of one number", ctr_tsne_map(ctx, &data, &c, y, NULL));
    for (i = 0; i < 40; i++) finite &= ctr_real_finite_(y[i]);
    test_true("are finite too", finite);
    test_fine(ctx, "none of that is an error");
    c.perplexity = 1;
    ctr_tsne_map(ctx, &data, &c, y, NULL);
    test_fails(ctx, "perplexity", CTR_E_VALUE, "perplexity");
    data.n = 20000;
    ctr_tsne_map(ctx, &data, NULL, y, NULL);
    test_fails(ctx, "too many points", CTR_E_SHAPE, "16384");
    data.n = 20;
    poison(&x[19]);
    ctr_tsne_map(ctx, &data, NULL, y, NULL);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 19");
}

/* ------------------------------------------------------------------------------ threads, memory */

enum { ALL_N = 700, ALL_D = 33 };

typedef struct everything {
    int64_t index[ALL_N * 3];
    ctr_real cosine[ALL_N * 3], mean[ALL_D], axes[2 * ALL_D], map[2 * ALL_N];
    int32_t knn[ALL_N], probe[ALL_N];
    double variance[2], divergence;
    ctr_knn_result knn_result;
    ctr_probe_result probe_result;
    ctr_retrieval retrieval;
} everything;

/* Each public function once; stops at the first error. */
static int run_everything(ctr_ctx *ctx, int64_t n, const ctr_real *x, const int32_t *y,
                          everything *e)
{
    ctr_points data = ctr_points_make(n, ALL_D, x, y);
    ctr_tsne_config t = ctr_tsne_config_default();
    ctr_probe_config p = ctr_probe_config_default();
    memset(e, 0, sizeof *e);
    t.iterations = 30;
    t.exaggerated = 10;
    p.folds = 2;
    return ctr_neighbors_find(ctx, &data, NULL, 3, e->index, e->cosine) &&
           ctr_knn_classify(ctx, &data, NULL, NULL, e->knn, &e->knn_result) &&
           ctr_retrieval_measure(ctx, n, 3, e->index, y, n, y, 1, &e->retrieval) &&
           ctr_probe_run(ctx, &data, &data, &p, e->probe, &e->probe_result) &&
           ctr_pca_fit(ctx, &data, 2, e->mean, e->axes, e->variance, NULL) &&
           ctr_tsne_map(ctx, &data, &t, e->map, &e->divergence);
}

static void test_threads(void)
{
    static everything one, many;
    static int32_t y[ALL_N];
    ctr_real *x = classes_make("eval.all", ALL_N, ALL_D, 6, y);
    int threads;
    test_group("the same bits for any number of threads");
    for (threads = 1; threads <= 4; threads++) {
        ctr_ctx *ctx = test_ctx(threads, CTR_KERNELS_AUTO);
        test_true("ran", run_everything(ctx, ALL_N, x, y, &many));
        test_fine(ctx, "no error");
        test_equal("nothing is left in memory beyond what kernels keep",
                   (double)(ctr_memory_stats(ctx).held > ((size_t)64 << 20)), 0);
        if (threads == 1) one = many;
        test_bytes("all results", &one, &many, sizeof one);
        ctr_ctx_destroy(ctx);
    }
    free(x);
}

/* AVX2 and scalar t-SNE, and all else, agree within rounding. */
static void test_kernels(void)
{
    static everything a, b;
    static int32_t y[ALL_N];
    ctr_real *x = classes_make("eval.all", ALL_N, ALL_D, 6, y);
    ctr_ctx *scalar = test_ctx(2, CTR_KERNELS_SCALAR), *best = test_ctx(2, CTR_KERNELS_AUTO);
    double worst = 0;
    int i, differ = 0;
    test_group("scalar kernels and the best ones");
    test_true("scalar ran", run_everything(scalar, ALL_N, x, y, &a));
    test_true("best ran", run_everything(best, ALL_N, x, y, &b));
    for (i = 0; i < ALL_N * 3; i++)
        worst = fmax(worst, fabs((double)(a.cosine[i] - b.cosine[i])));
    test_error("cosines", worst, 2e-6);
    for (i = 0; i < ALL_N; i++) differ += a.probe[i] != b.probe[i];
    test_error("predictions that differ", differ, 2);
    worst = a.probe_result.train_loss / b.probe_result.train_loss - 1;
    test_error("probe's loss", fabs(worst), 1e-4);
    test_error("divergence", fabs(a.divergence / b.divergence - 1), 1e-3);
    ctr_ctx_destroy(scalar);
    ctr_ctx_destroy(best);
    free(x);
}

static void test_memory(void)
{
    static everything e;
    static int32_t y[ALL_N];
    ctr_real *x = classes_make("eval.all", ALL_N, ALL_D, 6, y);
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
        done = run_everything(ctx, 60, x, y, &e);
        if (!done) failed += test_fails(ctx, "a failed allocation", CTR_E_MEMORY, "memory");
        ctr_ctx_destroy(ctx);
        test_true("gives all back", watch.live == 0 && watch.bad_frees == 0);
    }
    test_true("and without failure it runs through", done && failed > 60);
    free(x);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_eval", argc, argv);
    ctx = test_ctx(2, CTR_KERNELS_AUTO);
    test_neighbours(ctx);
    test_neighbour_edges(ctx);
    test_neighbours_device();
    test_knn_golden(ctx);
    test_knn_edges(ctx);
    test_retrieval(ctx);
    test_confusion(ctx);
    test_probe_loss(ctx);
    test_probe_gradient(ctx);
    test_probe_factor(ctx);
    test_probe_grid(ctx);
    test_probe_edges(ctx);
    test_pca_golden(ctx);
    test_pca_shapes(ctx);
    test_tsne_numpy(ctx);
    test_tsne_map(ctx);
    test_tsne_edges(ctx);
    ctr_ctx_destroy(ctx);
    test_threads();
    test_kernels();
    test_memory();
    return test_end();
}
