/* NT-Xent forward and backward on rows of dimension 128; what peers/nt_xent.py does.
 *
 *     cc -O2 -o loss bench/loss.c -lm -lpthread && ./loss [--threads 2] [--only 1024,8192]
 *
 * value is the median time of loss and gradient through ctr_loss_nt_xent_flat, temperature 0.5.
 * peak_mb: of the whole process, one for each case; held_mb: what the library holds.
 * Before the timing the loss, and the gradient of a few rows, are compared with sums in double. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define D 128
#define TEMPERATURE 0.5

typedef struct job {
    const bench_options *o;
    ctr_ctx *ctx;
    int64_t m;            /* rows: two views of m / 2 images */
    float *z, *dz;        /* [m, D] */
    double loss;
} job;

static void run(void *user)
{
    job *j = (job *)user;
    j->loss = ctr_loss_nt_xent_flat(j->ctx, j->m / 2, 2, D, j->z, TEMPERATURE, j->dz);
    if (ctr_error(j->ctx) != CTR_OK) bench_die("loss: %s", ctr_error_text(j->ctx));
}

static double dot(const double *a, const double *b)
{
    double sum[4] = {0, 0, 0, 0};
    int k;
    for (k = 0; k < D; k += 4) {
        sum[0] += a[k] * b[k];
        sum[1] += a[k + 1] * b[k + 1];
        sum[2] += a[k + 2] * b[k + 2];
        sum[3] += a[k + 3] * b[k + 3];
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* Row i's gradient:  s_ij = u_i . u_j / T,  G_ij = (exp(s_ij - lse_i) - [j is i's partner]) / m,
   du_i = sum_j (G_ij + G_ji) u_j / T,  dz_i = (du_i - (du_i . u_i) u_i) / |z_i|. */
static void gradient_row(const double *u, const double *lse, const double *length, int64_t m,
                         int64_t i, double *dz)
{
    int64_t j, partner = (i + m / 2) % m;
    double along;
    int k;
    for (k = 0; k < D; k++) dz[k] = 0;
    for (j = 0; j < m; j++) {
        double s, g;
        if (j == i) continue;
        s = dot(u + i * D, u + j * D) / TEMPERATURE;
        g = (exp(s - lse[i]) + exp(s - lse[j]) - (j == partner ? 2 : 0)) / (double)m / TEMPERATURE;
        for (k = 0; k < D; k++) dz[k] += g * u[j * D + k];
    }
    along = dot(dz, u + i * D);
    for (k = 0; k < D; k++) dz[k] = (dz[k] - along * u[i * D + k]) / length[i];
}

static double verify(const job *j)
{
    int64_t m = j->m, i, k, rows[4];
    double *u = (double *)malloc((size_t)(m * D) * sizeof *u);
    double *lse = (double *)malloc((size_t)m * sizeof *lse);
    double *length = (double *)malloc((size_t)m * sizeof *length);
    double dz[D], loss = 0;
    bench_error e = {0, 0};
    if (!u || !lse || !length) bench_die("out of memory");
    for (i = 0; i < m; i++) {
        for (k = 0; k < D; k++) u[i * D + k] = (double)j->z[i * D + k];
        length[i] = sqrt(dot(u + i * D, u + i * D));
        for (k = 0; k < D; k++) u[i * D + k] /= length[i];
        lse[i] = 0;
    }
    for (i = 0; i < m; i++)                   /* |s| <= 1 / T = 2: no overflow */
        for (k = i + 1; k < m; k++) {
            double p = exp(dot(u + i * D, u + k * D) / TEMPERATURE);
            lse[i] += p;
            lse[k] += p;
        }
    for (i = 0; i < m; i++) lse[i] = log(lse[i]);
    for (i = 0; i < m; i++)
        loss += (lse[i] - dot(u + i * D, u + (i + m / 2) % m * D) / TEMPERATURE) / (double)m;
    if (!(fabs(loss - j->loss) <= 1e-5 * loss))
        bench_die("loss %.8g, in double %.8g", j->loss, loss);
    rows[0] = 0;
    rows[1] = m / 2 - 1;
    rows[2] = m / 3;
    rows[3] = m - 1;
    for (i = 0; i < 4; i++) {
        gradient_row(u, lse, length, m, rows[i], dz);
        for (k = 0; k < D; k++) bench_error_add(&e, dz[k], (double)j->dz[rows[i] * D + k]);
    }
    free(u);
    free(lse);
    free(length);
    return bench_error_check(&e, 1e-3, "gradient");
}

static void job_create(job *j)
{
    ctr_config config = ctr_config_default();
    config.threads = j->o->threads;
    j->ctx = ctr_ctx_create(&config);
    if (!j->ctx) bench_die("no context");
    j->z = bench_floats(j->m * D);
    j->dz = bench_floats(j->m * D);
    bench_fill(j->z, j->m * D, 9);
    run(j);
}

/* In a process of its own: the reference's memory must not count. */
static void check(void *user)
{
    job *j = (job *)user;
    job_create(j);
    verify(j);
}

static void measure(void *user)
{
    job *j = (job *)user;
    bench_time t;
    char shape[32];
    job_create(j);
    t = bench_run(run, j, j->o->seconds, 3);
    snprintf(shape, sizeof shape, "%dx%d", (int)j->m, D);
    bench_emit("nt_xent", shape, j->o->threads, 1e3 * t.median, "ms",
               "best=%.3f ms=%.3f cpu_ms=%.2f repeats=%d peak_mb=%.1f held_mb=%.1f loss=%.5f",
               1e3 * t.best, 1e3 * t.median, 1e3 * t.cpu, t.repeats, bench_peak_mb(),
               (double)ctr_memory_stats(j->ctx).held / 1048576, j->loss);
}

int main(int argc, char **argv)
{
    static const int ROWS[] = {1024, 2048, 4096, 8192, 16384};
    bench_options o;
    char name[16];
    size_t i;
    bench_parse(&o, argc, argv, "loss: NT-Xent. cases: 1024 2048 4096 8192 16384");
    for (i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
        job j;
        memset(&j, 0, sizeof j);
        j.o = &o;
        j.m = ROWS[i];
        snprintf(name, sizeof name, "%d", ROWS[i]);
        if (!bench_wanted(&o, name)) continue;
        if ((!o.checked && bench_fresh(check, &j)) || bench_fresh(measure, &j)) return 1;
    }
    return 0;
}
