/* Tests of the section POLICY: every operation against Pillow's bytes as torchvision calls it, the
   ranges and learned pairs against torchvision's (golden_policy.txt), sampling, the place in a
   view, threads and refusals.
   run: float double asan smoke */
#include "test.h"

static uint8_t image[20 * 28 * 3];

/* The pictures of golden_policy.txt. */
static void make_image(const char *name, int64_t *h, int64_t *w, int64_t *c)
{
    uint32_t seed = golden_fnv(name);
    int noise = strcmp(name, "noise") == 0;
    int64_t i;
    *h = noise ? 13 : 20;
    *w = noise ? 17 : 28;
    *c = strcmp(name, "gray") == 0 ? 1 : 3;
    for (i = 0; i < *h * *w * *c; i++) {
        int v = (int)(((uint64_t)golden_bits(seed, (size_t)i) * 255u) >> 24);
        image[i] = (uint8_t)(noise ? v : v * 9 / 16 + 40 + 10 * (int)(i % *c));
    }
}

static ctr_op op_of(const char *name)
{
    int op = 0;
    while (op < CTR_OP_COUNT && strcmp(ctr_op_name((ctr_op)op), name) != 0) op++;
    return (ctr_op)op;
}

static void one_step(ctr_policy_params *p, ctr_op op, double value)
{
    memset(p, 0, sizeof *p);
    p->count = 1;
    p->step[0].op = op;
    p->step[0].value = value;
}

/* ---- golden values --------------------------------------------------------------------------- */

static void test_operations(ctr_ctx *ctx, golden_file *g)
{
    int seen[CTR_OP_COUNT] = { 0 }, missing = 0, op;
    size_t i;
    test_group("operations against Pillow");
    for (i = 0; i < g->count; i++) {
        char name[16], key[32];
        double value, worst;
        double got[20 * 28 * 3];
        int64_t h, w, c, k;
        ctr_policy_params p;
        if (sscanf(g->records[i].key, "%15[a-z]:%31[a-z_]:%lf", name, key, &value) != 3) continue;
        make_image(name, &h, &w, &c);
        one_step(&p, op_of(key), value);
        if (!test_true(g->records[i].key, ctr_policy_image(ctx, &p, image, h, w, c))) continue;
        for (k = 0; k < h * w * c; k++) got[k] = image[k];
        worst = golden_array_error(g, g->records[i].key, got, (size_t)(h * w * c));
        test_error(g->records[i].key, worst, p.step[0].op == CTR_OP_AUTO_CONTRAST ? 1 : 0);
        seen[p.step[0].op]++;
    }
    for (op = 0; op < CTR_OP_CUTOUT; op++) missing += !seen[op];
    test_equal("operations without a golden value", missing, 0);
}

/* The value that each kind draws for an operation at a level, found by drawing until it comes. */
static double drawn_value(const ctr_policy *policy, ctr_op op, int level, ctr_policy_params *p)
{
    ctr_rng rng;
    int64_t i;
    for (i = 0; i < 20000; i++) {
        int k, lev = level;
        ctr_rng_init(&rng, 7, CTR_STREAM_VIEW, 0, i, 0);
        ctr_policy_sample(policy, &rng, 37, 53, p);
        for (k = 0; k < p->count; k++) {
            if (policy->kind >= CTR_POLICY_CIFAR10) {
                double share;
                int first = ctr_policy_pair(policy->kind, p->pair, 0, &share, &lev) == op;
                if (!first) ctr_policy_pair(policy->kind, p->pair, 1, &share, &lev);
            }
            if (p->step[k].op == op && lev == level) return p->step[k].value;
        }
    }
    return GOLDEN_BAD;
}

static double magnitude(ctr_op op, double value)
{
    if (op >= CTR_OP_BRIGHTNESS && op <= CTR_OP_SHARPNESS) value -= 1;
    return op == CTR_OP_POSTERIZE || op == CTR_OP_SOLARIZE ? value : fabs(value);
}

/* RandAugment at every level of its 31; AutoAugment at the levels of its 25 pairs. torchvision
   keeps its ranges in float. */
static void test_ranges(golden_file *g)
{
    ctr_policy policy = ctr_policy_default(CTR_POLICY_RANDAUGMENT);
    ctr_policy_params p;
    int op, level;
    test_group("ranges against torchvision");
    for (op = CTR_OP_SHEAR_X; op <= CTR_OP_SOLARIZE; op++) {
        char key[64];
        size_t count;
        const double *want;
        snprintf(key, sizeof key, "rand:%s", ctr_op_name((ctr_op)op));
        want = golden_get(g, key, &count);
        for (level = 0; want && level < 31; level++) {
            double got;
            policy.m = level;
            got = magnitude((ctr_op)op, drawn_value(&policy, (ctr_op)op, level, &p));
            test_error(key, fabs(got - want[level]), 1e-4);
        }
    }
}

/* Which levels TrivialAugment draws is known from its values alone: all 31. */
static void test_wide(golden_file *g)
{
    ctr_policy policy = ctr_policy_default(CTR_POLICY_TRIVIAL);
    ctr_policy_params p;
    ctr_rng rng;
    int seen[CTR_OP_COUNT][31] = { { 0 } }, op, level, missing = 0, strange = 0;
    int64_t i;
    for (i = 0; i < 20000; i++) {
        char key[64];
        size_t count, hit = 0, k;
        const double *want;
        double v;
        ctr_rng_init(&rng, 11, CTR_STREAM_VIEW, 0, i, 0);
        ctr_policy_sample(&policy, &rng, 37, 53, &p);
        op = (int)p.step[0].op;
        if (p.count != 1 || op > CTR_OP_EQUALIZE) strange++;
        if (op < CTR_OP_SHEAR_X || op > CTR_OP_SOLARIZE) continue;
        snprintf(key, sizeof key, "wide:%s", ctr_op_name((ctr_op)op));
        want = golden_get(g, key, &count);
        v = magnitude((ctr_op)op, p.step[0].value);
        for (k = 0; want && k < count; k++)
            if (fabs(v - want[k]) < 1e-4) seen[op][k] = 1, hit = 1;
        strange += !hit;
    }
    for (op = CTR_OP_SHEAR_X; op <= CTR_OP_SOLARIZE; op++)
        for (level = 0; level < 31; level++) missing += !seen[op][level];
    test_equal("TrivialAugment: draws that torchvision's does not have", strange, 0);
    test_equal("TrivialAugment: levels that never come", missing, 0);
}

static void test_pairs(golden_file *g)
{
    static const char *const key[3] = { "pairs:cifar10", "pairs:svhn", "pairs:imagenet" };
    int kind, i, level;
    double got[150], p;
    ctr_policy_params drawn;
    test_group("AutoAugment's pairs against torchvision's");
    for (kind = 0; kind < 3; kind++) {
        ctr_policy policy = ctr_policy_default((ctr_policy_kind)(CTR_POLICY_CIFAR10 + kind));
        for (i = 0; i < 50; i++) {
            got[3 * i] = ctr_policy_pair(policy.kind, i / 2, i % 2, &p, &level);
            got[3 * i + 1] = p;
            got[3 * i + 2] = level;
        }
        test_error(key[kind], golden_array_error(g, key[kind], got, 150), 1e-12);
        for (i = 0; i < 50; i++) { /* their values, for the pairs that are done often enough */
            char name[64];
            size_t count;
            const double *want;
            ctr_op op = (ctr_op)(int)got[3 * i];
            snprintf(name, sizeof name, "tens:%s", ctr_op_name(op));
            if (got[3 * i + 1] < 0.15 || op < CTR_OP_SHEAR_X || op > CTR_OP_SOLARIZE) continue;
            if (got[6 * (i / 2)] == got[6 * (i / 2) + 3]) continue; /* one operation twice */
            want = golden_get(g, name, &count);
            level = (int)got[3 * i + 2];
            if (want)
                test_error(name, fabs(magnitude(op, drawn_value(&policy, op, level, &drawn)) -
                                      want[level]), 1e-4);
        }
    }
    test_equal("no pair 25", ctr_policy_pair(CTR_POLICY_SVHN, 25, 0, &p, &level), CTR_OP_COUNT);
    test_equal("no pairs of RandAugment", ctr_policy_pair(CTR_POLICY_RANDAUGMENT, 0, 0, &p, &level),
               CTR_OP_COUNT);
}

/* ---- sampling -------------------------------------------------------------------------------- */

/* Counts of 28,000 draws against what they should be, in standard deviations. */
static void test_frequencies(void)
{
    ctr_policy policy = ctr_policy_default(CTR_POLICY_RANDAUGMENT);
    ctr_policy_params p;
    ctr_rng rng;
    int count[CTR_OP_COUNT] = { 0 }, pair[25] = { 0 }, first = 0, zeroth = 0, minus = 0, signs = 0;
    int n = 28000, i, k;
    double worst = 0, chance;
    test_group("frequencies, in standard deviations");
    policy.n = 7;
    for (i = 0; i < n / 7; i++) {
        ctr_rng_init(&rng, 3, CTR_STREAM_VIEW, 1, i, 0);
        ctr_policy_sample(&policy, &rng, 32, 32, &p);
        for (k = 0; k < p.count; k++) {
            count[p.step[k].op]++;
            if (p.step[k].op != CTR_OP_ROTATE) continue;
            signs++;
            minus += p.step[k].value < 0;
        }
    }
    chance = (double)n / 14;
    for (k = 0; k <= CTR_OP_EQUALIZE; k++)
        worst = fmax(worst, fabs(count[k] - chance) / sqrt(chance * 13 / 14));
    test_error("operations of RandAugment", worst, 4.5);
    test_error("signs", fabs(minus - 0.5 * signs) / sqrt(0.25 * signs), 4.5);
    policy.kind = CTR_POLICY_IMAGENET; /* pair 0 is posterize with 0.4, rotate with 0.6 */
    for (i = 0, worst = 0; i < n; i++) {
        ctr_rng_init(&rng, 4, CTR_STREAM_VIEW, 1, i, 0);
        ctr_policy_sample(&policy, &rng, 32, 32, &p);
        pair[p.pair]++;
        zeroth += p.pair == 0;
        first += p.pair == 0 && p.count > 0 && p.step[0].op == CTR_OP_POSTERIZE;
    }
    for (k = 0; k < 25; k++)
        worst = fmax(worst, fabs(pair[k] - n / 25.0) / sqrt(n / 25.0 * 24 / 25));
    test_error("pairs of AutoAugment", worst, 4.5);
    test_error("the probability in a pair", fabs(first - 0.4 * zeroth) / sqrt(0.24 * zeroth), 4.5);
}

static void test_cutout(ctr_ctx *ctx)
{
    ctr_policy policy = ctr_policy_default(CTR_POLICY_RANDAUGMENT);
    ctr_policy_params p;
    ctr_rng rng;
    int i, corner = 0, outside = 0, wrong = 0;
    uint8_t x[9 * 11 * 3];
    test_group("cutout");
    policy.n = 1;
    policy.cutout = 4;
    policy.fill = 77;
    for (i = 0; i < 2000; i++) {
        const ctr_policy_step *s = &p.step[1];
        int64_t y, at, k;
        ctr_rng_init(&rng, 5, CTR_STREAM_VIEW, 1, i, 0);
        ctr_policy_sample(&policy, &rng, 9, 11, &p);
        if (p.count != 2 || s->op != CTR_OP_CUTOUT || s->value != 4) wrong++;
        outside += s->x < 0 || s->x > 10 || s->y < 0 || s->y > 8;
        corner += s->x == 10 && s->y == 8;
        p.step[0].op = CTR_OP_IDENTITY;
        memset(x, 5, sizeof x);
        if (!ctr_policy_image(ctx, &p, x, 9, 11, 3)) wrong++;
        for (y = 0; y < 9; y++)
            for (at = 0; at < 11; at++)
                for (k = 0; k < 3; k++) {
                    int in = y >= s->y - 2 && y < s->y + 2 && at >= s->x - 2 && at < s->x + 2;
                    wrong += x[(y * 11 + at) * 3 + k] != (in ? 77 : 5);
                }
    }
    test_equal("pixels inside and outside of the square", wrong, 0);
    test_equal("centres outside", outside, 0);
    test_true("the last pixel is a centre, too", corner > 5 && corner < 60);
}

/* ---- in a view ------------------------------------------------------------------------------- */

/* A view with a policy is the view without, in bytes, through the drawn operations. */
static void test_view(ctr_ctx *ctx)
{
    ctr_aug_config config = ctr_aug_simclr_default(16), plain;
    ctr_aug_params params;
    ctr_real with[16 * 16 * 3], without[16 * 16 * 3];
    uint8_t bytes[16 * 16 * 3];
    int64_t h, w, c, i, at;
    double worst = 0, most = 0;
    char text[384];
    test_group("a policy in a view");
    make_image("dim", &h, &w, &c);
    config.jitter_p = config.gray_p = 0;
    ctr_policy_init(&config.policy, CTR_POLICY_CIFAR10);
    config.policy.cutout = 8;
    plain = config;
    plain.policy.kind = CTR_POLICY_NONE;
    test_true("describe", strstr(ctr_aug_describe(&config, text, sizeof text),
                                 ", AutoAugment CIFAR-10 cutout 8") != NULL);
    for (i = 0; i < 60; i++) {
        ctr_aug_params nothing;
        ctr_rng rng, again;
        ctr_rng_init(&rng, 9, CTR_STREAM_VIEW, 0, i, 0);
        again = rng;
        ctr_aug_sample(&config, &rng, h, w, &params);
        ctr_aug_sample(&plain, &again, h, w, &nothing);
        test_true("the crop does not change", memcmp(&params.crop, &nothing.crop,
                                                     sizeof params.crop) == 0);
        test_true("view", ctr_aug_view(ctx, &config, &params, image, h, w, c, with));
        test_true("plain view", ctr_aug_view(ctx, &plain, &nothing, image, h, w, c, without));
        for (at = 0; at < 16 * 16 * 3; at++)
            bytes[at] = (uint8_t)(without[at] * 255 + (ctr_real)0.5);
        ctr_policy_image(ctx, &params.policy, bytes, 16, 16, 3);
        for (at = 0; at < 16 * 16 * 3; at++) {
            worst = fmax(worst, fabs((double)with[at] - bytes[at] / 255.0));
            most = fmax(most, fabs((double)with[at] - (double)without[at]));
        }
    }
    test_error("difference", worst, 1e-6);
    test_true("something happened", most > 0.3);
}

static void test_threads_same(void)
{
    static uint8_t pixels[40 * 20 * 28 * 3];
    static ctr_real out[2][40 * 16 * 16 * 3];
    ctr_aug_config config = ctr_aug_simclr_default(16);
    int64_t h, w, c, i;
    int t;
    make_image("dim", &h, &w, &c);
    for (i = 0; i < 40; i++) memcpy(pixels + i * h * w * c, image, (size_t)(h * w * c));
    ctr_policy_init(&config.policy, CTR_POLICY_RANDAUGMENT);
    for (t = 0; t < 2; t++) {
        ctr_ctx *ctx = test_ctx(t ? 3 : 1, CTR_KERNELS_AUTO);
        ctr_aug_batch(ctx, &config, pixels, 40, h, w, c, 2, 100, 1, out[t]);
        test_text("no error", ctr_error_text(ctx), "");
        ctr_ctx_destroy(ctx);
    }
    test_bytes("1 and 3 threads", out[0], out[1], sizeof out[0]);
    test_true("images differ", memcmp(out[0], out[0] + 16 * 16 * 3, sizeof out[0] / 40) != 0);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refusals(ctr_ctx *ctx)
{
    ctr_policy a, b = ctr_policy_default(CTR_POLICY_RANDAUGMENT);
    ctr_policy_params p;
    char text[64];
    int64_t h, w, c;
    test_group("refusals");
    memset(&a, 0, sizeof a);
    test_true("all zeros are no policy", ctr_policy_check(ctx, &a));
    test_text("none", ctr_policy_describe(&a, text, sizeof text), "none");
    ctr_policy_init(&a, CTR_POLICY_RANDAUGMENT);
    test_bytes("default and init", &a, &b, sizeof a);
    test_text("describe", ctr_policy_describe(&a, text, sizeof text), "RandAugment 2 x 9/30");
    b.m = 31;
    test_true("m", !ctr_policy_check(ctx, &b) && test_fails(ctx, "m", CTR_E_VALUE, "m must be"));
    b.m = 9;
    b.n = 8;
    test_true("n", !ctr_policy_check(ctx, &b) && test_fails(ctx, "n", CTR_E_VALUE, "n must be"));
    b.kind = (ctr_policy_kind)9;
    test_true("kind", !ctr_policy_check(ctx, &b) && test_fails(ctx, "kind", CTR_E_VALUE, "kind"));
    make_image("noise", &h, &w, &c);
    one_step(&p, CTR_OP_POSTERIZE, 0);
    test_true("bits", !ctr_policy_image(ctx, &p, image, h, w, c) &&
                          test_fails(ctx, "bits", CTR_E_VALUE, "posterize must be 1..8"));
    one_step(&p, CTR_OP_CUTOUT, 5);
    p.step[0].x = w;
    test_true("centre", !ctr_policy_image(ctx, &p, image, h, w, c) &&
                            test_fails(ctx, "centre", CTR_E_VALUE, "centre"));
    one_step(&p, CTR_OP_ROTATE, sqrt(-1.0));
    test_true("no number", !ctr_policy_image(ctx, &p, image, h, w, c) &&
                               test_fails(ctx, "no number", CTR_E_VALUE, "rotate"));
    one_step(&p, CTR_OP_INVERT, 0);
    test_true("channels", !ctr_policy_image(ctx, &p, image, h, w, 2) &&
                              test_fails(ctx, "channels", CTR_E_SHAPE, "channels 1 or 3"));
    p.count = 9;
    test_true("count", !ctr_policy_image(ctx, &p, image, h, w, c) &&
                           test_fails(ctx, "count", CTR_E_VALUE, "count"));
}

/* One pixel, one row: nothing to smooth, nothing to stretch, and no read outside. */
static void test_small(ctr_ctx *ctx)
{
    int op, size;
    test_group("images of a pixel and of a row");
    for (op = 0; op < CTR_OP_CUTOUT; op++)
        for (size = 1; size <= 5; size += 4) {
            uint8_t x[5] = { 9, 200, 30, 30, 90 }, scratch[5];
            ctr_policy_params p;
            one_step(&p, (ctr_op)op, op == CTR_OP_POSTERIZE ? 8 : op == CTR_OP_SOLARIZE ? 256 : 1);
            if (op <= CTR_OP_ROTATE) p.step[0].value = 0;
            ctr_policy_apply(&p, x, 1, size, 1, scratch);
            test_equal(ctr_op_name((ctr_op)op), x[0], op == CTR_OP_INVERT ? 246
                       : op == CTR_OP_AUTO_CONTRAST && size > 1 ? 0 : 9);
        }
    test_true("no error", ctr_error(ctx) == CTR_OK);
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    golden_file g;
    test_begin("test_policy", argc, argv);
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    if (!test_golden_open(&g, "golden_policy.txt")) return test_end();
    test_operations(ctx, &g);
    test_ranges(&g);
    test_wide(&g);
    test_pairs(&g);
    test_frequencies();
    test_cutout(ctx);
    test_view(ctx);
    test_threads_same();
    test_refusals(ctx);
    test_small(ctx);
    golden_close(&g);
    ctr_ctx_destroy(ctx);
    return test_end();
}
