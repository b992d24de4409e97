/* test_views.c - augmented views of images that lie in the context's memory.
 * run: float double asan tsan smoke
 * By tests/check_cuda.sh with --device cuda, too. Bounds are far below the 1/255 of a byte.
 *
 * 1. Each step of an augmentation alone, up and down in size, in colour and gray, and the presets
 *    as they are sampled, against ctr_aug_view with the scalar kernels.
 * 2. The same bytes for 1, 2 and 3 threads, and from call to call.
 * 3. Data sets and arguments that are refused; a device without the verb; failing allocations.
 * 4. Runs of ctr_fit whose views a device makes, and what makes it leave them to the loader.
 */
#include "training.h"

enum { N = 7 };
enum {
    CROP, CUBIC, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, JITTER, GRAY, BLUR, SOLARIZE,
    NORMALISE, STEPS
};
static const char *const steps[STEPS] = {
    "crop, bilinear", "crop, bicubic", "flip", "brightness", "contrast", "saturation", "hue",
    "jitter in another order", "gray", "blur", "solarize", "normalise"
};

/* A data set of N images and what is in it. */
typedef struct set {
    ctr_ctx *ctx, *host;          /* host: the CPU's scalar kernels */
    int64_t h, w, c;
    uint8_t *pixels;
    ctr_dataset *dataset;
    ctr_images *images;
} set;

static void set_open(set *s, int threads, int64_t h, int64_t w, int64_t c)
{
    ctr_config config = ctr_config_default();
    int64_t i;
    s->ctx = test_ctx(threads, CTR_KERNELS_AUTO);
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    s->host = test_host_create(&config);
    s->h = h;
    s->w = w;
    s->c = c;
    s->pixels = (uint8_t *)test_alloc((size_t)(N * h * w * c));
    for (i = 0; i < N * h * w * c; i++) /* waves, and some noise on them */
        s->pixels[i] = (uint8_t)(127 + 90 * sin((double)(i / c % w) * 0.3 + (double)(i % c)) +
                                 (double)(golden_bits(7, (size_t)i) & 31));
    s->dataset = ctr_dataset_from_memory(s->ctx, s->pixels, N, h, w, c, NULL);
    s->images = ctr_images_create(s->ctx, s->dataset);
    test_fine(s->ctx, "images");
}

static void set_close(set *s)
{
    ctr_images_destroy(s->ctx, s->images);
    ctr_dataset_destroy(s->ctx, s->dataset);
    ctr_ctx_destroy(s->ctx);
    ctr_ctx_destroy(s->host);
    free(s->pixels);
}

/* n views by the context's memory into got. */
static int views_of(set *s, const ctr_aug_config *config, int64_t n, const int64_t *index,
                    const ctr_aug_params *params, ctr_real *got)
{
    int64_t shape[4];
    ctr_tensor *t;
    int ok;
    shape[0] = n;
    shape[1] = config->height;
    shape[2] = config->width;
    shape[3] = s->c;
    t = ctr_tensor_create(s->ctx, CTR_F32, 4, shape, 0);
    ok = ctr_images_views(s->ctx, s->images, config, n, index, params, t);
    ctr_tensor_read(s->ctx, t, got, t->size);
    ctr_tensor_destroy(s->ctx, t);
    return ok;
}

static void compare(set *s, const char *what, const ctr_aug_config *config, int64_t n,
                    const int64_t *index, const ctr_aug_params *params)
{
    int64_t size = config->height * config->width * s->c, i, k;
    ctr_real *got = test_reals(n * size), *want = test_reals(size);
    ctr_aug_config scalar = *config;
    double worst = 0, e;
    scalar.kernels = CTR_KERNELS_SCALAR;
    test_true(what, views_of(s, config, n, index, params, got));
    for (i = 0; i < n; i++) {
        const uint8_t *image = s->pixels + index[i] * s->h * s->w * s->c;
        if (!ctr_aug_view(s->host, &scalar, &params[i], image, s->h, s->w, s->c, want)) break;
        for (k = 0; k < size; k++) {
            e = config->std[k % s->c] * fabs((double)got[i * size + k] - (double)want[k]);
            worst = e >= 0 && e <= worst ? worst : e; /* not a number stays */
        }
    }
    test_error(what, worst, test_bound(1e-12, 2e-5));
    test_fine(s->ctx, what);
    test_fine(s->host, what);
    free(got);
    free(want);
}

/* --------------------------------------------------------------------------------- single steps */

static void step_set(int step, const set *s, ctr_aug_config *c, ctr_aug_params *p)
{
    int k;
    memset(p, 0, sizeof *p);
    p->crop.h = s->h;
    p->crop.w = s->w;
    for (k = 0; k < 4; k++) p->order[k] = step == JITTER ? 3 - k : k;
    p->factor[0] = p->factor[1] = p->factor[2] = 1;
    if (step == CROP || step == CUBIC) {
        p->crop.top = 1;
        p->crop.left = 2;
        p->crop.h = s->h - 3;
        p->crop.w = s->w - 2;
    }
    c->interp = step == CUBIC ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR;
    p->flip = step == FLIP;
    p->jitter = step >= BRIGHTNESS && step <= JITTER;
    if (step == BRIGHTNESS || step == JITTER) p->factor[0] = 1.3;
    if (step == CONTRAST || step == JITTER) p->factor[1] = 0.5;
    if (step == SATURATION || step == JITTER) p->factor[2] = 1.7;
    if (step == HUE || step == JITTER) p->factor[3] = -0.17;
    if (p->jitter) c->brightness = c->contrast = c->saturation = c->hue = 0.4;
    p->gray = step == GRAY;
    if (step == BLUR) {
        p->blur_sigma = 1.3;
        c->blur_kernel = 9;
    }
    p->solarize = step == SOLARIZE;
    c->solarize_threshold = 0.5;
    for (k = 0; k < 3 && step == NORMALISE; k++) {
        c->mean[k] = 0.4 + 0.1 * k;
        c->std[k] = 0.2 + 0.1 * k;
    }
}

static void single(set *s, int64_t height, int64_t width)
{
    const int64_t index = 4;
    char what[96];
    int step;
    for (step = 0; step < STEPS; step++) {
        ctr_aug_config c = ctr_aug_none_default(8);
        ctr_aug_params p;
        c.height = height;
        c.width = width;
        step_set(step, s, &c, &p);
        snprintf(what, sizeof what, "%s, %dx%dx%d to %dx%d", steps[step], (int)s->h, (int)s->w,
                 (int)s->c, (int)height, (int)width);
        compare(s, what, &c, 1, &index, &p);
    }
}

/* ------------------------------------------------------------------------------- whole views */

static ctr_aug_config preset(int which)
{
    ctr_aug_config c = which == 0   ? ctr_aug_simclr_default(20)
                       : which == 1 ? ctr_aug_byol_default(16, 1)
                       : which == 2 ? ctr_aug_moco_default(24, 1, 0)
                                    : ctr_aug_pirl_default(33, 1);
    if (which < 2) c.blur_p = 0.7;
    if (which == 0) c.blur_kernel = 5;
    if (which == 1) c.solarize_p = 0.5;
    if (which == 2) c.mean[0] = c.std[1] = 0.3;
    return c;
}

/* 11 views of a few images, some twice. */
static void sampled(const set *s, const ctr_aug_config *c, int64_t *index, ctr_aug_params *params)
{
    int64_t i;
    for (i = 0; i < 11; i++) {
        ctr_rng rng;
        ctr_rng_init(&rng, 5, CTR_STREAM_VIEW, 0, i, 0);
        index[i] = 3 * i % N;
        ctr_aug_sample(c, &rng, s->h, s->w, &params[i]);
    }
}

static void presets(set *s)
{
    static const char *const names[4] = { "SimCLR", "BYOL", "MoCo", "PIRL's pieces" };
    int64_t index[11];
    ctr_aug_params params[11];
    int i;
    for (i = 0; i < 4; i++) {
        ctr_aug_config c = preset(i);
        sampled(s, &c, index, params);
        compare(s, names[i], &c, 11, index, params);
    }
}

static void same_bytes(void)
{
    ctr_aug_config c = preset(0);
    int64_t index[11], size = 11 * c.height * c.width * 3;
    ctr_real *first = test_reals(size), *other = test_reals(size);
    ctr_aug_params params[11];
    int threads;
    for (threads = 1; threads <= 3; threads++) {
        set s;
        set_open(&s, threads, 28, 30, 3);
        sampled(&s, &c, index, params);
        test_true("views", views_of(&s, &c, 11, index, params, threads == 1 ? first : other));
        if (threads > 1) test_bytes("views", first, other, (size_t)size * sizeof *first);
        test_true("views again", views_of(&s, &c, 11, index, params, other));
        test_bytes("views again", first, other, (size_t)size * sizeof *first);
        set_close(&s);
    }
    free(first);
    free(other);
}

/* ------------------------------------------------------------------------------------- refusals */

static void refused(set *s, const char *what, const ctr_aug_config *c, int64_t index,
                    const ctr_aug_params *p, ctr_status status, const char *word)
{
    ctr_real *got = test_reals(c->height * c->width * s->c);
    test_true(what, !views_of(s, c, 1, &index, p, got));
    test_fails(s->ctx, what, status, word);
    free(got);
}

static void refusals(void)
{
    int64_t shape[4] = { 1, 9, 8, 3 }, index = 0;
    ctr_aug_config c = ctr_aug_none_default(8);
    ctr_aug_params p, bad;
    ctr_tensor *out;
    set s;
    set_open(&s, 1, 10, 12, 3);
    step_set(FLIP, &s, &c, &p);
    test_equal("images", (double)ctr_images_count(s.images), N);
    refused(&s, "index -1", &c, -1, &p, CTR_E_VALUE, "index must be 0..6, got -1");
    refused(&s, "index N", &c, N, &p, CTR_E_VALUE, "got 7");
    bad = p;
    bad.crop.left = 3;
    refused(&s, "a box that leaves the image", &c, 0, &bad, CTR_E_VALUE, "box");
    bad = p;
    bad.blur_sigma = -1;
    refused(&s, "sigma -1", &c, 0, &bad, CTR_E_VALUE, "blur_sigma");
    c.std[0] = 0;
    refused(&s, "std 0", &c, 0, &p, CTR_E_VALUE, "std");
    c.std[0] = 1;
    bad = p;
    bad.policy.count = 1;
    bad.policy.step[0].op = CTR_OP_INVERT;
    if (test_on_device()) refused(&s, "a policy", &c, 0, &bad, CTR_E_UNSUPPORTED, "policy");
    else compare(&s, "a policy", &c, 1, &index, &bad);
    out = ctr_tensor_create(s.ctx, CTR_F32, 4, shape, 0);
    test_true("another shape", !ctr_images_views(s.ctx, s.images, &c, 1, &index, &p, out));
    test_fails(s.ctx, "another shape", CTR_E_SHAPE, "out must be [1, 8, 8, 3]");
    shape[0] = 0;
    shape[1] = 8;
    ctr_tensor_destroy(s.ctx, out);
    out = ctr_tensor_create(s.ctx, CTR_F32, 4, shape, 0);
    test_true("no view", ctr_images_views(s.ctx, s.images, &c, 0, &index, &p, out));
    test_fine(s.ctx, "no view");
    ctr_tensor_destroy(s.ctx, out);
    ctr_images_destroy(s.ctx, NULL);
    set_close(&s);
}

/* Pictures of two sizes in a folder. */
static void sizes_differ(void)
{
    static const char tall[] = "P5 2 3 255 abcdef", wide[] = "P5 3 2 255 abcdef";
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_dataset *d;
    test_true("two pictures", model_file_write("views_a.pgm", tall, sizeof tall - 1) &&
                                  model_file_write("views_b.pgm", wide, sizeof wide - 1));
    d = ctr_dataset_open(ctx, ".", NULL, NULL);
    if (test_true("a folder", d != NULL)) {
        test_true("two sizes", ctr_images_create(ctx, d) == NULL);
        test_fails(ctx, "two sizes", CTR_E_SHAPE, "one size");
    }
    ctr_dataset_destroy(ctx, d);
    ctr_ctx_destroy(ctx);
    remove("views_a.pgm");
    remove("views_b.pgm");
}

static void missing_verb(void)
{
    fake_device *fake = fake_device_open();
    ctr_aug_config c = ctr_aug_none_default(8);
    int64_t shape[4] = { 1, 8, 8, 3 }, index = 0;
    ctr_aug_params p;
    ctr_tensor *out;
    set s;
    memset(&s, 0, sizeof s);
    s.h = s.w = 8;
    fake->device.views = NULL;
    s.ctx = fake_device_ctx(fake);
    s.pixels = model_pictures(N, 8, NULL, 2);
    s.dataset = ctr_dataset_from_memory(s.ctx, s.pixels, N, 8, 8, 3, NULL);
    s.images = ctr_images_create(s.ctx, s.dataset);
    step_set(FLIP, &s, &c, &p);
    out = ctr_tensor_create(s.ctx, CTR_F32, 4, shape, 0);
    test_true("no kernel", !ctr_images_views(s.ctx, s.images, &c, 1, &index, &p, out));
    test_fails(s.ctx, "no kernel", CTR_E_DEVICE, "views: device fake has no kernel");
    ctr_tensor_destroy(s.ctx, out);
    ctr_images_destroy(s.ctx, s.images);
    ctr_dataset_destroy(s.ctx, s.dataset);
    ctr_ctx_destroy(s.ctx);
    free(s.pixels);
    fake_device_close(fake);
}

/* Each allocation fails in its turn: an error, and nothing is lost. */
static void allocations(void)
{
    ctr_aug_config c = ctr_aug_none_default(8);
    uint8_t *pixels = model_pictures(N, 8, NULL, 2);
    ctr_config config = ctr_config_default();
    ctr_real *got = test_reals(8 * 8 * 3);
    test_allocator watch;
    int64_t index = 1;
    ctr_aug_params p;
    long n;
    int whole = 0;
    config.allocator = test_allocator_init(&watch);
    config.threads = 1;
    for (n = 1; !whole && n < 500; n++) {
        set s;
        memset(&s, 0, sizeof s);
        s.h = s.w = 8;
        s.c = 3;
        s.ctx = ctr_ctx_create(&config);
        if (!test_true("a context", s.ctx != NULL)) break;
        s.dataset = ctr_dataset_from_memory(s.ctx, pixels, N, 8, 8, 3, NULL);
        step_set(FLIP, &s, &c, &p);
        watch.fail_at = watch.calls + n;
        s.images = ctr_images_create(s.ctx, s.dataset);
        whole = s.images && views_of(&s, &c, 1, &index, &p, got);
        test_true("an error, or all of it", whole == (ctr_error(s.ctx) == CTR_OK));
        watch.fail_at = 0;
        ctr_images_destroy(s.ctx, s.images);
        ctr_dataset_destroy(s.ctx, s.dataset);
        ctr_ctx_destroy(s.ctx);
    }
    test_true("the last run met no failure", whole && n > 4);
    test_true("all memory came back", watch.live == 0 && watch.bad_frees == 0);
    free(got);
    free(pixels);
}

/* ------------------------------------------------------------------------------------- ctr_fit */

enum { SIMCLR, CHUNKED, MULTICROP, POLICY, KINDS };
static const char *const kinds[KINDS] = {
    "two views", "two views in chunks", "crops of two sizes", "a policy"
};

static ctr_method *make(ctr_ctx *ctx, const training *t)
{
    ctr_simclr_config c = ctr_simclr_default();
    ctr_swav_config s = ctr_swav_default();
    c.encoder = ctr_resnet_config_default(8);
    c.encoder.width = 4;
    c.encoder.stem = CTR_STEM_SMALL;
    s.encoder = c.encoder;
    c.proj_dim = s.proj_dim = 8;
    c.aug = ctr_aug_simclr_default(t->side);
    c.optim = s.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    c.aug.kernels = t->config.kernels; /* as the fake device, if it is that */
    if (t->kind == POLICY) c.aug.policy = ctr_policy_default(CTR_POLICY_TRIVIAL);
    if (t->kind != MULTICROP) return ctr_simclr_create(ctx, &c);
    s.prototypes = 6;
    s.small_views = 2;
    s.aug = ctr_aug_swav_default(t->side, 0);
    s.small_aug = ctr_aug_swav_default(t->side, 1);
    s.aug.kernels = s.small_aug.kernels = t->config.kernels;
    return ctr_swav_create(ctx, &s);
}

/* What a run says. */
typedef struct said {
    int lines, steps, epochs;     /* of the log about views; reports */
    char text[256];
    double loss[16], rank;
    uint64_t hash;
    int64_t done;
} said;

static void hear(void *user, ctr_log_level level, const char *text)
{
    said *s = (said *)user;
    if (level != CTR_LOG_INFO || !strstr(text, "makes the views")) return;
    s->lines++;
    snprintf(s->text, sizeof s->text, "%s", text);
}

static int hear_step(void *user, const ctr_report *r)
{
    said *s = (said *)user;
    if (s->steps < 16) s->loss[s->steps++] = r->loss;
    return 0;
}

static int hear_epoch(void *user, const ctr_report *r)
{
    said *s = (said *)user;
    s->epochs++;
    s->rank = r->rank;
    return 0;
}

/* Epochs of four batches on a device, after which the loader makes its views again. */
static said fit_on(const training *from, const ctr_device *device, int epochs)
{
    ctr_fit_config fit = ctr_fit_default();
    training t = *from;
    training_run r;
    ctr_batch b;
    said s;
    memset(&s, 0, sizeof s);
    t.config.device = device;
    t.config.log_fn = hear;
    t.config.log_user = &s;
    training_begin(&r, &t);
    fit.epochs = epochs;
    fit.lr = 0.05;
    fit.chunk = t.kind == CHUNKED ? 4 : 0;
    fit.user = &s;
    fit.step_fn = hear_step;
    fit.epoch_fn = hear_epoch;
    s.done = r.loader ? ctr_fit(r.method, r.loader, &fit) : -1;
    s.hash = ctr_method_hash(r.method);
    test_fine(r.ctx, "a run");
    ctr_loader_seek(r.ctx, r.loader, 0, 0);
    test_true("the loader goes on", ctr_loader_next(r.ctx, r.loader, &b) && !b.device &&
                                        b.pixels[0] > -100 && b.pixels[0] < 100);
    training_end(&r);
    return s;
}

/* A device without its views' verb leaves them to the loader: the same run, to rounding. same: the
   verb is the CPU's kernel, so it is the same run to the bit. */
static void fit_compared(int kind, const ctr_device *device, int same)
{
    training t = training_default(kinds[kind], make);
    ctr_device without = *device;
    double worst = 0;
    said a, b;
    int i, epochs = test_quick() && !same ? 1 : 2; /* an emulation is slow */
    without.views = NULL;
    t.kind = kind;
    if (same) t.config.kernels = CTR_KERNELS_SCALAR;
    a = fit_on(&t, device, epochs);
    b = fit_on(&t, &without, epochs);
    test_true("all steps and epochs", a.done == 4 * epochs && a.steps == a.done &&
                                          a.epochs == epochs && b.done == a.done);
    test_true("the loader's views are told of", b.lines == 1 && strstr(b.text, "no kernel"));
    if (kind == POLICY) test_true("and why", a.lines == 1 && strstr(a.text, "policy"));
    else test_equal("the device's are not", a.lines, 0);
    for (i = 0; i < a.steps; i++) worst = fmax(worst, fabs(a.loss[i] - b.loss[i]));
    if (same || kind == POLICY) test_true(kinds[kind], a.hash == b.hash && worst <= 0);
    else test_error(kinds[kind], worst, 0.02);
    test_error("effective rank", fabs(a.rank - b.rank), same ? 0 : 0.2);
    if (kind != POLICY && epochs == 2 && !same)
        test_true("from run to run", fit_on(&t, device, epochs).hash == a.hash);
}

/* Pictures of two sizes: the loader makes the views, and the log names the picture. */
static void fit_two_sizes(const ctr_device *device)
{
    training t = training_default("two sizes", make);
    static char tall[12 + 10 * 8 * 3 + 1] = "P6 8 10 255 ", wide[12 + 80 * 3 + 1] = "P6 10 8 255 ";
    ctr_fit_config fit = ctr_fit_default();
    training_run r;
    said s;
    memset(&s, 0, sizeof s);
    t.config.device = device;
    t.config.log_fn = hear;
    t.config.log_user = &s;
    training_begin(&r, &t);
    test_true("two pictures", model_file_write("views_a.ppm", tall, sizeof tall - 1) &&
                                  model_file_write("views_b.ppm", wide, sizeof wide - 1));
    ctr_loader_destroy(r.ctx, r.loader);
    r.loader = NULL;
    ctr_dataset_destroy(r.ctx, r.dataset);
    r.dataset = ctr_dataset_open(r.ctx, ".", NULL, NULL);
    fit.epochs = 1;
    fit.batch = 2;
    test_equal("a step", (double)ctr_fit_images(r.method, r.dataset, &fit), 1);
    test_true("said", s.lines == 1 && strstr(s.text, "one size") && !strchr(s.text, '\n'));
    test_fine(r.ctx, "no error is left");
    training_end(&r);
    remove("views_a.ppm");
    remove("views_b.ppm");
}

/* An allocation of the device fails for the images: the loader makes the views. */
static void fit_no_room(fake_device *fake)
{
    training t = training_default("no room", make);
    ctr_fit_config fit = ctr_fit_default();
    training_run r;
    said s;
    memset(&s, 0, sizeof s);
    t.config.device = &fake->device;
    t.config.log_fn = hear;
    t.config.log_user = &s;
    training_begin(&r, &t);
    fit.epochs = 1;
    fake->fail_at = fake->allocations + 1;
    test_equal("four steps", (double)ctr_fit(r.method, r.loader, &fit), 4);
    test_true("said", s.lines == 1 && strstr(s.text, "memory"));
    test_fine(r.ctx, "no error is left");
    fake->fail_at = 0;
    training_end(&r);
}

static void fits(void)
{
    fake_device *fake = fake_device_open();
    int kind, same = 1;
    const ctr_device *device = &fake->device;
#ifdef CONTRASTIVE_CUDA
    if (test_on_device()) {
        device = test_device_;
        same = 0;
    }
#endif
    for (kind = 0; kind < KINDS; kind++)
        if (!test_quick() || kind != POLICY || same) fit_compared(kind, device, same);
    if (same) test_true("the verb ran", fake_device_ran(fake, "views"));
    fit_two_sizes(device);
    fit_no_room(fake);
    fake_device_close(fake);
}

int main(int argc, char **argv)
{
    int c;
    test_begin("test_views", argc, argv);
    for (c = 1; c <= 3; c += 2) {
        set s;
        test_group(c == 1 ? "gray images" : "colour images");
        set_open(&s, 2, 19, 26, c);
        single(&s, 8, 11);
        single(&s, 30, 7);
        if (!test_quick()) single(&s, 40, 40);
        presets(&s);
        set_close(&s);
    }
    test_group("the same bytes");
    same_bytes();
    test_group("refusals");
    refusals();
    sizes_differ();
    missing_verb();
    test_group("ctr_fit");
    fits();
    test_group("memory");
    allocations();
    return test_end();
}
