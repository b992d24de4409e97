/* test_rng.c - the random numbers.
 * run: float double asan smoke
 *
 * Philox 4x32-10 against the known answers of its authors (Salmon et al., 2011: Random123), the
 * order of a stream's numbers, keys that must not meet, and the distributions: chi-square, moments,
 * permutations.
 */
#include "test.h"

/* One block: four numbers of a generator whose key and counter are set by hand. */
static void test_known_answers(void)
{
    static const uint32_t known[3][10] = { /* counter, key, result */
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u },
        { 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0x408f276du,
          0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu },
        { 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u, 0xd16cfe09u,
          0x94fdccebu, 0x5001e420u, 0x24126ea1u }
    };
    char what[40];
    int i, j;
    test_group("known answers of Philox 4x32-10");
    for (i = 0; i < 3; i++) {
        ctr_rng rng;
        memset(&rng, 0, sizeof rng);
        memcpy(rng.counter, known[i], 16);
        memcpy(rng.key, known[i] + 4, 8);
        rng.used = 4;
        for (j = 0; j < 4; j++) {
            snprintf(what, sizeof what, "vector %d, word %d", i, j);
            test_equal(what, (double)ctr_rng_u32(&rng), (double)known[i][6 + j]);
        }
    }
}

/* Two generators must differ from their first numbers on (64 bits: by chance once in 1e19). */
static void differ(const char *what, ctr_rng a, ctr_rng b)
{
    uint32_t a0 = ctr_rng_u32(&a), a1 = ctr_rng_u32(&a);
    uint32_t b0 = ctr_rng_u32(&b), b1 = ctr_rng_u32(&b);
    test_true(what, a0 != b0 || a1 != b1);
}

static ctr_rng rng_at(uint64_t seed, ctr_stream stream, int64_t epoch, int64_t position, int view)
{
    ctr_rng rng;
    memset(&rng, 0, sizeof rng); /* a copy of what is not yet drawn would be a warning */
    ctr_rng_init(&rng, seed, stream, epoch, position, view);
    return rng;
}

static void test_keys(void)
{
    ctr_rng base = rng_at(1, CTR_STREAM_VIEW, 2, 3, 0), same = rng_at(1, CTR_STREAM_VIEW, 2, 3, 0);
    int i, equal = 0, s, t;
    test_group("keys");
    for (i = 0; i < 1000; i++) equal += ctr_rng_u32(&base) == ctr_rng_u32(&same);
    test_equal("the same key gives the same thousand numbers", equal, 1000);
    base = rng_at(1, CTR_STREAM_VIEW, 2, 3, 0);
    differ("another seed", base, rng_at(2, CTR_STREAM_VIEW, 2, 3, 0));
    differ("another seed in its high bits", base,
           rng_at(1 + ((uint64_t)1 << 32), CTR_STREAM_VIEW, 2, 3, 0));
    differ("another epoch", base, rng_at(1, CTR_STREAM_VIEW, 3, 3, 0));
    differ("another position", base, rng_at(1, CTR_STREAM_VIEW, 2, 4, 0));
    differ("a position above 2^32", base,
           rng_at(1, CTR_STREAM_VIEW, 2, 3 + ((int64_t)1 << 32), 0));
    differ("another view", base, rng_at(1, CTR_STREAM_VIEW, 2, 3, 1));
    differ("epoch and position exchanged", base, rng_at(1, CTR_STREAM_VIEW, 3, 2, 0));
    for (s = CTR_STREAM_INIT; s <= CTR_STREAM_USER; s++)
        for (t = CTR_STREAM_INIT; t < s; t++)
            differ("another stream", rng_at(1, (ctr_stream)s, 0, 0, 0),
                   rng_at(1, (ctr_stream)t, 0, 0, 0));
}

/* chi-square of counts against equal expectations, as standard deviations from its mean */
static double chi_square(const long *count, int cells, double total)
{
    double sum = 0, expected = total / cells;
    int i;
    for (i = 0; i < cells; i++)
        sum += ((double)count[i] - expected) * ((double)count[i] - expected) / expected;
    return fabs(sum - (cells - 1)) / sqrt(2.0 * (cells - 1));
}

static void test_below(void)
{
    static const int64_t sizes[] = { 1, 2, 3, 7, 10, 64, 100 };
    long count[100];
    ctr_rng rng = rng_at(5, CTR_STREAM_USER, 0, 0, 0);
    int64_t big = ((int64_t)1 << 62) + 12345, x, high = 0;
    char what[60];
    size_t k;
    int i, outside = 0;
    test_group("ctr_rng_below");
    for (k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        memset(count, 0, sizeof count);
        for (i = 0; i < 100000; i++) {
            x = ctr_rng_below(&rng, sizes[k]);
            if (x < 0 || x >= sizes[k]) outside++;
            else count[x]++;
        }
        snprintf(what, sizeof what, "below %d: chi-square, deviations from its mean",
                 (int)sizes[k]);
        if (sizes[k] > 1) test_error(what, chi_square(count, (int)sizes[k], 100000.0), 5);
    }
    for (i = 0; i < 10000; i++) {
        x = ctr_rng_below(&rng, big);
        if (x < 0 || x >= big) outside++;
        high += x >= big / 2;
    }
    test_error("share in the upper half of a range above 2^62", fabs((double)high / 10000 - 0.5),
               5 * 0.5 / 100);
    test_equal("numbers outside the range", outside, 0);
    test_equal("below 0 is 0", (double)ctr_rng_below(&rng, 0), 0);
}

static void test_distributions(void)
{
    enum { N = 200000, CELLS = 64 };
    ctr_rng rng = rng_at(9, CTR_STREAM_USER, 1, 2, 3);
    long count[CELLS];
    double u, sum = 0, square = 0, fourth = 0, low = 1, high = 0, within = 0;
    int i, outside = 0;
    test_group("uniform, range, normal");
    memset(count, 0, sizeof count);
    for (i = 0; i < N; i++) {
        u = ctr_rng_uniform(&rng);
        if (!(u >= 0 && u < 1)) outside++;
        else count[(int)(u * CELLS)]++;
        if (u < low) low = u;
        if (u > high) high = u;
    }
    test_equal("uniform numbers outside [0, 1)", outside, 0);
    test_error("uniform: chi-square, deviations from its mean", chi_square(count, CELLS, N), 5);
    test_error("uniform: distance of the extremes from 0 and 1", low + 1 - high, 40.0 / N);
    for (i = 0; i < 1000; i++) {
        u = ctr_rng_range(&rng, -3, 5);
        outside += !(u >= -3 && u < 5);
        sum += u / 1000;
    }
    test_equal("numbers outside of [-3, 5)", outside, 0);
    test_error("mean of [-3, 5)", fabs(sum - 1), 5 * 8 / sqrt(12.0 * 1000));
    for (sum = 0, i = 0; i < N; i++) {
        u = ctr_rng_normal(&rng);
        if (!golden_finite_(u)) outside++;
        sum += u / N;
        square += u * u / N;
        fourth += u * u * u * u / N;
        within += fabs(u) < 1 ? 1.0 / N : 0;
    }
    test_equal("normal numbers that are not finite", outside, 0);
    test_error("normal: mean", fabs(sum), 5 / sqrt((double)N));
    test_error("normal: variance - 1", fabs(square - 1), 5 * sqrt(2.0 / N));
    test_error("normal: fourth moment - 3", fabs(fourth - 3), 5 * sqrt(96.0 / N));
    test_error("normal: share within one deviation", fabs(within - 0.682689),
               5 * 0.4655 / sqrt(N * 1.0));
}

/* Every permutation of four is as likely as another; long ones hold each number once. */
static void test_permutations(void)
{
    enum { N = 24000, LONG_N = 10007 };
    ctr_rng rng = rng_at(11, CTR_STREAM_SAMPLE, 0, 0, 0);
    int64_t order[4], *many = (int64_t *)test_alloc(LONG_N * sizeof *many);
    char *seen = (char *)test_alloc(LONG_N);
    long count[24], fixed = 0;
    int i, j, k, missing = 0;
    test_group("permutations");
    memset(count, 0, sizeof count);
    for (i = 0; i < N; i++) {
        int rank = 0;
        ctr_rng_permutation(&rng, 4, order);
        for (j = 0; j < 4; j++) {
            int smaller = 0;
            for (k = j + 1; k < 4; k++) smaller += order[k] < order[j];
            rank = rank * (4 - j) + smaller;
        }
        count[rank]++;
    }
    test_error("the 24 orders of 4: chi-square, deviations from its mean",
               chi_square(count, 24, N), 5);
    memset(seen, 0, LONG_N);
    ctr_rng_permutation(&rng, LONG_N, many);
    for (i = 0; i < LONG_N; i++) {
        if (many[i] < 0 || many[i] >= LONG_N || seen[many[i]]) missing++;
        else seen[many[i]] = 1;
        fixed += many[i] == i;
    }
    test_equal("numbers of a long permutation that are outside or double", missing, 0);
    test_true("fewer than 9 of 10007 stay in their place", fixed < 9);
    ctr_rng_permutation(&rng, 1, order);
    test_equal("the permutation of one", (double)order[0], 0);
    order[0] = 77;
    ctr_rng_permutation(&rng, 0, order);
    test_equal("the permutation of none writes nothing", (double)order[0], 77);
    free(many);
    free(seen);
}

/* ----------------------------------------------------------------------------------------- main */

int main(int argc, char **argv)
{
    test_begin("test_rng", argc, argv);
    test_known_answers();
    test_keys();
    test_below();
    test_distributions();
    test_permutations();
    return test_end();
}
