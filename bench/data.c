/* From files to batches and through a whole epoch; what peers/data.py does.
 *
 *     cc -O2 -o data bench/data.c -lm -lpthread && ./data --data DIR [--threads 2] [--only folder]
 *
 * Case `folder`: JPEG files of any size, decoded anew for each image, to two views of 224 x 224
 * (crop, flip, jitter, gray, blur); value in images/s, by wall clock; per core if --threads 1. Case
 * `epoch`: everything from opening a folder of small images to the end of one epoch of SimCLR
 * (ResNet-20, batch 128, views as large as the images), loading and augmentation included; value in
 * images/s. python peers/data.py --make DIR --case folder makes the files. Needs stb_image. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

typedef struct job {
    const char *path;
    ctr_ctx *ctx;
    ctr_dataset *data;
    ctr_loader *loader;
    ctr_aug_config augs[2];
    int64_t images;
} job;

/* One epoch of batches; every view must be finite and in [0, 1] but for rounding. */
static void read_all(void *user)
{
    job *j = (job *)user;
    ctr_batch b;
    int64_t i;
    j->images = 0;
    while (ctr_loader_next(j->ctx, j->loader, &b)) {
        for (i = 0; i < 2 * b.n * b.h * b.w * b.c; i += 997)
            if (!(b.pixels[i] > -1e-5 && b.pixels[i] < 1 + 1e-5))
                bench_die("a view has %g", (double)b.pixels[i]);
        j->images += b.n;
    }
    if (ctr_error(j->ctx) != CTR_OK) bench_die("%s", ctr_error_text(j->ctx));
}

static void folder(const bench_options *o, const char *path)
{
    ctr_config config = ctr_config_default();
    ctr_data_options options = ctr_data_options_default();
    ctr_loader_config l = ctr_loader_config_default();
    bench_time t;
    job j;
    memset(&j, 0, sizeof j);
    config.threads = o->threads;
    j.ctx = ctr_ctx_create(&config);
    if (!j.ctx) bench_die("out of memory");
    options.cache = CTR_CACHE_NONE;
    j.data = ctr_dataset_open(j.ctx, path, NULL, &options);
    j.augs[0] = j.augs[1] = ctr_aug_simclr_default(224);
    j.augs[0].interp = j.augs[1].interp = CTR_INTERP_BILINEAR; /* torchvision's */
    l.batch = 16;
    l.augs = j.augs;
    l.last = CTR_LAST_KEEP;
    l.prefetch = o->threads > 1;
    j.loader = j.data ? ctr_loader_create(j.ctx, j.data, &l) : NULL;
    if (!j.loader) bench_die("%s", ctr_error_text(j.ctx));
    t = bench_run(read_all, &j, o->seconds, 3);
    bench_emit("data", "folder", o->threads, (double)j.images / t.median, "images/s",
               "best=%.4g ms=%.3f cpu_ms=%.3f images=%ld kernels=%s",
               (double)j.images / t.best, 1e3 * t.median / (double)j.images,
               1e3 * t.cpu / (double)j.images, (long)j.images, ctr_kernels_name(j.ctx));
    ctr_loader_destroy(j.ctx, j.loader);
    ctr_dataset_destroy(j.ctx, j.data);
    ctr_ctx_destroy(j.ctx);
}

static void epoch(const bench_options *o, const char *path)
{
    ctr_config config = ctr_config_default();
    ctr_simclr_config s = ctr_simclr_default();
    ctr_fit_config fit = ctr_fit_default();
    ctr_dataset *data;
    ctr_method *method;
    ctr_image image;
    double start = bench_seconds(), cpu = bench_cpu_seconds(), seconds;
    int64_t steps, images;
    ctr_ctx *ctx;
    config.threads = o->threads;
    ctx = ctr_ctx_create(&config);
    if (!ctx) bench_die("out of memory");
    data = ctr_dataset_open(ctx, path, NULL, NULL);
    if (!data || !ctr_dataset_image(ctx, data, 0, &image)) bench_die("%s", ctr_error_text(ctx));
    s.encoder = ctr_resnet_config_default(20);
    s.encoder.image_size = image.h;
    s.aug = ctr_aug_simclr_default(image.h);
    s.aug.interp = CTR_INTERP_BILINEAR;
    s.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ctr_image_free(ctx, &image);
    method = ctr_simclr_create(ctx, &s);
    fit.epochs = 1;
    fit.batch = 128;
    fit.lr = 0.06;
    steps = method ? ctr_fit_images(method, data, &fit) : -1;
    if (steps < 1) bench_die("%s", ctr_error_text(ctx));
    images = steps * fit.batch;
    seconds = bench_seconds() - start;
    bench_emit("data", "epoch", o->threads, (double)images / seconds, "images/s",
               "ms=%.4f cpu_ms=%.4f images=%ld seconds=%.2f kernels=%s",
               1e3 * seconds / (double)images,
               1e3 * (bench_cpu_seconds() - cpu) / (double)images, (long)images, seconds,
               ctr_kernels_name(ctx));
    ctr_method_destroy(method);
    ctr_dataset_destroy(ctx, data);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    bench_options o;
    const char *path = NULL;
    char *rest[64];
    int i, n = 0;
    for (i = 0; i < argc && n < 60; i++) {
        if (strcmp(argv[i], "--data") == 0 && i + 1 < argc) path = argv[++i];
        else rest[n++] = argv[i];
    }
    bench_parse(&o, n, rest, "data: --data DIR. cases: folder epoch");
    if (!path) bench_die("--data DIR is needed; peers/data.py --make DIR --case folder makes one");
    if (bench_wanted(&o, "folder")) folder(&o, path);
    if (bench_wanted(&o, "epoch")) epoch(&o, path);
    return 0;
}
