"""Audits and certificates on the real thing: Label Studio, Redis, workers, webhooks."""

from __future__ import annotations

from pathlib import Path

from ml_backend.cli.certificate_text import percent
from ml_backend.operations import certification as run
from ml_backend.operations.projects import choose_strategy, connect, import_images
from ml_backend.services.certification.accept import Reverted
from strategies.audits.target import Target
from tests.product import Product, label_config


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def test_audits_come_mixed_in_and_what_they_certify_is_taken_over_and_back(
    product: Product, digits: Path
) -> None:
    project = connect(product.container, title="Certified digits", label_config=label_config())
    import_images(product.container, project, digits)
    product.wait(project, tasks=200, embedded=200, window=30)
    truth = product.classes(project)

    def label() -> int:
        task = int(product.serve(project)["id"])
        product.submit(project, task, truth[task])
        return task

    choose_strategy(
        product.container, project, "random"
    )  # of a few chains little is learnt about other digits
    product.wait(project, strategy="random")
    for _ in range(90):
        label()
    product.wait(project, generation=1)

    sample = run.draw_audit_sample(product.container, project, Target(0.4, 0.9), surest=1.0, count=24)
    assert len(sample) == 110
    waiting, labelled = set(sample.audits), 0
    while waiting and labelled < 90:
        waiting.discard(label())  # type: ignore[arg-type]
        labelled += 1
    assert not waiting
    assert 24 < labelled < 90, "audits are mixed in, neither alone nor never"

    found = run.look(product.container, project, sample)
    assert found.audited >= 24
    assert found.accepted is not None, f"{found.certificate.failed}"
    before = product.status(project)
    certification_status, written = run.accept(product.container, project, sample, "annotations", silent)
    count = written.new
    assert not written.missing
    assert count == len(certification_status.rest) > 0
    after = product.wait(project, machine=count)
    assert (after["labelled"], after["open"]) == (before["labelled"], before["open"] - count)
    wrong = sum(
        certification_status.suggestion(int(n))[1].labels
        != (truth[int(certification_status.sample.tasks[n])],)
        for n in certification_status.rest
    )
    assert wrong <= certification_status.wrong, f"{percent(wrong / count)} of {count} wrong"

    assert run.accept(product.container, project, sample, "annotations", silent)[1].new == 0
    assert run.revert(product.container, project, silent) == Reverted(count, count, [])
    back = product.wait(project, open=before["open"])
    assert (back["machine"], back["labelled"]) == (0, before["labelled"])
    assert run.revert(product.container, project, silent) == Reverted(0, 0, [])
