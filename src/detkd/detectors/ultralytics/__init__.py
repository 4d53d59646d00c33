"""YOLOv8 and YOLO11 of the ``ultralytics`` package, an optional extra that is imported when a detector is built."""

from detkd.detectors.ultralytics.detector import UltralyticsDetector
from detkd.detectors.ultralytics.pretrained import pretrained

__all__ = ["UltralyticsDetector", "pretrained"]
