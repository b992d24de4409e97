/* test_tensor.c - tensors: creation, copies to and from the host, wrong arguments.
 * run: float double asan smoke valgrind
 */
#include "fake_device.h"

static void test_create(ctr_ctx *ctx)
{
    static const int64_t shape[4] = { 2, 3, 4, 5 };
    int64_t none[2] = { 3, 0 };
    ctr_real v[120];
    int32_t k[24];
    ctr_tensor *t;
    int rank, i;
    for (rank = 0; rank <= 4; rank++) {
        int64_t size = 1;
        for (i = 0; i < rank; i++) size *= shape[i];
        t = ctr_tensor_create(ctx, CTR_F32, rank, shape, rank % 2);
        test_equal("rank", t->rank, rank);
        test_equal("size", (double)t->size, (double)size);
        for (i = 0; i < 4; i++)
            test_equal("dimension, 1 where there is none", (double)t->shape[i],
                       i < rank ? (double)shape[i] : 1);
        test_true("numbers start on a multiple of 64 bytes", ((uintptr_t)t->data & 63) == 0);
        for (i = 0; i < 120; i++) v[i] = 1;
        ctr_tensor_read(ctx, t, v, size);
        for (i = 0; i < size; i++) test_equal("content starts as zero", (double)v[i], 0);
        test_true("no gradient yet", !ctr_tensor_has_grad(ctx, t));
        ctr_tensor_destroy(ctx, t);
    }
    t = ctr_tensor_create(ctx, CTR_F32, 2, none, 1);
    test_equal("a dimension of 0", (double)t->size, 0);
    ctr_tensor_write(ctx, t, v, 0);
    ctr_tensor_read(ctx, t, v, 0);
    ctr_tensor_destroy(ctx, t);
    t = ctr_tensor_create(ctx, CTR_I32, 3, shape, 0);
    for (i = 0; i < 24; i++) k[i] = i - 7;
    ctr_tensor_write_i32(ctx, t, k, 24);
    memset(k, 0, sizeof k);
    ctr_tensor_read_i32(ctx, t, k, 24);
    for (i = 0; i < 24; i++) test_equal("whole numbers there and back", k[i], i - 7);
    ctr_tensor_destroy(ctx, t);
    ctr_tensor_destroy(ctx, NULL);
    test_fine(ctx, "create");
}

static void test_copies(ctr_ctx *ctx)
{
    static const int64_t shape[2] = { 3, 7 };
    int64_t one = 1;
    ctr_real v[21], w[21];
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, 2, shape, 0), *s;
    int i;
    for (i = 0; i < 21; i++) v[i] = (ctr_real)(i * 0.5 - 3);
    ctr_tensor_write(ctx, t, v, 21);
    ctr_tensor_read(ctx, t, w, 21);
    test_bytes("numbers there and back", v, w, sizeof v);
    ctr_tensor_fill(ctx, t, CTR_TEST_R(2.5));
    ctr_tensor_read(ctx, t, w, 21);
    for (i = 0; i < 21; i++) test_equal("fill", (double)w[i], 2.5);
    ctr_tensor_destroy(ctx, t);
    s = ctr_tensor_create(ctx, CTR_F32, 1, &one, 0);
    ctr_tensor_fill(ctx, s, -4);
    test_equal("item", (double)ctr_tensor_item(ctx, s), -4);
    ctr_tensor_destroy(ctx, s);
    ctr_step_begin(ctx);
    s = ctr_tensor_temp(ctx, CTR_F32, 0, NULL);
    t = ctr_tensor_temp(ctx, CTR_I32, 2, shape);
    test_true("temporary tensors do not overlap",
              (char *)t->data >= (char *)s->data + sizeof(ctr_real) ||
                  (char *)s->data >= (char *)t->data + 21 * 4);
    ctr_tensor_fill(ctx, s, 9);
    test_equal("item of a scalar", (double)ctr_tensor_item(ctx, s), 9);
    ctr_step_end(ctx);
    test_fine(ctx, "copies");
}

static void test_gradients_of_leaves(ctr_ctx *ctx)
{
    int64_t n = 3;
    ctr_real v[3] = { 1, 2, 3 }, g[3];
    ctr_tensor *t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 1);
    ctr_tensor_write(ctx, t, v, 3);
    ctr_step_begin(ctx);
    ctr_tensor_read_grad(ctx, t, g, 3);
    test_fails(ctx, "reading a gradient that is not there", CTR_E_STATE, "gradient");
    ctr_step_begin(ctx);
    ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, t, t), -1));
    test_true("a gradient has come", ctr_tensor_has_grad(ctx, t));
    ctr_step_end(ctx);
    test_true("it stays readable after the step", ctr_tensor_has_grad(ctx, t));
    ctr_tensor_read_grad(ctx, t, g, 3);
    test_equal("the gradient of x^2 at 3", (double)g[2], 6);
    ctr_step_begin(ctx);
    test_true("the next step has none", !ctr_tensor_has_grad(ctx, t));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
    test_fine(ctx, "gradients of leaves");
}

static void test_refusals(ctr_ctx *ctx)
{
    int64_t shape[4] = { 2, 3, 4, 5 }, negative[2] = { 2, -1 }, huge[4], n = 3;
    ctr_real v[24];
    int32_t k[24];
    ctr_tensor *t;
    int i;
    t = ctr_tensor_create(ctx, CTR_F32, 5, shape, 0);
    test_true("a refused tensor is harmless", t && t->size == 0 && t->data);
    ctr_tensor_destroy(ctx, t);
    test_fails(ctx, "rank 5", CTR_E_SHAPE, "rank");
    ctr_tensor_create(ctx, CTR_F32, -1, shape, 0);
    test_fails(ctx, "rank -1", CTR_E_SHAPE, "rank");
    ctr_tensor_create(ctx, CTR_F32, 2, negative, 0);
    test_fails(ctx, "a negative dimension", CTR_E_SHAPE, "-1");
    for (i = 0; i < 4; i++) huge[i] = (int64_t)1 << 40;
    ctr_tensor_create(ctx, CTR_F32, 4, huge, 0);
    test_fails(ctx, "more than can be addressed", CTR_E_MEMORY, "memory");
    huge[0] = (int64_t)1 << 62;
    ctr_tensor_create(ctx, CTR_F32, 1, huge, 0);
    test_fails(ctx, "2^62 numbers", CTR_E_MEMORY, "memory");
    ctr_step_begin(ctx);
    ctr_tensor_temp(ctx, CTR_F32, 4, huge);
    test_fails(ctx, "the same for a temporary tensor", CTR_E_MEMORY, "memory");
    ctr_step_begin(ctx);
    ctr_tensor_create(ctx, CTR_I32, 1, &n, 1);
    test_fails(ctx, "whole numbers with a gradient", CTR_E_VALUE, "gradient");
    t = ctr_tensor_create(ctx, CTR_F32, 2, shape, 0);
    ctr_tensor_write(ctx, t, v, 5);
    test_fails(ctx, "write, too few", CTR_E_SHAPE, "tensor_write");
    ctr_tensor_read(ctx, t, v, 7);
    test_fails(ctx, "read, too many", CTR_E_SHAPE, "tensor_read");
    ctr_tensor_write_i32(ctx, t, k, 6);
    test_fails(ctx, "write whole numbers into reals", CTR_E_VALUE, "tensor_write_i32");
    ctr_tensor_read_i32(ctx, t, k, 6);
    test_fails(ctx, "read whole numbers from reals", CTR_E_VALUE, "tensor_read_i32");
    ctr_tensor_item(ctx, t);
    test_fails(ctx, "item of six numbers", CTR_E_SHAPE, "tensor_item");
    ctr_tensor_destroy(ctx, t);
    t = ctr_tensor_create(ctx, CTR_I32, 1, &n, 0);
    ctr_tensor_fill(ctx, t, 1);
    test_fails(ctx, "fill whole numbers with a real", CTR_E_VALUE, "tensor_fill");
    ctr_tensor_destroy(ctx, t);
}

/* Shapes whose text is as long as can be: the line is cut, nothing else happens. */
static void test_long_shapes(ctr_ctx *ctx)
{
    int64_t low[4], six = 6;
    ctr_tensor *t;
    int i;
    for (i = 0; i < 4; i++) low[i] = -(((int64_t)1 << 62) + 1) - i;
    for (i = 1; i <= 4; i++) {
        ctr_step_begin(ctx);
        t = ctr_tensor_temp(ctx, CTR_F32, 1, &six);
        ctr_reshape(ctx, t, i, low);
        test_true("an absurd shape is an error", ctr_error(ctx) != CTR_OK);
        test_true("of one line", !strchr(ctr_error_text(ctx), '\n'));
        ctr_error_clear(ctx);
    }
    ctr_step_end(ctx);
}

int main(int argc, char **argv)
{
    fake_device *fake;
    ctr_ctx *ctx;
    int round;
    test_begin("test_tensor", argc, argv);
    fake = fake_device_open();
    for (round = 0; round < 2; round++) {
        ctx = round ? fake_device_ctx(fake) : test_ctx(1, CTR_KERNELS_AUTO);
        test_group(round ? "tensors, fake device" : "tensors");
        test_create(ctx);
        test_copies(ctx);
        test_gradients_of_leaves(ctx);
        test_refusals(ctx);
        test_long_shapes(ctx);
        ctr_ctx_destroy(ctx);
    }
    fake_device_close(fake);
    return test_end();
}
