"""The one interface behind which every detector stands: one forward, many readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from detkd.detectors.norms import Norm
from detkd.structures import Detection, DetectorSpec, Prediction, Target


@runtime_checkable
class Detector(Protocol):
    """A detector as detkd sees it. In practice an ``nn.Module`` with these members.

    Images are RGB in [0, 1]; normalisation is the adapter's own. Boxes are xyxy in pixels of the images given.
    """

    spec: DetectorSpec
    training: bool

    def __call__(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) images in [0, 1] to a Prediction. Differentiable; the same in train and eval mode but for norms."""
        ...

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The loss the detector is trained with, by part, each a scalar with the detector's own gains applied."""
        ...

    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections after score threshold and NMS, one an image, best first."""
        ...

    def norms(self) -> list[Norm]:
        """Normalisations with stored statistics, in order of definition; those of RoI heads are left out."""
        ...

    def arguments(self) -> dict[str, Any]:
        """The json-able constructor arguments that build this architecture again (no weights)."""
        ...

    # of nn.Module
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Sampling(Protocol):
    """A detector whose loss draws random samples (two-stage: which anchors and proposals count), from a generator of its own."""

    def reseed(self, seed: int) -> None:
        """Start the generator anew."""
        ...
