/* test_steps.c - whole training steps of every method on contrastive_cuda.cu against the CPU.
 * Built by tests/check_cuda.sh, with the emulation of this folder or with nvcc.
 *
 * Each method takes the same batches on both. The first loss depends on forward passes alone and
 * must be equal to 1e-4; after the first step every piece of state is within 1e-2 (L2, relative):
 * the sign of a number near 0 may differ, and a ReLU then closes on one side only. Also: the second
 * step's loss, the same bytes from run to run, batches in chunks where the method takes them, a
 * checkpoint that moves between devices, and what a step waits for.
 */
#include "../model.h"
#ifdef CTR_TEST_EMULATION
#include "emulation.h"
#endif

enum {
    SIMCLR, SUPCON, MOCO2, MOCO3, BYOL, SIMSIAM, BARLOW, VICREG, NPID, FACENET, SWAV, DEEPCLUSTER,
    DEEPCLUSTER1, PIRL, CPC, CLIP, SIGLIP, SUPERVISED, FINETUNE, FROZEN, MIXUP, CUTMIX, KINDS
};
static const char *const kinds[KINDS] = {
    "simclr", "supcon", "moco v2", "moco v3", "byol", "simsiam", "barlow twins", "vicreg", "npid",
    "facenet", "swav", "deepcluster v2", "deepcluster v1", "pirl", "cpc", "clip", "siglip",
    "supervised", "fine-tuning", "linear evaluation", "simclr with mixup", "byol with cutmix"
};
enum { IMAGES = 24, SIDE = 8, BATCH = 8, STATES = 400, VOCAB = 20, CONTEXT = 6 };
#define WEIGHTS "steps_weights.ctr" /* of a SimCLR step on the CPU: fine-tuning starts from it */

static ctr_resnet_config net(void)
{
    ctr_resnet_config c = ctr_resnet_config_default(8);
    c.width = 4;
    c.image_size = SIDE;
    return c;
}

static ctr_method *make_simclr(ctr_ctx *ctx, int supervised)
{
    ctr_simclr_config c = ctr_simclr_default();
    c.encoder = net();
    c.proj_dim = 8;
    c.supervised = supervised;
    c.aug = ctr_aug_simclr_default(SIDE);
    return ctr_simclr_create(ctx, &c);
}

static ctr_method *make_moco(ctr_ctx *ctx, int version)
{
    ctr_moco_config c = ctr_moco_default(version);
    c.encoder = net();
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.pred_hidden = 12;
    c.queue = 20;
    c.split_norm = version == 2 ? 2 : 1;
    c.aug[0] = ctr_aug_moco_default(SIDE, version, 0);
    c.aug[1] = ctr_aug_moco_default(SIDE, version, 1);
    return ctr_moco_create(ctx, &c);
}

static ctr_method *make_byol(ctr_ctx *ctx)
{
    ctr_byol_config c = ctr_byol_default();
    c.encoder = net();
    c.proj_hidden = c.pred_hidden = 12;
    c.proj_dim = 8;
    c.aug[0] = ctr_aug_byol_default(SIDE, 0);
    c.aug[1] = ctr_aug_byol_default(SIDE, 1);
    return ctr_byol_create(ctx, &c);
}

static ctr_method *make_simsiam(ctr_ctx *ctx)
{
    ctr_simsiam_config c = ctr_simsiam_default();
    c.encoder = net();
    c.proj_dim = 8;
    c.pred_hidden = 6;
    c.aug = ctr_aug_moco_default(SIDE, 2, 0);
    return ctr_simsiam_create(ctx, &c);
}

static ctr_method *make_barlow(ctr_ctx *ctx)
{
    ctr_barlow_twins_config c = ctr_barlow_twins_default();
    c.encoder = net();
    c.proj_dim = 8;
    c.aug[0] = ctr_aug_byol_default(SIDE, 0);
    c.aug[1] = ctr_aug_byol_default(SIDE, 1);
    return ctr_barlow_twins_create(ctx, &c);
}

static ctr_method *make_vicreg(ctr_ctx *ctx)
{
    ctr_vicreg_config c = ctr_vicreg_default();
    c.encoder = net();
    c.proj_dim = 8;
    c.aug[0] = ctr_aug_byol_default(SIDE, 0);
    c.aug[1] = ctr_aug_byol_default(SIDE, 1);
    return ctr_vicreg_create(ctx, &c);
}

static ctr_method *make_npid(ctr_ctx *ctx)
{
    ctr_npid_config c = ctr_npid_default();
    c.encoder = net();
    c.images = IMAGES;
    c.proj_dim = 8;
    c.negatives = 10;
    c.aug = ctr_aug_moco_default(SIDE, 1, 0);
    return ctr_npid_create(ctx, &c);
}

static ctr_method *make_facenet(ctr_ctx *ctx)
{
    ctr_facenet_config c = ctr_facenet_default();
    c.encoder = net();
    c.dim = 8;
    c.per_class = 4;
    c.aug = ctr_aug_none_default(SIDE);
    return ctr_facenet_create(ctx, &c);
}

static ctr_method *make_swav(ctr_ctx *ctx)
{
    ctr_swav_config c = ctr_swav_default();
    c.encoder = net();
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.prototypes = 5;
    c.small_views = 2;
    c.freeze_prototypes_steps = 0;
    c.aug = ctr_aug_swav_default(SIDE, 0);
    c.small_aug = ctr_aug_swav_default(SIDE, 1);
    return ctr_swav_create(ctx, &c);
}

static ctr_method *make_deepcluster(ctr_ctx *ctx)
{
    ctr_deepcluster_v2_config c = ctr_deepcluster_v2_default();
    c.encoder = net();
    c.proj_hidden = 12;
    c.proj_dim = 8;
    c.images = IMAGES;
    c.prototypes = 5;
    c.heads = 2;
    c.small_views = 0;
    c.aug = ctr_aug_swav_default(SIDE, 0);
    c.small_aug = ctr_aug_swav_default(SIDE, 1);
    return ctr_deepcluster_v2_create(ctx, &c);
}

static ctr_method *make_deepcluster1(ctr_ctx *ctx)
{
    ctr_deepcluster_v1_config c = ctr_deepcluster_v1_default();
    c.encoder = net();
    c.images = IMAGES;
    c.clusters = 4;
    c.aug.height = c.aug.width = SIDE;
    return ctr_deepcluster_v1_create(ctx, &c);
}

static ctr_method *make_pirl(ctr_ctx *ctx)
{
    ctr_pirl_config c = ctr_pirl_default();
    c.encoder = net();
    c.images = IMAGES;
    c.proj_dim = 8;
    c.negatives = 10;
    c.aug = ctr_aug_pirl_default(SIDE, 0);
    c.piece_aug = ctr_aug_pirl_default(SIDE, 1);
    c.piece_aug.height = c.piece_aug.width = 4;
    return ctr_pirl_create(ctx, &c);
}

static ctr_method *make_cpc(ctr_ctx *ctx)
{
    ctr_cpc_config c = ctr_cpc_default();
    c.encoder = net();
    c.patch = SIDE;
    c.stride = SIDE / 2;
    c.context = 6;
    c.first = 1;
    c.last = 2;
    c.aug.height = c.aug.width = 2 * SIDE;
    return ctr_cpc_create(ctx, &c);
}

static ctr_method *make_clip(ctr_ctx *ctx, int siglip)
{
    ctr_clip_config c = ctr_clip_default();
    c.encoder = net();
    c.text.vocab = VOCAB;
    c.text.context = CONTEXT;
    c.text.width = 8;
    c.text.layers = 2;
    c.text.heads = 2;
    c.dim = 8;
    c.siglip = siglip;
    c.aug.height = c.aug.width = SIDE;
    return ctr_clip_create(ctx, &c);
}

static ctr_method *make_supervised(ctr_ctx *ctx, const char *weights, int frozen)
{
    ctr_supervised_config c = ctr_supervised_default();
    c.encoder = net();
    c.weights = weights;
    c.classes = 3;
    c.smoothing = 0.1;
    c.frozen = frozen;
    c.aug.height = c.aug.width = SIDE;
    return ctr_supervised_create(ctx, &c);
}

static ctr_method *make_mix(ctr_ctx *ctx, ctr_method *method, ctr_mix_kind kind)
{
    ctr_mix_config c = ctr_mix_default(kind);
    return ctr_mix_create(ctx, method, &c);
}

static ctr_method *make(ctr_ctx *ctx, int kind)
{
    switch (kind) {
    case SIMCLR: return make_simclr(ctx, 0);
    case SUPCON: return make_simclr(ctx, 1);
    case MOCO2: return make_moco(ctx, 2);
    case MOCO3: return make_moco(ctx, 3);
    case BYOL: return make_byol(ctx);
    case SIMSIAM: return make_simsiam(ctx);
    case BARLOW: return make_barlow(ctx);
    case VICREG: return make_vicreg(ctx);
    case NPID: return make_npid(ctx);
    case FACENET: return make_facenet(ctx);
    case SWAV: return make_swav(ctx);
    case DEEPCLUSTER: return make_deepcluster(ctx);
    case DEEPCLUSTER1: return make_deepcluster1(ctx);
    case PIRL: return make_pirl(ctx);
    case CPC: return make_cpc(ctx);
    case CLIP: return make_clip(ctx, 0);
    case SIGLIP: return make_clip(ctx, 1);
    case SUPERVISED: return make_supervised(ctx, NULL, 0);
    case FINETUNE: return make_supervised(ctx, WEIGHTS, 0);
    case FROZEN: return make_supervised(ctx, WEIGHTS, 1);
    case MIXUP: return make_mix(ctx, make_simclr(ctx, 0), CTR_MIX_MIXUP);
    default: return make_mix(ctx, make_byol(ctx), CTR_MIX_CUTMIX);
    }
}

/* ----------------------------------------------------------------------------------------- runs */

typedef struct run {
    ctr_ctx *ctx;
    uint8_t *pixels;
    int32_t labels[IMAGES];
    ctr_dataset *dataset;
    ctr_loader *loader;
    ctr_method *method;
} run;

/* A text for each of three labels: the highest id ends it, the last one is full. */
static const int32_t texts[3 * CONTEXT] = {
    18, 1, 19, 0, 0, 0, 18, 2, 3, 4, 19, 0, 18, 5, 6, 7, 8, 19
};

static void run_open(run *r, const ctr_device *device, int kind)
{
    ctr_config config = ctr_config_default();
    ctr_loader_config l = ctr_loader_config_default();
    memset(r, 0, sizeof *r);
    config.threads = 1;
    config.kernels = CTR_KERNELS_SCALAR;
    config.device = device;
    r->ctx = ctr_ctx_create(&config);
    r->pixels = model_pictures(IMAGES, SIDE, r->labels, 3);
    r->dataset = ctr_dataset_from_memory(r->ctx, r->pixels, IMAGES, SIDE, SIDE, 3, r->labels);
    r->method = make(r->ctx, kind);
    if (!r->method) return;
    l.batch = BATCH;
    l.views = r->method->views;
    l.augs = r->method->augs;
    l.per_class = r->method->per_class;
    l.tokens = texts;
    l.context = CONTEXT;
    r->loader = ctr_loader_create(r->ctx, r->dataset, &l);
    if (r->loader) ctr_method_begin(r->method, r->loader);
}

static void run_close(run *r)
{
    ctr_method_destroy(r->method);
    ctr_loader_destroy(r->ctx, r->loader);
    ctr_dataset_destroy(r->ctx, r->dataset);
    ctr_ctx_destroy(r->ctx);
    free(r->pixels);
}

/* The loss of the next step; chunk: of so many images at a time, BATCH: all at once. */
static double run_chunks(run *r, int64_t chunk)
{
    ctr_batch batch;
    ctr_report report;
    int more = ctr_loader_next(r->ctx, r->loader, &batch);
    if (!more) more = ctr_loader_next(r->ctx, r->loader, &batch); /* of the next epoch */
    if (!more || !ctr_method_step_chunked(r->method, &batch, chunk, 0.05, &report))
        return -1e9;
    return report.loss;
}
static double run_step(run *r) { return run_chunks(r, BATCH); }

/* Copies of all state tensors. */
typedef struct state {
    ctr_ctx *ctx;
    int count;
    char name[STATES][96];
    ctr_real *x[STATES];
    int64_t n[STATES];
} state;

static void state_tensor(void *user, const char *name, ctr_tensor *t, int conv)
{
    state *s = (state *)user;
    (void)conv;
    if (s->count == STATES) return;
    snprintf(s->name[s->count], sizeof s->name[0], "%s", name);
    s->n[s->count] = t->size;
    s->x[s->count] = test_reals(t->size);
    ctr_tensor_read(s->ctx, t, s->x[s->count++], t->size);
}
static void state_number(void *user, const char *name, int64_t *value)
{
    (void)user;
    (void)name;
    (void)value;
}
static state *state_of(run *r)
{
    state *s = (state *)test_alloc(sizeof *s);
    ctr_visitor v;
    memset(s, 0, sizeof *s);
    s->ctx = r->ctx;
    v.user = s;
    v.tensor_fn = state_tensor;
    v.number_fn = state_number;
    ctr_method_visit(r->method, &v);
    return s;
}
static void state_free(state *s)
{
    int i;
    for (i = 0; i < s->count; i++) free(s->x[i]);
    free(s);
}

/* |a - b| / |b|, or |a - b| itself where b is all but 0 */
static double distance(const ctr_real *a, const ctr_real *b, int64_t n)
{
    double gap = 0, size = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        gap += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(gap) / (sqrt(size) + 1e-3);
}

static void states_compare(const char *kind, run *on_gpu, run *on_cpu, double bound)
{
    state *a = state_of(on_gpu), *b = state_of(on_cpu);
    char what[160];
    int i;
    test_true("as many tensors", a->count == b->count && a->count > 10 && a->count < STATES);
    for (i = 0; i < a->count; i++) {
        snprintf(what, sizeof what, "%s, %s", kind, a->name[i]);
        test_true(what, strcmp(a->name[i], b->name[i]) == 0 && a->n[i] == b->n[i]);
        /* A bias before a norm, or of attention's keys, has the gradient 0, which is noise: LARC
           and Adam take noise's direction for a direction. */
        if (strcmp(a->name[i], "optim.projector.0.bias.m") == 0 ||
            strstr(a->name[i], "in_proj_bias"))
            continue;
        test_error(what, distance(a->x[i], b->x[i], a->n[i]), bound);
    }
    state_free(a);
    state_free(b);
}

/* ------------------------------------------------------------------------------------ the tests */

static void method_on(const ctr_device *device, int kind, int64_t chunk)
{
    run cpu, gpu, again;
    double want, got;
    char what[96];
    snprintf(what, sizeof what, "%s%s", kinds[kind], chunk < BATCH ? " in chunks" : "");
    test_group(what);
    run_open(&cpu, NULL, kind);
    run_open(&gpu, device, kind);
    run_open(&again, device, kind);
    if (!test_true("made on both", cpu.loader && gpu.loader && again.loader)) {
        printf("     %s\n", ctr_error_text(gpu.ctx));
        run_close(&cpu);
        run_close(&gpu);
        run_close(&again);
        return;
    }
    want = run_chunks(&cpu, chunk);
    got = run_chunks(&gpu, chunk);
    snprintf(what, sizeof what, "%s, loss of step 1 (%.5f)", kinds[kind], want);
    test_error(what, fabs(got - want), 1e-4 * (1 + fabs(want)));
    states_compare(kinds[kind], &gpu, &cpu, 1e-2);
    want = run_chunks(&cpu, chunk);
    got = run_chunks(&gpu, chunk);
    snprintf(what, sizeof what, "%s, loss of step 2 (%.5f)", kinds[kind], want);
    test_error(what, fabs(got - want), 5e-3 * (1 + fabs(want)));
    if (!test_quick()) {
        run_chunks(&again, chunk);
        run_chunks(&again, chunk);
        test_true("the same bytes from run to run",
                  ctr_method_hash(again.method) == ctr_method_hash(gpu.method));
    }
    test_fine(cpu.ctx, kinds[kind]);
    test_fine(gpu.ctx, kinds[kind]);
    test_fine(again.ctx, kinds[kind]);
    run_close(&cpu);
    run_close(&gpu);
    run_close(&again);
}

/* What fine-tuning starts from: the network of a SimCLR step. */
static void weights_save(void)
{
    run r;
    test_group("");
    run_open(&r, NULL, SIMCLR);
    run_step(&r);
    test_true("weights to start from", ctr_checkpoint_save(r.method, WEIGHTS, NULL));
    run_close(&r);
}

/* A step whose products round their operands: its loss moves little. */
static void rounded_step(ctr_cuda_math math, const char *name, double bound)
{
    ctr_cuda_config config = ctr_cuda_config_default();
    const ctr_device *device;
    run cpu, gpu;
    double want, got;
    char text[200];
    config.math = math;
    device = ctr_cuda_open(&config, text, sizeof text);
    if (!test_true(device ? name : text, device != NULL)) return;
    run_open(&cpu, NULL, SIMCLR);
    run_open(&gpu, device, SIMCLR);
    want = run_step(&cpu);
    got = run_step(&gpu);
    test_error(name, fabs(got - want), bound * (1 + fabs(want)));
    test_true("but it moves", got != want);
    test_fine(gpu.ctx, name);
    run_close(&cpu);
    run_close(&gpu);
    ctr_cuda_close(device);
}

/* The same state on both after it has gone through a file, in both directions. */
static void checkpoint(const ctr_device *device)
{
    run cpu, gpu;
    test_group("a checkpoint moves between devices");
    run_open(&cpu, NULL, SIMCLR);
    run_open(&gpu, device, SIMCLR);
    run_step(&gpu);
    test_true("save on the device", ctr_checkpoint_save(gpu.method, "device.ctr", NULL));
    test_true("load on the CPU", ctr_checkpoint_load(cpu.method, "device.ctr", NULL));
    test_true("one hash", ctr_method_hash(cpu.method) == ctr_method_hash(gpu.method));
    run_step(&cpu);
    test_true("save on the CPU", ctr_checkpoint_save(cpu.method, "device.ctr", NULL));
    test_true("load on the device", ctr_checkpoint_load(gpu.method, "device.ctr", NULL));
    test_true("one hash", ctr_method_hash(cpu.method) == ctr_method_hash(gpu.method));
    test_fine(cpu.ctx, "checkpoint");
    test_fine(gpu.ctx, "checkpoint");
    remove("device.ctr");
    run_close(&cpu);
    run_close(&gpu);
}

#ifdef CTR_TEST_EMULATION
/* What a steady step asks of the runtime; one that loses its device leaves the model as it was. */
static void steady(const ctr_device *device)
{
    run r;
    long launches, waits, blocks, allocations;
    uint64_t before;
    test_group("");
    run_open(&r, device, SIMCLR);
    run_step(&r);
    run_step(&r);
    launches = emu_calls("launch");
    waits = emu_calls("cudaStreamSynchronize");
    blocks = emu_memory();
    allocations = emu_calls("cudaMalloc");
    run_step(&r);
    printf("     a step of SimCLR with ResNet-8: %ld launches, waits for the device %ld times\n",
           emu_calls("launch") - launches, emu_calls("cudaStreamSynchronize") - waits);
    test_equal("device memory that a steady step keeps", (double)(emu_memory() - blocks), 0);
    test_equal("device memory that it asks for", (double)(emu_calls("cudaMalloc") - allocations),
               0);
    before = ctr_method_hash(r.method);
    emu_fail("cudaStreamSynchronize", 1, 719);
    test_true("a device that vanishes in a step", run_step(&r) < -1e8);
    test_true(ctr_error_text(r.ctx),
              strstr(ctr_error_text(r.ctx), "unspecified launch failure") != NULL);
    ctr_error_clear(r.ctx);
    test_true("the model is as it was", ctr_method_hash(r.method) == before);
    run_close(&r);
}
#endif

int main(int argc, char **argv)
{
    static const int in_chunks[4] = { SIMCLR, MOCO3, FACENET, CLIP };
    const ctr_device *device;
    char text[200];
    int kind;
    test_begin("test_steps", argc, argv);
    device = ctr_cuda_open(NULL, text, sizeof text);
    if (!test_true(device ? "a device" : text, device != NULL)) return test_end();
    weights_save();
    for (kind = 0; kind < KINDS; kind++)
        if (!test_quick() || kind == SIMCLR || kind == MOCO2 || kind == CLIP)
            method_on(device, kind, BATCH);
    for (kind = 0; kind < 4; kind++) /* losses of views, of targets, of labels, of texts */
        if (!test_quick()) method_on(device, in_chunks[kind], 3); /* 3, 3 and 2 images */
    remove(WEIGHTS);
    test_group("SimCLR with rounded products");
    rounded_step(CTR_CUDA_TF32, "tf32, loss of step 1", 2e-3);
    rounded_step(CTR_CUDA_BF16, "bf16, loss of step 1", 2e-2);
    checkpoint(device);
#ifdef CTR_TEST_EMULATION
    steady(device);
#endif
    ctr_cuda_close(device);
#ifdef CTR_TEST_EMULATION
    test_group("");
    test_equal("device memory that was never freed", (double)emu_memory(), 0);
#endif
    return test_end();
}
