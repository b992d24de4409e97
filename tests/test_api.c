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

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("api", argc, argv);
    ctx = ctr_ctx_create(NULL);
    test_defaults();
    test_parts(ctx);
    test_small(ctx);
    test_true("no error is left", ctr_error(ctx) == CTR_OK);
    ctr_ctx_destroy(ctx);
    return test_end();
}
