"""One contract for every registered strategy."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from strategies import Chain, Pool, Scores, Step, StrategyError, UnknownStrategy, acquisition, registry

NAMES = sorted(registry.BUILT_IN)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Pools of every kind: empty, all labelled, one class, constant or duplicated embeddings."""
    n = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["random", "constant", "duplicates"]))
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    if kind == "constant":
        vectors[:] = 1
    elif kind == "duplicates":
        vectors = vectors[rng.integers(0, max(n // 3, 1), n)] if n else vectors
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    labelled = rng.random(n) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    classes = draw(st.integers(1, 4))
    probabilities = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    regions = draw(st.integers(1, 5))
    return Pool(
        vectors=vectors if draw(st.booleans()) else None,
        available=~labelled & (rng.random(n) < 0.9),
        labelled=labelled,
        answers=np.where(labelled, rng.integers(0, classes, n), -1),
        probabilities=probabilities if draw(st.booleans()) else None,
        clusters=rng.integers(0, regions, n).astype(np.int32) if (mapped := draw(st.booleans())) else None,
        density=rng.random(n).astype(np.float32) if mapped else None,
    )


@pytest.mark.parametrize("name", NAMES)
@given(pool=pools(), k=st.integers(0, 50), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_strategy_orders_available_rows_once_and_reproducibly(
    name: str, pool: Pool, k: int, seed: int
) -> None:
    found = strategies.select(name, pool, k, seed)
    rows = found.rows
    assert len(rows) == min(k, int(pool.available.sum()))
    assert len(set(rows.tolist())) == len(rows)
    assert pool.available[rows].all()
    assert (strategies.select(name, pool, k, seed).rows == rows).all()
    missing = pool.missing(strategies.get(name).needs)
    assert (found.fallback is not None) == bool(missing)
    assert all(signal in (found.fallback or "") for signal in missing)


@given(pool=pools(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_chain_is_followed_to_an_available_row_of_the_same_answer_or_ends(
    pool: Pool, data: st.DataObject
) -> None:
    chain = strategies.get("cluster_chain")
    if not len(pool) or pool.missing(chain.needs):
        return
    row = data.draw(st.integers(0, len(pool) - 1))
    history = data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=5))
    answer = data.draw(st.integers(0, 2))
    following = chain.follow(pool, Step(row, history, lambda candidate: (answer, 0.9)))
    if following is not None:
        assert pool.available[following]
        assert answer in pool.answers[[row, *history]]
    assert chain.follow(pool, Step(row, history, lambda candidate: (answer, 0.1))) is None


@given(pool=pools(), k=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_diversity_is_at_every_step_the_farthest_item(pool: Pool, k: int) -> None:
    if pool.vectors is None:
        return
    rows = strategies.select("diversity", pool, k).rows
    known = np.flatnonzero(pool.labelled).tolist()
    for n, row in enumerate(rows.tolist()):
        rest = [r for r in np.flatnonzero(pool.available) if r not in rows[:n]]
        if known:
            nearest = {r: (pool.vectors[known] @ pool.vectors[r]).max() for r in rest}
            assert nearest[row] == pytest.approx(min(nearest.values()), abs=1e-5)
        known.append(row)


@given(pool=pools())
@settings(max_examples=60, deadline=None)
def test_a_cold_start_shows_every_region_once_before_any_twice(pool: Pool) -> None:
    if pool.clusters is None or pool.labelled.any():
        return
    order = strategies.select("cluster_chain", pool, len(pool)).rows if pool.vectors is not None else []
    regions = set(pool.clusters[pool.available].tolist())
    first = pool.clusters[order[: len(regions)]].tolist() if len(order) else []
    assert not len(order) or set(first) == regions


def test_scores_that_are_not_numbers_are_refused() -> None:
    @acquisition("broken")
    def broken(pool: Pool) -> Scores:
        """Give nothing but NaN."""
        return np.full(len(pool), np.nan)

    with pytest.raises(StrategyError, match="NaN"):
        broken.order(plain(3), 2, np.random.default_rng(0))


@pytest.mark.parametrize("rows", [[0, 0], [2]])
def test_a_batch_that_repeats_or_takes_what_is_not_available_is_refused(rows: list[int]) -> None:
    bad = strategies.batch("bad")(lambda pool, k, rng: np.array(rows))
    with pytest.raises(StrategyError, match="bad"):
        bad.order(plain(3, closed=2), 2, np.random.default_rng(0))


def test_a_chain_that_follows_to_what_is_not_available_is_refused() -> None:
    bad = Chain("bad", (), lambda pool, step: 2, strategies.get("random"))
    with pytest.raises(StrategyError, match="row 2"):
        bad.follow(plain(3, closed=2), Step(0, [], lambda row: (0, 1.0)))


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UnknownStrategy, match="Did you mean 'margin'"):
        strategies.get("margni")


def plain(n: int, closed: int | None = None) -> Pool:
    available = np.ones(n, bool)
    if closed is not None:
        available[closed] = False
    return Pool(None, available, np.zeros(n, bool), np.full(n, -1))


@acquisition("last")
def last(pool: Pool) -> Scores:
    """Ask about the newest item first."""
    return np.arange(len(pool))


def test_a_third_party_strategy_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("last", f"{__name__}:last", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.GROUP else [])
    assert "last" in strategies.names()
    assert strategies.select("last", plain(4), 2).rows.tolist() == [3, 2]
    assert strategies.get("last").summary == "Ask about the newest item first."
