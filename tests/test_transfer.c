/* test_transfer.c - what a trained encoder is good for: its file, supervised training and
 * fine-tuning, shares of the labels, few shots, clusters.
 * run: float double asan tsan smoke
 *
 * 1. Three supervised steps (labels, smoothing and another rate for the classifier, soft targets,
 *    frozen) against PyTorch in float64 (tests/golden/golden_transfer.txt).
 * 2. The same bytes for any number of threads, on the fake device and resumed; failing allocations;
 *    steady steps; the plan; training from a file; that it learns.
 * 3. Networks told from checkpoints, weight files and every depth; what is refused.
 * 4. The split by its definition; few shots against an independent program, clusters against their
 *    parts.
 */
#include "training.h"

enum { PLAIN, SMOOTH, SOFT, FROZEN, KINDS };
static const char *const kinds[KINDS] = { "plain", "smooth", "soft", "frozen" };

/* softmax(2 fill("target:t")), the last row left out; t is behind user. */
static void soft_targets(void *user, const ctr_batch *batch, ctr_real *target)
{
    int64_t i, j, n = batch->n, k = 5;
    double *x = test_doubles(n * k), sum;
    char name[32];
    snprintf(name, sizeof name, "target:%d", user ? *(const int *)user : (int)batch->batch);
    test_fill(name, x, n * k, 1.0);
    for (i = 0; i + 1 < n; i++) {
        for (j = 0, sum = 0; j < k; j++) sum += exp(2 * x[i * k + j]);
        for (j = 0; j < k; j++) target[i * k + j] = (ctr_real)(exp(2 * x[i * k + j]) / sum);
    }
    free(x);
}

static ctr_supervised_config config_of(int kind, int64_t width, int64_t side)
{
    ctr_supervised_config c = ctr_supervised_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = width;
    c.encoder.image_size = side;
    c.classes = 5;
    c.frozen = kind == FROZEN;
    if (kind == SMOOTH) {
        c.smoothing = 0.1;
        c.head_rate = 10;
    }
    if (kind == SOFT) c.target_fn = soft_targets;
    c.aug.height = c.aug.width = side;
    return c;
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_var v = model_var(name, t, conv);
    if (strncmp(name, "optim.", 6)) model_fill_var(((model_walk *)user)->ctx, &v, 0);
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (strncmp(name, "optim.", 6)) model_compare((model_walk *)user, name, t, conv);
}

static void golden_steps(golden_file *g, int kind)
{
    static const double rates[3] = { 0.05, 0.04, 0.03 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_supervised_config c = config_of(kind, 16, 16);
    ctr_method *method;
    const double *losses;
    char name[64];
    ctr_report report;
    model_walk w;
    int t, i;
    c.user = &t;
    method = ctr_supervised_create(ctx, &c);
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.g = g;
    w.kind = kinds[kind];
    w.bound = test_bound(1e-8, 5e-2);
    snprintf(name, sizeof name, "%s:loss", kinds[kind]);
    losses = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses)) return;
    model_visit(method, &w, fill_tensor);
    for (t = 1; t <= 3; t++) {
        int32_t labels[6];
        ctr_batch batch;
        for (i = 0; i < 6; i++) labels[i] = (2 * i + t) % 5;
        if (kind == PLAIN) labels[3] = -1;
        snprintf(name, sizeof name, "views:%d", t);
        batch = model_batch(name, 6, 1, 16, 16);
        if (kind != SOFT) batch.labels = labels;
        test_true("step", ctr_method_step(method, &batch, rates[t - 1], &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t);
        test_error(name, fabs(report.loss - losses[t - 1]) / fabs(losses[t - 1]),
                   t > 1 ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        test_error("chance", fabs(report.chance - log(5.0)), 1e-12);
        test_equal("labelled", report.active, kind == SOFT ? -1 : kind == PLAIN ? 5.0 / 6 : 1);
        model_batch_free(&batch);
    }
    model_visit(method, &w, compare_tensor);
    test_true("all of the network was compared", w.compared >= 40);
    printf("     %s: %d parameters and buffers %.2g\n", kinds[kind], w.compared, w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(golden_file *g)
{
    int kind;
    test_group("three steps as in PyTorch");
    for (kind = 0; kind < KINDS; kind++)
        if ((!MODEL_SLOW && !test_quick()) || kind == SMOOTH || kind == FROZEN)
            golden_steps(g, kind);
}

/* -------------------------------------------------------------------------------- training runs */

static ctr_method *make(ctr_ctx *ctx, const training *t)
{
    ctr_supervised_config c = config_of(t->kind, 4, t->side);
    return ctr_supervised_create(ctx, &c);
}

static void runs(void)
{
    training t = training_default("supervised", make);
    int kind;
    for (kind = 0; kind < KINDS; kind++) {
        t.name = kinds[kind];
        t.kind = kind;
        if (test_quick() && kind != SMOOTH) continue;
        test_group(kinds[kind]);
        training_same_bytes(&t);
        training_same_on_device(&t);
        training_resumes(&t);
        training_steady(&t, 2, 9);
        training_planned(&t);
    }
    test_group("failing allocations");
    for (kind = SMOOTH; kind < KINDS; kind += FROZEN - SMOOTH) {
        t.name = kinds[kind];
        t.kind = kind;
        training_failing_allocations(&t, kind == SMOOTH ? TRAINING_FILES : TRAINING_ALL_AFTER,
                                     test_quick() ? 47 : MODEL_SLOW ? 23 : 3);
    }
}

/* 24 pictures of three hues are learnt by heart, also from a file and with a frozen encoder. */
static void learns(void)
{
    training t = training_default("plain", make);
    ctr_fit_config fit = ctr_fit_default();
    ctr_aug_config clean = ctr_aug_none_default(8);
    ctr_supervised_config c = config_of(FROZEN, 4, 8);
    ctr_method *frozen;
    int32_t predicted[24], wrong = 0;
    double before = -2, top1 = -2, linear = -2;
    uint64_t encoder;
    training_run r;
    int i;
    test_group("it learns");
    training_begin(&r, &t);
    fit.epochs = 20;
    fit.warmup_epochs = 0;
    fit.lr = 0.05;
    fit.checkpoint = "learnt.ctr";
    test_true("before", ctr_supervised_classify(r.method, r.dataset, &clean, NULL, &before));
    test_equal("80 steps", (double)ctr_fit(r.method, r.loader, &fit), 80);
    test_true("after", ctr_supervised_classify(r.method, r.dataset, &clean, predicted, &top1));
    for (i = 0; i < 24; i++) wrong += predicted[i] != r.labels[i];
    test_error("predictions and share", fabs(top1 - (24 - wrong) / 24.0), 1e-12);
    test_true("untrained it guesses, trained it knows", before < 0.7 && top1 > 0.9);
    c.weights = "learnt.ctr";
    frozen = ctr_supervised_create(r.ctx, &c);
    if (!test_true("a frozen one", frozen != NULL)) return;
    encoder = model_hash(r.ctx, frozen->encoder);
    test_true("the file's encoder", frozen->features == 16);
    fit.checkpoint = NULL;
    fit.lr = 0.5;
    fit.batch = 6;
    ctr_fit_images(frozen, r.dataset, &fit);
    test_true("a linear layer", ctr_supervised_classify(frozen, r.dataset, &clean, NULL, &linear));
    test_true("learns on its features", linear > 0.9);
    test_true("which stay", encoder == model_hash(r.ctx, frozen->encoder));
    printf("     right of 24: untrained %.2f, trained %.2f, linear layer %.2f\n", before, top1,
           linear);
    test_fine(r.ctx, "learns");
    ctr_method_destroy(frozen);
    training_end(&r);
    remove("learnt.ctr");
}

static void refused(ctr_ctx *ctx, const char *what, const ctr_supervised_config *c,
                    const char *word)
{
    test_true(what, ctr_supervised_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void refuses(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_supervised_config c, same;
    ctr_method *method;
    ctr_batch batch = model_batch("x", 3, 1, 8, 8);
    int32_t labels[3] = { 0, 5, 1 };
    ctr_real x[64], y[20];
    uint64_t hash;
    ctr_report report;
    test_group("refusals");
    memset(&c, 0xff, sizeof c);
    memset(&same, 0xff, sizeof same);
    ctr_supervised_config_init(&c);
    same = ctr_supervised_default();
    test_true("defaults", c.lr == same.lr && c.aug.crop_min == 0.08 && c.aug.jitter_p == 0);
    refused(ctx, "no classes", &c, "classes");
    c = config_of(PLAIN, 4, 8);
    c.smoothing = 1.5;
    refused(ctx, "smoothing", &c, "smoothing");
    c.smoothing = 0;
    c.head_rate = -1;
    refused(ctx, "rate", &c, "head_rate");
    c = config_of(PLAIN, 4, 8);
    method = ctr_supervised_create(ctx, &c);
    if (!test_true("a method", method != NULL)) return;
    hash = ctr_method_hash(method);
    test_true("no labels", !ctr_method_step(method, &batch, 0.1, NULL));
    test_fails(ctx, "no labels", CTR_E_VALUE, "no labels");
    batch.labels = labels;
    test_true("label 5 of 5", !ctr_method_step(method, &batch, 0.1, NULL));
    test_fails(ctx, "label 5 of 5", CTR_E_VALUE, "label 5 of image 1");
    test_true("nothing has changed", hash == ctr_method_hash(method));
    labels[0] = labels[1] = labels[2] = -1;
    test_true("no image has a label", ctr_method_step(method, &batch, 0.1, &report));
    test_equal("its loss", report.loss, 0);
    test_equal("labelled", report.active, 0);
    test_equal("accuracy is not measured", report.accuracy, -1);
    test_fill_real("features", x, 64, 1.0);
    test_true("logits", ctr_supervised_logits(method, 4, x, y));
    ctr_method_destroy(method);
    model_batch_free(&batch);
    ctr_ctx_destroy(ctx);
}

/* The classifier on the host. */
static void logits(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_supervised_config c = config_of(PLAIN, 4, 8);
    ctr_method *method = ctr_supervised_create(ctx, &c);
    ctr_real *x = test_reals(300 * 16), *y = test_reals(300 * 5);
    double *want = test_doubles(300 * 5), *d = test_doubles(5 * 16), b[5];
    model_walk all;
    int64_t i, j, k;
    test_group("logits");
    memset(&all, 0, sizeof all);
    all.ctx = ctx;
    model_visit(method, &all, fill_tensor);
    test_fill_real("features", x, 300 * 16, 1.0);
    golden_fill_param("fc.weight", d, 80, 16);
    golden_fill_param("fc.bias", b, 5, 0);
    for (i = 0; i < 300; i++)
        for (k = 0; k < 5; k++) {
            want[i * 5 + k] = b[k];
            for (j = 0; j < 16; j++) want[i * 5 + k] += (double)x[i * 16 + j] * d[k * 16 + j];
        }
    test_true("logits", ctr_supervised_logits(method, 300, x, y));
    test_near("logits", y, want, 1500, test_bound(1e-12, 1e-5), 0);
    test_fine(ctx, "logits");
    free(d);
    free(x);
    free(y);
    free(want);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

/* ----------------------------------------------------------------------- the network in a file */

/* Every depth, either stem: its weights say what it is. */
static void depths(void)
{
    static const int depth[9] = { 8, 14, 20, 32, 56, 18, 34, 50, 101 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_resnet_config c, found;
    char what[96];
    int i, at;
    test_group("depths");
    for (i = 0; i < 9; i++) {
        ctr_resnet *net = (ctr_resnet *)test_alloc(sizeof *net);
        ctr_vars vars;
        ctr_vars_init(&vars);
        c = ctr_resnet_config_default(depth[i]);
        c.width = 2 + i % 2;
        c.channels = i % 3 ? 3 : 1;
        c.stem = i % 2 ? CTR_STEM_LARGE : CTR_STEM_SMALL;
        ctr_resnet_init(ctx, net, &vars, "net.", &c);
        for (at = 0; at < 2; at++) { /* with torchvision's names, and with ours */
            snprintf(what, sizeof what, "depth %d", depth[i]);
            if (at) ctr_weights_save(ctx, "depth.st", &vars, "net.");
            else ctr_weights_save(ctx, "depth.st", &vars, "");
            memset(&found, 0, sizeof found);
            test_true(what, ctr_encoder_inspect(ctx, "depth.st", i % 2 || at ? NULL : "net.",
                                                &found));
            test_true(what, found.depth == c.depth && found.width == c.width &&
                      found.channels == c.channels && found.stem == c.stem &&
                      found.image_size == (i % 2 ? 224 : 32));
        }
        ctr_vars_destroy(ctx, &vars);
        free(net);
    }
    test_fine(ctx, "depths");
    remove("depth.st");
    ctr_ctx_destroy(ctx);
}

static ctr_method *moco(ctr_ctx *ctx, int depth)
{
    ctr_moco_config c = ctr_moco_default(2);
    c.encoder = ctr_resnet_config_default(depth);
    c.encoder.width = 4;
    c.queue = 8;
    c.proj_dim = 8;
    return ctr_moco_create(ctx, &c);
}

/* Features of three images by a method. */
static void features(ctr_method *method, ctr_real *out)
{
    ctr_real *x = test_reals(3 * 12 * 12 * 3);
    test_fill_real("images", x, 3 * 12 * 12 * 3, 1.0);
    test_true("represent", ctr_method_represent(method, 3, 12, 12, 3, x, 2, out));
    free(x);
}

/* A MoCo checkpoint has two encoders: the trained one is read, whoever reads it. */
static void encoders(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_method *a = moco(ctx, 14), *b, *other = moco(ctx, 8), *deeper = moco(ctx, 20);
    ctr_supervised_config c = config_of(PLAIN, 9, 12);
    ctr_real want[48], got[48];
    ctr_dataset *shapes = ctr_dataset_shapes(ctx, 4, 16, 1);
    ctr_aug_config clean = ctr_aug_none_default(16);
    ctr_batch batch = model_batch("x", 3, 1, 12, 12);
    uint64_t hash = ctr_method_hash(other);
    model_walk w;
    test_group("encoders");
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    model_visit(a, &w, fill_tensor);
    features(a, want);
    test_true("save", ctr_checkpoint_save(a, "moco.ctr", NULL));
    test_true("and as torchvision's", ctr_weights_save(ctx, "weights.st", a->encoder, "encoder."));
    b = ctr_encoder_create(ctx, "moco.ctr", NULL);
    features(b, got);
    test_bytes("from the checkpoint", want, got, sizeof want);
    test_true("no training", !ctr_method_step(b, &batch, 0.1, NULL));
    test_fails(ctx, "no training", CTR_E_STATE, "nothing to train with");
    test_true("no classifier", !ctr_supervised_logits(b, 3, got, want));
    test_fails(ctx, "no classifier", CTR_E_VALUE, "no classifier");
    test_true("none to ask", !ctr_supervised_classify(b, shapes, &clean, NULL, NULL));
    test_fails(ctx, "none to ask", CTR_E_VALUE, "no classifier");
    ctr_method_destroy(b);
    features(a, want);
    b = ctr_encoder_create(ctx, "weights.st", NULL);
    features(b, got);
    test_bytes("from weights", want, got, sizeof want);
    ctr_method_destroy(b);
    b = ctr_encoder_create(ctx, "moco.ctr", "target.encoder.");
    features(b, got);
    test_true("the target is another one", memcmp(want, got, sizeof want) != 0);
    ctr_method_destroy(b);
    c.weights = "moco.ctr";
    b = ctr_supervised_create(ctx, &c);
    features(b, got);
    test_bytes("fine-tuning starts there", want, got, sizeof want);
    ctr_method_destroy(b);
    b = moco(ctx, 14);
    test_true("into a method", ctr_encoder_load(ctx, "moco.ctr", NULL, b->encoder, "encoder."));
    features(b, got);
    test_bytes("into a method", want, got, sizeof want);
    ctr_method_destroy(b);
    ctr_encoder_load(ctx, "moco.ctr", NULL, other->encoder, "encoder.");
    test_fails(ctx, "fewer blocks", CTR_E_FORMAT, "does not have");
    test_true("nothing has changed", hash == ctr_method_hash(other));
    ctr_encoder_load(ctx, "moco.ctr", NULL, deeper->encoder, "encoder.");
    test_fails(ctx, "more blocks", CTR_E_FORMAT, "has no tensor");
    ctr_encoder_load(ctx, "moco.ctr", NULL, deeper->encoder, "anchor.");
    test_fails(ctx, "no such variables", CTR_E_FORMAT, "does not have");
    ctr_encoder_create(ctx, "moco.ctr", "decoder.");
    test_fails(ctx, "no such prefix", CTR_E_FORMAT, "decoder.layer1.0.conv1.weight");
    test_true("nowhere", ctr_encoder_create(ctx, "nowhere", NULL) == NULL);
    test_fails(ctx, "nowhere", CTR_E_FILE, "nowhere");
    ctr_method_destroy(a);
    ctr_method_destroy(other);
    ctr_method_destroy(deeper);
    ctr_dataset_destroy(ctx, shapes);
    model_batch_free(&batch);
    remove("moco.ctr");
    remove("weights.st");
    ctr_ctx_destroy(ctx);
}

/* Files that hold something else. */
static void strangers(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    static const char *const names[4] = { "conv1.weight", "layer1.0.conv1.weight",
                                          "layer2.0.conv1.weight", "layer3.0.conv1.weight" };
    static const float zero[49] = { 0 };
    ctr_file_tensor t[4];
    ctr_resnet_config c;
    int i, side;
    test_group("strangers");
    for (side = 3; side <= 5; side += 2) {
        memset(t, 0, sizeof t);
        for (i = 0; i < 4; i++) {
            t[i].name = names[i];
            t[i].rank = 4;
            t[i].shape[0] = t[i].shape[1] = 1;
            t[i].shape[2] = t[i].shape[3] = side;
            t[i].data = zero;
        }
        ctr_safetensors_save(ctx, "stranger.st", t, 4, NULL, 0);
        if (side == 3) { /* blocks 1, 1, 1: depth 8 */
            test_true("the least there is", ctr_encoder_inspect(ctx, "stranger.st", NULL, &c));
            test_true("depth 8", c.depth == 8 && c.width == 1 && c.channels == 1);
            test_true("but no network", ctr_encoder_create(ctx, "stranger.st", NULL) == NULL);
            test_fails(ctx, "but no network", CTR_E_FORMAT, "has no tensor");
            ctr_safetensors_save(ctx, "stranger.st", t, 3, NULL, 0);
            ctr_encoder_inspect(ctx, "stranger.st", NULL, &c);
            test_fails(ctx, "two stages", CTR_E_FORMAT, "blocks 1, 1, 0, 0");
            ctr_safetensors_save(ctx, "stranger.st", t + 1, 3, NULL, 0);
            ctr_encoder_inspect(ctx, "stranger.st", NULL, &c);
            test_fails(ctx, "no stem", CTR_E_FORMAT, "first convolution of 0");
            ctr_safetensors_save(ctx, "stranger.st", t, 1, NULL, 0);
            ctr_encoder_inspect(ctx, "stranger.st", NULL, &c);
            test_fails(ctx, "no block", CTR_E_FORMAT, "no residual network");
        } else {
            ctr_encoder_inspect(ctx, "stranger.st", NULL, &c);
            test_fails(ctx, "a stem of 5 pixels", CTR_E_FORMAT, "first convolution of 5");
        }
    }
    remove("stranger.st");
    ctr_ctx_destroy(ctx);
}

/* ---------------------------------------------------------------------------- shares of a class */

/* 61 images: 40 of class 0, 12 of 2, 8 of 7, one without a label; image i knows its own number. */
static void splits(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    static const double share[3] = { 0.01, 0.1, 0.5 };
    static const int want[3][4] = { { 1, 1, 1, 1 }, { 4, 1, 1, 1 }, { 20, 6, 4, 1 } };
    uint8_t pixels[61];
    int32_t labels[61];
    int member[3][61], s, i, k;
    ctr_dataset *whole, *part, *rest;
    test_group("splits");
    for (i = 0; i < 61; i++) {
        pixels[i] = (uint8_t)i;
        labels[i] = i == 30 ? -1 : i % 3 ? 0 : i % 5 ? 2 : 7;
    }
    labels[0] = labels[15] = labels[45] = labels[60] = 7;
    for (i = 0, k = 0; i < 61; i++) k += labels[i] == 0;
    test_equal("of class 0", k, 40);
    for (i = 1; i < 61 && k < 44; i++)
        if (labels[i] == 2) labels[i] = 7, k++;
    whole = ctr_dataset_from_memory(ctx, pixels, 61, 1, 1, 1, labels);
    for (s = 0; s < 3; s++) {
        int64_t p, r, j;
        int count[4] = { 0, 0, 0, 0 };
        memset(member[s], 0, sizeof member[s]);
        test_true("split", ctr_dataset_split(ctx, whole, share[s], 5, &part, &rest));
        p = ctr_dataset_count(part);
        r = ctr_dataset_count(rest);
        test_equal("nothing is lost", (double)(p + r), 61);
        for (j = 0; j < p + r; j++) {
            ctr_dataset *d = j < p ? part : rest;
            int64_t at = j < p ? j : j - p;
            int32_t label = ctr_dataset_label(d, at);
            static int last;
            ctr_image image;
            if (!ctr_dataset_image(ctx, d, at, &image)) break;
            i = image.pixels[0];
            test_true("in order", at == 0 || i > last);
            test_true("once", member[s][i] == 0 && label == labels[i]);
            last = i;
            member[s][i] = j < p ? 1 : 2;
            if (j < p) count[label < 0 ? 3 : label == 0 ? 0 : label == 2 ? 1 : 2]++;
            ctr_image_free(ctx, &image);
        }
        for (k = 0; k < 4; k++) test_equal("of a class", count[k], want[s][k]);
        for (i = 0; s && i < 61; i++)
            test_true("a smaller share lies in a larger", member[s - 1][i] != 1 ||
                      member[s][i] == 1);
        ctr_dataset_destroy(ctx, part);
        ctr_dataset_destroy(ctx, rest);
    }
    test_true("another seed", ctr_dataset_split(ctx, whole, 0.5, 6, &part, NULL));
    for (i = 0, k = 0; i < ctr_dataset_count(part); i++) {
        ctr_image image;
        ctr_dataset_image(ctx, part, i, &image);
        k += member[2][image.pixels[0]] != 1;
        ctr_image_free(ctx, &image);
    }
    test_true("draws others", k > 3);
    ctr_dataset_destroy(ctx, part);
    ctr_dataset_destroy(ctx, whole);
    labels[0] = 0;
    labels[1] = 1;
    whole = ctr_dataset_from_memory(ctx, pixels, 2, 1, 1, 1, labels);
    test_true("one of each is all", ctr_dataset_split(ctx, whole, 0.1, 1, &part, &rest));
    test_true("no rest", ctr_dataset_count(part) == 2 && rest == NULL);
    ctr_dataset_destroy(ctx, part);
    test_fine(ctx, "splits");
    ctr_dataset_split(ctx, whole, 0, 1, &part, &rest);
    test_fails(ctx, "a share of 0", CTR_E_VALUE, "share");
    ctr_dataset_split(ctx, whole, 1, 1, &part, &rest);
    test_fails(ctx, "a share of 1", CTR_E_VALUE, "share");
    ctr_dataset_destroy(ctx, whole);
    ctr_ctx_destroy(ctx);
}

/* -------------------------------------------------------------------------- shots and clusters */

static void shot_points(ctr_real *x, int32_t *labels)
{
    double *a = test_doubles(630), *c = test_doubles(42);
    int i, j;
    golden_fill("shot.x", a, 630, 1.0);
    golden_fill("shot.c", c, 42, 1.0);
    for (i = 0; i < 90; i++) {
        labels[i] = i == 7 || i == 20 ? -1 : i * i % 6;
        for (j = 0; j < 7; j++)
            x[i * 7 + j] = (ctr_real)(a[i * 7 + j] +
                                      0.4 * c[(labels[i] < 0 ? 0 : labels[i]) * 7 + j]);
    }
    free(a);
    free(c);
}

static void fewshot(golden_file *g)
{
    static const struct { int cosine, ways, shots, queries, episodes; uint64_t seed; } cases[4] = {
        { 0, 3, 1, 5, 40, 1 }, { 1, 3, 1, 5, 40, 1 }, { 0, 2, 5, 8, 100, 7 },
        { 1, 4, 3, 2, 33, UINT64_C(12345678901) } };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO), *three = test_ctx(3, CTR_KERNELS_AUTO);
    ctr_fewshot_config c = ctr_fewshot_config_default(), same;
    ctr_fewshot_result r, again;
    ctr_real x[630];
    int32_t labels[90];
    ctr_points p = ctr_points_make(90, 7, x, labels);
    char key[96];
    int i;
    test_group("few shots");
    memset(&same, 0xff, sizeof same);
    ctr_fewshot_config_init(&same);
    test_bytes("the defaults", &c, &same, sizeof c);
    shot_points(x, labels);
    for (i = 0; i < 4; i++) {
        const double *want;
        snprintf(key, sizeof key, "fewshot:%s:%d:%d:%d:%d:%lu",
                 cases[i].cosine ? "cosine" : "centroid", cases[i].ways, cases[i].shots,
                 cases[i].queries, cases[i].episodes, (unsigned long)cases[i].seed);
        want = golden_get(g, key, NULL);
        if (!test_true(key, want != NULL)) continue;
        c.kind = cases[i].cosine ? CTR_FEWSHOT_COSINE : CTR_FEWSHOT_CENTROID;
        c.ways = cases[i].ways;
        c.shots = cases[i].shots;
        c.queries = cases[i].queries;
        c.episodes = cases[i].episodes;
        c.seed = cases[i].seed;
        test_true("measured", ctr_fewshot_measure(ctx, &p, &c, &r));
        test_error(key, fabs(r.accuracy - want[0]), test_bound(1e-12, 5e-3));
        test_error("std", fabs(r.std - want[1]), test_bound(1e-12, 1e-2));
        test_error("interval", fabs(r.interval - want[2]), test_bound(1e-12, 2e-3));
        test_equal("classes", (double)r.classes, 4);
        ctr_fewshot_measure(three, &p, &c, &again);
        test_bytes("three threads", &r, &again, sizeof r);
    }
    c.ways = 5;
    ctr_fewshot_measure(ctx, &p, &c, &r);
    test_fails(ctx, "five of four classes", CTR_E_VALUE, "there are 4");
    c.ways = 2;
    c.queries = 100;
    ctr_fewshot_measure(ctx, &p, &c, &r);
    test_fails(ctx, "103 points of a class", CTR_E_VALUE, "at least 103");
    c.queries = 0;
    ctr_fewshot_measure(ctx, &p, &c, &r);
    test_fails(ctx, "no query", CTR_E_VALUE, "2, 3, 0");
    p.labels = NULL;
    ctr_fewshot_measure(ctx, &p, NULL, &r);
    test_fails(ctx, "no labels", CTR_E_VALUE, "there are 0");
    p.labels = labels;
    memset(&x[10], 0xff, sizeof x[10]);
    ctr_fewshot_measure(ctx, &p, NULL, &r);
    test_fails(ctx, "NaN", CTR_E_NUMBER, "row 1");
    ctr_ctx_destroy(ctx);
    ctr_ctx_destroy(three);
}

/* Where the answer is known: apart, alike, and everything drawn. */
static void fewshot_known(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_fewshot_config c = ctr_fewshot_config_default();
    ctr_fewshot_result r;
    ctr_real x[80];
    int32_t labels[40];
    ctr_points p = ctr_points_make(40, 2, x, labels);
    int i;
    test_group("few shots, known");
    for (i = 0; i < 40; i++) { /* two classes of 20 on two rays, at different distances */
        labels[i] = i % 2;
        x[2 * i] = (ctr_real)(i % 2 ? 0 : 1 + i);
        x[2 * i + 1] = (ctr_real)(i % 2 ? 1 + i : 0);
    }
    c.ways = 2;
    c.kind = CTR_FEWSHOT_COSINE;
    c.queries = 19;
    test_true("apart", ctr_fewshot_measure(ctx, &p, &c, &r));
    test_equal("by cosine", r.accuracy, 1);
    test_equal("no doubt", r.interval, 0);
    c.kind = CTR_FEWSHOT_CENTROID;
    test_true("by distance", ctr_fewshot_measure(ctx, &p, &c, &r) && r.accuracy < 1 &&
              r.accuracy > 0.5);
    for (i = 0; i < 80; i++) x[i] = 1;
    test_true("alike", ctr_fewshot_measure(ctx, &p, &c, &r));
    test_equal("the first class always", r.accuracy, 0.5);
    c.episodes = 1;
    ctr_fewshot_measure(ctx, &p, &c, &r);
    test_equal("a single episode", r.std, 0);
    test_true("a line of text", strstr(r.text, "2-way 1-shot") != NULL);
    test_fine(ctx, "known");
    ctr_ctx_destroy(ctx);
}

static void clusters(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_kmeans_config k = ctr_kmeans_config_default();
    ctr_kmeans_result kr;
    ctr_clustering r;
    ctr_agreement a;
    ctr_real x[630], centroids[35];
    int32_t labels[90], assignment[90];
    double accuracy;
    ctr_points p = ctr_points_make(90, 7, x, labels);
    int i;
    test_group("clusters");
    shot_points(x, labels);
    k.k = 5;
    k.min_points = 0;
    test_true("measured", ctr_clustering_measure(ctx, &p, &k, &r));
    ctr_kmeans_run(ctx, 90, 7, x, &k, centroids, assignment, NULL, &kr);
    ctr_agreement_measure(ctx, 90, assignment, labels, &a);
    ctr_agreement_match(ctx, 90, assignment, labels, NULL, &accuracy);
    test_true("its parts", r.k == 5 && r.accuracy == accuracy && r.agreement.nmi == a.nmi &&
              r.agreement.ari == a.ari && r.inertia == kr.inertia);
    test_equal("points that count", (double)r.agreement.points, 88);
    for (i = 0; i < 90; i++) { /* the four classes far apart: found whatever they are called */
        int32_t c = labels[i] < 0 ? 0 : labels[i];
        x[7 * i + (c > 1 ? c - 1 : c)] += 40;
    }
    test_true("apart", ctr_clustering_measure(ctx, &p, NULL, &r));
    test_equal("as many clusters as classes", (double)r.k, 4);
    test_equal("accuracy", r.accuracy, 1);
    test_error("NMI", fabs(r.agreement.nmi - 1), 1e-12);
    test_error("ARI", fabs(r.agreement.ari - 1), 1e-12);
    test_fine(ctx, "clusters");
    k.k = 91;
    ctr_clustering_measure(ctx, &p, &k, &r);
    test_true("91 clusters of 90 points", ctr_error(ctx) != CTR_OK);
    ctr_error_clear(ctx);
    p.labels = NULL;
    ctr_clustering_measure(ctx, &p, NULL, &r);
    test_fails(ctx, "no labels", CTR_E_VALUE, "needs labels");
    ctr_ctx_destroy(ctx);
}

/* ------------------------------------------------------------------------ memory that runs out */

/* All that allocates outside a step; 1 if it came to its end. */
static int everything(ctr_ctx *ctx, const ctr_real *x, const int32_t *labels, uint8_t *pixels)
{
    ctr_points p = ctr_points_make(90, 7, x, labels);
    ctr_aug_config clean = ctr_aug_none_default(8);
    ctr_supervised_config c = config_of(PLAIN, 4, 8);
    ctr_fewshot_config shots = ctr_fewshot_config_default();
    ctr_fewshot_result few;
    ctr_clustering clustering;
    ctr_resnet_config net;
    ctr_dataset *whole = NULL, *part = NULL, *rest = NULL;
    ctr_method *encoder, *method = NULL;
    double top1;
    int done = 0;
    shots.ways = 3;
    shots.queries = 4;
    shots.episodes = 3;
    c.weights = "full.ctr";
    encoder = ctr_encoder_create(ctx, "full.ctr", NULL);
    if (encoder) method = ctr_supervised_create(ctx, &c);
    if (method) whole = ctr_dataset_from_memory(ctx, pixels, 6, 8, 8, 3, labels);
    if (whole)
        done = ctr_dataset_split(ctx, whole, 0.5, 1, &part, &rest) &&
               ctr_encoder_inspect(ctx, "full.ctr", NULL, &net) &&
               ctr_encoder_load(ctx, "full.ctr", NULL, method->encoder, "encoder.") &&
               ctr_supervised_classify(method, whole, &clean, NULL, &top1) &&
               ctr_fewshot_measure(ctx, &p, &shots, &few) &&
               ctr_clustering_measure(ctx, &p, NULL, &clustering);
    ctr_dataset_destroy(ctx, part);
    ctr_dataset_destroy(ctx, rest);
    ctr_dataset_destroy(ctx, whole);
    ctr_method_destroy(method);
    ctr_method_destroy(encoder);
    return done;
}

static void failing(void)
{
    ctr_config config = ctr_config_default();
    test_allocator watch;
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_supervised_config c = config_of(PLAIN, 4, 8);
    ctr_method *method = ctr_supervised_create(ctx, &c);
    ctr_real x[630];
    int32_t labels[90];
    uint8_t *pixels = model_pictures(6, 8, NULL, 3);
    long n, bad = 0, whole = 0, stride = test_quick() ? 61 : MODEL_SLOW ? 17 : 1;
    test_group("failing allocations elsewhere");
    shot_points(x, labels);
    test_true("save", ctr_checkpoint_save(method, "full.ctr", NULL));
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
    config.threads = 1;
    for (n = 1; !whole && n < 20000 && bad < 5; n += stride) {
        config.allocator = test_allocator_init(&watch);
        watch.fail_at = n;
        ctx = ctr_ctx_create(&config);
        if (!ctx) continue;
        if (everything(ctx, x, labels, pixels)) whole = watch.calls < n;
        else if (ctr_error(ctx) != CTR_E_MEMORY) bad++;
        watch.fail_at = 0;
        ctr_ctx_destroy(ctx);
        if (watch.live || watch.bad_frees) bad++;
    }
    printf("     %ld runs\n", n / stride);
    test_equal("bad runs", (double)bad, 0);
    test_true("the last one met no failure", whole && n > 3 * stride);
    free(pixels);
    remove("full.ctr");
}

int main(int argc, char **argv)
{
    golden_file g;
    test_begin("test_transfer", argc, argv);
    if (test_golden_open(&g, "golden_transfer.txt")) {
        golden_all(&g);
        fewshot(&g);
        golden_close(&g);
    }
    runs();
    learns();
    logits();
    refuses();
    depths();
    encoders();
    strangers();
    splits();
    fewshot_known();
    clusters();
    failing();
    return test_end();
}
