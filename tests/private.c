/* private.c - the tests that look at private parts as one program: by itself each of them would
 * have to compile the whole implementation.
 *
 *     private test_rows [OPTION...]        runs tests/test_rows.c
 *
 * run.sh builds a test this way where it is included here. Names that several of them have get the
 * name of their file in front.
 */
#ifndef CONTRASTIVE_STATIC
#define CONTRASTIVE_STATIC
#endif
#include "fake_device.h"
#include "image_files.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define OWN(name) JOIN(FILE_, name)
#define ALL_D OWN(ALL_D)
#define ALL_N OWN(ALL_N)
#define D OWN(D)
#define K OWN(K)
#define M OWN(M)
#define MOST OWN(MOST)
#define N OWN(N)
#define check_name OWN(check_name)
#define everything OWN(everything)
#define filled(...) OWN(filled)(__VA_ARGS__) /* elsewhere a member */
#define hear_device OWN(hear_device)
#define main OWN(main)
#define poison OWN(poison)
#define refused OWN(refused)
#define run_everything OWN(run_everything)
#define test_kernels OWN(test_kernels)
#define test_memory OWN(test_memory)
#define test_threads OWN(test_threads)

#define FILE_ aug_
#include "test_aug.c"
#undef FILE_
#define FILE_ cluster_
#include "test_cluster.c"
#undef FILE_
#define FILE_ eval_
#include "test_eval.c"
#undef FILE_
#define FILE_ image_
#include "test_image.c"
#undef FILE_
#define FILE_ losses_
#include "test_losses.c"
#undef FILE_
#define FILE_ rows_
#include "test_rows.c"
#undef FILE_
#undef main

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } tests[] = { { "test_aug", aug_main },     { "test_cluster", cluster_main },
                  { "test_eval", eval_main },   { "test_image", image_main },
                  { "test_losses", losses_main }, { "test_rows", rows_main } };
    size_t i;
    for (i = 0; argc > 1 && i < sizeof tests / sizeof tests[0]; i++)
        if (strcmp(argv[1], tests[i].name) == 0) return tests[i].run(argc - 1, argv + 1);
    fprintf(stderr, "private: expected the name of a test, got %s\n", argc > 1 ? argv[1] : "none");
    return 2;
}
