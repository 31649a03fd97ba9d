"""The device that torch works on."""

from __future__ import annotations

import torch

from ml_backend.domain.errors import BadRequest, NotReady


def torch_device(name: str) -> torch.device:
    """Return the GPU for auto where there is one; BadRequest for another name than auto, cpu or cuda.

    NotReady where cuda is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise BadRequest(f"There is no device {name!r}.", "Set RUSH_DEVICE to auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise NotReady(
            f"RUSH_DEVICE=cuda, but torch {torch.__version__} finds no GPU.",
            "Set RUSH_DEVICE=cpu, or install the driver and a torch built for it.",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
