/* test_faults.c - a few small verbs, each near one of the faults that contrastive_cuda.cu has built
 * in. tests/check_cuda.sh runs it with CUDAEMU_FAULT=N and wants it to fail, be it by a wrong
 * number, by a sanitizer, or by the emulation itself; without a fault it must pass. */
#include "../test.h"

static ctr_ctx *cpu, *gpu;

static ctr_real *device_copy(ctr_ctx *ctx, ctr_tensor **t, int64_t n, const ctr_real *x)
{
    *t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 0);
    if (x) ctr_tensor_write(ctx, *t, x, n);
    return (ctr_real *)(*t)->data;
}

static void compare(const char *what, const ctr_real *a, const ctr_real *b, int64_t n)
{
    double *reference = test_doubles(n);
    int64_t i;
    for (i = 0; i < n; i++) reference[i] = (double)b[i];
    test_error(what, test_ratio(a, reference, n, 1e-4, 1e-6), 1.0);
    free(reference);
}

/* Sums and maxima over a block: faults 1, 2, 3, 10. */
static void softmax_on(ctr_ctx *ctx, const ctr_real *x, ctr_real *y)
{
    ctr_tensor *in, *out, *more;
    ctr_real *from = device_copy(ctx, &in, 3 * 200, x), *to = device_copy(ctx, &out, 3 * 200, NULL);
    ctr_real *stats = device_copy(ctx, &more, 6, NULL);
    ctr_k_softmax(ctx, 3, 200, from, to, 0);
    ctr_k_layer_norm(ctx, 3, 200, (ctr_real)1e-5, to, to + 200, to, from, stats);
    ctr_tensor_read(ctx, in, y, 600);
    ctr_tensor_destroy(ctx, more);
    ctr_tensor_destroy(ctx, in);
    ctr_tensor_destroy(ctx, out);
}

/* A convolution with several steps along K: faults 4, 5, 6. */
static void conv_on(ctr_ctx *ctx, const ctr_real *x, ctr_real *y)
{
    ctr_conv_shape s = { 1, 8, 8, 4, 3, 3, 4, 1, 1, 8, 8 };
    ctr_tensor *in, *w, *out;
    ctr_real *from = device_copy(ctx, &in, 256, x), *weights = device_copy(ctx, &w, 144, x + 256);
    ctr_real *to = device_copy(ctx, &out, 256, NULL);
    ctr_k_conv_forward(ctx, &s, from, weights, to);
    ctr_tensor_read(ctx, out, y, 256);
    ctr_tensor_destroy(ctx, in);
    ctr_tensor_destroy(ctx, w);
    ctr_tensor_destroy(ctx, out);
}

/* Uploads and a download in a stream that runs late (CUDAEMU_DEFER): faults 7, 8. */
static void copies_on(ctr_ctx *ctx, const ctr_real *x, ctr_real *y)
{
    ctr_tensor *t[8];
    int i;
    for (i = 0; i < 8; i++) device_copy(ctx, &t[i], 50, x + i);
    for (i = 0; i < 8; i++) {
        ctr_real now[50] = { 0 };
        ctr_tensor_read(ctx, t[i], now, 50);
        memcpy(y + 50 * i, now, sizeof now);
    }
    for (i = 0; i < 8; i++) ctr_tensor_destroy(ctx, t[i]);
}

/* Updates of which the second reads what the first writes: fault 9. */
static void updates_on(ctr_ctx *ctx, const ctr_real *x, ctr_real *y)
{
    ctr_tensor *a, *b, *c;
    ctr_real *p = device_copy(ctx, &a, 300, x), *q = device_copy(ctx, &b, 300, x + 20);
    ctr_real *r = device_copy(ctx, &c, 300, x + 40);
    ctr_k_axpby(ctx, 300, 1, p, 1, q);
    ctr_k_axpby(ctx, 300, 1, q, 1, r);
    ctr_k_axpby(ctx, 300, 1, r, 1, p);
    ctr_tensor_read(ctx, a, y, 300);
    ctr_tensor_read(ctx, c, y + 300, 300);
    ctr_tensor_destroy(ctx, a);
    ctr_tensor_destroy(ctx, b);
    ctr_tensor_destroy(ctx, c);
}

static void both(const char *what, void (*fn)(ctr_ctx *, const ctr_real *, ctr_real *), int64_t n)
{
    ctr_real *x = test_reals(600), *want = test_reals(n), *got = test_reals(n);
    test_fill_real(what, x, 600, 1.0);
    fn(cpu, x, want);
    fn(gpu, x, got);
    test_fine(gpu, what);
    compare(what, got, want, n);
    free(x);
    free(want);
    free(got);
}

int main(int argc, char **argv)
{
    ctr_config config = ctr_config_default();
    char text[200];
    test_begin("test_faults", argc, argv);
    cpu = test_ctx(1, CTR_KERNELS_SCALAR);
    config.threads = 1;
    config.device = ctr_cuda_open(NULL, text, sizeof text);
    if (!test_true(config.device ? "a device" : text, config.device != NULL)) return test_end();
    gpu = ctr_ctx_create(&config);
    both("softmax and layer norm", softmax_on, 600);
    both("convolution", conv_on, 256);
    both("copies", copies_on, 400);
    both("updates", updates_on, 600);
    ctr_ctx_destroy(gpu);
    ctr_cuda_close(config.device);
    ctr_ctx_destroy(cpu);
    return test_end();
}
