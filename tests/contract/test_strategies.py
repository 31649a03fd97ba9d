"""One contract for every registered strategy."""

from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from strategies import (
    Acquisition,
    Chain,
    Pool,
    Scores,
    Step,
    StrategyError,
    UnknownStrategy,
    acquisition,
    registry,
)

NAMES = sorted(registry.BUILT_IN)
FORMS = [
    "band(0.2, 0.9)",
    "certain(0.3)",
    "information_density(2)",
    "max_probability(0)",
    "mix(cluster_chain:0.8,random:0.2)",
    "mix(band(0.1,0.9):1,minority:2)",
]
PARTIAL = ("band", "certain", "mislabel", "mix(band")
"""Strategies that don't ask about some of the available items."""


def arrays(pool: Pool) -> dict[str, Any]:
    found = {name: getattr(pool, name) for name in Pool.__dataclass_fields__}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


@st.composite
def pools(draw: st.DrawFn, *, full: bool = False) -> Pool:
    """Pools of every kind: empty, all labelled, one class, constant or duplicated embeddings.

    Arrays are read-only; what is not available is NaN in the probabilities. ``full``: every signal is there.
    """
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
    classes = draw(st.sampled_from([1, 2, 3, 4, 60]))
    probabilities = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    available = ~labelled & (rng.random(n) < 0.9)
    probabilities[~available & ~labelled] = np.nan
    regions = draw(st.integers(1, 5))
    mapped = full or draw(st.booleans())
    answers = np.where(labelled, rng.integers(0, classes, n), -1)
    pool = Pool(
        vectors=vectors if full or draw(st.booleans()) else None,
        available=available,
        labelled=labelled,
        answers=answers,
        probabilities=probabilities if full or draw(st.booleans()) else None,
        clusters=rng.integers(0, regions, n).astype(np.int32) if mapped else None,
        density=rng.random(n).astype(np.float32) if mapped else None,
        head=rng.standard_normal((n, 5)).astype(np.float32) if draw(st.booleans()) else None,
        seconds=rng.random(n).astype(np.float32) + 0.1 if draw(st.booleans()) else None,
        agreed=np.where(labelled, rng.random(n), np.nan).astype(np.float32) if draw(st.booleans()) else None,
        classes=tuple(f"class {c}" for c in range(classes)) if draw(st.booleans()) else None,
    )
    for array in arrays(pool).values():
        array.flags.writeable = False
    return pool


def asked(name: str, pool: Pool) -> Pool:
    """The pool with the rows available that the strategy asks about."""
    if strategies.get(name).asks == "labelled":
        return replace(pool, available=pool.labelled)
    return pool


@pytest.mark.parametrize("name", NAMES + FORMS)
@given(pool=pools(), k=st.integers(0, 50), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_every_strategy_orders_available_rows_once_and_reproducibly(
    name: str, pool: Pool, k: int, seed: int
) -> None:
    pool = asked(name, pool)
    before = {key: array.copy() for key, array in arrays(pool).items()}
    found = strategies.select(name, pool, k, seed)
    rows = found.rows
    missing = pool.missing(strategies.get(name).needs)
    assert rows.dtype == np.int64
    assert len(rows) <= min(k, int(pool.available.sum()))
    assert len(rows) == min(k, int(pool.available.sum())) or (not missing and name.startswith(PARTIAL))
    assert len(set(rows.tolist())) == len(rows)
    assert pool.available[rows].all()
    assert (strategies.select(name, pool, k, seed).rows == rows).all()
    assert (found.fallback is not None) == bool(missing)
    assert all(signal in (found.fallback or "") for signal in missing)
    for key, array in arrays(pool).items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("name", NAMES + FORMS)
@given(pool=pools(full=True), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_the_row_of_an_item_says_nothing_about_its_score(name: str, pool: Pool, seed: int) -> None:
    strategy = strategies.get(name)
    pool = asked(name, pool)
    if not isinstance(strategy, Acquisition) or not pool.available.any():
        return
    order = np.random.default_rng(seed).permutation(len(pool))
    moved = replace(pool, **{key: array[order] for key, array in arrays(pool).items()})
    there = moved.available
    np.testing.assert_allclose(
        strategy.score(moved)[there], strategy.score(pool)[order][there], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_without_what_a_strategy_needs_is_refused_with_the_signal_s_name(name: str) -> None:
    strategy = strategies.get(name)
    if strategy.needs:
        with pytest.raises(StrategyError, match=f"{name}.* needs .*{strategy.needs[0]}"):
            strategy.order(plain(3), 2, np.random.default_rng(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", ["vectors", "probabilities", "density", "head", "seconds"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused_or_not_read(name: str, broken: str, value: float) -> None:
    rng = np.random.default_rng(0)
    pool = asked(name, complete(30))
    wrong = getattr(pool, broken).copy()
    wrong[np.flatnonzero(pool.available)[0]] = value
    strategy = strategies.get(name)
    try:
        rows = strategy.order(replace(pool, **{broken: wrong}), 5, rng)
    except StrategyError as error:
        assert broken in str(error)  # noqa: PT017
    else:
        assert rows.tolist() == strategy.order(pool, 5, np.random.default_rng(0)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_than_no_rows_are_refused_and_no_rows_are_none(name: str) -> None:
    strategy, pool = strategies.get(name), asked(name, complete(9))
    assert strategy.order(pool, 0, np.random.default_rng(0)).tolist() == []
    with pytest.raises(StrategyError, match="k must be 0 or more, not -1"):
        strategy.order(pool, -1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labelled", np.zeros(2, bool)),
        ("answers", np.zeros((3, 1), int)),
        ("vectors", np.zeros(3, np.float32)),
        ("probabilities", np.zeros((2, 4), np.float32)),
        ("probabilities", np.zeros((3, 0), np.float32)),
        ("clusters", np.zeros(4, np.int32)),
        ("labelled", np.zeros(3, int)),
        ("answers", np.zeros(3)),
        ("vectors", np.zeros((3, 2), int)),
    ],
)
def test_a_pool_of_the_wrong_shape_or_type_is_refused(field: str, value: Any) -> None:
    with pytest.raises(StrategyError, match=field):
        replace(plain(3), **{field: value})


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(strategies.get(name), Acquisition)])
@given(copies=st.integers(2, 60), k=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_copies_of_one_image_never_fill_the_top(name: str, copies: int, k: int, seed: int) -> None:
    pool = asked(name, complete(80, seed))
    best = int(strategies.select(name, pool, 1).rows[0]) if len(strategies.select(name, pool, 1).rows) else 0
    at = np.arange(80) < copies
    at[best] = True
    same = {
        key: np.where(at if array.ndim == 1 else at[:, None], array[best], array)
        for key, array in arrays(pool).items()
    }
    rows = strategies.select(name, replace(pool, **same), k).rows
    unlike = (pool.available & ~at).sum()
    if not name.startswith(PARTIAL):
        assert at[rows[: 1 + unlike]].sum() <= 1 or k == 1


@given(pool=pools(), data=st.data())
@settings(max_examples=100)
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
@settings(max_examples=60)
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
@settings(max_examples=60)
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


def complete(n: int, seed: int = 0) -> Pool:
    """A pool with every signal, a third of it labelled."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    labelled = np.arange(n) % 3 == 0
    return Pool(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        available=~labelled,
        labelled=labelled,
        answers=np.where(labelled, rng.integers(0, 4, n), -1),
        probabilities=rng.dirichlet(np.ones(4), n).astype(np.float32),
        clusters=rng.integers(0, 3, n).astype(np.int32),
        density=rng.random(n).astype(np.float32),
        head=rng.standard_normal((n, 5)).astype(np.float32),
        seconds=rng.random(n).astype(np.float32) + 0.5,
        agreed=np.where(labelled, 0.5, np.nan).astype(np.float32),
    )


@acquisition("last")
def last(pool: Pool) -> Scores:
    """Ask about the newest item first."""
    return np.arange(len(pool))


def test_a_third_party_strategy_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("last", f"{__name__}:last", registry.GROUP)
    monkeypatch.setattr(registry, "_installed", lambda: {"last": entry})
    assert "last" in strategies.names()
    assert strategies.select("last", plain(4), 2).rows.tolist() == [3, 2]
    assert strategies.get("last").summary == "Ask about the newest item first."


def not_a_strategy(pool: Pool) -> Scores:
    """Lack the decorator."""
    return np.zeros(len(pool))


@pytest.mark.parametrize(("value", "said"), [("not_a_strategy", "has no name, "), ("nothing", "loaded")])
def test_a_broken_third_party_strategy_says_why_and_hides_no_other(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = EntryPoint("broken", f"{__name__}:{value}", registry.GROUP)
    monkeypatch.setattr(registry, "_installed", lambda: {"broken": entry})
    with pytest.raises(UnknownStrategy, match=said):
        strategies.get("broken")
    assert "installed" not in strategies.families()
    assert said in caplog.text


def test_a_signal_that_does_not_exist_is_refused_where_it_is_declared() -> None:
    with pytest.raises(StrategyError, match="no signal 'probability'"):
        acquisition("wrong", needs="probability")(lambda pool: np.zeros(len(pool)))  # type: ignore[arg-type]
