#!/bin/sh
# check_arm64.sh - the NEON kernels on a machine of another kind: compiles for arm64, runs the kernels'
# tests in qemu, and compares products and convolutions with this machine's AVX2, bit by bit. No speed
# can be learnt from it. Called by run.sh.
CC=${CC:-cc} OUT=${OUT:-out/check_arm64} ROOT=${ROOT:-.} QUICK=${QUICK:-0} LIMIT=${LIMIT:-}
mkdir -p "$OUT"
passed=0 failed=0 skipped=0
done_() {
    echo "check_arm64: $passed passed, $failed failed, $skipped skipped"
    [ $failed = 0 ]
    exit
}
skip() { echo "skip $1"; skipped=$((skipped + 1)); }
ok() { echo "ok   $1"; passed=$((passed + 1)); }
bad() { # NAME LOG
    echo "FAIL $1; see $2"
    tail -n 5 "$2" | sed 's/^/     /'
    failed=$((failed + 1))
}
has() { command -v "$1" >/dev/null 2>&1; }
limit() { if [ -n "$LIMIT" ]; then s=$1; shift; $LIMIT "$s" "$@"; else shift; "$@"; fi; }

case $(uname -m) in
aarch64 | arm64) skip 'this is an arm64 machine: the tests themselves run the NEON kernels'; done_ ;;
esac
ARM=aarch64-linux-gnu-gcc QEMU=''
for q in qemu-aarch64 qemu-aarch64-static; do has $q && QEMU=$q && break; done
printf 'int main(void) { return 0; }\n' >"$OUT/probe.c"
if [ -z "$QEMU" ] || ! has $ARM || ! $ARM -static "$OUT/probe.c" -o "$OUT/probe" >/dev/null 2>&1; then
    skip 'no compiler or emulator of arm64 here (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)'
    done_
fi

cat >"$OUT/bits.c" <<'END'
/* The name of the kernels on stderr; a digest of each product's and convolution's bits on stdout. */
#include "contrastive.h"
#include <stdio.h>
#include <string.h>
#define MANY 200000
static ctr_real a[MANY], b[MANY], c[MANY];
static void digest(const char *what, int which)
{
    uint32_t hash = 2166136261u, bits;
    int i;
    for (i = 0; i < MANY; i++) {
        memcpy(&bits, &c[i], sizeof bits);
        hash = (hash ^ bits) * 16777619u;
    }
    printf("%s %d %08lx\n", what, which, (unsigned long)hash);
}
int main(void)
{
    /* image, channels, kernel, stride: Winograd narrow, patches, strides, Winograd wide, F(2x2) */
    static const int shapes[5][5] = { { 13, 24, 32, 3, 1 }, { 13, 3, 32, 3, 2 }, { 12, 40, 24, 1, 2 },
                                      { 12, 160, 136, 3, 1 }, { 5, 24, 40, 3, 1 } };
    ctr_ctx *ctx = ctr_ctx_create(NULL);
    ctr_rng rng;
    int i;
    fprintf(stderr, "%s\n", ctr_kernels_name(ctx));
    ctr_rng_init(&rng, 1, CTR_STREAM_USER, 0, 0, 0);
    for (i = 0; i < MANY; i++) a[i] = (ctr_real)(ctr_rng_uniform(&rng) - 0.5);
    for (i = 0; i < MANY; i++) b[i] = (ctr_real)(ctr_rng_uniform(&rng) - 0.5);
    for (i = 0; i < 4; i++) {
        int ta = i % 2, tb = i / 2;
        ctr_k_gemm(ctx, ta, tb, 67, 133, 501, (ctr_real)0.75, a, ta ? 67 : 501, b, tb ? 501 : 133,
                   (ctr_real)1, c, 133);
        digest("product", i);
    }
    for (i = 0; i < 5; i++) {
        ctr_conv_shape s;
        s.n = 2;
        s.h = s.w = shapes[i][0];
        s.c = shapes[i][1];
        s.oc = shapes[i][2];
        s.kh = s.kw = shapes[i][3];
        s.stride = shapes[i][4];
        s.pad = s.kh / 2;
        s.oh = s.ow = (s.h + 2 * s.pad - s.kh) / s.stride + 1;
        ctr_k_conv_forward(ctx, &s, a, b, c);
        digest("forward", i);
        ctr_k_conv_input(ctx, &s, a, b, c, 1);
        digest("input", i);
        ctr_k_conv_weight(ctx, &s, a, b, c, 1);
        digest("weight", i);
    }
    ctr_ctx_destroy(ctx);
    return 0;
}
END

WARN='-Wall -Wextra -pedantic -Wshadow -Werror'
log="$OUT/build.log"
if limit 300 $ARM -std=c99 -O2 $WARN -Wconversion -c "$ROOT/tests/impl.c" -o "$OUT/impl.o" >"$log" 2>&1; then
    ok 'compiles for arm64 without a warning'
else
    bad 'compiling for arm64' "$log"
    done_
fi

log="$OUT/bits.log"
if $ARM -std=c99 -O2 -static -I"$ROOT" "$OUT/bits.c" "$OUT/impl.o" -o "$OUT/bits" -lm -lpthread >"$log" 2>&1 &&
    limit 200 $QEMU "$OUT/bits" >"$OUT/neon.txt" 2>"$log" && [ "$(cat "$log")" = neon ]; then
    ok 'the kernels are NEON'
else
    bad 'a program in qemu, or its kernels are not NEON' "$log"
fi
# -std=c99 here and there: in its own dialect gcc joins products and sums of transforms as it likes
[ -f "${IMPL:-}" ] || {
    IMPL="$OUT/here.o"
    $CC -std=c99 -O2 -c "$ROOT/tests/impl.c" -o "$IMPL" >"$log" 2>&1
}
if $CC -std=c99 -O2 -I"$ROOT" "$OUT/bits.c" "$IMPL" -o "$OUT/here" -lm -lpthread >"$log" 2>&1 &&
    "$OUT/here" >"$OUT/here.txt" 2>"$log" && grep -q -x -e avx2 -e avx512 "$log"; then
    here=$(cat "$log")
    if cmp "$OUT/here.txt" "$OUT/neon.txt" >"$log" 2>&1; then
        ok "products and convolutions have the bits of $here"
    else
        bad "products and convolutions differ from those of $here" "$log"
    fi
else
    skip 'no AVX2 on this machine, to compare with'
fi

tests='gemm conv vec loss'
[ "$QUICK" = 1 ] && tests='gemm conv'
for name in $tests; do
    log="$OUT/$name.log"
    object="$OUT/impl.o"
    grep -q '^#define CONTRASTIVE_STATIC' "$ROOT/tests/test_$name.c" && object=''
    # shellcheck disable=SC2086 # an empty word must vanish
    if $ARM -std=c99 -O2 $WARN -static "-DTEST_DIR=\"$ROOT/tests\"" "$ROOT/tests/test_$name.c" $object \
        -o "$OUT/test_$name" -lm -lpthread >"$log" 2>&1 &&
        (cd "$OUT" && limit 300 $QEMU "./test_$name" --quick) >"$log" 2>&1; then
        ok "test_$name in qemu: $(tail -n 1 "$log" | sed 's/^.*: //')"
    else
        bad "test_$name in qemu" "$log"
    fi
done
done_
