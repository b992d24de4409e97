/* test_fit.c - the driver and its checkpoints.
 * run: float double asan nothreads
 *
 * 1. Killed with SIGKILL and resumed is uninterrupted, byte for byte: at each file operation of the
 *    saving, and at twenty random moments.
 * 2. A disk that is full, at each operation of a save, and a file size limit of the system: the old
 *    checkpoint stays.
 * 3. Checkpoints that are truncated, damaged, lie, or belong to another run or network: one clear
 *    line, and the method as it was.
 * 4. Rates, reports, stops, positions.
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* for the file system's hook */
#endif
#include "model.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

/* ------------------------------------------------------------------------------------ a whole run
 */

typedef struct job_config {
    int threads, depth;
    int64_t width, images, batch, epochs, save_every;
    uint64_t seed;
    int resume;
    ctr_last last;
    ctr_optim_kind optim;
    double temperature;
} job_config;

typedef struct job {
    ctr_ctx *ctx;
    ctr_dataset *dataset;
    ctr_loader *loader;
    ctr_method *method;
    uint8_t *pixels;
    ctr_fit_config fit;
} job;

/* Two epochs of five batches, with two images left over. */
static job_config job_config_default(void)
{
    job_config c;
    memset(&c, 0, sizeof c);
    c.threads = 1;
    c.depth = 8;
    c.width = 4;
    c.images = 22;
    c.batch = 4;
    c.epochs = 2;
    c.seed = 1;
    c.optim = CTR_OPTIM_SGD;
    c.temperature = 0.5;
    return c;
}

static void job_begin(job *j, const job_config *c, const char *checkpoint)
{
    ctr_config config = ctr_config_default();
    ctr_simclr_config s = ctr_simclr_default();
    ctr_loader_config l = ctr_loader_config_default();
    ctr_aug_config aug[2];
    memset(j, 0, sizeof *j);
    config.threads = c->threads;
    j->ctx = ctr_ctx_create(&config);
    j->pixels = model_pictures(c->images, 8, NULL, 3);
    j->dataset = ctr_dataset_from_memory(j->ctx, j->pixels, c->images, 8, 8, 3, NULL);
    aug[0] = aug[1] = s.aug = ctr_aug_simclr_default(8);
    l.batch = c->batch;
    l.augs = aug;
    l.seed = c->seed;
    l.last = c->last;
    j->loader = ctr_loader_create(j->ctx, j->dataset, &l);
    s.temperature = c->temperature;
    s.encoder = ctr_resnet_config_default(c->depth);
    s.encoder.width = c->width;
    s.encoder.stem = CTR_STEM_SMALL;
    s.proj_dim = 8;
    s.optim = ctr_optim_config_default(c->optim);
    j->method = ctr_simclr_create(j->ctx, &s);
    j->fit = ctr_fit_default();
    j->fit.epochs = c->epochs;
    j->fit.save_every = c->save_every;
    j->fit.checkpoint = checkpoint;
    j->fit.resume = c->resume;
    j->fit.lr = 0.05;
    if (!j->loader || !j->method) {
        fprintf(stderr, "test_fit: no run: %s\n", ctr_error_text(j->ctx));
        exit(3);
    }
}

static void job_end(job *j)
{
    ctr_method_destroy(j->method);
    ctr_loader_destroy(j->ctx, j->loader);
    ctr_dataset_destroy(j->ctx, j->dataset);
    ctr_ctx_destroy(j->ctx);
    free(j->pixels);
}

static int64_t job_fit(job *j) { return ctr_fit(j->method, j->loader, &j->fit); }

/* A run from beginning to end in this process; the number of steps. */
static int64_t job_whole(const job_config *c, const char *checkpoint)
{
    job j;
    int64_t steps;
    job_begin(&j, c, checkpoint);
    steps = job_fit(&j);
    test_fine(j.ctx, "a whole run");
    job_end(&j);
    return steps;
}

/* ------------------------------------------------------------------------------- killed, resumed
 */

typedef struct killer {
    long operations, writes, at;    /* kill at this one; 0: never */
} killer;

/* Of the many writes of a save every sixteenth counts. */
static int killer_fn(void *user, const char *operation, const char *path)
{
    killer *k = (killer *)user;
    (void)path;
    if (strcmp(operation, "write") == 0 && k->writes++ % 16) return 0;
    if (++k->operations == k->at) raise(SIGKILL);
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The run in a child that dies at file operation `at`, or after `seconds` (both may be 0).
   Returns 1 if it was killed, 0 if it got to its end, -1 if it failed. */
static int child_run(const job_config *config, const char *checkpoint, long at, double seconds)
{
    job_config c = *config;
    struct timespec t;
    int status = 0;
    pid_t pid;
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        ctr_file_hook_ hook;
        killer k;
        job j;
        int64_t steps;
        memset(&k, 0, sizeof k);
        k.at = at;
        hook.user = &k;
        hook.fn = killer_fn;
        c.resume = 1;
        job_begin(&j, &c, checkpoint);
        j.ctx->file_hook = &hook;
        steps = job_fit(&j);
        if (steps < 0) fprintf(stderr, "     child: %s\n", ctr_error_text(j.ctx));
        _exit(steps < 0 ? 1 : 0);
    }
    if (pid < 0) return -1;
    if (seconds > 0) {
        t.tv_sec = (time_t)seconds;
        t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
        nanosleep(&t, NULL);
        kill(pid, SIGKILL);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) { }
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return 1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

/* Dies at operation 1, 2, 3, ... of a run, each time from the beginning; the run that follows
   resumes what is there. */
static void killed_at_operations(const char *name, const job_config *c)
{
    char what[160];
    long at, kills = 0, bad = 0;
    int end = 1;
    job_whole(c, "whole.ctr");
    for (at = 1; end == 1 && at < 200; at += test_quick() ? 7 : 1) {
        remove("killed.ctr");
        end = child_run(c, "killed.ctr", at, 0);
        if (end != 1) break;
        kills++;
        if (child_run(c, "killed.ctr", 0, 0) != 0) bad++;
        else {
            size_t n, m;
            unsigned char *x = model_file("whole.ctr", &n), *y = model_file("killed.ctr", &m);
            if (!x || !y || n != m || memcmp(x, y, n) != 0) {
                printf("     %s: killed at operation %ld: another checkpoint\n", name, at);
                bad++;
            }
            free(x);
            free(y);
        }
    }
    snprintf(what, sizeof what, "%.60s: killed at each of %ld file operations, bad ends", name,
             kills);
    test_equal(what, (double)bad, 0);
    test_true("the last run was not killed", end == 0 && kills > (test_quick() ? 2 : 20));
    remove("whole.ctr");
    remove("killed.ctr");
}

/* A random moment of the time that a run takes, then a second one while it goes on. */
static void killed_at_random(const char *name, const job_config *c, int moments)
{
    static uint32_t seed = 20240229u;
    char what[160];
    double took;
    int i, kills = 0;
    job_whole(c, "whole.ctr");
    took = now();
    remove("killed.ctr");
    child_run(c, "killed.ctr", 0, 0);
    took = now() - took;
    model_same_files("nobody killed", "whole.ctr", "killed.ctr");
    for (i = 0; i < moments; i++) {
        double a = took * (golden_bits(seed, (size_t)(2 * i)) / 16777216.0) + 1e-4;
        double b = took * (golden_bits(seed, (size_t)(2 * i + 1)) / 16777216.0) + 1e-4;
        remove("killed.ctr");
        kills += child_run(c, "killed.ctr", 0, a) == 1;
        if (i % 2) kills += child_run(c, "killed.ctr", 0, b) == 1;
        test_true("the run that follows gets to its end", child_run(c, "killed.ctr", 0, 0) == 0);
        snprintf(what, sizeof what, "%.60s: killed after %.4g of %.4g s", name, a, took);
        model_same_files(what, "whole.ctr", "killed.ctr");
    }
    printf("     %s: %d moments, %d kills met a living run of %.3f s\n", name, moments, kills,
           took);
    if (moments > 2) test_true("kills that met a living run", kills > 0);
    seed++;
    remove("whole.ctr");
    remove("killed.ctr");
}

static void killed(void)
{
    job_config c = job_config_default();
    char name[64];
    int i, moments = test_quick() ? 1 : 5;
    for (i = 0; i < 4; i++) {
        c = job_config_default();
        c.save_every = i;
        c.optim = i % 2 ? CTR_OPTIM_ADAMW : CTR_OPTIM_LARS;
        c.threads = 1 + i % 3;
        snprintf(name, sizeof name, "save_every %d, %d threads", i, c.threads);
        c.images = 14; /* three batches, two left over */
        if (i % 2 == 0) killed_at_operations(name, &c);
        c.width = 16; /* files that take a while */
        killed_at_random(name, &c, moments);
    }
}

/* ------------------------------------------------------------------------------ a disk that is
 * full */

typedef struct fault {
    long operations, at;
    char operation[24];
} fault;

static int fault_fn(void *user, const char *operation, const char *path)
{
    fault *f = (fault *)user;
    (void)path;
    if (++f->operations != f->at) return 0;
    snprintf(f->operation, sizeof f->operation, "%s", operation);
    return ENOSPC;
}

/* Is there anything that a save to the path has begun? */
static int leftovers(const char *path)
{
    char line[200];
    snprintf(line, sizeof line, "ls %.100s.*.tmp >/dev/null 2>&1", path);
    return system(line) == 0;
}

static int file_exists(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f) fclose(f);
    return f != NULL;
}

/* Each operation of a save fails in its turn. Old and new content, and nothing else, may be there.
 */
static void full_disk(void)
{
    job_config c = job_config_default();
    ctr_file_hook_ hook;
    ctr_position p;
    unsigned char *before, *after;
    size_t n, m;
    char what[96];
    fault f;
    job j;
    uint64_t hash;
    int saved = 0;
    job_begin(&j, &c, NULL);
    memset(&p, 0, sizeof p);
    test_true("save", ctr_checkpoint_save(j.method, "old.ctr", &p));
    p.step = 1;
    test_true("save", ctr_checkpoint_save(j.method, "new.ctr", &p));
    before = model_file("old.ctr", &n);
    after = model_file("new.ctr", &m);
    hash = ctr_method_hash(j.method);
    memset(&f, 0, sizeof f);
    hook.user = &f;
    hook.fn = fault_fn;
    j.ctx->file_hook = &hook;
    for (f.at = 1; !saved && f.at < 500; f.at++) {
        unsigned char *is;
        size_t k;
        int in_place;
        f.operations = 0;
        model_file_write("disk.ctr", before, n);
        saved = ctr_checkpoint_save(j.method, "disk.ctr", &p);
        is = model_file("disk.ctr", &k);
        in_place = saved || strcmp(f.operation, "sync folder") == 0;
        snprintf(what, sizeof what, "%s fails", f.operation);
        if (!saved) test_fails(j.ctx, what, CTR_E_FILE, "No space");
        test_true(in_place ? "the new file is there" : "the old file is there",
                  is && (in_place ? k == m && memcmp(is, after, k) == 0
                                  : k == n && memcmp(is, before, k) == 0));
        test_true("no other file is", !leftovers("disk.ctr"));
        free(is);
    }
    test_true("more than five operations can fail", saved && f.at > 6);
    test_true("the method is as it was", ctr_method_hash(j.method) == hash);
    j.ctx->file_hook = NULL;
    test_fine(j.ctx, "full disk");
    free(before);
    free(after);
    job_end(&j);
    remove("old.ctr");
    remove("new.ctr");
    remove("disk.ctr");
}

/* The driver stops with the error; what it had saved before is there and can be resumed. */
static void full_disk_fit(void)
{
    job_config c = job_config_default();
    ctr_file_hook_ hook;
    ctr_position p;
    fault f;
    job j;
    c.save_every = 1;
    job_whole(&c, "whole.ctr");
    job_begin(&j, &c, "disk.ctr");
    memset(&f, 0, sizeof f);
    hook.user = &f;
    hook.fn = fault_fn;
    j.ctx->file_hook = &hook;
    test_true("a save to count its operations", ctr_checkpoint_save(j.method, "disk.ctr", NULL));
    remove("disk.ctr");
    f.at = 3 * f.operations + f.operations / 2; /* in the third step's save */
    test_equal("a disk that fills up while training", (double)job_fit(&j), -1);
    j.ctx->file_hook = NULL;
    test_fails(j.ctx, "a disk that fills up", CTR_E_FILE, "disk.ctr");
    job_end(&j);
    c.resume = 1;
    job_begin(&j, &c, "disk.ctr");
    test_true("what was saved before loads", ctr_checkpoint_load(j.method, "disk.ctr", &p));
    test_true("and is from the middle of the run", p.step > 0 && p.step < 10);
    test_equal("the run goes on to its end", (double)job_fit(&j), (double)(10 - p.step));
    test_fine(j.ctx, "resumed");
    job_end(&j);
    model_same_files("and is the uninterrupted one", "whole.ctr", "disk.ctr");
    remove("whole.ctr");
    remove("disk.ctr");
}

/* The system itself refuses to let a file grow: in a child, whose limit it is. */
static void file_limit(void)
{
    job_config c = job_config_default();
    int status = 0, old = 0;
    pid_t pid;
    size_t n, m;
    unsigned char *a, *b;
    job j;
    job_begin(&j, &c, NULL);
    test_true("save", ctr_checkpoint_save(j.method, "limit.ctr", NULL));
    job_end(&j);
    a = model_file("limit.ctr", &n);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        struct rlimit limit;
        limit.rlim_cur = limit.rlim_max = 1000;
        signal(SIGXFSZ, SIG_IGN);
        c.seed = 2;
        job_begin(&j, &c, NULL);
        j.method->ctx = j.ctx;
        ctr_fit(j.method, j.loader, &j.fit);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(9);
        old = ctr_checkpoint_save(j.method, "limit.ctr", NULL) == 0 &&
              ctr_error(j.ctx) == CTR_E_FILE && strstr(ctr_error_text(j.ctx), "limit.ctr");
        _exit(old ? 0 : 1);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) { }
    test_true("a file that may not grow: an error", WIFEXITED(status) && WEXITSTATUS(status) == 0);
    b = model_file("limit.ctr", &m);
    test_true("the old checkpoint is there", a && b && n == m && memcmp(a, b, n) == 0);
    test_true("and nothing else", !leftovers("limit.ctr"));
    free(a);
    free(b);
    remove("limit.ctr");
}

/* ----------------------------------------------------------------------------- files that are
 * wrong */

/* A load that must fail with one line and leave the method as it was. */
static void bad_load(job *j, const char *what, const char *path, ctr_status status,
                     const char *word)
{
    uint64_t before = ctr_method_hash(j->method);
    ctr_position p;
    memset(&p, 0x55, sizeof p);
    test_equal(what, ctr_checkpoint_load(j->method, path, &p), 0);
    test_fails(j->ctx, what, status, word);
    test_true("the method is as it was", ctr_method_hash(j->method) == before);
}

static void bad_bytes(job *j, const char *what, const unsigned char *bytes, size_t size)
{
    model_file_write("bad.ctr", bytes, size);
    bad_load(j, what, "bad.ctr", CTR_E_FORMAT, "bad.ctr");
}

/* Truncated at 0, 1, ... a step apart; every part of the file damaged by one bit. */
static void damaged(job *j, const unsigned char *good, size_t size)
{
    unsigned char *copy = (unsigned char *)test_alloc(size + 100);
    size_t i, step = size / (test_quick() ? 7 : 40) + 1;
    char what[64];
    for (i = 0; i < size; i += i < 16 ? 1 : step) {
        snprintf(what, sizeof what, "cut to %lu of %lu bytes", (unsigned long)i,
                 (unsigned long)size);
        bad_bytes(j, what, good, i);
    }
    bad_bytes(j, "cut by one byte", good, size - 1);
    memcpy(copy, good, size);
    memset(copy + size, 0, 100);
    bad_bytes(j, "100 bytes too many", copy, size + 100);
    for (i = 0; i < size; i += i < 16 ? 1 : step) {
        memcpy(copy, good, size);
        copy[i] ^= 0x10;
        snprintf(what, sizeof what, "byte %lu damaged", (unsigned long)i);
        bad_bytes(j, what, copy, size);
    }
    memcpy(copy, good, size);
    copy[size - 1] ^= 1;
    bad_bytes(j, "last bit damaged", copy, size);
    memset(copy, 0, size);
    bad_bytes(j, "all zeros", copy, size);
    memset(copy, 0xff, 8);
    bad_bytes(j, "a header of 2^64 bytes", copy, size);
    memcpy(copy, good, size);
    copy[7] = 0x7f;
    bad_bytes(j, "a header longer than the file", copy, size);
    memcpy(copy, "\x89PNG\r\n\x1a\n", 8);
    bad_bytes(j, "a picture", copy, size);
    free(copy);
}

/* What a liar changes in a file that is otherwise whole, checksum included. */
typedef struct lie {
    const char *meta_key, *meta_value;  /* replaced, or left out if the value is NULL */
    const char *drop, *add;             /* a tensor */
    const char *reshape;                /* a tensor of rank 1 that gets a second dimension */
    ctr_file_dtype dtype;               /* of the added one */
} lie;

static int lie_write(ctr_ctx *ctx, const char *from, const char *to, const lie *l)
{
    static const double numbers[4] = { 1, 2, 3, 4 };
    ctr_safetensors *f = ctr_safetensors_open(ctx, from);
    ctr_file_tensor t[256];
    ctr_file_meta m[32];
    int64_t i, n = 0, k = 0;
    int ok;
    if (!f) return 0;
    for (i = 0; i < ctr_safetensors_count(f) && i < 250; i++) {
        t[n] = ctr_safetensors_info(f, i);
        if (l->drop && strcmp(t[n].name, l->drop) == 0) continue;
        if (l->reshape && strcmp(t[n].name, l->reshape) == 0) {
            t[n].rank = 2;
            t[n].shape[1] = t[n].shape[0] / 2;
            t[n].shape[0] = 2;
        }
        n++;
    }
    if (l->add) {
        memset(&t[n], 0, sizeof t[n]);
        t[n].name = l->add;
        t[n].dtype = l->dtype;
        t[n].rank = 1;
        t[n].shape[0] = 4;
        t[n++].data = numbers;
    }
    for (i = 0; i < ctr_safetensors_meta_count(f) && k < 30; i++) {
        m[k] = ctr_safetensors_meta_at(f, i);
        if (strcmp(m[k].key, "xxh64") == 0) continue;
        if (l->meta_key && strcmp(m[k].key, l->meta_key) == 0) {
            if (!l->meta_value) continue;
            m[k].value = l->meta_value;
        }
        k++;
    }
    ok = ctr_safetensors_save(ctx, to, t, n, m, k);
    ctr_safetensors_close(ctx, f);
    return ok;
}

static void liars(job *j, const char *good)
{
    static const struct { const char *what; lie l; const char *word;
    } c[] = {
        {"no format", {"format", NULL, 0, 0, 0, CTR_FILE_F32}, "not a checkpoint"},
        {"another format",
         {"format", "contrastive.h 99", 0, 0, 0, CTR_FILE_F32},
         "not a checkpoint"},
        {"no architecture", {"architecture", NULL, 0, 0, 0, CTR_FILE_F32}, "not a checkpoint"},
        {"another architecture",
         {"architecture",
          "simclr resnet50 width=64 stem=large channels=3 "
          "head=2x2048-128",
          0, 0, 0, CTR_FILE_F32},
         "resnet50"},
        {"no count of the optimiser's steps",
         {"number.optim.steps", NULL, 0, 0, 0, CTR_FILE_F32},
         "optim.steps"},
        {"a count that is no number",
         {"number.optim.steps", "many", 0, 0, 0, CTR_FILE_F32},
         "optim.steps"},
        {"a count below zero", {"number.optim.steps", "-3", 0, 0, 0, CTR_FILE_F32}, "optim.steps"},
        {"a position that is no position", {"position", "here", 0, 0, 0, CTR_FILE_F32}, "position"},
        {"an epoch below zero",
         {"position",
          "epoch -1 batch 0 step 0 images 22 batch_size 4 "
          "epochs 2 seed 1",
          0, 0, 0, CTR_FILE_F32},
         "position"},
        {"a missing tensor",
         {0, 0, "encoder.layer1.0.conv1.weight", 0, 0, CTR_FILE_F32},
         "encoder.layer1.0.conv1.weight"},
        {"a missing momentum",
         {0, 0, "optim.encoder.bn1.bias.m", 0, 0, CTR_FILE_F32},
         "optim.encoder.bn1.bias.m"},
        {"a tensor too many", {0, 0, 0, "encoder.layer9.weight", 0, CTR_FILE_F32}, "tensors"},
        {"another shape", {0, 0, 0, 0, "encoder.bn1.weight", CTR_FILE_F32}, "encoder.bn1.weight"}};
    size_t i;
    for (i = 0; i < sizeof c / sizeof *c; i++) {
        if (!test_true("a lie", lie_write(j->ctx, good, "bad.ctr", &c[i].l))) {
            test_fine(j->ctx, c[i].what);
            continue;
        }
        bad_load(j, c[i].what, "bad.ctr", CTR_E_FORMAT, c[i].word);
    }
    bad_load(j, "a file that is not there", "nowhere.ctr", CTR_E_FILE, "nowhere.ctr");
    bad_load(j, "a folder", "/", CTR_E_FILE, "/");
}

/* Changes the text of the header in place (same length), without a checksum to tell. */
static void edited(job *j, const unsigned char *good, size_t size, const char *what,
                   const char *from, const char *to)
{
    unsigned char *copy = (unsigned char *)test_alloc(size);
    size_t i, n = strlen(from), hits = 0;
    memcpy(copy, good, size);
    for (i = 8; i + n < size && !hits; i++)
        if (memcmp(copy + i, from, n) == 0) {
            memcpy(copy + i, to, n);
            hits++;
        }
    test_true("the header has what is to be edited", hits == 1 && strlen(to) == n);
    bad_bytes(j, what, copy, size);
    free(copy);
}

static void wrong_files(void)
{
    job_config c = job_config_default();
    unsigned char *good;
    size_t size;
    ctr_position p;
    job j, other;
    job_begin(&j, &c, NULL);
    memset(&p, 0, sizeof p);
    test_true("save", ctr_checkpoint_save(j.method, "good.ctr", &p));
    good = model_file("good.ctr", &size);
    job_end(&j);
    c.seed = 7;
    job_begin(&j, &c, NULL);
    j.fit.epochs = 1;
    job_fit(&j); /* now it differs from the file */
    damaged(&j, good, size);
    liars(&j, "good.ctr");
    edited(&j, good, size, "huge dimensions", "\"shape\":[4,3,3,3]", "\"shape\":[4,3,3,9]");
    edited(&j, good, size, "another key in place of the checksum", "\"xxh64\"", "\"xxh65\"");
    edited(&j, good, size, "a name that is there twice", "encoder.bn1.weight",
           "encoder.bn1.bias\",");
    c.width = 5;
    job_begin(&other, &c, NULL);
    bad_load(&other, "another width", "good.ctr", CTR_E_FORMAT, "width=4");
    job_end(&other);
    c.width = 4;
    c.depth = 14;
    job_begin(&other, &c, NULL);
    bad_load(&other, "another depth", "good.ctr", CTR_E_FORMAT, "resnet8");
    job_end(&other);
    c.depth = 8;
    c.optim = CTR_OPTIM_ADAMW;
    job_begin(&other, &c, NULL);
    bad_load(&other, "another optimiser", "good.ctr", CTR_E_FORMAT, "good.ctr");
    job_end(&other);
    test_true("the good one loads", ctr_checkpoint_load(j.method, "good.ctr", &p));
    test_fine(j.ctx, "after all that");
    free(good);
    job_end(&j);
    remove("good.ctr");
    remove("bad.ctr");
}

/* ------------------------------------------------------------------------------------ another run
 */

static void refused_resume(const char *what, const job_config *config, const char *word)
{
    job_config c = *config;
    ctr_position p;
    uint64_t before;
    job j;
    unsigned char *a, *b;
    size_t n, m;
    a = model_file("resume.ctr", &n);
    c.resume = 1;
    job_begin(&j, &c, "resume.ctr");
    before = ctr_method_hash(j.method);
    test_equal("it is known before", ctr_fit_locate(j.method, j.loader, &j.fit, &p), 0);
    test_fails(j.ctx, what, CTR_E_VALUE, word);
    ctr_error_clear(j.ctx);
    test_equal(what, (double)job_fit(&j), -1);
    test_fails(j.ctx, what, CTR_E_VALUE, word);
    test_true("the method is as it was", ctr_method_hash(j.method) == before);
    b = model_file("resume.ctr", &m);
    test_true("so is the file", a && b && n == m && memcmp(a, b, n) == 0);
    free(a);
    free(b);
    job_end(&j);
}

static int stop_at_three(void *user, const ctr_report *report)
{
    (void)user;
    return report->step == 2;
}

/* A position means nothing in another run. */
static void other_runs(void)
{
    job_config c = job_config_default(), d;
    ctr_position p;
    int64_t epoch, batch;
    uint64_t before;
    job j;
    remove("resume.ctr");
    c.resume = 1;
    job_begin(&j, &c, "resume.ctr");
    test_true("where it would begin", ctr_fit_locate(j.method, j.loader, &j.fit, &p) &&
              p.step == 0 && p.images == 22 && p.epochs == 2);
    j.fit.step_fn = stop_at_three;
    test_equal("resume without a file: from the beginning", (double)job_fit(&j), 3);
    test_fine(j.ctx, "stopped");
    job_end(&j);
    d = c;
    d.batch = 5;
    refused_resume("another batch", &d, "batches of 4");
    d = c;
    d.seed = 3;
    refused_resume("another seed", &d, "seed 1");
    d = c;
    d.temperature = 0.25;
    refused_resume("another temperature", &d, "\"temperature=0.5 views=2");
    refused_resume("another temperature", &d, "this run has \"temperature=0.25 views=2");
    d = c;
    d.epochs = 3;
    refused_resume("another number of epochs", &d, "2 epochs");
    d = c;
    d.images = 20;
    refused_resume("other images", &d, "22 images");
    d = c;
    d.last = CTR_LAST_KEEP;
    job_begin(&j, &d, "resume.ctr");
    test_true("the batches of an epoch", ctr_loader_batches(j.loader) == 6);
    job_end(&j);
    job_begin(&j, &c, "resume.ctr");
    before = ctr_method_hash(j.method);
    test_true("found without a change", ctr_fit_locate(j.method, j.loader, &j.fit, &p) &&
              p.step == 3 && ctr_method_hash(j.method) == before);
    ctr_loader_tell(j.loader, &epoch, &batch);
    test_true("in the loader neither", epoch == 0 && batch == 0);
    test_true("the position", ctr_checkpoint_load(j.method, "resume.ctr", &p) && p.epoch == 0 &&
              p.batch == 3 && p.step == 3 && p.images == 22 && p.batch_size == 4 && p.epochs == 2 &&
              p.seed == 1);
    test_equal("this run goes on", (double)job_fit(&j), 7);
    test_true("to its end", ctr_checkpoint_load(j.method, "resume.ctr", &p) && p.epoch == 2 &&
              p.batch == 0 && p.step == 10);
    test_equal("after which nothing is left to do", (double)job_fit(&j), 0);
    test_fine(j.ctx, "resumed");
    job_end(&j);
    d = c;
    d.last = CTR_LAST_KEEP;
    refused_resume("an end of another number of batches", &d, "batches");
    remove("resume.ctr");
}

/* ------------------------------------------------------------------------------ rates and reports
 */

typedef struct watcher {
    const ctr_fit_config *fit;
    ctr_method *method;
    int64_t steps, epochs, batches, stop_step, stop_epoch;
    double rate[64], worst;
    int order;                      /* how often something came out of order */
    uint64_t at_stop;
} watcher;

static int watch_step(void *user, const ctr_report *r)
{
    watcher *w = (watcher *)user;
    if (r->step != w->steps || r->epoch != w->steps / w->batches ||
        r->batch != w->steps % w->batches)
        w->order++;
    if (w->steps < 64) w->rate[w->steps] = r->lr;
    if (!(r->loss > 0 && r->chance > 0 && r->data_seconds >= 0 && r->seconds >= r->data_seconds))
        w->order++;
    w->steps++;
    return w->steps == w->stop_step;
}

static int watch_epoch(void *user, const ctr_report *r)
{
    watcher *w = (watcher *)user;
    w->epochs++;
    if (r->epoch != w->epochs - 1 || r->step != w->epochs * w->batches - 1) w->order++;
    if (!(r->rank >= 1 && r->rank <= 8)) w->order++;
    return w->epochs == w->stop_epoch;
}

static void watch(job *j, watcher *w)
{
    memset(w, 0, sizeof *w);
    w->batches = ctr_loader_batches(j->loader);
    j->fit.user = w;
    j->fit.step_fn = watch_step;
    j->fit.epoch_fn = watch_epoch;
}

/* The driver's rates by their formulas. */
static void rates(void)
{
    job_config c = job_config_default();
    ctr_fit_config d = ctr_fit_default(), e;
    watcher w;
    job j;
    double worst = 0, want;
    int k, i;
    ctr_fit_config_init(&e);
    test_bytes("default and init are one", &d, &e, sizeof d);
    test_true("defaults", d.epochs == 30 && d.schedule == CTR_SCHEDULE_COSINE && d.lr == 0 &&
                              d.batch == 128 && d.end_lr == 0 && d.warmup_epochs == 1 &&
                              !d.checkpoint && !d.save_every && !d.resume);
    c.epochs = 4;
    for (k = 0; k < 4; k++) {
        job_begin(&j, &c, NULL);
        watch(&j, &w);
        j.fit.lr = 0.08;
        j.fit.schedule = k == 2 ? CTR_SCHEDULE_STEPS : k == 3 ? CTR_SCHEDULE_CONSTANT
                                                               : CTR_SCHEDULE_COSINE;
        j.fit.warmup_epochs = k == 1 ? 0.5 : k == 2 ? 0 : 1;
        j.fit.end_lr = k == 1 ? 0.01 : 0;
        j.fit.milestones[0] = 1;
        j.fit.milestones[1] = 3;
        test_equal("steps", (double)job_fit(&j), 20);
        for (i = 0; i < 20; i++) {
            int warm = k == 1 ? 2 : k == 2 ? 0 : 5;
            if (i < warm) want = 0.08 * (i + 1) / warm;
            else if (k == 2) want = 0.08 * (i >= 15 ? 0.01 : i >= 5 ? 0.1 : 1);
            else if (k == 3) want = 0.08;
            else want = j.fit.end_lr + (0.08 - j.fit.end_lr) *
                            (1 + cos(3.14159265358979323846 * (i - warm) / (19 - warm))) / 2;
            worst = golden_max_(worst, fabs(w.rate[i] - want));
        }
        test_error("rates", worst, 1e-15);
        test_equal("epochs", (double)w.epochs, 4);
        test_equal("reports that are out of order or of range", w.order, 0);
        test_fine(j.ctx, "rates");
        job_end(&j);
    }
}

/* Without a rate of its own: the method's, for 256 images, by its rule. */
static void own_rate(void)
{
    job_config c = job_config_default();
    watcher w;
    job j;
    job_begin(&j, &c, NULL);
    watch(&j, &w);
    j.fit.lr = 0;
    j.fit.warmup_epochs = 0;
    j.method->lr = 0.5;
    j.method->lr_rule = CTR_LR_SQRT;
    test_equal("steps", (double)job_fit(&j), 10);
    test_error("the method's own rate", fabs(w.rate[0] - 0.5 * sqrt(4.0 / 256)), 1e-16);
    test_fine(j.ctx, "own rate");
    job_end(&j);
}

/* The driver that makes its own loader is the driver with that loader. */
static void fit_images(void)
{
    job_config c = job_config_default();
    uint64_t hash;
    job j;
    job_begin(&j, &c, NULL);
    test_equal("with a loader", (double)job_fit(&j), 10);
    hash = ctr_method_hash(j.method);
    job_end(&j);
    job_begin(&j, &c, NULL);
    j.fit.batch = 4;
    test_equal("with images", (double)ctr_fit_images(j.method, j.dataset, &j.fit), 10);
    test_true("the same state", ctr_method_hash(j.method) == hash);
    j.fit.batch = 1000;
    test_equal("a batch of all there are", (double)ctr_fit_images(j.method, j.dataset, &j.fit), 2);
    test_fine(j.ctx, "fit_images");
    j.fit.batch = 1;
    test_equal("batches of 1", (double)ctr_fit_images(j.method, j.dataset, &j.fit), -1);
    test_fails(j.ctx, "batches of 1", CTR_E_VALUE, "batch");
    ctr_error_clear(j.ctx);
    j.fit.batch = 4;
    j.fit.schedule = (ctr_schedule_kind)44;
    test_equal("an unknown schedule", (double)ctr_fit_images(j.method, j.dataset, &j.fit), -1);
    test_fails(j.ctx, "an unknown schedule", CTR_E_VALUE, "got 44");
    test_equal("no method", (double)ctr_fit_images(NULL, j.dataset, &j.fit), -1);
    test_equal("no images", (double)ctr_fit_images(j.method, NULL, &j.fit), -1);
    job_end(&j);
}

/* The scores in one call are those of the functions that they stand for. */
static void scores_one(job *j, ctr_method *method, const ctr_dataset *test, const int32_t *labels)
{
    ctr_aug_config clean = ctr_aug_none_default(8), view = ctr_aug_simclr_default(8);
    int64_t d = method ? method->features : 192, n = ctr_dataset_count(j->dataset);
    ctr_real *x = test_reals(2 * n * d);
    ctr_points train, tested;
    ctr_probe_config config = ctr_probe_config_default();
    ctr_probe_result probe;
    ctr_knn_result knn;
    ctr_scores s;
    config.seed = 9;
    test_true("scores", ctr_scores_measure(j->ctx, method, j->dataset, test, &clean, &view, 9, &s));
    ctr_method_represent_dataset(j->ctx, method, j->dataset, &clean, 9, x, NULL);
    train = ctr_points_make(n, d, x, labels);
    if (!test) {
        test_true("left out", ctr_knn_classify(j->ctx, &train, NULL, NULL, NULL, &knn));
        test_equal("k-NN, leave one out", s.knn, 100 * knn.top1);
        test_true("the others are not known",
                  s.linear == -1 && s.linear_10 == -1 && s.knn_views == -1);
    } else {
        ctr_method_represent_dataset(j->ctx, method, test, &clean, 9, x + n * d, NULL);
        tested = ctr_points_make(n, d, x + n * d, labels);
        test_true("k-NN", ctr_knn_classify(j->ctx, &train, &tested, NULL, NULL, &knn));
        test_equal("k-NN", s.knn, 100 * knn.top1);
        test_true("probe", ctr_probe_run(j->ctx, &train, &tested, &config, NULL, &probe));
        test_equal("probe", s.linear, 100 * probe.top1);
        config.labels_per_class = 10;
        test_true("probe", ctr_probe_run(j->ctx, &train, &tested, &config, NULL, &probe));
        test_equal("probe with ten labels", s.linear_10, 100 * probe.top1);
        ctr_method_represent_dataset(j->ctx, method, test, &view, 9, x + n * d, NULL);
        test_true("k-NN", ctr_knn_classify(j->ctx, &train, &tested, NULL, NULL, &knn));
        test_equal("k-NN through a view", s.knn_views, 100 * knn.top1);
        test_true("classes of colour are told apart", s.knn > 40 && s.linear > 40);
    }
    test_fine(j->ctx, "scores");
    free(x);
}

static void scores(void)
{
    enum { N = 66 };
    job_config c = job_config_default();
    int32_t labels[N];
    uint8_t *pixels = model_pictures(N, 8, labels, 3);
    ctr_aug_config clean = ctr_aug_none_default(8);
    ctr_dataset *labelled, *plain;
    uint64_t before;
    ctr_scores s;
    job j;
    job_begin(&j, &c, NULL);
    plain = j.dataset;
    labelled = ctr_dataset_from_memory(j.ctx, pixels, N, 8, 8, 3, labels);
    before = ctr_method_hash(j.method);
    test_true("nothing is labelled: no error",
              ctr_scores_measure(j.ctx, j.method, plain, plain, &clean, &clean, 1, &s));
    test_true("and nothing known", s.knn == -1 && s.linear == -1 && s.knn_views == -1);
    j.dataset = labelled;
    scores_one(&j, j.method, labelled, labels);
    scores_one(&j, NULL, labelled, labels);
    scores_one(&j, j.method, NULL, labels);
    test_true("the method is as it was", ctr_method_hash(j.method) == before);
    j.dataset = plain; /* the loader's */
    ctr_dataset_destroy(j.ctx, labelled);
    job_end(&j);
    free(pixels);
}

/* A stop saves where it is; what follows is the rest. */
static void stops(void)
{
    job_config c = job_config_default();
    watcher w;
    ctr_position p;
    job j;
    int k;
    job_whole(&c, "whole.ctr");
    for (k = 0; k < 4; k++) { /* in an epoch, at its end by step and by epoch, at the very end */
        static const int64_t steps[4] = { 3, 5, 0, 10 };
        c.save_every = k == 0 ? 2 : 0;
        remove("stop.ctr");
        job_begin(&j, &c, "stop.ctr");
        watch(&j, &w);
        w.stop_step = steps[k];
        w.stop_epoch = k == 2;
        test_equal("steps before the stop", (double)job_fit(&j), (double)(k == 2 ? 5 : steps[k]));
        test_true("it saved there", ctr_checkpoint_load(j.method, "stop.ctr", &p) &&
                  p.step == (k == 2 ? 5 : steps[k]));
        test_fine(j.ctx, "stopped");
        job_end(&j);
        c.resume = 1;
        job_begin(&j, &c, "stop.ctr");
        test_equal("steps after it", (double)job_fit(&j), (double)(10 - p.step));
        test_fine(j.ctx, "resumed");
        job_end(&j);
        c.resume = 0;
        model_same_files("the whole run's checkpoint", "whole.ctr", "stop.ctr");
    }
    remove("whole.ctr");
    remove("stop.ctr");
}

static int copy_at_epoch(void *user, const ctr_report *report)
{
    FILE *from, *to;
    int c;
    (void)user;
    if (report->epoch != 0) return 0;
    from = fopen("every.ctr", "rb");
    to = fopen("seen.ctr", "wb");
    while (from && to && (c = getc(from)) != EOF) putc(c, to);
    if (from) fclose(from);
    if (to) fclose(to);
    return 0;
}

/* A run that dies in epoch_fn: the one that goes on from its file calls epoch_fn for that epoch,
 * also when a save is due at each step. */
static void epoch_seen(void)
{
    job_config c = job_config_default();
    watcher w;
    job j;
    c.save_every = 1;
    job_begin(&j, &c, "every.ctr");
    j.fit.epoch_fn = copy_at_epoch;
    test_equal("steps of a run that saves after each", (double)job_fit(&j), 10);
    test_fine(j.ctx, "saves after each step");
    job_end(&j);
    c.resume = 1;
    job_begin(&j, &c, "seen.ctr");
    watch(&j, &w);
    test_equal("steps after the death in epoch_fn", (double)job_fit(&j), 6);
    test_equal("no epoch was lost", (double)w.epochs, 2);
    test_fine(j.ctx, "resumed after a death in epoch_fn");
    job_end(&j);
    model_same_files("the same end", "every.ctr", "seen.ctr");
    remove("every.ctr");
    remove("seen.ctr");
}

/* From where the loader stands; without a checkpoint; a run that goes wrong. */
static void odd_runs(void)
{
    job_config c = job_config_default();
    watcher w;
    job j;
    job_begin(&j, &c, NULL);
    test_true("seek", ctr_loader_seek(j.ctx, j.loader, 1, 2));
    test_equal("from the middle of the second epoch", (double)job_fit(&j), 3);
    test_equal("nothing is left", (double)job_fit(&j), 0);
    test_fine(j.ctx, "from the middle");
    job_end(&j);
    c.epochs = 0;
    job_begin(&j, &c, NULL);
    test_equal("no epochs", (double)job_fit(&j), 0);
    test_fine(j.ctx, "no epochs");
    job_end(&j);
    c.epochs = 2;
    remove("odd.ctr");
    c.save_every = 1;
    job_begin(&j, &c, "odd.ctr");
    watch(&j, &w);
    j.fit.lr = 1e30;
    j.fit.warmup_epochs = 0;
    if (TEST_DOUBLE) j.fit.lr = 1e200;
    test_equal("a rate that blows up", (double)job_fit(&j), -1);
    test_fails(j.ctx, "a rate that blows up", CTR_E_NUMBER, "not finite");
    test_true("its last good step is saved", w.steps > 0 && file_exists("odd.ctr"));
    job_end(&j);
    job_begin(&j, &c, "nowhere/odd.ctr");
    test_equal("a checkpoint where no folder is", (double)job_fit(&j), -1);
    test_fails(j.ctx, "a checkpoint where no folder is", CTR_E_FILE, "odd.ctr");
    job_end(&j);
    remove("odd.ctr");
}

/* Another set of kernels: training goes on, and the log says it. */
static int warned_;
static void listen(void *user, ctr_log_level level, const char *text)
{
    (void)user;
    if (level == CTR_LOG_WARN && strstr(text, "kernels")) warned_++;
}

static void other_kernels(void)
{
    job_config c = job_config_default();
    lie l;
    job j;
    memset(&l, 0, sizeof l);
    l.meta_key = "kernels";
    l.meta_value = "abacus";
    job_begin(&j, &c, NULL);
    test_true("save", ctr_checkpoint_save(j.method, "good.ctr", NULL));
    test_true("another set", lie_write(j.ctx, "good.ctr", "bad.ctr", &l));
    j.ctx->config.log_fn = listen;
    warned_ = 0;
    test_true("its own loads", ctr_checkpoint_load(j.method, "good.ctr", NULL));
    test_equal("without a word", warned_, 0);
    test_true("that of other kernels loads", ctr_checkpoint_load(j.method, "bad.ctr", NULL));
    test_equal("and the log says so", warned_, 1);
    test_fine(j.ctx, "other kernels");
    job_end(&j);
    remove("good.ctr");
    remove("bad.ctr");
}

int main(int argc, char **argv)
{
    test_begin("test_fit", argc, argv);
    test_group("rates and reports");
    rates();
    own_rate();
    fit_images();
    test_group("scores");
    scores();
    test_group("stops");
    stops();
    epoch_seen();
    odd_runs();
    test_group("other runs");
    other_runs();
    other_kernels();
    test_group("files that are wrong");
    wrong_files();
    test_group("a disk that is full");
    full_disk();
    full_disk_fit();
    file_limit();
    test_group("killed and resumed");
    killed();
    return test_end();
}
