"""PyTorch's times on a GPU for what bench/gpu.c measures there.

    python gpu.py [--seconds 5] [--only resnet18,resnet50,epoch,conv,nt_xent]
                  [--variants eager,compile]

Steps are SimCLR's (forward, NT-Xent, backward, SGD, fused) with channels_last, in tf32, or in bf16
under autocast; compile is torch.compile of network and loss. epoch augments a data set of bytes on
the GPU, image by image parameters of their own, with kornia (torchvision's v2 draws once a batch).
ms is the median of runs that each wait for the GPU. Before the timing the loss must be finite.
Shapes are named as in gpu.c.
"""
import argparse
import os
import sys

from common import emit, fresh, median, times
from simclr_step import encoder

CONVS = {  # images, side, channels, kernel, out, stride
    "r18_stem": (1024, 32, 3, 3, 64, 1), "r18_64": (1024, 32, 64, 3, 64, 1),
    "r18_128_s2": (1024, 32, 64, 3, 128, 2), "r18_128": (1024, 16, 128, 3, 128, 1),
    "r18_256_s2": (1024, 16, 128, 3, 256, 2), "r18_256": (1024, 8, 256, 3, 256, 1),
    "r18_512_s2": (1024, 8, 256, 3, 512, 2), "r18_512": (1024, 4, 512, 3, 512, 1),
    "r18_short": (1024, 32, 64, 1, 128, 2), "r50_stem": (256, 224, 3, 7, 64, 2),
    "r50_64_1x1": (256, 56, 64, 1, 256, 1), "r50_64": (256, 56, 64, 3, 64, 1),
    "r50_128": (256, 28, 128, 3, 128, 1), "r50_256": (256, 14, 256, 3, 256, 1),
    "r50_512": (256, 7, 512, 3, 512, 1), "r50_2048_1x1": (256, 7, 512, 1, 2048, 1)}
STEPS = {"resnet18": (32, 512), "resnet50": (224, 128)}


def setup(math):
    import torch
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = math != "fp32"
    torch.backends.cudnn.benchmark = True
    return torch


def synced(torch, run):
    def call():
        run()
        torch.cuda.synchronize()
    return call


def model_of(torch, net, side):
    nn = torch.nn
    enc, width = encoder(net, side)
    model = nn.Sequential(enc, nn.Linear(width, width, bias=False), nn.BatchNorm1d(width),
                          nn.ReLU(True), nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128))
    return model.cuda().to(memory_format=torch.channels_last)


def stepper(torch, net, side, images, math, variant):
    """A function of a batch of views that does a step and returns its loss."""
    F = torch.nn.functional
    model = model_of(torch, net, side)
    eye = torch.eye(2 * images, dtype=torch.bool, device="cuda")
    target = (torch.arange(2 * images, device="cuda") + images) % (2 * images)

    def loss_of(x):
        with torch.autocast("cuda", torch.bfloat16, enabled=math == "bf16"):
            z = model(x)
        z = F.normalize(z.float(), dim=1)
        return F.cross_entropy((z @ z.t() / 0.5).masked_fill(eye, -1e30), target)

    forward = torch.compile(loss_of) if variant == "compile" else loss_of
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step(x):
        sgd.zero_grad(set_to_none=True)
        loss = forward(x)
        loss.backward()
        sgd.step()
        return loss
    return step


def finite(what, value):
    if not abs(value) < 1e30:
        sys.exit("%s: loss %g" % (what, value))


def run_step(net, math, variant, seconds):
    torch = setup(math)
    side, images = STEPS[net]
    step = stepper(torch, net, side, images, math, variant)
    # the views wait in pinned host memory, as ours do: a step uploads them
    host = (torch.rand(2 * images, 3, side, side) - 0.5).contiguous(
        memory_format=torch.channels_last).pin_memory()
    first = float(step(host.cuda(non_blocking=True)).detach())
    finite(net, first)
    t = times(synced(torch, lambda: step(host.cuda(non_blocking=True))), seconds)
    emit("gpu_step", variant, 1, shape="%s:%s" % (net, math), ms=1e3 * median(t),
         views_per_s=2 * images / median(t), first_loss="%.5f" % first,
         peak_mb=torch.cuda.max_memory_allocated() / 2 ** 20, torch=torch.__version__)


def run_epoch(_, math, variant, seconds):
    torch = setup(math)
    try:
        import kornia.augmentation as K
    except ImportError:
        print("peers/gpu.py: epoch needs kornia: left out", file=sys.stderr)
        return
    n, batch = 50000, 512
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device="cuda")
    augment = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=(0.08, 1.0), resample="bicubic"),
        K.RandomHorizontalFlip(), K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomGrayscale(p=0.2))
    step = stepper(torch, "resnet18", 32, batch, math, variant)

    def epoch():
        order = torch.randperm(n, device="cuda")
        for i in range(0, n - batch + 1, batch):
            x = images[order[i:i + batch]].float() / 255
            x = torch.cat([augment(x), augment(x)])
            loss = step(x.contiguous(memory_format=torch.channels_last))
        return loss

    finite("epoch", float(epoch().detach()))
    t = times(synced(torch, epoch), seconds, warm=0, least=1)
    emit("gpu_epoch", variant, 1, shape=math, seconds=median(t), images_per_s=n / median(t),
         torch=torch.__version__)


def run_conv(name, math, variant, seconds):
    torch = setup(math)
    images, side, c, k, oc, stride = CONVS[name]
    kind = torch.bfloat16 if math == "bf16" else torch.float32
    last = torch.channels_last

    def rand(*shape):
        return (torch.rand(*shape, device="cuda") - 0.5).to(kind).contiguous(memory_format=last)
    x, w, pad = rand(images, c, side, side), rand(oc, c, k, k), k // 2
    y = torch.nn.functional.conv2d(x, w, None, stride, pad)
    gradient = torch.ops.aten.convolution_backward

    def back(mask):
        return lambda: gradient(y, x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)
    flops = 2.0 * y.numel() * k * k * c
    for part, run in (("forward", lambda: torch.nn.functional.conv2d(x, w, None, stride, pad)),
                      ("input", back([True, False, False])), ("weight", back([False, True, False]))):
        def many():
            for _ in range(20):
                run()
        t = times(synced(torch, many), seconds / 6)
        emit("gpu_conv", variant, 1, shape="%s:%s:%s" % (name, part, math),
             ms=1e3 * median(t) / 20, tflops=flops * 20 / median(t) * 1e-12, torch=torch.__version__)


def run_loss(_, math, variant, seconds):
    torch = setup(math)
    F = torch.nn.functional
    rows = 65536
    z = F.normalize(torch.randn(rows, 128, device="cuda"), dim=1).requires_grad_()
    target = (torch.arange(rows, device="cuda") + rows // 2) % rows

    def loss_of(z):
        return F.cross_entropy((z @ z.t() / 0.5).fill_diagonal_(-1e30), target)
    forward = torch.compile(loss_of) if variant == "compile" else loss_of

    def run():
        z.grad = None
        forward(z).backward()
    t = times(synced(torch, run), seconds, least=3)
    emit("gpu_nt_xent", variant, 1, shape=math, ms=1e3 * median(t), rows=rows,
         peak_mb=torch.cuda.max_memory_allocated() / 2 ** 20, torch=torch.__version__)


RUNS = {"step": run_step, "epoch": run_epoch, "conv": run_conv, "nt_xent": run_loss}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--only", default="resnet18,resnet50,epoch,conv,nt_xent")
    p.add_argument("--variants", default="eager,compile")
    p.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    a = p.parse_args()
    import torch
    if not torch.cuda.is_available():
        sys.exit("peers/gpu.py: this PyTorch sees no GPU")
    if a.child:
        return RUNS[a.child[0]](a.child[1], a.child[2], a.child[3], a.seconds)
    jobs = []
    for only in a.only.split(","):
        for variant in a.variants.split(","):
            for math in ("tf32", "bf16"):
                if only in STEPS:
                    jobs.append(("step", only, math, variant))
                elif only == "epoch":
                    jobs.append(("epoch", "-", math, variant))
                elif only == "conv" and variant == "eager":
                    jobs += [("conv", name, math, variant) for name in CONVS]
            if only == "nt_xent":
                jobs.append(("nt_xent", "-", "fp32", variant))
    bad = 0
    for job in jobs: # one that fails (no memory for n x n) leaves a gap in the table
        bad += fresh(list(job) + ["--seconds", a.seconds], os.cpu_count()) != 0
    return 1 if bad == len(jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
