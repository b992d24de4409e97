#!/bin/sh
# tests/check_build.sh - how the header can be built: as two translation units, C and C++ in one
# program, a shared library, alone; what it exports; how long its declarations take.
# Called by run.sh; alone: CC=gcc CXX=g++ OUT=/tmp/x sh tests/check_build.sh

cd "$(dirname "$0")/.." || exit 1
CC=${CC:-cc}
OUT=${OUT:-${TMPDIR:-/tmp}/ctr_check_build}
IMPL=${IMPL:-$OUT/impl.o}
WARN='-Wall -Wextra -pedantic -Wshadow -Wconversion -Werror'
LIBS='-lm -lpthread'
mkdir -p "$OUT"
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); echo "ok   $1"; }
fail() { failed=$((failed + 1)); echo "FAIL $1"; }
skip() { skipped=$((skipped + 1)); echo "skip $1"; }
# check TEXT COMMAND...: the command succeeds and says nothing
check() {
    text=$1
    shift
    if "$@" >"$OUT/log" 2>&1 && [ ! -s "$OUT/log" ]; then ok "$text"; else
        fail "$text: $*"
        sed -n '1,6s/^/       /p' "$OUT/log"
    fi
}

[ -f "$IMPL" ] || $CC -std=c99 -O2 -c tests/impl.c -o "$IMPL"

# ---- two units of a program, in C and in C++ ------------------------------------------------------

cat >"$OUT/one.c" <<'END'
#include "contrastive.h"
#include "contrastive.h"
double other(void);
int main(void)
{
    ctr_ctx *ctx = ctr_ctx_create(0);
    int64_t n = 4;
    ctr_tensor *t;
    double sum;
    if (!ctx) return 1;
    t = ctr_tensor_create(ctx, CTR_F32, 1, &n, 1);
    ctr_tensor_fill(ctx, t, 2);
    ctr_step_begin(ctx);
    sum = (double)ctr_tensor_item(ctx, ctr_sum(ctx, t, -1));
    ctr_step_end(ctx);
    ctr_tensor_destroy(ctx, t);
    ctr_ctx_destroy(ctx);
    return sum == 8 && other() == 8 ? 0 : 1;
}
END
sed -e 's/int main(void)/double other(void)/' -e '/^double other(void);/d' -e 's/return 1;/return -1;/' \
    -e 's/return sum == 8.*/return sum;/' "$OUT/one.c" >"$OUT/two.c"
{ echo 'extern "C" double other(void);'; cat "$OUT/two.c"; } >"$OUT/two.cc"
sed 's/^double other(void);/extern "C" double other(void);/' "$OUT/one.c" >"$OUT/one.cc"
{ echo '#define CONTRASTIVE_IMPLEMENTATION'; cat "$OUT/two.c"; } >"$OUT/two_with.c"
{ echo '#define CONTRASTIVE_STATIC'; echo '#define CONTRASTIVE_IMPLEMENTATION'; cat "$OUT/one.c"; } \
    >"$OUT/one_static.c"
{ echo '#define CONTRASTIVE_STATIC'; echo '#define CONTRASTIVE_IMPLEMENTATION'; cat "$OUT/two.c"; } \
    >"$OUT/two_static.c"

check 'two units with the implementation in a third' \
    $CC -std=c99 $WARN -I. "$OUT/one.c" "$OUT/two.c" "$IMPL" -o "$OUT/three" $LIBS
check 'they run' "$OUT/three"
check 'two units, the implementation in one of them' \
    $CC -std=c99 $WARN -O1 -I. "$OUT/one.c" "$OUT/two_with.c" -o "$OUT/both" $LIBS
check 'they run' "$OUT/both"
check 'two units, each with a static implementation of its own' \
    $CC -std=c99 $WARN -O1 -I. "$OUT/one_static.c" "$OUT/two_static.c" -o "$OUT/own" $LIBS
check 'they run' "$OUT/own"
if [ -n "$CXX" ]; then
    $CC -std=c99 -I. -c "$OUT/two.c" -o "$OUT/two.o"
    check 'a C++ unit, a C unit, the implementation in C' \
        $CXX -std=c++11 $WARN -I. "$OUT/one.cc" "$OUT/two.o" "$IMPL" -o "$OUT/mixed" $LIBS
    check 'they run' "$OUT/mixed"
    check 'two C++ units, the implementation in C' \
        $CXX -std=c++11 $WARN -I. "$OUT/one.cc" "$OUT/two.cc" "$IMPL" -o "$OUT/mixed2" $LIBS
    check 'they run' "$OUT/mixed2"
else
    skip 'no C++ compiler'
fi

# ---- the shared library ------------------------------------------------------------------------------

check 'the shared library, by the line of the manual' \
    $CC -x c -shared -fPIC -O2 -DCONTRASTIVE_IMPLEMENTATION -o "$OUT/libcontrastive.so" contrastive.h
check 'a program that links with it' \
    $CC -std=c99 -I. "$OUT/one.c" "$OUT/two.c" -L"$OUT" -lcontrastive -o "$OUT/dynamic" $LIBS
LD_LIBRARY_PATH=$OUT check 'it runs' env LD_LIBRARY_PATH="$OUT" "$OUT/dynamic"
if command -v nm >/dev/null 2>&1; then
    nm -D --defined-only "$OUT/libcontrastive.so" | awk '{ print $NF }' |
        grep -v -x -e _init -e _fini -e _edata -e _end -e __bss_start | grep -v '^ctr_' >"$OUT/strange"
    check 'the shared library exports nothing but ctr_ names' cat "$OUT/strange"
    count=$(nm -D --defined-only "$OUT/libcontrastive.so" | grep -c ' ctr_')
    if [ "$count" -gt 150 ]; then ok "and $count of these"; else fail "it exports only $count names"; fi
    nm -g --defined-only "$IMPL" | awk 'NF > 1 { print $NF }' | grep -v '^ctr_' >"$OUT/strange"
    check 'nor does the object' cat "$OUT/strange"
    nm -f sysv "$IMPL" | awk -F '|' '
        { gsub(/ /, "", $7); gsub(/ /, "", $1) }
        ($7 ~ /^\.(data|bss|tdata|tbss)/ && $7 !~ /^\.data\.rel\.ro/) || $7 == "*COM*" {
            if ($1 !~ /^stbi__/) print $1 " in " $7 }' >"$OUT/strange"
    check 'no writable global of ours' cat "$OUT/strange"
    nm -u "$IMPL" | awk '{ print $NF }' |
        grep -x -e abort -e exit -e printf -e fprintf -e puts -e putchar -e rand -e srand -e getenv \
            -e signal -e setlocale -e __assert_fail >"$OUT/strange"
    check 'it calls nothing that prints, exits, or has process-wide state' cat "$OUT/strange"
else
    skip 'no nm'
fi

# ---- the declarations alone -----------------------------------------------------------------------------

echo '#include "contrastive.h"' >"$OUT/alone.c"
check 'the declarations alone' $CC -std=c99 $WARN -I. -c "$OUT/alone.c" -o "$OUT/alone.o"
# the fastest of nine, less what an empty file takes: the machine may have other things to do
now() { date +%s%N; }
case "$(now)" in
*N*) skip 'date has no nanoseconds: time of the declarations' ;;
*)
    : >"$OUT/empty.c"
    best=999999999999 floor=999999999999 i=0
    while [ $i -lt 9 ]; do
        a=$(now); $CC -std=c99 -I. -c "$OUT/alone.c" -o "$OUT/alone.o"
        b=$(now); $CC -std=c99 -I. -c "$OUT/empty.c" -o "$OUT/empty.o"
        c=$(now)
        [ $((b - a)) -lt $best ] && best=$((b - a))
        [ $((c - b)) -lt $floor ] && floor=$((c - b))
        i=$((i + 1))
    done
    ms=$((best / 1000000))
    text="the declarations compile in $ms ms (an empty file in $((floor / 1000000))), at most 100"
    if [ $ms -le 100 ]; then ok "$text"; else fail "$text"; fi ;;
esac

# ---- the README's program -------------------------------------------------------------------------------

if [ -f README.md ]; then
    awk '/^```c$/ && !done { on = 1; next } /^```/ && on { on = 0; done = 1 } on { print }' README.md \
        >"$OUT/readme.c"
    if grep -q 'int main' "$OUT/readme.c"; then
        check 'the program of README.md compiles without a warning' \
            $CC -std=c99 -O2 -Wall -Wextra -I. "$OUT/readme.c" -o "$OUT/readme" $LIBS
        if (cd "$OUT" && ${LIMIT:-env} ${LIMIT:+300} ./readme >readme.log 2>&1); then
            ok "and runs: $(tail -n 1 "$OUT/readme.log")"
        else
            fail "the program of README.md fails: $(tail -n 1 "$OUT/readme.log")"
        fi
    else
        fail 'README.md has no C program'
    fi
else
    skip 'no README.md'
fi

echo "build: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
