/* test_prototype.c - SwAV and DeepCluster v2: prototypes, codes, clusters, crops of two sizes.
 * run: float double asan tsan smoke
 *
 * 1. Three steps against PyTorch in float64 (tests/golden/golden_prototype.txt): losses, residuals,
 *    used prototypes, parameters, running statistics, queue and bank; prototypes frozen or not.
 * 2. Prototypes keep length 1; frozen ones stand still; the queue starts when it should; clusters
 *    are those of the bank, and the bank is what the images are.
 * 3. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed.
 * 4. A run whose n-th allocation fails; a steady step allocates nothing; the plan is what it needs.
 * 5. What a report says; configurations and batches that are refused.
 */
#include "training.h"

enum { PLAIN, QUEUED, FROZEN, LARGE, LATE, DEEP, DEEPU, KINDS };
static const char *const kinds[KINDS] = {
    "swav", "swavq", "swavf", "swavs", "late", "dc2", "dc2u"
};

/* ---------------------------------------------------------------------- small ones of each kind */

typedef struct sizes {
    int64_t width, side, small, hidden, dim, prototypes, queue, images;
} sizes;

static ctr_method *make_deepcluster(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_deepcluster_v2_config c = ctr_deepcluster_v2_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = s->width;
    c.encoder.image_size = s->side;
    c.proj_hidden = s->hidden;
    c.proj_dim = s->dim;
    c.prototypes = s->prototypes;
    c.images = s->images;
    c.small_views = 2;
    if (kind == DEEPU) c.freeze_prototypes_steps = 0;
    c.aug = ctr_aug_swav_default(s->side, 0);
    c.small_aug = ctr_aug_swav_default(s->side, 1);
    c.small_aug.height = c.small_aug.width = s->small;
    c.optim.decay = 1e-4;
    if (kind == DEEPU) {
        c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
        c.optim.decay_all = 1;
    }
    return ctr_deepcluster_v2_create(ctx, &c);
}

static ctr_method *make(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_swav_config c = ctr_swav_default();
    if (kind >= DEEP) return make_deepcluster(ctx, kind, s);
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = s->width;
    c.encoder.image_size = s->side;
    c.proj_hidden = s->hidden;
    c.proj_dim = s->dim;
    c.prototypes = s->prototypes;
    c.small_views = kind == LARGE ? 0 : 2;
    c.queue = kind == QUEUED || kind == LATE ? s->queue : 0;
    c.queue_start_epoch = kind == LATE;
    c.freeze_prototypes_steps = kind == FROZEN ? 2 : 0;
    c.aug = ctr_aug_swav_default(s->side, 0);
    c.small_aug = ctr_aug_swav_default(s->side, 1);
    c.small_aug.height = c.small_aug.width = s->small;
    c.optim.decay = 1e-4;
    if (kind == FROZEN) {
        c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
        c.optim.decay_all = 1;
    }
    return ctr_swav_create(ctx, &c);
}

/* A batch of two large and two small crops made by hand. */
typedef struct crops {
    ctr_batch batch;
    ctr_view_group group[2];
} crops;

static void crops_make(crops *c, const char *name, int64_t n, int64_t side, int64_t small)
{
    char text[32];
    ctr_batch b;
    snprintf(text, sizeof text, "views:%s", name);
    c->batch = model_batch(text, n, 2, side, side);
    snprintf(text, sizeof text, "small:%s", name);
    b = model_batch(text, n, 2, small, small);
    c->group[0].views = c->group[1].views = 2;
    c->group[0].h = c->group[0].w = side;
    c->group[1].h = c->group[1].w = small;
    c->group[0].pixels = c->batch.pixels;
    c->group[1].pixels = b.pixels;
    c->batch.groups = 2;
    c->batch.group = c->group;
}

static void crops_free(crops *c)
{
    free(c->group[1].pixels);
    model_batch_free(&c->batch);
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

static int skipped(const char *name)
{
    return strncmp(name, "optim.", 6) == 0 || strncmp(name, "queue", 5) == 0 ||
           strcmp(name, "bank.rows") == 0;
}

/* The golden weights; between steps prototypes have length 1. */
static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ctx *ctx = ((model_walk *)user)->ctx;
    ctr_var v;
    ctr_real *x;
    if (skipped(name)) return;
    if (strcmp(name, "bank.clusters") == 0) {
        int64_t i, n = t->shape[1];
        x = test_reals(t->size);
        for (i = 0; i < t->size; i++) x[i] = (ctr_real)((5 * (i % n) + 3 * (i / n)) % 12);
        ctr_tensor_write(ctx, t, x, t->size);
        free(x);
        return;
    }
    v = model_var(name, t, conv);
    model_fill_var(ctx, &v, 0);
    if (strncmp(name, "prototypes", 10)) return;
    x = test_reals(t->size);
    ctr_tensor_read(ctx, t, x, t->size);
    model_unit_rows(x, t->shape[0], t->shape[1]);
    ctr_tensor_write(ctx, t, x, t->size);
    free(x);
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (!skipped(name) && strcmp(name, "bank.clusters"))
        model_compare((model_walk *)user, name, t, conv);
}

/* The golden clusters are not to be made. */
static void clustered(void *user, const char *name, int64_t *value)
{
    (void)user;
    if (strcmp(name, "bank.epochs") == 0) *value = 1;
}

static void visit_with(ctr_method *method, model_walk *w,
                       void (*fn)(void *, const char *, ctr_tensor *, int))
{
    ctr_visitor v;
    v.user = w;
    v.tensor_fn = fn;
    v.number_fn = clustered;
    ctr_method_visit(method, &v);
}

/* The batch's rows of both queues; the authors shift theirs, ours writes over the oldest. */
static void compare_queues(model_walk *w, ctr_method *method)
{
    static const char *const names[2] = { "queue1.rows", "queue2.rows" };
    const double *want;
    ctr_real x[6 * 16];
    size_t n;
    int i;
    want = golden_get(w->g, "swavq:queue", &n);
    if (!test_true("golden queues", want && n == 2 * 96)) return;
    for (i = 0; i < 2; i++) {
        ctr_tensor_read(w->ctx, model_tensor(method, names[i]), x, 96);
        test_near(names[i], x, want + 96 * i, 96, 0, test_bound(1e-8, 2e-2));
    }
}

static void compare_bank(model_walk *w, ctr_method *method)
{
    const double *want;
    ctr_real x[2 * 15 * 16];
    char key[64];
    size_t n;
    snprintf(key, sizeof key, "%s:bank", w->kind);
    want = golden_get(w->g, key, &n);
    if (!test_true("a golden bank", want && n == 2 * 15 * 16)) return;
    ctr_tensor_read(w->ctx, model_tensor(method, "bank.rows"), x, 2 * 15 * 16);
    test_near(key, x, want, 2 * 15 * 16, 0, test_bound(1e-8, 2e-2));
}

static void golden_steps(golden_file *g, int kind)
{
    static const double larc[3] = { 0.3, 0.2, 0.1 }, sgd[3] = { 0.1, 0.08, 0.05 };
    sizes s = { 16, 16, 8, 24, 16, 12, 6, 15 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, kind, &s);
    const double *losses, *residuals = NULL, *active = NULL;
    int64_t index[6];
    char name[64];
    ctr_report report;
    model_walk w;
    double worst = 0, e;
    int t, i;
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.g = g;
    w.kind = kinds[kind];
    w.bound = test_bound(1e-8, 5e-2);
    snprintf(name, sizeof name, "%s:loss", w.kind);
    losses = golden_get(g, name, NULL);
    if (kind < DEEP) {
        snprintf(name, sizeof name, "%s:residual", w.kind);
        residuals = golden_get(g, name, NULL);
        snprintf(name, sizeof name, "%s:active", w.kind);
        active = golden_get(g, name, NULL);
    }
    if (!test_true("a method and its records", method && losses)) return;
    if (!test_true("records of SwAV", kind >= DEEP || (residuals && active))) return;
    visit_with(method, &w, fill_tensor);
    for (t = 0; t < 3; t++) {
        crops c;
        snprintf(name, sizeof name, "%d", t + 1);
        crops_make(&c, name, 6, 16, 8);
        if (kind == LARGE) c.batch.groups = 0;
        for (i = 0; i < 6; i++) index[i] = (2 * i + 3 * (t + 1)) % 15;
        c.batch.index = index;
        test_true("step", ctr_method_step(method, &c.batch,
                                          kind == FROZEN || kind == DEEPU ? sgd[t] : larc[t],
                                          &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", w.kind, t + 1);
        e = fabs(report.loss - losses[t]) / fabs(losses[t]);
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        worst = e > worst ? e : worst;
        if (kind < DEEP)
            test_error("residual", fabs(report.residual - residuals[t]), test_bound(1e-7, 5e-2));
        if (kind >= DEEP) test_error("used", fabs(report.active - 0.5), 1e-12);
        else if (TEST_DOUBLE || !t) test_error("used", fabs(report.active - active[t]), 1e-12);
        test_error("chance", fabs(report.chance - log(12.0)), 1e-14);
        crops_free(&c);
    }
    visit_with(method, &w, compare_tensor);
    test_equal("all of the network was compared", w.compared, kind >= DEEP ? 56 : 54);
    if (kind == QUEUED) compare_queues(&w, method);
    if (kind >= DEEP) compare_bank(&w, method);
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", w.kind, worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(void)
{
    golden_file g;
    int i;
    if (!test_golden_open(&g, "golden_prototype.txt")) return;
    for (i = 0; i < KINDS; i++)
        if (i != LATE && ((!MODEL_SLOW && !test_quick()) || i == QUEUED || i == DEEPU))
            golden_steps(&g, i);
    golden_close(&g);
}

/* ---------------------------------------------------------------------- one small training run */

/* rows: of the queue. */
static ctr_method *make_small(ctr_ctx *ctx, const training *t)
{
    sizes s = { 4, 8, 5, 12, 8, 7, 0, 0 };
    s.queue = t->rows;
    s.images = t->images;
    return make(ctx, t->kind, &s);
}

static training run_of(int kind)
{
    training t = training_default(kinds[kind], make_small);
    t.kind = kind;
    t.rows = 10;
    return t;
}

/* ------------------------------------------------------------------- prototypes, queue, batches */

static double apart(const ctr_real *a, const ctr_real *b, int n)
{
    double worst = 0;
    int i;
    for (i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        worst = e > worst ? e : worst;
    }
    return worst;
}

static double length_error(const ctr_real *x, int64_t n, int64_t d)
{
    double worst = 0;
    int64_t i, j;
    for (i = 0; i < n; i++) {
        double norm = 0;
        for (j = 0; j < d; j++) norm += (double)x[i * d + j] * (double)x[i * d + j];
        worst = fabs(norm - 1) > worst ? fabs(norm - 1) : worst;
    }
    return worst;
}

/* Rows of length 1 from the start and after each step; frozen for two steps, then no longer, also
   by weight decay. */
static void prototypes(int kind)
{
    training c = run_of(kind);
    ctr_real before[56], x[56];
    training_run r;
    int t;
    training_begin(&r, &c);
    ctr_tensor_read(r.ctx, model_tensor(r.method, "prototypes.weight"), before, 56);
    test_error("unit rows at first", length_error(before, 7, 8), test_bound(1e-14, 1e-6));
    for (t = 0; t < 4; t++) {
        int still = kind == FROZEN && t < 2;
        test_true("step", training_steps(&r, 1, NULL));
        ctr_tensor_read(r.ctx, model_tensor(r.method, "prototypes.weight"), x, 56);
        test_error("unit rows", length_error(x, 7, 8), test_bound(1e-14, 1e-6));
        if (still) test_error("frozen", apart(x, before, 56), test_bound(1e-14, 1e-6));
        else test_true("they move", apart(x, before, 56) > 1e-5);
    }
    test_fine(r.ctx, "prototypes");
    training_end(&r);
}

/* Queues are left alone before their epoch, hold the newest embeddings after it, and take part in
   the codes once they are full: the residual is that of more rows then. */
static void queue_starts(void)
{
    training c = run_of(LATE);
    ctr_real before[80], x[80];
    ctr_report report;
    training_run r, s;
    int t;
    training_begin(&r, &c);
    c.kind = PLAIN;
    training_begin(&s, &c);
    ctr_tensor_read(r.ctx, model_tensor(r.method, "queue2.rows"), before, 80);
    for (t = 0; t < 7; t++) {
        ctr_report plain;
        test_true("step", training_steps(&r, 1, &report) && training_steps(&s, 1, &plain));
        ctr_tensor_read(r.ctx, model_tensor(r.method, "queue2.rows"), x, 80);
        test_error("unit rows", length_error(x, 10, 8), test_bound(1e-13, 1e-5));
        if (t < 4) test_bytes("epoch 0: nothing is kept", x, before, sizeof x);
        else test_true("epoch 1: embeddings are kept", apart(x, before, 80) > 1e-3);
        test_true("a queue that is not full changes nothing",
                  (report.loss == plain.loss) == (t < 6));
    }
    test_fine(r.ctx, "queues");
    training_end(&r);
    training_end(&s);
}

/* After the first beginning: the bank is what the images' crops are, one clustering has been made
   of it, each image is with the nearest centroid, and those are the prototypes. Steps then renew
   the bank's rows of their own images alone. */
static void clusters(void)
{
    training c = run_of(DEEP);
    ctr_real bank[2 * 24 * 8], later[2 * 24 * 8], of[3 * 24], w[56];
    int32_t nearest[24], labels[24];
    char name[32];
    ctr_agreement same;
    ctr_batch batch;
    int64_t i;
    int h, v, moved = 0, wrong = 0;
    training_run r;
    training_begin(&r, &c);
    test_true("begin", ctr_method_begin(r.method, r.loader));
    ctr_tensor_read(r.ctx, model_tensor(r.method, "bank.rows"), bank, 2 * 24 * 8);
    ctr_tensor_read(r.ctx, model_tensor(r.method, "bank.clusters"), of, 3 * 24);
    test_error("unit rows", length_error(bank, 48, 8), test_bound(1e-13, 1e-5));
    test_true("crops differ", apart(bank, bank + 192, 192) > 1e-3);
    for (h = 0; h < 3; h++) {
        snprintf(name, sizeof name, "prototypes%d.weight", h + 1);
        ctr_tensor_read(r.ctx, model_tensor(r.method, name), w, 56);
        test_error("centroids of length 1", length_error(w, 7, 8), test_bound(1e-13, 1e-5));
        for (i = 0; i < 24; i++) labels[i] = (int32_t)of[h * 24 + i];
        test_true("assign", ctr_kmeans_assign(r.ctx, 24, 8, bank + h % 2 * 192, 7, w, 1, nearest,
                                              NULL));
        test_bytes("each image is with the nearest", labels, nearest, sizeof labels);
        for (i = 0; i < 24; i++) nearest[i] = (int32_t)of[i];
        test_true("agree", ctr_agreement_measure(r.ctx, 24, labels, nearest, &same));
        test_true("heads see other banks and starts", h == 0 || same.nmi < 0.999);
        test_true("all clusters have images", same.clusters == 7);
    }
    test_true("a batch", ctr_loader_next(r.ctx, r.loader, &batch));
    test_true("step", ctr_method_step(r.method, &batch, 0.04, NULL));
    ctr_tensor_read(r.ctx, model_tensor(r.method, "bank.rows"), later, 2 * 24 * 8);
    for (v = 0; v < 2; v++)
        for (i = 0; i < 24; i++) {
            int in = 0, other = memcmp(bank + (v * 24 + i) * 8, later + (v * 24 + i) * 8,
                                       8 * sizeof *bank) != 0;
            for (h = 0; h < batch.n; h++) in |= batch.index[h] == i;
            moved += other;
            wrong += in != other;
        }
    test_equal("rows of the batch's images", moved, 12);
    test_equal("and no others", wrong, 0);
    test_fine(r.ctx, "clusters");
    training_end(&r);
}

/* Steps without clusters, batches without numbers, data of another size. */
static void refused_clusters(void)
{
    training config = run_of(DEEP);
    ctr_dataset *other;
    ctr_loader_config l = ctr_loader_config_default();
    ctr_loader *loader;
    int64_t index[6] = { 0, 1, 2, 3, 4, 24 };
    uint64_t before;
    crops c;
    training_run r;
    crops_make(&c, "a", 6, 8, 5);
    c.batch.index = index;
    training_begin(&r, &config);
    before = ctr_method_hash(r.method);
    test_equal("a step before any clustering", ctr_method_step(r.method, &c.batch, 0.1, NULL), 0);
    test_fails(r.ctx, "a step before any clustering", CTR_E_STATE, "ctr_method_begin");
    other = ctr_dataset_shapes(r.ctx, 30, 8, 3);
    l.batch = 6;
    l.views = r.method->views;
    l.augs = r.method->augs;
    loader = ctr_loader_create(r.ctx, other, &l);
    test_equal("30 images", ctr_method_begin(r.method, loader), 0);
    test_fails(r.ctx, "30 images", CTR_E_SHAPE, "made for 24 images");
    ctr_loader_destroy(r.ctx, loader);
    ctr_dataset_destroy(r.ctx, other);
    test_true("the method is as it was", ctr_method_hash(r.method) == before);
    test_true("begin", ctr_method_begin(r.method, r.loader));
    before = ctr_method_hash(r.method);
    test_equal("image 24 of 24", ctr_method_step(r.method, &c.batch, 0.1, NULL), 0);
    test_fails(r.ctx, "image 24 of 24", CTR_E_VALUE, "index");
    c.batch.index = NULL;
    test_equal("no numbers", ctr_method_step(r.method, &c.batch, 0.1, NULL), 0);
    test_fails(r.ctx, "no numbers", CTR_E_VALUE, "index");
    test_true("the method is as it was", ctr_method_hash(r.method) == before);
    c.batch.index = index;
    index[5] = 5;
    test_true("a step", ctr_method_step(r.method, &c.batch, 0.1, NULL));
    crops_free(&c);
    training_end(&r);
}

static void refused(training_run *r, const char *what, crops *c, ctr_status status,
                    const char *word)
{
    uint64_t before = ctr_method_hash(r->method);
    test_equal(what, ctr_method_step(r->method, &c->batch, 0.1, NULL), 0);
    test_fails(r->ctx, what, status, word);
    test_true("the method is as it was", ctr_method_hash(r->method) == before);
    test_true("a step follows", training_steps(r, 1, NULL));
}

static void batches(void)
{
    training config = run_of(QUEUED);
    ctr_report a, b;
    uint32_t bits = 0x7fc00000u;
    float nan_value;
    crops c;
    training_run r;
    memcpy(&nan_value, &bits, sizeof nan_value);
    config.rows = 6;
    training_begin(&r, &config);
    test_true("steps until the queue is used", training_steps(&r, 3, NULL));
    crops_make(&c, "a", 6, 8, 5);
    c.batch.groups = 0;
    refused(&r, "large crops alone", &c, CTR_E_SHAPE, "2 sizes");
    c.batch.groups = 3;
    refused(&r, "three sizes", &c, CTR_E_SHAPE, "2 sizes");
    c.batch.groups = 2;
    c.batch.group = NULL;
    refused(&r, "groups that are not there", &c, CTR_E_SHAPE, "2 sizes");
    c.batch.group = c.group;
    c.batch.views = 1;
    refused(&r, "one large crop", &c, CTR_E_SHAPE, "takes 2 views");
    c.batch.views = 2;
    c.group[1].views = 1;
    refused(&r, "one small crop", &c, CTR_E_SHAPE, "smaller");
    c.group[1].views = 2;
    c.group[1].pixels[(6 + 4) * 75 + 7] = (ctr_real)nan_value;
    refused(&r, "NaN in a small crop", &c, CTR_E_NUMBER, "image 4 of view 3");
    c.group[1].pixels[(6 + 4) * 75 + 7] = 0;
    test_equal("a rate out of all bounds", ctr_method_step(r.method, &c.batch, 1e300, NULL),
               TEST_DOUBLE);
    ctr_error_clear(r.ctx);
    training_end(&r);
    config = run_of(PLAIN);
    training_begin(&r, &config);
    test_true("step", ctr_method_step(r.method, &c.batch, 0, &a));
    test_true("a loss of cosines", a.loss > 0 && a.loss < 2 / 0.1 + log(7.0));
    c.group[1].pixels[5] += 1;
    test_true("step", ctr_method_step(r.method, &c.batch, 0, &b));
    test_true("small crops take part", a.loss != b.loss && fabs(a.loss - b.loss) < 1);
    test_true("used prototypes", b.active >= 1 / 7.0 - 1e-12 && b.active <= 1);
    test_true("a residual", b.residual > 0 && b.residual < 6);
    test_true("cosines", b.positive <= 1.0001 && b.negative >= -1.0001 && b.accuracy >= 0);
    test_fine(r.ctx, "batches");
    training_end(&r);
    crops_free(&c);
}

/* ------------------------------------------------------------------------------- configurations */

static void no_method(ctr_ctx *ctx, const char *what, const ctr_swav_config *c, const char *word)
{
    test_true(what, ctr_swav_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static ctr_swav_config tiny(void)
{
    ctr_swav_config c = ctr_swav_default();
    c.encoder.depth = 8;
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.prototypes = 7;
    return c;
}

static void presets(void)
{
    ctr_aug_config a, b = ctr_aug_swav_default(224, 1);
    ctr_aug_swav_config_init(&a, 224, 1);
    test_bytes("default and init are one", &a, &b, sizeof a);
    test_true("small crops of 224", a.height == 96 && a.width == 96 && a.crop_min == 0.05 &&
              a.crop_max == 0.14 && a.blur_p == 0.5 && a.brightness == 0.8);
    a = ctr_aug_swav_default(224, 0);
    test_true("large crops", a.height == 224 && a.crop_min == 0.14 && a.crop_max == 1 &&
              a.interp == CTR_INTERP_BILINEAR && a.hue == 0.2);
    a = ctr_aug_swav_default(32, 1);
    test_true("small crops of 32", a.height == 14 && a.brightness == 0.4 && a.blur_p == 0);
    test_true("small crops of 64 keep their jitter", ctr_aug_swav_default(64, 1).height == 27 &&
              ctr_aug_swav_default(64, 1).brightness == 0.8 &&
              ctr_aug_swav_default(64, 1).blur_p == 0);
    test_equal("of one pixel", (double)ctr_aug_swav_default(1, 1).width, 1);
}

static void no_deepcluster(ctr_ctx *ctx, const char *what, const ctr_deepcluster_v2_config *c,
                           const char *word)
{
    test_true(what, ctr_deepcluster_v2_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs_deepcluster(ctr_ctx *ctx)
{
    ctr_deepcluster_v2_config c, d = ctr_deepcluster_v2_default();
    ctr_method *m;
    char text[256];
    ctr_deepcluster_v2_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("DeepCluster v2", c.prototypes == 3000 && c.heads == 3 && c.iterations == 10 &&
              c.freeze_prototypes_steps == 300000 && c.small_views == 6 && c.temperature == 0.1);
    c.encoder.depth = 8;
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.prototypes = 7;
    no_deepcluster(ctx, "images that are not said", &c, "images");
    c.images = 6;
    no_deepcluster(ctx, "fewer images than prototypes", &c, "images");
    c.images = 7;
    c.heads = 0;
    no_deepcluster(ctx, "no head", &c, "heads");
    c.heads = 9;
    no_deepcluster(ctx, "nine heads", &c, "heads");
    c.heads = 2;
    c.iterations = 0;
    no_deepcluster(ctx, "no iteration", &c, "iteration");
    c.iterations = 1;
    c.freeze_prototypes_steps = -1;
    no_deepcluster(ctx, "steps below 0", &c, "freeze_prototypes_steps");
    c.freeze_prototypes_steps = 0;
    m = ctr_deepcluster_v2_create(ctx, &c);
    if (test_true("a small one", m != NULL)) {
        m->describe_fn(m, text, sizeof text);
        test_text("its description", text, "deepcluster_v2 resnet8 width=16 stem=small channels=3 "
                  "head=2x12-8 prototypes=7 heads=2 images=7");
    }
    ctr_method_destroy(m);
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t held = ctr_memory_stats(ctx).held;
    ctr_swav_config c, d = ctr_swav_default();
    ctr_method *m;
    char text[256];
    ctr_swav_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("SwAV", c.prototypes == 3000 && c.proj_hidden == 2048 && c.proj_dim == 128 &&
              c.temperature == 0.1 && c.sinkhorn.epsilon == 0.05 && c.sinkhorn.iterations == 3 &&
              c.small_views == 6 && c.queue == 0 && c.queue_start_epoch == 15 &&
              c.freeze_prototypes_steps == 313 && c.optim.form == CTR_LARS_LARC &&
              c.optim.decay == 1e-6 && c.optim.decay_all && c.lr == 0.3);
    c = tiny();
    c.queue = 20;
    m = ctr_swav_create(ctx, &c);
    if (test_true("a small one", m != NULL)) {
        m->describe_fn(m, text, sizeof text);
        test_text("its description", text, "swav resnet8 width=16 stem=small channels=3 "
                  "head=2x12-8 prototypes=7 queue=20");
        test_true("eight views in two groups", m->views == 8 && m->groups == 2 &&
                  m->group[0].views == 2 && m->group[1].views == 6 && m->group[1].h == 14);
    }
    ctr_method_destroy(m);
    c = tiny();
    c.temperature = 0;
    no_method(ctx, "temperature 0", &c, "temperature");
    c = tiny();
    c.sinkhorn.epsilon = 0;
    no_method(ctx, "epsilon 0", &c, "sinkhorn");
    c = tiny();
    c.sinkhorn.iterations = 0;
    no_method(ctx, "no iteration", &c, "sinkhorn");
    c = tiny();
    c.prototypes = 1;
    no_method(ctx, "one prototype", &c, "prototypes");
    c = tiny();
    c.small_views = 63;
    no_method(ctx, "65 views", &c, "small_views");
    c = tiny();
    c.queue = -1;
    no_method(ctx, "a queue below nothing", &c, "queue");
    c = tiny();
    c.queue_start_epoch = -1;
    no_method(ctx, "an epoch below 0", &c, "queue_start_epoch");
    c = tiny();
    c.freeze_prototypes_steps = -1;
    no_method(ctx, "steps below 0", &c, "freeze_prototypes_steps");
    c = tiny();
    c.proj_dim = 0;
    no_method(ctx, "embeddings of 0 numbers", &c, "mlp");
    c = tiny();
    c.small_aug.crop_max = 2;
    no_method(ctx, "crops of twice the image", &c, "crop");
    c.small_views = 0; /* nobody looks at it then */
    m = ctr_swav_create(ctx, &c);
    test_true("without small crops", m && m->views == 2 && m->groups == 1);
    ctr_method_destroy(m);
    c = tiny();
    c.optim.momentum = 1;
    no_method(ctx, "momentum 1", &c, "momentum");
    configs_deepcluster(ctx);
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    training t[KINDS];
    int i;
    for (i = 0; i < KINDS; i++) t[i] = run_of(i);
    test_begin("test_prototype", argc, argv);
    test_group("configs");
    presets();
    configs();
    test_group("prototypes and queue");
    prototypes(PLAIN);
    prototypes(FROZEN);
    queue_starts();
    clusters();
    test_group("batches");
    batches();
    refused_clusters();
    test_group("a steady step allocates nothing and is planned");
    for (i = 0; i < KINDS; i++) {
        training two = t[i];
        two.config.threads = 2;
        /* DeepCluster: the rest of an epoch, between two clusterings */
        training_steady(&two, 9, i >= DEEP ? 3 : 9);
        training_planned(&two);
    }
    test_group("the same bytes for any number of threads");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == QUEUED || i == DEEP) training_same_bytes(&t[i]);
    test_group("the same bytes after stopping and resuming");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == LATE || i == DEEP) training_resumes(&t[i]);
    test_group("the fake device");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == QUEUED || i == DEEP) training_same_on_device(&t[i]);
    test_group("the n-th allocation fails");
    for (i = 0; i < KINDS; i++)
        if (i != LATE && (!test_quick() || i == QUEUED || i == DEEP)) {
            t[i].rows = 4; /* full after a step */
            training_failing_allocations(&t[i], 0, test_quick() || MODEL_SLOW ? 71 : 3);
        }
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
