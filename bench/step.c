/* A whole SimCLR training step: forward, NT-Xent, backward, SGD; what peers/simclr_step.py does.
 *
 *     cc -O2 -o step bench/step.c -lm -lpthread && ./step [--threads 2] [--only resnet20,resnet18]
 *
 * The views are made beforehand: only the step is timed. Head: linear, norm, ReLU, linear, norm.
 * Each case runs in a process of its own and prints: value, from the median step; best, from the
 * fastest; cpu_ms, processor time of all threads; peak_mb, the process's largest resident set;
 * slab_mb, the library's memory for a step; held_mb, all that it holds; allocations in a
 * steady step, which must be none. Before the timing a step on a few images with the fast kernels
 * and with the scalar ones must agree. `startup` times processes that create a context, and a
 * method in it. */
#define CONTRASTIVE_IMPLEMENTATION
#define CONTRASTIVE_STATIC
#include "../contrastive.h"

#include "bench.h"

#define VIEWS 2
#define RATE 0.01

typedef struct step_case {
    const char *name;
    int depth;
    ctr_stem stem;
    int64_t side, images;
} step_case;

static const step_case CASES[] = {
    {"resnet8x8", 8, CTR_STEM_SMALL, 32, 8},
    {"resnet8", 8, CTR_STEM_SMALL, 32, 128},
    {"resnet20", 20, CTR_STEM_SMALL, 32, 128},
    {"resnet18", 18, CTR_STEM_SMALL, 32, 32},
    {"resnet18x64", 18, CTR_STEM_SMALL, 32, 64},
    {"resnet50", 50, CTR_STEM_LARGE, 64, 16}
};

typedef struct job {
    const bench_options *o;
    const step_case *c;
    ctr_ctx *ctx;
    ctr_method *method;
    ctr_batch batch;
    double loss;          /* of the last step */
} job;

static void job_create(job *j, int64_t images, ctr_kernels kernels)
{
    ctr_config config = ctr_config_default();
    ctr_simclr_config simclr = ctr_simclr_default();
    int64_t size = VIEWS * images * j->c->side * j->c->side * 3, i;
    int32_t *labels = (int32_t *)malloc((size_t)images * sizeof *labels);
    int64_t *index = (int64_t *)malloc((size_t)images * sizeof *index);
    if (!labels || !index) bench_die("out of memory");
    config.threads = j->o->threads;
    config.kernels = kernels;
    simclr.encoder = ctr_resnet_config_default(j->c->depth);
    simclr.encoder.image_size = j->c->side;
    simclr.encoder.stem = j->c->stem;
    simclr.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    j->ctx = ctr_ctx_create(&config);
    j->method = j->ctx ? ctr_simclr_create(j->ctx, &simclr) : NULL;
    if (!j->method) bench_die("%s: %s", j->c->name, j->ctx ? ctr_error_text(j->ctx) : "no context");
    memset(&j->batch, 0, sizeof j->batch);
    j->batch.n = images;
    j->batch.views = VIEWS;
    j->batch.h = j->batch.w = j->c->side;
    j->batch.c = 3;
    for (i = 0; i < images; i++) {
        labels[i] = -1;
        index[i] = i;
    }
    j->batch.labels = labels;
    j->batch.index = index;
    j->batch.pixels = bench_floats(size);
    bench_fill(j->batch.pixels, size, 5);
}

static void job_destroy(job *j)
{
    ctr_method_destroy(j->method);
    ctr_ctx_destroy(j->ctx);
}

static void step_run(void *user)
{
    job *j = (job *)user;
    ctr_report report;
    if (!ctr_method_step(j->method, &j->batch, RATE, &report))
        bench_die("%s: %s", j->c->name, ctr_error_text(j->ctx));
    j->loss = report.loss;
}

/* ---- verification
   ------------------------------------------------------------------------------ */

typedef struct collect { float *at; int64_t count; } collect;

static void collect_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    collect *all = (collect *)user;
    (void)name;
    (void)conv;
    if (t->dtype != CTR_F32) return;
    if (all->at) memcpy(all->at + all->count, t->data, (size_t)t->size * sizeof(float));
    all->count += t->size;
}

static void collect_number(void *user, const char *name, int64_t *value)
{
    (void)user;
    (void)name;
    (void)value;
}

/* Every number of the method's state: weights, running statistics, momenta. The caller's. */
static float *collect_state(job *j, int64_t *count)
{
    ctr_visitor visitor;
    collect all = {NULL, 0};
    visitor.user = &all;
    visitor.tensor_fn = collect_tensor;
    visitor.number_fn = collect_number;
    ctr_method_visit(j->method, &visitor);
    all.at = (float *)malloc((size_t)all.count * sizeof(float));
    if (!all.at) bench_die("out of memory");
    *count = all.count;
    all.count = 0;
    ctr_method_visit(j->method, &visitor);
    return all.at;
}

/* One step with fast and with scalar kernels, in a process of its own; the state then holds the
   gradients, as momenta. Rounding decides single ReLUs, the more the deeper the net: with ResNet-50
   the scalar float kernels are 3e-2 away from double, too. Hence these limits; kernels.c verifies
   each convolution closely. */
static void verify(void *user)
{
    job fast = *(const job *)user, slow = fast;
    float *a, *b;
    int64_t n, m, i;
    int64_t images = fast.c->depth == 18 || fast.c->depth == 50 ? 2 : 4;
    bench_error e = {0, 0};
    job_create(&fast, images, CTR_KERNELS_AUTO);
    job_create(&slow, images, CTR_KERNELS_SCALAR);
    step_run(&fast);
    step_run(&slow);
    if (!(fabs(fast.loss - slow.loss) <= 1e-4 * fabs(slow.loss)))
        bench_die("%s: loss %.7g, scalar kernels %.7g", fast.c->name, fast.loss, slow.loss);
    a = collect_state(&fast, &n);
    b = collect_state(&slow, &m);
    if (n != m) bench_die("%s: states differ in size", fast.c->name);
    for (i = 0; i < n; i++) bench_error_add(&e, (double)b[i], (double)a[i]);
    bench_error_check(&e, fast.c->depth == 50 ? 1e-1 : 2e-2, fast.c->name);
    free(a);
    free(b);
    job_destroy(&fast);
    job_destroy(&slow);
}

/* ---- measurement
   ------------------------------------------------------------------------------- */

static void measure(void *user)
{
    job *j = (job *)user;
    ctr_memory before, after;
    bench_time t;
    double views = (double)(VIEWS * j->c->images), start = bench_seconds(), first;
    char shape[64];
    job_create(j, j->c->images, CTR_KERNELS_AUTO);
    step_run(j);
    first = j->loss;
    start = bench_seconds() - start;
    step_run(j);
    before = ctr_memory_stats(j->ctx);
    step_run(j);
    after = ctr_memory_stats(j->ctx);
    t = bench_run(step_run, j, j->o->seconds, 5);
    if (after.allocations != before.allocations)
        bench_die("%s: a steady step allocates", j->c->name);
    snprintf(shape, sizeof shape, "%s", j->c->name);
    bench_emit(
        "step", shape, j->o->threads, views / t.median, "views/s",
        "best=%.4g ms=%.2f cpu_ms=%.2f steps=%d views=2x%d side=%d peak_mb=%.1f slab_mb=%.1f "
        "held_mb=%.1f allocations=%d first_loss=%.5f first_step_s=%.3f kernels=%s",
        views / t.best, 1e3 * t.median, 1e3 * t.cpu, t.repeats, (int)j->c->images, (int)j->c->side,
        bench_peak_mb(), (double)after.slab / 1048576, (double)after.held / 1048576,
        (int)(after.allocations - before.allocations), first, start, ctr_kernels_name(j->ctx));
    job_destroy(j);
}

/* ---- start-up
   ---------------------------------------------------------------------------------- */

static const char *program;

/* From the start of a process to its end. depth 0: it creates a context; else also SimCLR with that
   network and its optimiser, which means drawing its weights: 11 million for ResNet-18. */
static void startup_run(void *user)
{
    int status = 0;
    pid_t child = fork();
    if (child < 0) bench_die("cannot fork");
    if (child == 0) {
        execl(program, program, "--create", (const char *)user, (char *)NULL);
        _exit(127);
    }
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        bench_die("start-up failed");
}

static int startup_child(int depth)
{
    ctr_simclr_config simclr = ctr_simclr_default();
    ctr_ctx *ctx = ctr_ctx_create(NULL);
    ctr_method *method = NULL;
    int good = ctx != NULL;
    if (depth) {
        simclr.encoder = ctr_resnet_config_default(depth);
        method = ctx ? ctr_simclr_create(ctx, &simclr) : NULL;
        good = method && ctr_error(ctx) == CTR_OK;
    }
    ctr_method_destroy(method);
    ctr_ctx_destroy(ctx);
    return good ? 0 : 1;
}

static void startup_measure(const bench_options *o)
{
    static char depth[3][4] = {"0", "20", "18"};
    static const char *const SHAPE[3] = {"context", "resnet20", "resnet18"};
    int i;
    for (i = 0; i < 3; i++) {
        bench_time t = bench_run(startup_run, depth[i], o->seconds, 10);
        bench_emit("startup", SHAPE[i], o->threads, 1e3 * t.median, "ms", "best=%.2f repeats=%d",
                   1e3 * t.best, t.repeats);
    }
}

int main(int argc, char **argv)
{
    bench_options o;
    job j;
    size_t i;
    program = argv[0];
    if (argc == 3 && strcmp(argv[1], "--create") == 0) return startup_child(atoi(argv[2]));
    bench_parse(&o, argc, argv, "step: SimCLR training steps. cases: resnet8x8 resnet8 resnet20 "
                "resnet18 resnet18x64 resnet50 startup");
    memset(&j, 0, sizeof j);
    j.o = &o;
    if (bench_wanted(&o, "startup")) startup_measure(&o);
    for (i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        if (!bench_wanted(&o, CASES[i].name)) continue;
        j.c = &CASES[i];
        if ((!o.checked && bench_fresh(verify, &j)) || bench_fresh(measure, &j)) return 1;
    }
    return 0;
}
