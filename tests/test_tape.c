/* test_tape.c - autograd: backward, keep, detach, no recording, accumulation, staged changes,
 * plans, the gradient check, and the device seam.
 * run: float double asan asandouble smoke valgrind
 */
#include "fake_device.h"

static ctr_tensor *vector(ctr_ctx *ctx, int64_t n, const double *from, int grad)
{
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, 1, &n, grad);
    ctr_real v[64];
    int64_t i;
    for (i = 0; i < n; i++) v[i] = (ctr_real)from[i];
    ctr_tensor_write(ctx, t, v, n);
    return t;
}

static double grad_at(ctr_ctx *ctx, const ctr_tensor *t, int64_t i)
{
    ctr_real g[64];
    memset(g, 0, sizeof g);
    ctr_tensor_read_grad(ctx, t, g, t->size);
    return (double)g[i];
}

static double value_at(ctr_ctx *ctx, const ctr_tensor *t, int64_t i)
{
    ctr_real v[64];
    memset(v, 0, sizeof v);
    ctr_tensor_read(ctx, t, v, t->size);
    return (double)v[i];
}

/* ------------------------------------------------------------------------------------- backward */

/* A diamond: x is used three times, on ways of different length. f = sum(x x + 3 x (x + 1)):
   f' = 2 x + 6 x + 3. */
static void test_diamond(ctr_ctx *ctx)
{
    static const double from[3] = { 1, -2, 0.5 };
    ctr_tensor *x = vector(ctx, 3, from, 1), *a, *b;
    int round, i;
    for (round = 0; round < 3; round++) {
        ctr_step_begin(ctx);
        a = ctr_mul(ctx, x, x);
        b = ctr_mul(ctx, ctr_scale(ctx, x, 3), ctr_add_scalar(ctx, x, 1));
        ctr_backward(ctx, ctr_sum(ctx, ctr_add(ctx, a, b), -1));
        for (i = 0; i < 3; i++)
            test_equal("a tensor used on three ways", grad_at(ctx, x, i), 8 * from[i] + 3);
        ctr_step_end(ctx);
    }
    ctr_tensor_destroy(ctx, x);
    test_fine(ctx, "diamond");
}

/* Two backward passes in a step add up; a reset of the tape in between keeps the gradients. */
static void test_accumulation(ctr_ctx *ctx)
{
    static const double from[2] = { 3, 4 };
    ctr_tensor *x = vector(ctx, 2, from, 1);
    int i;
    ctr_step_begin(ctx);
    for (i = 0; i < 3; i++) {
        ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, x, x), -1));
        ctr_tape_reset(ctx);
    }
    test_equal("three chunks of a batch add up", grad_at(ctx, x, 1), 24);
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, x, -1));
    test_equal("a new step starts from nothing", grad_at(ctx, x, 1), 1);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
    test_fine(ctx, "accumulation");
}

static void test_backward_from(ctr_ctx *ctx)
{
    static const double from[3] = { 1, 2, 3 }, gradient[3] = { 10, 20, 30 };
    ctr_tensor *x = vector(ctx, 3, from, 1), *g = vector(ctx, 3, gradient, 0);
    ctr_tensor *short_g = vector(ctx, 2, gradient, 0), *y;
    ctr_step_begin(ctx);
    y = ctr_mul(ctx, x, x);
    ctr_backward_from(ctx, y, g);
    test_equal("backward_from", grad_at(ctx, x, 2), 180);
    test_equal("its start stays readable", value_at(ctx, y, 2), 9);
    ctr_step_begin(ctx);
    ctr_backward_from(ctx, x, g);
    test_equal("backward_from a leaf", grad_at(ctx, x, 1), 20);
    ctr_step_begin(ctx);
    ctr_backward_from(ctx, ctr_mul(ctx, x, x), short_g);
    test_fails(ctx, "a gradient of another size", CTR_E_SHAPE, "backward");
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_mul(ctx, x, x));
    test_fails(ctx, "backward from three numbers", CTR_E_SHAPE, "backward");
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, g, -1));
    test_fails(ctx, "backward from a constant", CTR_E_STATE, "backward");
    ctr_step_begin(ctx);
    ctr_tensor_destroy(ctx, x);
    ctr_tensor_destroy(ctx, g);
    ctr_tensor_destroy(ctx, short_g);
    test_fine(ctx, "backward_from");
}

/* -------------------------------------------------------------- detach, no recording, keep */

static void test_detach(ctr_ctx *ctx)
{
    static const double from[2] = { 3, 5 };
    ctr_tensor *x = vector(ctx, 2, from, 1), *d;
    ctr_step_begin(ctx);
    d = ctr_detach(ctx, ctr_mul(ctx, x, x));
    test_equal("detach keeps the value", value_at(ctx, d, 1), 25);
    ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, x, d), -1));
    test_equal("and stops the gradient: of x [x x]", grad_at(ctx, x, 1), 25);
    ctr_step_begin(ctx);
    ctr_nograd_begin(ctx);
    ctr_nograd_begin(ctx);
    ctr_nograd_end(ctx);
    d = ctr_mul(ctx, x, x);
    ctr_nograd_end(ctx);
    ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, x, d), -1));
    test_equal("what was not recorded is a constant", grad_at(ctx, x, 0), 9);
    ctr_step_begin(ctx);
    ctr_nograd_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, x, -1));
    test_fails(ctx, "backward where nothing was recorded", CTR_E_STATE, "backward");
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, x, -1));
    test_equal("a new step records again", grad_at(ctx, x, 0), 1);
    ctr_nograd_end(ctx); /* one too many does no harm */
    ctr_step_begin(ctx);
    ctr_tensor_destroy(ctx, x);
    test_fine(ctx, "detach");
}

/* Kept values survive backward though the memory under them is used again. */
static void test_keep(ctr_ctx *ctx)
{
    static const double from[3] = { 1, 2, 3 };
    ctr_tensor *x = vector(ctx, 3, from, 1), *kept[8], *y = x;
    int i, round;
    for (round = 0; round < 3; round++) {
        ctr_step_begin(ctx);
        y = x;
        for (i = 0; i < 8; i++) {
            y = ctr_scale(ctx, y, 2);
            kept[i] = ctr_keep(ctx, y);
            test_true("keep returns its tensor", kept[i] == y);
            test_true("keeping twice is once", ctr_keep(ctx, y) == y);
        }
        ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, y, y), -1));
        for (i = 0; i < 40; i++) { /* use the memory that backward gave back */
            int64_t n = 16;
            ctr_tensor_fill(ctx, ctr_tensor_temp(ctx, CTR_F32, 1, &n), -77);
        }
        for (i = 0; i < 8; i++)
            test_equal("a kept value", value_at(ctx, kept[i], 2), 3 * pow(2.0, i + 1));
        test_equal("the gradient through kept values", grad_at(ctx, x, 1), 2 * 2 * 65536.0);
    }
    test_true("keeping a leaf does nothing", ctr_keep(ctx, x) == x);
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, x);
    test_fine(ctx, "keep");
}

/* ------------------------------------------------------------------------------- staged changes */

static void test_stage(ctr_ctx *ctx)
{
    static const double one[2] = { 1, 10 }, two[2] = { 5, 7 };
    ctr_tensor *dst = vector(ctx, 2, one, 0), *src = vector(ctx, 2, two, 0), *three;
    int64_t n = 3;
    ctr_step_begin(ctx);
    ctr_stage(ctx, dst, CTR_TEST_R(0.5), 2, src);
    test_equal("staged is not done", value_at(ctx, dst, 0), 1);
    ctr_stage(ctx, dst, 1, 1, src);
    ctr_tape_reset(ctx);
    ctr_commit(ctx);
    test_equal("commit applies in the order of the calls", value_at(ctx, dst, 0), 0.5 + 10 + 5);
    ctr_commit(ctx);
    test_equal("and once", value_at(ctx, dst, 0), 15.5);
    ctr_stage(ctx, dst, 0, 1, src);
    ctr_step_end(ctx);
    ctr_commit(ctx);
    test_equal("step_end drops what was staged", value_at(ctx, dst, 0), 15.5);
    ctr_step_begin(ctx);
    ctr_stage(ctx, dst, 0, 1, src);
    ctr_error_set(ctx, CTR_E_NUMBER, "test: a gradient is not finite");
    ctr_commit(ctx);
    ctr_step_end(ctx);
    test_fails(ctx, "the error is still there", CTR_E_NUMBER, "finite");
    test_equal("a step with an error changes nothing", value_at(ctx, dst, 0), 15.5);
    ctr_step_begin(ctx);
    three = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
    ctr_stage(ctx, dst, 1, 1, three);
    test_fails(ctx, "stage of another size", CTR_E_SHAPE, "stage");
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, dst);
    ctr_tensor_destroy(ctx, src);
    test_fine(ctx, "stage");
}

/* ------------------------------------------------------------------------------- gradient check */

typedef struct check_user {
    ctr_tensor *x;
    int wrong;
} check_user;

static ctr_tensor *check_loss(ctr_ctx *ctx, void *user)
{
    check_user *u = (check_user *)user;
    ctr_tensor *y = ctr_mul(ctx, u->x, u->wrong ? ctr_detach(ctx, u->x) : u->x);
    return ctr_sum(ctx, ctr_mul(ctx, y, ctr_tanh(ctx, u->x)), -1);
}

/* It finds the right gradient right and a wrong one wrong, and gives the leaf back unchanged. */
static void test_gradient_check(ctr_ctx *ctx)
{
    static const double from[5] = { 0.3, -1.2, 0.9, 2, -0.4 };
    check_user u;
    ctr_tensor *constant = vector(ctx, 5, from, 0);
    ctr_real before[5], after[5];
    double error;
    u.x = vector(ctx, 5, from, 1);
    u.wrong = 0;
    ctr_tensor_read(ctx, u.x, before, 5);
    error = ctr_gradient_check(ctx, check_loss, &u, u.x, test_bound(1e-5, 1e-2), 0);
    test_true("the check ran", error >= 0);
    test_error("the check of a right gradient", error, test_bound(1e-8, 1e-2));
    error = ctr_gradient_check(ctx, check_loss, &u, u.x, test_bound(1e-5, 1e-2), 2);
    test_true("the check of two entries ran", error >= 0);
    test_error("the check of two entries", error, test_bound(1e-8, 1e-2));
    u.wrong = 1;
    error = ctr_gradient_check(ctx, check_loss, &u, u.x, test_bound(1e-5, 1e-2), 0);
    test_true("the check of a wrong gradient says so", error > 0.1);
    ctr_tensor_read(ctx, u.x, after, 5);
    test_bytes("the leaf is as before", before, after, sizeof before);
    test_fine(ctx, "gradient check");
    error = ctr_gradient_check(ctx, check_loss, &u, constant, 1e-5, 0);
    test_equal("a tensor that gets no gradient", error, -1);
    test_fails(ctx, "is an error", CTR_E_STATE, "gradient");
    ctr_tensor_destroy(ctx, u.x);
    ctr_tensor_destroy(ctx, constant);
}

/* ---------------------------------------------------------------------------------------- plans */

/* A small network with everything that a step may hold: saved blocks, views, statistics, concat. */
typedef struct small_net {
    ctr_tensor *x, *w1, *w2, *gamma, *beta, *mean, *var;
} small_net;

static void net_create(ctr_ctx *ctx, small_net *n)
{
    int64_t x[4] = { 4, 6, 6, 3 }, w1[4] = { 3, 3, 3, 8 }, w2[2] = { 8, 5 }, c = 8;
    ctr_real v[432];
    n->x = ctr_tensor_create(ctx, CTR_F32, 4, x, 0);
    n->w1 = ctr_tensor_create(ctx, CTR_F32, 4, w1, 1);
    n->w2 = ctr_tensor_create(ctx, CTR_F32, 2, w2, 1);
    n->gamma = ctr_tensor_create(ctx, CTR_F32, 1, &c, 1);
    n->beta = ctr_tensor_create(ctx, CTR_F32, 1, &c, 1);
    n->mean = ctr_tensor_create(ctx, CTR_F32, 1, &c, 0);
    n->var = ctr_tensor_create(ctx, CTR_F32, 1, &c, 0);
    test_fill_real("x", v, 432, 1.0);
    ctr_tensor_write(ctx, n->x, v, n->x->size);
    test_fill_real("w1", v, 216, 0.3);
    ctr_tensor_write(ctx, n->w1, v, n->w1->size);
    test_fill_real("w2", v, 40, 0.3);
    ctr_tensor_write(ctx, n->w2, v, n->w2->size);
    ctr_tensor_fill(ctx, n->gamma, 1);
    ctr_tensor_fill(ctx, n->var, 1);
}

static void net_destroy(ctr_ctx *ctx, small_net *n)
{
    ctr_tensor_destroy(ctx, n->x);
    ctr_tensor_destroy(ctx, n->w1);
    ctr_tensor_destroy(ctx, n->w2);
    ctr_tensor_destroy(ctx, n->gamma);
    ctr_tensor_destroy(ctx, n->beta);
    ctr_tensor_destroy(ctx, n->mean);
    ctr_tensor_destroy(ctx, n->var);
}

static ctr_tensor *net_loss(ctr_ctx *ctx, const small_net *n)
{
    static const int32_t target[8] = { 0, 1, 2, 3, 4, 0, 1, 2 };
    int64_t eight = 8;
    ctr_norm norm;
    ctr_tensor *y, *pair[2], *t;
    norm.gamma = n->gamma;
    norm.beta = n->beta;
    norm.mean = n->mean;
    norm.var = n->var;
    norm.momentum = CTR_TEST_R(0.1);
    norm.eps = CTR_TEST_R(1e-5);
    y = ctr_conv(ctx, n->x, n->w1, 1, 1);
    y = ctr_batch_norm(ctx, y, &norm, CTR_NORM_TRAIN, 1, NULL, 1);
    y = ctr_global_pool(ctx, ctr_max_pool(ctx, y, 2, 2, 0));
    pair[0] = y;
    pair[1] = ctr_dropout(ctx, ctr_normalize(ctx, y), 0.25);
    y = ctr_matmul(ctx, ctr_concat(ctx, 2, pair, 0), 0, n->w2, 0);
    t = ctr_tensor_temp(ctx, CTR_I32, 1, &eight);
    ctr_tensor_write_i32(ctx, t, target, 8);
    return ctr_cross_entropy(ctx, ctr_gelu(ctx, y), t, -1);
}

static void test_plan(ctr_ctx *ctx)
{
    small_net net;
    ctr_tensor *l;
    size_t planned, again;
    ctr_memory before, after;
    double loss[3];
    int i;
    net_create(ctx, &net);
    ctr_plan_begin(ctx);
    ctr_plan_begin(ctx);
    test_fails(ctx, "a plan within a plan", CTR_E_STATE, "plan");
    ctr_step_begin(ctx);
    ctr_backward(ctx, net_loss(ctx, &net));
    ctr_step_end(ctx);
    planned = ctr_plan_end(ctx);
    test_true("a plan finds that a step needs memory", planned > 4 * 6 * 6 * 8 * sizeof(ctr_real));
    test_true("a plan leaves no gradient", !ctr_tensor_has_grad(ctx, net.w1));
    test_equal("nor does it compute", value_at(ctx, net.mean, 0), 0);
    ctr_step_reserve(ctx, planned);
    before = ctr_memory_stats(ctx);
    for (i = 0; i < 3; i++) {
        ctr_step_begin(ctx);
        l = net_loss(ctx, &net);
        ctr_backward(ctx, l);
        loss[i] = (double)ctr_tensor_item(ctx, l);
        ctr_step_end(ctx);
    }
    after = ctr_memory_stats(ctx);
    test_equal("the slab as planned", (double)before.slab, (double)after.slab);
    test_true("is at least what was planned", after.slab >= planned);
    test_equal("the step's measured peak is the plan's",
               (double)(after.slab_peak + 64), (double)planned);
    test_true("the loss is a number above 0", loss[0] > 0 && golden_finite_(loss[0]));
    test_equal("and the same in each step", loss[2], loss[0]);
    ctr_plan_begin(ctx);
    ctr_step_begin(ctx);
    ctr_backward(ctx, net_loss(ctx, &net));
    ctr_step_end(ctx);
    again = ctr_plan_end(ctx);
    test_equal("a second plan gives the same", (double)again, (double)planned);
    ctr_plan_begin(ctx);
    ctr_matmul(ctx, net.w2, 0, net.w2, 0);
    test_fails(ctx, "a plan finds wrong shapes", CTR_E_SHAPE, "matmul");
    ctr_plan_end(ctx);
    ctr_step_begin(ctx);
    ctr_tensor_temp(ctx, CTR_F32, 1, &net.w2->shape[0]);
    ctr_step_reserve(ctx, 4 * planned);
    test_fails(ctx, "reserving in the middle of a step", CTR_E_STATE, "step_reserve");
    ctr_step_end(ctx);
    test_equal("plan_end without a plan", (double)ctr_plan_end(ctx), 0);
    net_destroy(ctx, &net);
    test_fine(ctx, "plan");
}

/* ------------------------------------------------------------------------------ the device seam */

static void test_seam(void)
{
    fake_device *fake = fake_device_open();
    ctr_ctx *ctx;
    ctr_config config = ctr_config_default();
    int64_t n = 4;
    ctr_real host[4] = { 1, 2, 3, 4 };
    ctr_tensor *t;
    test_group("the device seam");
    config.device = &fake->device;
    fake->device.version = CTR_DEVICE_VERSION + 1;
    test_true("a device of another version is refused", ctr_ctx_create(&config) == NULL);
    fake->device.version = CTR_DEVICE_VERSION;
    ctx = fake_device_ctx(fake);
    test_text("the device's name", ctr_kernels_name(ctx), "fake");
    test_true("the device's own pointer", ctr_device_user(ctx) == (void *)fake);
    t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 1);
    ctr_tensor_write(ctx, t, host, 4);
    fake->device.unary = NULL;
    ctr_step_begin(ctx);
    ctr_relu(ctx, t);
    test_fails(ctx, "a verb that the device lacks", CTR_E_DEVICE, "unary");
    fake->device.finite = NULL;
    test_true("finite, which it lacks too", !ctr_k_finite(ctx, 4, (const ctr_real *)t->data));
    test_fails(ctx, "is an error", CTR_E_DEVICE, "finite");
    ctr_k_axpby(ctx, 4, 1, host, 0, (ctr_real *)t->data);
    test_fails(ctx, "a host pointer given to a verb", CTR_E_DEVICE, "a host pointer");
    ctr_k_fill(ctx, 5, 1, (ctr_real *)t->data);
    test_fails(ctx, "a verb that would run over", CTR_E_DEVICE, "over");
    fake->fail_at = fake->allocations + 1;
    ctr_tensor_create(ctx, CTR_F32, 1, &n, 0);
    test_fails(ctx, "a device without memory", CTR_E_MEMORY, "fake");
    fake->fail_at = 0;
    ctr_tensor_destroy(ctx, t);
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    test_true("no device's pointer on the CPU", (ctr_device_user(ctx) == NULL) != test_on_device());
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    fake_device *fake;
    ctr_ctx *ctx;
    int round;
    test_begin("test_tape", argc, argv);
    fake = fake_device_open();
    for (round = 0; round < 3; round++) {
        static const char *const names[] = { "autograd", "autograd, 3 threads",
                                             "autograd, fake device" };
        test_group(names[round]);
        ctx = round == 2 ? fake_device_ctx(fake) : test_ctx(1 + 2 * round, CTR_KERNELS_AUTO);
        test_diamond(ctx);
        test_accumulation(ctx);
        test_backward_from(ctx);
        test_detach(ctx);
        test_keep(ctx);
        test_stage(ctx);
        test_gradient_check(ctx);
        ctr_ctx_destroy(ctx);
        ctx = round == 2 ? fake_device_ctx(fake) : test_ctx(1 + 2 * round, CTR_KERNELS_AUTO);
        test_plan(ctx);
        ctr_ctx_destroy(ctx);
    }
    fake_device_close(fake);
    test_seam();
    return test_end();
}
