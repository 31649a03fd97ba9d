"""The loop: an image is served with a suggestion, somebody answers, the system learns and serves the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from strategies.cost import PAGE_SECONDS, Answer
from strategies.simulate.people import CostOf, Person

Labels = npt.NDArray[np.int64]


class System(Protocol):
    """What is simulated: it serves, suggests and learns. Rows number all images, held-out ones included."""

    def serve(self, annotator: int) -> int | None:
        """The row that this annotator sees next; None where nothing is left."""

    def suggestion(self, row: int) -> tuple[int, float]:
        """The class that is shown with the row, −1 for none, and its probability."""

    def answer(self, row: int, label: int | None, annotator: int) -> None:
        """Take an answer in (None: skipped), and whatever the product does after one."""

    def predict(self, rows: Labels) -> Labels:
        """The classes that would be suggested for these rows now; −1 for none."""

    def distance(self, row: int, other: int) -> float:
        """1 − cosine of two rows."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the project stands after some answers.

    ``held_out``: accuracy of suggestions on images that nobody labels · ``pool``: share of the pool with
    the right label, given or suggested · ``accepted``: share of answers since the last step that took the
    suggestion · ``chain``: mean length of runs of one class · ``pure``: share of images served after one of
    their own class.
    """

    labels: int
    seconds: float
    held_out: float
    pool: float
    accepted: float
    chain: float
    pure: float


def replay(
    system: System,
    truth: Labels,
    held_out: Labels,
    people: Sequence[Person],
    cost: CostOf,
    *,
    labels: int,
    every: int = 20,
    page_seconds: float = PAGE_SECONDS,
    until: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Answer up to ``labels`` images in turn and return a ``Step`` as a dict after each ``every`` of them.

    ``truth`` (n,) classes of all rows, ``held_out`` rows that are never served. Seconds are those of all
    people together, the page's own time included. Ends early where the pool's accuracy reaches ``until``.
    """
    rng = np.random.default_rng(seed)
    pool = np.setdiff1d(np.arange(len(truth)), held_out)
    given = np.full(len(truth), -1)
    last: dict[int, tuple[int, int]] = {}
    clock = [0.0] * len(people)
    steps: list[Step] = []
    hits = answers = runs = same = 0

    def look() -> Step:
        said = system.predict(np.arange(len(truth)))
        known = np.where(given >= 0, given, said)
        return Step(
            int((given >= 0).sum()),
            float(sum(clock)),
            float((said[held_out] == truth[held_out]).mean()) if len(held_out) else float("nan"),
            float((known[pool] == truth[pool]).mean()) if len(pool) else float("nan"),
            hits / max(answers, 1),
            (same + runs) / max(runs, 1),
            same / max(same + runs, 1),
        )

    for turn in range(labels):
        who = turn % len(people)
        row = system.serve(who)
        if row is None:
            break
        shown, probability = system.suggestion(row)
        label = people[who].answer(int(truth[row]), rng)
        before = last.get(who)
        switch = before is None or label is None or before[1] != label
        answer = Answer(
            "skip" if label is None else "accept" if shown == label else "correct",
            probability,
            system.distance(row, before[0]) if before else 0.0,
            switch,
            clock[who] / 60,
            who,
        )
        clock[who] += page_seconds + people[who].pace * cost(answer, rng)
        system.answer(row, label, who)
        answers, hits = answers + 1, hits + (answer.kind == "accept")
        if label is not None:
            given[row] = label
            runs, same = runs + switch, same + (not switch)
            last[who] = (row, label)
        progress(turn + 1, labels)
        if (turn + 1) % every == 0 or turn + 1 == labels:
            steps.append(look())
            hits = answers = 0
            if steps[-1].pool >= until:
                break
    if answers:
        steps.append(look())
    return [asdict(step) for step in steps]
