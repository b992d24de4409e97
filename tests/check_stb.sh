#!/bin/sh
# check_stb.sh - the ways in which a program can bring stb_image, or none: each builds without a warning
# and decodes a PNG, or says how to get stb_image. Called by run.sh.
CC=${CC:-cc} OUT=${OUT:-out/check_stb} ROOT=${ROOT:-.}
mkdir -p "$OUT"
STB=''
for f in "$ROOT/stb_image.h" /usr/include/stb/stb_image.h /usr/include/stb_image.h; do
    [ -f "$f" ] && STB=$f && break
done
passed=0 failed=0 skipped=0
done_() {
    echo "check_stb: $passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
    exit
}
if [ -z "$STB" ]; then
    echo "skip no stb_image.h on this machine (Debian: apt-get install libstb-dev)"
    skipped=1
    done_
fi
cp "$STB" "$OUT/user_stb.h"

cat >"$OUT/use.h" <<'END'
#include "image_files.h"
int main(void)
{
    static sink s;
    ctr_ctx *ctx = ctr_ctx_create(NULL);
    ctr_image image;
    int ok;
    make_png(&s, 2, 8);
    ok = ctr_image_decode(ctx, s.bytes, s.size, 0, NULL, &image);
    if (ok) ok = image.w == PICTURE_W && image.pixels[3] == picture_value(1, 0, 0);
    puts(ok ? "decoded" : ctr_error_text(ctx));
    ctr_image_free(ctx, &image);
    ctr_ctx_destroy(ctx);
    return 0;
}
END
# program NAME "lines before the header": writes $OUT/NAME.c
program() {
    { printf '%s\n' "$2" '#define CONTRASTIVE_IMPLEMENTATION' '#include "contrastive.h"' '#include "use.h"'
    } >"$OUT/$1.c"
}
printf '#define STB_IMAGE_IMPLEMENTATION\n#include "user_stb.h"\n' >"$OUT/other.c"

# check NAME WORD FLAGS FILES...: builds as C and as C++ and looks for WORD in what it prints
check() {
    name=$1 word=$2 flags=$3
    shift 3
    for compiler in "$CC -std=c99" "${CXX:+$CXX -x c++ -std=c++11}"; do
        [ -n "$compiler" ] || continue
        log="$OUT/$name.log" objects=''
        : >"$log"
        for file in "$@"; do
            warn='-Wall -Wextra -pedantic -Wshadow -Wconversion -Werror'
            [ "$file" = other ] && warn=-w
            # shellcheck disable=SC2086 # flags are split on purpose
            $compiler -O0 $warn -I"$ROOT" -I"$ROOT/tests" -I"$OUT" $flags -c "$OUT/$file.c" \
                -o "$OUT/$name-$file.o" >>"$log" 2>&1 || { objects=''; break; }
            objects="$objects $OUT/$name-$file.o"
        done
        # shellcheck disable=SC2086
        if [ -n "$objects" ] && ${compiler%% *} $objects -o "$OUT/$name" -lm -lpthread >>"$log" 2>&1 &&
            "$OUT/$name" 2>&1 | tee -a "$log" | grep -q "$word"; then
            passed=$((passed + 1))
            echo "ok   $name, $compiler"
        else
            failed=$((failed + 1))
            echo "FAIL $name, $compiler; see $log"
            sed -n '1,5s/^/     /p' "$log"
        fi
    done
}

program found ''
check found decoded '' found
check without 'apt-get install libstb-dev' -DCONTRASTIVE_NO_STB_IMAGE found
check named decoded '-DCONTRASTIVE_STB_IMAGE="user_stb.h"' found
check twice decoded '' found other                       # ours is static, the other file's is not
USER='#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wextra"
#endif'
program declared "$USER
#include \"user_stb.h\""
check declared decoded '' declared other                 # the user's own, from another file
program implemented "$USER
#define STB_IMAGE_IMPLEMENTATION
#include \"user_stb.h\""
check implemented decoded '' implemented                 # the user's own, in the same file
done_
