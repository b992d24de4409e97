"""Open a checkpoint of contrastive.h with the Python package safetensors and list what it holds.

    python check_checkpoint.py out/simclr/checkpoint.safetensors

Prints the metadata, then one line a tensor: name, type, shape, mean, standard deviation, extremes.
Exit code 1 if the file does not open, holds no tensor, or holds a value that is not finite. Needs
numpy and safetensors.
"""
import sys

import numpy as np
from safetensors import safe_open


def main(path):
    bad = 0
    with safe_open(path, framework="np") as f:
        for key, value in sorted((f.metadata() or {}).items()):
            print("meta %s = %s" % (key, value if len(value) <= 200 else value[:200] + "..."))
        names = list(f.keys())
        total = 0
        for name in names:
            t = f.get_tensor(name)
            total += t.size
            line = "%-48s %-8s %-20s" % (name, t.dtype, list(t.shape))
            if t.size and t.dtype.kind == "f":
                finite = bool(np.isfinite(t).all())
                bad += not finite
                v = t.astype(np.float64)
                line += " mean %.4g std %.4g min %.4g max %.4g%s" % (
                    v.mean(), v.std(), v.min(), v.max(), "" if finite else "  NOT FINITE")
            elif t.size <= 4:
                line += " %s" % t.tolist()
            print(line)
    print("%d tensors, %d values, %d with values that are not finite" % (len(names), total, bad))
    return 1 if bad or not names else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1]))
    except Exception as error:  # whatever safetensors or the file system has to say
        sys.exit("%s: %s" % (sys.argv[1], error))
