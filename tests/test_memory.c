/* test_memory.c - context, allocator, errors, log, the step's memory.
 * run: float double asan smoke valgrind
 *
 * The allocator hook counts: every block comes back once and with its size, a steady step allocates
 * nothing, and every single allocation of a small training run may fail: each time a clean error,
 * no leak, no crash, and a model that is as before the step that failed.
 */
#include "fake_device.h"

/* -------------------------------------------------------------------------------- configuration */

typedef struct log_note {
    int calls;
    ctr_log_level level;
    char text[512];
} log_note;

static void note_log(void *user, ctr_log_level level, const char *text)
{
    log_note *n = (log_note *)user;
    n->calls++;
    n->level = level;
    snprintf(n->text, sizeof n->text, "%s", text);
}

static void test_config(void)
{
    ctr_config a = ctr_config_default(), b;
    ctr_ctx *ctx;
    log_note note;
    const int wrong = 5;
    test_group("configuration");
    memset(&b, 0xff, sizeof b);
    ctr_config_init(&b);
    test_true("config_init gives the same as config_default",
              a.threads == b.threads && a.seed == b.seed && a.kernels == b.kernels &&
                  a.device == b.device && a.log_fn == b.log_fn &&
                  a.allocator.alloc_fn == b.allocator.alloc_fn);
    test_equal("the default seed", (double)a.seed, 1);
    ctx = ctr_ctx_create(NULL);
    test_true("a context without a configuration", ctx != NULL);
    test_true("has threads", ctr_threads(ctx) >= 1 && ctr_threads(ctx) <= 64);
    test_equal("and the default seed", (double)ctr_seed(ctx), 1);
    test_equal("and no error", ctr_error(ctx), CTR_OK);
    test_text("with an empty text", ctr_error_text(ctx), "");
    ctr_ctx_destroy(ctx);
    ctr_ctx_destroy(NULL);
    a.seed = 0xfedcba9876543210u;
    a.threads = 1;
    a.kernels = CTR_KERNELS_SCALAR;
    memset(&note, 0, sizeof note);
    a.log_fn = note_log;
    a.log_user = &note;
    ctx = ctr_ctx_create(&a);
    test_true("a seed of 64 bits", ctr_seed(ctx) == 0xfedcba9876543210u);
    test_equal("one thread", ctr_threads(ctx), 1);
    test_text("scalar kernels", ctr_kernels_name(ctx), "scalar");
    test_true("the log speaks only of a build without optimisation",
              note.calls == 0 || (note.level == CTR_LOG_WARN && strstr(note.text, "-O2")));
    ctr_ctx_destroy(ctx);
    a.threads = -1;
    test_true("-1 threads are refused", ctr_ctx_create(&a) == NULL);
    a.threads = 65;
    test_true("65 threads are refused", ctr_ctx_create(&a) == NULL);
    test_text("in words", note.text, "config: expected threads 0..64, got 65");
    a.threads = 1;
    memcpy(&a.conv, &wrong, sizeof wrong);
    test_true("a way to convolve that is none is refused", ctr_ctx_create(&a) == NULL);
    test_text("in words", note.text, "config: expected conv of enum ctr_conv_kind, got 5");
    a.conv = CTR_CONV_AUTO;
    memcpy(&a.kernels, &wrong, sizeof wrong);
    test_true("kernels that are none are refused", ctr_ctx_create(&a) == NULL);
    a.kernels = CTR_KERNELS_AUTO;
    a.allocator.alloc_fn = test_allocator_alloc_;
    test_true("half an allocator is refused", ctr_ctx_create(&a) == NULL);
}

/* --------------------------------------------------------------------------------------- errors */

static void test_errors(void)
{
    static const ctr_status all[] = { CTR_OK, CTR_E_MEMORY, CTR_E_SHAPE, CTR_E_VALUE, CTR_E_STATE,
                                      CTR_E_NUMBER, CTR_E_FILE, CTR_E_FORMAT, CTR_E_DEVICE,
                                      CTR_E_UNSUPPORTED };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO), *other = test_ctx(1, CTR_KERNELS_AUTO);
    char lengthy[2000];
    ctr_real v[4] = { 1, 2, 3, 4 };
    size_t i, j;
    test_group("errors stick");
    for (i = 0; i < sizeof all / sizeof *all; i++) {
        test_true("a status has a name", strlen(ctr_status_name(all[i])) > 1);
        for (j = 0; j < i; j++)
            test_true("of its own", strcmp(ctr_status_name(all[i]), ctr_status_name(all[j])) != 0);
    }
    test_text("an unknown status", ctr_status_name((ctr_status)(CTR_E_UNSUPPORTED + 1)), "unknown");
    ctr_error_set(ctx, CTR_E_FILE, "first: 100% %s %n");
    ctr_error_set(ctx, CTR_E_VALUE, "second");
    test_equal("the first error stays", ctr_error(ctx), CTR_E_FILE);
    test_text("and its text, as it was given", ctr_error_text(ctx), "first: 100% %s %n");
    ctr_k_fill(ctx, 4, 9, v);
    test_equal("verbs do nothing after an error", (double)v[0], 1);
    test_equal("another context has none", ctr_error(other), CTR_OK);
    ctr_error_clear(ctx);
    test_equal("cleared", ctr_error(ctx), CTR_OK);
    test_text("the text too", ctr_error_text(ctx), "");
    ctr_k_fill(ctx, 4, 9, v);
    test_equal("verbs work again", (double)v[0], 9);
    memset(lengthy, 'x', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = 0;
    ctr_error_set(ctx, CTR_E_VALUE, lengthy);
    test_true("a long text is cut", strlen(ctr_error_text(ctx)) > 100 &&
                                        strlen(ctr_error_text(ctx)) < sizeof lengthy - 1);
    ctr_ctx_destroy(ctx);
    ctr_ctx_destroy(other);
}

/* ----------------------------------------------------------------------------- a small training */

/* Two layers with batch norm, trained by momentum written with verbs: needs values, saved blocks,
   gradients, kept values and staged statistics. */
typedef struct model {
    ctr_tensor *t[6];      /* w1, w2, gamma, beta, mean, var */
    ctr_tensor *x;
} model;

static const int64_t model_shapes[7][4] = { { 3, 3, 2, 8 }, { 8, 4 }, { 8 }, { 8 }, { 8 }, { 8 },
                                            { 6, 5, 5, 2 } };
static const int model_ranks[7] = { 4, 2, 1, 1, 1, 1, 4 };

static int model_create(ctr_ctx *ctx, model *m)
{
    static const char *const names[7] = { "w1", "w2", "g", "b", "m", "v", "x" };
    ctr_tensor **t;
    ctr_real v[512];
    int i;
    int64_t j;
    for (i = 0; i < 7; i++) {
        t = i < 6 ? &m->t[i] : &m->x;
        *t = ctr_tensor_create(ctx, CTR_F32, model_ranks[i], model_shapes[i], i < 4);
        if (ctr_error(ctx) != CTR_OK) continue;
        test_fill_real(names[i], v, (*t)->size, i == 2 || i == 5 ? 0.1 : 0.5);
        for (j = 0; j < (*t)->size; j++) v[j] += i == 2 || i == 5 ? 1 : 0;
        ctr_tensor_write(ctx, *t, v, (*t)->size);
    }
    return ctr_error(ctx) == CTR_OK;
}

static void model_destroy(ctr_ctx *ctx, model *m)
{
    int i;
    for (i = 0; i < 6; i++) ctr_tensor_destroy(ctx, m->t[i]);
    ctr_tensor_destroy(ctx, m->x);
}

/* All numbers of the model, one after another; returns how many. */
static int64_t model_read(ctr_ctx *ctx, const model *m, ctr_real *to)
{
    int64_t at = 0;
    int i;
    for (i = 0; i < 6; i++) {
        ctr_tensor_read(ctx, m->t[i], to + at, m->t[i]->size);
        at += m->t[i]->size;
    }
    return at;
}

/* One step; returns 1 when it went through. Commits only after all went well. */
static int model_step(ctr_ctx *ctx, model *m)
{
    ctr_norm norm;
    ctr_tensor *y, *loss, *z;
    ctr_rng rng;
    int i, ok;
    norm.gamma = m->t[2];
    norm.beta = m->t[3];
    norm.mean = m->t[4];
    norm.var = m->t[5];
    norm.momentum = CTR_TEST_R(0.1);
    norm.eps = CTR_TEST_R(1e-5);
    ctr_rng_init(&rng, 1, CTR_STREAM_USER, 0, 0, 0);
    ctr_step_begin(ctx);
    y = ctr_batch_norm(ctx, ctr_conv(ctx, m->x, m->t[0], 1, 1), &norm, CTR_NORM_TRAIN, 2, NULL, 1);
    z = ctr_keep(ctx, ctr_normalize(ctx, ctr_matmul(ctx, ctr_global_pool(ctx, y), 0, m->t[1], 0)));
    loss = ctr_mean(ctx, ctr_log_softmax(ctx, ctr_scale(ctx, ctr_matmul(ctx, z, 0, z, 1), 5)), -1);
    ctr_backward(ctx, loss);
    for (i = 0; i < 4; i++)
        if (ctr_error(ctx) == CTR_OK && !ctr_k_finite(ctx, m->t[i]->size, m->t[i]->grad))
            ctr_error_set(ctx, CTR_E_NUMBER, "test: gradient");
    ok = ctr_error(ctx) == CTR_OK;
    for (i = 0; i < 4 && ok; i++)
        ctr_k_axpby(ctx, m->t[i]->size, CTR_TEST_R(0.1), m->t[i]->grad, 1,
                    (ctr_real *)m->t[i]->data);
    if (ok) ctr_commit(ctx);
    ctr_step_end(ctx);
    return ok;
}

enum { STEPS = 4, NUMBERS = 512 };

/* The reference: the model after 0, 1, ... STEPS steps without any failure. */
static void model_history(int threads, ctr_real history[STEPS + 1][NUMBERS], long *calls)
{
    test_allocator hook;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    model m;
    int i;
    config.allocator = test_allocator_init(&hook);
    config.threads = threads;
    ctx = ctr_ctx_create(&config);
    model_create(ctx, &m);
    model_read(ctx, &m, history[0]);
    for (i = 0; i < STEPS; i++) {
        long before = hook.calls;
        uint64_t counted = ctr_memory_stats(ctx).allocations;
        test_true("a step goes through", model_step(ctx, &m));
        if (i >= 2) {
            test_equal("a steady step allocates nothing: calls of the hook",
                       (double)(hook.calls - before), 0);
            test_equal("and by the library's own count",
                       (double)(ctr_memory_stats(ctx).allocations - counted), 0);
        }
        model_read(ctx, &m, history[i + 1]);
        test_true("and changes the model",
                  memcmp(history[i], history[i + 1], sizeof history[0]) != 0);
    }
    *calls = hook.calls;
    model_destroy(ctx, &m);
    ctr_ctx_destroy(ctx);
    test_equal("blocks that were not given back", (double)hook.live, 0);
    test_equal("frees with a wrong size or of a strange block", (double)hook.bad_frees, 0);
}

static ctr_real history_one[STEPS + 1][NUMBERS], history_two[STEPS + 1][NUMBERS];

static void test_steady(void)
{
    long calls, calls_two;
    test_group("a steady step");
    memset(history_one, 0, sizeof history_one);
    memset(history_two, 0, sizeof history_two);
    model_history(1, history_one, &calls);
    model_history(3, history_two, &calls_two);
    test_bytes("1 and 3 threads train the same model", history_one, history_two,
               sizeof history_one);
    test_true("the hook was asked at all", calls > 20);
}

/* Runs the training with the n-th allocation failing (and all that follow, if asked). Returns 0
   when n was beyond the last. After the failure memory is back, and the rest must succeed. */
static int fail_at(long n, int after_too, int threads)
{
    test_allocator hook;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    ctr_real now[NUMBERS];
    model m;
    int i, tries = 0, reached;
    config.allocator = test_allocator_init(&hook);
    config.threads = threads;
    hook.fail_at = n;
    hook.fail_after_too = after_too;
    ctx = ctr_ctx_create(&config);
    if (!ctx) {
        test_true("no context, because of the failure", hook.calls >= n);
        test_equal("what it had is given back", (double)hook.live, 0);
        return 1;
    }
    while (!model_create(ctx, &m)) {
        test_fails(ctx, "creating the model", CTR_E_MEMORY, "memory");
        model_destroy(ctx, &m);
        hook.fail_at = 0;
        if (++tries > 1) return 1;
    }
    memset(now, 0, sizeof now);
    for (i = 0; i < STEPS; i++) {
        while (!model_step(ctx, &m)) {
            test_fails(ctx, "a step", CTR_E_MEMORY, "memory");
            model_read(ctx, &m, now);
            test_bytes("the model is as before the step that failed", now, history_one[i],
                       sizeof now);
            hook.fail_at = 0;
            if (++tries > 1) return 1;
        }
        model_read(ctx, &m, now);
        test_bytes("the model after a step", now, history_one[i + 1], sizeof now);
    }
    reached = hook.calls >= n;
    model_destroy(ctx, &m);
    ctr_ctx_destroy(ctx);
    test_equal("blocks that were not given back", (double)hook.live, 0);
    test_equal("bad frees", (double)hook.bad_frees, 0);
    return reached;
}

static void test_failures(void)
{
    long n;
    int after, threads;
    test_group("every allocation may fail");
    for (threads = 1; threads <= 2; threads++)
        for (after = 0; after < 2; after++) {
            for (n = 1; n < 2000 && fail_at(n, after, threads); n++) { }
            test_true("more than 20 allocations were tried", n > 20);
            test_true("and all of them", n < 2000);
        }
}

/* The same with the device's memory; device blocks are counted by the fake device. */
static void test_device_failures(void)
{
    long n;
    int reached = 1, ok;
    test_group("every allocation of a device may fail");
    for (n = 1; reached && n < 500; n++) {
        fake_device *fake = fake_device_open();
        ctr_ctx *ctx = fake_device_ctx(fake);
        model m;
        int i;
        fake->fail_at = n;
        ok = model_create(ctx, &m);
        if (!ok) test_fails(ctx, "creating the model", CTR_E_MEMORY, "memory");
        for (i = 0; i < STEPS && ok; i++)
            if (!model_step(ctx, &m)) test_fails(ctx, "a step", CTR_E_MEMORY, "memory");
        reached = fake->allocations >= n;
        model_destroy(ctx, &m);
        ctr_ctx_destroy(ctx);
        fake_device_close(fake);
    }
    test_true("more than 12 allocations were tried", n > 12 && n < 500);
}

/* ------------------------------------------------------------------------------- the statistics */

static void test_stats(void)
{
    test_allocator hook;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    ctr_memory a, b;
    ctr_tensor *t;
    int64_t n = 1000;
    test_group("memory statistics");
    config.allocator = test_allocator_init(&hook);
    config.threads = 1;
    ctx = ctr_ctx_create(&config);
    a = ctr_memory_stats(ctx);
    t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 1);
    b = ctr_memory_stats(ctx);
    test_true("held grows by the tensor and its gradient",
              b.held >= a.held + 2000 * sizeof(ctr_real) &&
                  b.held < a.held + 2000 * sizeof(ctr_real) + 2000);
    test_true("as the hook sees it, but for the context itself",
              hook.live_bytes >= b.held && hook.live_bytes < b.held + 8192);
    test_true("allocations are counted", b.allocations > a.allocations);
    ctr_tensor_destroy(ctx, t);
    a = ctr_memory_stats(ctx);
    test_true("the peak stays", a.held < b.held && a.peak >= b.held);
    ctr_step_reserve(ctx, 100000);
    b = ctr_memory_stats(ctx);
    test_true("a reserved slab", b.slab >= 100000 && b.held >= a.held + 100000);
    ctr_ctx_destroy(ctx);
    test_equal("blocks left", (double)hook.live, 0);
    test_equal("bad frees", (double)hook.bad_frees, 0);
}

/* Both ends of the slab grow towards each other and never meet: values written at the low end are
   intact after gradients at the high end have come and gone. */
static void test_slab(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    int64_t n = 500, i;
    ctr_real v[500];
    ctr_tensor *x = ctr_tensor_create(ctx, CTR_F32, 1, &n, 1), *before, *y;
    ctr_memory m;
    int round, k;
    test_group("the slab has two ends");
    ctr_tensor_fill(ctx, x, 1);
    for (round = 0; round < 4; round++) {
        ctr_step_begin(ctx);
        before = ctr_tensor_temp(ctx, CTR_F32, 1, &n);
        for (i = 0; i < n; i++) v[i] = (ctr_real)i;
        ctr_tensor_write(ctx, before, v, n);
        for (y = x, k = 0; k < 20; k++) y = ctr_sigmoid(ctx, y);
        ctr_backward(ctx, ctr_sum(ctx, y, -1));
        ctr_tensor_read(ctx, before, v, n);
        for (k = 0, i = 0; i < n; i++) k += v[i] != (ctr_real)i;
        test_equal("numbers that changed below the recorded part", k, 0);
        ctr_step_end(ctx);
    }
    m = ctr_memory_stats(ctx);
    /* 20 values and at most 3 gradients at a time are alive, not 20 of both */
    test_true("values and gradients share the slab", m.slab_peak >= 21 * 500 * sizeof(ctr_real) &&
                                                         m.slab_peak < 26 * 512 * sizeof(ctr_real));
    ctr_tensor_destroy(ctx, x);
    ctr_ctx_destroy(ctx);
}

int main(int argc, char **argv)
{
    test_begin("test_memory", argc, argv);
    test_config();
    test_errors();
    test_steady();
    test_stats();
    test_slab();
    test_failures();
    if (!test_quick()) test_device_failures();
    return test_end();
}
