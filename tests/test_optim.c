/* test_optim.c - optimisers and schedules.
 * run: float double asan smoke valgrind
 *
 * 1. SGD, Nesterov, AdamW, LARS in three forms, five steps with a falling rate, and schedules,
 * against PyTorch and the authors' formulas in float64 (tests/golden/golden_optim.txt): CPU,
 * threads, fake device.
 * 2. Which variable decays and adapts, by its kind; what describe says about it.
 * 3. Variables without a gradient stay; buffers stay; state can be saved and put back.
 * 4. Wrong configurations.
 */
#include "model.h"

typedef struct rule {
    const char *key;
    ctr_optim_kind kind;
    double lr, momentum, decay;
    int nesterov, all, zero;
    ctr_lars_form form;
} rule;

static const rule rules[] = {
    { "sgd", CTR_OPTIM_SGD, 0.1, 0.9, 1e-4, 0, 0, 0, CTR_LARS_OUTSIDE },
    { "nesterov", CTR_OPTIM_SGD, 0.1, 0.9, 1e-4, 1, 0, 0, CTR_LARS_OUTSIDE },
    { "sgd0", CTR_OPTIM_SGD, 0.1, 0, 0, 0, 0, 0, CTR_LARS_OUTSIDE },
    { "adamw", CTR_OPTIM_ADAMW, 0.01, 0, 0.05, 0, 0, 0, CTR_LARS_OUTSIDE },
    { "adamw_all", CTR_OPTIM_ADAMW, 0.01, 0, 0.05, 0, 1, 0, CTR_LARS_OUTSIDE },
    { "lars", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 0, CTR_LARS_OUTSIDE },
    { "lars_tf", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 0, CTR_LARS_INSIDE },
    { "larc", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 0, CTR_LARS_LARC },
    { "larc_all", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 1, 0, CTR_LARS_LARC },
    { "lars_zero", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 1, CTR_LARS_OUTSIDE },
    { "lars_tf_zero", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 1, CTR_LARS_INSIDE },
    { "larc_zero", CTR_OPTIM_LARS, 2, 0.9, 1e-4, 0, 0, 1, CTR_LARS_LARC }
};

static ctr_optim_config rule_config(const rule *r)
{
    ctr_optim_config c = ctr_optim_config_default(r->kind);
    c.decay = r->decay;
    c.decay_all = r->all;
    c.nesterov = r->nesterov;
    c.form = r->form;
    if (r->kind != CTR_OPTIM_ADAMW) c.momentum = r->momentum;
    return c;
}

/* Gives t the gradient g, through the tape: sum(t g). */
static ctr_tensor *pull(ctr_ctx *ctx, ctr_tensor *t, const ctr_real *g)
{
    ctr_tensor *c = ctr_tensor_temp(ctx, CTR_F32, t->rank, t->shape);
    ctr_tensor_write(ctx, c, g, t->size);
    return ctr_sum(ctx, ctr_mul(ctx, t, c), -1);
}

static ctr_tensor *var(ctr_ctx *ctx, ctr_vars *vars, const char *name, ctr_kind kind, int rank,
                       int64_t a, int64_t b)
{
    int64_t shape[2];
    shape[0] = a;
    shape[1] = b;
    return ctr_vars_add(ctx, vars, "", name, kind, rank, shape);
}

static void set(ctr_ctx *ctx, ctr_tensor *t, const char *fill, double scale)
{
    ctr_real *x = test_reals(t->size);
    test_fill_real(fill, x, t->size, scale);
    ctr_tensor_write(ctx, t, x, t->size);
    free(x);
}

/* ---------------------------------------------------------------------------------- golden values
 */

static double rule_run(ctr_ctx *ctx, golden_file *g, const rule *r)
{
    ctr_optim_config config = rule_config(r);
    ctr_real gradient[2][35], now[35];
    ctr_tensor *p[2];
    ctr_optim *optim;
    ctr_vars vars;
    double worst = 0, e;
    char name[64];
    int t, i;
    static const char *const names[2] = { "weight", "bias" };
    ctr_vars_init(&vars);
    p[0] = var(ctx, &vars, "weight", CTR_KIND_WEIGHT, 2, 7, 5);
    p[1] = var(ctx, &vars, "bias", CTR_KIND_BIAS, 1, 5, 1);
    set(ctx, p[0], "p:weight", r->zero ? 0 : 1);
    set(ctx, p[1], "p:bias", 1);
    optim = ctr_optim_create(ctx, &config, &vars);
    if (!test_true(r->key, optim != NULL)) return 1;
    for (t = 1; t <= 5; t++) {
        ctr_step_begin(ctx);
        for (i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "g:%s:%d", names[i], t);
            test_fill_real(name, gradient[i], p[i]->size, 1.0);
        }
        ctr_backward(ctx, ctr_add(ctx, pull(ctx, p[0], gradient[0]), pull(ctx, p[1], gradient[1])));
        ctr_optim_step(ctx, optim, r->lr / t);
        ctr_step_end(ctx);
        for (i = 0; i < 2; i++) {
            ctr_tensor_read(ctx, p[i], now, p[i]->size);
            snprintf(name, sizeof name, "%s:%s:%d", r->key, names[i], t);
            e = test_digest(g, name, now, p[i]->size, 0);
            test_error(name, e, test_bound(1e-8, 1e-5));
            worst = golden_max_(worst, e);
        }
    }
    test_equal("steps are counted", (double)*ctr_optim_steps(optim), 5);
    test_fine(ctx, r->key);
    ctr_optim_destroy(ctx, optim);
    ctr_vars_destroy(ctx, &vars);
    return worst;
}

/* w = (3, 4), g = (.1, .2): the published one-step vectors. */
static void one_step(ctr_ctx *ctx, golden_file *g, const char *key, ctr_lars_form form)
{
    ctr_optim_config c = ctr_optim_config_default(CTR_OPTIM_LARS);
    static const ctr_real w[2] = { 3, 4 };
    ctr_real pulled[2], now[2];
    ctr_optim *optim;
    ctr_tensor *t;
    ctr_vars vars;
    const double *want = golden_get(g, key, NULL);
    pulled[0] = CTR_TEST_R(0.1);
    pulled[1] = CTR_TEST_R(0.2);
    c.momentum = 0;
    c.form = form;
    ctr_vars_init(&vars);
    t = var(ctx, &vars, "w", CTR_KIND_WEIGHT, 1, 2, 1);
    ctr_tensor_write(ctx, t, w, 2);
    optim = ctr_optim_create(ctx, &c, &vars);
    ctr_step_begin(ctx);
    ctr_backward(ctx, pull(ctx, t, pulled));
    ctr_optim_step(ctx, optim, 0.5);
    ctr_step_end(ctx);
    ctr_tensor_read(ctx, t, now, 2);
    if (want) test_near(key, now, want, 2, test_bound(1e-14, 1e-7), 0);
    ctr_optim_destroy(ctx, optim);
    ctr_vars_destroy(ctx, &vars);
}

static void golden_rules(ctr_ctx *ctx, golden_file *g, const char *where)
{
    double worst = 0;
    size_t i;
    char name[96];
    snprintf(name, sizeof name, "optimisers, %s", where);
    test_group(name);
    for (i = 0; i < sizeof rules / sizeof *rules; i++)
        worst = golden_max_(worst, rule_run(ctx, g, &rules[i]));
    one_step(ctx, g, "onestep:lars", CTR_LARS_OUTSIDE);
    one_step(ctx, g, "onestep:lars_tf", CTR_LARS_INSIDE);
    one_step(ctx, g, "onestep:larc", CTR_LARS_LARC);
    printf("     %s: worst error %.2g\n", name, worst);
}

static double schedule_error(golden_file *g, const char *key, const ctr_schedule *s)
{
    size_t n, i;
    const double *want = golden_get(g, key, &n);
    double worst = want ? 0 : GOLDEN_BAD;
    for (i = 0; want && i < n; i++)
        worst = golden_max_(worst, fabs(ctr_schedule_at(s, (int64_t)i) - want[i]));
    return worst;
}

static void schedules(golden_file *g)
{
    size_t i;
    int seen = 0;
    ctr_schedule s;
    test_group("schedules");
    for (i = 0; i < g->count; i++) {
        const char *key = g->records[i].key;
        double base, end;
        int warmup, total, a, b;
        if (sscanf(key, "cosine:%lf:%lf:%d:%d", &base, &end, &warmup, &total) == 4) {
            s = ctr_schedule_cosine(base, end, warmup, total);
        } else if (sscanf(key, "steps:%lf:%lf:%d:%d:%d", &base, &end, &a, &b, &total) == 5) {
            s = ctr_schedule_cosine(base, 0, 0, total);
            s.kind = CTR_SCHEDULE_STEPS;
            s.gamma = end;
            s.milestones[0] = a;
            s.milestones[1] = b;
        } else if (sscanf(key, "constant:%lf:%d", &base, &total) == 2) {
            s = ctr_schedule_cosine(base, 0, 0, total);
            s.kind = CTR_SCHEDULE_CONSTANT;
        } else {
            continue;
        }
        seen++;
        test_error(key, schedule_error(g, key, &s), 1e-14);
    }
    test_equal("schedules in the file", seen, 7);
    s = ctr_schedule_cosine(0.3, 0.01, 2, 10);
    test_true("the last step has the end's rate", fabs(ctr_schedule_at(&s, 9) - 0.01) < 1e-16);
    test_equal("and all that follow", ctr_schedule_at(&s, 1000), ctr_schedule_at(&s, 9));
    s = ctr_schedule_cosine(0.3, 0.01, 20, 10);
    test_error("warm-up that is longer than the run", fabs(ctr_schedule_at(&s, 9) - 0.15), 1e-15);
    s = ctr_schedule_cosine(0.3, 0, 3, 10);
    s.kind = CTR_SCHEDULE_CONSTANT;
    test_error("warm-up to a constant", fabs(ctr_schedule_at(&s, 1) - 0.2), 1e-15);
    test_equal("then the constant", ctr_schedule_at(&s, 3), 0.3);
    s.kind = CTR_SCHEDULE_STEPS;
    s.milestones[0] = 5;
    test_error("warm-up to steps", fabs(ctr_schedule_at(&s, 0) - 0.1), 1e-15);
    test_error("then steps", fabs(ctr_schedule_at(&s, 5) - 0.03), 1e-15);
}

/* ------------------------------------------------------------------------------------------- kinds
 */

enum { KINDS = 6 };
static const char *const kind_names[KINDS] = {"weight", "bias",      "norm",
                                              "scale",  "prototype", "buffer"};

/* With a gradient of zero only decay moves a variable: by how much says who decays. With LARS and a
   gradient along the variable, the length of the step says who is adapted. */
static void kinds_one(ctr_ctx *ctx, ctr_optim_kind kind, int all, ctr_lars_form form)
{
    ctr_optim_config c = ctr_optim_config_default(kind);
    ctr_optim *optim;
    ctr_vars vars;
    ctr_tensor *t[KINDS], *loss;
    ctr_real g[4], now[4];
    char what[128], text[2048];
    int i, k, round;
    c.decay = 0.125;
    c.decay_all = all;
    c.form = form;
    c.momentum = 0;
    for (round = 0; round < 2; round++) {
        ctr_vars_init(&vars);
        for (i = 0; i < KINDS; i++) {
            t[i] = var(ctx, &vars, kind_names[i], (ctr_kind)i, 2, 2, 2);
            ctr_tensor_fill(ctx, t[i], 2);
        }
        optim = ctr_optim_create(ctx, &c, &vars);
        if (!test_true("created", optim != NULL)) return;
        for (k = 0; k < 4; k++) g[k] = round ? CTR_TEST_R(0.5) : 0;
        ctr_step_begin(ctx);
        loss = pull(ctx, t[0], g);
        for (i = 1; i < KINDS - 1; i++) loss = ctr_add(ctx, loss, pull(ctx, t[i], g));
        ctr_backward(ctx, loss);
        ctr_optim_step(ctx, optim, 0.25);
        ctr_step_end(ctx);
        ctr_optim_describe(optim, text, sizeof text);
        for (i = 0; i < KINDS; i++) {
            int weight = i == CTR_KIND_WEIGHT || i == CTR_KIND_PROTOTYPE;
            int decays = i != CTR_KIND_BUFFER && (weight || (all && i != CTR_KIND_SCALE));
            int adapts = kind == CTR_OPTIM_LARS && i != CTR_KIND_BUFFER &&
                         (weight || (all && i != CTR_KIND_SCALE));
            double wd = decays ? 0.125 : 0, u = (double)g[0] + wd * 2, want = 2;
            char line[64], *at;
            if (i == CTR_KIND_BUFFER) u = 0;
            if (kind == CTR_OPTIM_ADAMW) {
                want = 2 * (1 - 0.25 * wd);
                if (round && i != CTR_KIND_BUFFER) want -= 0.25; /* m / sqrt(v) = 1 at first */
            } else {
                if (adapts && u > 0 && form == CTR_LARS_LARC)
                    u *= round ? 1e-3 * 2 / ((double)g[0] + wd * 2) : 1; /* |g| = 0: trust 1 */
                else if (adapts && u > 0)
                    u = 1e-3 * 2;
                want = 2 - 0.25 * u;
            }
            ctr_tensor_read(ctx, t[i], now, 4);
            snprintf(what, sizeof what, "optimiser %d, all %d, form %d, %s, gradient %g", (int)kind,
                     all, (int)form, kind_names[i], (double)g[0]);
            test_error(what, fabs((double)now[3] - want), test_bound(1e-8, 3e-7));
            snprintf(line, sizeof line, "decay %-7g %s\n", wd, adapts ? "adapted" : "-");
            at = strstr(text, kind_names[i]);
            test_true("describe says the same", at && strstr(at, line) &&
                      strstr(at, line) < strchr(at, '\n'));
        }
        ctr_optim_destroy(ctx, optim);
        ctr_vars_destroy(ctx, &vars);
    }
    test_fine(ctx, "kinds");
}

static void kinds(ctr_ctx *ctx)
{
    int all;
    test_group("decay and adaptation by kind");
    for (all = 0; all < 2; all++) {
        kinds_one(ctx, CTR_OPTIM_SGD, all, CTR_LARS_OUTSIDE);
        kinds_one(ctx, CTR_OPTIM_ADAMW, all, CTR_LARS_OUTSIDE);
        kinds_one(ctx, CTR_OPTIM_LARS, all, CTR_LARS_OUTSIDE);
        kinds_one(ctx, CTR_OPTIM_LARS, all, CTR_LARS_INSIDE);
        kinds_one(ctx, CTR_OPTIM_LARS, all, CTR_LARS_LARC);
    }
}

static void describes(ctr_ctx *ctx)
{
    ctr_optim_config c = ctr_optim_config_default(CTR_OPTIM_LARS), d;
    ctr_optim *optim;
    ctr_vars vars;
    char text[512], part[512];
    size_t length, size;
    test_group("describe and defaults");
    ctr_optim_config_init(&d, CTR_OPTIM_LARS);
    test_bytes("default and init are one", &c, &d, sizeof c);
    test_true("LARS's defaults", c.momentum == 0.9 && c.decay == 1e-4 && c.trust == 1e-3 &&
              c.form == CTR_LARS_OUTSIDE && !c.decay_all && !c.nesterov);
    d = ctr_optim_config_default(CTR_OPTIM_ADAMW);
    test_true("AdamW's", d.beta1 == 0.9 && d.beta2 == 0.999 && d.eps == 1e-8 && d.decay == 0.01);
    ctr_vars_init(&vars);
    var(ctx, &vars, "net.fc.weight", CTR_KIND_WEIGHT, 2, 3, 4);
    var(ctx, &vars, "net.fc.bias", CTR_KIND_BIAS, 1, 3, 1);
    optim = ctr_optim_create(ctx, &c, &vars);
    length = ctr_optim_describe(optim, text, sizeof text);
    test_equal("the length", (double)length, (double)strlen(text));
    test_true("two lines", strchr(text, '\n') && strchr(strchr(text, '\n') + 1, '\n') ==
              text + length - 1);
    test_true("the weight's",
              strstr(text, "net.fc.weight") == text && strstr(text, "[3, 4]") != NULL);
    test_true("the bias's", strstr(text, "net.fc.bias") && strstr(text, "bias      decay 0 "));
    test_equal("without room the length is the same", (double)ctr_optim_describe(optim, NULL, 0),
               (double)length);
    for (size = 1; size < length + 2; size += 7) {
        memset(part, 0x7f, sizeof part);
        ctr_optim_describe(optim, part, size);
        test_true("never more than there is room for", memchr(part, 0, size) &&
                                                           part[size] == 0x7f &&
                                                           strncmp(part, text, strlen(part)) == 0);
    }
    ctr_optim_destroy(ctx, optim);
    ctr_vars_destroy(ctx, &vars);
}

/* --------------------------------------------------------------------------------- who stays,
 * state */

static void stays(ctr_ctx *ctx, ctr_optim_kind kind)
{
    ctr_optim_config c = ctr_optim_config_default(kind);
    ctr_vars vars;
    ctr_tensor *a, *b, *buffer;
    ctr_optim *optim;
    ctr_real g[4] = { 1, 2, 3, 4 }, before[4], now[4];
    int i, count;
    ctr_vars_init(&vars);
    a = var(ctx, &vars, "a", CTR_KIND_WEIGHT, 2, 2, 2);
    buffer = var(ctx, &vars, "buffer", CTR_KIND_BUFFER, 1, 4, 1);
    b = var(ctx, &vars, "b", CTR_KIND_WEIGHT, 2, 2, 2);
    set(ctx, a, "a", 1);
    set(ctx, b, "b", 1);
    set(ctx, buffer, "buffer", 1);
    c.decay = 0.1;
    optim = ctr_optim_create(ctx, &c, &vars);
    for (i = 0; i < 3; i++) { /* b has a gradient in the second step only */
        ctr_step_begin(ctx);
        ctr_tensor_read(ctx, b, before, 4);
        ctr_backward(ctx,
                     i == 1 ? ctr_add(ctx, pull(ctx, a, g), pull(ctx, b, g)) : pull(ctx, a, g));
        ctr_optim_step(ctx, optim, 0.1);
        ctr_step_end(ctx);
        ctr_tensor_read(ctx, b, now, 4);
        test_true("moves exactly if it has a gradient in this step",
                  (memcmp(before, now, sizeof now) != 0) == (i == 1));
    }
    test_fill_real("buffer", before, 4, 1);
    ctr_tensor_read(ctx, buffer, now, 4);
    test_bytes("buffers stay", before, now, sizeof now);
    count = ctr_optim_state(optim)->count;
    test_equal("state: momenta of the two weights", count, kind == CTR_OPTIM_ADAMW ? 4 : 2);
    test_true("its names and shapes", strcmp(ctr_optim_state(optim)->list[0].name, "a.m") == 0 &&
              ctr_optim_state(optim)->list[count - 1].value->size == 4);
    test_fine(ctx, "who stays");
    ctr_optim_destroy(ctx, optim);
    ctr_optim_destroy(ctx, NULL);
    ctr_vars_destroy(ctx, &vars);
}

/* Steps 1 2 3 4 are steps 1 2, a copy of variables, state and count, and 3 4 on the copy. */
static void resumes(ctr_ctx *ctx, ctr_optim_kind kind)
{
    ctr_optim_config c = ctr_optim_config_default(kind);
    ctr_vars vars[2];
    ctr_tensor *w[2];
    ctr_optim *optim[2];
    ctr_real g[9], x[9], y[9];
    char name[16];
    int i, k;
    for (k = 0; k < 2; k++) {
        ctr_vars_init(&vars[k]);
        w[k] = var(ctx, &vars[k], "w", CTR_KIND_WEIGHT, 2, 3, 3);
        set(ctx, w[k], "w", 1);
        optim[k] = ctr_optim_create(ctx, &c, &vars[k]);
    }
    for (i = 0; i < 4; i++) {
        if (i == 2) {
            ctr_vars_copy(ctx, &vars[1], &vars[0]);
            ctr_vars_copy(ctx, ctr_optim_state(optim[1]), ctr_optim_state(optim[0]));
            *ctr_optim_steps(optim[1]) = *ctr_optim_steps(optim[0]);
        }
        snprintf(name, sizeof name, "g%d", i);
        test_fill_real(name, g, 9, 1);
        for (k = 0; k < 2; k++) {
            if (k && i < 2) continue;
            ctr_step_begin(ctx);
            ctr_backward(ctx, pull(ctx, w[k], g));
            ctr_optim_step(ctx, optim[k], 0.1);
            ctr_step_end(ctx);
        }
    }
    ctr_tensor_read(ctx, w[0], x, 9);
    ctr_tensor_read(ctx, w[1], y, 9);
    test_bytes("state, variables and count are all there is to an optimiser", x, y, sizeof x);
    for (k = 0; k < 2; k++) {
        ctr_optim_destroy(ctx, optim[k]);
        ctr_vars_destroy(ctx, &vars[k]);
    }
    test_fine(ctx, "resumed");
}

static void refused(ctr_ctx *ctx, const char *what, const ctr_optim_config *c)
{
    ctr_vars vars;
    ctr_vars_init(&vars);
    var(ctx, &vars, "w", CTR_KIND_WEIGHT, 2, 2, 2);
    test_true(what, ctr_optim_create(ctx, c, &vars) == NULL);
    test_fails(ctx, what, CTR_E_VALUE, "optim");
    ctr_vars_destroy(ctx, &vars);
}

static void refusals(ctr_ctx *ctx)
{
    ctr_optim_config c;
    size_t held = ctr_memory_stats(ctx).held;
    uint64_t bits = (uint64_t)0x7ff80000u << 32;
    double bad;
    memcpy(&bad, &bits, sizeof bad);
    ctr_optim_config_init(&c, CTR_OPTIM_SGD);
    c.momentum = 1;
    refused(ctx, "momentum 1", &c);
    c.momentum = -0.1;
    refused(ctx, "momentum below 0", &c);
    c.momentum = bad;
    refused(ctx, "momentum NaN", &c);
    c.momentum = 0.9;
    c.decay = -1;
    refused(ctx, "decay below 0", &c);
    ctr_optim_config_init(&c, CTR_OPTIM_ADAMW);
    c.beta1 = 1;
    refused(ctx, "beta1 1", &c);
    c.beta1 = 0.9;
    c.beta2 = 1.5;
    refused(ctx, "beta2 1.5", &c);
    c.beta2 = 0.999;
    c.eps = 0;
    refused(ctx, "eps 0: the first step of a gradient 0 would be 0 / 0", &c);
    ctr_optim_config_init(&c, CTR_OPTIM_LARS);
    c.trust = 0;
    refused(ctx, "trust 0: nothing would ever move", &c);
    c.trust = bad;
    refused(ctx, "trust NaN", &c);
    test_equal("nothing is left behind", (double)ctr_memory_stats(ctx).held, (double)held);
}

int main(int argc, char **argv)
{
    golden_file g;
    ctr_ctx *ctx;
    fake_device *fake;
    test_begin("test_optim", argc, argv);
    if (!test_golden_open(&g, "golden_optim.txt")) return test_end();
    ctx = test_ctx(1, CTR_KERNELS_SCALAR);
    golden_rules(ctx, &g, "scalar, 1 thread");
    ctr_ctx_destroy(ctx);
    ctx = test_ctx(3, CTR_KERNELS_AUTO);
    golden_rules(ctx, &g, "best kernels, 3 threads");
    schedules(&g);
    kinds(ctx);
    describes(ctx);
    test_group("who stays, and what is saved");
    stays(ctx, CTR_OPTIM_SGD);
    stays(ctx, CTR_OPTIM_LARS);
    stays(ctx, CTR_OPTIM_ADAMW);
    resumes(ctx, CTR_OPTIM_SGD);
    resumes(ctx, CTR_OPTIM_LARS);
    resumes(ctx, CTR_OPTIM_ADAMW);
    test_group("refusals");
    refusals(ctx);
    ctr_ctx_destroy(ctx);
    fake = fake_device_open();
    ctx = fake_device_ctx(fake);
    golden_rules(ctx, &g, "fake device");
    kinds(ctx);
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
    golden_close(&g);
    return test_end();
}
