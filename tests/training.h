/* training.h - a small training run of any method, and what must hold of it.
 *
 * A test says how its method is made; the rest is a line each:
 *
 *     static ctr_method *make(ctr_ctx *ctx, const training *t) { ... ctr_x_create(ctx, &c); }
 *
 *     training t = training_default("x", make);
 *     training_steady(&t, 2, 9);               steps 3 to 11 allocate nothing
 *     training_planned(&t);                    the plan is what a step needs
 *     training_same_bytes(&t);                 with 1, 2, 3 and 7 threads
 *     training_same_on_device(&t);             on the fake device
 *     training_resumes(&t);                    stopped, saved and resumed
 *     training_failing_allocations(&t, 0, 3);  every third allocation fails in its turn
 *
 * Between the lines its fields may be changed: t.config.threads = 3. Files go to the working folder
 * and are removed.
 */
#ifndef CTR_TEST_TRAINING_H
#define CTR_TEST_TRAINING_H

#include "model.h"

#define TRAINING_RATE 0.04

/* A run and how its method is made. kind, rows and data are for the test's own make_fn. */
typedef struct training {
    const char *name;               /* of the method, in what is printed */
    ctr_method *(*make_fn)(ctr_ctx *ctx, const struct training *t);
    int kind;                       /* which of several */
    int64_t rows;                   /* of a queue or a bank */
    const void *data;
    ctr_config config;              /* threads, kernels, allocator, device, log */
    ctr_loader_config loader;       /* batch, seed; views, augs, per_class are the method's */
    int64_t images, side;           /* at most 64 pictures [side, side, 3] of three classes */
} training;

/* Three epochs of four batches of pictures of 8 x 8, one thread. */
TEST_FN training training_default(const char *name,
                                  ctr_method *(*make_fn)(ctr_ctx *, const training *))
{
    training t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.make_fn = make_fn;
    ctr_config_init(&t.config);
    t.config.threads = 1;
    ctr_loader_config_init(&t.loader);
    t.loader.batch = 6;
    t.images = 24;
    t.side = 8;
    return t;
}

/* Everything between a user's pixels and a checkpoint. */
typedef struct training_run {
    ctr_ctx *ctx;
    ctr_dataset *dataset;
    ctr_method *method;
    ctr_loader *loader;
    uint8_t *pixels;
    int32_t labels[64];
} training_run;

/* Pointers stay NULL from where something failed; the loader is the last. */
TEST_FN void training_begin(training_run *r, const training *t)
{
    ctr_loader_config l = t->loader;
    memset(r, 0, sizeof *r);
    r->pixels = model_pictures(t->images, t->side, r->labels, 3);
    r->ctx = ctr_ctx_create(&t->config);
    if (!r->ctx) return;
    r->dataset =
        ctr_dataset_from_memory(r->ctx, r->pixels, t->images, t->side, t->side, 3, r->labels);
    if (r->dataset) r->method = t->make_fn(r->ctx, t);
    if (!r->method) return;
    r->method->run.steps = 12; /* for methods that follow a schedule; ctr_fit knows better */
    r->method->run.lr = 0.05;
    l.views = r->method->views;
    l.augs = r->method->augs;
    l.per_class = r->method->per_class;
    r->loader = ctr_loader_create(r->ctx, r->dataset, &l);
}

TEST_FN void training_end(training_run *r)
{
    if (r->ctx) {
        ctr_loader_destroy(r->ctx, r->loader);
        ctr_method_destroy(r->method);
        ctr_dataset_destroy(r->ctx, r->dataset);
        ctr_ctx_destroy(r->ctx);
    }
    free(r->pixels);
}

/* The next batch, in the next epoch if this one is over, and what comes before an epoch. */
TEST_FN int training_next(training_run *r, ctr_batch *batch)
{
    int64_t epoch, at;
    ctr_loader_tell(r->loader, &epoch, &at);
    if (at == ctr_loader_batches(r->loader)) {
        if (ctr_loader_next(r->ctx, r->loader, batch)) return 0;
        at = 0;
    }
    if (at == 0 && !ctr_method_begin(r->method, r->loader)) return 0;
    return ctr_loader_next(r->ctx, r->loader, batch);
}

TEST_FN int training_steps(training_run *r, int steps, ctr_report *report)
{
    ctr_batch batch;
    int i;
    for (i = 0; i < steps; i++)
        if (!training_next(r, &batch) ||
            !ctr_method_step(r->method, &batch, TRAINING_RATE, report)) return 0;
    return 1;
}

/* ------------------------------------------------------------------------------ the same bytes */

/* Six steps, over the end of an epoch, whose checkpoint goes to the path; returns the hash. */
TEST_FN uint64_t training_hash(const training *t, const char *path)
{
    ctr_report report;
    uint64_t hash = 0;
    training_run r;
    training_begin(&r, t);
    if (test_true("a run", r.loader && training_steps(&r, 6, &report)))
        hash = ctr_method_hash(r.method);
    if (r.loader && path) test_true("save", ctr_checkpoint_save(r.method, path, NULL));
    if (r.ctx) test_fine(r.ctx, "a run");
    training_end(&r);
    return hash;
}

TEST_FN void training_same_bytes(const training *t)
{
    static const int threads[4] = { 1, 2, 3, 7 };
    training c = *t;
    uint64_t first = 0, hash;
    char what[96];
    int i;
    for (i = 0; i < 4; i++) {
        c.config.threads = threads[i];
        hash = training_hash(&c, i ? "threads_n.ctr" : "threads_1.ctr");
        if (!i) first = hash;
        snprintf(what, sizeof what, "%s, %d threads: the hash", t->name, threads[i]);
        test_true(what, hash != 0 && hash == first);
        snprintf(what, sizeof what, "%s, %d threads: the checkpoint", t->name, threads[i]);
        if (i) model_same_files(what, "threads_1.ctr", "threads_n.ctr");
    }
    remove("threads_1.ctr");
    remove("threads_n.ctr");
}

/* The device's verbs are the scalar kernels: nothing but them may touch a number. */
TEST_FN void training_same_on_device(const training *t)
{
    training c = *t;
    fake_device *fake;
    uint64_t on_cpu, on_device;
    if (test_on_device()) {
        test_skip(t->name, "compares the fake device with the CPU");
        return;
    }
    fake = fake_device_open();
    c.config.kernels = CTR_KERNELS_SCALAR;
    on_cpu = training_hash(&c, NULL);
    c.config.device = &fake->device;
    on_device = training_hash(&c, NULL);
    test_true(t->name, on_cpu != 0 && on_cpu == on_device);
    fake_device_close(fake);
}

TEST_FN int training_stop_at_5_(void *user, const ctr_report *report)
{
    (void)user;
    return report->step == 4;
}

/* Three epochs at once, or stopped after five steps, saved, and resumed by another process. */
TEST_FN void training_resumes(const training *t)
{
    ctr_fit_config fit = ctr_fit_default();
    int64_t whole = 3 * (t->images / t->loader.batch);
    training_run r;
    fit.epochs = 3;
    fit.warmup_epochs = 0;
    fit.lr = 0.05;
    fit.checkpoint = "whole.ctr";
    training_begin(&r, t);
    test_equal("a whole run", (double)ctr_fit(r.method, r.loader, &fit), (double)whole);
    test_true("the run is known", r.method->run.steps == whole &&
              r.method->run.images == t->images && r.method->run.lr == 0.05);
    training_end(&r);
    fit.checkpoint = "parts.ctr";
    fit.resume = 1;
    fit.step_fn = training_stop_at_5_;
    training_begin(&r, t);
    test_equal("five steps", (double)ctr_fit(r.method, r.loader, &fit), 5);
    training_end(&r);
    fit.step_fn = NULL;
    training_begin(&r, t);
    r.method->run.steps = 0;
    test_equal("and the rest", (double)ctr_fit(r.method, r.loader, &fit), (double)(whole - 5));
    test_fine(r.ctx, "resume");
    training_end(&r);
    model_same_files(t->name, "whole.ctr", "parts.ctr");
    remove("whole.ctr");
    remove("parts.ctr");
}

/* --------------------------------------------------------------------------- memory of a step */

/* After `first` steps the next `steps` take no memory from the system; at the end all is freed. */
TEST_FN void training_steady(const training *t, int first, int steps)
{
    training c = *t;
    test_allocator watch;
    ctr_report report;
    char what[128];
    long before;
    training_run r;
    c.config.allocator = test_allocator_init(&watch);
    training_begin(&r, &c);
    if (!test_true("a run to watch", r.loader && training_steps(&r, first, &report))) return;
    before = watch.calls;
    test_true("steady steps", training_steps(&r, steps, &report));
    snprintf(what, sizeof what, "%s, %d threads: allocations in %d steady steps", t->name,
             t->config.threads, steps);
    test_equal(what, (double)(watch.calls - before), 0);
    test_fine(r.ctx, what);
    training_end(&r);
    test_equal("blocks that were never freed", (double)watch.live, 0);
    test_equal("bad frees", (double)watch.bad_frees, 0);
}

/* Eight steps, by which queues are in use, need what the plan says. */
TEST_FN void training_planned(const training *t)
{
    char what[128];
    size_t bytes;
    training_run r;
    training_begin(&r, t);
    if (!test_true("begin", r.loader && ctr_method_begin(r.method, r.loader))) return;
    bytes = ctr_method_plan(r.method, t->loader.batch, t->side, t->side, 3);
    ctr_step_reserve(r.ctx, bytes);
    test_true("planned steps", training_steps(&r, 8, NULL));
    snprintf(what, sizeof what, "%s: the plan is the slab's peak, %lu KB", t->name,
             (unsigned long)(bytes >> 10));
    test_true(what, bytes >= ctr_memory_stats(r.ctx).slab_peak &&
              bytes <= ctr_memory_stats(r.ctx).slab_peak + 64);
    training_end(&r);
}

/* ------------------------------------------------------------------- the n-th allocation fails */

enum { TRAINING_ALL_AFTER = 1, /* all that follow fail too, until the error is cleared */
       TRAINING_FILES = 2 };   /* a checkpoint is saved and loaded as well */

/* What a run in which nothing fails looks like, and the memory of one in which something does. */
typedef struct training_states_ {
    test_allocator watch;
    uint64_t hash[3];               /* at first, after one step, after two */
    uint64_t before[2];             /* when the step's batch is there, and its epoch has begun */
    unsigned char *file[2];         /* checkpoints after step 1 and step 2 */
    size_t size[2];
} training_states_;

/* The hash needs memory of its own: not counted, never refused. */
TEST_FN uint64_t training_quiet_hash_(training_states_ *s, ctr_method *method)
{
    long calls = s->watch.calls, fail_at = s->watch.fail_at;
    uint64_t hash;
    s->watch.fail_at = 0;
    hash = ctr_method_hash(method);
    s->watch.calls = calls;
    s->watch.fail_at = fail_at;
    return hash;
}

TEST_FN void training_expect_(training_states_ *s, const training *t, int files)
{
    ctr_batch batch;
    ctr_position p;
    training_run r;
    int i;
    memset(&p, 0, sizeof p);
    training_begin(&r, t);
    if (r.loader) s->hash[0] = training_quiet_hash_(s, r.method);
    for (i = 0; i < 2 && r.loader; i++) {
        int next = training_next(&r, &batch);
        s->before[i] = training_quiet_hash_(s, r.method);
        test_true("expected step", next && ctr_method_step(r.method, &batch, TRAINING_RATE, NULL));
        s->hash[i + 1] = training_quiet_hash_(s, r.method);
        if (!files) continue;
        p.step = i + 1;
        test_true("expected save", ctr_checkpoint_save(r.method, "fail.ctr", &p));
        s->file[i] = model_file("fail.ctr", &s->size[i]);
    }
    training_end(&r);
    test_true("three different states", s->hash[0] && s->hash[0] != s->hash[1] &&
              s->hash[1] != s->hash[2] && (!files || (s->file[0] && s->file[1])));
}

/* One clear line about memory; then the error is cleared and memory is there again. */
TEST_FN int training_fail_clean_(training_run *r, training_states_ *s)
{
    int ok = ctr_error(r->ctx) == CTR_E_MEMORY && strlen(ctr_error_text(r->ctx)) > 10 &&
             !strchr(ctr_error_text(r->ctx), '\n');
    if (!ok) printf("     status %d: %s\n", (int)ctr_error(r->ctx), ctr_error_text(r->ctx));
    ctr_error_clear(r->ctx);
    s->watch.fail_at = 0;
    return ok;
}

/* Step i, tried again if memory ran out; 0 if anything is not as it should be. The beginning of
   an epoch fails as a whole; if its batch alone did, it is not made again. */
TEST_FN int training_fail_step_(training_run *r, training_states_ *s, int i)
{
    ctr_report report;
    ctr_batch batch;
    if (!training_next(r, &batch)) {
        uint64_t hash;
        if (!training_fail_clean_(r, s)) return 0;
        hash = training_quiet_hash_(s, r->method);
        if (hash != s->before[i] && hash != s->hash[i]) return 0;
        if (hash == s->before[i] ? !ctr_loader_next(r->ctx, r->loader, &batch)
                                 : !training_next(r, &batch)) return 0;
    }
    if (training_quiet_hash_(s, r->method) != s->before[i]) return 0;
    if (!ctr_method_step(r->method, &batch, TRAINING_RATE, &report)) {
        if (!training_fail_clean_(r, s) || training_quiet_hash_(s, r->method) != s->before[i] ||
            !ctr_method_step(r->method, &batch, TRAINING_RATE, &report)) return 0;
    }
    return training_quiet_hash_(s, r->method) == s->hash[i + 1];
}

/* The checkpoint of step 1 is there; that of step 2 is to replace it. */
TEST_FN int training_fail_save_(training_run *r, training_states_ *s)
{
    ctr_position p;
    unsigned char *bytes;
    size_t size;
    int ok, which;
    memset(&p, 0, sizeof p);
    p.step = 2;
    if (!model_file_write("fail.ctr", s->file[0], s->size[0])) return 0;
    which = ctr_checkpoint_save(r->method, "fail.ctr", &p);
    bytes = model_file("fail.ctr", &size);
    ok = bytes && size == s->size[which] && memcmp(bytes, s->file[which], size) == 0;
    free(bytes);
    if (!which) {
        ok = training_fail_clean_(r, s) && ok &&
             training_quiet_hash_(s, r->method) == s->hash[2];
        memset(&p, 0, sizeof p);
        ok = ok && ctr_checkpoint_load(r->method, "fail.ctr", &p) && p.step == 1 &&
             training_quiet_hash_(s, r->method) == s->hash[1];
    }
    return ok;
}

/* Loading it into another method, which stays as it is when that fails. */
TEST_FN int training_fail_load_(training_run *r, training_states_ *s)
{
    if (!model_file_write("fail.ctr", s->file[0], s->size[0])) return 0;
    if (!ctr_checkpoint_load(r->method, "fail.ctr", NULL)) {
        if (!training_fail_clean_(r, s) || training_quiet_hash_(s, r->method) != s->hash[2] ||
            !ctr_checkpoint_load(r->method, "fail.ctr", NULL)) return 0;
    }
    return training_quiet_hash_(s, r->method) == s->hash[1];
}

/* 1: as it should be; *whole: the run got to its end before the allocation that should fail. */
TEST_FN int training_fail_run_(const training *t, training_states_ *s, int how, long n, int *whole)
{
    int ok = 1;
    training_run r;
    s->watch.calls = 0;
    s->watch.fail_at = n;
    s->watch.fail_after_too = how & TRAINING_ALL_AFTER;
    *whole = 0;
    training_begin(&r, t);
    if (r.loader) {
        ok = training_quiet_hash_(s, r.method) == s->hash[0] && training_fail_step_(&r, s, 0) &&
             training_fail_step_(&r, s, 1);
        if (how & TRAINING_FILES) {
            ok = ok && training_fail_save_(&r, s);
            if (ok && s->watch.fail_at) ok = training_fail_load_(&r, s);
        }
        *whole = s->watch.calls < n;
    } else if (r.ctx) {
        ok = training_fail_clean_(&r, s);
    }
    s->watch.fail_at = 0;
    if (r.ctx && ctr_error(r.ctx) != CTR_OK) ok = 0;
    training_end(&r);
    return ok && s->watch.live == 0 && s->watch.bad_frees == 0;
}

/* Two steps of 4 of 12 pictures, again and again: of each run another allocation fails, the 1st,
   the (1 + stride)th, ..., until there are no more. What failed leaves the state as it was and
   works when it is tried again. how: 0, or of TRAINING_ALL_AFTER and TRAINING_FILES. */
TEST_FN void training_failing_allocations(const training *t, int how, long stride)
{
    training c = *t;
    training_states_ s;
    long n, runs = 0, bad = 0;
    int whole = 0;
    char what[128];
    memset(&s, 0, sizeof s);
    c.config.allocator = test_allocator_init(&s.watch);
    c.images = 12;
    c.loader.batch = 4;
    training_expect_(&s, &c, how & TRAINING_FILES);
    for (n = 1; !whole && n < 100000 && bad < 5; n += stride, runs++)
        if (!training_fail_run_(&c, &s, how, n, &whole)) {
            printf("     %s: allocation %ld: live %ld, bad frees %ld\n", t->name, n, s.watch.live,
                   s.watch.bad_frees);
            bad++;
            whole = 0;
        }
    snprintf(what, sizeof what, "%s: bad ones of %ld runs", t->name, runs);
    test_equal(what, (double)bad, 0);
    /* a device's memory is not the allocator's: fewer calls can fail */
    test_true("the last run met no failure", whole && runs > (test_on_device() ? 1 : 3));
    free(s.file[0]);
    free(s.file[1]);
    if (how & TRAINING_FILES) remove("fail.ctr");
}

#endif /* CTR_TEST_TRAINING_H */
