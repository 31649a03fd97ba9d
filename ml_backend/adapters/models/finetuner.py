"""Fine-tuning a whole backbone: from keys and files to weights in the data folder."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file

from ml_backend.adapters.files.features import feature_set
from ml_backend.adapters.models.backbones import weights_path
from ml_backend.adapters.models.decode import DEFAULT_LIMITS, Limits, decode
from ml_backend.adapters.models.devices import torch_device
from ml_backend.adapters.models.finetune_training import Recipe, Taught, Training
from ml_backend.adapters.models.ranks import Progress, Ranks, together
from ml_backend.domain.errors import BadImage
from ml_backend.domain.generation import Array
from ml_backend.prefetch import cpus, in_order

log = logging.getLogger(__name__)

RECIPE = "5"
"""Part of the name of the weights: another recipe trains anew."""
GPU_EPOCHS = 20
"""Times that self-training on a GPU sees every image without a label: on MNIST 2 epochs after 200 labels gave
98.6 % right, 5 gave 99.1, 10 gave 99.3."""


class TorchFinetuner:
    """``ports.Finetuner`` with AdamW, a warm-up and a cosine; on a GPU in bfloat16 and channels_last.

    Where there are several GPUs each trains on batches of its own (``processes``, 0: one per GPU).
    Self-training takes ``epochs`` over the images without a label (None: GPU_EPOCHS, without a GPU as few as
    give it the steps that the labels had), never fewer steps than the labels had.
    Keeps the weights of the least loss on the validation images, as safetensors in ``folder``. Raises what
    ``torch_device``, ``backbones.backbone`` and ``pixels_to_features`` raise.
    """

    def __init__(
        self,
        base: str,
        size: int,
        device: str,
        folder: Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        looks: int = 20,
        learning_rate: float = 4e-4,
        processes: int = 0,
        epochs: int | None = None,
    ) -> None:
        self._base, self._size, self._folder, self._limits = base, size, folder, limits
        self._looks, self._rate = looks, learning_rate
        self._device = torch_device(device)
        gpus = torch.cuda.device_count() if self._device.type == "cuda" else 1
        self._processes = processes or gpus
        by_default = GPU_EPOCHS if self._device.type == "cuda" else 0
        self._epochs = by_default if epochs is None else epochs

    def tune(
        self,
        keys: Sequence[str],
        images: Iterable[tuple[str, bytes]],
        targets: Array,
        validation: Array,
        *,
        multiple: bool,
        progress: Progress = lambda done, total: None,
    ) -> str:
        """Train on (key, file bytes); see the port. Images that can't be decoded are left out."""
        name = f"{self._base}~{self._digest(keys, targets, validation)}"
        path = weights_path(name, self._folder)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            # The lock tells the pixels of a run that lives from those of one that was killed.
            with (
                tempfile.TemporaryDirectory(dir=self._folder) as folder,
                FileLock(Path(folder) / "lock", fallback_to_soft=False),
            ):
                pixels, rows = self._decode(keys, images, Path(folder) / "pixels")
                known = [place for place, row in enumerate(rows) if row < len(targets)]
                teach = [rows[place] for place in known]
                taught = Taught(np.array(known), targets[teach], validation[teach], multiple)
                fresh = Path(folder) / "weights"
                if self._processes == 1:
                    self._write(Ranks(), pixels, taught, progress, fresh)
                else:
                    given = (self, Path(folder) / "pixels", pixels.shape, taught, fresh)
                    together(self._processes, _on_rank, given, progress)
                os.replace(fresh, path)
        return feature_set(name, self._size)

    def _digest(self, keys: Sequence[str], targets: Array, validation: Array) -> str:
        text = hashlib.sha256(
            f"{RECIPE} {self._base} {self._size} {self._looks} {self._rate} {self._epochs}".encode()
        )
        for row, key in enumerate(keys):
            said = f"{targets[row].tolist()} {bool(validation[row])}" if row < len(targets) else ""
            text.update(f"{key} {said}\n".encode())
        return text.hexdigest()[:8]

    def _decode(
        self, keys: Sequence[str], images: Iterable[tuple[str, bytes]], path: Path
    ) -> tuple[Array, list[int]]:
        """Pixels (n, size, size, 3) uint8 in a file, so that memory holds only what is in use; their rows."""
        row_of = {key: row for row, key in enumerate(keys)}
        rows: list[int] = []
        with ThreadPoolExecutor(cpus(), "decode") as pool, open(path, "wb") as file:
            work = in_order(pool, lambda data: decode(data, self._size, self._limits), images, ahead=64)
            for key, pixels in work:
                if isinstance(pixels, BadImage):
                    log.warning("%s is left out: %s", key, pixels)
                else:
                    file.write(pixels.tobytes())
                    rows.append(row_of[key])
        return np.memmap(path, np.uint8, "r", shape=(len(rows), self._size, self._size, 3)), rows

    def _write(self, ranks: Ranks, pixels: Array, taught: Taught, progress: Progress, fresh: Path) -> None:
        """Train, and let the first rank write the weights."""
        recipe = Recipe(self._base, self._size, self._looks, self._rate, self._epochs)
        network = Training(recipe, self._device, pixels, taught, ranks, progress).run()
        if ranks.rank == 0:
            save_file({key: value.contiguous() for key, value in network.items()}, fresh)


def _on_rank(
    ranks: Ranks,
    device: str,
    tell: Progress,
    tuner: TorchFinetuner,
    at: Path,
    shape: tuple[int, ...],
    taught: Taught,
    fresh: Path,
) -> None:
    tuner._device = torch.device(device)
    torch.set_num_threads(max(1, cpus() // ranks.size))
    pixels = np.memmap(at, np.uint8, "r", shape=shape)
    tuner._write(ranks, pixels, taught, tell, fresh)
