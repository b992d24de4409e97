/* MoCo: compare with a long queue of older images, made by a slowly moving twin of the network.
 *
 * Kaiming He, Haoqi Fan, Yuxin Wu, Saining Xie, Ross Girshick: "Momentum Contrast for Unsupervised
 * Visual Representation Learning", 2020 (v1); Chen, Fan, Girshick, He: "Improved Baselines ...",
 * 2020 (v2); Chen, Xie, He: "An Empirical Study of Training Self-Supervised Vision Transformers",
 * 2021 (v3). A query must find the key of the other view of its image among thousands of keys of
 * batches gone by. Keys stay comparable because the network that makes them, the momentum encoder,
 * follows the trained one slowly; so the number of negatives does not depend on the batch.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray (v2: blur for larger images)
 *   parallel views      a momentum encoder: the second view's network gets no gradient, it follows
 *   positives           the other view of the same image
 *   negatives           a queue of the newest keys; v3: the other keys of the batch
 *   loss                InfoNCE: cross entropy over cosines at temperature T
 *   modality            images
 *
 *        view 1 --> encoder --> projector --> q -------------------------------+
 *                      |  after each step: target = m target + (1 - m) online  +--> InfoNCE
 *        view 2 --> target encoder --> target projector --> // --> k ----------+
 *                                      // no gradient              |           |
 *                                               after the loss --> queue ------+ negatives c_j
 *
 *   loss of a query:  -log( exp(q.k / T) / ( exp(q.k / T) + sum over j of exp(q.c_j / T) ) )
 *   with unit vectors. At chance, with K keys in the queue, that is ln(1 + K).
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o moco examples/moco.c -lm -lpthread && ./moco
 * Last line, by default:
 *     result method=moco epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50; CIFAR-10: ResNet-18 */
#define EPOCHS      12        /*                                200 to 800 */
#define BATCH       128       /*                                256; CIFAR-10 512; v3 4096 */
#define RATE        0.12      /* SGD, momentum 0.9, cosine      0.03, CIFAR-10 0.06; v3 LARS */
#define TEMPERATURE 0.2       /*                                v1 0.07, v2 0.2, v3 1 */
#define MOMENTUM    0.99      /* few steps, so a faster target  0.999; CIFAR-10 and v3 0.99 */
#define QUEUE       2048      /* a fifth of the images          65536; CIFAR-10 4096 */
#define GROUPS      4         /* batch norm, 32 images each     8 GPUs */
#define CROP_MIN    0.2       /* share of the area              0.2 */

/* The loss by hand: q, k [n, d] and the queue's unit rows [K, d]. */
static ctr_tensor *infonce_by_hand(ctr_ctx *ctx, ctr_tensor *q, ctr_tensor *k, ctr_tensor *queue,
                                   double temperature)
{
    int64_t n = q->shape[0], column[2] = { -1, 1 };
    ctr_tensor *target = ctr_tensor_temp(ctx, CTR_I32, 1, &n), *s[2];
    int32_t *first = (int32_t *)calloc((size_t)n, sizeof *first); /* the positive: column 0 */
    q = ctr_normalize(ctx, q);
    k = ctr_normalize(ctx, k);
    s[0] = ctr_reshape(ctx, ctr_sum(ctx, ctr_mul(ctx, q, k), 1), 2, column);   /* [n, 1] */
    s[1] = ctr_matmul(ctx, q, 0, queue, 1);                                    /* [n, K] */
    ctr_tensor_write_i32(ctx, target, first, n);
    free(first);
    return ctr_cross_entropy(ctx, ctr_scale(ctx, ctr_concat(ctx, 2, s, 1), 1 / temperature), target,
                             -1);
}

static void compare_losses(ex_run *run)
{
    ctr_tensor *q, *k, *queue;
    ctr_step_begin(run->ctx);
    q = ex_random(run, 8, 16, 0);
    k = ex_random(run, 8, 16, 1);
    queue = ctr_normalize(run->ctx, ex_random(run, 50, 16, 2));
    ex_run_compare(run, "InfoNCE", infonce_by_hand(run->ctx, q, k, queue, TEMPERATURE),
                   ctr_loss_infonce(run->ctx, q, k, queue, TEMPERATURE));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_moco_config config;
    ctr_method *method;
    int version = 2, queue = QUEUE, groups = GROUPS, symmetric = 0, dim = 128, i;
    double momentum = MOMENTUM;

    /* 1. the command line */
    ex_options_init(&o, "moco", "a momentum encoder and a queue of negatives", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--version", "N", EX_INT, &version, 1, 3, "of the paper");
    ex_options_add(&o, "--queue", "N", EX_INT, &queue, 1, 16777216, "keys in the queue (v1, v2)");
    ex_options_add(&o, "--momentum", "X", EX_REAL, &momentum, 0, 1, "of the momentum encoder");
    ex_options_add(&o, "--symmetric", "", EX_FLAG, &symmetric, 0, 1,
                   "both views are queries (v3 always does it)");
    ex_options_add(&o, "--groups", "N", EX_INT, &groups, 1, 4096,
                   "of batch norm, as on so many GPUs (v1, v2)");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--queue")) queue = 256;

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: views, encoder and its twin, projector, queue, loss, optimiser */
    config = ctr_moco_default(version);
    for (i = 0; i < 2; i++) config.aug[i] = ctr_aug_moco_default(run.view.height, version, i);
    config.temperature = o.temperature;
    config.momentum = momentum;
    config.queue = queue;
    config.symmetric = symmetric;
    config.split_norm = version == 3 ? 1 : groups;
    config.proj_dim = dim;
    config.proj_hidden = version == 3 ? 256 : 0;                  /* v3: 4096 */
    config.pred_hidden = 256;                                     /* v3: 4096 */
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);       /* v3: LARS */
    ex_run_encoder(&run, &config.encoder);
    config.encoder.zero_init = 0;                                 /* v3: 1 */
    method = ctr_moco_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[1]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
