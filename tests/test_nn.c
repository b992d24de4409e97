/* test_nn.c - variables, layers, heads, ResNets, momentum encoders, torchvision's weights.
 * run: float double asan smoke valgrind
 *
 * 1. ResNets 8, 18, 20, 34, 50, small and large stem, odd images, evaluation and training: stem,
 *    every stage, features and running statistics as torchvision has them in float64
 *    (tests/golden/golden_net.txt). Without recording: the same bytes in less memory.
 * 2. State dicts of ResNet-18 and ResNet-50 by torchvision's names, with what torchvision's have
 *    besides, loaded and compared; files of other networks refused.
 * 3. Layers and heads against plain loops; initial values; tables of variables; EMA in closed form.
 */
#include "model.h"

/* ------------------------------------------------------------------------------------ the networks
 */

typedef struct net_case {
    char name[16];
    int64_t n, h, w;
    ctr_resnet_config config;
} net_case;

/* "resnet18s:4:32:32": s small stem, w six channels */
static int net_parse(const char *key, net_case *c)
{
    int depth, n, h, w;
    char tail[8] = "";
    const char *at = strchr(key, ':');
    memset(c, 0, sizeof *c);
    if (!at || sscanf(key, "resnet%d%7[sw]", &depth, tail) < 1 ||
        sscanf(at, ":%d:%d:%d", &n, &h, &w) != 3)
        return 0;
    snprintf(c->name, sizeof c->name, "%.*s", (int)(at - key), key);
    c->n = n;
    c->h = h;
    c->w = w;
    c->config = ctr_resnet_config_default(depth);
    c->config.stem = depth == 8 || depth == 20 || tail[0] == 's' ? CTR_STEM_SMALL : CTR_STEM_LARGE;
    if (tail[0] == 'w') c->config.width = 6;
    return 1;
}

/* Compares a tensor's value. Sixteen bottlenecks on four images of 64 pixels end in 16 numbers a
   channel, which batch norm divides by their own small spread: float keeps fewer digits there. */
static double net_digest(ctr_ctx *ctx, golden_file *g, const char *base, const char *mode,
                         const char *what, const ctr_tensor *t)
{
    char key[160];
    ctr_real *x = test_reals(t->size);
    double e;
    ctr_tensor_read(ctx, t, x, t->size);
    snprintf(key, sizeof key, "%s:%s:%s", base, mode, what);
    e = test_digest(g, key, x, t->size, 0);
    test_error(key, e, test_bound(1e-8, strncmp(base, "resnet50", 8) ? 1e-4 : 3e-4));
    free(x);
    return e;
}

static ctr_tensor *block_forward(ctr_ctx *ctx, const ctr_res_block *b, ctr_tensor *x,
                                 ctr_norm_mode mode)
{
    ctr_tensor *y = x, *shortcut = x;
    int i;
    if (b->down.weight) {
        shortcut = ctr_conv2d_forward(ctx, &b->down, x);
        shortcut = ctr_batch_norm(ctx, shortcut, &b->down_norm, mode, 1, NULL, 0);
    }
    for (i = 0; i < b->convs; i++) {
        int last = i == b->convs - 1;
        y = ctr_conv2d_forward(ctx, &b->conv[i], y);
        y = ctr_batch_norm(ctx, y, &b->norm[i], mode, 1, last ? shortcut : NULL, 1);
    }
    return y;
}

/* The network out of its public parts, with what each stage gives; the features in host memory. */
static double net_stages(ctr_ctx *ctx, golden_file *g, const char *base, const char *mode_name,
                         const ctr_resnet *net, ctr_tensor *x, ctr_norm_mode mode,
                         ctr_real *features)
{
    double worst, e;
    char what[32];
    int stage, i;
    x = ctr_conv2d_forward(ctx, &net->stem, x);
    x = ctr_batch_norm(ctx, x, &net->stem_norm, mode, 1, NULL, 1);
    if (net->config.stem == CTR_STEM_LARGE) x = ctr_max_pool(ctx, x, 3, 2, 1);
    worst = net_digest(ctx, g, base, mode_name, "stem", x);
    for (stage = 0, i = 0; stage < net->stages; stage++) {
        for (; i < net->stage_end[stage]; i++) x = block_forward(ctx, &net->block[i], x, mode);
        snprintf(what, sizeof what, "stage%d", stage + 1);
        e = net_digest(ctx, g, base, mode_name, what, x);
        worst = e > worst ? e : worst;
    }
    x = ctr_global_pool(ctx, x);
    ctr_tensor_read(ctx, x, features, x->size);
    return worst;
}

/* Running statistics after one training forward, as far as the file has them. */
static double net_running(ctr_ctx *ctx, golden_file *g, const char *base, const ctr_vars *vars)
{
    double worst = 0, e;
    char key[192];
    int i;
    for (i = 0; i < vars->count; i++) {
        ctr_real *x;
        if (vars->list[i].kind != CTR_KIND_BUFFER) continue;
        snprintf(key, sizeof key, "%s:running:%s", base, vars->list[i].name);
        if (!golden_find(g, key)) return 0;
        x = model_read(ctx, &vars->list[i], 0);
        e = test_digest(g, key, x, vars->list[i].value->size, 0);
        test_error(key, e, test_bound(1e-8, 1e-4));
        worst = e > worst ? e : worst;
        free(x);
    }
    return worst;
}

/* ctr_resnet_forward in one mode, recorded or not; the features, and the slab that it took. */
static size_t net_forward(ctr_ctx *ctx, const ctr_resnet *net, ctr_tensor *x, ctr_norm_mode mode,
                          int record, int commit, ctr_real *features)
{
    ctr_tensor *y;
    size_t bytes;
    ctr_plan_begin(ctx);
    if (!record) ctr_nograd_begin(ctx);
    ctr_resnet_forward(ctx, net, x, mode, 1);
    bytes = ctr_plan_end(ctx);
    ctr_step_begin(ctx);
    if (!record) ctr_nograd_begin(ctx);
    y = ctr_resnet_forward(ctx, net, x, mode, 1);
    ctr_tensor_read(ctx, y, features, y->size);
    if (commit) ctr_commit(ctx);
    ctr_step_end(ctx);
    return bytes;
}

static void net_one(ctr_ctx *ctx, golden_file *g, const char *base)
{
    net_case c;
    ctr_resnet net;
    ctr_vars vars;
    ctr_tensor *x;
    ctr_real *a, *b;
    int64_t shape[4];
    uint64_t before, after;
    size_t bytes, recorded, quiet;
    double worst, e;
    char what[96];
    int small, i;
    if (!test_true(base, net_parse(base, &c))) return;
    small = c.config.depth <= 20 && c.config.stem == CTR_STEM_SMALL;
    shape[0] = c.n;
    shape[1] = c.h;
    shape[2] = c.w;
    shape[3] = 3;
    ctr_vars_init(&vars);
    ctr_resnet_init(ctx, &net, &vars, "", &c.config);
    model_fill(ctx, &vars, "");
    x = ctr_tensor_create(ctx, CTR_F32, 4, shape, 0);
    a = test_reals(x->size);
    test_fill_real("x", a, x->size, 1.0);
    ctr_tensor_write(ctx, x, a, x->size);
    free(a);
    a = test_reals(c.n * net.features);
    b = test_reals(c.n * net.features);
    bytes = (size_t)(c.n * net.features) * sizeof *a;
    before = model_hash(ctx, &vars);

    ctr_step_begin(ctx);
    worst = net_stages(ctx, g, base, "eval", &net, x, CTR_NORM_EVAL, a);
    ctr_commit(ctx);
    ctr_step_end(ctx);
    quiet = net_forward(ctx, &net, x, CTR_NORM_EVAL, 0, 1, b);
    test_bytes("the network is the sum of its parts", b, a, bytes);
    snprintf(what, sizeof what, "%s:eval:features", base);
    e = test_digest(g, what, b, c.n * net.features, 0);
    test_error(what, e, test_bound(1e-8, 1e-4));
    worst = e > worst ? e : worst;
    test_true("evaluation changes nothing", model_hash(ctx, &vars) == before);

    recorded = net_forward(ctx, &net, x, CTR_NORM_TRAIN, 1, 0, a);
    test_true("what is not committed changes nothing", model_hash(ctx, &vars) == before);
    snprintf(what, sizeof what, "%s:train:features", base);
    e = test_digest(g, what, a, c.n * net.features, 0);
    test_error(what, e, test_bound(1e-8, 1e-4));
    worst = e > worst ? e : worst;
    if (small) {
        net_forward(ctx, &net, x, CTR_NORM_BATCH, 1, 1, b);
        test_bytes("batch statistics that are not kept: the same features", b, a, bytes);
        test_true("and no change", model_hash(ctx, &vars) == before);
    }
    net_forward(ctx, &net, x, CTR_NORM_TRAIN, 0, 1, b);
    test_bytes("not recorded: the same features", b, a, bytes);
    after = model_hash(ctx, &vars);
    test_true("a committed forward changes the buffers", after != before);
    e = net_running(ctx, g, base, &vars);
    worst = e > worst ? e : worst;
    for (i = 0; i < vars.count; i++) /* training left the rest alone */
        if (vars.list[i].kind == CTR_KIND_BUFFER) model_fill_var(ctx, &vars.list[i], 0);
    ctr_step_begin(ctx);
    e = net_stages(ctx, g, base, "train", &net, x, CTR_NORM_TRAIN, b);
    ctr_commit(ctx);
    ctr_step_end(ctx);
    worst = e > worst ? e : worst;
    test_bytes("training, the sum of its parts", b, a, bytes);
    test_true("recorded and not recorded forwards commit the same",
              model_hash(ctx, &vars) == after);
    snprintf(what, sizeof what, "%s: not recorded takes %lu KB, recorded %lu KB", base,
             (unsigned long)(quiet >> 10), (unsigned long)(recorded >> 10));
    test_true(what, quiet * 2 < recorded);
    test_fine(ctx, base);
    printf("     %s: worst error %.2g; slab %lu KB recorded, %lu KB not\n", base, worst,
           (unsigned long)(recorded >> 10), (unsigned long)(quiet >> 10));
    free(a);
    free(b);
    ctr_tensor_destroy(ctx, x);
    ctr_vars_destroy(ctx, &vars);
}

static void nets(void)
{
    golden_file g;
    ctr_ctx *ctx;
    fake_device *fake;
    size_t i;
    char base[64];
    if (!test_golden_open(&g, "golden_net.txt")) return;
    ctx = test_ctx(2, CTR_KERNELS_AUTO);
    test_group("networks as torchvision has them");
    for (i = 0; i < g.count; i++) {
        const char *key = g.records[i].key;
        if (!golden_ends_(key, ":eval:features") || strlen(key) >= sizeof base) continue;
        if ((test_quick() || MODEL_SLOW) && strncmp(key, "resnet8", 7) != 0) continue;
        snprintf(base, sizeof base, "%.*s", (int)(strlen(key) - strlen(":eval:features")), key);
        net_one(ctx, &g, base);
    }
    ctr_ctx_destroy(ctx);
    test_group("networks on the fake device");
    fake = fake_device_open();
    ctx = fake_device_ctx(fake);
    net_one(ctx, &g, "resnet8w:4:15:17");
    if (!test_quick()) net_one(ctx, &g, "resnet20:4:32:32");
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
    golden_close(&g);
}

/* -------------------------------------------------------------------- state dicts of torchvision
 */

/* Adds what torchvision's files have besides to what the library saved: a classifier and a counter
   for each norm. drop: a tensor that is left out (or NULL); extra: one that is added (or NULL). */
static int dict_write(ctr_ctx *ctx, const char *from, const char *to, const char *drop,
                      const char *extra)
{
    static const float fc[10] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };
    static const int64_t batches = 1234;
    ctr_safetensors *f = ctr_safetensors_open(ctx, from);
    ctr_file_tensor *t;
    char (*names)[128];
    int64_t count = f ? ctr_safetensors_count(f) : 0, i, n = 0;
    int ok;
    if (!f) return 0;
    t = (ctr_file_tensor *)test_alloc((size_t)(2 * count + 4) * sizeof *t);
    names = (char (*)[128])test_alloc((size_t)(2 * count + 4) * sizeof *names);
    memset(t, 0, (size_t)(2 * count + 4) * sizeof *t);
    for (i = 0; i < count; i++) {
        ctr_file_tensor one = ctr_safetensors_info(f, i);
        if (golden_ends_(one.name, "num_batches_tracked")) continue;
        if (drop && strcmp(one.name, drop) == 0) continue;
        t[n++] = one;
        if (!golden_ends_(one.name, "running_var")) continue;
        snprintf(names[n], sizeof names[n], "%.*snum_batches_tracked",
                 (int)(strlen(one.name) - strlen("running_var")), one.name);
        t[n].name = names[n];
        t[n].dtype = CTR_FILE_I64;
        t[n++].data = &batches;
    }
    for (i = 0; i < 2 + (extra != NULL); i++, n++) {
        t[n].name = i == 0 ? "fc.weight" : i == 1 ? "fc.bias" : extra;
        t[n].dtype = CTR_FILE_F32;
        t[n].rank = i ? 1 : 2;
        t[n].shape[0] = i ? 10 : 2;
        t[n].shape[1] = 5;
        t[n].data = fc;
    }
    ok = ctr_safetensors_save(ctx, to, t, n, NULL, 0);
    ctr_safetensors_close(ctx, f);
    free(t);
    free(names);
    return ok;
}

typedef struct dict_net {
    ctr_resnet net;
    ctr_vars vars;
} dict_net;

static void dict_net_init(ctr_ctx *ctx, dict_net *d, const char *prefix, int depth, ctr_stem stem)
{
    ctr_resnet_config c = ctr_resnet_config_default(depth);
    c.stem = stem;
    ctr_vars_init(&d->vars);
    ctr_resnet_init(ctx, &d->net, &d->vars, prefix, &c);
}

/* A load that must fail with one line and change nothing. */
static void dict_refused(ctr_ctx *ctx, const char *what, const char *path, dict_net *d,
                         const char *prefix, ctr_status status, const char *word)
{
    uint64_t before = model_hash(ctx, &d->vars);
    test_equal(what, ctr_weights_load(ctx, path, &d->vars, prefix), 0);
    test_fails(ctx, what, status, word);
    test_true("nothing has changed", model_hash(ctx, &d->vars) == before);
}

/* Names, layouts and shapes in the file; all of them, and nothing without its place there. */
static void dict_content(ctr_ctx *ctx, const char *path, const dict_net *d, size_t skip)
{
    ctr_safetensors *f = ctr_safetensors_open(ctx, path);
    int64_t counters = 0, i;
    int norms = 0, k;
    if (!test_true("the file opens", f != NULL)) return;
    for (k = 0; k < d->vars.count; k++) {
        const ctr_var *v = &d->vars.list[k];
        int64_t at = ctr_safetensors_find(f, v->name + skip);
        ctr_real *want = model_read(ctx, v, 0), *got = test_reals(v->value->size);
        if (test_true(v->name, at >= 0 &&
                      ctr_safetensors_read_f32(ctx, f, at, got, v->value->size)))
            test_bytes(v->name, got, want, (size_t)v->value->size * sizeof *got);
        if (v->conv && at >= 0)
            test_true("out, in, height, width",
                      ctr_safetensors_info(f, at).shape[0] == v->value->shape[3] &&
                          ctr_safetensors_info(f, at).shape[3] == v->value->shape[1]);
        norms += golden_ends_(v->name, "running_var");
        free(want);
        free(got);
    }
    for (i = 0; i < ctr_safetensors_count(f); i++) {
        ctr_file_tensor t = ctr_safetensors_info(f, i);
        if (!golden_ends_(t.name, ".num_batches_tracked")) continue;
        counters++;
        test_true("a counter is one whole number", t.dtype == CTR_FILE_I64 && t.rank == 0);
    }
    test_equal("a counter for each norm", (double)counters, norms);
    test_equal("tensors in all", (double)ctr_safetensors_count(f), d->vars.count + norms);
    ctr_safetensors_close(ctx, f);
}

static void dicts(ctr_ctx *ctx, golden_file *g, int depth, ctr_stem stem, const char *base)
{
    dict_net a, b;
    net_case c;
    ctr_tensor *x;
    ctr_real *input, *features, *again;
    int64_t shape[4];
    char key[96];
    net_parse(base, &c);
    dict_net_init(ctx, &a, "encoder.", depth, stem);
    dict_net_init(ctx, &b, "teacher.net.", depth, stem);
    model_fill(ctx, &a.vars, "encoder.");
    test_true("save", ctr_weights_save(ctx, "weights.st", &a.vars, "encoder."));
    dict_content(ctx, "weights.st", &a, strlen("encoder."));
    test_true("a state dict with all that torchvision's has",
              dict_write(ctx, "weights.st", "dict.st", NULL, NULL));
    test_true("it loads", ctr_weights_load(ctx, "dict.st", &b.vars, "teacher.net."));
    test_true("the weights are the same", model_hash(ctx, &a.vars) == model_hash(ctx, &b.vars));
    shape[0] = c.n;
    shape[1] = c.h;
    shape[2] = c.w;
    shape[3] = 3;
    x = ctr_tensor_create(ctx, CTR_F32, 4, shape, 0);
    input = test_reals(x->size);
    features = test_reals(c.n * a.net.features);
    again = test_reals(c.n * a.net.features);
    test_fill_real("x", input, x->size, 1.0);
    ctr_tensor_write(ctx, x, input, x->size);
    net_forward(ctx, &b.net, x, CTR_NORM_EVAL, 0, 0, features);
    snprintf(key, sizeof key, "%s:eval:features", base);
    test_error(key, test_digest(g, key, features, c.n * a.net.features, 0), test_bound(1e-8, 1e-4));
    net_forward(ctx, &a.net, x, CTR_NORM_EVAL, 0, 0, again);
    test_bytes("the loaded network is the saved one", again, features,
               (size_t)(c.n * a.net.features) * sizeof *again);
    test_true("its own file loads, too",
              ctr_weights_load(ctx, "weights.st", &b.vars, "teacher.net."));
    test_fine(ctx, base);
    ctr_tensor_destroy(ctx, x);
    free(input);
    free(features);
    free(again);
    ctr_vars_destroy(ctx, &a.vars);
    ctr_vars_destroy(ctx, &b.vars);
}

static void dicts_refused(ctr_ctx *ctx)
{
    dict_net a, b;
    dict_net_init(ctx, &a, "encoder.", 8, CTR_STEM_SMALL);
    model_fill(ctx, &a.vars, "encoder.");
    test_true("save", ctr_weights_save(ctx, "weights.st", &a.vars, "encoder."));
    test_true("one is missing",
              dict_write(ctx, "weights.st", "dict.st", "layer2.0.bn1.weight", NULL));
    dict_refused(ctx, "a missing tensor", "dict.st", &a, "encoder.", CTR_E_FORMAT,
                 "layer2.0.bn1.weight");
    test_true("one too many",
              dict_write(ctx, "weights.st", "dict.st", NULL, "layer1.2.conv1.weight"));
    dict_refused(ctx, "a deeper network's tensor", "dict.st", &a, "encoder.", CTR_E_FORMAT,
                 "layer1.2.conv1.weight");
    dict_refused(ctx, "a prefix that no variable has", "weights.st", &a, "encodr.", CTR_E_VALUE,
                 "encodr.");
    dict_refused(ctx, "no file", "nowhere/weights.st", &a, "encoder.", CTR_E_FILE, "weights.st");
    dict_net_init(ctx, &b, "encoder.", 8, CTR_STEM_LARGE);
    dict_refused(ctx, "another stem", "weights.st", &b, "encoder.", CTR_E_FORMAT, "conv1.weight");
    ctr_vars_destroy(ctx, &b.vars);
    dict_net_init(ctx, &b, "encoder.", 14, CTR_STEM_SMALL);
    dict_refused(ctx, "a shallower network", "weights.st", &b, "encoder.", CTR_E_FORMAT,
                 "layer1.1");
    test_true("save the deeper one", ctr_weights_save(ctx, "deeper.st", &b.vars, "encoder."));
    dict_refused(ctx, "a deeper network", "deeper.st", &a, "encoder.", CTR_E_FORMAT, "layer1.1");
    ctr_vars_destroy(ctx, &b.vars);
    test_equal("save where no folder is",
               ctr_weights_save(ctx, "nowhere/x.st", &a.vars, "encoder."), 0);
    test_fails(ctx, "save where no folder is", CTR_E_FILE, "x.st");
    test_equal("save under a prefix that no variable has",
               ctr_weights_save(ctx, "none.st", &a.vars, "encodr."), 0);
    test_fails(ctx, "save under a prefix that no variable has", CTR_E_VALUE, "encodr.");
    ctr_vars_destroy(ctx, &a.vars);
}

static void dicts_all(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    golden_file g;
    test_group("weights by torchvision's names");
    if (!test_golden_open(&g, "golden_net.txt")) return;
    dicts(ctx, &g, 8, CTR_STEM_SMALL, "resnet8:3:28:28");
    if (!test_quick()) {
        dicts(ctx, &g, 18, CTR_STEM_LARGE, "resnet18:2:75:61");
        if (!TEST_DOUBLE && !MODEL_SLOW) dicts(ctx, &g, 50, CTR_STEM_LARGE, "resnet50:4:64:64");
    }
    dicts_refused(ctx);
    remove("weights.st");
    remove("dict.st");
    remove("deeper.st");
    golden_close(&g);
    ctr_ctx_destroy(ctx);
}

/* ------------------------------------------------------------------------------ names and configs
 */

static void parses(void)
{
    static const struct { const char *name; int depth; int64_t width; } good[] = {
        { "resnet8", 8, 0 }, { "resnet14", 14, 0 }, { "resnet20", 20, 0 }, { "resnet32", 32, 0 },
        { "resnet44", 44, 0 }, { "resnet56", 56, 0 }, { "resnet18", 18, 0 }, { "resnet34", 34, 0 },
        { "resnet50", 50, 0 }, { "resnet101", 101, 0 }, { "resnet8-w32", 8, 32 },
        { "resnet18-w1", 18, 1 }, { "resnet20-w1024", 20, 1024 }
    };
    static const char *const bad[] = {"",
                                      "resnet",
                                      "resnet9",
                                      "resnet0",
                                      "resnet-8",
                                      "resnet62",
                                      "resnet152",
                                      "resnet8-w0",
                                      "resnet8-w",
                                      "resnet8-w-3",
                                      "resnet8-w1025",
                                      "resnet8-w32x",
                                      "resnet8x",
                                      "resnet8-",
                                      "resnet8 ",
                                      "Resnet8",
                                      "vgg16",
                                      "resnet8w32",
                                      "resnet 8",
                                      "resnet8-w 4",
                                      "resnet+8",
                                      "resnet08",
                                      "resnet99999999999999999999"};
    ctr_resnet_config c;
    size_t i;
    test_group("architectures by name");
    for (i = 0; i < sizeof good / sizeof *good; i++) {
        ctr_resnet_config_init(&c, 18);
        test_true(good[i].name, ctr_resnet_config_parse(&c, good[i].name) &&
                  c.depth == good[i].depth && c.width == good[i].width && c.channels == 3);
    }
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        char what[64];
        ctr_resnet_config before;
        ctr_resnet_config_init(&c, 18);
        before = c;
        snprintf(what, sizeof what, "not a network: \"%s\"", bad[i]);
        test_true(what, !ctr_resnet_config_parse(&c, bad[i]) &&
                  memcmp(&c, &before, sizeof c) == 0);
    }
}

static void describe_one(ctr_ctx *ctx, int depth, int64_t width, int64_t image, int64_t channels,
                         const char *want, int64_t features, int64_t numbers)
{
    ctr_resnet_config c = ctr_resnet_config_default(depth);
    ctr_resnet net;
    ctr_vars vars;
    char text[96];
    c.width = width;
    c.image_size = image;
    c.channels = channels;
    ctr_vars_init(&vars);
    ctr_resnet_init(ctx, &net, &vars, "", &c);
    test_text("describe", ctr_resnet_describe(&net, text), want);
    test_equal("features", (double)net.features, (double)features);
    if (numbers) test_equal("parameters", (double)ctr_vars_numbers(&vars, 0), (double)numbers);
    test_fine(ctx, want);
    ctr_vars_destroy(ctx, &vars);
}

static void refused_net(ctr_ctx *ctx, const char *what, const ctr_resnet_config *c,
                        ctr_status status, const char *word)
{
    ctr_resnet net;
    ctr_vars vars;
    ctr_vars_init(&vars);
    ctr_resnet_init(ctx, &net, &vars, "", c);
    test_fails(ctx, what, status, word);
    ctr_vars_destroy(ctx, &vars);
}

/* Parameters without the classifier; width 64 has torchvision's 11,689,512 less 513,000. */
static void describes(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_resnet_config c;
    size_t held = ctr_memory_stats(ctx).held;
    test_group("networks and their sizes");
    describe_one(ctx, 8, 0, 32, 3, "resnet8 width=16 stem=small channels=3", 64, 0);
    describe_one(ctx, 56, 8, 64, 1, "resnet56 width=8 stem=small channels=1", 32, 0);
    describe_one(ctx, 18, 8, 65, 3, "resnet18 width=8 stem=large channels=3", 64, 176712);
    describe_one(ctx, 34, 8, 224, 3, "resnet34 width=8 stem=large channels=3", 64, 335464);
    describe_one(ctx, 50, 8, 224, 3, "resnet50 width=8 stem=large channels=3", 256, 374152);
    describe_one(ctx, 101, 8, 224, 3, "resnet101 width=8 stem=large channels=3", 256, 676616);
    if (!test_quick())
        describe_one(ctx, 18, 0, 65, 3, "resnet18 width=64 stem=large channels=3", 512, 11176512);
    ctr_resnet_config_init(&c, 17);
    refused_net(ctx, "depth 17", &c, CTR_E_VALUE, "depth");
    ctr_resnet_config_init(&c, 8);
    c.channels = 0;
    refused_net(ctx, "no channels", &c, CTR_E_VALUE, "channels and image_size");
    c.channels = 3;
    c.width = -4;
    refused_net(ctx, "width -4", &c, CTR_E_VALUE, "width");
    c.width = INT64_MAX / 2;
    refused_net(ctx, "a width that overflows", &c, CTR_E_VALUE, "width");
    test_equal("nothing is left behind", (double)ctr_memory_stats(ctx).held, (double)held);
    ctr_ctx_destroy(ctx);
}

/* -------------------------------------------------------------------------------- initial values
 */

static void moments(ctr_ctx *ctx, const ctr_tensor *t, double *mean, double *std, double *most)
{
    ctr_real *x = test_reals(t->size);
    double sum = 0, square = 0;
    int64_t i;
    ctr_tensor_read(ctx, t, x, t->size);
    *most = 0;
    for (i = 0; i < t->size; i++) {
        sum += (double)x[i];
        square += (double)x[i] * (double)x[i];
        if (fabs((double)x[i]) > *most) *most = fabs((double)x[i]);
    }
    *mean = sum / (double)t->size;
    *std = sqrt(square / (double)t->size - *mean * *mean);
    free(x);
}

static void constant(ctr_ctx *ctx, const char *what, const ctr_tensor *t, double value)
{
    double mean, std, most;
    moments(ctx, t, &mean, &std, &most);
    test_true(what, mean == value && most == fabs(value) && std < 1e-6);
}

/* A layer of several chunks has a normal's shape, no number twice, neighbours without relation, and
 * the same bits on any number of threads and either kernel set. */
static void initial_large(void)
{
    static const struct { int threads; ctr_kernels kernels; } runs[] = {
        { 1, CTR_KERNELS_AUTO }, { 3, CTR_KERNELS_AUTO }, { 2, CTR_KERNELS_SCALAR }
    };
    enum { SIZE = 9 * 61 * 101 }; /* no multiple of a block */
    ctr_real *x = test_reals(SIZE), *y = test_reals(SIZE);
    double fourth = 0, within = 0, lag[3] = { 0, 0, 0 }, scale = sqrt(9 * 101 / 2.0);
    int i, k;
    for (k = 0; k < 3; k++) {
        ctr_ctx *ctx = test_ctx(runs[k].threads, runs[k].kernels);
        ctr_conv2d conv;
        ctr_vars vars;
        ctr_vars_init(&vars);
        ctr_conv2d_init(ctx, &conv, &vars, "c.", 61, 101, 3, 1, 1);
        ctr_tensor_read(ctx, conv.weight, k ? y : x, SIZE);
        if (k) test_bytes("initial values on other threads and kernels", x, y, SIZE * sizeof *x);
        ctr_vars_destroy(ctx, &vars);
        test_fine(ctx, "initial values of a large layer");
        ctr_ctx_destroy(ctx);
    }
    for (i = 0; i + 64 < SIZE; i++) {
        double v = (double)x[i] * scale;
        fourth += v * v * v * v / (SIZE - 64);
        within += (fabs(v) < 1) / (double)(SIZE - 64);
        for (k = 0; k < 3; k++) {
            static const int step[] = { 1, 32, 64 };
            lag[k] += v * (double)x[i + step[k]] * scale / (SIZE - 64);
        }
    }
    test_error("a normal's fourth moment, 3", fabs(fourth - 3), 0.15);
    test_error("a normal's share within one deviation", fabs(within - 0.6826895), 0.008);
    for (k = 0; k < 3; k++) test_error("no relation between neighbours", fabs(lag[k]), 0.02);
    free(x);
    free(y);
}

static void initial(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO), *other;
    ctr_config config = ctr_config_default();
    ctr_resnet_config rc = ctr_resnet_config_default(8);
    ctr_conv2d conv;
    ctr_linear linear, again;
    ctr_norm norm;
    ctr_resnet net;
    ctr_vars vars, more;
    double mean, std, most, want;
    uint64_t hash;
    int i, zeros = 0;
    test_group("initial values");
    ctr_vars_init(&vars);
    ctr_conv2d_init(ctx, &conv, &vars, "c.", 32, 64, 3, 1, 1);
    moments(ctx, conv.weight, &mean, &std, &most);
    want = sqrt(2.0 / (9 * 64));
    test_error("convolution: deviation sqrt(2 / (k k out))", fabs(std / want - 1), 0.03);
    test_error("convolution: mean 0", fabs(mean / want), 0.03);
    test_true("convolution: it has a normal's tails", most > 3.2 * want && most < 6 * want);
    ctr_linear_init(ctx, &linear, &vars, "l.", 100, 200, 1);
    moments(ctx, linear.weight, &mean, &std, &most);
    test_error("linear: deviation 1 / sqrt(3 in)", fabs(std / (0.1 / sqrt(3.0)) - 1), 0.03);
    test_true("linear: within 1 / sqrt(in)", most <= 0.1 + 1e-7 && most > 0.0995);
    moments(ctx, linear.bias, &mean, &std, &most);
    test_true("bias: within 1 / sqrt(in)", most <= 0.1 + 1e-7 && most > 0.09 && std > 0.04);
    ctr_norm_init(ctx, &norm, &vars, "n.", 8, 1, 1);
    constant(ctx, "gamma 1", norm.gamma, 1);
    constant(ctx, "beta 0", norm.beta, 0);
    constant(ctx, "running mean 0", norm.mean, 0);
    constant(ctx, "running variance 1", norm.var, 1);
    ctr_norm_init(ctx, &norm, &vars, "z.", 8, 2, 0);
    constant(ctx, "gamma 0", norm.gamma, 0);
    test_true("no beta", norm.beta == NULL);
    ctr_norm_init(ctx, &norm, &vars, "o.", 8, 0, 0);
    test_true("neither gamma nor beta", norm.gamma == NULL && norm.beta == NULL && norm.mean);
    /* the same name, elsewhere in another table: the same numbers */
    ctr_vars_init(&more);
    ctr_linear_init(ctx, &again, &more, "first.", 3, 4, 0);
    ctr_linear_init(ctx, &again, &more, "l.", 100, 200, 0);
    {
        ctr_real *x = test_reals(20000), *y = test_reals(20000);
        ctr_tensor_read(ctx, linear.weight, x, 20000);
        ctr_tensor_read(ctx, again.weight, y, 20000);
        test_bytes("values depend on the name, not on the order", x, y, 20000 * sizeof *x);
        free(x);
        free(y);
    }
    ctr_vars_destroy(ctx, &more);
    ctr_vars_destroy(ctx, &vars);
    rc.zero_init = 1;
    ctr_vars_init(&vars);
    ctr_resnet_init(ctx, &net, &vars, "", &rc);
    hash = model_hash(ctx, &vars);
    for (i = 0; i < vars.count; i++) {
        moments(ctx, vars.list[i].value, &mean, &std, &most);
        if (golden_ends_(vars.list[i].name, "bn2.weight")) zeros += most == 0;
        else if (golden_ends_(vars.list[i].name, "weight")) zeros -= most == 0;
    }
    test_equal("zero_init: the last norm of each block, and no other", zeros, 3);
    ctr_vars_destroy(ctx, &vars);
    config.seed = 2;
    config.threads = 1;
    other = ctr_ctx_create(&config);
    ctr_vars_init(&vars);
    ctr_resnet_init(other, &net, &vars, "", &rc);
    test_true("another seed, other values", model_hash(other, &vars) != hash);
    ctr_vars_destroy(other, &vars);
    ctr_ctx_destroy(other);
    test_fine(ctx, "initial values");
    ctr_ctx_destroy(ctx);
}

/* ------------------------------------------------------------------------------- layers and heads
 */

/* y [rows, out] = x weight^T + bias in plain loops, with the golden formula's weights. */
static void plain_linear(const double *x, int64_t n, int64_t in, int64_t out, const char *name,
                         int bias, double *y)
{
    double *w = test_doubles(in * out), *b = test_doubles(out);
    char key[64];
    int64_t i, o, k;
    snprintf(key, sizeof key, "%s.weight", name);
    golden_fill_param(key, w, (size_t)(in * out), (size_t)in);
    snprintf(key, sizeof key, "%s.bias", name);
    if (bias) golden_fill_param(key, b, (size_t)out, 0);
    for (i = 0; i < n; i++)
        for (o = 0; o < out; o++) {
            y[i * out + o] = b[o];
            for (k = 0; k < in; k++) y[i * out + o] += x[i * in + k] * w[o * in + k];
        }
    free(w);
    free(b);
}

/* In place: by the batch's statistics of each group, or by running ones; then ReLU if asked for. */
static void plain_norm(double *x, int64_t n, int64_t c, const char *name, int gamma, int beta,
                       int eval, int groups, int relu)
{
    double *p = test_doubles(4 * c);
    static const char *const parts[4] = { "weight", "bias", "running_mean", "running_var" };
    int64_t rows = n / groups, g, i, k;
    char key[64];
    for (k = 0; k < 4; k++) {
        snprintf(key, sizeof key, "%s.%s", name, parts[k]);
        golden_fill_param(key, p + k * c, (size_t)c, 0);
    }
    for (g = 0; g < groups; g++)
        for (k = 0; k < c; k++) {
            double mean = 0, var = 0, *at = x + g * rows * c + k;
            for (i = 0; i < rows; i++) mean += at[i * c] / (double)rows;
            for (i = 0; i < rows; i++)
                var += (at[i * c] - mean) * (at[i * c] - mean) / (double)rows;
            if (eval) {
                mean = p[2 * c + k];
                var = p[3 * c + k];
            }
            for (i = 0; i < rows; i++) {
                double y = (at[i * c] - mean) / sqrt(var + 1e-5);
                y = (gamma ? p[k] : 1) * y + (beta ? p[c + k] : 0);
                at[i * c] = relu && y < 0 ? 0 : y;
            }
        }
    free(p);
}

static void head_one(ctr_ctx *ctx, const ctr_mlp_config *c, int eval, int groups)
{
    enum { N = 6 };
    ctr_mlp head;
    ctr_vars vars;
    ctr_tensor *x, *y;
    double *a = test_doubles(N * 64), *b = test_doubles(N * 64);
    ctr_real *out = test_reals(N * 64);
    int64_t shape[2], in = c->in, k;
    char name[32], what[96];
    int i, at = 0;
    ctr_vars_init(&vars);
    ctr_mlp_init(ctx, &head, &vars, "", c);
    model_fill(ctx, &vars, "");
    shape[0] = N;
    shape[1] = c->in;
    test_fill("head", a, N * c->in, 1.0);
    for (k = 0; k < N * c->in; k++) out[k] = (ctr_real)a[k];
    x = ctr_tensor_create(ctx, CTR_F32, 2, shape, 0);
    ctr_tensor_write(ctx, x, out, x->size);
    for (i = 0; i < c->layers; i++) {
        int last = i == c->layers - 1, norm = last ? c->out_norm : c->hidden_norm;
        int64_t o = last ? c->out : c->hidden;
        snprintf(name, sizeof name, "%d", at++);
        plain_linear(a, N, in, o, name, last ? c->out_bias : c->hidden_bias, b);
        snprintf(name, sizeof name, "%d", norm ? at++ : at);
        if (norm)
            plain_norm(b, N, o, name, norm != 3, norm == 1, eval, groups, !last);
        else if (!last)
            for (k = 0; k < N * o; k++) b[k] = b[k] > 0 ? b[k] : 0;
        at++; /* ReLU */
        memcpy(a, b, (size_t)(N * o) * sizeof *a);
        in = o;
    }
    ctr_step_begin(ctx);
    y = ctr_mlp_forward(ctx, &head, x, eval ? CTR_NORM_EVAL : CTR_NORM_TRAIN, groups);
    test_true("shape", y->rank == 2 && y->shape[0] == N && y->shape[1] == c->out);
    ctr_tensor_read(ctx, y, out, y->size);
    ctr_step_end(ctx);
    snprintf(what, sizeof what, "head of %d layers, biases %d %d, norms %d %d, %s, %d groups",
             c->layers, c->hidden_bias, c->out_bias, c->hidden_norm, c->out_norm,
             eval ? "evaluation" : "training", groups);
    test_near(what, out, a, N * c->out, test_bound(1e-11, 1e-4), 0);
    test_fine(ctx, what);
    ctr_tensor_destroy(ctx, x);
    ctr_vars_destroy(ctx, &vars);
    free(a);
    free(b);
    free(out);
}

static void heads(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_mlp_config c = ctr_mlp_config_default(10, 12, 7);
    ctr_mlp head;
    ctr_vars vars;
    int layers, i;
    test_group("heads");
    test_true("SimCLR's head by default", c.layers == 2 && c.in == 10 && c.hidden == 12 &&
                                              c.out == 7 && !c.hidden_bias && c.hidden_norm == 1 &&
                                              !c.out_bias && c.out_norm == 2);
    for (layers = 1; layers <= 4; layers++)
        for (i = 0; i < 4; i++) {
            c.layers = layers;
            c.hidden_bias = i == 1 || i == 3;
            c.hidden_norm = i != 1;
            c.out_bias = i == 1;
            c.out_norm = i == 0 ? 2 : i == 1 ? 0 : i == 2 ? 1 : 3;
            head_one(ctx, &c, 0, 1);
            head_one(ctx, &c, 0, 2);
            head_one(ctx, &c, 1, 1);
        }
    ctr_vars_init(&vars);
    c = ctr_mlp_config_default(10, 12, 7);
    c.layers = 5;
    ctr_mlp_init(ctx, &head, &vars, "", &c);
    test_fails(ctx, "5 layers", CTR_E_VALUE, "layers");
    c.layers = 2;
    c.hidden = 0;
    ctr_mlp_init(ctx, &head, &vars, "", &c);
    test_fails(ctx, "no hidden numbers", CTR_E_VALUE, "mlp");
    test_equal("no variables came of it", vars.count, 0);
    ctr_vars_destroy(ctx, &vars);
    ctr_ctx_destroy(ctx);
}

/* -------------------------------------------------------------------------------- tables of
 * variables */

static void tables(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_vars a, b;
    ctr_tensor *w, *m;
    int64_t two[2] = { 3, 4 }, four[2] = { 4, 3 }, c = 5;
    char name[128];
    size_t held = ctr_memory_stats(ctx).held;
    int i;
    test_group("tables of variables");
    ctr_vars_init(&a);
    test_true("an empty table",
              a.count == 0 && !ctr_vars_find(&a, "w") && !ctr_vars_numbers(&a, 1));
    w = ctr_vars_add(ctx, &a, "net.", "weight", CTR_KIND_WEIGHT, 2, two);
    m = ctr_vars_add(ctx, &a, "net.", "running_mean", CTR_KIND_BUFFER, 1, &c);
    test_true("find",
              ctr_vars_find(&a, "net.weight") && ctr_vars_find(&a, "net.weight")->value == w);
    test_true("find whole names only",
              !ctr_vars_find(&a, "weight") && !ctr_vars_find(&a, "net.weigh"));
    test_true("kinds", a.list[0].kind == CTR_KIND_WEIGHT && a.list[1].kind == CTR_KIND_BUFFER &&
              !a.list[0].conv);
    test_true("numbers", ctr_vars_numbers(&a, 0) == 12 && ctr_vars_numbers(&a, 1) == 17);
    constant(ctx, "new ones are zero", w, 0);
    (void)m;
    ctr_vars_add(ctx, &a, "net.", "weight", CTR_KIND_WEIGHT, 2, two);
    test_fails(ctx, "a name that is taken", CTR_E_VALUE, "net.weight");
    memset(name, 'n', sizeof name);
    name[92] = 0;
    ctr_vars_add(ctx, &a, "net.", name, CTR_KIND_WEIGHT, 2, two);
    test_fails(ctx, "a name of 96 characters", CTR_E_VALUE, "too long");
    name[91] = 0;
    test_true("one of 95",
              ctr_vars_add(ctx, &a, "net.", name, CTR_KIND_WEIGHT, 2, two)->size == 12);
    two[0] = -3;
    ctr_vars_add(ctx, &a, "net.", "negative", CTR_KIND_WEIGHT, 2, two);
    test_true("a negative shape is an error", ctr_error(ctx) != CTR_OK);
    ctr_error_clear(ctx);
    two[0] = 3;
    test_true("refused ones are not in the table", a.count == 3);
    for (i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "v%d", i);
        ctr_vars_add(ctx, &a, "", name, CTR_KIND_BIAS, 1, &c);
    }
    test_true("103 variables, in their order", a.count == 103 && ctr_vars_find(&a, "v99") ==
              &a.list[102] && ctr_vars_find(&a, "net.weight")->value == w);
    ctr_vars_init(&b);
    ctr_vars_add(ctx, &b, "other.", "weight", CTR_KIND_WEIGHT, 2, four);
    ctr_vars_ema(ctx, &b, &a, 0.5, 1);
    test_fails(ctx, "EMA of tables of different length", CTR_E_SHAPE, "differ");
    ctr_vars_destroy(ctx, &a);
    ctr_vars_init(&a);
    ctr_vars_add(ctx, &a, "net.", "weight", CTR_KIND_WEIGHT, 2, two);
    ctr_vars_copy(ctx, &b, &a);
    test_fails(ctx, "copy of another shape with as many numbers", CTR_E_SHAPE, "weight");
    ctr_vars_destroy(ctx, &b);
    ctr_vars_init(&b);
    ctr_vars_add(ctx, &b, "net.", "weight", CTR_KIND_NORM, 2, two);
    ctr_vars_copy(ctx, &b, &a);
    test_fails(ctx, "copy of another kind", CTR_E_SHAPE, "weight");
    ctr_vars_destroy(ctx, &b);
    ctr_vars_destroy(ctx, &a);
    test_equal("tables give everything back", (double)ctr_memory_stats(ctx).held, (double)held);
    ctr_ctx_destroy(ctx);
}

/* After k moves towards a network that stands still: to = from + tau^k (start - from). */
static void ema_one(ctr_ctx *ctx, const char *where, double tau, int buffers)
{
    ctr_resnet_config c = ctr_resnet_config_default(8);
    ctr_resnet net, twin, fresh;
    ctr_vars online, target, start;
    double worst = 0, left = 1;
    uint64_t hash;
    char what[96];
    int i, k;
    c.width = 3;
    ctr_vars_init(&online);
    ctr_vars_init(&target);
    ctr_vars_init(&start);
    ctr_resnet_init(ctx, &net, &online, "online.", &c);
    ctr_resnet_init(ctx, &twin, &target, "target.net.", &c);
    ctr_resnet_init(ctx, &fresh, &start, "online.", &c);
    test_true("other names, other values", model_hash(ctx, &online) != model_hash(ctx, &target));
    ctr_vars_copy(ctx, &target, &online);
    test_true("a copy is equal", model_hash(ctx, &online) == model_hash(ctx, &target));
    model_fill(ctx, &online, "online.");
    hash = model_hash(ctx, &online);
    for (k = 0; k < 7; k++, left *= tau) ctr_vars_ema(ctx, &target, &online, tau, buffers);
    test_true("the network itself stands still", model_hash(ctx, &online) == hash);
    for (i = 0; i < online.count; i++) {
        ctr_real *from = model_read(ctx, &online.list[i], 0);
        ctr_real *first = model_read(ctx, &start.list[i], 0);
        ctr_real *to = model_read(ctx, &target.list[i], 0);
        double share = online.list[i].kind == CTR_KIND_BUFFER && !buffers ? 1 : left;
        int64_t j;
        for (j = 0; j < online.list[i].value->size; j++) {
            double want = (double)from[j] + share * (double)(first[j] - from[j]);
            worst = golden_max_(worst,
                                golden_finite_((double)to[j]) ? fabs((double)to[j] - want) : 1e9);
        }
        free(from);
        free(first);
        free(to);
    }
    snprintf(what, sizeof what, "%s: 7 moves with tau %g, buffers %d", where, tau, buffers);
    test_error(what, worst, test_bound(1e-14, 1e-6));
    test_fine(ctx, what);
    ctr_vars_destroy(ctx, &online);
    ctr_vars_destroy(ctx, &target);
    ctr_vars_destroy(ctx, &start);
}

static void ema(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    fake_device *fake = fake_device_open();
    test_group("momentum encoders");
    ema_one(ctx, "CPU", 0.9, 0);
    ema_one(ctx, "CPU", 0.9, 1);
    ema_one(ctx, "CPU", 1, 1);
    ema_one(ctx, "CPU", 0, 0);
    ctr_ctx_destroy(ctx);
    ctx = fake_device_ctx(fake);
    ema_one(ctx, "fake device", 0.9, 0);
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
}

/* ----------------------------------------------------------------------- gradients that are
 * checked */

static void gradients(ctr_ctx *ctx)
{
    ctr_vars vars;
    ctr_tensor *a, *b, *unused;
    int64_t c = 4;
    test_group("gradients that are checked");
    ctr_vars_init(&vars);
    a = ctr_vars_add(ctx, &vars, "net.", "first", CTR_KIND_BIAS, 1, &c);
    b = ctr_vars_add(ctx, &vars, "net.", "second", CTR_KIND_BIAS, 1, &c);
    unused = ctr_vars_add(ctx, &vars, "net.", "unused", CTR_KIND_BIAS, 1, &c);
    ctr_tensor_fill(ctx, a, 2);
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, a, ctr_exp(ctx, b)), -1));
    ctr_vars_check_gradients(ctx, &vars);
    test_fine(ctx, "finite gradients");
    test_true("who has one", ctr_tensor_has_grad(ctx, a) && ctr_tensor_has_grad(ctx, b) &&
              !ctr_tensor_has_grad(ctx, unused));
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, ctr_add(ctx, a, ctr_sqrt(ctx, b)), -1));
    test_fine(ctx, "backward itself does not mind");
    ctr_vars_check_gradients(ctx, &vars);
    test_fails(ctx, "an infinite gradient", CTR_E_NUMBER, "net.second");
    ctr_step_begin(ctx);
    ctr_vars_check_gradients(ctx, &vars);
    test_fine(ctx, "gradients of the step before are gone");
    ctr_step_end(ctx);
    ctr_vars_destroy(ctx, &vars);
}

/* Wrong images. */
static void wrong_images(ctr_ctx *ctx)
{
    ctr_resnet_config c = ctr_resnet_config_default(8);
    ctr_resnet net;
    ctr_vars vars;
    ctr_tensor *x;
    int64_t shape[4] = { 2, 8, 8, 4 }, one[4] = { 1, 1, 1, 3 };
    test_group("images that do not fit");
    c.width = 4;
    ctr_vars_init(&vars);
    ctr_resnet_init(ctx, &net, &vars, "", &c);
    ctr_step_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
    ctr_tensor_fill(ctx, x, 1);
    ctr_resnet_forward(ctx, &net, x, CTR_NORM_EVAL, 1);
    test_fails(ctx, "four channels", CTR_E_SHAPE, "expected images [n, h, w, 3]");
    x = ctr_tensor_temp(ctx, CTR_F32, 3, shape);
    ctr_resnet_forward(ctx, &net, x, CTR_NORM_EVAL, 1);
    test_fails(ctx, "three dimensions", CTR_E_SHAPE, "resnet");
    x = ctr_tensor_temp(ctx, CTR_F32, 4, one);
    ctr_tensor_fill(ctx, x, 1);
    test_true("one pixel is an image",
              ctr_resnet_forward(ctx, &net, x, CTR_NORM_EVAL, 1)->size == 16);
    test_fine(ctx, "one pixel");
    ctr_resnet_forward(ctx, &net, x, CTR_NORM_TRAIN, 1);
    test_fails(ctx, "but nothing to train on", CTR_E_SHAPE, "batch_norm");
    ctr_step_end(ctx);
    ctr_vars_destroy(ctx, &vars);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_nn", argc, argv);
    parses();
    describes();
    initial();
    initial_large();
    heads();
    tables();
    ema();
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    gradients(ctx);
    wrong_images(ctx);
    ctr_ctx_destroy(ctx);
    dicts_all();
    nets();
    return test_end();
}
