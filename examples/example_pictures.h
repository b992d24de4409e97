/* example_pictures.h - the pictures the example programs make: PNG sheets, SVG curves and maps.
 *
 *     ex_sheet_views        rows of an image and its augmented views        (PNG)
 *     ex_sheet_neighbours   rows of a query and its nearest images          (PNG)
 *     ex_svg_curve          loss curves, with the value at chance           (SVG)
 *     ex_svg_map            2-D map of embeddings, coloured by class        (SVG)
 *     ex_png_write          any gray or RGB image
 *
 * Each builds its file in memory, writes `path.N.tmp`, N being the process, and renames it, so that
 * no reader ever sees half of one, and returns 0, or -1 after one line on stderr that says what
 * went wrong. Colours are 0xRRGGBB. Numbers have a point whatever the locale says. C99 that is also
 * C++11. */

#ifndef EX_PICTURES_H
#define EX_PICTURES_H

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if !defined(EX_FN) && defined(__GNUC__)
#define EX_FN static __attribute__((unused)) /* a program need not use all of it */
#elif !defined(EX_FN)
#define EX_FN static
#endif

#define EX_PATH 1024 /* longest path, with its end */

/* ==== Bytes, text and files ================================================================== */

typedef struct ex_bytes {
    unsigned char *data;
    size_t size, room;
    int failed; /* out of memory: what came later is missing, and ex_bytes_write refuses */
} ex_bytes;

EX_FN void ex_bytes_add(ex_bytes *b, const void *data, size_t n)
{
    if (n > b->room - b->size) {
        size_t room = 2 * (b->size + n) + 256;
        unsigned char *more = b->failed ? NULL : (unsigned char *)realloc(b->data, room);
        if (!more) {
            b->failed = 1;
            return;
        }
        b->data = more;
        b->room = room;
    }
    if (n) memcpy(b->data + b->size, data, n);
    b->size += n;
}

/* Writes what was gathered and gives the memory back, also on failure. 0, or -1 with a message. */
EX_FN int ex_bytes_write(ex_bytes *b, const char *path)
{
    char temporary[EX_PATH + 32];
    FILE *file = NULL;
    int ok = 0;
    errno = b->failed ? ENOMEM : ENAMETOOLONG;
    if (!b->failed && strlen(path) < EX_PATH) {
        snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
        file = fopen(temporary, "wb");
    }
    if (file) {
        ok = fwrite(b->data, 1, b->size, file) == b->size;
        if (fclose(file) != 0) ok = 0;
        if (ok && rename(temporary, path) != 0) ok = 0;
        if (!ok) {
            int why = errno;
            remove(temporary);
            errno = why;
        }
    }
    if (!ok) fprintf(stderr, "cannot write '%s': %s\n", path, strerror(errno));
    free(b->data);
    memset(b, 0, sizeof *b);
    return ok ? 0 : -1;
}

/* A finite number, told by its bits' range so that -ffast-math cannot remove the test. */
EX_FN int ex_finite(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (bits >> 52 & 0x7FF) != 0x7FF;
}

/* A number with 0..9 decimals and a point, whatever the locale; what is not finite, or beyond 9e18
 * units of the last place, becomes 0. `text` holds 48 characters and is returned. */
EX_FN char *ex_number(char *text, double value, int decimals)
{
    uint64_t unit = 1, digits;
    double size;
    int i, n;
    for (i = 0; i < decimals && i < 9; i++) unit *= 10;
    size = floor(fabs(value) * (double)unit + 0.5);
    digits = ex_finite(size) && size < 9e18 ? (uint64_t)size : 0;
    n = snprintf(text, 48, "%s%llu%s", value < 0 && digits ? "-" : "",
                 (unsigned long long)(digits / unit), unit > 1 ? "." : "");
    for (digits %= unit; unit > 1; digits %= unit) {
        unit /= 10;
        text[n++] = (char)('0' + (int)(digits / unit));
    }
    text[n] = '\0';
    return text;
}

/* Length of the UTF-8 sequence at s, 0 if it is none. */
EX_FN size_t ex_utf8_length(const char *s)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t i, n = u[0] < 0x80 ? 1 : u[0] < 0xC2 ? 0 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3
                : u[0] < 0xF5 ? 4 : 0;
    for (i = 1; i < n; i++)
        if ((u[i] & 0xC0) != 0x80) return 0;
    return n;
}

/* A text as XML wants it: markup escaped, control characters and broken UTF-8 shown as '?'. */
EX_FN void ex_bytes_xml(ex_bytes *b, const char *text)
{
    while (*text) {
        size_t n = ex_utf8_length(text);
        if (*text == '&') ex_bytes_add(b, "&amp;", 5);
        else if (*text == '<') ex_bytes_add(b, "&lt;", 4);
        else if (*text == '>') ex_bytes_add(b, "&gt;", 4);
        else if (*text == '"') ex_bytes_add(b, "&quot;", 6);
        else if (n == 0 || (n == 1 && (*text < ' ' || *text == 127))) ex_bytes_add(b, "?", 1);
        else ex_bytes_add(b, text, n);
        text += n ? n : 1;
    }
}

/* A small printf for XML: %d int, %f double (two decimals), %s escaped text, %x int as #rrggbb. */
EX_FN void ex_bytes_print(ex_bytes *b, const char *format, ...)
{
    char text[48];
    va_list list;
    va_start(list, format);
    for (; *format; format++) {
        if (*format != '%') {
            ex_bytes_add(b, format, 1);
            continue;
        }
        format++;
        if (*format == 's') {
            ex_bytes_xml(b, va_arg(list, const char *));
            continue;
        }
        if (*format == 'd') snprintf(text, sizeof text, "%d", va_arg(list, int));
        else if (*format == 'x') snprintf(text, sizeof text, "#%06x", (unsigned)va_arg(list, int));
        else ex_number(text, va_arg(list, double), 2);
        ex_bytes_add(b, text, strlen(text));
    }
    va_end(list);
}

/* ==== PNG: deflate with LZ77 and Huffman codes (RFC 1951), zlib (RFC 1950), filters =========== */

#define EX_WINDOW 32768 /* how far back a match may lie */
#define EX_TOKENS 32768 /* tokens of one block, each with its own Huffman codes */

typedef struct ex_bits {
    ex_bytes *out;
    uint32_t hold;
    int count;
} ex_bits;

EX_FN void ex_bits_put(ex_bits *b, uint32_t value, int n)
{
    b->hold |= value << b->count; /* at most 7 + 16 bits wait */
    for (b->count += n; b->count >= 8; b->count -= 8) {
        unsigned char byte = (unsigned char)(b->hold & 255);
        ex_bytes_add(b->out, &byte, 1);
        b->hold >>= 8;
    }
}

/* Huffman code lengths for n symbols, at most 15 bits: join the two rarest nodes until one is left.
 * If the tree is too deep, flatten the counts and begin again. At least two counts are not 0. */
EX_FN void ex_huffman_lengths(uint32_t *freq, int n, unsigned char *length)
{
    uint32_t weight[2 * 286];
    int parent[2 * 286], i, deepest, nodes;
    do {
        for (i = 0; i < n; i++) weight[i] = freq[i];
        for (nodes = n;; nodes++) {
            int a = -1, b = -1; /* rarest and second rarest; weight 0: unused or already joined */
            for (i = 0; i < nodes; i++) {
                if (weight[i] == 0) continue;
                if (a < 0 || weight[i] < weight[a]) b = a, a = i;
                else if (b < 0 || weight[i] < weight[b]) b = i;
            }
            if (b < 0) break;
            weight[nodes] = weight[a] + weight[b];
            weight[a] = weight[b] = 0;
            parent[a] = parent[b] = nodes;
        }
        parent[nodes - 1] = -1;
        for (i = deepest = 0; i < n; i++) {
            int depth = 0, node = i;
            if (freq[i])
                while (parent[node] >= 0) node = parent[node], depth++;
            length[i] = (unsigned char)(depth < 16 ? depth : 15);
            if (depth > deepest) deepest = depth;
            freq[i] = (freq[i] + 1) / 2; /* stays above 0; only used if there is a next round */
        }
    } while (deepest > 15);
}

/* The canonical codes of these lengths, first bit lowest as the stream wants them. */
EX_FN void ex_huffman_codes(const unsigned char *length, int n, uint32_t *code)
{
    uint32_t next = 0;
    int bits, i, k;
    for (bits = 1; bits < 16; bits++, next <<= 1)
        for (i = 0; i < n; i++) {
            if (length[i] != bits) continue;
            for (k = 0, code[i] = 0; k < bits; k++) code[i] |= (next >> k & 1) << (bits - 1 - k);
            next++;
        }
}

/* Symbol, number of extra bits and their value for a match length (3..258) or distance. */
EX_FN int ex_length_symbol(int length, int *extra, int *value)
{
    int n = length - 3, bits = 0;
    *extra = *value = 0;
    if (length == 258) return 285;
    while (n >> bits >= 8) bits++; /* 4 symbols for each power of two, from 8 on */
    *extra = bits;
    *value = n & ((1 << bits) - 1);
    return 257 + 4 * bits + (n >> bits);
}

EX_FN int ex_distance_symbol(int distance, int *extra, int *value)
{
    int n = distance - 1, bits = 0;
    while (n >> bits >= 4) bits++; /* 2 symbols for each power of two, from 4 on */
    *extra = bits;
    *value = n & ((1 << bits) - 1);
    return 2 * bits + (n >> bits);
}

/* One block. A token is a byte, or distance << 16 | length. */
EX_FN void ex_deflate_block(ex_bits *out, const uint32_t *token, int count, int last)
{
    uint32_t freq[286 + 30], code[286 + 30]; /* literals and lengths, then distances */
    unsigned char length[286 + 30];
    int i, extra, value, symbol;
    memset(freq, 0, sizeof freq);
    freq[256] = freq[286] = freq[287] = 1; /* end of block; a code needs two symbols */
    for (i = 0; i < count; i++) {
        freq[token[i] < 256 ? (int)token[i]
                            : ex_length_symbol((int)(token[i] & 511), &extra, &value)]++;
        if (token[i] > 511)
            freq[286 + ex_distance_symbol((int)(token[i] >> 16), &extra, &value)]++;
    }
    ex_huffman_lengths(freq, 286, length);
    ex_huffman_lengths(freq + 286, 30, length + 286);
    ex_huffman_codes(length, 286, code);
    ex_huffman_codes(length + 286, 30, code + 286);
    ex_bits_put(out, (uint32_t)last | 2 << 1 | 29 << 3 | 29 << 8, 13);
    /* The lengths are themselves coded. The plainest such code serves: 4 bits for each of 0..15. */
    ex_bits_put(out, 15, 4);
    for (i = 0; i < 19; i++) ex_bits_put(out, i < 3 ? 0 : 4, 3); /* 16, 17, 18 come first */
    for (i = 0; i < 286 + 30; i++) {
        uint32_t v = length[i];
        ex_bits_put(out, (v & 1) << 3 | (v & 2) << 1 | (v & 4) >> 1 | v >> 3, 4);
    }
    for (i = 0; i < count; i++) {
        if (token[i] < 256) {
            ex_bits_put(out, code[token[i]], length[token[i]]);
            continue;
        }
        symbol = ex_length_symbol((int)(token[i] & 511), &extra, &value);
        ex_bits_put(out, code[symbol], length[symbol]);
        ex_bits_put(out, (uint32_t)value, extra);
        symbol = 286 + ex_distance_symbol((int)(token[i] >> 16), &extra, &value);
        ex_bits_put(out, code[symbol], length[symbol]);
        ex_bits_put(out, (uint32_t)value, extra);
    }
    ex_bits_put(out, code[256], length[256]);
}

typedef struct ex_matcher {
    const unsigned char *data;
    int size;
    int head[EX_WINDOW], link[EX_WINDOW]; /* newest position of a hash; the one before it */
} ex_matcher;

EX_FN int ex_match_hash(const unsigned char *d)
{
    return (int)(((uint32_t)d[0] | (uint32_t)d[1] << 8 | (uint32_t)d[2] << 16) * 2654435761u >> 17);
}

/* Longest earlier match for the bytes at `at` as distance << 16 | length, 0 if below 3. */
EX_FN uint32_t ex_match_find(const ex_matcher *m, int at)
{
    const unsigned char *d = m->data;
    int longest = 2, distance = 0, tries = 256, limit = m->size - at, from;
    if (limit < 3) return 0;
    if (limit > 258) limit = 258;
    from = m->head[ex_match_hash(d + at)];
    while (from >= 0 && at - from < EX_WINDOW && tries-- > 0 && longest < limit) {
        int n = 0, before;
        if (d[from + longest] == d[at + longest])
            while (n < limit && d[from + n] == d[at + n]) n++;
        if (n > longest) longest = n, distance = at - from;
        before = m->link[from & (EX_WINDOW - 1)];
        if (before >= from) break; /* the slot belongs to a newer position */
        from = before;
    }
    return distance ? (uint32_t)distance << 16 | (uint32_t)longest : 0;
}

EX_FN void ex_match_insert(ex_matcher *m, int at)
{
    int hash;
    if (m->size - at < 3) return;
    hash = ex_match_hash(m->data + at);
    m->link[at & (EX_WINDOW - 1)] = m->head[hash];
    m->head[hash] = at;
}

/* Appends the bytes as a zlib stream. */
EX_FN void ex_deflate(ex_bytes *out, const unsigned char *data, int size)
{
    static const unsigned char header[2] = {0x78, 0xDA};
    ex_matcher *m = (ex_matcher *)malloc(sizeof *m);
    uint32_t *token = (uint32_t *)malloc(EX_TOKENS * sizeof *token), a = 1, b = 0, now, next = 0;
    ex_bits bits;
    unsigned char sum[4];
    int at, i, count = 0;
    if (!m || !token) {
        out->failed = 1;
        size = 0;
    } else {
        m->data = data;
        m->size = size;
        memset(m->head, -1, sizeof m->head);
    }
    bits.out = out;
    bits.hold = 0;
    bits.count = 0;
    ex_bytes_add(out, header, 2);
    for (at = 0, now = 0; at < size; now = next) {
        int length = (int)(now & 511);
        ex_match_insert(m, at);
        next = ex_match_find(m, at + 1);
        if (now && length >= (int)(next & 511)) { /* else a byte now and the longer match next */
            token[count++] = now;
            for (i = 1; i < length; i++) ex_match_insert(m, at + i);
            at += length;
            next = ex_match_find(m, at);
        } else {
            token[count++] = data[at++];
        }
        if (count == EX_TOKENS || at == size) {
            ex_deflate_block(&bits, token, count, at == size);
            count = 0;
        }
    }
    ex_bits_put(&bits, 0, 7); /* up to the next whole byte */
    for (i = 0; i < size; i++) {
        a = (a + data[i]) % 65521;
        b = (b + a) % 65521;
    }
    for (i = 0; i < 4; i++) sum[i] = (unsigned char)((b << 16 | a) >> (24 - 8 * i) & 255);
    ex_bytes_add(out, sum, 4);
    free(m);
    free(token);
}

/* length, type, data, check sum */
EX_FN void ex_png_chunk(ex_bytes *out, const char *type, const unsigned char *data, size_t size)
{
    unsigned char number[4];
    size_t i, start = out->size + 4;
    uint32_t crc = 0xFFFFFFFFu;
    int k;
    for (k = 0; k < 4; k++) number[k] = (unsigned char)(size >> (24 - 8 * k) & 255);
    ex_bytes_add(out, number, 4);
    ex_bytes_add(out, type, 4);
    ex_bytes_add(out, data, size);
    for (i = start; i < out->size; i++) {
        crc ^= out->data[i];
        for (k = 0; k < 8; k++) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
    }
    for (k = 0; k < 4; k++) number[k] = (unsigned char)(~crc >> (24 - 8 * k) & 255);
    ex_bytes_add(out, number, 4);
}

/* One row of `stride` bytes behind PNG filter 0..4: none, left, up, mean, Paeth. Returns the sum of
 * |value|, a good guess of how badly the row will compress. `up` is NULL in the first row. */
EX_FN long ex_png_filter(unsigned char *out, const unsigned char *row, const unsigned char *up,
                         int stride, int pixel, int filter)
{
    long sum = 0;
    int i;
    out[0] = (unsigned char)filter;
    for (i = 0; i < stride; i++) {
        int a = i < pixel ? 0 : row[i - pixel], b = up ? up[i] : 0;
        int c = i < pixel || !up ? 0 : up[i - pixel];
        int da = abs(b - c), db = abs(a - c), dc = abs(a + b - 2 * c); /* Paeth: |a + b - c - x| */
        int paeth = da <= db && da <= dc ? a : db <= dc ? b : c;
        int guess = filter == 0 ? 0 : filter == 1 ? a : filter == 2 ? b
                  : filter == 3 ? (a + b) / 2 : paeth;
        int v = (row[i] - guess) & 255;
        out[i + 1] = (unsigned char)v;
        sum += v < 128 ? v : 256 - v;
    }
    return sum;
}

/* All rows behind one filter (0..4), or each behind the one that promises most (5). */
EX_FN void ex_png_rows(unsigned char *out, const unsigned char *pixels, int height, int stride,
                       int pixel, int plan)
{
    int y, filter, best;
    for (y = 0; y < height; y++, out += stride + 1) {
        const unsigned char *row = pixels + (size_t)y * (size_t)stride;
        const unsigned char *up = y ? row - stride : NULL;
        long sum, least = -1;
        for (filter = 0, best = plan; plan == 5 && filter < 5; filter++) {
            sum = ex_png_filter(out, row, up, stride, pixel, filter);
            if (least < 0 || sum < least) least = sum, best = filter;
        }
        ex_png_filter(out, row, up, stride, pixel, best);
    }
}

/* Writes [height, width, channels] bytes, gray (channels 1) or RGB (3), as a PNG file. */
EX_FN int ex_png_write(const char *path, const unsigned char *pixels, int height, int width,
                       int channels)
{
    static const unsigned char signature[8] = {137, 'P', 'N', 'G', 13, 10, 26, 10};
    static const int plans[3] = {0, 2, 5}; /* none suits drawings, up enlarged pixels, 5 photos */
    ex_bytes png = {NULL, 0, 0, 0}, packed[3];
    unsigned char head[13], *raw;
    int stride = width * channels, k, best = 0;
    if (height < 1 || width < 1 || (channels != 1 && channels != 3) ||
        (double)height * width * channels > 1e9) {
        fprintf(stderr, "cannot write '%s': expected [h, w, 1 or 3] below 1e9 bytes, "
                "got [%d, %d, %d]\n", path, height, width, channels);
        return -1;
    }
    memset(packed, 0, sizeof packed);
    raw = (unsigned char *)malloc((size_t)height * (size_t)(stride + 1));
    if (!raw) png.failed = 1;
    for (k = 0; k < 3 && raw; k++) {
        ex_png_rows(raw, pixels, height, stride, channels, plans[k]);
        ex_deflate(&packed[k], raw, height * (stride + 1));
        png.failed |= packed[k].failed;
        if (packed[k].size < packed[best].size) best = k;
    }
    for (k = 0; k < 4; k++) {
        head[k] = (unsigned char)(width >> (24 - 8 * k) & 255);
        head[4 + k] = (unsigned char)(height >> (24 - 8 * k) & 255);
    }
    head[8] = 8; /* bits of a sample */
    head[9] = (unsigned char)(channels == 3 ? 2 : 0);
    head[10] = head[11] = head[12] = 0;
    ex_bytes_add(&png, signature, 8);
    ex_png_chunk(&png, "IHDR", head, 13);
    ex_png_chunk(&png, "IDAT", packed[best].data, packed[best].size);
    ex_png_chunk(&png, "IEND", NULL, 0);
    for (k = 0; k < 3; k++) free(packed[k].data);
    free(raw);
    return ex_bytes_write(&png, path);
}

/* ==== Canvas: a small RGB picture to draw on ================================================== */

typedef struct ex_canvas {
    int height, width;
    unsigned char *pixels; /* [height, width, 3] */
} ex_canvas;

/* A white canvas; pixels is NULL if there is no memory for it, and drawing then does nothing. */
EX_FN ex_canvas ex_canvas_create(int height, int width)
{
    ex_canvas c = {0, 0, NULL};
    if (height < 1 || width < 1 || (double)height * width > 3e8) return c;
    c.pixels = (unsigned char *)malloc((size_t)height * (size_t)width * 3);
    if (!c.pixels) return c;
    memset(c.pixels, 255, (size_t)height * (size_t)width * 3);
    c.height = height;
    c.width = width;
    return c;
}

/* Mixes a colour into one pixel, 0 <= share <= 1. Outside the canvas nothing happens. */
EX_FN void ex_dot(ex_canvas *c, int y, int x, int colour, double share)
{
    unsigned char *p;
    int k, v;
    if (y < 0 || x < 0 || y >= c->height || x >= c->width) return;
    p = c->pixels + ((size_t)y * (size_t)c->width + (size_t)x) * 3;
    for (k = 0; k < 3; k++) {
        v = colour >> (16 - 8 * k) & 255;
        p[k] = (unsigned char)(p[k] + share * (v - p[k]) + 0.5);
    }
}

EX_FN void ex_fill(ex_canvas *c, int y, int x, int height, int width, int colour)
{
    int i, j;
    for (i = y; i < y + height; i++)
        for (j = x; j < x + width; j++) ex_dot(c, i, j, colour, 1);
}

/* A frame `thick` pixels wide around, not over, the rectangle. */
EX_FN void ex_frame(ex_canvas *c, int y, int x, int height, int width, int thick, int colour)
{
    ex_fill(c, y - thick, x - thick, thick, width + 2 * thick, colour);
    ex_fill(c, y + height, x - thick, thick, width + 2 * thick, colour);
    ex_fill(c, y, x - thick, height, thick, colour);
    ex_fill(c, y, x + width, height, thick, colour);
}

/* Puts down [h, w, channels] bytes, each pixel as a square of `scale` pixels. */
EX_FN void ex_blit(ex_canvas *c, int y, int x, int scale, const unsigned char *image, int h, int w,
                   int channels)
{
    int i, j;
    for (i = 0; i < h; i++)
        for (j = 0; j < w; j++) {
            const unsigned char *p = image + ((size_t)i * (size_t)w + (size_t)j) * (size_t)channels;
            int colour = channels == 3 ? p[0] << 16 | p[1] << 8 | p[2] : p[0] * 0x10101;
            ex_fill(c, y + i * scale, x + j * scale, scale, scale, colour);
        }
}

/* The strokes of a character, points on a grid: x is 0..8, y is a (top), d (top of an x), j (base
 * line) to m. ' ' begins a line through its points; '~' a curve from its first point to its last,
 * drawn towards those between (a quadratic B-spline); '@' a closed curve of that kind. */
EX_FN const char *ex_glyph(int character)
{
    static const char *const glyphs[94] = {
        " 0a0g 0j0j", " 0a0c 2a2c", " 2a1j 5a4j 0d6d 0g6g", "~5c5a0a0e5f5j0j0h 3`2k",
        "@0a2a2d0d@4g6g6j4j 6a0j", "~6j1d1a5a4d0f0j4j6f", " 0a0c", "~2a0b0j2k", "~0a2b2j0k",
        " 2a2e 0b4d 4b0d", " 0f4f 2d2h", " 1j0l", " 0f3f", " 0j0j", " 0j4a", "@0a5a5j0j",
        " 1c3a3j", "~0c0a5a5e0j 0j5j", "~0c0a5a5e2e~2e5e5j0j0h", " 4j4a0g5g",
        " 5a1a0e~0e1d5d5j0j0h", "@0d5d5j0j~0g0a4a", " 0a5a2j", "@0a5a5e0e@0e5e5j0j",
        "@0a5a5g0g~5d5j1j", " 0d0d 0j0j", " 1d1d 1j0l", " 4c0f4i", " 0e4e 0g4g", " 0c4f0i",
        "~0c0a5a5e2e2g 2j2j", "~5c5h7h7a0a0j6j@2c5c5h2h", " 0j3a6j 1g5g",
        " 0a0j~0a3a5a5e3e0e~0e3e6e6j3j0j", "~6c6a0a0j6j6h", " 0a0j~0a3a6a6j3j0j",
        " 5a0a0j5j 0e4e", " 5a0a0j 0e4e", "~6c6a0a0j6j6f 6f4f", " 0a0j 6a6j 0e6e", " 0a0j",
        "~4a4d4j0j0g", " 0a0j 5a0f 2d5j", " 0a0j5j", " 0j0a3f6a6j", " 0j0a6j6a", "@0a6a6j0j",
        " 0a0j~0a3a6a6f3f0f", "@0a6a6j0j 4h6j", " 0a0j~0a3a6a6f3f0f 3f6j", "~6c6a0a0e6e6j0j0h",
        " 0a6a 3a3j", "~0a0d0j6j6d6a", " 0a3j6a", " 0a2j4b6j8a", " 0a6j 6a0j", " 0a3e6a 3e3j",
        " 0a6a0j6j", " 2a0a0k2k", " 0a4j", " 0a2a2k0k", " 0c2a4c", " 0k5k", " 0a1b",
        "@0d5d5j0j 5d5j", " 0a0j@0d5d5j0j", "~5e5d0d0j5j5i", " 5a5j@0d5d5j0j",
        " 0g5g~5g5d0d0j5j5i", "~4a1a1e1j 0d3d", "@0d5d5j0j~5d5h5m0m0l", " 0a0j~0g0d5d5g5j",
        " 0d0j 0a0a", "~2d2h2m0m 2a2a", " 0a0j 4d0h 2f5j", "~0a0h0j1j",
        " 0d0j~0g0d4d4g4j~4g4d8d8g8j",
        " 0d0j~0g0d5d5g5j", "@0d5d5j0j", " 0d0m@0d5d5j0j", " 5d5m@0d5d5j0j", " 0d0j~0g0d3d",
        "~4e4d0d0f4g4j0j0i", "~1b1g1j4j 0d3d", "~0d0g0j5j5g 5d5j", " 0d2j4d", " 0d2j4d6j8d",
        " 0d4j 4d0j", " 0d2j 4d1m", " 0d4d0j4j", "~3a1a1f0f~0f1f1k3k", " 0a0l",
        "~0a2a2f3f~3f2f2k0k", "~0g1d3h4e"};
    if (character < 33 || character > 126) character = '?';
    return glyphs[character - 33];
}

/* Width of a character on the grid without the gap that follows it; digits are all as wide. */
EX_FN int ex_glyph_width(int character)
{
    const char *s = character == ' ' ? "3" : ex_glyph(character);
    int width = character >= '0' && character <= '9' ? 5 : 0;
    for (; *s; s++)
        if (*s >= '0' && *s <= '8' && *s - '0' > width) width = *s - '0';
    return width;
}

/* Width in pixels of a text whose capitals are `size` pixels high. */
EX_FN double ex_text_width(const char *text, double size)
{
    double width = 0;
    for (; *text; text++) width += ex_glyph_width((unsigned char)*text) + 2.5;
    return width > 0 ? (width - 2.5) * size / 9 : 0;
}

/* The glyph as line segments x0, y0, x1, y1 on the grid; returns how many. A B-spline runs from
 * middle to middle of its control polygon: quadratic Bezier pieces, here 6 lines each. */
EX_FN int ex_glyph_lines(const char *s, double line[][4])
{
    double p[24][2], x[2], y[2], m[2], t;
    int count = 0, n, i, k, j, closed;
    while (*s) {
        char kind = *s++;
        for (n = 0; *s && *s != ' ' && *s != '~' && *s != '@'; s += 2, n++) {
            p[n][0] = s[0] - '0';
            p[n][1] = s[1] - 'a';
        }
        closed = kind == '@';
        for (i = 0; kind == ' ' && i + 1 < n; i++, count++)
            for (k = 0; k < 2; k++) line[count][k] = p[i][k], line[count][2 + k] = p[i + 1][k];
        for (i = closed ? 0 : 1; kind != ' ' && i < (closed ? n : n - 1); i++) {
            for (k = 0; k < 2; k++) { /* x: where the piece begins, y: where it ends */
                const double *before = p[(i + n - 1) % n], *after = p[(i + 1) % n];
                x[k] = !closed && i == 1 ? before[k] : (before[k] + p[i][k]) / 2;
                y[k] = !closed && i == n - 2 ? after[k] : (after[k] + p[i][k]) / 2;
                m[k] = x[k];
            }
            for (j = 1; j <= 6; j++, count++)
                for (k = 0, t = j / 6.0; k < 2; k++) {
                    line[count][k] = m[k];
                    m[k] = (1 - t) * (1 - t) * x[k] + 2 * t * (1 - t) * p[i][k] + t * t * y[k];
                    line[count][2 + k] = m[k];
                }
        }
    }
    return count;
}

/* Distance from a point to the nearest of the lines. */
EX_FN double ex_lines_distance(double line[][4], int count, double x, double y)
{
    double best = 1e9;
    int i;
    for (i = 0; i < count; i++) {
        double dx = line[i][2] - line[i][0], dy = line[i][3] - line[i][1];
        double px = x - line[i][0], py = y - line[i][1], n = dx * dx + dy * dy;
        double t = n > 0 ? (px * dx + py * dy) / n : 0, d;
        t = t < 0 ? 0 : t > 1 ? 1 : t;
        d = (px - t * dx) * (px - t * dx) + (py - t * dy) * (py - t * dy);
        if (d < best) best = d;
    }
    return sqrt(best);
}

/* Writes ASCII with a round pen; x and y are the top left of the capitals, `size` their height. */
EX_FN void ex_text(ex_canvas *c, double y, double x, double size, int colour, const char *text)
{
    double line[128][4], unit = size / 9, radius = 0.40 + 0.045 * size;
    int i, j, count;
    for (; *text; text++) {
        int width = ex_glyph_width((unsigned char)*text);
        count = *text == ' ' ? 0 : ex_glyph_lines(ex_glyph((unsigned char)*text), line);
        for (i = (int)y - 3; count && i < y + 13 * unit + 3; i++)
            for (j = (int)x - 3; j < x + width * unit + 3; j++) {
                double u = (j + 0.5 - x) / unit, v = (i + 0.5 - y) / unit;
                double ink = radius + 0.5 - unit * ex_lines_distance(line, count, u, v);
                if (ink > 0) ex_dot(c, i, j, colour, ink < 1 ? ink : 1);
            }
        x += (width + 2.5) * unit;
    }
}

/* Writes a text in the middle of a box `width` pixels wide, cut off with ".." if it is longer. */
EX_FN void ex_caption(ex_canvas *c, int y, int x, int width, double size, int colour,
                      const char *text)
{
    char cut[128];
    size_t n;
    snprintf(cut, sizeof cut, "%s", text);
    for (n = strlen(cut); n > 2 && ex_text_width(cut, size) > width; n--)
        memcpy(cut + n - 3, "..", 3);
    ex_text(c, y, x + (width - ex_text_width(cut, size)) / 2, size, colour, cut);
}

/* ==== Sheets of pictures ====================================================================== */

#define EX_INK 0x222222
#define EX_PALE 0x707070
#define EX_RIGHT 0x009E73 /* a green and a red that colour-blind people can tell apart */
#define EX_WRONG 0xD55E00

typedef struct ex_images {
    const unsigned char *pixels; /* [count, height, width, channels], gray or RGB */
    int count, height, width, channels;
} ex_images;

/* How much to enlarge the images of a sheet: to about 96 pixels. */
EX_FN int ex_images_scale(ex_images images)
{
    int side = images.height > images.width ? images.height : images.width;
    int scale = side > 0 ? (96 + side / 3) / side : 1;
    return scale > 1 ? scale : 1;
}

/* Puts image `index` in the middle of a tile. */
EX_FN void ex_images_blit(ex_canvas *c, int y, int x, int tile, ex_images images, int index)
{
    int scale = ex_images_scale(images);
    size_t bytes = (size_t)images.height * (size_t)images.width * (size_t)images.channels;
    ex_blit(c, y + (tile - scale * images.height) / 2, x + (tile - scale * images.width) / 2, scale,
            images.pixels + (size_t)index * bytes, images.height, images.width, images.channels);
}

/* Side of the square tiles that hold the images of both sets. */
EX_FN int ex_images_tile(ex_images a, ex_images b)
{
    int side_a = (a.height > a.width ? a.height : a.width) * ex_images_scale(a);
    int side_b = (b.height > b.width ? b.height : b.width) * ex_images_scale(b);
    return side_a > side_b ? side_a : side_b;
}

/* Writes the canvas as PNG and frees it. */
EX_FN int ex_canvas_write(ex_canvas *c, const char *path)
{
    int result = -1;
    if (c->pixels)
        result = ex_png_write(path, c->pixels, c->height, c->width, 3);
    else
        fprintf(stderr, "cannot write '%s': no memory for the canvas\n", path);
    free(c->pixels);
    c->pixels = NULL;
    return result;
}

/* Augmented views: a row for each original (left), then its k views, views[row * k + column].
 * `captions` names the k columns of views; NULL: "view 1" ... */
EX_FN int ex_sheet_views(const char *path, const char *title, ex_images originals, ex_images views,
                         int k, const char *const *captions)
{
    int tile = ex_images_tile(originals, views), cell = tile + 8, row, i, y, x;
    int width = 32 + cell * (k + 1) + 16, least = (int)ex_text_width(title, 15) + 40;
    ex_canvas c = ex_canvas_create(90 + originals.count * cell, width > least ? width : least);
    char text[32];
    ex_text(&c, 20, 20, 15, EX_INK, title);
    ex_caption(&c, 58, 20, tile, 9, EX_PALE, "original");
    for (i = 0; i < k; i++) {
        snprintf(text, sizeof text, "view %d", i + 1);
        ex_caption(&c, 58, 36 + cell * (i + 1), tile, 9, EX_PALE, captions ? captions[i] : text);
    }
    for (row = 0; row < originals.count && c.pixels; row++) {
        y = 78 + row * cell;
        ex_images_blit(&c, y, 20, tile, originals, row);
        for (i = 0; i < k; i++) {
            x = 36 + cell * (i + 1);
            ex_images_blit(&c, y, x, tile, views, row * k + i);
        }
    }
    ex_fill(&c, 54, 20 + cell + 3, c.height - 74, 2, 0xCCCCCC);
    return ex_canvas_write(&c, path);
}

typedef struct ex_neighbours {
    ex_images queries, gallery;
    int rows, k;
    const int32_t *query;          /* [rows] indices into queries */
    const int32_t *nearest;        /* [rows, k] indices into gallery, the nearest first */
    const float *similarity;       /* [rows, k], or NULL */
    const int32_t *query_labels;   /* [queries.count], or NULL: no frames are coloured */
    const int32_t *gallery_labels; /* [gallery.count], or NULL */
    const char *const *names;      /* [names_count], or NULL: numbers are shown */
    int names_count;
} ex_neighbours;

/* "0.93 sandal": what is known of an image. */
EX_FN void ex_neighbours_caption(const ex_neighbours *s, const float *similarity, int32_t label,
                                 char *text, size_t size)
{
    char number[48] = "";
    if (similarity) ex_number(number, (double)*similarity, 3);
    if (label >= 0 && s->names && label < s->names_count)
        snprintf(text, size, "%s%s%s", number, similarity ? " " : "", s->names[label]);
    else if (label >= 0)
        snprintf(text, size, "%s%sclass %d", number, similarity ? " " : "", (int)label);
    else
        snprintf(text, size, "%s", number);
}

/* Nearest neighbours: each row a query (left) and its k nearest, framed green where the label is
 * the query's, red where it is not. */
EX_FN int ex_sheet_neighbours(const char *path, const char *title, const ex_neighbours *s)
{
    int tile = ex_images_tile(s->queries, s->gallery), cell = tile + 18, down = tile + 32;
    int width = 24 + cell * (s->k + 1) + 28, least = (int)ex_text_width(title, 15) + 48;
    int known = s->query_labels && s->gallery_labels, same = 0, row, i, x, y;
    ex_canvas c = ex_canvas_create(118 + s->rows * down, width > least ? width : least);
    char text[128];
    ex_text(&c, 20, 24, 15, EX_INK, title);
    ex_caption(&c, 58, 24, tile, 9, EX_PALE, "query");
    for (i = 0; i < s->k; i++) {
        snprintf(text, sizeof text, i ? "%d" : "nearest %d", i + 1);
        ex_caption(&c, 58, 44 + cell * (i + 1), tile, 9, EX_PALE, text);
    }
    for (row = 0; row < s->rows && c.pixels; row++) {
        int32_t mine = s->query_labels ? s->query_labels[s->query[row]] : -1;
        y = 82 + row * down;
        ex_images_blit(&c, y, 24, tile, s->queries, s->query[row]);
        ex_frame(&c, y, 24, tile, tile, 2, EX_INK);
        ex_neighbours_caption(s, NULL, mine, text, sizeof text);
        ex_caption(&c, y + tile + 9, 20, tile + 8, 8, EX_INK, text);
        for (i = 0; i < s->k; i++) {
            int32_t at = s->nearest[row * s->k + i];
            int32_t label = s->gallery_labels ? s->gallery_labels[at] : -1;
            x = 44 + cell * (i + 1);
            same += known && label == mine;
            ex_images_blit(&c, y, x, tile, s->gallery, at);
            ex_frame(&c, y, x, tile, tile, known ? 4 : 1,
                     !known ? 0xAAAAAA : label == mine ? EX_RIGHT : EX_WRONG);
            ex_neighbours_caption(s, s->similarity ? s->similarity + row * s->k + i : NULL, label,
                                  text, sizeof text);
            ex_caption(&c, y + tile + 9, x - 6, tile + 12, 8, EX_INK, text);
        }
    }
    snprintf(text, sizeof text, "%d of %d neighbours have the query's label", same, s->rows * s->k);
    if (known) ex_text(&c, c.height - 28, 24, 9, EX_PALE, text);
    return ex_canvas_write(&c, path);
}

/* ==== SVG: curves and maps ==================================================================== */

#define EX_FONT "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\""

/* Twelve colours, then again from the first. Chosen so that the first ten stay apart for the three
 * kinds of colour blindness too (simulated after Machado 2009: CIE Lab distance at least 25). */
EX_FN int ex_colour(int index)
{
    static const int palette[12] = {0x0042E2, 0xBA6F00, 0x15CE76, 0xE0A7C1, 0x3E90FE, 0x801504,
                                    0x180069, 0xB8DD00, 0x853F81, 0x69725E, 0x382322, 0xA3B1EF};
    return palette[((index % 12) + 12) % 12];
}

EX_FN void ex_svg_begin(ex_bytes *b, int width, int height)
{
    ex_bytes_print(b,
                   "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" width=\"%d\" "
                   "height=\"%d\" viewBox=\"0 0 %d %d\" " EX_FONT ">\n"
                   "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
                   width, height, width, height, width, height);
}

EX_FN int ex_svg_end(ex_bytes *b, const char *path)
{
    ex_bytes_print(b, "</svg>\n");
    return ex_bytes_write(b, path);
}

/* `anchor` is "start", "middle" or "end"; y is the base line. */
EX_FN void ex_svg_text(ex_bytes *b, double x, double y, int size, int colour, const char *anchor,
                       const char *text)
{
    ex_bytes_print(b, "<text x=\"%f\" y=\"%f\" font-size=\"%d\" fill=\"%x\" text-anchor=\"%s\">%s"
                   "</text>\n", x, y, size, colour, anchor, text);
}

typedef struct ex_series {
    const char *name;    /* for the legend of a panel with several */
    const double *x, *y; /* x NULL: 1, 2, 3, ...; points that are not finite are left out */
    int count;
    int faint;           /* 1: thin and pale under the others, in the colour of the one before */
} ex_series;

typedef struct ex_panel {
    const char *title, *x_title, *y_title; /* each may be NULL */
    const ex_series *series;
    int count;
    double chance;            /* a dashed line at this height ... */
    const char *chance_label; /* ... with this label; NULL: no line */
    int x_log, y_log;         /* 2 or 10: points are logarithms to this base, ticks say of what */
} ex_panel;

typedef struct ex_axis {
    double low, high, step; /* values at both ends, distance of ticks */
    double from, to;        /* where the ends lie on the page */
    int log;                /* 2, 10: values are logarithms to this base; else 0 */
} ex_axis;

/* Widens low..high to whole ticks of 1, 2 or 5 times a power of ten, about `ticks` of them. */
EX_FN void ex_axis_fit(ex_axis *a, int ticks, int widen)
{
    double span, size;
    if (!(a->high >= a->low)) a->low = 0, a->high = 1;
    if (a->high - a->low < 1e-9 * (fabs(a->high) + 1e-9)) {
        span = 0.5 * fabs(a->high) + 1e-6;
        a->low -= span;
        a->high += span;
    }
    span = (a->high - a->low) / ticks;
    size = pow(10, floor(log10(span)));
    a->step = size * (span > 5 * size ? 10 : span > 2 * size ? 5 : span > size ? 2 : 1);
    if (!widen) return;
    a->low = a->step * floor(a->low / a->step + 1e-9);
    a->high = a->step * ceil(a->high / a->step - 1e-9);
}

/* 1e-7, 0.002, 0.5, 100, 1e+7: m times ten to the n, m a digit. text holds 48 characters. */
EX_FN void ex_tick_power(char *text, int m, int n)
{
    if (n < -3 || n > 4) snprintf(text, 48, "%de%+d", m, n);
    else ex_number(text, m * pow(10, n), n < 0 ? -n : 0);
}

/* Tick number i: where it is, in the axis' own values, and what it says. 0 behind the last one.
 * Powers of 2 or of 10, or between a few of 10 also twice and five times as much. */
EX_FN int ex_axis_tick(const ex_axis *a, int i, double *at, char text[48])
{
    static const int digits[3] = {1, 2, 5};
    double span = a->high - a->low;
    int stride = 1 + (int)(span / 8), fine = a->log == 10 && span <= 3, first, n;
    if (!a->log) {
        *at = (ceil(a->low / a->step - 1e-6) + i) * a->step;
        ex_number(text, *at, (int)ceil(-log10(a->step) - 1e-6));
        return *at <= a->high + 1e-6 * a->step;
    }
    first = (int)ceil(a->low / stride - 1e-6) * stride;
    n = fine ? (int)floor(a->low) + i / 3 : first + i * stride;
    *at = n + (fine ? log10(digits[i % 3]) : 0);
    if (a->log == 2) ex_number(text, pow(2, n), n < 0 ? 3 : 0);
    else ex_tick_power(text, fine ? digits[i % 3] : 1, n);
    return *at <= a->high + 1e-6;
}

EX_FN double ex_axis_at(const ex_axis *a, double value)
{
    return a->from + (value - a->low) / (a->high - a->low) * (a->to - a->from);
}

/* x of the i-th point. */
EX_FN double ex_series_x(const ex_series *s, int i)
{
    return s->x ? s->x[i] : i + 1;
}

/* The axes of a panel, wide enough for all its points and its chance line. */
EX_FN void ex_panel_axes(const ex_panel *p, ex_axis *x, ex_axis *y)
{
    int i, k;
    x->log = p->x_log;
    y->log = p->y_log;
    x->low = y->low = 1e300;
    x->high = y->high = -1e300;
    if (p->chance_label && ex_finite(p->chance)) y->low = y->high = p->chance;
    for (k = 0; k < p->count; k++)
        for (i = 0; i < p->series[k].count; i++) {
            double u = ex_series_x(&p->series[k], i), v = p->series[k].y[i];
            if (!ex_finite(u) || !ex_finite(v)) continue;
            if (u < x->low) x->low = u;
            if (u > x->high) x->high = u;
            if (v < y->low) y->low = v;
            if (v > y->high) y->high = v;
        }
    ex_axis_fit(x, 7, 0);
    ex_axis_fit(y, 5, 1);
}

/* Grid, ticks, and titles of both axes. */
EX_FN void ex_svg_axes(ex_bytes *b, const ex_panel *p, const ex_axis *x, const ex_axis *y)
{
    char text[48];
    double value;
    int i, which;
    ex_bytes_print(b, "<g fill=\"none\" stroke-width=\"1\">\n");
    for (which = 0; which < 2; which++) {
        const ex_axis *a = which ? y : x;
        for (i = 0; ex_axis_tick(a, i, &value, text); i++) {
            double at = ex_axis_at(a, value);
            if (value < a->low - 1e-6) continue;
            ex_bytes_print(b, "<path d=\"M%f %f%s%f\" stroke=\"#e2e2e2\"/>\n", which ? x->from : at,
                           which ? at : y->from, which ? "H" : "V", which ? x->to : y->to);
            ex_bytes_print(b, "<text x=\"%f\" y=\"%f\" font-size=\"15\" fill=\"#444444\" "
                           "text-anchor=\"%s\">%s</text>\n", which ? x->from - 10 : at,
                           which ? at + 5 : y->from + 22, which ? "end" : "middle", text);
        }
    }
    ex_bytes_print(b, "<path d=\"M%f %fV%fH%f\" stroke=\"#444444\" stroke-width=\"1.5\"/>\n</g>\n",
                   x->from, y->to, y->from, x->to);
    if (p->x_title)
        ex_svg_text(b, (x->from + x->to) / 2, y->from + 48, 17, EX_INK, "middle", p->x_title);
    if (p->y_title)
        ex_bytes_print(b, "<text transform=\"translate(%f %f) rotate(-90)\" font-size=\"17\" "
                       "fill=\"%x\" text-anchor=\"middle\">%s</text>\n", x->from - 62,
                       (y->from + y->to) / 2, EX_INK, p->y_title);
}

/* One series as a line. More than 1500 points are averaged in groups: a page has no more pixels. */
EX_FN void ex_svg_series(ex_bytes *b, const ex_series *s, const ex_axis *x, const ex_axis *y,
                         int colour)
{
    int i, n = 0, drawn = 0, group = 1 + s->count / 1500;
    double u = 0, v = 0;
    ex_bytes_print(b, "<path fill=\"none\" stroke=\"%x\" stroke-width=\"%f\" stroke-opacity=\"%f\" "
                   "stroke-linejoin=\"round\" stroke-linecap=\"round\" d=\"", colour,
                   s->faint ? 1.2 : 3.0, s->faint ? 0.45 : 1.0);
    for (i = 0; i < s->count; i++) {
        if (ex_finite(s->y[i]) && ex_finite(ex_series_x(s, i))) {
            u += ex_series_x(s, i);
            v += s->y[i];
            n++;
        }
        if (n == 0 || (n < group && i + 1 < s->count)) continue;
        ex_bytes_print(b, "%s%f %f", drawn++ ? "L" : "M", ex_axis_at(x, u / n),
                       ex_axis_at(y, v / n));
        if (s->count == 1) ex_bytes_print(b, "h0.1"); /* a single point becomes a dot */
        u = v = n = 0;
    }
    ex_bytes_print(b, drawn ? "\"/>\n" : "M0 0\"/>\n");
}

/* Colour of series k: faint ones share that of the series before them. */
EX_FN int ex_series_colour(const ex_panel *p, int k)
{
    int i, solid = -1;
    for (i = 0; i <= k; i++) solid += !p->series[i].faint;
    return ex_colour(solid < 0 ? 0 : solid);
}

/* The legend in rows no wider than `width`, from x, y on; returns how many rows. Draws nothing into
 * b = NULL. One series alone needs none: the title of the axis says what it is. */
EX_FN int ex_svg_legend(ex_bytes *b, const ex_panel *p, double x, double y, double width)
{
    double at = 0;
    int k, rows = 1;
    if (p->count < 2) return 0;
    for (k = 0; k < p->count; k++) {
        const ex_series *s = &p->series[k];
        double wide = 54 + 8.6 * (double)strlen(s->name);
        if (at > 0 && at + wide > width) at = 0, rows++;
        if (b) {
            ex_bytes_print(b, "<path d=\"M%f %fh26\" stroke=\"%x\" stroke-width=\"%d\" "
                           "stroke-opacity=\"%f\"/>\n", x + at, y + 24 * (rows - 1),
                           ex_series_colour(p, k), s->faint ? 2 : 4, s->faint ? 0.5 : 1.0);
            ex_svg_text(b, x + at + 34, y + 24 * (rows - 1) + 5, 16, EX_INK, "start", s->name);
        }
        at += wide;
    }
    return rows;
}

/* A panel in the box x, y, width, height: title, legend, axes, curves. `rows` of the height are
 * left to the legend, so that panels beside each other stand level. */
EX_FN void ex_svg_panel(ex_bytes *b, const ex_panel *p, int rows, double x, double y, double width,
                        double height)
{
    ex_axis across, up;
    int k, faint;
    ex_panel_axes(p, &across, &up);
    across.from = x + 84;
    across.to = x + width - 24;
    up.from = y + height - 62;
    up.to = y + (p->title ? 24 : 0) + 24 * rows;
    if (p->title) ex_svg_text(b, across.from, y + 4, 19, EX_INK, "start", p->title);
    ex_svg_legend(b, p, across.from, up.to - 24 * rows, width - 108);
    ex_svg_axes(b, p, &across, &up);
    for (faint = 1; faint >= 0; faint--)
        for (k = 0; k < p->count; k++)
            if (p->series[k].faint == faint)
                ex_svg_series(b, &p->series[k], &across, &up, ex_series_colour(p, k));
    if (p->chance_label && ex_finite(p->chance)) {
        double line = ex_axis_at(&up, p->chance);
        ex_bytes_print(b, "<path d=\"M%f %fH%f\" stroke=\"#666666\" stroke-width=\"2\" "
                       "stroke-dasharray=\"9 6\"/>\n", across.from, line, across.to);
        ex_bytes_print(b, "<text x=\"%f\" y=\"%f\" font-size=\"15\" font-style=\"italic\" "
                       "fill=\"#555555\" text-anchor=\"end\">%s</text>\n", across.to - 6,
                       line < up.to + 24 ? line + 20 : line - 8, p->chance_label);
    }
}

/* Loss curves and the like: one panel on a slide, or two beside each other. */
EX_FN int ex_svg_curve(const char *path, const char *title, const ex_panel *panels, int count)
{
    ex_bytes b = {NULL, 0, 0, 0};
    int k, rows = 0, n, width = count > 1 ? 660 : 940;
    for (k = 0; k < count; k++) {
        n = ex_svg_legend(NULL, &panels[k], 0, 0, width - 108);
        if (n > rows) rows = n;
    }
    ex_svg_begin(&b, width * count + 20, 560);
    if (title) ex_svg_text(&b, 30, 46, 26, EX_INK, "start", title);
    for (k = 0; k < count; k++)
        ex_svg_panel(&b, &panels[k], rows, 14 + width * k, 84, width, 466);
    return ex_svg_end(&b, path);
}

/* Path data of the k-th kind of marker about the origin, all of nearly the same area. */
EX_FN const char *ex_marker(int kind)
{
    static const char *const shapes[3] = {"M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",
                                          "M-.9-.9h1.8v1.8h-1.8z", "M0-1.3L1.2.8h-2.4z"};
    return shapes[kind % 3];
}

/* Map of embeddings: xy is [n, 2], y upwards; labels [n] or NULL (one colour), negative: gray.
 * Colour and shape both tell the class. names [classes], or NULL: numbers. */
EX_FN int ex_svg_map(const char *path, const char *title, const char *subtitle, const float *xy,
                     const int32_t *labels, int n, const char *const *names, int classes)
{
    ex_bytes b = {NULL, 0, 0, 0};
    double low[2] = {1e300, 1e300}, high[2] = {-1e300, -1e300}, scale, radius, span, x, y;
    char text[32];
    int i, k, columns = labels ? (classes + 20) / 21 : 0; /* of the legend */
    for (i = 0; i < 2 * n; i++) {
        double v = (double)xy[i];
        if (!ex_finite(v)) continue;
        if (v < low[i & 1]) low[i & 1] = v;
        if (v > high[i & 1]) high[i & 1] = v;
    }
    span = high[0] - low[0] > high[1] - low[1] ? high[0] - low[0] : high[1] - low[1];
    scale = span > 0 && span < 1e299 ? 612 / span : 1;
    radius = n > 5000 ? 2.2 : n > 1000 ? 3.2 : 4.5;
    ex_svg_begin(&b, columns > 1 ? 700 + 150 * columns : 960, 770);
    if (title) ex_svg_text(&b, 30, 46, 26, EX_INK, "start", title);
    if (subtitle) ex_svg_text(&b, 30, 76, 17, 0x555555, "start", subtitle);
    ex_bytes_print(&b, "<rect x=\"30\" y=\"96\" width=\"644\" height=\"644\" fill=\"#fafafa\" "
                   "stroke=\"#bbbbbb\"/>\n<g stroke=\"#ffffff\" stroke-width=\"0.15\" "
                   "fill-opacity=\"0.85\">\n");
    for (i = 0; i < n; i++) {
        k = labels ? labels[i] : 0;
        x = 352 + ((double)xy[2 * i] - (low[0] + high[0]) / 2) * scale;
        y = 418 - ((double)xy[2 * i + 1] - (low[1] + high[1]) / 2) * scale;
        if (!ex_finite(x) || !ex_finite(y)) continue;
        ex_bytes_print(&b, "<path transform=\"translate(%f %f) scale(%f)\" fill=\"%x\" d=\"%s\"/>"
                       "\n", x, y, radius, k < 0 ? 0xBBBBBB : ex_colour(k),
                       ex_marker(k < 0 ? 0 : k));
    }
    ex_bytes_print(&b, "</g>\n");
    for (k = 0; k < classes && labels; k++) {
        x = 706 + 150 * (k / 21);
        y = 112 + 30 * (k % 21);
        snprintf(text, sizeof text, "class %d", k);
        ex_bytes_print(&b, "<path transform=\"translate(%f %f) scale(7)\" fill=\"%x\" d=\"%s\"/>\n",
                       x, y, ex_colour(k), ex_marker(k));
        ex_svg_text(&b, x + 18, y + 6, 17, EX_INK, "start", names ? names[k] : text);
    }
    return ex_svg_end(&b, path);
}

#endif /* EX_PICTURES_H */
