/* test_clip.c - the text tower, CLIP and SigLIP.
 * run: float double asan tsan smoke
 *
 * 1. Three steps of each loss against PyTorch in float64 (tests/golden/golden_clip.txt): losses,
 *    parameters, running statistics; the text tower's output with either GELU.
 * 2. The tower: gradients by central differences, what follows the end token has no say, initial
 *    values, wrong shapes and ids.
 * 3. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed; another loss's checkpoint.
 * 4. A run whose n-th allocation fails; a steady step allocates nothing; the plan is what it needs.
 * 5. The scale stays in its range; reports; zero-shot classifiers by hand; what is refused.
 */
#include "training.h"

enum { CLIP, EQUAL, SIGLIP, KINDS, VOCAB = 40, CONTEXT = 12 };
static const char *const kinds[KINDS] = { "clip", "equal", "siglip" };

static ctr_method *make(ctr_ctx *ctx, int kind, int64_t width, int64_t side, int64_t text)
{
    ctr_clip_config c = ctr_clip_default();
    ctr_resnet_config_init(&c.encoder, 8);
    c.encoder.width = width;
    c.encoder.image_size = side;
    c.text.vocab = VOCAB;
    c.text.context = CONTEXT;
    c.text.width = text;
    c.text.layers = 2;
    c.text.heads = 4;
    c.dim = 16;
    c.siglip = kind == SIGLIP;
    c.equal = kind == EQUAL;
    c.aug.height = c.aug.width = side;
    return ctr_clip_create(ctx, &c);
}

/* The texts of step t, as in golden_clip.txt: [6, CONTEXT] */
static void golden_tokens(int t, int32_t *ids)
{
    int i, j, n;
    memset(ids, 0, 6 * CONTEXT * sizeof *ids);
    for (i = 0; i < 6; i++) {
        n = 3 + (5 * i + 2 * t) % 10;
        for (j = 1; j < n - 1; j++) ids[i * CONTEXT + j] = (7 * i + 3 * j + 5 * t) % 38;
        ids[i * CONTEXT] = 38;
        ids[i * CONTEXT + n - 1] = 39;
    }
}

static const int32_t golden_labels[6] = { 0, 1, 0, 2, -1, 2 };

/* ------------------------------------------------------------------------ PyTorch's three steps */

static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_var v = model_var(name, t, conv);
    if (strncmp(name, "optim.", 6) && strncmp(name, "logit_", 6))
        model_fill_var(((model_walk *)user)->ctx, &v, 0);
}

/* The keys' bias moves no softmax: its gradient is rounding, of which Adam makes whole steps. In
   double these are small beside Adam's eps; in float they are not compared. */
static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    if (strncmp(name, "optim.", 6) && (TEST_DOUBLE || !strstr(name, "in_proj_bias")))
        model_compare((model_walk *)user, name, t, conv);
}

static void golden_steps(golden_file *g, int kind)
{
    static const double rate[3] = { 0.01, 0.008, 0.005 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, kind, 16, 16, 16);
    const double *losses;
    char name[64];
    int32_t tokens[6 * CONTEXT];
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
    for (t = 0; t < 3; t++) {
        ctr_batch batch;
        snprintf(name, sizeof name, "views:%d", t + 1);
        batch = model_batch(name, 6, 1, 16, 16);
        golden_tokens(t + 1, tokens);
        batch.tokens = tokens;
        batch.context = CONTEXT;
        batch.labels = golden_labels;
        test_true("step", ctr_method_step(method, &batch, rate[t], &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t + 1);
        e = fabs(report.loss - losses[t]) / (fabs(losses[t]) > 1 ? fabs(losses[t]) : 1);
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        worst = e > worst ? e : worst;
        model_batch_free(&batch);
    }
    model_visit(method, &w, compare_tensor);
    test_equal("all was compared", w.compared, (kind == SIGLIP ? 77 : 76) - (TEST_DOUBLE ? 0 : 2));
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", kinds[kind], worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

/* ----------------------------------------------------------------------------- the text tower */

typedef struct tower {
    ctr_ctx *ctx;
    ctr_vars vars;
    ctr_text net;
    int32_t tokens[6 * CONTEXT];
} tower;

static void tower_begin(tower *t, ctr_ctx *ctx, int exact, int64_t width, int64_t context)
{
    ctr_text_config c = ctr_text_config_default();
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
    c.vocab = VOCAB;
    c.context = context;
    c.width = width;
    c.layers = 2;
    c.heads = 4;
    c.dim = 16;
    c.exact_gelu = exact;
    ctr_vars_init(&t->vars);
    ctr_text_init(ctx, &t->net, &t->vars, "text.", &c);
    model_fill(ctx, &t->vars, "");
    golden_tokens(1, t->tokens);
}

static void tower_end(tower *t)
{
    ctr_vars_destroy(t->ctx, &t->vars);
    ctr_ctx_destroy(t->ctx);
}

/* The embeddings [6, 16] of the tower's texts; the caller frees them. */
static ctr_real *tower_texts(tower *t, int record)
{
    ctr_real *out = test_reals(6 * 16);
    ctr_step_begin(t->ctx);
    if (!record) ctr_nograd_begin(t->ctx);
    ctr_tensor_read(t->ctx, ctr_text_forward(t->ctx, &t->net, 6, t->tokens), out, 6 * 16);
    if (!record) ctr_nograd_end(t->ctx);
    ctr_step_end(t->ctx);
    test_fine(t->ctx, "texts");
    return out;
}

static void golden_towers(golden_file *g)
{
    int exact;
    for (exact = 0; exact < 2; exact++) {
        const char *key = exact ? "text:exact" : "text:quick";
        tower t;
        ctr_real *x, *again;
        tower_begin(&t, test_ctx(1, CTR_KERNELS_AUTO), exact, 16, CONTEXT);
        x = tower_texts(&t, 1);
        test_error(key, test_digest(g, key, x, 6 * 16, 0), test_bound(1e-8, 1e-4));
        again = tower_texts(&t, 0);
        test_bytes("recorded or not", x, again, 6 * 16 * sizeof *x);
        free(again);
        free(x);
        tower_end(&t);
    }
}

/* Texts of up to 12 tokens: in a tower of context 12, and with other tokens behind their ends. */
static void tower_causal(void)
{
    tower t;
    ctr_real *x, *y;
    double want[6 * 16];
    int i, j, end;
    tower_begin(&t, test_ctx(1, CTR_KERNELS_AUTO), 0, 16, CONTEXT);
    x = tower_texts(&t, 1);
    for (i = 0; i < 6; i++) {
        for (end = 0; t.tokens[i * CONTEXT + end] != 39; end++) { }
        for (j = end + 1; j < CONTEXT; j++) t.tokens[i * CONTEXT + j] = (5 * i + j) % 39;
    }
    y = tower_texts(&t, 1);
    test_bytes("what stands behind the end", x, y, 6 * 16 * sizeof *x);
    free(y);
    golden_tokens(1, t.tokens);
    for (i = 0; i < 6 * 16; i++) want[i] = (double)x[i];
    for (i = 0; i < CONTEXT; i++) t.tokens[5 * CONTEXT + i] = i < 11 ? 20 : 39; /* no column less */
    y = tower_texts(&t, 1);
    test_near("a longer neighbour", y, want, 5 * 16, test_bound(1e-12, 1e-4), test_bound(0, 1e-6));
    free(x);
    x = y;
    t.tokens[1] = (t.tokens[1] + 1) % 38;
    y = tower_texts(&t, 1);
    test_true("what stands before it", memcmp(x, y, 16 * sizeof *x) != 0);
    test_bytes("of this text alone", x + 16, y + 16, 16 * sizeof *x);
    free(y);
    free(x);
    tower_end(&t);
}

static ctr_tensor *tower_loss(ctr_ctx *ctx, void *user)
{
    tower *t = (tower *)user;
    ctr_tensor *y = ctr_text_forward(ctx, &t->net, 6, t->tokens);
    return ctr_sum(ctx, ctr_tanh(ctx, y), -1);
}

static void tower_gradients(void)
{
    tower t;
    int i;
    if (!TEST_DOUBLE) return;
    tower_begin(&t, test_ctx(1, CTR_KERNELS_SCALAR), 0, 8, CONTEXT);
    for (i = 0; i < t.vars.count; i++)
        test_error(t.vars.list[i].name,
                   ctr_gradient_check(t.ctx, tower_loss, &t, t.vars.list[i].value, 1e-5,
                                      test_quick() ? 5 : 40), 1e-6);
    test_fine(t.ctx, "gradients");
    tower_end(&t);
}

static double deviation(ctr_ctx *ctx, const ctr_vars *vars, const char *name)
{
    const ctr_var *v = ctr_vars_find(vars, name);
    double sum = 0;
    ctr_real *x;
    int64_t i;
    if (!test_true(name, v != NULL)) return -1;
    x = model_read(ctx, v, 0);
    for (i = 0; i < v->value->size; i++) sum += (double)x[i] * (double)x[i];
    free(x);
    return sqrt(sum / (double)v->value->size);
}

/* The deviations of openai/CLIP's initialize_parameters, width 64, 2 layers: the estimate of
   16,384 numbers is within 2 % (4 standard errors of 0.55 %). */
static void tower_starts(void)
{
    static const struct { const char *name; double std; } list[] = {
        { "token_embedding.weight", 0.02 }, { "positional_embedding", 0.01 },
        { "text_projection", 0.125 }, { "transformer.resblocks.0.attn.in_proj_weight", 0.125 },
        { "transformer.resblocks.1.attn.out_proj.weight", 0.0625 },
        { "transformer.resblocks.0.mlp.c_fc.weight", 0.08838834764831845 },
        { "transformer.resblocks.1.mlp.c_proj.weight", 0.0625 },
        { "transformer.resblocks.0.mlp.c_fc.bias", 0.07216878364870322 },
        { "transformer.resblocks.0.attn.in_proj_bias", 0 },
        { "transformer.resblocks.0.attn.out_proj.bias", 0 }, { "ln_final.weight", 1 },
        { "transformer.resblocks.1.ln_2.bias", 0 }
    };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_text_config c = ctr_text_config_default(), again;
    ctr_vars vars;
    ctr_text net;
    size_t i;
    ctr_text_config_init(&again);
    test_bytes("default and init are one", &c, &again, sizeof c);
    test_true("theirs", c.vocab == 49408 && c.context == 77 && c.width == 512 && c.layers == 12 &&
              c.heads == 8 && !c.exact_gelu);
    c.vocab = c.context = 256;
    c.width = 64;
    c.layers = 2;
    c.dim = 256;
    ctr_vars_init(&vars);
    ctr_text_init(ctx, &net, &vars, "", &c);
    for (i = 0; i < sizeof list / sizeof *list; i++) {
        double e = fabs(deviation(ctx, &vars, list[i].name) - list[i].std);
        test_error(list[i].name, e, strstr(list[i].name, "fc.bias") ? 0.15 * list[i].std
                                                                   : 0.03 * list[i].std);
    }
    test_true("kinds", ctr_vars_find(&vars, "positional_embedding")->kind == CTR_KIND_WEIGHT &&
              ctr_vars_find(&vars, "ln_final.bias")->kind == CTR_KIND_NORM);
    ctr_vars_destroy(ctx, &vars);
    test_fine(ctx, "initial values");
    ctr_ctx_destroy(ctx);
}

static void tower_refuses(void)
{
    static const int broken[5][5] = {    /* vocab, context, width, layers, heads */
        { 0, 8, 8, 1, 2 }, { 9, 0, 8, 1, 2 }, { 9, 8, 9, 1, 2 }, { 9, 8, 8, 25, 2 },
        { 9, 8, 8, 1, 0 }
    };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_vars vars;
    ctr_text net;
    tower t;
    int i;
    ctr_vars_init(&vars);
    for (i = 0; i < 5; i++) {
        ctr_text_config c = ctr_text_config_default();
        c.vocab = broken[i][0];
        c.context = broken[i][1];
        c.width = broken[i][2];
        c.layers = broken[i][3];
        c.heads = broken[i][4];
        ctr_text_init(ctx, &net, &vars, "", &c);
        test_fails(ctx, "a tower that cannot be", CTR_E_VALUE, "text: needs");
    }
    ctr_vars_destroy(ctx, &vars);
    tower_begin(&t, ctx, 0, 8, CONTEXT);
    for (i = 0; i < 2; i++) {
        t.tokens[2 * CONTEXT + 3] = i ? -1 : VOCAB;
        ctr_step_begin(ctx);
        ctr_text_forward(ctx, &t.net, 6, t.tokens);
        test_fails(ctx, "an id that is none", CTR_E_VALUE, "token 3 of text 2");
        ctr_step_end(ctx);
    }
    ctr_step_begin(ctx);
    ctr_text_forward(ctx, &t.net, 6, NULL);
    test_fails(ctx, "no tokens", CTR_E_VALUE, "no tokens");
    ctr_step_end(ctx);
    tower_end(&t);
}

/* ---------------------------------------------------------------------- one small training run */

static ctr_method *make_small(ctr_ctx *ctx, const training *t)
{
    return make(ctx, t->kind, 4, t->side, 8);
}

/* Three classes' texts, of 5, 10 and 5 tokens; full: of 12, as a plan has them. */
static training run_of(int kind, int full)
{
    static int32_t texts[2][6 * CONTEXT];
    training t = training_default(kinds[kind], make_small);
    int i, j;
    for (i = 0; i < 2; i++) golden_tokens(1, texts[i]);
    for (i = 0; i < 3; i++)
        for (j = 0; j < CONTEXT; j++) texts[1][i * CONTEXT + j] = j < CONTEXT - 1 ? 3 * i + j : 39;
    t.kind = kind;
    t.loader.tokens = texts[full];
    t.loader.context = CONTEXT;
    return t;
}

/* A checkpoint belongs to its loss. */
static void other_loss(int kind)
{
    training t = run_of(kind, 0);
    ctr_fit_config fit = ctr_fit_default();
    uint64_t before;
    training_run r;
    fit.epochs = 1;
    fit.checkpoint = "clip_other.ctr";
    training_begin(&r, &t);
    test_equal("a run", (double)ctr_fit(r.method, r.loader, &fit), 4);
    training_end(&r);
    t.kind = (kind + 1) % KINDS;
    fit.resume = 1;
    training_begin(&r, &t);
    before = ctr_method_hash(r.method);
    test_equal("another loss's file", (double)ctr_fit(r.method, r.loader, &fit), -1);
    if (t.kind == EQUAL) test_fails(r.ctx, "other ids", CTR_E_VALUE, "equal=0");
    else test_fails(r.ctx, "another loss's file", CTR_E_FORMAT, "siglip resnet8");
    test_true("nothing was loaded", ctr_method_hash(r.method) == before);
    training_end(&r);
    remove("clip_other.ctr");
}

/* Two chunks of the same three pictures have the statistics of the whole batch, so a step in chunks
   must be the whole step, but for the running statistics. The texts differ. */
static void chunked(int kind)
{
    ctr_batch batch = model_batch("chunks", 6, 1, 8, 8);
    int32_t tokens[6 * CONTEXT];
    ctr_report report[2];
    training_run r[2];
    training t = run_of(kind, 0);
    double worst = 0;
    int i;
    memcpy(batch.pixels + 3 * 8 * 8 * 3, batch.pixels, 3 * 8 * 8 * 3 * sizeof *batch.pixels);
    golden_tokens(1, tokens);
    batch.tokens = tokens;
    batch.context = CONTEXT;
    batch.labels = golden_labels;
    for (i = 0; i < 2; i++) training_begin(&r[i], &t);
    test_true("whole", ctr_method_step(r[0].method, &batch, 0.001, &report[0]));
    test_true("in chunks", ctr_method_step_chunked(r[1].method, &batch, 3, 0.001, &report[1]));
    test_error("loss", fabs(report[0].loss - report[1].loss), test_bound(1e-12, 1e-5));
    for (i = 0; i < r[0].method->encoder->count; i++) {
        const ctr_var *v = &r[0].method->encoder->list[i], *u = &r[1].method->encoder->list[i];
        ctr_real *a = model_read(r[0].ctx, v, 0), *b = model_read(r[1].ctx, u, 0);
        int64_t k;
        for (k = 0; k < v->value->size && v->kind != CTR_KIND_BUFFER; k++)
            if (fabs((double)(a[k] - b[k])) > worst) worst = fabs((double)(a[k] - b[k]));
        free(a);
        free(b);
    }
    if (TEST_DOUBLE) test_error("parameters", worst, 1e-9); /* in float Adam's steps are rounding */
    for (i = 0; i < 2; i++) training_end(&r[i]);
    model_batch_free(&batch);
}

/* ------------------------------------------------------------------------ scale, reports, words */

/* A step from a scale outside comes back to the edge; SigLIP's is free. */
static void scales(void)
{
    static const double starts[4] = { -0.5, 0, 4.605, 7 };
    training c = run_of(CLIP, 0);
    training_run r;
    int i;
    training_begin(&r, &c);
    test_error("starts at 1 / 0.07", fabs(ctr_clip_scale(r.method) * 0.07 - 1),
               test_bound(1e-14, 1e-6));
    for (i = 0; i < 4; i++) {
        ctr_tensor_fill(r.ctx, model_tensor(r.method, "logit_scale"), (ctr_real)starts[i]);
        test_true("a step", training_steps(&r, 1, NULL));
        test_true("the scale's range", ctr_clip_scale(r.method) >= 1 &&
                  ctr_clip_scale(r.method) <= 100.001);
    }
    test_error("at the edge", fabs(ctr_clip_scale(r.method) - 100), test_bound(1e-11, 1e-4));
    training_end(&r);
    c.kind = SIGLIP;
    training_begin(&r, &c);
    test_error("SigLIP starts at 10", fabs(ctr_clip_scale(r.method) / 10 - 1),
               test_bound(1e-14, 1e-6));
    ctr_tensor_fill(r.ctx, model_tensor(r.method, "logit_scale"), 5);
    test_true("a step", training_steps(&r, 1, NULL));
    test_true("and may be what it likes", ctr_clip_scale(r.method) > 130);
    test_fine(r.ctx, "scales");
    training_end(&r);
}

static void step_refused(training_run *r, ctr_batch *batch, const char *what, ctr_status status,
                         const char *word)
{
    uint64_t before = ctr_method_hash(r->method);
    test_equal(what, ctr_method_step(r->method, batch, 0.004, NULL), 0);
    test_fails(r->ctx, what, status, word);
    test_true("nothing has changed", ctr_method_hash(r->method) == before);
}

static void reports(void)
{
    ctr_batch batch = model_batch("report", 6, 1, 8, 8);
    int32_t tokens[6 * CONTEXT];
    ctr_report a;
    char text[256];
    int kind;
    golden_tokens(2, tokens);
    for (kind = 0; kind < KINDS; kind++) {
        training c = run_of(kind, 0);
        training_run r;
        training_begin(&r, &c);
        batch.tokens = NULL;
        batch.labels = golden_labels;
        batch.context = 0;
        step_refused(&r, &batch, "a batch without texts", CTR_E_SHAPE, "has none");
        batch.tokens = tokens;
        batch.context = CONTEXT + 1;
        step_refused(&r, &batch, "another context", CTR_E_SHAPE, "has 13");
        batch.context = CONTEXT;
        tokens[3] = 99;
        step_refused(&r, &batch, "an id that is none", CTR_E_VALUE, "token 3 of text 0");
        tokens[3] = 1;
        if (kind == EQUAL) {
            batch.labels = NULL;
            step_refused(&r, &batch, "no labels", CTR_E_VALUE, "labels");
            batch.labels = golden_labels;
        }
        batch.n = 1;
        if (kind == SIGLIP) /* a yes or no of a single pair is a loss */
            test_true("one pair", ctr_method_step(r.method, &batch, 0, &a) && a.loss > 0);
        else
            step_refused(&r, &batch, "one pair", CTR_E_VALUE, "2 images or more, got 1");
        batch.n = 6;
        test_true("step", ctr_method_step(r.method, &batch, 0.004, &a));
        test_error("chance", fabs(a.chance - (kind == SIGLIP ? ctr_loss_siglip_chance(6, -10)
                                                             : log(6.0))), test_bound(1e-13, 1e-5));
        test_true("accuracy", a.accuracy >= 0 && a.accuracy <= 1);
        test_true("cosines", fabs(a.positive) <= 1.0001 && fabs(a.negative) <= 1.0001);
        /* 10 pairs with labels, two of them equal; as positives they are no negatives */
        test_error("false negatives", fabs(a.false_negatives - (kind == EQUAL ? 0 : 0.2)), 1e-15);
        r.method->describe_fn(r.method, text, sizeof text);
        test_true(text, strncmp(text, kind == SIGLIP ? "siglip resnet8" : "clip resnet8 ", 13) == 0
                            && strstr(text, " text=2x8 heads=4 tokens=12/40 gelu=quick"));
        test_fine(r.ctx, "reports");
        training_end(&r);
    }
    model_batch_free(&batch);
}

/* A classifier of two names and two templates against the same by ctr_clip_texts. */
static void classifiers(void)
{
    static const char *const names[2] = { "dog", "cat" };
    static const char *const forms[2] = { "a {}", "{}!" }, *const bad[1] = { "no hole" };
    static const char *const texts[4] = { "a dog", "dog!", "a cat", "cat!" };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_tokenizer *t = ctr_tokenizer_create(ctx, NULL, 0, 0);
    ctr_clip_config c = ctr_clip_default();
    ctr_method *m, *other;
    ctr_simclr_config simclr = ctr_simclr_default();
    char *name[1];
    int32_t ids[4 * 16];
    ctr_real rows[4 * 8], got[2 * 8];
    double want[2 * 8], norm;
    int i, j;
    ctr_resnet_config_init(&c.encoder, 8);
    c.encoder.width = 4;
    c.text.vocab = 514;
    c.text.context = 16;
    c.text.width = 8;
    c.text.layers = 1;
    c.text.heads = 2;
    c.dim = 8;
    m = ctr_clip_create(ctx, &c);
    for (i = 0; i < 4; i++) ctr_tokenizer_encode(ctx, t, texts[i], 16, 0, ids + 16 * i);
    test_true("texts", ctr_clip_texts(m, 4, ids, 3, rows));
    for (i = 0; i < 2; i++) {
        for (norm = 0, j = 0; j < 8; j++) {
            want[i * 8 + j] = (double)rows[16 * i + j] + (double)rows[16 * i + 8 + j];
            norm += want[i * 8 + j] * want[i * 8 + j];
        }
        for (j = 0; j < 8; j++) want[i * 8 + j] /= sqrt(norm);
    }
    for (norm = 0, j = 0; j < 8; j++) norm += (double)rows[j] * (double)rows[j];
    test_error("unit rows", fabs(norm - 1), test_bound(1e-14, 1e-6));
    test_true("a classifier", ctr_clip_classifier(m, t, 2, names, 2, forms, got));
    test_near("mean of its templates", got, want, 16, 0, test_bound(1e-14, 1e-6));
    test_equal("no {}", ctr_clip_classifier(m, t, 2, names, 1, bad, got), 0);
    test_fails(ctx, "no {}", CTR_E_VALUE, "{}");
    test_equal("no template", ctr_clip_classifier(m, t, 2, names, 0, forms, got), 0);
    test_fails(ctx, "no template", CTR_E_VALUE, "template");
    name[0] = (char *)test_alloc(CTR_TOKEN_TEXT + 1);
    memset(name[0], 'x', CTR_TOKEN_TEXT);
    name[0][CTR_TOKEN_TEXT] = 0;
    test_equal("a long name", ctr_clip_classifier(m, t, 1, (const char *const *)name, 1, forms,
                                                  got), 0);
    test_fails(ctx, "a long name", CTR_E_VALUE, "too long");
    free(name[0]);
    ctr_tokenizer_destroy(ctx, t);
    t = ctr_tokenizer_create(ctx, "a b\n", 4, 0);
    test_equal("more ids than the tower has", ctr_clip_classifier(m, t, 2, names, 1, forms, got),
               0);
    test_fails(ctx, "more ids than the tower has", CTR_E_VALUE, "514");
    simclr.encoder = c.encoder;
    other = ctr_simclr_create(ctx, &simclr);
    test_equal("no text tower", ctr_clip_texts(other, 4, ids, 4, rows), 0);
    test_fails(ctx, "no text tower", CTR_E_STATE, "simclr has no text tower");
    test_equal("no method", ctr_clip_texts(NULL, 4, ids, 4, rows), 0);
    test_equal("no scale", ctr_clip_scale(NULL), 0);
    ctr_method_destroy(other);
    ctr_method_destroy(m);
    ctr_tokenizer_destroy(ctx, t);
    ctr_ctx_destroy(ctx);
}

static void refused(ctr_ctx *ctx, const char *what, const ctr_clip_config *c, const char *word)
{
    test_true(what, ctr_clip_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_clip_config c, d = ctr_clip_default();
    size_t held = ctr_memory_stats(ctx).held;
    ctr_clip_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.encoder.depth == 50 && c.dim == 1024 && c.lr == 0.0005 &&
              c.optim.decay == 0.2 && c.optim.beta2 == 0.999 && c.aug.crop_min == 0.9 && !c.equal);
    c.encoder.depth = 8;
    c.text.vocab = 40;
    c.text.width = 8;
    c.text.layers = 1;
    c.scale = 0.5;
    refused(ctx, "a scale below 1", &c, "scale");
    c.scale = 101;
    refused(ctx, "a scale above 100", &c, "scale");
    c.scale = 0;
    c.text.heads = 3;
    refused(ctx, "heads that do not divide the width", &c, "text: needs");
    c.text.heads = 2;
    c.dim = 0;
    refused(ctx, "embeddings of 0 numbers", &c, "mlp");
    c.dim = 8;
    c.aug.flip_p = 2;
    refused(ctx, "flips with probability 2", &c, "flip");
    c.aug.flip_p = 0;
    c.optim.eps = 0;
    refused(ctx, "an optimiser that cannot be", &c, "eps");
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    golden_file g;
    int i;
    test_begin("test_clip", argc, argv);
    test_group("configs");
    configs();
    test_group("the text tower");
    tower_starts();
    tower_causal();
    tower_refuses();
    tower_gradients();
    test_group("scale, reports, classifiers");
    scales();
    reports();
    classifiers();
    for (i = 0; i < KINDS; i++) {
        training t = run_of(i, 1);
        test_group(kinds[i]);
        training_planned(&t);
        t.config.threads = 2;
        training_steady(&t, 2, 9);
        t = run_of(i, 0);
        training_resumes(&t);
        other_loss(i);
        chunked(i);
        if (test_quick() && i != SIGLIP) continue;
        training_same_bytes(&t);
        training_same_on_device(&t);
        training_failing_allocations(&t, 0, test_quick() || MODEL_SLOW ? 61 : 3);
    }
    test_group("as PyTorch has it");
    if (test_golden_open(&g, "golden_clip.txt")) {
        golden_towers(&g);
        for (i = 0; i < KINDS; i++)
            if ((!MODEL_SLOW && !test_quick()) || i == CLIP) golden_steps(&g, i);
        golden_close(&g);
    }
    return test_end();
}
