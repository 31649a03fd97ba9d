from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.local_rush import LocalRush
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.bootstrap import Container
from tests.ports import free_port
from tests.product import Product, product_settings


@pytest.fixture(scope="session")
def product(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    settings = product_settings(label_studio, tmp_path_factory.mktemp("rush"), port=free_port())
    with LocalRush(settings, print) as rush:
        container = Container(settings.model_copy(update={"redis_url": rush.redis_url}))
        studio = HttpLabelStudio(label_studio.url, label_studio.token)
        yield Product(label_studio, rush, container, studio)
        studio.close()
        container.close()


@pytest.fixture(scope="session")
def digits(label_studio: LocalLabelStudio) -> Path:
    """200 handwritten digits as CLASS/NNN.png below the folder that Label Studio serves."""
    data, folder = load_digits(), label_studio.files_root / "digits"
    for number in range(200):
        path = folder / str(data.target[number]) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (255 - data.images[number] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(path)
    return folder
