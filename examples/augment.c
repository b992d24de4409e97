/* Augmentations, all of them, on one page each: what a network is asked to see through.
 *
 * In contrastive learning the augmentation is the task: two views of an image are to be embedded
 * alike, so whatever an operation changes (colour, place, angle) the embedding learns to ignore,
 * and whatever all views share (a hue, a texture) it may take as a shortcut. Look at the views
 * before training on them: if you cannot tell two of them for the same picture, the network is
 * asked for what is not there; if a glance suffices, it will not learn more than a glance.
 *
 *   operations.png   every operation at values along its range
 *   methods.png      the views of SimCLR, MoCo, BYOL, VICReg, SwAV and CPC, PIRL's with its puzzle
 *   policies.png     RandAugment (Cubuk et al., 2020), TrivialAugment (Mueller and Hutter, 2021),
 *                    AutoAugment's three learned policies (Cubuk et al., 2019), with cutout
 *   mixes.png        MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019) of pairs
 *
 *   any training program takes them:   ctr_policy_init(&config.aug.policy, CTR_POLICY_RANDAUGMENT);
 *                                      method = ctr_mix_create(ctx, method, &mix);
 *
 * Build and run, from the folder of contrastive.h:
 *     cc -O2 -o augment examples/augment.c -lm -lpthread && ./augment
 * Last line:
 *     result method=augment pictures=12 operations=20 sheets=4 seconds=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_report.h"

#define SIDE  96   /* pixels of a tile */
#define TILES 6    /* in a row of operations.png */
#define ROWS  10   /* in each of its two columns */

typedef struct row {
    const char *name;
    ctr_op op;                  /* CTR_OP_COUNT: by the float functions, told apart by `name` */
    double value[TILES];
    int decimals;               /* of the values' captions; -1: no value, three pairs instead */
} row;

/* RandAugment's ranges; posterize goes on to the 2 bits of TrivialAugment's. Weak effects stand in
   the middle where an operation goes both ways, else on the left. */
static const row rows[2 * ROWS] = {
    { "shear x",      CTR_OP_SHEAR_X,       { -.3, -.2, -.1, .1, .2, .3 }, 1 },
    { "shear y",      CTR_OP_SHEAR_Y,       { -.3, -.2, -.1, .1, .2, .3 }, 1 },
    { "translate x",  CTR_OP_TRANSLATE_X,   { -43, -28, -14, 14, 28, 43 }, 0 },
    { "translate y",  CTR_OP_TRANSLATE_Y,   { -43, -28, -14, 14, 28, 43 }, 0 },
    { "rotate",       CTR_OP_ROTATE,        { -30, -20, -10, 10, 20, 30 }, 0 },
    { "brightness",   CTR_OP_BRIGHTNESS,    { .1, .4, .7, 1.3, 1.6, 1.9 }, 1 },
    { "contrast",     CTR_OP_CONTRAST,      { .1, .4, .7, 1.3, 1.6, 1.9 }, 1 },
    { "color",        CTR_OP_COLOR,         { .1, .4, .7, 1.3, 1.6, 1.9 }, 1 },
    { "sharpness",    CTR_OP_SHARPNESS,     { .1, .4, .7, 1.3, 1.6, 1.9 }, 1 },
    { "posterize",    CTR_OP_POSTERIZE,     { 8, 7, 6, 5, 4, 2 }, 0 },
    { "solarize",     CTR_OP_SOLARIZE,      { 255, 204, 153, 102, 51, 0 }, 0 },
    { "cutout",       CTR_OP_CUTOUT,        { 8, 16, 24, 32, 48, 64 }, 0 },
    { "hue",          CTR_OP_COUNT,         { -.5, -.2, -.1, .1, .2, .35 }, 2 },
    { "blur",         CTR_OP_COUNT,         { .1, .5, .8, 1.2, 1.6, 2 }, 1 },
    { "crop",         CTR_OP_COUNT,         { 1, .8, .6, .4, .2, .08 }, 2 },
    { "flip",         CTR_OP_COUNT,         { 0, 0, 0, 0, 0, 0 }, -1 },
    { "gray",         CTR_OP_COUNT,         { 0, 0, 0, 0, 0, 0 }, -1 },
    { "invert",       CTR_OP_INVERT,        { 0, 0, 0, 0, 0, 0 }, -1 },
    { "auto contrast", CTR_OP_AUTO_CONTRAST, { 0, 0, 0, 0, 0, 0 }, -1 },
    { "equalize",     CTR_OP_EQUALIZE,      { 0, 0, 0, 0, 0, 0 }, -1 },
};

/* One of the operations on bytes x[SIDE, SIDE, c], in place. */
static void on_bytes(ex_run *run, ctr_op op, double value, unsigned char *x, int c)
{
    ctr_policy_params p;
    memset(&p, 0, sizeof p);
    p.fill = 128;
    p.count = 1;
    p.step[0].op = op;
    p.step[0].value = value;
    p.step[0].x = SIDE / 2;
    p.step[0].y = SIDE / 2;
    ctr_policy_image(run->ctx, &p, x, SIDE, SIDE, c);
}

/* One of those that work on numbers in 0..1. */
static void on_floats(ex_run *run, const char *name, double value, unsigned char *x, int c)
{
    int n = SIDE * SIDE * c, i, side = (int)(SIDE * sqrt(value) + 0.5);
    ctr_real *f = (ctr_real *)ex_alloc(run, (size_t)n, 2 * sizeof *f), *g = f + n;
    ctr_aug_config plain = ctr_aug_none_default(SIDE);
    ctr_box box;
    for (i = 0; i < n; i++) g[i] = f[i] = (ctr_real)x[i] / 255;
    box.h = box.w = side;
    box.top = box.left = (SIDE - side) / 2;
    if (!strcmp(name, "hue")) ctr_aug_hue(run->ctx, g, SIDE, SIDE, c, value);
    if (!strcmp(name, "blur")) ctr_aug_blur(run->ctx, g, SIDE, SIDE, c, 11, value);
    if (!strcmp(name, "flip")) ctr_aug_flip(run->ctx, g, SIDE, SIDE, c);
    if (!strcmp(name, "gray")) ctr_aug_grayscale(run->ctx, g, SIDE, SIDE, c);
    if (!strcmp(name, "crop"))
        ctr_aug_resized_crop(run->ctx, f, SIDE, SIDE, c, &box, SIDE, SIDE, CTR_INTERP_BICUBIC, g);
    ex_bytes_of(&plain, g, c, x);
    free(f);
}

/* Row r of operations.png: one picture at six values, or three pictures before and after. */
static void draw_row(ex_run *run, ex_canvas *canvas, ex_images pictures, int r)
{
    const row *a = &rows[r];
    int c = pictures.channels, size = SIDE * SIDE * c, t, pairs = a->decimals < 0;
    int y = 74 + r % ROWS * (SIDE + 24), x = 24 + r / ROWS * (130 + TILES * (SIDE + 6));
    unsigned char *tile = (unsigned char *)ex_alloc(run, (size_t)size, 1);
    ex_text(canvas, y + SIDE / 2 - 5, x, 10, EX_INK, a->name);
    for (t = 0; t < TILES; t++) {
        int which = (pairs ? 3 * r + t / 2 : r) % pictures.count, at = x + 112 + t * (SIDE + 6);
        char text[48] = "";
        memcpy(tile, ex_image_at(pictures, which), (size_t)size);
        /* pictures use all 256 values: make them dull first, or there is nothing to stretch */
        if (a->op == CTR_OP_AUTO_CONTRAST || a->op == CTR_OP_EQUALIZE)
            on_bytes(run, CTR_OP_CONTRAST, 0.35, tile, c);
        if (!pairs || t % 2 == 1) {
            if (a->op < CTR_OP_COUNT) on_bytes(run, a->op, a->value[t], tile, c);
            else on_floats(run, a->name, a->value[t], tile, c);
        }
        ex_blit(canvas, y, at, 1, tile, SIDE, SIDE, c);
        if (pairs) snprintf(text, sizeof text, "%s", t % 2 ? "after" : "before");
        else ex_number(text, a->value[t], a->decimals);
        ex_caption(canvas, y + SIDE + 5, at, SIDE, 7, EX_PALE, text);
    }
    free(tile);
    ex_run_check(run);
}

static void draw_operations(ex_run *run, ex_images pictures)
{
    int height = 84 + ROWS * (SIDE + 24), width = 30 + 2 * (130 + TILES * (SIDE + 6));
    ex_canvas canvas = ex_canvas_create(height, width);
    char path[EX_PATH];
    int r;
    ex_text(&canvas, 22, 24, 16, EX_INK, "Every operation along its range");
    for (r = 0; r < 2 * ROWS && canvas.pixels; r++) draw_row(run, &canvas, pictures, r);
    ex_run_drew(run, ex_canvas_write(&canvas, ex_out_path(run->o, "operations.png", path)));
}

/* A row for each picture, a view of each augmentation in it. */
static void draw_views(ex_run *run, ex_images pictures, const char *name, const char *title,
                       const ctr_aug_config *augs, const char *const *names, int k)
{
    int n = pictures.count < 6 ? pictures.count : 6, i, j;
    ex_images first = pictures, views = ex_images_make(run, run->train, &run->clean, n * k);
    char path[EX_PATH];
    first.count = n;
    for (i = 0; i < n; i++)
        for (j = 0; j < k; j++)
            if (augs[j].grid)
                ex_render_puzzle(run, run->train, i, &augs[j], SIDE, SIDE, j,
                                 ex_image_at(views, i * k + j));
            else
                ex_render(run, run->train, i, &augs[j], j, ex_image_at(views, i * k + j));
    ex_out_path(run->o, name, path);
    ex_run_drew(run, ex_sheet_views(path, title, first, views, k, names));
    free(ex_image_at(views, 0));
}

static void draw_methods(ex_run *run, ex_images pictures)
{
    enum { VIEWS = 13 };
    static const char *const names[VIEWS] = {
        "SimCLR", "MoCo v1", "MoCo v2", "MoCo v3, 1", "MoCo v3, 2", "BYOL, 1", "BYOL, 2", "VICReg",
        "SwAV large", "SwAV small", "PIRL image", "PIRL puzzle", "CPC"
    };
    ctr_vicreg_config vicreg = ctr_vicreg_default();
    ctr_cpc_config cpc = ctr_cpc_default();
    ctr_aug_config a[VIEWS];
    ctr_aug_simclr_config_init(&a[0], SIDE);
    ctr_aug_moco_config_init(&a[1], SIDE, 1, 0);
    ctr_aug_moco_config_init(&a[2], SIDE, 2, 0);
    ctr_aug_moco_config_init(&a[3], SIDE, 3, 0);
    ctr_aug_moco_config_init(&a[4], SIDE, 3, 1);
    ctr_aug_byol_config_init(&a[5], SIDE, 0);
    ctr_aug_byol_config_init(&a[6], SIDE, 1);
    a[7] = vicreg.aug[0];
    a[7].blur_p = 0.5;                            /* above 32 pixels */
    ctr_aug_swav_config_init(&a[8], SIDE, 0);
    ctr_aug_swav_config_init(&a[9], SIDE, 1);     /* 3/7 as large in training */
    ctr_aug_pirl_config_init(&a[10], SIDE, 0);
    ctr_aug_pirl_config_init(&a[11], SIDE, 1);    /* pieces, smaller than a tile */
    a[12] = cpc.aug;
    a[7].height = a[7].width = a[9].height = a[9].width = a[12].height = a[12].width = SIDE;
    draw_views(run, pictures, "methods.png", "Views as the methods train with them", a, names,
               VIEWS);
}

static void draw_policies(ex_run *run, ex_images pictures)
{
    static const char *const names[8] = { "Rand 2 x 9/30", "Rand 2 x 20/30", "Trivial", "Trivial",
                                          "Auto CIFAR-10", "Auto SVHN", "Auto ImageNet",
                                          "CIFAR + cutout" };
    static const ctr_policy_kind kinds[8] = {
        CTR_POLICY_RANDAUGMENT, CTR_POLICY_RANDAUGMENT, CTR_POLICY_TRIVIAL, CTR_POLICY_TRIVIAL,
        CTR_POLICY_CIFAR10, CTR_POLICY_SVHN, CTR_POLICY_IMAGENET, CTR_POLICY_CIFAR10
    };
    ctr_aug_config a[8];
    int i;
    for (i = 0; i < 8; i++) {                     /* without crop and flip: the policy alone */
        ctr_aug_none_config_init(&a[i], SIDE);
        ctr_policy_init(&a[i].policy, kinds[i]);
        a[i].policy.fill = 128;
    }
    a[1].policy.m = 20;
    a[7].policy.cutout = SIDE / 2;                /* 16 of 32 pixels in the paper */
    draw_views(run, pictures, "policies.png", "Policies: a few operations drawn at random", a,
               names, 8);
}

/* Pictures i and i + 1 mixed with lambda 0.8, 0.5, 0.2, by the library's operation. */
static void draw_mixes(ex_run *run, ex_images pictures)
{
    static const char *const names[7] = { "partner", "MixUp 0.8", "MixUp 0.5", "MixUp 0.2",
                                          "CutMix 0.8", "CutMix 0.5", "CutMix 0.2" };
    int n = pictures.count < 6 ? pictures.count : 6, size = SIDE * SIDE * pictures.channels, i, k;
    ex_images first = pictures, views = ex_images_make(run, run->train, &run->clean, n * 7);
    int64_t shape[4] = { 1, SIDE, SIDE, 1 };
    ctr_real *x = (ctr_real *)ex_alloc(run, (size_t)(n * size), sizeof *x);
    int32_t *order = (int32_t *)ex_alloc(run, (size_t)n, sizeof *order);
    char path[EX_PATH];
    first.count = n;
    shape[0] = n;
    shape[3] = pictures.channels;
    for (i = 0; i < n; i++) order[i] = (i + 1) % n;
    for (k = 0; k < 7; k++) {
        double lambda = k == 0 ? 0 : .8 - .3 * ((k - 1) % 3);
        int side = (int)(sqrt(1 - lambda) * SIDE + 0.5); /* of the hole of CutMix */
        ctr_mix_params p;
        ctr_tensor *t;
        memset(&p, 0, sizeof p);
        p.kind = k < 4 ? CTR_MIX_MIXUP : CTR_MIX_CUTMIX;
        p.lambda = lambda;
        p.box.h = p.box.w = side;
        p.box.top = p.box.left = (SIDE - side) * 2 / 3;
        for (i = 0; i < n * size; i++) x[i] = (ctr_real)ex_image_at(pictures, 0)[i] / 255;
        ctr_step_begin(run->ctx);
        t = ctr_tensor_temp(run->ctx, CTR_F32, 4, shape);
        ctr_tensor_write(run->ctx, t, x, n * size);
        ctr_tensor_read(run->ctx, ctr_mix_images(run->ctx, &p, t, order), x, n * size);
        ctr_step_end(run->ctx);
        for (i = 0; i < n; i++)
            ex_bytes_of(&run->clean, x + i * size, shape[3], ex_image_at(views, i * 7 + k));
    }
    ex_run_check(run);
    ex_run_drew(run, ex_sheet_views(ex_out_path(run->o, "mixes.png", path),
                                    "MixUp and CutMix: lambda of the picture, the rest of its "
                                    "partner", first, views, 7, names));
    free(x);
    free(order);
    free(ex_image_at(views, 0));
}

int main(int argc, char **argv)
{
    static const char *const unused[11] = { "--test", "--epochs", "--batch", "--arch", "--lr",
                                            "--temperature", "--save-every", "--resume", "--smoke",
                                            "--device", "--math" };
    ex_options o;
    ex_run run;
    ex_images pictures;
    int i, n, smoke = 0;

    /* 1. the command line: this program trains nothing */
    ex_options_init(&o, "augment", "every augmentation, drawn", __FILE__);
    o.default_data = "pictures";
    for (i = 0; i < 11; i++) ex_options_drop(&o, unused[i]);
    ex_options_add(&o, "--smoke", "", EX_FLAG, &smoke, 0, 1, "the same: it takes a second anyway");
    ex_options_parse(&o, argc, argv);

    /* 2. the pictures, as the evaluation sees them */
    ex_run_open(&run, &o, SIDE);
    n = (int)(ctr_dataset_count(run.train) < 12 ? ctr_dataset_count(run.train) : 12);
    pictures = ex_images_make(&run, run.train, &run.clean, n);
    for (i = 0; i < n; i++)
        ex_render(&run, run.train, i, &run.clean, 0, ex_image_at(pictures, i));

    /* 3. four sheets */
    ex_out_make(&o);
    draw_operations(&run, pictures);
    draw_methods(&run, pictures);
    draw_policies(&run, pictures);
    draw_mixes(&run, pictures);
    printf("written to %s: operations.png methods.png policies.png mixes.png\n", o.out);
    printf("result method=augment pictures=%d operations=%d sheets=4 seconds=%.1f\n", n, 2 * ROWS,
           ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");
    free(ex_image_at(pictures, 0));
    ex_run_close(&run);
    return 0;
}
