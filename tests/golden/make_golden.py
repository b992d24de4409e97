"""Make the golden files golden_*.txt that the tests compare with.

Needs Python 3, numpy, PyTorch and torchvision, for cluster scikit-learn and scipy as well; the
tests themselves need none of them.

    python make_golden.py                 all files, beside this script
    python make_golden.py loss ops        some of them; without names all (see the end)
    python make_golden.py --out DIR       elsewhere

Everything is computed in float64 on the CPU.

FILE FORMAT. ASCII. Lines that begin with '#' are comments. Every other line is one record

    key count v0 v1 ...

with the values in %.17g (golden_aug.txt: %.6g, because it holds whole images).

INPUTS ARE NEVER STORED. They come from a hash that C (golden.h) and Python both implement:

    fnv(name)     32-bit FNV-1a of the ASCII name
    hash(seed,i)  x = uint32(i * 2654435761 + seed * 0x9E3779B9)
                  x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16
                  value = 2 * (x >> 8) / 2^24 - 1, in [-1, 1), exact in float and in double
    fill(name, n, scale)   v[i] = scale * hash(fnv(name), i), i = 0 .. n-1

i runs over the row-major flat index: images and activations are NHWC, convolution weights are OIHW
and linear weights [out, in], as torchvision stores them. "fill(name)" below means scale 1.

DIGESTS. Of a large output y only this is stored, under its key:

    key 5..8   n  sum(y)  sum(y*y)  dot(y, fill("probe:" + key, n))  y[0] .. y[min(n,4)-1]

WHICH KEYS. Each section below begins with the list of its keys and how its inputs are made; the
same text stands at the top of the file it writes.
"""
import math
import os
import sys
import unicodedata

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

M32 = np.uint64(0xFFFFFFFF)


# ---------------------------------------------------------------------------------- hash and digest
def fnv(name):
    h = 0x811C9DC5
    for b in name.encode("ascii"):
        h = ((h ^ b) * 0x01000193) & 0xFFFFFFFF
    return h


def fill(name, n, scale=1.0):
    """n hash values in [-1, 1) times scale, as a float64 numpy vector."""
    i = np.arange(n, dtype=np.uint64)
    x = (i * np.uint64(2654435761) + np.uint64((fnv(name) * 0x9E3779B9) & 0xFFFFFFFF)) & M32
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & M32
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & M32
    x ^= x >> np.uint64(16)
    u = (x >> np.uint64(8)).astype(np.float64) / 16777216.0
    return scale * (2.0 * u - 1.0)


def tfill(name, shape, scale=1.0, grad=False):
    """fill() as a torch tensor of a shape."""
    n = int(np.prod(shape)) if len(shape) else 1
    return torch.from_numpy(fill(name, n, scale)).reshape(shape).requires_grad_(grad)


def nhwc(t):
    """NCHW tensor -> NHWC tensor."""
    return t.permute(0, 2, 3, 1)


def nchw(t):
    """NHWC tensor -> NCHW tensor."""
    return t.permute(0, 3, 1, 2)


class Golden:
    """Collects the records of one file."""

    def __init__(self, name, comment, fmt="%.17g"):
        self.name, self.fmt, self.keys, self.lines = name, fmt, set(), []
        self.lines += ["# " + line if line else "#" for line in comment.strip().split("\n")]
        self.lines.append("# made by make_golden.py, PyTorch %s" % torch.__version__.split("+")[0])

    def put(self, key, values):
        v = values.detach() if torch.is_tensor(values) else values
        v = np.asarray(v, dtype=np.float64).reshape(-1)
        assert key not in self.keys and " " not in key, key
        assert np.isfinite(v).all(), key
        self.keys.add(key)
        self.lines.append(" ".join([key, str(len(v))] + [self.fmt % (x + 0.0) for x in v]))

    def digest(self, key, values):
        v = values.detach().contiguous().numpy() if torch.is_tensor(values) else values
        v = np.asarray(v, dtype=np.float64).reshape(-1)
        n = len(v)
        dot = float(np.dot(v, fill("probe:" + key, n)))
        self.put(key, [n, math.fsum(v), math.fsum(v * v), dot] + list(v[:4]))

    def write(self, folder):
        path = os.path.join(folder, self.name)
        with open(path, "w", newline="\n") as f:
            f.write("\n".join(self.lines) + "\n")
        print("%s: %d records, %d bytes" % (self.name, len(self.keys), os.path.getsize(path)))


# ------------------------------------------------------------------------------------------- losses
LOSS = """
golden_loss.txt: NT-Xent and SupCon.

NT-Xent (Chen et al. 2020). Rows: all of view 1, then all of view 2, ... A row is divided by its
L2 norm inside the loss; a zero row stays zero and has gradient zero. With s the cosine:
  loss = mean over the K*n anchors i of
         mean over the K-1 positives p of -log( exp(s_ip/T) / sum_{j != i} exp(s_ij/T) )
  ntxent:K:n:d:T:loss  1 value      ntxent:K:n:d:T:dz  digest of d loss / d z, [K*n, d]
  input z = fill("z:n:d", K*n*d)    T printed with %g
  ntxent0:...  the same with row 1 of z set to zero

SupCon (Khosla et al. 2020, L_out, no T/T_base factor). Row r has label (r mod n) mod 3; its
positives are the other rows with its label. An anchor without positives adds nothing and is not
counted; without any counted anchor the loss is 0.
  supcon:K:n:d:T:loss, :dz, :count (anchors counted)     same input as ntxent

Known values from angles in degrees, unit vectors in the plane (same losses):
  angles:ntxent:T      view 1 at 0,40,80,120, view 2 at 10,55,85,140
  angles:supcon:T      rows at 0,10,20,50,60,80 with labels 0,0,0,1,1,2
"""


def unit_rows(z):
    norm2 = (z * z).sum(1, keepdim=True)
    live = norm2 > 0
    return torch.where(live, z / torch.where(live, norm2, torch.ones_like(norm2)).sqrt(), z * 0)


def log_prob(z, temperature):
    """log of the softmax over the other rows; the diagonal is meaningless and set to 0."""
    u = unit_rows(z)
    s = u @ u.t() / temperature
    eye = torch.eye(len(z), dtype=torch.bool)
    return (s - torch.logsumexp(s.masked_fill(eye, -math.inf), 1, keepdim=True)).masked_fill(eye, 0)


def ntxent(z, views, temperature):
    lp, rows = log_prob(z, temperature), len(z)
    ids = torch.arange(rows) % (rows // views)
    pos = (ids[:, None] == ids[None, :]) & ~torch.eye(rows, dtype=torch.bool)
    return -((lp * pos).sum(1) / (views - 1)).mean()


def supcon(z, labels, temperature):
    if len(z) < 2:
        return z.sum() * 0, 0
    lp = log_prob(z, temperature)
    pos = (labels[:, None] == labels[None, :]) & ~torch.eye(len(z), dtype=torch.bool)
    count = pos.sum(1)
    live = count > 0
    if not live.any():
        return z.sum() * 0, 0
    per = -(lp * pos).sum(1) / count.clamp(min=1)
    return per[live].mean(), int(live.sum())


def cross_entropy_ntxent(z, temperature):
    """Independent form for two views: cross entropy over similarities with the diagonal cut out."""
    n = len(z) // 2
    u = F.normalize(z, dim=1)
    s = u @ u.t() / temperature
    rows, targets = [], []
    for i in range(2 * n):
        rows.append(torch.cat([s[i, :i], s[i, i + 1:]]))
        j = (i + n) % (2 * n)
        targets.append(j - 1 if j > i else j)
    return F.cross_entropy(torch.stack(rows), torch.tensor(targets))


def make_loss():
    g = Golden("golden_loss.txt", LOSS)
    sizes = [(n, d) for n in (1, 2, 3, 17) for d in (1, 2, 16, 64)]
    temps = (0.05, 0.1, 0.5, 1, 10)
    few = {(2, 2), (3, 16), (17, 64), (1, 16)}

    def one(kind, views, n, d, t, zero=False):
        z = fill("z:%d:%d" % (n, d), views * n * d).reshape(views * n, d)
        if zero:
            z[1] = 0
        z = torch.from_numpy(z).requires_grad_(True)
        key = "%s%s:%d:%d:%d:%g" % (kind, "0" if zero else "", views, n, d, t)
        if kind == "ntxent":
            loss = ntxent(z, views, t)
            if views == 2 and not zero:
                assert abs(loss.item() - cross_entropy_ntxent(z, t).item()) < 1e-12
        else:
            loss, count = supcon(z, torch.arange(views * n) % n % 3, t)
            g.put(key + ":count", [count])
        loss.backward()
        # In one dimension, or with a single candidate, the gradient is exactly zero: write it so.
        dz = z.grad if d > 1 and views * n > 2 else torch.zeros_like(z)
        assert (z.grad - dz).abs().max() < 1e-13
        g.put(key + ":loss", [loss.item() if views * n > 2 else 0.0])
        assert views * n > 2 or abs(loss.item()) < 1e-13
        g.digest(key + ":dz", dz)

    for n, d in sizes:
        for t in temps:
            one("ntxent", 2, n, d, t)
            one("supcon", 2, n, d, t)
            if (n, d) in few:
                one("ntxent", 3, n, d, t)
                one("supcon", 1, n, d, t)
    one("ntxent", 4, 3, 16, 0.5)
    one("ntxent", 2, 3, 16, 0.5, zero=True)
    one("supcon", 2, 3, 16, 0.5, zero=True)

    def plane(angles):
        a = torch.tensor(angles) * math.pi / 180
        return torch.stack([a.cos(), a.sin()], 1)

    z = plane([0., 40, 80, 120, 10, 55, 85, 140])
    known = {.07: .2311152553, .1: .3752961798, .2: .7181412757, .5: 1.1962715706, 1: 1.4950531827}
    for t, want in known.items():
        loss = ntxent(z, 2, t).item()
        assert abs(loss - want) < 1e-9, (t, loss, want)
        g.put("angles:ntxent:%g" % t, [loss])
    loss, count = supcon(plane([0., 10, 20, 50, 60, 80]), torch.tensor([0, 0, 0, 1, 1, 2]), .1)
    assert count == 5 and abs(loss.item() - .7200604451) < 1e-9, loss
    g.put("angles:supcon:0.1", [loss.item()])
    return g


# ------------------------------------------------------------------------------------ augmentations
LOSSES = """
golden_losses.txt: the losses of the field, written out as their authors have them.

Each case KEY stores KEY:loss (1 value) and KEY:d0, KEY:d1, ... digests of the loss's gradients by
its inputs, in the order below. Inputs: fill("NAME:i:SIZES") for input i of shape [n, d], where
"NAME:SIZES" is the key's beginning up to and with d; cut in view order. A gradient whose largest
entry is below 1e-12 is written as zeros (one dimension, one candidate). Numbers are exactly what
their %g in the key says.

  infonce:n:d:m:T       q, k; negatives = unit rows of fill("neg:m:d") [m, d]; m = 0: in batch
  clip:n:d:s:ids        image, text, s; ids 1: rows i and j are positives if i mod 3 = j mod 3
  siglip:n:d:t:b:ids    image, text, t, b
  dcl:n:d:T             z [2n, d]
  regression:n:d        p (z = input 1 gets none)          negcos:n:d  the same
  barlow:n:d:lambda     z1, z2
  vicreg:n:d:s:v:c      z1, z2
  swav:n:k:views:assign:T   scores [views n, k]; codes = softmax of 4 fill("codes:n:k") [assign n, k]
  nce:n:c:form:T:N      scores [n, c], c = 1 + K; form 0 NPID, Z = mean exp(s) N, 1 PIRL, 2 InfoNCE
  align:n:d:alpha       x, y                               uniform:n:d:t  x
  siamese:n:d:margin    z1, z2, same_i = (i mod 3 != 1)
  triplet:n:d:margin:mining:squared:normalize:soft:mean_active
                        z [n, d], label (i mod 3), the last row unlabelled if n > 4;
                        mining 0 all, 1 hard, 2 semi-hard;  :active the share
"""


def losses_infonce(x, m, t):
    q, k = unit_rows(x[0]), unit_rows(x[1])
    n, d = q.shape
    if m == 0:
        return F.cross_entropy(q @ k.t() / t, torch.arange(n))
    queue = unit_rows(tfill("neg:%d:%d" % (m, d), (m, d)))
    l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
    logits = torch.cat([l_pos, torch.einsum("nc,kc->nk", q, queue)], 1) / t
    return F.cross_entropy(logits, torch.zeros(n, dtype=torch.long))


def losses_same(n, ids):
    i = torch.arange(n) % 3 if ids else torch.arange(n)
    return i[:, None] == i[None, :]


def losses_clip(x, s, ids):
    logits = x[2].exp() * unit_rows(x[0]) @ unit_rows(x[1]).t()
    n = len(logits)
    if not ids:
        y = torch.arange(n)
        return (F.cross_entropy(logits, y) + F.cross_entropy(logits.t(), y)) / 2
    y = losses_same(n, ids).double()
    y = y / y.sum(1, keepdim=True)
    return -((y * logits.log_softmax(1)).sum(1).mean() + (y * logits.t().log_softmax(1)).sum(1).mean()) / 2


def losses_siglip(x, t, b, ids):
    logits = x[2].exp() * unit_rows(x[0]) @ unit_rows(x[1]).t() + x[3]
    y = 2 * losses_same(len(logits), ids).double() - 1
    return -F.logsigmoid(y * logits).sum() / len(logits)


def losses_dcl(x, t):
    u, n = unit_rows(x[0]), len(x[0]) // 2
    s = u @ u.t() / t
    total = 0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        rest = [j for j in range(2 * n) if j != i and j != p]
        total = total - s[i, p] + torch.logsumexp(s[i, rest], 0)
    return total / (2 * n)


def losses_regression(x):
    return (2 - 2 * (unit_rows(x[0]) * unit_rows(x[1])).sum(-1)).mean()


def losses_negcos(x):
    return -(unit_rows(x[0]) * unit_rows(x[1])).sum(-1).mean()


def losses_barlow(x, lambd):
    a, b = (F.batch_norm(v, None, None, training=True, eps=1e-5) for v in x)
    c = a.t() @ b / len(a)
    off = c - torch.diag(torch.diagonal(c))
    return (torch.diagonal(c) - 1).pow(2).sum() + lambd * off.pow(2).sum()


def losses_vicreg(v, sim, std, cov):
    x, y = v
    n, d = x.shape
    repr_loss = F.mse_loss(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    std_loss = sum(F.relu(1 - torch.sqrt(w.var(0) + 1e-4)).mean() / 2 for w in (x, y))
    cov_loss = 0
    for w in (x, y):
        c = w.t() @ w / (n - 1)
        cov_loss = cov_loss + (c - torch.diag(torch.diagonal(c))).pow(2).sum() / d
    return sim * repr_loss + std * std_loss + cov * cov_loss


def losses_swav(x, views, assign, t):
    k = x[0].shape[1]
    n = len(x[0]) // views
    codes = F.softmax(tfill("codes:%d:%d" % (n, k), (assign * n, k), 4), 1)
    loss = 0
    for crop in range(assign):
        q = codes[crop * n:(crop + 1) * n]
        subloss = 0
        for v in range(views):
            if v != crop:
                p = F.log_softmax(x[0][v * n:(v + 1) * n] / t, 1)
                subloss = subloss - torch.mean(torch.sum(q * p, 1))
        loss = loss + subloss / (views - 1)
    return loss / assign


def losses_nce(x, form, t, images):
    out, k = x[0] / t, x[0].shape[1] - 1
    if form == 2:
        return F.cross_entropy(out, torch.zeros(len(out), dtype=torch.long))
    if form == 1:
        p = F.softmax(out, 1)
        return -(p[:, 0].log().sum() + (1 - p[:, 1:] + 1e-7).log().sum()) / len(out)
    z = out.exp().mean().item() * images
    p, pn = out.exp() / z, 1 / images
    pos = p[:, 0] / (p[:, 0] + k * pn + 1e-7)
    neg = k * pn / (p[:, 1:] + k * pn + 1e-7)
    return -(pos.log().sum() + neg.log().sum()) / len(out)


def losses_align(x, alpha):
    return (unit_rows(x[0]) - unit_rows(x[1])).norm(p=2, dim=1).pow(alpha).mean()


def losses_uniform(x, t):
    return torch.pdist(unit_rows(x[0]), p=2).pow(2).mul(-t).exp().mean().log()


def losses_siamese(x, margin):
    d = (x[0] - x[1]).pow(2).sum(1).sqrt()
    same = torch.arange(len(d)) % 3 != 1
    return torch.where(same, d * d / 2, F.relu(margin - d) ** 2 / 2).mean()


def triplets(dist, label, mining, margin):
    """The chosen (anchor, positive, negative), and the number of pairs looked at."""
    n, chosen, pairs = len(label), [], 0
    for a in range(n):
        pos = [p for p in range(n) if p != a and label[p] == label[a] >= 0]
        neg = [q for q in range(n) if label[q] != label[a] and label[q] >= 0]
        if mining == 1 and pos and neg:
            chosen.append((a, max(pos, key=lambda p: dist[a, p].item()),
                           min(neg, key=lambda q: dist[a, q].item())))
        for p in pos:
            pairs += 1
            if mining == 0:
                chosen += [(a, p, q) for q in neg]
            if mining == 2:
                fit = [q for q in neg if dist[a, p] < dist[a, q] < dist[a, p] + margin]
                if fit:
                    chosen.append((a, p, min(fit, key=lambda q: dist[a, q].item())))
    return chosen, pairs


def losses_triplet(x, margin, mining, squared, normalize, soft, mean_active, share=None):
    z = unit_rows(x[0]) if normalize else x[0]
    n = len(z)
    label = [i % 3 for i in range(n)]
    if n > 4:
        label[-1] = -1
    dist = (z[:, None] - z[None, :]).pow(2).sum(2)
    if not squared:
        dist = (dist + torch.eye(n)).sqrt() - torch.eye(n)
    chosen, pairs = triplets(dist, label, mining, margin)
    gaps = [dist[a, p] - dist[a, q] for a, p, q in chosen]
    terms = [F.softplus(g) if soft else F.relu(g + margin) for g in gaps]
    active = sum(int(g.item() > (0 if soft else -margin)) for g in gaps)
    if share is not None:
        tried = pairs if mining == 2 else len(chosen)
        share.append((len(chosen) if mining == 2 else active) / tried if tried else 0)
    divisor = max(active if mean_active else len(chosen), 1)
    return sum(terms) / divisor if terms else z.sum() * 0


def make_losses():
    g = Golden("golden_losses.txt", LOSSES)
    sizes = [(n, d) for n in (1, 2, 3, 17) for d in (1, 2, 16, 64)]

    def one(name, n, d, *args, inputs=2, rows=None, numbers=(), learn=None):
        args, numbers = ([float("%g" % a) for a in v] for v in (args, numbers))
        base = "%s:%d:%d" % (name, n, d)
        key = ":".join([base] + ["%g" % a for a in args])
        args = [int(a) if a == int(a) else a for a in args]
        x = [tfill("%s:%d:%d:%d" % (name, i, n, d), (rows or n, d)) for i in range(inputs)]
        x += [torch.tensor([v]) for v in numbers]
        for v in x[:learn]:
            v.requires_grad_(True)
        share = [] if name == "triplet" else None
        call = globals()["losses_" + name]
        loss = call(x, *args, share=share) if share is not None else call(x, *args)
        loss.backward()
        loss = loss.item()
        g.put(key + ":loss", [0.0 if abs(loss) < 1e-15 else loss])
        if share:
            g.put(key + ":active", share)
        for i, v in enumerate(x[:learn]):
            grad = v.grad
            if grad.abs().max() < 1e-12:
                grad = torch.zeros_like(grad)
            g.digest("%s:d%d" % (key, i), grad)

    for n, d in sizes:
        for m, t in ((0, .2), (0, 1), (1, .07), (33, .07), (33, .5), (33, 10)):
            one("infonce", n, d, m, t)
        for s in (0, math.log(1 / .07), 4.5):
            for ids in (0, 1):
                one("clip", n, d, s, ids, numbers=(s,))
        for t, b in ((math.log(10), -10), (0, 0.5)):
            for ids in (0, 1):
                one("siglip", n, d, t, b, ids, numbers=(t, b))
        one("regression", n, d, learn=1)
        one("negcos", n, d, learn=1)
        for alpha in (1, 2, 3):
            if d > 1:
                one("align", n, d, alpha)
        for margin in (.5, 2):
            one("siamese", n, d, margin)
        for views, assign, t in ((2, 2, .1), (2, 1, .1), (5, 2, .1), (3, 3, 1)):
            one("swav", n, d, views, assign, t, inputs=1, rows=views * n)
        for form in (0, 1, 2):
            for t in (.1, .5):
                if d > 1:
                    one("nce", n, d, form, t, 1000, inputs=1)
        if n > 1:
            for t in (.1, .5):
                one("dcl", n, d, t, inputs=1, rows=2 * n)
            for lam in (.0051, .5, 0):
                one("barlow", n, d, lam)
            for w in ((25, 25, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
                one("vicreg", n, d, *w)
            for t in (2, .5, 10):
                if d > 1:
                    one("uniform", n, d, t, inputs=1)
    for n, d in ((3, 2), (7, 2), (7, 16), (17, 2), (17, 64)):
        for margin, mining, sq, norm, soft, mean in (
                (.2, 0, 1, 1, 0, 0), (.2, 0, 0, 1, 0, 1), (.2, 0, 1, 1, 1, 0), (.2, 1, 0, 1, 0, 0),
                (.2, 1, 0, 0, 1, 0), (.5, 1, 1, 0, 0, 1), (.2, 2, 1, 1, 0, 0), (.5, 2, 0, 0, 0, 0),
                (1, 2, 1, 0, 0, 1), (1, 2, 1, 1, 1, 0)):
            one("triplet", n, d, margin, mining, sq, norm, soft, mean, inputs=1)
    return g


AUG = """
golden_aug.txt: torchvision's float image functions (v2.functional) on float64 images in [0, 1].
Whole results, HWC order, in %.6g. An image is uint8 / 255.

Images (integer arithmetic, h x w x 3):
  noise   13 x 17   value = (k * 255) >> 24 with k = x >> 8 of hash(fnv("noise"), i), 0 <= k < 2^24,
                    that is floor((hash + 1) * 127.5); i = flat HWC index
  smooth  32 x 32   channel 0 = x*255/31, 1 = y*255/31, 2 = (x*x + y*y)*255/1922  (integer division)

Keys IMAGE:op:arguments, IMAGE one of noise, smooth; smooth images only for some ops:
  gray                   0.2989 R + 0.587 G + 0.114 B in all three channels
  brightness:f  contrast:f  saturation:f    f >= 0; clamped to [0, 1]. contrast blends with the mean
                         of the gray image, saturation with the gray image
  hue:f                  -0.5 <= f <= 0.5, in turns, added to the hue of HSV
  jitter:ORDER           bcsh or hscb: brightness 1.3, contrast 0.7, saturation 1.4, hue 0.1
  solarize:t             v >= t ? 1 - v : v, t given as a count of 255ths
  hflip
  blur:k:s               k x k Gaussian of sigma s, weights exp(-i*i / (2 s*s)) normalised to sum 1;
                         edges reflected without repeating the edge pixel
  resize:MODE:top:left:h:w:H:W   the crop (top, left, h, w) alone, resized to H x W, MODE bilinear
                         or bicubic, antialiased. Per axis: r = in / out, f = max(r, 1); output o
                         has its centre at c = (o + 0.5) r; input i of the crop has the weight
                         k((i + 0.5 - c) / f), weights normalised to sum 1, none outside the crop;
                         k = triangle max(0, 1 - |t|), or the cubic with a = -0.5 (support 2):
                           |t| < 1: (a+2)|t|^3 - (a+3)|t|^2 + 1
                           |t| < 2: a|t|^3 - 5a|t|^2 + 8a|t| - 4a
                         Bicubic results are not clamped and may leave [0, 1].
"""


def aug_image(name):
    if name == "noise":
        h, w = 13, 17
        k = ((fill("noise", h * w * 3) + 1.0) * 8388608.0).astype(np.int64)
        v = (k * 255) >> 24
        assert (v == np.floor((fill("noise", h * w * 3) + 1.0) * 127.5)).all()
        img = v.reshape(h, w, 3)
    else:
        y, x = np.mgrid[0:32, 0:32]
        img = np.stack([x * 255 // 31, y * 255 // 31, (x * x + y * y) * 255 // 1922], 2)
    assert img.min() >= 0 and img.max() <= 255
    return torch.from_numpy(img.astype(np.float64) / 255.0).permute(2, 0, 1)


def make_aug():
    import torchvision
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as T
    g = Golden("golden_aug.txt", AUG + "torchvision %s" % torchvision.__version__.split("+")[0],
               "%.6g")

    def put(key, img):
        if img.shape[0] == 1:
            img = img.expand(3, -1, -1)
        g.put(key, img.permute(1, 2, 0).contiguous())

    def colour(name, img, op, factor):
        fn = {"b": T.adjust_brightness, "c": T.adjust_contrast, "s": T.adjust_saturation,
              "h": T.adjust_hue}[op[0]]
        put("%s:%s:%g" % (name, op, factor), fn(img, factor))

    noise, smooth = aug_image("noise"), aug_image("smooth")
    put("noise:gray", T.rgb_to_grayscale(noise, 3))
    for op, factors in (("brightness", (0, .3, 1, 1.7)), ("contrast", (0, .3, 1.7)),
                        ("saturation", (0, .3, 1.7)), ("hue", (-.5, -.13, 0, .05, .2))):
        for f in factors:
            colour("noise", noise, op, f)
    for op, f in (("contrast", 1.4), ("hue", .1)):
        colour("smooth", smooth, op, f)
    for order in ("bcsh", "hscb"):
        out = noise
        for c in order:
            out = {"b": lambda v: T.adjust_brightness(v, 1.3),
                   "c": lambda v: T.adjust_contrast(v, .7),
                   "s": lambda v: T.adjust_saturation(v, 1.4),
                   "h": lambda v: T.adjust_hue(v, .1)}[c](out)
        put("noise:jitter:" + order, out)
    for t in (64, 128):
        put("noise:solarize:%d" % t, T.solarize(noise, t / 255.0))
    put("noise:hflip", T.horizontal_flip(noise))
    for k, s in ((3, .1), (3, .7), (3, 2), (5, 1), (7, 1.5), (13, 2)):
        put("noise:blur:%d:%g" % (k, s), T.gaussian_blur(noise, [k, k], [s, s]))
    put("smooth:blur:5:1.2", T.gaussian_blur(smooth, [5, 5], [1.2, 1.2]))
    boxes = [("noise", noise, b) for b in ((0, 0, 13, 17, 32, 32), (0, 0, 13, 17, 7, 5),
                                           (2, 3, 9, 11, 13, 17), (1, 0, 12, 5, 6, 9),
                                           (0, 0, 13, 17, 13, 17), (4, 5, 1, 1, 3, 2),
                                           (0, 2, 2, 13, 5, 4))]
    boxes += [("smooth", smooth, b) for b in ((4, 6, 20, 25, 13, 17), (5, 3, 7, 9, 32, 32),
                                              (0, 0, 32, 32, 13, 17), (3, 1, 28, 29, 9, 9))]
    for name, img, (top, left, h, w, oh, ow) in boxes:
        for mode in ("bilinear", "bicubic"):
            out = T.resized_crop(img, top, left, h, w, [oh, ow],
                                 interpolation=InterpolationMode(mode), antialias=True)
            put("%s:resize:%s:%d:%d:%d:%d:%d:%d" % (name, mode, top, left, h, w, oh, ow), out)
    return g


# ------------------------------------------------------------------------------------------- policy
POLICY = """
golden_policy.txt: torchvision's RandAugment, AutoAugment and TrivialAugment on Pillow's 8-bit images.
Whole results, HWC order, bytes.

Images (integer arithmetic, h x w x c):
  noise   13 x 17 x 3   as in golden_aug.txt
  dim     20 x 28 x 3   v * 9 / 16 + 40 + 10 * channel, v as noise's, of fill("dim")
  gray    20 x 28 x 1   v * 9 / 16 + 40, v of fill("gray")

Keys IMAGE:op:value     the operation with that value: shear, pixels, degrees, factor (torchvision's
                        magnitude + 1), bits, threshold; 0 where there is none
     rand:op tens:op wide:op   values for an image of 37 x 53 pixels at levels 0..30 (rand: RandAugment
                        with 31 bins, tens: AutoAugment, levels 0..9, wide: TrivialAugment), without
                        the sign; factors minus 1
     pairs:NAME         150 numbers: operation (its place in the list of operations), probability,
                        level, 25 times twice; NAME cifar10, svhn or imagenet
     mixup cutmix       v2.MixUp and v2.CutMix of fill("mix.x", 4 x 5 x 7 x 3) with lambda 0.3 and
                        the box top 1, left 2, height 3, width 4 and the pairs i, i - 1, digests;
     mixup:y cutmix:y   the targets of labels 2, 0, 1, 2
"""
OPS_IN_ORDER = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
                "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
                "Invert"]


def policy_name(op):
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(op))


def policy_image(name):
    h, w, c = (13, 17, 3) if name == "noise" else (20, 28, 1 if name == "gray" else 3)
    v = np.floor((fill(name, h * w * c) + 1.0) * 127.5).astype(np.int64).reshape(h, w, c)
    if name != "noise":
        v = v * 9 // 16 + 40 + 10 * np.arange(c)
    return v.astype(np.uint8)


def make_policy():
    from PIL import Image
    from torchvision.transforms import InterpolationMode, autoaugment as A, v2
    g = Golden("golden_policy.txt", POLICY, "%.17g")
    factors = (1.9, .1, 1.27, .73, 2.5)
    cases = [("noise", op, f) for op in ("Brightness", "Color", "Contrast", "Sharpness")
             for f in factors]
    cases += [("noise", op, v) for op in ("ShearX", "ShearY") for v in (.3, -.11, .99)]
    cases += [("noise", op, v) for op in ("TranslateX", "TranslateY") for v in (5, -3)]
    cases += [("noise", "Rotate", v) for v in (30, -13, 90, 180, 135)]
    cases += [("noise", "Posterize", v) for v in (1, 4, 7)]
    cases += [("noise", "Solarize", v) for v in (0, 127.5, 128, 255)]
    cases += [("noise", "Invert", 0), ("noise", "Equalize", 0), ("noise", "Identity", 0)]
    cases += [(i, op, 0) for i in ("dim", "gray") for op in ("AutoContrast", "Equalize")]
    cases += [("dim", "Rotate", 17.5), ("dim", "Sharpness", 1.6), ("dim", "Contrast", .46)]
    cases += [("gray", op, 1.6) for op in ("Brightness", "Color", "Contrast", "Sharpness")]
    cases += [("gray", "Rotate", -21), ("gray", "Solarize", 90), ("gray", "ShearX", -.2)]
    for name, op, value in cases:
        x = policy_image(name)
        img = Image.fromarray(x if x.shape[2] == 3 else x[:, :, 0])
        shift = 1.0 if op in ("Brightness", "Color", "Contrast", "Sharpness") else 0.0
        img = A._apply_op(img, op, value - shift, InterpolationMode.NEAREST, None)
        g.put("%s:%s:%g" % (name, policy_name(op), value), np.asarray(img))

    spaces = (("rand", A.RandAugment()._augmentation_space(31, (37, 53)), 31),
              ("tens", A.AutoAugment()._augmentation_space(10, (37, 53)), 10),
              ("wide", A.TrivialAugmentWide()._augmentation_space(31), 31))
    for key, space, bins in spaces:
        for op, (values, signed) in space.items():
            if values.ndim == 0:
                continue
            assert signed == (op not in ("Posterize", "Solarize"))
            values = values.double()
            g.put(key + ":" + policy_name(op), values.trunc() if "Translate" in op else values)
    for name in ("cifar10", "svhn", "imagenet"):
        pairs = A.AutoAugment(A.AutoAugmentPolicy(name)).policies
        g.put("pairs:" + name, [v for pair in pairs for op, p, level in pair
                                for v in (OPS_IN_ORDER.index(op), p, level or 0)])

    x = tfill("mix.x", (4, 5, 7, 3)).permute(0, 3, 1, 2)
    y = torch.tensor([2, 0, 1, 2])
    for key, mix, how in (("mixup", v2.MixUp(num_classes=3), dict(lam=.3)),
                          ("cutmix", v2.CutMix(num_classes=3),
                           dict(box=(2, 1, 6, 4), lam_adjusted=1 - 12 / 35))):
        how.update(labels=y, batch_size=4)
        g.digest(key, mix.transform(x, how).permute(0, 2, 3, 1))
        g.put(key + ":y", mix.transform(y, how).double())
    return g


# ---------------------------------------------------------------------------------------------- ops
OPS = """
golden_ops.txt: single operations, value and gradients.

Every input is a fill of its own name; with KEY the part before the last colon of the record's key:
x = fill("x:KEY") * scale, w = fill("w:KEY"), b = fill("b:KEY"), and the gradient that enters from
above dy = fill("dy:KEY"). Scale is 1 unless given. Records KEY:y, KEY:dx, KEY:dw, KEY:db are
digests. Images NHWC.

  gelu:N  sigmoid:N  tanh:N     x scale 4; gelu exact, x * Phi(x) with erf
  softmax:R:C  log_softmax:R:C  rows; x scale 4 (scale 60 where R = 4)
  layernorm:R:C                 eps 1e-5, biased variance, weight w and bias b of length C
  linear:R:I:O                  y = x w^T + b, w [O, I]
  rownorm:R:C                   rows / L2 norm; rownorm0: the same with row 1 of x set to zero
                                (its y and dx are zero)
  bn1:N:H:W:C  bn2:...          batch norm, train mode, eps 1e-5, momentum 0.1, 1 or 2 groups; a
                                group is a contiguous block of N/groups images with own statistics
      :mean :var                running statistics afterwards, whole; before: running mean
                                fill("rm:KEY", C), running variance 1 + 0.5 * fill("rv:KEY", C). The
                                variance that enters is unbiased. Groups update one after the other
      :mean_avg :var_avg        bn2 only: one update with the mean of the groups' statistics instead
  bneval:N:H:W:C                batch norm, eval mode, with those running statistics
  ce:R:C                        cross entropy; x scale 3; class of row r is (5 r + 3) mod C, but -1
                                (ignored) where r mod 4 = 1; mean over the rows not ignored;
                                :loss 1 value, :dx digest; dy = 1
  cesoft:R:C                    targets softmax(3 * fill("t:KEY")) by rows, mean over rows;
                                x scale 3; :loss, :dx likewise
  maxpool:N:H:W:C               3x3, stride 2, padding 1
  avgpool:N:H:W:C               2x2, stride 2, a last odd row or column is dropped
  gap:N:H:W:C                   mean over H and W, y [N, C]
  hash:NAME                     fill(NAME, 100003), digest: checks the hash itself
  conv:N:H:W:CIN:COUT:K:S:P     K x K, stride S, padding P; x, y, dy NHWC; w, dw OIHW
"""


def make_ops():
    g = Golden("golden_ops.txt", OPS)

    def run(key, x, y, **others):
        """Backward with the key's dy; digests of y, dx and the gradients of the named others."""
        y.backward(tfill("dy:" + key, tuple(y.shape)))
        g.digest(key + ":y", y)
        g.digest(key + ":dx", x.grad)
        for name, t in others.items():
            g.digest("%s:d%s" % (key, name), t.grad)

    for name, fn in (("gelu", F.gelu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)):
        for n in (1, 37, 257):
            key = "%s:%d" % (name, n)
            x = tfill("x:" + key, (n,), 4, True)
            run(key, x, fn(x))
    for name, fn in (("softmax", F.softmax), ("log_softmax", F.log_softmax)):
        for r, c in ((5, 7), (3, 1), (1, 19), (4, 33)):
            key = "%s:%d:%d" % (name, r, c)
            x = tfill("x:" + key, (r, c), 60 if r == 4 else 4, True)
            run(key, x, fn(x, dim=1))
    for r, c in ((5, 7), (1, 64), (3, 2), (17, 33)):
        key = "layernorm:%d:%d" % (r, c)
        x = tfill("x:" + key, (r, c), 1, True)
        w, b = tfill("w:" + key, (c,), 1, True), tfill("b:" + key, (c,), 1, True)
        run(key, x, F.layer_norm(x, (c,), w, b, 1e-5), w=w, b=b)
    for r, i, o in ((1, 1, 1), (5, 7, 3), (17, 64, 33), (8, 16, 16)):
        key = "linear:%d:%d:%d" % (r, i, o)
        x, w = tfill("x:" + key, (r, i), 1, True), tfill("w:" + key, (o, i), 1, True)
        b = tfill("b:" + key, (o,), 1, True)
        run(key, x, F.linear(x, w, b), w=w, b=b)
    for r, c in ((5, 7), (3, 1), (17, 64)):
        for zero in ("", "0"):
            key = "rownorm%s:%d:%d" % (zero, r, c)
            x = tfill("x:" + key, (r, c))
            if zero:
                x[1] = 0
            x.requires_grad_(True)
            run(key, x, unit_rows(x))
    for dims in ((6, 3, 5, 4), (4, 1, 1, 17), (2, 7, 7, 1), (8, 2, 3, 33)):
        ops_batch_norm(g, run, dims)
    for r, c in ((9, 7), (5, 2), (33, 10)):
        key = "ce:%d:%d" % (r, c)
        x = tfill("x:" + key, (r, c), 3, True)
        t = torch.tensor([-1 if i % 4 == 1 else (5 * i + 3) % c for i in range(r)])
        loss = F.cross_entropy(x, t, ignore_index=-1)
        loss.backward()
        g.put(key + ":loss", [loss.item()])
        g.digest(key + ":dx", x.grad)
        key = "cesoft:%d:%d" % (r, c)
        x = tfill("x:" + key, (r, c), 3, True)
        loss = F.cross_entropy(x, F.softmax(tfill("t:" + key, (r, c), 3), 1))
        loss.backward()
        g.put(key + ":loss", [loss.item()])
        g.digest(key + ":dx", x.grad)
    pools = (("maxpool", lambda v: F.max_pool2d(v, 3, 2, 1)),
             ("avgpool", lambda v: F.avg_pool2d(v, 2)))
    for dims in ((2, 8, 8, 3), (3, 7, 5, 4), (1, 3, 2, 17), (2, 13, 6, 16)):
        for name, fn in pools:
            key = "%s:%d:%d:%d:%d" % ((name,) + dims)
            x = tfill("x:" + key, dims, 1, True)
            run(key, x, nhwc(fn(nchw(x))))
        key = "gap:%d:%d:%d:%d" % dims
        x = tfill("x:" + key, dims, 1, True)
        run(key, x, nhwc(F.adaptive_avg_pool2d(nchw(x), 1)).reshape(dims[0], dims[3]))
    for name in ("x", "conv1.weight", "layer4.2.downsample.0.weight"):
        g.digest("hash:" + name, fill(name, 100003))
    for case in conv_cases():
        n, h, wd, ci, co, k, s, p = case
        key = "conv:" + ":".join(map(str, case))
        x = tfill("x:" + key, (n, h, wd, ci), 1, True)
        w = tfill("w:" + key, (co, ci, k, k), 1, True)
        run(key, x, nhwc(F.conv2d(nchw(x), w, None, s, p)), w=w)
    return g


def conv_cases():
    """n, h, w, cin, cout, k, s, p: all kernels, strides, pads; channels that leave remainders."""
    chan = [1, 3, 4, 5, 16, 17]
    size = [(7, 9), (8, 8), (13, 6), (9, 12), (16, 16), (11, 11)]
    cases = []
    for k in (1, 3, 5, 7):
        for s in (1, 2):
            for p in range(0, k // 2 + 1):
                for r in range(4):
                    pick = fnv("%d:%d:%d:%d" % (k, s, p, r)) >> 4
                    h, w = size[pick % 6]
                    if w + 2 * p < k:
                        h, w = 7, 9
                    ci, co = chan[pick // 6 % 6], chan[pick // 36 % 6]
                    cases.append((1 + r % 3, h, w, ci, co, k, s, p))
    cases += [(2, 8, 8, 16, 16, 3, 1, 1), (2, 8, 12, 32, 16, 3, 1, 1), (1, 6, 10, 16, 48, 3, 1, 1),
              (3, 4, 4, 64, 64, 3, 1, 1), (2, 5, 7, 16, 32, 3, 1, 1), (2, 8, 8, 16, 32, 3, 2, 1),
              (2, 9, 7, 16, 32, 3, 2, 1), (2, 8, 8, 16, 32, 1, 2, 0), (2, 7, 9, 32, 16, 1, 2, 0),
              (2, 16, 16, 3, 16, 3, 1, 1), (2, 15, 17, 3, 16, 7, 2, 3), (2, 18, 16, 3, 32, 7, 2, 3),
              (1, 1, 1, 16, 16, 3, 1, 1), (1, 2, 2, 5, 17, 3, 2, 1), (1, 1, 5, 3, 4, 5, 1, 2),
              (2, 3, 3, 17, 5, 1, 1, 0), (2, 6, 6, 4, 4, 3, 1, 3), (1, 5, 5, 3, 5, 1, 2, 1),
              (1, 12, 12, 128, 32, 3, 1, 1), (1, 4, 4, 130, 20, 3, 1, 1)]
    seen, out = set(), []
    for c in cases:
        if c not in seen:
            seen.add(c)
            out.append(c)
    return out


def ops_batch_norm(g, run, dims):
    n, h, w, c = dims
    tail = ":%d:%d:%d:%d" % dims
    for groups in (1, 2, 0):
        key = ("bn%d" % groups if groups else "bneval") + tail
        if groups and n * h * w // groups < 2:
            continue
        x = tfill("x:" + key, dims, 1, True)
        wt, b = tfill("w:" + key, (c,), 1, True), tfill("b:" + key, (c,), 1, True)
        rm, rv = tfill("rm:" + key, (c,)), 1 + tfill("rv:" + key, (c,), .5)
        rm0, rv0 = rm.clone(), rv.clone()
        if groups == 0:
            run(key, x, nhwc(F.batch_norm(nchw(x), rm, rv, wt, b, False, .1, 1e-5)), w=wt, b=b)
            continue
        parts = [nchw(part) for part in x.chunk(groups)]
        y = torch.cat([nhwc(F.batch_norm(part, rm, rv, wt, b, True, .1, 1e-5)) for part in parts])
        run(key, x, y, w=wt, b=b)
        g.put(key + ":mean", rm)
        g.put(key + ":var", rv)
        if groups > 1:
            means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
            vars_ = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
            g.put(key + ":mean_avg", .9 * rm0 + .1 * means)
            g.put(key + ":var_avg", .9 * rv0 + .1 * vars_)


# ---------------------------------------------------------------------------- optimisers, schedules
OPTIM = """
golden_optim.txt: optimisers and schedules.

Two parameters: weight [7, 5] = fill("p:weight", 35), bias [5] = fill("p:bias", 5). Step t = 1..5
has gradients fill("g:weight:t", 35) and fill("g:bias:t", 5) and learning rate lr / t, so that a
rate inside the momentum buffer shows. Records RULE:PARAMETER:t are digests of the parameter after
step t. Decay applies to the weight only, except where said.

  sgd          lr .1, momentum .9, decay 1e-4; g += wd p; m = .9 m + g (m = g at first); p -= lr m
  nesterov     the same with p -= lr (g + .9 m)
  sgd0         lr .1, no momentum, no decay
  adamw        lr .01, betas .9 .999, eps 1e-8, decay .05: p *= 1 - lr wd; then Adam with bias
               correction, eps added to sqrt(v / (1 - .999^t))
  adamw_all    the same with decay on the bias too
  lars         lr 2, momentum .9, decay 1e-4, eta .001. More than one dimension:
               trust = eta |p| / |g + wd p| if both norms > 0, else 1; u = trust (g + wd p).
               One dimension: u = g. m = .9 m + u; p -= lr m
  lars_tf      the same trust; the rate inside the buffer: v = .9 v + lr trust (g + wd p); p -= v
  larc         trust = eta |p| / (|g| + wd |p| + 1e-8) with the norm of the raw gradient, if both
               norms > 0, else 1; u = trust (g + wd p); then as lars. Bias: u = g
  larc_all     larc with decay and trust on the bias too
  KEY_zero     lars, lars_tf, larc with a weight that starts at zero (trust 1 at t = 1)

One step from w = (3, 4), g = (.1, .2), decay 1e-4, lr .5, eta .001, no momentum (as if w had two
dimensions): onestep:lars, onestep:lars_tf, onestep:larc, the new w.

Schedules, the rate of steps 0 .. total-1, whole:
  cosine:BASE:END:WARMUP:TOTAL   step < WARMUP: BASE (step + 1) / WARMUP; after that
               END + (BASE - END) (1 + cos(pi (step - WARMUP) / (TOTAL - 1 - WARMUP))) / 2,
               and END where the divisor is zero
  steps:BASE:GAMMA:M1:M2:TOTAL   BASE times GAMMA for each milestone M <= step
  constant:BASE:TOTAL
"""


def larslike(rule, p, g, m, lr, wd, eta, momentum, adapt):
    """One step of a LARS form on numpy arrays; returns the new p and m."""
    if not adapt:
        u = g
    else:
        d = g + wd * p
        pn, gn = np.linalg.norm(p), np.linalg.norm(g)
        if rule == "larc":
            below = gn + wd * pn + 1e-8 if gn > 0 else 0
        else:
            below = np.linalg.norm(d)
        u = d * (eta * pn / below if pn > 0 and below > 0 else 1.0)
    if rule == "lars_tf":
        m = momentum * m + lr * u
        return p - m, m
    m = momentum * m + u
    return p - lr * m, m


def make_optim():
    g = Golden("golden_optim.txt", OPTIM)
    shapes = {"weight": (7, 5), "bias": (5,)}

    def start(name, zero=False):
        return tfill("p:" + name, shapes[name], 0 if zero and name == "weight" else 1)

    def grad(name, t):
        return tfill("g:%s:%d" % (name, t), shapes[name])

    def with_torch(key, lr, make, decay_bias=False, wd=0.0):
        ps = {name: nn.Parameter(start(name)) for name in shapes}
        opt = make([{"params": [ps["weight"]], "weight_decay": wd},
                    {"params": [ps["bias"]], "weight_decay": wd if decay_bias else 0.0}])
        for t in range(1, 6):
            for group in opt.param_groups:
                group["lr"] = lr / t
            for name, p in ps.items():
                p.grad = grad(name, t)
            opt.step()
            for name, p in ps.items():
                g.digest("%s:%s:%d" % (key, name, t), p)

    sgd = torch.optim.SGD
    adamw = torch.optim.AdamW
    with_torch("sgd", .1, lambda ps: sgd(ps, lr=.1, momentum=.9), wd=1e-4)
    with_torch("nesterov", .1, lambda ps: sgd(ps, lr=.1, momentum=.9, nesterov=True), wd=1e-4)
    with_torch("sgd0", .1, lambda ps: sgd(ps, lr=.1))
    with_torch("adamw", .01, lambda ps: adamw(ps, lr=.01, betas=(.9, .999), eps=1e-8), wd=.05)
    with_torch("adamw_all", .01, lambda ps: adamw(ps, lr=.01), True, .05)
    for key in ("lars", "lars_tf", "larc", "larc_all", "lars_zero", "lars_tf_zero", "larc_zero"):
        rule = key.replace("_zero", "").replace("_all", "")
        for name in shapes:
            p, m = start(name, key.endswith("_zero")).numpy(), 0.0
            for t in range(1, 6):
                adapt = p.ndim > 1 or key.endswith("_all")
                p, m = larslike(rule, p, grad(name, t).numpy(), m, 2.0 / t, 1e-4, 1e-3, .9, adapt)
                g.digest("%s:%s:%d" % (key, name, t), p)
    want = {"lars": (2.9988810736, 3.9977643784), "lars_tf": (2.9988810736, 3.9977643784),
            "larc": (2.9988811139, 3.9977644588)}
    for rule, v in want.items():
        w, grads = np.array([3., 4.]), np.array([.1, .2])
        p, _ = larslike(rule, w, grads, 0.0, .5, 1e-4, 1e-3, 0.0, True)
        assert np.abs(p - v).max() < 1e-9, (rule, p)
        g.put("onestep:" + rule, p)
    for base, end, warm, total in ((.3, .003, 5, 20), (.3, 0, 0, 10), (1, .1, 3, 4), (1, .1, 0, 1),
                                   (2, 0, 10, 100)):
        rates = []
        for step in range(total):
            left = total - 1 - warm
            if step < warm:
                rates.append(base * (step + 1) / warm)
            elif left <= 0:
                rates.append(end)
            else:
                wave = math.cos(math.pi * (step - warm) / left)
                rates.append(end + (base - end) * (1 + wave) / 2)
        g.put("cosine:%g:%g:%d:%d" % (base, end, warm, total), rates)
    g.put("steps:0.5:0.1:4:7:10", [.5 * .1 ** ((s >= 4) + (s >= 7)) for s in range(10)])
    g.put("constant:0.25:3", [.25] * 3)
    return g


# ----------------------------------------------------------------------------------------- networks
NET = """
golden_net.txt: features of ResNets (global average pool, no classifier), by torchvision's names.

Weights, seeded by their full names (conv1.weight, layer1.0.bn2.bias, layer2.0.downsample.0.weight):
  two or more dimensions   fill(name, n, sqrt(6 / fan_in) * 0.5), fan_in = n / first dimension
  norm weight              1 + 0.1 * fill(name)       norm bias           0.1 * fill(name)
  running_mean             0.1 * fill(name)           running_var         1 + 0.2 * fill(name)
Input x = fill("x", n*h*w*3), NHWC. Batch norm eps 1e-5, momentum 0.1, running variance unbiased.

  resnet8, resnet20     CIFAR form: 3x3 stem, stride 1, padding 1, 16 channels, no pooling; three
                        stages of 16, 32, 64 channels, strides 1, 2, 2; basic blocks; projection
                        shortcut (1x1 conv and norm) where stride or width changes
  resnet8w              resnet8 with 6, 12, 24 channels
  resnet18s, resnet34s  torchvision with the small stem: conv1 3x3, stride 1, padding 1; no pooling
  resnet18, resnet50    torchvision itself (7x7/2, max pool 3x3/2 padding 1; in resnet50 the stride
                        sits in the 3x3)

Keys NET:N:H:W:MODE:WHAT, MODE eval or train (train: one forward from the same weights):
  stem                  output of stem and pooling, NHWC, digest
  stage1 ..             output of the stages, NHWC, digests
  features              [N, channels], digest
  NET:N:H:W:running:NAME  train only: every running mean and variance after that forward, digest
                        (resnet8, resnet8w and resnet18s only)
"""


class Basic(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False),
                                            nn.BatchNorm2d(cout))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if self.downsample is not None else x))


class CifarResNet(nn.Module):
    def __init__(self, depth, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        cin, blocks = width, (depth - 2) // 6
        for stage in range(3):
            cout, layer = width << stage, []
            for block in range(blocks):
                layer.append(Basic(cin, cout, 2 if stage and not block else 1))
                cin = cout
            setattr(self, "layer%d" % (stage + 1), nn.Sequential(*layer))
        self.stages = 3

    def stem(self, x):
        return F.relu(self.bn1(self.conv1(x)))


def build_net(name):
    if name.startswith("resnet8") or name == "resnet20":
        return CifarResNet(8 if name[6] == "8" else 20, 6 if name.endswith("w") else 16)
    import torchvision
    small = name.endswith("s")
    net = getattr(torchvision.models, name[:-1] if small else name)(weights=None)
    net.fc = nn.Identity()
    if small:
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    net.stages = 4
    net.stem = lambda x: net.maxpool(F.relu(net.bn1(net.conv1(x))))
    return net


def run_net(net, x, taps=None):
    """x NHWC -> features; taps collects the outputs on the way, NHWC."""
    v = net.stem(nchw(x))
    outs = {"stem": v}
    for s in range(net.stages):
        v = getattr(net, "layer%d" % (s + 1))(v)
        outs["stage%d" % (s + 1)] = v
    if taps is not None:
        taps.update({k: nhwc(t) for k, t in outs.items()})
    return v.mean((2, 3))


def fill_module(module, prefix=""):
    """The weight formula of the comment above."""
    with torch.no_grad():
        for name, t in list(module.named_parameters()) + list(module.named_buffers()):
            full, n = prefix + name, t.numel()
            if name.endswith("num_batches_tracked"):
                continue
            if t.dim() > 1:
                v = fill(full, n, math.sqrt(6.0 / (n // t.shape[0])) * .5)
            elif name.endswith("running_var"):
                v = 1 + fill(full, n, .2)
            elif name.endswith("weight"):
                v = 1 + fill(full, n, .1)
            else:
                v = fill(full, n, .1)
            t.copy_(torch.from_numpy(v).reshape(t.shape))
    return module


def make_net():
    g = Golden("golden_net.txt", NET)
    for name, n, h, w in (("resnet8", 4, 32, 32), ("resnet8", 3, 28, 28), ("resnet8w", 4, 15, 17),
                          ("resnet20", 4, 32, 32), ("resnet18s", 4, 32, 32),
                          ("resnet34s", 2, 16, 16), ("resnet18", 4, 64, 64),
                          ("resnet18", 2, 75, 61), ("resnet50", 4, 64, 64)):
        for mode in ("eval", "train"):
            net = fill_module(build_net(name)).train(mode == "train")
            taps, key = {}, "%s:%d:%d:%d" % (name, n, h, w)
            with torch.no_grad():
                taps["features"] = run_net(net, tfill("x", (n, h, w, 3)), taps)
            for what, t in taps.items():
                g.digest("%s:%s:%s" % (key, mode, what), t)
            if mode == "train" and name in ("resnet8", "resnet8w", "resnet18s"):
                for what, t in net.named_buffers():
                    if "running" in what:
                        g.digest("%s:running:%s" % (key, what), t)
    return g


# ------------------------------------------------------------------------------------- SimCLR steps
STEP = """
golden_step.txt: three SimCLR training steps.

  resnet8    N = 6 images of 32 x 32, head 64 -> 64 -> 32      12 rows
  resnet18s  N = 4 images of 16 x 16, head 512 -> 512 -> 128    8 rows
Networks and weights as in golden_net.txt, seeded by the full names "encoder.conv1.weight" ... and
  projector.0.weight [hidden, features]          linear without bias
  projector.1.weight .bias .running_mean .running_var   batch norm, then ReLU
  projector.3.weight [out, hidden]               linear without bias
  projector.4.weight .running_mean .running_var  batch norm with a weight and no bias
(2-D weights, norm weights, biases and running statistics by the formula of golden_net.txt.)
Step t = 1, 2, 3 takes views fill("views:t", 2N*H*W*3), NHWC, all of view 1 and then all of view 2,
train mode, batch norm statistics joint over both views; NT-Xent with T = 0.5; then one optimiser
step:
  sgd    lr .1, momentum .9, decay 1e-4
  lars   lr .3, momentum .9, decay 1e-6, eta .001 (rule "lars" of golden_optim.txt)
  adamw  lr .001, betas .9 .999, eps 1e-8, decay .01
Decay (and LARS adaptation) on parameters of more than one dimension only.

  NET:grad:NAME          gradient of step 1, digest (the same for every optimiser)
  NET:OPT:loss           the three losses
  NET:OPT:param:NAME     parameter after step 3, digest
  NET:OPT:buffer:NAME    running mean or variance after step 3, digest
  NET:OPT:features       features [2N, c] of views fill("views:1") in eval mode after step 3, digest
"""


class SimClr(nn.Module):
    def __init__(self, name, features, out):
        super().__init__()
        self.encoder = build_net(name)
        bn = nn.BatchNorm1d(out)
        bn.bias = None
        self.projector = nn.Sequential(nn.Linear(features, features, bias=False),
                                       nn.BatchNorm1d(features), nn.ReLU(),
                                       nn.Linear(features, out, bias=False), bn)

    def forward(self, x):
        return self.projector(run_net(self.encoder, x))


def make_step(nudge=0.0):
    """nudge scales the first step's views by 1 + nudge: shows how far rounding errors grow."""
    g = Golden("golden_step.txt", STEP)
    for name, n, size, features, out in (("resnet8", 6, 32, 64, 32),
                                         ("resnet18s", 4, 16, 512, 128)):
        for rule in ("sgd", "lars", "adamw"):
            net = fill_module(SimClr(name, features, out)).train()
            ps = list(net.named_parameters())
            groups = [{"params": [p for _, p in ps if p.dim() > 1], "weight_decay": 1e-4},
                      {"params": [p for _, p in ps if p.dim() < 2], "weight_decay": 0.0}]
            opt, losses, m = None, [], {k: 0.0 for k, _ in ps}
            if rule == "sgd":
                opt = torch.optim.SGD(groups, lr=.1, momentum=.9)
            elif rule == "adamw":
                groups[0]["weight_decay"] = .01
                opt = torch.optim.AdamW(groups, lr=1e-3, betas=(.9, .999), eps=1e-8)
            for t in (1, 2, 3):
                x = tfill("views:%d" % t, (2 * n, size, size, 3), 1 + nudge if t == 1 else 1)
                net.zero_grad()
                loss = ntxent(net(x), 2, .5)
                loss.backward()
                losses.append(loss.item())
                if t == 1 and rule == "sgd":
                    for k, p in ps:
                        g.digest("%s:grad:%s" % (name, k), p.grad)
                if opt:
                    opt.step()
                    continue
                for k, p in ps:
                    new, m[k] = larslike("lars", p.detach().numpy(), p.grad.numpy(), m[k], .3, 1e-6,
                                         1e-3, .9, p.dim() > 1)
                    with torch.no_grad():
                        p.copy_(torch.from_numpy(new))
            key = "%s:%s:" % (name, rule)
            g.put(key + "loss", losses)
            for k, p in ps:
                g.digest(key + "param:" + k, p)
            for k, b in net.named_buffers():
                if "running" in k:
                    g.digest(key + "buffer:" + k, b)
            net.eval()
            with torch.no_grad():
                f = run_net(net.encoder, tfill("views:1", (2 * n, size, size, 3)))
            g.digest(key + "features", f)
    return g


# ---------------------------------------------------------------- steps of methods with two networks
TEACHER = """
golden_teacher.txt: three training steps of MoCo, BYOL, SimSiam, Barlow Twins and VICReg.

Encoder: resnet8 of golden_net.txt, N = 6 images of 16 x 16. Weights by the formula of golden_net.txt
from the full names; the target (target.encoder.* target.projector.*) starts as a copy. Heads, with
the sizes features 64, hidden 24, out 16 (numbers count the layers of a Sequential):
  moco1    projector 64-16, with bias
  moco2*   projector 64-24-16, biases, ReLU, no norm
  moco3    projector 64-24-16, norms, no biases, the last norm without weights; predictor 16-20-16,
           norm within, no biases
  byol*    projector 64-24-16, predictor 16-20-16: bias and norm within, nothing at the end
  simsiam  projector 64-16-16-16, norms, the last without weights; predictor 16-20-16, norm within,
           bias at the end
  barlow   projector 64-16-16-16, norms within; vicreg the same with biases within
Step t = 1, 2, 3 takes views fill("views:t", 2N*16*16*3), NHWC, all of view 1 and then all of view 2.
Batch norm: each view by itself (moco2g: each view in two halves, running statistics in their order).
  moco1    T .07, m .99, queue of 16 keys, at first the unit rows of fill("queue.rows", 16 * 16)
  moco2g   T .2, m .9, two groups        moco2s   T .2, m .9, symmetric: sum, keys of view 1 first
  moco3    T .7, m .5 -> 1               byol     tau .9 -> 1
           (cosines over a run of 10 steps; MoCo's target moves at the beginning of a step, so the
           records below have it moved once more, as at the beginning of step 4)
  byolavg  the same with the target's running statistics averaged as well, by the same tau
  barlow   lambda .0051                  vicreg   25, 25, 1
moco1, moco2*, simsiam: SGD lr .1 .08 .05, momentum .9, decay 1e-4 on everything (simsiam's
predictor: lr .1 always); others: LARS lr .3 .2 .1, momentum .9, decay 1e-4, eta .001 on weights
(barlow: norms and biases with .024 of the rate).

  METHOD:loss            the three losses
  METHOD:param:NAME      parameter after step 3, digest; also of the target (target.NAME)
  METHOD:buffer:NAME     running mean or variance after step 3, digest
  METHOD:queue           [16, 16] after step 3, whole
"""


class SplitNorm(nn.Module):
    """Batch norm over equal runs of rows, one after the other."""

    def __init__(self, bn, groups):
        super().__init__()
        self.weight, self.bias, self.groups = bn.weight, bn.bias, groups
        self.register_buffer("running_mean", bn.running_mean)
        self.register_buffer("running_var", bn.running_var)

    def forward(self, x):
        return torch.cat([F.batch_norm(c, self.running_mean, self.running_var, self.weight, self.bias,
                                       True, .1, 1e-5) for c in x.chunk(self.groups)])


def split_norms(module, groups):
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, SplitNorm(child, groups))
        else:
            split_norms(child, groups)
    return module


def mlp(sizes, bias, norm, out_bias=False, out_norm=False):
    layers = []
    for a, b in zip(sizes[:-2], sizes[1:-1]):
        layers += [nn.Linear(a, b, bias=bias)] + ([nn.BatchNorm1d(b)] if norm else []) + [nn.ReLU()]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=out_bias))
    if out_norm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)


class Tower(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.encoder, self.predictor = build_net("resnet8"), None
        if method == "moco1":
            self.projector = mlp([64, 16], False, False, True)
        elif method.startswith("moco2"):
            self.projector = mlp([64, 24, 16], True, False, True)
        elif method == "moco3":
            self.projector = mlp([64, 24, 16], False, True, False, True)
            self.predictor = mlp([16, 20, 16], False, True)
        elif method.startswith("byol"):
            self.projector = mlp([64, 24, 16], True, True)
            self.predictor = mlp([16, 20, 16], True, True)
        elif method == "simsiam":
            self.projector = mlp([64, 16, 16, 16], False, True, False, True)
            self.predictor = mlp([16, 20, 16], False, True, True)
        else:
            self.projector = mlp([64, 16, 16, 16], method == "vicreg", True)

    def forward(self, x):
        return self.projector(run_net(self.encoder, x))


def infonce(q, k, negatives, temperature):
    q, k = unit_rows(q), unit_rows(k)
    if negatives is None:
        return F.cross_entropy(q @ k.T / temperature, torch.arange(len(q)))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def cosine(p, z):
    return (unit_rows(p) * unit_rows(z.detach())).sum(1).mean()


def rising(base, step, total=10):
    return 1 - (1 - base) * .5 * (1 + math.cos(math.pi * step / total))


class Steps:
    """One method's state and its step, in the authors' order."""

    def __init__(self, method):
        self.method = method
        groups = 2 if method == "moco2g" else 1
        self.net = split_norms(fill_module(Tower(method)), groups).train()
        self.target = split_norms(fill_module(Tower(method)), groups).train()
        self.target.predictor = None
        for q in self.target.parameters():
            q.requires_grad_(False)
        self.queue = unit_rows(tfill("queue.rows", (16, 16)))
        self.at, self.momenta = 0, {}

    def follow(self, m, buffers=False):
        own = dict(self.net.named_parameters())
        for k, q in self.target.named_parameters():
            q.data = q.data * m + own[k].data * (1 - m)
        own = dict(self.net.named_buffers())
        for k, b in self.target.named_buffers():
            if buffers and "running" in k:
                b.data = b.data * m + own[k].data * (1 - m)

    def moco_momentum(self, t):
        return {"moco1": .99, "moco3": rising(.5, t)}.get(self.method, .9)

    def push(self, keys):
        for k in keys:
            self.queue[self.at % 16] = k
            self.at += 1

    def moco(self, x1, x2, t):
        self.follow(self.moco_momentum(t))
        if self.method == "moco3":
            q1, q2 = self.net.predictor(self.net(x1)), self.net.predictor(self.net(x2))
            with torch.no_grad():
                k1, k2 = self.target(x1), self.target(x2)
            return 2 * .7 * (infonce(q1, k2, None, .7) + infonce(q2, k1, None, .7))
        temperature = .07 if self.method == "moco1" else .2
        queue = self.queue.clone()
        if self.method != "moco2s":
            with torch.no_grad():
                k2 = unit_rows(self.target(x2))
            loss = infonce(self.net(x1), k2, queue, temperature)
            self.push(k2)
            return loss
        q1, q2 = self.net(x1), self.net(x2)
        with torch.no_grad():
            k1, k2 = unit_rows(self.target(x1)), unit_rows(self.target(x2))
        self.push(torch.cat([k1, k2]))
        return infonce(q1, k2, queue, temperature) + infonce(q2, k1, queue, temperature)

    def byol(self, x1, x2):
        p1, p2 = self.net.predictor(self.net(x1)), self.net.predictor(self.net(x2))
        with torch.no_grad():
            z1, z2 = self.target(x1), self.target(x2)
        return (unit_rows(p1) - unit_rows(z2)).pow(2).sum(1).mean() + \
            (unit_rows(p2) - unit_rows(z1)).pow(2).sum(1).mean()

    def simsiam(self, x1, x2):
        z1, z2 = self.net(x1), self.net(x2)
        p1, p2 = self.net.predictor(z1), self.net.predictor(z2)
        return -.5 * cosine(p1, z2) - .5 * cosine(p2, z1)

    def barlow(self, x1, x2):
        z1, z2 = self.net(x1), self.net(x2)
        bn = nn.BatchNorm1d(16, affine=False)
        c = bn(z1).T @ bn(z2) / len(z1)
        on = (torch.diagonal(c) - 1).pow(2).sum()
        return on + .0051 * (c.pow(2).sum() - torch.diagonal(c).pow(2).sum())

    def vicreg(self, x1, x2):
        z1, z2 = self.net(x1), self.net(x2)
        loss = 25 * F.mse_loss(z1, z2)
        for z in (z1, z2):
            z = z - z.mean(0)
            std = torch.sqrt(z.var(0) + 1e-4)
            cov = z.T @ z / (len(z) - 1)
            off = cov.pow(2).sum() - torch.diagonal(cov).pow(2).sum()
            loss = loss + 25 * F.relu(1 - std).mean() / 2 + off / 16
        return loss

    def update(self, t):
        sgd = self.method[:5] in ("moco1", "moco2", "simsi")
        lr = ((.1, .08, .05) if sgd else (.3, .2, .1))[t]
        for k, q in self.net.named_parameters():
            m = self.momenta.get(k, 0.0)
            if sgd:
                m = .9 * m + q.grad.numpy() + 1e-4 * q.detach().numpy()
                rate = .1 if self.method == "simsiam" and k.startswith("predictor") else lr
                new = q.detach().numpy() - rate * m
            else:
                rate = lr * .024 if self.method == "barlow" and q.dim() < 2 else lr
                new, m = larslike("lars", q.detach().numpy(), q.grad.numpy(), m, rate, 1e-4, 1e-3,
                                  .9, q.dim() > 1)
            self.momenta[k] = m
            q.data = torch.from_numpy(new)

    def step(self, t):
        x = tfill("views:%d" % (t + 1), (12, 16, 16, 3))
        self.net.zero_grad()
        kind = self.method.rstrip("avg") if self.method == "byolavg" else self.method
        args = (x[:6], x[6:]) + ((t,) if kind.startswith("moco") else ())
        before = {k: b.clone() for k, b in self.target.named_buffers()}
        loss = getattr(self, "moco" if kind.startswith("moco") else kind)(*args)
        loss.backward()
        self.update(t)
        if kind == "byol":
            if self.method == "byolavg":
                for k, b in self.target.named_buffers():
                    b.data = before[k]
            self.follow(rising(.9, t), self.method == "byolavg")
        return loss.item()


def make_teacher():
    g = Golden("golden_teacher.txt", TEACHER)
    for method in ("moco1", "moco2g", "moco2s", "moco3", "byol", "byolavg", "simsiam", "barlow",
                   "vicreg"):
        run = Steps(method)
        g.put(method + ":loss", [run.step(t) for t in range(3)])
        parts = [("", run.net)]
        if method.startswith("moco"):
            run.follow(run.moco_momentum(3))
        if method[:4] in ("moco", "byol"):
            parts.append(("target.", run.target))
        for prefix, module in parts:
            for k, q in module.named_parameters():
                g.digest("%s:param:%s%s" % (method, prefix, k), q)
            for k, b in module.named_buffers():
                if "running" in k:
                    g.digest("%s:buffer:%s%s" % (method, prefix, k), b)
        if method[:5] in ("moco1", "moco2"):
            g.put(method + ":queue", run.queue)
    return g


# ------------------------------------------------------------------------- methods with prototypes
PROTOTYPE = """
golden_prototype.txt: three training steps of SwAV (Caron et al. 2020), as facebookresearch/swav.

Encoder: resnet8 of golden_net.txt, N = 6 images, two large crops of 16 x 16 and two small ones of
8 x 8; each size passes the encoder by itself, the projector sees all 24 rows at once. Weights by the
formula of golden_net.txt from the full names; projector 64-24-16 with biases and a norm within, then
unit rows; prototypes.weight [12, 16]. Step t = 1, 2, 3 takes fill("views:t", 2N*16*16*3) and
fill("small:t", 2N*8*8*3), NHWC, all of a view's images one after the other.

A step: rows of the prototypes to length 1; scores; codes of each large crop by Sinkhorn (epsilon
.05, 3 iterations) over its scores, and over those of its queue of 6 older embeddings if that is full;
loss = mean over the large crops of the mean over the other three of the cross entropy, T .1;
queue; optimiser. After step 3 the prototypes' rows are brought to length 1 once more.
  swav     LARC on everything: lr .3 .2 .1, momentum .9, decay 1e-4, eta .001
  swavq    the same with the queue
  swavf    SGD lr .1 .08 .05, momentum .9, decay 1e-4 on everything; prototypes frozen in steps 1, 2
  swavs    as swav without the small crops

  METHOD:loss            the three losses
  METHOD:residual        of each step: the larger of both crops' max_j |k / n sum_i codes_ij - 1|
  METHOD:active          of each step: prototypes that are the largest code of an image, over 12
  METHOD:param:NAME      parameter after step 3, digest
  METHOD:buffer:NAME     running mean or variance after step 3, digest
  swavq:queue            [2, 6, 16] after step 3, newest batch first in its own order

DeepCluster v2 (main_deepclusterv2.py): the same crops and network with 3 heads, prototypes1.weight ..
prototypes3.weight [12, 16] at unit length, 15 images of which step t has the numbers
(2 i + 3 t) mod 15, i < 6, and head h clusters (5 i + 3 h) mod 12 given: cross entropy, T .1, mean over
crops and heads; the bank [2, 15, 16], zero at first, then holds the large crops' embeddings.
  dc2                    LARC as swav; prototypes frozen: no gradient
  dc2u                   SGD as swavf; prototypes trained
  METHOD:loss :param: :buffer: as above, METHOD:bank whole
"""


class SwavTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = build_net("resnet8")
        self.projector = mlp([64, 24, 16], True, True, True)
        self.prototypes = nn.Linear(16, 12, bias=False)


def swav_update(method, net, t, momenta):
    for k, p in net.named_parameters():
        if p.grad is None:
            continue
        old, g, m = p.detach().numpy(), p.grad.numpy(), momenta.get(k, 0.0)
        if method == "swavf":
            m = .9 * m + g + 1e-4 * old
            new = old - (.1, .08, .05)[t] * m
        else:
            new, m = larslike("larc", old, g, m, (.3, .2, .1)[t], 1e-4, 1e-3, .9, True)
        momenta[k] = m
        p.data = torch.from_numpy(new)


def swav_steps(method, g):
    net, momenta, n = fill_module(SwavTower()).train(), {}, 6
    queue = torch.zeros(2, 6, 16)
    losses, residuals, actives = [], [], []

    def normalize():
        with torch.no_grad():
            w = net.prototypes.weight.data.clone()
            net.prototypes.weight.copy_(F.normalize(w, dim=1, p=2))

    for t in range(3):
        normalize()
        crops = [tfill("views:%d" % (t + 1), (2 * n, 16, 16, 3))]
        if method != "swavs":
            crops.append(tfill("small:%d" % (t + 1), (2 * n, 8, 8, 3)))
        net.zero_grad(set_to_none=True)
        z = net.projector(torch.cat([run_net(net.encoder, x) for x in crops]))
        z = F.normalize(z, dim=1, p=2)
        scores = net.prototypes(z)
        views, loss, residual, used = len(z) // n, 0, 0, set()
        for a in range(2):
            with torch.no_grad():
                out = scores[a * n:(a + 1) * n].detach()
                if not torch.all(queue[a, -1, :] == 0):
                    out = torch.cat((queue[a] @ net.prototypes.weight.t(), out))
                if method == "swavq":
                    queue[a, n:] = queue[a, :-n].clone()
                    queue[a, :n] = z[a * n:(a + 1) * n].detach()
                q = sinkhorn(out, .05, 3)
                residual = max(residual, float((q.sum(0) * 12 / len(q) - 1).abs().max()))
                q = q[-n:]
                best = q.sort(1)[0]
                assert (best[:, -1] - best[:, -2] > 1e-4).all()
                used |= set(q.argmax(1).tolist())
            part = 0
            for v in range(views):
                if v != a:
                    x = scores[v * n:(v + 1) * n] / .1
                    part = part - torch.mean(torch.sum(q * F.log_softmax(x, dim=1), dim=1))
            loss = loss + part / (views - 1)
        loss = loss / 2
        loss.backward()
        if method == "swavf" and t < 2:
            net.prototypes.weight.grad = None
        swav_update(method, net, t, momenta)
        losses.append(loss.item())
        residuals.append(residual)
        actives.append(len(used) / 12)
    normalize()
    g.put(method + ":loss", losses)
    g.put(method + ":residual", residuals)
    g.put(method + ":active", actives)
    for k, p in net.named_parameters():
        g.digest("%s:param:%s" % (method, k), p)
    for k, b in net.named_buffers():
        if "running" in k:
            g.digest("%s:buffer:%s" % (method, k), b)
    if method == "swavq":
        g.put("swavq:queue", queue)


class DeepClusterTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = build_net("resnet8")
        self.projector = mlp([64, 24, 16], True, True, True)
        for h in range(3):
            setattr(self, "prototypes%d" % (h + 1), nn.Linear(16, 12, bias=False))


def deepcluster_steps(method, g):
    net, momenta, n, losses = fill_module(DeepClusterTower()).train(), {}, 6, []
    heads = [getattr(net, "prototypes%d" % (h + 1)) for h in range(3)]
    for head in heads:
        head.weight.data = F.normalize(head.weight.data.clone(), dim=1, p=2)
    bank = torch.zeros(2, 15, 16)
    for t in range(3):
        net.zero_grad(set_to_none=True)
        x = [tfill("views:%d" % (t + 1), (2 * n, 16, 16, 3)),
             tfill("small:%d" % (t + 1), (2 * n, 8, 8, 3))]
        z = F.normalize(net.projector(torch.cat([run_net(net.encoder, c) for c in x])), dim=1, p=2)
        index = (2 * torch.arange(n) + 3 * (t + 1)) % 15
        loss = 0
        for h, head in enumerate(heads):
            target = ((5 * index + 3 * h) % 12).repeat(4)
            loss = loss + F.cross_entropy(head(z) / .1, target)
        loss = loss / 3
        loss.backward()
        if method == "dc2":
            for head in heads:
                head.weight.grad = None
        swav_update("swavf" if method == "dc2u" else "swav", net, t, momenta)
        for v in range(2):
            bank[v, index] = z[v * n:(v + 1) * n].detach()
        losses.append(loss.item())
    g.put(method + ":loss", losses)
    for k, p in net.named_parameters():
        g.digest("%s:param:%s" % (method, k), p)
    for k, b in net.named_buffers():
        if "running" in k:
            g.digest("%s:buffer:%s" % (method, k), b)
    g.put(method + ":bank", bank)


def make_prototype():
    g = Golden("golden_prototype.txt", PROTOTYPE)
    for method in ("swav", "swavq", "swavf", "swavs"):
        swav_steps(method, g)
    for method in ("dc2", "dc2u"):
        deepcluster_steps(method, g)
    return g


# --------------------------------------------------------------------- steps of methods with a bank
BANK = """
golden_bank.txt: three training steps of NPID in its three forms and of FaceNet; verification.

Encoder: resnet8 of golden_net.txt and one linear layer 64-16 with bias, N = 6 images of 16 x 16.
Weights by the formula of golden_net.txt from the full names. Step t = 1, 2, 3 takes the one view
fill("views:t", N*16*16*3), NHWC. SGD lr .02 .015 .01, momentum .9, decay 1e-4 on everything.

  nce      K = 12 negatives, Z = mean(exp(s / T)) * 20 of the first step
  infonce  K = 12 negatives, cross entropy
  softmax  cross entropy over all 20 rows
  T = .07, 20 images; image i of step t (0, 1, 2) is number (7 i + 3 t) mod 20, but the last one is
  the same as the first. Bank: at first the unit rows of fill("bank.rows", 20 * 16); momentum .5.
  Negative j of row i in step t (counted from 0): number j of Philox 4x32-10 with key (seed 1, 0) and
  counter (draw, i, t, 6 << 16), 64 bits modulo 20.

  METHOD:loss            the three losses
  METHOD:param:NAME      parameter after step 3, digest
  METHOD:buffer:NAME     running mean or variance after step 3, digest
  METHOD:bank            [20, 16] after step 3, whole
  nce:negatives          [6, 13] drawn in step 3, the true image first
  nce:z                  Z

FaceNet: the same network and views, labels 0 0 1 1 2 2, AdamW (beta .9 .999, eps 1e-8, decay .01 of
weights) lr .01 .008 .005. triplet: all triplets of unit rows, squared distances, margin .2, mean;
hard: margin .5, plain distances; semi: margin 1.
siamese: margin 1.5; row i with row number a of those of its class (without itself), then with number
b of the others, a and b drawn like the negatives above, modulo how many there are.
  METHOD:loss :param: :buffer:   as above

Verification of 61 pairs: distance_i = 2 + fill("verify", 61) - .8 same_i rounded to 1 / 16,
same_i = (5 i + i / 7) mod 2; 7 folds of consecutive pairs (sklearn's KFold without shuffling), FAR .1.
The definitions of contrastive.h by counting: AUC over all couples of a same and a different pair.
  verify:auc  verify:eer  verify:accuracy (mean, std, mean threshold)  verify:val (mean, std, FAR)
  verify:curve   far, val of each point of the curve

Re-identification: 12 queries, 40 images in the data, labels i mod 5, cameras (query) i mod 3, (data)
(i / 5) mod 3, the order of the data for query i by rising fill("reid:i", 40).
  reid           cmc 1, 5, 10, 20 and mean average precision
"""


def philox(counter, key):
    """One block of Philox 4x32-10 (Salmon et al., 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def draws(position, epoch, n, count):
    """Numbers 0..n-1 as ctr_rng_below draws them from (seed 1, stream 6, epoch, position)."""
    words = []
    for block in range((2 * count + 3) // 4):
        words += philox((block, position, epoch, 6 << 16), (1, 0))
    return [((words[2 * j] << 32) | words[2 * j + 1]) % n for j in range(count)]


class BankSteps:
    """NPID's state and its step, in the authors' order."""

    def __init__(self, form):
        self.form, self.z, self.momenta = form, -1.0, {}
        self.net = nn.Module()
        self.net.encoder, self.net.projector = build_net("resnet8"), mlp([64, 16], False, False, True)
        fill_module(self.net).train()
        self.bank = unit_rows(tfill("bank.rows", (20, 16)))

    def loss(self, v, y, t):
        if self.form == "softmax":
            return F.cross_entropy(v @ self.bank.T / .07, y)
        self.negatives = torch.tensor([[int(y[i])] + draws(i, t, 20, 12) for i in range(6)])
        out = torch.einsum("nkd,nd->nk", self.bank[self.negatives], v) / .07
        if self.form == "infonce":
            return F.cross_entropy(out, torch.zeros(6, dtype=torch.long))
        out = out.exp()
        if self.z < 0:
            self.z = out.mean().item() * 20
        p, pn = out / self.z, 1 / 20
        pos = p[:, 0] / (p[:, 0] + 12 * pn + 1e-7)
        neg = 12 * pn / (p[:, 1:] + 12 * pn + 1e-7)
        return -(pos.log().sum() + neg.log().sum()) / 6

    def step(self, t):
        y = torch.tensor([(7 * i + 3 * t) % 20 for i in range(5)] + [3 * t % 20])
        x = tfill("views:%d" % (t + 1), (6, 16, 16, 3))
        loss, v = self.backward(x, y, t)
        fresh = unit_rows(.5 * self.bank[y] + .5 * v.detach())
        for i in range(6):
            self.bank[y[i]] = fresh[i]
        for k, q in self.net.named_parameters():
            self.momenta[k] = .9 * self.momenta.get(k, 0.0) + q.grad + 1e-4 * q.data
            q.data = q.data - (.02, .015, .01)[t] * self.momenta[k]
        return loss.item()

    def backward(self, x, y, t):
        self.net.zero_grad()
        v = unit_rows(self.net.projector(run_net(self.net.encoder, x)))
        loss = self.loss(v, y, t)
        loss.backward()
        return loss, v


class FaceSteps(BankSteps):
    """FaceNet's step."""

    def __init__(self, form):
        super().__init__(form)
        heavy = [q for q in self.net.parameters() if q.dim() > 1]
        light = [q for q in self.net.parameters() if q.dim() < 2]
        self.optim = torch.optim.AdamW([{"params": heavy, "weight_decay": .01},
                                        {"params": light, "weight_decay": 0.0}], eps=1e-8)

    def loss(self, v, y, t):
        dist = (v[:, None] - v[None, :]).pow(2).sum(2)
        if self.form == "siamese":
            terms = []
            for i in range(6):
                ours = [j for j in range(6) if j != i and j // 2 == i // 2]
                theirs = [j for j in range(6) if j // 2 != i // 2]
                a = draws(i, t, len(ours), 1)[0]
                b = draws(i, t, len(theirs), 2)[1]
                terms.append(dist[i, ours[a]] / 2)
                terms.append(F.relu(1.5 - dist[i, theirs[b]].sqrt()) ** 2 / 2)
            return sum(terms) / len(terms)
        if self.form == "hard":
            dist = (dist + torch.eye(6)).sqrt() - torch.eye(6)
        margin = {"triplet": .2, "hard": .5, "semi": 1.0}[self.form]
        mining = {"triplet": 0, "hard": 1, "semi": 2}[self.form]
        chosen, _ = triplets(dist, [0, 0, 1, 1, 2, 2], mining, margin)
        assert chosen
        return sum(F.relu(dist[a, p] - dist[a, q] + margin) for a, p, q in chosen) / len(chosen)

    def step(self, t):
        loss, _ = self.backward(tfill("views:%d" % (t + 1), (6, 16, 16, 3)), None, t)
        for group in self.optim.param_groups:
            group["lr"] = (.01, .008, .005)[t]
        self.optim.step()
        return loss.item()


def verification(g):
    n, folds, asked = 61, 7, .1
    same = np.array([(5 * i + i // 7) % 2 for i in range(n)])
    d = np.round((2 + fill("verify", n) - .8 * same) * 16) / 16
    near, far = d[same == 1], d[same == 0]
    g.put("verify:auc", [((near[:, None] < far).sum() + .5 * (near[:, None] == far).sum()) /
                         (len(near) * len(far))])
    points = [(0.0, 0.0)] + [((far <= t).mean(), (near <= t).mean()) for t in np.unique(d)]
    g.put("verify:curve", points)
    for (f0, v0), (f1, v1) in zip(points, points[1:]):
        if f1 + v1 >= 1:
            g.put("verify:eer", [f0 + (f1 - f0) * (1 - f0 - v0) / (f1 + v1 - f0 - v0)])
            break
    accuracy, cuts, val, fars = [], [], [], []
    for test in np.array_split(np.arange(n), folds):
        train = np.setdiff1d(np.arange(n), test)
        u = np.unique(d[train])
        cut = [u[0]] + [(a + b) / 2 for a, b in zip(u[:-1], u[1:])] + [u[-1] + 1]
        best = cut[int(np.argmax([((d[train] < t) == same[train]).mean() for t in cut]))]
        cuts.append(best)
        accuracy.append(((d[test] < best) == same[test]).mean())
        order = np.sort(d[train][same[train] == 0])
        t = np.interp(asked * len(order), np.arange(len(order)), order)
        val.append((d[test][same[test] == 1] < t).mean())
        fars.append((d[test][same[test] == 0] < t).mean())
    g.put("verify:accuracy", [np.mean(accuracy), np.std(accuracy), np.mean(cuts)])
    g.put("verify:val", [np.mean(val), np.std(val), np.mean(fars)])
    cmc, aps = np.zeros(4), []
    for i in range(12):
        order = np.argsort(fill("reid:%d" % i, 40), kind="stable")
        order = [j for j in order if not (j % 5 == i % 5 and j // 5 % 3 == i % 3)]
        hit = np.array([j % 5 == i % 5 for j in order])
        rank = np.flatnonzero(hit) + 1
        aps.append((np.arange(1, len(rank) + 1) / rank).mean())
        cmc += [rank[0] <= r for r in (1, 5, 10, 20)]
    g.put("reid", list(cmc / 12) + [np.mean(aps)])


def make_bank():
    g = Golden("golden_bank.txt", BANK)
    verification(g)
    for form in ("nce", "infonce", "softmax", "triplet", "hard", "semi", "siamese"):
        run = (BankSteps if form in ("nce", "infonce", "softmax") else FaceSteps)(form)
        g.put(form + ":loss", [run.step(t) for t in range(3)])
        for k, q in run.net.named_parameters():
            g.digest("%s:param:%s" % (form, k), q)
        for k, b in run.net.named_buffers():
            if "running" in k:
                g.digest("%s:buffer:%s" % (form, k), b)
        if type(run) is BankSteps:
            g.put(form + ":bank", run.bank)
        if form == "nce":
            g.put("nce:negatives", run.negatives)
            g.put("nce:z", [run.z])
    return g


# --------------------------------------------------------------------------------------------- CLIP
CLIP = """
golden_clip.txt: three steps of CLIP and SigLIP in float64, and the text tower by itself.

Weights: the formula at the head of golden_net.txt by the variable's name (no prefix cut off); the
learnt scale and bias start at ln(1 / 0.07), or ln 10 and -10.
Images: fill("views:T", 6 * 16 * 16 * 3) as [6, 16, 16, 3]. Texts of step T (from 1), i = 0..5:
L = 3 + (5 i + 2 T) mod 10 tokens of 12: 38 (start), (7 i + 3 j + 5 T) mod 38 for j = 1..L-2, 39 (end),
then zeros. Labels 0 1 0 2 -1 2, for "equal" alone.
Image tower: resnet8 (width 16), a linear layer to 16 without bias, unit rows; text tower: vocabulary
40, context 12, width 16, 2 layers, 4 heads, to 16. As openai/CLIP: nn.MultiheadAttention with a causal
mask, quick GELU ("exact": GELU), the row of the largest id, ln_final, text_projection.
AdamW, rates 0.01, 0.008, 0.005, decay 0.2 on what has two dimensions or more; s <= ln 100 after it.
  KIND:loss            3 losses, KIND = clip, equal (labels are ids, shares of a target), siglip
  KIND:param:NAME  KIND:buffer:NAME   digests after step 3
  text:quick  text:exact   digests of the text tower's output for the texts of step 1, [6, 16]
"""


class TextBlock(nn.Module):
    def __init__(self, w, heads, exact):
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = nn.MultiheadAttention(w, heads), nn.LayerNorm(w), nn.LayerNorm(w)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj, self.exact = nn.Linear(w, 4 * w), nn.Linear(4 * w, w), exact

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(F.gelu(y) if self.exact else y * torch.sigmoid(1.702 * y))


class TextTower(nn.Module):
    def __init__(self, exact=False, vocab=40, context=12, w=16, layers=2, heads=4, dim=16):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, w)
        self.positional_embedding = nn.Parameter(torch.empty(context, w))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([TextBlock(w, heads, exact) for _ in range(layers)])
        self.ln_final = nn.LayerNorm(w)
        self.text_projection = nn.Parameter(torch.empty(w, dim))

    def forward(self, ids):
        x = (self.token_embedding(ids) + self.positional_embedding).permute(1, 0, 2)
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


def clip_tokens(t):
    rows = []
    for i in range(6):
        n = 3 + (5 * i + 2 * t) % 10
        row = [38] + [(7 * i + 3 * j + 5 * t) % 38 for j in range(1, n - 1)] + [39]
        rows.append(row + [0] * (12 - n))
    return torch.tensor(rows)


def clip_loss(kind, z, t, net):
    logits = net.logit_scale.exp() * z @ unit_rows(t).t()
    if kind == "siglip":
        return -F.logsigmoid((2 * torch.eye(6) - 1) * (logits + net.logit_bias)).sum() / 6
    ids = [0, 1, 0, 2, -1, 2] if kind == "equal" else list(range(6))
    y = torch.tensor([[float(i == j or (ids[i] >= 0 and ids[i] == ids[j])) for j in range(6)]
                      for i in range(6)])
    y = y / y.sum(1, keepdim=True)
    return -((y * logits.log_softmax(1)).sum() + (y * logits.t().log_softmax(1)).sum()) / 12


def clip_steps(kind, g):
    net = nn.Module()
    net.encoder, net.text = build_net("resnet8"), TextTower()
    net.projector = mlp([64, 16], False, False, False)
    fill_module(net).train()
    net.logit_scale = nn.Parameter(torch.tensor(math.log(10 if kind == "siglip" else 1 / .07)))
    if kind == "siglip":
        net.logit_bias = nn.Parameter(torch.tensor(-10.0))
    heavy = [q for q in net.parameters() if q.dim() > 1]
    light = [q for q in net.parameters() if q.dim() < 2]
    optim = torch.optim.AdamW([{"params": heavy, "weight_decay": .2},
                               {"params": light, "weight_decay": 0.0}], eps=1e-8)
    losses = []
    for t in range(1, 4):
        x = tfill("views:%d" % t, (6, 16, 16, 3))
        optim.zero_grad()
        z = unit_rows(net.projector(run_net(net.encoder, x)))
        loss = clip_loss(kind, z, net.text(clip_tokens(t)), net)
        loss.backward()
        for group in optim.param_groups:
            group["lr"] = (.01, .008, .005)[t - 1]
        optim.step()
        if kind != "siglip":
            net.logit_scale.data.clamp_(0, math.log(100))
        losses.append(loss.item())
    g.put(kind + ":loss", losses)
    for k, q in net.named_parameters():
        g.digest("%s:param:%s" % (kind, k), q)
    for k, b in net.named_buffers():
        if "running" in k:
            g.digest("%s:buffer:%s" % (kind, k), b)


def make_clip():
    g = Golden("golden_clip.txt", CLIP)
    for exact in (False, True):
        tower = fill_module(TextTower(exact), "text.")
        g.digest("text:exact" if exact else "text:quick", tower(clip_tokens(1)))
    for kind in ("clip", "equal", "siglip"):
        clip_steps(kind, g)
    return g


# ------------------------------------------------------------------------------------------- tokens
TOKEN = """
golden_token.txt: ids of byte-pair encoding as openai/CLIP's SimpleTokenizer gives them, without its
repair of encodings and HTML. Texts: the lines of token_texts.txt.
  own:I     ids of line I with token_merges.txt (merges learnt from a few sentences, our own file)
  bytes:I   without merges
  clip:I    with bpe_simple_vocab_16e6.txt, when the file lay in this folder (it is not part of the
            project); the test looks at these only where it does
"""


def token_characters():
    """The printable character of every byte, in the order of ids (GPT-2's bytes_to_unicode)."""
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in shown]
    return dict(list(zip(shown, map(chr, shown))) + [(b, chr(256 + i)) for i, b in enumerate(rest)])


def token_kind(c):
    k = unicodedata.category(c)[0]
    return "space" if c.isspace() else k if k in "LN" else "other"


def token_words(text):
    text, words, i = " ".join(text.lower().split()), [], 0
    while i < len(text):
        special = [w for w in ("<|startoftext|>", "<|endoftext|>", "'s", "'t", "'re", "'ve", "'m", "'ll",
                               "'d") if text.startswith(w, i)]
        n, kind = 1, token_kind(text[i])
        if special:
            n = len(special[0])
        elif kind != "N":
            while i + n < len(text) and token_kind(text[i + n]) == kind:
                n += 1
        if special or kind != "space":
            words.append(text[i:i + n])
        i += n
    return words


class Tokens:
    def __init__(self, merges):
        self.shown = token_characters()
        names = list(self.shown.values())
        names += [c + "</w>" for c in names] + ["".join(m) for m in merges]
        self.id = {name: i for i, name in enumerate(names)}
        self.rank = {m: i for i, m in enumerate(merges)}
        self.start = len(names)

    def word(self, text):
        parts = [self.shown[b] for b in text.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda m: self.rank.get(m, 1 << 30))
            if best not in self.rank:
                break
            parts = token_join(parts, best)
        return [self.id[x] for x in parts]

    def encode(self, text):
        ids = [self.start]
        for w in token_words(text):
            special = ("<|startoftext|>", "<|endoftext|>")
            ids += [self.start + special.index(w)] if w in special else self.word(w)
        return ids + [self.start + 1]


def token_join(parts, pair):
    out = []
    for x in parts:
        if out and out[-1] == pair[0] and x == pair[1]:
            out[-1] += x
        else:
            out.append(x)
    return out


def token_learn(texts, count):
    """The merges that the texts' words suggest: the most frequent pair, of equals the first by name."""
    t, words, merges = Tokens([]), {}, []
    for w in [w for text in texts for w in token_words(text)]:
        parts = [t.shown[b] for b in w.encode("utf-8")]
        parts[-1] += "</w>"
        words.setdefault(w, [parts, 0])[1] += 1
    while len(merges) < count:
        seen = {}
        for parts, n in words.values():
            for pair in zip(parts, parts[1:]):
                seen[pair] = seen.get(pair, 0) + n
        known = {"".join(m) for m in merges}
        pairs = [(-n, m) for m, n in seen.items() if n > 1 and "".join(m) not in known]
        if not pairs:
            break
        merges.append(min(pairs)[1])
        for w in words.values():
            w[0] = token_join(w[0], merges[-1])
    return merges


def make_token():
    folder, g = os.path.dirname(os.path.abspath(__file__)), Golden("golden_token.txt", TOKEN, "%.0f")
    texts = open(os.path.join(folder, "token_texts.txt"), encoding="utf-8").read().split("\n")[:-1]
    merges = token_learn(texts[:20], 200)
    with open(os.path.join(folder, "token_merges.txt"), "w", encoding="utf-8", newline="\n") as f:
        f.write("#version: 0.1, merges learnt by make_golden.py\n" + "".join("%s %s\n" % m for m in merges))
    sets = [("own", merges), ("bytes", [])]
    path = os.path.join(folder, "bpe_simple_vocab_16e6.txt")
    if os.path.exists(path):
        lines = open(path, encoding="utf-8").read().split("\n")[1:48895]
        sets.append(("clip", [tuple(line.split()) for line in lines]))
    for name, m in sets:
        t = Tokens(m)
        for i, text in enumerate(texts):
            g.put("%s:%d" % (name, i), t.encode(text))
    return g


# ------------------------------------------------------------------------- steps of DeepCluster v1
DEEPCLUSTER = """
golden_deepcluster.txt: three training steps of DeepCluster v1.

Encoder: resnet8 of golden_net.txt, N = 6 images of 16 x 16, and a linear classifier [12, 64]. Weights
by the formula of golden_net.txt from the full names. Step t = 1, 2, 3 takes the one view
fill("views:t", N*16*16*3), NHWC, of the images (2 i + 3 t) mod 15, i < 6; image j is in cluster
5 j mod 12. Cross entropy. Encoder: SGD lr .1 .08 .05, momentum .9; classifier: the same without
momentum; decay 1e-4 of everything.
  dc1      the encoder sees the authors' Sobel layers: mean of the channels, then two 3 x 3 kernels
  dc1c     the encoder sees the image

  METHOD:loss            the three losses
  METHOD:accuracy        of each step: share of images with their cluster's score highest
  METHOD:param:NAME      parameter after step 3, digest
  METHOD:buffer:NAME     running mean or variance after step 3, digest
"""


def deepcluster1_steps(method, g):
    sobel, n, losses, hits = method == "dc1", 6, [], []
    net = nn.Module()
    net.encoder, net.classifier = build_net("resnet8"), nn.Linear(64, 12)
    if sobel:
        net.encoder.conv1 = nn.Conv2d(2, 16, 3, 1, 1, bias=False)
        gray, slopes = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1)
        with torch.no_grad():
            gray.weight.fill_(1 / 3)
            slopes.weight[0, 0] = torch.tensor([[1., 0, -1], [2, 0, -2], [1, 0, -1]])
            slopes.weight[1, 0] = torch.tensor([[1., 2, 1], [0, 0, 0], [-1, -2, -1]])
            gray.bias.zero_()
            slopes.bias.zero_()
    fill_module(net).train()
    body = torch.optim.SGD(net.encoder.parameters(), lr=.1, momentum=.9, weight_decay=1e-4)
    top = torch.optim.SGD(net.classifier.parameters(), lr=.1, weight_decay=1e-4)
    for t in range(3):
        x = tfill("views:%d" % (t + 1), (n, 16, 16, 3))
        if sobel:
            with torch.no_grad():
                x = nhwc(slopes(gray(nchw(x))))
        target = 5 * ((2 * torch.arange(n) + 3 * (t + 1)) % 15) % 12
        scores = net.classifier(run_net(net.encoder, x))
        loss = F.cross_entropy(scores, target)
        body.zero_grad()
        top.zero_grad()
        loss.backward()
        for optim in (body, top):
            optim.param_groups[0]["lr"] = (.1, .08, .05)[t]
            optim.step()
        losses.append(loss.item())
        hits.append((scores.argmax(1) == target).double().mean().item())
    g.put(method + ":loss", losses)
    g.put(method + ":accuracy", hits)
    for k, p in net.named_parameters():
        g.digest("%s:param:%s" % (method, k), p)
    for k, b in net.named_buffers():
        if "running" in k:
            g.digest("%s:buffer:%s" % (method, k), b)


def make_deepcluster():
    g = Golden("golden_deepcluster.txt", DEEPCLUSTER)
    for method in ("dc1", "dc1c"):
        deepcluster1_steps(method, g)
    return g


# ------------------------------------------------------------------- steps of methods with a task
PRETEXT = """
golden_pretext.txt: three training steps of PIRL in its three forms and of CPC.

PIRL: the network of golden_bank.txt and two more layers, piece 64-16 and puzzle 144-16, N = 6 images
of 16 x 16. Weights by the formula of golden_net.txt from the full names. Step t = 1, 2, 3 takes
fill("views:t", N*16*16*3) and the pieces fill("pieces:t", 9*N*8*8*3), all first ones, then all second
ones, ..., NHWC; the images pass the encoder first. Images, bank, negatives (K = 12) as in
golden_bank.txt, the same ones for both terms; the images' embeddings go to the bank. T = .2, weight
of the puzzle .3. SGD lr .02 .015 .01, momentum .9, decay 1e-4 of weights alone.
  pirl     softmax, then binary cross entropy
  pirln    constant Z, of the puzzles' scores in the first step
  pirli    cross entropy

CPC: the encoder, N = 4 images of 16 x 16, 3 x 3 patches of 8 x 8 every 4 pixels, row by row; each row
of patches is normalised by itself. nn.GRU(64, 16) as context, predict1 and predict2 [64, 16]: one row
ahead and two, the mean of both. AdamW lr .01 .008 .005, beta .9 .999, eps 1e-8, decay .01 of weights.

  METHOD:loss            the three losses
  METHOD:param:NAME      parameter after step 3, digest
  METHOD:buffer:NAME     running mean or variance after step 3, digest
  METHOD:bank            [20, 16] after step 3, whole (PIRL)
  METHOD:first           what the report says after step 1: share of puzzles (of contexts, one row
                         ahead) whose own row scores highest
"""


class PirlSteps(BankSteps):
    """PIRL's step."""

    def __init__(self, form):
        super().__init__({"pirl": 1, "pirln": 0, "pirli": 2}[form])
        self.net.piece, self.net.puzzle = nn.Linear(64, 16), nn.Linear(144, 16)
        fill_module(self.net).train()

    def nce(self, x, index):
        out = torch.einsum("nkd,nd->nk", self.bank[index], unit_rows(x)) / .2
        self.hits = ((out[:, :1] > out[:, 1:]) | (index[:, 1:] == index[:, :1])).all(1)
        if self.form:
            return losses_nce([out], self.form, 1, 20)
        if self.z < 0:
            self.z = out.exp().mean().item() * 20
        p = out.exp() / self.z
        pos = p[:, 0] / (p[:, 0] + 12 / 20 + 1e-7)
        neg = 12 / 20 / (p[:, 1:] + 12 / 20 + 1e-7)
        return -(pos.log().sum() + neg.log().sum()) / 6

    def backward(self, x, y, t):
        self.net.zero_grad()
        index = torch.tensor([[int(y[i])] + draws(i, t, 20, 12) for i in range(6)])
        v = self.net.projector(run_net(self.net.encoder, x))
        h = self.net.piece(run_net(self.net.encoder, tfill("pieces:%d" % (t + 1), (54, 8, 8, 3))))
        h = torch.stack(list(h.split(6)), 1).reshape(6, 144)
        loss = .3 * self.nce(self.net.puzzle(h), index)
        self.first = self.hits.double().mean().item() if t == 0 else self.first
        loss = loss + .7 * self.nce(v, index)
        loss.backward()
        for q in self.net.parameters():      # step() decays everything
            if q.dim() < 2:
                q.grad -= 1e-4 * q.data
        return loss, unit_rows(v)


class CpcSteps:
    """CPC's step."""

    def __init__(self):
        self.net = nn.Module()
        self.net.encoder, self.net.context = split_norms(build_net("resnet8"), 3), nn.GRU(64, 16)
        self.net.predict1 = nn.Linear(16, 64, bias=False)
        self.net.predict2 = nn.Linear(16, 64, bias=False)
        fill_module(self.net).train()
        heavy = [q for q in self.net.parameters() if q.dim() > 1]
        light = [q for q in self.net.parameters() if q.dim() < 2]
        self.optim = torch.optim.AdamW([{"params": heavy, "weight_decay": .01},
                                        {"params": light, "weight_decay": 0.0}], eps=1e-8)

    def step(self, t):
        x = tfill("views:%d" % (t + 1), (4, 16, 16, 3))
        z = run_net(self.net.encoder, torch.cat([x[:, 4 * i:4 * i + 8, 4 * j:4 * j + 8]
                                                 for i in range(3) for j in range(3)]))
        context, _ = self.net.context(z.reshape(3, 12, 64))
        loss = 0
        for k, layer in ((1, self.net.predict1), (2, self.net.predict2)):
            out = layer(context[:3 - k].reshape(-1, 16)) @ z[12 * k:].T
            y = torch.arange(len(out))
            loss = loss + F.cross_entropy(out, y) / 2
            if t == 0 and k == 1:
                self.first = (out.argmax(1) == y).double().mean().item()
        self.optim.zero_grad()
        loss.backward()
        for group in self.optim.param_groups:
            group["lr"] = (.01, .008, .005)[t]
        self.optim.step()
        return loss.item()


def make_pretext():
    g = Golden("golden_pretext.txt", PRETEXT)
    for form in ("pirl", "pirln", "pirli", "cpc"):
        run = CpcSteps() if form == "cpc" else PirlSteps(form)
        g.put(form + ":loss", [run.step(t) for t in range(3)])
        g.put(form + ":first", [run.first])
        for k, q in run.net.named_parameters():
            g.digest("%s:param:%s" % (form, k), q)
        for k, b in run.net.named_buffers():
            if "running" in k:
                g.digest("%s:buffer:%s" % (form, k), b)
        if form != "cpc":
            g.put(form + ":bank", run.bank)
    return g


# --------------------------------------------------------------------------------------- evaluation
EVAL = """
golden_eval.txt: weighted k-NN and PCA.

Set: 60 training and 30 test points, d = 8, 5 classes. Class of training point i is
(7 i + i / 9) mod 5 (integer division), of test point j (3 j + j / 4) mod 5. Coordinates:
  train[i][c] = 0.6 * fill("knn.centre", 40)[class * 8 + c] + fill("knn.train", 480)[i * 8 + c]
  test[j][c]  = 0.6 * fill("knn.centre", 40)[class * 8 + c] + fill("knn.test", 240)[j * 8 + c]

Cosine of unit rows; the k nearest vote exp(s / 0.1) for their class; the largest sum wins.
  knn:K                30 predicted classes, K = 1, 5, 20, 60
  knn:K:accuracy       share of right ones, 0..1
  knn:K:votes          [30, 5] sums of votes, digest
  knn:K:self           the training points against themselves, self left out by index: 60 classes
                       (K = 60: all 59 others)

PCA of the matrix fill("pca", 240) as [40, 6], columns scaled by (6, 5, 4, 3, 2, 1), then centred:
  pca:variance         6 variances along the axes, largest first, divisor 39
  pca:axes             |components|, [6 axes, 6 columns], absolute values (signs are free)
  pca:projection       |coordinates| on the first 3 axes, [40, 3], absolute values
"""


def make_eval():
    g = Golden("golden_eval.txt", EVAL)
    ytr = np.array([(7 * i + i // 9) % 5 for i in range(60)])
    yte = np.array([(3 * j + j // 4) % 5 for j in range(30)])
    centre = fill("knn.centre", 40).reshape(5, 8)
    train = .6 * centre[ytr] + fill("knn.train", 480).reshape(60, 8)
    test = .6 * centre[yte] + fill("knn.test", 240).reshape(30, 8)

    def unit(v):
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    def votes(sim, k):
        out = np.zeros((len(sim), 5))
        for r, row in enumerate(sim):
            order = np.argsort(-row)
            assert k >= len(row) or row[order[k - 1]] - row[order[k]] > 1e-6
            for j in order[:k]:
                out[r, ytr[j]] += math.exp(row[j] / .1) if np.isfinite(row[j]) else 0
        best = np.sort(out, 1)
        assert ((best[:, -1] - best[:, -2]) / best[:, -1] > 1e-5).all()
        return out

    sim, own = unit(test) @ unit(train).T, unit(train) @ unit(train).T
    np.fill_diagonal(own, -np.inf)
    for k in (1, 5, 20, 60):
        v = votes(sim, k)
        g.put("knn:%d" % k, v.argmax(1))
        g.put("knn:%d:accuracy" % k, [(v.argmax(1) == yte).mean()])
        g.digest("knn:%d:votes" % k, v)
        g.put("knn:%d:self" % k, votes(own, min(k, 59)).argmax(1))
    x = fill("pca", 240).reshape(40, 6) * np.array([6., 5, 4, 3, 2, 1])
    x = x - x.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    g.put("pca:variance", s * s / 39)
    g.put("pca:axes", np.abs(vt))
    g.put("pca:projection", np.abs((x @ vt.T)[:, :3]))
    return g


CLUSTER = """
golden_cluster.txt: k-means, agreement of partitions, Sinkhorn codes, whitening.

kmeans: x = 0.35 * fill("kmeans.x", 400 * 6) + fill("kmeans.centre", 9 * 6)[point mod 9], [400, 6];
centroids start at the first K points.
  kmeans:K:T           400 clusters after T iterations of Lloyd's algorithm by scikit-learn
  kmeans:K:T:centroids [K, 6], digest
  kmeans:K:T:inertia   sum of squared distances
  spherical:K:T        the same for unit rows and unit centroids, by numpy
  spherical:K:T:centroids, spherical:K:T:inertia

agree: n = 600; a = floor((fill("agree.a", n) + 1) / 2 * A); b = (5 a + 3) mod B where
fill("agree.same", n) > -0.2, else floor((fill("agree.b", n) + 1) / 2 * B).
  agree:A:B            NMI (arithmetic), NMI (geometric), ARI (scikit-learn), purity, accuracy under
                       the best one-to-one match (scipy)

sinkhorn: scores = fill("sinkhorn.N.K", N * K), [N, K]
  sinkhorn:N:K:E:T     codes [N, K] after T iterations at epsilon E, digest
  sinkhorn:N:K:E:T:residual  max over prototypes of |sum of its codes * K / N - 1|

whiten: x = fill("whiten.x", 150 * 9) [150, 9] times fill("whiten.mix", 81) [9, 9] + 0.5, centred;
axes by falling variance (divisor 149), each with its entry of largest size positive;
coordinates times (variance + eps)^power, then rows of length 1.
  whiten:K:POWER:EPS   [150, K], digest
"""


def kmeans_numpy(x, c, iterations):
    for _ in range(iterations):
        a = (x @ c.T).argmax(1)
        c = np.stack([x[a == j].sum(0) for j in range(len(c))])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    score = np.sort(x @ c.T, 1)
    assert (score[:, -1] - score[:, -2] > 1e-5).all()
    return (x @ c.T).argmax(1), c


def sinkhorn(out, epsilon, iterations):
    """distributed_sinkhorn of facebookresearch/swav, for one process"""
    q = torch.exp(out / epsilon).t()
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).t()


def make_cluster():
    from scipy.optimize import linear_sum_assignment
    from sklearn import cluster, metrics
    from sklearn.metrics.cluster import contingency_matrix
    g = Golden("golden_cluster.txt", CLUSTER)
    x = .35 * fill("kmeans.x", 2400).reshape(400, 6)
    x = x + fill("kmeans.centre", 54).reshape(9, 6)[np.arange(400) % 9]
    for k, t in ((1, 4), (2, 1), (9, 3), (12, 5), (12, 100), (40, 2)):
        m = cluster.KMeans(k, init=x[:k], n_init=1, max_iter=t, tol=0, algorithm="lloyd").fit(x)
        far = ((x[:, None] - m.cluster_centers_) ** 2).sum(2)
        near = np.sort(far, 1)
        assert k == 1 or (near[:, 1] - near[:, 0] > 1e-5).all()
        assert (far.argmin(1) == m.labels_).all()
        g.put("kmeans:%d:%d" % (k, t), m.labels_)
        g.digest("kmeans:%d:%d:centroids" % (k, t), m.cluster_centers_)
        g.put("kmeans:%d:%d:inertia" % (k, t), [m.inertia_])
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    for k, t in ((2, 1), (12, 4)):
        a, c = kmeans_numpy(u, u[:k], t)
        g.put("spherical:%d:%d" % (k, t), a)
        g.digest("spherical:%d:%d:centroids" % (k, t), c)
        g.put("spherical:%d:%d:inertia" % (k, t), [((u - c[a]) ** 2).sum()])

    def classes(name, count):
        return np.floor((fill(name, 600) + 1) / 2 * count).astype(int)

    for a_count, b_count in ((7, 5), (40, 3), (3, 40), (60, 60), (1, 4), (5, 1)):
        a = classes("agree.a", a_count)
        b = np.where(fill("agree.same", 600) > -.2, (5 * a + 3) % b_count,
                     classes("agree.b", b_count))
        table = contingency_matrix(a, b)
        r, c = linear_sum_assignment(-table)
        g.put("agree:%d:%d" % (a_count, b_count), [
            metrics.normalized_mutual_info_score(a, b, average_method="arithmetic"),
            metrics.normalized_mutual_info_score(a, b, average_method="geometric"),
            metrics.adjusted_rand_score(a, b), table.max(1).sum() / 600, table[r, c].sum() / 600])

    for n, k, eps, t in ((24, 10, .05, 3), (37, 11, .01, 3), (16, 50, .05, 1), (64, 7, .25, 20)):
        q = sinkhorn(tfill("sinkhorn.%d.%d" % (n, k), (n, k)), eps, t)
        key = "sinkhorn:%d:%d:%g:%d" % (n, k, eps, t)
        g.digest(key, q)
        g.put(key + ":residual", [float((q.sum(0) * k / n - 1).abs().max())])

    x = fill("whiten.x", 1350).reshape(150, 9) @ fill("whiten.mix", 81).reshape(9, 9) + .5
    x = x - x.mean(0)
    value, axes = np.linalg.eigh(x.T @ x / 149)
    value, axes = value[::-1], axes[:, ::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(9)])
    for k, power, eps in ((9, -.5, 0), (4, -.5, 0), (4, -.25, .1), (3, 0, 0)):
        y = (x @ axes[:, :k]) * (value[:k] + eps) ** power
        g.digest("whiten:%d:%g:%g" % (k, power, eps), y / np.linalg.norm(y, axis=1, keepdims=True))
    return g


# ----------------------------------------------------------------------- transfer: labels, few shots
TRANSFER = """
golden_transfer.txt: three supervised training steps, and few-shot episodes.

resnet8 of golden_net.txt seeded by "encoder.conv1.weight" ..., a linear layer of 5 classes seeded
by "fc.weight" [5, 64] and "fc.bias" (weights as in golden_net.txt). SGD with Nesterov momentum 0.9,
decay 1e-4 on weights, rates 0.05, 0.04, 0.03 in steps t = 1 .. 3. One view of six images:
views:t [6, 16, 16, 3], labels (2 i + t) mod 5.
  plain    cross entropy with the labels; image 3 has none
  smooth   label smoothing 0.1, the linear layer's rate 10 times the encoder's
  soft     targets: rows of softmax(2 fill("target:t")) [6, 5], the last row zero: left out
  frozen   the encoder in evaluation mode and unchanged
  KIND:loss               losses of the three steps
  KIND:param:NAME  KIND:buffer:NAME   digests after them

Few shots: 90 points [90, 7] = fill("shot.x") + 0.4 fill("shot.c") [6, 7] of the class; classes
i * i mod 6 of which 0, 1, 3, 4 occur; points 7 and 20 have no label. Draws from Philox as
ctr_fewshot_measure says.
  fewshot:KIND:WAYS:SHOTS:QUERIES:EPISODES:SEED   accuracy, std, interval
"""


def supervised_steps(g, kind):
    net = nn.Module()
    net.encoder, net.fc = build_net("resnet8"), nn.Linear(64, 5)
    fill_module(net).train(kind != "frozen")
    parts, scale = [], 10 if kind == "smooth" else 1
    for part, rate in ((net.encoder, 1), (net.fc, scale)):
        for heavy in (True, False):
            parts.append({"params": [q for q in part.parameters() if (q.dim() > 1) == heavy],
                          "weight_decay": 1e-4 if heavy else 0.0, "rate": rate})
    if kind == "frozen":
        parts = parts[2:]
    optim = torch.optim.SGD(parts, lr=1, momentum=.9, nesterov=True)
    losses = []
    for t in (1, 2, 3):
        y = torch.tensor([(2 * i + t) % 5 for i in range(6)])
        with torch.set_grad_enabled(kind != "frozen"):
            h = run_net(net.encoder, tfill("views:%d" % t, (6, 16, 16, 3)))
        out = net.fc(h)
        if kind == "soft":
            target = torch.softmax(2 * tfill("target:%d" % t, (6, 5)), 1)[:5]
            loss = F.cross_entropy(out[:5], target)
        else:
            if kind == "plain":
                y[3] = -100
            loss = F.cross_entropy(out, y, label_smoothing=.1 if kind == "smooth" else 0.0)
        optim.zero_grad()
        loss.backward()
        for group in optim.param_groups:
            group["lr"] = (.05, .04, .03)[t - 1] * group["rate"]
        optim.step()
        losses.append(loss.item())
    g.put(kind + ":loss", losses)
    for k, q in net.named_parameters():
        g.digest("%s:param:%s" % (kind, k), q)
    for k, b in net.named_buffers():
        if "running" in k:
            g.digest("%s:buffer:%s" % (kind, k), b)


class Draws:
    """ctr_rng_below of one (seed, stream, epoch 0, position, view)."""

    def __init__(self, seed, stream, position, view):
        self.key = (seed & 0xFFFFFFFF, seed >> 32)
        self.at, self.words = [0, position, 0, stream << 16 | view], []

    def below(self, n):
        if not self.words:
            self.words = philox(self.at, self.key)
            self.at[0] += 1
        high, low = self.words[:2]
        self.words = self.words[2:]
        return (high << 32 | low) % n

    def some(self, n, k):
        out = []
        for j in range(n - k, n):
            t = self.below(j + 1)
            out.append(j if t in out else t)
        for i in range(k - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def few_shots(x, y, kind, ways, shots, queries, episodes, seed):
    groups = [np.flatnonzero(y == c) for c in range(6)]
    groups = [p for p in groups if len(p) >= shots + queries]
    if kind == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = []
    for e in range(episodes):
        rng, centroids, asked = Draws(seed, 8, e, 1), [], []
        chosen = rng.some(len(groups), ways)
        for c in chosen:
            rows = x[groups[c][rng.some(len(groups[c]), shots + queries)]]
            mean = rows[:shots].mean(0)
            centroids.append(mean / np.linalg.norm(mean) if kind == "cosine" else mean)
            asked.append(rows[shots:])
        distance = ((np.stack(asked)[:, :, None] - np.stack(centroids)) ** 2).sum(3)
        shares.append((distance.argmin(2) == np.arange(ways)[:, None]).mean())
    return [np.mean(shares), np.std(shares, ddof=1),
            1.96 * np.std(shares, ddof=1) / math.sqrt(episodes)]


def make_transfer():
    g = Golden("golden_transfer.txt", TRANSFER)
    for kind in ("plain", "smooth", "soft", "frozen"):
        supervised_steps(g, kind)
    y = np.array([-1 if i in (7, 20) else i * i % 6 for i in range(90)])
    x = np.stack([fill("shot.x", 630).reshape(90, 7)[i] +
                  .4 * fill("shot.c", 42).reshape(6, 7)[max(y[i], 0)] for i in range(90)])
    for case in (("centroid", 3, 1, 5, 40, 1), ("cosine", 3, 1, 5, 40, 1),
                 ("centroid", 2, 5, 8, 100, 7), ("cosine", 4, 3, 2, 33, 12345678901)):
        key = "fewshot:%s:%d:%d:%d:%d:%d" % case
        seed = case[5]
        g.put(key, few_shots(x, y, case[0], *case[1:5], seed))
    return g


def main(argv):
    folder, names = os.path.dirname(os.path.abspath(__file__)), []
    while argv:
        a = argv.pop(0)
        if a == "--out":
            folder = argv.pop(0)
        else:
            names.append(a)
    for name in names or ["loss", "losses", "aug", "policy", "ops", "optim", "net", "step", "teacher",
                          "prototype", "bank", "deepcluster", "pretext", "clip", "token", "transfer",
                          "eval", "cluster"]:
        globals()["make_" + name]().write(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
