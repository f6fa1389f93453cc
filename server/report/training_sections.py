"""Build the report's sections from training on: arms, merging, cost, answers, provenance."""

from collections.abc import Mapping

from fedwinnow.server.report import charts
from fedwinnow.server.report.blocks import (
    Section,
    curves_of,
    number,
    picture,
    section,
    short,
    table,
    text,
)
from fedwinnow.server.report.record import RecordedArm, RunRecord


def arms(record: RunRecord) -> Section | None:
    """Build the section on study arms: loss after the same number of steps."""
    found = record.arms
    if not found:
        return None
    rows = []
    if record.initial_loss is not None:
        rows.append(["untrained", "–", 0, number(record.initial_loss, 4), ""])
    for name, arm in found.items():
        apart = record.arm_differences.get(name)
        difference = "" if apart is None else apart.words
        rows.append([name, arm.kept, arm.steps, number(arm.eval_loss, 4), difference])
    blocks = [
        table(
            ["arm", "kept", "steps per site", "evaluation loss", "arm − curated (95%)"],
            rows,
            caption="Mean token loss on clean public hold-out answers, nats; paired bootstrap.",
        )
    ]
    losses = {name: arm.eval_loss for name, arm in found.items() if arm.eval_loss is not None}
    if losses:
        best = min(losses, key=lambda name: losses[name])
        caption = (
            f"{best} ends lowest, at {losses[best]:.4f}, further left is better; all arms take the "
            "same steps from one adapter."
        )
        blocks.append(picture(charts.arm_loss_figure(record), "arms", caption))
    blocks += [text(remark) for remark in record.remarks]
    blocks += [*_by_round(found, record.initial_loss), *_by_step(found)]
    return section("arms", "Study arms and training", *blocks)


def _by_round(arms: Mapping[str, RecordedArm], initial: float | None) -> list[Section]:
    """Draw the evaluation losses after each round, where they were measured."""
    paths = _paths(arms, initial)
    if not paths:
        return []
    steepest = min(paths, key=lambda name: paths[name][-1] - paths[name][0])
    caption = (
        f"Evaluation loss after each round; {steepest} falls most, from "
        f"{paths[steepest][0]:.4f} to {paths[steepest][-1]:.4f}."
    )
    start = 1 if initial is None else 0
    drawn = charts.lines_figure(paths, x="round", y="evaluation loss, nats", start=start)
    return [picture(drawn, "evaluation", caption)]


def _by_step(arms: Mapping[str, RecordedArm]) -> list[Section]:
    """Draw the curated arm's training losses, where it trained."""
    curves = curves_of(arms["curated"].rounds) if "curated" in arms else {}
    if not curves:
        return []
    worst = max(curves, key=lambda site: curves[site][-1])
    caption = (
        f"Training loss of the curated arm, step by step, all rounds in a row; {worst} ends "
        f"highest, at {curves[worst][-1]:.2f}."
    )
    drawn = charts.lines_figure(curves, x="optimizer step", y="loss, nats")
    return [picture(drawn, "training", caption)]


def _paths(arms: Mapping[str, RecordedArm], initial: float | None) -> dict[str, list[float]]:
    """Return arm → evaluation losses of its rounds; only arms with two or more, all evaluated."""
    first = [] if initial is None else [initial]
    paths: dict[str, list[float]] = {}
    for name, arm in arms.items():
        losses = [one.eval_loss for one in arm.rounds if one.eval_loss is not None]
        if len(losses) > 1 and len(losses) == len(arm.rounds):
            paths[name] = [*first, *losses]
    return paths


def merging(record: RunRecord) -> Section | None:
    """Build the section on merge errors and weights, round by round."""
    rounds = [(name, one) for name, arm in record.arms.items() for one in arm.rounds]
    if not rounds:
        return None
    figures = list(dict.fromkeys(key for _, one in rounds for key in one.merge))
    sites = list(dict.fromkeys(site for _, one in rounds for site in one.weights))
    rows = []
    for name, one in rounds:
        cells = [short(one.merge.get(key)) for key in figures]
        cells += [number(one.weights.get(site), 2) for site in sites]
        rows.append([name, one.round, *cells])
    lost = {
        f"{name}, round {one.round}": one.merge["discarded_energy"]
        for name, one in rounds
        if "discarded_energy" in one.merge
    }
    caption = "Right: each silo's weight in the merge; a dash where it was not there."
    if lost:
        worst = max(lost, key=lambda name: lost[name])
        caption = (
            "Discarded energy is the share of ‖ΔW‖² that a merge of limited rank loses; at most "
            f"{lost[worst]:.2%} ({worst}). {caption}"
        )
    head = ["arm", "round", *(key.replace("_", " ") for key in figures), *sites]
    blocks = [table(head, rows, caption=caption)]
    bounded = [
        [name, one.round, site, why] for name, one in rounds for site, why in one.bounded.items()
    ]
    if bounded:
        said = "What the guards did to single silos, and why."
        blocks.append(table(["arm", "round", "silo", "what"], bounded, caption=said, wrap=True))
    return section("merging", "Merging", *blocks)


def cost(record: RunRecord) -> Section | None:
    """Build the section on seconds and bytes, and on missing silos."""
    phases = record.phases
    if not phases:
        return None
    total: dict[str, list[float]] = {}
    for phase in phases:
        entry = total.setdefault(phase.phase, [0.0, 0.0, 0.0])
        for place, spent in enumerate((phase.seconds, phase.bytes_down, phase.bytes_up)):
            entry[place] += spent
    rows = [
        [name.replace("_", " "), f"{seconds:.1f}", f"{down / 1e6:.2f}", f"{up / 1e6:.2f}"]
        for name, (seconds, down, up) in total.items()
    ]
    whole = [sum(entry[place] for entry in total.values()) for place in range(3)]
    longest = max(total, key=lambda name: total[name][0])
    blocks = [
        picture(
            charts.phase_seconds_figure(record),
            "seconds",
            f"{longest.replace('_', ' ')} takes longest, {total[longest][0]:.0f} of {whole[0]:.0f} "
            f"seconds; {whole[1] / 1e6:.1f} MB went to the silos and {whole[2] / 1e6:.1f} MB came "
            "back, all silos together.",
        ),
        table(["phase", "seconds", "MB to silos", "MB from silos"], rows),
    ]
    missing = [
        [phase.phase, phase.round, site, reason]
        for phase in phases
        for site, reason in phase.missing.items()
    ]
    if missing:
        blocks.append(table(["phase", "round", "silo", "missing because"], missing, wrap=True))
    else:
        blocks.append(text("Every silo answered in every phase."))
    return section("cost", "Seconds and bytes", *blocks)


def generations(record: RunRecord) -> Section | None:
    """Build the section of answers before and after training."""
    found = record.generations
    if not found.prompts:
        return None
    after = found.after or ("–",) * len(found.prompts)
    rows = [
        list(row) for row in zip(found.prompts, found.references, found.before, after, strict=True)
    ]
    caption = (
        "Greedy answers of the untrained and of the curated adapter to public hold-out prompts."
    )
    return section(
        "generations",
        "Answers before and after",
        table(["prompt", "reference", "before", "after"], rows, wrap=True, caption=caption),
    )


def provenance(record: RunRecord) -> Section:
    """Build the section of what is needed to repeat the run."""
    rows: list[list[object]] = [["command", record.command]] if record.command else []
    rows += [["seed", record.seed]]
    rows += [[name, value] for name, value in sorted(record.versions.items())]
    rows += [
        [f"member {m.site}", f"base {m.base[:16]}, anchors {m.anchors[:16]}"]
        for m in record.members
    ]
    if record.adapter:
        rows.append(["adapter", f"{record.adapter.hash[:16]}, rank {record.adapter.rank}"])
    promise = (
        "On one machine with the same wheels and threads: adapter, scores and selection repeat bit "
        "for bit. This page, its times and dates do not. manifest.json holds the hashes in full."
    )
    return section(
        "provenance", "What can be repeated", text(promise), table(["what", "value"], rows)
    )
