"""Two processes that fine-tune one network together, on the CPU with gloo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ml_backend.adapters.files.digits import write_digits
from ml_backend.adapters.models.finetuner import TorchFinetuner
from ml_backend.adapters.models.ranks import Ranks, together
from ml_backend.domain.errors import NotReady

pytestmark = pytest.mark.slow


def steps(ranks: Ranks, device: str, tell: Any, folder: Path) -> None:
    """Three steps of a line through data that differs by rank."""
    torch.manual_seed(ranks.rank)  # other weights on each, until they are made alike
    line = nn.Linear(3, 1)
    ranks.alike(line)
    optimiser = torch.optim.SGD(line.parameters(), lr=0.1)
    data = np.random.default_rng(ranks.rank).standard_normal((8, 3)).astype(np.float32)
    for _ in range(3):
        optimiser.zero_grad()
        line(torch.from_numpy(data)).square().mean().backward()
        ranks.average(line.parameters())
        optimiser.step()
    tell(3, 3)
    agreed = ranks.agree(float(ranks.rank + 5), torch.device(device))
    np.savez(folder / f"{ranks.rank}.npz", weight=line.weight.detach().numpy(), data=data, agreed=agreed)


def test_gradients_are_the_mean_of_both_ranks_batches(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    together(2, steps, (tmp_path,), lambda done, total: told.append((done, total)))
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    assert not np.array_equal(first["data"], second["data"])
    assert np.allclose(first["weight"], second["weight"], atol=1e-6)
    assert first["agreed"] == second["agreed"] == 5.0
    assert told == [(3, 3)]
    torch.manual_seed(0)
    alone = nn.Linear(3, 1)  # the same steps in one process on both batches at once
    optimiser = torch.optim.SGD(alone.parameters(), lr=0.1)
    data = torch.from_numpy(np.concatenate([first["data"], second["data"]]))
    for _ in range(3):
        optimiser.zero_grad()
        alone(data).square().mean().backward()
        optimiser.step()
    assert np.allclose(alone.weight.detach().numpy(), first["weight"], atol=1e-5)


def dying(ranks: Ranks, device: str, tell: Any) -> None:
    if ranks.rank == 1:
        os._exit(7)
    ranks.agree(0.0, torch.device(device))


def test_a_rank_that_dies_ends_the_work_with_a_readable_error() -> None:
    with pytest.raises(NotReady, match="One of 2 processes of the fine-tuning died"):
        together(2, dying, (), lambda done, total: None)


def test_two_processes_fine_tune_a_backbone(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    files = sorted((tmp_path / "digits").rglob("*.png"), key=lambda path: path.name)[:40]
    keys = [path.stem for path in files]
    targets = np.array([int(path.parent.name) for path in files])
    validation = np.arange(40) % 5 == 0
    tuner = TorchFinetuner("efficientnet-lite0", 64, "cpu", tmp_path / "networks", looks=1, processes=2)
    told: list[tuple[int, int]] = []
    images = ((path.stem, path.read_bytes()) for path in files)
    tuner.tune(
        keys,
        images,
        targets,
        validation,
        multiple=False,
        progress=lambda done, total: told.append((done, total)),
    )
    (weights,) = (tmp_path / "networks").glob("*.safetensors")
    assert all(torch.isfinite(value).all() for value in load_file(weights).values())
    assert told
    assert told[-1][0] == told[-1][1]
