/* search: which images look like this one?
 *
 * Every image of --data becomes a vector, the query too, and the images whose vectors point in the
 * query's direction are shown: no labels, no words, no index of pixels. It is the plainest use of a
 * contrastively trained encoder, for its loss asks for just that: what is alike lies near.
 *
 *        images of --data --> encoder --> unit vectors --+
 *                                                        +--> cosines --> the k largest
 *                   query --> encoder --> unit vector ---+
 *
 * Build and run, from the folder of contrastive.h, after ./simclr:
 *     cc -O2 -o search examples/search.c -lm -lpthread && ./search
 * Your own pictures, your own query, a network of torchvision's:
 *     ./search --data photos --query beach.jpg --checkpoint resnet50.safetensors
 *     ./search --data photos --query 17 --k 10                   image 17 of the folder
 *     ./search --data photos --embeddings out/embed/embeddings.npy --query beach.jpg
 * Written to --out: nearest.png, a row for each query, and nearest.txt, the same as a table.
 * Last line, where same_class is the share of neighbours that have their query's class:
 *     result method=search images=... features=... queries=... k=... same_class=... seconds=...
 */

#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
#include "example_encoder.h"

#define ROWS 12 /* queries on a sheet */
#define K_MOST 16

typedef struct query_set {
    ctr_dataset *images, *from;  /* from: what images is a part of, or NULL */
    ctr_image file;              /* the pixels of a single file */
    char name[ROWS][96];
    int64_t self;                /* the query's own number in the gallery, -1: not in it */
    int count;
} query_set;

/* Everything twice: with the channels that the encoder takes, and (0) as a person would see it. */
static ctr_dataset *open_images(ex_run *run, const char *path, const char *split, int channels)
{
    ctr_data_options options = ctr_data_options_default();
    ctr_dataset *data;
    options.channels = channels;
    options.short_side = 256;
    if (!channels) options.cache = CTR_CACHE_NONE;          /* a few of them will be looked at */
    data = ctr_dataset_open(run->ctx, path, split, &options);
    ex_run_check(run);
    return data;
}

/* The queries: an image file, a folder of them, an image of the gallery by its number, or (text
   NULL) a few of the test images, of the gallery where there are none. */
static query_set find_queries(ex_run *run, const ctr_dataset *gallery, const char *text,
                              int channels)
{
    int64_t n = ctr_dataset_count(gallery), index[1];
    int i, test = !text && ctr_dataset_has_split(run->ctx, run->o->data, "test");
    DIR *folder = text ? opendir(text) : NULL;
    query_set q;
    memset(&q, 0, sizeof q);
    q.self = -1;
    if (folder) closedir(folder);
    if (folder || test) {
        q.from = open_images(run, folder ? text : run->o->data, test ? "test" : NULL, channels);
        n = ctr_dataset_count(q.from);
        i = folder ? ROWS : 8;
        q.images = ctr_dataset_part(run->ctx, q.from, n < i ? n : i);
    } else if (!text || strspn(text, "0123456789") == strlen(text)) {
        index[0] = text ? strtol(text, NULL, 10) : 0;
        if (index[0] >= n)
            ex_die(run->o, 2, "--query: there are %ld images, expected a number from 0 to %ld or "
                   "a path, got '%s'", (long)n, (long)n - 1, text);
        q.images = ctr_dataset_select(run->ctx, gallery, 1, index);
        q.self = index[0];
    } else if (ctr_image_load(run->ctx, text, channels, NULL, &q.file)) {
        q.images = ctr_dataset_from_memory(run->ctx, q.file.pixels, 1, q.file.h, q.file.w,
                                           q.file.c, NULL);
    }
    ex_run_check(run);
    q.count = (int)ctr_dataset_count(q.images);
    for (i = 0; i < q.count; i++) {
        const char *path = ctr_dataset_path(q.images, i);
        if (*path || q.file.pixels)
            snprintf(q.name[i], sizeof q.name[i], "%.90s", *path ? path : text);
        else
            snprintf(q.name[i], sizeof q.name[i], "%s %d", q.self >= 0 ? "image" : "query",
                     q.self >= 0 ? (int)q.self : i + 1);
    }
    return q;
}

static void close_queries(ex_run *run, query_set *q)
{
    ctr_dataset_destroy(run->ctx, q->images);
    ctr_dataset_destroy(run->ctx, q->from);
    ctr_image_free(run->ctx, &q->file);
}

/* Ends the program if encoder.txt beside the embeddings names another encoder than this one. */
static void check_encoder(ex_run *run, ctr_method *method, const char *file)
{
    char path[EX_PATH + 16], own[192], other[192] = "";
    FILE *from;
    snprintf(path, sizeof path, "%.*sencoder.txt", (int)ex_folder_length(file), file);
    from = fopen(path, "rb");
    if (from) other[fread(other, 1, sizeof other - 1, from)] = 0;
    if (from) fclose(from);
    other[strcspn(other, "\n")] = 0;
    ex_encoder_name(run, method, own);
    if (!from)
        ex_die(run->o, 2, "--embeddings: no '%s', which tells their encoder: let ./embed write "
               "them", path);
    if (strcmp(own, other))
        ex_die(run->o, 2, "--embeddings: made by another encoder, \"%s\", expected \"%s\"", other,
               own);
}

/* The gallery's vectors: computed, or read from what ./embed wrote. */
static ex_embedded gallery(ex_run *run, ctr_method *method, const char *file)
{
    ex_embedded e;
    ctr_npy npy;
    int64_t i;
    if (!file) return ex_embed(run, method, run->train);
    check_encoder(run, method, file);
    ctr_npy_load(run->ctx, file, &npy);
    ex_run_check(run);
    e.n = ctr_dataset_count(run->train);
    e.d = method->features;
    if (npy.dtype != CTR_FILE_F32 || npy.rank != 2 || npy.shape[0] != e.n || npy.shape[1] != e.d)
        ex_die(run->o, 2, "--embeddings: expected float32 [%ld, %ld] for these images and this "
               "encoder, got %s [%ld, %ld]", (long)e.n, (long)e.d, ctr_file_dtype_name(npy.dtype),
               (long)npy.shape[0], (long)npy.shape[1]);
    e.x = (ctr_real *)ex_alloc(run, (size_t)(e.n * e.d), sizeof *e.x);
    e.labels = (int32_t *)ex_alloc(run, (size_t)e.n, sizeof *e.labels);
    for (i = 0; i < e.n * e.d; i++) e.x[i] = (ctr_real)((const float *)npy.data)[i];
    for (i = 0; i < e.n; i++) e.labels[i] = ctr_dataset_label(run->train, i);
    ctr_npy_free(run->ctx, &npy);
    return e;
}

/* nearest.txt, and the same on the screen for the first query. Returns how many neighbours have
   their query's class, of those where both are known. */
static int write_table(ex_run *run, const query_set *q, int k, const int64_t *index,
                       const ctr_real *cosine, const char **names, int *known)
{
    static const char head[] = "query\trank\tcosine\timage\tpath\tclass\n";
    ex_bytes text = { NULL, 0, 0, 0 };
    char line[EX_PATH + 128], number[48], path[EX_PATH];
    int i, j, same = 0;
    *known = 0;
    ex_bytes_add(&text, head, strlen(head));
    printf("%s", head);
    for (i = 0; i < q->count; i++)
        for (j = 0; j < k && index[i * k + j] >= 0; j++) {
            int64_t at = index[i * k + j];
            int32_t label = ctr_dataset_label(run->train, at), own = ctr_dataset_label(q->images,
                                                                                       i);
            snprintf(line, sizeof line, "%s\t%d\t%s\t%ld\t%.900s\t%s\n", q->name[i], j + 1,
                     ex_number(number, (double)cosine[i * k + j], 3), (long)at,
                     ctr_dataset_path(run->train, at), names && label >= 0 ? names[label] : "");
            ex_bytes_add(&text, line, strlen(line));
            if (i == 0) printf("%s", line);
            *known += label >= 0 && own >= 0;
            same += label >= 0 && label == own;
        }
    ex_run_drew(run, ex_bytes_write(&text, ex_out_path(run->o, "nearest.txt", path)));
    return same;
}

/* nearest.png: each query and its neighbours in their own colours; frames tell the class. */
static void draw_sheet(ex_run *run, const char *text, int k, const int64_t *index,
                       const ctr_real *cosine, const char **names, int classes)
{
    ctr_dataset *all = open_images(run, run->o->data, NULL, 0), *shown = all;
    ctr_aug_config view = ctr_aug_none_default(96);
    int32_t query[ROWS], nearest[ROWS * K_MOST], own[ROWS], labels[ROWS * K_MOST];
    float close[ROWS * K_MOST];
    char path[EX_PATH], title[96];
    ex_images left, right;
    ex_neighbours sheet;
    ctr_image first;
    query_set q;
    int i;
    if (run->o->smoke)
        shown = ctr_dataset_part(run->ctx, all, ctr_dataset_count(run->train));
    q = find_queries(run, shown, text, 0);
    if (ctr_dataset_image(run->ctx, shown, index[0], &first)) { /* small images stay as they are */
        view.height = first.h < first.w ? first.h : first.w;
        view.height = view.width = view.height < 96 ? view.height : 96;
        ctr_image_free(run->ctx, &first);
    }
    ex_run_check(run);
    left = ex_images_make(run, q.images, &view, q.count);
    right = ex_images_make(run, shown, &view, q.count * k);
    for (i = 0; i < q.count; i++) {
        query[i] = i;
        own[i] = ctr_dataset_label(q.images, i);
        ex_render(run, q.images, i, &view, 0, ex_image_at(left, i));
    }
    for (i = 0; i < q.count * k; i++) {
        nearest[i] = i;
        close[i] = (float)cosine[i];
        labels[i] = ctr_dataset_label(shown, index[i]);
        ex_render(run, shown, index[i], &view, 0, ex_image_at(right, i));
    }
    memset(&sheet, 0, sizeof sheet);
    sheet.queries = left;
    sheet.gallery = right;
    sheet.rows = q.count;
    sheet.k = k;
    sheet.query = query;
    sheet.nearest = nearest;
    sheet.similarity = close;
    sheet.query_labels = ctr_dataset_classes(q.images) ? own : NULL;
    sheet.gallery_labels = classes ? labels : NULL;
    sheet.names = names;
    sheet.names_count = names ? classes : 0;
    snprintf(title, sizeof title, "the nearest of %ld images by cosine",
             (long)ctr_dataset_count(shown));
    ex_run_drew(run, ex_sheet_neighbours(ex_out_path(run->o, "nearest.png", path), title, &sheet));
    free(ex_image_at(left, 0));
    free(ex_image_at(right, 0));
    close_queries(run, &q);
    if (shown != all) ctr_dataset_destroy(run->ctx, shown);
    ctr_dataset_destroy(run->ctx, all);
}

int main(int argc, char **argv)
{
    ex_options o;
    ex_run run;
    ex_encoder encoder;
    ctr_method *method;
    ctr_points points, asked;
    ex_embedded all, some;
    query_set q;
    int64_t found[ROWS * (K_MOST + 1)], index[ROWS * K_MOST];
    ctr_real near[ROWS * (K_MOST + 1)], cosine[ROWS * K_MOST];
    const char *query = NULL, *embeddings = NULL;
    const char **names;
    int k = 8, i, j, at, wide, same, known, classes;
    char share[32] = "-1", lines[2048];

    /* 1. the command line */
    ex_options_init(&o, "search", "the images that look most like one", __FILE__);
    ex_encoder_drop(&o);
    ex_encoder_options(&o, &encoder);
    ex_options_add(&o, "--query", "PATH|N", EX_TEXT, &query, 0, 0,
                   "an image file, a folder of them, or the number of an image of\n"
                   "--data; without it, some of the test images");
    ex_options_add(&o, "--k", "N", EX_INT, &k, 1, K_MOST, "neighbours of each query");
    ex_options_add(&o, "--embeddings", "FILE", EX_TEXT, &embeddings, 0, 0,
                   "of --data, as ./embed wrote them with the same checkpoint and\n"
                   "size (encoder.txt tells); without it they are computed");
    ex_options_parse(&o, argc, argv);
    if (embeddings) ex_check_readable(&o, "--embeddings", embeddings);
    if (query && strspn(query, "0123456789") != strlen(query))
        ex_check_readable(&o, "--query", query);

    /* 2. the encoder, the images to search, the queries */
    method = ex_encoder_open(&run, &o, &encoder);
    run.train = open_images(&run, o.data, NULL, (int)encoder.net.channels);
    run.clean = ex_encoder_view(&run, &encoder, run.train);
    if (o.smoke) ex_run_shrink(&run);
    q = find_queries(&run, run.train, query, (int)encoder.net.channels);
    if (k > ctr_dataset_count(run.train) - (q.self >= 0))
        k = (int)(ctr_dataset_count(run.train) - (q.self >= 0));
    if (k < 1) ex_die(&o, 2, "--data: there is no image but the query");

    /* 3. embed both, compare; a query that is one of the images finds itself first: left out */
    all = gallery(&run, method, embeddings);
    some = ex_embed(&run, method, q.images);
    points = ctr_points_make(all.n, all.d, all.x, NULL);
    asked = ctr_points_make(some.n, some.d, some.x, NULL);
    wide = k + (q.self >= 0);
    ctr_neighbors_find(run.ctx, &points, &asked, wide, found, near);
    ex_run_check(&run);
    for (i = 0; i < q.count; i++)
        for (j = at = 0; j < wide && at < k; j++) {
            if (found[i * wide + j] == q.self) continue;
            index[i * k + at] = found[i * wide + j];
            cosine[i * k + at++] = near[i * wide + j];
        }

    /* 4. the sheet, the table, the line */
    ex_out_make(&o);
    names = ex_class_names(&run, run.train, &classes, lines);
    same = write_table(&run, &q, k, index, cosine, names, &known);
    draw_sheet(&run, query, k, index, cosine, names, classes);
    printf("written to %s: nearest.png nearest.txt\n", o.out);
    if (known) snprintf(share, sizeof share, "%.2f", 100.0 * same / known);
    printf("result method=search images=%ld features=%ld queries=%d k=%d same_class=%s "
           "peak_mb=%.0f seconds=%.1f\n", (long)all.n, (long)all.d, q.count, k, share, ex_peak_mb(),
           ex_seconds() - run.started);
    if (fflush(stdout) != 0) ex_die(&o, 2, "the result could not be printed");

    free(names);
    free(all.x);
    free(all.labels);
    free(some.x);
    free(some.labels);
    close_queries(&run, &q);
    ctr_method_destroy(method);
    ex_run_close(&run);
    return 0;
}
