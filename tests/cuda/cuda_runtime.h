/* cuda_runtime.h - the part of the CUDA runtime that contrastive_cuda.cu needs, on the CPU.
 *
 * g++ finds this file before NVIDIA's and compiles the .cu as C++17: a program that runs every
 * kernel, one block after the other, each thread of a block as a fibre with a stack of its own.
 * Threads change places at barriers and warp operations only, in an order that CUDAEMU_ORDER
 * chooses, so that a barrier that is missing shows in some order, and under the thread sanitizer in
 * every one.
 *
 *     CUDAEMU_ORDER=N       0 forward, 1 backward, N > 1: random, seeded by N (threads of a block,
 *                           warps, and blocks of a grid)
 *     CUDAEMU_DEFER=1       a stream's work is done only when somebody waits for it
 *     CUDAEMU_KERNELS=PATH  appends the name of each kernel that ran
 *     CUDAEMU_GUARD=1       outside of kernels and copies device memory has no access rights: whoever
 *                           follows a device pointer on the host ends there, as with a GPU
 *     CUDAEMU_FAULT=N       switches on fault N of the .cu: see test_faults.c
 *
 * What is found, and how: host pointers given to kernels and device pointers read by the host
 * (address sanitizer); reads of memory that nobody wrote (it holds NaN); overruns of shared and of
 * device memory (address sanitizer; each cudaMalloc is a block of its own); barriers that not every
 * thread reaches; shuffles from lanes that take no part. Not found: missing __threadfence, races
 * between blocks.
 *
 * What it computes is compared with the CPU's kernels within a tolerance; what a GPU rounds
 * otherwise, and how fast it is, this file cannot know. */
#ifndef CTR_CUDA_EMULATION_H
#define CTR_CUDA_EMULATION_H
#ifdef __CUDACC__
#error "this is the emulation: nvcc wants NVIDIA's own header"
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>
#include <csignal>
#include <sys/mman.h>
#include <unistd.h>
#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#define EMU_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#define EMU_UCONTEXT 1
#endif

/* The emulation itself must not be checked: it switches stacks and looks into poisoned memory. */
#define EMU_RT __attribute__((noinline, no_sanitize("address", "thread", "undefined")))

/* ---- the language ---------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
/* Static shared memory lies in one section, so that it can be filled between blocks. */
#define __shared__ static __attribute__((section("emu_shared")))
#define CTR_LAUNCH_(kernel, grid, block, shared, stream, ...)                                      \
    emu::launch(#kernel, kernel, grid, block, shared, stream, __VA_ARGS__)
#define CTR_UNROLL_
#define CTR_STRIP_ (1 << 14)
#define CTR_FAULT_(which) (emu::M.fault == (which)) /* CUDAEMU_FAULT=N: see test_faults.c */
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct __attribute__((may_alias, aligned(16))) float4 { float x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101, cudaErrorNoKernelImageForDevice = 209,
    cudaErrorIllegalAddress = 700, cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
struct cudaFuncAttributes { int ptxVersion, binaryVersion; };
struct cudaDeviceProp { char name[256]; int major, minor, multiProcessorCount; };

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emu {

typedef std::function<void()> work;
struct stream { std::vector<work> queue; size_t done = 0; };
struct event { stream *of = nullptr; size_t upto = 0; };

enum where { READY, AT_BARRIER, AT_WARP, DONE };
typedef void (*warp_fn)(void **args, unsigned mask);

struct thread {                  /* a CUDA thread, or the program itself */
    void *sp;                    /* its stack pointer while it waits */
    char *stack;
    void *fake, *tsan;           /* what the sanitizers know it by */
    uint3 index;
    unsigned warp, lane, mask;
    where at;
    int line;                    /* of the source, where it waits */
    void *arg;                   /* of the warp operation that it waits for */
#ifdef EMU_UCONTEXT
    ucontext_t context;
#endif
};
struct warp { unsigned alive, waiting, turn; char sync[2]; };

enum { STACK = 256 << 10, MOST = 1024 };

struct machine {
    thread threads[MOST], host, *now;
    const void *host_stack;      /* for the address sanitizer */
    size_t host_size;
    warp warps[MOST / 32];
    unsigned order[MOST], count, made, cursor, alive, at_barrier, barrier_turn;
    int vote, voted;             /* of __syncthreads_or */
    char barrier_sync[2], start_sync, end_sync;
    const work *body;
    const char *kernel;
    int mode, defer, fault, in_kernel;
    uint64_t random;
    cudaError_t last;
    std::map<uintptr_t, size_t> memory;          /* what cudaMalloc gave */
    std::set<std::string> kernels;
    std::map<std::string, long> calls;           /* of each function of the runtime */
    std::string fail_call;                       /* the one that shall fail, */
    long fail_at;                                /* the n-th time from now, */
    int fail_status;                             /* with this status */
    machine();
    ~machine();
};
inline machine M;

EMU_RT inline machine::machine()
{
    const char *text = getenv("CUDAEMU_ORDER");
    memset((void *)threads, 0, sizeof threads);
    memset((void *)&host, 0, sizeof host);
    memset(warps, 0, sizeof warps);
    made = count = 0;
    barrier_turn = 0;
    vote = voted = 0;
    host_stack = nullptr;
    kernel = nullptr;
    body = nullptr;
    in_kernel = 0;
    last = cudaSuccess;
    fail_at = 0;
    mode = text ? atoi(text) : 0;
    fault = getenv("CUDAEMU_FAULT") ? atoi(getenv("CUDAEMU_FAULT")) : 0;
    random = 88172645463325252ull + 0x9E3779B97F4A7C15ull * (uint64_t)mode;
    defer = getenv("CUDAEMU_DEFER") != nullptr;
}
EMU_RT inline machine::~machine()
{
    const char *path = getenv("CUDAEMU_KERNELS");
    FILE *f = path ? fopen(path, "a") : nullptr;
    if (!f) return;
    for (const std::string &name : kernels) fprintf(f, "%s\n", name.c_str());
    fclose(f);
}

EMU_RT inline void fail(const char *what, int line = 0)
{
    fflush(stdout);
    fprintf(stderr, "emulation: %s: %s (line %d) block (%u,%u,%u) thread (%u,%u,%u)\n",
            M.kernel ? M.kernel : "host", what, line, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z);
    abort();
}

EMU_RT inline unsigned below(unsigned n)         /* a random number below n */
{
    M.random ^= M.random << 13;
    M.random ^= M.random >> 7;
    M.random ^= M.random << 17;
    return (unsigned)(M.random >> 32) % n;
}

/* order[] = 0..n-1 by the mode; random ones keep warps together every other time. */
EMU_RT inline void arrange(unsigned *order, unsigned n)
{
    unsigned i, j, t, group = M.mode > 1 && (M.mode & 1) && n > 32 ? 32 : 1;
    for (i = 0; i < n; i++) order[i] = M.mode == 1 ? n - 1 - i : i;
    if (M.mode < 2) return;
    if (group > 1) {             /* warps in a random order, each running ahead of the next */
        unsigned warps = n / 32, at = 0, turn[MOST / 32];
        for (i = 0; i < warps; i++) turn[i] = i;
        for (i = warps; i > 1; i--) {
            j = below(i);
            t = turn[j];
            turn[j] = turn[i - 1];
            turn[i - 1] = t;
        }
        for (i = 0; i < warps; i++)
            for (j = 0; j < 32; j++) order[at++] = turn[i] * 32 + j;
        return;
    }
    for (i = n; i > 1; i--) {
        j = below(i);
        t = order[j];
        order[j] = order[i - 1];
        order[i - 1] = t;
    }
}

/* ---- fibres ---------------------------------------------------------------------------------- */

#ifndef EMU_UCONTEXT
extern "C" void emu_swap(void **save, void *load);
__asm__(".text\n.weak emu_swap\n.type emu_swap,@function\nemu_swap:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emu_swap,.-emu_swap\n");
#endif

EMU_RT inline void switch_to(thread *to)
{
    thread *from = M.now;
    if (to == from) return;
    M.now = to;
    threadIdx = to->index;
#ifdef EMU_ASAN
    if (to == &M.host) __sanitizer_start_switch_fiber(&from->fake, M.host_stack, M.host_size);
    else __sanitizer_start_switch_fiber(&from->fake, to->stack, STACK);
#endif
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef EMU_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    emu_swap(&from->sp, to->sp);
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}

/* To the next thread that can go on; to the program when all are done; else nobody ever can. */
EMU_RT inline void yield()
{
    for (unsigned k = 0; k < M.count; k++) {
        unsigned at = M.cursor + k < M.count ? M.cursor + k : M.cursor + k - M.count;
        thread *t = &M.threads[M.order[at]];
        if (t->at != READY) continue;
        M.cursor = at;
        switch_to(t);
        return;
    }
    if (!M.alive) {
        switch_to(&M.host);
        return;
    }
    for (unsigned i = 0; i < M.count; i++)
        if (M.threads[i].at != DONE) {
            threadIdx = M.threads[i].index;
            fail(M.threads[i].at == AT_BARRIER ? "waits at __syncthreads for ever"
                                               : "waits at a warp operation for ever",
                 M.threads[i].line);
        }
}

EMU_RT inline void barrier_open()
{
    int line = 0;
    for (unsigned i = 0; i < M.count; i++) {
        thread *t = &M.threads[i];
        if (t->at != AT_BARRIER) continue;
        if (line && t->line != line)
            fail("threads of one block meet at different __syncthreads", t->line);
        line = t->line;
        t->at = READY;
    }
    M.at_barrier = 0;
    M.barrier_turn++;
    M.voted = M.vote;
    M.vote = 0;
    arrange(M.order, M.count);
    M.cursor = 0;
}

EMU_RT inline int barrier(int vote, int line)
{
    thread *me = M.now;
#ifdef EMU_TSAN
    char *sync = &M.barrier_sync[M.barrier_turn & 1];
    __tsan_release(sync);
#endif
    me->at = AT_BARRIER;
    me->line = line;
    M.vote |= vote;
    if (++M.at_barrier == M.alive) barrier_open();
    yield();
#ifdef EMU_TSAN
    __tsan_acquire(sync);
#endif
    return M.voted;
}

/* The lanes of `mask` meet; the last one to come does fn for all of them. */
EMU_RT inline void meet(unsigned mask, warp_fn fn, void *arg, int line)
{
    thread *me = M.now;
    warp *w = &M.warps[me->warp];
    void *args[32];
    if (!(mask >> me->lane & 1)) fail("a warp operation whose mask lacks the caller", line);
    me->at = AT_WARP;
    me->line = line;
    me->mask = mask;
    me->arg = arg;
    w->waiting |= 1u << me->lane;
    if ((w->waiting & mask) == mask) {
        for (unsigned l = 0; l < 32; l++) {
            thread *t = &M.threads[me->warp * 32 + l];
            args[l] = nullptr;
            if (!(mask >> l & 1)) continue;
            if (t->mask != mask || t->line != line)
                fail("lanes of a warp meet at different operations", t->line);
            args[l] = t->arg;
            t->at = READY;
        }
        if (fn) fn(args, mask);
        w->waiting &= ~mask;
        w->turn++;
    }
    yield();
}

EMU_RT inline void thread_main()
{
#ifdef EMU_ASAN
    const void *from;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &from, &size);
    if (!M.host_stack) {         /* the first thread of all comes from the program's stack */
        M.host_stack = from;
        M.host_size = size;
    }
#endif
    for (;;) {
#ifdef EMU_TSAN
        __tsan_acquire(&M.start_sync);
#endif
        (*M.body)();
#ifdef EMU_TSAN
        __tsan_release(&M.end_sync);
#endif
        M.now->at = DONE;
        M.alive--;
        M.warps[M.now->warp].alive &= ~(1u << M.now->lane);
        if (M.alive && M.at_barrier == M.alive) barrier_open();
        yield();                 /* comes back when the next block begins */
    }
}

EMU_RT inline void threads_make(unsigned n)
{
#ifdef EMU_TSAN
    if (!M.host.tsan) M.host.tsan = __tsan_get_current_fiber();
#endif
    for (; M.made < n; M.made++) {
        thread *t = &M.threads[M.made];
        char *pages = (char *)mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == (char *)MAP_FAILED) fail("no memory for stacks");
        mprotect(pages, 4096, PROT_NONE);
        t->stack = pages + 4096;
        t->warp = M.made / 32;
        t->lane = M.made % 32;
#ifdef EMU_UCONTEXT
        getcontext(&t->context);
        t->context.uc_stack.ss_sp = t->stack;
        t->context.uc_stack.ss_size = STACK;
        t->context.uc_link = nullptr;
        makecontext(&t->context, thread_main, 0);
#else
        void **sp = (void **)(t->stack + STACK - 64);
        *--sp = nullptr;         /* thread_main returns nowhere */
        *--sp = (void *)thread_main;
        for (int i = 0; i < 6; i++) *--sp = nullptr;
        t->sp = sp;
#endif
#ifdef EMU_TSAN
        t->tsan = __tsan_create_fiber(0);
#endif
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

extern "C" {
extern char __start_emu_shared[] __attribute__((weak));
extern char __stop_emu_shared[] __attribute__((weak));
}

EMU_RT inline void fill(char *p, size_t n)       /* NaN; by hand, since memset is checked */
{
    for (volatile char *q = p; n--;) *q++ = (char)0xff;
}

/* With CUDAEMU_GUARD: one region for all of cudaMalloc's blocks, whole pages each, that is open and
   closed by one system call. */
enum : size_t { PAGE = 4096, REGION = (size_t)1 << 36 };
struct region {
    char *base = nullptr;
    size_t used = 0;
    std::multimap<size_t, char *> spare;
};
inline region G;

inline void region_hit(int, siginfo_t *info, void *)
{
    static const char text[] = "emulation: the host touches device memory\n";
    const char *at = (const char *)info->si_addr;
    if (at >= G.base && at < G.base + REGION && write(2, text, sizeof text - 1)) {}
    signal(SIGSEGV, SIG_DFL); /* and again, this time for good */
}

/* Without the variable NULL, and malloc has to do. */
EMU_RT inline char *region_take(size_t n)
{
    static const bool wanted = getenv("CUDAEMU_GUARD") != nullptr;
    if (!wanted) return nullptr;
    if (!G.base) {
        struct sigaction action;
        G.base = (char *)mmap(nullptr, REGION, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (G.base == MAP_FAILED) fail("no address space for CUDAEMU_GUARD");
        memset(&action, 0, sizeof action);
        action.sa_sigaction = region_hit;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, nullptr);
    }
    n = (n + PAGE) & ~(size_t)(PAGE - 1); /* at least one byte is nobody's */
    auto it = G.spare.find(n);
    char *p = G.base + G.used;
    if (it != G.spare.end()) {
        p = it->second;
        G.spare.erase(it);
    } else {
        G.used += n;
        if (G.used > REGION) fail("CUDAEMU_GUARD has no address space left");
    }
    mprotect(G.base, G.used, PROT_READ | PROT_WRITE);
    return p;
}
EMU_RT inline void region_give(char *p, size_t n)
{
    G.spare.insert({(n + PAGE) & ~(size_t)(PAGE - 1), p});
}

/* The host must not touch device memory: outside of kernels and copies it is poisoned. */
EMU_RT inline void device_visible(bool on)
{
    if (on ? M.in_kernel++ : --M.in_kernel) return;
    if (G.base) mprotect(G.base, G.used, on ? PROT_READ | PROT_WRITE : PROT_NONE);
#ifdef EMU_ASAN
    for (auto &m : M.memory)
        if (on) __asan_unpoison_memory_region((void *)m.first, m.second);
        else __asan_poison_memory_region((void *)m.first, m.second);
#endif
}
struct visible {
    visible() { device_visible(true); }
    ~visible() { device_visible(false); }
};

EMU_RT inline bool is_device(const void *p, size_t n = 1)
{
    auto it = M.memory.upper_bound((uintptr_t)p);
    if (it == M.memory.begin()) return false;
    --it;
    return (uintptr_t)p + n <= it->first + it->second;
}

/* ---- kernels --------------------------------------------------------------------------------- */

EMU_RT inline void run_block(dim3 b)
{
    unsigned n = b.x * b.y * b.z;
    if (__start_emu_shared)
        fill(__start_emu_shared, (size_t)(__stop_emu_shared - __start_emu_shared));
    memset(M.warps, 0, sizeof M.warps);
    M.alive = n;
    M.at_barrier = 0;
    M.vote = 0;
    for (unsigned t = 0; t < n; t++) {
        M.threads[t].index = {t % b.x, t / b.x % b.y, t / b.x / b.y};
        M.threads[t].at = READY;
        M.warps[t / 32].alive |= 1u << t % 32;
    }
    arrange(M.order, n);
    M.cursor = 0;
#ifdef EMU_TSAN
    __tsan_release(&M.start_sync);
#endif
    M.now = &M.host;
    yield();
#ifdef EMU_TSAN
    __tsan_acquire(&M.end_sync);
#endif
}

EMU_RT inline void run_grid(const char *name, dim3 g, dim3 b, const work &body)
{
    visible scope;
    size_t blocks = (size_t)g.x * g.y * g.z;
    std::vector<unsigned> order(blocks);
    M.kernels.insert(name);
    M.kernel = name;
    M.count = b.x * b.y * b.z;
    M.body = &body;
    threads_make(M.count);
    blockDim = b;
    gridDim = g;
    for (size_t i = 0; i < blocks; i++) order[i] = (unsigned)(M.mode == 1 ? blocks - 1 - i : i);
    for (size_t i = M.mode > 1 ? blocks : 0; i > 1; i--)
        std::swap(order[i - 1], order[below((unsigned)i)]);
    for (size_t i = 0; i < blocks; i++) {
        unsigned at = order[i];
        blockIdx = {at % g.x, at / g.x % g.y, at / g.x / g.y};
        run_block(b);
    }
    M.kernel = nullptr;
    M.count = 0;
}

inline void drain(stream *s, size_t upto)
{
    while (s->done < upto && s->done < s->queue.size()) {
        work w = std::move(s->queue[s->done++]);
        w();
    }
    if (s->done == s->queue.size() && upto >= s->done) { s->queue.clear(); s->done = 0; }
}
inline void submit(stream *s, work w)
{
    if (M.defer) s->queue.push_back(std::move(w));
    else w();
}

/* Pointers among a kernel's arguments, and in structs only what the kernel itself touches. */
template <class T> void check_argument(const char *name, const T &value)
{
    if constexpr (std::is_pointer_v<T>)
        if (value && !is_device((const void *)value)) {
            M.kernel = name;
            fail("an argument is a host pointer");
        }
}

template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), dim3 g, dim3 b, size_t shared, stream *s,
            A... a)
{
    unsigned long threads = (unsigned long)b.x * b.y * b.z;
    std::tuple<std::decay_t<P>...> args(static_cast<P>(a)...);
    if (emu_failing("launch", (int *)&M.last)) return;
    if (!g.x || !g.y || !g.z || g.x > 2147483647u || g.y > 65535 || g.z > 65535 || !threads ||
        threads > MOST || b.z > 64 || shared > 49152 || sizeof args > 4096) {
        M.last = cudaErrorInvalidConfiguration;
        return;
    }
    if (threads % 32 && threads > 32) {
        M.kernel = name;
        fail("a block that is no whole number of warps");
    }
    std::apply([&](const auto &...v) { (check_argument(name, v), ...); }, args);
    submit(s, [=] { run_grid(name, g, b, [&] { std::apply(kernel, args); }); });
}

/* ---- warp operations ------------------------------------------------------------------------- */

template <class T> struct shuffle_arg { T in, out; unsigned from; };
template <class T> EMU_RT void shuffle_fn(void **args, unsigned mask)
{
    for (int l = 0; l < 32; l++) {
        shuffle_arg<T> *a = (shuffle_arg<T> *)args[l];
        if (!a) continue;
        if (!(mask >> a->from & 1)) fail("a shuffle from a lane that takes no part");
        a->out = ((shuffle_arg<T> *)args[a->from])->in;
    }
}

/* A number rounded to bf16 (8 bits of mantissa) or TF32 (11), to the nearest, ties to even or away:
   as the conversions of the hardware do. */
EMU_RT inline float rounded(float x, int drop, int even)
{
    uint32_t u, half = 1u << (drop - 1);
    __builtin_memcpy(&u, &x, 4);
    if ((u & 0x7f800000u) == 0x7f800000u) return x;
    u += even ? half - 1 + (u >> drop & 1) : half;
    u &= ~((1u << drop) - 1);
    __builtin_memcpy(&x, &u, 4);
    return x;
}

struct mma_arg { float *d; const uint32_t *a, *b; };

/* d[16][8] += a[16][k] b[k][8], spread over the lanes as the PTX manual draws it: lane = 4 g + t
   has of d the places (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). */
template <int K> EMU_RT void mma_finish(void **args, float a[16][K], float b[K][8])
{
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            int row = (l >> 2) + (i >> 1) * 8, col = (l & 3) * 2 + (i & 1);
            float sum = ((mma_arg *)args[l])->d[i];
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][col];
            ((mma_arg *)args[l])->d[i] = sum;
        }
}
EMU_RT inline float as_float(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }

/* m16n8k8, TF32: a: (g, t), (g+8, t), (g, t+4), (g+8, t+4); b: (t, g), (t+4, g) */
EMU_RT inline void mma_tf32_fn(void **args, unsigned mask)
{
    float a[16][8], b[8][8];
    if (mask != ~0u) fail("mma with lanes missing");
    for (int l = 0; l < 32; l++) {
        const mma_arg *m = (mma_arg *)args[l];
        for (int i = 0; i < 4; i++)
            a[(l >> 2) + (i & 1) * 8][(l & 3) + (i >> 1) * 4] = rounded(as_float(m->a[i]), 13, 0);
        for (int i = 0; i < 2; i++)
            b[(l & 3) + i * 4][l >> 2] = rounded(as_float(m->b[i]), 13, 0);
    }
    mma_finish<8>(args, a, b);
}

/* m16n8k16, bf16 in pairs: a: (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..); b likewise */
EMU_RT inline void mma_bf16_fn(void **args, unsigned mask)
{
    float a[16][16], b[16][8];
    if (mask != ~0u) fail("mma with lanes missing");
    for (int l = 0; l < 32; l++) {
        const mma_arg *m = (mma_arg *)args[l];
        int g = l >> 2, t = (l & 3) * 2;
        for (int i = 0; i < 8; i++)
            a[g + (i >> 1 & 1) * 8][t + (i & 1) + (i >> 2) * 8] =
                as_float(m->a[i >> 1] >> (i & 1) * 16 << 16);
        for (int i = 0; i < 4; i++)
            b[t + (i & 1) + (i >> 1) * 8][g] = as_float(m->b[i >> 1] >> (i & 1) * 16 << 16);
    }
    mma_finish<16>(args, a, b);
}

/* ---- functions of the runtime: counted, and failing on demand -------------------------------- */

inline bool failing(const char *call, int *status) { return emu_failing(call, status); }

}  /* namespace emu */

typedef emu::stream *cudaStream_t;
typedef emu::event *cudaEvent_t;

extern "C" {
inline int emu_failing(const char *call, int *status)
{
    emu::M.calls[call]++;
    if (emu::M.fail_at == 0 || emu::M.fail_call != call || --emu::M.fail_at > 0) return 0;
    *status = emu::M.fail_status;
    return 1;
}
void emu_fail(const char *call, long nth, int status)
{
    emu::M.fail_call = call;
    emu::M.fail_at = nth;
    emu::M.fail_status = status;
}
long emu_calls(const char *call) { return emu::M.calls[call]; }
long emu_memory(void) { return (long)emu::M.memory.size(); }
}

#define EMU_LINE int line = __builtin_LINE()
#define EMU_CALL(name)                                                                             \
    do {                                                                                           \
        int status_;                                                                               \
        if (emu::failing(#name, &status_)) return (cudaError_t)status_;                            \
    } while (0)

static inline void __syncthreads(EMU_LINE) { emu::barrier(0, line); }
static inline int __syncthreads_or(int p, EMU_LINE) { return emu::barrier(p != 0, line); }
EMU_RT static inline void __syncwarp(unsigned mask = ~0u, EMU_LINE)
{
#ifdef EMU_TSAN
    emu::warp *w = &emu::M.warps[emu::M.now->warp];
    char *sync = &w->sync[w->turn & 1];
    __tsan_release(sync);
#endif
    emu::meet(mask, nullptr, nullptr, line);
#ifdef EMU_TSAN
    __tsan_acquire(sync);
#endif
}
template <class T> EMU_RT T __shfl_xor_sync(unsigned mask, T value, int lanes, EMU_LINE)
{
    emu::shuffle_arg<T> a = {value, value, emu::M.now->lane ^ (unsigned)lanes};
    emu::meet(mask, emu::shuffle_fn<T>, &a, line);
    return a.out;
}
EMU_RT static inline void ctr_mma_tf32(float *d, const uint32_t *a, const uint32_t *b, EMU_LINE)
{
    emu::mma_arg m = {d, a, b};
    emu::meet(~0u, emu::mma_tf32_fn, &m, line);
}
EMU_RT static inline void ctr_mma_bf16(float *d, const uint32_t *a, const uint32_t *b, EMU_LINE)
{
    emu::mma_arg m = {d, a, b};
    emu::meet(~0u, emu::mma_bf16_fn, &m, line);
}
EMU_RT static inline uint32_t ctr_to_tf32(float x)
{
    uint32_t u;
    x = emu::rounded(x, 13, 0);
    __builtin_memcpy(&u, &x, 4);
    return u;
}
EMU_RT static inline uint32_t ctr_to_bf16x2(float low, float high)
{
    uint32_t l, h;
    low = emu::rounded(low, 16, 1);
    high = emu::rounded(high, 16, 1);
    __builtin_memcpy(&l, &low, 4);
    __builtin_memcpy(&h, &high, 4);
    return h | l >> 16;
}
#define CTR_MMA_DEFINED_ 1

template <class T> cudaError_t cudaMalloc(T **p, size_t n)
{
    void *block;
    EMU_CALL(cudaMalloc);
    emu::visible open;
    block = emu::region_take(n);
    if (!block && posix_memalign(&block, 256, n ? n : 1)) return cudaErrorMemoryAllocation;
    memset(block, 0xff, n);
    emu::M.memory[(uintptr_t)block] = n;
    *p = (T *)block;
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p)
{
    EMU_CALL(cudaFree);
    if (!p) return cudaSuccess;
    auto it = emu::M.memory.find((uintptr_t)p);
    if (it == emu::M.memory.end()) emu::fail("cudaFree of what cudaMalloc never gave");
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(p, it->second);
#endif
    size_t n = it->second;
    emu::M.memory.erase(it);
    if (emu::G.base) emu::region_give((char *)p, n);
    else free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaHostAlloc(void **p, size_t n, unsigned)
{
    EMU_CALL(cudaHostAlloc);
    *p = malloc(n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p)
{
    EMU_CALL(cudaFreeHost);
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                                          cudaStream_t s)
{
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    EMU_CALL(cudaMemcpyAsync);
    if (n && to_device != emu::is_device(to, n))
        emu::fail("memcpy: wrong destination, or past its end");
    if (n && from_device != emu::is_device(from, n))
        emu::fail("memcpy: wrong source, or past its end");
    emu::submit(s, [=] { emu::visible scope; memcpy(to, from, n); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
    EMU_CALL(cudaMemsetAsync);
    if (n && !emu::is_device(p, n)) emu::fail("memset: not device memory, or past its end");
    emu::submit(s, [=] { emu::visible scope; memset(p, value, n); });
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    EMU_CALL(cudaStreamCreateWithFlags);
    *s = new emu::stream;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    EMU_CALL(cudaStreamSynchronize);
    emu::drain(s, s->queue.size());
    return cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    EMU_CALL(cudaStreamDestroy);
    emu::drain(s, s->queue.size());
    delete s;
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    EMU_CALL(cudaEventCreateWithFlags);
    *e = new emu::event;
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    EMU_CALL(cudaEventRecord);
    e->of = s;
    e->upto = s->queue.size();
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    EMU_CALL(cudaEventSynchronize);
    if (e->of) emu::drain(e->of, e->upto);
    return cudaSuccess;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    EMU_CALL(cudaEventDestroy);
    delete e;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceCount(int *n)
{
    EMU_CALL(cudaGetDeviceCount);
    *n = 1;
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int index)
{
    EMU_CALL(cudaSetDevice);
    return index == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int)
{
    EMU_CALL(cudaDeviceGetAttribute);
    *value = which == cudaDevAttrMultiProcessorCount ? 2
             : which == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
    return cudaSuccess;
}
template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, K)
{
    EMU_CALL(cudaFuncGetAttributes);
    a->ptxVersion = a->binaryVersion = 80;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    EMU_CALL(cudaGetDeviceProperties);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulation");
    p->major = 8;
    p->multiProcessorCount = 2;
    return cudaSuccess;
}
/* Whole numbers alone: their sums know no order. */
static inline unsigned atomicAdd(unsigned *at, unsigned v)
{
    return __atomic_fetch_add(at, v, __ATOMIC_RELAXED);
}
static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    __builtin_memcpy(&u, &x, 4);
    return u;
}
static inline cudaError_t cudaGetLastError(void)
{
    cudaError_t e = emu::M.last;
    emu::M.last = cudaSuccess;
    return e;
}
static inline const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "an error";
    }
}
#endif
