#!/bin/sh
# Trains every method twice with the same options, by our examples and by PyTorch, and judges both
# by the same k-NN and linear probe: are our methods as good as others?
#
#     PYTHON=/path/to/venv/bin/python sh bench/methods.sh --data DIR [--epochs 3] [--arch resnet8]
#                   [--only simclr,moco,...] [--threads 1] [--seeds 1] [--keep DIR] [--write] [--curve]
#
# DIR holds train/CLASS/ and test/CLASS/ with pictures of 32 x 32 pixels. Python needs torch,
# torchvision and lightly. --keep: where features and logs go (a temporary folder without it); what
# is there already is not run again. --curve: scores after each epoch, one line for each side.
# --write appends the table to bench/RESULTS.md. Seconds are of training alone, with --threads.
set -u
here=$(cd "$(dirname "$0")" && pwd)
all=simclr,supcon,moco,moco3,byol,simsiam,barlow_twins,vicreg,swav,deepcluster,facenet,npid,pirl
data= epochs=3 arch=resnet8 only=$all threads=1 seeds=1 keep= write=0 curve=0
while [ $# -gt 0 ]; do
    case $1 in
    --write) write=1 ;;
    --curve) curve=1 ;;
    --data | --epochs | --arch | --only | --threads | --seeds | --keep)
        [ $# -gt 1 ] || { echo "methods.sh: $1 needs a value" >&2; exit 2; }
        eval "${1#--}=\$2"
        shift ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 2 ;;
    esac
    shift
done
[ -d "$data/train" ] && [ -d "$data/test" ] ||
    { echo "methods.sh: --data: expected a folder with train/ and test/, got '$data'" >&2; exit 2; }
python=${PYTHON:-python3}
"$python" -c 'import torch, lightly' 2>/dev/null ||
    { echo "methods.sh: no torch and lightly in $python (set PYTHON)" >&2; exit 2; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
[ -n "$keep" ] || keep=$work/keep
mkdir -p "$keep"

field() { printf '%s\n' "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
fail() { echo "methods.sh: $*" >&2; exit 1; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%+.1f", a - b }'; }
round() { awk -v a="$1" 'BEGIN { printf "%.1f", a }'; }

${CC:-cc} -O2 -o "$work/judge" "$here/judge.c" -lm -lpthread || fail "judge.c does not compile"

# ours METHOD EPOCHS SEED: the example's result line
ours() {
    program=$1 extra=
    case $1 in
    supcon) program=simclr extra=--labels ;;
    moco3) program=moco extra="--version 3" ;;
    deepcluster) extra="--version 2" ;;
    deepcluster1) program=deepcluster extra="--version 1" ;;
    esac
    log=$keep/ours_$1_$2_$3.log
    if ! grep -q '^result ' "$log" 2>/dev/null; then
        [ -x "$work/$program" ] || ${CC:-cc} -O2 -o "$work/$program" \
            "$here/../examples/$program.c" -lm -lpthread || fail "$program.c does not compile"
        "$work/$program" --data "$data" --arch "$arch" --epochs "$2" --seed "$3" \
            --threads "$threads" --out "$work/out_$1_$2_$3" $extra >"$log" 2>&1 ||
            fail "ours, $1: $(tail -n 1 "$log")"
    fi
    grep '^result ' "$log"
}

# peer METHOD SEED: the script's last line; features are in $keep/peer_METHOD_SEED
peer() {
    log=$keep/peer_$1_$2.log
    if ! grep -q '^peer ' "$log" 2>/dev/null; then
        more=
        [ $curve = 1 ] && more=--curve
        "$python" "$here/peers/methods.py" --method "$1" --data "$data" --out "$keep/peer_$1_$2" \
            --arch "$arch" --epochs "$epochs" --seed "$2" --threads "$threads" $more \
            >"$log" 2>&1 || fail "peer, $1: $(tail -n 1 "$log")"
    fi
    grep '^peer ' "$log"
}

score() { # METHOD SEED EPOCH: of the peer's features
    "$work/judge" "$keep/peer_$1_$2" "$3" || fail "judge $1"
}

images=$(find "$data/train" -type f | wc -l)
table=$work/table
{
    printf '| method | untrained: k-NN, probe | ours | PyTorch | difference | training, s: ours | PyTorch |\n'
    printf '|---|---|---|---|---|---|---|\n'
} >"$table"
for m in $(echo "$only" | tr ',' ' '); do
    for seed in $(echo "$seeds" | tr ',' ' '); do
        b=$(peer "$m" "$seed") || exit 1
        scored=$(score "$m" "$seed" "$epochs")
        a=$(ours "$m" "$epochs" "$seed") || exit 1
        took=$(awk -v rate="$(field "$a" images_per_s)" -v epochs="$epochs" -v images="$images" \
            'BEGIN { printf "%.0f", epochs * images / rate }')
        row=$(printf '| %s | %s, %s | %s, %s | %s, %s | %s, %s | %s | %s |' \
            "$m$([ "$seeds" = 1 ] || echo " seed $seed")" \
            "$(round "$(field "$a" knn_random)")" "$(round "$(field "$a" linear_random)")" \
            "$(round "$(field "$a" knn)")" "$(round "$(field "$a" linear)")" \
            "$(round "$(field "$scored" knn)")" "$(round "$(field "$scored" linear)")" \
            "$(minus "$(field "$a" knn)" "$(field "$scored" knn)")" \
            "$(minus "$(field "$a" linear)" "$(field "$scored" linear)")" \
            "$took" "$(round "$(field "$b" seconds)")")
        echo "$row" >>"$table"
        echo "$row"
        [ $curve = 1 ] || continue
        e=1
        while [ $e -le "$epochs" ]; do
            scored=$(score "$m" "$seed" $e)
            echo "    $m, epoch $e: PyTorch's k-NN $(field "$scored" knn), probe" \
                "$(field "$scored" linear)" | tee -a "$work/curves"
            e=$((e + 1))
        done
    done
done

versions=$("$python" -c 'import torch, torchvision, lightly
print("torch %s, torchvision %s, lightly %s" % (torch.__version__, torchvision.__version__,
                                                lightly.__version__))')
report() {
    printf '\n## Quality beside PyTorch, %s, commit %s\n\n' "$(date +%Y-%m-%d)" \
        "$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '%s, %d epochs, %d training and %d test images, %s; load at the end %s. Each pair is k-NN and\n' \
        "$arch" "$epochs" "$images" \
        "$(find "$data/test" -type f | wc -l)" "$versions" "$(cut -d ' ' -f 1 /proc/loadavg)"
    printf 'linear probe on the test images, in %%, by our evaluation for both sides.\n\n'
    cat "$table"
    [ -f "$work/curves" ] && { echo; cat "$work/curves"; }
    return 0
}
report
[ $write = 1 ] && report >>"$here/RESULTS.md"
exit 0
