/* DeepCluster: cluster what the network says of all images, then learn to predict the clusters.
 *
 * Mathilde Caron, Piotr Bojanowski, Armand Joulin, Matthijs Douze: "Deep Clustering for
 * Unsupervised Learning of Visual Features", 2018 (--version 1). Before each epoch the images are
 * clustered by their features; for an epoch the clusters are the classes of an ordinary classifier.
 * In the second version, of Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: "Unsupervised Learning
 * of Visual Features by Contrasting Cluster Assignments", 2020, the classifier's weights are the
 * centroids, so that nothing has to be learnt anew when clusters change their numbers; several
 * clusterings run side by side, of embeddings that a memory bank has kept.
 *
 *   augmentation        1: crop, flip; Sobel's slopes instead of colours
 *                       2: multi-crop, two large crops and some small ones; flip, colour, gray
 *   parallel views      1: one view; 2: one network for all crops, a pass for each size
 *   positives           the class, 2: the centroid, of the image's cluster
 *   negatives           the other classes, or centroids
 *   loss                cross entropy of softmax(scores), 2: softmax(scores / T), with the
 *                       cluster's number
 *   modality            images
 *
 *   1    before each epoch: all images --> encoder --> whitened, length 1 --> k-means --> clusters
 *        in its steps:      images, each cluster equally often --> encoder --> linear classifier,
 *                           new each epoch --> cross entropy with the image's cluster
 *
 *   2    large crops --> encoder --> projector --> z --> scores z C_h^T --> softmax(. / T) --+
 *        small crops --> (the same)                |                                         |
 *                                                  v  after each step                        v
 *        before each epoch, each head h:       memory bank of all images           cross entropy,
 *        k-means --> centroids C_h                 |                               mean over crops
 *           ^    --> each image's cluster ---------|-----------------------------> and heads
 *           +--------------------------------------+
 *
 *   loss of a crop of image i:  -log softmax(z C_h^T / T) at i's cluster (1: of W h + b, h the
 *   features); at chance ln K.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o deepcluster examples/deepcluster.c -lm -lpthread && ./deepcluster
 * Last line, by default:
 *     result method=deepcluster epochs=... loss=... knn=... linear=... (percentages on test images)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

/*                            ours, for minutes on 2 cores    the paper's, for days */
#define ARCH        "resnet8" /* 76,000 weights, 64 features    ResNet-50 */
#define EPOCHS      12        /*                                200 to 800 */
#define BATCH       128       /*                                4096 */
#define RATE        0.12      /* SGD, momentum 0.9, cosine      LARC 4.8; 0.6 at 256 */
#define TEMPERATURE 0.1       /*                                0.1 */
#define PROTOTYPES  100       /* for 10 classes                 3000 for 1000 classes */
#define HEADS       3         /*                                3 */
#define SMALL       4         /* small crops                    6 */
#define RATE_1      0.05      /* version 1: SGD, cosine         0.05 for 256, constant */
#define BATCH_1     32        /* with 128 too few steps         256 */
#define HIDDEN      256       /*                                2048 */
#define DIM         64        /*                                128 */
#define CROP_MIN    0.2       /* share of the area              0.14 */

/* One head's loss by hand: unit rows z [n, d], centroids [k, d], the images' clusters [n]. */
static ctr_tensor *cluster_loss_by_hand(ctr_ctx *ctx, ctr_tensor *z, ctr_tensor *centroids,
                                        const int32_t *cluster, double temperature)
{
    ctr_tensor *p = ctr_scale(ctx, ctr_matmul(ctx, z, 0, centroids, 1), 1 / temperature);
    int64_t i, n = p->shape[0], k = p->shape[1];
    ctr_tensor *hot = ctr_tensor_temp(ctx, CTR_F32, 2, p->shape); /* 1 at the cluster, else 0 */
    ctr_real *x = (ctr_real *)calloc((size_t)(n * k), sizeof *x);
    for (i = 0; x && i < n; i++) x[i * k + cluster[i]] = 1;
    if (x) ctr_tensor_write(ctx, hot, x, n * k);
    free(x);
    p = ctr_log(ctx, ctr_sum(ctx, ctr_mul(ctx, ctr_softmax(ctx, p), hot), 1));
    return ctr_scale(ctx, ctr_mean(ctx, p, 0), -1);
}

/* The clusters of random embeddings, and both losses of them. */
static void compare_losses(ex_run *run)
{
    enum { N = 8, D = 16, K = 3 };
    ctr_kmeans_config config = ctr_kmeans_config_default();
    int64_t shape[2] = { K, D }, n = N;
    ctr_real x[N * D], c[K * D];
    int32_t cluster[N];
    ctr_tensor *z, *centroids, *target;
    ctr_step_begin(run->ctx);
    z = ctr_normalize(run->ctx, ex_random(run, N, D, 0));
    ctr_tensor_read(run->ctx, z, x, N * D);
    config.k = K;
    config.spherical = 1;
    config.min_points = 0;
    ctr_kmeans_run(run->ctx, N, D, x, &config, c, cluster, NULL, NULL);
    centroids = ctr_tensor_temp(run->ctx, CTR_F32, 2, shape);
    ctr_tensor_write(run->ctx, centroids, c, K * D);
    target = ctr_tensor_temp(run->ctx, CTR_I32, 1, &n);
    ctr_tensor_write_i32(run->ctx, target, cluster, N);
    ex_run_compare(run, "Cross entropy",
                   cluster_loss_by_hand(run->ctx, z, centroids, cluster, TEMPERATURE),
                   ctr_cross_entropy(run->ctx, ctr_scale(run->ctx, ctr_matmul(run->ctx, z, 0,
                                     centroids, 1), 1 / TEMPERATURE), target, -1));
    ctr_step_end(run->ctx);
}

/* Version 1: one view, encoder, classifier, k-means. */
static ctr_method *make_version_1(ex_run *run, int clusters, int no_sobel)
{
    ctr_deepcluster_v1_config config = ctr_deepcluster_v1_default();
    config.images = ctr_dataset_count(run->train);
    config.clusters = clusters;
    config.sobel = !no_sobel;
    config.aug.height = config.aug.width = run->view.height;
    config.aug.crop_min = CROP_MIN;
    ex_run_encoder(run, &config.encoder);
    return ctr_deepcluster_v1_create(run->ctx, &config);
}

/* Version 2: crops of two sizes, encoder, projector, bank, k-means, optimiser. */
static ctr_method *make_version_2(ex_run *run, int prototypes, int heads, int small, int dim,
                                  int larc)
{
    ctr_deepcluster_v2_config config = ctr_deepcluster_v2_default();
    config.aug = ctr_aug_swav_default(run->view.height, 0);
    config.small_aug = ctr_aug_swav_default(run->view.height, 1);
    config.aug.crop_min = config.small_aug.crop_max = CROP_MIN;
    config.small_views = small;
    config.images = ctr_dataset_count(run->train);
    config.prototypes = prototypes;
    config.heads = heads;
    config.temperature = run->o->temperature;
    config.proj_hidden = HIDDEN;
    config.proj_dim = dim;
    if (!larc) config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &config.encoder);
    return ctr_deepcluster_v2_create(run->ctx, &config);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_method *method;
    int prototypes = PROTOTYPES, heads = HEADS, small = SMALL, dim = DIM, larc = 0, version = 2;
    int no_sobel = 0;

    /* 1. the command line */
    ex_options_init(&o, "deepcluster", "cluster all images, predict the clusters", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    o.temperature = TEMPERATURE;
    ex_options_add(&o, "--version", "N", EX_INT, &version, 1, 2,
                   "of DeepCluster; 1 has rate 0.05 and batches of 32");
    ex_options_add(&o, "--prototypes", "N", EX_INT, &prototypes, 2, 1000000, "clusters");
    ex_options_add(&o, "--no-sobel", NULL, EX_FLAG, &no_sobel, 0, 1, "1: with colours");
    ex_options_add(&o, "--heads", "N", EX_INT, &heads, 1, 8, "2: clusterings side by side");
    ex_options_add(&o, "--small", "N", EX_INT, &small, 0, 62, "2: small crops beside the large");
    ex_options_add(&o, "--dim", "N", EX_INT, &dim, 2, 4096, "2: numbers in an embedding");
    ex_options_add(&o, "--larc", NULL, EX_FLAG, &larc, 0, 1, "2: the paper's optimiser, not SGD");
    ex_options_parse(&o, argc, argv);
    if (version == 1 && ex_options_given(&o, "--temperature"))
        ex_die(&o, 2, "--temperature: version 1 has a classifier and no temperature");
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--prototypes")) prototypes = 15;
    if (o.smoke && !ex_options_given(&o, "--small")) small = 2;
    if (version == 1 && !ex_options_given(&o, "--lr")) o.lr = RATE_1;
    if (version == 1 && !o.smoke && !ex_options_given(&o, "--batch")) o.batch = BATCH_1;

    /* 2. the data, and the loss compared with the one above */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = CROP_MIN;
    compare_losses(&run);

    /* 3. the method */
    method = version == 1 ? make_version_1(&run, prototypes, no_sobel)
                          : make_version_2(&run, prototypes, heads, small, dim, larc);
    ex_run_check(&run);

    /* 4. judge, train, judge again */
    ex_run_method(&run, method, &method->augs[0]);

    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
