"""What fine-tuning trains: backbone and classifier, their loss, and how pictures and step sizes change."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    binary_cross_entropy_with_logits,
    conv2d,
    cross_entropy,
    grid_sample,
    pad,
)

GREY = 128.0
TEACHER_KEEPS = 0.99
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


def quick_on_cpu(module: nn.Module) -> None:
    """Let depthwise convolutions pad small maps themselves: the same numbers, on a CPU sooner.

    Where the kernel is wider than the map, oneDNN's gradient of the weights takes 5 to 100 times as long with
    its own padding (torch 2.15, AVX2): at 64 px that was most of a step.
    """
    for conv in module.modules():
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            continue  # a class of its own may pad in its own way
        if conv.groups == conv.in_channels > 1 and conv.padding not in ((0, 0), "same", "valid"):
            conv.forward = partial(_padded, conv)  # type: ignore[method-assign]


def _padded(conv: nn.Conv2d, images: Tensor) -> Tensor:
    high, wide = conv.kernel_size
    small = images.shape[-2] < high and images.shape[-1] < wide
    if not (small and torch.is_grad_enabled()):
        return nn.Conv2d.forward(conv, images)
    down, across = map(int, conv.padding)
    images = pad(images, (across, across, down, down))
    return conv2d(images, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


class Teacher:
    """The running mean of a model's weights over its last hundred steps or so (Tarvainen & Valpola 2017).

    torch's AveragedModel gives the same weights in 17.2 instead of 9.8 ms an update.
    """

    def __init__(self, model: Model) -> None:
        self.model, self._of, self._steps = copy.deepcopy(model), model, 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take a step of the model in."""
        self._steps += 1
        share = 1 - min(TEACHER_KEEPS, self._steps / (self._steps + 10))
        for mine, new in zip(self.model.parameters(), self._of.parameters(), strict=True):
            mine.lerp_(new, share)


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
    return _warped(pixels, random, degrees=5, scale=0.05, shift=0.08, shear=0.0)


def shaken(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Each picture (n, s, s, 3) warped much, of other brightness and contrast, with a grey square on it."""
    n, side = pixels.shape[:2]
    images = _warped(pixels, random, degrees=20, scale=0.2, shift=0.12, shear=0.2)

    def each(low: float, high: float) -> Tensor:
        return torch.as_tensor(random.uniform(low, high, (n, 1, 1, 1)), dtype=torch.float32).to(pixels.device)

    images = ((images - GREY) * each(0.6, 1.4) + GREY + each(-40, 40)).clamp(0, 255)
    axis, square = torch.arange(side, device=pixels.device), side // 3
    corners = torch.as_tensor(random.integers(-(square // 2), side - square // 2, (2, n, 1))).to(
        pixels.device
    )
    across = (axis >= corners) & (axis < corners + square)
    return images.masked_fill((across[0][:, :, None] & across[1][:, None, :])[..., None], GREY)


def _warped(
    pixels: Tensor, random: np.random.Generator, *, degrees: float, scale: float, shift: float, shear: float
) -> Tensor:
    """Each picture warped by numbers of its own, what comes in from outside mirrored.

    torchvision's v2.RandomAffine draws one set of numbers a batch, fills with one colour, and takes 1.8 times
    as long picture by picture.
    """
    n = len(pixels)
    angle = np.radians(random.uniform(-degrees, degrees, n))
    size = random.uniform(1 - scale, 1 + scale, n)
    cos, sin, slant = size * np.cos(angle), size * np.sin(angle), random.uniform(-shear, shear, n)
    by = random.uniform(-shift, shift, (2, n))
    rows = [np.stack([cos, slant * cos - sin, by[0]], -1), np.stack([sin, slant * sin + cos, by[1]], -1)]
    theta = torch.as_tensor(np.stack(rows, 1), dtype=torch.float32, device=pixels.device)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    warped = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return warped.permute(0, 2, 3, 1)
