/* Embedding images with a ResNet-18 (small stem, 32x32x3) in evaluation mode; as peers/embed.py.
 *
 *     cc -O2 -o embed bench/embed.c -lm -lpthread && ./embed [--threads 2] [--only 64,1]
 *
 * Floats in host memory to features in host memory through ctr_method_represent. Cases: 64 images
 * at a time (value in images/s), one image (value in ms). Before the timing the features of two
 * images are compared with those of the scalar kernels, and alone with in a batch. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define SIDE 32
#define MOST 64

typedef struct job {
    const bench_options *o;
    ctr_ctx *ctx;
    ctr_method *method;
    int64_t images;
    float *x, *out;       /* [MOST, SIDE, SIDE, 3], [MOST, features] */
} job;

static void run(void *user)
{
    job *j = (job *)user;
    if (!ctr_method_represent(j->method, j->images, SIDE, SIDE, 3, j->x, j->images, j->out))
        bench_die("embed: %s", ctr_error_text(j->ctx));
}

static void job_create(job *j, ctr_kernels kernels)
{
    ctr_config config = ctr_config_default();
    ctr_simclr_config simclr = ctr_simclr_default();
    config.threads = j->o->threads;
    config.kernels = kernels;
    j->ctx = ctr_ctx_create(&config);
    j->method = j->ctx ? ctr_simclr_create(j->ctx, &simclr) : NULL;
    if (!j->method) bench_die("embed: %s", j->ctx ? ctr_error_text(j->ctx) : "no context");
    j->x = bench_floats(MOST * SIDE * SIDE * 3);
    j->out = bench_floats(MOST * j->method->features);
    bench_fill(j->x, MOST * SIDE * SIDE * 3, 5);
}

static double compare(const job *a, const job *b, int64_t images, const char *what)
{
    bench_error e = {0, 0};
    int64_t i;
    for (i = 0; i < images * a->method->features; i++)
        bench_error_add(&e, (double)b->out[i], (double)a->out[i]);
    return bench_error_check(&e, 1e-4, what);
}

static void verify(void *user)
{
    job fast = *(const job *)user, slow = fast;
    job_create(&fast, CTR_KERNELS_AUTO);
    job_create(&slow, CTR_KERNELS_SCALAR);
    fast.images = MOST;
    slow.images = 2;
    run(&fast);
    run(&slow);
    compare(&fast, &slow, 2, "embedding against the scalar kernels");
    slow.method = fast.method;
    slow.ctx = fast.ctx;
    slow.images = 1;
    run(&slow);
    compare(&fast, &slow, 1, "embedding one image against a batch");
}

static void measure(void *user)
{
    job *j = (job *)user;
    bench_time t;
    double images = (double)j->images;
    char shape[32];
    job_create(j, CTR_KERNELS_AUTO);
    t = bench_run(run, j, j->o->seconds, 5);
    snprintf(shape, sizeof shape, "resnet18:%d", (int)j->images);
    bench_emit("embed", shape, j->o->threads, j->images == 1 ? 1e3 * t.median : images / t.median,
               j->images == 1 ? "ms" : "images/s", "best=%.5g ms=%.3f cpu_ms=%.3f peak_mb=%.1f",
               j->images == 1 ? 1e3 * t.best : images / t.best, 1e3 * t.median, 1e3 * t.cpu,
               bench_peak_mb());
}

int main(int argc, char **argv)
{
    static const int IMAGES[] = {64, 1};
    bench_options o;
    job j;
    char name[16];
    size_t i;
    bench_parse(&o, argc, argv, "embed: ResNet-18 features. cases: 64 1");
    memset(&j, 0, sizeof j);
    j.o = &o;
    if (!o.checked && bench_fresh(verify, &j)) return 1;
    for (i = 0; i < sizeof IMAGES / sizeof *IMAGES; i++) {
        j.images = IMAGES[i];
        snprintf(name, sizeof name, "%d", IMAGES[i]);
        if (bench_wanted(&o, name) && bench_fresh(measure, &j)) return 1;
    }
    return 0;
}
