"""torchvision's detectors behind detkd's :class:`~detkd.detectors.protocol.Detector`: one class a family."""

from detkd.detectors.torchvision.cascade_rcnn import CascadeRCNN
from detkd.detectors.torchvision.faster_rcnn import FasterRCNN
from detkd.detectors.torchvision.faster_rcnn_c4 import FasterRCNNC4
from detkd.detectors.torchvision.fcos import FCOS
from detkd.detectors.torchvision.retinanet import RetinaNet
from detkd.detectors.torchvision.ssd import SSD

__all__ = ["FCOS", "SSD", "CascadeRCNN", "FasterRCNN", "FasterRCNNC4", "RetinaNet"]
