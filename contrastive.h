/* contrastive.h - contrastive learning of visual representations in one C header, version 0.1

   In ONE file of your program:          In every other file:
       #define CONTRASTIVE_IMPLEMENTATION
       #include "contrastive.h"              #include "contrastive.h"

   Build:  cc -O2 program.c -lm -lpthread      (no other flag; kernels pick AVX2 at run time)

   WHAT IT DOES NOT DO (yet)
   - Methods: SimCLR, SupCon, MoCo, BYOL, SimSiam, Barlow Twins, VICReg, SwAV,
     DeepCluster v2. More are to come; so is the GPU.
   - Numbers are float. No mixed precision, no quantisation, no more than four dimensions.
   - No second derivatives; the tape is spent after one backward pass.
   - Convolutions have odd kernels, zero padding, no groups, no dilation.
   - Fast kernels: x86-64 with AVX2 and FMA, gcc or clang. Elsewhere plain C, much slower.
   - Pictures: JPEG, PNG and BMP through stb_image if it is found, PNM by itself. No video, no TIFF.
   - Tested on Linux. POSIX is assumed for threads, folders and mapped files.

   A PROGRAM: your pixels -> training -> representations -> neighbours. See README.md, it is 25
   lines; examples/simclr.c is the longer one.

   MAP   sections carry a tag, >>TAG, the same here, in the interface and in the implementation
       PLATFORM MEMORY THREADS RNG TENSOR FILE      the ground
       VEC GEMM CONV WINO                           kernels: the scalar reference, then the fast one
       TAPE OPS NN OPTIM                            autograd, layers, networks, optimisers
       IMAGE AUG SAMPLE DATA LOADER                 pictures, augmentations, batches of views
       CLUSTER                                      k-means, whitening, Sinkhorn, NMI
       LOSS AGREE HEALTH METHOD TEACHER             losses; alive?; SimCLR, ...; MoCo, BYOL, ...
       PROTOTYPE                                    SwAV, DeepCluster: clusters on the way
       EVAL MAP IO FIT                              k-NN, probe, maps; files; the training driver
   A section of the implementation calls only those above it. Each level can be used alone: the
   losses for embeddings of another framework (ctr_loss_nt_xent_flat), the augmentations
   (ctr_aug_batch), the k-NN classifier (ctr_knn_classify), or ctr_fit for everything.

   ERRORS   stick. The first one is kept in the context with its cause, expected and actual;
   whatever comes after does nothing and is safe to call. Check once a step:
       if (ctr_error(ctx)) { puts(ctr_error_text(ctx)); ctr_error_clear(ctx); }
   Operations return a harmless empty tensor then, constructors NULL, other functions 0. An object
   that could not be made (NULL) may be passed on: it has no images, no state, and nothing happens.
   Other pointers must not be NULL unless their comment allows it. The library
   never exits, aborts, prints, raises a signal, reads the environment or calls rand(). What it
   wants to say goes to config.log_fn. A step that fails leaves the model as it was; a save that
   fails, the old file; a load that fails, the model.

   MEMORY   comes from config.allocator, and free gets the size back. Who frees: what create, open
   or add made is the caller's, until destroy or close; tensors of operations belong to the step,
   until ctr_step_end; the rest says so. A steady training step allocates nothing. (Not through the
   allocator: the C library's FILE and DIR, thread stacks, stb_image's scratch, which is bounded
   before.)

   THREADS  A context and what hangs off it is used by one thread at a time; two contexts never
   meet. Each has a pool of config.threads, 0 meaning one for each processor.

   THE SAME BITS  Random numbers are functions of (seed, stream, epoch, position, view, draw). Work
   is cut by shapes, never by the number of threads. So for one build and one kernel set 1, 2 and 7
   threads give the same bytes, and so do a run and one that was killed and resumed.

   SHAPES   The last dimension varies fastest. Images are [n, h, w, c], convolution weights
   [kh, kw, in, out] in memory and [out, in, kh, kw] in files, linear weights [out, in]. A batch of
   views is [views * n, ...]: all of view 1, then all of view 2.

   MACROS (define them alike in every file, before the include)
       CONTRASTIVE_IMPLEMENTATION   in one file: the code as well
       CONTRASTIVE_STATIC           all functions static: the compiler drops what is not called
       CONTRASTIVE_NO_THREADS       one thread, no pthread
       CONTRASTIVE_NO_SIMD          plain C kernels only
       CONTRASTIVE_STB_IMAGE        the path of stb_image.h, in quotes, if it is not found
       CONTRASTIVE_NO_STB_IMAGE     no JPEG, PNG, BMP and .gz
       CONTRASTIVE_REAL             float; double for gradient checks

   TO ADD A LOSS   compose it from operations and it has its gradient (see nt_xent_by_hand in
   examples/simclr.c). A fused one: write an operation like ctr_contrast_op_ in >>LOSS, whose
   forward and backward call kernel verbs, and test it against the composed one with
   ctr_gradient_check.
   TO ADD A METHOD   see >>METHOD.

   A shared library for other languages:
       cc -x c -shared -fPIC -O2 -DCONTRASTIVE_IMPLEMENTATION -o libcontrastive.so contrastive.h \
          -lm -lpthread

   Licence: MIT-0, at the end of this file. */
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

/* Winograd's transforms are up to three times as fast as the direct sum where they fit (3x3, stride
   1), with twice its rounding error: 8e-7 instead of 4e-7 at 64 channels. AUTO takes them there
   with the fast kernels, and the direct sum with the scalar ones. */
typedef enum ctr_conv_kind { CTR_CONV_AUTO = 0, CTR_CONV_DIRECT, CTR_CONV_WINOGRAD } ctr_conv_kind;

struct ctr_device;

typedef struct ctr_config {
    ctr_allocator allocator;            /* all NULL: malloc and free */
    void *log_user;
    void (*log_fn)(void *user, ctr_log_level level, const char *text); /* default none */
    int threads;                        /* 1..64; 0: one for each processor that is online */
    uint64_t seed;                      /* key of every random number, default 1 */
    ctr_kernels kernels;
    ctr_conv_kind conv;                 /* how 3x3 convolutions are computed, default AUTO */
    const struct ctr_device *device;    /* NULL: the CPU. Must outlive the context */
} ctr_config;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
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
/* "scalar", "avx2" (with Winograd), "avx2-direct", "scalar-winograd", or the device's name */
CTR_API const char *ctr_kernels_name(const ctr_ctx *ctx);

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

typedef enum ctr_dtype {
    CTR_F32 = 0,
    CTR_I32 = 1,
    CTR_U8 = 2,
    CTR_BF16 = 3 /* reserved */
} ctr_dtype;

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

/* Between the host's memory and the tensor's; count must equal t->size. F32 and I32 have their
   own. */
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
    CTR_RELU, CTR_GELU, CTR_SIGMOID, CTR_TANH, CTR_EXP, CTR_LOG, CTR_SQRT, CTR_SOFTPLUS
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
    int batch_stats; /* mean and var come from x: the gradient goes through */
    ctr_real *y;     /* forward: out; backward: the output, for ReLU's mask */
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
    int nesterov, adapt, form;              /* form: ctr_lars_form */
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
CTR_API void ctr_k_dot(ctr_ctx *ctx, int64_t n, const ctr_real *x, const ctr_real *y,
                       ctr_real *out);
/* y = x with dimensions in the order perm: y's dimension i is x's dimension perm[i] */
CTR_API void ctr_k_permute(ctr_ctx *ctx, const int64_t shape[4], const int perm[4],
                           const ctr_real *x, ctr_real *y, int acc);
/* a block of rows of a wider matrix; ldx, ldy: numbers from row to row */
CTR_API void ctr_k_copy_rows(ctr_ctx *ctx, int64_t rows, int64_t cols, const ctr_real *x,
                             int64_t ldx, ctr_real *y, int64_t ldy, int acc);
/* y[i] = x[index[i]], rows of width numbers; an index outside 0..rows-1 gives a zero row */
CTR_API void ctr_k_gather(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                          const int32_t *index, const ctr_real *x, ctr_real *y);
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
/* Contrast of every row of x [m, d] with the others by s_ij = scale x_i . x_j; ids name what
   belongs together: the heart of NT-Xent and SupCon, see >>LOSS. lse [m]; positives [m]: their
   number; out: loss, anchors that have a positive, share of these whose largest s is a positive's,
   mean s of positive and of negative pairs. No matrix [m, m] is ever in memory. */
#define CTR_CONTRAST_OUT 5
CTR_API void ctr_k_contrast(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                            const ctr_real *x, ctr_real scale, ctr_real *lse, ctr_real *positives,
                            ctr_real *out);
CTR_API void ctr_k_contrast_grad(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                                 const ctr_real *x, ctr_real scale, const ctr_real *lse,
                                 const ctr_real *positives, const ctr_real *out,
                                 const ctr_real *dloss, ctr_real *dx, int acc);
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
/* rows normalised over their c numbers, then gamma and beta; stats [rows, 2]: mean,
   1/sqrt(var+eps) */
CTR_API void ctr_k_layer_norm(ctr_ctx *ctx, int64_t rows, int64_t c, ctr_real eps,
                              const ctr_real *x, const ctr_real *gamma, const ctr_real *beta,
                              ctr_real *y, ctr_real *stats);
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
    void (*contrast)(ctr_ctx *, int64_t, int64_t, const int32_t *, const ctr_real *, ctr_real,
                     ctr_real *, ctr_real *, ctr_real *);
    void (*contrast_grad)(ctr_ctx *, int64_t, int64_t, const int32_t *, const ctr_real *, ctr_real,
                          const ctr_real *, const ctr_real *, const ctr_real *, const ctr_real *,
                          ctr_real *, int);
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
CTR_API ctr_tensor *ctr_softplus(ctr_ctx *ctx, ctr_tensor *x); /* ln(1 + exp(x)) */

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
CTR_API ctr_tensor *ctr_transpose(ctr_ctx *ctx, ctr_tensor *x); /* [m, n] -> [n, m] */
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

/* ------------------------------------------------------------------------------------------------
   >>NN  layers and networks

   A table of variables (ctr_vars) owns every tensor that a network consists of, by torchvision's
   names and in the order of creation; layers only point into it. What walks over a network (the
   optimiser, a checkpoint, a momentum encoder) walks over its table and knows no layer.
   ---------------------------------------------------------------------------------------------- */

/* What a variable is decides what optimisers do to it: decay and adaptation touch weights only. */
typedef enum ctr_kind {
    CTR_KIND_WEIGHT,       /* of a convolution or a linear layer */
    CTR_KIND_BIAS,
    CTR_KIND_NORM,         /* gamma and beta of a normalisation */
    CTR_KIND_SCALE,        /* a learnt temperature and the like */
    CTR_KIND_PROTOTYPE,
    CTR_KIND_BUFFER        /* running statistics: saved, never trained */
} ctr_kind;

typedef struct ctr_var {
    char name[96];         /* "encoder.layer1.0.conv1.weight" */
    ctr_tensor *value;
    ctr_kind kind;
    int conv;              /* memory is HWIO; files hold OIHW */
} ctr_var;

typedef struct ctr_vars {
    ctr_var *list;         /* [count] */
    int count, capacity;
    int frozen;            /* set before adding: its variables take no gradient */
} ctr_vars;

CTR_API void ctr_vars_init(ctr_vars *vars);
CTR_API void ctr_vars_destroy(ctr_ctx *ctx, ctr_vars *vars); /* and every tensor in it */
/* A new variable, zero, owned by vars; the name is prefix + name. The harmless tensor on error. */
CTR_API ctr_tensor *ctr_vars_add(ctr_ctx *ctx, ctr_vars *vars, const char *prefix,
                                 const char *name, ctr_kind kind, int rank, const int64_t *shape);
CTR_API const ctr_var *ctr_vars_find(const ctr_vars *vars, const char *name); /* NULL: none */
CTR_API int64_t ctr_vars_numbers(const ctr_vars *vars, int buffers); /* trainable ones, or all */
/* to = from, for two tables with the same names behind their prefixes and the same shapes. */
CTR_API void ctr_vars_copy(ctr_ctx *ctx, ctr_vars *to, const ctr_vars *from);
/* A momentum encoder's move: to = tau to + (1 - tau) from, parameters only; buffers != 0: those as
   well (He et al., 2020, and Grill et al., 2020, leave them to their own forward pass). */
CTR_API void ctr_vars_ema(ctr_ctx *ctx, ctr_vars *to, const ctr_vars *from, double tau,
                          int buffers);
/* The first gradient of this step that is not finite becomes an error that names its variable. */
CTR_API void ctr_vars_check_gradients(ctr_ctx *ctx, const ctr_vars *vars);

/* y = x weight^T + bias. Weight and bias start uniform in +-1/sqrt(in). */
typedef struct ctr_linear {
    ctr_tensor *weight, *bias;
} ctr_linear; /* [out, in], [out] or NULL */
CTR_API void ctr_linear_init(ctr_ctx *ctx, ctr_linear *layer, ctr_vars *vars, const char *prefix,
                             int64_t in, int64_t out, int bias);
CTR_API ctr_tensor *ctr_linear_forward(ctr_ctx *ctx, const ctr_linear *layer, ctr_tensor *x);

/* A convolution without bias. Weight starts normal with variance 2 / (k k out) (He et al.,
   2015). */
typedef struct ctr_conv2d { ctr_tensor *weight; int stride, pad; } ctr_conv2d; /* [k, k, in, out] */
CTR_API void ctr_conv2d_init(ctr_ctx *ctx, ctr_conv2d *layer, ctr_vars *vars, const char *prefix,
                             int64_t in, int64_t out, int kernel, int stride, int pad);
CTR_API ctr_tensor *ctr_conv2d_forward(ctr_ctx *ctx, const ctr_conv2d *layer, ctr_tensor *x);

/* gamma: 0 none, 1 learnt from one, 2 learnt from zero; beta: 0 or 1. Momentum 0.1, eps 1e-5. */
CTR_API void ctr_norm_init(ctr_ctx *ctx, ctr_norm *layer, ctr_vars *vars, const char *prefix,
                           int64_t c, int gamma, int beta);

/* A head: (linear, norm, ReLU) x (layers - 1), linear, norm. Layers are numbered as in a
   Sequential. */
typedef struct ctr_mlp_config {
    int layers;            /* 1..4 */
    int64_t in, hidden, out;
    int hidden_bias;       /* default 0 */
    int hidden_norm;       /* default 1 */
    int out_bias;          /* default 0 */
    int out_norm;          /* 0 none, 1 gamma and beta, 2 gamma alone (SimCLR), 3 neither */
} ctr_mlp_config;
typedef struct ctr_mlp {
    ctr_mlp_config config;
    ctr_linear linear[4];
    ctr_norm norm[4];
} ctr_mlp;
/* SimCLR's projection head: no biases, norm everywhere, the last without beta (Chen et al.,
   2020). */
CTR_API ctr_mlp_config ctr_mlp_config_default(int64_t in, int64_t hidden, int64_t out);
CTR_API void ctr_mlp_init(ctr_ctx *ctx, ctr_mlp *head, ctr_vars *vars, const char *prefix,
                          const ctr_mlp_config *config);
CTR_API ctr_tensor *ctr_mlp_forward(ctr_ctx *ctx, const ctr_mlp *head, ctr_tensor *x,
                                    ctr_norm_mode mode, int groups);

/* Residual networks (He et al., 2016) without the classifier.
   CIFAR's: depth 8, 14, 20, 32, 44, 56, three stages of widths w, 2w, 4w (default w = 16).
   ImageNet's: 18, 34 (basic blocks), 50, 101 (bottlenecks, stride in the 3x3), w = 64.
   Shortcuts are projections wherever the shape changes. */
typedef enum ctr_stem {
    CTR_STEM_AUTO,         /* SMALL for images up to 64 pixels, LARGE above */
    CTR_STEM_SMALL,        /* 3x3, stride 1, no pooling */
    CTR_STEM_LARGE         /* 7x7, stride 2, 3x3 max pooling with stride 2 */
} ctr_stem;
typedef struct ctr_resnet_config {
    int depth;             /* default 18 */
    int64_t width;         /* of the first stage; 0: 16 for CIFAR's depths, 64 for the others */
    int64_t channels;      /* of the images, default 3 */
    int64_t image_size;    /* the shorter side, for CTR_STEM_AUTO, default 32 */
    ctr_stem stem;
    int zero_init;         /* the last norm of each block starts at zero (Goyal et al., 2017) */
} ctr_resnet_config;
typedef struct ctr_res_block {
    ctr_conv2d conv[3], down;    /* conv[2]: bottlenecks; down.weight NULL: identity */
    ctr_norm norm[3], down_norm;
    int convs;
} ctr_res_block;
typedef struct ctr_resnet {
    ctr_resnet_config config;    /* as resolved: no 0 and no AUTO left */
    int64_t features;            /* what forward returns per image */
    ctr_conv2d stem;
    ctr_norm stem_norm;
    int blocks, stages;
    int stage_end[4];            /* blocks up to and with each stage */
    ctr_res_block block[34];
} ctr_resnet;
CTR_API ctr_resnet_config ctr_resnet_config_default(int depth);
CTR_API void ctr_resnet_config_init(ctr_resnet_config *config, int depth);
/* "resnet20", "resnet8-w32", "resnet18" -> depth and width; 0 if it is none of these. */
CTR_API int ctr_resnet_config_parse(ctr_resnet_config *config, const char *name);
CTR_API void ctr_resnet_init(ctr_ctx *ctx, ctr_resnet *net, ctr_vars *vars, const char *prefix,
                             const ctr_resnet_config *config);
/* x [n, h, w, channels] -> [n, features], the mean over what the last stage sees. groups: batch
   norm statistics for that many equal runs of images each (ctr_batch_norm). Without recording
   (ctr_nograd_begin) a block's memory is free for the next. */
CTR_API ctr_tensor *ctr_resnet_forward(ctr_ctx *ctx, const ctr_resnet *net, ctr_tensor *x,
                                       ctr_norm_mode mode, int groups);
/* "resnet18 width=64 stem=small channels=3", what a checkpoint compares, into text[96]. */
CTR_API const char *ctr_resnet_describe(const ctr_resnet *net, char *text);

/* ------------------------------------------------------------------------------------------------
   >>OPTIM  optimisers and schedules
   ---------------------------------------------------------------------------------------------- */

typedef enum ctr_optim_kind {
    CTR_OPTIM_SGD,  /* m = momentum m + (g + decay w);  w -= lr m   (Nesterov: lr (g' + momentum m))
                     */
    CTR_OPTIM_LARS, /* SGD with g + decay w times trust |w| / |g + decay w|, weights only: You et
                       al., 2017, as Barlow Twins, BYOL and MoCo v3 run it */
    CTR_OPTIM_ADAMW /* Loshchilov & Hutter, 2019; decay is multiplied by lr */
} ctr_optim_kind;
typedef enum ctr_lars_form {
    CTR_LARS_OUTSIDE, /* the rate outside the momentum buffer (default) */
    CTR_LARS_INSIDE,  /* m = momentum m + lr trust g';  w -= m: the authors' SimCLR in TensorFlow */
    CTR_LARS_LARC     /* trust |w| / (|g| + decay |w| + 1e-8): LARC, as SwAV runs it */
} ctr_lars_form;
typedef struct ctr_optim_config {
    ctr_optim_kind kind;       /* default SGD */
    double momentum;           /* default 0.9 */
    int nesterov;              /* default 0 */
    double decay;              /* default 1e-4 */
    int decay_all;             /* default 0: weights only; 1: norms and biases too (MoCo's SGD) */
    double trust;              /* LARS, default 1e-3 */
    ctr_lars_form form;
    double bias_rate;          /* of norms and biases: lr times this, default 1 */
    double beta1, beta2, eps;  /* AdamW, default 0.9, 0.999, 1e-8 */
} ctr_optim_config;
typedef struct ctr_optim ctr_optim;
CTR_API ctr_optim_config ctr_optim_config_default(ctr_optim_kind kind);
CTR_API void ctr_optim_config_init(ctr_optim_config *config, ctr_optim_kind kind);
/* State for the trainable variables of vars, which must outlive it. NULL on error. */
CTR_API ctr_optim *ctr_optim_create(ctr_ctx *ctx, const ctr_optim_config *config, ctr_vars *vars);
CTR_API void ctr_optim_destroy(ctr_ctx *ctx, ctr_optim *optim);
/* One step with this step's gradients; variables that got none stay as they are. */
CTR_API void ctr_optim_step(ctr_ctx *ctx, ctr_optim *optim, double lr);
CTR_API ctr_vars *ctr_optim_state(ctr_optim *optim);    /* momenta, for saving */
CTR_API int64_t *ctr_optim_steps(ctr_optim *optim);     /* number of steps so far, for saving */
/* A line for each variable: name, shape, kind, decay, adaptation. Writes at most size bytes with
   the final zero; returns the length of the whole text. */
CTR_API size_t ctr_optim_describe(const ctr_optim *optim, char *text, size_t size);

typedef enum ctr_schedule_kind {
    CTR_SCHEDULE_CONSTANT, CTR_SCHEDULE_COSINE, CTR_SCHEDULE_STEPS
} ctr_schedule_kind;
/* Per step, counted from 0: base (step + 1) / warmup while step < warmup; then base, or half a
   cosine from base to end at the last step, or base gamma^(milestones passed). */
typedef struct ctr_schedule {
    ctr_schedule_kind kind;
    double base, end, gamma;
    int64_t warmup, total;
    int64_t milestones[4];     /* rising; 0: unused */
} ctr_schedule;
CTR_API ctr_schedule ctr_schedule_cosine(double base, double end, int64_t warmup, int64_t total);
CTR_API double ctr_schedule_at(const ctr_schedule *schedule, int64_t step);

/* ------------------------------------------------------------------------------------------------
   >>IMAGE  decoding pictures, antialiased resizing

   PNG, JPEG and BMP go through stb_image, which is not part of this file: it is used where the
   compiler finds "stb_image.h", <stb/stb_image.h> or <stb_image.h> (Debian: apt-get install
   libstb-dev), or by the name that CONTRASTIVE_STB_IMAGE="path" gives, and left out with
   CONTRASTIVE_NO_STB_IMAGE. PNM (P2, P3, P5, P6) is read without it. A source file that includes
   stb_image.h itself does so before this implementation, which then uses what that file uses (its
   formats, its flip setting). GIF, TGA, PSD, HDR and the like are refused by their first bytes and
   never reach a decoder.
   Pixels have 8 bits: of 16-bit PNG the high byte is taken, PNM is scaled by its maximum and
   rounded. Alpha is dropped, not blended. EXIF rotation and colour profiles are ignored.
   ---------------------------------------------------------------------------------------------- */

/* Owned by whoever asked for it, until ctr_image_free(). */
typedef struct ctr_image {
    int64_t h, w, c;     /* c = 1 (gray) or 3 (red, green, blue) */
    uint8_t *pixels;     /* [h, w, c] */
} ctr_image;

/* Another decoder, for example libjpeg-turbo; the built-in ones take what it leaves. Both functions
   are called from several threads at once. */
typedef struct ctr_image_decoder {
    void *user;
    /* Fills in the size from the header. 1: mine; 0: not mine; -1: mine, but corrupt. c: 1 or 3. */
    int (*info_fn)(void *user, const uint8_t *bytes, size_t size, int64_t *h, int64_t *w,
                   int64_t *c);
    /* Fills pixels [h, w, c] as info_fn gave them, once they are within the limits. 1, or 0. */
    int (*decode_fn)(void *user, const uint8_t *bytes, size_t size, int64_t h, int64_t w, int64_t c,
                     uint8_t *pixels);
} ctr_image_decoder;

/* What a file may ask for. Checked against its header before anything is decoded. */
typedef struct ctr_image_limits {
    int64_t max_bytes;           /* of the file, default 2^28 */
    int64_t max_side;            /* default 16384, at most 65535 */
    int64_t max_pixels;          /* h * w, default 2^26 */
    double max_pixels_per_byte;  /* default 2048, counted beyond the first 65536 pixels */
    const ctr_image_decoder *decoder; /* tried first; default NULL. Must outlive its users */
} ctr_image_limits;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_image_limits ctr_image_limits_default(void);
CTR_API void ctr_image_limits_init(ctr_image_limits *limits);

/* 1 if PNG, JPEG and BMP can be read in this build. */
CTR_API int ctr_image_has_stb(void);

/* A file's size and channels, by its header alone. 1, or 0 with an error. */
CTR_API int ctr_image_info(ctr_ctx *ctx, const void *bytes, size_t size,
                           const ctr_image_limits *limits, int64_t *h, int64_t *w, int64_t *c);

/* Decodes a file in memory, or loads it. channels: 0 as in the file, 1 (luma by ITU-R 601) or 3
   (gray repeated). limits NULL means the defaults. Returns 1, or 0 with an error and *out empty:
   CTR_E_FORMAT for corrupt or unknown content and exceeded limits, CTR_E_UNSUPPORTED without
   stb_image, CTR_E_FILE, CTR_E_MEMORY. */
CTR_API int ctr_image_decode(ctr_ctx *ctx, const void *bytes, size_t size, int channels,
                             const ctr_image_limits *limits, ctr_image *out);
CTR_API int ctr_image_load(ctr_ctx *ctx, const char *path, int channels,
                           const ctr_image_limits *limits, ctr_image *out);

/* An image with undefined pixels, and the end of any image (which becomes empty). */
CTR_API int ctr_image_create(ctr_ctx *ctx, int64_t h, int64_t w, int64_t c, ctr_image *out);
CTR_API void ctr_image_free(ctr_ctx *ctx, ctr_image *image);

/* A rectangle of an image in pixels. */
typedef struct ctr_box { int64_t top, left, h, w; } ctr_box;

typedef enum ctr_interp { CTR_INTERP_BILINEAR = 0, CTR_INTERP_BICUBIC } ctr_interp;

/* Cuts box (NULL: everything) out of an image and resizes that to h x w with an antialiasing
   filter: a triangle, or Keys' cubic with a = -0.5, widened by the factor of shrinking, as Pillow
   does and torchvision with antialias=True. Nothing outside the box has influence. ctr_image_resize
   makes an 8-bit image (rounded, clipped; *out is the caller's to free), ctr_image_resize_real
   numbers out[h, w, c] in 0..1, where the bicubic filter may overshoot. 1, or 0 with an error. */
CTR_API int ctr_image_resize(ctr_ctx *ctx, const ctr_image *image, const ctr_box *box, int64_t h,
                             int64_t w, ctr_interp interp, ctr_image *out);
CTR_API int ctr_image_resize_real(ctr_ctx *ctx, const ctr_image *image, const ctr_box *box,
                                  int64_t h, int64_t w, ctr_interp interp, ctr_real *out);

/* ------------------------------------------------------------------------------------------------
   >>AUG  augmentations: what makes two views of one image

   Each view is sampled (ctr_aug_sample: random numbers become parameters) and then applied
   (ctr_aug_apply: pure, from any thread), so that a device or a test can do the second part alone.
   Order: crop, flip, jitter (its four operations in random order, each clipped to 0..1), gray,
   blur, solarize, normalise; the one of Chen et al. (2020) with solarize from Grill et al. (2020).
   Colour operations are torchvision's for float images; blur is a true Gaussian. On images with
   one channel saturation, hue and gray do nothing.
   ---------------------------------------------------------------------------------------------- */

typedef struct ctr_aug_config {
    int64_t height, width;           /* of the views, 1..65535 */
    int center_crop; /* 1: no random crop, the largest centred box of the views' shape */
    double crop_min, crop_max;       /* the crop's share of the area, 0 < min <= max <= 1 */
    double ratio_min, ratio_max;     /* its width / height, drawn log-uniformly; 0 < min <= max */
    ctr_interp interp;
    double flip_p;                   /* probability of mirroring left and right; each _p in 0..1 */
    double jitter_p;
    double brightness, contrast, saturation; /* factors from max(0, 1 - x) to 1 + x; 0: left out */
    double hue;                      /* turned by -x to x of the circle, 0..0.5; 0: left out */
    double gray_p;
    double blur_p;
    double blur_sigma_min, blur_sigma_max; /* in pixels of the view, > 0 */
    int blur_kernel; /* odd size, at most 255; 0: 2 * round(0.05 * min(height, width)) + 1 */
    double solarize_p;
    double solarize_threshold;       /* values at or above it are inverted, 0..1 */
    double mean[3], std[3];          /* (x - mean) / std at the end; std > 0 */
    ctr_kernels kernels;             /* AUTO asks the processor in each call; presets have asked */
} ctr_aug_config;

/* SimCLR (Chen et al., 2020; google-research/simclr): crops of 0.08..1 of the area, ratio 3/4..4/3,
   bicubic, flip 0.5, jitter with p 0.8, gray 0.2, no normalisation (mean 0, std 1).
   size <= 32: jitter 0.4, 0.4, 0.4, 0.1 (their CIFAR-10 strength 0.5) and no blur;
   larger: jitter 0.8, 0.8, 0.8, 0.2 and blur with p 0.5, sigma 0.1..2. */
CTR_API ctr_aug_config ctr_aug_simclr_default(int64_t size);
CTR_API void ctr_aug_simclr_config_init(ctr_aug_config *config, int64_t size);

/* MoCo (He et al., 2020; Chen et al., 2020 and 2021), version 1, 2 or 3: crops of 0.2..1, bilinear.
   1: jitter 0.4 of all four, always; 2: 0.4, 0.4, 0.4, 0.1 with p 0.8, blur 0.5; 3: BYOL's two
   views with these crops, bicubic. No blur up to 32 pixels, here and below. */
CTR_API ctr_aug_config ctr_aug_moco_default(int64_t size, int version, int view);
CTR_API void ctr_aug_moco_config_init(ctr_aug_config *config, int64_t size, int version, int view);

/* SwAV (Caron et al., 2020), for large crops of that many pixels: 0.14..1 of the area; small: crops
   of 0.05..0.14 in 3/7 of the pixels' width and height (their 96 of 224). Bilinear, the rest as
   SimCLR. */
CTR_API ctr_aug_config ctr_aug_swav_default(int64_t size, int small);
CTR_API void ctr_aug_swav_config_init(ctr_aug_config *config, int64_t size, int small);

/* BYOL (Grill et al., 2020), also Barlow Twins: crops of 0.08..1, jitter 0.4, 0.4, 0.2, 0.1 with p
   0.8; view 0 always blurred and never solarized, view 1 blurred with p 0.1 and solarized with 0.2.
   (Brightness is multiplicative here, additive in the authors' program.) */
CTR_API ctr_aug_config ctr_aug_byol_default(int64_t size, int view);
CTR_API void ctr_aug_byol_config_init(ctr_aug_config *config, int64_t size, int view);

/* For evaluation: the largest centred square, resized; nothing random. */
CTR_API ctr_aug_config ctr_aug_none_default(int64_t size);
CTR_API void ctr_aug_none_config_init(ctr_aug_config *config, int64_t size);

/* 1 if every member is in its range, else 0 with an error that names the member. */
CTR_API int ctr_aug_config_check(ctr_ctx *ctx, const ctr_aug_config *config);

/* One line of text about a config into text[size] (320 are enough); returns text. */
CTR_API const char *ctr_aug_describe(const ctr_aug_config *config, char *text, size_t size);

enum { CTR_JITTER_BRIGHTNESS = 0, CTR_JITTER_CONTRAST, CTR_JITTER_SATURATION, CTR_JITTER_HUE };

/* All that is random about one view. */
typedef struct ctr_aug_params {
    ctr_box crop;
    int flip;
    int jitter;          /* 1: the operations order[0..3] with their factor */
    int order[4];        /* CTR_JITTER_* each once */
    double factor[4];    /* indexed by CTR_JITTER_*; 1, 1, 1 and 0 (hue) change nothing */
    int gray;
    double blur_sigma;   /* 0: no blur */
    int solarize;
} ctr_aug_params;

/* Draws the parameters of one view of an h x w image. The crop as torchvision: ten attempts of an
   area and a log-uniform ratio, then the largest centred box within the ratios. config is valid
   (ctr_aug_config_check) and h, w >= 1. */
CTR_API void ctr_aug_sample(const ctr_aug_config *config, ctr_rng *rng, int64_t h, int64_t w,
                            ctr_aug_params *out);

/* Bytes of scratch that apply needs for images up to h x w; 0 when that overflows. */
CTR_API size_t ctr_aug_scratch_size(const ctr_aug_config *config, int64_t h, int64_t w, int64_t c);

/* Makes one view: out[height, width, c] of pixels[h, w, c], c = 1 or 3. Pure: it trusts its
   arguments (the crop lies inside the image, scratch is as large as ctr_aug_scratch_size says),
   allocates nothing and may run in any thread. The second takes numbers, finite and in 0..1. */
CTR_API void ctr_aug_apply(const ctr_aug_config *config, const ctr_aug_params *params,
                           const uint8_t *pixels, int64_t h, int64_t w, int64_t c, ctr_real *out,
                           void *scratch);
CTR_API void ctr_aug_apply_real(const ctr_aug_config *config, const ctr_aug_params *params,
                                const ctr_real *pixels, int64_t h, int64_t w, int64_t c,
                                ctr_real *out, void *scratch);

/* The same with everything checked. 1, or 0 with an error: CTR_E_SHAPE, CTR_E_VALUE (a member of
   config or params, a crop box that leaves the image), CTR_E_NUMBER (NaN or infinity in pixels). */
CTR_API int ctr_aug_view(ctr_ctx *ctx, const ctr_aug_config *config, const ctr_aug_params *params,
                         const uint8_t *pixels, int64_t h, int64_t w, int64_t c, ctr_real *out);
CTR_API int ctr_aug_view_real(ctr_ctx *ctx, const ctr_aug_config *config,
                              const ctr_aug_params *params, const ctr_real *pixels, int64_t h,
                              int64_t w, int64_t c, ctr_real *out);

/* One view of each of n images on the context's threads: out[n, height, width, c] of
   pixels[n, h, w, c]. Image i draws from (the context's seed, CTR_STREAM_VIEW, epoch, position + i,
   view). Errors as above. */
CTR_API int ctr_aug_batch(ctr_ctx *ctx, const ctr_aug_config *config, const uint8_t *pixels,
                          int64_t n, int64_t h, int64_t w, int64_t c, int64_t epoch,
                          int64_t position, int view, ctr_real *out);
CTR_API int ctr_aug_batch_real(ctr_ctx *ctx, const ctr_aug_config *config, const ctr_real *pixels,
                               int64_t n, int64_t h, int64_t w, int64_t c, int64_t epoch,
                               int64_t position, int view, ctr_real *out);

/* The single operations, on images x[h, w, c] of numbers in 0..1, in place. All return 1, or 0 with
   an error for a shape or factor out of range or a number that is not finite. L is the gray image
   0.2989 R + 0.587 G + 0.114 B, and clip is to 0..1. */

/* clip(factor * x), factor >= 0 */
CTR_API int ctr_aug_brightness(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                               double factor);
/* clip(factor * x + (1 - factor) * mean of L), factor >= 0 */
CTR_API int ctr_aug_contrast(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                             double factor);
/* clip(factor * x + (1 - factor) * L), factor >= 0 */
CTR_API int ctr_aug_saturation(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                               double factor);
/* Turns the hue of HSV by a part of the circle, -0.5..0.5. */
CTR_API int ctr_aug_hue(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c, double turn);
/* L in all three channels */
CTR_API int ctr_aug_grayscale(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c);
/* Separable Gaussian, kernel odd, sigma > 0; edges reflected without repeating the edge pixel. */
CTR_API int ctr_aug_blur(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c, int kernel,
                         double sigma);
/* x >= threshold ? 1 - x : x */
CTR_API int ctr_aug_solarize(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                             double threshold);
/* left and right exchanged */
CTR_API int ctr_aug_flip(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c);
/* (x - mean[channel]) / std[channel] */
CTR_API int ctr_aug_normalize(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                              const double *mean, const double *std);
/* ctr_image_resize_real for numbers: out[out_h, out_w, c] from the box of x; not clipped. */
CTR_API int ctr_aug_resized_crop(ctr_ctx *ctx, const ctr_real *x, int64_t h, int64_t w, int64_t c,
                                 const ctr_box *box, int64_t out_h, int64_t out_w,
                                 ctr_interp interp, ctr_real *out);

/* ------------------------------------------------------------------------------------------------
   >>SAMPLE  which images make up which batch
   ---------------------------------------------------------------------------------------------- */

/* What happens to the images that do not fill an epoch's last batch. */
typedef enum ctr_last {
    CTR_LAST_DROP = 0,        /* they wait for the next epoch's order */
    CTR_LAST_KEEP,            /* a smaller batch */
    CTR_LAST_WRAP             /* filled up from the start of the epoch's order, with other views */
} ctr_last;

/* Batches in an epoch of n images. */
CTR_API int64_t ctr_sample_batches(int64_t n, int64_t batch, ctr_last last);

/* The epoch's order of the images 0..n-1 into order[n]: a permutation that depends on (seed,
   CTR_STREAM_SAMPLE, epoch) alone, or 0, 1, 2, ... without shuffle. */
CTR_API void ctr_sample_order(uint64_t seed, int64_t epoch, int64_t n, int shuffle, int64_t *order);

/* ------------------------------------------------------------------------------------------------
   >>DATA  where images come from, and a loader that turns them into batches of views

   A dataset is a read-only list of n 8-bit images with optional labels. All have the same number of
   channels; in a folder they may differ in size. The loader augments them into batches, the next
   one on the context's threads while the current one is trained on. Its numbers depend on (seed,
   epoch, position in the epoch's order, view) alone: not on threads, prefetching, caches or
   resuming.
   ---------------------------------------------------------------------------------------------- */

typedef struct ctr_dataset ctr_dataset;

/* Where the decoded images of a folder are kept. No choice changes a single number. */
typedef enum ctr_cache {
    CTR_CACHE_MEMORY = 0,     /* decoded when opened, as many as the budget holds; the rest later */
    CTR_CACHE_MAPPED,         /* all of them in the file cache_path, mapped into memory (POSIX) */
    CTR_CACHE_NONE            /* each time */
} ctr_cache;

/* What a file means that cannot be read or decoded. SKIP and REPLACE decode every file once when
   the dataset is opened, so that its length is known from then on. */
typedef enum ctr_corrupt {
    CTR_CORRUPT_FAIL = 0,     /* an error, when it is met */
    CTR_CORRUPT_SKIP,         /* it is left out, and counted */
    CTR_CORRUPT_REPLACE       /* the next good image stands in, with its label; counted */
} ctr_corrupt;

typedef struct ctr_data_options {
    int channels;             /* 1, 3, or 0 (default): as in the source; folders: 3 */
    int64_t short_side;       /* a folder's larger images are shrunk to this short side; 0: never */
    ctr_cache cache;
    uint64_t budget;          /* bytes of decoded images in memory, default 2^30 */
    const char *cache_path;   /* for CTR_CACHE_MAPPED: one file for each split; built if it is not
                                 there or if names, sizes or these options have changed */
    ctr_corrupt corrupt;
    ctr_image_limits limits;  /* what one file may ask for */
} ctr_data_options;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_data_options ctr_data_options_default(void);
CTR_API void ctr_data_options_init(ctr_data_options *options);

/* n images in the caller's memory, pixels [n, h, w, c] with c 1 or 3, and labels [n] or NULL (a
   negative one: unlabelled). Nothing is copied: both must outlive the dataset. */
CTR_API ctr_dataset *ctr_dataset_from_memory(ctr_ctx *ctx, const uint8_t *pixels, int64_t n,
                                             int64_t h, int64_t w, int64_t c,
                                             const int32_t *labels);

/* n images of coloured shapes on noise, [n, size, size, 3]: disc, square, triangle, cross, ring and
   bars of any colour, place, size and angle. The label is the shape. size 8..512. */
CTR_API ctr_dataset *ctr_dataset_shapes(ctr_ctx *ctx, int64_t n, int64_t size, uint64_t seed);

/* Opens what a path leads to, found out by looking:
   - an IDX file of images (MNIST's format, also .gz), or a folder with such files; labels from the
     file whose name has "labels" and "idx1" instead of "images" and "idx3";
   - a folder with CIFAR-10 or CIFAR-100 binaries (fine labels);
   - a folder of .jpg .jpeg .png .bmp .ppm .pgm .pnm files, also in folders within (16 levels,
     hidden ones left out), sorted by the bytes of their paths. If no image lies in the folder
     itself and there are two or more sub-folders with images, these are the classes, numbered in
     the order of their names. A folder train beside test (or val, valid, validation) is a split;
     the classes are those of both.
   split is "train", "test" or NULL (the first, or everything). A source without splits is all
   "train". options NULL means the defaults. IDX and CIFAR are held in memory, within the budget.
   Returns NULL with an error: CTR_E_FILE, CTR_E_FORMAT (nothing fits, wrong content), CTR_E_VALUE,
   CTR_E_MEMORY, CTR_E_UNSUPPORTED (.gz, .png ... without stb_image). */
CTR_API ctr_dataset *ctr_dataset_open(ctr_ctx *ctx, const char *path, const char *split,
                                      const ctr_data_options *options);
CTR_API void ctr_dataset_destroy(ctr_ctx *ctx, ctr_dataset *dataset); /* NULL is allowed */

/* n of a dataset's images, evenly spread over its order, 1..count. The whole must outlive the part.
   NULL with an error: CTR_E_VALUE, CTR_E_MEMORY. */
CTR_API ctr_dataset *ctr_dataset_part(ctr_ctx *ctx, const ctr_dataset *whole, int64_t n);

/* 1 if that path has that split. Without an error, also when the path leads nowhere. */
CTR_API int ctr_dataset_has_split(ctr_ctx *ctx, const char *path, const char *split);

CTR_API int64_t ctr_dataset_count(const ctr_dataset *dataset);
CTR_API int64_t ctr_dataset_channels(const ctr_dataset *dataset);
CTR_API int64_t ctr_dataset_classes(const ctr_dataset *dataset); /* 0: no labels */
CTR_API const char *ctr_dataset_class_name(const ctr_dataset *dataset, int64_t label); /* or "" */
CTR_API int32_t ctr_dataset_label(const ctr_dataset *dataset, int64_t index);    /* -1: none */
/* Of an image: its path below the folder, "" if it has no file. */
CTR_API const char *ctr_dataset_path(const ctr_dataset *dataset, int64_t index);
/* "memory", "shapes", "IDX", "CIFAR-10", "CIFAR-100" or "folder" */
CTR_API const char *ctr_dataset_kind(const ctr_dataset *dataset);
CTR_API int64_t ctr_dataset_skipped(const ctr_dataset *dataset); /* corrupt, out or replaced */
CTR_API int64_t ctr_dataset_cached(const ctr_dataset *dataset);  /* images that need no decoding */

/* A copy of one image; the caller's, until ctr_image_free(). 1, or 0 with an error. */
CTR_API int ctr_dataset_image(ctr_ctx *ctx, const ctr_dataset *dataset, int64_t index,
                              ctr_image *out);

/* Reads and decodes every file of a folder again, cached or not. bad_fn (may be NULL) hears of each
   one that fails, in order. Returns how many fail, or -1 with an error. For a whole folder open it
   with CTR_CACHE_NONE and CTR_CORRUPT_FAIL. */
typedef void (*ctr_bad_fn)(void *user, int64_t index, const char *text);
CTR_API int64_t ctr_dataset_verify(ctr_ctx *ctx, const ctr_dataset *dataset, ctr_bad_fn bad_fn,
                                   void *user);

/* ------------------------------------------------------------------------------------------------
   >>LOADER  batches of views, the next one prepared while this one trains
   ---------------------------------------------------------------------------------------------- */

#define CTR_MAX_VIEWS 64

typedef struct ctr_loader_config {
    int64_t batch;                /* images in a batch, 2..n; default 128 */
    int views;                    /* of each image, 1..CTR_MAX_VIEWS; default 2 */
    const ctr_aug_config *augs;   /* [views], copied; neighbours of one height and width make a
                                     group of views. No default */
    ctr_last last;                /* default CTR_LAST_DROP */
    int shuffle;                  /* default 1 */
    int prefetch;                 /* prepare the next batch in the background; default 1 */
    uint64_t seed;                /* default 1 */
} ctr_loader_config;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_loader_config ctr_loader_config_default(void);
CTR_API void ctr_loader_config_init(ctr_loader_config *config);

/* Views of one size: multi-crop (Caron et al., 2020) has two large crops and six small ones. */
typedef struct ctr_view_group {
    int views;                    /* of each image */
    int64_t h, w;
    ctr_real *pixels;             /* [views * n, h, w, c]: all of its view 1, then all of view 2 */
} ctr_view_group;

/* A batch belongs to the loader and lives until the next call of next, seek or destroy. views, h, w
   and pixels are the first group's, which is all there is unless augs differ in size. Whoever fills
   one in by hand sets all of it to 0 first; groups may stay 0 when there is one. */
typedef struct ctr_batch {
    int64_t n;                    /* images */
    int views;
    int64_t h, w, c;              /* of the views */
    const int64_t *index;         /* [n] in the dataset */
    const int32_t *labels;        /* [n], -1: none */
    ctr_real *pixels;             /* [views * n, h, w, c]: all of view 1, then all of view 2, ... */
    int64_t epoch, batch;         /* which one this is */
    int groups;                   /* of views, in the order of augs */
    const ctr_view_group *group;  /* [groups], the first one as above; NULL allowed with one */
} ctr_batch;

/* The dataset must outlive the loader. All memory is taken here: a steady epoch allocates nothing,
   unless images have to be decoded each time. NULL with an error: CTR_E_VALUE, CTR_E_MEMORY. */
typedef struct ctr_loader ctr_loader;
CTR_API ctr_loader *ctr_loader_create(ctr_ctx *ctx, const ctr_dataset *dataset,
                                      const ctr_loader_config *config);
CTR_API void ctr_loader_destroy(ctr_ctx *ctx, ctr_loader *loader); /* NULL is allowed */

/* 1 with the next batch. 0 once at the end of each epoch, after which the next epoch begins; 0 with
   an error when an image of this batch fails: then the same batch is tried again. */
CTR_API int ctr_loader_next(ctr_ctx *ctx, ctr_loader *loader, ctr_batch *out);

CTR_API int64_t ctr_loader_batches(const ctr_loader *loader); /* in an epoch */
/* Where the loader stands: the epoch and batch that next returns. Seeking there in another process
   goes on exactly: epoch >= 0, batch 0..batches (batches: the end of that epoch). */
CTR_API void ctr_loader_tell(const ctr_loader *loader, int64_t *epoch, int64_t *batch);
CTR_API int ctr_loader_seek(ctr_ctx *ctx, ctr_loader *loader, int64_t epoch, int64_t batch);
/* Seconds that next has made its caller wait so far. */
CTR_API double ctr_loader_seconds(const ctr_loader *loader);

/* ------------------------------------------------------------------------------------------------
   >>CLUSTER  k-means, whitening, balanced codes, and how well clusters agree with classes
   Everything takes host memory that stays the caller's, gives the same bits for any number of
   threads, and leaves nothing behind. Functions return 1, or 0 after recording an error.
   ---------------------------------------------------------------------------------------------- */

/* k-means (Lloyd, 1982): minimise the inertia, sum_i |x_i - c_a(i)|^2, by turns over the assignment
   a and the centroids c.

   Where centroids start: POINTS are k different points drawn at random, as DeepCluster and faiss
   do; PLUSPLUS draws each next one with probability in proportion to its squared distance from
   those drawn before (Arthur and Vassilvitskii, 2007): a better start, as dear as an iteration. */
typedef enum ctr_kmeans_init { CTR_KMEANS_POINTS = 0, CTR_KMEANS_PLUSPLUS } ctr_kmeans_init;

typedef struct ctr_kmeans_config {
    int64_t k;            /* clusters, 1..n; default 10 */
    int iterations;       /* the most updates of the centroids, >= 0, default 20 */
    int restarts;         /* runs from different starts, >= 1, default 1; the least inertia wins */
    int spherical;        /* 1: rows of x and centroids count at unit length; default 0 */
    ctr_kmeans_init init; /* default POINTS */
    const ctr_real *start; /* [k, d] centroids to start from instead (one run), or NULL, default */
    uint64_t seed;        /* of the start, default 1 */
    double tolerance;     /* >= 0: stop when the inertia falls by less than this share of itself in
                             an iteration; default 0: when no point changes its cluster */
    int64_t min_points;   /* fewer points a cluster than this on average are told to the log as a
                             warning, as faiss does; default 39; 0: never */
} ctr_kmeans_config;

typedef struct ctr_kmeans_result {
    double inertia;       /* of the centroids and assignment that were written */
    int iterations;       /* updates done in the best run */
    int converged;        /* it stopped before they ran out */
    int restart;          /* which run was best, from 0 */
    int64_t refilled;     /* how often an empty cluster was filled in it */
    int64_t filled;       /* clusters that have points in the end: less than k if k exceeds the
                             number of different points */
} ctr_kmeans_result;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_kmeans_config ctr_kmeans_config_default(void);
CTR_API void ctr_kmeans_config_init(ctr_kmeans_config *config);

/* x [n, d], finite. Writes centroids [k, d], and, where not NULL, assignment [n]: the index of the
   nearest centroid, of equals the lower one; sizes [k]: points of each cluster; and out.
   A cluster that an assignment leaves empty takes half of the largest: both get its centroid, moved
   apart by 1/1024 of each coordinate (the rule of faiss, which draws the donor at random). In the
   last assignment it takes the point that is farthest from its centroid.
   config NULL: the defaults. Errors: k above n or below 1, n or d below 1 (CTR_E_SHAPE or VALUE),
   NaN or infinity (CTR_E_NUMBER). Memory: 4 MB of products and a few numbers a point and centroid;
   never n x k. */
CTR_API int ctr_kmeans_run(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                           const ctr_kmeans_config *config, ctr_real *centroids,
                           int32_t *assignment, int64_t *sizes, ctr_kmeans_result *out);

/* Assigns points to given centroids [k, d], as the last step of ctr_kmeans_run does. spherical: by
   the largest cosine. assignment [n]; inertia (NULL allowed). */
CTR_API int ctr_kmeans_assign(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int64_t k,
                              const ctr_real *centroids, int spherical, int32_t *assignment,
                              double *inertia);

/* Principal components at equal variance: y = A (x - mean), where row j of A is axis j times
   (variance_j + epsilon)^power; then rows of length 1. DeepCluster's preparation of features for
   k-means (Caron et al., 2018): 256 axes, power -0.5, no epsilon, unit rows. */
typedef struct ctr_whiten_config {
    int k;                /* axes kept, 1..min(d, 256); default 0: min(d, 256) */
    double power;         /* default -0.5: all axes get variance 1; 0: principal components alone */
    double epsilon;       /* >= 0, in units of x squared, default 0 */
} ctr_whiten_config;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_whiten_config ctr_whiten_config_default(void);
CTR_API void ctr_whiten_config_init(ctr_whiten_config *config);

/* x [n, d], finite; config NULL: the defaults. Writes mean [d] and matrix [k, d]: A. Variances have
   divisor n - 1; rows of A beyond the rank of the data are zero. Returns k, or 0 after an error.
   Memory: x once more, and n x (k + 8) or, up to d = 768, n x d numbers. */
CTR_API int ctr_whiten_fit(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                           const ctr_whiten_config *config, ctr_real *mean, ctr_real *matrix);
/* out [n, k] = (x - mean) matrix^T; unit_rows: each row divided by its length, a zero row stays. */
CTR_API int ctr_whiten_apply(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int k,
                             const ctr_real *mean, const ctr_real *matrix, int unit_rows,
                             ctr_real *out);

/* Balanced codes (Cuturi, 2013; for SwAV: Caron et al., 2020): the n points are spread over k
   prototypes so that each prototype gets an equal share of them while sum codes * scores is large.
     Q = exp(scores / epsilon);  iterations times: each column of Q scaled to sum 1 / k, each row to
     sum 1 / n;  codes = n Q
   In the logarithmic domain and in double, so no epsilon overflows. A small epsilon gives codes
   near 0 and 1. Scores come from a forward pass without gradients, in host memory
   (ctr_tensor_read); codes are targets and have no gradient. */
typedef struct ctr_sinkhorn_config {
    double epsilon;       /* > 0, default 0.05, for scores that are cosines */
    int iterations;       /* >= 1, default 3 */
} ctr_sinkhorn_config;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_sinkhorn_config ctr_sinkhorn_config_default(void);
CTR_API void ctr_sinkhorn_config_init(ctr_sinkhorn_config *config);

/* scores, codes [n, k] (they may be the same memory); each row of codes sums to 1. residual (NULL
   allowed): how far the prototypes' shares are from equal, max_j |k / n sum_i codes_ij - 1|, 0 when
   balanced, at most k - 1. config NULL: the defaults. Time: 2 iterations + 1 exponentials for each
   score. */
CTR_API int ctr_sinkhorn_run(ctr_ctx *ctx, int64_t n, int64_t k, const ctr_real *scores,
                             const ctr_sinkhorn_config *config, ctr_real *codes, double *residual);

/* How well two partitions of the same points agree. No measure cares how the parts are numbered. */
typedef struct ctr_agreement {
    double nmi;           /* 2 I(a, b) / (H(a) + H(b)): mutual information over the arithmetic mean
                             of the entropies, 0..1; 1 if both have one part */
    double nmi_geometric; /* I(a, b) / sqrt(H(a) H(b)), as in DeepCluster's tables; 1 if both have
                             one part, 0 if only one of them has */
    double ari;           /* adjusted Rand index (Hubert and Arabie, 1985): 0 at chance, 1 if equal,
                             below 0 if worse than chance */
    double purity;        /* share of points in the majority label of their cluster, 0..1; at least
                             the share of the largest label, and 1 if each point is a cluster */
    int64_t points;       /* that count */
    int64_t clusters, classes; /* parts that occur */
} ctr_agreement;

/* clusters, labels [n], each below CTR_MAX_CLASSES; points where either is negative are left out.
   Without a point that counts all of out is 0. Time n log n at most, memory O(n). */
CTR_API int ctr_agreement_measure(ctr_ctx *ctx, int64_t n, const int32_t *clusters,
                                  const int32_t *labels, ctr_agreement *out);

/* Clustering accuracy (Yang et al., 2010): each cluster is given a label of its own, one to one, so
   that most points are right; by the Hungarian algorithm (Kuhn, 1955), in O(s^2 t) for s the lesser
   and t the larger of both numbers. match (NULL allowed) [1 + the largest cluster]: its label, -1
   for none. accuracy: 0..1. Memory: the table of clusters x labels. */
CTR_API int ctr_agreement_match(ctr_ctx *ctx, int64_t n, const int32_t *clusters,
                                const int32_t *labels, int32_t *match, double *accuracy);

#define CTR_MAX_CLASSES 1048576

/* ------------------------------------------------------------------------------------------------
   >>LOSS  losses

   Rows of z are embeddings [views * n, d]: all of view 1, then all of view 2, ... Losses normalise
   the rows themselves (a zero row stays zero). With s_ij the cosine of rows i and j and T the
   temperature:

   NT-Xent (Chen et al., 2020; the N-pair loss of Sohn, 2016, with views):
     l_i = -mean over positives p of  log( exp(s_ip / T) / sum over j != i of exp(s_ij / T) )
     loss = mean of l_i over all views * n anchors.
   Positives are the other views of the same image: one with two views, as in the paper; with more
   it is SupCon's outer mean. The row itself never enters the sum. T > 0, the authors' 0.5 for
   CIFAR-10 and
   0.1 for ImageNet. Range 0.. ; near ln(views n - 1) for embeddings that know nothing; 0 if n = 1.
   google-research/simclr adds the two views' means: twice this value.

   SupCon (Khosla et al., 2020, their L_out): positives are all rows of the same label. Anchors
   without a positive add nothing and do not count; if there is none at all, the loss is exactly 0.
   An unlabelled image (-1) has its own views for positives.

   Time grows with the square of the rows, memory does not: similarities are computed a tile at a
   time, forward and once more backward. Loss and gradient of 16,384 rows of 128 numbers took a
   process of 67 MB with two threads; the matrix of similarities alone would be 1 GB.
   ---------------------------------------------------------------------------------------------- */

CTR_API ctr_tensor *ctr_loss_nt_xent(ctr_ctx *ctx, ctr_tensor *z, int views, double temperature);
/* labels [n], host memory, -1 or a class */
CTR_API ctr_tensor *ctr_loss_supcon(ctr_ctx *ctx, ctr_tensor *z, int views, const int32_t *labels,
                                    double temperature);
/* What NT-Xent has at chance: ln(views n - 1). */
CTR_API double ctr_loss_nt_xent_chance(int64_t n, int views);

/* The same for those who bring their own framework: z [views * n, d] in host memory; dz the same or
   NULL gets the gradient. They use the context's step: not inside one of your own. 0 on error. */
CTR_API double ctr_loss_nt_xent_flat(ctr_ctx *ctx, int64_t n, int views, int64_t d,
                                     const ctr_real *z, double temperature, ctr_real *dz);
CTR_API double ctr_loss_supcon_flat(ctr_ctx *ctx, int64_t n, int views, int64_t d,
                                    const ctr_real *z, const int32_t *labels, double temperature,
                                    ctr_real *dz);

/* InfoNCE (van den Oord et al., 2018): each query picks its own key out of many.
     l_i = -log( exp(q_i . k_i / T) / (exp(q_i . k_i / T) + sum_j exp(q_i . c_j / T)) )
     loss = mean of l_i over the n queries
   q, k [n, d]: row i of k is the positive of row i of q; both are normalised inside, and gradients
   flow into both (detach k for a momentum encoder). c_j: the rows of negatives [m, d] (a queue or
   bank of unit rows, which gets no gradient) as in MoCo (He et al., 2020); with negatives NULL the
   other rows of k, as in MoCo v3 and in each half of CLIP. T > 0: 0.07 in MoCo, 0.2 in v2, 1 in v3
   (0.2 for ViT). Range 0..; chance: ln(1 + negatives), n - 1 of them within the batch. Without any
   negative it is exactly 0. MoCo v3 multiplies by 2 T and adds both directions, MoCo neither: that
   is the caller's. */
CTR_API ctr_tensor *ctr_loss_infonce(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k,
                                     const ctr_tensor *negatives, double temperature);
CTR_API double ctr_loss_infonce_chance(int64_t negatives);

/* CLIP (Radford et al., 2021; symmetric InfoNCE): with logits_ij = exp(s) cos(image_i, text_j)
     loss = (cross entropy of the rows + cross entropy of the columns) / 2
   image, text [n, d], row by row; log_scale: a tensor of one number s, learnable, their start
   ln(1 / 0.07). s counts as clamped to 0..ln 100, and its gradient is that of the clamped value, so
   it can come back; the authors clamp the tensor itself after each step. ids [n] (host) or NULL:
   equal ids >= 0 are positives of each other, each with an equal share of the target (as in UniCL,
   Yang et al., 2022); -1: alone. Range 0..; chance ln n = ctr_loss_infonce_chance(n - 1). */
CTR_API ctr_tensor *ctr_loss_clip(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                  ctr_tensor *log_scale, const int32_t *ids);

/* SigLIP (Zhai et al., 2023): every pair is a yes or no of its own.
     loss = 1/n sum_ij ln(1 + exp(-y_ij (exp(t) cos(image_i, text_j) + b))),  y = 1 or -1
   log_scale t and bias b: tensors of one number, learnable, their start ln 10 and -10; t is not
   clamped. y_ij = 1 if i = j or the ids are equal. chance: what it is where all cosines are 0. */
CTR_API ctr_tensor *ctr_loss_siglip(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                    ctr_tensor *log_scale, ctr_tensor *bias, const int32_t *ids);
CTR_API double ctr_loss_siglip_chance(int64_t n, double bias);

/* DCL, decoupled contrastive learning (Yeh et al., 2022): NT-Xent of two views whose sum leaves out
   the positive as well as the row itself:
     l_i = -s_ip / T + log sum over j of other images of exp(s_ij / T),  mean over the 2n rows
   z [2n, d], n >= 2; T > 0, often 0.1. Below 0 where it goes well; chance ln(2n - 2). Their
   weighted form (DCLW) is not offered. */
CTR_API ctr_tensor *ctr_loss_dcl(ctr_ctx *ctx, ctr_tensor *z, double temperature);
CTR_API double ctr_loss_dcl_chance(int64_t n);

/* Noise-contrastive estimation over a bank of embeddings. Three losses go by this name. scores
   [n, 1 + K]: cosines, the positive in column 0; s = scores / T; the loss is per query, its K
   negatives summed, not averaged:
   NPID  (Wu et al., 2018): P_j = exp(s_j) / Z, h_j = P_j / (P_j + K/N),
         -log h_0 - sum_j log(1 - h_j), with 1e-7 in the denominator of h as the authors have it.
         Z is a constant: *z <= 0 lets the first call set it to N mean exp(s), later ones use it.
         N = images in the bank.
   PIRL  (Misra and van der Maaten, 2020, eq. 5 and 6): p = softmax of s over all 1 + K columns,
         -log p_0 - sum_j log(1 - p_j + 1e-7). Their eq. 5 may be read with the positive left out of
         a negative's sum.  images and z are ignored (0, NULL).
   INFO  -log p_0, the cross entropy; images and z are ignored.
   T > 0, the authors' 0.07 (0.1 for CIFAR-10). Chance: ln(1 + K) + K ln(1 + 1/K) where P = 1/N and
   where all scores are equal; INFO: ln(1 + K). */
typedef enum ctr_nce_form { CTR_NCE_NPID, CTR_NCE_PIRL, CTR_NCE_INFO } ctr_nce_form;
CTR_API ctr_tensor *ctr_loss_nce(ctr_ctx *ctx, ctr_tensor *scores, double temperature,
                                 ctr_nce_form form, int64_t images, double *z);
CTR_API double ctr_loss_nce_chance(ctr_nce_form form, int64_t negatives);
/* scores[i, j] = cosine of q_i and row index[i, j] of the bank: q [n, d], normalised inside; bank
   [images, d] of unit rows, no gradient, and unchanged until after backward; index [n, columns] in
   host memory, 0..images - 1. Holds columns * d numbers at a time, not n times that. */
CTR_API ctr_tensor *ctr_nce_scores(ctr_ctx *ctx, ctr_tensor *q, const ctr_tensor *bank,
                                   const int32_t *index, int64_t columns);

/* The same for those who bring their own framework: inputs [n, d] and labels in host memory, as
   above; gradients in the same shapes, or NULL. Not inside a step of your own. 0 on error. See also
   the end of >>AGREE. */
CTR_API double ctr_loss_infonce_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *q,
                                     const ctr_real *k, int64_t m, const ctr_real *negatives,
                                     double temperature, ctr_real *dq, ctr_real *dk);
CTR_API double ctr_loss_clip_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *image,
                                  const ctr_real *text, double log_scale, const int32_t *ids,
                                  ctr_real *dimage, ctr_real *dtext, ctr_real *dlog_scale);

/* ------------------------------------------------------------------------------------------------
   >>AGREE  losses without a softmax over negatives
   Views that agree while their numbers stay different (BYOL, SimSiam, alignment and uniformity,
   Barlow Twins, VICReg, SwAV), and distances that keep their order (triplets, pairs).
   ---------------------------------------------------------------------------------------------- */

/* BYOL's distance (Grill et al., 2020): mean of |p/|p| - z/|z||^2 = 2 - 2 cos(p_i, z_i) over the
   rows of p, z [n, d]. No gradient flows into z: the operation detaches it. Range 0..4, chance 2;
   a row of zeros has cosine 0. BYOL adds both directions (0..8). */
CTR_API ctr_tensor *ctr_loss_regression(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z);
/* SimSiam's (Chen and He, 2021): mean of -cos(p_i, z_i), z detached here, too. Range -1..1, chance
   0. SimSiam takes the mean of both directions. */
CTR_API ctr_tensor *ctr_loss_negative_cosine(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z);

/* Alignment and uniformity as losses (Wang and Isola, 2020), rows normalised inside:
     alignment  = mean of |x_i - y_i|^alpha over the rows of x, y [n, d];  0..2^alpha, alpha 2
     uniformity = ln of the mean over i < j of exp(-t |x_i - x_j|^2), x [n, d], n >= 2;  -4t..0,
                  t 2, at most 20
   Rows that know nothing have an alignment of about 2 (alpha 2) and, spread evenly, a uniformity of
   about -2t + 2 t^2 / d. The authors train alignment(x, y) + (uniformity(x) + uniformity(y)) / 2,
   or with other weights. */
CTR_API ctr_tensor *ctr_loss_alignment(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y, double alpha);
CTR_API ctr_tensor *ctr_loss_uniformity(ctr_ctx *ctx, ctr_tensor *x, double t);

/* Barlow Twins (Zbontar et al., 2021): the cross-correlation of two views is to be the identity.
     c = a^T b / n,  a and b = z1 and z2 [n, d], each with its columns brought to mean 0, variance 1
         (biased variance, eps 1e-5: the authors' batch norm without weights);  n >= 2
     loss = sum_j (c_jj - 1)^2 + lambda sum over j != k of c_jk^2
   lambda >= 0, the authors' 0.0051. They do not scale it; solo-learn and VISSL multiply by 0.024
   (0.1 for CIFAR-10): ctr_scale does. Chance: independent columns, whose c^2 is 1 / (n - 1). */
CTR_API ctr_tensor *ctr_loss_barlow_twins(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2,
                                          double lambda);
CTR_API double ctr_loss_barlow_twins_chance(int64_t n, int64_t d, double lambda);

/* VICReg (Bardes et al., 2022), z1, z2 [n, d], n >= 2, rows as they are:
     loss = sim mean (z1 - z2)^2 + var (v(z1) + v(z2)) / 2 + cov (c(z1) + c(z2))
     v(z) = mean over columns of max(0, 1 - sqrt(variance + 1e-4))       (variance with n - 1)
     c(z) = sum over j != k of C_jk^2 / d, C the covariance with n - 1
   As the authors' code: the variance is halved, the covariance is not (solo-learn halves neither).
   Weights >= 0, theirs 25, 25, 1. No chance value; all rows on one point: 0.99 var. */
CTR_API ctr_tensor *ctr_loss_vicreg(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2, double sim,
                                    double var, double cov);

/* SwAV (Caron et al., 2020), swapped prediction with any number of crops:
     loss = mean over the views a that have codes of the mean over the other views v of
            -1/n sum_i sum_k codes_a,ik log softmax(scores_v,i / T)_k
   scores [views n, k]: similarities to the k prototypes, all of view 1, then all of view 2, ...;
   codes [assign n, k]: rows that sum to 1 for the first `assign` views (2 in the paper), no
   gradient. 1 <= assign <= views, views >= 2; T > 0, theirs 0.1. Range 0..; chance, and what a
   collapse stays at: ln k. */
CTR_API ctr_tensor *ctr_loss_swav(ctr_ctx *ctx, ctr_tensor *scores, int views, ctr_tensor *codes,
                                  int assign, double temperature);
CTR_API double ctr_loss_swav_chance(int64_t k);

/* Which triplets (anchor a, positive p of its label, negative n of another) count. */
typedef enum ctr_mining {
    CTR_MINE_ALL,       /* every one */
    CTR_MINE_HARD,      /* an anchor's farthest positive, nearest negative (Hermans et al., 2017) */
    CTR_MINE_SEMI_HARD, /* of each (a, p) the nearest n with d_ap < d_an < d_ap + margin, if any */
    CTR_MINE_RANDOM     /* of each (a, p) any n with d_an < d_ap + margin, if any */
} ctr_mining;

typedef struct ctr_triplet_config {
    double margin;          /* default 0.2, >= 0 */
    ctr_mining mining;      /* default CTR_MINE_SEMI_HARD, FaceNet's; davidsandberg's has RANDOM */
    int squared;            /* default 1: squared distances, as FaceNet; 0: plain ones */
    int normalize;          /* default 1: rows become unit rows first */
    int soft;               /* default 0; 1: ln(1 + exp(d_ap - d_an)) for max(0, ..), without the
                               margin (Hermans et al.; pytorch-metric-learning leaves it in) */
    int mean_active;        /* default 0: mean over triplets that count; 1: over those above 0 */
} ctr_triplet_config;
CTR_API ctr_triplet_config ctr_triplet_default(void);
CTR_API void ctr_triplet_config_init(ctr_triplet_config *config); /* the same into a struct */

/* Triplet loss (Schroff et al., 2015): mean of max(0, d_ap - d_an + margin). z [m, d]; labels [m]
   in host memory, -1 takes no part; config NULL: the defaults. No triplet: exactly 0, gradient 0.
   *active (or NULL): share of triplets with a loss above 0 (ALL, HARD; soft: with d_ap > d_an), or
   of pairs (a, p) that found a negative. RANDOM draws from the context's seed and ctr_draws_at.
   chance: what embeddings on one point have, the margin or ln 2. SEMI_HARD picks among what still
   violates the margin, so its loss stays within 0..margin however good they get: watch active. */
CTR_API ctr_tensor *ctr_loss_triplet(ctr_ctx *ctx, ctr_tensor *z, const int32_t *labels,
                                     const ctr_triplet_config *config, double *active);
CTR_API double ctr_loss_triplet_chance(const ctr_triplet_config *config);

/* The contrastive loss of pairs (Hadsell et al., 2006): with D = |z1_i - z2_i|
     mean of  D^2 / 2 where same[i] is 1,  max(0, margin - D)^2 / 2 where it is 0
   z1, z2 [n, d], rows as they are; same [n] in host memory; margin > 0, often 1. The gradient of
   D = 0 is 0. On one point: margin^2 / 2 times the share of zeros. */
CTR_API ctr_tensor *ctr_loss_siamese(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2,
                                     const int32_t *same, double margin);

/* For arrays of your own, as ctr_loss_infonce_flat. */
CTR_API double ctr_loss_barlow_twins_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z1,
                                          const ctr_real *z2, double lambda, ctr_real *dz1,
                                          ctr_real *dz2);
CTR_API double ctr_loss_vicreg_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z1,
                                    const ctr_real *z2, double sim, double var, double cov,
                                    ctr_real *dz1, ctr_real *dz2);
CTR_API double ctr_loss_triplet_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z,
                                     const int32_t *labels, const ctr_triplet_config *config,
                                     ctr_real *dz);

/* ------------------------------------------------------------------------------------------------
   >>HEALTH  is the embedding alive?
   Numbers for a report, from one batch of embeddings in host memory. Nothing here trains.
   ---------------------------------------------------------------------------------------------- */

typedef enum ctr_verdict {
    CTR_HEALTH_UNKNOWN = 0, /* fewer than two images: nothing can be said */
    CTR_HEALTH_GOOD,
    CTR_HEALTH_NARROW,      /* effective rank below 2 although 8 or more were possible */
    CTR_HEALTH_COLLAPSED    /* std below a twentieth of its reference: all points are about one */
} ctr_verdict;

/* All of it is about unit rows: each row divided by its length first, a zero row stays zero.
   What cannot be measured is 0, except false_negatives. */
typedef struct ctr_health {
    int64_t rows, d, zero_rows;
    double std;             /* mean over the dimensions of the std over the rows (divisor: rows) */
    double std_reference;   /* 1 / sqrt(d): of rows spread evenly over the sphere, the most */
    double rank;            /* effective rank (tr C)^2 / |C|^2 of the rows' covariance C */
    double rank_cap;        /* min(rows - 1, d), the most that it can be */
    double cosine;          /* mean cosine of two different rows */
    double alignment;       /* mean |x - y|^2 of positive pairs (Wang and Isola, 2020), 0..4 */
    double uniformity;      /* ln mean exp(-2 |x - y|^2) over different rows (same), -8..0 */
    double positive;        /* mean cosine of positive pairs: views of one image */
    double negative;        /* mean cosine of pairs from different images */
    double false_negatives; /* share of those pairs that have one label, 0..1; -1 without labels */
    ctr_verdict verdict;
} ctr_health;

/* z [views * n, d]: all of view 1, then all of view 2, ...; labels [n] or NULL, -1 = unlabelled
   (such images take no part in false_negatives). views >= 1; with 1 there are no positive pairs.
   Costs (views n)^2 d: give it a batch, not a data set. Returns 1, or 0 with an error: shape,
   or CTR_E_NUMBER naming the first row that is not finite. */
CTR_API int ctr_health_measure(ctr_ctx *ctx, int64_t n, int views, int64_t d, const ctr_real *z,
                               const int32_t *labels, ctr_health *out);
CTR_API const char *ctr_verdict_name(ctr_verdict verdict); /* "good", "collapsed", ... */
/* One line into text[size], cut if size is too small: 200 characters hold it. */
CTR_API void ctr_health_describe(const ctr_health *health, char *text, size_t size);


/* ------------------------------------------------------------------------------------------------
   >>METHOD  training methods

   A method is a block: a config with the paper's defaults, its networks, and a handful of functions
   that the step, the driver, the checkpoint and the evaluation call without knowing the method. A
   step is [target ->] embed -> loss -> backward -> commit; ctr_method_step spells it out.
   To add one: a struct whose first member is ctr_method, a constructor that fills the functions in,
   a config, a test and an example; nothing else in the library changes.
   ---------------------------------------------------------------------------------------------- */

/* What a step has to say. Numbers that were not measured are -1. */
typedef struct ctr_report {
    int64_t epoch, batch, step;       /* counted from 0 */
    double lr;
    double loss, chance;              /* and the loss of embeddings that know nothing */
    double accuracy;                  /* share of anchors whose nearest other row is a positive */
    double positive, negative;        /* mean cosine of positives and of the others */
    double std, std_reference;        /* of unit embeddings; what an even spread would have */
    double rank;                      /* effective rank, measured once an epoch by the driver */
    double active;                    /* share of anchors that have a positive; MoCo: of the queue's
                                         rows, those that are keys; SwAV: of the prototypes, those
                                         that are some crop's largest code */
    double residual;                  /* of SwAV's codes: see ctr_sinkhorn_run */
    double false_negatives;           /* share of negatives with the anchor's label; needs labels */
    double data_seconds, seconds;     /* waiting for data, and all of the step */
} ctr_report;

/* Walks over every piece of state once: to save, load, hash, count or copy it. */
typedef struct ctr_visitor {
    void *user;
    void (*tensor_fn)(void *user, const char *name, ctr_tensor *t, int conv); /* conv: HWIO */
    void (*number_fn)(void *user, const char *name, int64_t *value);
} ctr_visitor;

/* The rate for a batch by a rule, base being that for 256 images (Goyal et al., 2017). */
typedef enum ctr_lr_rule { CTR_LR_FIXED, CTR_LR_LINEAR, CTR_LR_SQRT } ctr_lr_rule;
CTR_API double ctr_lr_scaled(double base, ctr_lr_rule rule, int64_t batch);

/* What is known of the whole run, for what moves by a schedule of its own (a momentum encoder, a
   predictor's rate). ctr_fit fills it in; a loop of your own may. 0: not known. */
typedef struct ctr_run {
    int64_t images, steps;            /* of the data set; of all epochs together */
    double lr;                        /* before warm-up and schedule */
} ctr_run;

typedef struct ctr_method ctr_method;
struct ctr_method {
    const char *name;                 /* "simclr" */
    ctr_ctx *ctx;
    int views;                        /* of each image, in all groups together */
    const ctr_aug_config *augs;       /* [views] */
    /* Views of several sizes: what the method takes (pixels NULL), and this step's groups as
       tensors, of which embed_fn and target_fn get the first. groups 0: all views have one size. */
    int groups;
    const ctr_view_group *group;      /* [groups] */
    ctr_tensor *crops[CTR_MAX_VIEWS]; /* [groups]: [views * n, h, w, c] each */
    int64_t features, dim;            /* numbers in a representation, in an embedding */
    double lr; /* what the driver takes if it is given none, for a batch ... */
    ctr_lr_rule lr_rule;              /* ... of 256, and for others by this rule */
    ctr_run run;
    ctr_vars *encoder;                /* the variables of what is kept after training */
    /* what is kept after training: x [n, h, w, c] -> [n, features] */
    ctr_tensor *(*represent_fn)(ctr_method *method, ctr_tensor *x, ctr_norm_mode mode);
    /* NULL, or what the loss compares with and no gradient flows into: x as below -> [rows, dim].
       It is apart from embed_fn because the step calls it first and unrecorded, when the slab is
       empty: a second network then costs the memory of a block or two. */
    ctr_tensor *(*target_fn)(ctr_method *method, ctr_tensor *x);
    ctr_tensor *target;               /* of this step: what target_fn returned */
    /* what the loss takes: x [views * n, h, w, c] -> [views * n, dim], all groups' views in order
       (MoCo: [n, dim] of view 1) */
    ctr_tensor *(*embed_fn)(ctr_method *method, ctr_tensor *x);
    /* fills loss, accuracy and the like in; the scalar to minimise */
    ctr_tensor *(*loss_fn)(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                           ctr_report *report);
    /* the optimiser and all that moves with it; must not allocate */
    void (*commit_fn)(ctr_method *method, double lr);
    void (*check_fn)(ctr_method *method);       /* an error if a gradient is not finite */
    /* NULL, or what comes before an epoch: a pass over the images, clustering. 1, or 0 */
    int (*begin_fn)(ctr_method *method, const ctr_loader *loader);
    void (*visit_fn)(ctr_method *method, const ctr_visitor *visitor);
    void (*describe_fn)(ctr_method *method, char *text, size_t size); /* architecture, one line */
    void (*destroy_fn)(ctr_method *method);
};

/* One training step. Fills *report in (may be NULL). Returns 1; or 0 with an error, among them
   CTR_E_NUMBER for a batch, loss or gradient that is not finite. After an error the method is as it
   was before; clear the error and go on, or stop. */
CTR_API int ctr_method_step(ctr_method *method, const ctr_batch *batch, double lr,
                            ctr_report *report);
/* What a method does before the first step of each epoch (DeepCluster clusters its images then);
   most do nothing. ctr_fit calls it, a loop of your own has to. 1; or 0 with an error, and the
   method is as it was. */
CTR_API int ctr_method_begin(ctr_method *method, const ctr_loader *loader);
CTR_API void ctr_method_destroy(ctr_method *method); /* NULL is allowed */
CTR_API void ctr_method_visit(ctr_method *method, const ctr_visitor *visitor);
/* A hash of the whole state: equal states, equal numbers. */
CTR_API uint64_t ctr_method_hash(ctr_method *method);
/* Bytes of the slab that a step with a batch of n images of [h, w, c] needs; further groups of
   views have the sizes that the method's augmentations give them. */
CTR_API size_t ctr_method_plan(ctr_method *method, int64_t n, int64_t h, int64_t w, int64_t c);

/* Representations of n images x [n, h, w, c] (host memory, as augmented: floats) in evaluation
   mode, in chunks of `chunk` images: out [n, features]. Changes nothing in the method. 1, or 0. */
CTR_API int ctr_method_represent(ctr_method *method, int64_t n, int64_t h, int64_t w, int64_t c,
                                 const ctr_real *x, int64_t chunk, ctr_real *out);
/* Representations of a whole dataset through one augmentation (usually ctr_aug_none_default), in
   its order: out [count, features], labels [count] or NULL. seed: of the views, if aug is random.
   Without a method (NULL) the pixels themselves: out [count, h * w * c]. 1, or 0. */
CTR_API int ctr_method_represent_dataset(ctr_ctx *ctx, ctr_method *method,
                                         const ctr_dataset *dataset, const ctr_aug_config *aug,
                                         uint64_t seed, ctr_real *out, int32_t *labels);

/* SimCLR (Chen et al., 2020): two views of each image; encoder and projection head are trained so
   that the views of one image agree and those of different images in the batch do not. */
typedef struct ctr_simclr_config {
    ctr_resnet_config encoder;    /* default ResNet-18, small stem up to 64 pixels */
    int proj_layers;              /* default 2; SimCLR v2: 3 */
    int64_t proj_hidden;          /* default 0: as many as the encoder's features */
    int64_t proj_dim;             /* default 128 */
    double temperature;           /* default 0.5 (the authors' for CIFAR-10; ImageNet 0.1) */
    int views;                    /* default 2 */
    int supervised;               /* default 0; 1: SupCon by the batch's labels */
    int split_norm; /* default 0: batch norm over all views jointly; 1: view by view */
    ctr_aug_config aug;           /* of every view; default ctr_aug_simclr_default(32) */
    ctr_optim_config optim;       /* default LARS, decay 1e-4 */
    double lr;                    /* for a batch of 256, default 1 (their README for CIFAR-10) */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_simclr_config;
CTR_API ctr_simclr_config ctr_simclr_default(void);
CTR_API void ctr_simclr_config_init(ctr_simclr_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_simclr_create(ctr_ctx *ctx, const ctr_simclr_config *config);

/* Barlow Twins (Zbontar et al., 2021): each number of an embedding is to be the same in both views
   and to tell what no other number tells. No negatives, no target, both views get gradients. */
typedef struct ctr_barlow_twins_config {
    ctr_resnet_config encoder;    /* default ResNet-18, zero_init */
    int proj_layers;              /* default 3 */
    int64_t proj_dim;             /* default 8192, hidden layers as well */
    double lambda;                /* of what is off the diagonal, at least 0, default 0.0051 */
    ctr_aug_config aug[2];        /* default ctr_aug_byol_default(32, view) */
    ctr_optim_config optim;       /* default LARS, decay 1e-6, bias_rate 0.024 (0.0048 of 0.2) */
    double lr;                    /* for a batch of 256, default 0.2 */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_barlow_twins_config;
CTR_API ctr_barlow_twins_config ctr_barlow_twins_default(void);
CTR_API void ctr_barlow_twins_config_init(ctr_barlow_twins_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_barlow_twins_create(ctr_ctx *ctx, const ctr_barlow_twins_config *config);

/* VICReg (Bardes et al., 2022): views agree (invariance), every number varies over the batch
   (variance), no two of them together (covariance). No negatives, no target. */
typedef struct ctr_vicreg_config {
    ctr_resnet_config encoder;    /* default ResNet-18, zero_init */
    int proj_layers;              /* default 3 */
    int64_t proj_dim;             /* default 8192, hidden layers as well */
    double invariance, variance, covariance; /* weights, at least 0, default 25, 25, 1 */
    ctr_aug_config aug[2];        /* default BYOL's, both blurred with p 0.5 (above 32 pixels) and
                                     solarized with p 0.1 */
    ctr_optim_config optim;       /* default LARS, decay 1e-6 */
    double lr;                    /* for a batch of 256, default 0.2 */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_vicreg_config;
CTR_API ctr_vicreg_config ctr_vicreg_default(void);
CTR_API void ctr_vicreg_config_init(ctr_vicreg_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_vicreg_create(ctr_ctx *ctx, const ctr_vicreg_config *config);

/* ------------------------------------------------------------------------------------------------
   >>TEACHER  methods that learn from a target without gradient: MoCo, BYOL, SimSiam

   The target (momentum encoder, teacher) is a second network of the same shape, "target.*" in
   files. It starts as a copy, takes no gradient, normalises by its own batches with running
   statistics of its own, and follows after each step of the optimiser:
     target = m target + (1 - m) online
   ---------------------------------------------------------------------------------------------- */

/* A momentum that rises by half a cosine from base at step 0 to 1 at step total (tau of Grill et
   al., 2020, m of Chen et al., 2021). total 0: base. */
CTR_API double ctr_momentum_cosine(double base, int64_t step, int64_t total);

/* The newest keys of batches gone by, first in, first out (He et al., 2020). */
typedef struct ctr_queue {
    ctr_tensor *rows;      /* [size, dim], unit rows: random ones until keys take their place */
    ctr_tensor *labels;    /* [size], of the keys' images as numbers; -1: none known */
    int64_t pushed;        /* keys so far: key i lies in row i % size */
} ctr_queue;
/* The tensors become variables of vars, named prefix + "rows" and prefix + "labels"; pushed is the
   caller's to save. size, dim >= 1. */
CTR_API void ctr_queue_init(ctr_ctx *ctx, ctr_queue *queue, ctr_vars *vars, const char *prefix,
                            int64_t size, int64_t dim);
/* keys [n, dim], unit rows; labels [n] host memory or NULL. Any n: of more than size rows the last
   ones stay. Allocates nothing. */
CTR_API void ctr_queue_push(ctr_ctx *ctx, ctr_queue *queue, const ctr_tensor *keys,
                            const int32_t *labels);
CTR_API int64_t ctr_queue_filled(const ctr_queue *queue); /* rows that are keys */
/* Share of the pairs of an image and a key, both labelled, with one label; -1: no such pair. */
CTR_API double ctr_queue_false_negatives(ctr_ctx *ctx, const ctr_queue *queue, int64_t n,
                                         const int32_t *labels);

/* MoCo, momentum contrast. Version 1 (He et al., 2020): the query of view 1 must find the momentum
   encoder's key of view 2 among a queue of older keys. Version 2 (Chen et al., 2020): a head of two
   layers, more augmentation, T 0.2. Version 3 (Chen, Xie, He, 2021): a predictor, both directions,
   the batch's other keys instead of the queue, the loss times 2 T. */
typedef struct ctr_moco_config {
    int version;                  /* 1..3 */
    ctr_resnet_config encoder;    /* default ResNet-18; version 3: zero_init */
    int64_t proj_hidden;          /* version 2: default 0, the encoder's features; 3: 4096 */
    int64_t proj_dim;             /* default 128; version 3: 256 */
    int64_t pred_hidden;          /* version 3: 4096 */
    double temperature;           /* default 0.07, 0.2, 1 */
    double momentum;              /* of the target, 0..1, default 0.999; version 3: 0.99 */
    int momentum_cosine;          /* 1: it rises to 1 with the run; default 0; version 3: 1 */
    int64_t queue;                /* keys, default 65536; any batch size fits; version 3 has none */
    int symmetric;                /* versions 1, 2: 1 adds the loss of the views exchanged; default
                                     0 */
    /* Batch norm leaks who belongs together: versions 1, 2 normalise in groups, as on so many GPUs,
       and shuffle the keys' batch so that a key's group is not its query's. */
    int split_norm;               /* groups, default 8 (must divide the batch); version 3: 1 */
    int shuffle;                  /* default 1; version 3: 0 */
    int average_buffers;          /* default 0; 1: the target's running statistics follow as well */
    ctr_aug_config aug[2];        /* default ctr_aug_moco_default(32, version, view) */
    ctr_optim_config optim;       /* default SGD, decay 1e-4 on all; version 3: LARS, 1e-6 */
    double lr;                    /* for a batch of 256, default 0.03; version 3: 0.3 */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_moco_config;
CTR_API ctr_moco_config ctr_moco_default(int version);
CTR_API void ctr_moco_config_init(ctr_moco_config *config, int version);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_moco_create(ctr_ctx *ctx, const ctr_moco_config *config);

/* BYOL, bootstrap your own latent (Grill et al., 2020): the online network predicts what the target
   makes of the other view. No negatives. The loss is the sum of both directions, 0..8. */
typedef struct ctr_byol_config {
    ctr_resnet_config encoder;    /* default ResNet-18 */
    int64_t proj_hidden;          /* default 4096 */
    int64_t proj_dim;             /* default 256 */
    int64_t pred_hidden;          /* default 4096 */
    double momentum;              /* tau, 0..1, default 0.996 (1000 epochs; 300: 0.99, 40: 0.97) */
    int momentum_cosine;          /* default 1: rises to 1 with the run */
    int own_target;               /* default 0; 1: the target starts with weights of its own, as in
                                     the authors' program */
    int average_buffers;          /* default 0; 1: the target's running statistics follow as well */
    ctr_aug_config aug[2];        /* default ctr_aug_byol_default(32, view) */
    ctr_optim_config optim;       /* default LARS, decay 1.5e-6 */
    double lr;                    /* for a batch of 256, default 0.2 (1000 epochs; 300: 0.3) */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_byol_config;
CTR_API ctr_byol_config ctr_byol_default(void);
CTR_API void ctr_byol_config_init(ctr_byol_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_byol_create(ctr_ctx *ctx, const ctr_byol_config *config);

/* SimSiam (Chen & He, 2021): BYOL without a target network: each view predicts the other's
   projection, which is held fixed. The loss is the mean of both directions, -1..1; chance 0. */
typedef struct ctr_simsiam_config {
    ctr_resnet_config encoder;    /* default ResNet-18, zero_init */
    int proj_layers;              /* default 3 (their CIFAR-10: 2) */
    int64_t proj_dim;             /* default 2048, hidden layers as well */
    int64_t pred_hidden;          /* default 512 */
    int fixed_predictor;          /* default 1: the predictor's rate stays run.lr (if known) */
    ctr_aug_config aug;           /* of both views, default ctr_aug_moco_default(32, 2, 0) */
    ctr_optim_config optim;       /* default SGD, decay 1e-4 on all */
    double lr;                    /* for a batch of 256, default 0.05 (their CIFAR-10: 0.03) */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_simsiam_config;
CTR_API ctr_simsiam_config ctr_simsiam_default(void);
CTR_API void ctr_simsiam_config_init(ctr_simsiam_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_simsiam_create(ctr_ctx *ctx, const ctr_simsiam_config *config);

/* ------------------------------------------------------------------------------------------------
   >>PROTOTYPE  methods that learn clusters on the way: SwAV, DeepCluster v2

   Prototypes are unit vectors [k, dim], what an embedding may belong to: "prototypes.weight" in
   files ("prototypes1.weight", ... with several heads), of kind CTR_KIND_PROTOTYPE. Crops come in
   two sizes (multi-crop): two large ones, and small ones that see a part of the image. Each size
   passes the encoder by itself, with batch norm statistics of its own; global pooling makes them
   alike, and the projector sees all crops at once.
   ---------------------------------------------------------------------------------------------- */

/* SwAV, swapping assignments between views (Caron et al., 2020): the batch's large crops are
   assigned to the prototypes in equal shares (ctr_sinkhorn_run), and each crop has to predict the
   assignment of the other large crop, or of both. No negatives; the equal shares keep the
   prototypes apart. The loss is ctr_loss_swav; chance, and what a collapse stays at, is ln k. */
typedef struct ctr_swav_config {
    ctr_resnet_config encoder;    /* default ResNet-18 */
    int64_t proj_hidden;          /* default 2048 */
    int64_t proj_dim;             /* default 128 */
    int64_t prototypes;           /* k, at least 2, default 3000 (for ImageNet's 1000 classes) */
    double temperature;           /* default 0.1 */
    ctr_sinkhorn_config sinkhorn; /* default epsilon 0.05, 3 iterations */
    int small_views;              /* beside the two large ones, 0..62, default 6 */
    int64_t queue;                /* older embeddings of each large crop that are assigned together
                                     with the batch's, once there are so many: for batches that are
                                     small beside k. Default 0; the authors at 256 images: 3840 */
    int64_t queue_start_epoch;    /* the first epoch, from 0, that fills the queue; default 15 */
    int64_t freeze_prototypes_steps; /* first steps that do not train the prototypes; default 313,
                                     ImageNet's first epoch at 4096 images (at 256: 5005) */
    ctr_aug_config aug, small_aug; /* default ctr_aug_swav_default(32, 0) and (32, 1) */
    ctr_optim_config optim;       /* default LARS in the form CTR_LARS_LARC, decay 1e-6, both on
                                     every variable */
    double lr;                    /* for a batch of 256, default 0.3: 4.8 at 4096 images, down to a
                                     thousandth (the authors at 256 images: 0.6) */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_swav_config;
CTR_API ctr_swav_config ctr_swav_default(void);
CTR_API void ctr_swav_config_init(ctr_swav_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. */
CTR_API ctr_method *ctr_swav_create(ctr_ctx *ctx, const ctr_swav_config *config);

/* DeepCluster v2 (Caron et al., 2020, in the same paper; v1 2018): before each epoch the embeddings
   that a memory bank holds of all images are clustered by spherical k-means; each crop then has to
   predict its image's cluster, the prototypes being the centroids. Several heads cluster by turns
   the bank of large crop 1 and that of large crop 2. The bank is filled by a pass over the images
   before the first epoch (here with the batches' own statistics, leaving the running ones alone),
   later by the steps. Empty clusters are refilled (ctr_kmeans_run); the authors leave them. Loss:
   cross entropy, mean over crops and heads; chance ln k. */
typedef struct ctr_deepcluster_v2_config {
    ctr_resnet_config encoder;    /* default ResNet-18 */
    int64_t proj_hidden;          /* default 2048 */
    int64_t proj_dim;             /* default 128 */
    int64_t images;               /* in the data set, at least prototypes. No default */
    int64_t prototypes;           /* k of each head, at least 2, default 3000 */
    int heads;                    /* 1..8, default 3 */
    int iterations;               /* of k-means, at least 1, default 10 */
    double temperature;           /* default 0.1 */
    int small_views;              /* beside the two large ones, 0..62, default 6 */
    int64_t freeze_prototypes_steps; /* first steps that do not train them; default 300000: all */
    ctr_aug_config aug, small_aug; /* default ctr_aug_swav_default(32, 0) and (32, 1) */
    ctr_optim_config optim;       /* as SwAV's */
    double lr;                    /* for a batch of 256, default 0.3 */
    ctr_lr_rule lr_rule;          /* default CTR_LR_LINEAR */
} ctr_deepcluster_v2_config;
CTR_API ctr_deepcluster_v2_config ctr_deepcluster_v2_default(void);
CTR_API void ctr_deepcluster_v2_config_init(ctr_deepcluster_v2_config *config);
/* NULL on error. ctr_method_destroy() gives all of it back. Its steps need batches with index, and
   ctr_method_begin() before each epoch. */
CTR_API ctr_method *ctr_deepcluster_v2_create(ctr_ctx *ctx,
                                              const ctr_deepcluster_v2_config *config);

/* ------------------------------------------------------------------------------------------------
   >>EVAL  what the embeddings are worth: k-NN, linear probe, retrieval
   Everything takes host memory that stays the caller's, gives the same bits for any number of
   threads, and leaves nothing behind. Functions return 1, or 0 after recording an error.
   Evaluate on features of the backbone, in evaluation mode, unless you know why not.
   ---------------------------------------------------------------------------------------------- */

/* n points of d numbers. A label of -1 means unlabelled; labels NULL: all of them are. */
typedef struct ctr_points {
    int64_t n, d;
    const ctr_real *x;       /* [n, d], row-major, finite */
    const int32_t *labels;   /* [n] or NULL: -1, or 0..CTR_MAX_CLASSES - 1 */
} ctr_points;

/* The same as a struct in one call. */
CTR_API ctr_points ctr_points_make(int64_t n, int64_t d, const ctr_real *x, const int32_t *labels);

/* The k points of data nearest to each query by cosine, nearest first; of equals the lower index
   first. queries NULL: each point of data among the others, itself left out by its index.
   Writes index [queries, k] and similarity [queries, k] (either may be NULL). Returns how many each
   query got, min(k, data->n) or min(k, data->n - 1); slots beyond have index -1. 0 on an error or
   if there is nothing to find. A zero row has cosine 0 with everything. */
CTR_API int64_t ctr_neighbors_find(ctr_ctx *ctx, const ctr_points *data, const ctr_points *queries,
                                   int64_t k, int64_t *index, ctr_real *similarity);

/* Weighted k-NN classifier (Wu et al., 2018): the k nearest labelled training points by cosine s
   vote exp(s / temperature) for their class; the largest sum wins, of equals the lower class. */
typedef struct ctr_knn_config {
    int64_t k;           /* default 0: 200, or 20 with fewer than 10,000 labelled points */
    double temperature;  /* default 0.1 */
} ctr_knn_config;

typedef struct ctr_knn_result {
    double top1;              /* correct / counted, 0..1; 0 if nothing counts */
    int64_t correct, counted; /* only labelled test points count */
    int64_t voters, k;        /* labelled training points, and how many of them voted */
    int classes;              /* 1 + the largest training label */
    char text[160];           /* all this in one line */
} ctr_knn_result;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_knn_config ctr_knn_config_default(void);
CTR_API void ctr_knn_config_init(ctr_knn_config *config);

/* config NULL: the defaults. test NULL: leave one out, each training point judged by the others.
   predicted [tested points] or NULL; classes for unlabelled points too. Needs one labelled training
   point. Memory: tiles of 512 x 1024 similarities, never the whole matrix. */
CTR_API int ctr_knn_classify(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                             const ctr_knn_config *config, int32_t *predicted, ctr_knn_result *out);

/* Retrieval from lists of neighbours, relevant = same label. Queries without a label, or with
   nothing relevant in the data, are left out. */
typedef struct ctr_retrieval {
    int64_t queries;      /* that count */
    double recall[4];     /* share with a relevant one among the first 1, 5, 10, k */
    double map;           /* mean of 1/min(R, k) sum over relevant ranks i <= k of P(i), with R the
                             relevant points and P(i) the precision of the first i; the usual mean
                             average precision if k covers the data */
    double map_r;         /* the same cut at rank R, divided by R (Musgrave et al., 2020) */
    double r_precision;   /* precision at rank R */
    double mrr;           /* mean of 1 / rank of the first relevant one, 0 beyond k */
} ctr_retrieval;

/* index [n, k] as ctr_neighbors_find wrote it, query_labels [n]; data_labels [data_n] of what the
   indices mean. self: query i is point i of the data and is not relevant to itself.
   map_r and r_precision take ranks beyond k for misses: give k >= the largest class. */
CTR_API int ctr_retrieval_measure(ctr_ctx *ctx, int64_t n, int64_t k, const int64_t *index,
                                  const int32_t *query_labels, int64_t data_n,
                                  const int32_t *data_labels, int self, ctr_retrieval *out);

/* Linear probe: multinomial logistic regression on standardised features,
     min over W, b of  (1/n) sum_i cross entropy(W x_i + b, y_i) + (l2 / 2) |W|^2,
   solved to convergence (L-BFGS, all points at once: the problem is convex, so there is no learning
   rate to choose). Each feature has the training points' mean removed and is divided by their
   standard deviation; constant features drop out. l2 comes from a grid: fitted on one part of the
   training points, judged on the held-out rest; the most accurate wins, of equals the one with the
   lower cross entropy, then the stronger. Then all training points are fitted with it. The test
   points choose nothing. */
typedef struct ctr_probe_config {
    int64_t labels_per_class; /* default 0: all; 10: ten labels a class, drawn by seed */
    int l2_count;             /* default 6; 1: no held-out part, l2[0] is taken */
    double l2[16];            /* default 1, 0.1, ... 1e-5; any order, each > 0 */
    double held_out;          /* share of the training points, 0.02..0.5, default 0.1; by class */
    int folds;                /* how many such parts are held out in turn; default 0: one, or all
                                 1/held_out of them when fewer than 1,000 points are labelled */
    int iterations;           /* the most for one fit, default 1000 */
    double tolerance;         /* default 1e-6: a fit ends when its loss seems to lie within this
                                 share of the least (half of gradient times quasi-Newton step) */
    uint64_t seed;            /* of the split and of the labels drawn, default 1 */
} ctr_probe_config;

typedef struct ctr_probe_result {
    double top1;                 /* on the labelled test points, 0..1 */
    int64_t correct, counted;
    double train_top1, train_loss; /* of the final fit; the loss includes the l2 term */
    double l2, held_out_top1;    /* chosen, and how it did on the held-out points (0 if none) */
    int64_t points, held_out;    /* labelled points used; how many were held out in turn */
    int classes, iterations;     /* iterations: of all fits together */
    int converged;               /* did the final fit reach the tolerance? */
    char text[320];              /* all this and every setting in one line */
} ctr_probe_result;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_probe_config ctr_probe_config_default(void);
CTR_API void ctr_probe_config_init(ctr_probe_config *config);

/* config NULL: the defaults. predicted [test->n] or NULL. Memory: a copy of the training points. */
CTR_API int ctr_probe_run(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                          const ctr_probe_config *config, int32_t *predicted,
                          ctr_probe_result *out);

/* matrix [classes, classes]: how often class (row) was predicted as (column). Unlabelled points are
   left out. An error if a label or a prediction is not below classes. */
CTR_API int ctr_confusion_count(ctr_ctx *ctx, int64_t n, const int32_t *labels,
                                const int32_t *predicted, int classes, int64_t *matrix);
/* by_class [classes]: share of each class that was recognised, -1 for a class without points.
   Returns the mean over the classes that have points. */
CTR_API double ctr_confusion_accuracy(int classes, const int64_t *matrix, double *by_class);
/* 95 % interval of a share (Wilson, 1927); 0..1 if total is 0. */
CTR_API void ctr_share_interval(int64_t correct, int64_t total, double *low, double *high);

/* ------------------------------------------------------------------------------------------------
   >>MAP  principal components, and maps of points in the plane
   ---------------------------------------------------------------------------------------------- */

/* Principal components by block power iteration, k = 1..min(d, 128) of them.
   mean [d]; axes [k, d]: unit rows by falling variance, the entry of largest size positive;
   variance [k] with divisor n - 1. Axes beyond the rank of the data are zero, variance 0. mean,
   axes and variance must be given; total (NULL allowed) gets the variance of all d together. */
CTR_API int ctr_pca_fit(ctr_ctx *ctx, const ctr_points *data, int k, ctr_real *mean,
                        ctr_real *axes, double *variance, double *total);
/* out [data->n, k] = (x - mean) axes^T */
CTR_API int ctr_pca_apply(ctr_ctx *ctx, const ctr_points *data, int k, const ctr_real *mean,
                          const ctr_real *axes, ctr_real *out);

/* Exact t-SNE into the plane (van der Maaten and Hinton, 2008), started from the first two
   principal components. Time and memory grow with n^2: made for up to 3,000 points. */
typedef struct ctr_tsne_config {
    double perplexity;       /* 2.., default 30; lowered to (n - 1) / 3 for few points */
    int iterations;          /* default 750 */
    int exaggerated;         /* how many of them with exaggeration and momentum 0.5, default 250 */
    double exaggeration;     /* default 12 */
    double rate;             /* default 0: max(n / (4 exaggeration), 50) (Belkina et al., 2019) */
    int unit_rows;           /* default 1: rows divided by their length first, as for cosine */
} ctr_tsne_config;

/* The defaults: by value, and into a struct of the caller's (for other languages). */
CTR_API ctr_tsne_config ctr_tsne_config_default(void);
CTR_API void ctr_tsne_config_init(ctr_tsne_config *config);

/* out [data->n, 2], mean zero. divergence (NULL allowed) gets KL(P || Q) in nats. Up to 3 points
   are merely projected. n at most 16,384 (1 GB). */
CTR_API int ctr_tsne_map(ctr_ctx *ctx, const ctr_points *data, const ctr_tsne_config *config,
                         ctr_real *out, double *divergence);

/* ------------------------------------------------------------------------------------------------
   >>IO  arrays and tensors in files: npy and safetensors

   Every save goes to "path.tmp" in the same folder, is synced to the disk and then renamed:
   whatever fails (disk full, no permission) and whenever the program is killed, the old file is
   there whole or the new one is. Files hold no clock and no path; equal content makes equal bytes.
   Every load reads the whole file and verifies all of it before it returns: sizes are computed,
   never believed. Numbers in files are little-endian on every machine.
   ---------------------------------------------------------------------------------------------- */

/* Types of numbers in files. The library's own tensors are F32 (F64 in the double build). */
typedef enum ctr_file_dtype {
    CTR_FILE_F32 = 0, CTR_FILE_F64, CTR_FILE_F16, CTR_FILE_BF16, CTR_FILE_I64, CTR_FILE_I32,
    CTR_FILE_I16, CTR_FILE_I8, CTR_FILE_U8, CTR_FILE_BOOL
} ctr_file_dtype;

CTR_API size_t ctr_file_dtype_size(ctr_file_dtype dtype);      /* bytes of one number */
CTR_API const char *ctr_file_dtype_name(ctr_file_dtype dtype); /* "F32", "BF16", ... */

/* An array as numpy.save writes it. Load fills in this struct, its owner is the caller until
   ctr_npy_free(). */
typedef struct ctr_npy {
    ctr_file_dtype dtype;
    int rank;                 /* 0..4 */
    int64_t shape[4];         /* unused ones are 1 */
    int64_t count;            /* numbers: the product of the shape */
    void *data;               /* in this machine's byte order, the last dimension varies fastest */
    size_t held;              /* the library's: size of the block that data is */
} ctr_npy;

/* Writes data (shape[0] x ... numbers of that type; NULL if there are none). BF16 has no npy type.
   Returns 1, or 0 with an error: CTR_E_VALUE, CTR_E_FILE, CTR_E_MEMORY. */
CTR_API int ctr_npy_save(ctr_ctx *ctx, const char *path, ctr_file_dtype dtype, int rank,
                         const int64_t *shape, const void *data);

/* Reads versions 1 to 3, either byte order, C order, at most four dimensions. Returns 1, or 0 with
   an error (CTR_E_FILE, CTR_E_FORMAT, CTR_E_MEMORY) and *out empty. */
CTR_API int ctr_npy_load(ctr_ctx *ctx, const char *path, ctr_npy *out);
CTR_API void ctr_npy_free(ctr_ctx *ctx, ctr_npy *array);

/* One tensor on its way into a file, or a look at one that was read. */
typedef struct ctr_file_tensor {
    const char *name;         /* UTF-8, not empty, unique, not "__metadata__" */
    ctr_file_dtype dtype;
    int rank;                 /* 0..4 */
    int64_t shape[4];
    const void *data;         /* host memory; NULL if there are no numbers */
} ctr_file_tensor;

/* A line of a file's metadata: any UTF-8 strings, keys unique, key "xxh64" reserved. */
typedef struct ctr_file_meta { const char *key, *value; } ctr_file_meta;

/* Writes a safetensors file (github.com/huggingface/safetensors: 8 bytes of header length, a header
   in JSON, the numbers). The metadata gets one more key, "xxh64": the XXH64 hash (seed 0, sixteen
   hexadecimal digits) of the whole file with those digits as zeros. Tensors with wider numbers come
   first in the file, so each is aligned; else the order is the table's.
   Returns 1, or 0 with an error: CTR_E_VALUE, CTR_E_FILE, CTR_E_MEMORY. */
CTR_API int ctr_safetensors_save(ctr_ctx *ctx, const char *path, const ctr_file_tensor *tensors,
                                 int64_t count, const ctr_file_meta *meta, int64_t meta_count);

/* A safetensors file in memory, read and verified as a whole: header, names, types, shapes, offsets
   (no overlap, no gap, nothing left over) and, if its metadata has "xxh64", the checksum. NULL with
   an error: CTR_E_FILE, CTR_E_FORMAT, CTR_E_MEMORY. */
typedef struct ctr_safetensors ctr_safetensors;
CTR_API ctr_safetensors *ctr_safetensors_open(ctr_ctx *ctx, const char *path);
CTR_API void ctr_safetensors_close(ctr_ctx *ctx, ctr_safetensors *file); /* NULL is allowed */

CTR_API int64_t ctr_safetensors_count(const ctr_safetensors *file);
/* The index of a tensor, 0..count - 1 in the header's order; -1 if there is none of that name. */
CTR_API int64_t ctr_safetensors_find(const ctr_safetensors *file, const char *name);
/* Name, type and shape of a tensor. data points at the file's bytes: little-endian, perhaps not
   aligned, the file's own. index must be in range. */
CTR_API ctr_file_tensor ctr_safetensors_info(const ctr_safetensors *file, int64_t index);
/* The value of a metadata key, or NULL; it lives as long as the file. Lines may also be listed. */
CTR_API const char *ctr_safetensors_meta(const ctr_safetensors *file, const char *key);
CTR_API int64_t ctr_safetensors_meta_count(const ctr_safetensors *file);
CTR_API ctr_file_meta ctr_safetensors_meta_at(const ctr_safetensors *file, int64_t index);

/* Copies a tensor's numbers out, converted from whatever type the file has. count must be the
   tensor's. The second takes whole numbers only (I64 to BOOL). 1, or 0 with CTR_E_SHAPE/VALUE. */
CTR_API int ctr_safetensors_read_f32(ctr_ctx *ctx, const ctr_safetensors *file, int64_t index,
                                     ctr_real *to, int64_t count);
CTR_API int ctr_safetensors_read_i64(ctr_ctx *ctx, const ctr_safetensors *file, int64_t index,
                                     int64_t *to, int64_t count);

/* ---- checkpoints: the state of a method in a safetensors file ----------------------------------

   Tensors have torchvision's names and layouts (convolutions as [out, in, kh, kw]); the metadata
   holds the architecture, where training stood, the kernel set and a checksum; no clock and no
   path, so equal
   states make equal files. A load verifies everything before it changes anything.                */

/* Where training stands: the batch that comes next, and the run that this is a position in. */
typedef struct ctr_position {
    int64_t epoch, batch, step;
    int64_t images, batch_size, epochs; /* of the data, of a batch, of the schedule; 0: not known */
    uint64_t seed;
} ctr_position;

/* 1, or 0 with an error; then the file that was there before still is. */
CTR_API int ctr_checkpoint_save(ctr_method *method, const char *path, const ctr_position *position);
/* The method must have the file's architecture: an error tells both. position (or NULL) is filled
   in. Another kernel set than the file's is told to the log: training goes on, with other last
   bits. */
CTR_API int ctr_checkpoint_load(ctr_method *method, const char *path, ctr_position *position);

/* Weights alone, by the names behind the prefix ("encoder."): a torchvision state dict of a ResNet
   in a safetensors file loads. Every variable with the prefix must be there in its shape, else
   nothing changes. Parts that the table does not have (fc.*) and num_batches_tracked are passed
   over; another tensor of a part that it has (a block more in layer1.*) is an error: the network is
   another one. Save writes num_batches_tracked (0) for every norm, as torchvision's files have it.
   1, or 0. */
CTR_API int ctr_weights_load(ctr_ctx *ctx, const char *path, ctr_vars *vars, const char *prefix);
CTR_API int ctr_weights_save(ctr_ctx *ctx, const char *path, const ctr_vars *vars,
                             const char *prefix);

/* ------------------------------------------------------------------------------------------------
   >>FIT  the training driver: loader, method, schedule, checkpoint, callbacks
   ---------------------------------------------------------------------------------------------- */

typedef struct ctr_fit_config {
    int64_t epochs;               /* default 30 */
    int64_t batch;                /* of ctr_fit_images, default 128 */
    ctr_schedule_kind schedule;   /* default cosine to end_lr */
    double lr, end_lr;            /* default 0 (the method's own, for the loader's batch) and 0 */
    double warmup_epochs;         /* default 1 */
    int64_t milestones[4];        /* epochs, for CTR_SCHEDULE_STEPS with gamma 0.1 */
    const char *checkpoint;       /* file to save to, or NULL */
    int64_t save_every;           /* steps; 0 (default): after each epoch; always at the end */
    int resume;                   /* 1: go on from the checkpoint if the file is there */
    void *user;
    /* after each step; not 0: stop here, with a last save. May be NULL */
    int (*step_fn)(void *user, const ctr_report *report);
    /* after each epoch: the last step's report with the effective rank of its embeddings */
    int (*epoch_fn)(void *user, const ctr_report *report);
} ctr_fit_config;
CTR_API ctr_fit_config ctr_fit_default(void);
CTR_API void ctr_fit_config_init(ctr_fit_config *config);
/* Trains from where the loader or the checkpoint stands to the last epoch. Returns the number of
   steps done in this call, or -1 with an error (a checkpoint of another run, a full disk, ...). */
CTR_API int64_t ctr_fit(ctr_method *method, ctr_loader *loader, const ctr_fit_config *config);
/* The same with a loader of its own: shuffled batches of config->batch images (or all there are),
   the context's seed, the last incomplete batch dropped. */
CTR_API int64_t ctr_fit_images(ctr_method *method, const ctr_dataset *images,
                               const ctr_fit_config *config);

/* What representations are worth, in one call: percentages, -1 where the labels do not allow
   one. */
typedef struct ctr_scores {
    double knn;           /* weighted k-NN on the test images; without test images leave-one-out */
    double linear;        /* linear probe */
    double linear_10;     /* linear probe with ten labels a class */
    double knn_views;     /* k-NN of each test image seen through one random view */
} ctr_scores;
/* clean: usually ctr_aug_none_default; view: the random one; test may be NULL. Without a method
   (NULL) the pixels are judged. The training points are always the clean ones. 1, or 0 with an
   error. */
CTR_API int ctr_scores_measure(ctr_ctx *ctx, ctr_method *method, const ctr_dataset *train,
                               const ctr_dataset *test, const ctr_aug_config *clean,
                               const ctr_aug_config *view, uint64_t seed, ctr_scores *out);

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

typedef struct ctr_chunk_ { /* a block of an arena; its memory follows or is the device's */
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
    const struct ctr_file_hook_ *file_hook;  /* of tests; NULL in production */
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

CTR_API ctr_status ctr_error(const ctr_ctx *ctx) { return ctx ? ctx->status : CTR_E_MEMORY; }
CTR_API const char *ctr_error_text(const ctr_ctx *ctx)
{
    return ctx ? ctx->text : "no context: out of memory, or a config out of its range";
}

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
   none. The only allocation that workers may use: the pool's lock keeps the allocator's calls
   apart. */
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

/* ---- the slab
   ---------------------------------------------------------------------------------- */

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

/* ---- copies between memories
   ------------------------------------------------------------------- */

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

/* ---- the context
   ------------------------------------------------------------------------------- */

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
    if (ctx->config.conv == CTR_CONV_WINOGRAD)
        return ctx->kernels == CTR_KERNELS_AVX2 ? "avx2" : "scalar-winograd";
    if (ctx->config.conv == CTR_CONV_DIRECT)
        return ctx->kernels == CTR_KERNELS_AVX2 ? "avx2-direct" : "scalar";
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

/* ---- memory of one call ---- */

/* Blocks of one call, given back together. After a failure every take is NULL and harmless. */
typedef struct ctr_bag_ {
    ctr_ctx *ctx;
    int count;
    void *ptr[24];
    size_t size[24];
} ctr_bag_;

CTR_PRIVATE_ void ctr_bag_open_(ctr_bag_ *bag, ctr_ctx *ctx)
{
    memset(bag, 0, sizeof *bag);
    bag->ctx = ctx;
}

/* a * b items of a size each, aligned, content undefined. NULL once the context has an error. */
CTR_PRIVATE_ void *ctr_bag_take_(ctr_bag_ *bag, int64_t a, int64_t b, size_t each)
{
    size_t size = ctr_size_mul_(bag->ctx, (size_t)a, (size_t)b);
    void *p;
    size = ctr_size_mul_(bag->ctx, size, each);
    if (bag->ctx->status != CTR_OK) return NULL;
    if (bag->count == 24) {
        ctr_fail_(bag->ctx, CTR_E_STATE, "memory: more than 24 blocks in one call");
        return NULL;
    }
    p = ctr_aligned_alloc_(bag->ctx, size);
    if (!p) return NULL;
    bag->ptr[bag->count] = p;
    bag->size[bag->count++] = size;
    return p;
}

CTR_PRIVATE_ ctr_real *ctr_bag_real_(ctr_bag_ *bag, int64_t a, int64_t b)
{
    return (ctr_real *)ctr_bag_take_(bag, a, b, sizeof(ctr_real));
}

CTR_PRIVATE_ double *ctr_bag_double_(ctr_bag_ *bag, int64_t a, int64_t b)
{
    return (double *)ctr_bag_take_(bag, a, b, sizeof(double));
}

CTR_PRIVATE_ int32_t *ctr_bag_i32_(ctr_bag_ *bag, int64_t a, int64_t b)
{
    return (int32_t *)ctr_bag_take_(bag, a, b, sizeof(int32_t));
}

CTR_PRIVATE_ int64_t *ctr_bag_i64_(ctr_bag_ *bag, int64_t a, int64_t b)
{
    return (int64_t *)ctr_bag_take_(bag, a, b, sizeof(int64_t));
}

CTR_PRIVATE_ void ctr_bag_close_(ctr_bag_ *bag)
{
    while (bag->count > 0) {
        bag->count--;
        ctr_aligned_free_(bag->ctx, bag->ptr[bag->count], bag->size[bag->count]);
    }
}

/* ------------------------------------------------------------------------------------------------
   >>THREADS  a pool that belongs to the context

   ctr_parallel_ runs the chunks 0..n-1 of a job on the pool and the caller and returns when all are
   done. How work is cut into chunks must depend on shapes alone; which worker takes which chunk is
   left to chance, so chunks write to disjoint places. Jobs do not nest and never touch the
   context's error: they leave a note in their own slot, and the caller reports the first.
   A second, background job (the loader's) fills the gaps: workers take its chunks when the
   foreground has none; ctr_background_wait_ helps until it is done.
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

/* Is a background job under way that nobody has waited for? */
CTR_PRIVATE_ int ctr_background_busy_(ctr_ctx *ctx)
{
    ctr_pool_ *p = ctx->pool;
    int busy;
    if (!p) return 0;
    pthread_mutex_lock(&p->lock);
    busy = p->back.chunks > 0;
    pthread_mutex_unlock(&p->lock);
    return busy;
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
CTR_PRIVATE_ int ctr_background_busy_(ctr_ctx *ctx) { (void)ctx; return 0; }

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
    for (i = 0; i < rank && at < 60; i++)
        at += (size_t)snprintf(text + at, 60 - at, i ? ", %ld" : "%ld", (long)shape[i]);
    if (at > 60) at = 60; /* what it would have written; absurd shapes are cut */
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
        if (ctx->status != CTR_OK) return 0;
        t->size *= t->shape[i];
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
   >>FILE  whole files, files that are replaced as one, folders, a checksum

   The only place that talks to the file system, so that a test can let its n-th operation fail: the
   context's file_hook, absent in production, is asked before each one. Reading reports into a note
   and may be done by workers; writing belongs to the context's own thread. Paths are passed on byte
   for byte (UTF-8 where the system takes UTF-8).
   ---------------------------------------------------------------------------------------------- */

#if CTR_POSIX_
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#endif

/* fn returns 0 to let the operation happen, or the errno with which it shall fail. */
typedef struct ctr_file_hook_ {
    void *user;
    int (*fn)(void *user, const char *operation, const char *path);
} ctr_file_hook_;

CTR_PRIVATE_ int ctr_file_fault_(ctr_ctx *ctx, const char *operation, const char *path)
{
    const ctr_file_hook_ *hook = ctx->file_hook;
    int fault = hook ? hook->fn(hook->user, operation, path) : 0;
    if (fault) errno = fault;
    return fault != 0;
}

/* The end of a path, short enough that the cause behind it fits into an error's line. */
CTR_PRIVATE_ const char *ctr_file_tail_(const char *path)
{
    size_t n = strlen(path);
    return n > 140 ? path + n - 140 : path;
}

/* ---- growing arrays, sorting ----------------------------------------------------------------- */

/* Makes room for `need` items of `item` bytes; *capacity counts items. 0 after an error. */
CTR_PRIVATE_ int ctr_file_grow_(ctr_ctx *ctx, void **block, size_t *capacity, size_t item,
                                size_t need)
{
    size_t want = *capacity ? *capacity : 16;
    void *fresh;
    if (need <= *capacity) return 1;
    while (want < need && want <= SIZE_MAX / 4) want *= 2;
    if (want < need) want = need;
    fresh = ctr_size_mul_(ctx, want, item) ? ctr_alloc_(ctx, want * item) : NULL;
    if (!fresh) return 0;
    if (*block) memcpy(fresh, *block, *capacity * item);
    ctr_free_host_(ctx, *block, *capacity * item);
    *block = fresh;
    *capacity = want;
    return 1;
}

/* Heap sort of indices: in place, n log n whatever the input, and without the C library's qsort,
   which may take memory of its own. compare is as strcmp. */
typedef int (*ctr_file_compare_fn_)(const void *user, int64_t a, int64_t b);

CTR_PRIVATE_ void ctr_file_sift_(int64_t *order, int64_t root, int64_t n,
                                 ctr_file_compare_fn_ compare, const void *user)
{
    int64_t child, top = order[root];
    while ((child = 2 * root + 1) < n) {
        if (child + 1 < n && compare(user, order[child], order[child + 1]) < 0) child++;
        if (compare(user, top, order[child]) >= 0) break;
        order[root] = order[child];
        root = child;
    }
    order[root] = top;
}

CTR_PRIVATE_ void ctr_file_sort_(int64_t *order, int64_t n, ctr_file_compare_fn_ compare,
                                 const void *user)
{
    int64_t i, t;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n / 2 - 1; i >= 0; i--) ctr_file_sift_(order, i, n, compare, user);
    for (i = n - 1; i > 0; i--) {
        t = order[0];
        order[0] = order[i];
        order[i] = t;
        ctr_file_sift_(order, 0, i, compare, user);
    }
}

/* A list of strings in one block of memory. */
typedef struct ctr_file_names_ {
    char *text;
    size_t used, text_room;
    size_t *at;               /* where string i starts in text */
    size_t count, at_room;
} ctr_file_names_;

CTR_PRIVATE_ const char *ctr_file_name_(const ctr_file_names_ *names, int64_t i)
{
    return names->text + names->at[i];
}

CTR_PRIVATE_ int ctr_file_names_add_(ctr_ctx *ctx, ctr_file_names_ *names, const char *text,
                                     size_t length)
{
    void *block = names->text, *table = names->at;
    int ok = ctr_file_grow_(ctx, &block, &names->text_room, 1, names->used + length + 1);
    names->text = (char *)block;
    ok = ok && ctr_file_grow_(ctx, &table, &names->at_room, sizeof *names->at, names->count + 1);
    names->at = (size_t *)table;
    if (!ok) return 0;
    names->at[names->count++] = names->used;
    memcpy(names->text + names->used, text, length);
    names->text[names->used + length] = 0;
    names->used += length + 1;
    return 1;
}

CTR_PRIVATE_ void ctr_file_names_free_(ctr_ctx *ctx, ctr_file_names_ *names)
{
    ctr_free_host_(ctx, names->text, names->text_room);
    ctr_free_host_(ctx, names->at, names->at_room * sizeof *names->at);
    memset(names, 0, sizeof *names);
}

CTR_PRIVATE_ int ctr_file_names_compare_(const void *user, int64_t a, int64_t b)
{
    const ctr_file_names_ *names = (const ctr_file_names_ *)user;
    return strcmp(ctr_file_name_(names, a), ctr_file_name_(names, b));
}

/* ---- the checksum ---------------------------------------------------------------------------- */

/* XXH64 (Collet, 2012) with seed 0, over bytes that may arrive in pieces. It finds damage; it does
   not protect against somebody who wants to deceive. */
typedef struct ctr_file_hash_ {
    uint64_t lane[4], total;
    uint8_t rest[32];
    size_t fill;
} ctr_file_hash_;

#define CTR_FILE_P1_ UINT64_C(0x9E3779B185EBCA87)
#define CTR_FILE_P2_ UINT64_C(0xC2B2AE3D27D4EB4F)
#define CTR_FILE_P3_ UINT64_C(0x165667B19E3779F9)
#define CTR_FILE_P4_ UINT64_C(0x85EBCA77C2B2AE63)
#define CTR_FILE_P5_ UINT64_C(0x27D4EB2F165667C5)

/* Numbers in files are little-endian; read byte by byte they are so on every machine. */
CTR_PRIVATE_ uint32_t ctr_file_u32_(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

CTR_PRIVATE_ uint64_t ctr_file_u64_(const uint8_t *p)
{
    return (uint64_t)ctr_file_u32_(p) | (uint64_t)ctr_file_u32_(p + 4) << 32;
}

CTR_PRIVATE_ void ctr_file_put_u64_(uint8_t *p, uint64_t x)
{
    int i;
    for (i = 0; i < 8; i++) p[i] = (uint8_t)(x >> (8 * i));
}

CTR_PRIVATE_ uint64_t ctr_file_rotl_(uint64_t x, int n) { return x << n | x >> (64 - n); }

CTR_PRIVATE_ uint64_t ctr_file_round_(uint64_t lane, uint64_t word)
{
    return ctr_file_rotl_(lane + word * CTR_FILE_P2_, 31) * CTR_FILE_P1_;
}

CTR_PRIVATE_ void ctr_file_hash_init_(ctr_file_hash_ *h)
{
    memset(h, 0, sizeof *h);
    h->lane[0] = CTR_FILE_P1_ + CTR_FILE_P2_;
    h->lane[1] = CTR_FILE_P2_;
    h->lane[3] = 0 - CTR_FILE_P1_;
}

CTR_PRIVATE_ void ctr_file_hash_block_(ctr_file_hash_ *h, const uint8_t *p)
{
    int i;
    for (i = 0; i < 4; i++) h->lane[i] = ctr_file_round_(h->lane[i], ctr_file_u64_(p + 8 * i));
}

CTR_PRIVATE_ void ctr_file_hash_put_(ctr_file_hash_ *h, const void *bytes, size_t size)
{
    const uint8_t *p = (const uint8_t *)bytes;
    size_t part;
    h->total += size;
    if (h->fill) {
        part = CTR_MIN_(32 - h->fill, size);
        memcpy(h->rest + h->fill, p, part);
        h->fill += part;
        p += part;
        size -= part;
        if (h->fill < 32) return;
        ctr_file_hash_block_(h, h->rest);
        h->fill = 0;
    }
    for (; size >= 32; p += 32, size -= 32) ctr_file_hash_block_(h, p);
    if (size) memcpy(h->rest, p, size);
    h->fill = size;
}

CTR_PRIVATE_ uint64_t ctr_file_hash_end_(const ctr_file_hash_ *h)
{
    const uint8_t *p = h->rest, *end = h->rest + h->fill;
    uint64_t x = CTR_FILE_P5_;
    int i;
    if (h->total >= 32) {
        x = ctr_file_rotl_(h->lane[0], 1) + ctr_file_rotl_(h->lane[1], 7) +
            ctr_file_rotl_(h->lane[2], 12) + ctr_file_rotl_(h->lane[3], 18);
        for (i = 0; i < 4; i++)
            x = (x ^ ctr_file_round_(0, h->lane[i])) * CTR_FILE_P1_ + CTR_FILE_P4_;
    }
    x += h->total;
    for (; end - p >= 8; p += 8)
        x = ctr_file_rotl_(x ^ ctr_file_round_(0, ctr_file_u64_(p)), 27) * CTR_FILE_P1_ +
            CTR_FILE_P4_;
    if (end - p >= 4) {
        x = ctr_file_rotl_(x ^ ctr_file_u32_(p) * CTR_FILE_P1_, 23) * CTR_FILE_P2_ + CTR_FILE_P3_;
        p += 4;
    }
    for (; p < end; p++) x = ctr_file_rotl_(x ^ *p * CTR_FILE_P5_, 11) * CTR_FILE_P1_;
    x = (x ^ x >> 33) * CTR_FILE_P2_;
    x = (x ^ x >> 29) * CTR_FILE_P3_;
    return x ^ x >> 32;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* What a path leads to. */
enum { CTR_FILE_MISSING_, CTR_FILE_PLAIN_, CTR_FILE_FOLDER_, CTR_FILE_OTHER_ };

typedef struct ctr_file_stat_ {
    int kind;
    uint64_t size;
    uint64_t volume, number;  /* together they name a folder, also through symbolic links */
} ctr_file_stat_;

/* errno says why when the kind is MISSING. */
CTR_PRIVATE_ ctr_file_stat_ ctr_file_look_(ctr_ctx *ctx, const char *path)
{
    ctr_file_stat_ s;
    memset(&s, 0, sizeof s);
    s.kind = CTR_FILE_MISSING_;
    if (ctr_file_fault_(ctx, "look", path)) return s;
#if CTR_POSIX_
    {
        struct stat t;
        if (stat(path, &t)) return s;
        s.kind = S_ISREG(t.st_mode)   ? CTR_FILE_PLAIN_
                 : S_ISDIR(t.st_mode) ? CTR_FILE_FOLDER_
                                      : CTR_FILE_OTHER_;
        s.size = (uint64_t)t.st_size;
        s.volume = (uint64_t)t.st_dev;
        s.number = (uint64_t)t.st_ino;
    }
#else
    {
        FILE *f = fopen(path, "rb");
        long size = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
        if (f) fclose(f);
        if (size < 0) return s;
        s.kind = CTR_FILE_PLAIN_;
        s.size = (uint64_t)size;
    }
#endif
    return s;
}

/* A file's bytes with a zero behind them, so that text files are strings. */
typedef struct ctr_file_bytes_ {
    uint8_t *bytes;
    size_t size;
} ctr_file_bytes_;

CTR_PRIVATE_ void ctr_file_bytes_free_(ctr_ctx *ctx, ctr_file_bytes_ *b)
{
    if (b->bytes) ctr_free_host_(ctx, b->bytes, b->size + 1);
    b->bytes = NULL;
    b->size = 0;
}

/* Reads a plain file of at most `limit` bytes. Returns 1, or 0 with a note. */
CTR_PRIVATE_ int ctr_file_read_(ctr_ctx *ctx, const char *path, uint64_t limit,
                                ctr_file_bytes_ *out, ctr_note_ *note)
{
    ctr_file_stat_ s = ctr_file_look_(ctx, path);
    const char *name = ctr_file_tail_(path);
    FILE *f;
    out->bytes = NULL;
    out->size = 0;
    if (s.kind == CTR_FILE_MISSING_) {
        ctr_note_set_(note, CTR_E_FILE, "cannot read '%s': %s", name, strerror(errno));
        return 0;
    }
    if (s.kind != CTR_FILE_PLAIN_) {
        ctr_note_set_(note, CTR_E_FILE, "cannot read '%s': it is a %s", name,
                      s.kind == CTR_FILE_FOLDER_ ? "folder, not a file" : "device or a pipe");
        return 0;
    }
    if (s.size > limit || s.size > SIZE_MAX / 4) {
        ctr_note_set_(note, CTR_E_FILE,
                      "cannot read '%s': it has %.0f bytes, at most %.0f are read", name,
                      (double)s.size, (double)limit);
        return 0;
    }
    f = ctr_file_fault_(ctx, "open", path) ? NULL : fopen(path, "rb");
    if (!f) {
        ctr_note_set_(note, CTR_E_FILE, "cannot read '%s': %s", name, strerror(errno));
        return 0;
    }
    out->size = (size_t)s.size;
    out->bytes = (uint8_t *)ctr_try_alloc_(ctx, out->size + 1);
    if (!out->bytes) {
        ctr_note_set_(note, CTR_E_MEMORY, "cannot read '%s': no memory for its %.0f bytes", name,
                      (double)s.size);
    } else if (ctr_file_fault_(ctx, "read", path) ||
               fread(out->bytes, 1, out->size, f) < out->size) {
        ctr_note_set_(note, CTR_E_FILE, "cannot read '%s': it ended before its %.0f bytes", name,
                      (double)s.size);
        ctr_file_bytes_free_(ctx, out);
    } else {
        out->bytes[out->size] = 0;
    }
    fclose(f);
    return out->bytes != NULL;
}

/* ---- replacing ------------------------------------------------------------------------------- */

/* Writes "path.tmp" and, once every byte is safe on the disk, gives it the name path. Whatever
   fails before that, and a kill at any moment, leaves the old file as it was. */
typedef struct ctr_file_writer_ {
    ctr_ctx *ctx;
    FILE *file;
    const char *path;
    char *temp;               /* "path.tmp" */
    size_t temp_size;
} ctr_file_writer_;

/* Records why and removes what was begun. errno says why. */
CTR_PRIVATE_ void ctr_file_writer_fail_(ctr_file_writer_ *w, const char *what)
{
    int why = errno;
    ctr_fail_(w->ctx, CTR_E_FILE, "cannot write '%s': %s%s", ctr_file_tail_(w->path), what,
              why ? strerror(why) : "unknown error");
}

/* Ends the writer. Without commit nothing but the old file remains. */
CTR_PRIVATE_ void ctr_file_writer_close_(ctr_file_writer_ *w)
{
    if (w->file) {
        fclose(w->file);
        w->file = NULL;
    }
    if (w->temp) {
        remove(w->temp); /* after the rename it is no longer there */
        ctr_free_host_(w->ctx, w->temp, w->temp_size);
        w->temp = NULL;
    }
}

CTR_PRIVATE_ int ctr_file_writer_open_(ctr_ctx *ctx, ctr_file_writer_ *w, const char *path)
{
    size_t n = strlen(path);
    memset(w, 0, sizeof *w);
    w->ctx = ctx;
    w->path = path;
    w->temp_size = n + 5;
    w->temp = (char *)ctr_alloc_(ctx, w->temp_size);
    if (!w->temp) return 0;
    memcpy(w->temp, path, n);
    memcpy(w->temp + n, ".tmp", 5);
    errno = 0;
    remove(w->temp); /* left by a run that was killed, or a link laid there by somebody else */
    errno = 0;
    if (!ctr_file_fault_(ctx, "create", w->temp)) w->file = fopen(w->temp, "wb");
    if (w->file) return 1;
    ctr_file_writer_fail_(w, "");
    ctr_file_writer_close_(w);
    return 0;
}

/* After an error this and all that follows do nothing; commit reports. */
CTR_PRIVATE_ void ctr_file_writer_put_(ctr_file_writer_ *w, const void *bytes, size_t size)
{
    if (w->ctx->status != CTR_OK || !w->file || !size) return;
    errno = 0;
    if (ctr_file_fault_(w->ctx, "write", w->temp)) {
        int why = errno; /* as a full disk does it: a part arrives */
        if (fwrite(bytes, 1, size / 2, w->file) < size / 2) why = errno;
        errno = why;
        ctr_file_writer_fail_(w, "");
    } else if (fwrite(bytes, 1, size, w->file) < size) {
        ctr_file_writer_fail_(w, "");
    }
}

/* fsync of a file or a folder by its name. Some file systems cannot sync a folder: not an error. */
CTR_PRIVATE_ int ctr_file_sync_(ctr_ctx *ctx, const char *path, int folder)
{
#if CTR_POSIX_
    int fd, ok;
    if (ctr_file_fault_(ctx, folder ? "sync folder" : "sync", path)) return 0;
    fd = open(path, O_RDONLY);
    if (fd < 0) return folder;
    ok = fsync(fd) == 0 || (folder && errno != EIO);
    close(fd);
    return ok;
#else
    return !ctr_file_fault_(ctx, folder ? "sync folder" : "sync", path);
#endif
}

/* Makes the rename itself safe: the folder that holds the name is synced. */
CTR_PRIVATE_ int ctr_file_sync_parent_(ctr_file_writer_ *w)
{
    char *slash = strrchr(w->temp, '/');
    if (!slash) return ctr_file_sync_(w->ctx, ".", 1);
    slash[slash == w->temp] = 0; /* keeps the root's own slash */
    return ctr_file_sync_(w->ctx, w->temp, 1);
}

/* flush, close, sync, rename, sync the folder: in this order, or a crash can leave a file that has
   its new name and not its new content. */
CTR_PRIVATE_ int ctr_file_writer_commit_(ctr_file_writer_ *w)
{
    ctr_ctx *ctx = w->ctx;
    int ok = ctx->status == CTR_OK && w->file, bad;
    FILE *f = w->file;
    errno = 0;
    if (ok && (ctr_file_fault_(ctx, "flush", w->temp) || fflush(f))) {
        ctr_file_writer_fail_(w, "");
        ok = 0;
    }
    w->file = NULL;
    if (f) {
        bad = ok && ctr_file_fault_(ctx, "close", w->temp);
        if ((fclose(f) || bad) && ok) {
            ctr_file_writer_fail_(w, "");
            ok = 0;
        }
    }
    if (ok && !ctr_file_sync_(ctx, w->temp, 0)) {
        ctr_file_writer_fail_(w, "sync: ");
        ok = 0;
    }
    if (ok && (ctr_file_fault_(ctx, "rename", w->temp) || rename(w->temp, w->path))) {
        ctr_file_writer_fail_(w, "rename: ");
        ok = 0;
    }
    if (!ok) {
        ctr_file_writer_close_(w);
        return 0;
    }
    if (!ctr_file_sync_parent_(w)) {
        ctr_file_writer_fail_(w, "the new file is in place, but not its folder's entry: ");
        ok = 0;
    }
    ctr_free_host_(ctx, w->temp, w->temp_size);
    w->temp = NULL;
    return ok;
}

/* ---- mapping, folders ------------------------------------------------------------------------ */

/* Maps a file for reading; *size is its length. NULL with an error. */
CTR_PRIVATE_ const uint8_t *ctr_file_map_(ctr_ctx *ctx, const char *path, size_t *size)
{
#if CTR_POSIX_
    ctr_file_stat_ s = ctr_file_look_(ctx, path);
    void *p = MAP_FAILED;
    int fd;
    if (s.kind == CTR_FILE_PLAIN_ && s.size > 0 && s.size <= SIZE_MAX / 4) {
        fd = ctr_file_fault_(ctx, "map", path) ? -1 : open(path, O_RDONLY);
        if (fd >= 0) {
            p = mmap(NULL, (size_t)s.size, PROT_READ, MAP_PRIVATE, fd, 0);
            close(fd);
        }
    }
    if (p == MAP_FAILED) {
        ctr_fail_(ctx, CTR_E_FILE, "cannot map '%s': %s", ctr_file_tail_(path), strerror(errno));
        return NULL;
    }
    *size = (size_t)s.size;
    return (const uint8_t *)p;
#else
    (void)size;
    ctr_fail_(ctx, CTR_E_UNSUPPORTED, "cannot map '%s': not on this system", ctr_file_tail_(path));
    return NULL;
#endif
}

CTR_PRIVATE_ void ctr_file_unmap_(const uint8_t *p, size_t size)
{
#if CTR_POSIX_
    union { const uint8_t *from; void *to; } cast; /* munmap takes no const */
    cast.from = p;
    if (p) munmap(cast.to, size);
#else
    (void)p;
    (void)size;
#endif
}

/* Names in a folder, hidden ones left out, in no particular order. 0 with an error. */
CTR_PRIVATE_ int ctr_file_list_(ctr_ctx *ctx, const char *path, ctr_file_names_ *names)
{
#if CTR_POSIX_
    DIR *dir = ctr_file_fault_(ctx, "list", path) ? NULL : opendir(path);
    struct dirent *entry;
    int ok = 1;
    if (!dir) {
        ctr_fail_(ctx, CTR_E_FILE, "cannot list '%s': %s", ctr_file_tail_(path), strerror(errno));
        return 0;
    }
    while (ok && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.')
            ok = ctr_file_names_add_(ctx, names, entry->d_name, strlen(entry->d_name));
    closedir(dir);
    return ok;
#else
    (void)names;
    ctr_fail_(ctx, CTR_E_UNSUPPORTED, "cannot list '%s': folders are read on POSIX systems only",
              ctr_file_tail_(path));
    return 0;
#endif
}

CTR_PRIVATE_ int ctr_file_exists_(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

/* ------------------------------------------------------------------------------------------------
   >>VEC  elementwise kernels, reductions, rows

   Each kernel is written once, as a plain loop over a range, and compiled twice: as it stands, and
   with AVX2 by CTR_VEC_KERNEL_ (the loops are simple enough for the compiler to vectorise; sums
   keep eight lanes by hand, because the order of a sum is part of the result). Ranges depend on the
   shape alone, and no two write the same place.
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

/* ---- scalar functions
   -------------------------------------------------------------------------- */

/* exp(x) without branches, so that a loop over it can be vectorised: x = k ln 2 + r with |r| <= ln
   2 / 2, e^r by Taylor's series to the seventh power, 2^k by its exponent bits. Relative error
   below 2e-7; results below 2^-126 are 0. In the double build it is the C library's. (gcc keeps
   the loop a vector as long as nothing but a choice between two values depends on a comparison.) */
CTR_INLINE_ ctr_real ctr_exp_(ctr_real x)
{
#if CTR_REAL_IS_FLOAT_
    float k, r, p, scale;
    int32_t bits;
    r = x > 88.37f ? 88.37f : x;
    r = r > -87.33f ? r : -87.33f; /* NaN too: its cast would be undefined */
    bits = (int32_t)(r * 1.44269504f + 512.5f) - 512; /* the nearest: a cast cuts off */
    k = (float)bits;
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
    p *= scale;
    p = x < -87.33f ? 0.0f : p;
    return x != x ? x : p;
#else
    return exp(x);
#endif
}

CTR_INLINE_ ctr_real ctr_sigmoid_(ctr_real x) { return CTR_R(1.0) / (CTR_R(1.0) + ctr_exp_(-x)); }

/* ln(1 + exp(x)), of which neither branch overflows */
CTR_INLINE_ ctr_real ctr_softplus_(ctr_real x)
{
    return (x > 0 ? x : 0) + CTR_M_(log1p)(CTR_M_(exp)(x > 0 ? -x : x));
}

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

/* ---- memory
   ------------------------------------------------------------------------------------ */

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

/* ---- elementwise
   ------------------------------------------------------------------------------- */

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
    v.op = (int)op;
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
    v.op = (int)op;
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
    case CTR_SOFTPLUS: for (i = lo; i < hi; i++) y[i] = ctr_softplus_(x[i]); break;
    default: for (i = lo; i < hi; i++) y[i] = CTR_M_(sqrt)(x[i]); break;
    }
}
CTR_VEC_KERNEL_(ctr_unary_)

CTR_API void ctr_k_unary(ctr_ctx *ctx, ctr_unary op, int64_t n, const ctr_real *x, ctr_real *y)
{
    ctr_vec_ v = ctr_vec_args_(n);
    CTR_VERB_(unary, (ctx, op, n, x, y))
    v.op = (int)op;
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
    case CTR_SOFTPLUS: return -CTR_M_(expm1)(-y); /* = sigmoid(x) */
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
    v.op = (int)op;
    v.acc = acc;
    v.x = x;
    v.x2 = y;
    v.x3 = dy;
    v.y = dx;
    CTR_VEC_RUN_(ctx, ctr_unary_grad_, &v);
}

/* ---- reductions
   -------------------------------------------------------------------------------- */

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
            for (; from < to; from += 512)
                sum += (double)ctr_row_sum_(x + from, CTR_MIN_(to - from, 512));
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

/* ---- moving numbers
   ---------------------------------------------------------------------------- */

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

CTR_API void ctr_k_gather(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n,
                          const int32_t *index, const ctr_real *x, ctr_real *y)
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

/* ---- rows
   -------------------------------------------------------------------------------------- */

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

/* ---- losses' inner parts
   ----------------------------------------------------------------------- */

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

/* ---- normalisation
   ----------------------------------------------------------------------------- */

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
        coefficients[c + j] =
            (ctr_real)((n->beta ? (double)n->beta[j] : 0) - a * (double)n->mean[j]);
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

CTR_API void ctr_k_layer_norm(ctr_ctx *ctx, int64_t rows, int64_t c, ctr_real eps,
                              const ctr_real *x, const ctr_real *gamma, const ctr_real *beta,
                              ctr_real *y, ctr_real *stats)
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

/* ---- dropout
   ----------------------------------------------------------------------------------- */

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

/* ---- optimisers (the formulas stand in >>OPTIM)
   ------------------------------------------------ */

CTR_INLINE_ void ctr_sgd_body_(const ctr_vec_ *v, int64_t lo, int64_t hi)
{
    const ctr_optim_args *o = v->optim;
    ctr_real lr = (ctr_real)o->lr, mu = (ctr_real)o->momentum, decay = (ctr_real)o->decay;
    ctr_real ratio = (ctr_real)v->ratio, *w = o->w, *m = o->m;
    const ctr_real *g = o->g;
    int64_t i;
    if (o->form == CTR_LARS_INSIDE)
        for (i = lo; i < hi; i++) {
            m[i] = mu * m[i] + lr * ratio * (g[i] + decay * w[i]);
            w[i] -= m[i];
        }
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

/* LARS's trust ratio: trust |w| / |g + decay w|; LARC's: trust |w| / (|g| + decay |w| + 1e-8); 1
   when either norm is 0. */
CTR_PRIVATE_ double ctr_sgd_trust_(ctr_ctx *ctx, const ctr_optim_args *o)
{
    double ww = ctr_dot_double_(ctx, o->n, o->w, o->w), gg = ctr_dot_double_(ctx, o->n, o->g, o->g);
    double gw = ctr_dot_double_(ctx, o->n, o->g, o->w);
    double update = gg + 2 * o->decay * gw + o->decay * o->decay * ww;
    if (o->form == CTR_LARS_LARC)
        return ww > 0 && gg > 0 ? o->trust * sqrt(ww) / (sqrt(gg) + o->decay * sqrt(ww) + 1e-8) : 1;
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
    ctr_real c1 = (ctr_real)(1 - o->beta1), c2 = (ctr_real)(1 - o->beta2); /* 1 - b2 loses digits */
    ctr_real keep = (ctr_real)(1 - o->lr * o->decay), step = (ctr_real)(o->lr / o->correct1);
    ctr_real root = (ctr_real)(1 / sqrt(o->correct2)), *w = o->w, *m = o->m, *s = o->v;
    const ctr_real *g = o->g;
    int64_t i;
    for (i = lo; i < hi; i++) {
        m[i] = b1 * m[i] + c1 * g[i];
        s[i] = b2 * s[i] + c2 * g[i] * g[i];
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

   Blocking: a slab of up to 384 of k. Sixteen columns of B, 24 KiB, stay in L1 while a block of
   rows of A, 96 of a convolution and 192 of a product, passes from L2; then come the next sixteen
   columns, of which each tile fetches a part into L2 ahead.

   The tile is written in assembly because compilers fold its loads into the multiply-adds and spill
   the sums; at plain -O2 that costs a third to two thirds of the speed. */

#define CTR_GEMM_TARGET_ __attribute__((target("avx2,fma")))
#define CTR_GEMM_MR_ 6
#define CTR_GEMM_NR_ 16
#define CTR_GEMM_KC_ 384
#define CTR_GEMM_MC_ 192

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

/* Beginning: sums = 0, and fetch C early. End: C = sums, or C += sums. rcx: outs, rdx: column. */
#define CTR_GEMM_ZERO_(u, r, p, lo, hi, t) \
    "vxorps " lo "," lo "," lo "\n\t" \
    "vxorps " hi "," hi "," hi "\n\t"
#define CTR_GEMM_FETCH_(u, r, p, lo, hi, t) \
    "movq 8*" r "(%%rcx), %%rsi\n\t" \
    "prefetcht0 (%%rsi,%%rdx)\n\t" \
    "prefetcht0 60(%%rsi,%%rdx)\n\t"
#define CTR_GEMM_ADD_(u, r, p, lo, hi, t) \
    "movq 8*" r "(%%rcx), %%rsi\n\t" \
    "vaddps (%%rsi,%%rdx), " lo ", " lo "\n\t" \
    "vaddps 32(%%rsi,%%rdx), " hi ", " hi "\n\t"
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
    EACH(CTR_GEMM_ZERO_, "0") \
    "movq 40(%%rdi), %%rcx\n\t" \
    "movq 48(%%rdi), %%rdx\n\t" \
    EACH(CTR_GEMM_FETCH_, "0") \
    "movq 0(%%rdi), %%rax\n\t" \
    "movq 32(%%rdi), %%rdx\n\t"
/* vzeroupper: mixing dirty upper halves with SSE code stalls some processors */
#define CTR_GEMM_END_(EACH) \
    "movq 40(%%rdi), %%rcx\n\t" \
    "movq 48(%%rdi), %%rdx\n\t" \
    "cmpq $0, 56(%%rdi)\n\t" \
    "je 9f\n\t" \
    EACH(CTR_GEMM_ADD_, "0") \
    "9:\n\t" \
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

/* A block: some rows of A times a range of panels of B. */
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
    const int64_t part = ctr_gemm_pieces_(taps * kc, ctr_gemm_pieces_(q->m, CTR_GEMM_MR_));
    ctr_gemm_tile_ tile;
    int64_t i, j, l;
    tile.taps = taps;
    tile.k = kc;
    tile.skip = p * (int64_t)sizeof(float);
    tile.acc = q->acc || tap > 0 || p > 0;
    for (j = q->first; j < q->last; j++) {
        const int64_t width = q->n - j * CTR_GEMM_NR_;
        const float *next = q->b + (j + 1) * q->panel + (tap * q->k + p) * CTR_GEMM_NR_;
        tile.b = next - q->panel;
        tile.column = j * CTR_GEMM_NR_ * (int64_t)sizeof(float);
        for (i = 0; i < q->m; i += CTR_GEMM_MR_) {
            for (l = 0; l < part && j + 1 < q->last; l++, next += CTR_GEMM_NR_) {
                __builtin_prefetch(next, 0, 2);
            }
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

/* The same for an A that is transposed in memory: rows [k] are where A's columns begin. The order
   of each sum is one run of k: for short ones. */
CTR_PRIVATE_ void ctr_gemm_turned_run_(const ctr_gemm_block_ *q)
{
    ctr_gemm_tile_ tile;
    int64_t i, j;
    tile.rows = q->rows;
    tile.taps = 1;
    tile.k = q->k;
    tile.acc = q->acc;
    for (j = q->first; j < q->last; j++) {
        tile.b = q->b + j * q->panel;
        tile.column = j * CTR_GEMM_NR_ * (int64_t)sizeof(float);
        for (i = 0; i < q->m; i += CTR_GEMM_MR_) {
            tile.skip = i * (int64_t)sizeof(float);
            tile.outs = q->outs + i;
            ctr_gemm_outer_(&tile, ctr_gemm_min_(q->m - i, CTR_GEMM_MR_),
                            q->n - j * CTR_GEMM_NR_);
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
    ctr_gemm_args_ args;  /* of the columns at hand: n and b, c move from group to group */
    float *packed;        /* B: slab after slab, each [panels][slab][16] */
    int64_t slab;         /* of k, at most KC; the last one may be shorter */
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
    const int64_t j = chunk * CTR_GEMM_NR_, width = ctr_gemm_min_(CTR_GEMM_NR_, g->n - j);
    int64_t p, kc, i;
    (void)worker;
    for (p = 0; p < g->k; p += kc) {
        float *panel = plan->packed + p * plan->panels * CTR_GEMM_NR_;
        kc = ctr_gemm_min_(plan->slab, g->k - p);
        panel += chunk * kc * CTR_GEMM_NR_;
        ctr_gemm_pack_(g->tb, kc, width, g->b + (g->tb ? j * g->ldb + p : p * g->ldb + j), g->ldb,
                       panel);
        for (i = 0; i < kc * CTR_GEMM_NR_ && g->alpha != 1.0f; i++) {
            panel[i] *= g->alpha;
        }
    }
}

/* An A that need not be turned is copied only if its rows lie so far apart, where a block reaches
   over more pages than the processor keeps at hand, and if so many columns of B repay it. */
#define CTR_GEMM_FAR_ 1024
#define CTR_GEMM_WIDE_ 256
#define CTR_GEMM_COPIED_ (CTR_GEMM_KC_ + 16) /* floats from row to row of a copied block of A */

/* The rows of a block of op(A), m x k from (top, p) on: where they are, or copied. A transposed A
   is read sixteen rows at a time along the block, so that whole lines of the cache are used. */
CTR_PRIVATE_ void ctr_gemm_rows_(const ctr_gemm_plan_ *plan, int64_t top, int64_t m, int64_t p,
                                 int64_t k, float *copied, const float **rows)
{
    const ctr_gemm_args_ *g = &plan->args;
    int64_t i;
    for (i = 0; i < m; i++) {
        rows[i] = g->a + (top + i) * g->lda + p;
        if (plan->work_size) {
            rows[i] = copied + i * CTR_GEMM_COPIED_;
        }
        if (plan->work_size && !g->ta) {
            memcpy(copied + i * CTR_GEMM_COPIED_, g->a + (top + i) * g->lda + p,
                   (size_t)k * sizeof(float));
        }
    }
    for (i = 0; i < k && g->ta; i += 16) {
        ctr_gemm_turn_(g->a + (p + i) * g->lda + top, g->lda, ctr_gemm_min_(16, k - i), m,
                       copied + i, CTR_GEMM_COPIED_);
    }
}

CTR_PRIVATE_ void ctr_gemm_block_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_gemm_plan_ *plan = (const ctr_gemm_plan_ *)arg;
    const ctr_gemm_args_ *g = &plan->args;
    const int64_t top = chunk / plan->ranges * plan->rows;
    float *copied = (float *)(void *)(plan->work + (size_t)worker * plan->work_size);
    const float *rows[CTR_GEMM_MC_];
    float *outs[CTR_GEMM_MC_];
    ctr_gemm_block_ q;
    int64_t i, p;
    q.rows = rows;
    q.outs = outs;
    q.m = ctr_gemm_min_(plan->rows, g->m - top);
    q.n = g->n;
    q.taps = 1;
    q.first = chunk % plan->ranges * plan->range;
    q.last = ctr_gemm_min_(q.first + plan->range, plan->panels);
    for (i = 0; i < q.m; i++) {
        outs[i] = g->c + (top + i) * g->ldc;
    }
    i = q.first * CTR_GEMM_NR_;
    ctr_gemm_scale_(q.m, ctr_gemm_min_(q.last * CTR_GEMM_NR_, g->n) - i, g->beta, outs[0] + i,
                    g->ldc);
    for (p = 0; p < g->k; p += q.k) {
        q.k = ctr_gemm_min_(plan->slab, g->k - p);
        q.b = plan->packed + p * plan->panels * CTR_GEMM_NR_;
        q.panel = q.k * CTR_GEMM_NR_;
        q.acc = p > 0 || g->beta != 0.0f;
        ctr_gemm_rows_(plan, top, q.m, p, q.k, copied, rows);
        ctr_gemm_block_run_(&q);
    }
}

/* Cuts m rows into `blocks` of equal height, and the panels into ranges if that makes less than
   `jobs` jobs. Returns how many there are. */
CTR_PRIVATE_ int64_t ctr_gemm_cut_(int64_t m, int64_t blocks, int64_t jobs, int64_t panels,
                                   int64_t *rows, int64_t *range, int64_t *ranges)
{
    int64_t want;
    *rows = ctr_gemm_pieces_(ctr_gemm_pieces_(m, blocks), CTR_GEMM_MR_) * CTR_GEMM_MR_;
    blocks = ctr_gemm_pieces_(m, *rows);
    want = ctr_gemm_min_(ctr_gemm_pieces_(jobs, blocks), (panels + 1) / 2);
    *range = ctr_gemm_pieces_(panels, want);
    *ranges = ctr_gemm_pieces_(panels, *range);
    return blocks * *ranges;
}

/* The cut of a product may know the number of threads, since no bit depends on it: one thread wants
   whole rows of C, so that A is copied once; several want to end at the same time. */
CTR_PRIVATE_ int64_t ctr_gemm_plan_cut_(ctr_gemm_plan_ *plan, int64_t threads)
{
    int64_t blocks = ctr_gemm_pieces_(plan->args.m, CTR_GEMM_MC_);
    if (blocks > threads) {
        blocks = ctr_gemm_pieces_(blocks, threads) * threads;
    }
    return ctr_gemm_cut_(plan->args.m, blocks, threads > 1 ? 4 * threads : 1, plan->panels,
                         &plan->rows, &plan->range, &plan->ranges);
}

/* At most 16 MiB of B are packed at a time, or one panel if that is more. */
CTR_PRIVATE_ void ctr_gemm_avx2_(ctr_ctx *ctx, const ctr_gemm_args_ *args)
{
    const int64_t most = ((int64_t)1 << 18) / args->k + 1;
    const int64_t all = ctr_gemm_pieces_(args->n, CTR_GEMM_NR_);
    const int64_t size = ctr_gemm_min_(all, most) * args->k * CTR_GEMM_NR_;
    ctr_gemm_plan_ plan;
    int64_t j, chunks;
    plan.slab = ctr_gemm_pieces_(args->k, ctr_gemm_pieces_(args->k, CTR_GEMM_KC_) * 8) * 8;
    plan.work_size = args->ta || (args->lda > CTR_GEMM_FAR_ && args->n >= CTR_GEMM_WIDE_)
                         ? (size_t)(CTR_GEMM_MC_ * CTR_GEMM_COPIED_) * sizeof(float)
                         : 0;
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
        chunks = ctr_gemm_plan_cut_(&plan, ctr_threads_(ctx));
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

CTR_PRIVATE_ int ctr_conv_inside_(int64_t i, int64_t n)
{
    return i >= 0 && i < n;
}

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
                if (ctr_conv_inside_(top + a, s->h) && ctr_conv_inside_(left + b, s->w)) {
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
        if (!ctr_conv_inside_(r, s->h) || !ctr_conv_inside_(col, s->w)) {
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

#define CTR_CONV_FEW_ 8   /* up to so many input channels are copied as patches */
#define CTR_CONV_ROWS_ 96 /* pixels of a block, a multiple of 6 */

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
    float *patch = (float *)(rows + CTR_CONV_ROWS_ * taps);
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
    float *outs[CTR_CONV_ROWS_];
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
    chunks = ctr_gemm_cut_(m, ctr_gemm_pieces_(m, CTR_CONV_ROWS_), 24, g->panels, &g->rows,
                           &g->range, &g->ranges);
    ctr_gemm_spread_(ctx, g->panels, 8 * k * g->oc, ctr_conv_pack_job_, g);
    ctr_gemm_spread_(ctx, chunks, m * g->oc * (k + 8), ctr_conv_block_job_, g);
}

/* Memory of a pass: packed weights of `taps` taps, zeros, and for each worker pointers for `most`
   taps and a block of patches. Returns 0 if there is none. */
CTR_PRIVATE_ int ctr_conv_memory_(ctr_ctx *ctx, ctr_conv_pass_ *g, int64_t taps, int64_t most)
{
    const int64_t zeros = ctr_gemm_pieces_(g->ic, CTR_GEMM_NR_) * CTR_GEMM_NR_;
    const int64_t packed = ctr_gemm_pieces_(g->oc, CTR_GEMM_NR_) * CTR_GEMM_NR_ * taps * g->ic;
    const int64_t patches = g->patches ? CTR_CONV_ROWS_ * g->ic : 0;
    g->work_size = (size_t)(CTR_CONV_ROWS_ * most) * sizeof(float *) +
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

/* ================================================================================================
   >>WINO  3 x 3 convolutions of stride 1 by Winograd's transforms

   F(4x4, 3x3) (Winograd 1980; Lavin and Gray 2016): 4 x 4 outputs from 6 x 6 inputs take 36
   multiplies a pair of channels instead of 144. With (*) the product element by element, summed
   over the channels by 36 small matrix products:
       y  = A' [ (G w G') (*) (B' x B) ] A       forward; the same with w turned gives dx from dy
       dw = G' [ (B' x B) (*) (A dy A') ] G      summed over all tiles before G
   The matrices evaluate and interpolate polynomials at 0, a, -a, b, -b and infinity. a = 1/sqrt(2)
   and b = sqrt(2) instead of the usual 1 and 2 cost the same and halve the rounding error: relative
   8e-7 at 64 channels, 2.4e-6 at 512, where the direct sum has 4e-7 and 1.1e-6.

   Only for 3 x 3 kernels, stride 1, padding 1; ctr_wino_fits_ says for which sizes it pays. Height
   and width need not be multiples of 4: tiles hang over the edge.
   ============================================================================================= */

#define CTR_WINO_A_ CTR_R(0.70710678118654752440)
#define CTR_WINO_B_ CTR_R(1.41421356237309504880)
#define CTR_WINO_HALF_ CTR_R(0.5) /* a a */
#define CTR_WINO_TWO_ CTR_R(2.0)  /* b b */
#define CTR_WINO_SUM_ CTR_R(2.5)  /* a a + b b */
#define CTR_WINO_NA_ (CTR_R(-2.0) / CTR_R(3.0)) /* 1 / (2 a a (a a - b b)) */
#define CTR_WINO_NB_ (CTR_R(1.0) / CTR_R(6.0))  /* 1 / (2 b b (b b - a a)) */
#define CTR_WINO_PLANES_ 36

/* Whether the transforms save time: by the shape alone, so that the bits depend on nothing else.
   Tiles that hang over the edge waste work, and a few tiles do not repay the transform of the
   weights. */
CTR_PRIVATE_ int ctr_wino_fits_(const ctr_conv_shape *s)
{
    const int64_t tiles = ctr_gemm_pieces_(s->oh, 4) * ctr_gemm_pieces_(s->ow, 4);
    return s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad == 1 && s->c >= 16 &&
           s->oc >= 16 && s->c % 8 == 0 && s->oc % 8 == 0 && s->n * tiles >= 12 &&
           tiles * 16 <= 2 * s->oh * s->ow;
}

/* ---- reference: the five transforms of one line ---- */

/* o = B' x, 6 -> 6 */
CTR_PRIVATE_ void ctr_wino_bt_(const ctr_real *x, int64_t sx, ctr_real *o, int64_t so)
{
    const ctr_real t1 = x[4 * sx] - CTR_WINO_TWO_ * x[2 * sx];
    const ctr_real t2 = x[3 * sx] - CTR_WINO_TWO_ * x[sx];
    const ctr_real u1 = x[4 * sx] - CTR_WINO_HALF_ * x[2 * sx];
    const ctr_real u2 = x[3 * sx] - CTR_WINO_HALF_ * x[sx];
    o[0] = x[0] - CTR_WINO_SUM_ * x[2 * sx] + x[4 * sx];
    o[so] = t1 + CTR_WINO_A_ * t2;
    o[2 * so] = t1 - CTR_WINO_A_ * t2;
    o[3 * so] = u1 + CTR_WINO_B_ * u2;
    o[4 * so] = u1 - CTR_WINO_B_ * u2;
    o[5 * so] = x[sx] - CTR_WINO_SUM_ * x[3 * sx] + x[5 * sx];
}

/* o = G w, 3 -> 6 */
CTR_PRIVATE_ void ctr_wino_g_(const ctr_real *w, int64_t sw, ctr_real *o, int64_t so)
{
    const ctr_real e1 = w[0] + CTR_WINO_HALF_ * w[2 * sw], e2 = w[0] + CTR_WINO_TWO_ * w[2 * sw];
    const ctr_real d1 = CTR_WINO_A_ * w[sw], d2 = CTR_WINO_B_ * w[sw];
    o[0] = w[0];
    o[so] = CTR_WINO_NA_ * (e1 + d1);
    o[2 * so] = CTR_WINO_NA_ * (e1 - d1);
    o[3 * so] = CTR_WINO_NB_ * (e2 + d2);
    o[4 * so] = CTR_WINO_NB_ * (e2 - d2);
    o[5 * so] = w[2 * sw];
}

/* o = A' m, 6 -> 4 */
CTR_PRIVATE_ void ctr_wino_at_(const ctr_real *m, int64_t sm, ctr_real *o, int64_t so)
{
    const ctr_real s1 = m[sm] + m[2 * sm], d1 = CTR_WINO_A_ * (m[sm] - m[2 * sm]);
    const ctr_real s2 = m[3 * sm] + m[4 * sm], d2 = CTR_WINO_B_ * (m[3 * sm] - m[4 * sm]);
    o[0] = m[0] + s1 + s2;
    o[so] = d1 + d2;
    o[2 * so] = CTR_WINO_HALF_ * s1 + CTR_WINO_TWO_ * s2;
    o[3 * so] = CTR_WINO_HALF_ * d1 + CTR_WINO_TWO_ * d2 + m[5 * sm];
}

/* o = A y, 4 -> 6 */
CTR_PRIVATE_ void ctr_wino_a_(const ctr_real *y, int64_t sy, ctr_real *o, int64_t so)
{
    const ctr_real e1 = y[0] + CTR_WINO_HALF_ * y[2 * sy], e2 = y[0] + CTR_WINO_TWO_ * y[2 * sy];
    const ctr_real d1 = CTR_WINO_A_ * (y[sy] + CTR_WINO_HALF_ * y[3 * sy]);
    const ctr_real d2 = CTR_WINO_B_ * (y[sy] + CTR_WINO_TWO_ * y[3 * sy]);
    o[0] = y[0];
    o[so] = e1 + d1;
    o[2 * so] = e1 - d1;
    o[3 * so] = e2 + d2;
    o[4 * so] = e2 - d2;
    o[5 * so] = y[3 * sy];
}

/* o = G' u, 6 -> 3 */
CTR_PRIVATE_ void ctr_wino_gt_(const ctr_real *u, int64_t su, ctr_real *o, int64_t so)
{
    const ctr_real s1 = CTR_WINO_NA_ * (u[su] + u[2 * su]);
    const ctr_real d1 = CTR_WINO_NA_ * (u[su] - u[2 * su]);
    const ctr_real s2 = CTR_WINO_NB_ * (u[3 * su] + u[4 * su]);
    const ctr_real d2 = CTR_WINO_NB_ * (u[3 * su] - u[4 * su]);
    o[0] = u[0] + s1 + s2;
    o[so] = CTR_WINO_A_ * d1 + CTR_WINO_B_ * d2;
    o[2 * so] = CTR_WINO_HALF_ * s1 + CTR_WINO_TWO_ * s2 + u[5 * su];
}

typedef void (*ctr_wino_line_)(const ctr_real *in, int64_t si, ctr_real *out, int64_t so);

/* A line's transform on the columns, then on the rows: [from][from] -> [to][to]. */
CTR_PRIVATE_ void ctr_wino_square_(ctr_wino_line_ line, int64_t from, int64_t to,
                                   const ctr_real *in, ctr_real *out)
{
    ctr_real half[CTR_WINO_PLANES_]; /* [to][from] */
    int64_t i;
    for (i = 0; i < from; i++) {
        line(in + i, from, half + i, from);
    }
    for (i = 0; i < to; i++) {
        line(half + i * from, 1, out + i * to, 1);
    }
}

/* What the jobs of a pass share. c and oc are those of the product at hand, so the gradient to the
   input swaps them: its "image" is dy. */
typedef struct ctr_wino_args_ {
    int64_t n, h, w, c, oc, th, tw, tiles; /* th x tw tiles an image, tiles = n th tw */
    const ctr_real *in;     /* [n, h, w, c] */
    const ctr_real *dy;     /* [n, h, w, oc], for the gradient to the weights */
    const ctr_real *weight; /* [3, 3, c, oc], or [3, 3, oc, c] and turned */
    ctr_real *out;          /* y or dx [n, h, w, oc], or dw [3, 3, c, oc] */
    int turned, acc;
    ctr_real *v, *m, *u;    /* 36 planes of [tiles, c], [tiles, oc], [c, oc] */
} ctr_wino_args_;

CTR_PRIVATE_ void ctr_wino_args_set_(ctr_wino_args_ *g, const ctr_conv_shape *s)
{
    memset(g, 0, sizeof *g);
    g->n = s->n;
    g->h = s->h;
    g->w = s->w;
    g->c = s->c;
    g->oc = s->oc;
    g->th = ctr_gemm_pieces_(s->h, 4);
    g->tw = ctr_gemm_pieces_(s->w, 4);
    g->tiles = s->n * g->th * g->tw;
}

/* Copies one channel of a square of pixels, zeros outside the image. The tile's square begins
   `shift` pixels above and left of the tile: 1 for 6 x 6 inputs, 0 for 4 x 4 outputs. */
CTR_PRIVATE_ void ctr_wino_get_(const ctr_wino_args_ *g, int64_t tile, int64_t side, int64_t shift,
                                const ctr_real *image, int64_t c, ctr_real *square)
{
    const int64_t top = tile / g->tw % g->th * 4 - shift, left = tile % g->tw * 4 - shift;
    int64_t y, x;
    image += tile / g->tw / g->th * g->h * g->w * c;
    for (y = top; y < top + side; y++) {
        for (x = left; x < left + side; x++) {
            *square++ = ctr_conv_inside_(y, g->h) && ctr_conv_inside_(x, g->w)
                            ? image[(y * g->w + x) * c]
                            : CTR_R(0.0);
        }
    }
}

/* v = B' x B for one tile */
CTR_PRIVATE_ void ctr_wino_v_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_args_ *g = (const ctr_wino_args_ *)arg;
    ctr_real x[CTR_WINO_PLANES_], v[CTR_WINO_PLANES_];
    int64_t i, plane;
    (void)worker;
    for (i = 0; i < g->c; i++) {
        ctr_wino_get_(g, chunk, 6, 1, g->in + i, g->c, x);
        ctr_wino_square_(ctr_wino_bt_, 6, 6, x, v);
        for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
            g->v[(plane * g->tiles + chunk) * g->c + i] = v[plane];
        }
    }
}

/* m = A dy A' for one tile */
CTR_PRIVATE_ void ctr_wino_z_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_args_ *g = (const ctr_wino_args_ *)arg;
    ctr_real y[16], z[CTR_WINO_PLANES_];
    int64_t o, plane;
    (void)worker;
    for (o = 0; o < g->oc; o++) {
        ctr_wino_get_(g, chunk, 4, 0, g->dy + o, g->oc, y);
        ctr_wino_square_(ctr_wino_a_, 4, 6, y, z);
        for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
            g->m[(plane * g->tiles + chunk) * g->oc + o] = z[plane];
        }
    }
}

/* u = G w G' for one input channel; turned, w is upside down and has its channels swapped */
CTR_PRIVATE_ void ctr_wino_u_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_args_ *g = (const ctr_wino_args_ *)arg;
    const int64_t size = g->c * g->oc;
    ctr_real w[9], u[CTR_WINO_PLANES_];
    int64_t o, i;
    (void)worker;
    for (o = 0; o < g->oc; o++) {
        for (i = 0; i < 9; i++) {
            w[i] = g->turned ? g->weight[(8 - i) * size + o * g->c + chunk]
                             : g->weight[i * size + chunk * g->oc + o];
        }
        ctr_wino_square_(ctr_wino_g_, 3, 6, w, u);
        for (i = 0; i < CTR_WINO_PLANES_; i++) {
            g->u[i * size + chunk * g->oc + o] = u[i];
        }
    }
}

/* out = A' m A for one tile */
CTR_PRIVATE_ void ctr_wino_out_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_args_ *g = (const ctr_wino_args_ *)arg;
    const int64_t top = chunk / g->tw % g->th * 4, left = chunk % g->tw * 4;
    ctr_real *image = g->out + chunk / g->tw / g->th * g->h * g->w * g->oc;
    ctr_real m[CTR_WINO_PLANES_], y[16];
    int64_t o, i;
    (void)worker;
    for (o = 0; o < g->oc; o++) {
        for (i = 0; i < CTR_WINO_PLANES_; i++) {
            m[i] = g->m[(i * g->tiles + chunk) * g->oc + o];
        }
        ctr_wino_square_(ctr_wino_at_, 6, 4, m, y);
        for (i = 0; i < 16; i++) {
            if (top + i / 4 < g->h && left + i % 4 < g->w) {
                ctr_real *pixel = image + ((top + i / 4) * g->w + left + i % 4) * g->oc + o;
                *pixel = g->acc ? *pixel + y[i] : y[i];
            }
        }
    }
}

/* dw = G' u G for one input channel */
CTR_PRIVATE_ void ctr_wino_dw_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_args_ *g = (const ctr_wino_args_ *)arg;
    const int64_t size = g->c * g->oc;
    ctr_real u[CTR_WINO_PLANES_], dw[9];
    int64_t o, i;
    (void)worker;
    for (o = 0; o < g->oc; o++) {
        for (i = 0; i < CTR_WINO_PLANES_; i++) {
            u[i] = g->u[i * size + chunk * g->oc + o];
        }
        ctr_wino_square_(ctr_wino_gt_, 6, 3, u, dw);
        for (i = 0; i < 9; i++) {
            ctr_real *to = g->out + i * size + chunk * g->oc + o;
            *to = g->acc ? *to + dw[i] : dw[i];
        }
    }
}

/* The 36 products m = v u, or u = v' m. */
CTR_PRIVATE_ void ctr_wino_products_(ctr_ctx *ctx, const ctr_wino_args_ *g, int weights)
{
    ctr_gemm_args_ p;
    int64_t plane;
    memset(&p, 0, sizeof p);
    p.ta = weights;
    p.alpha = CTR_R(1.0);
    p.m = weights ? g->c : g->tiles;
    p.k = weights ? g->tiles : g->c;
    p.n = p.ldb = p.ldc = g->oc;
    p.lda = g->c;
    for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
        ctr_real *m = g->m + plane * g->tiles * g->oc, *u = g->u + plane * g->c * g->oc;
        p.a = g->v + plane * g->tiles * g->c;
        p.b = weights ? m : u;
        p.c = weights ? u : m;
        ctr_gemm_scalar_(ctx, &p);
    }
}

/* Forward and gradient to the input (weights = 0), or to the weights: all tiles at once. */
CTR_PRIVATE_ void ctr_wino_scalar_(ctr_ctx *ctx, ctr_wino_args_ *g, int weights)
{
    const int64_t nv = CTR_WINO_PLANES_ * g->tiles * g->c, nm = CTR_WINO_PLANES_ * g->tiles * g->oc;
    const int64_t nu = CTR_WINO_PLANES_ * g->c * g->oc;
    g->v = (ctr_real *)ctr_scratch_(ctx, (size_t)(nv + nm + nu) * sizeof(ctr_real));
    if (!g->v) {
        return;
    }
    g->m = g->v + nv;
    g->u = g->m + nm;
    ctr_gemm_spread_(ctx, g->tiles, 8 * nv, ctr_wino_v_job_, g);
    if (weights) {
        ctr_gemm_spread_(ctx, g->tiles, 8 * nm, ctr_wino_z_job_, g);
        ctr_wino_products_(ctx, g, 1);
        ctr_gemm_spread_(ctx, g->c, 8 * nu, ctr_wino_dw_job_, g);
    } else {
        ctr_gemm_spread_(ctx, g->c, 8 * nu, ctr_wino_u_job_, g);
        ctr_wino_products_(ctx, g, 0);
        ctr_gemm_spread_(ctx, g->tiles, 8 * nm, ctr_wino_out_job_, g);
    }
}

#if CTR_GEMM_AVX2_

/* ---- AVX2 + FMA ---------------------------------------------------------------------------------
   The same, eight channels at a time, and in pieces that stay in the cache. Two ways:

   Narrow (up to 128 channels, 256 if there are tiles enough): all weights are transformed first;
   then each job takes some tens of tiles through transform, 36 products and transform back while
   they are in L2. The gradient to the weights is summed in the transformed domain, in up to 8
   parts, and transformed back once.

   Wide: the transformed weights would not fit any cache (36 planes of 512 x 512 are 38 MB). All
   tiles of a group of images are transformed; then each job makes sixteen output channels of
   all of them, transforming its own weights on the way. For the gradient to the weights
   a job makes a rectangle of channels; nothing is summed between jobs.

   Strides that are multiples of 256 bytes would crowd into few sets of the cache: rows get 16
   floats more where needed, and so do planes. */

#define CTR_WINO_LINE_ __attribute__((target("avx2,fma"), always_inline)) static inline
#define CTR_WINO_NARROW_ 128 /* channels up to which the narrow way is taken */
#define CTR_WINO_BLOCK_ 48   /* tiles of a job at most */
#define CTR_WINO_DEPTH_ 128  /* input channels whose weights a wide job transforms at once */
/* Tiles of a group on the wide way, at most; and floats of their v, 8 MiB, because every job reads
   all of it, from L3 if it stays there. */
#define CTR_WINO_GROUP_ 256
#define CTR_WINO_SHARED_ ((int64_t)1 << 21)

/* a b + c, and c - a b, for a constant a */
CTR_WINO_LINE_ __m256 ctr_wino_fma_(float a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
}
CTR_WINO_LINE_ __m256 ctr_wino_fnma_(float a, __m256 b, __m256 c)
{
    return _mm256_fnmadd_ps(_mm256_set1_ps(a), b, c);
}
CTR_WINO_LINE_ __m256 ctr_wino_mul_(float a, __m256 b)
{
    return _mm256_mul_ps(_mm256_set1_ps(a), b);
}

/* The transforms of a line of 8 channels, as in the reference; results go to o, so apart. */
CTR_WINO_LINE_ void ctr_wino_bt8_(__m256 x0, __m256 x1, __m256 x2, __m256 x3, __m256 x4, __m256 x5,
                                  float *o, int64_t so)
{
    const __m256 t1 = ctr_wino_fnma_(CTR_WINO_TWO_, x2, x4);
    const __m256 t2 = ctr_wino_fnma_(CTR_WINO_TWO_, x1, x3);
    const __m256 u1 = ctr_wino_fnma_(CTR_WINO_HALF_, x2, x4);
    const __m256 u2 = ctr_wino_fnma_(CTR_WINO_HALF_, x1, x3);
    _mm256_storeu_ps(o, ctr_wino_fnma_(CTR_WINO_SUM_, x2, _mm256_add_ps(x0, x4)));
    _mm256_storeu_ps(o + so, ctr_wino_fma_(CTR_WINO_A_, t2, t1));
    _mm256_storeu_ps(o + 2 * so, ctr_wino_fnma_(CTR_WINO_A_, t2, t1));
    _mm256_storeu_ps(o + 3 * so, ctr_wino_fma_(CTR_WINO_B_, u2, u1));
    _mm256_storeu_ps(o + 4 * so, ctr_wino_fnma_(CTR_WINO_B_, u2, u1));
    _mm256_storeu_ps(o + 5 * so, ctr_wino_fnma_(CTR_WINO_SUM_, x3, _mm256_add_ps(x1, x5)));
}

CTR_WINO_LINE_ void ctr_wino_g8_(__m256 w0, __m256 w1, __m256 w2, float *o, int64_t so)
{
    const __m256 e1 = ctr_wino_mul_(CTR_WINO_NA_, ctr_wino_fma_(CTR_WINO_HALF_, w2, w0));
    const __m256 e2 = ctr_wino_mul_(CTR_WINO_NB_, ctr_wino_fma_(CTR_WINO_TWO_, w2, w0));
    _mm256_storeu_ps(o, w0);
    _mm256_storeu_ps(o + so, ctr_wino_fma_(CTR_WINO_NA_ * CTR_WINO_A_, w1, e1));
    _mm256_storeu_ps(o + 2 * so, ctr_wino_fnma_(CTR_WINO_NA_ * CTR_WINO_A_, w1, e1));
    _mm256_storeu_ps(o + 3 * so, ctr_wino_fma_(CTR_WINO_NB_ * CTR_WINO_B_, w1, e2));
    _mm256_storeu_ps(o + 4 * so, ctr_wino_fnma_(CTR_WINO_NB_ * CTR_WINO_B_, w1, e2));
    _mm256_storeu_ps(o + 5 * so, w2);
}

CTR_WINO_LINE_ void ctr_wino_a8_(__m256 y0, __m256 y1, __m256 y2, __m256 y3, float *o, int64_t so)
{
    const __m256 e1 = ctr_wino_fma_(CTR_WINO_HALF_, y2, y0);
    const __m256 e2 = ctr_wino_fma_(CTR_WINO_TWO_, y2, y0);
    const __m256 d1 = ctr_wino_fma_(CTR_WINO_HALF_, y3, y1);
    const __m256 d2 = ctr_wino_fma_(CTR_WINO_TWO_, y3, y1);
    _mm256_storeu_ps(o, y0);
    _mm256_storeu_ps(o + so, ctr_wino_fma_(CTR_WINO_A_, d1, e1));
    _mm256_storeu_ps(o + 2 * so, ctr_wino_fnma_(CTR_WINO_A_, d1, e1));
    _mm256_storeu_ps(o + 3 * so, ctr_wino_fma_(CTR_WINO_B_, d2, e2));
    _mm256_storeu_ps(o + 4 * so, ctr_wino_fnma_(CTR_WINO_B_, d2, e2));
    _mm256_storeu_ps(o + 5 * so, y3);
}

/* m lies in memory with stride sm; o takes four vectors. */
CTR_WINO_LINE_ void ctr_wino_at8_(const float *m, int64_t sm, __m256 *o)
{
    const __m256 m1 = _mm256_loadu_ps(m + sm), m2 = _mm256_loadu_ps(m + 2 * sm);
    const __m256 m3 = _mm256_loadu_ps(m + 3 * sm), m4 = _mm256_loadu_ps(m + 4 * sm);
    const __m256 s1 = _mm256_add_ps(m1, m2), s2 = _mm256_add_ps(m3, m4);
    const __m256 d1 = ctr_wino_mul_(CTR_WINO_A_, _mm256_sub_ps(m1, m2));
    const __m256 d2 = ctr_wino_mul_(CTR_WINO_B_, _mm256_sub_ps(m3, m4));
    o[0] = _mm256_add_ps(_mm256_loadu_ps(m), _mm256_add_ps(s1, s2));
    o[1] = _mm256_add_ps(d1, d2);
    o[2] = ctr_wino_fma_(CTR_WINO_HALF_, s1, ctr_wino_mul_(CTR_WINO_TWO_, s2));
    o[3] = ctr_wino_fma_(CTR_WINO_HALF_, d1,
                         ctr_wino_fma_(CTR_WINO_TWO_, d2, _mm256_loadu_ps(m + 5 * sm)));
}

/* u lies in memory with stride su; o takes three vectors. */
CTR_WINO_LINE_ void ctr_wino_gt8_(const float *u, int64_t su, __m256 *o)
{
    const __m256 u1 = _mm256_loadu_ps(u + su), u2 = _mm256_loadu_ps(u + 2 * su);
    const __m256 u3 = _mm256_loadu_ps(u + 3 * su), u4 = _mm256_loadu_ps(u + 4 * su);
    const __m256 s1 = ctr_wino_mul_(CTR_WINO_NA_, _mm256_add_ps(u1, u2));
    const __m256 d1 = ctr_wino_mul_(CTR_WINO_NA_ * CTR_WINO_A_, _mm256_sub_ps(u1, u2));
    const __m256 s2 = ctr_wino_mul_(CTR_WINO_NB_, _mm256_add_ps(u3, u4));
    const __m256 d2 = ctr_wino_mul_(CTR_WINO_NB_ * CTR_WINO_B_, _mm256_sub_ps(u3, u4));
    o[0] = _mm256_add_ps(_mm256_loadu_ps(u), _mm256_add_ps(s1, s2));
    o[1] = _mm256_add_ps(d1, d2);
    o[2] = ctr_wino_fma_(CTR_WINO_HALF_, s1,
                         ctr_wino_fma_(CTR_WINO_TWO_, s2, _mm256_loadu_ps(u + 5 * su)));
}

/* v = B' x B for c channels of a tile whose pixels are p[6][6]; planes of v lie `plane` apart. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_v8_(float *const *p, int64_t c, float *v,
                                                int64_t plane)
{
    float half[CTR_WINO_PLANES_ * 8]; /* [6][6][8] */
    int64_t i, x, y;
    for (i = 0; i < c; i += 8) {
        for (x = 0; x < 6; x++) {
            ctr_wino_bt8_(_mm256_loadu_ps(p[x] + i), _mm256_loadu_ps(p[x + 6] + i),
                          _mm256_loadu_ps(p[x + 12] + i), _mm256_loadu_ps(p[x + 18] + i),
                          _mm256_loadu_ps(p[x + 24] + i), _mm256_loadu_ps(p[x + 30] + i),
                          half + x * 8, 48);
        }
        for (y = 0; y < 6; y++) {
            const float *h = half + y * 48;
            ctr_wino_bt8_(_mm256_loadu_ps(h), _mm256_loadu_ps(h + 8), _mm256_loadu_ps(h + 16),
                          _mm256_loadu_ps(h + 24), _mm256_loadu_ps(h + 32),
                          _mm256_loadu_ps(h + 40), v + y * 6 * plane + i, plane);
        }
    }
}

/* z = A dy A' for oc channels of a tile whose pixels are p[4][4]. z is packed as the B of a
   product: channels 16 to a panel, panels `panel` apart. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_z8_(float *const *p, int64_t oc, float *z,
                                                int64_t panel, int64_t plane)
{
    float half[24 * 8]; /* [6][4][8] */
    int64_t i, x, y;
    for (i = 0; i < oc; i += 8) {
        float *to = z + i / CTR_GEMM_NR_ * panel + i % CTR_GEMM_NR_;
        for (x = 0; x < 4; x++) {
            ctr_wino_a8_(_mm256_loadu_ps(p[x] + i), _mm256_loadu_ps(p[x + 4] + i),
                         _mm256_loadu_ps(p[x + 8] + i), _mm256_loadu_ps(p[x + 12] + i),
                         half + x * 8, 32);
        }
        for (y = 0; y < 6; y++) {
            const float *h = half + y * 32;
            ctr_wino_a8_(_mm256_loadu_ps(h), _mm256_loadu_ps(h + 8), _mm256_loadu_ps(h + 16),
                         _mm256_loadu_ps(h + 24), to + y * 6 * plane, plane);
        }
    }
}

/* u = G w G' for 8 channels; the nine taps of w lie `tap` apart. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_u8_(const float *w, int64_t tap, float *u,
                                                int64_t plane)
{
    float half[18 * 8]; /* [6][3][8] */
    int64_t x, y;
    for (x = 0; x < 3; x++, w += tap) {
        ctr_wino_g8_(_mm256_loadu_ps(w), _mm256_loadu_ps(w + 3 * tap),
                     _mm256_loadu_ps(w + 6 * tap), half + x * 8, 24);
    }
    for (y = 0; y < 6; y++) {
        const float *h = half + y * 24;
        ctr_wino_g8_(_mm256_loadu_ps(h), _mm256_loadu_ps(h + 8), _mm256_loadu_ps(h + 16),
                     u + y * 6 * plane, plane);
    }
}

/* y = A' m A for oc channels of a tile whose pixels are p[4][4]. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_out8_(const float *m, int64_t plane, int64_t oc,
                                                  float *const *p, int acc)
{
    float half[24 * 8]; /* [4][6][8] */
    __m256 o[4];
    int64_t i, x, y;
    for (i = 0; i < oc; i += 8) {
        for (x = 0; x < 6; x++) {
            ctr_wino_at8_(m + x * plane + i, 6 * plane, o);
            for (y = 0; y < 4; y++) {
                _mm256_storeu_ps(half + (y * 6 + x) * 8, o[y]);
            }
        }
        for (y = 0; y < 4; y++) {
            ctr_wino_at8_(half + y * 48, 8, o);
            for (x = 0; x < 4; x++) {
                float *to = p[y * 4 + x] + i;
                _mm256_storeu_ps(to, acc ? _mm256_add_ps(_mm256_loadu_ps(to), o[x]) : o[x]);
            }
        }
    }
}

/* dw = G' u G for 8 channels; the nine taps of dw lie `tap` apart. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_dw8_(const float *u, int64_t plane, float *dw,
                                                 int64_t tap, int acc)
{
    float half[18 * 8]; /* [3][6][8] */
    __m256 o[3];
    int64_t x, y;
    for (x = 0; x < 6; x++) {
        ctr_wino_gt8_(u + x * plane, 6 * plane, o);
        for (y = 0; y < 3; y++) {
            _mm256_storeu_ps(half + (y * 6 + x) * 8, o[y]);
        }
    }
    for (y = 0; y < 3; y++) {
        ctr_wino_gt8_(half + y * 48, 8, o);
        for (x = 0; x < 3; x++) {
            float *to = dw + (y * 3 + x) * tap;
            _mm256_storeu_ps(to, acc ? _mm256_add_ps(_mm256_loadu_ps(to), o[x]) : o[x]);
        }
    }
}

/* What the jobs of a fast pass share, besides the arguments. */
typedef struct ctr_wino_plan_ {
    ctr_wino_args_ a;
    float *in, *dy;           /* only read; not const so that all pixel pointers are one type */
    float *zero;              /* [c or oc] read outside the images */
    int64_t block;            /* tiles of a job, narrow; tiles of a group, wide */
    int64_t first, last;      /* tiles of the group at hand, wide */
    int64_t lv, vp, lm, mp;   /* from row to row and plane to plane: of v, of m or z */
    int64_t lu, up;           /* of the weights, or of their gradient */
    int64_t panels;           /* ceil(oc / 16) */
    int64_t part, parts;      /* tiles of a part of the gradient to the weights, and how many */
    int64_t ci, cj, nj;       /* rectangle of channels of a job, wide; how many side by side */
    float *v, *z, *u;         /* shared by the jobs, or one after the other */
    char *work;               /* each worker's own memory */
    size_t work_size;
} ctr_wino_plan_;

/* Floats from row to row, and from plane to plane: no multiples of 256 bytes. */
CTR_PRIVATE_ int64_t ctr_wino_pad_(int64_t floats)
{
    return floats % 64 ? floats : floats + 16;
}

CTR_PRIVATE_ float *ctr_wino_own_(const ctr_wino_plan_ *g, int worker)
{
    return (float *)(void *)(g->work + (size_t)worker * g->work_size);
}

/* Pointers to the pixels of a tile's square, as for ctr_wino_get_; `outside` is for the rest. */
CTR_PRIVATE_ void ctr_wino_points_(const ctr_wino_args_ *g, int64_t tile, int64_t side,
                                   int64_t shift, float *image, int64_t c, float *outside,
                                   float **p)
{
    const int64_t top = tile / g->tw % g->th * 4 - shift, left = tile % g->tw * 4 - shift;
    int64_t y, x;
    image += tile / g->tw / g->th * g->h * g->w * c;
    if (top >= 0 && left >= 0 && top + side <= g->h && left + side <= g->w) {
        for (y = 0; y < side; y++) {
            for (x = 0; x < side; x++) {
                *p++ = image + ((top + y) * g->w + left + x) * c;
            }
        }
        return;
    }
    for (y = top; y < top + side; y++) {
        const int row = ctr_conv_inside_(y, g->h);
        for (x = left; x < left + side; x++) {
            *p++ = row && ctr_conv_inside_(x, g->w) ? image + (y * g->w + x) * c : outside;
        }
    }
}

/* v of tiles first .. last-1, into rows 0 .. */
CTR_PRIVATE_ void ctr_wino_v_tiles_(const ctr_wino_plan_ *g, int64_t first, int64_t last, float *v)
{
    float *p[36];
    int64_t t;
    for (t = first; t < last; t++, v += g->lv) {
        ctr_wino_points_(&g->a, t, 6, 1, g->in, g->a.c, g->zero, p);
        ctr_wino_v8_(p, g->a.c, v, g->vp);
    }
}

/* z of tiles first .. last-1; a panel has room for `room` tiles */
CTR_PRIVATE_ void ctr_wino_z_tiles_(const ctr_wino_plan_ *g, int64_t first, int64_t last,
                                    int64_t room, float *z)
{
    float *p[16];
    int64_t t;
    for (t = first; t < last; t++, z += CTR_GEMM_NR_) {
        ctr_wino_points_(&g->a, t, 4, 0, g->dy, g->a.oc, g->zero, p);
        ctr_wino_z8_(p, g->a.oc, z, room * CTR_GEMM_NR_, g->mp);
    }
}

/* Output tiles first .. last-1, channels [j, j + oc), from m; pixels that hang over the edge go
   to `trash`. */
CTR_PRIVATE_ void ctr_wino_out_tiles_(const ctr_wino_plan_ *g, int64_t first, int64_t last,
                                      int64_t j, int64_t oc, const float *m, float *trash)
{
    float *p[16];
    int64_t t;
    for (t = first; t < last; t++, m += g->lm) {
        ctr_wino_points_(&g->a, t, 4, 0, g->a.out + j, g->a.oc, trash, p);
        ctr_wino_out8_(m, g->mp, oc, p, g->a.acc);
    }
}

/* Transformed weights of panel j and input channels [k0, k0 + kc), as [36][kc][16] with planes
   `plane` apart. nine: room for the panel's own weights, [9][kc][16]. */
CTR_PRIVATE_ void ctr_wino_u_panel_(const ctr_wino_args_ *g, int64_t j, int64_t k0, int64_t kc,
                                    float *nine, float *u, int64_t plane)
{
    const int64_t o = j * CTR_GEMM_NR_, width = ctr_gemm_min_(CTR_GEMM_NR_, g->oc - o);
    const int64_t size = kc * CTR_GEMM_NR_;
    int64_t i;
    for (i = 0; i < 9; i++) {
        if (g->turned) {
            ctr_gemm_pack_(1, kc, width, g->weight + (8 - i) * g->c * g->oc + o * g->c + k0, g->c,
                           nine + i * size);
        } else {
            ctr_gemm_pack_(0, kc, width, g->weight + (i * g->c + k0) * g->oc + o, g->oc,
                           nine + i * size);
        }
    }
    for (i = 0; i < size; i += 8) {
        ctr_wino_u8_(nine + i, size, u + i, plane);
    }
}

/* The 36 products m (+)= v[:, k0 : k0 + kc] u for `tiles` rows v and m; u [36][panels][kc][16]. */
CTR_PRIVATE_ void ctr_wino_multiply_(const ctr_wino_plan_ *g, float **rows, float **outs,
                                     int64_t tiles, int64_t k0, int64_t kc, const float *u,
                                     int64_t up, int64_t panels)
{
    ctr_gemm_tile_ tile;
    int64_t plane, j, i, some;
    tile.taps = 1;
    tile.k = kc;
    tile.acc = k0 > 0;
    for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
        tile.skip = (plane * g->vp + k0) * (int64_t)sizeof(float);
        for (j = 0; j < panels; j++) {
            tile.b = u + plane * up + j * kc * CTR_GEMM_NR_;
            tile.column = (plane * g->mp + j * CTR_GEMM_NR_) * (int64_t)sizeof(float);
            for (i = 0; i < tiles; i += some) {
                some = ctr_conv_rows_(tiles - i);
                tile.rows = (const float *const *)(rows + i);
                tile.outs = outs + i;
                ctr_gemm_inner_(&tile, some, CTR_GEMM_NR_);
            }
        }
    }
}

/* The 36 products u (+)= v[:, i0 : i0 + ci]' z for `tiles` tiles; outs are the ci rows of u, z has
   `room` tiles a panel. */
CTR_PRIVATE_ void ctr_wino_multiply_outer_(const ctr_wino_plan_ *g, float **rows, float **outs,
                                           int64_t tiles, int64_t i0, int64_t ci, const float *z,
                                           int64_t room, int64_t panels, int acc)
{
    ctr_gemm_tile_ tile;
    int64_t plane, j, i, m;
    tile.taps = 1;
    tile.k = tiles;
    tile.acc = acc;
    tile.rows = (const float *const *)rows;
    for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
        for (j = 0; j < panels; j++) {
            tile.b = z + plane * g->mp + j * room * CTR_GEMM_NR_;
            tile.column = (plane * g->up + j * CTR_GEMM_NR_) * (int64_t)sizeof(float);
            for (i = 0; i < ci; i += m) {
                m = ctr_conv_rows_(ci - i);
                tile.skip = (plane * g->vp + i0 + i) * (int64_t)sizeof(float);
                tile.outs = outs + i;
                ctr_gemm_outer_(&tile, m, CTR_GEMM_NR_);
            }
        }
    }
}

/* ---- narrow ---- */

CTR_PRIVATE_ void ctr_wino_narrow_u_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    ctr_wino_u_panel_(&g->a, chunk, 0, g->a.c, ctr_wino_own_(g, worker),
                      g->u + chunk * g->a.c * CTR_GEMM_NR_, g->up);
}

CTR_PRIVATE_ void ctr_wino_narrow_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    const int64_t first = chunk * g->block, last = ctr_gemm_min_(first + g->block, g->a.tiles);
    float *v = ctr_wino_own_(g, worker), *m = v + CTR_WINO_PLANES_ * g->vp;
    float *rows[CTR_WINO_BLOCK_], *outs[CTR_WINO_BLOCK_];
    int64_t i;
    for (i = 0; i < g->block; i++) {
        rows[i] = v + i * g->lv;
        outs[i] = m + i * g->lm;
    }
    ctr_wino_v_tiles_(g, first, last, v);
    ctr_wino_multiply_(g, rows, outs, last - first, 0, g->a.c, g->u, g->up, g->panels);
    ctr_wino_out_tiles_(g, first, last, 0, g->a.oc, m, m + CTR_WINO_PLANES_ * g->mp);
}

CTR_PRIVATE_ void ctr_wino_narrow_(ctr_ctx *ctx, ctr_wino_plan_ *g)
{
    const int64_t wide16 = g->panels * CTR_GEMM_NR_;
    int64_t floats, nine, zeros = ctr_gemm_pieces_(g->a.c, 16) * 16;
    const int64_t most = g->a.c > g->a.oc ? g->a.c : g->a.oc;
    g->block = most > 64 ? 36 : most > 32 ? 24 : CTR_WINO_BLOCK_; /* v, m: see L2 */
    g->block = ctr_gemm_pieces_(g->a.tiles, ctr_gemm_pieces_(g->a.tiles, g->block));
    g->lv = ctr_wino_pad_(g->a.c);
    g->vp = g->block * g->lv + 16;
    g->lm = ctr_wino_pad_(wide16);
    g->mp = g->block * g->lm + 16;
    g->up = wide16 * g->a.c + 16;
    floats = CTR_WINO_PLANES_ * (g->vp + g->mp) + wide16;
    nine = 9 * g->a.c * CTR_GEMM_NR_; /* for the transform of the weights, before that */
    g->work_size = (size_t)(floats > nine ? floats : nine) * sizeof(float);
    g->u = (float *)ctr_scratch_(ctx,
                                 (size_t)(CTR_WINO_PLANES_ * g->up + zeros) * sizeof(float) +
                                     (size_t)ctr_threads_(ctx) * g->work_size);
    if (!g->u) {
        return;
    }
    g->zero = g->u + CTR_WINO_PLANES_ * g->up;
    g->work = (char *)(g->zero + zeros);
    memset(g->zero, 0, (size_t)zeros * sizeof(float));
    ctr_gemm_spread_(ctx, g->panels, 64 * g->a.c * wide16, ctr_wino_narrow_u_job_, g);
    ctr_gemm_spread_(ctx, ctr_gemm_pieces_(g->a.tiles, g->block),
                     CTR_WINO_PLANES_ * g->a.tiles * g->a.c * g->a.oc, ctr_wino_narrow_job_, g);
}

/* u of one part of the tiles */
CTR_PRIVATE_ void ctr_wino_narrow_sum_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    const int64_t end = ctr_gemm_min_((chunk + 1) * g->part, g->a.tiles);
    float *v = ctr_wino_own_(g, worker), *z = v + CTR_WINO_PLANES_ * g->vp;
    float *u = g->u + chunk * CTR_WINO_PLANES_ * g->up;
    float *rows[CTR_WINO_BLOCK_], *outs[CTR_WINO_NARROW_]; /* [block], [c] */
    int64_t i, first = chunk * g->part, last;
    for (i = 0; i < g->block; i++) {
        rows[i] = v + i * g->lv;
    }
    for (i = 0; i < g->a.c; i++) {
        outs[i] = u + i * g->lu;
    }
    for (; first < end; first = last) {
        last = ctr_gemm_min_(first + g->block, end);
        ctr_wino_v_tiles_(g, first, last, v);
        ctr_wino_z_tiles_(g, first, last, g->block, z);
        ctr_wino_multiply_outer_(g, rows, outs, last - first, 0, g->a.c, z, g->block, g->panels,
                                 first > chunk * g->part);
    }
}

/* Adds up the parts for one input channel and transforms back. */
CTR_GEMM_TARGET_ CTR_PRIVATE_ void ctr_wino_narrow_dw_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    float sum[CTR_WINO_PLANES_ * 8];
    int64_t o, plane, part;
    (void)worker;
    for (o = 0; o < g->a.oc; o += 8) {
        for (plane = 0; plane < CTR_WINO_PLANES_; plane++) {
            const float *u = g->u + plane * g->up + chunk * g->lu + o;
            __m256 s = _mm256_loadu_ps(u);
            for (part = 1; part < g->parts; part++) {
                s = _mm256_add_ps(s, _mm256_loadu_ps(u + part * CTR_WINO_PLANES_ * g->up));
            }
            _mm256_storeu_ps(sum + plane * 8, s);
        }
        ctr_wino_dw8_(sum, 8, g->a.out + chunk * g->a.oc + o, g->a.c * g->a.oc, g->a.acc);
    }
}

/* Parts of at least 256 tiles, so that adding them up stays cheap. */
CTR_PRIVATE_ void ctr_wino_narrow_weight_(ctr_ctx *ctx, ctr_wino_plan_ *g)
{
    int64_t sums, zeros = ctr_gemm_pieces_(g->a.c + g->a.oc, 16) * 16;
    g->block = CTR_WINO_BLOCK_;
    g->parts = ctr_gemm_min_(8, ctr_gemm_pieces_(g->a.tiles, 256));
    g->part = ctr_gemm_pieces_(g->a.tiles, g->parts);
    g->parts = ctr_gemm_pieces_(g->a.tiles, g->part);
    g->lv = ctr_wino_pad_(g->a.c);
    g->vp = g->block * g->lv + 16;
    g->mp = g->panels * g->block * CTR_GEMM_NR_ + 16;
    g->lu = ctr_wino_pad_(g->panels * CTR_GEMM_NR_);
    g->up = g->a.c * g->lu + 16;
    sums = g->parts * CTR_WINO_PLANES_ * g->up;
    g->work_size = (size_t)(CTR_WINO_PLANES_ * (g->vp + g->mp)) * sizeof(float);
    g->u = (float *)ctr_scratch_(ctx, (size_t)(sums + zeros) * sizeof(float) +
                                          (size_t)ctr_threads_(ctx) * g->work_size);
    if (!g->u) {
        return;
    }
    g->zero = g->u + sums;
    g->work = (char *)(g->zero + zeros);
    memset(g->zero, 0, (size_t)zeros * sizeof(float));
    ctr_gemm_spread_(ctx, g->parts, CTR_WINO_PLANES_ * g->a.tiles * g->a.c * g->a.oc,
                     ctr_wino_narrow_sum_job_, g);
    ctr_gemm_spread_(ctx, g->a.c, 8 * sums, ctr_wino_narrow_dw_job_, g);
}

/* ---- wide ---- */

#define CTR_WINO_SOME_ 8 /* tiles of a job that only transforms */

CTR_PRIVATE_ void ctr_wino_wide_v_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    const int64_t first = g->first + chunk * CTR_WINO_SOME_;
    const int64_t last = ctr_gemm_min_(first + CTR_WINO_SOME_, g->last);
    (void)worker;
    ctr_wino_v_tiles_(g, first, last, g->v + chunk * CTR_WINO_SOME_ * g->lv);
    if (g->z) {
        ctr_wino_z_tiles_(g, first, last, g->block,
                          g->z + chunk * CTR_WINO_SOME_ * CTR_GEMM_NR_);
    }
}

/* Sixteen output channels of all tiles of the group. */
CTR_PRIVATE_ void ctr_wino_wide_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    const int64_t tiles = g->last - g->first, o = chunk * CTR_GEMM_NR_;
    float *u = ctr_wino_own_(g, worker), *m = u + CTR_WINO_PLANES_ * g->up;
    float *nine = m + CTR_WINO_PLANES_ * g->mp;
    float *rows[CTR_WINO_GROUP_], *outs[CTR_WINO_GROUP_];
    int64_t i, k;
    for (i = 0; i < tiles; i++) {
        rows[i] = g->v + i * g->lv;
        outs[i] = m + i * g->lm;
    }
    for (k = 0; k < g->a.c; k += CTR_WINO_DEPTH_) {
        const int64_t kc = ctr_gemm_min_(CTR_WINO_DEPTH_, g->a.c - k);
        ctr_wino_u_panel_(&g->a, chunk, k, kc, nine, u, g->up);
        ctr_wino_multiply_(g, rows, outs, tiles, k, kc, u, g->up, 1);
    }
    ctr_wino_out_tiles_(g, g->first, g->last, o, ctr_gemm_min_(CTR_GEMM_NR_, g->a.oc - o), m,
                        nine); /* nine has served */
}

/* A rectangle of ci x cj channels of dw, of the tiles of the group. */
CTR_PRIVATE_ void ctr_wino_wide_dw_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_wino_plan_ *g = (const ctr_wino_plan_ *)arg;
    const int64_t i0 = chunk / g->nj * g->ci, j0 = chunk % g->nj * g->cj;
    const int64_t ci = ctr_gemm_min_(g->ci, g->a.c - i0), cj = ctr_gemm_min_(g->cj, g->a.oc - j0);
    float *u = ctr_wino_own_(g, worker);
    float *rows[CTR_WINO_GROUP_], *outs[CTR_WINO_GROUP_];
    int64_t i, o;
    for (i = 0; i < g->last - g->first; i++) {
        rows[i] = g->v + i * g->lv;
    }
    for (i = 0; i < ci; i++) {
        outs[i] = u + i * g->lu;
    }
    ctr_wino_multiply_outer_(g, rows, outs, g->last - g->first, i0, ci,
                             g->z + j0 * g->block, g->block,
                             ctr_gemm_pieces_(cj, CTR_GEMM_NR_), 0);
    for (i = 0; i < ci; i++) {
        for (o = 0; o < cj; o += 8) {
            ctr_wino_dw8_(u + i * g->lu + o, g->up, g->a.out + (i0 + i) * g->a.oc + j0 + o,
                          g->a.c * g->a.oc, g->a.acc || g->first > 0);
        }
    }
}

/* Both wide passes: group after group, transforms and then products. */
CTR_PRIVATE_ void ctr_wino_wide_(ctr_ctx *ctx, ctr_wino_plan_ *g, int weights)
{
    const int64_t zeros = ctr_gemm_pieces_(g->a.c + g->a.oc, 16) * 16;
    const int64_t most = weights && g->a.oc > g->a.c ? g->a.oc : g->a.c;
    int64_t jobs, nv, nz, work;
    g->block = CTR_WINO_SHARED_ / (CTR_WINO_PLANES_ * most) + 1;
    g->block = ctr_gemm_min_(g->block, CTR_WINO_GROUP_);
    g->block = ctr_gemm_pieces_(g->a.tiles, ctr_gemm_pieces_(g->a.tiles, g->block));
    g->ci = ctr_gemm_min_(64, g->a.c);
    g->cj = 32;
    g->nj = ctr_gemm_pieces_(g->a.oc, g->cj);
    jobs = weights ? ctr_gemm_pieces_(g->a.c, g->ci) * g->nj : g->panels;
    g->lv = ctr_wino_pad_(g->a.c);
    g->vp = g->block * g->lv + 16;
    g->lm = CTR_GEMM_NR_;
    g->mp = g->block * CTR_GEMM_NR_ * (weights ? g->panels : 1) + 16;
    g->lu = g->cj;
    g->up = (weights ? g->ci * g->lu : CTR_WINO_DEPTH_ * CTR_GEMM_NR_) + 16;
    work = CTR_WINO_PLANES_ * g->up;
    work += weights ? 0 : CTR_WINO_PLANES_ * g->mp + 9 * CTR_WINO_DEPTH_ * CTR_GEMM_NR_;
    g->work_size = (size_t)work * sizeof(float);
    nv = CTR_WINO_PLANES_ * g->vp;
    nz = weights ? CTR_WINO_PLANES_ * g->mp : 0;
    g->v = (float *)ctr_scratch_(ctx, (size_t)(nv + nz + zeros) * sizeof(float) +
                                          (size_t)ctr_threads_(ctx) * g->work_size);
    if (!g->v) {
        return;
    }
    g->z = weights ? g->v + nv : NULL;
    g->zero = g->v + nv + nz;
    g->work = (char *)(g->zero + zeros);
    memset(g->zero, 0, (size_t)zeros * sizeof(float));
    work = CTR_WINO_PLANES_ * g->block * g->a.c * g->a.oc;
    for (g->first = 0; g->first < g->a.tiles; g->first = g->last) {
        g->last = ctr_gemm_min_(g->first + g->block, g->a.tiles);
        ctr_gemm_spread_(ctx, ctr_gemm_pieces_(g->last - g->first, CTR_WINO_SOME_), 8 * (nv + nz),
                         ctr_wino_wide_v_job_, g);
        ctr_gemm_spread_(ctx, jobs, work, weights ? ctr_wino_wide_dw_job_ : ctr_wino_wide_job_, g);
    }
}

/* Whether the narrow way is taken: by shape alone. At 256 channels it is the faster one if it has
   at least 7 jobs; but not for weights, whose parts would be few and large. */
CTR_PRIVATE_ int ctr_wino_is_narrow_(const ctr_wino_args_ *a, int weights)
{
    const int64_t most = a->c > a->oc ? a->c : a->oc;
    return most <= CTR_WINO_NARROW_ ||
           (!weights && most <= 2 * CTR_WINO_NARROW_ && a->tiles >= 7 * 36);
}

CTR_PRIVATE_ void ctr_wino_avx2_(ctr_ctx *ctx, const ctr_wino_args_ *a, int weights)
{
    ctr_wino_plan_ g;
    memset(&g, 0, sizeof g);
    g.a = *a;
    g.in = (float *)a->in; /* only read */
    g.dy = (float *)a->dy;
    g.panels = ctr_gemm_pieces_(a->oc, CTR_GEMM_NR_);
    if (!ctr_wino_is_narrow_(a, weights)) {
        ctr_wino_wide_(ctx, &g, weights);
    } else if (weights) {
        ctr_wino_narrow_weight_(ctx, &g);
    } else {
        ctr_wino_narrow_(ctx, &g);
    }
}

#endif /* CTR_GEMM_AVX2_ */

CTR_PRIVATE_ void ctr_wino_run_(ctr_ctx *ctx, ctr_wino_args_ *g, int weights)
{
#if CTR_GEMM_AVX2_
    if (ctr_kernels_(ctx) >= CTR_KERNELS_AVX2 && g->c % 8 == 0 && g->oc % 8 == 0) {
        ctr_wino_avx2_(ctx, g, weights);
        return;
    }
#endif
    ctr_wino_scalar_(ctx, g, weights);
}

/* y = convolution of x with w; as ctr_conv_forward_, for shapes that fit */
CTR_PRIVATE_ void ctr_wino_forward_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                    const ctr_real *w, ctr_real *y)
{
    ctr_wino_args_ g;
    ctr_wino_args_set_(&g, s);
    g.in = x;
    g.weight = w;
    g.out = y;
    ctr_wino_run_(ctx, &g, 0);
}

/* dx = gradient to the input, or dx += it if acc: the convolution of dy with the turned weights */
CTR_PRIVATE_ void ctr_wino_input_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                                  const ctr_real *w, ctr_real *dx, int acc)
{
    ctr_wino_args_ g;
    ctr_wino_args_set_(&g, s);
    g.c = s->oc;
    g.oc = s->c;
    g.in = dy;
    g.weight = w;
    g.turned = 1;
    g.out = dx;
    g.acc = acc;
    ctr_wino_run_(ctx, &g, 0);
}

/* dw = gradient to the weights, or dw += it if acc */
CTR_PRIVATE_ void ctr_wino_weight_(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                   const ctr_real *dy, ctr_real *dw, int acc)
{
    ctr_wino_args_ g;
    ctr_wino_args_set_(&g, s);
    g.in = x;
    g.dy = dy;
    g.out = dw;
    g.acc = acc;
    ctr_wino_run_(ctx, &g, 1);
}

/* ---- the verbs of matrix product, convolution and pooling
   -------------------------------------- */

CTR_API void ctr_k_gemm(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k,
                        ctr_real alpha, const ctr_real *a, int64_t lda, const ctr_real *b,
                        int64_t ldb, ctr_real beta, ctr_real *c, int64_t ldc)
{
    CTR_VERB_(gemm, (ctx, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
    ctr_gemm_run_(ctx, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

CTR_PRIVATE_ int ctr_wino_chosen_(const ctr_ctx *ctx, const ctr_conv_shape *s)
{
    ctr_conv_kind kind = ctx->config.conv;
    if (kind == CTR_CONV_AUTO)
        kind = ctx->kernels == CTR_KERNELS_AVX2 ? CTR_CONV_WINOGRAD : CTR_CONV_DIRECT;
    return kind == CTR_CONV_WINOGRAD && ctr_wino_fits_(s);
}

CTR_API void ctr_k_conv_forward(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                                const ctr_real *w, ctr_real *y)
{
    CTR_VERB_(conv_forward, (ctx, s, x, w, y))
    if (ctr_wino_chosen_(ctx, s)) ctr_wino_forward_(ctx, s, x, w, y);
    else ctr_conv_forward_(ctx, s, x, w, y);
}

CTR_API void ctr_k_conv_input(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *dy,
                              const ctr_real *w, ctr_real *dx, int acc)
{
    CTR_VERB_(conv_input, (ctx, s, dy, w, dx, acc))
    if (ctr_wino_chosen_(ctx, s)) ctr_wino_input_(ctx, s, dy, w, dx, acc);
    else ctr_conv_input_(ctx, s, dy, w, dx, acc);
}

CTR_API void ctr_k_conv_weight(ctr_ctx *ctx, const ctr_conv_shape *s, const ctr_real *x,
                               const ctr_real *dy, ctr_real *dw, int acc)
{
    CTR_VERB_(conv_weight, (ctx, s, x, dy, dw, acc))
    if (ctr_wino_chosen_(ctx, s)) ctr_wino_weight_(ctx, s, x, dy, dw, acc);
    else ctr_conv_weight_(ctx, s, x, dy, dw, acc);
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

   A node remembers what made a tensor: its inputs, a saved block and its own backward function.
   Nodes form a list in the order of creation; backward walks it from the end. When a node's
   backward is done, its gradient goes back to the free list and the slab's low end is popped to
   where it stood before the node, so memory falls as backward proceeds.
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

CTR_PRIVATE_ int ctr_needs_grad_(const ctr_tensor *t)
{
    return (t->flags & CTR_T_NEEDS_GRAD_) != 0;
}
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
    ctx->plan_peak = ctx->slab.peak;
    ctx->slab.peak = 0;
}

CTR_API size_t ctr_plan_end(ctr_ctx *ctx)
{
    size_t peak = ctx->slab.peak;
    if (!ctx->plan) return 0;
    ctx->plan = 0;
    ctr_step_end(ctx);
    ctx->step++;
    ctx->slab.peak = ctx->plan_peak; /* what was only planned is not what a step has needed */
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
CTR_PRIVATE_ ctr_tensor *ctr_view_(ctr_ctx *ctx, const ctr_tensor *t, int rank,
                                   const int64_t *shape)
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
        ctr_fail_(ctx, CTR_E_STATE,
                  "backward: the loss depends on no tensor that needs a gradient");
        return;
    }
    ctr_keep(ctx, loss);
    if (ctr_grad_(ctx, loss, &grad, &acc)) ctr_k_fill(ctx, 1, 1, grad);
    ctr_backward_run_(ctx);
}

/* ---- building nodes: begin, set what is needed, out, verbs, done
   ------------------------------- */

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

/* ---- x op y, with y broadcast over the leading dimensions
   -------------------------------------- */

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

/* ---- functions of one number
   ------------------------------------------------------------------- */

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
CTR_API ctr_tensor *ctr_softplus(ctr_ctx *ctx, ctr_tensor *x)
{
    return ctr_unary_op_(ctx, "softplus", CTR_SOFTPLUS, x);
}

/* ---- matrix product
   ---------------------------------------------------------------------------- */

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

/* ---- convolution
   ------------------------------------------------------------------------------- */

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

/* ---- sums
   -------------------------------------------------------------------------------------- */

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

/* ---- shapes
   ------------------------------------------------------------------------------------ */

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
    for (i = 0; i < rank && rank <= 4 && known >= 0; i++) {
        full[i] = shape[i];
        if (shape[i] == -1 && open < 0) open = i;
        else if (shape[i] < 0 || (known && shape[i] > INT64_MAX / known)) known = -1;
        else known *= shape[i];
    }
    if (open >= 0 && known >= 0) full[open] = known > 0 ? x->size / known : 0;
    if (rank < 0 || rank > 4 || known < 0 || known * (open >= 0 ? full[open] : 1) != x->size) {
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

/* The rank is filled up to four with ones in front. i[0..3]: the permutation, i[4..7]: the
   output */
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

/* ---- rows: normalise, softmax, cross entropy
   --------------------------------------------------- */

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

/* ---- batch normalisation
   ----------------------------------------------------------------------- */

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

/* ---- layer normalisation
   ----------------------------------------------------------------------- */

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
        ctr_fail_shapes_(ctx, "layer_norm", x, gamma,
                         "gamma and beta are [c], c the last dimension");
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

/* ---- dropout
   ----------------------------------------------------------------------------------- */

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

/* ---- pooling
   ----------------------------------------------------------------------------------- */

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

/* ---- the gradient check
   ------------------------------------------------------------------------ */

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

/* ------------------------------------------------------------------------------------------------
   >>NN
   ---------------------------------------------------------------------------------------------- */

/* A variable's name into name[96]; one that is too long is refused by ctr_vars_add. */
CTR_PRIVATE_ void ctr_name_(char *name, const char *format, ...) CTR_PRINTF_(2, 3);
CTR_PRIVATE_ void ctr_name_(char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(name, 96, format, args);
    va_end(args);
}

CTR_API void ctr_vars_init(ctr_vars *vars) { memset(vars, 0, sizeof *vars); }

CTR_API void ctr_vars_destroy(ctr_ctx *ctx, ctr_vars *vars)
{
    int i;
    for (i = 0; i < vars->count; i++) ctr_tensor_destroy(ctx, vars->list[i].value);
    ctr_free_host_(ctx, vars->list, (size_t)vars->capacity * sizeof *vars->list);
    ctr_vars_init(vars);
}

CTR_PRIVATE_ int ctr_vars_grow_(ctr_ctx *ctx, ctr_vars *vars)
{
    int capacity = vars->capacity ? 2 * vars->capacity : 32;
    ctr_var *list;
    if (vars->count < vars->capacity) return 1;
    list = (ctr_var *)ctr_alloc_(ctx, (size_t)capacity * sizeof *list);
    if (!list) return 0;
    if (vars->count) memcpy(list, vars->list, (size_t)vars->count * sizeof *list);
    ctr_free_host_(ctx, vars->list, (size_t)vars->capacity * sizeof *list);
    vars->list = list;
    vars->capacity = capacity;
    return 1;
}

CTR_API const ctr_var *ctr_vars_find(const ctr_vars *vars, const char *name)
{
    int i;
    for (i = 0; i < vars->count; i++)
        if (!strcmp(vars->list[i].name, name)) return &vars->list[i];
    return NULL;
}

CTR_API ctr_tensor *ctr_vars_add(ctr_ctx *ctx, ctr_vars *vars, const char *prefix,
                                 const char *name, ctr_kind kind, int rank, const int64_t *shape)
{
    ctr_var v;
    memset(&v, 0, sizeof v);
    if (ctx->status != CTR_OK || !ctr_vars_grow_(ctx, vars)) return &ctx->poison;
    if ((size_t)snprintf(v.name, sizeof v.name, "%s%s", prefix, name) >= sizeof v.name ||
        ctr_vars_find(vars, v.name)) {
        ctr_fail_(ctx, CTR_E_VALUE, "vars: the name %s%s is too long or taken", prefix, name);
        return &ctx->poison;
    }
    v.kind = kind;
    v.conv = rank == 4;
    v.value =
        ctr_tensor_create(ctx, CTR_F32, rank, shape, kind != CTR_KIND_BUFFER && !vars->frozen);
    if (ctx->status != CTR_OK) return &ctx->poison;
    vars->list[vars->count++] = v;
    return v.value;
}

CTR_API int64_t ctr_vars_numbers(const ctr_vars *vars, int buffers)
{
    int64_t n = 0;
    int i;
    for (i = 0; i < vars->count; i++)
        if (buffers || vars->list[i].kind != CTR_KIND_BUFFER) n += vars->list[i].value->size;
    return n;
}

CTR_PRIVATE_ int ctr_vars_alike_(ctr_ctx *ctx, const ctr_vars *a, const ctr_vars *b)
{
    int i;
    if (ctx->status != CTR_OK) return 0;
    for (i = 0; i < a->count && i < b->count; i++) {
        const ctr_tensor *x = a->list[i].value, *y = b->list[i].value;
        if (x->rank != y->rank || memcmp(x->shape, y->shape, sizeof x->shape) ||
            a->list[i].kind != b->list[i].kind)
            break;
    }
    if (i == a->count && i == b->count) return 1;
    ctr_fail_(ctx, CTR_E_SHAPE, "vars: the networks differ at variable %d (%s and %s)", i,
              i < a->count ? a->list[i].name : "none", i < b->count ? b->list[i].name : "none");
    return 0;
}

CTR_API void ctr_vars_ema(ctr_ctx *ctx, ctr_vars *to, const ctr_vars *from, double tau,
                          int buffers)
{
    int i;
    if (!ctr_vars_alike_(ctx, to, from)) return;
    for (i = 0; i < to->count; i++)
        if (buffers || to->list[i].kind != CTR_KIND_BUFFER)
            ctr_k_axpby(ctx, to->list[i].value->size, (ctr_real)(1 - tau),
                        ctr_f_(from->list[i].value), (ctr_real)tau, ctr_f_(to->list[i].value));
}

CTR_API void ctr_vars_copy(ctr_ctx *ctx, ctr_vars *to, const ctr_vars *from)
{
    ctr_vars_ema(ctx, to, from, 0, 1);
}

CTR_API void ctr_vars_check_gradients(ctr_ctx *ctx, const ctr_vars *vars)
{
    int i;
    for (i = 0; i < vars->count && ctr_ready_(ctx); i++) {
        const ctr_tensor *t = vars->list[i].value;
        if (ctr_tensor_has_grad(ctx, t) && !ctr_k_finite(ctx, t->size, t->grad))
            ctr_fail_(ctx, CTR_E_NUMBER, "step: the gradient of %s is not finite",
                      vars->list[i].name);
    }
}

/* ---- initial values
   ---------------------------------------------------------------------------- */

/* FNV-1a of a name: initial values depend on the seed and the name, not on the order of
   creation. */
CTR_PRIVATE_ uint32_t ctr_name_hash_(const char *prefix, const char *name)
{
    uint32_t h = 2166136261u;
    for (; *prefix; prefix++) h = (h ^ (unsigned char)*prefix) * 16777619u;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 16777619u;
    return h;
}

/* Initial values are drawn in blocks of 128, each from 32 of Philox's blocks, so that any thread
   can draw any of them. The loops have no branch and no call, for the compiler to vectorise; they
   use no FMA, so every kernel set draws the same bits. */
enum { CTR_INIT_BLOCK_ = 128, CTR_INIT_CHUNK_ = 16384 };

typedef struct ctr_init_ {
    ctr_rng rng;
    int normal;
    int64_t n;
    float scale, shift; /* what comes out is scale x - shift */
    ctr_real *out;
} ctr_init_;

/* log(x) for 0 < x <= 1: x = 2^k m with m in [sqrt 1/2, sqrt 2), log m = 2 atanh((m-1)/(m+1)).
   Relative error below 2e-7. */
CTR_INLINE_ float ctr_init_log_(float x)
{
    uint32_t bits;
    int32_t k;
    float m, s, z;
    memcpy(&bits, &x, sizeof bits);
    k = (int32_t)(bits - 0x3f3504f3u) >> 23;
    bits -= (uint32_t)k << 23;
    memcpy(&m, &bits, sizeof m);
    s = (m - 1.0f) / (m + 1.0f);
    z = s * s;
    return (float)k * 0.69314718f +
           s * (2.0f + z * (0.66666667f + z * (0.4f + z * (0.28571429f + z * 0.22222222f))));
}

/* The square root of 0 < x < 64 by three of Newton's steps for 1 / sqrt x: a call of sqrtf() may
   set errno, which keeps a loop from being vectorised. Relative error below 2e-7. */
CTR_INLINE_ float ctr_init_sqrt_(float x)
{
    uint32_t bits;
    float r;
    memcpy(&bits, &x, sizeof bits);
    bits = 0x5f3759dfu - (bits >> 1);
    memcpy(&r, &bits, sizeof r);
    r *= 1.5f - 0.5f * x * r * r;
    r *= 1.5f - 0.5f * x * r * r;
    r *= 1.5f - 0.5f * x * r * r;
    return x * r;
}

/* The cosine and sine of 2 pi v, 0 <= v < 1: by Taylor's series from the nearest half turn q, at
   most a quarter turn away; an odd q turns both signs. Error below 1e-6. */
CTR_INLINE_ void ctr_init_turn_(float v, float *c, float *s)
{
    int32_t q = (int32_t)(v * 2.0f + 0.5f);
    float a = (v - (float)q * 0.5f) * 6.28318531f, z = a * a, sign = (float)(1 - 2 * (q & 1));
    *c = sign * (1.0f - z * (0.5f - z * (4.1666667e-2f - z * (1.3888889e-3f -
                 z * (2.4801587e-5f - z * (2.7557319e-7f - z * 2.0876757e-9f))))));
    *s = sign * a * (1.0f - z * (1.6666667e-1f - z * (8.3333333e-3f - z * (1.9841270e-4f -
                     z * (2.7557319e-6f - z * 2.5052108e-8f)))));
}

/* Values lo .. lo+127, lo = 128 b: the numbers u of Philox's blocks 32 b .. 32 b + 31, first all
   the first numbers, then all the second ones; if normal, by Box and Muller from a first and a
   second number two values, sqrt(-2 log u) times the cosine and the sine of 2 pi u'. */
CTR_INLINE_ void ctr_init_block_(const ctr_init_ *t, int64_t lo, float *x)
{
    uint32_t c0[32], c1[32], c2[32], c3[32], k0 = t->rng.key[0], k1 = t->rng.key[1];
    int i, half, round;
    for (i = 0; i < 32; i++) {
        c0[i] = (uint32_t)(lo / 4) + (uint32_t)i;
        c1[i] = t->rng.counter[1];
        c2[i] = t->rng.counter[2];
        c3[i] = t->rng.counter[3];
    }
    for (round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        for (i = 0; i < 32; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)p1;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)p0;
        }
    for (i = 0; i < 32; i++) {
        x[i] = (float)(int32_t)(c0[i] >> 8) * 5.9604645e-8f;
        x[32 + i] = (float)(int32_t)(c1[i] >> 8) * 5.9604645e-8f;
        x[64 + i] = (float)(int32_t)(c2[i] >> 8) * 5.9604645e-8f;
        x[96 + i] = (float)(int32_t)(c3[i] >> 8) * 5.9604645e-8f;
    }
    for (half = 0; half < 2 && t->normal; half++, x += 64)
        for (i = 0; i < 32; i++) {
            float r = ctr_init_sqrt_(1e-12f - 2.0f * ctr_init_log_(1.0f - x[i])), co, si;
            ctr_init_turn_(x[32 + i], &co, &si);
            x[i] = r * co;
            x[32 + i] = r * si;
        }
}

CTR_PRIVATE_ void ctr_init_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_init_ *t = (const ctr_init_ *)arg;
    int64_t lo = chunk * CTR_INIT_CHUNK_, hi = CTR_MIN_(lo + CTR_INIT_CHUNK_, t->n), i;
    float x[CTR_INIT_BLOCK_];
    (void)worker;
    for (; lo < hi; lo += CTR_INIT_BLOCK_) {
        int64_t m = CTR_MIN_(hi - lo, (int64_t)CTR_INIT_BLOCK_);
        ctr_init_block_(t, lo, x);
        for (i = 0; i < m; i++) t->out[lo + i] = t->scale * x[i] - t->shift;
    }
}

/* Normal with that deviation if normal, else uniform in +-bound. */
CTR_PRIVATE_ void ctr_init_random_(ctr_ctx *ctx, ctr_tensor *t, const char *prefix,
                                   const char *name, int normal, double bound)
{
    ctr_init_ job;
    size_t bytes = ctr_tensor_bytes_(t);
    if (!ctr_ready_(ctx)) return;
    job.out = (ctr_real *)ctr_alloc_(ctx, bytes);
    if (!job.out) return;
    ctr_rng_init(&job.rng, ctx->config.seed, CTR_STREAM_INIT, 0, ctr_name_hash_(prefix, name), 0);
    job.normal = normal;
    job.n = t->size;
    job.scale = (float)(normal ? bound : 2 * bound);
    job.shift = (float)(normal ? 0 : bound);
    ctr_parallel_(ctx, (t->size + CTR_INIT_CHUNK_ - 1) / CTR_INIT_CHUNK_, ctr_init_job_, &job);
    ctr_tensor_write(ctx, t, job.out, t->size);
    ctr_free_host_(ctx, job.out, bytes);
}

/* ---- layers
   ------------------------------------------------------------------------------------ */

CTR_API void ctr_linear_init(ctr_ctx *ctx, ctr_linear *layer, ctr_vars *vars, const char *prefix,
                             int64_t in, int64_t out, int bias)
{
    int64_t shape[2];
    double bound = 1 / sqrt((double)CTR_MAX_(in, 1));
    shape[0] = out;
    shape[1] = in;
    layer->bias = NULL;
    layer->weight = ctr_vars_add(ctx, vars, prefix, "weight", CTR_KIND_WEIGHT, 2, shape);
    ctr_init_random_(ctx, layer->weight, prefix, "weight", 0, bound);
    if (!bias) return;
    layer->bias = ctr_vars_add(ctx, vars, prefix, "bias", CTR_KIND_BIAS, 1, &out);
    ctr_init_random_(ctx, layer->bias, prefix, "bias", 0, bound);
}

CTR_API ctr_tensor *ctr_linear_forward(ctr_ctx *ctx, const ctr_linear *layer, ctr_tensor *x)
{
    ctr_tensor *y = ctr_matmul(ctx, x, 0, layer->weight, 1);
    return layer->bias ? ctr_bias(ctx, y, layer->bias) : y;
}

CTR_API void ctr_conv2d_init(ctr_ctx *ctx, ctr_conv2d *layer, ctr_vars *vars, const char *prefix,
                             int64_t in, int64_t out, int kernel, int stride, int pad)
{
    int64_t shape[4];
    shape[0] = shape[1] = kernel;
    shape[2] = in;
    shape[3] = out;
    layer->stride = stride;
    layer->pad = pad;
    layer->weight = ctr_vars_add(ctx, vars, prefix, "weight", CTR_KIND_WEIGHT, 4, shape);
    ctr_init_random_(ctx, layer->weight, prefix, "weight", 1,
                     sqrt(2.0 / (double)(kernel * kernel * out)));
}

CTR_API ctr_tensor *ctr_conv2d_forward(ctr_ctx *ctx, const ctr_conv2d *layer, ctr_tensor *x)
{
    return ctr_conv(ctx, x, layer->weight, layer->stride, layer->pad);
}

CTR_API void ctr_norm_init(ctr_ctx *ctx, ctr_norm *layer, ctr_vars *vars, const char *prefix,
                           int64_t c, int gamma, int beta)
{
    memset(layer, 0, sizeof *layer);
    layer->momentum = CTR_R(0.1);
    layer->eps = CTR_R(1e-5);
    if (gamma) {
        layer->gamma = ctr_vars_add(ctx, vars, prefix, "weight", CTR_KIND_NORM, 1, &c);
        if (gamma == 1) ctr_tensor_fill(ctx, layer->gamma, 1);
    }
    if (beta) layer->beta = ctr_vars_add(ctx, vars, prefix, "bias", CTR_KIND_NORM, 1, &c);
    layer->mean = ctr_vars_add(ctx, vars, prefix, "running_mean", CTR_KIND_BUFFER, 1, &c);
    layer->var = ctr_vars_add(ctx, vars, prefix, "running_var", CTR_KIND_BUFFER, 1, &c);
    ctr_tensor_fill(ctx, layer->var, 1);
}

/* ---- heads
   ------------------------------------------------------------------------------------- */

CTR_API ctr_mlp_config ctr_mlp_config_default(int64_t in, int64_t hidden, int64_t out)
{
    ctr_mlp_config c;
    memset(&c, 0, sizeof c);
    c.layers = 2;
    c.in = in;
    c.hidden = hidden;
    c.out = out;
    c.hidden_norm = 1;
    c.out_norm = 2;
    return c;
}

CTR_API void ctr_mlp_init(ctr_ctx *ctx, ctr_mlp *head, ctr_vars *vars, const char *prefix,
                          const ctr_mlp_config *config)
{
    const ctr_mlp_config *c = config;
    char name[96];
    int i, at = 0;
    memset(head, 0, sizeof *head);
    head->config = *c;
    if (c->layers < 1 || c->layers > 4 || c->in < 1 || c->hidden < 1 || c->out < 1) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "mlp: needs 1..4 layers and sizes of at least 1, got %d layers, "
                  "%ld, %ld, %ld",
                  c->layers, (long)c->in, (long)c->hidden, (long)c->out);
        return;
    }
    for (i = 0; i < c->layers; i++) {
        int last = i == c->layers - 1, norm = last ? c->out_norm : c->hidden_norm;
        int64_t in = i ? c->hidden : c->in, out = last ? c->out : c->hidden;
        ctr_name_(name, "%s%d.", prefix, at++);
        ctr_linear_init(ctx, &head->linear[i], vars, name, in, out,
                        last ? c->out_bias : c->hidden_bias);
        if (norm) {
            ctr_name_(name, "%s%d.", prefix, at++);
            ctr_norm_init(ctx, &head->norm[i], vars, name, out, norm == 3 ? 0 : 1, norm == 1);
        }
        at++; /* the ReLU has a number, too */
    }
}

CTR_API ctr_tensor *ctr_mlp_forward(ctr_ctx *ctx, const ctr_mlp *head, ctr_tensor *x,
                                    ctr_norm_mode mode, int groups)
{
    int i, last;
    for (i = 0; i < head->config.layers; i++) {
        last = i == head->config.layers - 1;
        x = ctr_linear_forward(ctx, &head->linear[i], x);
        if (last ? head->config.out_norm : head->config.hidden_norm)
            x = ctr_batch_norm(ctx, x, &head->norm[i], mode, groups, NULL, !last);
        else if (!last)
            x = ctr_relu(ctx, x);
    }
    return x;
}

/* ---- residual networks
   ------------------------------------------------------------------------- */

CTR_API void ctr_resnet_config_init(ctr_resnet_config *config, int depth)
{
    memset(config, 0, sizeof *config);
    config->depth = depth;
    config->channels = 3;
    config->image_size = 32;
}

CTR_API ctr_resnet_config ctr_resnet_config_default(int depth)
{
    ctr_resnet_config config;
    ctr_resnet_config_init(&config, depth);
    return config;
}

/* Blocks of each stage; returns the number of stages, 0 for an unknown depth. */
CTR_PRIVATE_ int ctr_resnet_plan_(int depth, int blocks[4])
{
    static const int imagenet[4][5] = {
        { 18, 2, 2, 2, 2 }, { 34, 3, 4, 6, 3 }, { 50, 3, 4, 6, 3 }, { 101, 3, 4, 23, 3 }
    };
    int i, j;
    for (i = 0; i < 4; i++)
        if (imagenet[i][0] == depth) {
            for (j = 0; j < 4; j++) blocks[j] = imagenet[i][j + 1];
            return 4;
        }
    if (depth < 8 || depth > 56 || (depth - 2) % 6) return 0;
    for (j = 0; j < 3; j++) blocks[j] = (depth - 2) / 6;
    return 3;
}

/* Digits alone, without a leading zero: sscanf would take blanks and signs. 0 if there are none. */
CTR_PRIVATE_ int ctr_resnet_number_(const char **at)
{
    int n = 0;
    if (**at == '0') return 0;
    for (; **at >= '0' && **at <= '9' && n < 100000; (*at)++) n = 10 * n + (**at - '0');
    return n;
}

CTR_API int ctr_resnet_config_parse(ctr_resnet_config *config, const char *name)
{
    const char *at = name + 6;
    int depth, width = 0, plan[4];
    if (strncmp(name, "resnet", 6)) return 0;
    depth = ctr_resnet_number_(&at);
    if (*at) {
        if (strncmp(at, "-w", 2)) return 0;
        at += 2;
        width = ctr_resnet_number_(&at);
        if (*at || width < 1 || width > 1024) return 0;
    }
    if (!ctr_resnet_plan_(depth, plan)) return 0;
    config->depth = depth;
    config->width = width;
    return 1;
}

/* One block: in -> mid -> out channels; basic blocks have two 3x3, bottlenecks 1x1, 3x3, 1x1. */
CTR_PRIVATE_ void ctr_res_block_init_(ctr_ctx *ctx, ctr_res_block *b, ctr_vars *vars,
                                      const char *prefix, int64_t in, int64_t mid, int64_t out,
                                      int stride, int convs, int zero_init)
{
    char name[96];
    int i;
    memset(b, 0, sizeof *b);
    b->convs = convs;
    for (i = 0; i < convs; i++) {
        int middle = convs == 2 || i == 1, last = i == convs - 1;
        int step = (convs == 2 && i == 0) || (convs == 3 && i == 1) ? stride : 1;
        ctr_name_(name, "%sconv%d.", prefix, i + 1);
        ctr_conv2d_init(ctx, &b->conv[i], vars, name, i ? mid : in, last ? out : mid,
                        middle ? 3 : 1, step, middle ? 1 : 0);
        ctr_name_(name, "%sbn%d.", prefix, i + 1);
        ctr_norm_init(ctx, &b->norm[i], vars, name, last ? out : mid, last && zero_init ? 2 : 1, 1);
    }
    if (stride == 1 && in == out) return;
    ctr_name_(name, "%sdownsample.0.", prefix);
    ctr_conv2d_init(ctx, &b->down, vars, name, in, out, 1, stride, 0);
    ctr_name_(name, "%sdownsample.1.", prefix);
    ctr_norm_init(ctx, &b->down_norm, vars, name, out, 1, 1);
}

CTR_PRIVATE_ void ctr_resnet_stem_init_(ctr_ctx *ctx, ctr_resnet *net, ctr_vars *vars,
                                        const char *prefix)
{
    ctr_resnet_config *c = &net->config;
    char name[96];
    if (c->stem == CTR_STEM_AUTO)
        c->stem = c->image_size <= 64 ? CTR_STEM_SMALL : CTR_STEM_LARGE;
    ctr_name_(name, "%sconv1.", prefix);
    if (c->stem == CTR_STEM_SMALL)
        ctr_conv2d_init(ctx, &net->stem, vars, name, c->channels, c->width, 3, 1, 1);
    else
        ctr_conv2d_init(ctx, &net->stem, vars, name, c->channels, c->width, 7, 2, 3);
    ctr_name_(name, "%sbn1.", prefix);
    ctr_norm_init(ctx, &net->stem_norm, vars, name, c->width, 1, 1);
}

CTR_API void ctr_resnet_init(ctr_ctx *ctx, ctr_resnet *net, ctr_vars *vars, const char *prefix,
                             const ctr_resnet_config *config)
{
    int plan[4], stage, i;
    char name[96];
    int64_t in, mid, out;
    memset(net, 0, sizeof *net);
    net->config = *config;
    net->stages = ctr_resnet_plan_(config->depth, plan);
    if (!net->stages || config->width < 0 || config->width > 65536 || config->channels < 1 ||
        config->image_size < 1) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "resnet: depth must be 8, 14, 20, 32, 44, 56, 18, 34, 50 or 101, "
                  "got %d (width %ld, channels %ld)",
                  config->depth, (long)config->width, (long)config->channels);
        return;
    }
    if (!net->config.width) net->config.width = net->stages == 3 ? 16 : 64;
    ctr_resnet_stem_init_(ctx, net, vars, prefix);
    in = mid = net->config.width;
    for (stage = 0; stage < net->stages; stage++, mid *= 2) {
        int convs = config->depth >= 50 && net->stages == 4 ? 3 : 2;
        out = convs == 3 ? 4 * mid : mid;
        for (i = 0; i < plan[stage]; i++, in = out) {
            ctr_name_(name, "%slayer%d.%d.", prefix, stage + 1, i);
            ctr_res_block_init_(ctx, &net->block[net->blocks++], vars, name, in, mid, out,
                                stage && !i ? 2 : 1, convs, config->zero_init);
        }
        net->stage_end[stage] = net->blocks;
    }
    net->features = in;
}

CTR_PRIVATE_ ctr_tensor *ctr_res_block_forward_(ctr_ctx *ctx, const ctr_res_block *b, ctr_tensor *x,
                                                ctr_norm_mode mode, int groups)
{
    ctr_tensor *shortcut = x, *y = x;
    int i;
    if (b->down.weight) {
        shortcut = ctr_conv2d_forward(ctx, &b->down, x);
        shortcut = ctr_batch_norm(ctx, shortcut, &b->down_norm, mode, groups, NULL, 0);
    }
    for (i = 0; i < b->convs; i++) {
        y = ctr_conv2d_forward(ctx, &b->conv[i], y);
        y = ctr_batch_norm(ctx, y, &b->norm[i], mode, groups, i == b->convs - 1 ? shortcut : NULL,
                           1);
    }
    return y;
}

/* When nothing is recorded, what a block computed on its way is not needed: its output moves down
   to where the block began, unless it would overlap itself there. */
CTR_PRIVATE_ void ctr_scope_end_(ctr_ctx *ctx, size_t low, size_t want_low, ctr_tensor *t)
{
    ctr_slab_ *s = &ctx->slab;
    size_t bytes = ctr_round_(ctr_tensor_bytes_(t));
    char *to;
    if (!ctx->nograd || ctx->status != CTR_OK) return;
    if (!ctx->plan && !s->overflow) { /* what overflowed lies elsewhere; the next slab has room */
        to = s->base + low;
        if ((char *)t->data < to + bytes) return;
        ctr_k_copy(ctx, ctr_tensor_bytes_(t), t->data, to);
        t->data = to;
        s->low = low + bytes;
    }
    s->want_low = want_low + bytes;
}

CTR_API ctr_tensor *ctr_resnet_forward(ctr_ctx *ctx, const ctr_resnet *net, ctr_tensor *x,
                                       ctr_norm_mode mode, int groups)
{
    size_t low = ctx->slab.low, want_low = ctx->slab.want_low;
    int i;
    if (ctx->status == CTR_OK && (x->rank != 4 || x->shape[3] != net->config.channels)) {
        char text[64];
        ctr_fail_(ctx, CTR_E_SHAPE, "resnet: expected images [n, h, w, %ld], got %s",
                  (long)net->config.channels, ctr_shape_text_(x->rank, x->shape, text));
    }
    x = ctr_conv2d_forward(ctx, &net->stem, x);
    x = ctr_batch_norm(ctx, x, &net->stem_norm, mode, groups, NULL, 1);
    if (net->config.stem == CTR_STEM_LARGE) x = ctr_max_pool(ctx, x, 3, 2, 1);
    ctr_scope_end_(ctx, low, want_low, x);
    for (i = 0; i < net->blocks; i++) {
        low = ctx->slab.low;
        want_low = ctx->slab.want_low;
        x = ctr_res_block_forward_(ctx, &net->block[i], x, mode, groups);
        ctr_scope_end_(ctx, low, want_low, x);
    }
    return ctr_global_pool(ctx, x);
}

CTR_API const char *ctr_resnet_describe(const ctr_resnet *net, char *text)
{
    snprintf(text, 96, "resnet%d width=%ld stem=%s channels=%ld", net->config.depth,
             (long)net->config.width, net->config.stem == CTR_STEM_SMALL ? "small" : "large",
             (long)net->config.channels);
    return text;
}

/* ------------------------------------------------------------------------------------------------
   >>OPTIM
   ---------------------------------------------------------------------------------------------- */

struct ctr_optim {
    ctr_optim_config config;
    ctr_vars *vars;
    ctr_vars state;              /* one or two tensors a trainable variable, in its order */
    int64_t steps;
};

CTR_API void ctr_optim_config_init(ctr_optim_config *config, ctr_optim_kind kind)
{
    memset(config, 0, sizeof *config);
    config->kind = kind;
    config->momentum = 0.9;
    config->decay = kind == CTR_OPTIM_ADAMW ? 0.01 : 1e-4;
    config->trust = 1e-3;
    config->bias_rate = 1;
    config->beta1 = 0.9;
    config->beta2 = 0.999;
    config->eps = 1e-8;
}

CTR_API ctr_optim_config ctr_optim_config_default(ctr_optim_kind kind)
{
    ctr_optim_config config;
    ctr_optim_config_init(&config, kind);
    return config;
}

CTR_API void ctr_optim_destroy(ctr_ctx *ctx, ctr_optim *optim)
{
    if (!optim) return;
    ctr_vars_destroy(ctx, &optim->state);
    ctr_free_host_(ctx, optim, sizeof *optim);
}

/* low <= x < high; NaN by its bits, which -ffast-math cannot argue away. */
CTR_PRIVATE_ int ctr_optim_in_(double x, double low, double high)
{
    return ctr_real_finite_((ctr_real)x) && x >= low && x < high;
}

CTR_PRIVATE_ int ctr_optim_check_(ctr_ctx *ctx, const ctr_optim_config *c)
{
    if (!ctr_optim_in_(c->momentum, 0, 1) || !ctr_optim_in_(c->beta1, 0, 1) ||
        !ctr_optim_in_(c->beta2, 0, 1) || !ctr_optim_in_(c->decay, 0, 1e30))
        ctr_fail_(ctx, CTR_E_VALUE, "optim: momentum, beta1, beta2 must be in [0, 1) and decay at "
                  "least 0; got %g, %g, %g, %g", c->momentum, c->beta1, c->beta2, c->decay);
    if (!ctr_optim_in_(c->bias_rate, 0, 1e30))
        ctr_fail_(ctx, CTR_E_VALUE, "optim: bias_rate must be at least 0, got %g", c->bias_rate);
    if (c->kind == CTR_OPTIM_LARS && !ctr_optim_in_(c->trust, 1e-30, 1e30))
        ctr_fail_(ctx, CTR_E_VALUE, "optim: trust must be above 0, got %g", c->trust);
    if (c->kind == CTR_OPTIM_ADAMW && !ctr_optim_in_(c->eps, 1e-30, 1e30))
        ctr_fail_(ctx, CTR_E_VALUE, "optim: eps must be above 0, got %g", c->eps);
    return ctx->status == CTR_OK;
}

CTR_API ctr_optim *ctr_optim_create(ctr_ctx *ctx, const ctr_optim_config *config, ctr_vars *vars)
{
    ctr_optim *o;
    int i;
    if (ctx->status != CTR_OK || !ctr_optim_check_(ctx, config)) return NULL;
    o = (ctr_optim *)ctr_alloc_zero_(ctx, sizeof *o);
    if (!o) return NULL;
    o->config = *config;
    o->vars = vars;
    for (i = 0; i < vars->count; i++) {
        const ctr_var *v = &vars->list[i];
        if (v->kind == CTR_KIND_BUFFER) continue;
        ctr_vars_add(ctx, &o->state, v->name, ".m", CTR_KIND_BUFFER, v->value->rank,
                     v->value->shape);
        if (config->kind == CTR_OPTIM_ADAMW)
            ctr_vars_add(ctx, &o->state, v->name, ".v", CTR_KIND_BUFFER, v->value->rank,
                         v->value->shape);
    }
    if (ctx->status != CTR_OK) {
        ctr_optim_destroy(ctx, o);
        return NULL;
    }
    return o;
}

CTR_API ctr_vars *ctr_optim_state(ctr_optim *optim) { return optim ? &optim->state : NULL; }
CTR_API int64_t *ctr_optim_steps(ctr_optim *optim) { return optim ? &optim->steps : NULL; }

CTR_PRIVATE_ double ctr_optim_decay_(const ctr_optim_config *c, ctr_kind kind)
{
    return kind == CTR_KIND_WEIGHT || kind == CTR_KIND_PROTOTYPE ||
                   (c->decay_all && kind != CTR_KIND_SCALE)
               ? c->decay
               : 0;
}

/* What decays is adapted, too. */
CTR_PRIVATE_ int ctr_optim_adapts_(const ctr_optim_config *c, ctr_kind kind)
{
    if (c->kind != CTR_OPTIM_LARS || kind == CTR_KIND_BUFFER) return 0;
    return kind == CTR_KIND_WEIGHT || kind == CTR_KIND_PROTOTYPE ||
           (c->decay_all && kind != CTR_KIND_SCALE);
}

CTR_API void ctr_optim_step(ctr_ctx *ctx, ctr_optim *optim, double lr)
{
    const ctr_optim_config *c = optim ? &optim->config : NULL;
    ctr_optim_args a;
    int i, at = 0;
    if (!optim || !ctr_ready_(ctx)) return;
    optim->steps++;
    for (i = 0; i < optim->vars->count; i++) {
        const ctr_var *v = &optim->vars->list[i];
        if (v->kind == CTR_KIND_BUFFER) continue;
        memset(&a, 0, sizeof a);
        a.m = ctr_f_(optim->state.list[at++].value);
        if (c->kind == CTR_OPTIM_ADAMW) a.v = ctr_f_(optim->state.list[at++].value);
        if (!ctr_tensor_has_grad(ctx, v->value)) continue;
        a.n = v->value->size;
        a.w = ctr_f_(v->value);
        a.g = v->value->grad;
        a.lr = v->kind == CTR_KIND_BIAS || v->kind == CTR_KIND_NORM ? lr * c->bias_rate : lr;
        a.momentum = c->momentum;
        a.nesterov = c->nesterov;
        a.decay = ctr_optim_decay_(c, v->kind);
        a.trust = c->trust;
        a.adapt = ctr_optim_adapts_(c, v->kind);
        a.form = c->kind == CTR_OPTIM_LARS ? (int)c->form : 0;
        a.beta1 = c->beta1;
        a.beta2 = c->beta2;
        a.eps = c->eps;
        a.correct1 = 1 - pow(c->beta1, (double)optim->steps);
        a.correct2 = 1 - pow(c->beta2, (double)optim->steps);
        if (c->kind == CTR_OPTIM_ADAMW) ctr_k_adamw(ctx, &a);
        else ctr_k_sgd(ctx, &a);
    }
}

CTR_API size_t ctr_optim_describe(const ctr_optim *optim, char *text, size_t size)
{
    static const char *const kinds[] = { "weight", "bias", "norm", "scale", "prototype", "buffer" };
    char line[256], shape[64];
    size_t length = 0;
    int i, n;
    if (size) text[0] = 0;
    for (i = 0; optim && i < optim->vars->count; i++) {
        const ctr_var *v = &optim->vars->list[i];
        n = snprintf(line, sizeof line, "%-44s %-18s %-9s decay %-7g %s\n", v->name,
                     ctr_shape_text_(v->value->rank, v->value->shape, shape), kinds[v->kind],
                     v->kind == CTR_KIND_BUFFER ? 0 : ctr_optim_decay_(&optim->config, v->kind),
                     ctr_optim_adapts_(&optim->config, v->kind) ? "adapted" : "-");
        if (n > 0 && length + (size_t)n < size) memcpy(text + length, line, (size_t)n + 1);
        if (n > 0) length += (size_t)n;
    }
    return length;
}

CTR_API ctr_schedule ctr_schedule_cosine(double base, double end, int64_t warmup, int64_t total)
{
    ctr_schedule s;
    memset(&s, 0, sizeof s);
    s.kind = CTR_SCHEDULE_COSINE;
    s.base = base;
    s.end = end;
    s.gamma = 0.1;
    s.warmup = warmup;
    s.total = total;
    return s;
}

CTR_API double ctr_schedule_at(const ctr_schedule *s, int64_t step)
{
    double rate = s->base;
    int64_t left = s->total - 1 - s->warmup;
    int i;
    if (step < s->warmup) return s->base * (double)(step + 1) / (double)s->warmup;
    if (s->kind == CTR_SCHEDULE_COSINE) {
        double t = left > 0 ? (double)(step - s->warmup) / (double)left : 1;
        if (t > 1) t = 1;
        return s->end + (s->base - s->end) * 0.5 * (1 + cos(CTR_PI_ * t));
    }
    if (s->kind == CTR_SCHEDULE_STEPS)
        for (i = 0; i < 4; i++)
            if (s->milestones[i] > 0 && step >= s->milestones[i]) rate *= s->gamma;
    return rate;
}

/* ------------------------------------------------------------------------------------------------
   >>IMAGE

   The first bytes decide what a file is. Then comes the header: sizes are held against the limits
   and the structure is walked to the end (PNG chunks with their checksums, JPEG segments to the
   end marker, the rows of a BMP), so that stb_image, which fills what is missing with zeros, only
   sees files that are whole. It decodes from memory and takes its scratch from malloc.
   Functions with a note instead of a context error may run in workers.
   ---------------------------------------------------------------------------------------------- */

#ifdef __cplusplus
} /* stb_image includes headers that must not stand in extern "C" */
#endif

#if defined(CONTRASTIVE_NO_STB_IMAGE)
#define CTR_HAS_STB_ 0
#elif defined(STBI_INCLUDE_STB_IMAGE_H)
#define CTR_HAS_STB_ 1 /* the user's own, included before */
#elif defined(CONTRASTIVE_STB_IMAGE)
#define CTR_HAS_STB_ 1
#define CTR_STB_FILE_ CONTRASTIVE_STB_IMAGE
#elif defined(__has_include)
#if __has_include("stb_image.h")
#define CTR_HAS_STB_ 1
#define CTR_STB_FILE_ "stb_image.h"
#elif __has_include(<stb/stb_image.h>)
#define CTR_HAS_STB_ 1
#define CTR_STB_FILE_ <stb/stb_image.h>
#elif __has_include(<stb_image.h>)
#define CTR_HAS_STB_ 1
#define CTR_STB_FILE_ <stb_image.h>
#endif
#endif
#ifndef CTR_HAS_STB_
#define CTR_HAS_STB_ 0
#endif

#ifdef CTR_STB_FILE_

/* A block of stb_image's grows only while inflating, by what the compressed data says: a bomb. */
#define CTR_STB_GROW_ ((size_t)1 << 28)

CTR_PRIVATE_ void *ctr_image_regrow_(void *p, size_t size)
{
    return p && size > CTR_STB_GROW_ ? NULL : realloc(p, size);
}

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_NO_GIF
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_NO_STDIO
#define STBI_NO_FAILURE_STRINGS /* they would be its only mutable static data in use */
#define STBI_MAX_DIMENSIONS 65535
#define STBI_ASSERT(x) ((void)0)
#define STBI_MALLOC(size) calloc(1, size) /* what a file leaves out is zero, not chance */
#define STBI_REALLOC(p, size) ctr_image_regrow_(p, size)
#define STBI_FREE(p) free(p)
#if defined(__TINYC__) || defined(CONTRASTIVE_NO_SIMD)
#define STBI_NO_SIMD
#endif

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#elif defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wtype-limits"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Wcast-align"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wmissing-declarations"
#pragma GCC diagnostic ignored "-Wimplicit-fallthrough"
#pragma GCC diagnostic ignored "-Wdouble-promotion"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#ifdef __cplusplus
#pragma GCC diagnostic ignored "-Wold-style-cast"
#pragma GCC diagnostic ignored "-Wzero-as-null-pointer-constant"
#else
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#endif
#endif
/* Up to 2.27 its prototype and its definition of this one differ in their names. */
#define stbi_set_unpremultiply_on_load_thread stbi__unpremultiply_on_load_thread
#include CTR_STB_FILE_
#undef stbi_set_unpremultiply_on_load_thread
#if defined(__clang__)
#pragma clang diagnostic pop
#elif defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#endif /* CTR_STB_FILE_ */

#ifdef __cplusplus
extern "C" {
#endif

CTR_API int ctr_image_has_stb(void) { return CTR_HAS_STB_; }

CTR_API void ctr_image_limits_init(ctr_image_limits *limits)
{
    limits->max_bytes = (int64_t)1 << 28;
    limits->max_side = 16384;
    limits->max_pixels = (int64_t)1 << 26;
    limits->max_pixels_per_byte = 2048;
    limits->decoder = NULL;
}

CTR_API ctr_image_limits ctr_image_limits_default(void)
{
    ctr_image_limits limits;
    ctr_image_limits_init(&limits);
    return limits;
}

/* ---- memory
   ------------------------------------------------------------------------------------ */

/* Sides up to 65535 keep h * w * c far below what int64_t and, but for 32 bits, size_t hold. */
CTR_PRIVATE_ int ctr_image_create_(ctr_ctx *ctx, int64_t h, int64_t w, int64_t c, ctr_image *out,
                                   ctr_note_ *note)
{
    uint64_t bytes = (uint64_t)h * (uint64_t)w * (uint64_t)c;
    memset(out, 0, sizeof *out);
    if (bytes <= SIZE_MAX / 4) out->pixels = (uint8_t *)ctr_try_alloc_(ctx, (size_t)bytes);
    if (!out->pixels) {
        ctr_note_set_(note, CTR_E_MEMORY, "image: no memory for %ld x %ld x %ld pixels", (long)h,
                      (long)w, (long)c);
        return 0;
    }
    out->h = h;
    out->w = w;
    out->c = c;
    return 1;
}

CTR_API void ctr_image_free(ctr_ctx *ctx, ctr_image *image)
{
    if (image->pixels)
        ctr_free_host_(ctx, image->pixels, (size_t)(image->h * image->w * image->c));
    memset(image, 0, sizeof *image);
}

CTR_PRIVATE_ int ctr_image_sides_ok_(int64_t h, int64_t w, int64_t c)
{
    return h >= 1 && w >= 1 && h <= 65535 && w <= 65535 && (c == 1 || c == 3);
}

CTR_API int ctr_image_create(ctr_ctx *ctx, int64_t h, int64_t w, int64_t c, ctr_image *out)
{
    ctr_note_ note;
    memset(out, 0, sizeof *out);
    memset(&note, 0, sizeof note);
    if (ctr_error(ctx) != CTR_OK) return 0;
    if (!ctr_image_sides_ok_(h, w, c)) {
        ctr_fail_(ctx, CTR_E_SHAPE,
                  "image_create: sides must be 1..65535 and channels 1 or 3, got %ld x %ld x %ld",
                  (long)h, (long)w, (long)c);
        return 0;
    }
    if (ctr_image_create_(ctx, h, w, c, out, &note)) return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

/* Pixels of n = 1..4 channels (2 and 4: with alpha, which is dropped) to c = 1 or 3. Luma by ITU-R
   601 in 16-bit fixed point: (19595 R + 38470 G + 7471 B + 2^15) / 2^16. */
CTR_PRIVATE_ void ctr_image_convert_(const uint8_t *from, int n, int64_t count, int64_t c,
                                     uint8_t *to)
{
    int64_t i;
    for (i = 0; i < count; i++, from += n, to += c) {
        if (c == 1 && n >= 3) {
            to[0] =
                (uint8_t)((19595u * from[0] + 38470u * from[1] + 7471u * from[2] + 32768u) >> 16);
        } else if (c == 1) {
            to[0] = from[0];
        } else {
            to[0] = from[0];
            to[1] = from[n >= 3 ? 1 : 0];
            to[2] = from[n >= 3 ? 2 : 0];
        }
    }
}

/* ---- headers
   ----------------------------------------------------------------------------------- */

enum { CTR_IMAGE_NONE_ = 0, CTR_IMAGE_PNG_, CTR_IMAGE_JPEG_, CTR_IMAGE_BMP_, CTR_IMAGE_PNM_,
       CTR_IMAGE_OTHER_ };

typedef struct ctr_image_head_ {
    int kind;
    int64_t h, w, c;
    const char *name;
} ctr_image_head_;

CTR_PRIVATE_ uint32_t ctr_image_be16_(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
CTR_PRIVATE_ uint32_t ctr_image_be32_(const uint8_t *p)
{
    return ctr_image_be16_(p) << 16 | ctr_image_be16_(p + 2);
}
CTR_PRIVATE_ uint32_t ctr_image_le16_(const uint8_t *p) { return (uint32_t)p[1] << 8 | p[0]; }
CTR_PRIVATE_ uint32_t ctr_image_le32_(const uint8_t *p)
{
    return ctr_image_le16_(p + 2) << 16 | ctr_image_le16_(p);
}

/* CRC-32 of PNG and gzip (polynomial 0xEDB88320, reflected), by a table of the 256 single bytes. */
CTR_PRIVATE_ void ctr_image_crc_table_(uint32_t *table)
{
    uint32_t i, v;
    int bit;
    for (i = 0; i < 256; i++) {
        for (v = i, bit = 0; bit < 8; bit++) v = v & 1u ? v >> 1 ^ 0xEDB88320u : v >> 1;
        table[i] = v;
    }
}

CTR_PRIVATE_ uint32_t ctr_image_crc_(const uint32_t *table, const uint8_t *p, size_t size)
{
    uint32_t v = 0xFFFFFFFFu;
    size_t i;
    for (i = 0; i < size; i++) v = table[(v ^ p[i]) & 255u] ^ v >> 8;
    return ~v;
}

CTR_PRIVATE_ int ctr_image_bad_(ctr_note_ *note, const char *text)
{
    ctr_note_set_(note, CTR_E_FORMAT, "image: %s", text);
    return 0;
}

/* Chunks are: length, name, data, checksum of name and data. IHDR is the first, IEND the last. */
CTR_PRIVATE_ int ctr_image_scan_png_(const uint8_t *p, size_t size, ctr_image_head_ *head,
                                     ctr_note_ *note)
{
    uint32_t table[256];
    size_t at = 8, length;
    int data = 0;
    ctr_image_crc_table_(table);
    for (;;) {
        if (size - at < 12) return ctr_image_bad_(note, "the PNG ends before its IEND chunk");
        length = ctr_image_be32_(p + at);
        if (length > size - at - 12) return ctr_image_bad_(note, "the PNG ends inside a chunk");
        if (ctr_image_crc_(table, p + at + 4, length + 4) != ctr_image_be32_(p + at + 8 + length))
            return ctr_image_bad_(note, "a chunk of the PNG has a wrong checksum");
        if (at == 8) {
            if (length != 13 || memcmp(p + at + 4, "IHDR", 4) != 0)
                return ctr_image_bad_(note, "the PNG does not begin with its IHDR chunk");
            head->w = (int64_t)ctr_image_be32_(p + at + 8);
            head->h = (int64_t)ctr_image_be32_(p + at + 12);
            head->c = p[at + 17] == 0 || p[at + 17] == 4 ? 1 : 3; /* the colour type */
        }
        if (memcmp(p + at + 4, "IDAT", 4) == 0) data = 1;
        if (memcmp(p + at + 4, "IEND", 4) == 0) break;
        at += length + 12;
    }
    return data ? 1 : ctr_image_bad_(note, "the PNG has no IDAT chunk");
}

/* Where the marker after the entropy-coded bytes at `at` begins: 0xFF followed by neither a stuffed
   zero nor a restart marker. size if there is none. */
CTR_PRIVATE_ size_t ctr_image_jpeg_skip_(const uint8_t *p, size_t size, size_t at)
{
    for (; at + 1 < size; at++)
        if (p[at] == 0xFF && p[at + 1] != 0 && p[at + 1] != 0xFF &&
            (p[at + 1] < 0xD0 || p[at + 1] > 0xD7))
            return at;
    return size;
}

/* Huffman tables: a class and number, how many codes there are of 1..16 bits, their symbols.
   stb_image up to 2.27 trusts these counts. */
CTR_PRIVATE_ int ctr_image_jpeg_tables_(const uint8_t *p, size_t size)
{
    size_t at = 0, count;
    int k;
    while (at < size) {
        if (size - at < 17) return 0;
        for (count = 0, k = 1; k <= 16; k++) count += p[at + (size_t)k];
        if (count > 256 || count > size - at - 17) return 0;
        at += 17 + count;
    }
    return 1;
}

/* The frame: height, width, components with their sampling factors. stb_image up to 2.27 reads
   beyond a row whose factor does not divide the greatest one. */
CTR_PRIVATE_ int ctr_image_jpeg_frame_(const uint8_t *p, size_t size, ctr_image_head_ *head)
{
    int n = size >= 6 ? p[5] : 0, i, most_h = 1, most_v = 1;
    if ((n != 1 && n != 3 && n != 4) || size != 6 + 3 * (size_t)n || p[0] != 8) return 0;
    for (i = 0; i < n; i++) {
        most_h = CTR_MAX_(most_h, p[7 + 3 * i] >> 4);
        most_v = CTR_MAX_(most_v, p[7 + 3 * i] & 15);
    }
    for (i = 0; i < n; i++) {
        int fh = p[7 + 3 * i] >> 4, fv = p[7 + 3 * i] & 15;
        if (fh < 1 || fv < 1 || fh > 4 || fv > 4 || most_h % fh || most_v % fv) return 0;
    }
    head->h = (int64_t)ctr_image_be16_(p + 1);
    head->w = (int64_t)ctr_image_be16_(p + 3);
    head->c = n == 1 ? 1 : 3;
    return 1;
}

/* Segments from the start marker to the end marker. A progressive file repeats scans, each of which
   costs a pass over the whole picture: more than 100 are an attack. */
CTR_PRIVATE_ int ctr_image_scan_jpeg_(const uint8_t *p, size_t size, ctr_image_head_ *head,
                                      ctr_note_ *note)
{
    size_t at = 2, length;
    int scans = 0;
    for (;;) {
        unsigned marker;
        while (at + 1 < size && !(p[at] == 0xFF && p[at + 1] != 0xFF)) at++;
        if (at + 1 >= size) return ctr_image_bad_(note, "the JPEG ends before its end marker");
        marker = p[at + 1];
        at += 2;
        if (marker == 0xD9) break;
        if (marker == 0 || marker == 1 || (marker >= 0xD0 && marker <= 0xD8)) continue;
        if (size - at < 2) return ctr_image_bad_(note, "the JPEG ends inside a segment");
        length = ctr_image_be16_(p + at);
        if (length < 2 || length > size - at)
            return ctr_image_bad_(note, "the JPEG ends inside a segment");
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 &&
            marker != 0xCC) {
            if (marker > 0xC2) return ctr_image_bad_(note, "the JPEG is arithmetic or lossless");
            if (head->c) return ctr_image_bad_(note, "the JPEG has two frame headers");
            if (!ctr_image_jpeg_frame_(p + at + 2, length - 2, head))
                return ctr_image_bad_(note, "the JPEG has a frame header of an unknown kind");
        }
        if (marker == 0xC4 && !ctr_image_jpeg_tables_(p + at + 2, length - 2))
            return ctr_image_bad_(note, "the JPEG has a wrong Huffman table");
        at += length;
        if (marker == 0xDA) {
            if (++scans > 100) return ctr_image_bad_(note, "the JPEG has more than 100 scans");
            at = ctr_image_jpeg_skip_(p, size, at);
        }
    }
    return head->c && scans ? 1 : ctr_image_bad_(note, "the JPEG holds no picture");
}

/* Does every 8-bit index of the rows have one of `entries` colours? */
CTR_PRIVATE_ int ctr_image_bmp_indices_(const uint8_t *p, size_t row, int64_t h, int64_t w,
                                        uint64_t entries)
{
    int64_t y, x;
    for (y = 0; y < h; y++, p += row)
        for (x = 0; x < w; x++)
            if (p[x] >= entries) return 0;
    return 1;
}

/* Uncompressed rows, each padded to four bytes; behind the header a palette, of 3 bytes each in the
   oldest kind. stb_image shows what is on the stack for an index without a colour. */
CTR_PRIVATE_ int ctr_image_scan_bmp_(const uint8_t *p, size_t size, ctr_image_head_ *head,
                                     ctr_note_ *note)
{
    uint64_t start, row, bits, entries;
    if (size < 54) return ctr_image_bad_(note, "the BMP ends inside its header");
    start = ctr_image_le32_(p + 10);
    if (ctr_image_le32_(p + 14) == 12) {
        head->w = (int64_t)ctr_image_le16_(p + 18);
        head->h = (int64_t)ctr_image_le16_(p + 20);
        bits = ctr_image_le16_(p + 24);
        entries = start > 26 ? (start - 26) / 3 : 0;
    } else {
        head->w = (int64_t)ctr_image_le32_(p + 18);
        head->h = (int64_t)ctr_image_le32_(p + 22);
        if (head->h >= (int64_t)1 << 31) head->h = ((int64_t)1 << 32) - head->h; /* top down */
        bits = ctr_image_le16_(p + 28);
        if (ctr_image_le32_(p + 30) == 1 || ctr_image_le32_(p + 30) == 2)
            return ctr_image_bad_(note, "the BMP is run-length compressed");
        entries =
            start > 14 + ctr_image_le32_(p + 14) ? (start - 14 - ctr_image_le32_(p + 14)) / 4 : 0;
    }
    head->c = 3;
    if (bits > 32 || head->w > 65535 || head->h > 65535) return 1; /* the limits will speak */
    row = ((uint64_t)head->w * bits + 31) / 32 * 4;
    if (start > size || row * (uint64_t)head->h > size - start)
        return ctr_image_bad_(note, "the BMP ends before its last row");
    if (bits <= 8 && entries < (uint64_t)1 << bits &&
        (bits < 8 || !ctr_image_bmp_indices_(p + start, (size_t)row, head->h, head->w, entries)))
        return ctr_image_bad_(note, "the BMP has pixels without a colour in its palette");
    return 1;
}

/* A cursor over the text of a PNM file. */
typedef struct ctr_image_text_ {
    const uint8_t *p;
    size_t size, at;
} ctr_image_text_;

/* The next number, white space and comments before it skipped; -1 if there is none below 10^8. */
CTR_PRIVATE_ int64_t ctr_image_number_(ctr_image_text_ *t)
{
    int64_t v = -1;
    for (; t->at < t->size; t->at++) {
        uint8_t ch = t->p[t->at];
        if (ch == '#') {
            while (t->at < t->size && t->p[t->at] != '\n') t->at++;
            if (t->at == t->size) break;
        } else if (ch != ' ' && (ch < 9 || ch > 13)) {
            break;
        }
    }
    for (; t->at < t->size && t->p[t->at] >= '0' && t->p[t->at] <= '9'; t->at++) {
        v = (v < 0 ? 0 : v) * 10 + (t->p[t->at] - '0');
        if (v >= 100000000) return -1;
    }
    return v;
}

/* "P6 width height maximum" and one white space; what is left in t are the samples. */
CTR_PRIVATE_ int ctr_image_scan_pnm_(ctr_image_text_ *t, ctr_image_head_ *head, int64_t *maximum,
                                     ctr_note_ *note)
{
    uint64_t need;
    int ascii = t->p[1] <= '3';
    t->at = 2;
    head->w = ctr_image_number_(t);
    head->h = ctr_image_number_(t);
    *maximum = ctr_image_number_(t);
    head->c = t->p[1] == '3' || t->p[1] == '6' ? 3 : 1;
    if (head->w < 1 || head->h < 1 || *maximum < 1 || *maximum > 65535 || t->at >= t->size)
        return ctr_image_bad_(note, "the PNM header lacks width, height or a maximum of 1..65535");
    t->at++;
    if (head->w > 65535 || head->h > 65535) return 1; /* the limits will speak */
    need = (uint64_t)(head->h * head->w * head->c) * (ascii || *maximum > 255 ? 2u : 1u);
    if (need - (ascii ? 1 : 0) > t->size - t->at)
        return ctr_image_bad_(note, "the PNM ends before its last pixel");
    return 1;
}

CTR_PRIVATE_ int ctr_image_kind_(const uint8_t *p, size_t size, ctr_image_head_ *head)
{
    static const uint8_t png[8] = { 0x89, 'P', 'N', 'G', 13, 10, 26, 10 };
    if (size >= 8 && memcmp(p, png, 8) == 0) {
        head->name = "PNG";
        return CTR_IMAGE_PNG_;
    }
    if (size >= 3 && p[0] == 0xFF && p[1] == 0xD8 && p[2] == 0xFF) {
        head->name = "JPEG";
        return CTR_IMAGE_JPEG_;
    }
    if (size >= 18 && p[0] == 'B' && p[1] == 'M' && p[15] == 0 && p[16] == 0 && p[17] == 0) {
        head->name = "BMP";
        return CTR_IMAGE_BMP_;
    }
    if (size >= 3 && p[0] == 'P' && (p[1] == '2' || p[1] == '3' || p[1] == '5' || p[1] == '6') &&
        (p[2] == ' ' || p[2] == '#' || (p[2] >= 9 && p[2] <= 13))) {
        head->name = "PNM";
        return CTR_IMAGE_PNM_;
    }
    return CTR_IMAGE_NONE_;
}

CTR_PRIVATE_ int ctr_image_unknown_(const uint8_t *p, size_t size, ctr_note_ *note)
{
    const char *name = NULL;
    if (size == 0) return ctr_image_bad_(note, "the file is empty");
    if (size >= 4 && memcmp(p, "GIF8", 4) == 0) name = "GIF";
    if (size >= 4 && memcmp(p, "8BPS", 4) == 0) name = "PSD";
    if (size >= 4 && (memcmp(p, "II*", 4) == 0 || memcmp(p, "MM\0*", 4) == 0)) name = "TIFF";
    if (size >= 12 && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0) name = "WebP";
    if (size >= 2 && p[0] == 'P' && (p[1] == '1' || p[1] == '4')) name = "PBM";
    if (size >= 2 && p[0] == '#' && p[1] == '?') name = "HDR";
    if (name)
        ctr_note_set_(note, CTR_E_FORMAT,
                      "image: %s is not supported; PNG, JPEG, BMP and PNM (P2 P3 P5 P6) are", name);
    else
        ctr_note_set_(note, CTR_E_FORMAT,
                      "image: not a PNG, JPEG, BMP or PNM file (it begins with %02x %02x)", p[0],
                      size > 1 ? p[1] : 0u);
    return 0;
}

CTR_PRIVATE_ int ctr_image_within_(const ctr_image_head_ *head, size_t size,
                                   const ctr_image_limits *limits, ctr_note_ *note)
{
    int64_t most = CTR_MIN_(limits->max_side, 65535), pixels;
    if (head->h < 1 || head->w < 1 || head->h > most || head->w > most) {
        ctr_note_set_(note, CTR_E_FORMAT,
                      "image: the %s says %ld x %ld pixels, sides must be 1..%ld (max_side)",
                      head->name, (long)head->w, (long)head->h, (long)most);
        return 0;
    }
    pixels = head->h * head->w;
    if (pixels > limits->max_pixels) {
        ctr_note_set_(note, CTR_E_FORMAT,
                      "image: the %s says %ld x %ld pixels, more than %ld in all (max_pixels)",
                      head->name, (long)head->w, (long)head->h, (long)limits->max_pixels);
        return 0;
    }
    if ((double)(pixels - 65536) > limits->max_pixels_per_byte * (double)size) {
        ctr_note_set_(note, CTR_E_FORMAT,
                      "image: the %s says %ld x %ld pixels in %lu bytes (max_pixels_per_byte)",
                      head->name, (long)head->w, (long)head->h, (unsigned long)size);
        return 0;
    }
    return 1;
}

/* Sniffs, walks and checks. For PNM, t and maximum say where the samples are. */
CTR_PRIVATE_ int ctr_image_head_read_(const uint8_t *p, size_t size, const ctr_image_limits *limits,
                                      ctr_image_head_ *head, ctr_image_text_ *t, int64_t *maximum,
                                      ctr_note_ *note)
{
    int mine = 0, ok;
    memset(head, 0, sizeof *head);
    if ((uint64_t)size > (uint64_t)limits->max_bytes || size > 0x7fffffffu)
        return ctr_image_bad_(note, "the file is larger than max_bytes");
    t->p = p;
    t->size = size;
    if (limits->decoder) {
        head->name = "file";
        mine = limits->decoder->info_fn(limits->decoder->user, p, size, &head->h, &head->w,
                                        &head->c);
        if (mine < 0) return ctr_image_bad_(note, "the decoder says that the file is corrupt");
        if (mine && head->c != 1 && head->c != 3)
            return ctr_image_bad_(note, "the decoder must give 1 or 3 channels");
    }
    if (mine) {
        head->kind = CTR_IMAGE_OTHER_;
        return ctr_image_within_(head, size, limits, note);
    }
    memset(head, 0, sizeof *head);
    head->kind = ctr_image_kind_(p, size, head);
    if (head->kind == CTR_IMAGE_NONE_) return ctr_image_unknown_(p, size, note);
    ok = head->kind == CTR_IMAGE_PNG_    ? ctr_image_scan_png_(p, size, head, note)
         : head->kind == CTR_IMAGE_JPEG_ ? ctr_image_scan_jpeg_(p, size, head, note)
         : head->kind == CTR_IMAGE_BMP_  ? ctr_image_scan_bmp_(p, size, head, note)
                                         : ctr_image_scan_pnm_(t, head, maximum, note);
    return ok && ctr_image_within_(head, size, limits, note);
}

/* ---- decoding
   ---------------------------------------------------------------------------------- */

/* Samples of a PNM file, each scaled from 0..maximum to 0..255 and rounded. */
CTR_PRIVATE_ int ctr_image_read_pnm_(ctr_image_text_ *t, int64_t count, int64_t maximum,
                                     uint8_t *to, ctr_note_ *note)
{
    int ascii = t->p[1] <= '3';
    int64_t i, v;
    for (i = 0; i < count; i++) {
        if (ascii) {
            v = ctr_image_number_(t);
        } else if (maximum > 255) {
            v = (int64_t)ctr_image_be16_(t->p + t->at);
            t->at += 2;
        } else {
            v = t->p[t->at++];
        }
        if (v < 0)
            return ctr_image_bad_(note, "the PNM ends early or holds something not a number");
        if (v > maximum) return ctr_image_bad_(note, "a sample of the PNM is above its maximum");
        to[i] = (uint8_t)((v * 255 + maximum / 2) / maximum);
    }
    return 1;
}

CTR_PRIVATE_ int ctr_image_no_stb_(const char *what, ctr_note_ *note)
{
    ctr_note_set_(
        note, CTR_E_UNSUPPORTED,
        "image: %s needs stb_image.h, which was not found when this program was compiled: "
        "install it (Debian: apt-get install libstb-dev) and compile again",
        what);
    return 0;
}

/* PNG, JPEG and BMP: stb_image's pixels are copied into ours, with c channels. */
CTR_PRIVATE_ int ctr_image_read_stb_(ctr_ctx *ctx, const uint8_t *p, size_t size,
                                     const ctr_image_head_ *head, int64_t c, ctr_image *out,
                                     ctr_note_ *note)
{
#if CTR_HAS_STB_
    int w = 0, h = 0, n = 0, ok = 0;
    uint8_t *pixels = stbi_load_from_memory(p, (int)size, &w, &h, &n, 0);
    if (!pixels || w != head->w || h != head->h || n < 1 || n > 4)
        ctr_note_set_(note, CTR_E_FORMAT, "image: the %s is corrupt or of an unknown variety",
                      head->name);
    else if (ctr_image_create_(ctx, h, w, c, out, note))
        ok = 1;
    if (ok) ctr_image_convert_(pixels, n, (int64_t)h * w, c, out->pixels);
    if (pixels) stbi_image_free(pixels);
    return ok;
#else
    (void)ctx;
    (void)p;
    (void)size;
    (void)c;
    (void)out;
    return ctr_image_no_stb_(head->name, note);
#endif
}

CTR_PRIVATE_ int ctr_image_decode_(ctr_ctx *ctx, const uint8_t *bytes, size_t size, int channels,
                                   const ctr_image_limits *limits, ctr_image *out, ctr_note_ *note)
{
    ctr_image_limits defaults = ctr_image_limits_default();
    ctr_image_head_ head;
    ctr_image_text_ text;
    ctr_image raw;
    int64_t maximum = 0, c;
    int ok;
    memset(out, 0, sizeof *out);
    if (!limits) limits = &defaults;
    if (!ctr_image_head_read_(bytes, size, limits, &head, &text, &maximum, note)) return 0;
    c = channels ? channels : head.c;
    if (head.kind != CTR_IMAGE_OTHER_ && head.kind != CTR_IMAGE_PNM_)
        return ctr_image_read_stb_(ctx, bytes, size, &head, c, out, note);
    if (!ctr_image_create_(ctx, head.h, head.w, head.c, &raw, note)) return 0;
    if (head.kind == CTR_IMAGE_PNM_)
        ok = ctr_image_read_pnm_(&text, head.h * head.w * head.c, maximum, raw.pixels, note);
    else
        ok = limits->decoder->decode_fn(limits->decoder->user, bytes, size, head.h, head.w, head.c,
                                        raw.pixels) ||
             ctr_image_bad_(note, "the decoder says that the file is corrupt");
    if (ok && c == head.c) {
        *out = raw;
        return 1;
    }
    if (ok) ok = ctr_image_create_(ctx, head.h, head.w, c, out, note);
    if (ok) ctr_image_convert_(raw.pixels, (int)head.c, head.h * head.w, c, out->pixels);
    ctr_image_free(ctx, &raw);
    return ok;
}

/* A whole file into memory of the context's. Worker-safe. */
CTR_PRIVATE_ int ctr_image_read_file_(ctr_ctx *ctx, const char *path, int64_t max_bytes,
                                      uint8_t **bytes, size_t *size, ctr_note_ *note)
{
    FILE *f = fopen(path, "rb");
    long length = -1;
    *bytes = NULL;
    if (!f) {
        ctr_note_set_(note, CTR_E_FILE, "cannot open it: %s", strerror(errno));
        return 0;
    }
    if (fseek(f, 0, SEEK_END) == 0) length = ftell(f);
    if (length < 0 || fseek(f, 0, SEEK_SET) != 0) {
        ctr_note_set_(note, CTR_E_FILE, "not a plain file");
    } else if (length > max_bytes) {
        ctr_note_set_(note, CTR_E_FORMAT, "image: the file is larger than max_bytes");
    } else if ((*bytes = (uint8_t *)ctr_try_alloc_(ctx, (size_t)length)) == NULL) {
        ctr_note_set_(note, CTR_E_MEMORY, "no memory for its %ld bytes", length);
    } else if (fread(*bytes, 1, (size_t)length, f) != (size_t)length) {
        ctr_note_set_(note, CTR_E_FILE, "cannot read it");
        ctr_free_host_(ctx, *bytes, (size_t)length);
        *bytes = NULL;
    }
    fclose(f);
    *size = (size_t)length;
    return *bytes != NULL;
}

/* Of a long path the end tells more. */
CTR_PRIVATE_ int ctr_image_load_(ctr_ctx *ctx, const char *path, int channels,
                                 const ctr_image_limits *limits, ctr_image *out, ctr_note_ *note)
{
    ctr_image_limits defaults = ctr_image_limits_default();
    ctr_note_ inner;
    uint8_t *bytes;
    size_t size = 0, length = strlen(path);
    int ok;
    memset(&inner, 0, sizeof inner);
    memset(out, 0, sizeof *out);
    if (!limits) limits = &defaults;
    ok = ctr_image_read_file_(ctx, path, limits->max_bytes, &bytes, &size, &inner);
    if (ok) {
        ok = ctr_image_decode_(ctx, bytes, size, channels, limits, out, &inner);
        ctr_free_host_(ctx, bytes, size);
    }
    if (!ok)
        ctr_note_set_(note, inner.status, "%s%s: %.130s", length > 100 ? "..." : "",
                      length > 100 ? path + length - 100 : path,
                      strncmp(inner.text, "image: ", 7) == 0 ? inner.text + 7 : inner.text);
    return ok;
}

CTR_PRIVATE_ int ctr_image_arguments_(ctr_ctx *ctx, int channels, const ctr_image_limits *limits,
                                      ctr_image *out)
{
    if (out) memset(out, 0, sizeof *out);
    if (ctr_error(ctx) != CTR_OK) return 0;
    if (channels != 0 && channels != 1 && channels != 3) {
        ctr_fail_(ctx, CTR_E_VALUE, "image: channels must be 0, 1 or 3, got %d", channels);
        return 0;
    }
    if (limits && (limits->max_bytes < 1 || limits->max_side < 1 || limits->max_side > 65535 ||
                   limits->max_pixels < 1 || !(limits->max_pixels_per_byte > 0))) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "image: limits must be positive, max_side at most 65535 (ctr_image_limits_init)");
        return 0;
    }
    return 1;
}

CTR_API int ctr_image_info(ctr_ctx *ctx, const void *bytes, size_t size,
                           const ctr_image_limits *limits, int64_t *h, int64_t *w, int64_t *c)
{
    ctr_image_limits defaults = ctr_image_limits_default();
    ctr_image_head_ head;
    ctr_image_text_ text;
    ctr_note_ note;
    int64_t maximum;
    memset(&note, 0, sizeof note);
    *h = *w = *c = 0;
    if (!ctr_image_arguments_(ctx, 0, limits, NULL)) return 0;
    if (!ctr_image_head_read_((const uint8_t *)bytes, size, limits ? limits : &defaults, &head,
                              &text, &maximum, &note)) {
        ctr_note_report_(ctx, &note);
        return 0;
    }
    *h = head.h;
    *w = head.w;
    *c = head.c;
    return 1;
}

CTR_API int ctr_image_decode(ctr_ctx *ctx, const void *bytes, size_t size, int channels,
                             const ctr_image_limits *limits, ctr_image *out)
{
    ctr_note_ note;
    memset(&note, 0, sizeof note);
    if (!ctr_image_arguments_(ctx, channels, limits, out)) return 0;
    if (ctr_image_decode_(ctx, (const uint8_t *)bytes, size, channels, limits, out, &note))
        return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

CTR_API int ctr_image_load(ctr_ctx *ctx, const char *path, int channels,
                           const ctr_image_limits *limits, ctr_image *out)
{
    ctr_note_ note;
    memset(&note, 0, sizeof note);
    if (!ctr_image_arguments_(ctx, channels, limits, out)) return 0;
    if (ctr_image_load_(ctx, path, channels, limits, out, &note)) return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

/* ---- gzip
   -------------------------------------------------------------------------------------- */

/* Where the deflated data of a gzip member begins (RFC 1952), or 0 when its header is wrong. */
CTR_PRIVATE_ size_t ctr_image_gzip_start_(const uint8_t *p, size_t size)
{
    size_t at = 10;
    unsigned flags, name;
    if (size < 18 || p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || (p[3] & 0xE0)) return 0;
    flags = p[3];
    if (flags & 4u) at += 2 + ctr_image_le16_(p + 10);
    for (name = 8; name <= 16; name *= 2)
        if (flags & name) {
            while (at < size && p[at]) at++;
            at++;
        }
    if (flags & 2u) at += 2;
    return at + 8 <= size ? at : 0;
}

/* Inflates a file of one gzip member into *out (the context's memory, *out_size bytes). The size
   that the file states is held against cap and against what deflate can reach, 1032 to 1, before
   anything is allocated. 1, or 0 with an error. */
CTR_PRIVATE_ int ctr_image_gunzip_(ctr_ctx *ctx, const uint8_t *bytes, size_t size, size_t cap,
                                   uint8_t **out, size_t *out_size)
{
#if CTR_HAS_STB_
    uint32_t table[256], stated;
    size_t start;
    int got;
    *out = NULL;
    *out_size = 0;
    if (ctr_error(ctx) != CTR_OK) return 0;
    start = ctr_image_gzip_start_(bytes, size);
    if (!start || size > 0x7fffffffu) {
        ctr_fail_(ctx, CTR_E_FORMAT, "gzip: wrong header, or the file is too short or too long");
        return 0;
    }
    stated = ctr_image_le32_(bytes + size - 4);
    if (stated > cap || stated > 0x7fffffffu || stated / 1032u > size) {
        ctr_fail_(ctx, CTR_E_FORMAT, "gzip: states %lu bytes, at most %lu are accepted here",
                  (unsigned long)stated, (unsigned long)cap);
        return 0;
    }
    *out = (uint8_t *)ctr_alloc_(ctx, stated);
    if (!*out) return 0;
    got = stbi_zlib_decode_noheader_buffer((char *)*out, (int)stated, (const char *)bytes + start,
                                           (int)(size - start));
    ctr_image_crc_table_(table);
    if (got < 0 || (uint32_t)got != stated ||
        ctr_image_crc_(table, *out, stated) != ctr_image_le32_(bytes + size - 8)) {
        ctr_fail_(ctx, CTR_E_FORMAT, "gzip: corrupt, truncated, or more than one member");
        ctr_free_host_(ctx, *out, stated);
        *out = NULL;
        return 0;
    }
    *out_size = stated;
    return 1;
#else
    ctr_note_ note;
    (void)bytes;
    (void)size;
    (void)cap;
    (void)ctr_image_gzip_start_;
    memset(&note, 0, sizeof note);
    *out = NULL;
    *out_size = 0;
    if (ctr_error(ctx) != CTR_OK) return 0;
    ctr_image_no_stb_("a .gz file", &note);
    ctr_note_report_(ctx, &note);
    return 0;
#endif
}

/* ---- resizing ----------------------------------------------------------------------------------

   Output sample o looks at the input around x = s * (o + 1/2), s = in / out, through the filter f
   widened by z = max(s, 1):  weight of input i = f((i + 1/2 - x) / z), then all divided by their
   sum. f is the triangle of half-width 1, or Keys' (1981) cubic with a = -1/2 of half-width 2. The
   two axes are filtered one after the other.
   ---------------------------------------------------------------------------------------------- */

/* The filter of one axis: output o is the sum of weight[o * width + t] * input[first[o] + t] over
   t < count[o]. first and first + count never decrease with o. */
typedef struct ctr_filter_ {
    int64_t out, width;
    int64_t *first, *count;   /* [out] */
    ctr_real *weight;         /* [out, width] */
} ctr_filter_;

/* Pixels of either type; the other pointer is NULL. */
typedef struct ctr_pixels_ {
    const uint8_t *u8;
    const ctr_real *real;
    int64_t h, w, c;
} ctr_pixels_;

CTR_PRIVATE_ double ctr_filter_value_(ctr_interp interp, double x)
{
    x = fabs(x);
    if (interp == CTR_INTERP_BILINEAR) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

CTR_PRIVATE_ int64_t ctr_filter_width_(ctr_interp interp, int64_t in, int64_t out)
{
    double scale = (double)in / (double)out, reach = interp == CTR_INTERP_BICUBIC ? 2 : 1;
    return (int64_t)ceil(reach * CTR_MAX_(scale, 1.0)) * 2 + 1;
}

/* Bytes of the tables of a filter from at most `in` samples; sizes below 2^32 cannot overflow. */
CTR_PRIVATE_ uint64_t ctr_filter_bytes_(ctr_interp interp, int64_t in, int64_t out)
{
    uint64_t width = (uint64_t)ctr_filter_width_(interp, in, out), n = (uint64_t)out;
    return 2 * (n * sizeof(int64_t) + CTR_ALIGN_) + n * width * sizeof(ctr_real) + CTR_ALIGN_;
}

/* Takes size bytes from a block of scratch, on a 64-byte boundary. */
CTR_PRIVATE_ void *ctr_image_carve_(char **at, size_t size)
{
    char *p = *at + (CTR_ALIGN_ - 1 - ((uintptr_t)*at + CTR_ALIGN_ - 1) % CTR_ALIGN_);
    *at = p + size;
    return p;
}

/* Computes a filter into tables carved from *at; mirror reverses the order of the outputs. */
CTR_PRIVATE_ void ctr_filter_make_(ctr_filter_ *f, ctr_interp interp, int64_t in, int64_t out,
                                   int mirror, char **at)
{
    double scale = (double)in / (double)out, wide = CTR_MAX_(scale, 1.0);
    double reach = (interp == CTR_INTERP_BICUBIC ? 2 : 1) * wide, inverse = 1 / wide;
    int64_t o, t;
    f->out = out;
    f->width = ctr_filter_width_(interp, in, out);
    f->first = (int64_t *)ctr_image_carve_(at, (size_t)out * sizeof(int64_t));
    f->count = (int64_t *)ctr_image_carve_(at, (size_t)out * sizeof(int64_t));
    f->weight = (ctr_real *)ctr_image_carve_(at, (size_t)(out * f->width) * sizeof(ctr_real));
    for (o = 0; o < out; o++) {
        int64_t slot = mirror ? out - 1 - o : o;
        double center = scale * ((double)o + 0.5), sum = 0;
        int64_t low = (int64_t)CTR_MAX_(center - reach + 0.5, 0.0);
        int64_t high = (int64_t)(center + reach + 0.5);
        ctr_real *weight = f->weight + slot * f->width;
        high = CTR_MIN_(high, in);
        high = CTR_MIN_(high, low + f->width);
        for (t = 0; t < high - low; t++)
            sum += ctr_filter_value_(interp, ((double)(t + low) - center + 0.5) * inverse);
        for (t = 0; t < high - low; t++)
            weight[t] = (ctr_real)(ctr_filter_value_(interp, ((double)(t + low) - center + 0.5) *
                                                                 inverse) / sum);
        f->first[slot] = low;
        f->count[slot] = high - low;
    }
}

/* One row through the horizontal filter: to[out, c] from the numbers row[in, c]. */
CTR_PRIVATE_ void ctr_filter_row_(const ctr_filter_ *f, const ctr_real *row, int64_t c,
                                  ctr_real *to)
{
    int64_t o, t, k;
    for (o = 0; o < f->out; o++)
        for (k = 0; k < c; k++) {
            const ctr_real *from = row + f->first[o] * c + k, *weight = f->weight + o * f->width;
            ctr_real sum = 0;
            for (t = 0; t < f->count[o]; t++) sum += weight[t] * from[t * c];
            to[o * c + k] = sum;
        }
}

/* Bytes of scratch of ctr_resize_ for any box within h x w. */
CTR_PRIVATE_ uint64_t ctr_resize_bytes_(ctr_interp interp, int64_t h, int64_t w, int64_t c,
                                        int64_t out_h, int64_t out_w)
{
    return ctr_filter_bytes_(interp, h, out_h) + ctr_filter_bytes_(interp, w, out_w) +
           (uint64_t)((w + out_w) * c) * sizeof(ctr_real) + 4 * CTR_ALIGN_;
}

/* out[out_h, out_w, c] of a box: each row of the box goes through the horizontal filter once and is
   added, weighted, to the few output rows that look at it. The reference. */
CTR_PRIVATE_ void ctr_resize_(const ctr_pixels_ *image, const ctr_box *box, int64_t out_h,
                              int64_t out_w, ctr_interp interp, ctr_real *out, void *scratch)
{
    ctr_filter_ fy, fx;
    char *at = (char *)scratch;
    int64_t c = image->c, y, o, i, low = 0, length = out_w * c;
    ctr_real *row, *line;
    ctr_filter_make_(&fy, interp, box->h, out_h, 0, &at);
    ctr_filter_make_(&fx, interp, box->w, out_w, 0, &at);
    row = (ctr_real *)ctr_image_carve_(&at, (size_t)(box->w * c) * sizeof *row);
    line = (ctr_real *)ctr_image_carve_(&at, (size_t)length * sizeof *line);
    for (i = 0; i < out_h * length; i++) out[i] = 0;
    for (y = 0; y < box->h; y++) {
        int64_t start = ((box->top + y) * image->w + box->left) * c;
        if (image->u8)
            for (i = 0; i < box->w * c; i++)
                row[i] = (ctr_real)image->u8[start + i] / CTR_R(255.0);
        else
            for (i = 0; i < box->w * c; i++) row[i] = image->real[start + i];
        ctr_filter_row_(&fx, row, c, line);
        while (low < out_h && fy.first[low] + fy.count[low] <= y) low++;
        for (o = low; o < out_h && fy.first[o] <= y; o++) {
            ctr_real weight = fy.weight[o * fy.width + (y - fy.first[o])];
            for (i = 0; i < length; i++) out[o * length + i] += weight * line[i];
        }
    }
}

CTR_PRIVATE_ int ctr_box_inside_(const ctr_box *b, int64_t h, int64_t w)
{
    return b->top >= 0 && b->left >= 0 && b->h >= 1 && b->w >= 1 && b->h <= h && b->w <= w &&
           b->top <= h - b->h && b->left <= w - b->w;
}

/* Arguments of a resize by the user, spoken of in the name of a function. */
CTR_PRIVATE_ int ctr_resize_check_(ctr_ctx *ctx, const char *name, int64_t h, int64_t w, int64_t c,
                                   const ctr_box *box, int64_t out_h, int64_t out_w)
{
    if (ctr_error(ctx) != CTR_OK) return 0;
    if (!ctr_image_sides_ok_(h, w, c) || !ctr_image_sides_ok_(out_h, out_w, c)) {
        ctr_fail_(
            ctx, CTR_E_SHAPE,
            "%s: sides must be 1..65535 and channels 1 or 3, got %ld x %ld x %ld to %ld x %ld",
            name, (long)h, (long)w, (long)c, (long)out_h, (long)out_w);
        return 0;
    }
    if (!ctr_box_inside_(box, h, w)) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "%s: the box (top %ld, left %ld, h %ld, w %ld) leaves the image of %ld x %ld",
                  name, (long)box->top, (long)box->left, (long)box->h, (long)box->w, (long)h,
                  (long)w);
        return 0;
    }
    return 1;
}

/* Worker-safe: numbers out[out_h, out_w, c] of a box that lies inside. */
CTR_PRIVATE_ int ctr_resize_alloc_(ctr_ctx *ctx, const ctr_pixels_ *image, const ctr_box *box,
                                   int64_t out_h, int64_t out_w, ctr_interp interp, ctr_real *out,
                                   ctr_note_ *note)
{
    uint64_t bytes = ctr_resize_bytes_(interp, box->h, box->w, image->c, out_h, out_w);
    void *scratch = bytes <= SIZE_MAX / 4 ? ctr_try_alloc_(ctx, (size_t)bytes) : NULL;
    if (!scratch) {
        ctr_note_set_(note, CTR_E_MEMORY, "resize: no memory for filters to %ld x %ld pixels",
                      (long)out_h, (long)out_w);
        return 0;
    }
    ctr_resize_(image, box, out_h, out_w, interp, out, scratch);
    ctr_free_host_(ctx, scratch, (size_t)bytes);
    return 1;
}

/* Worker-safe: the 8-bit image of a box (NULL: everything), rounded. The arguments are good. */
CTR_PRIVATE_ int ctr_image_resize_(ctr_ctx *ctx, const ctr_image *image, const ctr_box *box,
                                   int64_t h, int64_t w, ctr_interp interp, ctr_image *out,
                                   ctr_note_ *note)
{
    ctr_pixels_ from;
    ctr_box all;
    size_t count = (size_t)(h * w * image->c), i;
    ctr_real *numbers;
    int ok;
    from.u8 = image->pixels;
    from.real = NULL;
    from.h = all.h = image->h;
    from.w = all.w = image->w;
    from.c = image->c;
    all.top = all.left = 0;
    if (!ctr_image_create_(ctx, h, w, image->c, out, note)) return 0;
    numbers = (ctr_real *)ctr_try_alloc_(ctx, count * sizeof *numbers);
    if (!numbers) ctr_note_set_(note, CTR_E_MEMORY, "resize: no memory for %ld x %ld pixels",
                                (long)h, (long)w);
    ok = numbers != NULL &&
         ctr_resize_alloc_(ctx, &from, box ? box : &all, h, w, interp, numbers, note);
    for (i = 0; ok && i < count; i++) {
        ctr_real v = numbers[i] * CTR_R(255.0) + CTR_R(0.5);
        out->pixels[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
    ctr_free_host_(ctx, numbers, count * sizeof *numbers);
    if (!ok) ctr_image_free(ctx, out);
    return ok;
}

CTR_API int ctr_image_resize(ctr_ctx *ctx, const ctr_image *image, const ctr_box *box, int64_t h,
                             int64_t w, ctr_interp interp, ctr_image *out)
{
    ctr_note_ note;
    ctr_box all;
    memset(&note, 0, sizeof note);
    memset(out, 0, sizeof *out);
    all.top = all.left = 0;
    all.h = image->h;
    all.w = image->w;
    if (!ctr_resize_check_(ctx, "image_resize", image->h, image->w, image->c, box ? box : &all, h,
                           w))
        return 0;
    if (ctr_image_resize_(ctx, image, box, h, w, interp, out, &note)) return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

CTR_API int ctr_image_resize_real(ctr_ctx *ctx, const ctr_image *image, const ctr_box *box,
                                  int64_t h, int64_t w, ctr_interp interp, ctr_real *out)
{
    ctr_note_ note;
    ctr_pixels_ from;
    ctr_box all;
    memset(&note, 0, sizeof note);
    all.top = all.left = 0;
    from.u8 = image->pixels;
    from.real = NULL;
    from.h = all.h = image->h;
    from.w = all.w = image->w;
    from.c = image->c;
    if (!box) box = &all;
    if (!ctr_resize_check_(ctx, "image_resize_real", from.h, from.w, from.c, box, h, w)) return 0;
    if (ctr_resize_alloc_(ctx, &from, box, h, w, interp, out, &note)) return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

/* ------------------------------------------------------------------------------------------------
   >>AUG

   The reference works on the interleaved image [h, w, c], one operation after the other, in the
   order of the text books. The AVX2 path, below it, keeps one plane for each channel.
   ---------------------------------------------------------------------------------------------- */

/* ---- configs
   ----------------------------------------------------------------------------------- */

CTR_API void ctr_aug_none_config_init(ctr_aug_config *config, int64_t size)
{
    int k;
    memset(config, 0, sizeof *config);
    config->height = config->width = size;
    config->center_crop = 1;
    config->crop_min = config->crop_max = 1;
    config->ratio_min = config->ratio_max = 1;
    config->interp = CTR_INTERP_BICUBIC;
    config->blur_sigma_min = 0.1;
    config->blur_sigma_max = 2;
    config->solarize_threshold = 0.5;
    for (k = 0; k < 3; k++) config->std[k] = 1;
    config->kernels = ctr_platform_avx2_() ? CTR_KERNELS_AVX2 : CTR_KERNELS_SCALAR;
}

CTR_API void ctr_aug_simclr_config_init(ctr_aug_config *config, int64_t size)
{
    double strength = size <= 32 ? 0.5 : 1.0;
    ctr_aug_none_config_init(config, size);
    config->center_crop = 0;
    config->crop_min = 0.08;
    config->ratio_min = 3.0 / 4.0;
    config->ratio_max = 4.0 / 3.0;
    config->flip_p = 0.5;
    config->jitter_p = 0.8;
    config->brightness = config->contrast = config->saturation = 0.8 * strength;
    config->hue = 0.2 * strength;
    config->gray_p = 0.2;
    config->blur_p = size <= 32 ? 0 : 0.5;
}

CTR_API ctr_aug_config ctr_aug_none_default(int64_t size)
{
    ctr_aug_config config;
    ctr_aug_none_config_init(&config, size);
    return config;
}

CTR_API ctr_aug_config ctr_aug_simclr_default(int64_t size)
{
    ctr_aug_config config;
    ctr_aug_simclr_config_init(&config, size);
    return config;
}

CTR_API void ctr_aug_byol_config_init(ctr_aug_config *config, int64_t size, int view)
{
    ctr_aug_simclr_config_init(config, size);
    config->brightness = config->contrast = 0.4;
    config->saturation = 0.2;
    config->hue = 0.1;
    config->blur_p = size <= 32 ? 0 : view ? 0.1 : 1;
    config->solarize_p = view ? 0.2 : 0;
}

CTR_API ctr_aug_config ctr_aug_byol_default(int64_t size, int view)
{
    ctr_aug_config config;
    ctr_aug_byol_config_init(&config, size, view);
    return config;
}

CTR_API void ctr_aug_swav_config_init(ctr_aug_config *config, int64_t size, int small)
{
    ctr_aug_simclr_config_init(config, size);
    config->crop_min = small ? 0.05 : 0.14;
    config->crop_max = small ? 0.14 : 1;
    config->interp = CTR_INTERP_BILINEAR;
    if (!small) return;
    config->height = config->width = CTR_MAX_((6 * size + 7) / 14, 1);
    if (config->height <= 32) config->blur_p = 0;
}

CTR_API ctr_aug_config ctr_aug_swav_default(int64_t size, int small)
{
    ctr_aug_config config;
    ctr_aug_swav_config_init(&config, size, small);
    return config;
}

CTR_API void ctr_aug_moco_config_init(ctr_aug_config *config, int64_t size, int version, int view)
{
    ctr_aug_byol_config_init(config, size, view);
    config->crop_min = 0.2;
    if (version >= 3) return;
    config->interp = CTR_INTERP_BILINEAR;
    config->saturation = 0.4;
    config->hue = version == 1 ? 0.4 : 0.1;
    config->jitter_p = version == 1 ? 1 : 0.8;
    config->blur_p = version == 1 || size <= 32 ? 0 : 0.5;
    config->solarize_p = 0;
}

CTR_API ctr_aug_config ctr_aug_moco_default(int64_t size, int version, int view)
{
    ctr_aug_config config;
    ctr_aug_moco_config_init(&config, size, version, view);
    return config;
}

/* low <= v <= high; false for NaN also under -ffast-math. */
CTR_PRIVATE_ int ctr_aug_within_(double v, double low, double high)
{
    return ctr_real_finite_((ctr_real)v) && v >= low && v <= high;
}

CTR_PRIVATE_ int ctr_aug_refuse_(ctr_ctx *ctx, const char *member, double value, const char *range)
{
    ctr_fail_(ctx, CTR_E_VALUE, "aug: %s must be %s, got %g", member, range, value);
    return 0;
}

CTR_PRIVATE_ int ctr_aug_pair_(ctr_ctx *ctx, const char *member, double low, double high,
                               double least, double most)
{
    if (ctr_aug_within_(low, least, most) && ctr_aug_within_(high, low, most)) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "aug: %s must satisfy %g <= min <= max <= %g, got %g and %g",
              member, least, most, low, high);
    return 0;
}

CTR_API int ctr_aug_config_check(ctr_ctx *ctx, const ctr_aug_config *c)
{
    int k;
    if (ctr_error(ctx) != CTR_OK) return 0;
    if (c->height < 1 || c->height > 65535)
        return ctr_aug_refuse_(ctx, "height", (double)c->height, "1..65535");
    if (c->width < 1 || c->width > 65535)
        return ctr_aug_refuse_(ctx, "width", (double)c->width, "1..65535");
    if (!ctr_aug_pair_(ctx, "crop", c->crop_min, c->crop_max, 1e-6, 1)) return 0;
    if (!ctr_aug_pair_(ctx, "ratio", c->ratio_min, c->ratio_max, 1e-3, 1e3)) return 0;
    if (!ctr_aug_pair_(ctx, "blur_sigma", c->blur_sigma_min, c->blur_sigma_max, 1e-3, 1e3))
        return 0;
    if (c->interp != CTR_INTERP_BILINEAR && c->interp != CTR_INTERP_BICUBIC)
        return ctr_aug_refuse_(ctx, "interp", (double)c->interp, "bilinear or bicubic");
    if (!ctr_aug_within_(c->flip_p, 0, 1)) return ctr_aug_refuse_(ctx, "flip_p", c->flip_p, "0..1");
    if (!ctr_aug_within_(c->jitter_p, 0, 1))
        return ctr_aug_refuse_(ctx, "jitter_p", c->jitter_p, "0..1");
    if (!ctr_aug_within_(c->brightness, 0, 100))
        return ctr_aug_refuse_(ctx, "brightness", c->brightness, "0..100");
    if (!ctr_aug_within_(c->contrast, 0, 100))
        return ctr_aug_refuse_(ctx, "contrast", c->contrast, "0..100");
    if (!ctr_aug_within_(c->saturation, 0, 100))
        return ctr_aug_refuse_(ctx, "saturation", c->saturation, "0..100");
    if (!ctr_aug_within_(c->hue, 0, 0.5)) return ctr_aug_refuse_(ctx, "hue", c->hue, "0..0.5");
    if (!ctr_aug_within_(c->gray_p, 0, 1)) return ctr_aug_refuse_(ctx, "gray_p", c->gray_p, "0..1");
    if (!ctr_aug_within_(c->blur_p, 0, 1)) return ctr_aug_refuse_(ctx, "blur_p", c->blur_p, "0..1");
    if (c->blur_kernel < 0 || c->blur_kernel > 255 || (c->blur_kernel && c->blur_kernel % 2 == 0))
        return ctr_aug_refuse_(ctx, "blur_kernel", c->blur_kernel, "0 or odd and at most 255");
    if (!ctr_aug_within_(c->solarize_p, 0, 1))
        return ctr_aug_refuse_(ctx, "solarize_p", c->solarize_p, "0..1");
    if (!ctr_aug_within_(c->solarize_threshold, 0, 1))
        return ctr_aug_refuse_(ctx, "solarize_threshold", c->solarize_threshold, "0..1");
    for (k = 0; k < 3; k++) {
        if (!ctr_aug_within_(c->mean[k], -1e6, 1e6))
            return ctr_aug_refuse_(ctx, "mean", c->mean[k], "finite");
        if (!ctr_aug_within_(c->std[k], 1e-6, 1e6))
            return ctr_aug_refuse_(ctx, "std", c->std[k], "1e-6..1e6");
    }
    return 1;
}

/* Kernel of the blur; SimCLR's is a tenth of the view, ours the odd number nearest to that. */
CTR_PRIVATE_ int ctr_aug_kernel_(const ctr_aug_config *config)
{
    double size = (double)CTR_MIN_(config->height, config->width);
    int radius = (int)floor(0.05 * size + 0.5);
    if (config->blur_kernel) return config->blur_kernel;
    return 2 * CTR_MIN_(radius, 127) + 1;
}

CTR_API const char *ctr_aug_describe(const ctr_aug_config *c, char *text, size_t size)
{
    char crop[96], last[64];
    if (c->center_crop)
        snprintf(crop, sizeof crop, "centre crop");
    else
        snprintf(crop, sizeof crop, "crop %g..%g ratio %.3g..%.3g", c->crop_min, c->crop_max,
                 c->ratio_min, c->ratio_max);
    last[0] = 0;
    if (c->solarize_p > 0)
        snprintf(last, sizeof last, ", solarize %g at %g", c->solarize_p, c->solarize_threshold);
    if (snprintf(text, size,
                 "%ldx%ld, %s %s, flip %g, jitter %g (%g %g %g %g), gray %g, "
                 "blur %g (%d px, sigma %g..%g)%s",
                 (long)c->width, (long)c->height, crop,
                 c->interp == CTR_INTERP_BICUBIC ? "bicubic" : "bilinear", c->flip_p, c->jitter_p,
                 c->brightness, c->contrast, c->saturation, c->hue, c->gray_p, c->blur_p,
                 ctr_aug_kernel_(c), c->blur_sigma_min, c->blur_sigma_max, last) < 0 && size)
        text[0] = 0;
    return text;
}

/* ---- sampling
   ---------------------------------------------------------------------------------- */

/* Width and height of the largest box with a ratio within the limits; centred. */
CTR_PRIVATE_ void ctr_aug_center_(double ratio_min, double ratio_max, int64_t h, int64_t w,
                                  ctr_box *box)
{
    double ratio = (double)w / (double)h;
    box->h = h;
    box->w = w;
    if (ratio < ratio_min) box->h = (int64_t)rint((double)w / ratio_min);
    else if (ratio > ratio_max) box->w = (int64_t)rint((double)h * ratio_max);
    box->h = CTR_MAX_(CTR_MIN_(box->h, h), 1);
    box->w = CTR_MAX_(CTR_MIN_(box->w, w), 1);
    box->top = (h - box->h) / 2;
    box->left = (w - box->w) / 2;
}

/* torchvision's RandomResizedCrop: with area a ~ U(min, max) h w and ratio r log-uniform,
   w' = sqrt(a r), h' = sqrt(a / r), rounded to even at halves. */
CTR_PRIVATE_ void ctr_aug_crop_(const ctr_aug_config *config, ctr_rng *rng, int64_t h, int64_t w,
                                ctr_box *box)
{
    double low = log(config->ratio_min), high = log(config->ratio_max);
    int attempt;
    for (attempt = 0; attempt < 10; attempt++) {
        double area = (double)h * (double)w *
                      ctr_rng_range(rng, config->crop_min, config->crop_max);
        double ratio = exp(ctr_rng_range(rng, low, high));
        double bw = rint(sqrt(area * ratio)), bh = rint(sqrt(area / ratio));
        if (bw < 1 || bh < 1 || bw > (double)w || bh > (double)h) continue;
        box->w = (int64_t)bw;
        box->h = (int64_t)bh;
        box->top = ctr_rng_below(rng, h - box->h + 1);
        box->left = ctr_rng_below(rng, w - box->w + 1);
        return;
    }
    ctr_aug_center_(config->ratio_min, config->ratio_max, h, w, box);
}

CTR_API void ctr_aug_sample(const ctr_aug_config *config, ctr_rng *rng, int64_t h, int64_t w,
                            ctr_aug_params *out)
{
    const double reach[3] = { config->brightness, config->contrast, config->saturation };
    double shape = (double)config->width / (double)config->height;
    int64_t order[4];
    int k;
    memset(out, 0, sizeof *out);
    if (config->center_crop) ctr_aug_center_(shape, shape, h, w, &out->crop);
    else ctr_aug_crop_(config, rng, h, w, &out->crop);
    out->flip = ctr_rng_uniform(rng) < config->flip_p;
    out->jitter = ctr_rng_uniform(rng) < config->jitter_p;
    ctr_rng_permutation(rng, 4, order);
    for (k = 0; k < 4; k++) out->order[k] = (int)order[k];
    for (k = 0; k < 3; k++)
        out->factor[k] = ctr_rng_range(rng, CTR_MAX_(0.0, 1 - reach[k]), 1 + reach[k]);
    out->factor[CTR_JITTER_HUE] = ctr_rng_range(rng, -config->hue, config->hue);
    out->gray = ctr_rng_uniform(rng) < config->gray_p;
    if (ctr_rng_uniform(rng) < config->blur_p)
        out->blur_sigma = ctr_rng_range(rng, config->blur_sigma_min, config->blur_sigma_max);
    out->solarize = ctr_rng_uniform(rng) < config->solarize_p;
}

/* ---- operations of the reference
   --------------------------------------------------------------- */

CTR_PRIVATE_ ctr_real ctr_aug_clip_(ctr_real v) { return v < 0 ? 0 : v > 1 ? 1 : v; }

#define CTR_LUMA_R_ CTR_R(0.2989)
#define CTR_LUMA_G_ CTR_R(0.587)
#define CTR_LUMA_B_ CTR_R(0.114)

CTR_PRIVATE_ ctr_real ctr_aug_luma_(const ctr_real *x, int64_t c)
{
    return c == 1 ? x[0] : CTR_LUMA_R_ * x[0] + CTR_LUMA_G_ * x[1] + CTR_LUMA_B_ * x[2];
}

/* x = clip(factor * x) */
CTR_PRIVATE_ void ctr_aug_brightness_(ctr_real *x, int64_t n, int64_t c, ctr_real factor)
{
    int64_t i;
    for (i = 0; i < n * c; i++) x[i] = ctr_aug_clip_(factor * x[i]);
}

/* x = clip(factor * x + (1 - factor) * mean), mean = sum of the n lumas / n */
CTR_PRIVATE_ void ctr_aug_contrast_(ctr_real *x, int64_t n, int64_t c, ctr_real factor)
{
    double sum = 0;
    ctr_real shift;
    int64_t i;
    for (i = 0; i < n; i++) sum += (double)ctr_aug_luma_(x + i * c, c);
    shift = (1 - factor) * (ctr_real)(sum / (double)n);
    for (i = 0; i < n * c; i++) x[i] = ctr_aug_clip_(factor * x[i] + shift);
}

/* x = clip(factor * x + (1 - factor) * luma); factor 0 is the gray image */
CTR_PRIVATE_ void ctr_aug_saturation_(ctr_real *x, int64_t n, int64_t c, ctr_real factor)
{
    int64_t i, k;
    if (c != 3) return;
    for (i = 0; i < n; i++, x += 3) {
        ctr_real shift = (1 - factor) * ctr_aug_luma_(x, 3);
        for (k = 0; k < 3; k++) x[k] = ctr_aug_clip_(factor * x[k] + shift);
    }
}

/* RGB to hue, saturation, value and back (Smith, 1978), with the hue turned by a part of the
   circle: h is a sixth of the position between two primaries, counted from red. */
CTR_PRIVATE_ void ctr_aug_hue_(ctr_real *x, int64_t n, int64_t c, ctr_real turn)
{
    int64_t i;
    if (c != 3) return;
    for (i = 0; i < n; i++, x += 3) {
        ctr_real r = x[0], g = x[1], b = x[2];
        ctr_real v = CTR_MAX_(CTR_MAX_(r, g), b), chroma = v - CTR_MIN_(CTR_MIN_(r, g), b);
        ctr_real h, f, p, q, t;
        int sector;
        if (chroma <= 0) continue;
        if (v == r) h = (g - b) / chroma;
        else if (v == g) h = 2 + (b - r) / chroma;
        else h = 4 + (r - g) / chroma;
        h = h / 6 + turn;
        h = (h - CTR_M_(floor)(h)) * 6;
        sector = (int)h;
        f = h - (ctr_real)sector;
        p = v - chroma;
        q = v - chroma * f;
        t = v - chroma * (1 - f);
        switch (sector) {
        case 0: case 6: x[0] = v; x[1] = t; x[2] = p; break;
        case 1: x[0] = q; x[1] = v; x[2] = p; break;
        case 2: x[0] = p; x[1] = v; x[2] = t; break;
        case 3: x[0] = p; x[1] = q; x[2] = v; break;
        case 4: x[0] = t; x[1] = p; x[2] = v; break;
        default: x[0] = v; x[1] = p; x[2] = q; break;
        }
    }
}

CTR_PRIVATE_ void ctr_aug_gray_(ctr_real *x, int64_t n, int64_t c)
{
    int64_t i;
    if (c != 3) return;
    for (i = 0; i < n; i++, x += 3) x[0] = x[1] = x[2] = ctr_aug_luma_(x, 3);
}

CTR_PRIVATE_ void ctr_aug_solarize_(ctr_real *x, int64_t count, ctr_real threshold)
{
    int64_t i;
    for (i = 0; i < count; i++) x[i] = x[i] >= threshold ? 1 - x[i] : x[i];
}

CTR_PRIVATE_ void ctr_aug_flip_(ctr_real *x, int64_t h, int64_t w, int64_t c)
{
    int64_t y, i, k;
    for (y = 0; y < h; y++, x += w * c)
        for (i = 0; i < w / 2; i++)
            for (k = 0; k < c; k++) {
                ctr_real t = x[i * c + k];
                x[i * c + k] = x[(w - 1 - i) * c + k];
                x[(w - 1 - i) * c + k] = t;
            }
}

CTR_PRIVATE_ void ctr_aug_normalize_(ctr_real *x, int64_t n, int64_t c, const double *mean,
                                     const double *std)
{
    int64_t i, k;
    for (i = 0; i < n; i++)
        for (k = 0; k < c; k++)
            x[i * c + k] = (x[i * c + k] - (ctr_real)mean[k]) / (ctr_real)std[k];
}

/* weight[j] = exp(-(j - radius)^2 / (2 sigma^2)) / sum, j = 0..2 radius */
CTR_PRIVATE_ void ctr_aug_gauss_(double sigma, int64_t radius, ctr_real *weight)
{
    double sum = 0;
    int64_t j;
    for (j = -radius; j <= radius; j++) sum += exp(-0.5 * (double)(j * j) / (sigma * sigma));
    for (j = -radius; j <= radius; j++)
        weight[j + radius] = (ctr_real)(exp(-0.5 * (double)(j * j) / (sigma * sigma)) / sum);
}

/* Index i of a line of n, reflected at both ends without repeating them (as often as needed). */
CTR_PRIVATE_ int64_t ctr_aug_reflect_(int64_t i, int64_t n)
{
    int64_t period = 2 * (n - 1);
    if (n == 1) return 0;
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

/* One row [w, c] extended by radius reflected pixels on either side. */
CTR_PRIVATE_ void ctr_aug_extend_(const ctr_real *row, int64_t w, int64_t c, int64_t radius,
                                  ctr_real *line)
{
    int64_t i, k;
    for (i = -radius; i < w + radius; i++)
        for (k = 0; k < c; k++)
            line[(i + radius) * c + k] = row[ctr_aug_reflect_(i, w) * c + k];
}

/* Bytes of scratch of ctr_aug_blur_: weights, an extended row, and a copy of the image. */
CTR_PRIVATE_ uint64_t ctr_aug_blur_bytes_(int64_t h, int64_t w, int64_t c, int kernel)
{
    uint64_t numbers = (uint64_t)kernel + (uint64_t)((w + kernel + 8) * c) + (uint64_t)(h * w * c);
    return numbers * sizeof(ctr_real) + 4 * CTR_ALIGN_;
}

/* Rows first, from x to the copy, then columns back; both sum from the first tap to the last. */
CTR_PRIVATE_ void ctr_aug_blur_(ctr_real *x, int64_t h, int64_t w, int64_t c, int kernel,
                                double sigma, void *scratch)
{
    char *at = (char *)scratch;
    int64_t radius = kernel / 2, length = w * c, y, i, j;
    ctr_real *weight = (ctr_real *)ctr_image_carve_(&at, (size_t)kernel * sizeof *weight);
    ctr_real *line = (ctr_real *)ctr_image_carve_(&at, (size_t)((w + kernel) * c) * sizeof *line);
    ctr_real *copy = (ctr_real *)ctr_image_carve_(&at, (size_t)(h * length) * sizeof *copy);
    ctr_aug_gauss_(sigma, radius, weight);
    for (y = 0; y < h; y++) {
        ctr_aug_extend_(x + y * length, w, c, radius, line);
        for (i = 0; i < length; i++) {
            ctr_real sum = 0;
            for (j = 0; j < kernel; j++) sum += weight[j] * line[i + j * c];
            copy[y * length + i] = sum;
        }
    }
    for (y = 0; y < h; y++) {
        for (i = 0; i < length; i++) x[y * length + i] = 0;
        for (j = 0; j < kernel; j++) {
            const ctr_real *from = copy + ctr_aug_reflect_(y + j - radius, h) * length;
            for (i = 0; i < length; i++) x[y * length + i] += weight[j] * from[i];
        }
    }
}

/* ---- a whole view
   ------------------------------------------------------------------------------ */

CTR_PRIVATE_ void ctr_aug_jitter_(const ctr_aug_config *config, const ctr_aug_params *p,
                                  ctr_real *x, int64_t n, int64_t c)
{
    int k;
    for (k = 0; k < 4; k++) {
        ctr_real f = (ctr_real)p->factor[p->order[k]];
        if (p->order[k] == CTR_JITTER_BRIGHTNESS && config->brightness > 0)
            ctr_aug_brightness_(x, n, c, f);
        if (p->order[k] == CTR_JITTER_CONTRAST && config->contrast > 0)
            ctr_aug_contrast_(x, n, c, f);
        if (p->order[k] == CTR_JITTER_SATURATION && config->saturation > 0)
            ctr_aug_saturation_(x, n, c, f);
        if (p->order[k] == CTR_JITTER_HUE && config->hue > 0) ctr_aug_hue_(x, n, c, f);
    }
}

/* The reference. The cubic filter overshoots; what it leaves is clipped, as 8-bit images do. */
CTR_PRIVATE_ void ctr_aug_apply_scalar_(const ctr_aug_config *config, const ctr_aug_params *p,
                                        const ctr_pixels_ *image, ctr_real *out, void *scratch)
{
    int64_t h = config->height, w = config->width, c = image->c, n = h * w, i;
    ctr_resize_(image, &p->crop, h, w, config->interp, out, scratch);
    for (i = 0; i < n * c; i++) out[i] = ctr_aug_clip_(out[i]);
    if (p->flip) ctr_aug_flip_(out, h, w, c);
    if (p->jitter) ctr_aug_jitter_(config, p, out, n, c);
    if (p->gray) ctr_aug_gray_(out, n, c);
    if (p->blur_sigma > 0)
        ctr_aug_blur_(out, h, w, c, ctr_aug_kernel_(config), p->blur_sigma, scratch);
    if (p->solarize) ctr_aug_solarize_(out, n * c, (ctr_real)config->solarize_threshold);
    ctr_aug_normalize_(out, n, c, config->mean, config->std);
}

#if CTR_HAS_AVX2_

/* ---- the AVX2 path -----------------------------------------------------------------------------
   One plane [height * width] for each channel. The crop is resized eight output rows at a time:
   columns first along whole rows of pixels, then the eight rows are transposed, so that the rows'
   filter has one output row in each lane, then they are transposed back. Sums have other orders
   than in the reference, so that results differ by a few units in the last place; they depend on
   nothing but the arguments.
   ---------------------------------------------------------------------------------------------- */

/* Bytes of scratch beyond the reference's: planes, and three blocks of eight rows. */
CTR_PRIVATE_ uint64_t ctr_aug_fast_bytes_(const ctr_aug_config *config, int64_t w, int64_t c)
{
    uint64_t n = (uint64_t)(config->height * config->width * c), row = (uint64_t)(w * c + 8) * 8;
    uint64_t line = (uint64_t)(config->width * c) * 8;
    return (n + 2 * row + line) * sizeof(ctr_real) + 8 * CTR_ALIGN_;
}

/* to[i] = sum over j < taps of weight[j] * from[j][i] */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_taps_avx2_(const ctr_real *const *from,
                                                      const ctr_real *weight, int64_t taps,
                                                      int64_t n, ctr_real *to)
{
    int64_t i, j;
    for (i = 0; i + 32 <= n; i += 32) {
        __m256 a = _mm256_setzero_ps(), b = a, c = a, d = a;
        for (j = 0; j < taps; j++) {
            __m256 w = _mm256_broadcast_ss(weight + j);
            a = _mm256_fmadd_ps(w, _mm256_loadu_ps(from[j] + i), a);
            b = _mm256_fmadd_ps(w, _mm256_loadu_ps(from[j] + i + 8), b);
            c = _mm256_fmadd_ps(w, _mm256_loadu_ps(from[j] + i + 16), c);
            d = _mm256_fmadd_ps(w, _mm256_loadu_ps(from[j] + i + 24), d);
        }
        _mm256_storeu_ps(to + i, a);
        _mm256_storeu_ps(to + i + 8, b);
        _mm256_storeu_ps(to + i + 16, c);
        _mm256_storeu_ps(to + i + 24, d);
    }
    for (; i < n; i++) {
        ctr_real sum = 0;
        for (j = 0; j < taps; j++) sum += weight[j] * from[j][i];
        to[i] = sum;
    }
}

/* The same for bytes in rows of `stride`, in 255ths. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_taps_u8_avx2_(const uint8_t *from, int64_t stride,
                                                         const ctr_real *weight, int64_t taps,
                                                         int64_t n, ctr_real *to)
{
    int64_t i, j;
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (j = 0; j < taps; j++) {
            __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(from + j * stride + i));
            __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(weight + j), v, sum);
        }
        _mm256_storeu_ps(to + i, _mm256_div_ps(sum, _mm256_set1_ps(255.0f)));
    }
    for (; i < n; i++) {
        ctr_real sum = 0;
        for (j = 0; j < taps; j++) sum += weight[j] * (ctr_real)from[j * stride + i];
        to[i] = sum / 255.0f;
    }
}

/* to[8, 8] is from[8, 8] transposed; rows lie a stride apart. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_turn_avx2_(const ctr_real *from, int64_t from_stride,
                                                      ctr_real *to, int64_t to_stride)
{
    __m256 a[8], b[8];
    int k;
    for (k = 0; k < 8; k++) a[k] = _mm256_loadu_ps(from + k * from_stride);
    for (k = 0; k < 4; k++) { /* pairs, then quartets, then halves change places */
        b[2 * k] = _mm256_unpacklo_ps(a[2 * k], a[2 * k + 1]);
        b[2 * k + 1] = _mm256_unpackhi_ps(a[2 * k], a[2 * k + 1]);
    }
    for (k = 0; k < 8; k += 4) {
        a[k] = _mm256_shuffle_ps(b[k], b[k + 2], 0x44);
        a[k + 1] = _mm256_shuffle_ps(b[k], b[k + 2], 0xEE);
        a[k + 2] = _mm256_shuffle_ps(b[k + 1], b[k + 3], 0x44);
        a[k + 3] = _mm256_shuffle_ps(b[k + 1], b[k + 3], 0xEE);
    }
    for (k = 0; k < 4; k++) {
        _mm256_storeu_ps(to + k * to_stride, _mm256_permute2f128_ps(a[k], a[k + 4], 0x20));
        _mm256_storeu_ps(to + (k + 4) * to_stride, _mm256_permute2f128_ps(a[k], a[k + 4], 0x31));
    }
}

/* The horizontal filter on eight rows at once: line[c, out, 8] from cols[in * c, 8], clipped. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_across_avx2_(const ctr_filter_ *f, const ctr_real *cols,
                                                        int64_t c, ctr_real *line)
{
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
    int64_t o, t, k;
    for (o = 0; o < f->out; o++) {
        const ctr_real *from = cols + f->first[o] * c * 8, *weight = f->weight + o * f->width;
        int64_t count = f->count[o];
        if (c == 3) {
            __m256 r = zero, g = zero, b = zero;
            for (t = 0; t < count; t++, from += 24) {
                __m256 w = _mm256_broadcast_ss(weight + t);
                r = _mm256_fmadd_ps(w, _mm256_loadu_ps(from), r);
                g = _mm256_fmadd_ps(w, _mm256_loadu_ps(from + 8), g);
                b = _mm256_fmadd_ps(w, _mm256_loadu_ps(from + 16), b);
            }
            r = _mm256_min_ps(_mm256_max_ps(r, zero), one);
            g = _mm256_min_ps(_mm256_max_ps(g, zero), one);
            b = _mm256_min_ps(_mm256_max_ps(b, zero), one);
            _mm256_storeu_ps(line + o * 8, r);
            _mm256_storeu_ps(line + (f->out + o) * 8, g);
            _mm256_storeu_ps(line + (2 * f->out + o) * 8, b);
        } else {
            for (k = 0; k < c; k++) {
                __m256 sum = zero;
                for (t = 0; t < count; t++)
                    sum = _mm256_fmadd_ps(_mm256_broadcast_ss(weight + t),
                                          _mm256_loadu_ps(from + (t * c + k) * 8), sum);
                sum = _mm256_min_ps(_mm256_max_ps(sum, zero), one);
                _mm256_storeu_ps(line + (k * f->out + o) * 8, sum);
            }
        }
    }
}

/* Writes eight (or, at the end, fewer) finished rows into the planes. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_settle_avx2_(const ctr_real *line, int64_t w,
                                                        int64_t rows, ctr_real *to)
{
    int64_t o = 0, y, k;
    if (rows == 8)
        for (; o + 8 <= w; o += 8) ctr_aug_turn_avx2_(line + o * 8, 8, to + o, w);
    for (y = 0; y < rows; y++)
        for (k = o; k < w; k++) to[y * w + k] = line[k * 8 + y];
}

/* One row of pixels, filtered along the columns, into row[length]. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_down_avx2_(const ctr_pixels_ *image, const ctr_box *box,
                                                      const ctr_filter_ *f, int64_t o,
                                                      ctr_real *row)
{
    const ctr_real *weight = f->weight + o * f->width;
    int64_t stride = image->w * image->c, length = box->w * image->c, i, j;
    int64_t start = (box->top + f->first[o]) * stride + box->left * image->c;
    if (image->u8) {
        ctr_aug_taps_u8_avx2_(image->u8 + start, stride, weight, f->count[o], length, row);
        return;
    }
    for (i = 0; i < length; i++) row[i] = 0;
    for (j = 0; j < f->count[o]; j++) {
        const ctr_real *from = image->real + start + j * stride;
        for (i = 0; i < length; i++) row[i] += weight[j] * from[i];
    }
}

/* planes[c, height * width] of the crop, mirrored if asked for, clipped to 0..1. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_resize_avx2_(const ctr_aug_config *config,
                                                        const ctr_aug_params *p,
                                                        const ctr_pixels_ *image, ctr_real *planes,
                                                        char **at)
{
    int64_t h = config->height, w = config->width, c = image->c, length = p->crop.w * c, y, r, i, k;
    int64_t padded = (length + 7) / 8 * 8;
    ctr_filter_ fy, fx;
    ctr_real *rows, *cols, *line;
    ctr_filter_make_(&fy, config->interp, p->crop.h, h, 0, at);
    ctr_filter_make_(&fx, config->interp, p->crop.w, w, p->flip, at);
    rows = (ctr_real *)ctr_image_carve_(at, (size_t)(8 * padded) * sizeof *rows);
    cols = (ctr_real *)ctr_image_carve_(at, (size_t)(8 * padded) * sizeof *cols);
    line = (ctr_real *)ctr_image_carve_(at, (size_t)(8 * w * c) * sizeof *line);
    memset(rows, 0, (size_t)(8 * padded) * sizeof *rows); /* what pads the last block is finite */
    for (y = 0; y < h; y += 8) {
        int64_t some = CTR_MIN_(h - y, 8);
        for (r = 0; r < some; r++)
            ctr_aug_down_avx2_(image, &p->crop, &fy, y + r, rows + r * padded);
        for (i = 0; i < padded; i += 8) ctr_aug_turn_avx2_(rows + i, padded, cols + i * 8, 8);
        ctr_aug_across_avx2_(&fx, cols, c, line);
        for (k = 0; k < c; k++)
            ctr_aug_settle_avx2_(line + k * w * 8, w, some, planes + k * h * w + y * w);
    }
}

/* x = clip(factor * x + shift) */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_affine_avx2_(ctr_real *x, int64_t n, ctr_real factor,
                                                        ctr_real shift)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        ctr_real v = factor * x[i] + shift;
        v = v > 0 ? v : 0;
        x[i] = v < 1 ? v : 1;
    }
}

/* Mean luma: eight sums in each stretch of 1024 pixels, then in double. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ ctr_real ctr_aug_mean_avx2_(const ctr_real *x, int64_t n, int64_t c)
{
    const ctr_real *g = c == 3 ? x + n : x, *b = c == 3 ? x + 2 * n : x;
    const ctr_real wr = c == 3 ? CTR_LUMA_R_ : 1.0f, wg = c == 3 ? CTR_LUMA_G_ : 0.0f;
    const ctr_real wb = c == 3 ? CTR_LUMA_B_ : 0.0f;
    double total = 0;
    int64_t i, start;
    int k;
    for (start = 0; start < n; start += 1024) {
        int64_t end = CTR_MIN_(start + 1024, n);
        float lanes[8];
        __m256 sum = _mm256_setzero_ps();
        for (i = start; i + 8 <= end; i += 8) {
            sum = _mm256_fmadd_ps(_mm256_set1_ps(wr), _mm256_loadu_ps(x + i), sum);
            sum = _mm256_fmadd_ps(_mm256_set1_ps(wg), _mm256_loadu_ps(g + i), sum);
            sum = _mm256_fmadd_ps(_mm256_set1_ps(wb), _mm256_loadu_ps(b + i), sum);
        }
        _mm256_storeu_ps(lanes, sum);
        for (k = 0; k < 8; k++) total += (double)lanes[k];
        for (; i < end; i++) total += (double)(wr * x[i] + wg * g[i] + wb * b[i]);
    }
    return (ctr_real)(total / (double)n);
}

CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_saturation_avx2_(ctr_real *x, int64_t n, ctr_real factor)
{
    ctr_real *__restrict r = x, *__restrict g = x + n, *__restrict b = x + 2 * n;
    int64_t i;
    for (i = 0; i < n; i++) {
        ctr_real shift = CTR_LUMA_R_ * r[i] + CTR_LUMA_G_ * g[i] + CTR_LUMA_B_ * b[i], u, v, w;
        shift *= 1 - factor;
        u = factor * r[i] + shift;
        v = factor * g[i] + shift;
        w = factor * b[i] + shift;
        u = u > 0 ? u : 0;
        v = v > 0 ? v : 0;
        w = w > 0 ? w : 0;
        r[i] = u < 1 ? u : 1;
        g[i] = v < 1 ? v : 1;
        b[i] = w < 1 ? w : 1;
    }
}

/* Hue without branches. With low and high the least and the greatest channel and h the position on
   the circle in sixths, turned: red = low + (high - low) clip(|h - 3| - 1), green the same with
   2 - |h - 2|, blue with 2 - |h - 4|. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_hue_avx2_(ctr_real *x, int64_t n, ctr_real turn)
{
    ctr_real *__restrict pr = x, *__restrict pg = x + n, *__restrict pb = x + 2 * n;
    const ctr_real by = 6.0f * (turn < 0 ? turn + 1 : turn); /* 0..6 */
    int64_t i;
    for (i = 0; i < n; i++) {
        ctr_real r = pr[i], g = pg[i], b = pb[i], high, low, chroma, h, u, v, w;
        high = r > g ? r : g;
        high = high > b ? high : b;
        low = r < g ? r : g;
        low = low < b ? low : b;
        chroma = high - low;
        u = high == r ? g - b : high == g ? b - r : r - g;
        v = high == r ? 0.0f : high == g ? 2.0f : 4.0f;
        h = v + by + u / (chroma > 0 ? chroma : 1.0f); /* -1..11 */
        h = h >= 6.0f ? h - 6.0f : h;
        h = h < 0.0f ? h + 6.0f : h;
        u = fabsf(h - 3.0f) - 1.0f;
        v = 2.0f - fabsf(h - 2.0f);
        w = 2.0f - fabsf(h - 4.0f);
        u = u > 0 ? u : 0;
        v = v > 0 ? v : 0;
        w = w > 0 ? w : 0;
        pr[i] = low + chroma * (u < 1 ? u : 1);
        pg[i] = low + chroma * (v < 1 ? v : 1);
        pb[i] = low + chroma * (w < 1 ? w : 1);
    }
}

CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_gray_avx2_(ctr_real *x, int64_t n)
{
    ctr_real *__restrict r = x, *__restrict g = x + n, *__restrict b = x + 2 * n;
    int64_t i;
    for (i = 0; i < n; i++)
        r[i] = g[i] = b[i] = CTR_LUMA_R_ * r[i] + CTR_LUMA_G_ * g[i] + CTR_LUMA_B_ * b[i];
}

CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_solarize_avx2_(ctr_real *x, int64_t n,
                                                          ctr_real threshold)
{
    int64_t i;
    for (i = 0; i < n; i++) x[i] = x[i] >= threshold ? 1.0f - x[i] : x[i];
}

/* The two passes of ctr_aug_blur_ on one plane; copy [h, w], line [w + kernel]. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_blur_avx2_(ctr_real *x, int64_t h, int64_t w, int kernel,
                                                      const ctr_real *weight, ctr_real *line,
                                                      ctr_real *copy)
{
    const ctr_real *from[255];
    int64_t y;
    int j;
    for (y = 0; y < h; y++) {
        ctr_aug_extend_(x + y * w, w, 1, kernel / 2, line);
        for (j = 0; j < kernel; j++) from[j] = line + j;
        ctr_aug_taps_avx2_(from, weight, kernel, w, copy + y * w);
    }
    for (y = 0; y < h; y++) {
        for (j = 0; j < kernel; j++) from[j] = copy + ctr_aug_reflect_(y + j - kernel / 2, h) * w;
        ctr_aug_taps_avx2_(from, weight, kernel, w, x + y * w);
    }
}

/* out[n, c] = (planes[c, n] - mean) / std */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_aug_finish_avx2_(const ctr_aug_config *config,
                                                        const ctr_real *planes, int64_t n,
                                                        int64_t c, ctr_real *__restrict out)
{
    const ctr_real *__restrict r = planes, *__restrict g = planes + n, *__restrict b = g + n;
    const ctr_real m0 = (ctr_real)config->mean[0], s0 = (ctr_real)(1 / config->std[0]);
    const ctr_real m1 = (ctr_real)config->mean[1], s1 = (ctr_real)(1 / config->std[1]);
    const ctr_real m2 = (ctr_real)config->mean[2], s2 = (ctr_real)(1 / config->std[2]);
    int64_t i;
    if (c == 1) {
        for (i = 0; i < n; i++) out[i] = (r[i] - m0) * s0;
        return;
    }
    for (i = 0; i < n; i++) {
        out[3 * i] = (r[i] - m0) * s0;
        out[3 * i + 1] = (g[i] - m1) * s1;
        out[3 * i + 2] = (b[i] - m2) * s2;
    }
}

CTR_PRIVATE_ void ctr_aug_jitter_avx2_(const ctr_aug_config *config, const ctr_aug_params *p,
                                       ctr_real *x, int64_t n, int64_t c)
{
    int k;
    for (k = 0; k < 4; k++) {
        ctr_real f = (ctr_real)p->factor[p->order[k]];
        switch (p->order[k]) {
        case CTR_JITTER_BRIGHTNESS:
            if (config->brightness > 0) ctr_aug_affine_avx2_(x, n * c, f, 0);
            break;
        case CTR_JITTER_CONTRAST:
            if (config->contrast > 0)
                ctr_aug_affine_avx2_(x, n * c, f, (1 - f) * ctr_aug_mean_avx2_(x, n, c));
            break;
        case CTR_JITTER_SATURATION:
            if (config->saturation > 0 && c == 3) ctr_aug_saturation_avx2_(x, n, f);
            break;
        default:
            if (config->hue > 0 && c == 3) ctr_aug_hue_avx2_(x, n, f);
        }
    }
}

CTR_PRIVATE_ void ctr_aug_apply_avx2_(const ctr_aug_config *config, const ctr_aug_params *p,
                                      const ctr_pixels_ *image, ctr_real *out, void *scratch)
{
    int64_t h = config->height, w = config->width, c = image->c, n = h * w, k;
    int kernel = ctr_aug_kernel_(config);
    char *at = (char *)scratch, *rest;
    ctr_real *planes = (ctr_real *)ctr_image_carve_(&at, (size_t)(n * c) * sizeof *planes);
    rest = at;
    ctr_aug_resize_avx2_(config, p, image, planes, &at);
    if (p->jitter) ctr_aug_jitter_avx2_(config, p, planes, n, c);
    if (p->gray && c == 3) ctr_aug_gray_avx2_(planes, n);
    if (p->blur_sigma > 0) {
        ctr_real *weight, *line, *copy;
        at = rest;
        weight = (ctr_real *)ctr_image_carve_(&at, (size_t)kernel * sizeof *weight);
        line = (ctr_real *)ctr_image_carve_(&at, (size_t)(w + kernel) * sizeof *line);
        copy = (ctr_real *)ctr_image_carve_(&at, (size_t)n * sizeof *copy);
        ctr_aug_gauss_(p->blur_sigma, kernel / 2, weight);
        for (k = 0; k < c; k++)
            ctr_aug_blur_avx2_(planes + k * n, h, w, kernel, weight, line, copy);
    }
    if (p->solarize) ctr_aug_solarize_avx2_(planes, n * c, (ctr_real)config->solarize_threshold);
    ctr_aug_finish_avx2_(config, planes, n, c, out);
}

#else

CTR_PRIVATE_ uint64_t ctr_aug_fast_bytes_(const ctr_aug_config *config, int64_t w, int64_t c)
{
    (void)config;
    (void)w;
    (void)c;
    return 0;
}

#endif

CTR_API size_t ctr_aug_scratch_size(const ctr_aug_config *config, int64_t h, int64_t w, int64_t c)
{
    uint64_t resize = ctr_resize_bytes_(config->interp, h, w, c, config->height, config->width);
    uint64_t blur = ctr_aug_blur_bytes_(config->height, config->width, c, ctr_aug_kernel_(config));
    uint64_t bytes = CTR_MAX_(resize, blur) + ctr_aug_fast_bytes_(config, w, c);
    return bytes <= SIZE_MAX / 4 ? (size_t)bytes : 0;
}

CTR_PRIVATE_ void ctr_aug_apply_(const ctr_aug_config *config, const ctr_aug_params *params,
                                 const ctr_pixels_ *image, ctr_real *out, void *scratch)
{
#if CTR_HAS_AVX2_
    ctr_kernels kernels = config->kernels;
    if (kernels == CTR_KERNELS_AUTO)
        kernels = ctr_platform_avx2_() ? CTR_KERNELS_AVX2 : CTR_KERNELS_SCALAR;
    if (kernels == CTR_KERNELS_AVX2) {
        ctr_aug_apply_avx2_(config, params, image, out, scratch);
        return;
    }
#endif
    ctr_aug_apply_scalar_(config, params, image, out, scratch);
}

CTR_API void ctr_aug_apply(const ctr_aug_config *config, const ctr_aug_params *params,
                           const uint8_t *pixels, int64_t h, int64_t w, int64_t c, ctr_real *out,
                           void *scratch)
{
    ctr_pixels_ image;
    image.u8 = pixels;
    image.real = NULL;
    image.h = h;
    image.w = w;
    image.c = c;
    ctr_aug_apply_(config, params, &image, out, scratch);
}

CTR_API void ctr_aug_apply_real(const ctr_aug_config *config, const ctr_aug_params *params,
                                const ctr_real *pixels, int64_t h, int64_t w, int64_t c,
                                ctr_real *out, void *scratch)
{
    ctr_pixels_ image;
    image.u8 = NULL;
    image.real = pixels;
    image.h = h;
    image.w = w;
    image.c = c;
    ctr_aug_apply_(config, params, &image, out, scratch);
}

/* ---- checked entries
   --------------------------------------------------------------------------- */

CTR_PRIVATE_ int ctr_aug_finite_(ctr_ctx *ctx, const char *name, const ctr_real *x, int64_t n,
                                 int64_t h, int64_t w, int64_t c)
{
    int64_t i, count = n * h * w * c;
    for (i = 0; i < count; i++)
        if (!ctr_real_finite_(x[i])) {
            ctr_fail_(ctx, CTR_E_NUMBER,
                      "%s: image %ld is not finite at row %ld, column %ld, channel %ld", name,
                      (long)(i / (h * w * c)), (long)(i / (w * c) % h), (long)(i / c % w),
                      (long)(i % c));
            return 0;
        }
    return 1;
}

/* Images that a user hands over; x NULL: of bytes, which are always good. */
CTR_PRIVATE_ int ctr_aug_check_(ctr_ctx *ctx, const char *name, const ctr_real *x, int64_t n,
                                int64_t h, int64_t w, int64_t c)
{
    if (ctr_error(ctx) != CTR_OK) return 0;
    if (n < 0 || !ctr_image_sides_ok_(h, w, c) || (n && n > INT64_MAX / 16 / (h * w * c))) {
        ctr_fail_(
            ctx, CTR_E_SHAPE,
            "%s: sides must be 1..65535 and channels 1 or 3, got %ld images of %ld x %ld x %ld",
            name, (long)n, (long)h, (long)w, (long)c);
        return 0;
    }
    return !x || ctr_aug_finite_(ctx, name, x, n, h, w, c);
}

CTR_PRIVATE_ int ctr_aug_params_check_(ctr_ctx *ctx, const ctr_aug_params *p, int64_t h, int64_t w)
{
    int k, seen = 0;
    if (!ctr_resize_check_(ctx, "aug_view", h, w, 1, &p->crop, 1, 1)) return 0;
    for (k = 0; k < 4; k++) seen |= p->order[k] >= 0 && p->order[k] < 4 ? 1 << p->order[k] : 0;
    if (p->jitter && seen != 15) {
        ctr_fail_(ctx, CTR_E_VALUE, "aug_view: order must be a permutation of 0..3");
        return 0;
    }
    for (k = 0; k < 4; k++)
        if (p->jitter && !ctr_aug_within_(p->factor[k], k == CTR_JITTER_HUE ? -0.5 : 0,
                                          k == CTR_JITTER_HUE ? 0.5 : 101))
            return ctr_aug_refuse_(ctx, "factor", p->factor[k], "0..101, of hue -0.5..0.5");
    if (p->blur_sigma != 0 && !ctr_aug_within_(p->blur_sigma, 1e-3, 1e3))
        return ctr_aug_refuse_(ctx, "blur_sigma", p->blur_sigma, "0 or 1e-3..1e3");
    return 1;
}

CTR_PRIVATE_ int ctr_aug_view_(ctr_ctx *ctx, const ctr_aug_config *config,
                               const ctr_aug_params *params, const ctr_pixels_ *image,
                               ctr_real *out)
{
    size_t bytes;
    void *scratch;
    if (!ctr_aug_check_(ctx, "aug_view", image->real, 1, image->h, image->w, image->c)) return 0;
    if (!ctr_aug_config_check(ctx, config)) return 0;
    if (!ctr_aug_params_check_(ctx, params, image->h, image->w)) return 0;
    bytes = ctr_aug_scratch_size(config, image->h, image->w, image->c);
    scratch = ctr_alloc_(ctx, bytes ? bytes : SIZE_MAX / 4);
    if (!scratch) return 0;
    ctr_aug_apply_(config, params, image, out, scratch);
    ctr_free_host_(ctx, scratch, bytes);
    return 1;
}

CTR_API int ctr_aug_view(ctr_ctx *ctx, const ctr_aug_config *config, const ctr_aug_params *params,
                         const uint8_t *pixels, int64_t h, int64_t w, int64_t c, ctr_real *out)
{
    ctr_pixels_ image;
    image.u8 = pixels;
    image.real = NULL;
    image.h = h;
    image.w = w;
    image.c = c;
    return ctr_aug_view_(ctx, config, params, &image, out);
}

CTR_API int ctr_aug_view_real(ctr_ctx *ctx, const ctr_aug_config *config,
                              const ctr_aug_params *params, const ctr_real *pixels, int64_t h,
                              int64_t w, int64_t c, ctr_real *out)
{
    ctr_pixels_ image;
    image.u8 = NULL;
    image.real = pixels;
    image.h = h;
    image.w = w;
    image.c = c;
    return ctr_aug_view_(ctx, config, params, &image, out);
}

/* Images of a chunk of a batch: so many that a chunk outweighs its dispatch. */
#define CTR_AUG_CHUNK_ 16

typedef struct ctr_aug_job_ {
    const ctr_aug_config *config;
    ctr_pixels_ first;            /* image 0 of the batch */
    int64_t n, epoch, position;
    uint64_t seed;
    int view;
    ctr_real *out;
    char *scratch;                /* one block for each worker */
    size_t scratch_size;
} ctr_aug_job_;

CTR_PRIVATE_ void ctr_aug_batch_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_aug_job_ *job = (const ctr_aug_job_ *)arg;
    const ctr_aug_config *config = job->config;
    int64_t i = chunk * CTR_AUG_CHUNK_, end = CTR_MIN_(i + CTR_AUG_CHUNK_, job->n);
    int64_t size = job->first.h * job->first.w * job->first.c;
    int64_t out_size = config->height * config->width * job->first.c;
    for (; i < end; i++) {
        ctr_pixels_ image = job->first;
        ctr_aug_params params;
        ctr_rng rng;
        if (image.u8) image.u8 += i * size;
        else image.real += i * size;
        ctr_rng_init(&rng, job->seed, CTR_STREAM_VIEW, job->epoch, job->position + i, job->view);
        ctr_aug_sample(config, &rng, image.h, image.w, &params);
        ctr_aug_apply_(config, &params, &image, job->out + i * out_size,
                       job->scratch + (size_t)worker * job->scratch_size);
    }
}

CTR_PRIVATE_ int ctr_aug_batch_(ctr_ctx *ctx, const ctr_aug_config *config, ctr_aug_job_ *job)
{
    const ctr_pixels_ *image = &job->first;
    ctr_aug_config own;
    size_t total;
    if (!ctr_aug_config_check(ctx, config)) return 0;
    if (!ctr_aug_check_(ctx, "aug_batch", image->real, job->n, image->h, image->w, image->c))
        return 0;
    if (job->n == 0) return 1;
    own = *config;
    own.kernels = ctx->kernels;
    job->config = &own;
    job->seed = ctr_seed(ctx);
    job->scratch_size = ctr_aug_scratch_size(config, image->h, image->w, image->c);
    total = ctr_size_mul_(ctx, job->scratch_size ? job->scratch_size : SIZE_MAX / 4,
                          (size_t)ctr_threads(ctx));
    job->scratch = total ? (char *)ctr_alloc_(ctx, total) : NULL;
    if (!job->scratch) return 0;
    ctr_parallel_(ctx, (job->n + CTR_AUG_CHUNK_ - 1) / CTR_AUG_CHUNK_, ctr_aug_batch_job_, job);
    ctr_free_host_(ctx, job->scratch, total);
    return 1;
}

CTR_PRIVATE_ void ctr_aug_job_init_(ctr_aug_job_ *job, int64_t n, int64_t h, int64_t w, int64_t c,
                                    int64_t epoch, int64_t position, int view, ctr_real *out)
{
    memset(job, 0, sizeof *job);
    job->first.h = h;
    job->first.w = w;
    job->first.c = c;
    job->n = n;
    job->epoch = epoch;
    job->position = position;
    job->view = view;
    job->out = out;
}

CTR_API int ctr_aug_batch(ctr_ctx *ctx, const ctr_aug_config *config, const uint8_t *pixels,
                          int64_t n, int64_t h, int64_t w, int64_t c, int64_t epoch,
                          int64_t position, int view, ctr_real *out)
{
    ctr_aug_job_ job;
    ctr_aug_job_init_(&job, n, h, w, c, epoch, position, view, out);
    job.first.u8 = pixels;
    return ctr_aug_batch_(ctx, config, &job);
}

CTR_API int ctr_aug_batch_real(ctr_ctx *ctx, const ctr_aug_config *config, const ctr_real *pixels,
                               int64_t n, int64_t h, int64_t w, int64_t c, int64_t epoch,
                               int64_t position, int view, ctr_real *out)
{
    ctr_aug_job_ job;
    ctr_aug_job_init_(&job, n, h, w, c, epoch, position, view, out);
    job.first.real = pixels;
    return ctr_aug_batch_(ctx, config, &job);
}

/* The single operations: one check, then the reference. */
CTR_PRIVATE_ int ctr_aug_single_(ctr_ctx *ctx, const char *name, const ctr_real *x, int64_t h,
                                 int64_t w, int64_t c, double factor, double low, double high)
{
    if (!ctr_aug_check_(ctx, name, x, 1, h, w, c)) return 0;
    if (ctr_aug_within_(factor, low, high)) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "%s: the factor must be %g..%g, got %g", name, low, high, factor);
    return 0;
}

CTR_API int ctr_aug_brightness(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                               double factor)
{
    if (!ctr_aug_single_(ctx, "aug_brightness", x, h, w, c, factor, 0, 101)) return 0;
    ctr_aug_brightness_(x, h * w, c, (ctr_real)factor);
    return 1;
}

CTR_API int ctr_aug_contrast(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                             double factor)
{
    if (!ctr_aug_single_(ctx, "aug_contrast", x, h, w, c, factor, 0, 101)) return 0;
    ctr_aug_contrast_(x, h * w, c, (ctr_real)factor);
    return 1;
}

CTR_API int ctr_aug_saturation(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                               double factor)
{
    if (!ctr_aug_single_(ctx, "aug_saturation", x, h, w, c, factor, 0, 101)) return 0;
    ctr_aug_saturation_(x, h * w, c, (ctr_real)factor);
    return 1;
}

CTR_API int ctr_aug_hue(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c, double turn)
{
    if (!ctr_aug_single_(ctx, "aug_hue", x, h, w, c, turn, -0.5, 0.5)) return 0;
    ctr_aug_hue_(x, h * w, c, (ctr_real)turn);
    return 1;
}

CTR_API int ctr_aug_grayscale(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c)
{
    if (!ctr_aug_check_(ctx, "aug_grayscale", x, 1, h, w, c)) return 0;
    ctr_aug_gray_(x, h * w, c);
    return 1;
}

CTR_API int ctr_aug_blur(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c, int kernel,
                         double sigma)
{
    uint64_t bytes;
    void *scratch;
    if (!ctr_aug_single_(ctx, "aug_blur", x, h, w, c, sigma, 1e-3, 1e3)) return 0;
    if (kernel < 1 || kernel > 255 || kernel % 2 == 0) {
        ctr_fail_(ctx, CTR_E_VALUE, "aug_blur: the kernel must be odd and 1..255, got %d", kernel);
        return 0;
    }
    bytes = ctr_aug_blur_bytes_(h, w, c, kernel);
    scratch = ctr_alloc_(ctx, bytes <= SIZE_MAX / 4 ? (size_t)bytes : SIZE_MAX / 4);
    if (!scratch) return 0;
    ctr_aug_blur_(x, h, w, c, kernel, sigma, scratch);
    ctr_free_host_(ctx, scratch, (size_t)bytes);
    return 1;
}

CTR_API int ctr_aug_solarize(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                             double threshold)
{
    if (!ctr_aug_single_(ctx, "aug_solarize", x, h, w, c, threshold, 0, 1)) return 0;
    ctr_aug_solarize_(x, h * w * c, (ctr_real)threshold);
    return 1;
}

CTR_API int ctr_aug_flip(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c)
{
    if (!ctr_aug_check_(ctx, "aug_flip", x, 1, h, w, c)) return 0;
    ctr_aug_flip_(x, h, w, c);
    return 1;
}

CTR_API int ctr_aug_normalize(ctr_ctx *ctx, ctr_real *x, int64_t h, int64_t w, int64_t c,
                              const double *mean, const double *std)
{
    int64_t k;
    if (!ctr_aug_check_(ctx, "aug_normalize", x, 1, h, w, c)) return 0;
    for (k = 0; k < c; k++)
        if (!ctr_aug_within_(mean[k], -1e6, 1e6) || !ctr_aug_within_(std[k], 1e-6, 1e6)) {
            ctr_fail_(ctx, CTR_E_VALUE,
                      "aug_normalize: std must be positive, got mean %g and std %g", mean[k],
                      std[k]);
            return 0;
        }
    ctr_aug_normalize_(x, h * w, c, mean, std);
    return 1;
}

CTR_API int ctr_aug_resized_crop(ctr_ctx *ctx, const ctr_real *x, int64_t h, int64_t w, int64_t c,
                                 const ctr_box *box, int64_t out_h, int64_t out_w,
                                 ctr_interp interp, ctr_real *out)
{
    ctr_pixels_ image;
    ctr_note_ note;
    memset(&note, 0, sizeof note);
    if (!ctr_resize_check_(ctx, "aug_resized_crop", h, w, c, box, out_h, out_w)) return 0;
    if (!ctr_aug_check_(ctx, "aug_resized_crop", x, 1, h, w, c)) return 0;
    image.u8 = NULL;
    image.real = x;
    image.h = h;
    image.w = w;
    image.c = c;
    if (ctr_resize_alloc_(ctx, &image, box, out_h, out_w, interp, out, &note)) return 1;
    ctr_note_report_(ctx, &note);
    return 0;
}

/* ------------------------------------------------------------------------------------------------
   >>SAMPLE
   ---------------------------------------------------------------------------------------------- */

CTR_API int64_t ctr_sample_batches(int64_t n, int64_t batch, ctr_last last)
{
    return last == CTR_LAST_DROP ? n / batch : n / batch + (n % batch != 0);
}

CTR_API void ctr_sample_order(uint64_t seed, int64_t epoch, int64_t n, int shuffle, int64_t *order)
{
    ctr_rng rng;
    int64_t i;
    if (shuffle) {
        ctr_rng_init(&rng, seed, CTR_STREAM_SAMPLE, epoch, 0, 0);
        ctr_rng_permutation(&rng, n, order);
    } else {
        for (i = 0; i < n; i++) order[i] = i;
    }
}

/* ------------------------------------------------------------------------------------------------
   >>DATA

   There are two kinds of datasets. In one, all images have one size and lie in one block (the
   caller's, IDX, CIFAR, shapes). In the other each image has its own file, and its pixels too once
   it was decoded into a cache.
   ---------------------------------------------------------------------------------------------- */

#define CTR_DATA_DEPTH_ 16    /* folders within folders */
#define CTR_DATA_PATH_ 4096   /* bytes of a path in a folder */
#define CTR_DATA_GROUP_ 64    /* files that are decoded between two looks at the budget */

/* One image of a folder. */
typedef struct ctr_data_item_ {
    const uint8_t *pixels;    /* [h, w, c], or NULL: only in its file */
    int64_t h, w;
    int64_t file;             /* its path is string number `file` of names */
    int32_t label;
    int owned;                /* pixels are a block of their own */
} ctr_data_item_;

struct ctr_dataset {
    char kind[16];
    const ctr_dataset
        *whole; /* what this is a part of, or NULL; then only n, c, classes, h, w count */
    int64_t n, c, classes;
    ctr_file_names_ class_names;
    int64_t skipped, cached;
    /* one block */
    const uint8_t *block;     /* [n, h, w, c] */
    const int32_t *labels;    /* [n] or NULL */
    int64_t h, w;
    void *owned_block, *owned_labels;
    size_t owned_size, owned_labels_size;
    /* a folder */
    char *root;
    size_t root_size;
    ctr_file_names_ names;    /* paths of the files, below root */
    ctr_data_item_ *items;    /* [n] */
    size_t items_size;
    ctr_data_options options;
    const uint8_t *map;
    size_t map_size;
};

CTR_API void ctr_data_options_init(ctr_data_options *options)
{
    memset(options, 0, sizeof *options);
    options->budget = (uint64_t)1 << 30;
    options->limits = ctr_image_limits_default();
}

CTR_API ctr_data_options ctr_data_options_default(void)
{
    ctr_data_options options;
    ctr_data_options_init(&options);
    return options;
}

CTR_API void ctr_dataset_destroy(ctr_ctx *ctx, ctr_dataset *d)
{
    int64_t i;
    if (!d) return;
    for (i = 0; d->items && i < d->n; i++)
        if (d->items[i].owned)
            ctr_free_host_(ctx, (void *)d->items[i].pixels,
                           (size_t)(d->items[i].h * d->items[i].w * d->c));
    ctr_free_host_(ctx, d->items, d->items_size);
    ctr_free_host_(ctx, d->owned_block, d->owned_size);
    ctr_free_host_(ctx, d->owned_labels, d->owned_labels_size);
    ctr_free_host_(ctx, d->root, d->root_size);
    ctr_file_names_free_(ctx, &d->names);
    ctr_file_names_free_(ctx, &d->class_names);
    ctr_file_unmap_(d->map, d->map_size);
    ctr_free_host_(ctx, d, sizeof *d);
}

CTR_PRIVATE_ ctr_dataset *ctr_data_new_(ctr_ctx *ctx, const char *kind)
{
    ctr_dataset *d = (ctr_dataset *)ctr_alloc_zero_(ctx, sizeof *d);
    if (d) snprintf(d->kind, sizeof d->kind, "%s", kind);
    return d;
}

/* ---- one block ------------------------------------------------------------------------------- */

/* Counts the classes of d->labels, and names them by their numbers while they have no names. */
CTR_PRIVATE_ void ctr_data_classes_(ctr_ctx *ctx, ctr_dataset *d)
{
    char digits[24];
    int64_t i;
    for (i = 0; d->labels && i < d->n; i++)
        if (d->labels[i] >= d->classes) d->classes = (int64_t)d->labels[i] + 1;
    for (i = (int64_t)d->class_names.count; i < d->classes && d->classes <= 4096; i++) {
        snprintf(digits, sizeof digits, "%ld", (long)i);
        if (!ctr_file_names_add_(ctx, &d->class_names, digits, strlen(digits))) return;
    }
}

CTR_PRIVATE_ int ctr_data_sides_ok_(ctr_ctx *ctx, const char *name, int64_t n, int64_t h, int64_t w,
                                    int64_t c)
{
    if (n < 1 || h < 1 || w < 1 || h > 65535 || w > 65535 || (c != 1 && c != 3)) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: images must be [n >= 1, 1..65535, 1..65535, 1 or 3], got "
                  "[%ld, %ld, %ld, %ld]", name, (long)n, (long)h, (long)w, (long)c);
        return 0;
    }
    return ctr_size_mul_(ctx, ctr_size_mul_(ctx, (size_t)(h * w), (size_t)c), (size_t)n) != 0;
}

CTR_API ctr_dataset *ctr_dataset_from_memory(ctr_ctx *ctx, const uint8_t *pixels, int64_t n,
                                             int64_t h, int64_t w, int64_t c, const int32_t *labels)
{
    ctr_dataset *d;
    if (ctx->status != CTR_OK || !ctr_data_sides_ok_(ctx, "dataset_from_memory", n, h, w, c))
        return NULL;
    if (!pixels) {
        ctr_fail_(ctx, CTR_E_VALUE, "dataset_from_memory: pixels must not be NULL");
        return NULL;
    }
    d = ctr_data_new_(ctx, "memory");
    if (!d) return NULL;
    d->n = d->cached = n;
    d->h = h;
    d->w = w;
    d->c = c;
    d->block = pixels;
    d->labels = labels;
    ctr_data_classes_(ctx, d);
    if (ctx->status == CTR_OK) return d;
    ctr_dataset_destroy(ctx, d);
    return NULL;
}

/* Memory of the dataset's own for block and labels, once n, h, w and c are known. */
CTR_PRIVATE_ int ctr_data_own_(ctr_ctx *ctx, ctr_dataset *d, int labelled)
{
    d->owned_size = (size_t)d->n * (size_t)(d->h * d->w * d->c);
    d->owned_block = ctr_alloc_(ctx, d->owned_size);
    d->block = (const uint8_t *)d->owned_block;
    d->cached = d->n;
    if (!labelled) return d->owned_block != NULL;
    d->owned_labels_size = (size_t)d->n * sizeof(int32_t);
    d->owned_labels = ctr_alloc_(ctx, d->owned_labels_size);
    d->labels = (const int32_t *)d->owned_labels;
    return d->owned_block && d->owned_labels;
}

/* One channel repeated, or three as luma, if the options ask for it. */
CTR_PRIVATE_ int ctr_data_channels_(ctr_ctx *ctx, ctr_dataset *d, int channels)
{
    size_t size;
    uint8_t *fresh;
    if (!channels || channels == (int)d->c) return 1;
    size = ctr_size_mul_(ctx, (size_t)(d->n * d->h * d->w), (size_t)channels);
    fresh = size ? (uint8_t *)ctr_alloc_(ctx, size) : NULL;
    if (!fresh) return 0;
    ctr_image_convert_((const uint8_t *)d->owned_block, (int)d->c, d->n * d->h * d->w, channels,
                       fresh);
    ctr_free_host_(ctx, d->owned_block, d->owned_size);
    d->owned_block = fresh;
    d->owned_size = size;
    d->block = fresh;
    d->c = channels;
    return 1;
}

/* ---- shapes ---------------------------------------------------------------------------------- */

/* Is the point (u, v) in the shape? All fit into the circle of radius 1 around 0. */
CTR_PRIVATE_ int ctr_data_inside_(int shape, double u, double v)
{
    double r = u * u + v * v, a = fabs(u), b = fabs(v);
    switch (shape) {
    case 0: return r < 0.64;
    case 1: return a < 0.7 && b < 0.7;
    case 2: return v > -0.5 && a * 1.7320508 + v < 1; /* equilateral, corners on the circle */
    case 3: return (a < 0.25 && b < 0.9) || (b < 0.25 && a < 0.9);
    case 4: return r < 0.81 && r > 0.25;
    default: return a > 0.25 && a < 0.65 && b < 0.75;
    }
}

typedef struct ctr_data_shapes_ {
    uint8_t *pixels;
    int32_t *labels;
    int64_t size;
    uint64_t seed;
} ctr_data_shapes_;

/* Draws image i: everything about it comes from (seed, i). Edges are smoothed by 3 x 3 samples. */
CTR_PRIVATE_ void ctr_data_draw_(void *arg, int64_t i, int worker)
{
    const ctr_data_shapes_ *s = (const ctr_data_shapes_ *)arg;
    uint8_t *p = s->pixels + i * s->size * s->size * 3;
    double front[3], back[3], size = (double)s->size, radius, angle, cx, cy, co, si, apart;
    int64_t x, y;
    int shape = (int)(i % 6), k, t;
    ctr_rng rng;
    (void)worker;
    ctr_rng_init(&rng, s->seed, CTR_STREAM_USER, 0, i, 0);
    radius = ctr_rng_range(&rng, 0.25, 0.45) * size;
    cx = ctr_rng_range(&rng, 0.4, 0.6) * size;
    cy = ctr_rng_range(&rng, 0.4, 0.6) * size;
    angle = ctr_rng_range(&rng, 0, 2 * CTR_PI_);
    co = cos(angle) / radius;
    si = sin(angle) / radius;
    do { /* colours that can be told apart */
        for (apart = 0, k = 0; k < 3; k++) {
            front[k] = ctr_rng_range(&rng, 20, 236);
            back[k] = ctr_rng_range(&rng, 20, 236);
            apart += fabs(front[k] - back[k]);
        }
    } while (apart < 150);
    s->labels[i] = shape;
    for (y = 0; y < s->size; y++)
        for (x = 0; x < s->size; x++) {
            int hits = 0;
            for (t = 0; t < 9; t++) {
                double dx = (double)x + (t % 3 + 0.5) / 3 - cx;
                double dy = (double)y + (t / 3 + 0.5) / 3 - cy;
                hits += ctr_data_inside_(shape, co * dx + si * dy, co * dy - si * dx);
            }
            for (k = 0; k < 3; k++) {
                double value = back[k] + (front[k] - back[k]) * hits / 9.0;
                value += ctr_rng_range(&rng, -20, 20);
                *p++ = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
            }
        }
}

CTR_API ctr_dataset *ctr_dataset_shapes(ctr_ctx *ctx, int64_t n, int64_t size, uint64_t seed)
{
    static const char *const names[6] = { "disc", "square", "triangle", "cross", "ring", "bars" };
    ctr_data_shapes_ job;
    ctr_dataset *d;
    int i, ok = 1;
    if (ctx->status != CTR_OK) return NULL;
    if (size < 8 || size > 512 || n < 1) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "dataset_shapes: n must be at least 1 and size 8..512, got %ld and %ld",
                  (long)n, (long)size);
        return NULL;
    }
    if (!ctr_data_sides_ok_(ctx, "dataset_shapes", n, size, size, 3)) return NULL;
    d = ctr_data_new_(ctx, "shapes");
    if (!d) return NULL;
    d->n = n;
    d->h = d->w = size;
    d->c = 3;
    for (i = 0; ok && i < 6; i++)
        ok = ctr_file_names_add_(ctx, &d->class_names, names[i], strlen(names[i]));
    if (!ok || !ctr_data_own_(ctx, d, 1)) {
        ctr_dataset_destroy(ctx, d);
        return NULL;
    }
    d->classes = 6;
    job.pixels = (uint8_t *)d->owned_block;
    job.labels = (int32_t *)d->owned_labels;
    job.size = size;
    job.seed = seed;
    ctr_parallel_(ctx, n, ctr_data_draw_, &job);
    return d;
}

/* ---- looking --------------------------------------------------------------------------------- */

enum { CTR_DATA_IDX_ = 1, CTR_DATA_CIFAR10_, CTR_DATA_CIFAR100_, CTR_DATA_FOLDER_ };

/* What a path leads to. */
typedef struct ctr_data_source_ {
    int kind;
    char path[CTR_DATA_PATH_];    /* the folder, or the images of IDX */
    char other[CTR_DATA_PATH_];   /* the labels of IDX, or the other split's folder; or "" */
    int test;                     /* CIFAR: which half */
    int64_t files;                /* what the folder holds, for the message that nothing fits */
} ctr_data_source_;

CTR_PRIVATE_ char ctr_data_lower_(char c) { return (char)(c >= 'A' && c <= 'Z' ? c + 32 : c); }

/* Where `part` (in lower case) is in text, whose case does not matter; NULL if it is not. */
CTR_PRIVATE_ const char *ctr_data_part_(const char *text, const char *part)
{
    size_t i;
    for (; *text; text++) {
        for (i = 0; part[i] && ctr_data_lower_(text[i]) == part[i]; i++) { }
        if (!part[i]) return text;
    }
    return NULL;
}

CTR_PRIVATE_ int ctr_data_ends_(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && ctr_data_part_(text + n - m, end) != NULL;
}

/* folder/name into out[CTR_DATA_PATH_]; 0 with an error if that is too long. */
CTR_PRIVATE_ int ctr_data_join_(ctr_ctx *ctx, char *out, const char *folder, const char *name)
{
    size_t n = strlen(folder);
    int slash = n > 0 && folder[n - 1] != '/' && name[0];
    if (n + strlen(name) + 2 > CTR_DATA_PATH_) {
        ctr_fail_(ctx, CTR_E_FILE, "data: the path '%s/%.80s' is too long", ctr_file_tail_(folder),
                  name);
        return 0;
    }
    memmove(out, folder, n);
    if (slash) out[n++] = '/';
    memcpy(out + n, name, strlen(name) + 1);
    return 1;
}

/* What a path leads to. That nothing is there is an answer; that nobody can tell is an error. */
CTR_PRIVATE_ ctr_file_stat_ ctr_data_at_(ctr_ctx *ctx, const char *path)
{
    ctr_file_stat_ s = ctr_file_look_(ctx, path);
    if (s.kind == CTR_FILE_MISSING_ && errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
        ctr_fail_(ctx, CTR_E_FILE, "data: '%s': %s", ctr_file_tail_(path), strerror(errno));
    return s;
}

CTR_PRIVATE_ int ctr_data_is_test_(const char *name)
{
    return ctr_data_part_(name, "t10k") || ctr_data_part_(name, "test");
}

/* The labels' name for an images' name, into out; 0 if it has not the parts. */
CTR_PRIVATE_ int ctr_data_labels_name_(const char *name, char *out, size_t size)
{
    const char *images = ctr_data_part_(name, "images"), *idx = ctr_data_part_(name, "idx");
    size_t at;
    if (!images || !idx || strlen(name) + 1 > size) return 0;
    at = (size_t)(images - name);
    snprintf(out, size, "%.*s%s%s", (int)at, name, images[0] == 'I' ? "Labels" : "labels",
             images + 6);
    at = (size_t)(idx - name);
    if (idx[3] == '3' || idx[3] == '4') out[at + 3] = '1';
    return 1;
}

/* Sets the source to an IDX file and its labels, with or without .gz; no labels is not an error. */
CTR_PRIVATE_ int ctr_data_look_idx_(ctr_ctx *ctx, ctr_data_source_ *s, const char *folder,
                                    const char *name)
{
    char labels[CTR_DATA_PATH_];
    size_t n;
    s->kind = CTR_DATA_IDX_;
    s->other[0] = 0;
    if (!ctr_data_join_(ctx, s->path, folder, name)) return 0;
    if (!ctr_data_labels_name_(name, labels, sizeof labels - 4)) return 1;
    if (!ctr_data_join_(ctx, s->other, folder, labels)) return 0;
    if (ctr_data_at_(ctx, s->other).kind == CTR_FILE_PLAIN_) return 1;
    n = strlen(labels);
    if (ctr_data_ends_(labels, ".gz")) labels[n - 3] = 0;
    else memcpy(labels + n, ".gz", 4);
    if (!ctr_data_join_(ctx, s->other, folder, labels)) return 0;
    if (ctr_data_at_(ctx, s->other).kind != CTR_FILE_PLAIN_) s->other[0] = 0;
    return ctx->status == CTR_OK;
}

/* The folder's IDX images of a split: index into names, -1 if there are none, -2 with an error when
   there are several. */
CTR_PRIVATE_ int64_t ctr_data_pick_idx_(ctr_ctx *ctx, const char *path,
                                        const ctr_file_names_ *names, const char *split)
{
    int64_t i, found = -1;
    int pass, test = split && !strcmp(split, "test");
    for (pass = 0; pass < (split ? 1 : 2) && found < 0; pass++, test = 1)
        for (i = 0; i < (int64_t)names->count; i++) {
            const char *name = ctr_file_name_(names, i), *old;
            size_t n;
            if (!ctr_data_part_(name, "images") || !ctr_data_part_(name, "idx")) continue;
            if (ctr_data_is_test_(name) != test) continue;
            if (found >= 0) { /* the same with and without .gz is one */
                old = ctr_file_name_(names, found);
                n = CTR_MIN_(strlen(name), strlen(old));
                if (strncmp(name, old, n) || strcmp(name[n] || old[n] ? ".gz" : "",
                                                    name[n] ? name + n : old + n)) {
                    ctr_fail_(ctx, CTR_E_FORMAT,
                              "data: '%s' has several sets of IDX images: '%.60s' and "
                              "'%.60s'; give the path of one",
                              ctr_file_tail_(path), old, name);
                    return -2;
                }
                if (name[n]) continue;
            }
            found = i;
        }
    return found;
}

CTR_PRIVATE_ int ctr_data_has_(const ctr_file_names_ *names, const char *name)
{
    size_t i;
    for (i = 0; i < names->count; i++)
        if (!strcmp(ctr_file_name_(names, (int64_t)i), name)) return 1;
    return 0;
}

/* The first of a NULL-ended list of names that is a folder within; NULL if none is. */
CTR_PRIVATE_ const char *ctr_data_subfolder_(ctr_ctx *ctx, const char *path,
                                             const ctr_file_names_ *names, const char *const *list)
{
    char full[CTR_DATA_PATH_];
    for (; *list; list++)
        if (ctr_data_has_(names, *list) && ctr_data_join_(ctx, full, path, *list) &&
            ctr_data_at_(ctx, full).kind == CTR_FILE_FOLDER_)
            return *list;
    return NULL;
}

CTR_PRIVATE_ int ctr_data_no_split_(ctr_ctx *ctx, const char *path, const char *looked)
{
    ctr_fail_(ctx, CTR_E_FILE, "data: '%s' has no test split: looked for %s", ctr_file_tail_(path),
              looked);
    return 0;
}

CTR_PRIVATE_ int ctr_data_look_folder_(ctr_ctx *ctx, const char *path, const char *split,
                                       const ctr_file_names_ *names, ctr_data_source_ *s)
{
    static const char *const trains[] = { "train", NULL };
    static const char *const tests[] = { "test", "val", "valid", "validation", NULL };
    const char *train = ctr_data_subfolder_(ctx, path, names, trains);
    const char *test = ctr_data_subfolder_(ctx, path, names, tests), *here, *there;
    int want_test = split && !strcmp(split, "test");
    s->kind = CTR_DATA_FOLDER_;
    s->files = (int64_t)names->count;
    if (ctx->status != CTR_OK) return 0;
    if (want_test && !test)
        return ctr_data_no_split_(ctx, path,
                                  "IDX files with t10k or test in their names, a folder "
                                  "test, val, valid or validation");
    if (!want_test && !train) return ctr_data_join_(ctx, s->path, path, "");
    here = want_test ? test : train;
    there = want_test ? train : test;
    if (there && !ctr_data_join_(ctx, s->other, path, there)) return 0;
    return ctr_data_join_(ctx, s->path, path, here);
}

/* Finds out what a path leads to; reads names only. 1, or 0 with an error. */
CTR_PRIVATE_ int ctr_data_look_(ctr_ctx *ctx, const char *path, const char *split,
                                ctr_data_source_ *s)
{
    int want_test = split && !strcmp(split, "test"), ok = 0;
    const char *slash = strrchr(path, '/');
    ctr_file_stat_ st = ctr_file_look_(ctx, path);
    ctr_file_names_ names;
    int64_t idx;
    memset(s, 0, sizeof *s);
    memset(&names, 0, sizeof names);
    if (st.kind == CTR_FILE_MISSING_ || st.kind == CTR_FILE_OTHER_) {
        ctr_fail_(ctx, CTR_E_FILE, "data: '%s': %s", ctr_file_tail_(path),
                  st.kind == CTR_FILE_OTHER_ ? "it is a device or a pipe" : strerror(errno));
        return 0;
    }
    if (st.kind == CTR_FILE_PLAIN_) {
        char folder[CTR_DATA_PATH_];
        if (want_test && !ctr_data_is_test_(slash ? slash + 1 : path))
            return ctr_data_no_split_(ctx, path, "'test' or 't10k' in the file's name");
        if (!ctr_data_join_(ctx, folder, path, "")) return 0;
        folder[slash ? slash + 1 - path : 0] = 0;
        return ctr_data_look_idx_(ctx, s, folder, slash ? slash + 1 : path);
    }
    if (!ctr_file_list_(ctx, path, &names)) {
        ctr_file_names_free_(ctx, &names);
        return 0;
    }
    idx = ctr_data_pick_idx_(ctx, path, &names, split);
    s->test = want_test;
    if (ctr_data_has_(&names, "data_batch_1.bin") || ctr_data_has_(&names, "test_batch.bin")) {
        s->kind = CTR_DATA_CIFAR10_;
        s->test |= !split && !ctr_data_has_(&names, "data_batch_1.bin");
        ok = ctr_data_join_(ctx, s->path, path, "");
    } else if (ctr_data_has_(&names, "train.bin") || ctr_data_has_(&names, "test.bin")) {
        s->kind = CTR_DATA_CIFAR100_;
        s->test |= !split && !ctr_data_has_(&names, "train.bin");
        ok = ctr_data_join_(ctx, s->path, path, "");
    } else if (idx >= 0) {
        ok = ctr_data_look_idx_(ctx, s, path, ctr_file_name_(&names, idx));
    } else if (idx == -1 && ctx->status == CTR_OK) {
        ok = ctr_data_look_folder_(ctx, path, split, &names, s);
    }
    ctr_file_names_free_(ctx, &names);
    return ok && ctx->status == CTR_OK;
}

CTR_PRIVATE_ int ctr_data_split_ok_(ctr_ctx *ctx, const char *split)
{
    if (!split || !strcmp(split, "train") || !strcmp(split, "test")) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "data: the split must be train, test or NULL, got '%.60s'", split);
    return 0;
}

CTR_API int ctr_dataset_has_split(ctr_ctx *ctx, const char *path, const char *split)
{
    ctr_data_source_ s;
    char file[CTR_DATA_PATH_];
    int ok;
    if (ctx->status != CTR_OK || !path) return 0;
    ok = ctr_data_split_ok_(ctx, split) && ctr_data_look_(ctx, path, split, &s);
    if (ok && (s.kind == CTR_DATA_CIFAR10_ || s.kind == CTR_DATA_CIFAR100_))
        ok = ctr_data_join_(ctx, file, s.path,
                            s.kind == CTR_DATA_CIFAR100_
                                ? (s.test ? "test.bin" : "train.bin")
                                : (s.test ? "test_batch.bin" : "data_batch_1.bin")) &&
             ctr_data_at_(ctx, file).kind == CTR_FILE_PLAIN_;
    ctr_error_clear(ctx);
    return ok;
}

/* ---- IDX ------------------------------------------------------------------------------------- */

/* Reads a file, through inflate if it is gzip. */
CTR_PRIVATE_ int ctr_data_read_(ctr_ctx *ctx, const char *path, uint64_t budget,
                                ctr_file_bytes_ *out)
{
    ctr_file_bytes_ packed;
    ctr_note_ note;
    uint8_t *plain = NULL;
    size_t size = 0;
    memset(&note, 0, sizeof note);
    if (!ctr_file_read_(ctx, path, budget, out, &note)) {
        ctr_note_report_(ctx, &note);
        return 0;
    }
    if (out->size < 2 || out->bytes[0] != 0x1f || out->bytes[1] != 0x8b) return 1;
    packed = *out;
    memset(out, 0, sizeof *out);
    if (ctr_image_gunzip_(ctx, packed.bytes, packed.size, (size_t)CTR_MIN_(budget, SIZE_MAX / 4),
                          &plain, &size)) {
        out->bytes = (uint8_t *)ctr_alloc_(ctx, size + 1); /* a byte more, as ctr_file_read_ */
        if (out->bytes) {
            out->size = size;
            memcpy(out->bytes, plain, size);
        }
        ctr_free_host_(ctx, plain, size);
    }
    ctr_file_bytes_free_(ctx, &packed);
    return out->bytes != NULL;
}

CTR_PRIVATE_ int64_t ctr_data_be32_(const uint8_t *p)
{
    return (int64_t)p[0] << 24 | (int64_t)p[1] << 16 | (int64_t)p[2] << 8 | (int64_t)p[3];
}

/* An IDX file: two zeros, the type 8 (unsigned bytes), the rank, the sizes (big-endian), the bytes.
   Fills dims[4], unused ones with 1. Returns the rank, or 0 with an error. */
CTR_PRIVATE_ int ctr_data_idx_(ctr_ctx *ctx, const char *path, const ctr_file_bytes_ *b,
                               int64_t dims[4])
{
    const uint8_t *p = b->bytes;
    int rank = b->size < 4 ? 0 : p[3], i;
    uint64_t total = 1;
    const char *name = ctr_file_tail_(path);
    if (b->size < 4 || p[0] || p[1] || p[2] != 8 || rank < 1 || rank > 4) {
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "data: '%s' is no IDX file of bytes (nor anything else that is read "
                  "here: IDX, a folder of images, CIFAR binaries)",
                  name);
        return 0;
    }
    if (b->size < 4 + 4 * (size_t)rank) {
        ctr_fail_(ctx, CTR_E_FORMAT, "data: IDX file '%s': it ends within its header", name);
        return 0;
    }
    for (i = 0; i < 4; i++) {
        dims[i] = i < rank ? ctr_data_be32_(p + 4 + 4 * i) : 1;
        total = dims[i] && total > b->size / (uint64_t)dims[i] ? (uint64_t)b->size + 1
                                                               : total * (uint64_t)dims[i];
    }
    if (total != b->size - 4 - 4 * (size_t)rank) {
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "data: IDX file '%s': its header's sizes do not fit its %.0f bytes", name,
                  (double)b->size);
        return 0;
    }
    return rank;
}

CTR_PRIVATE_ int ctr_data_idx_labels_(ctr_ctx *ctx, ctr_dataset *d, const char *path,
                                      uint64_t budget)
{
    ctr_file_bytes_ b;
    int64_t dims[4], i;
    int rank;
    if (!ctr_data_read_(ctx, path, budget, &b)) return 0;
    rank = ctr_data_idx_(ctx, path, &b, dims);
    if (rank && (rank != 1 || dims[0] != d->n))
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "data: IDX file '%s': it must have %ld labels, has %ld (rank %d)",
                  ctr_file_tail_(path), (long)d->n, (long)dims[0], rank);
    if (ctx->status == CTR_OK) {
        d->owned_labels_size = (size_t)d->n * sizeof(int32_t);
        d->owned_labels = ctr_alloc_(ctx, d->owned_labels_size);
        d->labels = (const int32_t *)d->owned_labels;
    }
    for (i = 0; ctx->status == CTR_OK && i < d->n; i++)
        ((int32_t *)d->owned_labels)[i] = b.bytes[8 + i];
    ctr_file_bytes_free_(ctx, &b);
    if (ctx->status == CTR_OK) ctr_data_classes_(ctx, d);
    return ctx->status == CTR_OK;
}

/* Images [n, h, w] or [n, h, w, 1 or 3]: the file's bytes become the block. */
CTR_PRIVATE_ void ctr_data_open_idx_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_source_ *s,
                                     const ctr_data_options *o)
{
    ctr_file_bytes_ b;
    int64_t dims[4];
    int rank;
    if (!ctr_data_read_(ctx, s->path, o->budget, &b)) return;
    d->owned_block = b.bytes;
    d->owned_size = b.size + 1;
    rank = ctr_data_idx_(ctx, s->path, &b, dims);
    if (!rank) return;
    if (rank < 3 || dims[0] < 1 || dims[1] < 1 || dims[2] < 1 || dims[1] > 65535 ||
        dims[2] > 65535 || (dims[3] != 1 && dims[3] != 3)) {
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "data: IDX file '%s': images are [n, h, w] or [n, h, w, 1 or 3], "
                  "this is [%ld, %ld, %ld, %ld] of rank %d",
                  ctr_file_tail_(s->path), (long)dims[0], (long)dims[1], (long)dims[2],
                  (long)dims[3], rank);
        return;
    }
    d->n = d->cached = dims[0];
    d->h = dims[1];
    d->w = dims[2];
    d->c = dims[3];
    memmove(b.bytes, b.bytes + 4 + 4 * rank, (size_t)(d->n * d->h * d->w * d->c));
    d->block = b.bytes;
    if (!ctr_data_channels_(ctx, d, o->channels)) return;
    if (s->other[0]) ctr_data_idx_labels_(ctx, d, s->other, o->budget);
}

/* ---- CIFAR ----------------------------------------------------------------------------------- */

/* A record is its label bytes, the last one the fine label, then 32 x 32 reds, greens and blues. */
CTR_PRIVATE_ int ctr_data_cifar_file_(ctr_ctx *ctx, ctr_dataset *d, const char *path, int head,
                                      int classes, int64_t n, int64_t at)
{
    const int64_t record = head + 3072;
    ctr_file_bytes_ b;
    ctr_note_ note;
    int64_t i, k;
    memset(&note, 0, sizeof note);
    if (!ctr_file_read_(ctx, path, UINT64_MAX, &b, &note)) {
        ctr_note_report_(ctx, &note);
        return 0;
    }
    if ((int64_t)b.size != n * record)
        ctr_fail_(ctx, CTR_E_FILE, "data: CIFAR file '%s': it changes while it is read",
                  ctr_file_tail_(path));
    for (i = 0; ctx->status == CTR_OK && i < n; i++) {
        const uint8_t *from = b.bytes + i * record;
        uint8_t *to = (uint8_t *)d->owned_block + (at + i) * 3072;
        int label = from[head - 1];
        if (label >= classes) {
            ctr_fail_(ctx, CTR_E_FORMAT,
                      "data: CIFAR file '%s': label %d of image %ld is not below %d",
                      ctr_file_tail_(path), label, (long)i, classes);
            break;
        }
        ((int32_t *)d->owned_labels)[at + i] = label;
        for (k = 0; k < 1024; k++) {
            to[3 * k] = from[head + k];
            to[3 * k + 1] = from[head + 1024 + k];
            to[3 * k + 2] = from[head + 2048 + k];
        }
    }
    ctr_file_bytes_free_(ctx, &b);
    return ctx->status == CTR_OK;
}

/* Names of classes, one a line, if there is such a file and it has exactly that many. */
CTR_PRIVATE_ void ctr_data_class_file_(ctr_ctx *ctx, ctr_dataset *d, const char *folder,
                                       const char *name, int64_t classes)
{
    char path[CTR_DATA_PATH_];
    ctr_file_bytes_ b;
    ctr_note_ note;
    const char *p, *end;
    memset(&note, 0, sizeof note);
    if (!ctr_data_join_(ctx, path, folder, name) ||
        ctr_data_at_(ctx, path).kind != CTR_FILE_PLAIN_ ||
        !ctr_file_read_(ctx, path, 1 << 20, &b, &note))
        return;
    for (p = (const char *)b.bytes; *p; p = *end ? end + 1 : end) {
        size_t n;
        for (end = p; *end && *end != '\n'; end++) { }
        n = (size_t)(end - p);
        if (n && p[n - 1] == '\r') n--;
        if (n && !ctr_file_names_add_(ctx, &d->class_names, p, n)) break;
    }
    ctr_file_bytes_free_(ctx, &b);
    if ((int64_t)d->class_names.count != classes) ctr_file_names_free_(ctx, &d->class_names);
}

/* The files of a half: the five of CIFAR-10's training half, or one. */
CTR_PRIVATE_ int ctr_data_cifar_path_(ctr_ctx *ctx, const ctr_data_source_ *s, int i, char *out)
{
    char name[32];
    if (s->kind == CTR_DATA_CIFAR100_)
        return ctr_data_join_(ctx, out, s->path, s->test ? "test.bin" : "train.bin");
    if (s->test) return ctr_data_join_(ctx, out, s->path, "test_batch.bin");
    snprintf(name, sizeof name, "data_batch_%d.bin", i + 1);
    return ctr_data_join_(ctx, out, s->path, name);
}

/* Measures the files before any is read: counts[5] of images and d->n. Returns how many files. */
CTR_PRIVATE_ int ctr_data_cifar_measure_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_source_ *s,
                                         int64_t record, uint64_t budget, int64_t *counts)
{
    const int most = s->kind == CTR_DATA_CIFAR10_ && !s->test ? 5 : 1;
    char path[CTR_DATA_PATH_];
    int i;
    for (i = 0; i < most; i++) {
        ctr_file_stat_ st;
        if (!ctr_data_cifar_path_(ctx, s, i, path)) return 0;
        st = ctr_data_at_(ctx, path);
        if (st.kind != CTR_FILE_PLAIN_ && i) break;
        if (st.kind != CTR_FILE_PLAIN_) {
            ctr_fail_(ctx, CTR_E_FILE, "data: CIFAR file '%s' is missing", ctr_file_tail_(path));
            return 0;
        }
        if (st.size == 0 || st.size % (uint64_t)record) {
            ctr_fail_(ctx, CTR_E_FORMAT,
                      "data: CIFAR file '%s': its %.0f bytes are no multiple of %ld",
                      ctr_file_tail_(path), (double)st.size, (long)record);
            return 0;
        }
        counts[i] = (int64_t)(st.size / (uint64_t)record);
        d->n += counts[i];
        if ((uint64_t)d->n > budget / 3072) {
            ctr_fail_(ctx, CTR_E_VALUE,
                      "data: '%s': its %ld or more images exceed the budget of %.0f bytes",
                      ctr_file_tail_(path), (long)d->n, (double)budget);
            return 0;
        }
    }
    if (i < most)
        ctr_log_(ctx, CTR_LOG_WARN, "data: '%s' has %d of the 5 CIFAR-10 training files",
                 ctr_file_tail_(s->path), i);
    return ctx->status == CTR_OK ? i : 0;
}

CTR_PRIVATE_ void ctr_data_open_cifar_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_source_ *s,
                                       const ctr_data_options *o)
{
    const int hundred = s->kind == CTR_DATA_CIFAR100_, classes = hundred ? 100 : 10;
    const int head = hundred ? 2 : 1;
    int64_t counts[5], at = 0;
    char path[CTR_DATA_PATH_];
    int i, files = ctr_data_cifar_measure_(ctx, d, s, head + 3072, o->budget, counts);
    d->h = d->w = 32;
    d->c = 3;
    if (!files || !ctr_data_own_(ctx, d, 1)) return;
    for (i = 0; i < files; at += counts[i++])
        if (!ctr_data_cifar_path_(ctx, s, i, path) ||
            !ctr_data_cifar_file_(ctx, d, path, head, classes, counts[i], at)) return;
    ctr_data_class_file_(ctx, d, s->path, hundred ? "fine_label_names.txt" : "batches.meta.txt",
                         classes);
    d->classes = classes;
    ctr_data_classes_(ctx, d);
    ctr_data_channels_(ctx, d, o->channels);
}

/* ---- a folder of images ---------------------------------------------------------------------- */

CTR_PRIVATE_ int ctr_data_is_image_(const char *name)
{
    static const char *const ends[] = { ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".pnm" };
    size_t i;
    for (i = 0; i < sizeof ends / sizeof *ends; i++)
        if (ctr_data_ends_(name, ends[i])) return 1;
    return 0;
}

/* A walk through folders. Links are followed; one that leads back to a folder on the way down is
   not, so loops end. */
typedef struct ctr_data_walk_ {
    ctr_ctx *ctx;
    ctr_file_names_ *out;
    char path[CTR_DATA_PATH_];
    size_t root;              /* length of the part of path that is not kept */
    int depth;
    ctr_file_stat_ above[CTR_DATA_DEPTH_ + 1];
    int64_t others;           /* files that are no images */
} ctr_data_walk_;

CTR_PRIVATE_ int ctr_data_walk_down_(ctr_data_walk_ *w)
{
    ctr_ctx *ctx = w->ctx;
    ctr_file_names_ names;
    size_t length = strlen(w->path), i;
    int ok, k;
    memset(&names, 0, sizeof names);
    ok = ctr_file_list_(ctx, w->path, &names);
    for (i = 0; ok && i < names.count; i++) {
        ctr_file_stat_ st;
        ok = ctr_data_join_(ctx, w->path, w->path, ctr_file_name_(&names, (int64_t)i));
        if (!ok) break;
        st = ctr_data_at_(ctx, w->path);
        ok = ctx->status == CTR_OK;
        if (st.kind == CTR_FILE_PLAIN_ && ctr_data_is_image_(w->path)) {
            ok = ctr_file_names_add_(ctx, w->out, w->path + w->root, strlen(w->path + w->root));
        } else if (st.kind == CTR_FILE_PLAIN_) {
            w->others++;
        } else if (st.kind == CTR_FILE_FOLDER_) {
            for (k = 0; k <= w->depth; k++)
                if (w->above[k].number == st.number && w->above[k].volume == st.volume) break;
            if (k > w->depth && w->depth < CTR_DATA_DEPTH_) {
                w->above[++w->depth] = st;
                ok = ctr_data_walk_down_(w);
                w->depth--;
            }
        }
        w->path[length] = 0;
    }
    ctr_file_names_free_(ctx, &names);
    return ok;
}

/* The images below a folder, as paths that start below it. Returns the count of other files, or -1
   with an error. */
CTR_PRIVATE_ int64_t ctr_data_walk_tree_(ctr_ctx *ctx, const char *folder, ctr_file_names_ *out)
{
    ctr_data_walk_ *w = (ctr_data_walk_ *)ctr_alloc_zero_(ctx, sizeof *w);
    int64_t others = -1;
    if (!w) return -1;
    w->ctx = ctx;
    w->out = out;
    w->above[0] = ctr_data_at_(ctx, folder);
    if (ctx->status == CTR_OK && ctr_data_join_(ctx, w->path, folder, "")) {
        w->root = strlen(w->path);
        if (w->root && w->path[w->root - 1] != '/') w->root++; /* the slash that join will set */
        if (ctr_data_walk_down_(w)) others = w->others;
    }
    ctr_free_host_(ctx, w, sizeof *w);
    return others;
}

/* Length of the first folder's name in a path, 0 for a file without one. */
CTR_PRIVATE_ size_t ctr_data_first_(const char *path)
{
    const char *slash = strchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

/* Appends the sorted names of the first folders in sorted paths to out. */
CTR_PRIVATE_ int ctr_data_firsts_(ctr_ctx *ctx, const ctr_file_names_ *names, const int64_t *order,
                                  ctr_file_names_ *out)
{
    size_t i, n, last = 0;
    const char *previous = NULL;
    for (i = 0; i < names->count; i++) {
        const char *path = ctr_file_name_(names, order[i]);
        n = ctr_data_first_(path);
        if (!n || (previous && n == last && !memcmp(previous, path, n))) continue;
        if (!ctr_file_names_add_(ctx, out, path, n)) return 0;
        previous = path;
        last = n;
    }
    return 1;
}

/* d->class_names: every first folder of this split and of the other one, sorted, once. */
CTR_PRIVATE_ int ctr_data_name_classes_(ctr_ctx *ctx, ctr_dataset *d, const char *other,
                                        const int64_t *order)
{
    ctr_file_names_ names, firsts;
    int64_t *sorted = NULL, i;
    size_t room = 0;
    int ok;
    memset(&names, 0, sizeof names);
    memset(&firsts, 0, sizeof firsts);
    ok = ctr_data_firsts_(ctx, &d->names, order, &firsts);
    if (ok && other[0]) ok = ctr_data_walk_tree_(ctx, other, &names) >= 0;
    room = CTR_MAX_(names.count, firsts.count + names.count) * sizeof *sorted;
    if (ok) sorted = (int64_t *)ctr_alloc_(ctx, room);
    ok = sorted != NULL;
    if (ok) {
        ctr_file_sort_(sorted, (int64_t)names.count, ctr_file_names_compare_, &names);
        ok = ctr_data_firsts_(ctx, &names, sorted, &firsts);
    }
    if (ok) ctr_file_sort_(sorted, (int64_t)firsts.count, ctr_file_names_compare_, &firsts);
    for (i = 0; ok && i < (int64_t)firsts.count; i++) {
        const char *name = ctr_file_name_(&firsts, sorted[i]);
        if (i && !strcmp(name, ctr_file_name_(&firsts, sorted[i - 1]))) continue;
        ok = ctr_file_names_add_(ctx, &d->class_names, name, strlen(name));
    }
    ctr_free_host_(ctx, sorted, room);
    ctr_file_names_free_(ctx, &firsts);
    ctr_file_names_free_(ctx, &names);
    return ok;
}

/* The label of a path: where its first folder stands among the sorted classes. */
CTR_PRIVATE_ int32_t ctr_data_label_of_(const ctr_dataset *d, const char *path)
{
    size_t n = ctr_data_first_(path), low = 0, high = d->class_names.count, length;
    while (n && low < high) {
        size_t mid = low + (high - low) / 2;
        const char *name = ctr_file_name_(&d->class_names, (int64_t)mid);
        int order = strncmp(name, path, n);
        length = strlen(name);
        if (!order) order = (length > n) - (length < n);
        if (!order) return (int32_t)mid;
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    return -1;
}

/* Lists and labels the images of a folder. 1, or 0 with an error. */
CTR_PRIVATE_ int ctr_data_list_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_source_ *s)
{
    int64_t others = ctr_data_walk_tree_(ctx, s->path, &d->names), *order, i;
    size_t room;
    int flat = 0, ok;
    if (others < 0) return 0;
    d->n = (int64_t)d->names.count;
    if (d->n == 0) {
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "data: '%s' %s: looked for images (.jpg .jpeg .png .bmp .ppm .pgm "
                  ".pnm, also in sub-folders), IDX (*images*idx3*) and CIFAR (data_batch_1.bin, "
                  "train.bin)",
                  ctr_file_tail_(s->path), others || s->files ? "holds no images" : "is empty");
        return 0;
    }
    room = (size_t)d->n * sizeof *order;
    order = (int64_t *)ctr_alloc_(ctx, room);
    d->items_size = (size_t)d->n * sizeof *d->items;
    d->items = (ctr_data_item_ *)ctr_alloc_zero_(ctx, d->items_size);
    ok = order && d->items;
    if (ok) {
        ctr_file_sort_(order, d->n, ctr_file_names_compare_, &d->names);
        ok = ctr_data_name_classes_(ctx, d, s->other, order);
    }
    for (i = 0; ok && i < d->n; i++) {
        d->items[i].file = order[i];
        flat |= !ctr_data_first_(ctr_file_name_(&d->names, order[i]));
    }
    if (ok && (flat || d->class_names.count < 2)) {
        if (d->class_names.count > 1)
            ctr_log_(ctx, CTR_LOG_WARN, "data: '%s' has images beside its sub-folders: no labels",
                     ctr_file_tail_(s->path));
        ctr_file_names_free_(ctx, &d->class_names);
    }
    d->classes = (int64_t)d->class_names.count;
    for (i = 0; ok && i < d->n; i++)
        d->items[i].label = ctr_data_label_of_(d, ctr_file_name_(&d->names, order[i]));
    ctr_free_host_(ctx, order, room);
    return ok;
}

/* Reads, decodes and shrinks one file. Worker-safe. The note names the file. */
CTR_PRIVATE_ int ctr_data_decode_(ctr_ctx *ctx, const ctr_dataset *d, int64_t file, ctr_image *out,
                                  ctr_note_ *note)
{
    const ctr_data_options *o = &d->options;
    const char *name = ctr_file_name_(&d->names, file);
    char path[CTR_DATA_PATH_ + 8];
    ctr_file_bytes_ b;
    ctr_image whole;
    ctr_note_ inner;
    int64_t side;
    int ok;
    memset(&inner, 0, sizeof inner);
    memset(&whole, 0, sizeof whole);
    memset(out, 0, sizeof *out);
    snprintf(path, sizeof path, "%s%s", d->root, name);
    ok = ctr_file_read_(ctx, path, (uint64_t)o->limits.max_bytes, &b, &inner);
    if (ok) {
        ok = ctr_image_decode_(ctx, b.bytes, b.size, (int)d->c, &o->limits, &whole, &inner);
        ctr_file_bytes_free_(ctx, &b);
    }
    side = CTR_MIN_(whole.h, whole.w);
    if (ok && o->short_side && side > o->short_side) {
        double shrink = (double)o->short_side / (double)side;
        int64_t h = (int64_t)((double)whole.h * shrink + 0.5);
        int64_t w = (int64_t)((double)whole.w * shrink + 0.5);
        ok = ctr_image_resize_(ctx, &whole, NULL, h, w, CTR_INTERP_BILINEAR, out, &inner);
        ctr_image_free(ctx, &whole);
    } else if (ok) {
        *out = whole;
    }
    if (!ok) ctr_note_set_(note, inner.status, "data: '%s': %s", ctr_file_tail_(name), inner.text);
    return ok;
}

/* Bad content is what the policy is about; no memory or no decoder is an error in any case. */
CTR_PRIVATE_ int ctr_data_is_corrupt_(const ctr_note_ *note)
{
    return note->status == CTR_E_FORMAT || note->status == CTR_E_FILE;
}

/* ---- decoding once --------------------------------------------------------------------------- */

/* A group of files that are decoded side by side. */
typedef struct ctr_data_group_ {
    ctr_ctx *ctx;
    const ctr_dataset *d;
    int64_t first;
    ctr_image images[CTR_DATA_GROUP_];
    ctr_note_ notes[CTR_DATA_GROUP_];
} ctr_data_group_;

CTR_PRIVATE_ void ctr_data_group_job_(void *arg, int64_t i, int worker)
{
    ctr_data_group_ *g = (ctr_data_group_ *)arg;
    (void)worker;
    g->notes[i].status = CTR_OK;
    ctr_data_decode_(g->ctx, g->d, g->d->items[g->first + i].file, &g->images[i], &g->notes[i]);
}

/* What is done with the decoded images: they stay in memory, go to a file, or only their being good
   was of interest. */
typedef struct ctr_data_pass_ {
    uint64_t used;            /* bytes held so far */
    int full;
    uint8_t *bad;             /* [n] */
    ctr_note_ first_bad;
    int64_t bad_count;
    ctr_file_writer_ *writer;
    uint8_t *table;           /* of the file: [n] entries */
} ctr_data_pass_;

#define CTR_DATA_ENTRY_ 16    /* bytes: offset (8), height (4), width (4); height 0: corrupt */
#define CTR_DATA_TAIL_ 64     /* magic, fingerprint, n, channels, pixels' bytes, table's hash */

/* One decoded image; takes it over. */
CTR_PRIVATE_ void ctr_data_keep_(ctr_ctx *ctx, ctr_dataset *d, ctr_data_pass_ *p, int64_t i,
                                 ctr_image *image)
{
    size_t size = (size_t)(image->h * image->w * image->c);
    if (p->writer) {
        uint8_t *entry = p->table + i * CTR_DATA_ENTRY_;
        ctr_file_put_u64_(entry, p->used);
        ctr_file_put_u64_(entry + 8, (uint64_t)image->h | (uint64_t)image->w << 32);
        ctr_file_writer_put_(p->writer, image->pixels, size);
        p->used += size;
    } else if (d->options.cache == CTR_CACHE_MEMORY && !p->full) {
        if (size > d->options.budget - p->used) {
            p->full = 1;
        } else {
            d->items[i].pixels = image->pixels;
            d->items[i].h = image->h;
            d->items[i].w = image->w;
            d->items[i].owned = 1;
            d->cached++;
            p->used += size;
            return;
        }
    }
    ctr_image_free(ctx, image);
}

/* Decodes all files, or as many as the budget takes when nobody needs to know of the others. */
CTR_PRIVATE_ void ctr_data_pass_all_(ctr_ctx *ctx, ctr_dataset *d, ctr_data_pass_ *p)
{
    ctr_data_group_ *g = (ctr_data_group_ *)ctr_alloc_zero_(ctx, sizeof *g);
    int64_t i, n;
    if (!g) return;
    g->ctx = ctx;
    g->d = d;
    for (; g->first < d->n && ctx->status == CTR_OK; g->first += n) {
        if (p->full && d->options.corrupt == CTR_CORRUPT_FAIL) break;
        n = CTR_MIN_(d->n - g->first, CTR_DATA_GROUP_);
        ctr_parallel_(ctx, n, ctr_data_group_job_, g);
        for (i = 0; i < n; i++) {
            ctr_note_ *note = &g->notes[i];
            if (note->status == CTR_OK) {
                ctr_data_keep_(ctx, d, p, g->first + i, &g->images[i]);
            } else if (d->options.corrupt == CTR_CORRUPT_FAIL || !ctr_data_is_corrupt_(note)) {
                ctr_note_report_(ctx, note);
            } else {
                if (!p->bad_count++) p->first_bad = *note;
                p->bad[g->first + i] = 1;
            }
        }
    }
    ctr_free_host_(ctx, g, sizeof *g);
}

/* Leaves the bad ones out or lets the next good one stand in. 0 with an error if none is good. */
CTR_PRIVATE_ int ctr_data_apply_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_pass_ *p)
{
    int64_t i, j, good = 0;
    d->skipped = p->bad_count;
    if (!p->bad_count) return 1;
    if (p->bad_count == d->n) {
        ctr_fail_(ctx, CTR_E_FORMAT, "data: none of %ld files can be read; the first: %s",
                  (long)d->n, p->first_bad.text);
        return 0;
    }
    ctr_log_(ctx, CTR_LOG_WARN, "data: %ld of %ld files are corrupt and %s; the first: %s",
             (long)p->bad_count, (long)d->n,
             d->options.corrupt == CTR_CORRUPT_SKIP ? "left out" : "replaced", p->first_bad.text);
    if (d->options.corrupt == CTR_CORRUPT_SKIP) {
        for (i = 0; i < d->n; i++)
            if (!p->bad[i]) d->items[good++] = d->items[i];
        d->n = good;
        return 1;
    }
    /* twice round: the next good one may be the first */
    for (i = d->n - 1, j = -1; i >= -d->n; i--) {
        int64_t at = i < 0 ? i + d->n : i;
        if (!p->bad[at]) {
            j = at;
        } else if (j >= 0) {
            d->cached += d->items[j].pixels && !d->items[at].pixels;
            d->items[at] = d->items[j];
            d->items[at].owned = 0;
        }
    }
    return 1;
}

/* ---- the mapped cache ------------------------------------------------------------------------ */

/* Names, sizes and whatever else decides what the pixels are. */
CTR_PRIVATE_ uint64_t ctr_data_fingerprint_(ctr_ctx *ctx, const ctr_dataset *d)
{
    const ctr_data_options *o = &d->options;
    char path[CTR_DATA_PATH_ + 8];
    uint8_t number[8];
    uint64_t facts[6];
    ctr_file_hash_ h;
    int64_t i;
    ctr_file_hash_init_(&h);
    facts[0] = 1; /* version of what is done to the pixels */
    facts[1] = (uint64_t)d->n;
    facts[2] = (uint64_t)d->c;
    facts[3] = (uint64_t)o->short_side;
    facts[4] = (uint64_t)o->limits.max_side;
    facts[5] = (uint64_t)o->limits.max_pixels;
    for (i = 0; i < 6; i++) {
        ctr_file_put_u64_(number, facts[i]);
        ctr_file_hash_put_(&h, number, 8);
    }
    for (i = 0; i < d->n; i++) {
        const char *name = ctr_file_name_(&d->names, d->items[i].file);
        snprintf(path, sizeof path, "%s%s", d->root, name);
        ctr_file_put_u64_(number, ctr_data_at_(ctx, path).size);
        ctr_file_hash_put_(&h, name, strlen(name) + 1);
        ctr_file_hash_put_(&h, number, 8);
    }
    return ctr_file_hash_end_(&h);
}

static const char ctr_data_magic_[8] = { 'C', 'T', 'R', 'C', 'A', 'C', 'H', '1' };

CTR_PRIVATE_ void ctr_data_tail_(uint8_t *tail, const ctr_dataset *d, uint64_t fingerprint,
                                 uint64_t used, const uint8_t *table)
{
    ctr_file_hash_ h;
    ctr_file_hash_init_(&h);
    ctr_file_hash_put_(&h, table, (size_t)d->n * CTR_DATA_ENTRY_);
    memset(tail, 0, CTR_DATA_TAIL_);
    memcpy(tail, ctr_data_magic_, 8);
    ctr_file_put_u64_(tail + 8, fingerprint);
    ctr_file_put_u64_(tail + 16, (uint64_t)d->n);
    ctr_file_put_u64_(tail + 24, (uint64_t)d->c);
    ctr_file_put_u64_(tail + 32, used);
    ctr_file_put_u64_(tail + 40, ctr_file_hash_end_(&h));
}

/* Does the mapped file hold what this folder needs? All that is read from it later is checked. */
CTR_PRIVATE_ int ctr_data_map_ok_(const ctr_dataset *d, uint64_t fingerprint, const uint8_t *map,
                                  size_t size)
{
    uint8_t tail[CTR_DATA_TAIL_];
    const uint8_t *table;
    uint64_t used;
    int64_t i;
    if (size < CTR_DATA_TAIL_ || (size - CTR_DATA_TAIL_) / CTR_DATA_ENTRY_ < (size_t)d->n) return 0;
    used = size - CTR_DATA_TAIL_ - (size_t)d->n * CTR_DATA_ENTRY_;
    table = map + used;
    ctr_data_tail_(tail, d, fingerprint, used, table);
    if (memcmp(tail, map + size - CTR_DATA_TAIL_, CTR_DATA_TAIL_)) return 0;
    for (i = 0; i < d->n; i++) {
        uint64_t at = ctr_file_u64_(table + i * CTR_DATA_ENTRY_);
        uint64_t h = ctr_file_u32_(table + i * CTR_DATA_ENTRY_ + 8);
        uint64_t w = ctr_file_u32_(table + i * CTR_DATA_ENTRY_ + 12);
        if (h > 65535 || w > 65535 || (h == 0) != (w == 0) || at > used ||
            h * w * (uint64_t)d->c > used - at) return 0;
    }
    return 1;
}

/* Decodes everything into the cache file. */
CTR_PRIVATE_ void ctr_data_build_(ctr_ctx *ctx, ctr_dataset *d, uint64_t fingerprint)
{
    size_t room = (size_t)d->n * CTR_DATA_ENTRY_;
    uint8_t tail[CTR_DATA_TAIL_];
    ctr_file_writer_ w;
    ctr_data_pass_ p;
    memset(&p, 0, sizeof p);
    p.table = (uint8_t *)ctr_alloc_zero_(ctx, room);
    p.bad = (uint8_t *)ctr_alloc_zero_(ctx, (size_t)d->n);
    if (p.table && p.bad && ctr_file_writer_open_(ctx, &w, d->options.cache_path)) {
        ctr_log_(ctx, CTR_LOG_INFO, "data: decoding %ld images into '%s'", (long)d->n,
                 ctr_file_tail_(d->options.cache_path));
        p.writer = &w;
        ctr_data_pass_all_(ctx, d, &p);
        ctr_file_writer_put_(&w, p.table, room);
        ctr_data_tail_(tail, d, fingerprint, p.used, p.table);
        ctr_file_writer_put_(&w, tail, sizeof tail);
        ctr_file_writer_commit_(&w);
    }
    ctr_free_host_(ctx, p.table, room);
    ctr_free_host_(ctx, p.bad, (size_t)d->n);
}

/* Maps the cache, building it first if there is none or an old one. 1, or 0 with an error. */
CTR_PRIVATE_ int ctr_data_map_(ctr_ctx *ctx, ctr_dataset *d)
{
    const char *path = d->options.cache_path;
    uint64_t fingerprint = ctr_data_fingerprint_(ctx, d);
    int tries;
    for (tries = 0; tries < 2 && !d->map; tries++) {
        if (tries) ctr_data_build_(ctx, d, fingerprint);
        if (ctx->status != CTR_OK) return 0;
        if (!tries && ctr_data_at_(ctx, path).kind == CTR_FILE_MISSING_) continue;
        d->map = ctr_file_map_(ctx, path, &d->map_size);
        if (d->map && !ctr_data_map_ok_(d, fingerprint, d->map, d->map_size)) {
            ctr_file_unmap_(d->map, d->map_size);
            d->map = NULL;
        }
        if (!tries) ctr_error_clear(ctx); /* what cannot be mapped is built anew */
    }
    if (!d->map)
        ctr_fail_(ctx, CTR_E_FILE, "data: the cache '%s' does not hold what was just written to it",
                  ctr_file_tail_(path));
    return d->map != NULL;
}

/* Why a file is marked as corrupt in the cache: it says so again. */
CTR_PRIVATE_ void ctr_data_why_(ctr_ctx *ctx, const ctr_dataset *d, int64_t file, ctr_note_ *note)
{
    ctr_image image;
    memset(note, 0, sizeof *note);
    if (!ctr_data_decode_(ctx, d, file, &image, note)) return;
    ctr_image_free(ctx, &image); /* mended meanwhile, with the same size */
    ctr_note_set_(
        note, CTR_E_FORMAT, "data: '%s' was corrupt when '%s' was made; remove that cache",
        ctr_file_tail_(ctr_file_name_(&d->names, file)), ctr_file_tail_(d->options.cache_path));
}

CTR_PRIVATE_ void ctr_data_open_mapped_(ctr_ctx *ctx, ctr_dataset *d)
{
    const size_t n = (size_t)d->n;
    const uint8_t *entry;
    ctr_data_pass_ p;
    ctr_note_ note;
    int64_t i;
    if (!ctr_data_map_(ctx, d)) return;
    memset(&p, 0, sizeof p);
    p.bad = (uint8_t *)ctr_alloc_zero_(ctx, n);
    entry = d->map + d->map_size - CTR_DATA_TAIL_ - n * CTR_DATA_ENTRY_;
    for (i = 0; i < d->n && ctx->status == CTR_OK; i++, entry += CTR_DATA_ENTRY_) {
        ctr_data_item_ *item = &d->items[i];
        item->h = ctr_file_u32_(entry + 8);
        item->w = ctr_file_u32_(entry + 12);
        if (item->h) {
            item->pixels = d->map + ctr_file_u64_(entry);
            d->cached++;
            continue;
        }
        ctr_data_why_(ctx, d, item->file, &note);
        if (d->options.corrupt == CTR_CORRUPT_FAIL || !ctr_data_is_corrupt_(&note))
            ctr_note_report_(ctx, &note);
        if (!p.bad_count++) p.first_bad = note;
        p.bad[i] = 1;
    }
    if (ctx->status == CTR_OK) ctr_data_apply_(ctx, d, &p);
    ctr_free_host_(ctx, p.bad, n);
}

CTR_PRIVATE_ void ctr_data_open_folder_(ctr_ctx *ctx, ctr_dataset *d, const ctr_data_source_ *s,
                                        const ctr_data_options *o)
{
    ctr_data_pass_ p;
    size_t n = strlen(s->path), room;
    d->c = o->channels ? o->channels : 3;
    d->root_size = n + 2;
    d->root = (char *)ctr_alloc_(ctx, d->root_size);
    if (!d->root) return;
    memcpy(d->root, s->path, n);
    memcpy(d->root + n, n && s->path[n - 1] == '/' ? "" : "/", n && s->path[n - 1] == '/' ? 1 : 2);
    if (!ctr_data_list_(ctx, d, s)) return;
    if (o->cache == CTR_CACHE_MAPPED) {
        ctr_data_open_mapped_(ctx, d);
        return;
    }
    if (o->cache == CTR_CACHE_NONE && o->corrupt == CTR_CORRUPT_FAIL) return;
    memset(&p, 0, sizeof p);
    room = (size_t)d->n;
    p.bad = (uint8_t *)ctr_alloc_zero_(ctx, room);
    if (p.bad) ctr_data_pass_all_(ctx, d, &p);
    if (ctx->status == CTR_OK && p.full)
        ctr_log_(ctx, CTR_LOG_INFO,
                 "data: %ld of %ld images fit into the budget of %.0f bytes; the "
                 "others are decoded each time",
                 (long)d->cached, (long)d->n, (double)o->budget);
    if (ctx->status == CTR_OK) ctr_data_apply_(ctx, d, &p);
    ctr_free_host_(ctx, p.bad, room);
}

/* ---- opening and asking ---------------------------------------------------------------------- */

CTR_PRIVATE_ int ctr_data_options_ok_(ctr_ctx *ctx, const ctr_data_options *o)
{
    const char *wrong = NULL;
    if (o->channels != 0 && o->channels != 1 && o->channels != 3)
        wrong = "channels must be 0, 1 or 3";
    else if (o->short_side < 0 || o->short_side > 65535) wrong = "short_side must be 0..65535";
    else if ((unsigned)o->cache > CTR_CACHE_NONE) wrong = "cache is no CTR_CACHE_ value";
    else if ((unsigned)o->corrupt > CTR_CORRUPT_REPLACE) wrong = "corrupt is no CTR_CORRUPT_ value";
    else if (o->cache == CTR_CACHE_MAPPED && (!o->cache_path || !o->cache_path[0]))
        wrong = "a mapped cache needs cache_path";
    if (wrong) ctr_fail_(ctx, CTR_E_VALUE, "data options: %s", wrong);
    return !wrong;
}

CTR_API ctr_dataset *ctr_dataset_open(ctr_ctx *ctx, const char *path, const char *split,
                                      const ctr_data_options *options)
{
    static const char *const kinds[] = { "", "IDX", "CIFAR-10", "CIFAR-100", "folder" };
    ctr_data_options o = options ? *options : ctr_data_options_default();
    ctr_data_source_ *s;
    ctr_dataset *d = NULL;
    if (ctx->status != CTR_OK || !ctr_data_options_ok_(ctx, &o) || !ctr_data_split_ok_(ctx, split))
        return NULL;
    if (!path) {
        ctr_fail_(ctx, CTR_E_VALUE, "dataset_open: the path must not be NULL");
        return NULL;
    }
    s = (ctr_data_source_ *)ctr_alloc_(ctx, sizeof *s);
    if (!s) return NULL;
    if (ctr_data_look_(ctx, path, split, s)) d = ctr_data_new_(ctx, kinds[s->kind]);
    if (d) {
        d->options = o;
        if (s->kind == CTR_DATA_IDX_) ctr_data_open_idx_(ctx, d, s, &o);
        else if (s->kind == CTR_DATA_FOLDER_) ctr_data_open_folder_(ctx, d, s, &o);
        else ctr_data_open_cifar_(ctx, d, s, &o);
        d->options.cache_path = NULL; /* the caller's memory */
    }
    ctr_free_host_(ctx, s, sizeof *s);
    if (ctx->status == CTR_OK) return d;
    ctr_dataset_destroy(ctx, d);
    return NULL;
}

CTR_API ctr_dataset *ctr_dataset_part(ctr_ctx *ctx, const ctr_dataset *whole, int64_t n)
{
    ctr_dataset *d;
    if (ctx->status != CTR_OK) return NULL;
    if (n < 1 || n > whole->n) {
        ctr_fail_(ctx, CTR_E_VALUE, "dataset_part: n must be 1..%ld, got %ld", (long)whole->n,
                  (long)n);
        return NULL;
    }
    d = (ctr_dataset *)ctr_alloc_zero_(ctx, sizeof *d);
    if (!d) return NULL;
    memcpy(d->kind, whole->kind, sizeof d->kind);
    d->whole = whole;
    d->n = d->cached = n;
    d->c = whole->c;
    d->h = whole->h;
    d->w = whole->w;
    d->classes = whole->classes;
    return d;
}

CTR_PRIVATE_ int64_t ctr_dataset_at_(const ctr_dataset *part, int64_t index)
{
    return index * part->whole->n / part->n;
}

CTR_API int64_t ctr_dataset_count(const ctr_dataset *d) { return d ? d->n : 0; }
CTR_API int64_t ctr_dataset_channels(const ctr_dataset *d) { return d ? d->c : 0; }
CTR_API int64_t ctr_dataset_classes(const ctr_dataset *d) { return d ? d->classes : 0; }
CTR_API const char *ctr_dataset_kind(const ctr_dataset *d) { return d ? d->kind : ""; }
CTR_API int64_t ctr_dataset_skipped(const ctr_dataset *d) { return d ? d->skipped : 0; }
CTR_API int64_t ctr_dataset_cached(const ctr_dataset *d) { return d ? d->cached : 0; }

CTR_API const char *ctr_dataset_class_name(const ctr_dataset *d, int64_t label)
{
    if (d && d->whole) return ctr_dataset_class_name(d->whole, label);
    return !d || label < 0 || label >= (int64_t)d->class_names.count
               ? ""
               : ctr_file_name_(&d->class_names, label);
}

CTR_API int32_t ctr_dataset_label(const ctr_dataset *d, int64_t index)
{
    int32_t label = !d || index < 0 || index >= d->n ? -1
                    : d->whole  ? ctr_dataset_label(d->whole, ctr_dataset_at_(d, index))
                    : d->items  ? d->items[index].label
                    : d->labels ? d->labels[index]
                                : -1;
    return label < 0 ? -1 : label;
}

CTR_API const char *ctr_dataset_path(const ctr_dataset *d, int64_t index)
{
    if (!d) return "";
    if (d->whole && index >= 0 && index < d->n)
        return ctr_dataset_path(d->whole, ctr_dataset_at_(d, index));
    if (!d->items || index < 0 || index >= d->n) return "";
    return ctr_file_name_(&d->names, d->items[index].file);
}

/* One image for a worker; index is in range. *borrowed: the pixels are the dataset's, else the
   caller ends it with ctr_image_free. 1, or 0 with a note. */
CTR_PRIVATE_ int ctr_dataset_fetch_(ctr_ctx *ctx, const ctr_dataset *d, int64_t index,
                                    ctr_image *out, int *borrowed, ctr_note_ *note)
{
    const ctr_data_item_ *item = d->items ? &d->items[index] : NULL;
    if (d->whole)
        return ctr_dataset_fetch_(ctx, d->whole, ctr_dataset_at_(d, index), out, borrowed, note);
    *borrowed = !item || item->pixels;
    if (!*borrowed) return ctr_data_decode_(ctx, d, item->file, out, note);
    out->h = item ? item->h : d->h;
    out->w = item ? item->w : d->w;
    out->c = d->c;
    out->pixels = (uint8_t *)(item ? item->pixels : d->block + index * d->h * d->w * d->c);
    return 1;
}

CTR_API int ctr_dataset_image(ctr_ctx *ctx, const ctr_dataset *d, int64_t index, ctr_image *out)
{
    ctr_image image;
    ctr_note_ note;
    int borrowed;
    memset(&note, 0, sizeof note);
    memset(out, 0, sizeof *out);
    if (ctx->status != CTR_OK) return 0;
    if (index < 0 || index >= d->n) {
        ctr_fail_(ctx, CTR_E_VALUE, "dataset_image: the index must be 0..%ld, got %ld",
                  (long)d->n - 1, (long)index);
        return 0;
    }
    if (!ctr_dataset_fetch_(ctx, d, index, &image, &borrowed, &note)) {
        ctr_note_report_(ctx, &note);
        return 0;
    }
    if (!borrowed) {
        *out = image;
        return 1;
    }
    if (!ctr_image_create(ctx, image.h, image.w, image.c, out)) return 0;
    memcpy(out->pixels, image.pixels, (size_t)(image.h * image.w * image.c));
    return 1;
}

CTR_API int64_t ctr_dataset_verify(ctr_ctx *ctx, const ctr_dataset *d, ctr_bad_fn bad_fn,
                                   void *user)
{
    ctr_data_group_ *g;
    int64_t i, n, bad = 0;
    if (ctx->status != CTR_OK) return -1;
    if (!d->items) return 0;
    g = (ctr_data_group_ *)ctr_alloc_zero_(ctx, sizeof *g);
    if (!g) return -1;
    g->ctx = ctx;
    g->d = d;
    for (; g->first < d->n && ctx->status == CTR_OK; g->first += n) {
        n = CTR_MIN_(d->n - g->first, CTR_DATA_GROUP_);
        ctr_parallel_(ctx, n, ctr_data_group_job_, g);
        for (i = 0; i < n; i++) {
            ctr_image_free(ctx, &g->images[i]);
            if (g->notes[i].status == CTR_OK) continue;
            if (!ctr_data_is_corrupt_(&g->notes[i])) ctr_note_report_(ctx, &g->notes[i]);
            else if (bad_fn) bad_fn(user, g->first + i, g->notes[i].text);
            bad++;
        }
    }
    ctr_free_host_(ctx, g, sizeof *g);
    return ctx->status == CTR_OK ? bad : -1;
}

/* ------------------------------------------------------------------------------------------------
   >>LOADER
   ---------------------------------------------------------------------------------------------- */

/* One batch, finished or being made. */
typedef struct ctr_loader_slot_ {
    struct ctr_loader *loader;
    int64_t epoch, batch, n;
    int made;                 /* it holds, or will hold when the job is done, that batch */
    const int64_t *order;     /* [dataset's n] of its epoch */
    int64_t *index;           /* [batch] */
    int32_t *labels;          /* [batch] */
    ctr_real *pixels;         /* of all groups, one behind the other */
    ctr_view_group group[CTR_MAX_VIEWS];
    ctr_note_ *notes;         /* [batch]: one for each image */
} ctr_loader_slot_;

struct ctr_loader {
    ctr_ctx *ctx;
    const ctr_dataset *d;
    ctr_loader_config config;
    ctr_aug_config *augs;     /* [views], the loader's copy */
    int64_t batches, epoch, batch;
    int groups;               /* of views of one size */
    size_t bytes;             /* of a slot's pixels */
    ctr_loader_slot_ slots[2];
    int current;              /* the slot that the caller reads */
    int running;              /* the other slot's job is in the background */
    int64_t *orders[2], order_epoch[2];
    void **scratch;           /* [threads] of the augmentation */
    size_t *scratch_size;
    double seconds;
};

CTR_API void ctr_loader_config_init(ctr_loader_config *config)
{
    memset(config, 0, sizeof *config);
    config->batch = 128;
    config->views = 2;
    config->last = CTR_LAST_DROP;
    config->shuffle = 1;
    config->prefetch = 1;
    config->seed = 1;
}

CTR_API ctr_loader_config ctr_loader_config_default(void)
{
    ctr_loader_config config;
    ctr_loader_config_init(&config);
    return config;
}

/* Neighbours of one size make a group. Fills group[CTR_MAX_VIEWS] in, all but the pixels; returns
   how many there are. */
CTR_PRIVATE_ int ctr_loader_groups_(int views, const ctr_aug_config *augs, ctr_view_group *group)
{
    int v, count = 0;
    for (v = 0; v < views; v++) {
        if (!v || augs[v].height != augs[v - 1].height || augs[v].width != augs[v - 1].width) {
            memset(&group[count], 0, sizeof *group);
            group[count].h = augs[v].height;
            group[count].w = augs[v].width;
            count++;
        }
        group[count - 1].views++;
    }
    return count;
}

/* Scratch of one worker for an image of that size; grows only with images that were not known when
   the loader was made. Worker-safe. */
CTR_PRIVATE_ void *ctr_loader_scratch_(ctr_loader *l, int worker, int64_t h, int64_t w)
{
    size_t need = 0;
    int v;
    for (v = 0; v < l->config.views; v++) {
        size_t one = ctr_aug_scratch_size(&l->augs[v], h, w, l->d->c);
        if (!one) return NULL;
        need = CTR_MAX_(need, one);
    }
    if (need > l->scratch_size[worker]) {
        void *fresh = ctr_try_alloc_(l->ctx, need);
        if (!fresh) return NULL;
        ctr_free_host_(l->ctx, l->scratch[worker], l->scratch_size[worker]);
        l->scratch[worker] = fresh;
        l->scratch_size[worker] = need;
    }
    return l->scratch[worker];
}

/* All views of a batch's image i, which is number `position` of the epoch. */
CTR_PRIVATE_ void ctr_loader_views_(const ctr_loader_slot_ *s, int64_t i, int64_t position,
                                    const ctr_image *image, void *scratch)
{
    const ctr_loader *l = s->loader;
    ctr_aug_params params;
    ctr_rng rng;
    int g, k, v = 0;
    for (g = 0; g < l->groups; g++) {
        const ctr_view_group *group = &s->group[g];
        int64_t size = group->h * group->w * l->d->c;
        for (k = 0; k < group->views; k++, v++) {
            ctr_rng_init(&rng, l->config.seed, CTR_STREAM_VIEW, s->epoch, position, v);
            ctr_aug_sample(&l->augs[v], &rng, image->h, image->w, &params);
            ctr_aug_apply(&l->augs[v], &params, image->pixels, image->h, image->w, image->c,
                          group->pixels + (k * s->n + i) * size, scratch);
        }
    }
}

/* Chunk i of a batch's job: its image i. */
CTR_PRIVATE_ void ctr_loader_job_(void *arg, int64_t i, int worker)
{
    ctr_loader_slot_ *s = (ctr_loader_slot_ *)arg;
    ctr_loader *l = s->loader;
    int64_t position = s->batch * l->config.batch + i, source = s->order[position % l->d->n];
    ctr_note_ *note = &s->notes[i];
    ctr_image image;
    void *scratch;
    int borrowed;
    s->index[i] = source;
    s->labels[i] = ctr_dataset_label(l->d, source);
    note->status = CTR_OK;
    if (!ctr_dataset_fetch_(l->ctx, l->d, source, &image, &borrowed, note)) return;
    scratch = ctr_loader_scratch_(l, worker, image.h, image.w);
    if (!scratch)
        ctr_note_set_(note, CTR_E_MEMORY, "loader: no memory to augment an image of %ld x %ld",
                      (long)image.h, (long)image.w);
    else ctr_loader_views_(s, i, position, &image, scratch);
    if (!borrowed) ctr_image_free(l->ctx, &image);
}

CTR_PRIVATE_ void ctr_loader_wait_(ctr_loader *l)
{
    if (l->running) ctr_background_wait_(l->ctx);
    l->running = 0;
}

/* Points a slot at a batch. The order of its epoch is computed unless it is there. */
CTR_PRIVATE_ void ctr_loader_aim_(ctr_loader *l, ctr_loader_slot_ *s, int64_t epoch, int64_t batch)
{
    int side = (int)(epoch & 1);
    if (l->order_epoch[side] != epoch) {
        ctr_sample_order(l->config.seed, epoch, l->d->n, l->config.shuffle, l->orders[side]);
        l->order_epoch[side] = epoch;
    }
    s->order = l->orders[side];
    s->epoch = epoch;
    s->batch = batch;
    s->n = l->config.batch;
    if (l->config.last == CTR_LAST_KEEP) s->n = CTR_MIN_(s->n, l->d->n - batch * s->n);
    s->made = 1;
}

/* The batch after the one just handed out goes to the background, unless somebody else's job is
   there. */
CTR_PRIVATE_ void ctr_loader_ahead_(ctr_loader *l)
{
    ctr_loader_slot_ *s = &l->slots[!l->current];
    int over = l->batch == l->batches;
    s->made = 0;
    if (!l->config.prefetch || l->ctx->threads == 1 || ctr_background_busy_(l->ctx)) return;
    ctr_loader_aim_(l, s, over ? l->epoch + 1 : l->epoch, over ? 0 : l->batch);
    l->running = 1;
    ctr_background_start_(l->ctx, s->n, ctr_loader_job_, s);
}

CTR_API int ctr_loader_next(ctr_ctx *ctx, ctr_loader *l, ctr_batch *out)
{
    ctr_loader_slot_ *s = l ? &l->slots[!l->current] : NULL;
    double start;
    int64_t i;
    if (!l || ctx->status != CTR_OK) return 0;
    if (l->batch == l->batches) {
        l->epoch++;
        l->batch = 0;
        return 0;
    }
    start = ctr_platform_seconds_();
    ctr_loader_wait_(l);
    if (!s->made || s->epoch != l->epoch || s->batch != l->batch) {
        ctr_loader_aim_(l, s, l->epoch, l->batch);
        ctr_parallel_(ctx, s->n, ctr_loader_job_, s);
    }
    l->seconds += ctr_platform_seconds_() - start;
    for (i = 0; i < s->n; i++) ctr_note_report_(ctx, &s->notes[i]);
    if (ctx->status != CTR_OK) {
        s->made = 0;
        return 0;
    }
    l->current = !l->current;
    l->batch++;
    out->n = s->n;
    out->views = s->group[0].views;
    out->h = s->group[0].h;
    out->w = s->group[0].w;
    out->c = l->d->c;
    out->index = s->index;
    out->labels = s->labels;
    out->pixels = s->group[0].pixels;
    out->epoch = s->epoch;
    out->batch = s->batch;
    out->groups = l->groups;
    out->group = s->group;
    ctr_loader_ahead_(l);
    return 1;
}

CTR_API int64_t ctr_loader_batches(const ctr_loader *l) { return l ? l->batches : 0; }
CTR_API double ctr_loader_seconds(const ctr_loader *l) { return l ? l->seconds : 0; }

CTR_API void ctr_loader_tell(const ctr_loader *l, int64_t *epoch, int64_t *batch)
{
    *epoch = l ? l->epoch : 0;
    *batch = l ? l->batch : 0;
}

CTR_API int ctr_loader_seek(ctr_ctx *ctx, ctr_loader *l, int64_t epoch, int64_t batch)
{
    if (!l || ctx->status != CTR_OK) return 0;
    if (epoch < 0 || batch < 0 || batch > l->batches) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "loader_seek: epoch must be at least 0 and batch 0..%ld, got %ld and %ld",
                  (long)l->batches, (long)epoch, (long)batch);
        return 0;
    }
    ctr_loader_wait_(l);
    l->epoch = epoch;
    l->batch = batch;
    return 1;
}

CTR_API void ctr_loader_destroy(ctr_ctx *ctx, ctr_loader *l)
{
    size_t batch, order;
    int i;
    if (!l) return;
    ctr_loader_wait_(l);
    batch = (size_t)l->config.batch;
    order = (size_t)l->d->n * sizeof(int64_t);
    for (i = 0; i < 2; i++) {
        ctr_loader_slot_ *s = &l->slots[i];
        ctr_free_host_(ctx, s->index, batch * sizeof *s->index);
        ctr_free_host_(ctx, s->labels, batch * sizeof *s->labels);
        ctr_free_host_(ctx, s->notes, batch * sizeof *s->notes);
        ctr_aligned_free_(ctx, s->pixels, l->bytes);
        ctr_free_host_(ctx, l->orders[i], order);
    }
    for (i = 0; l->scratch && l->scratch_size && i < ctx->threads; i++)
        ctr_free_host_(ctx, l->scratch[i], l->scratch_size[i]);
    ctr_free_host_(ctx, l->scratch, (size_t)ctx->threads * sizeof *l->scratch);
    ctr_free_host_(ctx, l->scratch_size, (size_t)ctx->threads * sizeof *l->scratch_size);
    ctr_free_host_(ctx, l->augs, (size_t)l->config.views * sizeof *l->augs);
    ctr_free_host_(ctx, l, sizeof *l);
}

CTR_PRIVATE_ int ctr_loader_config_ok_(ctr_ctx *ctx, const ctr_dataset *d,
                                       const ctr_loader_config *c)
{
    int v;
    if (c->batch < (c->views > 1 ? 2 : 1) || c->batch > d->n) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "loader: the batch must be 2..%ld (the images there are), got %ld", (long)d->n,
                  (long)c->batch);
        return 0;
    }
    if (c->views < 1 || c->views > CTR_MAX_VIEWS || !c->augs ||
        (unsigned)c->last > CTR_LAST_WRAP) {
        ctr_fail_(ctx, CTR_E_VALUE, "loader: %s",
                  c->augs ? "views must be 1..64 and last a CTR_LAST_ value"
                          : "augs must point at one config for each view");
        return 0;
    }
    for (v = 0; v < c->views; v++)
        if (!ctr_aug_config_check(ctx, &c->augs[v])) return 0;
    if (c->last == CTR_LAST_KEEP && d->n % c->batch == 1)
        ctr_log_(ctx, CTR_LOG_WARN,
                 "loader: the last batch of each epoch has a single image; batch norm "
                 "cannot train on it");
    return 1;
}

/* A slot's pixels, each group on a cache line of its own. */
CTR_PRIVATE_ void ctr_loader_pixels_(ctr_ctx *ctx, ctr_loader *l, ctr_loader_slot_ *s)
{
    size_t offset[CTR_MAX_VIEWS], at = 0, line = 64 / sizeof(ctr_real), size;
    int g;
    l->groups = ctr_loader_groups_(l->config.views, l->augs, s->group);
    for (g = 0; g < l->groups; g++) {
        size = (size_t)l->config.batch * (size_t)s->group[g].views;
        size = ctr_size_mul_(ctx, size, (size_t)(s->group[g].h * s->group[g].w * l->d->c));
        if (ctx->status == CTR_OK && size > SIZE_MAX / sizeof(ctr_real) - at - line)
            ctr_fail_(ctx, CTR_E_MEMORY, "loader: the views of a batch exceed the memory");
        offset[g] = at;
        at += g + 1 < l->groups ? (size + line - 1) / line * line : size;
    }
    if (ctx->status != CTR_OK) return;
    l->bytes = at * sizeof(ctr_real);
    s->pixels = (ctr_real *)ctr_aligned_alloc_(ctx, l->bytes);
    for (g = 0; s->pixels && g < l->groups; g++) s->group[g].pixels = s->pixels + offset[g];
}

/* Both slots, both orders and the workers' scratch. */
CTR_PRIVATE_ int ctr_loader_memory_(ctr_ctx *ctx, ctr_loader *l)
{
    const size_t batch = (size_t)l->config.batch, threads = (size_t)ctx->threads;
    const ctr_dataset *d = l->d->whole ? l->d->whole : l->d;
    int64_t h = d->h, w = d->w, i;
    int k;
    l->scratch = (void **)ctr_alloc_zero_(ctx, threads * sizeof *l->scratch);
    l->scratch_size = (size_t *)ctr_alloc_zero_(ctx, threads * sizeof *l->scratch_size);
    for (k = 0; k < 2 && ctx->status == CTR_OK; k++) {
        ctr_loader_slot_ *s = &l->slots[k];
        s->loader = l;
        s->index = (int64_t *)ctr_alloc_(ctx, batch * sizeof *s->index);
        s->labels = (int32_t *)ctr_alloc_(ctx, batch * sizeof *s->labels);
        s->notes = (ctr_note_ *)ctr_alloc_zero_(ctx, batch * sizeof *s->notes);
        ctr_loader_pixels_(ctx, l, s);
        l->orders[k] = (int64_t *)ctr_alloc_(ctx, (size_t)l->d->n * sizeof *l->orders[k]);
        l->order_epoch[k] = -1;
    }
    for (i = 0; d->items && i < d->n; i++) { /* the largest image that is already decoded */
        h = CTR_MAX_(h, d->items[i].h);
        w = CTR_MAX_(w, d->items[i].w);
    }
    for (k = 0; k < ctx->threads && h && ctx->status == CTR_OK; k++)
        if (!ctr_loader_scratch_(l, k, h, w))
            ctr_fail_(ctx, CTR_E_MEMORY, "loader: no memory to augment images of %ld x %ld",
                      (long)h, (long)w);
    return ctx->status == CTR_OK;
}

CTR_API ctr_loader *ctr_loader_create(ctr_ctx *ctx, const ctr_dataset *d,
                                      const ctr_loader_config *config)
{
    ctr_loader *l;
    if (ctx->status != CTR_OK || !ctr_loader_config_ok_(ctx, d, config)) return NULL;
    l = (ctr_loader *)ctr_alloc_zero_(ctx, sizeof *l);
    if (!l) return NULL;
    l->ctx = ctx;
    l->d = d;
    l->config = *config;
    l->batches = ctr_sample_batches(d->n, config->batch, config->last);
    l->augs = (ctr_aug_config *)ctr_alloc_(ctx, (size_t)config->views * sizeof *l->augs);
    if (l->augs) {
        memcpy(l->augs, config->augs, (size_t)config->views * sizeof *l->augs);
        l->config.augs = l->augs;
        if (ctr_loader_memory_(ctx, l)) return l;
    }
    ctr_loader_destroy(ctx, l);
    return NULL;
}

/* What a position in this loader's order is a position in. */
CTR_PRIVATE_ void ctr_loader_run_(const ctr_loader *l, int64_t *images, int64_t *batch,
                                  uint64_t *seed)
{
    *images = l->d->n;
    *batch = l->config.batch;
    *seed = l->config.seed;
}

/* ------------------------------------------------------------------------------------------------
   >>CLUSTER
   Also what HEALTH, EVAL and MAP share: checks and lengths of rows, principal components.
   ---------------------------------------------------------------------------------------------- */

/* ---- rows ------------------------------------------------------------------------------------ */

#define CTR_EVAL_CHUNK_ 64 /* rows in a chunk of parallel work */

typedef struct ctr_eval_rows_ {
    const ctr_real *x;         /* [n, d] */
    int64_t n, d;
    double *inverse;           /* [n] 1 / |row|, 0 for a zero row, -1 if a number is not finite */
    ctr_real *out;             /* [n, d], of ctr_eval_rows_unit_ */
} ctr_eval_rows_;

CTR_PRIVATE_ void ctr_eval_rows_scan_job_(void *arg, int64_t chunk, int worker)
{
    ctr_eval_rows_ *r = (ctr_eval_rows_ *)arg;
    int64_t i = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(i + CTR_EVAL_CHUNK_, r->n), j;
    (void)worker;
    for (; i < end; i++) {
        const ctr_real *x = r->x + i * r->d;
        double sum[4] = { 0, 0, 0, 0 }, square; /* four sums: one chain of additions is slow */
        int finite = 1;
        for (j = 0; j < r->d; j++) {
            sum[j & 3] += (double)x[j] * (double)x[j];
            finite &= ctr_real_finite_(x[j]);
        }
        square = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        r->inverse[i] = !finite ? -1.0 : square > 0 ? 1.0 / sqrt(square) : 0.0;
    }
}

CTR_PRIVATE_ int64_t ctr_eval_rows_chunks_(int64_t n)
{
    return (n + CTR_EVAL_CHUNK_ - 1) / CTR_EVAL_CHUNK_;
}

/* Fills inverse[n]. 0 with an error if a row holds NaN or infinity. */
CTR_PRIVATE_ int ctr_eval_rows_scan_(ctr_ctx *ctx, const char *who, const char *what, int64_t n,
                                     int64_t d, const ctr_real *x, double *inverse)
{
    ctr_eval_rows_ r;
    int64_t i;
    if (ctx->status != CTR_OK) return 0;
    r.x = x;
    r.n = n;
    r.d = d;
    r.inverse = inverse;
    r.out = NULL;
    ctr_parallel_(ctx, ctr_eval_rows_chunks_(n), ctr_eval_rows_scan_job_, &r);
    for (i = 0; i < n; i++)
        if (inverse[i] < 0) {
            ctr_fail_(ctx, CTR_E_NUMBER, "%s: row %ld of the %s holds NaN or infinity", who,
                      (long)i, what);
            return 0;
        }
    return 1;
}

CTR_PRIVATE_ void ctr_eval_rows_unit_job_(void *arg, int64_t chunk, int worker)
{
    ctr_eval_rows_ *r = (ctr_eval_rows_ *)arg;
    int64_t i = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(i + CTR_EVAL_CHUNK_, r->n), j;
    (void)worker;
    for (; i < end; i++)
        for (j = 0; j < r->d; j++)
            r->out[i * r->d + j] = (ctr_real)((double)r->x[i * r->d + j] * r->inverse[i]);
}

/* out [n, d] = rows of x, each times its inverse length. */
CTR_PRIVATE_ void ctr_eval_rows_unit_(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                                      double *inverse, ctr_real *out)
{
    ctr_eval_rows_ r;
    r.x = x;
    r.n = n;
    r.d = d;
    r.inverse = inverse;
    r.out = out;
    ctr_parallel_(ctx, ctr_eval_rows_chunks_(n), ctr_eval_rows_unit_job_, &r);
}

/* mean [d] of n rows, and their standard deviation (divisor n) if std is not NULL. Two passes: the
   short formula loses the digits of a small spread about a large mean. */
typedef struct ctr_eval_columns_ {
    const ctr_real *x;
    int64_t n, d;
    double *mean, *std;
} ctr_eval_columns_;

CTR_PRIVATE_ void ctr_eval_moments_job_(void *arg, int64_t chunk, int worker)
{
    ctr_eval_columns_ *m = (ctr_eval_columns_ *)arg;
    int64_t first = chunk * CTR_EVAL_CHUNK_, width = CTR_MIN_(CTR_EVAL_CHUNK_, m->d - first), i, j;
    double *mean = m->mean + first, square[CTR_EVAL_CHUNK_];
    (void)worker;
    for (j = 0; j < width; j++) mean[j] = square[j] = 0;
    for (i = 0; i < m->n; i++)
        for (j = 0; j < width; j++) mean[j] += (double)m->x[i * m->d + first + j];
    for (j = 0; j < width; j++) mean[j] /= (double)m->n;
    if (!m->std) return;
    for (i = 0; i < m->n; i++)
        for (j = 0; j < width; j++) {
            double t = (double)m->x[i * m->d + first + j] - mean[j];
            square[j] += t * t;
        }
    for (j = 0; j < width; j++) m->std[first + j] = sqrt(square[j] / (double)m->n);
}

CTR_PRIVATE_ void ctr_eval_moments_(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                                    double *mean, double *std)
{
    ctr_eval_columns_ m;
    m.x = x;
    m.n = n;
    m.d = d;
    m.mean = mean;
    m.std = std;
    ctr_parallel_(ctx, ctr_eval_rows_chunks_(d), ctr_eval_moments_job_, &m);
}

CTR_PRIVATE_ double ctr_eval_dot_(int64_t n, const double *a, const double *b)
{
    double sum[4] = { 0, 0, 0, 0 };
    int64_t i;
    for (i = 0; i < n; i++) sum[i & 3] += a[i] * b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* ---- k-means -----------------------------------------------------------------------------------

   The nearest centroid of x has the largest  s_j = x.(c_j - m) - h_j,  h_j = (|c_j|^2 - |m|^2) / 2,
   since |x - c_j|^2 = |x|^2 - 2 x.c_j + |c_j|^2 and what does not depend on j decides nothing. Nor
   does m, the mean of the centroids, but with it rounding is in proportion to their spread and not
   to their distance from 0. Spherical: the largest x.c_j, m = h = 0.

   Blocks of points are multiplied with blocks of centroids, and each point keeps its best. */

#define CTR_KMEANS_ROWS_ 1024    /* points in a block of products */
#define CTR_KMEANS_COLUMNS_ 1024 /* centroids in one */

typedef struct ctr_kmeans_ {
    ctr_ctx *ctx;
    int64_t n, d, k;
    int spherical;
    const ctr_real *x;        /* [n, d] */
    double *inverse;          /* [n] 1 / |x_i| or 0 */
    ctr_real *centroids;      /* [k, d] */
    ctr_real *moved, *half;   /* [k, d] c - m; [k] h */
    double *middle;           /* [d] m */
    ctr_real *product;        /* [CTR_KMEANS_ROWS_, columns] */
    ctr_real *best;           /* [CTR_KMEANS_ROWS_] */
    int32_t *assignment, *previous; /* [n] */
    int64_t *sizes, *begin;   /* [k], [k + 1] where a cluster's points begin in order */
    int64_t *order;           /* [n] points by cluster, each in rising order */
    double *distance;         /* [n] squared, to the own centroid */
    double *chunk_sum;        /* [chunks] of distance, for k-means++ */
    double *sums;             /* [threads, d] of a cluster's points */
    int64_t first, rows, column, columns; /* the block; numbers in product's rows */
    int64_t drawn;            /* of k-means++: centroids so far */
} ctr_kmeans_;

/* The largest s = product - half of a row, after best so far; of equals the lowest index. */
CTR_PRIVATE_ void ctr_kmeans_best_scalar_(int64_t n, const ctr_real *product, const ctr_real *half,
                                          int64_t first, ctr_real *best, int32_t *which)
{
    int64_t j;
    for (j = 0; j < n; j++) {
        ctr_real s = product[j] - half[j];
        if (s > *best) {
            *best = s;
            *which = (int32_t)(first + j);
        }
    }
}

#if CTR_HAS_AVX2_
/* The same with eight candidates side by side: lane l has the best of j = l, l + 8, ... */
CTR_PRIVATE_ CTR_TARGET_AVX2_ void ctr_kmeans_best_avx2_(int64_t n, const float *product,
                                                         const float *half, int64_t first,
                                                         float *best, int32_t *which)
{
    __m256 top = _mm256_set1_ps(*best);
    __m256i at = _mm256_set1_epi32(-1), now = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    float value[8];
    int32_t index[8], found = -1;
    int64_t j, n8 = n / 8 * 8;
    int l;
    for (j = 0; j < n8; j += 8) {
        __m256 s = _mm256_sub_ps(_mm256_loadu_ps(product + j), _mm256_loadu_ps(half + j));
        __m256 more = _mm256_cmp_ps(s, top, _CMP_GT_OQ);
        top = _mm256_blendv_ps(top, s, more);
        at = _mm256_blendv_epi8(at, now, _mm256_castps_si256(more));
        now = _mm256_add_epi32(now, _mm256_set1_epi32(8));
    }
    _mm256_storeu_ps(value, top);
    _mm256_storeu_si256((__m256i *)(void *)index, at);
    for (l = 0; l < 8; l++) {
        if (index[l] < 0) continue; /* nothing better in this lane */
        if (found < 0 || value[l] > *best || (value[l] >= *best && index[l] < found)) {
            *best = value[l];
            found = index[l];
        }
    }
    if (found >= 0) *which = (int32_t)(first + found);
    ctr_kmeans_best_scalar_(n - n8, product + n8, half + n8, first + n8, best, which);
}
#endif

/* Takes a block's products into best and assignment. */
CTR_PRIVATE_ void ctr_kmeans_best_job_(void *arg, int64_t chunk, int worker)
{
    ctr_kmeans_ *m = (ctr_kmeans_ *)arg;
    int64_t r = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(r + CTR_EVAL_CHUNK_, m->rows);
    int64_t columns = CTR_MIN_(m->columns, m->k - m->column);
    (void)worker;
    for (; r < end; r++) {
        const ctr_real *product = m->product + r * m->columns, *half = m->half + m->column;
        int32_t *which = m->assignment + m->first + r;
        if (m->column == 0) { /* the first centroid stands until a better one comes */
            m->best[r] = product[0] - half[0];
            *which = 0;
        }
#if CTR_HAS_AVX2_
        if (m->ctx->kernels >= CTR_KERNELS_AVX2) {
            ctr_kmeans_best_avx2_(columns, product, half, m->column, m->best + r, which);
            continue;
        }
#endif
        ctr_kmeans_best_scalar_(columns, product, half, m->column, m->best + r, which);
    }
}

/* m, c - m and h of the centroids. */
CTR_PRIVATE_ void ctr_kmeans_move_(ctr_kmeans_ *m)
{
    int64_t j, l;
    for (l = 0; l < m->d; l++) m->middle[l] = 0;
    for (j = 0; j < m->k && !m->spherical; j++)
        for (l = 0; l < m->d; l++)
            m->middle[l] += (double)m->centroids[j * m->d + l] / (double)m->k;
    for (j = 0; j < m->k; j++) {
        double h = 0;
        for (l = 0; l < m->d; l++) {
            double c = (double)m->centroids[j * m->d + l], t = c - m->middle[l];
            m->moved[j * m->d + l] = (ctr_real)t;
            h += 0.5 * t * (c + m->middle[l]);
        }
        m->half[j] = m->spherical ? CTR_R(0.0) : (ctr_real)h;
    }
}

/* The nearest centroid of every point. */
CTR_PRIVATE_ void ctr_kmeans_assign_(ctr_kmeans_ *m)
{
    ctr_kmeans_move_(m);
    for (m->first = 0; m->first < m->n; m->first += CTR_KMEANS_ROWS_) {
        m->rows = CTR_MIN_(CTR_KMEANS_ROWS_, m->n - m->first);
        for (m->column = 0; m->column < m->k; m->column += m->columns) {
            ctr_gemm_run_(m->ctx, 0, 1, m->rows, CTR_MIN_(m->columns, m->k - m->column), m->d, 1,
                          m->x + m->first * m->d, m->d, m->moved + m->column * m->d, m->d, 0,
                          m->product, m->columns);
            ctr_parallel_(m->ctx, ctr_eval_rows_chunks_(m->rows),
                          ctr_kmeans_best_job_, m);
        }
    }
}

/* sizes, and the points in the order of their clusters (a counting sort). */
CTR_PRIVATE_ void ctr_kmeans_sort_(ctr_kmeans_ *m)
{
    int64_t i, j;
    for (j = 0; j < m->k; j++) m->sizes[j] = 0;
    for (i = 0; i < m->n; i++) m->sizes[m->assignment[i]]++;
    m->begin[0] = 0;
    for (j = 0; j < m->k; j++) m->begin[j + 1] = m->begin[j] + m->sizes[j];
    for (i = 0; i < m->n; i++) m->order[m->begin[m->assignment[i]]++] = i;
    for (j = m->k; j > 0; j--) m->begin[j] = m->begin[j - 1];
    m->begin[0] = 0;
}

/* |w x - c|^2 */
CTR_PRIVATE_ double ctr_kmeans_distance_(int64_t d, const ctr_real *x, double w, const ctr_real *c)
{
    double sum[4] = { 0, 0, 0, 0 };
    int64_t l;
    for (l = 0; l < d; l++) {
        double t = w * (double)x[l] - (double)c[l];
        sum[l & 3] += t * t;
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* What a point counts by: 1, or for directions the inverse of its length. */
CTR_PRIVATE_ double ctr_kmeans_weight_(const ctr_kmeans_ *m, int64_t i)
{
    return m->spherical ? m->inverse[i] : 1.0;
}

/* Row j of the centroids from c [d] in double; at unit length if spherical, and as it was if c has
   no direction. */
CTR_PRIVATE_ void ctr_kmeans_store_(ctr_kmeans_ *m, int64_t j, const double *c)
{
    double square = 0, scale = 1;
    int64_t l;
    if (m->spherical) {
        for (l = 0; l < m->d; l++) square += c[l] * c[l];
        if (square <= 0) return;
        scale = 1 / sqrt(square);
    }
    for (l = 0; l < m->d; l++) m->centroids[j * m->d + l] = (ctr_real)(scale * c[l]);
}

/* Centroid j is point i. */
CTR_PRIVATE_ void ctr_kmeans_take_(ctr_kmeans_ *m, int64_t j, int64_t i)
{
    double w = ctr_kmeans_weight_(m, i);
    int64_t l;
    for (l = 0; l < m->d; l++)
        m->centroids[j * m->d + l] = (ctr_real)(w * (double)m->x[i * m->d + l]);
}

/* One centroid: the mean of its points, summed in the order of their indices; without any it
   stays. */
CTR_PRIVATE_ void ctr_kmeans_mean_job_(void *arg, int64_t j, int worker)
{
    ctr_kmeans_ *m = (ctr_kmeans_ *)arg;
    double *sum = m->sums + worker * m->d;
    int64_t i, l;
    if (m->sizes[j] == 0) return;
    for (l = 0; l < m->d; l++) sum[l] = 0;
    for (i = m->begin[j]; i < m->begin[j + 1]; i++) {
        const ctr_real *x = m->x + m->order[i] * m->d;
        double weight = ctr_kmeans_weight_(m, m->order[i]);
        for (l = 0; l < m->d; l++) sum[l] += weight * (double)x[l];
    }
    for (l = 0; l < m->d; l++) sum[l] /= (double)m->sizes[j];
    ctr_kmeans_store_(m, j, sum);
}

/* Each empty cluster takes half of the largest, of equals the first: the same centroid, its even
   coordinates larger and its odd ones smaller by 1/1024, those of the donor the other way. */
CTR_PRIVATE_ int64_t ctr_kmeans_split_(ctr_kmeans_ *m)
{
    double *a = m->sums, *b = m->middle; /* both are free between assignments */
    int64_t j, i, l, donor, count = 0;
    for (j = 0; j < m->k; j++) {
        if (m->sizes[j] > 0) continue;
        for (donor = 0, i = 1; i < m->k; i++)
            if (m->sizes[i] > m->sizes[donor]) donor = i;
        for (l = 0; l < m->d; l++) {
            double c = (double)m->centroids[donor * m->d + l], t = l % 2 ? -c / 1024 : c / 1024;
            a[l] = c + t;
            b[l] = c - t;
        }
        ctr_kmeans_store_(m, j, a);
        ctr_kmeans_store_(m, donor, b);
        m->sizes[j] = m->sizes[donor] / 2;
        m->sizes[donor] -= m->sizes[j];
        count++;
    }
    return count;
}

CTR_PRIVATE_ void ctr_kmeans_distance_job_(void *arg, int64_t chunk, int worker)
{
    ctr_kmeans_ *m = (ctr_kmeans_ *)arg;
    int64_t i = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(i + CTR_EVAL_CHUNK_, m->n);
    (void)worker;
    for (; i < end; i++)
        m->distance[i] = ctr_kmeans_distance_(m->d, m->x + i * m->d, ctr_kmeans_weight_(m, i),
                                              m->centroids + m->assignment[i] * m->d);
}

/* Fills distance and adds it up. */
CTR_PRIVATE_ double ctr_kmeans_inertia_(ctr_kmeans_ *m)
{
    double sum = 0;
    int64_t i;
    ctr_parallel_(m->ctx, ctr_eval_rows_chunks_(m->n),
                  ctr_kmeans_distance_job_, m);
    for (i = 0; i < m->n; i++) sum += m->distance[i];
    return sum;
}

/* Each empty cluster takes the point that is farthest from its centroid, of equals the first.
   Returns how many found one that is not on its centroid. */
CTR_PRIVATE_ int64_t ctr_kmeans_farthest_(ctr_kmeans_ *m)
{
    int64_t i, j, far, count = 0;
    for (j = 0; j < m->k; j++) {
        if (m->sizes[j] > 0) continue;
        for (far = 0, i = 1; i < m->n; i++)
            if (m->distance[i] > m->distance[far]) far = i;
        if (m->distance[far] <= 0) break;
        ctr_kmeans_take_(m, j, far);
        m->distance[far] = 0;
        count++;
    }
    return count;
}

/* ---- where centroids start ---- */

/* The squared distance to the nearest centroid drawn so far, after one more; a sum each chunk. */
CTR_PRIVATE_ void ctr_kmeans_plus_job_(void *arg, int64_t chunk, int worker)
{
    ctr_kmeans_ *m = (ctr_kmeans_ *)arg;
    int64_t i = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(i + CTR_EVAL_CHUNK_, m->n);
    const ctr_real *c = m->centroids + (m->drawn - 1) * m->d;
    (void)worker;
    m->chunk_sum[chunk] = 0;
    for (; i < end; i++) {
        double t = ctr_kmeans_distance_(m->d, m->x + i * m->d, ctr_kmeans_weight_(m, i), c);
        if (m->drawn == 1 || t < m->distance[i]) m->distance[i] = t;
        m->chunk_sum[chunk] += m->distance[i];
    }
}

/* Draws a point in proportion to distance; any point if all lie on centroids already. */
CTR_PRIVATE_ int64_t ctr_kmeans_plus_draw_(ctr_kmeans_ *m, ctr_rng *rng)
{
    int64_t chunks = ctr_eval_rows_chunks_(m->n), chunk, i, last = -1;
    double total = 0, at;
    for (chunk = 0; chunk < chunks; chunk++) total += m->chunk_sum[chunk];
    at = total * ((double)ctr_rng_u32(rng) + ctr_rng_uniform(rng)) / 4294967296.0;
    if (!(total > 0)) return ctr_rng_below(rng, m->n);
    for (chunk = 0; chunk < chunks - 1 && at >= m->chunk_sum[chunk]; chunk++)
        at -= m->chunk_sum[chunk];
    for (i = chunk * CTR_EVAL_CHUNK_; i < m->n; i++) {
        if (m->distance[i] <= 0) continue;
        last = i;
        at -= m->distance[i];
        if (at < 0) return i;
    }
    for (i = 0; i < m->n && last < 0; i++) /* rounding led past the end: the last one possible */
        if (m->distance[m->n - 1 - i] > 0) last = m->n - 1 - i;
    return last;
}

CTR_PRIVATE_ void ctr_kmeans_start_(ctr_kmeans_ *m, const ctr_kmeans_config *c, int restart)
{
    int64_t j, l;
    ctr_rng rng;
    ctr_rng_init(&rng, c->seed, CTR_STREAM_CLUSTER, restart, 0, 0);
    if (c->start) {
        for (j = 0; j < m->k * m->d; j++) m->centroids[j] = c->start[j];
        for (j = 0; j < m->k; j++) {
            for (l = 0; l < m->d; l++) m->sums[l] = (double)c->start[j * m->d + l];
            ctr_kmeans_store_(m, j, m->sums);
        }
    } else if (c->init == CTR_KMEANS_POINTS) {
        ctr_rng_permutation(&rng, m->n, m->order);
        for (j = 0; j < m->k; j++) ctr_kmeans_take_(m, j, m->order[j]);
    } else {
        ctr_kmeans_take_(m, 0, ctr_rng_below(&rng, m->n));
        for (m->drawn = 1; m->drawn < m->k; m->drawn++) {
            ctr_parallel_(m->ctx, ctr_eval_rows_chunks_(m->n),
                          ctr_kmeans_plus_job_, m);
            ctr_kmeans_take_(m, m->drawn, ctr_kmeans_plus_draw_(m, &rng));
        }
    }
}

/* ---- the run ---- */

CTR_API void ctr_kmeans_config_init(ctr_kmeans_config *config)
{
    memset(config, 0, sizeof *config);
    config->k = 10;
    config->iterations = 20;
    config->restarts = 1;
    config->init = CTR_KMEANS_POINTS;
    config->seed = 1;
    config->min_points = 39;
}

CTR_API ctr_kmeans_config ctr_kmeans_config_default(void)
{
    ctr_kmeans_config config;
    ctr_kmeans_config_init(&config);
    return config;
}

/* The last assignment, so that it belongs to the centroids; fresh: it does already. No cluster
   stays empty, unless there are too few different points. */
CTR_PRIVATE_ void ctr_kmeans_finish_(ctr_kmeans_ *m, int fresh, ctr_kmeans_result *r)
{
    int64_t j, filled;
    int round;
    for (round = 0;; round++) {
        if (round > 0 || !fresh) {
            ctr_kmeans_assign_(m);
            ctr_kmeans_sort_(m);
        }
        r->inertia = ctr_kmeans_inertia_(m);
        r->filled = 0;
        for (j = 0; j < m->k; j++) r->filled += m->sizes[j] > 0;
        if (r->filled == m->k || round == 10) return; /* ten rounds: duplicates may never part */
        filled = ctr_kmeans_farthest_(m);
        if (filled == 0) return;
        r->refilled += filled;
    }
}

/* One run from one start. */
CTR_PRIVATE_ void ctr_kmeans_once_(ctr_kmeans_ *m, const ctr_kmeans_config *c, int restart,
                                   ctr_kmeans_result *r)
{
    double before = 0, inertia;
    int64_t split = 0;
    int it;
    memset(r, 0, sizeof *r);
    r->restart = restart;
    ctr_kmeans_start_(m, c, restart);
    for (it = 0; it < c->iterations && m->ctx->status == CTR_OK; it++) {
        memcpy(m->previous, m->assignment, (size_t)m->n * sizeof *m->previous);
        ctr_kmeans_assign_(m);
        ctr_kmeans_sort_(m);
        if (it > 0 && split == 0 &&
            memcmp(m->previous, m->assignment, (size_t)m->n * sizeof *m->previous) == 0)
            break;
        if (c->tolerance > 0) {
            inertia = ctr_kmeans_inertia_(m);
            if (it > 0 && split == 0 && before - inertia <= c->tolerance * before) break;
            before = inertia;
        }
        ctr_parallel_(m->ctx, m->k, ctr_kmeans_mean_job_, m);
        split = ctr_kmeans_split_(m);
        r->refilled += split;
        r->iterations++;
    }
    r->converged = it < c->iterations;
    ctr_kmeans_finish_(m, r->converged, r);
}

CTR_PRIVATE_ int ctr_kmeans_check_(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int64_t k)
{
    if (ctx->status != CTR_OK) return 0;
    if (n < 1 || d < 1 || !x) {
        ctr_fail_(ctx, CTR_E_SHAPE, "kmeans: the points must be at least 1 x 1 numbers, got %ld x "
                  "%ld%s", (long)n, (long)d, x ? "" : " at NULL");
        return 0;
    }
    if (k < 1 || k > INT32_MAX) {
        ctr_fail_(ctx, CTR_E_VALUE, "kmeans: k must be 1..%ld, got %ld", (long)INT32_MAX, (long)k);
        return 0;
    }
    return 1;
}

/* Memory, and the points' lengths. */
CTR_PRIVATE_ int ctr_kmeans_open_(ctr_kmeans_ *m, ctr_bag_ *bag, int64_t n, int64_t d,
                                  const ctr_real *x, int64_t k, int spherical)
{
    int64_t chunks = ctr_eval_rows_chunks_(n);
    memset(m, 0, sizeof *m);
    m->ctx = bag->ctx;
    m->n = n;
    m->d = d;
    m->k = k;
    m->x = x;
    m->spherical = spherical != 0;
    m->columns = CTR_MIN_(k, (int64_t)CTR_KMEANS_COLUMNS_);
    m->inverse = ctr_bag_double_(bag, n, 1);
    m->centroids = ctr_bag_real_(bag, k, d);
    m->moved = ctr_bag_real_(bag, k, d);
    m->half = ctr_bag_real_(bag, k, 1);
    m->middle = ctr_bag_double_(bag, d, 1);
    m->sums = ctr_bag_double_(bag, m->ctx->threads, d);
    m->product = ctr_bag_real_(bag, CTR_MIN_(n, (int64_t)CTR_KMEANS_ROWS_), m->columns);
    m->best = ctr_bag_real_(bag, CTR_KMEANS_ROWS_, 1);
    m->assignment = ctr_bag_i32_(bag, n, 1);
    m->previous = ctr_bag_i32_(bag, n, 1);
    m->sizes = ctr_bag_i64_(bag, k, 1);
    m->begin = ctr_bag_i64_(bag, k + 1, 1);
    m->order = ctr_bag_i64_(bag, n, 1);
    m->distance = ctr_bag_double_(bag, n, 1);
    m->chunk_sum = ctr_bag_double_(bag, chunks, 1);
    return ctr_eval_rows_scan_(m->ctx, "kmeans", "points", n, d, x, m->inverse);
}

/* centroids that came from outside must be numbers */
CTR_PRIVATE_ int ctr_kmeans_finite_(ctr_ctx *ctx, int64_t k, int64_t d, const ctr_real *c)
{
    int64_t j;
    for (j = 0; j < k * d; j++)
        if (!ctr_real_finite_(c[j])) {
            ctr_fail_(ctx, CTR_E_NUMBER, "kmeans: row %ld of the centroids holds NaN or infinity",
                      (long)(j / d));
            return 0;
        }
    return 1;
}

CTR_PRIVATE_ void ctr_kmeans_best_of_(ctr_kmeans_ *m, const ctr_kmeans_config *c,
                                      ctr_real *centroids, int32_t *assignment, int64_t *sizes,
                                      ctr_kmeans_result *out)
{
    int restart, runs = c->start ? 1 : c->restarts;
    for (restart = 0; restart < runs; restart++) {
        ctr_kmeans_result r;
        ctr_kmeans_once_(m, c, restart, &r);
        if (m->ctx->status != CTR_OK) return;
        if (restart > 0 && !(r.inertia < out->inertia)) continue;
        *out = r;
        memcpy(centroids, m->centroids, (size_t)(m->k * m->d) * sizeof *centroids);
        if (assignment) memcpy(assignment, m->assignment, (size_t)m->n * sizeof *assignment);
        if (sizes) memcpy(sizes, m->sizes, (size_t)m->k * sizeof *sizes);
    }
}

CTR_API int ctr_kmeans_run(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                           const ctr_kmeans_config *config, ctr_real *centroids,
                           int32_t *assignment, int64_t *sizes, ctr_kmeans_result *out)
{
    ctr_kmeans_config c = config ? *config : ctr_kmeans_config_default();
    ctr_kmeans_result result;
    ctr_kmeans_ m;
    ctr_bag_ bag;
    memset(&result, 0, sizeof result);
    if (out) *out = result;
    if (!ctr_kmeans_check_(ctx, n, d, x, c.k)) return 0;
    if (c.k > n) {
        ctr_fail_(ctx, CTR_E_VALUE, "kmeans: k must be at most the number of points, %ld, got %ld",
                  (long)n, (long)c.k);
        return 0;
    }
    if (c.iterations < 0 || c.restarts < 1 || !(c.tolerance >= 0) ||
        !ctr_real_finite_((ctr_real)c.tolerance) ||
        (c.init != CTR_KMEANS_POINTS && c.init != CTR_KMEANS_PLUSPLUS)) {
        ctr_fail_(ctx, CTR_E_VALUE, "kmeans: iterations must be 0 or more, restarts 1 or more, "
                  "tolerance 0 or more, init POINTS or PLUSPLUS, got %d, %d, %g, %d", c.iterations,
                  c.restarts, c.tolerance, (int)c.init);
        return 0;
    }
    if (n / c.k < c.min_points)
        ctr_log_(ctx, CTR_LOG_WARN, "kmeans: %ld points for %ld clusters: fewer than %ld each",
                 (long)n, (long)c.k, (long)c.min_points);
    ctr_bag_open_(&bag, ctx);
    if (ctr_kmeans_open_(&m, &bag, n, d, x, c.k, c.spherical) &&
        (!c.start || ctr_kmeans_finite_(ctx, c.k, d, c.start)))
        ctr_kmeans_best_of_(&m, &c, centroids, assignment, sizes, &result);
    ctr_bag_close_(&bag);
    if (out && ctx->status == CTR_OK) *out = result;
    return ctx->status == CTR_OK;
}

CTR_API int ctr_kmeans_assign(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int64_t k,
                              const ctr_real *centroids, int spherical, int32_t *assignment,
                              double *inertia)
{
    ctr_kmeans_ m;
    ctr_bag_ bag;
    int64_t j, l;
    if (!ctr_kmeans_check_(ctx, n, d, x, k)) return 0;
    ctr_bag_open_(&bag, ctx);
    if (ctr_kmeans_open_(&m, &bag, n, d, x, k, spherical) &&
        ctr_kmeans_finite_(ctx, k, d, centroids)) {
        memcpy(m.centroids, centroids, (size_t)(k * d) * sizeof *centroids);
        for (j = 0; j < k && m.spherical; j++) {
            for (l = 0; l < d; l++) m.sums[l] = (double)centroids[j * d + l];
            ctr_kmeans_store_(&m, j, m.sums);
        }
        ctr_kmeans_assign_(&m);
        if (inertia) *inertia = ctr_kmeans_inertia_(&m);
        if (ctx->status == CTR_OK) memcpy(assignment, m.assignment, (size_t)n * sizeof *assignment);
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ---- principal components ----------------------------------------------------------------------

   Here because whitening needs them as well as MAP. */

#define CTR_PCA_EXTRA_ 8  /* directions iterated beside the k wanted: they speed up convergence */
#define CTR_PCA_WHOLE_ 768 /* up to this d, many axes are found in one solution for all d */

/* Makes the symmetric a [n, n] tridiagonal by reflections  I - 2 u u^T  from both sides
   (Householder, 1958): diagonal [n], off [n] with off[i] between i and i + 1. Rows of v are the new
   basis. u, w [n] are scratch; a is lost. */
CTR_PRIVATE_ void ctr_pca_tridiagonal_(int64_t n, double *a, double *v, double *diagonal,
                                       double *off, double *u, double *w)
{
    int64_t i, j, k;
    for (i = 0; i < n * n; i++) v[i] = i % (n + 1) == 0;
    for (k = 0; k < n; k++) {
        int64_t m = n - k - 1;
        double *below = a + (k + 1) * (n + 1), square = 0, length, along = 0;
        diagonal[k] = a[k * (n + 1)];
        off[k] = 0;
        if (m == 0) break;
        for (i = 0; i < m; i++) u[i] = a[k * n + k + 1 + i];
        length = sqrt(ctr_eval_dot_(m, u, u));
        off[k] = u[0] > 0 ? -length : length; /* away from u[0]: nothing cancels */
        u[0] -= off[k];
        square = ctr_eval_dot_(m, u, u);
        if (square <= 0) continue;
        for (i = 0; i < m; i++) u[i] /= sqrt(square);
        for (i = 0; i < m; i++) { /* below -= u w^T + w u^T,  w = 2 below u - (2 u^T below u) u */
            w[i] = 2 * ctr_eval_dot_(m, below + i * n, u);
            along += u[i] * w[i];
        }
        for (i = 0; i < m; i++) w[i] -= along * u[i];
        for (i = 0; i < m; i++)
            for (j = 0; j < m; j++) below[i * n + j] -= u[i] * w[j] + w[i] * u[j];
        for (j = 0; j < n; j++) w[j] = 0; /* v = (I - 2 u u^T) v, in the rows below k */
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++) w[j] += 2 * u[i] * v[(k + 1 + i) * n + j];
        for (i = 0; i < m; i++)
            for (j = 0; j < n; j++) v[(k + 1 + i) * n + j] -= u[i] * w[j];
    }
}

/* One QR step with Wilkinson's shift (1968) on the rows first..last of a tridiagonal matrix,
   without forming Q or R: the first rotation is the shifted one, the next ones chase what it spoils
   down. Rotations turn the rows of v too. */
CTR_PRIVATE_ void ctr_pca_step_(int64_t n, double *diagonal, double *off, double *v, int64_t first,
                                int64_t last)
{
    double half = 0.5 * (diagonal[last - 1] - diagonal[last]), tail = off[last - 1];
    double root = sqrt(half * half + tail * tail), sum = half + (half < 0 ? -root : root);
    double shift = diagonal[last] - (root > 0 ? tail * tail / sum : 0);
    double x = diagonal[first] - shift, z = off[first];
    int64_t i, k;
    for (i = first; i < last; i++) {
        double r = sqrt(x * x + z * z), c = r > 0 ? x / r : 1, s = r > 0 ? z / r : 0;
        double a = diagonal[i], b = diagonal[i + 1], o = off[i], *p = v + i * n, *q = p + n;
        if (i > first) off[i - 1] = r;
        diagonal[i] = c * c * a + 2 * c * s * o + s * s * b;
        diagonal[i + 1] = s * s * a - 2 * c * s * o + c * c * b;
        off[i] = c * s * (b - a) + (c * c - s * s) * o;
        if (i < last - 1) {
            x = off[i];
            z = s * off[i + 1];
            off[i + 1] *= c;
        }
        for (k = 0; k < n; k++) {
            double t = p[k];
            p[k] = c * t + s * q[k];
            q[k] = c * q[k] - s * t;
        }
    }
}

/* Is the entry between i and i + 1 nothing but rounding? Then it becomes 0. */
CTR_PRIVATE_ int ctr_pca_apart_(const double *diagonal, double *off, int64_t i)
{
    if (fabs(off[i]) > 1.2e-16 * (fabs(diagonal[i]) + fabs(diagonal[i + 1]))) return 0;
    off[i] = 0;
    return 1;
}

/* Eigenvalues of the symmetric a [n, n] into value [n], in no order, unit eigenvectors into the
   rows of v. scratch [3, n]; a is lost. */
CTR_PRIVATE_ void ctr_pca_eigen_(int64_t n, double *a, double *v, double *value, double *scratch)
{
    double *off = scratch + 2 * n;
    int64_t first, last = n - 1;
    int steps = 0; /* two for each value are usual */
    ctr_pca_tridiagonal_(n, a, v, value, off, scratch, scratch + n);
    while (last > 0) {
        if (ctr_pca_apart_(value, off, last - 1) || steps == 60) {
            last--;
            steps = 0;
            continue;
        }
        for (first = last - 1; first > 0 && !ctr_pca_apart_(value, off, first - 1);) first--;
        ctr_pca_step_(n, value, off, v, first, last);
        steps++;
    }
}

/* Makes the rows of q [b, d] unit and orthogonal (Gram and Schmidt, twice: once leaves rounding). A
   row that is nothing but rounding beside the rows before it becomes zero. */
CTR_PRIVATE_ void ctr_pca_orthogonal_(int64_t b, int64_t d, double *q)
{
    int64_t i, j, k;
    int pass;
    for (i = 0; i < b; i++) {
        double *row = q + i * d, before = sqrt(ctr_eval_dot_(d, row, row)), after = before;
        for (pass = 0; pass < 2; pass++) {
            for (j = 0; j < i; j++) {
                double t = ctr_eval_dot_(d, row, q + j * d);
                for (k = 0; k < d; k++) row[k] -= t * q[j * d + k];
            }
            after = sqrt(ctr_eval_dot_(d, row, row));
            after = after > 1e-7 * before && after > 1e-150 ? 1 / after : 0;
            for (k = 0; k < d; k++) row[k] *= after;
            before = 1;
        }
    }
}

typedef struct ctr_pca_ {
    ctr_ctx *ctx;
    int64_t n, d, b, k;
    ctr_real *x;             /* [n, d] centred */
    ctr_real *qr, *cr, *y;   /* [b, d], [b, d], [n, b] what the kernels multiply */
    double *q, *c;           /* [b, d] directions, and the covariance times them */
    double *t, *s;           /* [b, b] */
    double *value, *found;   /* [b] by falling size, and as they were found */
    double *scratch;         /* [3, b] */
    int64_t *order;          /* [b] */
    double *swap;            /* [b, d] */
} ctr_pca_;

/* c = rows of q times the covariance, as (x q^T)^T x / (n - 1): the covariance is never formed. */
CTR_PRIVATE_ void ctr_pca_multiply_(ctr_pca_ *p)
{
    double scale = 1.0 / (double)CTR_MAX_(p->n - 1, 1);
    int64_t i;
    for (i = 0; i < p->b * p->d; i++) p->qr[i] = (ctr_real)p->q[i];
    ctr_gemm_run_(p->ctx, 0, 1, p->n, p->b, p->d, 1, p->x, p->d, p->qr, p->d, 0, p->y, p->b);
    ctr_gemm_run_(p->ctx, 1, 0, p->b, p->d, p->n, 1, p->y, p->b, p->x, p->d, 0, p->cr, p->d);
    for (i = 0; i < p->b * p->d; i++) p->c[i] = scale * (double)p->cr[i];
}

/* rows of m [b, d] = s m, taken in the order of falling value */
CTR_PRIVATE_ void ctr_pca_turn_(ctr_pca_ *p, const int64_t *order, double *m)
{
    int64_t i, j, k;
    for (i = 0; i < p->b * p->d; i++) p->swap[i] = 0;
    for (i = 0; i < p->b; i++)
        for (j = 0; j < p->b; j++) {
            double f = p->s[order[i] * p->b + j];
            for (k = 0; k < p->d; k++) p->swap[i * p->d + k] += f * m[j * p->d + k];
        }
    memcpy(m, p->swap, (size_t)(p->b * p->d) * sizeof *m);
}

/* The best axes within the span of q (Rayleigh and Ritz): eigenvectors of t = q c^T. Turns q and c
   into them. Returns how far the k wanted are from eigenvectors, relative to the first value. */
CTR_PRIVATE_ double ctr_pca_ritz_(ctr_pca_ *p)
{
    int64_t *order = p->order, i, j, k;
    double worst = 0;
    for (i = 0; i < p->b; i++)
        for (j = 0; j < p->b; j++)
            p->t[i * p->b + j] = ctr_eval_dot_(p->d, p->q + i * p->d, p->c + j * p->d);
    for (i = 0; i < p->b; i++)
        for (j = 0; j < i; j++)
            p->t[i * p->b + j] = p->t[j * p->b + i] =
                0.5 * (p->t[i * p->b + j] + p->t[j * p->b + i]);
    ctr_pca_eigen_(p->b, p->t, p->s, p->found, p->scratch);
    for (i = 0; i < p->b; i++) { /* insertion: of equal values the first stays first */
        for (j = i; j > 0 && p->found[order[j - 1]] < p->found[i]; j--)
            order[j] = order[j - 1];
        order[j] = i;
    }
    for (i = 0; i < p->b; i++) p->value[i] = CTR_MAX_(0.0, p->found[order[i]]);
    ctr_pca_turn_(p, order, p->q);
    ctr_pca_turn_(p, order, p->c);
    for (i = 0; i < p->k; i++) {
        double square = 0;
        for (k = 0; k < p->d; k++) {
            double t = p->c[i * p->d + k] - p->value[i] * p->q[i * p->d + k];
            square += t * t;
        }
        worst = CTR_MAX_(worst, sqrt(square));
    }
    return p->value[0] > 0 ? worst / p->value[0] : 0;
}

/* Block power iteration: multiply, find the best axes in the span, make orthogonal, until the axes
   stand still. A fixed number bounds it: among equal variances axes are a matter of taste. */
CTR_PRIVATE_ void ctr_pca_iterate_(ctr_pca_ *p)
{
    double tolerance = CTR_REAL_IS_FLOAT_ ? 3e-6 : 1e-11;
    ctr_rng rng;
    int64_t i;
    int it;
    ctr_rng_init(&rng, 1, CTR_STREAM_EVAL, 1, 0, 0);
    for (i = 0; i < p->b * p->d; i++) p->q[i] = ctr_rng_normal(&rng);
    ctr_pca_orthogonal_(p->b, p->d, p->q);
    for (it = 0; it < 300; it++) {
        ctr_pca_multiply_(p);
        if (ctr_pca_ritz_(p) <= tolerance || p->b == p->d) break;
        memcpy(p->q, p->c, (size_t)(p->b * p->d) * sizeof *p->q);
        ctr_pca_orthogonal_(p->b, p->d, p->q);
    }
}

/* Copies the k axes out, each with its entry of largest size positive. */
CTR_PRIVATE_ void ctr_pca_store_(const ctr_pca_ *p, double floor, ctr_real *axes, double *variance)
{
    int64_t i, j;
    for (i = 0; i < p->k; i++) {
        const double *q = p->q + i * p->d;
        double sign = 0, most = 0;
        variance[i] = p->value[i] > floor ? p->value[i] : 0;
        for (j = 0; j < p->d; j++)
            if (fabs(q[j]) > most * (1 + 1e-6)) {
                most = fabs(q[j]);
                sign = q[j] < 0 ? -1 : 1;
            }
        if (variance[i] <= 0) sign = 0;
        for (j = 0; j < p->d; j++) axes[i * p->d + j] = (ctr_real)(sign * q[j]);
    }
}

CTR_PRIVATE_ int ctr_pca_open_(ctr_pca_ *p, ctr_bag_ *bag, int64_t n, int64_t d, int k)
{
    memset(p, 0, sizeof *p);
    p->ctx = bag->ctx;
    p->n = n;
    p->d = d;
    p->k = k;
    p->b = d <= CTR_PCA_WHOLE_ && k > d / 4 ? d : CTR_MIN_(d, (int64_t)k + CTR_PCA_EXTRA_);
    p->x = ctr_bag_real_(bag, p->n, p->d);
    p->y = ctr_bag_real_(bag, p->n, p->b);
    p->qr = ctr_bag_real_(bag, p->b, p->d);
    p->cr = ctr_bag_real_(bag, p->b, p->d);
    p->q = ctr_bag_double_(bag, p->b, p->d);
    p->c = ctr_bag_double_(bag, p->b, p->d);
    p->swap = ctr_bag_double_(bag, p->b, p->d);
    p->t = ctr_bag_double_(bag, p->b, p->b);
    p->s = ctr_bag_double_(bag, p->b, p->b);
    p->value = ctr_bag_double_(bag, p->b, 1);
    p->found = ctr_bag_double_(bag, p->b, 1);
    p->scratch = ctr_bag_double_(bag, p->b, 3);
    p->order = ctr_bag_i64_(bag, p->b, 1);
    return p->ctx->status == CTR_OK;
}

/* What ctr_pca_fit promises, for whoever asks. */
CTR_PRIVATE_ int ctr_pca_solve_(ctr_ctx *ctx, const char *who, int64_t n, int64_t d,
                                const ctr_real *x, int k, ctr_real *mean, ctr_real *axes,
                                double *variance, double *total)
{
    double *inverse, *middle, *std, sum = 0;
    int64_t i, j;
    ctr_pca_ p;
    ctr_bag_ bag;
    ctr_bag_open_(&bag, ctx);
    inverse = ctr_bag_double_(&bag, n, 1);
    middle = ctr_bag_double_(&bag, d, 1);
    std = ctr_bag_double_(&bag, d, 1);
    if (ctr_pca_open_(&p, &bag, n, d, k) &&
        ctr_eval_rows_scan_(ctx, who, "points", n, d, x, inverse)) {
        ctr_eval_moments_(ctx, n, d, x, middle, std);
        for (j = 0; j < d; j++) {
            mean[j] = (ctr_real)middle[j];
            sum += std[j] * std[j] * (double)n / (double)CTR_MAX_(n - 1, 1);
        }
        for (i = 0; i < n; i++)
            for (j = 0; j < d; j++) p.x[i * d + j] = (ctr_real)((double)x[i * d + j] - middle[j]);
        ctr_pca_iterate_(&p);
        ctr_pca_store_(&p, sum * (CTR_REAL_IS_FLOAT_ ? 1e-11 : 1e-14), axes, variance);
        if (total) *total = sum;
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ---- whitening ------------------------------------------------------------------------------- */

#define CTR_WHITEN_MOST_ 256
#define CTR_WHITEN_ROWS_ 512 /* points that are projected at a time */

CTR_API void ctr_whiten_config_init(ctr_whiten_config *config)
{
    config->k = 0;
    config->power = -0.5;
    config->epsilon = 0;
}

CTR_API ctr_whiten_config ctr_whiten_config_default(void)
{
    ctr_whiten_config config;
    ctr_whiten_config_init(&config);
    return config;
}

CTR_PRIVATE_ int ctr_whiten_check_(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int64_t k)
{
    int64_t most = CTR_MIN_(d, (int64_t)CTR_WHITEN_MOST_);
    if (ctx->status != CTR_OK) return 0;
    if (n < 1 || d < 1 || !x) {
        ctr_fail_(ctx, CTR_E_SHAPE, "whiten: the points must be at least 1 x 1 numbers, got %ld x "
                  "%ld%s", (long)n, (long)d, x ? "" : " at NULL");
        return 0;
    }
    if (k < 1 || k > most) {
        ctr_fail_(ctx, CTR_E_VALUE, "whiten: k must be 1..min(d, %d) = %ld, got %ld",
                  CTR_WHITEN_MOST_, (long)most, (long)k);
        return 0;
    }
    return 1;
}

CTR_API int ctr_whiten_fit(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x,
                           const ctr_whiten_config *config, ctr_real *mean, ctr_real *matrix)
{
    ctr_whiten_config c = config ? *config : ctr_whiten_config_default();
    double variance[CTR_WHITEN_MOST_];
    int64_t i, j;
    if (c.k == 0) c.k = (int)CTR_MIN_(CTR_MAX_(d, 1), (int64_t)CTR_WHITEN_MOST_);
    if (!ctr_whiten_check_(ctx, n, d, x, c.k)) return 0;
    if (!ctr_real_finite_((ctr_real)c.power) || !ctr_real_finite_((ctr_real)c.epsilon) ||
        !(c.epsilon >= 0)) {
        ctr_fail_(ctx, CTR_E_VALUE, "whiten: power must be a number and epsilon 0 or more, got %g "
                  "and %g", c.power, c.epsilon);
        return 0;
    }
    if (!ctr_pca_solve_(ctx, "whiten", n, d, x, c.k, mean, matrix, variance, NULL)) return 0;
    for (i = 0; i < c.k; i++) {
        double scale = variance[i] > 0 ? pow(variance[i] + c.epsilon, c.power) : 0;
        for (j = 0; j < d; j++) matrix[i * d + j] = (ctr_real)(scale * (double)matrix[i * d + j]);
    }
    return c.k;
}

typedef struct ctr_whiten_ {
    int64_t d, k, first, rows;
    const ctr_real *x, *mean;
    ctr_real *centred, *out;   /* [CTR_WHITEN_ROWS_, d], [n, k] */
} ctr_whiten_;

CTR_PRIVATE_ void ctr_whiten_centre_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_whiten_ *w = (const ctr_whiten_ *)arg;
    int64_t r = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(r + CTR_EVAL_CHUNK_, w->rows), j;
    (void)worker;
    for (; r < end; r++)
        for (j = 0; j < w->d; j++)
            w->centred[r * w->d + j] = w->x[(w->first + r) * w->d + j] - w->mean[j];
}

CTR_PRIVATE_ void ctr_whiten_unit_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_whiten_ *w = (const ctr_whiten_ *)arg;
    int64_t r = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(r + CTR_EVAL_CHUNK_, w->rows), j;
    (void)worker;
    for (; r < end; r++) {
        ctr_real *out = w->out + (w->first + r) * w->k;
        double square = 0;
        for (j = 0; j < w->k; j++) square += (double)out[j] * (double)out[j];
        for (j = 0; j < w->k && square > 0; j++) out[j] = (ctr_real)((double)out[j] / sqrt(square));
    }
}

CTR_API int ctr_whiten_apply(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x, int k,
                             const ctr_real *mean, const ctr_real *matrix, int unit_rows,
                             ctr_real *out)
{
    ctr_whiten_ w;
    ctr_bag_ bag;
    if (!ctr_whiten_check_(ctx, n, d, x, k)) return 0;
    ctr_bag_open_(&bag, ctx);
    w.d = d;
    w.k = k;
    w.x = x;
    w.mean = mean;
    w.out = out;
    w.centred = ctr_bag_real_(&bag, CTR_WHITEN_ROWS_, d);
    for (w.first = 0; w.first < n && ctx->status == CTR_OK; w.first += CTR_WHITEN_ROWS_) {
        w.rows = CTR_MIN_(CTR_WHITEN_ROWS_, n - w.first);
        ctr_parallel_(ctx, ctr_eval_rows_chunks_(w.rows), ctr_whiten_centre_job_, &w);
        ctr_gemm_run_(ctx, 0, 1, w.rows, k, d, 1, w.centred, d, matrix, d, 0, out + w.first * k, k);
        if (unit_rows)
            ctr_parallel_(ctx, ctr_eval_rows_chunks_(w.rows), ctr_whiten_unit_job_, &w);
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ---- balanced codes ----------------------------------------------------------------------------

   ln Q_ij = s_ij / epsilon + f_i + g_j, where f and g begin at 0 and each scaling sets one of them:
     g_j = -ln k - ln sum_i exp(s_ij / epsilon + f_i)      f_i the same over j, with n for k
   Sums are taken about the largest exponent, so that nothing overflows and one term is 1. */

#define CTR_SINKHORN_COLUMNS_ 32 /* columns, and rows, in a chunk of parallel work */

typedef struct ctr_sinkhorn_ {
    int64_t n, k;
    double epsilon;
    const ctr_real *scores;  /* [n, k] */
    ctr_real *codes;         /* [n, k] */
    double *f, *g;           /* [n], [k] */
} ctr_sinkhorn_;

CTR_API void ctr_sinkhorn_config_init(ctr_sinkhorn_config *config)
{
    config->epsilon = 0.05;
    config->iterations = 3;
}

CTR_API ctr_sinkhorn_config ctr_sinkhorn_config_default(void)
{
    ctr_sinkhorn_config config;
    ctr_sinkhorn_config_init(&config);
    return config;
}

CTR_PRIVATE_ void ctr_sinkhorn_column_job_(void *arg, int64_t chunk, int worker)
{
    ctr_sinkhorn_ *s = (ctr_sinkhorn_ *)arg;
    int64_t first = chunk * CTR_SINKHORN_COLUMNS_, i, j;
    int64_t width = CTR_MIN_(CTR_SINKHORN_COLUMNS_, s->k - first);
    double top[CTR_SINKHORN_COLUMNS_], sum[CTR_SINKHORN_COLUMNS_];
    (void)worker;
    for (i = 0; i < s->n; i++)
        for (j = 0; j < width; j++) {
            double t = (double)s->scores[i * s->k + first + j] / s->epsilon + s->f[i];
            if (i == 0 || t > top[j]) top[j] = t;
        }
    for (j = 0; j < width; j++) sum[j] = 0;
    for (i = 0; i < s->n; i++)
        for (j = 0; j < width; j++)
            sum[j] += exp((double)s->scores[i * s->k + first + j] / s->epsilon + s->f[i] - top[j]);
    for (j = 0; j < width; j++) s->g[first + j] = -log((double)s->k) - top[j] - log(sum[j]);
}

CTR_PRIVATE_ void ctr_sinkhorn_row_job_(void *arg, int64_t chunk, int worker)
{
    ctr_sinkhorn_ *s = (ctr_sinkhorn_ *)arg;
    int64_t i = chunk * CTR_SINKHORN_COLUMNS_, j;
    int64_t end = CTR_MIN_(i + CTR_SINKHORN_COLUMNS_, s->n);
    (void)worker;
    for (; i < end; i++) {
        const ctr_real *row = s->scores + i * s->k;
        double top = (double)row[0] / s->epsilon + s->g[0], sum = 0;
        for (j = 1; j < s->k; j++) top = CTR_MAX_(top, (double)row[j] / s->epsilon + s->g[j]);
        for (j = 0; j < s->k; j++) sum += exp((double)row[j] / s->epsilon + s->g[j] - top);
        s->f[i] = -log((double)s->n) - top - log(sum);
    }
}

CTR_PRIVATE_ void ctr_sinkhorn_code_job_(void *arg, int64_t chunk, int worker)
{
    ctr_sinkhorn_ *s = (ctr_sinkhorn_ *)arg;
    int64_t i = chunk * CTR_SINKHORN_COLUMNS_, j;
    int64_t end = CTR_MIN_(i + CTR_SINKHORN_COLUMNS_, s->n);
    (void)worker;
    for (; i < end; i++)
        for (j = 0; j < s->k; j++)
            s->codes[i * s->k + j] =
                (ctr_real)((double)s->n * exp((double)s->scores[i * s->k + j] / s->epsilon +
                                              s->f[i] + s->g[j]));
}

/* max_j |k / n sum_i codes_ij - 1|; share [k] is scratch */
CTR_PRIVATE_ double ctr_sinkhorn_residual_(const ctr_sinkhorn_ *s, double *share)
{
    double worst = 0;
    int64_t i, j;
    for (j = 0; j < s->k; j++) share[j] = 0;
    for (i = 0; i < s->n; i++)
        for (j = 0; j < s->k; j++) share[j] += (double)s->codes[i * s->k + j];
    for (j = 0; j < s->k; j++)
        worst = CTR_MAX_(worst, fabs(share[j] * (double)s->k / (double)s->n - 1));
    return worst;
}

CTR_PRIVATE_ int ctr_sinkhorn_check_(ctr_ctx *ctx, int64_t n, int64_t k, const ctr_real *scores,
                                     const ctr_sinkhorn_config *c)
{
    if (ctx->status != CTR_OK) return 0;
    if (n < 1 || k < 1 || !scores) {
        ctr_fail_(ctx, CTR_E_SHAPE, "sinkhorn: the scores must be at least 1 x 1 numbers, got %ld "
                  "x %ld%s", (long)n, (long)k, scores ? "" : " at NULL");
        return 0;
    }
    if (c->iterations < 1 || !(c->epsilon > 0) || !ctr_real_finite_((ctr_real)c->epsilon)) {
        ctr_fail_(ctx, CTR_E_VALUE, "sinkhorn: epsilon must be above 0 and iterations at least 1, "
                  "got %g and %d", c->epsilon, c->iterations);
        return 0;
    }
    return 1;
}

/* The same with the caller's scratch [n + k], so that a step allocates nothing. */
CTR_PRIVATE_ int ctr_sinkhorn_with_(ctr_ctx *ctx, int64_t n, int64_t k, const ctr_real *scores,
                                    const ctr_sinkhorn_config *c, ctr_real *codes, double *residual,
                                    double *scratch)
{
    ctr_sinkhorn_ s;
    int64_t rows = (n + CTR_SINKHORN_COLUMNS_ - 1) / CTR_SINKHORN_COLUMNS_, i;
    int it;
    s.n = n;
    s.k = k;
    s.epsilon = c->epsilon;
    s.scores = scores;
    s.codes = codes;
    s.f = scratch;
    s.g = scratch + n;
    if (!ctr_eval_rows_scan_(ctx, "sinkhorn", "scores", n, k, scores, s.f)) return 0;
    for (i = 0; i < n; i++) s.f[i] = 0; /* the scan has left lengths there */
    for (it = 0; it < c->iterations; it++) {
        ctr_parallel_(ctx, (k + CTR_SINKHORN_COLUMNS_ - 1) / CTR_SINKHORN_COLUMNS_,
                      ctr_sinkhorn_column_job_, &s);
        ctr_parallel_(ctx, rows, ctr_sinkhorn_row_job_, &s);
    }
    ctr_parallel_(ctx, rows, ctr_sinkhorn_code_job_, &s);
    if (residual) *residual = ctr_sinkhorn_residual_(&s, s.g);
    return 1;
}

CTR_API int ctr_sinkhorn_run(ctr_ctx *ctx, int64_t n, int64_t k, const ctr_real *scores,
                             const ctr_sinkhorn_config *config, ctr_real *codes, double *residual)
{
    ctr_sinkhorn_config c = config ? *config : ctr_sinkhorn_config_default();
    ctr_bag_ bag;
    double *scratch;
    int done;
    if (residual) *residual = 0;
    if (!ctr_sinkhorn_check_(ctx, n, k, scores, &c)) return 0;
    ctr_bag_open_(&bag, ctx);
    scratch = ctr_bag_double_(&bag, n + k, 1);
    done = scratch && ctr_sinkhorn_with_(ctx, n, k, scores, &c, codes, residual, scratch);
    ctr_bag_close_(&bag);
    return done;
}

/* ---- agreement of two partitions ---------------------------------------------------------------

   n_ij: points in part i of a and part j of b; a_i, b_j: sizes of the parts; n: all points. */

typedef struct ctr_agree_ {
    int64_t n, parts[2];     /* points that count; parts that occur */
    int32_t *part[2];        /* [n] which part of a and of b, numbered without gaps */
    int32_t *name[2];        /* [parts] their numbers outside */
    int64_t *size[2];        /* [parts] */
    int64_t limit[2];        /* 1 + the largest number outside */
} ctr_agree_;

/* Numbers the parts that occur in rising order of their names. */
CTR_PRIVATE_ int ctr_agree_open_(ctr_agree_ *g, ctr_bag_ *bag, int64_t n, const int32_t *a,
                                 const int32_t *b)
{
    const int32_t *side[2];
    int64_t i, j;
    int s;
    memset(g, 0, sizeof *g);
    side[0] = a;
    side[1] = b;
    for (i = 0; i < n; i++)
        for (s = 0; s < 2; s++) {
            if (side[s][i] >= CTR_MAX_CLASSES) {
                ctr_fail_(bag->ctx, CTR_E_VALUE, "agreement: %s %ld must be below %d, got %ld",
                          s ? "label" : "cluster", (long)i, CTR_MAX_CLASSES, (long)side[s][i]);
                return 0;
            }
            g->limit[s] = CTR_MAX_(g->limit[s], (int64_t)side[s][i] + 1);
        }
    for (s = 0; s < 2; s++) {
        int32_t *dense = ctr_bag_i32_(bag, g->limit[s], 1);
        g->part[s] = ctr_bag_i32_(bag, n, 1);
        g->name[s] = ctr_bag_i32_(bag, g->limit[s], 1);
        g->size[s] = ctr_bag_i64_(bag, g->limit[s], 1);
        if (bag->ctx->status != CTR_OK) return 0;
        for (j = 0; j < g->limit[s]; j++) dense[j] = -1;
        for (i = 0; i < n; i++)
            if (a[i] >= 0 && b[i] >= 0) dense[side[s][i]] = 0;
        for (j = 0; j < g->limit[s]; j++) {
            if (dense[j] < 0) continue;
            g->size[s][g->parts[s]] = 0;
            g->name[s][g->parts[s]] = (int32_t)j;
            dense[j] = (int32_t)g->parts[s]++;
        }
        for (g->n = 0, i = 0; i < n; i++)
            if (a[i] >= 0 && b[i] >= 0) g->part[s][g->n++] = dense[side[s][i]];
        for (i = 0; i < g->n; i++) g->size[s][g->part[s][i]]++;
    }
    return 1;
}

/* Points in the order of their part of a (counting sort); begin [parts + 1]: where each starts. */
CTR_PRIVATE_ void ctr_agree_sort_(const ctr_agree_ *g, int64_t *begin, int64_t *order)
{
    int64_t i, j;
    begin[0] = 0;
    for (j = 0; j < g->parts[0]; j++) begin[j + 1] = begin[j] + g->size[0][j];
    for (i = 0; i < g->n; i++) order[begin[g->part[0][i]]++] = i;
    for (j = g->parts[0]; j > 0; j--) begin[j] = begin[j - 1];
    begin[0] = 0;
}

/* n (n - 1) / 2, and -sum p ln p */
CTR_PRIVATE_ double ctr_agree_pairs_(int64_t n)
{
    return 0.5 * (double)n * (double)(n - 1);
}

CTR_PRIVATE_ double ctr_agree_entropy_(int64_t parts, const int64_t *size, int64_t n)
{
    double sum = 0;
    int64_t i;
    for (i = 0; i < parts; i++) {
        double p = (double)size[i] / (double)n;
        sum -= p * log(p);
    }
    return sum;
}

/* What the cells of the table add up to: n_ij ln(n n_ij / (a_i b_j)), pairs of points that are
   together in both partitions, and the largest n_ij of each i. The table is never there in whole: a
   row at a time, its cells in the order in which its points come. cell [parts of b] is zero on
   entry and on return. */
typedef struct ctr_agree_sums_ { double mutual, together, majority; } ctr_agree_sums_;

CTR_PRIVATE_ ctr_agree_sums_ ctr_agree_cells_(const ctr_agree_ *g, const int64_t *begin,
                                              const int64_t *order, int64_t *cell)
{
    ctr_agree_sums_ sums = { 0, 0, 0 };
    int64_t i, at;
    for (i = 0; i < g->parts[0]; i++) {
        int64_t most = 0;
        for (at = begin[i]; at < begin[i + 1]; at++) cell[g->part[1][order[at]]]++;
        for (at = begin[i]; at < begin[i + 1]; at++) {
            int64_t j = g->part[1][order[at]], count = cell[j];
            if (count == 0) continue; /* this cell has been counted */
            cell[j] = 0;
            sums.mutual += (double)count * log((double)g->n * (double)count /
                                               ((double)g->size[0][i] * (double)g->size[1][j]));
            sums.together += ctr_agree_pairs_(count);
            most = CTR_MAX_(most, count);
        }
        sums.majority += (double)most;
    }
    return sums;
}

/* ari = (t - e) / (mean(A, B) - e): t pairs together in both, A and B in each, e = A B / all pairs
   expected by chance. */
CTR_PRIVATE_ void ctr_agree_measure_(const ctr_agree_ *g, const ctr_agree_sums_ *sums,
                                     ctr_agreement *out)
{
    double n = (double)g->n, pairs[2] = { 0, 0 }, entropy[2], chance, mutual = sums->mutual / n;
    int64_t i;
    int s, single = g->parts[0] == 1 && g->parts[1] == 1;
    for (s = 0; s < 2; s++) {
        entropy[s] = ctr_agree_entropy_(g->parts[s], g->size[s], g->n);
        for (i = 0; i < g->parts[s]; i++) pairs[s] += ctr_agree_pairs_(g->size[s][i]);
    }
    mutual = CTR_MAX_(mutual, 0.0);
    out->nmi = single ? 1.0 : 2 * mutual / (entropy[0] + entropy[1]);
    out->nmi_geometric = single ? 1.0
                         : g->parts[0] == 1 || g->parts[1] == 1
                             ? 0.0
                             : mutual / sqrt(entropy[0] * entropy[1]);
    chance = g->n > 1 ? pairs[0] * pairs[1] / ctr_agree_pairs_(g->n) : 0;
    /* the same partition, which covers 0 / 0: all points apart in both, or together in both */
    out->ari = pairs[0] <= sums->together && pairs[1] <= sums->together
                   ? 1.0
                   : (sums->together - chance) / (0.5 * (pairs[0] + pairs[1]) - chance);
    out->purity = sums->majority / n;
    out->points = g->n;
    out->clusters = g->parts[0];
    out->classes = g->parts[1];
}

CTR_PRIVATE_ int ctr_agree_check_(ctr_ctx *ctx, int64_t n, const int32_t *a, const int32_t *b)
{
    if (ctx->status != CTR_OK) return 0;
    if (n >= 0 && n <= INT32_MAX && (n == 0 || (a && b))) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "agreement: clusters and labels of 0..%ld points must be given, "
              "got %ld points%s", (long)INT32_MAX, (long)n, a && b ? "" : " at NULL");
    return 0;
}

CTR_API int ctr_agreement_measure(ctr_ctx *ctx, int64_t n, const int32_t *clusters,
                                  const int32_t *labels, ctr_agreement *out)
{
    ctr_agree_ g;
    ctr_agree_sums_ sums;
    ctr_bag_ bag;
    int64_t *begin, *order, *cell;
    memset(out, 0, sizeof *out);
    if (!ctr_agree_check_(ctx, n, clusters, labels)) return 0;
    ctr_bag_open_(&bag, ctx);
    if (ctr_agree_open_(&g, &bag, n, clusters, labels) && g.n > 0) {
        begin = ctr_bag_i64_(&bag, g.parts[0] + 1, 1);
        order = ctr_bag_i64_(&bag, g.n, 1);
        cell = ctr_bag_i64_(&bag, g.parts[1], 1);
        if (ctx->status == CTR_OK) {
            memset(cell, 0, (size_t)g.parts[1] * sizeof *cell);
            ctr_agree_sort_(&g, begin, order);
            sums = ctr_agree_cells_(&g, begin, order, cell);
            ctr_agree_measure_(&g, &sums, out);
        }
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ---- the Hungarian algorithm ----

   Rows are taken in one after another; each time the cheapest path that frees a column is found as
   Dijkstra finds it, over costs that potentials keep non-negative:  cost_ij - u_i - v_j >= 0, and
   = 0 on the matching. All in integers, so the result is exact. */
typedef struct ctr_match_ {
    int64_t rows, columns;     /* rows <= columns */
    const int32_t *gain;       /* [rows, columns]; cost = -gain */
    int64_t *u, *v;            /* [rows], [columns] potentials */
    int64_t *least;            /* [columns] cheapest way to a column so far */
    int32_t *row, *from;       /* [columns + 1] whose column it is or -1; where a path came from */
    char *done;                /* [columns + 1] */
} ctr_match_;

/* Takes row r in. Column `columns` stands for the beginning of the path. */
CTR_PRIVATE_ void ctr_match_row_(ctr_match_ *m, int64_t r)
{
    int64_t j, column = m->columns, next;
    m->row[column] = (int32_t)r;
    for (j = 0; j <= m->columns; j++) m->done[j] = 0;
    for (j = 0; j < m->columns; j++) m->least[j] = INT64_MAX;
    while (m->row[column] >= 0) {
        int64_t i = m->row[column], step = INT64_MAX;
        m->done[column] = 1;
        for (next = -1, j = 0; j < m->columns; j++) {
            int64_t way = -(int64_t)m->gain[i * m->columns + j] - m->u[i] - m->v[j];
            if (m->done[j]) continue;
            if (way < m->least[j]) {
                m->least[j] = way;
                m->from[j] = (int32_t)column;
            }
            if (m->least[j] < step) {
                step = m->least[j];
                next = j;
            }
        }
        for (j = 0; j < m->columns; j++) {
            if (m->done[j]) {
                m->u[m->row[j]] += step;
                m->v[j] -= step;
            } else {
                m->least[j] -= step;
            }
        }
        m->u[r] += step; /* the beginning's row */
        column = next;
    }
    for (; column != m->columns; column = next) { /* along the path each column gets a new row */
        next = m->from[column];
        m->row[column] = m->row[next];
    }
}

CTR_PRIVATE_ int ctr_match_run_(ctr_match_ *m, ctr_bag_ *bag)
{
    int64_t i;
    m->u = ctr_bag_i64_(bag, m->rows, 1);
    m->v = ctr_bag_i64_(bag, m->columns, 1);
    m->least = ctr_bag_i64_(bag, m->columns, 1);
    m->row = ctr_bag_i32_(bag, m->columns + 1, 1);
    m->from = ctr_bag_i32_(bag, m->columns + 1, 1);
    m->done = (char *)ctr_bag_take_(bag, m->columns + 1, 1, 1);
    if (bag->ctx->status != CTR_OK) return 0;
    for (i = 0; i < m->rows; i++) m->u[i] = 0;
    for (i = 0; i < m->columns; i++) {
        m->v[i] = 0;
        m->row[i] = -1;
    }
    for (i = 0; i < m->rows; i++) ctr_match_row_(m, i);
    return 1;
}

CTR_API int ctr_agreement_match(ctr_ctx *ctx, int64_t n, const int32_t *clusters,
                                const int32_t *labels, int32_t *match, double *accuracy)
{
    ctr_agree_ g;
    ctr_match_ m;
    ctr_bag_ bag;
    int32_t *gain;
    int64_t i, hits = 0;
    int rows; /* which side has fewer parts */
    *accuracy = 0;
    if (!ctr_agree_check_(ctx, n, clusters, labels)) return 0;
    ctr_bag_open_(&bag, ctx);
    if (ctr_agree_open_(&g, &bag, n, clusters, labels)) {
        for (i = 0; match && i < g.limit[0]; i++) match[i] = -1;
        rows = g.parts[1] < g.parts[0];
        m.rows = g.parts[rows];
        m.columns = g.parts[!rows];
        gain = ctr_bag_i32_(&bag, m.rows, m.columns);
        m.gain = gain;
        for (i = 0; gain && i < m.rows * m.columns; i++) gain[i] = 0;
        for (i = 0; gain && i < g.n; i++) gain[g.part[rows][i] * m.columns + g.part[!rows][i]]++;
        if (g.n > 0 && ctr_match_run_(&m, &bag)) {
            for (i = 0; i < m.columns; i++) {
                int64_t r = m.row[i], cluster = rows ? i : r, label = rows ? r : i;
                if (r < 0) continue;
                hits += gain[r * m.columns + i];
                if (match) match[g.name[0][cluster]] = g.name[1][label];
            }
            *accuracy = (double)hits / (double)g.n;
        }
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ------------------------------------------------------------------------------------------------
   >>LOSS
   ---------------------------------------------------------------------------------------------- */

/* ---- the kernel verb ------------------------------------------------------------------------- */

/* Anchor i of m: s_ij = scale x_i . x_j, lse_i = log sum_{j != i} exp(s_ij); its own pair never
   enters. loss_i = lse_i - mean of s_ij over its positives j (ids_j = ids_i, j != i), and loss is
   the mean over the anchors that have a positive. */
typedef struct ctr_anchor_ {
    double sum;          /* of exp(s_ij - shift) */
    double near, far;    /* sum of x_i . x_j over the positives, and over the negatives */
    ctr_real shift;      /* what keeps exp in its range: lse_i = shift + log(sum) */
    ctr_real max, best;  /* the largest x_i . x_j of all, and of the positives */
    ctr_real count;      /* positives */
} ctr_anchor_;

typedef struct ctr_contrast_ {
    int64_t m, d, rows;               /* rows: anchors in a chunk */
    const int32_t *ids;               /* [m] */
    const ctr_real *x;                /* [m, d] */
    ctr_real scale;
    ctr_anchor_ *anchors;             /* [m], forward */
    const ctr_real *lse, *positives;  /* [m], backward, from here on */
    ctr_real share;                   /* d loss / anchors that have a positive */
    ctr_real *dx;                     /* [m, d] */
    int acc;
} ctr_contrast_;

CTR_PRIVATE_ void ctr_contrast_clear_(const ctr_contrast_ *c, ctr_real shift)
{
    int64_t i;
    memset(c->anchors, 0, (size_t)c->m * sizeof *c->anchors);
    for (i = 0; i < c->m; i++) {
        c->anchors[i].shift = shift;
        c->anchors[i].max = c->anchors[i].best = CTR_R(-1e30);
    }
}

/* The anchors' numbers and their means, in one order whoever filled them. */
CTR_PRIVATE_ void ctr_contrast_finish_(const ctr_contrast_ *c, ctr_real *lse, ctr_real *positives,
                                       ctr_real *out)
{
    double loss = 0, anchors = 0, right = 0, near = 0, far = 0, pairs = 0, scale = (double)c->scale;
    double others = (double)c->m * (double)(c->m - 1);
    int64_t i;
    for (i = 0; i < c->m; i++) {
        const ctr_anchor_ *a = &c->anchors[i];
        double count = (double)a->count;
        lse[i] = c->m > 1 ? (ctr_real)((double)a->shift + log(a->sum)) : 0;
        positives[i] = a->count;
        near += a->near;
        far += a->far;
        if (!(count > 0)) continue;
        pairs += count;
        anchors += 1;
        loss += (double)a->shift + log(a->sum) - scale * a->near / count;
        right += a->best >= a->max;
    }
    out[0] = (ctr_real)(anchors > 0 ? loss / anchors : 0);
    out[1] = (ctr_real)anchors;
    out[2] = (ctr_real)(anchors > 0 ? right / anchors : 0);
    out[3] = (ctr_real)(pairs > 0 ? scale * near / pairs : 0);
    out[4] = (ctr_real)(others > pairs ? scale * far / (others - pairs) : 0);
}

/* The reference, forward: one pair after the other; a larger s than before rescales the sum. */
CTR_PRIVATE_ void ctr_contrast_plain_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_contrast_ *c = (const ctr_contrast_ *)arg;
    int64_t i, j, end = CTR_MIN_((chunk + 1) * c->rows, c->m);
    (void)worker;
    for (i = chunk * c->rows; i < end; i++) {
        ctr_anchor_ *a = &c->anchors[i];
        for (j = 0; j < c->m; j++) {
            ctr_real dot, s;
            if (j == i) continue;
            dot = ctr_dot_(c->x + i * c->d, c->x + j * c->d, c->d);
            s = c->scale * dot;
            if (s > a->shift) {
                a->sum = a->sum * exp((double)a->shift - (double)s) + 1;
                a->shift = s;
            } else {
                a->sum += exp((double)s - (double)a->shift);
            }
            a->max = dot > a->max ? dot : a->max;
            if (c->ids[j] == c->ids[i]) {
                a->near += (double)dot;
                a->best = dot > a->best ? dot : a->best;
                a->count += 1;
            } else {
                a->far += (double)dot;
            }
        }
    }
}

/* The reference, backward. With g_ij = d loss / d s_ij
       = share (exp(s_ij - lse_i) - [j positive] / positives_i), 0 where positives_i = 0,
   row i stands in s_ij and in s_ji = s_ij, so dx_i = scale sum_{j != i} (g_ij + g_ji) x_j. */
CTR_PRIVATE_ void ctr_contrast_plain_grad_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_contrast_ *c = (const ctr_contrast_ *)arg;
    int64_t i, j, k, end = CTR_MIN_((chunk + 1) * c->rows, c->m);
    (void)worker;
    for (i = chunk * c->rows; i < end; i++) {
        const ctr_real *x = c->x + i * c->d;
        ctr_real *dx = c->dx + i * c->d;
        if (!c->acc) memset(dx, 0, (size_t)c->d * sizeof *dx);
        for (j = 0; j < c->m; j++) {
            const ctr_real *y = c->x + j * c->d;
            ctr_real s, g = 0;
            if (j == i) continue;
            s = c->scale * ctr_dot_(x, y, c->d);
            if (c->positives[i] > 0) g += ctr_exp_(s - c->lse[i]);
            if (c->positives[j] > 0) g += ctr_exp_(s - c->lse[j]);
            if (c->ids[j] == c->ids[i]) g -= 2 / c->positives[i];
            g *= c->share * c->scale;
            for (k = 0; k < c->d; k++) dx[k] += g * y[k];
        }
    }
}

CTR_PRIVATE_ void ctr_contrast_plain_(ctr_ctx *ctx, ctr_contrast_ *c, ctr_job_fn job)
{
    c->rows = ctr_vec_rows_(c->m * c->d);
    ctr_parallel_(ctx, (c->m + c->rows - 1) / c->rows, job, c);
}

#if CTR_GEMM_AVX2_

/* The fast one never has more of the similarities in memory than one tile a thread, [192, 192] at
   most: memory grows with m d.

   - Rows are put in the order of their ids. The positives of a row are then neighbours, and no loop
     over pairs looks at ids.
   - s_ij = s_ji: a tile of blocks I and J, I <= J, serves the anchors of both, and both gradients.
     Blocks are met in rounds: round r has the pairs with I + J = r modulo their number, which share
     no block. So no two jobs write to the same anchor, and each anchor's sums have one order,
     whatever the number of threads.
   - With b the largest s_ii, |s_ij| <= b. As long as 2 b <= 60, every exp(s_ij - b) is above e^-60
     and none is lost, so one shift serves all anchors and one exp serves both sides of a pair: in
     the gradient exp(s_ij - lse_i) + exp(s_ij - lse_j) = exp(s_ij - b) (w_i + w_j), w_i = exp(b -
     lse_i). For unit rows that is T >= 1/30. Colder, the terms of one anchor could all be lost for
     the sake of another's, so each has the largest s it has met for its own shift: two exps. */
#define CTR_CONTRAST_BLOCK_ 192 /* rows of a block at most: a multiple of 6 and of 16 */
#define CTR_CONTRAST_LINE_ (CTR_CONTRAST_BLOCK_ + 16) /* numbers from row to row of a tile: 13 cache
                                                         lines, so that columns spread over L1 */
#define CTR_CONTRAST_RANGE_ 60.0f

typedef struct ctr_contrast_fast_ {
    ctr_contrast_ c;
    int64_t block, blocks, round;
    int one_shift;
    float bound;                  /* b */
    float mask;                   /* a similarity whose exp is 0 */
    int32_t *order, *spare;       /* [m] rows by id */
    int32_t *first, *last;        /* [m] where the id of the row at this place begins and ends */
    float *weight;                /* [m] by place, for the gradient: w_i, or lse_i */
    float *across;                /* [m/16][d][16]: the rows as panels of B in s = x x' */
    float *along;                 /* [d/16][m][16]: and in dx = g x */
    float *tiles;                 /* a worker's own [block][CTR_CONTRAST_LINE_] */
} ctr_contrast_fast_;

/* One tile: places i0 .. i0 + ni - 1 by j0 .. j0 + nj - 1. */
typedef struct ctr_contrast_tile_ {
    int64_t i0, ni, j0, nj;
    int64_t width;                /* nj rounded up to whole panels */
    int same;                     /* i0 = j0: it has each pair twice, so it serves its rows alone */
    float *s;                     /* [ni][CTR_CONTRAST_LINE_] */
} ctr_contrast_tile_;

/* order = the rows by id (in no meaningful order of ids), each id's in their own order. */
CTR_PRIVATE_ void ctr_contrast_group_(const ctr_contrast_fast_ *f)
{
    const int32_t *ids = f->c.ids;
    int64_t at[257], i, j, m = f->c.m;
    int shift, k;
    for (i = 0; i < m; i++) f->order[i] = (int32_t)i;
    for (shift = 0; shift < 32; shift += 8) {
        memset(at, 0, sizeof at);
        for (i = 0; i < m; i++) at[1 + ((uint32_t)ids[i] >> shift & 255u)]++;
        if (at[1 + ((uint32_t)ids[0] >> shift & 255u)] == m) continue; /* the same in all */
        for (k = 0; k < 256; k++) at[k + 1] += at[k];
        for (i = 0; i < m; i++)
            f->spare[at[(uint32_t)ids[f->order[i]] >> shift & 255u]++] = f->order[i];
        memcpy(f->order, f->spare, (size_t)m * sizeof *f->order);
    }
    for (i = 0; i < m; i = j) {
        for (j = i; j < m && ids[f->order[j]] == ids[f->order[i]]; j++) f->first[j] = (int32_t)i;
        for (k = (int)i; k < j; k++) f->last[k] = (int32_t)j;
    }
}

/* Packs sixteen rows, sixteen columns at a time; what is missing at the edges is zero. */
CTR_PRIVATE_ void ctr_contrast_pack_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_contrast_fast_ *f = (const ctr_contrast_fast_ *)arg;
    const int64_t m = f->c.m, d = f->c.d, lines = (m + 15) / 16 * 16;
    float square[256];
    int64_t i, p, width;
    (void)worker;
    for (p = 0; p < d; p += 16) {
        width = CTR_MIN_(16, d - p);
        memset(square, 0, sizeof square);
        for (i = 0; i < 16 && chunk * 16 + i < m; i++)
            memcpy(square + 16 * i, f->c.x + f->order[chunk * 16 + i] * d + p,
                   (size_t)width * sizeof *square);
        ctr_gemm_turn_(square, 16, 16, width, f->across + (chunk * d + p) * 16, 16);
        if (f->along) memcpy(f->along + (p * lines + chunk * 256), square, sizeof square);
    }
}

/* The largest x_i . x_i. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ float ctr_contrast_longest_(const ctr_contrast_ *c)
{
    float most = 0, dot;
    int64_t i;
    for (i = 0; i < c->m; i++) {
        dot = ctr_dot_(c->x + i * c->d, c->x + i * c->d, c->d);
        most = dot > most || dot != dot ? dot : most; /* not a number: no bound */
        if (most != most) break;
    }
    return most;
}

/* Memory and what both directions begin with. Returns 0 with an error. */
CTR_PRIVATE_ int ctr_contrast_open_(ctr_ctx *ctx, ctr_contrast_fast_ *f, const ctr_contrast_ *c,
                                    int gradient)
{
    const int64_t m = c->m, lines = (m + 15) / 16 * 16, panels = (c->d + 15) / 16;
    int64_t tile, floats;
    f->c = *c;
    f->block = CTR_MIN_((m / 12 + 47) / 48 * 48 + 48 * (m < 12), CTR_CONTRAST_BLOCK_);
    f->blocks = (m + f->block - 1) / f->block;
    tile = f->block * CTR_CONTRAST_LINE_;
    floats = ctr_threads_(ctx) * tile + lines * c->d + (gradient ? 16 * panels * lines + lines : 0);
    f->c.anchors = (ctr_anchor_ *)ctr_scratch_(
        ctx, (gradient ? 0 : (size_t)m * sizeof *c->anchors) + (size_t)floats * sizeof(float) +
                 (size_t)(4 * m) * sizeof(int32_t));
    if (!f->c.anchors) return 0;
    f->tiles = (float *)(void *)(f->c.anchors + (gradient ? 0 : m));
    f->across = f->tiles + ctr_threads_(ctx) * tile;
    f->along = gradient ? f->across + lines * c->d : NULL;
    f->weight = gradient ? f->along + 16 * panels * lines : NULL;
    f->order = (int32_t *)(void *)(f->tiles + floats);
    f->spare = f->order + m;
    f->first = f->spare + m;
    f->last = f->first + m;
    ctr_contrast_group_(f);
    ctr_parallel_(ctx, lines / 16, ctr_contrast_pack_job_, f);
    f->bound = c->scale * ctr_contrast_longest_(c);
    f->one_shift = 2 * f->bound <= CTR_CONTRAST_RANGE_;
    f->mask = -1e30f / (c->scale > 1 ? c->scale : 1);
    return 1;
}

/* The pairs of blocks of a round are I + J = round, or blocks + round, with I <= J. */
CTR_PRIVATE_ void ctr_contrast_rounds_(ctr_ctx *ctx, ctr_contrast_fast_ *f, ctr_job_fn job)
{
    for (f->round = 0; f->round < f->blocks; f->round++)
        ctr_parallel_(ctx, f->round / 2 + 1 + (f->blocks + f->round) / 2 - f->round, job, f);
}

/* Finds the chunk's tile and computes x_i . x_j for it; *chunk's first half is I + J = round. */
CTR_PRIVATE_ ctr_contrast_tile_ ctr_contrast_tile_run_(const ctr_contrast_fast_ *f, int64_t chunk,
                                                       int worker)
{
    const int64_t half = f->round / 2 + 1, wrap = chunk >= half;
    const int64_t i = wrap ? f->round + 1 + chunk - half : chunk;
    const int64_t j = f->round - i + (wrap ? f->blocks : 0);
    const float *rows[CTR_CONTRAST_BLOCK_];
    float *outs[CTR_CONTRAST_BLOCK_];
    ctr_gemm_block_ q;
    ctr_contrast_tile_ t;
    int64_t r;
    t.i0 = i * f->block;
    t.j0 = j * f->block;
    t.ni = CTR_MIN_(f->block, f->c.m - t.i0);
    t.nj = CTR_MIN_(f->block, f->c.m - t.j0);
    t.width = (t.nj + 15) / 16 * 16;
    t.same = i == j;
    t.s = f->tiles + worker * f->block * CTR_CONTRAST_LINE_;
    for (r = 0; r < t.ni; r++) {
        rows[r] = f->c.x + f->order[t.i0 + r] * f->c.d;
        outs[r] = t.s + r * CTR_CONTRAST_LINE_;
    }
    q.rows = rows;
    q.outs = outs;
    q.m = t.ni;
    q.n = t.width;
    q.taps = 1;
    q.k = f->c.d;
    q.b = f->across + t.j0 * f->c.d;
    q.panel = f->c.d * 16;
    q.first = 0;
    q.last = t.width / 16;
    q.acc = 0;
    ctr_gemm_block_run_(&q);
    return t;
}

/* The positives of the tile's row i are its columns *lo .. *hi - 1 (and maybe i itself). */
CTR_INLINE_ void ctr_contrast_near_(const ctr_contrast_fast_ *f, const ctr_contrast_tile_ *t,
                                    int64_t i, int64_t *lo, int64_t *hi)
{
    int64_t from = f->first[t->i0 + i] - t->j0, to = f->last[t->i0 + i] - t->j0;
    *lo = CTR_MIN_(CTR_MAX_(from, 0), t->nj);
    *hi = CTR_MIN_(CTR_MAX_(to, 0), t->nj);
}

/* An anchor meets x_i . x_j = dot, the largest of a tile. What was summed before the first one
   vanishes by the factor exp(-1e30). */
CTR_INLINE_ void ctr_contrast_raise_(const ctr_contrast_fast_ *f, ctr_anchor_ *a, float dot)
{
    float shift = f->c.scale * dot;
    if (!(dot > a->max)) return;
    a->max = dot;
    if (f->one_shift) return;
    a->sum *= exp((double)a->shift - (double)shift);
    a->shift = shift;
}

/* The shifts of a tile's anchors, before its pairs are summed. */
CTR_INLINE_ void ctr_contrast_maxima_(const ctr_contrast_fast_ *f, const ctr_contrast_tile_ *t)
{
    float columns[CTR_CONTRAST_BLOCK_];
    int64_t i, j;
    for (j = 0; j < t->width; j++) columns[j] = f->mask;
    for (i = 0; i < t->ni; i++) {
        const float *s = t->s + i * CTR_CONTRAST_LINE_;
        for (j = 0; j < t->width; j++) columns[j] = s[j] > columns[j] ? s[j] : columns[j];
        ctr_contrast_raise_(f, &f->c.anchors[f->order[t->i0 + i]], ctr_row_max_(s, t->width));
    }
    for (j = 0; j < t->nj && !t->same; j++)
        ctr_contrast_raise_(f, &f->c.anchors[f->order[t->j0 + j]], columns[j]);
}

/* Sums of exp for the anchors of the rows and of the columns. */
CTR_INLINE_ void ctr_contrast_sums_(const ctr_contrast_fast_ *f, const ctr_contrast_tile_ *t)
{
    float sums[CTR_CONTRAST_BLOCK_], shifts[CTR_CONTRAST_BLOCK_], e[CTR_CONTRAST_BLOCK_];
    const float scale = f->c.scale;
    int64_t i, j;
    for (j = 0; j < t->width; j++) {
        sums[j] = 0;
        shifts[j] = f->c.anchors[f->order[t->j0 + CTR_MIN_(j, t->nj - 1)]].shift;
    }
    for (i = 0; i < t->ni; i++) {
        const float *s = t->s + i * CTR_CONTRAST_LINE_;
        ctr_anchor_ *a = &f->c.anchors[f->order[t->i0 + i]];
        const float shift = a->shift;
        for (j = 0; j < t->width; j++) e[j] = ctr_exp_(s[j] * scale - shift);
        a->sum += (double)ctr_row_sum_(e, t->width);
        if (t->same) continue;
        if (f->one_shift)
            for (j = 0; j < t->width; j++) sums[j] += e[j];
        else
            for (j = 0; j < t->width; j++) sums[j] += ctr_exp_(s[j] * scale - shifts[j]);
    }
    for (j = 0; j < t->nj && !t->same; j++)
        f->c.anchors[f->order[t->j0 + j]].sum += (double)sums[j];
}

/* Positive and negative pairs. Of the negatives only the sum over all anchors is asked for, so a
   pair's two go to the same one. */
CTR_INLINE_ void ctr_contrast_pairs_(const ctr_contrast_fast_ *f, const ctr_contrast_tile_ *t)
{
    int64_t i, j, lo, hi;
    for (i = 0; i < t->ni; i++) {
        const float *s = t->s + i * CTR_CONTRAST_LINE_;
        ctr_anchor_ *a = &f->c.anchors[f->order[t->i0 + i]];
        ctr_contrast_near_(f, t, i, &lo, &hi);
        a->far += (t->same ? 1 : 2) *
                  ((double)ctr_row_sum_(s, lo) + (double)ctr_row_sum_(s + hi, t->nj - hi));
        for (j = lo; j < hi; j++) {
            ctr_anchor_ *b = &f->c.anchors[f->order[t->j0 + j]];
            if (a == b) continue;
            a->near += (double)s[j];
            a->best = s[j] > a->best ? s[j] : a->best;
            a->count += 1;
            if (t->same) continue;
            b->near += (double)s[j];
            b->best = s[j] > b->best ? s[j] : b->best;
            b->count += 1;
        }
    }
}

CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_contrast_fast_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_contrast_fast_ *f = (const ctr_contrast_fast_ *)arg;
    const ctr_contrast_tile_ t = ctr_contrast_tile_run_(f, chunk, worker);
    int64_t i, j;
    for (i = 0; i < t.ni; i++) {
        float *s = t.s + i * CTR_CONTRAST_LINE_;
        for (j = t.nj; j < t.width; j++) s[j] = f->mask;
        if (t.same) s[i] = f->mask;
    }
    ctr_contrast_maxima_(f, &t);
    ctr_contrast_sums_(f, &t);
    ctr_contrast_pairs_(f, &t);
}

/* The tile of similarities becomes scale (g_ij + g_ji), see the reference. */
CTR_TARGET_AVX2_ CTR_PRIVATE_ void ctr_contrast_slopes_(const ctr_contrast_fast_ *f,
                                                        const ctr_contrast_tile_ *t)
{
    const float scale = f->c.scale, factor = f->c.share * scale, bound = f->bound;
    const float *weights = f->weight + t->j0;
    int64_t i, j, lo, hi;
    for (i = 0; i < t->ni; i++) {
        float *s = t->s + i * CTR_CONTRAST_LINE_, weight = f->weight[t->i0 + i], pull;
        if (f->one_shift)
            for (j = 0; j < t->nj; j++)
                s[j] = factor * ctr_exp_(s[j] * scale - bound) * (weight + weights[j]);
        else
            for (j = 0; j < t->nj; j++)
                s[j] = factor * (ctr_exp_(s[j] * scale - weight) +
                                 ctr_exp_(s[j] * scale - weights[j]));
        ctr_contrast_near_(f, t, i, &lo, &hi);
        pull = hi > lo ? 2 * factor / f->c.positives[f->order[t->i0 + i]] : 0;
        for (j = lo; j < hi; j++) s[j] -= pull;
        if (t->same) s[i] = 0;
    }
}

/* dx of block I += g times the rows of J; and dx of block J += g' times the rows of I. */
CTR_PRIVATE_ void ctr_contrast_fast_grad_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_contrast_fast_ *f = (const ctr_contrast_fast_ *)arg;
    const ctr_contrast_tile_ t = ctr_contrast_tile_run_(f, chunk, worker);
    const float *rows[CTR_CONTRAST_BLOCK_];
    float *outs[CTR_CONTRAST_BLOCK_];
    ctr_gemm_block_ q;
    int64_t r;
    ctr_contrast_slopes_(f, &t);
    q.rows = rows;
    q.outs = outs;
    q.n = f->c.d;
    q.taps = 1;
    q.panel = (f->c.m + 15) / 16 * 256;
    q.first = 0;
    q.last = (f->c.d + 15) / 16;
    q.acc = 1;
    for (r = 0; r < t.ni; r++) {
        rows[r] = t.s + r * CTR_CONTRAST_LINE_;
        outs[r] = f->c.dx + f->order[t.i0 + r] * f->c.d;
    }
    q.m = t.ni;
    q.k = t.nj;
    q.b = f->along + t.j0 * 16;
    ctr_gemm_block_run_(&q);
    if (t.same) return;
    for (r = 0; r < t.nj; r++) outs[r] = f->c.dx + f->order[t.j0 + r] * f->c.d;
    q.m = t.nj;
    q.k = t.ni;
    q.b = f->along + t.i0 * 16;
    ctr_gemm_turned_run_(&q);
}

CTR_PRIVATE_ void ctr_contrast_fast_forward_(ctr_ctx *ctx, ctr_contrast_ *c)
{
    ctr_contrast_fast_ f;
    if (!ctr_contrast_open_(ctx, &f, c, 0)) return;
    c->anchors = f.c.anchors;
    ctr_contrast_clear_(c, f.one_shift ? f.bound : -1e30f);
    ctr_contrast_rounds_(ctx, &f, ctr_contrast_fast_job_);
}

CTR_PRIVATE_ void ctr_contrast_fast_backward_(ctr_ctx *ctx, const ctr_contrast_ *c)
{
    ctr_contrast_fast_ f;
    int64_t i, row;
    if (!ctr_contrast_open_(ctx, &f, c, 1)) return;
    for (i = 0; i < c->m; i++) {
        row = f.order[i];
        if (c->positives[row] > 0)
            f.weight[i] = f.one_shift ? expf(f.bound - c->lse[row]) : c->lse[row];
        else
            f.weight[i] = f.one_shift ? 0 : 1e30f;
    }
    if (!c->acc) memset(c->dx, 0, (size_t)(c->m * c->d) * sizeof *c->dx);
    ctr_contrast_rounds_(ctx, &f, ctr_contrast_fast_grad_job_);
}

#endif /* CTR_GEMM_AVX2_ */

CTR_PRIVATE_ ctr_contrast_ ctr_contrast_args_(int64_t m, int64_t d, const int32_t *ids,
                                              const ctr_real *x, ctr_real scale)
{
    ctr_contrast_ c;
    memset(&c, 0, sizeof c);
    c.m = m;
    c.d = d;
    c.ids = ids;
    c.x = x;
    c.scale = scale;
    return c;
}

CTR_API void ctr_k_contrast(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                            const ctr_real *x, ctr_real scale, ctr_real *lse, ctr_real *positives,
                            ctr_real *out)
{
    ctr_contrast_ c = ctr_contrast_args_(m, d, ids, x, scale);
    CTR_VERB_(contrast, (ctx, m, d, ids, x, scale, lse, positives, out))
#if CTR_GEMM_AVX2_
    if (m > 0 && d > 0 && ctr_kernels_(ctx) >= CTR_KERNELS_AVX2)
        ctr_contrast_fast_forward_(ctx, &c);
    else
#endif
    {
        c.anchors = (ctr_anchor_ *)ctr_scratch_(ctx, (size_t)m * sizeof *c.anchors);
        if (!c.anchors) return;
        ctr_contrast_clear_(&c, CTR_R(-1e30));
        ctr_contrast_plain_(ctx, &c, ctr_contrast_plain_job_);
    }
    if (c.anchors) ctr_contrast_finish_(&c, lse, positives, out);
}

CTR_API void ctr_k_contrast_grad(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids,
                                 const ctr_real *x, ctr_real scale, const ctr_real *lse,
                                 const ctr_real *positives, const ctr_real *out,
                                 const ctr_real *dloss, ctr_real *dx, int acc)
{
    ctr_contrast_ c = ctr_contrast_args_(m, d, ids, x, scale);
    CTR_VERB_(contrast_grad, (ctx, m, d, ids, x, scale, lse, positives, out, dloss, dx, acc))
    c.lse = lse;
    c.positives = positives;
    c.share = out[1] > 0 ? dloss[0] / out[1] : 0;
    c.dx = dx;
    c.acc = acc;
#if CTR_GEMM_AVX2_
    if (m > 0 && d > 0 && ctr_kernels_(ctx) >= CTR_KERNELS_AVX2) {
        ctr_contrast_fast_backward_(ctx, &c);
        return;
    }
#endif
    ctr_contrast_plain_(ctx, &c, ctr_contrast_plain_grad_job_);
}

/* ---- the operation and the losses ------------------------------------------------------------ */

CTR_PRIVATE_ void ctr_contrast_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    int64_t m = x->shape[0];
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_contrast_grad(ctx, m, x->shape[1], n->index, ctr_f_(x), n->f[0], n->saved,
                            n->saved + m, n->saved2, n->out->grad, grad, acc);
}

/* x [m, d] and an id a row: rows with the same id are positives of each other.
   out [CTR_CONTRAST_OUT]: the verb's numbers, copied to the host for the report */
CTR_PRIVATE_ ctr_tensor *ctr_contrast_op_(ctr_ctx *ctx, ctr_tensor *x, const ctr_tensor *ids,
                                          double scale, ctr_real *out)
{
    ctr_node *n;
    int64_t m = x->shape[0];
    if (!ctr_check_(ctx, "contrast", x, 2)) return &ctx->poison;
    n = ctr_node_begin_(ctx, "contrast", ctr_contrast_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, 0, NULL)) return &ctx->poison;
    n->saved = (ctr_real *)ctr_slab_low_(ctx, (size_t)(2 * m) * sizeof(ctr_real));
    n->saved2 = (ctr_real *)ctr_slab_low_(ctx, CTR_CONTRAST_OUT * sizeof(ctr_real));
    n->index = (const int32_t *)ids->data;
    n->f[0] = (ctr_real)scale;
    if (ctx->status != CTR_OK) return &ctx->poison;
    ctr_k_contrast(ctx, m, x->shape[1], n->index, ctr_f_(x), n->f[0], n->saved, n->saved + m,
                   n->saved2);
    ctr_k_copy(ctx, sizeof(ctr_real), n->saved2, n->out->data);
    if (!ctx->plan) ctr_k_download(ctx, CTR_CONTRAST_OUT * sizeof *out, n->saved2, out);
    return ctr_node_done_(ctx, n);
}

/* ids [views * n]: the image's number, or for labelled images the label. */
CTR_PRIVATE_ ctr_tensor *ctr_loss_ids_(ctr_ctx *ctx, int64_t n, int views, const int32_t *labels)
{
    int64_t m = n * views, i;
    ctr_tensor *t = ctr_tensor_temp(ctx, CTR_I32, 1, &m);
    int32_t *ids;
    if (ctx->status != CTR_OK) return t;
    ids = (int32_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)m * sizeof *ids);
    if (!ids) return &ctx->poison;
    for (i = 0; i < m; i++) {
        int32_t image = (int32_t)(i % n);
        ids[i] = !labels ? image : labels[image] >= 0 ? labels[image] : -2 - image;
    }
    ctr_tensor_write_i32(ctx, t, ids, m);
    return t;
}

/* Both losses; report (or NULL) gets what the similarities tell. */
CTR_PRIVATE_ ctr_tensor *ctr_loss_contrast_(ctr_ctx *ctx, ctr_tensor *z, int views,
                                            const int32_t *labels, double temperature,
                                            ctr_report *report)
{
    const char *name = labels ? "loss_supcon" : "loss_nt_xent";
    ctr_tensor *unit, *loss;
    ctr_real out[CTR_CONTRAST_OUT] = { 0 };
    if (!ctr_check_(ctx, name, z, 2)) return &ctx->poison;
    if (views < 1 || z->shape[0] < 1 || z->shape[0] % views || (!labels && views < 2)) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: %ld rows are not those of %d views (at least %d)", name,
                  (long)z->shape[0], views, labels ? 1 : 2);
        return &ctx->poison;
    }
    if (!ctr_real_finite_((ctr_real)temperature) || !(temperature > 0)) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: the temperature must be above 0, got %g", name,
                  temperature);
        return &ctx->poison;
    }
    unit = ctr_normalize(ctx, z);                                              /* [m, d] */
    loss = ctr_contrast_op_(ctx, unit, ctr_loss_ids_(ctx, z->shape[0] / views, views, labels),
                            1 / temperature, out);
    if (report && ctx->status == CTR_OK) {
        report->active = (double)out[1] / (double)z->shape[0];
        report->accuracy = (double)out[2];
        report->positive = (double)out[3] * temperature;
        report->negative = (double)out[4] * temperature;
    }
    return loss;
}

/* Share of the pairs of different images that have one label; -1 without labels. */
CTR_PRIVATE_ double ctr_loss_false_negatives_(int64_t n, const int32_t *labels)
{
    int64_t i, j, pairs = 0, same = 0;
    for (i = 0; labels && i < n; i++)
        for (j = 0; j < i; j++) {
            if (labels[i] < 0 || labels[j] < 0) continue;
            pairs++;
            same += labels[i] == labels[j];
        }
    return pairs ? (double)same / (double)pairs : -1;
}

CTR_API ctr_tensor *ctr_loss_supcon(ctr_ctx *ctx, ctr_tensor *z, int views, const int32_t *labels,
                                    double temperature)
{
    return ctr_loss_contrast_(ctx, z, views, labels, temperature, NULL);
}


CTR_API ctr_tensor *ctr_loss_nt_xent(ctr_ctx *ctx, ctr_tensor *z, int views, double temperature)
{
    return ctr_loss_supcon(ctx, z, views, NULL, temperature);
}

CTR_API double ctr_loss_nt_xent_chance(int64_t n, int views)
{
    return n * views > 1 ? log((double)(n * views - 1)) : 0;
}

CTR_API double ctr_loss_supcon_flat(ctr_ctx *ctx, int64_t n, int views, int64_t d,
                                    const ctr_real *z, const int32_t *labels, double temperature,
                                    ctr_real *dz)
{
    ctr_tensor *leaf, *loss;
    int64_t shape[2];
    double value = 0;
    shape[0] = n * views;
    shape[1] = d;
    leaf = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_step_begin(ctx);
    ctr_tensor_write(ctx, leaf, z, leaf->size);
    loss = ctr_loss_supcon(ctx, leaf, views, labels, temperature);
    value = (double)ctr_tensor_item(ctx, loss);
    if (dz) {
        ctr_backward(ctx, loss);
        ctr_tensor_read_grad(ctx, leaf, dz, leaf->size);
    }
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, leaf);
    return ctx->status == CTR_OK ? value : 0;
}

CTR_API double ctr_loss_nt_xent_flat(ctr_ctx *ctx, int64_t n, int views, int64_t d,
                                     const ctr_real *z, double temperature, ctr_real *dz)
{
    return ctr_loss_supcon_flat(ctx, n, views, d, z, NULL, temperature, dz);
}

/* ---- what the losses below share ------------------------------------------------------------- */

/* Two matrices of one shape [n, d] with n, d >= 1. */
CTR_PRIVATE_ int ctr_loss_pair_(ctr_ctx *ctx, const char *name, const ctr_tensor *a,
                                const ctr_tensor *b)
{
    if (!ctr_check_(ctx, name, a, 2) || !ctr_check_(ctx, name, b, 2)) return 0;
    if (a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1] || a->size < 1) {
        ctr_fail_shapes_(ctx, name, a, b, "both are [n, d], row by row, n and d at least 1");
        return 0;
    }
    return 1;
}

/* A number whose inverse is needed as well, so above 0 and not absurdly small. */
CTR_PRIVATE_ int ctr_loss_above_(ctr_ctx *ctx, const char *name, const char *what, double value)
{
    if (ctx->status != CTR_OK) return 0;
    if (ctr_real_finite_((ctr_real)value) && value > 0 && ctr_real_finite_((ctr_real)(1 / value)))
        return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "%s: the %s must be above 0, got %g", name, what, value);
    return 0;
}

/* 0..n-1, or n times 0, in host memory until the step ends. */
CTR_PRIVATE_ int32_t *ctr_loss_count_(ctr_ctx *ctx, int64_t n, int up)
{
    int32_t *ids;
    int64_t i;
    if (ctx->status != CTR_OK) return NULL;
    ids = (int32_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)n * sizeof *ids);
    for (i = 0; ids && i < n; i++) ids[i] = up ? (int32_t)i : 0;
    return ids;
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_index_(ctr_ctx *ctx, int64_t n, const int32_t *ids)
{
    ctr_tensor *t = ctr_tensor_temp(ctx, CTR_I32, 1, &n);
    if (ctx->status == CTR_OK) ctr_tensor_write_i32(ctx, t, ids, n);
    return t;
}

/* What the report says of logits [n, m] = cosines / temperature: j is a positive of i if their ids
   are equal (cols NULL: if j is i's id). A row hits if its largest logit is a positive's alone: in
   an embedding that has collapsed all are equal, and that is no success. */
CTR_PRIVATE_ void ctr_loss_hits_(ctr_ctx *ctx, const ctr_tensor *logits, const int32_t *rows,
                                 const int32_t *cols, double temperature, ctr_report *report)
{
    int64_t n = logits->shape[0], m = logits->shape[1], i, j;
    double sum[2] = { 0, 0 }, count[2] = { 0, 0 }, hits = 0;
    ctr_real *row;
    if (!report || ctx->status != CTR_OK || ctx->plan) return;
    row = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, (size_t)m * sizeof *row);
    for (i = 0; row && i < n && ctx->status == CTR_OK; i++) {
        ctr_real best[2] = { CTR_R(-1e30), CTR_R(-1e30) };
        ctr_k_download(ctx, (size_t)m * sizeof *row, ctr_f_(logits) + i * m, row);
        if (!cols) { /* one positive: whole runs of negatives on either side, a queue's is long */
            int64_t at = rows[i], rest = m - at - 1;
            best[1] = row[at];
            if (at > 0) best[0] = ctr_row_max_(row, at);
            if (rest > 0) best[0] = CTR_MAX_(best[0], ctr_row_max_(row + at + 1, rest));
            sum[0] += (double)ctr_row_sum_(row, at) + (double)ctr_row_sum_(row + at + 1, rest);
            sum[1] += (double)row[at];
            count[0] += (double)(m - 1);
            count[1] += 1;
        }
        for (j = 0; cols && j < m; j++) {
            int same = rows[i] == cols[j];
            sum[same] += (double)row[j];
            count[same] += 1;
            if (row[j] > best[same]) best[same] = row[j];
        }
        hits += best[1] > best[0];
    }
    if (count[0] > 0) report->accuracy = hits / (double)n;
    if (count[0] > 0) report->negative = temperature * sum[0] / count[0];
    if (count[1] > 0) report->positive = temperature * sum[1] / count[1];
}

/* ---- one positive among many: InfoNCE -------------------------------------------------------- */

/* [q . k | q . negatives^T] / T of unit rows, or q k^T / T */
CTR_PRIVATE_ ctr_tensor *ctr_infonce_logits_(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k,
                                             const ctr_tensor *negatives, double temperature)
{
    ctr_tensor *unit = ctr_scale(ctx, ctr_normalize(ctx, q), 1 / temperature); /* [n, d] */
    ctr_tensor *key = ctr_normalize(ctx, k), *part[2];
    int64_t column[2] = { -1, 1 };
    if (!negatives) return ctr_matmul(ctx, unit, 0, key, 1);                   /* [n, n] */
    part[0] = ctr_reshape(ctx, ctr_sum(ctx, ctr_mul(ctx, unit, key), 1), 2, column);
    if (negatives->shape[0] == 0) return part[0];
    part[1] = ctr_matmul(ctx, unit, 0, ctr_view_(ctx, negatives, 2, negatives->shape), 1);
    return ctr_concat(ctx, 2, part, 1);                                        /* [n, 1 + m] */
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_infonce_(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k,
                                           const ctr_tensor *negatives, double temperature,
                                           ctr_report *report)
{
    const char *name = "loss_infonce";
    ctr_tensor *logits, *target;
    int32_t *ids;
    if (!ctr_loss_pair_(ctx, name, q, k)) return &ctx->poison;
    if (!ctr_loss_above_(ctx, name, "temperature", temperature)) return &ctx->poison;
    if (negatives && !ctr_check_(ctx, name, negatives, 2)) return &ctx->poison;
    if (negatives && negatives->shape[1] != q->shape[1]) {
        ctr_fail_shapes_(ctx, name, q, negatives, "negatives are [m, d] for queries [n, d]");
        return &ctx->poison;
    }
    ids = ctr_loss_count_(ctx, q->shape[0], !negatives);
    if (!ids) return &ctx->poison;
    target = ctr_loss_index_(ctx, q->shape[0], ids);
    logits = ctr_infonce_logits_(ctx, q, k, negatives, temperature);
    ctr_loss_hits_(ctx, logits, ids, NULL, temperature, report);
    return ctr_cross_entropy(ctx, logits, target, -1);
}

CTR_API ctr_tensor *ctr_loss_infonce(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k,
                                     const ctr_tensor *negatives, double temperature)
{
    return ctr_loss_infonce_(ctx, q, k, negatives, temperature, NULL);
}

CTR_API double ctr_loss_infonce_chance(int64_t negatives)
{
    return negatives > 0 ? log(1.0 + (double)negatives) : 0;
}

/* ---- several positives: ids ------------------------------------------------------------------ */

/* Ids [n] on the host under which rows belong together: as given; alone where they are below 0 or
   not given at all. */
CTR_PRIVATE_ int32_t *ctr_loss_groups_(ctr_ctx *ctx, int64_t n, const int32_t *ids)
{
    int32_t *group = ctr_loss_count_(ctx, n, 1);
    int64_t i;
    for (i = 0; ids && group && i < n; i++) group[i] = ids[i] >= 0 ? ids[i] : -2 - (int32_t)i;
    return group;
}

/* A constant [rows, cols] with room for its content on the host, or NULL after an error. */
CTR_PRIVATE_ ctr_tensor *ctr_loss_constant_(ctr_ctx *ctx, int64_t rows, int64_t cols,
                                            ctr_real **host)
{
    int64_t shape[2];
    ctr_tensor *t;
    shape[0] = rows;
    shape[1] = cols;
    t = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
    *host = NULL;
    if (ctx->status == CTR_OK)
        *host = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, (size_t)t->size * sizeof **host);
    return *host ? t : NULL;
}

/* y [n, n]: `same` where the ids are equal, `other` elsewhere; share: `same` is divided by the
   number of equal ids, so that rows and columns sum to it. */
CTR_PRIVATE_ ctr_tensor *ctr_loss_relation_(ctr_ctx *ctx, int64_t n, const int32_t *group,
                                            ctr_real same, ctr_real other, int share)
{
    ctr_real *y;
    ctr_tensor *t = ctr_loss_constant_(ctx, n, n, &y);
    int64_t i, j, count;
    if (!t) return &ctx->poison;
    for (i = 0; i < n; i++) {
        for (j = 0, count = 0; j < n; j++) count += group[j] == group[i];
        for (j = 0; j < n; j++)
            y[i * n + j] = group[j] != group[i] ? other : share ? same / (ctr_real)count : same;
    }
    ctr_tensor_write(ctx, t, y, n * n);
    return t;
}

/* A learnable number. */
CTR_PRIVATE_ int ctr_loss_scalar_(ctr_ctx *ctx, const char *name, const char *what,
                                  const ctr_tensor *t)
{
    char text[64];
    if (!ctr_check_(ctx, name, t, 0)) return 0;
    if (t->size == 1) return 1;
    ctr_fail_(ctx, CTR_E_SHAPE, "%s: the %s is one number, got %s", name, what,
              ctr_shape_text_(t->rank, t->shape, text));
    return 0;
}

/* ---- two modalities: CLIP, SigLIP ------------------------------------------------------------ */

/* exp(s) cos(a_i, b_j), [n, n] */
CTR_PRIVATE_ ctr_tensor *ctr_loss_scaled_(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *b,
                                          ctr_tensor *log_scale)
{
    ctr_tensor *ua = ctr_normalize(ctx, a), *ub = ctr_normalize(ctx, b);
    ctr_tensor *scale = ctr_exp(ctx, log_scale);
    return ctr_mul(ctx, ctr_matmul(ctx, ua, 0, ub, 1), scale);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_clip_(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                        ctr_tensor *log_scale, const int32_t *ids,
                                        ctr_report *report)
{
    const char *name = "loss_clip";
    double value, bound;
    ctr_tensor *logits, *target, *a, *b;
    int32_t *group;
    if (!ctr_loss_pair_(ctx, name, image, text)) return &ctx->poison;
    if (!ctr_loss_scalar_(ctx, name, "log scale", log_scale)) return &ctx->poison;
    group = ctr_loss_groups_(ctx, image->shape[0], ids);
    if (!group) return &ctx->poison;
    value = ctx->plan ? 0 : (double)ctr_tensor_item(ctx, log_scale);
    bound = CTR_MIN_(CTR_MAX_(value, 0.0), log(100.0));
    logits = ctr_add_scalar(ctx, log_scale, bound - value); /* clamped; the gradient passes */
    target = ids ? ctr_loss_relation_(ctx, image->shape[0], group, 1, 0, 1)
                 : ctr_loss_index_(ctx, image->shape[0], group);
    logits = ctr_loss_scaled_(ctx, image, text, logits);
    ctr_loss_hits_(ctx, logits, group, group, exp(-bound), report);
    a = logits;
    b = ctr_transpose(ctx, logits);
    a = ids ? ctr_cross_entropy_soft(ctx, a, target) : ctr_cross_entropy(ctx, a, target, -1);
    b = ids ? ctr_cross_entropy_soft(ctx, b, target) : ctr_cross_entropy(ctx, b, target, -1);
    return ctr_scale(ctx, ctr_add(ctx, a, b), 0.5);
}

CTR_API ctr_tensor *ctr_loss_clip(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                  ctr_tensor *log_scale, const int32_t *ids)
{
    return ctr_loss_clip_(ctx, image, text, log_scale, ids, NULL);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_siglip_(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                          ctr_tensor *log_scale, ctr_tensor *bias,
                                          const int32_t *ids, ctr_report *report)
{
    const char *name = "loss_siglip";
    ctr_tensor *logits, *sign;
    int32_t *group;
    double value;
    if (!ctr_loss_pair_(ctx, name, image, text)) return &ctx->poison;
    if (!ctr_loss_scalar_(ctx, name, "log scale", log_scale)) return &ctx->poison;
    if (!ctr_loss_scalar_(ctx, name, "bias", bias)) return &ctx->poison;
    group = ctr_loss_groups_(ctx, image->shape[0], ids);
    if (!group) return &ctx->poison;
    sign = ctr_loss_relation_(ctx, image->shape[0], group, -1, 1, 0);
    logits = ctr_loss_scaled_(ctx, image, text, log_scale);
    value = report && !ctx->plan ? (double)ctr_tensor_item(ctx, log_scale) : 0;
    ctr_loss_hits_(ctx, logits, group, group, exp(-value), report);
    logits = ctr_softplus(ctx, ctr_mul(ctx, ctr_add(ctx, logits, bias), sign));
    return ctr_scale(ctx, ctr_sum(ctx, logits, -1), 1.0 / (double)image->shape[0]);
}

CTR_API ctr_tensor *ctr_loss_siglip(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text,
                                    ctr_tensor *log_scale, ctr_tensor *bias, const int32_t *ids)
{
    return ctr_loss_siglip_(ctx, image, text, log_scale, bias, ids, NULL);
}

CTR_PRIVATE_ double ctr_loss_softplus_(double x)
{
    return (x > 0 ? x : 0) + log1p(exp(x > 0 ? -x : x));
}

CTR_API double ctr_loss_siglip_chance(int64_t n, double bias)
{
    if (n < 1) return 0;
    return ctr_loss_softplus_(-bias) + (double)(n - 1) * ctr_loss_softplus_(bias);
}

/* ---- DCL ------------------------------------------------------------------------------------- */

/* mask [2n, 2n]: -1e30 for the row itself and its positive. shift: +1 at one negative j of a row,
   the same view of the next image, and -1 at its positive. index [2n]: that j. */
CTR_PRIVATE_ int ctr_dcl_constants_(ctr_ctx *ctx, int64_t n, ctr_tensor **mask, ctr_tensor **shift,
                                    ctr_tensor **index)
{
    int64_t m = 2 * n, i;
    ctr_real *a, *b;
    int32_t *next = ctr_loss_count_(ctx, m, 0);
    *mask = ctr_loss_constant_(ctx, m, m, &a);
    *shift = ctr_loss_constant_(ctx, m, m, &b);
    if (!next || !*mask || !*shift) return 0;
    memset(a, 0, (size_t)(m * m) * sizeof *a);
    memset(b, 0, (size_t)(m * m) * sizeof *b);
    for (i = 0; i < m; i++) {
        int64_t positive = (i + n) % m, j = i / n * n + (i + 1) % n;
        a[i * m + i] = a[i * m + positive] = CTR_R(-1e30);
        b[i * m + j] = 1;
        b[i * m + positive] = -1;
        next[i] = (int32_t)j;
    }
    ctr_tensor_write(ctx, *mask, a, m * m);
    ctr_tensor_write(ctx, *shift, b, m * m);
    *index = ctr_loss_index_(ctx, m, next);
    return ctx->status == CTR_OK;
}

/* log sum over the negatives = cross entropy with one of them, j, for the target + s_ij / T */
CTR_API ctr_tensor *ctr_loss_dcl(ctr_ctx *ctx, ctr_tensor *z, double temperature)
{
    const char *name = "loss_dcl";
    ctr_tensor *unit, *sim, *mask, *shift, *index;
    int64_t m;
    if (!ctr_check_(ctx, name, z, 2)) return &ctx->poison;
    m = z->shape[0];
    if (m < 4 || m % 2 || z->shape[1] < 1) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: takes two views of at least 2 images, got %ld rows of %ld",
                  name, (long)m, (long)z->shape[1]);
        return &ctx->poison;
    }
    if (!ctr_loss_above_(ctx, name, "temperature", temperature)) return &ctx->poison;
    if (!ctr_dcl_constants_(ctx, m / 2, &mask, &shift, &index)) return &ctx->poison;
    unit = ctr_normalize(ctx, z);                                              /* [2n, d] */
    sim = ctr_scale(ctx, ctr_matmul(ctx, unit, 0, unit, 1), 1 / temperature);  /* [2n, 2n] */
    shift = ctr_scale(ctx, ctr_sum(ctx, ctr_mul(ctx, sim, shift), -1), 1.0 / (double)m);
    sim = ctr_cross_entropy(ctx, ctr_add(ctx, sim, mask), index, -1);
    return ctr_add(ctx, sim, shift);
}

CTR_API double ctr_loss_dcl_chance(int64_t n) { return n > 1 ? log(2.0 * (double)n - 2) : 0; }

/* ---- losses whose value and gradient the host works out -------------------------------------- */

/* d loss / d x is known: saved [x->size] */
CTR_PRIVATE_ void ctr_known_backward_(ctr_ctx *ctx, ctr_node *n)
{
    ctr_tensor *x = n->in[0];
    ctr_real *grad;
    int acc;
    if (ctr_grad_(ctx, x, &grad, &acc))
        ctr_k_broadcast(ctx, CTR_MUL, 1, x->size, 1, n->saved, n->out->grad, grad, acc);
}

/* x's numbers on the host, and as much room for the slope; NULL after an error. */
CTR_PRIVATE_ ctr_real *ctr_known_read_(ctr_ctx *ctx, const char *name, const ctr_tensor *x,
                                       ctr_real **slope)
{
    size_t bytes = (size_t)x->size * sizeof(ctr_real);
    ctr_real *host;
    int64_t i;
    if (ctx->status != CTR_OK) return NULL;
    host = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, bytes);
    *slope = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, bytes);
    if (!host || !*slope) return NULL;
    memset(host, 0, bytes); /* while planning nothing is read */
    memset(*slope, 0, bytes);
    ctr_tensor_read(ctx, x, host, x->size);
    for (i = 0; i < x->size && ctr_real_finite_(host[i]); i++) { }
    if (i < x->size) { /* comparisons would quietly leave it out */
        ctr_fail_(ctx, CTR_E_NUMBER, "%s: what it compares is not finite", name);
        return NULL;
    }
    return host;
}

/* The scalar `value`, whose derivatives by x are slope [x->size]. */
CTR_PRIVATE_ ctr_tensor *ctr_known_op_(ctr_ctx *ctx, const char *name, ctr_tensor *x, double value,
                                       const ctr_real *slope)
{
    size_t bytes = (size_t)x->size * sizeof(ctr_real);
    ctr_node *n = ctr_node_begin_(ctx, name, ctr_known_backward_, x, NULL);
    if (!ctr_node_out_(ctx, n, 0, NULL)) return &ctx->poison;
    n->saved = (ctr_real *)ctr_slab_low_(ctx, bytes);
    if (ctx->status != CTR_OK) return &ctx->poison;
    ctr_k_upload(ctx, bytes, slope, n->saved);
    ctr_k_fill(ctx, 1, (ctr_real)value, ctr_f_(n->out));
    return ctr_node_done_(ctx, n);
}

/* ---- NCE over a bank ------------------------------------------------------------------------- */

/* One query at a time, whose rows of the bank stay in the cache: i[0] = columns, saved = the bank,
   index = [n, columns] */
CTR_PRIVATE_ void ctr_nce_scores_backward_(ctr_ctx *ctx, ctr_node *node)
{
    ctr_tensor *q = node->in[0];
    int64_t n = q->shape[0], d = q->shape[1], cols = node->i[0], i;
    size_t bytes = (size_t)(cols * d) * sizeof(ctr_real);
    ctr_real *grad, *rows;
    int acc;
    if (!ctr_grad_(ctx, q, &grad, &acc)) return;
    rows = (ctr_real *)ctr_slab_high_(ctx, bytes);
    for (i = 0; i < n; i++) {
        ctr_k_gather(ctx, node->i[1], d, cols, node->index + i * cols, node->saved, rows);
        ctr_k_gemm(ctx, 0, 0, 1, d, cols, 1, node->out->grad + i * cols, cols, rows, d,
                   acc ? CTR_R(1.0) : CTR_R(0.0), grad + i * d, d);
    }
    ctr_slab_give_(ctx, rows, bytes);
}

CTR_PRIVATE_ ctr_tensor *ctr_nce_scores_op_(ctr_ctx *ctx, ctr_tensor *q, const ctr_tensor *bank,
                                            const ctr_tensor *index, int64_t cols)
{
    int64_t n = q->shape[0], d = q->shape[1], shape[2], i;
    size_t bytes = (size_t)(cols * d) * sizeof(ctr_real);
    ctr_node *node = ctr_node_begin_(ctx, "nce_scores", ctr_nce_scores_backward_, q, NULL);
    ctr_real *rows;
    shape[0] = n;
    shape[1] = cols;
    if (!ctr_node_out_(ctx, node, 2, shape)) return &ctx->poison;
    node->i[0] = cols;
    node->i[1] = bank->shape[0];
    node->saved = ctr_f_(bank);
    node->index = (const int32_t *)index->data;
    rows = (ctr_real *)ctr_slab_high_(ctx, bytes);
    for (i = 0; i < n; i++) {
        ctr_k_gather(ctx, bank->shape[0], d, cols, node->index + i * cols, node->saved, rows);
        ctr_k_gemm(ctx, 0, 1, 1, cols, d, 1, ctr_f_(q) + i * d, d, rows, d, 0,
                   ctr_f_(node->out) + i * cols, cols);
    }
    ctr_slab_give_(ctx, rows, bytes);
    return ctr_node_done_(ctx, node);
}

CTR_API ctr_tensor *ctr_nce_scores(ctr_ctx *ctx, ctr_tensor *q, const ctr_tensor *bank,
                                   const int32_t *index, int64_t columns)
{
    const char *name = "nce_scores";
    ctr_tensor *rows;
    int64_t i, count;
    if (!ctr_check_(ctx, name, q, 2) || !ctr_check_(ctx, name, bank, 2)) return &ctx->poison;
    if (q->shape[1] != bank->shape[1] || q->size < 1 || bank->size < 1) {
        ctr_fail_shapes_(ctx, name, q, bank, "queries are [n, d], the bank [images, d]");
        return &ctx->poison;
    }
    if (!index || columns < 1 || columns > INT32_MAX / q->shape[0]) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: takes an index [%ld, columns], got %ld columns", name,
                  (long)q->shape[0], index ? (long)columns : 0L);
        return &ctx->poison;
    }
    count = q->shape[0] * columns;
    for (i = 0; i < count; i++)
        if (index[i] < 0 || index[i] >= bank->shape[0]) {
            ctr_fail_(ctx, CTR_E_VALUE, "%s: index %ld of query %ld is not in 0..%ld", name,
                      (long)index[i], (long)(i / columns), (long)bank->shape[0] - 1);
            return &ctx->poison;
        }
    rows = ctr_loss_index_(ctx, count, index);
    return ctr_nce_scores_op_(ctx, ctr_normalize(ctx, q), bank, rows, columns);
}

/* mean over the rows of (a [n, 1 + K] column 0 + the sum of b's columns 1..K) */
CTR_PRIVATE_ ctr_tensor *ctr_nce_join_(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *b)
{
    int64_t n = a->shape[0], k = a->shape[1] - 1;
    ctr_tensor *first, *rest;
    first = ctr_sum(ctx, ctr_slice(ctx, a, 1, 0, 1), -1);
    rest = ctr_sum(ctx, ctr_slice(ctx, b, 1, 1, k), -1);
    return ctr_scale(ctx, ctr_add(ctx, first, rest), 1.0 / (double)n);
}

#define CTR_NCE_EPS_ 1e-7

/* Logistic form: with c = K/N + eps and x = s - ln Z - ln c,  log h_0 = -softplus(-x_0)  and
   log(1 - h_j) as the authors write it, (K/N) / (P + c), is -softplus(x_j) + ln((K/N) / c). */
CTR_PRIVATE_ ctr_tensor *ctr_nce_npid_(ctr_ctx *ctx, ctr_tensor *s, int64_t images, double *z)
{
    int64_t size = s->size, k = s->shape[1] - 1, i;
    double noise = (double)k / (double)images, sum = 0;
    ctr_tensor *x, *up, *down;
    if (!(*z > 0) && !ctx->plan) {
        ctr_real *host = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, (size_t)size * sizeof *host);
        if (!host) return &ctx->poison;
        ctr_tensor_read(ctx, s, host, size);
        for (i = 0; i < size; i++) sum += exp((double)host[i]);
        sum *= (double)images / (double)size;
        if (!ctr_real_finite_((ctr_real)sum) || !(sum > 0)) {
            ctr_fail_(ctx, CTR_E_NUMBER, "loss_nce: the scores give no finite Z");
            return &ctx->poison;
        }
        *z = sum;
    }
    x = ctr_add_scalar(ctx, s, -log((*z > 0 ? *z : 1) * (noise + CTR_NCE_EPS_)));
    up = ctr_softplus(ctx, ctr_scale(ctx, x, -1));
    down = ctr_softplus(ctx, x);
    return ctr_add_scalar(ctx, ctr_nce_join_(ctx, up, down),
                          (double)k * log1p(CTR_NCE_EPS_ / noise));
}

typedef struct ctr_pirl_ {
    const ctr_real *s;              /* [n, m] scores / T */
    ctr_real *slope;                /* [n, m] d loss / d s */
    double *loss;                   /* [n] */
    int64_t n, m;
} ctr_pirl_;

/* One query: w_j = 1 / (1 - p_j + eps),
   d loss / d s_k = p_k - [k = 0] + [k > 0] w_k p_k - p_k sum over j > 0 of w_j p_j */
CTR_PRIVATE_ void ctr_pirl_job_(void *arg, int64_t i, int worker)
{
    const ctr_pirl_ *t = (const ctr_pirl_ *)arg;
    const ctr_real *s = t->s + i * t->m;
    ctr_real *slope = t->slope + i * t->m;
    double max = (double)s[0], sum = 0, loss, pull = 0, p;
    int64_t j;
    (void)worker;
    for (j = 1; j < t->m; j++) max = CTR_MAX_(max, (double)s[j]);
    for (j = 0; j < t->m; j++) sum += exp((double)s[j] - max);
    loss = log(sum) + max - (double)s[0];
    for (j = 1; j < t->m; j++) {
        p = exp((double)s[j] - max) / sum;
        loss -= log(1 - p + CTR_NCE_EPS_);
        pull += p / (1 - p + CTR_NCE_EPS_);
    }
    for (j = 0; j < t->m; j++) {
        p = exp((double)s[j] - max) / sum;
        slope[j] = (ctr_real)((p * (1 - pull + (j ? 1 / (1 - p + CTR_NCE_EPS_) : 0)) - !j) /
                              (double)t->n);
    }
    t->loss[i] = loss;
}

/* On the host and in double: 1 - p of a negative that wins has no digits left in float. */
CTR_PRIVATE_ ctr_tensor *ctr_nce_pirl_(ctr_ctx *ctx, ctr_tensor *s)
{
    const char *name = "loss_nce";
    ctr_pirl_ t;
    double sum = 0;
    int64_t i;
    t.n = s->shape[0];
    t.m = s->shape[1];
    t.s = ctr_known_read_(ctx, name, s, &t.slope);
    t.loss = (double *)ctr_arena_take_(ctx, &ctx->host, (size_t)t.n * sizeof(double));
    if (!t.s || !t.loss) return &ctx->poison;
    if (!ctx->plan) ctr_parallel_(ctx, t.n, ctr_pirl_job_, &t);
    for (i = 0; i < t.n && !ctx->plan; i++) sum += t.loss[i];
    return ctr_known_op_(ctx, name, s, sum / (double)t.n, t.slope);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_nce_(ctr_ctx *ctx, ctr_tensor *scores, double temperature,
                                       ctr_nce_form form, int64_t images, double *z,
                                       ctr_report *report)
{
    const char *name = "loss_nce";
    char text[64];
    ctr_tensor *s, *target;
    int32_t *ids;
    if (!ctr_check_(ctx, name, scores, 2)) return &ctx->poison;
    if (scores->shape[0] < 1 || scores->shape[1] < 2) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: scores are [n, 1 + negatives], got %s", name,
                  ctr_shape_text_(scores->rank, scores->shape, text));
        return &ctx->poison;
    }
    if (!ctr_loss_above_(ctx, name, "temperature", temperature)) return &ctx->poison;
    if (form == CTR_NCE_NPID && (images < 1 || !z || !ctr_real_finite_((ctr_real)*z))) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: NPID's form needs the number of images, got %ld, and a "
                  "place for Z that holds a finite number", name, (long)images);
        return &ctx->poison;
    }
    if (form != CTR_NCE_NPID && form != CTR_NCE_PIRL && form != CTR_NCE_INFO) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: %d is no form of NCE", name, (int)form);
        return &ctx->poison;
    }
    ids = ctr_loss_count_(ctx, scores->shape[0], 0);
    if (!ids) return &ctx->poison;
    target = ctr_loss_index_(ctx, scores->shape[0], ids);
    ctr_loss_hits_(ctx, scores, ids, NULL, 1, report);
    s = ctr_scale(ctx, scores, 1 / temperature);
    if (form == CTR_NCE_NPID) return ctr_nce_npid_(ctx, s, images, z);
    return form == CTR_NCE_PIRL ? ctr_nce_pirl_(ctx, s) : ctr_cross_entropy(ctx, s, target, -1);
}

CTR_API ctr_tensor *ctr_loss_nce(ctr_ctx *ctx, ctr_tensor *scores, double temperature,
                                 ctr_nce_form form, int64_t images, double *z)
{
    return ctr_loss_nce_(ctx, scores, temperature, form, images, z, NULL);
}

CTR_API double ctr_loss_nce_chance(ctr_nce_form form, int64_t negatives)
{
    double k = (double)negatives;
    if (negatives < 1) return 0;
    return log(1 + k) + (form == CTR_NCE_INFO ? 0 : k * log1p(1 / k));
}

/* ---- the flat functions ---------------------------------------------------------------------- */

CTR_PRIVATE_ ctr_tensor *ctr_flat_leaf_(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *x)
{
    int64_t shape[2];
    ctr_tensor *t;
    shape[0] = n;
    shape[1] = d;
    t = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    ctr_tensor_write(ctx, t, x, t->size);
    return t;
}

/* The loss's value; gradients into dx[i] where it is not NULL; the leaves are gone then. */
CTR_PRIVATE_ double ctr_flat_end_(ctr_ctx *ctx, ctr_tensor *loss, int count, ctr_tensor *const *x,
                                  ctr_real *const *dx)
{
    double value = (double)ctr_tensor_item(ctx, loss);
    int i, wanted = 0;
    for (i = 0; i < count; i++) wanted |= dx[i] != NULL;
    if (wanted) ctr_backward(ctx, loss);
    for (i = 0; i < count; i++)
        if (dx[i]) ctr_tensor_read_grad(ctx, x[i], dx[i], x[i]->size);
    ctr_step_end(ctx);
    for (i = 0; i < count; i++) ctr_tensor_destroy(ctx, x[i]);
    return ctx->status == CTR_OK ? value : 0;
}

CTR_API double ctr_loss_infonce_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *q,
                                     const ctr_real *k, int64_t m, const ctr_real *negatives,
                                     double temperature, ctr_real *dq, ctr_real *dk)
{
    ctr_tensor *x[3], *loss;
    ctr_real *dx[3];
    double value;
    x[0] = ctr_flat_leaf_(ctx, n, d, q);
    x[1] = ctr_flat_leaf_(ctx, n, d, k);
    x[2] = negatives ? ctr_flat_leaf_(ctx, m, d, negatives) : NULL;
    dx[0] = dq;
    dx[1] = dk;
    ctr_step_begin(ctx);
    loss = ctr_loss_infonce(ctx, x[0], x[1], x[2], temperature);
    value = ctr_flat_end_(ctx, loss, 2, x, dx);
    ctr_tensor_destroy(ctx, x[2]);
    return value;
}

CTR_API double ctr_loss_clip_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *image,
                                  const ctr_real *text, double log_scale, const int32_t *ids,
                                  ctr_real *dimage, ctr_real *dtext, ctr_real *dlog_scale)
{
    ctr_tensor *x[3], *loss;
    ctr_real *dx[3], s = (ctr_real)log_scale;
    x[0] = ctr_flat_leaf_(ctx, n, d, image);
    x[1] = ctr_flat_leaf_(ctx, n, d, text);
    x[2] = ctr_flat_leaf_(ctx, 1, 1, &s);
    dx[0] = dimage;
    dx[1] = dtext;
    dx[2] = dlog_scale;
    ctr_step_begin(ctx);
    loss = ctr_loss_clip(ctx, x[0], x[1], x[2], ids);
    return ctr_flat_end_(ctx, loss, 3, x, dx);
}

/* ------------------------------------------------------------------------------------------------
   >>AGREE
   ---------------------------------------------------------------------------------------------- */

/* ---- no negatives: BYOL, SimSiam ------------------------------------------------------------- */

/* offset + factor * mean of cos(p_i, z_i); the report gets the mean cosine */
CTR_PRIVATE_ ctr_tensor *ctr_loss_cosine_(ctr_ctx *ctx, const char *name, ctr_tensor *p,
                                          ctr_tensor *z, double factor, double offset,
                                          ctr_report *report)
{
    ctr_tensor *sum;
    double n;
    if (!ctr_loss_pair_(ctx, name, p, z)) return &ctx->poison;
    n = (double)p->shape[0];
    sum = ctr_mul(ctx, ctr_normalize(ctx, p), ctr_normalize(ctx, ctr_detach(ctx, z)));
    sum = ctr_sum(ctx, sum, -1);
    if (report && !ctx->plan) report->positive = (double)ctr_tensor_item(ctx, sum) / n;
    return ctr_affine_(ctx, name, sum, (ctr_real)(factor / n), (ctr_real)offset);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_regression_(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z,
                                              ctr_report *report)
{
    return ctr_loss_cosine_(ctx, "loss_regression", p, z, -2, 2, report);
}

CTR_API ctr_tensor *ctr_loss_regression(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    return ctr_loss_regression_(ctx, p, z, NULL);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_negative_cosine_(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z,
                                                   ctr_report *report)
{
    return ctr_loss_cosine_(ctx, "loss_negative_cosine", p, z, -1, 0, report);
}

CTR_API ctr_tensor *ctr_loss_negative_cosine(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    return ctr_loss_negative_cosine_(ctx, p, z, NULL);
}

/* ---- alignment and uniformity ---------------------------------------------------------------- */

/* |x_i - y_i|^2 of the rows, [n] */
CTR_PRIVATE_ ctr_tensor *ctr_loss_apart_(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y)
{
    ctr_tensor *t = ctr_sub(ctx, x, y);
    return ctr_sum(ctx, ctr_mul(ctx, t, t), 1);
}

CTR_API ctr_tensor *ctr_loss_alignment(ctr_ctx *ctx, ctr_tensor *x, ctr_tensor *y, double alpha)
{
    const char *name = "loss_alignment";
    ctr_tensor *apart;
    ctr_real *square, *slope;
    double sum = 0, n;
    int64_t i;
    if (!ctr_loss_pair_(ctx, name, x, y)) return &ctx->poison;
    if (!ctr_loss_above_(ctx, name, "power", alpha)) return &ctx->poison;
    x = ctr_normalize(ctx, x);
    apart = ctr_loss_apart_(ctx, x, ctr_normalize(ctx, y));
    square = ctr_known_read_(ctx, name, apart, &slope);
    if (!square) return &ctx->poison;
    n = (double)apart->size;
    for (i = 0; i < apart->size; i++) {
        double s = (double)square[i];
        if (!(s > 0) && alpha != 2) continue; /* no direction to go */
        sum += pow(s, alpha / 2);
        slope[i] = (ctr_real)(alpha / 2 * pow(s, alpha / 2 - 1) / n);
    }
    return ctr_known_op_(ctx, name, apart, sum / n, slope);
}

/* ln( sum over i != j of exp(2t cos_ij - 2t) / (n (n - 1)) ) */
CTR_API ctr_tensor *ctr_loss_uniformity(ctr_ctx *ctx, ctr_tensor *x, double t)
{
    const char *name = "loss_uniformity";
    ctr_tensor *unit, *pairs, *sum;
    int64_t n, i;
    ctr_real *mask;
    if (!ctr_check_(ctx, name, x, 2)) return &ctx->poison;
    n = x->shape[0];
    if (n < 2 || x->shape[1] < 1) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: takes at least 2 rows, got %ld of %ld numbers", name,
                  (long)n, (long)x->shape[1]);
        return &ctx->poison;
    }
    if (!ctr_loss_above_(ctx, name, "t", t)) return &ctx->poison;
    if (t > 20) { /* exp(-4t) must not vanish in float */
        ctr_fail_(ctx, CTR_E_VALUE, "%s: t must be at most 20, got %g", name, t);
        return &ctx->poison;
    }
    pairs = ctr_loss_constant_(ctx, n, n, &mask);
    if (!pairs) return &ctx->poison;
    for (i = 0; i < n * n; i++) mask[i] = i % (n + 1) ? CTR_R(1.0) : 0;
    ctr_tensor_write(ctx, pairs, mask, n * n);
    unit = ctr_normalize(ctx, x);
    sum = ctr_affine_(ctx, name, ctr_matmul(ctx, unit, 0, unit, 1), (ctr_real)(2 * t),
                      (ctr_real)(-2 * t));
    sum = ctr_sum(ctx, ctr_mul(ctx, ctr_exp(ctx, sum), pairs), -1);
    return ctr_log(ctx, ctr_scale(ctx, sum, 1 / ((double)n * (double)(n - 1))));
}

/* ---- redundancy: Barlow Twins, VICReg -------------------------------------------------------- */

/* Two views of at least two rows. */
CTR_PRIVATE_ int ctr_loss_views_(ctr_ctx *ctx, const char *name, const ctr_tensor *a,
                                 const ctr_tensor *b)
{
    if (!ctr_loss_pair_(ctx, name, a, b)) return 0;
    if (a->shape[0] > 1) return 1;
    ctr_fail_(ctx, CTR_E_SHAPE, "%s: a batch of 1 has no variance, at least 2 rows are needed",
              name);
    return 0;
}

CTR_PRIVATE_ int ctr_loss_weight_(ctr_ctx *ctx, const char *name, const char *what, double value)
{
    if (ctx->status != CTR_OK) return 0;
    if (ctr_real_finite_((ctr_real)value) && value >= 0) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "%s: the %s must be 0 or above, got %g", name, what, value);
    return 0;
}

/* The report's mean cosine of the pairs of rows. */
CTR_PRIVATE_ void ctr_loss_positive_(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *b, ctr_report *report)
{
    ctr_tensor *cosine;
    if (!report || ctx->plan || ctx->status != CTR_OK) return;
    ctr_nograd_begin(ctx);
    cosine = ctr_mul(ctx, ctr_normalize(ctx, a), ctr_normalize(ctx, b));
    cosine = ctr_sum(ctx, cosine, -1);
    report->positive = (double)ctr_tensor_item(ctx, cosine) / (double)a->shape[0];
    ctr_nograd_end(ctx);
}

/* sum over all j, k of (sum_i a_ij b_ik)^2 = |a^T b|^2 = <a a^T, b b^T>, by the smaller side: with
   256 rows of 8192 numbers that is a thousandth of the memory. */
CTR_PRIVATE_ ctr_tensor *ctr_loss_cross_(ctr_ctx *ctx, ctr_tensor *a, ctr_tensor *b)
{
    ctr_tensor *c, *e;
    if (a->shape[0] < a->shape[1]) {
        c = ctr_matmul(ctx, a, 0, a, 1);                     /* [n, n] */
        e = a == b ? c : ctr_matmul(ctx, b, 0, b, 1);
    } else {
        c = e = ctr_matmul(ctx, a, 1, b, 0);                 /* [d, d] */
    }
    return ctr_sum(ctx, ctr_mul(ctx, c, e), -1);
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_barlow_twins_(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2,
                                                double lambda, ctr_report *report)
{
    const char *name = "loss_barlow_twins";
    ctr_norm norm;
    ctr_tensor *a, *b, *diagonal, *on, *all;
    double n;
    if (!ctr_loss_views_(ctx, name, z1, z2)) return &ctx->poison;
    if (!ctr_loss_weight_(ctx, name, "lambda", lambda)) return &ctx->poison;
    ctr_loss_positive_(ctx, z1, z2, report);
    memset(&norm, 0, sizeof norm);
    norm.eps = CTR_R(1e-5);
    n = (double)z1->shape[0];
    a = ctr_batch_norm(ctx, z1, &norm, CTR_NORM_BATCH, 1, NULL, 0);
    b = ctr_batch_norm(ctx, z2, &norm, CTR_NORM_BATCH, 1, NULL, 0);
    diagonal = ctr_scale(ctx, ctr_sum(ctx, ctr_mul(ctx, a, b), 0), 1 / n);     /* c_jj, [d] */
    all = ctr_scale(ctx, ctr_loss_cross_(ctx, a, b), lambda / (n * n));
    on = ctr_add_scalar(ctx, diagonal, -1);
    on = ctr_sum(ctx, ctr_mul(ctx, on, on), -1);
    diagonal = ctr_sum(ctx, ctr_mul(ctx, diagonal, diagonal), -1);
    return ctr_add(ctx, on, ctr_sub(ctx, all, ctr_scale(ctx, diagonal, lambda)));
}

CTR_API ctr_tensor *ctr_loss_barlow_twins(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2,
                                          double lambda)
{
    return ctr_loss_barlow_twins_(ctx, z1, z2, lambda, NULL);
}

CTR_API double ctr_loss_barlow_twins_chance(int64_t n, int64_t d, double lambda)
{
    double r = n > 1 ? 1.0 / (double)(n - 1) : 0;
    return (double)d * (1 + r) + lambda * (double)d * (double)(d - 1) * r;
}

/* var / 2 v(z) + cov c(z) */
CTR_PRIVATE_ ctr_tensor *ctr_vicreg_view_(ctr_ctx *ctx, ctr_tensor *z, double var, double cov)
{
    double n1 = (double)(z->shape[0] - 1), d = (double)z->shape[1];
    ctr_tensor *centred, *variance, *hinge, *off;
    centred = ctr_sub(ctx, z, ctr_mean(ctx, z, 0));
    variance = ctr_scale(ctx, ctr_sum(ctx, ctr_mul(ctx, centred, centred), 0), 1 / n1); /* [d] */
    hinge = ctr_sqrt(ctx, ctr_add_scalar(ctx, variance, 1e-4));
    hinge = ctr_sum(ctx, ctr_relu(ctx, ctr_affine_(ctx, "loss_vicreg", hinge, -1, 1)), -1);
    off = ctr_scale(ctx, ctr_loss_cross_(ctx, centred, centred), cov / d / (n1 * n1));
    variance = ctr_sum(ctx, ctr_mul(ctx, variance, variance), -1);
    off = ctr_sub(ctx, off, ctr_scale(ctx, variance, cov / d));
    return ctr_add(ctx, off, ctr_scale(ctx, hinge, var / 2 / d));
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_vicreg_(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2, double sim,
                                          double var, double cov, ctr_report *report)
{
    const char *name = "loss_vicreg";
    ctr_tensor *agree, *a, *b;
    if (!ctr_loss_views_(ctx, name, z1, z2)) return &ctx->poison;
    if (!ctr_loss_weight_(ctx, name, "weight of the similarity", sim)) return &ctx->poison;
    if (!ctr_loss_weight_(ctx, name, "weight of the variance", var)) return &ctx->poison;
    if (!ctr_loss_weight_(ctx, name, "weight of the covariance", cov)) return &ctx->poison;
    ctr_loss_positive_(ctx, z1, z2, report);
    agree = ctr_sum(ctx, ctr_loss_apart_(ctx, z1, z2), -1);
    agree = ctr_scale(ctx, agree, sim / (double)z1->size);
    a = ctr_vicreg_view_(ctx, z1, var, cov);
    b = ctr_vicreg_view_(ctx, z2, var, cov);
    return ctr_add(ctx, agree, ctr_add(ctx, a, b));
}

CTR_API ctr_tensor *ctr_loss_vicreg(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2, double sim,
                                    double var, double cov)
{
    return ctr_loss_vicreg_(ctx, z1, z2, sim, var, cov, NULL);
}

/* ---- prototypes: SwAV ------------------------------------------------------------------------ */

/* Row v of the target: the sum of the codes of all views but v itself, [views n, k]. */
CTR_PRIVATE_ ctr_tensor *ctr_swav_target_(ctr_ctx *ctx, const ctr_tensor *scores, int views,
                                          const ctr_tensor *codes, int assign)
{
    ctr_tensor *t = ctr_tensor_temp(ctx, CTR_F32, 2, scores->shape);
    int64_t size = scores->size / views;
    int v, a;
    ctr_k_zero(ctx, ctr_tensor_bytes_(t), t->data);
    for (v = 0; v < views; v++)
        for (a = 0; a < assign; a++)
            if (a != v && ctx->status == CTR_OK)
                ctr_k_axpby(ctx, size, 1, ctr_f_(codes) + a * size, 1, ctr_f_(t) + v * size);
    return t;
}

CTR_API ctr_tensor *ctr_loss_swav(ctr_ctx *ctx, ctr_tensor *scores, int views, ctr_tensor *codes,
                                  int assign, double temperature)
{
    const char *name = "loss_swav";
    ctr_tensor *target, *sum;
    int64_t n;
    if (!ctr_check_(ctx, name, scores, 2) || !ctr_check_(ctx, name, codes, 2)) return &ctx->poison;
    if (views < 2 || assign < 1 || assign > views || scores->shape[0] % views) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: %ld rows, %d views, codes for %d: needs at least 2 views "
                  "of equal size and codes for 1..views of them", name, (long)scores->shape[0],
                  views, assign);
        return &ctx->poison;
    }
    n = scores->shape[0] / views;
    if (codes->shape[0] != n * assign || codes->shape[1] != scores->shape[1] || codes->size < 1) {
        ctr_fail_shapes_(ctx, name, scores, codes,
                         "scores are [views n, k] and codes [assign n, k], n and k at least 1");
        return &ctx->poison;
    }
    if (!ctr_loss_above_(ctx, name, "temperature", temperature)) return &ctx->poison;
    target = ctr_swav_target_(ctx, scores, views, codes, assign);
    sum = ctr_log_softmax(ctx, ctr_scale(ctx, scores, 1 / temperature));
    sum = ctr_sum(ctx, ctr_mul(ctx, sum, target), -1);
    return ctr_scale(ctx, sum, -1.0 / ((double)n * assign * (views - 1)));
}

CTR_API double ctr_loss_swav_chance(int64_t k) { return k > 0 ? log((double)k) : 0; }

/* ---- distances: triplets, pairs -------------------------------------------------------------- */

CTR_API void ctr_triplet_config_init(ctr_triplet_config *c)
{
    memset(c, 0, sizeof *c);
    c->margin = 0.2;
    c->mining = CTR_MINE_SEMI_HARD;
    c->squared = 1;
    c->normalize = 1;
}

CTR_API ctr_triplet_config ctr_triplet_default(void)
{
    ctr_triplet_config c;
    ctr_triplet_config_init(&c);
    return c;
}

typedef struct ctr_triplets_ {
    const ctr_triplet_config *c;
    const int32_t *labels;
    const ctr_real *gram;           /* [m, m] products of rows */
    double *dist, *slope;           /* [m] an anchor's distances, and d loss / d distance */
    int64_t m, count, active, pairs;
    double sum;
    ctr_rng rng;
} ctr_triplets_;

/* |x - y|^2 = |x|^2 + |y|^2 - 2 x.y; what is below its rounding is 0: points that coincide */
CTR_PRIVATE_ double ctr_triplet_square_(const ctr_triplets_ *t, int64_t i, int64_t j)
{
    double a = (double)t->gram[i * t->m + i], b = (double)t->gram[j * t->m + j];
    double s = a + b - 2 * (double)t->gram[i * t->m + j];
    double rounding = sizeof(ctr_real) == 4 ? 5e-7 : 1e-15;
    return i == j || s <= rounding * (a + b) ? 0 : s;
}

CTR_PRIVATE_ void ctr_triplet_add_(ctr_triplets_ *t, int64_t p, int64_t n)
{
    double x = t->dist[p] - t->dist[n], slope;
    if (t->c->soft) {
        t->sum += ctr_loss_softplus_(x);
        slope = 1 / (1 + exp(-x));
        t->active += x > 0;
    } else {
        x += t->c->margin;
        slope = x > 0;
        t->sum += x > 0 ? x : 0;
        t->active += x > 0;
    }
    t->count++;
    t->slope[p] += slope;
    t->slope[n] -= slope;
}

/* The negative of the pair (a, p), or -1. */
CTR_PRIVATE_ int64_t ctr_triplet_pick_(ctr_triplets_ *t, int64_t a, int64_t p)
{
    double least = t->dist[p], most = least + t->c->margin;
    int64_t n, best = -1, fit = 0;
    for (n = 0; n < t->m; n++) {
        if (t->labels[n] < 0 || t->labels[n] == t->labels[a] || t->dist[n] >= most) continue;
        if (t->c->mining == CTR_MINE_RANDOM) { /* each of those that fit is kept with 1 / number */
            if (ctr_rng_below(&t->rng, ++fit) == 0) best = n;
        } else if (t->dist[n] > least && (best < 0 || t->dist[n] < t->dist[best])) {
            best = n;
        }
    }
    return best;
}

CTR_PRIVATE_ void ctr_triplet_anchor_(ctr_triplets_ *t, int64_t a)
{
    int64_t p, n, hard_p = -1, hard_n = -1;
    for (p = 0; p < t->m; p++) {
        if (t->labels[p] < 0 || p == a) continue;
        if (t->labels[p] != t->labels[a]) {
            if (hard_n < 0 || t->dist[p] < t->dist[hard_n]) hard_n = p;
            continue;
        }
        if (hard_p < 0 || t->dist[p] > t->dist[hard_p]) hard_p = p;
        if (t->c->mining == CTR_MINE_ALL) {
            for (n = 0; n < t->m; n++)
                if (t->labels[n] >= 0 && t->labels[n] != t->labels[a]) ctr_triplet_add_(t, p, n);
        } else if (t->c->mining != CTR_MINE_HARD) {
            t->pairs++;
            n = ctr_triplet_pick_(t, a, p);
            if (n >= 0) ctr_triplet_add_(t, p, n);
        }
    }
    if (t->c->mining == CTR_MINE_HARD && hard_p >= 0 && hard_n >= 0)
        ctr_triplet_add_(t, hard_p, hard_n);
}

/* All anchors; d loss / d gram goes into out [m, m]. A distance's slope h by its square, for plain
   distances h / (2 d), gives h to both diagonal entries and -2 h to the product. */
CTR_PRIVATE_ void ctr_triplet_run_(ctr_triplets_ *t, ctr_real *out)
{
    int64_t m = t->m, a, j;
    double divisor;
    for (a = 0; a < m; a++) {
        if (t->labels[a] < 0) continue;
        for (j = 0; j < m; j++) {
            double s = ctr_triplet_square_(t, a, j);
            t->dist[j] = t->c->squared ? s : sqrt(s);
            t->slope[j] = 0;
        }
        ctr_triplet_anchor_(t, a);
        for (j = 0; j < m; j++) {
            double h = t->slope[j];
            if (!t->c->squared) h = t->dist[j] > 0 ? h / (2 * t->dist[j]) : 0;
            out[a * m + a] += (ctr_real)h;
            out[j * m + j] += (ctr_real)h;
            out[a * m + j] -= (ctr_real)(2 * h);
        }
    }
    divisor = (double)CTR_MAX_(t->c->mean_active ? t->active : t->count, 1);
    t->sum /= divisor;
    for (j = 0; j < m * m; j++) out[j] = (ctr_real)((double)out[j] / divisor);
}

/* Share of active triplets; share of rows whose nearest other row has their label, and none of
   another label is as near; mean cosines. */
CTR_PRIVATE_ void ctr_triplet_report_(const ctr_triplets_ *t, ctr_report *report)
{
    double tried = (double)(t->pairs ? t->pairs : t->count), sum[2] = { 0, 0 }, hits = 0, rows = 0;
    int64_t count[2] = { 0, 0 }, m = t->m, i, j;
    report->active = tried > 0 ? (double)(t->pairs ? t->count : t->active) / tried : 0;
    for (i = 0; i < m; i++) {
        double best[2] = { 1e30, 1e30 }, own = (double)t->gram[i * m + i];
        if (t->labels[i] < 0) continue;
        for (j = 0; j < m; j++) {
            double d = ctr_triplet_square_(t, i, j), other = (double)t->gram[j * m + j];
            int same = t->labels[i] == t->labels[j];
            if (j == i || t->labels[j] < 0) continue;
            if (d < best[same]) best[same] = d;
            if (own > 0 && other > 0) sum[same] += (double)t->gram[i * m + j] / sqrt(own * other);
            count[same]++;
        }
        rows += best[1] < 1e30;
        hits += best[1] < best[0];
    }
    if (rows > 0) report->accuracy = hits / rows;
    if (count[0]) report->negative = sum[0] / (double)count[0];
    if (count[1]) report->positive = sum[1] / (double)count[1];
}

CTR_PRIVATE_ int ctr_triplet_check_(ctr_ctx *ctx, const char *name, const ctr_tensor *z,
                                    const int32_t *labels, const ctr_triplet_config *c)
{
    if (!ctr_check_(ctx, name, z, 2) || !ctr_loss_weight_(ctx, name, "margin", c->margin)) return 0;
    if (z->size < 1 || !labels) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: takes rows [m, d] and a label for each, got %ld x %ld and "
                  "%s", name, (long)z->shape[0], (long)z->shape[1],
                  labels ? "labels" : "no labels");
        return 0;
    }
    if ((int)c->mining < CTR_MINE_ALL || (int)c->mining > CTR_MINE_RANDOM) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: %d is no kind of mining", name, (int)c->mining);
        return 0;
    }
    return 1;
}

CTR_PRIVATE_ ctr_tensor *ctr_loss_triplet_(ctr_ctx *ctx, ctr_tensor *z, const int32_t *labels,
                                           const ctr_triplet_config *config, ctr_report *report)
{
    const char *name = "loss_triplet";
    ctr_triplet_config c = config ? *config : ctr_triplet_default();
    ctr_triplets_ t;
    ctr_tensor *gram;
    ctr_real *slope;
    if (!ctr_triplet_check_(ctx, name, z, labels, &c)) return &ctx->poison;
    memset(&t, 0, sizeof t);
    if (c.normalize) z = ctr_normalize(ctx, z);
    gram = ctr_matmul(ctx, z, 0, z, 1);                                        /* [m, m] */
    t.gram = ctr_known_read_(ctx, name, gram, &slope);
    t.c = &c;
    t.labels = labels;
    t.m = z->shape[0];
    t.dist = (double *)ctr_arena_take_(ctx, &ctx->host, (size_t)t.m * 2 * sizeof(double));
    if (!t.gram || !t.dist) return &ctx->poison;
    t.slope = t.dist + t.m;
    if (c.mining == CTR_MINE_RANDOM)
        ctr_rng_init(&t.rng, ctx->config.seed, CTR_STREAM_NEGATIVE, ctx->draw_epoch,
                     ctx->draw_position, (int)(ctx->draws++ & 0xffff));
    if (!ctx->plan) ctr_triplet_run_(&t, slope);
    if (report && !ctx->plan) ctr_triplet_report_(&t, report);
    return ctr_known_op_(ctx, name, gram, t.sum, slope);
}

CTR_API ctr_tensor *ctr_loss_triplet(ctr_ctx *ctx, ctr_tensor *z, const int32_t *labels,
                                     const ctr_triplet_config *config, double *active)
{
    ctr_report report;
    ctr_tensor *loss;
    memset(&report, 0, sizeof report);
    loss = ctr_loss_triplet_(ctx, z, labels, config, active ? &report : NULL);
    if (active) *active = report.active;
    return loss;
}

CTR_API double ctr_loss_triplet_chance(const ctr_triplet_config *config)
{
    ctr_triplet_config c = config ? *config : ctr_triplet_default();
    return c.soft ? log(2.0) : c.margin;
}

CTR_API ctr_tensor *ctr_loss_siamese(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2,
                                     const int32_t *same, double margin)
{
    const char *name = "loss_siamese";
    ctr_tensor *apart;
    ctr_real *square, *slope;
    double sum = 0, n;
    int64_t i;
    if (!ctr_loss_pair_(ctx, name, z1, z2)) return &ctx->poison;
    if (!ctr_loss_above_(ctx, name, "margin", margin)) return &ctx->poison;
    for (i = 0; same && i < z1->shape[0]; i++)
        if (same[i] != 0 && same[i] != 1) break;
    if (!same || i < z1->shape[0]) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: same is 0 or 1 for each pair, got %ld for pair %ld", name,
                  same ? (long)same[i] : -1L, same ? (long)i : 0L);
        return &ctx->poison;
    }
    apart = ctr_loss_apart_(ctx, z1, z2);
    square = ctr_known_read_(ctx, name, apart, &slope);
    if (!square) return &ctx->poison;
    n = (double)apart->size;
    for (i = 0; i < apart->size; i++) {
        double d = sqrt((double)square[i]), gap = margin - d;
        sum += same[i] ? d * d / 2 : gap > 0 ? gap * gap / 2 : 0;
        /* by D^2: 1/2, and -(margin - D) / (2 D) */
        slope[i] = (ctr_real)((same[i] ? 0.5 : gap > 0 && d > 0 ? -gap / (2 * d) : 0) / n);
    }
    return ctr_known_op_(ctx, name, apart, sum / n, slope);
}

/* ---- the flat functions of these ------------------------------------------------------------- */

CTR_API double ctr_loss_barlow_twins_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z1,
                                          const ctr_real *z2, double lambda, ctr_real *dz1,
                                          ctr_real *dz2)
{
    ctr_tensor *x[2], *loss;
    ctr_real *dx[2];
    x[0] = ctr_flat_leaf_(ctx, n, d, z1);
    x[1] = ctr_flat_leaf_(ctx, n, d, z2);
    dx[0] = dz1;
    dx[1] = dz2;
    ctr_step_begin(ctx);
    loss = ctr_loss_barlow_twins(ctx, x[0], x[1], lambda);
    return ctr_flat_end_(ctx, loss, 2, x, dx);
}

CTR_API double ctr_loss_vicreg_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z1,
                                    const ctr_real *z2, double sim, double var, double cov,
                                    ctr_real *dz1, ctr_real *dz2)
{
    ctr_tensor *x[2], *loss;
    ctr_real *dx[2];
    x[0] = ctr_flat_leaf_(ctx, n, d, z1);
    x[1] = ctr_flat_leaf_(ctx, n, d, z2);
    dx[0] = dz1;
    dx[1] = dz2;
    ctr_step_begin(ctx);
    loss = ctr_loss_vicreg(ctx, x[0], x[1], sim, var, cov);
    return ctr_flat_end_(ctx, loss, 2, x, dx);
}

CTR_API double ctr_loss_triplet_flat(ctr_ctx *ctx, int64_t n, int64_t d, const ctr_real *z,
                                     const int32_t *labels, const ctr_triplet_config *config,
                                     ctr_real *dz)
{
    ctr_tensor *x = ctr_flat_leaf_(ctx, n, d, z), *loss;
    ctr_step_begin(ctx);
    loss = ctr_loss_triplet(ctx, x, labels, config, NULL);
    return ctr_flat_end_(ctx, loss, 1, &x, &dz);
}

/* ------------------------------------------------------------------------------------------------
   >>HEALTH
   ---------------------------------------------------------------------------------------------- */

/* ---- the measures ---------------------------------------------------------------------------- */

#define CTR_HEALTH_BLOCK_ 256 /* rows whose similarities are held at a time */

typedef struct ctr_health_tile_ {
    const ctr_real *s;         /* [block, rows] cosines */
    const double *inverse;     /* [rows] > 0 for rows of length 1, 0 for zero rows */
    double *sum;               /* [rows] */
    int64_t first, rows, n;
} ctr_health_tile_;

/* Sum over the rows j > i of other images of exp(-2 |x_i - x_j|^2). */
CTR_PRIVATE_ void ctr_health_uniform_job_(void *arg, int64_t chunk, int worker)
{
    ctr_health_tile_ *u = (ctr_health_tile_ *)arg;
    int64_t i = u->first + chunk, j;
    const ctr_real *s = u->s + chunk * u->rows;
    double length = u->inverse[i] > 0, sum = 0;
    (void)worker;
    for (j = i + 1; j < u->rows; j++) {
        if (j % u->n == i % u->n) continue;
        sum += exp(-2.0 * (length + (u->inverse[j] > 0) - 2.0 * (double)s[j]));
    }
    u->sum[i] = sum;
}

/* uniformity = ln of the mean over pairs of rows of different images of exp(-2 |x - y|^2) */
CTR_PRIVATE_ double ctr_health_uniformity_(ctr_ctx *ctx, int64_t n, int64_t rows, int64_t d,
                                           const ctr_real *unit, const double *inverse)
{
    int64_t views = rows / n, i;
    double pairs = 0.5 * (double)rows * (double)(rows - views), sum = 0;
    ctr_bag_ bag;
    ctr_health_tile_ u;
    ctr_real *s;
    ctr_bag_open_(&bag, ctx);
    s = ctr_bag_real_(&bag, CTR_HEALTH_BLOCK_, rows);
    u.sum = ctr_bag_double_(&bag, rows, 1);
    u.s = s;
    u.inverse = inverse;
    u.rows = rows;
    u.n = n;
    for (u.first = 0; u.sum && u.first < rows; u.first += CTR_HEALTH_BLOCK_) {
        int64_t count = CTR_MIN_(CTR_HEALTH_BLOCK_, rows - u.first);
        ctr_gemm_run_(ctx, 0, 1, count, rows, d, 1, unit + u.first * d, d, unit, d, 0, s, rows);
        ctr_parallel_(ctx, count, ctr_health_uniform_job_, &u);
    }
    for (i = 0; u.sum && i < rows; i++) sum += u.sum[i];
    ctr_bag_close_(&bag);
    return pairs > 0 && sum > 0 ? log(sum / pairs) : 0;
}

/* (tr C)^2 / |C|^2. The rows' Gram matrix has the same |.| as C and is used where it is smaller. */
CTR_PRIVATE_ double ctr_health_rank_(ctr_ctx *ctx, int64_t rows, int64_t d, const ctr_real *unit,
                                     const double *mean)
{
    int64_t side = CTR_MIN_(rows, d), i, j;
    double trace = 0, square = 0;
    ctr_bag_ bag;
    ctr_real *centred, *c;
    ctr_bag_open_(&bag, ctx);
    centred = ctr_bag_real_(&bag, rows, d);
    c = ctr_bag_real_(&bag, side, side);
    if (c) {
        for (i = 0; i < rows; i++)
            for (j = 0; j < d; j++) {
                double t = (double)unit[i * d + j] - mean[j];
                centred[i * d + j] = (ctr_real)t;
                trace += t * t;
            }
        if (rows < d)
            ctr_gemm_run_(ctx, 0, 1, side, side, d, 1, centred, d, centred, d, 0, c, side);
        else
            ctr_gemm_run_(ctx, 1, 0, side, side, rows, 1, centred, d, centred, d, 0, c, side);
        for (i = 0; i < side * side; i++) square += (double)c[i] * (double)c[i];
    }
    ctr_bag_close_(&bag);
    /* below this the spread is rounding, and rounding has full rank */
    if (trace < 1e-10 * (double)rows || !(square > 0)) return 0;
    return trace * trace / square;
}

/* Sums over pairs need no pairs: sum_{i != j} x_i.x_j = |sum x|^2 - sum |x|^2, and the same within
   the views of an image. */
CTR_PRIVATE_ void ctr_health_pairs_(int64_t n, int views, int64_t d, const ctr_real *unit,
                                    const double *mean, const double *inverse, ctr_health *out)
{
    double total = 0, within = 0, own = 0, rows = (double)n * views, pairs;
    int64_t i, j;
    int v;
    for (j = 0; j < d; j++) total += mean[j] * mean[j] * rows * rows;
    for (i = 0; i < n; i++)
        for (j = 0; j < d; j++) {
            double sum = 0;
            for (v = 0; v < views; v++) sum += (double)unit[(v * n + i) * d + j];
            within += sum * sum;
        }
    for (i = 0; i < n * views; i++) own += inverse[i] > 0;
    pairs = rows * (views - 1);
    if (pairs > 0) {
        out->positive = (within - own) / pairs;
        /* |x - y|^2 = |x|^2 + |y|^2 - 2 x.y; a row is on either side of views - 1 ordered pairs */
        out->alignment = CTR_MAX_(0.0, 2.0 * own / rows - 2.0 * out->positive);
    }
    if (n > 1) out->negative = (total - within) / (rows * (rows - views));
}

CTR_PRIVATE_ double ctr_health_false_(int64_t n, const int32_t *labels)
{
    int64_t i, j, pairs = 0, equal = 0;
    if (!labels) return -1;
    for (i = 0; i < n; i++)
        for (j = i + 1; j < n && labels[i] >= 0; j++) {
            pairs += labels[j] >= 0;
            equal += labels[j] == labels[i];
        }
    return pairs ? (double)equal / (double)pairs : -1;
}

CTR_PRIVATE_ ctr_verdict ctr_health_judge_(const ctr_health *h, int64_t n)
{
    if (n < 2) return CTR_HEALTH_UNKNOWN;
    if (h->std < 0.05 * h->std_reference) return CTR_HEALTH_COLLAPSED;
    if (h->rank < 2 && h->rank_cap >= 8) return CTR_HEALTH_NARROW;
    return CTR_HEALTH_GOOD;
}

CTR_API int ctr_health_measure(ctr_ctx *ctx, int64_t n, int views, int64_t d, const ctr_real *z,
                               const int32_t *labels, ctr_health *out)
{
    int64_t rows, i;
    ctr_bag_ bag;
    ctr_real *unit;
    double *inverse, *mean, *std;
    memset(out, 0, sizeof *out);
    if (ctx->status != CTR_OK) return 0;
    if (n < 1 || views < 1 || d < 1 || n > INT64_MAX / views) {
        ctr_fail_(ctx, CTR_E_SHAPE, "health: n, views and d must be at least 1, got %ld, %d, %ld",
                  (long)n, views, (long)d);
        return 0;
    }
    rows = n * views;
    ctr_bag_open_(&bag, ctx);
    unit = ctr_bag_real_(&bag, rows, d);
    inverse = ctr_bag_double_(&bag, rows, 1);
    mean = ctr_bag_double_(&bag, d, 1);
    std = ctr_bag_double_(&bag, d, 1);
    if (ctr_eval_rows_scan_(ctx, "health", "embeddings", rows, d, z, inverse)) {
        ctr_eval_rows_unit_(ctx, rows, d, z, inverse, unit);
        ctr_eval_moments_(ctx, rows, d, unit, mean, std);
        out->rows = rows;
        out->d = d;
        for (i = 0; i < rows; i++) out->zero_rows += inverse[i] == 0;
        for (i = 0; i < d; i++) out->std += std[i] / (double)d;
        out->std_reference = 1.0 / sqrt((double)d);
        out->rank = ctr_health_rank_(ctx, rows, d, unit, mean);
        out->rank_cap = (double)CTR_MIN_(rows - 1, d);
        ctr_health_pairs_(n, views, d, unit, mean, inverse, out);
        if (n > 1) out->uniformity = ctr_health_uniformity_(ctx, n, rows, d, unit, inverse);
        out->false_negatives = ctr_health_false_(n, labels);
        out->verdict = ctr_health_judge_(out, n);
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

CTR_API const char *ctr_verdict_name(ctr_verdict verdict)
{
    switch (verdict) {
    case CTR_HEALTH_UNKNOWN: return "unknown";
    case CTR_HEALTH_GOOD: return "good";
    case CTR_HEALTH_NARROW: return "narrow";
    case CTR_HEALTH_COLLAPSED: return "collapsed";
    }
    return "unknown";
}

CTR_API void ctr_health_describe(const ctr_health *h, char *text, size_t size)
{
    char share[32] = "";
    if (h->false_negatives >= 0)
        snprintf(share, sizeof share, ", false negatives %.1f %%", 100 * h->false_negatives);
    snprintf(text, size,
             "%s: std %.4f of %.4f, rank %.1f of %.0f, alignment %.3f, uniformity %.2f, "
             "cosine %.3f positive %.3f negative%s",
             ctr_verdict_name(h->verdict), h->std, h->std_reference, h->rank, h->rank_cap,
             h->alignment, h->uniformity, h->positive, h->negative, share);
}


/* ------------------------------------------------------------------------------------------------
   >>METHOD
   ---------------------------------------------------------------------------------------------- */

CTR_API void ctr_method_destroy(ctr_method *method)
{
    if (method) method->destroy_fn(method);
}

CTR_API int ctr_method_begin(ctr_method *method, const ctr_loader *loader)
{
    if (method->ctx->status != CTR_OK) return 0;
    return !method->begin_fn || method->begin_fn(method, loader);
}

CTR_API void ctr_method_visit(ctr_method *method, const ctr_visitor *visitor)
{
    if (method) method->visit_fn(method, visitor);
}

/* Every variable of a table, as tensors. */
CTR_PRIVATE_ void ctr_visit_vars_(const ctr_visitor *v, const char *prefix, const ctr_vars *vars)
{
    char name[128];
    int i;
    for (i = 0; i < vars->count; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, vars->list[i].name);
        v->tensor_fn(v->user, name, vars->list[i].value, vars->list[i].conv);
    }
}

typedef struct ctr_hash_ {
    ctr_ctx *ctx;
    uint64_t value;
} ctr_hash_;

CTR_PRIVATE_ void ctr_hash_bytes_(ctr_hash_ *h, const void *bytes, size_t size)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t i;
    for (i = 0; i < size; i++) h->value = (h->value ^ p[i]) * (uint64_t)1099511628211u;
}

CTR_PRIVATE_ void ctr_hash_tensor_(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_hash_ *h = (ctr_hash_ *)user;
    size_t bytes = ctr_tensor_bytes_(t);
    void *copy = ctr_alloc_(h->ctx, bytes);
    (void)conv;
    if (!copy) return;
    ctr_k_download(h->ctx, bytes, t->data, copy);
    ctr_hash_bytes_(h, name, strlen(name));
    ctr_hash_bytes_(h, copy, bytes);
    ctr_free_host_(h->ctx, copy, bytes);
}

CTR_PRIVATE_ void ctr_hash_number_(void *user, const char *name, int64_t *value)
{
    ctr_hash_bytes_((ctr_hash_ *)user, name, strlen(name));
    ctr_hash_bytes_((ctr_hash_ *)user, value, sizeof *value);
}

CTR_API uint64_t ctr_method_hash(ctr_method *method)
{
    ctr_hash_ h;
    ctr_visitor v;
    if (!method) return 0;
    h.ctx = method->ctx;
    h.value = (uint64_t)14695981039346656037u;
    v.user = &h;
    v.tensor_fn = ctr_hash_tensor_;
    v.number_fn = ctr_hash_number_;
    method->visit_fn(method, &v);
    return h.value;
}

/* ---- the step
   ---------------------------------------------------------------------------------- */

/* std of the unit rows: mean over dimensions of the standard deviation over rows. A look at the
   batch that costs little; ctr_health_measure says more. */
CTR_PRIVATE_ void ctr_method_spread_(ctr_ctx *ctx, const ctr_tensor *z, ctr_report *report)
{
    int64_t m = z->shape[0], d = z->shape[1], i, j;
    size_t bytes = (size_t)(m * d) * sizeof(ctr_real);
    ctr_real *x = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, bytes);
    double total = 0;
    if (!x || m < 2) return;
    ctr_tensor_read(ctx, z, x, m * d);
    for (i = 0; i < m; i++) {
        double norm = sqrt((double)ctr_dot_(x + i * d, x + i * d, d));
        for (j = 0; j < d; j++)
            x[i * d + j] = (ctr_real)(norm > 0 ? (double)x[i * d + j] / norm : 0);
    }
    for (j = 0; j < d; j++) {
        double sum = 0, square = 0;
        for (i = 0; i < m; i++) {
            sum += (double)x[i * d + j];
            square += (double)x[i * d + j] * (double)x[i * d + j];
        }
        square = square / (double)m - sum / (double)m * (sum / (double)m);
        total += square > 0 ? sqrt(square) : 0;
    }
    report->std = total / (double)d;
    report->std_reference = 1 / sqrt((double)d);
}

CTR_PRIVATE_ void ctr_report_init_(ctr_report *r, const ctr_batch *batch, double lr)
{
    memset(r, 0, sizeof *r);
    r->epoch = batch->epoch;
    r->batch = batch->batch;
    r->lr = lr;
    r->chance = r->accuracy = r->positive = r->negative = r->std = r->std_reference = -1;
    r->rank = r->active = r->residual = r->false_negatives = -1;
}

/* Group g of a batch; the first one stands in the batch itself. */
CTR_PRIVATE_ ctr_view_group ctr_batch_group_(const ctr_batch *b, int g)
{
    ctr_view_group first;
    if (g > 0) return b->group[g];
    first.views = b->views;
    first.h = b->h;
    first.w = b->w;
    first.pixels = b->pixels;
    return first;
}

/* Does the batch have the groups of views that the method takes? */
CTR_PRIVATE_ void ctr_method_groups_(const ctr_method *method, const ctr_batch *batch)
{
    ctr_ctx *ctx = method->ctx;
    int groups = CTR_MAX_(method->groups, 1), got = CTR_MAX_(batch->groups, 1), g;
    if (got != groups || (got > 1 && !batch->group)) {
        ctr_fail_(ctx, CTR_E_SHAPE, "step: %s takes views of %d size%s, the batch has %d",
                  method->name, groups, groups > 1 ? "s" : "", got);
        return;
    }
    for (g = 0; g < groups; g++) {
        int want = method->groups > 1 ? method->group[g].views : method->views;
        int views = ctr_batch_group_(batch, g).views;
        if (views != want)
            ctr_fail_(ctx, CTR_E_SHAPE, "step: %s takes %d views of each image%s, the batch has %d",
                      method->name, want, g ? " in a smaller size" : "", views);
    }
}

/* A group's views as a tensor; the first number that is not finite is an error. before: views in
   the groups ahead of it. */
CTR_PRIVATE_ ctr_tensor *ctr_method_pixels_(ctr_ctx *ctx, const ctr_batch *b,
                                            const ctr_view_group *group, int before)
{
    int64_t shape[4], i, size;
    ctr_tensor *x;
    shape[0] = group->views * b->n;
    shape[1] = group->h;
    shape[2] = group->w;
    shape[3] = b->c;
    x = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
    ctr_tensor_write(ctx, x, group->pixels, x->size);
    if (ctr_k_finite(ctx, x->size, ctr_f_(x))) return x;
    size = group->h * group->w * b->c;
    for (i = 0; i < x->size && ctr_real_finite_(group->pixels[i]); i++) { }
    ctr_fail_(ctx, CTR_E_NUMBER,
              "step: image %ld of view %ld in the batch holds a number that is not "
              "finite",
              (long)(i / size % CTR_MAX_(b->n, 1)), (long)(before + i / size / CTR_MAX_(b->n, 1)));
    return x;
}

/* The targets, then the embeddings. */
CTR_PRIVATE_ ctr_tensor *ctr_method_embed_(ctr_method *method, const ctr_batch *batch)
{
    ctr_ctx *ctx = method->ctx;
    ctr_tensor *x;
    int g, views = 0;
    for (g = 0; g < CTR_MAX_(method->groups, 1); g++) {
        ctr_view_group group;
        method->crops[g] = &ctx->poison;
        if (ctx->status != CTR_OK) continue;
        group = ctr_batch_group_(batch, g);
        method->crops[g] = ctr_method_pixels_(ctx, batch, &group, views);
        views += group.views;
    }
    x = method->crops[0];
    if (method->target_fn) {
        ctr_nograd_begin(ctx);
        method->target = method->target_fn(method, x);
        ctr_nograd_end(ctx);
    }
    return method->embed_fn(method, x);
}

CTR_API int ctr_method_step(ctr_method *method, const ctr_batch *batch, double lr,
                            ctr_report *report)
{
    ctr_ctx *ctx = method ? method->ctx : NULL;
    ctr_report own;
    ctr_tensor *z, *loss;
    double start = ctr_platform_seconds_();
    int done;
    if (!ctx || ctx->status != CTR_OK) return 0;
    ctr_report_init_(&own, batch, lr);
    ctr_method_groups_(method, batch);
    if (!ctr_real_finite_((ctr_real)lr))
        ctr_fail_(ctx, CTR_E_VALUE, "step: the learning rate is not finite");
    ctr_step_begin(ctx);
    ctr_draws_at(ctx, batch->epoch, batch->batch);
    z = ctr_method_embed_(method, batch);                             /* [views * n, dim] */
    loss = method->loss_fn(method, z, batch, &own);
    if (ctx->status == CTR_OK) ctr_method_spread_(ctx, z, &own);
    own.loss = (double)ctr_tensor_item(ctx, loss);
    if (!ctr_real_finite_((ctr_real)own.loss))
        ctr_fail_(ctx, CTR_E_NUMBER,
                  "step: the loss is not finite (rate too high, or a temperature "
                  "too low)");
    ctr_backward(ctx, loss);
    method->check_fn(method);
    done = ctx->status == CTR_OK;
    if (done) {                                /* nothing has changed so far; now all of it does */
        method->commit_fn(method, lr);
        ctr_commit(ctx);
    }
    ctr_step_end(ctx);
    own.seconds = ctr_platform_seconds_() - start;
    if (report) *report = own;
    return done && ctx->status == CTR_OK;
}

CTR_API size_t ctr_method_plan(ctr_method *method, int64_t n, int64_t h, int64_t w, int64_t c)
{
    ctr_ctx *ctx = method ? method->ctx : NULL;
    ctr_batch batch;
    ctr_report report;
    if (!ctx || ctx->status != CTR_OK) return 0;
    memset(&batch, 0, sizeof batch);
    batch.n = n;
    batch.views = method->groups > 1 ? method->group[0].views : method->views;
    batch.groups = method->groups;
    batch.group = method->group;
    batch.h = h;
    batch.w = w;
    batch.c = c;
    ctr_report_init_(&report, &batch, 0);
    ctr_plan_begin(ctx);
    ctr_backward(ctx,
                 method->loss_fn(method, ctr_method_embed_(method, &batch), &batch, &report));
    return ctr_plan_end(ctx);
}

/* ---- representations
   --------------------------------------------------------------------------- */

/* A slab for the representations of n images: without it the first ones would overflow it, and a
   network that is not recorded could not reuse its memory from block to block. */
CTR_PRIVATE_ void ctr_method_reserve_(ctr_method *method, int64_t n, int64_t h, int64_t w,
                                      int64_t c)
{
    ctr_ctx *ctx = method->ctx;
    int64_t shape[4];
    shape[0] = n;
    shape[1] = h;
    shape[2] = w;
    shape[3] = c;
    ctr_plan_begin(ctx);
    ctr_nograd_begin(ctx);
    method->represent_fn(method, ctr_tensor_temp(ctx, CTR_F32, 4, shape), CTR_NORM_EVAL);
    ctr_step_reserve(ctx, ctr_plan_end(ctx));
}

CTR_API int ctr_method_represent(ctr_method *method, int64_t n, int64_t h, int64_t w, int64_t c,
                                 const ctr_real *x, int64_t chunk, ctr_real *out)
{
    ctr_ctx *ctx = method ? method->ctx : NULL;
    int64_t i, count, shape[4];
    if (!ctx || ctx->status != CTR_OK) return 0;
    if (chunk < 1) chunk = 64;
    if (n > 0) ctr_method_reserve_(method, CTR_MIN_(n, chunk), h, w, c);
    for (i = 0; i < n && ctx->status == CTR_OK; i += chunk) {
        ctr_tensor *t;
        count = CTR_MIN_(n - i, chunk);
        shape[0] = count;
        shape[1] = h;
        shape[2] = w;
        shape[3] = c;
        ctr_step_begin(ctx);
        ctr_nograd_begin(ctx);
        t = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
        ctr_tensor_write(ctx, t, x + i * h * w * c, t->size);
        t = method->represent_fn(method, t, CTR_NORM_EVAL);
        ctr_tensor_read(ctx, t, out + i * method->features, count * method->features);
        ctr_step_end(ctx);
    }
    return ctx->status == CTR_OK;
}

CTR_API int ctr_method_represent_dataset(ctr_ctx *ctx, ctr_method *method,
                                         const ctr_dataset *dataset, const ctr_aug_config *aug,
                                         uint64_t seed, ctr_real *out, int32_t *labels)
{
    ctr_loader_config config = ctr_loader_config_default();
    ctr_loader *loader;
    ctr_batch b;
    int64_t at = 0, width;
    config.batch = CTR_MIN_(ctr_dataset_count(dataset), 128);
    config.views = 1;
    config.augs = aug;
    config.last = CTR_LAST_KEEP;
    config.shuffle = 0;
    config.seed = seed;
    loader = ctr_loader_create(ctx, dataset, &config);
    if (!loader) return 0;
    while (ctr_loader_next(ctx, loader, &b)) {
        width = method ? method->features : b.h * b.w * b.c;
        if (method)
            ctr_method_represent(method, b.n, b.h, b.w, b.c, b.pixels, 64, out + at * width);
        else
            memcpy(out + at * width, b.pixels, (size_t)(b.n * width) * sizeof *out);
        if (labels) memcpy(labels + at, b.labels, (size_t)b.n * sizeof *labels);
        at += b.n;
    }
    ctr_loader_destroy(ctx, loader);
    return ctx->status == CTR_OK;
}

CTR_API double ctr_lr_scaled(double base, ctr_lr_rule rule, int64_t batch)
{
    double share = (double)batch / 256;
    return rule == CTR_LR_LINEAR ? base * share : rule == CTR_LR_SQRT ? base * sqrt(share) : base;
}

/* ---- SimCLR ------------------------------------------------------------------------------------

        image --+--> view 1 --> encoder --> projector --> z1 --+
                |                 (one network)                +--> NT-Xent
                +--> view 2 --> encoder --> projector --> z2 --+

   The encoder's output is what is kept; the projector is thrown away after training.            */

typedef struct ctr_simclr_ {
    ctr_method base;
    ctr_simclr_config config;
    ctr_vars vars;                 /* encoder.* and projector.* */
    ctr_resnet encoder;
    ctr_mlp projector;
    ctr_optim *optim;
    ctr_aug_config augs[64];
} ctr_simclr_;

CTR_API void ctr_simclr_config_init(ctr_simclr_config *config)
{
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->proj_layers = 2;
    config->proj_dim = 128;
    config->temperature = 0.5;
    config->views = 2;
    config->aug = ctr_aug_simclr_default(32);
    config->optim = ctr_optim_config_default(CTR_OPTIM_LARS);
    config->lr = 1.0;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_simclr_config ctr_simclr_default(void)
{
    ctr_simclr_config config;
    ctr_simclr_config_init(&config);
    return config;
}

CTR_PRIVATE_ ctr_tensor *ctr_simclr_represent_(ctr_method *method, ctr_tensor *x,
                                               ctr_norm_mode mode)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    int groups = mode != CTR_NORM_EVAL && m->config.split_norm ? m->config.views : 1;
    return ctr_resnet_forward(method->ctx, &m->encoder, x, mode, groups);
}

CTR_PRIVATE_ ctr_tensor *ctr_simclr_embed_(ctr_method *method, ctr_tensor *x)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    ctr_tensor *h = ctr_simclr_represent_(method, x, CTR_NORM_TRAIN);
    return ctr_mlp_forward(method->ctx, &m->projector, h, CTR_NORM_TRAIN,
                           m->config.split_norm ? m->config.views : 1);
}

CTR_PRIVATE_ ctr_tensor *ctr_simclr_loss_(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                                          ctr_report *report)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    report->chance = ctr_loss_nt_xent_chance(batch->n, batch->views);
    report->false_negatives = ctr_loss_false_negatives_(batch->n, batch->labels);
    return ctr_loss_contrast_(method->ctx, z, batch->views,
                              m->config.supervised ? batch->labels : NULL, m->config.temperature,
                              report);
}

CTR_PRIVATE_ void ctr_simclr_check_(ctr_method *method)
{
    ctr_vars_check_gradients(method->ctx, &((ctr_simclr_ *)method)->vars);
}

CTR_PRIVATE_ void ctr_simclr_commit_(ctr_method *method, double lr)
{
    ctr_optim_step(method->ctx, ((ctr_simclr_ *)method)->optim, lr);
}

CTR_PRIVATE_ void ctr_simclr_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    ctr_visit_vars_(visitor, "", &m->vars);
    ctr_visit_vars_(visitor, "optim.", ctr_optim_state(m->optim));
    visitor->number_fn(visitor->user, "optim.steps", ctr_optim_steps(m->optim));
}

CTR_PRIVATE_ void ctr_simclr_describe_(ctr_method *method, char *text, size_t size)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    char net[96];
    snprintf(text, size, "simclr %s head=%dx%ld-%ld", ctr_resnet_describe(&m->encoder, net),
             m->config.proj_layers, (long)m->projector.config.hidden, (long)m->config.proj_dim);
}

CTR_PRIVATE_ void ctr_simclr_destroy_(ctr_method *method)
{
    ctr_simclr_ *m = (ctr_simclr_ *)method;
    ctr_ctx *ctx = method->ctx;
    ctr_optim_destroy(ctx, m->optim);
    ctr_vars_destroy(ctx, &m->vars);
    ctr_free_host_(ctx, m, sizeof *m);
}

CTR_PRIVATE_ void ctr_simclr_methods_(ctr_method *base)
{
    base->name = "simclr";
    base->represent_fn = ctr_simclr_represent_;
    base->embed_fn = ctr_simclr_embed_;
    base->loss_fn = ctr_simclr_loss_;
    base->commit_fn = ctr_simclr_commit_;
    base->check_fn = ctr_simclr_check_;
    base->visit_fn = ctr_simclr_visit_;
    base->describe_fn = ctr_simclr_describe_;
    base->destroy_fn = ctr_simclr_destroy_;
}

CTR_API ctr_method *ctr_simclr_create(ctr_ctx *ctx, const ctr_simclr_config *config)
{
    ctr_simclr_ *m;
    ctr_mlp_config head;
    int i;
    if (ctx->status != CTR_OK) return NULL;
    if (config->views < 2 || config->views > 64 ||
        !ctr_real_finite_((ctr_real)config->temperature) || !(config->temperature > 0)) {
        ctr_fail_(ctx, CTR_E_VALUE,
                  "simclr: views must be 2..64 and the temperature above 0, got %d "
                  "and %g",
                  config->views, config->temperature);
        return NULL;
    }
    if (!ctr_aug_config_check(ctx, &config->aug)) return NULL;
    m = (ctr_simclr_ *)ctr_alloc_zero_(ctx, sizeof *m);
    if (!m) return NULL;
    m->config = *config;
    ctr_simclr_methods_(&m->base);
    m->base.ctx = ctx;
    m->base.views = config->views;
    m->base.lr = config->lr;
    m->base.lr_rule = config->lr_rule;
    for (i = 0; i < config->views; i++) m->augs[i] = config->aug;
    m->base.augs = m->augs;
    ctr_resnet_init(ctx, &m->encoder, &m->vars, "encoder.", &config->encoder);
    m->base.features = m->encoder.features;
    m->base.dim = config->proj_dim;
    m->base.encoder = &m->vars;
    head = ctr_mlp_config_default(m->encoder.features, config->proj_hidden ? config->proj_hidden
                                                                           : m->encoder.features,
                                  config->proj_dim);
    head.layers = config->proj_layers;
    if (ctx->status == CTR_OK) ctr_mlp_init(ctx, &m->projector, &m->vars, "projector.", &head);
    if (ctx->status == CTR_OK) m->optim = ctr_optim_create(ctx, &config->optim, &m->vars);
    if (ctx->status != CTR_OK) {
        ctr_simclr_destroy_(&m->base);
        return NULL;
    }
    return &m->base;
}

/* ---- twins -------------------------------------------------------------------------------------

   What the methods with two views share: a trained network, which may have a predictor, and perhaps
   a target network of the same shape, which takes no gradient. Batch norm sees one view at a time.

        view --> encoder --> projector [--> predictor]                trained
        view --> target encoder --> target projector --> //     follows; // stops the gradient   */

typedef struct ctr_twin_config_ {
    const ctr_resnet_config *encoder;
    ctr_mlp_config projector, predictor;  /* in is filled in; predictor.layers 0: there is none */
    int target, own_target, average;      /* is there one; not a copy at first; buffers follow */
    int split_norm;                       /* groups of batch norm within a view */
    const ctr_optim_config *optim;
    double lr;
    ctr_lr_rule lr_rule;
    const ctr_aug_config *aug[2];
} ctr_twin_config_;

typedef struct ctr_twin_ {
    ctr_method base;
    size_t bytes;                  /* of the method that begins with this */
    ctr_vars vars, head, follower; /* encoder.* projector.*; predictor.*; target.* */
    ctr_resnet encoder, target_encoder;
    ctr_mlp projector, predictor, target_projector;
    ctr_optim *optim, *head_optim; /* apart, so that the predictor can have a rate of its own */
    int average, split_norm;
    ctr_aug_config augs[2];
} ctr_twin_;

CTR_PRIVATE_ ctr_tensor *ctr_twin_represent_(ctr_method *method, ctr_tensor *x, ctr_norm_mode mode)
{
    return ctr_resnet_forward(method->ctx, &((ctr_twin_ *)method)->encoder, x, mode, 1);
}

/* The batch norm groups of x, which holds `views` views. */
CTR_PRIVATE_ int ctr_twin_groups_(const ctr_twin_ *t, const ctr_tensor *x, int views)
{
    ctr_ctx *ctx = t->base.ctx;
    int groups = views * t->split_norm;
    if (ctx->status == CTR_OK && x->shape[0] % groups)
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: %ld images cannot be cut into %d equal groups "
                  "(split_norm)", t->base.name, (long)(x->shape[0] / views), t->split_norm);
    return groups;
}

CTR_PRIVATE_ ctr_tensor *ctr_twin_project_(ctr_twin_ *t, ctr_tensor *x, int views)
{
    ctr_ctx *ctx = t->base.ctx;
    int groups = ctr_twin_groups_(t, x, views);
    ctr_tensor *h = ctr_resnet_forward(ctx, &t->encoder, x, CTR_NORM_TRAIN, groups);
    return ctr_mlp_forward(ctx, &t->projector, h, CTR_NORM_TRAIN, groups);
}

CTR_PRIVATE_ ctr_tensor *ctr_twin_predict_(ctr_twin_ *t, ctr_tensor *z, int views)
{
    return ctr_mlp_forward(t->base.ctx, &t->predictor, z, CTR_NORM_TRAIN,
                           ctr_twin_groups_(t, z, views));
}

/* Both views through all of the trained network. */
CTR_PRIVATE_ ctr_tensor *ctr_twin_embed_(ctr_method *method, ctr_tensor *x)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    ctr_tensor *z = ctr_twin_project_(t, x, 2);
    return t->head_optim ? ctr_twin_predict_(t, z, 2) : z;
}

/* The target runs in training mode, as its authors have it; its running statistics are staged. */
CTR_PRIVATE_ ctr_tensor *ctr_twin_target_views_(ctr_twin_ *t, ctr_tensor *x, int views)
{
    ctr_ctx *ctx = t->base.ctx;
    ctr_norm_mode mode = t->average ? CTR_NORM_BATCH : CTR_NORM_TRAIN;
    int groups = ctr_twin_groups_(t, x, views);
    ctr_tensor *h = ctr_resnet_forward(ctx, &t->target_encoder, x, mode, groups);
    return ctr_mlp_forward(ctx, &t->target_projector, h, mode, groups);
}

CTR_PRIVATE_ ctr_tensor *ctr_twin_target_(ctr_method *method, ctr_tensor *x)
{
    return ctr_twin_target_views_((ctr_twin_ *)method, x, 2);
}

/* The rows of view 0 or 1 of [2n, ...]. */
CTR_PRIVATE_ ctr_tensor *ctr_twin_view_(ctr_ctx *ctx, ctr_tensor *x, int view)
{
    int64_t n = x->shape[0] / 2;
    return ctr_slice(ctx, x, 0, view * n, n);
}

/* For losses that do not look at other images: how many rows of q have their own row of k nearest,
   and the mean cosines of the same and of other images. */
CTR_PRIVATE_ void ctr_twin_agree_(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k, ctr_report *report)
{
    ctr_nograd_begin(ctx);
    ctr_loss_infonce_(ctx, q, k, NULL, 1, report);
    ctr_nograd_end(ctx);
}

CTR_PRIVATE_ void ctr_twin_check_(ctr_method *method)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    ctr_vars_check_gradients(method->ctx, &t->vars);
    ctr_vars_check_gradients(method->ctx, &t->head);
}

CTR_PRIVATE_ void ctr_twin_step_(ctr_twin_ *t, double lr, double head_lr)
{
    ctr_optim_step(t->base.ctx, t->optim, lr);
    if (t->head_optim) ctr_optim_step(t->base.ctx, t->head_optim, head_lr);
}

/* The target moves to where the optimiser has just brought the online network. */
CTR_PRIVATE_ void ctr_twin_follow_(ctr_twin_ *t, double momentum)
{
    if (t->average) ctr_commit(t->base.ctx); /* it averages the running statistics of this step */
    ctr_vars_ema(t->base.ctx, &t->follower, &t->vars, momentum, t->average);
}

CTR_PRIVATE_ void ctr_twin_commit_(ctr_method *method, double lr)
{
    ctr_twin_step_((ctr_twin_ *)method, lr, lr);
}

CTR_PRIVATE_ void ctr_twin_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    ctr_visit_vars_(visitor, "", &t->vars);
    ctr_visit_vars_(visitor, "", &t->head);
    ctr_visit_vars_(visitor, "", &t->follower);
    ctr_visit_vars_(visitor, "optim.", ctr_optim_state(t->optim));
    visitor->number_fn(visitor->user, "optim.steps", ctr_optim_steps(t->optim));
    if (!t->head_optim) return;
    ctr_visit_vars_(visitor, "optim.", ctr_optim_state(t->head_optim));
    visitor->number_fn(visitor->user, "optim.predictor.steps", ctr_optim_steps(t->head_optim));
}

/* "byol resnet8 ... head=2x4096-256 predictor=2x4096-256": what a checkpoint compares */
CTR_PRIVATE_ void ctr_twin_describe_(ctr_method *method, char *text, size_t size)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    const ctr_mlp_config *z = &t->projector.config, *p = &t->predictor.config;
    char net[96], head[96];
    snprintf(head, sizeof head, " predictor=%dx%ld-%ld", p->layers, (long)p->hidden, (long)p->out);
    snprintf(text, size, "%s %s head=%dx%ld-%ld%s", method->name,
             ctr_resnet_describe(&t->encoder, net), z->layers, (long)z->hidden, (long)z->out,
             t->head_optim ? head : "");
}

CTR_PRIVATE_ void ctr_twin_destroy_(ctr_method *method)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    ctr_ctx *ctx = method->ctx;
    ctr_optim_destroy(ctx, t->head_optim);
    ctr_optim_destroy(ctx, t->optim);
    ctr_vars_destroy(ctx, &t->follower);
    ctr_vars_destroy(ctx, &t->head);
    ctr_vars_destroy(ctx, &t->vars);
    ctr_free_host_(ctx, t, t->bytes);
}

/* What every twin does; embed, loss and commit are for the method to replace. */
CTR_PRIVATE_ void ctr_twin_methods_(ctr_method *base)
{
    base->views = 2;
    base->represent_fn = ctr_twin_represent_;
    base->embed_fn = ctr_twin_embed_;
    base->commit_fn = ctr_twin_commit_;
    base->check_fn = ctr_twin_check_;
    base->visit_fn = ctr_twin_visit_;
    base->describe_fn = ctr_twin_describe_;
    base->destroy_fn = ctr_twin_destroy_;
}

/* The networks, then what trains them. */
CTR_PRIVATE_ void ctr_twin_build_(ctr_ctx *ctx, ctr_twin_ *t, ctr_twin_config_ *c)
{
    ctr_resnet_init(ctx, &t->encoder, &t->vars, "encoder.", c->encoder);
    c->projector.in = t->encoder.features;
    if (!c->projector.hidden) c->projector.hidden = t->encoder.features;
    c->predictor.in = c->projector.out;
    if (ctx->status == CTR_OK)
        ctr_mlp_init(ctx, &t->projector, &t->vars, "projector.", &c->projector);
    if (ctx->status == CTR_OK && c->predictor.layers)
        ctr_mlp_init(ctx, &t->predictor, &t->head, "predictor.", &c->predictor);
    if (ctx->status == CTR_OK && c->target) {
        t->follower.frozen = 1;
        ctr_resnet_init(ctx, &t->target_encoder, &t->follower, "target.encoder.", c->encoder);
        ctr_mlp_init(ctx, &t->target_projector, &t->follower, "target.projector.", &c->projector);
        if (!c->own_target) ctr_vars_copy(ctx, &t->follower, &t->vars);
    }
    if (ctx->status == CTR_OK) t->optim = ctr_optim_create(ctx, c->optim, &t->vars);
    if (ctx->status == CTR_OK && c->predictor.layers)
        t->head_optim = ctr_optim_create(ctx, c->optim, &t->head);
}

/* A method of so many bytes that begins with a ctr_twin_; NULL on error. */
CTR_PRIVATE_ ctr_twin_ *ctr_twin_create_(ctr_ctx *ctx, const char *name, size_t bytes,
                                         ctr_twin_config_ *c)
{
    ctr_twin_ *t;
    if (ctx->status != CTR_OK) return NULL;
    if (c->split_norm < 1 || c->split_norm > 65536) {
        ctr_fail_(ctx, CTR_E_VALUE, "%s: split_norm must be 1..65536, got %d", name, c->split_norm);
        return NULL;
    }
    if (!ctr_aug_config_check(ctx, c->aug[0]) || !ctr_aug_config_check(ctx, c->aug[1])) return NULL;
    t = (ctr_twin_ *)ctr_alloc_zero_(ctx, bytes);
    if (!t) return NULL;
    ctr_twin_methods_(&t->base);
    t->base.name = name;
    t->base.ctx = ctx;
    t->bytes = bytes;
    t->base.lr = c->lr;
    t->base.lr_rule = c->lr_rule;
    t->average = c->average;
    t->split_norm = c->split_norm;
    t->augs[0] = *c->aug[0];
    t->augs[1] = *c->aug[1];
    t->base.augs = t->augs;
    ctr_twin_build_(ctx, t, c);
    t->base.features = t->encoder.features;
    t->base.dim = c->projector.out;
    t->base.encoder = &t->vars;
    if (ctx->status == CTR_OK) return t;
    ctr_twin_destroy_(&t->base);
    return NULL;
}

/* ---- Barlow Twins ------------------------------------------------------------------------------

        view 1 --> encoder --> projector --> z1 --> a: columns of mean 0, variance 1 --+
                      | same weights                                                   |
        view 2 --> encoder --> projector --> z2 --> b: columns of mean 0, variance 1 --+
                                                                                       v
                                                                              c = a^T b / n
                                       sum_j (1 - c_jj)^2 + lambda sum over j != k of c_jk^2      */

typedef struct ctr_barlow_twins_ {
    ctr_twin_ twin;
    ctr_barlow_twins_config config;
} ctr_barlow_twins_;

CTR_API void ctr_barlow_twins_config_init(ctr_barlow_twins_config *config)
{
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->encoder.zero_init = 1;
    config->proj_layers = 3;
    config->proj_dim = 8192;
    config->lambda = 0.0051;
    config->aug[0] = ctr_aug_byol_default(32, 0);
    config->aug[1] = ctr_aug_byol_default(32, 1);
    config->optim = ctr_optim_config_default(CTR_OPTIM_LARS);
    config->optim.decay = 1e-6;
    config->optim.bias_rate = 0.024;
    config->lr = 0.2;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_barlow_twins_config ctr_barlow_twins_default(void)
{
    ctr_barlow_twins_config config;
    ctr_barlow_twins_config_init(&config);
    return config;
}

CTR_PRIVATE_ ctr_tensor *ctr_barlow_twins_loss_(ctr_method *method, ctr_tensor *z,
                                                const ctr_batch *batch, ctr_report *report)
{
    ctr_ctx *ctx = method->ctx;
    double lambda = ((ctr_barlow_twins_ *)method)->config.lambda;
    ctr_tensor *z1 = ctr_twin_view_(ctx, z, 0), *z2 = ctr_twin_view_(ctx, z, 1);
    report->chance = ctr_loss_barlow_twins_chance(batch->n, method->dim, lambda);
    ctr_twin_agree_(ctx, z1, z2, report);
    return ctr_loss_barlow_twins(ctx, z1, z2, lambda);
}

CTR_API ctr_method *ctr_barlow_twins_create(ctr_ctx *ctx, const ctr_barlow_twins_config *config)
{
    ctr_twin_config_ c;
    ctr_barlow_twins_ *m;
    if (!ctr_loss_weight_(ctx, "barlow_twins", "lambda", config->lambda)) return NULL;
    memset(&c, 0, sizeof c);
    c.encoder = &config->encoder;
    c.projector = ctr_mlp_config_default(0, config->proj_dim, config->proj_dim);
    c.projector.layers = config->proj_layers;
    c.projector.out_norm = 0;
    c.split_norm = 1;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    c.aug[0] = &config->aug[0];
    c.aug[1] = &config->aug[1];
    m = (ctr_barlow_twins_ *)ctr_twin_create_(ctx, "barlow_twins", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->twin.base.loss_fn = ctr_barlow_twins_loss_;
    return &m->twin.base;
}

/* ---- VICReg ------------------------------------------------------------------------------------

        view 1 --> encoder --> projector --> z1 --+--> variance and covariance of z1
                      | same weights              +--> |z1 - z2|^2
        view 2 --> encoder --> projector --> z2 --+--> variance and covariance of z2              */

typedef struct ctr_vicreg_ {
    ctr_twin_ twin;
    ctr_vicreg_config config;
} ctr_vicreg_;

CTR_API void ctr_vicreg_config_init(ctr_vicreg_config *config)
{
    int i;
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->encoder.zero_init = 1;
    config->proj_layers = 3;
    config->proj_dim = 8192;
    config->invariance = config->variance = 25;
    config->covariance = 1;
    for (i = 0; i < 2; i++) {
        config->aug[i] = ctr_aug_byol_default(32, i);
        config->aug[i].solarize_p = 0.1;
    }
    config->optim = ctr_optim_config_default(CTR_OPTIM_LARS);
    config->optim.decay = 1e-6;
    config->lr = 0.2;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_vicreg_config ctr_vicreg_default(void)
{
    ctr_vicreg_config config;
    ctr_vicreg_config_init(&config);
    return config;
}

CTR_PRIVATE_ ctr_tensor *ctr_vicreg_method_loss_(ctr_method *method, ctr_tensor *z,
                                                 const ctr_batch *batch, ctr_report *report)
{
    ctr_ctx *ctx = method->ctx;
    const ctr_vicreg_config *c = &((ctr_vicreg_ *)method)->config;
    ctr_tensor *z1 = ctr_twin_view_(ctx, z, 0), *z2 = ctr_twin_view_(ctx, z, 1);
    (void)batch;                              /* there is no chance value: nothing is chosen */
    ctr_twin_agree_(ctx, z1, z2, report);
    return ctr_loss_vicreg(ctx, z1, z2, c->invariance, c->variance, c->covariance);
}

CTR_API ctr_method *ctr_vicreg_create(ctr_ctx *ctx, const ctr_vicreg_config *config)
{
    ctr_twin_config_ c;
    ctr_vicreg_ *m;
    if (!ctr_loss_weight_(ctx, "vicreg", "invariance", config->invariance) ||
        !ctr_loss_weight_(ctx, "vicreg", "variance", config->variance) ||
        !ctr_loss_weight_(ctx, "vicreg", "covariance", config->covariance))
        return NULL;
    memset(&c, 0, sizeof c);
    c.encoder = &config->encoder;
    c.projector = ctr_mlp_config_default(0, config->proj_dim, config->proj_dim);
    c.projector.layers = config->proj_layers;
    c.projector.hidden_bias = 1;
    c.projector.out_norm = 0;
    c.split_norm = 1;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    c.aug[0] = &config->aug[0];
    c.aug[1] = &config->aug[1];
    m = (ctr_vicreg_ *)ctr_twin_create_(ctx, "vicreg", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->twin.base.loss_fn = ctr_vicreg_method_loss_;
    return &m->twin.base;
}

/* ------------------------------------------------------------------------------------------------
   >>TEACHER
   ---------------------------------------------------------------------------------------------- */

CTR_API double ctr_momentum_cosine(double base, int64_t step, int64_t total)
{
    double t = total > 0 ? CTR_MIN_((double)step / (double)total, 1) : 0;
    return 1 - (1 - base) * 0.5 * (1 + cos(CTR_PI_ * t));
}

CTR_PRIVATE_ int ctr_momentum_check_(ctr_ctx *ctx, const char *name, double momentum)
{
    if (ctx->status != CTR_OK) return 0;
    if (ctr_real_finite_((ctr_real)momentum) && momentum >= 0 && momentum <= 1) return 1;
    ctr_fail_(ctx, CTR_E_VALUE, "%s: the target's momentum must be in 0..1, got %g", name,
              momentum);
    return 0;
}

/* ---- the queue
   --------------------------------------------------------------------------------- */

/* Random unit rows: negatives that belong to nobody. */
CTR_PRIVATE_ void ctr_queue_fill_(ctr_ctx *ctx, ctr_tensor *rows, const char *prefix)
{
    int64_t n = rows->shape[0], d = rows->shape[1], i, j;
    size_t bytes = ctr_tensor_bytes_(rows);
    ctr_real *x;
    ctr_init_random_(ctx, rows, prefix, "rows", 1, 1);
    x = (ctr_real *)ctr_alloc_(ctx, bytes);
    if (!x) return;
    ctr_tensor_read(ctx, rows, x, n * d);
    for (i = 0; i < n; i++) {
        double norm = sqrt((double)ctr_dot_(x + i * d, x + i * d, d));
        for (j = 0; j < d && norm > 0; j++) x[i * d + j] = (ctr_real)((double)x[i * d + j] / norm);
    }
    ctr_tensor_write(ctx, rows, x, n * d);
    ctr_free_host_(ctx, x, bytes);
}

CTR_API void ctr_queue_init(ctr_ctx *ctx, ctr_queue *queue, ctr_vars *vars, const char *prefix,
                            int64_t size, int64_t dim)
{
    int64_t shape[2];
    memset(queue, 0, sizeof *queue);
    queue->rows = queue->labels = &ctx->poison;
    if (ctx->status == CTR_OK && (size < 1 || dim < 1))
        ctr_fail_(ctx, CTR_E_VALUE, "queue: needs at least one row of one number, got %ld of %ld",
                  (long)size, (long)dim);
    shape[0] = size;
    shape[1] = dim;
    queue->rows = ctr_vars_add(ctx, vars, prefix, "rows", CTR_KIND_BUFFER, 2, shape);
    queue->labels = ctr_vars_add(ctx, vars, prefix, "labels", CTR_KIND_BUFFER, 1, shape);
    if (ctx->status != CTR_OK) return;
    ctr_queue_fill_(ctx, queue->rows, prefix);
    ctr_tensor_fill(ctx, queue->labels, -1);
}

CTR_API int64_t ctr_queue_filled(const ctr_queue *queue)
{
    return CTR_MIN_(queue->pushed, queue->rows->shape[0]);
}

/* Labels of keys into the rows from `row` on. */
CTR_PRIVATE_ void ctr_queue_labels_(ctr_ctx *ctx, ctr_queue *queue, int64_t row, int64_t count,
                                    const int32_t *labels)
{
    ctr_real block[64];
    int64_t i, j, n;
    for (i = 0; i < count; i += n) {
        n = CTR_MIN_(count - i, 64);
        for (j = 0; j < n; j++) block[j] = (ctr_real)(labels ? labels[i + j] : -1);
        ctr_k_upload(ctx, (size_t)n * sizeof *block, block, ctr_f_(queue->labels) + row + i);
    }
}

CTR_API void ctr_queue_push(ctr_ctx *ctx, ctr_queue *queue, const ctr_tensor *keys,
                            const int32_t *labels)
{
    int64_t size = queue->rows->shape[0], d = queue->rows->shape[1], n = keys->shape[0];
    int64_t i, row, run;
    if (!ctr_check_(ctx, "queue_push", keys, 2)) return;
    if (keys->shape[1] != d) {
        ctr_fail_shapes_(ctx, "queue_push", keys, queue->rows, "keys are [n, dim]");
        return;
    }
    for (i = n > size ? n - size : 0; i < n; i += run) { /* in runs that do not wrap */
        row = (queue->pushed + i) % size;
        run = CTR_MIN_(n - i, size - row);
        ctr_k_copy(ctx, (size_t)(run * d) * sizeof(ctr_real), ctr_f_(keys) + i * d,
                   ctr_f_(queue->rows) + row * d);
        ctr_queue_labels_(ctx, queue, row, run, labels ? labels + i : NULL);
    }
    queue->pushed += n;
}

CTR_API double ctr_queue_false_negatives(ctr_ctx *ctx, const ctr_queue *queue, int64_t n,
                                         const int32_t *labels)
{
    int64_t size = queue->labels->size, i, same = 0, known = 0, anchors = 0;
    int32_t *count, most = 0;
    ctr_real *key;
    for (i = 0; labels && i < n; i++) {
        anchors += labels[i] >= 0;
        most = CTR_MAX_(most, labels[i]);
    }
    if (!anchors || ctx->status != CTR_OK || ctx->plan) return -1;
    key = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, (size_t)size * sizeof *key);
    count = (int32_t *)ctr_arena_take_(ctx, &ctx->host, ((size_t)most + 1) * sizeof *count);
    if (!key || !count) return -1;
    memset(count, 0, ((size_t)most + 1) * sizeof *count);
    ctr_tensor_read(ctx, queue->labels, key, size);
    for (i = 0; i < size; i++) {
        known += key[i] >= 0;
        if (key[i] >= 0 && key[i] <= (ctr_real)most) count[(int32_t)key[i]]++;
    }
    for (i = 0; i < n; i++)
        if (labels[i] >= 0) same += count[labels[i]];
    return known ? (double)same / ((double)anchors * (double)known) : -1;
}

/* ---- MoCo --------------------------------------------------------------------------------------

        view 1 --> encoder --> projector --> query q --------------------------------+
                      |  after each step:                                            +--> InfoNCE
                      v  target = m target + (1 - m) online                          |
        view 2 --> target encoder --> target projector --> // --> key k -------------+
                                                                    |                |
                                        after the loss, into the    +--> queue ------+ negatives

   // stops the gradient. Version 3: q = predictor(projector(encoder)), no queue, the negatives are
   the batch's other keys.                                                                        */

typedef struct ctr_moco_ {
    ctr_twin_ twin;
    ctr_moco_config config;
    ctr_vars store;                /* queue.* */
    ctr_queue queue;
    const ctr_tensor *keys;        /* of this step, to be pushed, and their labels or NULL */
    const int32_t *labels;
} ctr_moco_;

CTR_API void ctr_moco_config_init(ctr_moco_config *config, int version)
{
    int v3 = version >= 3;
    memset(config, 0, sizeof *config);
    config->version = version;
    config->encoder = ctr_resnet_config_default(18);
    config->encoder.zero_init = v3;
    config->proj_hidden = v3 ? 4096 : 0;
    config->proj_dim = v3 ? 256 : 128;
    config->pred_hidden = 4096;
    config->temperature = v3 ? 1 : version == 2 ? 0.2 : 0.07;
    config->momentum = v3 ? 0.99 : 0.999;
    config->momentum_cosine = v3;
    config->queue = 65536;
    config->split_norm = v3 ? 1 : 8;
    config->shuffle = !v3;
    config->aug[0] = ctr_aug_moco_default(32, version, 0);
    config->aug[1] = ctr_aug_moco_default(32, version, 1);
    config->optim = ctr_optim_config_default(v3 ? CTR_OPTIM_LARS : CTR_OPTIM_SGD);
    config->optim.decay = v3 ? 1e-6 : 1e-4;
    config->optim.decay_all = !v3;
    config->lr = v3 ? 0.3 : 0.03;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_moco_config ctr_moco_default(int version)
{
    ctr_moco_config config;
    ctr_moco_config_init(&config, version);
    return config;
}

/* Views of the images that a network sees: one, or both. */
CTR_PRIVATE_ int ctr_moco_views_(const ctr_moco_ *m)
{
    return m->config.symmetric || m->config.version == 3 ? 2 : 1;
}

CTR_PRIVATE_ ctr_tensor *ctr_moco_embed_(ctr_method *method, ctr_tensor *x)
{
    ctr_moco_ *m = (ctr_moco_ *)method;
    if (m->config.version == 3) return ctr_twin_embed_(method, x);
    if (ctr_moco_views_(m) == 1) x = ctr_twin_view_(method->ctx, x, 0);
    return ctr_twin_project_(&m->twin, x, ctr_moco_views_(m));
}

/* Shuffling batch norm: index [views * n] brings the images of each view into a random order that
   depends on the step alone, back [views * n] brings their keys home. */
CTR_PRIVATE_ void ctr_moco_shuffle_(ctr_moco_ *m, int64_t n, int views, ctr_tensor **index,
                                    ctr_tensor **back)
{
    ctr_ctx *ctx = m->twin.base.ctx;
    int64_t *order = NULL, i;
    int32_t *there = NULL, *home = NULL;
    ctr_rng rng;
    int v;
    *index = *back = &ctx->poison;
    if (ctx->status == CTR_OK) {
        order = (int64_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)n * sizeof *order);
        there = (int32_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)(n * views) * sizeof *there);
        home = (int32_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)(n * views) * sizeof *home);
    }
    if (!order || !there || !home) return;
    for (v = 0; v < views; v++) {
        ctr_rng_init(&rng, ctx->config.seed, CTR_STREAM_SHUFFLE, 0,
                     *ctr_optim_steps(m->twin.optim), v);
        ctr_rng_permutation(&rng, n, order);
        for (i = 0; i < n; i++) {
            there[v * n + i] = (int32_t)(v * n + order[i]);
            home[v * n + order[i]] = (int32_t)(v * n + i);
        }
    }
    *index = ctr_loss_index_(ctx, n * views, there);
    *back = ctr_loss_index_(ctx, n * views, home);
}

CTR_PRIVATE_ ctr_tensor *ctr_moco_target_(ctr_method *method, ctr_tensor *x)
{
    ctr_moco_ *m = (ctr_moco_ *)method;
    ctr_ctx *ctx = method->ctx;
    int views = ctr_moco_views_(m);
    ctr_tensor *index, *back;
    if (views == 1) x = ctr_twin_view_(ctx, x, 1);
    if (!m->config.shuffle) return ctr_twin_target_views_(&m->twin, x, views);
    ctr_moco_shuffle_(m, x->shape[0] / views, views, &index, &back);
    x = ctr_twin_target_views_(&m->twin, ctr_gather(ctx, x, index), views);
    return ctr_gather(ctx, x, back);
}

/* Labels of the keys of `views` views. */
CTR_PRIVATE_ const int32_t *ctr_moco_labels_(ctr_ctx *ctx, const ctr_batch *batch, int views)
{
    size_t bytes = (size_t)batch->n * sizeof *batch->labels;
    int32_t *labels;
    int v;
    if (views == 1 || !batch->labels || ctx->status != CTR_OK) return batch->labels;
    labels = (int32_t *)ctr_arena_take_(ctx, &ctx->host, bytes * (size_t)views);
    for (v = 0; labels && v < views; v++) memcpy(labels + v * batch->n, batch->labels, bytes);
    return labels;
}

/* Versions 1 and 2. The keys are kept for the queue until the commit. */
CTR_PRIVATE_ ctr_tensor *ctr_moco_queue_loss_(ctr_moco_ *m, ctr_tensor *q, ctr_tensor *k,
                                              const ctr_batch *batch, ctr_report *report)
{
    ctr_ctx *ctx = m->twin.base.ctx;
    double t = m->config.temperature;
    int64_t size = m->config.queue;
    int views = ctr_moco_views_(m);
    ctr_tensor *loss;
    report->chance = ctr_loss_infonce_chance(size) * views;
    report->active = (double)ctr_queue_filled(&m->queue) / (double)size;
    report->false_negatives =
        ctr_queue_false_negatives(ctx, &m->queue, batch->n, batch->labels);
    k = ctr_keep(ctx, ctr_normalize(ctx, k));
    m->keys = k;
    m->labels = ctr_moco_labels_(ctx, batch, views);
    if (views == 1) return ctr_loss_infonce_(ctx, q, k, m->queue.rows, t, report);
    loss = ctr_loss_infonce_(ctx, ctr_twin_view_(ctx, q, 0), ctr_twin_view_(ctx, k, 1),
                             m->queue.rows, t, report);
    return ctr_add(ctx, loss, ctr_loss_infonce(ctx, ctr_twin_view_(ctx, q, 1),
                                               ctr_twin_view_(ctx, k, 0), m->queue.rows, t));
}

/* Version 3: 2 T (InfoNCE(q1, k2) + InfoNCE(q2, k1)) within the batch. */
CTR_PRIVATE_ ctr_tensor *ctr_moco_batch_loss_(ctr_moco_ *m, ctr_tensor *q, ctr_tensor *k,
                                              const ctr_batch *batch, ctr_report *report)
{
    ctr_ctx *ctx = m->twin.base.ctx;
    double t = m->config.temperature;
    ctr_tensor *loss;
    report->chance = 4 * t * ctr_loss_infonce_chance(batch->n - 1);
    report->false_negatives = ctr_loss_false_negatives_(batch->n, batch->labels);
    loss = ctr_loss_infonce_(ctx, ctr_twin_view_(ctx, q, 0), ctr_twin_view_(ctx, k, 1), NULL, t,
                             report);
    loss = ctr_add(ctx, loss, ctr_loss_infonce(ctx, ctr_twin_view_(ctx, q, 1),
                                               ctr_twin_view_(ctx, k, 0), NULL, t));
    return ctr_scale(ctx, loss, 2 * t);
}

CTR_PRIVATE_ ctr_tensor *ctr_moco_loss_(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                                        ctr_report *report)
{
    ctr_moco_ *m = (ctr_moco_ *)method;
    if (m->config.version == 3) return ctr_moco_batch_loss_(m, z, method->target, batch, report);
    return ctr_moco_queue_loss_(m, z, method->target, batch, report);
}

/* Optimiser, then the target, then the queue. The authors move the target at the beginning of a
   step instead, which is the same: before the first one both networks are equal. So the momentum
   here is the next step's. */
CTR_PRIVATE_ void ctr_moco_commit_(ctr_method *method, double lr)
{
    ctr_moco_ *m = (ctr_moco_ *)method;
    ctr_ctx *ctx = method->ctx;
    double momentum = m->config.momentum;
    int64_t steps = *ctr_optim_steps(m->twin.optim);
    ctr_twin_step_(&m->twin, lr, lr);
    if (m->config.momentum_cosine)
        momentum = ctr_momentum_cosine(momentum, steps + 1, method->run.steps);
    ctr_twin_follow_(&m->twin, momentum);
    if (m->config.version == 3) return;
    ctr_queue_push(ctx, &m->queue, m->keys, m->labels);
    if (!steps && method->run.images && 2 * m->config.queue > method->run.images)
        ctr_log_(ctx, CTR_LOG_WARN, "moco: a queue of %ld keys for %ld images: many queries meet "
                 "their own image among the negatives", (long)m->config.queue,
                 (long)method->run.images);
}

CTR_PRIVATE_ void ctr_moco_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_moco_ *m = (ctr_moco_ *)method;
    ctr_twin_visit_(method, visitor);
    if (m->config.version == 3) return;
    ctr_visit_vars_(visitor, "", &m->store);
    visitor->number_fn(visitor->user, "queue.pushed", &m->queue.pushed);
}

CTR_PRIVATE_ void ctr_moco_destroy_(ctr_method *method)
{
    ctr_vars_destroy(method->ctx, &((ctr_moco_ *)method)->store);
    ctr_twin_destroy_(method);
}

CTR_PRIVATE_ void ctr_moco_describe_(ctr_method *method, char *text, size_t size)
{
    const ctr_moco_config *c = &((ctr_moco_ *)method)->config;
    size_t n;
    ctr_twin_describe_(method, text, size);
    n = strlen(text);
    snprintf(text + n, size - n, " version=%d queue=%ld", c->version,
             c->version == 3 ? 0L : (long)c->queue);
}

CTR_PRIVATE_ int ctr_moco_config_check_(ctr_ctx *ctx, const ctr_moco_config *c)
{
    if (ctx->status != CTR_OK) return 0;
    if (c->version < 1 || c->version > 3)
        ctr_fail_(ctx, CTR_E_VALUE, "moco: version must be 1, 2 or 3, got %d", c->version);
    else if (!ctr_real_finite_((ctr_real)c->temperature) || !(c->temperature > 0))
        ctr_fail_(ctx, CTR_E_VALUE, "moco: the temperature must be above 0, got %g",
                  c->temperature);
    else if (c->version < 3 && (c->queue < 1 || c->queue > 0x7fffffff))
        ctr_fail_(ctx, CTR_E_VALUE, "moco: the queue needs at least 1 key, got %ld",
                  (long)c->queue);
    return ctr_momentum_check_(ctx, "moco", c->momentum);
}

/* Version 1: one linear layer; 2: two with a ReLU, no norm; 3: norms, the last without weights. */
CTR_PRIVATE_ void ctr_moco_heads_(const ctr_moco_config *c, ctr_twin_config_ *t)
{
    t->projector = ctr_mlp_config_default(0, c->proj_hidden, c->proj_dim);
    t->projector.layers = c->version == 1 ? 1 : 2;
    t->projector.hidden_norm = c->version == 3;
    t->projector.hidden_bias = t->projector.out_bias = c->version < 3;
    t->projector.out_norm = c->version == 3 ? 3 : 0;
    if (c->version < 3) return;
    t->predictor = ctr_mlp_config_default(0, c->pred_hidden, c->proj_dim);
    t->predictor.out_norm = 0;
}

CTR_API ctr_method *ctr_moco_create(ctr_ctx *ctx, const ctr_moco_config *config)
{
    ctr_twin_config_ c;
    ctr_moco_ *m;
    if (!ctr_moco_config_check_(ctx, config)) return NULL;
    memset(&c, 0, sizeof c);
    c.encoder = &config->encoder;
    ctr_moco_heads_(config, &c);
    c.target = 1;
    c.average = config->average_buffers;
    c.split_norm = config->split_norm;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    c.aug[0] = &config->aug[0];
    c.aug[1] = &config->aug[1];
    m = (ctr_moco_ *)ctr_twin_create_(ctx, "moco", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->twin.base.embed_fn = ctr_moco_embed_;
    m->twin.base.target_fn = ctr_moco_target_;
    m->twin.base.loss_fn = ctr_moco_loss_;
    m->twin.base.commit_fn = ctr_moco_commit_;
    m->twin.base.visit_fn = ctr_moco_visit_;
    m->twin.base.describe_fn = ctr_moco_describe_;
    m->twin.base.destroy_fn = ctr_moco_destroy_;
    if (config->version < 3)
        ctr_queue_init(ctx, &m->queue, &m->store, "queue.", config->queue, config->proj_dim);
    if (ctx->status == CTR_OK) return &m->twin.base;
    ctr_moco_destroy_(&m->twin.base);
    return NULL;
}

/* ---- BYOL --------------------------------------------------------------------------------------

        view 1 --> encoder --> projector --> predictor --> p1 --+
                      |                                         +--> |p1 - z2|^2 + |p2 - z1|^2
                      v  target = tau target + (1 - tau) online |    of unit rows, mean over images
        view 2 --> target encoder --> target projector --> // --> z2

   and the same with the views exchanged: p2 and z1. // stops the gradient. Without predictor or
   stopped gradient one point for all images would be a solution that training finds.           */

typedef struct ctr_byol_ {
    ctr_twin_ twin;
    ctr_byol_config config;
} ctr_byol_;

CTR_API void ctr_byol_config_init(ctr_byol_config *config)
{
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->proj_hidden = 4096;
    config->proj_dim = 256;
    config->pred_hidden = 4096;
    config->momentum = 0.996;
    config->momentum_cosine = 1;
    config->aug[0] = ctr_aug_byol_default(32, 0);
    config->aug[1] = ctr_aug_byol_default(32, 1);
    config->optim = ctr_optim_config_default(CTR_OPTIM_LARS);
    config->optim.decay = 1.5e-6;
    config->lr = 0.2;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_byol_config ctr_byol_default(void)
{
    ctr_byol_config config;
    ctr_byol_config_init(&config);
    return config;
}

CTR_PRIVATE_ ctr_tensor *ctr_byol_loss_(ctr_method *method, ctr_tensor *p, const ctr_batch *batch,
                                        ctr_report *report)
{
    ctr_ctx *ctx = method->ctx;
    ctr_tensor *p1 = ctr_twin_view_(ctx, p, 0), *z1 = ctr_twin_view_(ctx, method->target, 0);
    ctr_tensor *p2 = ctr_twin_view_(ctx, p, 1), *z2 = ctr_twin_view_(ctx, method->target, 1);
    (void)batch;
    report->chance = 4;
    ctr_twin_agree_(ctx, p1, z2, report);
    return ctr_add(ctx, ctr_loss_regression(ctx, p1, z2), ctr_loss_regression(ctx, p2, z1));
}

CTR_PRIVATE_ void ctr_byol_commit_(ctr_method *method, double lr)
{
    ctr_byol_ *m = (ctr_byol_ *)method;
    int64_t step = *ctr_optim_steps(m->twin.optim);
    double tau = m->config.momentum;
    if (m->config.momentum_cosine) tau = ctr_momentum_cosine(tau, step, method->run.steps);
    ctr_twin_step_(&m->twin, lr, lr);
    ctr_twin_follow_(&m->twin, tau);
}

CTR_API ctr_method *ctr_byol_create(ctr_ctx *ctx, const ctr_byol_config *config)
{
    ctr_twin_config_ c;
    ctr_byol_ *m;
    if (!ctr_momentum_check_(ctx, "byol", config->momentum)) return NULL;
    memset(&c, 0, sizeof c);
    c.encoder = &config->encoder;
    c.projector = ctr_mlp_config_default(0, config->proj_hidden, config->proj_dim);
    c.predictor = ctr_mlp_config_default(0, config->pred_hidden, config->proj_dim);
    c.projector.hidden_bias = c.predictor.hidden_bias = 1;
    c.projector.out_norm = c.predictor.out_norm = 0;
    c.target = 1;
    c.own_target = config->own_target;
    c.average = config->average_buffers;
    c.split_norm = 1;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    c.aug[0] = &config->aug[0];
    c.aug[1] = &config->aug[1];
    m = (ctr_byol_ *)ctr_twin_create_(ctx, "byol", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->twin.base.target_fn = ctr_twin_target_;
    m->twin.base.loss_fn = ctr_byol_loss_;
    m->twin.base.commit_fn = ctr_byol_commit_;
    return &m->twin.base;
}

/* ---- SimSiam -----------------------------------------------------------------------------------

        view 1 --> encoder --> projector --> z1 --> predictor --> p1 --+
                      | same weights                                   +--> -cos(p1, z2)
        view 2 --> encoder --> projector --> z2 --> // ----------------+

   and the same with the views exchanged; the mean of both. // stops the gradient.              */

typedef struct ctr_simsiam_ {
    ctr_twin_ twin;
    ctr_simsiam_config config;
} ctr_simsiam_;

CTR_API void ctr_simsiam_config_init(ctr_simsiam_config *config)
{
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->encoder.zero_init = 1;
    config->proj_layers = 3;
    config->proj_dim = 2048;
    config->pred_hidden = 512;
    config->fixed_predictor = 1;
    config->aug = ctr_aug_moco_default(32, 2, 0);
    config->optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    config->optim.decay_all = 1;
    config->lr = 0.05;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_simsiam_config ctr_simsiam_default(void)
{
    ctr_simsiam_config config;
    ctr_simsiam_config_init(&config);
    return config;
}

/* The projections are the targets, so there is no second pass. */
CTR_PRIVATE_ ctr_tensor *ctr_simsiam_embed_(ctr_method *method, ctr_tensor *x)
{
    ctr_twin_ *t = (ctr_twin_ *)method;
    ctr_tensor *z = ctr_twin_project_(t, x, 2);
    method->target = ctr_detach(method->ctx, z);
    return ctr_twin_predict_(t, z, 2);
}

CTR_PRIVATE_ ctr_tensor *ctr_simsiam_loss_(ctr_method *method, ctr_tensor *p,
                                           const ctr_batch *batch, ctr_report *report)
{
    ctr_ctx *ctx = method->ctx;
    ctr_tensor *p1 = ctr_twin_view_(ctx, p, 0), *z1 = ctr_twin_view_(ctx, method->target, 0);
    ctr_tensor *p2 = ctr_twin_view_(ctx, p, 1), *z2 = ctr_twin_view_(ctx, method->target, 1);
    ctr_tensor *loss;
    (void)batch;
    report->chance = 0;
    ctr_twin_agree_(ctx, p1, z2, report);
    loss = ctr_add(ctx, ctr_loss_negative_cosine(ctx, p1, z2),
                   ctr_loss_negative_cosine(ctx, p2, z1));
    return ctr_scale(ctx, loss, 0.5);
}

/* A predictor whose rate does not fall keeps up with the projections (their section 4.2). */
CTR_PRIVATE_ void ctr_simsiam_commit_(ctr_method *method, double lr)
{
    ctr_simsiam_ *m = (ctr_simsiam_ *)method;
    int fixed = m->config.fixed_predictor && method->run.lr > 0;
    ctr_twin_step_(&m->twin, lr, fixed ? method->run.lr : lr);
}

CTR_API ctr_method *ctr_simsiam_create(ctr_ctx *ctx, const ctr_simsiam_config *config)
{
    ctr_twin_config_ c;
    ctr_simsiam_ *m;
    memset(&c, 0, sizeof c);
    c.encoder = &config->encoder;
    c.projector = ctr_mlp_config_default(0, config->proj_dim, config->proj_dim);
    c.projector.layers = config->proj_layers;
    c.projector.out_norm = 3;
    c.predictor = ctr_mlp_config_default(0, config->pred_hidden, config->proj_dim);
    c.predictor.out_norm = 0;
    c.predictor.out_bias = 1;
    c.split_norm = 1;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    c.aug[0] = c.aug[1] = &config->aug;
    m = (ctr_simsiam_ *)ctr_twin_create_(ctx, "simsiam", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->twin.base.embed_fn = ctr_simsiam_embed_;
    m->twin.base.loss_fn = ctr_simsiam_loss_;
    m->twin.base.commit_fn = ctr_simsiam_commit_;
    return &m->twin.base;
}

/* ------------------------------------------------------------------------------------------------
   >>PROTOTYPE
   ---------------------------------------------------------------------------------------------- */

/* ---- crops and prototypes ----------------------------------------------------------------------

   What the methods of this section share: a pass through the encoder for each size of crops, one
   through the projector for all of them, unit rows, and one or more sets of prototypes.          */

enum { CTR_CROPS_HEADS_ = 8 };

typedef struct ctr_crops_config_ {
    const ctr_resnet_config *encoder;
    int64_t hidden, dim, prototypes;
    int heads, small_views;
    double temperature;
    const ctr_aug_config *aug, *small_aug;
    const ctr_optim_config *optim;
    double lr;
    ctr_lr_rule lr_rule;
} ctr_crops_config_;

typedef struct ctr_crops_ {
    ctr_method base;
    size_t bytes;                  /* of the method that begins with this */
    ctr_vars vars, store;          /* encoder.* projector.* prototypes*; queue or bank */
    ctr_resnet encoder;
    ctr_mlp projector;
    ctr_tensor *prototypes[CTR_CROPS_HEADS_]; /* [k, dim] each, unit rows when they are made */
    ctr_tensor *lengths;           /* [k], scratch of ctr_crops_unit_rows_ */
    int heads;
    ctr_optim *optim;
    ctr_aug_config augs[CTR_MAX_VIEWS];
    ctr_view_group group[CTR_MAX_VIEWS];
} ctr_crops_;

CTR_PRIVATE_ ctr_tensor *ctr_crops_represent_(ctr_method *method, ctr_tensor *x,
                                              ctr_norm_mode mode)
{
    return ctr_resnet_forward(method->ctx, &((ctr_crops_ *)method)->encoder, x, mode, 1);
}

/* [views * n, features] -> unit rows [views * n, dim] */
CTR_PRIVATE_ ctr_tensor *ctr_crops_project_(ctr_crops_ *m, ctr_tensor *h, ctr_norm_mode mode)
{
    ctr_ctx *ctx = m->base.ctx;
    return ctr_normalize(ctx, ctr_mlp_forward(ctx, &m->projector, h, mode, 1));
}

CTR_PRIVATE_ ctr_tensor *ctr_crops_embed_(ctr_method *method, ctr_tensor *x)
{
    ctr_tensor *h[CTR_MAX_VIEWS], *all;
    int g;
    for (g = 0; g < method->groups; g++)
        h[g] = ctr_crops_represent_(method, g ? method->crops[g] : x, CTR_NORM_TRAIN);
    all = method->groups > 1 ? ctr_concat(method->ctx, method->groups, h, 0) : h[0];
    return ctr_crops_project_((ctr_crops_ *)method, all, CTR_NORM_TRAIN);
}

/* A set of prototypes as the loss takes it: for the first steps without a gradient. */
CTR_PRIVATE_ ctr_tensor *ctr_crops_scores_(ctr_crops_ *m, ctr_tensor *z, int head,
                                           int64_t freeze_steps)
{
    ctr_ctx *ctx = m->base.ctx;
    ctr_tensor *w = m->prototypes[head];
    if (*ctr_optim_steps(m->optim) < freeze_steps) w = ctr_detach(ctx, w);
    return ctr_matmul(ctx, z, 0, w, 1);                                /* [views * n, k] */
}

/* The embeddings of large crop 0 or 1: [n, dim]. */
CTR_PRIVATE_ ctr_tensor *ctr_crops_large_(ctr_crops_ *m, ctr_tensor *z, int view)
{
    int64_t n = z->shape[0] / m->base.views;
    return ctr_slice(m->base.ctx, z, 0, view * n, n);
}

CTR_PRIVATE_ void ctr_crops_unit_rows_(ctr_crops_ *m, int head)
{
    ctr_tensor *w = m->prototypes[head];
    ctr_k_normalize(m->base.ctx, w->shape[0], w->shape[1], ctr_f_(w), ctr_f_(w),
                    ctr_f_(m->lengths));
}

CTR_PRIVATE_ void ctr_crops_check_(ctr_method *method)
{
    ctr_vars_check_gradients(method->ctx, &((ctr_crops_ *)method)->vars);
}

CTR_PRIVATE_ void ctr_crops_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_crops_ *m = (ctr_crops_ *)method;
    ctr_visit_vars_(visitor, "", &m->vars);
    ctr_visit_vars_(visitor, "optim.", ctr_optim_state(m->optim));
    visitor->number_fn(visitor->user, "optim.steps", ctr_optim_steps(m->optim));
    ctr_visit_vars_(visitor, "", &m->store);
}

/* "swav resnet8 ... head=2x2048-128 prototypes=3000": what a checkpoint compares */
CTR_PRIVATE_ void ctr_crops_describe_(ctr_method *method, char *text, size_t size)
{
    ctr_crops_ *m = (ctr_crops_ *)method;
    const ctr_mlp_config *p = &m->projector.config;
    char net[96];
    snprintf(text, size, "%s %s head=%dx%ld-%ld prototypes=%ld", method->name,
             ctr_resnet_describe(&m->encoder, net), p->layers, (long)p->hidden, (long)p->out,
             (long)m->prototypes[0]->shape[0]);
}

CTR_PRIVATE_ void ctr_crops_destroy_(ctr_method *method)
{
    ctr_crops_ *m = (ctr_crops_ *)method;
    ctr_ctx *ctx = method->ctx;
    ctr_optim_destroy(ctx, m->optim);
    ctr_tensor_destroy(ctx, m->lengths);
    ctr_vars_destroy(ctx, &m->store);
    ctr_vars_destroy(ctx, &m->vars);
    ctr_free_host_(ctx, m, m->bytes);
}

CTR_PRIVATE_ int ctr_crops_config_check_(ctr_ctx *ctx, const char *name,
                                         const ctr_crops_config_ *c)
{
    const char *wrong = NULL;
    if (ctx->status != CTR_OK) return 0;
    if (!ctr_real_finite_((ctr_real)c->temperature) || !(c->temperature > 0))
        wrong = "the temperature must be above 0";
    else if (c->prototypes < 2 || c->prototypes > CTR_MAX_CLASSES)
        wrong = "there must be at least 2 prototypes and at most a million";
    else if (c->heads < 1 || c->heads > CTR_CROPS_HEADS_)
        wrong = "heads must be 1..8";
    else if (c->small_views < 0 || c->small_views > CTR_MAX_VIEWS - 2)
        wrong = "small_views must be 0..62";
    if (wrong) ctr_fail_(ctx, CTR_E_VALUE, "%s: %s", name, wrong);
    return !wrong && ctr_aug_config_check(ctx, c->aug) &&
           (!c->small_views || ctr_aug_config_check(ctx, c->small_aug));
}

/* The networks, the prototypes, what trains them. */
CTR_PRIVATE_ void ctr_crops_build_(ctr_ctx *ctx, ctr_crops_ *m, const ctr_crops_config_ *c)
{
    ctr_mlp_config head;
    char prefix[32] = "prototypes.";
    int64_t shape[2];
    int h;
    shape[0] = c->prototypes;
    shape[1] = c->dim;
    ctr_resnet_init(ctx, &m->encoder, &m->vars, "encoder.", c->encoder);
    head = ctr_mlp_config_default(m->encoder.features, c->hidden, c->dim);
    head.hidden_bias = head.out_bias = 1;
    head.out_norm = 0;
    if (ctx->status == CTR_OK) ctr_mlp_init(ctx, &m->projector, &m->vars, "projector.", &head);
    if (ctx->status != CTR_OK) return;
    m->lengths = ctr_tensor_create(ctx, CTR_F32, 1, shape, 0);
    for (h = 0; h < c->heads; h++) {
        if (c->heads > 1) snprintf(prefix, sizeof prefix, "prototypes%d.", h + 1);
        m->prototypes[h] = ctr_vars_add(ctx, &m->vars, prefix, "weight", CTR_KIND_PROTOTYPE, 2,
                                        shape);
        ctr_init_random_(ctx, m->prototypes[h], prefix, "weight", 0, 1 / sqrt((double)c->dim));
        if (ctx->status == CTR_OK) ctr_crops_unit_rows_(m, h);
    }
    m->optim = ctr_optim_create(ctx, c->optim, &m->vars);
}

/* A method of so many bytes that begins with a ctr_crops_; NULL on error. loss, commit and what
   goes beyond are for the method to fill in. */
CTR_PRIVATE_ ctr_crops_ *ctr_crops_create_(ctr_ctx *ctx, const char *name, size_t bytes,
                                           const ctr_crops_config_ *c)
{
    ctr_crops_ *m;
    ctr_method *base;
    int v;
    if (!ctr_crops_config_check_(ctx, name, c)) return NULL;
    m = (ctr_crops_ *)ctr_alloc_zero_(ctx, bytes);
    if (!m) return NULL;
    m->bytes = bytes;
    m->heads = c->heads;
    base = &m->base;
    base->name = name;
    base->ctx = ctx;
    base->lr = c->lr;
    base->lr_rule = c->lr_rule;
    base->views = 2 + c->small_views;
    for (v = 0; v < base->views; v++) m->augs[v] = v < 2 ? *c->aug : *c->small_aug;
    base->augs = m->augs;
    base->groups = ctr_loader_groups_(base->views, m->augs, m->group);
    base->group = m->group;
    base->represent_fn = ctr_crops_represent_;
    base->embed_fn = ctr_crops_embed_;
    base->check_fn = ctr_crops_check_;
    base->visit_fn = ctr_crops_visit_;
    base->describe_fn = ctr_crops_describe_;
    base->destroy_fn = ctr_crops_destroy_;
    ctr_crops_build_(ctx, m, c);
    base->features = m->encoder.features;
    base->dim = c->dim;
    base->encoder = &m->vars;
    if (ctx->status == CTR_OK) return m;
    ctr_crops_destroy_(base);
    return NULL;
}

/* ---- SwAV --------------------------------------------------------------------------------------

        large crops --> encoder --+
                           | same weights          +--> unit z --> z C^T, the scores
        small crops --> encoder --+--> projector --+      |          |
                                                          |          +--> cross entropy of every
                              queue of older z <----------+          |    crop's softmax(scores / T)
                                  |        after the loss            v    with the codes of the
                                  +--> their scores --> Sinkhorn <-- //   other large crops
                                                            |                      ^
        C: the prototypes' unit rows                        +--> codes of large ---+
                                                                 crops
   // stops the gradient: codes are targets.                                                      */

typedef struct ctr_swav_ {
    ctr_crops_ crops;
    ctr_swav_config config;
    ctr_queue queue[2];            /* one for each large crop */
    const ctr_tensor *keys[2];     /* of this step, to be pushed; NULL: none */
} ctr_swav_;

CTR_API void ctr_swav_config_init(ctr_swav_config *config)
{
    memset(config, 0, sizeof *config);
    config->encoder = ctr_resnet_config_default(18);
    config->proj_hidden = 2048;
    config->proj_dim = 128;
    config->prototypes = 3000;
    config->temperature = 0.1;
    config->sinkhorn = ctr_sinkhorn_config_default();
    config->small_views = 6;
    config->queue_start_epoch = 15;
    config->freeze_prototypes_steps = 313;
    config->aug = ctr_aug_swav_default(32, 0);
    config->small_aug = ctr_aug_swav_default(32, 1);
    config->optim = ctr_optim_config_default(CTR_OPTIM_LARS);
    config->optim.form = CTR_LARS_LARC;
    config->optim.decay = 1e-6;
    config->optim.decay_all = 1;
    config->lr = 0.3;
    config->lr_rule = CTR_LR_LINEAR;
}

CTR_API ctr_swav_config ctr_swav_default(void)
{
    ctr_swav_config config;
    ctr_swav_config_init(&config);
    return config;
}

/* Is a queue of older embeddings full, so that it takes part? A plan counts it in. */
CTR_PRIVATE_ int ctr_swav_queue_used_(const ctr_swav_ *m, int view)
{
    if (!m->config.queue) return 0;
    return m->crops.base.ctx->plan || ctr_queue_filled(&m->queue[view]) == m->config.queue;
}

/* One large crop's codes, in place of its scores. host [n + queue, k]: the crop's scores, behind
   them the queue's. Marks the prototypes that are the largest code of an image. */
CTR_PRIVATE_ void ctr_swav_assign_(ctr_swav_ *m, int64_t n, int64_t rows, ctr_real *host,
                                   double *scratch, unsigned char *used, ctr_report *report)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t k = m->config.prototypes, i, j, best;
    double residual = 0;
    if (!ctr_sinkhorn_with_(ctx, rows, k, host, &m->config.sinkhorn, host, &residual, scratch))
        return;
    report->residual = CTR_MAX_(report->residual, residual);
    for (i = 0; i < n; i++) {
        for (best = 0, j = 1; j < k; j++)
            if (host[i * k + j] > host[i * k + best]) best = j;
        used[best] = 1;
    }
}

/* Codes [2n, k] of the large crops: with the queue's scores if it is full, by Sinkhorn's algorithm
   in host memory, wherever the scores live. Nothing is recorded. */
CTR_PRIVATE_ ctr_tensor *ctr_swav_codes_(ctr_swav_ *m, ctr_tensor *scores, int64_t n,
                                         ctr_report *report)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t k = m->config.prototypes, room = n + m->config.queue, count = 0, j, shape[2];
    size_t bytes = ctr_size_mul_(ctx, ctr_size_mul_(ctx, (size_t)room, (size_t)k),
                                 sizeof(ctr_real));
    ctr_real *host = NULL;
    double *scratch = NULL;
    unsigned char *used = NULL;
    ctr_tensor *codes, *part;
    int v;
    shape[0] = 2 * n;
    shape[1] = k;
    codes = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
    if (ctr_ready_(ctx)) {
        host = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, bytes);
        scratch = (double *)ctr_arena_take_(ctx, &ctx->host, (size_t)(room + k) * sizeof(double));
        used = (unsigned char *)ctr_arena_take_(ctx, &ctx->host, (size_t)k);
    }
    if (used) memset(used, 0, (size_t)k);
    for (v = 0; v < 2; v++) {
        int older = ctr_swav_queue_used_(m, v);
        part = ctr_slice(ctx, scores, 0, v * n, n);
        ctr_tensor_read(ctx, part, host, n * k);
        if (older) {
            part = ctr_matmul(ctx, m->queue[v].rows, 0, m->crops.prototypes[0], 1); /* [queue, k] */
            ctr_tensor_read(ctx, part, host + n * k, m->config.queue * k);
        }
        if (!ctr_ready_(ctx)) continue;
        ctr_swav_assign_(m, n, older ? room : n, host, scratch, used, report);
        ctr_k_upload(ctx, (size_t)(n * k) * sizeof *host, host, ctr_f_(codes) + v * n * k);
    }
    for (j = 0; used && j < k; j++) count += used[j];
    report->active = (double)count / (double)k;
    return codes;
}

/* What looks at the embeddings beside the loss: the agreement of the large crops for the report,
   and copies of them for the queue, which outlast backward. */
CTR_PRIVATE_ void ctr_swav_look_(ctr_swav_ *m, ctr_tensor *z, const ctr_batch *batch,
                                 ctr_report *report)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int push = m->config.queue && (ctx->plan || batch->epoch >= m->config.queue_start_epoch), v;
    ctr_tensor *view[2];
    for (v = 0; v < 2; v++) view[v] = ctr_crops_large_(&m->crops, z, v);
    ctr_twin_agree_(ctx, view[0], view[1], report);
    for (v = 0; v < 2; v++) m->keys[v] = push ? ctr_keep(ctx, view[v]) : NULL;
}

CTR_PRIVATE_ ctr_tensor *ctr_swav_loss_(ctr_method *method, ctr_tensor *z, const ctr_batch *batch,
                                        ctr_report *report)
{
    ctr_swav_ *m = (ctr_swav_ *)method;
    ctr_ctx *ctx = method->ctx;
    ctr_tensor *scores, *codes;
    report->chance = ctr_loss_swav_chance(m->config.prototypes);
    scores = ctr_crops_scores_(&m->crops, z, 0, m->config.freeze_prototypes_steps);
    ctr_nograd_begin(ctx);
    codes = ctr_swav_codes_(m, scores, batch->n, report);
    ctr_swav_look_(m, z, batch, report);
    ctr_nograd_end(ctx);
    return ctr_loss_swav(ctx, scores, method->views, codes, 2, m->config.temperature);
}

/* Optimiser, prototypes back to unit length, queue. The authors normalise at the beginning of a
   step instead, which is the same: the first ones are normalised when they are made. */
CTR_PRIVATE_ void ctr_swav_commit_(ctr_method *method, double lr)
{
    ctr_swav_ *m = (ctr_swav_ *)method;
    int v;
    ctr_optim_step(method->ctx, m->crops.optim, lr);
    ctr_crops_unit_rows_(&m->crops, 0);
    for (v = 0; v < 2; v++)
        if (m->keys[v]) ctr_queue_push(method->ctx, &m->queue[v], m->keys[v], NULL);
}

CTR_PRIVATE_ void ctr_swav_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_swav_ *m = (ctr_swav_ *)method;
    ctr_crops_visit_(method, visitor);
    if (!m->config.queue) return;
    visitor->number_fn(visitor->user, "queue1.pushed", &m->queue[0].pushed);
    visitor->number_fn(visitor->user, "queue2.pushed", &m->queue[1].pushed);
}

CTR_PRIVATE_ void ctr_swav_describe_(ctr_method *method, char *text, size_t size)
{
    size_t n;
    ctr_crops_describe_(method, text, size);
    n = strlen(text);
    snprintf(text + n, size - n, " queue=%ld", (long)((ctr_swav_ *)method)->config.queue);
}

CTR_PRIVATE_ int ctr_swav_config_check_(ctr_ctx *ctx, const ctr_swav_config *c)
{
    const char *wrong = NULL;
    if (ctx->status != CTR_OK) return 0;
    if (!ctr_real_finite_((ctr_real)c->sinkhorn.epsilon) || !(c->sinkhorn.epsilon > 0) ||
        c->sinkhorn.iterations < 1)
        wrong = "sinkhorn needs an epsilon above 0 and at least 1 iteration";
    else if (c->queue < 0 || c->queue > 0x7fffffff || c->queue_start_epoch < 0)
        wrong = "queue and queue_start_epoch must be at least 0";
    else if (c->freeze_prototypes_steps < 0)
        wrong = "freeze_prototypes_steps must be at least 0";
    if (wrong) ctr_fail_(ctx, CTR_E_VALUE, "swav: %s", wrong);
    return !wrong;
}

CTR_API ctr_method *ctr_swav_create(ctr_ctx *ctx, const ctr_swav_config *config)
{
    ctr_crops_config_ c;
    ctr_swav_ *m;
    ctr_vars *store;
    if (!ctr_swav_config_check_(ctx, config)) return NULL;
    c.encoder = &config->encoder;
    c.hidden = config->proj_hidden;
    c.dim = config->proj_dim;
    c.prototypes = config->prototypes;
    c.heads = 1;
    c.small_views = config->small_views;
    c.temperature = config->temperature;
    c.aug = &config->aug;
    c.small_aug = &config->small_aug;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    m = (ctr_swav_ *)ctr_crops_create_(ctx, "swav", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->crops.base.loss_fn = ctr_swav_loss_;
    m->crops.base.commit_fn = ctr_swav_commit_;
    m->crops.base.visit_fn = ctr_swav_visit_;
    m->crops.base.describe_fn = ctr_swav_describe_;
    store = &m->crops.store;
    if (config->queue) {
        ctr_queue_init(ctx, &m->queue[0], store, "queue1.", config->queue, config->proj_dim);
        ctr_queue_init(ctx, &m->queue[1], store, "queue2.", config->queue, config->proj_dim);
    }
    if (ctx->status == CTR_OK) return &m->crops.base;
    ctr_crops_destroy_(&m->crops.base);
    return NULL;
}

/* ---- DeepCluster v2 ----------------------------------------------------------------------------

        large crops --> encoder --+
                           | same weights          +--> unit z --> z C_h^T --> softmax(scores / T)
        small crops --> encoder --+--> projector --+      |                          |
                                                          v  after the step          v
        before each epoch, for each head h:          bank [2, images, dim]     cross entropy with
        k-means of bank h mod 2 --> centroids C_h         |                    the image's cluster,
                          ^     --> clusters -------------|------------------> mean over crops, h
                          +-------------------------------+                                       */

typedef struct ctr_deepcluster_v2_ {
    ctr_crops_ crops;
    ctr_deepcluster_v2_config config;
    ctr_tensor *bank;              /* [2, images, dim]: the newest embeddings of the large crops */
    ctr_tensor *clusters;          /* [heads, images], numbers of clusters */
    int64_t epochs;                /* clustered so far; 0: bank and clusters are empty */
    const ctr_tensor *keys[2];     /* of this step, for the bank */
    const int64_t *index;          /* of this step's images */
    int64_t n;
} ctr_deepcluster_v2_;

CTR_API void ctr_deepcluster_v2_config_init(ctr_deepcluster_v2_config *config)
{
    ctr_swav_config swav = ctr_swav_default();
    memset(config, 0, sizeof *config);
    config->encoder = swav.encoder;
    config->proj_hidden = swav.proj_hidden;
    config->proj_dim = swav.proj_dim;
    config->prototypes = swav.prototypes;
    config->heads = 3;
    config->iterations = 10;
    config->temperature = swav.temperature;
    config->small_views = swav.small_views;
    config->freeze_prototypes_steps = 300000;
    config->aug = swav.aug;
    config->small_aug = swav.small_aug;
    config->optim = swav.optim;
    config->lr = swav.lr;
    config->lr_rule = swav.lr_rule;
}

CTR_API ctr_deepcluster_v2_config ctr_deepcluster_v2_default(void)
{
    ctr_deepcluster_v2_config config;
    ctr_deepcluster_v2_config_init(&config);
    return config;
}

/* The large crops x [2n, h, w, c] as embeddings that nobody trains. */
CTR_PRIVATE_ ctr_tensor *ctr_deepcluster_v2_pass_(ctr_deepcluster_v2_ *m, ctr_tensor *x)
{
    ctr_tensor *h = ctr_crops_represent_(&m->crops.base, x, CTR_NORM_BATCH);
    return ctr_crops_project_(&m->crops, h, CTR_NORM_BATCH);
}

/* One batch of the first pass: its embeddings into bank [2, images, dim]; z [2n, dim]: scratch. */
CTR_PRIVATE_ void ctr_deepcluster_v2_embed_(ctr_deepcluster_v2_ *m, const ctr_batch *b,
                                            ctr_real *z, ctr_real *bank)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t d = m->config.proj_dim, i, v, shape[4];
    ctr_tensor *x;
    shape[0] = 2 * b->n;
    shape[1] = b->h;
    shape[2] = b->w;
    shape[3] = b->c;
    ctr_step_begin(ctx);
    ctr_nograd_begin(ctx);
    x = ctr_tensor_temp(ctx, CTR_F32, 4, shape);
    ctr_tensor_write(ctx, x, b->pixels, x->size);
    ctr_tensor_read(ctx, ctr_deepcluster_v2_pass_(m, x), z, 2 * b->n * d);
    ctr_step_end(ctx);
    for (v = 0; v < 2; v++)
        for (i = 0; i < b->n; i++)
            memcpy(bank + (v * m->config.images + b->index[i]) * d, z + (v * b->n + i) * d,
                   (size_t)d * sizeof *z);
}

/* Fills bank [2, images, dim] by a pass over the loader's images in their order. */
CTR_PRIVATE_ int ctr_deepcluster_v2_fill_(ctr_deepcluster_v2_ *m, const ctr_loader *l,
                                          ctr_real *bank)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    ctr_loader_config c = ctr_loader_config_default();
    ctr_loader *pass;
    ctr_batch batch;
    size_t bytes = (size_t)(2 * l->config.batch * m->config.proj_dim) * sizeof(ctr_real);
    ctr_real *z = (ctr_real *)ctr_alloc_(ctx, bytes);
    c.batch = l->config.batch;
    c.augs = m->crops.augs;
    c.last = CTR_LAST_KEEP;
    c.shuffle = 0;
    c.seed = l->config.seed;
    pass = z ? ctr_loader_create(ctx, l->d, &c) : NULL;
    while (pass && ctr_loader_next(ctx, pass, &batch))
        ctr_deepcluster_v2_embed_(m, &batch, z, bank);
    ctr_loader_destroy(ctx, pass);
    ctr_free_host_(ctx, z, bytes);
    return ctx->status == CTR_OK;
}

/* k-means of one head; says how much of the last epoch's clusters is left. */
CTR_PRIVATE_ int ctr_deepcluster_v2_cluster_(ctr_deepcluster_v2_ *m, int head, uint64_t seed,
                                             const ctr_real *bank, ctr_real *centroids,
                                             int32_t *cluster, int32_t *last)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    ctr_kmeans_config c = ctr_kmeans_config_default();
    ctr_kmeans_result result;
    ctr_agreement agreement;
    int64_t n = m->config.images, d = m->config.proj_dim;
    c.k = m->config.prototypes;
    c.iterations = m->config.iterations;
    c.spherical = 1;
    c.seed = seed + (uint64_t)m->epochs * CTR_CROPS_HEADS_ + (uint64_t)head;
    if (m->epochs || head) c.min_points = 0; /* who wants to know has been told once */
    if (!ctr_kmeans_run(ctx, n, d, bank + head % 2 * n * d, &c, centroids, cluster, NULL, &result))
        return 0;
    if (!m->epochs) return 1;
    if (!ctr_agreement_measure(ctx, n, cluster, last, &agreement)) return 0;
    ctr_log_(ctx, CTR_LOG_INFO, "deepcluster_v2: clustering %ld, head %d: %ld of %ld clusters have "
             "images, NMI with the last one %.3f", (long)m->epochs + 1, head + 1,
             (long)result.filled, (long)c.k, agreement.nmi);
    return 1;
}

/* What begin needs, in host memory. */
typedef struct ctr_deepcluster_v2_work_ {
    ctr_real *bank, *centroids, *clusters;  /* [2, n, d], [heads, k, d], [heads, n] */
    int32_t *cluster, *last;                /* [n] of one head */
} ctr_deepcluster_v2_work_;

/* All heads; writes nothing of the method. */
CTR_PRIVATE_ int ctr_deepcluster_v2_heads_(ctr_deepcluster_v2_ *m, const ctr_loader *l,
                                           ctr_deepcluster_v2_work_ *w)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t n = m->config.images, k = m->config.prototypes, d = m->config.proj_dim, i;
    int h;
    if (m->epochs) {
        ctr_tensor_read(ctx, m->bank, w->bank, m->bank->size);
        ctr_tensor_read(ctx, m->clusters, w->clusters, m->clusters->size);
    } else if (!ctr_deepcluster_v2_fill_(m, l, w->bank)) {
        return 0;
    }
    for (h = 0; h < m->config.heads; h++) {
        ctr_real *clusters = w->clusters + h * n;
        for (i = 0; i < n; i++) w->last[i] = m->epochs ? (int32_t)clusters[i] : 0;
        if (!ctr_deepcluster_v2_cluster_(m, h, l->config.seed, w->bank, w->centroids + h * k * d,
                                         w->cluster, w->last))
            return 0;
        for (i = 0; i < n; i++) clusters[i] = (ctr_real)w->cluster[i];
    }
    return ctx->status == CTR_OK;
}

/* Before an epoch: fill the bank if it is empty, cluster it, and only then change the method. */
CTR_PRIVATE_ int ctr_deepcluster_v2_begin_(ctr_method *method, const ctr_loader *l)
{
    ctr_deepcluster_v2_ *m = (ctr_deepcluster_v2_ *)method;
    ctr_ctx *ctx = method->ctx;
    int64_t n = m->config.images, k = m->config.prototypes, d = m->config.proj_dim;
    ctr_deepcluster_v2_work_ w;
    ctr_bag_ bag;
    int h;
    if (l->d->n != n) {
        ctr_fail_(ctx, CTR_E_SHAPE, "deepcluster_v2: made for %ld images, the loader has %ld",
                  (long)n, (long)l->d->n);
        return 0;
    }
    ctr_bag_open_(&bag, ctx);
    w.bank = ctr_bag_real_(&bag, 2 * n, d);
    w.centroids = ctr_bag_real_(&bag, m->config.heads * k, d);
    w.clusters = ctr_bag_real_(&bag, m->config.heads, n);
    w.cluster = ctr_bag_i32_(&bag, n, 1);
    w.last = ctr_bag_i32_(&bag, n, 1);
    if (w.last && ctr_deepcluster_v2_heads_(m, l, &w)) {
        ctr_tensor_write(ctx, m->bank, w.bank, m->bank->size);
        ctr_tensor_write(ctx, m->clusters, w.clusters, m->clusters->size);
        for (h = 0; h < m->config.heads; h++)
            ctr_tensor_write(ctx, m->crops.prototypes[h], w.centroids + h * k * d, k * d);
        m->epochs++;
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* Is all there that a step needs: clusters, and images that have them? */
CTR_PRIVATE_ void ctr_deepcluster_v2_batch_(ctr_deepcluster_v2_ *m, const ctr_batch *batch)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t i;
    if (!ctr_ready_(ctx)) return;
    if (!m->epochs)
        ctr_fail_(ctx, CTR_E_STATE, "deepcluster_v2: there are no clusters yet: call "
                  "ctr_method_begin before an epoch's first step");
    for (i = 0; i < batch->n && ctx->status == CTR_OK; i++)
        if (!batch->index || batch->index[i] < 0 || batch->index[i] >= m->config.images)
            ctr_fail_(ctx, CTR_E_VALUE, "deepcluster_v2: the batch's index must say which of the "
                      "%ld images each one is", (long)m->config.images);
}

/* The batch's clusters for one head as targets of all its crops: [views * n]. clusters: the head's,
   in host memory. */
CTR_PRIVATE_ ctr_tensor *ctr_deepcluster_v2_target_(ctr_deepcluster_v2_ *m, const ctr_batch *batch,
                                                    const ctr_real *clusters, ctr_report *report)
{
    ctr_ctx *ctx = m->crops.base.ctx;
    int64_t n = batch->n, rows = n * m->crops.base.views, i, used = 0;
    size_t k = (size_t)m->config.prototypes;
    int32_t *ids = (int32_t *)ctr_arena_take_(ctx, &ctx->host, (size_t)rows * sizeof *ids);
    unsigned char *seen = (unsigned char *)ctr_arena_take_(ctx, &ctx->host, k);
    if (!ids || !seen) return &ctx->poison;
    if (ctr_ready_(ctx)) {
        memset(seen, 0, k);
        for (i = 0; i < rows; i++) {
            ids[i] = (int32_t)clusters[batch->index[i % n]];
            used += !seen[ids[i]];
            seen[ids[i]] = 1;
        }
    }
    report->active += (double)used / (double)k / m->config.heads;
    return ctr_loss_index_(ctx, rows, ids);
}

CTR_PRIVATE_ ctr_tensor *ctr_deepcluster_v2_loss_(ctr_method *method, ctr_tensor *z,
                                                  const ctr_batch *batch, ctr_report *report)
{
    ctr_deepcluster_v2_ *m = (ctr_deepcluster_v2_ *)method;
    ctr_ctx *ctx = method->ctx;
    int64_t count = m->clusters->size;
    ctr_real *clusters = NULL;
    ctr_tensor *loss = NULL, *view[2], *scores, *target;
    int h, v;
    ctr_deepcluster_v2_batch_(m, batch);
    if (ctr_ready_(ctx))
        clusters = (ctr_real *)ctr_arena_take_(ctx, &ctx->host, (size_t)count * sizeof *clusters);
    if (ctx->status != CTR_OK) return &ctx->poison;
    ctr_tensor_read(ctx, m->clusters, clusters, count);
    report->chance = log((double)m->config.prototypes);
    report->active = 0;
    for (h = 0; h < m->config.heads; h++) {
        scores = ctr_crops_scores_(&m->crops, z, h, m->config.freeze_prototypes_steps);
        scores = ctr_scale(ctx, scores, 1 / m->config.temperature);
        target = ctr_deepcluster_v2_target_(m, batch,
                                            clusters ? clusters + h * m->config.images : NULL,
                                            report);
        scores = ctr_cross_entropy(ctx, scores, target, -1);
        loss = loss ? ctr_add(ctx, loss, scores) : scores;
    }
    ctr_nograd_begin(ctx);
    for (v = 0; v < 2; v++) view[v] = ctr_crops_large_(&m->crops, z, v);
    ctr_twin_agree_(ctx, view[0], view[1], report);
    for (v = 0; v < 2; v++) m->keys[v] = ctr_keep(ctx, view[v]);
    ctr_nograd_end(ctx);
    m->index = batch->index;
    m->n = batch->n;
    return ctr_scale(ctx, loss, 1.0 / m->config.heads);
}

/* Optimiser, then the embeddings of this step into the bank. */
CTR_PRIVATE_ void ctr_deepcluster_v2_commit_(ctr_method *method, double lr)
{
    ctr_deepcluster_v2_ *m = (ctr_deepcluster_v2_ *)method;
    int64_t d = m->config.proj_dim, i, v;
    ctr_optim_step(method->ctx, m->crops.optim, lr);
    for (v = 0; v < 2; v++)
        for (i = 0; i < m->n; i++)
            ctr_k_copy(method->ctx, (size_t)d * sizeof(ctr_real), ctr_f_(m->keys[v]) + i * d,
                       ctr_f_(m->bank) + (v * m->config.images + m->index[i]) * d);
}

CTR_PRIVATE_ void ctr_deepcluster_v2_visit_(ctr_method *method, const ctr_visitor *visitor)
{
    ctr_crops_visit_(method, visitor);
    visitor->number_fn(visitor->user, "bank.epochs", &((ctr_deepcluster_v2_ *)method)->epochs);
}

CTR_PRIVATE_ void ctr_deepcluster_v2_describe_(ctr_method *method, char *text, size_t size)
{
    const ctr_deepcluster_v2_config *c = &((ctr_deepcluster_v2_ *)method)->config;
    size_t n;
    ctr_crops_describe_(method, text, size);
    n = strlen(text);
    snprintf(text + n, size - n, " heads=%d images=%ld", c->heads, (long)c->images);
}

CTR_PRIVATE_ int ctr_deepcluster_v2_check_(ctr_ctx *ctx, const ctr_deepcluster_v2_config *c)
{
    const char *wrong = NULL;
    if (ctx->status != CTR_OK) return 0;
    if (c->images < c->prototypes || c->images > 0x7fffffff)
        wrong = "images must be those of the data set, and at least as many as prototypes";
    else if (c->iterations < 1)
        wrong = "there must be at least 1 iteration";
    else if (c->freeze_prototypes_steps < 0)
        wrong = "freeze_prototypes_steps must be at least 0";
    if (wrong) ctr_fail_(ctx, CTR_E_VALUE, "deepcluster_v2: %s", wrong);
    return !wrong;
}

CTR_API ctr_method *ctr_deepcluster_v2_create(ctr_ctx *ctx, const ctr_deepcluster_v2_config *config)
{
    ctr_crops_config_ c;
    ctr_deepcluster_v2_ *m;
    int64_t shape[3];
    if (!ctr_deepcluster_v2_check_(ctx, config)) return NULL;
    c.encoder = &config->encoder;
    c.hidden = config->proj_hidden;
    c.dim = config->proj_dim;
    c.prototypes = config->prototypes;
    c.heads = config->heads;
    c.small_views = config->small_views;
    c.temperature = config->temperature;
    c.aug = &config->aug;
    c.small_aug = &config->small_aug;
    c.optim = &config->optim;
    c.lr = config->lr;
    c.lr_rule = config->lr_rule;
    m = (ctr_deepcluster_v2_ *)ctr_crops_create_(ctx, "deepcluster_v2", sizeof *m, &c);
    if (!m) return NULL;
    m->config = *config;
    m->crops.base.begin_fn = ctr_deepcluster_v2_begin_;
    m->crops.base.loss_fn = ctr_deepcluster_v2_loss_;
    m->crops.base.commit_fn = ctr_deepcluster_v2_commit_;
    m->crops.base.visit_fn = ctr_deepcluster_v2_visit_;
    m->crops.base.describe_fn = ctr_deepcluster_v2_describe_;
    shape[0] = 2;
    shape[1] = config->images;
    shape[2] = config->proj_dim;
    m->bank = ctr_vars_add(ctx, &m->crops.store, "bank.", "rows", CTR_KIND_BUFFER, 3, shape);
    shape[0] = config->heads;
    m->clusters = ctr_vars_add(ctx, &m->crops.store, "bank.", "clusters", CTR_KIND_BUFFER, 2,
                               shape);
    if (ctx->status == CTR_OK) return &m->crops.base;
    ctr_crops_destroy_(&m->crops.base);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------
   >>EVAL
   ---------------------------------------------------------------------------------------------- */

CTR_API ctr_points ctr_points_make(int64_t n, int64_t d, const ctr_real *x, const int32_t *labels)
{
    ctr_points p;
    p.n = n;
    p.d = d;
    p.x = x;
    p.labels = labels;
    return p;
}

/* The checks that all share. classes (NULL allowed) gets 1 + the largest label, labelled the number
   of points that have one. */
CTR_PRIVATE_ int ctr_points_check_(ctr_ctx *ctx, const char *who, const char *what,
                                   const ctr_points *p, int *classes, int64_t *labelled)
{
    int64_t i, count = 0;
    int32_t top = -1;
    if (ctx->status != CTR_OK) return 0;
    if (p->n < 1 || p->d < 1 || !p->x) {
        ctr_fail_(ctx, CTR_E_SHAPE, "%s: the %s must be at least 1 x 1 numbers, got %ld x %ld%s",
                  who, what, (long)p->n, (long)p->d, p->x ? "" : " at NULL");
        return 0;
    }
    for (i = 0; p->labels && i < p->n; i++) {
        if (p->labels[i] < -1 || p->labels[i] >= CTR_MAX_CLASSES) {
            ctr_fail_(ctx, CTR_E_VALUE, "%s: label %ld of the %s must be -1 or 0..%d, got %ld", who,
                      (long)i, what, CTR_MAX_CLASSES - 1, (long)p->labels[i]);
            return 0;
        }
        count += p->labels[i] >= 0;
        top = CTR_MAX_(top, p->labels[i]);
    }
    if (classes) *classes = (int)top + 1;
    if (labelled) *labelled = count;
    return 1;
}

CTR_PRIVATE_ int ctr_points_agree_(ctr_ctx *ctx, const char *who, const ctr_points *a,
                                   const ctr_points *b)
{
    if (a->d == b->d) return 1;
    ctr_fail_(ctx, CTR_E_SHAPE, "%s: both sets must have the same d, got %ld and %ld", who,
              (long)a->d, (long)b->d);
    return 0;
}

/* ---- neighbours --------------------------------------------------------------------------------

   Tiles of queries x data are multiplied, and each query keeps the k best in a heap whose root is
   the worst of them, so that most candidates cost one comparison. */

#define CTR_SEARCH_QUERIES_ 512
#define CTR_SEARCH_DATA_ 1024
#define CTR_SEARCH_CHUNK_ 8 /* queries in a chunk of parallel work */

typedef struct ctr_search_ {
    ctr_ctx *ctx;
    const ctr_points *data, *queries;
    int self, labelled;                  /* leave out the query itself; points without a label */
    int64_t k;
    double *data_inverse, *query_inverse;
    ctr_real *data_unit, *query_unit;    /* [CTR_SEARCH_DATA_, d], [CTR_SEARCH_QUERIES_, d] */
    ctr_real *cosine;                    /* [CTR_SEARCH_QUERIES_, CTR_SEARCH_DATA_] */
    int64_t *index, *filled;             /* [CTR_SEARCH_QUERIES_, k], [CTR_SEARCH_QUERIES_] */
    ctr_real *value;                     /* [CTR_SEARCH_QUERIES_, k] */
    int64_t query, queries_now, first, data_now; /* the tile */
} ctr_search_;

/* Is neighbour a worse than b? Of equals the higher index is. */
CTR_PRIVATE_ int ctr_eval_heap_worse_(const ctr_real *v, const int64_t *x, int64_t a, int64_t b)
{
    return v[a] < v[b] || (v[a] <= v[b] && x[a] > x[b]);
}

CTR_PRIVATE_ void ctr_eval_heap_swap_(ctr_real *v, int64_t *x, int64_t a, int64_t b)
{
    ctr_real value = v[a];
    int64_t index = x[a];
    v[a] = v[b];
    x[a] = x[b];
    v[b] = value;
    x[b] = index;
}

/* Lets entry i of a heap of n sink until no child is worse. */
CTR_PRIVATE_ void ctr_eval_heap_sink_(ctr_real *v, int64_t *x, int64_t n, int64_t i)
{
    for (;;) {
        int64_t worst = i, child = 2 * i + 1;
        if (child < n && ctr_eval_heap_worse_(v, x, child, worst)) worst = child;
        if (child + 1 < n && ctr_eval_heap_worse_(v, x, child + 1, worst)) worst = child + 1;
        if (worst == i) return;
        ctr_eval_heap_swap_(v, x, i, worst);
        i = worst;
    }
}

CTR_PRIVATE_ void ctr_eval_heap_push_(ctr_real *v, int64_t *x, int64_t *n, ctr_real value,
                                      int64_t index)
{
    int64_t i = (*n)++;
    v[i] = value;
    x[i] = index;
    while (i > 0 && ctr_eval_heap_worse_(v, x, i, (i - 1) / 2)) {
        ctr_eval_heap_swap_(v, x, i, (i - 1) / 2);
        i = (i - 1) / 2;
    }
}

/* Takes a tile's candidates into the heaps. They come by rising index, so a candidate that equals
   the root is the worse one and stays out. */
CTR_PRIVATE_ void ctr_search_tile_job_(void *arg, int64_t chunk, int worker)
{
    ctr_search_ *s = (ctr_search_ *)arg;
    int64_t q = chunk * CTR_SEARCH_CHUNK_, end = CTR_MIN_(q + CTR_SEARCH_CHUNK_, s->queries_now), t;
    (void)worker;
    for (; q < end; q++) {
        const ctr_real *cosine = s->cosine + q * CTR_SEARCH_DATA_;
        ctr_real *v = s->value + q * s->k;
        int64_t *x = s->index + q * s->k;
        for (t = 0; t < s->data_now; t++) {
            int64_t i = s->first + t;
            int full = s->filled[q] == s->k;
            if (full && cosine[t] <= v[0]) continue;
            if (s->self && i == s->query + q) continue;
            if (s->labelled && s->data->labels[i] < 0) continue;
            if (full) {
                v[0] = cosine[t];
                x[0] = i;
                ctr_eval_heap_sink_(v, x, s->k, 0);
            } else {
                ctr_eval_heap_push_(v, x, &s->filled[q], cosine[t], i);
            }
        }
    }
}

/* Heap sort: the root, the worst of what is left, goes to the end. */
CTR_PRIVATE_ void ctr_search_sort_job_(void *arg, int64_t chunk, int worker)
{
    ctr_search_ *s = (ctr_search_ *)arg;
    int64_t q = chunk * CTR_SEARCH_CHUNK_, end = CTR_MIN_(q + CTR_SEARCH_CHUNK_, s->queries_now), i;
    (void)worker;
    for (; q < end; q++) {
        ctr_real *v = s->value + q * s->k;
        int64_t *x = s->index + q * s->k;
        for (i = s->filled[q] - 1; i > 0; i--) {
            ctr_eval_heap_swap_(v, x, 0, i);
            ctr_eval_heap_sink_(v, x, i, 0);
        }
        for (i = s->filled[q]; i < s->k; i++) {
            v[i] = 0;
            x[i] = -1;
        }
    }
}

/* Neighbours of the queries from s->query on, a block of them, into s->index and s->value. */
CTR_PRIVATE_ void ctr_search_block_(ctr_search_ *s)
{
    int64_t d = s->data->d, chunks, i;
    s->queries_now = CTR_MIN_(CTR_SEARCH_QUERIES_, s->queries->n - s->query);
    chunks = (s->queries_now + CTR_SEARCH_CHUNK_ - 1) / CTR_SEARCH_CHUNK_;
    for (i = 0; i < s->queries_now; i++) s->filled[i] = 0;
    ctr_eval_rows_unit_(s->ctx, s->queries_now, d, s->queries->x + s->query * d,
                   s->query_inverse + s->query, s->query_unit);
    for (s->first = 0; s->first < s->data->n; s->first += CTR_SEARCH_DATA_) {
        s->data_now = CTR_MIN_(CTR_SEARCH_DATA_, s->data->n - s->first);
        ctr_eval_rows_unit_(s->ctx, s->data_now, d, s->data->x + s->first * d,
                       s->data_inverse + s->first, s->data_unit);
        ctr_gemm_run_(s->ctx, 0, 1, s->queries_now, s->data_now, d, 1, s->query_unit, d,
                      s->data_unit, d, 0, s->cosine, CTR_SEARCH_DATA_);
        ctr_parallel_(s->ctx, chunks, ctr_search_tile_job_, s);
    }
    ctr_parallel_(s->ctx, chunks, ctr_search_sort_job_, s);
}

/* Checks the rows and takes the memory; queries NULL means leave one out. 0 after an error. */
CTR_PRIVATE_ int ctr_search_open_(ctr_search_ *s, ctr_bag_ *bag, const char *who,
                                  const ctr_points *data, const ctr_points *queries, int64_t k,
                                  int labelled)
{
    memset(s, 0, sizeof *s);
    s->ctx = bag->ctx;
    s->data = data;
    s->self = queries == NULL;
    s->queries = queries ? queries : data;
    s->labelled = labelled;
    s->k = k;
    s->data_inverse = ctr_bag_double_(bag, data->n, 1);
    s->query_inverse = s->self ? s->data_inverse : ctr_bag_double_(bag, queries->n, 1);
    s->data_unit = ctr_bag_real_(bag, CTR_SEARCH_DATA_, data->d);
    s->query_unit = ctr_bag_real_(bag, CTR_SEARCH_QUERIES_, data->d);
    s->cosine = ctr_bag_real_(bag, CTR_SEARCH_QUERIES_, CTR_SEARCH_DATA_);
    s->index = ctr_bag_i64_(bag, CTR_SEARCH_QUERIES_, k);
    s->value = ctr_bag_real_(bag, CTR_SEARCH_QUERIES_, k);
    s->filled = ctr_bag_i64_(bag, CTR_SEARCH_QUERIES_, 1);
    if (!ctr_eval_rows_scan_(s->ctx, who, labelled ? "training points" : "data", data->n, data->d,
                             data->x, s->data_inverse))
        return 0;
    return s->self || ctr_eval_rows_scan_(s->ctx, who, labelled ? "test points" : "queries",
                                          queries->n, queries->d, queries->x, s->query_inverse);
}

CTR_API int64_t ctr_neighbors_find(ctr_ctx *ctx, const ctr_points *data, const ctr_points *queries,
                                   int64_t k, int64_t *index, ctr_real *similarity)
{
    int64_t found = queries ? data->n : data->n - 1, q, i;
    ctr_search_ s;
    ctr_bag_ bag;
    if (!ctr_points_check_(ctx, "neighbors", "data", data, NULL, NULL)) return 0;
    if (queries && (!ctr_points_check_(ctx, "neighbors", "queries", queries, NULL, NULL) ||
                    !ctr_points_agree_(ctx, "neighbors", data, queries)))
        return 0;
    if (k < 1) {
        ctr_fail_(ctx, CTR_E_VALUE, "neighbors: k must be at least 1, got %ld", (long)k);
        return 0;
    }
    found = CTR_MIN_(k, found);
    ctr_bag_open_(&bag, ctx);
    if (ctr_search_open_(&s, &bag, "neighbors", data, queries, CTR_MAX_(found, 1), 0))
        for (s.query = 0; s.query < s.queries->n; s.query += CTR_SEARCH_QUERIES_) {
            ctr_search_block_(&s);
            for (q = 0; q < s.queries_now; q++)
                for (i = 0; i < k; i++) {
                    int64_t to = (s.query + q) * k + i;
                    if (index) index[to] = i < found ? s.index[q * s.k + i] : -1;
                    if (similarity) similarity[to] = i < found ? s.value[q * s.k + i] : 0;
                }
        }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK ? found : 0;
}

/* ---- k-NN classifier ------------------------------------------------------------------------- */

CTR_API void ctr_knn_config_init(ctr_knn_config *config)
{
    config->k = 0;
    config->temperature = 0.1;
}

CTR_API ctr_knn_config ctr_knn_config_default(void)
{
    ctr_knn_config config;
    ctr_knn_config_init(&config);
    return config;
}

/* votes[c] = sum over neighbours i of class c of exp((s_i - s_0) / temperature): the common factor
   exp(s_0 / temperature) changes no winner, and without it nothing overflows. votes [classes] is
   zero on entry and on return. Returns the winner, -1 without neighbours. */
CTR_PRIVATE_ int32_t ctr_knn_vote_(const int32_t *labels, int64_t k, const int64_t *index,
                                   const ctr_real *cosine, double temperature, double *votes)
{
    int32_t best = -1, c;
    int64_t i;
    for (i = 0; i < k && index[i] >= 0; i++)
        votes[labels[index[i]]] += exp(((double)cosine[i] - (double)cosine[0]) / temperature);
    for (i = 0; i < k && index[i] >= 0; i++) {
        c = labels[index[i]];
        if (best < 0 || votes[c] > votes[best] || (votes[c] >= votes[best] && c < best)) best = c;
    }
    for (i = 0; i < k && index[i] >= 0; i++) votes[labels[index[i]]] = 0;
    return best;
}

typedef struct ctr_knn_job_ {
    const ctr_search_ *search;
    double temperature;
    double *votes;       /* [threads, classes] */
    int32_t *winner;     /* [CTR_SEARCH_QUERIES_] */
    int64_t classes;
} ctr_knn_job_;

CTR_PRIVATE_ void ctr_knn_vote_job_(void *arg, int64_t chunk, int worker)
{
    ctr_knn_job_ *j = (ctr_knn_job_ *)arg;
    const ctr_search_ *s = j->search;
    int64_t q = chunk * CTR_SEARCH_CHUNK_, end = CTR_MIN_(q + CTR_SEARCH_CHUNK_, s->queries_now);
    for (; q < end; q++)
        j->winner[q] = ctr_knn_vote_(s->data->labels, s->k, s->index + q * s->k,
                                     s->value + q * s->k, j->temperature,
                                     j->votes + worker * j->classes);
}

CTR_PRIVATE_ void ctr_knn_count_(const ctr_knn_job_ *j, int32_t *predicted, ctr_knn_result *out)
{
    const ctr_search_ *s = j->search;
    int64_t q;
    for (q = 0; q < s->queries_now; q++) {
        int64_t i = s->query + q;
        int32_t label = s->queries->labels ? s->queries->labels[i] : -1;
        if (predicted) predicted[i] = j->winner[q];
        out->counted += label >= 0;
        out->correct += label >= 0 && label == j->winner[q];
    }
}

CTR_PRIVATE_ void ctr_knn_run_(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                               double temperature, int32_t *predicted, ctr_knn_result *out)
{
    ctr_search_ s;
    ctr_knn_job_ j;
    ctr_bag_ bag;
    int64_t i;
    ctr_bag_open_(&bag, ctx);
    j.search = &s;
    j.temperature = temperature;
    j.classes = out->classes;
    j.votes = ctr_bag_double_(&bag, ctx->threads, j.classes);
    j.winner = ctr_bag_i32_(&bag, CTR_SEARCH_QUERIES_, 1);
    if (ctr_search_open_(&s, &bag, "knn", train, test, out->k, 1)) {
        for (i = 0; i < ctx->threads * j.classes; i++) j.votes[i] = 0;
        for (s.query = 0; s.query < s.queries->n; s.query += CTR_SEARCH_QUERIES_) {
            ctr_search_block_(&s);
            ctr_parallel_(ctx, (s.queries_now + CTR_SEARCH_CHUNK_ - 1) / CTR_SEARCH_CHUNK_,
                          ctr_knn_vote_job_, &j);
            ctr_knn_count_(&j, predicted, out);
        }
    }
    ctr_bag_close_(&bag);
}

CTR_API int ctr_knn_classify(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                             const ctr_knn_config *config, int32_t *predicted, ctr_knn_result *out)
{
    ctr_knn_config c = config ? *config : ctr_knn_config_default();
    memset(out, 0, sizeof *out);
    if (!ctr_points_check_(ctx, "knn", "training points", train, &out->classes, &out->voters))
        return 0;
    if (test && (!ctr_points_check_(ctx, "knn", "test points", test, NULL, NULL) ||
                 !ctr_points_agree_(ctx, "knn", train, test)))
        return 0;
    if (c.k < 0 || !(c.temperature > 0)) {
        ctr_fail_(ctx, CTR_E_VALUE, "knn: k must be at least 0 and temperature above 0, got %ld "
                  "and %g", (long)c.k, c.temperature);
        return 0;
    }
    if (!out->voters) {
        ctr_fail_(ctx, CTR_E_VALUE, "knn: none of the %ld training points has a label",
                  (long)train->n);
        return 0;
    }
    out->k = c.k ? c.k : out->voters < 10000 ? 20 : 200;
    out->k = CTR_MIN_(out->k, out->voters);
    ctr_knn_run_(ctx, train, test, c.temperature, predicted, out);
    if (out->counted) out->top1 = (double)out->correct / (double)out->counted;
    snprintf(out->text, sizeof out->text,
             "k-NN %.2f %%: cosine, k %ld of %ld, weights exp(s / %g), %d classes, %ld points%s",
             100 * out->top1, (long)out->k, (long)out->voters, c.temperature, out->classes,
             (long)out->counted, test ? "" : ", leave one out");
    return ctx->status == CTR_OK;
}

/* ---- retrieval, confusion, intervals --------------------------------------------------------- */

/* Adds what one query gives: its list of k, its label, and how many of the data have that label. */
CTR_PRIVATE_ void ctr_retrieval_query_(int64_t k, const int64_t *index, const int32_t *labels,
                                       int32_t label, int64_t relevant, ctr_retrieval *out)
{
    int64_t i, hits = 0, first = 0, hits_r = 0, cut[4];
    double sum = 0, sum_r = 0;
    int c;
    cut[0] = 1;
    cut[1] = 5;
    cut[2] = 10;
    cut[3] = k;
    for (i = 0; i < k && index[i] >= 0; i++) {
        if (labels[index[i]] != label) continue;
        hits++;
        if (!first) first = i + 1;
        sum += (double)hits / (double)(i + 1);
        if (i >= relevant) continue;
        sum_r += (double)hits / (double)(i + 1);
        hits_r++;
    }
    for (c = 0; c < 4; c++) out->recall[c] += first > 0 && first <= cut[c];
    out->map += sum / (double)CTR_MIN_(relevant, k);
    out->map_r += sum_r / (double)relevant;
    out->r_precision += (double)hits_r / (double)relevant;
    if (first) out->mrr += 1.0 / (double)first;
    out->queries++;
}

/* Are the labels -1..CTR_MAX_CLASSES - 1 and the indices -1..data_n - 1? Sets classes. */
CTR_PRIVATE_ int ctr_retrieval_check_(ctr_ctx *ctx, int64_t n, int64_t k, const int64_t *index,
                                      const int32_t *query_labels, int64_t data_n,
                                      const int32_t *data_labels, int *classes)
{
    static const ctr_real one = 1; /* labels alone are checked: any numbers will do */
    ctr_points data = ctr_points_make(data_n, 1, &one, data_labels);
    ctr_points queries = ctr_points_make(n, 1, &one, query_labels);
    int64_t i;
    if (!ctr_points_check_(ctx, "retrieval", "data", &data, classes, NULL) ||
        !ctr_points_check_(ctx, "retrieval", "queries", &queries, NULL, NULL))
        return 0;
    if (!data_labels || !query_labels || k < 1) {
        ctr_fail_(ctx, CTR_E_VALUE, "retrieval: needs labels of queries and data, and k above 0");
        return 0;
    }
    for (i = 0; i < n * k; i++)
        if (index[i] < -1 || index[i] >= data_n) {
            ctr_fail_(ctx, CTR_E_VALUE, "retrieval: index %ld of query %ld is not in 0..%ld",
                      (long)index[i], (long)(i / k), (long)data_n - 1);
            return 0;
        }
    return 1;
}

CTR_API int ctr_retrieval_measure(ctr_ctx *ctx, int64_t n, int64_t k, const int64_t *index,
                                  const int32_t *query_labels, int64_t data_n,
                                  const int32_t *data_labels, int self, ctr_retrieval *out)
{
    int classes = 0, c;
    int64_t i, *count;
    ctr_bag_ bag;
    memset(out, 0, sizeof *out);
    if (!ctr_retrieval_check_(ctx, n, k, index, query_labels, data_n, data_labels, &classes))
        return 0;
    ctr_bag_open_(&bag, ctx);
    count = ctr_bag_i64_(&bag, classes, 1);
    for (i = 0; count && i < classes; i++) count[i] = 0;
    for (i = 0; count && i < data_n; i++)
        if (data_labels[i] >= 0) count[data_labels[i]]++;
    for (i = 0; count && i < n; i++) {
        int32_t label = query_labels[i];
        int64_t relevant = label >= 0 && label < classes ? count[label] - (self != 0) : 0;
        if (relevant > 0)
            ctr_retrieval_query_(k, index + i * k, data_labels, label, relevant, out);
    }
    ctr_bag_close_(&bag);
    if (out->queries) {
        double scale = 1.0 / (double)out->queries;
        for (c = 0; c < 4; c++) out->recall[c] *= scale;
        out->map *= scale;
        out->map_r *= scale;
        out->r_precision *= scale;
        out->mrr *= scale;
    }
    return ctx->status == CTR_OK;
}

CTR_API int ctr_confusion_count(ctr_ctx *ctx, int64_t n, const int32_t *labels,
                                const int32_t *predicted, int classes, int64_t *matrix)
{
    int64_t i;
    if (ctx->status != CTR_OK) return 0;
    for (i = 0; i < (int64_t)classes * classes; i++) matrix[i] = 0;
    for (i = 0; i < n; i++) {
        if (labels[i] < 0) continue;
        if (labels[i] >= classes || predicted[i] < 0 || predicted[i] >= classes) {
            ctr_fail_(ctx, CTR_E_VALUE, "confusion: classes must be 0..%d, point %ld has %ld and "
                      "is predicted as %ld", classes - 1, (long)i, (long)labels[i],
                      (long)predicted[i]);
            return 0;
        }
        matrix[(int64_t)labels[i] * classes + predicted[i]]++;
    }
    return 1;
}

CTR_API double ctr_confusion_accuracy(int classes, const int64_t *matrix, double *by_class)
{
    double sum = 0;
    int64_t i, j, present = 0;
    for (i = 0; i < classes; i++) {
        int64_t total = 0;
        for (j = 0; j < classes; j++) total += matrix[i * classes + j];
        by_class[i] = total ? (double)matrix[i * classes + i] / (double)total : -1;
        if (!total) continue;
        sum += by_class[i];
        present++;
    }
    return present ? sum / (double)present : 0;
}

/* (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96 */
CTR_API void ctr_share_interval(int64_t correct, int64_t total, double *low, double *high)
{
    double z = 1.959963984540054, n = (double)total, p, middle, half;
    *low = 0;
    *high = 1;
    if (total < 1) return;
    p = (double)correct / n;
    middle = (p + z * z / (2 * n)) / (1 + z * z / n);
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
    *low = CTR_MAX_(0.0, middle - half);
    *high = CTR_MIN_(1.0, middle + half);
}

/* ---- linear probe ------------------------------------------------------------------------------

   Weights stand as [d + 1, classes], the last row is the bias: features get a column of ones.
   Features are correlated, so plain L-BFGS takes hundreds of steps. It starts here from the inverse
   of B = Z^T diag(a) Z / m + l2 I, a_i the mean over the classes of p (1 - p): the Hessian, were
   all classes alike. B is made and factored once for each l2, in blocks, by matrix products. */

#define CTR_PROBE_MEMORY_ 10 /* pairs of steps that L-BFGS remembers */
#define CTR_PROBE_CHUNK_ 128
#define CTR_PROBE_BLOCK_ 64  /* side of the blocks of the factored matrix */
#define CTR_PROBE_ROWS_ 1024 /* points weighted at a time */

typedef struct ctr_probe_ {
    ctr_ctx *ctx;
    int64_t m, e, c;        /* points, d + 1, classes */
    ctr_real *z;            /* [m, e] standardised features and a one */
    int32_t *y, *part;      /* [m] class, and the held-out part that the point belongs to */
    double *mean, *scale;   /* [d]: feature j is (x_j - mean_j) * scale_j */
    double l2;
    int skip;               /* the part that is held out now, -1 none */
    int64_t count;          /* points that are not */
    ctr_real *weight;       /* [e, c] what the kernels multiply with */
    ctr_real *logit, *rest; /* [m, c] W x + b, and (softmax - one hot) / count */
    ctr_real *grad;         /* [e, c] */
    double *loss;           /* [m] */
    ctr_real *chol;         /* [e, e] B, then its lower factor L */
    ctr_real *turn;         /* [e, c] */
    ctr_real *weighted;     /* [CTR_PROBE_ROWS_, e] */
    int64_t first;          /* the point in its first row */
    double *lbfgs;          /* all vectors of the solver */
    int iterations, converged;
    double value;           /* loss of the last fit */
} ctr_probe_;

/* Cross entropy of one row and, if rest is given, its gradient to the logits times scale. */
CTR_PRIVATE_ double ctr_probe_entropy_(int64_t c, const ctr_real *logit, int32_t y, double scale,
                                       ctr_real *rest)
{
    double top = (double)logit[0], sum = 0;
    int64_t j;
    for (j = 1; j < c; j++) top = CTR_MAX_(top, (double)logit[j]);
    for (j = 0; j < c; j++) {
        double t = exp((double)logit[j] - top);
        if (rest) rest[j] = (ctr_real)t;
        sum += t;
    }
    if (rest) {
        scale /= sum;
        for (j = 0; j < c; j++) rest[j] = (ctr_real)((double)rest[j] * scale);
        rest[y] -= (ctr_real)(scale * sum);
    }
    return top + log(sum) - (double)logit[y];
}

CTR_PRIVATE_ void ctr_probe_loss_job_(void *arg, int64_t chunk, int worker)
{
    ctr_probe_ *p = (ctr_probe_ *)arg;
    int64_t i = chunk * CTR_PROBE_CHUNK_, end = CTR_MIN_(i + CTR_PROBE_CHUNK_, p->m), j;
    (void)worker;
    for (; i < end; i++) {
        ctr_real *rest = p->rest + i * p->c;
        p->loss[i] = 0;
        if (p->part[i] != p->skip)
            p->loss[i] = ctr_probe_entropy_(p->c, p->logit + i * p->c, p->y[i],
                                            1.0 / (double)p->count, rest);
        else
            for (j = 0; j < p->c; j++) rest[j] = 0;
    }
}

/* The loss at w [e c], and its gradient. Held-out points get logits too, but weigh nothing. */
CTR_PRIVATE_ double ctr_probe_eval_(ctr_probe_ *p, const double *w, double *grad)
{
    int64_t size = p->e * p->c, penalised = size - p->c, i;
    double sum = 0, square = 0;
    for (i = 0; i < size; i++) p->weight[i] = (ctr_real)w[i];
    ctr_gemm_run_(p->ctx, 0, 0, p->m, p->c, p->e, 1, p->z, p->e, p->weight, p->c, 0, p->logit,
                  p->c);
    ctr_parallel_(p->ctx, (p->m + CTR_PROBE_CHUNK_ - 1) / CTR_PROBE_CHUNK_, ctr_probe_loss_job_, p);
    ctr_gemm_run_(p->ctx, 1, 0, p->e, p->c, p->m, 1, p->z, p->e, p->rest, p->c, 0, p->grad, p->c);
    for (i = 0; i < p->m; i++) sum += p->loss[i];
    for (i = 0; i < size; i++) grad[i] = (double)p->grad[i];
    for (i = 0; i < penalised; i++) {
        grad[i] += p->l2 * w[i];
        square += w[i] * w[i];
    }
    return sum / (double)p->count + 0.5 * p->l2 * square;
}

/* ---- the factored matrix: B = L L^T ---- */

/* Rows below the diagonal block at `at`: L21 = B21 L11^-T, one row a chunk. */
typedef struct ctr_probe_panel_ {
    ctr_real *chol;
    int64_t e, at, side;
} ctr_probe_panel_;

CTR_PRIVATE_ void ctr_probe_panel_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_probe_panel_ *b = (const ctr_probe_panel_ *)arg;
    ctr_real *row = b->chol + (b->at + b->side + chunk) * b->e + b->at;
    int64_t i, k;
    (void)worker;
    for (i = 0; i < b->side; i++) {
        const ctr_real *pivot = b->chol + (b->at + i) * b->e + b->at;
        double sum = (double)row[i];
        for (k = 0; k < i; k++) sum -= (double)row[k] * (double)pivot[k];
        row[i] = (ctr_real)(sum / (double)pivot[i]);
    }
}

/* Cholesky of one diagonal block; a pivot that rounding has eaten becomes floor. */
CTR_PRIVATE_ void ctr_probe_pivot_(ctr_real *a, int64_t e, int64_t side, double floor)
{
    int64_t i, j, k;
    for (i = 0; i < side; i++)
        for (j = 0; j <= i; j++) {
            double sum = (double)a[i * e + j];
            for (k = 0; k < j; k++) sum -= (double)a[i * e + k] * (double)a[j * e + k];
            sum = i == j ? sqrt(CTR_MAX_(sum, floor)) : sum / (double)a[j * e + j];
            a[i * e + j] = (ctr_real)sum;
        }
}

/* Row of Z times the root of its mean p (1 - p), from the softmax of the last logits. */
CTR_PRIVATE_ void ctr_probe_weight_job_(void *arg, int64_t chunk, int worker)
{
    ctr_probe_ *p = (ctr_probe_ *)arg;
    int64_t i = p->first + chunk, j;
    const ctr_real *logit = p->logit + i * p->c, *z = p->z + i * p->e;
    double sum = 0, square = 0, top = (double)logit[0], root;
    (void)worker;
    for (j = 1; j < p->c; j++) top = CTR_MAX_(top, (double)logit[j]);
    for (j = 0; j < p->c; j++) {
        double t = exp((double)logit[j] - top);
        sum += t;
        square += t * t;
    }
    root = 1 - square / (sum * sum);
    root = sqrt(CTR_MAX_(1e-4, root) / (double)(p->m * p->c));
    for (j = 0; j < p->e; j++) p->weighted[chunk * p->e + j] = (ctr_real)(root * (double)z[j]);
}

/* chol = L of B for the last logits and l2. What stands above the diagonal blocks is not used. */
CTR_PRIVATE_ void ctr_probe_factor_(ctr_probe_ *p)
{
    int64_t e = p->e, i;
    double ridge, mean = 0;
    ctr_probe_panel_ b;
    for (p->first = 0; p->first < p->m; p->first += CTR_PROBE_ROWS_) {
        int64_t rows = CTR_MIN_(CTR_PROBE_ROWS_, p->m - p->first);
        ctr_parallel_(p->ctx, rows, ctr_probe_weight_job_, p);
        ctr_gemm_run_(p->ctx, 1, 0, e, e, rows, 1, p->weighted, e, p->weighted, e,
                      p->first ? CTR_R(1.0) : CTR_R(0.0), p->chol, e);
    }
    for (i = 0; i < e; i++) mean += (double)p->chol[i * (e + 1)] / (double)e;
    ridge = CTR_MAX_(p->l2, 1e-4 * mean); /* keeps floats positive definite */
    for (i = 0; i < e; i++) p->chol[i * (e + 1)] += (ctr_real)ridge;
    b.chol = p->chol;
    b.e = e;
    for (b.at = 0; b.at < e; b.at += CTR_PROBE_BLOCK_) {
        int64_t first, row;
        b.side = CTR_MIN_(CTR_PROBE_BLOCK_, e - b.at);
        first = b.at + b.side;
        ctr_probe_pivot_(p->chol + b.at * (e + 1), e, b.side, 0.1 * ridge);
        ctr_parallel_(p->ctx, e - first, ctr_probe_panel_job_, &b);
        for (row = first; row < e; row += 4 * CTR_PROBE_BLOCK_) { /* B22 -= L21 L21^T */
            int64_t rows = CTR_MIN_(4 * CTR_PROBE_BLOCK_, e - row);
            ctr_gemm_run_(p->ctx, 0, 1, rows, row + rows - first, b.side, -1,
                          p->chol + row * e + b.at, e, p->chol + first * e + b.at, e, 1,
                          p->chol + row * e + first, e);
        }
    }
}

/* x [side, c] = L11^-1 x, or L11^-T x if transposed */
CTR_PRIVATE_ void ctr_probe_small_(const ctr_real *l, int64_t e, int64_t side, int64_t c,
                                   int transposed, ctr_real *x)
{
    int64_t n, i, k, j;
    for (n = 0; n < side; n++) {
        i = transposed ? side - 1 - n : n;
        for (k = transposed ? i + 1 : 0; k < (transposed ? side : i); k++) {
            ctr_real f = transposed ? l[k * e + i] : l[i * e + k];
            for (j = 0; j < c; j++) x[i * c + j] -= f * x[k * c + j];
        }
        for (j = 0; j < c; j++) x[i * c + j] /= l[i * e + i];
    }
}

/* v [e, c] = B^-1 v: down with L, up with its transpose. */
CTR_PRIVATE_ void ctr_probe_solve_(ctr_probe_ *p, double *v)
{
    int64_t e = p->e, c = p->c, last = (e - 1) / CTR_PROBE_BLOCK_ * CTR_PROBE_BLOCK_, at, i;
    ctr_real *x = p->turn;
    for (i = 0; i < e * c; i++) x[i] = (ctr_real)v[i];
    for (at = 0; at < e; at += CTR_PROBE_BLOCK_) {
        int64_t side = CTR_MIN_(CTR_PROBE_BLOCK_, e - at), below = at + side;
        ctr_probe_small_(p->chol + at * (e + 1), e, side, c, 0, x + at * c);
        ctr_gemm_run_(p->ctx, 0, 0, e - below, c, side, -1, p->chol + below * e + at, e,
                      x + at * c, c, 1, x + below * c, c);
    }
    for (at = last; at >= 0; at -= CTR_PROBE_BLOCK_) {
        int64_t side = CTR_MIN_(CTR_PROBE_BLOCK_, e - at), below = at + side;
        ctr_gemm_run_(p->ctx, 1, 0, side, c, e - below, -1, p->chol + below * e + at, e,
                      x + below * c, c, 1, x + at * c, c);
        ctr_probe_small_(p->chol + at * (e + 1), e, side, c, 1, x + at * c);
    }
    for (i = 0; i < e * c; i++) v[i] = (double)x[i];
}

/* ---- L-BFGS ---- */

/* direction = -H grad, H the L-BFGS estimate of the inverse Hessian from the last pairs s (steps)
   and y (changes of the gradient), kept in rings of CTR_PROBE_MEMORY_ (Nocedal, 1980), which
   correct B^-1. */
CTR_PRIVATE_ void ctr_probe_direction_(ctr_probe_ *p, int pairs, int newest, const double *s,
                                       const double *y, const double *grad, double *direction)
{
    double a[CTR_PROBE_MEMORY_];
    int64_t n = p->e * p->c, i;
    int k, at;
    for (i = 0; i < n; i++) direction[i] = -grad[i];
    for (k = 0; k < pairs; k++) {
        const double *sk, *yk;
        at = (newest - k + CTR_PROBE_MEMORY_) % CTR_PROBE_MEMORY_;
        sk = s + at * n;
        yk = y + at * n;
        a[k] = ctr_eval_dot_(n, sk, direction) / ctr_eval_dot_(n, sk, yk);
        for (i = 0; i < n; i++) direction[i] -= a[k] * yk[i];
    }
    ctr_probe_solve_(p, direction);
    for (k = pairs - 1; k >= 0; k--) {
        const double *sk, *yk;
        double b;
        at = (newest - k + CTR_PROBE_MEMORY_) % CTR_PROBE_MEMORY_;
        sk = s + at * n;
        yk = y + at * n;
        b = ctr_eval_dot_(n, yk, direction) / ctr_eval_dot_(n, sk, yk);
        for (i = 0; i < n; i++) direction[i] += (a[k] - b) * sk[i];
    }
}

/* Halves the step from w along direction until the loss falls by a ten-thousandth of what its slope
   promises. Fills fresh and fresh_grad; returns the loss there, or loss itself if no step helps. */
CTR_PRIVATE_ double ctr_probe_search_(ctr_probe_ *p, double loss, const double *w,
                                      const double *grad, const double *direction, double *fresh,
                                      double *fresh_grad, int *moved)
{
    int64_t size = p->e * p->c, i;
    double slope = ctr_eval_dot_(size, grad, direction), step = 1, now = loss;
    int tries;
    *moved = 0;
    for (tries = 0; tries < 30 && slope < 0; tries++, step *= 0.5) {
        for (i = 0; i < size; i++) fresh[i] = w[i] + step * direction[i];
        now = ctr_probe_eval_(p, fresh, fresh_grad);
        if (now <= loss + 1e-4 * step * slope) {
            *moved = 1;
            return now;
        }
    }
    return loss;
}

/* Fits w [e c] from where it is; B must be factored. Half of what the direction promises,
   -grad.direction / 2, is what the loss still lies above the least one if H is right. The fit ends
   when that was below tolerance * loss twice running, or when no step lowers the loss any more. */
CTR_PRIVATE_ void ctr_probe_fit_(ctr_probe_ *p, double *w, int iterations, double tolerance)
{
    int64_t size = p->e * p->c, i;
    double *grad = p->lbfgs, *fresh = grad + size, *fresh_grad = fresh + size;
    double *direction = fresh_grad + size, *s = direction + size;
    double *y = s + CTR_PROBE_MEMORY_ * size, loss, now, promise;
    int pairs = 0, newest = 0, small = 0, moved, it;
    p->count = 0;
    p->converged = 0;
    for (i = 0; i < p->m; i++) p->count += p->part[i] != p->skip;
    loss = ctr_probe_eval_(p, w, grad);
    for (it = 0; it < iterations; it++) {
        ctr_probe_direction_(p, pairs, newest, s, y, grad, direction);
        promise = -0.5 * ctr_eval_dot_(size, grad, direction);
        small = promise >= 0 && promise <= tolerance * loss ? small + 1 : 0;
        p->converged = small == 2;
        if (p->converged) break;
        now = ctr_probe_search_(p, loss, w, grad, direction, fresh, fresh_grad, &moved);
        p->iterations++;
        if (!moved && !pairs) { /* rounding hides what is left to gain */
            p->converged = promise <= 100 * tolerance * loss;
            break;
        }
        if (!moved) { /* a poor estimate: forget it and start again from B */
            pairs = 0;
            continue;
        }
        newest = (newest + 1) % CTR_PROBE_MEMORY_;
        for (i = 0; i < size; i++) {
            s[newest * size + i] = fresh[i] - w[i];
            y[newest * size + i] = fresh_grad[i] - grad[i];
            w[i] = fresh[i];
            grad[i] = fresh_grad[i];
        }
        loss = now;
        if (ctr_eval_dot_(size, s + newest * size, y + newest * size) > 0)
            pairs = CTR_MIN_(pairs + 1, CTR_PROBE_MEMORY_);
        else
            pairs = 0;
    }
    p->value = loss;
}

/* ---- what the probe is fitted on ------------------------------------------------------------- */

typedef struct ctr_probe_standard_ {
    const ctr_real *x;       /* [., d] */
    const int64_t *pick;     /* rows of x that are wanted, NULL: all */
    int64_t n, d;
    const double *mean, *scale;
    ctr_real *z;             /* [n, d + 1] */
} ctr_probe_standard_;

CTR_PRIVATE_ void ctr_probe_standard_job_(void *arg, int64_t chunk, int worker)
{
    ctr_probe_standard_ *s = (ctr_probe_standard_ *)arg;
    int64_t i = chunk * CTR_EVAL_CHUNK_, end = CTR_MIN_(i + CTR_EVAL_CHUNK_, s->n), j;
    (void)worker;
    for (; i < end; i++) {
        const ctr_real *x = s->x + (s->pick ? s->pick[i] : i) * s->d;
        ctr_real *z = s->z + i * (s->d + 1);
        for (j = 0; j < s->d; j++) z[j] = (ctr_real)(((double)x[j] - s->mean[j]) * s->scale[j]);
        z[s->d] = 1;
    }
}

CTR_PRIVATE_ void ctr_probe_standard_run_(ctr_probe_ *p, const ctr_real *x, const int64_t *pick,
                                    int64_t n, ctr_real *z)
{
    ctr_probe_standard_ s;
    s.x = x;
    s.pick = pick;
    s.n = n;
    s.d = p->e - 1;
    s.mean = p->mean;
    s.scale = p->scale;
    s.z = z;
    ctr_parallel_(p->ctx, ctr_eval_rows_chunks_(n), ctr_probe_standard_job_, &s);
}

/* Draws the points: pick [m] are the rows used, in their order; part [m] = rank within the class in
   a random order, modulo the number of parts. Small classes thus fill the high parts last. */
CTR_PRIVATE_ int64_t ctr_probe_draw_(const ctr_points *train, uint64_t seed, int64_t per_class,
                                     int64_t parts, int64_t *order, int64_t *seen, int64_t *rank,
                                     int64_t *pick, int32_t *part)
{
    ctr_rng rng;
    int64_t i, m = 0;
    ctr_rng_init(&rng, seed, CTR_STREAM_EVAL, 0, 0, 0);
    ctr_rng_permutation(&rng, train->n, order);
    for (i = 0; i < train->n; i++) {
        int32_t label = train->labels[order[i]];
        rank[order[i]] = label < 0 ? -1 : seen[label]++;
    }
    for (i = 0; i < train->n; i++) {
        if (rank[i] < 0 || (per_class > 0 && rank[i] >= per_class)) continue;
        part[m] = (int32_t)(parts - 1 - rank[i] % parts);
        pick[m++] = i;
    }
    return m;
}

CTR_PRIVATE_ int64_t ctr_probe_argmax_(int64_t c, const ctr_real *logit)
{
    int64_t best = 0, j;
    for (j = 1; j < c; j++)
        if (logit[j] > logit[best]) best = j;
    return best;
}

/* Right answers and cross entropy over the points in (held = 1) or not in (0) the part p->skip. */
CTR_PRIVATE_ int64_t ctr_probe_judge_(const ctr_probe_ *p, int held, int64_t *correct,
                                      double *entropy)
{
    int64_t i, count = 0;
    for (i = 0; i < p->m; i++) {
        const ctr_real *logit = p->logit + i * p->c;
        if ((p->part[i] == p->skip) != held) continue;
        count++;
        *correct += ctr_probe_argmax_(p->c, logit) == p->y[i];
        *entropy += ctr_probe_entropy_(p->c, logit, p->y[i], 0, NULL);
    }
    return count;
}

/* Are there points on both sides of the part p->skip? */
CTR_PRIVATE_ int ctr_probe_divides_(const ctr_probe_ *p)
{
    int64_t i, held = 0;
    for (i = 0; i < p->m; i++) held += p->part[i] == p->skip;
    return held > 0 && held < p->m;
}

/* From the strongest l2 to the weakest, each fit starting from the one before. Ends at the first
   that is no better than the best by both measures: beyond lies overfitting, and the weakest l2
   take the most steps. To compare them a hundred times the tolerance will do. weights [folds, e c]
   is work space; start [e c] gets what one fold has with the chosen l2. */
CTR_PRIVATE_ void ctr_probe_choose_(ctr_probe_ *p, const ctr_probe_config *config,
                                    const double *l2, int folds, double *weights, double *start,
                                    ctr_probe_result *out)
{
    int64_t size = p->e * p->c, i, best = -1;
    double least = 0;
    int g, f;
    for (i = 0; i < folds * size; i++) weights[i] = 0;
    for (g = 0; g < config->l2_count; g++) {
        int64_t held = 0, correct = 0;
        double entropy = 0;
        p->l2 = l2[g];
        ctr_probe_factor_(p);
        for (f = 0; f < folds; f++) {
            p->skip = f;
            if (!ctr_probe_divides_(p)) continue;
            ctr_probe_fit_(p, weights + f * size, config->iterations, 100 * config->tolerance);
            ctr_probe_eval_(p, weights + f * size, p->lbfgs);
            held += ctr_probe_judge_(p, 1, &correct, &entropy);
        }
        if (best >= 0 && correct <= best && entropy >= least) break;
        if (best < 0 || correct > best || (correct == best && entropy < least)) {
            out->l2 = l2[g];
            out->held_out = held;
            out->held_out_top1 = held ? (double)correct / (double)held : 0;
            best = correct;
            least = entropy;
            memcpy(start, weights, (size_t)size * sizeof *start);
        }
    }
}

CTR_PRIVATE_ void ctr_probe_test_(ctr_probe_ *p, const ctr_points *test, ctr_real *z,
                                  int32_t *predicted, ctr_probe_result *out)
{
    int64_t first, i, block = CTR_MIN_((int64_t)512, p->m);
    for (first = 0; first < test->n; first += block) {
        int64_t n = CTR_MIN_(block, test->n - first);
        ctr_probe_standard_run_(p, test->x + first * test->d, NULL, n, z);
        ctr_gemm_run_(p->ctx, 0, 0, n, p->c, p->e, 1, z, p->e, p->weight, p->c, 0, p->logit, p->c);
        for (i = 0; i < n; i++) {
            int32_t found = (int32_t)ctr_probe_argmax_(p->c, p->logit + i * p->c);
            int32_t label = test->labels ? test->labels[first + i] : -1;
            if (predicted) predicted[first + i] = found;
            out->counted += label >= 0;
            out->correct += label == found;
        }
    }
    if (out->counted) out->top1 = (double)out->correct / (double)out->counted;
}

/* Means and deviations over all training points, with or without a label. */
CTR_PRIVATE_ void ctr_probe_moments_(ctr_probe_ *p, const ctr_points *train)
{
    int64_t j;
    ctr_eval_moments_(p->ctx, train->n, train->d, train->x, p->mean, p->scale);
    for (j = 0; j < train->d; j++)
        p->scale[j] = p->scale[j] > 1e-6 * fabs(p->mean[j]) ? 1.0 / p->scale[j] : 0.0;
}

/* Takes all memory and prepares the points; 0 after an error. */
CTR_PRIVATE_ int ctr_probe_open_(ctr_probe_ *p, ctr_bag_ *bag, const ctr_points *train,
                                 const ctr_probe_config *config, int64_t parts)
{
    int64_t n = train->n, i, *order, *seen, *rank, *pick;
    double *inverse = ctr_bag_double_(bag, n, 1);
    order = ctr_bag_i64_(bag, n, 1);
    rank = ctr_bag_i64_(bag, n, 1);
    pick = ctr_bag_i64_(bag, n, 1);
    seen = ctr_bag_i64_(bag, p->c, 1);
    p->part = ctr_bag_i32_(bag, n, 1);
    p->y = ctr_bag_i32_(bag, n, 1);
    p->mean = ctr_bag_double_(bag, train->d, 1);
    p->scale = ctr_bag_double_(bag, train->d, 1);
    if (!ctr_eval_rows_scan_(p->ctx, "probe", "training points", n, train->d, train->x, inverse))
        return 0;
    for (i = 0; i < p->c; i++) seen[i] = 0;
    p->m = ctr_probe_draw_(train, config->seed, config->labels_per_class, parts, order, seen, rank,
                           pick, p->part);
    for (i = 0; i < p->m; i++) p->y[i] = train->labels[pick[i]];
    p->z = ctr_bag_real_(bag, p->m, p->e);
    p->chol = ctr_bag_real_(bag, p->e, p->e);
    p->turn = ctr_bag_real_(bag, p->e, p->c);
    p->weighted = ctr_bag_real_(bag, CTR_MIN_(CTR_PROBE_ROWS_, p->m), p->e);
    p->weight = ctr_bag_real_(bag, p->e, p->c);
    p->grad = ctr_bag_real_(bag, p->e, p->c);
    p->logit = ctr_bag_real_(bag, p->m, p->c);
    p->rest = ctr_bag_real_(bag, p->m, p->c);
    p->loss = ctr_bag_double_(bag, p->m, 1);
    p->lbfgs = ctr_bag_double_(bag, 4 + 2 * CTR_PROBE_MEMORY_, p->e * p->c);
    if (p->ctx->status != CTR_OK) return 0;
    ctr_probe_moments_(p, train);
    ctr_probe_standard_run_(p, train->x, pick, p->m, p->z);
    for (i = 0; i < p->m * p->c; i++) p->logit[i] = 0;
    return 1;
}

/* ---- the probe's public side ----------------------------------------------------------------- */

CTR_API void ctr_probe_config_init(ctr_probe_config *config)
{
    int i;
    memset(config, 0, sizeof *config);
    config->l2_count = 6;
    config->l2[0] = 1;
    for (i = 1; i < config->l2_count; i++) config->l2[i] = config->l2[i - 1] * 0.1;
    config->held_out = 0.1;
    config->iterations = 1000;
    config->tolerance = 1e-6;
    config->seed = 1;
}

CTR_API ctr_probe_config ctr_probe_config_default(void)
{
    ctr_probe_config config;
    ctr_probe_config_init(&config);
    return config;
}

/* Checks the config and sorts its grid into l2[16], the strongest first. */
CTR_PRIVATE_ int ctr_probe_config_check_(ctr_ctx *ctx, const ctr_probe_config *c, double *l2)
{
    int i, j;
    if (c->l2_count < 1 || c->l2_count > 16 || !(c->held_out >= 0.02 && c->held_out <= 0.5) ||
        c->labels_per_class < 0 || c->folds < 0 || c->iterations < 1 || !(c->tolerance > 0)) {
        ctr_fail_(ctx, CTR_E_VALUE, "probe: l2_count must be 1..16 (%d), held_out 0.02..0.5 (%g), "
                  "labels_per_class and folds at least 0 (%ld, %d), iterations and tolerance "
                  "above 0 (%d, %g)", c->l2_count, c->held_out, (long)c->labels_per_class,
                  c->folds, c->iterations, c->tolerance);
        return 0;
    }
    for (i = 0; i < c->l2_count; i++) {
        if (!(c->l2[i] > 0)) {
            ctr_fail_(ctx, CTR_E_VALUE, "probe: l2[%d] must be above 0, got %g", i, c->l2[i]);
            return 0;
        }
        for (j = i; j > 0 && l2[j - 1] < c->l2[i]; j--) l2[j] = l2[j - 1];
        l2[j] = c->l2[i];
    }
    return 1;
}

CTR_PRIVATE_ void ctr_probe_all_(ctr_probe_ *p, ctr_bag_ *bag, const ctr_points *test,
                                 const ctr_probe_config *config, const double *l2, int folds,
                                 int32_t *predicted, ctr_probe_result *out)
{
    int64_t size = p->e * p->c, i, correct = 0;
    double entropy = 0;
    double *weights = ctr_bag_double_(bag, folds, size), *w = ctr_bag_double_(bag, size, 1);
    ctr_real *z = ctr_bag_real_(bag, 512, p->e);
    if (!z) return;
    out->points = p->m;
    out->l2 = l2[0];
    for (i = 0; i < size; i++) w[i] = 0;
    if (config->l2_count > 1 && p->m > 1)
        ctr_probe_choose_(p, config, l2, folds, weights, w, out);
    p->skip = -1;
    p->l2 = out->l2;
    p->count = p->m;
    ctr_probe_eval_(p, w, p->lbfgs); /* the logits that B is made from */
    ctr_probe_factor_(p);
    ctr_probe_fit_(p, w, config->iterations, config->tolerance);
    ctr_probe_eval_(p, w, p->lbfgs);
    ctr_probe_judge_(p, 0, &correct, &entropy);
    out->train_loss = p->value;
    out->train_top1 = (double)correct / (double)p->m;
    out->iterations = p->iterations;
    out->converged = p->converged;
    ctr_probe_test_(p, test, z, predicted, out);
}

CTR_PRIVATE_ void ctr_probe_describe_(const ctr_probe_config *c, int folds, ctr_probe_result *out)
{
    char few[40] = "", chosen[96] = "given";
    if (c->labels_per_class)
        snprintf(few, sizeof few, " (%ld a class)", (long)c->labels_per_class);
    if (c->l2_count > 1)
        snprintf(chosen, sizeof chosen, "of %d by %.2f %% on %ld held out in %d part%s",
                 c->l2_count, 100 * out->held_out_top1, (long)out->held_out, folds,
                 folds > 1 ? "s" : "");
    snprintf(out->text, sizeof out->text,
             "probe %.2f %% of %ld: logistic regression on %ld labels%s of %d classes, "
             "standardised, l2 %g %s, train %.2f %%, loss %.4f, %d L-BFGS steps, %s, seed %lu",
             100 * out->top1, (long)out->counted, (long)out->points, few, out->classes, out->l2,
             chosen, 100 * out->train_top1, out->train_loss, out->iterations,
             out->converged ? "converged" : "not converged", (unsigned long)c->seed);
}

CTR_API int ctr_probe_run(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                          const ctr_probe_config *config, int32_t *predicted,
                          ctr_probe_result *out)
{
    ctr_probe_config c = config ? *config : ctr_probe_config_default();
    double l2[16], *inverse;
    int64_t labelled = 0, parts;
    int folds;
    ctr_probe_ p;
    ctr_bag_ bag;
    memset(out, 0, sizeof *out);
    memset(&p, 0, sizeof p);
    if (!ctr_points_check_(ctx, "probe", "training points", train, &out->classes, &labelled) ||
        !ctr_points_check_(ctx, "probe", "test points", test, NULL, NULL) ||
        !ctr_points_agree_(ctx, "probe", train, test) || !ctr_probe_config_check_(ctx, &c, l2))
        return 0;
    if (!labelled) {
        ctr_fail_(ctx, CTR_E_VALUE, "probe: none of the %ld training points has a label",
                  (long)train->n);
        return 0;
    }
    p.ctx = ctx;
    p.e = train->d + 1;
    p.c = out->classes;
    parts = (int64_t)(1.0 / c.held_out + 0.5);
    if (c.labels_per_class) labelled = CTR_MIN_(labelled, c.labels_per_class * p.c);
    folds = c.folds ? (int)CTR_MIN_(c.folds, parts) : labelled < 1000 ? (int)parts : 1;
    ctr_bag_open_(&bag, ctx);
    inverse = ctr_bag_double_(&bag, test->n, 1);
    if (ctr_eval_rows_scan_(ctx, "probe", "test points", test->n, test->d, test->x, inverse) &&
        ctr_probe_open_(&p, &bag, train, &c, parts))
        ctr_probe_all_(&p, &bag, test, &c, l2, folds, predicted, out);
    ctr_bag_close_(&bag);
    if (ctx->status == CTR_OK) ctr_probe_describe_(&c, folds, out);
    return ctx->status == CTR_OK;
}

/* ------------------------------------------------------------------------------------------------
   >>MAP  principal components and t-SNE
   ---------------------------------------------------------------------------------------------- */

CTR_API int ctr_pca_fit(ctr_ctx *ctx, const ctr_points *data, int k, ctr_real *mean,
                        ctr_real *axes, double *variance, double *total)
{
    if (!ctr_points_check_(ctx, "pca", "points", data, NULL, NULL)) return 0;
    if (k < 1 || k > 128 || k > data->d) {
        ctr_fail_(ctx, CTR_E_VALUE, "pca: k must be 1..min(d, 128) = %ld, got %d",
                  (long)CTR_MIN_(data->d, (int64_t)128), k);
        return 0;
    }
    return ctr_pca_solve_(ctx, "pca", data->n, data->d, data->x, k, mean, axes, variance, total);
}

typedef struct ctr_pca_apply_ {
    const ctr_points *data;
    const ctr_real *mean, *axes;
    ctr_real *out;
    int k;
} ctr_pca_apply_;

CTR_PRIVATE_ void ctr_pca_apply_job_(void *arg, int64_t chunk, int worker)
{
    const ctr_pca_apply_ *a = (const ctr_pca_apply_ *)arg;
    int64_t d = a->data->d, i = chunk * CTR_EVAL_CHUNK_, j;
    int64_t end = CTR_MIN_(i + CTR_EVAL_CHUNK_, a->data->n);
    int c;
    (void)worker;
    for (; i < end; i++)
        for (c = 0; c < a->k; c++) {
            const ctr_real *x = a->data->x + i * d, *axis = a->axes + c * d;
            double sum = 0;
            for (j = 0; j < d; j++) sum += ((double)x[j] - (double)a->mean[j]) * (double)axis[j];
            a->out[i * a->k + c] = (ctr_real)sum;
        }
}

CTR_API int ctr_pca_apply(ctr_ctx *ctx, const ctr_points *data, int k, const ctr_real *mean,
                          const ctr_real *axes, ctr_real *out)
{
    ctr_pca_apply_ a;
    if (!ctr_points_check_(ctx, "pca", "points", data, NULL, NULL)) return 0;
    a.data = data;
    a.mean = mean;
    a.axes = axes;
    a.out = out;
    a.k = k;
    ctr_parallel_(ctx, ctr_eval_rows_chunks_(data->n), ctr_pca_apply_job_, &a);
    return 1;
}

/* ---- t-SNE --------------------------------------------------------------------------------------

   p_ij: how likely i and j are neighbours in the data; q_ij = w_ij / Z the same in the plane, with
   w_ij = 1 / (1 + |y_i - y_j|^2) and Z the sum of all w. Minimised is KL = sum p ln(p / q), whose
   gradient to y_i is 4 sum_j (p_ij - q_ij) w_ij (y_i - y_j). */

#define CTR_TSNE_CHUNK_ 16
#define CTR_TSNE_BLOCK_ 256

typedef struct ctr_tsne_ {
    ctr_ctx *ctx;
    int64_t n, d;
    ctr_real *x;             /* [n, d] the points, centred */
    ctr_real *p;             /* [n, n] */
    double *square;          /* [n] |x|^2 */
    ctr_real *y0, *y1;       /* [n] the map */
    double *force;           /* [n, 5] */
    double *speed, *gain;    /* [n, 2] */
    double perplexity;
    int64_t first;           /* of the block whose distances are being turned */
} ctr_tsne_;

/* Entropy of p_j ~ exp(-beta (dist_j - nearest)) over j != self, and those numbers' sum. */
CTR_PRIVATE_ double ctr_tsne_entropy_(int64_t n, int64_t self, const ctr_real *dist, double nearest,
                                      double beta, double *sum)
{
    double weighted = 0;
    int64_t j;
    *sum = 0;
    for (j = 0; j < n; j++) {
        double t = (double)dist[j] - nearest, e;
        if (j == self || beta * t > 80) continue; /* exp(-80) is 0 beside the nearest's 1 */
        e = exp(-beta * t);
        *sum += e;
        weighted += t * e;
    }
    return log(*sum) + beta * weighted / *sum;
}

/* Turns one row of products x_i.x_j into p_j|i, its width beta found by bisection so that the
   entropy is ln(perplexity). */
CTR_PRIVATE_ void ctr_tsne_row_job_(void *arg, int64_t chunk, int worker)
{
    ctr_tsne_ *t = (ctr_tsne_ *)arg;
    int64_t i = t->first + chunk, n = t->n, j;
    ctr_real *row = t->p + i * n;
    double nearest = 0, mean = 0, low = 0, high = 0, beta, sum = 1;
    int it, any = 0;
    (void)worker;
    for (j = 0; j < n; j++) {
        double dist = CTR_MAX_(0.0, t->square[i] + t->square[j] - 2 * (double)row[j]);
        row[j] = (ctr_real)dist;
        if (j == i) continue;
        mean += dist / (double)n;
        if (!any || (double)row[j] < nearest) nearest = (double)row[j];
        any = 1;
    }
    beta = mean > 0 ? 1 / mean : 1;
    for (it = 0; it < 100; it++) {
        double gap = ctr_tsne_entropy_(n, i, row, nearest, beta, &sum) - log(t->perplexity);
        if (fabs(gap) < 1e-5) break;
        if (gap > 0) low = beta;
        else high = beta;
        beta = high > 0 ? 0.5 * (low + high) : 2 * beta;
    }
    for (j = 0; j < n; j++) {
        double e = beta * ((double)row[j] - nearest);
        row[j] = (ctr_real)(j == i || e > 80 ? 0.0 : exp(-e) / sum);
    }
}

/* p_ij = (p_j|i + p_i|j) / 2n; chunk i owns the pairs (i, j > i). */
CTR_PRIVATE_ void ctr_tsne_pair_job_(void *arg, int64_t i, int worker)
{
    ctr_tsne_ *t = (ctr_tsne_ *)arg;
    int64_t j;
    (void)worker;
    for (j = i + 1; j < t->n; j++) {
        double p = ((double)t->p[i * t->n + j] + (double)t->p[j * t->n + i]) / (2.0 * (double)t->n);
        t->p[i * t->n + j] = t->p[j * t->n + i] = (ctr_real)p;
    }
}

CTR_PRIVATE_ void ctr_tsne_neighbours_(ctr_tsne_ *t)
{
    int64_t i, j;
    for (i = 0; i < t->n; i++) {
        t->square[i] = 0;
        for (j = 0; j < t->d; j++)
            t->square[i] += (double)t->x[i * t->d + j] * (double)t->x[i * t->d + j];
    }
    for (t->first = 0; t->first < t->n; t->first += CTR_TSNE_BLOCK_) {
        int64_t rows = CTR_MIN_(CTR_TSNE_BLOCK_, t->n - t->first);
        ctr_gemm_run_(t->ctx, 0, 1, rows, t->n, t->d, 1, t->x + t->first * t->d, t->d, t->x, t->d,
                      0, t->p + t->first * t->n, t->n);
        ctr_parallel_(t->ctx, rows, ctr_tsne_row_job_, t);
    }
    ctr_parallel_(t->ctx, t->n, ctr_tsne_pair_job_, t);
}

/* Adds for the points j = from..n-1, with D = y_i - y_j and w = 1 / (1 + |D|^2), the five sums
     p w D (two), w^2 D (two), w. */
CTR_PRIVATE_ void ctr_tsne_sums_(int64_t from, int64_t n, const ctr_real *p, const ctr_real *y0,
                                 const ctr_real *y1, int64_t i, double sum[5])
{
    int64_t j;
    for (j = from; j < n; j++) {
        ctr_real a = y0[i] - y0[j], b = y1[i] - y1[j], w = 1 / (1 + a * a + b * b);
        ctr_real pull = p[j] * w, push = w * w;
        sum[0] += (double)(pull * a);
        sum[1] += (double)(pull * b);
        sum[2] += (double)(push * a);
        sum[3] += (double)(push * b);
        sum[4] += (double)w;
    }
}

#if CTR_HAS_AVX2_
/* The same for j = 0..n-1, n a multiple of 8. */
CTR_PRIVATE_ CTR_TARGET_AVX2_ void ctr_tsne_sums_avx2_(int64_t n, const float *p, const float *y0,
                                                       const float *y1, int64_t i, double sum[5])
{
    __m256 u = _mm256_set1_ps(y0[i]), v = _mm256_set1_ps(y1[i]), one = _mm256_set1_ps(1.0f);
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0;
    float lanes[5][8];
    int64_t j;
    int k;
    for (j = 0; j < n; j += 8) {
        __m256 a = _mm256_sub_ps(u, _mm256_loadu_ps(y0 + j));
        __m256 b = _mm256_sub_ps(v, _mm256_loadu_ps(y1 + j));
        __m256 w = _mm256_div_ps(one, _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, one)));
        __m256 pull = _mm256_mul_ps(_mm256_loadu_ps(p + j), w), push = _mm256_mul_ps(w, w);
        s0 = _mm256_fmadd_ps(pull, a, s0);
        s1 = _mm256_fmadd_ps(pull, b, s1);
        s2 = _mm256_fmadd_ps(push, a, s2);
        s3 = _mm256_fmadd_ps(push, b, s3);
        s4 = _mm256_add_ps(w, s4);
    }
    _mm256_storeu_ps(lanes[0], s0);
    _mm256_storeu_ps(lanes[1], s1);
    _mm256_storeu_ps(lanes[2], s2);
    _mm256_storeu_ps(lanes[3], s3);
    _mm256_storeu_ps(lanes[4], s4);
    for (k = 0; k < 40; k++) sum[k / 8] += (double)lanes[k / 8][k % 8];
}
#endif

CTR_PRIVATE_ void ctr_tsne_force_job_(void *arg, int64_t chunk, int worker)
{
    ctr_tsne_ *t = (ctr_tsne_ *)arg;
    int64_t i = chunk * CTR_TSNE_CHUNK_, end = CTR_MIN_(i + CTR_TSNE_CHUNK_, t->n), from = 0;
    (void)worker;
    for (; i < end; i++) {
        double *sum = t->force + i * 5;
        int k;
        for (k = 0; k < 5; k++) sum[k] = 0;
#if CTR_HAS_AVX2_
        if (t->ctx->kernels == CTR_KERNELS_AVX2) {
            from = t->n & ~(int64_t)7;
            ctr_tsne_sums_avx2_(from, t->p + i * t->n, t->y0, t->y1, i, sum);
        }
#endif
        ctr_tsne_sums_(from, t->n, t->p + i * t->n, t->y0, t->y1, i, sum);
        sum[4] -= 1; /* w_ii */
    }
}

/* One step of gradient descent with momentum and a gain for each coordinate: up by 0.2 where
   gradient and speed differ in sign, else times 0.8, never below 0.01 (Jacobs, 1988). */
CTR_PRIVATE_ void ctr_tsne_step_(ctr_tsne_ *t, double exaggeration, double momentum, double rate)
{
    double z = 0, middle[2] = { 0, 0 };
    int64_t i;
    int c;
    ctr_parallel_(t->ctx, (t->n + CTR_TSNE_CHUNK_ - 1) / CTR_TSNE_CHUNK_, ctr_tsne_force_job_, t);
    for (i = 0; i < t->n; i++) z += t->force[i * 5 + 4];
    z = 1 / CTR_MAX_(z, 1e-30);
    for (i = 0; i < t->n; i++)
        for (c = 0; c < 2; c++) {
            double *speed = t->speed + 2 * i + c, *gain = t->gain + 2 * i + c;
            const double *force = t->force + 5 * i;
            double grad = 4 * (exaggeration * force[c] - z * force[2 + c]);
            ctr_real *y = (c ? t->y1 : t->y0) + i;
            *gain = (grad > 0) != (*speed > 0) ? *gain + 0.2 : CTR_MAX_(0.01, *gain * 0.8);
            *speed = momentum * *speed - rate * *gain * grad;
            *y = (ctr_real)((double)*y + *speed);
            middle[c] += (double)*y / (double)t->n;
        }
    for (i = 0; i < t->n; i++) {
        t->y0[i] = (ctr_real)((double)t->y0[i] - middle[0]);
        t->y1[i] = (ctr_real)((double)t->y1[i] - middle[1]);
    }
}

/* sum over j of p ln(p / q), into force[5 i] */
CTR_PRIVATE_ void ctr_tsne_divergence_job_(void *arg, int64_t i, int worker)
{
    ctr_tsne_ *t = (ctr_tsne_ *)arg;
    double z = t->speed[0], sum = 0; /* Z waits there: the steps are over */
    int64_t j;
    (void)worker;
    for (j = 0; j < t->n; j++) {
        double a = (double)t->y0[i] - (double)t->y0[j], b = (double)t->y1[i] - (double)t->y1[j];
        double p = (double)t->p[i * t->n + j];
        if (p > 0) sum += p * log(p * z * (1 + a * a + b * b));
    }
    t->force[5 * i] = sum;
}

CTR_PRIVATE_ double ctr_tsne_divergence_(ctr_tsne_ *t)
{
    double z = 0, sum = 0;
    int64_t i;
    ctr_parallel_(t->ctx, (t->n + CTR_TSNE_CHUNK_ - 1) / CTR_TSNE_CHUNK_, ctr_tsne_force_job_, t);
    for (i = 0; i < t->n; i++) z += t->force[i * 5 + 4];
    t->speed[0] = z;
    ctr_parallel_(t->ctx, t->n, ctr_tsne_divergence_job_, t);
    for (i = 0; i < t->n; i++) sum += t->force[5 * i];
    return sum;
}

/* The two first principal coordinates, shrunk so that the first has a deviation of 1e-4. */
CTR_PRIVATE_ int ctr_tsne_start_(ctr_tsne_ *t, ctr_bag_ *bag, double spread)
{
    ctr_points points = ctr_points_make(t->n, t->d, t->x, NULL);
    int k = t->d > 1 ? 2 : 1, c;
    ctr_real *mean = ctr_bag_real_(bag, t->d, 1), *axes = ctr_bag_real_(bag, 2, t->d);
    ctr_real *y = ctr_bag_real_(bag, t->n, 2);
    double variance[2] = { 0, 0 }, scale;
    int64_t i;
    if (!y || !ctr_pca_fit(t->ctx, &points, k, mean, axes, variance, NULL) ||
        !ctr_pca_apply(t->ctx, &points, k, mean, axes, y))
        return 0;
    scale = spread > 0 && variance[0] > 0 ? spread / sqrt(variance[0]) : 1;
    for (i = 0; i < t->n; i++)
        for (c = 0; c < 2; c++)
            (c ? t->y1 : t->y0)[i] = c < k ? (ctr_real)(scale * (double)y[i * k + c]) : CTR_R(0.0);
    return 1;
}

/* Takes the memory, copies the points: centred, because distances are computed from products. */
CTR_PRIVATE_ int ctr_tsne_open_(ctr_tsne_ *t, ctr_bag_ *bag, const ctr_points *data, int unit_rows)
{
    double *inverse, *mean;
    int64_t i, j, n = data->n, d = data->d;
    memset(t, 0, sizeof *t);
    t->ctx = bag->ctx;
    t->n = n;
    t->d = d;
    inverse = ctr_bag_double_(bag, n, 1);
    mean = ctr_bag_double_(bag, d, 1);
    t->x = ctr_bag_real_(bag, n, d);
    t->p = ctr_bag_real_(bag, n, n);
    t->square = ctr_bag_double_(bag, n, 1);
    t->y0 = ctr_bag_real_(bag, n, 1);
    t->y1 = ctr_bag_real_(bag, n, 1);
    t->force = ctr_bag_double_(bag, n, 5);
    t->speed = ctr_bag_double_(bag, n, 2);
    t->gain = ctr_bag_double_(bag, n, 2);
    if (!ctr_eval_rows_scan_(t->ctx, "tsne", "points", n, d, data->x, inverse)) return 0;
    for (i = 0; i < n && !unit_rows; i++) inverse[i] = 1;
    ctr_eval_rows_unit_(t->ctx, n, d, data->x, inverse, t->x);
    ctr_eval_moments_(t->ctx, n, d, t->x, mean, NULL);
    for (i = 0; i < n; i++)
        for (j = 0; j < d; j++) t->x[i * d + j] = (ctr_real)((double)t->x[i * d + j] - mean[j]);
    for (i = 0; i < 2 * n; i++) {
        t->speed[i] = 0;
        t->gain[i] = 1;
    }
    return 1;
}

CTR_API void ctr_tsne_config_init(ctr_tsne_config *config)
{
    config->perplexity = 30;
    config->iterations = 750;
    config->exaggerated = 250;
    config->exaggeration = 12;
    config->rate = 0;
    config->unit_rows = 1;
}

CTR_API ctr_tsne_config ctr_tsne_config_default(void)
{
    ctr_tsne_config config;
    ctr_tsne_config_init(&config);
    return config;
}

CTR_PRIVATE_ int ctr_tsne_check_(ctr_ctx *ctx, const ctr_points *data, const ctr_tsne_config *c)
{
    if (!ctr_points_check_(ctx, "tsne", "points", data, NULL, NULL)) return 0;
    if (data->n > 16384) {
        ctr_fail_(ctx, CTR_E_SHAPE, "tsne: at most 16384 points, got %ld: take a part of them",
                  (long)data->n);
        return 0;
    }
    if (!(c->perplexity >= 2) || c->iterations < 0 || c->exaggerated < 0 ||
        !(c->exaggeration >= 1) || !(c->rate >= 0)) {
        ctr_fail_(ctx, CTR_E_VALUE, "tsne: perplexity must be at least 2 (%g), exaggeration at "
                  "least 1 (%g), iterations, exaggerated and rate at least 0 (%d, %d, %g)",
                  c->perplexity, c->exaggeration, c->iterations, c->exaggerated, c->rate);
        return 0;
    }
    return 1;
}

CTR_API int ctr_tsne_map(ctr_ctx *ctx, const ctr_points *data, const ctr_tsne_config *config,
                         ctr_real *out, double *divergence)
{
    ctr_tsne_config c = config ? *config : ctr_tsne_config_default();
    int few = data->n < 4, it;
    double rate = c.rate > 0 ? c.rate : CTR_MAX_(50.0, (double)data->n / (4 * c.exaggeration));
    int64_t i;
    ctr_tsne_ t;
    ctr_bag_ bag;
    if (divergence) *divergence = 0;
    if (!ctr_tsne_check_(ctx, data, &c)) return 0;
    ctr_bag_open_(&bag, ctx);
    if (ctr_tsne_open_(&t, &bag, data, c.unit_rows) &&
        ctr_tsne_start_(&t, &bag, few ? 0 : 1e-4)) {
        t.perplexity = CTR_MAX_(1.01, CTR_MIN_(c.perplexity, (double)(t.n - 1) / 3));
        if (!few) ctr_tsne_neighbours_(&t);
        for (it = 0; it < c.iterations && !few; it++)
            ctr_tsne_step_(&t, it < c.exaggerated ? c.exaggeration : 1.0,
                           it < c.exaggerated ? 0.5 : 0.8, rate);
        if (divergence && !few) *divergence = ctr_tsne_divergence_(&t);
        for (i = 0; i < t.n; i++) {
            out[2 * i] = t.y0[i];
            out[2 * i + 1] = t.y1[i];
        }
    }
    ctr_bag_close_(&bag);
    return ctx->status == CTR_OK;
}

/* ------------------------------------------------------------------------------------------------
   >>IO
   ---------------------------------------------------------------------------------------------- */

typedef struct ctr_io_type_ {
    const char *name, *npy;   /* in safetensors; in npy, behind the byte order */
    size_t size;
} ctr_io_type_;

static const ctr_io_type_ ctr_io_types_[10] = {
    { "F32", "f4", 4 }, { "F64", "f8", 8 }, { "F16", "f2", 2 }, { "BF16", "", 2 },
    { "I64", "i8", 8 }, { "I32", "i4", 4 }, { "I16", "i2", 2 }, { "I8", "i1", 1 },
    { "U8", "u1", 1 },  { "BOOL", "b1", 1 },
};

CTR_API size_t ctr_file_dtype_size(ctr_file_dtype dtype) { return ctr_io_types_[dtype].size; }
CTR_API const char *ctr_file_dtype_name(ctr_file_dtype dtype) { return ctr_io_types_[dtype].name; }

/* The type of ctr_real. */
CTR_PRIVATE_ ctr_file_dtype ctr_io_real_(void)
{
    return CTR_REAL_IS_FLOAT_ ? CTR_FILE_F32 : CTR_FILE_F64;
}

CTR_PRIVATE_ int ctr_io_little_(void)
{
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 1;
}

/* Reverses the bytes of each of n numbers. */
CTR_PRIVATE_ void ctr_io_swap_(uint8_t *p, size_t n, size_t size)
{
    size_t i, j;
    for (i = 0; i < n; i++, p += size)
        for (j = 0; j < size / 2; j++) {
            uint8_t t = p[j];
            p[j] = p[size - 1 - j];
            p[size - 1 - j] = t;
        }
}

/* Bytes of a shape's numbers; 0 and *ok = 0 where that is negative or cannot be addressed. */
CTR_PRIVATE_ size_t ctr_io_bytes_(size_t size, int rank, const int64_t *shape, int64_t *count,
                                  int *ok)
{
    const int64_t limit = (int64_t)(SIZE_MAX / 16);
    int i;
    *count = 1;
    *ok = rank >= 0 && rank <= 4;
    for (i = 0; *ok && i < rank; i++) {
        if (shape[i] < 0 || (shape[i] && *count > limit / shape[i])) *ok = 0;
        else *count *= shape[i];
    }
    if (!*ok) *count = 0;
    return (size_t)*count * size;
}

/* Is it UTF-8 without zero bytes? Overlong forms and surrogates are not. */
CTR_PRIVATE_ int ctr_io_utf8_(const char *text)
{
    const uint8_t *p = (const uint8_t *)text;
    while (*p) {
        uint32_t c = *p++, low;
        int more = c < 0x80 ? 0 : (c & 0xe0) == 0xc0 ? 1 : (c & 0xf0) == 0xe0 ? 2
                 : (c & 0xf8) == 0xf0 ? 3 : -1;
        if (more < 0) return 0;
        if (more == 0) continue;
        low = more == 1 ? 0x80u : more == 2 ? 0x800u : 0x10000u;
        c &= 0x3fu >> more;
        for (; more; more--) {
            if ((*p & 0xc0) != 0x80) return 0;
            c = c << 6 | (*p++ & 0x3fu);
        }
        if (c < low || c > 0x10ffffu || (c >= 0xd800u && c < 0xe000u)) return 0;
    }
    return 1;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Text that grows. After an error it does nothing. */
typedef struct ctr_io_text_ {
    ctr_ctx *ctx;
    char *text;
    size_t used, room;
} ctr_io_text_;

CTR_PRIVATE_ void ctr_io_put_(ctr_io_text_ *t, const char *text, size_t length)
{
    void *block = t->text;
    int ok = t->ctx->status == CTR_OK && length <= SIZE_MAX / 4 &&
             ctr_file_grow_(t->ctx, &block, &t->room, 1, t->used + length);
    t->text = (char *)block;
    if (!ok) return;
    memcpy(t->text + t->used, text, length);
    t->used += length;
}

CTR_PRIVATE_ void ctr_io_puts_(ctr_io_text_ *t, const char *text)
{
    ctr_io_put_(t, text, strlen(text));
}

CTR_PRIVATE_ void ctr_io_put_number_(ctr_io_text_ *t, uint64_t x)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)x);
    ctr_io_puts_(t, digits);
}

/* A JSON string: quotes, backslashes and control characters are escaped. */
CTR_PRIVATE_ void ctr_io_put_string_(ctr_io_text_ *t, const char *text)
{
    char escape[8];
    const char *p = text, *from = text;
    ctr_io_puts_(t, "\"");
    for (; *p; p++) {
        uint8_t c = (uint8_t)*p;
        if (c >= 32 && c != '"' && c != '\\') continue;
        ctr_io_put_(t, from, (size_t)(p - from));
        if (c < 32) snprintf(escape, sizeof escape, "\\u%04x", c);
        else snprintf(escape, sizeof escape, "\\%c", c);
        ctr_io_puts_(t, escape);
        from = p + 1;
    }
    ctr_io_put_(t, from, (size_t)(p - from));
    ctr_io_puts_(t, "\"");
}

/* n numbers of `size` bytes, little-endian, to a hash or to a file, whichever is not NULL. */
CTR_PRIVATE_ void ctr_io_emit_(ctr_file_hash_ *hash, ctr_file_writer_ *writer, const void *data,
                               size_t n, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    uint8_t part[1024];
    if (ctr_io_little_() || size == 1) {
        if (hash && n) ctr_file_hash_put_(hash, p, n * size);
        if (writer) ctr_file_writer_put_(writer, p, n * size);
        return;
    }
    while (n) {
        size_t m = CTR_MIN_(n, sizeof part / size);
        memcpy(part, p, m * size);
        ctr_io_swap_(part, m, size);
        if (hash) ctr_file_hash_put_(hash, part, m * size);
        if (writer) ctr_file_writer_put_(writer, part, m * size);
        p += m * size;
        n -= m;
    }
}

/* ---- npy: magic, version, header length, a Python dictionary as text, the numbers ------------ */

CTR_API int ctr_npy_save(ctr_ctx *ctx, const char *path, ctr_file_dtype dtype, int rank,
                         const int64_t *shape, const void *data)
{
    ctr_file_writer_ w;
    char head[256], dims[100];
    size_t at = 0, length;
    int64_t count;
    int i, ok;
    if (ctx->status != CTR_OK) return 0;
    ctr_io_bytes_(8, rank, shape, &count, &ok);
    if (!ok || (unsigned)dtype > CTR_FILE_BOOL || dtype == CTR_FILE_BF16 || (count && !data)) {
        ctr_fail_(ctx, CTR_E_VALUE, "cannot write '%s': %s", ctr_file_tail_(path),
                  !ok ? "the shape is negative, too large or not of 0 to 4 dimensions"
                  : count && !data ? "no data" : "npy has no such type");
        return 0;
    }
    dims[0] = 0;
    for (i = 0; i < rank; i++)
        at += (size_t)snprintf(dims + at, sizeof dims - at, i ? ", %lld" : "%lld",
                               (long long)shape[i]);
    snprintf(head + 10, sizeof head - 10,
             "{'descr': '%s%s', 'fortran_order': False, 'shape': (%s%s), }",
             ctr_io_types_[dtype].size == 1 ? "|" : "<", ctr_io_types_[dtype].npy, dims,
             rank == 1 ? "," : "");
    length = 10 + strlen(head + 10);
    while ((length + 1) % 64) head[length++] = ' '; /* the numbers start on a 64-byte boundary */
    head[length++] = '\n';
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = (char)(length - 10);
    head[9] = 0;
    if (!ctr_file_writer_open_(ctx, &w, path)) return 0;
    ctr_file_writer_put_(&w, head, length);
    ctr_io_emit_(NULL, &w, data, (size_t)count, ctr_io_types_[dtype].size);
    return ctr_file_writer_commit_(&w);
}

/* A place in text from a file, and what is wrong with it once something is. */
typedef struct ctr_io_cursor_ {
    const uint8_t *start, *at, *end;
    char *text;               /* decoded strings go here, each with its zero */
    const char *wrong;
} ctr_io_cursor_;

CTR_PRIVATE_ int ctr_io_wrong_(ctr_io_cursor_ *c, const char *what)
{
    if (!c->wrong) c->wrong = what;
    return 0;
}

CTR_PRIVATE_ void ctr_io_space_(ctr_io_cursor_ *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t'))
        c->at++;
}

/* Takes one character, after space, if it is there. */
CTR_PRIVATE_ int ctr_io_take_(ctr_io_cursor_ *c, char wanted)
{
    ctr_io_space_(c);
    if (c->wrong || c->at == c->end || *c->at != (uint8_t)wanted) return 0;
    c->at++;
    return 1;
}

/* A whole number from 0 to 2^63 - 1, nothing else: no sign, fraction, exponent or leading zero. */
CTR_PRIVATE_ int ctr_io_number_(ctr_io_cursor_ *c, int64_t *out)
{
    const uint8_t *from;
    int64_t x = 0;
    ctr_io_space_(c);
    from = c->at;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        int digit = *c->at - '0';
        if (x > (INT64_MAX - digit) / 10) return ctr_io_wrong_(c, "a number is too large");
        x = 10 * x + digit;
    }
    *out = x;
    if (c->at == from || (*from == '0' && c->at - from > 1) ||
        (c->at < c->end && (*c->at == '.' || *c->at == 'e' || *c->at == 'E')))
        return ctr_io_wrong_(c, "a whole number was expected");
    return 1;
}

/* A list of whole numbers up to `close`; the opening bracket was taken. Returns how many or -1. */
CTR_PRIVATE_ int ctr_io_list_(ctr_io_cursor_ *c, char close, int most, int64_t *out)
{
    int n = 0, open = 1;
    while (!ctr_io_take_(c, close)) {
        if (!open || n == most) {
            ctr_io_wrong_(c, n == most ? "a list has too many numbers" : "a list has no comma");
            return -1;
        }
        if (!ctr_io_number_(c, &out[n++])) return -1;
        open = ctr_io_take_(c, ',');
    }
    return c->wrong ? -1 : n;
}

/* 'word' or "word" without escapes into out[size]. */
CTR_PRIVATE_ int ctr_io_word_(ctr_io_cursor_ *c, char *out, size_t size)
{
    size_t n = 0;
    char quote = ctr_io_take_(c, '\'') ? '\'' : '"';
    if (quote == '"' && !ctr_io_take_(c, '"')) return ctr_io_wrong_(c, "a quoted word is missing");
    while (c->at < c->end && *c->at != (uint8_t)quote && n + 1 < size) out[n++] = (char)*c->at++;
    out[n] = 0;
    if (c->at == c->end || *c->at != (uint8_t)quote)
        return ctr_io_wrong_(c, "a word is too long or has no end");
    c->at++;
    return 1;
}

CTR_PRIVATE_ int ctr_io_literal_(ctr_io_cursor_ *c, const char *word)
{
    size_t n = strlen(word);
    ctr_io_space_(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n)) return 0;
    c->at += n;
    return 1;
}

/* The type behind a descr such as "<f4"; *swap if the file's byte order is not this machine's. */
CTR_PRIVATE_ int ctr_io_descr_(ctr_io_cursor_ *c, const char *text, ctr_npy *out, int *swap)
{
    int i, big = text[0] == '>';
    *swap = big == ctr_io_little_();
    if (text[0] == '<' || text[0] == '|' || big)
        for (i = 0; i < 10; i++)
            if (ctr_io_types_[i].npy[0] && !strcmp(text + 1, ctr_io_types_[i].npy)) {
                out->dtype = (ctr_file_dtype)i;
                if (text[0] == '|' && ctr_io_types_[i].size > 1) break;
                return 1;
            }
    return ctr_io_wrong_(c,
                         "its type of numbers is not supported (f2 f4 f8 i1 i2 i4 i8 u1 b1 are)");
}

/* The dictionary: three keys in any order. */
CTR_PRIVATE_ int ctr_io_npy_head_(ctr_io_cursor_ *c, ctr_npy *out, int *swap)
{
    char key[32], value[16];
    int seen = 0, key_bit = 0, fortran = 0;
    if (!ctr_io_take_(c, '{')) return ctr_io_wrong_(c, "its header is no dictionary");
    while (!ctr_io_take_(c, '}')) {
        if (!ctr_io_word_(c, key, sizeof key)) return 0;
        if (!ctr_io_take_(c, ':')) return ctr_io_wrong_(c, "a colon is missing");
        if (!strcmp(key, "descr")) {
            key_bit = 1;
            if (!ctr_io_word_(c, value, sizeof value) || !ctr_io_descr_(c, value, out, swap))
                return 0;
        } else if (!strcmp(key, "fortran_order")) {
            key_bit = 2;
            fortran = ctr_io_literal_(c, "True");
            if (!fortran && !ctr_io_literal_(c, "False"))
                return ctr_io_wrong_(c, "fortran_order is neither True nor False");
        } else if (!strcmp(key, "shape")) {
            key_bit = 4;
            if (!ctr_io_take_(c, '(')) return ctr_io_wrong_(c, "shape is no tuple");
            out->rank = ctr_io_list_(c, ')', 4, out->shape);
            if (out->rank < 0) return 0;
        } else {
            return ctr_io_wrong_(c, "its header has an unknown key");
        }
        if (seen & key_bit) return ctr_io_wrong_(c, "its header has a key twice");
        seen |= key_bit;
        if (!ctr_io_take_(c, ',') && (c->at == c->end || *c->at != '}'))
            return ctr_io_wrong_(c, "its header has no end");
    }
    ctr_io_space_(c);
    if (seen != 7) return ctr_io_wrong_(c, "its header lacks descr, fortran_order or shape");
    if (c->at != c->end) return ctr_io_wrong_(c, "its header has text behind its end");
    if (fortran && out->rank > 1)
        return ctr_io_wrong_(c, "it is in Fortran order; save numpy.ascontiguousarray(x)");
    return 1;
}

/* Where the numbers start, with everything but data filled in; 0 with c->wrong set. */
CTR_PRIVATE_ size_t ctr_io_npy_parse_(ctr_io_cursor_ *c, ctr_npy *out, int *swap)
{
    const uint8_t *p = c->start;
    size_t size = (size_t)(c->end - c->start), at, length, need;
    int i, ok;
    out->dtype = CTR_FILE_F32;
    *swap = 0;
    for (i = 0; i < 4; i++) out->shape[i] = 1;
    if (size < 12 || memcmp(p, "\x93NUMPY", 6))
        return (size_t)ctr_io_wrong_(c, "it is no npy file");
    if (p[6] < 1 || p[6] > 3) return (size_t)ctr_io_wrong_(c, "its version is not 1, 2 or 3");
    at = p[6] == 1 ? 10 : 12;
    length = p[6] == 1 ? (size_t)p[8] | (size_t)p[9] << 8 : ctr_file_u32_(p + 8);
    if (length > 65535 || length > size - at)
        return (size_t)ctr_io_wrong_(c, "its header is longer than the file or than 65535 bytes");
    c->at = p + at;
    c->end = p + at + length;
    if (!ctr_io_npy_head_(c, out, swap)) return 0;
    for (i = out->rank; i < 4; i++) out->shape[i] = 1;
    need = ctr_io_bytes_(ctr_io_types_[out->dtype].size, out->rank, out->shape, &out->count, &ok);
    if (!ok) return (size_t)ctr_io_wrong_(c, "its shape is too large");
    if (need > size - at - length) return (size_t)ctr_io_wrong_(c, "it ends before its numbers do");
    if (need < size - at - length) return (size_t)ctr_io_wrong_(c, "it goes on behind its numbers");
    return at + length;
}

/* Takes over the bytes of a file, whatever comes of it. */
CTR_PRIVATE_ int ctr_io_npy_take_(ctr_ctx *ctx, ctr_file_bytes_ *b, const char *name, ctr_npy *out)
{
    ctr_io_cursor_ c;
    size_t from, size;
    int swap;
    memset(&c, 0, sizeof c);
    memset(out, 0, sizeof *out);
    c.start = b->bytes;
    c.end = b->bytes + b->size;
    from = ctr_io_npy_parse_(&c, out, &swap);
    if (c.wrong) {
        ctr_fail_(ctx, CTR_E_FORMAT, "npy file '%s': %s", ctr_file_tail_(name), c.wrong);
        ctr_file_bytes_free_(ctx, b);
        memset(out, 0, sizeof *out);
        return 0;
    }
    size = ctr_io_types_[out->dtype].size;
    memmove(b->bytes, b->bytes + from, b->size - from); /* to the block's start: aligned */
    if (swap) ctr_io_swap_(b->bytes, (size_t)out->count, size);
    out->data = b->bytes;
    out->held = b->size;
    return 1;
}

CTR_API int ctr_npy_load(ctr_ctx *ctx, const char *path, ctr_npy *out)
{
    ctr_file_bytes_ b;
    ctr_note_ note;
    memset(out, 0, sizeof *out);
    if (ctx->status != CTR_OK) return 0;
    memset(&note, 0, sizeof note);
    if (!ctr_file_read_(ctx, path, UINT64_MAX, &b, &note)) {
        ctr_note_report_(ctx, &note);
        return 0;
    }
    return ctr_io_npy_take_(ctx, &b, path, out);
}

CTR_API void ctr_npy_free(ctr_ctx *ctx, ctr_npy *array)
{
    if (array->data) ctr_free_host_(ctx, array->data, array->held + 1);
    memset(array, 0, sizeof *array);
}

/* ---- safetensors: writing -------------------------------------------------------------------- */

#define CTR_IO_HEADER_MOST_ 100000000 /* as the format's own reader has it */
static const char ctr_io_checksum_head_[] = "{\"__metadata__\":{\"xxh64\":\"";

CTR_PRIVATE_ int ctr_io_tensor_compare_(const void *user, int64_t a, int64_t b)
{
    const ctr_file_tensor *t = (const ctr_file_tensor *)user;
    return strcmp(t[a].name, t[b].name);
}

CTR_PRIVATE_ int ctr_io_meta_compare_(const void *user, int64_t a, int64_t b)
{
    const ctr_file_meta *m = (const ctr_file_meta *)user;
    return strcmp(m[a].key, m[b].key);
}

/* One tensor's table entry; NULL if all is well. */
CTR_PRIVATE_ const char *ctr_io_tensor_wrong_(const ctr_file_tensor *t)
{
    int64_t count;
    int ok;
    if (!t->name || !t->name[0] || !strcmp(t->name, "__metadata__"))
        return "its name is not allowed";
    if (!ctr_io_utf8_(t->name)) return "its name is not UTF-8";
    if ((unsigned)t->dtype > CTR_FILE_BOOL) return "its type is unknown";
    ctr_io_bytes_(8, t->rank, t->shape, &count, &ok);
    if (!ok) return "its shape is negative, too large or not of 0 to 4 dimensions";
    return count && !t->data ? "it has no data" : NULL;
}

/* The whole table: entries, then names that occur twice. order has room for max(count, metas). */
CTR_PRIVATE_ int ctr_io_table_ok_(ctr_ctx *ctx, const ctr_file_tensor *t, int64_t n,
                                  const ctr_file_meta *m, int64_t metas, int64_t *order)
{
    int64_t i;
    for (i = 0; i < n; i++) {
        const char *wrong = ctr_io_tensor_wrong_(&t[i]);
        if (!wrong) continue;
        ctr_fail_(ctx, CTR_E_VALUE, "safetensors: tensor %ld '%.100s': %s", (long)i,
                  t[i].name ? t[i].name : "", wrong);
        return 0;
    }
    ctr_file_sort_(order, n, ctr_io_tensor_compare_, t);
    for (i = 1; i < n; i++)
        if (!strcmp(t[order[i - 1]].name, t[order[i]].name)) {
            ctr_fail_(ctx, CTR_E_VALUE, "safetensors: two tensors have the name '%.100s'",
                      t[order[i]].name);
            return 0;
        }
    for (i = 0; i < metas; i++)
        if (!m[i].key || !m[i].value || !ctr_io_utf8_(m[i].key) || !ctr_io_utf8_(m[i].value) ||
            !strcmp(m[i].key, "xxh64")) {
            ctr_fail_(ctx, CTR_E_VALUE,
                      "safetensors: metadata %ld '%.100s' is reserved, NULL or not UTF-8",
                      (long)i, m[i].key ? m[i].key : "");
            return 0;
        }
    ctr_file_sort_(order, metas, ctr_io_meta_compare_, m);
    for (i = 1; i < metas; i++)
        if (!strcmp(m[order[i - 1]].key, m[order[i]].key)) {
            ctr_fail_(ctx, CTR_E_VALUE, "safetensors: two lines of metadata have the key '%.100s'",
                      m[order[i]].key);
            return 0;
        }
    return 1;
}

/* The header, checksum still zeros, padded with spaces so that the numbers start on 8 bytes.
   order: in which the tensors' numbers follow. */
CTR_PRIVATE_ void ctr_io_header_(ctr_io_text_ *h, const ctr_file_tensor *t, int64_t n,
                                 const ctr_file_meta *m, int64_t metas, const int64_t *order)
{
    uint64_t offset = 0;
    int64_t i, count;
    int d, ok;
    ctr_io_puts_(h, ctr_io_checksum_head_);
    ctr_io_puts_(h, "0000000000000000\"");
    for (i = 0; i < metas; i++) {
        ctr_io_puts_(h, ",");
        ctr_io_put_string_(h, m[i].key);
        ctr_io_puts_(h, ":");
        ctr_io_put_string_(h, m[i].value);
    }
    ctr_io_puts_(h, "}");
    for (i = 0; i < n; i++) {
        const ctr_file_tensor *one = &t[order[i]];
        size_t bytes = ctr_io_bytes_(ctr_io_types_[one->dtype].size, one->rank, one->shape, &count,
                                     &ok);
        ctr_io_puts_(h, ",");
        ctr_io_put_string_(h, one->name);
        ctr_io_puts_(h, ":{\"dtype\":\"");
        ctr_io_puts_(h, ctr_io_types_[one->dtype].name);
        ctr_io_puts_(h, "\",\"shape\":[");
        for (d = 0; d < one->rank; d++) {
            if (d) ctr_io_puts_(h, ",");
            ctr_io_put_number_(h, (uint64_t)one->shape[d]);
        }
        ctr_io_puts_(h, "],\"data_offsets\":[");
        ctr_io_put_number_(h, offset);
        ctr_io_puts_(h, ",");
        offset += bytes;
        ctr_io_put_number_(h, offset);
        ctr_io_puts_(h, "]}");
    }
    ctr_io_puts_(h, "}");
    while (h->used % 8 && h->ctx->status == CTR_OK) ctr_io_puts_(h, " ");
}

/* Length and header, then the numbers in the order of the offsets, to a hash or to a file. */
CTR_PRIVATE_ void ctr_io_body_(ctr_file_hash_ *hash, ctr_file_writer_ *w, const ctr_io_text_ *h,
                               const ctr_file_tensor *t, int64_t n, const int64_t *order)
{
    uint8_t length[8];
    int64_t i, count;
    int ok;
    ctr_file_put_u64_(length, h->used);
    ctr_io_emit_(hash, w, length, 8, 1);
    ctr_io_emit_(hash, w, h->text, h->used, 1);
    for (i = 0; i < n; i++) {
        const ctr_file_tensor *one = &t[order[i]];
        ctr_io_bytes_(1, one->rank, one->shape, &count, &ok);
        ctr_io_emit_(hash, w, one->data, (size_t)count, ctr_io_types_[one->dtype].size);
    }
}

CTR_API int ctr_safetensors_save(ctr_ctx *ctx, const char *path, const ctr_file_tensor *tensors,
                                 int64_t count, const ctr_file_meta *meta, int64_t meta_count)
{
    ctr_file_writer_ w;
    ctr_file_hash_ hash;
    ctr_io_text_ h;
    int64_t *order, i, at = 0;
    size_t width, room = (size_t)CTR_MAX_(count, meta_count) * sizeof *order;
    char digits[20];
    int ok;
    if (ctx->status != CTR_OK) return 0;
    order = (int64_t *)ctr_alloc_(ctx, room);
    if (!order) return 0;
    memset(&h, 0, sizeof h);
    h.ctx = ctx;
    ok = ctr_io_table_ok_(ctx, tensors, count, meta, meta_count, order);
    for (width = 8; ok && width; width /= 2) /* wide numbers first: all stay aligned */
        for (i = 0; i < count; i++)
            if (ctr_io_types_[tensors[i].dtype].size == width) order[at++] = i;
    if (ok) ctr_io_header_(&h, tensors, count, meta, meta_count, order);
    if (ctx->status == CTR_OK && h.used > CTR_IO_HEADER_MOST_)
        ctr_fail_(ctx, CTR_E_VALUE, "safetensors: names and metadata exceed 100 MB");
    ok = ctx->status == CTR_OK;
    if (ok) {
        ctr_file_hash_init_(&hash);
        ctr_io_body_(&hash, NULL, &h, tensors, count, order);
        snprintf(digits, sizeof digits, "%016llx", (unsigned long long)ctr_file_hash_end_(&hash));
        memcpy(h.text + sizeof ctr_io_checksum_head_ - 1, digits, 16);
        ok = ctr_file_writer_open_(ctx, &w, path);
    }
    if (ok) {
        ctr_io_body_(NULL, &w, &h, tensors, count, order);
        ok = ctr_file_writer_commit_(&w);
    }
    ctr_free_host_(ctx, h.text, h.room);
    ctr_free_host_(ctx, order, room);
    return ok;
}

/* ---- safetensors: reading -------------------------------------------------------------------- */

typedef struct ctr_io_entry_ {
    const char *name;
    ctr_file_dtype dtype;
    int rank;
    int64_t shape[4];
    int64_t count;
    int64_t range[2];         /* first byte and the one behind the last, from the data's start */
} ctr_io_entry_;

struct ctr_safetensors {
    ctr_file_bytes_ file;
    size_t data;              /* where the numbers start */
    char *strings;            /* decoded names and metadata */
    size_t strings_size;
    ctr_io_entry_ *entries;
    size_t count, room;
    ctr_file_meta *meta;
    size_t meta_count, meta_room;
    int64_t *by_name;         /* [count] */
    const uint8_t *checksum;  /* its sixteen digits in the file, or NULL */
};

CTR_API void ctr_safetensors_close(ctr_ctx *ctx, ctr_safetensors *f)
{
    if (!f) return;
    ctr_file_bytes_free_(ctx, &f->file);
    ctr_free_host_(ctx, f->strings, f->strings_size);
    ctr_free_host_(ctx, f->entries, f->room * sizeof *f->entries);
    ctr_free_host_(ctx, f->meta, f->meta_room * sizeof *f->meta);
    ctr_free_host_(ctx, f->by_name, f->count * sizeof *f->by_name);
    ctr_free_host_(ctx, f, sizeof *f);
}

/* Four hexadecimal digits, -1 if they are none. */
CTR_PRIVATE_ int32_t ctr_io_hex4_(ctr_io_cursor_ *c)
{
    int32_t x = 0;
    int i;
    if (c->end - c->at < 4) return -1;
    for (i = 0; i < 4; i++) {
        int d = *c->at++;
        d = d >= '0' && d <= '9' ? d - '0' : d >= 'a' && d <= 'f' ? d - 'a' + 10
          : d >= 'A' && d <= 'F' ? d - 'A' + 10 : -1;
        if (d < 0) return -1;
        x = x * 16 + d;
    }
    return x;
}

/* \uXXXX, or a pair of them, as UTF-8. */
CTR_PRIVATE_ int ctr_io_unicode_(ctr_io_cursor_ *c)
{
    int32_t x = ctr_io_hex4_(c), y;
    char *t = c->text;
    if (x >= 0xd800 && x < 0xdc00 && c->end - c->at >= 2 && c->at[0] == '\\' && c->at[1] == 'u') {
        c->at += 2;
        y = ctr_io_hex4_(c);
        x = y >= 0xdc00 && y < 0xe000 ? 0x10000 + ((x - 0xd800) << 10) + (y - 0xdc00) : -1;
    }
    if (x <= 0 || (x >= 0xd800 && x < 0xe000)) return ctr_io_wrong_(c, "a string has a bad escape");
    if (x < 0x80) {
        *t++ = (char)x;
    } else if (x < 0x800) {
        *t++ = (char)(0xc0 | x >> 6);
    } else {
        if (x < 0x10000) {
            *t++ = (char)(0xe0 | x >> 12);
        } else {
            *t++ = (char)(0xf0 | x >> 18);
            *t++ = (char)(0x80 | (x >> 12 & 63));
        }
        *t++ = (char)(0x80 | (x >> 6 & 63));
    }
    if (x >= 0x80) *t++ = (char)(0x80 | (x & 63));
    c->text = t;
    return 1;
}

/* A JSON string, decoded to c->text: no longer than its source, whose quotes pay for the 0. */
CTR_PRIVATE_ const char *ctr_io_string_(ctr_io_cursor_ *c)
{
    static const char codes[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *start = c->text, *code;
    if (!ctr_io_take_(c, '"')) {
        ctr_io_wrong_(c, "a string was expected");
        return NULL;
    }
    while (c->at < c->end && *c->at != '"') {
        uint8_t x = *c->at++;
        if (x < 32) {
            ctr_io_wrong_(c, "a string holds a control character");
            return NULL;
        }
        if (x != '\\') {
            *c->text++ = (char)x;
            continue;
        }
        x = c->at < c->end ? *c->at++ : 0;
        code = x ? strchr(codes, x) : NULL;
        if (code) *c->text++ = values[code - codes];
        else if (x != 'u' || !ctr_io_unicode_(c)) {
            ctr_io_wrong_(c, "a string has a bad escape");
            return NULL;
        }
    }
    if (!ctr_io_take_(c, '"')) {
        ctr_io_wrong_(c, "a string has no end");
        return NULL;
    }
    *c->text++ = 0;
    if (ctr_io_utf8_(start)) return start;
    ctr_io_wrong_(c, "a string is not UTF-8");
    return NULL;
}

/* After a member: 1 if another one follows, 0 at the closing brace or with an error. */
CTR_PRIVATE_ int ctr_io_more_(ctr_io_cursor_ *c)
{
    if (ctr_io_take_(c, ',')) return 1;
    if (!ctr_io_take_(c, '}')) ctr_io_wrong_(c, "a comma or a closing brace is missing");
    return 0;
}

/* "key": of the next member. */
CTR_PRIVATE_ const char *ctr_io_key_(ctr_io_cursor_ *c)
{
    const char *key = ctr_io_string_(c);
    if (!key || ctr_io_take_(c, ':')) return key;
    ctr_io_wrong_(c, "a colon is missing");
    return NULL;
}

CTR_PRIVATE_ void ctr_io_metadata_(ctr_ctx *ctx, ctr_io_cursor_ *c, ctr_safetensors *f)
{
    if (!ctr_io_take_(c, '{')) {
        ctr_io_wrong_(c, "__metadata__ is no object");
        return;
    }
    if (ctr_io_take_(c, '}')) return;
    do {
        void *block = f->meta;
        ctr_file_meta line;
        line.key = ctr_io_key_(c);
        ctr_io_space_(c);
        if (line.key && !strcmp(line.key, "xxh64")) f->checksum = c->at + 1;
        line.value = line.key ? ctr_io_string_(c) : NULL;
        if (!line.value) return;
        if (f->checksum && !strcmp(line.key, "xxh64") &&
            (c->at - f->checksum != 17 || strlen(line.value) != 16)) {
            ctr_io_wrong_(c, "the checksum has not sixteen digits");
            return;
        }
        if (!ctr_file_grow_(ctx, &block, &f->meta_room, sizeof *f->meta, f->meta_count + 1)) return;
        f->meta = (ctr_file_meta *)block;
        f->meta[f->meta_count++] = line;
    } while (ctr_io_more_(c));
}

/* {"dtype": .., "shape": [..], "data_offsets": [a, b]} */
CTR_PRIVATE_ void ctr_io_entry_parse_(ctr_io_cursor_ *c, ctr_io_entry_ *e)
{
    const char *key, *dtype;
    int seen = 0, bit, i;
    if (!ctr_io_take_(c, '{')) ctr_io_wrong_(c, "a tensor's description is no object");
    do {
        key = c->wrong ? NULL : ctr_io_key_(c);
        if (!key) return;
        if (!strcmp(key, "dtype")) {
            bit = 1;
            dtype = ctr_io_string_(c);
            for (i = 0; dtype && i < 10 && strcmp(dtype, ctr_io_types_[i].name); i++) { }
            if (i == 10) ctr_io_wrong_(c, "a type of numbers is not supported");
            e->dtype = (ctr_file_dtype)(i % 10);
        } else if (!strcmp(key, "shape")) {
            bit = 2;
            e->rank = ctr_io_take_(c, '[') ? ctr_io_list_(c, ']', 4, e->shape) : -1;
            if (e->rank < 0) ctr_io_wrong_(c, "a shape is no list");
        } else if (!strcmp(key, "data_offsets")) {
            bit = 4;
            if (!ctr_io_take_(c, '[') || ctr_io_list_(c, ']', 2, e->range) != 2)
                ctr_io_wrong_(c, "data_offsets are not two numbers");
        } else {
            bit = 8;
            ctr_io_wrong_(c, "a tensor's description has an unknown key");
        }
        if (seen & bit) ctr_io_wrong_(c, "a tensor's description has a key twice");
        seen |= bit;
    } while (!c->wrong && ctr_io_more_(c));
    if (seen != 7) ctr_io_wrong_(c, "a tensor's description is incomplete");
}

CTR_PRIVATE_ void ctr_io_members_(ctr_ctx *ctx, ctr_io_cursor_ *c, ctr_safetensors *f)
{
    int metas = 0;
    if (c->at == c->end || *c->at != '{') ctr_io_wrong_(c, "it does not start with a brace");
    c->at++;
    if (c->wrong || ctr_io_take_(c, '}')) return;
    do {
        void *block = f->entries;
        const char *name = ctr_io_key_(c);
        ctr_io_entry_ e;
        if (!name) return;
        if (!strcmp(name, "__metadata__")) {
            if (metas++) ctr_io_wrong_(c, "__metadata__ is there twice");
            else ctr_io_metadata_(ctx, c, f);
            continue;
        }
        memset(&e, 0, sizeof e);
        e.name = name;
        e.shape[0] = e.shape[1] = e.shape[2] = e.shape[3] = 1;
        ctr_io_entry_parse_(c, &e);
        if (c->wrong ||
            !ctr_file_grow_(ctx, &block, &f->room, sizeof *f->entries, f->count + 1)) return;
        f->entries = (ctr_io_entry_ *)block;
        f->entries[f->count++] = e;
    } while (ctx->status == CTR_OK && !c->wrong && ctr_io_more_(c));
}

CTR_PRIVATE_ int ctr_io_entry_by_name_(const void *user, int64_t a, int64_t b)
{
    const ctr_io_entry_ *e = (const ctr_io_entry_ *)user;
    return strcmp(e[a].name, e[b].name);
}

CTR_PRIVATE_ int ctr_io_entry_by_range_(const void *user, int64_t a, int64_t b)
{
    const ctr_io_entry_ *x = (const ctr_io_entry_ *)user + a, *y = (const ctr_io_entry_ *)user + b;
    int i = x->range[0] == y->range[0]; /* empty ones stand before what starts at the same place */
    return (x->range[i] > y->range[i]) - (x->range[i] < y->range[i]);
}

/* Shapes against ranges; ranges against each other and the file; names against each other. order
   [max(count, meta_count)] is left in the order of the names. Returns the offender in *which. */
CTR_PRIVATE_ const char *ctr_io_verify_(ctr_safetensors *f, int64_t *order, int64_t *meta_order,
                                        const char **which)
{
    int64_t i, n = (int64_t)f->count, at = 0, total = (int64_t)(f->file.size - f->data);
    for (i = 0; i < n; i++) {
        ctr_io_entry_ *e = &f->entries[i];
        int ok;
        size_t bytes =
            ctr_io_bytes_(ctr_io_types_[e->dtype].size, e->rank, e->shape, &e->count, &ok);
        *which = e->name;
        if (!ok) return "its shape is too large";
        if (e->range[0] > e->range[1] || e->range[1] > total)
            return "its bytes lie outside the file";
        if ((uint64_t)(e->range[1] - e->range[0]) != bytes)
            return "its shape and type do not fit its bytes";
    }
    ctr_file_sort_(order, n, ctr_io_entry_by_range_, f->entries);
    for (i = 0; i < n; i++) {
        const ctr_io_entry_ *e = &f->entries[order[i]];
        *which = e->name;
        if (e->range[0] != at) return "its bytes overlap another tensor's or leave a gap";
        at = e->range[1];
    }
    *which = "";
    if (at != total) return "there are bytes that belong to no tensor";
    ctr_file_sort_(order, n, ctr_io_entry_by_name_, f->entries);
    for (i = 1; i < n; i++) {
        *which = f->entries[order[i]].name;
        if (!strcmp(f->entries[order[i - 1]].name, *which)) return "two tensors have this name";
    }
    ctr_file_sort_(meta_order, (int64_t)f->meta_count, ctr_io_meta_compare_, f->meta);
    for (i = 1; i < (int64_t)f->meta_count; i++) {
        *which = f->meta[meta_order[i]].key;
        if (!strcmp(f->meta[meta_order[i - 1]].key, *which))
            return "two lines of metadata have this key";
    }
    return NULL;
}

/* XXH64 of the file with the digits of the checksum as zeros, against those digits. */
CTR_PRIVATE_ int ctr_io_checksum_ok_(const ctr_safetensors *f)
{
    const uint8_t *end = f->file.bytes + f->file.size;
    ctr_file_hash_ h;
    char digits[20];
    if (!f->checksum) return 1;
    ctr_file_hash_init_(&h);
    ctr_file_hash_put_(&h, f->file.bytes, (size_t)(f->checksum - f->file.bytes));
    ctr_file_hash_put_(&h, "0000000000000000", 16);
    ctr_file_hash_put_(&h, f->checksum + 16, (size_t)(end - f->checksum - 16));
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)ctr_file_hash_end_(&h));
    return !memcmp(digits, f->checksum, 16);
}

/* Everything behind the reading of the bytes, which f already owns. 1, or 0 with an error. */
CTR_PRIVATE_ int ctr_io_safetensors_parse_(ctr_ctx *ctx, ctr_safetensors *f, const char *name)
{
    const char *wrong = NULL, *which = "";
    ctr_io_cursor_ c;
    int64_t *meta_order;
    uint64_t length = f->file.size < 8 ? 0 : ctr_file_u64_(f->file.bytes);
    memset(&c, 0, sizeof c);
    name = ctr_file_tail_(name);
    if (length < 2 || length > CTR_IO_HEADER_MOST_ || length > f->file.size - 8) {
        ctr_fail_(ctx, CTR_E_FORMAT, "safetensors file '%s': %s", name,
                  length < 2 ? "it is too short or no safetensors file"
                             : "its header is longer than the file or than 100 MB");
        return 0;
    }
    f->data = 8 + (size_t)length;
    f->strings_size = (size_t)length + 1;
    f->strings = (char *)ctr_alloc_(ctx, f->strings_size);
    if (!f->strings) return 0;
    c.start = c.at = f->file.bytes + 8;
    c.end = c.start + length;
    c.text = f->strings;
    ctr_io_members_(ctx, &c, f);
    ctr_io_space_(&c);
    if (!c.wrong && ctx->status == CTR_OK && c.at != c.end)
        ctr_io_wrong_(&c, "there is text behind its end");
    if (c.wrong)
        ctr_fail_(ctx, CTR_E_FORMAT, "safetensors file '%s': header, byte %ld: %s", name,
                  (long)(c.at - c.start), c.wrong);
    if (ctx->status != CTR_OK) return 0;
    f->by_name = (int64_t *)ctr_alloc_(ctx, f->count * sizeof *f->by_name);
    meta_order = (int64_t *)ctr_alloc_(ctx, f->meta_count * sizeof *meta_order);
    if (f->by_name && meta_order) wrong = ctr_io_verify_(f, f->by_name, meta_order, &which);
    ctr_free_host_(ctx, meta_order, f->meta_count * sizeof *meta_order);
    if (wrong)
        ctr_fail_(ctx, CTR_E_FORMAT, "safetensors file '%s': '%.80s': %s", name, which, wrong);
    else if (ctx->status == CTR_OK && !ctr_io_checksum_ok_(f))
        ctr_fail_(ctx, CTR_E_FORMAT,
                  "safetensors file '%s': its checksum (metadata xxh64) is wrong: "
                  "the file is damaged, or was changed by a program that kept the old checksum",
                  name);
    return ctx->status == CTR_OK;
}

CTR_API ctr_safetensors *ctr_safetensors_open(ctr_ctx *ctx, const char *path)
{
    ctr_safetensors *f;
    ctr_note_ note;
    if (ctx->status != CTR_OK) return NULL;
    f = (ctr_safetensors *)ctr_alloc_zero_(ctx, sizeof *f);
    if (!f) return NULL;
    memset(&note, 0, sizeof note);
    if (!ctr_file_read_(ctx, path, UINT64_MAX, &f->file, &note)) ctr_note_report_(ctx, &note);
    else if (ctr_io_safetensors_parse_(ctx, f, path)) return f;
    ctr_safetensors_close(ctx, f);
    return NULL;
}

CTR_API int64_t ctr_safetensors_count(const ctr_safetensors *f)
{ return f ? (int64_t)f->count : 0; }

CTR_API int64_t ctr_safetensors_find(const ctr_safetensors *f, const char *name)
{
    size_t low = 0, high = f ? f->count : 0;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = strcmp(f->entries[f->by_name[mid]].name, name);
        if (!order) return f->by_name[mid];
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    return -1;
}

CTR_API ctr_file_tensor ctr_safetensors_info(const ctr_safetensors *f, int64_t index)
{
    const ctr_io_entry_ *e;
    ctr_file_tensor t = { NULL, CTR_FILE_F32, 0, { 0 }, NULL };
    if (!f || index < 0 || index >= (int64_t)f->count) return t;
    e = &f->entries[index];
    t.name = e->name;
    t.dtype = e->dtype;
    t.rank = e->rank;
    memcpy(t.shape, e->shape, sizeof t.shape);
    t.data = f->file.bytes + f->data + e->range[0];
    return t;
}

CTR_API const char *ctr_safetensors_meta(const ctr_safetensors *f, const char *key)
{
    size_t i;
    for (i = 0; f && i < f->meta_count; i++)
        if (!strcmp(f->meta[i].key, key)) return f->meta[i].value;
    return NULL;
}

CTR_API int64_t ctr_safetensors_meta_count(const ctr_safetensors *f)
{
    return f ? (int64_t)f->meta_count : 0;
}

CTR_API ctr_file_meta ctr_safetensors_meta_at(const ctr_safetensors *f, int64_t index)
{
    ctr_file_meta none = { NULL, NULL };
    return f && index >= 0 && index < (int64_t)f->meta_count ? f->meta[index] : none;
}

/* A 16-bit float, one with the exponent of a float, and a float, by their bits. */
CTR_PRIVATE_ float ctr_io_float_(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

CTR_PRIVATE_ float ctr_io_half_(uint32_t bits)
{
    uint32_t sign = (bits & 0x8000u) << 16, e = bits >> 10 & 31, m = bits & 1023;
    if (e == 31) return ctr_io_float_(sign | 0x7f800000u | m << 13);
    if (e) return ctr_io_float_(sign | (e + 112) << 23 | m << 13);
    return (sign ? -1.0f : 1.0f) * (float)m * (1.0f / 16777216.0f); /* m 2^-24 */
}

/* One whole number of that type. */
CTR_PRIVATE_ int64_t ctr_io_whole_(ctr_file_dtype dtype, const uint8_t *p)
{
    switch (dtype) {
    case CTR_FILE_I64: return (int64_t)ctr_file_u64_(p);
    case CTR_FILE_I32: return (int32_t)ctr_file_u32_(p);
    case CTR_FILE_I16: return (int16_t)(p[0] | p[1] << 8);
    case CTR_FILE_I8: return (int8_t)p[0];
    default: return p[0];
    }
}

CTR_PRIVATE_ double ctr_io_double_(const uint8_t *p)
{
    uint64_t bits = ctr_file_u64_(p);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The entry to read from, or NULL with an error. */
CTR_PRIVATE_ const ctr_io_entry_ *ctr_io_readable_(ctr_ctx *ctx, const ctr_safetensors *f,
                                                   int64_t index, int64_t count)
{
    if (!f || ctx->status != CTR_OK) return NULL;
    if (index < 0 || index >= (int64_t)f->count) {
        ctr_fail_(ctx, CTR_E_VALUE, "safetensors: there are %ld tensors, asked for number %ld",
                  (long)f->count, (long)index);
        return NULL;
    }
    if (f->entries[index].count == count) return &f->entries[index];
    ctr_fail_(ctx, CTR_E_SHAPE, "safetensors: tensor '%.100s' has %ld numbers, expected %ld",
              f->entries[index].name, (long)f->entries[index].count, (long)count);
    return NULL;
}

CTR_API int ctr_safetensors_read_f32(ctr_ctx *ctx, const ctr_safetensors *f, int64_t index,
                                     ctr_real *to, int64_t count)
{
    const ctr_io_entry_ *e = ctr_io_readable_(ctx, f, index, count);
    const uint8_t *p;
    size_t size;
    int64_t i;
    if (!e) return 0;
    p = f->file.bytes + f->data + e->range[0];
    size = ctr_io_types_[e->dtype].size;
    for (i = 0; i < count; i++, p += size) {
        switch (e->dtype) {
        case CTR_FILE_F32: to[i] = (ctr_real)ctr_io_float_(ctr_file_u32_(p)); break;
        case CTR_FILE_F64: to[i] = (ctr_real)ctr_io_double_(p); break;
        case CTR_FILE_F16:
            to[i] = (ctr_real)ctr_io_half_((uint32_t)p[0] | (uint32_t)p[1] << 8);
            break;
        case CTR_FILE_BF16:
            to[i] = (ctr_real)ctr_io_float_((uint32_t)p[0] << 16 | (uint32_t)p[1] << 24);
            break;
        default: to[i] = (ctr_real)ctr_io_whole_(e->dtype, p); break;
        }
    }
    return 1;
}

CTR_API int ctr_safetensors_read_i64(ctr_ctx *ctx, const ctr_safetensors *f, int64_t index,
                                     int64_t *to, int64_t count)
{
    const ctr_io_entry_ *e = ctr_io_readable_(ctx, f, index, count);
    const uint8_t *p;
    int64_t i;
    if (!e) return 0;
    if (e->dtype < CTR_FILE_I64) {
        ctr_fail_(ctx, CTR_E_VALUE, "safetensors: tensor '%.100s' is %s, expected whole numbers",
                  e->name, ctr_io_types_[e->dtype].name);
        return 0;
    }
    p = f->file.bytes + f->data + e->range[0];
    for (i = 0; i < count; i++)
        to[i] = ctr_io_whole_(e->dtype, p + (size_t)i * ctr_io_types_[e->dtype].size);
    return 1;
}

/* ---- checkpoints ---- */

enum { CTR_CKPT_META_ = 16, CTR_CKPT_VALUE_ = 256 };

/* Two walks over the state use this: the first counts, the second fills in (to save), or copies
   from a file that was found to fit (to load). */
typedef struct ctr_ckpt_ {
    ctr_ctx *ctx;
    ctr_file_tensor *table;
    char (*names)[128];
    int64_t count, room;
    size_t bytes;                        /* of all tensors */
    char *data, *at;
    ctr_file_meta meta[CTR_CKPT_META_];
    char values[CTR_CKPT_META_][CTR_CKPT_VALUE_];
    char keys[CTR_CKPT_META_][64];
    int metas;
    const ctr_safetensors *file;
    int write;                           /* loading: 0 verifies, 1 copies */
    int64_t found;
    const char *path;
} ctr_ckpt_;

CTR_PRIVATE_ const ctr_file_dtype ctr_ckpt_dtype_ =
    CTR_REAL_IS_FLOAT_ ? CTR_FILE_F32 : CTR_FILE_F64;

/* Between memory's [kh, kw, in, out] and a file's [out, in, kh, kw]; shape is memory's. */
CTR_PRIVATE_ void ctr_ckpt_layout_(const int64_t *shape, const ctr_real *from, ctr_real *to,
                                   int to_file)
{
    int64_t taps = shape[0] * shape[1], in = shape[2], out = shape[3], t, i, o;
    for (t = 0; t < taps; t++)
        for (i = 0; i < in; i++)
            for (o = 0; o < out; o++) {
                int64_t memory = (t * in + i) * out + o, file = (o * in + i) * taps + t;
                if (to_file) to[file] = from[memory];
                else to[memory] = from[file];
            }
}

CTR_PRIVATE_ void ctr_ckpt_shape_(const ctr_tensor *t, int conv, int64_t *shape)
{
    int i;
    for (i = 0; i < 4; i++) shape[i] = t->shape[i];
    if (!conv) return;
    shape[0] = t->shape[3];
    shape[1] = t->shape[2];
    shape[2] = t->shape[0];
    shape[3] = t->shape[1];
}

CTR_PRIVATE_ void ctr_ckpt_count_(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ckpt_ *c = (ctr_ckpt_ *)user;
    (void)name;
    (void)conv;
    c->room++;
    c->bytes += ctr_tensor_bytes_(t);
}

CTR_PRIVATE_ void ctr_ckpt_skip_number_(void *user, const char *name, int64_t *value)
{
    (void)user;
    (void)name;
    (void)value;
}

/* A tensor goes into the table with its numbers in the file's layout. */
CTR_PRIVATE_ void ctr_ckpt_collect_(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ckpt_ *c = (ctr_ckpt_ *)user;
    ctr_file_tensor *f = &c->table[c->count];
    size_t bytes = ctr_tensor_bytes_(t);
    ctr_real *copy = (ctr_real *)c->at;
    if (c->ctx->status != CTR_OK) return;
    snprintf(c->names[c->count], sizeof c->names[0], "%s", name);
    memset(f, 0, sizeof *f);
    f->name = c->names[c->count++];
    f->dtype = ctr_ckpt_dtype_;
    f->rank = t->rank;
    ctr_ckpt_shape_(t, conv, f->shape);
    f->data = copy;
    c->at += bytes;
    if (conv) {
        ctr_real *raw = (ctr_real *)ctr_alloc_(c->ctx, bytes);
        if (!raw) return;
        ctr_k_download(c->ctx, bytes, t->data, raw);
        ctr_ckpt_layout_(t->shape, raw, copy, 1);
        ctr_free_host_(c->ctx, raw, bytes);
    } else {
        ctr_k_download(c->ctx, bytes, t->data, copy);
    }
}

CTR_PRIVATE_ void ctr_ckpt_meta_(ctr_ckpt_ *c, const char *key, const char *format, ...)
    CTR_PRINTF_(3, 4);
CTR_PRIVATE_ void ctr_ckpt_meta_(ctr_ckpt_ *c, const char *key, const char *format, ...)
{
    va_list args;
    if (c->metas == CTR_CKPT_META_) {
        ctr_fail_(c->ctx, CTR_E_VALUE, "checkpoint: no room for the number %s", key);
        return;
    }
    snprintf(c->keys[c->metas], sizeof c->keys[0], "%s", key);
    va_start(args, format);
    vsnprintf(c->values[c->metas], CTR_CKPT_VALUE_, format, args);
    va_end(args);
    c->meta[c->metas].key = c->keys[c->metas];
    c->meta[c->metas].value = c->values[c->metas];
    c->metas++;
}

CTR_PRIVATE_ void ctr_ckpt_number_(void *user, const char *name, int64_t *value)
{
    char key[64];
    snprintf(key, sizeof key, "number.%s", name);
    ctr_ckpt_meta_((ctr_ckpt_ *)user, key, "%ld", (long)*value);
}

/* Room for c->room tensors of c->bytes; ctr_ckpt_free_ gives it back. */
CTR_PRIVATE_ int ctr_ckpt_alloc_(ctr_ckpt_ *c)
{
    size_t n = (size_t)CTR_MAX_(c->room, 1);
    c->table = (ctr_file_tensor *)ctr_alloc_(c->ctx, n * sizeof *c->table);
    c->names = (char (*)[128])ctr_alloc_(c->ctx, n * sizeof *c->names);
    c->data = c->at = (char *)ctr_aligned_alloc_(c->ctx, c->bytes);
    return c->table && c->names && c->data;
}

CTR_PRIVATE_ void ctr_ckpt_free_(ctr_ckpt_ *c)
{
    size_t n = (size_t)CTR_MAX_(c->room, 1);
    ctr_free_host_(c->ctx, c->table, n * sizeof *c->table);
    ctr_free_host_(c->ctx, c->names, n * sizeof *c->names);
    ctr_aligned_free_(c->ctx, c->data, c->bytes);
    ctr_free_host_(c->ctx, c, sizeof *c);
}

CTR_PRIVATE_ ctr_ckpt_ *ctr_ckpt_create_(ctr_ctx *ctx, const char *path)
{
    ctr_ckpt_ *c = ctx->status == CTR_OK ? (ctr_ckpt_ *)ctr_alloc_zero_(ctx, sizeof *c) : NULL;
    if (!c) return NULL;
    c->ctx = ctx;
    c->path = path;
    return c;
}

CTR_API int ctr_checkpoint_save(ctr_method *method, const char *path, const ctr_position *position)
{
    ctr_ctx *ctx = method ? method->ctx : NULL;
    ctr_ckpt_ *c = ctx ? ctr_ckpt_create_(ctx, path) : NULL;
    ctr_visitor v;
    int done = 0;
    if (!c) return 0;
    v.user = c;
    v.tensor_fn = ctr_ckpt_count_;
    v.number_fn = ctr_ckpt_skip_number_;
    method->visit_fn(method, &v);
    if (ctr_ckpt_alloc_(c)) {
        ctr_ckpt_meta_(c, "format", "contrastive.h 1");
        method->describe_fn(method, c->values[c->metas], CTR_CKPT_VALUE_);
        c->meta[c->metas].key = "architecture";
        c->meta[c->metas].value = c->values[c->metas];
        c->metas++;
        ctr_ckpt_meta_(c, "kernels", "%s", ctr_kernels_name(ctx));
        if (position)
            ctr_ckpt_meta_(c, "position", "epoch %ld batch %ld step %ld images %ld batch_size %ld "
                           "epochs %ld seed %lu", (long)position->epoch, (long)position->batch,
                           (long)position->step, (long)position->images,
                           (long)position->batch_size, (long)position->epochs,
                           (unsigned long)position->seed);
        v.tensor_fn = ctr_ckpt_collect_;
        v.number_fn = ctr_ckpt_number_;
        method->visit_fn(method, &v);
        if (ctx->status == CTR_OK)
            done = ctr_safetensors_save(ctx, path, c->table, c->count, c->meta, c->metas);
    }
    ctr_ckpt_free_(c);
    return done;
}

/* Verifies that the file has the tensor, or (c->write) copies it. */
CTR_PRIVATE_ void ctr_ckpt_take_(void *user, const char *name, ctr_tensor *t, int conv)
{
    ctr_ckpt_ *c = (ctr_ckpt_ *)user;
    ctr_ctx *ctx = c->ctx;
    int64_t index = ctr_safetensors_find(c->file, name), shape[4];
    size_t bytes = ctr_tensor_bytes_(t);
    char a[64], b[64];
    ctr_real *raw, *copy;
    int i, same = 1;
    if (ctx->status != CTR_OK) return;
    if (index < 0) {
        ctr_fail_(ctx, CTR_E_FORMAT, "%s: has no tensor %s", ctr_file_tail_(c->path), name);
        return;
    }
    c->found++;
    ctr_ckpt_shape_(t, conv, shape);
    if (!c->write) {
        ctr_file_tensor f = ctr_safetensors_info(c->file, index);
        for (i = 0; i < 4; i++) same = same && (i >= f.rank ? 1 : f.shape[i]) == shape[i];
        if (!same || f.rank != t->rank)
            ctr_fail_(ctx, CTR_E_FORMAT, "%s: tensor %s is %s, expected %s",
                      ctr_file_tail_(c->path), name, ctr_shape_text_(f.rank, f.shape, a),
                      ctr_shape_text_(t->rank, shape, b));
        if (bytes > c->bytes) c->bytes = bytes;
        return;
    }
    raw = (ctr_real *)c->data;
    copy = (ctr_real *)(c->data + ctr_round_(c->bytes));
    if (!ctr_safetensors_read_f32(ctx, c->file, index, raw, t->size)) return;
    if (conv) ctr_ckpt_layout_(t->shape, raw, copy, 0);
    ctr_tensor_write(ctx, t, conv ? copy : raw, t->size);
}

CTR_PRIVATE_ void ctr_ckpt_take_number_(void *user, const char *name, int64_t *value)
{
    ctr_ckpt_ *c = (ctr_ckpt_ *)user;
    const char *text;
    char key[64];
    long number;
    snprintf(key, sizeof key, "number.%s", name);
    text = ctr_safetensors_meta(c->file, key);
    if (!text || sscanf(text, "%ld", &number) != 1 || number < 0)
        ctr_fail_(c->ctx, CTR_E_FORMAT, "%s: has no number %s", ctr_file_tail_(c->path), name);
    else if (c->write)
        *value = number;
}

/* Architecture, kernels and position. 0 with an error if this is another network's checkpoint. */
CTR_PRIVATE_ int ctr_ckpt_header_(ctr_method *method, ctr_ckpt_ *c, ctr_position *p)
{
    ctr_ctx *ctx = method->ctx;
    const char *format = ctr_safetensors_meta(c->file, "format");
    const char *architecture = ctr_safetensors_meta(c->file, "architecture");
    const char *kernels = ctr_safetensors_meta(c->file, "kernels");
    const char *text = ctr_safetensors_meta(c->file, "position");
    char own[CTR_CKPT_VALUE_];
    long epoch, batch, step, images, size, epochs;
    unsigned long seed;
    if (!format || strcmp(format, "contrastive.h 1") || !architecture) {
        ctr_fail_(ctx, CTR_E_FORMAT, "%s: not a checkpoint of contrastive.h",
                  ctr_file_tail_(c->path));
        return 0;
    }
    if (!ctr_safetensors_meta(c->file, "xxh64")) {
        ctr_fail_(ctx, CTR_E_FORMAT, "%s: a checkpoint without its checksum",
                  ctr_file_tail_(c->path));
        return 0;
    }
    method->describe_fn(method, own, sizeof own);
    if (strcmp(own, architecture)) {
        ctr_fail_(ctx, CTR_E_FORMAT, "%s: holds \"%.90s\", expected \"%.90s\"",
                  ctr_file_tail_(c->path), architecture, own);
        return 0;
    }
    if (kernels && strcmp(kernels, ctr_kernels_name(ctx)))
        ctr_log_(ctx, CTR_LOG_WARN, "the checkpoint was written with kernels %s, this run has %s: "
                 "the last bits will differ", kernels, ctr_kernels_name(ctx));
    if (!p) return 1;
    memset(p, 0, sizeof *p);
    if (!text) return 1;
    if (sscanf(text, "epoch %ld batch %ld step %ld images %ld batch_size %ld epochs %ld seed %lu",
               &epoch, &batch, &step, &images, &size, &epochs, &seed) != 7 || epoch < 0 ||
        batch < 0 || step < 0) {
        ctr_fail_(ctx, CTR_E_FORMAT, "%s: its position is not readable", ctr_file_tail_(c->path));
        return 0;
    }
    p->epoch = epoch;
    p->batch = batch;
    p->step = step;
    p->images = images;
    p->batch_size = size;
    p->epochs = epochs;
    p->seed = seed;
    return 1;
}

/* Is it a position in this run, of so many batches an epoch? In another one it means nothing. */
CTR_PRIVATE_ int ctr_ckpt_same_run_(ctr_ctx *ctx, const ctr_position *a, const ctr_position *b,
                                    int64_t batches)
{
    if (a->images != b->images || a->batch_size != b->batch_size || a->seed != b->seed ||
        a->epochs != b->epochs)
        ctr_fail_(ctx, CTR_E_VALUE, "resume: the checkpoint is from %ld epochs of %ld images in "
                  "batches of %ld with seed %lu, this run has %ld, %ld, %ld and %lu",
                  (long)a->epochs, (long)a->images, (long)a->batch_size, (unsigned long)a->seed,
                  (long)b->epochs, (long)b->images, (long)b->batch_size, (unsigned long)b->seed);
    else if (a->epoch > a->epochs || a->batch > batches || a->step != a->epoch * batches + a->batch)
        ctr_fail_(ctx, CTR_E_VALUE,
                  "resume: the checkpoint's step %ld is not batch %ld of epoch %ld "
                  "with %ld batches each",
                  (long)a->step, (long)a->batch, (long)a->epoch, (long)batches);
    return ctx->status == CTR_OK;
}

/* run (or NULL) and its batches in an epoch: the run that the position must belong to. */
CTR_PRIVATE_ int ctr_ckpt_load_(ctr_method *method, const char *path, ctr_position *position,
                                const ctr_position *run, int64_t batches)
{
    ctr_ctx *ctx = method->ctx;
    ctr_ckpt_ *c = ctr_ckpt_create_(ctx, path);
    ctr_safetensors *file = c ? ctr_safetensors_open(ctx, path) : NULL;
    ctr_position found;
    ctr_visitor v;
    if (c && file) {
        c->file = file;
        v.user = c;
        v.tensor_fn = ctr_ckpt_take_;
        v.number_fn = ctr_ckpt_take_number_;
        if (ctr_ckpt_header_(method, c, &found) &&
            (!run || ctr_ckpt_same_run_(ctx, &found, run, batches)))
            method->visit_fn(method, &v);
        if (ctx->status == CTR_OK && c->found != ctr_safetensors_count(file))
            ctr_fail_(ctx, CTR_E_FORMAT, "%s: holds %ld tensors, expected %ld",
                      ctr_file_tail_(path), (long)ctr_safetensors_count(file), (long)c->found);
        c->bytes = ctr_round_(c->bytes) * 2;
        if (ctx->status == CTR_OK) c->data = (char *)ctr_aligned_alloc_(ctx, c->bytes);
        if (c->data) { /* from here on nothing can fail */
            size_t bytes = c->bytes;
            c->write = 1;
            c->bytes = bytes / 2;
            method->visit_fn(method, &v);
            ctr_aligned_free_(ctx, c->data, bytes);
            c->data = NULL;
            if (position) *position = found;
        }
    }
    ctr_safetensors_close(ctx, file);
    ctr_free_host_(ctx, c, sizeof *c);
    return ctx->status == CTR_OK;
}

CTR_API int ctr_checkpoint_load(ctr_method *method, const char *path, ctr_position *position)
{
    return method && ctr_ckpt_load_(method, path, position, NULL, 0);
}

/* ---- weights by torchvision's names ---- */

/* The variable of a file's name, or with part != 0 any variable of the same part: the same letters
   up to the first dot. NULL: none. */
CTR_PRIVATE_ const ctr_var *ctr_weights_find_(const ctr_vars *vars, const char *prefix,
                                              const char *name, int part)
{
    size_t skip = strlen(prefix), n = part ? strcspn(name, ".") + 1 : strlen(name) + 1;
    int i;
    for (i = 0; i < vars->count; i++)
        if (!strncmp(vars->list[i].name, prefix, skip) &&
            !strncmp(vars->list[i].name + skip, name, n))
            return &vars->list[i];
    return NULL;
}

/* Is this another network's file? The first tensor without its variable tells. */
CTR_PRIVATE_ void ctr_weights_check_(ctr_ckpt_ *c, const ctr_vars *vars, const char *prefix)
{
    static const char counter[] = "num_batches_tracked";
    int64_t i;
    if (!c->found)
        ctr_fail_(c->ctx, CTR_E_VALUE, "weights: no variable's name begins with %s", prefix);
    for (i = 0; i < ctr_safetensors_count(c->file) && c->ctx->status == CTR_OK; i++) {
        const char *name = ctr_safetensors_info(c->file, i).name;
        size_t n = strlen(name);
        if (n >= sizeof counter - 1 && !strcmp(name + n - (sizeof counter - 1), counter)) continue;
        if (ctr_weights_find_(vars, prefix, name, 1) && !ctr_weights_find_(vars, prefix, name, 0))
            ctr_fail_(c->ctx, CTR_E_FORMAT, "%s: holds %s, which this network does not have",
                      ctr_file_tail_(c->path), name);
    }
}

CTR_API int ctr_weights_load(ctr_ctx *ctx, const char *path, ctr_vars *vars, const char *prefix)
{
    size_t skip = strlen(prefix), bytes = 0;
    ctr_ckpt_ *c = ctr_ckpt_create_(ctx, path);
    ctr_safetensors *file = c ? ctr_safetensors_open(ctx, path) : NULL;
    int i, pass;
    for (pass = 0; file && pass < 2; pass++) {
        c->file = file;
        c->write = pass;
        for (i = 0; i < vars->count; i++)
            if (!strncmp(vars->list[i].name, prefix, skip))
                ctr_ckpt_take_(c, vars->list[i].name + skip, vars->list[i].value,
                               vars->list[i].conv);
        if (!pass) ctr_weights_check_(c, vars, prefix);
        if (ctx->status != CTR_OK || pass) break;
        bytes = ctr_round_(c->bytes) * 2;
        c->data = (char *)ctr_aligned_alloc_(ctx, bytes);
        if (!c->data) break;
    }
    if (c) ctr_aligned_free_(ctx, c->data, bytes);
    ctr_safetensors_close(ctx, file);
    ctr_free_host_(ctx, c, sizeof *c);
    return ctx->status == CTR_OK;
}

/* torchvision's norms also count their batches, for averages that nobody uses: always 0 here. */
CTR_PRIVATE_ void ctr_weights_counter_(ctr_ckpt_ *c, const char *norm, size_t length)
{
    static const int64_t zero = 0;
    ctr_file_tensor *f = &c->table[c->count];
    if (c->ctx->status != CTR_OK) return;
    snprintf(c->names[c->count], sizeof c->names[0], "%.*snum_batches_tracked", (int)length, norm);
    memset(f, 0, sizeof *f);
    f->name = c->names[c->count++];
    f->dtype = CTR_FILE_I64;
    f->data = &zero;
}

CTR_API int ctr_weights_save(ctr_ctx *ctx, const char *path, const ctr_vars *vars,
                             const char *prefix)
{
    size_t skip = strlen(prefix), tail = strlen("running_var"), n;
    ctr_ckpt_ *c = ctr_ckpt_create_(ctx, path);
    int i, pass, done = 0;
    if (!c) return 0;
    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < vars->count; i++) {
            const ctr_var *v = &vars->list[i];
            const char *name = v->name + skip;
            if (strncmp(v->name, prefix, skip)) continue;
            (pass ? ctr_ckpt_collect_ : ctr_ckpt_count_)(c, name, v->value, v->conv);
            n = strlen(name);
            if (n < tail || strcmp(name + n - tail, "running_var")) continue;
            if (pass) ctr_weights_counter_(c, name, n - tail);
            else c->room++;
        }
        if (!c->room)
            ctr_fail_(ctx, CTR_E_VALUE, "weights: no variable's name begins with %s", prefix);
        if (ctx->status != CTR_OK || (!pass && !ctr_ckpt_alloc_(c))) break;
    }
    if (ctx->status == CTR_OK)
        done = ctr_safetensors_save(ctx, path, c->table, c->count, NULL, 0);
    ctr_ckpt_free_(c);
    return done;
}

/* ------------------------------------------------------------------------------------------------
   >>FIT
   ---------------------------------------------------------------------------------------------- */

CTR_API void ctr_fit_config_init(ctr_fit_config *config)
{
    memset(config, 0, sizeof *config);
    config->epochs = 30;
    config->batch = 128;
    config->schedule = CTR_SCHEDULE_COSINE;
    config->warmup_epochs = 1;
}

CTR_API ctr_fit_config ctr_fit_default(void)
{
    ctr_fit_config config;
    ctr_fit_config_init(&config);
    return config;
}

CTR_PRIVATE_ ctr_schedule ctr_fit_schedule_(const ctr_method *method, const ctr_fit_config *config,
                                            int64_t batches, int64_t batch)
{
    int64_t total = config->epochs * batches;
    double lr = config->lr > 0 ? config->lr : ctr_lr_scaled(method->lr, method->lr_rule, batch);
    ctr_schedule s = ctr_schedule_cosine(lr, config->end_lr,
                                         (int64_t)(config->warmup_epochs * (double)batches), total);
    int i;
    s.kind = config->schedule;
    if (s.warmup > total) s.warmup = total;
    for (i = 0; i < 4; i++) s.milestones[i] = config->milestones[i] * batches;
    return s;
}

/* Effective rank of the representations of a part of the batch, in evaluation mode. */
CTR_PRIVATE_ double ctr_fit_rank_(ctr_method *method, const ctr_batch *b)
{
    ctr_ctx *ctx = method->ctx;
    int64_t n = CTR_MIN_(b->n, 256);
    size_t bytes = (size_t)(n * method->features) * sizeof(ctr_real);
    ctr_real *z = (ctr_real *)ctr_alloc_(ctx, bytes);
    ctr_health health;
    double rank = -1;
    if (!z) return -1;
    if (ctr_method_represent(method, n, b->h, b->w, b->c, b->pixels, 64, z) &&
        ctr_health_measure(ctx, n, 1, method->features, z, NULL, &health))
        rank = health.rank;
    ctr_free_host_(ctx, z, bytes);
    return rank;
}

CTR_PRIVATE_ int ctr_fit_save_(ctr_method *method, const ctr_loader *loader,
                               const ctr_fit_config *config, ctr_position *p)
{
    ctr_loader_tell(loader, &p->epoch, &p->batch);
    return !config->checkpoint || ctr_checkpoint_save(method, config->checkpoint, p);
}

/* Steps to the end of the epoch. Returns 1 to go on, 0 to stop. */
CTR_PRIVATE_ int ctr_fit_epoch_(ctr_method *method, ctr_loader *loader,
                                const ctr_fit_config *config, const ctr_schedule *schedule,
                                ctr_position *p)
{
    ctr_ctx *ctx = method->ctx;
    ctr_report report;
    ctr_batch batch;
    double waited = ctr_loader_seconds(loader), rank = -1;
    int stop = 0, any = 0;
    if (p->batch == 0 && !ctr_method_begin(method, loader)) return 0;
    while (!stop && ctr_loader_next(ctx, loader, &batch)) {
        if (!ctr_method_step(method, &batch, ctr_schedule_at(schedule, p->step), &report)) return 0;
        report.step = p->step++;
        report.data_seconds = ctr_loader_seconds(loader) - waited;
        report.seconds += report.data_seconds;
        waited = ctr_loader_seconds(loader);
        any = 1;
        if (config->epoch_fn && batch.batch + 1 == ctr_loader_batches(loader))
            rank = ctr_fit_rank_(method, &batch);
        if (config->step_fn) stop = config->step_fn(config->user, &report);
        if (batch.batch + 1 < ctr_loader_batches(loader) && config->save_every > 0 &&
            p->step % config->save_every == 0 && !ctr_fit_save_(method, loader, config, p))
            return 0;
    }
    if (ctx->status != CTR_OK) return 0;
    if (any && !stop && config->epoch_fn) {
        report.rank = rank;
        stop = config->epoch_fn(config->user, &report);
    }
    /* the epoch's last save comes after epoch_fn: who resumes from it has seen the whole epoch */
    ctr_loader_tell(loader, &p->epoch, &p->batch);
    if ((config->save_every <= 0 || p->step % config->save_every == 0 || stop ||
         p->epoch >= config->epochs) && !ctr_fit_save_(method, loader, config, p))
        return 0;
    return !stop;
}

CTR_PRIVATE_ int ctr_fit_check_(ctr_ctx *ctx, const ctr_fit_config *c)
{
    if (ctx->status != CTR_OK) return 0;
    if (c->epochs < 0 || c->save_every < 0 || !(c->warmup_epochs >= 0))
        ctr_fail_(ctx, CTR_E_VALUE, "fit: epochs, warmup_epochs and save_every must be at least 0, "
                  "got %ld, %g and %ld", (long)c->epochs, c->warmup_epochs, (long)c->save_every);
    if (!(c->lr >= 0) || !(c->end_lr >= 0))
        ctr_fail_(ctx, CTR_E_VALUE, "fit: lr and end_lr must be at least 0 (lr 0: the method's "
                  "own), got %g and %g", c->lr, c->end_lr);
    return ctx->status == CTR_OK;
}

CTR_API int64_t ctr_fit(ctr_method *method, ctr_loader *loader, const ctr_fit_config *config)
{
    ctr_ctx *ctx = method ? method->ctx : NULL;
    ctr_schedule schedule;
    ctr_position p, saved;
    int64_t first;
    if (!method || !loader || !ctr_fit_check_(ctx, config)) return -1;
    memset(&p, 0, sizeof p);
    ctr_loader_run_(loader, &p.images, &p.batch_size, &p.seed);
    p.epochs = config->epochs;
    schedule = ctr_fit_schedule_(method, config, ctr_loader_batches(loader), p.batch_size);
    method->run.images = p.images;
    method->run.steps = schedule.total;
    method->run.lr = schedule.base;
    ctr_loader_tell(loader, &p.epoch, &p.batch);
    p.step = p.epoch * ctr_loader_batches(loader) + p.batch;
    if (config->resume && config->checkpoint && ctr_file_exists_(config->checkpoint)) {
        if (!ctr_ckpt_load_(method, config->checkpoint, &saved, &p, ctr_loader_batches(loader)))
            return -1;
        if (!ctr_loader_seek(ctx, loader, saved.epoch, saved.batch)) return -1;
        p = saved;
    }
    first = p.step;
    while (p.epoch < config->epochs && ctr_fit_epoch_(method, loader, config, &schedule, &p))
        ctr_loader_tell(loader, &p.epoch, &p.batch);
    return ctx->status == CTR_OK ? p.step - first : -1;
}

CTR_API int64_t ctr_fit_images(ctr_method *method, const ctr_dataset *images,
                               const ctr_fit_config *config)
{
    ctr_loader_config c = ctr_loader_config_default();
    ctr_loader *loader;
    int64_t steps;
    if (!method) return -1; /* its error is in the context */
    if (!images) ctr_fail_(method->ctx, CTR_E_VALUE, "fit_images: there are no images (NULL)");
    if (!ctr_fit_check_(method->ctx, config)) return -1;
    c.batch = CTR_MIN_(config->batch, ctr_dataset_count(images));
    c.views = method->views;
    c.augs = method->augs;
    c.seed = method->ctx->config.seed;
    loader = ctr_loader_create(method->ctx, images, &c);
    if (!loader) return -1;
    steps = ctr_fit(method, loader, config);
    ctr_loader_destroy(method->ctx, loader);
    return steps;
}

/* ---- scores
   ------------------------------------------------------------------------------------ */

typedef struct ctr_scored_ {              /* a dataset's representations */
    ctr_points points;
    ctr_real *x;
    int32_t *labels;
    size_t bytes;
} ctr_scored_;

CTR_PRIVATE_ int ctr_scored_make_(ctr_ctx *ctx, ctr_method *method, const ctr_dataset *data,
                                  const ctr_aug_config *aug, uint64_t seed, ctr_scored_ *s)
{
    int64_t n = ctr_dataset_count(data);
    int64_t d = method ? method->features
                       : aug->height * aug->width * ctr_dataset_channels(data);
    memset(s, 0, sizeof *s);
    s->bytes = ctr_size_mul_(ctx, (size_t)n, (size_t)d * sizeof(ctr_real));
    s->x = (ctr_real *)ctr_aligned_alloc_(ctx, s->bytes);
    if (s->x) s->labels = (int32_t *)ctr_alloc_(ctx, (size_t)n * sizeof *s->labels);
    if (!s->labels) return 0;
    s->points = ctr_points_make(n, d, s->x, s->labels);
    return ctr_method_represent_dataset(ctx, method, data, aug, seed, s->x, s->labels);
}

CTR_PRIVATE_ void ctr_scored_free_(ctr_ctx *ctx, ctr_scored_ *s)
{
    ctr_free_host_(ctx, s->labels, (size_t)s->points.n * sizeof *s->labels);
    ctr_aligned_free_(ctx, s->x, s->bytes);
    memset(s, 0, sizeof *s);
}

/* The three that look at clean test images. */
CTR_PRIVATE_ void ctr_scores_clean_(ctr_ctx *ctx, const ctr_points *train, const ctr_points *test,
                                    uint64_t seed, ctr_scores *out)
{
    ctr_probe_config config = ctr_probe_config_default();
    ctr_knn_result knn;
    ctr_probe_result probe;
    if (ctr_knn_classify(ctx, train, test, NULL, NULL, &knn) && knn.counted)
        out->knn = 100 * knn.top1;
    if (!test) return;
    config.seed = seed;
    if (ctr_probe_run(ctx, train, test, &config, NULL, &probe) && probe.counted)
        out->linear = 100 * probe.top1;
    config.labels_per_class = 10;
    if (ctr_probe_run(ctx, train, test, &config, NULL, &probe) && probe.counted)
        out->linear_10 = 100 * probe.top1;
}

CTR_API int ctr_scores_measure(ctr_ctx *ctx, ctr_method *method, const ctr_dataset *train,
                               const ctr_dataset *test, const ctr_aug_config *clean,
                               const ctr_aug_config *view, uint64_t seed, ctr_scores *out)
{
    ctr_scored_ a, b;
    ctr_knn_result knn;
    out->knn = out->linear = out->linear_10 = out->knn_views = -1;
    if (ctx->status != CTR_OK) return 0;
    memset(&b, 0, sizeof b);
    if (!ctr_dataset_classes(train) || (test && !ctr_dataset_classes(test))) return 1;
    if (ctr_scored_make_(ctx, method, train, clean, seed, &a)) {
        if (!test) ctr_scores_clean_(ctx, &a.points, NULL, seed, out);
        else if (ctr_scored_make_(ctx, method, test, clean, seed, &b))
            ctr_scores_clean_(ctx, &a.points, &b.points, seed, out);
        ctr_scored_free_(ctx, &b);
        if (test && ctr_scored_make_(ctx, method, test, view, seed, &b) &&
            ctr_knn_classify(ctx, &a.points, &b.points, NULL, NULL, &knn) && knn.counted)
            out->knn_views = 100 * knn.top1;
        ctr_scored_free_(ctx, &b);
    }
    ctr_scored_free_(ctx, &a);
    return ctx->status == CTR_OK;
}

#ifdef __cplusplus
}
#endif
#endif /* CONTRASTIVE_IMPLEMENTED_ */
#endif /* CONTRASTIVE_IMPLEMENTATION */

/*
MIT No Attribution

Copyright 2026 the authors of contrastive.h

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
