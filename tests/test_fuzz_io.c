/* Damages files in tens of thousands of ways and reads them: npy, safetensors (with the checksum
   made right again, so that what lies behind it is reached), IDX, IDX.gz, CIFAR, class names, the
   mapped cache. Every read must end in an error of one line or in data that is all there; nothing
   leaks and nothing asks for much more memory than the file has. Fixed seeds: each run does the
   same.
   usage: fuzz_io [rounds, default 4000] */
/* run: float asan */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "check.h"

#define DIR_ "place"
#define ROOM 8192

typedef struct sample { uint8_t bytes[ROOM]; size_t size; } sample;

static ctr_rng rng_;
static uint32_t below(uint32_t n) { return (uint32_t)ctr_rng_below(&rng_, n); }

static void splice(sample *s, size_t at, size_t cut, const void *bytes, size_t n)
{
    size_t rest = s->size - at - cut;
    if (s->size - cut + n > ROOM) return;
    memmove(s->bytes + at + n, s->bytes + at + cut, rest);
    memcpy(s->bytes + at, bytes, n);
    s->size = at + n + rest;
}

/* What tends to hurt: tokens of the headers, and numbers at the edges of their types. */
static void mutate(sample *s)
{
    static const char *const token[] = { "{",
                                         "}",
                                         "[",
                                         "]",
                                         "(",
                                         ")",
                                         ",",
                                         ":",
                                         "\"",
                                         "'",
                                         "\\",
                                         "\\u0000",
                                         "\\ud800",
                                         "\\udc00",
                                         "0",
                                         "-1",
                                         "1e9",
                                         "99999999999999999999",
                                         "9223372036854775807",
                                         "18446744073709551615",
                                         "4294967296",
                                         "{{{{{{",
                                         "[[[[[[",
                                         "\"__metadata__\":{}",
                                         "\"xxh64\":\"",
                                         "\"dtype\":\"F16\"",
                                         "\"shape\":[2,0,4294967295]",
                                         "\"data_offsets\":[0,0]",
                                         "'descr': '>f8'",
                                         "'fortran_order': True",
                                         "'shape': (0,)",
                                         "None",
                                         "\xff",
                                         "\xc0\x80",
                                         "\n",
                                         " ",
                                         "P6",
                                         "P5 1 1 255 a" };
    static const uint8_t edge[] = { 0, 1, 0x7f, 0x80, 0xff, 3, 4, 8, 9, 10, 100 };
    uint32_t i, changes = 1 + below(4);
    for (i = 0; i < changes && s->size; i++) {
        size_t at = below(below(2) ? (uint32_t)s->size : CTR_MIN_((uint32_t)s->size, 200));
        size_t length = 1 + below(8), k;
        const char *t = token[below(sizeof token / sizeof *token)];
        if (length > s->size - at) length = s->size - at;
        switch (below(9)) {
        case 0: s->bytes[at] ^= (uint8_t)(1 << below(8)); break;
        case 1: s->bytes[at] = edge[below(sizeof edge)]; break;
        case 2: memset(s->bytes + at, (int)(0u - below(2)) & 255, length); break;
        case 3: splice(s, at, 0, t, strlen(t)); break;
        case 4: splice(s, at, length, t, strlen(t)); break;
        case 5: splice(s, at, length, "", 0); break;
        case 6: s->size = below(4) ? at : s->size - length; break;
        case 7: { /* a piece twice */
            uint8_t copy[64];
            k = 1 + below(63);
            if (k > s->size - at) k = s->size - at;
            memcpy(copy, s->bytes + at, k);
            splice(s, below((uint32_t)s->size), 0, copy, k);
            break;
        }
        default: { /* a digit becomes another one */
            for (k = at; k < s->size && (s->bytes[k] < '0' || s->bytes[k] > '9'); k++) { }
            if (k < s->size) s->bytes[k] = (uint8_t)('0' + below(10));
            break;
        }
        }
    }
}

/* An allocator that notes the largest request. */
static size_t largest_;
static void *note_alloc(void *user, size_t size)
{
    (void)user;
    if (size > largest_) largest_ = size;
    return size > (size_t)1 << 26 ? NULL : malloc(size);
}
static void note_free(void *user, void *p, size_t size)
{
    (void)user;
    (void)size;
    free(p);
}

static ctr_file_bytes_ copy_of(ctr_ctx *ctx, const sample *s)
{
    ctr_file_bytes_ b;
    b.size = s->size;
    b.bytes = (uint8_t *)ctr_alloc_(ctx, s->size + 1);
    memcpy(b.bytes, s->bytes, s->size);
    b.bytes[s->size] = 0;
    return b;
}

static void put_file(const char *path, const sample *s)
{
    FILE *f = fopen(path, "wb");
    if (!CHECK(f != NULL)) exit(1);
    CHECK(fwrite(s->bytes, 1, s->size, f) == s->size);
    fclose(f);
}

static sample get_file(const char *path)
{
    sample s;
    FILE *f = fopen(path, "rb");
    s.size = f ? fread(s.bytes, 1, ROOM, f) : 0;
    CHECK(s.size > 0 && s.size < ROOM);
    if (f) fclose(f);
    return s;
}

static void check_refusal(ctr_ctx *ctx)
{
    ctr_status e = ctr_error(ctx);
    CHECK(e == CTR_E_FORMAT || e == CTR_E_FILE || e == CTR_E_MEMORY || e == CTR_E_VALUE);
    CHECK(ctr_error_text(ctx)[0] && !strchr(ctr_error_text(ctx), '\n'));
    ctr_error_clear(ctx);
}

static uint64_t sum_;
static void touch(const void *p, size_t n)
{
    const uint8_t *b = (const uint8_t *)p;
    size_t i;
    for (i = 0; i < n; i++) sum_ += b[i];
}

static int read_npy(ctr_ctx *ctx, const sample *s)
{
    ctr_file_bytes_ b = copy_of(ctx, s);
    ctr_npy a;
    if (!ctr_io_npy_take_(ctx, &b, "fuzz", &a)) return 0;
    touch(a.data, (size_t)a.count * ctr_file_dtype_size(a.dtype));
    CHECK(a.rank >= 0 && a.rank <= 4 &&
          a.count == a.shape[0] * a.shape[1] * a.shape[2] * a.shape[3]);
    ctr_npy_free(ctx, &a);
    return 1;
}

/* Finds the checksum's digits and makes them right. */
static void mend(sample *s)
{
    size_t i;
    for (i = 0; i + 26 < s->size; i++)
        if (!memcmp(s->bytes + i, "\"xxh64\":\"", 9)) {
            char digits[20];
            ctr_file_hash_ h;
            memset(s->bytes + i + 9, '0', 16);
            ctr_file_hash_init_(&h);
            ctr_file_hash_put_(&h, s->bytes, s->size);
            snprintf(digits, sizeof digits, "%016llx", (unsigned long long)ctr_file_hash_end_(&h));
            memcpy(s->bytes + i + 9, digits, 16);
            return;
        }
}

static int read_safetensors(ctr_ctx *ctx, const sample *s)
{
    ctr_safetensors *f = (ctr_safetensors *)ctr_alloc_zero_(ctx, sizeof *f);
    static ctr_real x[ROOM];
    static int64_t k[ROOM];
    int64_t i;
    f->file = copy_of(ctx, s);
    if (!ctr_io_safetensors_parse_(ctx, f, "fuzz")) {
        ctr_safetensors_close(ctx, f);
        return 0;
    }
    for (i = 0; i < ctr_safetensors_count(f); i++) {
        ctr_file_tensor t = ctr_safetensors_info(f, i);
        int64_t count = t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3];
        CHECK(ctr_safetensors_find(f, t.name) == i);
        CHECK(count <= ROOM && ctr_safetensors_read_f32(ctx, f, i, x, count));
        if (t.dtype >= CTR_FILE_I64) CHECK(ctr_safetensors_read_i64(ctx, f, i, k, count));
        touch(t.data, (size_t)count * ctr_file_dtype_size(t.dtype));
    }
    for (i = 0; i < ctr_safetensors_meta_count(f); i++) {
        ctr_file_meta m = ctr_safetensors_meta_at(f, i);
        CHECK(!strcmp(ctr_safetensors_meta(f, m.key), m.value));
    }
    ctr_safetensors_close(ctx, f);
    return 1;
}

/* Opens DIR_ after one of its files was written; looks at every image. */
static const char *file_;
static const char *open_;
static ctr_data_options options_;
static int read_data(ctr_ctx *ctx, const sample *s)
{
    ctr_dataset *d;
    int64_t i;
    put_file(file_, s);
    d = ctr_dataset_open(ctx, open_, NULL, &options_);
    if (!d) return 0;
    for (i = 0; i < ctr_dataset_count(d); i++) {
        ctr_image image;
        CHECK(ctr_dataset_label(d, i) >= -1 && ctr_dataset_label(d, i) < 256);
        if (!CHECK(ctr_dataset_image(ctx, d, i, &image))) break;
        touch(image.pixels, (size_t)(image.h * image.w * image.c));
        ctr_image_free(ctx, &image);
    }
    touch(ctr_dataset_class_name(d, 0), strlen(ctr_dataset_class_name(d, 0)));
    ctr_dataset_destroy(ctx, d);
    return 1;
}

static void fuzz(ctr_ctx *ctx, const char *name, const sample *seed, int rounds, int mending,
                 int (*read_fn)(ctr_ctx *, const sample *))
{
    size_t held = ctr_memory_stats(ctx).held;
    long accepted = 0;
    int i;
    CHECK(read_fn(ctx, seed));
    largest_ = 0;
    for (i = 0; i < rounds; i++) {
        sample s = *seed;
        ctr_rng_init(&rng_, 2024, CTR_STREAM_USER, i, 0, 0);
        mutate(&s);
        if (mending && i % 4) mend(&s);
        if (read_fn(ctx, &s)) accepted++;
        else check_refusal(ctx);
        if (!CHECK(ctr_memory_stats(ctx).held == held)) printf("%s: round %d\n", name, i);
    }
    printf("%-16s %6d files of about %4ld bytes: %5ld accepted, largest request %ld bytes\n", name,
           rounds, (long)seed->size, accepted, (long)largest_);
    CHECK(largest_ <= (size_t)1 << 20);
}

static void seeds_io(ctr_ctx *ctx, sample *npy, sample *st)
{
    static const float x[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    static const int64_t shape[3] = { 2, 3, 2 };
    static const uint8_t u[5] = { 1, 2, 3, 4, 5 };
    static const ctr_file_meta meta[2] = { { "arch", "resnet8 \"w\" \\ 16" }, { "step", "12" } };
    ctr_file_tensor t[3];
    memset(t, 0, sizeof t);
    t[0].name = "conv1.weight";
    t[0].rank = 3;
    memcpy(t[0].shape, shape, sizeof shape);
    t[0].data = x;
    t[1].name = "labels";
    t[1].dtype = CTR_FILE_U8;
    t[1].rank = 1;
    t[1].shape[0] = 5;
    t[1].data = u;
    t[2].name = "half";
    t[2].dtype = CTR_FILE_F16;
    t[2].data = u;
    CHECK(ctr_npy_save(ctx, DIR_ "/a.npy", CTR_FILE_F32, 3, shape, x));
    CHECK(ctr_safetensors_save(ctx, DIR_ "/a.st", t, 3, meta, 2));
    *npy = get_file(DIR_ "/a.npy");
    *st = get_file(DIR_ "/a.st");
    remove(DIR_ "/a.npy");
    remove(DIR_ "/a.st");
}

static sample idx_seed(int rank, int n, int h, int w)
{
    sample s;
    memset(&s, 0, sizeof s);
    s.bytes[2] = 8;
    s.bytes[3] = (uint8_t)rank;
    s.bytes[7] = (uint8_t)n;
    if (rank == 3) {
        s.bytes[11] = (uint8_t)h;
        s.bytes[15] = (uint8_t)w;
    }
    s.size = (size_t)(4 + 4 * rank + n * h * w);
    return s;
}

static void fuzz_idx(ctr_ctx *ctx, int rounds)
{
    sample images = idx_seed(3, 4, 5, 6), labels = idx_seed(1, 4, 1, 1), packed;
    file_ = DIR_ "/t-labels-idx1-ubyte";
    open_ = DIR_;
    put_file(file_, &labels);
    file_ = DIR_ "/t-images-idx3-ubyte";
    fuzz(ctx, "idx images", &images, rounds, 0, read_data);
    put_file(file_, &images);
    file_ = DIR_ "/t-labels-idx1-ubyte";
    fuzz(ctx, "idx labels", &labels, rounds, 0, read_data);
    put_file(file_, &labels);
    if (!ctr_image_has_stb()) {
        printf("idx.gz           skipped: this build has no stb_image\n");
        return;
    }
    file_ = DIR_ "/t-images-idx3-ubyte.gz";
    CHECK(!system("cd " DIR_ " && gzip t-images-idx3-ubyte"));
    packed = get_file(file_);
    fuzz(ctx, "idx.gz images", &packed, rounds, 0, read_data);
}

static void fuzz_cifar(ctr_ctx *ctx, int rounds)
{
    sample file, names;
    CHECK(!system("rm -rf " DIR_ " && mkdir " DIR_));
    memset(&file, 1, sizeof file);
    file.size = 2 * 3073;
    names.size = (size_t)snprintf((char *)names.bytes, 100, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n");
    file_ = DIR_ "/batches.meta.txt";
    put_file(file_, &names);
    file_ = DIR_ "/data_batch_1.bin";
    fuzz(ctx, "cifar-10", &file, rounds / 2, 0, read_data);
    put_file(file_, &file);
    file_ = DIR_ "/batches.meta.txt";
    fuzz(ctx, "class names", &names, rounds / 2, 0, read_data);
    CHECK(!system("rm -rf " DIR_ " && mkdir " DIR_));
    file.size = 2 * 3074;
    file_ = DIR_ "/train.bin";
    fuzz(ctx, "cifar-100", &file, rounds / 2, 0, read_data);
}

/* Whatever stands in the cache's place, the images are those of the folder. */
static void fuzz_cache(ctr_ctx *ctx, int rounds)
{
    sample image, cache;
    ctr_dataset *d;
    CHECK(!system("rm -rf " DIR_ " && mkdir -p " DIR_ "/img"));
    image.size = (size_t)snprintf((char *)image.bytes, 100, "P5 3 2 255 abcdef");
    put_file(DIR_ "/img/1.pgm", &image);
    image.bytes[11] = 'x';
    put_file(DIR_ "/img/2.pgm", &image);
    options_.cache = CTR_CACHE_MAPPED;
    options_.cache_path = DIR_ "/cache";
    open_ = DIR_ "/img";
    d = ctr_dataset_open(ctx, open_, NULL, &options_);
    if (!CHECK(d != NULL)) return;
    ctr_dataset_destroy(ctx, d);
    cache = get_file(DIR_ "/cache");
    file_ = DIR_ "/cache";
    fuzz(ctx, "mapped cache", &cache, rounds / 8, 0, read_data);
    options_ = ctr_data_options_default();
    file_ = DIR_ "/img/2.pgm";
    fuzz(ctx, "pgm", &image, rounds, 0, read_data);
}

int main(int argc, char **argv)
{
    ctr_config config = ctr_config_default();
    int rounds = argc > 1 ? atoi(argv[1]) : 4000;
    static sample npy, st;
    ctr_ctx *ctx;
    config.allocator.alloc_fn = note_alloc;
    config.allocator.free_fn = note_free;
    config.threads = 1;
    ctx = ctr_ctx_create(&config);
    options_ = ctr_data_options_default();
    check_enter();
    CHECK(!system("rm -rf " DIR_ " && mkdir " DIR_));
    seeds_io(ctx, &npy, &st);
    fuzz(ctx, "npy", &npy, rounds * 8, 0, read_npy);
    fuzz(ctx, "safetensors", &st, rounds * 8, 1, read_safetensors);
    fuzz_idx(ctx, rounds);
    fuzz_cifar(ctx, rounds);
    fuzz_cache(ctx, rounds);
    ctr_ctx_destroy(ctx);
    return check_end("fuzz_io");
}
