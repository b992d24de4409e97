#!/bin/sh
# Trains every method twice with the same options, by our examples and by PyTorch, and judges both
# by the same k-NN and linear probe: are our methods as good as others?
#
#     PYTHON=/path/to/venv/bin/python sh bench/methods.sh --data DIR [--epochs 3] [--arch resnet8]
#                   [--only simclr,moco,...] [--threads 1] [--seeds 1,2,3] [--keep DIR] [--write]
#                   [--curve] [--no-seconds] [--options "--lr 0.1 --temperature 0.2"]
#
# DIR holds train/CLASS/ and test/CLASS/ with pictures of 32 x 32 pixels. Python needs torch,
# torchvision and lightly; without them the peer's numbers are those of the newest row for the method
# in RESULTS.md, and are called cached. --seeds: a row for each of ours; the peer has the first one.
# --options: for both sides, in place of the example's defaults. --keep: where features and logs go
# (a temporary folder without it); what is there already is not run again. --curve: scores after each
# epoch, one line for each side. --write appends the table to bench/RESULTS.md. Seconds are of
# training alone, with --threads, by the wall clock: --no-seconds for a machine that is shared.
set -u
here=$(cd "$(dirname "$0")" && pwd)
all=simclr,supcon,moco,moco3,byol,simsiam,barlow_twins,vicreg,swav,deepcluster,facenet,npid,pirl,deepcluster1
data= epochs=3 arch=resnet8 only=$all threads=1 seeds=1 keep= write=0 curve=0 clock=1 options=
while [ $# -gt 0 ]; do
    case $1 in
    --write) write=1 ;;
    --curve) curve=1 ;;
    --no-seconds) clock=0 ;;
    --data | --epochs | --arch | --only | --threads | --seeds | --keep | --options)
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
python=${PYTHON:-python3} torch=1
"$python" -c 'import torch, lightly' 2>/dev/null || torch=0
[ $torch = 1 ] ||
    echo "methods.sh: no torch and lightly in $python (set PYTHON): cached numbers of the peer"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
[ -n "$keep" ] || keep=$work/keep
mkdir -p "$keep"

field() { printf '%s\n' "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
fail() { echo "methods.sh: $*" >&2; exit 1; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%+.1f", a - b }'; }
round() { awk -v a="$1" 'BEGIN { printf a == "-" ? a : "%.1f", a }'; }

${CC:-cc} -O2 -o "$work/judge" "$here/judge.c" -lm -lpthread || fail "judge.c does not compile"

# what is kept is known by all that it depends on
name() { # METHOD SEED
    printf '%s_%s_%s_%s%s' "$1" "$arch" "$epochs" "$2" "$(printf '%s' "$options" | tr -c 'a-z0-9.' _)"
}

# ours METHOD SEED: the example's result line; checkpoints of the epochs in $keep/ours_NAME/
ours() {
    program=$1 extra=
    case $1 in
    supcon) program=simclr extra=--labels ;;
    moco3) program=moco extra="--version 3" ;;
    deepcluster) extra="--version 2" ;;
    deepcluster1) program=deepcluster extra="--version 1" ;;
    esac
    log=$keep/ours_$(name "$1" "$2").log
    if ! grep -q '^result ' "$log" 2>/dev/null; then
        [ -x "$work/$program" ] || ${CC:-cc} -O2 -o "$work/$program" \
            "$here/../examples/$program.c" -lm -lpthread || fail "$program.c does not compile"
        out=$work/out_$(name "$1" "$2")
        # shellcheck disable=SC2086
        "$work/$program" --data "$data" --arch "$arch" --epochs "$epochs" --seed "$2" \
            --threads "$threads" --out "$out" $extra $options >"$log" 2>&1 &
        pid=$!
        [ $curve = 1 ] && checkpoints "$pid" "$log" "$out/checkpoint.safetensors" "${log%.log}"
        wait $pid || fail "ours, $1: $(tail -n 1 "$log")"
    fi
    grep '^result ' "$log"
}

# checkpoints PID LOG FILE FOLDER: a copy of the file after each epoch; it is saved after the epoch's
# line is printed, and the next epoch takes longer than the wait
checkpoints() {
    mkdir -p "$4"
    seen=0
    while kill -0 "$1" 2>/dev/null; do
        now=$(grep -c '^epoch  *[0-9]*  loss' "$2")
        if [ "$now" -gt $seen ]; then
            sleep 1
            seen=$now
            cp "$3" "$4/$seen"
        fi
        sleep 0.3
    done
}

# peer METHOD SEED: the script's last line; features are in $keep/peer_NAME
peer() {
    log=$keep/peer_$(name "$1" "$2").log
    if ! grep -q '^peer ' "$log" 2>/dev/null; then
        more=
        [ $curve = 1 ] && more=--curve
        # shellcheck disable=SC2086
        "$python" "$here/peers/methods.py" --method "$1" --data "$data" --out "${log%.log}" \
            --arch "$arch" --epochs "$epochs" --seed "$2" --threads "$threads" $more $options \
            >"$log" 2>&1 || fail "peer, $1: $(tail -n 1 "$log")"
    fi
    grep '^peer ' "$log"
}

score() { # METHOD SEED EPOCH: of the peer's features
    "$work/judge" "$keep/peer_$(name "$1" "$2")" "$3" || fail "judge $1"
}

# cached METHOD: the peer's "k-NN, probe" and its seconds from the newest row of RESULTS.md
cached() {
    [ -z "$options" ] || return 0
    awk -F ' *[|] *' -v m="$1" -v a="$arch, $epochs epochs," '
        /^## / { ours = 0 }
        index($0, a) == 1 { ours = 1 }
        ours && ($2 == m || $2 == m " seed 1") && $5 ~ /,/ { pair = $5; seconds = $8 }
        END { if (pair != "") printf "knn=%s linear=%s seconds=%s\n", substr(pair, 1,
                  index(pair, ",") - 1), substr(pair, index(pair, ",") + 2), seconds }' \
        "$here/RESULTS.md"
}

images=$(find "$data/train" -type f | wc -l)
table=$work/table
{
    printf '| method | untrained: k-NN, probe | ours | PyTorch | difference | training, s: ours | PyTorch |\n'
    printf '|---|---|---|---|---|---|---|\n'
} >"$table"
first=${seeds%%,*}
for m in $(echo "$only" | tr ',' ' '); do
    b= scored=
    if [ $torch = 1 ]; then
        b=$(peer "$m" "$first") || exit 1
        scored=$(score "$m" "$first" "$epochs")
    else
        b=$(cached "$m") scored=$b
    fi
    for seed in $(echo "$seeds" | tr ',' ' '); do
        a=$(ours "$m" "$seed") || exit 1
        took=$(awk -v rate="$(field "$a" images_per_s)" -v epochs="$epochs" -v images="$images" \
            'BEGIN { printf "%.0f", epochs * images / rate }')
        [ $clock = 1 ] || took=- b="seconds=-"
        theirs="- | - | $took | -"
        [ -z "$scored" ] || theirs=$(printf '%s, %s | %s, %s | %s | %s' \
            "$(round "$(field "$scored" knn)")" "$(round "$(field "$scored" linear)")" \
            "$(minus "$(field "$a" knn)" "$(field "$scored" knn)")" \
            "$(minus "$(field "$a" linear)" "$(field "$scored" linear)")" \
            "$took" "$(round "$(field "$b" seconds)")")
        row=$(printf '| %s | %s, %s | %s, %s | %s |' \
            "$m$([ "$seeds" = "$first" ] || echo " seed $seed")" \
            "$(round "$(field "$a" knn_random)")" "$(round "$(field "$a" linear_random)")" \
            "$(round "$(field "$a" knn)")" "$(round "$(field "$a" linear)")" "$theirs")
        echo "$row" >>"$table"
        echo "$row"
    done
    [ $curve = 1 ] || continue
    e=1
    while [ $e -le "$epochs" ]; do
        mine=$("$work/judge" --checkpoint "$data" "$keep/ours_$(name "$m" "$first")/$e")
        line="    $m, epoch $e: ours k-NN $(field "$mine" knn), probe $(field "$mine" linear)"
        [ $torch = 0 ] || scored=$(score "$m" "$first" $e)
        [ $torch = 0 ] || line="$line; PyTorch k-NN $(field "$scored" knn), probe $(
            field "$scored" linear)"
        echo "$line" | tee -a "$work/curves"
        e=$((e + 1))
    done
done

versions="the peer cached"
[ $torch = 0 ] || versions=$("$python" -c 'import torch, torchvision, lightly
print("torch %s, torchvision %s, lightly %s" % (torch.__version__, torchvision.__version__,
                                                lightly.__version__))')
report() {
    printf '\n## Quality beside PyTorch, %s, commit %s\n\n' "$(date +%Y-%m-%d)" \
        "$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '%s, %d epochs, %d training and %d test images, %s%s; load at the end %s. Each pair is k-NN and\n' \
        "$arch" "$epochs" "$images" \
        "$(find "$data/test" -type f | wc -l)" "${options:+$options, }" "$versions" "$(cut -d ' ' -f 1 /proc/loadavg)"
    printf 'linear probe on the test images, in %%, by our evaluation for both sides.\n\n'
    cat "$table"
    [ -f "$work/curves" ] && { echo; cat "$work/curves"; }
    return 0
}
report
[ $write = 1 ] && report >>"$here/RESULTS.md"
exit 0
