/* Tests of SAMPLE and DATA: every image is shown as often as promised; what a path leads to is
   found; corrupt, lying and missing files end in one line; batches have the same bytes whatever the
   threads, the prefetch and the cache. */
/* run: float asan */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC /* looks at private parts: this program is its own implementation */
#endif
#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "check.h"

#define DIR_ "place"

static void shell(const char *command)
{
    char line[600];
    snprintf(line, sizeof line, "cd " DIR_ " && { %s; } 2>/dev/null", command);
    CHECK(system(line) == 0);
}

static void fresh(void)
{
    CHECK(system("rm -rf " DIR_ " && mkdir -p " DIR_) == 0);
}

static void put_file(const char *name, const void *bytes, size_t size)
{
    char path[300];
    FILE *f;
    snprintf(path, sizeof path, DIR_ "/%s", name);
    f = fopen(path, "wb");
    if (!CHECK(f != NULL)) return;
    CHECK(fwrite(bytes, 1, size, f) == size);
    fclose(f);
}

/* A PPM of one colour with a mark that tells images apart. */
static void put_ppm(const char *name, int h, int w, int value)
{
    uint8_t file[64 * 64 * 3 + 32];
    int n = snprintf((char *)file, 32, "P6\n%d %d\n255\n", w, h), i;
    for (i = 0; i < h * w * 3; i++) file[n + i] = (uint8_t)(value + 3 * (i % 7));
    put_file(name, file, (size_t)(n + h * w * 3));
}

static ctr_ctx *context(int threads)
{
    ctr_config config = ctr_config_default();
    config.threads = threads;
    return ctr_ctx_create(&config);
}

/* ---- SAMPLE ---------------------------------------------------------------------------------- */

static void test_coverage(ctr_ctx *ctx)
{
    static uint8_t pixels[24 * 12];
    int64_t n, batch, cases = 0;
    int last, shuffle;
    ctr_aug_config aug = ctr_aug_none_default(2);
    for (n = 2; n <= 24; n++)
        for (batch = 2; batch <= n; batch += 1 + (n > 12))
            for (last = 0; last < 3; last++)
                for (shuffle = 0; shuffle < 2; shuffle++) {
                    ctr_dataset *d = ctr_dataset_from_memory(ctx, pixels, n, 2, 2, 3, NULL);
                    ctr_loader_config c = ctr_loader_config_default();
                    int64_t seen[24] = { 0 }, ever[24] = { 0 }, shown = 0, i, batches = 0, epoch;
                    ctr_loader *l;
                    ctr_batch b;
                    c.batch = batch;
                    c.views = 1;
                    c.augs = &aug;
                    c.last = (ctr_last)last;
                    c.shuffle = shuffle;
                    l = ctr_loader_create(ctx, d, &c);
                    if (!CHECK(l != NULL)) return;
                    for (; ctr_loader_next(ctx, l, &b); batches++, shown += b.n)
                        for (i = 0; i < b.n; i++) seen[b.index[i]]++;
                    CHECK(batches == ctr_loader_batches(l));
                    CHECK(batches == ctr_sample_batches(n, batch, c.last));
                    for (i = 0; i < n; i++) {
                        int64_t twice = last == CTR_LAST_WRAP ? 2 : 1;
                        CHECK(seen[i] >= (last != CTR_LAST_DROP) && seen[i] <= twice);
                    }
                    CHECK(shown == (last == CTR_LAST_DROP ? n / batch * batch
                                    : last == CTR_LAST_KEEP ? n : (n + batch - 1) / batch * batch));
                    for (epoch = 0; shuffle && epoch < 60; epoch++)
                        while (ctr_loader_next(ctx, l, &b))
                            for (i = 0; i < b.n; i++) ever[b.index[i]]++;
                    for (i = 0; shuffle && i < n; i++) CHECK(ever[i] > 0);
                    ctr_loader_destroy(ctx, l);
                    ctr_dataset_destroy(ctx, d);
                    cases++;
                }
    printf("coverage: %ld combinations of n, batch, last and shuffle\n", (long)cases);
}

static void test_order(void)
{
    int64_t a[50], b[50], i, moved = 0;
    ctr_sample_order(7, 0, 50, 1, a);
    ctr_sample_order(7, 1, 50, 1, b);
    for (i = 0; i < 50; i++) moved += a[i] != b[i];
    CHECK(moved > 30);
    ctr_sample_order(7, 0, 50, 1, b);
    CHECK(!memcmp(a, b, sizeof a));
    ctr_sample_order(8, 0, 50, 1, b);
    CHECK(memcmp(a, b, sizeof a) != 0);
    ctr_sample_order(8, 3, 50, 0, b);
    for (i = 0; i < 50; i++) CHECK(b[i] == i);
}

/* ---- memory and shapes ----------------------------------------------------------------------- */

static void test_memory_source(ctr_ctx *ctx)
{
    static uint8_t pixels[5 * 4 * 3 * 3];
    static const int32_t labels[5] = { 2, 0, -7, 2, 1 };
    ctr_dataset *d;
    ctr_image image;
    size_t i;
    for (i = 0; i < sizeof pixels; i++) pixels[i] = (uint8_t)i;
    d = ctr_dataset_from_memory(ctx, pixels, 5, 4, 3, 3, labels);
    CHECK(d && ctr_dataset_count(d) == 5 && ctr_dataset_classes(d) == 3 &&
          ctr_dataset_channels(d) == 3);
    CHECK(ctr_dataset_label(d, 0) == 2 && ctr_dataset_label(d, 2) == -1 &&
          ctr_dataset_label(d, 9) == -1);
    CHECK(!strcmp(ctr_dataset_class_name(d, 2), "2") && !strcmp(ctr_dataset_class_name(d, 3), ""));
    CHECK(!strcmp(ctr_dataset_path(d, 0), "") && !strcmp(ctr_dataset_kind(d), "memory"));
    CHECK(ctr_dataset_image(ctx, d, 3, &image) && image.h == 4 && image.w == 3 && image.c == 3);
    CHECK(!memcmp(image.pixels, pixels + 3 * 36, 36) && image.pixels != pixels + 3 * 36);
    ctr_image_free(ctx, &image);
    CHECK(!ctr_dataset_image(ctx, d, 5, &image));
    CHECK_ERROR(ctx, CTR_E_VALUE, "0..4, got 5");
    CHECK(ctr_dataset_verify(ctx, d, NULL, NULL) == 0);
    ctr_dataset_destroy(ctx, d);
    CHECK(!ctr_dataset_from_memory(ctx, pixels, 0, 4, 3, 3, NULL));
    CHECK_ERROR(ctx, CTR_E_SHAPE, "[0, 4, 3, 3]");
    CHECK(!ctr_dataset_from_memory(ctx, pixels, 5, 4, 3, 2, NULL));
    CHECK_ERROR(ctx, CTR_E_SHAPE, "[5, 4, 3, 2]");
    CHECK(!ctr_dataset_from_memory(ctx, pixels, INT64_MAX / 2, 65535, 65535, 3, NULL));
    CHECK_ERROR(ctx, CTR_E_MEMORY, "addressed");
    CHECK(!ctr_dataset_from_memory(ctx, NULL, 5, 4, 3, 3, NULL));
    CHECK_ERROR(ctx, CTR_E_VALUE, "NULL");
}

static void test_shapes(void)
{
    ctr_ctx *one = context(1), *three = context(3);
    ctr_dataset *a = ctr_dataset_shapes(one, 60, 32, 5), *b = ctr_dataset_shapes(three, 60, 32, 5);
    ctr_dataset *c = ctr_dataset_shapes(one, 60, 32, 6);
    const size_t bytes = 60 * 32 * 32 * 3;
    int64_t i, different = 0;
    CHECK(a && b && c && !memcmp(a->block, b->block, bytes));
    for (i = 0; i < (int64_t)bytes; i++) different += a->block[i] != c->block[i];
    CHECK(different > (int64_t)bytes / 2);
    CHECK(ctr_dataset_classes(a) == 6 && !strcmp(ctr_dataset_class_name(a, 4), "ring"));
    for (i = 0; i < 60; i++) CHECK(ctr_dataset_label(a, i) == i % 6);
    CHECK(!ctr_dataset_shapes(one, 0, 32, 1));
    CHECK_ERROR(one, CTR_E_VALUE, "got 0 and 32");
    CHECK(!ctr_dataset_shapes(one, 1, 4, 1));
    CHECK_ERROR(one, CTR_E_VALUE, "8..512");
    ctr_dataset_destroy(one, a);
    ctr_dataset_destroy(three, b);
    ctr_dataset_destroy(one, c);
    ctr_ctx_destroy(one);
    ctr_ctx_destroy(three);
}

/* ---- IDX ------------------------------------------------------------------------------------- */

static size_t make_idx(uint8_t *out, int rank, int a, int b, int c, int first)
{
    int dims[3], i, total = 1;
    dims[0] = a;
    dims[1] = b;
    dims[2] = c;
    memset(out, 0, 16);
    out[2] = 8;
    out[3] = (uint8_t)rank;
    for (i = 0; i < rank; i++) {
        out[6 + 4 * i] = (uint8_t)(dims[i] >> 8);
        out[7 + 4 * i] = (uint8_t)dims[i];
        total *= dims[i];
    }
    for (i = 0; i < total; i++) out[4 + 4 * rank + i] = (uint8_t)(first + i);
    return (size_t)(4 + 4 * rank + total);
}

static void put_idx(const char *name, int rank, int a, int b, int c, int first)
{
    static uint8_t file[70000];
    put_file(name, file, make_idx(file, rank, a, b, c, first));
}

static void test_idx(ctr_ctx *ctx)
{
    ctr_data_options o = ctr_data_options_default();
    ctr_dataset *d;
    ctr_image image;
    int i;
    fresh();
    put_idx("train-images-idx3-ubyte", 3, 6, 4, 5, 1);
    put_idx("train-labels-idx1-ubyte", 1, 6, 0, 0, 3);
    put_idx("t10k-images-idx3-ubyte", 3, 2, 4, 5, 100);
    put_idx("t10k-labels-idx1-ubyte", 1, 2, 0, 0, 0);
    shell("mkdir pictures && echo x > readme");
    for (i = 0; i < 2; i++) { /* the second time packed */
        d = ctr_dataset_open(ctx, DIR_, i ? NULL : "train", NULL);
        if (!CHECK(d != NULL)) break;
        CHECK(ctr_dataset_count(d) == 6 && ctr_dataset_classes(d) == 9 &&
              ctr_dataset_channels(d) == 1);
        CHECK(ctr_dataset_label(d, 5) == 8 && !strcmp(ctr_dataset_kind(d), "IDX"));
        CHECK(ctr_dataset_image(ctx, d, 5, &image) && image.h == 4 && image.w == 5);
        CHECK(image.pixels && image.pixels[0] == 101 && image.pixels[19] == 120);
        ctr_image_free(ctx, &image);
        ctr_dataset_destroy(ctx, d);
        d = ctr_dataset_open(ctx, i ? DIR_ "/t10k-images-idx3-ubyte.gz" : DIR_, "test", NULL);
        CHECK(d && ctr_dataset_count(d) == 2 && ctr_dataset_label(d, 1) == 1);
        ctr_dataset_destroy(ctx, d);
        CHECK(ctr_dataset_has_split(ctx, DIR_, "test") &&
              ctr_dataset_has_split(ctx, DIR_, "train"));
        CHECK(!ctr_dataset_has_split(ctx, i ? DIR_ "/train-images-idx3-ubyte.gz"
                                            : DIR_ "/train-images-idx3-ubyte", "test"));
        if (!ctr_image_has_stb()) break;
        if (i == 0) shell("gzip train* t10k*");
    }
    shell("for f in *.gz; do if [ -f $f ]; then gunzip $f; fi; done");
    o.channels = 3;
    d = ctr_dataset_open(ctx, DIR_ "/train-images-idx3-ubyte", NULL, &o);
    CHECK(d && ctr_dataset_channels(d) == 3 && ctr_dataset_label(d, 0) == 3);
    CHECK(ctr_dataset_image(ctx, d, 1, &image) && image.c == 3 && image.pixels[5] == 22);
    ctr_image_free(ctx, &image);
    ctr_dataset_destroy(ctx, d);
    o.budget = 100;
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, &o));
    CHECK_ERROR(ctx, CTR_E_FILE, "at most 100");
    CHECK(!ctr_dataset_open(ctx, DIR_ "/train-images-idx3-ubyte", "test", NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "no test split");
    shell("rm t10k*");
    CHECK(!ctr_dataset_has_split(ctx, DIR_, "test"));
    CHECK(!ctr_dataset_open(ctx, DIR_, "test", NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "no test split");
    shell("cp train-images-idx3-ubyte other-images-idx3-ubyte");
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "several");
    shell("rm other* train-labels*");
    d = ctr_dataset_open(ctx, DIR_, NULL, NULL);
    CHECK(d && ctr_dataset_classes(d) == 0 && ctr_dataset_label(d, 0) == -1);
    ctr_dataset_destroy(ctx, d);
}

static void test_idx_lies(ctr_ctx *ctx)
{
    static const char *const images = DIR_ "/train-images-idx3-ubyte";
    uint8_t file[200];
    size_t n = make_idx(file, 3, 3, 4, 5, 0), i;
    fresh();
    for (i = 0; i < n; i++) { /* cut off anywhere */
        put_file("train-images-idx3-ubyte", file, i);
        CHECK(!ctr_dataset_open(ctx, images, NULL, NULL) && ctr_error(ctx) == CTR_E_FORMAT);
        ctr_error_clear(ctx);
    }
    for (i = 0; i < 16; i++) { /* a header that says something else */
        file[i] ^= 0x80;
        put_file("train-images-idx3-ubyte", file, n);
        CHECK(!ctr_dataset_open(ctx, images, NULL, NULL) && ctr_error(ctx) == CTR_E_FORMAT);
        ctr_error_clear(ctx);
        file[i] ^= 0x80;
    }
    memset(file + 4, 0xff, 12); /* huge in all directions */
    put_file("train-images-idx3-ubyte", file, n);
    CHECK(!ctr_dataset_open(ctx, images, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "do not fit");
    memset(file + 4, 0, 4); /* none at all */
    put_file("train-images-idx3-ubyte", file, 16);
    CHECK(!ctr_dataset_open(ctx, images, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "images are");
    put_idx("train-images-idx3-ubyte", 1, 60, 0, 0, 0); /* labels in the images' place */
    CHECK(!ctr_dataset_open(ctx, images, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "rank 1");
    put_idx("train-images-idx3-ubyte", 3, 3, 4, 5, 0);
    put_idx("train-labels-idx1-ubyte", 1, 4, 0, 0, 0);
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "must have 3 labels, has 4");
    put_file("train-labels-idx1-ubyte", "hello", 5);
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "no IDX file");
    put_file("text.txt", "hello, world", 12);
    CHECK(!ctr_dataset_open(ctx, DIR_ "/text.txt", NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "no IDX file");
    if (ctr_image_has_stb()) { /* gzip cut off anywhere, and a bomb */
        shell("rm *; head -c 3000000 /dev/zero > z; gzip z; mv z.gz train-images-idx3-ubyte.gz");
        CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
        CHECK_ERROR(ctx, CTR_E_FORMAT, "no IDX file");
        shell("truncate -s 2000 train-images-idx3-ubyte.gz");
        CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL) && ctr_error(ctx) == CTR_E_FORMAT);
        ctr_error_clear(ctx);
    }
    printf("IDX: %d truncations, 16 headers and other lies refused\n", (int)n);
}

/* ---- CIFAR ----------------------------------------------------------------------------------- */

static void put_cifar(const char *name, int head, int n, int first)
{
    static uint8_t file[5 * 3074];
    int i, k;
    for (i = 0; i < n; i++) {
        uint8_t *r = file + i * (head + 3072);
        r[0] = 9;
        r[head - 1] = (uint8_t)(first + i);
        for (k = 0; k < 3072; k++) r[head + k] = (uint8_t)(k / 1024 * 80 + (k + i) % 64);
    }
    put_file(name, file, (size_t)(n * (head + 3072)));
}

static void test_cifar(ctr_ctx *ctx)
{
    ctr_dataset *d;
    ctr_image image;
    int i;
    fresh();
    put_cifar("data_batch_1.bin", 1, 3, 0);
    put_cifar("data_batch_2.bin", 1, 2, 5);
    put_cifar("test_batch.bin", 1, 1, 8);
    put_file("batches.meta.txt", "a\r\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n", 22);
    d = ctr_dataset_open(ctx, DIR_, NULL, NULL);
    if (!CHECK(d != NULL)) return;
    CHECK(ctr_dataset_count(d) == 5 && ctr_dataset_classes(d) == 10 &&
          ctr_dataset_label(d, 4) == 6);
    CHECK(!strcmp(ctr_dataset_class_name(d, 0), "a") && !strcmp(ctr_dataset_class_name(d, 9), "j"));
    CHECK(ctr_dataset_image(ctx, d, 2, &image) && image.h == 32 && image.w == 32 && image.c == 3);
    for (i = 0; image.pixels && i < 3072; i++)
        CHECK(image.pixels[i] == i % 3 * 80 + (i / 3 + 2) % 64);
    ctr_image_free(ctx, &image);
    ctr_dataset_destroy(ctx, d);
    d = ctr_dataset_open(ctx, DIR_, "test", NULL);
    CHECK(d && ctr_dataset_count(d) == 1 && ctr_dataset_label(d, 0) == 8);
    ctr_dataset_destroy(ctx, d);
    CHECK(ctr_dataset_has_split(ctx, DIR_, "test"));
    shell("rm test_batch.bin");
    CHECK(!ctr_dataset_has_split(ctx, DIR_, "test") && ctr_dataset_has_split(ctx, DIR_, "train"));
    CHECK(!ctr_dataset_open(ctx, DIR_, "test", NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "test_batch.bin");
    put_cifar("data_batch_2.bin", 1, 2, 9);
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "label 10 of image 1");
    put_file("data_batch_2.bin", "x", 1);
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "multiple of 3073");
    fresh();
    put_cifar("train.bin", 2, 5, 95);
    put_cifar("test.bin", 2, 2, 0);
    d = ctr_dataset_open(ctx, DIR_, "train", NULL);
    CHECK(d && ctr_dataset_count(d) == 5 && ctr_dataset_classes(d) == 100);
    CHECK(d && ctr_dataset_label(d, 4) == 99 && !strcmp(ctr_dataset_class_name(d, 99), "99"));
    ctr_dataset_destroy(ctx, d);
    put_cifar("train.bin", 2, 5, 96);
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "label 100");
}

/* ---- folders --------------------------------------------------------------------------------- */

static void check_paths(ctr_ctx *ctx, const char *split, const char *const *paths, int64_t classes)
{
    ctr_dataset *d = ctr_dataset_open(ctx, DIR_, split, NULL);
    int64_t i;
    if (!CHECK(d != NULL)) {
        CHECK_ERROR(ctx, CTR_OK, "");
        return;
    }
    for (i = 0; paths[i]; i++) CHECK(!strcmp(ctr_dataset_path(d, i), paths[i]));
    CHECK(ctr_dataset_count(d) == i && ctr_dataset_classes(d) == classes);
    for (i = 0; i < ctr_dataset_count(d); i++) {
        int32_t label = ctr_dataset_label(d, i);
        size_t n = strcspn(ctr_dataset_path(d, i), "/");
        CHECK((label >= 0) == (classes > 0));
        if (label >= 0)
            CHECK(strlen(ctr_dataset_class_name(d, label)) == n &&
                  !strncmp(ctr_dataset_class_name(d, label), ctr_dataset_path(d, i), n));
    }
    ctr_dataset_destroy(ctx, d);
}

static void test_folders(ctr_ctx *ctx)
{
    static const char *const labelled[] = { "Zoo/b.PPM", "a-b/x.ppm", "a-c/y.ppm", "a/1.ppm",
                                            "a/deep/er/2.Ppm",
                                            "a/deep/er/3.ppm", NULL };
    static const char *const flat[] = { "Zoo/b.PPM", "a-b/x.ppm", "a-c/y.ppm", "a/1.ppm",
                                        "a/deep/er/2.Ppm",
                                        "a/deep/er/3.ppm", "top.ppm", NULL };
    static const char *const train[] = { "cat/1.ppm", "dog/1.ppm", NULL };
    static const char *const test[] = { "bird/1.ppm", "dog/1.ppm", NULL };
    ctr_dataset *d;
    fresh();
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "is empty: looked for");
    CHECK(!ctr_dataset_open(ctx, DIR_ "/nowhere", NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "No such file");
    CHECK(!ctr_dataset_open(ctx, "/dev/null", NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "device");
    CHECK(!ctr_dataset_open(ctx, NULL, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_VALUE, "NULL");
    CHECK(!ctr_dataset_open(ctx, DIR_, "valid", NULL));
    CHECK_ERROR(ctx, CTR_E_VALUE, "got 'valid'");
    CHECK(!ctr_dataset_has_split(ctx, DIR_ "/nowhere", NULL) && ctr_error(ctx) == CTR_OK);
    shell("mkdir a && echo x > a/notes.txt");
    CHECK(!ctr_dataset_open(ctx, DIR_, NULL, NULL));
    CHECK_ERROR(ctx, CTR_E_FORMAT, "holds no images: looked for");
    shell("mkdir -p a/deep/er a-b a-c Zoo .hidden empty");
    put_ppm("a/deep/er/3.ppm", 5, 6, 1);
    put_ppm("a/deep/er/2.Ppm", 5, 6, 2);
    put_ppm("a/1.ppm", 5, 6, 3);
    put_ppm("a-b/x.ppm", 5, 6, 4);
    put_ppm("a-c/y.ppm", 5, 6, 4);
    put_ppm("Zoo/b.PPM", 5, 6, 5);
    put_ppm(".hidden/h.ppm", 5, 6, 6);
    put_ppm("a/.h.ppm", 5, 6, 6);
    shell(
        "ln -s ../a a/deep/loop; ln -s loop2 a/loop2; ln -s . Zoo/self; ln -s /nowhere a/gone.ppm");
    check_paths(ctx, NULL, labelled, 4);
    check_paths(ctx, "train", labelled, 4);
    put_ppm("top.ppm", 9, 9, 7);
    check_paths(ctx, NULL, flat, 0);
    CHECK(!ctr_dataset_has_split(ctx, DIR_, "test"));
    fresh();
    shell("mkdir -p train/cat train/dog test/dog test/bird");
    put_ppm("train/cat/1.ppm", 4, 4, 1);
    put_ppm("train/dog/1.ppm", 4, 4, 1);
    put_ppm("test/dog/1.ppm", 4, 4, 1);
    put_ppm("test/bird/1.ppm", 4, 4, 1);
    check_paths(ctx, NULL, train, 3);
    check_paths(ctx, "train", train, 3);
    check_paths(ctx, "test", test, 3);
    d = ctr_dataset_open(ctx, DIR_ "/", "test", NULL);
    CHECK(d && ctr_dataset_label(d, 0) == 0 && ctr_dataset_label(d, 1) == 2);
    ctr_dataset_destroy(ctx, d);
    CHECK(ctr_dataset_has_split(ctx, DIR_, "test"));
    shell("mv test val");
    check_paths(ctx, "test", test, 3);
    shell("rm -r val");
    CHECK(!ctr_dataset_open(ctx, DIR_, "test", NULL));
    CHECK_ERROR(ctx, CTR_E_FILE, "no test split");
    { /* a single sub-folder is no class */
        static const char *const one[] = { "cat/1.ppm", NULL };
        shell("rm -r train/dog");
        check_paths(ctx, "train", one, 0);
    }
    { /* deeper than 16 folders is not looked */
        char line[200] = "mkdir -p x";
        int i;
        fresh();
        for (i = 0; i < 20; i++) strcat(line, "/x");
        shell(line);
        shell("p=x; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do printf 'P5 1 1 255 a' > "
              "$p/i.pgm; p=$p/x; done");
        d = ctr_dataset_open(ctx, DIR_, NULL, NULL);
        CHECK(d && ctr_dataset_count(d) == 16);
        ctr_dataset_destroy(ctx, d);
    }
}

/* ---- corrupt files and caches ---------------------------------------------------------------- */

static int logged_build, logged_corrupt;
static void count_logs(void *user, ctr_log_level level, const char *text)
{
    (void)user;
    (void)level;
    logged_build += strstr(text, "decoding") != NULL;
    logged_corrupt += strstr(text, "corrupt") != NULL;
}

static ctr_ctx *logging_context(int threads)
{
    ctr_config config = ctr_config_default();
    config.threads = threads;
    config.log_fn = count_logs;
    return ctr_ctx_create(&config);
}

/* 12 images of several sizes in 3 classes; numbers 2, 3, 7 and 11 are corrupt if asked for. */
static void make_folder(int corrupt)
{
    char name[40];
    int i;
    fresh();
    shell("mkdir -p img/a img/b img/c");
    for (i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "img/%c/%02d.ppm", "abc"[i / 4], i);
        put_ppm(name, 16 + i, 20 + i * 3 % 11, i * 13);
    }
    if (!corrupt) return;
    put_file("img/a/02.ppm", "P6\n20 20\n255\nshort", 18);
    put_file("img/a/03.ppm", "", 0);
    put_file("img/b/07.ppm", "P6\n99999 99999\n255\n", 19);
    put_file("img/c/11.ppm", "GIF89a", 6);
}

static void note_bad(void *user, int64_t index, const char *text)
{
    int64_t *sum = (int64_t *)user;
    CHECK(strstr(text, ".ppm") != NULL);
    *sum = *sum * 100 + index;
}

static void test_corrupt(void)
{
    static const int good[8] = { 0, 1, 4, 5, 6, 8, 9, 10 };
    static const int stand_in[12] = { 0, 1, 4, 4, 4, 5, 6, 8, 8, 9, 10, 0 };
    ctr_ctx *ctx = logging_context(2);
    ctr_data_options o = ctr_data_options_default();
    char name[40];
    int cache, i, round;
    make_folder(1);
    o.cache_path = DIR_ "/cache";
    for (round = 0; round < 2; round++) /* in the second the mapped cache is there already */
        for (cache = 0; cache < 3; cache++) {
            ctr_dataset *d;
            ctr_image image;
            int64_t sum = 0;
            o.cache = (ctr_cache)cache;
            o.corrupt = CTR_CORRUPT_SKIP;
            logged_corrupt = 0;
            d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
            if (!CHECK(d != NULL)) return;
            CHECK(ctr_dataset_count(d) == 8 && ctr_dataset_skipped(d) == 4 && logged_corrupt == 1);
            CHECK(ctr_dataset_cached(d) == (cache == CTR_CACHE_NONE ? 0 : 8));
            for (i = 0; i < 8; i++) {
                snprintf(name, sizeof name, "%c/%02d.ppm", "abc"[good[i] / 4], good[i]);
                CHECK(!strcmp(ctr_dataset_path(d, i), name) &&
                      ctr_dataset_label(d, i) == good[i] / 4);
                CHECK(ctr_dataset_image(ctx, d, i, &image) && image.h == 16 + good[i] &&
                      image.pixels[0] == good[i] * 13);
                ctr_image_free(ctx, &image);
            }
            ctr_dataset_destroy(ctx, d);
            o.corrupt = CTR_CORRUPT_REPLACE;
            d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
            CHECK(d && ctr_dataset_count(d) == 12 && ctr_dataset_skipped(d) == 4);
            CHECK(d && ctr_dataset_cached(d) == (cache == CTR_CACHE_NONE ? 0 : 12));
            for (i = 0; d && i < 12; i++) {
                CHECK(ctr_dataset_label(d, i) == stand_in[i] / 4);
                CHECK(ctr_dataset_image(ctx, d, i, &image) && image.h == 16 + stand_in[i]);
                CHECK(image.pixels[0] == (image.h - 16) * 13);
                ctr_image_free(ctx, &image);
            }
            ctr_dataset_destroy(ctx, d);
            o.corrupt = CTR_CORRUPT_FAIL;
            d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
            if (cache == CTR_CACHE_NONE) {
                CHECK(d && ctr_dataset_verify(ctx, d, note_bad, &sum) == 4 && sum == 2030711);
                CHECK(!ctr_dataset_image(ctx, d, 2, &image));
                ctr_dataset_destroy(ctx, d);
            } else {
                CHECK(d == NULL);
            }
            CHECK_ERROR(ctx, CTR_E_FORMAT, "a/02.ppm");
        }
    shell("rm img/a/00.ppm img/a/01.ppm img/b/04.ppm img/b/05.ppm img/b/06.ppm img/c/08.ppm "
          "img/c/09.ppm img/c/10.ppm");
    for (cache = 0; cache < 3; cache++)
        for (i = 1; i < 3; i++) {
            o.cache = (ctr_cache)cache;
            o.corrupt = (ctr_corrupt)i;
            CHECK(!ctr_dataset_open(ctx, DIR_ "/img", NULL, &o));
            CHECK_ERROR(ctx, CTR_E_FORMAT, "none of 4 files");
        }
    ctr_ctx_destroy(ctx);
    printf("corrupt files: fail, skip, replace x memory, mapped, none\n");
}

/* Two pictures of 9 x 8: red (200 + x, 100, 20 + y) as PNG and a gray one as JPEG. */
static const uint8_t png_[83] = {
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x09, 0x00, 0x00, 0x00, 0x08, 0x08, 0x02, 0x00, 0x00, 0x00, 0xa4, 0xaf, 0x42,
    0xe2, 0x00, 0x00, 0x00, 0x1a, 0x49, 0x44, 0x41, 0x54, 0x78, 0xda, 0x63, 0x3c, 0x91, 0x22, 0xc2,
    0xc8, 0xc0, 0x80, 0x15, 0xb1, 0x30, 0x30, 0x30, 0x32, 0xe0, 0x00, 0x43, 0x45, 0x0e, 0x00, 0x2d,
    0xca, 0x01, 0x6d, 0x58, 0x80, 0xf2, 0x54, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae,
    0x42, 0x60, 0x82,
};
static const uint8_t jpeg_[162] = {
    0xff, 0xd8, 0xff, 0xe0, 0x00, 0x10, 0x4a, 0x46, 0x49, 0x46, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01,
    0x00, 0x01, 0x00, 0x00, 0xff, 0xdb, 0x00, 0x43, 0x00, 0x0d, 0x09, 0x0a, 0x0b, 0x0a, 0x08, 0x0d,
    0x0b, 0x0a, 0x0b, 0x0e, 0x0e, 0x0d, 0x0f, 0x13, 0x20, 0x15, 0x13, 0x12, 0x12, 0x13, 0x27, 0x1c,
    0x1e, 0x17, 0x20, 0x2e, 0x29, 0x31, 0x30, 0x2e, 0x29, 0x2d, 0x2c, 0x33, 0x3a, 0x4a, 0x3e, 0x33,
    0x36, 0x46, 0x37, 0x2c, 0x2d, 0x40, 0x57, 0x41, 0x46, 0x4c, 0x4e, 0x52, 0x53, 0x52, 0x32, 0x3e,
    0x5a, 0x61, 0x5a, 0x50, 0x60, 0x4a, 0x51, 0x52, 0x4f, 0xff, 0xc0, 0x00, 0x0b, 0x08, 0x00, 0x08,
    0x00, 0x09, 0x01, 0x01, 0x11, 0x00, 0xff, 0xc4, 0x00, 0x15, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x03, 0xff, 0xc4, 0x00,
    0x15, 0x10, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x01, 0xff, 0xda, 0x00, 0x08, 0x01, 0x01, 0x00, 0x00, 0x3f, 0x00, 0x9c, 0x2f,
    0xff, 0xd9,
};

/* Damaged PNG and JPEG files under each policy. */
static void test_pictures(ctr_ctx *ctx)
{
    static const char *const list[5] = { "1.png", "2.JPG", "3.png", "4.jpeg", "5.png" };
    ctr_data_options o = ctr_data_options_default();
    uint8_t bad[sizeof png_];
    ctr_dataset *d;
    ctr_image image;
    int cache, i;
    if (!ctr_image_has_stb()) {
        fresh();
        put_file("1.png", png_, sizeof png_);
        o.corrupt = CTR_CORRUPT_SKIP; /* no decoder is not the file's fault */
        CHECK(!ctr_dataset_open(ctx, DIR_, NULL, &o));
        CHECK_ERROR(ctx, CTR_E_UNSUPPORTED, "1.png");
        printf("pictures: skipped, this build has no stb_image\n");
        return;
    }
    fresh();
    put_file("1.png", png_, sizeof png_);
    put_file("2.JPG", jpeg_, sizeof jpeg_);
    put_file("3.png", png_, sizeof png_ - 20);
    put_file("4.jpeg", jpeg_, sizeof jpeg_ / 2);
    memcpy(bad, png_, sizeof bad);
    bad[sizeof bad / 2] ^= 4;
    put_file("5.png", bad, sizeof bad);
    for (cache = 0; cache < 3; cache++) {
        o.cache = (ctr_cache)cache;
        o.cache_path = "cache";
        o.corrupt = CTR_CORRUPT_SKIP;
        d = ctr_dataset_open(ctx, DIR_, NULL, &o);
        CHECK(d && ctr_dataset_count(d) == 2 && ctr_dataset_skipped(d) == 3);
        CHECK(ctr_dataset_image(ctx, d, 0, &image) && image.h == 8 && image.w == 9 && image.c == 3);
        for (i = 0; image.pixels && i < 72; i++)
            CHECK(image.pixels[3 * i] == 200 + i % 9 && image.pixels[3 * i + 1] == 100 &&
                  image.pixels[3 * i + 2] == 20 + i / 9);
        ctr_image_free(ctx, &image);
        ctr_dataset_destroy(ctx, d);
        o.corrupt = CTR_CORRUPT_REPLACE;
        d = ctr_dataset_open(ctx, DIR_, NULL, &o);
        CHECK(d && ctr_dataset_count(d) == 5 && ctr_dataset_skipped(d) == 3);
        for (i = 0; d && i < 5; i++)
            CHECK(!strcmp(ctr_dataset_path(d, i), list[i == 1]));
        ctr_dataset_destroy(ctx, d);
        o.corrupt = CTR_CORRUPT_FAIL;
        d = ctr_dataset_open(ctx, DIR_, NULL, &o);
        CHECK((d != NULL) == (cache == CTR_CACHE_NONE));
        if (d) CHECK(!ctr_dataset_image(ctx, d, 2, &image));
        CHECK_ERROR(ctx, CTR_E_FORMAT, "3.png");
        ctr_dataset_destroy(ctx, d);
    }
    printf("pictures: cut and flipped PNG and JPEG under three policies and three caches\n");
}

/* Hash of every byte that a loader hands out in two epochs and a half. */
static uint64_t loader_hash(ctr_ctx *ctx, const ctr_dataset *d, int prefetch, int seek)
{
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[3];
    ctr_file_hash_ h;
    ctr_loader *l;
    ctr_batch b;
    int64_t epoch, batch;
    int step;
    augs[0] = ctr_aug_simclr_default(12);
    augs[1] = ctr_aug_simclr_default(12);
    augs[1].solarize_p = 0.5;
    augs[2] = ctr_aug_simclr_default(6); /* a group of its own */
    augs[2].width = 9;
    c.batch = 5;
    c.views = 3;
    c.augs = augs;
    c.prefetch = prefetch;
    c.last = CTR_LAST_WRAP;
    c.seed = 77;
    l = ctr_loader_create(ctx, d, &c);
    ctr_file_hash_init_(&h);
    for (step = 0; l && step < 10; step++) {
        if (seek) { /* a new loader each time, as after a crash */
            ctr_loader_tell(l, &epoch, &batch);
            ctr_loader_destroy(ctx, l);
            l = ctr_loader_create(ctx, d, &c);
            if (seek == 2) ctr_loader_next(ctx, l, &b);
            CHECK(ctr_loader_seek(ctx, l, epoch, batch));
        }
        if (!ctr_loader_next(ctx, l, &b)) {
            if (!CHECK(ctr_error(ctx) == CTR_OK)) printf("%s\n", ctr_error_text(ctx));
            continue;
        }
        CHECK(b.n == 5 && b.views == 2 && b.h == 12 && b.w == 12 && b.c == 3 && b.groups == 2);
        ctr_file_hash_put_(&h, b.index, (size_t)b.n * sizeof *b.index);
        ctr_file_hash_put_(&h, b.labels, (size_t)b.n * sizeof *b.labels);
        ctr_file_hash_put_(&h, b.pixels, (size_t)(2 * b.n * 12 * 12 * 3) * sizeof *b.pixels);
        ctr_file_hash_put_(&h, b.group[1].pixels,
                           (size_t)(b.n * 6 * 9 * 3) * sizeof *b.pixels);
    }
    ctr_loader_destroy(ctx, l);
    return ctr_file_hash_end_(&h);
}

static void test_same_bytes(void)
{
    ctr_data_options o = ctr_data_options_default();
    uint64_t first = 0, small = 0;
    int threads, cache, prefetch, seek, shrink, cases = 0;
    make_folder(0);
    o.cache_path = DIR_ "/cache";
    for (shrink = 0; shrink < 2; shrink++)
        for (threads = 1; threads <= 3; threads++)
            for (cache = 0; cache < 4; cache++) {
                ctr_ctx *ctx = context(threads);
                ctr_dataset *d;
                o.cache = cache == 3 ? CTR_CACHE_MEMORY : (ctr_cache)cache;
                o.budget = cache == 3 ? 5000 : (uint64_t)1 << 30; /* 3: the budget takes a few */
                o.short_side = shrink ? 14 : 0;
                d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
                if (!CHECK(d != NULL)) return;
                if (cache == 3)
                    CHECK(ctr_dataset_cached(d) > 1 && ctr_dataset_cached(d) < 12);
                for (prefetch = 0; prefetch < 2; prefetch++)
                    for (seek = 0; seek < 3; seek++) {
                        uint64_t h = loader_hash(ctx, d, prefetch, seek);
                        if (!first) first = h;
                        if (shrink && !small) small = h;
                        CHECK(h == (shrink ? small : first));
                        cases++;
                    }
                ctr_dataset_destroy(ctx, d);
                CHECK(ctr_memory_stats(ctx).held < 100000);
                ctr_ctx_destroy(ctx);
            }
    CHECK(first != small);
    printf("same bytes: %d runs over threads, caches, prefetch, seeking\n", cases);
}

static void test_mapped(void)
{
    ctr_ctx *ctx = logging_context(2);
    ctr_data_options o = ctr_data_options_default();
    ctr_dataset *d;
    static uint8_t file[60000], bad[60000];
    size_t n, i;
    uint64_t want, built;
    FILE *f;
    make_folder(0);
    o.cache = CTR_CACHE_MAPPED;
    CHECK(!ctr_dataset_open(ctx, DIR_ "/img", NULL, &o));
    CHECK_ERROR(ctx, CTR_E_VALUE, "cache_path");
    o.cache_path = DIR_ "/nowhere/cache";
    CHECK(!ctr_dataset_open(ctx, DIR_ "/img", NULL, &o));
    CHECK_ERROR(ctx, CTR_E_FILE, "nowhere");
    o.cache_path = DIR_ "/cache";
    logged_build = 0;
    d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
    if (!CHECK(d != NULL)) return;
    want = loader_hash(ctx, d, 1, 0);
    ctr_dataset_destroy(ctx, d);
    CHECK(logged_build == 1);
    f = fopen(DIR_ "/cache", "rb");
    n = f ? fread(file, 1, sizeof file, f) : 0;
    if (f) fclose(f);
    CHECK(n > 5000 && n < sizeof file);
    for (i = 0; i < 12 * 16 + 64 + 4; i++) { /* damage anywhere behind the pixels: built anew */
        int cut = i % 3 == 2;
        memcpy(bad, file, n);
        bad[n - 1 - i] ^= 0x41;
        put_file("cache", bad, cut ? n - 1 - i : n);
        logged_build = 0;
        d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
        built = (uint64_t)logged_build;
        CHECK(d != NULL && built == (cut || i < 12 * 16 + 64));
        if (i % 40 == 0 && built) CHECK(d && loader_hash(ctx, d, 1, 0) == want);
        ctr_dataset_destroy(ctx, d);
    }
    put_file("cache", file, n);
    logged_build = 0;
    d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
    CHECK(d && logged_build == 0 && loader_hash(ctx, d, 1, 0) == want);
    ctr_dataset_destroy(ctx, d);
    put_ppm("img/b/05.ppm", 21, 21, 5); /* another size: stale */
    d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
    CHECK(d && logged_build == 1);
    ctr_dataset_destroy(ctx, d);
    shell("mv img/b/05.ppm img/b/055.ppm"); /* another name */
    d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
    CHECK(d && logged_build == 2);
    ctr_dataset_destroy(ctx, d);
    o.channels = 1; /* another option */
    d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
    CHECK(d && logged_build == 3 && ctr_dataset_channels(d) == 1);
    ctr_dataset_destroy(ctx, d);
    ctr_ctx_destroy(ctx);
    printf("mapped cache: %d kinds of damage and 3 changes made it new\n", (int)i);
}

/* ---- the loader ------------------------------------------------------------------------------ */

static void test_loader_values(ctr_ctx *ctx)
{
    ctr_dataset *d = ctr_dataset_shapes(ctx, 23, 16, 3);
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[3];
    ctr_loader *l;
    ctr_batch b;
    ctr_real *want = (ctr_real *)malloc(12 * 12 * 3 * sizeof *want);
    void *scratch;
    int64_t order[23], i;
    int v;
    for (v = 0; v < 3; v++) augs[v] = ctr_aug_simclr_default(12);
    augs[2].crop_max = 0.3;
    scratch = malloc(ctr_aug_scratch_size(&augs[0], 16, 16, 3));
    c.batch = 6;
    c.views = 3;
    c.augs = augs;
    c.seed = 9;
    c.last = CTR_LAST_KEEP;
    l = ctr_loader_create(ctx, d, &c);
    if (!CHECK(l && ctr_loader_seek(ctx, l, 4, 2))) return;
    for (v = 0; v < 3; v++) augs[v].flip_p = 7; /* the loader has its own copy */
    ctr_sample_order(9, 4, 23, 1, order);
    while (ctr_loader_next(ctx, l, &b)) {
        CHECK(b.epoch == 4 && b.views == 3 && b.n == (b.batch == 3 ? 5 : 6));
        for (i = 0; i < b.n; i++) {
            CHECK(b.index[i] == order[b.batch * 6 + i]);
            CHECK(b.labels[i] == (int32_t)(b.index[i] % 6));
            for (v = 0; v < 3; v++) {
                ctr_aug_params p;
                ctr_rng rng;
                ctr_rng_init(&rng, 9, CTR_STREAM_VIEW, 4, b.batch * 6 + i, v);
                ctr_aug_sample(&l->augs[v], &rng, 16, 16, &p);
                ctr_aug_apply(&l->augs[v], &p, d->block + b.index[i] * 16 * 16 * 3, 16, 16, 3, want,
                              scratch);
                CHECK(!memcmp(want, b.pixels + (v * b.n + i) * 12 * 12 * 3,
                              12 * 12 * 3 * sizeof *want));
            }
        }
    }
    CHECK(ctr_loader_next(ctx, l, &b) && b.epoch == 5 && b.batch == 0);
    CHECK(!ctr_loader_seek(ctx, l, 0, 5));
    CHECK_ERROR(ctx, CTR_E_VALUE, "0..4, got 0 and 5");
    CHECK(!ctr_loader_seek(ctx, l, -1, 0));
    CHECK_ERROR(ctx, CTR_E_VALUE, "got -1");
    CHECK(ctr_loader_seek(ctx, l, 1, 4) && !ctr_loader_next(ctx, l, &b)); /* an epoch's end */
    CHECK(ctr_loader_next(ctx, l, &b) && b.epoch == 2 && b.batch == 0);
    CHECK(ctr_loader_seconds(l) >= 0);
    ctr_loader_destroy(ctx, l);
    ctr_dataset_destroy(ctx, d);
    free(want);
    free(scratch);
}

/* Views of six sizes in four groups: neighbours of one size are together, each view is what its own
   augmentation and its own random numbers make, in whole and in smaller batches. */
static void test_loader_groups(ctr_ctx *ctx)
{
    static const int64_t side[6][2] = { { 12, 12 }, { 12, 12 }, { 5, 7 }, { 7, 5 }, { 7, 5 },
                                        { 12, 12 } };
    static const int first[4] = { 0, 2, 3, 5 }, views[4] = { 2, 1, 2, 1 };
    ctr_dataset *d = ctr_dataset_shapes(ctx, 11, 16, 3);
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[6];
    ctr_loader *l;
    ctr_batch b;
    ctr_real *want = (ctr_real *)malloc(12 * 12 * 3 * sizeof *want);
    void *scratch;
    int64_t i, size, compared = 0;
    int v, g;
    for (v = 0; v < 6; v++) {
        augs[v] = ctr_aug_simclr_default(12);
        augs[v].height = side[v][0];
        augs[v].width = side[v][1];
    }
    scratch = malloc(ctr_aug_scratch_size(&augs[0], 16, 16, 3));
    c.batch = 4;
    c.views = 6;
    c.augs = augs;
    c.seed = 9;
    c.last = CTR_LAST_KEEP;
    l = ctr_loader_create(ctx, d, &c);
    if (!CHECK(l != NULL)) return;
    while (ctr_loader_next(ctx, l, &b)) {
        CHECK(b.groups == 4 && b.n == (b.batch == 2 ? 3 : 4));
        CHECK(b.views == 2 && b.h == 12 && b.w == 12 && b.pixels == b.group[0].pixels);
        for (g = 0; g < 4; g++) {
            CHECK(b.group[g].views == views[g] && b.group[g].h == side[first[g]][0] &&
                  b.group[g].w == side[first[g]][1]);
            CHECK(((size_t)b.group[g].pixels & 63) == 0);
            size = b.group[g].h * b.group[g].w * 3;
            for (v = 0; v < views[g]; v++)
                for (i = 0; i < b.n; i++, compared++) {
                    const ctr_aug_config *aug = &augs[first[g] + v];
                    ctr_aug_params p;
                    ctr_rng rng;
                    ctr_rng_init(&rng, 9, CTR_STREAM_VIEW, 0, b.batch * 4 + i, first[g] + v);
                    ctr_aug_sample(aug, &rng, 16, 16, &p);
                    ctr_aug_apply(aug, &p, d->block + b.index[i] * 16 * 16 * 3, 16, 16, 3, want,
                                  scratch);
                    CHECK(!memcmp(want, b.group[g].pixels + (v * b.n + i) * size,
                                  (size_t)size * sizeof *want));
                }
        }
    }
    CHECK(compared == 66);
    ctr_loader_destroy(ctx, l);
    ctr_dataset_destroy(ctx, d);
    free(want);
    free(scratch);
}

static void test_loader_arguments(ctr_ctx *ctx)
{
    ctr_dataset *d = ctr_dataset_shapes(ctx, 4, 16, 3), *one;
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[2];
    augs[0] = ctr_aug_simclr_default(12);
    augs[1] = ctr_aug_simclr_default(12);
    c.augs = augs;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "2..4 (the images there are), got 128");
    c.batch = 1;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "got 1");
    one = ctr_dataset_shapes(ctx, 1, 16, 3);
    CHECK(!ctr_loader_create(ctx, one, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "2 views needs at least 2 images, the data set has 1");
    ctr_dataset_destroy(ctx, one);
    c.batch = 4;
    c.augs = NULL;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "augs");
    c.augs = augs;
    c.views = 0;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "views");
    c.views = 2;
    c.views = CTR_MAX_VIEWS + 1;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "1..64");
    c.views = 2;
    augs[1].hue = 3;
    CHECK(!ctr_loader_create(ctx, d, &c));
    CHECK_ERROR(ctx, CTR_E_VALUE, "hue");
    ctr_dataset_destroy(ctx, d);
}

/* The error of an image comes with its batch, not with the one before, and the first one wins. */
static void test_loader_errors(void)
{
    int threads, prefetch;
    for (threads = 1; threads <= 3; threads++)
        for (prefetch = 0; prefetch < 2; prefetch++) {
            ctr_ctx *ctx = context(threads);
            ctr_data_options o = ctr_data_options_default();
            ctr_loader_config c = ctr_loader_config_default();
            ctr_aug_config aug = ctr_aug_none_default(8);
            ctr_dataset *d;
            ctr_loader *l;
            ctr_batch b;
            make_folder(1);
            o.cache = CTR_CACHE_NONE;
            d = ctr_dataset_open(ctx, DIR_ "/img", NULL, &o);
            c.batch = 2;
            c.views = 1;
            c.augs = &aug;
            c.shuffle = 0;
            c.prefetch = prefetch;
            l = ctr_loader_create(ctx, d, &c);
            if (!CHECK(l != NULL)) return;
            CHECK(ctr_loader_next(ctx, l, &b) && b.batch == 0);
            CHECK(!ctr_loader_next(ctx, l, &b) && !ctr_loader_next(ctx, l, &b));
            CHECK_ERROR(ctx, CTR_E_FORMAT, "a/02.ppm");
            CHECK(!ctr_loader_next(ctx, l, &b)); /* again the same */
            CHECK_ERROR(ctx, CTR_E_FORMAT, "a/02.ppm");
            put_ppm("img/a/02.ppm", 9, 9, 1);
            CHECK(!ctr_loader_next(ctx, l, &b));
            CHECK_ERROR(ctx, CTR_E_FORMAT, "a/03.ppm");
            put_ppm("img/a/03.ppm", 9, 9, 1);
            CHECK(ctr_loader_next(ctx, l, &b) && b.batch == 1 && b.index[0] == 2);
            CHECK(ctr_loader_next(ctx, l, &b) && b.batch == 2);
            CHECK(!ctr_loader_next(ctx, l, &b));
            CHECK_ERROR(ctx, CTR_E_FORMAT, "b/07.ppm");
            ctr_loader_destroy(ctx, l);
            ctr_dataset_destroy(ctx, d);
            ctr_ctx_destroy(ctx);
        }
    printf("errors: come with their batch, in order, for 1 to 3 threads\n");
}

/* Two loaders on one context: only one can be ahead, both are right. Nothing is allocated. */
static void test_loader_steady(void)
{
    ctr_ctx *ctx = context(3);
    ctr_dataset *d = ctr_dataset_shapes(ctx, 64, 20, 3);
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[2];
    ctr_loader *a, *b;
    ctr_batch x, y;
    uint64_t before;
    int step, same = 0, steps = 0;
    augs[0] = ctr_aug_simclr_default(40);
    augs[1] = ctr_aug_simclr_default(40);
    c.batch = 10;
    c.augs = augs;
    a = ctr_loader_create(ctx, d, &c);
    b = ctr_loader_create(ctx, d, &c);
    before = ctr_memory_stats(ctx).allocations;
    for (step = 0; step < 30; step++) {
        int p = ctr_loader_next(ctx, a, &x), q = ctr_loader_next(ctx, b, &y);
        if (!CHECK(p == q) || !p) continue;
        same += !memcmp(x.pixels, y.pixels, (size_t)(20 * 40 * 40 * 3) * sizeof *x.pixels);
        steps++;
        if (step % 7 == 0) CHECK(ctr_loader_seek(ctx, b, x.epoch, x.batch + 1));
    }
    CHECK(same == steps && steps > 20);
    CHECK(ctr_memory_stats(ctx).allocations == before);
    ctr_loader_destroy(ctx, a); /* one job may still run */
    ctr_loader_destroy(ctx, b);
    ctr_dataset_destroy(ctx, d);
    ctr_ctx_destroy(ctx);
    printf("steady: %d batches from two loaders without an allocation\n", 2 * steps);
}

/* ---- everything fails once ------------------------------------------------------------------- */

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

/* Opens, makes a loader, takes an epoch; 1 if nothing failed. */
static int whole_run(ctr_ctx *ctx, const char *path, const ctr_data_options *o)
{
    ctr_dataset *d = ctr_dataset_open(ctx, path, NULL, o);
    ctr_loader_config c = ctr_loader_config_default();
    ctr_aug_config augs[2];
    ctr_loader *l;
    ctr_batch b;
    int batches = 0;
    if (!d) return 0;
    augs[0] = ctr_aug_simclr_default(10);
    augs[1] = ctr_aug_simclr_default(10);
    c.batch = 4;
    c.augs = augs;
    l = ctr_loader_create(ctx, d, &c);
    while (l && ctr_loader_next(ctx, l, &b)) batches++;
    ctr_loader_destroy(ctx, l);
    ctr_dataset_destroy(ctx, d);
    return batches == 3;
}

typedef struct fault { int n, seen; } fault;
static int fail_nth(void *user, const char *operation, const char *path)
{
    fault *f = (fault *)user;
    (void)path;
    (void)operation;
    return f->seen++ == f->n ? EIO : 0;
}

static void test_failures(void)
{
    ctr_data_options o = ctr_data_options_default();
    ctr_config config = ctr_config_default();
    ctr_file_hook_ hook;
    ctr_ctx *ctx;
    fault f;
    int cache, ok, n, idx, count = 0, operations = 0;
    make_folder(0);
    put_idx("train-images-idx3-ubyte", 3, 12, 4, 5, 1);
    put_idx("train-labels-idx1-ubyte", 1, 12, 0, 0, 3);
    o.cache_path = DIR_ "/cache";
    config.allocator.alloc_fn = count_alloc;
    config.allocator.free_fn = count_free;
    config.threads = 1;
    for (idx = 0; idx < 2; idx++)
        for (cache = 0; cache < 3; cache++) {
            const char *path = idx ? DIR_ : DIR_ "/img";
            o.cache = (ctr_cache)cache;
            for (ok = n = 0; n < 2000 && !ok; n++) {
                remove(o.cache_path);
                fail_at_ = -1;
                ctx = ctr_ctx_create(&config);
                allocations_ = 0;
                fail_at_ = n;
                ok = whole_run(ctx, path, &o);
                if (!ok && !CHECK(ctr_error(ctx) == CTR_E_MEMORY))
                    printf("%d %s\n", n, ctr_error_text(ctx));
                CHECK(ctr_memory_stats(ctx).held < 70000);
                ctr_ctx_destroy(ctx);
                count++;
            }
            CHECK(ok);
            fail_at_ = -1;
            hook.user = &f;
            hook.fn = fail_nth;
            ctx = ctr_ctx_create(&config);
            for (ok = n = 0; n < 2000; n++) {
                remove(o.cache_path);
                f.n = n;
                f.seen = 0;
                ctx->file_hook = &hook;
                ok = whole_run(ctx, path, &o);
                ctx->file_hook = NULL;
                if (f.seen <= n) break;
                if (!ok) CHECK(ctr_error(ctx) == CTR_E_FILE || ctr_error(ctx) == CTR_E_FORMAT ||
                               ctr_error(ctx) == CTR_E_VALUE);
                if (ctr_error(ctx) == CTR_E_VALUE)
                    CHECK(strstr(ctr_error_text(ctx), "batch") != NULL);
                ctr_error_clear(ctx);
                operations++;
            }
            CHECK(ok && ctr_error(ctx) == CTR_OK && system("ls " DIR_ "/*.tmp >/dev/null 2>&1"));
            ctr_ctx_destroy(ctx);
        }
    printf("failures: %d runs without an allocation, %d without a file operation\n", count,
           operations);
}

int main(void)
{
    ctr_ctx *ctx = context(2);
    check_enter();
    test_order();
    test_coverage(ctx);
    test_memory_source(ctx);
    test_shapes();
    test_idx(ctx);
    test_idx_lies(ctx);
    test_cifar(ctx);
    test_folders(ctx);
    test_corrupt();
    test_pictures(ctx);
    test_same_bytes();
    test_mapped();
    test_loader_values(ctx);
    test_loader_groups(ctx);
    test_loader_arguments(ctx);
    test_loader_errors();
    test_loader_steady();
    test_failures();
    CHECK(ctr_memory_stats(ctx).held < 100000);
    ctr_ctx_destroy(ctx);
    return check_end("test_data");
}
