/* test_threads.c - the pool: every chunk once, workers by number, a background job beside others,
 * notes instead of errors, memory from workers, two contexts at once.
 * run: float asan tsan nothreads
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#include "test.h"

#include <pthread.h>

enum { MOST = 5000 };

typedef struct job {
    ctr_ctx *ctx;
    int times[MOST];            /* how often each chunk ran; a chunk writes to its own place */
    int worker_of[MOST];
    int busy[64];               /* a worker is in a chunk: written by that worker alone */
    int clashes[64];
    ctr_note_ notes[MOST];
    double sums[MOST];
    int workers;
} job;

/* Some work of uneven length. */
static double work(int64_t chunk)
{
    double s = 0;
    int64_t i, n = 200 + 37 * (chunk % 13);
    for (i = 0; i < n; i++) s += sin((double)(i + chunk));
    return s;
}

static void run_chunk(void *arg, int64_t chunk, int worker)
{
    job *j = (job *)arg;
    if (worker < 0 || worker >= j->workers) {
        j->times[chunk] += 100;
        return;
    }
    if (j->busy[worker]) j->clashes[worker]++;
    j->busy[worker] = 1;
    j->times[chunk]++;
    j->worker_of[chunk] = worker;
    j->sums[chunk] = work(chunk);
    j->busy[worker] = 0;
}

static void check_job(const char *what, const job *j, int64_t chunks)
{
    int64_t i, wrong = 0, wrong_sum = 0;
    int k, clashes = 0;
    for (i = 0; i < MOST; i++) wrong += j->times[i] != (i < chunks);
    for (i = 0; i < chunks; i++) wrong_sum += j->sums[i] != work(i);
    for (k = 0; k < 64; k++) clashes += j->clashes[k];
    test_equal(what, (double)wrong, 0);
    test_equal("results that are wrong", (double)wrong_sum, 0);
    test_equal("workers that were in two chunks at once", clashes, 0);
}

static job *job_new(ctr_ctx *ctx)
{
    job *j = (job *)test_alloc(sizeof *j);
    memset(j, 0, sizeof *j);
    j->ctx = ctx;
    j->workers = ctr_threads(ctx);
    return j;
}

static void test_parallel(void)
{
    static const int64_t chunks[] = { 0, 1, 2, 3, 7, 64, 1000, 5000 };
    static const int threads[] = { 1, 2, 3, 7, 64 };
    size_t i, t;
    int rounds;
    test_group("every chunk runs once");
    for (t = 0; t < sizeof threads / sizeof *threads; t++) {
        ctr_ctx *ctx = test_ctx(threads[t], CTR_KERNELS_AUTO);
        test_true("at most as many threads as asked for", ctr_threads(ctx) <= threads[t]);
        test_equal("both names of the number", ctr_threads(ctx), ctr_threads_(ctx));
        for (i = 0; i < sizeof chunks / sizeof *chunks; i++)
            for (rounds = 0; rounds < 5; rounds++) {
                job *j = job_new(ctx);
                ctr_parallel_(ctx, chunks[i], run_chunk, j);
                check_job("chunks that did not run exactly once", j, chunks[i]);
                free(j);
            }
        ctr_ctx_destroy(ctx);
    }
}

/* A job in the background, others in front of it, then wait: all of both have run. */
static void test_background(void)
{
    static const int threads[] = { 1, 2, 5 };
    size_t t;
    int round, i;
    test_group("a background job");
    for (t = 0; t < sizeof threads / sizeof *threads; t++) {
        ctr_ctx *ctx = test_ctx(threads[t], CTR_KERNELS_AUTO);
        for (round = 0; round < 20; round++) {
            job *back = job_new(ctx), *front[4];
            ctr_background_start_(ctx, 300, run_chunk, back);
            for (i = 0; i < 4; i++) {
                front[i] = job_new(ctx);
                ctr_parallel_(ctx, 40, run_chunk, front[i]);
                check_job("chunks of a job in front", front[i], 40);
                free(front[i]);
            }
            ctr_background_wait_(ctx);
            test_true("nothing is under way after the wait", !ctr_background_busy_(ctx));
            check_job("chunks of the job behind", back, 300);
            free(back);
        }
        ctr_background_wait_(ctx); /* none is there: returns */
        ctr_ctx_destroy(ctx);
    }
}

/* Notes: the first of a slot stays, and reporting makes it the context's error. */
static void note_chunk(void *arg, int64_t chunk, int worker)
{
    job *j = (job *)arg;
    (void)worker;
    if (chunk % 10 != 3) return;
    ctr_note_set_(&j->notes[chunk], CTR_E_FORMAT, "chunk %d", (int)chunk);
    ctr_note_set_(&j->notes[chunk], CTR_E_VALUE, "not this one");
}

static void test_notes(void)
{
    ctr_ctx *ctx = test_ctx(3, CTR_KERNELS_AUTO);
    job *j = job_new(ctx);
    int i;
    test_group("notes of workers");
    ctr_parallel_(ctx, 100, note_chunk, j);
    test_equal("workers leave the context's error alone", ctr_error(ctx), CTR_OK);
    for (i = 0; i < 100; i++) ctr_note_report_(ctx, &j->notes[i]);
    test_equal("the first note becomes the error", ctr_error(ctx), CTR_E_FORMAT);
    test_text("with its text", ctr_error_text(ctx), "chunk 3");
    free(j);
    ctr_ctx_destroy(ctx);
}

/* Memory from workers: the hook is never called by two at a time (its counters are plain
   numbers, so a race would lose counts, and the thread sanitizer would see it). */
static void memory_chunk(void *arg, int64_t chunk, int worker)
{
    job *j = (job *)arg;
    size_t size = (size_t)(chunk % 50) * 16;
    char *p = (char *)ctr_try_alloc_(j->ctx, size);
    (void)worker;
    if (!p) return;
    memset(p, (int)chunk, size);
    j->times[chunk] = 1;
    ctr_free_host_(j->ctx, p, size);
}

static void test_memory_of_workers(void)
{
    test_allocator hook;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    job *j;
    long before;
    int i, got = 0;
    test_group("memory from workers");
    config.allocator = test_allocator_init(&hook);
    config.threads = 4;
    ctx = ctr_ctx_create(&config);
    j = job_new(ctx);
    before = hook.calls;
    ctr_parallel_(ctx, 4000, memory_chunk, j);
    for (i = 0; i < 4000; i++) got += j->times[i];
    test_equal("chunks that got their memory", got, 4000);
    test_equal("calls of the hook", (double)(hook.calls - before), 4000);
    hook.fail_at = hook.calls + 1;
    hook.fail_after_too = 1;
    memset(j->times, 0, sizeof j->times);
    ctr_parallel_(ctx, 100, memory_chunk, j);
    for (got = 0, i = 0; i < 100; i++) got += j->times[i];
    test_equal("chunks that got memory where there is none", got, 0);
    test_equal("which is no error yet", ctr_error(ctx), CTR_OK);
    free(j);
    ctr_ctx_destroy(ctx);
    test_equal("blocks left", (double)hook.live, 0);
    test_equal("bad frees", (double)hook.bad_frees, 0);
}

/* Two contexts in two threads of the host never meet. */
typedef struct host_thread {
    int number;
    ctr_real out[8];
    ctr_status status;
} host_thread;

static void *host_main(void *arg)
{
    host_thread *h = (host_thread *)arg;
    int64_t shape[2] = { 64, 64 }, i;
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    ctr_tensor *x, *y;
    ctr_real v[4096];
    int step;
    config.threads = 2;
    ctx = ctr_ctx_create(&config);
    if (!ctx) return NULL;
    x = ctr_tensor_create(ctx, CTR_F32, 2, shape, 1);
    for (i = 0; i < 4096; i++) v[i] = (ctr_real)((double)((i * 7 + h->number) % 11) / 11);
    ctr_tensor_write(ctx, x, v, 4096);
    for (step = 0; step < 20; step++) {
        ctr_step_begin(ctx);
        y = ctr_softmax(ctx, ctr_matmul(ctx, x, 0, x, 1));
        ctr_backward(ctx, ctr_sum(ctx, ctr_mul(ctx, y, y), -1));
        ctr_tensor_read_grad(ctx, x, v, 4096);
        ctr_step_end(ctx);
    }
    memcpy(h->out, v, sizeof h->out);
    h->status = ctr_error(ctx);
    ctr_tensor_destroy(ctx, x);
    ctr_ctx_destroy(ctx);
    return NULL;
}

static void test_two_contexts(void)
{
    host_thread alone[2], both[2];
    pthread_t threads[2];
    int i, started = 0;
    test_group("two contexts in two threads");
    memset(alone, 0, sizeof alone);
    memset(both, 0, sizeof both);
    for (i = 0; i < 2; i++) {
        alone[i].number = both[i].number = i;
        host_main(&alone[i]);
    }
    for (i = 0; i < 2; i++) started += pthread_create(&threads[i], NULL, host_main, &both[i]) == 0;
    for (i = 0; i < started; i++) pthread_join(threads[i], NULL);
    test_equal("threads that started", started, 2);
    for (i = 0; i < 2; i++) {
        test_equal("no error", both[i].status, CTR_OK);
        test_bytes("the same result as alone", both[i].out, alone[i].out, sizeof alone[i].out);
    }
    test_true("the two are not equal by chance",
              memcmp(alone[0].out, alone[1].out, sizeof alone[0].out) != 0);
}

/* Which kernels have the same bits, by name. */
static void test_names(void)
{
    test_group("kernels that have the same bits");
    test_true("avx2, avx2", ctr_kernels_alike_("avx2", "avx2"));
    test_true("avx512, avx2", ctr_kernels_alike_("avx512", "avx2"));
    test_true("both direct", ctr_kernels_alike_("avx2-direct", "avx512-direct"));
    test_true("one direct", !ctr_kernels_alike_("avx512", "avx2-direct"));
    test_true("scalar, avx2", !ctr_kernels_alike_("scalar", "avx2"));
    test_true("neon, avx2", !ctr_kernels_alike_("neon", "avx2"));
}

int main(int argc, char **argv)
{
    test_begin("test_threads", argc, argv);
    test_names();
    test_parallel();
    test_background();
    test_notes();
    test_memory_of_workers();
    test_two_contexts();
    return test_end();
}
