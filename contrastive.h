/* contrastive.h - contrastive learning of visual representations in one C header
@@MANUAL@@
*/
#ifndef CONTRASTIVE_H
#define CONTRASTIVE_H

#include <stddef.h>
#include <stdint.h>

#define CTR_VERSION_MAJOR 0
#define CTR_VERSION_MINOR 1

#ifndef CONTRASTIVE_REAL
#define CONTRASTIVE_REAL float
#endif

#ifdef CONTRASTIVE_STATIC
#if defined(__GNUC__)
#define CTR_API __attribute__((unused)) static
#else
#define CTR_API static
#endif
#else
#define CTR_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ================================================================================================
   >>API                     P U B L I C   I N T E R F A C E
   ============================================================================================= */

/* The number type of tensors. float; double exists for gradient checks alone. */
typedef CONTRASTIVE_REAL ctr_real;

typedef struct ctr_ctx ctr_ctx;
typedef struct ctr_node ctr_node;

/* ------------------------------------------------------------------------------------------------
   >>MEMORY  context, allocator, errors, log
   ---------------------------------------------------------------------------------------------- */

/* What can go wrong. The first error stays in the context until ctr_error_clear(). */
typedef enum ctr_status {
    CTR_OK = 0,
    CTR_E_MEMORY,      /* the allocator returned NULL, or a size overflowed */
    CTR_E_SHAPE,       /* a tensor's shape is not what the operation takes */
    CTR_E_VALUE,       /* an argument is out of its range */
    CTR_E_STATE,       /* calls in an order that makes no sense */
    CTR_E_NUMBER,      /* NaN or infinity where a finite number is needed */
    CTR_E_FILE,        /* the operating system refused: missing, unreadable, disk full */
    CTR_E_FORMAT,      /* a file's content is not what its kind asks for */
    CTR_E_DEVICE,      /* the accelerator failed or lacks an operation */
    CTR_E_UNSUPPORTED  /* left out of this build */
} ctr_status;

/* The caller's memory. free_fn gets the size that alloc_fn was asked for. */
typedef struct ctr_allocator {
    void *user;
    void *(*alloc_fn)(void *user, size_t size);
    void (*free_fn)(void *user, void *ptr, size_t size);
} ctr_allocator;

typedef enum ctr_log_level { CTR_LOG_INFO = 0, CTR_LOG_WARN = 1 } ctr_log_level;

/* Sets of kernels. AUTO picks the best that this processor and this build have. */
typedef enum ctr_kernels {
    CTR_KERNELS_AUTO = 0,
    CTR_KERNELS_SCALAR,
    CTR_KERNELS_AVX2
} ctr_kernels;

struct ctr_device;

typedef struct ctr_config {
    ctr_allocator allocator;            /* all NULL: malloc and free */
    void *log_user;
    void (*log_fn)(void *user, ctr_log_level level, const char *text); /* default none */
    int threads;                        /* 1..64; 0: one for each processor that is online */
    uint64_t seed;                      /* key of every random number, default 1 */
    ctr_kernels kernels;
    const struct ctr_device *device;    /* NULL: the CPU. Must outlive the context */
} ctr_config;

CTR_API ctr_config ctr_config_default(void);
CTR_API void ctr_config_init(ctr_config *config);

/* Everything hangs off a context; two contexts never meet. One thread at a time may use it.
   config NULL means the defaults. Returns NULL when out of memory or when a value is out of range.
   Destroy what was created from it first; what remains of steps goes with it. */
CTR_API ctr_ctx *ctr_ctx_create(const ctr_config *config);
CTR_API void ctr_ctx_destroy(ctr_ctx *ctx);

CTR_API ctr_status ctr_error(const ctr_ctx *ctx);
CTR_API const char *ctr_error_text(const ctr_ctx *ctx);  /* "" when all is well */
CTR_API void ctr_error_clear(ctr_ctx *ctx);
CTR_API const char *ctr_status_name(ctr_status status);

CTR_API int ctr_threads(const ctr_ctx *ctx);
CTR_API uint64_t ctr_seed(const ctr_ctx *ctx);
CTR_API const char *ctr_kernels_name(const ctr_ctx *ctx); /* "scalar", "avx2", or the device's */

/* Bytes now held from the allocator, and the most there ever were. */
typedef struct ctr_memory {
    size_t held, peak;
    uint64_t allocations;     /* number of calls of alloc_fn so far */
    size_t slab, slab_peak;   /* the step's slab: its size, and what a step needed */
} ctr_memory;
CTR_API ctr_memory ctr_memory_stats(const ctr_ctx *ctx);

/* ------------------------------------------------------------------------------------------------
   >>RNG  counter-based random numbers: Philox 4x32-10 (Salmon et al., 2011)
   A number depends on (seed, stream, epoch, position, view, draw) and on nothing else, so no
   thread, batch size or resumed run can change it.
   ---------------------------------------------------------------------------------------------- */

typedef enum ctr_stream {
    CTR_STREAM_INIT = 1, CTR_STREAM_SAMPLE, CTR_STREAM_VIEW, CTR_STREAM_DROPOUT,
    CTR_STREAM_SHUFFLE, CTR_STREAM_NEGATIVE, CTR_STREAM_CLUSTER, CTR_STREAM_EVAL, CTR_STREAM_USER
} ctr_stream;

typedef struct ctr_rng {
    uint32_t key[2], counter[4], block[4];
    int used;                     /* numbers of the block already taken */
} ctr_rng;

/* position: of the sample in the epoch's order; view: which view of it, 0..65535. */
CTR_API void ctr_rng_init(ctr_rng *rng, uint64_t seed, ctr_stream stream, int64_t epoch,
                          int64_t position, int view);
CTR_API uint32_t ctr_rng_u32(ctr_rng *rng);
CTR_API double ctr_rng_uniform(ctr_rng *rng);                        /* [0, 1) */
CTR_API double ctr_rng_range(ctr_rng *rng, double low, double high); /* [low, high) */
CTR_API double ctr_rng_normal(ctr_rng *rng);                         /* mean 0, variance 1 */
CTR_API int64_t ctr_rng_below(ctr_rng *rng, int64_t n);              /* 0..n-1, n >= 1, unbiased */
/* Fills order[n] with a random permutation of 0..n-1 (Fisher and Yates). */
CTR_API void ctr_rng_permutation(ctr_rng *rng, int64_t n, int64_t *order);

/* ------------------------------------------------------------------------------------------------
   >>TENSOR  dense arrays of up to four dimensions, the last one varies fastest; images are NHWC
   ---------------------------------------------------------------------------------------------- */

typedef enum ctr_dtype { CTR_F32 = 0, CTR_I32 = 1, CTR_U8 = 2, CTR_BF16 = 3 /* reserved */ } ctr_dtype;

/* Read the first five members freely; the rest belongs to the library. CTR_F32 stands for ctr_real
   also in the double build. */
typedef struct ctr_tensor {
    ctr_dtype dtype;
    int rank;               /* 0..4; 0 is a scalar of size 1 */
    int64_t shape[4];       /* unused ones are 1 */
    int64_t size;           /* product of the shape */
    void *data;             /* the context's device owns this memory; the CPU's may be read */
    ctr_real *grad;         /* same shape; valid where ctr_tensor_has_grad() */
    ctr_node *node;         /* what made it, NULL for leaves and constants */
    uint64_t grad_step;     /* the step whose gradient is in grad */
    unsigned flags;
} ctr_tensor;

/* A tensor that lives until ctr_tensor_destroy. Content is zero. requires_grad: a leaf whose
   gradient backward accumulates (CTR_F32 only). On error returns a harmless empty tensor. */
CTR_API ctr_tensor *ctr_tensor_create(ctr_ctx *ctx, ctr_dtype dtype, int rank,
                                      const int64_t *shape, int requires_grad);
CTR_API void ctr_tensor_destroy(ctr_ctx *ctx, ctr_tensor *t); /* NULL is allowed */

/* A tensor that lives until the step ends (content undefined until written). */
CTR_API ctr_tensor *ctr_tensor_temp(ctr_ctx *ctx, ctr_dtype dtype, int rank, const int64_t *shape);

/* Between the host's memory and the tensor's; count must equal t->size. F32 and I32 have their own. */
CTR_API void ctr_tensor_write(ctr_ctx *ctx, ctr_tensor *t, const ctr_real *from, int64_t count);
CTR_API void ctr_tensor_read(ctr_ctx *ctx, const ctr_tensor *t, ctr_real *to, int64_t count);
CTR_API void ctr_tensor_write_i32(ctr_ctx *ctx, ctr_tensor *t, const int32_t *from, int64_t count);
CTR_API void ctr_tensor_read_i32(ctr_ctx *ctx, const ctr_tensor *t, int32_t *to, int64_t count);
CTR_API void ctr_tensor_read_grad(ctr_ctx *ctx, const ctr_tensor *t, ctr_real *to, int64_t count);
CTR_API void ctr_tensor_fill(ctr_ctx *ctx, ctr_tensor *t, ctr_real value);
CTR_API ctr_real ctr_tensor_item(ctr_ctx *ctx, const ctr_tensor *t); /* of size 1; 0 on error */
CTR_API int ctr_tensor_has_grad(const ctr_ctx *ctx, const ctr_tensor *t); /* in this step */

/* ------------------------------------------------------------------------------------------------
   >>VEC >>GEMM >>CONV  the kernel verbs
   Everything above this line of the library that touches a tensor's memory goes through these
   functions. Each does nothing after an error or while planning, hands over to the context's device
   if there is one, and runs the scalar reference or a faster kernel on the CPU otherwise. Pointers
   are to the device's memory; sizes are not checked again here. acc: add to the output instead of
   overwriting it. Users of tensors need none of them; users of the kernels alone do.
   ---------------------------------------------------------------------------------------------- */

typedef enum ctr_unary {
    CTR_RELU, CTR_GELU, CTR_SIGMOID, CTR_TANH, CTR_EXP, CTR_LOG, CTR_SQRT
} ctr_unary;
typedef enum ctr_binary { CTR_ADD, CTR_SUB, CTR_MUL, CTR_DIV } ctr_binary;

/* A convolution: zero padding, no dilation, no groups. */
typedef struct ctr_conv_shape {
    int64_t n, h, w, c;       /* input  [n, h, w, c]       */
    int64_t kh, kw, oc;       /* weight [kh, kw, c, oc]    */
    int64_t stride, pad;
    int64_t oh, ow;           /* output [n, oh, ow, oc]    */
} ctr_conv_shape;

/* A pooling window over [n, h, w, c] to [n, oh, ow, c]; padding never wins and never counts. */
typedef struct ctr_pool_shape {
    int64_t n, h, w, c, size, stride, pad, oh, ow;
} ctr_pool_shape;

/* Batch normalisation of x [rows, c] with an optional residual and ReLU behind it:
   y = act(gamma (x - mean) / sqrt(var + eps) + beta + residual). */
typedef struct ctr_norm_args {
    int64_t rows, c;
    const ctr_real *x, *mean, *var;         /* [rows, c], [c], [c] */
    const ctr_real *gamma, *beta;           /* [c] or NULL: 1 and 0 */
    const ctr_real *residual;               /* [rows, c] or NULL */
    ctr_real eps;
    int relu;
    int batch_stats;                        /* mean and var come from x: the gradient goes through */
    ctr_real *y;                            /* forward: out; backward: the output, for ReLU's mask */
    const ctr_real *dy;                     /* backward only, from here on */
    ctr_real *dx, *dresidual, *dgamma, *dbeta;  /* each may be NULL */
    int dx_acc, dresidual_acc, dgamma_acc, dbeta_acc;
} ctr_norm_args;

/* One step of an optimiser for one parameter; see >>OPTIM for the formulas. */
typedef struct ctr_optim_args {
    int64_t n;
    ctr_real *w, *m, *v;                    /* weight and its state, [n] */
    const ctr_real *g;
    double lr, momentum, decay, trust, beta1, beta2, eps, correct1, correct2;
    int nesterov, adapt, first;
} ctr_optim_args;

CTR_API void ctr_k_zero(ctr_ctx *ctx, size_t bytes, void *y);
CTR_API void ctr_k_copy(ctr_ctx *ctx, size_t bytes, const void *x, void *y);
CTR_API void ctr_k_upload(ctr_ctx *ctx, size_t bytes, const void *host, void *y);
CTR_API void ctr_k_download(ctr_ctx *ctx, size_t bytes, const void *x, void *host);
CTR_API void ctr_k_fill(ctr_ctx *ctx, int64_t n, ctr_real value, ctr_real *y);
/* y = a x + b y; b = 0 does not read y */
CTR_API void ctr_k_axpby(ctr_ctx *ctx, int64_t n, ctr_real a, const ctr_real *x, ctr_real b,
                         ctr_real *y);
/* z = x op y, elementwise */
CTR_API void ctr_k_binary(ctr_ctx *ctx, ctr_binary op, int64_t n, const ctr_real *x,
                          const ctr_real *y, ctr_real *z, int acc);
/* y[o, m, i] = x[o, m, i] op s[o, i] */
CTR_API void ctr_k_broadcast(ctr_ctx *ctx, ctr_binary op, int64_t outer, int64_t mid, int64_t inner,
                             const ctr_real *x, const ctr_real *s, ctr_real *y, int acc);
CTR_API void ctr_k_unary(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x, ctr_real *y);
/* dx = dy f'(x); x is read by GELU, LOG alone, y by the others */
CTR_API void ctr_k_unary_grad(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x,
                              const ctr_real *y, const ctr_real *dy, ctr_real *dx, int acc);
/* y[o, i] = alpha sum_m x[o, m, i] */
CTR_API void ctr_k_reduce(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc);
/* y[o, m, i] = alpha x[o, i] */
CTR_API void ctr_k_expand(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc);
/* out[0] = sum x y */
CTR_API void ctr_k_dot(ctr_ctx *ctx, int64_t n, const ctr_real *x, const ctr_real *y, ctr_real *out);
/* y = x with dimensions in the order perm: y's dimension i is x's dimension perm[i] */
CTR_API void ctr_k_permute(ctr_ctx *ctx, const int64_t shape[4], const int perm[4],
                           const ctr_real *x, ctr_real *y, int acc);
/* a block of rows of a wider matrix; ldx, ldy: numbers from row to row */
CTR_API void ctr_k_copy_rows(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             int64_t ldx, ctr_real *y, int64_t ldy, int acc);
/* y[i] = x[index[i]], rows of width numbers; an index outside 0..rows-1 gives a zero row */
CTR_API void ctr_k_gather(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n, const int32_t *index,
                          const ctr_real *x, ctr_real *y);
/* dx[index[i]] += dy[i]; dx [rows, width] is cleared first unless acc */
CTR_API void ctr_k_scatter(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                           const int32_t *index, const ctr_real *dy, ctr_real *dx, int acc);
/* y = softmax(x) of every row, or its logarithm */
CTR_API void ctr_k_softmax(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x, ctr_real *y,
                           int logarithm);
CTR_API void ctr_k_softmax_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                const ctr_real *dy, ctr_real *dx, int logarithm, int acc);
/* y = x / |x| of every row, a zero row stays zero; inv [rows] = 1 / |x| or 0 */
CTR_API void ctr_k_normalize(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             ctr_real *y, ctr_real *inv);
CTR_API void ctr_k_normalize_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                  const ctr_real *inv, const ctr_real *dy, ctr_real *dx, int acc);
/* out[0] = mean of -logp[i, index[i]] over the rows with index[i] != ignore, out[1] = their number;
   an index that is neither ignore nor a column makes out[1] = -1 */
CTR_API void ctr_k_nll(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                       const int32_t *index, const ctr_real *logp, ctr_real *out);
CTR_API void ctr_k_nll_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                            const int32_t *index, const ctr_real *out, const ctr_real *dloss,
                            ctr_real *dlogp, int acc);
/* Contrast of every row of sim [m, m] with the others; ids name what belongs together. See
   >>LOSS. out[0] loss, out[1] anchors with a positive; lse [m]; positives [m] counts. */
CTR_API void ctr_k_contrast(ctr_ctx *ctx, int64_t m, const int32_t *ids, const ctr_real *sim,
                            ctr_real *lse, ctr_real *positives, ctr_real *out);
CTR_API void ctr_k_contrast_grad(ctr_ctx *ctx, int64_t m, const int32_t *ids, const ctr_real *sim,
                                 const ctr_real *lse, const ctr_real *positives,
                                 const ctr_real *out, const ctr_real *dloss, ctr_real *dsim,
                                 int acc);
/* C[m, n] = alpha op(A) op(B) + beta C, row-major; ta, tb: transpose; beta = 0 does not read C */
CTR_API void ctr_k_gemm(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k,
                        ctr_real alpha, const ctr_real *a, int64_t lda, const ctr_real *b,
                        int64_t ldb, ctr_real beta, ctr_real *c, int64_t ldc);
CTR_API void ctr_k_conv_forward(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                const ctr_real *w, ctr_real *y);
CTR_API void ctr_k_conv_input(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                              const ctr_real *w, ctr_real *dx, int acc);
CTR_API void ctr_k_conv_weight(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                               const ctr_real *dy, ctr_real *dw, int acc);
/* which [n, oh, ow, c]: the place of the maximum within the input image */
CTR_API void ctr_k_max_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y,
                            int32_t *which);
CTR_API void ctr_k_max_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const int32_t *which,
                                 const ctr_real *dy, ctr_real *dx, int acc);
CTR_API void ctr_k_avg_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y);
CTR_API void ctr_k_avg_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *dy,
                                 ctr_real *dx, int acc);
/* mean and biased variance of every column of x [rows, c] */
CTR_API void ctr_k_norm_stats(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                              ctr_real *mean, ctr_real *var);
CTR_API void ctr_k_norm(ctr_ctx *ctx, const ctr_norm_args *a);
CTR_API void ctr_k_norm_grad(ctr_ctx *ctx, const ctr_norm_args *a);
/* rows normalised over their c numbers, then gamma and beta; stats [rows, 2]: mean, 1/sqrt(var+eps) */
CTR_API void ctr_k_layer_norm(ctr_ctx *ctx, int64_t rows, int64_t c, ctr_real eps, const ctr_real *x,
                              const ctr_real *gamma, const ctr_real *beta, ctr_real *y,
                              ctr_real *stats);
/* dx = nothing but the input's part; xhat_dy [rows, c] = dy xhat, whose column sums are dgamma */
CTR_API void ctr_k_layer_norm_grad(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                                   const ctr_real *stats, const ctr_real *gamma, const ctr_real *dy,
                                   ctr_real *dx, int acc, ctr_real *xhat_dy);
/* y = x / (1 - p) where a number of (key, draw) and the index is at least p, else 0 */
CTR_API void ctr_k_dropout(ctr_ctx *ctx, int64_t n, double p, const uint32_t key[2],
                           const uint32_t counter[4], const ctr_real *x, ctr_real *y, int acc);
CTR_API void ctr_k_sgd(ctr_ctx *ctx, const ctr_optim_args *a);
CTR_API void ctr_k_adamw(ctr_ctx *ctx, const ctr_optim_args *a);
/* 1 when all n numbers are finite; waits for the device */
CTR_API int ctr_k_finite(ctr_ctx *ctx, int64_t n, const ctr_real *x);

/* An accelerator: its memory and its verbs, with the prototypes of ctr_k_*. A verb that is NULL
   is a clear error when it is called, never a silent copy to the host. */
#define CTR_DEVICE_VERSION 1
typedef struct ctr_device {
    int version;              /* CTR_DEVICE_VERSION */
    const char *name;
    void *user;
    void *(*alloc_fn)(void *user, size_t size);           /* 64-byte aligned; NULL: none left */
    void (*free_fn)(void *user, void *ptr, size_t size);
    void (*zero)(ctr_ctx *, size_t, void *);
    void (*copy)(ctr_ctx *, size_t, const void *, void *);
    void (*upload)(ctr_ctx *, size_t, const void *, void *);
    void (*download)(ctr_ctx *, size_t, const void *, void *);
    void (*fill)(ctr_ctx *, int64_t, ctr_real, ctr_real *);
    void (*axpby)(ctr_ctx *, int64_t, ctr_real, const ctr_real *, ctr_real, ctr_real *);
    void (*binary)(ctr_ctx *, ctr_binary, int64_t, const ctr_real *, const ctr_real *, ctr_real *,
                   int);
    void (*broadcast)(ctr_ctx *, ctr_binary, int64_t, int64_t, int64_t, const ctr_real *,
                      const ctr_real *, ctr_real *, int);
    void (*unary)(ctr_ctx *, ctr_unary, int64_t, const ctr_real *, ctr_real *);
    void (*unary_grad)(ctr_ctx *, ctr_unary, int64_t, const ctr_real *, const ctr_real *,
                       const ctr_real *, ctr_real *, int);
    void (*reduce)(ctr_ctx *, int64_t, int64_t, int64_t, ctr_real, const ctr_real *, ctr_real *,
                   int);
    void (*expand)(ctr_ctx *, int64_t, int64_t, int64_t, ctr_real, const ctr_real *, ctr_real *,
                   int);
    void (*dot)(ctr_ctx *, int64_t, const ctr_real *, const ctr_real *, ctr_real *);
    void (*permute)(ctr_ctx *, const int64_t *, const int *, const ctr_real *, ctr_real *, int);
    void (*copy_rows)(ctr_ctx *, int64_t, int64_t, const ctr_real *, int64_t, ctr_real *, int64_t,
                      int);
    void (*gather)(ctr_ctx *, int64_t, int64_t, int64_t, const int32_t *, const ctr_real *,
                   ctr_real *);
    void (*scatter)(ctr_ctx *, int64_t, int64_t, int64_t, const int32_t *, const ctr_real *,
                    ctr_real *, int);
    void (*softmax)(ctr_ctx *, int64_t, int64_t, const ctr_real *, ctr_real *, int);
    void (*softmax_grad)(ctr_ctx *, int64_t, int64_t, const ctr_real *, const ctr_real *,
                         ctr_real *, int, int);
    void (*normalize)(ctr_ctx *, int64_t, int64_t, const ctr_real *, ctr_real *, ctr_real *);
    void (*normalize_grad)(ctr_ctx *, int64_t, int64_t, const ctr_real *, const ctr_real *,
                           const ctr_real *, ctr_real *, int);
    void (*nll)(ctr_ctx *, int64_t, int64_t, int32_t, const int32_t *, const ctr_real *,
                ctr_real *);
    void (*nll_grad)(ctr_ctx *, int64_t, int64_t, int32_t, const int32_t *, const ctr_real *,
                     const ctr_real *, ctr_real *, int);
    void (*contrast)(ctr_ctx *, int64_t, const int32_t *, const ctr_real *, ctr_real *, ctr_real *,
                     ctr_real *);
    void (*contrast_grad)(ctr_ctx *, int64_t, const int32_t *, const ctr_real *, const ctr_real *,
                          const ctr_real *, const ctr_real *, const ctr_real *, ctr_real *, int);
    void (*gemm)(ctr_ctx *, int, int, int64_t, int64_t, int64_t, ctr_real, const ctr_real *,
                 int64_t, const ctr_real *, int64_t, ctr_real, ctr_real *, int64_t);
    void (*conv_forward)(ctr_ctx *, const ctr_conv_shape *, const ctr_real *, const ctr_real *,
                         ctr_real *);
    void (*conv_input)(ctr_ctx *, const ctr_conv_shape *, const ctr_real *, const ctr_real *,
                       ctr_real *, int);
    void (*conv_weight)(ctr_ctx *, const ctr_conv_shape *, const ctr_real *, const ctr_real *,
                        ctr_real *, int);
    void (*max_pool)(ctr_ctx *, const ctr_pool_shape *, const ctr_real *, ctr_real *, int32_t *);
    void (*max_pool_grad)(ctr_ctx *, const ctr_pool_shape *, const int32_t *, const ctr_real *,
                          ctr_real *, int);
    void (*avg_pool)(ctr_ctx *, const ctr_pool_shape *, const ctr_real *, ctr_real *);
    void (*avg_pool_grad)(ctr_ctx *, const ctr_pool_shape *, const ctr_real *, ctr_real *, int);
    void (*norm_stats)(ctr_ctx *, int64_t, int64_t, const ctr_real *, ctr_real *, ctr_real *);
    void (*norm)(ctr_ctx *, const ctr_norm_args *);
    void (*norm_grad)(ctr_ctx *, const ctr_norm_args *);
    void (*layer_norm)(ctr_ctx *, int64_t, int64_t, ctr_real, const ctr_real *, const ctr_real *,
                       const ctr_real *, ctr_real *, ctr_real *);
    void (*layer_norm_grad)(ctr_ctx *, int64_t, int64_t, const ctr_real *, const ctr_real *,
                            const ctr_real *, const ctr_real *, ctr_real *, int, ctr_real *);
    void (*dropout)(ctr_ctx *, int64_t, double, const uint32_t *, const uint32_t *,
                    const ctr_real *, ctr_real *, int);
    void (*sgd)(ctr_ctx *, const ctr_optim_args *);
    void (*adamw)(ctr_ctx *, const ctr_optim_args *);
    int (*finite)(ctr_ctx *, int64_t, const ctr_real *);
} ctr_device;

/* For devices and other extensions: records an error as the library itself does. */
CTR_API void ctr_error_set(ctr_ctx *ctx, ctr_status status, const char *text);
CTR_API void *ctr_device_user(const ctr_ctx *ctx); /* NULL on the CPU */

/* ------------------------------------------------------------------------------------------------
   >>TAPE  define-by-run reverse-mode autograd

   A step is:  ctr_step_begin, operations, ctr_backward, check the error, optimiser and ctr_commit,
   ctr_step_end. Operations only stage what should change besides gradients (running statistics);
   ctr_commit applies it. A step that fails is left by ctr_step_end and has changed nothing.
   ---------------------------------------------------------------------------------------------- */

/* Starts a new generation of gradients: those of the step before are gone. */
CTR_API void ctr_step_begin(ctr_ctx *ctx);
/* Frees the step's tensors and drops what was staged and not committed. Gradients of leaves stay
   readable until the next ctr_step_begin. */
CTR_API void ctr_step_end(ctr_ctx *ctx);
/* Frees the step's tensors but keeps gradients and staged changes: for a batch in chunks. */
CTR_API void ctr_tape_reset(ctr_ctx *ctx);

/* Gradients of loss (size 1) with respect to every leaf that it depends on are added to the leaves'
   grad. The tape is spent: values of the step may be overwritten afterwards, unless kept. */
CTR_API void ctr_backward(ctr_ctx *ctx, ctr_tensor *loss);
/* The same from any tensor with a given gradient of the same shape. */
CTR_API void ctr_backward_from(ctr_ctx *ctx, ctr_tensor *t, const ctr_tensor *gradient);

/* Keeps t's value readable until the step ends, backward or not. Returns t. */
CTR_API ctr_tensor *ctr_keep(ctr_ctx *ctx, ctr_tensor *t);
/* The value of t without its history (Grill et al. and Chen & He call it stop-gradient). */
CTR_API ctr_tensor *ctr_detach(ctr_ctx *ctx, ctr_tensor *t);
/* Between these nothing is recorded. They nest. */
CTR_API void ctr_nograd_begin(ctr_ctx *ctx);
CTR_API void ctr_nograd_end(ctr_ctx *ctx);

/* dst = a dst + b src at ctr_commit; dst and src [n] tensors of equal size, src kept by the caller
   until then (ctr_keep). In the order of the calls. */
CTR_API void ctr_stage(ctr_ctx *ctx, ctr_tensor *dst, ctr_real a, ctr_real b,
                       const ctr_tensor *src);
CTR_API void ctr_commit(ctr_ctx *ctx);

/* Between these, operations check shapes and count memory but compute nothing; plan_end returns the
   bytes of the slab that the steps in between would need, whatever else they hold. */
CTR_API void ctr_plan_begin(ctr_ctx *ctx);
CTR_API size_t ctr_plan_end(ctr_ctx *ctx);
CTR_API void ctr_step_reserve(ctr_ctx *ctx, size_t bytes); /* makes the slab that large now */

/* Compares backward's gradient of a leaf with central differences of loss_fn, which builds a scalar
   from the leaves within a step that this function opens and ends. eps: the step, relative to
   max(1, |x|). Returns the largest of |a - b| / (max |b| + 1e-3), or -1 on error; checks at most
   limit entries, evenly spread (0: all). Meant for the double build. */
typedef ctr_tensor *(*ctr_loss_fn)(ctr_ctx *ctx, void *user);
CTR_API double ctr_gradient_check(ctr_ctx *ctx, ctr_loss_fn loss_fn, void *user, ctr_tensor *leaf,
                                  double eps, int64_t limit);

/* ------------------------------------------------------------------------------------------------
   >>OPS  differentiable operations
   They return a tensor that lives until the step ends. After an error they return a harmless empty
   tensor. Shapes in brackets; the letters are explained where they are not plain.
   ---------------------------------------------------------------------------------------------- */

/* x and y of one shape, or y broadcast: y's shape equal to the last dimensions of x ([c] on
   [n, h, w, c]), or of size 1. */
CTR_API ctr_tensor *ctr_add(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y);
CTR_API ctr_tensor *ctr_sub(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y);
CTR_API ctr_tensor *ctr_mul(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y);
CTR_API ctr_tensor *ctr_div(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y);
CTR_API ctr_tensor *ctr_scale(ctr_ctx *ctx, ctr_tensor *x, double factor);
CTR_API ctr_tensor *ctr_add_scalar(ctr_ctx *ctx, ctr_tensor *x, double value);
CTR_API ctr_tensor *ctr_bias(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *bias); /* [.., c] + [c] */

CTR_API ctr_tensor *ctr_relu(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_gelu(ctr_ctx *ctx, ctr_tensor *x);    /* x Phi(x), the exact one */
CTR_API ctr_tensor *ctr_sigmoid(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_tanh(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_exp(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_log(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_sqrt(ctr_ctx *ctx, ctr_tensor *x);

/* op(x) op(y): [m, k] x [k, n] -> [m, n]; tx, ty transpose the operands. */
CTR_API ctr_tensor *ctr_matmul(ctr_ctx *ctx, ctr_tensor *x, int tx, ctr_tensor *y, int ty);
/* [n, h, w, c] with weight [kh, kw, c, oc] -> [n, oh, ow, oc]; odd kernels, stride 1 or more. */
CTR_API ctr_tensor *ctr_conv(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *weight, int stride, int pad);

/* Over one axis, 0..rank-1, which disappears; axis -1: over everything, to a scalar. */
CTR_API ctr_tensor *ctr_sum(ctr_ctx *ctx, ctr_tensor *x, int axis);
CTR_API ctr_tensor *ctr_mean(ctr_ctx *ctx, ctr_tensor *x, int axis);

/* One dimension may be -1: it takes what is left. Shares x's memory. */
CTR_API ctr_tensor *ctr_reshape(ctr_ctx *ctx, ctr_tensor *x, int rank, const int64_t *shape);
CTR_API ctr_tensor *ctr_permute(ctr_ctx *ctx, ctr_tensor *x, const int *perm); /* rank entries */
CTR_API ctr_tensor *ctr_transpose(ctr_ctx *ctx, ctr_tensor *x);                /* [m, n] -> [n, m] */
CTR_API ctr_tensor *ctr_concat(ctr_ctx *ctx, int count, ctr_tensor *const *x, int axis);
CTR_API ctr_tensor *ctr_slice(ctr_ctx *ctx, ctr_tensor *x, int axis, int64_t from, int64_t count);
/* Rows of x [n, ...] by index [k] (I32) -> [k, ...]; an index may occur more than once. */
CTR_API ctr_tensor *ctr_gather(ctr_ctx *ctx, ctr_tensor *x, const ctr_tensor *index);

/* Along the last axis. A zero row stays zero and gets a zero gradient. */
CTR_API ctr_tensor *ctr_normalize(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_softmax(ctr_ctx *ctx, ctr_tensor *x);
CTR_API ctr_tensor *ctr_log_softmax(ctr_ctx *ctx, ctr_tensor *x);

/* Mean of -log softmax(logits)[target] over the rows whose target is not ignore; exactly 0 when all
   are ignored. logits [n, k], target [n] I32 in 0..k-1. */
CTR_API ctr_tensor *ctr_cross_entropy(ctr_ctx *ctx, ctr_tensor *logits, const ctr_tensor *target,
                                      int32_t ignore);
/* Mean over rows of -sum_k target log softmax(logits); target [n, k], its rows sum to 1. Gradients
   flow into logits alone. */
CTR_API ctr_tensor *ctr_cross_entropy_soft(ctr_ctx *ctx, ctr_tensor *logits, ctr_tensor *target);

typedef enum ctr_norm_mode {
    CTR_NORM_TRAIN,    /* statistics of the batch; running ones are staged */
    CTR_NORM_BATCH,    /* statistics of the batch; running ones stay */
    CTR_NORM_EVAL      /* running statistics; nothing changes */
} ctr_norm_mode;

/* Batch normalisation (Ioffe & Szegedy, 2015). gamma or beta NULL: 1 or 0. */
typedef struct ctr_norm {
    ctr_tensor *gamma, *beta, *mean, *var;   /* [c] each */
    ctr_real momentum;                       /* share of the new batch in the running values, 0.1 */
    ctr_real eps;                            /* 1e-5 */
} ctr_norm;

/* y = act(norm(x) + residual) for x [..., c]. The rows are cut into `groups` equal runs in order,
   each with statistics of its own (1: joint); running statistics see the groups one after another,
   with the unbiased variance n / (n - 1). residual may be NULL. relu: 0 or 1.
   An error: TRAIN or BATCH with fewer than two values a channel and group. */
CTR_API ctr_tensor *ctr_batch_norm(ctr_ctx *ctx, ctr_tensor *x, const ctr_norm *norm,
                                   ctr_norm_mode mode, int groups, ctr_tensor *residual, int relu);
/* Ba et al., 2016: over the last axis; gamma and beta [c]. */
CTR_API ctr_tensor *ctr_layer_norm(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *gamma, ctr_tensor *beta,
                                   double eps);
/* Zero with probability p in 0..1 (1 excluded), else x / (1 - p). The mask depends on the context's
   seed, on ctr_draws_at and on how many masks came before it in the step. */
CTR_API ctr_tensor *ctr_dropout(ctr_ctx *ctx, ctr_tensor *x, double p);
CTR_API void ctr_draws_at(ctr_ctx *ctx, int64_t epoch, int64_t position);

CTR_API ctr_tensor *ctr_max_pool(ctr_ctx *ctx, ctr_tensor *x, int size, int stride, int pad);
CTR_API ctr_tensor *ctr_avg_pool(ctr_ctx *ctx, ctr_tensor *x, int size, int stride, int pad);
CTR_API ctr_tensor *ctr_global_pool(ctr_ctx *ctx, ctr_tensor *x); /* [n, h, w, c] -> [n, c], mean */

#ifdef __cplusplus
}
#endif
#endif /* CONTRASTIVE_H */

/* ================================================================================================
   >>IMPL                     I M P L E M E N T A T I O N
   ============================================================================================= */
#ifdef CONTRASTIVE_IMPLEMENTATION
#ifndef CONTRASTIVE_IMPLEMENTED_
#define CONTRASTIVE_IMPLEMENTED_

/* ------------------------------------------------------------------------------------------------
   >>PLATFORM  compiler, number type, processor, clock, files
   ---------------------------------------------------------------------------------------------- */

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__unix__) || defined(__APPLE__)
#define CTR_POSIX_ 1
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>
#else
#define CTR_POSIX_ 0
#endif

#if defined(CONTRASTIVE_NO_THREADS) || !CTR_POSIX_
#define CTR_HAS_THREADS_ 0
#else
#define CTR_HAS_THREADS_ 1
#include <pthread.h>
#endif

#if defined(__GNUC__)
#define CTR_UNUSED_ __attribute__((unused))
#define CTR_INLINE_ static inline __attribute__((always_inline, unused))
#define CTR_PRINTF_(f, a) __attribute__((format(printf, f, a)))
#else
#define CTR_UNUSED_
#define CTR_INLINE_ static
#define CTR_PRINTF_(f, a)
#endif
/* A private function: one translation unit sees it, and nobody is warned if it stays unused. */
#define CTR_PRIVATE_ CTR_UNUSED_ static

/* CTR_REAL_IS_FLOAT_ is 1 or 0; CTR_R(0.5) is a literal and CTR_M_(exp) a function of that type. */
#define CTR_REALTAG_float 1
#define CTR_REALTAG_double 0
#define CTR_CAT2_(a, b) a##b
#define CTR_CAT_(a, b) CTR_CAT2_(a, b)
#if CTR_CAT_(CTR_REALTAG_, CONTRASTIVE_REAL)
#define CTR_REAL_IS_FLOAT_ 1
#define CTR_R(x) x##f
#define CTR_M_(fn) fn##f
#else
#define CTR_REAL_IS_FLOAT_ 0
#define CTR_R(x) x
#define CTR_M_(fn) fn
#endif

/* Kernels that bring their own instruction set need gcc or clang on x86-64. tcc and others, and the
   double build, take the scalar reference. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__TINYC__) && \
    !defined(CONTRASTIVE_NO_SIMD) && CTR_REAL_IS_FLOAT_
#define CTR_HAS_AVX2_ 1
#include <cpuid.h>
#include <immintrin.h>
#if defined(__clang__)
#define CTR_TARGET_AVX2_ __attribute__((target("avx2,fma")))
#else
#define CTR_TARGET_AVX2_ \
    __attribute__((target("avx2,fma"), optimize("O3", "no-trapping-math", "no-math-errno")))
#endif
#else
#define CTR_HAS_AVX2_ 0
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define CTR_PI_ 3.14159265358979323846
#define CTR_MIN_(a, b) ((a) < (b) ? (a) : (b))
#define CTR_MAX_(a, b) ((a) > (b) ? (a) : (b))

/* Does the processor have AVX2 and FMA, and does the system keep their registers? */
CTR_PRIVATE_ int ctr_platform_avx2_(void)
{
#if CTR_HAS_AVX2_
    unsigned a, b, c, d, lo, hi;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (!(c & (1u << 12)) || !(c & (1u << 27)) || !(c & (1u << 28))) return 0; /* fma osxsave avx */
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    if ((lo & 6u) != 6u) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (b & (1u << 5)) != 0;
#else
    return 0;
#endif
}

CTR_PRIVATE_ int ctr_platform_processors_(void)
{
#if CTR_HAS_THREADS_ && defined(_SC_NPROCESSORS_ONLN)
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 64 ? 64 : (int)n;
#else
    return 1;
#endif
}

/* Seconds of a wall clock, for reports only: no result ever depends on it. */
CTR_PRIVATE_ double ctr_platform_seconds_(void)
{
#if CTR_POSIX_
    struct timeval t;
    gettimeofday(&t, NULL);
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
#else
    return 0;
#endif
}

/* Finite by its bits: -ffast-math lets the compiler assume that isfinite() is always true. */
CTR_PRIVATE_ int ctr_real_finite_(ctr_real x)
{
#if CTR_REAL_IS_FLOAT_
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
#else
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7ff0000000000000u) != 0x7ff0000000000000u;
#endif
}

/* ------------------------------------------------------------------------------------------------
   >>MEMORY  context, allocator, errors, and the step's memory

   A step's memory has three parts. The slab has two ends: values that backward needs form a stack
   at its low end; gradients of intermediate values come from a free list at its high end. The host
   arena holds nodes and tensor headers; the kept arena holds what must outlive the backward pass.
   All three are reset when the step ends and keep their memory, so a steady step allocates nothing.
   ---------------------------------------------------------------------------------------------- */

#define CTR_ALIGN_ 64

typedef struct ctr_chunk_ {          /* a block of an arena; its memory follows or is the device's */
    struct ctr_chunk_ *next;
    char *base;
    size_t size, used;
} ctr_chunk_;

typedef struct ctr_arena_ {
    ctr_chunk_ *first, *current;
    int on_device;
} ctr_arena_;

typedef struct ctr_free_ {           /* a free gradient block of the slab's high end */
    struct ctr_free_ *next;
    char *ptr;
    size_t size;
} ctr_free_;

typedef struct ctr_slab_ {
    char *base;
    size_t size;
    size_t low, high;                /* bytes in use at either end of base */
    size_t want_low, want_high;      /* the same as if base were endless */
    size_t peak;                     /* most of want_low + want_high since the last reset */
    ctr_free_ *free_list;
    ctr_free_ *overflow;             /* blocks from the allocator, for what did not fit */
} ctr_slab_;

typedef struct ctr_staged_ {         /* dst = a * dst + b * src, done by ctr_commit */
    struct ctr_staged_ *next;
    ctr_real *dst;
    const ctr_real *src;
    int64_t n;
    ctr_real a, b;
} ctr_staged_;

struct ctr_pool_;

struct ctr_ctx {
    ctr_config config;
    ctr_kernels kernels;
    int threads;
    struct ctr_pool_ *pool;
    size_t held, peak;
    uint64_t allocations;
    ctr_status status;
    char text[512];
    ctr_tensor poison;               /* what operations return after an error */
    ctr_real poison_data[16];
    ctr_slab_ slab;
    ctr_arena_ host, kept;
    void *scratch;                   /* of the kernels: host memory, content lives for one call */
    size_t scratch_size;
    ctr_node *last_node;
    ctr_staged_ *staged, *staged_last;
    uint64_t step;                   /* number of gradients' generations so far */
    uint64_t draws;                  /* dropout masks drawn in this step */
    int64_t draw_epoch, draw_position;
    int plan, nograd;
    size_t plan_peak;
    ctr_slab_ plan_saved;
};

CTR_API const char *ctr_status_name(ctr_status status)
{
    switch (status) {
    case CTR_OK: return "ok";
    case CTR_E_MEMORY: return "out of memory";
    case CTR_E_SHAPE: return "wrong shape";
    case CTR_E_VALUE: return "value out of range";
    case CTR_E_STATE: return "wrong order of calls";
    case CTR_E_NUMBER: return "number not finite";
    case CTR_E_FILE: return "file error";
    case CTR_E_FORMAT: return "wrong file content";
    case CTR_E_DEVICE: return "device error";
    case CTR_E_UNSUPPORTED: return "not in this build";
    }
    return "unknown";
}

/* Records an error unless one is there already: the first is the cause, the rest its shadows. */
CTR_PRIVATE_ void ctr_fail_(ctr_ctx *ctx, ctr_status status, const char *format, ...)
    CTR_PRINTF_(3, 4);
CTR_PRIVATE_ void ctr_fail_(ctr_ctx *ctx, ctr_status status, const char *format, ...)
{
    va_list args;
    if (ctx->status != CTR_OK) return;
    ctx->status = status;
    va_start(args, format);
    vsnprintf(ctx->text, sizeof ctx->text, format, args);
    va_end(args);
}

CTR_PRIVATE_ void ctr_log_(ctr_ctx *ctx, ctr_log_level level, const char *format, ...)
    CTR_PRINTF_(3, 4);
CTR_PRIVATE_ void ctr_log_(ctr_ctx *ctx, ctr_log_level level, const char *format, ...)
{
    char text[512];
    va_list args;
    if (!ctx->config.log_fn) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->config.log_fn(ctx->config.log_user, level, text);
}

/* What a worker leaves instead of an error: jobs have a note each, the caller reports the first. */
typedef struct ctr_note_ {
    ctr_status status;
    char text[240];
} ctr_note_;

CTR_PRIVATE_ void ctr_note_set_(ctr_note_ *note, ctr_status status, const char *format, ...)
    CTR_PRINTF_(3, 4);
CTR_PRIVATE_ void ctr_note_set_(ctr_note_ *note, ctr_status status, const char *format, ...)
{
    va_list args;
    if (note->status != CTR_OK) return;
    note->status = status;
    va_start(args, format);
    vsnprintf(note->text, sizeof note->text, format, args);
    va_end(args);
}

CTR_PRIVATE_ void ctr_note_report_(ctr_ctx *ctx, const ctr_note_ *note)
{
    if (note->status != CTR_OK) ctr_fail_(ctx, note->status, "%s", note->text);
}

CTR_API ctr_status ctr_error(const ctr_ctx *ctx) { return ctx->status; }
CTR_API const char *ctr_error_text(const ctr_ctx *ctx) { return ctx->text; }

CTR_API void ctr_error_clear(ctr_ctx *ctx)
{
    ctx->status = CTR_OK;
    ctx->text[0] = 0;
}

/* May kernels run? Not after an error, and not while only planning. */
CTR_PRIVATE_ int ctr_ready_(const ctr_ctx *ctx) { return ctx->status == CTR_OK && !ctx->plan; }

/* a * b, or 0 with an error when it does not fit. Sizes reach us from files and from users. */
CTR_PRIVATE_ size_t ctr_size_mul_(ctr_ctx *ctx, size_t a, size_t b)
{
    if (b && a > (SIZE_MAX / 4) / b) {
        ctr_fail_(ctx, CTR_E_MEMORY, "memory: %lu x %lu bytes are more than can be addressed",
                  (unsigned long)a, (unsigned long)b);
        return 0;
    }
    return a * b;
}

/* Host memory from the caller's allocator; content undefined; NULL without an error when there is
   none. The only allocation that workers may use: the pool's lock keeps the allocator's calls apart. */
CTR_PRIVATE_ void ctr_memory_lock_(ctr_ctx *ctx);
CTR_PRIVATE_ void ctr_memory_unlock_(ctr_ctx *ctx);

CTR_PRIVATE_ void *ctr_try_alloc_(ctr_ctx *ctx, size_t size)
{
    void *p;
    if (size == 0) size = 1;
    ctr_memory_lock_(ctx);
    p = ctx->config.allocator.alloc_fn(ctx->config.allocator.user, size);
    ctx->allocations++;
    if (p) ctx->held += size;
    if (ctx->held > ctx->peak) ctx->peak = ctx->held;
    ctr_memory_unlock_(ctx);
    return p;
}

/* The same with an error recorded; not for workers. */
CTR_PRIVATE_ void *ctr_alloc_(ctr_ctx *ctx, size_t size)
{
    void *p = ctr_try_alloc_(ctx, size);
    if (!p)
        ctr_fail_(ctx, CTR_E_MEMORY, "memory: the allocator has no %lu bytes (%lu are held)",
                  (unsigned long)size, (unsigned long)ctx->held);
    return p;
}

CTR_PRIVATE_ void *ctr_alloc_zero_(ctr_ctx *ctx, size_t size)
{
    void *p = ctr_alloc_(ctx, size);
    if (p) memset(p, 0, size);
    return p;
}

CTR_PRIVATE_ void ctr_free_host_(ctr_ctx *ctx, void *p, size_t size)
{
    if (!p) return;
    if (size == 0) size = 1;
    ctr_memory_lock_(ctx);
    ctx->held -= size;
    ctx->config.allocator.free_fn(ctx->config.allocator.user, p, size);
    ctr_memory_unlock_(ctx);
}

CTR_PRIVATE_ size_t ctr_round_(size_t size)
{
    return (size + CTR_ALIGN_ - 1) & ~(size_t)(CTR_ALIGN_ - 1);
}

/* Host memory on a 64-byte boundary: the allocator promises no more than malloc does. The true
   start stands in front of the block. */
CTR_PRIVATE_ void *ctr_aligned_alloc_(ctr_ctx *ctx, size_t size)
{
    char *raw = (char *)ctr_alloc_(ctx, size + 2 * CTR_ALIGN_), *p;
    if (!raw) return NULL;
    p = raw + 2 * CTR_ALIGN_ - ((uintptr_t)raw & (CTR_ALIGN_ - 1));
    memcpy(p - sizeof raw, &raw, sizeof raw);
    return p;
}

CTR_PRIVATE_ void ctr_aligned_free_(ctr_ctx *ctx, void *p, size_t size)
{
    char *raw;
    if (!p) return;
    memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
    ctr_free_host_(ctx, raw, size + 2 * CTR_ALIGN_);
}

/* Memory of tensors: the device's if there is one, else the host's. */
CTR_PRIVATE_ void *ctr_data_alloc_(ctr_ctx *ctx, size_t size)
{
    const ctr_device *device = ctx->config.device;
    void *p;
    if (!device) return ctr_aligned_alloc_(ctx, size);
    p = device->alloc_fn(device->user, size ? size : 1);
    if (!p)
        ctr_fail_(ctx, CTR_E_MEMORY, "memory: device %s has no %lu bytes", device->name,
                  (unsigned long)size);
    return p;
}

CTR_PRIVATE_ void ctr_data_free_(ctr_ctx *ctx, void *p, size_t size)
{
    const ctr_device *device = ctx->config.device;
    if (!p) return;
    if (device) device->free_fn(device->user, p, size ? size : 1);
    else ctr_aligned_free_(ctx, p, size);
}

/* A piece of an arena, aligned to 64 bytes. Blocks once obtained serve every later step. */
CTR_PRIVATE_ void *ctr_arena_take_(ctr_ctx *ctx, ctr_arena_ *arena, size_t size)
{
    ctr_chunk_ *c = arena->current;
    size = ctr_round_(size ? size : 1);
    while (c && c->size - c->used < size && c->next) {
        c = c->next;
        c->used = 0;
    }
    if (!c || c->size - c->used < size) {
        size_t block = CTR_MAX_(size, (size_t)1 << 16);
        ctr_chunk_ *fresh;
        if (c) block = CTR_MAX_(block, c->size);
        fresh = (ctr_chunk_ *)ctr_alloc_(ctx, sizeof *fresh);
        if (!fresh) return NULL;
        fresh->base = (char *)(arena->on_device ? ctr_data_alloc_(ctx, block)
                                                : ctr_aligned_alloc_(ctx, block));
        if (!fresh->base) {
            ctr_free_host_(ctx, fresh, sizeof *fresh);
            return NULL;
        }
        fresh->next = NULL;
        fresh->size = block;
        fresh->used = 0;
        if (c) c->next = fresh;
        else arena->first = fresh;
        c = fresh;
    }
    arena->current = c;
    c->used += size;
    return c->base + c->used - size;
}

CTR_PRIVATE_ void ctr_arena_reset_(ctr_arena_ *arena)
{
    arena->current = arena->first;
    if (arena->first) arena->first->used = 0;
}

CTR_PRIVATE_ void ctr_arena_destroy_(ctr_ctx *ctx, ctr_arena_ *arena)
{
    ctr_chunk_ *c = arena->first, *next;
    for (; c; c = next) {
        next = c->next;
        if (arena->on_device) ctr_data_free_(ctx, c->base, c->size);
        else ctr_aligned_free_(ctx, c->base, c->size);
        ctr_free_host_(ctx, c, sizeof *c);
    }
    arena->first = arena->current = NULL;
}

/* ---- the slab ---------------------------------------------------------------------------------- */

/* What does not fit into the slab in the first step comes from the allocator; when the step ends,
   the slab grows to the size that the step has needed. */
CTR_PRIVATE_ void *ctr_slab_overflow_(ctr_ctx *ctx, size_t size)
{
    ctr_free_ *note = (ctr_free_ *)ctr_arena_take_(ctx, &ctx->host, sizeof *note);
    if (!note) return NULL;
    note->ptr = (char *)ctr_data_alloc_(ctx, size);
    if (!note->ptr) return NULL;
    note->size = size;
    note->next = ctx->slab.overflow;
    ctx->slab.overflow = note;
    return note->ptr;
}

CTR_PRIVATE_ void ctr_slab_note_peak_(ctr_slab_ *s)
{
    if (s->want_low + s->want_high > s->peak) s->peak = s->want_low + s->want_high;
}

/* Memory at the low end, for a value or for what backward needs. While planning it is only counted;
   the pointer is then one that nobody reads. */
CTR_PRIVATE_ void *ctr_slab_low_(ctr_ctx *ctx, size_t size)
{
    ctr_slab_ *s = &ctx->slab;
    size = ctr_round_(size ? size : 1);
    s->want_low += size;
    ctr_slab_note_peak_(s);
    if (ctx->plan) return ctx;
    if (s->size - s->low - s->high < size) return ctr_slab_overflow_(ctx, size);
    s->low += size;
    return s->base + s->low - size;
}

/* Memory at the high end, for a gradient; ctr_slab_give_ takes it back. */
CTR_PRIVATE_ void *ctr_slab_high_(ctr_ctx *ctx, size_t size)
{
    ctr_slab_ *s = &ctx->slab;
    ctr_free_ **link, *note;
    size = ctr_round_(size ? size : 1);
    for (link = &s->free_list; *link; link = &(*link)->next)
        if ((*link)->size == size) {
            note = *link;
            *link = note->next;
            return note->ptr;
        }
    s->want_high += size;
    ctr_slab_note_peak_(s);
    if (ctx->plan) return ctx;
    if (s->size - s->low - s->high < size) return ctr_slab_overflow_(ctx, size);
    s->high += size;
    return s->base + s->size - s->high;
}

CTR_PRIVATE_ void ctr_slab_give_(ctr_ctx *ctx, void *ptr, size_t size)
{
    ctr_free_ *note = (ctr_free_ *)ctr_arena_take_(ctx, &ctx->host, sizeof *note);
    if (!note) return; /* the block waits for the end of the step */
    note->ptr = (char *)ptr;
    note->size = ctr_round_(size ? size : 1);
    note->next = ctx->slab.free_list;
    ctx->slab.free_list = note;
}

/* Empties both ends. If the step overflowed, the slab is made large enough for the next one; when
   that fails the old one stays and the next step overflows again. */
CTR_PRIVATE_ void ctr_slab_reset_(ctr_ctx *ctx)
{
    ctr_slab_ *s = &ctx->slab;
    ctr_free_ *note;
    size_t want = ctr_round_(s->peak + CTR_ALIGN_);
    int grow = s->overflow != NULL;
    for (note = s->overflow; note; note = note->next) ctr_data_free_(ctx, note->ptr, note->size);
    s->overflow = s->free_list = NULL;
    s->low = s->high = s->want_low = s->want_high = 0;
    if (grow && want > s->size && ctx->status == CTR_OK) {
        char *base;
        ctr_data_free_(ctx, s->base, s->size);
        s->base = NULL;
        s->size = 0;
        base = (char *)ctr_data_alloc_(ctx, want);
        if (base) {
            s->base = base;
            s->size = want;
        } else {
            ctr_error_clear(ctx);
        }
    }
}

/* Scratch for kernels: one growing block of host memory, valid until the next call. */
CTR_PRIVATE_ void *ctr_scratch_(ctr_ctx *ctx, size_t size)
{
    void *fresh;
    if (size <= ctx->scratch_size) return ctx->scratch;
    size = ctr_round_(size + size / 8);
    fresh = ctr_aligned_alloc_(ctx, size);
    if (!fresh) return NULL;
    ctr_aligned_free_(ctx, ctx->scratch, ctx->scratch_size);
    ctx->scratch = fresh;
    ctx->scratch_size = size;
    return fresh;
}

/* Every verb begins with this: nothing after an error or in a plan; the device, if there is one. */
#define CTR_VERB_(name, args)                                                                 \
    if (!ctr_ready_(ctx)) return;                                                             \
    if (ctx->config.device) {                                                                 \
        if (ctx->config.device->name) ctx->config.device->name args;                          \
        else ctr_memory_missing_(ctx, #name);                                                    \
        return;                                                                               \
    }

CTR_PRIVATE_ void ctr_memory_missing_(ctr_ctx *ctx, const char *verb)
{
    ctr_fail_(ctx, CTR_E_DEVICE, "%s: device %s has no kernel for it", verb,
              ctx->config.device->name);
}

/* ---- copies between memories ------------------------------------------------------------------- */

CTR_API void ctr_k_zero(ctr_ctx *ctx, size_t bytes, void *y)
{
    CTR_VERB_(zero, (ctx, bytes, y))
    if (bytes) memset(y, 0, bytes);
}

CTR_API void ctr_k_copy(ctr_ctx *ctx, size_t bytes, const void *x, void *y)
{
    CTR_VERB_(copy, (ctx, bytes, x, y))
    if (bytes) memcpy(y, x, bytes);
}

CTR_API void ctr_k_upload(ctr_ctx *ctx, size_t bytes, const void *host, void *y)
{
    CTR_VERB_(upload, (ctx, bytes, host, y))
    if (bytes) memcpy(y, host, bytes);
}

CTR_API void ctr_k_download(ctr_ctx *ctx, size_t bytes, const void *x, void *host)
{
    CTR_VERB_(download, (ctx, bytes, x, host))
    if (bytes) memcpy(host, x, bytes);
}

CTR_API void ctr_error_set(ctr_ctx *ctx, ctr_status status, const char *text)
{
    ctr_fail_(ctx, status, "%s", text);
}

CTR_API void *ctr_device_user(const ctr_ctx *ctx)
{
    return ctx->config.device ? ctx->config.device->user : NULL;
}

/* ---- the context ------------------------------------------------------------------------------- */

CTR_PRIVATE_ void *ctr_memory_malloc_(void *user, size_t size)
{
    (void)user;
    return malloc(size);
}

CTR_PRIVATE_ void ctr_memory_free_(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    free(ptr);
}

CTR_API void ctr_config_init(ctr_config *config)
{
    memset(config, 0, sizeof *config);
    config->seed = 1;
}

CTR_API ctr_config ctr_config_default(void)
{
    ctr_config config;
    ctr_config_init(&config);
    return config;
}

CTR_PRIVATE_ void ctr_pool_destroy_(ctr_ctx *ctx);
CTR_PRIVATE_ void ctr_pool_create_(ctr_ctx *ctx);

CTR_API void ctr_ctx_destroy(ctr_ctx *ctx)
{
    ctr_allocator a;
    if (!ctx) return;
    ctr_pool_destroy_(ctx);
    ctr_slab_reset_(ctx);
    ctr_data_free_(ctx, ctx->slab.base, ctx->slab.size);
    ctr_arena_destroy_(ctx, &ctx->host);
    ctr_arena_destroy_(ctx, &ctx->kept);
    ctr_aligned_free_(ctx, ctx->scratch, ctx->scratch_size);
    a = ctx->config.allocator;
    a.free_fn(a.user, ctx, sizeof *ctx);
}

CTR_API ctr_ctx *ctr_ctx_create(const ctr_config *config)
{
    ctr_config c = config ? *config : ctr_config_default();
    ctr_ctx *ctx;
    if (!c.allocator.alloc_fn != !c.allocator.free_fn) return NULL;
    if (!c.allocator.alloc_fn) {
        c.allocator.alloc_fn = ctr_memory_malloc_;
        c.allocator.free_fn = ctr_memory_free_;
    }
    if (c.threads < 0 || c.threads > 64) return NULL;
    if (c.device && c.device->version != CTR_DEVICE_VERSION) return NULL;
    ctx = (ctr_ctx *)c.allocator.alloc_fn(c.allocator.user, sizeof *ctx);
    if (!ctx) return NULL;
    memset(ctx, 0, sizeof *ctx);
    ctx->config = c;
    ctx->threads = c.threads ? c.threads : ctr_platform_processors_();
    ctx->kernels = c.kernels == CTR_KERNELS_AUTO || c.kernels == CTR_KERNELS_AVX2
                       ? (ctr_platform_avx2_() ? CTR_KERNELS_AVX2 : CTR_KERNELS_SCALAR)
                       : CTR_KERNELS_SCALAR;
    ctx->kept.on_device = 1;
    ctx->step = 1;
    ctx->poison.rank = 1;
    ctx->poison.shape[1] = ctx->poison.shape[2] = ctx->poison.shape[3] = 1;
    ctx->poison.data = ctx->poison_data;
    ctr_pool_create_(ctx);
    if (ctx->status != CTR_OK) {
        ctr_ctx_destroy(ctx);
        return NULL;
    }
#if defined(__GNUC__) && !defined(__OPTIMIZE__)
    ctr_log_(ctx, CTR_LOG_WARN, "contrastive.h was compiled without optimisation: add -O2");
#endif
    return ctx;
}

CTR_API int ctr_threads(const ctr_ctx *ctx) { return ctx->threads; }
CTR_API uint64_t ctr_seed(const ctr_ctx *ctx) { return ctx->config.seed; }

CTR_API const char *ctr_kernels_name(const ctr_ctx *ctx)
{
    if (ctx->config.device) return ctx->config.device->name;
    return ctx->kernels == CTR_KERNELS_AVX2 ? "avx2" : "scalar";
}

CTR_API ctr_memory ctr_memory_stats(const ctr_ctx *ctx)
{
    ctr_memory m;
    m.held = ctx->held;
    m.peak = ctx->peak;
    m.allocations = ctx->allocations;
    m.slab = ctx->slab.size;
    m.slab_peak = ctx->slab.peak;
    return m;
}

/* ------------------------------------------------------------------------------------------------
   >>THREADS  a pool that belongs to the context

   ctr_parallel_ runs the chunks 0..n-1 of a job on the pool and the caller and returns when all are
   done. How work is cut into chunks must depend on shapes alone; which worker takes which chunk is
   left to chance, so chunks write to disjoint places. Jobs do not nest and never touch the context's
   error: they leave a note in their own slot, and the caller reports the first.
   A second, background job (the loader's) fills the gaps: workers take its chunks when the foreground
   has none; ctr_background_wait_ helps until it is done.
   ---------------------------------------------------------------------------------------------- */

typedef void (*ctr_job_fn)(void *arg, int64_t chunk, int worker);

typedef struct ctr_job_ {
    ctr_job_fn fn;
    void *arg;
    int64_t chunks, next, done;
} ctr_job_;

#if CTR_HAS_THREADS_

typedef struct ctr_worker_ {
    struct ctr_pool_ *pool;
    int index;
} ctr_worker_;

typedef struct ctr_pool_ {
    pthread_mutex_t lock, memory_lock;
    pthread_cond_t wake, finished;
    pthread_t threads[64];
    ctr_worker_ workers[64];
    int started, quit;
    ctr_job_ front, back;
} ctr_pool_;

/* Takes one chunk of a job and runs it; the lock is held on entry and on return. */
CTR_PRIVATE_ int ctr_pool_take_(ctr_pool_ *p, ctr_job_ *job, int worker)
{
    int64_t chunk;
    ctr_job_fn fn = job->fn;
    void *arg = job->arg;
    if (job->next >= job->chunks) return 0;
    chunk = job->next++;
    pthread_mutex_unlock(&p->lock);
    fn(arg, chunk, worker);
    pthread_mutex_lock(&p->lock);
    if (++job->done == job->chunks) pthread_cond_broadcast(&p->finished);
    return 1;
}

CTR_PRIVATE_ void *ctr_pool_main_(void *arg)
{
    ctr_worker_ *w = (ctr_worker_ *)arg;
    ctr_pool_ *p = w->pool;
    pthread_mutex_lock(&p->lock);
    while (!p->quit)
        if (!ctr_pool_take_(p, &p->front, w->index) && !ctr_pool_take_(p, &p->back, w->index))
            pthread_cond_wait(&p->wake, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

CTR_PRIVATE_ void ctr_pool_create_(ctr_ctx *ctx)
{
    ctr_pool_ *p;
    int i;
    if (ctx->threads == 1) return;
    p = (ctr_pool_ *)ctr_alloc_zero_(ctx, sizeof *p);
    if (!p) return;
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->memory_lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->finished, NULL);
    ctx->pool = p;
    for (i = 1; i < ctx->threads; i++) {
        p->workers[i].pool = p;
        p->workers[i].index = i;
        if (pthread_create(&p->threads[i], NULL, ctr_pool_main_, &p->workers[i])) break;
        p->started = i;
    }
    ctx->threads = p->started + 1; /* fewer threads change no result */
}

CTR_PRIVATE_ void ctr_pool_destroy_(ctr_ctx *ctx)
{
    ctr_pool_ *p = ctx->pool;
    int i;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->quit = 1;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (i = 1; i <= p->started; i++) pthread_join(p->threads[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->memory_lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->finished);
    ctx->pool = NULL;
    ctr_free_host_(ctx, p, sizeof *p);
}

CTR_PRIVATE_ void ctr_memory_lock_(ctr_ctx *ctx)
{
    if (ctx->pool) pthread_mutex_lock(&ctx->pool->memory_lock);
}

CTR_PRIVATE_ void ctr_memory_unlock_(ctr_ctx *ctx)
{
    if (ctx->pool) pthread_mutex_unlock(&ctx->pool->memory_lock);
}

CTR_PRIVATE_ void ctr_pool_post_(ctr_pool_ *p, ctr_job_ *job, int64_t n, ctr_job_fn fn, void *arg)
{
    job->fn = fn;
    job->arg = arg;
    job->next = job->done = 0;
    job->chunks = n;
    pthread_cond_broadcast(&p->wake);
}

CTR_PRIVATE_ void ctr_pool_wait_(ctr_pool_ *p, ctr_job_ *job)
{
    while (ctr_pool_take_(p, job, 0)) { }
    while (job->done < job->chunks) pthread_cond_wait(&p->finished, &p->lock);
    job->chunks = job->next = job->done = 0;
}

CTR_PRIVATE_ void ctr_parallel_(ctr_ctx *ctx, int64_t chunks, ctr_job_fn fn, void *arg)
{
    ctr_pool_ *p = ctx->pool;
    int64_t i;
    if (!p || chunks <= 1) {
        for (i = 0; i < chunks; i++) fn(arg, i, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    ctr_pool_post_(p, &p->front, chunks, fn, arg);
    ctr_pool_wait_(p, &p->front);
    pthread_mutex_unlock(&p->lock);
}

CTR_PRIVATE_ void ctr_background_start_(ctr_ctx *ctx, int64_t chunks, ctr_job_fn fn, void *arg)
{
    ctr_pool_ *p = ctx->pool;
    if (!p) {
        ctr_parallel_(ctx, chunks, fn, arg);
        return;
    }
    pthread_mutex_lock(&p->lock);
    ctr_pool_post_(p, &p->back, chunks, fn, arg);
    pthread_mutex_unlock(&p->lock);
}

CTR_PRIVATE_ void ctr_background_wait_(ctr_ctx *ctx)
{
    ctr_pool_ *p = ctx->pool;
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    ctr_pool_wait_(p, &p->back);
    pthread_mutex_unlock(&p->lock);
}

#else /* one thread */

CTR_PRIVATE_ void ctr_memory_lock_(ctr_ctx *ctx) { (void)ctx; }
CTR_PRIVATE_ void ctr_memory_unlock_(ctr_ctx *ctx) { (void)ctx; }

CTR_PRIVATE_ void ctr_pool_create_(ctr_ctx *ctx) { ctx->threads = 1; }
CTR_PRIVATE_ void ctr_pool_destroy_(ctr_ctx *ctx) { (void)ctx; }
CTR_PRIVATE_ void ctr_parallel_(ctr_ctx *ctx, int64_t chunks, ctr_job_fn fn, void *arg)
{
    int64_t i;
    (void)ctx;
    for (i = 0; i < chunks; i++) fn(arg, i, 0);
}
CTR_PRIVATE_ void ctr_background_start_(ctr_ctx *ctx, int64_t chunks, ctr_job_fn fn, void *arg)
{
    ctr_parallel_(ctx, chunks, fn, arg);
}
CTR_PRIVATE_ void ctr_background_wait_(ctr_ctx *ctx) { (void)ctx; }

#endif

CTR_PRIVATE_ int ctr_threads_(const ctr_ctx *ctx) { return ctx->threads; }
CTR_PRIVATE_ int ctr_kernels_(const ctr_ctx *ctx) { return (int)ctx->kernels; }

/* ------------------------------------------------------------------------------------------------
   >>RNG
   ---------------------------------------------------------------------------------------------- */

/* Ten rounds of Philox 4x32: multiply, exchange the halves, add the Weyl sequence to the key. */
CTR_PRIVATE_ void ctr_rng_philox_(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    int round;
    for (round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

CTR_API void ctr_rng_init(ctr_rng *rng, uint64_t seed, ctr_stream stream, int64_t epoch,
                          int64_t position, int view)
{
    rng->key[0] = (uint32_t)seed;
    rng->key[1] = (uint32_t)(seed >> 32) ^ ((uint32_t)((uint64_t)position >> 32) << 8);
    rng->counter[0] = 0;
    rng->counter[1] = (uint32_t)position;
    rng->counter[2] = (uint32_t)epoch;
    rng->counter[3] = ((uint32_t)stream << 16) | ((uint32_t)view & 0xffffu);
    rng->used = 4;
}

CTR_API uint32_t ctr_rng_u32(ctr_rng *rng)
{
    if (rng->used == 4) {
        ctr_rng_philox_(rng->key, rng->counter, rng->block);
        rng->counter[0]++;
        rng->used = 0;
    }
    return rng->block[rng->used++];
}

CTR_API double ctr_rng_uniform(ctr_rng *rng)
{
    return (double)(ctr_rng_u32(rng) >> 8) * (1.0 / 16777216.0);
}

CTR_API double ctr_rng_range(ctr_rng *rng, double low, double high)
{
    return low + (high - low) * ctr_rng_uniform(rng);
}

/* Box and Muller; the second number of the pair is thrown away to keep one draw one call. */
CTR_API double ctr_rng_normal(ctr_rng *rng)
{
    double u = 1.0 - ctr_rng_uniform(rng), v = ctr_rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(2.0 * CTR_PI_ * v);
}

/* 64 random bits, those that would favour small results rejected. */
CTR_API int64_t ctr_rng_below(ctr_rng *rng, int64_t n)
{
    uint64_t bound = (uint64_t)(n < 1 ? 1 : n), limit = UINT64_MAX - UINT64_MAX % bound, x;
    do {
        x = (uint64_t)ctr_rng_u32(rng) << 32;
        x |= ctr_rng_u32(rng);
    } while (x >= limit);
    return (int64_t)(x % bound);
}

CTR_API void ctr_rng_permutation(ctr_rng *rng, int64_t n, int64_t *order)
{
    int64_t i, j, t;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        j = ctr_rng_below(rng, i + 1);
        t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

/* ------------------------------------------------------------------------------------------------
   >>TENSOR
   ---------------------------------------------------------------------------------------------- */

enum { CTR_T_NEEDS_GRAD_ = 1, CTR_T_LEAF_ = 2, CTR_T_OWNED_ = 4, CTR_T_KEPT_ = 8 };

CTR_PRIVATE_ size_t ctr_dtype_size_(ctr_dtype dtype)
{
    return dtype == CTR_F32 ? sizeof(ctr_real) : dtype == CTR_I32 ? 4 : dtype == CTR_BF16 ? 2 : 1;
}

/* "[2, 32, 32, 3]" into text[64]; returns text. */
CTR_PRIVATE_ const char *ctr_shape_text_(int rank, const int64_t *shape, char *text)
{
    size_t at = 0;
    int i;
    text[at++] = '[';
    for (i = 0; i < rank && at < 48; i++)
        at += (size_t)snprintf(text + at, 64 - at, i ? ", %ld" : "%ld", (long)shape[i]);
    text[at++] = ']';
    text[at] = 0;
    return text;
}

/* Fills in type and shape and returns the bytes of the data; 0 with an error if that is absurd. */
CTR_PRIVATE_ size_t ctr_tensor_shape_(ctr_ctx *ctx, ctr_tensor *t, ctr_dtype dtype, int rank,
                                      const int64_t *shape)
{
    size_t bytes = ctr_dtype_size_(dtype);
    int i;
    memset(t, 0, sizeof *t);
    t->dtype = dtype;
    t->rank = rank;
    t->size = 1;
    if (rank < 0 || rank > 4) {
        ctr_fail_(ctx, CTR_E_SHAPE, "tensor: rank must be 0..4, got %d", rank);
        return 0;
    }
    for (i = 0; i < 4; i++) {
        t->shape[i] = i < rank ? shape[i] : 1;
        if (t->shape[i] < 0) {
            ctr_fail_(ctx, CTR_E_SHAPE, "tensor: dimension %d must be at least 0, got %ld", i,
                      (long)t->shape[i]);
            return 0;
        }
        bytes = ctr_size_mul_(ctx, bytes, (size_t)t->shape[i]);
        t->size *= t->shape[i];
        if (ctx->status != CTR_OK) return 0;
    }
    return bytes;
}

CTR_PRIVATE_ size_t ctr_tensor_bytes_(const ctr_tensor *t)
{
    return (size_t)t->size * ctr_dtype_size_(t->dtype);
}

CTR_API void ctr_tensor_destroy(ctr_ctx *ctx, ctr_tensor *t)
{
    if (!t || t == &ctx->poison) return;
    ctr_data_free_(ctx, t->data, ctr_tensor_bytes_(t));
    ctr_data_free_(ctx, t->grad, ctr_tensor_bytes_(t));
    ctr_free_host_(ctx, t, sizeof *t);
}

CTR_API ctr_tensor *ctr_tensor_create(ctr_ctx *ctx, ctr_dtype dtype, int rank,
                                      const int64_t *shape, int requires_grad)
{
    ctr_tensor probe, *t;
    size_t bytes;
    if (ctx->status != CTR_OK) return &ctx->poison;
    if (requires_grad && dtype != CTR_F32) {
        ctr_fail_(ctx, CTR_E_VALUE, "tensor: only CTR_F32 can have a gradient");
        return &ctx->poison;
    }
    bytes = ctr_tensor_shape_(ctx, &probe, dtype, rank, shape);
    if (ctx->status != CTR_OK) return &ctx->poison;
    t = (ctr_tensor *)ctr_alloc_(ctx, sizeof *t);
    if (!t) return &ctx->poison;
    *t = probe;
    t->flags = CTR_T_OWNED_ | (requires_grad ? CTR_T_NEEDS_GRAD_ | CTR_T_LEAF_ : 0u);
    t->data = ctr_data_alloc_(ctx, bytes);
    if (t->data && requires_grad) t->grad = (ctr_real *)ctr_data_alloc_(ctx, bytes);
    if (ctx->status != CTR_OK) {
        ctr_tensor_destroy(ctx, t);
        return &ctx->poison;
    }
    ctr_k_zero(ctx, bytes, t->data);
    return t;
}

/* A header in the host arena with data at the slab's low end. */
CTR_API ctr_tensor *ctr_tensor_temp(ctr_ctx *ctx, ctr_dtype dtype, int rank, const int64_t *shape)
{
    ctr_tensor *t;
    size_t bytes;
    if (ctx->status != CTR_OK) return &ctx->poison;
    t = (ctr_tensor *)ctr_arena_take_(ctx, &ctx->host, sizeof *t);
    if (!t) return &ctx->poison;
    bytes = ctr_tensor_shape_(ctx, t, dtype, rank, shape);
    if (ctx->status == CTR_OK) t->data = ctr_slab_low_(ctx, bytes);
    return ctx->status == CTR_OK ? t : &ctx->poison;
}

/* One check for the four copies between host and tensor. */
CTR_PRIVATE_ int ctr_tensor_copyable_(ctr_ctx *ctx, const ctr_tensor *t, ctr_dtype dtype,
                                      int64_t count, const char *name)
{
    static const char *const names[] = { "F32", "I32", "U8", "BF16" };
    if (!ctr_ready_(ctx)) return 0;
    if (t->dtype != dtype) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: the tensor must be %s, got %s", name, names[dtype],
                  names[t->dtype]);
        return 0;
    }
    if (t->size != count) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: the tensor has %ld numbers, got %ld", name, (long)t->size,
                  (long)count);
        return 0;
    }
    return 1;
}

CTR_API void ctr_tensor_write(ctr_ctx *ctx, ctr_tensor *t, const ctr_real *from, int64_t count)
{
    if (ctr_tensor_copyable_(ctx, t, CTR_F32, count, "tensor_write"))
        ctr_k_upload(ctx, ctr_tensor_bytes_(t), from, t->data);
}

CTR_API void ctr_tensor_read(ctr_ctx *ctx, const ctr_tensor *t, ctr_real *to, int64_t count)
{
    if (ctr_tensor_copyable_(ctx, t, CTR_F32, count, "tensor_read"))
        ctr_k_download(ctx, ctr_tensor_bytes_(t), t->data, to);
}

CTR_API void ctr_tensor_write_i32(ctr_ctx *ctx, ctr_tensor *t, const int32_t *from, int64_t count)
{
    if (ctr_tensor_copyable_(ctx, t, CTR_I32, count, "tensor_write_i32"))
        ctr_k_upload(ctx, ctr_tensor_bytes_(t), from, t->data);
}

CTR_API void ctr_tensor_read_i32(ctr_ctx *ctx, const ctr_tensor *t, int32_t *to, int64_t count)
{
    if (ctr_tensor_copyable_(ctx, t, CTR_I32, count, "tensor_read_i32"))
        ctr_k_download(ctx, ctr_tensor_bytes_(t), t->data, to);
}

CTR_API int ctr_tensor_has_grad(const ctr_ctx *ctx, const ctr_tensor *t)
{
    return t->grad != NULL && t->grad_step == ctx->step;
}

CTR_API void ctr_tensor_read_grad(ctr_ctx *ctx, const ctr_tensor *t, ctr_real *to, int64_t count)
{
    if (!ctr_tensor_copyable_(ctx, t, CTR_F32, count, "tensor_read_grad")) return;
    if (!ctr_tensor_has_grad(ctx, t)) {
        ctr_fail_(ctx, CTR_E_STATE, "tensor_read_grad: no gradient has reached this tensor");
        return;
    }
    ctr_k_download(ctx, ctr_tensor_bytes_(t), t->grad, to);
}

CTR_API ctr_real ctr_tensor_item(ctr_ctx *ctx, const ctr_tensor *t)
{
    ctr_real value = 0;
    if (ctr_tensor_copyable_(ctx, t, CTR_F32, 1, "tensor_item"))
        ctr_k_download(ctx, sizeof value, t->data, &value);
    return value;
}

/* ------------------------------------------------------------------------------------------------
   >>VEC  elementwise kernels, reductions, rows

   Each kernel is written once, as a plain loop over a range, and compiled twice: as it stands, and
   with AVX2 by CTR_VEC_KERNEL_ (the loops are simple enough for the compiler to vectorise; sums keep
   eight lanes by hand, because the order of a sum is part of the result). Ranges depend on the shape
   alone, and no two write the same place.
   ---------------------------------------------------------------------------------------------- */

#define CTR_LANES_ 8
enum { CTR_VEC_CHUNK_ = 16384 };          /* numbers a chunk: 64 KB of each operand */

typedef struct ctr_vec_ {                  /* the arguments of every kernel of this section */
    int op, acc, flag;
    int64_t n, outer, mid, inner, chunk;
    ctr_real a, b;
    const ctr_real *x, *x2, *x3, *x4;
    ctr_real *y, *y2;
    const int32_t *index;
    double *partial;
    const ctr_norm_args *norm;
    const ctr_optim_args *optim;
    double ratio;
} ctr_vec_;

/* name_body_(v, lo, hi) does the range lo..hi-1 of v->n; a chunk is v->chunk wide. */
#if CTR_HAS_AVX2_
#define CTR_VEC_KERNEL_(name)                                                                 \
    CTR_PRIVATE_ void name##plain_(void *arg, int64_t chunk, int worker)                      \
    {                                                                                         \
        const ctr_vec_ *v = (const ctr_vec_ *)arg;                                            \
        int64_t lo = chunk * v->chunk;                                                        \
        (void)worker;                                                                         \
        name##body_(v, lo, CTR_MIN_(lo + v->chunk, v->n));                                    \
    }                                                                                         \
    CTR_TARGET_AVX2_ CTR_PRIVATE_ void name##avx2_(void *arg, int64_t chunk, int worker)      \
    {                                                                                         \
        const ctr_vec_ *v = (const ctr_vec_ *)arg;                                            \
        int64_t lo = chunk * v->chunk;                                                        \
        (void)worker;                                                                         \
        name##body_(v, lo, CTR_MIN_(lo + v->chunk, v->n));                                    \
    }
#define CTR_VEC_RUN_(ctx, name, v)                                                            \
    ctr_vec_run_(ctx, (ctx)->kernels == CTR_KERNELS_AVX2 ? name##avx2_ : name##plain_, v)
#else
#define CTR_VEC_KERNEL_(name)                                                                 \
    CTR_PRIVATE_ void name##plain_(void *arg, int64_t chunk, int worker)                      \
    {                                                                                         \
        const ctr_vec_ *v = (const ctr_vec_ *)arg;                                            \
        int64_t lo = chunk * v->chunk;                                                        \
        (void)worker;                                                                         \
        name##body_(v, lo, CTR_MIN_(lo + v->chunk, v->n));                                    \
    }
#define CTR_VEC_RUN_(ctx, name, v) ctr_vec_run_(ctx, name##plain_, v)
#endif

CTR_PRIVATE_ void ctr_vec_run_(ctr_ctx *ctx, ctr_job_fn fn, ctr_vec_ *v)
{
    if (v->n <= 0) return;
    if (v->chunk <= 0) v->chunk = CTR_VEC_CHUNK_;
    ctr_parallel_(ctx, (v->n + v->chunk - 1) / v->chunk, fn, v);
}

/* How many rows of `cols` numbers make one chunk. */
CTR_PRIVATE_ int64_t ctr_vec_rows_(int64_t cols)
{
    int64_t rows = CTR_VEC_CHUNK_ / CTR_MAX_(cols, 1);
    return CTR_MAX_(rows, 1);
}

CTR_PRIVATE_ ctr_vec_ ctr_vec_args_(int64_t n)
{
    ctr_vec_ v;
    memset(&v, 0, sizeof v);
    v.n = n;
    return v;
}

/* ---- scalar functions -------------------------------------------------------------------------- */

/* exp(x) without branches, so that a loop over it can be vectorised: x = k ln 2 + r with |r| <= ln 2
   / 2, e^r by Taylor's series to the seventh power, 2^k by its exponent bits. Relative error below
   2e-7; results below 2^-126 are 0. In the double build it is the C library's. */
CTR_INLINE_ ctr_real ctr_exp_(ctr_real x)
{
#if CTR_REAL_IS_FLOAT_
    float k, r, p, scale;
    int32_t bits;
    x = x > 88.37f ? 88.37f : x;
    r = x > -87.33f ? x : -87.33f; /* NaN too: its cast would be undefined */
    r *= 1.44269504f;
    bits = (int32_t)(r + (r < 0 ? -0.5f : 0.5f));
    k = (float)bits;
    r = x > -87.33f ? x : -87.33f;
    r = (r - k * 0.693359375f) + k * 2.12194440e-4f;
    p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    bits = (bits + 127) * 8388608;
    memcpy(&scale, &bits, sizeof scale);
    return x < -87.33f ? 0.0f : x != x ? x : p * scale;
#else
    return exp(x);
#endif
}

CTR_INLINE_ ctr_real ctr_sigmoid_(ctr_real x) { return CTR_R(1.0) / (CTR_R(1.0) + ctr_exp_(-x)); }

/* Phi(x), the distribution function of the normal distribution, and its density. */
CTR_INLINE_ ctr_real ctr_normal_cdf_(ctr_real x)
{
    return CTR_R(0.5) * CTR_M_(erfc)(-x * CTR_R(0.70710678118654752));
}
CTR_INLINE_ ctr_real ctr_normal_pdf_(ctr_real x)
{
    return CTR_R(0.39894228040143268) * CTR_M_(exp)(CTR_R(-0.5) * x * x);
}

/* Adds up eight lanes in a fixed order. */
CTR_INLINE_ ctr_real ctr_lanes_sum_(const ctr_real *s)
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* sum of x y over n numbers */
CTR_INLINE_ ctr_real ctr_dot_(const ctr_real *x, const ctr_real *y, int64_t n)
{
    ctr_real s[CTR_LANES_] = { 0 };
    ctr_real tail = 0;
    int64_t i, j;
    for (i = 0; i + CTR_LANES_ <= n; i += CTR_LANES_)
        for (j = 0; j < CTR_LANES_; j++) s[j] += x[i + j] * y[i + j];
    for (; i < n; i++) tail += x[i] * y[i];
    return ctr_lanes_sum_(s) + tail;
}

CTR_INLINE_ ctr_real ctr_row_sum_(const ctr_real *x, int64_t n)
{
    ctr_real s[CTR_LANES_] = { 0 };
    ctr_real tail = 0;
    int64_t i, j;
    for (i = 0; i + CTR_LANES_ <= n; i += CTR_LANES_)
        for (j = 0; j < CTR_LANES_; j++) s[j] += x[i + j];
    for (; i < n; i++) tail += x[i];
    return ctr_lanes_sum_(s) + tail;
}

/* The maximum of n >= 1 numbers. */
CTR_INLINE_ ctr_real ctr_row_max_(const ctr_real *x, int64_t n)
{
    ctr_real m[CTR_LANES_], best = x[0];
    int64_t i, j;
    for (j = 0; j < CTR_LANES_; j++) m[j] = x[0];
    for (i = 0; i + CTR_LANES_ <= n; i += CTR_LANES_)
        for (j = 0; j < CTR_LANES_; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    for (j = 0; j < CTR_LANES_; j++) best = m[j] > best ? m[j] : best;
    return best;
}

/* ---- memory ------------------------------------------------------------------------------------ */

CTR_API void ctr_k_fill(ctr_ctx *ctx, int64_t n, ctr_real value, ctr_real *y)
{
    int64_t i;
    CTR_VERB_(fill, (ctx, n, value, y))
    for (i = 0; i < n; i++) y[i] = value;
}

CTR_API void ctr_tensor_fill(ctr_ctx *ctx, ctr_tensor *t, ctr_real value)
{
    if (ctr_tensor_copyable_(ctx, t, CTR_F32, t->size, "tensor_fill"))
        ctr_k_fill(ctx, t->size, value, (ctr_real *)t->data);
}

/* ---- elementwise ------------------------------------------------------------------------------- */

CTR_INLINE_ void ctr_axpby_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_real *x = v->x;
    ctr_real *y = v->y, a = v->a, b = v->b;
    int64_t i;
    if (b == 0)
        for (i = lo; i < hi; i++) y[i] = a * x[i];
    else if (a == 1 && b == 1)
        for (i = lo; i < hi; i++) y[i] += x[i];
    else
        for (i = lo; i < hi; i++) y[i] = a * x[i] + b * y[i];
}
CTR_VEC_KERNEL_(ctr_axpby_)

CTR_API void ctr_k_axpby(ctr_ctx *ctx, int64_t n, ctr_real a, const ctr_real *x, ctr_real b,
                         ctr_real *y)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(axpby, (ctx, n, a, x, b, y))
    v.a = a;
    v.b = b;
    v.x = x;
    v.y = y;
    CTR_VEC_RUN_(ctx, ctr_axpby_, &v);
}

CTR_INLINE_ void ctr_binary_range_(int op, int acc, int64_t n, const ctr_real *x, const ctr_real *s,
                                   ctr_real *z)
{
    int64_t i;
    if (!acc) {
        if (op == CTR_ADD) for (i = 0; i < n; i++) z[i] = x[i] + s[i];
        else if (op == CTR_SUB) for (i = 0; i < n; i++) z[i] = x[i] - s[i];
        else if (op == CTR_MUL) for (i = 0; i < n; i++) z[i] = x[i] * s[i];
        else for (i = 0; i < n; i++) z[i] = x[i] / s[i];
    } else {
        if (op == CTR_ADD) for (i = 0; i < n; i++) z[i] += x[i] + s[i];
        else if (op == CTR_SUB) for (i = 0; i < n; i++) z[i] += x[i] - s[i];
        else if (op == CTR_MUL) for (i = 0; i < n; i++) z[i] += x[i] * s[i];
        else for (i = 0; i < n; i++) z[i] += x[i] / s[i];
    }
}

CTR_INLINE_ void ctr_binary_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    ctr_binary_range_(v->op, v->acc, hi - lo, v->x + lo, v->x2 + lo, v->y + lo);
}
CTR_VEC_KERNEL_(ctr_binary_)

CTR_API void ctr_k_binary(ctr_ctx *ctx, ctr_binary op, int64_t n, const ctr_real *x,
                          const ctr_real *y, ctr_real *z, int acc)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(binary, (ctx, op, n, x, y, z, acc))
    v.op = op;
    v.acc = acc;
    v.x = x;
    v.x2 = y;
    v.y = z;
    CTR_VEC_RUN_(ctx, ctr_binary_, &v);
}

/* Rows are the pairs (o, m); with inner = 1 the operand is one number a row. */
CTR_INLINE_ void ctr_broadcast_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, inner = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * inner, *s = v->x2 + row / v->mid * inner;
        ctr_real *y = v->y + row * inner;
        ctr_binary_range_(v->op, v->acc, inner, x, s, y);
    }
}
CTR_VEC_KERNEL_(ctr_broadcast_)

CTR_API void ctr_k_broadcast(ctr_ctx *ctx, ctr_binary op, int64_t outer, int64_t mid, int64_t inner,
                             const ctr_real *x, const ctr_real *s, ctr_real *y, int acc)
{
    ctr_vec_ v = ctr_vec_args_(outer * mid);
    CTR_VERB_(broadcast, (ctx, op, outer, mid, inner, x, s, y, acc))
    v.op = op;
    v.acc = acc;
    v.mid = mid;
    v.inner = inner;
    v.x = x;
    v.x2 = s;
    v.y = y;
    v.chunk = ctr_vec_rows_(inner);
    CTR_VEC_RUN_(ctx, ctr_broadcast_, &v);
}

CTR_INLINE_ void ctr_unary_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_real *x = v->x;
    ctr_real *y = v->y;
    int64_t i;
    switch (v->op) {
    case CTR_RELU: for (i = lo; i < hi; i++) y[i] = x[i] > 0 ? x[i] : 0; break;
    case CTR_GELU: for (i = lo; i < hi; i++) y[i] = x[i] * ctr_normal_cdf_(x[i]); break;
    case CTR_SIGMOID: for (i = lo; i < hi; i++) y[i] = ctr_sigmoid_(x[i]); break;
    case CTR_TANH: for (i = lo; i < hi; i++) y[i] = CTR_M_(tanh)(x[i]); break;
    case CTR_EXP: for (i = lo; i < hi; i++) y[i] = CTR_M_(exp)(x[i]); break;
    case CTR_LOG: for (i = lo; i < hi; i++) y[i] = CTR_M_(log)(x[i]); break;
    default: for (i = lo; i < hi; i++) y[i] = CTR_M_(sqrt)(x[i]); break;
    }
}
CTR_VEC_KERNEL_(ctr_unary_)

CTR_API void ctr_k_unary(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x, ctr_real *y)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(unary, (ctx, op, n, x, y))
    v.op = op;
    v.x = x;
    v.y = y;
    CTR_VEC_RUN_(ctx, ctr_unary_, &v);
}

/* The derivative, by the output y where that is enough. */
CTR_INLINE_ ctr_real ctr_unary_slope_(int op, ctr_real x, ctr_real y)
{
    switch (op) {
    case CTR_RELU: return y > 0 ? CTR_R(1.0) : CTR_R(0.0);
    case CTR_GELU: return ctr_normal_cdf_(x) + x * ctr_normal_pdf_(x);
    case CTR_SIGMOID: return y * (1 - y);
    case CTR_TANH: return 1 - y * y;
    case CTR_EXP: return y;
    case CTR_LOG: return 1 / x;
    default: return CTR_R(0.5) / y;
    }
}

CTR_INLINE_ void ctr_unary_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_real *x = v->x, *y = v->x2, *dy = v->x3;
    ctr_real *dx = v->y;
    int64_t i;
    if (v->op == CTR_RELU && !v->acc) {
        for (i = lo; i < hi; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
        return;
    }
    for (i = lo; i < hi; i++) {
        ctr_real g = dy[i] * ctr_unary_slope_(v->op, x ? x[i] : 0, y ? y[i] : 0);
        dx[i] = v->acc ? dx[i] + g : g;
    }
}
CTR_VEC_KERNEL_(ctr_unary_grad_)

CTR_API void ctr_k_unary_grad(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x,
                              const ctr_real *y, const ctr_real *dy, ctr_real *dx, int acc)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(unary_grad, (ctx, op, n, x, y, dy, dx, acc))
    v.op = op;
    v.acc = acc;
    v.x = x;
    v.x2 = y;
    v.x3 = dy;
    v.y = dx;
    CTR_VEC_RUN_(ctx, ctr_unary_grad_, &v);
}

/* ---- reductions -------------------------------------------------------------------------------- */

enum { CTR_PARTS_ = 8 };   /* partial sums of a long reduction, added in order */

/* Sums over the rows lo..hi-1 of x [.., inner] into double out[inner], by way of blocks of 64 rows
   in ctr_real: fast and yet as exact as if all were done in double for any length that occurs. */
CTR_INLINE_ void ctr_column_sums_(const ctr_real *x, int64_t lo, int64_t hi, int64_t inner,
                                  double *out)
{
    ctr_real block[64];
    int64_t col, i, j, row, end, width;
    for (col = 0; col < inner; col += 64) {
        width = CTR_MIN_(inner - col, 64);
        for (j = 0; j < width; j++) out[col + j] = 0;
        for (row = lo; row < hi; row = end) {
            end = CTR_MIN_(row + 64, hi);
            for (j = 0; j < width; j++) block[j] = 0;
            for (i = row; i < end; i++) {
                const ctr_real *p = x + i * inner + col;
                for (j = 0; j < width; j++) block[j] += p[j];
            }
            for (j = 0; j < width; j++) out[col + j] += (double)block[j];
        }
    }
}

/* One chunk is one (outer, part): a run of the mid rows. */
CTR_INLINE_ void ctr_reduce_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t job, parts = v->outer, rows = v->mid;
    for (job = lo; job < hi; job++) {
        int64_t o = job / parts, part = job % parts;
        const ctr_real *x = v->x + o * rows * v->inner;
        double *out = v->partial + job * v->inner;
        int64_t from = rows * part / parts, to = rows * (part + 1) / parts;
        if (v->inner == 1) {
            double sum = 0;
            for (; from < to; from += 512) sum += (double)ctr_row_sum_(x + from, CTR_MIN_(to - from, 512));
            out[0] = sum;
        } else {
            ctr_column_sums_(x, from, to, v->inner, out);
        }
    }
}
CTR_VEC_KERNEL_(ctr_reduce_)

CTR_API void ctr_k_reduce(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc)
{
    int64_t parts = outer < CTR_PARTS_ && mid >= 1024 ? CTR_PARTS_ : 1, o, i, p;
    ctr_vec_ v = ctr_vec_args_(outer * parts);
    CTR_VERB_(reduce, (ctx, outer, mid, inner, alpha, x, y, acc))
    v.outer = parts;
    v.mid = mid;
    v.inner = inner;
    v.x = x;
    v.chunk = parts > 1 ? 1 : ctr_vec_rows_(mid * inner);
    v.partial = (double *)ctr_scratch_(ctx, (size_t)(outer * parts * inner) * sizeof(double));
    if (!v.partial) return;
    CTR_VEC_RUN_(ctx, ctr_reduce_, &v);
    for (o = 0; o < outer; o++)
        for (i = 0; i < inner; i++) {
            double sum = 0;
            for (p = 0; p < parts; p++) sum += v.partial[(o * parts + p) * inner + i];
            sum *= (double)alpha;
            y[o * inner + i] = (ctr_real)(acc ? (double)y[o * inner + i] + sum : sum);
        }
}

CTR_INLINE_ void ctr_expand_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row / v->mid * v->inner;
        ctr_real *y = v->y + row * v->inner;
        if (v->acc) for (i = 0; i < v->inner; i++) y[i] += v->a * x[i];
        else for (i = 0; i < v->inner; i++) y[i] = v->a * x[i];
    }
}
CTR_VEC_KERNEL_(ctr_expand_)

CTR_API void ctr_k_expand(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, ctr_real alpha,
                          const ctr_real *x, ctr_real *y, int acc)
{
    ctr_vec_ v = ctr_vec_args_(outer * mid);
    CTR_VERB_(expand, (ctx, outer, mid, inner, alpha, x, y, acc))
    v.mid = mid;
    v.inner = inner;
    v.a = alpha;
    v.acc = acc;
    v.x = x;
    v.y = y;
    v.chunk = ctr_vec_rows_(inner);
    CTR_VEC_RUN_(ctx, ctr_expand_, &v);
}

CTR_INLINE_ void ctr_dot_part_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t part, i;
    for (part = lo; part < hi; part++) {
        int64_t from = v->inner * part / v->n, to = v->inner * (part + 1) / v->n;
        double sum = 0;
        for (i = from; i < to; i += 256)
            sum += (double)ctr_dot_(v->x + i, v->x2 + i, CTR_MIN_(to - i, 256));
        v->partial[part] = sum;
    }
}
CTR_VEC_KERNEL_(ctr_dot_part_)

/* sum x y in double; host memory */
CTR_PRIVATE_ double ctr_dot_double_(ctr_ctx *ctx, int64_t n, const ctr_real *x, const ctr_real *y)
{
    double partial[CTR_PARTS_], sum = 0;
    int64_t parts = n > 16384 ? CTR_PARTS_ : 1, i;
    ctr_vec_ v = ctr_vec_args_(parts);
    v.chunk = 1;
    v.inner = n;
    v.x = x;
    v.x2 = y;
    v.partial = partial;
    CTR_VEC_RUN_(ctx, ctr_dot_part_, &v);
    for (i = 0; i < parts; i++) sum += partial[i];
    return sum;
}

CTR_API void ctr_k_dot(ctr_ctx *ctx, int64_t n, const ctr_real *x, const ctr_real *y, ctr_real *out)
{
    CTR_VERB_(dot, (ctx, n, x, y, out))
    out[0] = (ctr_real)ctr_dot_double_(ctx, n, x, y);
}

CTR_INLINE_ void ctr_finite_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t part, i;
    for (part = lo; part < hi; part++) {
        int64_t from = v->inner * part / v->n, to = v->inner * (part + 1) / v->n;
        int bad = 0;
        for (i = from; i < to; i++) bad |= !ctr_real_finite_(v->x[i]);
        v->partial[part] = bad;
    }
}
CTR_VEC_KERNEL_(ctr_finite_)

CTR_API int ctr_k_finite(ctr_ctx *ctx, int64_t n, const ctr_real *x)
{
    const ctr_device *device = ctx->config.device;
    double partial[CTR_PARTS_], bad = 0;
    int64_t parts = n > 65536 ? CTR_PARTS_ : 1, i;
    ctr_vec_ v = ctr_vec_args_(parts);
    if (!ctr_ready_(ctx)) return 1;
    if (device && !device->finite) {
        ctr_memory_missing_(ctx, "finite");
        return 0;
    }
    if (device) return device->finite(ctx, n, x);
    v.chunk = 1;
    v.inner = n;
    v.x = x;
    v.partial = partial;
    CTR_VEC_RUN_(ctx, ctr_finite_, &v);
    for (i = 0; i < parts; i++) bad += partial[i];
    return bad == 0;
}

/* ---- moving numbers ---------------------------------------------------------------------------- */

/* One row of the output is its last dimension. */
CTR_PRIVATE_ void ctr_permute_row_(const ctr_vec_ *v, const int64_t *stride, int64_t row)
{
    const int64_t *shape = stride + 4;       /* of the output */
    int64_t i = row, c2 = i % shape[2], c1 = i / shape[2] % shape[1], c0 = i / shape[2] / shape[1];
    const ctr_real *x = v->x + c0 * stride[0] + c1 * stride[1] + c2 * stride[2];
    ctr_real *y = v->y + row * shape[3];
    for (i = 0; i < shape[3]; i++) {
        ctr_real value = x[i * stride[3]];
        y[i] = v->acc ? y[i] + value : value;
    }
}

typedef struct ctr_permute_ {
    ctr_vec_ v;
    int64_t stride[8];                       /* 4 strides in x, then the output's shape */
} ctr_permute_;

CTR_PRIVATE_ void ctr_permute_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_permute_ *p = (const ctr_permute_ *)arg;
    int64_t row = chunk * p->v.chunk, end = CTR_MIN_(row + p->v.chunk, p->v.n);
    (void)worker;
    for (; row < end; row++) ctr_permute_row_(&p->v, p->stride, row);
}

CTR_API void ctr_k_permute(ctr_ctx *ctx, const int64_t shape[4], const int perm[4],
                           const ctr_real *x, ctr_real *y, int acc)
{
    ctr_permute_ p;
    int64_t stride[4] = { 1, 1, 1, 1 };
    int i;
    CTR_VERB_(permute, (ctx, shape, perm, x, y, acc))
    for (i = 2; i >= 0; i--) stride[i] = stride[i + 1] * shape[i + 1];
    for (i = 0; i < 4; i++) {
        p.stride[i] = stride[perm[i]];
        p.stride[4 + i] = shape[perm[i]];
    }
    p.v = ctr_vec_args_(p.stride[4] * p.stride[5] * p.stride[6]);
    p.v.x = x;
    p.v.y = y;
    p.v.acc = acc;
    p.v.chunk = ctr_vec_rows_(p.stride[7]);
    if (p.v.n > 0)
        ctr_parallel_(ctx, (p.v.n + p.v.chunk - 1) / p.v.chunk, ctr_permute_job_, &p);
}

CTR_INLINE_ void ctr_copy_rows_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * v->outer;
        ctr_real *y = v->y + row * v->mid;
        if (v->acc) for (i = 0; i < v->inner; i++) y[i] += x[i];
        else for (i = 0; i < v->inner; i++) y[i] = x[i];
    }
}
CTR_VEC_KERNEL_(ctr_copy_rows_)

CTR_API void ctr_k_copy_rows(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             int64_t ldx, ctr_real *y, int64_t ldy, int acc)
{
    ctr_vec_ v = ctr_vec_args_(rows);
    CTR_VERB_(copy_rows, (ctx, rows, cols, x, ldx, y, ldy, acc))
    v.outer = ldx;
    v.mid = ldy;
    v.inner = cols;
    v.acc = acc;
    v.x = x;
    v.y = y;
    v.chunk = ctr_vec_rows_(cols);
    CTR_VEC_RUN_(ctx, ctr_copy_rows_, &v);
}

CTR_INLINE_ void ctr_gather_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, width = v->inner;
    for (row = lo; row < hi; row++) {
        int64_t at = v->index[row];
        ctr_real *y = v->y + row * width;
        if (at < 0 || at >= v->outer) for (i = 0; i < width; i++) y[i] = 0;
        else for (i = 0; i < width; i++) y[i] = v->x[at * width + i];
    }
}
CTR_VEC_KERNEL_(ctr_gather_)

CTR_API void ctr_k_gather(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n, const int32_t *index,
                          const ctr_real *x, ctr_real *y)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(gather, (ctx, rows, width, n, index, x, y))
    v.outer = rows;
    v.inner = width;
    v.index = index;
    v.x = x;
    v.y = y;
    v.chunk = ctr_vec_rows_(width);
    CTR_VEC_RUN_(ctx, ctr_gather_, &v);
}

/* A range of columns: rows that meet in one place are added in the order of the index. */
CTR_INLINE_ void ctr_scatter_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, width = v->n;
    for (row = 0; row < v->mid; row++) {
        int64_t at = v->index[row];
        if (at < 0 || at >= v->outer) continue;
        for (i = lo; i < hi; i++) v->y[at * width + i] += v->x[row * width + i];
    }
}
CTR_VEC_KERNEL_(ctr_scatter_)

CTR_API void ctr_k_scatter(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                           const int32_t *index, const ctr_real *dy, ctr_real *dx, int acc)
{
    ctr_vec_ v = ctr_vec_args_(width);
    CTR_VERB_(scatter, (ctx, rows, width, n, index, dy, dx, acc))
    if (!acc) memset(dx, 0, (size_t)(rows * width) * sizeof *dx);
    v.outer = rows;
    v.mid = n;
    v.index = index;
    v.x = dy;
    v.y = dx;
    v.chunk = 64;
    CTR_VEC_RUN_(ctx, ctr_scatter_, &v);
}

/* ---- rows -------------------------------------------------------------------------------------- */

/* e[i] = exp(x[i] - max) and their sum. */
CTR_INLINE_ ctr_real ctr_row_exp_(const ctr_real *x, ctr_real max, ctr_real *e, int64_t n)
{
    int64_t i;
    for (i = 0; i < n; i++) e[i] = ctr_exp_(x[i] - max);
    return ctr_row_sum_(e, n);
}

CTR_INLINE_ void ctr_softmax_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, n = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * n;
        ctr_real *y = v->y + row * n, max = ctr_row_max_(x, n), sum = ctr_row_exp_(x, max, y, n);
        if (v->flag) {
            ctr_real shift = max + CTR_M_(log)(sum);
            for (i = 0; i < n; i++) y[i] = x[i] - shift;
        } else {
            for (i = 0; i < n; i++) y[i] /= sum;
        }
    }
}
CTR_VEC_KERNEL_(ctr_softmax_)

CTR_API void ctr_k_softmax(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x, ctr_real *y,
                           int logarithm)
{
    ctr_vec_ v = ctr_vec_args_(cols > 0 ? rows : 0);
    CTR_VERB_(softmax, (ctx, rows, cols, x, y, logarithm))
    v.inner = cols;
    v.flag = logarithm;
    v.x = x;
    v.y = y;
    v.chunk = ctr_vec_rows_(4 * cols);
    CTR_VEC_RUN_(ctx, ctr_softmax_, &v);
}

/* softmax: dx = y (dy - sum dy y);  logarithm: dx = dy - exp(y) sum dy */
CTR_INLINE_ void ctr_softmax_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, n = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *y = v->x + row * n, *dy = v->x2 + row * n;
        ctr_real *dx = v->y + row * n;
        ctr_real sum = v->flag ? ctr_row_sum_(dy, n) : ctr_dot_(dy, y, n);
        for (i = 0; i < n; i++) {
            ctr_real g = v->flag ? dy[i] - ctr_exp_(y[i]) * sum : y[i] * (dy[i] - sum);
            dx[i] = v->acc ? dx[i] + g : g;
        }
    }
}
CTR_VEC_KERNEL_(ctr_softmax_grad_)

CTR_API void ctr_k_softmax_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                const ctr_real *dy, ctr_real *dx, int logarithm, int acc)
{
    ctr_vec_ v = ctr_vec_args_(cols > 0 ? rows : 0);
    CTR_VERB_(softmax_grad, (ctx, rows, cols, y, dy, dx, logarithm, acc))
    v.inner = cols;
    v.flag = logarithm;
    v.acc = acc;
    v.x = y;
    v.x2 = dy;
    v.y = dx;
    v.chunk = ctr_vec_rows_(4 * cols);
    CTR_VEC_RUN_(ctx, ctr_softmax_grad_, &v);
}

/* The smallest norm that counts as a direction; its square is still a normal number. */
#define CTR_TINY_NORM_ CTR_R(1e-18)

CTR_INLINE_ void ctr_normalize_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, n = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * n;
        ctr_real *y = v->y + row * n, norm = CTR_M_(sqrt)(ctr_dot_(x, x, n));
        ctr_real inv = norm > CTR_TINY_NORM_ ? 1 / norm : 0;
        for (i = 0; i < n; i++) y[i] = x[i] * inv;
        v->y2[row] = inv;
    }
}
CTR_VEC_KERNEL_(ctr_normalize_)

CTR_API void ctr_k_normalize(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             ctr_real *y, ctr_real *inv)
{
    ctr_vec_ v = ctr_vec_args_(rows);
    CTR_VERB_(normalize, (ctx, rows, cols, x, y, inv))
    v.inner = cols;
    v.x = x;
    v.y = y;
    v.y2 = inv;
    v.chunk = ctr_vec_rows_(cols);
    CTR_VEC_RUN_(ctx, ctr_normalize_, &v);
}

/* dx = (dy - y (y . dy)) / |x|: what changes the length is projected out. */
CTR_INLINE_ void ctr_normalize_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, i, n = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *y = v->x + row * n, *dy = v->x3 + row * n;
        ctr_real *dx = v->y + row * n, along = ctr_dot_(y, dy, n), inv = v->x2[row];
        for (i = 0; i < n; i++) {
            ctr_real g = (dy[i] - y[i] * along) * inv;
            dx[i] = v->acc ? dx[i] + g : g;
        }
    }
}
CTR_VEC_KERNEL_(ctr_normalize_grad_)

CTR_API void ctr_k_normalize_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *y,
                                  const ctr_real *inv, const ctr_real *dy, ctr_real *dx, int acc)
{
    ctr_vec_ v = ctr_vec_args_(rows);
    CTR_VERB_(normalize_grad, (ctx, rows, cols, y, inv, dy, dx, acc))
    v.inner = cols;
    v.acc = acc;
    v.x = y;
    v.x2 = inv;
    v.x3 = dy;
    v.y = dx;
    v.chunk = ctr_vec_rows_(cols);
    CTR_VEC_RUN_(ctx, ctr_normalize_grad_, &v);
}

/* ---- losses' inner parts ----------------------------------------------------------------------- */

CTR_API void ctr_k_nll(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                       const int32_t *index, const ctr_real *logp, ctr_real *out)
{
    double sum = 0, count = 0;
    int64_t i;
    int bad = 0;
    CTR_VERB_(nll, (ctx, rows, cols, ignore, index, logp, out))
    for (i = 0; i < rows; i++) {
        if (index[i] == ignore) continue;
        if (index[i] < 0 || index[i] >= cols) {
            bad = 1;
            continue;
        }
        sum -= (double)logp[i * cols + index[i]];
        count += 1;
    }
    out[0] = (ctr_real)(count > 0 ? sum / count : 0);
    out[1] = (ctr_real)(bad ? -1 : count);
}

CTR_API void ctr_k_nll_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                            const int32_t *index, const ctr_real *out, const ctr_real *dloss,
                            ctr_real *dlogp, int acc)
{
    int64_t i;
    CTR_VERB_(nll_grad, (ctx, rows, cols, ignore, index, out, dloss, dlogp, acc))
    if (!acc) memset(dlogp, 0, (size_t)(rows * cols) * sizeof *dlogp);
    if (!(out[1] > 0)) return;
    for (i = 0; i < rows; i++)
        if (index[i] != ignore) dlogp[i * cols + index[i]] -= dloss[0] / out[1];
}

/* Anchor i of m: lse_i = log sum_{j != i} exp(sim_ij); its own pair never enters the sum.
   loss_i = lse_i - mean of sim_ij over the positives j (ids_j = ids_i, j != i). */
CTR_INLINE_ void ctr_contrast_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t i, j, m = v->n;
    for (i = lo; i < hi; i++) {
        const ctr_real *s = v->x + i * m;
        ctr_real lanes[CTR_LANES_] = { 0 }, max = CTR_R(-1e30), before, after;
        double positive = 0, count = 0;
        int64_t side, from, to;
        before = i > 0 ? ctr_row_max_(s, i) : max;
        after = i + 1 < m ? ctr_row_max_(s + i + 1, m - i - 1) : max;
        max = before > after ? before : after;
        for (side = 0; side < 2; side++) {
            from = side ? i + 1 : 0;
            to = side ? m : i;
            for (j = from; j + CTR_LANES_ <= to; j += CTR_LANES_) {
                int64_t k;
                for (k = 0; k < CTR_LANES_; k++) lanes[k] += ctr_exp_(s[j + k] - max);
            }
            for (; j < to; j++) lanes[0] += ctr_exp_(s[j] - max);
        }
        for (j = 0; j < m; j++)
            if (v->index[j] == v->index[i] && j != i) {
                positive += (double)s[j];
                count += 1;
            }
        v->y[i] = m > 1 ? max + CTR_M_(log)(ctr_lanes_sum_(lanes)) : 0;
        v->y2[i] = (ctr_real)count;
        v->partial[i] = count > 0 ? (double)v->y[i] - positive / count : 0;
    }
}
CTR_VEC_KERNEL_(ctr_contrast_)

CTR_API void ctr_k_contrast(ctr_ctx *ctx, int64_t m, const int32_t *ids, const ctr_real *sim,
                            ctr_real *lse, ctr_real *positives, ctr_real *out)
{
    ctr_vec_ v = ctr_vec_args_(m);
    double sum = 0, anchors = 0;
    int64_t i;
    CTR_VERB_(contrast, (ctx, m, ids, sim, lse, positives, out))
    v.index = ids;
    v.x = sim;
    v.y = lse;
    v.y2 = positives;
    v.chunk = ctr_vec_rows_(4 * m);
    v.partial = (double *)ctr_scratch_(ctx, (size_t)m * sizeof(double));
    if (!v.partial) return;
    CTR_VEC_RUN_(ctx, ctr_contrast_, &v);
    for (i = 0; i < m; i++) {
        sum += v.partial[i];
        anchors += positives[i] > 0 ? 1 : 0;
    }
    out[0] = (ctr_real)(anchors > 0 ? sum / anchors : 0);
    out[1] = (ctr_real)anchors;
}

/* d loss / d sim_ij = (exp(sim_ij - lse_i) - [j positive] / positives_i) / anchors, 0 for j = i and
   for anchors without a positive. */
CTR_INLINE_ void ctr_contrast_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t i, j, m = v->n;
    for (i = lo; i < hi; i++) {
        const ctr_real *s = v->x + i * m;
        ctr_real *d = v->y + i * m, lse = v->x2[i], count = v->x3[i];
        ctr_real scale = count > 0 ? v->a : 0, share = count > 0 ? v->a / count : 0;
        ctr_real diagonal = v->acc ? d[i] : 0;
        if (v->acc) for (j = 0; j < m; j++) d[j] += scale * ctr_exp_(s[j] - lse);
        else for (j = 0; j < m; j++) d[j] = scale * ctr_exp_(s[j] - lse);
        for (j = 0; j < m; j++)
            if (v->index[j] == v->index[i]) d[j] -= share;
        d[i] = diagonal;
    }
}
CTR_VEC_KERNEL_(ctr_contrast_grad_)

CTR_API void ctr_k_contrast_grad(ctr_ctx *ctx, int64_t m, const int32_t *ids, const ctr_real *sim,
                                 const ctr_real *lse, const ctr_real *positives,
                                 const ctr_real *out, const ctr_real *dloss, ctr_real *dsim,
                                 int acc)
{
    ctr_vec_ v = ctr_vec_args_(m);
    CTR_VERB_(contrast_grad, (ctx, m, ids, sim, lse, positives, out, dloss, dsim, acc))
    v.index = ids;
    v.acc = acc;
    v.a = out[1] > 0 ? dloss[0] / out[1] : 0;
    v.x = sim;
    v.x2 = lse;
    v.x3 = positives;
    v.y = dsim;
    v.chunk = ctr_vec_rows_(4 * m);
    CTR_VEC_RUN_(ctx, ctr_contrast_grad_, &v);
}

/* ---- normalisation ----------------------------------------------------------------------------- */

/* Sums of d = x - pivot and d^2 over a part of the rows, pivot being the first row: a mean far from
   zero then costs no digits. partial: [parts, 2, c]. */
CTR_INLINE_ void ctr_norm_stats_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t part, col, row, end, i, j, width, c = v->inner;
    ctr_real sum[64], square[64], pivot[64];
    for (part = lo; part < hi; part++) {
        int64_t from = v->mid * part / v->n, to = v->mid * (part + 1) / v->n;
        double *out = v->partial + part * 2 * c;
        for (i = 0; i < 2 * c; i++) out[i] = 0;
        for (row = from; row < to; row = end) {
            end = CTR_MIN_(row + 64, to);
            for (col = 0; col < c; col += 64) {
                width = CTR_MIN_(c - col, 64);
                for (j = 0; j < width; j++) {
                    sum[j] = square[j] = 0;
                    pivot[j] = v->x[col + j];
                }
                for (i = row; i < end; i++) {
                    const ctr_real *x = v->x + i * c + col;
                    for (j = 0; j < width; j++) {
                        ctr_real d = x[j] - pivot[j];
                        sum[j] += d;
                        square[j] += d * d;
                    }
                }
                for (j = 0; j < width; j++) {
                    out[col + j] += (double)sum[j];
                    out[c + col + j] += (double)square[j];
                }
            }
        }
    }
}
CTR_VEC_KERNEL_(ctr_norm_stats_)

CTR_PRIVATE_ int64_t ctr_norm_parts_(int64_t rows, int64_t c)
{
    return rows * c >= 4096 && rows >= CTR_PARTS_ ? CTR_PARTS_ : 1;
}

CTR_API void ctr_k_norm_stats(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                              ctr_real *mean, ctr_real *var)
{
    int64_t parts = ctr_norm_parts_(rows, c), p, j;
    ctr_vec_ v = ctr_vec_args_(parts);
    CTR_VERB_(norm_stats, (ctx, rows, c, x, mean, var))
    if (rows < 1) return;
    v.chunk = 1;
    v.mid = rows;
    v.inner = c;
    v.x = x;
    v.partial = (double *)ctr_scratch_(ctx, (size_t)(parts * 2 * c) * sizeof(double));
    if (!v.partial) return;
    CTR_VEC_RUN_(ctx, ctr_norm_stats_, &v);
    for (j = 0; j < c; j++) {
        double sum = 0, square = 0, shift, variance;
        for (p = 0; p < parts; p++) {
            sum += v.partial[p * 2 * c + j];
            square += v.partial[p * 2 * c + c + j];
        }
        shift = sum / (double)rows;
        variance = square / (double)rows - shift * shift;
        mean[j] = (ctr_real)((double)x[j] + shift);
        var[j] = (ctr_real)(variance > 0 ? variance : 0);
    }
}

/* y = act(a x + b + residual) with a = gamma / sqrt(var + eps), b = beta - a mean; x: [rows, c] */
CTR_INLINE_ void ctr_norm_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_norm_args *n = v->norm;
    const ctr_real *a = v->x, *b = v->x2;
    int64_t row, j, c = n->c;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = n->x + row * c, *r = n->residual ? n->residual + row * c : NULL;
        ctr_real *y = n->y + row * c;
        if (r && n->relu)
            for (j = 0; j < c; j++) {
                ctr_real z = a[j] * x[j] + b[j] + r[j];
                y[j] = z > 0 ? z : 0;
            }
        else if (n->relu)
            for (j = 0; j < c; j++) {
                ctr_real z = a[j] * x[j] + b[j];
                y[j] = z > 0 ? z : 0;
            }
        else if (r)
            for (j = 0; j < c; j++) y[j] = a[j] * x[j] + b[j] + r[j];
        else
            for (j = 0; j < c; j++) y[j] = a[j] * x[j] + b[j];
    }
}
CTR_VEC_KERNEL_(ctr_norm_)

CTR_API void ctr_k_norm(ctr_ctx *ctx, const ctr_norm_args *n)
{
    ctr_vec_ v = ctr_vec_args_(n->rows);
    ctr_real *coefficients;
    int64_t j, c = n->c;
    CTR_VERB_(norm, (ctx, n))
    coefficients = (ctr_real *)ctr_scratch_(ctx, (size_t)(2 * c) * sizeof(ctr_real));
    if (!coefficients) return;
    for (j = 0; j < c; j++) {
        double a = (n->gamma ? (double)n->gamma[j] : 1) / sqrt((double)n->var[j] + (double)n->eps);
        coefficients[j] = (ctr_real)a;
        coefficients[c + j] = (ctr_real)((n->beta ? (double)n->beta[j] : 0) - a * (double)n->mean[j]);
    }
    v.norm = n;
    v.x = coefficients;
    v.x2 = coefficients + c;
    v.chunk = ctr_vec_rows_(c);
    CTR_VEC_RUN_(ctx, ctr_norm_, &v);
}

/* g = dy, cut to where ReLU was open; sums over a part of the rows of g and of g (x - mean). */
CTR_INLINE_ void ctr_norm_sums_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_norm_args *n = v->norm;
    int64_t part, col, row, end, i, j, width, c = n->c;
    ctr_real sum[64], product[64];
    for (part = lo; part < hi; part++) {
        int64_t from = n->rows * part / v->n, to = n->rows * (part + 1) / v->n;
        double *out = v->partial + part * 2 * c;
        for (i = 0; i < 2 * c; i++) out[i] = 0;
        for (row = from; row < to; row = end) {
            end = CTR_MIN_(row + 64, to);
            for (col = 0; col < c; col += 64) {
                width = CTR_MIN_(c - col, 64);
                for (j = 0; j < width; j++) sum[j] = product[j] = 0;
                for (i = row; i < end; i++) {
                    const ctr_real *x = n->x + i * c + col, *dy = n->dy + i * c + col;
                    const ctr_real *y = n->y + i * c + col, *mean = n->mean + col;
                    for (j = 0; j < width; j++) {
                        ctr_real g = n->relu && !(y[j] > 0) ? 0 : dy[j];
                        sum[j] += g;
                        product[j] += g * (x[j] - mean[j]);
                    }
                }
                for (j = 0; j < width; j++) {
                    out[col + j] += (double)sum[j];
                    out[c + col + j] += (double)product[j];
                }
            }
        }
    }
}
CTR_VEC_KERNEL_(ctr_norm_sums_)

/* dx = k0 g + k1 x + k2 a channel, dresidual = g */
CTR_INLINE_ void ctr_norm_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_norm_args *n = v->norm;
    const ctr_real *k0 = v->x, *k1 = v->x2, *k2 = v->x3;
    int64_t row, j, c = n->c;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = n->x + row * c, *y = n->y + row * c, *dy = n->dy + row * c;
        ctr_real *dx = n->dx ? n->dx + row * c : NULL;
        ctr_real *dr = n->dresidual ? n->dresidual + row * c : NULL;
        if (dx && n->relu && !n->dx_acc)
            for (j = 0; j < c; j++) dx[j] = k0[j] * (y[j] > 0 ? dy[j] : 0) + k1[j] * x[j] + k2[j];
        else if (dx && !n->dx_acc)
            for (j = 0; j < c; j++) dx[j] = k0[j] * dy[j] + k1[j] * x[j] + k2[j];
        else if (dx)
            for (j = 0; j < c; j++)
                dx[j] += k0[j] * (n->relu && !(y[j] > 0) ? 0 : dy[j]) + k1[j] * x[j] + k2[j];
        if (dr && !n->dresidual_acc)
            for (j = 0; j < c; j++) dr[j] = n->relu && !(y[j] > 0) ? 0 : dy[j];
        else if (dr)
            for (j = 0; j < c; j++) dr[j] += n->relu && !(y[j] > 0) ? 0 : dy[j];
    }
}
CTR_VEC_KERNEL_(ctr_norm_grad_)

/* With xhat = (x - mean) rstd, G = sum g, P = sum g xhat and N rows: dbeta = G, dgamma = P and
   dx = gamma rstd (g - G / N - xhat P / N); with running statistics dx = gamma rstd g. */
CTR_API void ctr_k_norm_grad(ctr_ctx *ctx, const ctr_norm_args *n)
{
    int64_t c = n->c, parts = ctr_norm_parts_(n->rows, c), p, j;
    ctr_vec_ v = ctr_vec_args_(parts);
    ctr_real *k;
    CTR_VERB_(norm_grad, (ctx, n))
    v.partial = (double *)ctr_scratch_(ctx, (size_t)(parts * 2 * c) * sizeof(double) +
                                                (size_t)(3 * c) * sizeof(ctr_real));
    if (!v.partial) return;
    k = (ctr_real *)(v.partial + parts * 2 * c);
    v.chunk = 1;
    v.norm = n;
    CTR_VEC_RUN_(ctx, ctr_norm_sums_, &v);
    for (j = 0; j < c; j++) {
        double sum = 0, product = 0, rstd = 1 / sqrt((double)n->var[j] + (double)n->eps);
        double scale = (n->gamma ? (double)n->gamma[j] : 1) * rstd, count = (double)n->rows, k1 = 0;
        for (p = 0; p < parts; p++) {
            sum += v.partial[p * 2 * c + j];
            product += v.partial[p * 2 * c + c + j] * rstd;
        }
        if (n->dgamma)
            n->dgamma[j] = (ctr_real)(product + (n->dgamma_acc ? (double)n->dgamma[j] : 0));
        if (n->dbeta) n->dbeta[j] = (ctr_real)(sum + (n->dbeta_acc ? (double)n->dbeta[j] : 0));
        if (n->batch_stats) k1 = -scale * rstd * product / count;
        k[j] = (ctr_real)scale;
        k[c + j] = (ctr_real)k1;
        k[2 * c + j] =
            (ctr_real)(n->batch_stats ? -scale * sum / count - k1 * (double)n->mean[j] : 0);
    }
    v.n = n->rows;
    v.chunk = ctr_vec_rows_(c);
    v.x = k;
    v.x2 = k + c;
    v.x3 = k + 2 * c;
    CTR_VEC_RUN_(ctx, ctr_norm_grad_, &v);
}

CTR_INLINE_ void ctr_layer_norm_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, j, c = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * c;
        ctr_real *y = v->y + row * c, mean = ctr_row_sum_(x, c) / (ctr_real)c, rstd;
        for (j = 0; j < c; j++) y[j] = x[j] - mean;
        rstd = 1 / CTR_M_(sqrt)(ctr_dot_(y, y, c) / (ctr_real)c + v->a);
        for (j = 0; j < c; j++) y[j] = y[j] * rstd * v->x2[j] + v->x3[j];
        v->y2[2 * row] = mean;
        v->y2[2 * row + 1] = rstd;
    }
}
CTR_VEC_KERNEL_(ctr_layer_norm_)

CTR_API void ctr_k_layer_norm(ctr_ctx *ctx, int64_t rows, int64_t c, ctr_real eps, const ctr_real *x,
                              const ctr_real *gamma, const ctr_real *beta, ctr_real *y,
                              ctr_real *stats)
{
    ctr_vec_ v = ctr_vec_args_(rows);
    CTR_VERB_(layer_norm, (ctx, rows, c, eps, x, gamma, beta, y, stats))
    v.inner = c;
    v.a = eps;
    v.x = x;
    v.x2 = gamma;
    v.x3 = beta;
    v.y = y;
    v.y2 = stats;
    v.chunk = ctr_vec_rows_(c);
    CTR_VEC_RUN_(ctx, ctr_layer_norm_, &v);
}

/* With g = gamma dy: dx = rstd (g - mean(g) - xhat mean(g xhat)) */
CTR_INLINE_ void ctr_layer_norm_grad_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    int64_t row, j, c = v->inner;
    for (row = lo; row < hi; row++) {
        const ctr_real *x = v->x + row * c, *dy = v->x4 + row * c, *gamma = v->x3;
        ctr_real mean = v->x2[2 * row], rstd = v->x2[2 * row + 1], mean_g, mean_gx;
        ctr_real *product = v->y2 + row * c, *dx = v->y ? v->y + row * c : NULL;
        for (j = 0; j < c; j++) product[j] = dy[j] * (x[j] - mean) * rstd;
        if (!dx) continue;
        mean_g = ctr_dot_(gamma, dy, c) / (ctr_real)c;
        mean_gx = ctr_dot_(gamma, product, c) / (ctr_real)c;
        for (j = 0; j < c; j++) {
            ctr_real g = rstd * (gamma[j] * dy[j] - mean_g - (x[j] - mean) * rstd * mean_gx);
            dx[j] = v->acc ? dx[j] + g : g;
        }
    }
}
CTR_VEC_KERNEL_(ctr_layer_norm_grad_)

CTR_API void ctr_k_layer_norm_grad(ctr_ctx *ctx, int64_t rows, int64_t c, const ctr_real *x,
                                   const ctr_real *stats, const ctr_real *gamma, const ctr_real *dy,
                                   ctr_real *dx, int acc, ctr_real *xhat_dy)
{
    ctr_vec_ v = ctr_vec_args_(rows);
    CTR_VERB_(layer_norm_grad, (ctx, rows, c, x, stats, gamma, dy, dx, acc, xhat_dy))
    v.inner = c;
    v.acc = acc;
    v.x = x;
    v.x2 = stats;
    v.x3 = gamma;
    v.x4 = dy;
    v.y = dx;
    v.y2 = xhat_dy;
    v.chunk = ctr_vec_rows_(c);
    CTR_VEC_RUN_(ctx, ctr_layer_norm_grad_, &v);
}

/* ---- dropout ----------------------------------------------------------------------------------- */

typedef struct ctr_dropout_ {
    ctr_vec_ v;
    uint32_t key[2], counter[4];
    uint32_t threshold;
} ctr_dropout_;

/* Number i of the mask is word i % 4 of Philox block i / 4, whatever the chunk. */
CTR_PRIVATE_ void ctr_dropout_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_dropout_ *d = (const ctr_dropout_ *)arg;
    int64_t i = chunk * d->v.chunk, end = CTR_MIN_(i + d->v.chunk, d->v.n);
    uint32_t counter[4], word[4] = { 0, 0, 0, 0 };
    (void)worker;
    memcpy(counter, d->counter, sizeof counter);
    for (; i < end; i++) {
        ctr_real y;
        if (i % 4 == 0) {
            counter[0] = (uint32_t)(i / 4);
            ctr_rng_philox_(d->key, counter, word);
        }
        y = (word[i % 4] >> 8) >= d->threshold ? d->v.x[i] * d->v.a : 0;
        d->v.y[i] = d->v.acc ? d->v.y[i] + y : y;
    }
}

CTR_API void ctr_k_dropout(ctr_ctx *ctx, int64_t n, double p, const uint32_t key[2],
                           const uint32_t counter[4], const ctr_real *x, ctr_real *y, int acc)
{
    ctr_dropout_ d;
    CTR_VERB_(dropout, (ctx, n, p, key, counter, x, y, acc))
    d.v = ctr_vec_args_(n);
    d.v.chunk = CTR_VEC_CHUNK_;
    d.v.x = x;
    d.v.y = y;
    d.v.acc = acc;
    d.v.a = (ctr_real)(1 / (1 - p));
    d.threshold = (uint32_t)(p * 16777216.0);
    memcpy(d.key, key, sizeof d.key);
    memcpy(d.counter, counter, sizeof d.counter);
    if (n > 0) ctr_parallel_(ctx, (n + d.v.chunk - 1) / d.v.chunk, ctr_dropout_job_, &d);
}

/* ---- optimisers (the formulas stand in >>OPTIM) ------------------------------------------------ */

CTR_INLINE_ void ctr_sgd_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_optim_args *o = v->optim;
    ctr_real lr = (ctr_real)o->lr, mu = (ctr_real)o->momentum, decay = (ctr_real)o->decay;
    ctr_real ratio = (ctr_real)v->ratio, *w = o->w, *m = o->m;
    const ctr_real *g = o->g;
    int64_t i;
    if (!m)
        for (i = lo; i < hi; i++) w[i] -= lr * ratio * (g[i] + decay * w[i]);
    else if (o->nesterov)
        for (i = lo; i < hi; i++) {
            ctr_real d = ratio * (g[i] + decay * w[i]);
            m[i] = mu * m[i] + d;
            w[i] -= lr * (d + mu * m[i]);
        }
    else
        for (i = lo; i < hi; i++) {
            m[i] = mu * m[i] + ratio * (g[i] + decay * w[i]);
            w[i] -= lr * m[i];
        }
}
CTR_VEC_KERNEL_(ctr_sgd_)

/* LARS's trust ratio: trust |w| / |g + decay w|, 1 when either norm is 0. */
CTR_PRIVATE_ double ctr_sgd_trust_(ctr_ctx *ctx, const ctr_optim_args *o)
{
    double ww = ctr_dot_double_(ctx, o->n, o->w, o->w), gg = ctr_dot_double_(ctx, o->n, o->g, o->g);
    double gw = ctr_dot_double_(ctx, o->n, o->g, o->w);
    double update = gg + 2 * o->decay * gw + o->decay * o->decay * ww;
    return ww > 0 && update > 0 ? o->trust * sqrt(ww) / sqrt(update) : 1;
}

CTR_API void ctr_k_sgd(ctr_ctx *ctx, const ctr_optim_args *o)
{
    ctr_vec_ v = ctr_vec_args_(o->n);
    CTR_VERB_(sgd, (ctx, o))
    v.optim = o;
    v.ratio = o->adapt ? ctr_sgd_trust_(ctx, o) : 1;
    CTR_VEC_RUN_(ctx, ctr_sgd_, &v);
}

CTR_INLINE_ void ctr_adamw_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_optim_args *o = v->optim;
    ctr_real b1 = (ctr_real)o->beta1, b2 = (ctr_real)o->beta2, eps = (ctr_real)o->eps;
    ctr_real keep = (ctr_real)(1 - o->lr * o->decay), step = (ctr_real)(o->lr / o->correct1);
    ctr_real root = (ctr_real)(1 / sqrt(o->correct2)), *w = o->w, *m = o->m, *s = o->v;
    const ctr_real *g = o->g;
    int64_t i;
    for (i = lo; i < hi; i++) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        s[i] = b2 * s[i] + (1 - b2) * g[i] * g[i];
        w[i] = w[i] * keep - step * m[i] / (CTR_M_(sqrt)(s[i]) * root + eps);
    }
}
CTR_VEC_KERNEL_(ctr_adamw_)

CTR_API void ctr_k_adamw(ctr_ctx *ctx, const ctr_optim_args *o)
{
    ctr_vec_ v = ctr_vec_args_(o->n);
    CTR_VERB_(adamw, (ctx, o))
    v.optim = o;
    CTR_VEC_RUN_(ctx, ctr_adamw_, &v);
}

/* ================================================================================================
   >>GEMM  matrix products

   C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C, row-major, any size. First the reference, which
   is what the words mean; then the kernels that do the same fast. No batching, no other types.
   Each element of C is summed in one order that depends on k alone, whatever the cut into chunks,
   so the bits do not depend on the number of threads.
   ============================================================================================= */

/* Multiply-adds below which waking the pool costs more than it saves (some 10 microseconds).
   A test may set it to 0. */
#ifndef CTR_GEMM_TINY_
#define CTR_GEMM_TINY_ ((int64_t)1 << 18)
#endif

typedef struct ctr_gemm_args_ {
    int ta, tb;
    int64_t m, n, k;
    ctr_real alpha, beta;
    const ctr_real *a, *b;
    ctr_real *c;
    int64_t lda, ldb, ldc;
    int64_t rows; /* rows of C in a chunk */
} ctr_gemm_args_;

CTR_PRIVATE_ int64_t ctr_gemm_min_(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* how many pieces of size `by` cover a */
CTR_PRIVATE_ int64_t ctr_gemm_pieces_(int64_t a, int64_t by)
{
    return (a + by - 1) / by;
}

/* Runs the chunks on the pool, or right here if all the work is smaller than waking it. */
CTR_PRIVATE_ void ctr_gemm_spread_(ctr_ctx *ctx, int64_t chunks, int64_t work, ctr_job_fn fn,
                                   void *arg)
{
    int64_t chunk;
    if (work >= CTR_GEMM_TINY_ && chunks > 1) {
        ctr_parallel_(ctx, chunks, fn, arg);
        return;
    }
    for (chunk = 0; chunk < chunks; chunk++) {
        fn(arg, chunk, 0);
    }
}

/* C = beta C on a block; beta 0 overwrites, so that garbage in C never spreads. */
CTR_PRIVATE_ void ctr_gemm_scale_(int64_t m, int64_t n, ctr_real beta, ctr_real *c, int64_t ldc)
{
    int64_t i, j;
    if (beta == CTR_R(1.0)) {
        return;
    }
    for (i = 0; i < m; i++, c += ldc) {
        for (j = 0; j < n; j++) {
            c[j] = beta == CTR_R(0.0) ? CTR_R(0.0) : beta * c[j];
        }
    }
}

CTR_PRIVATE_ void ctr_gemm_scalar_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_gemm_args_ *g = (const ctr_gemm_args_ *)arg;
    const int64_t end = ctr_gemm_min_((chunk + 1) * g->rows, g->m);
    int64_t i, j, p;
    (void)worker;
    for (i = chunk * g->rows; i < end; i++) {
        ctr_real *c = g->c + i * g->ldc;
        ctr_gemm_scale_(1, g->n, g->beta, c, g->ldc);
        for (p = 0; p < g->k; p++) {
            const ctr_real a = g->alpha * (g->ta ? g->a[p * g->lda + i] : g->a[i * g->lda + p]);
            const ctr_real *b = g->b + (g->tb ? p : p * g->ldb);
            if (g->tb) {
                for (j = 0; j < g->n; j++) {
                    c[j] += a * b[j * g->ldb];
                }
            } else {
                for (j = 0; j < g->n; j++) {
                    c[j] += a * b[j];
                }
            }
        }
    }
}

CTR_PRIVATE_ void ctr_gemm_scalar_(ctr_ctx *ctx, ctr_gemm_args_ *g)
{
    g->rows = 1 + ((int64_t)1 << 15) / (g->n * g->k + 1);
    ctr_gemm_spread_(ctx, ctr_gemm_pieces_(g->m, g->rows), g->m * g->n * g->k,
                     ctr_gemm_scalar_job_, g);
}

#if defined(__x86_64__) && !defined(__ILP32__) && (defined(__GNUC__) || defined(__clang__)) && \
    !defined(__TINYC__) && !defined(CONTRASTIVE_NO_SIMD) && CTR_REAL_IS_FLOAT_
#define CTR_GEMM_AVX2_ 1
#else
#define CTR_GEMM_AVX2_ 0
#endif

#if CTR_GEMM_AVX2_

/* ---- AVX2 + FMA ---------------------------------------------------------------------------------
   The product is cut into tiles of 6 x 16: twelve registers of sums, which leaves two for sixteen
   columns of B and two for broadcast elements of A, and gives each loaded value enough work
   to keep both multiply-add units of a core busy.

   B is packed into panels of sixteen columns, [ceil(n/16)][k][16], zero-padded, so that the inner
   loop reads it in a straight line. A is not packed: the tile takes a pointer to each of
   its rows, which makes the product of matrices and the convolution the same loop, the
   latter with one set of pointers per tap of its kernel ("implicit gemm", Dukhan 2019).

   Blocking: a slab of 256 of k. Sixteen columns of B, 16 KiB, stay in L1 while a block of 96 rows
   of A, 96 KiB, passes from L2; then come the next sixteen columns.

   The tile is written in assembly because compilers fold its loads into the multiply-adds and spill
   the sums; at plain -O2 that costs a third to two thirds of the speed. */

#define CTR_GEMM_TARGET_ __attribute__((target("avx2,fma")))
#define CTR_GEMM_MR_ 6
#define CTR_GEMM_NR_ 16
#define CTR_GEMM_KC_ 256
#define CTR_GEMM_MC_ 96

/* The operands of a tile. The assembly reads the fields by offset, so each has 8 bytes. */
typedef struct ctr_gemm_tile_ {
    const float *const *rows; /*  0  inner: [taps][6] rows of A; outer: [k] columns of A */
    int64_t taps;             /*  8  runs of k that each row consists of (inner only) */
    int64_t k;                /* 16  length of a run */
    int64_t skip;             /* 24  bytes to add to each pointer in rows */
    const float *b;           /* 32  [taps * k][16] */
    float *const *outs;       /* 40  [6] rows of C */
    int64_t column;           /* 48  bytes to add to each pointer in outs */
    int64_t acc;              /* 56  0: C = sum, else C += sum */
} ctr_gemm_tile_;

/* EACHn(X, u) writes X for each of the n rows of the tile: row r uses pointer p, sums lo and hi,
   and broadcasts through register t. u is handed through: the unrolled step. */
#define CTR_GEMM_EACH1_(X, u) X(u, "0", "%%r8", "%%ymm0", "%%ymm1", "%%ymm14")
#define CTR_GEMM_EACH2_(X, u) \
    CTR_GEMM_EACH1_(X, u) X(u, "1", "%%r9", "%%ymm2", "%%ymm3", "%%ymm15")
#define CTR_GEMM_EACH3_(X, u) \
    CTR_GEMM_EACH2_(X, u) X(u, "2", "%%r10", "%%ymm4", "%%ymm5", "%%ymm14")
#define CTR_GEMM_EACH4_(X, u) \
    CTR_GEMM_EACH3_(X, u) X(u, "3", "%%r11", "%%ymm6", "%%ymm7", "%%ymm15")
#define CTR_GEMM_EACH5_(X, u) \
    CTR_GEMM_EACH4_(X, u) X(u, "4", "%%r12", "%%ymm8", "%%ymm9", "%%ymm14")
#define CTR_GEMM_EACH6_(X, u) \
    CTR_GEMM_EACH5_(X, u) X(u, "5", "%%r13", "%%ymm10", "%%ymm11", "%%ymm15")

/* sums = 0; sums = C; C = sums (rcx: outs, rdx: column) */
#define CTR_GEMM_ZERO_(u, r, p, lo, hi, t) \
    "vxorps " lo "," lo "," lo "\n\t" \
    "vxorps " hi "," hi "," hi "\n\t"
#define CTR_GEMM_LOAD_(u, r, p, lo, hi, t) \
    "movq 8*" r "(%%rcx), %%rsi\n\t" \
    "vmovups (%%rsi,%%rdx), " lo "\n\t" \
    "vmovups 32(%%rsi,%%rdx), " hi "\n\t"
#define CTR_GEMM_STORE_(u, r, p, lo, hi, t) \
    "movq 8*" r "(%%rcx), %%rsi\n\t" \
    "vmovups " lo ", (%%rsi,%%rdx)\n\t" \
    "vmovups " hi ", 32(%%rsi,%%rdx)\n\t"

/* sixteen columns of B at step u; then, row by row, sums += A * those. The inner tile finds A at
   its row pointers, the outer tile finds its rows side by side at one pointer, r8 + r9. */
#define CTR_GEMM_B_(u) \
    "vmovups 64*" u "(%%rdx), %%ymm12\n\t" \
    "vmovups 64*" u "+32(%%rdx), %%ymm13\n\t"
#define CTR_GEMM_FMA_(a, lo, hi, t) \
    "vbroadcastss " a ", " t "\n\t" \
    "vfmadd231ps %%ymm12, " t ", " lo "\n\t" \
    "vfmadd231ps %%ymm13, " t ", " hi "\n\t"
#define CTR_GEMM_INNER_(u, r, p, lo, hi, t) CTR_GEMM_FMA_("4*" u "(" p ")", lo, hi, t)
#define CTR_GEMM_OUTER_(u, r, p, lo, hi, t) CTR_GEMM_FMA_("4*" r "(%%r8,%%r9)", lo, hi, t)

/* the pointers of the next tap; one or four steps along the rows */
#define CTR_GEMM_ROW_(u, r, p, lo, hi, t) \
    "movq 8*" r "(%%rax), " p "\n\t" \
    "addq 24(%%rdi), " p "\n\t"
#define CTR_GEMM_WALK_(u, r, p, lo, hi, t) "addq $4*" u ", " p "\n\t"

#define CTR_GEMM_BEGIN_(EACH) \
    "movq 40(%%rdi), %%rcx\n\t" \
    "movq 48(%%rdi), %%rdx\n\t" \
    "cmpq $0, 56(%%rdi)\n\t" \
    "jne 1f\n\t" \
    EACH(CTR_GEMM_ZERO_, "0") \
    "jmp 2f\n" \
    "1:\n\t" \
    EACH(CTR_GEMM_LOAD_, "0") \
    "2:\n\t" \
    "movq 0(%%rdi), %%rax\n\t" \
    "movq 32(%%rdi), %%rdx\n\t"
/* vzeroupper: mixing dirty upper halves with SSE code stalls some processors */
#define CTR_GEMM_END_(EACH) \
    "movq 40(%%rdi), %%rcx\n\t" \
    "movq 48(%%rdi), %%rdx\n\t" \
    EACH(CTR_GEMM_STORE_, "0") \
    "vzeroupper\n\t"
#define CTR_GEMM_CLOBBERS_ \
    "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "memory", "cc", \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
    "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* Inner tile: A is read along k, one pointer a row and tap. rsi counts taps, rcx steps. */
#define CTR_GEMM_DEFINE_INNER_(n, EACH) \
    CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_gemm_inner##n##_(const ctr_gemm_tile_ *tile) \
    { \
        __asm__ __volatile__( \
            CTR_GEMM_BEGIN_(EACH) \
            "movq 8(%%rdi), %%rsi\n" \
            "3:\n\t" \
            EACH(CTR_GEMM_ROW_, "0") \
            "addq $48, %%rax\n\t" \
            "movq 16(%%rdi), %%rcx\n\t" \
            "shrq $2, %%rcx\n\t" \
            "jz 5f\n\t" \
            ".p2align 4\n" \
            "4:\n\t" \
            CTR_GEMM_B_("0") EACH(CTR_GEMM_INNER_, "0") \
            CTR_GEMM_B_("1") EACH(CTR_GEMM_INNER_, "1") \
            CTR_GEMM_B_("2") EACH(CTR_GEMM_INNER_, "2") \
            CTR_GEMM_B_("3") EACH(CTR_GEMM_INNER_, "3") \
            EACH(CTR_GEMM_WALK_, "4") \
            "addq $256, %%rdx\n\t" \
            "decq %%rcx\n\t" \
            "jnz 4b\n" \
            "5:\n\t" \
            "movq 16(%%rdi), %%rcx\n\t" \
            "andq $3, %%rcx\n\t" \
            "jz 7f\n" \
            "6:\n\t" \
            CTR_GEMM_B_("0") EACH(CTR_GEMM_INNER_, "0") \
            EACH(CTR_GEMM_WALK_, "1") \
            "addq $64, %%rdx\n\t" \
            "decq %%rcx\n\t" \
            "jnz 6b\n" \
            "7:\n\t" \
            "decq %%rsi\n\t" \
            "jnz 3b\n\t" \
            CTR_GEMM_END_(EACH) \
            : : "D"(tile) : CTR_GEMM_CLOBBERS_); \
    }

/* Outer tile: A is transposed in memory; each of the k steps has a pointer to its own row, in
   which the tile's six elements lie side by side. For gradients to weights, k runs over pixels. */
#define CTR_GEMM_OUTER_STEP_(u, EACH) \
    "movq 8*" u "(%%rax), %%r8\n\t" \
    CTR_GEMM_B_(u) EACH(CTR_GEMM_OUTER_, u)
#define CTR_GEMM_DEFINE_OUTER_(n, EACH) \
    CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_gemm_outer##n##_(const ctr_gemm_tile_ *tile) \
    { \
        __asm__ __volatile__( \
            CTR_GEMM_BEGIN_(EACH) \
            "movq 24(%%rdi), %%r9\n\t" \
            "movq 16(%%rdi), %%rcx\n\t" \
            "shrq $2, %%rcx\n\t" \
            "jz 4f\n\t" \
            ".p2align 4\n" \
            "3:\n\t" \
            CTR_GEMM_OUTER_STEP_("0", EACH) \
            CTR_GEMM_OUTER_STEP_("1", EACH) \
            CTR_GEMM_OUTER_STEP_("2", EACH) \
            CTR_GEMM_OUTER_STEP_("3", EACH) \
            "addq $32, %%rax\n\t" \
            "addq $256, %%rdx\n\t" \
            "decq %%rcx\n\t" \
            "jnz 3b\n" \
            "4:\n\t" \
            "movq 16(%%rdi), %%rcx\n\t" \
            "andq $3, %%rcx\n\t" \
            "jz 6f\n" \
            "5:\n\t" \
            CTR_GEMM_OUTER_STEP_("0", EACH) \
            "addq $8, %%rax\n\t" \
            "addq $64, %%rdx\n\t" \
            "decq %%rcx\n\t" \
            "jnz 5b\n" \
            "6:\n\t" \
            CTR_GEMM_END_(EACH) \
            : : "D"(tile) : CTR_GEMM_CLOBBERS_); \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverlength-strings" /* of assembly, which has no such limit */
CTR_GEMM_DEFINE_INNER_(1, CTR_GEMM_EACH1_)
CTR_GEMM_DEFINE_INNER_(2, CTR_GEMM_EACH2_)
CTR_GEMM_DEFINE_INNER_(3, CTR_GEMM_EACH3_)
CTR_GEMM_DEFINE_INNER_(4, CTR_GEMM_EACH4_)
CTR_GEMM_DEFINE_INNER_(5, CTR_GEMM_EACH5_)
CTR_GEMM_DEFINE_INNER_(6, CTR_GEMM_EACH6_)
CTR_GEMM_DEFINE_OUTER_(1, CTR_GEMM_EACH1_)
CTR_GEMM_DEFINE_OUTER_(2, CTR_GEMM_EACH2_)
CTR_GEMM_DEFINE_OUTER_(3, CTR_GEMM_EACH3_)
CTR_GEMM_DEFINE_OUTER_(4, CTR_GEMM_EACH4_)
CTR_GEMM_DEFINE_OUTER_(5, CTR_GEMM_EACH5_)
CTR_GEMM_DEFINE_OUTER_(6, CTR_GEMM_EACH6_)
#pragma GCC diagnostic pop

typedef void (*ctr_gemm_tile_fn_)(const ctr_gemm_tile_ *);

/* Runs a tile of `rows` x `width`. A narrow one, at the right edge of C, goes through a full one
   aside, so that nothing beyond C is read or written. */
CTR_PRIVATE_ void ctr_gemm_tile_run_(ctr_gemm_tile_fn_ fn, ctr_gemm_tile_ *tile, int64_t rows,
                                     int64_t width)
{
    float aside[CTR_GEMM_MR_][CTR_GEMM_NR_];
    float *outs[CTR_GEMM_MR_];
    float *const *real_outs = tile->outs;
    const int64_t column = tile->column;
    int64_t r, j;
    if (width >= CTR_GEMM_NR_) {
        fn(tile);
        return;
    }
    for (r = 0; r < rows; r++) {
        const float *c = real_outs[r] + column / (int64_t)sizeof(float);
        outs[r] = aside[r];
        for (j = 0; j < CTR_GEMM_NR_; j++) {
            aside[r][j] = tile->acc && j < width ? c[j] : 0.0f;
        }
    }
    tile->outs = outs;
    tile->column = 0;
    fn(tile);
    tile->outs = real_outs;
    tile->column = column;
    for (r = 0; r < rows; r++) {
        float *c = real_outs[r] + column / (int64_t)sizeof(float);
        for (j = 0; j < width; j++) {
            c[j] = aside[r][j];
        }
    }
}

CTR_PRIVATE_ void ctr_gemm_inner_(ctr_gemm_tile_ *tile, int64_t rows, int64_t width)
{
    static const ctr_gemm_tile_fn_ fn[CTR_GEMM_MR_] = {
        ctr_gemm_inner1_, ctr_gemm_inner2_, ctr_gemm_inner3_,
        ctr_gemm_inner4_, ctr_gemm_inner5_, ctr_gemm_inner6_};
    ctr_gemm_tile_run_(fn[rows - 1], tile, rows, width);
}

CTR_PRIVATE_ void ctr_gemm_outer_(ctr_gemm_tile_ *tile, int64_t rows, int64_t width)
{
    static const ctr_gemm_tile_fn_ fn[CTR_GEMM_MR_] = {
        ctr_gemm_outer1_, ctr_gemm_outer2_, ctr_gemm_outer3_,
        ctr_gemm_outer4_, ctr_gemm_outer5_, ctr_gemm_outer6_};
    ctr_gemm_tile_run_(fn[rows - 1], tile, rows, width);
}

/* A block: up to 96 rows of A times a range of panels of B. */
typedef struct ctr_gemm_block_ {
    const float **rows;  /* [ceil(m/6)][taps][6] where the runs of A's rows begin */
    float **outs;        /* [m] rows of C */
    int64_t m, n;        /* rows of this block, columns of C */
    int64_t taps, k;     /* a row of A is `taps` runs of k floats */
    const float *b;      /* panels of B, each [taps][k][16] */
    int64_t panel;       /* floats from one panel to the next */
    int64_t first, last; /* panels first .. last-1 */
    int acc;             /* add to C instead of overwriting it */
} ctr_gemm_block_;

/* One slab: the k's of `taps` runs from tap `tap`, or a part [p, p + kc) of a single long run. */
CTR_PRIVATE_ void ctr_gemm_slab_(const ctr_gemm_block_ *q, int64_t tap, int64_t taps, int64_t p,
                                 int64_t kc)
{
    ctr_gemm_tile_ tile;
    int64_t i, j;
    tile.taps = taps;
    tile.k = kc;
    tile.skip = p * (int64_t)sizeof(float);
    tile.acc = q->acc || tap > 0 || p > 0;
    for (j = q->first; j < q->last; j++) {
        const int64_t width = q->n - j * CTR_GEMM_NR_;
        tile.b = q->b + j * q->panel + (tap * q->k + p) * CTR_GEMM_NR_;
        tile.column = j * CTR_GEMM_NR_ * (int64_t)sizeof(float);
        for (i = 0; i < q->m; i += CTR_GEMM_MR_) {
            tile.rows = q->rows + i * q->taps + tap * CTR_GEMM_MR_;
            tile.outs = q->outs + i;
            ctr_gemm_inner_(&tile, ctr_gemm_min_(q->m - i, CTR_GEMM_MR_), width);
        }
    }
}

CTR_PRIVATE_ void ctr_gemm_block_run_(const ctr_gemm_block_ *q)
{
    int64_t tap, p;
    if (q->k <= CTR_GEMM_KC_) {
        const int64_t many = CTR_GEMM_KC_ / q->k;
        for (tap = 0; tap < q->taps; tap += many) {
            ctr_gemm_slab_(q, tap, ctr_gemm_min_(many, q->taps - tap), 0, q->k);
        }
        return;
    }
    for (tap = 0; tap < q->taps; tap++) {
        for (p = 0; p < q->k; p += CTR_GEMM_KC_) {
            ctr_gemm_slab_(q, tap, 1, p, ctr_gemm_min_(CTR_GEMM_KC_, q->k - p));
        }
    }
}

/* dst[j][i] = src[i][j] for 8 x 8, by three rounds of interleaving. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_gemm_turn8_(const float *src, int64_t lds, float *dst,
                                                   int64_t ldd)
{
    __m256 a[8], b[8];
    int i;
    for (i = 0; i < 8; i++) {
        a[i] = _mm256_loadu_ps(src + i * lds);
    }
    for (i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (i = 0; i < 4; i++) {
        _mm256_storeu_ps(dst + i * ldd, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(dst + (i + 4) * ldd, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* dst[j][i] = src[i][j] for rows x cols of src. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_gemm_turn_(const float *src, int64_t lds, int64_t rows,
                                                  int64_t cols, float *dst, int64_t ldd)
{
    const int64_t rows8 = rows / 8 * 8, cols8 = cols / 8 * 8;
    int64_t i, j;
    for (j = 0; j < cols8; j += 8) {
        for (i = 0; i < rows8; i += 8) {
            ctr_gemm_turn8_(src + i * lds + j, lds, dst + j * ldd + i, ldd);
        }
    }
    for (i = 0; i < rows; i++) {
        for (j = i < rows8 ? cols8 : 0; j < cols; j++) {
            dst[j * ldd + i] = src[i * lds + j];
        }
    }
}

/* Packs `width` <= 16 columns of op(B) into a panel [k][16], padded with zeros. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_gemm_pack_(int tb, int64_t k, int64_t width, const float *b,
                                                  int64_t ldb, float *panel)
{
    int64_t j, p;
    if (width < CTR_GEMM_NR_) {
        memset(panel, 0, (size_t)(k * CTR_GEMM_NR_) * sizeof(float));
    }
    if (tb) {
        ctr_gemm_turn_(b, ldb, width, k, panel, CTR_GEMM_NR_);
        return;
    }
    for (p = 0; p < k; p++, b += ldb, panel += CTR_GEMM_NR_) {
        if (width >= CTR_GEMM_NR_) {
            _mm256_storeu_ps(panel, _mm256_loadu_ps(b));
            _mm256_storeu_ps(panel + 8, _mm256_loadu_ps(b + 8));
        } else {
            for (j = 0; j < width; j++) {
                panel[j] = b[j];
            }
        }
    }
}

/* What the jobs of one product share. */
typedef struct ctr_gemm_plan_ {
    ctr_gemm_args_ args;  /* of the columns at hand: n and b, c move from slab to slab */
    float *packed;        /* B: [panels][k][16] */
    int64_t panels;       /* ceil(n/16) */
    int64_t rows, ranges; /* rows in a block; ranges of panels a block is cut into */
    int64_t range;        /* panels in a range */
    char *work;           /* each worker's own memory */
    size_t work_size;
} ctr_gemm_plan_;

CTR_PRIVATE_ void ctr_gemm_pack_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_gemm_plan_ *plan = (const ctr_gemm_plan_ *)arg;
    const ctr_gemm_args_ *g = &plan->args;
    const int64_t size = g->k * CTR_GEMM_NR_, j = chunk * CTR_GEMM_NR_;
    float *panel = plan->packed + chunk * size;
    int64_t p;
    (void)worker;
    ctr_gemm_pack_(g->tb, g->k, ctr_gemm_min_(CTR_GEMM_NR_, g->n - j),
                   g->b + (g->tb ? j * g->ldb : j), g->ldb, panel);
    if (g->alpha != 1.0f) {
        for (p = 0; p < size; p++) {
            panel[p] *= g->alpha;
        }
    }
}

/* A transposed A is turned, a block and slab at a time, into rows that lie next to each other. */
#define CTR_GEMM_TURNED_ (CTR_GEMM_KC_ + 16)

CTR_PRIVATE_ void ctr_gemm_block_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_gemm_plan_ *plan = (const ctr_gemm_plan_ *)arg;
    const ctr_gemm_args_ *g = &plan->args;
    const int64_t top = chunk / plan->ranges * plan->rows;
    float *turned = (float *)(plan->work + (size_t)worker * plan->work_size);
    const float *rows[CTR_GEMM_MC_];
    float *outs[CTR_GEMM_MC_];
    ctr_gemm_block_ q;
    int64_t i, p;
    q.rows = rows;
    q.outs = outs;
    q.m = ctr_gemm_min_(plan->rows, g->m - top);
    q.n = g->n;
    q.taps = 1;
    q.panel = g->k * CTR_GEMM_NR_;
    q.first = chunk % plan->ranges * plan->range;
    q.last = ctr_gemm_min_(q.first + plan->range, plan->panels);
    for (i = 0; i < q.m; i++) {
        outs[i] = g->c + (top + i) * g->ldc;
    }
    i = q.first * CTR_GEMM_NR_;
    ctr_gemm_scale_(q.m, ctr_gemm_min_(q.last * CTR_GEMM_NR_, g->n) - i, g->beta, outs[0] + i,
                    g->ldc);
    for (p = 0; p < g->k; p += q.k) {
        q.k = ctr_gemm_min_(CTR_GEMM_KC_, g->k - p);
        q.b = plan->packed + p * CTR_GEMM_NR_;
        q.acc = p > 0 || g->beta != 0.0f;
        for (i = 0; i < q.m; i++) {
            rows[i] = g->ta ? turned + i * CTR_GEMM_TURNED_ : g->a + (top + i) * g->lda + p;
        }
        if (g->ta) {
            ctr_gemm_turn_(g->a + p * g->lda + top, g->lda, q.k, q.m, turned, CTR_GEMM_TURNED_);
        }
        ctr_gemm_block_run_(&q);
    }
}

/* Cuts m rows into blocks of equal height, and the panels into ranges if the blocks are few. */
CTR_PRIVATE_ int64_t ctr_gemm_cut_(int64_t m, int64_t panels, int64_t *rows, int64_t *range,
                                   int64_t *ranges)
{
    int64_t blocks = ctr_gemm_pieces_(m, CTR_GEMM_MC_), want;
    *rows = ctr_gemm_pieces_(ctr_gemm_pieces_(m, blocks), CTR_GEMM_MR_) * CTR_GEMM_MR_;
    blocks = ctr_gemm_pieces_(m, *rows);
    want = blocks >= 24 ? 1 : ctr_gemm_min_(ctr_gemm_pieces_(24, blocks), (panels + 1) / 2);
    *range = ctr_gemm_pieces_(panels, want);
    *ranges = ctr_gemm_pieces_(panels, *range);
    return blocks * *ranges;
}

/* At most 16 MiB of B are packed at a time, or one panel if that is more. */
CTR_PRIVATE_ void ctr_gemm_avx2_(ctr_ctx *ctx, const ctr_gemm_args_ *args)
{
    const int64_t most = ((int64_t)1 << 18) / args->k + 1;
    const int64_t all = ctr_gemm_pieces_(args->n, CTR_GEMM_NR_);
    const int64_t size = ctr_gemm_min_(all, most) * args->k * CTR_GEMM_NR_;
    ctr_gemm_plan_ plan;
    int64_t j, chunks;
    plan.work_size = args->ta ? (size_t)(CTR_GEMM_MC_ * CTR_GEMM_TURNED_) * sizeof(float) : 0;
    plan.packed = (float *)ctr_scratch_(ctx, (size_t)size * sizeof(float) +
                                                 (size_t)ctr_threads_(ctx) * plan.work_size);
    if (!plan.packed) {
        return;
    }
    plan.work = (char *)(plan.packed + size);
    plan.args = *args;
    for (j = 0; j < args->n; j += most * CTR_GEMM_NR_) {
        ctr_gemm_args_ *g = &plan.args;
        g->n = ctr_gemm_min_(most * CTR_GEMM_NR_, args->n - j);
        g->b = args->b + (g->tb ? j * g->ldb : j);
        g->c = args->c + j;
        plan.panels = ctr_gemm_pieces_(g->n, CTR_GEMM_NR_);
        chunks = ctr_gemm_cut_(g->m, plan.panels, &plan.rows, &plan.range, &plan.ranges);
        ctr_gemm_spread_(ctx, plan.panels, 8 * g->n * g->k, ctr_gemm_pack_job_, &plan);
        ctr_gemm_spread_(ctx, chunks, g->m * g->n * g->k, ctr_gemm_block_job_, &plan);
    }
}

#endif /* CTR_GEMM_AVX2_ */

/* C[m,n] = alpha op(A) op(B) + beta C, where op transposes if ta, tb. beta 0 never reads C. */
CTR_PRIVATE_ void ctr_gemm_run_(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k,
                                ctr_real alpha, const ctr_real *a, int64_t lda, const ctr_real *b,
                                int64_t ldb, ctr_real beta, ctr_real *c, int64_t ldc)
{
    ctr_gemm_args_ g;
    g.ta = ta;
    g.tb = tb;
    g.m = m;
    g.n = n;
    g.k = k;
    g.alpha = alpha;
    g.beta = beta;
    g.a = a;
    g.b = b;
    g.c = c;
    g.lda = lda;
    g.ldb = ldb;
    g.ldc = ldc;
    if (m < 1 || n < 1) {
        return;
    }
    if (k < 1) {
        ctr_gemm_scale_(m, n, beta, c, ldc);
        return;
    }
#if CTR_GEMM_AVX2_
    if (ctr_kernels_(ctx) >= CTR_KERNELS_AVX2) {
        ctr_gemm_avx2_(ctx, &g);
        return;
    }
#endif
    ctr_gemm_scalar_(ctx, &g);
}

/* ================================================================================================
   >>CONV  convolutions

   x [n, h, w, c], weights w [kh, kw, c, oc], y [n, oh, ow, oc], all dense:
       y[i, p, q, o] = sum over a, b, c of x[i, p s + a - pad, q s + b - pad, c] w[a, b, c, o]
   with s the stride and x zero outside its bounds. Three passes: forward, gradient to the input,
   gradient to the weights. No groups, no dilation, no bias. As for products, the order of
   each sum depends on the shape alone.
   ============================================================================================= */

/* What the jobs of one scalar pass share. */
typedef struct ctr_conv_args_ {
    ctr_conv_shape s;
    const ctr_real *x, *w, *dy; /* two of the three are read */
    ctr_real *out;              /* y, dx or dw */
    int acc;
} ctr_conv_args_;

/* y += x w for the weights of one tap */
CTR_PRIVATE_ void ctr_conv_tap_(int64_t c, int64_t oc, const ctr_real *x, const ctr_real *w,
                                ctr_real *y)
{
    int64_t i, o;
    for (i = 0; i < c; i++, w += oc) {
        for (o = 0; o < oc; o++) {
            y[o] += x[i] * w[o];
        }
    }
}

/* One row of pixels of y. */
CTR_PRIVATE_ void ctr_conv_forward_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_args_ *g = (const ctr_conv_args_ *)arg;
    const ctr_conv_shape *s = &g->s;
    const ctr_real *image = g->x + chunk / s->oh * s->h * s->w * s->c;
    const int64_t top = chunk % s->oh * s->stride - s->pad;
    ctr_real *y = g->out + chunk * s->ow * s->oc;
    int64_t q, a, b, o;
    (void)worker;
    for (q = 0; q < s->ow; q++, y += s->oc) {
        const int64_t left = q * s->stride - s->pad;
        for (o = 0; o < s->oc; o++) {
            y[o] = CTR_R(0.0);
        }
        for (a = 0; a < s->kh; a++) {
            for (b = 0; b < s->kw; b++) {
                if (top + a >= 0 && top + a < s->h && left + b >= 0 && left + b < s->w) {
                    ctr_conv_tap_(s->c, s->oc, image + ((top + a) * s->w + left + b) * s->c,
                                  g->w + (a * s->kw + b) * s->c * s->oc, y);
                }
            }
        }
    }
}

/* dx[c] += sum over o of w[c][o] dy[o] for the weights of one tap */
CTR_PRIVATE_ void ctr_conv_tap_input_(int64_t c, int64_t oc, const ctr_real *dy, const ctr_real *w,
                                      ctr_real *dx)
{
    int64_t i, o;
    for (i = 0; i < c; i++, w += oc) {
        ctr_real sum = CTR_R(0.0);
        for (o = 0; o < oc; o++) {
            sum += w[o] * dy[o];
        }
        dx[i] += sum;
    }
}

/* One row of pixels of dx. Input row r meets output row p through tap a when p s = r + pad - a. */
CTR_PRIVATE_ void ctr_conv_input_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_args_ *g = (const ctr_conv_args_ *)arg;
    const ctr_conv_shape *s = &g->s;
    const ctr_real *image = g->dy + chunk / s->h * s->oh * s->ow * s->oc;
    const int64_t r = chunk % s->h;
    ctr_real *dx = g->out + chunk * s->w * s->c;
    int64_t col, a, b, i;
    (void)worker;
    for (col = 0; col < s->w; col++, dx += s->c) {
        for (i = 0; i < s->c && !g->acc; i++) {
            dx[i] = CTR_R(0.0);
        }
        for (a = 0; a < s->kh; a++) {
            const int64_t p = r + s->pad - a;
            if (p < 0 || p % s->stride || p / s->stride >= s->oh) {
                continue;
            }
            for (b = 0; b < s->kw; b++) {
                const int64_t q = col + s->pad - b;
                if (q >= 0 && q % s->stride == 0 && q / s->stride < s->ow) {
                    ctr_conv_tap_input_(
                        s->c, s->oc, image + (p / s->stride * s->ow + q / s->stride) * s->oc,
                        g->w + (a * s->kw + b) * s->c * s->oc, dx);
                }
            }
        }
    }
}

/* Channels of dw that one scalar job makes. */
#define CTR_CONV_GROUP_ 8

/* A few channels of one tap of dw: the sum over all pixels of x^T dy. */
CTR_PRIVATE_ void ctr_conv_weight_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_args_ *g = (const ctr_conv_args_ *)arg;
    const ctr_conv_shape *s = &g->s;
    const int64_t groups = ctr_gemm_pieces_(s->c, CTR_CONV_GROUP_), tap = chunk / groups;
    const int64_t first = chunk % groups * CTR_CONV_GROUP_;
    const int64_t last = ctr_gemm_min_(first + CTR_CONV_GROUP_, s->c);
    ctr_real *dw = g->out + tap * s->c * s->oc;
    int64_t pixel, i, o;
    (void)worker;
    for (i = first * s->oc; i < last * s->oc && !g->acc; i++) {
        dw[i] = CTR_R(0.0);
    }
    for (pixel = 0; pixel < s->n * s->oh * s->ow; pixel++) {
        const int64_t image = pixel / s->ow / s->oh;
        const int64_t r = pixel / s->ow % s->oh * s->stride - s->pad + tap / s->kw;
        const int64_t col = pixel % s->ow * s->stride - s->pad + tap % s->kw;
        const ctr_real *dy = g->dy + pixel * s->oc;
        if (r < 0 || r >= s->h || col < 0 || col >= s->w) {
            continue;
        }
        for (i = first; i < last; i++) {
            const ctr_real x = g->x[((image * s->h + r) * s->w + col) * s->c + i];
            for (o = 0; o < s->oc; o++) {
                dw[i * s->oc + o] += x * dy[o];
            }
        }
    }
}

CTR_PRIVATE_ int64_t ctr_conv_work_(const ctr_conv_shape *s)
{
    return s->n * s->oh * s->ow * s->kh * s->kw * s->c * s->oc;
}

#if CTR_GEMM_AVX2_

/* ---- AVX2 + FMA: implicit gemm ------------------------------------------------------------------
   Forward: the rows of A are pixels of x, one run of c floats per tap; B are the weights as
   they lie, [kh kw c][oc]; the rows of C are pixels of y. Outside x a pointer to zeros stands in.

   Gradient to the input: the same with dy for x and each tap's weights transposed. For a stride s,
   dx falls into s x s phases by the parity of row and column; in each, the taps that meet any
   output at all form a regular grid, so a phase is a small convolution of stride 1 of its own.

   Gradient to the weights: outer products. k runs over pixels, A are channels of x, B are
   channels of dy.

   With few channels (the first layer) runs are too short to be worth a pointer each: the patches
   are copied into rows of kh kw c floats, a block at a time ("im2col"), and act as a 1 x 1
   kernel. */

#define CTR_CONV_FEW_ 8 /* up to so many input channels are copied as patches */

/* One implicit product. Tap (a, b) of the pixel (r, col) of the grid reads the input pixel
   (r step + y0 + sign a, col step + x0 + sign b) and adds to the output pixel
   (r leap + oy, col leap + ox). */
typedef struct ctr_conv_pass_ {
    const float *in;         /* [n, ih, iw, ic] */
    float *out;              /* [n, oh, ow, oc] */
    int64_t n, ih, iw, ic, oh, ow, oc;
    int64_t gh, gw;          /* the grid: pixels that this pass makes of each image */
    int64_t th, tw;          /* taps */
    int64_t y0, x0, step, sign, oy, ox, leap;
    const float *w;          /* the weights in memory, for packing */
    int64_t ky, kx, kstep, kw; /* tap (a, b) has the weights (ky + a kstep, kx + b kstep) */
    int acc;
    const ctr_conv_shape *patches; /* not NULL: copy patches, ic = kh kw c, one tap */
    float *packed;           /* [panels][th tw][ic][16] */
    const float *zero;       /* [ic] */
    int64_t panels, rows, range, ranges; /* the cut into jobs, as for products */
    char *work;              /* each worker's pointers and patches */
    size_t work_size;
} ctr_conv_pass_;

CTR_PRIVATE_ int ctr_conv_inside_(int64_t i, int64_t n)
{
    return i >= 0 && i < n;
}

/* Packs one panel of the weights: forward as they lie, backward each tap transposed. */
CTR_PRIVATE_ void ctr_conv_pack_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_pass_ *g = (const ctr_conv_pass_ *)arg;
    const int64_t j = chunk * CTR_GEMM_NR_, size = g->ic * CTR_GEMM_NR_;
    const int64_t width = ctr_gemm_min_(CTR_GEMM_NR_, g->oc - j);
    float *panel = g->packed + chunk * g->th * g->tw * size;
    int64_t a, b;
    (void)worker;
    for (a = 0; a < g->th; a++) {
        for (b = 0; b < g->tw; b++, panel += size) {
            const int64_t tap = (g->ky + a * g->kstep) * g->kw + g->kx + b * g->kstep;
            const float *w = g->w + tap * g->ic * g->oc;
            if (g->sign > 0) {
                ctr_gemm_pack_(0, g->ic, width, w + j, g->oc, panel);
            } else {
                ctr_gemm_pack_(1, g->ic, width, w + j * g->ic, g->ic, panel);
            }
        }
    }
}

/* A pixel of a grid, walked in the order of memory. */
typedef struct ctr_conv_spot_ {
    int64_t image, r, col;
} ctr_conv_spot_;

CTR_PRIVATE_ ctr_conv_spot_ ctr_conv_spot_at_(int64_t pixel, int64_t h, int64_t w)
{
    ctr_conv_spot_ spot;
    spot.image = pixel / w / h;
    spot.r = pixel / w % h;
    spot.col = pixel % w;
    return spot;
}

CTR_PRIVATE_ void ctr_conv_spot_next_(ctr_conv_spot_ *spot, int64_t h, int64_t w)
{
    if (++spot->col == w) {
        spot->col = 0;
        if (++spot->r == h) {
            spot->r = 0;
            spot->image++;
        }
    }
}

/* Pointers to what each tap of one pixel reads, `apart` pointers from each other. */
CTR_PRIVATE_ void ctr_conv_point_(const ctr_conv_pass_ *g, const ctr_conv_spot_ *spot,
                                  const float **slot, int64_t apart)
{
    const float *in = g->in + spot->image * g->ih * g->iw * g->ic;
    int64_t y = spot->r * g->step + g->y0, a, b;
    for (a = 0; a < g->th; a++, y += g->sign) {
        const int row = ctr_conv_inside_(y, g->ih);
        int64_t x = spot->col * g->step + g->x0;
        for (b = 0; b < g->tw; b++, x += g->sign, slot += apart) {
            *slot = row && ctr_conv_inside_(x, g->iw) ? in + (y * g->iw + x) * g->ic : g->zero;
        }
    }
}

/* A short copy without the call that memcpy would be. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_conv_copy_(float *to, const float *from, int64_t n)
{
    int64_t i;
    if (n < 4) {
        for (i = 0; i < n; i++) {
            to[i] = from[i];
        }
        return;
    }
    for (i = 0; i < n - 4; i += 4) {
        _mm_storeu_ps(to + i, _mm_loadu_ps(from + i));
    }
    _mm_storeu_ps(to + n - 4, _mm_loadu_ps(from + n - 4)); /* the rest, overlapping */
}

/* The patch of one pixel of y as a row of kh kw c floats. */
CTR_PRIVATE_ void ctr_conv_patch_(const ctr_conv_shape *s, const float *x,
                                  const ctr_conv_spot_ *spot, float *row)
{
    const float *image = x + spot->image * s->h * s->w * s->c;
    const int64_t top = spot->r * s->stride - s->pad, left = spot->col * s->stride - s->pad;
    const int64_t first = left < 0 ? ctr_gemm_min_(-left, s->kw) : 0;
    const int64_t last = ctr_gemm_min_(s->kw, s->w - left);
    int64_t a, i;
    for (a = 0; a < s->kh; a++, row += s->kw * s->c) {
        if (!ctr_conv_inside_(top + a, s->h) || first >= last) {
            memset(row, 0, (size_t)(s->kw * s->c) * sizeof(float));
            continue;
        }
        for (i = 0; i < first * s->c; i++) {
            row[i] = 0.0f;
        }
        ctr_conv_copy_(row + first * s->c, image + ((top + a) * s->w + left + first) * s->c,
                       (last - first) * s->c);
        for (i = last * s->c; i < s->kw * s->c; i++) {
            row[i] = 0.0f;
        }
    }
}

/* Rows of A and of C for the m pixels from `top` on. */
CTR_PRIVATE_ void ctr_conv_gather_(const ctr_conv_pass_ *g, int64_t top, int64_t m,
                                   const float **rows, float **outs)
{
    const int64_t taps = g->th * g->tw;
    float *patch = (float *)(rows + CTR_GEMM_MC_ * taps);
    ctr_conv_spot_ spot = ctr_conv_spot_at_(top, g->gh, g->gw);
    int64_t i;
    for (i = 0; i < m; i++) {
        const int64_t y = spot.r * g->leap + g->oy, x = spot.col * g->leap + g->ox;
        outs[i] = g->out + ((spot.image * g->oh + y) * g->ow + x) * g->oc;
        if (g->patches) {
            ctr_conv_patch_(g->patches, g->in, &spot, patch);
            rows[i] = patch;
            patch += g->ic;
        } else {
            const int64_t group = i / CTR_GEMM_MR_;
            ctr_conv_point_(g, &spot, rows + group * CTR_GEMM_MR_ * taps + i % CTR_GEMM_MR_,
                            CTR_GEMM_MR_);
        }
        ctr_conv_spot_next_(&spot, g->gh, g->gw);
    }
}

/* A block of pixels times a range of panels. */
CTR_PRIVATE_ void ctr_conv_block_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_pass_ *g = (const ctr_conv_pass_ *)arg;
    const int64_t top = chunk / g->ranges * g->rows;
    float *outs[CTR_GEMM_MC_];
    ctr_gemm_block_ q;
    int64_t i, from, to;
    q.rows = (const float **)(void *)(g->work + (size_t)worker * g->work_size);
    q.outs = outs;
    q.m = ctr_gemm_min_(g->rows, g->n * g->gh * g->gw - top);
    q.n = g->oc;
    q.taps = g->th * g->tw;
    q.k = g->ic;
    q.b = g->packed;
    q.panel = q.taps * q.k * CTR_GEMM_NR_;
    q.first = chunk % g->ranges * g->range;
    q.last = ctr_gemm_min_(q.first + g->range, g->panels);
    q.acc = g->acc;
    ctr_conv_gather_(g, top, q.m, q.rows, outs);
    if (q.taps > 0) {
        ctr_gemm_block_run_(&q);
        return;
    }
    from = q.first * CTR_GEMM_NR_; /* a phase that no tap reaches */
    to = ctr_gemm_min_(q.last * CTR_GEMM_NR_, g->oc);
    for (i = 0; i < q.m && !g->acc; i++) {
        memset(outs[i] + from, 0, (size_t)(to - from) * sizeof(float));
    }
}

/* Packs the weights and runs the blocks of one pass, whose memory is already set. */
CTR_PRIVATE_ void ctr_conv_pass_run_(ctr_ctx *ctx, ctr_conv_pass_ *g)
{
    const int64_t m = g->n * g->gh * g->gw, k = g->th * g->tw * g->ic;
    int64_t chunks;
    if (m == 0) {
        return;
    }
    g->panels = ctr_gemm_pieces_(g->oc, CTR_GEMM_NR_);
    chunks = ctr_gemm_cut_(m, g->panels, &g->rows, &g->range, &g->ranges);
    ctr_gemm_spread_(ctx, g->panels, 8 * k * g->oc, ctr_conv_pack_job_, g);
    ctr_gemm_spread_(ctx, chunks, m * g->oc * (k + 8), ctr_conv_block_job_, g);
}

/* Memory of a pass: packed weights of `taps` taps, zeros, and for each worker pointers for `most`
   taps and a block of patches. Returns 0 if there is none. */
CTR_PRIVATE_ int ctr_conv_memory_(ctr_ctx *ctx, ctr_conv_pass_ *g, int64_t taps, int64_t most)
{
    const int64_t zeros = ctr_gemm_pieces_(g->ic, CTR_GEMM_NR_) * CTR_GEMM_NR_;
    const int64_t packed = ctr_gemm_pieces_(g->oc, CTR_GEMM_NR_) * CTR_GEMM_NR_ * taps * g->ic;
    const int64_t patches = g->patches ? CTR_GEMM_MC_ * g->ic : 0;
    g->work_size = (size_t)(CTR_GEMM_MC_ * most) * sizeof(float *) +
                   (size_t)patches * sizeof(float);
    g->packed = (float *)ctr_scratch_(ctx, (size_t)(packed + zeros) * sizeof(float) +
                                               (size_t)ctr_threads_(ctx) * g->work_size);
    if (!g->packed) {
        return 0;
    }
    memset(g->packed + packed, 0, (size_t)zeros * sizeof(float));
    g->zero = g->packed + packed;
    g->work = (char *)(g->packed + packed + zeros);
    return 1;
}

CTR_PRIVATE_ void ctr_conv_forward_avx2_(ctr_ctx *ctx, const ctr_conv_shape *s, const float *x,
                                         const float *w, float *y)
{
    ctr_conv_pass_ g;
    memset(&g, 0, sizeof g);
    g.patches = s->c <= CTR_CONV_FEW_ ? s : NULL;
    g.in = x;
    g.out = y;
    g.w = w;
    g.n = s->n;
    g.ih = s->h;
    g.iw = s->w;
    g.oc = s->oc;
    g.gh = g.oh = s->oh;
    g.gw = g.ow = s->ow;
    g.ic = g.patches ? s->kh * s->kw * s->c : s->c;
    g.th = g.patches ? 1 : s->kh;
    g.tw = g.kw = g.patches ? 1 : s->kw;
    g.step = s->stride;
    g.y0 = g.x0 = -s->pad;
    g.sign = g.leap = g.kstep = 1;
    if (ctr_conv_memory_(ctx, &g, g.th * g.tw, g.th * g.tw)) {
        ctr_conv_pass_run_(ctx, &g);
    }
}

/* The phase (py, px): pixels (r s + py, col s + px) of dx. Tap a of the kernel reaches one when
   py + pad - a is a multiple of s, that is a = ky, ky + s, ..., and then meets the output row
   r + (py + pad - a) / s: one row less with each further tap. */
CTR_PRIVATE_ void ctr_conv_phase_(ctr_conv_pass_ *g, const ctr_conv_shape *s, int64_t py,
                                  int64_t px)
{
    g->oy = py;
    g->ox = px;
    g->gh = py < s->h ? (s->h - py - 1) / s->stride + 1 : 0;
    g->gw = px < s->w ? (s->w - px - 1) / s->stride + 1 : 0;
    g->ky = (py + s->pad) % s->stride;
    g->kx = (px + s->pad) % s->stride;
    g->y0 = (py + s->pad) / s->stride;
    g->x0 = (px + s->pad) / s->stride;
    g->th = g->ky < s->kh ? (s->kh - g->ky - 1) / s->stride + 1 : 0;
    g->tw = g->kx < s->kw ? (s->kw - g->kx - 1) / s->stride + 1 : 0;
}

CTR_PRIVATE_ void ctr_conv_input_avx2_(ctr_ctx *ctx, const ctr_conv_shape *s, const float *dy,
                                       const float *w, float *dx, int acc)
{
    ctr_conv_pass_ g;
    int64_t most, phase;
    memset(&g, 0, sizeof g);
    g.in = dy;
    g.out = dx;
    g.w = w;
    g.n = s->n;
    g.ih = s->oh;
    g.iw = s->ow;
    g.ic = s->oc;
    g.oh = s->h;
    g.ow = s->w;
    g.oc = s->c;
    g.step = 1;
    g.sign = -1;
    g.leap = g.kstep = s->stride;
    g.kw = s->kw;
    g.acc = acc;
    most = ctr_gemm_pieces_(s->kh, s->stride) * ctr_gemm_pieces_(s->kw, s->stride);
    if (!ctr_conv_memory_(ctx, &g, most, most)) {
        return;
    }
    for (phase = 0; phase < s->stride * s->stride; phase++) {
        ctr_conv_phase_(&g, s, phase / s->stride, phase % s->stride);
        ctr_conv_pass_run_(ctx, &g);
    }
}

/* ---- gradient to the weights ----
   Cut into tiles of channels that are each summed over all pixels, where c and oc allow enough
   tiles; else also into up to 8 parts of the pixels, whose sums are added up in order. */

#define CTR_CONV_DEPTH_ 256 /* pixels at a time: 16 KiB of a panel of dy in L1 */
#define CTR_CONV_SIDE_ 64   /* channels of a tile, of x and of dy */

typedef struct ctr_conv_grad_ {
    ctr_conv_pass_ walk;   /* the forward pass, for its pointers and patches */
    const float *dy;
    float *dw, *parts_at;  /* dw, and the partial sums [parts][taps c][oc] if parts > 1 */
    int64_t taps, c, oc;   /* of the weights; patches are one tap of kh kw c channels */
    int64_t pixels, part, parts; /* n oh ow, as `parts` times up to `part` */
    int64_t ci, cj, ni, nj;      /* tiles of ci x cj channels: ni x nj of them */
    int acc;
    char *work;
    size_t work_size;
} ctr_conv_grad_;

/* How many of `left` rows the next tile takes: near the end two of equal height, because
   a tile of one or two rows takes as long as one of four. */
CTR_PRIVATE_ int64_t ctr_conv_rows_(int64_t left)
{
    return left > CTR_GEMM_MR_ && left < 10 ? (left + 1) / 2 : ctr_gemm_min_(left, CTR_GEMM_MR_);
}

/* One tile of channels, all taps, += k pixels: rows [taps][256] of x, panels [cj/16][256][16]. */
CTR_PRIVATE_ void ctr_conv_outer_(const ctr_conv_grad_ *g, const float *const *rows,
                                  const float *panels, int64_t k, int64_t i0, int64_t j0,
                                  float *out, int acc)
{
    const int64_t ilast = ctr_gemm_min_(i0 + g->ci, g->c), jlast = ctr_gemm_min_(j0 + g->cj, g->oc);
    float *outs[CTR_GEMM_MR_];
    ctr_gemm_tile_ tile;
    int64_t i, j, tap, r, m;
    tile.taps = 1;
    tile.k = k;
    tile.outs = outs;
    tile.acc = acc;
    for (j = j0; j < jlast; j += CTR_GEMM_NR_) {
        tile.b = panels + (j - j0) * CTR_CONV_DEPTH_;
        tile.column = j * (int64_t)sizeof(float);
        for (tap = 0; tap < g->taps; tap++) {
            tile.rows = rows + tap * CTR_CONV_DEPTH_;
            for (i = i0; i < ilast; i += m) {
                m = ctr_conv_rows_(ilast - i);
                tile.skip = i * (int64_t)sizeof(float);
                for (r = 0; r < m; r++) {
                    outs[r] = out + (tap * g->c + i + r) * g->oc;
                }
                ctr_gemm_outer_(&tile, m, jlast - j);
            }
        }
    }
}

CTR_PRIVATE_ void ctr_conv_grad_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_grad_ *g = (const ctr_conv_grad_ *)arg;
    const int64_t part = chunk / (g->ni * g->nj);
    const int64_t i0 = chunk / g->nj % g->ni * g->ci, j0 = chunk % g->nj * g->cj;
    const int64_t end = ctr_gemm_min_((part + 1) * g->part, g->pixels);
    float *out = g->parts > 1 ? g->parts_at + part * g->taps * g->c * g->oc : g->dw;
    float *panels = (float *)(void *)(g->work + (size_t)worker * g->work_size);
    const float **rows = (const float **)(void *)(panels + CTR_CONV_DEPTH_ * g->cj);
    float *patches = (float *)(rows + CTR_CONV_DEPTH_ * g->taps);
    int64_t top = part * g->part, i, j, k;
    ctr_conv_spot_ spot = ctr_conv_spot_at_(top, g->walk.gh, g->walk.gw);
    int acc = g->parts > 1 ? 0 : g->acc;
    for (; top < end; top += k, acc = 1) {
        k = ctr_gemm_min_(CTR_CONV_DEPTH_, end - top);
        for (i = 0; i < k; i++) {
            if (g->walk.patches) {
                rows[i] = patches + i * g->c;
                ctr_conv_patch_(g->walk.patches, g->walk.in, &spot, patches + i * g->c);
            } else {
                ctr_conv_point_(&g->walk, &spot, rows + i, CTR_CONV_DEPTH_);
            }
            ctr_conv_spot_next_(&spot, g->walk.gh, g->walk.gw);
        }
        for (j = j0; j < ctr_gemm_min_(j0 + g->cj, g->oc); j += CTR_GEMM_NR_) {
            ctr_gemm_pack_(0, k, ctr_gemm_min_(CTR_GEMM_NR_, g->oc - j), g->dy + top * g->oc + j,
                           g->oc, panels + (j - j0) * CTR_CONV_DEPTH_);
        }
        ctr_conv_outer_(g, rows, panels, k, i0, j0, out, acc);
    }
}

/* Floats of dw that one job sums over the parts. */
#define CTR_CONV_STRETCH_ 4096

CTR_PRIVATE_ void ctr_conv_parts_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_conv_grad_ *g = (const ctr_conv_grad_ *)arg;
    const int64_t size = g->taps * g->c * g->oc;
    const int64_t end = ctr_gemm_min_((chunk + 1) * CTR_CONV_STRETCH_, size);
    int64_t i, part;
    (void)worker;
    for (i = chunk * CTR_CONV_STRETCH_; i < end; i++) {
        float sum = g->parts_at[i];
        for (part = 1; part < g->parts; part++) {
            sum += g->parts_at[part * size + i];
        }
        g->dw[i] = g->acc ? g->dw[i] + sum : sum;
    }
}

/* The cut, by shape alone: at least 16 jobs if the pixels suffice. */
CTR_PRIVATE_ void ctr_conv_grad_cut_(ctr_conv_grad_ *g)
{
    const int64_t wide = CTR_CONV_SIDE_ + CTR_CONV_SIDE_ / 2;
    const int64_t oc16 = ctr_gemm_pieces_(g->oc, CTR_GEMM_NR_) * CTR_GEMM_NR_;
    g->ci = g->c <= wide ? g->c : CTR_CONV_SIDE_;
    g->cj = oc16 <= wide ? oc16 : CTR_CONV_SIDE_;
    g->ni = ctr_gemm_pieces_(g->c, g->ci);
    g->nj = ctr_gemm_pieces_(g->oc, g->cj);
    g->parts = ctr_gemm_min_(ctr_gemm_min_(8, ctr_gemm_pieces_(16, g->ni * g->nj)),
                             ctr_gemm_pieces_(g->pixels, CTR_CONV_DEPTH_));
    g->part = ctr_gemm_pieces_(g->pixels, g->parts);
    g->parts = ctr_gemm_pieces_(g->pixels, g->part);
}

CTR_PRIVATE_ void ctr_conv_weight_avx2_(ctr_ctx *ctx, const ctr_conv_shape *s, const float *x,
                                        const float *dy, float *dw, int acc)
{
    const int64_t size = s->kh * s->kw * s->c * s->oc;
    ctr_conv_grad_ g;
    int64_t zeros, parts;
    memset(&g, 0, sizeof g);
    g.walk.patches = s->c <= CTR_CONV_FEW_ ? s : NULL;
    g.walk.in = x;
    g.walk.n = s->n;
    g.walk.ih = s->h;
    g.walk.iw = s->w;
    g.walk.ic = s->c;
    g.walk.gh = s->oh;
    g.walk.gw = s->ow;
    g.walk.th = s->kh;
    g.walk.tw = s->kw;
    g.walk.step = s->stride;
    g.walk.y0 = g.walk.x0 = -s->pad;
    g.walk.sign = 1;
    g.taps = g.walk.patches ? 1 : s->kh * s->kw;
    g.c = g.walk.patches ? s->kh * s->kw * s->c : s->c;
    g.oc = s->oc;
    g.pixels = s->n * s->oh * s->ow;
    g.dy = dy;
    g.dw = dw;
    g.acc = acc;
    ctr_conv_grad_cut_(&g);
    zeros = ctr_gemm_pieces_(s->c, CTR_GEMM_NR_) * CTR_GEMM_NR_;
    parts = g.parts > 1 ? ctr_gemm_pieces_(g.parts * size, CTR_GEMM_NR_) * CTR_GEMM_NR_ : 0;
    g.work_size = CTR_CONV_DEPTH_ * ((size_t)g.cj * sizeof(float) +
                                     (size_t)g.taps * sizeof(float *) +
                                     (g.walk.patches ? (size_t)g.c * sizeof(float) : 0));
    g.parts_at = (float *)ctr_scratch_(ctx, (size_t)(zeros + parts) * sizeof(float) +
                                                (size_t)ctr_threads_(ctx) * g.work_size);
    if (!g.parts_at) {
        return;
    }
    memset(g.parts_at + parts, 0, (size_t)zeros * sizeof(float));
    g.walk.zero = g.parts_at + parts;
    g.work = (char *)(g.parts_at + parts + zeros);
    ctr_gemm_spread_(ctx, g.parts * g.ni * g.nj, ctr_conv_work_(s), ctr_conv_grad_job_, &g);
    if (g.parts > 1) {
        ctr_gemm_spread_(ctx, ctr_gemm_pieces_(size, CTR_CONV_STRETCH_), size * g.parts,
                         ctr_conv_parts_job_, &g);
    }
}

#endif /* CTR_GEMM_AVX2_ */

CTR_PRIVATE_ int ctr_conv_fast_(const ctr_ctx *ctx, const ctr_conv_shape *s)
{
    return CTR_GEMM_AVX2_ && ctr_kernels_(ctx) >= CTR_KERNELS_AVX2 && ctr_conv_work_(s) > 0;
}

/* y = convolution of x with w */
CTR_PRIVATE_ void ctr_conv_forward_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                    const ctr_real *w, ctr_real *y)
{
    ctr_conv_args_ g;
#if CTR_GEMM_AVX2_
    if (ctr_conv_fast_(ctx, s)) {
        ctr_conv_forward_avx2_(ctx, s, x, w, y);
        return;
    }
#endif
    memset(&g, 0, sizeof g);
    g.s = *s;
    g.x = x;
    g.w = w;
    g.out = y;
    ctr_gemm_spread_(ctx, s->n * s->oh, ctr_conv_work_(s), ctr_conv_forward_job_, &g);
}

/* dx = gradient to the input, or dx += it if acc */
CTR_PRIVATE_ void ctr_conv_input_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                                  const ctr_real *w, ctr_real *dx, int acc)
{
    ctr_conv_args_ g;
#if CTR_GEMM_AVX2_
    if (ctr_conv_fast_(ctx, s)) {
        ctr_conv_input_avx2_(ctx, s, dy, w, dx, acc);
        return;
    }
#endif
    memset(&g, 0, sizeof g);
    g.s = *s;
    g.dy = dy;
    g.w = w;
    g.out = dx;
    g.acc = acc;
    ctr_gemm_spread_(ctx, s->n * s->h, ctr_conv_work_(s), ctr_conv_input_job_, &g);
}

/* dw = gradient to the weights, or dw += it if acc */
CTR_PRIVATE_ void ctr_conv_weight_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                   const ctr_real *dy, ctr_real *dw, int acc)
{
    ctr_conv_args_ g;
#if CTR_GEMM_AVX2_
    if (ctr_conv_fast_(ctx, s)) {
        ctr_conv_weight_avx2_(ctx, s, x, dy, dw, acc);
        return;
    }
#endif
    memset(&g, 0, sizeof g);
    g.s = *s;
    g.x = x;
    g.dy = dy;
    g.out = dw;
    g.acc = acc;
    ctr_gemm_spread_(ctx, s->kh * s->kw * ctr_gemm_pieces_(s->c, CTR_CONV_GROUP_),
                     ctr_conv_work_(s), ctr_conv_weight_job_, &g);
}

/* ---- the verbs of matrix product, convolution and pooling -------------------------------------- */

CTR_API void ctr_k_gemm(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k,
                        ctr_real alpha, const ctr_real *a, int64_t lda, const ctr_real *b,
                        int64_t ldb, ctr_real beta, ctr_real *c, int64_t ldc)
{
    CTR_VERB_(gemm, (ctx, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    ctr_gemm_run_(ctx, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

CTR_API void ctr_k_conv_forward(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                const ctr_real *w, ctr_real *y)
{
    CTR_VERB_(conv_forward, (ctx, s, x, w, y))
    ctr_conv_forward_(ctx, s, x, w, y);
}

CTR_API void ctr_k_conv_input(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                              const ctr_real *w, ctr_real *dx, int acc)
{
    CTR_VERB_(conv_input, (ctx, s, dy, w, dx, acc))
    ctr_conv_input_(ctx, s, dy, w, dx, acc);
}

CTR_API void ctr_k_conv_weight(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                               const ctr_real *dy, ctr_real *dw, int acc)
{
    CTR_VERB_(conv_weight, (ctx, s, x, dy, dw, acc))
    ctr_conv_weight_(ctx, s, x, dy, dw, acc);
}

typedef struct ctr_pool_job_ {
    const ctr_pool_shape *s;
    const ctr_real *x;
    ctr_real *y;
    const int32_t *which_in;
    int32_t *which;
    int acc, backward;
} ctr_pool_job_;

/* The part of window o along one side of length n that lies inside: from..to-1. */
CTR_PRIVATE_ void ctr_pool_window_(const ctr_pool_shape *s, int64_t o, int64_t n, int64_t *from,
                                   int64_t *to)
{
    int64_t start = o * s->stride - s->pad;
    *from = CTR_MAX_(start, 0);
    *to = CTR_MIN_(start + s->size, n);
}

CTR_PRIVATE_ void ctr_pool_max_job_(void *arg, int64_t image, int worker)
{
    const ctr_pool_job_ *p = (const ctr_pool_job_ *)arg;
    const ctr_pool_shape *s = p->s;
    const ctr_real *x = p->x + image * s->h * s->w * s->c;
    int64_t oy, ox, iy, ix, c, y0, y1, x0, x1, at = image * s->oh * s->ow * s->c;
    (void)worker;
    for (oy = 0; oy < s->oh; oy++)
        for (ox = 0; ox < s->ow; ox++, at += s->c) {
            ctr_pool_window_(s, oy, s->h, &y0, &y1);
            ctr_pool_window_(s, ox, s->w, &x0, &x1);
            for (c = 0; c < s->c; c++) {
                int64_t best = (y0 * s->w + x0) * s->c + c;
                for (iy = y0; iy < y1; iy++)
                    for (ix = x0; ix < x1; ix++) {
                        int64_t here = (iy * s->w + ix) * s->c + c;
                        if (x[here] > x[best]) best = here;
                    }
                p->y[at + c] = x[best];
                p->which[at + c] = (int32_t)best;
            }
        }
}

CTR_API void ctr_k_max_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y,
                            int32_t *which)
{
    ctr_pool_job_ p;
    CTR_VERB_(max_pool, (ctx, s, x, y, which))
    memset(&p, 0, sizeof p);
    p.s = s;
    p.x = x;
    p.y = y;
    p.which = which;
    ctr_parallel_(ctx, s->n, ctr_pool_max_job_, &p);
}

CTR_PRIVATE_ void ctr_pool_max_grad_job_(void *arg, int64_t image, int worker)
{
    const ctr_pool_job_ *p = (const ctr_pool_job_ *)arg;
    const ctr_pool_shape *s = p->s;
    int64_t i, in = s->h * s->w * s->c, out = s->oh * s->ow * s->c;
    ctr_real *dx = p->y + image * in;
    (void)worker;
    if (!p->acc) memset(dx, 0, (size_t)in * sizeof *dx);
    for (i = image * out; i < (image + 1) * out; i++) dx[p->which_in[i]] += p->x[i];
}

CTR_API void ctr_k_max_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const int32_t *which,
                                 const ctr_real *dy, ctr_real *dx, int acc)
{
    ctr_pool_job_ p;
    CTR_VERB_(max_pool_grad, (ctx, s, which, dy, dx, acc))
    memset(&p, 0, sizeof p);
    p.s = s;
    p.x = dy;
    p.y = dx;
    p.which_in = which;
    p.acc = acc;
    ctr_parallel_(ctx, s->n, ctr_pool_max_grad_job_, &p);
}

/* Forward averages a window of x into y; backward spreads dy (in x) over dx (in y). */
CTR_PRIVATE_ void ctr_pool_avg_job_(void *arg, int64_t image, int worker)
{
    const ctr_pool_job_ *p = (const ctr_pool_job_ *)arg;
    const ctr_pool_shape *s = p->s;
    int64_t in = s->h * s->w * s->c, out = s->oh * s->ow * s->c, oy, ox, iy, ix, c, y0, y1, x0, x1;
    int backward = p->backward;
    const ctr_real *x = p->x + image * (backward ? out : in);
    ctr_real *y = p->y + image * (backward ? in : out);
    (void)worker;
    if (!p->acc) memset(y, 0, (size_t)(backward ? in : out) * sizeof *y);
    for (oy = 0; oy < s->oh; oy++)
        for (ox = 0; ox < s->ow; ox++) {
            int64_t o = (oy * s->ow + ox) * s->c;
            ctr_real share;
            ctr_pool_window_(s, oy, s->h, &y0, &y1);
            ctr_pool_window_(s, ox, s->w, &x0, &x1);
            share = CTR_R(1.0) / (ctr_real)((y1 - y0) * (x1 - x0));
            for (iy = y0; iy < y1; iy++)
                for (ix = x0; ix < x1; ix++) {
                    int64_t i = (iy * s->w + ix) * s->c;
                    if (backward) for (c = 0; c < s->c; c++) y[i + c] += x[o + c] * share;
                    else for (c = 0; c < s->c; c++) y[o + c] += x[i + c] * share;
                }
        }
}

CTR_PRIVATE_ void ctr_pool_avg_run_(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x,
                                    ctr_real *y, int backward, int acc)
{
    ctr_pool_job_ p;
    memset(&p, 0, sizeof p);
    p.s = s;
    p.x = x;
    p.y = y;
    p.backward = backward;
    p.acc = acc;
    ctr_parallel_(ctx, s->n, ctr_pool_avg_job_, &p);
}

CTR_API void ctr_k_avg_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *x, ctr_real *y)
{
    CTR_VERB_(avg_pool, (ctx, s, x, y))
    ctr_pool_avg_run_(ctx, s, x, y, 0, 0);
}

CTR_API void ctr_k_avg_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const ctr_real *dy,
                                 ctr_real *dx, int acc)
{
    CTR_VERB_(avg_pool_grad, (ctx, s, dy, dx, acc))
    ctr_pool_avg_run_(ctx, s, dy, dx, 1, acc);
}

/* ------------------------------------------------------------------------------------------------
   >>TAPE

   A node remembers what made a tensor: its inputs, a saved block and its own backward function. Nodes
   form a list in the order of creation; backward walks it from the end. When a node's backward is
   done, its gradient goes back to the free list and the slab's low end is popped to where it stood
   before the node, so memory falls as backward proceeds.
   ---------------------------------------------------------------------------------------------- */

typedef void (*ctr_backward_fn)(ctr_ctx *ctx, ctr_node *node);

struct ctr_node {
    ctr_node *previous;
    const char *name;
    ctr_tensor *out;
    ctr_tensor *in[6];
    ctr_tensor **many;                   /* inputs of concat */
    int count;                           /* of in, or of many */
    ctr_backward_fn backward;
    ctr_real *saved, *saved2;
    const int32_t *index;
    int64_t i[12];
    ctr_real f[2];
    size_t low, want_low;                /* the slab's low end before this node */
};

CTR_PRIVATE_ int ctr_needs_grad_(const ctr_tensor *t) { return (t->flags & CTR_T_NEEDS_GRAD_) != 0; }
CTR_PRIVATE_ ctr_real *ctr_f_(const ctr_tensor *t) { return (ctr_real *)t->data; }

/* A gradient buffer for t. Returns 0 if t needs none. *acc: the buffer already holds a part. */
CTR_PRIVATE_ int ctr_grad_(ctr_ctx *ctx, ctr_tensor *t, ctr_real **grad, int *acc)
{
    if (!ctr_needs_grad_(t) || ctx->status != CTR_OK) return 0;
    *acc = t->grad_step == ctx->step;
    if (!*acc) {
        if (!(t->flags & CTR_T_LEAF_))
            t->grad = (ctr_real *)ctr_slab_high_(ctx, ctr_tensor_bytes_(t));
        if (ctx->status != CTR_OK) return 0;
        t->grad_step = ctx->step;
    }
    *grad = t->grad;
    return 1;
}

/* t's gradient gets g a's share of the output's: grad += a g. If t has none yet and the node's own
   gradient is done with, the buffer itself moves. */
CTR_PRIVATE_ void ctr_grad_pass_(ctr_ctx *ctx, ctr_node *node, ctr_tensor *t, ctr_real a, int last)
{
    ctr_real *grad;
    int acc;
    if (!ctr_needs_grad_(t)) return;
    if (last && a == 1 && t->grad_step != ctx->step && !(t->flags & CTR_T_LEAF_)) {
        t->grad = node->out->grad;
        t->grad_step = ctx->step;
        node->out->grad = NULL;
        return;
    }
    if (ctr_grad_(ctx, t, &grad, &acc))
        ctr_k_axpby(ctx, t->size, a, node->out->grad, acc ? CTR_R(1.0) : CTR_R(0.0), grad);
}

CTR_PRIVATE_ void ctr_tape_clear_(ctr_ctx *ctx)
{
    ctx->last_node = NULL;
    ctr_slab_reset_(ctx);
}

CTR_API void ctr_tape_reset(ctr_ctx *ctx)
{
    /* staged entries live in the host arena: it is reset when the step ends */
    ctr_tape_clear_(ctx);
}

CTR_API void ctr_step_end(ctr_ctx *ctx)
{
    ctr_tape_clear_(ctx);
    ctr_arena_reset_(&ctx->host);
    ctr_arena_reset_(&ctx->kept);
    ctx->staged = ctx->staged_last = NULL;
    ctx->nograd = 0;
}

CTR_API void ctr_step_begin(ctr_ctx *ctx)
{
    ctr_step_end(ctx);
    ctx->step++;
    ctx->draws = 0;
}

CTR_API void ctr_step_reserve(ctr_ctx *ctx, size_t bytes)
{
    char *base;
    if (ctx->status != CTR_OK || bytes <= ctx->slab.size) return;
    if (ctx->slab.want_low + ctx->slab.want_high) {
        ctr_fail_(ctx, CTR_E_STATE, "step_reserve: not while a step's tensors are alive");
        return;
    }
    bytes = ctr_round_(bytes);
    base = (char *)ctr_data_alloc_(ctx, bytes);
    if (!base) return;
    ctr_data_free_(ctx, ctx->slab.base, ctx->slab.size);
    ctx->slab.base = base;
    ctx->slab.size = bytes;
}

CTR_API void ctr_nograd_begin(ctr_ctx *ctx) { ctx->nograd++; }
CTR_API void ctr_nograd_end(ctr_ctx *ctx)
{
    if (ctx->nograd > 0) ctx->nograd--;
}

CTR_API void ctr_plan_begin(ctr_ctx *ctx)
{
    if (ctx->plan) {
        ctr_fail_(ctx, CTR_E_STATE, "plan_begin: a plan is already open");
        return;
    }
    ctr_step_end(ctx);
    ctx->plan = 1;
    ctx->step++;
    ctx->slab.peak = 0;
}

CTR_API size_t ctr_plan_end(ctr_ctx *ctx)
{
    size_t peak = ctx->slab.peak;
    if (!ctx->plan) return 0;
    ctx->plan = 0;
    ctr_step_end(ctx);
    ctx->step++;
    return peak + CTR_ALIGN_;
}

CTR_PRIVATE_ void *ctr_kept_take_(ctr_ctx *ctx, size_t size)
{
    return ctx->plan ? ctx : ctr_arena_take_(ctx, &ctx->kept, size);
}

CTR_API ctr_tensor *ctr_keep(ctr_ctx *ctx, ctr_tensor *t)
{
    void *data;
    if (ctx->status != CTR_OK || (t->flags & (CTR_T_OWNED_ | CTR_T_KEPT_))) return t;
    data = ctr_kept_take_(ctx, ctr_tensor_bytes_(t));
    if (!data) return t;
    ctr_k_copy(ctx, ctr_tensor_bytes_(t), t->data, data);
    t->data = data;
    t->flags |= CTR_T_KEPT_;
    return t;
}

/* A header that shares t's data. */
CTR_PRIVATE_ ctr_tensor *ctr_view_(ctr_ctx *ctx, const ctr_tensor *t, int rank, const int64_t *shape)
{
    ctr_tensor *v;
    if (ctx->status != CTR_OK) return &ctx->poison;
    v = (ctr_tensor *)ctr_arena_take_(ctx, &ctx->host, sizeof *v);
    if (!v) return &ctx->poison;
    ctr_tensor_shape_(ctx, v, t->dtype, rank, shape);
    v->data = t->data;
    return v;
}

CTR_API ctr_tensor *ctr_detach(ctr_ctx *ctx, ctr_tensor *t)
{
    return ctr_view_(ctx, t, t->rank, t->shape);
}

CTR_API void ctr_stage(ctr_ctx *ctx, ctr_tensor *dst, ctr_real a, ctr_real b, const ctr_tensor *src)
{
    ctr_staged_ *s;
    if (ctx->status != CTR_OK) return;
    if (dst->size != src->size || dst->dtype != CTR_F32 || src->dtype != CTR_F32) {
        ctr_fail_(ctx, CTR_E_SHAPE, "stage: sizes differ, %ld and %ld", (long)dst->size,
                  (long)src->size);
        return;
    }
    s = (ctr_staged_ *)ctr_arena_take_(ctx, &ctx->host, sizeof *s);
    if (!s) return;
    s->next = NULL;
    s->dst = ctr_f_(dst);
    s->src = ctr_f_(src);
    s->n = dst->size;
    s->a = a;
    s->b = b;
    if (ctx->staged_last) ctx->staged_last->next = s;
    else ctx->staged = s;
    ctx->staged_last = s;
}

CTR_API void ctr_commit(ctr_ctx *ctx)
{
    ctr_staged_ *s;
    for (s = ctx->staged; s; s = s->next)
        ctr_k_axpby(ctx, s->n, s->b, s->src, s->a, s->dst);
    ctx->staged = ctx->staged_last = NULL;
}

/* Runs one node and frees what only it needed. */
CTR_PRIVATE_ void ctr_backward_node_(ctr_ctx *ctx, ctr_node *node)
{
    ctr_tensor *out = node->out;
    if (out->grad_step == ctx->step) {
        node->backward(ctx, node);
        if (out->grad) ctr_slab_give_(ctx, out->grad, ctr_tensor_bytes_(out));
        out->grad = NULL;
        out->grad_step = 0;
    }
    ctx->slab.low = node->low;
    ctx->slab.want_low = node->want_low;
}

CTR_PRIVATE_ void ctr_backward_run_(ctr_ctx *ctx)
{
    ctr_node *node;
    for (node = ctx->last_node; node && ctx->status == CTR_OK; node = node->previous)
        ctr_backward_node_(ctx, node);
    ctx->last_node = NULL;
}

CTR_API void ctr_backward_from(ctr_ctx *ctx, ctr_tensor *t, const ctr_tensor *gradient)
{
    ctr_real *grad;
    int acc;
    if (ctx->status != CTR_OK) return;
    if (t->size != gradient->size) {
        ctr_fail_(ctx, CTR_E_SHAPE, "backward: the gradient has %ld numbers, the tensor %ld",
                  (long)gradient->size, (long)t->size);
        return;
    }
    ctr_keep(ctx, t);
    if (ctr_grad_(ctx, t, &grad, &acc))
        ctr_k_axpby(ctx, t->size, 1, ctr_f_(gradient), acc ? CTR_R(1.0) : CTR_R(0.0), grad);
    ctr_backward_run_(ctx);
}

CTR_API void ctr_backward(ctr_ctx *ctx, ctr_tensor *loss)
{
    ctr_real *grad;
    int acc;
    if (ctx->status != CTR_OK) return;
    if (loss->size != 1) {
        char text[64];
        ctr_fail_(ctx, CTR_E_SHAPE, "backward: a loss has one number, this is %s; see "
                  "ctr_backward_from", ctr_shape_text_(loss->rank, loss->shape, text));
        return;
    }
    if (!ctr_needs_grad_(loss)) {
        ctr_fail_(ctx, CTR_E_STATE, "backward: the loss depends on no tensor that needs a gradient");
        return;
    }
    ctr_keep(ctx, loss);
    if (ctr_grad_(ctx, loss, &grad, &acc)) ctr_k_fill(ctx, 1, 1, grad);
    ctr_backward_run_(ctx);
}

/* ---- building nodes: begin, set what is needed, out, verbs, done ------------------------------- */

CTR_PRIVATE_ ctr_node *ctr_node_begin_(ctr_ctx *ctx, const char *name, ctr_backward_fn backward,
                                       ctr_tensor *a, ctr_tensor *b)
{
    ctr_node *node;
    if (ctx->status != CTR_OK) return NULL;
    node = (ctr_node *)ctr_arena_take_(ctx, &ctx->host, sizeof *node);
    if (!node) return NULL;
    memset(node, 0, sizeof *node);
    node->name = name;
    node->backward = backward;
    node->low = ctx->slab.low;
    node->want_low = ctx->slab.want_low;
    node->in[0] = a;
    node->in[1] = b;
    node->count = b ? 2 : 1;
    return node;
}

/* The output, uninitialised. Returns 0 after an error. */
CTR_PRIVATE_ int ctr_node_out_(ctr_ctx *ctx, ctr_node *node, int rank, const int64_t *shape)
{
    if (!node) return 0;
    node->out = ctr_tensor_temp(ctx, CTR_F32, rank, shape);
    return ctx->status == CTR_OK;
}

/* Puts the node on the tape if a gradient can flow through it. */
CTR_PRIVATE_ ctr_tensor *ctr_node_done_(ctr_ctx *ctx, ctr_node *node)
{
    int i, needed = 0;
    if (ctx->status != CTR_OK || !node) return &ctx->poison;
    for (i = 0; i < node->count; i++) {
        ctr_tensor *t = node->many ? node->many[i] : node->in[i];
        needed |= t && ctr_needs_grad_(t);
    }
    if (needed && !ctx->nograd) {
        node->out->flags |= CTR_T_NEEDS_GRAD_;
        node->out->node = node;
        node->previous = ctx->last_node;
        ctx->last_node = node;
    }
    return node->out;
}

/* Checks one operand: numbers, and a rank if one is asked for (0: any). */
CTR_PRIVATE_ int ctr_check_(ctr_ctx *ctx, const char *name, const ctr_tensor *x, int rank)
{
    char text[64];
    if (ctx->status != CTR_OK) return 0;
    if (x->dtype != CTR_F32) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: takes CTR_F32 tensors only", name);
        return 0;
    }
    if (rank && x->rank != rank) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: expected %d dimensions, got %s", name, rank,
                  ctr_shape_text_(x->rank, x->shape, text));
        return 0;
    }
    return 1;
}

CTR_PRIVATE_ void ctr_fail_shapes_(ctr_ctx *ctx, const char *name, const ctr_tensor *x,
                                   const ctr_tensor *y, const char *rule)
{
    char a[64], b[64];
    ctr_fail_(ctx, CTR_E_SHAPE, "%s: %s and %s do not fit: %s", name,
              ctr_shape_text_(x->rank, x->shape, a), ctr_shape_text_(y->rank, y->shape, b), rule);
}

/* ------------------------------------------------------------------------------------------------
   >>OPS  each operation: forward helper, backward, constructor
   ---------------------------------------------------------------------------------------------- */

/* ---- x op y, with y broadcast over the leading dimensions -------------------------------------- */

/* outer = 1, mid = rows, inner = y->size; i[0..1] = mid, inner */
CTR_PRIVATE_ void ctr_binary_dx_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0], *y = n->in[1];
    ctr_real *grad, *dz = n->out->grad;
    ctr_binary op = (ctr_binary)n->i[2];
    int acc;
    if (op == CTR_ADD || op == CTR_SUB) {
        ctr_grad_pass_(ctx, n, x, 1, 1);
        return;
    }
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_broadcast(ctx, op, 1, n->i[0], n->i[1], dz, ctr_f_(y), grad, acc);
}

/* z = x + y: dy = dz;  x - y: -dz;  x y: dz x;  x / y: -dz z / y; summed over what was broadcast */
CTR_PRIVATE_ void ctr_binary_dy_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0], *y = n->in[1];
    ctr_real *grad, *dz = n->out->grad, *product = dz;
    ctr_real sign = n->i[2] == CTR_SUB || n->i[2] == CTR_DIV ? CTR_R(-1.0) : CTR_R(1.0);
    size_t bytes = ctr_tensor_bytes_(n->out);
    int acc, temporary = n->i[2] == CTR_MUL || n->i[2] == CTR_DIV;
    if (!ctr_grad_(ctx, y, &grad, &acc)) return;
    if (temporary) {
        product = (ctr_real *)ctr_slab_high_(ctx, bytes);
        if (n->i[2] == CTR_MUL) {
            ctr_k_binary(ctx, CTR_MUL, x->size, dz, ctr_f_(x), product, 0);
        } else {
            ctr_k_binary(ctx, CTR_MUL, x->size, dz, ctr_f_(n->out), product, 0);
            ctr_k_broadcast(ctx, CTR_DIV, 1, n->i[0], n->i[1], product, ctr_f_(y), product, 0);
        }
    }
    if (n->i[0] == 1)
        ctr_k_axpby(ctx, y->size, sign, product, acc ? CTR_R(1.0) : CTR_R(0.0), grad);
    else
        ctr_k_reduce(ctx, 1, n->i[0], n->i[1], sign, product, grad, acc);
    if (temporary) ctr_slab_give_(ctx, product, bytes);
}

CTR_PRIVATE_ void ctr_binary_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_binary_dy_(ctx, n);
    ctr_binary_dx_(ctx, n);
}

CTR_PRIVATE_ int ctr_broadcasts_(const ctr_tensor *x, const ctr_tensor *y)
{
    int i;
    if (y->size == 1) return 1;
    if (y->rank > x->rank) return 0;
    for (i = 1; i <= y->rank; i++)
        if (x->shape[x->rank - i] != y->shape[y->rank - i]) return 0;
    return 1;
}

CTR_PRIVATE_ ctr_tensor *ctr_binary_op_(ctr_ctx *ctx, const char *name, ctr_binary op,
                                        ctr_tensor *x, ctr_tensor *y)
{
    ctr_node *n;
    if (!ctr_check_(ctx, name, x, 0) || !ctr_check_(ctx, name, y, 0)) return &ctx->poison;
    if (!ctr_broadcasts_(x, y)) {
        ctr_fail_shapes_(ctx, name, x, y, "the second must equal the first's last dimensions");
        return &ctx->poison;
    }
    n = ctr_node_begin_(ctx, name, ctr_binary_backward_, x, y);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->i[1] = y->size;
    n->i[0] = y->size ? x->size / y->size : 0;
    n->i[2] = op;
    ctr_k_broadcast(ctx, op, 1, n->i[0], n->i[1], ctr_f_(x), ctr_f_(y), ctr_f_(n->out), 0);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_add(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y)
{
    return ctr_binary_op_(ctx, "add", CTR_ADD, x, y);
}
CTR_API ctr_tensor *ctr_sub(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y)
{
    return ctr_binary_op_(ctx, "sub", CTR_SUB, x, y);
}
CTR_API ctr_tensor *ctr_mul(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y)
{
    return ctr_binary_op_(ctx, "mul", CTR_MUL, x, y);
}
CTR_API ctr_tensor *ctr_div(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y)
{
    return ctr_binary_op_(ctx, "div", CTR_DIV, x, y);
}
CTR_API ctr_tensor *ctr_bias(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *bias)
{
    return ctr_binary_op_(ctx, "bias", CTR_ADD, x, bias);
}

CTR_PRIVATE_ void ctr_scale_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_grad_pass_(ctx, n, n->in[0], n->f[0], 1);
}

/* a x + b */
CTR_PRIVATE_ ctr_tensor *ctr_affine_(ctr_ctx *ctx, const char *name, ctr_tensor *x, ctr_real a,
                                     ctr_real b)
{
    ctr_node *n;
    if (!ctr_check_(ctx, name, x, 0)) return &ctx->poison;
    n = ctr_node_begin_(ctx, name, ctr_scale_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->f[0] = a;
    if (b != 0) ctr_k_fill(ctx, x->size, b, ctr_f_(n->out));
    ctr_k_axpby(ctx, x->size, a, ctr_f_(x), b != 0 ? CTR_R(1.0) : CTR_R(0.0), ctr_f_(n->out));
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_scale(ctr_ctx *ctx, ctr_tensor *x, double factor)
{
    return ctr_affine_(ctx, "scale", x, (ctr_real)factor, 0);
}
CTR_API ctr_tensor *ctr_add_scalar(ctr_ctx *ctx, ctr_tensor *x, double value)
{
    return ctr_affine_(ctx, "add_scalar", x, 1, (ctr_real)value);
}

/* ---- functions of one number ------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_unary_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_unary_grad(ctx, (ctr_unary)n->i[0], n->out->size, ctr_f_(n->in[0]), ctr_f_(n->out),
                         n->out->grad, grad, acc);
}

CTR_PRIVATE_ ctr_tensor *ctr_unary_op_(ctr_ctx *ctx, const char *name, ctr_unary op, ctr_tensor *x)
{
    ctr_node *n;
    if (!ctr_check_(ctx, name, x, 0)) return &ctx->poison;
    n = ctr_node_begin_(ctx, name, ctr_unary_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->i[0] = op;
    ctr_k_unary(ctx, op, x->size, ctr_f_(x), ctr_f_(n->out));
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_relu(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "relu", CTR_RELU, x);
}
CTR_API ctr_tensor *ctr_gelu(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "gelu", CTR_GELU, x);
}
CTR_API ctr_tensor *ctr_sigmoid(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "sigmoid", CTR_SIGMOID, x);
}
CTR_API ctr_tensor *ctr_tanh(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "tanh", CTR_TANH, x);
}
CTR_API ctr_tensor *ctr_exp(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "exp", CTR_EXP, x);
}
CTR_API ctr_tensor *ctr_log(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "log", CTR_LOG, x);
}
CTR_API ctr_tensor *ctr_sqrt(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "sqrt", CTR_SQRT, x);
}

/* ---- matrix product ---------------------------------------------------------------------------- */

/* C = op(A) op(B), [m, k] [k, n]:  d op(A) = dC op(B)^T,  d op(B) = op(A)^T dC */
CTR_PRIVATE_ void ctr_matmul_backward_(ctr_ctx *ctx, ctr_node *node)
{
    ctr_tensor *a = node->in[0], *b = node->in[1];
    int ta = (int)node->i[0], tb = (int)node->i[1], acc;
    int64_t m = node->i[2], n = node->i[3], k = node->i[4], lda = a->shape[1], ldb = b->shape[1];
    ctr_real *grad, *dc = node->out->grad, one = CTR_R(1.0);
    if (ctr_grad_(ctx, a, &grad, &acc)) {
        ctr_real beta = acc ? one : 0;
        if (!ta) ctr_k_gemm(ctx, 0, !tb, m, k, n, one, dc, n, ctr_f_(b), ldb, beta, grad, lda);
        else ctr_k_gemm(ctx, tb, 1, k, m, n, one, ctr_f_(b), ldb, dc, n, beta, grad, lda);
    }
    if (ctr_grad_(ctx, b, &grad, &acc)) {
        ctr_real beta = acc ? one : 0;
        if (!tb) ctr_k_gemm(ctx, !ta, 0, k, n, m, one, ctr_f_(a), lda, dc, n, beta, grad, ldb);
        else ctr_k_gemm(ctx, 1, ta, n, k, m, one, dc, n, ctr_f_(a), lda, beta, grad, ldb);
    }
}

CTR_API ctr_tensor *ctr_matmul(ctr_ctx *ctx, ctr_tensor *x, int tx, ctr_tensor *y, int ty)
{
    ctr_node *node;
    int64_t m, n, k, shape[2];
    if (!ctr_check_(ctx, "matmul", x, 2) || !ctr_check_(ctx, "matmul", y, 2)) return &ctx->poison;
    tx = tx != 0;
    ty = ty != 0;
    m = x->shape[tx];
    k = x->shape[!tx];
    n = y->shape[!ty];
    if (y->shape[ty] != k) {
        ctr_fail_shapes_(ctx, "matmul", x, y, "the inner dimensions must be equal");
        return &ctx->poison;
    }
    node = ctr_node_begin_(ctx, "matmul", ctr_matmul_backward_, x, y);
    shape[0] = m;
    shape[1] = n;
    if (!ctr_node_out_(ctx, node, 2, shape)) return &ctx->poison;
    node->i[0] = tx;
    node->i[1] = ty;
    node->i[2] = m;
    node->i[3] = n;
    node->i[4] = k;
    ctr_k_gemm(ctx, tx, ty, m, n, k, 1, ctr_f_(x), x->shape[1], ctr_f_(y), y->shape[1], 0,
               ctr_f_(node->out), n);
    return ctr_node_done_(ctx, node);
}

/* ---- convolution ------------------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_conv_shape_(const ctr_node *node, ctr_conv_shape *s)
{
    const int64_t *x = node->in[0]->shape, *w = node->in[1]->shape, *y = node->out->shape;
    s->n = x[0];
    s->h = x[1];
    s->w = x[2];
    s->c = x[3];
    s->kh = w[0];
    s->kw = w[1];
    s->oc = w[3];
    s->stride = node->i[0];
    s->pad = node->i[1];
    s->oh = y[1];
    s->ow = y[2];
}

CTR_PRIVATE_ void ctr_conv_backward_(ctr_ctx *ctx, ctr_node *node)
{
    ctr_tensor *x = node->in[0], *w = node->in[1];
    ctr_conv_shape s;
    ctr_real *grad;
    int acc;
    ctr_conv_shape_(node, &s);
    if (ctr_grad_(ctx, w, &grad, &acc))
        ctr_k_conv_weight(ctx, &s, ctr_f_(x), node->out->grad, grad, acc);
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_conv_input(ctx, &s, node->out->grad, ctr_f_(w), grad, acc);
}

CTR_API ctr_tensor *ctr_conv(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *weight, int stride, int pad)
{
    ctr_conv_shape s;
    ctr_node *node;
    int64_t shape[4];
    if (!ctr_check_(ctx, "conv", x, 4) || !ctr_check_(ctx, "conv", weight, 4)) return &ctx->poison;
    if (x->shape[3] != weight->shape[2]) {
        ctr_fail_shapes_(ctx, "conv", x, weight,
                         "input [n, h, w, c] and weight [kh, kw, c, oc] must have the same c");
        return &ctx->poison;
    }
    if (stride < 1 || pad < 0 || weight->shape[0] % 2 == 0 || weight->shape[1] % 2 == 0) {
        ctr_fail_(ctx, CTR_E_VALUE, "conv: kernel must be odd, stride at least 1, pad at least 0; "
                  "got %ld x %ld, %d, %d", (long)weight->shape[0], (long)weight->shape[1], stride,
                  pad);
        return &ctx->poison;
    }
    shape[0] = x->shape[0];
    shape[1] = (x->shape[1] + 2 * pad - weight->shape[0]) / stride + 1;
    shape[2] = (x->shape[2] + 2 * pad - weight->shape[1]) / stride + 1;
    shape[3] = weight->shape[3];
    if (x->shape[1] + 2 * pad < weight->shape[0] || x->shape[2] + 2 * pad < weight->shape[1]) {
        ctr_fail_shapes_(ctx, "conv", x, weight, "the padded image is smaller than the kernel");
        return &ctx->poison;
    }
    node = ctr_node_begin_(ctx, "conv", ctr_conv_backward_, x, weight);
    if (!ctr_node_out_(ctx, node, 4, shape)) return &ctx->poison;
    node->i[0] = stride;
    node->i[1] = pad;
    ctr_conv_shape_(node, &s);
    ctr_k_conv_forward(ctx, &s, ctr_f_(x), ctr_f_(weight), ctr_f_(node->out));
    return ctr_node_done_(ctx, node);
}

/* ---- sums -------------------------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_sum_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_expand(ctx, n->i[0], n->i[1], n->i[2], n->f[0], n->out->grad, grad, acc);
}

CTR_PRIVATE_ ctr_tensor *ctr_sum_op_(ctr_ctx *ctx, const char *name, ctr_tensor *x, int axis,
                                     int mean)
{
    ctr_node *n;
    int64_t shape[4] = { 1, 1, 1, 1 }, outer = 1, mid = x->size, inner = 1;
    int i, rank = 0;
    if (!ctr_check_(ctx, name, x, 0)) return &ctx->poison;
    if (axis < -1 || axis >= x->rank) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: axis must be -1..%d, got %d", name, x->rank - 1, axis);
        return &ctx->poison;
    }
    if (axis >= 0) {
        mid = x->shape[axis];
        for (i = 0; i < x->rank; i++) {
            if (i < axis) outer *= x->shape[i];
            if (i > axis) inner *= x->shape[i];
            if (i != axis) shape[rank++] = x->shape[i];
        }
    }
    n = ctr_node_begin_(ctx, name, ctr_sum_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, rank, shape)) return &ctx->poison;
    n->i[0] = outer;
    n->i[1] = mid;
    n->i[2] = inner;
    n->f[0] = mean && mid > 0 ? CTR_R(1.0) / (ctr_real)mid : CTR_R(1.0);
    ctr_k_reduce(ctx, outer, mid, inner, n->f[0], ctr_f_(x), ctr_f_(n->out), 0);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_sum(ctr_ctx *ctx, ctr_tensor *x, int axis)
{
    return ctr_sum_op_(ctx, "sum", x, axis, 0);
}
CTR_API ctr_tensor *ctr_mean(ctr_ctx *ctx, ctr_tensor *x, int axis)
{
    return ctr_sum_op_(ctx, "mean", x, axis, 1);
}

/* ---- shapes ------------------------------------------------------------------------------------ */

CTR_PRIVATE_ void ctr_reshape_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_grad_pass_(ctx, n, n->in[0], 1, 1);
}

CTR_API ctr_tensor *ctr_reshape(ctr_ctx *ctx, ctr_tensor *x, int rank, const int64_t *shape)
{
    ctr_node *n;
    int64_t full[4] = { 1, 1, 1, 1 }, known = 1;
    char a[64], b[64];
    int i, open = -1;
    if (!ctr_check_(ctx, "reshape", x, 0)) return &ctx->poison;
    for (i = 0; i < rank && rank <= 4; i++) {
        full[i] = shape[i];
        if (shape[i] == -1 && open < 0) open = i;
        else known *= shape[i];
    }
    if (open >= 0) full[open] = known > 0 ? x->size / known : 0;
    if (rank < 0 || rank > 4 || known * (open >= 0 ? full[open] : 1) != x->size) {
        ctr_fail_(ctx, CTR_E_SHAPE, "reshape: %s has %ld numbers and cannot become %s",
                  ctr_shape_text_(x->rank, x->shape, a), (long)x->size,
                  ctr_shape_text_(CTR_MIN_(CTR_MAX_(rank, 0), 4), shape, b));
        return &ctx->poison;
    }
    n = ctr_node_begin_(ctx, "reshape", ctr_reshape_backward_, x, NULL);
    if (!n) return &ctx->poison;
    n->out = ctr_view_(ctx, x, rank, full);
    return ctr_node_done_(ctx, n);
}

CTR_PRIVATE_ void ctr_permute_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int64_t shape[4];
    int i, back[4], acc;
    for (i = 0; i < 4; i++) {
        back[n->i[i]] = i;
        shape[i] = n->i[4 + i];
    }
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_permute(ctx, shape, back, n->out->grad, grad, acc);
}

/* The rank is filled up to four with ones in front. i[0..3]: the permutation, i[4..7]: the output */
CTR_API ctr_tensor *ctr_permute(ctr_ctx *ctx, ctr_tensor *x, const int *perm)
{
    ctr_node *n;
    int64_t shape[4] = { 1, 1, 1, 1 }, in[4] = { 1, 1, 1, 1 };
    int i, full[4] = { 0, 1, 2, 3 }, seen = 0, shift = 4 - x->rank;
    if (!ctr_check_(ctx, "permute", x, 0)) return &ctx->poison;
    for (i = 0; i < x->rank; i++)
        if (perm[i] >= 0 && perm[i] < x->rank) seen |= 1 << perm[i];
    if (seen != (1 << x->rank) - 1) {
        ctr_fail_(ctx, CTR_E_VALUE, "permute: not a permutation of %d dimensions", x->rank);
        return &ctx->poison;
    }
    for (i = 0; i < x->rank; i++) {
        shape[i] = x->shape[perm[i]];
        in[shift + i] = x->shape[i];
        full[shift + i] = perm[i] + shift;
    }
    n = ctr_node_begin_(ctx, "permute", ctr_permute_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, shape)) return &ctx->poison;
    for (i = 0; i < 4; i++) {
        n->i[i] = full[i];
        n->i[4 + i] = in[full[i]];
    }
    ctr_k_permute(ctx, in, full, ctr_f_(x), ctr_f_(n->out), 0);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_transpose(ctr_ctx *ctx, ctr_tensor *x)
{
    static const int swap[2] = { 1, 0 };
    if (!ctr_check_(ctx, "transpose", x, 2)) return &ctx->poison;
    return ctr_permute(ctx, x, swap);
}

/* Numbers before and behind an axis: x is [outer, x->shape[axis], inner]. */
CTR_PRIVATE_ void ctr_axis_(const ctr_tensor *x, int axis, int64_t *outer, int64_t *inner)
{
    int i;
    *outer = *inner = 1;
    for (i = 0; i < x->rank; i++) {
        if (i < axis) *outer *= x->shape[i];
        if (i > axis) *inner *= x->shape[i];
    }
}

CTR_PRIVATE_ void ctr_concat_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad, *from = n->out->grad;
    int64_t width = n->i[1] * n->out->shape[n->i[2]];
    int i, acc;
    for (i = 0; i < n->count; i++) {
        int64_t cols = n->many[i]->shape[n->i[2]] * n->i[1];
        if (ctr_grad_(ctx, n->many[i], &grad, &acc))
            ctr_k_copy_rows(ctx, n->i[0], cols, from, width, grad, cols, acc);
        from += cols;
    }
}

CTR_API ctr_tensor *ctr_concat(ctr_ctx *ctx, int count, ctr_tensor *const *x, int axis)
{
    ctr_node *n;
    int64_t shape[4] = { 1, 1, 1, 1 }, outer, inner, width;
    ctr_real *to;
    int i, j;
    if (ctx->status != CTR_OK) return &ctx->poison;
    if (count < 1 || axis < 0 || axis >= x[0]->rank) {
        ctr_fail_(ctx, CTR_E_VALUE, "concat: needs at least one tensor and an axis it has, got %d "
                  "tensors and axis %d", count, axis);
        return &ctx->poison;
    }
    for (i = 0; i < 4; i++) shape[i] = x[0]->shape[i];
    shape[axis] = 0;
    for (i = 0; i < count; i++) {
        if (!ctr_check_(ctx, "concat", x[i], x[0]->rank)) return &ctx->poison;
        for (j = 0; j < x[0]->rank; j++)
            if (j != axis && x[i]->shape[j] != x[0]->shape[j]) {
                ctr_fail_shapes_(ctx, "concat", x[0], x[i], "all but the axis must be equal");
                return &ctx->poison;
            }
        shape[axis] += x[i]->shape[axis];
    }
    n = ctr_node_begin_(ctx, "concat", ctr_concat_backward_, x[0], NULL);
    if (!ctr_node_out_(ctx, n, x[0]->rank, shape)) return &ctx->poison;
    n->many = (ctr_tensor **)ctr_arena_take_(ctx, &ctx->host, (size_t)count * sizeof *n->many);
    if (!n->many) return &ctx->poison;
    for (i = 0; i < count; i++) n->many[i] = x[i];
    n->count = count;
    ctr_axis_(n->out, axis, &outer, &inner);
    n->i[0] = outer;
    n->i[1] = inner;
    n->i[2] = axis;
    width = inner * shape[axis];
    to = ctr_f_(n->out);
    for (i = 0; i < count; i++) {
        int64_t cols = x[i]->shape[axis] * inner;
        ctr_k_copy_rows(ctx, outer, cols, ctr_f_(x[i]), cols, to, width, 0);
        to += cols;
    }
    return ctr_node_done_(ctx, n);
}

CTR_PRIVATE_ void ctr_slice_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    ctr_real *grad;
    int64_t cols = n->i[3] * n->i[1], width = x->shape[n->i[4]] * n->i[1];
    int acc;
    if (!ctr_grad_(ctx, x, &grad, &acc)) return;
    if (!acc) ctr_k_zero(ctx, ctr_tensor_bytes_(x), grad);
    ctr_k_copy_rows(ctx, n->i[0], cols, n->out->grad, cols, grad + n->i[2] * n->i[1], width, 1);
}

CTR_API ctr_tensor *ctr_slice(ctr_ctx *ctx, ctr_tensor *x, int axis, int64_t from, int64_t count)
{
    ctr_node *n;
    int64_t shape[4], outer, inner;
    const ctr_real *data;
    int i;
    if (!ctr_check_(ctx, "slice", x, 0)) return &ctx->poison;
    if (axis < 0 || axis >= x->rank || from < 0 || count < 0 || from + count > x->shape[axis]) {
        ctr_fail_(ctx, CTR_E_VALUE, "slice: %ld..%ld of axis %d is outside the tensor", (long)from,
                  (long)(from + count - 1), axis);
        return &ctx->poison;
    }
    for (i = 0; i < 4; i++) shape[i] = x->shape[i];
    shape[axis] = count;
    n = ctr_node_begin_(ctx, "slice", ctr_slice_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, shape)) return &ctx->poison;
    ctr_axis_(x, axis, &outer, &inner);
    n->i[0] = outer;
    n->i[1] = inner;
    n->i[2] = from;
    n->i[3] = count;
    n->i[4] = axis;
    data = ctr_f_(x);
    ctr_k_copy_rows(ctx, outer, count * inner, data + from * inner,
                    x->shape[axis] * inner, ctr_f_(n->out), count * inner, 0);
    return ctr_node_done_(ctx, n);
}

CTR_PRIVATE_ void ctr_gather_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_scatter(ctx, x->shape[0], n->i[0], n->out->shape[0], n->index, n->out->grad, grad,
                      acc);
}

CTR_API ctr_tensor *ctr_gather(ctr_ctx *ctx, ctr_tensor *x, const ctr_tensor *index)
{
    ctr_node *n;
    int64_t shape[4];
    int i;
    if (!ctr_check_(ctx, "gather", x, 0)) return &ctx->poison;
    if (x->rank < 1 || index->dtype != CTR_I32 || index->rank != 1) {
        ctr_fail_(ctx, CTR_E_SHAPE, "gather: takes a tensor of rows and an I32 index [k]");
        return &ctx->poison;
    }
    for (i = 0; i < 4; i++) shape[i] = x->shape[i];
    shape[0] = index->shape[0];
    n = ctr_node_begin_(ctx, "gather", ctr_gather_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, shape)) return &ctx->poison;
    n->i[0] = x->shape[0] ? x->size / x->shape[0] : 0;
    n->index = (const int32_t *)index->data;
    ctr_k_gather(ctx, x->shape[0], n->i[0], shape[0], n->index, ctr_f_(x), ctr_f_(n->out));
    return ctr_node_done_(ctx, n);
}

/* ---- rows: normalise, softmax, cross entropy --------------------------------------------------- */

/* The last axis as columns; every other number of the shape as rows. */
CTR_PRIVATE_ int64_t ctr_cols_(const ctr_tensor *x) { return x->rank ? x->shape[x->rank - 1] : 1; }
CTR_PRIVATE_ int64_t ctr_rows_(const ctr_tensor *x)
{
    return ctr_cols_(x) ? x->size / ctr_cols_(x) : 0;
}

CTR_PRIVATE_ void ctr_normalize_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_normalize_grad(ctx, ctr_rows_(n->out), ctr_cols_(n->out), ctr_f_(n->out), n->saved,
                             n->out->grad, grad, acc);
}

CTR_API ctr_tensor *ctr_normalize(ctr_ctx *ctx, ctr_tensor *x)
{
    ctr_node *n;
    if (!ctr_check_(ctx, "normalize", x, 0)) return &ctx->poison;
    n = ctr_node_begin_(ctx, "normalize", ctr_normalize_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->saved = (ctr_real *)ctr_slab_low_(ctx, (size_t)ctr_rows_(x) * sizeof(ctr_real));
    ctr_k_normalize(ctx, ctr_rows_(x), ctr_cols_(x), ctr_f_(x), ctr_f_(n->out), n->saved);
    return ctr_node_done_(ctx, n);
}

CTR_PRIVATE_ void ctr_softmax_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_softmax_grad(ctx, ctr_rows_(n->out), ctr_cols_(n->out), ctr_f_(n->out), n->out->grad,
                           grad, (int)n->i[0], acc);
}

CTR_PRIVATE_ ctr_tensor *ctr_softmax_op_(ctr_ctx *ctx, const char *name, ctr_tensor *x,
                                         int logarithm)
{
    ctr_node *n;
    if (!ctr_check_(ctx, name, x, 0)) return &ctx->poison;
    n = ctr_node_begin_(ctx, name, ctr_softmax_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->i[0] = logarithm;
    ctr_k_softmax(ctx, ctr_rows_(x), ctr_cols_(x), ctr_f_(x), ctr_f_(n->out), logarithm);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_softmax(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_softmax_op_(ctx, "softmax", x, 0);
}
CTR_API ctr_tensor *ctr_log_softmax(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_softmax_op_(ctx, "log_softmax", x, 1);
}

CTR_PRIVATE_ void ctr_nll_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_nll_grad(ctx, x->shape[0], x->shape[1], (int32_t)n->i[0], n->index, n->saved,
                       n->out->grad, grad, acc);
}

CTR_API ctr_tensor *ctr_cross_entropy(ctr_ctx *ctx, ctr_tensor *logits, const ctr_tensor *target,
                                      int32_t ignore)
{
    ctr_tensor *logp;
    ctr_node *n;
    ctr_real count = 0;
    if (!ctr_check_(ctx, "cross_entropy", logits, 2)) return &ctx->poison;
    if (target->dtype != CTR_I32 || target->size != logits->shape[0]) {
        ctr_fail_shapes_(ctx, "cross_entropy", logits, target,
                         "logits [n, k] need an I32 target [n]");
        return &ctx->poison;
    }
    logp = ctr_log_softmax(ctx, logits);
    n = ctr_node_begin_(ctx, "cross_entropy", ctr_nll_backward_, logp, NULL);
    if (!ctr_node_out_(ctx, n, 0, NULL)) return &ctx->poison;
    n->saved = (ctr_real *)ctr_slab_low_(ctx, 2 * sizeof(ctr_real));
    n->i[0] = ignore;
    n->index = (const int32_t *)target->data;
    ctr_k_nll(ctx, logits->shape[0], logits->shape[1], ignore, n->index, ctr_f_(logp), n->saved);
    ctr_k_copy(ctx, sizeof(ctr_real), n->saved, n->out->data);
    if (!ctx->plan) ctr_k_download(ctx, sizeof count, n->saved + 1, &count);
    if (count < 0)
        ctr_fail_(ctx, CTR_E_VALUE, "cross_entropy: a target is neither %d nor in 0..%ld",
                  (int)ignore, (long)logits->shape[1] - 1);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_cross_entropy_soft(ctr_ctx *ctx, ctr_tensor *logits, ctr_tensor *target)
{
    ctr_tensor *logp;
    if (!ctr_check_(ctx, "cross_entropy_soft", logits, 2)) return &ctx->poison;
    if (!ctr_check_(ctx, "cross_entropy_soft", target, 2)) return &ctx->poison;
    if (logits->shape[0] != target->shape[0] || logits->shape[1] != target->shape[1]) {
        ctr_fail_shapes_(ctx, "cross_entropy_soft", logits, target, "both are [n, k]");
        return &ctx->poison;
    }
    logp = ctr_log_softmax(ctx, logits);
    logp = ctr_sum(ctx, ctr_mul(ctx, logp, ctr_detach(ctx, target)), -1);
    return ctr_scale(ctx, logp, -1.0 / (double)CTR_MAX_(logits->shape[0], 1));
}

/* ---- batch normalisation ----------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_norm_args_init_(const ctr_node *n, int64_t group, ctr_norm_args *a)
{
    const ctr_tensor *x = n->in[0], *gamma = n->in[1], *beta = n->in[2], *residual = n->in[3];
    int64_t rows = n->i[0], c = n->i[1], at = group * rows * c;
    memset(a, 0, sizeof *a);
    a->rows = rows;
    a->c = c;
    a->x = ctr_f_(x) + at;
    a->mean = n->saved + group * 2 * c;
    a->var = a->mean + c;
    a->gamma = gamma ? ctr_f_(gamma) : NULL;
    a->beta = beta ? ctr_f_(beta) : NULL;
    a->residual = residual ? ctr_f_(residual) + at : NULL;
    a->eps = n->f[0];
    a->relu = (int)n->i[2];
    a->batch_stats = (int)n->i[3];
    a->y = ctr_f_(n->out) + at;
}

CTR_PRIVATE_ void ctr_norm_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_norm_args a;
    ctr_real *grad[4] = { NULL, NULL, NULL, NULL };
    int acc[4] = { 0, 0, 0, 0 }, i;
    int64_t g, at;
    for (i = 0; i < 4; i++)
        if (n->in[i]) ctr_grad_(ctx, n->in[i], &grad[i], &acc[i]);
    for (g = 0; g < n->i[4]; g++) {
        at = g * n->i[0] * n->i[1];
        ctr_norm_args_init_(n, g, &a);
        a.dy = n->out->grad + at;
        a.dx = grad[0] ? grad[0] + at : NULL;
        a.dx_acc = acc[0];
        a.dgamma = grad[1];
        a.dgamma_acc = acc[1] || g > 0;
        a.dbeta = grad[2];
        a.dbeta_acc = acc[2] || g > 0;
        a.dresidual = grad[3] ? grad[3] + at : NULL;
        a.dresidual_acc = acc[3];
        ctr_k_norm_grad(ctx, &a);
    }
}

/* Statistics of one group, and what they will do to the running ones at the commit. */
CTR_PRIVATE_ void ctr_norm_batch_stats_(ctr_ctx *ctx, const ctr_node *n, const ctr_norm *norm,
                                        int64_t group, int stage)
{
    int64_t rows = n->i[0], c = n->i[1];
    ctr_real *mean = n->saved + group * 2 * c, m = norm->momentum;
    ctr_tensor *mean_t, *var_t;
    ctr_k_norm_stats(ctx, rows, c, ctr_f_(n->in[0]) + group * rows * c, mean, mean + c);
    if (!stage || !norm->mean || !norm->var || ctx->plan) return;
    mean_t = ctr_view_(ctx, norm->mean, 1, &c);
    var_t = ctr_view_(ctx, norm->var, 1, &c);
    if (ctx->status != CTR_OK) return;
    mean_t->data = mean;
    var_t->data = mean + c;
    ctr_stage(ctx, norm->mean, 1 - m, m, mean_t);
    ctr_stage(ctx, norm->var, 1 - m, m * (ctr_real)rows / (ctr_real)(rows - 1), var_t);
}

CTR_PRIVATE_ int ctr_norm_check_(ctr_ctx *ctx, const ctr_tensor *x, const ctr_norm *norm,
                                 ctr_norm_mode mode, int groups, const ctr_tensor *residual)
{
    int64_t c = ctr_cols_(x), rows = ctr_rows_(x);
    if (!ctr_check_(ctx, "batch_norm", x, 0)) return 0;
    if (x->rank < 2 || groups < 1 || rows % groups) {
        ctr_fail_(ctx, CTR_E_SHAPE, "batch_norm: %ld rows cannot be cut into %d equal groups",
                  (long)rows, groups);
        return 0;
    }
    if (mode != CTR_NORM_EVAL && rows / groups < 2) {
        ctr_fail_(ctx, CTR_E_SHAPE, "batch_norm: needs at least 2 values a channel and group to "
                  "train, got %ld (batch of 1?)", (long)(rows / groups));
        return 0;
    }
    if ((norm->gamma && norm->gamma->size != c) || (norm->beta && norm->beta->size != c) ||
        (norm->mean && norm->mean->size != c) || (norm->var && norm->var->size != c)) {
        ctr_fail_(ctx, CTR_E_SHAPE, "batch_norm: the input has %ld channels, the layer another "
                  "number", (long)c);
        return 0;
    }
    if (mode == CTR_NORM_EVAL && (!norm->mean || !norm->var)) {
        ctr_fail_(ctx, CTR_E_STATE, "batch_norm: evaluation needs running statistics");
        return 0;
    }
    if (residual && (residual->size != x->size || residual->dtype != CTR_F32)) {
        ctr_fail_shapes_(ctx, "batch_norm", x, residual, "the residual must have x's shape");
        return 0;
    }
    return 1;
}

CTR_API ctr_tensor *ctr_batch_norm(ctr_ctx *ctx, ctr_tensor *x, const ctr_norm *norm,
                                   ctr_norm_mode mode, int groups, ctr_tensor *residual, int relu)
{
    int64_t c = ctr_cols_(x), g;
    ctr_node *n;
    ctr_norm_args a;
    if (!ctr_norm_check_(ctx, x, norm, mode, groups, residual)) return &ctx->poison;
    n = ctr_node_begin_(ctx, "batch_norm", ctr_norm_backward_, x, norm->gamma);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->in[2] = norm->beta;
    n->in[3] = residual;
    n->count = 4;
    n->i[0] = ctr_rows_(x) / groups;
    n->i[1] = c;
    n->i[2] = relu != 0;
    n->i[3] = mode != CTR_NORM_EVAL;
    n->i[4] = groups;
    n->f[0] = norm->eps;
    n->saved = (ctr_real *)ctr_kept_take_(ctx, (size_t)(groups * 2 * c) * sizeof(ctr_real));
    if (!n->saved) return &ctx->poison;
    for (g = 0; g < groups; g++) {
        if (mode != CTR_NORM_EVAL) {
            ctr_norm_batch_stats_(ctx, n, norm, g, mode == CTR_NORM_TRAIN);
        } else {
            size_t bytes = (size_t)c * sizeof(ctr_real);
            ctr_k_copy(ctx, bytes, norm->mean->data, n->saved + g * 2 * c);
            ctr_k_copy(ctx, bytes, norm->var->data, n->saved + g * 2 * c + c);
        }
        ctr_norm_args_init_(n, g, &a);
        ctr_k_norm(ctx, &a);
    }
    return ctr_node_done_(ctx, n);
}

/* ---- layer normalisation ----------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_layer_norm_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    int64_t rows = ctr_rows_(x), c = ctr_cols_(x);
    ctr_real *dx = NULL, *grad, *product;
    int acc = 0, acc2;
    size_t bytes = ctr_tensor_bytes_(x);
    product = (ctr_real *)ctr_slab_high_(ctx, bytes);
    if (!ctr_grad_(ctx, x, &dx, &acc)) dx = NULL;
    ctr_k_layer_norm_grad(ctx, rows, c, ctr_f_(x), n->saved, ctr_f_(n->in[1]), n->out->grad, dx,
                          acc, product);
    if (ctr_grad_(ctx, n->in[1], &grad, &acc2))
        ctr_k_reduce(ctx, 1, rows, c, 1, product, grad, acc2);
    if (ctr_grad_(ctx, n->in[2], &grad, &acc2))
        ctr_k_reduce(ctx, 1, rows, c, 1, n->out->grad, grad, acc2);
    ctr_slab_give_(ctx, product, bytes);
}

CTR_API ctr_tensor *ctr_layer_norm(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *gamma, ctr_tensor *beta,
                                   double eps)
{
    ctr_node *n;
    if (!ctr_check_(ctx, "layer_norm", x, 0)) return &ctx->poison;
    if (x->rank < 1 || gamma->size != ctr_cols_(x) || beta->size != ctr_cols_(x)) {
        ctr_fail_shapes_(ctx, "layer_norm", x, gamma, "gamma and beta are [c], c the last dimension");
        return &ctx->poison;
    }
    n = ctr_node_begin_(ctx, "layer_norm", ctr_layer_norm_backward_, x, gamma);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    n->in[2] = beta;
    n->count = 3;
    n->saved = (ctr_real *)ctr_slab_low_(ctx, (size_t)ctr_rows_(x) * 2 * sizeof(ctr_real));
    ctr_k_layer_norm(ctx, ctr_rows_(x), ctr_cols_(x), (ctr_real)eps, ctr_f_(x), ctr_f_(gamma),
                     ctr_f_(beta), ctr_f_(n->out), n->saved);
    return ctr_node_done_(ctx, n);
}

/* ---- dropout ----------------------------------------------------------------------------------- */

CTR_API void ctr_draws_at(ctr_ctx *ctx, int64_t epoch, int64_t position)
{
    ctx->draw_epoch = epoch;
    ctx->draw_position = position;
}

/* The mask is drawn again for the gradient: i[0..5] hold key and counter. */
CTR_PRIVATE_ void ctr_dropout_run_(ctr_ctx *ctx, const ctr_node *n, const ctr_real *x, ctr_real *y,
                                   int acc)
{
    uint32_t key[2], counter[4];
    int i;
    for (i = 0; i < 2; i++) key[i] = (uint32_t)n->i[i];
    for (i = 0; i < 4; i++) counter[i] = (uint32_t)n->i[2 + i];
    ctr_k_dropout(ctx, n->out->size, (double)n->f[0], key, counter, x, y, acc);
}

CTR_PRIVATE_ void ctr_dropout_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, n->in[0], &grad, &acc)) ctr_dropout_run_(ctx, n, n->out->grad, grad, acc);
}

CTR_API ctr_tensor *ctr_dropout(ctr_ctx *ctx, ctr_tensor *x, double p)
{
    ctr_node *n;
    ctr_rng rng;
    int i;
    if (!ctr_check_(ctx, "dropout", x, 0)) return &ctx->poison;
    if (!(p >= 0 && p < 1)) {
        ctr_fail_(ctx, CTR_E_VALUE, "dropout: p must be in [0, 1), got %g", p);
        return &ctx->poison;
    }
    n = ctr_node_begin_(ctx, "dropout", ctr_dropout_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, x->rank, x->shape)) return &ctx->poison;
    ctr_rng_init(&rng, ctx->config.seed, CTR_STREAM_DROPOUT, ctx->draw_epoch, ctx->draw_position,
                 (int)(ctx->draws++ & 0xffff));
    for (i = 0; i < 2; i++) n->i[i] = rng.key[i];
    for (i = 0; i < 4; i++) n->i[2 + i] = rng.counter[i];
    n->f[0] = (ctr_real)p;
    ctr_dropout_run_(ctx, n, ctr_f_(x), ctr_f_(n->out), 0);
    return ctr_node_done_(ctx, n);
}

/* ---- pooling ----------------------------------------------------------------------------------- */

CTR_PRIVATE_ void ctr_pool_shape_(const ctr_node *n, ctr_pool_shape *s)
{
    const int64_t *x = n->in[0]->shape, *y = n->out->shape;
    s->n = x[0];
    s->h = x[1];
    s->w = x[2];
    s->c = x[3];
    s->size = n->i[0];
    s->stride = n->i[1];
    s->pad = n->i[2];
    s->oh = y[1];
    s->ow = y[2];
}

CTR_PRIVATE_ void ctr_max_pool_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_pool_shape s;
    ctr_real *grad;
    int acc;
    ctr_pool_shape_(n, &s);
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_max_pool_grad(ctx, &s, n->index, n->out->grad, grad, acc);
}

CTR_PRIVATE_ void ctr_avg_pool_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_pool_shape s;
    ctr_real *grad;
    int acc;
    ctr_pool_shape_(n, &s);
    if (ctr_grad_(ctx, n->in[0], &grad, &acc))
        ctr_k_avg_pool_grad(ctx, &s, n->out->grad, grad, acc);
}

/* Checks and the node of a pooling operation; NULL after an error. */
CTR_PRIVATE_ ctr_node *ctr_pool_node_(ctr_ctx *ctx, const char *name, ctr_backward_fn backward,
                                      ctr_tensor *x, int size, int stride, int pad)
{
    ctr_node *n;
    int64_t shape[4];
    if (!ctr_check_(ctx, name, x, 4)) return NULL;
    if (size < 1 || stride < 1 || pad < 0 || 2 * pad > size || x->shape[1] + 2 * pad < size ||
        x->shape[2] + 2 * pad < size) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: window %d, stride %d, pad %d do not fit an image of %ld x "
                  "%ld (pad is at most half a window)", name, size, stride, pad,
                  (long)x->shape[1], (long)x->shape[2]);
        return NULL;
    }
    shape[0] = x->shape[0];
    shape[1] = (x->shape[1] + 2 * pad - size) / stride + 1;
    shape[2] = (x->shape[2] + 2 * pad - size) / stride + 1;
    shape[3] = x->shape[3];
    n = ctr_node_begin_(ctx, name, backward, x, NULL);
    if (!ctr_node_out_(ctx, n, 4, shape)) return NULL;
    n->i[0] = size;
    n->i[1] = stride;
    n->i[2] = pad;
    return n;
}

CTR_API ctr_tensor *ctr_max_pool(ctr_ctx *ctx, ctr_tensor *x, int size, int stride, int pad)
{
    ctr_node *n = ctr_pool_node_(ctx, "max_pool", ctr_max_pool_backward_, x, size, stride, pad);
    ctr_pool_shape s;
    int32_t *which;
    if (!n) return &ctx->poison;
    which = (int32_t *)ctr_slab_low_(ctx, (size_t)n->out->size * sizeof *which);
    n->index = which;
    ctr_pool_shape_(n, &s);
    ctr_k_max_pool(ctx, &s, ctr_f_(x), ctr_f_(n->out), which);
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_avg_pool(ctr_ctx *ctx, ctr_tensor *x, int size, int stride, int pad)
{
    ctr_node *n = ctr_pool_node_(ctx, "avg_pool", ctr_avg_pool_backward_, x, size, stride, pad);
    ctr_pool_shape s;
    if (!n) return &ctx->poison;
    ctr_pool_shape_(n, &s);
    ctr_k_avg_pool(ctx, &s, ctr_f_(x), ctr_f_(n->out));
    return ctr_node_done_(ctx, n);
}

CTR_API ctr_tensor *ctr_global_pool(ctr_ctx *ctx, ctr_tensor *x)
{
    int64_t shape[3];
    if (!ctr_check_(ctx, "global_pool", x, 4)) return &ctx->poison;
    shape[0] = x->shape[0];
    shape[1] = x->shape[1] * x->shape[2];
    shape[2] = x->shape[3];
    return ctr_mean(ctx, ctr_reshape(ctx, x, 3, shape), 1);
}

/* ---- the gradient check ------------------------------------------------------------------------ */

CTR_PRIVATE_ double ctr_check_loss_(ctr_ctx *ctx, ctr_loss_fn loss_fn, void *user)
{
    double value;
    ctr_step_begin(ctx);
    ctr_nograd_begin(ctx);
    value = (double)ctr_tensor_item(ctx, loss_fn(ctx, user));
    ctr_step_end(ctx);
    return value;
}

CTR_API double ctr_gradient_check(ctr_ctx *ctx, ctr_loss_fn loss_fn, void *user, ctr_tensor *leaf,
                                  double eps, int64_t limit)
{
    int64_t n = leaf->size, every, i;
    size_t bytes = (size_t)n * sizeof(ctr_real);
    ctr_real *x, *g;
    double worst = 0, largest = 0;
    if (ctx->status != CTR_OK || n < 1) return -1;
    x = (ctr_real *)ctr_alloc_(ctx, 2 * bytes);
    if (!x) return -1;
    g = x + n;
    ctr_step_begin(ctx);
    ctr_backward(ctx, loss_fn(ctx, user));
    ctr_tensor_read_grad(ctx, leaf, g, n);
    ctr_tensor_read(ctx, leaf, x, n);
    ctr_step_end(ctx);
    every = limit > 0 && n > limit ? n / limit : 1;
    for (i = 0; i < n && ctx->status == CTR_OK; i += every) {
        ctr_real keep = x[i];
        double h = eps * CTR_MAX_(1.0, fabs((double)keep)), up, down, numeric, error;
        x[i] = (ctr_real)((double)keep + h);
        ctr_tensor_write(ctx, leaf, x, n);
        up = ctr_check_loss_(ctx, loss_fn, user);
        x[i] = (ctr_real)((double)keep - h);
        ctr_tensor_write(ctx, leaf, x, n);
        down = ctr_check_loss_(ctx, loss_fn, user);
        x[i] = keep;
        numeric = (up - down) / (2 * h);
        error = fabs(numeric - (double)g[i]);
        if (error > worst) worst = error;
        if (fabs(numeric) > largest) largest = fabs(numeric);
    }
    ctr_tensor_write(ctx, leaf, x, n);
    ctr_free_host_(ctx, x, 2 * bytes);
    return ctx->status == CTR_OK ? worst / (largest + 1e-3) : -1;
}

#ifdef __cplusplus
}
#endif
#endif /* CONTRASTIVE_IMPLEMENTED_ */
#endif /* CONTRASTIVE_IMPLEMENTATION */
