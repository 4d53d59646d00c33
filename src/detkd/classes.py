"""One name for each COCO class: darknet's and Pascal VOC's spellings mean the same things."""

from __future__ import annotations

# As in darknet's coco.names and in VOC, against the official COCO categories.
SYNONYMS = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


def canonical(name: str) -> str:
    """The official COCO spelling of a class name; other names come back as they are, without outer spaces."""
    name = name.strip()
    return SYNONYMS.get(name, name)
