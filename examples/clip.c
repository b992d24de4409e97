/* CLIP: pictures and sentences in one space, so that naming a class is enough to recognise it.
 *
 * Alec Radford et al.: "Learning Transferable Visual Models From Natural Language Supervision",
 * 2021. An image encoder and a text encoder are trained so that of all sentences in a batch each
 * picture lies nearest to its own, and each sentence to its own picture. A classifier then needs no
 * training: embed "a photo of a cat", "a photo of a dog", and take the nearest (zero-shot).
 *
 *   augmentation        a crop of almost all of the picture: more would make sentences wrong
 *   parallel views      two networks, one for each modality
 *   positives           the picture's own sentence, the sentence's own picture
 *   negatives           the other sentences, and the other pictures, of the batch
 *   loss                InfoNCE in both directions with a learnt temperature (--siglip: each pair
 *                       a yes or no of its own, Zhai et al., 2023)
 *   modality            images with captions
 *
 *     picture   --> ResNet --> linear -------------------> z_i --+
 *                                                                +--> exp(s) cos(z_i, t_j), [n, n]
 *     sentence  --> bytes --> causal transformer -> linear-> t_j --+     rows and columns: which
 *                             (read at the end token)                 one is mine?
 *
 *   loss = 1/2 [ mean_i -log softmax_j(exp(s) z_i.t_j)_ii + the same over i ];  at chance: ln n
 *
 * The pictures are drawn (example_shapes.h): coloured shapes, and sentences about them. A quarter
 * of all pairs of a colour and a shape is held out of training, and these are what zero-shot is
 * asked for: it has seen red, and triangles, but no red triangle. Scenes with two objects show
 * what such training hardly teaches: which colour goes with which shape (binding), and what is
 * above what, though every sentence says it. A bag of words, "red, ring, blue, cross", finds the
 * right sentence in the batch almost as well, and the mean over the picture does not know where
 * things are. Large models have the same gap (Yuksekgonul et al., 2023).
 * For real pictures: --data pairs.tsv, a line "path<TAB>caption" each.
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o clip examples/clip.c -lm -lpthread && ./clip
 * Last line, by default (percent; chance is 2.1 for zeroshot, 50 for colour, binding, relation):
 *     result method=clip epochs=16 loss=0.3545 zeroshot=96.25 zeroshot_seen=100.00 colour=100.00
 *     binding=72.08 relation=51.88 caption_r1=80.62 picture_r1=79.96 images_per_s=... (one line)
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"
#include "example_shapes.h"

/*                            ours, for minutes on 2 cores    the paper's, for weeks on 256 GPUs */
#define ARCH        "resnet8" /* 76,000 weights                 ResNet-50, 38 million */
#define WIDTH       64        /* of the transformer             512 */
#define LAYERS      2         /*                                12 */
#define HEADS       4         /*                                8 */
#define CONTEXT     64        /* bytes                          77 pieces of words */
#define DIM         64        /*                                1024 */
#define IMAGES      12000     /* drawn                          400 million pairs from the web */
#define EPOCHS      16        /*                                32 */
#define BATCH       128       /*                                32768 */
#define RATE        0.002     /* AdamW, cosine                  0.0005 */
#define DECAY       0.05      /*                                0.2 */
#define TESTS       480       /* drawn pictures of each kind */

/* The loss by hand: image, text [n, d]. */
static ctr_tensor *clip_by_hand(ctr_ctx *ctx, ctr_tensor *image, ctr_tensor *text, double scale)
{
    int64_t n = image->shape[0], i;
    ctr_tensor *loss = NULL, *logits, *way, *mine;
    int k;
    logits = ctr_matmul(ctx, ctr_normalize(ctx, image), 0, ctr_normalize(ctx, text), 1);
    logits = ctr_scale(ctx, logits, scale);                       /* [n, n] */
    for (k = 0; k < 2; k++, logits = ctr_transpose(ctx, logits))  /* pictures, then sentences */
        for (i = 0; i < n; i++) {
            way = ctr_log_softmax(ctx, ctr_slice(ctx, logits, 0, i, 1));
            mine = ctr_sum(ctx, ctr_slice(ctx, way, 1, i, 1), -1);
            loss = loss ? ctr_add(ctx, loss, mine) : mine;
        }
    return ctr_scale(ctx, loss, -1.0 / (2.0 * (double)n));
}

static void compare_losses(ex_run *run)
{
    ctr_ctx *ctx = run->ctx;
    ctr_tensor *image, *text, *scale;
    ctr_step_begin(ctx);
    image = ex_random(run, 8, 16, 0);
    text = ex_random(run, 8, 16, 1);
    scale = ctr_tensor_temp(ctx, CTR_F32, 0, NULL);
    ctr_tensor_fill(ctx, scale, (ctr_real)2.659260036932778); /* ln(1 / 0.07) */
    ex_run_compare(run, "CLIP loss", clip_by_hand(ctx, image, text, 1 / 0.07),
                   ctr_loss_clip(ctx, image, text, scale, NULL));
    ctr_step_end(ctx);
}

/* ---- use ------------------------------------------------------------------------------------- */

enum { CLASSES = EX_COLOURS * EX_SHAPES };

/* Each picture's nearest of all 48 names, predicted [n]; returns the percentage of right ones. */
static double zero_shot(ex_run *run, ctr_method *method, ctr_tokenizer *tokenizer,
                        const ex_pairs *p, const ex_embedded *e, int64_t *predicted)
{
    static const char *const templates[4] = {
        "a {}", "a picture of a {}", "a small {}", "a large {}"
    };
    char name[CLASSES][32];
    const char *names[CLASSES];
    ctr_real *rows = (ctr_real *)ex_alloc(run, (size_t)(CLASSES * e->d), sizeof *rows);
    ctr_points classes, pictures = ctr_points_make(e->n, e->d, e->x, NULL);
    int64_t i, right = 0;
    for (i = 0; i < CLASSES; i++) {
        snprintf(name[i], sizeof name[i], "%s %s", ex_colour_name((int)i / EX_SHAPES),
                 ex_shape_name((int)i % EX_SHAPES));
        names[i] = name[i];
    }
    ctr_clip_classifier(method, tokenizer, CLASSES, names, 4, templates, rows);
    classes = ctr_points_make(CLASSES, e->d, rows, NULL);
    ctr_neighbors_find(run->ctx, &classes, &pictures, 1, predicted, NULL);
    ex_run_check(run);
    for (i = 0; i < e->n; i++) {
        const ex_object *o = &p->scenes[i].object[0];
        right += predicted[i] == o->colour * EX_SHAPES + o->shape;
    }
    free(rows);
    return 100.0 * (double)right / (double)e->n;
}

/* Of the true sentence and one that is false (ex_scene_lie), which does the picture lie nearer to?
   The percentage of true ones; chance 50. */
static double choose(ex_run *run, ctr_method *method, ctr_tokenizer *tokenizer, const ex_pairs *p,
                     const ex_embedded *e, int kind)
{
    int32_t *tokens = (int32_t *)ex_alloc(run, (size_t)(2 * e->n * CONTEXT), sizeof *tokens);
    ctr_real *t = (ctr_real *)ex_alloc(run, (size_t)(2 * e->n * e->d), sizeof *t);
    int64_t i, j, right = 0;
    char text[EX_CAPTION];
    for (i = 0; i < 2 * e->n; i++) {
        if (i % 2) ex_scene_lie(&p->scenes[i / 2], kind, text);
        else ex_scene_caption(&p->scenes[i / 2], 0, text);
        ctr_tokenizer_encode(run->ctx, tokenizer, text, CONTEXT, 1, tokens + i * CONTEXT);
    }
    ctr_clip_texts(method, 2 * e->n, tokens, 64, t);
    ex_run_check(run);
    for (i = 0; i < e->n; i++) {
        const ctr_real *z = e->x + i * e->d, *a = t + 2 * i * e->d, *b = a + e->d;
        double gap = 0;
        for (j = 0; j < e->d; j++) gap += (double)z[j] * (double)(a[j] - b[j]);
        right += gap > 0;
    }
    free(tokens);
    free(t);
    return 100.0 * (double)right / (double)e->n;
}

/* Each picture among the captions of all pictures in e, each of these captions among the pictures.
   best [n]: the number of the caption nearest to each picture. */
static void retrieve(ex_run *run, ctr_method *method, const ex_pairs *p, const int32_t *tokens,
                     const ex_embedded *e, ctr_retrieval *text, ctr_retrieval *image,
                     int64_t *best)
{
    int64_t n = 0, i;
    int32_t *ids = (int32_t *)ex_alloc(run, (size_t)p->count, sizeof *ids);
    char *said = (char *)ex_alloc(run, (size_t)p->count, 1);
    ctr_real *t = (ctr_real *)ex_alloc(run, (size_t)(p->count * e->d), sizeof *t);
    int64_t *index = (int64_t *)ex_alloc(run, (size_t)(10 * (e->n + p->count)), sizeof *index);
    ctr_points captions, pictures = ctr_points_make(e->n, e->d, e->x, NULL);
    for (i = 0; i < e->n; i++) {
        int32_t label = e->labels[i];
        if (said[label]) continue;
        said[label] = 1;
        ctr_clip_texts(method, 1, tokens + label * CONTEXT, 1, t + n * e->d);
        ids[n++] = label;
    }
    captions = ctr_points_make(n, e->d, t, NULL);
    ctr_neighbors_find(run->ctx, &captions, &pictures, 10, index, NULL);
    ctr_retrieval_measure(run->ctx, e->n, 10, index, e->labels, n, ids, 0, text);
    for (i = 0; i < e->n; i++) best[i] = ids[index[10 * i]];
    ctr_neighbors_find(run->ctx, &pictures, &captions, 10, index, NULL);
    ctr_retrieval_measure(run->ctx, n, 10, index, ids, e->n, e->labels, 0, image);
    ex_run_check(run);
    printf("retrieval, %ld pictures and %ld captions: a picture's caption R@1 %.1f R@5 %.1f R@10 "
           "%.1f %%, a caption's picture R@1 %.1f R@5 %.1f R@10 %.1f %%\n", (long)e->n, (long)n,
           100 * text->recall[0], 100 * text->recall[1], 100 * text->recall[2],
           100 * image->recall[0], 100 * image->recall[1], 100 * image->recall[2]);
    free(ids);
    free(said);
    free(t);
    free(index);
}

/* Pictures with what is true (above) and what the model says, green if these are one. names:
   numbers of names of colour and shape; else of captions. */
static void draw_sheet(ex_run *run, const char *file, const char *title, const ex_pairs *p,
                       const ctr_dataset *images, const int64_t *said, int names)
{
    enum { COLUMNS = 4, ROWS = 6, CELL = 300 };
    int n = (int)(ctr_dataset_count(images) < COLUMNS * ROWS ? ctr_dataset_count(images)
                                                            : COLUMNS * ROWS), i;
    ex_images set = ex_images_make(run, images, &run->clean, n);
    int tile = ex_images_tile(set, set);
    ex_canvas c = ex_canvas_create(70 + (n + COLUMNS - 1) / COLUMNS * (tile + 56),
                                   CELL * COLUMNS + 20);
    char path[EX_PATH], truth[EX_CAPTION], answer[EX_CAPTION];
    ex_text(&c, 20, 20, 15, EX_INK, title);
    for (i = 0; i < n; i++) {
        int64_t k = i * ctr_dataset_count(images) / n, label = ctr_dataset_label(images, k);
        int y = 60 + i / COLUMNS * (tile + 56), x = 10 + i % COLUMNS * CELL;
        ex_render(run, images, k, &run->clean, 0, ex_image_at(set, i));
        if (names) {
            const ex_object *o = &p->scenes[k].object[0];
            label = o->colour * EX_SHAPES + o->shape;
            snprintf(truth, sizeof truth, "%s %s", ex_colour_name(o->colour),
                     ex_shape_name(o->shape));
            snprintf(answer, sizeof answer, "%s %s", ex_colour_name((int)said[k] / EX_SHAPES),
                     ex_shape_name((int)said[k] % EX_SHAPES));
        } else {
            snprintf(truth, sizeof truth, "%s", ex_pairs_caption(p, label));
            snprintf(answer, sizeof answer, "%s", ex_pairs_caption(p, said[k]));
        }
        ex_images_blit(&c, y, x + (CELL - tile) / 2, tile, set, i);
        ex_caption(&c, y + tile + 8, x + 4, CELL - 8, 8, EX_INK, truth);
        ex_caption(&c, y + tile + 24, x + 4, CELL - 8, 8, said[k] == label ? EX_RIGHT : EX_WRONG,
                   answer);
    }
    ex_run_drew(run, ex_canvas_write(&c, ex_out_path(run->o, file, path)));
    free(ex_image_at(set, 0));
}

/* Zero-shot on single objects, seen and held out; true and false sentences about scenes. */
static void judge_drawn(ex_run *run, ctr_method *method, ctr_tokenizer *tokenizer, ex_pairs *tests,
                        const ex_embedded *scenes, double *shot, double *chosen)
{
    int64_t *said = (int64_t *)ex_alloc(run, (size_t)tests[0].n, sizeof *said);
    int i;
    for (i = 0; i < 2; i++) {
        ex_embedded e = ex_embed(run, method, tests[i].images);
        shot[i] = zero_shot(run, method, tokenizer, &tests[i], &e, said);
        free(e.x);
        free(e.labels);
    }
    draw_sheet(run, "zeroshot.png", "held-out combinations: what it is, what the nearest name says",
               &tests[1], tests[1].images, said, 1);
    for (i = 0; i < 3; i++) chosen[i] = choose(run, method, tokenizer, &tests[2], scenes, i);
    printf("zero-shot among %d names: combinations seen %.1f %%, held out %.1f %% (chance %.1f)\n"
           "scenes of two, the true sentence or a false one (chance 50): a colour that is not "
           "there %.1f %%, shapes exchanged %.1f %%, relation turned round %.1f %%\n", CLASSES,
           shot[0], shot[1], 100.0 / CLASSES, chosen[0], chosen[1], chosen[2]);
    free(said);
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Drawn pictures, or those of --data, of which --test or every tenth are kept for the test. */
static void open_data(ex_run *run, int64_t images, ex_pairs *train, ex_pairs *tests)
{
    ctr_data_options options = ctr_data_options_default();
    int64_t *index, i, k, n, tenth;
    memset(tests, 0, 3 * sizeof *tests);
    memset(train, 0, sizeof *train);
    if (!run->o->data) {
        *train = ex_pairs_draw(run->ctx, run->o, EX_PAIRS_TRAIN, images, 0);
        for (i = 0; i < 3; i++)
            tests[i] = ex_pairs_draw(run->ctx, run->o, (ex_pairs_kind)(EX_PAIRS_SEEN + i),
                                     run->o->smoke ? 60 : TESTS, 100000000);
        run->train = train->images;
        run->test = tests[2].images;
        return;
    }
    options.short_side = 96;
    train->images = ctr_dataset_open_pairs(run->ctx, run->o->data, &options);
    ex_run_check(run);
    n = train->n = ctr_dataset_count(train->images);
    if (n < 10)
        ex_die(run->o, 2, "--data: '%s' has %ld pictures, expected 10 or more: every tenth is kept "
               "for the test", run->o->data, (long)n);
    train->count = ctr_dataset_classes(train->images);
    index = (int64_t *)ex_alloc(run, (size_t)n, sizeof *index);
    for (tenth = 0; tenth < 2; tenth++) {
        for (i = k = 0; i < n; i++)
            if ((i % 10 == 9) == tenth) index[k++] = i;
        if (tenth) run->test = ctr_dataset_select(run->ctx, train->images, k, index);
        else run->train = ctr_dataset_select(run->ctx, train->images, k, index);
    }
    free(index);
    ex_run_check(run);
}

/* The tokens of a set's captions, [count, CONTEXT]. */
static int32_t *tokens_of(ex_run *run, ctr_tokenizer *tokenizer, const ex_pairs *p)
{
    int32_t *ids = (int32_t *)ex_alloc(run, (size_t)(p->count * CONTEXT), sizeof *ids);
    int64_t i;
    for (i = 0; i < p->count; i++)
        ctr_tokenizer_encode(run->ctx, tokenizer, ex_pairs_caption(p, i), CONTEXT, 1,
                             ids + i * CONTEXT);
    ex_run_check(run);
    return ids;
}

/* Both towers at the size of the constants above. */
static ctr_method *make_method(ex_run *run, const ctr_tokenizer *tokenizer, int siglip, int equal)
{
    ctr_clip_config config = ctr_clip_default();
    ctr_method *method;
    ex_run_encoder(run, &config.encoder);
    config.text.vocab = ctr_tokenizer_size(tokenizer);
    config.text.context = CONTEXT;
    config.text.width = WIDTH;
    config.text.layers = LAYERS;
    config.text.heads = HEADS;
    config.dim = DIM;
    config.siglip = siglip;
    config.equal = equal;
    config.aug.height = config.aug.width = run->view.height;
    config.optim.decay = DECAY;
    method = ctr_clip_create(run->ctx, &config);
    ex_run_check(run);
    return method;
}

static ctr_loader *make_loader(ex_run *run, const ctr_method *method, const int32_t *tokens)
{
    ctr_loader_config config = ctr_loader_config_default();
    ctr_loader *loader;
    ex_check_batch(run);
    config.batch = run->o->batch;
    config.views = method->views;
    config.augs = method->augs;
    config.tokens = tokens;                       /* of each picture's label, its caption */
    config.context = CONTEXT;
    config.seed = run->o->seed;
    loader = ctr_loader_create(run->ctx, run->train, &config);
    ex_run_check(run);
    return loader;
}

static void save_embeddings(ex_run *run, const ex_embedded *e)
{
    int64_t shape[2];
    char path[EX_PATH];
    shape[0] = e->n;
    shape[1] = e->d;
    ctr_npy_save(run->ctx, ex_out_path(run->o, "embeddings.npy", path),
                 sizeof(ctr_real) == 8 ? CTR_FILE_F64 : CTR_FILE_F32, 2, shape, e->x);
    ex_run_check(run);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ctr_fit_config fit;
    ctr_tokenizer *tokenizer;
    ctr_method *method;
    ctr_loader *loader;
    ctr_retrieval text, image;
    ex_pairs train, tests[3];
    const ex_pairs *judged;
    ex_embedded e;
    const char *merges = NULL;
    int32_t *tokens, *test_tokens;
    int64_t *best;
    double shot[2] = { -1, -1 }, chosen[3] = { -1, -1, -1 };
    int siglip = 0, equal = 0, images = IMAGES, chunk = 0, i;
    char loss[48];

    /* 1. the command line */
    ex_options_init(&o, "clip", "pictures and sentences in one space", __FILE__);
    ex_options_drop(&o, "--temperature");
    ex_options_drop(&o, "--data");
    ex_options_drop(&o, "--test");
    o.default_data = NULL;
    o.arch = ARCH;
    o.epochs = EPOCHS;
    o.batch = BATCH;
    o.lr = RATE;
    ex_options_add(&o, "--data", "PAIRS.TSV", EX_TEXT, &o.data, 0, 0,
                   "a file with a line path<TAB>caption for each picture, every tenth kept\n"
                   "for the test; without it, shapes are drawn");
    ex_options_add(&o, "--images", "N", EX_INT, &images, 200, 1000000, "pictures to draw");
    ex_options_add(&o, "--merges", "FILE", EX_TEXT, &merges, 0, 0,
                   "CLIP's bpe_simple_vocab_16e6.txt, unpacked; without it, tokens are bytes");
    ex_options_add(&o, "--siglip", "", EX_FLAG, &siglip, 0, 1, "SigLIP's loss instead");
    ex_options_add(&o, "--chunk", "N", EX_INT, &chunk, 2, 1000000,
                   "pictures embedded at a time, for big batches (examples/bigbatch.c);\n"
                   "0: the batch");
    ex_options_add(&o, "--equal", "", EX_FLAG, &equal, 0, 1,
                   "equal captions in a batch are positives of each other");
    ex_options_parse(&o, argc, argv);
    ex_smoke(&o);
    if (o.smoke && !ex_options_given(&o, "--images")) images = 600;

    /* 2. pictures, sentences, what turns these into numbers; the loss compared with that above */
    ex_run_start(&run, &o);
    tokenizer = merges ? ctr_tokenizer_open(run.ctx, merges, 0)
                       : ctr_tokenizer_create(run.ctx, NULL, 0, 0);
    ex_run_check(&run);
    open_data(&run, images, &train, tests);
    ex_run_size(&run, 0);
    judged = o.data ? &train : &tests[2];
    tokens = tokens_of(&run, tokenizer, &train);
    test_tokens = o.data ? tokens : tokens_of(&run, tokenizer, judged);
    compare_losses(&run);
    printf("clip: %ld pictures, %ld different captions, the first \"%s\"\n",
           (long)ctr_dataset_count(run.train), (long)train.count, ex_pairs_caption(&train, 0));

    /* 3. the method: view, two towers, loss, optimiser; train it */
    method = make_method(&run, tokenizer, siglip, equal);
    loader = make_loader(&run, method, tokens);
    ex_run_fit(&run, method, loader, &fit);
    fit.chunk = chunk;
    ex_run_train(&run, method, loader, &fit);

    /* 4. use it: name what is held out, tell true sentences from false ones, find one by the
       other */
    e = ex_embed(&run, method, run.test);
    best = (int64_t *)ex_alloc(&run, (size_t)e.n, sizeof *best);
    if (!o.data) judge_drawn(&run, method, tokenizer, tests, &e, shot, chosen);
    retrieve(&run, method, judged, test_tokens, &e, &text, &image, best);
    draw_sheet(&run, "retrieval.png", "pictures, what is said of them, and the nearest caption",
               judged, run.test, best, 0);
    if (run.steps) ex_draw_loss(&run);
    save_embeddings(&run, &e);
    printf("cosines are multiplied by %.1f; written to %s: checkpoint.safetensors embeddings.npy "
           "%sretrieval.png%s\n", ctr_clip_scale(method), o.out, run.steps ? "loss.svg " : "",
           o.data ? "" : " zeroshot.png");
    printf("result method=clip epochs=%d%s zeroshot=%.2f zeroshot_seen=%.2f colour=%.2f "
           "binding=%.2f relation=%.2f caption_r1=%.2f picture_r1=%.2f images_per_s=%.0f "
           "peak_mb=%.0f seconds=%.1f\n", o.epochs, ex_run_loss(&run, loss), shot[1], shot[0],
           chosen[0], chosen[1], chosen[2], 100 * text.recall[0], 100 * image.recall[0],
           run.trained_seconds > 0 ? run.images / run.trained_seconds : 0, ex_peak_mb(),
           ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");

    free(e.x);
    free(e.labels);
    free(best);
    free(tokens);
    if (!o.data) free(test_tokens);
    ctr_loader_destroy(run.ctx, loader);
    ctr_method_destroy(method);
    ctr_tokenizer_destroy(run.ctx, tokenizer);
    if (!o.data) run.train = run.test = NULL;     /* they belong to the pairs */
    ctr_dataset_destroy(run.ctx, run.train);
    ctr_dataset_destroy(run.ctx, run.test);
    run.train = run.test = NULL;
    for (i = 0; i < 3; i++) ex_pairs_free(run.ctx, &tests[i]);
    ex_pairs_free(run.ctx, &train);
    ex_run_close(&run);
    return 0;
}
