"""Bring an image to a network's size, and boxes there and back."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from detkd.boxes import clip_xyxy
from detkd.structures import Resize

LETTERBOX_GREY = 114


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input: ``network = original * scale + offset`` on each axis, in pixels.

    scale_x, scale_y: network pixels an original pixel, after rounding to whole pixels.
    offset_x, offset_y: of the content's top left corner, in network pixels.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def apply_xyxy(self, boxes_xyxy: Tensor) -> Tensor:
        """(..., 4) float boxes in original pixels to network pixels."""
        scale = boxes_xyxy.new_tensor([self.scale_x, self.scale_y] * 2)
        offset = boxes_xyxy.new_tensor([self.offset_x, self.offset_y] * 2)
        return boxes_xyxy * scale + offset

    def undo_xyxy(self, boxes_xyxy: Tensor, original_size: tuple[int, int]) -> Tensor:
        """(..., 4) float boxes in network pixels to original pixels, clipped to ``original_size`` (height, width)."""
        scale = boxes_xyxy.new_tensor([self.scale_x, self.scale_y] * 2)
        offset = boxes_xyxy.new_tensor([self.offset_x, self.offset_y] * 2)
        return clip_xyxy((boxes_xyxy - offset) / scale, original_size)


def place(image: Image.Image, image_size: tuple[int, int], resize: Resize) -> tuple[Tensor, Placement]:
    """Resize an RGB image to the network's size.

    Args:
        image: RGB, any size from 1 x 1 pixel.
        image_size: (height, width) of the network.
        resize: "stretch" fills the size on both axes; "letterbox" keeps the aspect ratio, centred on grey 114.

    Returns:
        (3, height, width) uint8 RGB, and the :class:`Placement` of the image in it.

    Interpolation is PIL's bilinear, which averages over the footprint of a pixel when it shrinks (anti-aliased).
    Raises ValueError for another mode or resize.
    """
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode!r}")
    height, width = image_size
    if resize == "stretch":
        content_height, content_width = height, width
    elif resize == "letterbox":
        scale = min(height / image.height, width / image.width)
        # at least one pixel, however long and thin the image
        content_height = min(height, max(1, round(image.height * scale)))
        content_width = min(width, max(1, round(image.width * scale)))
    else:
        raise ValueError(f"expected resize 'stretch' or 'letterbox', got {resize!r}")

    offset_y, offset_x = (height - content_height) // 2, (width - content_width) // 2
    content = image.resize((content_width, content_height), Image.Resampling.BILINEAR)
    if (content_height, content_width) != (height, width):
        canvas = Image.new("RGB", (width, height), (LETTERBOX_GREY,) * 3)
        canvas.paste(content, (offset_x, offset_y))
        content = canvas
    placement = Placement(content_width / image.width, content_height / image.height, float(offset_x), float(offset_y))
    return pil_to_tensor(content), placement
