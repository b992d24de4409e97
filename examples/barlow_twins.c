/* Barlow Twins: what one number of the embedding says in both views, no other number may say.
 *
 * Jure Zbontar, Li Jing, Ishan Misra, Yann LeCun, Stephane Deny: "Barlow Twins: Self-Supervised
 * Learning via Redundancy Reduction", 2021. Each column of the embeddings is brought to mean 0 and
 * variance 1 over the batch; the correlation of column j of view 1 with column k of view 2 is to be
 * 1 where j = k and 0 elsewhere. Other images never appear: columns are compared, not rows.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray; one view blurred (larger
 *                       images), the other one sometimes solarized
 *   parallel views      end-to-end: both views go through the same network, both get gradients
 *   positives           the other view of the same image: the diagonal of the correlations
 *   negatives           none; other columns instead: what is off the diagonal
 *   loss                squared distance of the cross-correlations from the identity
 *   modality            images
 *
 *        view 1 --> encoder --> projector --> z1 --> standardised --> a --+
 *                      | same weights              (columns)              +--> c = a^T b / N
 *        view 2 --> encoder --> projector --> z2 --> standardised --> b --+
 *
 *   loss = sum over j of (1 - c_jj)^2 + lambda * sum over j != k of c_jk^2
 *   At chance, with N images and D numbers, about D + lambda D^2 / N.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o barlow_twins examples/barlow_twins.c -lm -lpthread && ./barlow_twins
 * Last line, by default:
 *     result method=barlow_twins epochs=... loss=... knn=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                1000 */
#define BATCH       128       /*                                2048 */
#define RATE        0.02      /* SGD, momentum 0.9, cosine      LARS 0.2 x batch / 256 */
#define LAYERS      3         /* of the projector               3 */
#define DIM         256       /*                                8192 */
#define LAMBDA      0.0051    /*                                0.0051 */
#define CROP_MIN    0.2       /* share of the area              0.08 */

/* Columns of mean 0 and (biased) variance 1. */
static ctr_tensor *standardise(ctr_ctx *ctx, ctr_tensor *z)
{
    ctr_tensor *variance;
    z = ctr_sub(ctx, z, ctr_mean(ctx, z, 0));
    variance = ctr_mean(ctx, ctr_mul(ctx, z, z), 0);
    return ctr_div(ctx, z, ctr_sqrt(ctx, ctr_add_scalar(ctx, variance, 1e-5)));
}

/* The loss by hand, z1, z2 [N, D]. */
static ctr_tensor *barlow_twins_by_hand(ctr_ctx *ctx, ctr_tensor *z1, ctr_tensor *z2, double lambda)
{
    ctr_tensor *a = standardise(ctx, z1), *b = standardise(ctx, z2), *all, *same, *wrong;
    double n = (double)z1->shape[0];
    all = ctr_scale(ctx, ctr_matmul(ctx, a, 1, b, 0), 1 / n);                      /* c, [D, D] */
    all = ctr_sum(ctx, ctr_mul(ctx, all, all), -1);                                /* of all c^2 */
    same = ctr_mean(ctx, ctr_mul(ctx, a, b), 0);                                   /* c_jj, [D] */
    wrong = ctr_add_scalar(ctx, same, -1);
    wrong = ctr_sum(ctx, ctr_mul(ctx, wrong, wrong), -1);
    same = ctr_sum(ctx, ctr_mul(ctx, same, same), -1);
    return ctr_add(ctx, wrong, ctr_scale(ctx, ctr_sub(ctx, all, same), lambda));
}

static void compare_losses(ex_run *run)
{
    ctr_tensor *z1, *z2;
    ctr_step_begin(run->ctx);
    z1 = ex_random(run, 8, 16, 0);
    z2 = ex_random(run, 8, 16, 1);
    ex_run_compare(run, "Barlow Twins", barlow_twins_by_hand(run->ctx, z1, z2, LAMBDA),
                   ctr_loss_barlow_twins(run->ctx, z1, z2, LAMBDA));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_barlow_twins_config config = ctr_barlow_twins_default();
    ctr_method *method;
    int dim = DIM, layers = LAYERS, i;
    double lambda = LAMBDA;

    /* 1. the command line */
    ex_options_init(&o, "barlow_twins", "each number of an embedding agrees with itself alone",
                    __FILE__);
    ex_options_drop(&o, "--temperature");
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--lambda", "X", EX_REAL, &lambda, 0, 1000,
                   "weight of what is off the diagonal");
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
    }
    config.lambda = lambda;
    config.proj_layers = layers;
    config.proj_dim = dim;
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(&run, &config.encoder);
    config.encoder.zero_init = 0;                                 /* the paper's: 1 */
    method = ctr_barlow_twins_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[1]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
