/* SimCLR: learn what pictures show by recognising two distorted views of the same one.
 *
 * Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton: "A Simple Framework for
 * Contrastive Learning of Visual Representations", 2020. Each image of a batch is distorted twice
 * at random. One network embeds all the views; the loss asks each to be nearer to the other view of
 * its image than to every other image in the batch. No label is used: what survives the distortions
 * is what it shows.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray (blur for larger images)
 *   parallel views      end-to-end: both views go through the same network, both get gradients
 *   positives           the other view of the same image
 *   negatives           all views of the other images of the batch
 *   loss                NT-Xent: cross entropy over cosine similarities at temperature T
 *   modality            images
 *
 *        image --+--> view 1 --> encoder --> h1 --> projector --> z1 --+
 *                |                 | same weights                      +--> NT-Xent
 *                +--> view 2 --> encoder --> h2 --> projector --> z2 --+
 *                                  |
 *                                  +--> h is what you keep; the projector is thrown away
 *
 *   loss of view i with its partner p:  -log( exp(s_ip / T) / sum over j != i of exp(s_ij / T) )
 *   where s_ij is the cosine of z_i and z_j. At chance, with N images, that is ln(2N - 1).
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o simclr examples/simclr.c -lm -lpthread && ./simclr
 * Last line, by default:
 *     result method=simclr epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50, on CIFAR-10 ResNet-18 */
#define EPOCHS      24        /*                                100 to 1000 */
#define HIDDEN      256       /* of the projector               as many as the features */
#define BATCH       128       /* 254 negatives for each positive 256 to 8192 */
#define RATE        0.3       /* SGD with momentum               LARS 0.3 x batch / 256 */
#define TEMPERATURE 0.2       /*                                0.5 on CIFAR-10, 0.1 on ImageNet */
#define CROP_MIN    0.5       /* share of the area               0.08 */
#define JITTER      0.4       /*                                0.4 on CIFAR-10 (strength 0.5) */

/* The loss by hand. z [2N, d]: all first views, then all second views. */
static ctr_tensor *nt_xent_by_hand(ctr_ctx *ctx, ctr_tensor *z, double temperature)
{
    int64_t m = z->shape[0], i;
    int32_t *partner = (int32_t *)malloc((size_t)m * sizeof *partner);
    ctr_real *self = (ctr_real *)calloc((size_t)(m * m), sizeof *self);
    int64_t square[2] = { m, m };
    ctr_tensor *target = ctr_tensor_temp(ctx, CTR_I32, 1, &m);
    ctr_tensor *mask = ctr_tensor_temp(ctx, CTR_F32, 2, square);
    ctr_tensor *unit = ctr_normalize(ctx, z);                                    /* [2N, d]  */
    ctr_tensor *s =
        ctr_scale(ctx, ctr_matmul(ctx, unit, 0, unit, 1), 1 / temperature); /* [2N, 2N] */
    for (i = 0; i < m; i++) {
        partner[i] = (int32_t)((i + m / 2) % m);      /* the other view is half the batch away   */
        self[i * m + i] = (ctr_real)-1e30;            /* a view is no candidate for itself       */
    }
    ctr_tensor_write_i32(ctx, target, partner, m);
    ctr_tensor_write(ctx, mask, self, m * m);
    free(partner);
    free(self);
    return ctr_cross_entropy(ctx, ctr_add(ctx, s, mask), target, -1);            /* mean over 2N */
}

/* The library's is the same, without the two square matrices of the mask. */
static void compare_losses(ex_run *run)
{
    ctr_tensor *z;
    ctr_step_begin(run->ctx);
    z = ex_random(run, 8, 16, 0);
    ex_run_compare(run, "NT-Xent", nt_xent_by_hand(run->ctx, z, TEMPERATURE),
                   ctr_loss_nt_xent(run->ctx, z, 2, TEMPERATURE));
    ctr_step_end(run->ctx);
}

/* --aug: a policy in place of the colour operations, or a mix of images around the method. */
#define AUGS "simclr|randaugment|trivial|cifar10|svhn|imagenet|mixup|cutmix"

static void choose_policy(const char *aug, ctr_aug_config *view)
{
    static const char *const names[5] = { "randaugment", "trivial", "cifar10", "svhn", "imagenet" };
    int i;
    for (i = 0; i < 5; i++) {
        if (strcmp(aug, names[i])) continue;
        view->jitter_p = view->gray_p = view->blur_p = 0;
        ctr_policy_init(&view->policy, (ctr_policy_kind)(CTR_POLICY_RANDAUGMENT + i));
    }
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_simclr_config config = ctr_simclr_default();
    ctr_method *method;
    ctr_mix_config mix = ctr_mix_default(CTR_MIX_NONE);
    const char *aug = "simclr";
    int labels = 0, layers = 2, dim = 128, size = 0;

    /* 1. the command line */
    ex_options_init(&o, "simclr", "two views of one image attract, all others repel", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--labels", "", EX_FLAG, &labels, 0, 1,
                   "SupCon: images of one class attract");
    ex_options_add(&o, "--layers", "N", EX_INT, &layers, 1, 4, "of the projector (SimCLR v2: 3)");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_add(&o, "--size", "N", EX_INT, &size, 0, 512, "pixels of a view; 0: as the images");
    ex_options_add(&o, "--aug", AUGS, EX_CHOICE, &aug, 0, 0, "colour jitter, a policy, or a mix");
    ex_options_parse(&o, argc, argv);
    if (labels && (!strcmp(aug, "mixup") || !strcmp(aug, "cutmix")))
        ex_die(&o, 2, "--labels: a mix of two images has no class, --aug %s takes no labels", aug);
    ex_smoke(&o);

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, size);
    compare_losses(&run);

    /* 3. the method: augmentation, encoder, projector, loss, optimiser */
    run.view.crop_min = CROP_MIN;
    run.view.brightness = run.view.contrast = run.view.saturation = JITTER;
    choose_policy(aug, &run.view);
    config.aug = run.view;
    config.temperature = o.temperature;
    config.supervised = labels;
    config.proj_layers = layers;
    config.proj_hidden = HIDDEN;
    config.proj_dim = dim;
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(&run, &config.encoder);
    method = ctr_simclr_create(run.ctx, &config);
    mix.kind = !strcmp(aug, "mixup") ? CTR_MIX_MIXUP : !strcmp(aug, "cutmix") ? CTR_MIX_CUTMIX
                                                                              : CTR_MIX_NONE;
    if (mix.kind != CTR_MIX_NONE) method = ctr_mix_create(run.ctx, method, &mix);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &run.view);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
