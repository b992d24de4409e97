/* Tests of the section MIX: Beta numbers against the distribution, mixed images and targets against
   torchvision's (golden_policy.txt), the losses against soft targets written out, gradients, and
   methods of two views around which it is put.
   run: float double asan smoke */
#include "model.h"

/* ---- lambda ---------------------------------------------------------------------------------- */

/* P(X <= x) of Beta(a, a) for x <= 1/2, but for the constant, by Simpson's rule: the integral of
   (u (1 - u))^(a - 1), or for a < 1, where that has a pole, with u = t^(1/a) that of
   (1 - t^(1/a))^(a - 1) / a. */
static double beta_part(double a, double x)
{
    double end = a < 1 ? pow(x, a) : x, sum = 0;
    int i, n = 2000;
    for (i = 0; i <= n; i++) {
        double t = end * i / n;
        double f = a < 1 ? pow(1 - pow(t, 1 / a), a - 1) : pow(t * (1 - t), a - 1);
        sum += f * (i == 0 || i == n ? 1 : i % 2 ? 4 : 2);
    }
    return sum * end / n;
}

static double beta_below(double a, double x)
{
    if (x > 0.5) return 1 - beta_below(a, 1 - x);
    return x <= 0 ? 0 : 0.5 * beta_part(a, x) / beta_part(a, 0.5);
}

/* Draws counted in 20 bins against the probabilities; chi-square of 19 degrees: 43.8 is 0.1 %. */
static void test_beta(void)
{
    static const double alphas[7] = { 0.05, 0.2, 0.5, 1, 1.5, 4, 64 };
    int a, i, n = 20000;
    test_group("Beta(alpha, alpha), chi-square of 19 degrees");
    test_error("the integral is that of alpha 2", fabs(beta_below(2, 0.3) - 0.216), 1e-9);
    for (a = 0; a < 7; a++) {
        int count[20] = { 0 }, outside = 0;
        double chi = 0;
        char name[64];
        ctr_rng rng;
        for (i = 0; i < n; i++) {
            double x;
            ctr_rng_init(&rng, 21, CTR_STREAM_USER, a, i, 0);
            x = ctr_rng_beta(&rng, alphas[a]);
            outside += !(x >= 0 && x <= 1);
            count[x >= 1 ? 19 : (int)(x * 20)]++;
        }
        for (i = 0; i < 20; i++) {
            double p = beta_below(alphas[a], (i + 1) / 20.0) - beta_below(alphas[a], i / 20.0);
            if (p * n < 5) continue;
            chi += (count[i] - p * n) * (count[i] - p * n) / (p * n);
        }
        snprintf(name, sizeof name, "alpha %g", alphas[a]);
        test_equal("numbers outside 0..1", outside, 0);
        test_error(name, chi, 43.8);
    }
}

static void test_sample(void)
{
    ctr_mix_config config = ctr_mix_default(CTR_MIX_CUTMIX), again;
    ctr_mix_params p;
    int32_t order[37];
    int i, k, wrong = 0, fixed = 0, clipped = 0;
    ctr_rng rng;
    test_group("sampling");
    memset(&again, 0x55, sizeof again);
    ctr_mix_config_init(&again, CTR_MIX_CUTMIX);
    test_true("default and init", again.kind == config.kind && again.alpha == config.alpha);
    for (i = 0; i < 2000; i++) {
        int seen[37] = { 0 };
        ctr_rng_init(&rng, 2, CTR_STREAM_USER, 0, i, 0);
        ctr_mix_sample(&config, &rng, 37, 13, 17, &p, order);
        for (k = 0; k < 37; k++) wrong += order[k] < 0 || order[k] > 36 || seen[order[k]]++;
        fixed += order[5] == 5;
        wrong += p.box.top < 0 || p.box.left < 0 || p.box.h < 0 || p.box.w < 0 ||
                 p.box.top + p.box.h > 13 || p.box.left + p.box.w > 17;
        wrong += fabs(p.lambda - (1 - (double)(p.box.h * p.box.w) / (13 * 17))) > 1e-12;
        clipped += p.box.h % 2;
    }
    test_equal("no permutation, box outside, or lambda not its share", wrong, 0);
    test_true("an image stays in its place 1 time in 37", fixed > 20 && fixed < 100);
    test_true("boxes are clipped", clipped > 50);
}

/* ---- images, targets ------------------------------------------------------------------------- */

static void test_images(ctr_ctx *ctx)
{
    static const char *const name[2] = { "mixup", "cutmix" };
    const int32_t order[4] = { 3, 0, 1, 2 }, labels[4] = { 2, 0, 1, 2 }, bad[4] = { 0, 4, 1, 2 };
    int64_t shape[4] = { 4, 5, 7, 3 };
    ctr_real x[4 * 5 * 7 * 3], y[4 * 5 * 7 * 3];
    double target[12];
    golden_file g;
    int k, i;
    test_group("images and targets against torchvision's");
    if (!test_golden_open(&g, "golden_policy.txt")) return;
    test_fill_real("mix.x", x, 420, 1);
    for (k = 0; k < 2; k++) {
        ctr_mix_params p;
        ctr_tensor *t;
        char key[16];
        memset(&p, 0, sizeof p);
        p.kind = k ? CTR_MIX_CUTMIX : CTR_MIX_MIXUP;
        p.lambda = k ? 1 - 12.0 / 35 : 0.3;
        p.box.top = 1;
        p.box.left = 2;
        p.box.h = 3;
        p.box.w = 4;
        ctr_step_begin(ctx);
        t = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
        ctr_tensor_write(ctx, t, x, 420);
        ctr_tensor_read(ctx, ctr_mix_images(ctx, &p, t, order), y, 420);
        test_error(name[k], test_digest(&g, name[k], y, 420, 0), test_bound(1e-12, 1e-6));
        t = ctr_mix_targets(ctx, &p, 4, labels, order, 3);
        ctr_tensor_read(ctx, t, y, 12);
        for (i = 0; i < 12; i++) target[i] = (double)y[i];
        snprintf(key, sizeof key, "%s:y", name[k]);
        test_error(key, golden_array_error(&g, key, target, 12), 1e-6);
        ctr_mix_targets(ctx, &p, 4, labels, order, 2);
        test_fails(ctx, "a label too large", CTR_E_VALUE, "label below 2");
        t = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
        ctr_mix_images(ctx, &p, t, bad);
        test_fails(ctx, "an order with a 4", CTR_E_VALUE, "order of 4");
        ctr_step_end(ctx);
    }
    golden_close(&g);
}

/* ---- losses ---------------------------------------------------------------------------------- */

#define N 7
#define D 5

static double dot_unit(const double *a, const double *b)
{
    double ab = 0, aa = 0, bb = 0;
    int i;
    for (i = 0; i < D; i++) {
        ab += a[i] * b[i];
        aa += a[i] * a[i];
        bb += b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

/* Cross entropy of row i of 2N with soft targets over all other rows: lambda at j = i +- N, the
   rest at the partner by `order`. Columns from `low` on count (N: keys alone). */
static double soft_target(const double *z, int i, int low, double lambda, const int32_t *order,
                          double t)
{
    int second = 0, j, first = i < N ? i + N : i - N;
    double sum = 0;
    for (j = 0; j < N; j++)
        if (i < N ? j == i : order[j] == i - N) second = i < N ? order[j] + N : j;
    for (j = low; j < 2 * N; j++) sum += j == i ? 0 : exp(dot_unit(z + i * D, z + j * D) / t);
    return log(sum) - (lambda * dot_unit(z + i * D, z + first * D) +
                       (1 - lambda) * dot_unit(z + i * D, z + second * D)) / t;
}

static const int32_t turn[N] = { 4, 1, 6, 0, 2, 3, 5 };

typedef struct loss_case {
    ctr_tensor *z; /* [2N, D] */
    int infonce;
} loss_case;

static ctr_tensor *mixed_loss(ctr_ctx *ctx, void *user)
{
    loss_case *l = (loss_case *)user;
    if (!l->infonce) return ctr_loss_nt_xent_mix(ctx, l->z, 0.3, turn, 0.4);
    return ctr_loss_infonce_mix(ctx, ctr_slice(ctx, l->z, 0, 0, N), ctr_slice(ctx, l->z, 0, N, N),
                                NULL, 0.3, turn, 0.4);
}

static void test_losses(ctr_ctx *ctx)
{
    int64_t shape[2] = { 2 * N, D };
    double z[2 * N * D], want[2] = { 0, 0 };
    ctr_real real[2 * N * D];
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    int i, k;
    test_group("losses against soft targets");
    test_fill("mix.z", z, 2 * N * D, 1);
    for (i = 0; i < 2 * N * D; i++) real[i] = (ctr_real)z[i];
    ctr_tensor_write(ctx, t, real, 2 * N * D);
    for (i = 0; i < 2 * N; i++) want[0] += soft_target(z, i, 0, 0.3, turn, 0.4) / (2 * N);
    for (i = 0; i < N; i++) want[1] += soft_target(z, i, N, 0.3, turn, 0.4) / N;
    for (k = 0; k < 2; k++) {
        double got;
        loss_case l;
        l.z = t;
        l.infonce = k;
        ctr_step_begin(ctx);
        got = (double)ctr_tensor_item(ctx, mixed_loss(ctx, &l));
        ctr_step_end(ctx);
        test_error(k ? "InfoNCE" : "NT-Xent", fabs(got - want[k]), test_bound(1e-10, 1e-5));
        if (TEST_DOUBLE)
            test_error("gradient", ctr_gradient_check(ctx, mixed_loss, &l, t, 1e-5, 0), 1e-6);
    }
    ctr_step_begin(ctx);
    ctr_loss_nt_xent_mix(ctx, t, 1.5, turn, 0.4);
    test_fails(ctx, "lambda 1.5", CTR_E_VALUE, "lambda must be 0..1");
    ctr_loss_infonce_mix(ctx, t, t, NULL, sqrt(-1.0), turn, 0.4);
    test_fails(ctx, "lambda that is no number", CTR_E_VALUE, "lambda must be 0..1");
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
}

/* ---- methods --------------------------------------------------------------------------------- */

static const char *const method_names[6] = { "simclr", "moco", "byol", "simsiam", "barlow twins",
                                             "vicreg" };

static ctr_method *make_method(ctr_ctx *ctx, int which)
{
    ctr_resnet_config net = ctr_resnet_config_default(8);
    net.width = 4;
    net.image_size = 8;
    if (which == 0) {
        ctr_simclr_config c = ctr_simclr_default();
        c.encoder = net;
        c.proj_dim = 8;
        return ctr_simclr_create(ctx, &c);
    }
    if (which == 1) {
        ctr_moco_config c = ctr_moco_default(2);
        c.encoder = net;
        c.proj_dim = 8;
        c.queue = 32;
        c.split_norm = 2;
        return ctr_moco_create(ctx, &c);
    }
    if (which == 2) {
        ctr_byol_config c = ctr_byol_default();
        c.encoder = net;
        c.proj_hidden = c.pred_hidden = c.proj_dim = 8;
        return ctr_byol_create(ctx, &c);
    }
    if (which == 3) {
        ctr_simsiam_config c = ctr_simsiam_default();
        c.encoder = net;
        c.proj_dim = c.pred_hidden = 8;
        return ctr_simsiam_create(ctx, &c);
    }
    if (which == 4) {
        ctr_barlow_twins_config c = ctr_barlow_twins_default();
        c.encoder = net;
        c.proj_dim = 8;
        return ctr_barlow_twins_create(ctx, &c);
    } else {
        ctr_vicreg_config c = ctr_vicreg_default();
        c.encoder = net;
        c.proj_dim = 8;
        return ctr_vicreg_create(ctx, &c);
    }
}

/* Three steps from the same start; the state's hash, and each step's loss. */
static uint64_t train(int which, int threads, const ctr_mix_config *mix, double *loss)
{
    ctr_ctx *ctx = test_ctx(threads, CTR_KERNELS_AUTO);
    ctr_method *method = make_method(ctx, which);
    ctr_batch batch = model_batch("mix.views", 8, 2, 8, 8);
    uint64_t hash = 0;
    int64_t i;
    if (mix) method = ctr_mix_create(ctx, method, mix);
    for (i = 0; i < 3; i++) {
        ctr_report report;
        batch.batch = i;
        test_true("a step", ctr_method_step(method, &batch, 0.05, &report));
        loss[i] = report.loss;
    }
    hash = ctr_method_hash(method);
    test_text(method_names[which], ctr_error_text(ctx), "");
    ctr_method_destroy(method);
    model_batch_free(&batch);
    ctr_ctx_destroy(ctx);
    return hash;
}

static void test_methods(void)
{
    ctr_mix_config none = ctr_mix_default(CTR_MIX_NONE), up = ctr_mix_default(CTR_MIX_MIXUP);
    ctr_mix_config cut = ctr_mix_default(CTR_MIX_CUTMIX);
    double a[3], b[3];
    int i;
    test_group("around methods");
    for (i = 0; i < 6; i++) {
        uint64_t plain = train(i, 1, NULL, a), one, three;
        test_true("NONE is the method itself", train(i, 1, &none, b) == plain);
        one = train(i, 1, i % 2 ? &cut : &up, b);
        test_true("mixing changes what is learnt", one != plain && a[0] != b[0]);
        if (test_quick() && i > 1) continue;
        three = train(i, 3, i % 2 ? &cut : &up, b);
        test_true("1 and 3 threads", one == three);
    }
}

/* SimCLR's first loss, by hand from its own functions and the numbers that a step draws. */
static void test_step(ctr_ctx *ctx)
{
    ctr_mix_config config = ctr_mix_default(CTR_MIX_MIXUP);
    ctr_method *method = make_method(ctx, 0), *mixed;
    ctr_batch batch = model_batch("mix.views", 8, 2, 8, 8);
    int64_t shape[4] = { 16, 8, 8, 3 };
    ctr_tensor *x, *part[2];
    ctr_mix_params p;
    ctr_report report;
    int32_t order[8];
    double want;
    char text[256];
    ctr_rng rng;
    test_group("a step by hand");
    batch.epoch = 3;
    batch.batch = 5;
    ctr_rng_init(&rng, ctr_seed(ctx), CTR_STREAM_SHUFFLE, 3, 5, 65535);
    ctr_mix_sample(&config, &rng, 8, 8, 8, &p, order);
    ctr_step_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
    ctr_tensor_write(ctx, x, batch.pixels, x->size);
    part[0] = ctr_mix_images(ctx, &p, ctr_slice(ctx, x, 0, 0, 8), order);
    part[1] = ctr_slice(ctx, x, 0, 8, 8);
    x = method->embed_fn(method, ctr_concat(ctx, 2, part, 0));
    want = (double)ctr_tensor_item(ctx, ctr_loss_nt_xent_mix(ctx, x, p.lambda, order, 0.5));
    ctr_step_end(ctx);
    mixed = ctr_mix_create(ctx, method, &config);
    mixed->describe_fn(mixed, text, sizeof text);
    test_true("describe", strstr(text, " mix=mixup alpha=1") != NULL);
    test_true("plan", ctr_method_plan(mixed, 8, 8, 8, 3) > 0);
    test_true("a step", ctr_method_step(mixed, &batch, 0.1, &report));
    test_error("loss", fabs(report.loss - want), test_bound(1e-10, 1e-5));
    test_error("chance", fabs(report.chance - log(15.0)), 1e-12);
    test_true("no chunks", !ctr_method_step_chunked(mixed, &batch, 4, 0.1, &report));
    test_fails(ctx, "no chunks", CTR_E_VALUE, "in chunks");
    test_true("lambda is inside", p.lambda > 0.001 && p.lambda < 0.999);
    ctr_method_destroy(mixed);
    model_batch_free(&batch);
}

static void test_refusals(ctr_ctx *ctx)
{
    ctr_mix_config config = ctr_mix_default(CTR_MIX_MIXUP);
    ctr_facenet_config face = ctr_facenet_default();
    ctr_method *method;
    test_group("refusals");
    test_true("NULL", ctr_mix_create(ctx, NULL, &config) == NULL && ctr_error(ctx) == CTR_OK);
    face.encoder = ctr_resnet_config_default(8);
    face.encoder.width = 4;
    method = ctr_facenet_create(ctx, &face);
    test_true("FaceNet is made", method != NULL);
    test_true("FaceNet", !ctr_mix_create(ctx, method, &config));
    test_fails(ctx, "FaceNet", CTR_E_VALUE, "two views");
    config.alpha = 0;
    test_true("alpha", !ctr_mix_create(ctx, make_method(ctx, 0), &config));
    test_fails(ctx, "alpha", CTR_E_VALUE, "alpha must be");
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_mix", argc, argv);
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    test_beta();
    test_sample();
    test_images(ctx);
    test_losses(ctx);
    test_methods();
    test_step(ctx);
    test_refusals(ctx);
    ctr_ctx_destroy(ctx);
    return test_end();
}
