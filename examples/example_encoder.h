/* example_encoder.h - what the programs share that begin with a trained encoder: evaluate, embed
 * and search. They take the same options:
 *
 *     --checkpoint FILE    of any method here, or a torchvision ResNet as safetensors
 *     --size N             pixels of the images that the encoder sees
 *     --normalize NAME     mean and std: none as the examples train, imagenet as torchvision does
 *
 *     ex_run run;
 *     ex_encoder encoder;
 *     ex_encoder_options(&o, &encoder);           before ex_options_parse
 *     method = ex_encoder_open(&run, &o, &encoder);
 *     data = ex_encoder_data(&run, o.data, NULL);
 *
 * A mistake of the user's ends the program with one line and code 2, and nothing is written. */

#ifndef EX_ENCODER_H
#define EX_ENCODER_H

#include "example_report.h"

#define EX_CHECKPOINT "out/simclr/checkpoint.safetensors" /* what ./simclr leaves behind */

typedef struct ex_encoder {
    const char *checkpoint, *normalize;
    int size, ours;               /* ours: a checkpoint of this library, 0: weights alone */
    ctr_resnet_config net;
    char made[EX_PATH];           /* --smoke makes a checkpoint of its own */
} ex_encoder;

EX_FN void ex_encoder_options(ex_options *o, ex_encoder *e)
{
    memset(e, 0, sizeof *e);
    e->normalize = "auto";
    ex_options_add(o, "--checkpoint", "FILE", EX_TEXT, &e->checkpoint, 0, 0,
                   "of any method here, or a torchvision ResNet as safetensors;\n"
                   "without it, " EX_CHECKPOINT);
    ex_options_add(o, "--size", "N", EX_INT, &e->size, 0, 1024,
                   "pixels that the encoder sees; 0: as it was probably trained, 224\n"
                   "(torchvision), 96, or with a small first convolution the images'\n"
                   "own up to 64 and 32 for larger ones");
    ex_options_add(o, "--normalize", "auto|none|imagenet", EX_CHOICE, &e->normalize, 0, 0,
                   "mean and std of the pixels; auto: none for checkpoints of\n"
                   "this library, imagenet for other files");
}

/* --smoke without a checkpoint: an epoch of SimCLR on a few hundred images. */
EX_FN void ex_encoder_smoke(ex_run *run, ex_encoder *e)
{
    ctr_data_options options = ctr_data_options_default();
    ctr_simclr_config config = ctr_simclr_default();
    ctr_fit_config fit = ctr_fit_default();
    ctr_dataset *all, *part;
    ctr_method *method;
    options.short_side = 96;
    all = ctr_dataset_open(run->ctx, run->o->data, NULL, &options);
    ex_run_check(run);
    part = ctr_dataset_part(run->ctx, all, ctr_dataset_count(all) < 600 ? ctr_dataset_count(all)
                                                                        : 600);
    ctr_resnet_config_parse(&config.encoder, "resnet8-w8");
    config.encoder.channels = ctr_dataset_channels(all);
    config.optim = ctr_optim_config_default(CTR_OPTIM_SGD);
    config.aug = ctr_aug_simclr_default(e->size ? e->size : 28);
    method = ctr_simclr_create(run->ctx, &config);
    ex_run_check(run);
    ex_out_make(run->o);
    fit.epochs = 1;
    fit.batch = 64;
    fit.lr = 0.3;
    fit.checkpoint = e->checkpoint = ex_out_path(run->o, "smoke.safetensors", e->made);
    printf("no --checkpoint: an epoch of SimCLR on %ld images makes one\n",
           (long)ctr_dataset_count(part));
    ctr_fit_images(method, part, &fit);
    ex_run_check(run);
    ctr_method_destroy(method);
    ctr_dataset_destroy(run->ctx, part);
    ctr_dataset_destroy(run->ctx, all);
}

/* Is the file a checkpoint of this library, whose images were not normalised? */
EX_FN void ex_encoder_whose(ex_run *run, ex_encoder *e)
{
    ctr_safetensors *file = ctr_safetensors_open(run->ctx, e->checkpoint);
    const char *format = file ? ctr_safetensors_meta(file, "format") : NULL;
    const char *architecture = file ? ctr_safetensors_meta(file, "architecture") : NULL;
    e->ours = format && !strncmp(format, "contrastive.h", 13);
    ex_run_check(run);
    printf("%s: %s, %s\n", e->checkpoint, e->ours ? "a checkpoint of this library" : "weights",
           architecture ? architecture : "without a description");
    ctr_safetensors_close(run->ctx, file);
}

/* The context, and the encoder of --checkpoint as a method that represents. */
EX_FN ctr_method *ex_encoder_open(ex_run *run, ex_options *o, ex_encoder *e)
{
    ctr_method *method;
    ex_run_start(run, o);
    if (!e->checkpoint && !o->smoke) {
        if (access(EX_CHECKPOINT, R_OK))
            ex_die(o, 2, "--checkpoint: not given, and there is no %s; to make one: cc -O2 -o "
                   "simclr examples/simclr.c -lm -lpthread && ./simclr", EX_CHECKPOINT);
        e->checkpoint = EX_CHECKPOINT;
    }
    if (!e->checkpoint) ex_encoder_smoke(run, e);
    ctr_encoder_inspect(run->ctx, e->checkpoint, NULL, &e->net);
    ex_run_check(run);
    ex_encoder_whose(run, e);
    method = ctr_encoder_create(run->ctx, e->checkpoint, NULL);
    ex_run_check(run);
    return method;
}

/* Images with the channels that the encoder takes. */
EX_FN ctr_dataset *ex_encoder_data(ex_run *run, const ex_encoder *e, const char *path,
                                   const char *split)
{
    ctr_data_options options = ctr_data_options_default();
    ctr_dataset *data;
    options.channels = (int)e->net.channels;
    options.short_side = 256;
    data = ctr_dataset_open(run->ctx, path, split, &options);
    ex_run_check(run);
    return data;
}

/* What the encoder sees of an image: how many pixels, and their mean and std. No file tells the
 * size that it was trained with. */
EX_FN ctr_aug_config ex_encoder_view(ex_run *run, const ex_encoder *e, const ctr_dataset *data)
{
    static const double mean[3] = { 0.485, 0.456, 0.406 }, std[3] = { 0.229, 0.224, 0.225 };
    int64_t size = e->size, side;
    ctr_aug_config view;
    ctr_image first;
    int k;
    if (!size && e->net.stem == CTR_STEM_LARGE) size = e->ours ? 96 : 224;
    if (!size && ctr_dataset_image(run->ctx, data, 0, &first)) {
        side = first.h < first.w ? first.h : first.w;
        size = side <= 64 ? side : 32;
        ctr_image_free(run->ctx, &first);
    }
    ex_run_check(run);
    view = ctr_aug_none_default(size);
    if (strcmp(e->normalize, "auto") ? !strcmp(e->normalize, "imagenet") : !e->ours)
        for (k = 0; k < 3; k++) {
            view.mean[k] = mean[k];
            view.std[k] = std[k];
        }
    printf("images of %ld x %ld%s\n", (long)size, (long)size,
           view.std[0] < 1 ? ", normalised by the mean and std of ImageNet" : "");
    return view;
}

/* What a vector depends on besides its image, in one line: the network, a hash of its weights, and
 * how images are brought to it. Vectors can be compared if their lines are equal. */
EX_FN void ex_encoder_name(const ex_run *run, ctr_method *method, char text[192])
{
    char network[96];
    method->describe_fn(method, network, sizeof network);
    snprintf(text, 192, "%s, weights %016llx, images of %ld x %ld, %s", network,
             (unsigned long long)ctr_method_hash(method), (long)run->clean.width,
             (long)run->clean.height, run->clean.std[0] < 1 ? "normalised" : "not normalised");
}

/* The options of training that these programs have no use for. */
EX_FN void ex_encoder_drop(ex_options *o)
{
    static const char *const names[] = { "--test", "--epochs", "--batch", "--arch", "--lr",
                                         "--temperature", "--save-every", "--resume" };
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) ex_options_drop(o, names[i]);
}

#endif /* EX_ENCODER_H */
