/* FaceNet: an embedding in which images of one class lie near each other, also of classes that
 * training has never seen.
 *
 * Florian Schroff, Dmitry Kalenichenko, James Philbin: "FaceNet: A Unified Embedding for Face
 * Recognition and Clustering", 2015. A classifier knows the people it was trained on and nobody
 * else; a distance can compare two strangers. Training looks at triplets, an anchor, another image
 * of its class and an image of another class, and wants the first two nearer by a margin. Most
 * triplets soon obey, so each step picks those that teach: semi-hard ones, where the negative is
 * farther than the positive, but by less than the margin.
 *
 *   augmentation        crop, flip: what photographs of a face differ in anyway
 *   parallel views      one network, one view of each image
 *   positives           the other images of the class in the batch (K of each of P classes)
 *   negatives           images of other classes in the batch, mined by their distance
 *   loss                triplet loss with a margin (--siamese: contrastive loss of pairs)
 *   modality            images with labels
 *
 *        P classes, K images each --> encoder --> linear --> unit vectors --> all distances
 *                                                                                 |
 *                                    anchor, positive, negative  <-- mined by labels
 *
 *   loss of a triplet:  max(0, |a - p|^2 - |a - n|^2 + margin);  on one point: the margin
 *
 * Here the classes of the data play the people: the last two fifths of them (or of the folders of
 * --data) are kept from training, and verification is asked of them: same class or not?
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o facenet examples/facenet.c -lm -lpthread && ./facenet
 * Last lines, by default:
 *     verification of ... pairs of unseen classes: accuracy ... AUC ... EER ... VAL ... at FAR ...
 *     result method=facenet epochs=... loss=... knn=... linear=... (percentages on the test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights                 Inception, 140 million */
#define EPOCHS      12        /*                                1000 to 2000 hours */
#define BATCH       120       /* P = 6 classes                  1800 */
#define PER_CLASS   20        /* K                              40 */
#define RATE        0.003     /* AdamW, cosine                  AdaGrad 0.05 */
#define MARGIN      0.2       /*                                0.2 */
#define DIM         64        /*                                128 */
#define PAIRS       6000      /* of LFW                         6000 */
#define UNSEEN      0.4       /* share of the classes           LFW: nobody in common */

/* The loss by hand, all triplets: z [m, d], labels [m], each distance in a loop. */
static ctr_tensor *triplet_by_hand(ctr_ctx *ctx, ctr_tensor *z, const int32_t *labels,
                                   double margin)
{
    int64_t m = z->shape[0], a, p, n;
    ctr_tensor *row[64], *loss = NULL, *gap;
    double count = 0;
    z = ctr_normalize(ctx, z);
    for (a = 0; a < m; a++) row[a] = ctr_slice(ctx, z, 0, a, 1);
    for (a = 0; a < m; a++)
        for (p = 0; p < m; p++)
            for (n = 0; n < m; n++) {
                if (p == a || labels[p] != labels[a] || labels[n] == labels[a]) continue;
                gap = ctr_sub(ctx, ctr_mul(ctx, row[a], row[n]), ctr_mul(ctx, row[a], row[p]));
                gap = ctr_scale(ctx, ctr_sum(ctx, gap, -1), 2);    /* |a-p|^2 - |a-n|^2 */
                gap = ctr_relu(ctx, ctr_add_scalar(ctx, gap, margin));
                loss = loss ? ctr_add(ctx, loss, gap) : gap;
                count++;
            }
    return ctr_scale(ctx, loss, 1 / count);
}

static void compare_losses(ex_run *run)
{
    static const int32_t labels[8] = { 0, 0, 0, 1, 1, 2, 2, 2 };
    ctr_triplet_config c = ctr_triplet_default();
    ctr_tensor *z;
    c.mining = CTR_MINE_ALL;
    c.margin = MARGIN;
    ctr_step_begin(run->ctx);
    z = ex_random(run, 8, 16, 0);
    ex_run_compare(run, "triplet loss", triplet_by_hand(run->ctx, z, labels, MARGIN),
                   ctr_loss_triplet(run->ctx, z, labels, &c, NULL));
    ctr_step_end(run->ctx);
}

/* The images of a dataset whose class is below (seen) or from `first` on (unseen). */
static ctr_dataset *split(ex_run *run, const ctr_dataset *data, int64_t first, int unseen)
{
    int64_t n = ctr_dataset_count(data), *index, count = 0, i;
    ctr_dataset *part;
    index = (int64_t *)ex_alloc(run, (size_t)n, sizeof *index);
    for (i = 0; i < n; i++) {
        int32_t label = ctr_dataset_label(data, i);
        if (label >= 0 && (label >= first) == unseen) index[count++] = i;
    }
    part = ctr_dataset_select(run->ctx, data, count, index);
    free(index);
    ex_run_check(run);
    return part;
}

/* Pairs of unseen images, by their distance after `method` (NULL: in pixels). Folds and thresholds
   as for Labeled Faces in the Wild. */
static void verify(ex_run *run, ctr_method *method, const ctr_dataset *data, const char *who)
{
    int64_t n = ctr_dataset_count(data), side = run->clean.height;
    int64_t d = method ? method->features : side * side * ctr_dataset_channels(data);
    ctr_verification_config config = ctr_verification_config_default();
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(n * d), sizeof *x);
    ctr_real *distance = (ctr_real *)ex_alloc(run, PAIRS, sizeof *distance);
    int32_t *labels = (int32_t *)ex_alloc(run, (size_t)n, sizeof *labels);
    int32_t *same = (int32_t *)ex_alloc(run, PAIRS, sizeof *same);
    int64_t *pair = (int64_t *)ex_alloc(run, 2 * PAIRS, sizeof *pair);
    ctr_points points = ctr_points_make(n, d, x, labels);
    ctr_verification v;
    config.far = 0.01;
    if (ctr_method_represent_dataset(run->ctx, method, data, &run->clean, 1, x, labels) &&
        ctr_pairs_draw(run->ctx, n, labels, run->o->seed, PAIRS, pair, same) &&
        ctr_pairs_distance(run->ctx, &points, PAIRS, pair, distance))
        ctr_verification_measure(run->ctx, PAIRS, distance, same, &config, &v);
    ex_run_check(run);
    printf("verification of unseen classes, %s: %s\n", who, v.text);
    fflush(stdout);
    free(x);
    free(distance);
    free(labels);
    free(same);
    free(pair);
}

int main(int argc, char **argv)
{
    static const char *const minings[] = { "all", "hard", "semi-hard", "random" };
    ex_options o;
    ex_run run;
    ctr_facenet_config config = ctr_facenet_default();
    ctr_fit_config fit;
    ctr_method *method;
    ctr_loader *loader;
    ctr_dataset *seen, *unseen, *all;
    const char *mining = minings[2];
    int per_class = PER_CLASS, siamese = 0, dim = DIM, i;
    double margin = MARGIN;
    int64_t classes, first;

    /* 1. the command line */
    ex_options_init(&o, "facenet", "distances between classes, also those never seen", __FILE__);
    ex_options_drop(&o, "--temperature");
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--per-class", "K", EX_INT, &per_class, 2, 4096,
                   "images of a class in a batch; --batch must be a multiple");
    ex_options_add(&o, "--mining", "all|hard|semi-hard|random", EX_CHOICE, &mining, 0, 0,
                   "which triplets count");
    ex_options_add(&o, "--margin", "X", EX_REAL, &margin, 0, 4, "of squared distances");
    ex_options_add(&o, "--siamese", "", EX_FLAG, &siamese, 0, 1, "the loss of pairs instead");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "numbers in an embedding");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--batch")) o.batch = 3 * per_class;
    for (i = 0; i < 3 && strcmp(mining, minings[i]); i++) { }

    /* 2. the data, cut into classes that are seen and others; the loss compared with that above */
    ex_run_open(&run, &o, 0);
    compare_losses(&run);
    classes = ctr_dataset_classes(run.train);
    if (classes < 4) ex_die(&o, 2, "--data: needs at least 4 classes, got %ld", (long)classes);
    first = classes - (int64_t)((double)classes * UNSEEN + 0.5);
    seen = split(&run, run.train, first, 0);
    unseen = split(&run, run.test ? run.test : run.train, first, 1);

    /* 3. the method: view, encoder, linear head, loss, optimiser */
    config.triplet.mining = (ctr_mining)i;
    config.triplet.margin = margin;
    config.per_class = per_class;
    config.siamese = siamese;
    config.dim = dim;
    config.aug.height = config.aug.width = run.view.height;
    ex_run_encoder(&run, &config.encoder);
    method = ctr_facenet_create(run.ctx, &config);
    ex_run_check(&run);

    /* 4. judge, train on the seen classes, judge again, on all classes and on the unseen ones */
    all = run.train;
    run.train = seen;
    loader = ex_run_loader(&run, method);
    run.train = all;
    ex_run_fit(&run, method, loader, &fit);
    ex_run_before(&run, method);
    printf("training sees %ld of %ld classes, %ld images\n", (long)first, (long)classes,
           (long)ctr_dataset_count(seen));
    verify(&run, NULL, unseen, "raw pixels");
    verify(&run, method, unseen, "untrained");
    ex_run_train(&run, method, loader, &fit);
    verify(&run, method, unseen, "trained");
    ex_run_after(&run, method, &method->augs[0]);

    ctr_loader_destroy(run.ctx, loader);
    ctr_method_destroy(method);
    ctr_dataset_destroy(run.ctx, seen);
    ctr_dataset_destroy(run.ctx, unseen);
    ex_run_close(&run);
    return 0;
}
