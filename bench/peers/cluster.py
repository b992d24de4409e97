"""k-means and exact neighbours by faiss: what bench/cluster.c does, on the same points.

    python cluster.py [--threads 2] [--cases kmeans,knn] [--seconds 5]

kmeans  60,000 x 128, 1,000 clusters, 20 iterations from the first 1,000 points, and the assignment
        behind them (faiss.Kmeans.train and a search)
knn     the 200 nearest of 2,000 queries in 60,000 unit rows (IndexFlatIP.search); the index is
        filled before, and the vote is left out
Needs faiss-cpu and numpy. ms is the median; inertia is of the last assignment.
"""
import argparse
import sys
import time

from common import Times, emit, fresh, median, peak_mb, times

N, D, K, QUERIES, CLOUDS = 60000, 128, 1000, 2000, 300


def hashed(np, stream, i):
    m = np.uint64(0xFFFFFFFF)
    x = (i.astype(np.uint64) * np.uint64(2654435761) + np.uint64(stream * 0x9E3779B9)) & m
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & m
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & m
    x ^= x >> np.uint64(16)
    return (x >> np.uint64(8)).astype(np.float32) / np.float32(8388608) - np.float32(1)


def points(np, n, stream):
    i = np.arange(n * D)
    cloud = i // D % CLOUDS * D + i % D
    return (np.float32(.25) * hashed(np, 1, cloud) + hashed(np, stream, i)).reshape(n, D)


def kmeans(np, faiss, x, seconds):
    out, used, start = Times(), [], time.perf_counter()
    while not out or time.perf_counter() - start < seconds:
        t, u = time.perf_counter(), time.process_time()
        m = faiss.Kmeans(D, K, niter=20)
        m.train(x, init_centroids=x[:K])
        far, nearest = m.index.search(x, 1)
        out.append(time.perf_counter() - t)
        used.append(time.process_time() - u)
    out.cpu = median(used)
    inertia = ((x.astype(np.float64) - m.centroids[nearest[:, 0]]) ** 2).sum()
    return out, {"inertia": "%.8g" % inertia}


def knn(np, faiss, x, q, seconds):
    x, q = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, q)]
    index = faiss.IndexFlatIP(D)
    index.add(x)
    cosine, found = index.search(q, 200)
    votes = np.zeros((QUERIES, CLOUDS))
    np.add.at(votes, (np.arange(QUERIES)[:, None], found % CLOUDS), np.exp(cosine / .1))
    right = votes.argmax(1) == np.arange(QUERIES) % CLOUDS
    return times(lambda: index.search(q, 200), seconds, least=3), {"top1": "%.4f" % right.mean()}


def child(case, threads, seconds):
    import faiss
    import numpy as np
    faiss.omp_set_num_threads(threads)
    x = points(np, N, 2)
    if case == "kmeans":
        t, more = kmeans(np, faiss, x, seconds)
    else:
        t, more = knn(np, faiss, x, points(np, QUERIES, 3), seconds)
    emit(case, "faiss", threads, ms=1e3 * median(t), best_ms=1e3 * min(t), cpu_ms=1e3 * t.cpu,
         peak_mb=peak_mb(), faiss=faiss.__version__, **more)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=5.0)
    p.add_argument("--cases", default="kmeans,knn")
    p.add_argument("--child", metavar="CASE", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child, a.threads, a.seconds)
    rest = ["--threads", a.threads, "--seconds", a.seconds]
    return 1 if [1 for c in a.cases.split(",") if fresh([c] + rest, a.threads)] else 0


if __name__ == "__main__":
    sys.exit(main())
