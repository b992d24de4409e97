#!/bin/sh
# Compiles examples/simclr.c, runs it as users do, right and wrong, and checks what it says, its exit
# code and what it leaves behind; then the other methods' examples, each once, and the programs that
# begin with a checkpoint. Also compiles and runs the program that README.md shows.
# Takes CC from the environment. Prints "cli: N passed, N failed, N skipped".
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
CC=${CC:-cc}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0 skipped=0

ok() { passed=$((passed + 1)); echo "  ok: $1"; }
bad() { failed=$((failed + 1)); echo "  FAILED: $1"; }

prog=$work/simclr
if $CC -O2 -o "$prog" "$here/examples/simclr.c" -lm -lpthread >log 2>&1 && [ ! -s log ]; then
    ok "examples/simclr.c compiles by its one line and says nothing"
else
    bad "examples/simclr.c: $(head -n 3 log)"
fi
awk '/^```c/ { on = 1; next } /^```/ { on = 0 } on' "$here/README.md" >readme.c
if $CC -O2 -I"$here" -o readme readme.c -lm -lpthread && ./readme | grep -q '^image 0 is most like image [0-9]'; then
    ok "the program of README.md runs"
else
    bad "the program of README.md"
fi

# refuse NAME WORD ARGS...: exit code 2, one line on stderr that has WORD, and no out folder
refuse() {
    name=$1 word=$2
    shift 2
    rm -rf out
    "$prog" --smoke "$@" >stdout 2>stderr
    code=$?
    lines=$(wc -l <stderr)
    if [ $code -ne 2 ]; then bad "$name: exit code $code, expected 2: $(head -c 200 stderr)"
    elif [ "$lines" -ne 1 ]; then bad "$name: $lines lines on stderr, expected 1"
    elif ! grep -q -e "$word" stderr; then bad "$name: no '$word' in: $(cat stderr)"
    elif [ -e out ]; then bad "$name: it has written something"
    else ok "$name: $(cut -c1-150 stderr)"
    fi
}

byte() { printf "\\$(printf %03o $(($1 & 255)))"; }
be32() { byte $(($1 >> 24)); byte $(($1 >> 16)); byte $(($1 >> 8)); byte "$1"; }
zeros() { head -c "$1" /dev/zero; }
# idx COUNT HEIGHT WIDTH BYTES: an IDX file of images with that header and so many bytes behind it
idx() { be32 2051; be32 "$1"; be32 "$2"; be32 "$3"; zeros "$4"; }

refuse "unknown option" "--epoch" --epoch 3
refuse "number that is none" "--epochs" --epochs three
refuse "missing path" "nowhere" --data nowhere
mkdir empty
refuse "empty folder" "empty" --data empty
mkdir words && echo hello >words/readme.md
refuse "folder without images" "words" --data words
mkdir short && idx 100 28 28 1000 >short/train-images-idx3-ubyte
refuse "truncated IDX" "idx" --data short
mkdir huge && idx 2000000000 60000 60000 100 >huge/train-images-idx3-ubyte
refuse "IDX that lies about its size" "idx" --data huge
mkdir magic && { be32 1234; zeros 100; } >magic/train-images-idx3-ubyte
refuse "IDX with a wrong magic number" "idx" --data magic
mkdir cifar && zeros 5000 >cifar/data_batch_1.bin
refuse "truncated CIFAR" "data_batch_1" --data cifar
refuse "batch of one" "batch" --batch 1
refuse "architecture that does not exist" "resnet9" --arch resnet9
refuse "no such device" "device" --device tpu
refuse "a GPU in a build without CUDA" "built without CUDA" --device cuda
refuse "a GPU's rounding without one" "^simclr: --math: .*--device cuda" --math tf32
mkdir pnm && for i in 0 1 2 3 4 5 6 7; do { printf 'P5\n20 20\n255\n'; zeros 400; } >pnm/$i.pgm; done
{ printf 'P5\n20 20\n255\n'; zeros 100; } >pnm/3.pgm
refuse "truncated picture" "3.pgm" --data pnm --batch 4
{ printf 'P5\n200000 200000\n255\n'; zeros 100; } >pnm/3.pgm
refuse "picture that lies about its size" "3.pgm" --data pnm --batch 4
if "$prog" --help >help && grep -q -- --resume help; then ok "--help"; else bad "--help"; fi
if "$prog" --epochs 3 --help | cmp -s - help; then ok "--help shows defaults"; else bad "--help after --epochs 3"; fi
if [ "$(id -u)" != 0 ]; then
    mkdir closed && chmod 500 closed
    refuse "folder that cannot be written" "closed" --out closed/x
else
    echo x >file
    refuse "--out below a file" "file" --out file/x
fi

# a run on unlabelled pictures in a flat folder, and one that is resumed
{ printf 'P5\n20 20\n255\n'; zeros 400; } >pnm/3.pgm
refuse "batch of more than there are" "--batch: there are 8 images" --data pnm --batch 9
if "$prog" --smoke --data pnm --batch 4 --epochs 1 --out flat >stdout 2>stderr && [ -s flat/checkpoint.safetensors ]; then
    ok "a flat folder without labels trains"
else
    bad "a flat folder without labels: $(cat stderr)"
fi
run() { "$prog" --smoke --data "$here/examples/data" --seed 3 "$@" >stdout 2>stderr; }
if run --out one --threads 1 && tail -n 1 stdout | grep -q '^result method=simclr epochs=2 loss=[0-9.]* knn='; then
    ok "$(tail -n 1 stdout)"
else
    bad "the result line: $(tail -n 1 stdout) $(cat stderr)"
fi
for f in checkpoint.safetensors embeddings.npy loss.svg views.png views_colour.png map.svg neighbours.png; do
    if [ -s "one/$f" ]; then ok "one/$f is there"; else bad "one/$f is missing"; fi
done
run --out two --threads 2 && cmp one/checkpoint.safetensors two/checkpoint.safetensors &&
    cmp one/embeddings.npy two/embeddings.npy && ok "1 and 2 threads write the same bytes" ||
    bad "1 and 2 threads differ"
cp one/checkpoint.safetensors before
mkdir -p stopped && printf 'garbage' >stopped/checkpoint.safetensors
run --out stopped --resume
if [ $? -eq 2 ] && [ "$(cat stopped/checkpoint.safetensors)" = garbage ]; then
    ok "a checkpoint that is none: $(tail -n 1 stderr)"
else
    bad "a checkpoint that is none was taken: $(cat stderr)"
fi
run --out one --resume --batch 32
if [ $? -eq 2 ] && ! grep -q 'raw pixels' stdout && grep -q 'in batches of 64' stderr; then
    ok "another run's checkpoint, before anything is judged: $(cut -c1-100 stderr)"
else
    bad "another run's checkpoint: $(cat stdout stderr)"
fi
if run --out one --resume --threads 1 && grep -q 'nothing left to train' stdout &&
    tail -n 1 stdout | grep -q '^result method=simclr epochs=2 knn=' && cmp -s before one/checkpoint.safetensors; then
    ok "a run that is finished: $(tail -n 1 stdout | cut -c1-80)"
else
    bad "a run that is finished: $(cat stdout stderr)"
fi
run --out one --resume --arch resnet8
if [ $? -eq 2 ] && cmp -s before one/checkpoint.safetensors; then
    ok "another architecture's checkpoint: $(tail -n 1 stderr | cut -c1-150)"
else
    bad "another architecture's checkpoint was taken"
fi

# The programs from here on get the implementation from one object, where otherwise each would compile
# it: copies without the line that asks for it, beside a link to the header.
IMPL=${IMPL:-$work/impl.o}
[ -f "$IMPL" ] || $CC -std=c99 -O2 -c "$here/tests/impl.c" -o "$IMPL"
mkdir -p copies/examples && ln -s "$here/contrastive.h" copies/contrastive.h
cp "$here"/examples/*.h copies/examples
ln -s "$here/examples/data" copies/examples/data
# compile PROGRAM NAME: examples/NAME.c; fails if it says something, log has it
compile() {
    sed '/^#define CONTRASTIVE_IMPLEMENTATION$/d' "$here/examples/$2.c" >"copies/examples/$2.c"
    $CC -O1 -o "$1" "copies/examples/$2.c" "$IMPL" -lm -lpthread >log 2>&1 && [ ! -s log ]
}

# the other methods: each compiles, and its smoke run says and writes what SimCLR's does
methods="moco byol simsiam barlow_twins vicreg swav deepcluster npid facenet pirl cpc"
[ "${QUICK:-0}" = 1 ] && methods=moco
for method in $methods; do
    if ! compile "$work/$method" "$method"; then
        bad "examples/$method.c: $(head -n 3 log)"
        continue
    fi
    if "$work/$method" --help | grep -q '(null)'; then bad "$method --help: (null)"; fi
    prog=$work/$method
    refuse "$method: unknown option" "--epoch" --epoch 3
    if run --out "done_$method" --epochs 1 && grep -q 'by hand .*by the library' stdout &&
        tail -n 1 stdout | grep -q "^result method=$method epochs=1 loss=-*[0-9.]* knn="; then
        ok "$(tail -n 1 stdout | cut -c1-100)"
    else
        bad "$method: $(tail -n 1 stdout) $(cat stderr)"
    fi
    for f in checkpoint.safetensors embeddings.npy loss.svg views.png map.svg neighbours.png; do
        [ -s "done_$method/$f" ] || bad "done_$method/$f is missing"
    done
done
if [ "${QUICK:-0}" != 1 ]; then
    prog=$work/cpc
    refuse "cpc: its name once" "^cpc: the views have" --patch 100
fi
for version in 1 3; do
    prog=$work/moco
    if run --out "done_moco$version" --epochs 1 --version $version; then
        ok "moco --version $version: $(tail -n 1 stdout | cut -c1-80)"
    else
        bad "moco --version $version: $(cat stderr)"
    fi
done
if [ "${QUICK:-0}" != 1 ]; then
    prog=$work/deepcluster
    if run --out done_deepcluster1 --epochs 2 --version 1 && grep -q 'NMI with the last one' stderr; then
        ok "deepcluster --version 1: $(tail -n 1 stdout | cut -c1-80)"
    else
        bad "deepcluster --version 1: $(cat stderr)"
    fi
fi
# CLIP: drawn pictures, and pairs of the user's
if compile "$work/clip" clip; then
    prog=$work/clip
    refuse "clip: unknown option" "--epoch" --epoch 3
    for i in 1 2 3 4 5 6 7; do printf 'pnm/%d.pgm\tnumber %d\n' $i $((i % 3)); done >pairs.tsv
    for i in 0 1 2 3 4 5 6; do printf 'pnm/%d.pgm\tanother %d\n' $i $((i % 3)); done >>pairs.tsv
    { cat pairs.tsv; echo no tab; } >broken.tsv
    refuse "clip: a line without a caption" "line 15" --data broken.tsv
    { head -n 3 pairs.tsv; printf '\npnm/none.pgm\tnot there\n'; } >broken.tsv
    refuse "clip: a picture that is missing" "'broken.tsv' line 5: cannot read 'pnm/none.pgm'" --data broken.tsv
    head -n 9 pairs.tsv >few.tsv
    refuse "clip: too few pictures" "9 pictures, expected 10" --data few.tsv
    refuse "clip: more in a batch than there are" "--batch: there are 13" --data pairs.tsv --batch 14
    refuse "clip: merges that are none" "line 1 of the merges" --merges pairs.tsv
    if "$prog" --smoke --epochs 1 --out done_clip >stdout 2>stderr &&
        grep -q 'by hand .*by the library' stdout &&
        tail -n 1 stdout | grep -q '^result method=clip epochs=1 loss=[0-9.]* zeroshot='; then
        ok "$(tail -n 1 stdout | cut -c1-100)"
    else
        bad "clip: $(tail -n 1 stdout) $(cat stderr)"
    fi
    for f in checkpoint.safetensors embeddings.npy loss.svg retrieval.png zeroshot.png; do
        [ -s "done_clip/$f" ] || bad "done_clip/$f is missing"
    done
    refuse "clip: a chunk of one" "--chunk" --chunk 1
    if "$prog" --smoke --siglip --data pairs.tsv --batch 6 --chunk 4 --out done_pairs >stdout 2>stderr &&
        [ -s done_pairs/retrieval.png ]; then
        ok "clip --data pairs.tsv: $(grep '^retrieval' stdout | cut -c1-80)"
    else
        bad "clip --data pairs.tsv: $(cat stderr)"
    fi
else
    bad "examples/clip.c: $(head -n 3 log)"
fi

# compose: refusals, and a table whose checkpoints are those of the methods' own examples
if compile "$work/compose" compose; then
    prog=$work/compose
    refuse "compose: a loss that is none" "infonce|nce" --loss infomax
    refuse "compose: a queue of quick keys" "momentum" --negatives queue
    refuse "compose: a free fall to one point" "predictor" --negatives none --loss cosine
    refuse "compose: a temperature that nobody reads" "^compose: --temperature" --loss cosine \
        --negatives none --predictor --temperature 0.1
    refuse "compose: nothing to tell apart" "negatives none" --negatives none
    refuse "compose: parts of what else" "CPC" --parallel parts --predictor
    refuse "compose: pairs by what" "labels" --loss pairs
    refuse "compose: sensible, and not there" "list" --loss dcl --predictor
    refuse "compose: labels that are missing" "labels" --labels --data pnm
    if [ "$("$prog" --list | grep -c -e '--parallel')" -eq 24 ]; then ok "compose --list"
    else bad "compose --list"; fi
    if run --out new --epochs 1 --parallel momentum --negatives none --loss correlation --predictor &&
        tail -n 1 stdout | grep -q '^result method=compose epochs=1 loss=[0-9.]* knn='; then
        ok "compose, a new combination: $(tail -n 1 stdout | cut -c1-80)"
    else
        bad "compose, a new combination: $(tail -n 1 stdout) $(cat stderr)"
    fi
    if run --out puzzle --epochs 1 --negatives bank --loss puzzle &&
        [ "$(head -c 8 puzzle/views.png | cut -c 2-4 | head -n 1)" = PNG ]; then
        ok "compose, PIRL alone, with its sheet of views"
    else
        bad "compose, PIRL alone: $(tail -n 1 stdout) $(cat stderr)"
    fi
    if [ "${QUICK:-0}" != 1 ]; then
        if run --out table && grep -q '^| SimCLR | ' table/table.md &&
            tail -n 1 stdout | grep -q '^result method=compose rows=16 .*linear_supervised=[0-9.]* '; then
            ok "$(tail -n 1 stdout | cut -c1-150)"
        else
            bad "compose: $(tail -n 1 stdout) $(cat stderr)"
        fi
        prog=$work/simclr1 # built as the others: other flags, other last bits
        compile "$prog" simclr
        run --out done_simclr --epochs 1
        run --out done_supcon --epochs 1 --labels
        ln -s done_moco done_moco2
        prog=$work/deepcluster
        run --out done_deepcluster1 --epochs 1 --version 1
        for method in simclr supcon moco2 moco3 npid byol simsiam barlow_twins vicreg swav deepcluster1 \
            deepcluster cpc pirl; do
            if cmp "done_$method/checkpoint.safetensors" "table/$method/checkpoint.safetensors"; then
                ok "composed or by its example, $method is the same bytes"
            else
                bad "composed, $method is not what its example trains"
            fi
        done
    fi
else
    bad "examples/compose.c: $(head -n 3 log)"
fi

# bigbatch: the curve, and one batch of another method in uneven chunks
if compile "$work/bigbatch" bigbatch; then
    prog=$work/bigbatch
    refuse "bigbatch: a chunk of one" "--chunk" --chunk 1
    refuse "bigbatch: a method that has no chunks" "--method" --method swav
    refuse "bigbatch: CLIP has its own" "simclr|mocov3" --method clip
    if run --out curve && grep -q 'take 1024 images, there are 600: each comes 1 or 2 times' stdout && grep -q '>512</text>' curve/curve.svg && grep -q 'by hand .*by the library' stdout &&
        tail -n 1 stdout | grep -q '^result method=bigbatch of=simclr .*knn_512=[0-9.]* .*peak_mb='; then
        ok "$(tail -n 1 stdout | cut -c1-150)"
    else
        bad "bigbatch: $(tail -n 1 stdout) $(cat stderr)"
    fi
    if run --out one_batch --method mocov3 --batch 300 --chunk 70 --epochs 1 && ! grep -q 'each comes' stdout &&
        tail -n 1 stdout | grep -q '^result method=bigbatch epochs=1 loss=[0-9.]* knn='; then
        ok "bigbatch --method mocov3: $(tail -n 1 stdout | cut -c1-80)"
    else
        bad "bigbatch --method mocov3: $(tail -n 1 stdout) $(cat stderr)"
    fi
else
    bad "examples/bigbatch.c: $(head -n 3 log)"
fi

# embed, search and evaluate: from nothing (--smoke makes a checkpoint), from SimCLR's of above
mkdir gray && cp "$here"/examples/data/pictures/*.ppm gray
for program in embed search evaluate; do
    if $CC -O1 -DCONTRASTIVE_STATIC -o "$work/$program" "$here/examples/$program.c" -lm -lpthread \
        >log 2>&1 && [ ! -s log ]; then
        ok "examples/$program.c compiles, all functions static, and says nothing"
    else
        bad "examples/$program.c: $(head -n 3 log)"
        continue
    fi
    prog=$work/$program
    refuse "$program: unknown option" "--checkpoin" --checkpoin x
    refuse "$program: checkpoint that is not there" "nowhere" --checkpoint nowhere
    refuse "$program: checkpoint that is none" "readme.md" --checkpoint words/readme.md
    refuse "$program: folder without images" "words" --data words --checkpoint one/checkpoint.safetensors
    (mkdir -p bare && cd bare && "$prog" --data ../gray >stdout 2>stderr)
    if [ $? -eq 2 ] && grep -q 'no out/simclr.*&& ./simclr' bare/stderr && [ ! -e bare/out ]; then
        ok "$program without a checkpoint: $(cut -c1-150 bare/stderr)"
    else
        bad "$program without a checkpoint: $(cat bare/stderr)"
    fi
    if run --out "done_$program" && tail -n 1 stdout | grep -q "^result method=$program .*seconds="; then
        ok "$(tail -n 1 stdout | cut -c1-100)"
    else
        bad "$program --smoke: $(tail -n 1 stdout) $(cat stderr)"
    fi
done
for f in embed/embeddings.npy embed/paths.txt embed/labels.npy embed/encoder.txt search/nearest.png search/nearest.txt \
    evaluate/map.svg evaluate/neighbours.png evaluate/labels.svg; do
    if [ -s "done_$f" ]; then ok "done_$f is there"; else bad "done_$f is missing"; fi
done
given() { "$work/$1" --checkpoint one/checkpoint.safetensors --threads 1 "$2" "$3" --out "$4" ${5:-} >stdout 2>stderr; }
given embed --data gray pictures
if [ "$(wc -l <pictures/paths.txt)" -eq 12 ] && [ "$(head -n 1 pictures/paths.txt)" = balloon.ppm ] &&
    [ ! -e pictures/labels.npy ]; then
    ok "colour pictures through a network for gray ones: $(tail -n 1 stdout | cut -c1-60)"
else
    bad "embed: $(cat stdout stderr)"
fi
given search --data gray found "--query gray/car.ppm --k 3 --embeddings pictures/embeddings.npy"
if sed -n 2p found/nearest.txt | grep -q '^gray/car.ppm.1.1.000.2.car.ppm'; then
    ok "a picture finds itself first: $(sed -n 2p found/nearest.txt)"
else
    bad "search: $(cat stdout stderr)"
fi
given search --data gray found "--query 2 --k 11"
if [ "$(wc -l <found/nearest.txt)" -eq 12 ] && ! cut -f 5 found/nearest.txt | grep -q car; then
    ok "image 2 of the folder finds the 11 others"
else
    bad "search: $(cat stdout stderr)"
fi
prog=$work/search
refuse "number beyond the images" "from 0 to 11" --data gray --checkpoint one/checkpoint.safetensors --query 12
refuse "query that is no picture" "readme" --data gray --checkpoint one/checkpoint.safetensors --query words/readme.md
mkdir fewer && cp gray/c*.ppm fewer
refuse "another set's embeddings" "embeddings: expected float32 .[0-9], 32." --data fewer \
    --checkpoint one/checkpoint.safetensors --embeddings pictures/embeddings.npy
refuse "another encoder's embeddings" "embeddings: made by another encoder" --data gray \
    --checkpoint flat/checkpoint.safetensors --embeddings pictures/embeddings.npy
refuse "the same encoder's, for another size" "images of 28 x 28" --data gray --size 28 \
    --checkpoint one/checkpoint.safetensors --embeddings pictures/embeddings.npy
refuse "embeddings of nobody knows which encoder" "encoder.txt" --data gray \
    --checkpoint one/checkpoint.safetensors --embeddings one/embeddings.npy
prog=$work/evaluate
refuse "no classes to ask for" "no classes" --data gray --checkpoint one/checkpoint.safetensors
# what trains nothing, or a little: a result line and pictures
# picture NAME WORD FILES: examples/NAME.c compiles, refuses, and its smoke run writes FILES
picture() {
    example=$1 word_of_result=$2
    if ! compile "$work/$example" "$example"; then
        bad "examples/$example.c: $(head -n 3 log)"
        return
    fi
    prog=$work/$example
    shift 2
    files=$*
    refuse "$example: unknown option" "--epoch" --epoch 3
    if "$prog" --smoke --out "done_$example" >stdout 2>stderr &&
        tail -n 1 stdout | grep -q "^result method=$example $word_of_result"; then
        ok "$(tail -n 1 stdout | cut -c1-100)"
    else
        bad "$example: $(tail -n 1 stdout) $(cat stderr)"
    fi
    for f in $files; do [ -s "done_$example/$f" ] || bad "done_$example/$f is missing"; done
}
picture augment 'pictures=12 ' operations.png methods.png policies.png mixes.png
[ "${QUICK:-0}" = 1 ] || picture temperature 'epochs=1 best_t=' gradient.svg trained.svg
for aug in randaugment cutmix; do
    prog=$work/simclr
    if run --out "done_$aug" --epochs 1 --aug $aug; then
        ok "simclr --aug $aug: $(tail -n 1 stdout | cut -c1-80)"
    else
        bad "simclr --aug $aug: $(cat stderr)"
    fi
done
echo "cli: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
