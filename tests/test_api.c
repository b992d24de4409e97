/* Tests of what belongs to no single section: every config has two ways to its defaults, parts of
   datasets, names, and the small functions that others are built of.
   run: float double asan smoke */
#include "test.h"

#include <string.h>

#define SAME(type, made, init)                                                                \
    do {                                                                                      \
        type a_, b_;                                                                          \
        memset(&a_, 0, sizeof a_);                                                            \
        memset(&b_, 0x5a, sizeof b_);                                                         \
        a_ = made;                                                                            \
        init;                                                                                 \
        test_true(#type ": init writes what default returns", !memcmp(&a_, &b_, sizeof a_));  \
    } while (0)

static void test_defaults(void)
{
    SAME(ctr_config, ctr_config_default(), ctr_config_init(&b_));
    SAME(ctr_optim_config, ctr_optim_config_default(CTR_OPTIM_ADAMW),
         ctr_optim_config_init(&b_, CTR_OPTIM_ADAMW));
    SAME(ctr_resnet_config, ctr_resnet_config_default(20), ctr_resnet_config_init(&b_, 20));
    SAME(ctr_simclr_config, ctr_simclr_default(), ctr_simclr_config_init(&b_));
    SAME(ctr_fit_config, ctr_fit_default(), ctr_fit_config_init(&b_));
    {
        ctr_aug_config a = ctr_aug_simclr_default(96), b;
        ctr_data_options d = ctr_data_options_default(), e;
        ctr_image_limits l = ctr_image_limits_default(), m;
        ctr_loader_config k = ctr_loader_config_default(), n;
        ctr_aug_simclr_config_init(&b, 96);
        test_true("aug: crop, jitter, blur", a.crop_min == b.crop_min && a.hue == b.hue &&
                                                 a.blur_p == b.blur_p && a.height == b.height);
        ctr_data_options_init(&e);
        test_true("data: budget, channels, policy",
                  d.budget == e.budget && d.corrupt == e.corrupt && d.channels == e.channels);
        ctr_image_limits_init(&m);
        test_true("limits: side, pixels", l.max_side == m.max_side && l.max_pixels == m.max_pixels);
        ctr_loader_config_init(&n);
        test_true("loader: batch, views, last",
                  k.batch == n.batch && k.views == n.views && k.last == n.last);
    }
}

static void test_parts(ctr_ctx *ctx)
{
    ctr_dataset *all = ctr_dataset_shapes(ctx, 60, 16, 5), *part = ctr_dataset_part(ctx, all, 20);
    ctr_image a, b;
    int64_t i;
    int same = 1;
    test_true("a part has as many images as asked for", ctr_dataset_count(part) == 20);
    for (i = 0; i < 20; i++) {
        ctr_dataset_image(ctx, part, i, &a);
        ctr_dataset_image(ctx, all, 3 * i, &b);
        same = same && !memcmp(a.pixels, b.pixels, 16 * 16 * 3) &&
               ctr_dataset_label(part, i) == ctr_dataset_label(all, 3 * i);
        ctr_image_free(ctx, &a);
        ctr_image_free(ctx, &b);
    }
    test_true("they are every third image with its label", same);
    test_true("class names are the whole's",
              !strcmp(ctr_dataset_class_name(part, 2), ctr_dataset_class_name(all, 2)));
    test_true("more than there are is refused", !ctr_dataset_part(ctx, all, 61) &&
                                                    ctr_error(ctx) == CTR_E_VALUE);
    ctr_error_clear(ctx);
    ctr_dataset_destroy(ctx, part);
    ctr_dataset_destroy(ctx, all);
}

static void test_small(ctr_ctx *ctx)
{
    ctr_aug_config none = ctr_aug_none_default(4);
    ctr_aug_params params;
    ctr_real x[4 * 4], y[4 * 4], out[2];
    ctr_vars vars;
    ctr_linear layer;
    ctr_tensor *t;
    ctr_rng rng;
    int64_t shape[2] = { 1, 3 };
    const ctr_real one[3] = { 1, 2, 3 }, weight[6] = { 1, 0, 0, 0, 1, 1 }, bias[2] = { 10, 20 };
    int i;
    for (i = 0; i < 16; i++) x[i] = (ctr_real)i / 16;
    ctr_rng_init(&rng, 1, CTR_STREAM_USER, 0, 0, 0);
    ctr_aug_sample(&none, &rng, 4, 4, &params);
    test_true("aug_view_real: nothing random leaves the image",
              ctr_aug_view_real(ctx, &none, &params, x, 4, 4, 1, y) &&
                  fabs((double)y[5] - (double)x[5]) < 1e-6);
    x[3] = (ctr_real)NAN;
    test_true("aug_view_real: NaN is refused",
              !ctr_aug_view_real(ctx, &none, &params, x, 4, 4, 1, y) &&
                  ctr_error(ctx) == CTR_E_NUMBER);
    ctr_error_clear(ctx);
    ctr_vars_init(&vars);
    ctr_linear_init(ctx, &layer, &vars, "l.", 3, 2, 1);
    ctr_tensor_write(ctx, layer.weight, weight, 6);
    ctr_tensor_write(ctx, layer.bias, bias, 2);
    ctr_step_begin(ctx);
    t = ctr_tensor_temp(ctx, CTR_F32, 2, shape);
    ctr_tensor_write(ctx, t, one, 3);
    ctr_tensor_read(ctx, ctr_linear_forward(ctx, &layer, t), out, 2);
    ctr_step_end(ctx);
    test_true("linear: W x + b", out[0] == 11 && out[1] == 25);
    ctr_vars_destroy(ctx, &vars);
    test_true("file types have the names of safetensors",
              !strcmp(ctr_file_dtype_name(CTR_FILE_BF16), "BF16") &&
                  ctr_file_dtype_size(CTR_FILE_BF16) == 2);
}

/* A constructor fails and gives NULL; whatever the program does with that does nothing, and the
 * first error stays. */
static void test_after_error(void)
{
    ctr_config threads = ctr_config_default();
    ctr_ctx *ctx = ctr_ctx_create(NULL), *none;
    ctr_simclr_config simclr = ctr_simclr_default();
    ctr_fit_config fit = ctr_fit_default();
    ctr_loader_config batches = ctr_loader_config_default();
    ctr_aug_config aug = ctr_aug_none_default(8);
    ctr_dataset *data = ctr_dataset_open(ctx, "no such folder", NULL, NULL);
    ctr_method *m = ctr_simclr_create(ctx, &simclr);
    ctr_loader *l = ctr_loader_create(ctx, data, &batches);
    ctr_safetensors *file = ctr_safetensors_open(ctx, "no such file");
    ctr_position p;
    ctr_batch batch;
    ctr_report report;
    ctr_scores scores;
    ctr_real z[64] = { 0 };
    int64_t epoch = 7, at = 7;
    int32_t labels[4];
    char first[256], text[64];
    snprintf(first, sizeof first, "%s", ctr_error_text(ctx));
    memset(&batch, 0, sizeof batch);
    memset(&p, 0, sizeof p);
    test_true("constructors give NULL", !data && !m && !l && !file && first[0]);
    test_true("no images", !ctr_dataset_count(data) && !ctr_dataset_channels(data) &&
              !ctr_dataset_classes(data) && !*ctr_dataset_class_name(data, 0) &&
              ctr_dataset_label(data, 0) == -1 && !*ctr_dataset_path(data, 0) &&
              !*ctr_dataset_kind(data) && !ctr_dataset_skipped(data) && !ctr_dataset_cached(data));
    ctr_loader_tell(l, &epoch, &at);
    test_true("no batches", !ctr_loader_next(ctx, l, &batch) && !ctr_loader_batches(l) &&
              !epoch && !at && !ctr_loader_seek(ctx, l, 0, 0) && ctr_loader_seconds(l) == 0);
    test_true("no training", ctr_fit(m, l, &fit) == -1 && ctr_fit_images(m, data, &fit) == -1 &&
              !ctr_method_step(m, &batch, 0.1, &report) && !ctr_method_hash(m) &&
              !ctr_method_plan(m, 1, 4, 4, 3));
    test_true("no representations", !ctr_method_represent(m, 1, 4, 4, 3, z, 1, z) &&
              !ctr_method_represent_dataset(ctx, m, data, &aug, 1, z, labels) &&
              !ctr_scores_measure(ctx, m, data, NULL, &aug, &aug, 1, &scores));
    test_true("no checkpoint", !ctr_checkpoint_save(m, "after_error.ctr", &p) &&
              !ctr_checkpoint_load(m, "after_error.ctr", &p));
    test_true("no tensors", !ctr_safetensors_count(file) &&
              ctr_safetensors_find(file, "a") == -1 &&
              !ctr_safetensors_info(file, 0).name && !ctr_safetensors_meta(file, "a") &&
              !ctr_safetensors_meta_count(file) && !ctr_safetensors_meta_at(file, 0).key &&
              !ctr_safetensors_read_f32(ctx, file, 0, z, 1));
    ctr_optim_step(ctx, NULL, 0.1);
    test_true("no optimiser", !ctr_optim_state(NULL) && !ctr_optim_steps(NULL) &&
              !ctr_optim_describe(NULL, text, sizeof text) && !*text);
    ctr_method_visit(m, NULL);
    ctr_method_destroy(m);
    ctr_loader_destroy(ctx, l);
    ctr_dataset_destroy(ctx, data);
    test_true("the first error stays", !strcmp(first, ctr_error_text(ctx)));
    ctr_error_clear(ctx);
    m = ctr_simclr_create(ctx, &simclr);
    test_true("fit_images names what is missing", ctr_fit_images(m, NULL, &fit) == -1 &&
              strstr(ctr_error_text(ctx), "no images"));
    ctr_error_clear(ctx);
    fit.lr = -1;
    data = ctr_dataset_shapes(ctx, 4, 8, 1);
    test_true("a negative rate is refused", ctr_fit_images(m, data, &fit) == -1 &&
              ctr_error(ctx) == CTR_E_VALUE && strstr(ctr_error_text(ctx), "-1"));
    ctr_error_clear(ctx);
    ctr_dataset_destroy(ctx, data);
    ctr_method_destroy(m);
    ctr_ctx_destroy(ctx);
    threads.threads = 65;
    none = ctr_ctx_create(&threads);
    test_true("no context at all", !none && ctr_error(none) != CTR_OK && *ctr_error_text(none));
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("api", argc, argv);
    ctx = ctr_ctx_create(NULL);
    test_defaults();
    test_parts(ctx);
    test_small(ctx);
    test_after_error();
    test_true("no error is left", ctr_error(ctx) == CTR_OK);
    ctr_ctx_destroy(ctx);
    return test_end();
}
