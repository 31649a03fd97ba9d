"""A person at the keyboard, with Rush and with Label Studio alone, in one run.

python bench/browser.py [--images 100] [--label-studio .cache/label-studio]

Real Chromium answers handwritten digits by key presses alone, ten images here and ten there in turn, so that
both meet the same load. Without think time: these are the seconds that software costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles, report
from stack import EMAIL, PASSWORD, Stack, label_config, stack

from ml_backend.adapters.files.digits import write_digits
from ml_backend.operations.projects import connect, import_images

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import Annotator, annotator

TURN = 10


@dataclass
class Side:
    """One project under test, and what was measured in it."""

    person: Annotator
    truth: dict[int, str]
    shown: str = ""
    seconds: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    accepted: int = 0
    hits: int = 0


def answer(side: Side, studio: Stack, project: int, rush: bool) -> None:
    """Label the image that is shown: press its class where it is not preselected, then the accept key."""
    began = time.perf_counter()
    label = side.truth[side.person.served[-1]]
    if side.person.suggestion() == label:
        side.accepted += 1
    else:
        side.person.press(label)
    pressed = time.perf_counter()
    side.person.press("Space")
    side.shown = side.person.wait_for_image(side.shown)
    side.seconds.append(time.perf_counter() - pressed)
    side.rounds.append(time.perf_counter() - began)
    if rush:
        side.hits += side.person.served[-1] in studio.status(project)["next"].values()


def figures(side: Side, rush: bool) -> dict[str, Any]:
    """What one side came to."""
    found: dict[str, Any] = {
        "key_to_next_image_ms": percentiles(side.seconds),
        "images_per_minute": round(60 / float(np.mean(side.rounds)), 1),
    }
    if rush:
        n = len(side.seconds)
        found |= {"accepted_with_one_key": side.accepted / n, "hit_rate": side.hits / n}
    return found


def main() -> None:
    """Label with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--label-studio", type=Path, default=Path(".cache/label-studio"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = label_config([str(n) for n in range(10)])
    with (
        tempfile.TemporaryDirectory(prefix="rush-bench-") as folder,
        stack(Path(folder), options.label_studio) as studio,
    ):
        images = studio.studio.files_root / "digits"
        write_digits(images)
        mine = connect(studio.parts, title="With Rush", label_config=config)
        import_images(studio.parts, mine, images)
        studio.wait(mine, embedded=1797, window=150)
        plain = studio.call("POST", "/api/projects", json={"title": "Alone", "label_config": config})["id"]
        studio.parts.sink.ensure_storage(plain, images)
        rows = [
            {"data": task["data"]}
            for task in studio.call(
                "GET", f"/api/projects/{mine}/export?exportType=JSON&download_all_tasks=true"
            )
        ]
        studio.call("POST", f"/api/projects/{plain}/import", json=rows)
        sides: dict[int, Side] = {}
        with annotator(studio.studio.url, EMAIL, PASSWORD) as person:
            second = Annotator(person.page.context.new_page(), person.url)
            for project, who in ((mine, person), (plain, second)):
                who.page.bring_to_front()
                who.open(project)
                export = studio.call(
                    "GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true"
                )
                truth = {task["id"]: Path(task["data"]["image"]).parent.name for task in export}
                sides[project] = Side(who, truth, who.image())
            for done in range(0, options.images, TURN):
                for project, side in sides.items():
                    side.person.page.bring_to_front()
                    for _ in range(min(TURN, options.images - done)):
                        answer(side, studio, project, project == mine)
        rush, alone = figures(sides[mine], True), figures(sides[plain], False)
        ratio = rush["key_to_next_image_ms"]["p50"] / alone["key_to_next_image_ms"]["p50"]
        report(
            "browser",
            {
                "images": options.images,
                "with_rush": rush,
                "label_studio_alone": alone,
                "ratio_p50": round(ratio, 3),
            },
            options.out,
        )


if __name__ == "__main__":
    main()
