/* Tests of the section AUG: every operation against torchvision's values (golden_aug.txt), the
   reference against the AVX2 path, sampling, presets, threads and refusals.
   run: float double asan asandouble smoke */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#include "test.h"

/* A comparison that is named by its own text. */
#define CHECK(condition) test_true(check_name(#condition, __LINE__), (condition) != 0)

static const char *check_name(const char *text, int line)
{
    static char name[160];
    snprintf(name, sizeof name, "line %d: %.140s", line, text);
    return name;
}

static ctr_ctx *make_ctx(int threads) { return test_ctx(threads, CTR_KERNELS_AUTO); }

static int refused(ctr_ctx *ctx, ctr_status status, const char *word)
{
    return test_fails(ctx, word, status, word);
}

static void fill_bytes(const char *name, uint8_t *p, size_t n)
{
    uint32_t seed = golden_fnv(name);
    size_t i;
    for (i = 0; i < n; i++) p[i] = (uint8_t)(golden_bits(seed, i) & 255u);
}

static double difference(const ctr_real *a, const ctr_real *b, int64_t n)
{
    double worst = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!golden_finite_(d)) return GOLDEN_BAD;
        if (d > worst) worst = d;
    }
    return worst;
}

/* ---- golden values
 * ------------------------------------------------------------------------------- */

typedef struct setup {
    ctr_aug_config config;
    ctr_aug_params params;
} setup;

/* A view that changes nothing: the whole image at its own size. */
static void identity(setup *s, int64_t h, int64_t w)
{
    int k;
    ctr_aug_none_config_init(&s->config, 1);
    s->config.height = h;
    s->config.width = w;
    memset(&s->params, 0, sizeof s->params);
    s->params.crop.h = h;
    s->params.crop.w = w;
    for (k = 0; k < 4; k++) s->params.order[k] = k;
    for (k = 0; k < 3; k++) s->params.factor[k] = 1;
}

/* Fills in the view that a key asks for, and does the single operation on x[h, w, 3] too (out is
   its result). 0 for a key that is none of ours. */
static int perform(ctr_ctx *ctx, const char *op, ctr_real *x, int64_t h, int64_t w, setup *s,
                   ctr_real *out)
{
    double *factor = s->params.factor, f = 0;
    char mode[16] = "";
    int top, left, bh, bw, oh, ow, kernel, k;
    s->params.jitter = 1;
    if (sscanf(op, "brightness:%lf", &f) == 1) {
        factor[s->params.order[0] = CTR_JITTER_BRIGHTNESS] = f;
        s->config.brightness = 1;
        CHECK(ctr_aug_brightness(ctx, x, h, w, 3, f));
    } else if (sscanf(op, "contrast:%lf", &f) == 1) {
        factor[CTR_JITTER_CONTRAST] = f;
        s->config.contrast = 1;
        CHECK(ctr_aug_contrast(ctx, x, h, w, 3, f));
    } else if (sscanf(op, "saturation:%lf", &f) == 1) {
        factor[CTR_JITTER_SATURATION] = f;
        s->config.saturation = 1;
        CHECK(ctr_aug_saturation(ctx, x, h, w, 3, f));
    } else if (sscanf(op, "hue:%lf", &f) == 1) {
        factor[CTR_JITTER_HUE] = f;
        s->config.hue = 0.5;
        CHECK(ctr_aug_hue(ctx, x, h, w, 3, f));
    } else if (sscanf(op, "jitter:%15s", mode) == 1) {
        static const char letters[] = "bcsh";
        factor[0] = 1.3;
        factor[1] = 0.7;
        factor[2] = 1.4;
        factor[3] = 0.1;
        s->config.brightness = s->config.contrast = s->config.saturation = 1;
        s->config.hue = 0.5;
        for (k = 0; k < 4; k++) {
            int which = s->params.order[k] = (int)(strchr(letters, mode[k]) - letters);
            if (which == 0) CHECK(ctr_aug_brightness(ctx, x, h, w, 3, factor[0]));
            if (which == 1) CHECK(ctr_aug_contrast(ctx, x, h, w, 3, factor[1]));
            if (which == 2) CHECK(ctr_aug_saturation(ctx, x, h, w, 3, factor[2]));
            if (which == 3) CHECK(ctr_aug_hue(ctx, x, h, w, 3, factor[3]));
        }
    } else if (strcmp(op, "gray") == 0) {
        s->params.gray = 1;
        CHECK(ctr_aug_grayscale(ctx, x, h, w, 3));
    } else if (strcmp(op, "hflip") == 0) {
        s->params.flip = 1;
        CHECK(ctr_aug_flip(ctx, x, h, w, 3));
    } else if (sscanf(op, "solarize:%lf", &f) == 1) {
        s->params.solarize = 1;
        s->config.solarize_threshold = f / 255.0;
        CHECK(ctr_aug_solarize(ctx, x, h, w, 3, f / 255.0));
    } else if (sscanf(op, "blur:%d:%lf", &kernel, &f) == 2) {
        s->params.blur_sigma = f;
        s->config.blur_kernel = kernel;
        CHECK(ctr_aug_blur(ctx, x, h, w, 3, kernel, f));
    } else if (sscanf(op, "resize:%15[a-z]:%d:%d:%d:%d:%d:%d", mode, &top, &left, &bh, &bw, &oh,
                      &ow) == 7) {
        s->config.interp = mode[2] == 'c' ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR;
        s->config.height = oh;
        s->config.width = ow;
        s->params.crop.top = top;
        s->params.crop.left = left;
        s->params.crop.h = bh;
        s->params.crop.w = bw;
        CHECK(
            ctr_aug_resized_crop(ctx, x, h, w, 3, &s->params.crop, oh, ow, s->config.interp, out));
        return 1;
    } else {
        return 0;
    }
    memcpy(out, x, (size_t)(h * w * 3) * sizeof *out);
    return 1;
}

static double worst_of(const ctr_real *a, const double *want, size_t n, int clip)
{
    double worst = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        double v = want[i], u = (double)a[i], d;
        if (clip) v = v < 0 ? 0 : v > 1 ? 1 : v;
        if (!golden_finite_(u)) return GOLDEN_BAD;
        if (clip) u = u < 0 ? 0 : u > 1 ? 1 : u;
        d = fabs(u - v);
        if (d > worst) worst = d;
    }
    return worst;
}

/* Each record three times: the operation alone, and whole views by both kernel sets. */
static void test_golden(ctr_ctx *ctx)
{
    static uint8_t noise[13 * 17 * 3], smooth[32 * 32 * 3];
    static ctr_real x[32 * 32 * 3], out[32 * 32 * 3], view[32 * 32 * 3];
    golden_file g;
    size_t r, i;
    int used = 0, k, colours = 0, resizes = 0, blurs = 0;
    if (!test_golden_open(&g, "golden_aug.txt")) return;
    golden_image_noise(noise);
    golden_image_smooth(smooth);
    for (r = 0; r < g.count; r++) {
        const golden_record *rec = &g.records[r];
        int is_noise = strncmp(rec->key, "noise:", 6) == 0;
        const uint8_t *bytes = is_noise ? noise : smooth;
        const char *op = strchr(rec->key, ':') + 1;
        int64_t h = is_noise ? 13 : 32, w = is_noise ? 17 : 32;
        setup s;
        double limit, error;
        for (i = 0; i < (size_t)(h * w * 3); i++) x[i] = (ctr_real)bytes[i] / CTR_R(255.0);
        identity(&s, h, w);
        if (!perform(ctx, op, x, h, w, &s, out)) {
            fprintf(stderr, "unknown record %s\n", rec->key);
            CHECK(!"every record has an operation");
            continue;
        }
        used++;
        colours += s.params.jitter && strncmp(op, "resize", 6) && strncmp(op, "blur", 4);
        resizes += strncmp(op, "resize", 6) == 0;
        blurs += strncmp(op, "blur", 4) == 0;
        CHECK(rec->count == (size_t)(s.config.height * s.config.width * 3));
        /* six digits are stored, and float arithmetic adds a few units in the last place */
        limit = strcmp(op, "hflip") == 0 || strncmp(op, "solarize", 8) == 0 ? 6e-7 : 3e-6;
        error = worst_of(out, rec->values, rec->count, 1);
        test_error(rec->key, error, limit);
        CHECK(worst_of(out, rec->values, rec->count, 0) <= 8e-6); /* digits of 1.xxx are fewer */
        for (k = 1; k <= 2; k++) {
            s.config.kernels = k == 1 ? CTR_KERNELS_SCALAR : CTR_KERNELS_AUTO;
            CHECK(ctr_aug_view(ctx, &s.config, &s.params, bytes, h, w, 3, view));
            error = worst_of(view, rec->values, rec->count, 1);
            test_error(rec->key, error, limit);
        }
    }
    CHECK(used >= 50 && colours >= 10 && resizes >= 20 && blurs >= 7);
    golden_close(&g);
}

#ifdef __FAST_MATH__
#define EXACT 2e-7 /* it multiplies with 1 / 255 */
#else
#define EXACT 0
#endif

/* A mirrored or inverted view that is not resized has the very numbers of its pixels. */
static void test_exact(ctr_ctx *ctx)
{
    static uint8_t bytes[13 * 17 * 3];
    static ctr_real view[13 * 17 * 3];
    int k, y, x, c, flip;
    golden_image_noise(bytes);
    for (k = 0; k < 4; k++) {
        setup s;
        int wrong = 0;
        identity(&s, 13, 17);
        s.params.flip = flip = k & 1;
        s.params.solarize = 1;
        s.config.solarize_threshold = 0.3;
        s.config.interp = k & 1 ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR;
        s.config.kernels = k & 2 ? CTR_KERNELS_SCALAR : CTR_KERNELS_AUTO;
        CHECK(ctr_aug_view(ctx, &s.config, &s.params, bytes, 13, 17, 3, view));
        for (y = 0; y < 13; y++)
            for (x = 0; x < 17; x++)
                for (c = 0; c < 3; c++) {
                    ctr_real v = (ctr_real)bytes[(y * 17 + (flip ? 16 - x : x)) * 3 + c];
                    v /= CTR_R(255.0);
                    if (v >= CTR_R(0.3)) v = 1 - v;
                    wrong += fabs((double)(view[(y * 17 + x) * 3 + c] - v)) > EXACT;
                }
        test_equal("flip and solarize: numbers that are not exact", wrong, 0);
    }
}

/* ---- blur
 * ---------------------------------------------------------------------------------------- */

/* One white pixel becomes the Gaussian itself: its variance is sigma^2, its sum 1. */
static void test_blur(ctr_ctx *ctx)
{
    static ctr_real x[41 * 41], seen[41 * 41];
    static uint8_t bytes[41 * 41];
    const double sigma = 2.5;
    double sum = 0, variance = 0, worst = 0;
    setup s;
    int i, j, k;
    memset(x, 0, sizeof x);
    memset(bytes, 0, sizeof bytes);
    x[20 * 41 + 20] = 1;
    bytes[20 * 41 + 20] = 255;
    CHECK(ctr_aug_blur(ctx, x, 41, 41, 1, 31, sigma));
    for (i = 0; i < 41; i++)
        for (j = 0; j < 41; j++) {
            double v = (double)x[i * 41 + j], dy = i - 20, dx = j - 20, want;
            sum += v;
            variance += v * dx * dx;
            want = exp(-(dx * dx + dy * dy) / (2 * sigma * sigma)) / (2 * CTR_PI_ * sigma * sigma);
            worst = CTR_MAX_(worst, fabs(v - want));
        }
    CHECK(fabs(sum - 1) < 1e-5);
    CHECK(fabs(variance - sigma * sigma) < 1e-3);
    CHECK(worst < 1e-6);
    identity(&s, 41, 41);
    s.config.blur_kernel = 31;
    s.params.blur_sigma = sigma;
    for (k = 0; k < 2; k++) {
        s.config.kernels = k ? CTR_KERNELS_SCALAR : CTR_KERNELS_AUTO;
        CHECK(ctr_aug_view(ctx, &s.config, &s.params, bytes, 41, 41, 1, seen));
        CHECK(difference(seen, x, 41 * 41) < 1e-6);
    }
    /* kernels wider than the image reflect more than once; a constant stays what it is */
    for (i = 0; i < 12; i++) x[i] = CTR_R(0.375);
    CHECK(ctr_aug_blur(ctx, x, 3, 4, 1, 61, 9.0));
    for (i = 0; i < 12; i++) CHECK(fabs((double)x[i] - 0.375) < 1e-6);
    x[0] = CTR_R(0.5);
    CHECK(ctr_aug_blur(ctx, x, 1, 1, 1, 255, 100.0) && fabs((double)x[0] - 0.5) < 1e-6);
}

/* ---- both kernel sets
 * ---------------------------------------------------------------------------- */

static void test_kernels(void)
{
    static const int64_t shapes[][5] = { /* h, w, c, height, width */
        { 32, 32, 3, 32, 32 }, { 28, 28, 1, 28, 28 }, { 1, 1, 3, 5, 7 },   { 1, 1, 1, 1, 1 },
        { 1, 300, 3, 9, 9 },   { 300, 1, 1, 9, 17 },  { 7, 5, 3, 33, 31 }, { 96, 80, 3, 64, 64 },
        { 61, 47, 1, 1, 1 },   { 40, 200, 3, 24, 3 }, { 9, 9, 3, 97, 8 } };
    double worst = 0;
    size_t k;
    int trial;
    for (k = 0; k < sizeof shapes / sizeof shapes[0]; k++) {
        int64_t h = shapes[k][0], w = shapes[k][1], c = shapes[k][2], i;
        int64_t n, count = h * w * c;
        ctr_aug_config config = ctr_aug_simclr_default(64);
        uint8_t *bytes = (uint8_t *)malloc((size_t)count);
        ctr_real *reals = (ctr_real *)malloc((size_t)count * sizeof *reals), *a, *b, *d;
        void *scratch;
        config.height = shapes[k][3];
        config.width = shapes[k][4];
        config.solarize_p = 0.3;
        config.mean[0] = 0.3;
        config.std[0] = 0.7;
        config.std[2] = 2;
        n = config.height * config.width * c;
        fill_bytes("kernels", bytes, (size_t)count);
        for (i = 0; i < count; i++) reals[i] = (ctr_real)bytes[i] / CTR_R(255.0);
        a = (ctr_real *)malloc((size_t)n * sizeof *a);
        b = (ctr_real *)malloc((size_t)n * sizeof *b);
        d = (ctr_real *)malloc((size_t)n * sizeof *d);
        scratch = malloc(ctr_aug_scratch_size(&config, h, w, c)); /* no more: ASan looks on */
        for (trial = 0; trial < 60; trial++) {
            ctr_aug_params p;
            ctr_rng rng;
            config.interp = trial % 2 ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR;
            ctr_rng_init(&rng, 7, CTR_STREAM_USER, 0, trial, (int)k);
            ctr_aug_sample(&config, &rng, h, w, &p);
            CHECK(ctr_box_inside_(&p.crop, h, w));
            config.kernels = CTR_KERNELS_SCALAR;
            ctr_aug_apply(&config, &p, bytes, h, w, c, a, scratch);
            config.kernels = CTR_KERNELS_AUTO;
            memset(scratch, 0xFF, ctr_aug_scratch_size(&config, h, w, c)); /* all NaN */
            ctr_aug_apply(&config, &p, bytes, h, w, c, b, scratch);
            ctr_aug_apply_real(&config, &p, reals, h, w, c, d, scratch);
            worst = CTR_MAX_(worst, difference(a, b, n));
            worst = CTR_MAX_(worst, difference(a, d, n));
        }
        free(bytes);
        free(reals);
        free(a);
        free(b);
        free(d);
        free(scratch);
    }
    test_error("reference and best differ", worst, 2e-5);
}

/* Hue near and on the axes of the circle, where the sectors meet. */
static void test_hue_edges(ctr_ctx *ctx)
{
    static uint8_t bytes[7 * 7 * 7 * 3];
    static const uint8_t levels[7] = { 0, 1, 2, 127, 128, 254, 255 };
    static ctr_real a[7 * 7 * 7 * 3], b[7 * 7 * 7 * 3];
    setup s;
    int i, turn;
    for (i = 0; i < 343; i++) {
        bytes[3 * i] = levels[i % 7];
        bytes[3 * i + 1] = levels[i / 7 % 7];
        bytes[3 * i + 2] = levels[i / 49];
    }
    identity(&s, 49, 7);
    s.config.hue = 0.5;
    s.params.jitter = 1;
    for (turn = -12; turn <= 12; turn++) {
        s.params.factor[CTR_JITTER_HUE] = turn / 24.0;
        s.config.kernels = CTR_KERNELS_SCALAR;
        CHECK(ctr_aug_view(ctx, &s.config, &s.params, bytes, 49, 7, 3, a));
        s.config.kernels = CTR_KERNELS_AUTO;
        CHECK(ctr_aug_view(ctx, &s.config, &s.params, bytes, 49, 7, 3, b));
        CHECK(difference(a, b, 343 * 3) < 5e-6);
        /* a third of the circle exchanges the channels: red becomes green */
        if (turn == 8)
            for (i = 0; i < 343; i++)
                CHECK(fabs((double)b[3 * i + 1] - bytes[3 * i] / 255.0) < 2e-6);
    }
}

/* ---- sampling
 * ------------------------------------------------------------------------------------ */

static void test_sampling(void)
{
    enum { N = 40000 };
    ctr_aug_config config = ctr_aug_simclr_default(224);
    ctr_aug_params p, q;
    double share = 0, log_ratio = 0, small = 0, factor[4] = { 0, 0, 0, 0 }, sigma = 0;
    int i, k, flips = 0, jitters = 0, grays = 0, blurs = 0, solar = 0, first[4] = { 0, 0, 0, 0 };
    ctr_rng rng;
    config.solarize_p = 0.1;
    config.crop_max = 0.5; /* then nearly every first attempt fits, and shares are uniform */
    for (i = 0; i < N; i++) {
        ctr_rng_init(&rng, 3, CTR_STREAM_VIEW, 1, i, 0);
        ctr_aug_sample(&config, &rng, 1000, 1000, &p);
        if (i < 100) {
            ctr_rng_init(&rng, 3, CTR_STREAM_VIEW, 1, i, 0);
            ctr_aug_sample(&config, &rng, 1000, 1000, &q);
            CHECK(memcmp(&p, &q, sizeof p) == 0);
        }
        if (!ctr_box_inside_(&p.crop, 1000, 1000)) CHECK(!"the crop lies inside");
        share += (double)(p.crop.h * p.crop.w) / 1e6;
        small += (double)(p.crop.h * p.crop.w) / 1e6 < 0.185;
        log_ratio += log((double)p.crop.w / (double)p.crop.h);
        flips += p.flip;
        jitters += p.jitter;
        grays += p.gray;
        blurs += p.blur_sigma > 0;
        sigma += p.blur_sigma;
        solar += p.solarize;
        first[p.order[0]]++;
        for (k = 0; k < 4; k++) {
            factor[k] += p.factor[k];
            if (k < 3 && (p.factor[k] < 0.2 || p.factor[k] > 1.8)) CHECK(!"factors are in range");
        }
        if (fabs(p.factor[3]) > 0.2) CHECK(!"hue is in range");
        if (p.blur_sigma != 0 && (p.blur_sigma < 0.1 || p.blur_sigma > 2)) CHECK(!"sigma in range");
    }
    CHECK(fabs(share / N - 0.29) < 0.004);    /* 4 standard errors are 0.0025 */
    CHECK(fabs(small / N - 0.25) < 0.01);
    CHECK(fabs(log_ratio / N) < 0.005);
    CHECK(fabs(flips / (double)N - 0.5) < 0.01);
    CHECK(fabs(jitters / (double)N - 0.8) < 0.01);
    CHECK(fabs(grays / (double)N - 0.2) < 0.01);
    CHECK(fabs(blurs / (double)N - 0.5) < 0.01);
    CHECK(fabs(sigma / blurs - 1.05) < 0.02);
    CHECK(fabs(solar / (double)N - 0.1) < 0.01);
    for (k = 0; k < 4; k++) CHECK(fabs(first[k] / (double)N - 0.25) < 0.01);
    for (k = 0; k < 3; k++) CHECK(fabs(factor[k] / N - 1) < 0.01);
    CHECK(fabs(factor[3] / N) < 0.003);
    /* ratios that can never fit: the largest centred box with an allowed ratio */
    config = ctr_aug_simclr_default(32);
    config.crop_min = config.crop_max = 1;
    ctr_aug_sample(&config, &rng, 10, 1000, &p);
    CHECK(p.crop.h == 10 && p.crop.w == 13 && p.crop.top == 0 && p.crop.left == 493);
    ctr_aug_sample(&config, &rng, 1000, 10, &p);
    CHECK(p.crop.w == 10 && p.crop.h == 13 && p.crop.left == 0 && p.crop.top == 493);
    ctr_aug_sample(&config, &rng, 1, 65535, &p);
    CHECK(p.crop.h == 1 && p.crop.w == 1);
    ctr_aug_sample(&config, &rng, 1, 1, &p);
    CHECK(p.crop.h == 1 && p.crop.w == 1 && p.crop.top == 0 && p.crop.left == 0);
}

static void test_presets(ctr_ctx *ctx)
{
    ctr_aug_config small = ctr_aug_simclr_default(32), large = ctr_aug_simclr_default(224), none;
    ctr_aug_params p;
    ctr_rng rng;
    char text[320];
    CHECK(small.blur_p == 0 && fabs(small.hue - 0.1) < 1e-12 && fabs(small.contrast - 0.4) < 1e-12);
    CHECK(large.blur_p == 0.5 && fabs(large.hue - 0.2) < 1e-12 && ctr_aug_kernel_(&large) == 23);
    large.height = 96;
    CHECK(ctr_aug_kernel_(&large) == 11);
    CHECK(ctr_aug_config_check(ctx, &small) && ctr_aug_config_check(ctx, &large));
    none = ctr_aug_none_default(16);
    CHECK(ctr_aug_config_check(ctx, &none));
    ctr_rng_init(&rng, 1, CTR_STREAM_VIEW, 0, 0, 0);
    ctr_aug_sample(&none, &rng, 31, 32, &p);
    CHECK(p.crop.h == 31 && p.crop.w == 31 && p.crop.top == 0 && p.crop.left == 0);
    ctr_aug_sample(&none, &rng, 50, 20, &p);
    CHECK(p.crop.h == 20 && p.crop.w == 20 && p.crop.top == 15 && p.crop.left == 0);
    CHECK(!p.flip && !p.jitter && !p.gray && p.blur_sigma == 0 && !p.solarize);
    CHECK(strcmp(ctr_aug_describe(&small, text, sizeof text),
                 "32x32, crop 0.08..1 ratio 0.75..1.33 bicubic, flip 0.5, jitter 0.8 (0.4 0.4 0.4 "
                 "0.1), gray 0.2, blur 0 (5 px, sigma 0.1..2)") == 0);
    CHECK(strlen(ctr_aug_describe(&none, text, 20)) == 19);
}

/* ---- batches
 * ------------------------------------------------------------------------------------- */

static void test_batch(void)
{
    enum { N = 37, SIDE = 20, OUT = 16 };
    static uint8_t bytes[N * SIDE * SIDE * 3];
    static ctr_real reals[N * SIDE * SIDE * 3], out[3][N * OUT * OUT * 3], one[OUT * OUT * 3];
    ctr_aug_config config = ctr_aug_simclr_default(OUT);
    ctr_aug_params p;
    ctr_rng rng;
    int threads, i;
    fill_bytes("batch", bytes, sizeof bytes);
    for (i = 0; i < N * SIDE * SIDE * 3; i++) reals[i] = (ctr_real)bytes[i] / CTR_R(255.0);
    for (threads = 1; threads <= 3; threads++) {
        ctr_ctx *ctx = make_ctx(threads);
        size_t held = ctr_memory_stats(ctx).held;
        CHECK(ctr_aug_batch(ctx, &config, bytes, N, SIDE, SIDE, 3, 5, 100, 1, out[threads - 1]));
        CHECK(memcmp(out[0], out[threads - 1], sizeof out[0]) == 0);
        CHECK(ctr_memory_stats(ctx).held == held);
        ctr_ctx_destroy(ctx);
    }
    {
        ctr_ctx *ctx = make_ctx(2);
        ctr_rng_init(&rng, ctr_seed(ctx), CTR_STREAM_VIEW, 5, 100 + 20, 1);
        ctr_aug_sample(&config, &rng, SIDE, SIDE, &p);
        CHECK(ctr_aug_view(ctx, &config, &p, bytes + 20 * SIDE * SIDE * 3, SIDE, SIDE, 3, one));
        CHECK(memcmp(one, out[0] + 20 * OUT * OUT * 3, sizeof one) == 0);
        CHECK(ctr_aug_batch_real(ctx, &config, reals, N, SIDE, SIDE, 3, 5, 100, 1, out[1]));
        CHECK(difference(out[0], out[1], N * OUT * OUT * 3) < 2e-5);
        CHECK(ctr_aug_batch(ctx, &config, bytes, N, SIDE, SIDE, 3, 5, 100, 2, out[1]));
        CHECK(memcmp(out[0], out[1], sizeof out[0]) != 0);
        CHECK(ctr_aug_batch(ctx, &config, bytes, 0, SIDE, SIDE, 3, 5, 100, 2, out[1]));
        ctr_ctx_destroy(ctx);
    }
}

/* ---- refusals
 * ------------------------------------------------------------------------------------ */

static void set_bits(ctr_real *x, int infinite)
{
#if CTR_REAL_IS_FLOAT_
    uint32_t bits = infinite ? 0x7f800000u : 0x7fc00000u;
#else
    uint64_t bits = infinite ? 0x7ff0000000000000u : 0x7ff8000000000000u;
#endif
    memcpy(x, &bits, sizeof bits);
}

static void test_refusals(ctr_ctx *ctx)
{
    static ctr_real x[2 * 4 * 4 * 3], out[2 * 4 * 4 * 3];
    static uint8_t bytes[4 * 4 * 3];
    const double zero[3] = { 0, 0, 0 };
    ctr_aug_config config = ctr_aug_simclr_default(4), bad;
    ctr_box box;
    setup s;
    int i;
    for (i = 0; i < 96; i++) x[i] = CTR_R(0.5);
    set_bits(&x[48 + (2 * 4 + 1) * 3 + 2], 0);
    CHECK(!ctr_aug_batch_real(ctx, &config, x, 2, 4, 4, 3, 0, 0, 0, out));
    CHECK(refused(ctx, CTR_E_NUMBER, "image 1 is not finite at row 2, column 1, channel 2"));
    CHECK(ctr_aug_batch_real(ctx, &config, x, 1, 4, 4, 3, 0, 0, 0, out));
    set_bits(&x[0], 1);
    CHECK(!ctr_aug_brightness(ctx, x, 4, 4, 3, 1));
    CHECK(refused(ctx, CTR_E_NUMBER, "row 0"));
    x[0] = 0;
    CHECK(!ctr_aug_contrast(ctx, x, 4, 4, 2, 1) && refused(ctx, CTR_E_SHAPE, "4 x 4 x 2"));
    CHECK(!ctr_aug_saturation(ctx, x, 0, 4, 3, 1) && refused(ctx, CTR_E_SHAPE, "sides"));
    CHECK(!ctr_aug_contrast(ctx, x, 4, 4, 3, -1) && refused(ctx, CTR_E_VALUE, "factor"));
    CHECK(!ctr_aug_hue(ctx, x, 4, 4, 3, 0.6) && refused(ctx, CTR_E_VALUE, "0.6"));
    CHECK(!ctr_aug_blur(ctx, x, 4, 4, 3, 4, 1) && refused(ctx, CTR_E_VALUE, "odd"));
    CHECK(!ctr_aug_blur(ctx, x, 4, 4, 3, 3, 0) && refused(ctx, CTR_E_VALUE, "factor"));
    CHECK(!ctr_aug_normalize(ctx, x, 4, 4, 3, zero, zero) && refused(ctx, CTR_E_VALUE, "std"));
    box.top = 0;
    box.left = 2;
    box.h = 4;
    box.w = 3;
    CHECK(!ctr_aug_resized_crop(ctx, x, 4, 4, 3, &box, 4, 4, CTR_INTERP_BILINEAR, out));
    CHECK(refused(ctx, CTR_E_VALUE, "left 2, h 4, w 3) leaves the image of 4 x 4"));
    identity(&s, 4, 4);
    s.params.crop.top = -1;
    CHECK(!ctr_aug_view(ctx, &s.config, &s.params, bytes, 4, 4, 3, out));
    CHECK(refused(ctx, CTR_E_VALUE, "top -1"));
    s.params.crop.top = INT64_MAX;
    CHECK(!ctr_aug_view(ctx, &s.config, &s.params, bytes, 4, 4, 3, out));
    CHECK(refused(ctx, CTR_E_VALUE, "leaves"));
    s.params.crop.top = 0;
    s.params.jitter = 1;
    s.params.order[0] = 2;
    CHECK(!ctr_aug_view(ctx, &s.config, &s.params, bytes, 4, 4, 3, out));
    CHECK(refused(ctx, CTR_E_VALUE, "permutation"));
    CHECK(!ctr_aug_batch(ctx, &config, bytes, -1, 4, 4, 3, 0, 0, 0, out));
    CHECK(refused(ctx, CTR_E_SHAPE, "-1 images"));
#define REFUSES(member, value, word)                                                               \
    bad = config;                                                                                  \
    bad.member = value;                                                                            \
    CHECK(!ctr_aug_batch(ctx, &bad, bytes, 1, 4, 4, 3, 0, 0, 0, out));                             \
    CHECK(refused(ctx, CTR_E_VALUE, word))
    REFUSES(height, 0, "height");
    REFUSES(width, 70000, "width");
    REFUSES(crop_min, 0, "crop");
    REFUSES(crop_max, 0.01, "crop");
    REFUSES(crop_max, 1.5, "crop");
    REFUSES(ratio_min, 0, "ratio");
    REFUSES(flip_p, 1.1, "flip_p");
    REFUSES(jitter_p, -0.1, "jitter_p");
    REFUSES(brightness, -1, "brightness");
    REFUSES(contrast, 1e9, "contrast");
    REFUSES(saturation, -1, "saturation");
    REFUSES(hue, 0.51, "hue");
    REFUSES(gray_p, 2, "gray_p");
    REFUSES(blur_p, 2, "blur_p");
    REFUSES(blur_sigma_min, 0, "blur_sigma");
    REFUSES(blur_kernel, 4, "blur_kernel");
    REFUSES(blur_kernel, 257, "blur_kernel");
    REFUSES(solarize_p, 2, "solarize_p");
    REFUSES(solarize_threshold, 2, "solarize_threshold");
    REFUSES(std[1], 0, "std");
    /* after an error nothing happens */
    CHECK(!ctr_aug_hue(ctx, x, 4, 4, 3, 9));
    x[0] = CTR_R(0.25);
    CHECK(!ctr_aug_brightness(ctx, x, 4, 4, 3, 0) && x[0] == CTR_R(0.25));
    ctr_error_clear(ctx);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_aug", argc, argv);
    ctx = make_ctx(2);
    test_group("torchvision's values, alone and as views of both kernel sets");
    test_golden(ctx);
    test_exact(ctx);
    test_group("blur");
    test_blur(ctx);
    test_group("reference and best kernels");
    test_kernels();
    test_hue_edges(ctx);
    test_group("sampling");
    test_sampling();
    test_group("presets");
    test_presets(ctx);
    test_group("batches by 1, 2, 3 threads");
    test_batch();
    test_group("refusals");
    test_refusals(ctx);
    test_fine(ctx, "nothing is pending");
    ctr_ctx_destroy(ctx);
    return test_end();
}
