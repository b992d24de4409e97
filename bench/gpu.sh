#!/bin/sh
# Measures contrastive_cuda.cu on this machine's GPU, and PyTorch beside it on the same one.
#
#     sh bench/gpu.sh [--quick] [--peers] [--write] [--seconds S] [--only LIST] [--compile]
#
# --peers    also runs bench/peers/gpu.py, with $PYTHON or python3, whose torch must see the GPU
# --quick    half a second for everything: does it work at all?
# --write    appends tables and lines to bench/RESULTS.md; otherwise nothing is left behind
# --only     a list with commas out of: resnet18,resnet50,epoch,conv,nt_xent
# --seconds  of measuring each (default 5)
# --compile  compiles gpu.c and the companion for sm_80, sm_90a and sm_100 and stops: needs no GPU
#
# nvcc is $NVCC, the one on the path, or /usr/local/cuda/bin/nvcc. Results are compared with the CPU's
# before anything is timed. Without a GPU it says so in one line, and its status is 1.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
seconds='' quick=0 peers=0 write=0 compile=0 only=resnet18,resnet50,epoch,conv,nt_xent
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=1 ;;
    --peers) peers=1 ;;
    --write) write=1 ;;
    --compile) compile=1 ;;
    --seconds | --only)
        [ $# -gt 1 ] || { echo "gpu.sh: $1 needs a value" >&2; exit 2; }
        case $1 in
        --seconds) seconds=$2 ;;
        --only) only=$2 ;;
        esac
        shift ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 2 ;;
    esac
    shift
done
[ $quick = 1 ] && seconds=${seconds:-0.5}
seconds=${seconds:-5}
fail() { echo "gpu.sh: $*" >&2; exit 1; }

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || fail 'there is no nvcc: install the CUDA toolkit, or name it in $NVCC'
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# build TARGETS...: gpu.c is C99 that is also C++11, which nvcc wants
build() {
    "$nvcc" -O3 "$@" -DCONTRASTIVE_CUDA -x cu "$here/gpu.c" "$root/contrastive_cuda.cu" \
        -o "$work/gpu" -lcublas >"$work/log" 2>&1 && return
    sed -n '1,12p' "$work/log" >&2
    fail 'it does not compile'
}
if [ $compile = 1 ]; then
    build -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
        -gencode arch=compute_100,code=sm_100
    echo 'gpu.sh: compiles for sm_80, sm_90a and sm_100'
    exit 0
fi
{ command -v nvidia-smi && nvidia-smi -L | grep GPU; } >/dev/null 2>&1 ||
    fail 'there is no NVIDIA GPU here (nvidia-smi names none)'
build -arch=native

"$work/gpu" --seconds "$seconds" --only "$only" >"$work/lines" || fail 'stopped; see above'
python=${PYTHON:-python3}
if [ $peers = 1 ]; then
    "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
        fail "$python has no torch that sees the GPU: go without --peers, or name another in \$PYTHON"
    "$python" "$here/peers/gpu.py" --seconds "$seconds" --only "$only" >>"$work/lines" ||
        fail 'peers/gpu.py stopped; see above'
fi

# ---- the tables -------------------------------------------------------------------------------------

# best NAME SHAPE VARIANT KEY: of the peer's lines; the least value, or nothing
best() {
    grep "^peer name=$1 variant=$3 .*shape=$2 " "$work/lines" | tr ' ' '\n' | sed -n "s/^$4=//p" |
        sort -n | sed 1q
}
mine() { grep "^bench name=$1 shape=$2 " "$work/lines" | tr ' ' '\n' | sed -n "s/^$3=//p" | sed 1q; }
over() { awk -v a="${1:-0}" -v b="${2:-0}" 'BEGIN { if (a > 0 && b > 0) printf "%.2f", a / b; else print "-" }'; }

# versus NAME SHAPE KEY GOAL GOAL: a line of the first table; the ratios are the peer's time over ours
versus() {
    ours=$(mine "gpu_$1" "$2" "$3")
    [ -n "$ours" ] || return 0
    eager=$(best "gpu_$1" "$2" eager "$3") compiled=$(best "gpu_$1" "$2" compile "$3")
    echo "| $1 $2 | $ours | ${eager:--} | $(over "$eager" "$ours") (goal $4) | ${compiled:--} |" \
        "$(over "$compiled" "$ours") (goal $5) |"
}
{
    echo "| work | ours, $(sed -n 's/^device //p' "$work/lines") | PyTorch eager | ratio | compiled | ratio |"
    echo '|---|---|---|---|---|---|'
    versus step resnet18:bf16 ms 1.5 1.0
    versus step resnet18:tf32 ms 1.0 -
    versus step resnet50:bf16 ms - 0.8
    versus step resnet50:tf32 ms - -
    versus epoch bf16 seconds 2.0 -
    versus epoch tf32 seconds - -
    versus nt_xent fp32 ms - -
    [ -n "$(mine gpu_nt_xent fp32 ratio)" ] &&
        echo "| nt_xent over its matrix products | $(mine gpu_nt_xent fp32 ratio) (goal 1.3 or less) | | | | |"
    echo
    echo '| convolution | ms | TFLOP/s | share of the equal cuBLAS product | PyTorch, ms |'
    echo '|---|---|---|---|---|'
    grep '^bench name=gpu_conv ' "$work/lines" | sed 's/.*shape=\([^ ]*\).*/\1/' | while read -r shape; do
        echo "| $shape | $(mine gpu_conv "$shape" ms) | $(mine gpu_conv "$shape" value) |" \
            "$(mine gpu_conv "$shape" share) | $(best gpu_conv "$shape" eager ms) |"
    done
} >"$work/table"
cat "$work/table"
if [ $write = 1 ]; then
    {
        echo
        echo "## GPU, $(date +%Y-%m-%d)"
        echo
        cat "$work/table"
        echo
        sed 's/^/    /' "$work/lines"
    } >>"$here/RESULTS.md"
fi
