"""Makes torchvision importable beside a CPU build of torch.

timm, Lightning and Transformers import it. Package registries hold its CUDA build alone: its compiled operators cannot
load beside a CPU build of torch, and importing it raises because two of them are not declared. Nothing here calls them.
"""

import torch

try:
    import torchvision
except RuntimeError:
    for name in "nms", "qnms":
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
