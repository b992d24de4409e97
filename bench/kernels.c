/* Matrix products and convolutions, through the library's public kernel verbs.
 *
 *     cc -O2 -o kernels bench/kernels.c -lm -lpthread && ./kernels [--threads 2] [--only gemm,r18]
 *
 * gflops counts the multiplications and additions of the definition, also where Winograd's
 * algorithm does fewer: a convolution may exceed the processor's peak. share is the part of the
 * measured peak. Before the timing a few hundred entries of every result are compared with sums in
 * double. gbytes: input, weight and output once, divided by the time. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define SAMPLES 300
#define LIMIT 2e-5 /* relative error in the 2-norm: float32 sums, Winograd included */

typedef struct product {
    const char *name;
    int ta, tb;
    int64_t m, n, k;
} product;

static const product PRODUCTS[] = {
    {"256", 0, 0, 256, 256, 256},
    {"512", 0, 0, 512, 512, 512},
    {"768", 0, 0, 768, 768, 768},
    {"1024", 0, 0, 1024, 1024, 1024},
    {"2048", 0, 0, 2048, 2048, 2048},
    {"odd1023", 0, 0, 1023, 1021, 1019},
    {"head64x512x512", 0, 1, 64, 512, 512}, /* a linear layer: forward, its weight's gradient */
    {"head512x512x64", 1, 0, 512, 512, 64},
    {"sim2048x2048x128", 0, 1, 2048, 2048, 128}, /* similarities of a batch, their gradient */
    {"sim2048x128x2048", 0, 0, 2048, 128, 2048}};

typedef struct layer {
    const char *group, *name;
    int64_t n, side, c, oc;
    int k, stride;
} layer;

static const layer LAYERS[] = {
    {"r20", "r20_stem_3_16_s32", 256, 32, 3, 16, 3, 1},
    {"r20", "r20_16_16_s32", 256, 32, 16, 16, 3, 1},
    {"r20", "r20_16_32_s32_d2", 256, 32, 16, 32, 3, 2},
    {"r20", "r20_32_32_s16", 256, 16, 32, 32, 3, 1},
    {"r20", "r20_64_64_s8", 256, 8, 64, 64, 3, 1},
    {"r18", "r18_stem_3_64_s32", 64, 32, 3, 64, 3, 1},
    {"r18", "r18_64_64_s32", 64, 32, 64, 64, 3, 1},
    {"r18", "r18_64_128_s32_d2", 64, 32, 64, 128, 3, 2},
    {"r18", "r18_64_128_s32_d2_k1", 64, 32, 64, 128, 1, 2},
    {"r18", "r18_128_128_s16", 64, 16, 128, 128, 3, 1},
    {"r18", "r18_128_256_s16_d2", 64, 16, 128, 256, 3, 2},
    {"r18", "r18_256_256_s8", 64, 8, 256, 256, 3, 1},
    {"r18", "r18_256_512_s8_d2", 64, 8, 256, 512, 3, 2},
    {"r18", "r18_512_512_s4", 64, 4, 512, 512, 3, 1},
    {"r50", "r50_stem_3_64_s64_d2_k7", 32, 64, 3, 64, 7, 2},
    {"r50", "r50_64_256_s16_k1", 32, 16, 64, 256, 1, 1},
    {"r50", "r50_256_64_s16_k1", 32, 16, 256, 64, 1, 1},
    {"r50", "r50_512_512_s4_d2", 32, 4, 512, 512, 3, 2},
    {"r50", "r50_512_512_s2", 32, 2, 512, 512, 3, 1},
    {"r50", "r50_2048_512_s2_k1", 32, 2, 2048, 512, 1, 1}
};

/* Images too small for tiles of 4 x 4, and one that is not: each by the direct sum and by
   F(2x2, 3x3), the last by F(4x4, 3x3) too. */
static const layer SMALL[] = {
    {"small", "32_512_512_s2", 32, 2, 512, 512, 3, 1},
    {"small", "512_64_64_s2", 512, 2, 64, 64, 3, 1},
    {"small", "32_128_128_s5", 32, 5, 128, 128, 3, 1},
    {"small", "64_64_64_s8", 64, 8, 64, 64, 3, 1}
};

static double peak;   /* GFLOP/s of so many threads */

static void emit(const bench_options *o, const char *name, const char *shape, double flops,
                 double bytes, double error, const bench_time *t)
{
    double gflops = 1e-9 * flops / t->median, best = 1e-9 * flops / t->best;
    bench_emit(name, shape, o->threads, gflops, "GFLOP/s",
               "best=%.1f share=%.3f ms=%.3f cpu_ms=%.3f gbytes=%.1f error=%.1e repeats=%d", best,
               peak > 0 ? gflops / peak : 0.0, 1e3 * t->median, 1e3 * t->cpu,
               1e-9 * bytes / t->median, error, t->repeats);
}

static void check(ctr_ctx *ctx, const char *what)
{
    if (ctr_error(ctx) != CTR_OK) bench_die("%s: %s", what, ctr_error_text(ctx));
}

/* ---- matrix products
   --------------------------------------------------------------------------- */

typedef struct gemm_job {
    ctr_ctx *ctx;
    const product *p;
    float *a, *b, *c;   /* [m, k], [k, n], [m, n], or the first two transposed */
} gemm_job;

static void gemm_run(void *user)
{
    gemm_job *g = (gemm_job *)user;
    const product *p = g->p;
    ctr_k_gemm(g->ctx, p->ta, p->tb, p->m, p->n, p->k, 1, g->a, p->ta ? p->m : p->k, g->b,
               p->tb ? p->k : p->n, 0, g->c, p->n);
}

static double gemm_verify(const gemm_job *g)
{
    const product *p = g->p;
    bench_noise noise;
    bench_error e = {0, 0};
    int64_t i, j, l;
    int s;
    noise.state = 7;
    for (s = 0; s < SAMPLES; s++) {
        double sum = 0;
        i = s ? bench_bits(&noise) % p->m : p->m - 1;
        j = s ? bench_bits(&noise) % p->n : p->n - 1;
        for (l = 0; l < p->k; l++)
            sum += (double)g->a[p->ta ? l * p->m + i : i * p->k + l] *
                   (double)g->b[p->tb ? j * p->k + l : l * p->n + j];
        bench_error_add(&e, sum, (double)g->c[i * p->n + j]);
    }
    if (!ctr_k_finite(g->ctx, p->m * p->n, g->c)) bench_die("gemm %s: not finite", p->name);
    return bench_error_check(&e, LIMIT, p->name);
}

static void gemm_measure(ctr_ctx *ctx, const bench_options *o, const product *p)
{
    gemm_job g;
    bench_time t;
    double error, flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    g.ctx = ctx;
    g.p = p;
    g.a = bench_floats(p->m * p->k);
    g.b = bench_floats(p->k * p->n);
    g.c = bench_floats(p->m * p->n);
    bench_fill(g.a, p->m * p->k, 1);
    bench_fill(g.b, p->k * p->n, 2);
    bench_fill(g.c, p->m * p->n, 3);
    gemm_run(&g);
    check(ctx, p->name);
    error = gemm_verify(&g);
    t = bench_run(gemm_run, &g, o->seconds, 5);
    emit(o, "sgemm", p->name, flops,
         4.0 * (double)(p->m * p->k + p->k * p->n + p->m * p->n), error, &t);
}

/* ---- convolutions
   ------------------------------------------------------------------------------ */

typedef struct conv_job {
    ctr_ctx *ctx;
    ctr_conv_shape s;
    float *x, *w,
        *y; /* of the pass at hand, one is the result: [n,h,w,c] [kh,kw,c,oc] [n,oh,ow,oc] */
} conv_job;

static void forward_run(void *user)
{
    conv_job *j = (conv_job *)user;
    ctr_k_conv_forward(j->ctx, &j->s, j->x, j->w, j->y);
}

static void input_run(void *user)
{
    conv_job *j = (conv_job *)user;
    ctr_k_conv_input(j->ctx, &j->s, j->y, j->w, j->x, 0);
}

static void weight_run(void *user)
{
    conv_job *j = (conv_job *)user;
    ctr_k_conv_weight(j->ctx, &j->s, j->x, j->y, j->w, 0);
}

/* y[b, i, j, o] = sum over ky, kx, c of x[b, i stride + ky - pad, j stride + kx - pad, c] w[..] */
static double forward_entry(const conv_job *q, int64_t at)
{
    const ctr_conv_shape *s = &q->s;
    int64_t o = at % s->oc, j = at / s->oc % s->ow, i = at / s->oc / s->ow % s->oh;
    int64_t b = at / s->oc / s->ow / s->oh, ky, kx, c;
    double sum = 0;
    for (ky = 0; ky < s->kh; ky++)
        for (kx = 0; kx < s->kw; kx++) {
            int64_t yy = i * s->stride + ky - s->pad, xx = j * s->stride + kx - s->pad;
            if (yy < 0 || yy >= s->h || xx < 0 || xx >= s->w) continue;
            for (c = 0; c < s->c; c++)
                sum += (double)q->x[((b * s->h + yy) * s->w + xx) * s->c + c] *
                       (double)q->w[((ky * s->kw + kx) * s->c + c) * s->oc + o];
        }
    return sum;
}

/* dx[b, yy, xx, c]: the same products, gathered by the input's entry */
static double input_entry(const conv_job *q, int64_t at)
{
    const ctr_conv_shape *s = &q->s;
    int64_t c = at % s->c, xx = at / s->c % s->w, yy = at / s->c / s->w % s->h;
    int64_t b = at / s->c / s->w / s->h, ky, kx, o;
    double sum = 0;
    for (ky = 0; ky < s->kh; ky++)
        for (kx = 0; kx < s->kw; kx++) {
            int64_t i = yy + s->pad - ky, j = xx + s->pad - kx;
            if (i < 0 || j < 0 || i % s->stride || j % s->stride) continue;
            i /= s->stride;
            j /= s->stride;
            if (i >= s->oh || j >= s->ow) continue;
            for (o = 0; o < s->oc; o++)
                sum += (double)q->y[((b * s->oh + i) * s->ow + j) * s->oc + o] *
                       (double)q->w[((ky * s->kw + kx) * s->c + c) * s->oc + o];
        }
    return sum;
}

/* dw[ky, kx, c, o]: gathered by the weight's entry */
static double weight_entry(const conv_job *q, int64_t at)
{
    const ctr_conv_shape *s = &q->s;
    int64_t o = at % s->oc, c = at / s->oc % s->c, kx = at / s->oc / s->c % s->kw;
    int64_t ky = at / s->oc / s->c / s->kw, b, i, j;
    double sum = 0;
    for (b = 0; b < s->n; b++)
        for (i = 0; i < s->oh; i++)
            for (j = 0; j < s->ow; j++) {
                int64_t yy = i * s->stride + ky - s->pad, xx = j * s->stride + kx - s->pad;
                if (yy < 0 || yy >= s->h || xx < 0 || xx >= s->w) continue;
                sum += (double)q->x[((b * s->h + yy) * s->w + xx) * s->c + c] *
                       (double)q->y[((b * s->oh + i) * s->ow + j) * s->oc + o];
            }
    return sum;
}

static double conv_verify(const conv_job *q, double (*entry)(const conv_job *, int64_t),
                          const float *got, int64_t size, const char *what)
{
    bench_noise noise;
    bench_error e = {0, 0};
    int s;
    noise.state = 11;
    for (s = 0; s < SAMPLES; s++) {
        int64_t at = s ? bench_bits(&noise) % size : size - 1;
        bench_error_add(&e, entry(q, at), (double)got[at]);
    }
    if (!ctr_k_finite(q->ctx, size, got)) bench_die("%s: not finite", what);
    return bench_error_check(&e, LIMIT, what);
}

static void conv_measure(ctr_ctx *ctx, const bench_options *o, const layer *l)
{
    static void (*const RUN[3])(void *) = {forward_run, input_run, weight_run};
    static double (*const ENTRY[3])(const conv_job *, int64_t) = {forward_entry, input_entry,
                                                                  weight_entry};
    static const char *const PASS[3] = {"conv_forward", "conv_input", "conv_weight"};
    conv_job q;
    ctr_conv_shape *s = &q.s;
    int64_t nx, nw, ny;
    double flops, bytes;
    int pass;
    q.ctx = ctx;
    s->n = l->n;
    s->h = s->w = l->side;
    s->c = l->c;
    s->oc = l->oc;
    s->kh = s->kw = l->k;
    s->stride = l->stride;
    s->pad = l->k / 2;
    s->oh = s->ow = (l->side + 2 * s->pad - l->k) / l->stride + 1;
    nx = s->n * s->h * s->w * s->c;
    nw = s->kh * s->kw * s->c * s->oc;
    ny = s->n * s->oh * s->ow * s->oc;
    q.x = bench_floats(nx);
    q.w = bench_floats(nw);
    q.y = bench_floats(ny);
    flops = 2.0 * (double)ny * (double)(s->kh * s->kw * s->c);
    bytes = 4.0 * (double)(nx + nw + ny);
    for (pass = 0; pass < 3; pass++) {
        float *out = pass == 0 ? q.y : pass == 1 ? q.x : q.w;
        int64_t size = pass == 0 ? ny : pass == 1 ? nx : nw;
        bench_time t;
        double error;
        bench_fill(q.x, nx, 1);
        bench_fill(q.w, nw, 2);
        bench_fill(q.y, ny, 3);
        RUN[pass](&q);
        check(ctx, l->name);
        error = conv_verify(&q, ENTRY[pass], out, size, l->name);
        t = bench_run(RUN[pass], &q, o->seconds, 5);
        emit(o, PASS[pass], l->name, flops, bytes, error, &t);
    }
}

static void small_measure(ctr_config config, const bench_options *o, const layer *l)
{
    static const char *const KINDS[] = {"auto", "direct", "4x4", "2x2"};
    static const ctr_conv_kind LIST[] = {CTR_CONV_DIRECT, CTR_CONV_WINOGRAD_2X2, CTR_CONV_WINOGRAD};
    int i;
    for (i = 0; i < (l->side < 8 ? 2 : 3); i++) {
        layer one = *l;
        char name[64];
        ctr_ctx *ctx;
        config.conv = LIST[i];
        ctx = ctr_ctx_create(&config);
        if (!ctx) bench_die("no context");
        snprintf(name, sizeof name, "%s_%s", l->name, KINDS[LIST[i]]);
        one.name = name;
        conv_measure(ctx, o, &one);
        ctr_ctx_destroy(ctx);
    }
}

int main(int argc, char **argv)
{
    bench_options o;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    size_t i;
    bench_parse(&o, argc, argv, "kernels: matrix products and convolutions. cases: gemm, r20, r18, "
                "r50, small, or a shape: 256 .. 2048, r18_64_64_s32 ...");
    config.threads = o.threads;
    ctx = ctr_ctx_create(&config);
    if (!ctx) bench_die("no context");
    peak = bench_peak_gflops(o.threads, 8);
    if (bench_peak_gflops(o.threads, 16) > peak) peak = bench_peak_gflops(o.threads, 16);
    for (i = 0; i < sizeof PRODUCTS / sizeof *PRODUCTS; i++)
        if (bench_wanted(&o, "gemm") || bench_wanted(&o, PRODUCTS[i].name))
            gemm_measure(ctx, &o, &PRODUCTS[i]);
    for (i = 0; i < sizeof LAYERS / sizeof *LAYERS; i++)
        if (bench_wanted(&o, LAYERS[i].group) || bench_wanted(&o, LAYERS[i].name))
            conv_measure(ctx, &o, &LAYERS[i]);
    ctr_ctx_destroy(ctx);
    for (i = 0; i < sizeof SMALL / sizeof *SMALL && bench_wanted(&o, "small"); i++)
        small_measure(config, &o, &SMALL[i]);
    return 0;
}
