/* One line about this machine: processor, caches, compiler, measured peak of multiply-adds.
 *
 *     cc -O2 -o machine bench/machine.c -lm -lpthread && ./machine [--threads 2] */
#include "bench.h"

int main(int argc, char **argv)
{
    bench_options o;
    bench_parse(&o, argc, argv, "machine: describes the machine");
    bench_machine(o.threads);
    return 0;
}
