/* test_rows.c - all rows of one set with all of another: tiles of scores, the k best of a row.
 * run: float double asan smoke
 *
 * The matrix product by tiles and the search for the nearest rows, which k-means, k-NN and
 * retrieval share, against plain loops: sizes about the edges of strips, panels and groups, many
 * equal values, every kernel set. It looks at private parts, so it is its own implementation.
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC
#endif
#include "fake_device.h"

/* Small whole numbers: their products are exact in every order of adding, and often equal. */
static ctr_real *whole(uint32_t seed, int64_t n, uint32_t kinds)
{
    ctr_real *x = test_reals(n);
    int64_t i;
    for (i = 0; i < n; i++)
        x[i] = (ctr_real)((int)(golden_bits(seed, (size_t)i) % kinds) - (int)(kinds / 2));
    return x;
}

/* ---------------------------------------------------------------------------------------- tiles */

/* Packs b [n, d] and compares the scores of all tiles of a [m, d] with sums in double. */
static void tiles_of(ctr_ctx *ctx, int64_t m, int64_t n, int64_t d)
{
    ctr_real *a = whole(1, m * d, 9), *b = whole(2, n * d, 9);
    int64_t i, j, l, first, wrong = 0, seen = 0;
    ctr_tile_ tile;
    ctr_bag_ bag;
    char text[96];
    ctr_bag_open_(&bag, ctx);
    ctr_tile_open_(&tile, &bag, n, d);
    for (j = 0; j < n; j += CTR_TILE_PANEL_) {
        int64_t width = CTR_MIN_(CTR_TILE_PANEL_, n - j);
        memcpy(tile.panel, b + j * d, (size_t)(width * d) * sizeof *b);
        ctr_tile_pack_(&tile, j / CTR_TILE_PANEL_, width, 0);
    }
    for (first = 0; first < n; first += CTR_TILE_COLUMNS_) {
        int64_t columns = CTR_MIN_(CTR_TILE_COLUMNS_, n - first);
        const ctr_real *scores = ctr_tile_multiply_(&tile, m, a, first, columns, 0);
        for (i = 0; i < m; i++)
            for (j = 0; j < columns; j++, seen++) {
                double sum = 0;
                for (l = 0; l < d; l++)
                    sum += (double)a[i * d + l] * (double)b[(first + j) * d + l];
                wrong += (double)scores[i * CTR_TILE_LD_ + j] != sum;
            }
    }
    ctr_bag_close_(&bag);
    sprintf(text, "%d x %d rows of %d", (int)m, (int)n, (int)d);
    test_true(text, wrong == 0 && seen == m * n);
    free(a);
    free(b);
}

static void test_tiles(ctr_ctx *ctx)
{
    test_group("tiles of scores are the sums of products");
    tiles_of(ctx, 1, 1, 1);
    tiles_of(ctx, 5, 17, 3);
    tiles_of(ctx, 7, 16, 8);
    tiles_of(ctx, CTR_TILE_ROWS_, CTR_TILE_COLUMNS_ + 33, 13);
    tiles_of(ctx, CTR_TILE_ROWS_ - 1, 2 * CTR_TILE_COLUMNS_ - 1, 20);
    tiles_of(ctx, 11, 40, 801); /* longer than a slab of the product */
    test_fine(ctx, "no error");
}

/* ---------------------------------------------------------------------------- parts of a search */

static void test_masks(ctr_ctx *ctx)
{
    ctr_real *v = whole(3, 64, 5);
    int64_t n, i, wrong = 0;
    test_group("comparing with a threshold");
    for (n = 0; n <= 32; n++) {
        uint32_t mask = ctr_search_mask_scalar_(n, v, 0);
        for (i = 0; i < 32; i++) wrong += (mask >> i & 1) != (i < n && v[i] > 0);
    }
    test_equal("bits of the scalar mask", (double)wrong, 0);
#if CTR_HAS_AVX2_
    for (i = 0; i < 32 && ctx->kernels >= CTR_KERNELS_AVX2; i++)
        wrong += ctr_search_mask_avx2_(v + i, 1) != ctr_search_mask_scalar_(32, v + i, 1);
    test_equal("of the fast one", (double)wrong, 0);
#endif
    for (n = 0; n <= 64; n++) {
        int64_t count = 0;
        for (i = 0; i < n; i++) count += v[i] > -1;
        wrong += ctr_search_above_(ctx, n, v, -1) != count;
    }
    test_equal("numbers above", (double)wrong, 0);
    free(v);
}

/* Cuts a list of n values of `kinds` kinds to k; against taking the largest, k times over. */
static int64_t cut_wrong(ctr_ctx *ctx, int64_t n, int64_t k, uint32_t kinds)
{
    ctr_real *v = whole((uint32_t)(n * 31 + k), n, kinds), *kept = test_reals(n);
    int64_t *x = (int64_t *)malloc((size_t)n * sizeof *x), *taken = (int64_t *)calloc((size_t)n, 8);
    int64_t filled = n, i, j, wrong = 0;
    ctr_real threshold = -2;
    ctr_search_ s;
    memset(&s, 0, sizeof s);
    s.ctx = ctx;
    s.k = k;
    s.room = n;
    s.value = kept;
    s.index = x;
    s.filled = &filled;
    s.threshold = &threshold;
    for (i = 0; i < n; i++) {
        kept[i] = v[i] = v[i] / (ctr_real)kinds; /* between -1 and 1 */
        x[i] = i;
    }
    ctr_search_cut_(&s, 0);
    for (j = 0; j < k && j < n; j++) {
        int64_t best = -1;
        for (i = 0; i < n; i++)
            if (!taken[i] && (best < 0 || v[i] > v[best])) best = i;
        taken[best] = 1;
    }
    wrong += filled != CTR_MIN_(k, n);
    for (i = 0; i < filled; i++) wrong += !taken[x[i]] || kept[i] != v[x[i]];
    for (i = 1; i < filled; i++) wrong += x[i] <= x[i - 1];
    for (i = 0; i < n && n > k; i++) wrong += !taken[i] && v[i] > threshold;
    free(v);
    free(kept);
    free(x);
    free(taken);
    return wrong;
}

static void test_cuts(ctr_ctx *ctx)
{
    int64_t n, k, wrong = 0;
    test_group("cutting a list to its k best, of equals the first");
    for (n = 1; n < 70; n++)
        for (k = 1; k <= n; k += 1 + k / 3) {
            wrong += cut_wrong(ctx, n, k, 100003);
            wrong += cut_wrong(ctx, n, k, 4);
            wrong += cut_wrong(ctx, n, k, 1);
        }
    test_equal("differences", (double)wrong, 0);
}

static void test_sorts(void)
{
    enum { MOST = 67 };
    ctr_real v2[MOST];
    int64_t x[MOST], x2[MOST], n, i, wrong = 0;
    test_group("sorting a list");
    for (n = 0; n <= MOST; n++) {
        ctr_real *v = whole((uint32_t)n, MOST, n % 2 ? 5 : 1000), copy[MOST];
        for (i = 0; i < MOST; i++) {
            copy[i] = v[i];
            x[i] = i;
        }
        ctr_search_sort_(n, v, x, v2, x2);
        for (i = 0; i < n; i++) wrong += v[i] != copy[x[i]];
        for (i = 1; i < n; i++)
            wrong += v[i] > v[i - 1] || (v[i] == v[i - 1] && x[i] < x[i - 1]);
        free(v);
    }
    test_equal("differences", (double)wrong, 0);
}

/* ----------------------------------------------------------------------------------- the search */

/* Rows of 0, 1 and -1: many are equal, so many cosines are. The lists are full several times. */
static void search_of(ctr_ctx *ctx, int64_t n, int64_t queries, int64_t k)
{
    enum { D = 3 };
    ctr_real *x = whole(5, n * D, 3), *q = whole(6, queries * D, 3);
    ctr_real *cosine = test_reals(queries * k);
    int64_t *index = (int64_t *)malloc((size_t)(queries * k) * sizeof *index), i, j, wrong = 0;
    ctr_points data = ctr_points_make(n, D, x, NULL), from = ctr_points_make(queries, D, q, NULL);
    char text[96];
    sprintf(text, "%d of %d for %d", (int)k, (int)n, (int)queries);
    test_equal(text, (double)ctr_neighbors_find(ctx, &data, &from, k, index, cosine),
               (double)CTR_MIN_(k, n));
    for (i = 0; i < queries; i++) {
        const int64_t *found = index + i * k;
        const ctr_real *own = cosine + i * k;
        ctr_real *all = test_reals(n);
        int64_t better = 0, last = found[k - 1];
        for (j = 0; j < k; j++) all[found[j]] = 3; /* taken */
        for (j = 1; j < k; j++) /* by falling cosine, then by rising index */
            wrong += own[j] > own[j - 1] || (own[j] >= own[j - 1] && found[j] <= found[j - 1]);
        for (j = 0; j < n; j++) { /* what stayed out is no better than the last one */
            double dot = 0, a = 0, b = 0;
            int l;
            for (l = 0; l < D; l++) {
                dot += (double)q[i * D + l] * (double)x[j * D + l];
                a += (double)q[i * D + l] * (double)q[i * D + l];
                b += (double)x[j * D + l] * (double)x[j * D + l];
            }
            dot = a * b > 0 ? dot / sqrt(a * b) : 0;
            if (all[j] > 2) continue;
            better += dot > (double)own[k - 1] + 1e-6;
            better += memcmp(x + j * D, x + last * D, D * sizeof *x) == 0 && j < last;
        }
        wrong += better;
        free(all);
    }
    test_equal("wrong places", (double)wrong, 0);
    free(x);
    free(q);
    free(cosine);
    free(index);
}

static void test_search(ctr_ctx *ctx)
{
    test_group("the nearest rows among many equal ones");
    search_of(ctx, 40, 3, 1);
    search_of(ctx, 40, 3, 40);
    search_of(ctx, 1100, CTR_SEARCH_STRIP_ + 1, 33);
    search_of(ctx, 2100, 5, 700);
    search_of(ctx, 3000, 2, 1500);
    test_fine(ctx, "no error");
}

/* ----------------------------------------------------------- what a device does, as plain loops */

/* Whole numbers, so that sums are exact; the answers are counted, not found as the verbs do it. */
static void test_nearest(ctr_ctx *ctx)
{
    enum { N = 50, K = 19, D = 4 };
    ctr_real *x = whole(7, N * D, 3), *c = whole(8, K * D, 3), *minus = whole(9, K, 3);
    int32_t which[N];
    int64_t i, j, wrong = 0;
    test_group("the nearest row");
    ctr_k_nearest(ctx, N, K, D, x, c, minus, which);
    for (i = 0; i < N; i++) {
        ctr_real own = ctr_rows_dot_(D, x + i * D, c + which[i] * D) - minus[which[i]];
        for (j = 0; j < K; j++) {
            ctr_real other = ctr_rows_dot_(D, x + i * D, c + j * D) - minus[j];
            wrong += other > own || (other >= own && j < which[i]);
        }
    }
    test_equal("better rows", (double)wrong, 0);
    free(x);
    free(c);
    free(minus);
}

static void neighbors_of(ctr_ctx *ctx, int64_t n, int64_t k)
{
    enum { M = 12, D = 3, MOST = 60 };
    ctr_real *q = whole(10, M * D, 3), *x = whole(11, n * D, 3), value[M * MOST];
    int32_t index[M * MOST], skip[M];
    int64_t i, j, rank, wrong = 0;
    char text[64];
    for (i = 0; i < M; i++) skip[i] = (int32_t)(i % 3 ? i % n : -1);
    ctr_k_neighbors(ctx, M, n, D, q, x, skip, k, value, index);
    for (i = 0; i < M; i++)
        for (j = 0; j < n; j++) { /* each row stands where as many are better as its rank says */
            ctr_real own = ctr_rows_dot_(D, q + i * D, x + j * D);
            int64_t l;
            for (rank = 0, l = 0; l < n; l++) {
                ctr_real s = ctr_rows_dot_(D, q + i * D, x + l * D);
                rank += l != skip[i] && (s > own || (s >= own && l < j));
            }
            if (j == skip[i] || rank >= k) continue;
            wrong += index[i * k + rank] != j || value[i * k + rank] != own;
        }
    for (i = 0; i < M; i++)
        for (rank = n - (skip[i] >= 0); rank < k; rank++)
            wrong += index[i * k + rank] != -1 || value[i * k + rank] != 0;
    sprintf(text, "%d of %d", (int)k, (int)n);
    test_equal(text, (double)wrong, 0);
    free(q);
    free(x);
}

static void test_segments(ctr_ctx *ctx)
{
    enum { N = 30, D = 5, SEGMENTS = 4 };
    static const int32_t begin[SEGMENTS + 1] = { 0, 9, 9, 10, N };
    ctr_real *x = whole(12, N * D, 9), *weight = whole(13, N, 5);
    double y[SEGMENTS * D], wrong = 0;
    int32_t order[N];
    int64_t i, j, l;
    int weighted;
    test_group("sums of groups");
    for (i = 0; i < N; i++) order[i] = (int32_t)(i * 7 % N);
    for (weighted = 0; weighted < 2; weighted++) {
        memset(y, 0xff, sizeof y);
        ctr_k_segment_sum(ctx, SEGMENTS, N, D, begin, order, weighted ? weight : NULL, x, y);
        for (j = 0; j < SEGMENTS; j++)
            for (l = 0; l < D; l++) {
                double sum = 0;
                for (i = 0; i < N; i++) {
                    int inside = i >= begin[j] && i < begin[j + 1];
                    double w = weighted ? (double)weight[order[i]] : 1;
                    if (inside) sum += w * (double)x[order[i] * D + l];
                }
                wrong += y[j * D + l] != sum;
            }
    }
    test_equal("differences", wrong, 0);
    free(x);
    free(weight);
}

/* A device without the verb: a clear error. */
static void test_missing(void)
{
    static const int32_t begin[2] = { 0, 0 };
    fake_device *fake = fake_device_open();
    ctr_ctx *ctx;
    test_group("a device without the verbs");
    fake->device.nearest = NULL;
    fake->device.neighbors = NULL;
    fake->device.segment_sum = NULL;
    ctx = fake_device_ctx(fake);
    ctr_k_nearest(ctx, 1, 1, 1, NULL, NULL, NULL, NULL);
    test_fails(ctx, "nearest", CTR_E_DEVICE, "nearest: device fake has no kernel");
    ctr_k_neighbors(ctx, 1, 1, 1, NULL, NULL, NULL, 1, NULL, NULL);
    test_fails(ctx, "neighbors", CTR_E_DEVICE, "neighbors: device fake has no kernel");
    ctr_k_segment_sum(ctx, 1, 1, 1, begin, NULL, NULL, NULL, NULL);
    test_fails(ctx, "segment_sum", CTR_E_DEVICE, "segment_sum: device fake has no kernel");
    ctr_ctx_destroy(ctx);
    fake_device_close(fake);
}

int main(int argc, char **argv)
{
    static const ctr_kernels sets[] = { CTR_KERNELS_SCALAR, CTR_KERNELS_AUTO };
    int i;
    test_begin("test_rows", argc, argv);
    for (i = 0; i < 2; i++) {
        ctr_ctx *ctx = test_ctx(2, sets[i]);
        printf("kernels: %d\n", (int)ctx->kernels);
        test_tiles(ctx);
        test_masks(ctx);
        test_cuts(ctx);
        test_search(ctx);
        test_nearest(ctx);
        test_group("the nearest rows, in order");
        neighbors_of(ctx, 1, 1);
        neighbors_of(ctx, 40, 7);
        neighbors_of(ctx, 40, 60);
        test_segments(ctx);
        ctr_ctx_destroy(ctx);
    }
    test_sorts();
    test_missing();
    return test_end();
}
