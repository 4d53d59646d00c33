"""Where a detector's own loss pulls at its feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from detkd.detectors.modes import evaluating
from detkd.detectors.protocol import Detector, Sampling
from detkd.losses.connectors import full, neck_strides
from detkd.structures import Prediction, Target


def gradient_norms(
    detector: Detector, images: Tensor, targets: Sequence[Target], seed: int = 0
) -> tuple[Prediction, dict[str, Tensor]]:
    """The L2 norm over channels of the gradient of the detector's own loss at each neck map.

    Args:
        images: (B, 3, H, W) in [0, 1]. targets: one an image; the loss is that of the batch, so pass one image for a map of its own.
        seed: of the samples that the loss of a two-stage detector draws.

    Returns:
        the prediction, and norms (B, h, w) by the names of the neck maps, fine first, without gradient; 0 where the loss does not read a map.

    The detector runs in eval mode, as it is scored, and is left as it was; no parameter gets a gradient. Source: the supplement of DeFeat
    (Guo et al., CVPR 2021), which shows them as heat maps.
    """
    if isinstance(detector, Sampling):
        detector.reseed(seed)
    with evaluating(cast(nn.Module, detector)), torch.enable_grad():
        # the images take part, so that maps of a detector whose parameters are frozen have a gradient too
        prediction = detector(images.detach().requires_grad_())
        maps = {name: prediction.features[name] for name in neck_strides(prediction)}
        loss = torch.stack([part.float() for part in detector.loss(prediction, targets).values()]).sum()
        gradients = torch.autograd.grad(loss, list(maps.values()), allow_unused=True)
    norms = {
        name: feature.new_zeros(feature[:, 0].shape)
        if gradient is None
        else full(gradient).norm(dim=1)  # (B, C, h, w) -> (B, h, w)
        for (name, feature), gradient in zip(maps.items(), gradients)
    }
    return prediction, norms
