"""YOLOv3, YOLOv3-SPP and YOLOv3-tiny (Redmon and Farhadi, 2018) built in code, any number of classes, any width.

Each returns the sections of a cfg, so that one network runs them all; at width 1 and 80 classes the order of the
convolutions is that of the published files, whose .weights fit.
"""

from __future__ import annotations

from collections.abc import Sequence

from detkd.detectors.darknet.cfg import Section
from detkd.errors import InputError

COCO_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
COCO_ANCHORS_TINY = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))

Anchors = Sequence[Sequence[float]]


class _Builder:
    """Collects sections. Widths are rounded to multiples of 8."""

    def __init__(self, name: str, width: float, num_classes: int, image_size: tuple[int, int], anchors: Anchors) -> None:
        if not width > 0:
            raise InputError(f"{name}: expected width > 0, got {width}")
        self.name, self.width, self.num_classes, self.anchors = name, width, num_classes, anchors
        height, image_width = image_size
        self.sections = [Section("net", {"width": str(image_width), "height": str(height), "channels": "3"}, f"{name} [net]")]

    def add(self, kind: str, **options: object) -> None:
        values = {k: str(v) for k, v in options.items()}
        self.sections.append(Section(kind, values, f"{self.name}, layer {len(self.sections) - 1} [{kind}]"))

    def conv(self, filters: int, size: int, stride: int = 1) -> None:
        filters = max(8, round(filters * self.width / 8) * 8)
        self.add("convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1, activation="leaky")

    def residuals(self, filters: int, count: int) -> None:
        for _ in range(count):
            self.conv(filters // 2, 1)
            self.conv(filters, 3)
            self.add("shortcut", **{"from": -3}, activation="linear")

    def pool(self, size: int, stride: int) -> None:
        self.add("maxpool", size=size, stride=stride)

    def route(self, *layers: int) -> None:
        self.add("route", layers=",".join(map(str, layers)))

    def head(self, mask: Sequence[int]) -> None:
        self.add("convolutional", size=1, stride=1, pad=1, filters=len(mask) * (self.num_classes + 5), activation="linear")
        self.add(
            "yolo",
            mask=",".join(map(str, mask)),
            anchors=", ".join(f"{w:g},{h:g}" for w, h in self.anchors),
            classes=self.num_classes,
            num=len(self.anchors),
        )

    def upsampled(self, filters: int, skip: int) -> None:
        """From the map before the last head: 1x1 convolution, upsample, join layer ``skip``."""
        self.route(-4)
        self.conv(filters, 1)
        self.add("upsample", stride=2)
        self.route(-1, skip)


def yolov3_sections(
    num_classes: int,
    image_size: tuple[int, int] = (416, 416),
    width: float = 1.0,
    anchors: Anchors = COCO_ANCHORS,
    spp: bool = False,
) -> list[Section]:
    """YOLOv3 on Darknet-53, strides 32, 16, 8; with ``spp`` the spatial pyramid pooling variant.

    Args:
        width: multiplies every channel count but the heads'.
        anchors: nine (width, height) in pixels of the input, small to large.
    """
    name = "yolov3_spp" if spp else "yolov3"
    if len(anchors) != 9:
        raise InputError(f"{name}: expected 9 anchors, got {len(anchors)}")
    net = _Builder(name, width, num_classes, image_size, anchors)
    net.conv(32, 3)
    for filters, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(filters, 3, stride=2)
        net.residuals(filters, count)
    net.conv(512, 1)
    net.conv(1024, 3)
    net.conv(512, 1)
    if spp:
        net.pool(5, 1)
        net.route(-2)
        net.pool(9, 1)
        net.route(-4)
        net.pool(13, 1)
        net.route(-1, -3, -5, -6)
        net.conv(512, 1)
    net.conv(1024, 3)
    net.conv(512, 1)
    net.conv(1024, 3)
    net.head((6, 7, 8))
    for filters, skip, mask in ((256, 61, (3, 4, 5)), (128, 36, (0, 1, 2))):
        net.upsampled(filters, skip)
        for _ in range(2):
            net.conv(filters, 1)
            net.conv(2 * filters, 3)
        net.conv(filters, 1)
        net.conv(2 * filters, 3)
        net.head(mask)
    return net.sections


def yolov3_tiny_sections(
    num_classes: int,
    image_size: tuple[int, int] = (416, 416),
    width: float = 1.0,
    anchors: Anchors = COCO_ANCHORS_TINY,
) -> list[Section]:
    """YOLOv3-tiny: seven plain convolutions with max-pools, strides 32 and 16. anchors: six, small to large."""
    if len(anchors) != 6:
        raise InputError(f"yolov3_tiny: expected 6 anchors, got {len(anchors)}")
    net = _Builder("yolov3_tiny", width, num_classes, image_size, anchors)
    for filters in (16, 32, 64, 128, 256):
        net.conv(filters, 3)
        net.pool(2, 2)
    net.conv(512, 3)
    net.pool(2, 1)
    net.conv(1024, 3)
    net.conv(256, 1)
    net.conv(512, 3)
    net.head((3, 4, 5))
    net.upsampled(128, 8)
    net.conv(256, 3)
    net.head((0, 1, 2))
    return net.sections
