/* test_bank.c - the memory bank and its negatives, instance discrimination (NPID); batches by
 * class, FaceNet, verification and re-identification.
 * run: float double asan tsan smoke
 *
 * 1. Three steps of each form against PyTorch in float64 (tests/golden/golden_bank.txt): losses,
 *    parameters, running statistics, the bank, the negatives that were drawn.
 * 2. The bank's rows and labels against a list on the host; the alias table by a chi-square test;
 *    what every batch by class must be; verification against its definition by counting.
 * 3. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed; another data set's checkpoint.
 * 4. A run whose n-th allocation fails; a steady step allocates nothing; the plan is what it needs.
 * 5. What a report says; configurations and batches that are refused.
 */
#include "training.h"

enum { NCE, INFONCE, SOFTMAX, TRIPLET, HARD, SEMI, SIAMESE, KINDS };
static const char *const kinds[KINDS] = {
    "nce", "infonce", "softmax", "triplet", "hard", "semi", "siamese"
};

static ctr_method *make_facenet(ctr_ctx *ctx, int kind, int64_t width, int64_t side, int64_t dim)
{
    ctr_facenet_config c = ctr_facenet_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = width;
    c.encoder.image_size = side;
    c.dim = dim;
    c.per_class = 2;
    c.triplet.mining = kind == TRIPLET ? CTR_MINE_ALL : kind == HARD ? CTR_MINE_HARD
                                                                     : CTR_MINE_SEMI_HARD;
    c.triplet.margin = kind == TRIPLET ? 0.2 : kind == HARD ? 0.5 : 1;
    c.triplet.squared = kind != HARD;
    c.siamese = kind == SIAMESE;
    c.siamese_margin = 1.5;
    c.aug.height = c.aug.width = side;
    return ctr_facenet_create(ctx, &c);
}

static ctr_method *make(ctr_ctx *ctx, int kind, int64_t width, int64_t side, int64_t dim,
                        int64_t images, int64_t negatives)
{
    ctr_npid_config c = ctr_npid_default();
    if (kind >= TRIPLET) return make_facenet(ctx, kind, width, side, dim);
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = width;
    c.encoder.image_size = side;
    c.proj_dim = dim;
    c.images = images;
    c.negatives = negatives;
    c.form = (ctr_npid_form)kind;
    c.aug = ctr_aug_moco_default(side, 1, 0);
    return ctr_npid_create(ctx, &c);
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

static void unit_rows(const char *name, ctr_real *x, int64_t n, int64_t d)
{
    test_fill_real(name, x, n * d, 1.0);
    model_unit_rows(x, n, d);
}

static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ctx *ctx = ((model_walk *)user)->ctx;
    ctr_var v = model_var(name, t, conv);
    if (strcmp(name, "bank.rows") == 0) {
        ctr_real *x = test_reals(t->size);
        unit_rows(name, x, t->shape[0], t->shape[1]);
        ctr_tensor_write(ctx, t, x, t->size);
        free(x);
    } else if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5)) {
        model_fill_var(ctx, &v, 0);
    }
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5))
        model_compare((model_walk *)user, name, t, conv);
}

/* The bank as a whole, Z, and the negatives of step 3. */
static void compare_bank(model_walk *w, ctr_method *method, int kind)
{
    ctr_tensor *rows = model_tensor(method, "bank.rows"), *z = model_tensor(method, "bank.z");
    ctr_real x[320];
    int32_t index[78], wrong = 0;
    int64_t truth[6];
    const double *want;
    char key[64];
    int i;
    snprintf(key, sizeof key, "%s:bank", w->kind);
    want = golden_get(w->g, key, NULL);
    ctr_tensor_read(w->ctx, rows, x, 320);
    if (want) test_near(key, x, want, 320, 0, test_bound(1e-8, 2e-2));
    if (kind != NCE) return;
    want = golden_get(w->g, "nce:z", NULL);
    ctr_tensor_read(w->ctx, z, x, 1);
    if (want) test_near("Z", x, want, 1, test_bound(1e-8, 1e-3), 0);
    want = golden_get(w->g, "nce:negatives", NULL);
    for (i = 0; i < 6; i++) truth[i] = i < 5 ? (7 * i + 6) % 20 : 6;
    test_true("negatives", ctr_sample_negatives(w->ctx, 2, 0, 6, truth, 20, 13, NULL, index));
    for (i = 0; want && i < 78; i++) wrong += index[i] != (int32_t)want[i];
    test_equal("negatives that are others", wrong, 0);
}

static void golden_steps(golden_file *g, int kind)
{
    static const double rates[2][3] = { { 0.02, 0.015, 0.01 }, { 0.01, 0.008, 0.005 } };
    static const int32_t labels[6] = { 0, 0, 1, 1, 2, 2 };
    const double *rate = rates[kind >= TRIPLET];
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, kind, 16, 16, 16, 20, 12);
    const double *losses;
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
    snprintf(name, sizeof name, "%s:loss", kinds[kind]);
    losses = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses)) return;
    model_visit(method, &w, fill_tensor);
    for (t = 0; t < 3; t++) {
        int64_t index[6];
        ctr_batch batch;
        for (i = 0; i < 6; i++) index[i] = i < 5 ? (7 * i + 3 * t) % 20 : 3 * t;
        snprintf(name, sizeof name, "views:%d", t + 1);
        batch = model_batch(name, 6, 1, 16, 16);
        batch.index = index;
        batch.labels = labels;
        test_true("step", ctr_method_step(method, &batch, rate[t], &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t + 1);
        e = fabs(report.loss - losses[t]) / (fabs(losses[t]) > 1 ? fabs(losses[t]) : 1);
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        worst = e > worst ? e : worst;
        model_batch_free(&batch);
    }
    model_visit(method, &w, compare_tensor);
    test_true("all of the network was compared", w.compared >= 40);
    if (kind <= SOFTMAX) compare_bank(&w, method, kind);
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", kinds[kind], worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(void)
{
    golden_file g;
    int i;
    if (!test_golden_open(&g, "golden_bank.txt")) return;
    for (i = 0; i < KINDS; i++)
        if ((!MODEL_SLOW && !test_quick()) || i == NCE || i == SEMI) golden_steps(&g, i);
    golden_close(&g);
}

/* ------------------------------------------------------------------------------------ the bank */

/* Three batches against a list on the host; image 4 occurs twice in each: the last one stays. */
static void bank_rows(void)
{
    enum { N = 9, D = 5 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_vars vars;
    ctr_bank bank;
    ctr_real x[N * D], z[4 * D], label[N];
    double host[N * D], fresh[4 * D], norm, mean = 0, worst = 0;
    int64_t shape[2] = { 4, D }, i, j, b;
    ctr_vars_init(&vars);
    ctr_bank_init(ctx, &bank, &vars, "b.", N, D);
    test_equal("nothing is seen", (double)ctr_bank_filled(ctx, &bank), 0);
    ctr_tensor_read(ctx, bank.rows, x, N * D);
    for (i = 0; i < N; i++) {
        for (norm = 0, j = 0; j < D; j++) {
            host[i * D + j] = (double)x[i * D + j];
            norm += host[i * D + j] * host[i * D + j];
            mean += host[i * D + j] / (N * D);
        }
        worst = fabs(norm - 1) > worst ? fabs(norm - 1) : worst;
    }
    test_error("random unit rows", worst, test_bound(1e-14, 1e-6));
    test_error("that lie all around", fabs(mean), 0.25);
    for (b = 0; b < 3; b++) {
        int64_t index[4];
        int32_t labels[4];
        ctr_tensor *rows, *t;
        for (i = 0; i < 4; i++) {
            index[i] = i == 0 || i == 2 ? 4 : (3 * b + i) % N;
            labels[i] = (int32_t)(10 * b + i);
        }
        unit_rows(b ? "z1" : "z0", z, 4, D);
        ctr_step_begin(ctx);
        t = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
        ctr_tensor_write(ctx, t, z, 4 * D);
        rows = ctr_bank_mix(ctx, &bank, index, t, 0.5);
        ctr_bank_put(ctx, &bank, index, rows, b ? labels : NULL);
        ctr_step_end(ctx);
        for (i = 0; i < 4; i++) {       /* all of them from the rows before the batch */
            for (norm = 0, j = 0; j < D; j++) {
                fresh[i * D + j] = 0.5 * host[index[i] * D + j] + 0.5 * (double)z[i * D + j];
                norm += fresh[i * D + j] * fresh[i * D + j];
            }
            for (j = 0; j < D; j++) fresh[i * D + j] /= sqrt(norm);
        }
        for (i = 0; i < 4; i++)
            for (j = 0; j < D; j++) host[index[i] * D + j] = fresh[i * D + j];
        ctr_tensor_read(ctx, bank.rows, x, N * D);
        test_near("rows after a batch", x, host, N * D, 0, test_bound(1e-14, 1e-6));
    }
    ctr_tensor_read(ctx, bank.labels, label, N);
    /* batches wrote 4 1 4 3, 4 4 4 6, 4 7 4 0: seen are 0 1 3 4 6 7; the first had no labels */
    test_true("labels", label[1] == -1 && label[3] == -1 && label[6] == 13 && label[0] == 23 &&
              label[7] == 21 && label[4] == 22 && label[2] == -2 && label[8] == -2);
    test_equal("six images are seen", (double)ctr_bank_filled(ctx, &bank), 6);
    test_fine(ctx, "a bank");
    ctr_vars_destroy(ctx, &vars);
    ctr_ctx_destroy(ctx);
}

static void bank_refuses(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    int64_t shape[2] = { 1, 4 }, at = 3, shape3[2] = { 1, 3 };
    int32_t index[4];
    ctr_vars vars;
    ctr_bank bank;
    ctr_tensor *row, *narrow;
    ctr_vars_init(&vars);
    ctr_bank_init(ctx, &bank, &vars, "none.", 0, 8);
    test_fails(ctx, "a bank of nothing", CTR_E_VALUE, "bank");
    ctr_bank_init(ctx, &bank, &vars, "b.", 3, 4);
    row = ctr_tensor_create(ctx, CTR_F32, 2, shape, 0);
    narrow = ctr_tensor_create(ctx, CTR_F32, 2, shape3, 0);
    ctr_bank_put(ctx, &bank, &at, row, NULL);
    test_fails(ctx, "image 3 of 3", CTR_E_VALUE, "3 images");
    ctr_step_begin(ctx);
    ctr_bank_mix(ctx, &bank, &at, row, 0.5);
    test_fails(ctx, "image 3 of 3", CTR_E_VALUE, "3 images");
    at = 2;
    ctr_bank_mix(ctx, &bank, &at, narrow, 0.5);
    test_fails(ctx, "rows of another size", CTR_E_SHAPE, "bank_mix");
    ctr_bank_put(ctx, &bank, &at, narrow, NULL);
    test_fails(ctx, "rows of another size", CTR_E_SHAPE, "bank_put");
    ctr_step_end(ctx);
    test_equal("nothing was written", (double)ctr_bank_filled(ctx, &bank), 0);
    at = 3;
    test_equal("a truth outside", ctr_sample_negatives(ctx, 0, 0, 1, &at, 3, 4, NULL, index), 0);
    test_fails(ctx, "a truth outside", CTR_E_VALUE, "negatives");
    at = 0;
    test_equal("no column", ctr_sample_negatives(ctx, 0, 0, 1, &at, 3, 0, NULL, index), 0);
    test_fails(ctx, "no column", CTR_E_VALUE, "negatives");
    ctr_tensor_destroy(ctx, row);
    ctr_tensor_destroy(ctx, narrow);
    ctr_vars_destroy(ctx, &vars);
    ctr_ctx_destroy(ctx);
}

/* ---------------------------------------------------------------------------- drawing by weight */

/* sum (seen - expected)^2 / expected over the indices that can be drawn; -1: another one was. */
static double chi_square(const int64_t *seen, const double *weights, int n, double sum,
                         double drawn, int *cells)
{
    double chi = 0;
    int i;
    for (*cells = 0, i = 0; i < n; i++) {
        double expected = drawn * weights[i] / sum, gap = (double)seen[i] - expected;
        if (weights[i] > 0) chi += gap * gap / expected;
        else if (seen[i]) return -1;
        *cells += weights[i] > 0;
    }
    return chi;
}

static void alias(void)
{
    enum { N = 37, DRAWS = 200000 };
    ctr_ctx *ctx = test_ctx(3, CTR_KERNELS_AUTO);
    double weights[N], sum = 0, share[N], worst = 0, chi;
    int64_t seen[N], truth[200], i;
    int32_t *index = (int32_t *)test_alloc(200 * 1001 * sizeof *index);
    ctr_alias *a;
    ctr_rng rng;
    int cells;
    for (i = 0; i < N; i++) sum += weights[i] = i % 5 == 3 ? 0 : (double)((i * i) % 11) + 0.25;
    a = ctr_alias_create(ctx, N, weights);
    for (i = 0; i < N; i++) share[i] = 0;
    for (i = 0; i < N; i++) {                     /* what the table adds up to is exact */
        share[i] += a->keep[i] / (double)N;
        share[a->other[i]] += (1 - a->keep[i]) / (double)N;
    }
    for (i = 0; i < N; i++)
        if (fabs(share[i] - weights[i] / sum) > worst) worst = fabs(share[i] - weights[i] / sum);
    test_error("shares of the table", worst, 1e-15);
    memset(seen, 0, sizeof seen);
    ctr_rng_init(&rng, 5, CTR_STREAM_USER, 0, 0, 0);
    for (i = 0; i < DRAWS; i++) seen[ctr_alias_draw(a, &rng)]++;
    chi = chi_square(seen, weights, N, sum, DRAWS, &cells);
    /* cells - 1 degrees of freedom: 4.5 standard deviations above their number */
    test_true("no index without weight is drawn", chi >= 0);
    test_error("chi-square of the alias table", chi, cells - 1 + 4.5 * sqrt(2.0 * (cells - 1)));
    for (i = 0; i < 200; i++) truth[i] = i % N;
    for (cells = 0; cells < 2; cells++) {         /* the same through the negatives */
        int64_t j, wrong = 0;
        int most;
        test_true("negatives", ctr_sample_negatives(ctx, 7, 3, 200, truth, N, 1001,
                                                    cells ? a : NULL, index));
        memset(seen, 0, sizeof seen);
        for (i = 0; i < 200; i++)
            for (wrong += index[i * 1001] != i % N, j = 1; j < 1001; j++)
                seen[index[i * 1001 + j]]++;
        test_equal("columns 0 that are not the truth", (double)wrong, 0);
        if (!cells) for (i = 0; i < N; i++) share[i] = 1;
        chi = chi_square(seen, cells ? weights : share, N, cells ? sum : (double)N, 200000, &most);
        test_true("only what can be drawn", chi >= 0);
        test_error(cells ? "chi-square by weights" : "chi-square of uniform ones", chi,
                   most - 1 + 4.5 * sqrt(2.0 * (most - 1)));
    }
    test_equal("a table of another size",
               ctr_sample_negatives(ctx, 0, 0, 1, truth, N + 1, 4, a, index), 0);
    test_fails(ctx, "a table of another size", CTR_E_VALUE, "alias");
    ctr_alias_destroy(ctx, a);
    weights[3] = -1;
    test_true("a weight below 0", ctr_alias_create(ctx, N, weights) == NULL);
    test_fails(ctx, "a weight below 0", CTR_E_VALUE, "number 3 is -1");
    for (i = 0; i < N; i++) weights[i] = 0;
    test_true("no weight at all", ctr_alias_create(ctx, N, weights) == NULL);
    test_fails(ctx, "no weight at all", CTR_E_VALUE, "alias");
    test_true("an empty table", ctr_alias_create(ctx, 0, weights) == NULL);
    test_fails(ctx, "an empty table", CTR_E_VALUE, "alias");
    ctr_alias_destroy(ctx, NULL);
    ctr_ctx_destroy(ctx);
    free(index);
}

/* ---------------------------------------------------------------------- one small training run */

/* rows: of the bank, as many as there are images by default. */
static ctr_method *make_small(ctr_ctx *ctx, const training *t)
{
    return make(ctx, t->kind, 4, t->side, 8, t->rows ? t->rows : t->images, 10);
}

static training run_of(int kind)
{
    training t = training_default(kinds[kind], make_small);
    t.kind = kind;
    return t;
}

/* A bank belongs to a data set of its size: in training and in a file. */
static void other_data(void)
{
    training c = run_of(NCE);
    ctr_fit_config fit = ctr_fit_default();
    uint64_t before;
    training_run r;
    fit.epochs = 1;
    fit.checkpoint = "bank_other.ctr";
    training_begin(&r, &c);
    test_equal("a run of 24 images", (double)ctr_fit(r.method, r.loader, &fit), 4);
    training_end(&r);
    c.images = 30;
    fit.resume = 1;
    training_begin(&r, &c);
    before = ctr_method_hash(r.method);
    test_equal("its checkpoint for 30", (double)ctr_fit(r.method, r.loader, &fit), -1);
    test_fails(r.ctx, "its checkpoint for 30", CTR_E_FORMAT, "bank=24");
    test_equal("the same by hand", ctr_checkpoint_load(r.method, "bank_other.ctr", NULL), 0);
    test_fails(r.ctx, "the same by hand", CTR_E_FORMAT, "bank=30");
    test_true("nothing was loaded", ctr_method_hash(r.method) == before);
    training_end(&r);
    remove("bank_other.ctr");
    fit.resume = 0;
    fit.checkpoint = NULL;
    c.rows = 31;
    training_begin(&r, &c);
    before = ctr_method_hash(r.method);
    test_equal("a bank that is too large", (double)ctr_fit(r.method, r.loader, &fit), -1);
    test_fails(r.ctx, "a bank that is too large", CTR_E_VALUE, "config.images");
    test_true("nothing was trained", ctr_method_hash(r.method) == before);
    training_end(&r);
    c.rows = 3;
    training_begin(&r, &c);
    test_equal("a bank that is too small", training_steps(&r, 1, NULL), 0);
    test_fails(r.ctx, "a bank that is too small", CTR_E_VALUE, "3 images");
    training_end(&r);
}

/* ---------------------------------------------------------------------- reports, configurations */

static void reports(void)
{
    int32_t labels[6] = { 0, 0, 1, 2, -1, 1 };
    int64_t index[6] = { 3, 5, 7, 9, 11, 13 };
    ctr_batch batch = model_batch("report", 6, 1, 8, 8);
    ctr_report a;
    char text[256];
    int kind;
    batch.labels = labels;
    batch.index = index;
    for (kind = 0; kind <= SOFTMAX; kind++) {
        training c = run_of(kind);
        double chance = kind == NCE ? log(11.0) + 10 * log(1.1) : kind == INFONCE ? log(11.0)
                                                                                  : log(24.0);
        training_run r;
        training_begin(&r, &c);
        test_true("step", ctr_method_step(r.method, &batch, 0, &a));
        test_error("chance", fabs(a.chance - chance), 1e-14);
        test_equal("no image was seen", a.active, 0);
        test_equal("so no label was known", a.false_negatives, -1);
        test_true("accuracy", a.accuracy >= 0 && a.accuracy <= 1);
        test_true("step", ctr_method_step(r.method, &batch, 0, &a));
        test_error("active", fabs(a.active - 6.0 / 24), 1e-15);
        /* half of this embedding is in the bank since the step before, none of its negatives */
        test_true("cosines", a.positive > 0.5 && a.positive <= 1.0001 && a.negative < a.positive);
        /* of all: each of 5 labelled images meets 4 others with labels; 0 0, 1 1 agree */
        if (kind == SOFTMAX)
            test_error("false negatives", fabs(a.false_negatives - 4.0 / 20), 1e-15);
        else test_true("false negatives", a.false_negatives >= -1 && a.false_negatives <= 1);
        r.method->describe_fn(r.method, text, sizeof text);
        test_true(text, strncmp(text, "npid resnet8 width=4 stem=small channels=3 head=", 48) == 0
                            && strstr(text, " bank=24 form=") && strstr(text, kinds[kind]));
        test_fine(r.ctx, "reports");
        batch.index = NULL;
        test_equal("a batch that does not tell", ctr_method_step(r.method, &batch, 0.04, NULL), 0);
        test_fails(r.ctx, "a batch that does not tell", CTR_E_VALUE, "index");
        batch.index = index;
        training_end(&r);
    }
    model_batch_free(&batch);
}

/* FaceNet's report, its labels, what it keeps. */
static void reports_facenet(void)
{
    int32_t labels[6] = { 0, 0, 1, 2, -1, 1 };
    ctr_batch batch = model_batch("report", 6, 1, 8, 8);
    ctr_report a;
    ctr_real z[6 * 8];
    char text[256];
    int kind, i, j;
    for (kind = TRIPLET; kind < KINDS; kind++) {
        training c = run_of(kind);
        uint64_t before;
        training_run r;
        training_begin(&r, &c);
        before = ctr_method_hash(r.method);
        batch.labels = NULL;
        test_equal("no labels", ctr_method_step(r.method, &batch, 0.01, &a), 0);
        test_fails(r.ctx, "no labels", CTR_E_VALUE, "labels");
        test_true("nothing has changed", ctr_method_hash(r.method) == before);
        batch.labels = labels;
        test_true("step", ctr_method_step(r.method, &batch, 0.01, &a));
        /* siamese: rows 0, 1, 2, 5 have both partners, row 3 only one of another class */
        test_error("chance", fabs(a.chance - (kind == TRIPLET ? 0.2 : kind == HARD ? 0.5
                                              : kind == SEMI ? 1 : 1.5 * 1.5 / 2 * 5 / 9)), 1e-14);
        test_true("shares", a.active >= 0 && a.active <= 1 && a.accuracy >= 0 && a.accuracy <= 1);
        test_true("cosines", a.positive <= 1.0001 && a.negative >= -1.0001);
        test_true("represents", ctr_method_represent(r.method, 6, 8, 8, 3, batch.pixels, 4, z));
        test_equal("in as many numbers", (double)r.method->features, 8);
        for (i = 0; i < 6; i++) {
            double norm = 0;
            for (j = 0; j < 8; j++) norm += (double)z[i * 8 + j] * (double)z[i * 8 + j];
            test_error("unit rows", fabs(norm - 1), test_bound(1e-14, 1e-6));
        }
        for (i = 0; i < 6; i++) labels[i] = -1;
        test_true("no image with a label", ctr_method_step(r.method, &batch, 0.01, &a));
        test_equal("is a loss of 0", a.loss, 0);
        labels[0] = labels[1] = 0;
        labels[2] = labels[5] = 1;
        labels[3] = 2;
        batch.n = 1;
        test_true("one image", !ctr_method_step(r.method, &batch, 0.01, &a));
        test_fails(r.ctx, "one image", CTR_E_VALUE, "2 images or more, got 1");
        ctr_error_clear(r.ctx);
        batch.n = 6;
        r.method->describe_fn(r.method, text, sizeof text);
        test_true(text, strncmp(text, "facenet resnet8 width=4", 23) == 0);
        test_fine(r.ctx, "reports");
        training_end(&r);
    }
    model_batch_free(&batch);
}

static void refused_facenet(ctr_ctx *ctx, const char *what, const ctr_facenet_config *c,
                            const char *word)
{
    test_true(what, ctr_facenet_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs_facenet(ctr_ctx *ctx)
{
    const int no_mining = 4;
    ctr_facenet_config c, d = ctr_facenet_default();
    ctr_facenet_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.dim == 128 && c.triplet.margin == 0.2 && c.per_class == 40 &&
              c.triplet.mining == CTR_MINE_SEMI_HARD && c.triplet.squared && !c.siamese);
    c.encoder.depth = 8;
    c.per_class = 1;
    refused_facenet(ctx, "one image of each", &c, "per_class");
    c.per_class = 4;
    c.triplet.margin = -1;
    refused_facenet(ctx, "a margin below 0", &c, "margin");
    c.triplet.margin = 0.2;
    memcpy(&c.triplet.mining, &no_mining, sizeof no_mining);
    refused_facenet(ctx, "mining 4", &c, "mining");
    c.triplet.mining = CTR_MINE_RANDOM;
    c.siamese = 1;
    c.siamese_margin = 0;
    refused_facenet(ctx, "a margin of 0", &c, "margin");
    c.siamese = 0;
    c.dim = 0;
    refused_facenet(ctx, "embeddings of 0 numbers", &c, "mlp");
    c.dim = 8;
    c.aug.flip_p = 2;
    refused_facenet(ctx, "flips with probability 2", &c, "flip");
}

/* ------------------------------------------------------------------------- batches by class */

/* Every batch has P classes with K images each, that differ where there are K; small classes repeat
   theirs; classes take turns. Class c has c + 1 images, 12 classes, others have no label. */
static void class_orders(int64_t p, int64_t k)
{
    enum { N = 100, CLASSES = 12 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    int32_t labels[N];
    int64_t i, j, b, batches, order[N], again[N], turns[CLASSES], wrong = 0, odd = 0, most, least;
    ctr_class_sampler *s;
    char what[64];
    snprintf(what, sizeof what, "%ld x %ld", (long)p, (long)k);
    for (i = 0; i < N; i++) labels[i] = -1;
    for (j = 0, b = 0; b < CLASSES; b++)
        for (i = 0; i <= b; i++, j++) labels[(j * 37) % N] = (int32_t)(1000 * b + 7);
    s = ctr_class_sampler_create(ctx, N, labels, p * k, k);
    batches = ctr_class_sampler_batches(s);
    test_equal(what, (double)batches, (double)(78 / (p * k)));
    memset(turns, 0, sizeof turns);
    ctr_class_sampler_order(s, 3, 5, order);
    for (b = 0; b < batches; b++) {
        int used[CLASSES] = { 0 };
        for (i = 0; i < p; i++) {
            const int64_t *group = order + (b * p + i) * k;
            int64_t c = labels[group[0]] / 1000, size, different = 0, l;
            wrong += labels[group[0]] < 0 || used[c];
            used[c] = 1;
            turns[c]++;
            size = c + 1;
            for (j = 0; j < k; j++) {
                wrong += labels[group[j]] != labels[group[0]];
                for (l = 0; l < j && group[l] != group[j]; l++) { }
                different += l == j;
            }
            odd += different != (size < k ? size : k);
        }
    }
    test_equal("images of another class, classes twice in a batch", (double)wrong, 0);
    test_equal("images that are missing or twice", (double)odd, 0);
    for (most = least = turns[0], i = 1; i < CLASSES; i++) {
        most = turns[i] > most ? turns[i] : most;
        least = turns[i] < least ? turns[i] : least;
    }
    test_true("classes take turns", most - least <= 1);
    ctr_class_sampler_order(s, 3, 6, again);
    test_true("another epoch", memcmp(order, again, (size_t)(batches * p * k) * sizeof *order));
    ctr_class_sampler_order(s, 3, 5, again);
    test_bytes("the same epoch", order, again, (size_t)(batches * p * k) * sizeof *order);
    ctr_class_sampler_order(s, 4, 5, again);
    test_true("another seed", memcmp(order, again, (size_t)(batches * p * k) * sizeof *order));
    test_fine(ctx, what);
    ctr_class_sampler_destroy(ctx, s);
    ctr_ctx_destroy(ctx);
}

static void class_refused(ctr_ctx *ctx, const int32_t *labels, int64_t batch, int64_t k)
{
    test_true("refused", ctr_class_sampler_create(ctx, 12, labels, batch, k) == NULL);
    test_fails(ctx, "refused", CTR_E_VALUE, "per_class");
}

/* The loader's batches are the sampler's, also after a seek; two epochs see every image of equal
   classes. */
static void class_loader(void)
{
    training c = run_of(TRIPLET);
    int64_t order[24], first[24], i, b, seen[24] = { 0 }, wrong = 0;
    int32_t labels[12] = { 0, 1, 2, 0, 1, 2, -1, -1, 0, 1, 2, 0 };
    ctr_loader_config l = ctr_loader_config_default();
    ctr_class_sampler *s;
    ctr_batch batch;
    training_run r;
    training_begin(&r, &c);
    s = ctr_class_sampler_create(r.ctx, 24, r.labels, 6, 2);
    test_equal("batches", (double)ctr_loader_batches(r.loader), 4);
    ctr_class_sampler_order(s, 1, 0, order);
    for (b = 0; b < 4; b++) {
        test_true("next", ctr_loader_next(r.ctx, r.loader, &batch));
        for (i = 0; i < 6; i++) {
            wrong += batch.index[i] != order[b * 6 + i];
            wrong += batch.labels[i] != r.labels[batch.index[i]];
            first[b * 6 + i] = batch.index[i];
            seen[batch.index[i]]++;
        }
    }
    test_equal("images that are others", (double)wrong, 0);
    for (i = 0; i < 24; i++) wrong += seen[i] != 1;
    test_equal("images not seen once", (double)wrong, 0);
    ctr_loader_seek(r.ctx, r.loader, 0, 2);
    test_true("next", ctr_loader_next(r.ctx, r.loader, &batch));
    test_bytes("after a seek", batch.index, first + 12, 6 * sizeof *first);
    ctr_class_sampler_destroy(r.ctx, s);
    l.batch = 5;
    l.per_class = 2;
    l.views = 1;
    l.augs = r.method->augs;
    test_true("5 of 2", ctr_loader_create(r.ctx, r.dataset, &l) == NULL);
    test_fails(r.ctx, "5 of 2", CTR_E_VALUE, "per_class");
    class_refused(r.ctx, labels, 5, 2);
    class_refused(r.ctx, labels, 8, 2);
    class_refused(r.ctx, labels, 12, 4);
    class_refused(r.ctx, labels, 4, 0);
    ctr_class_sampler_destroy(r.ctx, NULL);
    training_end(&r);
    training_begin(&r, &c);
    {
        ctr_fit_config fit = ctr_fit_default();
        fit.epochs = 1;
        fit.batch = 6;
        test_equal("by itself", (double)ctr_fit_images(r.method, r.dataset, &fit), 4);
        fit.batch = 7;
        test_equal("7 of 2", (double)ctr_fit_images(r.method, r.dataset, &fit), -1);
        test_fails(r.ctx, "7 of 2", CTR_E_VALUE, "per_class");
    }
    training_end(&r);
}

/* A dataset of chosen images, and a part of it: their labels and pixels are the whole's. */
static void chosen(void)
{
    static const int64_t index[5] = { 7, 3, 3, 22, 0 };
    training c = run_of(TRIPLET);
    ctr_dataset *some, *two;
    ctr_image a, b;
    int64_t i, wrong = 0, outside = 24;
    training_run r;
    training_begin(&r, &c);
    some = ctr_dataset_select(r.ctx, r.dataset, 5, index);
    two = ctr_dataset_part(r.ctx, some, 2);
    test_true("five and two", ctr_dataset_count(some) == 5 && ctr_dataset_count(two) == 2);
    for (i = 0; i < 7; i++) {
        const ctr_dataset *d = i < 5 ? some : two;
        int64_t at = i < 5 ? i : i - 5, from = i < 5 ? index[i] : index[i == 5 ? 0 : 2];
        ctr_dataset_image(r.ctx, d, at, &a);
        ctr_dataset_image(r.ctx, r.dataset, from, &b);
        wrong += memcmp(a.pixels, b.pixels, 192) != 0 ||
                 ctr_dataset_label(d, at) != r.labels[from];
        ctr_image_free(r.ctx, &a);
        ctr_image_free(r.ctx, &b);
    }
    test_equal("images that are others", (double)wrong, 0);
    test_fine(r.ctx, "chosen");
    test_true("image 24 of 24", ctr_dataset_select(r.ctx, r.dataset, 1, &outside) == NULL);
    test_fails(r.ctx, "image 24 of 24", CTR_E_VALUE, "dataset_select");
    test_true("no image", ctr_dataset_select(r.ctx, r.dataset, 0, index) == NULL);
    test_fails(r.ctx, "no image", CTR_E_VALUE, "at least 1");
    ctr_dataset_destroy(r.ctx, two);
    ctr_dataset_destroy(r.ctx, some);
    training_end(&r);
}

/* ------------------------------------------------------------ verification, re-identification */

static void verification(golden_file *g)
{
    enum { N = 61 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_verification_config c = ctr_verification_config_default();
    ctr_verification v;
    ctr_real distance[N], x[3];
    double fill[N], far[N + 1], val[N + 1], cut[N + 1], worst = 0;
    int32_t same[N];
    const double *want;
    int64_t points, i;
    size_t count;
    test_fill("verify", fill, N, 1.0);
    for (i = 0; i < N; i++) {
        same[i] = (int32_t)((5 * i + i / 7) % 2);
        distance[i] = (ctr_real)(floor((2 + fill[i] - 0.8 * same[i]) * 16 + 0.5) / 16);
    }
    c.folds = 7;
    c.far = 0.1;
    test_true("measure", ctr_verification_measure(ctx, N, distance, same, &c, &v));
    want = golden_get(g, "verify:auc", NULL);
    if (want) test_error("area", fabs(v.auc - want[0]), 1e-14);
    want = golden_get(g, "verify:eer", NULL);
    if (want) test_error("equal error rate", fabs(v.eer - want[0]), 1e-14);
    x[0] = (ctr_real)v.accuracy;
    x[1] = (ctr_real)v.accuracy_std;
    x[2] = (ctr_real)v.threshold;
    want = golden_get(g, "verify:accuracy", NULL);
    if (want) test_near("accuracy by folds", x, want, 3, 0, test_bound(1e-14, 1e-6));
    x[0] = (ctr_real)v.val;
    x[1] = (ctr_real)v.val_std;
    x[2] = (ctr_real)v.far;
    want = golden_get(g, "verify:val", NULL);
    if (want) test_near("VAL at FAR", x, want, 3, 0, test_bound(1e-14, 1e-6));
    points = ctr_verification_roc(ctx, N, distance, same, far, val, cut);
    want = golden_get(g, "verify:curve", &count);
    if (test_true("a curve", want && (int64_t)count == 2 * points)) {
        for (i = 0; i < points; i++) {
            double e = fabs(far[i] - want[2 * i]) + fabs(val[i] - want[2 * i + 1]);
            worst = e > worst ? e : worst;
            if (i) test_true("thresholds rise", cut[i] > cut[i - 1]);
        }
        test_error("the curve", worst, 1e-14);
    }
    test_true(v.text, strstr(v.text, "7 folds") && strstr(v.text, "61 pairs"));
    /* pairs that are told apart without a mistake, and by nothing */
    for (i = 0; i < N; i++) distance[i] = same[i] ? CTR_TEST_R(0.5) : CTR_TEST_R(1.5);
    test_true("perfect", ctr_verification_measure(ctx, N, distance, same, &c, &v));
    test_true("perfect", v.auc == 1 && v.eer == 0 && v.accuracy == 1 && v.val == 1 && v.far == 0 &&
              fabs(v.threshold - 1) < 1e-15);
    for (i = 0; i < N; i++) distance[i] = 1;
    test_true("blind", ctr_verification_measure(ctx, N, distance, same, NULL, &v));
    test_true("blind", v.auc == 0.5 && v.eer == 0.5 && v.val == 0);
    test_fine(ctx, "verification");
    ctr_ctx_destroy(ctx);
}

static void verification_refuses(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_verification_config c, d = ctr_verification_config_default();
    ctr_real distance[4] = { 1, 2, 3, 4 };
    int32_t same[4] = { 1, 0, 1, 0 };
    ctr_verification v;
    ctr_verification_config_init(&c);
    test_true("the defaults", c.folds == 10 && c.far == 0.001 && d.folds == 10 && d.far == 0.001);
    test_equal("10 folds of 4", ctr_verification_measure(ctx, 4, distance, same, NULL, &v), 0);
    test_fails(ctx, "10 folds of 4", CTR_E_VALUE, "folds");
    c.folds = 2;
    c.far = 0;
    test_equal("a FAR of 0", ctr_verification_measure(ctx, 4, distance, same, &c, &v), 0);
    test_fails(ctx, "a FAR of 0", CTR_E_VALUE, "FAR");
    c.far = 0.1;
    same[1] = 2;
    test_equal("same 2", ctr_verification_measure(ctx, 4, distance, same, &c, &v), 0);
    test_fails(ctx, "same 2", CTR_E_VALUE, "same");
    same[1] = same[3] = 1;
    test_equal("one kind", (double)ctr_verification_roc(ctx, 4, distance, same, NULL, NULL, NULL),
               0);
    test_fails(ctx, "one kind", CTR_E_VALUE, "same");
    same[1] = 0;
    { uint32_t bits[2] = { 0x7fc00000u, 0x7ff80000u }; memcpy(distance + 2, bits, 4);
      if (TEST_DOUBLE) { uint64_t nan = (uint64_t)0x7ff8 << 48; memcpy(distance + 2, &nan, 8); } }
    test_equal("NaN", ctr_verification_measure(ctx, 4, distance, same, &c, &v), 0);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "pair 2");
    ctr_ctx_destroy(ctx);
}

/* Pairs by turns; every image takes part; distances are 2 - 2 cos. */
static void pairs(void)
{
    enum { N = 30, D = 4, COUNT = 4000 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_real x[N * D], *distance = test_reals(COUNT);
    int32_t labels[N], *same = (int32_t *)test_alloc(COUNT * sizeof *same);
    int64_t *pair = (int64_t *)test_alloc(2 * COUNT * sizeof *pair), i, j, wrong = 0;
    int64_t seen[2][N];
    double worst = 0;
    ctr_points points;
    memset(seen, 0, sizeof seen);
    test_fill_real("pairs", x, N * D, 1.0);
    for (j = 0; j < D; j++) x[3 * D + j] = 0;
    for (i = 0; i < N; i++) labels[i] = i == 29 ? 9 : i % 7 == 0 ? -1 : (int32_t)(i % 3);
    points = ctr_points_make(N, D, x, labels);
    test_true("draw", ctr_pairs_draw(ctx, N, labels, 1, COUNT, pair, same));
    test_true("measure", ctr_pairs_distance(ctx, &points, COUNT, pair, distance));
    for (i = 0; i < COUNT; i++) {
        int64_t a = pair[2 * i], b = pair[2 * i + 1];
        double dot = 0, na = 0, nb = 0, want;
        wrong += a == b || labels[a] < 0 || labels[b] < 0 || same[i] != (i % 2 == 0) ||
                 same[i] != (labels[a] == labels[b]);
        seen[same[i]][a]++;
        seen[same[i]][b]++;
        for (j = 0; j < D; j++) {
            dot += (double)x[a * D + j] * (double)x[b * D + j];
            na += (double)x[a * D + j] * (double)x[a * D + j];
            nb += (double)x[b * D + j] * (double)x[b * D + j];
        }
        want = na > 0 && nb > 0 ? 2 - 2 * dot / sqrt(na * nb) : 1;
        if (fabs((double)distance[i] - want) > worst) worst = fabs((double)distance[i] - want);
    }
    test_equal("pairs that are not what they are said to be", (double)wrong, 0);
    test_error("distances", worst, test_bound(1e-14, 1e-6));
    for (i = 0; i < N; i++) {
        wrong += labels[i] >= 0 && seen[0][i] == 0;
        wrong += labels[i] >= 0 && i != 29 && seen[1][i] == 0;
        wrong += i == 29 && seen[1][i];
    }
    test_equal("images that are never drawn", (double)wrong, 0);
    pair[0] = N;
    test_equal("an image that is not there", ctr_pairs_distance(ctx, &points, 1, pair, distance),
               0);
    test_fails(ctx, "an image that is not there", CTR_E_VALUE, "pair 0");
    for (i = 0; i < N; i++) labels[i] = 1;
    test_equal("one class", ctr_pairs_draw(ctx, N, labels, 1, 2, pair, same), 0);
    test_fails(ctx, "one class", CTR_E_VALUE, "classes");
    for (i = 0; i < N; i++) labels[i] = (int32_t)i;
    test_equal("classes of one", ctr_pairs_draw(ctx, N, labels, 1, 2, pair, same), 0);
    test_fails(ctx, "classes of one", CTR_E_VALUE, "two images");
    free(distance);
    free(same);
    free(pair);
    ctr_ctx_destroy(ctx);
}

static void reid(golden_file *g)
{
    enum { N = 12, M = 40 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    int64_t index[N * M], i, j, l;
    int32_t labels[M], cameras[M], q_labels[N + 1], q_cameras[N + 1];
    double key[M];
    ctr_real got[5];
    const double *want = golden_get(g, "reid", NULL);
    char name[32];
    ctr_reid r;
    for (j = 0; j < M; j++) {
        labels[j] = (int32_t)(j % 5);
        cameras[j] = (int32_t)(j / 5 % 3);
    }
    for (i = 0; i < N; i++) {
        q_labels[i] = (int32_t)(i % 5);
        q_cameras[i] = (int32_t)(i % 3);
        snprintf(name, sizeof name, "reid:%ld", (long)i);
        golden_fill(name, key, M, 1.0);
        for (j = 0; j < M; j++) {                 /* insertion by rising key */
            for (l = j; l > 0 && key[index[i * M + l - 1]] > key[j]; l--)
                index[i * M + l] = index[i * M + l - 1];
            index[i * M + l] = j;
        }
    }
    test_true("measure", ctr_reid_measure(ctx, N, M, index, q_labels, q_cameras, M, labels, cameras,
                                          &r));
    for (i = 0; i < 4; i++) got[i] = (ctr_real)r.cmc[i];
    got[4] = (ctr_real)r.map;
    if (want) test_near("cmc and map", got, want, 5, 0, test_bound(1e-14, 1e-6));
    test_equal("queries", (double)r.queries, N);
    q_labels[0] = -1;                             /* no label; nothing to find */
    q_labels[1] = 77;
    test_true("measure", ctr_reid_measure(ctx, N, M, index, q_labels, q_cameras, M, labels, cameras,
                                          &r));
    test_equal("queries that count", (double)r.queries, N - 2);
    test_equal("no cameras", ctr_reid_measure(ctx, N, M, index, q_labels, NULL, M, labels, cameras,
                                              &r), 0);
    test_fails(ctx, "no cameras", CTR_E_VALUE, "cameras");
    index[5] = M;
    test_equal("a wrong index", ctr_reid_measure(ctx, N, M, index, q_labels, q_cameras, M, labels,
                                                 cameras, &r), 0);
    test_fails(ctx, "a wrong index", CTR_E_VALUE, "index");
    ctr_ctx_destroy(ctx);
}

static void verifies(void)
{
    golden_file g;
    verification_refuses();
    pairs();
    if (!test_golden_open(&g, "golden_bank.txt")) return;
    verification(&g);
    reid(&g);
    golden_close(&g);
}

static void refused(ctr_ctx *ctx, const char *what, const ctr_npid_config *c, const char *word)
{
    test_true(what, ctr_npid_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t held = ctr_memory_stats(ctx).held;
    ctr_npid_config c, d = ctr_npid_default();
    ctr_npid_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.negatives == 4096 && c.temperature == 0.07 && c.momentum == 0.5 &&
              c.proj_dim == 128 && c.form == CTR_NPID_NCE && c.lr == 0.03 && c.optim.decay_all);
    c.encoder.depth = 8;
    refused(ctx, "no number of images", &c, "images");
    c.images = 24;
    c.negatives = 0;
    refused(ctx, "no negatives", &c, "negative");
    c.negatives = 4;
    c.form = (ctr_npid_form)3;
    refused(ctx, "form 3", &c, "form");
    c.form = CTR_NPID_INFONCE;
    c.temperature = 0;
    refused(ctx, "temperature 0", &c, "temperature");
    c.temperature = 0.1;
    c.momentum = 1.5;
    refused(ctx, "momentum 1.5", &c, "momentum");
    c.momentum = 0.5;
    c.proj_dim = 0;
    refused(ctx, "embeddings of 0 numbers", &c, "mlp");
    c.proj_dim = 8;
    c.aug.crop_max = 2;
    refused(ctx, "crops of twice the image", &c, "crop");
    configs_facenet(ctx);
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    training t[KINDS];
    int i;
    for (i = 0; i < KINDS; i++) t[i] = run_of(i);
    test_begin("test_bank", argc, argv);
    test_group("configs");
    configs();
    test_group("the bank");
    bank_rows();
    bank_refuses();
    test_group("drawing by weight");
    alias();
    test_group("reports");
    reports();
    reports_facenet();
    test_group("batches by class");
    class_orders(3, 4);
    class_orders(12, 2);
    class_orders(5, 1);
    class_orders(1, 13);
    class_loader();
    chosen();
    test_group("verification");
    verifies();
    test_group("a steady step allocates nothing and is planned");
    for (i = 0; i < KINDS; i++) {
        training two = t[i];
        two.config.threads = 2;
        training_steady(&two, 2, 9);
        training_planned(&two);
    }
    test_group("the same bytes for any number of threads");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == NCE || i == SIAMESE) training_same_bytes(&t[i]);
    test_group("the same bytes after stopping and resuming");
    for (i = 0; i < KINDS; i++) training_resumes(&t[i]);
    test_group("another data set");
    other_data();
    test_group("the fake device");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == NCE || i == SIAMESE) training_same_on_device(&t[i]);
    test_group("the n-th allocation fails");
    for (i = 0; i < KINDS; i++)
        training_failing_allocations(&t[i], 0, test_quick() || MODEL_SLOW ? 41 : 3);
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
