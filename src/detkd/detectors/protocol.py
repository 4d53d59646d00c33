"""The one interface behind which every detector stands: one forward, many readings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from detkd.detectors.norms import Norm
from detkd.structures import Detection, DetectorSpec, Prediction, RoI, Target


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


@runtime_checkable
class DenseHead(Detector, Protocol):
    """A detector whose head runs alike on every level of its pyramid, so that the head can be read and fed.

    A term asks for it with :func:`~detkd.detectors.capabilities.require`.

    tower_layers: how many layers, each a convolution with its norm and activation, each of the two towers has.
    """

    tower_layers: int

    def towers(self, prediction: Prediction, layer: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Classification and box maps (B, C, H, W) a level, fine first, behind a layer of each tower.

        layer: from 1 to ``tower_layers``; None for the last, before what predicts. Raises ValueError for another.
        """
        ...

    def head_from(self, cls: Sequence[Tensor], box: Sequence[Tensor], layer: int, image_size: tuple[int, int]) -> Prediction:
        """Run the rest of the head alone, on maps as :meth:`towers` gives them behind ``layer``; the prediction has no features."""
        ...

    def head(self, features: Mapping[str, Tensor], image_size: tuple[int, int]) -> Prediction:
        """Run the head alone on maps (B, C, H, W) by the names of ``Prediction.features``, of images (height, width) in pixels.

        Names that the head does not read are passed on. On a prediction's own features it gives that prediction again.
        """
        ...

    def boxes(self, prediction: Prediction, differentiable: bool = False) -> Tensor:
        """(B, N, 4) boxes of all sites, in the order of ``Prediction.raw``: xyxy in pixels, clipped to the image, without gradient.

        differentiable: with gradient, and not clipped, for there it would end.
        """
        ...


@runtime_checkable
class TwoStage(Detector, Protocol):
    """A detector that proposes boxes and then looks at each of them again. Boxes are xyxy in pixels, one (R, 4) an image.

    A term asks for it with :func:`~detkd.detectors.capabilities.require`. Nothing here learns statistics or draws random numbers
    but ``loss``.

    stages: how many RoI heads look at the boxes, each at what the one before made of them: 1, or more of a cascade.
    """

    stages: int

    def loss(
        self, prediction: Prediction, targets: Sequence[Target], proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """As of :class:`Detector`; ``proposals`` stand in for the detector's own."""
        ...

    def propose(self, prediction: Prediction) -> list[Tensor]:
        """The proposals (R, 4) that decoding looks at, one an image, best first, without gradient."""
        ...

    def pool(self, prediction: Prediction, boxes: Sequence[Tensor], level: Literal["all"] | None = None) -> Tensor:
        """RoIAlign of boxes (r, 4) an image, R in all: (R, C, h, w) from each box's own level, or (R, L, C, h, w) from every level; 7 x 7 with a pyramid."""
        ...

    def roi_head(self, pooled: Tensor, stage: int = 0) -> RoI:
        """What the RoI head of a stage says of pooled features (R, C, 7, 7)."""
        ...

    def head_modules(self) -> dict[str, nn.Module]:
        """The modules behind the pyramid that have weights, by name: of the RPN and of the RoI heads."""
        ...

    def refine(self, prediction: Prediction, boxes: Sequence[Tensor], roi: RoI, stage: int = 0) -> list[Tensor]:
        """The boxes that the next stage looks at: (r, 4) an image as given, moved by what ``stage`` said of them, without gradient."""
        ...
