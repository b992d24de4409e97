/* Compose: the methods of this library as choices among the same five components.
 *
 * Surveys sort methods by what they put into the same few places (Phuc H. Le-Khac, Graham Healy,
 * Alan F. Smeaton: "Contrastive Representation Learning: A Framework and Review", 2020; Ashish
 * Jaiswal and others: "A Survey on Contrastive Self-Supervised Learning", 2021). Here they are
 * options, and a method is what the choices spell out.
 *
 *   augmentation        which views of an image there are          (each method's own)
 *   parallel views      who encodes the other view                 --parallel, --predictor
 *   architecture        where the negatives come from              --negatives
 *   loss                what is asked of positives and negatives   --loss, --labels
 *   modality            images
 *
 *        image --+--> view 1 --> encoder --> head [--> predictor] --------+
 *                |                 |                                      +--> loss
 *                +--> view 2 --> the same (shared), or its slower         |
 *                                twin without gradient (momentum) --------+
 *                                                                         |
 *        negatives: the batch, a queue of keys, a bank of all images, ----+
 *                   prototypes, or none
 *        with --parallel parts there is one view, whose lower parts are told from its upper ones
 *
 *   shared + batch + infonce             SimCLR      momentum + none + cosine + predictor   BYOL
 *   shared + batch + infonce + labels    SupCon      shared + none + cosine + predictor     SimSiam
 *   momentum + queue + infonce           MoCo v2     shared + none + correlation            Barlow
 *   momentum + batch + infonce + pred.   MoCo v3     shared + none + variance               VICReg
 *   shared + bank + nce                  NPID        shared + prototypes + codes            SwAV
 *   shared + batch + triplet + labels    FaceNet     shared + prototypes + clusters         DeepC.
 *   shared + bank + puzzle               PIRL        shared + prototypes + classes         DeepC. 1
 *   parts + batch + infonce              CPC         the same + labels: supervised training
 *
 * A combination that is a method is that method's block, trained as its own example trains it: the
 * checkpoints are the same bytes (FaceNet's example leaves classes out). Others put a new loss into
 * a block; what makes no sense is refused with the reason. --list shows all. CLIP is not among
 * them: its second modality is captions, and the images here have none (examples/clip.c).
 *
 * Build and run, from the folder of contrastive.h: a table of all methods, or one combination
 *     cc -O2 -o compose examples/compose.c -lm -lpthread && ./compose
 *     ./compose --parallel momentum --negatives none --loss correlation --predictor
 * Last line of the table (percentages on the test images):
 *     result method=compose rows=16 epochs=4 knn_pixels=... knn_simclr=... linear_simclr=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/* Sizes and rates of each method are those of its example, where the paper's stand beside them. */
#define ARCH         "resnet8"
#define TABLE_EPOCHS 4         /* of each method in the table */
#define BATCH        128
#define HIDDEN       256
#define CROP_MIN     0.2

#define PARALLEL  "shared|momentum|parts"
#define NEGATIVES "batch|bank|queue|prototypes|none"
#define LOSSES    "infonce|nce|puzzle|triplet|pairs|codes|clusters|classes|cosine|correlation|" \
                  "variance|dcl|uniform"

/* A row of the overview, and how it is made. */
typedef struct row {
    const char *slug, *name;
    const char *parallel, *negatives, *loss; /* as on the command line */
    int predictor, labels;
    int epochs;                              /* of its example */
    double rate, temperature;                /* 0: has none */
    const char *views, *pull;                /* augmentation; positives / negatives */
    ctr_method *(*make_fn)(ex_run *run, const struct row *r);
    /* NULL: the block's own; else this one takes its place: a new combination */
    ctr_tensor *(*loss_fn)(ctr_method *m, ctr_tensor *z, const ctr_batch *b, ctr_report *report);
} row;

/* ==== The blocks ============================================================================= */

static ctr_method *make_simclr(ex_run *run, const row *r)
{
    ctr_simclr_config c = ctr_simclr_default();
    c.aug = ctr_aug_simclr_default(run->view.height);
    c.aug.crop_min = 0.5;
    c.aug.brightness = c.aug.contrast = c.aug.saturation = 0.4;
    c.temperature = run->o->temperature;
    c.supervised = r->labels;
    c.proj_hidden = HIDDEN;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    return ctr_simclr_create(run->ctx, &c);
}

static ctr_method *make_moco(ex_run *run, const row *r)
{
    int version = r->predictor ? 3 : 2, i;
    ctr_moco_config c = ctr_moco_default(version);
    for (i = 0; i < 2; i++) c.aug[i] = ctr_aug_moco_default(run->view.height, version, i);
    c.temperature = run->o->temperature;
    c.momentum = 0.99;
    c.queue = run->o->smoke ? 256 : 2048;
    c.split_norm = version == 3 ? 1 : 4;
    c.proj_dim = 128;
    c.proj_hidden = version == 3 ? HIDDEN : 0;
    c.pred_hidden = HIDDEN;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    c.encoder.zero_init = 0;
    return ctr_moco_create(run->ctx, &c);
}

static ctr_method *make_byol(ex_run *run, const row *r)
{
    ctr_byol_config c = ctr_byol_default();
    int i;
    (void)r;
    for (i = 0; i < 2; i++) {
        c.aug[i] = ctr_aug_byol_default(run->view.height, i);
        c.aug[i].crop_min = CROP_MIN;
    }
    c.momentum = 0.97;
    c.proj_hidden = c.pred_hidden = HIDDEN;
    c.proj_dim = 64;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    return ctr_byol_create(run->ctx, &c);
}

/* For those that learn little in few steps, and for CPC, which has many patches an image. */
static void small_batch(ex_run *run)
{
    if (!run->o->smoke && !ex_options_given(run->o, "--batch")) run->o->batch = 32;
}

static ctr_method *make_simsiam(ex_run *run, const row *r)
{
    ctr_simsiam_config c = ctr_simsiam_default();
    (void)r;
    c.aug = ctr_aug_moco_default(run->view.height, 2, 0);
    c.aug.crop_min = CROP_MIN;
    c.proj_layers = 2;
    c.proj_dim = 256;
    c.pred_hidden = 64;
    ex_run_encoder(run, &c.encoder);
    c.encoder.zero_init = 0;
    small_batch(run);
    return ctr_simsiam_create(run->ctx, &c);
}

static ctr_method *make_barlow(ex_run *run, const row *r)
{
    ctr_barlow_twins_config c = ctr_barlow_twins_default();
    int i;
    (void)r;
    for (i = 0; i < 2; i++) {
        c.aug[i] = ctr_aug_byol_default(run->view.height, i);
        c.aug[i].crop_min = CROP_MIN;
    }
    c.proj_dim = 256;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    c.encoder.zero_init = 0;
    return ctr_barlow_twins_create(run->ctx, &c);
}

static ctr_method *make_vicreg(ex_run *run, const row *r)
{
    ctr_vicreg_config c = ctr_vicreg_default();
    int i;
    (void)r;
    for (i = 0; i < 2; i++) {
        c.aug[i] = ctr_aug_byol_default(run->view.height, i);
        c.aug[i].crop_min = CROP_MIN;
        c.aug[i].solarize_p = 0.1;
    }
    c.proj_dim = 256;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    c.encoder.zero_init = 0;
    return ctr_vicreg_create(run->ctx, &c);
}

static ctr_method *make_npid(ex_run *run, const row *r)
{
    ctr_npid_config c = ctr_npid_default();
    c.images = ctr_dataset_count(run->train);
    c.form = strcmp(r->loss, "nce") ? CTR_NPID_INFONCE : CTR_NPID_NCE;
    c.negatives = run->o->smoke ? 128 : 1024;
    c.temperature = run->o->temperature;
    c.aug = ctr_aug_moco_default(run->view.height, 1, 0);
    c.aug.crop_min = CROP_MIN;
    ex_run_encoder(run, &c.encoder);
    small_batch(run);
    return ctr_npid_create(run->ctx, &c);
}

static ctr_method *make_pirl(ex_run *run, const row *r)
{
    ctr_pirl_config c = ctr_pirl_default();
    (void)r;
    c.images = ctr_dataset_count(run->train);
    c.form = CTR_NCE_PIRL;
    c.negatives = run->o->smoke ? 128 : 1024;
    c.temperature = run->o->temperature;
    c.momentum = 0.5;
    c.weight = 0.5;
    c.proj_dim = 128;
    c.aug = ctr_aug_pirl_default(run->view.height, 0);
    c.aug.crop_min = CROP_MIN;
    c.piece_aug = ctr_aug_pirl_default(run->view.height, 1);
    ex_run_encoder(run, &c.encoder);
    small_batch(run);
    return ctr_pirl_create(run->ctx, &c);
}

static ctr_method *make_swav(ex_run *run, const row *r)
{
    ctr_swav_config c = ctr_swav_default();
    (void)r;
    c.aug = ctr_aug_swav_default(run->view.height, 0);
    c.small_aug = ctr_aug_swav_default(run->view.height, 1);
    c.aug.crop_min = c.small_aug.crop_max = CROP_MIN;
    c.small_views = run->o->smoke ? 2 : 4;
    c.prototypes = 100;
    c.temperature = run->o->temperature;
    c.queue_start_epoch = 3;
    c.freeze_prototypes_steps = run->o->smoke ? 4 : 80;
    c.proj_hidden = HIDDEN;
    c.proj_dim = 64;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    small_batch(run);
    return ctr_swav_create(run->ctx, &c);
}

/* Version 1: a classifier of its own for the clusters, which are classes for an epoch. */
static ctr_method *make_deepcluster_1(ex_run *run, const row *r)
{
    ctr_deepcluster_v1_config c = ctr_deepcluster_v1_default();
    (void)r;
    c.images = ctr_dataset_count(run->train);
    c.clusters = run->o->smoke ? 15 : 100;
    c.aug.height = c.aug.width = run->view.height;
    c.aug.crop_min = CROP_MIN;
    ex_run_encoder(run, &c.encoder);
    small_batch(run);
    return ctr_deepcluster_v1_create(run->ctx, &c);
}

static ctr_method *make_deepcluster(ex_run *run, const row *r)
{
    ctr_deepcluster_v2_config c = ctr_deepcluster_v2_default();
    (void)r;
    c.aug = ctr_aug_swav_default(run->view.height, 0);
    c.small_aug = ctr_aug_swav_default(run->view.height, 1);
    c.aug.crop_min = c.small_aug.crop_max = CROP_MIN;
    c.small_views = run->o->smoke ? 2 : 4;
    c.images = ctr_dataset_count(run->train);
    c.prototypes = run->o->smoke ? 15 : 100;
    c.temperature = run->o->temperature;
    c.proj_hidden = HIDDEN;
    c.proj_dim = 64;
    c.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &c.encoder);
    return ctr_deepcluster_v2_create(run->ctx, &c);
}

/* The encoder sees patches, a quarter of the side each. */
static ctr_method *make_cpc(ex_run *run, const row *r)
{
    ctr_cpc_config c = ctr_cpc_default();
    (void)r;
    c.patch = run->view.height / 4;
    c.stride = (c.patch + 1) / 2;
    c.context = 64;
    c.aug.height = c.aug.width = run->view.height;
    c.aug.crop_min = 0.73;
    ex_run_encoder(run, &c.encoder);
    c.encoder.image_size = c.patch;
    small_batch(run);
    return ctr_cpc_create(run->ctx, &c);
}

static ctr_method *make_facenet(ex_run *run, const row *r)
{
    ctr_facenet_config c = ctr_facenet_default();
    c.per_class = 20;
    c.siamese = strcmp(r->loss, "pairs") == 0;
    c.dim = 64;
    c.aug.height = c.aug.width = run->view.height;
    ex_run_encoder(run, &c.encoder);
    run->o->batch -= run->o->batch % 20; /* whole classes */
    return ctr_facenet_create(run->ctx, &c);
}

/* What the labels are worth: cross entropy with them, through the views of SimCLR. */
static ctr_method *make_supervised(ex_run *run, const row *r)
{
    ctr_supervised_config c = ctr_supervised_default();
    (void)r;
    c.classes = ctr_dataset_classes(run->train);
    c.aug = run->view;
    ex_run_encoder(run, &c.encoder);
    return ctr_supervised_create(run->ctx, &c);
}

/* ==== Losses that take the place of a block's own ============================================ */

static double T; /* the temperature: a loss_fn has no place for it */

static ctr_tensor *view_of(ctr_method *m, ctr_tensor *z, int view) /* [2n, d] -> [n, d] */
{
    int64_t n = z->shape[0] / 2;
    return ctr_slice(m->ctx, z, 0, view * n, n);
}

/* For the report: which rows of x find their own row of y nearest; cosines. x, y [n, d] */
static void agree(ctr_method *m, ctr_tensor *x, ctr_tensor *y, ctr_report *report)
{
    int64_t n = x->shape[0], i, j, square[2];
    ctr_real *s = (ctr_real *)malloc((size_t)(n * n) * sizeof *s);
    double own = 0, others = 0, found = 0;
    ctr_tensor *cosines;
    square[0] = square[1] = n;
    ctr_nograd_begin(m->ctx);
    cosines = ctr_matmul(m->ctx, ctr_normalize(m->ctx, x), 0, ctr_normalize(m->ctx, y), 1);
    ctr_nograd_end(m->ctx);
    if (s && cosines->size == square[0] * square[1]) {
        ctr_tensor_read(m->ctx, cosines, s, n * n);
        for (i = 0; i < n; i++) {
            int first = 1;
            for (j = 0; j < n; j++) {
                if (j == i) continue;
                others += (double)s[i * n + j];
                if (s[i * n + j] >= s[i * n + i]) first = 0;
            }
            own += (double)s[i * n + i];
            found += first;
        }
        report->accuracy = found / (double)n;
        report->positive = own / (double)n;
        report->negative = others / (double)(n * (n - 1));
    }
    free(s);
}

static ctr_tensor *dcl(ctr_method *m, ctr_tensor *z, const ctr_batch *b, ctr_report *report)
{
    report->chance = ctr_loss_dcl_chance(b->n);
    agree(m, view_of(m, z, 0), view_of(m, z, 1), report);
    return ctr_loss_dcl(m->ctx, z, T);
}

/* Close together what belongs together, and all of it spread over the sphere. */
static ctr_tensor *uniform(ctr_method *m, ctr_tensor *z, const ctr_batch *b, ctr_report *report)
{
    ctr_tensor *x = view_of(m, z, 0), *y = view_of(m, z, 1), *spread;
    (void)b;
    report->chance = 2 - 4 + 8.0 / (double)z->shape[1];
    agree(m, x, y, report);
    spread = ctr_add(m->ctx, ctr_loss_uniformity(m->ctx, x, 2), ctr_loss_uniformity(m->ctx, y, 2));
    return ctr_add(m->ctx, ctr_loss_alignment(m->ctx, x, y, 2), ctr_scale(m->ctx, spread, 0.5));
}

/* FaceNet without labels: an image is a class of its own, its views are the members. */
static ctr_tensor *triplet(ctr_method *m, ctr_tensor *z, const ctr_batch *b, ctr_report *report)
{
    int32_t *image = (int32_t *)malloc((size_t)(2 * b->n) * sizeof *image);
    ctr_tensor *loss;
    int64_t i;
    for (i = 0; image && i < 2 * b->n; i++) image[i] = (int32_t)(i % b->n);
    report->chance = ctr_loss_triplet_chance(NULL);
    agree(m, view_of(m, z, 0), view_of(m, z, 1), report);
    loss = ctr_loss_triplet(m->ctx, z, image, NULL, &report->active);
    free(image);
    return loss;
}

/* A loss of two sides, the mean of both directions: each view's prediction and the other's target,
   through which no gradient flows. */
typedef ctr_tensor *(*two_sides)(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z);

static ctr_tensor *both_ways(ctr_method *m, ctr_tensor *p, two_sides loss, ctr_report *report)
{
    ctr_tensor *p1 = view_of(m, p, 0), *z1 = view_of(m, m->target, 0);
    ctr_tensor *p2 = view_of(m, p, 1), *z2 = view_of(m, m->target, 1);
    agree(m, p1, z2, report);
    return ctr_scale(m->ctx, ctr_add(m->ctx, loss(m->ctx, p1, z2), loss(m->ctx, p2, z1)), 0.5);
}

static ctr_tensor *infonce_of(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    return ctr_loss_infonce(ctx, p, z, NULL, T);
}

static ctr_tensor *infonce(ctr_method *m, ctr_tensor *p, const ctr_batch *b, ctr_report *report)
{
    report->chance = ctr_loss_infonce_chance(b->n - 1);
    return both_ways(m, p, infonce_of, report);
}

static ctr_tensor *correlation_of(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    return ctr_loss_barlow_twins(ctx, p, z, 0.0051);
}

static ctr_tensor *correlation(ctr_method *m, ctr_tensor *p, const ctr_batch *b, ctr_report *report)
{
    report->chance = ctr_loss_barlow_twins_chance(b->n, p->shape[1], 0.0051);
    return both_ways(m, p, correlation_of, report);
}

static ctr_tensor *variance_of(ctr_ctx *ctx, ctr_tensor *p, ctr_tensor *z)
{
    return ctr_loss_vicreg(ctx, p, z, 25, 25, 1);
}

static ctr_tensor *variance(ctr_method *m, ctr_tensor *p, const ctr_batch *b, ctr_report *report)
{
    (void)b;
    return both_ways(m, p, variance_of, report);
}

/* ==== The overview =========================================================================== */

#define NAMED 16 /* the first rows are methods, the others new combinations */
static const row rows[] = {
    { "simclr", "SimCLR", "shared", "batch", "infonce", 0, 0, 24, 0.3, 0.2,
      "crop, flip, colour, gray", "other view / other images of the batch", make_simclr, NULL },
    { "supcon", "SupCon", "shared", "batch", "infonce", 0, 1, 24, 0.3, 0.2,
      "the same", "images of the label / the others", make_simclr, NULL },
    { "moco2", "MoCo v2", "momentum", "queue", "infonce", 0, 0, 12, 0.12, 0.2,
      "crop, flip, colour, gray, blur", "other view / the queue's keys", make_moco, NULL },
    { "moco3", "MoCo v3", "momentum", "batch", "infonce", 1, 0, 12, 0.12, 0.2,
      "the same and solarize", "other view / other keys of the batch", make_moco, NULL },
    { "npid", "NPID", "shared", "bank", "nce", 0, 0, 16, 0.06, 0.4,
      "crop, flip, colour, gray", "the image's row / 1024 other rows", make_npid, NULL },
    { "pirl", "PIRL", "shared", "bank", "puzzle", 0, 0, 12, 0.06, 0.4,
      "crop, flip, colour; puzzle of 3 x 3", "the image's row / 1024 other rows", make_pirl, NULL },
    { "byol", "BYOL", "momentum", "none", "cosine", 1, 0, 12, 0.12, 0,
      "crop, flip, colour, gray, blur, solarize", "other view / none", make_byol, NULL },
    { "simsiam", "SimSiam", "shared", "none", "cosine", 1, 0, 12, 0.06, 0,
      "crop, flip, colour, gray, blur", "other view / none", make_simsiam, NULL },
    { "barlow_twins", "Barlow Twins", "shared", "none", "correlation", 0, 0, 12, 0.02, 0,
      "as BYOL", "the diagonal / what is off it", make_barlow, NULL },
    { "vicreg", "VICReg", "shared", "none", "variance", 0, 0, 12, 0.06, 0,
      "as BYOL", "other view / none", make_vicreg, NULL },
    { "swav", "SwAV", "shared", "prototypes", "codes", 0, 0, 12, 0.12, 0.1,
      "multi-crop, flip, colour, gray, blur", "other crop's code / other prototypes", make_swav,
      NULL },
    { "deepcluster1", "DeepCluster v1", "shared", "prototypes", "classes", 0, 0, 12, 0.05, 0,
      "crop, flip, Sobel's slopes", "image's cluster / other clusters", make_deepcluster_1, NULL },
    { "deepcluster", "DeepCluster v2", "shared", "prototypes", "clusters", 0, 0, 12, 0.12, 0.1,
      "the same", "image's centroid / other centroids", make_deepcluster, NULL },
    { "cpc", "CPC", "parts", "batch", "infonce", 0, 0, 6, 0.001, 0,
      "crop, flip, gray", "patch k rows below / other patches of the batch", make_cpc, NULL },
    { "facenet", "FaceNet", "shared", "batch", "triplet", 0, 1, 12, 0.003, 0,
      "crop, flip", "images of the label / other labels", make_facenet, NULL },
    { "supervised", "supervised", "shared", "prototypes", "classes", 0, 1, 12, 0.1, 0,
      "crop, flip, colour, gray", "the label's prototype / the other prototypes", make_supervised,
      NULL },
    { "siamese", "siamese pairs", "shared", "batch", "pairs", 0, 1, 12, 0.003, 0,
      "crop, flip", "one of the label / one of another", make_facenet, NULL },
    { "npid_infonce", "NPID, InfoNCE", "shared", "bank", "infonce", 0, 0, 16, 0.06, 0.4,
      "as NPID", "the image's row / 1024 other rows", make_npid, NULL },
    { "dcl", "DCL", "shared", "batch", "dcl", 0, 0, 12, 0.3, 0.2,
      "as SimCLR", "other view / other images, decoupled", make_simclr, dcl },
    { "uniform", "alignment and uniformity", "shared", "batch", "uniform", 0, 0, 12, 0.3, 0,
      "as SimCLR", "other view / all of the batch", make_simclr, uniform },
    { "triplets", "triplets of views", "shared", "batch", "triplet", 0, 0, 12, 0.3, 0,
      "as SimCLR", "other view / semi-hard images", make_simclr, triplet },
    { "simsiam_infonce", "SimSiam with negatives", "shared", "batch", "infonce", 1, 0, 12, 0.06,
      0.2, "as SimSiam", "other view / other images of the batch", make_simsiam, infonce },
    { "byol_correlation", "Barlow Twins with a target", "momentum", "none", "correlation", 1, 0,
      12, 0.02, 0, "as BYOL", "the diagonal / what is off it", make_byol, correlation },
    { "byol_variance", "VICReg with a target", "momentum", "none", "variance", 1, 0, 12, 0.06, 0,
      "as BYOL", "other view / none", make_byol, variance }
};
#define ROWS ((int)(sizeof rows / sizeof *rows))

static const row *find(const row *want)
{
    int i;
    for (i = 0; i < ROWS; i++)
        if (!strcmp(rows[i].parallel, want->parallel) && !strcmp(rows[i].loss, want->loss) &&
            !strcmp(rows[i].negatives, want->negatives) && rows[i].labels == want->labels &&
            rows[i].predictor == want->predictor) return &rows[i];
    return NULL;
}

static int is(const char *word, const char *words) { return ex_is_choice(words, word); }

/* Why there is no such method. */
static const char *why_not(const row *w)
{
    if (is(w->parallel, "parts"))
        return "--parallel parts is CPC's: it goes with --negatives batch and --loss infonce, and "
               "nothing else";
    if (is(w->loss, "nce") && !is(w->negatives, "bank"))
        return "--loss nce is a sum over a bank of all images: it goes with --negatives bank";
    if (is(w->loss, "puzzle") && !is(w->negatives, "bank"))
        return "--loss puzzle compares the image's pieces with its row: it goes with --negatives "
               "bank";
    if (is(w->negatives, "bank") && !is(w->loss, "nce|infonce|puzzle"))
        return "--negatives bank goes with --loss nce, infonce or puzzle: its rows are drawn";
    if (is(w->negatives, "bank") && is(w->parallel, "momentum"))
        return "--negatives bank goes with --parallel shared: the bank itself is the slow one";
    if (is(w->negatives, "prototypes") != is(w->loss, "codes|clusters|classes"))
        return "--negatives prototypes goes with --loss codes, clusters or classes, and these with "
               "it";
    if (is(w->negatives, "queue") && is(w->parallel, "shared"))
        return "--negatives queue goes with --parallel momentum: keys of older steps are "
               "comparable only if their encoder moves slowly";
    if (is(w->negatives, "queue") && !is(w->loss, "infonce"))
        return "--negatives queue goes with --loss infonce";
    if (is(w->negatives, "none") && !is(w->loss, "cosine|correlation|variance"))
        return "without negatives nothing can be told apart: --negatives none goes with --loss "
               "cosine, correlation or variance";
    if (!is(w->negatives, "none") && is(w->loss, "cosine|correlation|variance"))
        return "--loss cosine, correlation and variance compare positives alone: they go with "
               "--negatives none";
    if (is(w->loss, "cosine") && !w->predictor)
        return "with positives alone one point is the best answer: --loss cosine needs --predictor";
    if (w->labels && !is(w->loss, "infonce|triplet|pairs|classes"))
        return "--labels goes with --loss infonce (SupCon), triplet, pairs (FaceNet) or classes";
    if (is(w->loss, "pairs") && !w->labels)
        return "--loss pairs needs --labels: they say what belongs together";
    if (w->labels && (w->predictor || is(w->parallel, "momentum") ||
                      !is(w->negatives, "batch|prototypes")))
        return "--labels goes with --parallel shared and --negatives batch, without --predictor";
    if (is(w->parallel, "momentum") && is(w->negatives, "batch|none") && !w->predictor)
        return "--parallel momentum goes with --predictor, or with --negatives queue";
    return "this combination makes sense and is not here: --list shows those that are";
}

static void list(void)
{
    int i;
    for (i = 0; i < ROWS; i++)
        printf("%-27s --parallel %-8s --negatives %-10s --loss %-11s%s%s\n", rows[i].name,
               rows[i].parallel, rows[i].negatives, rows[i].loss,
               rows[i].predictor ? " --predictor" : "", rows[i].labels ? " --labels" : "");
    printf("CLIP is not here: its positives are captions, see examples/clip.c\n");
}

/* ==== Training =============================================================================== */

/* The method of a row, its rate and temperature unless the command line names them. */
static ctr_method *make(ex_run *run, const row *r)
{
    ctr_method *m;
    size_t used;
    if (!ex_options_given(run->o, "--lr")) run->o->lr = r->rate;
    if (!ex_options_given(run->o, "--temperature"))
        run->o->temperature = r->temperature > 0 ? r->temperature : 0.2;
    T = run->o->temperature;
    m = r->make_fn(run, r);
    ex_run_check(run);
    if (r->loss_fn) {
        used = strlen(m->settings); /* a checkpoint says which loss it is from */
        m->loss_fn = r->loss_fn;
        snprintf(m->settings + used, sizeof m->settings - used, " loss=%s", r->loss);
    }
    return m;
}

/* One row of the table: its own folder, the common budget. look: only, can --resume go on? */
static ctr_scores measure(ex_run *run, const row *r, const char *out, int look)
{
    static char folder[EX_PATH];
    ctr_fit_config fit;
    ctr_scores scores = run->pixels;
    ctr_method *m;
    ctr_loader *loader;
    int batch = run->o->batch;
    scores.knn = scores.linear = scores.linear_10 = scores.knn_views = -1;
    if (r->labels && !ctr_dataset_classes(run->train)) return scores;
    snprintf(folder, sizeof folder, "%s/%s", out, r->slug);
    run->o->out = folder;
    m = make(run, r);
    loader = ex_run_loader(run, m);
    printf("%s%s\n", look ? "" : "\n", r->name);
    ex_run_fit(run, m, loader, &fit);
    if (!look) {
        ex_run_train(run, m, loader, &fit);
        ex_run_scores(run, m, r->name, &scores);
    }
    ctr_loader_destroy(run->ctx, loader);
    ctr_method_destroy(m);
    free(run->loss);
    free(run->epoch_loss);
    free(run->epoch_x);
    run->loss = run->epoch_loss = run->epoch_x = NULL;
    run->steps = run->epochs = 0;
    run->o->batch = batch;
    run->o->out = out;
    return scores;
}

/* On the screen the five components as options, in the file as words. r NULL: not a method. */
static void print_row(FILE *to, const row *r, const char *name, const ctr_scores *s)
{
    if (to == stdout)
        printf("%-27s %-8s %-10s %-11s %-9s %-6s", name, r ? r->parallel : "",
               r ? r->negatives : "", r ? r->loss : "", r && r->predictor ? "predictor" : "",
               r && r->labels ? "labels" : "");
    else if (!r)
        fprintf(to, "| %s | | | | | |", name);
    else
        fprintf(to, "| %s | %s | %s%s | %s | %s: %s | images%s |", name, r->views, r->parallel,
                r->predictor ? ", predictor" : "", r->negatives, r->loss, r->pull,
                r->labels ? " and labels" : "");
    fprintf(to, to == stdout ? " %6.1f %6.1f %6.1f\n" : " %.1f | %.1f | %.1f |\n", s->knn,
            s->linear, s->knn_views);
}

static void print_table(ex_run *run, FILE *to, const ctr_scores *scores, int count)
{
    int i;
    if (to == stdout)
        printf("\n%-27s %-8s %-10s %-11s %-9s %-6s %6s %6s %6s\n", "method", "parallel",
               "negatives", "loss", "", "", "k-NN", "probe", "view");
    else
        fprintf(to, "| method | augmentation | parallel views | architecture | loss: positives / "
                "negatives | modality | k-NN | probe | k-NN through a view |\n"
                "|---|---|---|---|---|---|---|---|---|\n");
    print_row(to, NULL, "raw pixels", &run->pixels);
    print_row(to, NULL, "untrained encoder", &run->untrained);
    for (i = 0; i < count; i++) print_row(to, &rows[i], rows[i].name, &scores[i]);
}

static void table(ex_run *run, int count)
{
    ctr_scores scores[ROWS];
    const char *out = run->o->out;
    char path[EX_PATH];
    FILE *file;
    int i;
    ctr_method *m;
    for (i = 0; i < count && run->o->resume; i++) measure(run, &rows[i], out, 1);
    m = make(run, &rows[0]);
    ex_run_before(run, m);
    ctr_method_destroy(m);
    for (i = 0; i < count; i++) scores[i] = measure(run, &rows[i], out, 0);
    print_table(run, stdout, scores, count);
    file = fopen(ex_out_path(run->o, "table.md", path), "w");
    if (!file) ex_die(run->o, 2, "--out: cannot write '%s': %s", path, strerror(errno));
    print_table(run, file, scores, count);
    if (fclose(file) != 0) ex_die(run->o, 2, "--out: cannot write '%s'", path);
    printf("written to %s: table.md, and a folder with a checkpoint for each method\n", out);
    printf("result method=compose rows=%d epochs=%d knn_pixels=%.2f linear_pixels=%.2f "
           "knn_views_pixels=%.2f knn_random=%.2f linear_random=%.2f knn_views_random=%.2f", count,
           run->o->epochs, run->pixels.knn, run->pixels.linear, run->pixels.knn_views,
           run->untrained.knn, run->untrained.linear, run->untrained.knn_views);
    for (i = 0; i < count; i++)
        printf(" knn_%s=%.2f linear_%s=%.2f knn_views_%s=%.2f", rows[i].slug, scores[i].knn,
               rows[i].slug, scores[i].linear, rows[i].slug, scores[i].knn_views);
    printf(" peak_mb=%.0f seconds=%.1f\n", ex_peak_mb(), ex_seconds() - run->started);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_method *method;
    row want;
    const row *r = NULL;
    int as_table = 0, all = 0, listed = 0, one, second;

    /* 1. the command line */
    memset(&want, 0, sizeof want);
    want.parallel = "shared";
    want.negatives = "batch";
    want.loss = "infonce";
    ex_options_init(&o, "compose", "methods as choices among five components", __FILE__);
    o.arch = ARCH;
    o.epochs = TABLE_EPOCHS;
    o.batch = BATCH;
    o.lr = 0;
    o.temperature = 0;
    ex_options_find(&o, "--lr", 4)->help = "learning rate; 0: that of the method's example";
    ex_options_find(&o, "--batch", 7)->help = "images in a step; NPID, PIRL, SimSiam, SwAV,\n"
                                              "DeepCluster v1 and CPC by themselves 32";
    ex_options_find(&o, "--temperature", 13)->help = "divides the similarities; 0: as above";
    ex_options_add(&o, "--parallel", PARALLEL, EX_CHOICE, &want.parallel, 0, 0,
                   "who encodes the other view: the same network, or its slower twin;\n"
                   "parts: there is one view, parts of which predict others");
    ex_options_add(&o, "--negatives", NEGATIVES, EX_CHOICE, &want.negatives, 0, 0,
                   "where they come from");
    ex_options_add(&o, "--loss", LOSSES, EX_CHOICE, &want.loss, 0, 0,
                   "what is asked of positives and negatives");
    ex_options_add(&o, "--predictor", "", EX_FLAG, &want.predictor, 0, 1,
                   "one side predicts the other, through which no gradient flows");
    ex_options_add(&o, "--labels", "", EX_FLAG, &want.labels, 0, 1,
                   "images of one class are positives");
    ex_options_add(&o, "--table", "", EX_FLAG, &as_table, 0, 1,
                   "train all methods and compare; what happens without a combination\n"
                   "(not CLIP: it needs captions, which these images do not have)");
    ex_options_add(&o, "--all", "", EX_FLAG, &all, 0, 1, "the table with new combinations as well");
    ex_options_add(&o, "--list", "", EX_FLAG, &listed, 0, 1, "all combinations that there are");
    ex_options_parse(&o, argc, argv);
    if (listed) {
        list();
        return 0;
    }
    one = ex_options_given(&o, "--parallel") || ex_options_given(&o, "--negatives") ||
          ex_options_given(&o, "--loss") || want.predictor || want.labels;
    if (one && (as_table || all))
        ex_die(&o, 2, "--table and --all train every combination: give none, or leave them out");
    if (one) {
        r = find(&want);
        if (!r) ex_die(&o, 2, "%s", why_not(&want));
        if (r->temperature <= 0 && ex_options_given(&o, "--temperature"))
            ex_die(&o, 2, "--temperature: --loss %s, as %s has it, takes none", r->loss, r->name);
        if (!ex_options_given(&o, "--epochs")) o.epochs = r->epochs;
    }
    ex_smoke(&o);
    if (!one && o.smoke && !ex_options_given(&o, "--epochs")) o.epochs = 1;

    /* 2. the data */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    if (r && r->labels && !ctr_dataset_classes(run.train))
        ex_die(&o, 2, "--labels: the images of '%s' have none", o.data);

    /* 3. all of them, or the one asked for: judge, train, judge again */
    if (!one) {
        table(&run, all ? ROWS : NAMED);
    } else {
        printf("%s: %s views, negatives: %s, loss: %s%s%s; %s\n", r->name, r->parallel,
               r->negatives, r->loss, r->predictor ? ", predictor" : "",
               r->labels ? ", labels" : "", r->pull);
        method = make(&run, r);
        second = method->views == 2 && strcmp(r->loss, "puzzle") != 0;
        ex_run_method(&run, method, &method->augs[second]);
        ctr_method_destroy(method);
    }
    ex_run_close(&run);
    return 0;
}
