/* Temperature: how hard a contrastive loss looks at its hardest negatives.
 *
 * Feng Wang, Huaping Liu: "Understanding the Behaviour of Contrastive Loss", 2021. The gradient of
 * NT-Xent pushes an anchor away from each negative in proportion to exp(s / T): at a low T nearly
 * all of it goes to the few most similar images, at a high T everyone gets the same. The hardest
 * negatives are often of the anchor's own class, so a low T spreads the embeddings evenly and tears
 * classes apart, a high T tolerates neighbours and spreads badly: uniformity against tolerance.
 *
 *   augmentation, views, architecture, modality     as in simclr.c
 *   positives / negatives   the other view / all views of the other images of the batch
 *   loss                    NT-Xent, at each of five temperatures
 *
 *   with p_ij = exp(s_ij / T) / sum over k != i of exp(s_ik / T), for one anchor i and partner p:
 *     d loss / d s_ij =  p_ij / T         of a negative j
 *     d loss / d s_ip = -(1 - p_ip) / T   of the positive: minus the sum of the negatives'
 *     share of negative j                  r_ij = p_ij / sum of the negatives' p
 *
 * It writes  gradient.svg   the weight of a negative by its cosine, and how much of the gradient
 *                           the hardest ones have, on one embedding (the middle T's)
 *            trained.svg    what five trainings end with: alignment and uniformity (Wang and Isola,
 *                           2020), cosines within classes (tolerance) and between images, k-NN
 *
 * By default (four epochs each, one seed): the hardest hundredth of the negatives has 77 percent of
 * the gradient at T 0.05, 18 at 0.2 and 2 at 1. Uniformity is best in the middle, as 0.05 learns
 * slowly at first; cosines within classes grow from 0.1 on; k-NN stays within two points.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o temperature examples/temperature.c -lm -lpthread && ./temperature
 * Last line:
 *     result method=temperature epochs=... best_t=... knn=... hardest_share_low=... ..._high=...
 *     (shares of the gradient that the hardest hundredth of the negatives has, in percent)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

#define COUNT   5
#define MIDDLE  2      /* the T whose embeddings gradient.svg looks at */
#define IMAGES  192    /* that are looked at, two views each */
#define BINS    40     /* of the cosines -1..1 */
#define ARCH    "resnet8"
#define EPOCHS  4      /* for each temperature: minutes on 2 cores; the paper's 200 */
#define BATCH   128
#define RATE    0.3
#define HIDDEN  256

static const double temperatures[COUNT] = { 0.05, 0.1, 0.2, 0.5, 1 };

typedef struct look {                  /* at the embeddings of one training */
    double alignment, uniformity;
    double within, between;            /* mean cosine of images of one class, of any two */
    double knn;
    double *s;                         /* [2 IMAGES, 2 IMAGES] cosines of the views' embeddings */
} look;

/* ---- gradients ------------------------------------------------------------------------------- */

/* r_i [m]: the shares of anchor i's negatives; 0 for itself and its partner. Returns p_ip. */
static double shares(const double *s, int m, int i, double t, double *r)
{
    int partner = (i + m / 2) % m, j;
    double all = 0, others;
    for (j = 0; j < m; j++) {
        r[j] = j == i ? 0 : exp((s[j] - 1) / t);       /* s <= 1: nothing overflows */
        all += r[j];
    }
    others = all - r[partner];
    for (j = 0; j < m; j++) r[j] = j == partner ? 0 : r[j] / others;
    return 1 - others / all;
}

/* The formulas at the top against the tape's gradient of the loss by the cosines, and the loss
   against the library's of the embeddings. Returns the largest difference, relative to the largest
   gradient; ends the program if the two do not agree. */
static double check_gradients(ex_run *run, const ctr_real *z, int64_t d, const double *s, int m,
                              double t)
{
    int64_t square[2], rows[2], i, j, n = m;
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(m * m), 2 * sizeof *x), *g = x + m * m;
    int32_t *partner = (int32_t *)ex_alloc(run, (size_t)m, sizeof *partner);
    double *r = (double *)ex_alloc(run, (size_t)m, sizeof *r), worst = 0, most = 0, loss, librarys;
    ctr_tensor *leaf, *mask, *target, *tape, *e;
    square[0] = square[1] = rows[0] = m;
    rows[1] = d;
    leaf = ctr_tensor_create(run->ctx, CTR_F32, 2, square, 1);
    for (i = 0; i < m * n; i++) x[i] = (ctr_real)s[i];
    ctr_tensor_write(run->ctx, leaf, x, m * n);
    ctr_step_begin(run->ctx);
    mask = ctr_tensor_temp(run->ctx, CTR_F32, 2, square);
    target = ctr_tensor_temp(run->ctx, CTR_I32, 1, &n);
    e = ctr_tensor_temp(run->ctx, CTR_F32, 2, rows);
    for (i = 0; i < m * n; i++) x[i] = (ctr_real)(i % (m + 1) == 0 ? -1e30 : 0);
    for (i = 0; i < m; i++) partner[i] = (int32_t)((i + m / 2) % m);
    ctr_tensor_write(run->ctx, mask, x, m * n);
    ctr_tensor_write_i32(run->ctx, target, partner, m);
    ctr_tensor_write(run->ctx, e, z, m * d);
    tape = ctr_cross_entropy(run->ctx, ctr_add(run->ctx, ctr_scale(run->ctx, leaf, 1 / t), mask),
                             target, -1);
    loss = (double)ctr_tensor_item(run->ctx, tape);
    librarys = (double)ctr_tensor_item(run->ctx, ctr_loss_nt_xent(run->ctx, e, 2, t));
    ctr_backward(run->ctx, tape);
    ctr_tensor_read_grad(run->ctx, leaf, g, m * n);
    ctr_step_end(run->ctx);
    ex_run_check(run);
    for (i = 0; i < m; i++) {
        double p = shares(s + i * m, m, (int)i, t, r);
        for (j = 0; j < m; j++) {
            double want = (j == partner[i] ? -1 : r[j]) * (1 - p) / (t * m);
            double off = fabs((double)g[i * m + j] - want);
            if (off > worst) worst = off;
            if (fabs(want) > most) most = fabs(want);
        }
    }
    ctr_tensor_destroy(run->ctx, leaf);
    free(x);
    free(partner);
    free(r);
    if (!(worst < 1e-4 * most) || !(fabs(loss - librarys) < 1e-3))
        ex_die(run->o, 1, "T %g: gradients differ by %g of %g, losses %g and %g", t, worst, most,
               loss, librarys);
    return worst / most;
}

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Over all anchors: weight[b], log10 of the mean share in bin b of the cosines, 1 being what all
   would have at T = infinity (bins with fewer than 20 pairs are left empty); top[k], percent of the
   gradient that the hardest k percent of the negatives have, k = 0..20. */
static void weigh(ex_run *run, const double *s, int m, double t, double *weight, double *top)
{
    double sum[BINS] = { 0 }, count[BINS] = { 0 };
    double *r = (double *)ex_alloc(run, (size_t)m, sizeof *r);
    int i, j, k;
    for (k = 0; k <= 20; k++) top[k] = 0;
    for (i = 0; i < m; i++) {
        shares(s + i * m, m, i, t, r);
        for (j = 0; j < m; j++) {
            int bin = (int)((s[i * m + j] + 1) / 2 * BINS);
            if (j == i || j == (i + m / 2) % m) continue;
            bin = bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin;
            sum[bin] += r[j] * (m - 2);
            count[bin] += 1;
        }
        qsort(r, (size_t)m, sizeof *r, falling);
        for (k = 1; k <= 20; k++)
            for (j = 0; j < (m - 2) * k / 100; j++) top[k] += 100 * r[j] / m;
    }
    for (j = 0; j < BINS; j++) weight[j] = count[j] >= 20 ? log10(sum[j] / count[j]) : NAN;
    free(r);
}

/* ---- trainings ------------------------------------------------------------------------------- */

/* Embeddings z [2 IMAGES, d] of two views of test images, as the loss sees them; nothing is
   committed, so the method stays as it is. *labels [IMAGES]. Returns how many images there were. */
static int64_t views_of(ex_run *run, ctr_method *method, ctr_real *z, int32_t *labels)
{
    ctr_loader_config config = ctr_loader_config_default();
    const ctr_dataset *data = run->test ? run->test : run->train;
    ctr_loader *loader;
    ctr_batch b;
    int64_t shape[4], n = ctr_dataset_count(data);
    ctr_tensor *x;
    config.batch = n < IMAGES ? n : IMAGES;
    config.augs = method->augs;
    config.seed = run->o->seed + 1;
    loader = ctr_loader_create(run->ctx, data, &config);
    ex_run_check(run);
    if (!ctr_loader_next(run->ctx, loader, &b)) ex_run_check(run);
    shape[0] = 2 * b.n;
    shape[1] = b.h;
    shape[2] = b.w;
    shape[3] = b.c;
    ctr_step_begin(run->ctx);
    ctr_nograd_begin(run->ctx);
    x = ctr_tensor_temp(run->ctx, CTR_F32, 4, shape);
    ctr_tensor_write(run->ctx, x, b.pixels, x->size);
    x = method->embed_fn(method, x);
    ctr_tensor_read(run->ctx, x, z, x->size);
    ctr_nograd_end(run->ctx);
    ctr_step_end(run->ctx);
    memcpy(labels, b.labels, (size_t)b.n * sizeof *labels);
    n = b.n;
    ctr_loader_destroy(run->ctx, loader);
    ex_run_check(run);
    return n;
}

/* Everything that is known of the embeddings z [2n, d]. */
static void look_at(ex_run *run, const ctr_real *z, const int32_t *labels, int64_t n, int64_t d,
                    look *out)
{
    ctr_health health;
    int64_t m = 2 * n, i, j, k, same = 0;
    double within = 0;
    out->s = (double *)ex_alloc(run, (size_t)(m * m), sizeof *out->s);
    for (i = 0; i < m; i++)
        for (j = 0; j <= i; j++) {
            double dot = 0, a = 0, b = 0;
            for (k = 0; k < d; k++) {
                dot += (double)z[i * d + k] * (double)z[j * d + k];
                a += (double)z[i * d + k] * (double)z[i * d + k];
                b += (double)z[j * d + k] * (double)z[j * d + k];
            }
            out->s[i * m + j] = out->s[j * m + i] = a * b > 0 ? dot / sqrt(a * b) : 0;
        }
    for (i = 0; i < n; i++)
        for (j = 0; j < i; j++)
            if (labels[i] >= 0 && labels[i] == labels[j]) {
                within += out->s[i * m + j];
                same++;
            }
    ctr_health_measure(run->ctx, n, 2, d, z, labels, &health);
    ex_run_check(run);
    out->alignment = health.alignment;
    out->uniformity = health.uniformity;
    out->within = same ? within / (double)same : NAN;
    out->between = health.negative;
}

/* SimCLR at one temperature, and the check of its gradients, whose error is returned. */
static double train(ex_run *run, int which, look *out)
{
    ctr_simclr_config config = ctr_simclr_default();
    ctr_fit_config fit = ctr_fit_default();
    ctr_knn_result knn;
    ctr_method *method;
    ctr_loader *loader;
    ex_embedded train, test;
    double t = temperatures[which], error;
    int64_t n;
    ctr_real *z;
    int32_t labels[IMAGES];
    config.aug = run->view;
    config.temperature = t;
    config.proj_hidden = HIDDEN;
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    ex_run_encoder(run, &config.encoder);
    method = ctr_simclr_create(run->ctx, &config);
    ex_run_check(run);
    loader = ex_run_loader(run, method);
    fit.epochs = run->o->epochs;
    fit.lr = run->o->lr;
    if (ctr_fit(method, loader, &fit) < 0) ex_run_check(run);
    ctr_loader_destroy(run->ctx, loader);

    z = (ctr_real *)ex_alloc(run, 2 * IMAGES * (size_t)method->dim, sizeof *z);
    n = views_of(run, method, z, labels);
    look_at(run, z, labels, n, method->dim, out);
    error = check_gradients(run, z, method->dim, out->s, (int)(2 * n), t);
    free(z);

    train = ex_embed(run, method, run->train);
    test = ex_embed(run, method, run->test ? run->test : run->train);
    out->knn = NAN;
    if (ctr_dataset_classes(run->train) > 1) {
        ctr_points known = ctr_points_make(train.n, train.d, train.x, train.labels);
        ctr_points asked = ctr_points_make(test.n, test.d, test.x, test.labels);
        memset(&knn, 0, sizeof knn);
        ctr_knn_classify(run->ctx, &known, run->test ? &asked : NULL, NULL, NULL, &knn);
        ex_run_check(run);
        if (knn.counted) out->knn = 100 * knn.top1;
    }
    free(train.x);
    free(train.labels);
    free(test.x);
    free(test.labels);
    ctr_method_destroy(method);
    printf("T %-5g alignment %.3f  uniformity %.2f  cosine within classes %.2f, between images "
           "%.2f  k-NN %.1f %%  (gradients by hand and by the tape: %.0e apart)\n", t,
           out->alignment, out->uniformity, out->within, out->between, out->knn, error);
    fflush(stdout);
    return error;
}

/* ---- pictures -------------------------------------------------------------------------------- */

static void draw_gradients(ex_run *run, const look *at, int m, double *low, double *high)
{
    static const char *const names[COUNT] = { "T 0.05", "T 0.1", "T 0.2", "T 0.5", "T 1" };
    static double cosine[BINS], weight[COUNT][BINS], top[COUNT][21], percent[21];
    ex_series series[2][COUNT];
    ex_panel panels[2];
    char path[EX_PATH];
    int i;
    memset(series, 0, sizeof series);
    memset(panels, 0, sizeof panels);
    for (i = 0; i < BINS; i++) cosine[i] = (i + 0.5) * 2 / BINS - 1;
    for (i = 0; i <= 20; i++) percent[i] = i;
    for (i = 0; i < COUNT; i++) {
        weigh(run, at->s, m, temperatures[i], weight[i], top[i]);
        series[0][i].name = series[1][i].name = names[i];
        series[0][i].x = cosine;
        series[0][i].y = weight[i];
        series[0][i].count = BINS;
        series[1][i].x = percent;
        series[1][i].y = top[i];
        series[1][i].count = 21;
    }
    panels[0].title = "Weight of one negative";
    panels[0].x_title = "its cosine with the anchor";
    panels[0].y_title = "its weight; 1: the average";
    panels[0].y_log = 10;
    panels[1].title = "The hardest negatives' part of the gradient";
    panels[1].x_title = "hardest negatives, percent";
    panels[1].y_title = "percent of the gradient";
    for (i = 0; i < 2; i++) {
        panels[i].series = series[i];
        panels[i].count = COUNT;
    }
    ex_run_drew(run, ex_svg_curve(ex_out_path(run->o, "gradient.svg", path),
                                  "A low temperature looks at the hardest negatives alone", panels,
                                  2));
    *low = top[0][1];
    *high = top[COUNT - 1][1];
}

static void draw_trained(ex_run *run, const look *at)
{
    double x[COUNT], y[5][COUNT];
    static const char *const names[5] = { "alignment", "uniformity", "one class", "any two",
                                          "k-NN" };
    ex_series series[5];
    ex_panel panels[3];
    char path[EX_PATH];
    int i;
    memset(series, 0, sizeof series);
    memset(panels, 0, sizeof panels);
    for (i = 0; i < COUNT; i++) {
        x[i] = log10(temperatures[i]);
        y[0][i] = at[i].alignment;
        y[1][i] = at[i].uniformity;
        y[2][i] = at[i].within;
        y[3][i] = at[i].between;
        y[4][i] = at[i].knn;
    }
    for (i = 0; i < 5; i++) {
        series[i].name = names[i];
        series[i].x = x;
        series[i].y = y[i];
        series[i].count = COUNT;
    }
    panels[0].title = "Alignment and uniformity: lower is better";
    panels[1].title = "Cosines of different images";
    panels[2].title = "k-NN on the test images, percent";
    for (i = 0; i < 3; i++) {
        panels[i].series = &series[2 * i];
        panels[i].count = i < 2 ? 2 : 1;
        panels[i].x_title = "temperature it was trained with";
        panels[i].x_log = 10;
    }
    ex_run_drew(run, ex_svg_curve(ex_out_path(run->o, "trained.svg", path),
                                  "Five trainings: spread out, or tolerant of neighbours", panels,
                                  3));
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    look at[COUNT];
    double worst = 0, low, high;
    int64_t n;
    int i, best = 0;

    /* 1. the command line */
    ex_options_init(&o, "temperature", "what the temperature does to negatives", __FILE__);
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_drop(&o, "--temperature");       /* all of them */
    ex_options_drop(&o, "--resume");
    ex_options_drop(&o, "--save-every");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--epochs")) o.epochs = 1;

    /* 2. the data, augmented as in simclr.c */
    ex_run_open(&run, &o, 0);
    run.view.crop_min = 0.5;
    ex_out_make(&o);
    n = ctr_dataset_count(run.test ? run.test : run.train);
    n = n < IMAGES ? n : IMAGES;

    /* 3. a training for each temperature, and a look at what came out */
    for (i = 0; i < COUNT; i++) {
        double error = train(&run, i, &at[i]);
        if (error > worst) worst = error;
        if (at[i].knn > at[best].knn) best = i;
    }

    /* 4. pictures */
    draw_gradients(&run, &at[MIDDLE], (int)(2 * n), &low, &high);
    draw_trained(&run, at);
    printf("written to %s: gradient.svg trained.svg\n", o.out);
    printf("result method=temperature epochs=%d best_t=%g knn=%.2f hardest_share_low=%.1f "
           "hardest_share_high=%.1f gradient_error=%.1e peak_mb=%.0f seconds=%.1f\n", o.epochs,
           temperatures[best], at[best].knn, low, high, worst, ex_peak_mb(),
           ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");
    for (i = 0; i < COUNT; i++) free(at[i].s);
    ex_run_close(&run);
    return 0;
}
