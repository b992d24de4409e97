"""PyTorch and torchvision from files to batches, and through a whole epoch of SimCLR.

    python data.py --make DIR --case folder|epoch     makes the JPEG files that both sides read
    python data.py --data DIR --case folder|epoch [--threads 2] [--workers 2] [--variants nchw,...]

folder: JPEG files of 224 to 500 pixels, read by PIL (libjpeg), to two views of 224 x 224 through
random resized crop, flip, colour jitter, gray and blur, in this one process: images/s and core.
Variants: pil (PIL images all the way), tensor (uint8 tensors after decoding). epoch: ImageFolder
with 32 x 32 JPEG files, a DataLoader with so many workers, ResNet-20, batch 128, SGD: from opening
the folder to the end of the epoch. Variants as in simclr_step.py: nchw, channels_last, and both
compiled (compiling is left out of the time: a step on random numbers comes before).
"""
import argparse
import os
import sys
import time

from common import emit, fresh, median, times


def make(folder, case):
    """Pictures with the falling spectrum of photographs, quality 90, always the same ones."""
    import numpy
    from PIL import Image
    rng = numpy.random.default_rng(1)
    many = 96 if case == "folder" else 5120
    for i in range(many):
        h, w = rng.integers(224, 501, 2) if case == "folder" else (32, 32)
        fy, fx = numpy.fft.fftfreq(h)[:, None], numpy.fft.rfftfreq(w)[None]
        weight = 1 / numpy.maximum(numpy.sqrt(fy * fy + fx * fx), 1 / max(h, w)) ** 1.2
        planes = []
        for _ in range(3):
            noise = numpy.fft.rfft2(rng.standard_normal((h, w)))
            plane = numpy.fft.irfft2(noise * weight, (h, w))
            planes.append(plane / plane.std())
        gray = planes[0]
        x = numpy.stack([gray + 0.4 * p for p in planes], 2) * 45 + 120
        name = os.path.join(folder, "class%d" % (i % 8))
        os.makedirs(name, exist_ok=True)
        Image.fromarray(x.clip(0, 255).astype("uint8")).save(
            os.path.join(name, "%05d.jpg" % i), quality=90)


def views(side, blur, variant):
    import torch
    from torchvision.transforms import v2
    ops = [v2.RandomResizedCrop(side, (0.08, 1.0), antialias=True), v2.RandomHorizontalFlip(),
           v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8), v2.RandomGrayscale(0.2)]
    if blur:
        ops.append(v2.RandomApply([v2.GaussianBlur(2 * (side // 20) + 1, (0.1, 2.0))], 0.5))
    first = [] if variant == "pil" else [v2.PILToTensor()]
    last = [v2.PILToTensor()] if variant == "pil" else []
    one = v2.Compose(first + ops + last + [v2.ToDtype(torch.float32, scale=True)])
    return lambda image: (one(image), one(image))


def folder_case(path, variant, seconds):
    import torch
    import torchvision
    torch.set_num_threads(1)
    data = torchvision.datasets.ImageFolder(path, views(224, True, variant))

    def run():
        for i in range(len(data)):
            (a, b), _ = data[i]
        return a, b

    for v in run():
        if v.shape != (3, 224, 224) or not torch.isfinite(v).all():
            sys.exit("data folder: a view is wrong")
    t = times(run, seconds, warm=0, least=3)
    emit("data", variant, 1, case="folder", images_per_s=len(data) / median(t),
         ms=1e3 * median(t) / len(data), cpu_ms=1e3 * t.cpu / len(data), images=len(data),
         torchvision=torchvision.__version__)


def epoch_case(path, variant, threads, workers):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import torchvision
    from simclr_step import encoder
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    enc, width = encoder("resnet20", 32)
    model = nn.Sequential(enc, nn.Linear(width, width, bias=False), nn.BatchNorm1d(width),
                          nn.ReLU(True), nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128))
    n = 128
    last = variant in ("channels_last", "compile_cl")
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    eye = torch.eye(2 * n, dtype=torch.bool)
    target = (torch.arange(2 * n) + n) % (2 * n)

    def loss_of(x):
        z = F.normalize(model(x), dim=1)
        return F.cross_entropy((z @ z.t() / 0.5).masked_fill(eye, -1e30), target)

    forward = torch.compile(loss_of) if variant.startswith("compile") else loss_of
    sgd = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4, fused=True)

    def step(x):
        sgd.zero_grad(set_to_none=True)
        loss = forward(x.contiguous(memory_format=layout))
        loss.backward()
        sgd.step()
        return float(loss.detach())

    for _ in range(2):
        step(torch.rand(2 * n, 3, 32, 32))
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    data = torchvision.datasets.ImageFolder(path, views(32, False, "tensor"))
    loader = torch.utils.data.DataLoader(data, n, shuffle=True, drop_last=True, num_workers=workers)
    images = 0
    for (a, b), _ in loader:
        loss = step(torch.cat([a, b]))
        images += n
    del loader
    seconds = time.perf_counter() - start
    if not (loss == loss and images):
        sys.exit("data epoch: the loss is %g" % loss)
    emit("data", variant, threads, case="epoch", workers=workers, images_per_s=images / seconds,
         ms=1e3 * seconds / images, cpu_ms=1e3 * (sum(os.times()[:4]) - cpu) / images,
         images=images, seconds=seconds, torch=torch.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--make", metavar="DIR")
    p.add_argument("--data", metavar="DIR")
    p.add_argument("--case", choices=("folder", "epoch"), default="folder")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--variants", default=None)
    p.add_argument("--child", metavar="VARIANT", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.make:
        return make(a.make, a.case)
    if not a.data:
        p.error("--data or --make is needed")
    if a.child and a.case == "folder":
        return folder_case(a.data, a.child, a.seconds)
    if a.child:
        return epoch_case(a.data, a.child, a.threads, a.workers)
    variants = a.variants or ("pil,tensor" if a.case == "folder" else
                              "nchw,channels_last,compile,compile_cl")
    rest = ["--data", a.data, "--case", a.case, "--threads", a.threads, "--workers", a.workers,
            "--seconds", a.seconds]
    return 1 if [1 for v in variants.split(",") if fresh([v] + rest, a.threads)] else 0


if __name__ == "__main__":
    sys.exit(main())
