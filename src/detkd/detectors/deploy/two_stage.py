"""A two-stage detector as a graph: one image to the boxes and scores of a fixed number of proposals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.boxes import clip_xyxy
from detkd.detectors.deploy.nms import suppress
from detkd.detectors.deploy.selection import Candidates, above, best_pairs, keep_best, rows
from detkd.detectors.torchvision.base import anchors_of
from detkd.detectors.torchvision.two_stage import TwoStageRCNN
from detkd.structures import Prediction

# (proposal, class) pairs that enter the last suppression. The detector itself lets all in that score more than its threshold.
PAIRS = 4000
# px, as in torchvision's RoIHeads
_SMALLEST = 1e-2
# What follows the RPN's raw outputs: the last head's corrections (1, R, columns * 4) and logits (1, R, columns), and the proposals (1, R, 4).
ROI_OUTPUTS = ("roi_box", "roi_cls", "proposals")


class TwoStageGraph(nn.Module):
    """An image (1, 3, H, W) to boxes (1, R, C, 4), of each proposal one a class, and scores (1, R, C).

    R is the number of proposals that the detector is set to; rows without a proposal have score 0. Boxes are xyxy in pixels, clipped to
    the image.

    Args: as of :class:`~detkd.detectors.deploy.one_stage.OneStageGraph`; raw outputs are those of the RPN, then
    ``ROI_OUTPUTS``, a row a proposal.
    """

    def __init__(self, detector: TwoStageRCNN, nms: bool = False, raw: bool = False) -> None:
        super().__init__()
        self.detector, self.nms, self.raw = detector, nms, raw

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        prediction = self.detector(images)
        proposals, there = propose(self.detector, prediction)
        looked_at, logits, deltas = self.detector.judge(prediction, [proposals[0]])
        columns = list(self.detector.labels.columns)
        decoded = self.detector.last_head.box_coder.decode_single(deltas, looked_at[0])  # (R, columns * 4)
        of_classes = decoded.reshape(decoded.shape[0], -1, 4)[:, columns]  # (R, C, 4)
        scores = logits.softmax(-1)[:, columns] * there[0, :, None]  # (R, C)
        out: tuple[Tensor, ...] = (clip_xyxy(of_classes, prediction.image_size)[None], scores[None])
        if self.nms:
            out = tuple(self.select(*out))  # a file knows no named tuples
        if not self.raw:
            return out
        return (*out, *(prediction.raw[name] for name in sorted(prediction.raw)), deltas[None], logits[None], proposals)

    def select(self, boxes: Tensor, scores: Tensor) -> Candidates:
        """What suppression leaves, with the detector's own settings."""
        head = self.detector.last_head
        large = ((boxes[..., 2:] - boxes[..., :2]) >= _SMALLEST).all(-1)  # (1, R, C)
        found = best_pairs(boxes, above(scores, head.score_thresh) * large, PAIRS)
        return keep_best(found, len(self.detector.spec.classes), head.nms_thresh, head.detections_per_img)


def propose(detector: TwoStageRCNN, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Proposals (1, R, 4) of one image, best first, and which of them there are (1, R) bool; torchvision's ``filter_proposals``."""
    rpn = detector.model.rpn
    objectness, deltas = prediction.raw["obj"][..., 0], prediction.raw["box"]  # (1, N), (1, N, 4)
    anchors = anchors_of(rpn.anchor_generator, prediction.sizes, prediction.image_size, deltas.device)
    found, start = [], 0
    for level, (height, width, count) in enumerate(prediction.sizes):
        length = height * width * count
        best, index = objectness[:, start : start + length].topk(min(rpn.pre_nms_top_n(), length))
        index = index + start
        moved = rpn.box_coder.decode_single(rows(deltas, index)[0], anchors[index[0]])[None]  # (1, k, 4)
        found.append(Candidates(clip_xyxy(moved, prediction.image_size), best.sigmoid(), torch.full_like(index, level)))
        start += length
    boxes, scores, levels = (torch.cat(part, dim=1) for part in zip(*found))
    large = ((boxes[..., 2:] - boxes[..., :2]) >= rpn.min_size).all(-1)
    scores = torch.where(large & (scores >= rpn.score_thresh), scores, torch.zeros_like(scores))
    kept = torch.where(suppress(boxes, scores, levels, len(found), rpn.nms_thresh), scores, torch.zeros_like(scores))
    best, index = kept.topk(min(rpn.post_nms_top_n(), kept.shape[1]))
    there = best > 0
    return torch.where(there[..., None], rows(boxes, index), torch.zeros_like(boxes[:, :1])), there
