/* test_freeze.c - encoders for use: the network with its norms folded away gives its own features.
 * run: float double asan tsan smoke
 *
 * 1. Features against ctr_resnet_forward in evaluation mode on the scalar kernels, for every shape
 *    of network, odd sizes, one image and many, every kernel set and way to convolve.
 * 2. The same bytes for any number of threads; an image alone as in a batch; a NaN stays one.
 * 3. It is a copy; from a file as from memory; what is refused; failing allocations.
 */
#include "model.h"

typedef struct net_case {
    int depth;
    int64_t width, channels;
    ctr_stem stem;
    int64_t n, h, w;
} net_case;

/* Widths that fill no panel, one and several; bottlenecks; both stems; sizes that are no multiple
   of a tile. The fourth has activations that are cut into groups. */
static const net_case CASES[] = {
    { 8, 16, 3, CTR_STEM_SMALL, 13, 16, 16 }, { 8, 12, 1, CTR_STEM_SMALL, 3, 9, 11 },
    { 14, 24, 3, CTR_STEM_SMALL, 5, 7, 16 },  { 8, 16, 3, CTR_STEM_SMALL, 37, 32, 32 },
    { 18, 16, 3, CTR_STEM_LARGE, 3, 37, 40 }, { 18, 64, 3, CTR_STEM_SMALL, 2, 8, 8 },
    { 50, 16, 3, CTR_STEM_LARGE, 2, 33, 64 }, { 50, 12, 2, CTR_STEM_SMALL, 1, 5, 4 },
};
#define COUNT ((int)(sizeof CASES / sizeof *CASES))

typedef struct net {
    ctr_ctx *ctx;
    ctr_vars vars;
    ctr_resnet resnet;
} net;

/* Every weight by formula, slopes and statistics of the norms between 0.6 and 1.4. */
static net net_create(const net_case *c, const ctr_config *config)
{
    ctr_resnet_config r = ctr_resnet_config_default(c->depth);
    net m;
    int i;
    r.width = c->width;
    r.channels = c->channels;
    r.stem = c->stem;
    ctr_vars_init(&m.vars);
    m.ctx = ctr_ctx_create(config);
    if (!m.ctx) return m;
    ctr_resnet_init(m.ctx, &m.resnet, &m.vars, "encoder.", &r);
    for (i = 0; i < m.vars.count; i++) {
        const ctr_var *v = &m.vars.list[i];
        int64_t k, size = v->value->size;
        ctr_real *x;
        if (v->kind != CTR_KIND_NORM && v->kind != CTR_KIND_BUFFER) continue;
        x = test_reals(size);
        test_fill_real(v->name, x, size, 0.4);
        for (k = 0; k < size; k++) x[k] += 1;
        ctr_tensor_write(m.ctx, v->value, x, size);
        free(x);
    }
    return m;
}

static void net_destroy(net *m)
{
    ctr_vars_destroy(m->ctx, &m->vars);
    ctr_ctx_destroy(m->ctx);
}

static ctr_config config_of(int threads, ctr_kernels kernels, ctr_conv_kind conv)
{
    ctr_config config = ctr_config_default();
    config.threads = threads;
    config.kernels = kernels;
    config.conv = conv;
    return config;
}

static ctr_real *images_of(const net_case *c)
{
    int64_t size = c->n * c->h * c->w * c->channels;
    ctr_real *x = test_reals(size);
    test_fill_real("images", x, size, 1.5);
    return x;
}

/* The features of the network as it is trained. */
static double *features_of(const net_case *c, net *m, const ctr_real *x)
{
    int64_t shape[4], size = c->n * m->resnet.features, i;
    ctr_real *y = test_reals(size);
    double *d = test_doubles(size);
    ctr_tensor *t;
    shape[0] = c->n;
    shape[1] = c->h;
    shape[2] = c->w;
    shape[3] = c->channels;
    ctr_step_begin(m->ctx);
    ctr_nograd_begin(m->ctx);
    t = ctr_tensor_temp(m->ctx, CTR_F32, 4, shape);
    ctr_tensor_write(m->ctx, t, x, t->size);
    t = ctr_resnet_forward(m->ctx, &m->resnet, t, CTR_NORM_EVAL, 1);
    ctr_tensor_read(m->ctx, t, y, size);
    ctr_step_end(m->ctx);
    test_fine(m->ctx, "features");
    for (i = 0; i < size; i++) d[i] = (double)y[i];
    free(y);
    return d;
}

static ctr_real *frozen_of(const net_case *c, net *m, const ctr_real *x, int64_t chunk)
{
    ctr_frozen *f = ctr_frozen_create(m->ctx, &m->resnet);
    ctr_real *y = test_reals(c->n * m->resnet.features);
    test_equal("features", (double)ctr_frozen_features(f), (double)m->resnet.features);
    test_true("run", ctr_frozen_run(f, c->n, c->h, c->w, c->channels, x, chunk, y));
    test_fine(m->ctx, "run");
    ctr_frozen_destroy(f);
    return y;
}

static void test_features(void)
{
    static const ctr_kernels kernels[] = { CTR_KERNELS_SCALAR, CTR_KERNELS_AUTO, CTR_KERNELS_AUTO,
                                           CTR_KERNELS_SCALAR, CTR_KERNELS_AUTO };
    static const ctr_conv_kind conv[] = { CTR_CONV_DIRECT, CTR_CONV_DIRECT, CTR_CONV_WINOGRAD,
                                          CTR_CONV_WINOGRAD, CTR_CONV_WINOGRAD_2X2 };
    int i, k;
    test_group("features of the unfrozen network");
    for (i = 0; i < COUNT; i++) {
        const net_case *c = &CASES[i];
        ctr_config scalar = config_of(2, CTR_KERNELS_SCALAR, CTR_CONV_DIRECT);
        ctr_real *x;
        double *wanted;
        net m;
        if (test_quick() && (i == 3 || i == 5 || i == 6)) continue; /* the heaviest */
        m = net_create(c, &scalar);
        x = images_of(c);
        wanted = features_of(c, &m, x);
        for (k = 0; k < 5; k++) {
            ctr_config config = config_of(2, kernels[k], conv[k]);
            net fast = net_create(c, &config);
            ctr_real *y = frozen_of(c, &fast, x, k == 1 ? 2 : 0);
            char what[64];
            snprintf(what, sizeof what, "case %d, %s", i, ctr_kernels_name(fast.ctx));
            test_near(what, y, wanted, c->n * m.resnet.features, test_bound(1e-11, 1e-4), 0);
            free(y);
            net_destroy(&fast);
        }
        free(wanted);
        free(x);
        net_destroy(&m);
    }
}

static void test_bits(void)
{
    static const int threads[] = { 2, 3, 7 };
    const net_case *c = &CASES[3];
    ctr_config config = config_of(1, CTR_KERNELS_AUTO, CTR_CONV_AUTO);
    net m = net_create(c, &config);
    ctr_real *x = images_of(c), *one = frozen_of(c, &m, x, 0), *y;
    int64_t features = m.resnet.features, i;
    double *wanted = test_doubles(c->n * features);
    net_case single = *c;
    size_t t;
    test_group("bits");
    for (t = 0; t < sizeof threads / sizeof *threads; t++) {
        net many;
        config.threads = threads[t];
        many = net_create(c, &config);
        y = frozen_of(c, &many, x, 0);
        test_bytes("threads", y, one, (size_t)(c->n * features) * sizeof *y);
        free(y);
        net_destroy(&many);
    }
    single.n = 1;
    y = frozen_of(&single, &m, x, 1);
    for (i = 0; i < features; i++) wanted[i] = (double)one[i];
    test_near("one image alone", y, wanted, features, test_bound(1e-11, 1e-4), 0);
    free(y);
    x[5] = (ctr_real)NAN;
    y = frozen_of(c, &m, x, 0);
    for (i = 0; i < features && golden_finite_((double)y[i]); i++) { }
#ifdef __FAST_MATH__ /* a compiler that may assume that there is no NaN loses it in the ReLU */
    test_skip("an image with NaN has features with NaN", "-ffast-math");
#else
    test_true("an image with NaN has features with NaN", i < features);
#endif
    test_bytes("the others do not", y + 8 * features, one + 8 * features,
               (size_t)((c->n - 8) * features) * sizeof *y);
    free(y);
    free(x);
    free(one);
    free(wanted);
    net_destroy(&m);
}

static void test_copy_and_file(void)
{
    const net_case *c = &CASES[0];
    ctr_config config = config_of(1, CTR_KERNELS_AUTO, CTR_CONV_AUTO);
    net m = net_create(c, &config);
    int64_t size = c->n * m.resnet.features;
    ctr_real *x = images_of(c), *y = frozen_of(c, &m, x, 0), *z = test_reals(size);
    ctr_frozen *f = ctr_frozen_create(m.ctx, &m.resnet), *file;
    test_group("a copy, and from a file");
    ctr_weights_save(m.ctx, "test_freeze.st", &m.vars, "encoder.");
    file = ctr_frozen_open(m.ctx, "test_freeze.st", NULL);
    ctr_tensor_fill(m.ctx, m.resnet.stem.weight, 0);
    ctr_frozen_run(f, c->n, c->h, c->w, c->channels, x, 0, z);
    test_bytes("after the network has changed", z, y, (size_t)size * sizeof *z);
    memset(z, 0, (size_t)size * sizeof *z);
    ctr_frozen_run(file, c->n, c->h, c->w, c->channels, x, 0, z);
    test_fine(m.ctx, "from a file");
    test_bytes("from a file", z, y, (size_t)size * sizeof *z);
    ctr_frozen_run(file, 2, c->h + 3, c->w, c->channels, x, 1, z); /* another size in between */
    ctr_frozen_run(file, c->n, c->h, c->w, c->channels, x, 0, z);
    test_bytes("after another size", z, y, (size_t)size * sizeof *z);
    test_true("no images", ctr_frozen_run(file, 0, c->h, c->w, c->channels, NULL, 0, NULL));
    ctr_frozen_destroy(file);
    ctr_frozen_destroy(f);
    remove("test_freeze.st");
    free(x);
    free(y);
    free(z);
    net_destroy(&m);
}

static void test_refused(void)
{
    const net_case *c = &CASES[0];
    ctr_config config = config_of(1, CTR_KERNELS_AUTO, CTR_CONV_AUTO);
    net m = net_create(c, &config);
    ctr_real *x = images_of(c), y[1];
    ctr_frozen *f = ctr_frozen_create(m.ctx, &m.resnet);
    fake_device *fake = fake_device_open();
    ctr_ctx *far = fake_device_ctx(fake);
    test_group("what is refused");
    test_true("channels", !ctr_frozen_run(f, 1, 16, 16, 4, x, 0, y));
    test_fails(m.ctx, "channels", CTR_E_SHAPE, "[n, h, w, 3], got [1, 16, 16, 4]");
    test_true("no pixels", !ctr_frozen_run(f, 1, 0, 16, 3, x, 0, y));
    test_fails(m.ctx, "no pixels", CTR_E_SHAPE, "got [1, 0, 16, 3]");
    test_true("too wide", !ctr_frozen_run(f, 1, 1, 65537, 3, x, 0, y));
    test_fails(m.ctx, "too wide", CTR_E_SHAPE, "65537");
    test_true("no file", !ctr_frozen_open(m.ctx, "no_such.st", NULL));
    test_fails(m.ctx, "no file", CTR_E_FILE, "no_such.st");
    test_true("a device", !ctr_frozen_create(far, &m.resnet));
    test_fails(far, "a device", CTR_E_DEVICE, "on the CPU");
    test_true("nothing", !ctr_frozen_run(NULL, 1, 16, 16, 3, x, 0, y));
    test_equal("features of nothing", (double)ctr_frozen_features(NULL), 0);
    ctr_frozen_destroy(NULL);
    ctr_ctx_destroy(far);
    fake_device_close(fake);
    ctr_frozen_destroy(f);
    free(x);
    net_destroy(&m);
}

/* Every allocation fails in its turn: an error, nothing kept, and the next run works. */
static void test_allocations(void)
{
    const net_case *c = &CASES[0];
    ctr_config config = config_of(1, CTR_KERNELS_AUTO, CTR_CONV_AUTO);
    test_allocator watch;
    ctr_real *x = images_of(c), *wanted, *y;
    int64_t size;
    long at = 0, live, failures = 0;
    int whole = 0;
    net m;
    config.allocator = test_allocator_init(&watch);
    m = net_create(c, &config);
    size = c->n * m.resnet.features;
    wanted = frozen_of(c, &m, x, 0);
    y = test_reals(size);
    test_group("failing allocations");
    while (!whole) {
        net fresh = net_create(c, &config);
        ctr_frozen *f;
        live = watch.live;
        watch.fail_at = watch.calls + ++at;
        f = ctr_frozen_create(fresh.ctx, &fresh.resnet);
        whole = ctr_frozen_run(f, c->n, c->h, c->w, c->channels, x, 0, y) &&
                watch.calls < watch.fail_at;
        watch.fail_at = 0;
        if (!whole && ctr_error(fresh.ctx) != CTR_OK) {
            failures++;
            test_fails(fresh.ctx, "no memory", CTR_E_MEMORY, "memory");
            if (!f) f = ctr_frozen_create(fresh.ctx, &fresh.resnet);
            test_true("again", ctr_frozen_run(f, c->n, c->h, c->w, c->channels, x, 0, y));
        }
        test_bytes("features", y, wanted, (size_t)size * sizeof *y);
        ctr_frozen_destroy(f);
        test_true("only scratch stays", watch.live <= live + 1);
        net_destroy(&fresh);
    }
    test_true("some did fail", failures >= 3);
    net_destroy(&m);
    test_equal("blocks that were never freed", (double)watch.live, 0);
    test_equal("bad frees", (double)watch.bad_frees, 0);
    free(x);
    free(y);
    free(wanted);
}

int main(int argc, char **argv)
{
    test_begin("test_freeze", argc, argv);
    test_features();
    test_bits();
    test_copy_and_file();
    test_refused();
    test_allocations();
    return test_end();
}
