/* Tests of the section IMAGE: every kind of file against the values it was made from, truncated and
   lying files, limits, the decoder hook, failing allocators, gzip, resizing.
   run: float double asan smoke */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#include "test.h"
#include "image_files.h"

/* A comparison that is named by its own text. */
#define CHECK(condition) test_true(check_name(#condition, __LINE__), (condition) != 0)

static const char *check_name(const char *text, int line)
{
    static char name[160];
    snprintf(name, sizeof name, "line %d: %.140s", line, text);
    return name;
}

static int refused(ctr_ctx *ctx, ctr_status status, const char *word)
{
    return test_fails(ctx, word, status, word);
}

static int is_stb(int index) { return index < 8 || index >= 14; }

static int luma(int r, int g, int b) { return (19595 * r + 38470 * g + 7471 * b + 32768) >> 16; }

/* What pixel (x, y) of file `index` must show in channel k of c. */
static int wanted(int index, int x, int y, int k, int c)
{
    static const int gray[22] = { 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1 };
    int v[3], i;
    for (i = 0; i < 3; i++) v[i] = picture_value(x, y, gray[index] ? 0 : i);
    if (index == 18) v[0] = v[1] = v[2] = picture_value(x, y, 1);
    if (index == 14) v[1] = v[2] = v[0];
    if (index == 2) { /* through the palette */
        v[1] = 255 - v[0];
        v[2] = v[0] / 2;
    }
    for (i = 0; index == 13 && i < 3; i++) v[i] = (v[i] * 100 / 255 * 255 + 50) / 100;
    if (c == 1) return gray[index] ? v[0] : luma(v[0], v[1], v[2]);
    return v[k];
}

static void test_files(ctr_ctx *ctx)
{
    static sink s;
    static const int gray[22] = { 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1 };
    int index, channels, x, y, k;
    for (index = 0; make_file(index, &s); index++)
        for (channels = 0; channels <= 3; channels += channels ? 2 : 1) {
            ctr_image image;
            int64_t h, w, c;
            /* lossy: 4:4:4, gray, and progressive with halved colour */
            int slack = index == 17 ? 6 : index == 18 ? 2 : index == 19 ? 18 : 0, worst = 0;
            CHECK(ctr_image_info(ctx, s.bytes, s.size, NULL, &h, &w, &c));
            CHECK(h == PICTURE_H && w == PICTURE_W && c == (gray[index] ? 1 : 3));
            if (is_stb(index) && !ctr_image_has_stb()) {
                CHECK(!ctr_image_decode(ctx, s.bytes, s.size, channels, NULL, &image));
                CHECK(refused(ctx, CTR_E_UNSUPPORTED, "apt-get install libstb-dev"));
                continue;
            }
            CHECK(ctr_image_decode(ctx, s.bytes, s.size, channels, NULL, &image));
            if (ctr_error(ctx) != CTR_OK) {
                fprintf(stderr, "file %d: %s\n", index, ctr_error_text(ctx));
                ctr_error_clear(ctx);
                continue;
            }
            CHECK(image.h == PICTURE_H && image.w == PICTURE_W);
            CHECK(image.c == (channels ? channels : c));
            for (y = 0; y < PICTURE_H; y++)
                for (x = 0; x < PICTURE_W; x++)
                    for (k = 0; k < image.c; k++) {
                        int v = image.pixels[(y * PICTURE_W + x) * (int)image.c + k];
                        int d = abs(v - wanted(index, x, y, k, (int)image.c));
                        worst = CTR_MAX_(worst, d);
                    }
            if (worst > slack) fprintf(stderr, "file %d is off by %d\n", index, worst);
            CHECK(worst <= slack);
            ctr_image_free(ctx, &image);
            CHECK(image.pixels == NULL);
        }
    CHECK(index == 22);
}

/* Every file cut at every byte is refused, and nothing stays allocated. */
static void test_truncation(ctr_ctx *ctx)
{
    static sink s;
    size_t held = ctr_memory_stats(ctx).held, n;
    int index;
    for (index = 0; make_file(index, &s); index++) {
        int text = index == 8 || index == 9; /* the last number may lose digits, and a space */
        for (n = 0; n + (text ? 4 : 0) < s.size; n++) {
            ctr_image image;
            uint8_t *copy = (uint8_t *)malloc(n ? n : 1); /* exactly as long: ASan looks on */
            memcpy(copy, s.bytes, n);
            if (ctr_image_decode(ctx, copy, n, 0, NULL, &image)) {
                fprintf(stderr, "file %d cut at %d of %d was taken\n", index, (int)n, (int)s.size);
                CHECK(!"a truncated file is refused");
                ctr_image_free(ctx, &image);
            }
            if (ctr_error(ctx) == CTR_E_UNSUPPORTED) ctr_error_clear(ctx); /* no stb_image */
            else CHECK(refused(ctx, CTR_E_FORMAT, "image: "));
            free(copy);
        }
    }
    CHECK(ctr_memory_stats(ctx).held == held);
}

/* A PNG's header with other sides, its checksum put right. */
static void lie_png(sink *s, uint32_t w, uint32_t h)
{
    size_t end;
    make_png(s, 2, 8);
    end = s->size;
    s->size = 16;
    put_be(s, w, 4);
    put_be(s, h, 4);
    s->size = 29;
    put_be(s, files_crc(s->bytes + 12, 17), 4);
    s->size = end;
}

static int refuses(ctr_ctx *ctx, const sink *s, const ctr_image_limits *limits, const char *word)
{
    ctr_image image;
    int ok = !ctr_image_decode(ctx, s->bytes, s->size, 0, limits, &image) && image.pixels == NULL;
    return refused(ctx, CTR_E_FORMAT, word) && ok;
}

static void test_lies(ctr_ctx *ctx)
{
    static sink s;
    static const char *const others[] = { "GIF89a......", "8BPS........", "II*\0........",
                                          "RIFF....WEBPVP8 ", "P4 8 8 ........", "P1 1 1 0 1 0 1 0",
                                          "#?RADIANCE......" };
    static const char *const names[] = { "GIF", "PSD", "TIFF", "WebP", "PBM", "PBM", "HDR" };
    ctr_image_limits limits = ctr_image_limits_default();
    size_t i;
    lie_png(&s, 60000, 60000);
    CHECK(refuses(ctx, &s, NULL, "PNG says 60000 x 60000 pixels"));
    lie_png(&s, 0x7fffffff, 3);
    CHECK(refuses(ctx, &s, NULL, "max_side"));
    lie_png(&s, 0xffffffffu, 0xffffffffu);
    CHECK(refuses(ctx, &s, NULL, "max_side"));
    lie_png(&s, 0, 5);
    CHECK(refuses(ctx, &s, NULL, "max_side"));
    lie_png(&s, 10000, 10000);
    CHECK(refuses(ctx, &s, NULL, "max_pixels"));
    lie_png(&s, 5000, 5000);
    CHECK(refuses(ctx, &s, NULL, "max_pixels_per_byte"));
    if (ctr_image_has_stb()) {
        lie_png(&s, 25, 12); /* more than the data holds */
        CHECK(refuses(ctx, &s, NULL, "corrupt"));
        make_png(&s, 2, 8);
        s.size = 8 + 25; /* signature and IHDR, no data */
        put_chunk(&s, "IEND", s.bytes, 0);
        CHECK(refuses(ctx, &s, NULL, "no IDAT"));
    }
    make_png(&s, 2, 8);
    s.bytes[200] ^= 1;
    CHECK(refuses(ctx, &s, NULL, "checksum"));
    make_png(&s, 2, 8);
    limits.max_side = 19;
    CHECK(refuses(ctx, &s, &limits, "1..19"));
    limits = ctr_image_limits_default();
    limits.max_pixels = 239;
    CHECK(refuses(ctx, &s, &limits, "more than 239"));
    limits = ctr_image_limits_default();
    limits.max_bytes = 100;
    CHECK(refuses(ctx, &s, &limits, "max_bytes"));
    for (i = 0; i < sizeof others / sizeof others[0]; i++) {
        memcpy(s.bytes, others[i], 12);
        s.size = 12;
        if (i == 3) memcpy(s.bytes, others[i], s.size = 16);
        CHECK(refuses(ctx, &s, NULL, names[i]));
    }
    memset(s.bytes, 0, 18); /* the 18-byte TGA that asks for two gigabytes */
    s.bytes[2] = 2;
    s.bytes[12] = s.bytes[13] = s.bytes[14] = s.bytes[15] = 0xFF;
    s.bytes[16] = 32;
    s.size = 18;
    CHECK(refuses(ctx, &s, NULL, "not a PNG, JPEG, BMP or PNM file (it begins with 00 00)"));
    s.size = 0;
    CHECK(refuses(ctx, &s, NULL, "empty"));
    put_text(&s, "P6 70000 1 255\n");
    CHECK(refuses(ctx, &s, NULL, "max_side"));
    s.size = 0;
    put_text(&s, "P5 2 2 10\n\1\2\3\13");
    CHECK(refuses(ctx, &s, NULL, "above its maximum"));
    s.size = 0;
    put_text(&s, "P2 2 2 10\n1 2 x 3 4");
    CHECK(refuses(ctx, &s, NULL, "not a number"));
    s.size = 0;
    put_text(&s, "P5 99999999999999999999 2 10\n1 2 3 4");
    CHECK(refuses(ctx, &s, NULL, "header"));
    make_bmp(&s, 24);
    s.bytes[30] = 1;
    CHECK(refuses(ctx, &s, NULL, "run-length"));
    make_bmp(&s, 24);
    s.bytes[25] = 0x80; /* a height of -2^31 and some */
    CHECK(refuses(ctx, &s, NULL, "max_side"));
    memcpy(s.bytes, jpeg_color, s.size = sizeof jpeg_color);
    for (i = 2; i + 1 < s.size; i++) /* SOF0 becomes SOF9: arithmetic coding */
        if (s.bytes[i] == 0xFF && s.bytes[i + 1] == 0xC0) s.bytes[i + 1] = 0xC9;
    CHECK(refuses(ctx, &s, NULL, "arithmetic"));
    memcpy(s.bytes, jpeg_color, s.size = sizeof jpeg_color);
    for (i = 2; i + 1 < s.size && !(s.bytes[i] == 0xFF && s.bytes[i + 1] == 0xC4); i++) { }
    memset(s.bytes + i + 5, 255, 16); /* 4080 codes in a table of 256 */
    CHECK(refuses(ctx, &s, NULL, "Huffman"));
    memcpy(s.bytes, jpeg_color, s.size = sizeof jpeg_color);
    for (i = 2; i + 1 < s.size && !(s.bytes[i] == 0xFF && s.bytes[i + 1] == 0xC0); i++) { }
    s.bytes[i + 11] = 0x31; /* sampling factors 3 and 2 */
    s.bytes[i + 14] = 0x21;
    CHECK(refuses(ctx, &s, NULL, "frame header"));
    make_bmp(&s, 8);
    s.bytes[10] = 54 + 4; /* a palette of one colour, then rows full of other indices */
    s.bytes[11] = 0;
    CHECK(refuses(ctx, &s, NULL, "palette"));
}

static void test_arguments(ctr_ctx *ctx)
{
    static sink s;
    ctr_image_limits limits = ctr_image_limits_default();
    ctr_image image;
    int64_t h, w, c;
    make_pnm(&s, 6, 255);
    CHECK(!ctr_image_decode(ctx, s.bytes, s.size, 2, NULL, &image));
    CHECK(refused(ctx, CTR_E_VALUE, "channels must be 0, 1 or 3, got 2"));
    limits.max_side = 70000;
    CHECK(!ctr_image_decode(ctx, s.bytes, s.size, 0, &limits, &image));
    CHECK(refused(ctx, CTR_E_VALUE, "max_side"));
    limits = ctr_image_limits_default();
    limits.max_pixels_per_byte = 0;
    CHECK(!ctr_image_info(ctx, s.bytes, s.size, &limits, &h, &w, &c) && h == 0);
    CHECK(refused(ctx, CTR_E_VALUE, "limits"));
    CHECK(!ctr_image_create(ctx, 0, 4, 3, &image) && refused(ctx, CTR_E_SHAPE, "0 x 4 x 3"));
    CHECK(!ctr_image_create(ctx, 4, 4, 2, &image) && refused(ctx, CTR_E_SHAPE, "4 x 4 x 2"));
    CHECK(!ctr_image_create(ctx, 4, 4, 2, &image)); /* the error stays: nothing else happens */
    CHECK(!ctr_image_decode(ctx, s.bytes, s.size, 0, NULL, &image) && !image.pixels);
    CHECK(refused(ctx, CTR_E_SHAPE, "4 x 4 x 2"));
}

/* ---- loading
 * ------------------------------------------------------------------------------------- */

static void test_load(ctr_ctx *ctx, const char *folder)
{
    static sink s;
    char path[600], longer[600];
    ctr_image_limits limits = ctr_image_limits_default();
    ctr_image image;
    FILE *f;
    snprintf(path, sizeof path, "%s/test_image.ppm", folder);
    make_pnm(&s, 6, 255);
    f = fopen(path, "wb");
    CHECK(f != NULL);
    if (!f) return;
    CHECK(fwrite(s.bytes, 1, s.size, f) == s.size && fclose(f) == 0);
    CHECK(ctr_image_load(ctx, path, 1, NULL, &image) && image.c == 1 && image.w == PICTURE_W);
    ctr_image_free(ctx, &image);
    limits.max_bytes = 100;
    CHECK(!ctr_image_load(ctx, path, 1, &limits, &image));
    CHECK(refused(ctx, CTR_E_FORMAT, "test_image.ppm: the file is larger than max_bytes"));
    f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(s.bytes, 1, 300, f) == 300 && fclose(f) == 0);
    CHECK(!ctr_image_load(ctx, path, 1, NULL, &image));
    CHECK(refused(ctx, CTR_E_FORMAT, "test_image.ppm: the PNM ends before its last pixel"));
    CHECK(remove(path) == 0);
    CHECK(!ctr_image_load(ctx, path, 1, NULL, &image) && !image.pixels);
    CHECK(refused(ctx, CTR_E_FILE, "test_image.ppm: cannot open it: No such file"));
    CHECK(!ctr_image_load(ctx, folder, 1, NULL, &image));
    CHECK(ctr_error(ctx) == CTR_E_FILE || ctr_error(ctx) == CTR_E_FORMAT ||
          ctr_error(ctx) == CTR_E_MEMORY);
    ctr_error_clear(ctx);
    memset(longer, 'a', 500);
    memcpy(longer + 490, "/end.png", 9);
    CHECK(!ctr_image_load(ctx, longer, 0, NULL, &image));
    CHECK(refused(ctx, CTR_E_FILE, "aaa/end.png: cannot open it"));
}

/* ---- decoder hook
 * -------------------------------------------------------------------------------- */

/* Files "XYZ" height width, filled with 7. */
static int xyz_info(void *user, const uint8_t *p, size_t n, int64_t *h, int64_t *w, int64_t *c)
{
    (*(int *)user)++;
    if (n < 3 || memcmp(p, "XYZ", 3) != 0) return 0;
    if (n < 5) return -1;
    *h = p[3] == 255 ? 100000 : p[3];
    *w = p[4];
    *c = 3;
    return 1;
}
static int xyz_decode(void *user, const uint8_t *p, size_t n, int64_t h, int64_t w, int64_t c,
                      uint8_t *pixels)
{
    (void)user;
    memset(pixels, 7, (size_t)(h * w * c));
    return n < 6 || p[5] != '!';
}

static void test_hook(ctr_ctx *ctx)
{
    static sink s;
    int calls = 0;
    ctr_image_decoder decoder;
    ctr_image_limits limits = ctr_image_limits_default();
    ctr_image image;
    decoder.user = &calls;
    decoder.info_fn = xyz_info;
    decoder.decode_fn = xyz_decode;
    limits.decoder = &decoder;
    s.size = 0;
    put_text(&s, "XYZ\4\5");
    CHECK(ctr_image_decode(ctx, s.bytes, s.size, 0, &limits, &image));
    CHECK(image.h == 4 && image.w == 5 && image.c == 3 && image.pixels[59] == 7 && calls == 1);
    ctr_image_free(ctx, &image);
    CHECK(ctr_image_decode(ctx, s.bytes, s.size, 1, &limits, &image));
    CHECK(image.c == 1 && image.pixels[19] == 7);
    ctr_image_free(ctx, &image);
    CHECK(!ctr_image_decode(ctx, s.bytes, 4, 0, &limits, &image));
    CHECK(refused(ctx, CTR_E_FORMAT, "the decoder says"));
    s.bytes[3] = 255;
    CHECK(!ctr_image_decode(ctx, s.bytes, s.size, 0, &limits, &image));
    CHECK(refused(ctx, CTR_E_FORMAT, "max_side"));
    s.bytes[3] = 4;
    put(&s, '!');
    CHECK(!ctr_image_decode(ctx, s.bytes, s.size, 0, &limits, &image) && !image.pixels);
    CHECK(refused(ctx, CTR_E_FORMAT, "the decoder says"));
    make_pnm(&s, 5, 255); /* not its own: the built-in ones take it */
    CHECK(ctr_image_decode(ctx, s.bytes, s.size, 0, &limits, &image));
    ctr_image_free(ctx, &image);
}

/* ---- memory
 * -------------------------------------------------------------------------------------- */

typedef struct counter {
    int left; /* allocations until one fails; -1: never */
    size_t held;
} counter;
static void *counted_alloc(void *user, size_t size)
{
    counter *c = (counter *)user;
    if (c->left == 0) return NULL;
    if (c->left > 0) c->left--;
    c->held += size;
    return malloc(size);
}
static void counted_free(void *user, void *p, size_t size)
{
    ((counter *)user)->held -= size;
    free(p);
}

static void test_memory(void)
{
    static sink s;
    static ctr_real out[64 * 3];
    counter count = { -1, 0 };
    ctr_config config = ctr_config_default();
    ctr_ctx *ctx;
    int index, n, done;
    size_t before;
    config.allocator.user = &count;
    config.allocator.alloc_fn = counted_alloc;
    config.allocator.free_fn = counted_free;
    config.threads = 1;
    ctx = ctr_ctx_create(&config);
    before = count.held;
    for (index = 0; make_file(index, &s); index++) {
        if (is_stb(index) && !ctr_image_has_stb()) continue;
        for (n = 0, done = 0; !done; n++) { /* fail the first, the second, ... until none fails */
            ctr_image image, small;
            count.left = n;
            memset(&small, 0, sizeof small);
            done = ctr_image_decode(ctx, s.bytes, s.size, index % 2 ? 1 : 3, NULL, &image) &&
                   ctr_image_resize(ctx, &image, NULL, 5, 4, CTR_INTERP_BICUBIC, &small) &&
                   ctr_image_resize_real(ctx, &image, NULL, 8, 8, CTR_INTERP_BILINEAR, out);
            count.left = -1;
            if (!done) CHECK(refused(ctx, CTR_E_MEMORY, "memory"));
            ctr_image_free(ctx, &image);
            ctr_image_free(ctx, &small);
            CHECK(count.held == before);
            CHECK(n < 20);
            if (n >= 20) break;
        }
        CHECK(n >= 5); /* pixels, three for the resize, one for the last */
    }
    ctr_ctx_destroy(ctx);
    CHECK(count.held == 0);
#ifdef CTR_STB_FILE_
    {
        void *p = malloc(16);
        CHECK(ctr_image_regrow_(p, CTR_STB_GROW_ + 1) == NULL); /* a bomb */
        p = ctr_image_regrow_(p, 32);
        CHECK(p != NULL);
        free(p);
    }
#endif
}

/* ---- gzip
 * ---------------------------------------------------------------------------------------- */

static void test_gzip(ctr_ctx *ctx)
{
    static uint8_t file[1400];
    const size_t n = sizeof gzip_file;
    uint8_t *out;
    size_t size, i, held = ctr_memory_stats(ctx).held;
    int taken;
    memcpy(file, gzip_file, n);
    if (!ctr_image_has_stb()) {
        CHECK(!ctr_image_gunzip_(ctx, file, n, 600, &out, &size));
        CHECK(refused(ctx, CTR_E_UNSUPPORTED, "a .gz file needs stb_image.h"));
        return;
    }
    CHECK(ctr_image_gunzip_(ctx, file, n, 600, &out, &size) && size == 600);
    for (i = 0; i < 600; i++) CHECK(out[i] == (i * i / 7) % 251);
    ctr_free_host_(ctx, out, size);
    CHECK(!ctr_image_gunzip_(ctx, file, n, 599, &out, &size));
    CHECK(refused(ctx, CTR_E_FORMAT, "states 600 bytes, at most 599"));
    {   /* the shortest stream: no padding behind the last code */
        static const uint8_t one[21] = { 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b, 4, 0,
                                         0x43, 0xbe, 0xb7, 0xe8, 1, 0, 0, 0 };
        CHECK(ctr_image_gunzip_(ctx, one, sizeof one, 10, &out, &size) && size == 1);
        CHECK(out && out[0] == 'a');
        ctr_free_host_(ctx, out, size);
    }
    for (i = 0; i < n; i++) { /* cut anywhere, or with any byte of the content changed */
        uint8_t *copy = (uint8_t *)malloc(i ? i : 1);
        memcpy(copy, file, i);
        CHECK(!ctr_image_gunzip_(ctx, copy, i, 600, &out, &size) && !out);
        CHECK(refused(ctx, CTR_E_FORMAT, "gzip"));
        free(copy);
    }
    for (i = 22, taken = 0; i < n; i++) { /* after header and name */
        file[i] ^= 0x10;
        if (ctr_image_gunzip_(ctx, file, n, 600, &out, &size)) {
            size_t k; /* bits that mean nothing: the checksum vouches for the content */
            for (k = 0; k < 600; k++) CHECK(out[k] == (k * k / 7) % 251);
            ctr_free_host_(ctx, out, size);
            taken++;
        } else {
            CHECK(refused(ctx, CTR_E_FORMAT, "gzip"));
        }
        file[i] ^= 0x10;
    }
    CHECK(taken <= 3);
    memset(file + n, 0, 20); /* a second member, which holds nothing */
    memcpy(file + n, "\x1f\x8b\x08", 3);
    file[n + 10] = 3;
    CHECK(!ctr_image_gunzip_(ctx, file, n + 20, 2000, &out, &size));
    CHECK(refused(ctx, CTR_E_FORMAT, "member"));
    file[n - 2] = 0x70; /* states 1.8 GB */
    CHECK(!ctr_image_gunzip_(ctx, file, n, SIZE_MAX / 4, &out, &size));
    CHECK(refused(ctx, CTR_E_FORMAT, "states"));
    CHECK(ctr_memory_stats(ctx).held == held);
}

/* ---- resizing
 * ------------------------------------------------------------------------------------ */

static void test_resize(ctr_ctx *ctx)
{
    static ctr_real numbers[40 * 40 * 3];
    ctr_image image, out;
    ctr_box box;
    int64_t i;
    int k, x, y;
    CHECK(ctr_image_create(ctx, PICTURE_H, PICTURE_W, 3, &image));
    for (y = 0; y < PICTURE_H; y++)
        for (x = 0; x < PICTURE_W; x++)
            for (k = 0; k < 3; k++)
                image.pixels[(y * PICTURE_W + x) * 3 + k] = (uint8_t)picture_value(x, y, k);
    for (k = 0; k < 2; k++) { /* its own size: nothing changes, exactly */
        ctr_interp interp = k ? CTR_INTERP_BICUBIC : CTR_INTERP_BILINEAR;
        CHECK(ctr_image_resize(ctx, &image, NULL, PICTURE_H, PICTURE_W, interp, &out));
        CHECK(memcmp(out.pixels, image.pixels, PICTURE_H * PICTURE_W * 3) == 0);
        ctr_image_free(ctx, &out);
        /* a wide enough shrink is the mean of everything with a triangle's weights: for a linear
           ramp the middle */
        CHECK(ctr_image_resize_real(ctx, &image, NULL, 1, 1, interp, numbers));
        CHECK(fabs((double)numbers[0] - 0.5) < 0.005 && fabs((double)numbers[1] - 0.5) < 0.005);
        /* bytes are the rounded numbers */
        CHECK(ctr_image_resize(ctx, &image, NULL, 31, 37, interp, &out));
        CHECK(ctr_image_resize_real(ctx, &image, NULL, 31, 37, interp, numbers));
        for (i = 0; i < 31 * 37 * 3; i++) {
            double v = (double)numbers[i] * 255;
            v = v < 0 ? 0 : v > 255 ? 255 : v;
            if (fabs(v - out.pixels[i]) > 0.501) CHECK(!"bytes are the rounded numbers");
        }
        ctr_image_free(ctx, &out);
    }
    /* nothing outside the box has influence */
    box.top = 3;
    box.left = 4;
    box.h = 5;
    box.w = 6;
    CHECK(ctr_image_resize(ctx, &image, &box, 9, 9, CTR_INTERP_BICUBIC, &out));
    for (y = 0; y < PICTURE_H; y++)
        for (x = 0; x < PICTURE_W; x++)
            if (y < 3 || y >= 8 || x < 4 || x >= 10)
                memset(image.pixels + (y * PICTURE_W + x) * 3, 255, 3);
    {
        ctr_image again;
        CHECK(ctr_image_resize(ctx, &image, &box, 9, 9, CTR_INTERP_BICUBIC, &again));
        CHECK(memcmp(again.pixels, out.pixels, 9 * 9 * 3) == 0);
        ctr_image_free(ctx, &again);
    }
    ctr_image_free(ctx, &out);
    box.w = 17;
    CHECK(!ctr_image_resize(ctx, &image, &box, 9, 9, CTR_INTERP_BICUBIC, &out) && !out.pixels);
    CHECK(refused(ctx, CTR_E_VALUE, "leaves the image of 12 x 20"));
    box.w = 0;
    CHECK(!ctr_image_resize_real(ctx, &image, &box, 9, 9, CTR_INTERP_BICUBIC, numbers));
    CHECK(refused(ctx, CTR_E_VALUE, "w 0"));
    CHECK(!ctr_image_resize(ctx, &image, NULL, 0, 9, CTR_INTERP_BICUBIC, &out));
    CHECK(refused(ctx, CTR_E_SHAPE, "to 0 x 9"));
    ctr_image_free(ctx, &image);
    CHECK(!ctr_image_resize(ctx, &image, NULL, 4, 4, CTR_INTERP_BICUBIC, &out)); /* an empty one */
    CHECK(refused(ctx, CTR_E_SHAPE, "0 x 0 x 0"));
}

int main(int argc, char **argv)
{
    ctr_ctx *ctx;
    test_begin("test_image", argc, argv);
    ctx = test_ctx(1, CTR_KERNELS_AUTO);
    if (!ctr_image_has_stb())
        test_skip("PNG, JPEG, BMP and gzip", "built without stb_image; their refusal is tested");
    test_group("files of every kind");
    test_files(ctx);
    test_group("files cut at every byte");
    test_truncation(ctx);
    test_group("lies and limits");
    test_lies(ctx);
    test_group("arguments");
    test_arguments(ctx);
    test_group("loading");
    test_load(ctx, ".");
    test_group("another decoder");
    test_hook(ctx);
    test_group("every allocation fails once");
    test_memory();
    test_group("gzip");
    test_gzip(ctx);
    test_group("resizing");
    test_resize(ctx);
    test_fine(ctx, "nothing is pending");
    ctr_ctx_destroy(ctx);
    return test_end();
}
