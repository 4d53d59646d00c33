"""Read what a frozen detector's norms see at almost no cost: fold them into their convolutions and look at the output.

A convolution and the norm behind it are one convolution with other weights. Its output y relates to the norm's input x by
an affine map a channel, y = g (x - m) + beta with g = gamma / sqrt(s + eps), so the statistics of x follow from those of y.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from detkd.detectors.memory_format import memory_format
from detkd.detectors.norms import Norm, Observed
from detkd.detectors.protocol import Detector
from detkd.structures import Prediction


class _BatchStatistics(torch.autograd.Function):
    """Mean and biased variance of (B, C, H, W) over all but C, passing the input through.

    One kernel forward (the one that batch norm itself uses in training). Backward adds, for gradients u of the mean and
    v of the variance, (u + 2 v (x - mean)) / n to the gradient of the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.device.type in ("cpu", "cuda"):
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        else:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean.float(), var.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        grad, grad_mean, grad_var = gradients
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = 2 * grad_var / count
        offset = grad_mean / count - slope * mean.float()
        shape = (1, -1, 1, 1)
        return (grad + offset.to(x.dtype).view(shape)).addcmul_(x, slope.to(x.dtype).view(shape))


class Tap(nn.Module):
    """Pass the input through and keep its statistics until they are read; ``norm`` (optional) comes after the look.

    A tap that is ``watching`` keeps its input and its version; ``copying`` hands on a copy, where what follows writes into it.
    """

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.seen: list[tuple[Tensor, Tensor, int]] = []
        self.watched: list[tuple[Tensor, int]] = []
        self.listening = self.watching = self.copying = False

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            self.watched.append((x, x._version))
        if self.listening:
            x, mean, var = _BatchStatistics.apply(x)
            self.seen.append((mean, var, x.numel() // x.shape[1]))
            if self.copying:
                x = x.clone()
        return x if self.norm is None else self.norm(x)

    def stop_watching(self) -> None:
        """Copy from now on if anything that was watched has been written to since (``out += identity`` of a ResNet)."""
        self.copying = any(x._version != version for x, version in self.watched)
        self.watched, self.watching = [], False

    def read(self) -> tuple[Tensor, Tensor]:
        """Mean and variance pooled over all passes since the last read."""
        seen, self.seen = self.seen, []
        if len(seen) == 1:
            return seen[0][0], seen[0][1]
        total = sum(n for *_, n in seen)
        mean = torch.stack([m * (n / total) for m, _, n in seen]).sum(0)
        second = torch.stack([(v + m.square()) * (n / total) for m, v, n in seen]).sum(0)
        return mean, second - mean.square()


class TappedDetector:
    """A copy of a frozen detector that reports what its norms see.

    Args:
        detector: left as it is. fold: fold norms into the convolutions before them where that is exact enough;
            otherwise, and for other norms, statistics are read at the norm's input.
        channels_last: of the copy, see :func:`memory_format`.
    """

    def __init__(self, detector: Detector, fold: bool = True, channels_last: bool | Literal["auto"] = "auto") -> None:
        self.detector: Detector = copy.deepcopy(detector)
        self.detector.eval().requires_grad_(False)
        for module in self.detector.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # an in-place activation would overwrite what a tap keeps
        self.memory_format = memory_format(self.detector, channels_last, next(self.detector.parameters()).device)
        norms = self.detector.norms()
        pairs = _paired_convolutions(self.detector, norms) if fold and norms else {}
        self._taps: list[tuple[Norm, Tap, bool]] = []
        for norm in norms:
            conv = pairs.get(norm.name)
            if conv is not None and _folds_well(norm):
                _fold(conv, norm)
                tap = Tap()
                self._taps.append((norm, tap, True))
            else:
                tap = Tap(norm.module)
                self._taps.append((norm, tap, False))
            parent, _, name = norm.name.rpartition(".")
            setattr(cast(nn.Module, self.detector).get_submodule(parent), name, tap)
        self.detector.to(memory_format=self.memory_format)
        if norms:  # without any there is nothing to look for, and SSD300 takes no image as small as the probe
            self._find_writers()

    @property
    def folded(self) -> int:
        """How many norms were folded away."""
        return sum(folded for *_, folded in self._taps)

    def forward(self, images: Tensor) -> tuple[Prediction, Sequence[Observed]]:
        """Prediction for (B, 3, H, W) images in [0, 1], and what each norm saw, in the order of ``detector.norms()``."""
        for _, tap, _ in self._taps:
            tap.listening = True
        try:
            prediction = self.detector(images.contiguous(memory_format=self.memory_format))
        finally:
            for _, tap, _ in self._taps:
                tap.listening = False
        observed = []
        for norm, tap, folded in self._taps:
            if not tap.seen:
                continue  # a norm that this forward does not reach
            mean, var = tap.read()
            if folded:
                scale = (norm.var + norm.eps).sqrt() / norm.weight
                mean, var = (mean - norm.bias) * scale + norm.mean, var * scale.square()
            observed.append(Observed(norm, mean, var))
        return prediction, observed

    def __call__(self, images: Tensor) -> Prediction:
        """Prediction alone; nothing is recorded."""
        return self.detector(images.contiguous(memory_format=self.memory_format))

    @torch.no_grad()
    def _find_writers(self) -> None:
        for _, tap, _ in self._taps:
            tap.watching = True
        self(_probe(self.detector))
        for _, tap, _ in self._taps:
            tap.stop_watching()


def _probe(detector: Detector) -> Tensor:
    """One blank image, small, of a size that strides of 32 divide."""
    parameter = next(detector.parameters())
    height, width = (min(128, math.ceil(s / 32) * 32) for s in detector.spec.image_size)
    return torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)


def _folds_well(norm: Norm) -> bool:
    """Whether the norm's input can be read back from its output: no channel with a scale lost beside its shift."""
    return bool((norm.weight.abs() > 1e-4 * norm.bias.abs() + 1e-8).all())


def _fold(conv: nn.Conv2d, norm: Norm) -> None:
    with torch.no_grad():
        gain = norm.weight / (norm.var + norm.eps).sqrt()
        bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.mean)
        conv.weight.mul_(gain.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter((bias - norm.mean) * gain + norm.bias, requires_grad=False)


@torch.enable_grad()
def _paired_convolutions(detector: Detector, norms: Sequence[Norm]) -> dict[str, nn.Conv2d]:
    """Convolutions whose output goes into one norm and nowhere else, by the norm's name; found by one probe forward."""
    made_by: dict[int, nn.Conv2d] = {}
    nodes: list[tuple[nn.Conv2d, Any]] = []
    kept: list[Tensor] = []  # alive, so that no two outputs share an id
    read_by: dict[int, list[str]] = {}
    handles = []

    def note_conv(conv: nn.Module, _: Any, output: Tensor) -> None:
        made_by[id(output)] = cast(nn.Conv2d, conv)
        nodes.append((cast(nn.Conv2d, conv), output.grad_fn))
        kept.append(output)

    def note_norm(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read_by.setdefault(id(inputs[0]), []).append(name)
            kept.append(inputs[0])

        return hook

    for module in detector.modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(note_conv))
    handles += [norm.module.register_forward_pre_hook(note_norm(norm.name)) for norm in norms]
    try:
        prediction = detector(_probe(detector).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()

    uses = _count_uses([prediction.raw, prediction.features, prediction.state])
    branching = {id(conv) for conv, node in nodes if uses[node] != 1}
    readers: dict[int, set[str]] = {}
    for output, conv in made_by.items():
        readers.setdefault(id(conv), set()).update(read_by.get(output, [""]))
    sources: dict[str, set[int]] = {}
    for tensor, names in read_by.items():
        for name in names:
            sources.setdefault(name, set()).add(id(made_by[tensor]) if tensor in made_by else 0)
    convs = {id(conv): conv for conv in made_by.values()}
    return {
        name: convs[source]
        for name, found in sources.items()
        if len(found) == 1 and (source := next(iter(found))) in convs and readers[source] == {name} and source not in branching
    }


def _count_uses(outputs: Any) -> Counter[Any]:
    """How often the result of each node of the autograd graph above ``outputs`` (nested) is used; an output is one use."""
    uses: Counter[Any] = Counter()
    waiting: list[Any] = []

    def use(node: Any) -> None:
        if node is not None:
            if node not in uses:
                waiting.append(node)
            uses[node] += 1

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            use(value.grad_fn)
        elif isinstance(value, (dict, list, tuple)):
            for item in value.values() if isinstance(value, dict) else value:
                collect(item)

    collect(outputs)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            use(node)
    return uses
