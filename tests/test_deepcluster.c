/* test_deepcluster.c - DeepCluster v1: clusters of all images before each epoch, epochs that take
 * every cluster equally often, a new classifier each time.
 * run: float double asan tsan smoke
 *
 * 1. Three steps against PyTorch in float64 (tests/golden/golden_deepcluster.txt) with and without
 *    Sobel's slopes: losses, accuracy, parameters, running statistics.
 * 2. The clustering is that of the public pieces in their order; it sees features before the last
 *    ReLU; NMI is that of the last two; the classifier is new.
 * 3. Orders: each cluster equally often; a loader takes them, also in the middle of an epoch.
 * 4. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed; failing allocations; a steady step allocates nothing and is planned.
 * 5. Reports; configurations, batches and data sets that are refused.
 */
#include "training.h"

enum { SOBEL, COLOUR, KINDS };
static const char *const kinds[KINDS] = { "dc1", "dc1c" };

static ctr_deepcluster_v1_config config_of(int kind, int64_t width, int64_t side, int64_t images,
                                           int64_t clusters)
{
    ctr_deepcluster_v1_config c = ctr_deepcluster_v1_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = width;
    c.encoder.image_size = side;
    c.images = images;
    c.clusters = clusters;
    c.sobel = kind == SOBEL;
    c.aug.height = c.aug.width = side;
    c.optim.decay = 1e-4;
    return c;
}

static void one_epoch(void *user, const char *name, int64_t *value)
{
    (void)user;
    if (!strcmp(name, "bank.epochs")) *value = 1;
}

static void no_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    (void)user;
    (void)name;
    (void)t;
    (void)conv;
}

/* As if the images [n] had been clustered so. */
static void set_clusters(ctr_ctx *ctx, ctr_method *method, const ctr_real *cluster, int64_t n)
{
    ctr_visitor v;
    v.user = NULL;
    v.tensor_fn = no_tensor;
    v.number_fn = one_epoch;
    ctr_method_visit(method, &v);
    ctr_tensor_write(ctx, model_tensor(method, "bank.clusters"), cluster, n);
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_var v = model_var(name, t, conv);
    if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5))
        model_fill_var(((model_walk *)user)->ctx, &v, 0);
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5))
        model_compare((model_walk *)user, name, t, conv);
}

static void golden_steps(golden_file *g, int kind)
{
    static const double rate[3] = { 0.1, 0.08, 0.05 };
    ctr_deepcluster_v1_config c = config_of(kind, 16, 16, 15, 12);
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = ctr_deepcluster_v1_create(ctx, &c);
    const double *losses, *hits;
    ctr_real cluster[15];
    char name[64];
    ctr_report report;
    model_walk w;
    double e, worst = 0;
    int t, i;
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.g = g;
    w.kind = kinds[kind];
    w.bound = test_bound(1e-8, 5e-2);
    snprintf(name, sizeof name, "%s:loss", kinds[kind]);
    losses = golden_get(g, name, NULL);
    snprintf(name, sizeof name, "%s:accuracy", kinds[kind]);
    hits = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses && hits)) return;
    model_visit(method, &w, fill_tensor);
    for (i = 0; i < 15; i++) cluster[i] = (ctr_real)(5 * i % 12);
    set_clusters(ctx, method, cluster, 15);
    for (t = 0; t < 3; t++) {
        int64_t index[6];
        ctr_batch batch;
        for (i = 0; i < 6; i++) index[i] = (2 * i + 3 * (t + 1)) % 15;
        snprintf(name, sizeof name, "views:%d", t + 1);
        batch = model_batch(name, 6, 1, 16, 16);
        batch.index = index;
        test_true("step", ctr_method_step(method, &batch, rate[t], &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t + 1);
        e = fabs(report.loss - losses[t]) / losses[t];
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        if (TEST_DOUBLE || !t) test_error("accuracy", fabs(report.accuracy - hits[t]), 1e-12);
        worst = e > worst ? e : worst;
        model_batch_free(&batch);
    }
    model_visit(method, &w, compare_tensor);
    test_true("all of the network was compared", w.compared >= 40);
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", kinds[kind], worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(void)
{
    golden_file g;
    int i;
    if (!test_golden_open(&g, "golden_deepcluster.txt")) return;
    for (i = 0; i < KINDS; i++)
        if ((!MODEL_SLOW && !test_quick()) || i == SOBEL) golden_steps(&g, i);
    golden_close(&g);
}

/* ---------------------------------------------------------------------------------- a small run */

static ctr_method *make_run(ctr_ctx *ctx, const training *t)
{
    ctr_deepcluster_v1_config c = config_of(t->kind, 4, t->side, t->images, 5);
    c.axes = 6;
    c.after_relu = t->rows == 1;
    return ctr_deepcluster_v1_create(ctx, &c);
}

static training run_of(int kind)
{
    training t = training_default(kinds[kind], make_run);
    t.kind = kind;
    return t;
}

/* ------------------------------------------------------------------------------- the clustering */

/* Features of the centre, whitened, at length 1, k-means: by the library's public functions. */
static void by_hand(training_run *r, uint64_t seed, int32_t *cluster)
{
    ctr_aug_config clean = r->method->augs[0];     /* the same interpolation */
    ctr_whiten_config whiten = ctr_whiten_config_default();
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_real x[24 * 16], y[24 * 6], mean[16], matrix[6 * 16], centroids[5 * 6];
    clean.center_crop = 1;
    clean.flip_p = 0;
    whiten.k = 6;
    c.k = 5;
    c.seed = seed;
    c.min_points = 0;
    ctr_method_represent_dataset(r->ctx, r->method, r->dataset, &clean, 1, x, NULL);
    ctr_whiten_fit(r->ctx, 24, 16, x, &whiten, mean, matrix);
    ctr_whiten_apply(r->ctx, 24, 16, x, 6, mean, matrix, 1, y);
    ctr_kmeans_run(r->ctx, 24, 6, y, &c, centroids, cluster, NULL, NULL);
}

static void read_clusters(training_run *r, int32_t *cluster)
{
    ctr_real x[24];
    int i;
    ctr_tensor_read(r->ctx, model_tensor(r->method, "bank.clusters"), x, 24);
    for (i = 0; i < 24; i++) cluster[i] = (int32_t)x[i];
}

static void clustering(int kind)
{
    training t = run_of(kind);
    training_run r;
    ctr_report report;
    ctr_batch batch;
    ctr_agreement agreement;
    int32_t want[24], got[24], last[24];
    int epoch;
    t.rows = 1;                                    /* after the ReLU, as represent has it */
    training_begin(&r, &t);
    for (epoch = 0; epoch < 3; epoch++) {
        by_hand(&r, 1 + (uint64_t)epoch, want);
        test_true("begin", ctr_method_begin(r.method, r.loader));
        read_clusters(&r, got);
        test_bytes("the clusters are those", got, want, sizeof got);
        test_true("a step", ctr_loader_next(r.ctx, r.loader, &batch) &&
                  ctr_method_step(r.method, &batch, 0.05, &report));
        if (epoch) {
            ctr_agreement_measure(r.ctx, 24, got, last, &agreement);
            test_error("NMI", fabs(report.nmi - agreement.nmi_geometric), 1e-15);
        } else {
            test_equal("NMI of the first clusters", report.nmi, -1);
        }
        memcpy(last, got, sizeof last);
    }
    test_fine(r.ctx, "clustering");
    training_end(&r);
}

/* A last block whose sum is far below 0 leaves nothing after the ReLU, and all before it. */
static void before_relu(void)
{
    training t = run_of(COLOUR);
    int after;
    for (after = 0; after < 2; after++) {
        training_run r;
        int32_t cluster[24];
        int seen[5] = { 0 }, count = 0, i;
        t.rows = after;
        training_begin(&r, &t);
        ctr_tensor_fill(r.ctx, model_tensor(r.method, "encoder.layer3.0.bn2.bias"), -1000);
        test_true("begin", ctr_method_begin(r.method, r.loader));
        read_clusters(&r, cluster);
        for (i = 0; i < 24; i++) seen[cluster[i]] = 1;
        for (i = 0; i < 5; i++) count += seen[i];
        test_equal(after ? "clusters of nothing" : "clusters before the ReLU", count,
                   after ? 1 : 5);
        training_end(&r);
    }
}

/* Normal numbers of deviation 0.01, others each time; biases 0 again. */
static void classifier(void)
{
    ctr_deepcluster_v1_config c = config_of(COLOUR, 4, 8, 24, 20);
    training t = run_of(COLOUR);
    training_run r;
    ctr_method *method;
    ctr_tensor *weight, *bias;
    ctr_real x[2][320], b[20];
    double sum = 0, square = 0;
    int i, epoch;
    training_begin(&r, &t);
    method = ctr_deepcluster_v1_create(r.ctx, &c);
    weight = model_tensor(method, "classifier.weight");
    bias = model_tensor(method, "classifier.bias");
    for (epoch = 0; epoch < 2; epoch++) {
        ctr_tensor_fill(r.ctx, weight, 7);
        ctr_tensor_fill(r.ctx, bias, 7);
        test_true("begin", ctr_method_begin(method, r.loader));
        ctr_tensor_read(r.ctx, weight, x[epoch], 320);
        ctr_tensor_read(r.ctx, bias, b, 20);
        for (i = 0; i < 20; i++) test_equal("a new bias", (double)b[i], 0);
        for (i = 0; i < 320; i++) {
            sum += (double)x[epoch][i];
            square += (double)x[epoch][i] * (double)x[epoch][i];
        }
    }
    test_true("another one each epoch", memcmp(x[0], x[1], sizeof x[0]) != 0);
    test_error("mean", fabs(sum / 640), 0.002);    /* 5 standard deviations */
    test_error("deviation", fabs(sqrt(square / 640) - 0.01), 0.0014);
    ctr_method_destroy(method);
    training_end(&r);
}

/* ----------------------------------------------------------------------------------- the orders */

/* Clusters of 1, 3, 20, 0 and 36 of 60 images: 16 of each that has some, 4 of these 64 left out. */
static void orders(void)
{
    static const int64_t size[5] = { 1, 3, 20, 0, 36 };
    enum { N = 60 };
    ctr_deepcluster_v1_config c = config_of(COLOUR, 4, 8, N, 5);
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_method *method = ctr_deepcluster_v1_create(ctx, &c);
    ctr_real cluster[N];
    int64_t order[N], again[N], taken[N], i, j, k, first[5] = { 0 };
    uint64_t seed;
    for (i = 0, k = 0; k < 5; k++)
        for (j = 0; j < size[k]; j++, i++) cluster[i * 7 % N] = (ctr_real)k;
    set_clusters(ctx, method, cluster, N);
    for (seed = 0; seed < 400; seed++) {
        int64_t count[5] = { 0 }, wrong = 0;
        memset(taken, 0, sizeof taken);
        method->order_fn(method, seed, 3, N, order);
        for (i = 0; i < N; i++) {
            count[(int)cluster[order[i]]]++;
            taken[order[i]]++;
        }
        for (i = 0; i < N; i++) wrong += size[(int)cluster[i]] > 16 && taken[i] > 1;
        test_equal("images of large clusters that come twice", (double)wrong, 0);
        for (k = 0; k < 5; k++)
            test_true("each cluster as often", size[k] ? count[k] >= 12 && count[k] <= 16
                                                       : count[k] == 0);
        first[(int)cluster[order[0]]]++;
    }
    for (k = 0; k < 5; k++)                        /* 5 standard deviations */
        if (size[k]) test_error("cluster of the first image", fabs((double)first[k] - 100), 44);
    method->order_fn(method, 1, 3, N, order);
    method->order_fn(method, 1, 3, N, again);
    test_bytes("the same epoch", order, again, sizeof order);
    method->order_fn(method, 1, 4, N, again);
    test_true("another epoch", memcmp(order, again, sizeof order) != 0);
    cluster[0] = (ctr_real)1e30;                    /* out of a damaged file: cluster 0 */
    cluster[1] = -1;
    set_clusters(ctx, method, cluster, N);
    method->order_fn(method, 1, 4, N, again);
    for (i = 0; i < N; i++) test_true("an image", again[i] >= 0 && again[i] < N);
    test_fine(ctx, "orders");
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void backwards(void *user, uint64_t seed, int64_t epoch, int64_t n, int64_t *order)
{
    int64_t i;
    (void)seed;
    for (i = 0; i < n; i++) order[i] = (n - 1 - i + epoch * *(int64_t *)user) % n;
}

/* A loader goes over to another order from its next batch on, whatever it has prepared. */
static void loader_orders(int threads)
{
    training t = run_of(COLOUR);
    training_run r;
    ctr_batch b;
    int64_t turn = 5, own[6], wrong = 0;
    int i, k;
    t.config.threads = threads;
    training_begin(&r, &t);
    test_true("a batch", ctr_loader_next(r.ctx, r.loader, &b));
    ctr_loader_order(r.loader, backwards, &turn);
    for (k = 1; k < 8; k++) {
        if (k == 4) test_true("the end", !ctr_loader_next(r.ctx, r.loader, &b));
        test_true("a batch", ctr_loader_next(r.ctx, r.loader, &b));
        for (i = 0; i < 6; i++)
            wrong += b.index[i] != (23 - (k % 4 * 6 + i) + (k > 3) * turn) % 24;
    }
    test_equal("images in another order", (double)wrong, 0);
    ctr_loader_seek(r.ctx, r.loader, 0, 2);
    test_true("a batch", ctr_loader_next(r.ctx, r.loader, &b) && b.index[0] == 11);
    ctr_loader_order(r.loader, NULL, NULL);
    ctr_loader_seek(r.ctx, r.loader, 0, 0);
    test_true("its own", ctr_loader_next(r.ctx, r.loader, &b));
    memcpy(own, b.index, sizeof own);
    ctr_loader_seek(r.ctx, r.loader, 0, 0);
    ctr_loader_order(r.loader, backwards, &turn);
    test_true("theirs", ctr_loader_next(r.ctx, r.loader, &b));
    test_true("they differ", memcmp(own, b.index, sizeof own) != 0);
    ctr_loader_order(NULL, NULL, NULL);
    test_fine(r.ctx, "loader");
    training_end(&r);
}

/* ---------------------------------------------------------------------- reports, configurations */

static void reports(void)
{
    training t = run_of(SOBEL);
    training_run r;
    ctr_report a;
    ctr_batch batch;
    const int64_t *index;
    int64_t outside[6] = { 0, 1, 2, 3, 4, 24 };
    ctr_dataset *part;
    ctr_loader_config c = ctr_loader_config_default();
    ctr_loader *other;
    char text[256];
    uint64_t before;
    training_begin(&r, &t);
    test_true("a batch", ctr_loader_next(r.ctx, r.loader, &batch));
    before = ctr_method_hash(r.method);
    test_equal("a step before any clustering", ctr_method_step(r.method, &batch, 0.1, &a), 0);
    test_fails(r.ctx, "a step before any clustering", CTR_E_STATE, "ctr_method_begin");
    part = ctr_dataset_part(r.ctx, r.dataset, 20);
    c.batch = 6;
    c.views = 1;
    c.augs = r.method->augs;
    other = ctr_loader_create(r.ctx, part, &c);
    test_equal("20 images", ctr_method_begin(r.method, other), 0);
    test_fails(r.ctx, "20 images", CTR_E_SHAPE, "made for 24 images");
    test_true("nothing has changed", ctr_method_hash(r.method) == before);
    ctr_loader_destroy(r.ctx, other);
    ctr_dataset_destroy(r.ctx, part);
    test_true("begin", ctr_method_begin(r.method, r.loader));
    test_true("step", training_steps(&r, 1, &a));
    test_error("chance", fabs(a.chance - log(5.0)), 1e-15);
    test_error("a classifier that knows nothing", fabs(a.loss - log(5.0)), 0.2);
    test_true("accuracy", a.accuracy >= 0 && a.accuracy <= 1);
    test_true("cosines", fabs(a.positive) < 1 && fabs(a.negative) < 1 &&
              a.positive != a.negative);
    test_true("a batch", ctr_loader_next(r.ctx, r.loader, &batch));
    index = batch.index;
    batch.index = NULL;
    test_equal("a batch that does not tell", ctr_method_step(r.method, &batch, 0.1, &a), 0);
    test_fails(r.ctx, "a batch that does not tell", CTR_E_VALUE, "index");
    batch.index = outside;
    test_equal("image 24 of 24", ctr_method_step(r.method, &batch, 0.1, &a), 0);
    test_fails(r.ctx, "image 24 of 24", CTR_E_VALUE, "24 images");
    batch.index = index;
    test_true("step", ctr_method_step(r.method, &batch, 0.1, &a));
    r.method->describe_fn(r.method, text, sizeof text);
    test_text("described", text, "deepcluster_v1 resnet8 width=4 stem=small channels=2 clusters=5 "
              "images=24 sobel=1");
    training_end(&r);
}

static void refused(ctr_ctx *ctx, const char *what, const ctr_deepcluster_v1_config *c,
                    const char *word)
{
    test_true(what, ctr_deepcluster_v1_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t held = ctr_memory_stats(ctx).held;
    ctr_deepcluster_v1_config c, d = ctr_deepcluster_v1_default();
    ctr_deepcluster_v1_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.clusters == 10000 && c.axes == 256 && c.iterations == 20 &&
              c.sobel && !c.after_relu && c.lr == 0.05 && c.optim.decay == 1e-5 &&
              c.optim.decay_all && c.optim.momentum == 0.9 && c.aug.crop_min == 0.08 &&
              c.aug.jitter_p == 0 && c.aug.gray_p == 0 && c.aug.flip_p == 0.5);
    refused(ctx, "no number of images", &c, "images");
    c = config_of(COLOUR, 4, 8, 4, 5);
    refused(ctx, "4 images, 5 clusters", &c, "images");
    c.clusters = 1;
    refused(ctx, "one cluster", &c, "clusters");
    c = config_of(COLOUR, 4, 8, 24, 5);
    c.axes = 257;
    refused(ctx, "257 axes", &c, "axes");
    c.axes = 8;
    c.iterations = 0;
    refused(ctx, "no iteration", &c, "iteration");
    c.iterations = 2;
    c.aug.flip_p = 2;
    refused(ctx, "flips with probability 2", &c, "flip");
    c.aug.flip_p = 0;
    c.encoder.depth = 9;
    refused(ctx, "depth 9", &c, "depth");
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

/* A network that sees slopes is not taken for one that sees images. */
static void slopes(void)
{
    training t = run_of(SOBEL);
    ctr_supervised_config c = ctr_supervised_default();
    training_run r;
    training_begin(&r, &t);
    test_true("save", ctr_checkpoint_save(r.method, "slopes.ctr", NULL));
    test_true("no encoder", ctr_encoder_create(r.ctx, "slopes.ctr", NULL) == NULL);
    test_fails(r.ctx, "no encoder", CTR_E_VALUE, "slopes.ctr: its network sees the slopes");
    c.classes = 3;
    c.weights = "slopes.ctr";
    test_true("no start", ctr_supervised_create(r.ctx, &c) == NULL);
    test_fails(r.ctx, "no start", CTR_E_VALUE, "slopes.ctr: its network sees the slopes");
    training_end(&r);
    remove("slopes.ctr");
}

int main(int argc, char **argv)
{
    training t[KINDS];
    int i;
    for (i = 0; i < KINDS; i++) t[i] = run_of(i);
    test_begin("test_deepcluster", argc, argv);
    test_group("configs");
    configs();
    test_group("clustering");
    for (i = 0; i < KINDS; i++) clustering(i);
    before_relu();
    classifier();
    test_group("orders");
    orders();
    loader_orders(1);
    loader_orders(3);
    test_group("reports");
    reports();
    slopes();
    test_group("a steady step allocates nothing and is planned");
    for (i = 0; i < KINDS; i++) {
        training two = t[i];
        two.config.threads = 2;
        training_steady(&two, 9, 3);  /* the rest of an epoch, between two clusterings */
        training_planned(&two);
    }
    test_group("the same bytes for any number of threads");
    training_same_bytes(&t[SOBEL]);
    test_group("the same bytes after stopping and resuming");
    for (i = 0; i < KINDS; i++) training_resumes(&t[i]);
    test_group("the fake device");
    training_same_on_device(&t[SOBEL]);
    test_group("the n-th allocation fails");
    training_failing_allocations(&t[SOBEL], 0, test_quick() || MODEL_SLOW ? 71 : 5);
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
