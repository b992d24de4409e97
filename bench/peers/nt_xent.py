"""NT-Xent forward and backward in PyTorch: rows of dimension 128, float32.

    python nt_xent.py [--threads 2] [--rows 256,512,2048,8192] [--seconds 5]
                      [--variants eager,compile]

Variants: eager, compile. ms is the median time of loss and gradient, peak_mb the memory of the
whole process (compare with the smallest number of rows for the share of PyTorch itself).
"""
import argparse
import sys

from common import emit, fresh, median, peak_mb, times


def child(variant, rows, threads, seconds):
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    z = torch.randn(rows, 128, requires_grad=True)
    eye = torch.eye(rows, dtype=torch.bool)
    target = (torch.arange(rows) + rows // 2) % rows

    def loss_of(z):
        u = F.normalize(z, dim=1)
        return F.cross_entropy((u @ u.t() / 0.5).masked_fill(eye, -1e30), target)

    forward = torch.compile(loss_of) if variant == "compile" else loss_of

    def run():
        z.grad = None
        loss = forward(z)
        loss.backward()
        return loss

    loss = float(run().detach())
    if not (0.0 < loss < 100.0) or not torch.isfinite(z.grad).all():
        sys.exit("nt_xent %s: loss %g or its gradient is wrong" % (variant, loss))
    t = times(run, seconds, least=3)
    emit("nt_xent", variant, threads, rows=rows, d=128, ms=1e3 * median(t), best_ms=1e3 * min(t),
         cpu_ms=1e3 * t.cpu,         peak_mb=peak_mb(), loss="%.5f" % loss, torch=torch.__version__)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--rows", default="256,512,2048,8192")
    p.add_argument("--variants", default="eager,compile")
    p.add_argument("--child", nargs=2, metavar=("VARIANT", "ROWS"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child[0], int(a.child[1]), a.threads, a.seconds)
    bad = 0
    for rows in a.rows.split(","):
        for v in a.variants.split(","):
            bad += fresh([v, rows, "--threads", a.threads, "--seconds", a.seconds], a.threads) != 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
