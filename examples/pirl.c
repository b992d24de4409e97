/* PIRL: the image and a jigsaw puzzle of it mean the same, whatever the order of the pieces.
 *
 * Ishan Misra, Laurens van der Maaten: "Self-Supervised Learning of Pretext-Invariant
 * Representations", 2020. Solving a puzzle asks a network to say how an image was changed; PIRL
 * asks the contrary, that the change should not matter: a puzzle, nine pieces in random order, has
 * to be told from other images by what a memory bank has of its image. So does the image itself,
 * which keeps the bank up to date.
 *
 *   augmentation        image: crop, flip, colour jitter, gray; puzzle: 3 x 3 pieces with gaps, in
 *                       random order, each with a flip, colours and gray of its own
 *   parallel views      image and pieces through one encoder; the other view is the bank's
 *   positives           the image's own row of the bank
 *   negatives           rows of other images, drawn at random
 *   loss                NCE of the puzzle and NCE of the image, weighted
 *   modality            images
 *
 *        image i --> view -----> encoder --> linear -------------------> v --+--> NCE ----+
 *           |                       | same weights                           |            |
 *           +------> 9 pieces --> encoder --> linear --> 9 x 128 --> linear  |            v
 *                                                                     |      |    weighted sum
 *                                                                     u -----|--> NCE ----+
 *        bank, [images, 128]                                                 |
 *            row i ------------------------------------------- positive -----+
 *            K rows drawn at random -------------------------- negatives ----+
 *            m_i = unit(m_i / 2 + v / 2), after the loss
 *
 *   NCE(v) = -log p_0 - sum over K drawn j of log(1 - p_j),  p = softmax over 1 + K of m_j.v / T
 *   loss   = lambda NCE(u) + (1 - lambda) NCE(v);  at chance ln(1 + K) + K ln(1 + 1 / K)
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o pirl examples/pirl.c -lm -lpthread && ./pirl
 * Last line, by default:
 *     result method=pirl epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                800 */
#define BATCH       32        /* with 128 too few steps         1024 */
#define RATE        0.06      /* SGD, momentum 0.9, cosine      0.03 for 256 */
#define TEMPERATURE 0.4       /* with 0.1 short runs fail       0.07 */
#define NEGATIVES   1024      /* K                              32000 */
#define LAMBDA      0.5       /* weight of the puzzle           0.5 */
#define MOMENTUM    0.5       /* of the bank's rows             0.5 */
#define DIM         128       /*                                128 */
#define CROP_MIN    0.2       /* share of the area              0.08; puzzle 0.6 */

/* NCE by hand: queries q [n, d], the bank's unit rows, index [n, 1 + K], the true row first. */
static ctr_tensor *nce_by_hand(ex_run *run, ctr_tensor *q, ctr_tensor *bank, const int32_t *index,
                               int64_t k, double temperature)
{
    ctr_ctx *ctx = run->ctx;
    int64_t n = q->shape[0], all = n * (1 + k), i, shape[2];
    int32_t *whose = (int32_t *)ex_alloc(run, (size_t)all, sizeof *whose);
    ctr_tensor *row = ctr_tensor_temp(ctx, CTR_I32, 1, &all);
    ctr_tensor *query = ctr_tensor_temp(ctx, CTR_I32, 1, &all), *p, *yes, *no;
    shape[0] = n;
    shape[1] = 1 + k;
    for (i = 0; i < all; i++) whose[i] = (int32_t)(i / (1 + k));
    ctr_tensor_write_i32(ctx, row, index, all);
    ctr_tensor_write_i32(ctx, query, whose, all);
    free(whose);
    p = ctr_mul(ctx, ctr_gather(ctx, ctr_normalize(ctx, q), query), ctr_gather(ctx, bank, row));
    p = ctr_reshape(ctx, ctr_sum(ctx, p, 1), 2, shape);                      /* cosines */
    p = ctr_softmax(ctx, ctr_scale(ctx, p, 1 / temperature));                /* [n, 1 + K] */
    yes = ctr_slice(ctx, ctr_log(ctx, p), 1, 0, 1);                          /* log p_0 */
    no = ctr_slice(ctx, ctr_log(ctx, ctr_add_scalar(ctx, ctr_scale(ctx, p, -1), 1 + 1e-7)), 1, 1,
                   k);                                                       /* log(1 - p_j) */
    return ctr_scale(ctx, ctr_add(ctx, ctr_sum(ctx, yes, -1), ctr_sum(ctx, no, -1)),
                     -1 / (double)n);
}

/* The loss of random embeddings, of images and of puzzles, twice. */
static void compare_losses(ex_run *run)
{
    enum { N = 8, K = 20, IMAGES = 50 };
    int64_t truth[N], i;
    int32_t index[N * (1 + K)];
    ctr_tensor *z[2], *bank, *hand[2], *library[2];
    for (i = 0; i < N; i++) truth[i] = 3 * i;
    ctr_sample_negatives(run->ctx, 0, 0, N, truth, IMAGES, 1 + K, NULL, index);
    ctr_step_begin(run->ctx);
    bank = ctr_normalize(run->ctx, ex_random(run, IMAGES, 16, 2));
    for (i = 0; i < 2; i++) {
        z[i] = ex_random(run, N, 16, (int)i);
        hand[i] = nce_by_hand(run, z[i], bank, index, K, TEMPERATURE);
        hand[i] = ctr_scale(run->ctx, hand[i], i ? LAMBDA : 1 - LAMBDA);
        library[i] = ctr_nce_scores(run->ctx, z[i], bank, index, 1 + K);
        library[i] = ctr_loss_nce(run->ctx, library[i], TEMPERATURE, CTR_NCE_PIRL, 0, NULL);
        library[i] = ctr_scale(run->ctx, library[i], i ? LAMBDA : 1 - LAMBDA);
    }
    ex_run_compare(run, "The pair of NCE", ctr_add(run->ctx, hand[0], hand[1]),
                   ctr_add(run->ctx, library[0], library[1]));
    ctr_step_end(run->ctx);
}

int main(int argc, char **argv)
{
    static const char *const forms[] = { "npid", "pirl", "infonce" };
    ex_options o;
    ex_run run;
    ctr_pirl_config config = ctr_pirl_default();
    ctr_method *method;
    const char *form = forms[CTR_NCE_PIRL];
    int negatives = NEGATIVES, dim = DIM, i;
    double momentum = MOMENTUM, lambda = LAMBDA;

    /* 1. the command line */
    ex_options_init(&o, "pirl", "an image and its puzzle mean the same", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--form", "pirl|npid|infonce", EX_CHOICE, &form, 0, 0,
                   "of both losses: the paper's, its program's, or cross entropy");
    ex_options_add(&o, "--negatives", "K", EX_INT, &negatives, 1, 16777216, "drawn for each image");
    ex_options_add(&o, "--lambda", "X", EX_REAL, &lambda, 0, 1, "weight of the puzzle's loss");
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

    /* 3. the method: views and pieces, encoder, three linear layers, a bank, loss, optimiser */
    config.images = ctr_dataset_count(run.train);
    config.form = (ctr_nce_form)i;
    config.negatives = negatives;
    config.temperature = o.temperature;
    config.momentum = momentum;
    config.weight = lambda;
    config.proj_dim = dim;
    config.aug = ctr_aug_pirl_default(run.view.height, 0);
    config.aug.crop_min = CROP_MIN;
    config.piece_aug = ctr_aug_pirl_default(run.view.height, 1);
    ex_run_encoder(&run, &config.encoder);
    method = ctr_pirl_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[0]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
