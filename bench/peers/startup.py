"""How long a process takes that imports PyTorch and does nothing else.

    python startup.py [--times 5]
"""
import argparse
import subprocess
import sys
import time

from common import emit, median


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--times", type=int, default=5)
    a = p.parse_args()
    t = []
    for k in range(a.times + 1):
        start = time.perf_counter()
        if subprocess.call([sys.executable, "-c", "import torch"]) != 0:
            return 1
        if k:  # the first one fills the disk cache
            t.append(time.perf_counter() - start)
    emit("startup", "import", 1, ms=1e3 * median(t), best_ms=1e3 * min(t))
    return 0


if __name__ == "__main__":
    sys.exit(main())
