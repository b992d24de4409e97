/* What contrastive_cuda.cu reaches on this machine's GPU; peers/gpu.py does the same in PyTorch.
 *
 *     nvcc -O3 -arch=native -x cu bench/gpu.c contrastive_cuda.cu -o gpu -lcublas
 *     ./gpu [--seconds 3] [--only conv,nt_xent,resnet18,resnet50,epoch]      (see gpu.sh)
 *
 * conv      every convolution of ResNet-18 (32 x 32, 1024 views) and of ResNet-50 (224 x 224, 256):
 *           forward, gradient of the input and of the weight, with products in tf32 and in bf16:
 *           value in TFLOP/s, ms, and share, the time of cuBLAS for the matrix product of the same
 *           numbers over ours. What the product reads is laid out for it: nobody has unfolded
 *           anything before our time begins, or before its.
 * nt_xent   the loss of 65536 embeddings of 128 numbers, forward and backward: ms, and ratio, our
 *           time over that of its four matrix products (s and its gradient, of each half of x).
 * resnet18  a SimCLR step of 2 x 512 views of 32 x 32, tf32 and bf16; the views wait in host memory
 * resnet50  the same of 2 x 128 views of 224 x 224
 * epoch     an epoch of 50000 images of 32 x 32 by ctr_fit: sampling, augmenting where the images
 *           lie, which is on the GPU, 97 steps
 *
 * Before anything is timed its results are compared with the CPU's, on few images. Each case runs
 * in a process of its own. Without a GPU: one line that says why, status 1.
 * -DGPU_SHARE=N has an Nth of the images: for the emulation of tests/cuda, where times mean
 * nothing. */
#define CONTRASTIVE_IMPLEMENTATION
#ifndef CONTRASTIVE_CUDA
#define CONTRASTIVE_CUDA
#endif
#include "../contrastive.h"

#include "bench.h"

#ifndef GPU_SHARE
#define GPU_SHARE 1
#endif

typedef struct gpu_conv {
    const char *name;
    int64_t images, side, c, size, oc, stride;
} gpu_conv;

static const gpu_conv CONVS[] = {
    {"r18_stem", 1024, 32, 3, 3, 64, 1},      {"r18_64", 1024, 32, 64, 3, 64, 1},
    {"r18_128_s2", 1024, 32, 64, 3, 128, 2},  {"r18_128", 1024, 16, 128, 3, 128, 1},
    {"r18_256_s2", 1024, 16, 128, 3, 256, 2}, {"r18_256", 1024, 8, 256, 3, 256, 1},
    {"r18_512_s2", 1024, 8, 256, 3, 512, 2},  {"r18_512", 1024, 4, 512, 3, 512, 1},
    {"r18_short", 1024, 32, 64, 1, 128, 2},   {"r50_stem", 256, 224, 3, 7, 64, 2},
    {"r50_64_1x1", 256, 56, 64, 1, 256, 1},   {"r50_64", 256, 56, 64, 3, 64, 1},
    {"r50_128", 256, 28, 128, 3, 128, 1},     {"r50_256", 256, 14, 256, 3, 256, 1},
    {"r50_512", 256, 7, 512, 3, 512, 1},      {"r50_2048_1x1", 256, 7, 512, 1, 2048, 1}
};

typedef struct gpu_step {
    const char *name;
    int depth;
    int64_t side, images;
} gpu_step;
static const gpu_step STEPS[] = {{"resnet18", 18, 32, 512}, {"resnet50", 50, 224, 128}};

static const char *const MATHS[] = {"fp32", "tf32", "bf16"};
/* Of the relative error in the 2-norm of one product. */
static const double ROUNDING[] = {1e-4, 2e-3, 2e-2};

typedef struct job {
    const bench_options *o;
    const gpu_conv *conv;
    const gpu_step *step;
    ctr_cuda_math math;
} job;

/* ---- the device
   --------------------------------------------------------------------------------- */

/* math -1: the CPU. Never given back: the process ends soon. */
static ctr_ctx *context(const job *j, int math)
{
    ctr_config config = ctr_config_default();
    ctr_cuda_config cuda = ctr_cuda_config_default();
    char text[400];
    ctr_ctx *ctx;
    config.threads = j->o->threads;
    if (math >= 0) {
        cuda.math = (ctr_cuda_math)math;
        config.device = ctr_cuda_open(&cuda, text, sizeof text);
        if (!config.device) bench_die("gpu: %s", text);
    }
    ctx = ctr_ctx_create(&config);
    if (!ctx) bench_die("gpu: no context");
    return ctx;
}

static void fine(ctr_ctx *ctx, const char *what)
{
    if (ctr_error(ctx) != CTR_OK) bench_die("%s: %s", what, ctr_error_text(ctx));
}

/* Verbs only put work into the device's stream: this waits for all of it. */
static void wait_for(ctr_ctx *ctx) { (void)ctr_k_finite(ctx, 0, NULL); }

typedef struct work {
    ctr_ctx *ctx;
    void (*run)(void *user);
    void *user;
    int calls;            /* between two waits */
} work;
static void work_run(void *user)
{
    work *w = (work *)user;
    int i;
    for (i = 0; i < w->calls; i++) w->run(w->user);
    wait_for(w->ctx);
}

/* Median seconds of a call; short ones many at a time, so that the wait does not count. */
static double seconds_of(ctr_ctx *ctx, void (*run)(void *user), void *user, double seconds)
{
    work w = {ctx, run, user, 1};
    double start;
    work_run(&w);
    start = bench_seconds();
    work_run(&w);
    start = bench_seconds() - start;
    if (start < 2e-2) w.calls = (int)(2e-2 / (start + 1e-6)) + 1;
    return bench_run(work_run, &w, seconds, 3).median / w.calls;
}

static float *device_floats(ctr_ctx *ctx, int64_t n, uint64_t seed)
{
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 0);
    float *host = (float *)malloc((size_t)n * sizeof *host);
    if (!host) bench_die("out of memory");
    bench_fill(host, n, seed);
    ctr_tensor_write(ctx, t, host, n);
    free(host);
    fine(ctx, "memory");
    return (float *)t->data;
}

/* got [n] on the one, want [n] on the other context. */
static void compare(ctr_ctx *gpu, const float *got, ctr_ctx *cpu, const float *want, int64_t n,
                    double limit, const char *what)
{
    float *a = bench_floats(n), *b = bench_floats(n);
    bench_error e = {0, 0};
    int64_t i;
    ctr_k_download(gpu, (size_t)n * sizeof *a, got, a);
    ctr_k_download(cpu, (size_t)n * sizeof *b, want, b);
    fine(gpu, what);
    fine(cpu, what);
    for (i = 0; i < n; i++) bench_error_add(&e, (double)b[i], (double)a[i]);
    bench_error_check(&e, limit, what);
}

/* ---- convolutions
   ------------------------------------------------------------------------------- */

/* A shape, its three arrays, and which of them is computed: 0 y, 1 dx, 2 dw. */
typedef struct conv_work {
    ctr_ctx *ctx;
    ctr_conv_shape s;
    int pass;
    float *x, *w, *y;
    float *ga, *gb, *gc;  /* of the equal product, [gm, gk] [gk, gn] */
    int64_t gm, gn, gk;
} conv_work;

static void conv_shape(const gpu_conv *c, int64_t images, ctr_conv_shape *s)
{
    memset(s, 0, sizeof *s);
    s->n = images;
    s->h = s->w = c->side;
    s->c = c->c;
    s->kh = s->kw = c->size;
    s->oc = c->oc;
    s->stride = c->stride;
    s->pad = c->size / 2;
    s->oh = s->ow = (c->side + 2 * s->pad - c->size) / c->stride + 1;
}

static void conv_memory(conv_work *k, ctr_ctx *ctx)
{
    const ctr_conv_shape *s = &k->s;
    k->ctx = ctx;
    k->x = device_floats(ctx, s->n * s->h * s->w * s->c, 1);
    k->w = device_floats(ctx, s->kh * s->kw * s->c * s->oc, 2);
    k->y = device_floats(ctx, s->n * s->oh * s->ow * s->oc, 3);
}

static void conv_run(void *user)
{
    conv_work *k = (conv_work *)user;
    if (k->pass == 0) ctr_k_conv_forward(k->ctx, &k->s, k->x, k->w, k->y);
    else if (k->pass == 1) ctr_k_conv_input(k->ctx, &k->s, k->y, k->w, k->x, 0);
    else ctr_k_conv_weight(k->ctx, &k->s, k->x, k->y, k->w, 0);
}

static void conv_product(void *user)
{
    conv_work *k = (conv_work *)user;
    ctr_k_gemm(k->ctx, 0, 0, k->gm, k->gn, k->gk, 1, k->ga, k->gk, k->gb, k->gn, 0, k->gc, k->gn);
}

/* Two images on both; the gradients start from y as it was filled. */
static void conv_verify(const job *j, ctr_ctx *gpu, ctr_ctx *cpu)
{
    conv_work a, b;
    int pass;
    for (pass = 0; pass < 3; pass++) {
        char what[96];
        memset(&a, 0, sizeof a);
        conv_shape(j->conv, 2, &a.s);
        a.pass = pass;
        b = a;
        conv_memory(&a, gpu);
        conv_memory(&b, cpu);
        conv_run(&a);
        conv_run(&b);
        snprintf(what, sizeof what, "%s, pass %d, %s", j->conv->name, pass, MATHS[j->math]);
        compare(gpu, pass == 0 ? a.y : pass == 1 ? a.x : a.w, cpu,
                pass == 0 ? b.y : pass == 1 ? b.x : b.w,
                pass == 0   ? a.s.n * a.s.oh * a.s.ow * a.s.oc
                : pass == 1 ? a.s.n * a.s.h * a.s.w * a.s.c
                            : a.s.kh * a.s.kw * a.s.c * a.s.oc,
                ROUNDING[j->math], what);
    }
}

static void conv_measure(void *user)
{
    static const char *const PASS[3] = {"forward", "input", "weight"};
    const job *j = (const job *)user;
    ctr_ctx *gpu = context(j, (int)j->math);
    const ctr_conv_shape *s;
    conv_work k;
    memset(&k, 0, sizeof k);
    if (!j->o->checked) conv_verify(j, gpu, context(j, -1));
    conv_shape(j->conv, CTR_MAX_(j->conv->images / GPU_SHARE, 2), &k.s);
    s = &k.s;
    conv_memory(&k, gpu);
    for (k.pass = 0; k.pass < 3; k.pass++) {
        int64_t pixels = s->n * s->oh * s->ow, taps = s->kh * s->kw * s->c;
        double flops = 2.0 * (double)pixels * (double)taps * (double)s->oc, ours, product;
        char shape[96];
        k.gm = k.pass == 0 ? pixels : k.pass == 1 ? s->n * s->h * s->w : taps;
        k.gn = k.pass == 1 ? s->c : s->oc;
        k.gk = k.pass == 2 ? pixels : (int64_t)(flops / 2 / (double)k.gm / (double)k.gn + 0.5);
        k.ga = device_floats(gpu, k.gm * k.gk, 4);
        k.gb = device_floats(gpu, k.gk * k.gn, 5);
        k.gc = device_floats(gpu, k.gm * k.gn, 6);
        ours = seconds_of(gpu, conv_run, &k, j->o->seconds / 6);
        product = seconds_of(gpu, conv_product, &k, j->o->seconds / 6);
        fine(gpu, j->conv->name);
        snprintf(shape, sizeof shape, "%s:%s:%s", j->conv->name, PASS[k.pass], MATHS[j->math]);
        bench_emit("gpu_conv", shape, 1, flops / ours * 1e-12, "TFLOP/s",
                   "ms=%.4f cublas_ms=%.4f share=%.3f n=%d side=%d c=%d k=%d oc=%d stride=%d",
                   1e3 * ours, 1e3 * product, product / ours, (int)s->n, (int)s->h, (int)s->c,
                   (int)s->kh, (int)s->oc, (int)s->stride);
    }
}

/* ---- NT-Xent
   ------------------------------------------------------------------------------------ */

typedef struct loss_work {
    ctr_ctx *ctx;
    int64_t m, d;
    int32_t *ids;
    float *x, *lse, *positives, *out, *dloss, *dx, *s;
} loss_work;

static void loss_memory(loss_work *k, ctr_ctx *ctx, int64_t m)
{
    int32_t *ids = (int32_t *)malloc((size_t)m * sizeof *ids);
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_I32, 1, &m, 0);
    float one = 1, *inv;
    int64_t i;
    if (!ids) bench_die("out of memory");
    for (i = 0; i < m; i++) ids[i] = (int32_t)(i % (m / 2));
    ctr_tensor_write_i32(ctx, t, ids, m);
    k->ctx = ctx;
    k->m = m;
    k->d = 128;
    k->ids = (int32_t *)t->data;
    k->dx = device_floats(ctx, m * k->d, 7);
    k->x = device_floats(ctx, m * k->d, 8);
    inv = k->lse = device_floats(ctx, m, 9);
    k->positives = device_floats(ctx, m, 9);
    k->out = device_floats(ctx, CTR_CONTRAST_OUT, 9);
    k->dloss = device_floats(ctx, 1, 9);
    ctr_k_upload(ctx, sizeof one, &one, k->dloss);
    ctr_k_normalize(ctx, m, k->d, k->dx, k->x, inv);
}

static void loss_run(void *user)
{
    loss_work *k = (loss_work *)user;
    ctr_k_contrast(k->ctx, k->m, k->d, k->ids, k->x, 2, k->lse, k->positives, k->out);
    ctr_k_contrast_grad(k->ctx, k->m, k->d, k->ids, k->x, 2, k->lse, k->positives, k->out,
                        k->dloss, k->dx, 0);
}

/* s = x x^T of a strip of rows, twice as forward and backward need it, and dx = s x */
static void loss_products(void *user)
{
    loss_work *k = (loss_work *)user;
    int64_t strip = CTR_MIN_(k->m, 4096), i;
    for (i = 0; i < k->m; i += strip) {
        int64_t rows = CTR_MIN_(strip, k->m - i);
        int twice;
        for (twice = 0; twice < 2; twice++)
            ctr_k_gemm(k->ctx, 0, 1, rows, k->m, k->d, 1, k->x + i * k->d, k->d, k->x, k->d, 0,
                       k->s, k->m);
        ctr_k_gemm(k->ctx, 0, 0, rows, k->d, k->m, 1, k->s, k->m, k->x, k->d, 0,
                   k->dx + i * k->d, k->d);
    }
}

static void loss_measure(void *user)
{
    const job *j = (const job *)user;
    ctr_ctx *gpu = context(j, CTR_CUDA_FP32), *cpu;
    int64_t m = 65536 / GPU_SHARE;
    double ours, products;
    loss_work k, c;
    memset(&k, 0, sizeof k);
    memset(&c, 0, sizeof c);
    if (!j->o->checked) {
        cpu = context(j, -1);
        loss_memory(&k, gpu, 600);
        loss_memory(&c, cpu, 600);
        loss_run(&k);
        loss_run(&c);
        compare(gpu, k.out, cpu, c.out, 1, 1e-4, "NT-Xent, loss");
        compare(gpu, k.dx, cpu, c.dx, 600 * k.d, 1e-4, "NT-Xent, gradient");
    }
    loss_memory(&k, gpu, m);
    ours = seconds_of(gpu, loss_run, &k, j->o->seconds);
    fine(gpu, "NT-Xent");
    k.s = device_floats(gpu, CTR_MIN_(m, 4096) * m, 9);
    products = seconds_of(gpu, loss_products, &k, j->o->seconds);
    fine(gpu, "NT-Xent's products");
    bench_emit("gpu_nt_xent", "fp32", 1, 1e3 * ours, "ms",
               "ms=%.3f products_ms=%.3f ratio=%.3f rows=%d d=128", 1e3 * ours, 1e3 * products,
               ours / products, (int)m);
}

/* ---- steps
   -------------------------------------------------------------------------------------- */

typedef struct step_work {
    ctr_ctx *ctx;
    ctr_method *method;
    ctr_batch batch;
    double loss;
} step_work;

static ctr_method *simclr(ctr_ctx *ctx, const gpu_step *c)
{
    ctr_simclr_config s = ctr_simclr_default();
    ctr_resnet_config_init(&s.encoder, c->depth);
    s.encoder.image_size = c->side;
    s.encoder.stem = c->side <= 64 ? CTR_STEM_SMALL : CTR_STEM_LARGE;
    s.aug = ctr_aug_simclr_default(c->side);
    s.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    return ctr_simclr_create(ctx, &s);
}

static void step_memory(step_work *k, ctr_ctx *ctx, const gpu_step *c, int64_t images)
{
    int64_t size = 2 * images * c->side * c->side * 3, i;
    int32_t *labels = (int32_t *)malloc((size_t)images * sizeof *labels);
    memset(k, 0, sizeof *k);
    if (!labels) bench_die("out of memory");
    for (i = 0; i < images; i++) labels[i] = -1;
    k->ctx = ctx;
    k->method = simclr(ctx, c);
    fine(ctx, c->name);
    k->batch.n = images;
    k->batch.views = 2;
    k->batch.h = k->batch.w = c->side;
    k->batch.c = 3;
    k->batch.labels = labels;
    k->batch.pixels = bench_floats(size);
    bench_fill(k->batch.pixels, size, 5);
}

static void step_run(void *user)
{
    step_work *k = (step_work *)user;
    ctr_report report;
    if (!ctr_method_step(k->method, &k->batch, 0.01, &report))
        bench_die("step: %s", ctr_error_text(k->ctx));
    k->loss = report.loss;
}

/* The first loss of the same weights and views. Deep networks, small batches and batch norm grow a
   product's rounding by about ten. */
static void step_verify(const job *j, ctr_ctx *gpu)
{
    double limit = j->math == CTR_CUDA_FP32 ? 1e-4 : 5 * ROUNDING[j->math];
    step_work a, b;
    step_memory(&a, gpu, j->step, 4);
    step_memory(&b, context(j, -1), j->step, 4);
    step_run(&a);
    step_run(&b);
    if (!(fabs(a.loss - b.loss) <= limit * (1 + fabs(b.loss))))
        bench_die("%s %s: loss %.6g, the CPU's %.6g", j->step->name, MATHS[j->math], a.loss,
                  b.loss);
    ctr_method_destroy(a.method);
}

static void step_measure(void *user)
{
    const job *j = (const job *)user;
    ctr_ctx *gpu = context(j, (int)j->math);
    int64_t images = CTR_MAX_(j->step->images / GPU_SHARE, 2);
    ctr_memory memory;
    bench_time t;
    step_work k;
    double first;
    char shape[64];
    if (!j->o->checked) step_verify(j, gpu);
    step_memory(&k, gpu, j->step, images);
    step_run(&k);
    first = k.loss;
    t = bench_run(step_run, &k, j->o->seconds, 3);
    memory = ctr_memory_stats(gpu);
    snprintf(shape, sizeof shape, "%s:%s", j->step->name, MATHS[j->math]);
    bench_emit("gpu_step", shape, 1, (double)(2 * images) / t.median, "views/s",
               "ms=%.3f best_ms=%.3f cpu_ms=%.3f views=2x%d side=%d slab_mb=%.1f first_loss=%.5f",
               1e3 * t.median, 1e3 * t.best, 1e3 * t.cpu, (int)images, (int)j->step->side,
               (double)memory.slab / 1048576, first);
}

/* ---- an epoch
   ----------------------------------------------------------------------------------- */

/* When the last step of each epoch was over: its loss has come back by then. */
typedef struct epochs {
    double end[2], waited;
    int64_t steps;            /* of the second epoch */
    ctr_report last;
    char text[256];           /* of the log, about the views */
} epochs;

static int epoch_step(void *user, const ctr_report *r)
{
    epochs *e = (epochs *)user;
    e->end[r->epoch] = bench_seconds();
    e->steps += r->epoch == 1;
    e->waited += r->epoch == 1 ? r->data_seconds : 0;
    e->last = *r;
    return 0;
}

static void epoch_hear(void *user, ctr_log_level level, const char *text)
{
    (void)level;
    if (strstr(text, "makes the views"))
        snprintf(((epochs *)user)->text, sizeof((epochs *)user)->text, "%s", text);
}

static void epoch_measure(void *user)
{
    const job *j = (const job *)user;
    int64_t n = CTR_MAX_(50000 / GPU_SHARE, 8), batch = CTR_MAX_(512 / GPU_SHARE, 4), i;
    uint8_t *pixels = (uint8_t *)malloc((size_t)n * 3072);
    ctr_fit_config fit = ctr_fit_default();
    bench_noise noise = {3};
    ctr_dataset *images;
    ctr_method *method;
    ctr_ctx *gpu;
    double seconds;
    epochs e;
    memset(&e, 0, sizeof e);
    gpu = context(j, (int)j->math);
    gpu->config.log_fn = epoch_hear;
    gpu->config.log_user = &e;
    method = simclr(gpu, &STEPS[0]);
    if (!pixels || !method) bench_die("epoch: %s", ctr_error_text(gpu));
    for (i = 0; i < n * 3072; i++) pixels[i] = (uint8_t)bench_bits(&noise);
    images = ctr_dataset_from_memory(gpu, pixels, n, 32, 32, 3, NULL);
    fit.epochs = 2; /* the first one warms up */
    fit.batch = batch;
    fit.lr = fit.end_lr = 0.01;
    fit.warmup_epochs = 0;
    fit.user = &e;
    fit.step_fn = epoch_step;
    if (!images || ctr_fit_images(method, images, &fit) < 0)
        bench_die("epoch: %s", ctr_error_text(gpu));
    if (e.text[0]) bench_die("epoch: %s", e.text);
    fine(gpu, "epoch");
    if (!(e.last.loss > 0 && e.last.loss < 2 * e.last.chance)) /* noise: nothing to be learnt */
        bench_die("epoch: loss %g, chance %g", e.last.loss, e.last.chance);
    seconds = e.end[1] - e.end[0];
    bench_emit("gpu_epoch", MATHS[j->math], j->o->threads, (double)(e.steps * batch) / seconds,
               "images/s", "seconds=%.3f steps=%d batch=2x%d data_seconds=%.3f loss=%.4f", seconds,
               (int)e.steps, (int)batch, e.waited, e.last.loss);
}

/* One line, also where there is no GPU: in a process of its own, since CUDA does not survive a
   fork. */
static void device_measure(void *user)
{
    printf("device %s\n", ctr_kernels_name(context((const job *)user, CTR_CUDA_BF16)));
}

int main(int argc, char **argv)
{
    bench_options o;
    size_t i;
    int math;
    job j;
    bench_parse(&o, argc, argv, "gpu: cases conv nt_xent resnet18 resnet50 epoch");
    memset(&j, 0, sizeof j);
    j.o = &o;
    if (bench_fresh(device_measure, &j)) return 1;
    for (math = CTR_CUDA_TF32; math <= CTR_CUDA_BF16; math++) {
        j.math = (ctr_cuda_math)math;
        for (i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
            j.step = &STEPS[i];
            if (bench_wanted(&o, j.step->name) && bench_fresh(step_measure, &j)) return 1;
        }
        if (bench_wanted(&o, "epoch") && bench_fresh(epoch_measure, &j)) return 1;
        for (i = 0; bench_wanted(&o, "conv") && i < sizeof CONVS / sizeof *CONVS; i++) {
            j.conv = &CONVS[i];
            if (bench_fresh(conv_measure, &j)) return 1;
        }
    }
    return bench_wanted(&o, "nt_xent") ? bench_fresh(loss_measure, &j) : 0;
}
