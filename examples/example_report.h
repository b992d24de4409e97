/* example_report.h - what every training example does around its method: it opens the data, judges
 * pixels and the untrained encoder, shows progress, and at the end writes pictures and one line of
 * results. Nothing in here trains: a method's idea stands in its own file.
 *
 *     ex_run run;
 *     ex_run_open(&run, &o, 0);                  context, data, augmentation of the evaluation
 *     ... make a method ...
 *     ex_run_method(&run, method, &view);        or, where something comes in between:
 *
 *     loader = ex_run_loader(&run, method);      batches of views
 *     ex_run_fit(&run, method, loader, &fit);    checkpoint and rate; can --resume go on from it?
 *     ex_run_before(&run, method);               scores of pixels and of the untrained encoder
 *     ex_run_train(&run, method, loader, &fit);
 *     ex_run_after(&run, method, &view);         scores, pictures, the result line
 *
 * A mistake of the user's ends the program with one line and code 2, a failure of ours with 1. */

#ifndef EX_REPORT_H
#define EX_REPORT_H

#include "example.h"
#include "../contrastive.h"

#define EX_NEIGHBOURS 8

typedef struct ex_run {
    ex_options *o;
    const struct ctr_device *device;       /* NULL: the CPU */
    ctr_ctx *ctx;
    ctr_dataset *train, *test;             /* test may be NULL */
    ctr_dataset *all_train, *all_test;     /* with --smoke the two above are small parts of these */
    ctr_aug_config clean, view;            /* of evaluation: nothing random; a random view */
    ctr_scores pixels, untrained, trained;
    double *loss, *epoch_loss, *epoch_x;   /* of each step; mean of each epoch */
    int steps, epochs, step_room;
    double chance, started, train_started, trained_seconds, images;
    int64_t first_step;
    ex_progress progress;
} ex_run;

EX_FN void ex_log(void *user, ctr_log_level level, const char *text)
{
    (void)user;
    fprintf(stderr, "%s: %s\n", level == CTR_LOG_WARN ? "warning" : "note", text);
}

/* Ends the program if the library has recorded an error. */
EX_FN void ex_run_check(ex_run *run)
{
    ctr_status status = ctr_error(run->ctx);
    const char *text = ctr_error_text(run->ctx);
    size_t n = strlen(run->o->method);
    ex_progress_break(&run->progress);
    if (status == CTR_OK) return;
    if (!strncmp(text, run->o->method, n) && !strncmp(text + n, ": ", 2))
        text += n + 2; /* "cpc: " once is enough */
    ex_die(run->o,
           status == CTR_E_MEMORY || status == CTR_E_NUMBER || status == CTR_E_DEVICE ? 1 : 2, "%s",
           text);
}

EX_FN void *ex_alloc(ex_run *run, size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p)
        ex_die(run->o, 1, "no memory for %lu x %lu bytes", (unsigned long)count,
               (unsigned long)size);
    return p;
}

/* --smoke looks at a few hundred images. */
EX_FN void ex_run_shrink(ex_run *run)
{
    int64_t n = ctr_dataset_count(run->train), t = run->test ? ctr_dataset_count(run->test) : 0;
    run->all_train = run->train;
    run->all_test = run->test;
    run->train = ctr_dataset_part(run->ctx, run->train, n < 600 ? n : 600);
    if (t) run->test = ctr_dataset_part(run->ctx, run->test, t < 200 ? t : 200);
    ex_run_check(run);
}

/* The device that --device names, or the end of the program with one line. */
EX_FN const struct ctr_device *ex_device_open(ex_options *o)
{
    if (strcmp(o->device, "cuda") != 0) {
        if (ex_options_given(o, "--math"))
            ex_die(o, 2, "--math: says how a GPU rounds, it goes with --device cuda%s",
#ifdef CONTRASTIVE_CUDA
                   "");
#else
                   " in a build with CUDA, which this is not");
#endif
        return NULL;
    }
#ifdef CONTRASTIVE_CUDA
    {
        ctr_cuda_config config = ctr_cuda_config_default();
        const struct ctr_device *device;
        char text[240];
        config.math = o->math[0] == 't' ? CTR_CUDA_TF32
                      : o->math[0] == 'b' ? CTR_CUDA_BF16 : CTR_CUDA_FP32;
        device = ctr_cuda_open(&config, text, sizeof text);
        if (!device) ex_die(o, 1, "--device cuda: %s", text);
        return device;
    }
#else
    ex_die(o, 2, "--device cuda: built without CUDA: compile with nvcc -O3 -arch=native "
           "-DCONTRASTIVE_CUDA -x cu examples/%s.c contrastive_cuda.cu -lcublas", o->method);
#endif
}

EX_FN void ex_device_close(const struct ctr_device *device)
{
#ifdef CONTRASTIVE_CUDA
    ctr_cuda_close(device);
#else
    (void)device;
#endif
}

/* The context alone, for data of the example's own. */
EX_FN void ex_run_start(ex_run *run, ex_options *o)
{
    ctr_config config = ctr_config_default();
    memset(run, 0, sizeof *run);
    run->o = o;
    run->started = ex_seconds();
    run->device = config.device = ex_device_open(o);
    config.threads = o->threads;
    config.seed = o->seed;
    config.log_fn = ex_log;
    run->ctx = ctr_ctx_create(&config);
    if (!run->ctx)
        ex_die(o, 1, "no context: out of memory, or --threads %d is not 0..64", o->threads);
}

/* How the evaluation sees run->train. size: of its views in pixels; 0: the images' own, up to 32
   small and 96 large. */
EX_FN void ex_run_size(ex_run *run, int size)
{
    ctr_image first;
    if (!size && ctr_dataset_image(run->ctx, run->train, 0, &first)) {
        int64_t side = first.h < first.w ? first.h : first.w;
        size = side <= 96 ? (int)side : 96;
        ctr_image_free(run->ctx, &first);
    }
    ex_run_check(run);
    run->clean = ctr_aug_none_default(size);
    run->view = ctr_aug_simclr_default(size);
}

/* Context and data. size: of the views in pixels; 0: the images' own, up to 32 small and 96
   large. */
EX_FN void ex_run_open(ex_run *run, ex_options *o, int size)
{
    ctr_data_options data = ctr_data_options_default();
    ex_run_start(run, o);
    data.short_side = 256;
    run->train = ctr_dataset_open(run->ctx, o->data, o->test ? NULL : "train", &data);
    ex_run_check(run);
    if (o->test) {
        int tests = ctr_dataset_has_split(run->ctx, o->test, "test");
        run->test = ctr_dataset_open(run->ctx, o->test, tests ? "test" : NULL, &data);
    } else if (ctr_dataset_has_split(run->ctx, o->data, "test")) {
        run->test = ctr_dataset_open(run->ctx, o->data, "test", &data);
    }
    ex_run_check(run);
    if (o->smoke) ex_run_shrink(run);
    ex_run_size(run, size);
}

/* What --smoke makes smaller, unless the command line says otherwise. */
EX_FN void ex_smoke(ex_options *o)
{
    if (!o->smoke) return;
    if (!ex_options_given(o, "--epochs")) o->epochs = 2;
    if (!ex_options_given(o, "--batch")) o->batch = 64;
    if (!ex_options_given(o, "--arch")) o->arch = "resnet8-w8";
}

/* Ends the program if there is not one whole batch of images. */
EX_FN void ex_check_batch(ex_run *run)
{
    long n = (long)ctr_dataset_count(run->train);
    if (run->o->batch > n)
        ex_die(run->o, 2, "--batch: there are %ld images to train on, expected at most so many, "
               "got %d", n, run->o->batch);
}

/* Batches of a method's views. */
EX_FN ctr_loader *ex_run_loader(ex_run *run, ctr_method *method)
{
    ctr_loader_config config = ctr_loader_config_default();
    ctr_loader *loader;
    ex_check_batch(run);
    config.batch = run->o->batch;
    config.views = method->views;
    config.augs = method->augs;
    config.per_class = method->per_class;
    config.seed = run->o->seed;
    loader = ctr_loader_create(run->ctx, run->train, &config);
    ex_run_check(run);
    return loader;
}

/* The encoder that --arch names, for the images at hand. */
EX_FN void ex_run_encoder(ex_run *run, ctr_resnet_config *encoder)
{
    if (!ctr_resnet_config_parse(encoder, run->o->arch))
        ex_die(run->o, 2,
               "--arch: expected resnet8, 14, 20, 32, 44, 56, 18, 34, 50 or 101, with -w and a "
               "width if you like (resnet8-w32), got '%s'", run->o->arch);
    encoder->channels = ctr_dataset_channels(run->train);
    encoder->image_size = run->view.height;
}

/* Random numbers [n, d] within a step of the caller's, to try a loss on. */
EX_FN ctr_tensor *ex_random(ex_run *run, int64_t n, int64_t d, int which)
{
    int64_t shape[2], i;
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(n * d), sizeof *x);
    ctr_tensor *t;
    ctr_rng rng;
    shape[0] = n;
    shape[1] = d;
    ctr_rng_init(&rng, run->o->seed, CTR_STREAM_USER, 0, which, 0);
    for (i = 0; i < n * d; i++) x[i] = (ctr_real)ctr_rng_normal(&rng);
    t = ctr_tensor_temp(run->ctx, CTR_F32, 2, shape);
    ctr_tensor_write(run->ctx, t, x, n * d);
    free(x);
    return t;
}

/* A loss written out by hand and the library's: they agree, or the program ends. */
EX_FN void ex_run_compare(ex_run *run, const char *name, ctr_tensor *by_hand, ctr_tensor *librarys)
{
    double hand = (double)ctr_tensor_item(run->ctx, by_hand);
    double ours = (double)ctr_tensor_item(run->ctx, librarys);
    double bound = 1e-5 * (10 + (ours > 0 ? ours : -ours));
    ex_run_check(run);
    if (!(hand - ours < bound && ours - hand < bound)) ex_die(run->o, 1, "the losses differ");
    printf("%s of 8 random embeddings: by hand %.5f, by the library %.5f\n", name, hand, ours);
}

EX_FN void ex_run_scores(ex_run *run, ctr_method *method, const char *who, ctr_scores *scores)
{
    ctr_aug_config clean = run->clean, view = run->view;
    if (!method && clean.height > 32) /* a probe of d numbers an image needs d x d: larger ones */
        clean.height = clean.width = view.height = view.width = 32;  /* are shrunk before */
    ctr_scores_measure(run->ctx, method, run->train, run->test, &clean, &view, run->o->seed,
                       scores);
    ex_run_check(run);
    if (scores->knn < 0 && !method)
        printf("no accuracies: the images have no labels (folders with a class each give them)\n");
    else if (scores->knn >= 0 && scores->linear < 0)
        printf("%-18s k-NN %5.1f %% among the training images (there are no others)\n", who,
               scores->knn);
    else if (scores->knn >= 0)
        printf("%-18s k-NN %5.1f %%   probe %5.1f %%   probe, 10 labels a class %5.1f %%   "
               "k-NN through a view %5.1f %%\n",
               who, scores->knn, scores->linear, scores->linear_10, scores->knn_views);
    fflush(stdout);
}

/* What there is to beat: the pixels themselves, and the encoder before it has learnt anything. */
EX_FN void ex_run_before(ex_run *run, ctr_method *method)
{
    printf("%s: %ld images of %s", run->o->method, (long)ctr_dataset_count(run->train),
           run->o->data);
    if (run->test) printf(", %ld to test", (long)ctr_dataset_count(run->test));
    printf("; views of %ld x %ld; %d threads, %s kernels\n", (long)run->view.width,
           (long)run->view.height, ctr_threads(run->ctx), ctr_kernels_name(run->ctx));
    ex_run_scores(run, NULL, "raw pixels", &run->pixels);
    ex_run_scores(run, method, "untrained encoder", &run->untrained);
}

EX_FN int ex_run_step(void *user, const ctr_report *report)
{
    ex_run *run = (ex_run *)user;
    if (run->steps == 0) {
        printf("each epoch: its loss; how many views found their partner nearest; mean cosines;\n"
               "spread of the embeddings, and of an even one (std); effective rank of the "
               "features\n");
        run->first_step = report->step;
        ex_progress_begin(&run->progress, run->progress.epochs, run->progress.steps,
                          run->progress.images, (long)report->step);
        run->progress.start = run->train_started;
        if (report->step > 0)
            printf("resumed at epoch %ld, step %ld\n", (long)report->epoch + 1,
                   (long)report->step + 1);
    }
    if (run->steps < run->step_room) run->loss[run->steps++] = report->loss;
    run->chance = report->chance;
    ex_progress_step(&run->progress, (int)report->epoch, (int)report->batch, report->loss);
    return 0;
}

EX_FN int ex_run_epoch(void *user, const ctr_report *report)
{
    ex_run *run = (ex_run *)user;
    int i, n = run->steps < run->progress.steps ? run->steps : run->progress.steps;
    double sum = 0;
    char chance[40] = "";
    if (report->chance >= 0) snprintf(chance, sizeof chance, " (chance %.4f)", report->chance);
    for (i = 0; i < n; i++) sum += run->loss[run->steps - 1 - i];
    run->epoch_loss[run->epochs] = n ? sum / n : 0;
    run->epoch_x[run->epochs++] = (double)(run->first_step + run->steps) - 0.5 * n;
    ex_progress_break(&run->progress);
    printf("epoch %3ld  loss %.4f%s  found %.1f %%  cosine of positives %.2f, of others %.2f  "
           "spread %.3f of %.3f  rank %.1f\n",
           (long)report->epoch + 1, n ? sum / n : 0, chance, 100 * report->accuracy,
           report->positive, report->negative, report->std, report->std_reference, report->rank);
    fflush(stdout);
    return 0;
}

/* What the command line says of training, with the checkpoint in the --out folder. One that
   --resume cannot go on from ends the program here, before anything that takes time. */
EX_FN void ex_run_fit(ex_run *run, ctr_method *method, ctr_loader *loader, ctr_fit_config *fit)
{
    static char path[EX_PATH];
    ctr_position p;
    *fit = ctr_fit_default();
    fit->epochs = run->o->epochs;
    fit->lr = run->o->lr;
    fit->checkpoint = ex_out_path(run->o, "checkpoint.safetensors", path);
    fit->save_every = run->o->save_every;
    fit->resume = run->o->resume;
    fit->user = run;
    fit->step_fn = ex_run_step;
    fit->epoch_fn = ex_run_epoch;
    if (!ctr_fit_locate(method, loader, fit, &p)) ex_run_check(run);
    if (fit->resume && access(path, R_OK))
        printf("no %s to go on from: a new run\n", path);
    else if (fit->resume && p.epoch >= fit->epochs)
        printf("%s has all of its %ld epochs: there is nothing left to train\n", path,
               (long)fit->epochs);
    ex_out_make(run->o); /* now, not after minutes, if it cannot be made */
}

/* Trains from the start or, with --resume, from the checkpoint in the --out folder. */
EX_FN void ex_run_train(ex_run *run, ctr_method *method, ctr_loader *loader,
                        const ctr_fit_config *fit)
{
    int64_t batches = ctr_loader_batches(loader);
    ex_out_make(run->o);
    run->step_room = (int)(batches * fit->epochs);
    run->loss = (double *)ex_alloc(run, (size_t)run->step_room, sizeof(double));
    run->epoch_loss = (double *)ex_alloc(run, (size_t)fit->epochs, sizeof(double));
    run->epoch_x = (double *)ex_alloc(run, (size_t)fit->epochs, sizeof(double));
    run->progress.epochs = (int)fit->epochs;
    run->progress.steps = (int)batches;
    run->progress.images = run->o->batch;
    run->train_started = ex_seconds();
    if (ctr_fit(method, loader, fit) < 0) ex_run_check(run);
    run->trained_seconds = ex_seconds() - run->train_started;
    run->images = (double)run->steps * run->o->batch;
}

/* ---- pictures
   ---------------------------------------------------------------------------------- */

/* A picture that could not be written has said why. */
EX_FN void ex_run_drew(const ex_run *run, int failed)
{
    if (failed) ex_die(run->o, 2, "not every picture could be written to %s", run->o->out);
}

/* Numbers back to bytes, undoing the normalisation; gray stays gray. */
EX_FN void ex_bytes_of(const ctr_aug_config *aug, const ctr_real *x, int64_t c, unsigned char *out)
{
    int64_t i, n = aug->height * aug->width * c;
    for (i = 0; i < n; i++) {
        double v = (double)x[i] * aug->std[i % c] + aug->mean[i % c];
        out[i] = (unsigned char)(v < 0 ? 0 : v > 1 ? 255 : v * 255 + 0.5);
    }
}

/* Image `index` through an augmentation, as bytes [height, width, c]. */
EX_FN void ex_render(ex_run *run, const ctr_dataset *data, int64_t index, const ctr_aug_config *aug,
                     int view, unsigned char *out)
{
    ctr_image image;
    ctr_aug_params params;
    ctr_rng rng;
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(aug->height * aug->width * 3), sizeof *x);
    if (ctr_dataset_image(run->ctx, data, index, &image)) {
        ctr_rng_init(&rng, run->o->seed, CTR_STREAM_USER, 0, index, view);
        ctr_aug_sample(aug, &rng, image.h, image.w, &params);
        ctr_aug_view(run->ctx, aug, &params, image.pixels, image.h, image.w, image.c, x);
        ex_bytes_of(aug, x, image.c, out);
        ctr_image_free(run->ctx, &image);
    }
    free(x);
    ex_run_check(run);
}

/* A puzzle of image `index` as one picture [height, width, c]: its pieces on gray, in the order in
   which the network gets them, as far apart as there is room. */
EX_FN void ex_render_puzzle(ex_run *run, const ctr_dataset *data, int64_t index,
                            const ctr_aug_config *piece, int64_t height, int64_t width, int view,
                            unsigned char *out)
{
    int64_t g = piece->grid, h = piece->height, w = piece->width, i, y;
    int64_t down = h + (height - g * h) / (g + 1), across = w + (width - g * w) / (g + 1);
    int64_t top = (height - (g - 1) * down - h) / 2, left = (width - (g - 1) * across - w) / 2;
    ctr_aug_params *params = (ctr_aug_params *)ex_alloc(run, (size_t)(g * g), sizeof *params);
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(h * w * 3), sizeof *x);
    unsigned char *bytes = (unsigned char *)ex_alloc(run, (size_t)(h * w * 3), 1);
    ctr_image image;
    ctr_rng rng;
    if (ctr_dataset_image(run->ctx, data, index, &image)) {
        memset(out, 160, (size_t)(height * width * image.c));
        ctr_rng_init(&rng, run->o->seed, CTR_STREAM_USER, 0, index, view);
        ctr_aug_jigsaw_sample(piece, &rng, image.h, image.w, params);
        for (i = 0; i < g * g; i++) {
            ctr_aug_view(run->ctx, piece, &params[i], image.pixels, image.h, image.w, image.c, x);
            ex_bytes_of(piece, x, image.c, bytes);
            for (y = 0; y < h; y++)
                memcpy(out + ((top + i / g * down + y) * width + left + i % g * across) * image.c,
                       bytes + y * w * image.c, (size_t)(w * image.c));
        }
        ctr_image_free(run->ctx, &image);
    }
    free(params);
    free(x);
    free(bytes);
    ex_run_check(run);
}

EX_FN ex_images ex_images_make(ex_run *run, const ctr_dataset *data, const ctr_aug_config *aug,
                               int count)
{
    ex_images images;
    images.count = count;
    images.height = (int)aug->height;
    images.width = (int)aug->width;
    images.channels = (int)ctr_dataset_channels(data);
    images.pixels = (unsigned char *)ex_alloc(
        run, (size_t)count, (size_t)(images.height * images.width * images.channels));
    return images;
}

EX_FN unsigned char *ex_image_at(ex_images images, int i)
{
    return (unsigned char *)(size_t)(const void *)images.pixels +
           (size_t)i * (size_t)(images.height * images.width * images.channels);
}

/* views.png: what the network gets to see, six views each of a few images; with pieces of a puzzle
   (not NULL) three views and three puzzles. */
EX_FN void ex_draw_views(ex_run *run, const ctr_dataset *data, const ctr_aug_config *view,
                         const ctr_aug_config *piece, const ctr_aug_config *clean,
                         const char *name, const char *title)
{
    static const char *const captions[] = { "view 1", "view 2", "view 3", "puzzle 1", "puzzle 2",
                                            "puzzle 3" };
    int rows = (int)(ctr_dataset_count(data) < 8 ? ctr_dataset_count(data) : 8), k = 6, i, j;
    ex_images originals = ex_images_make(run, data, clean, rows);
    ex_images views = ex_images_make(run, data, view, rows * k);
    char path[EX_PATH];
    for (i = 0; i < rows; i++) {
        ex_render(run, data, i, clean, 0, ex_image_at(originals, i));
        for (j = 0; j < k; j++)
            if (piece && j >= 3)
                ex_render_puzzle(run, data, i, piece, view->height, view->width, j,
                                 ex_image_at(views, i * k + j));
            else
                ex_render(run, data, i, view, j, ex_image_at(views, i * k + j));
    }
    ex_run_drew(run, ex_sheet_views(ex_out_path(run->o, name, path), title, originals, views, k,
                                    piece ? captions : NULL));
    free(ex_image_at(originals, 0));
    free(ex_image_at(views, 0));
}

/* The colour pictures beside the default data, if they are there: gray ones show no colour
   jitter. */
EX_FN void ex_draw_colour_views(ex_run *run)
{
    char path[EX_PATH + 16];
    ctr_dataset *pictures;
    ctr_aug_config clean = ctr_aug_none_default(96), view = ctr_aug_simclr_default(96);
    if (ctr_dataset_channels(run->train) != 1) return;
    snprintf(path, sizeof path, "%s/pictures", run->o->data);
    if (access(path, R_OK)) return;
    pictures = ctr_dataset_open(run->ctx, path, NULL, NULL);
    ex_run_check(run);
    ex_draw_views(run, pictures, &view, NULL, &clean, "views_colour.png",
                  "SimCLR's augmentations at 96 pixels: crop, flip, colour jitter, gray, blur");
    ctr_dataset_destroy(run->ctx, pictures);
}

/* loss.svg: every step thin, the epochs' means on top, the value at chance dashed. */
EX_FN void ex_draw_loss(ex_run *run)
{
    ex_series series[2];
    ex_panel panel;
    char path[EX_PATH], title[96], label[64];
    double *x = (double *)ex_alloc(run, (size_t)run->steps, sizeof *x);
    int i;
    for (i = 0; i < run->steps; i++) x[i] = (double)(run->first_step + i + 1);
    memset(series, 0, sizeof series);
    memset(&panel, 0, sizeof panel);
    series[0].name = "mean of the epoch";
    series[0].x = run->epoch_x;
    series[0].y = run->epoch_loss;
    series[0].count = run->epochs;
    series[1].name = "each step";
    series[1].x = x;
    series[1].y = run->loss;
    series[1].count = run->steps;
    series[1].faint = 1;
    panel.x_title = "step";
    panel.y_title = "loss";
    panel.series = series;
    panel.count = 2;
    panel.chance = run->chance;
    snprintf(label, sizeof label, "at chance: %.2f", run->chance);
    panel.chance_label = run->chance >= 0 ? label : NULL; /* VICReg has none */
    snprintf(title, sizeof title, "%s: loss while training", run->o->method);
    ex_run_drew(run, ex_svg_curve(ex_out_path(run->o, "loss.svg", path), title, &panel, 1));
    free(x);
}

typedef struct ex_embedded {       /* a dataset's representations */
    int64_t n, d;
    ctr_real *x;
    int32_t *labels;
} ex_embedded;

EX_FN ex_embedded ex_embed(ex_run *run, ctr_method *method, const ctr_dataset *data)
{
    ex_embedded e;
    e.n = ctr_dataset_count(data);
    e.d = method->features;
    e.x = (ctr_real *)ex_alloc(run, (size_t)(e.n * e.d), sizeof *e.x);
    e.labels = (int32_t *)ex_alloc(run, (size_t)e.n, sizeof *e.labels);
    ctr_method_represent_dataset(run->ctx, method, data, &run->clean, 0, e.x, e.labels);
    ex_run_check(run);
    return e;
}

/* What classes are called: a line each in "classes.txt" beside the data, or else by the dataset;
   NULL
 * if neither knows. text holds the lines. */
EX_FN const char **ex_class_names(ex_run *run, const ctr_dataset *data, int *count, char text[2048])
{
    const char **names;
    char path[EX_PATH + 16];
    FILE *file;
    int i = 0;
    *count = (int)ctr_dataset_classes(data);
    names = (const char **)ex_alloc(run, (size_t)*count, sizeof *names);
    snprintf(path, sizeof path, "%s/classes.txt", run->o->data);
    file = fopen(path, "rb");
    if (file) {
        text[fread(text, 1, 2047, file)] = 0;
        fclose(file);
        for (; i < *count && *text; i++) {
            names[i] = text;
            text += strcspn(text, "\n");
            if (*text) *text++ = 0;
        }
        if (i == *count) return names;
    }
    for (i = 0; i < *count; i++) names[i] = ctr_dataset_class_name(data, i);
    if (*count && names[0][0]) return names;
    free(names);
    return NULL;
}

/* map.svg: t-SNE of up to 2,000 representations, coloured by class. */
EX_FN void ex_draw_map(ex_run *run, const ex_embedded *e, const char *const *names, int classes)
{
    int64_t n = e->n < 2000 ? e->n : 2000;
    ctr_real *xy = (ctr_real *)ex_alloc(run, (size_t)(2 * n), sizeof *xy);
    float *plane = (float *)ex_alloc(run, (size_t)(2 * n), sizeof *plane);
    ctr_points points = ctr_points_make(n, e->d, e->x, e->labels);
    char path[EX_PATH], title[96];
    int64_t i;
    ctr_tsne_map(run->ctx, &points, NULL, xy, NULL);
    ex_run_check(run);
    for (i = 0; i < 2 * n; i++) plane[i] = (float)xy[i];
    snprintf(title, sizeof title, "%s: %ld %simages as the encoder sees them", run->o->method,
             (long)n, run->test ? "test " : "");
    ex_run_drew(run, ex_svg_map(ex_out_path(run->o, "map.svg", path), title,
                                classes ? "t-SNE of the representations; colours are the classes"
                                        : "t-SNE of the representations",
                                plane, classes ? e->labels : NULL, (int)n, names, classes));
    free(xy);
    free(plane);
}

/* neighbours.png: eight test images and the training images that lie nearest. */
EX_FN void ex_draw_neighbours(ex_run *run, const ex_embedded *gallery, const ex_embedded *queries,
                              const char *const *names, int classes)
{
    enum { ROWS = 8, K = EX_NEIGHBOURS };
    int rows = queries->n < ROWS ? (int)queries->n : (int)ROWS, i, j, self = run->test ? 0 : 1;
    int64_t found[ROWS * (K + 1)], index[ROWS * K];
    ctr_real similarity[ROWS * (K + 1)];
    int32_t query[ROWS], nearest[ROWS * K], labels[ROWS * K];
    float close[ROWS * K];
    ctr_points a = ctr_points_make(gallery->n, gallery->d, gallery->x, NULL);
    ctr_points b = ctr_points_make(rows, queries->d, queries->x, NULL);
    const ctr_dataset *from = run->test ? run->test : run->train;
    ex_images left = ex_images_make(run, from, &run->clean, rows);
    ex_images right = ex_images_make(run, run->train, &run->clean, rows * K);
    ex_neighbours sheet;
    char path[EX_PATH];
    ctr_neighbors_find(run->ctx, &a, &b, K + self, found, similarity);
    ex_run_check(run);
    for (i = 0; i < rows; i++) /* without test images the nearest is the image itself: left out */
        for (j = 0; j < K; j++) {
            index[i * K + j] = found[i * (K + self) + j + self];
            close[i * K + j] = (float)similarity[i * (K + self) + j + self];
        }
    for (i = 0; i < rows; i++) {
        query[i] = i;
        ex_render(run, from, i, &run->clean, 0, ex_image_at(left, i));
        for (j = i * K; j < (i + 1) * K; j++) {
            nearest[j] = j;
            labels[j] = index[j] >= 0 ? gallery->labels[index[j]] : -1;
            if (index[j] >= 0)
                ex_render(run, run->train, index[j], &run->clean, 0, ex_image_at(right, j));
        }
    }
    memset(&sheet, 0, sizeof sheet);
    sheet.queries = left;
    sheet.gallery = right;
    sheet.rows = rows;
    sheet.k = K;
    sheet.query = query;
    sheet.nearest = nearest;
    sheet.similarity = close;
    sheet.query_labels = classes ? queries->labels : NULL;
    sheet.gallery_labels = classes ? labels : NULL;
    sheet.names = names;
    sheet.names_count = names ? classes : 0;
    ex_run_drew(run, ex_sheet_neighbours(ex_out_path(run->o, "neighbours.png", path), run->test ?
                                         "test images and the nearest training images by cosine" :
                                         "images and the nearest others by cosine", &sheet));
    free(ex_image_at(left, 0));
    free(ex_image_at(right, 0));
}

/* " loss=3.1416" of the last epoch; nothing if no epoch came to its end here. */
EX_FN const char *ex_run_loss(const ex_run *run, char text[48])
{
    text[0] = 0;
    if (run->epochs) snprintf(text, 48, " loss=%.4f", run->epoch_loss[run->epochs - 1]);
    return text;
}

/* Scores, embeddings.npy, pictures, and the one line that scripts read. */
EX_FN void ex_run_after(ex_run *run, ctr_method *method, const ctr_aug_config *view)
{
    const ctr_dataset *judged = run->test ? run->test : run->train;
    const ctr_aug_config *piece = NULL; /* of a puzzle */
    ex_embedded train, test;
    int64_t shape[2];
    int classes, i;
    char path[EX_PATH], lines[2048], loss[48];
    const char **names = ex_class_names(run, judged, &classes, lines);
    ex_run_scores(run, method, "trained encoder", &run->trained);
    train = ex_embed(run, method, run->train);
    test = run->test ? ex_embed(run, method, run->test) : train;
    shape[0] = test.n;
    shape[1] = test.d;
    ctr_npy_save(run->ctx, ex_out_path(run->o, "embeddings.npy", path),
                 sizeof(ctr_real) == 8 ? CTR_FILE_F64 : CTR_FILE_F32, 2, shape, test.x);
    ex_run_check(run);
    for (i = 0; i < method->views && !piece; i++)
        if (method->augs[i].grid) piece = &method->augs[i];
    ex_draw_views(run, run->train, view, piece, &run->clean, "views.png",
                  piece ? "the image, views and puzzles of it: what training pulls together"
                        : "the image and six of its views: what training pulls together");
    ex_draw_colour_views(run);
    if (run->steps) ex_draw_loss(run);
    ex_draw_map(run, &test, names, classes);
    ex_draw_neighbours(run, &train, &test, names, classes);
    printf("written to %s: checkpoint.safetensors embeddings.npy %sviews.png map.svg "
           "neighbours.png\n", run->o->out, run->steps ? "loss.svg " : "");
    printf(
        "result method=%s epochs=%d%s knn=%.2f linear=%.2f linear_10=%.2f knn_views=%.2f "
        "knn_random=%.2f linear_random=%.2f knn_views_random=%.2f knn_pixels=%.2f "
        "linear_pixels=%.2f knn_views_pixels=%.2f images_per_s=%.0f peak_mb=%.0f seconds=%.1f\n",
        run->o->method, run->o->epochs, ex_run_loss(run, loss),
        run->trained.knn, run->trained.linear, run->trained.linear_10, run->trained.knn_views,
        run->untrained.knn, run->untrained.linear, run->untrained.knn_views, run->pixels.knn,
        run->pixels.linear, run->pixels.knn_views,
        run->trained_seconds > 0 ? run->images / run->trained_seconds : 0, ex_peak_mb(),
        ex_seconds() - run->started);
    if (fflush(stdout) != 0) ex_die(run->o, 2, "the result could not be printed");
    free(names);
    free(train.x);
    free(train.labels);
    if (run->test) {
        free(test.x);
        free(test.labels);
    }
}

/* All of it around a method: batches of its views, scores, training, scores again. view: one of
   the augmentations it trains with, for the pictures. */
EX_FN void ex_run_method(ex_run *run, ctr_method *method, const ctr_aug_config *view)
{
    ctr_loader *loader = ex_run_loader(run, method);
    ctr_fit_config fit;
    ex_run_fit(run, method, loader, &fit);
    ex_run_before(run, method);
    ex_run_train(run, method, loader, &fit);
    ex_run_after(run, method, view);
    ctr_loader_destroy(run->ctx, loader);
}

EX_FN void ex_run_close(ex_run *run)
{
    ctr_dataset_destroy(run->ctx, run->train);
    ctr_dataset_destroy(run->ctx, run->test);
    ctr_dataset_destroy(run->ctx, run->all_train);
    ctr_dataset_destroy(run->ctx, run->all_test);
    ctr_ctx_destroy(run->ctx);
    ex_device_close(run->device);
    free(run->loss);
    free(run->epoch_loss);
    free(run->epoch_x);
}

#endif /* EX_REPORT_H */
