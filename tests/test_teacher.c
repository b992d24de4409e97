/* test_teacher.c - MoCo, BYOL, SimSiam, and what shares their code: Barlow Twins and VICReg.
 * run: float double asan tsan smoke
 *
 * 1. Three steps of each against PyTorch in float64 (tests/golden/golden_teacher.txt): losses,
 *    parameters, running statistics, the target, the queue.
 * 2. The queue's order for any batch size; the target's move in closed form; no gradient in it.
 * 3. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed.
 * 4. A run whose n-th allocation fails; a steady step allocates nothing; the plan is what it needs.
 * 5. Shuffled batch norm; what a report says; configurations and batches that are refused.
 */
#include "training.h"

enum { MOCO1, MOCO2, MOCO2S, MOCO3, BYOL, BYOLAVG, SIMSIAM, BARLOW, VICREG, KINDS };
static const char *const kinds[KINDS] = {
    "moco1", "moco2g", "moco2s", "moco3", "byol", "byolavg", "simsiam", "barlow", "vicreg"
};

/* ------------------------------------------------------------------------- small ones of each kind
 */

typedef struct sizes {
    int64_t width, side, hidden, dim, pred, queue;
    int shuffle;
} sizes;

static ctr_optim_config rule(int lars)
{
    ctr_optim_config c = ctr_optim_config_default(lars ? CTR_OPTIM_LARS : CTR_OPTIM_SGD);
    c.decay_all = !lars;
    return c;
}

static ctr_resnet_config net_of(const sizes *s)
{
    ctr_resnet_config c = ctr_resnet_config_default(8);
    c.width = s->width;
    c.image_size = s->side;
    return c;
}

static ctr_method *make_moco(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_moco_config c = ctr_moco_default(kind == MOCO1 ? 1 : kind == MOCO3 ? 3 : 2);
    c.encoder = net_of(s);
    c.proj_hidden = s->hidden;
    c.proj_dim = s->dim;
    c.pred_hidden = s->pred;
    c.queue = s->queue;
    c.momentum = kind == MOCO1 ? 0.99 : kind == MOCO3 ? 0.5 : 0.9;
    if (kind == MOCO3) c.temperature = 0.7;
    c.symmetric = kind == MOCO2S;
    c.split_norm = kind == MOCO2 ? 2 : 1;
    c.shuffle = s->shuffle && kind != MOCO3;
    c.aug[0] = ctr_aug_moco_default(s->side, c.version, 0);
    c.aug[1] = ctr_aug_moco_default(s->side, c.version, 1);
    c.optim = rule(kind == MOCO3);
    return ctr_moco_create(ctx, &c);
}

static ctr_method *make_byol(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_byol_config c = ctr_byol_default();
    c.encoder = net_of(s);
    c.proj_hidden = s->hidden;
    c.proj_dim = s->dim;
    c.pred_hidden = s->pred;
    c.momentum = 0.9;
    c.average_buffers = kind == BYOLAVG;
    c.aug[0] = ctr_aug_byol_default(s->side, 0);
    c.aug[1] = ctr_aug_byol_default(s->side, 1);
    c.optim = rule(1);
    return ctr_byol_create(ctx, &c);
}

static ctr_method *make_simsiam(ctr_ctx *ctx, const sizes *s)
{
    ctr_simsiam_config c = ctr_simsiam_default();
    c.encoder = net_of(s);
    c.proj_dim = s->dim;
    c.pred_hidden = s->pred;
    c.aug = ctr_aug_moco_default(s->side, 2, 0);
    c.optim = rule(0);
    return ctr_simsiam_create(ctx, &c);
}

static ctr_method *make_barlow_twins(ctr_ctx *ctx, const sizes *s)
{
    ctr_barlow_twins_config c = ctr_barlow_twins_default();
    int i;
    c.encoder = net_of(s);
    c.proj_dim = s->dim;
    for (i = 0; i < 2; i++) c.aug[i] = ctr_aug_byol_default(s->side, i);
    c.optim = rule(1);
    c.optim.bias_rate = 0.024;
    return ctr_barlow_twins_create(ctx, &c);
}

static ctr_method *make(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_vicreg_config c = ctr_vicreg_default();
    int i;
    if (kind <= MOCO3) return make_moco(ctx, kind, s);
    if (kind <= BYOLAVG) return make_byol(ctx, kind, s);
    if (kind == SIMSIAM) return make_simsiam(ctx, s);
    if (kind == BARLOW) return make_barlow_twins(ctx, s);
    c.encoder = net_of(s);
    c.proj_dim = s->dim;
    for (i = 0; i < 2; i++) c.aug[i] = ctr_aug_byol_default(s->side, i);
    c.optim = rule(1);
    return ctr_vicreg_create(ctx, &c);
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

/* The golden weights: the target starts as a copy, the queue with unit rows. */
static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ctx *ctx = ((model_walk *)user)->ctx;
    ctr_var v = model_var(name, t, conv);
    if (strcmp(name, "queue.rows") == 0) {
        ctr_real *x = test_reals(t->size);
        test_fill_real(name, x, t->size, 1.0);
        model_unit_rows(x, t->shape[0], t->shape[1]);
        ctr_tensor_write(ctx, t, x, t->size);
        free(x);
    } else if (strncmp(name, "optim.", 6) && strncmp(name, "queue.", 6)) {
        model_fill_var(ctx, &v, strncmp(name, "target.", 7) ? 0 : 7);
    }
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (strncmp(name, "optim.", 6) && strncmp(name, "queue.", 6))
        model_compare((model_walk *)user, name, t, conv);
}

static void compare_queue(model_walk *w, ctr_method *method)
{
    ctr_var rows = model_state(method, "queue.rows");
    const double *want;
    ctr_real *x;
    size_t n;
    char key[64];
    if (!rows.value) return;
    snprintf(key, sizeof key, "%s:queue", w->kind);
    want = golden_get(w->g, key, &n);
    if (!test_true(key, want && (int64_t)n == rows.value->size)) return;
    x = test_reals(rows.value->size);
    ctr_tensor_read(w->ctx, rows.value, x, rows.value->size);
    test_near(key, x, want, rows.value->size, 0, test_bound(1e-8, 2e-2));
    free(x);
}

/* Rates fall from step to step; a fixed predictor keeps the first. */
static double golden_rate(int kind, int t)
{
    static const double sgd[3] = { 0.1, 0.08, 0.05 }, lars[3] = { 0.3, 0.2, 0.1 };
    return kind < MOCO3 || kind == SIMSIAM ? sgd[t] : lars[t];
}

static void golden_steps(golden_file *g, int kind)
{
    sizes s = { 16, 16, 24, 16, 20, 16, 0 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, kind, &s);
    const double *losses;
    char name[64];
    ctr_report report;
    model_walk w;
    double worst = 0, e;
    int t;
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.g = g;
    w.kind = kinds[kind];
    w.bound = test_bound(1e-8, 5e-2);
    snprintf(name, sizeof name, "%s:loss", kinds[kind]);
    losses = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses)) return;
    model_visit(method, &w, fill_tensor);
    method->run.steps = 10;
    method->run.lr = golden_rate(kind, 0);
    for (t = 0; t < 3; t++) {
        ctr_batch batch;
        snprintf(name, sizeof name, "views:%d", t + 1);
        batch = model_batch(name, 6, 2, 16, 16);
        test_true("step", ctr_method_step(method, &batch, golden_rate(kind, t), &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t + 1);
        e = fabs(report.loss - losses[t]) / (fabs(losses[t]) > 1 ? fabs(losses[t]) : 1);
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        worst = e > worst ? e : worst;
        model_batch_free(&batch);
    }
    model_visit(method, &w, compare_tensor);
    test_true("all of the network was compared", w.compared >= 50);
    compare_queue(&w, method);
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", kinds[kind], worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(void)
{
    golden_file g;
    int i;
    if (!test_golden_open(&g, "golden_teacher.txt")) return;
    for (i = 0; i < KINDS; i++)
        if ((!MODEL_SLOW && !test_quick()) || i == MOCO2 || i == BYOL || i == BARLOW)
            golden_steps(&g, i);
    golden_close(&g);
}

/* ----------------------------------------------------------------------------------- the queue */

/* Pushes of 3, 5, 0, 8, 1, 13 and 2 keys into 7 rows against a list on the host. */
static void queue_order(int64_t size)
{
    static const int64_t pushes[7] = { 3, 5, 0, 8, 1, 13, 2 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_vars vars;
    ctr_queue q;
    ctr_real row[3], label, x[13 * 3];
    int64_t i, k, at, total = 0, shape[2] = { 0, 3 };
    int32_t labels[13];
    int wrong = 0;
    ctr_vars_init(&vars);
    ctr_queue_init(ctx, &q, &vars, "q.", size, 3);
    for (i = 0; i < 7; i++) {
        ctr_tensor *keys;
        shape[0] = pushes[i];
        ctr_step_begin(ctx);
        keys = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
        for (k = 0; k < pushes[i]; k++) {
            x[k * 3] = x[k * 3 + 1] = x[k * 3 + 2] = (ctr_real)(total + k);
            labels[k] = (int32_t)(total + k) % 4 - 1;
        }
        ctr_tensor_write(ctx, keys, x, keys->size);
        ctr_queue_push(ctx, &q, keys, labels);
        ctr_step_end(ctx);
        total += pushes[i];
        wrong += q.pushed != total || ctr_queue_filled(&q) != (total < size ? total : size);
        for (at = 0; at < size; at++) { /* the newest key whose number is `at` modulo size */
            int64_t key = total - 1 - ((total - 1 - at) % size + size) % size;
            if (key < 0) continue;
            ctr_k_download(ctx, sizeof row, (ctr_real *)q.rows->data + at * 3, row);
            ctr_k_download(ctx, sizeof label, (ctr_real *)q.labels->data + at, &label);
            wrong += row[0] != (ctr_real)key || row[2] != (ctr_real)key ||
                     label != (ctr_real)(key % 4 - 1);
        }
    }
    test_equal("rows and labels that are not where they belong", wrong, 0);
    test_fine(ctx, "a queue");
    ctr_vars_destroy(ctx, &vars);
    ctr_ctx_destroy(ctx);
}

static void queue_start(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_vars vars;
    ctr_queue q;
    ctr_real x[40 * 8];
    double worst = 0, mean = 0;
    int32_t batch[4] = { 0, 1, 1, -1 };
    int64_t i, j, shape[2] = { 5, 8 };
    ctr_tensor *keys;
    ctr_vars_init(&vars);
    ctr_queue_init(ctx, &q, &vars, "q.", 40, 8);
    ctr_tensor_read(ctx, q.rows, x, 40 * 8);
    for (i = 0; i < 40; i++) {
        double norm = 0;
        for (j = 0; j < 8; j++) {
            norm += (double)x[i * 8 + j] * (double)x[i * 8 + j];
            mean += (double)x[i * 8 + j];
        }
        worst = fabs(norm - 1) > worst ? fabs(norm - 1) : worst;
    }
    test_error("random unit rows", worst, test_bound(1e-14, 1e-6));
    test_error("that lie all around", fabs(mean / 320), 0.1);
    test_equal("nothing is known of them", ctr_queue_false_negatives(ctx, &q, 4, batch), -1);
    ctr_step_begin(ctx);
    keys = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
    ctr_tensor_fill(ctx, keys, 1);
    { int32_t of[5] = { 1, 1, 0, 7, -1 }; ctr_queue_push(ctx, &q, keys, of); }
    ctr_step_end(ctx);
    /* anchors 0, 1, 1 and keys 1, 1, 0, 7: 1 + 2 + 2 of 12 pairs */
    test_error("false negatives", fabs(ctr_queue_false_negatives(ctx, &q, 4, batch) - 5.0 / 12),
               1e-15);
    test_equal("without labels", ctr_queue_false_negatives(ctx, &q, 4, NULL), -1);
    shape[1] = 7;
    keys = ctr_tensor_create(ctx, CTR_F32, 2, shape, 0);
    ctr_queue_push(ctx, &q, keys, NULL);
    test_fails(ctx, "keys of another size", CTR_E_SHAPE, "queue_push");
    test_equal("do not count", (double)q.pushed, 5);
    ctr_tensor_destroy(ctx, keys);
    ctr_queue_init(ctx, &q, &vars, "none.", 0, 8);
    test_fails(ctx, "a queue of nothing", CTR_E_VALUE, "queue");
    ctr_vars_destroy(ctx, &vars);
    ctr_ctx_destroy(ctx);
}

/* ---------------------------------------------------------------------------- the target moves */

static double *values_of(ctr_method *method, const char *name, int64_t *n)
{
    ctr_var v = model_state(method, name);
    ctr_real *x;
    double *d;
    int64_t i;
    *n = 0;
    if (!test_true(name, v.value != NULL)) return NULL;
    *n = v.value->size;
    x = test_reals(*n);
    d = test_doubles(*n);
    ctr_tensor_read(method->ctx, v.value, x, *n);
    for (i = 0; i < *n; i++) d[i] = (double)x[i];
    free(x);
    return d;
}

/* With rate 0 the online network stands still, and after k steps what is left of the distance is
   the product of the momenta. */
static void moves(int cosine, int average)
{
    static const char *const name = "encoder.layer2.0.conv1.weight";
    static const char *const buffer = "projector.1.running_mean";
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_byol_config c = ctr_byol_default();
    sizes s = { 4, 8, 12, 8, 10, 0, 0 };
    ctr_method *m;
    double *online, *start, *end, *means = NULL, *now, *target = NULL, left = 1, tau, worst = 0;
    int64_t n, k, i;
    char of[64], of_buffer[64];
    snprintf(of, sizeof of, "target.%s", name);
    snprintf(of_buffer, sizeof of_buffer, "target.%s", buffer);
    c.encoder = net_of(&s);
    c.proj_hidden = c.pred_hidden = 12;
    c.proj_dim = 8;
    c.momentum = 0.8;
    c.momentum_cosine = cosine;
    c.own_target = 1;
    c.average_buffers = average;
    m = ctr_byol_create(ctx, &c);
    m->run.steps = 6;
    online = values_of(m, name, &n);
    start = values_of(m, of, &n);
    for (k = 0; k < 4; k++) {
        ctr_batch batch = model_batch("moves", 5, 2, 8, 8);
        batch.pixels[0] = (ctr_real)(0.1 * (double)k);
        test_true("step", ctr_method_step(m, &batch, 0, NULL));
        tau = cosine ? 1 - 0.2 * 0.5 * (1 + cos(3.14159265358979323846 * (double)k / 6)) : 0.8;
        left *= tau;
        now = values_of(m, buffer, &n);
        if (!target) target = test_doubles(n);
        for (i = 0; i < n; i++) target[i] = tau * target[i] + (1 - tau) * now[i];
        free(now);
        model_batch_free(&batch);
    }
    end = values_of(m, of, &n);
    for (i = 0; i < n; i++) {
        double want = online[i] + left * (start[i] - online[i]);
        worst = fabs(end[i] - want) > worst ? fabs(end[i] - want) : worst;
    }
    test_error("after four steps", worst, test_bound(1e-14, 1e-6));
    test_true("it had a way to go", n > 0 && fabs(start[0] - online[0]) > 1e-3);
    means = values_of(m, of_buffer, &n);
    for (worst = 0, i = 0; i < n; i++)
        worst = fabs(means[i] - target[i]) > worst ? fabs(means[i] - target[i]) : worst;
    if (average) test_error("running means follow alike", worst, test_bound(1e-14, 1e-6));
    else test_true("running means are the target's own", worst > 1e-4);
    test_fine(ctx, "moves");
    free(online);
    free(start);
    free(end);
    free(means);
    free(target);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
}

static void momenta(void)
{
    static const double want[5] = { 0.996, 0.9965857864376269, 0.998, 0.9994142135623731, 1 };
    int i;
    for (i = 0; i < 5; i++)
        test_error("tau of a quarter more", fabs(ctr_momentum_cosine(0.996, 25 * i, 100) - want[i]),
                   1e-15);
    test_equal("an unknown end", ctr_momentum_cosine(0.996, 7, 0), 0.996);
    test_equal("after the end", ctr_momentum_cosine(0.996, 200, 100), 1);
}

/* Every trained variable has a gradient after a step, and no variable of the target has room for
   one. */
static void gradients(int kind)
{
    sizes s = { 4, 8, 12, 8, 10, 16, 1 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_method *m = make(ctx, kind, &s);
    ctr_batch batch = model_batch("gradients", 6, 2, 8, 8);
    ctr_var v;
    char name[96];
    int i, missing = 0, targets = 0, wrong = 0;
    test_true("step", ctr_method_step(m, &batch, 0.01, NULL));
    for (i = 0; i < m->encoder->count; i++) {
        const ctr_var *own = &m->encoder->list[i];
        missing += own->kind != CTR_KIND_BUFFER && !ctr_tensor_has_grad(ctx, own->value);
        snprintf(name, sizeof name, "target.%.80s", own->name);
        v = model_state(m, name);
        if (!v.value) continue;
        targets++;
        wrong += v.value->grad != NULL || ctr_tensor_has_grad(ctx, v.value);
    }
    v = model_state(m, "predictor.0.weight");
    test_true("the predictor learns", v.value ? ctr_tensor_has_grad(ctx, v.value)
                                              : kind < MOCO3 || kind >= BARLOW);
    test_equal("trained variables without a gradient", missing, 0);
    test_equal("targets with one", wrong, 0);
    test_equal("variables of the target", targets, kind >= SIMSIAM ? 0 : m->encoder->count);
    test_fine(ctx, "gradients");
    model_batch_free(&batch);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
}

/* ---------------------------------------------------------------------- one small training run */

/* rows: of the queue. */
static ctr_method *make_small(ctr_ctx *ctx, const training *t)
{
    sizes s = { 4, 8, 12, 8, 10, 0, 1 };
    s.queue = t->rows;
    return make(ctx, t->kind, &s);
}

static training run_of(int kind)
{
    training t = training_default(kinds[kind], make_small);
    t.kind = kind;
    t.rows = 10;
    return t;
}

static void keep_warning(void *user, ctr_log_level level, const char *text)
{
    if (level == CTR_LOG_WARN) snprintf((char *)user, 256, "%s", text);
}

/* ------------------------------------------------------------------- shuffling, groups, reports */

/* One step of MoCo v2 on 8 images; the queue's rows to x [16, 8]. */
static double shuffled(int split, int shuffle, int symmetric, uint64_t seed, ctr_real *x)
{
    ctr_config config = ctr_config_default();
    ctr_moco_config c = ctr_moco_default(2);
    sizes s = { 4, 8, 12, 8, 10, 16, 0 };
    ctr_batch batch = model_batch("shuffled", 8, 2, 8, 8);
    ctr_report report;
    ctr_method *m;
    ctr_ctx *ctx;
    model_walk w;
    config.seed = seed;
    ctx = ctr_ctx_create(&config);
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    c.encoder = net_of(&s);
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.queue = 16;
    c.split_norm = split;
    c.shuffle = shuffle;
    c.symmetric = symmetric;
    m = ctr_moco_create(ctx, &c);
    report.loss = -1;
    if (m) {
        model_visit(m, &w, fill_tensor);
        test_true("step", ctr_method_step(m, &batch, 0.1, &report));
        ctr_tensor_read(ctx, model_state(m, "queue.rows").value, x, 16 * 8);
    }
    test_fine(ctx, "shuffled");
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
    model_batch_free(&batch);
    return report.loss;
}

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

/* In one group a shuffle changes nothing but the order of sums: every key comes home. In groups it
   changes the keys. */
static void shuffles(void)
{
    ctr_real plain[128], x[128], y[128];
    double loss;
    int symmetric;
    for (symmetric = 0; symmetric < 2; symmetric++) {
        loss = shuffled(1, 0, symmetric, 1, plain);
        test_error("a shuffle in one group: the loss", fabs(shuffled(1, 1, symmetric, 1, x) - loss),
                   test_bound(1e-12, 1e-4));
        test_error("the keys", apart(plain, x, 128), test_bound(1e-12, 1e-4));
        shuffled(2, 0, symmetric, 1, y);
        test_true("groups see other statistics", apart(plain, y, 64) > 1e-3);
        shuffled(2, 1, symmetric, 1, x);
        test_true("shuffled groups as well", apart(x, y, 64) > 1e-3);
        shuffled(2, 1, symmetric, 2, y);
        test_true("another seed, another order", apart(x, y, 64) > 1e-3);
    }
}

static void groups(void)
{
    training c = run_of(MOCO2);
    ctr_batch batch = model_batch("odd", 5, 2, 8, 8);
    uint64_t before;
    training_run r;
    training_begin(&r, &c);
    before = ctr_method_hash(r.method);
    test_equal("5 images in 2 groups", ctr_method_step(r.method, &batch, 0.1, NULL), 0);
    test_fails(r.ctx, "5 images in 2 groups", CTR_E_SHAPE, "groups");
    test_true("leave the method as it was", ctr_method_hash(r.method) == before);
    test_true("a step follows", training_steps(&r, 1, NULL));
    batch.pixels[7] = (ctr_real)1e30;
    test_equal("numbers out of all bounds", ctr_method_step(r.method, &batch, 1e30, NULL), 0);
    test_true("are an error", ctr_error(r.ctx) != CTR_OK);
    ctr_error_clear(r.ctx);
    model_batch_free(&batch);
    training_end(&r);
}

static void reports(void)
{
    int32_t labels[6] = { 0, 0, 1, 2, -1, 1 };
    ctr_batch batch = model_batch("report", 6, 2, 8, 8);
    ctr_report a;
    char text[256], warned[256];
    int kind;
    batch.labels = labels;
    memcpy(batch.pixels + 6 * 192, batch.pixels, 6 * 192 * sizeof(ctr_real)); /* equal views */
    for (kind = 0; kind < KINDS; kind++) {
        training c = run_of(kind);
        double chance = kind == MOCO1 || kind == MOCO2 ? log(21.0)
                        : kind == MOCO2S ? 2 * log(21.0)
                        : kind == MOCO3 ? 4 * 0.7 * log(6.0)
                        : kind == BARLOW ? 8 * 1.2 + 0.0051 * 8 * 7 / 5
                        : kind == SIMSIAM ? 0 : kind == VICREG ? -1 : 4;
        training_run r;
        warned[0] = 0;
        c.rows = 20;
        c.config.log_user = warned;
        c.config.log_fn = keep_warning;
        training_begin(&r, &c);
        r.method->run.images = 24;
        test_true("step", ctr_method_step(r.method, &batch, 0.04, &a));
        test_error("chance", fabs(a.chance - chance), 1e-14);
        test_true("a warning of long queues", (strstr(warned, "queue of 20") != NULL) ==
                                                  (kind < MOCO3));
        if (kind < MOCO3) {
            test_equal("the queue was empty", a.active, 0);
            test_equal("so nothing was known", a.false_negatives, -1);
        }
        if (kind == MOCO1 || kind >= BARLOW)
            test_true("equal views in equal networks", a.positive > 0.999 && a.accuracy == 1);
        test_true("cosines", a.positive <= 1.0001 && a.negative >= -1.0001 && a.negative <= 1);
        test_true("accuracy", a.accuracy >= 0 && a.accuracy <= 1);
        test_true("std", a.std > 0 && a.std < 1.3 * a.std_reference);
        test_true("step", ctr_method_step(r.method, &batch, 0.04, &a));
        if (kind < MOCO3) {
            /* 5 labelled anchors, 5 labelled keys a view: 2 x 2 + 2 x 2 + 1 of 25 */
            test_error("active", fabs(a.active - (kind == MOCO2S ? 12 : 6) / 20.0), 1e-15);
            test_error("false negatives", fabs(a.false_negatives - 9.0 / 25), 1e-15);
        }
        r.method->describe_fn(r.method, text, sizeof text);
        test_true(text, strncmp(text, r.method->name, strlen(r.method->name)) == 0 &&
                            strstr(text, " resnet8 width=4 stem=small channels=3 head="));
        test_fine(r.ctx, "reports");
        training_end(&r);
    }
    model_batch_free(&batch);
}

/* ------------------------------------------------------------------------------- configurations */

static void refused_moco(ctr_ctx *ctx, const char *what, const ctr_moco_config *c, const char *word)
{
    test_true(what, ctr_moco_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs_moco(ctr_ctx *ctx)
{
    ctr_moco_config c, d;
    int version;
    for (version = 1; version <= 3; version++) {
        ctr_moco_config_init(&c, version);
        d = ctr_moco_default(version);
        test_bytes("default and init are one", &c, &d, sizeof c);
    }
    test_true("version 3", d.momentum == 0.99 && d.momentum_cosine && d.temperature == 1 &&
              d.optim.kind == CTR_OPTIM_LARS && d.aug[1].solarize_p == 0.2 &&
              d.aug[0].crop_min == 0.2);
    d = ctr_moco_default(1);
    test_true("version 1", d.momentum == 0.999 && d.temperature == 0.07 && d.queue == 65536 &&
              d.proj_dim == 128 && d.optim.decay_all && d.aug[0].jitter_p == 1);
    c = ctr_moco_default(2);
    test_true("version 2", c.temperature == 0.2 && c.aug[0].hue == 0.1 && !c.symmetric);
    c.encoder.depth = 8;
    c.queue = 64;
    c.version = 0;
    refused_moco(ctx, "version 0", &c, "version");
    c.version = 4;
    refused_moco(ctx, "version 4", &c, "version");
    c.version = 2;
    c.temperature = 0;
    refused_moco(ctx, "temperature 0", &c, "temperature");
    c.temperature = 0.2;
    c.momentum = 1.5;
    refused_moco(ctx, "momentum 1.5", &c, "momentum");
    c.momentum = 0.9;
    c.queue = 0;
    refused_moco(ctx, "no queue", &c, "queue");
    c.queue = 64;
    c.split_norm = 0;
    refused_moco(ctx, "no group", &c, "split_norm");
    c.split_norm = 1;
    c.proj_dim = 0;
    refused_moco(ctx, "keys of 0 numbers", &c, "mlp");
    c.proj_dim = 8;
    c.aug[1].crop_max = 2;
    refused_moco(ctx, "crops of twice the image", &c, "crop");
    c.aug[1].crop_max = 1;
    c.optim.bias_rate = -1;
    refused_moco(ctx, "a rate below 0", &c, "bias_rate");
}

static void configs_twins(ctr_ctx *ctx)
{
    ctr_barlow_twins_config b, b2 = ctr_barlow_twins_default();
    ctr_vicreg_config v, v2 = ctr_vicreg_default();
    ctr_barlow_twins_config_init(&b);
    test_bytes("default and init are one", &b, &b2, sizeof b);
    test_true("Barlow Twins", b.lambda == 0.0051 && b.proj_dim == 8192 && b.proj_layers == 3 &&
              b.optim.bias_rate == 0.024 && b.aug[1].solarize_p == 0.2);
    b.encoder.depth = 8;
    b.lambda = -1;
    test_true("lambda -1", ctr_barlow_twins_create(ctx, &b) == NULL);
    test_fails(ctx, "lambda -1", CTR_E_VALUE, "lambda");
    b.lambda = 0.1;
    b.proj_dim = 0;
    test_true("embeddings of 0 numbers", ctr_barlow_twins_create(ctx, &b) == NULL);
    test_fails(ctx, "embeddings of 0 numbers", CTR_E_VALUE, "mlp");
    ctr_vicreg_config_init(&v);
    test_bytes("default and init are one", &v, &v2, sizeof v);
    test_true("VICReg", v.invariance == 25 && v.variance == 25 && v.covariance == 1 &&
              v.aug[0].solarize_p == 0.1 && v.aug[1].solarize_p == 0.1);
    v.encoder.depth = 8;
    v.covariance = -1;
    test_true("covariance -1", ctr_vicreg_create(ctx, &v) == NULL);
    test_fails(ctx, "covariance -1", CTR_E_VALUE, "covariance");
    v.covariance = 1;
    v.encoder.depth = 9;
    test_true("a ResNet-9", ctr_vicreg_create(ctx, &v) == NULL);
    test_fails(ctx, "a ResNet-9", CTR_E_VALUE, "depth");
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t held = ctr_memory_stats(ctx).held;
    ctr_byol_config b, b2 = ctr_byol_default();
    ctr_simsiam_config s, s2 = ctr_simsiam_default();
    ctr_aug_config a, a2 = ctr_aug_byol_default(96, 1);
    configs_moco(ctx);
    ctr_byol_config_init(&b);
    test_bytes("default and init are one", &b, &b2, sizeof b);
    test_true("BYOL", b.momentum == 0.996 && b.proj_hidden == 4096 && b.proj_dim == 256 &&
              b.aug[1].solarize_p == 0.2 && b.aug[0].solarize_p == 0 && b.aug[0].blur_p == 0);
    ctr_aug_byol_config_init(&a, 96, 1);
    test_bytes("default and init are one", &a, &a2, sizeof a);
    test_true("blur from 33 pixels on", a.blur_p == 0.1 && ctr_aug_byol_default(96, 0).blur_p == 1);
    ctr_aug_moco_config_init(&a, 96, 2, 0);
    a2 = ctr_aug_moco_default(96, 2, 0);
    test_bytes("default and init are one", &a, &a2, sizeof a);
    test_true("MoCo", a.blur_p == 0.5 && a.interp == CTR_INTERP_BILINEAR && a.solarize_p == 0);
    b.encoder.depth = 8;
    b.momentum = -0.1;
    test_true("momentum -0.1", ctr_byol_create(ctx, &b) == NULL);
    test_fails(ctx, "momentum -0.1", CTR_E_VALUE, "momentum");
    b.momentum = 0.9;
    b.pred_hidden = 0;
    test_true("a predictor of no width", ctr_byol_create(ctx, &b) == NULL);
    test_fails(ctx, "a predictor of no width", CTR_E_VALUE, "mlp");
    ctr_simsiam_config_init(&s);
    test_bytes("default and init are one", &s, &s2, sizeof s);
    test_true("SimSiam", s.proj_layers == 3 && s.proj_dim == 2048 && s.pred_hidden == 512 &&
              s.fixed_predictor && s.optim.kind == CTR_OPTIM_SGD);
    configs_twins(ctx);
    s.encoder.depth = 8;
    s.proj_layers = 5;
    test_true("five layers", ctr_simsiam_create(ctx, &s) == NULL);
    test_fails(ctx, "five layers", CTR_E_VALUE, "mlp");
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    training t[KINDS];
    int i;
    for (i = 0; i < KINDS; i++) t[i] = run_of(i);
    test_begin("test_teacher", argc, argv);
    test_group("configs");
    configs();
    test_group("the queue");
    queue_start();
    queue_order(7);
    queue_order(1);
    queue_order(40);
    test_group("the target");
    momenta();
    moves(0, 0);
    moves(1, 0);
    moves(1, 1);
    for (i = 0; i < KINDS; i++) gradients(i);
    test_group("shuffling and groups");
    shuffles();
    groups();
    test_group("reports");
    reports();
    test_group("a steady step allocates nothing and is planned");
    for (i = 0; i < KINDS; i++) {
        training two = t[i];
        two.config.threads = 2;
        training_steady(&two, 2, 9);
        training_planned(&two);
    }
    test_group("the same bytes for any number of threads");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == MOCO2) training_same_bytes(&t[i]);
    test_group("the same bytes after stopping and resuming");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == MOCO2S || i == BYOLAVG || i == SIMSIAM) training_resumes(&t[i]);
    test_group("the fake device");
    for (i = 0; i < KINDS; i++)
        if (!test_quick() || i == MOCO2 || i == BYOL) training_same_on_device(&t[i]);
    test_group("the n-th allocation fails");
    for (i = 0; i < KINDS; i++) {
        t[i].rows = 6;
        training_failing_allocations(&t[i], 0, test_quick() || MODEL_SLOW ? 71 : 3);
    }
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
