/* contrastive_cuda.cu - the companion of contrastive.h for NVIDIA GPUs: CUDA runtime, cuBLAS

   Build:  nvcc -O3 -arch=native -DCONTRASTIVE_CUDA -x cu program.c contrastive_cuda.cu \
                -o program -lcublas
   (native: the GPU of this machine; sm_80 and the like for another. nvcc's own choice may be older
   than the tensor cores that TF32 and BF16 need: ctr_cuda_open refuses them then.)

   It fills the header's ctr_device: memory on the GPU, and one function for each kernel verb. All
   above the verbs (autograd, networks, losses, methods) is the header's and knows nothing of a GPU.

   HOW IT WORKS
   - One stream. A verb puts its kernels into it and returns; the host runs ahead. Only what gives a
     number back to the host (download, finite) waits. An error of a kernel therefore shows at a
     later verb, whose name the message then has.
   - The same bits from run to run: no float atomics; a sum is cut into parts by its shape alone,
     and the parts are added in order. The order is not the CPU's: devices agree to rounding only.
   - Convolutions are matrix products whose left operand is never stored: >>CONV below. 1x1 ones and
     ctr_gemm go to cuBLAS.
   - The contrastive losses need all similarities [m, m], but never at once: >>CONTRAST.
   - Many small updates in a row (an optimiser's step, a momentum encoder's move) are kept in a
     table and go out as one launch: >>BATCH.

   WHAT IT DOES NOT DO
   - Activations are float in memory whatever config.math says; that is about the products alone.
   - No CUDA graphs, no several GPUs, no double build.

   READING IT   A kernel's loops over work are FOR_EACH (one long array) and FOR_ROWS/FOR_COLS (a
   matrix): every thread takes places that lie a whole grid apart, so any grid is a right one. */
#ifndef CONTRASTIVE_CUDA
#define CONTRASTIVE_CUDA
#endif
#include "contrastive.h"

#include <cuda_runtime.h>
#include <cublas_v2.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(ctr_real) == sizeof(float), "the GPU has the float build alone");

/* A launch, and the tensor cores' instructions. tests/cuda/ has its own of both: there the same
   kernels run on the CPU. */
#ifndef CTR_LAUNCH_
#define CTR_LAUNCH_(kernel, grid, block, shared, stream, ...)                                      \
    kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define CTR_UNROLL_ _Pragma("unroll")
#endif
#ifndef CTR_MMA_DEFINED_
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define CTR_MMA_ASM_(...) asm volatile(__VA_ARGS__)
#else
#define CTR_MMA_ASM_(...) (void)d /* never launched there: see cu_math */
#endif
/* d[16][8] += a[16][8] b[8][8]; of each matrix a lane holds some numbers, see mma_place and on */
static __device__ __forceinline__ void ctr_mma_tf32(float *d, const uint32_t *a, const uint32_t *b)
{
    (void)a, (void)b;
    CTR_MMA_ASM_("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* d[16][8] += a[16][16] b[16][8], bf16 in pairs */
static __device__ __forceinline__ void ctr_mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    (void)a, (void)b;
    CTR_MMA_ASM_("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
static __device__ __forceinline__ uint32_t ctr_to_tf32(float x)
{
    uint32_t d = 0;
    (void)x;
    CTR_MMA_ASM_("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(d) : "f"(x));
    return d;
}
static __device__ __forceinline__ uint32_t ctr_to_bf16x2(float low, float high)
{
    uint32_t d = 0;
    (void)low, (void)high;
    CTR_MMA_ASM_("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
#endif

/* Faults on purpose: the emulation of tests/cuda switches one on and must find it. */
#ifndef CTR_FAULT_
#define CTR_FAULT_(which) 0
#endif

/* Numbers of a strip of similarities, see >>CONTRAST; the emulation has few, to see several. */
#ifndef CTR_STRIP_
#define CTR_STRIP_ (1 << 24)
#endif

/* ================================================================================================
   >>DEVICE  memory, the stream, errors
   ============================================================================================= */

enum { STAGES = 4, STAGE_BYTES = 1 << 20, BATCH = 40 };

/* Page-locked host memory, which the GPU reads by itself while the host goes on. */
typedef struct cu_stage {
    void *bytes;
    cudaEvent_t sent;            /* over when the memory may be written again */
} cu_stage;

/* One update of the table in >>BATCH. */
typedef struct cu_update {
    float *w, *m, *v;            /* written (and read), [n]; m and v may be NULL */
    const float *g;              /* read, [n] */
    int64_t n;
    float rate, momentum, decay, trust, b2, c1, c2, eps;
    int form;                    /* of SGD: see k_batch_sgd */
} cu_update;
typedef enum cu_kind { KIND_NONE, KIND_AXPBY, KIND_SGD, KIND_ADAMW, KIND_WATCH } cu_kind;
typedef struct cu_batch {
    int count;
    cu_update of[BATCH];
} cu_batch;
static_assert(sizeof(cu_batch) <= 4000, "a kernel's arguments have 4 KB");

typedef struct cu_device {
    ctr_device api;              /* api.user is this struct */
    ctr_cuda_config config;
    char name[96];
    int sms;                     /* processors of the GPU */
    cudaStream_t stream;
    cublasHandle_t blas;
    cu_stage stage[STAGES];
    int next_stage;
    void *scratch;               /* device memory, valid until the verb ends */
    size_t scratch_size;
    int *bad;                    /* device memory: 1 after a number that is not finite */
    const char *verb;            /* the one that runs, for messages */
    char late[400];              /* an error that had no context yet */
    cu_kind kind;                /* of the updates that wait */
    cu_batch batch;
} cu_device;

/* The first error, with the verb and the call it came from. Without a context it waits for one. */
static void cu_report(cu_device *c, ctr_ctx *ctx, const char *call, const char *text)
{
    char line[400];
    snprintf(line, sizeof line, "%s: %s: %s: %s", c->name, c->verb, call, text);
    if (ctx) ctr_error_set(ctx, CTR_E_DEVICE, line);
    else if (!c->late[0]) memcpy(c->late, line, sizeof line);
}
static int cu_ok(cu_device *c, ctr_ctx *ctx, cudaError_t e, const char *call)
{
    if (e == cudaSuccess) return 1;
    (void)cudaGetLastError(); /* it has been told; a second telling would blame another verb */
    cu_report(c, ctx, call, cudaGetErrorString(e));
    return 0;
}
#define TRY(call, args) cu_ok(c, ctx, call args, #call)

static int cu_flush(cu_device *c, ctr_ctx *ctx);

/* Every verb but those of >>BATCH begins with this: NULL after an error. */
static cu_device *cu_begin_keep(ctr_ctx *ctx, const char *verb)
{
    cu_device *c = (cu_device *)ctr_device_user(ctx);
    c->verb = verb;
    if (c->late[0]) {
        ctr_error_set(ctx, CTR_E_DEVICE, c->late);
        c->late[0] = 0;
        return NULL;
    }
    return TRY(cudaSetDevice, (c->config.index)) ? c : NULL; /* of this thread of the host */
}
static cu_device *cu_begin(ctr_ctx *ctx, const char *verb)
{
    cu_device *c = cu_begin_keep(ctx, verb);
    return c && cu_flush(c, ctx) ? c : NULL;
}

/* Launches with nothing to do are left out; those that were refused are an error. */
#define LAUNCH(kernel, grid, block, ...)                                                           \
    do {                                                                                           \
        CTR_LAUNCH_(kernel, grid, block, 0, c->stream, __VA_ARGS__);                               \
        cu_ok(c, ctx, cudaGetLastError(), "launch of " #kernel);                                   \
    } while (0)

/* Device memory for partial results. It grows seldom; cudaFree waits for the kernels that use the
   old one. */
static void *cu_scratch(cu_device *c, ctr_ctx *ctx, size_t bytes)
{
    if (bytes <= c->scratch_size) return c->scratch;
    bytes += bytes / 4;
    if (!TRY(cudaStreamSynchronize, (c->stream)) || !TRY(cudaFree, (c->scratch))) return NULL;
    c->scratch = NULL;
    c->scratch_size = 0;
    if (!TRY(cudaMalloc, (&c->scratch, bytes))) return NULL;
    c->scratch_size = bytes;
    return c->scratch;
}

static void *v_alloc(void *user, size_t size)
{
    cu_device *c = (cu_device *)user;
    void *p = NULL;
    if (cudaSetDevice(c->config.index) == cudaSuccess && cudaMalloc(&p, size) == cudaSuccess)
        return p;
    (void)cudaGetLastError();
    return NULL; /* the header's error names the size */
}

static void v_free(void *user, void *ptr, size_t size)
{
    cu_device *c = (cu_device *)user;
    ctr_ctx *ctx = NULL;
    (void)size;
    c->verb = "free";
    if (!TRY(cudaSetDevice, (c->config.index))) return;
    cu_flush(c, NULL);
    if (TRY(cudaStreamSynchronize, (c->stream))) TRY(cudaFree, (ptr));
}

static void v_zero(ctr_ctx *ctx, size_t bytes, void *y)
{
    cu_device *c = cu_begin(ctx, "zero");
    if (c && bytes) TRY(cudaMemsetAsync, (y, 0, bytes, c->stream));
}

static void v_copy(ctr_ctx *ctx, size_t bytes, const void *x, void *y)
{
    cu_device *c = cu_begin(ctx, "copy");
    if (c && bytes) TRY(cudaMemcpyAsync, (y, x, bytes, cudaMemcpyDeviceToDevice, c->stream));
}

/* The host's memory may change as soon as this returns, and yet nothing is waited for: the bytes go
   through page-locked memory, a few pieces in turn. */
static void v_upload(ctr_ctx *ctx, size_t bytes, const void *host, void *y)
{
    cu_device *c = cu_begin(ctx, "upload");
    const char *from = (const char *)host;
    char *to = (char *)y;
    while (c && bytes) {
        size_t piece = bytes < (size_t)STAGE_BYTES ? bytes : (size_t)STAGE_BYTES;
        cu_stage *s = &c->stage[c->next_stage];
        c->next_stage = (c->next_stage + 1) % STAGES;
        if (!CTR_FAULT_(7) && !TRY(cudaEventSynchronize, (s->sent))) return;
        memcpy(s->bytes, from, piece);
        if (!TRY(cudaMemcpyAsync, (to, s->bytes, piece, cudaMemcpyHostToDevice, c->stream)) ||
            !TRY(cudaEventRecord, (s->sent, c->stream)))
            return;
        from += piece;
        to += piece;
        bytes -= piece;
    }
}

static void v_download(ctr_ctx *ctx, size_t bytes, const void *x, void *host)
{
    cu_device *c = cu_begin(ctx, "download");
    if (c && bytes && TRY(cudaMemcpyAsync, (host, x, bytes, cudaMemcpyDeviceToHost, c->stream)) &&
        !CTR_FAULT_(8))
        TRY(cudaStreamSynchronize, (c->stream));
}

/* ================================================================================================
   >>LOOPS  grids, and sums within a warp and a block
   ============================================================================================= */

#define FOR_EACH(i, n)                                                                             \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                      \
         i += (int64_t)gridDim.x * blockDim.x)
#define FOR_ROWS(row, rows)                                                                        \
    for (int64_t row = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; row < (rows);               \
         row += (int64_t)gridDim.y * blockDim.y)
#define FOR_COLS(col, cols)                                                                        \
    for (int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; col < (cols);               \
         col += (int64_t)gridDim.x * blockDim.x)

enum { WIDE = 256 };             /* threads of most blocks */

static int64_t cu_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static unsigned cu_least(int64_t a, int64_t most) { return (unsigned)(a < most ? a : most); }

/* For FOR_EACH: enough blocks to fill the GPU several times over. */
static unsigned cu_blocks(const cu_device *c, int64_t n)
{
    return cu_least(cu_up(n, WIDE), (int64_t)c->sms * 32);
}

/* For FOR_ROWS and FOR_COLS: a block is as wide as the matrix, up to 256 (a power of two), and the
   threads that are left make it higher. With one column threads of a warp take 32 rows, which are
   neighbours in memory: reads are whole cache lines in either case. */
typedef struct cu_tiling { dim3 grid, block; } cu_tiling;
static cu_tiling cu_tile(int64_t rows, int64_t cols)
{
    cu_tiling t;
    unsigned width = 1;
    while (width < WIDE && width < cols) width *= 2;
    t.block = dim3(width, WIDE / width);
    t.grid = dim3(cu_least(cu_up(cols, width), 65535), cu_least(cu_up(rows, WIDE / width), 65535));
    return t;
}

static __device__ __forceinline__ float warp_sum(float v)
{
    for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}
static __device__ __forceinline__ double warp_sum(double v)
{
    for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}
static __device__ __forceinline__ float warp_max(float v)
{
    for (int lanes = 16; lanes; lanes /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, v, lanes);
        v = other > v ? other : v;
    }
    return v;
}

/* Over a block of whole warps, at most 32; every thread has the result. */
static __device__ float block_sum(float v)
{
    __shared__ float part[32];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0) part[warp + (CTR_FAULT_(1) ? 32 : 0)] = v;
    if (!CTR_FAULT_(2)) __syncthreads();
    v = warp_sum(lane < warps ? part[lane] : 0.0f);
    if (!CTR_FAULT_(3)) __syncthreads(); /* the next call writes part again */
    return v;
}
static __device__ double block_sum(double v)
{
    __shared__ double part[32];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0) part[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? part[lane] : 0.0);
    __syncthreads();
    return v;
}
static __device__ float block_max(float v)
{
    __shared__ float part[32];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_max(v);
    if (lane == 0) part[warp] = v;
    if (!CTR_FAULT_(10) || warp > 0) __syncthreads();
    v = warp_max(part[lane < warps ? lane : 0]);
    __syncthreads();
    return v;
}

/* For kernels with a block a row: as many threads as pay. */
static unsigned cu_row_threads(int64_t cols)
{
    return cols <= 64 ? 32 : cols <= 512 ? 128 : 256;
}
static unsigned cu_row_blocks(int64_t rows) { return cu_least(rows, INT_MAX); }

/* ================================================================================================
   >>VEC  elementwise
   ============================================================================================= */

static __device__ __forceinline__ float put(float old, float value, int acc)
{
    return acc ? old + value : value;
}

static __global__ void k_fill(int64_t n, float value, float *y)
{
    FOR_EACH(i, n) y[i] = value;
}

static void v_fill(ctr_ctx *ctx, int64_t n, float value, float *y)
{
    cu_device *c = cu_begin(ctx, "fill");
    if (c && n > 0) LAUNCH(k_fill, cu_blocks(c, n), WIDE, n, value, y);
}

static __device__ __forceinline__ float combine(int op, float x, float s)
{
    return op == CTR_ADD ? x + s : op == CTR_SUB ? x - s : op == CTR_MUL ? x * s : x / s;
}

static __global__ void k_binary(int op, int64_t n, const float *x, const float *y, float *z,
                                int acc)
{
    FOR_EACH(i, n) z[i] = put(acc ? z[i] : 0, combine(op, x[i], y[i]), acc);
}

static void v_binary(ctr_ctx *ctx, ctr_binary op, int64_t n, const float *x, const float *y,
                     float *z, int acc)
{
    cu_device *c = cu_begin(ctx, "binary");
    if (c && n > 0) LAUNCH(k_binary, cu_blocks(c, n), WIDE, (int)op, n, x, y, z, acc);
}

/* y[o, m, i] = x[o, m, i] op s[o, i]; rows are the pairs (o, m) */
static __global__ void k_broadcast(int op, int64_t rows, int64_t mid, int64_t inner, const float *x,
                                   const float *s, float *y, int acc)
{
    FOR_ROWS(row, rows)
    {
        const float *line = s + row / mid * inner;
        FOR_COLS(i, inner)
        {
            int64_t at = row * inner + i;
            y[at] = put(acc ? y[at] : 0, combine(op, x[at], line[i]), acc);
        }
    }
}

static void v_broadcast(ctr_ctx *ctx, ctr_binary op, int64_t outer, int64_t mid, int64_t inner,
                        const float *x, const float *s, float *y, int acc)
{
    cu_device *c = cu_begin(ctx, "broadcast");
    cu_tiling t = cu_tile(outer * mid, inner);
    if (c && outer * mid * inner > 0)
        LAUNCH(k_broadcast, t.grid, t.block, (int)op, outer * mid, mid, inner, x, s, y, acc);
}

static __global__ void k_expand(int64_t rows, int64_t mid, int64_t inner, float alpha,
                                const float *x, float *y, int acc)
{
    FOR_ROWS(row, rows)
    {
        FOR_COLS(i, inner)
        {
            int64_t at = row * inner + i;
            y[at] = put(acc ? y[at] : 0, alpha * x[row / mid * inner + i], acc);
        }
    }
}

static void v_expand(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, float alpha,
                     const float *x, float *y, int acc)
{
    cu_device *c = cu_begin(ctx, "expand");
    cu_tiling t = cu_tile(outer * mid, inner);
    if (c && outer * mid * inner > 0)
        LAUNCH(k_expand, t.grid, t.block, outer * mid, mid, inner, alpha, x, y, acc);
}

/* Phi(x), the distribution function of the normal distribution */
static __device__ __forceinline__ float normal_cdf(float x)
{
    return 0.5f * erfcf(-x * 0.70710678f);
}

static __device__ float unary(int op, float x)
{
    switch (op) {
    case CTR_RELU: return x > 0 ? x : 0;
    case CTR_GELU: return x * normal_cdf(x);
    case CTR_SIGMOID: return 1 / (1 + expf(-x));
    case CTR_TANH: return tanhf(x);
    case CTR_EXP: return expf(x);
    case CTR_LOG: return logf(x);
    case CTR_SOFTPLUS: return (x > 0 ? x : 0) + log1pf(expf(x > 0 ? -x : x));
    default: return sqrtf(x);
    }
}

/* The derivative, by the output y where that is enough. */
static __device__ float unary_slope(int op, float x, float y)
{
    switch (op) {
    case CTR_RELU: return y > 0 ? 1.0f : 0.0f;
    case CTR_GELU: return normal_cdf(x) + x * 0.39894228f * expf(-0.5f * x * x);
    case CTR_SIGMOID: return y * (1 - y);
    case CTR_TANH: return 1 - y * y;
    case CTR_EXP: return y;
    case CTR_LOG: return 1 / x;
    case CTR_SOFTPLUS: return -expm1f(-y);
    default: return 0.5f / y;
    }
}

static __global__ void k_unary(int op, int64_t n, const float *x, float *y)
{
    FOR_EACH(i, n) y[i] = unary(op, x[i]);
}

static void v_unary(ctr_ctx *ctx, ctr_unary op, int64_t n, const float *x, float *y)
{
    cu_device *c = cu_begin(ctx, "unary");
    if (c && n > 0) LAUNCH(k_unary, cu_blocks(c, n), WIDE, (int)op, n, x, y);
}

static __global__ void k_unary_grad(int op, int64_t n, const float *x, const float *y,
                                    const float *dy, float *dx, int acc)
{
    FOR_EACH(i, n)
    {
        /* a closed ReLU passes 0, whatever dy holds */
        float slope = unary_slope(op, x ? x[i] : 0, y ? y[i] : 0);
        float g = op == CTR_RELU && slope == 0 ? 0 : dy[i] * slope;
        dx[i] = put(acc ? dx[i] : 0, g, acc);
    }
}

static void v_unary_grad(ctr_ctx *ctx, ctr_unary op, int64_t n, const float *x, const float *y,
                         const float *dy, float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "unary_grad");
    if (c && n > 0) LAUNCH(k_unary_grad, cu_blocks(c, n), WIDE, (int)op, n, x, y, dy, dx, acc);
}

/* ---- moving numbers -------------------------------------------------------------------------- */

typedef struct cu_order { int64_t stride[4], shape[4]; } cu_order; /* strides in x, shape of y */

static __global__ void k_permute(int64_t rows, cu_order p, const float *x, float *y, int acc)
{
    FOR_ROWS(row, rows)          /* the first three dimensions of y */
    {
        int64_t c2 = row % p.shape[2], c1 = row / p.shape[2] % p.shape[1];
        int64_t c0 = row / p.shape[2] / p.shape[1];
        const float *from = x + c0 * p.stride[0] + c1 * p.stride[1] + c2 * p.stride[2];
        FOR_COLS(i, p.shape[3])
        {
            int64_t at = row * p.shape[3] + i;
            y[at] = put(acc ? y[at] : 0, from[i * p.stride[3]], acc);
        }
    }
}

static void v_permute(ctr_ctx *ctx, const int64_t *shape, const int *perm, const float *x, float *y,
                      int acc)
{
    cu_device *c = cu_begin(ctx, "permute");
    int64_t stride[4] = {1, 1, 1, 1}, rows;
    cu_tiling t;
    cu_order p;
    for (int i = 2; i >= 0; i--) stride[i] = stride[i + 1] * shape[i + 1];
    for (int i = 0; i < 4; i++) {
        p.stride[i] = stride[perm[i]];
        p.shape[i] = shape[perm[i]];
    }
    rows = p.shape[0] * p.shape[1] * p.shape[2];
    t = cu_tile(rows, p.shape[3]);
    if (c && rows * p.shape[3] > 0) LAUNCH(k_permute, t.grid, t.block, rows, p, x, y, acc);
}

static __global__ void k_copy_rows(int64_t rows, int64_t cols, const float *x, int64_t ldx,
                                   float *y, int64_t ldy, int acc)
{
    FOR_ROWS(row, rows)
    {
        FOR_COLS(i, cols)
        {
            y[row * ldy + i] = put(acc ? y[row * ldy + i] : 0, x[row * ldx + i], acc);
        }
    }
}

static void v_copy_rows(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *x, int64_t ldx,
                        float *y, int64_t ldy, int acc)
{
    cu_device *c = cu_begin(ctx, "copy_rows");
    cu_tiling t = cu_tile(rows, cols);
    if (c && rows * cols > 0)
        LAUNCH(k_copy_rows, t.grid, t.block, rows, cols, x, ldx, y, ldy, acc);
}

static __global__ void k_gather(int64_t rows, int64_t width, int64_t n, const int32_t *index,
                                const float *x, float *y)
{
    FOR_ROWS(row, n)
    {
        int64_t from = index[row];
        FOR_COLS(i, width) y[row * width + i] = from >= 0 && from < rows ? x[from * width + i] : 0;
    }
}

static void v_gather(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n, const int32_t *index,
                     const float *x, float *y)
{
    cu_device *c = cu_begin(ctx, "gather");
    cu_tiling t = cu_tile(n, width);
    if (c && n * width > 0) LAUNCH(k_gather, t.grid, t.block, rows, width, n, index, x, y);
}

/* dx[row] (+)= the sum of dy[i] over the i with index[i] = row, in their order. Each block has a
   row of dx and looks for it in the index, 128 places at a time; most have none and are skipped. So
   no two blocks write one place, and the order of a sum is the same in every run. */
static __global__ void __launch_bounds__(128)
k_scatter(int64_t rows, int64_t width, int64_t n, const int32_t *index, const float *dy, float *dx,
          int acc)
{
    __shared__ int hit[128];
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        if (!acc)
            for (int64_t i = threadIdx.x; i < width; i += 128) dx[row * width + i] = 0;
        for (int64_t from = 0; from < n; from += 128) {
            int64_t at = from + threadIdx.x;
            int mine = at < n && index[at] == row;
            hit[threadIdx.x] = mine;
            if (__syncthreads_or(mine)) {
                for (int k = 0; k < 128; k++)
                    if (hit[k])
                        for (int64_t i = threadIdx.x; i < width; i += 128)
                            dx[row * width + i] += dy[(from + k) * width + i];
            }
            __syncthreads();
        }
    }
}

static void v_scatter(ctr_ctx *ctx, int64_t rows, int64_t width, int64_t n, const int32_t *index,
                      const float *dy, float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "scatter");
    if (c && rows * width > 0)
        LAUNCH(k_scatter, cu_row_blocks(rows), 128, rows, width, n, index, dy, dx, acc);
}

/* A random number is a function of its place: Philox 4x32-10 as in the header, so the mask is the
   one that the CPU draws. */
typedef struct cu_philox { uint32_t key[2], counter[4]; } cu_philox;

static __device__ void philox(cu_philox p, uint32_t block, uint32_t *out)
{
    uint32_t c0 = block, c1 = p.counter[1], c2 = p.counter[2], c3 = p.counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ p.key[0];
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ p.key[1];
        c3 = (uint32_t)p0;
        p.key[0] += 0x9E3779B9u;
        p.key[1] += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static __global__ void k_dropout(int64_t n, uint32_t threshold, float scale, cu_philox p,
                                 const float *x, float *y, int acc)
{
    FOR_EACH(four, (n + 3) / 4)  /* a Philox block serves four numbers */
    {
        uint32_t word[4];
        philox(p, (uint32_t)four, word);
        for (int64_t i = 4 * four; i < n && i < 4 * four + 4; i++)
            y[i] = put(acc ? y[i] : 0, (word[i & 3] >> 8) >= threshold ? x[i] * scale : 0, acc);
    }
}

static void v_dropout(ctr_ctx *ctx, int64_t n, double p, const uint32_t *key,
                      const uint32_t *counter, const float *x, float *y, int acc)
{
    cu_device *c = cu_begin(ctx, "dropout");
    cu_philox r;
    memcpy(r.key, key, sizeof r.key);
    memcpy(r.counter, counter, sizeof r.counter);
    if (c && n > 0)
        LAUNCH(k_dropout, cu_blocks(c, cu_up(n, 4)), WIDE, n, (uint32_t)(p * 16777216.0),
               (float)(1 / (1 - p)), r, x, y, acc);
}

/* ================================================================================================
   >>REDUCE  sums over rows, columns and everything

   A long sum is cut into parts by its shape; the parts' sums (double) lie side by side in scratch
   memory, and a warp adds them up in a fixed order. Within a part a thread adds RUN numbers as
   float before they go into a double: fast (their reads are all on their way at once), and as exact
   as if all were done in double.
   ============================================================================================= */

enum { PARTS = 1024 };           /* most parts of a sum */
enum { RUN = 8 };                /* numbers that are added up as float */

/* What is summed over the rows of a column: x alone; x - pivot and its square; dy behind ReLU and
   its product with x - mean. */
enum { SUM_PLAIN, SUM_SQUARES, SUM_NORM_GRAD };
typedef struct cu_source {
    const float *x, *mean, *y, *dy;
    int relu;
} cu_source;

template <int SUM>
static __device__ __forceinline__ void sum_terms(const cu_source &s, int64_t at, float pivot,
                                                 float *first, float *second)
{
    if (SUM == SUM_PLAIN) {
        *first += s.x[at];
    } else if (SUM == SUM_SQUARES) {
        float d = s.x[at] - pivot;
        *first += d;
        *second += d * d;
    } else {
        float g = s.relu && !(s.y[at] > 0) ? 0 : s.dy[at];
        *first += g;
        *second += g * (s.x[at] - pivot);
    }
}

/* Sums over the middle of [outer, mid, inner]: partial[which][o * inner + col][part]. A block has
   up to 256 columns and a part of the rows; its threads of one column meet in shared memory. */
template <int SUM>
static __global__ void __launch_bounds__(256)
k_column_sums(int64_t outer, int64_t mid, int64_t inner, int64_t parts, cu_source s,
              double *partial)
{
    __shared__ double sums[2][256];
    int width = (int)blockDim.x, height = (int)blockDim.y;
    int tx = (int)threadIdx.x, ty = (int)threadIdx.y, me = ty * width + tx;
    for (int64_t job = blockIdx.y; job < outer * parts; job += gridDim.y) {
        int64_t o = job / parts, part = job % parts, col = (int64_t)blockIdx.x * width + tx;
        int64_t to = mid * (part + 1) / parts, row = mid * part / parts + ty;
        double first = 0, second = 0;
        float pivot = 0;
        if (col < inner && SUM == SUM_SQUARES) pivot = s.x[col];
        if (col < inner && SUM == SUM_NORM_GRAD) pivot = s.mean[col];
        for (; col < inner && row < to; row += RUN * height) {
            float a = 0, b = 0;
            CTR_UNROLL_
            for (int k = 0; k < RUN; k++)
                if (row + k * height < to)
                    sum_terms<SUM>(s, (o * mid + row + k * height) * inner + col, pivot, &a, &b);
            first += (double)a;
            second += (double)b;
        }
        sums[0][me] = first;
        sums[1][me] = second;
        __syncthreads();
        if (ty == 0 && col < inner) {
            for (int k = 1; k < height; k++) {
                first += sums[0][k * width + tx];
                second += sums[1][k * width + tx];
            }
            partial[(o * inner + col) * parts + part] = first;
            if (SUM != SUM_PLAIN) partial[(inner + col) * parts + part] = second;
        }
        __syncthreads();
    }
}

/* A part of a row of n numbers, or of the product of two: partial[row][part] */
static __global__ void __launch_bounds__(256)
k_row_sums(int64_t rows, int64_t n, int64_t parts, const float *x, const float *y, double *partial)
{
    for (int64_t job = blockIdx.x; job < rows * parts; job += gridDim.x) {
        int64_t row = job / parts, part = job % parts, step = blockDim.x;
        int64_t at = row * n + n * part / parts + threadIdx.x;
        int64_t to = row * n + n * (part + 1) / parts;
        double sum = 0;
        for (; at < to; at += RUN * step) {
            float a = 0;
            CTR_UNROLL_
            for (int k = 0; k < RUN; k++) {
                const int64_t i = at + k * step;
                if (i < to) a += y ? x[i] * y[i] : x[i];
            }
            sum += (double)a;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) partial[job] = sum;
    }
}

/* The sum of n doubles by one warp, in a fixed order. */
static __device__ __forceinline__ double parts_sum(const double *partial, int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x & 31; i < n; i += 32) sum += partial[i];
    return warp_sum(sum);
}

/* Kernels that end a sum have a warp for each of their results. */
enum { ENDS = 4 };               /* results of a block */
#define FOR_WARPS(i, n)                                                                            \
    for (int64_t i = (int64_t)blockIdx.x * ENDS + threadIdx.x / 32; i < (n);                       \
         i += (int64_t)gridDim.x * ENDS)
static unsigned cu_ends(int64_t n) { return cu_least(cu_up(n, ENDS), 65535); }

static __global__ void k_reduce_end(int64_t n, int64_t parts, float alpha, const double *partial,
                                    float *y, int acc)
{
    FOR_WARPS(i, n)
    {
        double sum = parts_sum(partial + i * parts, parts) * (double)alpha;
        if ((threadIdx.x & 31) == 0) y[i] = (float)(acc ? (double)y[i] + sum : sum);
    }
}

/* Parts of a column sum: a thread's share is 4 runs or more, and all blocks together are no more
   than the largest GPU has use for. */
static int64_t cu_column_parts(int64_t outer, int64_t mid, int64_t inner)
{
    cu_tiling t = cu_tile(mid, inner);
    int64_t most = cu_up(2048, outer * t.grid.x), parts = cu_up(mid, 4 * RUN * t.block.y);
    parts = parts < most ? parts : most;
    return parts < 1 ? 1 : parts < (int64_t)PARTS ? parts : (int64_t)PARTS;
}

template <int SUM>
static double *cu_column_sums(cu_device *c, ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner,
                              int64_t parts, cu_source s, size_t more)
{
    cu_tiling t = cu_tile(mid, inner);
    int64_t sums = SUM == SUM_PLAIN ? 1 : 2;
    double *partial = (double *)cu_scratch(
        c, ctx, (size_t)(sums * outer * inner * parts) * sizeof(double) + more);
    t.grid.y = cu_least(outer * parts, 65535);
    if (partial)
        LAUNCH((k_column_sums<SUM>), t.grid, t.block, outer, mid, inner, parts, s, partial);
    return partial;
}

static double *cu_row_sums(cu_device *c, ctr_ctx *ctx, int64_t rows, int64_t n, int64_t parts,
                           const float *x, const float *y)
{
    double *partial = (double *)cu_scratch(c, ctx, (size_t)(rows * parts) * sizeof(double));
    if (partial)
        LAUNCH(k_row_sums, cu_row_blocks(rows * parts), cu_row_threads(n / parts), rows, n, parts,
               x, y, partial);
    return partial;
}
static int64_t cu_row_parts(int64_t rows, int64_t n)
{
    int64_t most = cu_up(1024, rows > 0 ? rows : 1), parts = cu_up(n, 4096);
    parts = parts < most ? parts : most;
    return parts < 1 ? 1 : parts < (int64_t)PARTS ? parts : (int64_t)PARTS;
}

static void v_reduce(ctr_ctx *ctx, int64_t outer, int64_t mid, int64_t inner, float alpha,
                     const float *x, float *y, int acc)
{
    cu_device *c = cu_begin(ctx, "reduce");
    int64_t n = outer * inner, parts;
    cu_source s = {x, NULL, NULL, NULL, 0};
    double *partial;
    if (!c || n <= 0) return;
    parts = inner == 1 ? cu_row_parts(outer, mid) : cu_column_parts(outer, mid, inner);
    if (inner == 1) partial = cu_row_sums(c, ctx, outer, mid, parts, x, NULL);
    else partial = cu_column_sums<SUM_PLAIN>(c, ctx, outer, mid, inner, parts, s, 0);
    if (partial) LAUNCH(k_reduce_end, cu_ends(n), 32 * ENDS, n, parts, alpha, partial, y, acc);
}

static void v_dot(ctr_ctx *ctx, int64_t n, const float *x, const float *y, float *out)
{
    cu_device *c = cu_begin(ctx, "dot");
    int64_t parts = cu_row_parts(1, n);
    double *partial = c ? cu_row_sums(c, ctx, 1, n, parts, x, y) : NULL;
    if (partial) LAUNCH(k_reduce_end, 1, 32, 1, parts, 1.0f, partial, out, 0);
}

/* ================================================================================================
   >>ROWS  softmax, row norms, layer norm, the choice of a column: a block a row
   ============================================================================================= */

#define FOR_BLOCKS(row, rows)                                                                      \
    for (int64_t row = blockIdx.x; row < (rows); row += gridDim.x)
#define FOR_LINE(i, n) for (int64_t i = threadIdx.x; i < (n); i += blockDim.x)

static __global__ void __launch_bounds__(256)
k_softmax(int64_t rows, int64_t n, const float *x, float *y, int logarithm)
{
    FOR_BLOCKS(row, rows)
    {
        const float *from = x + row * n;
        float *to = y + row * n, max = from[0], sum = 0;
        FOR_LINE(i, n) max = from[i] > max ? from[i] : max;
        max = block_max(max);
        FOR_LINE(i, n) sum += expf(from[i] - max);
        sum = block_sum(sum);
        if (logarithm) {
            float shift = max + logf(sum);
            FOR_LINE(i, n) to[i] = from[i] - shift;
        } else {
            FOR_LINE(i, n) to[i] = expf(from[i] - max) / sum;
        }
    }
}

static void v_softmax(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *x, float *y,
                      int logarithm)
{
    cu_device *c = cu_begin(ctx, "softmax");
    if (c && rows * cols > 0)
        LAUNCH(k_softmax, cu_row_blocks(rows), cu_row_threads(cols), rows, cols, x, y, logarithm);
}

/* softmax: dx = y (dy - sum dy y);  logarithm: dx = dy - exp(y) sum dy */
static __global__ void __launch_bounds__(256)
k_softmax_grad(int64_t rows, int64_t n, const float *y, const float *dy, float *dx, int logarithm,
               int acc)
{
    FOR_BLOCKS(row, rows)
    {
        const float *p = y + row * n, *g = dy + row * n;
        float *to = dx + row * n, sum = 0;
        FOR_LINE(i, n) sum += logarithm ? g[i] : g[i] * p[i];
        sum = block_sum(sum);
        FOR_LINE(i, n)
        {
            float value = logarithm ? g[i] - expf(p[i]) * sum : p[i] * (g[i] - sum);
            to[i] = put(acc ? to[i] : 0, value, acc);
        }
    }
}

static void v_softmax_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *y,
                           const float *dy, float *dx, int logarithm, int acc)
{
    cu_device *c = cu_begin(ctx, "softmax_grad");
    if (c && rows * cols > 0)
        LAUNCH(k_softmax_grad, cu_row_blocks(rows), cu_row_threads(cols), rows, cols, y, dy, dx,
               logarithm, acc);
}

static __global__ void __launch_bounds__(256)
k_normalize(int64_t rows, int64_t n, const float *x, float *y, float *inv)
{
    FOR_BLOCKS(row, rows)
    {
        const float *from = x + row * n;
        float square = 0, norm, factor;
        FOR_LINE(i, n) square += from[i] * from[i];
        norm = sqrtf(block_sum(square));
        factor = norm > 1e-18f ? 1 / norm : 0; /* the header's bound: shorter has no direction */
        FOR_LINE(i, n) y[row * n + i] = from[i] * factor;
        if (threadIdx.x == 0) inv[row] = factor;
    }
}

static void v_normalize(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *x, float *y,
                        float *inv)
{
    cu_device *c = cu_begin(ctx, "normalize");
    if (c && rows > 0)
        LAUNCH(k_normalize, cu_row_blocks(rows), cu_row_threads(cols), rows, cols, x, y, inv);
}

/* dx = (dy - y (y . dy)) / |x|: what changes the length is projected out. */
static __global__ void __launch_bounds__(256)
k_normalize_grad(int64_t rows, int64_t n, const float *y, const float *inv, const float *dy,
                 float *dx, int acc)
{
    FOR_BLOCKS(row, rows)
    {
        const float *p = y + row * n, *g = dy + row * n;
        float *to = dx + row * n, along = 0, factor = inv[row];
        FOR_LINE(i, n) along += p[i] * g[i];
        along = block_sum(along);
        FOR_LINE(i, n) to[i] = put(acc ? to[i] : 0, (g[i] - p[i] * along) * factor, acc);
    }
}

static void v_normalize_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *y,
                             const float *inv, const float *dy, float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "normalize_grad");
    if (c && rows * cols > 0)
        LAUNCH(k_normalize_grad, cu_row_blocks(rows), cu_row_threads(cols), rows, cols, y, inv, dy,
               dx, acc);
}

static __global__ void __launch_bounds__(256)
k_layer_norm(int64_t rows, int64_t n, float eps, const float *x, const float *gamma,
             const float *beta, float *y, float *stats)
{
    FOR_BLOCKS(row, rows)
    {
        const float *from = x + row * n;
        float mean = 0, square = 0, rstd;
        FOR_LINE(i, n) mean += from[i];
        mean = block_sum(mean) / (float)n;
        FOR_LINE(i, n) square += (from[i] - mean) * (from[i] - mean);
        rstd = 1 / sqrtf(block_sum(square) / (float)n + eps);
        FOR_LINE(i, n) y[row * n + i] = (from[i] - mean) * rstd * gamma[i] + beta[i];
        if (threadIdx.x == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = rstd;
        }
    }
}

static void v_layer_norm(ctr_ctx *ctx, int64_t rows, int64_t c_, float eps, const float *x,
                         const float *gamma, const float *beta, float *y, float *stats)
{
    cu_device *c = cu_begin(ctx, "layer_norm");
    if (c && rows * c_ > 0)
        LAUNCH(k_layer_norm, cu_row_blocks(rows), cu_row_threads(c_), rows, c_, eps, x, gamma, beta,
               y, stats);
}

/* With g = gamma dy: dx = rstd (g - mean(g) - xhat mean(g xhat)) */
static __global__ void __launch_bounds__(256)
k_layer_norm_grad(int64_t rows, int64_t n, const float *x, const float *stats, const float *gamma,
                  const float *dy, float *dx, int acc, float *xhat_dy)
{
    FOR_BLOCKS(row, rows)
    {
        const float *from = x + row * n, *g = dy + row * n;
        float mean = stats[2 * row], rstd = stats[2 * row + 1], mean_g = 0, mean_gx = 0;
        FOR_LINE(i, n)
        {
            float product = g[i] * (from[i] - mean) * rstd;
            xhat_dy[row * n + i] = product;
            mean_g += gamma[i] * g[i];
            mean_gx += gamma[i] * product;
        }
        if (!dx) continue;       /* of all threads alike */
        mean_g = block_sum(mean_g) / (float)n;
        mean_gx = block_sum(mean_gx) / (float)n;
        FOR_LINE(i, n)
        {
            float value = rstd * (gamma[i] * g[i] - mean_g - (from[i] - mean) * rstd * mean_gx);
            dx[row * n + i] = put(acc ? dx[row * n + i] : 0, value, acc);
        }
    }
}

static void v_layer_norm_grad(ctr_ctx *ctx, int64_t rows, int64_t c_, const float *x,
                              const float *stats, const float *gamma, const float *dy, float *dx,
                              int acc, float *xhat_dy)
{
    cu_device *c = cu_begin(ctx, "layer_norm_grad");
    if (c && rows * c_ > 0)
        LAUNCH(k_layer_norm_grad, cu_row_blocks(rows), cu_row_threads(c_), rows, c_, x, stats,
               gamma, dy, dx, acc, xhat_dy);
}

/* One block: a row costs one read, and there are a few thousand at most. */
static __global__ void __launch_bounds__(256)
k_nll(int64_t rows, int64_t cols, int32_t ignore, const int32_t *index, const float *logp,
      float *out)
{
    double sum = 0, count = 0, bad = 0;
    FOR_LINE(i, rows)
    {
        int32_t at = index[i];
        if (at == ignore) continue;
        if (at < 0 || at >= cols) {
            bad = 1;
            continue;
        }
        sum -= (double)logp[i * cols + at];
        count += 1;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    bad = block_sum(bad);
    if (threadIdx.x == 0) {
        out[0] = (float)(count > 0 ? sum / count : 0);
        out[1] = (float)(bad > 0 ? -1 : count);
    }
}

static void v_nll(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore, const int32_t *index,
                  const float *logp, float *out)
{
    cu_device *c = cu_begin(ctx, "nll");
    if (c) LAUNCH(k_nll, 1, WIDE, rows, cols, ignore, index, logp, out);
}

static __global__ void k_nll_grad(int64_t rows, int64_t cols, int32_t ignore, const int32_t *index,
                                  const float *out, const float *dloss, float *dlogp, int acc)
{
    float step = out[1] > 0 ? -dloss[0] / out[1] : 0;
    FOR_ROWS(row, rows)
    {
        int32_t at = index[row];
        FOR_COLS(i, cols)
        {
            float g = at != ignore && at == i ? step : 0;
            dlogp[row * cols + i] = put(acc ? dlogp[row * cols + i] : 0, g, acc);
        }
    }
}

static void v_nll_grad(ctr_ctx *ctx, int64_t rows, int64_t cols, int32_t ignore,
                       const int32_t *index, const float *out, const float *dloss, float *dlogp,
                       int acc)
{
    cu_device *c = cu_begin(ctx, "nll_grad");
    cu_tiling t = cu_tile(rows, cols);
    if (c && rows * cols > 0)
        LAUNCH(k_nll_grad, t.grid, t.block, rows, cols, ignore, index, out, dloss, dlogp, acc);
}

/* ================================================================================================
   >>NORM  batch normalisation with residual and ReLU behind it, and pooling
   ============================================================================================= */

static __global__ void k_norm_stats_end(int64_t rows, int64_t cols, int64_t parts,
                                        const double *partial, const float *x, float *mean,
                                        float *var)
{
    FOR_WARPS(j, cols)
    {
        double shift = parts_sum(partial + j * parts, parts) / (double)rows;
        double square = parts_sum(partial + (cols + j) * parts, parts) / (double)rows;
        double variance = square - shift * shift;
        if ((threadIdx.x & 31) == 0) {
            mean[j] = (float)((double)x[j] + shift);
            var[j] = (float)(variance > 0 ? variance : 0);
        }
    }
}

static void v_norm_stats(ctr_ctx *ctx, int64_t rows, int64_t cols, const float *x, float *mean,
                         float *var)
{
    cu_device *c = cu_begin(ctx, "norm_stats");
    int64_t parts = cu_column_parts(1, rows, cols);
    cu_source s = {x, NULL, NULL, NULL, 0};
    double *partial;
    if (!c || rows < 1 || cols < 1) return;
    partial = cu_column_sums<SUM_SQUARES>(c, ctx, 1, rows, cols, parts, s, 0);
    if (partial)
        LAUNCH(k_norm_stats_end, cu_ends(cols), 32 * ENDS, rows, cols, parts, partial, x, mean,
               var);
}

/* One number, or four at once: a thread that asks for 16 bytes keeps memory busier. */
template <int W> static __device__ __forceinline__ void load(const float *p, float *v)
{
    if (W == 4) {
        const float4 q = *(const float4 *)p;
        v[0] = q.x, v[1 % W] = q.y, v[2 % W] = q.z, v[3 % W] = q.w;
    } else {
        v[0] = *p;
    }
}
template <int W> static __device__ __forceinline__ void store(float *p, const float *v)
{
    if (W == 4) *(float4 *)p = make_float4(v[0], v[1 % W], v[2 % W], v[3 % W]);
    else *p = v[0];
}

/* y = act(a x + b + residual) with a = gamma / sqrt(var + eps), b = beta - a mean. A thread stays
   in its W columns, so it computes a and b once for all its rows. */
template <int W> static __global__ void __launch_bounds__(256) k_norm(ctr_norm_args n)
{
    FOR_COLS(group, n.c / W)
    {
        const int64_t j = group * W;
        float a[W], b[W];
        for (int i = 0; i < W; i++) {
            a[i] = (n.gamma ? n.gamma[j + i] : 1.0f) / sqrtf(n.var[j + i] + n.eps);
            b[i] = (n.beta ? n.beta[j + i] : 0.0f) - a[i] * n.mean[j + i];
        }
        FOR_ROWS(row, n.rows)
        {
            const int64_t at = row * n.c + j;
            float x[W], r[W] = {};
            load<W>(n.x + at, x);
            if (n.residual) load<W>(n.residual + at, r);
            for (int i = 0; i < W; i++) {
                float z = a[i] * x[i] + b[i] + r[i];
                x[i] = n.relu && !(z > 0) ? 0 : z;
            }
            store<W>(n.y + at, x);
        }
    }
}

/* May all matrices of a norm be read in fours? */
static int cu_norm_fours(const ctr_norm_args *a)
{
    uintptr_t bits = (uintptr_t)a->x | (uintptr_t)a->residual | (uintptr_t)a->y |
                     (uintptr_t)a->dy | (uintptr_t)a->dx | (uintptr_t)a->dresidual;
    return a->c % 4 == 0 && bits % 16 == 0;
}

/* Few enough blocks that a thread has several rows for its one square root. */
static cu_tiling cu_tile_columns(const cu_device *c, int64_t rows, int64_t cols)
{
    cu_tiling t = cu_tile(rows, cols);
    t.grid.y = cu_least(t.grid.y, cu_up((int64_t)c->sms * 16, t.grid.x));
    return t;
}

static void v_norm(ctr_ctx *ctx, const ctr_norm_args *a)
{
    cu_device *c = cu_begin(ctx, "norm");
    cu_tiling t;
    if (!c || a->rows * a->c <= 0) return;
    t = cu_tile_columns(c, a->rows, cu_norm_fours(a) ? a->c / 4 : a->c);
    if (cu_norm_fours(a)) LAUNCH((k_norm<4>), t.grid, t.block, *a);
    else LAUNCH((k_norm<1>), t.grid, t.block, *a);
}

/* With xhat = (x - mean) rstd, G = sum g, P = sum g xhat and N rows: dbeta = G, dgamma = P and
   dx = gamma rstd (g - G / N - xhat P / N) = k0 g + k1 x + k2; k: [3][c] */
static __global__ void k_norm_grad_end(ctr_norm_args n, int64_t parts, const double *partial,
                                       float *k)
{
    FOR_WARPS(j, n.c)
    {
        double rstd = 1 / sqrt((double)n.var[j] + (double)n.eps), count = (double)n.rows, k1 = 0;
        double scale = (n.gamma ? (double)n.gamma[j] : 1) * rstd;
        double sum = parts_sum(partial + j * parts, parts);
        double product = parts_sum(partial + (n.c + j) * parts, parts) * rstd;
        if ((threadIdx.x & 31) != 0) continue;
        if (n.dgamma) n.dgamma[j] = (float)(product + (n.dgamma_acc ? (double)n.dgamma[j] : 0));
        if (n.dbeta) n.dbeta[j] = (float)(sum + (n.dbeta_acc ? (double)n.dbeta[j] : 0));
        if (n.batch_stats) k1 = -scale * rstd * product / count;
        k[j] = (float)scale;
        k[n.c + j] = (float)k1;
        k[2 * n.c + j] =
            (float)(n.batch_stats ? -scale * sum / count - k1 * (double)n.mean[j] : 0);
    }
}

template <int W>
static __global__ void __launch_bounds__(256) k_norm_grad(ctr_norm_args n, const float *k)
{
    FOR_COLS(group, n.c / W)
    {
        const int64_t j = group * W;
        FOR_ROWS(row, n.rows)
        {
            const int64_t at = row * n.c + j;
            float g[W], x[W] = {}, y[W] = {}, dx[W] = {}, dr[W] = {};
            load<W>(n.dy + at, g);
            if (n.relu) load<W>(n.y + at, y);
            if (n.dx) load<W>(n.x + at, x);
            if (n.dx && n.dx_acc) load<W>(n.dx + at, dx);
            if (n.dresidual && n.dresidual_acc) load<W>(n.dresidual + at, dr);
            for (int i = 0; i < W; i++) {
                if (n.relu && !(y[i] > 0)) g[i] = 0;
                dx[i] += k[j + i] * g[i] + k[n.c + j + i] * x[i] + k[2 * n.c + j + i];
                dr[i] += g[i];
            }
            if (n.dx) store<W>(n.dx + at, dx);
            if (n.dresidual) store<W>(n.dresidual + at, dr);
        }
    }
}

static void v_norm_grad(ctr_ctx *ctx, const ctr_norm_args *a)
{
    cu_device *c = cu_begin(ctx, "norm_grad");
    int64_t parts = cu_column_parts(1, a->rows, a->c);
    cu_source s = {a->x, a->mean, a->y, a->dy, a->relu};
    cu_tiling t;
    double *partial;
    float *k;
    if (!c || a->rows * a->c <= 0) return;
    partial = cu_column_sums<SUM_NORM_GRAD>(c, ctx, 1, a->rows, a->c, parts, s,
                                            (size_t)(3 * a->c) * sizeof(float));
    if (!partial) return;
    k = (float *)(partial + 2 * a->c * parts);
    LAUNCH(k_norm_grad_end, cu_ends(a->c), 32 * ENDS, *a, parts, partial, k);
    if (!a->dx && !a->dresidual) return;
    t = cu_tile_columns(c, a->rows, cu_norm_fours(a) ? a->c / 4 : a->c);
    if (cu_norm_fours(a)) LAUNCH((k_norm_grad<4>), t.grid, t.block, *a, (const float *)k);
    else LAUNCH((k_norm_grad<1>), t.grid, t.block, *a, (const float *)k);
}

/* ---- pooling: a thread an output; in a gradient, an input that asks each window over it ------ */

static __global__ void k_max_pool(ctr_pool_shape s, const float *x, float *y, int32_t *which)
{
    FOR_EACH(at, s.n * s.oh * s.ow * s.c)
    {
        int64_t ch = at % s.c, ox = at / s.c % s.ow, oy = at / s.c / s.ow % s.oh;
        const float *image = x + at / (s.oh * s.ow * s.c) * s.h * s.w * s.c;
        int64_t top = oy * s.stride - s.pad, left = ox * s.stride - s.pad, best = -1;
        for (int64_t iy = top < 0 ? 0 : top; iy < top + s.size && iy < s.h; iy++)
            for (int64_t ix = left < 0 ? 0 : left; ix < left + s.size && ix < s.w; ix++) {
                int64_t here = (iy * s.w + ix) * s.c + ch;
                if (best < 0 || image[here] > image[best]) best = here;
            }
        y[at] = image[best];
        which[at] = (int32_t)best;
    }
}

static void v_max_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const float *x, float *y,
                       int32_t *which)
{
    cu_device *c = cu_begin(ctx, "max_pool");
    int64_t n = s->n * s->oh * s->ow * s->c;
    if (c && n > 0) LAUNCH(k_max_pool, cu_blocks(c, n), WIDE, *s, x, y, which);
}

/* Along one side, the windows over place i are from..to-1. */
static __device__ __forceinline__ void pool_windows(const ctr_pool_shape &s, int64_t i,
                                                    int64_t outs, int64_t *from, int64_t *to)
{
    int64_t first = i + s.pad - s.size + 1;
    *from = first <= 0 ? 0 : (first + s.stride - 1) / s.stride;
    *to = (i + s.pad) / s.stride + 1;
    if (*to > outs) *to = outs;
}

static __global__ void k_max_pool_grad(ctr_pool_shape s, const int32_t *which, const float *dy,
                                       float *dx, int acc)
{
    FOR_EACH(at, s.n * s.h * s.w * s.c)
    {
        int64_t ch = at % s.c, ix = at / s.c % s.w, iy = at / s.c / s.w % s.h, y0, y1, x0, x1;
        int64_t image = at / (s.h * s.w * s.c), place = at - image * s.h * s.w * s.c;
        float sum = 0;
        pool_windows(s, iy, s.oh, &y0, &y1);
        pool_windows(s, ix, s.ow, &x0, &x1);
        for (int64_t oy = y0; oy < y1; oy++)
            for (int64_t ox = x0; ox < x1; ox++) {
                int64_t o = ((image * s.oh + oy) * s.ow + ox) * s.c + ch;
                if (which[o] == place) sum += dy[o];
            }
        dx[at] = put(acc ? dx[at] : 0, sum, acc);
    }
}

static void v_max_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const int32_t *which,
                            const float *dy, float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "max_pool_grad");
    int64_t n = s->n * s->h * s->w * s->c;
    if (c && n > 0) LAUNCH(k_max_pool_grad, cu_blocks(c, n), WIDE, *s, which, dy, dx, acc);
}

/* 1 / the number of places that window (oy, ox) has inside the image */
static __device__ __forceinline__ float pool_share(const ctr_pool_shape &s, int64_t oy, int64_t ox)
{
    int64_t top = oy * s.stride - s.pad, left = ox * s.stride - s.pad;
    int64_t bottom = top + s.size < s.h ? top + s.size : s.h;
    int64_t right = left + s.size < s.w ? left + s.size : s.w;
    return 1.0f / (float)((bottom - (top < 0 ? 0 : top)) * (right - (left < 0 ? 0 : left)));
}

static __global__ void k_avg_pool(ctr_pool_shape s, const float *x, float *y)
{
    FOR_EACH(at, s.n * s.oh * s.ow * s.c)
    {
        int64_t ch = at % s.c, ox = at / s.c % s.ow, oy = at / s.c / s.ow % s.oh;
        const float *image = x + at / (s.oh * s.ow * s.c) * s.h * s.w * s.c;
        int64_t top = oy * s.stride - s.pad, left = ox * s.stride - s.pad;
        float sum = 0;
        for (int64_t iy = top < 0 ? 0 : top; iy < top + s.size && iy < s.h; iy++)
            for (int64_t ix = left < 0 ? 0 : left; ix < left + s.size && ix < s.w; ix++)
                sum += image[(iy * s.w + ix) * s.c + ch];
        y[at] = sum * pool_share(s, oy, ox);
    }
}

static void v_avg_pool(ctr_ctx *ctx, const ctr_pool_shape *s, const float *x, float *y)
{
    cu_device *c = cu_begin(ctx, "avg_pool");
    int64_t n = s->n * s->oh * s->ow * s->c;
    if (c && n > 0) LAUNCH(k_avg_pool, cu_blocks(c, n), WIDE, *s, x, y);
}

static __global__ void k_avg_pool_grad(ctr_pool_shape s, const float *dy, float *dx, int acc)
{
    FOR_EACH(at, s.n * s.h * s.w * s.c)
    {
        int64_t ch = at % s.c, ix = at / s.c % s.w, iy = at / s.c / s.w % s.h, y0, y1, x0, x1;
        int64_t image = at / (s.h * s.w * s.c);
        float sum = 0;
        pool_windows(s, iy, s.oh, &y0, &y1);
        pool_windows(s, ix, s.ow, &x0, &x1);
        for (int64_t oy = y0; oy < y1; oy++)
            for (int64_t ox = x0; ox < x1; ox++)
                sum += dy[((image * s.oh + oy) * s.ow + ox) * s.c + ch] * pool_share(s, oy, ox);
        dx[at] = put(acc ? dx[at] : 0, sum, acc);
    }
}

static void v_avg_pool_grad(ctr_ctx *ctx, const ctr_pool_shape *s, const float *dy, float *dx,
                            int acc)
{
    cu_device *c = cu_begin(ctx, "avg_pool_grad");
    int64_t n = s->n * s->h * s->w * s->c;
    if (c && n > 0) LAUNCH(k_avg_pool_grad, cu_blocks(c, n), WIDE, *s, dy, dx, acc);
}

/* ================================================================================================
   >>BATCH  many small updates as one launch

   An optimiser's step is a verb for each parameter, sixty for a ResNet-18, most of them shorter
   than the time that a launch takes. So these verbs only write their arguments into a table; the
   table goes out as one launch when it is full, when another kind of update comes, when an update
   touches what a waiting one writes, or before any other verb. Nobody can see the difference: what
   reads a tensor is a verb.
   ============================================================================================= */

enum { NORM_PARTS = 32 };        /* one for each lane of the warp that adds them up */

static __global__ void k_batch_axpby(cu_batch b)
{
    const cu_update u = b.of[blockIdx.y];
    FOR_EACH(i, u.n) u.w[i] = u.rate * u.g[i] + (u.decay == 0 ? 0 : u.decay * u.w[i]);
}

/* Partial sums of w w, g g and g w for LARS: partial[update][3][NORM_PARTS]. A part has 1024
   numbers or more, so a short parameter has few, and the other blocks only write their zeros. */
static __global__ void __launch_bounds__(256) k_batch_norms(cu_batch b, double *partial)
{
    const cu_update u = b.of[blockIdx.y];
    const int64_t share = u.n > 1024 * NORM_PARTS ? (u.n + NORM_PARTS - 1) / NORM_PARTS : 1024;
    const int64_t from = share * blockIdx.x, to = from + share < u.n ? from + share : u.n;
    double *out = partial + (int64_t)blockIdx.y * 3 * NORM_PARTS + blockIdx.x;
    double ww = 0, gg = 0, gw = 0;
    if (!(u.form & 1)) return;   /* the whole block: this one does not adapt */
    if (from < to) {             /* the whole block, too */
        for (int64_t i = from + threadIdx.x; i < to; i += blockDim.x) {
            double w = (double)u.w[i], g = (double)u.g[i];
            ww += w * w;
            gg += g * g;
            gw += g * w;
        }
        ww = block_sum(ww);
        gg = block_sum(gg);
        gw = block_sum(gw);
    }
    if (threadIdx.x != 0) return;
    out[0] = ww;
    out[NORM_PARTS] = gg;
    out[2 * NORM_PARTS] = gw;
}

/* LARS: trust |w| / |g + decay w|; LARC: trust |w| / (|g| + decay |w| + 1e-8); 1 when either is 0.
   Every block of an update computes the same number. */
static __device__ float trust_ratio(const cu_update &u, const double *partial)
{
    double ww = parts_sum(partial, NORM_PARTS), gg = parts_sum(partial + NORM_PARTS, NORM_PARTS);
    double gw = parts_sum(partial + 2 * NORM_PARTS, NORM_PARTS), decay = (double)u.decay;
    double update = gg + 2 * decay * gw + decay * decay * ww;
    if (u.form & 8)
        return ww > 0 && gg > 0
                   ? (float)((double)u.trust * sqrt(ww) / (sqrt(gg) + decay * sqrt(ww) + 1e-8)) : 1;
    return ww > 0 && update > 0 ? (float)((double)u.trust * sqrt(ww) / sqrt(update)) : 1;
}

/* form: 1 adapts, 2 Nesterov, 4 the rate inside the momentum, 8 LARC; see >>OPTIM of the header */
static __global__ void __launch_bounds__(256) k_batch_sgd(cu_batch b, const double *partial)
{
    const cu_update u = b.of[blockIdx.y];
    const float mu = u.momentum, lr = u.rate;
    float ratio = 1;
    if (u.form & 1) ratio = trust_ratio(u, partial + (int64_t)blockIdx.y * 3 * NORM_PARTS);
    FOR_EACH(i, u.n)
    {
        float w = u.w[i], d = ratio * (u.g[i] + u.decay * w), m;
        if (u.form & 4) {
            m = mu * u.m[i] + lr * d;
            u.w[i] = w - m;
        } else {
            m = mu * u.m[i] + d;
            u.w[i] = w - lr * (u.form & 2 ? d + mu * m : m);
        }
        u.m[i] = m;
    }
}

/* decay: 1 - lr decay; trust: 1 / sqrt(correct2) */
static __global__ void k_batch_adamw(cu_batch b)
{
    const cu_update u = b.of[blockIdx.y];
    FOR_EACH(i, u.n)
    {
        float g = u.g[i], m = u.momentum * u.m[i] + u.c1 * g, v = u.b2 * u.v[i] + u.c2 * g * g;
        u.m[i] = m;
        u.v[i] = v;
        u.w[i] = u.w[i] * u.decay - u.rate * m / (sqrtf(v) * u.trust + u.eps);
    }
}

/* By the bits, so that no compiler option can help. All who write the flag write the same. */
static __global__ void k_batch_watch(cu_batch b, int *bad)
{
    const cu_update u = b.of[blockIdx.y];
    FOR_EACH(i, u.n)
    {
        if ((__float_as_uint(u.g[i]) & 0x7f800000u) == 0x7f800000u) *bad = 1;
    }
}

/* Sends the waiting updates off. Returns 0 with an error. */
static int cu_flush(cu_device *c, ctr_ctx *ctx)
{
    cu_kind kind = c->kind;
    int64_t most = 0;
    int adapt = 0;
    double *partial = NULL;
    dim3 grid;
    c->kind = KIND_NONE;
    if (kind == KIND_NONE) return 1;
    for (int i = 0; i < c->batch.count; i++) {
        most = c->batch.of[i].n > most ? c->batch.of[i].n : most;
        adapt |= kind == KIND_SGD && (c->batch.of[i].form & 1);
    }
    grid = dim3(cu_least(cu_up(most, 4 * WIDE), 1024), (unsigned)c->batch.count);
    if (adapt) {
        partial = (double *)cu_scratch(c, ctx, (size_t)BATCH * 3 * NORM_PARTS * sizeof *partial);
        if (!partial) return 0;
        LAUNCH(k_batch_norms, dim3(NORM_PARTS, (unsigned)c->batch.count), WIDE, c->batch, partial);
    }
    if (kind == KIND_AXPBY) LAUNCH(k_batch_axpby, grid, WIDE, c->batch);
    if (kind == KIND_SGD) LAUNCH(k_batch_sgd, grid, WIDE, c->batch, (const double *)partial);
    if (kind == KIND_ADAMW) LAUNCH(k_batch_adamw, grid, WIDE, c->batch);
    if (kind == KIND_WATCH) LAUNCH(k_batch_watch, grid, WIDE, c->batch, c->bad);
    c->batch.count = 0;
    return !c->late[0] && (!ctx || ctr_error(ctx) == CTR_OK);
}

/* Two ranges of n and k numbers that share memory. */
static int cu_meet(const float *a, int64_t n, const float *b, int64_t k)
{
    return a && b && a < b + k && b < a + n;
}
static int cu_writes(const cu_update *u, const float *x, int64_t n)
{
    return cu_meet(u->w, u->n, x, n) || cu_meet(u->m, u->n, x, n) || cu_meet(u->v, u->n, x, n);
}

/* Puts one more update into the table; those that wait go first if it depends on them. */
static void cu_update_add(cu_device *c, ctr_ctx *ctx, cu_kind kind, const cu_update *u)
{
    int clash = c->kind != KIND_NONE && (c->kind != kind || c->batch.count == BATCH);
    for (int i = 0; i < c->batch.count && c->kind != KIND_NONE && !clash; i++) {
        const cu_update *old = &c->batch.of[i];
        clash = cu_writes(old, u->w, u->n) || cu_writes(old, u->m, u->n) ||
                cu_writes(old, u->v, u->n) || cu_writes(old, u->g, u->n) ||
                cu_writes(u, old->g, old->n);
    }
    if (CTR_FAULT_(9)) clash = c->batch.count == BATCH;
    if (clash && !cu_flush(c, ctx)) return;
    if (c->kind == KIND_NONE) c->batch.count = 0;
    c->kind = kind;
    c->batch.of[c->batch.count++] = *u;
}

static void v_axpby(ctr_ctx *ctx, int64_t n, float a, const float *x, float b, float *y)
{
    cu_device *c = cu_begin_keep(ctx, "axpby");
    cu_update u;
    if (!c || n <= 0) return;
    memset(&u, 0, sizeof u);
    u.n = n;
    u.w = y;
    u.g = x;
    u.rate = a;
    u.decay = b;
    cu_update_add(c, ctx, KIND_AXPBY, &u);
}

static cu_update cu_update_of(const ctr_optim_args *o)
{
    cu_update u;
    memset(&u, 0, sizeof u);
    u.n = o->n;
    u.w = o->w;
    u.m = o->m;
    u.g = o->g;
    return u;
}

static void v_sgd(ctr_ctx *ctx, const ctr_optim_args *o)
{
    cu_device *c = cu_begin_keep(ctx, "sgd");
    cu_update u = cu_update_of(o);
    if (!c || o->n <= 0) return;
    u.rate = (float)o->lr;
    u.momentum = (float)o->momentum;
    u.decay = (float)o->decay;
    u.trust = (float)o->trust;
    u.form = (o->adapt ? 1 : 0) | (o->form == CTR_LARS_INSIDE ? 4 : o->nesterov ? 2 : 0) |
             (o->form == CTR_LARS_LARC ? 8 : 0);
    cu_update_add(c, ctx, KIND_SGD, &u);
}

static void v_adamw(ctr_ctx *ctx, const ctr_optim_args *o)
{
    cu_device *c = cu_begin_keep(ctx, "adamw");
    cu_update u = cu_update_of(o);
    if (!c || o->n <= 0) return;
    u.v = o->v;
    u.momentum = (float)o->beta1;
    u.b2 = (float)o->beta2;
    u.c1 = (float)(1 - o->beta1);
    u.c2 = (float)(1 - o->beta2);
    u.decay = (float)(1 - o->lr * o->decay);
    u.rate = (float)(o->lr / o->correct1);
    u.trust = (float)(1 / sqrt(o->correct2));
    u.eps = (float)o->eps;
    cu_update_add(c, ctx, KIND_ADAMW, &u);
}

static void v_watch(ctr_ctx *ctx, int64_t n, const float *x)
{
    cu_device *c = cu_begin_keep(ctx, "watch");
    cu_update u;
    if (!c || n <= 0) return;
    memset(&u, 0, sizeof u);
    u.n = n;
    u.g = x;
    cu_update_add(c, ctx, KIND_WATCH, &u);
}

static int v_finite(ctr_ctx *ctx, int64_t n, const float *x)
{
    cu_device *c;
    int bad = 0;
    v_watch(ctx, n, x);
    c = cu_begin(ctx, "finite");
    if (!c ||
        !TRY(cudaMemcpyAsync, (&bad, c->bad, sizeof bad, cudaMemcpyDeviceToHost, c->stream)) ||
        !TRY(cudaMemsetAsync, (c->bad, 0, sizeof bad, c->stream)) ||
        !TRY(cudaStreamSynchronize, (c->stream)))
        return 1;                /* the error says more than a 0 would */
    return !bad;
}

/* ================================================================================================
   >>GEMM  matrix products by cuBLAS
   ============================================================================================= */

static cublasComputeType_t cu_compute(ctr_cuda_math math)
{
    return math == CTR_CUDA_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32
           : math == CTR_CUDA_BF16 ? CUBLAS_COMPUTE_32F_FAST_16BF
                                   : CUBLAS_COMPUTE_32F_PEDANTIC;
}

/* C = alpha op(A) op(B) + beta C, row by row. cuBLAS counts column by column, and to it a row-major
   matrix is its transpose: so it is asked for C' = op(B)' op(A)'. */
static int cu_gemm(cu_device *c, ctr_ctx *ctx, ctr_cuda_math math, int ta, int tb, int64_t m,
                   int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                   int64_t ldb, float beta, float *out, int64_t ldc)
{
    cublasStatus_t s;
    if (m <= 0 || n <= 0) return 1;
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX || lda > INT_MAX || ldb > INT_MAX ||
        ldc > INT_MAX) {
        cu_report(c, ctx, "cublasGemmEx", "a side of more than 2147483647 numbers");
        return 0;
    }
    s = cublasGemmEx(c->blas, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                     (int)n, (int)m, (int)k, &alpha, b, CUDA_R_32F, (int)ldb, a, CUDA_R_32F,
                     (int)lda, &beta, out, CUDA_R_32F, (int)ldc, cu_compute(math),
                     CUBLAS_GEMM_DEFAULT);
    if (s == CUBLAS_STATUS_SUCCESS) return 1;
    cu_report(c, ctx, "cublasGemmEx", cublasGetStatusString(s));
    return 0;
}

static void v_gemm(ctr_ctx *ctx, int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *out,
                   int64_t ldc)
{
    cu_device *c = cu_begin(ctx, "gemm");
    if (c) cu_gemm(c, ctx, c->config.math, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, out, ldc);
}

/* ================================================================================================
   >>CONV  convolutions as matrix products without the matrix

   A convolution is a product C[M, N] = A[M, K] B[K, N] whose A would be the unfolded image:
       forward   M: output pixels   N: oc   K: (tap, c)    A: the input under tap     B: the weights
       input     M: input pixels    N: c    K: (tap, oc)   A: dy over tap             B: weights'
       weight    M: (tap, c)        N: oc   K: out pixels  A: the input under tap     B: dy
   A is nine times the image and is never in memory: whoever needs a place of A computes which pixel
   that is (an address, or 0 beyond the border) and reads the image.

   A block of 256 threads has a tile of C, 128 x 128, in its registers: 64 numbers a thread. It
   goes along K in steps of 16. In a step the block brings 128 x 16 numbers of A and 16 x 128 of B
   into shared memory, and each thread multiplies what it needs of them: every number fetched is
   used 128 times. Shared memory has two such pairs; while one is multiplied, the next step's
   numbers are already on their way to registers, and are put into the other. So a step has one
   barrier. Where N is at most 64, or tiles would be fewer than the GPU has processors, a tile is
   128 x 64 and a block has 128 threads: one half of the other.

   What multiplies is a choice of its own: mma_step below, in plain fp32 or on the tensor cores.
   Numbers are rounded to what those take, TF32 or bf16, once, on their way into shared memory.
   ============================================================================================= */

enum { PASS_FORWARD, PASS_INPUT, PASS_WEIGHT };
enum { BM = 128, BK = 16 };      /* rows of a tile, which has BN = 64 or 128 columns and 2 BN
                                    threads; a step along K */
enum { EDGE = 8 };               /* rows in shared memory are 8 banks apart: no two lanes of a
                                    fragment meet in one bank, see mma_step */

typedef struct cu_conv {
    int n, h, w, c, kh, kw, oc, stride, pad, oh, ow;
    int m, k;                    /* C is [m, N]; of PASS_INPUT: of the phase */
    const float *a, *b;          /* the operands: image or dy, and weights or dy */
    float *out;
    int parts;                   /* of PASS_WEIGHT: K is cut into so many, each with its own C */
    int acc;
} cu_conv;

/* PASS_INPUT with a stride s: an input pixel is under a tap only if (pixel + pad - tap) is a
   multiple of s, so pixels fall into s x s phases with taps of their own. A phase is a convolution
   of stride 1 over dy, and no product is spent on a zero. blockIdx.z is the phase. */
typedef struct phase { int y, x, rows, cols, taps_y, taps_x, first_y, first_x; } phase;
static __device__ __forceinline__ phase phase_of(const cu_conv &s, int which)
{
    phase p;
    p.y = which / s.stride;      /* (pixel + pad) % stride of its pixels; also its first tap */
    p.x = which % s.stride;
    p.first_y = ((p.y - s.pad) % s.stride + s.stride) % s.stride;
    p.first_x = ((p.x - s.pad) % s.stride + s.stride) % s.stride;
    p.rows = p.first_y < s.h ? (s.h - p.first_y - 1) / s.stride + 1 : 0;
    p.cols = p.first_x < s.w ? (s.w - p.first_x - 1) / s.stride + 1 : 0;
    p.taps_y = p.y < s.kh ? (s.kh - p.y - 1) / s.stride + 1 : 0;
    p.taps_x = p.x < s.kw ? (s.kw - p.x - 1) / s.stride + 1 : 0;
    return p;
}

/* A place k along K, as K is ordered: k = (high * mids + mid) * lows + low. Of taps and channels:
   low is the channel, (high, mid) the tap's (y, x). Of pixels: (high, mid, low) = (image, y, x). A
   step needs no division. */
typedef struct walk { int k, low, mid, high; } walk;
typedef struct radix { int lows, mids; } radix;

template <int PASS>
static __device__ __forceinline__ radix radix_of(const cu_conv &s, const phase &p)
{
    radix r = {PASS == PASS_FORWARD ? s.c : PASS == PASS_INPUT ? s.oc : s.ow,
               PASS == PASS_FORWARD ? s.kw : PASS == PASS_INPUT ? p.taps_x : s.oh};
    if (r.mids < 1) r.mids = 1;  /* a phase without taps: K is 0 */
    return r;
}

static __device__ __forceinline__ walk walk_at(int k, radix r)
{
    walk w = {k, k % r.lows, k / r.lows % r.mids, k / r.lows / r.mids};
    return w;
}

static __device__ __forceinline__ walk walk_on(walk w, int by, radix r)
{
    w.k += by;
    for (w.low += by; w.low >= r.lows; w.low -= r.lows)
        if (++w.mid == r.mids) w.mid = 0, w.high++;
    return w;
}

/* Where a row of A begins. Forward, input: in which image, and the pixel under tap (0, 0). Weight:
   the row is a tap and a channel; image is that channel of the first pixel, y and x the tap's way
   from an output's window to its pixel. */
typedef struct spot { const float *image; int m, y, x, live; } spot;

template <int PASS>
static __device__ __forceinline__ spot spot_of(const cu_conv &s, const phase &p, int m)
{
    spot at = {s.a, m, 0, 0, m < s.m};
    if (!at.live) return at;
    if (PASS == PASS_WEIGHT) {
        at.image = s.a + m % s.c;
        at.y = m / s.c / s.kw - s.pad;
        at.x = m / s.c % s.kw - s.pad;
    } else if (PASS == PASS_FORWARD) {
        at.x = m % s.ow * s.stride - s.pad;
        at.y = m / s.ow % s.oh * s.stride - s.pad;
        at.image = s.a + (int64_t)(m / (s.ow * s.oh)) * s.h * s.w * s.c;
    } else {                     /* the last output whose window begins at or before the pixel */
        at.x = (p.first_x + m % p.cols * s.stride + s.pad) / s.stride;
        at.y = (p.first_y + m / p.cols % p.rows * s.stride + s.pad) / s.stride;
        at.image = s.a + (int64_t)(m / (p.cols * p.rows)) * s.oh * s.ow * s.oc;
    }
    return at;
}

static __device__ __forceinline__ float4 zero4(void) { return make_float4(0, 0, 0, 0); }

/* Four numbers of A of a row, from k on. VEC: channels come in fours, so they are one read. */
template <int PASS, bool VEC>
static __device__ __forceinline__ float4 a_along_k(const cu_conv &s, const spot &at, walk k,
                                                   radix r)
{
    const int h = PASS == PASS_FORWARD ? s.h : s.oh, w = PASS == PASS_FORWARD ? s.w : s.ow;
    float4 v = zero4();
    float *out = &v.x;
    for (int i = 0; i < (VEC ? 1 : 4); i++, k = walk_on(k, 1, r)) {
        int y = PASS == PASS_FORWARD ? at.y + k.high : at.y - k.high;
        int x = PASS == PASS_FORWARD ? at.x + k.mid : at.x - k.mid;
        if (!at.live || k.k >= s.k) break;
        if (y < 0 || y >= h || x < 0 || x >= w) continue;
        const float *from = at.image + ((int64_t)y * w + x) * r.lows + k.low;
        if (VEC) return *(const float4 *)from;
        out[i] = *from;
    }
    return v;
}

/* PASS_WEIGHT: four numbers of a column of A, which is an output pixel: rows m .. m + 3. */
template <bool VEC>
static __device__ __forceinline__ float4 a_along_m(const cu_conv &s, spot at, walk pixel, int end)
{
    const phase none = {0, 0, 0, 0, 0, 0, 0, 0};
    float4 v = zero4();
    float *out = &v.x;
    for (int i = 0; i < (VEC ? 1 : 4); i++, at = spot_of<PASS_WEIGHT>(s, none, at.m + 1)) {
        int y = pixel.mid * s.stride + at.y, x = pixel.low * s.stride + at.x;
        if (!at.live || pixel.k >= end) break;
        if (y < 0 || y >= s.h || x < 0 || x >= s.w) continue;
        const float *from = at.image + (((int64_t)pixel.high * s.h + y) * s.w + x) * s.c;
        if (VEC) return *(const float4 *)from;
        out[i] = *from;
    }
    return v;
}

/* Four numbers of B: of row k the columns n .. n + 3. */
template <bool VEC>
static __device__ __forceinline__ float4 b_along_n(const cu_conv &s, int k, int end, int n)
{
    float4 v = zero4();
    float *out = &v.x;
    const float *from = s.b + (int64_t)k * s.oc + n;
    if (k >= end || n >= s.oc) return v;
    if (VEC) v = *(const float4 *)from;
    else
        for (int i = 0; i < 4 && n + i < s.oc; i++) out[i] = from[i];
    return v;
}

/* PASS_INPUT: of column n (an input channel) the rows k .. k + 3, in the phase's taps. */
template <bool VEC>
static __device__ __forceinline__ float4 b_along_k(const cu_conv &s, const phase &p, walk k,
                                                   radix r, int n)
{
    float4 v = zero4();
    float *out = &v.x;
    for (int i = 0; i < (VEC ? 1 : 4); i++, k = walk_on(k, 1, r)) {
        int ky = p.y + k.high * s.stride, kx = p.x + k.mid * s.stride;
        if (n >= s.c || k.k >= s.k) break;
        const float *from = s.b + ((int64_t)(ky * s.kw + kx) * s.c + n) * s.oc + k.low;
        if (VEC) return *(const float4 *)from;
        out[i] = *from;
    }
    return v;
}

/* ---- tiles in shared memory ------------------------------------------------------------------ */

/* What lies there: floats, TF32, or two of bf16, neighbours along K, in a word. A tile of A has
   ROWS(MATH) rows of BM + EDGE words, one of B rows of BN + EDGE. */
template <int MATH> struct words { typedef uint32_t word; };
template <> struct words<CTR_CUDA_FP32> { typedef float word; };
#define ROWS(math) ((math) == CTR_CUDA_BF16 ? BK / 2 : BK)

template <class W> struct __align__(16) four { W at[4]; };

static __device__ __forceinline__ void word_of(float x, float *w) { *w = x; }
static __device__ __forceinline__ void word_of(float x, uint32_t *w) { *w = ctr_to_tf32(x); }
static __device__ __forceinline__ void words_of(float4 f, four<float> *w)
{
    four<float> v = {{f.x, f.y, f.z, f.w}};
    *w = v;
}
static __device__ __forceinline__ void words_of(float4 f, four<uint32_t> *w)
{
    four<uint32_t> v = {{ctr_to_tf32(f.x), ctr_to_tf32(f.y), ctr_to_tf32(f.z), ctr_to_tf32(f.w)}};
    *w = v;
}

/* Rows k and k + 1 of a tile, k even: a number of each, or four side by side. */
template <int MATH, int LINE, class W>
static __device__ __forceinline__ void tile_put(W (*tile)[LINE], int k, int at, float even,
                                                float odd)
{
    if (MATH == CTR_CUDA_BF16) {
        tile[k / 2][at] = (W)ctr_to_bf16x2(even, odd);
    } else {
        word_of(even, &tile[k][at]);
        word_of(odd, &tile[k + 1][at]);
    }
}
template <int MATH, int LINE, class W>
static __device__ __forceinline__ void tile_put4(W (*tile)[LINE], int k, int at, float4 even,
                                                 float4 odd)
{
    if (MATH == CTR_CUDA_BF16) {
        four<W> v = {{(W)ctr_to_bf16x2(even.x, odd.x), (W)ctr_to_bf16x2(even.y, odd.y),
                      (W)ctr_to_bf16x2(even.z, odd.z), (W)ctr_to_bf16x2(even.w, odd.w)}};
        *(four<W> *)&tile[k / 2][at] = v;
    } else {
        words_of(even, (four<W> *)&tile[k][at]);
        words_of(odd, (four<W> *)&tile[k + 1][at]);
    }
}

/* Which place of the tile accumulator i of a thread is. Threads from 128 on have columns 64 .. 127.
   fp32: the tile is 16 x 8 threads, each with 8 x 8 numbers: rows 4 ty .. 4 ty + 3 and the same 64
   further down, columns likewise 32 further on. So the eight threads of a row read 32 neighbouring
   numbers of B, all banks once.
   Tensor cores: a warp has 32 rows, as 2 x 8 fragments of 16 x 8; a fragment's numbers lie with the
   lanes as the instruction wants it: lane = 4 g + t has (g, 2t), (g, 2t + 1) and the same 8 rows
   further down. */
template <int MATH>
static __device__ __forceinline__ void mma_place(int thread, int i, int *row, int *col)
{
    const int half = thread / 128 * 64;
    thread %= 128;
    if (MATH == CTR_CUDA_FP32) {
        int r = i / 8, q = i % 8;
        *row = thread / 8 * 4 + (r & 3) + (r >> 2) * 64;
        *col = half + thread % 8 * 4 + (q & 3) + (q >> 2) * 32;
    } else {
        int lane = thread & 31, fragment = i / 4, q = i % 4;
        *row = thread / 32 * 32 + fragment / 8 * 16 + (lane >> 2) + (q >> 1) * 8;
        *col = half + fragment % 8 * 8 + (lane & 3) * 2 + (q & 1);
    }
}

/* acc += the tile of A (transposed: [k][m]) times the tile of B ([k][n]), plain. */
template <int MATH, int LA, int LB>
static __device__ __forceinline__ void mma_step(int thread, const float (*a)[LA],
                                                const float (*b)[LB], float *acc)
{
    const int row = thread % 128 / 8 * 4, col = thread / 128 * 64 + thread % 8 * 4;
    for (int k = 0; k < BK; k++) {
        const float4 a0 = *(const float4 *)&a[k][row], a1 = *(const float4 *)&a[k][row + 64];
        const float4 b0 = *(const float4 *)&b[k][col], b1 = *(const float4 *)&b[k][col + 32];
        const float u[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
        const float v[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
        CTR_UNROLL_
        for (int r = 0; r < 8; r++)
            CTR_UNROLL_
            for (int q = 0; q < 8; q++) acc[r * 8 + q] += u[r] * v[q];
    }
}

/* The same by mma.m16n8k8 in TF32 or mma.m16n8k16 in bf16: eight rows of words either way, and the
   words of a lane are the same, since one of bf16 holds the neighbours in k that the instruction
   wants as a pair. A lane reads a[t][g]: t picks one of four rows that are 8 banks apart, g one of
   8 columns, 32 banks in all. */
template <int MATH, int LA, int LB>
static __device__ __forceinline__ void mma_step(int thread, const uint32_t (*a)[LA],
                                                const uint32_t (*b)[LB], float *acc)
{
    const int row = thread % 128 / 32 * 32, col = thread / 128 * 64;
    const int g = thread >> 2 & 7, t = thread & 3;
    for (int k = 0; k < ROWS(MATH); k += 8) {
        uint32_t u[2][4], v[8][2];
        CTR_UNROLL_
        for (int i = 0; i < 2; i++)
            CTR_UNROLL_
            for (int q = 0; q < 4; q++)
                u[i][q] = a[k + t + (q >> 1) * 4][row + i * 16 + g + (q & 1) * 8];
        CTR_UNROLL_
        for (int j = 0; j < 8; j++)
            CTR_UNROLL_
            for (int q = 0; q < 2; q++) v[j][q] = b[k + t + q * 4][col + j * 8 + g];
        CTR_UNROLL_
        for (int i = 0; i < 2; i++)
            CTR_UNROLL_
            for (int j = 0; j < 8; j++) {
                float *d = acc + (i * 8 + j) * 4;
                if (MATH == CTR_CUDA_TF32) ctr_mma_tf32(d, u[i], v[j]);
                else ctr_mma_bf16(d, u[i], v[j]);
            }
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

/* What a thread fetches of the next step: of A 256 / BN times four numbers, of B two times. Along
   K, a warp has four neighbouring k of 32 rows: its threads write to 32 banks. Along M or N,
   threads side by side have neighbours, whole cache lines, of two rows of K: pairs for bf16. */
template <int BN> struct cargo { float4 a[256 / BN], b[2]; };

/* Which row of A a thread's fetch i is of: of PASS_WEIGHT the first of four, for two fetches. */
template <int PASS> static __device__ __forceinline__ int a_row(int thread, int i)
{
    const int half = thread / 128 * 64;
    return half + (PASS == PASS_WEIGHT ? thread % 16 * 4 + i / 2 * 64 : thread % 32 + i * 32);
}
/* and where along K a thread begins */
template <int PASS> static __device__ __forceinline__ int a_begin(int thread)
{
    return PASS == PASS_WEIGHT ? thread % 128 / 16 * 2 : thread % 128 / 32 * 4;
}
template <int PASS, int BN> static __device__ __forceinline__ int b_begin(int thread)
{
    return PASS == PASS_INPUT ? thread / BN * 4 : thread / (BN / 4) * 2;
}
template <int PASS, int BN> static __device__ __forceinline__ int b_column(int thread)
{
    return PASS == PASS_INPUT ? thread % BN : thread % (BN / 4) * 4;
}

/* ka, kb: where the thread is along K, in A and in B. */
template <int PASS, bool VEC, int BN>
static __device__ __forceinline__ void cargo_fetch(const cu_conv &s, const phase &p, const spot *at,
                                                   walk ka, walk kb, int n, int end, radix r,
                                                   cargo<BN> *f)
{
    const walk odd = walk_on(ka, 1, r);
    CTR_UNROLL_
    for (int i = 0; i < 256 / BN; i++)
        f->a[i] = PASS == PASS_WEIGHT ? a_along_m<VEC>(s, at[i], i % 2 ? odd : ka, end)
                                      : a_along_k<PASS, VEC>(s, at[i], ka, r);
    CTR_UNROLL_
    for (int i = 0; i < 2; i++)
        f->b[i] = PASS == PASS_INPUT
                      ? b_along_k<VEC>(s, p, i ? walk_on(kb, 8, r) : kb, r, n)
                      : b_along_n<VEC>(s, kb.k + i, end, n);
}

template <int PASS, int MATH, int BN, class W>
static __device__ __forceinline__ void cargo_store(const cargo<BN> &f, int thread,
                                                   W (*a)[BM + EDGE], W (*b)[BN + EDGE])
{
    const int ka = a_begin<PASS>(thread), kb = b_begin<PASS, BN>(thread);
    const int n = b_column<PASS, BN>(thread);
    CTR_UNROLL_
    for (int i = 0; i < 256 / BN; i++) {
        int m = a_row<PASS>(thread, i);
        if (PASS == PASS_WEIGHT) {
            if (i % 2 == 0) tile_put4<MATH>(a, ka, m, f.a[i], f.a[i + 1]);
        } else {
            if (CTR_FAULT_(4)) m += 40;
            tile_put<MATH>(a, ka, m, f.a[i].x, f.a[i].y);
            tile_put<MATH>(a, ka + 2, m, f.a[i].z, f.a[i].w);
        }
    }
    if (PASS != PASS_INPUT) tile_put4<MATH>(b, kb, n, f.b[0], f.b[1]);
    CTR_UNROLL_
    for (int i = 0; i < 2 && PASS == PASS_INPUT; i++) {
        tile_put<MATH>(b, kb + 8 * i, n, f.b[i].x, f.b[i].y);
        tile_put<MATH>(b, kb + 8 * i + 2, n, f.b[i].z, f.b[i].w);
    }
}

/* Where C[m, n] lies in the output. */
template <int PASS>
static __device__ __forceinline__ int64_t out_place(const cu_conv &s, const phase &p, int m, int n)
{
    int64_t image, y, x;
    if (PASS != PASS_INPUT) return (int64_t)m * s.oc + n;
    x = p.first_x + m % p.cols * s.stride;
    y = p.first_y + m / p.cols % p.rows * s.stride;
    image = m / (p.cols * p.rows);
    return ((image * s.h + y) * s.w + x) * s.c + n;
}

/* Registers are held to what lets two blocks of 256 threads, or three of 128, share a processor:
   while one waits for memory the other multiplies. */
template <int PASS, int MATH, bool VEC, int BN>
static __global__ void __launch_bounds__(2 * BN, BN == 128 ? 2 : 3) k_conv(cu_conv s)
{
    typedef typename words<MATH>::word word;
    __shared__ __align__(16) word a[2][ROWS(MATH)][BM + EDGE];
    __shared__ __align__(16) word b[2][ROWS(MATH)][BN + EDGE];
    const int thread = (int)threadIdx.x, m0 = (int)blockIdx.x * BM, n0 = (int)blockIdx.y * BN;
    const int columns = PASS == PASS_INPUT ? s.c : s.oc, z = (int)blockIdx.z;
    const int n = n0 + b_column<PASS, BN>(thread);
    phase p = {0, 0, 0, 0, 0, 0, 0, 0};
    spot at[256 / BN];
    cargo<BN> next;
    float acc[64];
    int k0 = 0, end, now = 0;
    float *out = s.out;
    radix r;
    walk ka, kb;
    if (PASS == PASS_INPUT) {
        p = phase_of(s, z);
        s.m = s.n * p.rows * p.cols;
        s.k = p.taps_y * p.taps_x * s.oc;
        if (m0 >= s.m) return;   /* phases differ in size; the whole block leaves */
    }
    end = s.k;
    if (PASS == PASS_WEIGHT) {
        k0 = (int)((int64_t)s.k * z / s.parts);
        end = (int)((int64_t)s.k * (z + 1) / s.parts);
        out += (int64_t)z * s.m * s.oc;
    }
    CTR_UNROLL_
    for (int i = 0; i < 256 / BN; i++) at[i] = spot_of<PASS>(s, p, m0 + a_row<PASS>(thread, i));
    r = radix_of<PASS>(s, p);
    ka = walk_at(k0 + a_begin<PASS>(thread), r);
    kb = walk_at(k0 + b_begin<PASS, BN>(thread), r);
    CTR_UNROLL_
    for (int i = 0; i < 64; i++) acc[i] = 0;
    cargo_fetch<PASS, VEC>(s, p, at, ka, kb, n, end, r, &next);
    cargo_store<PASS, MATH>(next, thread, a[0], b[0]);
    __syncthreads();
    for (; k0 < end; k0 += BK) {
        const bool more = k0 + BK < end;
        if (more) {
            ka = walk_on(ka, BK, r);
            kb = walk_on(kb, BK, r);
            cargo_fetch<PASS, VEC>(s, p, at, ka, kb, n, end, r, &next);
        }
        mma_step<MATH, BM + EDGE, BN + EDGE>(thread, a[now], b[now], acc);
        if (more) cargo_store<PASS, MATH>(next, thread, a[now ^ 1], b[now ^ 1]);
        now ^= 1;
        if (!CTR_FAULT_(5)) __syncthreads();
    }
    CTR_UNROLL_
    for (int i = 0; i < 64; i++) {
        int row, col;
        mma_place<MATH>(thread, i, &row, &col);
        if (m0 + row >= s.m || n0 + col >= columns) continue;
        int64_t place = out_place<PASS>(s, p, m0 + row, n0 + col + (CTR_FAULT_(6) ? 1 : 0));
        out[place] = put(s.acc ? out[place] : 0, acc[i], s.acc);
    }
}

/* dw (+)= the parts of a weight gradient, in their order */
static __global__ void k_conv_parts(int64_t n, int parts, const float *partial, float *dw, int acc)
{
    FOR_EACH(i, n)
    {
        float sum = 0;
        for (int p = 0; p < parts; p++) sum += partial[p * n + i];
        dw[i] = put(acc ? dw[i] : 0, sum, acc);
    }
}

/* ---- the verbs ------------------------------------------------------------------------------- */

/* Fills in s; 0 with an error when the kernel's int would not hold the number of pixels. */
static int cu_conv_init(cu_device *c, ctr_ctx *ctx, cu_conv *s, const ctr_conv_shape *from)
{
    const int64_t most = INT_MAX / 2;
    if (from->n * from->h * from->w > most || from->n * from->oh * from->ow > most ||
        from->kh * from->kw * from->c > most || from->kh * from->kw * from->oc > most) {
        cu_report(c, ctx, "shape", "a convolution over more than 1073741823 pixels");
        return 0;
    }
    memset(s, 0, sizeof *s);
    s->n = (int)from->n;
    s->h = (int)from->h;
    s->w = (int)from->w;
    s->c = (int)from->c;
    s->kh = (int)from->kh;
    s->kw = (int)from->kw;
    s->oc = (int)from->oc;
    s->stride = (int)from->stride;
    s->pad = (int)from->pad;
    s->oh = (int)from->oh;
    s->ow = (int)from->ow;
    return 1;
}

static int cu_conv_is_gemm(const ctr_conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->stride == 1 && s->pad == 0;
}

template <int PASS, int MATH, int BN>
static void cu_conv_launch(cu_device *c, ctr_ctx *ctx, const cu_conv *s, int64_t m, int64_t n,
                           int64_t z)
{
    const uintptr_t bits = (uintptr_t)s->a | (uintptr_t)s->b;
    const dim3 grid((unsigned)cu_up(m, BM), (unsigned)cu_up(n, BN), (unsigned)z);
    if (s->c % 4 == 0 && s->oc % 4 == 0 && bits % 16 == 0)
        LAUNCH((k_conv<PASS, MATH, true, BN>), grid, 2 * BN, *s);
    else
        LAUNCH((k_conv<PASS, MATH, false, BN>), grid, 2 * BN, *s);
}
template <int PASS, int MATH>
static void cu_conv_math(cu_device *c, ctr_ctx *ctx, const cu_conv *s, int64_t m, int64_t n,
                         int64_t z)
{
    if (n > 64 && cu_up(m, BM) * cu_up(n, 128) * z >= c->sms)
        cu_conv_launch<PASS, MATH, 128>(c, ctx, s, m, n, z);
    else
        cu_conv_launch<PASS, MATH, 64>(c, ctx, s, m, n, z);
}
template <int PASS>
static void cu_conv_run(cu_device *c, ctr_ctx *ctx, const cu_conv *s, int64_t m, int64_t n,
                        int64_t z)
{
    if (m == 0 || n == 0 || z == 0) return;
    if (c->config.math == CTR_CUDA_BF16) cu_conv_math<PASS, CTR_CUDA_BF16>(c, ctx, s, m, n, z);
    else if (c->config.math == CTR_CUDA_TF32) cu_conv_math<PASS, CTR_CUDA_TF32>(c, ctx, s, m, n, z);
    else cu_conv_math<PASS, CTR_CUDA_FP32>(c, ctx, s, m, n, z);
}

static void v_conv_forward(ctr_ctx *ctx, const ctr_conv_shape *shape, const float *x,
                           const float *w, float *y)
{
    cu_device *c = cu_begin(ctx, "conv_forward");
    int64_t pixels = shape->n * shape->oh * shape->ow;
    cu_conv s;
    if (!c || !cu_conv_init(c, ctx, &s, shape)) return;
    if (cu_conv_is_gemm(shape)) {
        cu_gemm(c, ctx, c->config.math, 0, 0, pixels, s.oc, s.c, 1, x, s.c, w, s.oc, 0, y, s.oc);
        return;
    }
    s.a = x;
    s.b = w;
    s.out = y;
    s.m = (int)pixels;
    s.k = s.kh * s.kw * s.c;
    cu_conv_run<PASS_FORWARD>(c, ctx, &s, pixels, s.oc, 1);
}

static void v_conv_input(ctr_ctx *ctx, const ctr_conv_shape *shape, const float *dy, const float *w,
                         float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "conv_input");
    int64_t pixels;
    cu_conv s;
    if (!c || !cu_conv_init(c, ctx, &s, shape)) return;
    if (cu_conv_is_gemm(shape)) {
        cu_gemm(c, ctx, c->config.math, 0, 1, shape->n * shape->h * shape->w, s.c, s.oc, 1, dy,
                s.oc, w, s.oc, acc ? 1.0f : 0.0f, dx, s.c);
        return;
    }
    s.a = dy;
    s.b = w;
    s.out = dx;
    s.acc = acc;
    pixels = shape->n * cu_up(shape->h, shape->stride) * cu_up(shape->w, shape->stride);
    cu_conv_run<PASS_INPUT>(c, ctx, &s, pixels, s.c, shape->stride * shape->stride);
}

static void v_conv_weight(ctr_ctx *ctx, const ctr_conv_shape *shape, const float *x,
                          const float *dy, float *dw, int acc)
{
    cu_device *c = cu_begin(ctx, "conv_weight");
    int64_t pixels = shape->n * shape->oh * shape->ow, rows = shape->kh * shape->kw * shape->c;
    int64_t tiles = cu_up(rows, BM) * cu_up(shape->oc, 64), parts;
    cu_conv s;
    if (!c || !cu_conv_init(c, ctx, &s, shape) || rows * shape->oc <= 0) return;
    if (cu_conv_is_gemm(shape)) {
        cu_gemm(c, ctx, c->config.math, 1, 0, s.c, s.oc, pixels, 1, x, s.c, dy, s.oc,
                acc ? 1.0f : 0.0f, dw, s.oc);
        return;
    }
    parts = cu_up(512, tiles) < cu_up(pixels, 512) ? cu_up(512, tiles) : cu_up(pixels, 512);
    s.a = x;
    s.b = dy;
    s.out = dw;
    s.m = (int)rows;
    s.k = (int)pixels;
    s.acc = acc;
    s.parts = (int)(parts < 1 ? 1 : parts);
    if (s.parts > 1) {
        s.out = (float *)cu_scratch(c, ctx, (size_t)(parts * rows * s.oc) * sizeof(float));
        s.acc = 0;
        if (!s.out) return;
    }
    cu_conv_run<PASS_WEIGHT>(c, ctx, &s, rows, s.oc, s.parts);
    if (s.parts > 1)
        LAUNCH(k_conv_parts, cu_blocks(c, rows * s.oc), WIDE, rows * s.oc, s.parts,
               (const float *)s.out, dw, acc);
}

/* ================================================================================================
   >>CONTRAST  every row against all others

   s_ij = scale x_i . x_j for a strip of anchors i and all j is one product by cuBLAS into scratch
   memory; a block an anchor then reads its line of it. A strip has as many anchors as 16 million
   numbers hold, so memory grows with m, not with m m. These products stay in fp32 whatever
   config.math says: exp(s) at a temperature of 0.1 makes ten errors of one.
   ============================================================================================= */

enum { STRIP = CTR_STRIP_ };

/* What an anchor adds to the loss and to the report; k_contrast_end sums over the anchors. */
typedef struct cu_anchor { double loss, right, near_sum, far_sum, count; } cu_anchor;

/* s [strip, m]: the anchors from first on, a block each. lse_i = log sum_{j != i} exp(s_ij) */
static __global__ void __launch_bounds__(256)
k_contrast(int64_t first, int64_t m, const int32_t *ids, const float *s, float scale, float *lse,
           float *positives, cu_anchor *anchors)
{
    const int64_t i = first + blockIdx.x;
    const float *line = s + (int64_t)blockIdx.x * m;
    const int32_t id = ids[i];
    float max = -1e30f, best = -1e30f, sum = 0, end;
    double near_sum = 0, far_sum = 0, count = 0;
    FOR_LINE(j, m)
    {
        float v = line[j];
        if (j == i) continue;    /* an anchor's own pair never enters */
        max = v > max ? v : max;
        if (ids[j] == id) {
            best = v > best ? v : best;
            near_sum += (double)v;
            count += 1;
        } else {
            far_sum += (double)v;
        }
    }
    max = block_max(max);
    FOR_LINE(j, m)
    {
        if (j != i) sum += expf(scale * (line[j] - max));
    }
    sum = block_sum(sum);
    best = block_max(best);
    near_sum = block_sum(near_sum);
    far_sum = block_sum(far_sum);
    count = block_sum(count);
    if (threadIdx.x != 0) return;
    end = scale * max + logf(sum);
    lse[i] = m > 1 ? end : 0;
    positives[i] = (float)count;
    anchors[i].loss = count > 0 ? (double)end - (double)scale * near_sum / count : 0;
    anchors[i].right = count > 0 && best >= max;
    anchors[i].near_sum = near_sum;
    anchors[i].far_sum = far_sum;
    anchors[i].count = count;
}

static __global__ void __launch_bounds__(256)
k_contrast_end(int64_t m, float scale, const cu_anchor *anchors, float *out)
{
    double loss = 0, live = 0, right = 0, near_sum = 0, far_sum = 0, pairs = 0;
    double others = (double)m * (double)(m - 1);
    FOR_LINE(i, m)
    {
        loss += anchors[i].loss;
        right += anchors[i].right;
        near_sum += anchors[i].near_sum;
        far_sum += anchors[i].far_sum;
        pairs += anchors[i].count;
        live += anchors[i].count > 0;
    }
    loss = block_sum(loss);
    live = block_sum(live);
    right = block_sum(right);
    near_sum = block_sum(near_sum);
    far_sum = block_sum(far_sum);
    pairs = block_sum(pairs);
    if (threadIdx.x != 0) return;
    out[0] = (float)(live > 0 ? loss / live : 0);
    out[1] = (float)live;
    out[2] = (float)(live > 0 ? right / live : 0);
    out[3] = (float)(pairs > 0 ? (double)scale * near_sum / pairs : 0);
    out[4] = (float)(others > pairs ? (double)scale * far_sum / (others - pairs) : 0);
}

/* Lines of a strip, of `rows` ones with m numbers. */
static int64_t cu_strip(int64_t rows, int64_t m)
{
    int64_t lines = STRIP / (m > 0 ? m : 1);
    return lines < 1 ? 1 : lines < rows ? lines : rows;
}

static void v_contrast(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids, const float *x,
                       float scale, float *lse, float *positives, float *out)
{
    cu_device *c = cu_begin(ctx, "contrast");
    int64_t strip = cu_strip(m, m), i;
    cu_anchor *anchors;
    float *s;
    if (!c) return;
    anchors = (cu_anchor *)cu_scratch(c, ctx, (size_t)m * sizeof *anchors +
                                                  (size_t)(strip * m) * sizeof(float));
    if (!anchors && m > 0) return;
    s = (float *)(anchors + m);
    for (i = 0; i < m; i += strip) {
        int64_t rows = strip < m - i ? strip : m - i;
        if (!cu_gemm(c, ctx, CTR_CUDA_FP32, 0, 1, rows, m, d, 1, x + i * d, d, x, d, 0, s, m))
            return;
        LAUNCH(k_contrast, (unsigned)rows, WIDE, i, m, ids, (const float *)s, scale, lse, positives,
               anchors);
    }
    LAUNCH(k_contrast_end, 1, WIDE, m, scale, (const cu_anchor *)anchors, out);
}

/* The lines become scale (g_ij + g_ji), with g_ij = d loss / d s_ij
       = share (exp(s_ij - lse_i) - [j positive] / positives_i), 0 where positives_i = 0:
   row i stands in s_ij and in s_ji, so dx_i = scale sum_{j != i} (g_ij + g_ji) x_j. */
static __global__ void __launch_bounds__(256)
k_contrast_slopes(int64_t first, int64_t rows, int64_t m, const int32_t *ids, float *s, float scale,
                  const float *lse, const float *positives, const float *out, const float *dloss)
{
    const float share = out[1] > 0 ? dloss[0] / out[1] * scale : 0;
    FOR_ROWS(row, rows)
    {
        int64_t i = first + row;
        float my_lse = lse[i], mine = positives[i];
        int32_t id = ids[i];
        FOR_COLS(j, m)
        {
            float v = scale * s[row * m + j], g = 0;
            if (mine > 0) g += expf(v - my_lse);
            if (positives[j] > 0) g += expf(v - lse[j]);
            if (ids[j] == id) g -= 2 / mine;
            s[row * m + j] = j == i ? 0 : share * g;
        }
    }
}

static void v_contrast_grad(ctr_ctx *ctx, int64_t m, int64_t d, const int32_t *ids, const float *x,
                            float scale, const float *lse, const float *positives, const float *out,
                            const float *dloss, float *dx, int acc)
{
    cu_device *c = cu_begin(ctx, "contrast_grad");
    int64_t strip = cu_strip(m, m), i;
    float *s = c && m > 0 ? (float *)cu_scratch(c, ctx, (size_t)(strip * m) * sizeof *s) : NULL;
    for (i = 0; s && i < m; i += strip) {
        int64_t rows = strip < m - i ? strip : m - i;
        cu_tiling t = cu_tile(rows, m);
        if (!cu_gemm(c, ctx, CTR_CUDA_FP32, 0, 1, rows, m, d, 1, x + i * d, d, x, d, 0, s, m))
            return;
        LAUNCH(k_contrast_slopes, t.grid, t.block, i, rows, m, ids, s, scale, lse, positives, out,
               dloss);
        if (!cu_gemm(c, ctx, CTR_CUDA_FP32, 0, 0, rows, d, m, 1, s, m, x, d, acc ? 1.0f : 0.0f,
                     dx + i * d, d))
            return;
    }
}

/* ================================================================================================
   >>NEAREST  rows compared with all rows of another set, and sums of groups of rows

   What k-means and k-NN need. As in >>CONTRAST, scores of a strip of rows are one product by cuBLAS
   in fp32, whatever config.math says (a rounded score has another neighbour), and a block a row
   then reads its line. Of equal scores the lower index wins, so that no order of threads shows.
   ============================================================================================= */

static __device__ __forceinline__ bool better(float a, int32_t i, float than, int32_t j)
{
    return a > than || (a == than && i < j);
}

static __device__ __forceinline__ void warp_best(float *best, int32_t *at)
{
    for (int lanes = 16; lanes; lanes /= 2) {
        float v = __shfl_xor_sync(0xffffffffu, *best, lanes);
        int32_t i = __shfl_xor_sync(0xffffffffu, *at, lanes);
        if (!better(v, i, *best, *at)) continue;
        *best = v;
        *at = i;
    }
}

/* s [lines, k]: the place of the largest s - minus. NaN is never larger. */
static __global__ void __launch_bounds__(256)
k_row_best(int64_t k, const float *s, const float *minus, int32_t *which)
{
    __shared__ float bests[32];
    __shared__ int32_t places[32];
    const float *line = s + (int64_t)blockIdx.x * k;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int warps = (int)blockDim.x / 32;
    float best = -INFINITY;
    int32_t at = INT_MAX;
    FOR_LINE(j, k)
    {
        float v = line[j] - minus[j];
        if (!better(v, (int32_t)j, best, at)) continue;
        best = v;
        at = (int32_t)j;
    }
    warp_best(&best, &at);
    if (lane == 0) {
        bests[warp] = best;
        places[warp] = at;
    }
    __syncthreads();
    best = bests[lane < warps ? lane : 0];
    at = places[lane < warps ? lane : 0];
    warp_best(&best, &at);
    if (threadIdx.x == 0) which[blockIdx.x] = at == INT_MAX ? 0 : at;
}

static void v_nearest(ctr_ctx *ctx, int64_t n, int64_t k, int64_t d, const float *x,
                      const float *centers, const float *minus, int32_t *which)
{
    cu_device *c = cu_begin(ctx, "nearest");
    int64_t strip = cu_strip(n, k), i;
    float *s = c && n > 0 ? (float *)cu_scratch(c, ctx, (size_t)(strip * k) * sizeof *s) : NULL;
    for (i = 0; s && i < n; i += strip) {
        int64_t rows = strip < n - i ? strip : n - i;
        if (!cu_gemm(c, ctx, CTR_CUDA_FP32, 0, 1, rows, k, d, 1, x + i * d, d, centers, d, 0, s,
                     k))
            return;
        LAUNCH(k_row_best, (unsigned)rows, cu_row_threads(k), k, (const float *)s, minus,
               which + i);
    }
}

/* ---- the k largest of a line ----------------------------------------------------------------- */

enum { TOP = CTR_NEIGHBORS_MOST };
static_assert(TOP == 1024, "k_row_top sorts a power of two, with 256 threads");

/* Whole numbers in the order of the floats; 0 for what does not count. -0 is 0. */
static __device__ __forceinline__ uint32_t top_key(const float *line, int64_t j, int32_t skip)
{
    uint32_t bits = __float_as_uint(line[j] + 0.0f);
    if (j == skip) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The key of the want-th largest, found from its first byte to its last by counting: bins [256] is
   shared memory. *equals: how many of the equals of that key are among them. */
static __device__ uint32_t top_border(const float *line, int64_t n, int32_t skip, int want,
                                      uint32_t *bins, int *equals)
{
    uint32_t border = 0, known = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int digit = 255;
        FOR_LINE(b, 256) bins[b] = 0;
        __syncthreads();
        FOR_LINE(j, n)
        {
            uint32_t key = top_key(line, j, skip);
            if ((key & known) == border) atomicAdd(&bins[key >> shift & 255], 1u);
        }
        __syncthreads();
        for (; digit > 0 && (int)bins[digit] < want; digit--) want -= (int)bins[digit];
        __syncthreads();         /* all have read before the next round clears */
        border |= (uint32_t)digit << shift;
        known |= 255u << shift;
    }
    *equals = want;
    return border;
}

/* Sorts [size], a power of two, the largest first, by exchanging pairs ever closer (Batcher). */
static __device__ void top_sort(int size, float *value, int32_t *index)
{
    for (int run = 2; run <= size; run *= 2) {
        for (int apart = run / 2; apart; apart /= 2) {
            __syncthreads();
            FOR_LINE(t, size / 2)
            {
                int a = (int)t / apart * 2 * apart + (int)t % apart, b = a + apart;
                bool down = (a & run) == 0;
                float v = value[a];
                int32_t i = index[a];
                if (better(v, i, value[b], index[b]) == down) continue;
                value[a] = value[b];
                index[a] = index[b];
                value[b] = v;
                index[b] = i;
            }
        }
    }
    __syncthreads();
}

/* s [lines, n]: value, index [lines, k]. Each thread collects from a piece of the line, so that the
   first of the equals at the border are taken. */
static __global__ void __launch_bounds__(256)
k_row_top(int64_t n, const float *s, const int32_t *skips, int k, float *value, int32_t *index)
{
    __shared__ float top_value[TOP];
    __shared__ int32_t top_index[TOP];
    __shared__ uint32_t bins[256];
    __shared__ int above[256], same[256];
    const float *line = s + (int64_t)blockIdx.x * n;
    const int me = (int)threadIdx.x;
    const int32_t skip = skips[blockIdx.x];
    const int64_t piece = (n + WIDE - 1) / WIDE, first = me * piece;
    const int64_t end = first + piece < n ? first + piece : n;
    const int64_t there = n - (skip >= 0 && skip < n);
    const int want = (int)(k < there ? k : there);
    int equals, more = 0, at = 0, size = 2;
    uint32_t border = top_border(line, n, skip, want, bins, &equals);
    above[me] = same[me] = 0;
    for (int64_t j = first; j < end && want > 0; j++) {
        uint32_t key = top_key(line, j, skip);
        above[me] += key > border;
        same[me] += key == border;
    }
    __syncthreads();
    for (int t = 0; t < me; t++) {
        at += above[t];
        more += same[t];
    }
    while (size < k) size *= 2;
    FOR_LINE(t, size)
    {
        if (t < want) continue;
        top_value[t] = -INFINITY;
        top_index[t] = INT_MAX;
    }
    for (int64_t j = first; j < end && want > 0; j++) {
        uint32_t key = top_key(line, j, skip);
        int place = key > border ? at++ : -1;
        if (key == border && more++ < equals) place = want - equals + more - 1;
        if (place < 0) continue;
        top_value[place] = line[j];
        top_index[place] = (int32_t)j;
    }
    top_sort(size, top_value, top_index);
    FOR_LINE(t, k)
    {
        value[(int64_t)blockIdx.x * k + t] = t < want ? top_value[t] : 0;
        index[(int64_t)blockIdx.x * k + t] = t < want ? top_index[t] : -1;
    }
}

static void v_neighbors(ctr_ctx *ctx, int64_t m, int64_t n, int64_t d, const float *q,
                        const float *x, const int32_t *skip, int64_t k, float *value,
                        int32_t *index)
{
    cu_device *c = cu_begin(ctx, "neighbors");
    int64_t strip = cu_strip(m, n), i;
    float *s = c && m > 0 ? (float *)cu_scratch(c, ctx, (size_t)(strip * n) * sizeof *s) : NULL;
    if (s && (k < 1 || k > TOP)) {
        cu_report(c, ctx, "k", "it must be 1..1024");
        return;
    }
    for (i = 0; s && i < m; i += strip) {
        int64_t rows = strip < m - i ? strip : m - i;
        if (!cu_gemm(c, ctx, CTR_CUDA_FP32, 0, 1, rows, n, d, 1, q + i * d, d, x, d, 0, s, n))
            return;
        LAUNCH(k_row_top, (unsigned)rows, WIDE, n, (const float *)s, skip + i, (int)k,
               value + i * k, index + i * k);
    }
}

/* ---- sums of groups of rows: a block a group and up to 64 columns ---------------------------- */

/* The threads of a column take the group's rows in turn; their sums are added in order. */
static __global__ void __launch_bounds__(256)
k_segment_sum(int64_t segments, int64_t d, const int32_t *begin, const int32_t *order,
              const float *weight, const float *x, double *y)
{
    __shared__ double part[WIDE];
    const int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t j = blockIdx.y; j < segments; j += gridDim.y) {
        const int32_t end = begin[j + 1];
        double sum = 0;
        for (int32_t i = begin[j] + (int32_t)threadIdx.y; i < end && col < d;
             i += (int32_t)blockDim.y) {
            const int64_t row = order[i];
            sum += (weight ? (double)weight[row] : 1.0) * (double)x[row * d + col];
        }
        part[threadIdx.y * blockDim.x + threadIdx.x] = sum;
        __syncthreads();
        for (unsigned t = 1; t < blockDim.y && threadIdx.y == 0; t++)
            sum += part[t * blockDim.x + threadIdx.x];
        if (threadIdx.y == 0 && col < d) y[j * d + col] = sum;
        __syncthreads();
    }
}

static void v_segment_sum(ctr_ctx *ctx, int64_t segments, int64_t n, int64_t d,
                          const int32_t *begin, const int32_t *order, const float *weight,
                          const float *x, double *y)
{
    cu_device *c = cu_begin(ctx, "segment_sum");
    unsigned width = 32;         /* at least, so that a warp reads neighbours */
    (void)n;
    while (width < WIDE / 4 && width < d) width *= 2;
    if (c && segments > 0 && d > 0)
        LAUNCH(k_segment_sum, dim3(cu_least(cu_up(d, width), INT_MAX), cu_least(segments, 65535)),
               dim3(width, WIDE / width), segments, d, begin, order, weight, x, y);
}

/* ================================================================================================
   >>VIEWS  augmented views of images of bytes

   A block makes a view, step by step as the header's >>AUG does on the CPU, whose formulas stand
   there. Most steps are about single pixels, which stay with their thread; barriers stand where
   pixels meet: between the two directions of resizing and blurring, and at contrast's mean.
   ============================================================================================= */

enum { VIEW_KERNEL = 255 };      /* most taps of a blur */
enum { VIEW_BYTES = 1 << 28 };   /* of scratch memory, or what one view needs */

typedef struct cu_view {
    int64_t index;
    int top, left, h, w;         /* the crop */
    int flip, gray, solarize;
    int jobs, order[4];          /* of jitter: CTR_JITTER_* */
    float factor[4], sigma;
} cu_view;
typedef struct cu_look {
    int h, w, c, source_h, source_w, cubic, kernel;
    float threshold, mean[3], std[3];
} cu_look;

static __device__ __forceinline__ float clip01(float v) { return fminf(fmaxf(v, 0.0f), 1.0f); }

/* Keys' cubic or the triangle, see >>IMAGE */
static __device__ __forceinline__ float filter_value(int cubic, float x)
{
    x = fabsf(x);
    if (!cubic) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5f * x - 2.5f) * x * x + 1;
    return x < 2 ? ((-0.5f * x + 2.5f) * x - 4) * x + 2 : 0;
}

/* What output o of an axis looks at: taps first.. end - 1, tap t at (t - center) inverse */
typedef struct cu_taps { int first, end; float center, inverse; } cu_taps;
static __device__ __forceinline__ cu_taps taps_of(int cubic, int in, int out, int o)
{
    float scale = (float)in / (float)out, wide = fmaxf(scale, 1.0f);
    float reach = (cubic ? 2.0f : 1.0f) * wide, middle = scale * ((float)o + 0.5f);
    cu_taps t;
    t.first = (int)fmaxf(middle - reach + 0.5f, 0.0f);
    t.end = (int)(middle + reach + 0.5f);
    t.end = t.end < in ? t.end : in;
    t.center = middle - 0.5f;
    t.inverse = 1 / wide;
    return t;
}

static __device__ __forceinline__ float luma(const float *x, int c)
{
    return c == 1 ? x[0] : 0.2989f * x[0] + 0.587f * x[1] + 0.114f * x[2];
}

static __device__ void hue_turn(float *x, float turn)
{
    float r = x[0], g = x[1], b = x[2], v = fmaxf(fmaxf(r, g), b);
    float chroma = v - fminf(fminf(r, g), b), h, f, p, q, t;
    int sector;
    if (chroma <= 0) return;
    h = v == r ? (g - b) / chroma : v == g ? 2 + (b - r) / chroma : 4 + (r - g) / chroma;
    h = h / 6 + turn;
    h = (h - floorf(h)) * 6;
    sector = (int)h;
    f = h - (float)sector;
    p = v - chroma;
    q = v - chroma * f;
    t = v - chroma * (1 - f);
    x[0] = sector == 1 ? q : sector == 2 || sector == 3 ? p : sector == 4 ? t : v;
    x[1] = sector == 1 || sector == 2 ? v : sector == 3 ? q : sector >= 4 && sector < 6 ? p : t;
    x[2] = sector == 2 ? t : sector == 3 || sector == 4 ? v : sector == 5 ? q : p;
}

/* The box of the image at [crop h, w] to lines [crop h, look.w], then to x [look.h, look.w]. */
static __device__ void view_resize(const cu_look &look, const cu_view &v, const uint8_t *image,
                                   float *lines, float *x)
{
    const int c = look.c;
    FOR_LINE(i, v.h * look.w)
    {
        int row = (int)i / look.w;
        cu_taps t = taps_of(look.cubic, v.w, look.w, (int)i % look.w);
        const uint8_t *line = image + ((int64_t)(v.top + row) * look.source_w + v.left) * c;
        float sum[3] = {0, 0, 0}, all = 0;
        for (int j = t.first; j < t.end; j++) {
            float weight = filter_value(look.cubic, ((float)j - t.center) * t.inverse);
            all += weight;
            for (int k = 0; k < c; k++) sum[k] += weight * (float)line[j * c + k];
        }
        for (int k = 0; k < c; k++) lines[i * c + k] = sum[k] / (255 * all);
    }
    __syncthreads();
    FOR_LINE(i, look.h * look.w)
    {
        int col = (int)i % look.w, from = v.flip ? look.w - 1 - col : col;
        cu_taps t = taps_of(look.cubic, v.h, look.h, (int)i / look.w);
        float sum[3] = {0, 0, 0}, all = 0;
        for (int j = t.first; j < t.end; j++) {
            float weight = filter_value(look.cubic, ((float)j - t.center) * t.inverse);
            const float *at = lines + ((int64_t)j * look.w + from) * c;
            all += weight;
            for (int k = 0; k < c; k++) sum[k] += weight * at[k];
        }
        for (int k = 0; k < c; k++) x[i * c + k] = clip01(sum[k] / all);
    }
}

static __device__ void view_jitter(const cu_look &look, const cu_view &v, float *x)
{
    const int n = look.h * look.w, c = look.c;
    for (int job = 0; job < v.jobs; job++) {
        const int what = v.order[job];
        const float f = v.factor[job];
        float mean = 0;
        if (what == CTR_JITTER_CONTRAST) {
            double sum = 0;
            FOR_LINE(i, n) sum += (double)luma(x + i * c, c);
            mean = (float)(block_sum(sum) / n);
        }
        FOR_LINE(i, n)
        {
            float *at = x + i * c, shift = 0;
            if (what == CTR_JITTER_HUE) {
                if (c == 3) hue_turn(at, f);
                continue;
            }
            if (what == CTR_JITTER_SATURATION && c != 3) continue;
            if (what == CTR_JITTER_CONTRAST) shift = (1 - f) * mean;
            if (what == CTR_JITTER_SATURATION) shift = (1 - f) * luma(at, c);
            for (int k = 0; k < c; k++) at[k] = clip01(f * at[k] + shift);
        }
    }
}

/* Reflected at both ends without repeating them, as often as needed. */
static __device__ __forceinline__ int reflected(int i, int n)
{
    int period = 2 * (n - 1);
    if (n == 1) return 0;
    i %= period;
    i = i < 0 ? i + period : i;
    return i < n ? i : period - i;
}

/* Rows from x to copy, columns back. weight [VIEW_KERNEL] is shared memory. */
static __device__ void view_blur(const cu_look &look, float sigma, float *weight, float *x,
                                 float *copy)
{
    const int n = look.h * look.w, c = look.c, radius = look.kernel / 2;
    float part = 0, sum;
    FOR_LINE(j, look.kernel)
    {
        float d = (float)((int)j - radius) / sigma;
        part += weight[j] = expf(-0.5f * d * d);
    }
    sum = block_sum(part);       /* its barriers also show everyone x and the weights */
    for (int down = 0; down < 2; down++) {
        const float *from = down ? copy : x;
        float *to = down ? x : copy;
        FOR_LINE(i, n)
        {
            int row = (int)i / look.w, col = (int)i % look.w;
            float all[3] = {0, 0, 0};
            for (int j = -radius; j <= radius; j++) {
                int at = down ? reflected(row + j, look.h) * look.w + col
                              : row * look.w + reflected(col + j, look.w);
                for (int k = 0; k < c; k++)
                    all[k] += weight[j + radius] * from[(int64_t)at * c + k];
            }
            for (int k = 0; k < c; k++) to[i * c + k] = all[k] / sum;
        }
        __syncthreads();
    }
}

/* A block a view; scratch has `room` numbers for each. */
static __global__ void __launch_bounds__(256)
k_views(cu_look look, const cu_view *views, const uint8_t *images, float *scratch, int64_t room,
        float *out)
{
    __shared__ float weight[VIEW_KERNEL];
    const cu_view v = views[blockIdx.x];
    const int n = look.h * look.w, c = look.c;
    const int64_t size = (int64_t)look.source_h * look.source_w * c;
    float *x = out + (int64_t)blockIdx.x * n * c, *lines = scratch + blockIdx.x * room;
    view_resize(look, v, images + v.index * size, lines, x);
    view_jitter(look, v, x);
    if (v.gray && c == 3)
        FOR_LINE(i, n) x[3 * i] = x[3 * i + 1] = x[3 * i + 2] = luma(x + 3 * i, 3);
    if (v.sigma > 0) view_blur(look, v.sigma, weight, x, lines);
    FOR_LINE(i, n)
    {
        for (int k = 0; k < c; k++) {
            float y = x[i * c + k];
            if (v.solarize && y >= look.threshold) y = 1 - y;
            x[i * c + k] = (y - look.mean[k]) / look.std[k];
        }
    }
}

static cu_view cu_view_of(const ctr_aug_config *g, const ctr_aug_params *p, int64_t index)
{
    const double used[4] = {g->brightness, g->contrast, g->saturation, g->hue};
    cu_view v;
    memset(&v, 0, sizeof v);
    v.index = index;
    v.top = (int)p->crop.top;
    v.left = (int)p->crop.left;
    v.h = (int)p->crop.h;
    v.w = (int)p->crop.w;
    v.flip = p->flip;
    v.gray = p->gray;
    v.solarize = p->solarize;
    v.sigma = (float)p->blur_sigma;
    for (int k = 0; k < 4 && p->jitter; k++) {
        if (!(used[p->order[k]] > 0)) continue;
        v.order[v.jobs] = p->order[k];
        v.factor[v.jobs++] = (float)p->factor[p->order[k]];
    }
    return v;
}

static void v_views(ctr_ctx *ctx, const ctr_view_args *a)
{
    const ctr_aug_config *g = a->config;
    cu_device *c = cu_begin(ctx, "views");
    int64_t line = g->width * a->c, room = (a->h > g->height ? a->h : g->height) * line, each;
    int64_t bytes = room * (int64_t)sizeof(float) + (int64_t)sizeof(cu_view);
    cu_view *table, *views;
    cu_look look;
    if (!c) return;
    memset(&look, 0, sizeof look);
    if (room > INT_MAX) {
        cu_report(c, ctx, "size", "an image or a view is too large");
        return;
    }
    look.h = (int)g->height;
    look.w = (int)g->width;
    look.c = (int)a->c;
    look.source_h = (int)a->h;
    look.source_w = (int)a->w;
    look.cubic = g->interp == CTR_INTERP_BICUBIC;
    look.kernel = a->kernel;
    look.threshold = (float)g->solarize_threshold;
    for (int k = 0; k < 3; k++) {
        look.mean[k] = (float)g->mean[k];
        look.std[k] = (float)g->std[k];
    }
    each = VIEW_BYTES / bytes < 1 ? 1 : VIEW_BYTES / bytes;
    each = each < a->n ? each : a->n;
    table = (cu_view *)malloc((size_t)each * sizeof *table);
    views = (cu_view *)cu_scratch(c, ctx, (size_t)(each * bytes));
    if (!table) cu_report(c, ctx, "malloc", "no memory for the table of views");
    for (int64_t i = 0; table && views && i < a->n; i += each) {
        int64_t n = each < a->n - i ? each : a->n - i;
        for (int64_t k = 0; k < n; k++)
            table[k] = cu_view_of(g, &a->params[i + k], a->index[i + k]);
        v_upload(ctx, (size_t)n * sizeof *table, table, views);
        c->verb = "views";
        LAUNCH(k_views, (unsigned)n, WIDE, look, (const cu_view *)views, a->images,
               (float *)(views + each), room, a->out + i * g->height * line);
    }
    free(table);
}

/* ================================================================================================
   >>OPEN  the device as a whole
   ============================================================================================= */

static void cu_verbs(ctr_device *d)
{
    d->alloc_fn = v_alloc;
    d->free_fn = v_free;
    d->zero = v_zero;
    d->copy = v_copy;
    d->upload = v_upload;
    d->download = v_download;
    d->fill = v_fill;
    d->axpby = v_axpby;
    d->binary = v_binary;
    d->broadcast = v_broadcast;
    d->unary = v_unary;
    d->unary_grad = v_unary_grad;
    d->reduce = v_reduce;
    d->expand = v_expand;
    d->dot = v_dot;
    d->permute = v_permute;
    d->copy_rows = v_copy_rows;
    d->gather = v_gather;
    d->scatter = v_scatter;
    d->softmax = v_softmax;
    d->softmax_grad = v_softmax_grad;
    d->normalize = v_normalize;
    d->normalize_grad = v_normalize_grad;
    d->nll = v_nll;
    d->nll_grad = v_nll_grad;
    d->contrast = v_contrast;
    d->contrast_grad = v_contrast_grad;
    d->gemm = v_gemm;
    d->conv_forward = v_conv_forward;
    d->conv_input = v_conv_input;
    d->conv_weight = v_conv_weight;
    d->max_pool = v_max_pool;
    d->max_pool_grad = v_max_pool_grad;
    d->avg_pool = v_avg_pool;
    d->avg_pool_grad = v_avg_pool_grad;
    d->norm_stats = v_norm_stats;
    d->norm = v_norm;
    d->norm_grad = v_norm_grad;
    d->layer_norm = v_layer_norm;
    d->layer_norm_grad = v_layer_norm_grad;
    d->dropout = v_dropout;
    d->sgd = v_sgd;
    d->adamw = v_adamw;
    d->finite = v_finite;
    d->watch = v_watch;
    d->views = v_views;
    d->nearest = v_nearest;
    d->neighbors = v_neighbors;
    d->segment_sum = v_segment_sum;
}

/* Gives back what there is of a device, also of one that was opened half. */
static void cu_destroy(cu_device *c)
{
    if (c->stream) cudaStreamSynchronize(c->stream);
    for (int i = 0; i < STAGES; i++) {
        if (c->stage[i].sent) cudaEventDestroy(c->stage[i].sent);
        if (c->stage[i].bytes) cudaFreeHost(c->stage[i].bytes);
    }
    if (c->scratch) cudaFree(c->scratch);
    if (c->bad) cudaFree(c->bad);
    if (c->blas) cublasDestroy(c->blas);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

/* Each line is a call that may fail; the message goes where late errors go. */
static int cu_setup(cu_device *c)
{
    ctr_ctx *ctx = NULL;
    cudaDeviceProp prop;
    cudaFuncAttributes code;
    cublasStatus_t s;
    int count = 0;
    if (!TRY(cudaGetDeviceCount, (&count))) return 0;
    if (c->config.index < 0 || c->config.index >= count) {
        char text[80];
        snprintf(text, sizeof text, "there is no GPU %d, there are %d", c->config.index, count);
        cu_report(c, ctx, "index", text);
        return 0;
    }
    if (!TRY(cudaSetDevice, (c->config.index)) ||
        !TRY(cudaGetDeviceProperties, (&prop, c->config.index)))
        return 0;
    /* Fails when the program was compiled for newer GPUs than this one. */
    if (!TRY(cudaFuncGetAttributes, (&code, k_conv<PASS_FORWARD, CTR_CUDA_BF16, true, 64>)))
        return 0;
    if (c->config.math != CTR_CUDA_FP32 && (prop.major < 8 || code.ptxVersion < 80)) {
        cu_report(c, ctx, "math", "TF32 and BF16 need a GPU of compute capability 8.0 (Ampere) and "
                                  "a program that nvcc compiled with -arch=sm_80 or above");
        return 0;
    }
    c->sms = prop.multiProcessorCount;
    snprintf(c->name, sizeof c->name, "cuda:%d %.40s, %s", c->config.index, prop.name,
             c->config.math == CTR_CUDA_TF32 ? "tf32" : c->config.math == CTR_CUDA_BF16 ? "bf16"
                                                                                          : "fp32");
    if (!TRY(cudaStreamCreateWithFlags, (&c->stream, cudaStreamNonBlocking))) return 0;
    for (int i = 0; i < STAGES; i++)
        if (!TRY(cudaHostAlloc, (&c->stage[i].bytes, STAGE_BYTES, cudaHostAllocDefault)) ||
            !TRY(cudaEventCreateWithFlags, (&c->stage[i].sent, cudaEventDisableTiming)))
            return 0;
    if (!TRY(cudaMalloc, ((void **)&c->bad, sizeof *c->bad)) ||
        !TRY(cudaMemsetAsync, (c->bad, 0, sizeof *c->bad, c->stream)))
        return 0;
    s = cublasCreate(&c->blas);
    if (s == CUBLAS_STATUS_SUCCESS) s = cublasSetStream(c->blas, c->stream);
    if (s != CUBLAS_STATUS_SUCCESS) cu_report(c, ctx, "cublasCreate", cublasGetStatusString(s));
    return s == CUBLAS_STATUS_SUCCESS;
}

extern "C" void ctr_cuda_config_init(ctr_cuda_config *config)
{
    memset(config, 0, sizeof *config);
    config->math = CTR_CUDA_FP32;
}

extern "C" ctr_cuda_config ctr_cuda_config_default(void)
{
    ctr_cuda_config config;
    ctr_cuda_config_init(&config);
    return config;
}

extern "C" const ctr_device *ctr_cuda_open(const ctr_cuda_config *config, char *error, size_t size)
{
    cu_device *c = (cu_device *)calloc(1, sizeof *c);
    if (error && size) error[0] = 0;
    if (!c) {
        if (error) snprintf(error, size, "cuda: no memory for the device");
        return NULL;
    }
    ctr_cuda_config_init(&c->config);
    if (config) c->config = *config;
    c->verb = "open";
    strcpy(c->name, "cuda");
    if (!cu_setup(c)) {
        if (error) snprintf(error, size, "%s", c->late);
        cu_destroy(c);
        return NULL;
    }
    c->api.version = CTR_DEVICE_VERSION;
    c->api.name = c->name;
    c->api.user = c;
    cu_verbs(&c->api);
    return &c->api;
}

extern "C" void ctr_cuda_close(const ctr_device *device)
{
    if (!device) return;
    cudaSetDevice(((cu_device *)device->user)->config.index);
    cu_destroy((cu_device *)device->user);
}
