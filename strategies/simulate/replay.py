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


class Session:
    """People label: who is served what, what they answer, and what all of it has cost so far.

    ``truth`` (n,) classes of all rows. ``given`` (n,): the answers, -1 for none. ``seconds`` are those of all
    people together, the page's own time included.
    """

    def __init__(
        self,
        system: System,
        truth: Labels,
        people: Sequence[Person],
        cost: CostOf,
        *,
        page_seconds: float = PAGE_SECONDS,
        seed: int = 0,
    ) -> None:
        self.system, self.truth, self.people, self.cost = system, truth, people, cost
        self.page_seconds = page_seconds
        self.given = np.full(len(truth), -1)
        self.turns = self.answers = self.hits = self.same = self.runs = 0
        self._rng = np.random.default_rng(seed)
        self._last: dict[int, tuple[int, int]] = {}
        self._clock = [0.0] * len(people)

    @property
    def seconds(self) -> float:
        """Annotator seconds so far."""
        return float(sum(self._clock))

    def turn(self) -> bool:
        """The next person answers one image; False where nothing is left for them."""
        who = self.turns % len(self.people)
        row = self.system.serve(who)
        if row is None:
            return False
        shown, probability = self.system.suggestion(row)
        label = self.people[who].answer(int(self.truth[row]), self._rng)
        before = self._last.get(who)
        switch = before is None or label is None or before[1] != label
        answer = Answer(
            "skip" if label is None else "accept" if shown == label else "correct",
            probability,
            self.system.distance(row, before[0]) if before else 0.0,
            switch,
            self._clock[who] / 60,
            who,
        )
        self._clock[who] += self.page_seconds + self.people[who].pace * self.cost(answer, self._rng)
        self.system.answer(row, label, who)
        self.turns, self.answers = self.turns + 1, self.answers + 1
        self.hits += answer.kind == "accept"
        if label is not None:
            self.given[row] = label
            self.runs, self.same = self.runs + switch, self.same + (not switch)
            self._last[who] = (row, label)
        return True


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

    ``held_out``: rows that are never served. Ends early where the pool's accuracy reaches ``until``. See
    ``Session`` for the rest.
    """
    session = Session(system, truth, people, cost, page_seconds=page_seconds, seed=seed)
    pool = np.setdiff1d(np.arange(len(truth)), held_out)
    steps: list[Step] = []
    while session.turns < labels and session.turn():
        progress(session.turns, labels)
        if session.turns % every == 0 or session.turns == labels:
            steps.append(_look(session, pool, held_out))
            session.answers = session.hits = 0
            if steps[-1].pool >= until:
                break
    if session.answers:
        steps.append(_look(session, pool, held_out))
    return [asdict(step) for step in steps]


def _look(session: Session, pool: Labels, held_out: Labels) -> Step:
    truth, given = session.truth, session.given
    said = session.system.predict(np.arange(len(truth)))
    known = np.where(given >= 0, given, said)
    return Step(
        int((given >= 0).sum()),
        session.seconds,
        float((said[held_out] == truth[held_out]).mean()) if len(held_out) else float("nan"),
        float((known[pool] == truth[pool]).mean()) if len(pool) else float("nan"),
        session.hits / max(session.answers, 1),
        (session.same + session.runs) / max(session.runs, 1),
        session.same / max(session.same + session.runs, 1),
    )
