/* k-means and weighted k-NN on 60,000 points of dimension 128; what peers/cluster.py does.
 *
 *     cc -O2 -o cluster bench/cluster.c -lm -lpthread
 *     ./cluster [--threads 2] [--only kmeans,knn]
 *
 * kmeans  1,000 clusters, 20 iterations from the first 1,000 points, and the assignment behind them
 * knn     2,000 queries: the 200 nearest by cosine, their weighted vote
 *
 * Points lie in 300 clouds, so that there is something to find; they come from a hash that the
 * peer's script computes to the same bits. value is the median time; of k-means without warming up.
 * Before the timing the nearest centroids and neighbours of a few points are compared with sums in
 * double, and so is the inertia. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define N 60000
#define D 128
#define K 1000
#define QUERIES 2000
#define CLOUDS 300
#define NEIGHBOURS 200

typedef struct job {
    const bench_options *o;
    ctr_ctx *ctx;
    float *x, *q, *centroids;  /* [N, D], [QUERIES, D], [K, D] */
    int32_t *labels, *assignment, *predicted;
    ctr_kmeans_result result;
    ctr_knn_result knn;
} job;

/* In [-1, 1), from index and stream. */
static float hash(uint32_t stream, uint32_t i)
{
    uint32_t x = i * 2654435761u + stream * 0x9E3779B9u;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return (float)(x >> 8) / 8388608.0f - 1.0f;
}

/* Point i lies in cloud i mod CLOUDS. */
static void fill(float *x, int32_t *labels, uint32_t n, uint32_t stream)
{
    uint32_t i, l;
    for (i = 0; i < n; i++) {
        for (l = 0; l < D; l++)
            x[i * D + l] = 0.25f * hash(1, i % CLOUDS * D + l) + hash(stream, i * D + l);
        if (labels) labels[i] = (int32_t)(i % CLOUDS);
    }
}

static void kmeans(void *user)
{
    job *j = (job *)user;
    ctr_kmeans_config c = ctr_kmeans_config_default();
    c.k = K;
    c.start = j->x;
    if (!ctr_kmeans_run(j->ctx, N, D, j->x, &c, j->centroids, j->assignment, NULL, &j->result))
        bench_die("kmeans: %s", ctr_error_text(j->ctx));
}

static void knn(void *user)
{
    job *j = (job *)user;
    ctr_points data = ctr_points_make(N, D, j->x, j->labels);
    ctr_points queries = ctr_points_make(QUERIES, D, j->q, j->labels);
    ctr_knn_config c = ctr_knn_config_default();
    c.k = NEIGHBOURS;
    if (!ctr_knn_classify(j->ctx, &data, &queries, &c, j->predicted, &j->knn))
        bench_die("knn: %s", ctr_error_text(j->ctx));
}

static double distance(const float *a, const float *b)
{
    double sum = 0;
    int l;
    for (l = 0; l < D; l++) sum += ((double)a[l] - (double)b[l]) * ((double)a[l] - (double)b[l]);
    return sum;
}

static void verify_kmeans(const job *j)
{
    double inertia = 0;
    int64_t i, c;
    for (i = 0; i < N; i++) {
        double own = distance(j->x + i * D, j->centroids + j->assignment[i] * D);
        inertia += own;
        for (c = 0; c < K && i % 97 == 0; c++)
            if (own > distance(j->x + i * D, j->centroids + c * D) * (1 + 1e-5))
                bench_die("kmeans: point %d is nearer to centroid %d", (int)i, (int)c);
    }
    if (!(fabs(inertia / j->result.inertia - 1) < 1e-6))
        bench_die("kmeans: inertia %.8g, in double %.8g", j->result.inertia, inertia);
    if (j->result.iterations != 20) bench_die("kmeans: %d iterations", j->result.iterations);
}

/* The vote of one query: every cosine in double, no neighbour's below the 200th largest. */
static int32_t vote(const job *j, const float *q)
{
    static double cosine[N], sorted[N];
    double votes[CLOUDS], a = 0, top;
    int32_t best = 0;
    int64_t i, l;
    for (l = 0; l < D; l++) a += (double)q[l] * (double)q[l];
    for (i = 0; i < N; i++) {
        double dot = 0, b = 0;
        for (l = 0; l < D; l++) {
            dot += (double)q[l] * (double)j->x[i * D + l];
            b += (double)j->x[i * D + l] * (double)j->x[i * D + l];
        }
        sorted[i] = cosine[i] = dot / sqrt(a * b);
    }
    qsort(sorted, N, sizeof *sorted, bench_compare_);
    top = sorted[N - NEIGHBOURS];
    for (i = 0; i < CLOUDS; i++) votes[i] = 0;
    for (i = 0; i < N; i++)
        if (cosine[i] >= top) votes[j->labels[i]] += exp(cosine[i] / 0.1);
    for (i = 1; i < CLOUDS; i++)
        if (votes[i] > votes[best]) best = (int32_t)i;
    return best;
}

static void verify_knn(const job *j)
{
    int i;
    for (i = 0; i < QUERIES; i += 199)
        if (j->predicted[i] != vote(j, j->q + i * D)) bench_die("knn: query %d differs", i);
}

static void job_create(job *j)
{
    ctr_config config = ctr_config_default();
    config.threads = j->o->threads;
    j->ctx = ctr_ctx_create(&config);
    if (!j->ctx) bench_die("no context");
    j->x = bench_floats(N * D);
    j->q = bench_floats(QUERIES * D);
    j->centroids = bench_floats(K * D);
    j->labels = (int32_t *)(void *)bench_floats(N);
    j->assignment = (int32_t *)(void *)bench_floats(N);
    j->predicted = (int32_t *)(void *)bench_floats(QUERIES);
    fill(j->x, j->labels, N, 2);
    fill(j->q, NULL, QUERIES, 3);
}

static void check(void *user)
{
    job *j = (job *)user;
    job_create(j);
    if (bench_wanted(j->o, "kmeans")) {
        kmeans(j);
        verify_kmeans(j);
    }
    if (bench_wanted(j->o, "knn")) {
        knn(j);
        verify_knn(j);
    }
}

static void measure(void *user)
{
    job *j = (job *)user;
    bench_time t;
    job_create(j);
    if (bench_wanted(j->o, "kmeans")) {
        double wall[16], cpu[16], start = bench_seconds();
        int n = 0;
        while (n < 1 || (n < 16 && bench_seconds() - start < j->o->seconds)) {
            wall[n] = -bench_seconds();
            cpu[n] = -bench_cpu_seconds();
            kmeans(j);
            wall[n] += bench_seconds();
            cpu[n++] += bench_cpu_seconds();
        }
        t.median = bench_median(wall, n);
        bench_emit("kmeans", "60000x128x1000", j->o->threads, 1e3 * t.median, "ms",
                   "ms=%.1f cpu_ms=%.1f repeats=%d peak_mb=%.1f inertia=%.8g", 1e3 * t.median,
                   1e3 * bench_median(cpu, n), n, bench_peak_mb(), j->result.inertia);
    }
    if (bench_wanted(j->o, "knn")) {
        t = bench_run(knn, j, j->o->seconds, 3);
        bench_emit("knn", "2000x60000x128", j->o->threads, 1e3 * t.median, "ms",
                   "best=%.2f ms=%.2f cpu_ms=%.1f repeats=%d peak_mb=%.1f top1=%.4f", 1e3 * t.best,
                   1e3 * t.median, 1e3 * t.cpu, t.repeats, bench_peak_mb(), j->knn.top1);
    }
}

int main(int argc, char **argv)
{
    bench_options o;
    job j;
    bench_parse(&o, argc, argv, "cluster: k-means and k-NN. cases: kmeans knn");
    memset(&j, 0, sizeof j);
    j.o = &o;
    if (!o.checked && bench_fresh(check, &j)) return 1;
    return o.seconds > 0 ? bench_fresh(measure, &j) : 0;
}
