"""Simulations: people of numbers, figures, and the product's own loop on real digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits

import strategies
from ml_backend.cli.main import main
from ml_backend.domain.simulated_run import Options
from ml_backend.simulation.project import MemoryProject
from ml_backend.simulation.runner import on_processes, simulate, simulate_run
from strategies import StrategyError
from strategies.cost import Answer, CostModel
from strategies.simulate import Person, constant, learnt, published, replay, summarise
from strategies.simulate.people import noisy
from strategies.simulate.report import area_under

RNG = np.random.default_rng(0)
IMAGES = 500


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels as features: nothing to embed."""
    found = load_digits()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, features=found.data[:IMAGES].astype(np.float16), labels=found.target[:IMAGES])
    return path


class Parrot:
    """A system that serves rows in order and suggests what was answered last."""

    def __init__(self, rows: list[int]) -> None:
        self.rows, self.said, self.asked = list(rows), -1, list[int]()

    def serve(self, annotator: int) -> int | None:
        return self.rows[0] if self.rows else None

    def suggestion(self, row: int) -> tuple[int, float]:
        return self.said, 0.5

    def answer(self, row: int, label: int | None, annotator: int) -> None:
        self.asked.append(self.rows.pop(0))
        self.said = self.said if label is None else label

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), self.said)

    def distance(self, row: int, other: int) -> float:
        return 0.0


def test_seconds_are_the_page_s_and_the_person_s() -> None:
    truth = np.array([0, 0, 0, 1, 1, 9])
    steps = replay(
        Parrot([0, 1, 2, 3, 4]),
        truth,
        np.array([5]),
        [Person()],
        published,
        labels=5,
        every=1,
        page_seconds=1.0,
        until=2.0,
    )
    # first: nothing suggested; two confirmed; a switch; one confirmed
    seconds = np.diff([0, *(step["seconds"] for step in steps)])
    assert seconds.tolist() == pytest.approx([3.5, 1.6, 1.6, 3.5, 1.6])
    assert [step["accepted"] for step in steps] == [0, 1, 1, 0, 1]
    assert steps[-1]["pool"] == 1
    assert steps[-1]["held_out"] == 0
    assert steps[-1]["chain"] == 2.5
    assert steps[-1]["pure"] == 0.6


def test_a_replay_ends_where_the_pool_is_right_enough() -> None:
    truth = np.zeros(10, np.int64)
    steps = replay(
        Parrot(list(range(10))),
        truth,
        np.array([], np.int64),
        [Person()],
        constant(1),
        labels=10,
        every=2,
        until=0.9,
    )
    assert [step["labels"] for step in steps] == [2]


def test_people_err_skip_and_differ_in_pace() -> None:
    wrong = [Person(noisy(4, 0.3)).answer(2, RNG) for _ in range(3000)]
    assert np.mean(np.array(wrong) != 2) == pytest.approx(0.3, abs=0.03)
    assert {0, 1, 3} <= set(wrong)
    skips = [Person(dont_know=0.2).answer(1, RNG) is None for _ in range(3000)]
    assert np.mean(skips) == pytest.approx(0.2, abs=0.03)
    slow = replay(
        Parrot([0, 1]), np.array([0, 0]), np.array([], np.int64), [Person(pace=3)], constant(1), labels=2,
        page_seconds=0,
    )  # fmt: skip
    assert slow[-1]["seconds"] == 6
    with pytest.raises(StrategyError, match=r"wrong in 1\.5 of answers"):
        noisy(3, 1.5)


def test_seconds_drawn_from_a_model_are_those_that_it_expects() -> None:
    model, answer = CostModel(), Answer("correct")
    drawn = [learnt(model)(answer, RNG) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(model.predict(answer).mean, rel=0.1)
    assert np.mean(np.array(drawn) < model.predict(answer).low) == pytest.approx(0.1, abs=0.02)


def test_simulated_people_are_those_whose_answers_were_learnt() -> None:
    answers = [Answer("accept", annotator=7)] * 300 + [Answer("accept", annotator=9)] * 300
    model = CostModel().fit(answers, [1.0] * 300 + [3.0] * 300)
    for person, seconds in ((0, 1.0), (1, 3.0), (2, 1.0)):
        drawn = [learnt(model)(Answer("accept", annotator=person), RNG) for _ in range(300)]
        assert np.median(drawn) == pytest.approx(seconds, rel=0.1)


def run(strategy: str, seed: int, accuracy: list[float]) -> dict[str, Any]:
    keys = {"labels": 0, "pool": 0.5, "accepted": 0.5, "chain": 1.0, "pure": 0.0}
    steps = [{**keys, "seconds": 10.0 * (n + 1), "held_out": value} for n, value in enumerate(accuracy)]
    return {"data": "d", "strategy": strategy, "seed": seed, "steps": steps}


def test_strategies_are_compared_over_the_same_seconds() -> None:
    assert area_under(run("a", 0, [1.0, 1.0])["steps"], 20) == pytest.approx(0.75)
    assert area_under(run("a", 0, [1.0, 1.0])["steps"], 10) == pytest.approx(0.5)
    rows = summarise([run("a", 0, [0.4, 0.4]), run("a", 1, [0.8, 0.8]), run("b", 0, [0.9])])
    assert [row.strategy for row in rows] == ["b", "a"]
    a = rows[1]
    assert (a.seeds, a.held_out) == (2, pytest.approx(0.6))
    assert a.held_out_ci == pytest.approx(12.706 * 0.2828 / np.sqrt(2), rel=0.01)
    assert np.isnan(rows[0].held_out_ci)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", strategies.names())
def test_the_product_s_own_loop_learns_under_every_strategy(digits: Path, strategy: str) -> None:
    steps = simulate_run(digits, strategy, 0, Options(labels=60))["steps"]
    assert [step["labels"] for step in steps] == [20, 40, 60]
    assert steps[-1]["seconds"] > steps[0]["seconds"] > 0
    assert steps[-1]["pool"] > 0.15


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(digits: Path) -> None:
    first, second = (simulate_run(digits, "margin", 3, Options(labels=40)) for _ in range(2))
    assert first == second


def test_held_out_images_are_never_served_and_teach_nothing(digits: Path) -> None:
    with np.load(digits) as found:
        features = found["features"]
    held_out = np.arange(0, IMAGES, 2)
    project = MemoryProject(features, list("0123456789"), held_out, "random", Options())
    served = set()
    for _ in range(100):
        row = project.serve(0)
        assert row is not None
        served.add(row)
        project.answer(row, 1, 0)
    assert not served & set(held_out.tolist())
    assert len(served) == 100


@pytest.mark.slow
def test_several_people_are_never_served_the_same_image(digits: Path) -> None:
    options = Options(labels=90, people=3, dont_know=0.1, error=0.1)
    steps = simulate_run(digits, "cluster_chain", 0, options)["steps"]
    assert 70 <= steps[-1]["labels"] < 90


@pytest.mark.slow
def test_runs_that_are_there_are_not_repeated(digits: Path, tmp_path: Path) -> None:
    options = Options(labels=40)
    made = simulate([digits], ["margin"], 1, options, tmp_path, on_processes(2), lambda *_: None)
    assert {row["strategy"] for row in made} == {"margin", "random"}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    told: list[tuple[str, int, int]] = []
    again = simulate(
        [digits], ["margin"], 1, options, tmp_path, on_processes(2), lambda *given: told.append(given)
    )
    assert again == made
    assert told == [("Runs", 2, 2)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == kept
    with pytest.raises(StrategyError, match="no strategy"):
        simulate([digits], ["nonsense"], 1, options, tmp_path, on_processes(1), lambda *_: None)


@pytest.mark.slow
def test_the_command_writes_a_table_and_pictures(digits: Path, tmp_path: Path) -> None:
    arguments = [
        "simulate",
        "--data",
        str(digits),
        "--strategy",
        "mix(margin:0.5,random:0.5)",
        "--labels",
        "40",
    ]
    result = CliRunner().invoke(
        main, [*arguments, "--seeds", "2", "--processes", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "| digits | mix(margin:0.5,random:0.5) | 40 |" in result.output
    assert "| digits | random | 40 |" in result.output
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 4
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert (tmp_path / "summary.csv").read_text().count("\n") == 3
