/* SimCLR's augmentation: views per second and core; what peers/augment.py does.
 *
 *     cc -O2 -o augment bench/augment.c -lm -lpthread && ./augment [--threads 1] [--only 32,224]
 *
 * 8-bit images in, float views out: random resized crop (area 0.08 to 1, bilinear, antialiased),
 * flip, colour jitter 0.4 0.4 0.4 0.1 with probability 0.8, gray with 0.2; at 224 pixels also blur
 * (23 taps) with probability 0.5. Cases: 32, 224 (the peer's settings), 32cubic (SimCLR's own
 * bicubic filter, the preset's). value is per core: the rate divided by the threads, one unless
 * told. Before the timing 64 views are compared with those of the scalar reference. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

typedef struct aug_case {
    const char *name;
    int64_t side, images;
    ctr_interp interp;
} aug_case;

static const aug_case CASES[] = {
    {"32", 32, 512, CTR_INTERP_BILINEAR},
    {"32cubic", 32, 512, CTR_INTERP_BICUBIC},
    {"224", 224, 32, CTR_INTERP_BILINEAR}
};

typedef struct job {
    const aug_case *c;
    ctr_ctx *ctx;
    ctr_aug_config config;
    uint8_t *pixels;      /* [images, side, side, 3] */
    float *views;         /* the same */
    int64_t epoch;
} job;

static void run(void *user)
{
    job *j = (job *)user;
    int64_t s = j->c->side;
    if (!ctr_aug_batch(j->ctx, &j->config, j->pixels, j->c->images, s, s, 3, j->epoch++, 0, 0,
                       j->views))
        bench_die("%s: %s", j->c->name, ctr_error_text(j->ctx));
}

/* Views of the same parameters by the kernels that will be timed and by the scalar reference, which
   a context of its own chooses: a batch heeds the context's kernels. Returns the largest
   difference. */
static double verify(job *j)
{
    ctr_config config = ctr_config_default();
    ctr_ctx *scalar;
    int64_t s = j->c->side, size = s * s * 3, n = j->c->images < 64 ? j->c->images : 64, i;
    float *other = bench_floats(n * size);
    double worst = 0;
    config.kernels = CTR_KERNELS_SCALAR;
    scalar = ctr_ctx_create(&config);
    if (!scalar) bench_die("no context");
    j->epoch = 0;
    run(j);
    if (!ctr_aug_batch(scalar, &j->config, j->pixels, n, s, s, 3, 0, 0, 0, other))
        bench_die("%s: %s", j->c->name, ctr_error_text(scalar));
    for (i = 0; i < n * size; i++) {
        double d = fabs((double)j->views[i] - (double)other[i]);
        if (!(d < 1e-3) || j->views[i] < 0 || j->views[i] > 1)
            bench_die("%s: value %g of a view, scalar %g", j->c->name, (double)j->views[i],
                      (double)other[i]);
        if (d > worst) worst = d;
    }
    ctr_ctx_destroy(scalar);
    return worst;
}

static void measure(const bench_options *o, const aug_case *c)
{
    ctr_config config = ctr_config_default();
    job j;
    bench_time t;
    bench_noise noise;
    char text[256];
    double worst, views = (double)c->images;
    int64_t size = c->images * c->side * c->side * 3, i;
    config.threads = o->threads;
    memset(&j, 0, sizeof j);
    j.c = c;
    j.ctx = ctr_ctx_create(&config);
    j.pixels = (uint8_t *)malloc((size_t)size);
    if (!j.ctx || !j.pixels) bench_die("out of memory");
    j.views = bench_floats(size);
    noise.state = 3;
    for (i = 0; i < size; i++) j.pixels[i] = (uint8_t)(bench_bits(&noise) & 255);
    j.config = ctr_aug_simclr_default(c->side);
    j.config.interp = c->interp;
    j.config.brightness = j.config.contrast = j.config.saturation = 0.4;
    j.config.hue = 0.1;
    worst = verify(&j);
    t = bench_run(run, &j, o->seconds, 5);
    for (i = 0, ctr_aug_describe(&j.config, text, sizeof text); text[i]; i++)
        if (text[i] == ' ') text[i] = '_';
    bench_emit("augment", c->name, o->threads, views / t.median / o->threads, "views/s/core",
               "best=%.5g cpu_views_per_s=%.5g difference=%.1e kernels=%s settings=%s",
               views / t.best / o->threads, views / t.cpu, worst, ctr_kernels_name(j.ctx), text);
    free(j.pixels);
    ctr_ctx_destroy(j.ctx);
}

int main(int argc, char **argv)
{
    static char one[] = "1", threads[] = "--threads";
    bench_options o;
    char *all[64];
    size_t i;
    int k;
    /* one thread unless told otherwise: the last one of equal options counts */
    all[0] = argv[0];
    all[1] = threads;
    all[2] = one;
    for (k = 1; k < argc && k < 60; k++) all[k + 2] = argv[k];
    bench_parse(&o, k + 2, all, "augment: SimCLR's views. cases: 32 32cubic 224");
    for (i = 0; i < sizeof CASES / sizeof *CASES; i++)
        if (bench_wanted(&o, CASES[i].name)) measure(&o, &CASES[i]);
    return 0;
}
