"""Weights that MMDetection trained, in detkd's detectors. The package itself is not needed."""

from detkd.detectors.mmdetection.load import load_mmdetection

__all__ = ["load_mmdetection"]
