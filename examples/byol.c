/* BYOL: predict what a slowly moving twin makes of the other view. No negatives at all.
 *
 * Jean-Bastien Grill et al.: "Bootstrap Your Own Latent: A New Approach to Self-Supervised
 * Learning", 2020. The online network and a predictor are trained to say what the target network
 * makes of the other view of the image; the target gets no gradient and follows the online network.
 * Nothing in the loss keeps all images from falling onto one point: the predictor, the stopped
 * gradient and batch norm do. Watch "std" and "rank" while it trains.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray; one view blurred (larger
 *                       images), the other one sometimes solarized
 *   parallel views      a target network that follows by a moving average
 *   positives           the other view of the same image
 *   negatives           none
 *   loss                squared distance of unit vectors, both directions
 *   modality            images
 *
 *        view 1 --> encoder --> projector --> predictor --> p1 --+
 *                      |                                         +--> |p1 - z2|^2
 *        view 2 --> target encoder --> target projector --> // --> z2
 *                      target = tau target + (1 - tau) online, tau rising to 1    // no gradient
 *
 *   loss = mean of |p1 - z2|^2 + |p2 - z1|^2 over the images, of unit vectors: 0..8, at chance 4.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o byol examples/byol.c -lm -lpthread && ./byol
 * Last line, by default:
 *     result method=byol epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                1000 (300: tau 0.99) */
#define BATCH       128       /*                                4096 */
#define RATE        0.12      /* SGD, momentum 0.9, cosine      LARS 0.2 x batch / 256 */
#define TAU         0.97      /* theirs for 40 epochs           0.996 */
#define HIDDEN      256       /*                                4096 */
#define DIM         64        /*                                256 */
#define CROP_MIN    0.2       /* share of the area              0.08 */

/* Half of the loss by hand, p, z [n, d]: mean of |p/|p| - z/|z||^2, z held fixed. */
static ctr_tensor *distance_by_hand(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    ctr_tensor *apart = ctr_sub(ctx, ctr_normalize(ctx, p), ctr_detach(ctx, ctr_normalize(ctx, z)));
    return ctr_mean(ctx, ctr_sum(ctx, ctr_mul(ctx, apart, apart), 1), 0);
}

static void compare_losses(ex_run *run)
{
    ctr_tensor *p, *z;
    ctr_step_begin(run->ctx);
    p = ex_random(run, 8, 16, 0);
    z = ex_random(run, 8, 16, 1);
    ex_run_compare(run, "BYOL's distance", distance_by_hand(run->ctx, p, z),
                   ctr_loss_regression(run->ctx, p, z));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_byol_config config = ctr_byol_default();
    ctr_method *method;
    int dim = DIM, hidden = HIDDEN, i;
    double tau = TAU;

    /* 1. the command line */
    ex_options_init(&o, "byol", "predict what a slower twin sees in the other view", __FILE__);
    ex_options_drop(&o, "--temperature");
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--tau", "X", EX_REAL, &tau, 0, 1, "the target's momentum at the start");
    ex_options_add(&o, "--hidden", "N", EX_INT, &hidden, 2, 65536,
                   "hidden layers of projector and predictor");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: two kinds of views, encoder, projector, predictor, target, optimiser */
    for (i = 0; i < 2; i++) {
        config.aug[i] = ctr_aug_byol_default(run.view.height, i);
        config.aug[i].crop_min = CROP_MIN;
    }
    config.momentum = tau;
    config.proj_hidden = config.pred_hidden = hidden;
    config.proj_dim = dim;
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(&run, &config.encoder);
    method = ctr_byol_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[1]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
