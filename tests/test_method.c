/* test_method.c - SimCLR and the step that every method takes.
 * run: float double asan tsan valgrind smoke
 *
 * 1. Three steps of ResNet-8 and ResNet-18 with SGD, LARS and AdamW against PyTorch in float64
 *    (tests/golden/golden_step.txt): losses, gradients, parameters, running statistics, features.
 * 2. The same checkpoint, byte for byte, for 1, 2, 3 and 7 threads; the same state on the fake
 * device.
 * 3. A steady step allocates nothing; the plan is what a step needs.
 * 4. A training run whose n-th allocation fails, for every n.
 * 5. Batches that are refused leave the model as it was.
 * 6. Representations change nothing.
 */
#include "training.h"

/* -------------------------------------------------------------------------- PyTorch's three steps
 */

typedef struct step_case {
    const char *net;
    int depth;
    int64_t n, side, hidden, dim;
} step_case;

static const step_case step_cases[2] = {
    { "resnet8", 8, 6, 32, 64, 32 }, { "resnet18s", 18, 4, 16, 512, 128 }
};

static ctr_method *step_method(ctr_ctx *ctx, const step_case *c, const char *rule, double *lr)
{
    ctr_simclr_config config = ctr_simclr_default();
    ctr_method *method;
    config.encoder = ctr_resnet_config_default(c->depth);
    config.encoder.stem = CTR_STEM_SMALL;
    config.proj_hidden = c->hidden;
    config.proj_dim = c->dim;
    config.temperature = 0.5;
    if (strcmp(rule, "sgd") == 0) {
        config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
        *lr = 0.1;
    } else if (strcmp(rule, "lars") == 0) {
        config.optim = ctr_optim_config_default(CTR_OPTIM_LARS);
        config.optim.decay = 1e-6;
        *lr = 0.3;
    } else {
        config.optim = ctr_optim_config_default(CTR_OPTIM_ADAMW);
        *lr = 0.001;
    }
    method = ctr_simclr_create(ctx, &config);
    if (method) model_fill(ctx, method->encoder, "");
    return method;
}

/* All records of gradients, or of parameters and buffers. Returns the largest error. */
static double step_compare(ctr_ctx *ctx, ctr_method *method, golden_file *g, const char *net,
                           const char *rule, double bound)
{
    double worst = 0;
    int i;
    for (i = 0; i < method->encoder->count; i++) {
        const ctr_var *v = &method->encoder->list[i];
        int buffer = v->kind == CTR_KIND_BUFFER;
        char key[192];
        ctr_real *x;
        double e;
        if (!rule && buffer) continue;
        if (rule)
            snprintf(key, sizeof key, "%s:%s:%s:%s", net, rule, buffer ? "buffer" : "param",
                     v->name);
        else
            snprintf(key, sizeof key, "%s:grad:%s", net, v->name);
        x = model_read(ctx, v, !rule);
        e = test_digest(g, key, x, v->value->size, TEST_DOUBLE ? 0 : 1e-3);
        test_error(key, e, bound);
        worst = e > worst ? e : worst;
        free(x);
    }
    return worst;
}

/* In float, rounding flips ReLU masks: a flip is worth about 1e-2 of a parameter after three steps
   of a ResNet-8 on twelve rows, and more in a ResNet-18 on eight, where only the first step's loss
   and gradients are compared closely. */
static void golden_steps(ctr_ctx *ctx, golden_file *g, const step_case *c, const char *rule)
{
    int small = c->depth == 8;
    double lr = 0, e, worst[4] = { 0 }, later = test_bound(1e-8, small ? 5e-3 : 0.1);
    ctr_method *method = step_method(ctx, c, rule, &lr);
    const double *losses;
    ctr_real *features;
    ctr_batch batch;
    ctr_report report;
    char name[96];
    int t;
    snprintf(name, sizeof name, "%s:%s:loss", c->net, rule);
    losses = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses)) return;
    for (t = 0; t < 3; t++) {
        snprintf(name, sizeof name, "views:%d", t + 1);
        batch = model_batch(name, c->n, 2, c->side, c->side);
        test_true("step", ctr_method_step(method, &batch, lr, &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s %s loss of step %d", c->net, rule, t + 1);
        e = fabs(report.loss - losses[t]);
        test_error(name, e, t ? later : test_bound(1e-8, 1e-4));
        worst[0] = e > worst[0] ? e : worst[0];
        if (!t) worst[1] = step_compare(ctx, method, g, c->net, NULL, test_bound(1e-8, 1e-2));
        model_batch_free(&batch);
    }
    if (TEST_DOUBLE || small)
        worst[2] = step_compare(ctx, method, g, c->net, rule, test_bound(1e-8, 5e-2));
    batch = model_batch("views:1", c->n, 2, c->side, c->side);
    features = test_reals(2 * c->n * method->features);
    test_true("represent", ctr_method_represent(method, 2 * c->n, c->side, c->side, 3, batch.pixels,
                                                5, features));
    snprintf(name, sizeof name, "%s:%s:features", c->net, rule);
    worst[3] = test_digest(g, name, features, 2 * c->n * method->features, 0);
    test_error(name, worst[3], test_bound(1e-8, small ? 5e-2 : 0.2));
    printf("     %s %s: loss %.2g, gradients %.2g, parameters and buffers %.2g, features %.2g\n",
           c->net, rule, worst[0], worst[1], worst[2], worst[3]);
    free(features);
    model_batch_free(&batch);
    ctr_method_destroy(method);
}

static void golden_all(void)
{
    static const char *const rules[3] = { "sgd", "lars", "adamw" };
    golden_file g;
    int i, k;
    if (!test_golden_open(&g, "golden_step.txt")) return;
    for (i = 0; i < 2; i++)
        for (k = 0; k < 3; k++) {
            ctr_ctx *ctx;
            if ((test_quick() || MODEL_SLOW) && i + k) continue;
            ctx = test_ctx(2, CTR_KERNELS_AUTO);
            golden_steps(ctx, &g, &step_cases[i], rules[k]);
            ctr_ctx_destroy(ctx);
        }
    golden_close(&g);
}

/* ---------------------------------------------------------------------- one small training run */

/* What a run of SimCLR may choose. */
typedef struct simclr_options {
    int depth, supervised, split_norm, layers, views;
    int64_t width;
} simclr_options;

static const simclr_options small = { 8, 0, 0, 2, 2, 4 };

static ctr_method *make(ctr_ctx *ctx, const training *t)
{
    const simclr_options *o = (const simclr_options *)t->data;
    ctr_simclr_config s = ctr_simclr_default();
    s.encoder = ctr_resnet_config_default(o->depth);
    s.encoder.width = o->width;
    s.encoder.stem = CTR_STEM_SMALL;
    s.proj_layers = o->layers;
    s.proj_hidden = 16;
    s.proj_dim = 8;
    s.views = o->views;
    s.supervised = o->supervised;
    s.split_norm = o->split_norm;
    s.aug = ctr_aug_simclr_default(t->side);
    s.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    return ctr_simclr_create(ctx, &s);
}

static training run_of(const char *name, const simclr_options *o)
{
    training t = training_default(name, make);
    t.data = o;
    return t;
}

/* ------------------------------------------------------------------------------ the same bytes */

static void same_bytes_all(void)
{
    simclr_options o = small;
    training t = run_of("resnet8-w4", &o);
    training_same_bytes(&t);
    if (test_quick()) return;
    t.name = "resnet8-w4, scalar, three views, SupCon";
    t.config.kernels = CTR_KERNELS_SCALAR;
    o.views = 3;
    o.supervised = 1;
    training_same_bytes(&t);
    if (MODEL_SLOW || TEST_DOUBLE) return; /* double has the scalar kernels alone */
    t = run_of("resnet8, 28 pixels, batch 19, norms by view", &o);
    o = small;
    o.width = 16;
    o.split_norm = 1;
    t.images = 40;
    t.side = 28;
    t.loader.batch = 19;
    training_same_bytes(&t);
    t = run_of("resnet50-w12, 16 pixels, head of three layers", &o);
    o = small;
    o.depth = 50;
    o.width = 12;
    o.layers = 3;
    t.side = 16;
    t.loader.batch = 5;
    training_same_bytes(&t);
}

static void same_on_device(void)
{
    simclr_options o = small;
    training t = run_of("three views", &o);
    fake_device *fake;
    uint64_t on_cpu, on_device;
    if (test_on_device()) {
        test_skip("simclr", "compares the fake device with the CPU");
        return;
    }
    fake = fake_device_open();
    t.config.kernels = CTR_KERNELS_SCALAR;
    on_cpu = training_hash(&t, NULL);
    t.config.device = &fake->device;
    on_device = training_hash(&t, "device.ctr");
    test_true("six steps on the fake device: the hash of the scalar kernels",
              on_cpu != 0 && on_cpu == on_device);
    test_true("it ran the optimiser and the convolutions", fake_device_ran(fake, "sgd") &&
              fake_device_ran(fake, "conv_weight") && fake_device_ran(fake, "norm_grad"));
    t.config.device = NULL;
    fake_device_close(fake);
    remove("device.ctr");
    if (test_quick()) o.width = 2;
    else o.depth = 20;
    o.views = 3;
    training_same_on_device(&t);
}

/* --------------------------------------------------------------------------- memory of a step */

/* With the loader at work, and of one batch again and again. */
static void steady(void)
{
    training t = run_of("simclr", &small);
    test_allocator watch;
    ctr_batch batch;
    ctr_report report;
    long before;
    training_run r;
    int i;
    training_steady(&t, 2, 12);
    t.config.threads = 3;
    training_steady(&t, 2, 12);
    t.config.threads = 1;
    t.config.allocator = test_allocator_init(&watch);
    training_begin(&r, &t);
    if (!test_true("a run to watch", r.loader && training_steps(&r, 2, &report) &&
                   training_next(&r, &batch))) return;
    before = watch.calls;
    for (i = 0; i < 12; i++)
        test_true("step", ctr_method_step(r.method, &batch, 0.05, &report));
    test_equal("allocations in 12 steady steps of one batch", (double)(watch.calls - before), 0);
    test_fine(r.ctx, "12 steady steps of one batch");
    training_end(&r);
    test_equal("blocks that were never freed", (double)watch.live, 0);
    test_equal("bad frees", (double)watch.bad_frees, 0);
}

/* What the plan says, and what the slab held at most in the step. */
static void plan(const training *t)
{
    char what[128];
    ctr_batch batch;
    ctr_memory m;
    size_t bytes;
    training_run r;
    training_begin(&r, t);
    if (!test_true("a run to plan", r.loader != NULL)) return;
    training_next(&r, &batch);
    test_true("step", ctr_method_step(r.method, &batch, 0.05, NULL));
    m = ctr_memory_stats(r.ctx);
    bytes = ctr_method_plan(r.method, batch.n, batch.h, batch.w, batch.c);
    snprintf(what, sizeof what, "%s: the plan is the slab's peak, %lu KB", t->name,
             (unsigned long)(bytes >> 10));
    test_true(what, bytes >= m.slab_peak && bytes <= m.slab_peak + 64);
    test_fine(r.ctx, what);
    snprintf(what, sizeof what, "%s: the first step has a slab of the plan's size", t->name);
    test_equal(what, (double)m.slab, (double)((bytes + 63) / 64 * 64));
    snprintf(what, sizeof what, "%s: and never held more than is held after it", t->name);
    test_true(what, m.peak < m.held + bytes / 16 + ((size_t)1 << 18));
    training_end(&r);
}

static void plan_all(void)
{
    simclr_options o = small;
    training t = run_of("resnet8-w4", &o);
    plan(&t);
    t.name = "resnet8-w4, three views";
    t.config.threads = 2;
    o.views = 3;
    o.split_norm = 1;
    plan(&t);
    t = run_of("resnet50-w8", &o);
    o = small;
    o.depth = 50;
    o.width = 8;
    t.side = 16;
    plan(&t);
    t = run_of("resnet20", &o);
    o = small;
    o.depth = 20;
    o.width = 16;
    t.side = 32;
    t.loader.batch = 16;
    if (!test_quick()) plan(&t);
}

/* Wrong sizes come up in the plan, before any memory is there. */
static void plan_errors(void)
{
    training c = run_of("simclr", &small);
    training_run r;
    uint64_t before;
    training_begin(&r, &c);
    before = ctr_method_hash(r.method);
    ctr_method_plan(r.method, 4, 8, 8, 1);
    test_fails(r.ctx, "plan for one channel", CTR_E_SHAPE, "resnet");
    ctr_method_plan(r.method, 0, 8, 8, 3);
    test_true("plan for no images", ctr_error(r.ctx) != CTR_OK);
    ctr_error_clear(r.ctx);
    test_true("a plan of 2^20 images of 1024 pixels is only counted",
              ctr_method_plan(r.method, 1 << 20, 1024, 1024, 3) / 2 > (size_t)1 << 44);
    test_fine(r.ctx, "a huge plan");
    test_true("a plan changes nothing", ctr_method_hash(r.method) == before);
    test_true("and steps go on", training_steps(&r, 1, NULL));
    training_end(&r);
}

/* ------------------------------------------------------------------- the n-th allocation fails */

static void fail_everything(void)
{
    simclr_options o = small;
    training t = run_of("one allocation fails", &o);
    o.width = 2;
    training_failing_allocations(&t, TRAINING_FILES, test_quick() ? 47 : 1);
    t.name = "and all that follow";
    training_failing_allocations(&t, TRAINING_FILES | TRAINING_ALL_AFTER,
                                 test_quick() ? 61 : TEST_DOUBLE ? 7 : 3);
    t.name = "three threads";
    t.config.threads = 3;
    training_failing_allocations(&t, TRAINING_FILES, test_quick() ? 61 : 5);
}

/* ------------------------------------------------------------------------- batches that are
 * refused */

static ctr_real not_a_number(int infinite)
{
    uint32_t bits32 = infinite ? 0x7f800000u : 0x7fc00000u;
    uint64_t bits64 = (uint64_t)(infinite ? 0x7ff00000u : 0x7ff80000u) << 32;
    ctr_real v;
    memcpy(&v, TEST_DOUBLE ? (const void *)&bits64 : (const void *)&bits32, sizeof v);
    return v;
}

/* A step that must fail and leave the method as it was; the next one works. */
static void refused(ctr_method *method, const char *what, const ctr_batch *batch, double lr,
                    ctr_status status, const char *word)
{
    ctr_ctx *ctx = method->ctx;
    ctr_batch good = model_batch("good", 4, method->views, 8, 8);
    uint64_t before = ctr_method_hash(method);
    ctr_report report;
    test_equal(what, ctr_method_step(method, batch, lr, &report), 0);
    test_fails(ctx, what, status, word);
    test_true("the method is as it was", ctr_method_hash(method) == before);
    test_true("a good step follows", ctr_method_step(method, &good, 0.01, &report));
    test_true("and changes it", ctr_method_hash(method) != before);
    test_fine(ctx, what);
    model_batch_free(&good);
}

static void refused_batches(void)
{
    training c = run_of("simclr", &small);
    ctr_batch b;
    training_run r;
    training_begin(&r, &c);
    if (!test_true("a method", r.method != NULL)) return;
    b = model_batch("b", 4, 2, 8, 8);
    b.pixels[(4 + 2) * 8 * 8 * 3 + 5] = not_a_number(0);
    refused(r.method, "NaN in image 2 of view 1", &b, 0.1, CTR_E_NUMBER, "image 2 of view 1");
    b.pixels[(4 + 2) * 8 * 8 * 3 + 5] = 0;
    b.pixels[0] = not_a_number(1);
    refused(r.method, "infinity in image 0 of view 0", &b, 0.1, CTR_E_NUMBER, "image 0 of view 0");
    b.pixels[0] = 0;
    b.pixels[2 * 4 * 8 * 8 * 3 - 1] = not_a_number(0);
    refused(r.method, "NaN in the last number", &b, 0.1, CTR_E_NUMBER, "image 3 of view 1");
    b.pixels[2 * 4 * 8 * 8 * 3 - 1] = 0;
    b.views = 3;
    b.n = 2;
    refused(r.method, "three views", &b, 0.1, CTR_E_SHAPE, "views");
    b.views = 1;
    b.n = 8;
    refused(r.method, "one view", &b, 0.1, CTR_E_SHAPE, "views");
    b.views = 2;
    b.groups = 2;
    refused(r.method, "views of two sizes, one of them missing", &b, 0.1, CTR_E_SHAPE, "1 size");
    b.groups = 0;
    b.n = 12;
    b.c = 1;
    refused(r.method, "one channel", &b, 0.1, CTR_E_SHAPE, "expected images");
    b.n = 4;
    b.c = 3;
    refused(r.method, "a rate that is not a number", &b, (double)not_a_number(0), CTR_E_VALUE,
            "rate");
    refused(r.method, "an infinite rate", &b, (double)not_a_number(1), CTR_E_VALUE, "rate");
    refused(r.method, "a negative rate", &b, -1, CTR_E_VALUE, "at least 0, got -1");
    b.n = 0;
    refused(r.method, "no images", &b, 0.1, CTR_E_VALUE, "2 images or more, got 0");
    model_batch_free(&b);
    training_end(&r);
}

/* One image: its two views have nobody to be told from. It is refused, unless a loss of the
   caller's is said to need no others: then NT-Xent is 0 and only decay moves. */
static void batch_of_one(void)
{
    simclr_options o = small;
    training c = run_of("simclr", &small);
    ctr_report report;
    ctr_batch b = model_batch("one", 1, 2, 8, 8);
    training_run r;
    training_begin(&r, &c);
    refused(r.method, "a batch of 1", &b, 0.1, CTR_E_VALUE, "2 images or more, got 1");
    r.method->least = 0;
    test_true("a batch of 1", ctr_method_step(r.method, &b, 0.1, &report));
    test_error("its loss", fabs(report.loss), test_bound(1e-13, 1e-5));
    test_equal("its chance", report.chance, 0);
    test_fine(r.ctx, "a batch of 1");
    training_end(&r);
    /* without space there is one value a channel and group: an error, and no change */
    o.split_norm = 1;
    c.data = &o;
    training_begin(&r, &c);
    r.method->least = 0;
    refused(r.method, "a batch of 1 with norms by view", &b, 0.1, CTR_E_SHAPE, "batch of 1");
    model_batch_free(&b);
    training_end(&r);
}

static ctr_tensor *(*plain_loss_)(ctr_method *, ctr_tensor *, const ctr_batch *, ctr_report *);

/* Finite (0), with an infinite gradient. */
static ctr_tensor *steep_loss(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                              ctr_report *report)
{
    ctr_tensor *loss = plain_loss_(method, z, batch, report);
    return ctr_sqrt(method->ctx, ctr_sub(method->ctx, loss, ctr_detach(method->ctx, loss)));
}

static ctr_tensor *infinite_loss(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                                 ctr_report *report)
{
    ctr_ctx *ctx = method->ctx;
    return ctr_div(ctx, plain_loss_(method, z, batch, report),
                   ctr_scale(ctx, ctr_detach(ctx, ctr_mean(ctx, z, -1)), 0.0));
}

/* The functions of a method are its user's to replace: losses that go wrong in three ways. */
static void refused_losses(void)
{
    training c = run_of("simclr", &small);
    ctr_batch good = model_batch("good", 4, 2, 8, 8);
    const ctr_var *v;
    ctr_real *values, keep;
    uint64_t before;
    training_run r;
    training_begin(&r, &c);
    plain_loss_ = r.method->loss_fn;
    before = ctr_method_hash(r.method);
    r.method->loss_fn = infinite_loss;
    test_equal("an infinite loss", ctr_method_step(r.method, &good, 0.1, NULL), 0);
    test_fails(r.ctx, "an infinite loss", CTR_E_NUMBER, "loss");
    test_true("the method is as it was", ctr_method_hash(r.method) == before);
    r.method->loss_fn = steep_loss;
    test_equal("an infinite gradient", ctr_method_step(r.method, &good, 0.1, NULL), 0);
    test_fails(r.ctx, "an infinite gradient", CTR_E_NUMBER, "gradient of ");
    test_true("the method is as it was", ctr_method_hash(r.method) == before);
    r.method->loss_fn = plain_loss_;
    v = ctr_vars_find(r.method->encoder, "encoder.layer2.0.conv1.weight");
    if (test_true("a variable by its name", v != NULL)) {
        values = test_reals(v->value->size);
        ctr_tensor_read(r.ctx, v->value, values, v->value->size);
        keep = values[3];
        values[3] = not_a_number(0);
        ctr_tensor_write(r.ctx, v->value, values, v->value->size);
        before = ctr_method_hash(r.method);
        test_equal("a weight that is NaN", ctr_method_step(r.method, &good, 0.1, NULL), 0);
        test_fails(r.ctx, "a weight that is NaN", CTR_E_NUMBER, "not finite");
        test_true("the method is as it was", ctr_method_hash(r.method) == before);
        values[3] = keep;
        ctr_tensor_write(r.ctx, v->value, values, v->value->size);
        free(values);
    }
    test_true("a good step follows", ctr_method_step(r.method, &good, 0.1, NULL));
    test_fine(r.ctx, "losses that go wrong");
    model_batch_free(&good);
    training_end(&r);
}

/* ---------------------------------------------------------------- what a method tells and shows */

static void reports(void)
{
    training c = run_of("simclr", &small);
    ctr_report a, b;
    ctr_batch batch;
    int32_t labels[6] = { 0, 0, 1, 2, -1, 1 };
    training_run r;
    training_begin(&r, &c);
    batch = model_batch("report", 6, 2, 8, 8);
    batch.labels = labels;
    batch.epoch = 3;
    batch.batch = 2;
    memcpy(batch.pixels + 6 * 192, batch.pixels, 6 * 192 * sizeof(ctr_real)); /* equal views */
    test_true("step", ctr_method_step(r.method, &batch, 0.001953125, &a));
    test_true("where it was", a.epoch == 3 && a.batch == 2 && a.lr == 0.001953125);
    test_error("chance: ln 11", fabs(a.chance - log(11.0)), 1e-14);
    test_error("equal views: positives at cosine 1", fabs(a.positive - 1), test_bound(1e-12, 1e-5));
    test_true("negatives below", a.negative < a.positive && a.negative >= -1);
    test_equal("equal views: every anchor finds its own", a.accuracy, 1);
    test_equal("every anchor has a positive", a.active, 1);
    test_error("false negatives: 2 of 10 pairs", fabs(a.false_negatives - 0.2), 1e-15);
    test_error("std of an even spread in 8 dimensions", fabs(a.std_reference - sqrt(0.125)), 1e-15);
    test_true("the std", a.std > 0.01 && a.std < 1.2 * a.std_reference);
    test_true("time", a.seconds > 0 && a.seconds < 60);
    batch.labels = NULL;
    test_true("step", ctr_method_step(r.method, &batch, 0.001953125, &b));
    test_equal("no labels: not known", b.false_negatives, -1);
    test_true("a lower loss on the same batch", b.loss < a.loss);
    model_batch_free(&batch);
    training_end(&r);
}

typedef struct seen {
    int tensors, numbers, convs;
    int64_t values;
} seen;

static void see_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    seen *s = (seen *)user;
    if (!name[0] || strlen(name) > 127) s->tensors = -1000;
    s->tensors++;
    s->convs += conv;
    s->values += t->size;
}

static void see_number(void *user, const char *name, int64_t *value)
{
    seen *s = (seen *)user;
    if (!name[0] || !value) s->numbers = -1000;
    s->numbers++;
}

/* Parameters, buffers and momenta, each once. */
static void visits(void)
{
    training c = run_of("simclr", &small);
    ctr_visitor v;
    seen s;
    char text[256];
    int i, trained = 0;
    training_run r;
    memset(&s, 0, sizeof s);
    training_begin(&r, &c);
    v.user = &s;
    v.tensor_fn = see_tensor;
    v.number_fn = see_number;
    ctr_method_visit(r.method, &v);
    for (i = 0; i < r.method->encoder->count; i++)
        trained += r.method->encoder->list[i].kind != CTR_KIND_BUFFER;
    test_equal("tensors visited", s.tensors, r.method->encoder->count + trained);
    test_equal(
        "numbers in them", (double)s.values,
        (double)(ctr_vars_numbers(r.method->encoder, 1) + ctr_vars_numbers(r.method->encoder, 0)));
    test_equal("counters visited", s.numbers, 1);
    test_equal("nine convolutions and their momenta are marked", s.convs, 18);
    r.method->describe_fn(r.method, text, sizeof text);
    test_text("describe", text, "simclr resnet8 width=4 stem=small channels=3 head=2x16-8");
    test_text("name", r.method->name, "simclr");
    test_true("sizes", r.method->features == 16 && r.method->dim == 8 && r.method->views == 2);
    training_end(&r);
}

/* Representations in chunks of any size, and what they leave alone. */
static void represents(void)
{
    training c = run_of("simclr", &small);
    static const int64_t chunks[4] = { 1, 3, 64, 0 };
    ctr_batch b = model_batch("represent", 7, 1, 8, 8);
    ctr_real *first, *out;
    double *want;
    uint64_t before;
    int i, k;
    training_run r;
    training_begin(&r, &c);
    test_true("two steps", training_steps(&r, 2, NULL));
    first = test_reals(7 * 16);
    out = test_reals(7 * 16);
    want = test_doubles(7 * 16);
    before = ctr_method_hash(r.method);
    for (i = 0; i < 4; i++) {
        test_true("represent", ctr_method_represent(r.method, 7, 8, 8, 3, b.pixels, chunks[i],
                                                    i ? out : first));
        for (k = 0; k < 7 * 16; k++) want[k] = (double)first[k];
        if (i) test_near("the size of chunks", out, want, 7 * 16, test_bound(1e-13, 1e-5), 0);
    }
    test_true("represent changes nothing", ctr_method_hash(r.method) == before);
    test_true("no images are no error",
              ctr_method_represent(r.method, 0, 8, 8, 3, b.pixels, 4, out));
    test_equal("represent: wrong channels",
               ctr_method_represent(r.method, 7, 8, 8, 2, b.pixels, 4, out), 0);
    test_fails(r.ctx, "represent: wrong channels", CTR_E_SHAPE, "expected images");
    test_true("a step follows", training_steps(&r, 1, NULL));
    test_fine(r.ctx, "represent");
    free(first);
    free(out);
    free(want);
    model_batch_free(&b);
    training_end(&r);
}

/* A network that is not recorded needs the memory of a block or two, from the first image on. */
static void represents_memory(void)
{
    simclr_options o = small;
    training c = run_of("simclr", &small);
    ctr_batch b = model_batch("memory", 24, 1, 16, 16);
    ctr_real *out = test_reals(24 * 32);
    ctr_memory before, after;
    size_t step;
    training_run r;
    o.depth = 20;
    o.width = 8;
    c.data = &o;
    c.side = 16;
    training_begin(&r, &c);
    step = ctr_method_plan(r.method, 12, 16, 16, 3);
    before = ctr_memory_stats(r.ctx);
    test_true("represent", ctr_method_represent(r.method, 24, 16, 16, 3, b.pixels, 24, out));
    after = ctr_memory_stats(r.ctx);
    test_true("the slab is less than half of what training on so many images takes",
              after.slab > 0 && 2 * after.slab < step);
    test_true("nor was there ever more",
              after.peak < before.peak + after.slab + ((size_t)1 << 20));
    test_fine(r.ctx, "memory of representations");
    free(out);
    model_batch_free(&b);
    training_end(&r);
}

static void represents_dataset(void)
{
    training c = run_of("simclr", &small);
    ctr_aug_config none = ctr_aug_none_default(8), aug = ctr_aug_simclr_default(8);
    ctr_real *pixels, *whole, *out, *again;
    int32_t labels[24];
    uint64_t before;
    int64_t i;
    double worst = 0;
    training_run r;
    training_begin(&r, &c);
    pixels = test_reals(24 * 192);
    whole = test_reals(24 * 16);
    out = test_reals(24 * 16);
    again = test_reals(24 * 16);
    test_true("two steps", training_steps(&r, 2, NULL));
    before = ctr_method_hash(r.method);
    memset(labels, 0xff, sizeof labels);
    test_true("pixels",
              ctr_method_represent_dataset(r.ctx, NULL, r.dataset, &none, 1, pixels, labels));
    for (i = 0; i < 24 * 192; i++) {
        double e = fabs((double)pixels[i] - r.pixels[i] / 255.0);
        worst = e > worst ? e : worst;
    }
    test_error("without a method: the pixels in 0..1", worst, 1e-6);
    test_bytes("labels", labels, r.labels, sizeof labels);
    test_true("features",
              ctr_method_represent_dataset(r.ctx, r.method, r.dataset, &none, 1, whole, NULL));
    test_true("of those pixels", ctr_method_represent(r.method, 24, 8, 8, 3, pixels, 64, out));
    test_bytes("the same features", whole, out, (size_t)(24 * 16) * sizeof *out);
    test_true("through views",
              ctr_method_represent_dataset(r.ctx, r.method, r.dataset, &aug, 5, out, NULL));
    test_true("again",
              ctr_method_represent_dataset(r.ctx, r.method, r.dataset, &aug, 5, again, NULL));
    test_bytes("the same seed, the same views", out, again, (size_t)(24 * 16) * sizeof *out);
    test_true("another seed",
              ctr_method_represent_dataset(r.ctx, r.method, r.dataset, &aug, 6, again, NULL));
    test_true("gives other views", memcmp(out, again, (size_t)(24 * 16) * sizeof *out) != 0);
    test_true("nothing has changed", ctr_method_hash(r.method) == before);
    test_fine(r.ctx, "represent_dataset");
    free(pixels);
    free(whole);
    free(out);
    free(again);
    training_end(&r);
}

static void refused_create(ctr_ctx *ctx, const char *what, const ctr_simclr_config *config,
                           const char *word)
{
    test_true(what, ctr_simclr_create(ctx, config) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_simclr_config c, d = ctr_simclr_default();
    size_t held = ctr_memory_stats(ctx).held;
    ctr_simclr_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("defaults", c.encoder.depth == 18 && c.proj_layers == 2 && c.proj_dim == 128 &&
              c.temperature == 0.5 && c.views == 2 && c.optim.kind == CTR_OPTIM_LARS);
    c.encoder.depth = 8;
    c.encoder.width = 4;
    c.views = 1;
    refused_create(ctx, "one view", &c, "views");
    c.views = 65;
    refused_create(ctx, "65 views", &c, "views");
    c.views = 2;
    c.temperature = 0;
    refused_create(ctx, "temperature 0", &c, "temperature");
    c.temperature = (double)not_a_number(0);
    refused_create(ctx, "temperature NaN", &c, "temperature");
    c.temperature = 0.5;
    c.encoder.depth = 19;
    refused_create(ctx, "a ResNet-19", &c, "depth");
    c.encoder.depth = 8;
    c.proj_layers = 5;
    refused_create(ctx, "a head of 5 layers", &c, "mlp");
    c.proj_layers = 0;
    refused_create(ctx, "a head of no layers", &c, "mlp");
    c.proj_layers = 2;
    c.proj_dim = 0;
    refused_create(ctx, "embeddings of 0 numbers", &c, "mlp");
    c.proj_dim = 8;
    c.optim.momentum = 1;
    refused_create(ctx, "momentum 1", &c, "momentum");
    c.optim.momentum = 0.9;
    c.aug.crop_max = 2;
    refused_create(ctx, "crops of twice the image", &c, "crop");
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_method_destroy(NULL);
    test_equal("lr fixed", ctr_lr_scaled(0.3, CTR_LR_FIXED, 512), 0.3);
    test_equal("lr linear", ctr_lr_scaled(0.3, CTR_LR_LINEAR, 512), 0.6);
    test_equal("lr square root", ctr_lr_scaled(0.3, CTR_LR_SQRT, 1024), 0.6);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    test_begin("test_method", argc, argv);
    test_group("configs");
    configs();
    test_group("reports and visits");
    reports();
    visits();
    test_group("representations");
    represents();
    represents_memory();
    represents_dataset();
    test_group("a steady step allocates nothing");
    steady();
    test_group("plan");
    plan_all();
    plan_errors();
    test_group("refused batches and losses");
    refused_batches();
    batch_of_one();
    refused_losses();
    test_group("the same bytes for any number of threads");
    same_bytes_all();
    test_group("the fake device");
    same_on_device();
    test_group("the n-th allocation fails");
    fail_everything();
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
