/* Tests of FILE and IO: what is written is read back bit for bit and by numpy's and safetensors'
   rules; damaged and lying files are refused with one line; no failing operation loses a file. */
/* run: float asan */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "check.h"
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define DIR_ "place"
static const char *const path_ = DIR_ "/file";

static void put_file(const char *path, const void *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    if (!f) return;
    CHECK(fwrite(bytes, 1, size, f) == size);
    fclose(f);
}

static size_t get_file(const char *path, uint8_t *bytes, size_t room)
{
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(bytes, 1, room, f) : 0;
    if (f) fclose(f);
    return n;
}

static int is_there(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0;
}

/* No save has left anything in the folder. */
static int is_swept(const char *folder)
{
    char line[300];
    snprintf(line, sizeof line, "ls %s/*.tmp >/dev/null 2>&1", folder);
    return system(line) != 0;
}

static int symlink_to(const char *target, const char *path)
{
    char line[300];
    snprintf(line, sizeof line, "ln -s %s %s", target, path);
    return system(line) == 0;
}

/* ---- the checksum ---------------------------------------------------------------------------- */

/* Computed by the reference implementation (Python package xxhash) over byte i = 131 i + 7. */
static void test_hash(void)
{
    static const struct { size_t size; uint64_t value; } known[] = {
        { 0, UINT64_C(0xef46db3751d8e999) },   { 1, UINT64_C(0xa96c7f0ce858bbb7) },
        { 3, UINT64_C(0xbed43740ee6332bb) },   { 4, UINT64_C(0xfa212ae44b3bb23d) },
        { 7, UINT64_C(0x2744460dd675d2c0) },   { 8, UINT64_C(0x994b676b71ce94dd) },
        { 15, UINT64_C(0x09e6451ed2ff8b1d) },  { 31, UINT64_C(0x6711d55e306b5d8f) },
        { 32, UINT64_C(0x07f7b8e3bc5d6e25) },  { 33, UINT64_C(0x09f85eeb4e1cbe9f) },
        { 63, UINT64_C(0xb7c9968c066cb6a5) },  { 64, UINT64_C(0x50d4159a0411632e) },
        { 100, UINT64_C(0x9ddada11d3dc2d8f) }, { 1000, UINT64_C(0x0bf0bdbcc82eb373) },
    };
    uint8_t bytes[1000];
    size_t i, at, step;
    for (i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 131 + 7);
    for (i = 0; i < sizeof known / sizeof *known; i++)
        for (step = 1; step < 80; step++) {
            ctr_file_hash_ h;
            ctr_file_hash_init_(&h);
            for (at = 0; at < known[i].size; at += step)
                ctr_file_hash_put_(&h, bytes + at, CTR_MIN_(step, known[i].size - at));
            CHECK(ctr_file_hash_end_(&h) == known[i].value);
        }
    printf("hash: 14 lengths in pieces of 1 to 79 bytes equal xxhash's\n");
}

static int compare_ints(const void *user, int64_t a, int64_t b)
{
    const int *x = (const int *)user;
    return (x[a] > x[b]) - (x[a] < x[b]);
}

static void test_sort(void)
{
    int x[200];
    int64_t order[200], n, i, seen;
    ctr_rng rng;
    memset(x, 0, sizeof x);
    ctr_rng_init(&rng, 1, CTR_STREAM_USER, 0, 0, 0);
    for (n = 0; n <= 200; n++) {
        for (i = 0; i < n; i++) x[i] = (int)ctr_rng_below(&rng, 1 + n / 2);
        ctr_file_sort_(order, n, compare_ints, x);
        for (seen = 0, i = 0; i < n; i++) {
            if (i) CHECK(x[order[i - 1]] <= x[order[i]]);
            seen += order[i];
        }
        CHECK(seen == n * (n - 1) / 2);
    }
}

/* ---- npy ------------------------------------------------------------------------------------- */

static void test_npy_round(ctr_ctx *ctx)
{
    static const int64_t shape[4] = { 2, 3, 1, 4 };
    uint8_t data[24 * 8], file[512];
    ctr_npy a;
    int dtype, rank, i;
    for (i = 0; i < (int)sizeof data; i++) data[i] = (uint8_t)(i * 37 + 11);
    for (dtype = 0; dtype < 10; dtype++)
        for (rank = 0; rank <= 4; rank++) {
            int64_t count = 1;
            for (i = 0; i < rank; i++) count *= shape[i];
            if (dtype == CTR_FILE_BF16) continue;
            CHECK(ctr_npy_save(ctx, path_, (ctr_file_dtype)dtype, rank, shape, data));
            CHECK(ctr_npy_load(ctx, path_, &a));
            CHECK(a.dtype == (ctr_file_dtype)dtype && a.rank == rank && a.count == count);
            for (i = 0; i < 4; i++) CHECK(a.shape[i] == (i < rank ? shape[i] : 1));
            CHECK(!memcmp(a.data, data, (size_t)count * ctr_file_dtype_size(a.dtype)));
            ctr_npy_free(ctx, &a);
        }
    { /* as numpy 2 writes numpy.arange(3, dtype='<i2') */
        static const char want[] = "\x93NUMPY\x01\x00v\x00{'descr': '<i2', 'fortran_order': False, "
            "'shape': (3,), }                                                            \n"
            "\x00\x00\x01\x00\x02\x00";
        static const int16_t x[3] = { 0, 1, 2 };
        static const int64_t three = 3, none = 0;
        size_t n;
        CHECK(ctr_npy_save(ctx, path_, CTR_FILE_I16, 1, &three, x));
        n = get_file(path_, file, sizeof file);
        CHECK(n == sizeof want - 1 && !memcmp(file, want, n));
        CHECK(ctr_npy_save(ctx, path_, CTR_FILE_F32, 1, &none, NULL));
        CHECK(ctr_npy_load(ctx, path_, &a) && a.count == 0 && a.rank == 1);
        ctr_npy_free(ctx, &a);
    }
    printf("npy: 9 types x 5 ranks come back; one file equals numpy's bytes\n");
}

/* A file from a header's text, version and numbers. */
static size_t make_npy(uint8_t *out, int version, const char *text, const void *data, size_t size)
{
    size_t length = strlen(text), at = version == 1 ? 10 : 12;
    memset(out, 0, 12);
    memcpy(out, "\x93NUMPY", 6);
    out[6] = (uint8_t)version;
    out[8] = (uint8_t)length;
    out[9] = (uint8_t)(length >> 8);
    memcpy(out + at, text, length);
    memcpy(out + at + length, data, size);
    return at + length + size;
}

static void test_npy_foreign(ctr_ctx *ctx)
{
    static const uint8_t big[8] = { 0x3f, 0x80, 0, 0, 0xc0, 0x20, 0, 0 }; /* 1 and -2.5 */
    uint8_t file[512];
    ctr_npy a;
    int version;
    for (version = 1; version <= 3; version++) {
        size_t n = make_npy(file, version,
                            "{\"shape\": (1,2,), 'fortran_order':False,'descr':'>f4'}\n", big, 8);
        float x[2];
        put_file(path_, file, n);
        if (!CHECK(ctr_npy_load(ctx, path_, &a))) continue;
        memcpy(x, a.data, 8);
        CHECK(a.rank == 2 && a.shape[0] == 1 && a.shape[1] == 2 && x[0] == 1.0f && x[1] == -2.5f);
        ctr_npy_free(ctx, &a);
    }
}

static void test_npy_lies(ctr_ctx *ctx)
{
    static const struct { const char *text; size_t size; const char *say;
    } lie[] = {
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", 8, "ends before" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 8, "goes on behind" },
        { "{'descr': '<f4', 'fortran_order': True, 'shape': (1,2)}", 8, "Fortran" },
        { "{'descr': '<f4', 'fortran_order': None, 'shape': (2,)}", 8, "neither" },
        { "{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", 8, "type of numbers" },
        { "{'descr': '|f4', 'fortran_order': False, 'shape': (2,)}", 8, "type of numbers" },
        { "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", 8, "quoted word" },
        { "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", 8, "type of numbers" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,4294967296)}", 8,
          "too large" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8,
          "too large" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", 8, "whole number" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,)}", 8, "whole number" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,2)}", 8, "too many" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1 2)}", 8, "no comma" },
        { "{'descr': '<f4', 'fortran_order': False}", 8, "lacks" },
        { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 8, "twice" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", 8, "unknown key" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", 8, "behind its end" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", 8, "no end" },
        { "[]", 8, "no dictionary" },
        { "", 8, "no dictionary" },
    };
    uint8_t file[512], data[8] = { 0 };
    ctr_npy a;
    size_t i, n;
    for (i = 0; i < sizeof lie / sizeof *lie; i++) {
        n = make_npy(file, 1, lie[i].text, data, lie[i].size);
        put_file(path_, file, n);
        CHECK(!ctr_npy_load(ctx, path_, &a) && a.data == NULL);
        CHECK_ERROR(ctx, CTR_E_FORMAT, lie[i].say);
    }
    n = make_npy(file, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", data, 8);
    for (i = 0; i < n; i++) { /* cut off anywhere */
        put_file(path_, file, i);
        CHECK(!ctr_npy_load(ctx, path_, &a) && ctr_error(ctx) == CTR_E_FORMAT);
        ctr_error_clear(ctx);
    }
    file[8] = file[9] = 0xff;
    put_file(path_, file, n);
    CHECK(!ctr_npy_load(ctx, path_, &a));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "header is longer");
    file[6] = 9;
    put_file(path_, file, n);
    CHECK(!ctr_npy_load(ctx, path_, &a));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "version");
    CHECK(!ctr_npy_load(ctx, DIR_ "/missing", &a));
    CHECK_ERROR(ctx, CTR_E_FILE, "No such file");
    CHECK(!ctr_npy_load(ctx, DIR_, &a));
    CHECK_ERROR(ctx, CTR_E_FILE, "folder");
    CHECK(!ctr_npy_load(ctx, "/dev/zero", &a));
    CHECK_ERROR(ctx, CTR_E_FILE, "device");
    printf("npy: %d lying files, %d truncations refused\n", (int)(sizeof lie / sizeof *lie),
           (int)n);
}

static void test_npy_arguments(ctr_ctx *ctx)
{
    static const int64_t bad[1] = { -1 }, two[1] = { 2 };
    float x[2] = { 1, 2 };
    remove(path_);
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_F32, 1, bad, x));
    CHECK_ERROR(ctx, CTR_E_VALUE, "shape");
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_F32, 5, two, x));
    CHECK_ERROR(ctx, CTR_E_VALUE, "shape");
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_BF16, 1, two, x));
    CHECK_ERROR(ctx, CTR_E_VALUE, "type");
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_F32, 1, two, NULL));
    CHECK_ERROR(ctx, CTR_E_VALUE, "no data");
    CHECK(!is_there(path_));
    CHECK(!ctr_npy_save(ctx, DIR_ "/missing/x.npy", CTR_FILE_F32, 1, two, x));
    CHECK_ERROR(ctx, CTR_E_FILE, "No such file");
    CHECK(!ctr_npy_save(ctx, DIR_, CTR_FILE_F32, 1, two, x)); /* a folder stands there */
    CHECK_ERROR(ctx, CTR_E_FILE, "rename");
    CHECK(is_swept("."));
    ctr_fail_(ctx, CTR_E_STATE, "pending");
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_F32, 1, two, x) && !is_there(path_));
    CHECK_ERROR(ctx, CTR_E_STATE, "pending");
}

/* ---- safetensors ----------------------------------------------------------------------------- */

static const float weights_[6] = { 1, 2, -3, 4.5f, 1e-30f, 6 };
static const uint8_t bytes_[3] = { 7, 8, 255 };
static const int64_t counter_ = -5000000000;

static ctr_file_tensor tensor(const char *name, ctr_file_dtype dtype, int rank, int64_t a,
                              int64_t b, const void *data)
{
    ctr_file_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.dtype = dtype;
    t.rank = rank;
    t.shape[0] = a;
    t.shape[1] = b;
    t.data = data;
    return t;
}

static int save_some(ctr_ctx *ctx, const char *path)
{
    static const ctr_file_meta meta[] = {
        { "arch", "resnet8" }, { "quote \" back \\ line\n", "caf\xc3\xa9 \x01\t\xf0\x9f\x98\x80" }
    };
    ctr_file_tensor t[4];
    t[0] = tensor("u", CTR_FILE_U8, 1, 3, 0, bytes_);
    t[1] = tensor("conv1.weight", CTR_FILE_F32, 2, 2, 3, weights_);
    t[2] = tensor("steps", CTR_FILE_I64, 0, 0, 0, &counter_);
    t[3] = tensor("none", CTR_FILE_F32, 2, 0, 3, NULL);
    return ctr_safetensors_save(ctx, path, t, 4, meta, 2);
}

static void test_st_round(ctr_ctx *ctx)
{
    ctr_safetensors *f;
    ctr_file_tensor t;
    ctr_real x[6];
    int64_t k, u[3];
    uint8_t one[1024], two[1024];
    size_t n, i;
    CHECK(save_some(ctx, path_));
    n = get_file(path_, one, sizeof one);
    CHECK(save_some(ctx, path_) && get_file(path_, two, sizeof two) == n && !memcmp(one, two, n));
    f = ctr_safetensors_open(ctx, path_);
    if (!CHECK(f != NULL)) return;
    CHECK(ctr_safetensors_count(f) == 4 && ctr_safetensors_find(f, "nothing") == -1);
    for (i = 0; i < 4; i++) {
        t = ctr_safetensors_info(f, (int64_t)i);
        CHECK(ctr_safetensors_find(f, t.name) == (int64_t)i);
        CHECK((size_t)((const uint8_t *)t.data - f->file.bytes) % ctr_file_dtype_size(t.dtype) ==
              0);
    }
    t = ctr_safetensors_info(f, ctr_safetensors_find(f, "conv1.weight"));
    CHECK(t.dtype == CTR_FILE_F32 && t.rank == 2 && t.shape[0] == 2 && t.shape[1] == 3);
    CHECK(ctr_safetensors_read_f32(ctx, f, ctr_safetensors_find(f, t.name), x, 6));
    for (i = 0; i < 6; i++) CHECK(x[i] == (ctr_real)weights_[i]);
    CHECK(ctr_safetensors_read_i64(ctx, f, ctr_safetensors_find(f, "steps"), &k, 1) &&
          k == counter_);
    CHECK(ctr_safetensors_read_i64(ctx, f, ctr_safetensors_find(f, "u"), u, 3) && u[2] == 255);
    CHECK(ctr_safetensors_read_f32(ctx, f, ctr_safetensors_find(f, "none"), x, 0));
    CHECK(!strcmp(ctr_safetensors_meta(f, "arch"), "resnet8"));
    CHECK(!strcmp(ctr_safetensors_meta(f, "quote \" back \\ line\n"),
                  "caf\xc3\xa9 \x01\t\xf0\x9f\x98\x80"));
    CHECK(strlen(ctr_safetensors_meta(f, "xxh64")) == 16 && !ctr_safetensors_meta(f, "none"));
    CHECK(ctr_safetensors_meta_count(f) == 3 &&
          !strcmp(ctr_safetensors_meta_at(f, 1).key, "arch"));
    CHECK(!ctr_safetensors_read_f32(ctx, f, 0, x, 5));
    CHECK_ERROR(ctx, CTR_E_SHAPE, "expected 5");
    CHECK(!ctr_safetensors_read_f32(ctx, f, 4, x, 6));
    CHECK_ERROR(ctx, CTR_E_VALUE, "asked for number 4");
    CHECK(!ctr_safetensors_read_i64(ctx, f, ctr_safetensors_find(f, "conv1.weight"), u, 6));
    CHECK_ERROR(ctx, CTR_E_VALUE, "whole numbers");
    ctr_safetensors_close(ctx, f);
    /* every single damaged byte is noticed, but for the five letters of the checksum's own name */
    for (i = 0; i < n; i++) {
        memcpy(two, one, n);
        two[i] ^= 0x10;
        put_file(path_, two, n);
        f = ctr_safetensors_open(ctx, path_);
        CHECK(f == NULL || !ctr_safetensors_meta(f, "xxh64"));
        ctr_safetensors_close(ctx, f);
        ctr_error_clear(ctx);
        put_file(path_, one, i);
        CHECK(!ctr_safetensors_open(ctx, path_));
        ctr_error_clear(ctx);
    }
    printf("safetensors: 4 tensors and 3 lines come back; %d damaged and %d cut files refused\n",
           (int)n, (int)n);
}

static void test_st_types(ctr_ctx *ctx)
{
    static uint16_t half[65536];
    static ctr_real x[65536];
    ctr_file_tensor t[2];
    ctr_safetensors *f;
    volatile float tiny = FLT_MIN;
    int i, flushes;
    tiny *= 0.5f;
    flushes = tiny == 0; /* -Ofast makes the processor drop numbers below FLT_MIN */
    for (i = 0; i < 65536; i++) half[i] = (uint16_t)i;
    t[0] = tensor("h", CTR_FILE_F16, 1, 65536, 0, half);
    t[1] = tensor("b", CTR_FILE_BF16, 1, 65536, 0, half);
    CHECK(ctr_safetensors_save(ctx, path_, t, 2, NULL, 0));
    f = ctr_safetensors_open(ctx, path_);
    if (!CHECK(f != NULL)) return;
    CHECK(ctr_safetensors_read_f32(ctx, f, ctr_safetensors_find(f, "h"), x, 65536));
    for (i = 0; i < 65536; i++) {
        int e = i >> 10 & 31, m = i & 1023;
        double want = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        if (e == 31) CHECK(!ctr_real_finite_(x[i]));
        else CHECK((double)x[i] == (i & 0x8000 ? -want : want));
    }
    CHECK(ctr_safetensors_read_f32(ctx, f, ctr_safetensors_find(f, "b"), x, 65536));
    for (i = 0; i < 65536; i++) {
        int e = i >> 7 & 255, m = i & 127;
        double want = e ? ldexp(128 + m, e - 134) : ldexp(m, -133);
        if (e == 255) CHECK(!ctr_real_finite_(x[i]));
        else if (e || !flushes) CHECK((double)x[i] == (i & 0x8000 ? -want : want));
    }
    ctr_safetensors_close(ctx, f);
    { /* F64 and the narrow whole numbers */
        static const double d[2] = { 0.1, -3 };
        static const int32_t w[2] = { INT32_MIN, 5 };
        static const int16_t s[2] = { -2, 300 };
        static const int8_t c[2] = { -1, 100 };
        static const uint8_t b[2] = { 0, 1 };
        ctr_file_tensor u[5];
        static const double want[5][2] = {
            { 0.1, -3 }, { INT32_MIN, 5 }, { -2, 300 }, { -1, 100 }, { 0, 1 }
        };
        static const char *const names[5] = { "d", "w", "s", "c", "b" };
        u[0] = tensor("d", CTR_FILE_F64, 1, 2, 0, d);
        u[1] = tensor("w", CTR_FILE_I32, 1, 2, 0, w);
        u[2] = tensor("s", CTR_FILE_I16, 1, 2, 0, s);
        u[3] = tensor("c", CTR_FILE_I8, 1, 2, 0, c);
        u[4] = tensor("b", CTR_FILE_BOOL, 1, 2, 0, b);
        CHECK(ctr_safetensors_save(ctx, path_, u, 5, NULL, 0));
        f = ctr_safetensors_open(ctx, path_);
        if (!CHECK(f != NULL)) return;
        for (i = 0; i < 5; i++) {
            CHECK(ctr_safetensors_read_f32(ctx, f, ctr_safetensors_find(f, names[i]), x, 2));
            CHECK(x[0] == (ctr_real)want[i][0] && x[1] == (ctr_real)want[i][1]);
        }
        ctr_safetensors_close(ctx, f);
    }
    printf("safetensors: all 65536 values of F16 and of BF16 equal m 2^e\n");
}

/* Header text plus `size` bytes of numbers. */
static void put_st(const char *header, size_t size)
{
    uint8_t file[1024];
    size_t n = strlen(header);
    memset(file, 0, sizeof file);
    ctr_file_put_u64_(file, n);
    memcpy(file + 8, header, n);
    put_file(path_, file, 8 + n + size);
}

#define T_(name, a, b) \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[" a "," b "]}"

static void test_st_lies(ctr_ctx *ctx)
{
    static const struct { const char *header; size_t size; const char *say;
    } lie[] = {
        { "{" T_("a", "0", "4") "," T_("b", "0", "4") "}", 4, "overlap" },
        { "{" T_("a", "0", "4") "," T_("b", "2", "6") "}", 6, "overlap" },
        { "{" T_("a", "0", "4") "," T_("b", "8", "12") "}", 12, "gap" },
        { "{" T_("a", "4", "8") "}", 8, "gap" },
        { "{" T_("a", "0", "4") "}", 8, "no tensor" },
        { "{" T_("a", "0", "4") "}", 3, "outside" },
        { "{" T_("a", "4", "0") "}", 4, "outside" },
        { "{" T_("a", "0", "9223372036854775807") "}", 4, "outside" },
        { "{" T_("a", "0", "9223372036854775808") "}", 4, "too large" },
        { "{" T_("a", "0", "18446744073709551617") "}", 4, "too large" },
        { "{" T_("a", "0", "8") "}", 8, "do not fit" },
        { "{" T_("a", "0", "4") "," T_("a", "4", "8") "}", 8, "this name" },
        { "{" T_("a", "0",
                 "4") ",\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
          8, "this name" },
        { "{" T_("a", "-0", "4") "}", 4, "whole number" },
        { "{" T_("a", "0", "4.0") "}", 4, "whole number" },
        { "{" T_("a", "0", "4e0") "}", 4, "whole number" },
        { "{" T_("a", "00", "4") "}", 4, "whole number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,4]}}",
          4, "too large" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
          "too many" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "no list" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "two numbers" },
        { "{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "not supported" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 0, "incomplete" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
          "twice" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":0}}", 4,
          "unknown key" },
        { "{\"a\":[]}", 0, "no object" },
        { "{\"a\" {}}", 0, "colon" },
        { "{\"a\":{}}", 0, "string was expected" },
        { "{\"__metadata__\":{\"k\":1}}", 0, "string was expected" },
        { "{\"__metadata__\":{\"k\":\"v\",\"k\":\"v\"}}", 0, "this key" },
        { "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice" },
        { "{\"__metadata__\":[]}", 0, "no object" },
        { "{\"__metadata__\":{\"xxh64\":\"00\"}}", 0, "sixteen" },
        { "{\"__metadata__\":{\"xxh64\":\"\\u0030000000000000000\"}}", 0, "sixteen" },
        { "{\"__metadata__\":{\"xxh64\":\"0000000000000000\"}}", 0, "checksum" },
        { "{\"a\\u0000b\":{}}", 0, "bad escape" },
        { "{\"\\ud800\":{}}", 0, "bad escape" },
        { "{\"\\ud800\\u0041\":{}}", 0, "bad escape" },
        { "{\"\\x\":{}}", 0, "bad escape" },
        { "{\"\\u00g0\":{}}", 0, "bad escape" },
        { "{\"\xff\":{}}", 0, "UTF-8" },
        { "{\"\xc0\x80\":{}}", 0, "UTF-8" },
        { "{\"\xed\xa0\x80\":{}}", 0, "UTF-8" },
        { "{\"a\n\":{}}", 0, "control" },
        { "{\"a", 0, "no end" },
        { "{\"a\\", 0, "bad escape" },
        { "{} x", 0, "behind its end" },
        { "{,}", 0, "string was expected" },
        { "[[[[[[[[", 0, "brace" },
        { " {}", 0, "brace" },
    };
    ctr_safetensors *f;
    uint8_t file[64];
    size_t i;
    for (i = 0; i < sizeof lie / sizeof *lie; i++) {
        put_st(lie[i].header, lie[i].size);
        f = ctr_safetensors_open(ctx, path_);
        CHECK(f == NULL);
        CHECK_ERROR(ctx, CTR_E_FORMAT, lie[i].say);
    }
    memset(file, 0xff, sizeof file);
    put_file(path_, file, sizeof file);
    CHECK(!ctr_safetensors_open(ctx, path_));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "header is longer");
    ctr_file_put_u64_(file, 57);
    put_file(path_, file, sizeof file);
    CHECK(!ctr_safetensors_open(ctx, path_));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "header is longer");
    CHECK(!ctr_safetensors_open(ctx, DIR_ "/missing"));
    CHECK_ERROR(ctx, CTR_E_FILE, "No such file");
    put_st("{}", 0); /* valid, and empty */
    f = ctr_safetensors_open(ctx, path_);
    CHECK(f && ctr_safetensors_count(f) == 0);
    ctr_safetensors_close(ctx, f);
    put_st(
        "{ \"\\ud83d\\ude00\\u00e9\\/\" : { \"shape\" : [ 1 ] , \"data_offsets\":[ 0 , 4 ],\n"
        "\"dtype\":\"I32\" } ,\t\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}   ",
        4);
    f = ctr_safetensors_open(ctx, path_);
    CHECK(f && ctr_safetensors_find(f, "\xf0\x9f\x98\x80\xc3\xa9/") == 0);
    ctr_safetensors_close(ctx, f);
    printf("safetensors: %d lying files refused\n", (int)(sizeof lie / sizeof *lie));
}

static void test_st_arguments(ctr_ctx *ctx)
{
    static const ctr_file_meta reserved = { "xxh64", "1" }, bad = { "k", "\xff" };
    static const ctr_file_meta twice[2] = { { "k", "1" }, { "k", "2" } };
    ctr_file_tensor t[2];
    remove(path_);
    t[0] = t[1] = tensor("a", CTR_FILE_F32, 1, 2, 0, weights_);
    CHECK(!ctr_safetensors_save(ctx, path_, t, 2, NULL, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "two tensors");
    t[0].name = "__metadata__";
    CHECK(!ctr_safetensors_save(ctx, path_, t, 1, NULL, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "not allowed");
    t[0].name = "\xc3";
    CHECK(!ctr_safetensors_save(ctx, path_, t, 1, NULL, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "UTF-8");
    t[0] = tensor("a", CTR_FILE_F32, 2, INT64_MAX, 2, weights_);
    CHECK(!ctr_safetensors_save(ctx, path_, t, 1, NULL, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "shape");
    t[0] = tensor("a", CTR_FILE_F32, 1, 2, 0, NULL);
    CHECK(!ctr_safetensors_save(ctx, path_, t, 1, NULL, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "no data");
    CHECK(!ctr_safetensors_save(ctx, path_, NULL, 0, &reserved, 1));
    CHECK_ERROR(ctx, CTR_E_VALUE, "reserved");
    CHECK(!ctr_safetensors_save(ctx, path_, NULL, 0, &bad, 1));
    CHECK_ERROR(ctx, CTR_E_VALUE, "UTF-8");
    CHECK(!ctr_safetensors_save(ctx, path_, NULL, 0, twice, 2));
    CHECK_ERROR(ctx, CTR_E_VALUE, "the key 'k'");
    CHECK(!is_there(path_));
}

/* ---- nothing is lost ------------------------------------------------------------------------- */

typedef struct fault { int n, seen, code; char last[32], all[400]; } fault;

static int fail_nth(void *user, const char *operation, const char *path)
{
    fault *f = (fault *)user;
    size_t n = strlen(f->all);
    (void)path;
    snprintf(f->all + n, sizeof f->all - n, "%s,", operation);
    if (f->seen++ != f->n) return 0;
    snprintf(f->last, sizeof f->last, "%s", operation);
    return f->code;
}

static void test_faults(ctr_ctx *ctx)
{
    uint8_t old[1024], now[1024];
    ctr_file_hook_ hook;
    ctr_safetensors *f;
    size_t held, n;
    fault x;
    int operations = 0, ok;
    CHECK(save_some(ctx, path_));
    n = get_file(path_, old, sizeof old);
    held = ctr_memory_stats(ctx).held;
    hook.user = &x;
    hook.fn = fail_nth;
    for (x.n = 0; x.n < 100; x.n++) {
        ctr_file_tensor t = tensor("new", CTR_FILE_F32, 1, 6, 0, weights_);
        x.seen = 0;
        x.code = ENOSPC;
        x.last[0] = x.all[0] = 0;
        ctx->file_hook = &hook;
        ok = ctr_safetensors_save(ctx, path_, &t, 1, NULL, 0);
        ctx->file_hook = NULL;
        CHECK(ctr_memory_stats(ctx).held == held && is_swept(DIR_));
        if (ok) break;
        operations++;
        CHECK_ERROR(ctx, CTR_E_FILE, strerror(ENOSPC));
        if (!strcmp(x.last, "sync folder")) continue; /* the new file is already in place */
        CHECK(get_file(path_, now, sizeof now) == n && !memcmp(old, now, n));
    }
    CHECK(operations >= 8); /* and the last run tells their order, on which the safety rests */
    CHECK(!strcmp(x.all, "create,write,write,write,flush,close,sync,rename,sync folder,"));
    f = ctr_safetensors_open(ctx, path_);
    CHECK(f && ctr_safetensors_find(f, "new") == 0);
    ctr_safetensors_close(ctx, f);
    for (x.n = 0; x.n < 3; x.n++) { /* look, open, read */
        x.seen = 0;
        x.code = EIO;
        x.all[0] = 0;
        ctx->file_hook = &hook;
        f = ctr_safetensors_open(ctx, path_);
        ctx->file_hook = NULL;
        CHECK(f == NULL && ctr_error(ctx) == CTR_E_FILE);
        ctr_error_clear(ctx);
        CHECK(ctr_memory_stats(ctx).held == held);
    }
    printf("replace: each of its %d operations failed once, the old file stayed\n", operations);
}

/* A process that is killed at its n-th operation. The next one finds the old file or the new one,
   and can save. */
static int kill_nth(void *user, const char *operation, const char *path)
{
    fault *f = (fault *)user;
    (void)operation;
    (void)path;
    if (f->seen++ == f->n) raise(SIGKILL);
    return 0;
}

static void test_kill(ctr_ctx *ctx)
{
    ctr_file_tensor t = tensor("new", CTR_FILE_F32, 1, 6, 0, weights_);
    ctr_config one_thread = ctr_config_default();
    int n, status = 1, olds = 0, news = 0, left = 0;
    one_thread.threads = 1;
    for (n = 0; n < 40 && status; n++) {
        ctr_safetensors *f;
        pid_t child;
        left += !is_swept(DIR_);
        CHECK(save_some(ctx, path_) && is_swept(DIR_)); /* what a killed one left, too */
        fflush(stdout);
        child = fork();
        if (child == 0) {
            ctr_ctx *own = ctr_ctx_create(&one_thread);
            ctr_file_hook_ hook;
            fault x;
            x.n = n;
            x.seen = 0;
            hook.user = &x;
            hook.fn = kill_nth;
            own->file_hook = &hook;
            _exit(!ctr_safetensors_save(own, path_, &t, 1, NULL, 0));
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        f = ctr_safetensors_open(ctx, path_);
        if (!CHECK(f != NULL)) continue;
        if (ctr_safetensors_find(f, "new") == 0) news++;
        else if (CHECK(ctr_safetensors_find(f, "conv1.weight") >= 0)) olds++;
        ctr_safetensors_close(ctx, f);
    }
    CHECK(status == 0 && olds >= 7 && news >= 1 && left >= 6);
    printf("kill: at %d operations; %d times the old file, %d times the new one, never none\n",
           n - 1, olds, news);
}

/* While this process writes, another one saves to the same path: both files are whole, the last one
   stays. Nor does a save remove what belongs to a process that lives, or what is no save's. */
static void test_two(ctr_ctx *ctx)
{
    static const char *const others[3] = { "file.999999999.tmpx", "file.x.tmp",
                                           "other.999999999.tmp" };
    ctr_config one_thread = ctr_config_default();
    ctr_file_writer_ w;
    uint8_t now[1024];
    char path[64];
    int status = 1, i;
    size_t n;
    pid_t child;
    one_thread.threads = 1;
    CHECK(ctr_file_writer_open_(ctx, &w, path_));
    ctr_file_writer_put_(&w, "who", 3);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        ctr_ctx *own = ctr_ctx_create(&one_thread);
        _exit(!save_some(own, path_));
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    n = get_file(path_, now, sizeof now);
    CHECK(n > 5 && !is_swept(DIR_)); /* the other's file; this one's is not there yet */
    ctr_file_writer_put_(&w, "le", 2);
    CHECK(ctr_file_writer_commit_(&w));
    CHECK(get_file(path_, now, sizeof now) == 5 && !memcmp(now, "whole", 5) && is_swept(DIR_));
    snprintf(path, sizeof path, "%s.%ld.tmp", path_, (long)getppid());
    put_file(path, "x", 1);
    for (i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", DIR_, others[i]);
        put_file(path, "x", 1);
    }
    CHECK(save_some(ctx, path_));
    for (i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", DIR_, others[i]);
        CHECK(is_there(path) && !remove(path));
    }
    snprintf(path, sizeof path, "%s.%ld.tmp", path_, (long)getppid());
    CHECK(is_there(path) && !remove(path) && is_swept(DIR_));
}

/* Without the right to write there: the process gives up being root, if it is. */
static void test_permission(ctr_ctx *ctx)
{
    uint8_t old[1024], now[1024];
    char trap[64];
    ctr_config one_thread = ctr_config_default();
    int status = 0;
    pid_t child;
    size_t n;
    one_thread.threads = 1;
    CHECK(save_some(ctx, path_));
    n = get_file(path_, old, sizeof old);
    CHECK(chmod(DIR_, 0555) == 0);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        ctr_ctx *own = ctr_ctx_create(&one_thread);
        int ok;
        if (getuid() == 0 && setuid(65534)) _exit(9);
        ok = save_some(own, path_);
        _exit(ok || ctr_error(own) != CTR_E_FILE || !strstr(ctr_error_text(own), strerror(EACCES)));
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(chmod(DIR_, 0777) == 0);
    CHECK(get_file(path_, now, sizeof now) == n && !memcmp(old, now, n));
    CHECK(save_some(ctx, "bare") && is_there("bare") && is_swept("."));
    snprintf(trap, sizeof trap, "%s.%ld.tmp", path_, (long)getpid()); /* laid in wait */
    CHECK(symlink_to("/dev/zero", trap) && save_some(ctx, path_));
    CHECK(get_file(path_, now, sizeof now) == n && is_swept(DIR_));
    put_file("bare.999999999.tmp", "x", 1); /* beside a path without a folder */
    CHECK(save_some(ctx, "bare") && is_swept("."));
}

/* A real limit instead of a pretended one. */
static void test_full(ctr_ctx *ctx)
{
    static float big[65536];
    static const int64_t count = 65536;
    uint8_t old[1024], now[1024];
    struct rlimit before, small;
    size_t n;
    int mounted;
    CHECK(save_some(ctx, path_));
    n = get_file(path_, old, sizeof old);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 100000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    CHECK(!ctr_npy_save(ctx, path_, CTR_FILE_F32, 1, &count, big));
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK_ERROR(ctx, CTR_E_FILE, strerror(EFBIG));
    CHECK(get_file(path_, now, sizeof now) == n && !memcmp(old, now, n));
    CHECK(is_swept(DIR_));
    mkdir(DIR_ "/small", 0777);
    mounted = mount("tmpfs", DIR_ "/small", "tmpfs", 0, "size=64k") == 0;
    if (mounted) {
        CHECK(save_some(ctx, DIR_ "/small/file"));
        CHECK(!ctr_npy_save(ctx, DIR_ "/small/file", CTR_FILE_F32, 1, &count, big));
        CHECK_ERROR(ctx, CTR_E_FILE, strerror(ENOSPC));
        CHECK(get_file(DIR_ "/small/file", now, sizeof now) == n && !memcmp(old, now, n));
        CHECK(is_swept(DIR_ "/small"));
        umount(DIR_ "/small");
    }
    printf("full disk: file size limit%s\n",
           mounted ? ", 64 KB tmpfs" : " (skipped: no right to mount)");
}

/* ---- the n-th allocation fails --------------------------------------------------------------- */

static int fail_at_, allocations_;
static void *count_alloc(void *user, size_t size)
{
    (void)user;
    return allocations_++ == fail_at_ ? NULL : malloc(size);
}
static void count_free(void *user, void *p, size_t size)
{
    (void)user;
    (void)size;
    free(p);
}

static void test_memory(void)
{
    ctr_config config = ctr_config_default();
    ctr_safetensors *f;
    ctr_ctx *ctx;
    int saved, opened = 0, n;
    config.allocator.alloc_fn = count_alloc;
    config.allocator.free_fn = count_free;
    config.threads = 1;
    for (n = 0; n < 200 && !opened; n++) {
        fail_at_ = -1;
        ctx = ctr_ctx_create(&config);
        allocations_ = 0;
        fail_at_ = n;
        saved = save_some(ctx, path_);
        if (!saved) CHECK_ERROR(ctx, CTR_E_MEMORY, "memory");
        f = ctr_safetensors_open(ctx, path_);
        opened = f != NULL && allocations_ <= n;
        if (!f) CHECK_ERROR(ctx, CTR_E_MEMORY, "memory");
        ctr_safetensors_close(ctx, f);
        CHECK(ctr_memory_stats(ctx).held == 0 || ctr_memory_stats(ctx).held < 4096);
        ctr_ctx_destroy(ctx);
    }
    CHECK(opened && n > 8);
    printf("memory: each of %d allocations failed once\n", n - 1);
}

int main(void)
{
    ctr_ctx *ctx;
    check_enter();
    mkdir(DIR_, 0777);
    ctx = ctr_ctx_create(NULL);
    test_hash();
    test_sort();
    test_npy_round(ctx);
    test_npy_foreign(ctx);
    test_npy_lies(ctx);
    test_npy_arguments(ctx);
    test_st_round(ctx);
    test_st_types(ctx);
    test_st_lies(ctx);
    test_st_arguments(ctx);
    test_faults(ctx);
    test_kill(ctx);
    test_two(ctx);
    test_permission(ctx);
    test_full(ctx);
    test_memory();
    ctr_ctx_destroy(ctx);
    return check_end("test_io");
}
