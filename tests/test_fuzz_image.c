/* Mutates good picture files and gzip files and gives them to the readers. What it asserts: no
   crash (run it under ASan and UBSan), limits hold, an error for every refusal, no memory left
   behind. Deterministic: case number i is the same on every machine. Ends after FUZZ_CASES (default
   40000) or FUZZ_SECONDS (default 20).
   run: asan */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#include "test.h"
#include "image_files.h"

#ifndef FUZZ_CASES
#define FUZZ_CASES 40000
#endif
#ifndef FUZZ_SECONDS
#define FUZZ_SECONDS 20
#endif
#ifndef FUZZ_FIRST
#define FUZZ_FIRST 0
#endif

static uint32_t below(ctr_rng *rng, size_t n) { return (uint32_t)ctr_rng_below(rng, (int64_t)n); }

/* One small change of the bytes p[n], room for FILE_MAX. Returns the new size. */
static size_t mutate(ctr_rng *rng, uint8_t *p, size_t n)
{
    static const uint32_t odd[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff,
                                    0x80000000u, 0xffffffffu, 0xfffffffeu, 0x10000, 3, 100 };
    size_t at, k, length;
    uint32_t v;
    if (n == 0) return 0;
    at = below(rng, n < 64 || ctr_rng_below(rng, 2) ? n : 64); /* headers deserve more */
    switch (ctr_rng_below(rng, 7)) {
    case 0: p[at] = (uint8_t)(p[at] ^ (1u << ctr_rng_below(rng, 8))); break;
    case 1: p[at] = (uint8_t)ctr_rng_u32(rng); break;
    case 2:
    case 3: /* an odd number of 1, 2 or 4 bytes in either order */
        v = odd[ctr_rng_below(rng, (int64_t)(sizeof odd / sizeof odd[0]))];
        length = (size_t)1 << ctr_rng_below(rng, 3);
        for (k = 0; k < length && at + k < n; k++)
            p[at + k] = (uint8_t)(v >> 8 * (ctr_rng_below(rng, 2) ? k : length - 1 - k));
        break;
    case 4: /* a piece goes */
        length = below(rng, CTR_MIN_(n - at, (size_t)40) + 1);
        memmove(p + at, p + at + length, n - at - length);
        n -= length;
        break;
    case 5: /* a piece comes twice */
        length = below(rng, CTR_MIN_(n - at, (size_t)40) + 1);
        if (n + length > FILE_MAX) break;
        memmove(p + at + length, p + at, n - at);
        n += length;
        break;
    default: /* bytes from elsewhere in the file */
        length = below(rng, CTR_MIN_(n - at, (size_t)16) + 1);
        memmove(p + at, p + below(rng, n - length + 1), length);
    }
    return n;
}

/* Puts a PNG's checksums right, so that changes reach the decoder behind them. */
static void mend_png(uint8_t *p, size_t n)
{
    size_t at = 8, length, k;
    while (at <= n && n - at >= 12) {
        uint32_t crc;
        length = (size_t)p[at] << 24 | (size_t)p[at + 1] << 16 | (size_t)p[at + 2] << 8 | p[at + 3];
        if (length > n - at - 12) return;
        crc = files_crc(p + at + 4, length + 4);
        for (k = 0; k < 4; k++) p[at + 8 + length + k] = (uint8_t)(crc >> (24 - 8 * k));
        at += length + 12;
    }
}

/* Reads a picture and shrinks it. 1 if it was taken. */
static int try_image(ctr_ctx *ctx, ctr_rng *rng, const uint8_t *p, size_t n, int *bad)
{
    ctr_image_limits limits = ctr_image_limits_default();
    ctr_image image, small;
    int channels = (int)ctr_rng_below(rng, 3), ok;
    if (channels == 2) channels = 3;
    limits.max_pixels = 1 << 20;
    limits.max_side = 2000;
    ok = ctr_image_decode(ctx, p, n, channels, &limits, &image);
    if (ok != (ctr_error(ctx) == CTR_OK) || ok != (image.pixels != NULL)) *bad = 1;
    if (!ok) {
        if (ctr_error_text(ctx)[0] == 0 || strchr(ctr_error_text(ctx), '\n')) *bad = 1;
        return 0;
    }
    if (image.h < 1 || image.w < 1 || image.h > 2000 || image.w > 2000 ||
        image.h * image.w > limits.max_pixels || (image.c != 1 && image.c != 3) ||
        (channels && image.c != channels))
        *bad = 1;
    if (!ctr_image_resize(ctx, &image, NULL, 1 + ctr_rng_below(rng, 9), 1 + ctr_rng_below(rng, 9),
                          ctr_rng_below(rng, 2) ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR, &small))
        *bad = 1;
    ctr_image_free(ctx, &small);
    ctr_image_free(ctx, &image);
    return 1;
}

static int try_gzip(ctr_ctx *ctx, const uint8_t *p, size_t n, int *bad)
{
    uint8_t *out;
    size_t size;
    if (!ctr_image_gunzip_(ctx, p, n, 100000, &out, &size)) {
        if (ctr_error(ctx) == CTR_OK || out) *bad = 1;
        return 0;
    }
    if (size > 100000) *bad = 1;
    ctr_free_host_(ctx, out, size);
    return 1;
}

int main(int argc, char **argv)
{
    long cases, done = 0, taken = 0, wrong = 0, i;
    double start = ctr_platform_seconds_();
    static sink s;
    char what[80];
    ctr_ctx *ctx;
    size_t held;
    test_begin("test_fuzz_image", argc, argv);
    cases = test_quick() ? 3000 : FUZZ_CASES;
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    held = ctr_memory_stats(ctx).held;
    for (i = FUZZ_FIRST; i < FUZZ_FIRST + cases && wrong < 10; i++, done++) {
        int index = (int)(i % 23), bad = 0, k, changes, is_gzip = index == 22;
        uint8_t *exact;
        ctr_rng rng;
        if (ctr_platform_seconds_() - start > FUZZ_SECONDS) break;
        ctr_rng_init(&rng, 20, CTR_STREAM_USER, 0, i, 0);
        if (is_gzip) memcpy(s.bytes, gzip_file, s.size = sizeof gzip_file);
        else make_file(index, &s);
        changes = 1 + (int)ctr_rng_below(&rng, 6);
        for (k = 0; k < changes; k++) s.size = mutate(&rng, s.bytes, s.size);
        if (ctr_rng_below(&rng, 8) == 0) s.size = below(&rng, s.size + 1);
        if (!is_gzip && s.size > 8 && s.bytes[1] == 'P' && ctr_rng_below(&rng, 4))
            mend_png(s.bytes, s.size);
        exact = (uint8_t *)malloc(s.size ? s.size : 1); /* exactly as long: ASan looks on */
        memcpy(exact, s.bytes, s.size);
        taken += is_gzip ? try_gzip(ctx, exact, s.size, &bad)
                         : try_image(ctx, &rng, exact, s.size, &bad);
        free(exact);
        ctr_error_clear(ctx);
        if (bad || ctr_memory_stats(ctx).held != held) {
            snprintf(what, sizeof what, "case %ld: limits, one line for an error, no memory left",
                     i);
            test_true(what, 0);
            wrong++;
        }
    }
    ctr_ctx_destroy(ctx);
    snprintf(what, sizeof what, "%ld cases, %ld files taken, %ld refused", done, taken,
             done - taken);
    test_true(what, wrong == 0 && done >= 1000 && taken > 0 && taken < done);
    return test_end();
}
