/* Square matrix products by OpenBLAS, for comparison with kernels.c.
 *
 *     cc -O2 -o openblas bench/openblas.c -lopenblas -lm -lpthread && ./openblas [--threads 2]
 *
 * The two functions of OpenBLAS are declared here, so that its headers need not be installed. */
#include "bench.h"

#ifdef __cplusplus
extern "C" {
#endif
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                 int lda, const float *b, int ldb, float beta, float *c, int ldc);
void openblas_set_num_threads(int threads);
char *openblas_get_config(void);
#ifdef __cplusplus
}
#endif

#define ROW_MAJOR 101
#define NO_TRANSPOSE 111

typedef struct job { int n; float *a, *b, *c; } job;

static void run(void *user)
{
    job *j = (job *)user;
    int n = j->n;
    cblas_sgemm(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, n, n, n, 1, j->a, n, j->b, n, 0, j->c, n);
}

static double verify(const job *j, const char *name)
{
    bench_noise noise;
    bench_error e = {0, 0};
    int64_t n = j->n, i, k, l;
    int s;
    noise.state = 7;
    for (s = 0; s < 300; s++) {
        double sum = 0;
        i = bench_bits(&noise) % n;
        k = bench_bits(&noise) % n;
        for (l = 0; l < n; l++) sum += (double)j->a[i * n + l] * (double)j->b[l * n + k];
        bench_error_add(&e, sum, (double)j->c[i * n + k]);
    }
    return bench_error_check(&e, 2e-5, name);
}

int main(int argc, char **argv)
{
    static const int SIZES[] = {256, 512, 768, 1024, 2048};
    bench_options o;
    char name[32], version[256];
    size_t i, k;
    bench_parse(&o, argc, argv,
                "openblas: matrix products. cases: gemm, 256, 512, 768, 1024, 2048");
    openblas_set_num_threads(o.threads);
    snprintf(version, sizeof version, "%.200s", openblas_get_config());
    for (k = 0; version[k]; k++)
        if (version[k] == ' ' || version[k] == '=') version[k] = '_';
    for (i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        job j;
        bench_time t;
        double error, flops = 2e-9 * SIZES[i] * SIZES[i] * SIZES[i];
        int64_t size = (int64_t)SIZES[i] * SIZES[i];
        snprintf(name, sizeof name, "%d", SIZES[i]);
        if (!bench_wanted(&o, "gemm") && !bench_wanted(&o, name)) continue;
        j.n = SIZES[i];
        j.a = bench_floats(size);
        j.b = bench_floats(size);
        j.c = bench_floats(size);
        bench_fill(j.a, size, 1);
        bench_fill(j.b, size, 2);
        bench_fill(j.c, size, 3);
        run(&j);
        error = verify(&j, name);
        t = bench_run(run, &j, o.seconds, 5);
        bench_emit("openblas", name, o.threads, flops / t.median, "GFLOP/s",
                   "best=%.1f ms=%.3f cpu_ms=%.3f error=%.1e version=%s", flops / t.best,
                   1e3 * t.median, 1e3 * t.cpu, error, version);
    }
    return 0;
}
