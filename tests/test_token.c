/* test_token.c - texts as numbers, pictures with captions.
 * run: float double asan valgrind
 *
 * 1. The ids of golden_token.txt: our own merges, bytes alone, and, where the file lies in
 *    tests/golden, CLIP's vocabulary. Decoding gives the words back.
 * 2. Padding, truncation, the longest text.
 * 3. Merges that are wrong, cut off or damaged: one line that tells which, or a tokeniser that
 *    works; the n-th allocation fails.
 * 4. Pairs of path and caption: labels, names, pictures, the loader's tokens; wrong files.
 */
#include "model.h"

/* A file of tests/golden, 0 behind its end; NULL: it is not there. The caller frees it. */
static char *golden_text(const char *name, size_t *size)
{
    char path[512];
    unsigned char *raw;
    char *text;
    snprintf(path, sizeof path, "%s/%s", test_.golden, name);
    raw = model_file(path, size);
    if (!raw) return NULL;
    text = (char *)test_alloc(*size + 1);
    memcpy(text, raw, *size);
    text[*size] = 0;
    free(raw);
    return text;
}

/* ---------------------------------------------------------------------------------- golden ids */

static void golden_line(golden_file *g, ctr_ctx *ctx, ctr_tokenizer *t, const char *set, int line,
                        const char *text)
{
    int32_t ids[256];
    const double *want;
    char key[64], back[512];
    size_t count;
    int64_t n, i, wrong = 0;
    snprintf(key, sizeof key, "%s:%d", set, line);
    want = golden_get(g, key, &count);
    n = ctr_tokenizer_encode(ctx, t, text, 256, 0, ids);
    for (i = 0; want && i < (int64_t)count; i++) wrong += i >= n || ids[i] != (int32_t)want[i];
    if (!want || wrong || (size_t)n != count)
        printf("     %s: '%s' has %ld ids, expected %lu, %ld differ\n", key, text, (long)n,
               (unsigned long)count, (long)wrong);
    test_true(key, want && !wrong && (size_t)n == count);
    for (wrong = 0, i = n; i < 256; i++) wrong += ids[i] != 0;
    test_equal("padding that is not 0", (double)wrong, 0);
    /* decoded and encoded again it is the same, unless the text names the end itself */
    ctr_tokenizer_decode(t, n, ids, back, sizeof back);
    if (!strstr(text, "<|")) {
        int32_t again[256];
        ctr_tokenizer_encode(ctx, t, back, 256, 0, again);
        test_bytes(key, ids, again, sizeof ids);
    }
}

static void golden_set(golden_file *g, const char *set, const char *merges, const char *texts,
                       int64_t size)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t bytes = 0;
    char *file = merges ? golden_text(merges, &bytes) : NULL, line[1024];
    ctr_tokenizer *t;
    int number = 0;
    if (merges && !file) {
        test_skip(set, "the file is not there");
        ctr_ctx_destroy(ctx);
        return;
    }
    t = ctr_tokenizer_create(ctx, file, bytes, 0);
    test_fine(ctx, set);
    test_equal("ids", (double)ctr_tokenizer_size(t), (double)size);
    for (; *texts; texts += strcspn(texts, "\n"), texts += *texts == '\n') {
        size_t n = strcspn(texts, "\n");
        memcpy(line, texts, n);
        line[n] = 0;
        golden_line(g, ctx, t, set, number++, line);
    }
    test_true("lines", number >= 30);
    test_fine(ctx, set);
    ctr_tokenizer_destroy(ctx, t);
    ctr_ctx_destroy(ctx);
    free(file);
}

static void golden_all(void)
{
    golden_file g;
    size_t size;
    char *texts = golden_text("token_texts.txt", &size);
    if (!test_true("texts", texts != NULL) || !test_golden_open(&g, "golden_token.txt")) return;
    golden_set(&g, "own", "token_merges.txt", texts, 514 + 85);
    golden_set(&g, "bytes", NULL, texts, 514);
    golden_set(&g, "clip", "bpe_simple_vocab_16e6.txt", texts, 49408);
    golden_close(&g);
    free(texts);
}

/* ------------------------------------------------------------------------------- what fits in */

static void contexts(void)
{
    static const char merges[] = "#version: 0\nc a\nca t</w>\n";
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_tokenizer *t = ctr_tokenizer_create(ctx, merges, sizeof merges - 1, 0);
    char *longest = (char *)test_alloc(CTR_TOKEN_TEXT + 2), small[4];
    int32_t ids[12], cut[12];
    test_equal("ids", (double)ctr_tokenizer_size(t), 516);
    test_equal("a cat and its ends", (double)ctr_tokenizer_encode(ctx, t, " CAT\n", 12, 0, ids), 3);
    test_true("start, cat, end, zeros", ids[0] == 514 && ids[1] == 513 && ids[2] == 515 &&
              ids[3] == 0 && ids[11] == 0);
    test_equal("ten words", (double)ctr_tokenizer_encode(ctx, t, "a b c d e f g h i j", 12, 0, ids),
               12);
    test_equal("eleven", (double)ctr_tokenizer_encode(ctx, t, "a b c d e f g h i j k", 12, 0, cut),
               0);
    test_fails(ctx, "eleven", CTR_E_VALUE, "'a b c d e f g h i j k' has more than 10 tokens");
    test_equal("cut", (double)ctr_tokenizer_encode(ctx, t, "a b c d e f g h i j k", 12, 1, cut),
               12);
    test_bytes("ten of them and the end", ids, cut, sizeof ids);
    test_equal("nothing", (double)ctr_tokenizer_encode(ctx, t, "  ", 2, 0, cut), 2);
    test_true("start and end", cut[0] == 514 && cut[1] == 515);
    test_equal("no room", (double)ctr_tokenizer_encode(ctx, t, "a", 1, 1, cut), 0);
    test_fails(ctx, "no room", CTR_E_VALUE, "context");
    memset(longest, 'x', CTR_TOKEN_TEXT + 1);
    longest[CTR_TOKEN_TEXT + 1] = 0;
    test_equal("too long", (double)ctr_tokenizer_encode(ctx, t, longest, 12, 1, cut), 0);
    test_fails(ctx, "too long", CTR_E_VALUE, "8192");
    longest[CTR_TOKEN_TEXT] = 0;
    test_equal("the longest", (double)ctr_tokenizer_encode(ctx, t, longest, 12, 1, cut), 12);
    ctr_tokenizer_encode(ctx, t, "a cat", 12, 0, ids);
    test_equal("the text's length", (double)ctr_tokenizer_decode(t, 12, ids, small, sizeof small),
               5);
    test_text("what fits of it", small, "a c");
    test_equal("without room", (double)ctr_tokenizer_decode(t, 12, ids, NULL, 0), 5);
    ids[1] = 600;
    test_equal("an id that is none ends it", (double)ctr_tokenizer_decode(t, 12, ids, small, 4), 0);
    test_fine(ctx, "contexts");
    ctr_tokenizer_destroy(ctx, t);
    ctr_tokenizer_destroy(ctx, NULL);
    test_equal("no tokeniser", (double)ctr_tokenizer_size(NULL), 0);
    free(longest);
    ctr_ctx_destroy(ctx);
}

/* ------------------------------------------------------------------------------- wrong merges */

static void wrong_merges(void)
{
    static const char *const texts[][2] = {
        { "a b\nc\n", "line 2 of the merges must be two tokens" },
        { "a b\n\nc d\n", "line 2 of the merges must be two tokens" },
        { "#version 1\na b c\n", "line 2 of the merges must be two tokens" },
        { "a b\nab xy\n", "line 2 of the merges has a token that no line before it makes" },
        { "a b\nb c\na b\n", "line 3 of the merges makes a token again" },
        { "a b\nb c\na bc\nab c\n", "line 4 of the merges makes a token again" },
        { " a\n", "line 1 of the merges must be" }, { "a \n", "line 1 of the merges must be" },
        { "a b</w> \n", "line 1" }, { "\xff \xfe\n", "line 1" }
    };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_tokenizer *t;
    char line[2100];
    size_t i, held = ctr_memory_stats(ctx).held;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        t = ctr_tokenizer_create(ctx, texts[i][0], strlen(texts[i][0]), 0);
        test_true("refused", t == NULL);
        test_fails(ctx, "refused", CTR_E_FORMAT, texts[i][1]);
    }
    test_true("a byte 0", ctr_tokenizer_create(ctx, "a b\nc\0d e\n", 10, 0) == NULL);
    test_fails(ctx, "a byte 0", CTR_E_FORMAT, "line 2 of the merges holds a byte 0");
    memset(line, 'a', sizeof line);
    line[1000] = ' ';
    test_true("a long line", ctr_tokenizer_create(ctx, line, sizeof line, 0) == NULL);
    test_fails(ctx, "a long line", CTR_E_FORMAT, "line 1 of the merges is too long");
    test_true("a limit below 0", ctr_tokenizer_create(ctx, "a b\n", 4, -1) == NULL);
    test_fails(ctx, "a limit below 0", CTR_E_VALUE, "limit");
    test_true("no file", ctr_tokenizer_open(ctx, "nowhere.txt", 0) == NULL);
    test_fails(ctx, "no file", CTR_E_FILE, "nowhere.txt");
    test_equal("nothing is left", (double)ctr_memory_stats(ctx).held, (double)held);
    t = ctr_tokenizer_create(ctx, "a b\r\nab c</w>", 13, 0);
    test_equal("other ends of lines", (double)ctr_tokenizer_size(t), 516);
    ctr_tokenizer_destroy(ctx, t);
    t = ctr_tokenizer_create(ctx, "a b\nab c\nthe rest is not read", 29, 2);
    test_equal("a limit", (double)ctr_tokenizer_size(t), 516);
    ctr_tokenizer_destroy(ctx, t);
    test_true("a file", model_file_write("token_file.txt", "a b\nc d\n", 8));
    t = ctr_tokenizer_open(ctx, "token_file.txt", 0);
    test_equal("from a file", (double)ctr_tokenizer_size(t), 516);
    ctr_tokenizer_destroy(ctx, t);
    remove("token_file.txt");
    test_fine(ctx, "merges");
    ctr_ctx_destroy(ctx);
}

/* Our merges with bytes changed, cut anywhere: an error that is one line, or ids in range. */
static void damaged_merges(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    size_t size, n, i;
    char *file = golden_text("token_merges.txt", &size), *copy = (char *)test_alloc(size);
    int round, good = 0, bad = 0, rounds = test_quick() ? 200 : 2000;
    int32_t ids[32];
    for (round = 0; file && round < rounds; round++) {
        uint32_t seed = golden_fnv("damage") + (uint32_t)round;
        ctr_tokenizer *t;
        memcpy(copy, file, size);
        n = round % 3 ? size : golden_bits(seed, 0) % size;
        for (i = 0; i < 1 + (size_t)round % 4; i++)
            copy[golden_bits(seed, 2 * i + 1) % size] = (char)golden_bits(seed, 2 * i + 2);
        t = ctr_tokenizer_create(ctx, copy, n, 0);
        if (!t) {
            bad += ctr_error(ctx) == CTR_E_FORMAT && strstr(ctr_error_text(ctx), "line ") != NULL;
            ctr_error_clear(ctx);
            continue;
        }
        ctr_tokenizer_encode(ctx, t, "the dog's photo, \xff\xc3 of it", 32, 1, ids);
        for (i = 0; i < 32 && ids[i] >= 0 && ids[i] < (int32_t)ctr_tokenizer_size(t); i++) { }
        good += i == 32 && ctr_error(ctx) == CTR_OK;
        ctr_tokenizer_destroy(ctx, t);
    }
    test_equal("damaged files that are neither refused nor fine", rounds - good - bad, 0);
    test_true("some of each", good > rounds / 50 && bad > rounds / 4);
    free(file);
    free(copy);
    ctr_ctx_destroy(ctx);
}

/* -------------------------------------------------------------------------------------- pairs */

static void write_text(const char *path, const char *text)
{
    test_true(path, model_file_write(path, text, strlen(text)));
}

/* A gray picture of 4 x 3 pixels. */
static void write_picture(const char *path, int shade)
{
    unsigned char p[11 + 12];
    memcpy(p, "P5\n4 3\n255\n", 11);
    memset(p + 11, shade, 12);
    test_true(path, model_file_write(path, p, sizeof p));
}

static const char good_pairs[] = "\xef\xbb\xbftoken_1.pgm\ta dark one\r\ntoken_2.pgm\ta light one\n"
                                 "\ntoken_1.pgm\ta light one  \n./token_2.pgm\tlast";

static void pairs(void)
{
    static const char *const names[3] = { "a dark one", "a light one", "last" };
    static const int32_t labels[4] = { 0, 1, 1, 2 };
    static const int shades[4] = { 10, 200, 10, 200 };
    ctr_ctx *ctx = test_ctx(2, CTR_KERNELS_AUTO);
    ctr_dataset *d, *part;
    ctr_tokenizer *t = ctr_tokenizer_create(ctx, NULL, 0, 0);
    ctr_loader_config l = ctr_loader_config_default();
    ctr_aug_config aug = ctr_aug_none_default(4);
    ctr_loader *loader;
    ctr_batch b;
    ctr_image image;
    int32_t ids[3 * 16], own[16];
    int64_t i, seen = 0, wrong = 0;
    write_text("token_pairs.tsv", good_pairs);
    d = ctr_dataset_open_pairs(ctx, "token_pairs.tsv", NULL);
    if (!test_fine(ctx, "pairs") || !d) return;
    test_text("kind", ctr_dataset_kind(d), "pairs");
    test_equal("pictures", (double)ctr_dataset_count(d), 4);
    test_equal("captions", (double)ctr_dataset_classes(d), 3);
    for (i = 0; i < 3; i++) test_text("caption", ctr_dataset_class_name(d, i), names[i]);
    for (i = 0; i < 4; i++) {
        test_equal("label", ctr_dataset_label(d, i), labels[i]);
        if (!test_true("picture", ctr_dataset_image(ctx, d, i, &image))) continue;
        test_true("its pixels", image.h == 3 && image.w == 4 && image.c == 3 &&
                  image.pixels[0] == shades[i]);
        ctr_image_free(ctx, &image);
    }
    test_true("tokens", ctr_dataset_tokenize(ctx, d, t, 16, 0, ids));
    for (i = 0; i < 3; i++) {
        ctr_tokenizer_encode(ctx, t, names[i], 16, 0, own);
        test_bytes("are those of the captions", ids + 16 * i, own, sizeof own);
    }
    test_equal("that do not fit", ctr_dataset_tokenize(ctx, d, t, 4, 0, ids), 0);
    test_fails(ctx, "that do not fit", CTR_E_VALUE, "tokens");
    ctr_dataset_tokenize(ctx, d, t, 16, 0, ids);
    part = ctr_dataset_part(ctx, d, 3);
    l.batch = 3;
    l.views = 1;
    l.augs = &aug;
    l.tokens = ids;
    l.context = 16;
    loader = ctr_loader_create(ctx, part, &l);
    for (i = 0; i < 6 && loader; i++) {
        if (!ctr_loader_next(ctx, loader, &b)) continue;
        for (seen += b.n; b.n > 0; b.n--)
            wrong += memcmp(b.tokens + 16 * (b.n - 1), ids + 16 * b.labels[b.n - 1],
                            16 * sizeof *ids) != 0 || b.context != 16;
    }
    test_true("a loader of texts", seen == 9 && wrong == 0);
    ctr_loader_destroy(ctx, loader);
    l.context = 0;
    test_true("a context of 0", ctr_loader_create(ctx, part, &l) == NULL);
    test_fails(ctx, "a context of 0", CTR_E_VALUE, "context");
    ctr_dataset_destroy(ctx, part);
    ctr_dataset_destroy(ctx, d);
    ctr_tokenizer_destroy(ctx, t);
    ctr_ctx_destroy(ctx);
}

/* Texts belong to labels: an image without one cannot have a text. */
static void unlabelled(void)
{
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_loader_config l = ctr_loader_config_default();
    ctr_aug_config aug = ctr_aug_none_default(4);
    uint8_t pixels[3 * 16] = { 0 };
    int32_t labels[3] = { 0, -1, 0 }, ids[4] = { 0, 1, 0, 0 };
    ctr_dataset *d = ctr_dataset_from_memory(ctx, pixels, 3, 4, 4, 1, labels);
    l.batch = 2;
    l.views = 1;
    l.augs = &aug;
    l.tokens = ids;
    l.context = 4;
    test_true("no loader", ctr_loader_create(ctx, d, &l) == NULL);
    test_fails(ctx, "no loader", CTR_E_VALUE, "image 1 has none");
    ctr_dataset_destroy(ctx, d);
    ctr_ctx_destroy(ctx);
}

static void wrong_pairs(void)
{
    static const char *const texts[][2] = {
        { "token_1.pgm\tx\nno tab here\n", "line 2: expected path<TAB>caption" },
        { "token_1.pgm\tx\n\n\ttext\n", "line 3: expected" },
        { "token_1.pgm\t\n", "line 1: expected" }, { "token_1.pgm\t  \n", "line 1: expected" },
        { "token_1.pgm\ta\tb\n", "line 1: expected" }, { "", "empty" }, { "\n\n", "empty" }
    };
    ctr_ctx *ctx = test_ctx(1, CTR_KERNELS_AUTO);
    ctr_data_options o = ctr_data_options_default();
    ctr_dataset *d;
    size_t i, held = ctr_memory_stats(ctx).held;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_text("token_pairs.tsv", texts[i][0]);
        test_true("refused", ctr_dataset_open_pairs(ctx, "token_pairs.tsv", NULL) == NULL);
        test_fails(ctx, "refused", CTR_E_FORMAT, texts[i][1]);
    }
    test_true("a byte 0", model_file_write("token_pairs.tsv", "token_1.pgm\ta\0b\n", 16));
    test_true("a byte 0", ctr_dataset_open_pairs(ctx, "token_pairs.tsv", NULL) == NULL);
    test_fails(ctx, "a byte 0", CTR_E_FORMAT, "line 1");
    test_true("no such file", ctr_dataset_open_pairs(ctx, "token_none.tsv", NULL) == NULL);
    test_fails(ctx, "no such file", CTR_E_FILE, "token_none.tsv");
    write_text("token_pairs.tsv", "token_1.pgm\tx\ntoken_3.pgm\ty\n");
    test_true("a picture that is missing",
              ctr_dataset_open_pairs(ctx, "token_pairs.tsv", NULL) == NULL);
    test_fails(ctx, "a picture that is missing", CTR_E_FILE,
               "'token_pairs.tsv' line 2: cannot read 'token_3.pgm'");
    test_equal("nothing is left", (double)ctr_memory_stats(ctx).held, (double)held);
    o.corrupt = CTR_CORRUPT_SKIP;
    d = ctr_dataset_open_pairs(ctx, "token_pairs.tsv", &o);
    test_equal("left out", (double)ctr_dataset_count(d), 1);
    test_equal("and counted", (double)ctr_dataset_skipped(d), 1);
    ctr_dataset_destroy(ctx, d);
    o.channels = 2;
    test_true("two channels", ctr_dataset_open_pairs(ctx, "token_pairs.tsv", &o) == NULL);
    test_fails(ctx, "two channels", CTR_E_VALUE, "channels");
    test_fine(ctx, "pairs");
    ctr_ctx_destroy(ctx);
}

/* Every allocation of both fails once. */
static void no_memory(void)
{
    test_allocator watch;
    ctr_config config = ctr_config_default();
    size_t size;
    char *merges = golden_text("token_merges.txt", &size);
    long n, bad = 0;
    int whole = 0;
    write_text("token_pairs.tsv", good_pairs);
    config.allocator = test_allocator_init(&watch);
    config.threads = 1;
    for (n = 1; !whole && bad < 5; n++) {
        ctr_ctx *ctx;
        ctr_tokenizer *t;
        ctr_dataset *d;
        watch.calls = 0;
        watch.fail_at = n;
        ctx = ctr_ctx_create(&config);
        if (!ctx) continue;
        t = ctr_tokenizer_create(ctx, merges, size, 0);
        d = ctr_dataset_open_pairs(ctx, "token_pairs.tsv", NULL);
        whole = watch.calls < n;
        bad += whole ? !t || !d : ctr_error(ctx) != CTR_E_MEMORY || d;
        ctr_dataset_destroy(ctx, d);
        ctr_tokenizer_destroy(ctx, t);
        ctr_ctx_destroy(ctx);
        bad += watch.live != 0 || watch.bad_frees != 0;
    }
    test_equal("bad ones", (double)bad, 0);
    test_true("the last run met no failure", whole && n > 10);
    free(merges);
}

int main(int argc, char **argv)
{
    test_begin("test_token", argc, argv);
    test_group("golden ids");
    golden_all();
    test_group("contexts");
    contexts();
    test_group("wrong merges");
    wrong_merges();
    test_group("damaged merges");
    damaged_merges();
    test_group("pairs");
    write_picture("token_1.pgm", 10);
    write_picture("token_2.pgm", 200);
    pairs();
    unlabelled();
    test_group("wrong pairs");
    wrong_pairs();
    test_group("no memory");
    no_memory();
    remove("token_1.pgm");
    remove("token_2.pgm");
    remove("token_pairs.tsv");
    return test_end();
}
