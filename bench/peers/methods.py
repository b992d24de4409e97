"""Every method in PyTorch with the options of our examples, to be judged beside them.

    python methods.py --method simclr --data DIR --out DIR [--epochs 3] [--batch 128] [--seed 1]
                      [--arch resnet8] [--lr X] [--temperature X] [--curve] [--form infonce ...]
    python methods.py --check        the views against torchvision's own, one image at a time

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg of 32 x 32 pixels. What examples/NAME.c says about
sizes, views, optimiser, rate and schedule holds here; losses and heads are lightly's where it has
them (pip install lightly), the rest is written from the papers. Weights start as PyTorch users start
them, so nothing but the options is shared with our programs.

A method's own options are those of its class's `defaults`, called as our examples call them.

The script judges nothing: it writes features of the clean images, before and after training (with
--curve after every epoch), as numbers that bench/judge.c reads with our own k-NN and probe:

    DIR/train_labels.npy test_labels.npy                      [n] int32
    DIR/train_0.npy test_0.npy ... train_E.npy test_E.npy     [n, features] float32, E: the last epoch

Last line: peer name=methods variant=METHOD threads=... epochs=... loss=... seconds=...
"""
import argparse
import copy
import math
import os
import time

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms import _functional_tensor as tensor_ops
from lightly import loss as losses

from common import emit
from simclr_step import cifar_resnet


# ---- images and views ---------------------------------------------------------------------------

def read_images(folder):
    """uint8 [n, 3, 32, 32] and int32 [n], by class and then by name."""
    from PIL import Image
    images, labels = [], []
    for c, name in enumerate(sorted(os.listdir(folder))):
        for file in sorted(os.listdir(os.path.join(folder, name))):
            images.append(numpy.asarray(Image.open(os.path.join(folder, name, file)).convert("RGB")))
            labels.append(c)
    return (torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous(),
            numpy.array(labels, dtype=numpy.int32))


class View:
    """What makes a view. A crop's area is a share of the image's; _p are probabilities."""

    def __init__(self, size=32, crop=(0.08, 1), ratio=(3 / 4, 4 / 3), cubic=True, flip=0.5, jitter=0.8,
                 strength=(0.4, 0.4, 0.4, 0.1), gray=0.2, solarize=0.0):
        self.size, self.crop, self.ratio, self.cubic, self.flip = size, crop, ratio, cubic, flip
        self.jitter, self.strength, self.gray, self.solarize = jitter, strength, gray, solarize


def boxes(n, side, view):
    """top, left, height, width [n] as RandomResizedCrop draws them: of ten tries the first that
    fits, else the whole image."""
    area = side * side * torch.empty(n, 10).uniform_(*view.crop)
    ratio = torch.exp(torch.empty(n, 10).uniform_(math.log(view.ratio[0]), math.log(view.ratio[1])))
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w >= 1) & (h >= 1) & (w <= side) & (h <= side)
    first = fits.float().argmax(1, keepdim=True)
    any_fits = fits.any(1)
    w = torch.where(any_fits, w.gather(1, first)[:, 0], torch.tensor(float(side)))
    h = torch.where(any_fits, h.gather(1, first)[:, 0], torch.tensor(float(side)))
    top, left = (torch.rand(n) * (side - h + 1)).floor(), (torch.rand(n) * (side - w + 1)).floor()
    return top, left, h, w


def resize_weights(start, length, side, size, cubic):
    """[n, size, side]: what each pixel of the result takes from each of the image's; the antialiased
    kernels of Pillow and torchvision (Keys' cubic with a = -0.5), cut off at the box."""
    scale = (length / size)[:, None, None]
    center = (torch.arange(size) + 0.5)[None, :, None] * scale
    j = torch.arange(side)[None, None, :] - start[:, None, None]
    t = ((j + 0.5 - center) / scale.clamp(min=1)).abs()
    if cubic:
        k = torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2)
        k = k * (t < 2)
    else:
        k = (1 - t).clamp(min=0)
    k = k * ((j >= 0) & (j < length[:, None, None]))
    return k / k.sum(2, keepdim=True)


def resized_crop(x, box, size, cubic):
    top, left, h, w = box
    rows = resize_weights(top, h, x.shape[2], size, cubic)
    columns = resize_weights(left, w, x.shape[3], size, cubic)
    y = torch.einsum("nij,ncjk->ncik", rows, x)
    return torch.einsum("nlk,ncik->ncil", columns, y).clamp(0, 1)


def luma(x):
    return (0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]


def jitter(x, factor, op):
    """Operation 0 brightness, 1 contrast, 2 saturation, 3 hue, with a factor for each image."""
    f = factor[:, None, None, None]
    if op == 0:
        return (f * x).clamp(0, 1)
    if op == 1:
        return (f * x + (1 - f) * luma(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    if op == 2:
        return (f * x + (1 - f) * luma(x)).clamp(0, 1)
    h, s, v = tensor_ops._rgb2hsv(x).unbind(1)
    return tensor_ops._hsv2rgb(torch.stack([(h + f[:, 0]) % 1.0, s, v], 1))


def colours(x, view):
    """Flip, jitter in random order, gray, solarize, each image by itself."""
    n = len(x)
    flip = torch.rand(n) < view.flip
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    on = torch.rand(n) < view.jitter
    order = torch.rand(n, 4).argsort(1)
    factor = [torch.empty(n).uniform_(1 - s, 1 + s) for s in view.strength[:3]]
    factor.append(torch.empty(n).uniform_(-view.strength[3], view.strength[3]))
    for turn in range(4):
        for op in range(4):
            which = (on & (order[:, turn] == op)).nonzero()[:, 0]
            if view.strength[op] > 0 and len(which):
                x[which] = jitter(x[which], factor[op][which], op)
    gray = torch.rand(n) < view.gray
    x = torch.where(gray[:, None, None, None], luma(x).expand(-1, 3, -1, -1), x)
    if view.solarize:
        solar = torch.rand(n) < view.solarize
        x = torch.where(solar[:, None, None, None] & (x >= 0.5), 1 - x, x)
    return x


def make_view(pixels, view):
    """pixels uint8 [n, 3, side, side] -> [n, 3, size, size] of 0..1; no mean, no deviation."""
    x = pixels.float() / 255
    x = resized_crop(x, boxes(len(x), x.shape[3], view), view.size, view.cubic)
    return colours(x, view).contiguous(memory_format=torch.channels_last)


# ---- networks -----------------------------------------------------------------------------------

def encoder(arch):
    """resnet8-w16 and the like, convolutions as torchvision starts them: He et al., 2015, fan out."""
    depth, _, width = arch[6:].partition("-w")
    net, features = cifar_resnet(int(depth), int(width or 16))
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net.to(memory_format=torch.channels_last), features    # the faster layout here


class MLP(nn.Sequential):
    """(linear, norm, ReLU) x (layers - 1), linear, norm. out_norm: none, full, gamma or bare."""

    def __init__(self, layers, dim_in, hidden, out, hidden_bias=False, hidden_norm=True,
                 out_bias=False, out_norm="none"):
        parts = []
        for i in range(layers - 1):
            parts.append(nn.Linear(hidden if i else dim_in, hidden, bias=hidden_bias))
            parts += [nn.BatchNorm1d(hidden)] if hidden_norm else []
            parts.append(nn.ReLU())
        parts.append(nn.Linear(hidden if layers > 1 else dim_in, out, bias=out_bias))
        if out_norm != "none":
            parts.append(nn.BatchNorm1d(out, affine=out_norm != "bare"))
        super().__init__(*parts)
        if out_norm == "gamma":
            parts[-1].bias.requires_grad_(False)


def groups_of(parameters, decay, decay_all, rate=1.0):
    """Weights decay, norms and biases only if decay_all; rate: times the schedule's."""
    weights = [p for p in parameters if p.requires_grad and (decay_all or p.ndim > 1)]
    others = [p for p in parameters if p.requires_grad and not decay_all and p.ndim <= 1]
    return [{"params": weights, "weight_decay": decay, "rate": rate},
            {"params": others, "weight_decay": 0.0, "rate": rate}]


def sgd(modules, decay=1e-4, decay_all=False):
    parameters = [p for m in modules for p in m.parameters()]
    return torch.optim.SGD(groups_of(parameters, decay, decay_all), lr=0.1, momentum=0.9)


# ---- methods ------------------------------------------------------------------------------------
# Each has: views (one View for every view of an image), modules (what is saved and trained),
# optimiser, loss(x, index, labels) with x a list of views, and after(step, steps) for what moves
# with the optimiser. `o` holds the options.

class Method:
    per_class = 0

    def __init__(self, o):
        self.o = o
        self.encoder, self.features = encoder(o.arch)

    def before_epoch(self, epoch, images):
        pass

    def after(self, step, steps):
        pass

    def represent(self, x):
        return self.encoder(x)


class SimCLR(Method):
    """Chen et al., 2020: NT-Xent of all views of the batch; batch norm over both views together."""
    defaults = dict(lr=0.3, temperature=0.2)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.5, 1))] * 2
        self.projector = MLP(2, self.features, 256, 128, out_norm="gamma")
        self.optimiser = sgd([self.encoder, self.projector])
        self.nt_xent = losses.NTXentLoss(temperature=o.temperature)

    def loss(self, x, index, labels):
        return self.nt_xent(*self.projector(self.encoder(torch.cat(x))).chunk(2))


class SupCon(SimCLR):
    """Khosla et al., 2020, L_out: every image of the class is a positive."""

    def loss(self, x, index, labels):
        z = F.normalize(self.projector(self.encoder(torch.cat(x))), dim=1)
        labels = labels.repeat(2)
        scores = (z @ z.t() / self.o.temperature).fill_diagonal_(-1e30)
        same = (labels[:, None] == labels[None, :]).float().fill_diagonal_(0)
        return -((scores.log_softmax(1) * same).sum(1) / same.sum(1)).mean()


def in_groups(net, x, groups):
    """Batch norm that sees as many equal runs of the batch one by one, as on so many GPUs."""
    return torch.cat([net(part) for part in x.chunk(groups)])


class Twins(Method):
    """A trained network and perhaps a target that follows it. Batch norm sees one view at a time."""

    def target_of(self, *modules):
        self.online = nn.ModuleList(modules)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def follow(self, momentum):
        with torch.no_grad():
            for t, w in zip(self.target.parameters(), self.online.parameters()):
                t.mul_(momentum).add_(w, alpha=1 - momentum)

    def project(self, x):
        return self.projector(self.encoder(x))

    def target_project(self, x):
        with torch.no_grad():
            return self.target[1](self.target[0](x))


def rising(base, step, steps):
    return 1 - (1 - base) * (math.cos(math.pi * step / steps) + 1) / 2


class MoCo2(Twins):
    """He et al., 2020; Chen, Fan, Girshick, He, 2020: a queue, batch norm in groups, shuffled keys."""
    defaults = dict(lr=0.12, temperature=0.2, momentum=0.99, queue=2048, groups=4)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False)] * 2
        self.projector = MLP(2, self.features, self.features, 128, hidden_bias=True,
                             hidden_norm=False, out_bias=True)
        self.target_of(self.encoder, self.projector)
        self.optimiser = sgd([self.encoder, self.projector])
        self.info_nce = losses.NTXentLoss(temperature=o.temperature, memory_bank_size=(o.queue, 128))

    def loss(self, x, index, labels):
        q = in_groups(self.project, x[0], self.o.groups)
        order = torch.randperm(len(x[1]))
        k = in_groups(self.target_project, x[1][order], self.o.groups)
        return self.info_nce(q, k[order.argsort()])

    def after(self, step, steps):
        self.follow(self.o.momentum)


class MoCo3(Twins):
    """Chen, Xie, He, 2021: a predictor, both directions, the batch's other keys, times 2 T."""
    defaults = dict(lr=0.12, temperature=0.2, momentum=0.99)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), strength=(0.4, 0.4, 0.2, 0.1), solarize=s)
                      for s in (0, 0.2)]
        self.projector = MLP(2, self.features, 256, 128, out_norm="bare")
        self.predictor = MLP(2, 128, 256, 128)
        self.target_of(self.encoder, self.projector)
        self.optimiser = sgd([self.encoder, self.projector, self.predictor])

    def half(self, q, k):
        scores = F.normalize(q, dim=1) @ F.normalize(k, dim=1).t() / self.o.temperature
        return 2 * self.o.temperature * F.cross_entropy(scores, torch.arange(len(q)))

    def loss(self, x, index, labels):
        q = [self.predictor(self.project(v)) for v in x]
        k = [self.target_project(v) for v in x]
        return self.half(q[0], k[1]) + self.half(q[1], k[0])

    def after(self, step, steps):
        self.follow(rising(self.o.momentum, step + 1, steps))


class BYOL(Twins):
    """Grill et al., 2020."""
    defaults = dict(lr=0.12, momentum=0.97)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), strength=(0.4, 0.4, 0.2, 0.1), solarize=s)
                      for s in (0, 0.2)]
        self.projector = MLP(2, self.features, 256, 64, hidden_bias=True)
        self.predictor = MLP(2, 64, 256, 64, hidden_bias=True)
        self.target_of(self.encoder, self.projector)
        self.optimiser = sgd([self.encoder, self.projector, self.predictor])
        self.cosine = losses.NegativeCosineSimilarity()

    def loss(self, x, index, labels):
        p = [self.predictor(self.project(v)) for v in x]
        z = [self.target_project(v) for v in x]
        return 4 + 2 * self.cosine(p[0], z[1]) + 2 * self.cosine(p[1], z[0])

    def after(self, step, steps):
        self.follow(rising(self.o.momentum, step, steps))


class SimSiam(Twins):
    """Chen and He, 2021; the predictor's rate does not fall."""
    defaults = dict(lr=0.06, batch=32)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False)] * 2
        self.projector = MLP(2, self.features, 256, 256, out_norm="bare")
        self.predictor = MLP(2, 256, 64, 256, out_bias=True)
        self.optimiser = sgd([self.encoder, self.projector], decay_all=True)
        for group in sgd([self.predictor], decay_all=True).param_groups:
            if group["params"]:
                self.optimiser.add_param_group(dict(group, fixed=True))
        self.cosine = losses.NegativeCosineSimilarity()

    def loss(self, x, index, labels):
        z = [self.project(v) for v in x]
        p = [self.predictor(v) for v in z]
        return 0.5 * (self.cosine(p[0], z[1].detach()) + self.cosine(p[1], z[0].detach()))


class BarlowTwins(Twins):
    """Zbontar et al., 2021."""
    defaults = dict(lr=0.02)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), strength=(0.4, 0.4, 0.2, 0.1), solarize=s)
                      for s in (0, 0.2)]
        self.projector = MLP(3, self.features, 256, 256)
        self.optimiser = sgd([self.encoder, self.projector])
        self.criterion = losses.BarlowTwinsLoss(lambda_param=0.0051)

    def loss(self, x, index, labels):
        return self.criterion(self.project(x[0]), self.project(x[1]))


class VICReg(Twins):
    """Bardes et al., 2022."""
    defaults = dict(lr=0.06)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), strength=(0.4, 0.4, 0.2, 0.1), solarize=0.1)] * 2
        self.projector = MLP(3, self.features, 256, 256, hidden_bias=True)
        self.optimiser = sgd([self.encoder, self.projector])
        self.criterion = losses.VICRegLoss()

    def loss(self, x, index, labels):
        return self.criterion(self.project(x[0]), self.project(x[1]))


class Bank:
    """The newest unit embedding of every image, mixed with the one before (Wu et al., 2018)."""

    def __init__(self, images, dim, momentum):
        self.rows = F.normalize(torch.rand(images, dim) * 2 - 1, dim=1)
        self.momentum = momentum

    def scores(self, z, rows):
        return torch.einsum("nd,nkd->nk", F.normalize(z, dim=1), self.rows[rows])

    def draw(self, index, negatives):
        """[n, 1 + K]: the image itself, and others with replacement."""
        return torch.cat([index[:, None], torch.randint(len(self.rows), (len(index), negatives))], 1)

    def put(self):
        index, z = self.wait
        self.rows[index] = F.normalize(self.momentum * self.rows[index] + (1 - self.momentum) * z,
                                       dim=1)

    def keep(self, index, z):
        self.wait = index, F.normalize(z.detach(), dim=1)


class NPID(Method):
    """Wu et al., 2018: NCE with Z estimated from the first batch; forms infonce, softmax: cross
    entropy over the rows drawn, or over all."""
    defaults = dict(lr=0.06, batch=32, temperature=0.4, negatives=1024, form="nce")

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False, jitter=1, strength=(0.4, 0.4, 0.4, 0.4))]
        self.projector = nn.Linear(self.features, 128)
        self.optimiser = sgd([self.encoder, self.projector], decay_all=True)
        self.bank = Bank(o.images, 128, 0.5)
        self.z = None

    def nce(self, scores):
        k, n = scores.shape[1] - 1, len(self.bank.rows)
        e = torch.exp(scores / self.o.temperature)
        if self.z is None:
            self.z = float(e.detach().mean()) * n
        p = e / self.z
        positive = p[:, :1] / (p[:, :1] + k / n + 1e-7)
        negative = (k / n) / (p[:, 1:] + k / n + 1e-7)
        return -(positive.log().sum() + negative.log().sum()) / len(scores)

    def loss(self, x, index, labels):
        z = self.projector(self.encoder(x[0]))
        self.bank.keep(index, z)
        if self.o.form == "softmax":
            return F.cross_entropy(F.normalize(z, dim=1) @ self.bank.rows.t() / self.o.temperature,
                                   index)
        scores = self.bank.scores(z, self.bank.draw(index, self.o.negatives))
        if self.o.form == "nce":
            return self.nce(scores)
        return F.cross_entropy(scores / self.o.temperature, torch.zeros_like(index))

    def after(self, step, steps):
        self.bank.put()


def puzzle(pixels, view, grid, size):
    """The pieces of a jigsaw puzzle of one crop each, in random order: [grid * grid, n, 3, size,
    size]. A piece is a window of 64/85 of its cell, at a random place in it, with its own colours."""
    n, side = len(pixels), pixels.shape[3]
    x = pixels.float() / 255
    top, left, h, w = (b.long() for b in boxes(n, side, view))
    order = torch.rand(n, grid * grid).argsort(1)
    pieces = []
    for i in range(grid * grid):
        box = []
        for start, length, cell in ((top, h, order[:, i] // grid), (left, w, order[:, i] % grid)):
            first = cell * length // grid
            room = (cell + 1) * length // grid - first
            window = ((64 * room + 42) // 85).clamp(min=1)
            box.append((start + first + (torch.rand(n) * (room - window + 1)).long(), window))
        (t, ph), (l, pw) = box
        piece = resized_crop(x, (t.float(), l.float(), ph.float(), pw.float()), size, view.cubic)
        pieces.append(colours(piece, view))
    return torch.stack(pieces)


class PIRL(NPID):
    """Misra and van der Maaten, 2020: the image and its puzzle against the bank, with half the
    weight each and the same negatives."""
    defaults = dict(lr=0.06, batch=32, temperature=0.4, negatives=1024, form="pirl")

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False, jitter=1, strength=(0.4, 0.4, 0.4, 0.2)), None]
        self.piece_view = View(crop=(0.6, 1), cubic=False, jitter=1, strength=(0.4, 0.4, 0.4, 0.2))
        self.piece, self.puzzle = nn.Linear(self.features, 128), nn.Linear(9 * 128, 128)
        self.optimiser = sgd([self.encoder, self.projector, self.piece, self.puzzle])

    def own_view(self, pixels):
        return puzzle(pixels, self.piece_view, 3, 9)

    def one(self, scores):
        if self.o.form == "npid":
            return self.nce(scores)
        if self.o.form == "infonce":
            return F.cross_entropy(scores / self.o.temperature,
                                   torch.zeros(len(scores), dtype=torch.long))
        p = (scores / self.o.temperature).softmax(1)
        return -(p[:, 0].log() + torch.log(1 - p[:, 1:] + 1e-7).sum(1)).mean()

    def loss(self, x, index, labels):
        image = self.projector(self.encoder(x[0]))
        h = self.piece(self.encoder(x[1].flatten(0, 1)))
        h = self.puzzle(h.view(9, len(index), -1).transpose(0, 1).flatten(1))
        self.bank.keep(index, image)
        rows = self.bank.draw(index, self.o.negatives)
        return 0.5 * self.one(self.bank.scores(h, rows)) + \
            0.5 * self.one(self.bank.scores(image, rows))


def k_means(x, k, iterations, spherical):
    """Lloyd, 1982, from k of the points; an empty cluster takes half of the largest, as faiss does."""
    x = F.normalize(x, dim=1) if spherical else x
    c = x[torch.randperm(len(x))[:k]].clone()
    for turn in range(iterations + 1):
        a = (x @ c.t() - (0 if spherical else 0.5 * c.square().sum(1))).argmax(1)
        count = torch.bincount(a, minlength=k).float()
        if turn == iterations:
            return c, a
        c = torch.zeros_like(c).index_add_(0, a, x) / count.clamp(min=1)[:, None]
        for empty in (count == 0).nonzero()[:, 0]:
            big = int(count.argmax())
            sign = torch.ones(c.shape[1])
            sign[1::2] = -1
            c[empty], c[big] = c[big] * (1 + sign / 1024), c[big] * (1 - sign / 1024)
            count[empty] = count[big] = count[big] / 2
        c = F.normalize(c, dim=1) if spherical else c


class Crops(Method):
    """Two large crops and small ones, each size through the encoder by itself."""

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False)] * 2 + \
                     [View(size=14, crop=(0.05, 0.2), cubic=False)] * o.small
        self.projector = MLP(2, self.features, 256, 64, hidden_bias=True, out_bias=True)

    def embed(self, x):
        h = [self.encoder(torch.cat(x[:2]))]
        if len(x) > 2:
            h.append(self.encoder(torch.cat(x[2:])))
        return F.normalize(self.projector(torch.cat(h)), dim=1)


class SwAV(Crops):
    """Caron et al., 2020."""
    defaults = dict(lr=0.12, batch=32, temperature=0.1, small=4, prototypes=100, freeze=80)

    def __init__(self, o):
        super().__init__(o)
        self.prototypes = nn.Linear(64, o.prototypes, bias=False)
        self.unit()
        self.optimiser = sgd([self.encoder, self.projector, self.prototypes])
        self.swav = losses.SwaVLoss(temperature=o.temperature)
        self.step = 0

    def unit(self):
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def loss(self, x, index, labels):
        self.prototypes.weight.requires_grad_(self.step >= self.o.freeze)
        scores = self.prototypes(self.embed(x)).chunk(len(x))
        return self.swav(list(scores[:2]), list(scores[2:]))[0]

    def after(self, step, steps):
        self.unit()
        self.step = step + 1


class DeepCluster2(Crops):
    """Caron et al., 2020, appendix: clusters of a bank of embeddings, several heads."""
    defaults = dict(lr=0.12, temperature=0.1, small=4, prototypes=100, heads=3)

    def __init__(self, o):
        super().__init__(o)
        self.optimiser = sgd([self.encoder, self.projector])
        self.bank = None

    def fill(self, images):
        """With the batches' statistics; the running ones are put back."""
        state = copy.deepcopy([self.encoder.state_dict(), self.projector.state_dict()])
        self.bank = torch.empty(2, len(images), 64)
        with torch.no_grad():
            for i in range(0, len(images), self.o.batch):
                x = [make_view(images[i:i + self.o.batch], v) for v in self.views[:2]]
                z = self.embed(x).chunk(2)
                self.bank[0, i:i + self.o.batch], self.bank[1, i:i + self.o.batch] = z
        self.encoder.load_state_dict(state[0])
        self.projector.load_state_dict(state[1])

    def before_epoch(self, epoch, images):
        if self.bank is None:
            self.fill(images)
        heads = [k_means(self.bank[h % 2], self.o.prototypes, 10, True) for h in range(self.o.heads)]
        self.centroids, self.clusters = [h[0] for h in heads], [h[1] for h in heads]

    def loss(self, x, index, labels):
        z = self.embed(x)
        self.wait = index, z.detach()[:2 * len(index)].view(2, len(index), 64)
        return sum(F.cross_entropy(z @ c.t() / self.o.temperature, a[index].repeat(len(x)))
                   for c, a in zip(self.centroids, self.clusters)) / self.o.heads

    def after(self, step, steps):
        self.bank[:, self.wait[0]] = self.wait[1]


class Sobel(nn.Module):
    def __init__(self):
        super().__init__()
        across = torch.tensor([[1., 0, -1], [2, 0, -2], [1, 0, -1]])
        self.register_buffer("weight", torch.stack([across, across.t()])[:, None])

    def forward(self, x):
        return F.conv2d(x.mean(1, keepdim=True), self.weight, padding=1)


class DeepCluster1(Method):
    """Caron et al., 2018."""
    defaults = dict(lr=0.05, batch=32, prototypes=100, sobel=1)

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.2, 1), cubic=False, jitter=0, gray=0)]
        if o.sobel:
            first = self.encoder[0]
            self.encoder[0] = nn.Conv2d(2, first.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(self.encoder[0].weight, mode="fan_out", nonlinearity="relu")
            self.encoder.insert(0, Sobel())
        self.classifier = nn.Linear(self.features, o.prototypes)
        self.optimiser = sgd([self.encoder], decay=1e-5, decay_all=True)
        self.optimiser.add_param_group({"params": list(self.classifier.parameters()), "rate": 1.0,
                                        "momentum": 0.0, "weight_decay": 1e-5})
        self.fresh()

    def fresh(self):
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def before_relu(self, x):
        """What the last block's ReLU sees, pooled."""
        for part in self.encoder[:-3]:
            x = part(x)
        block = self.encoder[-3]
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return self.encoder[-2:](y + block.down(x))

    def before_epoch(self, epoch, images):
        self.encoder.eval()
        with torch.no_grad():
            x = torch.cat([self.before_relu(images[i:i + 500].float() / 255)
                           for i in range(0, len(images), 500)])
        self.encoder.train()
        x = x - x.mean(0)
        value, vector = torch.linalg.eigh(x.t() @ x / (len(x) - 1))
        keep = value > 1e-7 * value[-1]
        x = F.normalize(x @ vector[:, keep] / value[keep].sqrt(), dim=1)
        self.clusters = k_means(x, self.o.prototypes, 20, False)[1]
        self.fresh()

    def order(self, n):
        """Each cluster equally often, those of a large one at most once."""
        members = [(self.clusters == c).nonzero()[:, 0] for c in range(self.o.prototypes)]
        members = [m for m in members if len(m)]
        each = n // len(members) + 1
        drawn = [m[torch.randperm(len(m))[:each]] if len(m) > each else
                 m[torch.randint(len(m), (each,))] for m in members]
        drawn = torch.cat(drawn)
        return drawn[torch.randperm(len(drawn))[:n]]

    def loss(self, x, index, labels):
        return F.cross_entropy(self.classifier(self.encoder(x[0])), self.clusters[index])


class FaceNet(Method):
    """Schroff et al., 2015: semi-hard triplets; sees the first 6 of 10 classes. What is judged are
    the embeddings."""
    defaults = dict(lr=0.003, batch=120, margin=0.2, classes=6)
    per_class = 20

    def __init__(self, o):
        super().__init__(o)
        self.views = [View(crop=(0.77, 1), ratio=(1, 1), jitter=0, gray=0)]
        self.projector = nn.Linear(self.features, 64)
        parameters = list(self.encoder.parameters()) + list(self.projector.parameters())
        self.optimiser = torch.optim.AdamW(groups_of(parameters, 0.01, False), lr=o.lr)

    def represent(self, x):
        return F.normalize(self.projector(self.encoder(x)), dim=1)

    def loss(self, x, index, labels):
        z = self.represent(x[0])
        d = 2 - 2 * z @ z.t()                                         # squared, of unit rows
        same = labels[:, None] == labels[None, :]
        ap = same & ~torch.eye(len(z), dtype=torch.bool)
        a, p = ap.nonzero().unbind(1)
        dap, dan = d[a, p][:, None], d[a]
        semi = ~same[a] & (dan > dap) & (dan < dap + self.o.margin)
        nearest = dan.masked_fill(~semi, 1e30).min(1).values
        found = semi.any(1)
        if not found.any():
            return 0 * z.sum()
        return (dap[:, 0] - nearest + self.o.margin)[found].mean()


METHODS = {"simclr": SimCLR, "supcon": SupCon, "moco": MoCo2, "moco3": MoCo3, "byol": BYOL,
           "simsiam": SimSiam, "barlow_twins": BarlowTwins, "vicreg": VICReg, "swav": SwAV,
           "deepcluster": DeepCluster2, "deepcluster1": DeepCluster1, "npid": NPID, "pirl": PIRL,
           "facenet": FaceNet}


# ---- training -----------------------------------------------------------------------------------

def rate_at(step, base, warmup, total):
    """Linear warm-up over the first epoch, then half a cosine to 0 at the last step."""
    if step < warmup:
        return base * (step + 1) / warmup
    left = total - 1 - warmup
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / left if left > 0 else 1)))


def save_features(o, method, images, split, epoch):
    method.encoder.eval()
    with torch.no_grad():
        rows = [method.represent(images[i:i + 500].float() / 255) for i in range(0, len(images), 500)]
    method.encoder.train()
    numpy.save(os.path.join(o.out, "%s_%d.npy" % (split, epoch)), torch.cat(rows).float().numpy())


def epoch_order(method, labels, batch):
    """Batches of indices: shuffled, the incomplete one dropped; or all classes with per_class each."""
    if method.per_class:
        classes = [(labels == c).nonzero()[:, 0] for c in range(batch // method.per_class)]
        classes = [c[torch.randperm(len(c))] for c in classes]
        return [torch.cat([c[i:i + method.per_class] for c in classes])
                for i in range(0, len(classes[0]) - method.per_class + 1, method.per_class)]
    order = method.order(len(labels)) if hasattr(method, "order") else torch.randperm(len(labels))
    return [order[i:i + batch] for i in range(0, len(order) - batch + 1, batch)]


def train(o):
    torch.set_num_threads(o.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(o.seed)
    os.makedirs(o.out, exist_ok=True)
    images, labels = read_images(os.path.join(o.data, "train"))
    test, test_labels = read_images(os.path.join(o.data, "test"))
    numpy.save(os.path.join(o.out, "train_labels.npy"), labels)
    numpy.save(os.path.join(o.out, "test_labels.npy"), test_labels)
    o.images, labels = len(images), torch.from_numpy(labels).long()
    seen = o.images
    if METHODS[o.method].per_class:
        seen = int((labels < o.batch // METHODS[o.method].per_class).sum())
    o.per_epoch = seen // o.batch
    o.steps = o.epochs * o.per_epoch
    method = METHODS[o.method](o)
    save_features(o, method, images, "train", 0)
    save_features(o, method, test, "test", 0)
    step, start, used, mean = 0, time.time(), time.process_time(), 0.0
    for epoch in range(o.epochs):
        method.before_epoch(epoch, images)
        total = count = 0
        for index in epoch_order(method, labels, o.batch):
            x = [make_view(images[index], v) if v else method.own_view(images[index])
                 for v in method.views]
            rate = rate_at(step, o.lr, o.per_epoch, o.steps)
            for group in method.optimiser.param_groups:
                group["lr"] = o.lr * group["rate"] if group.get("fixed") else rate * group["rate"]
            method.optimiser.zero_grad(set_to_none=True)
            loss = method.loss(x, index, labels[index])
            loss.backward()
            method.optimiser.step()
            method.after(step, o.steps)
            total, count, step = total + float(loss.detach()), count + 1, step + 1
        mean = total / count
        print("epoch %3d  loss %.4f  %.1f s" % (epoch + 1, mean, time.time() - start), flush=True)
        if o.curve and epoch + 1 < o.epochs:
            save_features(o, method, images, "train", epoch + 1)
            save_features(o, method, test, "test", epoch + 1)
    seconds, used = time.time() - start, time.process_time() - used
    save_features(o, method, images, "train", o.epochs)
    save_features(o, method, test, "test", o.epochs)
    emit("methods", o.method, o.threads, arch=o.arch, epochs=o.epochs, batch=o.batch, lr=o.lr,
         seed=o.seed, loss="%.4f" % mean, seconds="%.1f" % seconds,
         cpu_s="%.1f" % used, torch=torch.__version__)


def check():
    """The batch's operations against torchvision's for one image."""
    import torchvision.transforms.functional as T
    torch.manual_seed(3)
    x = torch.rand(64, 3, 32, 32)
    for cubic, mode in ((False, T.InterpolationMode.BILINEAR), (True, T.InterpolationMode.BICUBIC)):
        for size in (32, 14):
            box = boxes(64, 32, View(crop=(0.05, 1)))
            ours = resized_crop(x, box, size, cubic)
            for i in range(64):
                top, left, h, w = (int(b[i]) for b in box)
                theirs = T.resized_crop(x[i], top, left, h, w, [size, size], mode, antialias=True)
                worst = float((theirs.clamp(0, 1) - ours[i]).abs().max())
                assert worst < 1e-5, ("crop", cubic, size, i, worst)
    for op, theirs in enumerate((T.adjust_brightness, T.adjust_contrast, T.adjust_saturation,
                                 T.adjust_hue)):
        f = torch.empty(64).uniform_(-0.1, 0.1) if op == 3 else torch.empty(64).uniform_(0.6, 1.4)
        ours = jitter(x, f, op)
        for i in range(64):
            worst = float((theirs(x[i], float(f[i])) - ours[i]).abs().max())
            assert worst < 1e-5, ("jitter", op, i, worst)
    print("views: crops and colours agree with torchvision's")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--method", choices=sorted(METHODS))
    p.add_argument("--data")
    p.add_argument("--out")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--batch", type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--arch", default="resnet8")
    p.add_argument("--lr", type=float)
    p.add_argument("--temperature", type=float)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--curve", action="store_true")
    p.add_argument("--check", action="store_true")
    o, own = p.parse_known_args()
    if o.check:
        return check()
    if not (o.method and o.data and o.out):
        p.error("--method, --data and --out are needed")
    defaults = dict(batch=128, temperature=0.2)
    defaults.update(METHODS[o.method].defaults)
    for name, value in defaults.items():
        if getattr(o, name, None) is None:
            setattr(o, name, value)
    while own:                                   # the method's own, as our examples call them
        name = own.pop(0)[2:]
        if name == "no-sobel" and "sobel" in defaults:
            o.sobel = 0
        elif name in defaults and own:
            setattr(o, name, type(defaults[name])(own.pop(0)))
        else:
            p.error("--%s: %s has no such option, or it lacks a value" % (name, o.method))
    train(o)


if __name__ == "__main__":
    main()
