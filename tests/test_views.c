/* test_views.c - augmented views of images that lie in the context's memory.
 * run: float double asan tsan smoke
 * By tests/check_cuda.sh with --device cuda, too. Bounds are far below the 1/255 of a byte.
 *
 * 1. Each step of an augmentation alone, up and down in size, in colour and gray, and the presets
 *    as they are sampled, against ctr_aug_view with the scalar kernels.
 * 2. The same bytes for 1, 2 and 3 threads, and from call to call.
 * 3. Data sets and arguments that are refused; a device without the verb; failing allocations.
 */
#include "model.h"

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

/* The fake device has no such verb. */
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
    test_group("memory");
    allocations();
    return test_end();
}
