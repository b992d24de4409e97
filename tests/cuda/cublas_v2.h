/* cublas_v2.h - the one matrix product of cuBLAS that contrastive_cuda.cu calls, on the CPU. */
#ifndef CTR_CUBLAS_EMULATION_H
#define CTR_CUBLAS_EMULATION_H
#include "cuda_runtime.h"

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F = 0 };
enum cublasComputeType_t {
    CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69, CUBLAS_COMPUTE_32F_FAST_16BF = 75,
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77
};
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
struct emu_cublas { cudaStream_t stream; };
typedef emu_cublas *cublasHandle_t;

#define EMU_BLAS(name)                                                                             \
    do {                                                                                           \
        int status_;                                                                               \
        if (emu::failing(#name, &status_)) return (cublasStatus_t)status_;                         \
    } while (0)

static inline cublasStatus_t cublasCreate(cublasHandle_t *h)
{
    EMU_BLAS(cublasCreate);
    *h = new emu_cublas{nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasDestroy(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s)
{
    EMU_BLAS(cublasSetStream);
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}
static inline const char *cublasGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    default: return "CUBLAS_STATUS_INVALID_VALUE";
    }
}

namespace emu {
inline float operand(const float *p, size_t i, cublasComputeType_t type)
{
    if (type == CUBLAS_COMPUTE_32F_FAST_TF32) return rounded(p[i], 13, 0);
    if (type == CUBLAS_COMPUTE_32F_FAST_16BF) return rounded(p[i], 16, 1);
    return p[i];
}

/* Column-major, as cuBLAS: c(i, j) = alpha sum_p a(i, p) b(p, j) + beta c(i, j) */
inline void gemm(int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc, cublasComputeType_t type)
{
    std::vector<float> left((size_t)m * (size_t)k), sum((size_t)m);
    for (size_t p = 0; p < (size_t)k; p++)
        for (size_t i = 0; i < (size_t)m; i++)
            left[p * m + i] = operand(a, ta ? p + i * lda : i + p * lda, type);
    for (size_t j = 0; j < (size_t)n; j++) {
        for (float &s : sum) s = 0;
        for (size_t p = 0; p < (size_t)k; p++) {
            float right = operand(b, tb ? j + p * ldb : p + j * ldb, type);
            for (size_t i = 0; i < (size_t)m; i++) sum[i] += left[p * m + i] * right;
        }
        for (size_t i = 0; i < (size_t)m; i++)
            c[i + j * ldc] = alpha * sum[i] + (beta != 0 ? beta * c[i + j * ldc] : 0.0f);
    }
}
}  /* namespace emu */

static inline cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta,
                                          cublasOperation_t tb, int m, int n, int k,
                                          const void *alpha, const void *a, cudaDataType_t, int lda,
                                          const void *b, cudaDataType_t, int ldb, const void *beta,
                                          void *c, cudaDataType_t, int ldc,
                                          cublasComputeType_t type, cublasGemmAlgo_t)
{
    const float al = *(const float *)alpha, be = *(const float *)beta;  /* read before the work */
    EMU_BLAS(cublasGemmEx);
    if (m < 0 || n < 0 || k < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m || lda < 1 ||
        ldb < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    emu::submit(h->stream, [=] {
        emu::visible scope;
        emu::gemm(ta, tb, m, n, k, al, (const float *)a, lda, (const float *)b, ldb, be, (float *)c,
                  ldc, type);
    });
    return CUBLAS_STATUS_SUCCESS;
}
#endif
