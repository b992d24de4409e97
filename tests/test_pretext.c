/* test_pretext.c - jigsaw puzzles and PIRL, patches and CPC.
 * run: float double asan tsan smoke
 *
 * 1. Three steps against PyTorch in float64 (tests/golden/golden_pretext.txt): losses, parameters,
 *    running statistics, PIRL's bank.
 * 2. Pieces of a puzzle: each cell once, windows within their cells, gaps; loaders keep puzzles
 *    whole. Patches are where they should be.
 * 3. The same bytes for 1, 2, 3 and 7 threads, on the fake device, and for a run that was stopped,
 *    saved and resumed; another data set's checkpoint.
 * 4. A run whose n-th allocation fails; a steady step allocates nothing; the plan is what it needs.
 * 5. What a report says; configurations and batches that are refused.
 */
#include "training.h"

enum { PIRLN, PIRL, PIRLI, CPC, KINDS };    /* PIRL's in the order of ctr_nce_form */
static const char *const kinds[KINDS] = { "pirln", "pirl", "pirli", "cpc" };

typedef struct sizes {
    int64_t width, side, small, dim, images, negatives;
} sizes;

static ctr_pirl_config pirl_of(int kind, const sizes *s)
{
    ctr_pirl_config c = ctr_pirl_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = s->width;
    c.encoder.image_size = s->side;
    c.proj_dim = s->dim;
    c.images = s->images;
    c.negatives = s->negatives;
    c.form = (ctr_nce_form)kind;
    c.temperature = 0.2;
    c.weight = 0.3;
    c.aug = ctr_aug_pirl_default(s->side, 0);
    c.piece_aug = ctr_aug_pirl_default(s->side, 1);
    c.piece_aug.height = c.piece_aug.width = s->small;
    return c;
}

static ctr_cpc_config cpc_of(const sizes *s)
{
    ctr_cpc_config c = ctr_cpc_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = s->width;
    c.encoder.image_size = s->small;
    c.patch = s->small;
    c.stride = s->small / 2;
    c.context = s->dim;
    c.first = 1;
    c.last = 2;
    c.aug.height = c.aug.width = s->side;
    c.optim.decay = 0.01;
    return c;
}

static ctr_method *make(ctr_ctx *ctx, int kind, const sizes *s)
{
    ctr_pirl_config pirl = pirl_of(kind < CPC ? kind : PIRL, s);
    ctr_cpc_config cpc = cpc_of(s);
    return kind == CPC ? ctr_cpc_create(ctx, &cpc) : ctr_pirl_create(ctx, &pirl);
}

/* ------------------------------------------------------------------------ PyTorch's three steps */

/* A batch made by hand; with pieces as well where small is not 0. */
typedef struct views {
    ctr_batch batch, pieces;
    ctr_view_group group[2];
    int64_t index[6];
} views;

static void views_make(views *v, const char *name, int64_t n, int64_t side, int64_t small)
{
    char text[32];
    int64_t i;
    memset(v, 0, sizeof *v);
    snprintf(text, sizeof text, "views:%s", name);
    v->batch = model_batch(text, n, 1, side, side);
    for (i = 0; i < n; i++) v->index[i] = i;
    v->batch.index = v->index;
    if (!small) return;
    snprintf(text, sizeof text, "pieces:%s", name);
    v->pieces = model_batch(text, n, 9, small, small);
    v->group[0].views = 1;
    v->group[0].h = v->group[0].w = side;
    v->group[0].pixels = v->batch.pixels;
    v->group[1].views = 9;
    v->group[1].h = v->group[1].w = small;
    v->group[1].pixels = v->pieces.pixels;
    v->batch.groups = 2;
    v->batch.group = v->group;
}

static void views_free(views *v)
{
    model_batch_free(&v->batch);
    model_batch_free(&v->pieces);
}

static void fill_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ctx *ctx = ((model_walk *)user)->ctx;
    ctr_var v = model_var(name, t, conv);
    if (strcmp(name, "bank.rows") == 0) {
        ctr_real *x = test_reals(t->size);
        test_fill_real(name, x, t->size, 1.0);
        model_unit_rows(x, t->shape[0], t->shape[1]);
        ctr_tensor_write(ctx, t, x, t->size);
        free(x);
    } else if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5)) {
        model_fill_var(ctx, &v, 0);
    }
}

static void compare_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    model_walk *w = (model_walk *)user;
    ctr_real rows[320];
    const double *want;
    char key[64];
    if (strncmp(name, "optim.", 6) && strncmp(name, "bank.", 5)) model_compare(w, name, t, conv);
    if (strcmp(name, "bank.rows")) return;
    snprintf(key, sizeof key, "%s:bank", w->kind);
    want = golden_get(w->g, key, NULL);
    ctr_tensor_read(w->ctx, t, rows, 320);
    if (want) test_near(key, rows, want, 320, 0, test_bound(1e-8, 2e-2));
    w->compared += want != NULL;
}

/* A step's batch: the images that golden_bank.txt names. */
static void golden_views(views *v, int kind, int t)
{
    char name[16];
    int i;
    snprintf(name, sizeof name, "%d", t + 1);
    views_make(v, name, kind == CPC ? 4 : 6, 16, kind == CPC ? 0 : 8);
    for (i = 0; i < 6; i++) v->index[i] = i < 5 ? (7 * i + 3 * t) % 20 : 3 * t;
}

static void golden_steps(golden_file *g, int kind)
{
    static const double rates[2][3] = { { 0.02, 0.015, 0.01 }, { 0.01, 0.008, 0.005 } };
    const sizes s = { 16, 16, 8, 16, 20, 12 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, kind, &s);
    const double *losses, *first;
    char name[64];
    ctr_report report;
    model_walk w;
    double e, worst = 0;
    int t;
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.g = g;
    w.kind = kinds[kind];
    w.bound = test_bound(1e-8, 5e-2);
    snprintf(name, sizeof name, "%s:loss", kinds[kind]);
    losses = golden_get(g, name, NULL);
    snprintf(name, sizeof name, "%s:first", kinds[kind]);
    first = golden_get(g, name, NULL);
    if (!test_true("a method and golden losses", method && losses && first)) return;
    model_visit(method, &w, fill_tensor);
    for (t = 0; t < 3; t++) {
        views v;
        golden_views(&v, kind, t);
        test_true("step", ctr_method_step(method, &v.batch, rates[kind == CPC][t], &report));
        test_fine(ctx, "step");
        snprintf(name, sizeof name, "%s loss of step %d", kinds[kind], t + 1);
        e = fabs(report.loss - losses[t]) / (fabs(losses[t]) > 1 ? fabs(losses[t]) : 1);
        test_error(name, e, t ? test_bound(1e-8, 2e-2) : test_bound(1e-8, 1e-4));
        if (!t) test_error("accuracy of step 1", fabs(report.accuracy - first[0]), 1e-12);
        worst = e > worst ? e : worst;
        views_free(&v);
    }
    model_visit(method, &w, compare_tensor);
    test_true("all of it was compared", w.compared >= (kind == CPC ? 45 : 46));
    printf("     %s: loss %.2g, %d parameters and buffers %.2g\n", kinds[kind], worst, w.compared,
           w.worst);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

static void golden_all(void)
{
    golden_file g;
    int i;
    if (!test_golden_open(&g, "golden_pretext.txt")) return;
    for (i = 0; i < KINDS; i++)
        if ((!MODEL_SLOW && !test_quick()) || i == PIRL || i == CPC) golden_steps(&g, i);
    golden_close(&g);
}

/* --------------------------------------------------------------------------------- the puzzle */

/* A thousand puzzles: each piece lies in a cell of its own, of its size, everywhere in it. */
static void puzzles(int grid, int64_t h, int64_t w)
{
    ctr_aug_config c = ctr_aug_pirl_default(32, 1);
    ctr_aug_params p[49], alone;
    ctr_rng rng;
    int64_t cells = grid * grid, wrong = 0, moved = 0, first[49], i, k;
    int64_t ch = h / grid, cw = w / grid, ph = (64 * ch + 42) / 85, pw = (64 * cw + 42) / 85;
    int seen_h[64] = { 0 }, seen_w[64] = { 0 }, places = 0;
    double looks = 0;
    c.grid = grid;
    c.crop_min = 1;              /* with a crop of all of the image its cells are known */
    c.ratio_min = c.ratio_max = (double)w / (double)h;
    memset(first, 0, sizeof first);
    for (k = 0; k < 1000; k++) {
        int taken[49] = { 0 };
        ctr_rng_init(&rng, 1, CTR_STREAM_VIEW, 0, k, 0);
        ctr_aug_jigsaw_sample(&c, &rng, h, w, p);
        for (i = 0; i < cells; i++) {
            int64_t y = p[i].crop.top / ch, x = p[i].crop.left / cw;
            int64_t dy = p[i].crop.top - y * ch, dx = p[i].crop.left - x * cw;
            wrong += p[i].crop.h != ph || p[i].crop.w != pw || y >= grid || x >= grid ||
                     taken[y * grid + x] || dy > ch - ph || dx > cw - pw;
            taken[y * grid + x] = 1;
            seen_h[dy] = seen_w[dx] = 1;
            if (i == 0) first[y * grid + x]++;
            looks += (double)(p[i].gray + p[i].flip) / (double)cells;
            moved += i > 0 && p[i].factor[0] != p[0].factor[0];
        }
        ctr_rng_init(&rng, 1, CTR_STREAM_VIEW, 0, k, 0);
        ctr_aug_sample(&c, &rng, h, w, &alone);
        wrong += memcmp(&alone, &p[0], sizeof alone) != 0;
    }
    test_equal("pieces that are not where they should be", (double)wrong, 0);
    for (i = 0; i < 64; i++) places += seen_h[i] + seen_w[i];
    test_equal("places in a cell", places, (double)(ch - ph + 1 + cw - pw + 1));
    for (wrong = 0, i = 0; i < cells; i++)        /* 5 standard deviations */
        wrong += fabs((double)first[i] - 1000.0 / (double)cells) > 5 * sqrt(1000.0 / (double)cells);
    test_equal("cells that are first too often or seldom", (double)wrong, 0);
    test_error("flips and gray", fabs(looks / 1000 - 0.7), 0.03);
    test_true("each piece has colours of its own", moved > 990 * (cells - 1));
}

/* Tiny images have pieces too, and crops of a part stay in the image. */
static void tiny_puzzles(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_aug_config c = ctr_aug_pirl_default(32, 1);
    ctr_aug_params p[9];
    ctr_rng rng;
    int64_t side, k, wrong = 0;
    int i;
    for (side = 1; side <= 20; side++)
        for (k = 0; k < 50; k++) {
            ctr_rng_init(&rng, 2, CTR_STREAM_VIEW, side, k, 0);
            ctr_aug_jigsaw_sample(&c, &rng, side, 21 - side, p);
            for (i = 0; i < 9; i++) {
                const ctr_box *b = &p[i].crop;
                wrong += b->h < 1 || b->w < 1 || b->top < 0 || b->left < 0 ||
                         b->top + b->h > side || b->left + b->w > 21 - side;
            }
        }
    test_equal("boxes that leave the image", (double)wrong, 0);
    c.grid = 1;
    test_equal("a puzzle of one piece", ctr_aug_config_check(ctx, &c), 0);
    test_fails(ctx, "a puzzle of one piece", CTR_E_VALUE, "grid");
    c.grid = 9;
    test_equal("one of 81", ctr_aug_config_check(ctx, &c), 0);
    test_fails(ctx, "one of 81", CTR_E_VALUE, "grid");
    ctr_ctx_destroy(ctx);
}

/* A loader's pieces are those of one puzzle of each image; incomplete puzzles are refused. */
static void loader(void)
{
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_aug_config augs[10];
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_params p[9];
    uint8_t *pixels = model_pictures(4, 24, NULL, 2);
    ctr_dataset *d = ctr_dataset_from_memory(ctx, pixels, 4, 24, 24, 3, NULL);
    ctr_loader *l;
    ctr_batch b;
    ctr_rng rng;
    ctr_real want[7 * 7 * 3];
    int64_t wrong = 0;
    int i, v;
    augs[0] = ctr_aug_pirl_default(24, 0);
    for (v = 1; v < 10; v++) augs[v] = ctr_aug_pirl_default(24, 1);
    test_equal("pieces of 2/7 of the side", (double)augs[1].height, 7);
    c.batch = 4;
    c.views = 10;
    c.augs = augs;
    l = ctr_loader_create(ctx, d, &c);
    test_true("a batch", ctr_loader_next(ctx, l, &b) && b.groups == 2 && b.group[1].views == 9);
    for (i = 0; i < 4; i++) {
        ctr_rng_init(&rng, 1, CTR_STREAM_VIEW, 0, i, 1);
        ctr_aug_jigsaw_sample(&augs[1], &rng, 24, 24, p);
        for (v = 0; v < 9; v++) {
            ctr_aug_view(ctx, &augs[1], &p[v], pixels + b.index[i] * 24 * 24 * 3, 24, 24, 3, want);
            wrong += memcmp(want, b.group[1].pixels + (v * 4 + i) * 7 * 7 * 3, sizeof want) != 0;
        }
    }
    test_equal("pieces of another puzzle", (double)wrong, 0);
    ctr_loader_destroy(ctx, l);
    c.views = 9;
    test_true("eight pieces", ctr_loader_create(ctx, d, &c) == NULL);
    test_fails(ctx, "eight pieces", CTR_E_VALUE, "9 pieces");
    c.views = 10;
    augs[4].grid = 0;
    test_true("a whole among the pieces", ctr_loader_create(ctx, d, &c) == NULL);
    test_fails(ctx, "a whole among the pieces", CTR_E_VALUE, "view 4");
    ctr_dataset_destroy(ctx, d);
    ctr_ctx_destroy(ctx);
    free(pixels);
}

/* ------------------------------------------------------------------------------------ patches */

/* A CPC representation is the mean over the patches of what the encoder makes of each. */
static void patches(void)
{
    const sizes s = { 4, 12, 4, 8, 0, 0 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_method *method = make(ctx, CPC, &s), *whole;
    ctr_cpc_config c = cpc_of(&s);
    ctr_batch b = model_batch("patches", 3, 1, 12, 10), piece = model_batch("piece", 3, 1, 4, 4);
    ctr_real got[3 * 16], one[3 * 16];
    double sum[3 * 16];
    int64_t i, y, x, j, k;
    memset(sum, 0, sizeof sum);
    c.stride = 1000;             /* an image of 4 pixels is one patch in this one */
    c.aug.height = 1004;
    whole = ctr_cpc_create(ctx, &c);
    test_equal("features", (double)method->features, 16);
    test_true("represents", ctr_method_represent(method, 3, 12, 10, 3, b.pixels, 2, got));
    for (y = 0; y <= 8; y += 2)
        for (x = 0; x <= 6; x += 2) {
            for (i = 0; i < 3; i++)
                for (j = 0; j < 4; j++)
                    for (k = 0; k < 12; k++)
                        piece.pixels[(i * 4 + j) * 12 + k] =
                            b.pixels[((i * 12 + y + j) * 10 + x) * 3 + k];
            test_true("a patch", ctr_method_represent(whole, 3, 4, 4, 3, piece.pixels, 3, one));
            for (i = 0; i < 48; i++) sum[i] += (double)one[i] / 20;
        }
    test_near("mean over the patches", got, sum, 48, 0, test_bound(1e-13, 1e-5));
    test_fine(ctx, "patches");
    model_batch_free(&piece);
    model_batch_free(&b);
    ctr_method_destroy(whole);
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
}

/* ---------------------------------------------------------------------------------- a small run */

static ctr_method *make_run(ctr_ctx *ctx, const training *t)
{
    sizes s = { 4, 8, 4, 8, 0, 10 };
    s.images = t->rows ? t->rows : t->images;
    return make(ctx, t->kind, &s);
}

static training run_of(int kind)
{
    training t = training_default(kinds[kind], make_run);
    t.kind = kind;
    return t;
}

/* PIRL's bank belongs to a data set of its size. */
static void other_data(void)
{
    training t = run_of(PIRL);
    ctr_fit_config fit = ctr_fit_default();
    training_run r;
    uint64_t before;
    t.rows = 25;
    fit.epochs = 1;
    training_begin(&r, &t);
    before = ctr_method_hash(r.method);
    test_equal("a bank of 25 for 24", (double)ctr_fit(r.method, r.loader, &fit), -1);
    test_fails(r.ctx, "a bank of 25 for 24", CTR_E_VALUE, "pirl: the bank was made for 25");
    test_true("nothing was trained", ctr_method_hash(r.method) == before);
    training_end(&r);
}

/* ---------------------------------------------------------------------- reports, configurations */

static void report_pirl(int kind)
{
    training t = run_of(kind);
    training_run r;
    ctr_report a;
    views v;
    char text[256];
    double chance = log(11.0) + (kind == PIRLI ? 0 : 10 * log(1.1));
    training_begin(&r, &t);
    views_make(&v, "report", 6, 8, 4);
    test_true("step", ctr_method_step(r.method, &v.batch, 0, &a));
    test_error("chance", fabs(a.chance - chance), 1e-14);
    test_equal("no image was seen", a.active, 0);
    test_true("step", ctr_method_step(r.method, &v.batch, 0, &a));
    test_error("active", fabs(a.active - 6.0 / 24), 1e-15);
    test_true("cosines", fabs(a.positive) < 1.0001 && fabs(a.negative) < 1.0001 && a.accuracy >= 0);
    r.method->describe_fn(r.method, text, sizeof text);
    test_true(text, strstr(text, "pirl resnet8 width=4") && strstr(text, "pieces=9 bank=24"));
    v.batch.index = NULL;
    test_equal("a batch that does not tell", ctr_method_step(r.method, &v.batch, 0.04, NULL), 0);
    test_fails(r.ctx, "a batch that does not tell", CTR_E_VALUE, "pirl: the batch");
    v.batch.index = v.index;
    v.batch.groups = 0;
    test_equal("a batch without pieces", ctr_method_step(r.method, &v.batch, 0.04, NULL), 0);
    test_fails(r.ctx, "a batch without pieces", CTR_E_SHAPE, "2 sizes");
    views_free(&v);
    training_end(&r);
}

/* Without weight the puzzle has no say, with all of it the image has none. */
static void weights(void)
{
    const sizes s = { 4, 8, 4, 8, 24, 10 };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    double loss[3];
    views v;
    int i;
    views_make(&v, "weights", 6, 8, 4);
    for (i = 0; i < 3; i++) {
        ctr_pirl_config c = pirl_of(PIRL, &s);
        ctr_method *m;
        ctr_report a;
        c.weight = 0.5 * i;
        m = ctr_pirl_create(ctx, &c);
        test_true("step", ctr_method_step(m, &v.batch, 0.04, &a));
        loss[i] = a.loss;
        ctr_method_destroy(m);
    }
    test_true("the terms differ", fabs(loss[0] - loss[2]) > 1e-3);
    test_error("half of each", fabs(loss[1] - (loss[0] + loss[2]) / 2), test_bound(1e-14, 1e-5));
    test_fine(ctx, "weights");
    views_free(&v);
    ctr_ctx_destroy(ctx);
}

static void report_cpc(void)
{
    training t = run_of(CPC);
    training_run r;
    ctr_report a;
    ctr_batch b = model_batch("report", 6, 1, 8, 8), small = model_batch("report", 6, 1, 5, 8);
    char text[256];
    training_begin(&r, &t);
    test_true("step", ctr_method_step(r.method, &b, 0.01, &a));
    /* 3 x 3 patches of 6 images: 36 targets one row ahead, 18 two rows ahead */
    test_error("chance", fabs(a.chance - (log(36.0) + log(18.0)) / 2), 1e-14);
    test_true("cosines", fabs(a.positive) < 1.0001 && fabs(a.negative) < 1.0001);
    test_true("accuracy", a.accuracy >= 0 && a.accuracy <= 1);
    r.method->describe_fn(r.method, text, sizeof text);
    test_true(text, strstr(text, "cpc resnet8 width=4") &&
              strstr(text, "patches=4/2 context=8 ahead=1-2"));
    test_equal("one row of patches", ctr_method_step(r.method, &small, 0.01, &a), 0);
    test_fails(r.ctx, "one row of patches", CTR_E_SHAPE, "1 rows");
    small.h = 3;
    test_equal("none", ctr_method_step(r.method, &small, 0.01, &a), 0);
    test_fails(r.ctx, "none", CTR_E_SHAPE, "patches of 4");
    training_end(&r);
    model_batch_free(&small);
    model_batch_free(&b);
}

static void no_pirl(ctr_ctx *ctx, const char *what, const ctr_pirl_config *c, const char *word)
{
    test_true(what, ctr_pirl_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs_pirl(ctr_ctx *ctx)
{
    const sizes s = { 4, 8, 4, 8, 24, 10 };
    const int no_form = 3;
    ctr_pirl_config c, d = ctr_pirl_default();
    ctr_pirl_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.proj_dim == 128 && c.negatives == 32000 && c.temperature == 0.07 &&
              c.momentum == 0.5 && c.weight == 0.5 && c.form == CTR_NCE_PIRL && c.lr == 0.03 &&
              c.piece_aug.grid == 3 && c.piece_aug.crop_min == 0.6 && c.aug.crop_min == 0.08 &&
              c.piece_aug.height == 9 && !c.optim.decay_all);
    no_pirl(ctx, "no number of images", &c, "pirl: images");
    c = pirl_of(PIRL, &s);
    c.negatives = 0;
    no_pirl(ctx, "no negative", &c, "pirl: needs");
    c = pirl_of(PIRL, &s);
    memcpy(&c.form, &no_form, sizeof no_form);
    no_pirl(ctx, "form 3", &c, "form");
    c = pirl_of(PIRL, &s);
    c.weight = 1.5;
    no_pirl(ctx, "a weight above 1", &c, "weight");
    c = pirl_of(PIRL, &s);
    c.temperature = 0;
    no_pirl(ctx, "temperature 0", &c, "temperature");
    c = pirl_of(PIRL, &s);
    c.momentum = -1;
    no_pirl(ctx, "momentum -1", &c, "momentum");
    c = pirl_of(PIRL, &s);
    c.piece_aug.grid = 8;
    no_pirl(ctx, "64 pieces and the image", &c, "grid");
    c.piece_aug.grid = 0;
    no_pirl(ctx, "no pieces", &c, "grid");
    c = pirl_of(PIRL, &s);
    c.piece_aug.height = c.piece_aug.width = 8;
    no_pirl(ctx, "pieces as large as the image", &c, "smaller");
    c = pirl_of(PIRL, &s);
    c.piece_aug.flip_p = 2;
    no_pirl(ctx, "flips with probability 2", &c, "flip");
    c = pirl_of(PIRL, &s);
    c.proj_dim = 0;
    no_pirl(ctx, "embeddings of 0 numbers", &c, "mlp");
}

static void no_cpc(ctr_ctx *ctx, const char *what, const ctr_cpc_config *c, const char *word)
{
    test_true(what, ctr_cpc_create(ctx, c) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, word);
}

static void configs_cpc(ctr_ctx *ctx)
{
    ctr_cpc_config c, d = ctr_cpc_default();
    ctr_cpc_config_init(&c);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("the paper's", c.patch == 2 * c.stride && c.first == 2 && c.last == 5 &&
              c.aug.gray_p == 1 && c.aug.flip_p == 0.5 && c.lr == 2e-4 && c.optim.decay == 0);
    c.patch = 1;
    no_cpc(ctx, "patches of a pixel", &c, "patch");
    c.patch = 8;
    c.stride = 0;
    no_cpc(ctx, "stride 0", &c, "stride");
    c.stride = 4;
    c.first = 0;
    no_cpc(ctx, "this row", &c, "first");
    c.first = 3;
    c.last = 2;
    no_cpc(ctx, "last before first", &c, "last");
    c.last = 9;
    no_cpc(ctx, "nine rows ahead", &c, "last");
    c.last = 5;
    c.context = 0;
    no_cpc(ctx, "no context", &c, "context");
    c.context = 8;
    c.aug.height = 19;
    no_cpc(ctx, "three rows", &c, "rows");
    c.aug.height = 32;
    c.aug.gray_p = -1;
    no_cpc(ctx, "gray with probability -1", &c, "gray");
    c.aug.gray_p = 1;
    c.encoder.depth = 9;
    no_cpc(ctx, "depth 9", &c, "depth");
}

static void configs(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t held = ctr_memory_stats(ctx).held;
    ctr_aug_config a, b = ctr_aug_pirl_default(224, 1);
    char text[320];
    ctr_aug_pirl_config_init(&a, 224, 1);
    test_bytes("default and init are one", &a, &b, sizeof a);
    test_equal("pieces of 64 pixels at 224", (double)a.height, 64);
    test_true("described", strstr(ctr_aug_describe(&a, text, sizeof text), "piece of 3x3") != NULL);
    configs_pirl(ctx);
    configs_cpc(ctx);
    test_equal("refused methods leave nothing behind", (double)ctr_memory_stats(ctx).held,
               (double)held);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    training t[KINDS];
    int i, all;
    for (i = 0; i < KINDS; i++) t[i] = run_of(i);
    test_begin("test_pretext", argc, argv);
    all = !test_quick();         /* else the other forms of PIRL's loss are left out */
    test_group("configs");
    configs();
    test_group("puzzles");
    puzzles(3, 255, 255);
    puzzles(3, 36, 24);
    puzzles(5, 50, 60);
    tiny_puzzles();
    loader();
    test_group("patches");
    patches();
    test_group("reports");
    for (i = 0; i < CPC; i++)
        if (all || i == PIRL) report_pirl(i);
    weights();
    report_cpc();
    test_group("a steady step allocates nothing and is planned");
    for (i = 0; i < KINDS; i++) {
        training two = t[i];
        if (!all && i < CPC && i != PIRL) continue;
        two.config.threads = 2;
        training_steady(&two, 2, 9);
        training_planned(&two);
    }
    test_group("the same bytes for any number of threads");
    for (i = PIRL; i < KINDS; i += CPC - PIRL)
        if (all || i == CPC) training_same_bytes(&t[i]);
    test_group("the same bytes after stopping and resuming");
    for (i = 0; i < KINDS; i++)
        if (all || i == PIRL || i == CPC) training_resumes(&t[i]);
    test_group("another data set");
    other_data();
    test_group("the fake device");
    for (i = PIRL; i < KINDS; i += CPC - PIRL)
        if (all || i == PIRL) training_same_on_device(&t[i]);
    test_group("the n-th allocation fails");
    for (i = PIRL; i < KINDS; i += CPC - PIRL)
        training_failing_allocations(&t[i], 0, test_quick() || MODEL_SLOW ? 97 : 5);
    test_group("three steps as PyTorch takes them");
    golden_all();
    return test_end();
}
