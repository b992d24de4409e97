/* NPID: every image is a class of its own, told from all others by what a memory keeps of each.
 *
 * Zhirong Wu, Yuanjun Xiong, Stella Yu, Dahua Lin: "Unsupervised Feature Learning via
 * Non-Parametric Instance Discrimination", 2018. A classifier with a class for each image would
 * need a weight vector for each; the image's own embedding of an epoch ago serves instead. So there
 * are as many negatives as images for the price of one view each: what a view is compared with is
 * read from a memory bank, not computed.
 *
 *   augmentation        crop and resize, flip, colour jitter, gray
 *   parallel views      one view a step; the other is what the memory bank has of the image
 *   positives           the image's own row of the bank
 *   negatives           rows of other images, drawn at random (or all of them)
 *   loss                NCE: of 1 + K candidates, is this the one or is it noise?
 *   modality            images
 *
 *        image i --> view --> encoder --> linear --> unit v ------+--> NCE
 *                                                    |            |
 *                                    after the loss  v            |
 *        bank, [images, 128]:  m_i = unit(m_i / 2 + v / 2)        |
 *             row i --------------------------------- positive ---+
 *             K rows drawn at random ---------------- negatives --+
 *
 *   loss of an image:  -log h(m_i) - sum over K drawn m_j of log(1 - h(m_j))
 *       h(m) = P(m) / (P(m) + K / N),   P(m) = exp(m.v / T) / Z,   N images
 *   Z is measured once, in the first step. At chance, P = 1 / N: ln(1 + K) + K ln(1 + 1 / K).
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o npid examples/npid.c -lm -lpthread && ./npid
 * Last line, by default:
 *     result method=npid epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50; CIFAR-10: ResNet-18 */
#define EPOCHS      16        /*                                200 */
#define BATCH       32        /* with 128 too few steps         256; CIFAR-10 128 */
#define RATE        0.06      /* SGD, momentum 0.9, cosine      0.03 for 256, CIFAR-10 0.1; steps */
#define TEMPERATURE 0.4       /* with 0.1 this short run fails  0.07; CIFAR-10 0.1 */
#define NEGATIVES   1024      /* K                              4096 */
#define MOMENTUM    0.5       /* of the bank's rows             0.5 */
#define DIM         128       /*                                128 */
#define CROP_MIN    0.2       /* share of the area              0.2 */

/* The loss by hand: q [n, d], the bank's unit rows [N, d], index [n, 1 + K], the true row first. */
static ctr_tensor *nce_by_hand(ex_run *run, ctr_tensor *q, ctr_tensor *bank, const int32_t *index,
                               int64_t k, double temperature)
{
    ctr_ctx *ctx = run->ctx;
    int64_t n = q->shape[0], all = n * (1 + k), i, shape[2];
    double noise = (double)k / (double)bank->shape[0], z;
    int32_t *whose = (int32_t *)ex_alloc(run, (size_t)all, sizeof *whose);
    ctr_tensor *row = ctr_tensor_temp(ctx, CTR_I32, 1, &all);
    ctr_tensor *query = ctr_tensor_temp(ctx, CTR_I32, 1, &all), *p, *below, *yes, *no;
    shape[0] = n;
    shape[1] = 1 + k;
    for (i = 0; i < all; i++) whose[i] = (int32_t)(i / (1 + k));
    ctr_tensor_write_i32(ctx, row, index, all);
    ctr_tensor_write_i32(ctx, query, whose, all);
    free(whose);
    p = ctr_mul(ctx, ctr_gather(ctx, ctr_normalize(ctx, q), query), ctr_gather(ctx, bank, row));
    p = ctr_exp(ctx, ctr_scale(ctx, ctr_sum(ctx, p, 1), 1 / temperature));
    z = (double)ctr_tensor_item(ctx, ctr_mean(ctx, p, -1)) * (double)bank->shape[0];
    p = ctr_reshape(ctx, ctr_scale(ctx, p, 1 / z), 2, shape);                  /* P, [n, 1 + K] */
    below = ctr_add_scalar(ctx, p, noise + 1e-7);
    yes = ctr_slice(ctx, ctr_log(ctx, ctr_div(ctx, p, below)), 1, 0, 1);       /* log h */
    no = ctr_slice(ctx, ctr_add_scalar(ctx, ctr_scale(ctx, ctr_log(ctx, below), -1), log(noise)),
                   1, 1, k);                                                   /* log(1 - h) */
    return ctr_scale(ctx, ctr_add(ctx, ctr_sum(ctx, yes, -1), ctr_sum(ctx, no, -1)),
                     -1 / (double)n);
}

static void compare_losses(ex_run *run)
{
    enum { N = 8, K = 20, IMAGES = 50 };
    int64_t truth[N], i;
    int32_t index[N * (1 + K)];
    double z = 0;
    ctr_tensor *q, *bank, *scores;
    for (i = 0; i < N; i++) truth[i] = 3 * i;
    ctr_sample_negatives(run->ctx, 0, 0, N, truth, IMAGES, 1 + K, NULL, index);
    ctr_step_begin(run->ctx);
    q = ex_random(run, N, 16, 0);
    bank = ctr_normalize(run->ctx, ex_random(run, IMAGES, 16, 1));
    scores = ctr_nce_scores(run->ctx, q, bank, index, 1 + K);
    ex_run_compare(run, "NCE", nce_by_hand(run, q, bank, index, K, TEMPERATURE),
                   ctr_loss_nce(run->ctx, scores, TEMPERATURE, CTR_NCE_NPID, IMAGES, &z));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    static const char *const forms[] = { "nce", "infonce", "softmax" };
    ex_options o;
    ex_run run;
    ctr_npid_config config = ctr_npid_default();
    ctr_method *method;
    const char *form = forms[0];
    int negatives = NEGATIVES, dim = DIM, i;
    double momentum = MOMENTUM;

    /* 1. the command line */
    ex_options_init(&o, "npid", "every image is a class, a memory bank holds them all", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--form", "nce|infonce|softmax", EX_CHOICE, &form, 0, 0,
                   "of the loss: NCE, cross entropy over the K drawn, or over the whole bank");
    ex_options_add(&o, "--negatives", "K", EX_INT, &negatives, 1, 16777216, "drawn for each image");
    ex_options_add(&o, "--momentum", "X", EX_REAL, &momentum, 0, 1, "of the bank's rows");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--negatives")) negatives = 128;
    for (i = 0; i < 2 && strcmp(form, forms[i]); i++) { }

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method: the view, encoder, linear head, a bank for so many images, loss, optimiser */
    config.images = ctr_dataset_count(run.train);
    config.form = (ctr_npid_form)i;
    config.negatives = negatives;
    config.temperature = o.temperature;
    config.momentum = momentum;
    config.proj_dim = dim;
    config.aug = ctr_aug_moco_default(run.view.height, 1, 0);
    config.aug.crop_min = CROP_MIN;
    ex_run_encoder(&run, &config.encoder);
    method = ctr_npid_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[0]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
