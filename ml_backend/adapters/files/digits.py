"""scikit-learn's handwritten digits as picture files: real data that needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE = 96
"""Pixels: large enough to be recognised at a glance."""


def write_digits(folder: Path) -> int:
    """Write the digits that are missing as ``folder/CLASS/NNNN.png``; returns how many there are.

    The numbers are shuffled, always in the same way: scikit-learn's order counts from 0 to 9.
    """
    digits = load_digits()
    numbers = np.random.default_rng(0).permutation(len(digits.target))
    for number, pixels, label in zip(numbers, digits.images, digits.target, strict=True):
        path = folder / str(label) / f"{number:04}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((255 - pixels * (255 / 16)).astype(np.uint8))
        fresh = path.with_suffix(".part")
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(fresh, "PNG")
        fresh.replace(path)
    return len(digits.target)
