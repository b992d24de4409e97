"""torchvision's SimCLR augmentation, uint8 image in, float image out, on one core.

    python augment.py [--side 32] [--seconds 5] [--blur] [--variants pil,...]

Random resized crop (area 0.08 to 1, bilinear, antialiased), flip, colour jitter 0.4 0.4 0.4 0.1
with probability 0.8, grayscale with 0.2, then float in [0, 1]; with --blur also a Gaussian of 3
pixels or a tenth of the side, sigma 0.1 to 2, with probability 0.5 (SimCLR leaves it out at 32
pixels). Variants of v2: pil (PIL images), tensor (uint8 tensors), float (float tensors).
One call makes one view.
"""
import argparse
import sys

from common import emit, fresh, median, peak_mb, times


def child(variant, side, seconds, blur):
    import torch
    import torchvision
    from torchvision.transforms import v2
    torch.set_num_threads(1)
    torch.manual_seed(1)
    ops = [v2.RandomResizedCrop(side, (0.08, 1.0), antialias=True), v2.RandomHorizontalFlip(),
           v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2)]
    if blur:
        size = max(3, 2 * (side // 20) + 1)
        ops.append(v2.RandomApply([v2.GaussianBlur(size, (0.1, 2.0))], 0.5))
    images = torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8)
    if variant == "float":
        images = images.float() / 255
    if variant == "pil":
        images = [v2.functional.to_pil_image(i) for i in images]
        ops.append(v2.PILToTensor())
    apply = v2.Compose(ops + [v2.ToDtype(torch.float32, scale=True)])

    def run():
        return [apply(i) for i in images]

    for v in run():
        if v.shape != (3, side, side) or not torch.isfinite(v).all() or v.min() < 0 or v.max() > 1:
            sys.exit("augment %s: a view is wrong" % variant)
    t = times(run, seconds)
    emit("augment", variant, 1, side=side, blur=int(blur), views_per_s=len(images) / median(t),
         best_views_per_s=len(images) / min(t), cpu_views_per_s=len(images) / t.cpu,
         peak_mb=peak_mb(),
         torchvision=torchvision.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--side", type=int, default=32)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--blur", action="store_true")
    p.add_argument("--variants", default="pil,tensor,float")
    p.add_argument("--child", metavar="VARIANT", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child, a.side, a.seconds, a.blur)
    rest = ["--side", a.side, "--seconds", a.seconds] + (["--blur"] if a.blur else [])
    return 1 if [1 for v in a.variants.split(",") if fresh([v] + rest, 1)] else 0


if __name__ == "__main__":
    sys.exit(main())
