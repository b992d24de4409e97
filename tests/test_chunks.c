/* test_chunks.c - a batch in chunks (ctr_method_step_chunked) against the whole batch.
 *
 * run: float double asan smoke
 *
 * 1. Where no image's embedding depends on another image (statistics of the norms fixed), every
 *    variable moves as with the whole batch: losses of one and of several batches' worth of rows,
 *    with and without targets, two and three views, chunks that divide the batch and that do not.
 * 2. With batch norm as it is: the same bytes for any number of threads, nothing allocated by a
 *    steady step, and nothing changed by one that fails.
 * 3. Methods and chunks that are refused; the driver's chunks. */
#include "model.h"

enum { SIMCLR, SUPCON, THREE_VIEWS, BARLOW, VICREG, MOCO3, BYOL, SIMSIAM, KINDS };
static const char *const names[KINDS] = { "SimCLR", "SupCon", "SimCLR with 3 views",
    "Barlow Twins", "VICReg", "MoCo v3", "BYOL", "SimSiam" };

static ctr_resnet_config tiny(void)
{
    ctr_resnet_config c = ctr_resnet_config_default(8);
    c.width = 4;
    return c;
}

static ctr_method *make(ctr_ctx *ctx, int kind)
{
    ctr_simclr_config simclr = ctr_simclr_default();
    ctr_barlow_twins_config barlow = ctr_barlow_twins_default();
    ctr_vicreg_config vicreg = ctr_vicreg_default();
    ctr_moco_config moco = ctr_moco_default(3);
    ctr_byol_config byol = ctr_byol_default();
    ctr_simsiam_config simsiam = ctr_simsiam_default();
    simclr.encoder = barlow.encoder = vicreg.encoder = moco.encoder = byol.encoder =
        simsiam.encoder = tiny();
    simclr.proj_dim = barlow.proj_dim = vicreg.proj_dim = moco.proj_dim = byol.proj_dim =
        simsiam.proj_dim = 8;
    moco.proj_hidden = moco.pred_hidden = byol.proj_hidden = byol.pred_hidden = 8;
    simsiam.pred_hidden = 4;
    simclr.supervised = kind == SUPCON;
    if (kind == THREE_VIEWS) simclr.views = 3;
    switch (kind) {
    case BARLOW: return ctr_barlow_twins_create(ctx, &barlow);
    case VICREG: return ctr_vicreg_create(ctx, &vicreg);
    case MOCO3: return ctr_moco_create(ctx, &moco);
    case BYOL: return ctr_byol_create(ctx, &byol);
    case SIMSIAM: return ctr_simsiam_create(ctx, &simsiam);
    default: return ctr_simclr_create(ctx, &simclr);
    }
}

/* ---------------------------------------------------------------------------- fixed statistics */

static ctr_tensor *fixed_embed(ctr_method *m, ctr_tensor *x)
{
    return m->represent_fn(m, x, CTR_NORM_EVAL);
}

/* A target that is not what is trained: half of it. */
static ctr_tensor *fixed_target(ctr_method *m, ctr_tensor *x)
{
    ctr_tensor *h = m->represent_fn(m, x, CTR_NORM_EVAL);
    return ctr_add_scalar(m->ctx, ctr_scale(m->ctx, ctr_mul(m->ctx, h, h), 0.5), 0.1);
}

static ctr_tensor *fixed_both(ctr_method *m, ctr_tensor *x) /* SimSiam makes its own target */
{
    ctr_tensor *h = m->represent_fn(m, x, CTR_NORM_EVAL);
    m->target = ctr_detach(m->ctx, ctr_mul(m->ctx, h, h));
    return h;
}

typedef struct state {
    ctr_ctx *ctx;
    int64_t count, room;
    ctr_real *x;
} state;

static void collect(void *user, const char *name, ctr_tensor *t, int conv)
{
    state *s = (state *)user;
    (void)name;
    (void)conv;
    while (s->count + t->size > s->room) {
        s->room = 2 * s->room + t->size;
        s->x = (ctr_real *)realloc(s->x, (size_t)s->room * sizeof *s->x);
        if (!s->x) exit(3);
    }
    ctr_tensor_read(s->ctx, t, s->x + s->count, t->size);
    s->count += t->size;
}

static void no_number(void *user, const char *name, int64_t *value)
{
    (void)user;
    (void)name;
    (void)value;
}

/* Two steps in chunks (0: whole) from the start; everything that the method then consists of. */
static state two_steps(int kind, int64_t n, int64_t chunk, double *loss)
{
    ctr_ctx *ctx = ctr_ctx_create(NULL);
    ctr_method *m = make(ctx, kind);
    ctr_batch b = model_batch("chunks", n, m->views, 8, 8);
    int32_t labels[32];
    ctr_report report;
    ctr_visitor v;
    state s;
    int i;
    memset(&s, 0, sizeof s);
    s.ctx = ctx;
    for (i = 0; i < 32; i++) labels[i] = i % 3;
    b.labels = labels;
    m->embed_fn = kind == SIMSIAM ? fixed_both : fixed_embed;
    if (m->target_fn) m->target_fn = fixed_target;
    for (i = 0; i < 2; i++)
        test_true(names[kind], chunk ? ctr_method_step_chunked(m, &b, chunk, 0.01, &report)
                                     : ctr_method_step(m, &b, 0.01, &report));
    *loss = report.loss;
    v.user = &s;
    v.tensor_fn = collect;
    v.number_fn = no_number;
    ctr_method_visit(m, &v);
    test_fine(ctx, names[kind]);
    model_batch_free(&b);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
    return s;
}

static void as_whole(int kind)
{
    static const int64_t sizes[4][2] = { { 12, 4 }, { 12, 6 }, { 11, 4 }, { 7, 2 } };
    char what[96];
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t n = sizes[i][0], chunk = sizes[i][1], k;
        double whole, parts, worst = 0, moved = 0, zero, far = 0, size = 0;
        state a = two_steps(kind, n, 0, &whole), b = two_steps(kind, n, chunk, &parts);
        state start = two_steps(kind, n, n, &zero); /* chunk = n: the whole step by another way */
        snprintf(what, sizeof what, "%s, %d images in chunks of %d", names[kind], (int)n,
                 (int)chunk);
        test_equal(what, (double)a.count, (double)b.count);
        for (k = 0; k < a.count; k++) {
            double d = fabs((double)a.x[k] - (double)b.x[k]) / (1e-2 + fabs((double)a.x[k]));
            if (!(d <= worst)) worst = d;
            far += ((double)a.x[k] - (double)b.x[k]) * ((double)a.x[k] - (double)b.x[k]);
            size += (double)a.x[k] * (double)a.x[k];
            moved += a.x[k] != start.x[k];
        }
        if (TEST_DOUBLE) test_error(what, worst, 1e-9); /* number by number */
        test_error(what, sqrt(far / size), test_bound(1e-10, 1e-5));
        test_error("the loss", fabs(whole - parts) / (1 + fabs(whole)), test_bound(1e-12, 1e-5));
        test_equal("a chunk as large as the batch is the batch", moved, 0);
        free(a.x);
        free(b.x);
        free(start.x);
    }
}

/* ---------------------------------------------------------------------------- with batch norm */

static uint64_t run(int kind, int threads, double *first, double *last)
{
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    ctr_method *m;
    ctr_batch b;
    ctr_report report;
    uint64_t hash;
    int i;
    config.threads = threads;
    ctx = ctr_ctx_create(&config);
    m = make(ctx, kind);
    b = model_batch("chunks", 12, m->views, 8, 8);
    *first = *last = 0;
    for (i = 0; i < 12; i++) {
        test_true("a step", ctr_method_step_chunked(m, &b, 4, 0.03, &report));
        if (!i) *first = report.loss;
        *last = report.loss;
    }
    hash = ctr_method_hash(m);
    test_fine(ctx, names[kind]);
    model_batch_free(&b);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
    return hash;
}

static void same_bytes(int kind)
{
    double first, last;
    uint64_t one = run(kind, 1, &first, &last);
    test_true("learns", last < first);
    test_true("2 threads", run(kind, 2, &first, &last) == one);
    test_true("3 threads", run(kind, 3, &first, &last) == one);
}

static void steady(void)
{
    test_allocator watch;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    ctr_method *m;
    ctr_batch b;
    long before;
    int i;
    config.allocator = test_allocator_init(&watch);
    ctx = ctr_ctx_create(&config);
    m = make(ctx, MOCO3);
    b = model_batch("chunks", 12, 2, 8, 8);
    for (i = 0; i < 3; i++) ctr_method_step_chunked(m, &b, 4, 0.03, NULL);
    before = watch.calls;
    for (i = 0; i < 3; i++) ctr_method_step_chunked(m, &b, 4, 0.03, NULL);
    test_fine(ctx, "steps");
    test_equal("a steady step allocates nothing", (double)(watch.calls - before), 0);
    model_batch_free(&b);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
}

static void fails(void)
{
    ctr_ctx *ctx = ctr_ctx_create(NULL);
    ctr_method *m = make(ctx, MOCO3), *queue, *crops, *patches;
    ctr_moco_config moco = ctr_moco_default(2);
    ctr_swav_config swav = ctr_swav_default();
    ctr_cpc_config cpc = ctr_cpc_default();
    ctr_batch b = model_batch("chunks", 12, 2, 8, 8);
    ctr_report report;
    uint64_t before = ctr_method_hash(m);
    ctr_real kept = b.pixels[5 * 8 * 8 * 3];
    memset(&b.pixels[5 * 8 * 8 * 3], 0xff, sizeof kept); /* not a number */
    test_true("a pixel that is no number", !ctr_method_step_chunked(m, &b, 4, 0.03, &report));
    test_fails(ctx, "a pixel that is no number", CTR_E_NUMBER, "not finite");
    b.pixels[5 * 8 * 8 * 3] = kept;
    test_true("a chunk of 1", !ctr_method_step_chunked(m, &b, 1, 0.03, NULL));
    test_fails(ctx, "a chunk of 1", CTR_E_VALUE, "at least 2 images");
    test_true("nothing changed", ctr_method_hash(m) == before);
    moco.encoder = swav.encoder = tiny();
    moco.proj_hidden = moco.proj_dim = swav.proj_hidden = swav.proj_dim = 8;
    moco.queue = swav.prototypes = 16;
    swav.small_views = 0;
    queue = ctr_moco_create(ctx, &moco);
    test_true("a queue", !ctr_method_step_chunked(queue, &b, 4, 0.03, NULL));
    test_fails(ctx, "a queue", CTR_E_VALUE, "moco, as it is set up, cannot");
    crops = ctr_swav_create(ctx, &swav);
    test_true("crops", !ctr_method_step_chunked(crops, &b, 4, 0.03, NULL));
    test_fails(ctx, "crops", CTR_E_VALUE, "swav, as it is set up, cannot");
    cpc.encoder = tiny();
    patches = ctr_cpc_create(ctx, &cpc);
    b.views = 1;
    test_true("patches", !ctr_method_step_chunked(patches, &b, 4, 0.03, NULL));
    test_fails(ctx, "patches", CTR_E_VALUE, "cpc, as it is set up, cannot");
    b.views = 2;
    test_true("and again", ctr_method_step_chunked(m, &b, 4, 0.03, NULL));
    model_batch_free(&b);
    ctr_method_destroy(m);
    ctr_method_destroy(queue);
    ctr_method_destroy(crops);
    ctr_method_destroy(patches);
    ctr_ctx_destroy(ctx);
}

/* The driver's chunks are those of a loop by hand. */
static void driver(void)
{
    ctr_fit_config fit = ctr_fit_default();
    ctr_loader_config l = ctr_loader_config_default();
    uint8_t *pixels = model_pictures(24, 8, NULL, 3);
    uint64_t hash[2];
    int way;
    for (way = 0; way < 2; way++) {
        ctr_ctx *ctx = ctr_ctx_create(NULL);
        ctr_method *m = make(ctx, SIMCLR);
        ctr_dataset *d = ctr_dataset_from_memory(ctx, pixels, 24, 8, 8, 3, NULL);
        ctr_loader *loader;
        ctr_batch b;
        l.batch = 12;
        l.augs = m->augs;
        loader = ctr_loader_create(ctx, d, &l);
        fit.epochs = 1;
        fit.warmup_epochs = 0;
        fit.schedule = CTR_SCHEDULE_CONSTANT;
        fit.lr = 0.05;
        fit.chunk = 1;
        test_equal("chunks of 1", (double)ctr_fit(m, loader, &fit), -1);
        test_fails(ctx, "chunks of 1", CTR_E_VALUE, "at least 2 images");
        fit.chunk = 5;
        if (way) test_equal("two steps", (double)ctr_fit(m, loader, &fit), 2);
        while (!way && ctr_loader_next(ctx, loader, &b))
            test_true("a step", ctr_method_step_chunked(m, &b, 5, 0.05, NULL));
        hash[way] = ctr_method_hash(m);
        test_fine(ctx, "the driver");
        ctr_loader_destroy(ctx, loader);
        ctr_dataset_destroy(ctx, d);
        ctr_method_destroy(m);
        ctr_ctx_destroy(ctx);
    }
    test_true("the driver's chunks", hash[0] == hash[1]);
    free(pixels);
}

int main(int argc, char **argv)
{
    int kind;
    test_begin("test_chunks", argc, argv);
    test_group("as the whole batch");
    for (kind = 0; kind < KINDS; kind++) as_whole(kind);
    test_group("with batch norm");
    same_bytes(SIMCLR);
    if (!test_quick()) same_bytes(MOCO3);
    steady();
    fails();
    driver();
    return test_end();
}
