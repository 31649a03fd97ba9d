"""A newcomer at the keyboard: real Chromium, key presses alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_backend.operations.projects import choose_strategy, connect, import_images
from ml_backend.services.connecting.hotkeys import KEY, set_accept_key
from tests.browser import annotator
from tests.conftest import EMAIL, PASSWORD
from tests.product import Product, label_config

pytestmark = pytest.mark.browser


def test_one_key_accepts_and_the_intended_image_comes(product: Product, digits: Path) -> None:
    number = connect(product.container, title="By keyboard", label_config=label_config())
    set_accept_key(product.studio)  # other tests share this user, and a key of the user's own is kept
    import_images(product.container, number, digits)
    choose_strategy(product.container, number, "cluster_chain")
    product.wait(number, strategy="cluster_chain", tasks=200, embedded=200, window=30)
    truth = product.classes(number)
    accepted = 0
    with annotator(product.server.url, EMAIL, PASSWORD) as person:
        person.open(number)
        shown, task = person.image(), person.served[-1]
        for answer in range(15):
            suggestion = person.suggestion()
            accepted += suggestion == truth[task]
            if suggestion != truth[task]:
                person.press(truth[task])
            person.press(KEY.capitalize())
            shown = person.wait_for_image(shown)
            assert product.status(number)["labelled"] == answer + 1
            task = person.served[-1]
            assert task in product.intended(number)
    assert accepted >= 5
    answers = product.answers(number)
    assert len(answers) == 15
    assert answers == {task: (truth[task],) for task in answers}, "what was pressed is what is stored"
