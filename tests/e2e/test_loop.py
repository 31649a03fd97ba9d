"""The product's promises, on the real thing: Label Studio, Redis, RQ workers, the embedded Qdrant engine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import strategies
from ml_backend.cli.simulate import simulate
from ml_backend.domain.events import StrategyChosen, Synced
from ml_backend.operations.projects import choose_strategy, connect, doctor, import_images
from tests.product import Product, label_config


@pytest.fixture(scope="module")
def project(product: Product, digits: Path) -> int:
    """A connected project of 200 digits, imported by Rush."""
    number = connect(product.container, title="Digits", label_config=label_config())
    report = import_images(product.container, number, digits)
    assert (report.imported, report.skipped) == (200, [])
    product.wait(number, tasks=200, embedded=200, window=30)
    choose_strategy(product.container, number, "cluster_chain")
    product.wait(number, strategy="cluster_chain")
    return number


def truth(task: dict[str, object]) -> str:
    data = task["data"]
    assert isinstance(data, dict)
    return Path(str(data["image"])).parent.name


def suggested(task: dict[str, object]) -> list[str]:
    predictions = task["predictions"]
    assert isinstance(predictions, list)
    return [label for row in predictions for region in row["result"] for label in region["value"]["choices"]]


def test_every_answer_is_followed_by_the_image_that_rush_decided_on(product: Product, project: int) -> None:
    task = product.serve(project)
    accepted, hits = 0, 0
    for number in range(60):
        label = truth(task)
        accepted += suggested(task) == [label]
        product.submit(project, task["id"], label)
        intended = product.intended(project)
        task = product.serve(project)
        hits += task["id"] in intended
        assert len(suggested(task)) == 1, f"no suggestion at answer {number}"
    assert hits == 60
    assert accepted >= 30, "one key should confirm most images of a chain"


def test_labels_train_a_generation_and_the_map_is_written_back(product: Product, project: int) -> None:
    status = product.wait(project, generation=1)
    assert status["labelled"] >= 60
    end = time.monotonic() + 120
    while True:
        task = product.studio.call("GET", f"/api/projects/{project}/next")
        rush = task["meta"].get("rush", {})
        if rush.get("generation", -1) >= 1 or time.monotonic() > end:
            break
        time.sleep(1)
    assert set(rush) == {"x", "y", "cluster", "generation", "key"}
    assert rush["generation"] >= 1
    assert 0 <= rush["x"] <= 1
    assert 0 <= rush["y"] <= 1


@pytest.mark.parametrize("name", [members[0].name for members in strategies.families().values()])
def test_strategies_are_switched_while_people_label(product: Product, project: int, name: str) -> None:
    ref = product.container.ref(project)
    product.container.state.set_options(ref, strategy=name)
    product.container.state.publish(ref, StrategyChosen())
    product.wait(project, strategy=name)
    task = product.serve(project)
    for _ in range(5):
        product.submit(project, task["id"], truth(task))
        intended = product.intended(project)
        task = product.serve(project)
        assert task["id"] in intended


def test_skip_delete_and_undo_move_the_queue(product: Product, project: int) -> None:
    before = product.wait(project, tasks=200)
    task = product.serve(project)
    skip = product.submit(project, task["id"], was_cancelled=True)
    assert product.status(project)["skipped"] == before["skipped"] + 1
    assert product.serve(project)["id"] != task["id"]
    product.studio.call("DELETE", f"/api/annotations/{skip}/")
    assert product.status(project)["skipped"] == before["skipped"]
    label = product.submit(project, task["id"], truth(task))
    assert product.status(project)["labelled"] == before["labelled"] + 1
    product.studio.call("DELETE", f"/api/annotations/{label}/")
    after = product.status(project)
    assert (after["labelled"], after["open"]) == (before["labelled"], before["open"])


def test_a_live_projects_labels_are_replayed(
    product: Product, project: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = product.status(project)
    arguments = ["simulate", "--project", str(project), "--strategy", "cluster_chain", "--labels", "20"]
    arguments += ["--seeds", "1", "--processes", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("ml_backend.cli.simulate.open_container", lambda: product.container)
    result = CliRunner().invoke(simulate, arguments[1:])
    assert result.exit_code == 0, result.output
    assert "own order: 20 timed answers took" in result.output
    assert "Simulated for as many answers, random:" in result.output
    assert "| cluster_chain |" in (tmp_path / "summary.md").read_text()
    assert product.status(project)["labelled"] == before["labelled"], "it is only read"


def test_doctor_finds_a_connected_project_healthy(product: Product, project: int) -> None:
    findings = doctor(product.container, project)
    assert [finding for finding in findings if finding.ok is False and not finding.warning] == []
    # An image that was served and not answered belongs to that user: the one thing that can't be asked then.
    assert {finding.check for finding in findings if finding.ok is None} <= {"next task"}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc to look at")
def test_no_secret_stands_in_a_log_or_in_the_arguments_of_a_process(product: Product, project: int) -> None:
    secrets = [product.server.token.encode(), product.server.password.encode()]
    arguments = {path: _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    assert any(b"ml_backend" in text for text in arguments.values())
    logs = {
        child.log: child.log.read_bytes() for child in (product.rush.backend, *product.rush.workers.values())
    }
    assert [path for path, text in (arguments | logs).items() if any(one in text for one in secrets)] == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def test_lost_state_is_rebuilt_from_label_studio(product: Product, project: int) -> None:
    from ml_backend import jobs

    before = product.status(project)
    ref = product.container.ref(project)
    state = product.container.state
    state.delete_annotations(ref, [annotation.id for annotation in state.annotations(ref)])
    state.delete_tasks(ref, list(state.tasks(ref))[:50])
    state.publish(ref, Synced())
    product.container.jobs.enqueue("sync", ref)
    counts = {name: before[name] for name in ("tasks", "labelled", "embedded")}
    product.wait(project, **counts)
    assert jobs.__name__ == "ml_backend.jobs"


def test_tasks_of_the_page_are_embedded_and_suggested(product: Product, digits: Path) -> None:
    """Tasks that Rush did not import come by webhook."""
    number = connect(product.container, title="Uploaded", label_config=label_config())
    paths = sorted(digits.glob("[01]/*.png"))
    product.container.sink.ensure_storage(number, digits)
    rows = [
        {"data": {"image": f"/data/local-files/?d={path.relative_to(product.server.files_root)}"}}
        for path in paths
    ]
    product.studio.import_tasks(number, rows)
    product.wait(number, tasks=len(paths), embedded=len(paths), window=30)
    task = product.serve(number)
    for _ in range(6):
        product.submit(number, task["id"], truth(task))
        task = product.serve(number)
    assert len(suggested(task)) == 1


def test_multiple_choice_suggests_sets(product: Product, digits: Path) -> None:
    config = label_config("multiple", ("round", "even"))
    number = connect(product.container, title="Several answers", label_config=config)
    import_images(product.container, number, digits)
    product.wait(number, tasks=200, embedded=200, window=30)
    task = product.serve(number)
    sets = {"0": ("round", "even"), "1": (), "2": ("even",), "6": ("round", "even"), "8": ("round", "even")}
    for _ in range(25):
        digit = truth(task)
        product.submit(number, task["id"], *sets.get(digit, ("round",) if digit == "9" else ()))
        task = product.serve(number)
    status = product.wait(number, labelled=25, generation=1)
    assert status["suggester"]
