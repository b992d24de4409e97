#!/bin/sh
# tests/run.sh - builds and runs every test; the last line is "N passed, N failed, N skipped".
#
#     sh tests/run.sh [--install] [--quick] [--jobs N] [--on PLACE] [--device DEVICE] [NAME...]
#
#   --install   fetches compilers and tools that are missing with the system's package manager
#               (apt-get, as root or through sudo) and says which; without it they are named, and what
#               needs them is counted as skipped
#   --quick     one compiler, float and double, short runs: a minute instead of ten
#   --jobs N    programs that are built or run at the same time (default: one a processor, at most 8)
#   --on PLACE  only in that configuration, e.g. asan or clang-c99-O2; may be given more than once
#   --device D  only on that device: cuda; or cuda:tf32 and cuda:bf16, single operations alone, with
#               bounds that are 20 and 200 times as wide. On this machine's GPU with nvcc; without them on the emulation of
#               tests/cuda, which takes a hundred times as long (--quick, and name the tests)
#   NAME        only tests/test_NAME.c, tests/check_NAME.sh, tests/house.sh; default: all of them
#
# A new file tests/test_x.c is found by itself. A comment in it says where it runs, for example
#     /* run: float double asan smoke */
#   float double        -O2, all of the test
#   asan                address and undefined-behaviour sanitizers, all of the test
#   asandouble tsan     the same in double, thread sanitizer, with --quick
#   valgrind            memory checker, with --quick
#   smoke               every compiler, language and level of the matrix, with --quick
# A test that defines CONTRASTIVE_STATIC looks at private parts and is its own implementation; those
# that tests/private.c includes are compiled together.
# A program prints "NAME: N passed, N failed, N skipped" at its end; so does a tests/check_x.sh, which
# finds CC, CXX, OUT (a folder of its own), ROOT, QUICK and the found tools in its environment.
# Logs stay in out/tests.

cd "$(dirname "$0")/.." || exit 1
ROOT=$(pwd)
WORK="$ROOT/out/tests"
INSTALL=0 QUICK=0 NAMES='' JOBS='' ON='' DEVICE=''
while [ $# -gt 0 ]; do
    case "$1" in
    --install) INSTALL=1 ;;
    --quick) QUICK=1 ;;
    --jobs) shift; JOBS=${1:-2} ;;
    --on) shift; ON="$ON $1" ;;
    --device) shift; DEVICE=$1 ON='device' ;;
    --help | -h) sed -n '2,32s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "run.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
    *) NAMES="$NAMES $(basename "$1" | sed 's/^test_//;s/^check_//;s/\.c$//;s/\.sh$//')" ;;
    esac
    shift
done
if [ -z "$JOBS" ]; then
    JOBS=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    [ "$JOBS" -gt 8 ] && JOBS=8
fi
has() { command -v "$1" >/dev/null 2>&1; }

# ---- what is missing, and fetching it -----------------------------------------------------------

missing_packages() {
    has gcc || echo gcc
    has g++ || echo g++
    if [ $QUICK = 0 ]; then
        has clang || echo clang
        has valgrind || echo valgrind libc6-dbg
        has tcc || echo tcc
        has nm || echo binutils
        case $(uname -m) in # for check_arm64.sh, 60 MB
        x86_64) { has qemu-aarch64 && has aarch64-linux-gnu-gcc; } ||
            echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ;;
        esac
    fi
    [ -f /usr/include/stb/stb_image.h ] || [ -f stb_image.h ] || echo libstb-dev
    [ -f /usr/include/pthread.h ] || echo libc6-dev
}

install_packages() {
    sudo=''
    if ! has apt-get; then
        echo "there is no apt-get here; going on without: $*"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        if has sudo && sudo -n true 2>/dev/null; then sudo='sudo -n'; else
            echo "neither root nor sudo without a password; going on without: $*"
            return
        fi
    fi
    echo "fetching with apt-get: $*"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq >"$WORK/apt.log" 2>&1
    for package in "$@"; do  # one at a time, so that one unknown name does not keep out the others
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "$package" >>"$WORK/apt.log" 2>&1 || echo "apt-get has no $package (see $WORK/apt.log)"
    done
}

rm -rf "$WORK"
mkdir -p "$WORK/claims" "$WORK/results" || exit 1
MISSING=$(missing_packages | tr '\n' ' ')
if [ -n "$MISSING" ]; then
    if [ $INSTALL = 1 ]; then
        # shellcheck disable=SC2086 # names are split on purpose
        install_packages $MISSING
    else
        echo "missing packages, what needs them is skipped: $MISSING"
        echo "(sh tests/run.sh --install fetches them)"
    fi
fi

# ---- tools ----------------------------------------------------------------------------------------

CC='' CXX=''
for c in gcc clang cc; do has $c && CC=$c && break; done
for c in g++ clang++ c++; do has $c && CXX=$c && break; done
if [ -z "$CC" ]; then
    echo "no C compiler"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
GNU=0
[ "$CC" != cc ] && GNU=1
LIMIT=''
has timeout && LIMIT='timeout -k 5'
limit() { if [ -n "$LIMIT" ]; then s=$1; shift; $LIMIT "$s" "$@"; else shift; "$@"; fi; }

# Does a sanitizer work on this machine? Prints the prefix that its programs need, if any.
sanitizer_works() {
    printf 'int main(void) { return 0; }\n' >"$WORK/probe.c"
    $CC "-fsanitize=$1" "$WORK/probe.c" -o "$WORK/probe" >/dev/null 2>&1 || return 1
    "$WORK/probe" >/dev/null 2>&1 && return 0
    has setarch && setarch "$(uname -m)" -R "$WORK/probe" >/dev/null 2>&1 &&
        echo "setarch $(uname -m) -R" && return 0
    return 1
}

WARN='-Wall -Wextra -pedantic -Wshadow -Wconversion -Werror'
STRICT='-Wall -Wextra -pedantic -Wshadow -Werror'
LIBS='-lm -lpthread'

# A GPU wants nvcc; GPU=0 is the emulation, with device memory that the host cannot read.
GPU=0
if [ -n "$DEVICE" ]; then
    has nvcc || PATH="$PATH:/usr/local/cuda/bin"
    has nvcc && has nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q GPU && GPU=1
fi
# Of these tests the CPU's kernels are the subject: test_verbs.c of tests/cuda has the device's.
CPU_ONLY=' conv gemm memory rows threads vec '
# The bounds of rounded products are those of one operation, not of what is made of many.
ROUNDED=' loss ops '
SAN='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'

# Sets, for a configuration: comp (command of the implementation), tcomp (of the tests), pre (what
# runs the program), opts (of the program), secs (its limit), from (whose object of the implementation
# it takes). Returns 1 when a tool is missing.
configure() {
    comp="$CC -std=c99 -O2" tcomp='' pre='' opts='' secs=300 extra='' from=$1
    case "$1" in
    float) ;;
    double) extra='-DCONTRASTIVE_REAL=double' ;;
    asan | asandouble)
        [ -f "$WORK/asan.ok" ] || return 1
        comp="$CC -std=c99 -O1 -g $SAN"
        [ "$1" = asandouble ] && extra='-DCONTRASTIVE_REAL=double' opts=--quick ;;
    tsan)
        [ -f "$WORK/tsan.ok" ] || return 1
        comp="$CC -std=c99 -O1 -g -fsanitize=thread" pre=$(cat "$WORK/tsan.ok") opts=--quick ;;
    valgrind)
        has valgrind || return 1
        comp="$CC -std=c99 -O1 -g" opts=--quick secs=600
        pre='valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite' ;;
    tcc)
        has tcc || return 1
        comp='tcc' opts=--quick ;;
    device)
        tcomp="$comp -DCONTRASTIVE_CUDA" opts="--device $DEVICE" secs=900
        [ $GPU = 0 ] && pre='env CUDAEMU_GUARD=1' ;;
    nothreads) extra='-DCONTRASTIVE_NO_THREADS' opts=--quick ;;
    nosimd) extra='-DCONTRASTIVE_NO_SIMD' opts=--quick ;;
    static) comp="$CC -std=c99 -O1" extra='-DCONTRASTIVE_STATIC' opts=--quick ;;
    mixed) # the implementation in C++, the tests in C
        has g++ || return 1
        tcomp="$CC -std=c99 -O1" opts=--quick from=gcc-cxx11-O2 ;;
    mixed2) # and the other way round
        [ -n "$CXX" ] || return 1
        tcomp="$CXX -x c++ -std=c++11 -O1" opts=--quick from=float ;;
    *-c99-*)
        has "${1%%-*}" || return 1
        comp="${1%%-*} -std=c99 -${1##*-}" opts=--quick ;;
    *-cxx11-*)
        case "$1" in gcc-*) comp=g++ ;; *) comp=clang++ ;; esac
        has $comp || return 1
        comp="$comp -x c++ -std=c++11 -${1##*-}" opts=--quick ;;
    *) return 1 ;;
    esac
    [ $QUICK = 1 ] && opts="${DEVICE:+--device $DEVICE }--quick"
    [ -n "$tcomp" ] || tcomp=$comp
    comp="$comp $extra" tcomp="$tcomp $extra"
    return 0
}

SMOKE='gcc-c99-O0 gcc-c99-O3 gcc-c99-Ofast gcc-cxx11-O2 clang-c99-O0 clang-c99-O2 clang-c99-Ofast
       clang-cxx11-O3 tcc nothreads nosimd static mixed mixed2'
SMOKE=$(echo $SMOKE)
EVERY="float double asan asandouble tsan valgrind $SMOKE"
ALL=$EVERY
[ $QUICK = 1 ] && ALL='float double'
for place in $ON; do
    case " $EVERY device " in
    *" $place "*) ;;
    *) echo "run.sh: no place $place, there are: $EVERY" >&2; exit 2 ;;
    esac
done
for name in $NAMES; do
    ls "tests/test_$name.c" "tests/check_$name.sh" "tests/$name.sh" 2>/dev/null | grep -q . ||
        { echo "run.sh: no test $name: neither tests/test_$name.c nor tests/check_$name.sh" >&2; exit 2; }
done
if [ $QUICK = 0 ] || [ -n "$ON" ]; then
    sanitizer_works address,undefined >/dev/null && : >"$WORK/asan.ok"
    tsan_prefix=$(sanitizer_works thread) && echo "$tsan_prefix" >"$WORK/tsan.ok"
fi

[ -n "$ON" ] && ALL=$(echo $ON)

# ---- jobs -------------------------------------------------------------------------------------------

# result NAME PASSED FAILED SKIPPED TEXT: one line for the reader, one for the sum
result() {
    word=ok
    [ "$4" != 0 ] && [ "$2" = 0 ] && word=skip
    [ "$3" != 0 ] && word=FAIL
    printf '%-4s %-32s %s\n' "$word" "$1" "$5"
    echo "$2 $3 $4" >"$WORK/results/$(echo "$1" | tr ' /' '__')"
}

# The line "...: N passed, N failed, N skipped" at the end of a log as "N N N".
counts() {
    tail -n 1 "$1" |
        sed -n 's/^.*: \([0-9][0-9]*\) passed, \([0-9][0-9]*\) failed, \([0-9][0-9]*\) skipped$/\1 \2 \3/p'
}

# Whether the implementation alone compiles without a warning in a configuration.
job_build() {
    configure "$1" || { result "$1/build" 0 0 1 'its tool is missing here'; return; }
    case "$1" in # these have no object of their own: see job_test
    static | mixed | mixed2) return ;;
    esac
    flags=$WARN
    [ "$1" = tcc ] && flags=''
    mkdir -p "$WORK/$1"
    begin=$(date +%s)
    if limit 600 $comp $flags -c tests/impl.c -o "$WORK/$1/impl.o" >"$WORK/$1/impl.log" 2>&1; then
        if [ -s "$WORK/$1/impl.log" ] && [ "$1" != tcc ]; then
            result "$1/build" 0 1 0 "compiles, but says something: $WORK/$1/impl.log"
        else
            result "$1/build" 1 0 0 "$comp $flags ($(($(date +%s) - begin)) s)"
        fi
    else
        result "$1/build" 0 1 0 "$comp $flags; see $WORK/$1/impl.log"
        sed -n '1,6s/^/       /p' "$WORK/$1/impl.log"
    fi
}

# contrastive_cuda.cu beside the implementation of the place "device".
job_companion() {
    cu="$WORK/device/cu.o"
    mkdir -p "$WORK/device"
    if [ $GPU = 1 ]; then set -- nvcc -O3 -arch=native
    else set -- $CXX -std=c++17 -O2 -Itests/cuda -x c++; fi
    if limit 600 "$@" -c contrastive_cuda.cu -o "$cu" >"$WORK/device/cu.log" 2>&1; then
        result device/companion 1 0 0 "$*"
    else
        result device/companion 0 1 0 "$*; see $WORK/device/cu.log"
    fi
}

# Whether a test is compiled with others; on a device each has a program of its own.
joined() { [ "$1" != device ] && grep -q -F "#include \"$2.c\"" tests/private.c; }

# The program of the tests that look at private parts.
job_private() {
    configure "$1" || return
    flags="$STRICT -DTEST_DIR=\"$ROOT/tests\"" log="$WORK/$1/private.log"
    [ "$1" = tcc ] && flags="-DTEST_DIR=\"$ROOT/tests\""
    mkdir -p "$WORK/$1"
    limit 600 $tcomp $flags tests/private.c -o "$WORK/$1/private" $(link_libs "$1") >"$log" 2>&1 ||
        rm -f "$WORK/$1/private"
}

# Compiles one test in one configuration and runs it.
job_test() {
    configure "$1" || { result "$1/$2" 0 0 1 'its tool is missing here'; return; }
    object="$WORK/$from/impl.o" log="$WORK/$1/$2.log" program="$WORK/$1/$2"
    mkdir -p "$WORK/$1"
    flags="$STRICT -DTEST_DIR=\"$ROOT/tests\""
    [ "$1" = tcc ] && flags="-DTEST_DIR=\"$ROOT/tests\""
    own=0
    grep -q '^#define CONTRASTIVE_STATIC' "tests/$2.c" && own=1
    if joined "$1" "$2"; then
        object=joined program="$WORK/$1/private"
        opts="$2 $opts" log="$WORK/$1/private.log"
    elif [ "$1" = static ] || { [ $own = 1 ] && [ "$1" != device ]; }; then # the companion calls it
        object=''
    elif [ ! -f "$object" ]; then
        result "$1/$2" 0 1 0 'the implementation did not compile'
        return
    fi
    case "$tcomp" in *c++*) last='-x none' ;; *) last='' ;; esac
    if [ "$object" = joined ]; then [ -x "$program" ]; else
        limit 300 $tcomp $flags "tests/$2.c" $last $object -o "$program" $(link_libs "$1") >"$log" 2>&1
    fi
    if [ $? != 0 ]; then
        result "$1/$2" 0 1 0 "does not compile; see $log"
        sed -n '1,6s/^/       /p' "$log"
        return
    fi
    begin=$(date +%s) log="$WORK/$1/$2.log"
    mkdir -p "$WORK/$1/$2.d"
    (cd "$WORK/$1/$2.d" && limit $secs $pre "$program" $opts) >"$log" 2>&1
    status=$?
    sum=$(counts "$log")
    took="$(($(date +%s) - begin)) s"
    set -- "$1" "$2" $sum
    if [ -z "$sum" ]; then
        [ $status = 124 ] && why="takes more than $secs s" || why="ended with status $status"
        result "$1/$2" 0 1 0 "$why before its last line; see $log"
        tail -n 5 "$log" | sed 's/^/       /'
    elif [ $status != 0 ] && [ "$4" = 0 ]; then
        result "$1/$2" "$3" 1 "$5" "status $status though no test failed; see $log"
        tail -n 12 "$log" | sed 's/^/       /'
    else
        result "$1/$2" "$3" "$4" "$5" "$3 passed, $4 failed, $5 skipped ($took)"
        [ "$4" = 0 ] || grep '^FAIL' "$log" | sed -n '1,12s/^/       /p'
        grep '^skip' "$log" | sed -n '1,6s/^/       /p'
    fi
}

# C needs the C++ runtime when the implementation is C++.
link_libs() {
    cuda="$WORK/device/cu.o"
    case "$1$GPU" in
    mixed?) echo "-lstdc++ $LIBS" ;;
    device0) echo "$cuda -lstdc++ $LIBS" ;;
    device1) echo "$cuda -L$(dirname "$(command -v nvcc)")/../lib64 -lcudart -lcublas -lstdc++ $LIBS" ;;
    *) echo "$LIBS" ;;
    esac
}

# A script of its own: tests/check_x.sh, or tests/house.sh
check_file() { if [ "$1" = house ]; then echo tests/house.sh; else echo "tests/check_$1.sh"; fi; }
job_check() {
    mkdir -p "$WORK/check_$1"
    begin=$(date +%s)
    limit 900 env CC="$CC" CXX="$CXX" OUT="$WORK/check_$1" ROOT="$ROOT" QUICK="$QUICK" \
        IMPL="$WORK/float/impl.o" LIMIT="$LIMIT" sh "$(check_file "$1")" >"$WORK/check_$1.log" 2>&1
    status=$?
    set -- "$1" $(counts "$WORK/check_$1.log")
    if [ $# != 4 ]; then
        result "check_$1" 0 1 0 "ended with status $status before its last line; see $WORK/check_$1.log"
        tail -n 5 "$WORK/check_$1.log" | sed 's/^/       /'
        return
    fi
    result "check_$1" "$2" "$3" "$4" "$2 passed, $3 failed, $4 skipped ($(($(date +%s) - begin)) s)"
    grep -e '^ *FAIL' -e '^ *skip' -e '^     ' "$WORK/check_$1.log" | sed -n '1,12s/^/       /p'
}

# Runs the lines of a file of jobs, JOBS at a time: whoever makes a job's folder first has it.
worker() {
    n=0
    while read -r kind a b; do
        n=$((n + 1))
        mkdir "$WORK/claims/$2.$n" 2>/dev/null || continue
        "job_$kind" $a $b </dev/null
    done <"$1"
}
run_jobs() {
    w=0 pids=''
    while [ $w -lt "$JOBS" ]; do
        worker "$1" "$2" &
        pids="$pids $!"
        w=$((w + 1))
    done
    wait $pids
}

# ---- the list of jobs, the slow ones first ---------------------------------------------------------

wanted() {
    [ -z "$NAMES" ] && return 0
    case "$NAMES " in *" $1 "*) return 0 ;; esac
    return 1
}

# The configurations of a test: the words behind "run:" in its first comment that has them.
places() {
    words=$(sed -n '1,30s/^[ /*]*run: *\([a-z ]*\).*$/\1/p' "$1" | sed 1q)
    [ -n "$words" ] || words='float double asan smoke'
    for word in $words; do
        if [ "$word" = smoke ]; then echo "$SMOKE"; else echo "$word"; fi
    done
}

: >"$WORK/tests.list"
: >"$WORK/order.list"
for file in tests/test_*.c; do
    [ -f "$file" ] || continue
    name=$(basename "$file" .c)
    wanted "${name#test_}" || continue
    if [ -n "$DEVICE" ]; then
        case "$CPU_ONLY" in
        *" ${name#test_} "*) result "device/$name" 0 0 1 "its subject are the CPU's kernels" ;;
        *)
            case "$DEVICE$ROUNDED" in
            cuda' '* | *" ${name#test_} "*) echo "test device $name" >>"$WORK/tests.list" ;;
            *) result "device/$name" 0 0 1 'is no single operation: run it on cuda' ;;
            esac ;;
        esac
        continue
    fi
    for place in $(places "$file"); do
        case " $ALL " in *" $place "*) echo "test $place $name" >>"$WORK/tests.list" ;; esac
    done
done
: >"$WORK/builds.list"
for place in $ALL; do
    if [ "$place" = float ] || [ "$place" = device ] || { [ "$place" = gcc-cxx11-O2 ] && grep -q '^test mixed ' "$WORK/tests.list"; } ||
        grep -q "^test $place " "$WORK/tests.list"; then
        echo "build $place" >>"$WORK/builds.list"
    fi
    for name in $(sed -n "s/^test $place //p" "$WORK/tests.list"); do
        joined "$place" "$name" && echo "private $place" >>"$WORK/builds.list" && break
    done
done
[ -n "$DEVICE" ] && echo "companion" >>"$WORK/builds.list"
for file in tests/check_*.sh tests/house.sh; do
    [ -f "$file" ] && [ -z "$DEVICE" ] || continue
    name=$(basename "$file" .sh)
    wanted "${name#check_}" && echo "check ${name#check_}" >>"$WORK/tests.list"
done
for first in check 'test valgrind' 'test asan' 'test tsan'; do # what takes long begins early
    grep "^$first" "$WORK/tests.list" >>"$WORK/order.list"
done
grep -v -e '^test valgrind' -e '^check' -e '^test asan' -e '^test tsan' "$WORK/tests.list" \
    >>"$WORK/order.list"

echo "$($CC --version | sed 1q), $(uname -sm), $JOBS jobs at a time"
run_jobs "$WORK/builds.list" build
run_jobs "$WORK/order.list" test

cat "$WORK"/results/* 2>/dev/null | awk '
    { passed += $1; failed += $2; skipped += $3 }
    END {
        if (passed + failed == 0) { failed = 1; print "nothing ran" }
        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit failed > 0
    }'
