/* test_conv.c - convolution: forward, gradient of the input, gradient of the weights; Winograd's
 * transforms as well.
 * run: float double asan asandouble smoke
 *
 * Odd kernels of 1 to 7, strides 1 to 3, paddings, few and many channels, images of one pixel and
 * of sizes that no tile divides, overwriting and accumulating, against plain loops in double; 1, 2
 * and 3 threads give the same bytes; nothing is written behind an output.
 */
#include "test.h"

enum { CANARIES = 24, CONTEXTS = 18 };

/* scalar, best, scalar by Winograd's transforms, best by the direct sum, both by F(2x2) alone:
   each with 1, 2, 3 threads */
static ctr_ctx *contexts[CONTEXTS];
static const char *const kernels[6] = { "scalar", "best", "scalar Winograd", "best direct",
                                        "scalar 2x2", "best 2x2" };
static int places;            /* how many of these are asked */

typedef struct conv_data {
    ctr_conv_shape s;
    int64_t nx, nw, ny;
    double *x, *w, *dy, *y, *dx, *dw;
    ctr_real *xr, *wr, *dyr;
} conv_data;

/* All three at once: every product x w adds to y, every dy w to dx, every dy x to dw. */
static void conv_loops(conv_data *d)
{
    const ctr_conv_shape *s = &d->s;
    int64_t n, oy, ox, ky, kx, c, o;
    for (n = 0; n < s->n; n++)
        for (oy = 0; oy < s->oh; oy++)
            for (ox = 0; ox < s->ow; ox++)
                for (ky = 0; ky < s->kh; ky++)
                    for (kx = 0; kx < s->kw; kx++) {
                        int64_t iy = oy * s->stride + ky - s->pad;
                        int64_t ix = ox * s->stride + kx - s->pad;
                        int64_t xi = ((n * s->h + iy) * s->w + ix) * s->c;
                        int64_t wi = (ky * s->kw + kx) * s->c * s->oc;
                        int64_t yi = ((n * s->oh + oy) * s->ow + ox) * s->oc;
                        if (iy < 0 || ix < 0 || iy >= s->h || ix >= s->w) continue;
                        for (c = 0; c < s->c; c++)
                            for (o = 0; o < s->oc; o++) {
                                d->y[yi + o] += d->x[xi + c] * d->w[wi + c * s->oc + o];
                                d->dx[xi + c] += d->dy[yi + o] * d->w[wi + c * s->oc + o];
                                d->dw[wi + c * s->oc + o] += d->x[xi + c] * d->dy[yi + o];
                            }
                    }
}

static ctr_real *input(const char *name, int64_t n, double **plain)
{
    ctr_real *r = test_reals(n + 1) + 1;
    int64_t i;
    *plain = test_doubles(n);
    test_fill(name, *plain, n, 1.0);
    for (i = 0; i < n; i++) r[i] = (ctr_real)(*plain)[i];
    return r;
}

/* what: 0 forward, 1 to the input, 2 to the weights. The output starts as `before` everywhere. */
static ctr_real *conv_run(ctr_ctx *ctx, const conv_data *d, int what, int acc, ctr_real before)
{
    int64_t n = what == 0 ? d->ny : what == 1 ? d->nx : d->nw, i;
    ctr_real *out = test_reals(n + CANARIES + 1) + 1;
    for (i = 0; i < n + CANARIES; i++) out[i] = before;
    if (what == 0) ctr_k_conv_forward(ctx, &d->s, d->xr, d->wr, out);
    if (what == 1) ctr_k_conv_input(ctx, &d->s, d->dyr, d->wr, out, acc);
    if (what == 2) ctr_k_conv_weight(ctx, &d->s, d->xr, d->dyr, out, acc);
    test_fine(ctx, "conv");
    for (i = n; i < n + CANARIES && out[i] == before; i++) { }
    test_true("nothing behind the output changed", i == n + CANARIES);
    return out;
}

static void check_one(const conv_data *d, int what, int acc)
{
    static const char *const names[] = { "forward", "to the input", "to the weights" };
    const double *plain = what == 0 ? d->y : what == 1 ? d->dx : d->dw;
    int64_t n = what == 0 ? d->ny : what == 1 ? d->nx : d->nw, i;
    double terms = what == 0   ? (double)(d->s.kh * d->s.kw * d->s.c)
                   : what == 1 ? (double)(d->s.kh * d->s.kw * d->s.oc)
                               : (double)(d->s.n * d->s.oh * d->s.ow);
    double *want = test_doubles(n);
    ctr_real *out[CONTEXTS];
    char text[200];
    int k;
    double rounding;
    for (i = 0; i < n; i++) want[i] = plain[i] + (acc ? 3.0 : 0.0);
    for (k = 0; k < places; k++) {
        out[k] = conv_run(contexts[k], d, what, acc, 3);
        snprintf(text, sizeof text, "%s, [%ld %ld %ld %ld], %ldx%ld, %ld out, stride %ld, pad %ld, "
                 "acc %d, %s, %d threads", names[what], (long)d->s.n, (long)d->s.h, (long)d->s.w,
                 (long)d->s.c, (long)d->s.kh, (long)d->s.kw, (long)d->s.oc, (long)d->s.stride,
                 (long)d->s.pad, acc, kernels[k / 3], 1 + k % 3);
        /* Winograd's transforms have about twice the rounding error, but for F(2x2) */
        rounding = places > 6 && k < 12 ? 2 * terms : terms;
        if (k % 3 == 0)
            test_near(text, out[k], want, n, 0, test_bound(1e-15, 1e-7) * (rounding + 16));
        else
            test_bytes(text, out[k], out[k - k % 3], (size_t)n * sizeof(ctr_real));
    }
    if (places > 6 && sizeof(ctr_real) == 4) /* the transforms were taken at all: other bits */
        test_true(text, memcmp(out[0], out[6], (size_t)n * sizeof(ctr_real)) != 0);
    if (places > 6 && sizeof(ctr_real) == 4 && d->s.stride == 1 && d->s.oh != 3) /* and F(2x2)'s */
        test_true(text, memcmp(out[0], out[12], (size_t)n * sizeof(ctr_real)) != 0);
    for (k = 0; k < places; k++) free(out[k] - 1);
    free(want);
}

static void check(int64_t n, int64_t h, int64_t w, int64_t c, int64_t oc, int64_t kernel,
                  int64_t stride, int64_t pad)
{
    conv_data d;
    ctr_conv_shape *s = &d.s;
    int what, acc;
    if (h + 2 * pad < kernel || w + 2 * pad < kernel) return;
    s->n = n;
    s->h = h;
    s->w = w;
    s->c = c;
    s->kh = s->kw = kernel;
    s->oc = oc;
    s->stride = stride;
    s->pad = pad;
    s->oh = (h + 2 * pad - kernel) / stride + 1;
    s->ow = (w + 2 * pad - kernel) / stride + 1;
    d.nx = n * h * w * c;
    d.nw = kernel * kernel * c * oc;
    d.ny = n * s->oh * s->ow * oc;
    d.xr = input("conv:x", d.nx, &d.x);
    d.wr = input("conv:w", d.nw, &d.w);
    d.dyr = input("conv:dy", d.ny, &d.dy);
    d.y = test_doubles(d.ny);
    d.dx = test_doubles(d.nx);
    d.dw = test_doubles(d.nw);
    conv_loops(&d);
    for (what = 0; what < 3; what++)
        for (acc = 0; acc < (what ? 2 : 1); acc++) check_one(&d, what, acc);
    free(d.xr - 1);
    free(d.wr - 1);
    free(d.dyr - 1);
    free(d.x);
    free(d.w);
    free(d.dy);
    free(d.y);
    free(d.dx);
    free(d.dw);
}

int main(int argc, char **argv)
{
    static const int64_t channels[] = { 1, 3, 4, 5, 8, 16, 17, 24, 33 };
    static const int64_t sizes[][2] = { { 1, 1 }, { 1, 5 }, { 2, 2 }, { 5, 7 }, { 8, 8 }, { 9, 12 },
                                        { 11, 4 }, { 13, 17 } };
    int64_t kernel, stride, pad;
    int k, i = 0;
    test_begin("test_conv", argc, argv);
    for (k = 0; k < CONTEXTS; k++) {
        ctr_config config = ctr_config_default();
        config.threads = 1 + k % 3;
        config.kernels = k / 3 % 2 ? CTR_KERNELS_AUTO : CTR_KERNELS_SCALAR;
        config.conv = k < 6    ? CTR_CONV_AUTO
                      : k < 9  ? CTR_CONV_WINOGRAD
                      : k < 12 ? CTR_CONV_DIRECT
                               : CTR_CONV_WINOGRAD_2X2;
        contexts[k] = ctr_ctx_create(&config);
    }
    test_text("the name of scalar kernels", ctr_kernels_name(contexts[0]), "scalar");
    test_text("by Winograd", ctr_kernels_name(contexts[6]), "scalar-winograd");
    test_text("by F(2x2)", ctr_kernels_name(contexts[12]), "scalar-winograd-2x2");
    test_true("best by the direct sum", strcmp(ctr_kernels_name(contexts[9]), "scalar") == 0 ||
                                            strstr(ctr_kernels_name(contexts[9]), "-direct"));
    places = 6;
    test_group("kernels 1 to 7, strides 1 to 3, paddings 0 to 3");
    for (kernel = 1; kernel <= 7; kernel += 2)
        for (stride = 1; stride <= 3; stride++)
            for (pad = 0; pad <= 3; pad++)
                for (k = 0; k < (test_quick() ? 2 : 6); k++, i++) {
                    const int64_t *size = sizes[(i * 5 + k) % 8];
                    check(1 + i % 3, size[0], size[1], channels[(i * 7 + k) % 9],
                          channels[(i * 4 + 3 * k + 1) % 9], kernel, stride, pad);
                }
    test_group("shapes of residual networks");
    check(2, 32, 32, 3, 16, 3, 1, 1);
    check(3, 16, 16, 16, 32, 3, 2, 1);
    check(5, 8, 8, 64, 64, 3, 1, 1);
    check(3, 8, 8, 32, 64, 1, 2, 0);
    check(2, 4, 4, 128, 130, 3, 1, 1);
    check(2, 7, 7, 64, 96, 1, 1, 0);
    if (!test_quick()) {
        check(1, 61, 57, 3, 64, 7, 2, 3);
        check(1, 2, 2, 257, 128, 3, 1, 1);
        check(9, 28, 28, 1, 16, 3, 1, 1);
        check(1, 33, 31, 48, 40, 3, 1, 1);
    }
    test_group("no image");
    check(0, 5, 5, 3, 4, 3, 1, 1);
    test_group("Winograd's transforms, where they fit");
    places = CONTEXTS;
    check(12, 4, 4, 16, 16, 3, 1, 1);
    check(13, 3, 3, 16, 24, 3, 1, 1);
    check(3, 7, 8, 24, 16, 3, 1, 1);
    check(2, 9, 11, 40, 32, 3, 1, 1);
    check(12, 8, 8, 16, 16, 3, 2, 1);
    check(13, 7, 8, 16, 24, 3, 2, 1);
    check(3, 15, 14, 24, 16, 3, 2, 1);
    check(2, 17, 21, 40, 32, 3, 2, 1);
    test_group("images that are too small for tiles of 4 x 4");
    check(12, 2, 2, 32, 32, 3, 1, 1);
    check(13, 2, 2, 24, 40, 3, 1, 1);
    check(3, 5, 5, 16, 48, 3, 1, 1);
    if (!test_quick()) {
        check(3, 16, 16, 16, 32, 3, 1, 1);
        check(5, 8, 8, 64, 64, 3, 1, 1);
        check(1, 13, 15, 128, 136, 3, 1, 1);
        check(2, 31, 29, 32, 16, 3, 1, 1);
        check(3, 32, 32, 16, 32, 3, 2, 1);
        check(1, 25, 31, 128, 136, 3, 2, 1);
        check(13, 8, 6, 136, 264, 3, 2, 1);
        check(40, 2, 2, 64, 32, 3, 1, 1);
        check(13, 2, 2, 264, 136, 3, 1, 1);
        check(14, 5, 5, 136, 40, 3, 1, 1);
    }
    for (k = 0; k < CONTEXTS; k++) ctr_ctx_destroy(contexts[k]);
    return test_end();
}
