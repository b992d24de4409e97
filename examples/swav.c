/* SwAV: sort two views into clusters, and let each predict where the other was sorted.
 *
 * Mathilde Caron, Ishan Misra, Julien Mairal, Priya Goyal, Piotr Bojanowski, Armand Joulin:
 * "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020. Embeddings
 * are compared with a few learnt prototypes instead of with each other. A view's code says to which
 * prototypes it belongs; codes of a batch spread it evenly over all prototypes, so that not all
 * images can share one. Every crop of an image, also the small cheap ones, predicts the codes of
 * its large crops.
 *
 *   augmentation        multi-crop: two large crops and some small ones; flip, colour jitter, gray
 *   parallel views      one network for all crops (end-to-end), a pass for each size
 *   positives           the code of another crop of the same image
 *   negatives           none: the other prototypes, among which codes are balanced
 *   loss                cross entropy of softmax(scores / T) with the swapped codes
 *   modality            images
 *
 *        large crops --> encoder --> projector --> z --> scores z C^T --> softmax(. / T) --+
 *        small crops --> (the same)                |           |                           |
 *                                                  |           v // no gradient            v
 *                     after the loss: a queue <----+        Sinkhorn --> codes q --> cross entropy
 *                            |                                 ^                 with the codes of
 *        C: prototypes,      +--> scores of older embeddings --+                 the other large
 *           unit rows                                                            crops
 *
 *   loss of a crop v and a large crop a of one image:  - sum_k q_a,k log softmax(z_v C^T / T)_k
 *   the mean over all v != a, both a and all images. At chance, with K prototypes, that is ln K; a
 *   loss that stays there has collapsed.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o swav examples/swav.c -lm -lpthread && ./swav
 * Last line, by default:
 *     result method=swav epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                100 to 800 */
#define BATCH       32        /* with 128 too few steps         4096; 256 with a queue */
#define RATE        0.12      /* SGD, momentum 0.9, cosine      LARC 4.8; 0.6 at 256 */
#define TEMPERATURE 0.1       /*                                0.1 */
#define PROTOTYPES  100       /* for 10 classes                 3000 for 1000 classes */
#define SMALL       4         /* small crops                    6 */
#define QUEUE       0         /* older embeddings               3840 at batch 256, from epoch 15 */
#define FREEZE      80        /* steps, a third of an epoch     313 at 4096, 5005 at 256 */
#define HIDDEN      256       /*                                2048 */
#define DIM         64        /*                                128 */
#define CROP_MIN    0.2       /* share of the area              0.14 */

enum { CROPS = 3 }; /* two large, one small */

/* The loss by hand: scores s[v] [n, k] of each crop, codes q[a] [n, k] of the two large ones. */
static ctr_tensor *swapped_by_hand(ctr_ctx *ctx, ctr_tensor *s[CROPS], ctr_tensor *q[2],
                                   double temperature)
{
    ctr_tensor *sum = NULL, *part;
    int a, v;
    for (a = 0; a < 2; a++)
        for (v = 0; v < CROPS; v++) {
            if (v == a) continue; /* no crop predicts its own code: that would say nothing */
            part = ctr_cross_entropy_soft(ctx, ctr_scale(ctx, s[v], 1 / temperature), q[a]);
            sum = sum ? ctr_add(ctx, sum, part) : part;
        }
    return ctr_scale(ctx, sum, 1.0 / (2 * (CROPS - 1)));
}

static void compare_losses(ex_run *run)
{
    enum { N = 8, K = 16 };
    int64_t shape[2] = { N, K };
    ctr_tensor *s[CROPS], *q[2];
    ctr_real x[N * K];
    int v;
    ctr_step_begin(run->ctx);
    for (v = 0; v < CROPS; v++) s[v] = ctr_normalize(run->ctx, ex_random(run, N, K, v));
    for (v = 0; v < 2; v++) {
        ctr_tensor_read(run->ctx, s[v], x, N * K);
        ctr_sinkhorn_run(run->ctx, N, K, x, NULL, x, NULL); /* codes in place of the scores */
        q[v] = ctr_tensor_temp(run->ctx, CTR_F32, 2, shape);
        ctr_tensor_write(run->ctx, q[v], x, N * K);
    }
    ex_run_compare(run, "Swapped prediction", swapped_by_hand(run->ctx, s, q, TEMPERATURE),
                   ctr_loss_swav(run->ctx, ctr_concat(run->ctx, CROPS, s, 0), CROPS,
                                 ctr_concat(run->ctx, 2, q, 0), 2, TEMPERATURE));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_swav_config config = ctr_swav_default();
    ctr_method *method;
    int prototypes = PROTOTYPES, small = SMALL, queue = QUEUE, start = 3, freeze = FREEZE;
    int dim = DIM, larc = 0;
    double epsilon = 0.05;

    /* 1. the command line */
    ex_options_init(&o, "swav", "predict to which prototypes another crop belongs", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--prototypes", "N", EX_INT, &prototypes, 2, 1000000, "learnt clusters");
    ex_options_add(&o, "--small", "N", EX_INT, &small, 0, 62, "small crops beside the two large");
    ex_options_add(&o, "--epsilon", "X", EX_REAL, &epsilon, 0.001, 100,
                   "of the codes: smaller ones are harder");
    ex_options_add(&o, "--queue", "N", EX_INT, &queue, 0, 16777216,
                   "older embeddings that help to balance the codes");
    ex_options_add(&o, "--queue-epoch", "N", EX_INT, &start, 0, 1000000,
                   "the first epoch, from 0, that fills it");
    ex_options_add(&o, "--freeze", "N", EX_INT, &freeze, 0, 1000000000,
                   "first steps that leave the prototypes alone");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_add(&o, "--larc", NULL, EX_FLAG, &larc, 0, 1, "the paper's optimiser, not SGD");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--freeze")) freeze = 4;
    if (o.smoke && !ex_options_given(&o, "--small")) small = 2;

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: crops of two sizes, encoder, projector, prototypes, codes, optimiser */
    config.aug = ctr_aug_swav_default(run.view.height, 0);
    config.small_aug = ctr_aug_swav_default(run.view.height, 1);
    config.aug.crop_min = config.small_aug.crop_max = CROP_MIN;
    config.small_views = small;
    config.prototypes = prototypes;
    config.temperature = o.temperature;
    config.sinkhorn.epsilon = epsilon;
    config.queue = queue;
    config.queue_start_epoch = start;
    config.freeze_prototypes_steps = freeze;
    config.proj_hidden = HIDDEN;
    config.proj_dim = dim;
    if (!larc) config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(&run, &config.encoder);
    method = ctr_swav_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[0]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
