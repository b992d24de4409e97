/* test_verbs.c - every verb of contrastive_cuda.cu against the CPU's scalar kernels.
 * Built by tests/check_cuda.sh, with the emulation of this folder or with nvcc.
 *
 * 1. Each verb of struct ctr_device on several shapes, odd ones among them: outputs within 1e-4 of
 *    the CPU's, inputs unchanged, and what acc = 0 must not read holds NaN.
 * 2. The two products that may round their operands, in TF32 within 2e-3 and in BF16 within 2e-2.
 * 3. The same bytes from run to run.
 * 4. Updates that wait in a table: in the order of the calls, whatever they share.
 * 5. Errors: each has one clear text, and what was opened is given back.
 */
#include "../test.h"
#ifdef CTR_TEST_EMULATION
#include "emulation.h"
#endif

#define SLOTS 12

typedef enum filling {
    ANY,        /* -1..1 */
    POSITIVE,   /* 0.1..1.1 */
    WHOLE,      /* -1, 0 or 1: sums of products are exact, and many are equal */
    INDEX,      /* whole numbers low..high */
    OUT,        /* NaN, or ANY where the verb adds to it */
    DOUBLES     /* n / 2 numbers of double, NaN at first */
} filling;

typedef struct slot {
    int64_t n;
    filling fill;
    int32_t low, high;
} slot;

/* A call of a verb: its numbers, and the memory that it gets. */
typedef struct job job;
struct job {
    const char *verb;
    int64_t p[11];
    int acc;
    slot slots[SLOTS];
    int count;
    void (*run)(ctr_ctx *ctx, const job *j, void **at);
};

/* What runs. */
static ctr_ctx *cpu, *gpu;
static double tolerance = 1e-4;
static char names[80][32];
static int named;

static void verb_seen(const char *verb)
{
    int i;
    for (i = 0; i < named; i++)
        if (strcmp(names[i], verb) == 0) return;
    snprintf(names[named++], sizeof names[0], "%s", verb);
}

static int slot_add(job *j, int64_t n, filling fill)
{
    slot *s = &j->slots[j->count];
    s->n = n;
    s->fill = fill;
    return j->count++;
}
static void slot_index(job *j, int64_t n, int32_t low, int32_t high)
{
    slot *s = &j->slots[slot_add(j, n, INDEX)];
    s->low = low;
    s->high = high;
}

/* 4 n bytes of what the slot starts with. */
static void *slot_content(const job *j, int which)
{
    const slot *s = &j->slots[which];
    ctr_real *x = test_reals(s->n);
    int32_t *index = (int32_t *)(void *)x;
    char name[96];
    int64_t i;
    snprintf(name, sizeof name, "%s %d %ld", j->verb, which, (long)s->n);
    test_fill_real(name, x, s->n, 1.0);
    for (i = 0; i < s->n; i++) {
        if (s->fill == POSITIVE) x[i] = (x[i] < 0 ? -x[i] : x[i]) + (ctr_real)0.1;
        if (s->fill == WHOLE)
            x[i] = (ctr_real)((int)(golden_bits(golden_fnv(name), (size_t)i) % 3) - 1);
        if ((s->fill == OUT && !j->acc) || s->fill == DOUBLES) memset(&x[i], 0xff, sizeof x[i]);
        if (s->fill == INDEX)
            index[i] = s->low + (int32_t)(golden_bits(golden_fnv(name), (size_t)i) %
                                          (uint32_t)(s->high - s->low + 1));
    }
    return x;
}

/* Runs the job on a context and fetches all its memory into got[]. */
static void job_on(ctr_ctx *ctx, const job *j, void **got)
{
    ctr_tensor *t[SLOTS];
    void *at[SLOTS];
    int i;
    for (i = 0; i < j->count; i++) {
        int64_t shape = j->slots[i].n;
        void *content = slot_content(j, i);
        t[i] = ctr_tensor_create(ctx, CTR_F32, 1, &shape, 0);
        ctr_k_upload(ctx, (size_t)shape * sizeof(ctr_real), content, t[i]->data);
        at[i] = t[i]->data;
        free(content);
    }
    j->run(ctx, j, at);
    for (i = 0; i < j->count; i++) {
        got[i] = test_reals(j->slots[i].n);
        ctr_k_download(ctx, (size_t)j->slots[i].n * sizeof(ctr_real), at[i], got[i]);
        ctr_tensor_destroy(ctx, t[i]);
    }
}

/* The largest difference, infinite for a NaN. */
static double doubles_apart(const double *a, const double *b, int64_t n)
{
    double worst = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        double apart = fabs(a[i] - b[i]);
        if (!(apart <= worst)) worst = apart == apart ? apart : HUGE_VAL;
    }
    return worst;
}

static void job_check(job *j)
{
    void *want[SLOTS], *got[SLOTS], *again[SLOTS];
    char what[160];
    int i;
    int64_t k;
    verb_seen(j->verb);
    job_on(cpu, j, want);
    job_on(gpu, j, got);
    if (!test_quick()) job_on(gpu, j, again);
    test_fine(cpu, j->verb);
    test_fine(gpu, j->verb);
    for (i = 0; i < j->count; i++) {
        int64_t n = j->slots[i].n;
        double *reference = test_doubles(n);
        int wide = j->slots[i].fill == DOUBLES;
        for (k = 0; k < n; k++) reference[k] = (double)((ctr_real *)want[i])[k];
        snprintf(what, sizeof what, "%s(%ld %ld %ld %ld %ld %ld) acc %d, memory %d", j->verb,
                 (long)j->p[0], (long)j->p[1], (long)j->p[2], (long)j->p[3], (long)j->p[4],
                 (long)j->p[5], j->acc, i);
        if (j->slots[i].fill == INDEX)
            test_bytes(what, got[i], want[i], (size_t)n * sizeof(ctr_real));
        else if (wide)
            test_error(what, doubles_apart((double *)got[i], (double *)want[i], n / 2), 1e-12);
        else
            test_error(what, test_ratio((ctr_real *)got[i], reference, n, tolerance, 1e-6), 1.0);
        if (!test_quick()) {
            test_bytes(what, again[i], got[i], (size_t)n * sizeof(ctr_real));
            free(again[i]);
        }
        free(reference);
        free(want[i]);
        free(got[i]);
    }
}

static job job_of(const char *verb, void (*run)(ctr_ctx *, const job *, void **))
{
    job j;
    memset(&j, 0, sizeof j);
    j.verb = verb;
    j.run = run;
    return j;
}

#define F(i) ((ctr_real *)at[i])
#define I(i) ((int32_t *)at[i])
#define P(i) (j->p[i])

/* ------------------------------------------------------------------------------ moving, filling */

static void run_copies(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_copy(ctx, (size_t)P(0) * sizeof(ctr_real), at[0], at[1]);
    ctr_k_zero(ctx, (size_t)P(0) / 2 * sizeof(ctr_real), at[1]);
    ctr_k_fill(ctx, P(0), (ctr_real)0.25, F(2));
}
static void run_axpby(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_axpby(ctx, P(0), (ctr_real)0.5, F(0), j->acc ? (ctr_real)-2 : 0, F(1));
}
static void run_binary(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_binary(ctx, (ctr_binary)P(1), P(0), F(0), F(1), F(2), j->acc);
}
static void run_broadcast(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_broadcast(ctx, (ctr_binary)P(3), P(0), P(1), P(2), F(0), F(1), F(2), j->acc);
}
static void run_unary(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_unary(ctx, (ctr_unary)P(1), P(0), F(0), F(1));
}
static void run_unary_grad(ctr_ctx *ctx, const job *j, void **at)
{
    int by_x = P(1) == CTR_GELU || P(1) == CTR_LOG;
    ctr_k_unary_grad(ctx, (ctr_unary)P(1), P(0), by_x ? F(0) : NULL, by_x ? NULL : F(1), F(2), F(3),
                     j->acc);
}
static void run_expand(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_expand(ctx, P(0), P(1), P(2), (ctr_real)0.75, F(0), F(1), j->acc);
}
static void run_reduce(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_reduce(ctx, P(0), P(1), P(2), (ctr_real)0.75, F(0), F(1), j->acc);
}
static void run_dot(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_dot(ctx, P(0), F(0), F(1), F(2));
}
static void run_permute(ctr_ctx *ctx, const job *j, void **at)
{
    int perm[4], i;
    for (i = 0; i < 4; i++) perm[i] = (int)P(4 + i);
    ctr_k_permute(ctx, j->p, perm, F(0), F(1), j->acc);
}
static void run_copy_rows(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_copy_rows(ctx, P(0), P(1), F(0) + 1, P(2), F(1), P(3), j->acc);
}
static void run_gather(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_gather(ctx, P(0), P(1), P(2), I(0), F(1), F(2));
}
static void run_scatter(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_scatter(ctx, P(0), P(1), P(2), I(0), F(1), F(2), j->acc);
}
static void run_dropout(ctr_ctx *ctx, const job *j, void **at)
{
    static const uint32_t key[2] = { 123, 456 }, counter[4] = { 0, 7, 8, 9 };
    ctr_k_dropout(ctx, P(0), 0.3, key, counter, F(0), F(1), j->acc);
}

static void elementwise(void)
{
    static const int64_t sizes[3] = { 1, 255, 1030 };
    int i, op, acc;
    job j;
    for (i = test_quick(); i < 3; i++) {
        int64_t n = sizes[i];
        j = job_of("copy", run_copies);
        verb_seen("zero");
        verb_seen("fill");
        verb_seen("upload");
        verb_seen("download");
        j.p[0] = n;
        slot_add(&j, n, ANY);
        slot_add(&j, n, OUT);
        slot_add(&j, n, OUT);
        job_check(&j);
        for (acc = 0; acc < 2; acc++) {
            j = job_of("axpby", run_axpby);
            j.acc = acc;
            j.p[0] = n;
            slot_add(&j, n, ANY);
            slot_add(&j, n, OUT);
            job_check(&j);
            j = job_of("dropout", run_dropout);
            j.acc = acc;
            j.p[0] = n;
            slot_add(&j, n, ANY);
            slot_add(&j, n, OUT);
            job_check(&j);
            for (op = CTR_ADD; op <= CTR_DIV; op++) {
                j = job_of("binary", run_binary);
                j.acc = acc;
                j.p[0] = n;
                j.p[1] = op;
                slot_add(&j, n, ANY);
                slot_add(&j, n, POSITIVE);
                slot_add(&j, n, OUT);
                job_check(&j);
            }
            for (op = CTR_RELU; op <= CTR_SOFTPLUS; op++) {
                filling in = op == CTR_LOG || op == CTR_SQRT || op == CTR_SOFTPLUS ? POSITIVE : ANY;
                j = job_of("unary_grad", run_unary_grad);
                j.acc = acc;
                j.p[0] = n;
                j.p[1] = op;
                slot_add(&j, n, in);
                slot_add(&j, n, in);
                slot_add(&j, n, ANY);
                slot_add(&j, n, OUT);
                job_check(&j);
                if (acc) continue;
                j = job_of("unary", run_unary);
                j.p[0] = n;
                j.p[1] = op;
                slot_add(&j, n, in);
                slot_add(&j, n, OUT);
                job_check(&j);
            }
        }
    }
    j = job_of("copy", run_copies); /* more numbers than a grid has threads */
    j.p[0] = 40000;
    for (i = 0; i < 3; i++) slot_add(&j, 40000, i ? OUT : ANY);
    if (!test_quick()) job_check(&j);
}

static void shaped(void)
{
    static const int64_t shapes[7][3] = { { 1, 1, 1 }, { 3, 5, 7 }, { 2, 300, 1 }, { 1, 9000, 1 },
                                          { 1, 700, 3 }, { 40, 16, 5 }, { 2, 3, 300 } };
    int i, acc, op;
    job j;
    for (i = 0; i < 7; i++)
        for (acc = 0; acc < 2; acc++) {
            const int64_t *s = shapes[i], n = s[0] * s[1] * s[2];
            for (op = CTR_ADD; op <= CTR_DIV; op++) {
                j = job_of("broadcast", run_broadcast);
                memcpy(j.p, s, 3 * sizeof *s);
                j.p[3] = op;
                j.acc = acc;
                slot_add(&j, n, ANY);
                slot_add(&j, s[0] * s[2], POSITIVE);
                slot_add(&j, n, OUT);
                job_check(&j);
            }
            j = job_of("expand", run_expand);
            memcpy(j.p, s, 3 * sizeof *s);
            j.acc = acc;
            slot_add(&j, s[0] * s[2], ANY);
            slot_add(&j, n, OUT);
            job_check(&j);
            j = job_of("reduce", run_reduce);
            memcpy(j.p, s, 3 * sizeof *s);
            j.acc = acc;
            slot_add(&j, n, ANY);
            slot_add(&j, s[0] * s[2], OUT);
            job_check(&j);
        }
}

static void moved(void)
{
    static const int64_t perms[4][8] = { { 1, 1, 5, 7, 0, 1, 3, 2 }, { 2, 3, 4, 5, 3, 1, 0, 2 },
                                         { 1, 2, 3, 300, 0, 2, 1, 3 },
                                         { 2, 2, 40, 3, 0, 3, 1, 2 } };
    static const int64_t rows[3][3] = { { 5, 3, 4 }, { 9, 1, 200 }, { 40, 130, 70 } };
    int i, acc;
    job j;
    for (acc = 0; acc < 2; acc++) {
        for (i = 0; i < 4; i++) {
            int64_t n = perms[i][0] * perms[i][1] * perms[i][2] * perms[i][3];
            j = job_of("permute", run_permute);
            memcpy(j.p, perms[i], sizeof perms[i]);
            j.acc = acc;
            slot_add(&j, n, ANY);
            slot_add(&j, n, OUT);
            job_check(&j);
        }
        for (i = 0; i < 3; i++) {
            const int64_t *s = rows[i];
            j = job_of("copy_rows", run_copy_rows);
            memcpy(j.p, s, 2 * sizeof *s);
            j.p[2] = s[1] + 3;
            j.p[3] = s[1] + 1;
            j.acc = 1; /* the gaps between rows stay as they are */
            slot_add(&j, s[0] * j.p[2] + 1, ANY);
            slot_add(&j, s[0] * j.p[3], OUT);
            job_check(&j);
            j = job_of("scatter", run_scatter);
            memcpy(j.p, s, 3 * sizeof *s);
            j.acc = acc;
            slot_index(&j, s[2], -1, (int32_t)s[0]); /* some of nowhere, many of one row */
            slot_add(&j, s[2] * s[1], ANY);
            slot_add(&j, s[0] * s[1], OUT);
            job_check(&j);
            if (acc) continue;
            j = job_of("gather", run_gather);
            memcpy(j.p, s, 3 * sizeof *s);
            slot_index(&j, s[2], -1, (int32_t)s[0]);
            slot_add(&j, s[0] * s[1], ANY);
            slot_add(&j, s[2] * s[1], OUT);
            job_check(&j);
        }
    }
    for (i = 0; i < 3; i++) {
        j = job_of("dot", run_dot);
        j.p[0] = i == 0 ? 1 : i == 1 ? 1000 : 9001;
        slot_add(&j, j.p[0], ANY);
        slot_add(&j, j.p[0], ANY);
        slot_add(&j, 1, OUT);
        job_check(&j);
    }
}

/* ----------------------------------------------------------------------------------------- rows */

static void run_softmax(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_softmax(ctx, P(0), P(1), F(0), F(1), (int)P(2));
}
static void run_softmax_grad(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_softmax_grad(ctx, P(0), P(1), F(0), F(1), F(2), (int)P(2), j->acc);
}
static void run_normalize(ctr_ctx *ctx, const job *j, void **at)
{
    if (P(2)) ctr_k_zero(ctx, (size_t)P(1) * sizeof(ctr_real), F(0)); /* the first row */
    ctr_k_normalize(ctx, P(0), P(1), F(0), F(1), F(2));
}
static void run_normalize_grad(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_normalize_grad(ctx, P(0), P(1), F(0), F(1), F(2), F(3), j->acc);
}
static void run_layer_norm(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_layer_norm(ctx, P(0), P(1), (ctr_real)1e-5, F(0), F(1), F(2), F(3), F(4));
}
static void run_layer_norm_grad(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_layer_norm_grad(ctx, P(0), P(1), F(0), F(1), F(2), F(3), P(2) ? NULL : F(4), j->acc,
                          F(5));
}
static void run_nll(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_nll(ctx, P(0), P(1), (int32_t)P(2), I(0), F(1), F(2));
}
static void run_nll_grad(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_nll(ctx, P(0), P(1), (int32_t)P(2), I(0), F(1), F(2));
    ctr_k_nll_grad(ctx, P(0), P(1), (int32_t)P(2), I(0), F(2), F(3), F(4), j->acc);
}
static void run_contrast(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_contrast(ctx, P(0), P(1), I(0), F(1), (ctr_real)P(2), F(2), F(3), F(4));
    if (P(3)) return;
    ctr_k_contrast_grad(ctx, P(0), P(1), I(0), F(1), (ctr_real)P(2), F(2), F(3), F(4), F(5), F(6),
                        j->acc);
}

static void rows_of(int64_t rows, int64_t cols, int acc)
{
    int64_t n = rows * cols;
    int flag;
    job j;
    for (flag = 0; flag < 2; flag++) {
        j = job_of("softmax", run_softmax);
        j.p[0] = rows, j.p[1] = cols, j.p[2] = flag;
        slot_add(&j, n, ANY);
        slot_add(&j, n, OUT);
        job_check(&j);
        j = job_of("softmax_grad", run_softmax_grad);
        j.p[0] = rows, j.p[1] = cols, j.p[2] = flag, j.acc = acc;
        slot_add(&j, n, ANY);
        slot_add(&j, n, ANY);
        slot_add(&j, n, OUT);
        job_check(&j);
        j = job_of("normalize", run_normalize);
        j.p[0] = rows, j.p[1] = cols, j.p[2] = flag;
        slot_add(&j, n, ANY);
        slot_add(&j, n, OUT);
        slot_add(&j, rows, OUT);
        job_check(&j);
        j = job_of("layer_norm_grad", run_layer_norm_grad);
        j.p[0] = rows, j.p[1] = cols, j.p[2] = flag, j.acc = acc;
        slot_add(&j, n, ANY);
        slot_add(&j, 2 * rows, POSITIVE);
        slot_add(&j, cols, ANY);
        slot_add(&j, n, ANY);
        slot_add(&j, n, flag ? ANY : OUT);
        slot_add(&j, n, OUT);
        if (flag) j.acc = 0;
        job_check(&j);
    }
    j = job_of("normalize_grad", run_normalize_grad);
    j.p[0] = rows, j.p[1] = cols, j.acc = acc;
    slot_add(&j, n, ANY);
    slot_add(&j, rows, POSITIVE);
    slot_add(&j, n, ANY);
    slot_add(&j, n, OUT);
    job_check(&j);
    j = job_of("layer_norm", run_layer_norm);
    j.p[0] = rows, j.p[1] = cols;
    slot_add(&j, n, ANY);
    slot_add(&j, cols, ANY);
    slot_add(&j, cols, ANY);
    slot_add(&j, n, OUT);
    slot_add(&j, 2 * rows, OUT);
    if (cols > 1) job_check(&j);
}

/* ids 0..classes-1; classes 1: all alike; 0: none has a positive */
static void contrast_of(int64_t m, int64_t d, int32_t classes, int64_t scale, int acc)
{
    job j = job_of("contrast_grad", run_contrast);
    verb_seen("contrast");
    j.p[0] = m, j.p[1] = d, j.p[2] = scale, j.acc = acc;
    slot_index(&j, m, 0, classes ? classes - 1 : 1 << 30);
    slot_add(&j, m * d, ANY);
    slot_add(&j, m, OUT);
    slot_add(&j, m, OUT);
    slot_add(&j, CTR_CONTRAST_OUT, OUT);
    slot_add(&j, 1, ANY);
    slot_add(&j, m * d, OUT);
    job_check(&j);
}

static void rows_all(void)
{
    int ignore, acc;
    job j;
    rows_of(3, 1, 0);
    rows_of(7, 5, 1);
    rows_of(4, 100, 0);
    rows_of(2, 600, 1);
    for (ignore = -1; ignore < 3; ignore++)
        for (acc = 0; acc < 2; acc++) {
            j = job_of("nll_grad", run_nll_grad);
            verb_seen("nll");
            j.p[0] = 300, j.p[1] = 3, j.p[2] = ignore, j.acc = acc;
            slot_index(&j, 300, 0, 2);
            slot_add(&j, 900, ANY);
            slot_add(&j, 2, OUT);
            slot_add(&j, 1, ANY);
            slot_add(&j, 900, OUT);
            job_check(&j);
        }
    j = job_of("nll", run_nll); /* an index beyond the columns; all ignored */
    j.p[0] = 9, j.p[1] = 3, j.p[2] = -1;
    slot_index(&j, 9, 1, 5);
    slot_add(&j, 27, ANY);
    slot_add(&j, 2, OUT);
    job_check(&j);
    j.p[2] = 2;
    j.slots[0].low = j.slots[0].high = 2;
    job_check(&j);
    contrast_of(10, 4, 5, 10, 0);
    contrast_of(65, 7, 20, 3, 1);
    contrast_of(33, 16, 1, 2, 0);
    contrast_of(12, 5, 0, 4, 0);
    contrast_of(1, 3, 1, 4, 0);
    contrast_of(300, 3, 100, 10, 0);
}

/* ------------------------------------------------------------------- the nearest, sums of groups */

static void run_nearest(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_nearest(ctx, P(0), P(1), P(2), F(0), F(1), F(2), I(3));
}
static void nearest_of(int64_t n, int64_t k, int64_t d, filling fill)
{
    job j = job_of("nearest", run_nearest);
    j.p[0] = n, j.p[1] = k, j.p[2] = d;
    slot_add(&j, n * d, fill);
    slot_add(&j, k * d, fill);
    slot_add(&j, k, fill);
    slot_index(&j, n, -9, -9);
    job_check(&j);
}

static void run_neighbors(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_neighbors(ctx, P(0), P(1), P(2), F(0), F(1), I(2), P(3), F(3), I(4));
}
static void neighbors_of(int64_t m, int64_t n, int64_t d, int64_t k, filling fill)
{
    job j = job_of("neighbors", run_neighbors);
    j.p[0] = m, j.p[1] = n, j.p[2] = d, j.p[3] = k;
    slot_add(&j, m * d, fill);
    slot_add(&j, n * d, fill);
    slot_index(&j, m, -1, (int32_t)n - 1);
    slot_add(&j, m * k, OUT);
    slot_index(&j, m * k, -9, -9);
    job_check(&j);
}

/* Group j has about j * j points of n, so that the first are empty and the last are long. */
static void run_segment_sum(ctr_ctx *ctx, const job *j, void **at)
{
    int32_t begin[64], order[512];
    int64_t i, segments = P(0), n = P(1);
    for (i = 0; i <= segments; i++)
        begin[i] = (int32_t)(n * i * i / (segments * segments));
    for (i = 0; i < n; i++) order[i] = (int32_t)(i * 7 % n);
    ctr_k_upload(ctx, (size_t)(segments + 1) * 4, begin, at[0]);
    ctr_k_upload(ctx, (size_t)n * 4, order, at[1]);
    ctr_k_segment_sum(ctx, segments, n, P(2), I(0), I(1), P(3) ? F(2) : NULL, F(3),
                      (double *)at[4]);
}
static void segment_sum_of(int64_t segments, int64_t n, int64_t d, int weighted)
{
    job j = job_of("segment_sum", run_segment_sum);
    j.p[0] = segments, j.p[1] = n, j.p[2] = d, j.p[3] = weighted;
    slot_index(&j, segments + 1, 0, 0);
    slot_index(&j, n, 0, 0);
    slot_add(&j, n, ANY);
    slot_add(&j, n * d, ANY);
    slot_add(&j, 2 * segments * d, DOUBLES);
    job_check(&j);
}

static void nearest_all(void)
{
    nearest_of(3, 1, 2, ANY);
    nearest_of(70, 5, 3, ANY);
    nearest_of(9, 130, 6, ANY);
    nearest_of(40, 700, 4, ANY);
    nearest_of(60, 40, 3, WHOLE);
    nearest_of(30, 600, 2, WHOLE);
    neighbors_of(3, 1, 2, 1, ANY);
    neighbors_of(2, 20, 3, 64, ANY);
    neighbors_of(70, 300, 5, 17, ANY);
    neighbors_of(3, 1500, 4, 1024, ANY);
    neighbors_of(9, 250, 2, 30, WHOLE);
    neighbors_of(3, 900, 3, 500, WHOLE);
    segment_sum_of(1, 1, 1, 0);
    segment_sum_of(5, 41, 3, 0);
    segment_sum_of(6, 500, 70, 1);
    segment_sum_of(63, 300, 33, 1);
}

/* -------------------------------------------------------------------- normalisation and pooling */

static void run_norm_stats(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_norm_stats(ctx, P(0), P(1), F(0), F(1), F(2));
}
/* 0 x, 1 mean, 2 var, 3 gamma, 4 beta, 5 residual, 6 y, 7 dy, 8 dx, 9 dresidual, 10 dgamma,
   11 dbeta */
static ctr_norm_args norm_args(const job *j, void **at)
{
    ctr_norm_args a;
    int affine = (int)(P(2) & 1), residual = (int)(P(2) & 2), all = (int)(P(2) & 4);
    memset(&a, 0, sizeof a);
    a.rows = P(0);
    a.c = P(1);
    a.x = F(0);
    a.mean = F(1);
    a.var = F(2);
    a.gamma = affine ? F(3) : NULL;
    a.beta = affine ? F(4) : NULL;
    a.residual = residual ? F(5) : NULL;
    a.eps = (ctr_real)1e-5;
    a.relu = (int)P(3);
    a.batch_stats = (int)P(4);
    a.y = F(6);
    a.dy = F(7);
    a.dx = all || !residual ? F(8) : NULL;
    a.dresidual = residual ? F(9) : NULL;
    a.dgamma = affine ? F(10) : NULL;
    a.dbeta = affine ? F(11) : NULL;
    a.dx_acc = a.dresidual_acc = a.dgamma_acc = a.dbeta_acc = j->acc;
    return a;
}
static void run_norm(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_norm_args a = norm_args(j, at);
    ctr_k_norm(ctx, &a);
}
static void run_norm_grad(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_norm_args a = norm_args(j, at);
    ctr_k_norm_grad(ctx, &a);
}

static void norm_slots(job *j, int64_t rows, int64_t c, int backward)
{
    static const filling in[7] = { ANY, ANY, POSITIVE, ANY, ANY, ANY, ANY };
    int i;
    for (i = 0; i < 12; i++) {
        int matrix = i == 0 || (i >= 5 && i <= 9);
        filling fill = i < 6 ? in[i] : i == 6 ? (backward ? ANY : OUT) : i == 7 ? ANY : OUT;
        slot_add(j, matrix ? rows * c : c, fill);
    }
}

static void norms(void)
{
    static const int64_t shapes[5][2] = { { 2, 1 }, { 50, 3 }, { 700, 16 }, { 9, 301 },
                                          { 9000, 1 } };
    int i, variant;
    job j;
    for (i = 0; i < (test_quick() ? 4 : 5); i++) {
        int64_t rows = shapes[i][0], c = shapes[i][1];
        j = job_of("norm_stats", run_norm_stats);
        j.p[0] = rows, j.p[1] = c;
        slot_add(&j, rows * c, ANY);
        slot_add(&j, c, OUT);
        slot_add(&j, c, OUT);
        job_check(&j);
        for (variant = 0; variant < 8; variant++) {
            int backward;
            for (backward = 0; backward < 2; backward++) {
                j = backward ? job_of("norm_grad", run_norm_grad) : job_of("norm", run_norm);
                j.p[0] = rows, j.p[1] = c, j.p[2] = variant;
                j.p[3] = (variant + i) & 1, j.p[4] = (variant / 2 + i) & 1;
                j.acc = 1; /* what is left out stays as it is */
                norm_slots(&j, rows, c, backward);
                job_check(&j);
            }
        }
    }
}

/* What acc = 0 overwrites has been NaN. */
static void norm_overwrites(void)
{
    job j = job_of("norm_grad", run_norm_grad);
    j.p[0] = 33, j.p[1] = 5, j.p[2] = 7, j.p[3] = 1, j.p[4] = 1;
    norm_slots(&j, 33, 5, 1);
    job_check(&j);
}

static ctr_pool_shape pool_shape(const job *j)
{
    ctr_pool_shape s;
    s.n = P(0), s.h = P(1), s.w = P(2), s.c = P(3), s.size = P(4), s.stride = P(5), s.pad = P(6);
    s.oh = (s.h + 2 * s.pad - s.size) / s.stride + 1;
    s.ow = (s.w + 2 * s.pad - s.size) / s.stride + 1;
    return s;
}
static void run_max_pool(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_pool_shape s = pool_shape(j);
    ctr_k_max_pool(ctx, &s, F(0), F(1), I(2));
    ctr_k_max_pool_grad(ctx, &s, I(2), F(3), F(4), j->acc);
}
static void run_avg_pool(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_pool_shape s = pool_shape(j);
    ctr_k_avg_pool(ctx, &s, F(0), F(1));
    ctr_k_avg_pool_grad(ctx, &s, F(2), F(3), j->acc);
}

static void pools(void)
{
    static const int64_t shapes[4][7] = { { 2, 6, 8, 3, 2, 2, 0 }, { 1, 7, 5, 4, 3, 2, 1 },
                                          { 2, 5, 5, 1, 3, 1, 1 }, { 1, 9, 9, 2, 2, 3, 0 } };
    int i, acc;
    job j;
    for (i = 0; i < 4; i++)
        for (acc = 0; acc < 2; acc++) {
            ctr_pool_shape s;
            int64_t in, out;
            j = job_of("max_pool", run_max_pool);
            verb_seen("max_pool_grad");
            memcpy(j.p, shapes[i], sizeof shapes[i]);
            s = pool_shape(&j);
            in = s.n * s.h * s.w * s.c;
            out = s.n * s.oh * s.ow * s.c;
            j.acc = acc;
            slot_add(&j, in, ANY);
            slot_add(&j, out, OUT);
            slot_index(&j, out, 0, 0);
            slot_add(&j, out, ANY);
            slot_add(&j, in, OUT);
            job_check(&j);
            j = job_of("avg_pool", run_avg_pool);
            verb_seen("avg_pool_grad");
            memcpy(j.p, shapes[i], sizeof shapes[i]);
            j.acc = acc;
            slot_add(&j, in, ANY);
            slot_add(&j, out, OUT);
            slot_add(&j, out, ANY);
            slot_add(&j, in, OUT);
            job_check(&j);
        }
}

/* ------------------------------------------------------------------------------------- products */

static void run_gemm(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_k_gemm(ctx, (int)P(3), (int)P(4), P(0), P(1), P(2), (ctr_real)0.5, F(0), P(5), F(1), P(6),
               j->acc ? (ctr_real)-1 : 0, F(2), P(7));
}
static ctr_conv_shape conv_shape(const job *j)
{
    ctr_conv_shape s;
    s.n = P(0), s.h = P(1), s.w = P(2), s.c = P(3), s.kh = s.kw = P(4), s.oc = P(5);
    s.stride = P(6), s.pad = P(7);
    s.oh = (s.h + 2 * s.pad - s.kh) / s.stride + 1;
    s.ow = (s.w + 2 * s.pad - s.kw) / s.stride + 1;
    return s;
}
static void run_conv(ctr_ctx *ctx, const job *j, void **at)
{
    ctr_conv_shape s = conv_shape(j);
    ctr_k_conv_forward(ctx, &s, F(0), F(1), F(2));
    ctr_k_conv_input(ctx, &s, F(3), F(1), F(4), j->acc);
    ctr_k_conv_weight(ctx, &s, F(0), F(3), F(5), j->acc);
}

static void conv_of(const int64_t *shape, int acc)
{
    job j = job_of("conv_forward", run_conv);
    ctr_conv_shape s;
    int64_t in, out, weights;
    verb_seen("conv_input");
    verb_seen("conv_weight");
    memcpy(j.p, shape, 8 * sizeof *shape);
    j.acc = acc;
    s = conv_shape(&j);
    in = s.n * s.h * s.w * s.c;
    out = s.n * s.oh * s.ow * s.oc;
    weights = s.kh * s.kw * s.c * s.oc;
    slot_add(&j, in, ANY);
    slot_add(&j, weights, ANY);
    slot_add(&j, out, OUT);
    slot_add(&j, out, ANY);
    slot_add(&j, in, OUT);
    slot_add(&j, weights, OUT);
    job_check(&j);
}

static void products(int few)
{
    static const int64_t gemms[4][3] = { { 1, 1, 1 }, { 5, 7, 3 }, { 33, 20, 50 }, { 4, 3, 0 } };
    /* n, h, w, c, k, oc, stride, pad */
    static const int64_t convs[15][8] = {
        { 2, 8, 8, 8, 3, 16, 1, 1 },     /* channels in fours: whole reads */
        { 2, 7, 9, 3, 3, 5, 1, 1 },      /* and odd ones */
        { 2, 8, 8, 16, 3, 8, 2, 1 },     /* stride 2: four phases */
        { 3, 18, 18, 4, 3, 4, 1, 1 },    /* a gradient to the weights in parts */
        { 3, 14, 14, 8, 3, 72, 1, 1 },   /* several tiles along M and N, the last not full */
        { 1, 9, 7, 3, 5, 6, 2, 2 },
        { 2, 6, 6, 8, 1, 12, 1, 0 },     /* a matrix product */
        { 2, 6, 5, 8, 1, 12, 2, 0 },     /* phases without taps: their gradient is 0 */
        { 1, 13, 11, 3, 7, 8, 2, 3 },    /* a stem */
        { 1, 10, 10, 4, 3, 4, 3, 0 },
        { 1, 1, 1, 5, 3, 1, 1, 1 },
        { 2, 5, 5, 6, 1, 3, 1, 1 },      /* 1x1 with a border is none */
        { 2, 9, 9, 72, 3, 8, 1, 1 },     /* wide tiles to the input */
        { 1, 5, 5, 8, 3, 72, 1, 1 },     /* too few for wide tiles: two narrow ones */
        { 2, 13, 12, 66, 3, 70, 2, 1 }   /* wide, and channels not in fours */
    };
    int i, ta, acc;
    job j;
    for (i = 0; i < 4; i++)
        for (ta = 0; ta < 4; ta++)
            for (acc = 0; acc < 2; acc++) {
                const int64_t m = gemms[i][0], n = gemms[i][1], k = gemms[i][2];
                j = job_of("gemm", run_gemm);
                memcpy(j.p, gemms[i], sizeof gemms[i]);
                j.p[3] = ta & 1, j.p[4] = ta >> 1;
                j.p[5] = (ta & 1 ? m : k) + 2, j.p[6] = (ta >> 1 ? k : n) + 1, j.p[7] = n;
                j.acc = acc;
                slot_add(&j, ((ta & 1 ? k : m) + 1) * j.p[5], ANY);
                slot_add(&j, ((ta >> 1 ? n : k) + 1) * j.p[6], ANY);
                slot_add(&j, m * n, OUT);
                job_check(&j);
            }
    for (i = 0; i < (few ? 5 : 15); i++)
        for (acc = 0; acc < 2; acc++)
            if (!few || acc == (i & 1)) conv_of(convs[i], acc);
}

/* ----------------------------------------------------------------------------------- optimisers */

static ctr_optim_args optim_args(const job *j, void **at, int which, int64_t n)
{
    ctr_optim_args o;
    memset(&o, 0, sizeof o);
    o.n = n;
    o.w = F(4 * which);
    o.m = F(4 * which + 1);
    o.v = F(4 * which + 2);
    o.g = F(4 * which + 3);
    o.lr = 0.1;
    o.momentum = 0.9;
    o.decay = which == 1 ? 0 : 0.01;
    o.trust = 0.02;
    o.beta1 = 0.9;
    o.beta2 = 0.99;
    o.eps = 1e-8;
    o.correct1 = 0.19;
    o.correct2 = 0.0199;
    o.nesterov = (int)P(1);
    o.adapt = P(2) && which != 1;
    o.form = (int)P(3);
    return o;
}
/* Three parameters, and the first one again: the table must see that they depend. */
static void run_optim(ctr_ctx *ctx, const job *j, void **at)
{
    int i;
    for (i = 0; i < 4; i++) {
        ctr_optim_args o = optim_args(j, at, i % 3, j->slots[4 * (i % 3)].n);
        if (P(0)) ctr_k_adamw(ctx, &o);
        else ctr_k_sgd(ctx, &o);
    }
}

static void optimisers(void)
{
    static const int variants[6][4] = { { 0, 0, 0, 0 }, { 0, 1, 0, 0 }, { 0, 0, 1, 0 },
                                        { 0, 0, 1, CTR_LARS_INSIDE }, { 0, 0, 1, CTR_LARS_LARC },
                                        { 1, 0, 0, 0 } };
    static const int64_t sizes[3] = { 1030, 7, 300 };
    int i, k, q;
    for (i = 0; i < 6; i++) {
        job j = job_of(variants[i][0] ? "adamw" : "sgd", run_optim);
        j.acc = 1;
        for (k = 0; k < 4; k++) j.p[k] = variants[i][k];
        for (k = 0; k < 3; k++)
            for (q = 0; q < 4; q++) slot_add(&j, sizes[k], q == 2 ? POSITIVE : ANY);
        job_check(&j);
    }
}

/* Every kind of dependence between updates that wait, and more of them than the table holds. */
static void run_updates(ctr_ctx *ctx, const job *j, void **at)
{
    int i;
    int64_t n = P(0);
    for (i = 0; i < 100; i++) ctr_k_axpby(ctx, 1, (ctr_real)0.5, F(0) + i, 1, F(1) + (i * 7) % n);
    ctr_k_axpby(ctx, n, 1, F(1), (ctr_real)0.5, F(2));         /* reads what was written */
    ctr_k_axpby(ctx, n, 2, F(0), 0, F(1));                     /* writes what is read */
    ctr_k_axpby(ctx, n, 1, F(2), (ctr_real)-1, F(1));
    ctr_k_axpby(ctx, n / 2, 1, F(1) + n / 2, 1, F(1));         /* one block, two halves */
}

static void updates(void)
{
    job j = job_of("axpby", run_updates);
    j.p[0] = 110;
    j.acc = 1;
    slot_add(&j, 110, ANY);
    slot_add(&j, 110, OUT);
    slot_add(&j, 110, OUT);
    job_check(&j);
}

/* A device's verbs as the header counts them: pointers from zero on to the end of the struct. */
static void complete(const ctr_device *device)
{
    size_t from = offsetof(ctr_device, zero), size = sizeof(void (*)(void)), i;
    size_t verbs = (sizeof *device - from) / size;
    int missing = 0;
    for (i = 0; i < verbs; i++) {
        void (*fn)(void);
        memcpy(&fn, (const char *)device + from + i * size, sizeof fn);
        missing += fn == NULL;
    }
    test_group("");
    test_equal("verbs of the header that the device lacks", missing, 0);
    verb_seen("views"); /* test_views.c tries it */
    test_equal("verbs of the header that this file has tried", named, (double)verbs);
}

static void finite_or_not(const ctr_device *device)
{
    static const uint32_t bits[4] = { 0x3f800000u, 0x7fc00000u, 0x7f800000u, 0xff800000u };
    int64_t shape = 700;
    ctr_tensor *t = ctr_tensor_create(gpu, CTR_F32, 1, &shape, 0);
    int i;
    verb_seen("finite");
    for (i = 0; i < 4; i++) {
        ctr_k_upload(gpu, 4, &bits[i], (char *)t->data + 699 * 4);
        test_equal("finite: one, NaN, +infinity, -infinity",
                   ctr_k_finite(gpu, 700, (ctr_real *)t->data), i == 0);
    }
    test_equal("finite: before the bad one", ctr_k_finite(gpu, 699, (ctr_real *)t->data), 1);
    verb_seen("watch");
    for (i = 0; i < 100; i++) device->watch(gpu, 7, (ctr_real *)t->data + 7 * i);
    test_equal("watched in a hundred pieces", device->finite(gpu, 0, NULL), 0);
    for (i = 0; i < 99; i++) device->watch(gpu, 7, (ctr_real *)t->data + 7 * i);
    test_equal("the same without the last", device->finite(gpu, 0, NULL), 1);
    ctr_tensor_destroy(gpu, t);
}

/* A large upload goes through the page-locked pieces more than once; the source may change. */
static void large_upload(void)
{
    int64_t n = 3 * (1 << 19) + 5, i;
    ctr_real *x = test_reals(n), *y = test_reals(n);
    ctr_tensor *t = ctr_tensor_create(gpu, CTR_F32, 1, &n, 0);
    int same = 1;
    for (i = 0; i < n; i++) x[i] = (ctr_real)(i % 65521);
    ctr_tensor_write(gpu, t, x, n);
    for (i = 0; i < n; i++) x[i] = 0;
    ctr_tensor_read(gpu, t, y, n);
    for (i = 0; i < n; i++) same &= y[i] == (ctr_real)(i % 65521);
    test_true("6 MB there and back, the source overwritten in between", same);
    ctr_tensor_destroy(gpu, t);
    free(x);
    free(y);
}

/* --------------------------------------------------------------------------------------- errors */

static ctr_ctx *context_on(const ctr_device *device)
{
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    config.device = device;
    ctx = ctr_ctx_create(&config);
    if (!ctx) {
        fprintf(stderr, "no context\n");
        exit(3);
    }
    return ctx;
}

static void bad_index(void)
{
    ctr_cuda_config config = ctr_cuda_config_default();
    char text[200];
    config.index = 99;
    test_true("GPU 99: no device", ctr_cuda_open(&config, text, sizeof text) == NULL);
    test_true("GPU 99: the text says so", strstr(text, "there is no GPU 99") != NULL);
    printf("     \"%s\"\n", text);
}

#ifdef CTR_TEST_EMULATION
static void failed_open(const char *call, int status, const char *expected)
{
    char text[200];
    long before = emu_memory();
    emu_fail(call, 1, status);
    test_true(call, ctr_cuda_open(NULL, text, sizeof text) == NULL);
    test_true(text, strstr(text, expected) != NULL && strstr(text, call) != NULL);
    test_equal("nothing stays", (double)(emu_memory() - before), 0);
}

/* A verb whose call fails leaves one error with the verb's and the call's name; cleared, all goes
 * on. */
static void failed_verb(const char *call, long nth, int status, const char *expected)
{
    int64_t shape[2] = { 70, 3 };
    ctr_tensor *a = ctr_tensor_create(gpu, CTR_F32, 2, shape, 0);
    ctr_tensor *b = ctr_tensor_create(gpu, CTR_F32, 2, shape, 0);
    ctr_real x[210];
    emu_fail(call, nth, status);
    ctr_k_gemm(gpu, 1, 0, 3, 3, 70, 1, (ctr_real *)a->data, 3, (ctr_real *)a->data, 3, 0,
               (ctr_real *)b->data, 3);
    ctr_k_fill(gpu, 210, 1, (ctr_real *)a->data);
    ctr_tensor_read(gpu, a, x, 210);
    test_equal(call, ctr_error(gpu), CTR_E_DEVICE);
    test_true(ctr_error_text(gpu), strstr(ctr_error_text(gpu), expected) != NULL);
    ctr_error_clear(gpu);
    ctr_k_fill(gpu, 210, 2, (ctr_real *)a->data);
    ctr_tensor_read(gpu, a, x, 210);
    test_true("afterwards it works", ctr_error(gpu) == CTR_OK && x[209] == 2);
    ctr_tensor_destroy(gpu, a);
    ctr_tensor_destroy(gpu, b);
}

static void errors(void)
{
    int64_t shape = 1000;
    ctr_tensor *t;
    test_group("");
    failed_open("cudaGetDeviceCount", 100, "no CUDA-capable device");
    failed_open("cudaGetDeviceCount", 35, "driver version is insufficient");
    failed_open("cudaFuncGetAttributes", 209, "no kernel image is available");
    failed_open("cudaStreamCreateWithFlags", 2, "out of memory");
    failed_open("cudaHostAlloc", 2, "out of memory");
    failed_open("cublasCreate", 1, "CUBLAS_STATUS_NOT_INITIALIZED");
    failed_verb("cublasGemmEx", 1, 13, "gemm: cublasGemmEx: CUBLAS_STATUS_EXECUTION_FAILED");
    failed_verb("launch", 1, 9, "fill: launch of k_fill: invalid configuration");
    failed_verb("cudaStreamSynchronize", 1, 719, "download: cudaStreamSynchronize: unspecified");
    failed_verb("cudaMemcpyAsync", 1, 719, "download: cudaMemcpyAsync: unspecified");
    emu_fail("cudaMalloc", 1, 2);
    t = ctr_tensor_create(gpu, CTR_F32, 1, &shape, 0);
    test_equal("out of device memory", ctr_error(gpu), CTR_E_MEMORY);
    test_true(ctr_error_text(gpu), strstr(ctr_error_text(gpu), "has no 4000 bytes") != NULL);
    ctr_error_clear(gpu);
    ctr_tensor_destroy(gpu, t);
}

/* A step's many updates are few launches, and uploads wait for nothing. */
static void few_launches(void)
{
    int64_t shape = 100;
    ctr_tensor *t = ctr_tensor_create(gpu, CTR_F32, 1, &shape, 0);
    long launches, waits;
    ctr_real x[100] = { 0 };
    int i;
    ctr_tensor_write(gpu, t, x, 100);
    launches = emu_calls("launch");
    waits = emu_calls("cudaStreamSynchronize");
    for (i = 0; i < 80; i++)
        ctr_k_axpby(gpu, 1, 1, (ctr_real *)t->data + 99, 1, (ctr_real *)t->data + i);
    for (i = 0; i < 8; i++) ctr_tensor_write(gpu, t, x, 100);
    test_equal("launches of 80 small updates", (double)(emu_calls("launch") - launches), 2);
    test_equal("waits of 8 uploads", (double)(emu_calls("cudaStreamSynchronize") - waits), 0);
    ctr_tensor_read(gpu, t, x, 100);
    test_equal("waits of a download", (double)(emu_calls("cudaStreamSynchronize") - waits), 1);
    ctr_tensor_destroy(gpu, t);
}
#endif

static void on_math(ctr_cuda_math math, const char *name, double within, int few)
{
    ctr_cuda_config config;
    const ctr_device *device;
    char text[200];
    ctr_cuda_config_init(&config);
    config.math = math;
    device = ctr_cuda_open(&config, text, sizeof text);
    test_group(name);
    if (!test_true(device ? "opens" : text, device != NULL)) return;
    gpu = context_on(device);
    tolerance = within;
    test_true(ctr_kernels_name(gpu), strstr(ctr_kernels_name(gpu), "cuda:0") != NULL);
    products(few);
    if (math != CTR_CUDA_FP32) {
        ctr_ctx_destroy(gpu);
        ctr_cuda_close(device);
        return;
    }
    test_group("elementwise");
    elementwise();
    test_group("broadcasts and sums");
    shaped();
    test_group("moved numbers");
    moved();
    test_group("rows");
    rows_all();
    test_group("the nearest, sums of groups");
    nearest_all();
    test_group("norms and pools");
    norms();
    norm_overwrites();
    pools();
    test_group("updates");
    optimisers();
    updates();
    test_group("host and device");
    finite_or_not(device);
    large_upload();
    complete(device);
#ifdef CTR_TEST_EMULATION
    few_launches();
    errors();
#endif
    ctr_ctx_destroy(gpu);
    ctr_cuda_close(device);
    ctr_cuda_close(NULL);
}

int main(int argc, char **argv)
{
    test_begin("test_verbs", argc, argv);
    cpu = test_ctx(1, CTR_KERNELS_SCALAR);
    on_math(CTR_CUDA_FP32, "products, fp32", 1e-4, test_quick());
    on_math(CTR_CUDA_TF32, "products, tf32", 2e-3, test_quick());
    on_math(CTR_CUDA_BF16, "products, bf16", 2e-2, test_quick());
    test_group("");
    bad_index();
#ifdef CTR_TEST_EMULATION
    test_equal("device memory that was never freed", (double)emu_memory(), 0);
#endif
    ctr_ctx_destroy(cpu);
    return test_end();
}
