"""Walk from image to image so that one key confirms the next."""

from __future__ import annotations

from strategies.base import Chain, QueryStrategy, chain
from strategies.diversity import typical
from strategies.pool import Pool, Step

LINKS = 4
"""Images of the chain whose neighbours are looked at: the newest, then, at a boundary, earlier ones."""
LOOK = 6
"""Neighbours looked at of each of them."""
SURE = 0.5
"""Confidence below which a suggestion does not count as the chain's own label."""
FEWEST, MOST = 16, 32
"""Best ranked items that ``grouped`` chooses from: at least, and at most."""
LABELS_PER_ITEM = 8
"""One item for so many labels: a batch must be small beside what is known, or the first labels lack variety
(32 items: 1 % fewer right after 100 labels of MNIST); later more of them save 3 to 6 % of people's time."""


@chain("cluster_chain", start=typical, needs=("vectors", "regions"))
def cluster_chain(pool: Pool, step: Step) -> int | None:
    """Show the nearest open image that would get the same label, so that one key confirms it.

    Where the neighbours of the newest images look like something else the chain is at its boundary and
    ends; the next one starts at the most typical image of a region with the fewest labels. Good where every
    image shall be confirmed by a person: most take one key. At most 24 neighbours are looked at per step.
    """
    answer = int(pool.answers[step.row])
    links = [row for row in (step.row, *step.history) if pool.answers[row] >= 0]
    seen: set[int] = set()
    for link in links[:LINKS]:
        target = answer if answer >= 0 else int(pool.answers[link])
        for candidate in pool.neighbours(link, LOOK).tolist():
            if candidate in seen:
                continue
            seen.add(candidate)
            guessed, confidence = step.guess(candidate)
            if guessed == target and confidence >= SURE:
                return int(candidate)
    return None


def grouped(strategy: QueryStrategy) -> Chain:
    """Ask for the best items of a strategy class by class, as they are suggested.

    The next image is the best ranked one that is suggested as what was just answered, else the best of all.
    Between two rounds of training the order within a batch teaches nothing, but people are published to be
    four times as fast where the class stays (``strategies.cost``). A batch are the best 16, from 128 labels
    on an eighth as many as there are labels, up to 32; that many guesses at most per step.
    """

    def step(pool: Pool, step: Step) -> int | None:
        answer = int(pool.answers[step.row])
        if answer < 0:
            return None
        among = min(max(int(pool.labelled.sum()) // LABELS_PER_ITEM, FEWEST), MOST)
        best = [row for row in step.ranked if pool.available[row]][:among]
        return next((row for row in best if step.guess(row)[0] == answer), None)

    return Chain(
        strategy.name, strategy.needs, step, strategy, strategy.uses, strategy.asks, strategy.summary
    )
