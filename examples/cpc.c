/* CPC: from what has been seen of an image, tell what comes further down from what does not.
 *
 * Aaron van den Oord, Yazhe Li, Oriol Vinyals: "Representation Learning with Contrastive Predictive
 * Coding", 2018. A sequence is read step by step; what has been read is summed up in a context, and
 * the context has to pick the embedding of a later step among those of other sequences: the paper's
 * name for that loss, InfoNCE, has stayed. An image is a sequence of rows of overlapping patches,
 * from top to bottom. One view is enough: the parts of an image are each other's positives.
 *
 *   augmentation        crop, flip, always gray: colours alone would tell patches of one image
 *   parallel views      none; all patches through one encoder (end-to-end)
 *   positives           the patch k rows below, for several k
 *   negatives           all other patches of the batch, of the same image and of others
 *   loss                InfoNCE, mean over k
 *   modality            images as sequences (the paper: also sound, text, games)
 *
 *        row 1 of patches --> encoder --> z_1 --> GRU --> c_1 --> W_2 c_1, W_3 c_1, ... -+
 *                              |                   |                                     |
 *        row 2            --> encoder --> z_2 --> GRU --> c_2 --> W_2 c_2, ...          -+
 *                              |                   |                                     |
 *        row 3            --> encoder --> z_3 --> ...                                    v
 *                                          +------------------------------------------> InfoNCE
 *
 *   loss = mean over k, and over contexts c at (row, column), of
 *          -log exp(z_+ . W_k c) / sum over z of exp(z . W_k c),   z_+ at (row + k, column)
 *   z: all patches of the batch from row 1 + k on. At chance ln of their number.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o cpc examples/cpc.c -lm -lpthread && ./cpc
 * Last line, by default:
 *     result method=cpc epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-101's first three stages */
#define EPOCHS      6         /*                                does not say */
#define BATCH       32        /*                                512 */
#define RATE        0.001     /* AdamW, cosine                  Adam, 2e-4 */
#define PATCHES     4         /* a quarter of the side, ...     a quarter: 64 of 256 pixels */
#define OVERLAP     2         /* ... each half over the last    a half: 7 x 7 patches */
#define CONTEXT     64        /* GRU down each column           PixelCNN over rows */
#define FIRST       2         /* rows ahead; the next one ...   2 */
#define LAST        5         /* ... shares pixels              5 */
#define CROP_MIN    0.73      /* share of the area              0.73: 256 of 300 pixels */

/* The loss by hand: predictions W_k c and patches z [n, d], row i of one belonging to row i of the
   other. */
static ctr_tensor *infonce_by_hand(ctr_ctx *ctx, ctr_tensor *predicted, ctr_tensor *z)
{
    int64_t n = z->shape[0], i, column[2] = { -1, 1 };
    ctr_tensor *scores = ctr_matmul(ctx, predicted, 0, z, 1), *own;            /* [n, n] */
    ctr_tensor *diagonal = ctr_tensor_temp(ctx, CTR_I32, 1, &n);
    int32_t *at = (int32_t *)malloc((size_t)n * sizeof *at);
    for (i = 0; at && i < n; i++) at[i] = (int32_t)(i * n + i);
    if (at) ctr_tensor_write_i32(ctx, diagonal, at, n);
    free(at);
    own = ctr_gather(ctx, ctr_reshape(ctx, ctr_softmax(ctx, scores), 2, column), diagonal);
    return ctr_scale(ctx, ctr_mean(ctx, ctr_log(ctx, own), -1), -1);
}

static void compare_losses(ex_run *run)
{
    enum { N = 8 };
    int32_t ids[N];
    int64_t n = N, i;
    ctr_tensor *p, *z, *target;
    for (i = 0; i < N; i++) ids[i] = (int32_t)i;
    ctr_step_begin(run->ctx);
    p = ex_random(run, N, 16, 0);
    z = ex_random(run, N, 16, 1);
    target = ctr_tensor_temp(run->ctx, CTR_I32, 1, &n);
    ctr_tensor_write_i32(run->ctx, target, ids, N);
    ex_run_compare(run, "InfoNCE", infonce_by_hand(run->ctx, p, z),
                   ctr_cross_entropy(run->ctx, ctr_matmul(run->ctx, p, 0, z, 1), target, -1));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_cpc_config config = ctr_cpc_default();
    ctr_method *method;
    int patch = 0, stride = 0, context = CONTEXT, first = FIRST, last = LAST, colour = 0;

    /* 1. the command line */
    ex_options_init(&o, "cpc", "predict the rows of patches further down", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--patch", "PIXELS", EX_INT, &patch, 2, 4096, "0: a quarter of the image");
    ex_options_add(&o, "--stride", "PIXELS", EX_INT, &stride, 1, 4096, "0: half a patch");
    ex_options_add(&o, "--context", "N", EX_INT, &context, 1, 65536, "numbers in the context");
    ex_options_add(&o, "--first", "K", EX_INT, &first, 1, 8, "nearest row ahead to predict");
    ex_options_add(&o, "--last", "K", EX_INT, &last, 1, 8, "farthest row ahead to predict");
    ex_options_add(&o, "--colour", NULL, EX_FLAG, &colour, 0, 1, "images keep their colours");
    ex_options_drop(&o, "--temperature");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: one view, patches, encoder, GRU, a linear prediction for each k, optimiser */
    ex_run_encoder(&run, &config.encoder);
    config.patch = patch ? patch : run.view.height / PATCHES;
    config.stride = stride ? stride : (config.patch + OVERLAP - 1) / OVERLAP;
    config.encoder.image_size = config.patch;
    config.context = context;
    config.first = first;
    config.last = last;
    config.aug.height = config.aug.width = run.view.height;
    config.aug.crop_min = CROP_MIN;
    config.aug.gray_p = colour ? 0 : 1;
    method = ctr_cpc_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[0]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
