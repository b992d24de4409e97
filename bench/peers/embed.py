"""Embedding 32x32x3 images with ResNet-18 (small stem) in PyTorch: 64 at a time, and one alone.

    python embed.py [--threads 2] [--seconds 5] [--images 64,1] [--variants nchw,...]

Variants: nchw, channels_last, compile (nchw), compile_cl (channels_last under torch.compile); all in
evaluation mode under inference_mode, with every norm folded into the convolution before it
(fuse_conv_bn_eval). ms is the median time of a call.
"""
import argparse
import copy
import sys

from common import emit, fresh, median, peak_mb, times
from simclr_step import VARIANTS, encoder


def fold(module):
    """Replaces each convolution and the norm behind it by one convolution."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    children = list(module.named_children())
    for (name, conv), (norm_name, norm) in zip(children, children[1:]):
        if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, torch.nn.Identity())
    for _, inner in children:
        fold(inner)


def child(variant, images, threads, seconds):
    import torch
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    model, width = encoder("resnet18", 32)
    last = variant in ("channels_last", "compile_cl")
    layout = torch.channels_last if last else torch.contiguous_format
    x = (torch.rand(images, 3, 32, 32) - 0.5).contiguous(memory_format=layout)
    model = model.to(memory_format=layout).eval()
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())
    fold(model)
    left = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if left:
        sys.exit("embed: %d norms were not folded" % len(left))
    forward = torch.compile(model) if variant.startswith("compile") else model

    def run():
        with torch.inference_mode():
            return forward(x)

    error = float((run().double() - exact).abs().max())
    if run().shape != (images, width) or not error < 1e-3:
        sys.exit("embed %s: wrong by %g" % (variant, error))
    t = times(run, seconds)
    emit("embed", variant, threads, images=images, images_per_s=images / median(t),
         ms=1e3 * median(t), best_ms=1e3 * min(t), cpu_ms=1e3 * t.cpu, peak_mb=peak_mb(),
         torch=torch.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--images", default="64,1")
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--child", nargs=2, metavar=("VARIANT", "IMAGES"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child[0], int(a.child[1]), a.threads, a.seconds)
    bad = 0
    for images in a.images.split(","):
        for v in a.variants.split(","):
            rest = ["--threads", a.threads, "--seconds", a.seconds]
            bad += fresh([v, images] + rest, a.threads) != 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
