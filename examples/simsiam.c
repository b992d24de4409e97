/* SimSiam: predict the other view's embedding; a stopped gradient is all that keeps it alive.
 *
 * Xinlei Chen, Kaiming He: "Exploring Simple Siamese Representation Learning", 2021. Both views go
 * through one network; a predictor turns each projection into a guess of the other one, which is
 * held fixed. There is no target network, no queue and no negative: without the stopped gradient
 * all images fall onto one point within an epoch. Watch "std" and "rank" while it trains.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray (blur for larger images)
 *   parallel views      end-to-end, but the view that is predicted gets no gradient
 *   positives           the other view of the same image
 *   negatives           none
 *   loss                negative cosine, both directions
 *   modality            images
 *
 *        view 1 --> encoder --> projector --> z1 --> predictor --> p1 --+
 *                      | same weights                                   +--> -cos(p1, z2)
 *        view 2 --> encoder --> projector --> z2 --> // ----------------+     // no gradient
 *
 *   loss = -(cos(p1, z2) + cos(p2, z1)) / 2, mean over the images: -1..1, at chance 0.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o simsiam examples/simsiam.c -lm -lpthread && ./simsiam
 * Last line, by default:
 *     result method=simsiam epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50; CIFAR-10: ResNet-18 */
#define EPOCHS      12        /*                                100; CIFAR-10: 800 */
#define BATCH       32        /* with 128 too few steps         512 */
#define RATE        0.06      /* SGD, momentum 0.9, cosine      0.05 x batch / 256; CIFAR-10 0.03 */
#define LAYERS      2         /* of the projector               3; CIFAR-10 2 */
#define DIM         256       /*                                2048 */
#define PREDICTOR   64        /* a quarter of it                512 */
#define CROP_MIN    0.2       /* share of the area              0.2 */

/* Half of the loss by hand, p, z [n, d]: mean of -cos(p, z), z held fixed. */
static ctr_tensor *cosine_by_hand(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    ctr_tensor *fixed = ctr_detach(ctx, ctr_normalize(ctx, z));
    ctr_tensor *cosine = ctr_sum(ctx, ctr_mul(ctx, ctr_normalize(ctx, p), fixed), 1);
    return ctr_scale(ctx, ctr_mean(ctx, cosine, 0), -1);
}

static void compare_losses(ex_run *run)
{
    ctr_tensor *p, *z;
    ctr_step_begin(run->ctx);
    p = ex_random(run, 8, 16, 0);
    z = ex_random(run, 8, 16, 1);
    ex_run_compare(run, "negative cosine", cosine_by_hand(run->ctx, p, z),
                   ctr_loss_negative_cosine(run->ctx, p, z));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_simsiam_config config = ctr_simsiam_default();
    ctr_method *method;
    int dim = DIM, layers = LAYERS, predictor = PREDICTOR, falling = 0;

    /* 1. the command line */
    ex_options_init(&o, "simsiam", "predict the other view, whose gradient is stopped", __FILE__);
    ex_options_drop(&o, "--temperature");
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--layers", "N", EX_INT, &layers, 1, 4, "of the projector");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_add(&o, "--predictor", "N", EX_INT, &predictor, 1, 65536, "its hidden layer");
    ex_options_add(&o, "--falling", "", EX_FLAG, &falling, 0, 1,
                   "the predictor's rate falls as well; theirs does not");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: views, encoder, projector, predictor, optimiser */
    config.aug = ctr_aug_moco_default(run.view.height, 2, 0);
    config.aug.crop_min = CROP_MIN;
    config.proj_layers = layers;
    config.proj_dim = dim;
    config.pred_hidden = predictor;
    config.fixed_predictor = !falling;
    ex_run_encoder(&run, &config.encoder);
    config.encoder.zero_init = 0;                                 /* the paper's: 1 */
    method = ctr_simsiam_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[1]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
