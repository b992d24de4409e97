/* Scores of features that any program has written, by the k-NN classifier and the linear probe that
 * judge our own methods; for peers/methods.py.
 *
 *     cc -O2 -o judge bench/judge.c -lm -lpthread
 *     ./judge FOLDER EPOCH...
 *     ./judge --checkpoint DATA FILE...
 *
 * reads FOLDER/train_labels.npy and test_labels.npy ([n] int32), and for each EPOCH
 * FOLDER/train_EPOCH.npy and test_EPOCH.npy ([n, features] float32). Prints for each a line
 *     judge epoch=... knn=... linear=...        percentages on the test images
 * The second form judges checkpoints of ours, on the images of 32 x 32 pixels in DATA/train/ and
 * DATA/test/; epoch is the file's name. */
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
static void judge(ctr_ctx *ctx, const char *name, const ctr_points *train, const ctr_points *test)
{
    ctr_probe_config config = ctr_probe_config_default();
    ctr_knn_result knn;
    ctr_probe_result probe;
    config.seed = 1;
    if (!ctr_knn_classify(ctx, train, test, NULL, NULL, &knn) ||
        !ctr_probe_run(ctx, train, test, &config, NULL, &probe))
        bench_die("judge: %s", ctr_error_text(ctx));
    printf("judge epoch=%s knn=%.2f linear=%.2f\n", name, 100 * knn.top1, 100 * probe.top1);
    fflush(stdout);
}

static void judge_features(ctr_ctx *ctx, const char *folder, int count, char **epochs)
{
    ctr_npy labels[2], a, b;
    ctr_points train, test;
    int i;
    labels[0] = load(ctx, folder, "train", "labels", 1, CTR_FILE_I32);
    labels[1] = load(ctx, folder, "test", "labels", 1, CTR_FILE_I32);
    for (i = 0; i < count; i++) {
        a = load(ctx, folder, "train", epochs[i], 2, CTR_FILE_F32);
        b = load(ctx, folder, "test", epochs[i], 2, CTR_FILE_F32);
        train = points(&a, &labels[0]);
        test = points(&b, &labels[1]);
        judge(ctx, epochs[i], &train, &test);
        ctr_npy_free(ctx, &a);
        ctr_npy_free(ctx, &b);
    }
    ctr_npy_free(ctx, &labels[0]);
    ctr_npy_free(ctx, &labels[1]);
}

/* The caller frees x and labels. */
static ctr_points represent(ctr_ctx *ctx, ctr_method *method, const ctr_dataset *data)
{
    ctr_aug_config clean = ctr_aug_none_default(32);
    int64_t n = ctr_dataset_count(data);
    ctr_real *x = (ctr_real *)malloc((size_t)(n * method->features) * sizeof *x);
    int32_t *labels = (int32_t *)malloc((size_t)n * sizeof *labels);
    if (!x || !labels) bench_die("judge: no memory for %ld images", (long)n);
    if (!ctr_method_represent_dataset(ctx, method, data, &clean, 0, x, labels))
        bench_die("judge: %s", ctr_error_text(ctx));
    return ctr_points_make(n, method->features, x, labels);
}

static void judge_checkpoints(ctr_ctx *ctx, const char *folder, int count, char **files)
{
    ctr_dataset *data[2];
    ctr_points p[2];
    ctr_method *method;
    int i, k;
    data[0] = ctr_dataset_open(ctx, folder, "train", NULL);
    data[1] = ctr_dataset_open(ctx, folder, "test", NULL);
    for (i = 0; i < count; i++) {
        method = ctr_encoder_create(ctx, files[i], NULL);
        if (!data[0] || !data[1] || !method) bench_die("judge: %s", ctr_error_text(ctx));
        for (k = 0; k < 2; k++) p[k] = represent(ctx, method, data[k]);
        judge(ctx, files[i], &p[0], &p[1]);
        for (k = 0; k < 2; k++) {
            free((void *)(size_t)(const void *)p[k].x);
            free((void *)(size_t)(const void *)p[k].labels);
        }
        ctr_method_destroy(method);
    }
    for (k = 0; k < 2; k++) ctr_dataset_destroy(ctx, data[k]);
}

int main(int argc, char **argv)
{
    ctr_config config = ctr_config_default();
    int checkpoints = argc > 1 && !strcmp(argv[1], "--checkpoint");
    ctr_ctx *ctx;
    if (argc < 3 + checkpoints)
        bench_die("judge: expected FOLDER EPOCH..., or --checkpoint DATA FILE...");
    config.threads = 2;
    ctx = ctr_ctx_create(&config);
    if (!ctx) bench_die("judge: no context");
    if (checkpoints) judge_checkpoints(ctx, argv[2], argc - 3, argv + 3);
    else judge_features(ctx, argv[1], argc - 2, argv + 2);
    ctr_ctx_destroy(ctx);
    return 0;
}
