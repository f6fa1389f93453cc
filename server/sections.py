"""The sections of the report: each a function from the record to a section, or None."""

from collections.abc import Callable

from fedwinnow.server import charts
from fedwinnow.server.blocks import (
    Section,
    Tree,
    curves_of,
    figure,
    number,
    section,
    table,
    text,
    threshold_of,
)


def kept(record: Tree) -> Section:
    """What was kept, silo by silo."""
    sites = record["sites"]
    recalls = (record["selection"] or {}).get("recall_by_site", {})
    head = ["silo", "samples", "kept", "share", "without a score"]
    rows = []
    for site in sites:
        share = site["kept"] / site["samples"] if site["samples"] else 0.0
        cells = [site["site"], site["samples"], site["kept"], f"{share:.0%}", site["unscored"]]
        rows.append([*cells, *([number(recalls.get(site["site"]))] if recalls else [])])
    shares = {s["site"]: s["kept"] / s["samples"] for s in sites if s["samples"]}
    caption = "Kept samples of every silo under the one threshold."
    if len(shares) > 1:
        low, high = min(shares, key=lambda s: shares[s]), max(shares, key=lambda s: shares[s])
        caption = (
            f"{low} keeps {shares[low]:.0%}, the least; {high} keeps {shares[high]:.0%}, the most: "
            "the same threshold cuts more where the data are worse."
            if shares[low] < shares[high]
            else f"Every silo keeps {shares[low]:.0%}."
        )
    return section(
        "kept",
        "What was kept",
        figure(charts.kept_bars(sites), caption),
        table([*head, *(["clean recall"] if recalls else [])], rows),
    )


def scores(record: Tree) -> Section | None:
    """Score histograms with the threshold."""
    if not record["public"]["scores"] and not any(site["edges"] for site in record["sites"]):
        return None
    threshold = threshold_of(record)
    cut = (
        "Nothing is cut."
        if threshold is None
        else f"The dashed line is the threshold, {threshold:.4g}."
    )
    caption = (
        f"{cut} Top: public anchors, clean and corrupted, as the scorer sees them from held-out "
        "folds; the further apart, the better the cut. Below: what the silos' histograms say. "
        "Runs of small cells are merged before a histogram leaves its silo, so bars are flat there."
    )
    return section("scores", "Scores", figure(charts.histograms(record, threshold), caption))


def evidence(record: Tree) -> Section:
    """The threshold and what is known about it."""
    found, forecast = record["threshold"]["evidence"], record["forecast"]
    blocks = []
    if found.get("inseparable"):
        warning = (
            "Clean and corrupted anchors cannot be told apart, so everything is kept. A larger "
            "model, more anchors or other signals may help."
        )
        blocks.append(text(warning, warning=True))
    words = [f"Rule {record['threshold']['name']} on scores of {record['scorer']['name']}."]
    for key, phrase in (
        ("expected_recall", "{:.0%} of the clean public rows pass"),
        ("corrupted_pass", "{:.0%} of the corrupted ones pass with them"),
        ("clean_share", "about {:.0%} of the silos' samples look clean"),
        ("expected_precision", "so about {:.0%} of what is kept should be clean"),
        ("rank_error", "the histogram places the threshold to within {:.1%} of all samples"),
    ):
        if key in found:
            words.append(phrase.format(found[key])[0].upper() + phrase.format(found[key])[1:] + ".")
    blocks.append(text(" ".join(words)))
    if forecast:
        kinds = sorted(
            key.removeprefix("auroc_left_out_")
            for key in forecast
            if key.startswith("auroc_left_out_")
        )
        rows = [
            [
                kind,
                number(forecast.get(f"auroc_{kind}")),
                number(forecast[f"auroc_left_out_{kind}"]),
            ]
            for kind in kinds
        ]
        if rows:
            blocks.append(
                table(
                    ["corruption", "forecast AUROC", "if unforeseen"],
                    rows,
                    caption="Forecast on public anchors before anything is dropped. Right column: "
                    "fitted without that kind, so what noise that nobody foresaw would get.",
                )
            )
    return section("evidence", "Threshold and evidence", *blocks)


def comparison(record: Tree) -> Section | None:
    """Scorers against planted truth."""
    selection = record["selection"]
    if not selection:
        return None
    figures = {record["scorer"]["name"]: selection, **selection["comparison"]}
    kinds = sorted(selection["auroc_by_corruption"])
    best = max(
        (n for n in figures if n != record["scorer"]["name"]),
        key=lambda n: figures[n]["auroc"],
        default=None,
    )
    caption = f"{record['scorer']['name']} reaches {selection['auroc']:.3f}"
    caption += f"; the best other scorer, {best}, {figures[best]['auroc']:.3f}." if best else "."
    rows = [
        [
            name,
            number(one["auroc"]),
            number(one["auroc_within"]),
            *(number(one["auroc_by_corruption"].get(kind), 2) for kind in kinds),
            number(one["precision"], 2),
            number(one["recall"], 2),
        ]
        for name, one in figures.items()
    ]
    return section(
        "comparison",
        "Scorers against the planted truth",
        figure(charts.scorer_bars(figures), caption),
        table(
            ["scorer", "AUROC", "within silo", *kinds, "precision", "recall"],
            rows,
            own=0,
            caption="Comparison scorers keep the same number of samples over all silos.",
        ),
    )


def arms(record: Tree) -> Section | None:
    """Study arms: loss after the same number of steps."""
    found = record["arms"]
    if not found:
        return None
    rows = []
    if record["initial_loss"] is not None:
        rows.append(["untrained", "–", 0, number(record["initial_loss"], 4), ""])
    for name, arm in found.items():
        apart = record["arm_differences"].get(name)
        difference = (
            ""
            if apart is None
            else f"{apart['mean']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]"
        )
        rows.append([name, arm["kept"], arm["steps"], number(arm["eval_loss"], 4), difference])
    blocks = [
        table(
            ["arm", "kept", "steps per site", "evaluation loss", "arm − curated (95 %)"],
            rows,
            caption="Mean token loss on clean public hold-out answers, nats; paired bootstrap.",
        )
    ]
    losses = {name: arm["eval_loss"] for name, arm in found.items() if arm["eval_loss"] is not None}
    if losses:
        best = min(losses, key=lambda name: losses[name])
        caption = (
            f"{best} ends lowest, at {losses[best]:.4f}; all arms take the same steps from one "
            "adapter."
        )
        blocks.append(figure(charts.arm_bars(found, record["initial_loss"]), caption))
    curves = curves_of(found.get("curated", {"rounds": []})["rounds"])
    if curves:
        worst = max(curves, key=lambda site: curves[site][-1])
        caption = (
            f"Training loss of the curated arm, step by step, all rounds in a row; {worst} ends "
            f"highest, at {curves[worst][-1]:.2f}."
        )
        blocks.append(
            figure(
                charts.lines(curves, x="optimizer step", y="loss, nats", name="training"), caption
            )
        )
    return section("arms", "Study arms and training", *blocks)


def merging(record: Tree) -> Section | None:
    """Merge error and weights, round by round."""
    rows = []
    for name, arm in record["arms"].items():
        for one in arm["rounds"]:
            weights = ", ".join(f"{site} {weight:.2f}" for site, weight in one["weights"].items())
            report = ", ".join(
                f"{key.replace('_', ' ')} {value:.3g}" for key, value in one["merge"].items()
            )
            rows.append([name, one["round"], report or "–", weights])
    if not rows:
        return None
    caption = "Discarded energy: share of ‖ΔW‖² that a merge of limited rank loses."
    return section(
        "merging", "Merging", table(["arm", "round", "merge", "weights"], rows, caption=caption)
    )


def cost(record: Tree) -> Section | None:
    """Seconds and bytes, and who was missing."""
    phases = record["phases"]
    if not phases:
        return None
    total: dict[str, list[float]] = {}
    for phase in phases:
        entry = total.setdefault(phase["phase"], [0.0, 0.0, 0.0])
        for place, key in enumerate(("seconds", "bytes_down", "bytes_up")):
            entry[place] += phase[key]
    rows = [
        [name.replace("_", " "), f"{seconds:.1f}", f"{down / 1e6:.2f}", f"{up / 1e6:.2f}"]
        for name, (seconds, down, up) in total.items()
    ]
    longest = max(total, key=lambda name: total[name][0])
    blocks = [
        figure(
            charts.seconds_bars(phases),
            f"{longest.replace('_', ' ')} takes longest, {total[longest][0]:.0f} s.",
        ),
        table(["phase", "seconds", "MB to silos", "MB from silos"], rows),
    ]
    missing = [
        [phase["phase"], phase["round"], site, reason]
        for phase in phases
        for site, reason in phase["missing"].items()
    ]
    if missing:
        blocks.append(table(["phase", "round", "silo", "missing because"], missing, wrap=True))
    else:
        blocks.append(text("Every silo answered in every phase."))
    return section("cost", "Seconds and bytes", *blocks)


def generations(record: Tree) -> Section | None:
    """Answers before and after training."""
    found = record["generations"]
    if not found["prompts"]:
        return None
    after = found["after"] or ["–"] * len(found["prompts"])
    rows = [
        list(row)
        for row in zip(found["prompts"], found["references"], found["before"], after, strict=True)
    ]
    caption = (
        "Greedy answers of the untrained and of the curated adapter to public hold-out prompts."
    )
    return section(
        "generations",
        "Answers before and after",
        table(["prompt", "reference", "before", "after"], rows, wrap=True, caption=caption),
    )


def provenance(record: Tree) -> Section:
    """What is needed to repeat the run."""
    rows = [[name, value] for name, value in sorted(record["versions"].items())]
    rows.append(["seed", record["seed"]])
    rows += [
        [f"member {m['site']}", f"base {m['base'][:16]}, anchors {m['anchors'][:16]}"]
        for m in record["members"]
    ]
    if record["adapter"]:
        rows.append(
            ["adapter", f"{record['adapter']['hash'][:16]}, rank {record['adapter']['rank']}"]
        )
    promise = (
        "On one machine with the same wheels and threads: adapter, scores and selection repeat bit "
        "for bit. This page, its times and dates do not."
    )
    return section(
        "provenance", "What can be repeated", text(promise), table(["what", "value"], rows)
    )


SECTIONS: tuple[Callable[[Tree], Section | None], ...] = (
    kept,
    scores,
    evidence,
    comparison,
    arms,
    merging,
    cost,
    generations,
    provenance,
)
