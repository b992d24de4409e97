/* Big batches on a small machine: the exact step of thousands of images in the memory of a hundred.
 *
 * Luyu Gao, Yunyi Zhang, Jiawei Han, Jamie Callan: "Scaling Deep Contrastive Learning Batch Size
 * under Memory Limited Setup", 2021 ("GradCache"). Contrastive losses compare every image with all
 * others of its batch, so a batch cannot be cut into small ones whose gradients are added: each
 * would lose its negatives. But the loss needs the embeddings alone, a few numbers an image; what
 * fills the memory are the encoder's activations. So they are computed twice, a chunk at a time.
 *
 *   augmentation        each method's own, as in its example
 *   parallel views      as the method has it: --method simclr, mocov3, barlow_twins, vicreg
 *   positives           as the method has them
 *   negatives           as the method has them, from the whole batch
 *   loss                the method's, of the whole batch at once
 *   modality            images
 *
 *        1. chunk 1..C    x_c --> encoder --> z_c             values kept, activations dropped
 *        2. once          z = [z_1 .. z_C] --> loss           and dz, the gradient at each z
 *        3. chunk 1..C    x_c --> encoder --> z_c <-- dz_c    gradients add up in the weights
 *
 *   dL/dw = sum over chunks c of (dz_c/dw)^T dL/dz_c:  the chain rule, so it is exact, not near.
 *
 * What it costs: the forward pass twice, a third more work. What it does not keep: batch norm. Its
 * mean and variance are those of a chunk, not of the batch, as on so many GPUs without synchronised
 * batch norm; with fixed statistics or layer norm the step is that of the whole batch. --chunk says
 * how many images; compare batch sizes with the same chunk, as the curve below does.
 *
 * CLIP takes chunks, too, of its pictures (./clip --batch 1024 --chunk 64); all captions of a batch
 * pass its text tower at once. With a queue or a bank there is nothing to gain.
 *
 * Build and run, from the folder of contrastive.h: a curve of accuracy over batch sizes, all of
 * which see the same number of images, or one batch size
 *     cc -O2 -o bigbatch examples/bigbatch.c -lm -lpthread && ./bigbatch
 *     ./bigbatch --batch 8192
 * Last line of the curve (percentages on the test images):
 *     result method=bigbatch of=simclr epochs=... chunk=128 knn_128=... knn_8192=... peak_mb=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours                             theirs */
#define ARCH        "resnet8" /* 76,000 weights, 64 features   BERT; SimCLR: ResNet-50 */
#define EPOCHS      8         /*                               SimCLR: 100 to 1000 */
#define CHUNK       128       /* images whose activations fit  as many as fit */
#define TEMPERATURE 0.2
#define HIDDEN      256
#define CROP_MIN    0.2

static const int64_t sizes[] = { 128, 512, 2048, 8192 }; /* 8192: SimCLR's largest, on 128 TPUs */
#define SIZES ((int)(sizeof sizes / sizeof *sizes))

/* ==== The step by hand ======================================================================= */

/* A linear encoder z = x w^T and NT-Xent: dw [k, d] of the rows x [m, d], in `parts` chunks. */
static void gradient_by_hand(ctr_ctx *ctx, const ctr_real *x, ctr_tensor *w, int64_t m, int parts,
                             ctr_real *dw)
{
    int64_t d = w->shape[1], k = w->shape[0], rows = m / parts, all[2], in[2], out[2];
    ctr_tensor *z, *zc, *xc, *dz;
    ctr_real *cache = (ctr_real *)malloc((size_t)(m * k) * sizeof *cache); /* z, then dz */
    int c, pass;
    if (!cache) return;
    all[0] = m, in[0] = out[0] = rows;
    all[1] = out[1] = k, in[1] = d;
    z = ctr_tensor_create(ctx, CTR_F32, 2, all, 1);              /* a leaf: it gets a gradient */
    ctr_step_begin(ctx);
    for (pass = 1; pass <= 3; pass += 2) {
        for (c = 0; c < parts; c++) {
            if (pass == 1) ctr_nograd_begin(ctx);
            xc = ctr_tensor_temp(ctx, CTR_F32, 2, in);
            ctr_tensor_write(ctx, xc, x + c * rows * d, rows * d);
            zc = ctr_matmul(ctx, xc, 0, w, 1);                   /* [rows, k] */
            if (pass == 1) {
                ctr_tensor_read(ctx, zc, cache + c * rows * k, rows * k);
                ctr_nograd_end(ctx);
            } else {
                dz = ctr_tensor_temp(ctx, CTR_F32, 2, out);
                ctr_tensor_write(ctx, dz, cache + c * rows * k, rows * k);
                ctr_backward_from(ctx, zc, dz);                  /* adds to the gradient of w */
            }
            ctr_tape_reset(ctx);                                 /* the activations are gone */
        }
        if (pass == 3) break;
        ctr_tensor_write(ctx, z, cache, m * k);                  /* 2. one loss over all */
        ctr_backward(ctx, ctr_loss_nt_xent(ctx, z, 2, TEMPERATURE));
        ctr_tensor_read_grad(ctx, z, cache, m * k);
        ctr_tape_reset(ctx);
    }
    ctr_tensor_read_grad(ctx, w, dw, k * d);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, z);
    free(cache);
}

static ctr_tensor *length(ctr_ctx *ctx, const ctr_real *x, int64_t n)
{
    ctr_tensor *t = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
    ctr_tensor_write(ctx, t, x, n);
    return ctr_sqrt(ctx, ctr_sum(ctx, ctr_mul(ctx, t, t), -1));
}

/* In four chunks by hand, and by autograd from the loss straight to the weights. */
static void compare_steps(ex_run *run)
{
    enum { M = 16, D = 12, K = 6 };
    ctr_ctx *ctx = run->ctx;
    int64_t shape[2] = { K, D };
    ctr_real x[M * D], start[K * D], hand[K * D], whole[K * D], apart[K * D];
    ctr_tensor *w = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1), *rows;
    int i;
    ctr_step_begin(ctx);
    ctr_tensor_read(ctx, ex_random(run, K, D, 0), start, K * D);
    ctr_tensor_write(ctx, w, start, K * D);
    rows = ex_random(run, M, D, 1);
    ctr_tensor_read(ctx, rows, x, M * D);
    ctr_backward(ctx, ctr_loss_nt_xent(ctx, ctr_matmul(ctx, rows, 0, w, 1), 2, TEMPERATURE));
    ctr_tensor_read_grad(ctx, w, whole, K * D);
    ctr_step_end(ctx);
    gradient_by_hand(ctx, x, w, M, 4, hand);
    for (i = 0; i < K * D; i++) apart[i] = hand[i] - whole[i];
    ctr_step_begin(ctx);
    ex_run_compare(run, "Length of the gradient in chunks", length(ctx, hand, K * D),
                   length(ctx, whole, K * D));
    printf("the difference of the two gradients is %.1e long\n",
           (double)ctr_tensor_item(ctx, length(ctx, apart, K * D)));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, w);
    ex_run_check(run);
}

/* ==== The methods ============================================================================ */

typedef struct kind {
    const char *name;
    double rate; /* SGD, at 128 images; others by the square root (Krizhevsky, 2014) */
} kind;
static const kind kinds[] = {
    { "simclr", 0.3 }, { "mocov3", 0.12 }, { "barlow_twins", 0.02 }, { "vicreg", 0.06 }
};

static ctr_method *make(ex_run *run, const char *name)
{
    ctr_simclr_config simclr = ctr_simclr_default();
    ctr_moco_config moco = ctr_moco_default(3);
    ctr_barlow_twins_config barlow = ctr_barlow_twins_default();
    ctr_vicreg_config vicreg = ctr_vicreg_default();
    ctr_resnet_config encoder = simclr.encoder;
    ctr_method *m;
    int64_t side = run->view.height;
    int i;
    ex_run_encoder(run, &encoder);
    simclr.encoder = moco.encoder = barlow.encoder = vicreg.encoder = encoder;
    simclr.optim = ctr_optim_config_default(CTR_OPTIM_SGD); /* the papers': LARS, for long runs */
    moco.optim = barlow.optim = vicreg.optim = simclr.optim;
    simclr.temperature = moco.temperature = run->o->temperature;
    simclr.aug = ctr_aug_simclr_default(side);
    simclr.aug.crop_min = 0.5;
    simclr.aug.brightness = simclr.aug.contrast = simclr.aug.saturation = 0.4;
    for (i = 0; i < 2; i++) {
        moco.aug[i] = ctr_aug_moco_default(side, 3, i);
        barlow.aug[i] = vicreg.aug[i] = ctr_aug_byol_default(side, i);
        barlow.aug[i].crop_min = vicreg.aug[i].crop_min = CROP_MIN;
        vicreg.aug[i].solarize_p = 0.1;
    }
    moco.momentum = 0.99;
    moco.proj_dim = 128;
    simclr.proj_hidden = moco.proj_hidden = moco.pred_hidden = HIDDEN;
    barlow.proj_dim = vicreg.proj_dim = HIDDEN;
    if (!strcmp(name, "mocov3")) m = ctr_moco_create(run->ctx, &moco);
    else if (!strcmp(name, "barlow_twins")) m = ctr_barlow_twins_create(run->ctx, &barlow);
    else if (!strcmp(name, "vicreg")) m = ctr_vicreg_create(run->ctx, &vicreg);
    else m = ctr_simclr_create(run->ctx, &simclr);
    ex_run_check(run);
    return m;
}

/* ==== One batch size, and the curve ========================================================== */

/* The images, the first ones once more until their number is a multiple of the batch: 8,192 of
   8,000 images have 192 twice, false negatives of each other: 192 of 33 million pairs. */
static ctr_dataset *whole_batches(ex_run *run, int64_t batch)
{
    int64_t n = ctr_dataset_count(run->train), count = (n + batch - 1) / batch * batch, i;
    int64_t *index = (int64_t *)ex_alloc(run, (size_t)count, sizeof *index);
    ctr_dataset *d;
    for (i = 0; i < count; i++) index[i] = i % n;
    if (count > n)
        printf("whole batches of %ld take %ld images, there are %ld: each comes %ld or %ld times "
               "an epoch; copies in a batch are false negatives\n", (long)batch, (long)count,
               (long)n, (long)(count / n), (long)((count + n - 1) / n));
    d = ctr_dataset_select(run->ctx, run->train, count, index);
    free(index);
    ex_run_check(run);
    return d;
}

static ctr_loader *load(ex_run *run, ctr_method *m, ctr_dataset *images, int64_t batch)
{
    ctr_dataset *all = run->train;
    ctr_loader *loader;
    run->train = images;
    run->o->batch = (int)batch;
    loader = ex_run_loader(run, m);
    run->train = all;
    return loader;
}

/* What to train with; rate: at 128 images. */
static ctr_fit_config settings(ex_run *run, ctr_method *m, ctr_loader *loader, int chunk,
                               double rate)
{
    ctr_fit_config fit;
    ex_run_fit(run, m, loader, &fit);
    fit.lr = rate * sqrt((double)run->o->batch / 128);
    fit.chunk = chunk;
    return fit;
}

/* Says what a step takes whole and in chunks, then trains. Seconds of a step. */
static double train(ex_run *run, ctr_method *m, ctr_loader *loader, ctr_fit_config fit)
{
    int64_t chunk = fit.chunk, batch = run->o->batch, c = ctr_dataset_channels(run->train);
    int64_t side = run->view.height;
    size_t whole = ctr_method_plan(m, batch, side, side, c);
    size_t part = ctr_method_plan(m, chunk < batch ? chunk : batch, side, side, c);
    double seconds;
    printf("\nbatch %ld: %ld steps, rate %.3g; activations of a step: %.0f MB whole, %.0f MB a "
           "chunk of %ld; batch norm sees the chunk\n", (long)batch,
           (long)(ctr_loader_batches(loader) * fit.epochs), fit.lr, (double)whole / 1e6,
           (double)part / 1e6, (long)(chunk < batch ? chunk : batch));
    ex_run_train(run, m, loader, &fit);
    seconds = run->steps ? run->trained_seconds / run->steps : 0;
    printf("batch %ld: %.2f s a step, %.0f images/s, peak %.0f MB\n", (long)batch, seconds,
           seconds > 0 ? (double)batch / seconds : 0, ex_peak_mb());
    return seconds;
}

static void draw(ex_run *run, const char *name, const double *x, const ctr_scores *s, int count,
                 int64_t images)
{
    double y[3][SIZES];
    static const char *const names[3] = { "k-NN", "linear probe", "k-NN through a view" };
    ex_series series[3];
    ex_panel panel;
    char path[EX_PATH], title[96];
    int i;
    memset(series, 0, sizeof series);
    memset(&panel, 0, sizeof panel);
    for (i = 0; i < count; i++) {
        y[0][i] = s[i].knn;
        y[1][i] = s[i].linear;
        y[2][i] = s[i].knn_views;
    }
    for (i = 0; i < 3; i++) {
        series[i].name = names[i];
        series[i].x = x;
        series[i].y = y[i];
        series[i].count = count;
    }
    panel.x_title = "images in a batch";
    panel.x_log = 2;
    panel.y_title = "accuracy in percent";
    panel.series = series;
    panel.count = 3;
    panel.chance = run->untrained.knn;
    panel.chance_label = "k-NN, untrained";
    snprintf(title, sizeof title, "%s after the same %d x %ld images", name, run->o->epochs,
             (long)images);
    ex_run_drew(run, ex_svg_curve(ex_out_path(run->o, "curve.svg", path), title, &panel, 1));
}

/* One point of the curve, in a folder of its own; returns the seconds of a step. scores NULL: only
   whether --resume can go on. */
static double point(ex_run *run, const char *name, ctr_dataset *images, int64_t size, int chunk,
                    double rate, ctr_scores *scores)
{
    static char folder[EX_PATH];
    const char *out = run->o->out;
    ctr_method *m = make(run, name); /* the same start for each */
    ctr_loader *loader = load(run, m, images, size);
    ctr_fit_config fit;
    double seconds = 0;
    snprintf(folder, sizeof folder, "%s/%ld", out, (long)size);
    run->o->out = folder;
    fit = settings(run, m, loader, chunk, rate);
    if (scores) {
        seconds = train(run, m, loader, fit);
        ex_run_scores(run, m, "trained encoder", scores);
    }
    ctr_loader_destroy(run->ctx, loader);
    ctr_method_destroy(m);
    free(run->loss);
    free(run->epoch_loss);
    free(run->epoch_x);
    run->loss = run->epoch_loss = run->epoch_x = NULL;
    run->steps = run->epochs = 0;
    run->o->out = out;
    return seconds;
}

static void curve(ex_run *run, const char *name, int chunk, double rate)
{
    const char *out = run->o->out;
    int64_t n = ctr_dataset_count(run->train);
    double x[SIZES], seconds[SIZES];
    ctr_scores scores[SIZES];
    int count = 1, i;
    ctr_dataset *images;
    ctr_method *m;
    while (count < SIZES && sizes[count] < 2 * n) count++;
    images = whole_batches(run, sizes[count - 1]); /* a multiple of all of them */
    for (i = 0; i < count && run->o->resume; i++)
        point(run, name, images, sizes[i], chunk, rate, NULL);
    m = make(run, name);
    ex_run_before(run, m);
    ctr_method_destroy(m);
    for (i = 0; i < count; i++) {
        seconds[i] = point(run, name, images, sizes[i], chunk, rate, &scores[i]);
        x[i] = log2((double)sizes[i]);
    }
    draw(run, name, x, scores, count, ctr_dataset_count(images));
    ctr_dataset_destroy(run->ctx, images);
    printf("written to %s: curve.svg, and a folder with a checkpoint for each batch size\n", out);
    printf("result method=bigbatch of=%s epochs=%d chunk=%d", name, run->o->epochs, chunk);
    for (i = 0; i < count; i++)
        printf(" knn_%ld=%.2f linear_%ld=%.2f knn_views_%ld=%.2f step_seconds_%ld=%.3f",
               (long)sizes[i], scores[i].knn, (long)sizes[i], scores[i].linear, (long)sizes[i],
               scores[i].knn_views, (long)sizes[i], seconds[i]);
    printf(" knn_random=%.2f linear_random=%.2f knn_pixels=%.2f linear_pixels=%.2f peak_mb=%.0f "
           "seconds=%.1f\n", run->untrained.knn, run->untrained.linear, run->pixels.knn,
           run->pixels.linear, ex_peak_mb(), ex_seconds() - run->started);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_method *method;
    ctr_loader *loader;
    ctr_fit_config fit;
    ctr_dataset *images;
    const char *name = kinds[0].name;
    int chunk = CHUNK, i;

    /* 1. the command line */
    ex_options_init(&o, "bigbatch", "the exact step of a batch that does not fit", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = 0;
    o.lr = 0;
    o.temperature = TEMPERATURE;
    ex_options_find(&o, "--batch", 7)->help = "one batch size; 0: a curve over several";
    ex_options_find(&o, "--lr", 4)->help = "learning rate at 128 images, others by the square\n"
                                           "root; 0: that of the method's example";
    ex_options_add(&o, "--method", "simclr|mocov3|barlow_twins|vicreg", EX_CHOICE, &name, 0, 0,
                   "whose loss");
    ex_options_add(&o, "--chunk", "N", EX_INT, &chunk, 2, 1000000,
                   "images embedded at a time; batch norm sees so many");
    ex_options_parse(&o, argc, argv);
    if (o.smoke && !ex_options_given(&o, "--chunk")) chunk = 64;
    if (o.smoke && !ex_options_given(&o, "--epochs")) o.epochs = 1;
    if (o.smoke && !ex_options_given(&o, "--arch")) o.arch = "resnet8-w8";
    for (i = 0; strcmp(name, kinds[i].name); i++) { }
    if (!ex_options_given(&o, "--lr")) o.lr = kinds[i].rate;

    /* 2. the data, and the step compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_steps(&run);

    /* 3. all batch sizes, or the one asked for: judge, train, judge again */
    if (!ex_options_given(&o, "--batch")) {
        curve(&run, name, chunk, o.lr);
    } else {
        method = make(&run, name);
        images = whole_batches(&run, o.batch);
        loader = load(&run, method, images, o.batch);
        fit = settings(&run, method, loader, chunk, o.lr);
        ex_run_before(&run, method);
        train(&run, method, loader, fit);
        ex_run_after(&run, method, &method->augs[1]);
        ctr_loader_destroy(run.ctx, loader);
        ctr_method_destroy(method);
        ctr_dataset_destroy(run.ctx, images);
    }
    ex_run_close(&run);
    return 0;
}
