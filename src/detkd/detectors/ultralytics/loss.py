"""The loss that YOLOv8 and YOLO11 are trained with: complete IoU, class cross-entropy and distribution focal loss on aligned sites.

Sources: those of :mod:`.assignment` (TOOD), :mod:`.dfl` (Generalized Focal Loss) and :mod:`.iou` (complete IoU).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from detkd.detectors.ultralytics.assignment import assign
from detkd.detectors.ultralytics.dfl import decode_boxes, distribution_loss, site_grid, wanted_distances
from detkd.detectors.ultralytics.iou import complete_iou
from detkd.structures import Target


def yolo_loss(
    raw_box: Tensor,
    raw_cls: Tensor,
    sizes: Sequence[tuple[int, int, int]],
    strides: Sequence[int],
    targets: Sequence[Target],
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> dict[str, Tensor]:
    """The loss parts before gains, float32 scalars: box, cls, dfl.

    Args:
        raw_box: (B, N, 4*bins). raw_cls: (B, N, C) logits. sizes: (height, width, 1) of each level. strides: pixels, of each level.
        targets: boxes xyxy in pixels of the images; those without area are left out.
        topk, alpha, beta: of :func:`assign`.

    Each part is a sum over sites divided by the sum of target scores over the batch (at least 1): box and dfl over assigned sites,
    weighted by their target scores; cls is binary cross-entropy over all sites and classes against the target scores. Dense, with weights
    in place of selections, so that nothing waits for the device. Without boxes, box and dfl are 0.
    """
    raw_box, raw_cls = raw_box.float(), raw_cls.float()
    centres, cells = site_grid(sizes, strides, raw_box.device)
    boxes, labels, exists = pad_targets(targets, raw_box)
    predicted = decode_boxes(raw_box, centres, cells)  # (B, N, 4)
    index, score = assign(raw_cls.detach().sigmoid(), predicted.detach(), centres, boxes, labels, exists, topk, alpha, beta)
    total = score.sum().clamp(min=1)

    wanted = boxes.gather(1, index[..., None].expand(-1, -1, 4))  # (B, N, 4)
    label = labels.gather(1, index)  # (B, N)
    box = ((1 - complete_iou(predicted, wanted)) * score).sum() / total
    distances = wanted_distances(wanted, centres, cells, raw_box.shape[-1] // 4)
    dfl = (distribution_loss(raw_box, distances) * score).sum() / total
    target_score = F.one_hot(label, raw_cls.shape[-1]) * score[..., None]  # (B, N, C)
    cls = F.binary_cross_entropy_with_logits(raw_cls, target_score, reduction="sum") / total
    return {"box": box, "cls": cls, "dfl": dfl}


def pad_targets(targets: Sequence[Target], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets as boxes (B, M, 4) in the type of ``like``, labels (B, M) int64 and exists (B, M) bool, M at least 1.

    Padded places and boxes without area hold a box of one pixel that does not exist.
    """
    none = like.new_tensor([[0.0, 0.0, 1.0, 1.0]])
    boxes = pad_sequence([torch.cat([t["boxes"].to(like), none]) for t in targets], batch_first=True)  # (B, M, 4)
    labels = pad_sequence([F.pad(t["labels"].to(like.device), (0, 1)) for t in targets], batch_first=True)
    counts = torch.tensor([len(t["boxes"]) for t in targets]).to(like.device, non_blocking=True)
    exists = torch.arange(boxes.shape[1], device=like.device) < counts[:, None]
    exists = exists & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return torch.where(exists[..., None], boxes, none), labels.where(exists, labels.new_zeros(())), exists
