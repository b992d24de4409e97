/* The harness of these tests: CHECK counts and names what fails; a test ends with check_end(). */
#ifndef CHECK_H
#define CHECK_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__GNUC__)
#define CHECK_UNUSED __attribute__((unused))
#else
#define CHECK_UNUSED
#endif

static long check_done, check_failed;

#define CHECK(x) check_that((x) != 0, #x, __FILE__, __LINE__)
CHECK_UNUSED static int check_that(int ok, const char *text, const char *file, int line)
{
    check_done++;
    if (ok) return 1;
    if (check_failed++ < 20) printf("FAILED %s:%d: %s\n", file, line, text);
    return 0;
}

/* The context holds an error of that kind whose text contains `part`; it is cleared. */
#define CHECK_ERROR(ctx, status, part) check_error(ctx, status, part, __FILE__, __LINE__)
CHECK_UNUSED static int check_error(ctr_ctx *ctx, ctr_status status, const char *part,
                                    const char *file, int line)
{
    int ok = ctr_error(ctx) == status && strstr(ctr_error_text(ctx), part) != NULL &&
             strchr(ctr_error_text(ctx), '\n') == NULL;
    if (!ok)
        printf("error is %d '%s', expected %d '%s'\n", (int)ctr_error(ctx), ctr_error_text(ctx),
               (int)status, part);
    ctr_error_clear(ctx);
    return check_that(ok, part, file, line);
}

/* A folder of this process's own becomes the current one, in memory where there is such a place;
   check_end removes it. */
static char check_home[64];
CHECK_UNUSED static void check_enter(void)
{
    snprintf(check_home, sizeof check_home, "ctr_test_%ld", (long)getpid());
    CHECK(chdir("/dev/shm") == 0 || chdir("/tmp") == 0);
    CHECK(mkdir(check_home, 0777) == 0 && chdir(check_home) == 0);
}

CHECK_UNUSED static int check_end(const char *name)
{
    char line[100];
    snprintf(line, sizeof line, "cd .. && rm -rf %s", check_home);
    if (check_home[0]) CHECK(system(line) == 0);
    printf("%s: %ld passed, %ld failed, 0 skipped\n", name, check_done - check_failed,
           check_failed);
    fflush(stdout);
    return check_failed != 0;
}
#endif
