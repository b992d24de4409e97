"""What the peers' scripts share: fresh processes, repeated timing, one output line.

A result is one line of key=value pairs on stdout:

    peer name=... variant=... threads=... <figures> <versions> load=...

load is the system's load average over the last minute: above the number of threads, somebody else
was using the machine and the figures are too low.

Every measurement runs in its own process, so that peak memory, thread pools and caches are its own.
"""
import os
import resource
import statistics
import subprocess
import sys
import time


def emit(name, variant, threads, **figures):
    parts = ["peer", "name=" + name, "variant=" + variant, "threads=%d" % threads]
    for key, v in figures.items():
        parts.append("%s=%s" % (key, "%.4g" % v if isinstance(v, float) else v))
    parts.append("load=%.2f" % os.getloadavg()[0])
    print(" ".join(parts), flush=True)


def peak_mb():
    """Largest resident set of this process so far, in MB (Linux counts it in KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


class Times(list):
    """Seconds of each call by the wall clock; cpu: median processor time of a call, in seconds."""
    cpu = 0.0


def times(run, seconds, warm=2, least=5, most=2000):
    """The Times of calls of run() after warm calls, for about so many seconds."""
    for _ in range(warm):
        run()
    out, used, start = Times(), [], time.perf_counter()
    while len(out) < least or (time.perf_counter() - start < seconds and len(out) < most):
        t, u = time.perf_counter(), time.process_time()
        run()
        out.append(time.perf_counter() - t)
        used.append(time.process_time() - u)
    out.cpu = median(used)
    return out


def median(values):
    return statistics.median(values)


def fresh(arguments, threads):
    """Run this script again in a process of its own with so many threads; its exit code."""
    env = dict(os.environ)
    for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[key] = str(threads)
    return subprocess.call([sys.executable, sys.argv[0], "--child"] + [str(a) for a in arguments],
                           env=env)
