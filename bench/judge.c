/* Scores of features that any program has written, by the k-NN classifier and the linear probe that
 * judge our own methods; for peers/methods.py.
 *
 *     cc -O2 -o judge bench/judge.c -lm -lpthread
 *     ./judge FOLDER EPOCH...
 *
 * reads FOLDER/train_labels.npy and test_labels.npy ([n] int32), and for each EPOCH
 * FOLDER/train_EPOCH.npy and test_EPOCH.npy ([n, features] float32). Prints for each a line
 *     judge epoch=... knn=... linear=...        percentages on the test images */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

static ctr_npy load(ctr_ctx *ctx, const char *folder, const char *split, const char *what, int rank,
                    ctr_file_dtype dtype)
{
    char path[1024];
    ctr_npy array;
    if (snprintf(path, sizeof path, "%s/%s_%s.npy", folder, split, what) >= (int)sizeof path)
        bench_die("judge: the path of %s is too long", folder);
    if (!ctr_npy_load(ctx, path, &array)) bench_die("judge: %s", ctr_error_text(ctx));
    if (array.rank != rank || array.dtype != dtype)
        bench_die("judge: %s: expected %d dimensions of %s, got %d of %s", path, rank,
                  ctr_file_dtype_name(dtype), array.rank, ctr_file_dtype_name(array.dtype));
    return array;
}

static ctr_points points(const ctr_npy *x, const ctr_npy *labels)
{
    if (x->shape[0] != labels->count)
        bench_die("judge: %ld rows, but %ld labels", (long)x->shape[0], (long)labels->count);
    return ctr_points_make(x->shape[0], x->shape[1], (const ctr_real *)x->data,
                           (const int32_t *)labels->data);
}

/* The settings of ctr_scores_measure: defaults, and the seed of the examples. */
static void judge(ctr_ctx *ctx, const char *folder, const char *epoch, const ctr_npy labels[2])
{
    ctr_npy a = load(ctx, folder, "train", epoch, 2, CTR_FILE_F32);
    ctr_npy b = load(ctx, folder, "test", epoch, 2, CTR_FILE_F32);
    ctr_points train = points(&a, &labels[0]), test = points(&b, &labels[1]);
    ctr_probe_config config = ctr_probe_config_default();
    ctr_knn_result knn;
    ctr_probe_result probe;
    config.seed = 1;
    if (!ctr_knn_classify(ctx, &train, &test, NULL, NULL, &knn) ||
        !ctr_probe_run(ctx, &train, &test, &config, NULL, &probe))
        bench_die("judge: %s", ctr_error_text(ctx));
    printf("judge epoch=%s knn=%.2f linear=%.2f\n", epoch, 100 * knn.top1, 100 * probe.top1);
    fflush(stdout);
    ctr_npy_free(ctx, &a);
    ctr_npy_free(ctx, &b);
}

int main(int argc, char **argv)
{
    ctr_config config = ctr_config_default();
    ctr_npy labels[2];
    ctr_ctx *ctx;
    int i;
    if (argc < 3) bench_die("judge: expected a folder and epochs: judge FOLDER 0 3");
    config.threads = 2;
    ctx = ctr_ctx_create(&config);
    if (!ctx) bench_die("judge: no context");
    labels[0] = load(ctx, argv[1], "train", "labels", 1, CTR_FILE_I32);
    labels[1] = load(ctx, argv[1], "test", "labels", 1, CTR_FILE_I32);
    for (i = 2; i < argc; i++) judge(ctx, argv[1], argv[i], labels);
    ctr_npy_free(ctx, &labels[0]);
    ctr_npy_free(ctx, &labels[1]);
    ctr_ctx_destroy(ctx);
    return 0;
}
