#!/bin/sh
# check_cuda.sh - contrastive_cuda.cu without a GPU and, where there is one, with it.
#
# The programs of tests/cuda/ (every verb, whole training steps, faults on purpose) and
# tests/test_views.c (augmentation) run
#   - against the emulation of the CUDA runtime in tests/cuda/: as they are, in several orders of
#     threads and blocks, with streams that run late, under the address and the thread sanitizer;
#   - on the GPU, if nvcc and a GPU are here.
# nvcc, if it is here, must also compile the file for three targets without a warning.
# Each line is a test; the last one is "cuda: N passed, N failed, N skipped". Run by tests/run.sh.

ROOT=${ROOT:-$(cd "$(dirname "$0")/.." && pwd)}
OUT=${OUT:-$ROOT/out/tests/check_cuda}
CC=${CC:-gcc} CXX=${CXX:-g++} QUICK=${QUICK:-0} IMPL=${IMPL:-$OUT/impl.o}
mkdir -p "$OUT" && cd "$OUT" || exit 1
PASSED=0 FAILED=0 SKIPPED=0

ok() { PASSED=$((PASSED + 1)); echo "ok   $1"; }
fail() { FAILED=$((FAILED + 1)); echo "FAIL $1"; }
skip() { SKIPPED=$((SKIPPED + 1)); echo "skip $1"; }
finish() {
    echo "cuda: $PASSED passed, $FAILED failed, $SKIPPED skipped"
    [ $FAILED = 0 ]
    exit $?
}

WARN='-Wall -Wextra -Wshadow -Wconversion -Werror'
ASAN='-fsanitize=address,bounds,alignment -fno-sanitize-recover=all'
if [ ! -f "$IMPL" ]; then
    IMPL="$OUT/impl.o"
    $CC -std=c99 -O2 -c "$ROOT/tests/impl.c" -o "$IMPL" || { fail 'the header compiles'; finish; }
fi

# ---- the emulation ------------------------------------------------------------------------------------

source_of() { if [ "$1" = views ]; then echo "$ROOT/tests/test_views.c"; else echo "$ROOT/tests/cuda/test_$1.c"; fi; }

# build NAME FLAGS: the .cu as C++ and the programs, each as PROGRAM.NAME
build() {
    name=$1 flags=$2 sections=''
    [ "$name" = asan ] && sections='-fsanitize-sections=emu_shared' # static shared memory lies there
    # shellcheck disable=SC2086 # flags are split on purpose
    $CXX -std=c++17 $flags $sections $WARN -I"$ROOT/tests/cuda" -x c++ -c "$ROOT/contrastive_cuda.cu" \
        -o "cu.$name.o" >"build.$name.log" 2>&1 || return 1
    for t in verbs steps faults views; do
        # shellcheck disable=SC2086
        $CC -std=c99 $flags $WARN -pedantic -DCONTRASTIVE_CUDA -DCTR_TEST_EMULATION \
            -DTEST_DIR="\"$ROOT/tests\"" -c "$(source_of $t)" -o "$t.$name.o" \
            >>"build.$name.log" 2>&1 &&
            $CXX $flags "$t.$name.o" "cu.$name.o" "$IMPL" -o "$t.$name" -lm -lpthread \
                >>"build.$name.log" 2>&1 || return 1
    done
}

# try TEXT PROGRAM [OPTION]: it must succeed; $RUN before it may set its environment
try() {
    text=$1 program=$2
    shift 2
    # shellcheck disable=SC2086
    if $LIMIT_RUN env $RUN $PREFIX "./$program" "$@" >"$program.log" 2>&1; then
        ok "$text: $(tail -n 1 "$program.log")"
    else
        fail "$text ($RUN ./$program $*)"
        grep -e '^FAIL' -e ERROR -e WARNING -e 'runtime error' -e '^emulation' "$program.log" |
            sed -n '1,8s/^/     /p'
    fi
}

# found N WORDS: with fault N in it, faults.NAME must fail, for one of the reasons
found() {
    # shellcheck disable=SC2086
    if $LIMIT_RUN env CUDAEMU_FAULT="$1" $RUN $PREFIX "./faults.$name" >"fault.log" 2>&1; then
        fail "fault $1 is not found ($name $RUN)"
    elif grep -q -e "$2" fault.log; then
        ok "fault $1 ($name $RUN): $(grep -m 1 -e "$2" fault.log | cut -c1-90)"
    else
        fail "fault $1 ($name $RUN) ends without a word of '$2'"
    fi
}

LIMIT_RUN=''
[ -n "${LIMIT:-}" ] && LIMIT_RUN="$LIMIT 300"
PREFIX='' RUN=''
QUICKLY=''
[ "$QUICK" = 1 ] && QUICKLY=--quick
rm -f kernels
case "$($CXX --version | sed 1q)" in *clang*) gnu=0 ;; *) gnu=1 ;; esac
if [ $gnu = 0 ]; then
    skip 'the emulation: it wants g++'
elif ! build plain -O1; then
    fail "the emulated build: see $OUT/build.plain.log"
    sed -n '1,8s/^/     /p' build.plain.log
else
    RUN="CUDAEMU_KERNELS=$OUT/kernels"
    try 'every verb' verbs.plain
    try 'steps of every method' steps.plain $QUICKLY
    try 'augmented views' views.plain --device cuda
    # each kernel of the file has run
    grep -o 'LAUNCH((*k_[a-z_]*' "$ROOT/contrastive_cuda.cu" | sed 's/.*(//' | sort -u >kernels.all
    sed 's/^(*//;s/<.*//' kernels | sort -u >kernels.ran
    missing=$(grep -v -x -F -f kernels.ran kernels.all | tr '\n' ' ')
    if [ -n "$missing" ]; then fail "kernels that never ran: $missing"; else
        ok "each of the $(wc -l <kernels.all | tr -d ' ') kernels ran"; fi
    for order in 1 2 3; do
        RUN="CUDAEMU_ORDER=$order"
        try "every verb, another order of threads and blocks" verbs.plain --quick
        try "augmented views, the same" views.plain --device cuda --quick
    done
    RUN=CUDAEMU_DEFER=1
    try 'every verb, streams that run late' verbs.plain --quick
    try 'steps, streams that run late' steps.plain --quick
    name=plain RUN='A=0'
    try 'the program with the faults, without them' faults.plain
    found 10 'different __syncthreads'
    RUN=CUDAEMU_ORDER=1
    found 9 'FAIL updates'
    RUN=CUDAEMU_DEFER=1
    found 7 'FAIL'
    found 8 'FAIL copies'
fi

RUN='A=0'
if [ $gnu = 0 ] || [ "$QUICK" = 1 ]; then :
elif ! build asan "-O1 -g1 $ASAN"; then
    skip 'the address sanitizer is missing here'
else
    try 'every verb, address sanitizer' verbs.asan --quick
    RUN=CUDAEMU_ORDER=2
    try 'steps, address sanitizer' steps.asan --quick
    try 'augmented views, address sanitizer' views.asan --device cuda --quick
    try 'the program with the faults, without them' faults.asan
    found 1 'out of bounds'
    found 4 'out of bounds'
    found 6 'heap-buffer-overflow'
fi

RUN='A=0'
if [ $gnu = 0 ] || [ "$QUICK" = 1 ]; then :
elif ! build tsan '-O1 -g1 -fsanitize=thread'; then
    skip 'the thread sanitizer is missing here'
else
    if ! ./faults.tsan >tsan.log 2>&1; then PREFIX="setarch $(uname -m) -R"; fi
    try 'the program with the faults, without them' faults.tsan
    try 'every verb, thread sanitizer' verbs.tsan --quick
    try 'augmented views, thread sanitizer' views.tsan --device cuda --quick
    found 2 'data race'
    found 3 'data race'
    found 5 'data race'
    PREFIX=''
fi

# ---- nvcc ---------------------------------------------------------------------------------------------

if ! command -v nvcc >/dev/null 2>&1; then
    skip 'nvcc is not here'
elif [ "$QUICK" = 0 ]; then
    targets=''
    for target in 80 90a 100; do
        targets="$targets -gencode arch=compute_$target,code=sm_$target"
    done
    # shellcheck disable=SC2086
    if nvcc -O3 $targets -Xcompiler -Wall,-Wextra,-Wshadow,-Wconversion --Werror all-warnings \
        -c "$ROOT/contrastive_cuda.cu" -o nvcc.o >nvcc.log 2>&1 && [ ! -s nvcc.log ]
    then ok 'nvcc for sm_80, sm_90a and sm_100'
    else fail "nvcc: see $OUT/nvcc.log"; fi
fi
if command -v nvcc >/dev/null 2>&1 && command -v nvidia-smi >/dev/null 2>&1 &&
    nvidia-smi -L 2>/dev/null | grep -q GPU; then
    for t in verbs steps views; do
        option=''
        [ $t = views ] && option='--device cuda'
        if $CC -std=c99 -O1 -DCONTRASTIVE_CUDA -DTEST_DIR="\"$ROOT/tests\"" -c \
            "$(source_of $t)" -o "$t.gpu.o" &&
            nvcc -O3 -arch=native "$ROOT/contrastive_cuda.cu" "$t.gpu.o" "$IMPL" -o "$t.gpu" -lcublas
        then try "$t on the GPU" "$t.gpu" $option # split on purpose
        else fail "$t for the GPU does not compile"; fi
    done
fi
finish
