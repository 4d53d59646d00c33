"""The built-in world: detection scenes drawn from a seed, nothing to download.

Three variants: "main"; "same_domain", drawn alike but with other classes, textures and layout; "out_of_domain", glowing line figures
on black. The worlds are frozen: a change to what they draw is a change to every number measured on them.
"""

from detkd.data.scenes.datamodule import scenes_datamodule
from detkd.data.scenes.dataset import CLASSES, VARIANTS, Sample, ScenesDataset, write_coco
from detkd.data.scenes.world import Scene, draw_scene

__all__ = ["CLASSES", "VARIANTS", "Sample", "Scene", "ScenesDataset", "draw_scene", "scenes_datamodule", "write_coco"]
