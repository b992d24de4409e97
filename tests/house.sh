#!/bin/sh
# tests/house.sh - holds the house in order: what a reader of contrastive.h may rely on.
#
#     sh tests/house.sh            prints what is wrong, then "house: N passed, N failed, N skipped"
#
# Each rule below is one test. The rules: a section of the implementation calls only sections above it;
# private functions end with an underscore, public ones do not; nothing is defined twice; public names
# start with ctr_, CTR_ or CONTRASTIVE_; every public function is implemented, has a comment in its
# paragraph of the interface and is named in a test; lines, characters, sizes; what must not be called.

cd "$(dirname "$0")/.." || exit 1
H=contrastive.h
TMP=$(mktemp -d) || exit 1
trap 'rm -rf "$TMP"' EXIT
: >"$TMP/passed" && : >"$TMP/failed"

# rule NAME: passes when its standard input is empty, else shows the first lines of it
rule() {
    cat >"$TMP/rule"
    if [ -s "$TMP/rule" ]; then
        echo "$1" >>"$TMP/failed"
        echo "FAIL $1: $(wc -l <"$TMP/rule" | tr -d ' ') times"
        sed -n '1,8s/^/       /p' "$TMP/rule"
    else
        echo "$1" >>"$TMP/passed"
        echo "ok   $1"
    fi
}

# ---- the text: without comments and strings ($TMP/code), every line as "number section text" ----------

awk '
function strip(line,    out, i, c, d) {
    out = ""
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        d = substr(line, i, 2)
        if (comment) { if (d == "*/") { comment = 0; i++ } continue }
        if (quote != "") {
            if (c == "\\") { i++; continue }
            if (c == quote) { quote = ""; out = out c }
            continue
        }
        if (d == "/*") { comment = 1; i++; continue }
        if (c == "\"" || c == "'"'"'") { quote = c; out = out c; continue }
        out = out c
    }
    return out
}
/^   >>[A-Z]/ { section = substr($1, 3) }
{ print NR "\t" section "\t" strip($0) }
' $H >"$TMP/code"
IMPL=$(awk -F '\t' '$2 == "IMPL" { print $1; exit }' "$TMP/code")
[ -n "$IMPL" ] || { echo "FAIL no >>IMPL in $H"; echo "house: 0 passed, 1 failed, 0 skipped"; exit 1; }

# Functions: "line section public|private definition|prototype name". A head starts in column 1 and goes
# on to its { or ;. In the interface CTR_API means public.
awk -F '\t' '
function finish(    name) {
    name = head
    sub(/\(.*/, "", name)
    sub(/.*[^A-Za-z0-9_]/, "", name)
    if (name ~ /^ctr_/) print start, part, how, head ~ /\{/ ? "definition" : "prototype", name
    head = ""
}
head == "" && $3 ~ /^(CTR_TARGET_[A-Z0-9]*_ )?(CTR_API|CTR_PRIVATE_|CTR_INLINE_|CTR_UNUSED_|static)[ ]/ &&
    $3 !~ /^static const/ {
    start = $1
    part = $2
    how = $3 ~ /CTR_API/ ? "public" : "private"
    head = $3
    gsub(/CTR_PRINTF_\([^)]*\)/, "", head)
    if (head ~ /=/ && head !~ /\(/) { head = ""; next }
    if (head ~ /[;{]/) finish()
    next
}
head != "" {
    head = head " " $3
    if (head ~ /[;{]/) finish()
}' "$TMP/code" >"$TMP/functions"

# ---- order ----------------------------------------------------------------------------------------

# A call to a function of a lower section is allowed only where that section declares it beforehand, and
# there are few of these (threads serve memory).
awk -F '\t' -v impl="$IMPL" -v functions="$TMP/functions" '
BEGIN {
    while ((getline line < functions) > 0) {
        split(line, f, " ")
        if (f[1] < impl) continue
        if (f[4] == "definition" && !(f[5] in home)) { home[f[5]] = f[2]; if (!(f[2] in rank)) rank[f[2]] = ++n }
        if (f[4] == "prototype") declared[f[2] " " f[5]] = 1
    }
}
$1 > impl {
    text = $3
    while (match(text, /ctr_[a-z0-9_]*\(/)) {
        name = substr(text, RSTART, RLENGTH - 1)
        text = substr(text, RSTART + RLENGTH)
        if (!(name in home) || home[name] == $2 || rank[home[name]] <= rank[$2]) continue
        if (declared[$2 " " name]) { if (!seen[name]++) exceptions++; continue }
        print $1 ": " $2 " calls " name " of " home[name]
    }
}
END { if (exceptions > 8) print exceptions " functions are called before their section, by prototype" }
' "$TMP/code" | rule "a section calls only sections above it"

grep '^   >>' $H | sed 's/^ *//' | awk '
/>>IMPL/ { impl = 1; next }
/>>API/ { next }
{
    for (i = 1; i <= NF && $i ~ /^>>/; i++) {
        tag = substr($i, 3)
        if (impl) { if (tag in api) { if (api[tag] < last) print tag " stands elsewhere in the interface"; last = api[tag] } }
        else api[tag] = ++n
    }
}' | rule "interface and implementation have their sections in one order"

# ---- names ----------------------------------------------------------------------------------------

awk '$3 == "private" && $5 !~ /_$/ { print $1 ": " $5 }' "$TMP/functions" |
    rule "private functions end with an underscore"
awk '$3 == "public" && $5 ~ /_$/ { print $1 ": " $5 }' "$TMP/functions" |
    rule "public functions do not"
# two definitions stand in the branches of an #if
awk -v impl="$IMPL" '$1 > impl && $4 == "definition" { count[$5]++; at[$5] = at[$5] " " $1 }
    END { for (f in count) if (count[f] > 2) print f " is defined at" at[f] }' "$TMP/functions" |
    rule "nothing is defined twice"
awk '$4 == "prototype" && $3 == "public" { want[$5] = $1 }
    $4 == "definition" && $3 == "public" { have[$5] = $1 }
    END {
        for (f in want) if (!(f in have)) print f " is declared and not defined"
        for (f in have) if (!(f in want)) print f " is defined and not declared"
    }' "$TMP/functions" | rule "every public function is declared and defined"
awk -F '\t' '{ sub(/^[ ]*#[ ]*/, "#", $3) } $3 ~ /^#define / {
        split($3, w, /[ (]/)
        if (w[2] !~ /^(CTR_|CONTRASTIVE_|STB_IMAGE_|STBI_|stbi_)/) print $1 ": " w[2]
    }' "$TMP/code" | rule "macros start with CTR_ or CONTRASTIVE_"
awk -F '\t' -v impl="$IMPL" '$1 < impl && $3 ~ /^(typedef|struct|enum|union) / {
        line = $3
        gsub(/typedef|struct|enum|union|const|\*/, " ", line)
        split(line, w, " ")
        if ($3 ~ /^(struct|enum|union) / && w[1] !~ /^(ctr_|\{)/) print $1 ": " $3
        if ($3 ~ /^typedef (struct|enum|union) / && w[1] !~ /^ctr_/) print $1 ": " $3
    }
    $1 < impl && $3 ~ /^} [A-Za-z_]/ && $3 !~ /^} ctr_/ { print $1 ": " $3 }' "$TMP/code" |
    rule "types start with ctr_"
awk -F '\t' '$3 ~ /(ctr|CTR|CONTRASTIVE)_[A-Za-z0-9_]*__/ || $3 ~ /(^|[^A-Za-z0-9_])__(ctr|CTR)/ {
        print $1 ": " $3 }' "$TMP/code" | rule "no double underscore in a name"
grep -o 'CONTRASTIVE_[A-Z_0-9]*[A-Z0-9]' $H | grep -v -x 'CONTRASTIVE_H' | sort -u |
    awk '{ all = all " " $0 } END { if (NR > 14) print NR ":" all }' |
    rule "at most 14 CONTRASTIVE_ macros"

# ---- the interface is explained and tested -------------------------------------------------------------

# The paragraph of a prototype (lines up to a blank one) holds a comment.
awk -v impl="$IMPL" -v functions="$TMP/functions" '
BEGIN { while ((getline line < functions) > 0) { split(line, f, " "); if (f[1] < impl && f[3] == "public") at[f[1]] = f[5] } }
NR >= impl { exit }
/^[ ]*$/ { flush(); next }
{ if ($0 ~ /\/\*/ || $0 ~ /\*\//) comment = 1 }
NR in at { names[++n] = NR ": " at[NR] }
function flush(    i) {
    if (!comment) for (i = 1; i <= n; i++) print names[i]
    n = comment = 0
}' $H | rule "every public function has a comment in its paragraph"

cat tests/*.c tests/*.h | tr -c 'A-Za-z0-9_' '\n' | grep '^ctr_' | sort -u >"$TMP/tested"
awk '$3 == "public" && $4 == "prototype" { print $5 }' "$TMP/functions" | sort -u >"$TMP/public"
comm -23 "$TMP/public" "$TMP/tested" | rule "every public function is named in a test"
for file in tests/test_*.c; do
    sed -n '1,30p' "$file" | grep -q '^[ /*]*run: ' || echo "$file"
done | rule "every test says where it runs"
# FILE is tested with IO, SAMPLE and LOADER with DATA, WINO and WINOFAST with CONV, POOL with VEC,
# MAP with EVAL, AGREE with LOSS (test_losses.c)
awk -v impl="$IMPL" -F '\t' '$1 > impl { print tolower($2) }' "$TMP/code" | sort -u |
    grep -v -x -e impl -e platform -e file -e sample -e loader -e map -e wino -e winofast -e pool -e agree -e '' | while read -r tag; do
    [ -f "tests/test_$tag.c" ] || echo "tests/test_$tag.c is missing"
done | rule "every section has its test file"

# ---- how it looks ---------------------------------------------------------------------------------------

TEXTS="$H $(ls tests/*.c tests/*.h examples/*.c examples/*.h bench/*.c bench/*.h 2>/dev/null)"
for file in $TEXTS; do
    awk -v f="$file" 'length($0) > 100 { print f ":" NR ": " length($0) " columns" }' "$file"
done | rule "lines have at most 100 columns"
for file in $TEXTS README.md; do
    [ "$file" = README.md ] && continue
    LC_ALL=C grep -n '[^ -~]' "$file" | sed "s|^|$file:|"
done | rule "nothing but printable ASCII: no tab, no other letter"
grep -n ' $' $H | rule "no blank at the end of a line"
awk 'END { if (NR >= 32000) print NR " lines" }' $H | rule "the header has less than 32,000 lines"
awk -v impl="$IMPL" -F '\t' '$1 > impl { size[$2]++ }
    END { for (s in size) if (size[s] >= 1500) print s " has " size[s] " lines" }' "$TMP/code" |
    rule "sections have less than 1,500 lines"

# ---- what must not be there ------------------------------------------------------------------------------

awk -F '\t' '$3 ~ /(^|[^A-Za-z0-9_])(abort|exit|_exit|printf|fprintf|puts|putchar|perror|rand|srand|random|getenv|setenv|system|signal|setlocale|gets|strtok|alloca|sprintf|strcpy|strcat)[ ]*\(/ {
        print $1 ": " $3 }' "$TMP/code" | rule "the library neither prints nor exits, and has no process-wide state"
awk -F '\t' -v impl="$IMPL" '$1 > impl && $3 ~ /^[ ]+static / && $3 !~ /static const/ { print $1 ": " $3 }' "$TMP/code" |
    rule "no static variable in a function"
awk -F '\t' '$3 ~ /#[ ]*define[ ]+(_POSIX|_GNU|_DEFAULT|_XOPEN|_BSD)/ { print $1 ": " $3 }' "$TMP/code" |
    rule "no feature macro is defined by the library"
awk -F '\t' '$3 ~ /M_PI|-INFINITY|[^a-z_]isnan|[^a-z_]isfinite|[^a-z_]isinf/ { print $1 ": " $3 }' "$TMP/code" |
    rule "no M_PI, INFINITY or isnan: they fail under -std=c99 or -ffast-math"
awk -F '\t' '$3 ~ /\/\// { print $1 ": " $3 }' "$TMP/code" | rule "comments are /* */"
grep -n -i -E 'TODO|FIXME|HACK|stand-in' $H | rule "nothing is left to do"
FORBIDDEN='(^|[^a-z.])/wo[r]k/|\.\./sh[a]red|issue[s] show|clau[d]e|anthro[p]ic|chatg[p]t|copi[l]ot|language mode[l]'
(git ls-files 2>/dev/null || find . -type f) | grep -v -e '^out/' -e '\.png$' -e ubyte -e '/golden/' |
    while read -r file; do
        [ -f "$file" ] && grep -n -i -I -E "$FORBIDDEN" "$file" | sed "s|^|$file:|" | cut -c1-120
    done | rule "no trace of where it was made"

echo "house: $(wc -l <"$TMP/passed" | tr -d ' ') passed, $(wc -l <"$TMP/failed" | tr -d ' ') failed, 0 skipped"
[ ! -s "$TMP/failed" ]
