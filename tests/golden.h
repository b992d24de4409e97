/* golden.h - reads the golden files in tests/golden and remakes their inputs.
 *
 * The golden files hold results that PyTorch and torchvision computed in float64; make_golden.py
 * says how, and each file's head lists its keys. Inputs are not stored: they come from a hash of
 * their name, which golden_fill computes to the same bits as the script.
 *
 *     golden_file g;
 *     if (!golden_open(&g, "tests/golden/golden_ops.txt")) return 1;
 *     golden_fill("x:gelu:37", x, 37, 4.0);
 *     ... y = gelu(x) ...
 *     error = golden_digest_error(&g, "gelu:37:y", y, 37, 0.0);     (expect <= 1e-8 in double)
 *     golden_close(&g);
 *
 * A missing key, a wrong count and a value that is not finite all give the error GOLDEN_BAD, with a
 * line on stderr, so that a comparison can never pass by finding nothing to compare.
 */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define GOLDEN_FN __attribute__((unused)) static
#else
#define GOLDEN_FN static
#endif

#define GOLDEN_BAD 1e300 /* the error of a comparison that could not be made */

typedef struct golden_record {
    const char *key;
    const double *values; /* [count] */
    size_t count;
} golden_record;

typedef struct golden_file {
    char *text; /* the whole file, its keys cut out in place */
    double *values;
    golden_record *records;
    size_t count; /* of records */
    size_t next;  /* where the next search starts: tests ask in file order */
} golden_file;

/* --------------------------------------------------------------------------------------- inputs */

/* 32-bit FNV-1a, continued from h: names can be joined without copying them. */
GOLDEN_FN uint32_t golden_fnv_more_(uint32_t h, const char *name) {
    for (; *name; name++) h = (h ^ (uint32_t)(unsigned char)*name) * 0x01000193u;
    return h;
}

/* 32-bit FNV-1a of an ASCII name: the seed of its fill. */
GOLDEN_FN uint32_t golden_fnv(const char *name) {
    return golden_fnv_more_(0x811C9DC5u, name);
}

/* Top 24 bits of the mixed hash of (seed, i). */
GOLDEN_FN uint32_t golden_bits(uint32_t seed, size_t i) {
    uint32_t x = (uint32_t)((uint64_t)(uint32_t)i * 2654435761u + (uint64_t)seed * 0x9E3779B9u);
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x >> 8;
}

/* Value in [-1, 1), a multiple of 2^-23: exact in float and in double. */
GOLDEN_FN double golden_hash(uint32_t seed, size_t i) {
    return (double)golden_bits(seed, i) / 8388608.0 - 1.0;
}

/* v[i] = scale * hash(fnv(name), i) */
GOLDEN_FN void golden_fill(const char *name, double *v, size_t n, double scale) {
    uint32_t seed = golden_fnv(name);
    size_t i;
    for (i = 0; i < n; i++) v[i] = scale * golden_hash(seed, i);
}

/* The same, rounded to float. */
GOLDEN_FN void golden_fillf(const char *name, float *v, size_t n, double scale) {
    uint32_t seed = golden_fnv(name);
    size_t i;
    for (i = 0; i < n; i++) v[i] = (float)(scale * golden_hash(seed, i));
}

GOLDEN_FN int golden_ends_(const char *name, const char *tail) {
    size_t n = strlen(name), m = strlen(tail);
    return n >= m && strcmp(name + n - m, tail) == 0;
}

/* Parameter or running statistic of golden_net.txt and golden_step.txt by its torchvision name.
 * fan_in is the number of inputs of one output (kernel area times input channels) for weights of
 * two or more dimensions, in OIHW or [out, in] order; 0 for norm weights, biases and running
 * statistics. */
GOLDEN_FN void golden_fill_param(const char *name, double *v, size_t n, size_t fan_in) {
    double scale = fan_in ? sqrt(6.0 / (double)fan_in) * 0.5 : 0.1, base = 0.0;
    size_t i;
    if (!fan_in && golden_ends_(name, "running_var")) {
        base = 1.0;
        scale = 0.2;
    } else if (!fan_in && golden_ends_(name, "weight")) {
        base = 1.0;
    }
    golden_fill(name, v, n, scale);
    for (i = 0; i < n; i++) v[i] = base + v[i];
}

/* The two pictures of golden_aug.txt: noise is 13 x 17 x 3, smooth is 32 x 32 x 3, HWC. */
GOLDEN_FN void golden_image_noise(unsigned char *image) {
    uint32_t seed = golden_fnv("noise");
    size_t i;
    for (i = 0; i < 13 * 17 * 3; i++)
        image[i] = (unsigned char)(((uint64_t)golden_bits(seed, i) * 255u) >> 24);
}

GOLDEN_FN void golden_image_smooth(unsigned char *image) {
    int x, y;
    for (y = 0; y < 32; y++)
        for (x = 0; x < 32; x++) {
            unsigned char *p = image + (y * 32 + x) * 3;
            p[0] = (unsigned char)(x * 255 / 31);
            p[1] = (unsigned char)(y * 255 / 31);
            p[2] = (unsigned char)((x * x + y * y) * 255 / 1922);
        }
}

/* ---------------------------------------------------------------------------------------- files */

GOLDEN_FN void golden_close(golden_file *g) {
    free(g->text);
    free(g->values);
    free(g->records);
    memset(g, 0, sizeof *g);
}

/* The file as one string with a 0 at the end, or NULL. */
GOLDEN_FN char *golden_read_(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    long size = -1;
    if (!f) return NULL;
    if (fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    if (size >= 0 && fseek(f, 0, SEEK_SET) == 0) text = (char *)malloc((size_t)size + 1);
    if (text) {
        size_t got = fread(text, 1, (size_t)size, f);
        text[got] = 0;
    }
    fclose(f);
    return text;
}

/* One line "key count v0 v1 ..." into a record; 0 when it is malformed. */
GOLDEN_FN int golden_line_(char *line, golden_record *r, double *values) {
    char *end = strchr(line, ' ');
    size_t i;
    if (!end || end == line) return 0;
    *end = 0;
    r->key = line;
    r->values = values;
    r->count = (size_t)strtoul(end + 1, &line, 10);
    for (i = 0; i < r->count; i++) {
        if (*line != ' ') return 0;
        values[i] = strtod(line + 1, &end);
        if (end == line + 1) return 0;
        line = end;
    }
    return *line == 0 || *line == '\r';
}

/* Reads a golden file; 0 with a line on stderr when it is missing or malformed. */
GOLDEN_FN int golden_open(golden_file *g, const char *path) {
    size_t lines = 1, blanks = 1, used = 0;
    char *p, *next;
    memset(g, 0, sizeof *g);
    g->text = golden_read_(path);
    for (p = g->text; p && *p; p++) {
        lines += *p == '\n';
        blanks += *p == ' ';
    }
    if (g->text) {
        g->records = (golden_record *)malloc(lines * sizeof *g->records);
        g->values = (double *)malloc(blanks * sizeof *g->values); /* a value follows a blank */
    }
    if (!g->records || !g->values) {
        fprintf(stderr, "golden: cannot read %s\n", path);
        golden_close(g);
        return 0;
    }
    for (p = g->text; *p; p = next) {
        next = strchr(p, '\n');
        if (next) *next++ = 0;
        else next = p + strlen(p);
        if (*p == '#' || *p == 0) continue;
        if (!golden_line_(p, &g->records[g->count], g->values + used)) {
            fprintf(stderr, "golden: %s: bad line after record %lu\n", path,
                    (unsigned long)g->count);
            golden_close(g);
            return 0;
        }
        used += g->records[g->count++].count;
    }
    return 1;
}

/* The record of a key, or NULL without a word. All keys: g->records[0 .. g->count-1]. */
GOLDEN_FN const golden_record *golden_find(golden_file *g, const char *key) {
    size_t i;
    for (i = 0; i < g->count; i++) {
        size_t at = (g->next + i) % g->count;
        if (strcmp(g->records[at].key, key) == 0) {
            g->next = at + 1;
            return &g->records[at];
        }
    }
    return NULL;
}

/* The values of a key that must exist; NULL with a line on stderr. */
GOLDEN_FN const double *golden_get(golden_file *g, const char *key, size_t *count) {
    const golden_record *r = golden_find(g, key);
    if (count) *count = r ? r->count : 0;
    if (!r) fprintf(stderr, "golden: no record %s\n", key);
    return r ? r->values : NULL;
}

/* ---------------------------------------------------------------------------------- comparisons */

/* By its bits, so that it also holds under -ffast-math. */
GOLDEN_FN int golden_finite_(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return ((bits >> 52) & 0x7ff) != 0x7ff;
}

GOLDEN_FN double golden_max_(double a, double b) {
    return a > b ? a : b;
}

/* Element i of an array of float (single != 0) or double. */
GOLDEN_FN double golden_at_(const void *v, int single, size_t i) {
    return single ? (double)((const float *)v)[i] : ((const double *)v)[i];
}

/* n, sum, sum of squares, dot with the probe of the key; 0 when a value is not finite. */
GOLDEN_FN int golden_digest_(const char *key, const void *v, int single, size_t n, double out[4]) {
    uint32_t seed = golden_fnv_more_(golden_fnv("probe:"), key);
    size_t i;
    out[0] = (double)n;
    out[1] = out[2] = out[3] = 0.0;
    for (i = 0; i < n; i++) {
        double a = golden_at_(v, single, i);
        if (!golden_finite_(a)) return 0;
        out[1] += a;
        out[2] += a * a;
        out[3] += a * golden_hash(seed, i);
    }
    return 1;
}

GOLDEN_FN double golden_digest_error_(golden_file *g, const char *key, const void *v, int single,
                                      size_t n, double floor_rms) {
    size_t count, i;
    const double *want = golden_get(g, key, &count);
    double got[4], rms, norm, worst;
    if (!want) return GOLDEN_BAD;
    if (count != 4 + (n < 4 ? n : 4) || want[0] != (double)n) {
        fprintf(stderr, "golden: %s has %.0f values, not %lu\n", key, want[0], (unsigned long)n);
        return GOLDEN_BAD;
    }
    if (!golden_digest_(key, v, single, n, got)) {
        fprintf(stderr, "golden: %s: a value is not finite\n", key);
        return GOLDEN_BAD;
    }
    rms = golden_max_(sqrt(want[2] / (double)n), floor_rms);
    if (rms <= 0.0) rms = 1.0; /* all zero is expected: the error is absolute */
    norm = rms * sqrt((double)n);
    worst = fabs(got[1] - want[1]) / (norm + fabs(want[1]));
    worst = golden_max_(worst, fabs(got[2] - want[2]) / (2.0 * norm * norm));
    worst = golden_max_(worst, fabs(got[3] - want[3]) / norm);
    for (i = 4; i < count; i++) {
        double a = golden_at_(v, single, i - 4);
        worst = golden_max_(worst, fabs(a - want[i]) / golden_max_(rms, fabs(want[i])));
    }
    return worst;
}

/* How far an array is from the digest of a key, relative to the array's root mean square (or to
 * floor_rms if that is larger: for arrays that are zero but for rounding). If every value is off by
 * a relative e, independently or together, the result is about e. A single wrong value of n is seen
 * divided by sqrt(n). */
GOLDEN_FN double golden_digest_error(golden_file *g, const char *key, const double *v, size_t n,
                                     double floor_rms) {
    return golden_digest_error_(g, key, v, 0, n, floor_rms);
}

GOLDEN_FN double golden_digest_errorf(golden_file *g, const char *key, const float *v, size_t n,
                                      double floor_rms) {
    return golden_digest_error_(g, key, v, 1, n, floor_rms);
}

GOLDEN_FN double golden_array_error_(golden_file *g, const char *key, const void *v, int single,
                                     size_t n) {
    size_t count, i;
    const double *want = golden_get(g, key, &count);
    double worst = 0.0;
    if (!want) return GOLDEN_BAD;
    if (count != n) {
        fprintf(stderr, "golden: %s has %lu values, not %lu\n", key, (unsigned long)count,
                (unsigned long)n);
        return GOLDEN_BAD;
    }
    for (i = 0; i < n; i++) {
        double a = golden_at_(v, single, i);
        if (!golden_finite_(a)) {
            fprintf(stderr, "golden: %s: value %lu is not finite\n", key, (unsigned long)i);
            return GOLDEN_BAD;
        }
        worst = golden_max_(worst, fabs(a - want[i]));
    }
    return worst;
}

/* Largest absolute difference from a record that is stored whole. */
GOLDEN_FN double golden_array_error(golden_file *g, const char *key, const double *v, size_t n) {
    return golden_array_error_(g, key, v, 0, n);
}

GOLDEN_FN double golden_array_errorf(golden_file *g, const char *key, const float *v, size_t n) {
    return golden_array_error_(g, key, v, 1, n);
}

#endif /* GOLDEN_H */
