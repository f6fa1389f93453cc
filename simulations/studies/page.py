"""Write the page of a study: tables with mean and range over seeds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedwinnow.simulations.studies.markdown import markdown_table
from fedwinnow.simulations.studies.picture import aurocs, by_mean
from fedwinnow.simulations.studies.result import (
    ArmRow,
    GapShare,
    PooledDifference,
    ScorerRow,
    StudyResult,
)


def study_page(result: StudyResult) -> str:
    """Return the Markdown page: for each split tables of scorers, unforeseen kinds and arms."""
    lines = [
        f"# Study `{result.study}`",
        "",
        *([result.about[""], ""] if result.about.get("") else []),
        (
            f"Command: `{result.command}`. Machine: {result.machine}. Seeds: "
            f"{', '.join(map(str, result.seeds))}. Commit: {result.commit or 'unknown'}."
        ),
        "",
    ]
    lines += _between_table(result)
    for split, differences in result.differences.items():
        scorers, arms = result.scorers(split), result.arms(split)
        if len(result.differences) > 1 or result.about.get(split):
            lines += [f"# Split `{split}`", "", result.about.get(split, ""), ""]
        if scorers:
            lines += _scorer_table(scorers) + _left_out_table(scorers)
        if arms:
            lines += _arm_table(arms, result.seeds, differences)
            lines += _recovered(result.recovered.get(split)) + _domain_table(arms)
    what = "Differences between the splits" if result.compared else "AUROC by scorer and seed"
    lines += [f"![{what}]({result.study}.svg)", ""]
    return "\n".join(lines)


def _scorer_table(rows: Sequence[ScorerRow]) -> list[str]:
    kinds = sorted({kind for row in rows for kind in row.auroc_by_corruption})
    head = ["scorer", "pooled", "range", "within silo", *kinds, "precision", "recall", "accuracy"]
    lines = []
    for name in by_mean(rows):
        mine = [row for row in rows if row.scorer == name]
        pooled = aurocs(mine)[name]
        lines.append(
            [
                f"`{name}`",
                _mean(pooled),
                f"{min(pooled):.3f}–{max(pooled):.3f}",
                _mean([row.auroc_within for row in mine]),
                *(_mean([row.auroc_by_corruption.get(kind) for row in mine]) for kind in kinds),
                _mean([row.precision for row in mine]),
                _mean([row.recall for row in mine]),
                _mean([row.accuracy for row in mine]),
            ]
        )
    return [
        "## Selection against planted truth",
        "",
        (
            "AUROC of clean against corrupted, mean over seeds. Scorers other than the run's own "
            "are cut where they keep as many samples over all silos as the run kept."
        ),
        "",
        markdown_table(head, lines),
        *_recall_table([row for row in rows if row.deciding]),
        "",
    ]


def _recall_table(rows: Sequence[ScorerRow]) -> list[str]:
    """Tabulate clean recall of the run's own scorer: a row per seed, a column per silo."""
    sites = sorted({site for row in rows for site in row.recall_by_site})
    if not sites:
        return []
    recalls = [
        [str(row.run.seed), *(_mean([row.recall_by_site.get(site)]) for site in sites)]
        for row in rows
    ]
    return ["", "Clean recall of the run by silo:", "", markdown_table(["seed", *sites], recalls)]


def _left_out_table(rows: Sequence[ScorerRow]) -> list[str]:
    """Tabulate the run's scorer on each kind of corruption, fitted with it and without it."""
    mine = [row for row in rows if row.auroc_left_out is not None]
    if not mine:
        return []
    kinds = sorted(mine[0].auroc_left_out_by_corruption)
    known = [_mean([row.auroc_by_corruption.get(kind) for row in mine]) for kind in kinds]
    unseen = [_mean([row.auroc_left_out_by_corruption.get(kind) for row in mine]) for kind in kinds]
    average = _mean([row.auroc_left_out for row in mine])
    table = markdown_table(
        ["", *kinds, "mean"],
        [["fitted with it", *known, ""], ["fitted without it", *unseen, average]],
    )
    return [
        "An unforeseen kind: AUROC of the run's scorer on each kind, mean over seeds.",
        "",
        table,
        "",
    ]


def _arm_table(
    rows: Sequence[ArmRow], seeds: Sequence[int], differences: Mapping[str, PooledDifference]
) -> list[str]:
    losses = [f"loss, seed {seed}" for seed in seeds]
    head = ["arm", "kept", "steps", *losses, "arm − curated", "share of the oracle's gap"]
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = {row.run.seed: row for row in rows if row.arm == arm}
        lines.append(
            [
                arm,
                _mean([row.kept for row in mine.values()], ".1f"),
                _mean([row.steps for row in mine.values()], ".0f"),
                *(_mean([mine[s].eval_loss], ".4f") if s in mine else "–" for s in seeds),
                differences[arm].words if arm in differences else "–",
                _mean([row.gap_recovered for row in mine.values()], ".2f"),
            ]
        )
    return [
        "## Arms: the same steps from the same initial adapter",
        "",
        (
            "Loss in nats per token on clean public hold-out answers, mean over items. The "
            "difference is arm − curated, paired over the items of all seeds (bootstrap, 95 %): "
            "above 0, the arm is worse than curated."
        ),
        "",
        markdown_table(head, lines),
        "",
    ]


def _between_table(result: StudyResult) -> list[str]:
    """Tabulate the curated arms of splits that hold the same data side by side."""
    if not result.compared:
        return []
    first = next(iter(result.compared))
    head = ["split", "pooled AUROC", "recall", "accuracy", "kept", "loss", f"− `{first}`"]
    lines = []
    for split, difference in result.compared.items():
        scored = [row for row in result.scorers(split) if row.deciding]
        curated = [row for row in result.arms(split) if row.arm == "curated"]
        share = result.recovered.get(split)
        lines.append(
            [
                f"`{split}`",
                _mean([row.auroc_pooled for row in scored]),
                _mean([row.recall for row in scored]),
                _mean([row.accuracy for row in scored]),
                _mean([row.kept for row in curated], ".1f"),
                _mean([row.eval_loss for row in curated], ".4f"),
                "–" if difference is None else difference.words,
                "–" if share is None else f"{share.share:.2f}",
            ]
        )
    return [
        "# The splits side by side",
        "",
        (
            "The curated arm on the same data, mean over seeds. Loss on clean public hold-out "
            f"answers; its difference to `{first}` is paired over the items of all seeds "
            "(bootstrap, 95 %): below 0 is better."
        ),
        "",
        markdown_table([*head, "share of the oracle's gap"], lines),
        "",
    ]


def _recovered(share: GapShare | None) -> list[str]:
    if share is None:
        return []
    return [
        (
            f"Over all seeds' items curated closes {share.share:.0%} "
            f"[{share.low:.0%}, {share.high:.0%}] of the gap of {share.gap:.4f} nats "
            "between keep_all and oracle."
        ),
        "",
    ]


def _domain_table(rows: Sequence[ArmRow]) -> list[str]:
    """Tabulate each arm's loss and kept samples by domain, where there are several domains."""
    loss, kept = "Loss by domain of the item", "Samples that are trained on, by domain"
    return [
        *_by_domain(rows, lambda row: row.eval_loss_by_domain, loss, ".4f"),
        *_by_domain(rows, lambda row: row.kept_by_domain, kept, ".1f"),
    ]


def _by_domain(
    rows: Sequence[ArmRow], values: Callable[[ArmRow], Mapping[str, float]], what: str, form: str
) -> list[str]:
    domains = sorted({name for row in rows for name in values(row)})
    if len(domains) < 2:  # noqa: PLR2004 - nothing to compare
        return []
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        mine = [values(row) for row in rows if row.arm == arm]
        lines.append([arm, *(_mean([one.get(name) for one in mine], form) for name in domains)])
    return [f"{what}, mean over seeds:", "", markdown_table(["arm", *domains], lines), ""]


def _mean(values: Sequence[float | None], form: str = ".3f") -> str:
    known = [value for value in values if value is not None]
    return format(float(np.mean(known)), form) if known else "–"
