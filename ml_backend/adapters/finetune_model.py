"""What fine-tuning trains: backbone and classifier, their loss, and how pictures and step sizes change."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    binary_cross_entropy_with_logits,
    cross_entropy,
    grid_sample,
)

WARM_UP = 0.1
"""Share of all steps in which the step size grows."""


class Model(nn.Module):
    """Backbone and classifier, to be kept and put back together."""

    def __init__(self, module: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.module, self.classifier = module, classifier

    def weights(self) -> dict[str, Tensor]:
        """A copy on the host."""
        return {key: value.detach().to("cpu", copy=True) for key, value in self.state_dict().items()}


class Linear(nn.Module):
    """A linear layer on features that are centred and scaled as a whole."""

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread.clamp_min(1e-6))
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, F) to logits (n, C)."""
        logits: Tensor = self.linear((features - self.mean) / self.spread)
        return logits


def loss_of(said: Tensor, y: Tensor, multiple: bool, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (n, C), or of each class by itself where several labels may be right."""
    if multiple:
        return binary_cross_entropy_with_logits(said, y * (1 - smoothing) + smoothing / 2)
    return cross_entropy(said, y, label_smoothing=smoothing)


def rate(step: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero; ``step`` of ``total``."""
    done = step / total
    if done < WARM_UP:
        return (done + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))


def moved(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Each picture (n, s, s, 3) shifted, turned, scaled a little; not mirrored: that may change its class."""
    n = len(pixels)
    angle = np.radians(random.uniform(-5, 5, n))
    scale = random.uniform(0.95, 1.05, n)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    shift = random.uniform(-0.08, 0.08, (2, n))
    rows = np.stack([np.stack([cos, -sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)], 1)
    theta = torch.as_tensor(rows, dtype=torch.float32, device=pixels.device)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1)
