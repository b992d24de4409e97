/* MoCo's CIFAR-10 demo, first epochs: its authors' recipe beside the curve that they published.
 *
 *     cc -O2 -o moco_demo bench/moco_demo.c -lm -lpthread
 *     ./moco_demo --data cifar-10 [--epochs 2] [--threads N] [--out moco_demo.ctr]
 *
 * cifar-10: a folder with train/ and test/, one folder of pictures for each class in both, 50,000
 * and 10,000 pictures. The recipe: ResNet-18 with a 3x3 stem, a linear layer to 128 numbers,
 * batches of 512 whose batch norm sees 8 parts of 64, one query view and one key view, 4,096 keys,
 * T 0.1, momentum 0.99, SGD with momentum 0.9, decay 5e-4 and rate 0.06 on a cosine of 200 epochs
 * (which moves step by step here, epoch by epoch there); judged by k-NN (k = 200, T = 0.1) on the
 * 128 normalised numbers. Resumes from --out if that is there.
 */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM 128
#define ALL_EPOCHS 200

/* Published: k-NN at the end of epochs 1, 2, 5, 8, 10. */
static const double PUBLISHED[][2] = {
    { 1, 31.98 }, { 2, 33.52 }, { 5, 37.95 }, { 8, 44.18 }, { 10, 48.03 }
};

typedef struct demo {
    ctr_ctx *ctx;
    ctr_method *moco;
    ctr_dataset *train, *test;
    double loss;
    long steps, epochs;
} demo;

static void check(const ctr_ctx *ctx)
{
    if (ctr_error(ctx) == CTR_OK) return;
    fprintf(stderr, "moco_demo: %s\n", ctr_error_text(ctx));
    exit(1);
}

static void *take(size_t bytes)
{
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "moco_demo: out of memory\n");
        exit(1);
    }
    return p;
}

/* The 128 numbers of each picture, from the query network: features through the linear layer. */
static ctr_points project(const demo *d, const ctr_dataset *data)
{
    const int64_t n = ctr_dataset_count(data), features = d->moco->features;
    const ctr_var *weight = ctr_vars_find(d->moco->encoder, "projector.0.weight");
    const ctr_var *bias = ctr_vars_find(d->moco->encoder, "projector.0.bias");
    ctr_aug_config clean = ctr_aug_none_default(32);
    ctr_real *x = (ctr_real *)take((size_t)(n * features) * sizeof *x);
    ctr_real *z = (ctr_real *)take((size_t)(n * DIM) * sizeof *z);
    int32_t *labels = (int32_t *)take((size_t)n * sizeof *labels);
    const ctr_real *w, *b;
    int64_t i, j;
    if (!weight || !bias) {
        fprintf(stderr, "moco_demo: no linear layer found\n");
        exit(1);
    }
    w = (const ctr_real *)weight->value->data; /* [DIM, features] */
    b = (const ctr_real *)bias->value->data;
    memcpy(clean.mean, d->moco->augs[0].mean, sizeof clean.mean);
    memcpy(clean.std, d->moco->augs[0].std, sizeof clean.std);
    ctr_method_represent_dataset(d->ctx, d->moco, data, &clean, 1, x, labels);
    check(d->ctx);
    for (i = 0; i < n; i++)
        for (j = 0; j < DIM; j++) z[i * DIM + j] = b[j];
    ctr_k_gemm(d->ctx, 0, 1, n, DIM, features, 1, x, features, w, features, 1, z, DIM);
    free(x);
    return ctr_points_make(n, DIM, z, labels);
}

static double judge(const demo *d)
{
    ctr_knn_config config = ctr_knn_config_default();
    ctr_knn_result knn;
    ctr_points train = project(d, d->train), test = project(d, d->test);
    config.k = 200;
    config.temperature = 0.1;
    ctr_knn_classify(d->ctx, &train, &test, &config, NULL, &knn);
    check(d->ctx);
    free((void *)train.x);
    free((void *)train.labels);
    free((void *)test.x);
    free((void *)test.labels);
    return 100 * knn.top1;
}

static int after_step(void *user, const ctr_report *report)
{
    demo *d = (demo *)user;
    if (report->batch == 0) d->loss = d->steps = 0;
    d->loss += report->loss;
    d->steps++;
    if (report->step % 10 == 9)
        fprintf(stderr, "step %ld: loss %.3f, %.1f s\n", (long)report->step + 1,
                d->loss / (double)d->steps, report->seconds);
    return 0;
}

static int after_epoch(void *user, const ctr_report *report)
{
    demo *d = (demo *)user;
    double knn = judge(d), published = -1;
    size_t i;
    for (i = 0; i < sizeof PUBLISHED / sizeof *PUBLISHED; i++)
        if (PUBLISHED[i][0] == (double)(report->epoch + 1)) published = PUBLISHED[i][1];
    printf("epoch %ld: loss %.3f, k-NN %.2f %%", (long)report->epoch + 1,
           d->loss / (double)(d->steps ? d->steps : 1), knn);
    if (published > 0) printf(" (published %.2f)", published);
    printf("\n");
    fflush(stdout);
    return report->epoch + 1 >= d->epochs;
}

static ctr_method *moco_create(ctr_ctx *ctx)
{
    static const double mean[3] = { 0.4914, 0.4822, 0.4465 }, std[3] = { 0.2023, 0.1994, 0.2010 };
    ctr_moco_config c = ctr_moco_default(1);
    int v;
    c.encoder.stem = CTR_STEM_SMALL;
    c.temperature = 0.1;
    c.momentum = 0.99;
    c.queue = 4096;
    c.split_norm = 8;
    c.optim.decay = 5e-4;
    c.lr = 0.03; /* for 256, so 0.06 here */
    for (v = 0; v < 2; v++) {
        ctr_aug_moco_config_init(&c.aug[v], 32, 1, v);
        c.aug[v].crop_min = 0.08;
        c.aug[v].jitter_p = 0.8;
        c.aug[v].hue = 0.1;
        memcpy(c.aug[v].mean, mean, sizeof mean);
        memcpy(c.aug[v].std, std, sizeof std);
    }
    return ctr_moco_create(ctx, &c);
}

int main(int argc, char **argv)
{
    const char *data = NULL, *out = "moco_demo.ctr";
    ctr_config config = ctr_config_default();
    ctr_fit_config fit = ctr_fit_default();
    ctr_loader_config l = ctr_loader_config_default();
    ctr_loader *loader;
    demo d;
    int i;
    memset(&d, 0, sizeof d);
    d.epochs = 2;
    for (i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--data")) data = argv[i + 1];
        else if (!strcmp(argv[i], "--epochs")) d.epochs = atol(argv[i + 1]);
        else if (!strcmp(argv[i], "--threads")) config.threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--out")) out = argv[i + 1];
        else break;
    }
    if (!data || i != argc || d.epochs < 1 || d.epochs > ALL_EPOCHS) {
        fprintf(stderr, "usage: moco_demo --data FOLDER [--epochs 1..%d] [--threads N] "
                        "[--out FILE]\n", ALL_EPOCHS);
        return 2;
    }
    d.ctx = ctr_ctx_create(&config);
    if (!d.ctx) return 1;
    d.train = ctr_dataset_open(d.ctx, data, "train", NULL);
    d.test = ctr_dataset_open(d.ctx, data, "test", NULL);
    check(d.ctx);
    d.moco = moco_create(d.ctx);
    check(d.ctx);
    printf("%ld and %ld pictures, kernels %s, %d threads\n", (long)ctr_dataset_count(d.train),
           (long)ctr_dataset_count(d.test), ctr_kernels_name(d.ctx), ctr_threads(d.ctx));
    printf("untrained: k-NN %.2f %%\n", judge(&d));
    fflush(stdout);
    l.batch = 512;
    l.views = d.moco->views;
    l.augs = d.moco->augs;
    loader = ctr_loader_create(d.ctx, d.train, &l);
    check(d.ctx);
    fit.epochs = ALL_EPOCHS; /* of the schedule, which hardly moves in the first ones */
    fit.warmup_epochs = 0;
    fit.checkpoint = out;
    fit.save_every = 20;
    fit.resume = 1;
    fit.user = &d;
    fit.step_fn = after_step;
    fit.epoch_fn = after_epoch;
    ctr_fit(d.moco, loader, &fit);
    check(d.ctx);
    ctr_loader_destroy(d.ctx, loader);
    ctr_method_destroy(d.moco);
    ctr_dataset_destroy(d.ctx, d.test);
    ctr_dataset_destroy(d.ctx, d.train);
    ctr_ctx_destroy(d.ctx);
    return 0;
}
