"""InfoNCE over boxes and a queue, without the matrix of all pairs (van den Oord et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkd.boxes import iou_xyxy
from detkd.losses.connectors import full
from detkd.losses.reduce import mean_count
from detkd.losses.smoothing import exact_products

_ELEMENTS = 2**22  # pairs looked at at a time: 16 MiB of float32


class Candidates(NamedTuple):
    """What the teacher features of all processes belong to, and where one's own begin.

    boxes: (N, 4) xyxy in pixels. images: (N,) int64, a number an image. first: row of the first of one's own.
    """

    boxes: Tensor
    images: Tensor
    first: int = 0


class InfoNCE(NamedTuple):
    """loss: scalar. bound: scalar without gradient, on the mutual information of student and teacher features, in nats."""

    loss: Tensor
    bound: Tensor


def info_nce(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    candidates: Candidates,
    gamma: float = 0.07,
    iou: float = 0.5,
    elements: int = _ELEMENTS,
) -> InfoNCE:
    """Tell the teacher feature of a student's box from those of other boxes and of the past.

    Args:
        student: (R, D) projected features of this process's boxes, of any length.
        teacher: (N, D) projected features of the boxes of all processes, R of them one's own, of any length; with gradient.
        queue: (K, D) of unit length, without gradient; it may change before the backward pass.
        candidates: of the N boxes. gamma: temperature of exp(cos / gamma).
        iou: boxes of the same image that overlap a student's box by more are none of its negatives.
        elements: pairs held at a time.

    Returns:
        loss: 1/R sum_i -log( e^(cos(s_i, t_i)/gamma) / (e^(cos(s_i, t_i)/gamma) + sum over negatives j of e^(cos(s_i, t_j)/gamma)) ).
        bound: mean of log(1 + negatives of i), less the loss: a lower bound of the mutual information.
        Scalars, float32 (float64 for float64). R counts the boxes of all processes; without any both are 0. The gradient cannot be
        differentiated again.

    Source: L_ckd of G-DetKD (Yao et al., ICCV 2021). Memory grows with R + N + K, not with R (N + K): logarithms of sums are taken over
    a part of the columns at a time, and the backward pass computes the pairs with ``teacher`` anew, without TF32 in both. The mean of the queue under each row's
    softmax is kept instead of the queue itself.
    """
    with torch.autocast(student.device.type, enabled=False):
        mine, theirs = F.normalize(full(student), dim=1), F.normalize(full(teacher), dim=1)
        past = full(queue.detach()).to(mine.dtype)
        own = theirs[candidates.first : candidates.first + len(mine)]  # (R, D)
        positive = (mine * own).sum(1) / gamma  # (R,)
        total, count = _LogSumExp.apply(mine, theirs, past, candidates, gamma, iou, elements)
        rows = mean_count(positive.new_full((), len(mine)))
        loss = (total - positive).sum() / rows
        return InfoNCE(loss, count.log().sum() / rows - loss.detach())


class _LogSumExp(torch.autograd.Function):
    """log sum over a row's positive and negatives of exp(<row, column> / gamma), and how many they are: (R,) each."""

    @staticmethod
    @exact_products()
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, past: Tensor, candidates: Candidates, gamma: float, iou: float, elements: int
    ) -> tuple[Tensor, Tensor]:
        ctx.candidates, ctx.gamma, ctx.iou, ctx.elements = candidates, gamma, iou, elements
        highest = rows.new_full((len(rows),), -torch.inf)
        mass, count = torch.zeros_like(highest), torch.full_like(highest, len(past))
        mean = torch.zeros_like(rows)  # of the columns, each by its share
        for part in _parts(len(past), len(rows), elements):
            logits = rows @ past[part].T / gamma  # (R, P)
            highest, mass, mean = _add(logits, past[part], highest, mass, mean)
        for part in _parts(len(columns), len(rows), elements):
            logits, kept = _pairs(rows, columns, part, candidates, gamma, iou)
            highest, mass, mean = _add(logits, columns[part], highest, mass, mean)
            count = count + kept.sum(1)
        total = highest + mass.log()
        ctx.save_for_backward(rows, columns, total, mean / mass[:, None])
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    @exact_products()
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, total, mean = ctx.saved_tensors
        to_columns = torch.zeros_like(columns)
        for part in _parts(len(columns), len(rows), ctx.elements):
            logits, _ = _pairs(rows, columns, part, ctx.candidates, ctx.gamma, ctx.iou)
            share = (logits - total[:, None]).exp()  # (R, P)
            to_columns[part] = (share * gradient[:, None]).T @ rows / ctx.gamma
        return gradient[:, None] * mean / ctx.gamma, to_columns, None, None, None, None, None


def _parts(columns: int, rows: int, elements: int) -> Iterator[slice]:
    step = max(elements // max(rows, 1), 1)
    return (slice(start, min(start + step, columns)) for start in range(0, columns, step))


def _add(logits: Tensor, columns: Tensor, highest: Tensor, mass: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take more columns into the running sums, which are relative to ``highest``."""
    higher = torch.maximum(highest, logits.amax(1))
    # a row that has met no column yet has -inf here, from which nothing can be taken
    base = higher.masked_fill(higher.isneginf(), 0)
    old, new = (highest - base).exp(), (logits - base[:, None]).exp()  # (R,), (R, P)
    return higher, mass * old + new.sum(1), mean * old[:, None] + new @ columns


def _pairs(rows: Tensor, columns: Tensor, part: slice, of: Candidates, gamma: float, iou: float) -> tuple[Tensor, Tensor]:
    """(R, P) logits of a part of the columns, -inf where a column is no negative, and (R, P) bool which count."""
    own = slice(of.first, of.first + len(rows))
    near = iou_xyxy(of.boxes[own], of.boxes[part]).nan_to_num(0) > iou  # (R, P)
    near &= of.images[own][:, None] == of.images[part]
    place = torch.arange(len(columns), device=rows.device)
    kept = ~near | (place[own][:, None] == place[part])  # the positive counts
    return (rows @ columns[part].T / gamma).masked_fill(~kept, -torch.inf), kept
