"""Matrix product in float32, n x n x n: torch.mm (the wheel's MKL) and numpy (OpenBLAS).

    python sgemm.py [--threads 2] [--sizes 512,768,1024,2048] [--seconds 3]

The product is checked against float64 on a few entries before it is timed.
gflops is from the median time, best_gflops from the fastest.
"""
import argparse
import sys

from common import emit, fresh, median, times


def child(library, threads, sizes, seconds):
    import numpy as np
    rng = np.random.default_rng(1)
    if library == "torch":
        import torch
        torch.set_num_threads(threads)
        version = "torch-" + torch.__version__
    else:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        version = "numpy-%s,%s-%s" % (np.__version__, blas["name"], blas["version"])
    for n in sizes:
        a, b = rng.random((n, n), np.float32) - 0.5, rng.random((n, n), np.float32) - 0.5
        c = np.empty((n, n), np.float32)
        if library == "torch":
            ta, tb, tc = torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c)

            def run():
                torch.mm(ta, tb, out=tc)
        else:
            def run():
                np.dot(a, b, out=c)
        run()
        rows = [0, n // 3, n - 1]
        error = np.abs(a[rows].astype(np.float64) @ b.astype(np.float64) - c[rows]).max()
        if not np.isfinite(c).all() or not error < 1e-5 * n:
            sys.exit("%s: product of %d is wrong by %g" % (library, n, error))
        t = times(run, seconds)
        emit("sgemm", library, threads, n=n, gflops=2e-9 * n ** 3 / median(t),
             best_gflops=2e-9 * n ** 3 / min(t), cpu_ms=1e3 * t.cpu,
             error=float(error), version=version)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=3.0)
    p.add_argument("--sizes", default="512,768,1024,2048")
    p.add_argument("--child", metavar="LIBRARY", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child, a.threads, [int(n) for n in a.sizes.split(",")], a.seconds)
    rest = ["--threads", a.threads, "--sizes", a.sizes, "--seconds", a.seconds]
    return 1 if [1 for lib in ("torch", "numpy") if fresh([lib] + rest, a.threads)] else 0


if __name__ == "__main__":
    sys.exit(main())
