/* example.h - what the example programs share: the command line, a progress bar, and pictures.
 *
 * Nothing here knows anything about learning, and nothing here needs the library. It is C99 that is
 * also C++11, wants libc and libm (POSIX: Linux, macOS, BSD), and keeps everything static.
 *
 *     ex_options o;
 *     ex_options_init(&o, "simclr", "two views of one image attract, all others repel", __FILE__);
 *     o.epochs = 30;                                     defaults of this example
 *     ex_options_choices(&o, "--arch", "small|resnet18");
 *     ex_options_add(&o, "--dim", "N", EX_INT, &dim, 1, 4096, "size of the embedding");
 *     ex_options_parse(&o, argc, argv);                  a mistake: one line on stderr, exit code 2
 *     ...                                                read the data; ex_die(&o, 2, ...) if bad
 *     ex_out_make(&o);                                   the first thing that is written
 *     ex_svg_curve(ex_out_path(&o, "loss.svg", path), "SimCLR", &panel, 1);
 *
 * Functions that write a file build it in memory, write `path.N.tmp`, N being the process, and
 * rename it, so that no reader ever sees half of it. They return 0, or -1 after one line on stderr
 * that says what went wrong. Colours are 0xRRGGBB. Numbers in files have a point whatever the
 * locale says. */

#ifndef EX_EXAMPLE_H
#define EX_EXAMPLE_H

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "example_pictures.h"

#if defined(__GNUC__)
#define EX_DIES __attribute__((noreturn, format(printf, 3, 4)))
#else
#define EX_DIES
#endif

#define EX_OPTIONS 40 /* most options of one program */

/* ==== Command line =========================================================================== */

typedef enum ex_kind { EX_FLAG, EX_INT, EX_SEED, EX_REAL, EX_TEXT, EX_CHOICE } ex_kind;

typedef struct ex_option {
    const char *name;   /* with its dashes: "--epochs" */
    const char *value;  /* what the help calls its value: "N"; all of them for a choice: "a|b|c" */
    ex_kind kind;
    void *target;       /* int; SEED: uint64_t, REAL: double, TEXT and CHOICE: const char * */
    double low, high;   /* INT, REAL: accepted range, both ends included */
    const char *help;
    int given;          /* 1 if the command line named it */
} ex_option;

typedef struct ex_options {
    const char *method, *summary, *source;
    const char *data;         /* not NULL after parsing, unless it was dropped or has no default */
    const char *test;         /* NULL: not given */
    const char *default_data; /* below examples/data, "" for the folder itself; NULL: none */
    const char *arch, *device, *math, *out;
    int epochs, batch, threads, save_every, resume, smoke;
    double lr, temperature;
    uint64_t seed;
    char data_path[EX_PATH], out_default[EX_PATH];
    ex_option table[EX_OPTIONS];
    int count;
} ex_options;

/* One line on stderr, "method: what went wrong", then exit: code 2 for a mistake of the user's. */
EX_FN void ex_die(const ex_options *o, int code, const char *format, ...) EX_DIES;
EX_FN void ex_die(const ex_options *o, int code, const char *format, ...)
{
    va_list list;
    fflush(stdout);
    fprintf(stderr, "%s: ", o->method);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(code);
}

/* One more option, shown last in the help. What the target holds now is the default it shows. */
EX_FN void ex_options_add(ex_options *o, const char *name, const char *value, ex_kind kind,
                          void *target, double low, double high, const char *help)
{
    ex_option *entry = &o->table[o->count];
    if (o->count == EX_OPTIONS) ex_die(o, 1, "more than %d options: raise EX_OPTIONS", EX_OPTIONS);
    entry->name = name;
    entry->value = value;
    entry->kind = kind;
    entry->target = target;
    entry->low = low;
    entry->high = high;
    entry->help = help;
    entry->given = 0;
    o->count++;
}

/* The entry whose name is the first n characters of `name`, or NULL. */
EX_FN ex_option *ex_options_find(ex_options *o, const char *name, size_t n)
{
    int i;
    for (i = 0; i < o->count; i++)
        if (strlen(o->table[i].name) == n && memcmp(o->table[i].name, name, n) == 0)
            return &o->table[i];
    return NULL;
}

/* 1 if the user chose the value, 0 if it is the default (which --smoke may then shrink). */
EX_FN int ex_options_given(ex_options *o, const char *name)
{
    const ex_option *entry = ex_options_find(o, name, strlen(name));
    return entry ? entry->given : 0;
}

/* Takes away a common option that means nothing to this example. */
EX_FN void ex_options_drop(ex_options *o, const char *name)
{
    ex_option *entry = ex_options_find(o, name, strlen(name));
    if (!entry) return;
    memmove(entry, entry + 1, (size_t)(o->table + o->count - entry - 1) * sizeof *entry);
    o->count--;
}

/* Lets a text option accept only these words, given as "a|b|c". */
EX_FN void ex_options_choices(ex_options *o, const char *name, const char *words)
{
    ex_option *entry = ex_options_find(o, name, strlen(name));
    if (!entry) return;
    entry->kind = EX_CHOICE;
    entry->value = words;
}

/* The common options. `source` is the example's __FILE__: the data may lie beside it. */
EX_FN void ex_options_init(ex_options *o, const char *method, const char *summary,
                           const char *source)
{
    memset(o, 0, sizeof *o);
    o->method = method;
    o->summary = summary;
    o->source = source;
    o->default_data = "";
    o->device = "cpu";
    o->math = "fp32";
    o->epochs = 10;
    o->batch = 256;
    o->lr = 0.1;
    o->temperature = 0.1;
    o->seed = 1;
    snprintf(o->out_default, sizeof o->out_default, "out/%s", method);
    o->out = o->out_default;
    ex_options_add(o, "--data", "PATH", EX_TEXT, &o->data, 0, 0,
                   "training data; without it, the examples/data found here, beside the\n"
                   "program or beside its source");
    ex_options_add(o, "--test", "PATH", EX_TEXT, &o->test, 0, 0,
                   "test data; without it, the part of --data set aside for tests");
    ex_options_add(o, "--epochs", "N", EX_INT, &o->epochs, 1, 1000000, "passes over the data");
    ex_options_add(o, "--batch", "N", EX_INT, &o->batch, 2, 1000000, "images in a step");
    ex_options_add(o, "--arch", "NAME", EX_TEXT, &o->arch, 0, 0, "network");
    ex_options_add(o, "--lr", "X", EX_REAL, &o->lr, 1e-8, 1000, "base learning rate");
    ex_options_add(o, "--temperature", "X", EX_REAL, &o->temperature, 0.001, 100,
                   "divides the similarities");
    ex_options_add(o, "--threads", "N", EX_INT, &o->threads, 0, 64, "0: as many as cores");
    ex_options_add(o, "--seed", "N", EX_SEED, &o->seed, 0, 0, "same seed, same run");
    ex_options_add(o, "--device", "cpu|cuda", EX_CHOICE, &o->device, 0, 0, "where to compute");
    ex_options_add(o, "--math", "fp32|tf32|bf16", EX_CHOICE, &o->math, 0, 0,
                   "how a GPU rounds what it multiplies");
    ex_options_add(o, "--out", "DIR", EX_TEXT, &o->out, 0, 0, "folder for what is written");
    ex_options_add(o, "--save-every", "STEPS", EX_INT, &o->save_every, 0, 1000000000,
                   "steps between checkpoints; 0: one each epoch");
    ex_options_add(o, "--resume", "", EX_FLAG, &o->resume, 0, 1,
                   "go on from the checkpoint in --out");
    ex_options_add(o, "--smoke", "", EX_FLAG, &o->smoke, 0, 1,
                   "a run of seconds, to see that it works");
}

/* Writes "   (default: ...)" for what the target holds. */
EX_FN void ex_options_print_default(const ex_option *entry)
{
    const char *text;
    if (entry->kind == EX_INT) printf(" (default: %d)", *(const int *)entry->target);
    if (entry->kind == EX_REAL) printf(" (default: %g)", *(const double *)entry->target);
    if (entry->kind == EX_SEED)
        printf(" (default: %llu)", (unsigned long long)*(const uint64_t *)entry->target);
    if (entry->kind == EX_TEXT || entry->kind == EX_CHOICE) {
        text = *(const char *const *)entry->target;
        if (text) printf(" (default: %s)", text);
    }
}

EX_FN void ex_options_help(const ex_options *o)
{
    int i, width;
    const char *text;
    printf("%s - %s\n\nusage: %s [options]\n\n", o->method, o->summary, o->method);
    for (i = 0; i < o->count; i++) {
        const ex_option *entry = &o->table[i];
        width = printf("  %s %s", entry->name, entry->value ? entry->value : "");
        if (width > 22) width = printf("\n") - 1; /* a long list of choices: help on its own line */
        printf("%*s", 24 - width, "");
        for (text = entry->help; *text; text++)
            if (*text == '\n')
                printf("\n%*s", 24, "");
            else
                putchar(*text);
        ex_options_print_default(entry);
        putchar('\n');
    }
    printf("  %-22s%s\n", "--help", "this page");
}

/* 1 if `word` is one of "a|b|c". */
EX_FN int ex_is_choice(const char *words, const char *word)
{
    size_t n = strlen(word);
    while (words) {
        size_t length = strcspn(words, "|");
        if (length == n && n > 0 && memcmp(words, word, n) == 0) return 1;
        words = words[length] ? words + length + 1 : NULL;
    }
    return 0;
}

/* Reads the value into the target; 0, or -1 if any character is left over or the range is left. */
EX_FN int ex_option_read(const ex_option *entry, const char *text)
{
    char *end;
    size_t n = strlen(text);
    errno = 0;
    if (entry->kind == EX_INT) {
        long value = strtol(text, &end, 10);
        if (n == 0 || *end || errno || strspn(text, "+-0123456789") != n) return -1;
        if ((double)value < entry->low || (double)value > entry->high) return -1;
        *(int *)entry->target = (int)value;
    } else if (entry->kind == EX_SEED) {
        unsigned long long value = strtoull(text, &end, 10);
        if (n == 0 || errno || strspn(text, "0123456789") != n) return -1;
        *(uint64_t *)entry->target = (uint64_t)value;
    } else if (entry->kind == EX_REAL) {
        double value = strtod(text, &end); /* the set of characters keeps out nan, inf and hex */
        if (n == 0 || *end || strspn(text, "+-.eE0123456789") != n) return -1;
        if (!(value >= entry->low && value <= entry->high)) return -1;
        *(double *)entry->target = value;
    } else {
        if (n == 0) return -1;
        if (entry->kind == EX_CHOICE && !ex_is_choice(entry->value, text)) return -1;
        *(const char **)entry->target = text;
    }
    return 0;
}

/* Takes the value or ends the program: "--epochs: expected an integer from 1 to 1000, got 'x'". */
EX_FN void ex_option_set(const ex_options *o, ex_option *entry, const char *text)
{
    char expected[256], quoted[EX_PATH];
    int missing = !text || (strncmp(text, "--", 2) == 0 && text[2]); /* the next option's name */
    if (!missing && ex_option_read(entry, text) == 0) {
        entry->given = 1;
        return;
    }
    if (entry->kind == EX_INT)
        snprintf(expected, sizeof expected, "an integer from %.0f to %.0f", entry->low,
                 entry->high);
    else if (entry->kind == EX_SEED)
        snprintf(expected, sizeof expected, "an integer from 0 to 18446744073709551615");
    else if (entry->kind == EX_REAL)
        snprintf(expected, sizeof expected, "a number from %g to %g", entry->low, entry->high);
    else
        snprintf(expected, sizeof expected, "%s%s", entry->kind == EX_CHOICE ? "one of " : "",
                 entry->value);
    snprintf(quoted, sizeof quoted, "%s'%s'", missing ? "the option " : "", text ? text : "");
    ex_die(o, 2, "%s: expected %s, got %s", entry->name, expected, text ? quoted : "nothing");
}

/* Ends the program with the option that begins most like the unknown one as a hint. */
EX_FN void ex_option_unknown(const ex_options *o, const char *name)
{
    const char *hint = NULL;
    size_t best = 3; /* at least two letters behind the dashes in common */
    int i;
    if (name[0] != '-') ex_die(o, 2, "unexpected argument '%s': options begin with --", name);
    for (i = 0; i < o->count; i++) {
        size_t n = 0;
        while (name[n] && name[n] == o->table[i].name[n]) n++;
        if (n > best) best = n, hint = o->table[i].name;
    }
    if (hint) ex_die(o, 2, "unknown option '%s': did you mean %s? --help lists all", name, hint);
    ex_die(o, 2, "unknown option '%s': --help lists all", name);
}

/* ==== Finding data, making folders =========================================================== */

/* Length of the folder part of a path, its last slash included; 0 without a slash. */
EX_FN size_t ex_folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* examples/data, or what lies `below` it: in the current folder, beside the program, beside the
 * source, in this order (a folder that is `examples` itself counts too). 0 if found, else -1. */
EX_FN int ex_find_data(const char *program, const char *source, const char *below, char *path)
{
    static const char *const names[2] = {"examples/data", "data"}; /* known by a file in it */
    const char *from[3];
    int i, j, n;
    from[0] = "";
    from[1] = program;
    from[2] = source;
    for (i = 0; i < 3; i++)
        for (j = 0; j < 2; j++) {
            int length = (int)ex_folder_length(from[i]);
            if (i == 1 && length == 0) continue; /* found along PATH: where it lies is not known */
            n = snprintf(path, EX_PATH, "%.*s%s/LICENSE.fashion-mnist", length, from[i], names[j]);
            if (n >= EX_PATH || access(path, R_OK) != 0) continue;
            snprintf(path, EX_PATH, "%.*s%s%s%s", length, from[i], names[j], *below ? "/" : "",
                     below);
            if (access(path, R_OK) == 0) return 0;
        }
    return -1;
}

/* Ends the program if a path cannot be read or is a folder with nothing in it. */
EX_FN void ex_check_readable(const ex_options *o, const char *name, const char *path)
{
    const struct dirent *item;
    DIR *folder;
    int items = 0;
    if (access(path, R_OK) != 0)
        ex_die(o, 2, "%s: cannot read '%s': %s", name, path, strerror(errno));
    folder = opendir(path);
    if (!folder) return; /* a file: the loader looks inside */
    while ((item = readdir(folder)) != NULL) items += item->d_name[0] != '.';
    closedir(folder);
    if (items == 0) ex_die(o, 2, "%s: the folder '%s' is empty", name, path);
}

/* Ends the program if the folder cannot be made or written to; looks only, writes nothing. */
EX_FN void ex_check_writable(const ex_options *o, const char *name, const char *path)
{
    char part[EX_PATH];
    struct stat info;
    size_t n = strlen(path);
    if (n + 64 >= sizeof part) ex_die(o, 2, "%s: the path has %lu characters, at most %d fit",
                                      name, (unsigned long)n, EX_PATH - 65);
    memcpy(part, path, n + 1);
    while (stat(part, &info) != 0) { /* up to the nearest folder that exists */
        if (errno != ENOENT) ex_die(o, 2, "%s: cannot use '%s': %s", name, path, strerror(errno));
        n = ex_folder_length(part);
        while (n > 1 && part[n - 1] == '/') n--;
        if (n == 0) part[n++] = '.';
        part[n] = '\0';
    }
    if (!S_ISDIR(info.st_mode))
        ex_die(o, 2, "%s: cannot use '%s': '%s' is not a folder", name, path, part);
    if (access(part, W_OK | X_OK) != 0)
        ex_die(o, 2, "%s: cannot write to '%s': %s", name, part, strerror(errno));
}

/* Reads the command line, finds the default data, checks the paths. Writes nothing; returns only if
 * all is well, else the program ends: code 0 for --help, 2 for a mistake. */
EX_FN void ex_options_parse(ex_options *o, int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++) { /* first: what is shown as default must not be what was given */
        if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0) continue;
        ex_options_help(o);
        exit(0);
    }
    for (i = 1; i < argc; i++) {
        size_t n = strcspn(argv[i], "=");
        const char *inside = argv[i][n] ? argv[i] + n + 1 : NULL; /* --name=value */
        ex_option *entry = ex_options_find(o, argv[i], n);
        if (!entry) ex_option_unknown(o, argv[i]);
        if (entry->kind == EX_FLAG) {
            if (inside) ex_die(o, 2, "%s: expected no value, got '%s'", entry->name, inside);
            *(int *)entry->target = entry->given = 1;
        } else {
            ex_option_set(o, entry, inside ? inside : i + 1 < argc ? argv[i + 1] : NULL);
            i += !inside;
        }
    }
    if (ex_options_find(o, "--data", 6)) {
        int search = !o->data && o->default_data;
        if (search && ex_find_data(argv[0], o->source, o->default_data, o->data_path) != 0)
            ex_die(o, 2, "--data: not given, and no examples/data here, beside the program or "
                   "beside its source");
        if (search) o->data = o->data_path;
        if (o->data) ex_check_readable(o, "--data", o->data);
    }
    if (o->test) ex_check_readable(o, "--test", o->test);
    ex_check_writable(o, "--out", o->out);
}

/* Makes the --out folder and those above it, or ends the program. */
EX_FN void ex_out_make(const ex_options *o)
{
    char part[EX_PATH];
    size_t i, n = strlen(o->out);
    ex_check_writable(o, "--out", o->out);
    memcpy(part, o->out, n + 1);
    for (i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != '\0') continue;
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            ex_die(o, 2, "--out: cannot make the folder '%s': %s", part, strerror(errno));
        part[i] = o->out[i];
    }
    ex_check_writable(o, "--out", o->out);
}

/* The path of a file in the --out folder. `path` holds EX_PATH characters and is returned. */
EX_FN char *ex_out_path(const ex_options *o, const char *name, char *path)
{
    if (snprintf(path, EX_PATH, "%s/%s", o->out, name) >= EX_PATH)
        ex_die(o, 2, "--out: the path '%s/%s' is too long", o->out, name);
    return path;
}

/* ==== Time, memory, progress ================================================================= */

/* Seconds of the wall clock, from an arbitrary start. */
EX_FN double ex_seconds(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
}

/* The most memory the program has held at once, in MB (1e6 bytes). */
EX_FN double ex_peak_mb(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#if defined(__APPLE__)
    return (double)usage.ru_maxrss / 1e6;
#else
    return (double)usage.ru_maxrss * 1024 / 1e6;
#endif
}

typedef struct ex_progress {
    int epochs, steps, images; /* steps of an epoch, images of a step */
    long first;                /* steps done before this run (resume) */
    double start, shown;       /* seconds */
    int terminal, open;        /* open: the cursor stands behind a bar */
} ex_progress;

EX_FN void ex_progress_begin(ex_progress *p, int epochs, int steps, int images, long first)
{
    p->epochs = epochs;
    p->steps = steps;
    p->images = images;
    p->first = first;
    p->start = ex_seconds();
    p->shown = 0;
    p->terminal = isatty(2);
    p->open = 0;
}

/* Ends the bar's line, so that something else can be printed. Training may go on after it. */
EX_FN void ex_progress_break(ex_progress *p)
{
    if (p->open) fputc('\n', stderr);
    p->open = 0;
}

/* Call after each step; both counts begin at 0. A terminal sees a bar, at most ten times a second;
 * a file sees a line at the end of an epoch (when two seconds have passed) or after 30 seconds. */
EX_FN void ex_progress_step(ex_progress *p, int epoch, int step, double loss)
{
    char bar[21], left[32];
    double now = ex_seconds(), total = (double)p->epochs * p->steps;
    double done = (double)epoch * p->steps + step + 1, run = done - (double)p->first;
    double elapsed = now - p->start > 1e-6 ? now - p->start : 1e-6;
    double wait = p->terminal ? 0.1 : step + 1 < p->steps ? 30 : 2;
    int i, rest;
    if (p->shown == 0 && !p->terminal && step + 1 < p->steps) p->shown = now;
    if (now - p->shown < wait && done < total) return;
    p->shown = now;
    for (i = 0; i < 20; i++) bar[i] = i < (int)(20 * done / total) ? '#' : '.';
    bar[20] = '\0';
    rest = (int)(elapsed / run * (total - done) + 0.5);
    if (rest >= 3600)
        snprintf(left, sizeof left, "%dh%02dm", rest / 3600, rest / 60 % 60);
    else
        snprintf(left, sizeof left, "%dm%02ds", rest / 60, rest % 60);
    fprintf(stderr, "%sepoch %d/%d [%s] %3d%%  loss %.4f  %.0f images/s  %s left%s",
            p->terminal ? "\r" : "", epoch + 1, p->epochs, bar, (int)(100 * done / total), loss,
            run * p->images / elapsed, left, p->terminal ? "\033[K" : "\n");
    p->open = p->terminal;
    if (done >= total) ex_progress_break(p);
    fflush(stderr);
}

#endif /* EX_EXAMPLE_H */
