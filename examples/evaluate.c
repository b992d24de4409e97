/* evaluate: what is an encoder worth?
 *
 * A loss that falls says little: an encoder is good if what others build on it works. This program
 * asks a checkpoint of any method here, or a torchvision ResNet, all the questions of the field and
 * puts beside each answer those of the same network with random weights and of the bare pixels.
 *
 *   k-NN               the classes of the nearest training images vote (Wu et al., 2018)
 *   linear probe       logistic regression on the features; with all labels, and ten a class
 *   few shots          episodes of 5 classes nobody was told of, 1 or 5 examples of each, nearest
 *                      mean by cosine; mean over 600 episodes and its 95 % interval
 *   retrieval          test images look for others of their class: R@1, mAP, MAP@R
 *                      (Musgrave et al., 2020)
 *   clusters           k-means without a label; best match with the classes, NMI, ARI
 *   fine-tuning        the whole network trained on 1, 10 and 100 % of the labels, from the
 *                      checkpoint and from random weights (Chen et al., 2020): what
 *                      self-supervision saves in labels
 *
 *        checkpoint --> encoder --> features --> k-NN, probe, shots, retrieval, clusters
 *                          |
 *                          +--> linear layer --> cross entropy <-- labels     fine-tuning
 *
 * Both networks of the last rows have the same views, steps and rate; weights alone differ. The
 * test images choose nothing: rates stand below.
 *
 * Build and run, from the folder of contrastive.h, after ./simclr:
 *     cc -O2 -o evaluate examples/evaluate.c -lm -lpthread && ./evaluate
 *     ./evaluate --checkpoint out/moco/checkpoint.safetensors --no-training
 * Last line (percentages, NMI and ARI from 0 to 1, -1: cannot be measured):
 *     result method=evaluate knn=... linear=... linear_10=... shot_1=... shot_5=... recall_1=...
 *         map=... map_r=... cluster=... nmi=... ari=... tuned_1=... tuned_10=... tuned_100=...
 *         scratch_1=... scratch_10=... scratch_100=... knn_random=... knn_pixels=... seconds=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_encoder.h"

/*                            ours, for minutes on 2 cores   Chen et al., ImageNet */
#define EPOCHS      6         /* with all labels             60 with 1 %, 30 with 10 % */
#define BATCH       128       /*                             1024 to 4096 */
#define RATE        0.1       /* cosine, Nesterov            0.05 x batch / 256 */
#define CROP_MIN    0.5       /* share of the area           0.08 */
#define SHARES      3
#define RETRIEVED   3000      /* test images that look for each other, at most */

static const double shares[SHARES] = { 0.01, 0.1, 1 };

typedef struct worth {        /* in percent, but nmi and ari; -1: cannot be measured */
    double knn, linear, linear_10, shot[2], interval[2], recall, map, map_r, cluster, nmi, ari;
} worth;

/* How many classes have at least so many points. */
static int classes_with(const ctr_points *p, int64_t least)
{
    int32_t label, top = -1;
    int64_t i, count, found = 0;
    for (i = 0; i < p->n; i++) top = p->labels[i] > top ? p->labels[i] : top;
    for (label = 0; label <= top; label++) {
        for (i = count = 0; i < p->n; i++) count += p->labels[i] == label;
        found += count >= least;
    }
    return (int)found;
}

/* Five classes, 1 or 5 shots and 15 queries of each; less of both where the images are too few. */
static void few_shots(ex_run *run, const ctr_points *test, worth *w)
{
    ctr_fewshot_config c = ctr_fewshot_config_default();
    ctr_fewshot_result r;
    int i, classes;
    c.kind = CTR_FEWSHOT_COSINE;
    c.seed = run->o->seed;
    for (i = 0; i < 2; i++) {
        c.shots = i ? 5 : 1;
        c.queries = 15;
        while (c.queries > 1 && classes_with(test, c.shots + c.queries) < 5) c.queries--;
        classes = classes_with(test, c.shots + c.queries);
        c.ways = classes < 5 ? classes : 5;
        if (c.ways < 2 || !ctr_fewshot_measure(run->ctx, test, &c, &r)) continue;
        w->shot[i] = 100 * r.accuracy;
        w->interval[i] = 100 * r.interval;
    }
}

/* Images of the test set among themselves; mAP takes the whole ranking. */
static void retrieval(ex_run *run, const ctr_points *test, worth *w)
{
    int64_t n = test->n < RETRIEVED ? test->n : RETRIEVED, k = n - 1, i, from;
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(n * test->d), sizeof *x);
    int32_t *labels = (int32_t *)ex_alloc(run, (size_t)n, sizeof *labels);
    int64_t *index = (int64_t *)ex_alloc(run, (size_t)(n * k), sizeof *index);
    ctr_points some = ctr_points_make(n, test->d, x, labels);
    ctr_retrieval r;
    for (i = 0; i < n; i++) {                   /* evenly spread, if there are more */
        from = i * test->n / n;
        memcpy(x + i * test->d, test->x + from * test->d, (size_t)test->d * sizeof *x);
        labels[i] = test->labels[from];
    }
    if (ctr_neighbors_find(run->ctx, &some, NULL, k, index, NULL) == k &&
        ctr_retrieval_measure(run->ctx, n, k, index, labels, n, labels, 1, &r) && r.queries) {
        w->recall = 100 * r.recall[0];
        w->map = 100 * r.map;
        w->map_r = 100 * r.map_r;
    }
    free(x);
    free(labels);
    free(index);
}

/* All that looks at features alone: those of a method, or (NULL) the pixels. */
static worth measure(ex_run *run, ctr_method *method)
{
    ctr_aug_config clean = run->clean;
    ctr_probe_config config = ctr_probe_config_default();
    ctr_probe_result probe;
    ctr_knn_result knn;
    ctr_clustering clusters;
    ctr_points p[2];
    ctr_real *x[2];
    int32_t *labels[2];
    worth w = { -1, -1, -1, { -1, -1 }, { 0, 0 }, -1, -1, -1, -1, -1, -1 };
    int i;
    if (!method && clean.height > 32) clean.height = clean.width = 32; /* d grows with the square */
    for (i = 0; i < 2; i++) {
        const ctr_dataset *data = i ? run->test : run->train;
        int64_t n = ctr_dataset_count(data);
        int64_t d = method ? method->features
                           : clean.height * clean.width * ctr_dataset_channels(data);
        x[i] = (ctr_real *)ex_alloc(run, (size_t)(n * d), sizeof *x[i]);
        labels[i] = (int32_t *)ex_alloc(run, (size_t)n, sizeof *labels[i]);
        p[i] = ctr_points_make(n, d, x[i], labels[i]);
        ctr_method_represent_dataset(run->ctx, method, data, &clean, 0, x[i], labels[i]);
        ex_run_check(run);
    }
    if (ctr_knn_classify(run->ctx, &p[0], &p[1], NULL, NULL, &knn)) w.knn = 100 * knn.top1;
    config.seed = run->o->seed;
    if (ctr_probe_run(run->ctx, &p[0], &p[1], &config, NULL, &probe)) w.linear = 100 * probe.top1;
    config.labels_per_class = 10;
    if (ctr_probe_run(run->ctx, &p[0], &p[1], &config, NULL, &probe))
        w.linear_10 = 100 * probe.top1;
    few_shots(run, &p[1], &w);
    retrieval(run, &p[1], &w);
    if (ctr_clustering_measure(run->ctx, &p[1], NULL, &clusters)) {
        w.cluster = 100 * clusters.accuracy;
        w.nmi = clusters.agreement.nmi;
        w.ari = clusters.agreement.ari;
    }
    ex_run_check(run);
    for (i = 0; i < 2; i++) {
        free(x[i]);
        free(labels[i]);
    }
    return w;
}

/* A network with a classifier, from the file or (NULL) from random weights. */
static ctr_method *classifier(ex_run *run, const ex_encoder *e, const char *weights)
{
    ctr_supervised_config config = ctr_supervised_default();
    ctr_method *method;
    config.encoder = e->net;
    config.weights = weights;
    config.classes = ctr_dataset_classes(run->train);
    config.aug = run->view;
    method = ctr_supervised_create(run->ctx, &config);
    ex_run_check(run);
    return method;
}

/* Trains all of it on a share of the labels; percent right of the test images. A tenth of the
   labels gets a third of the steps. */
static double train(ex_run *run, const ex_encoder *e, const char *weights, double share,
                    long *images)
{
    ctr_fit_config fit = ctr_fit_default();
    ctr_method *method = classifier(run, e, weights);
    ctr_dataset *part = NULL;
    double top1 = -1;
    if (share < 1) ctr_dataset_split(run->ctx, run->train, share, run->o->seed, &part, NULL);
    ex_run_check(run);
    fit.epochs = (int64_t)(run->o->epochs / sqrt(share) + 0.5);
    fit.batch = run->o->batch;
    fit.lr = run->o->lr;
    ctr_fit_images(method, part ? part : run->train, &fit);
    ctr_supervised_classify(method, run->test, &run->clean, NULL, &top1);
    ex_run_check(run);
    *images = (long)ctr_dataset_count(part ? part : run->train);
    ctr_dataset_destroy(run->ctx, part);
    ctr_method_destroy(method);
    return 100 * top1;
}

/* labels.svg: what a label is worth with and without the checkpoint. */
static void draw_labels(ex_run *run, double accuracy[2][SHARES], const long *images)
{
    double x[SHARES];
    ex_series series[2];
    ex_panel panel;
    char path[EX_PATH];
    int i;
    memset(series, 0, sizeof series);
    memset(&panel, 0, sizeof panel);
    for (i = 0; i < SHARES; i++) x[i] = log10((double)images[i]);
    for (i = 0; i < 2; i++) {
        series[i].name = i ? "from random weights" : "from the checkpoint";
        series[i].x = x;
        series[i].y = accuracy[i];
        series[i].count = SHARES;
    }
    panel.x_title = "labelled images";
    panel.x_log = 10;
    panel.y_title = "accuracy on test images, %";
    panel.series = series;
    panel.count = 2;
    ex_run_drew(run, ex_svg_curve(ex_out_path(run->o, "labels.svg", path),
                                  "Training with 1, 10 and 100 % of the labels", &panel, 1));
}

/* A line of the table: a number for each column, with its interval if there is one. -1: unknown. */
static void row(const char *name, const double v[3], const double *interval, int decimals)
{
    char cell[48];
    int i;
    printf("  %-36s", name);
    for (i = 0; i < 3; i++) {
        if (v[i] <= -1) snprintf(cell, sizeof cell, "-");
        else if (interval)
            snprintf(cell, sizeof cell, "%.*f +- %.1f", decimals, v[i], interval[i]);
        else snprintf(cell, sizeof cell, "%.*f", decimals, v[i]);
        printf(" %14s", cell);
    }
    printf("\n");
}

/* The same question to the checkpoint, to random weights and to pixels. */
#define ROW(name, member, decimals) \
    (v[0] = w[0].member, v[1] = w[1].member, v[2] = w[2].member, row(name, v, NULL, decimals))

static void table(const worth w[3], double accuracy[2][SHARES], int trained)
{
    static const char *const shot[2] = { "few shots, 1 of each class",
                                         "           5 of each class" };
    static const char *const tuned[SHARES] = { "trained on   1 % of the labels",
                                               "            10 %", "           100 %" };
    double v[3], interval[3];
    int i, k;
    printf("\n  %-36s %14s %14s %14s\n", "percent of the test images", "checkpoint",
           "random weights", "pixels");
    ROW("k-NN", knn, 1);
    ROW("linear probe, all labels", linear, 1);
    ROW("              10 labels a class", linear_10, 1);
    for (i = 0; i < 2; i++) {
        for (k = 0; k < 3; k++) v[k] = w[k].shot[i], interval[k] = w[k].interval[i];
        row(shot[i], v, interval, 1);
    }
    ROW("retrieval, R@1", recall, 1);
    ROW("           mAP", map, 1);
    ROW("           MAP@R", map_r, 1);
    ROW("clusters,  accuracy", cluster, 1);
    ROW("           NMI, 0 to 1", nmi, 3);
    ROW("           ARI, 0 to 1", ari, 3);
    for (i = 0; i < SHARES && trained; i++) {
        v[0] = accuracy[0][i];
        v[1] = accuracy[1][i];
        v[2] = -1;
        row(tuned[i], v, NULL, 1);
    }
    printf("\n");
}

/* The data: without test images a fifth of each class is kept for them. */
static void open_data(ex_run *run, ex_encoder *e)
{
    ex_options *o = run->o;
    const char *path = o->test ? o->test : o->data;
    int tests = ctr_dataset_has_split(run->ctx, path, "test");
    ctr_dataset *whole = ex_encoder_data(run, e, o->data, o->test ? NULL : "train");
    if (ctr_dataset_classes(whole) < 2)
        ex_die(o, 2, "--data: '%s' has no classes to ask for (a folder for each gives them)",
               o->data);
    if (o->test || tests) {
        run->train = whole;
        run->test = ex_encoder_data(run, e, path, tests ? "test" : NULL);
    } else {
        run->all_train = whole;
        ctr_dataset_split(run->ctx, whole, 0.2, o->seed, &run->test, &run->train);
        ex_run_check(run);
        printf("no test images: a fifth of each class is kept from training\n");
        if (!run->train) ex_die(o, 2, "--data: too few images to keep some for a test");
    }
    if (ctr_dataset_count(run->test) < 2 || ctr_dataset_count(run->train) < 2)
        ex_die(o, 2, "--data: needs two images to train with and two to test, got %ld and %ld",
               (long)ctr_dataset_count(run->train), (long)ctr_dataset_count(run->test));
    if (o->smoke && !run->all_train) ex_run_shrink(run);
    run->clean = run->view = ex_encoder_view(run, e, run->train);
    run->view.center_crop = 0;                    /* of training: crops and flips, no colours */
    run->view.crop_min = CROP_MIN;
    run->view.ratio_min = 3.0 / 4;
    run->view.ratio_max = 4.0 / 3;
    run->view.flip_p = 0.5;
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ex_encoder encoder;
    ctr_method *method, *random;
    ex_embedded train_set, test_set;
    worth w[3];
    double accuracy[2][SHARES] = { { -1, -1, -1 }, { -1, -1, -1 } }, low, high;
    const char **names;
    char lines[2048];
    int untrained = 0, classes, i;
    long images[SHARES];

    /* 1. the command line */
    ex_options_init(&o, "evaluate", "what an encoder is worth, asked in every way", __FILE__);
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_drop(&o, "--arch");
    ex_options_drop(&o, "--temperature");
    ex_options_drop(&o, "--save-every");
    ex_options_drop(&o, "--resume");
    ex_encoder_options(&o, &encoder);
    ex_options_add(&o, "--no-training", "", EX_FLAG, &untrained, 0, 1,
                   "leave fine-tuning and training from scratch out");
    ex_options_parse(&o, argc, argv);
    if (o.smoke && !ex_options_given(&o, "--epochs")) o.epochs = 1;

    /* 2. the encoder, the data, and the same network before it knew anything */
    method = ex_encoder_open(&run, &o, &encoder);
    open_data(&run, &encoder);
    random = classifier(&run, &encoder, NULL);
    ctr_share_interval(ctr_dataset_count(run.test) * 4 / 5, ctr_dataset_count(run.test), &low,
                       &high);
    printf("%ld training and %ld test images of %ld classes; 80 %% of that many have a 95 %% "
           "interval of +- %.1f\n", (long)ctr_dataset_count(run.train),
           (long)ctr_dataset_count(run.test), (long)ctr_dataset_classes(run.train),
           50 * (high - low));
    fflush(stdout);

    /* 3. features as they are */
    w[0] = measure(&run, method);
    w[1] = measure(&run, random);
    w[2] = measure(&run, NULL);

    /* 4. and trained further, with few labels and with many */
    for (i = 0; i < SHARES && !untrained; i++) {
        accuracy[0][i] = train(&run, &encoder, encoder.checkpoint, shares[i], &images[i]);
        accuracy[1][i] = train(&run, &encoder, NULL, shares[i], &images[i]);
        printf("trained with %ld labels: %.1f %% from the checkpoint, %.1f %% from random "
               "weights\n", images[i], accuracy[0][i], accuracy[1][i]);
        fflush(stdout);
    }

    /* 5. the table, pictures, the line */
    table(w, accuracy, !untrained);
    ex_out_make(&o);
    train_set = ex_embed(&run, method, run.train);
    test_set = ex_embed(&run, method, run.test);
    names = ex_class_names(&run, run.test, &classes, lines);
    ex_draw_map(&run, &test_set, names, classes);
    ex_draw_neighbours(&run, &train_set, &test_set, names, classes);
    if (!untrained) draw_labels(&run, accuracy, images);
    printf("written to %s: map.svg neighbours.png%s\n", o.out, untrained ? "" : " labels.svg");
    printf("result method=evaluate knn=%.2f linear=%.2f linear_10=%.2f shot_1=%.2f shot_5=%.2f "
           "recall_1=%.2f map=%.2f map_r=%.2f cluster=%.2f nmi=%.4f ari=%.4f tuned_1=%.2f "
           "tuned_10=%.2f tuned_100=%.2f scratch_1=%.2f scratch_10=%.2f scratch_100=%.2f "
           "knn_random=%.2f knn_pixels=%.2f peak_mb=%.0f seconds=%.1f\n", w[0].knn, w[0].linear,
           w[0].linear_10, w[0].shot[0], w[0].shot[1], w[0].recall, w[0].map, w[0].map_r,
           w[0].cluster, w[0].nmi, w[0].ari, accuracy[0][0], accuracy[0][1], accuracy[0][2],
           accuracy[1][0], accuracy[1][1], accuracy[1][2], w[1].knn, w[2].knn, ex_peak_mb(),
           ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");

    free(names);
    free(train_set.x);
    free(train_set.labels);
    free(test_set.x);
    free(test_set.labels);
    ctr_method_destroy(random);
    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
