/* Embedding images with a ResNet-18 (small stem, 32x32x3) in evaluation mode; as peers/embed.py.
 *
 *     cc -O2 -o embed bench/embed.c -lm -lpthread && ./embed [--threads 2] [--only 64,1]
 *
 * Floats in host memory to features in host memory through ctr_frozen_run. Cases: 64 images at a
 * time (value in images/s), one image (value in ms). Before the timing the features of two images
 * are compared with those of the unfrozen network on the scalar kernels, and alone with in a
 * batch. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define SIDE 32
#define MOST 64

typedef struct job {
    const bench_options *o;
    ctr_ctx *ctx;
    ctr_vars vars;
    ctr_resnet net;
    ctr_frozen *frozen;
    int64_t images;
    float *x, *out;       /* [MOST, SIDE, SIDE, 3], [MOST, features] */
} job;

static void run(void *user)
{
    job *j = (job *)user;
    if (!ctr_frozen_run(j->frozen, j->images, SIDE, SIDE, 3, j->x, j->images, j->out))
        bench_die("embed: %s", ctr_error_text(j->ctx));
}

/* The same by the network as it is trained. */
static void run_unfrozen(job *j)
{
    int64_t shape[4] = {j->images, SIDE, SIDE, 3};
    ctr_tensor *t;
    ctr_step_begin(j->ctx);
    ctr_nograd_begin(j->ctx);
    t = ctr_tensor_temp(j->ctx, CTR_F32, 4, shape);
    ctr_tensor_write(j->ctx, t, j->x, t->size);
    t = ctr_resnet_forward(j->ctx, &j->net, t, CTR_NORM_EVAL, 1);
    ctr_tensor_read(j->ctx, t, j->out, t->size);
    ctr_step_end(j->ctx);
    if (ctr_error(j->ctx)) bench_die("embed: %s", ctr_error_text(j->ctx));
}

/* Statistics and slopes of all norms away from 0 and 1, where folding them would prove nothing. */
static void move_norms(const ctr_vars *vars)
{
    int i;
    for (i = 0; i < vars->count; i++) {
        ctr_tensor *t = vars->list[i].value;
        ctr_real *p = (ctr_real *)t->data;
        int64_t k;
        if (vars->list[i].kind != CTR_KIND_NORM && vars->list[i].kind != CTR_KIND_BUFFER) continue;
        bench_fill(p, t->size, 7 + i);
        for (k = 0; k < t->size; k++) p[k] = 1 + p[k] / 4;
    }
}

static void job_create(job *j, ctr_kernels kernels)
{
    ctr_config config = ctr_config_default();
    ctr_resnet_config encoder = ctr_resnet_config_default(18);
    config.threads = j->o->threads;
    config.kernels = kernels;
    j->ctx = ctr_ctx_create(&config);
    if (!j->ctx) bench_die("embed: no context");
    ctr_vars_init(&j->vars);
    ctr_resnet_init(j->ctx, &j->net, &j->vars, "encoder.", &encoder);
    if (!ctr_error(j->ctx)) move_norms(&j->vars);
    j->frozen = ctr_frozen_create(j->ctx, &j->net);
    if (!j->frozen) bench_die("embed: %s", ctr_error_text(j->ctx));
    j->x = bench_floats(MOST * SIDE * SIDE * 3);
    j->out = bench_floats(MOST * j->net.features);
    bench_fill(j->x, MOST * SIDE * SIDE * 3, 5);
}

static double compare(const job *a, const job *b, int64_t images, const char *what)
{
    bench_error e = {0, 0};
    int64_t i;
    for (i = 0; i < images * a->net.features; i++)
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
    run_unfrozen(&slow);
    compare(&fast, &slow, 2, "embedding against the scalar kernels");
    slow.frozen = fast.frozen;
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
