"""The page of a study: tables with mean and range over seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedwinnow.simulations.studies.picture import by_mean

Tree = dict[str, Any]


def page(result: Tree) -> str:
    """Markdown: for each split the scorers' table, what is unforeseen, and the arms' table."""
    lines = [
        f"# Study `{result['study']}`",
        "",
        *([result["about"][""], ""] if result["about"].get("") else []),
        (
            f"Command: `{result['command']}`. Machine: {result['machine']}. Seeds: "
            f"{', '.join(map(str, result['seeds']))}. Commit: {result['commit'] or 'unknown'}."
        ),
        "",
    ]
    lines += _between_table(result)
    for split, differences in result["differences"].items():
        rows = [row for row in result["rows"] if row["split"] == split]
        scorers = [row for row in rows if row["arm"] is None]
        arms = [row for row in rows if row["arm"] is not None]
        if len(result["differences"]) > 1 or result["about"].get(split):
            lines += [f"# Split `{split}`", "", result["about"].get(split, ""), ""]
        if scorers:
            lines += _scorer_table(scorers) + _left_out_table(scorers)
        if arms:
            lines += _arm_table(arms, result["seeds"], differences)
            lines += _recovered(result["recovered"].get(split)) + _domain_table(arms)
    what = "Differences between the splits" if result["compared"] else "AUROC by scorer and seed"
    lines += [f"![{what}]({result['study']}.svg)", ""]
    return "\n".join(lines)


def _scorer_table(rows: Sequence[Tree]) -> list[str]:
    kinds = sorted({kind for row in rows for kind in row["auroc_by_corruption"]})
    head = ["scorer", "pooled", "range", "within silo", *kinds, "precision", "recall", "accuracy"]
    lines = [
        "## Selection against planted truth",
        "",
        (
            "AUROC of clean against corrupted, mean over seeds. Scorers other than the run's own "
            "are cut where they keep as many samples over all silos as the run kept."
        ),
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for name in by_mean(rows):
        mine = [row for row in rows if row["scorer"] == name]
        pooled = [row["auroc_pooled"] for row in mine]
        cells = [
            f"`{name}`",
            f"{np.mean(pooled):.3f}",
            f"{min(pooled):.3f}–{max(pooled):.3f}",
            _mean([row["auroc_within"] for row in mine]),
            *(_mean([row["auroc_by_corruption"].get(kind) for row in mine]) for kind in kinds),
            *(_mean([row[key] for row in mine]) for key in ("precision", "recall", "accuracy")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first = [row for row in rows if row["threshold"] != "same count"]
    sites = sorted({site for row in first for site in row["recall_by_site"]})
    if sites:
        lines += ["", "Clean recall of the run by silo:", ""]
        lines += ["| seed | " + " | ".join(sites) + " |", "|" + " --- |" * (len(sites) + 1)]
        for row in first:
            recalls = [_mean([row["recall_by_site"].get(site)]) for site in sites]
            lines.append(f"| {row['seed']} | " + " | ".join(recalls) + " |")
    return [*lines, ""]


def _left_out_table(rows: Sequence[Tree]) -> list[str]:
    """The run's scorer on each kind of corruption, fitted with it and without it."""
    mine = [row for row in rows if row.get("auroc_left_out") is not None]
    if not mine:
        return []
    kinds = sorted(mine[0]["auroc_left_out_by_corruption"])
    known = [[row["auroc_by_corruption"].get(kind) for row in mine] for kind in kinds]
    unseen = [[row["auroc_left_out_by_corruption"].get(kind) for row in mine] for kind in kinds]
    average = [row["auroc_left_out"] for row in mine]
    return [
        "An unforeseen kind: AUROC of the run's scorer on each kind, mean over seeds.",
        "",
        "| | " + " | ".join(kinds) + " | mean |",
        "|" + " --- |" * (len(kinds) + 2),
        "| fitted with it | " + " | ".join(map(_mean, known)) + " | |",
        "| fitted without it | " + " | ".join(map(_mean, unseen)) + f" | {_mean(average)} |",
        "",
    ]


def _arm_table(rows: Sequence[Tree], numbers: Sequence[int], differences: Tree) -> list[str]:
    seeds = [str(seed) for seed in numbers]
    losses = [f"loss, seed {seed}" for seed in seeds]
    head = ["arm", "kept", "steps", *losses, "arm − curated", "share of the oracle's gap"]
    lines = [
        "## Arms: the same steps from the same initial adapter",
        "",
        (
            "Loss in nats per token on clean public hold-out answers, mean over items. The "
            "difference is arm − curated, paired over the items of all seeds (bootstrap, 95 %): "
            "above 0, the arm is worse than curated."
        ),
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = {str(row["seed"]): row for row in rows if row["arm"] == arm}
        difference = differences.get(arm)
        apart = "–"
        if difference is not None:
            apart = _interval(difference)
        cells = [
            arm,
            _mean([row["kept"] for row in mine.values()], ".1f"),
            _mean([row["steps"] for row in mine.values()], ".0f"),
            *(f"{mine[seed]['eval_loss']:.4f}" if seed in mine else "–" for seed in seeds),
            apart,
            _mean([row["gap_recovered"] for row in mine.values()], ".2f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _between_table(result: Tree) -> list[str]:
    """The curated arms of splits that hold the same data, side by side."""
    if not result["compared"]:
        return []
    first = next(iter(result["compared"]))
    head = ["split", "pooled AUROC", "recall", "accuracy", "kept", "loss", f"− `{first}`"]
    lines = [
        "# The splits side by side",
        "",
        (
            "The curated arm on the same data, mean over seeds. Loss on clean public hold-out "
            f"answers; its difference to `{first}` is paired over the items of all seeds "
            "(bootstrap, 95 %): below 0 is better."
        ),
        "",
        "| " + " | ".join([*head, "share of the oracle's gap"]) + " |",
        "|" + " --- |" * (len(head) + 1),
    ]
    for split, difference in result["compared"].items():
        mine = [row for row in result["rows"] if row["split"] == split]
        scored = [row for row in mine if row["arm"] is None and row["threshold"] != "same count"]
        curated = [row for row in mine if row["arm"] == "curated"]
        share = result["recovered"].get(split)
        cells = [
            f"`{split}`",
            *(
                _mean([row[key] for row in scored])
                for key in ("auroc_pooled", "recall", "accuracy")
            ),
            _mean([row["kept"] for row in curated], ".1f"),
            _mean([row["eval_loss"] for row in curated], ".4f"),
            "–" if difference is None else _interval(difference),
            "–" if share is None else f"{share['share']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _recovered(share: Tree | None) -> list[str]:
    if share is None:
        return []
    return [
        (
            f"Over all seeds' items curated closes {share['share']:.0%} "
            f"[{share['low']:.0%}, {share['high']:.0%}] of the gap of {share['gap']:.4f} nats "
            "between keep_all and oracle."
        ),
        "",
    ]


def _domain_table(rows: Sequence[Tree]) -> list[str]:
    """Loss of each arm on the items of each domain, and what it keeps, where there are several."""
    return [
        *_by_domain(rows, "eval_loss_by_domain", "Loss by domain of the item", ".4f"),
        *_by_domain(rows, "kept_by_domain", "Samples that are trained on, by domain", ".1f"),
    ]


def _by_domain(rows: Sequence[Tree], key: str, what: str, form: str) -> list[str]:
    domains = sorted({name for row in rows for name in row.get(key, {})})
    if len(domains) < 2:  # noqa: PLR2004 - nothing to compare
        return []
    lines = [
        f"{what}, mean over seeds:",
        "",
        "| arm | " + " | ".join(domains) + " |",
        "|" + " --- |" * (len(domains) + 1),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row.get(key, {}) for row in rows if row["arm"] == arm]
        cells = [_mean([one.get(name) for one in mine], form) for name in domains]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _interval(difference: Tree) -> str:
    return f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"


def _mean(values: Sequence[float | None], form: str = ".3f") -> str:
    known = [value for value in values if value is not None]
    return format(float(np.mean(known)), form) if known else "–"
