#!/bin/sh
# Measures the library, and PyTorch and OpenBLAS beside it, and prints tables of ratios.
#
#     sh bench/run.sh [--quick] [--peers] [--write] [--threads N] [--rounds R] [--only LIST]
#                      [--cases LIST] [--seconds S]
#
# --peers    also runs bench/peers/*.py, with $PYTHON or python3, where torch is found there; without
#            it the peers' numbers are the fastest ones kept in RESULTS.md, and are called cached
# --quick    half a second and one round for everything, fewer cases: does it work at all?
# --write    appends tables and lines to bench/RESULTS.md; otherwise nothing is left behind
# --only     a list with commas out of: kernels,gemm,step,scaling,augment,loss,embed,data,cluster,
#            startup
# --seconds  of measuring in each turn (default 4)
# --cases    of step: resnet20,resnet18,resnet18x64,resnet8,resnet8x8,resnet50
#
# Everything is compiled with `cc -O2` alone ($CC is heeded). Ours and the peer's programs run by
# turns, A B A B, with the same number of threads; each turn gives one ratio, and the tables show
# the median ratio and the range. Of PyTorch the fastest variant counts, found in a first pass over
# all of them. "processor" compares processor time of all threads instead of the wall clock, which
# other work on the machine disturbs far less; waiting threads that spin count as working.
set -u
here=$(cd "$(dirname "$0")" && pwd)
quick=0 peers=0 write=0 rounds= seconds= threads=$(getconf _NPROCESSORS_ONLN)
only=kernels,gemm,step,scaling,augment,loss,embed,data,cluster,startup
cases=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=1 ;;
    --peers) peers=1 ;;
    --write) write=1 ;;
    --threads | --rounds | --seconds | --only | --cases)
        [ $# -gt 1 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
        case $1 in
        --threads) threads=$2 ;;
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --only) only=$2 ;;
        --cases) cases=$2 ;;
        esac
        shift ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 2 ;;
    esac
    shift
done
if [ $quick = 1 ]; then
    seconds=${seconds:-0.5} rounds=${rounds:-1}
    cases=${cases:-resnet20,resnet18}
else
    seconds=${seconds:-4} rounds=${rounds:-5}
fi
cases=${cases:-resnet20,resnet18,resnet18x64,resnet8,resnet8x8,resnet50}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
: >"$work/lines"     # every line that a program printed
: >"$work/table"

fail() { echo "run.sh: $*" >&2; exit 1; }
say() { printf '%s\n' "$*" >&2; }
wanted() { case ",$only," in *",$1,"*) return 0 ;; esac; return 1; }

# field LINE KEY: the value of key=value
field() { printf '%s\n' "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }

# median, least and largest of the numbers on stdin, in one line
spread() {
    sort -n | awk '{ v[NR] = $1 }
        END { if (NR) printf "%.4g %.4g %.4g\n", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2,
                             v[1], v[NR] }'
}

compile() { # NAME [LIBRARIES]: compiles bench/NAME.c
    name=$1
    shift
    ${CC:-cc} -O2 -o "$work/$name" "$here/$name.c" "$@" -lm -lpthread
}

# ours PROGRAM OPTIONS...: runs it, keeps and prints its last line
ours() {
    program=$1
    shift
    "$work/$program" "$@" >"$work/out" || fail "$program $*: failed"
    cat "$work/out" >>"$work/lines"
    tail -n 1 "$work/out"
}

# peer SCRIPT OPTIONS...: the same for bench/peers/SCRIPT.py; an empty line if it failed
peer() {
    script=$1
    shift
    if "$python" "$here/peers/$script.py" "$@" >"$work/out" 2>"$work/err"; then
        cat "$work/out" >>"$work/lines"
        tail -n 1 "$work/out"
    else
        say "peers/$script.py $*: failed: $(tail -n 1 "$work/err")"
    fi
}

# cached PATTERN KEY: the line of RESULTS.md that matches and has the least value of a key, in the
# newest of its runs: they are of different machines
cached() {
    grep -E "^## 20|^ *(peer|bench) .*$1" "$here/RESULTS.md" 2>/dev/null | awk -v key=" $2=" '
        /^## / { found = 0; next }
        { at = index($0, key); if (!at) next; v = substr($0, at + length(key)) + 0
          if (!found || v < least) { least = v; line = $0; found = 1 } }
        END { if (found) print line }'
}

# row WORK OURS UNIT PEER RATIO PROCESSOR GOAL
row() { printf '| %s | %s %s | %s | %s | %s | %s |\n' "$@" >>"$work/table"; }

# ratio A B: A / B, or a dash
ratio() {
    awk -v a="$1" -v b="$2" 'BEGIN { if (a > 0 && b > 0) printf "%.4g\n", a / b; else print "-" }'
}

# duel WORK GOAL SCALE UNIT: runs us and peer_cmd by turns. us and them are functions that print a
# line with ms= and cpu_ms=; the value shown is SCALE / ms, or ms where SCALE is 0.
duel() {
    work_name=$1 goal=$2 scale=$3 unit=$4
    : >"$work/wall"; : >"$work/cpu"; : >"$work/a"; : >"$work/b"
    r=0
    while [ $r -lt "$rounds" ]; do
        a=$(us) || exit 1
        b=$(them)
        field "$a" ms >>"$work/a"
        [ -n "$b" ] && field "$b" ms >>"$work/b"
        [ -n "$b" ] && ratio "$(field "$b" ms)" "$(field "$a" ms)" >>"$work/wall"
        [ -n "$b" ] && ratio "$(field "$b" cpu_ms)" "$(field "$a" cpu_ms)" >>"$work/cpu"
        r=$((r + 1))
    done
    shown() { awk -v ms="$1" -v scale="$scale" \
        'BEGIN { if (ms == "") print "-"; else printf "%.4g", (scale > 0 ? scale / ms : ms) }'; }
    set -- $(spread <"$work/a") - - -
    mine=$(shown "$1")
    set -- $(spread <"$work/b") "" "" ""
    theirs=$(shown "$1")
    set -- $(spread <"$work/wall") - - -
    wall="$1 ($2 .. $3)"
    set -- $(spread <"$work/cpu") - - -
    row "$work_name" "$mine" "$unit" "$theirs ($label)" "$wall" "$1 ($2 .. $3)" "$goal"
    say "$work_name: $mine $unit, $label $theirs, ratio $wall, processor $1"
    last_a=$a last_b=$b
}

# best SCRIPT VARIANTS OPTIONS...: tries the variants once each, sets variant to the fastest
best() {
    script_name=$1 list=$2
    shift 2
    variant= least=
    for v in $list; do
        line=$(peer "$script_name" --variants "$v" --seconds "$seconds" "$@")
        ms=$(field "$line" ms)
        [ -n "$ms" ] || continue
        if [ -z "$least" ] || awk -v a="$ms" -v b="$least" 'BEGIN { exit !(a < b) }'; then
            least=$ms variant=$v
        fi
    done
}

# alone WORK GOAL SCALE UNIT PATTERN: ours only, beside a cached peer
alone() {
    kept=$(cached "$5" ms)
    label="not measured"
    [ -n "$kept" ] && label="cached, $(field "$kept" variant)"
    them() { :; }
    duel "$1" "$2" "$3" "$4" 2>/dev/null
    if [ -n "$kept" ]; then     # the last row once more, with the cached number
        mine_ms=$(spread <"$work/a" | cut -d ' ' -f 1)
        sed '$d' "$work/table" >"$work/t" && mv "$work/t" "$work/table"
        row "$1" "$mine" "$4" "$(shown "$(field "$kept" ms)") ($label)" \
            "[$(ratio "$(field "$kept" ms)" "$mine_ms")], of two runs" "-" "$2"
    fi
    last_b=$kept
}

table() { # TITLE: begins a table
    printf '\n### %s\n\n| work | ours | beside it | ratio | processor | goal |\n' "$1" >>"$work/table"
    printf '|---|---|---|---|---|---|\n' >>"$work/table"
}

# ---- what there is ---------------------------------------------------------------------------

say "compiling with ${CC:-cc} -O2"
for program in machine kernels step augment loss embed data cluster; do
    compile $program || fail "$program.c does not compile"
done
openblas=0
if compile openblas -lopenblas 2>/dev/null || compile openblas -l:libopenblas.so.0 2>/dev/null; then
    openblas=1
else
    say "no libopenblas here: its comparison is skipped"
fi
python=${PYTHON:-python3}
versions= faiss=
if [ $peers = 1 ] && wanted cluster; then
    faiss=$("$python" -c 'import faiss; print("faiss-cpu", faiss.__version__)' 2>/dev/null) ||
        say "no faiss in $python (set PYTHON): its cached numbers instead"
fi
if [ $peers = 1 ]; then
    versions=$("$python" -c 'import torch, torchvision
print("torch %s, torchvision %s" % (torch.__version__, torchvision.__version__))' 2>/dev/null)
    if [ -z "$versions" ]; then
        say "no torch with torchvision in $python (set PYTHON): cached numbers of peers instead"
        peers=0
    fi
fi
machine=$("$work/machine" --threads "$threads")
say "$machine"
commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)

# ---- training steps --------------------------------------------------------------------------

memory_row() { # WORK: peak memory of the two processes of the last duel
    a=$(field "$last_a" peak_mb)
    b=$(field "$last_b" peak_mb)
    printf '| %s | %s MB | %s MB, %s after import | %s | - | 0.5 |\n' "$1" "$a" "${b:--}" \
        "$(field "$last_b" import_mb)" "$(ratio "$a" "${b:-0}")" >>"$work/memory"
}

step_case() { # NAME VIEWS TEXT GOAL
    case ",$cases," in *",$1,"*) ;; *) return ;; esac
    ours step --only "$1" --threads "$threads" --seconds 0 >/dev/null || exit 1    # verifies
    us() { ours step --only "$case_name" --threads "$threads" --seconds "$seconds" --checked 1; }
    case_name=$1
    if [ $peers = 1 ]; then
        best simclr_step "nchw channels_last compile compile_cl" --cases "$1" --threads "$threads"
        label="PyTorch $variant"
        them() { peer simclr_step --variants "$variant" --cases "$case_name" --threads "$threads" \
            --seconds "$seconds"; }
        duel "$3" "$4" "${2}000" views/s
    else
        net=${1%x*}
        alone "$3" "$4" "${2}000" views/s \
            "name=simclr_step .*threads=$threads net=$net .*views=2x$(($2 / 2)) "
    fi
    memory_row "$3"
}

: >"$work/memory"
if wanted step; then
    table "SimCLR training step, $threads threads (ratio: times as fast)"
    step_case resnet20 256 "ResNet-20, 32x32, 2x128 views" 3.0
    step_case resnet18 64 "ResNet-18 small stem, 32x32, 2x32" 3.0
    step_case resnet18x64 128 "ResNet-18 small stem, 32x32, 2x64" 3.0
    step_case resnet8 256 "ResNet-8, 32x32, 2x128" 3.0
    step_case resnet8x8 16 "ResNet-8, 32x32, 2x8" 3.0
    step_case resnet50 32 "ResNet-50 large stem, 64x64, 2x16" 1.8
    table "Peak memory of those processes (ratio: ours / theirs)"
    cat "$work/memory" >>"$work/table"
fi

if wanted scaling && [ "$threads" -gt 1 ]; then
    table "Training step, $threads threads against one (ratio: times as fast)"
    for c in resnet20:256 resnet18:64 resnet8:256 resnet50:32; do
        case_name=${c%:*} label="one thread"
        us() { ours step --only "$case_name" --threads "$threads" --seconds "$seconds" --checked 1; }
        them() { ours step --only "$case_name" --threads 1 --seconds "$seconds" --checked 1; }
        duel "$case_name" "1.85 for 2" "${c#*:}000" views/s
        [ $quick = 1 ] && break
    done
fi

# ---- matrix products -------------------------------------------------------------------------

if wanted gemm; then
    table "sgemm (ratio: times as fast)"
    for n in 256 512 768 1024 2048; do
        [ $quick = 1 ] && [ $n != 1024 ] && continue
        for t in 1 "$threads"; do
            us() { ours kernels --only $n --threads "$t" --seconds "$seconds"; }
            scale=$(awk -v n=$n 'BEGIN { printf "%.6f", 2e-6 * n * n * n }')
            if [ $openblas = 1 ]; then
                label=OpenBLAS
                them() { ours openblas --only $n --threads "$t" --seconds "$seconds"; }
                duel "n = $n, $t threads" 0.95 "$scale" GFLOP/s
            else
                alone "n = $n, $t threads" 0.95 "$scale" GFLOP/s "name=openblas shape=$n threads=$t "
            fi
            [ "$threads" = 1 ] && break
        done
    done
fi

# ---- the rest --------------------------------------------------------------------------------

if wanted augment; then
    table "SimCLR augmentation on one core (ratio: times as fast)"
    for s in 32 224; do
        [ $quick = 1 ] && [ $s = 224 ] && continue
        blur=
        goal="50; 40,000 views/s"
        if [ $s = 224 ]; then blur=--blur goal=-; fi
        # views per second on both sides: times per view
        per_view() { awk -v r="$(field "$1" "$2")" -v c="$(field "$1" cpu_views_per_s)" \
            'BEGIN { if (r > 0) printf "ms=%.6g cpu_ms=%.6g\n", 1000 / r, 1000 / c }'; }
        us() { per_view "$(ours augment --only $s --seconds "$seconds")" value; }
        if [ $peers = 1 ]; then
            variant= most=0
            for v in pil tensor float; do
                rate=$(field "$(peer augment --side $s $blur --variants $v --seconds "$seconds")" \
                    views_per_s)
                if awk -v a="${rate:-0}" -v b=$most 'BEGIN { exit !(a > b) }'; then
                    most=$rate variant=$v
                fi
            done
            label="torchvision $variant"
            them() { per_view "$(peer augment --side $s $blur --variants "$variant" \
                --seconds "$seconds")" views_per_s; }
        else
            label="not measured"
            them() { :; }
        fi
        duel "${s}x$s" "$goal" 1000 views/s
    done
fi

if wanted loss; then
    table "NT-Xent forward and backward, d = 128, $threads threads (ratio: times as fast)"
    : >"$work/memory"
    for m in 1024 2048 4096 8192 16384; do
        [ $quick = 1 ] && [ $m != 2048 ] && continue
        ours loss --only $m --threads "$threads" --seconds 0 >/dev/null || exit 1
        us() { ours loss --only $m --threads "$threads" --seconds "$seconds" --checked 1; }
        if [ $peers = 1 ]; then
            best nt_xent "eager compile" --rows $m --threads "$threads"
            label="PyTorch $variant"
            them() { peer nt_xent --variants "$variant" --rows $m --threads "$threads" \
                --seconds "$seconds"; }
            duel "2N = $m" 3 0 ms
        else
            alone "2N = $m" 3 0 ms "name=nt_xent .*threads=$threads rows=$m "
        fi
        memory_row "2N = $m"
    done
    table "Peak memory of those processes (ratio: ours / theirs)"
    cat "$work/memory" >>"$work/table"
fi

if wanted embed; then
    table "Embedding with ResNet-18, 32x32, $threads threads (ratio: times as fast)"
    ours embed --only 1 --threads "$threads" --seconds 0 >/dev/null || exit 1
    for m in 64 1; do
        us() { ours embed --only $m --threads "$threads" --seconds "$seconds" --checked 1; }
        if [ $m = 64 ]; then goal=2.5 scale=64000 unit=images/s; else goal=2 scale=0 unit=ms; fi
        if [ $peers = 1 ]; then
            best embed "nchw channels_last compile compile_cl" --images $m --threads "$threads"
            label="PyTorch $variant"
            them() { peer embed --variants "$variant" --images $m --threads "$threads" \
                --seconds "$seconds"; }
            duel "batch $m" $goal $scale $unit
        else
            alone "batch $m" $goal $scale $unit "name=embed .*threads=$threads images=$m "
        fi
    done
fi

# The files come from the peer's script, so both are measured or neither is.
if wanted data && [ $peers = 1 ]; then
    table "From files (ratio: times as fast)"
    for c in folder epoch; do
        [ $quick = 1 ] && [ $c = epoch ] && continue
        mkdir "$work/$c"
        "$python" "$here/peers/data.py" --make "$work/$c" --case $c || fail "data.py --make failed"
        case_name=$c t=$threads all="nchw channels_last compile compile_cl"
        text="epoch of SimCLR, 5,120 JPEG files 32x32, ResNet-20, all included" goal=4
        [ $c = folder ] && t=1 goal=1.5 all="pil tensor" &&
            text="JPEG files, 224 to 500 pixels, to two 224x224 views, one core"
        us() { ours data --data "$work/$case_name" --only $case_name --threads $t \
            --seconds "$seconds"; }
        best data "$all" --data "$work/$c" --case $c --threads $t
        label="PyTorch $variant"
        them() { peer data --variants "$variant" --data "$work/$case_name" --case $case_name \
            --threads $t --seconds "$seconds"; }
        full=$rounds
        [ $c = epoch ] && [ "$rounds" -gt 3 ] && rounds=3
        duel "$text" $goal 1000 images/s
        rounds=$full
    done
fi

if wanted cluster; then
    table "60,000 x 128, $threads threads: k-means with k = 1,000, k-NN with k = 200 (times as fast)"
    ours cluster --threads "$threads" --seconds 0 >/dev/null || exit 1
    for c in kmeans knn; do
        [ $quick = 1 ] && [ $c = kmeans ] && continue
        if [ $c = kmeans ]; then text="k-means, 20 iterations"; else text="k-NN, 2,000 queries"; fi
        us() { ours cluster --only $c --threads "$threads" --seconds "$seconds" --checked 1; }
        if [ -n "$faiss" ]; then
            label=$faiss
            them() { peer cluster --cases $c --threads "$threads" --seconds "$seconds"; }
            duel "$text" 1.0 0 ms
        else
            alone "$text" 1.0 0 ms "name=$c .*threads=$threads "
        fi
    done
fi

if wanted startup; then
    table "Start to end of a process"
    ours step --only startup --seconds 1 >/dev/null || exit 1
    for c in context resnet20 resnet18; do
        line=$(grep "name=startup shape=$c " "$work/lines" | tail -n 1)
        printf '| creates: %s | %s ms | - | - | - | 50 ms |\n' $c "$(field "$line" value)" \
            >>"$work/table"
    done
    if [ $peers = 1 ]; then
        line=$(peer startup --times 3)
        printf '| imports torch | - | %s ms | - | - | - |\n' "$(field "$line" ms)" >>"$work/table"
    fi
fi

if wanted kernels; then
    kernels_seconds=$(awk -v s=$seconds 'BEGIN { print s / 8 }')
    ours kernels --threads "$threads" --seconds "$kernels_seconds" --only r20,r18,r50 >/dev/null ||
        exit 1
    grep 'name=conv_' "$work/out" | awk -v threads="$threads" '
        BEGIN { printf "\n### Convolutions, %s threads: ms and GFLOP/s of the definition ", threads
            print "(share of the measured peak)\n\n| layer | forward | to the input | to the weights |"
            print "|---|---|---|---|" }
        { for (i = 2; i <= NF; i++) { split($i, kv, "="); f[kv[1]] = kv[2] }
          cell = sprintf("%s ms, %s (%.2f)", f["ms"], f["value"], f["share"])
          if (f["name"] == "conv_forward") line = "| " f["shape"]
          line = line " | " cell
          if (f["name"] == "conv_weight") print line " |" }' >>"$work/table"
fi

# ---- the report ------------------------------------------------------------------------------

# Of the lines that differ in what was measured alone, the middle one by ms (or value).
medians() {
    awk '
    { key = $1; m = 0
      for (i = 2; i <= NF; i++) {
          split($i, kv, "=")
          if (kv[1] ~ /^(name|shape|variant|threads|net|side|views|rows|images|case|blur|n|k)$/)
              key = key " " $i
          if (kv[1] == "ms" || (kv[1] == "value" && !m)) m = kv[2] + 0
      }
      if (!(key in count)) order[++keys] = key
      n = ++count[key]
      for (; n > 1 && by[key, n - 1] > m; n--) {
          by[key, n] = by[key, n - 1]; line[key, n] = line[key, n - 1]
      }
      by[key, n] = m; line[key, n] = $0 }
    END { for (i = 1; i <= keys; i++) {
              key = order[i]; n = count[key]
              print line[key, int((n + 1) / 2)] (n > 1 ? " of=" n : "") } }'
}

report() {
    printf '\n## %s, commit %s\n\n' "$(date +%Y-%m-%d)" "$commit"
    printf '%s\n\n' "$machine"
    [ -n "$faiss" ] && printf '%s. ' "$faiss"
    [ -n "$versions" ] && printf '%s, %s. ' "$versions" "$("$python" --version)"
    printf '%d rounds of %s s each, load at the end %s.\n' "$rounds" "$seconds" \
        "$(cut -d ' ' -f 1 /proc/loadavg 2>/dev/null)"
    cat "$work/table"
}
report
if [ $write = 1 ]; then
    {
        report
        printf '\nThe lines behind it, of each measurement the median one ("of" so many):\n\n'
        medians <"$work/lines" | sed 's/^/    /'
    } >>"$here/RESULTS.md"
    say "appended to bench/RESULTS.md"
fi
