/* bench.h - what the benchmark programs share: options, timing, the machine, one output line.
 *
 * A result is one line of key=value pairs on stdout:
 *
 *     bench name=step shape=resnet20 threads=2 value=812.4 unit=views/s ms=315.1 ... load=0.08
 *
 * value is from the median of the repetitions; best_... from the fastest. load is the system's load
 * average over the last minute before the line: above the number of threads, somebody else was
 using * the machine and the figures are too low. A program that finds a wrong result says so on
 stderr * and ends with code 1 before it times anything.
 *
 * C99 that is also C++11; Linux for the peak of memory, the load and the caches (else they are 0).
 * Everything is static. Include it after the library. */

#ifndef BENCH_H
#define BENCH_H

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__GNUC__)
#define BENCH_FN __attribute__((unused)) static
#define BENCH_PRINTF __attribute__((format(printf, 6, 7)))
#define BENCH_DIES __attribute__((noreturn, format(printf, 1, 2)))
#else
#define BENCH_FN static
#define BENCH_PRINTF
#define BENCH_DIES
#endif

#define BENCH_MOST 4000      /* repetitions at most */
#define BENCH_MAX_THREADS 64

/* ---- errors and options
   ------------------------------------------------------------------------ */

BENCH_FN void bench_die(const char *format, ...) BENCH_DIES;
BENCH_FN void bench_die(const char *format, ...)
{
    va_list list;
    fflush(stdout);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(1);
}

/* Every program takes the same ones. */
typedef struct bench_options {
    int threads;          /* --threads N, default: processors online */
    double seconds;       /* --seconds S: measure for about so long each, default 3 */
    const char *only;     /* --only NAME[,NAME]: these cases; "" (default): all of them */
    int checked;          /* --checked 1: results were verified by a run before; default 0 */
} bench_options;

BENCH_FN void bench_parse(bench_options *o, int argc, char **argv, const char *about)
{
    int i;
    o->threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    o->seconds = 3;
    o->only = "";
    o->checked = 0;
    for (i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value && strcmp(argv[i], "--threads") == 0) o->threads = atoi(value);
        else if (value && strcmp(argv[i], "--seconds") == 0) o->seconds = atof(value);
        else if (value && strcmp(argv[i], "--only") == 0) o->only = value;
        else if (value && strcmp(argv[i], "--checked") == 0) o->checked = atoi(value);
        else {
            fprintf(stderr,
                    "%s\noptions: --threads N  --seconds S  --only CASE[,CASE]  --checked 1\n",
                    about);
            exit(2);
        }
    }
    if (o->threads < 1 || o->threads > BENCH_MAX_THREADS || !(o->seconds >= 0)) {
        fprintf(stderr, "--threads 1..%d, --seconds 0 or more\n", BENCH_MAX_THREADS);
        exit(2);
    }
}

/* Is the case named in --only (or is everything wanted)? */
BENCH_FN int bench_wanted(const bench_options *o, const char *name)
{
    const char *at = o->only;
    size_t length = strlen(name);
    if (!*at) return 1;
    while (at) {
        if (strncmp(at, name, length) == 0 && (at[length] == 0 || at[length] == ',')) return 1;
        at = strchr(at, ',');
        if (at) at++;
    }
    return 0;
}

/* ---- time
   -------------------------------------------------------------------------------------- */

BENCH_FN double bench_seconds(void)
{
    struct timeval t;
    gettimeofday(&t, NULL);
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

BENCH_FN int bench_compare_(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
BENCH_FN double bench_median(double *t, int n)
{
    qsort(t, (size_t)n, sizeof *t, bench_compare_);
    return n % 2 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
}

/* Seconds of processor time that this process has used in all its threads. A busy machine leaves it
   nearly alone, so that it can be compared where wall clocks cannot. */
BENCH_FN double bench_cpu_seconds(void)
{
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use) != 0) return 0;
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

typedef struct bench_time {
    double median, best;  /* seconds of one call by the wall clock */
    double cpu;           /* median processor time of one call, all threads together */
    int repeats;
} bench_time;

/* Calls run(user) twice to warm up, then for about so many seconds, at least `least` times. */
BENCH_FN bench_time bench_run(void (*run)(void *user), void *user, double seconds, int least)
{
    static double t[BENCH_MOST], cpu[BENCH_MOST];
    bench_time out;
    double start, before, now, used, used_before;
    int n = 0;
    run(user);
    run(user);
    used_before = bench_cpu_seconds();
    start = before = bench_seconds();
    while (n < least || (n < BENCH_MOST && before - start < seconds)) {
        run(user);
        now = bench_seconds();
        used = bench_cpu_seconds();
        t[n] = now - before;
        cpu[n++] = used - used_before;
        before = now;
        used_before = used;
    }
    out.median = bench_median(t, n);
    out.best = t[0];
    out.cpu = bench_median(cpu, n);
    out.repeats = n;
    return out;
}

/* ---- processes
   --------------------------------------------------------------------------------- */

/* The largest resident set of this process so far, in MB (2^20 bytes). */
BENCH_FN double bench_peak_mb(void)
{
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use) != 0) return 0;
    return (double)use.ru_maxrss / 1024;      /* Linux counts in KB */
}

/* Runs measure(user) in a process of its own, so that its peak of memory, its threads and its
   warm caches are its own. 0, or 1 if it failed. */
BENCH_FN int bench_fresh(void (*measure)(void *user), void *user)
{
    int status = 0;
    pid_t child;
    fflush(NULL);
    child = fork();
    if (child < 0) return 1;
    if (child == 0) {
        measure(user);
        fflush(NULL);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child) return 1;
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

BENCH_FN double bench_load(void)
{
    FILE *f = fopen("/proc/loadavg", "r");
    double load = 0;
    if (f) {
        if (fscanf(f, "%lf", &load) != 1) load = 0;
        fclose(f);
    }
    return load;
}

/* Prints a result; format and what follows: further key=value pairs, "" for none. */
BENCH_FN void bench_emit(const char *name, const char *shape, int threads, double value,
                         const char *unit, const char *format, ...) BENCH_PRINTF;
BENCH_FN void bench_emit(const char *name, const char *shape, int threads, double value,
                         const char *unit, const char *format, ...)
{
    va_list list;
    printf("bench name=%s shape=%s threads=%d value=%.4g unit=%s ", name, shape, threads, value,
           unit);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("%sload=%.2f\n", *format ? " " : "", bench_load());
    fflush(stdout);
}

/* ---- numbers to compute with
   ------------------------------------------------------------------- */

typedef struct bench_noise { uint64_t state; } bench_noise;

/* A linear congruential generator (Knuth's constants): the next 31 bits. */
BENCH_FN uint32_t bench_bits(bench_noise *noise)
{
    noise->state = noise->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(noise->state >> 33);
}

/* Uniform in [-0.5, 0.5). */
BENCH_FN void bench_fill(float *x, int64_t n, uint64_t seed)
{
    bench_noise noise;
    int64_t i;
    noise.state = seed;
    for (i = 0; i < n; i++) x[i] = (float)bench_bits(&noise) / 2147483648.0f - 0.5f;
}

/* n floats on a 64-byte boundary; they are never given back: a benchmark ends soon. */
BENCH_FN float *bench_floats(int64_t n)
{
    char *p = (char *)malloc((size_t)n * sizeof(float) + 64);
    if (!p) bench_die("out of memory: %.0f MB", (double)n * 4 / 1048576);
    return (float *)(void *)(p + (64 - (size_t)((uintptr_t)p % 64)));
}

/* |got - reference| / |reference| in the 2-norm over what was added. */
typedef struct bench_error { double difference, reference; } bench_error;

BENCH_FN void bench_error_add(bench_error *e, double reference, double got)
{
    e->difference += (got - reference) * (got - reference);
    e->reference += reference * reference;
}

/* The relative error; ends the program if it is above the limit (or not a number). */
BENCH_FN double bench_error_check(const bench_error *e, double limit, const char *what)
{
    double r = sqrt(e->difference / e->reference);
    if (!(e->reference > 0 && r <= limit && r >= 0))
        bench_die("%s: wrong, relative error %g (at most %g)", what, r, limit);
    return r;
}

/* ---- the machine
   ------------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__TINYC__)
#define BENCH_X86_ 1
#include <immintrin.h>
#endif

#ifdef BENCH_X86_
/* Ten independent chains hide the latency of an FMA (4 or 5 cycles, two a cycle). The sum goes out
   so that nothing can be left out; the empty assembly keeps the compiler from seeing that the
   chains are equal and computing one of them. */
#define BENCH_CHAINS_(STEP) STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8)\
    STEP(9)
#define BENCH_DECLARE_(i) v##i = m,
#define BENCH_APART_(i) __asm__ __volatile__("" : "+x"(v##i));
#define BENCH_FMA256_(i) v##i = _mm256_fmadd_ps(v##i, m, a);
#define BENCH_FMA512_(i) v##i = _mm512_fmadd_ps(v##i, m, a);
#define BENCH_ADD256_(i) sum = _mm256_add_ps(sum, v##i);
#define BENCH_ADD512_(i) sum = _mm512_add_ps(sum, v##i);

__attribute__((target("avx2,fma"))) BENCH_FN float bench_chain256_(long rounds)
{
    __m256 m = _mm256_set1_ps(0.999f), a = _mm256_set1_ps(0.001f);
    __m256 BENCH_CHAINS_(BENCH_DECLARE_) sum = m;
    float out[8];
    BENCH_CHAINS_(BENCH_APART_)
    while (rounds-- > 0) { BENCH_CHAINS_(BENCH_FMA256_) }
    BENCH_CHAINS_(BENCH_ADD256_)
    _mm256_storeu_ps(out, sum);
    return out[0];
}

__attribute__((target("avx512f"))) BENCH_FN float bench_chain512_(long rounds)
{
    __m512 m = _mm512_set1_ps(0.999f), a = _mm512_set1_ps(0.001f);
    __m512 BENCH_CHAINS_(BENCH_DECLARE_) sum = m;
    float out[16];
    BENCH_CHAINS_(BENCH_APART_)
    while (rounds-- > 0) { BENCH_CHAINS_(BENCH_FMA512_) }
    BENCH_CHAINS_(BENCH_ADD512_)
    _mm512_storeu_ps(out, sum);
    return out[0];
}
#endif

#define BENCH_ROUNDS_ 4000000L

typedef struct bench_peak_job_ { int width; volatile float out; } bench_peak_job_;

BENCH_FN void *bench_peak_work_(void *user)
{
    bench_peak_job_ *job = (bench_peak_job_ *)user;
#ifdef BENCH_X86_
    job->out = job->width == 16 ? bench_chain512_(BENCH_ROUNDS_) : bench_chain256_(BENCH_ROUNDS_);
#endif
    return job;
}

/* GFLOP/s of fused multiply-adds that never leave the registers, on so many threads at once; the
   fastest of several tries. width: floats in a register, 8 (AVX2) or 16 (AVX-512). 0: not here. */
BENCH_FN double bench_peak_gflops(int threads, int width)
{
    pthread_t id[BENCH_MAX_THREADS];
    bench_peak_job_ job[BENCH_MAX_THREADS];
    double best = 0, start, rate;
    int i, repeat, started;
#ifdef BENCH_X86_
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (width == 16 && !__builtin_cpu_supports("avx512f")) return 0;
#else
    return 0;
#endif
    for (repeat = 0; repeat < 9; repeat++) {
        start = bench_seconds();
        for (started = 0; started < threads; started++) {
            job[started].width = width;
            if (pthread_create(&id[started], NULL, bench_peak_work_, &job[started]) != 0) break;
        }
        for (i = 0; i < started; i++) pthread_join(id[i], NULL);
        rate =
            1e-9 * started * 2.0 * 10 * width * (double)BENCH_ROUNDS_ / (bench_seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

/* The value behind "key : " in a file, without quotes or the line's end; "unknown" otherwise. */
BENCH_FN const char *bench_file_text(const char *path, const char *key, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    char line[512], *at;
    snprintf(text, size, "unknown");
    while (f && fgets(line, (int)sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        at = *key ? strchr(line, ':') : line;
        at = at && *key ? at + 2 : line;
        at[strcspn(at, "\n")] = 0;
        snprintf(text, size, "%.120s", at);
        break;
    }
    if (f) fclose(f);
    return text;
}

#if defined(__clang__)
#define BENCH_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define BENCH_COMPILER "gcc " __VERSION__
#else
#define BENCH_COMPILER "another compiler"
#endif

/* One line: processor, caches as the system names them, compiler, measured peaks. */
BENCH_FN void bench_machine(int threads)
{
    char cpu[128], size[4][128], path[128];
    int i;
    bench_file_text("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    for (i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        bench_file_text(path, "", size[i], sizeof size[i]);
    }
    printf("machine cpu=\"%s\" processors=%ld l1d=%s l2=%s l3=%s compiler=\"%s\" threads=%d "
           "fma_avx2_1=%.1f fma_avx2=%.1f fma_avx512_1=%.1f fma_avx512=%.1f load=%.2f\n", cpu,
           sysconf(_SC_NPROCESSORS_ONLN), size[0], size[2], size[3], BENCH_COMPILER, threads,
           bench_peak_gflops(1, 8), bench_peak_gflops(threads, 8), bench_peak_gflops(1, 16),
           bench_peak_gflops(threads, 16), bench_load());
    fflush(stdout);
}

#endif /* BENCH_H */
