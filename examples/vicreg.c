/* VICReg: views agree, every number varies, no two numbers vary together.
 *
 * Adrien Bardes, Jean Ponce, Yann LeCun: "VICReg: Variance-Invariance-Covariance Regularization for
 * Self-Supervised Learning", 2022. Three terms, each with a plain purpose: invariance pulls the two
 * views of an image together; variance keeps each number's standard deviation over the batch above
 * 1, so that nothing collapses; covariance keeps the numbers from repeating each other. Rows are
 * not normalised and other images are no negatives.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray, sometimes solarized (blur for
 *                       larger images)
 *   parallel views      end-to-end: both views go through the same network, both get gradients
 *   positives           the other view of the same image
 *   negatives           none: variance and covariance over the batch instead
 *   loss                25 invariance + 25 variance + covariance
 *   modality            images
 *
 *        view 1 --> encoder --> projector --> z1 --+--> variance, covariance
 *                      | same weights              +--> invariance
 *        view 2 --> encoder --> projector --> z2 --+--> variance, covariance
 *
 *   invariance  mean of (z1 - z2)^2 over all numbers
 *   variance    mean over the columns of max(0, 1 - sqrt(Var + 0.0001)), half of each view's
 *   covariance  sum over j != k of Cov_jk^2 / D, of both views
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o vicreg examples/vicreg.c -lm -lpthread && ./vicreg
 * Last line, by default:
 *     result method=vicreg epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                1000 */
#define BATCH       128       /*                                2048 */
#define RATE        0.06      /* SGD, momentum 0.9, cosine      LARS 0.2 x batch / 256 */
#define LAYERS      3         /* of the projector               3 */
#define DIM         256       /*                                8192 */
#define INVARIANCE  25.0      /*                                25 */
#define VARIANCE    25.0      /*                                25 */
#define COVARIANCE  1.0       /*                                1 */
#define CROP_MIN    0.2       /* share of the area              0.08 */

/* variance / 2 + covariance of one view, z [N, D] */
static ctr_tensor *spread_by_hand(ctr_ctx *ctx, ctr_tensor *z)
{
    double n1 = (double)(z->shape[0] - 1), d = (double)z->shape[1];
    ctr_tensor *cov, *own, *low;
    z = ctr_sub(ctx, z, ctr_mean(ctx, z, 0));
    cov = ctr_scale(ctx, ctr_matmul(ctx, z, 1, z, 0), 1 / n1);                     /* [D, D] */
    own = ctr_scale(ctx, ctr_sum(ctx, ctr_mul(ctx, z, z), 0), 1 / n1);             /* Var, [D] */
    low = ctr_scale(ctx, ctr_sqrt(ctx, ctr_add_scalar(ctx, own, 1e-4)), -1);
    low = ctr_mean(ctx, ctr_relu(ctx, ctr_add_scalar(ctx, low, 1)), 0);
    cov = ctr_sub(ctx, ctr_sum(ctx, ctr_mul(ctx, cov, cov), -1),
                  ctr_sum(ctx, ctr_mul(ctx, own, own), -1));
    return ctr_add(ctx, ctr_scale(ctx, low, VARIANCE / 2), ctr_scale(ctx, cov, COVARIANCE / d));
}

/* The loss by hand, z1, z2 [N, D]. */
static ctr_tensor *vicreg_by_hand(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2)
{
    ctr_tensor *apart = ctr_sub(ctx, z1, z2);
    apart = ctr_scale(ctx, ctr_mean(ctx, ctr_mul(ctx, apart, apart), -1), INVARIANCE);
    return ctr_add(ctx, apart, ctr_add(ctx, spread_by_hand(ctx, z1), spread_by_hand(ctx, z2)));
}

static void compare_losses(ex_run *run)
{
    ctr_tensor *z1, *z2;
    ctr_step_begin(run->ctx);
    z1 = ex_random(run, 8, 16, 0);
    z2 = ex_random(run, 8, 16, 1);
    ex_run_compare(run, "VICReg", vicreg_by_hand(run->ctx, z1, z2),
                   ctr_loss_vicreg(run->ctx, z1, z2, INVARIANCE, VARIANCE, COVARIANCE));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_vicreg_config config = ctr_vicreg_default();
    ctr_method *method;
    int dim = DIM, layers = LAYERS, i;
    double invariance = INVARIANCE, variance = VARIANCE, covariance = COVARIANCE;

    /* 1. the command line */
    ex_options_init(&o, "vicreg", "views agree, numbers vary, and not together", __FILE__);
    ex_options_drop(&o, "--temperature");
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--invariance", "X", EX_REAL, &invariance, 0, 1000, "its weight");
    ex_options_add(&o, "--variance", "X", EX_REAL, &variance, 0, 1000, "its weight");
    ex_options_add(&o, "--covariance", "X", EX_REAL, &covariance, 0, 1000, "its weight");
    ex_options_add(&o, "--layers", "N", EX_INT, &layers, 1, 4, "of the projector");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 65536, "numbers in an embedding");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: views, encoder, projector, loss, optimiser */
    for (i = 0; i < 2; i++) {
        config.aug[i] = ctr_aug_byol_default(run.view.height, i);
        config.aug[i].crop_min = CROP_MIN;
        config.aug[i].solarize_p = 0.1;
    }
    config.invariance = invariance;
    config.variance = variance;
    config.covariance = covariance;
    config.proj_layers = layers;
    config.proj_dim = dim;
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(&run, &config.encoder);
    config.encoder.zero_init = 0;                                 /* the paper's: 1 */
    method = ctr_vicreg_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[1]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
