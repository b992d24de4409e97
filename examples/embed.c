/* embed: images in, numbers out.
 *
 * What training leaves behind is a function from an image to a vector, in which images of similar
 * content lie near each other. This program applies it to all images of a folder, an IDX file or
 * CIFAR's binaries and writes the vectors where any other tool can read them:
 *
 *     embeddings.npy   [images, features], float32, in the order of paths.txt
 *     paths.txt        a line for each image: its path below --data, or its number
 *     labels.npy       [images], int32, if there are classes: their numbers
 *     encoder.txt      which network it was, with which weights, for images of which size
 *
 *     import numpy
 *     x = numpy.load("out/embed/embeddings.npy")
 *     x /= numpy.linalg.norm(x, axis=1, keepdims=True)
 *     print((x @ x[0]).argsort()[::-1][:5])              the images most like the first
 *
 *        image --> largest square in the middle, resized --> encoder --> mean over places --> row
 *
 * It is also the example of a program that only uses a network: ctr_frozen_open and ctr_frozen_run.
 *
 * The features are the encoder's, before any head: heads are made for the loss and forget what it
 * does not ask for. Lengths are left as they come out; divide rows by them to compare by cosine.
 *
 * Build and run, from the folder of contrastive.h, after ./simclr:
 *     cc -O2 -o embed examples/embed.c -lm -lpthread && ./embed --data examples/data/pictures
 * A network of torchvision's, saved by safetensors.torch.save_file(model.state_dict(), "r18.st"):
 *     ./embed --checkpoint r18.st --data photos
 * Last line:
 *     result method=embed images=... features=... images_per_s=... peak_mb=... seconds=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_encoder.h"

#define BATCH 64 /* images that go through the network together */

/* Every image through the network, a batch at a time: x [n, features]. Frozen is the way of a
 * program that only uses a network: three calls, ctr_frozen_open, _run and _destroy, and the
 * fastest. It is for the CPU; on a GPU (frozen NULL) the method represents. */
static void embed(ex_run *run, ctr_method *method, ctr_frozen *frozen, const ctr_dataset *data,
                  ctr_real *x, int32_t *labels)
{
    ctr_loader_config config = ctr_loader_config_default();
    int64_t n = ctr_dataset_count(data), at = 0;
    ctr_loader *loader;
    ctr_batch batch;
    config.batch = n < BATCH ? n : BATCH;
    config.views = 1;
    config.augs = &run->clean;
    config.shuffle = 0;                           /* row i is image i */
    config.last = CTR_LAST_KEEP;                  /* and none is left out */
    loader = ctr_loader_create(run->ctx, data, &config);
    ex_run_check(run);
    while (ctr_loader_next(run->ctx, loader, &batch)) {
        if (frozen)
            ctr_frozen_run(frozen, batch.n, batch.h, batch.w, batch.c, batch.pixels, BATCH,
                           x + at * method->features);
        else
            ctr_method_represent(method, batch.n, batch.h, batch.w, batch.c, batch.pixels, BATCH,
                                 x + at * method->features);
        memcpy(labels + at, batch.labels, (size_t)batch.n * sizeof *labels);
        at += batch.n;
        ex_run_check(run);
    }
    ex_run_check(run);
    ctr_loader_destroy(run->ctx, loader);
}

/* paths.txt, all of it at once. */
static void write_paths(ex_run *run, const ctr_dataset *data)
{
    ex_bytes text = { NULL, 0, 0, 0 };
    char line[EX_PATH], number[32];
    int64_t i;
    size_t k;
    for (i = 0; i < ctr_dataset_count(data); i++) {
        const char *path = ctr_dataset_path(data, i);
        snprintf(number, sizeof number, "%ld", (long)i);
        snprintf(line, sizeof line, "%s", *path ? path : number);
        for (k = 0; line[k]; k++)
            if (line[k] == '\n' || line[k] == '\r') line[k] = '?'; /* a line is one image */
        ex_bytes_add(&text, line, strlen(line));
        ex_bytes_add(&text, "\n", 1);
    }
    ex_run_drew(run, ex_bytes_write(&text, ex_out_path(run->o, "paths.txt", line)));
}

/* encoder.txt: ./search takes no vectors but those of its own encoder. */
static void write_encoder(ex_run *run, ctr_method *method)
{
    ex_bytes text = { NULL, 0, 0, 0 };
    char line[192], path[EX_PATH];
    ex_encoder_name(run, method, line);
    ex_bytes_add(&text, line, strlen(line));
    ex_bytes_add(&text, "\n", 1);
    ex_run_drew(run, ex_bytes_write(&text, ex_out_path(run->o, "encoder.txt", path)));
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ex_encoder encoder;
    ctr_method *method;
    ctr_frozen *frozen = NULL;
    ctr_real *x;
    int32_t *labels;
    int64_t n, shape[2];
    const char *split = "all";
    char path[EX_PATH];
    double start, seconds;

    /* 1. the command line */
    ex_options_init(&o, "embed", "writes the embeddings of images", __FILE__);
    ex_encoder_drop(&o);
    ex_encoder_options(&o, &encoder);
    ex_options_add(&o, "--split", "all|train|test", EX_CHOICE, &split, 0, 0,
                   "which part of --data; all: everything, or train if it has parts");
    ex_options_parse(&o, argc, argv);

    /* 2. the encoder, and the images as it takes them */
    method = ex_encoder_open(&run, &o, &encoder);
    if (!strcmp(o.device, "cpu")) frozen = ctr_frozen_open(run.ctx, encoder.checkpoint, NULL);
    ex_run_check(&run);
    run.train = ex_encoder_data(&run, &encoder, o.data, strcmp(split, "all") ? split : NULL);
    run.clean = ex_encoder_view(&run, &encoder, run.train);
    if (o.smoke) ex_run_shrink(&run);
    n = ctr_dataset_count(run.train);
    x = (ctr_real *)ex_alloc(&run, (size_t)(n * method->features), sizeof *x);
    labels = (int32_t *)ex_alloc(&run, (size_t)n, sizeof *labels);

    /* 3. embed, then write: nothing is written before all images could be read */
    start = ex_seconds();
    embed(&run, method, frozen, run.train, x, labels);
    seconds = ex_seconds() - start;
    ex_out_make(&o);
    shape[0] = n;
    shape[1] = method->features;
    ctr_npy_save(run.ctx, ex_out_path(&o, "embeddings.npy", path),
                 sizeof(ctr_real) == 8 ? CTR_FILE_F64 : CTR_FILE_F32, 2, shape, x);
    if (ctr_dataset_classes(run.train))
        ctr_npy_save(run.ctx, ex_out_path(&o, "labels.npy", path), CTR_FILE_I32, 1, shape, labels);
    ex_run_check(&run);
    write_paths(&run, run.train);
    write_encoder(&run, method);
    printf("written to %s: embeddings.npy paths.txt encoder.txt%s\n", o.out,
           ctr_dataset_classes(run.train) ? " labels.npy" : "");
    printf("result method=embed images=%ld features=%ld images_per_s=%.0f peak_mb=%.0f "
           "seconds=%.1f\n", (long)n, (long)method->features, seconds > 0 ? (double)n / seconds : 0,
           ex_peak_mb(), ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");

    free(x);
    free(labels);
    ctr_frozen_destroy(frozen);
    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
