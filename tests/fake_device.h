/* fake_device.h - an accelerator that is no accelerator: it proves that nobody but a kernel verb
 * touches a tensor's memory.
 *
 * A device pointer is an address in a region that is never readable ("far"). The memory itself is a
 * second region of the same layout ("near"): a verb checks that each of its pointers lies in one
 * live allocation with room for what the verb will touch, moves it over to the near region, and
 * calls the scalar kernel of a host context. So - library code that follows a device pointer
 * faults, - a host pointer that is given to a verb, a freed block, an overrun and an odd alignment
 * are errors of the context, with the verb's name, - each block ends at a guard page, so that a
 * kernel that runs over faults as well, - fresh memory holds NaN.
 */
#ifndef CTR_FAKE_DEVICE_H
#define CTR_FAKE_DEVICE_H

#include "test.h"

#include <sys/mman.h>
#include <unistd.h>

#define FAKE_SPACE ((size_t)1 << 28)   /* bytes of address space; pages come as they are needed */
#define FAKE_BLOCKS 4096
#define FAKE_VERBS 64

typedef struct fake_block {
    size_t at, pages, size;            /* at: where the pages start; size as asked for */
    int live;
} fake_block;

typedef struct fake_device {
    ctr_device device;
    ctr_ctx *host;                     /* its kernels do the work */
    char *far_base, *near_base;
    size_t page, top;
    fake_block blocks[FAKE_BLOCKS];
    int count, live;
    long allocations, fail_at;         /* fail_at: this allocation (from 1), no other, gets NULL */
    int bad;                           /* frees of strange blocks or with a wrong size, overruns */
    const char *verb;                  /* the one that runs */
    const char *seen[FAKE_VERBS];      /* the names of those that ran */
} fake_device;

/* -------------------------------------------------------------------------------------- memory */

TEST_FN char *fake_data_(const fake_device *f, const fake_block *b, char *base)
{
    return base + b->at + b->pages * f->page - ((b->size + 63) & ~(size_t)63);
}

TEST_FN void *fake_alloc_(void *user, size_t size)
{
    fake_device *f = (fake_device *)user;
    size_t rounded = (size + 63) & ~(size_t)63, pages = (rounded + f->page - 1) / f->page;
    fake_block *b = NULL;
    int i;
    if (++f->allocations == f->fail_at) return NULL;
    for (i = 0; i < f->count && !b; i++)
        if (!f->blocks[i].live && f->blocks[i].pages == pages) b = &f->blocks[i];
    if (!b) {
        if (f->count == FAKE_BLOCKS || f->top + (pages + 1) * f->page > FAKE_SPACE) return NULL;
        b = &f->blocks[f->count++];
        b->at = f->top;
        b->pages = pages;
        f->top += (pages + 1) * f->page; /* the page behind it stays closed */
    }
    b->size = size;
    b->live = 1;
    f->live++;
    if (mprotect(f->near_base + b->at, pages * f->page, PROT_READ | PROT_WRITE)) return NULL;
    memset(f->near_base + b->at, 0xff, pages * f->page);
    return fake_data_(f, b, f->far_base);
}

/* The bytes between the block's size and the guard page must still be 0xff. */
TEST_FN int fake_tail_intact_(const fake_device *f, const fake_block *b)
{
    const unsigned char *p = (const unsigned char *)fake_data_(f, b, f->near_base);
    size_t i, end = (b->size + 63) & ~(size_t)63;
    for (i = b->size; i < end; i++)
        if (p[i] != 0xff) return 0;
    return 1;
}

TEST_FN void fake_free_(void *user, void *ptr, size_t size)
{
    fake_device *f = (fake_device *)user;
    int i;
    for (i = 0; i < f->count; i++) {
        fake_block *b = &f->blocks[i];
        if (!b->live || fake_data_(f, b, f->far_base) != (char *)ptr) continue;
        if (b->size != size || !fake_tail_intact_(f, b)) f->bad++;
        b->live = 0;
        f->live--;
        mprotect(f->near_base + b->at, b->pages * f->page, PROT_NONE);
        return;
    }
    f->bad++;
}

/* ------------------------------------------------------------------------------------- pointers */

TEST_FN fake_device *fake_begin_(ctr_ctx *ctx, const char *verb)
{
    fake_device *f = (fake_device *)ctr_device_user(ctx);
    int i;
    f->verb = verb;
    for (i = 0; i < FAKE_VERBS - 1 && f->seen[i] && strcmp(f->seen[i], verb) != 0; i++) { }
    f->seen[i] = verb;
    return f;
}

TEST_FN void fake_fail_(ctr_ctx *ctx, const fake_device *f, const char *what)
{
    char text[200];
    snprintf(text, sizeof text, "fake device: %s: %s", f->verb, what);
    ctr_error_set(ctx, CTR_E_DEVICE, text);
}

/* The memory behind a device pointer; NULL with an error unless `bytes` bytes from there lie in one
   live block. A verb on nothing may name any place. */
TEST_FN char *fake_near_(ctr_ctx *ctx, const void *ptr, size_t bytes)
{
    fake_device *f = (fake_device *)ctr_device_user(ctx);
    const char *p = (const char *)ptr;
    int i;
    if (bytes == 0) return f->near_base;
    if (p < f->far_base || p > f->far_base + FAKE_SPACE) {
        fake_fail_(ctx, f, ptr ? "a host pointer where a device's belongs" : "a NULL pointer");
        return NULL;
    }
    if (((uintptr_t)p & 3) != 0) fake_fail_(ctx, f, "a pointer that is not aligned");
    for (i = 0; i < f->count; i++) {
        const fake_block *b = &f->blocks[i];
        const char *start = fake_data_(f, b, f->far_base);
        if (!b->live || p < start || p >= start + b->size) continue;
        if (bytes > b->size - (size_t)(p - start)) {
            fake_fail_(ctx, f, "runs over the end of a block");
            return NULL;
        }
        return f->near_base + (p - f->far_base);
    }
    fake_fail_(ctx, f, "memory that was freed or never given");
    return NULL;
}

TEST_FN ctr_real *fake_out_(ctr_ctx *ctx, const void *ptr, int64_t n)
{
    return (ctr_real *)fake_near_(ctx, ptr, (size_t)n * sizeof(ctr_real));
}
TEST_FN const ctr_real *fake_in_(ctr_ctx *ctx, const void *ptr, int64_t n)
{
    return fake_out_(ctx, ptr, n);
}
TEST_FN int32_t *fake_int_(ctr_ctx *ctx, const void *ptr, int64_t n)
{
    return (int32_t *)fake_near_(ctx, ptr, (size_t)n * sizeof(int32_t));
}
TEST_FN ctr_real *fake_maybe_(ctr_ctx *ctx, const void *ptr, int64_t n)
{
    return ptr ? fake_out_(ctx, ptr, n) : NULL;
}

/* Opens a verb: pointers that are declared next are checked; FAKE_RUN_ calls the host's kernel. */
#define FAKE_BEGIN_(name) (void)fake_begin_(ctx, #name)
#define FAKE_HOST_ (((fake_device *)ctr_device_user(ctx))->host)
#define FAKE_RUN_(name, args)                                                                 \
    do {                                                                                      \
        if (ctr_error(ctx) != CTR_OK) return;                                                 \
        ctr_k_##name args;                                                                    \
        if (ctr_error(FAKE_HOST_) != CTR_OK)                                                  \
            ctr_error_set(ctx, ctr_error(FAKE_HOST_), ctr_error_text(FAKE_HOST_));            \
    } while (0)

/* The number of elements a matrix spans: the last row need not be as wide as the others are
   apart. */
TEST_FN int64_t fake_span_(int64_t rows, int64_t cols, int64_t ld)
{
    return rows > 0 && cols > 0 ? (rows - 1) * ld + cols : 0;
}

/* ---------------------------------------------------------------------------------------- verbs */

TEST_FN void fake_zero_(ctr_ctx *ctx, size_t bytes, void *y)
{
    FAKE_BEGIN_(zero);
    y = fake_near_(ctx, y, bytes);
    FAKE_RUN_(zero, (FAKE_HOST_, bytes, y));
}

TEST_FN void fake_copy_(ctr_ctx *ctx, size_t bytes, const void *x, void *y)
{
    FAKE_BEGIN_(copy);
    x = fake_near_(ctx, x, bytes);
    y = fake_near_(ctx, y, bytes);
    FAKE_RUN_(copy, (FAKE_HOST_, bytes, x, y));
}

TEST_FN void fake_upload_(ctr_ctx *ctx, size_t bytes, const void *host, void *y)
{
    FAKE_BEGIN_(upload);
    y = fake_near_(ctx, y, bytes);
    FAKE_RUN_(upload, (FAKE_HOST_, bytes, host, y));
}

TEST_FN void fake_download_(ctr_ctx *ctx, size_t bytes, const void *x, void *host)
{
    FAKE_BEGIN_(download);
    x = fake_near_(ctx, x, bytes);
    FAKE_RUN_(download, (FAKE_HOST_, bytes, x, host));
}

TEST_FN void fake_fill_(ctr_ctx *ctx, int64_t n, ctr_real value, ctr_real *y)
{
    FAKE_BEGIN_(fill);
    y = fake_out_(ctx, y, n);
    FAKE_RUN_(fill, (FAKE_HOST_, n, value, y));
}

TEST_FN void fake_axpby_(ctr_ctx *ctx, int64_t n, ctr_real a, const ctr_real *x, ctr_real b,
                         ctr_real *y)
{
    FAKE_BEGIN_(axpby);
    x = fake_in_(ctx, x, n);
    y = fake_out_(ctx, y, n);
    FAKE_RUN_(axpby, (FAKE_HOST_, n, a, x, b, y));
}

TEST_FN void fake_binary_(ctr_ctx *ctx, ctr_binary op, int64_t n, const ctr_real *x,
                          const ctr_real *y, ctr_real *z, int acc)
{
    FAKE_BEGIN_(binary);
    x = fake_in_(ctx, x, n);
    y = fake_in_(ctx, y, n);
    z = fake_out_(ctx, z, n);
    FAKE_RUN_(binary, (FAKE_HOST_, op, n, x, y, z, acc));
}

TEST_FN void fake_broadcast_(ctr_ctx *ctx, ctr_binary op, int64_t outer, int64_t mid, int64_t inner,
                             const ctr_real *x, const ctr_real *s, ctr_real *y, int acc)
{
    FAKE_BEGIN_(broadcast);
    x = fake_in_(ctx, x, outer * mid * inner);
    s = fake_in_(ctx, s, outer * inner);
    y = fake_out_(ctx, y, outer * mid * inner);
    FAKE_RUN_(broadcast, (FAKE_HOST_, op, outer, mid, inner, x, s, y, acc));
}

TEST_FN void fake_unary_(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x, ctr_real *y)
{
    FAKE_BEGIN_(unary);
    x = fake_in_(ctx, x, n);
    y = fake_out_(ctx, y, n);
    FAKE_RUN_(unary, (FAKE_HOST_, op, n, x, y));
}

TEST_FN void fake_unary_grad_(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x,
                              const ctr_real *y, const ctr_real *dy, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(unary_grad);
    x = fake_maybe_(ctx, x, n);
    y = fake_maybe_(ctx, y, n);
    dy = fake_in_(ctx, dy, n);
    dx = fake_out_(ctx, dx, n);
    FAKE_RUN_(unary_grad, (FAKE_HOST_, op, n, x, y, dy, dx, acc));
}

TEST_FN void fake_reduce_(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc)
{
    FAKE_BEGIN_(reduce);
    x = fake_in_(ctx, x, outer * mid * inner);
    y = fake_out_(ctx, y, outer * inner);
    FAKE_RUN_(reduce, (FAKE_HOST_, outer, mid, inner, alpha, x, y, acc));
}

TEST_FN void fake_expand_(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc)
{
    FAKE_BEGIN_(expand);
    x = fake_in_(ctx, x, outer * inner);
    y = fake_out_(ctx, y, outer * mid * inner);
    FAKE_RUN_(expand, (FAKE_HOST_, outer, mid, inner, alpha, x, y, acc));
}

TEST_FN void fake_dot_(ctr_ctx *ctx, int64_t n, const ctr_real *x, const ctr_real *y, ctr_real *out)
{
    FAKE_BEGIN_(dot);
    x = fake_in_(ctx, x, n);
    y = fake_in_(ctx, y, n);
    out = fake_out_(ctx, out, 1);
    FAKE_RUN_(dot, (FAKE_HOST_, n, x, y, out));
}

TEST_FN void fake_permute_(ctr_ctx *ctx, const int64_t *shape, const int *perm, const ctr_real *x,
                           ctr_real *y, int acc)
{
    int64_t n = shape[0] * shape[1] * shape[2] * shape[3];
    FAKE_BEGIN_(permute);
    x = fake_in_(ctx, x, n);
    y = fake_out_(ctx, y, n);
    FAKE_RUN_(permute, (FAKE_HOST_, shape, perm, x, y, acc));
}

TEST_FN void fake_copy_rows_(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             int64_t ldx, ctr_real *y, int64_t ldy, int acc)
{
    FAKE_BEGIN_(copy_rows);
    x = fake_in_(ctx, x, fake_span_(rows, cols, ldx));
    y = fake_out_(ctx, y, fake_span_(rows, cols, ldy));
    FAKE_RUN_(copy_rows, (FAKE_HOST_, rows, cols, x, ldx, y, ldy, acc));
}

TEST_FN void fake_gather_(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                          const int32_t *index, const ctr_real *x, ctr_real *y)
{
    FAKE_BEGIN_(gather);
    index = fake_int_(ctx, index, n);
    x = fake_in_(ctx, x, rows * width);
    y = fake_out_(ctx, y, n * width);
    FAKE_RUN_(gather, (FAKE_HOST_, rows, width, n, index, x, y));
}

TEST_FN void fake_scatter_(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                           const int32_t *index, const ctr_real *dy, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(scatter);
    index = fake_int_(ctx, index, n);
    dy = fake_in_(ctx, dy, n * width);
    dx = fake_out_(ctx, dx, rows * width);
    FAKE_RUN_(scatter, (FAKE_HOST_, rows, width, n, index, dy, dx, acc));
}

TEST_FN void fake_softmax_(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x, ctr_real *y,
                           int logarithm)
{
    FAKE_BEGIN_(softmax);
    x = fake_in_(ctx, x, rows * cols);
    y = fake_out_(ctx, y, rows * cols);
    FAKE_RUN_(softmax, (FAKE_HOST_, rows, cols, x, y, logarithm));
}

TEST_FN void fake_softmax_grad_(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                const ctr_real *dy, ctr_real *dx, int logarithm, int acc)
{
    FAKE_BEGIN_(softmax_grad);
    y = fake_in_(ctx, y, rows * cols);
    dy = fake_in_(ctx, dy, rows * cols);
    dx = fake_out_(ctx, dx, rows * cols);
    FAKE_RUN_(softmax_grad, (FAKE_HOST_, rows, cols, y, dy, dx, logarithm, acc));
}

TEST_FN void fake_normalize_(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             ctr_real *y, ctr_real *inv)
{
    FAKE_BEGIN_(normalize);
    x = fake_in_(ctx, x, rows * cols);
    y = fake_out_(ctx, y, rows * cols);
    inv = fake_out_(ctx, inv, rows);
    FAKE_RUN_(normalize, (FAKE_HOST_, rows, cols, x, y, inv));
}

TEST_FN void fake_normalize_grad_(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                  const ctr_real *inv, const ctr_real *dy, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(normalize_grad);
    y = fake_in_(ctx, y, rows * cols);
    inv = fake_in_(ctx, inv, rows);
    dy = fake_in_(ctx, dy, rows * cols);
    dx = fake_out_(ctx, dx, rows * cols);
    FAKE_RUN_(normalize_grad, (FAKE_HOST_, rows, cols, y, inv, dy, dx, acc));
}

TEST_FN void fake_nll_(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                       const int32_t *index, const ctr_real *logp, ctr_real *out)
{
    FAKE_BEGIN_(nll);
    index = fake_int_(ctx, index, rows);
    logp = fake_in_(ctx, logp, rows * cols);
    out = fake_out_(ctx, out, 2);
    FAKE_RUN_(nll, (FAKE_HOST_, rows, cols, ignore, index, logp, out));
}

TEST_FN void fake_nll_grad_(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                            const int32_t *index, const ctr_real *out, const ctr_real *dloss,
                            ctr_real *dlogp, int acc)
{
    FAKE_BEGIN_(nll_grad);
    index = fake_int_(ctx, index, rows);
    out = fake_in_(ctx, out, 2);
    dloss = fake_in_(ctx, dloss, 1);
    dlogp = fake_out_(ctx, dlogp, rows * cols);
    FAKE_RUN_(nll_grad, (FAKE_HOST_, rows, cols, ignore, index, out, dloss, dlogp, acc));
}

TEST_FN void fake_contrast_(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                            const ctr_real *x, ctr_real scale, ctr_real *lse, ctr_real *positives,
                            ctr_real *out)
{
    FAKE_BEGIN_(contrast);
    ids = fake_int_(ctx, ids, m);
    x = fake_in_(ctx, x, m * d);
    lse = fake_out_(ctx, lse, m);
    positives = fake_out_(ctx, positives, m);
    out = fake_out_(ctx, out, CTR_CONTRAST_OUT);
    FAKE_RUN_(contrast, (FAKE_HOST_, m, d, ids, x, scale, lse, positives, out));
}

TEST_FN void fake_contrast_grad_(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                                 const ctr_real *x, ctr_real scale, const ctr_real *lse,
                                 const ctr_real *positives, const ctr_real *out,
                                 const ctr_real *dloss, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(contrast_grad);
    ids = fake_int_(ctx, ids, m);
    x = fake_in_(ctx, x, m * d);
    lse = fake_in_(ctx, lse, m);
    positives = fake_in_(ctx, positives, m);
    out = fake_in_(ctx, out, CTR_CONTRAST_OUT);
    dloss = fake_in_(ctx, dloss, 1);
    dx = fake_out_(ctx, dx, m * d);
    FAKE_RUN_(contrast_grad,
              (FAKE_HOST_, m, d, ids, x, scale, lse, positives, out, dloss, dx, acc));
}

TEST_FN void fake_gemm_(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k,
                        ctr_real alpha, const ctr_real *a, int64_t lda, const ctr_real *b,
                        int64_t ldb, ctr_real beta, ctr_real *c, int64_t ldc)
{
    FAKE_BEGIN_(gemm);
    a = fake_in_(ctx, a, ta ? fake_span_(k, m, lda) : fake_span_(m, k, lda));
    b = fake_in_(ctx, b, tb ? fake_span_(n, k, ldb) : fake_span_(k, n, ldb));
    c = fake_out_(ctx, c, fake_span_(m, n, ldc));
    FAKE_RUN_(gemm, (FAKE_HOST_, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc));
}

TEST_FN void fake_conv_forward_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                const ctr_real *w, ctr_real *y)
{
    FAKE_BEGIN_(conv_forward);
    x = fake_in_(ctx, x, s->n * s->h * s->w * s->c);
    w = fake_in_(ctx, w, s->kh * s->kw * s->c * s->oc);
    y = fake_out_(ctx, y, s->n * s->oh * s->ow * s->oc);
    FAKE_RUN_(conv_forward, (FAKE_HOST_, s, x, w, y));
}

TEST_FN void fake_conv_input_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                              const ctr_real *w, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(conv_input);
    dy = fake_in_(ctx, dy, s->n * s->oh * s->ow * s->oc);
    w = fake_in_(ctx, w, s->kh * s->kw * s->c * s->oc);
    dx = fake_out_(ctx, dx, s->n * s->h * s->w * s->c);
    FAKE_RUN_(conv_input, (FAKE_HOST_, s, dy, w, dx, acc));
}

TEST_FN void fake_conv_weight_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                               const ctr_real *dy, ctr_real *dw, int acc)
{
    FAKE_BEGIN_(conv_weight);
    x = fake_in_(ctx, x, s->n * s->h * s->w * s->c);
    dy = fake_in_(ctx, dy, s->n * s->oh * s->ow * s->oc);
    dw = fake_out_(ctx, dw, s->kh * s->kw * s->c * s->oc);
    FAKE_RUN_(conv_weight, (FAKE_HOST_, s, x, dy, dw, acc));
}

TEST_FN void fake_max_pool_(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y,
                            int32_t *which)
{
    FAKE_BEGIN_(max_pool);
    x = fake_in_(ctx, x, s->n * s->h * s->w * s->c);
    y = fake_out_(ctx, y, s->n * s->oh * s->ow * s->c);
    which = fake_int_(ctx, which, s->n * s->oh * s->ow * s->c);
    FAKE_RUN_(max_pool, (FAKE_HOST_, s, x, y, which));
}

TEST_FN void fake_max_pool_grad_(ctr_ctx *ctx, const ctr_pool_shape *s, const int32_t *which,
                                 const ctr_real *dy, ctr_real *dx, int acc)
{
    FAKE_BEGIN_(max_pool_grad);
    which = fake_int_(ctx, which, s->n * s->oh * s->ow * s->c);
    dy = fake_in_(ctx, dy, s->n * s->oh * s->ow * s->c);
    dx = fake_out_(ctx, dx, s->n * s->h * s->w * s->c);
    FAKE_RUN_(max_pool_grad, (FAKE_HOST_, s, which, dy, dx, acc));
}

TEST_FN void fake_avg_pool_(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y)
{
    FAKE_BEGIN_(avg_pool);
    x = fake_in_(ctx, x, s->n * s->h * s->w * s->c);
    y = fake_out_(ctx, y, s->n * s->oh * s->ow * s->c);
    FAKE_RUN_(avg_pool, (FAKE_HOST_, s, x, y));
}

TEST_FN void fake_avg_pool_grad_(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *dy,
                                 ctr_real *dx, int acc)
{
    FAKE_BEGIN_(avg_pool_grad);
    dy = fake_in_(ctx, dy, s->n * s->oh * s->ow * s->c);
    dx = fake_out_(ctx, dx, s->n * s->h * s->w * s->c);
    FAKE_RUN_(avg_pool_grad, (FAKE_HOST_, s, dy, dx, acc));
}

TEST_FN void fake_norm_stats_(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                              ctr_real *mean, ctr_real *var)
{
    FAKE_BEGIN_(norm_stats);
    x = fake_in_(ctx, x, rows * c);
    mean = fake_out_(ctx, mean, c);
    var = fake_out_(ctx, var, c);
    FAKE_RUN_(norm_stats, (FAKE_HOST_, rows, c, x, mean, var));
}

/* The same arguments with every pointer moved over. */
TEST_FN ctr_norm_args fake_norm_args_(ctr_ctx *ctx, const ctr_norm_args *a)
{
    ctr_norm_args b = *a;
    int64_t n = a->rows * a->c, c = a->c;
    b.x = fake_in_(ctx, a->x, n);
    b.mean = fake_in_(ctx, a->mean, c);
    b.var = fake_in_(ctx, a->var, c);
    b.gamma = fake_maybe_(ctx, a->gamma, c);
    b.beta = fake_maybe_(ctx, a->beta, c);
    b.residual = fake_maybe_(ctx, a->residual, n);
    b.y = fake_out_(ctx, a->y, n);
    b.dy = fake_maybe_(ctx, a->dy, n);
    b.dx = fake_maybe_(ctx, a->dx, n);
    b.dresidual = fake_maybe_(ctx, a->dresidual, n);
    b.dgamma = fake_maybe_(ctx, a->dgamma, c);
    b.dbeta = fake_maybe_(ctx, a->dbeta, c);
    return b;
}

TEST_FN void fake_norm_(ctr_ctx *ctx, const ctr_norm_args *a)
{
    ctr_norm_args b;
    FAKE_BEGIN_(norm);
    b = fake_norm_args_(ctx, a);
    FAKE_RUN_(norm, (FAKE_HOST_, &b));
}

TEST_FN void fake_norm_grad_(ctr_ctx *ctx, const ctr_norm_args *a)
{
    ctr_norm_args b;
    FAKE_BEGIN_(norm_grad);
    b = fake_norm_args_(ctx, a);
    FAKE_RUN_(norm_grad, (FAKE_HOST_, &b));
}

TEST_FN void fake_layer_norm_(ctr_ctx *ctx, int64_t rows, int64_t c, ctr_real eps,
                              const ctr_real *x, const ctr_real *gamma, const ctr_real *beta,
                              ctr_real *y, ctr_real *stats)
{
    FAKE_BEGIN_(layer_norm);
    x = fake_in_(ctx, x, rows * c);
    gamma = fake_in_(ctx, gamma, c);
    beta = fake_in_(ctx, beta, c);
    y = fake_out_(ctx, y, rows * c);
    stats = fake_out_(ctx, stats, rows * 2);
    FAKE_RUN_(layer_norm, (FAKE_HOST_, rows, c, eps, x, gamma, beta, y, stats));
}

TEST_FN void fake_layer_norm_grad_(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                                   const ctr_real *stats, const ctr_real *gamma, const ctr_real *dy,
                                   ctr_real *dx, int acc, ctr_real *xhat_dy)
{
    FAKE_BEGIN_(layer_norm_grad);
    x = fake_in_(ctx, x, rows * c);
    stats = fake_in_(ctx, stats, rows * 2);
    gamma = fake_in_(ctx, gamma, c);
    dy = fake_in_(ctx, dy, rows * c);
    dx = fake_maybe_(ctx, dx, rows * c);
    xhat_dy = fake_out_(ctx, xhat_dy, rows * c);
    FAKE_RUN_(layer_norm_grad, (FAKE_HOST_, rows, c, x, stats, gamma, dy, dx, acc, xhat_dy));
}

TEST_FN void fake_dropout_(ctr_ctx *ctx, int64_t n, double p, const uint32_t *key,
                           const uint32_t *counter, const ctr_real *x, ctr_real *y, int acc)
{
    FAKE_BEGIN_(dropout);
    x = fake_in_(ctx, x, n);
    y = fake_out_(ctx, y, n);
    FAKE_RUN_(dropout, (FAKE_HOST_, n, p, key, counter, x, y, acc));
}

TEST_FN ctr_optim_args fake_optim_args_(ctr_ctx *ctx, const ctr_optim_args *a)
{
    ctr_optim_args b = *a;
    b.w = fake_out_(ctx, a->w, a->n);
    b.m = fake_maybe_(ctx, a->m, a->n);
    b.v = fake_maybe_(ctx, a->v, a->n);
    b.g = fake_in_(ctx, a->g, a->n);
    return b;
}

TEST_FN void fake_sgd_(ctr_ctx *ctx, const ctr_optim_args *a)
{
    ctr_optim_args b;
    FAKE_BEGIN_(sgd);
    b = fake_optim_args_(ctx, a);
    FAKE_RUN_(sgd, (FAKE_HOST_, &b));
}

TEST_FN void fake_adamw_(ctr_ctx *ctx, const ctr_optim_args *a)
{
    ctr_optim_args b;
    FAKE_BEGIN_(adamw);
    b = fake_optim_args_(ctx, a);
    FAKE_RUN_(adamw, (FAKE_HOST_, &b));
}

TEST_FN int fake_finite_(ctr_ctx *ctx, int64_t n, const ctr_real *x)
{
    FAKE_BEGIN_(finite);
    x = fake_in_(ctx, x, n);
    return ctr_error(ctx) == CTR_OK && ctr_k_finite(FAKE_HOST_, n, x);
}

TEST_FN void fake_nearest_(ctr_ctx *ctx, int64_t n, int64_t k, int64_t d, const ctr_real *x,
                           const ctr_real *c, const ctr_real *minus, int32_t *which)
{
    FAKE_BEGIN_(nearest);
    x = fake_in_(ctx, x, n * d);
    c = fake_in_(ctx, c, k * d);
    minus = fake_in_(ctx, minus, k);
    which = fake_int_(ctx, which, n);
    FAKE_RUN_(nearest, (FAKE_HOST_, n, k, d, x, c, minus, which));
}

TEST_FN void fake_neighbors_(ctr_ctx *ctx, int64_t m, int64_t n, int64_t d, const ctr_real *q,
                             const ctr_real *x, const int32_t *skip, int64_t k, ctr_real *value,
                             int32_t *index)
{
    FAKE_BEGIN_(neighbors);
    q = fake_in_(ctx, q, m * d);
    x = fake_in_(ctx, x, n * d);
    skip = fake_int_(ctx, skip, m);
    value = fake_out_(ctx, value, m * k);
    index = fake_int_(ctx, index, m * k);
    FAKE_RUN_(neighbors, (FAKE_HOST_, m, n, d, q, x, skip, k, value, index));
}

TEST_FN void fake_segment_sum_(ctr_ctx *ctx, int64_t segments, int64_t n, int64_t d,
                               const int32_t *begin, const int32_t *order, const ctr_real *weight,
                               const ctr_real *x, double *y)
{
    FAKE_BEGIN_(segment_sum);
    begin = fake_int_(ctx, begin, segments + 1);
    order = fake_int_(ctx, order, n);
    weight = fake_maybe_(ctx, weight, n);
    x = fake_in_(ctx, x, n * d);
    y = (double *)(void *)fake_near_(ctx, y, (size_t)(segments * d) * sizeof *y);
    FAKE_RUN_(segment_sum, (FAKE_HOST_, segments, n, d, begin, order, weight, x, y));
}

/* Each view by itself: a view's image is cut out of the device's memory. */
TEST_FN void fake_views_(ctr_ctx *ctx, const ctr_view_args *a)
{
    int64_t size = a->h * a->w * a->c, out = a->config->height * a->config->width * a->c, i;
    FAKE_BEGIN_(views);
    for (i = 0; i < a->n; i++) {
        const uint8_t *image = a->images + a->index[i] * size;
        const char *near = fake_near_(ctx, image - (uintptr_t)image % 4,
                                      (size_t)size + (uintptr_t)image % 4);
        ctr_real *to = fake_out_(ctx, a->out + i * out, out);
        if (ctr_error(ctx) != CTR_OK) return;
        ctr_aug_view(FAKE_HOST_, a->config, &a->params[i],
                     (const uint8_t *)near + (uintptr_t)image % 4, a->h, a->w, a->c, to);
        if (ctr_error(FAKE_HOST_) != CTR_OK)
            ctr_error_set(ctx, ctr_error(FAKE_HOST_), ctr_error_text(FAKE_HOST_));
    }
}

/* ---------------------------------------------------------------------------------- open, close */

TEST_FN void fake_verbs_move_(ctr_device *d)
{
    d->zero = fake_zero_;
    d->copy = fake_copy_;
    d->upload = fake_upload_;
    d->download = fake_download_;
    d->fill = fake_fill_;
    d->permute = fake_permute_;
    d->copy_rows = fake_copy_rows_;
    d->gather = fake_gather_;
    d->scatter = fake_scatter_;
}

TEST_FN void fake_verbs_math_(ctr_device *d)
{
    d->axpby = fake_axpby_;
    d->binary = fake_binary_;
    d->broadcast = fake_broadcast_;
    d->unary = fake_unary_;
    d->unary_grad = fake_unary_grad_;
    d->reduce = fake_reduce_;
    d->expand = fake_expand_;
    d->dot = fake_dot_;
    d->softmax = fake_softmax_;
    d->softmax_grad = fake_softmax_grad_;
    d->normalize = fake_normalize_;
    d->normalize_grad = fake_normalize_grad_;
    d->nll = fake_nll_;
    d->nll_grad = fake_nll_grad_;
    d->contrast = fake_contrast_;
    d->contrast_grad = fake_contrast_grad_;
    d->gemm = fake_gemm_;
    d->finite = fake_finite_;
}

TEST_FN void fake_verbs_net_(ctr_device *d)
{
    d->conv_forward = fake_conv_forward_;
    d->conv_input = fake_conv_input_;
    d->conv_weight = fake_conv_weight_;
    d->max_pool = fake_max_pool_;
    d->max_pool_grad = fake_max_pool_grad_;
    d->avg_pool = fake_avg_pool_;
    d->avg_pool_grad = fake_avg_pool_grad_;
    d->norm_stats = fake_norm_stats_;
    d->norm = fake_norm_;
    d->norm_grad = fake_norm_grad_;
    d->layer_norm = fake_layer_norm_;
    d->layer_norm_grad = fake_layer_norm_grad_;
    d->dropout = fake_dropout_;
    d->sgd = fake_sgd_;
    d->adamw = fake_adamw_;
    d->views = fake_views_;
    d->nearest = fake_nearest_;
    d->neighbors = fake_neighbors_;
    d->segment_sum = fake_segment_sum_;
}

/* The device lives until fake_device_close; contexts on it are destroyed before. */
TEST_FN fake_device *fake_device_open(void)
{
    fake_device *f = (fake_device *)test_alloc(sizeof *f);
    ctr_config config = ctr_config_default();
    memset(f, 0, sizeof *f);
    f->page = (size_t)sysconf(_SC_PAGESIZE);
    f->far_base = (char *)mmap(NULL, FAKE_SPACE, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    f->near_base = (char *)mmap(NULL, FAKE_SPACE, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->far_base == (char *)MAP_FAILED || f->near_base == (char *)MAP_FAILED) {
        fprintf(stderr, "fake device: no address space\n");
        exit(3);
    }
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    f->host = test_host_create(&config);
    if (!f->host) exit(3);
    f->device.version = CTR_DEVICE_VERSION;
    f->device.name = "fake";
    f->device.user = f;
    f->device.alloc_fn = fake_alloc_;
    f->device.free_fn = fake_free_;
    fake_verbs_move_(&f->device);
    fake_verbs_math_(&f->device);
    fake_verbs_net_(&f->device);
    return f;
}

TEST_FN ctr_ctx *fake_device_ctx(fake_device *f)
{
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    config.threads = 1;
    config.device = &f->device;
    ctx = ctr_ctx_create(&config);
    if (!ctx) {
        fprintf(stderr, "fake device: no context\n");
        exit(3);
    }
    return ctx;
}

TEST_FN int fake_device_ran(const fake_device *f, const char *verb)
{
    int i;
    for (i = 0; i < FAKE_VERBS && f->seen[i]; i++)
        if (strcmp(f->seen[i], verb) == 0) return 1;
    return 0;
}

/* Tests that all memory came back as it was given, and frees the device. */
TEST_FN void fake_device_close(fake_device *f)
{
    test_equal("fake device: blocks that were never freed", f->live, 0);
    test_equal("fake device: bad frees and overruns", f->bad, 0);
    ctr_ctx_destroy(f->host);
    munmap(f->far_base, FAKE_SPACE);
    munmap(f->near_base, FAKE_SPACE);
    free(f);
}

#endif /* CTR_FAKE_DEVICE_H */
