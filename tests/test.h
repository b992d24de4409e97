/* test.h - the harness of every test program.
 *
 * A test is one comparison: it prints what was compared, how far apart it was and how far it may
 * be. There is no way to pass without a comparison: an error that is not a number fails, and so
 * does a program that compared nothing.
 *
 *     int main(int argc, char **argv)
 *     {
 *         test_begin("test_x", argc, argv);
 *         test_error("gelu 37 dx", error, 1e-8);     error <= bound
 *         test_true("the slab is kept", a == b);
 *         return test_end();               last line: "test_x: N passed, N failed, N skipped"
 *     }
 *
 * Options of every program: --quick (a smaller run), --golden DIR, --verbose (print passed tests
 * too; the default prints what failed and one line for every group).
 */
#ifndef CTR_TEST_H
#define CTR_TEST_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* mmap and fork under -std=c99, for tests: the library needs neither */
#endif

#ifdef CONTRASTIVE_STATIC
#define CONTRASTIVE_IMPLEMENTATION
#endif
#include "../contrastive.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 7
#pragma GCC diagnostic ignored "-Wformat-truncation" /* a long name may be cut */
#endif
#if defined(__GNUC__)
#define TEST_FN __attribute__((unused)) static
#else
#define TEST_FN static
#endif

#define TEST_DOUBLE (sizeof(ctr_real) == 8)
#define CTR_TEST_R(x) ((ctr_real)(x))

typedef struct test_state {
    const char *name, *golden;
    int passed, failed, skipped, quick, verbose;
    int group_passed, group_failed, group_skipped;
    double group_worst;             /* the largest error / bound of the group */
    char group[128], group_what[160];
    double rounding;                /* what the device's products round, in units of float's */
} test_state;

static test_state test_;

/* A bound for each of the two number types. */
TEST_FN double test_bound(double for_double, double for_float)
{
    return TEST_DOUBLE ? for_double : for_float * test_.rounding;
}

TEST_FN int test_quick(void) { return test_.quick; }

#ifdef CONTRASTIVE_CUDA
/* ------------------------------------------------------------------------------------ on a GPU */

/* With --device cuda, cuda:tf32 or cuda:bf16 every context that names no device is on that one. */
static const ctr_device *test_device_;

TEST_FN ctr_ctx *test_ctx_create_(const ctr_config *config)
{
    ctr_config c = config ? *config : ctr_config_default();
    if (!c.device) c.device = test_device_;
    return ctr_ctx_create(&c);
}

TEST_FN void test_device_open_(const char *name)
{
    ctr_cuda_config config = ctr_cuda_config_default();
    char text[400] = "it is cuda, cuda:tf32 or cuda:bf16";
    if (strcmp(name, "cuda:tf32") == 0) config.math = CTR_CUDA_TF32;
    if (strcmp(name, "cuda:bf16") == 0) config.math = CTR_CUDA_BF16;
    test_.rounding = config.math == CTR_CUDA_BF16 ? 200 : config.math == CTR_CUDA_TF32 ? 20 : 1;
    if (strcmp(name, "cuda") == 0 || test_.rounding > 1)
        test_device_ = ctr_cuda_open(&config, text, sizeof text);
    if (test_device_) return;
    fprintf(stderr, "%s: --device %s: %s\n", test_.name, name, text);
    exit(2);
}
TEST_FN void test_device_close_(void) { ctr_cuda_close(test_device_); }
TEST_FN int test_on_device(void) { return test_device_ != NULL; }
/* For a context that must stay on the CPU, whatever the others do. */
TEST_FN ctr_ctx *test_host_create(const ctr_config *config) { return ctr_ctx_create(config); }
#define ctr_ctx_create test_ctx_create_
#else
TEST_FN int test_on_device(void) { return 0; }
TEST_FN ctr_ctx *test_host_create(const ctr_config *config) { return ctr_ctx_create(config); }
TEST_FN void test_device_open_(const char *name)
{
    fprintf(stderr, "%s: --device %s: built without CONTRASTIVE_CUDA\n", test_.name, name);
    exit(2);
}
TEST_FN void test_device_close_(void) {}
#endif

TEST_FN void test_begin(const char *name, int argc, char **argv)
{
    int i;
    memset(&test_, 0, sizeof test_);
    test_.name = name;
    test_.rounding = 1;
#ifdef TEST_DIR
    test_.golden = TEST_DIR "/golden";
#else
    test_.golden = "tests/golden";
#endif
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) test_.quick = 1;
        else if (strcmp(argv[i], "--verbose") == 0) test_.verbose = 1;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) test_device_open_(argv[++i]);
        else if (strcmp(argv[i], "--golden") == 0 && i + 1 < argc) test_.golden = argv[++i];
        else {
            fprintf(stderr, "%s: unknown option %s\n", name, argv[i]);
            exit(2);
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 1 << 12); /* what was printed before a crash is the clue */
}

/* Ends the group that is open with one line of what it compared. */
TEST_FN void test_group_end_(void)
{
    if (!test_.group[0]) return;
    if (test_.group_passed + test_.group_failed == 0 && test_.group_skipped > 0) {
        test_.group[0] = 0; /* that has been said */
        return;
    }
    if (test_.group_passed + test_.group_failed == 0) {
        printf("FAIL %s: nothing was compared\n", test_.group);
        test_.failed++;
    } else if (test_.group_what[0]) {
        printf("%s %s: %d of %d hold; closest to its bound: %s\n",
               test_.group_failed ? "FAIL" : "ok  ", test_.group, test_.group_passed,
               test_.group_passed + test_.group_failed, test_.group_what);
    } else {
        printf("%s %s: %d of %d hold\n", test_.group_failed ? "FAIL" : "ok  ", test_.group,
               test_.group_passed, test_.group_passed + test_.group_failed);
    }
    test_.group[0] = 0;
}

/* Comparisons that follow belong together and share a line in the output. */
TEST_FN void test_group(const char *name)
{
    test_group_end_();
    snprintf(test_.group, sizeof test_.group, "%s", name);
    test_.group_passed = test_.group_failed = test_.group_skipped = 0;
    test_.group_worst = -1;
    test_.group_what[0] = 0;
}

TEST_FN void test_count_(int ok)
{
    if (ok) {
        test_.passed++;
        test_.group_passed++;
    } else {
        test_.failed++;
        test_.group_failed++;
    }
}

/* error <= bound; whatever is not a finite number fails, by its bits, so -ffast-math cannot
   help. */
TEST_FN int test_error(const char *what, double error, double bound)
{
    int ok = golden_finite_(error) && error <= bound;
    test_count_(ok);
    if (!ok || test_.verbose || !test_.group[0])
        printf("%s %s: error %.3g, bound %.3g\n", ok ? "ok  " : "FAIL", what, error, bound);
    if (ok && bound > 0 && error / bound > test_.group_worst) {
        test_.group_worst = error / bound;
        snprintf(test_.group_what, sizeof test_.group_what, "%s, error %.2g, bound %.2g", what,
                 error, bound);
    }
    return ok;
}

TEST_FN int test_true(const char *what, int holds)
{
    test_count_(holds != 0);
    if (!holds || test_.verbose || !test_.group[0])
        printf("%s %s\n", holds ? "ok  " : "FAIL", what);
    return holds;
}

TEST_FN int test_equal(const char *what, double got, double expected)
{
    int ok = golden_finite_(got) && got == expected;
    test_count_(ok);
    if (!ok || test_.verbose || !test_.group[0])
        printf("%s %s: got %.17g, expected %.17g\n", ok ? "ok  " : "FAIL", what, got, expected);
    return ok;
}

TEST_FN int test_text(const char *what, const char *got, const char *expected)
{
    int ok = strcmp(got, expected) == 0;
    test_count_(ok);
    if (!ok || test_.verbose || !test_.group[0])
        printf("%s %s: got \"%s\", expected \"%s\"\n", ok ? "ok  " : "FAIL", what, got, expected);
    return ok;
}

TEST_FN int test_bytes(const char *what, const void *a, const void *b, size_t size)
{
    size_t i = 0;
    int ok;
    while (i < size && ((const char *)a)[i] == ((const char *)b)[i]) i++;
    ok = i == size;
    test_count_(ok);
    if (!ok) printf("FAIL %s: byte %lu of %lu differs\n", what, (unsigned long)i,
                    (unsigned long)size);
    else if (test_.verbose || !test_.group[0])
        printf("ok   %s: %lu bytes equal\n", what, (unsigned long)size);
    return ok;
}

TEST_FN void test_skip(const char *what, const char *why)
{
    test_.skipped++;
    test_.group_skipped++;
    printf("skip %s: %s\n", what, why);
}

TEST_FN int test_end(void)
{
    test_group_end_();
    if (test_.passed + test_.failed + test_.skipped == 0) {
        printf("FAIL %s compared nothing\n", test_.name);
        test_.failed++;
    }
    test_device_close_();
    printf("%s: %d passed, %d failed, %d skipped\n", test_.name, test_.passed, test_.failed,
           test_.skipped);
    return test_.failed != 0;
}

/* ---------------------------------------------------------------------------- numbers, contexts */

TEST_FN void *test_alloc(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p) {
        fprintf(stderr, "%s: out of memory in the test itself\n", test_.name);
        exit(3);
    }
    return p;
}

TEST_FN double *test_doubles(int64_t n)
{
    double *p = (double *)test_alloc((size_t)n * sizeof *p);
    memset(p, 0, (size_t)n * sizeof *p);
    return p;
}

TEST_FN ctr_real *test_reals(int64_t n)
{
    ctr_real *p = (ctr_real *)test_alloc((size_t)n * sizeof *p);
    memset(p, 0, (size_t)n * sizeof *p);
    return p;
}

/* scale * hash of the name, as in the golden files; rounded to what both number types hold. */
TEST_FN void test_fill(const char *name, double *v, int64_t n, double scale)
{
    int64_t i;
    golden_fill(name, v, (size_t)n, scale);
    for (i = 0; i < n; i++) v[i] = (double)(float)v[i];
}

TEST_FN void test_fill_real(const char *name, ctr_real *v, int64_t n, double scale)
{
    double *d = test_doubles(n);
    int64_t i;
    test_fill(name, d, n, scale);
    for (i = 0; i < n; i++) v[i] = (ctr_real)d[i];
    free(d);
}

/* max |a - b| / (relative max |b| + absolute): at most 1 when a is close enough. */
TEST_FN double test_ratio(const ctr_real *a, const double *b, int64_t n, double relative,
                          double absolute)
{
    double worst = 0, largest = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        if (!golden_finite_((double)a[i])) return GOLDEN_BAD;
        if (fabs((double)a[i] - b[i]) > worst) worst = fabs((double)a[i] - b[i]);
        if (fabs(b[i]) > largest) largest = fabs(b[i]);
    }
    return worst / (relative * largest + absolute);
}

/* The same as a test: prints the largest error against relative * max |b| + absolute. */
TEST_FN int test_near(const char *what, const ctr_real *a, const double *b, int64_t n,
                      double relative, double absolute)
{
    double largest = 0, ratio = test_ratio(a, b, n, relative, absolute), bound;
    int64_t i;
    for (i = 0; i < n; i++)
        if (fabs(b[i]) > largest) largest = fabs(b[i]);
    bound = relative * largest + absolute;
    return test_error(what, ratio >= GOLDEN_BAD ? ratio : ratio * bound, bound);
}

/* How far v is from a record of a golden file, in either number type. */
TEST_FN double test_digest(golden_file *g, const char *key, const ctr_real *v, int64_t n,
                           double floor_rms)
{
    return golden_digest_error_(g, key, v, !TEST_DOUBLE, (size_t)n, floor_rms);
}

TEST_FN int test_golden_open(golden_file *g, const char *file)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", test_.golden, file);
    if (golden_open(g, path)) return 1;
    test_true(file, 0);
    return 0;
}

TEST_FN ctr_ctx *test_ctx(int threads, ctr_kernels kernels)
{
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    config.threads = threads;
    config.kernels = kernels;
    ctx = ctr_ctx_create(&config);
    if (!ctx) {
        fprintf(stderr, "%s: no context\n", test_.name);
        exit(3);
    }
    return ctx;
}

/* The error that is pending must have this status and be one clear line that holds `word`; it is
   cleared. */
TEST_FN int test_fails(ctr_ctx *ctx, const char *what, ctr_status status, const char *word)
{
    const char *text = ctr_error_text(ctx);
    int ok = ctr_error(ctx) == status && strstr(text, word) != NULL && !strchr(text, '\n') &&
             strlen(text) > 8;
    test_count_(ok);
    if (!ok)
        printf("FAIL %s: expected %s with \"%s\", got %s \"%s\"\n", what, ctr_status_name(status),
               word, ctr_status_name(ctr_error(ctx)), text);
    else if (test_.verbose || !test_.group[0])
        printf("ok   %s: \"%s\"\n", what, text);
    ctr_error_clear(ctx);
    return ok;
}

/* No error is pending; one that is gets printed and cleared. */
TEST_FN int test_fine(ctr_ctx *ctx, const char *what)
{
    int ok = ctr_error(ctx) == CTR_OK;
    test_count_(ok);
    if (!ok) printf("FAIL %s: %s\n", what, ctr_error_text(ctx));
    else if (test_.verbose) printf("ok   %s: no error\n", what);
    ctr_error_clear(ctx);
    return ok;
}

/* ------------------------------------------------------------------------- a watching allocator */

/* Counts, checks that every block is freed once and with its size, and can fail the n-th call. */
typedef struct test_allocator {
    long calls, live, bad_frees;    /* bad_frees: wrong sizes, unknown blocks */
    size_t live_bytes;
    long fail_at;                   /* the call (from 1) that gets NULL; 0: none */
    int fail_after_too;             /* and all that follow */
} test_allocator;

typedef struct test_block_ {
    size_t size;
    uint64_t mark;
    double pad[6];                  /* 64 bytes on the systems we test on */
} test_block_;

TEST_FN void *test_allocator_alloc_(void *user, size_t size)
{
    test_allocator *a = (test_allocator *)user;
    test_block_ *b;
    a->calls++;
    if (a->fail_at && (a->calls == a->fail_at || (a->fail_after_too && a->calls > a->fail_at)))
        return NULL;
    b = (test_block_ *)malloc(sizeof *b + size);
    if (!b) return NULL;
    b->size = size;
    b->mark = 0x5ca1ab1e0ddba11u;
    memset(b + 1, 0xff, size);      /* NaN as a real, -1 as a number, no pointer */
    a->live++;
    a->live_bytes += size;
    return b + 1;
}

TEST_FN void test_allocator_free_(void *user, void *ptr, size_t size)
{
    test_allocator *a = (test_allocator *)user;
    test_block_ *b = (test_block_ *)ptr - 1;
    if (!ptr || b->mark != 0x5ca1ab1e0ddba11u || b->size != size) {
        a->bad_frees++;
        return;
    }
    a->live--;
    a->live_bytes -= size;
    b->mark = 0;
    memset(ptr, 0xff, size);
    free(b);
}

TEST_FN ctr_allocator test_allocator_init(test_allocator *a)
{
    ctr_allocator hooks;
    memset(a, 0, sizeof *a);
    hooks.user = a;
    hooks.alloc_fn = test_allocator_alloc_;
    hooks.free_fn = test_allocator_free_;
    return hooks;
}

#endif /* CTR_TEST_H */
