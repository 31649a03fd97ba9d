"""What audits and certificates say in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.model import TaskId
from ml_backend.services.certification.accept import Reverted, Written
from ml_backend.services.certification.certificate import CertificationStatus
from strategies.audits.certify import audits_needed
from strategies.audits.target import Target, Threshold

SHOWN = 10
"""Tasks and lines that are named one by one."""


def show_sample(sample: AuditSample, project: int, console: Console) -> None:
    """Say what was drawn."""
    shown = "without" if sample.hidden else "with"
    _say(
        f"Audit sample {sample.number}: {sample.count} of the {len(sample)} surest open images are audits, "
        f"in random order. About {percent(sample.share)} of what people see are audits, "
        f"{shown} their suggestions, until they are done.\nTarget: at most {wanted(sample.target)}, with "
        f"{percent(sample.target.confidence)} confidence. It and the suggestions of generation "
        f"{sample.generation} are fixed from now on.\n"
        f"Next: label as usual, and look at any time with rush certify --project {project}",
        console,
    )
    if sample.count > len(sample) / 2:
        console.print(
            "[yellow]That is more than half of them:[/] the model is not good enough for much more yet, or "
            "there are few images. Label more first, or give a larger --error.",
            markup=True,
        )


def show_set_aside(sample: AuditSample, answered: int, project: int, console: Console) -> None:
    """Say which audit sample no longer counts, and how it comes back."""
    _say(
        f"Audit sample {sample.number} is set aside with {answered} answered audits. It comes back with: "
        f"rush audit --project {project} --resume {sample.number}",
        console,
    )


def show_written(written: Written, certified: int, kind: str, console: Console) -> None:
    """Say what came into Label Studio, and what did not and why."""
    there = f"; {written.there} need none by now" if written.there else ""
    _say(f"{written.new} of {certified} certified images were written as {kind}{there}.", console)
    for reason, tasks in _by_reason(written.missing).items():
        _say(f"[yellow]{len(tasks)} were not written[/]: {escape(reason)} (tasks {_some(tasks)}).", console)
    if written.missing:
        _say("Mend that and run the same command again: it writes what is missing.", console)


def show_reverted(reverted: Reverted, console: Console) -> None:
    """Say what was deleted, and what would not go."""
    _say(
        f"{reverted.annotations} annotations and {reverted.predictions} predictions were taken back.", console
    )
    for line in reverted.kept[:SHOWN]:
        _say(f"[yellow]not deleted[/]: {escape(line)}", console)
    if reverted.kept:
        _say(f"{len(reverted.kept)} stay: run the same command again.", console)


def _by_reason(missing: Mapping[TaskId, str]) -> dict[str, list[TaskId]]:
    found: dict[str, list[TaskId]] = {}
    for task, reason in missing.items():
        found.setdefault(reason, []).append(task)
    return found


def _some(tasks: Sequence[TaskId]) -> str:
    """The first of them, and that there are more."""
    return ", ".join(map(str, sorted(tasks)[:SHOWN])) + (" …" if len(tasks) > SHOWN else "")


def wanted(target: Target, labels: int | None = None) -> str:
    """How many may be wrong, of what; ``labels``: how many there will be by now."""
    if not target.of:
        return f"{percent(target.error)} wrong"
    most = target.tolerated(1)
    text = f"{percent(target.error)} of all {target.of} labels wrong ({most}), people labelling what is not "
    if labels is None or labels >= target.of:
        return f"{text}certified"
    share = f"{percent(most / labels)} of them" if labels else "no share of any"
    return f"{text}certified; skipped or deleted since: {target.of - labels}, so {most} of {labels}, {share}"


def show_need(project: int, images: int, target: Target, console: Console) -> None:
    """Say what a certificate would take where no audit sample was drawn yet."""
    error, confidence = target.error, target.confidence
    _say(f"No audit sample was drawn in project {project} yet, so nothing is certified.", console)
    for size, name in ((images, f"all {images} open images"), (images // 2, "the surer half of them")):
        flawless = audits_needed(target, 0.0, size) if size else None
        typical = audits_needed(target, error / 4, size) if size else None
        if flawless is None or typical is None:
            _say(f"{name}: too few to certify {percent(error)}.", console)
            continue
        _say(
            f"To take over {name} with at most {percent(error)} wrong: {flawless} audits among them if all "
            f"suggestions are right, about {typical} if {percent(error / 4)} are wrong.",
            console,
        )
    _say(
        f"Draw them with: rush audit --project {project} --error {error:g} --confidence {confidence:g}",
        console,
    )


def check_target(sample: AuditSample, error: float | None, confidence: float | None) -> None:
    """Refuse another target than the audit sample's: chosen after answers were seen it would mean nothing."""
    for name, wanted, fixed in (
        ("error", error, sample.target.error),
        ("confidence", confidence, sample.target.confidence),
    ):
        if wanted is not None and wanted != fixed:
            raise BadRequest(
                f"--{name} {wanted:g} is not what audit sample {sample.number} was made for ({fixed:g}).",
                "A target that is chosen after answers were seen is no guarantee. Leave it out, or draw anew "
                "with rush audit --again.",
            )


def show_status(found: CertificationStatus, project: int, human_error: float, console: Console) -> None:
    """Say what may be taken over now, or what is lacking and how long that takes."""

    def say(text: str) -> None:
        _say(text, console)

    sample, target, tested = found.sample, found.sample.target, found.accepted
    say(
        f"Audit sample {sample.number} of {sample.made}: {found.audited} audits answered in order, "
        f"{found.waiting} of {sample.count} waiting. Target: at most {wanted(target, found.labels)}, "
        f"with {percent(target.confidence)} confidence."
    )
    if tested is not None:
        say(
            f"[green]{len(found.rest)} images can be taken over now[/]: those with confidence "
            f"{tested.threshold.confidence:.3f} or more that nobody has labelled. With "
            f"{percent(target.confidence)} confidence at most {found.wrong} of them get a wrong "
            f"label ({percent(found.bound)}). All {tested.threshold.size} such images together hold "
            f"at most {tested.threshold.tolerated} wrong suggestions; {tested.wrong} of the {tested.audited} "
            "audits among them were wrong."
        )
        if found.bound > target.rate(tested.threshold.size):
            say(
                "[yellow]The rest's own bound is above that of the set[/], since people have "
                "labelled, skipped or deleted images of that set. For a tighter one draw anew from what is "
                f"left: {_anew(sample, project)}"
            )
        add = f", counting people as wrong in {percent(human_error)}" if human_error else ""
        say(f"With people's {found.human} labels that is at most {percent(found.overall)} of all{add}.")
        if target.of:
            say(
                "Once people have labelled what is not certified that is at most "
                f"{percent(found.expected + human_error)} of all {found.labels} labels{add}."
            )
            if found.expected > target.error:
                say(
                    "[yellow]That is above the target[/], since images were skipped or deleted. For it draw "
                    f"anew from what is left: {_anew(sample, project)}"
                )
        if found.earlier:
            say(f"{found.earlier} labels of earlier certificates are not in that figure.")
        say(f"Take over: rush certify --project {project} --accept. Take back: --revert.")
    elif found.refuted:
        say(
            "[yellow]People have found more wrong suggestions in the certified images than there may be:[/] "
            f"this certificate is one of the {percent(1 - target.confidence)} that fail, or answers changed."
        )
        say(f"Draw anew from what is left: {_anew(sample, project)}")
        return
    else:
        say("[yellow]Nothing can be taken over yet.[/]")
    _show_more(found, project, say)


def _anew(sample: AuditSample, project: int) -> str:
    """The command that draws for the same target again."""
    of_all = " --of-all" if sample.target.of else ""
    return f"rush audit --project {project} --again --error {sample.target.error:g}{of_all}"


def _show_more(found: CertificationStatus, project: int, say: Callable[[str], None]) -> None:
    sample, failed, next_target = found.sample, found.certificate.failed, found.next_target
    if failed is None:
        say("Every image of the audit sample is certified.")
        return
    if next_target is None:
        what, so_far = _set(failed.threshold, failed.audited, failed.wrong)
        say(
            f"More audits won't certify {what} ({so_far}): label more, wait for the next generation, then "
            f"draw anew: {_anew(sample, project)}"
        )
        return
    what, so_far = _set(next_target.threshold, next_target.audited, next_target.wrong)
    lacking = max(0, next_target.more - found.waiting)
    time = (
        f", about {duration(next_target.more / sample.share * found.seconds)} of labelling"
        if found.seconds
        else ""
    )
    say(f"For {what} it takes about {next_target.more} more audits{time} ({so_far}).")
    if lacking:
        say(f"{lacking} of them are not asked for yet: rush audit --project {project} --more {lacking}")


def _set(threshold: Threshold, audited: int, wrong: int) -> tuple[str, str]:
    """What a set is, and what its audits say so far."""
    return (
        f"the {threshold.size} images with confidence {threshold.confidence:.3f} or more",
        f"{wrong} of {audited} audits among them wrong so far",
    )


def _say(text: str, console: Console) -> None:
    """Print a line with colours; what is not ours in it must be escaped."""
    console.print(text, markup=True)


def percent(share: float) -> str:
    """0.0125 → "1.25 %"."""
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Seconds in words, rounded up."""
    minutes = max(1, round(seconds / 60 + 0.499))
    return f"{minutes} minute{'s' if minutes > 1 else ''}" if minutes < 90 else f"{minutes / 60:.1f} hours"
