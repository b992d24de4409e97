"""PyTorch's time for a whole SimCLR training step: forward, NT-Xent, backward, SGD, in float32.

    python simclr_step.py [--threads 2] [--seconds 10] [--cases resnet20,...] [--variants nchw,...]

Cases (views per step): resnet8 2x8, resnet8 2x128, resnet20 2x128, resnet18 2x32 and 2x64 (small
stem), all at 32x32x3; resnet50 2x16 at 64x64x3 (torchvision's large stem). Head: linear, batch
norm, ReLU, linear, batch norm.
Variants: nchw, channels_last, compile (nchw), compile_cl (channels_last under torch.compile).
The views are made beforehand: only the step is timed. Before the timing each variant's loss and
gradient norm must be finite, and the first loss is printed: it must be the same for every variant
of a case. views_per_s is from the median step, best_views_per_s from the fastest; peak_mb is of the
whole process, of which import_mb was there once PyTorch was imported.
"""
import argparse
import sys
import time

from common import emit, fresh, median, peak_mb, times

CASES = {  # name: (net, image side, images)
    "resnet8x8": ("resnet8", 32, 8), "resnet8": ("resnet8", 32, 128),
    "resnet20": ("resnet20", 32, 128), "resnet18": ("resnet18", 32, 32),
    "resnet18x64": ("resnet18", 32, 64), "resnet50": ("resnet50", 64, 16)}
VARIANTS = ("nchw", "channels_last", "compile", "compile_cl")


def cifar_resnet(depth, width=16):
    """He et al. 2016, section 4.2, with projection shortcuts, without the classifier."""
    import torch.nn as nn
    import torch.nn.functional as F

    class Block(nn.Module):
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(cout)
            self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(cout)
            self.down = nn.Identity()
            if stride != 1 or cin != cout:
                self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False),
                                          nn.BatchNorm2d(cout))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            return F.relu(self.bn2(self.conv2(y)) + self.down(x), inplace=True)

    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    cin = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            layers.append(Block(cin, width << stage, 2 if stage and not block else 1))
            cin = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), cin


def encoder(net, side):
    import torch.nn as nn
    import torchvision
    if net in ("resnet8", "resnet20"):
        return cifar_resnet(int(net[6:]))
    m = getattr(torchvision.models, net)(weights=None)
    features, m.fc = m.fc.in_features, nn.Identity()
    if side <= 32:
        m.conv1, m.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return m, features


def child(case, variant, threads, seconds):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    import_mb = peak_mb()
    net, side, images = CASES[case]
    enc, width = encoder(net, side)
    model = nn.Sequential(enc, nn.Linear(width, width, bias=False), nn.BatchNorm1d(width),
                          nn.ReLU(True), nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128))
    x = torch.rand(2 * images, 3, side, side) - 0.5
    last = variant in ("channels_last", "compile_cl")
    layout = torch.channels_last if last else torch.contiguous_format
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    eye = torch.eye(2 * images, dtype=torch.bool)
    target = (torch.arange(2 * images) + images) % (2 * images)

    def loss_of(x):
        z = F.normalize(model(x), dim=1)
        return F.cross_entropy((z @ z.t() / 0.5).masked_fill(eye, -1e30), target)

    forward = torch.compile(loss_of) if variant.startswith("compile") else loss_of
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step():
        sgd.zero_grad(set_to_none=True)
        loss = forward(x)
        loss.backward()
        sgd.step()
        return loss

    start = time.perf_counter()
    first = float(step().detach())
    first_s = time.perf_counter() - start
    norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    second = float(step().detach())
    if not all(v == v and abs(v) < 1e30 for v in (first, norm, second)) or norm == 0.0:
        sys.exit("%s %s: loss %g, then %g, gradient norm %g" % (case, variant, first, second, norm))
    t = times(step, seconds)
    emit("simclr_step", variant, threads, net=net, side=side, views="2x%d" % images,
         views_per_s=2 * images / median(t), best_views_per_s=2 * images / min(t),
         ms=1e3 * median(t), cpu_ms=1e3 * t.cpu, steps=len(t), peak_mb=peak_mb(), import_mb=import_mb,
         first_loss="%.5f" % first, first_step_s=first_s, torch=torch.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=10.0)
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--child", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child[0], a.child[1], a.threads, a.seconds)
    bad = 0
    for case in a.cases.split(","):
        for variant in a.variants.split(","):
            if case not in CASES or variant not in VARIANTS:
                sys.exit("no such case or variant: %s %s" % (case, variant))
            rest = ["--threads", a.threads, "--seconds", a.seconds]
            bad += fresh([case, variant] + rest, a.threads) != 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
