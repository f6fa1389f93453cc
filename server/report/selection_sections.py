"""Build the report's sections on the selection, and list all sections in their order.

Each function takes the record and returns a section, or None where the record holds nothing for it.
"""

from collections.abc import Callable

from fedwinnow.server.report import charts
from fedwinnow.server.report.blocks import Section, number, picture, section, table, text
from fedwinnow.server.report.record import RunRecord
from fedwinnow.server.report.training_sections import arms, cost, generations, merging, provenance


def kept(record: RunRecord) -> Section:
    """Build the section on kept samples, silo by silo."""
    recalls = {} if record.selection is None else record.selection.recall_by_site
    head = ["silo", "samples", "kept", "share", "without a score"]
    rows = []
    for site in record.sites:
        cells = [site.site, site.samples, site.kept, f"{site.share:.0%}", site.unscored]
        rows.append([*cells, *([number(recalls.get(site.site))] if recalls else [])])
    shares = {site.site: site.share for site in record.sites if site.samples}
    reason = (
        "every silo has its own threshold."
        if record.threshold.cuts
        else "the same threshold cuts more where scores are lower."
    )
    if record.clusters is not None:
        reason = "beside the threshold, quotas of clusters decide."
    caption = "Kept samples of the silo."
    if len(shares) > 1:
        low, high = min(shares, key=lambda s: shares[s]), max(shares, key=lambda s: shares[s])
        caption = (
            f"{low} keeps {shares[low]:.0%}, the least; {high} keeps {shares[high]:.0%}, the most: "
            f"{reason}"
            if shares[low] < shares[high]
            else f"Every silo keeps {shares[low]:.0%}."
        )
    return section(
        "kept",
        "What was kept",
        picture(charts.kept_figure(record), "kept", caption),
        table([*head, *(["clean recall"] if recalls else [])], rows),
    )


def clusters(record: RunRecord) -> Section | None:
    """Build the section on clusters of loss trajectories: samples, and how many are kept."""
    found = record.clusters
    if found is None or not sum(found.counts):
        return None
    held = sorted(zip(found.counts, found.quotas, found.centroids, strict=True),
                  key=lambda one: one[0])  # fmt: skip
    rows = [
        [f"{centroid[0]:.2f} → {centroid[-1]:.2f}", count, quota, f"{quota / count:.0%}"]
        for count, quota, centroid in held
        if count
    ]
    whole = sum(count == quota for count, quota, _ in held if count)
    caption = (
        f"Smallest first: {whole} of {len(rows)} clusters are kept whole, the others equally. The "
        "first column is the mean loss at the first and the last checkpoint, in spreads of the "
        f"public rows. Empty clusters: {len(held) - len(rows)}."
    )
    head = ["loss trajectory", "samples", "quota", "share"]
    return section("clusters", "Clusters", table(head, rows, caption=caption))


def scores(record: RunRecord) -> Section | None:
    """Build the section of score histograms with the threshold."""
    if not record.public.scores and not any(site.edges for site in record.sites):
        return None
    threshold = record.threshold.cut
    cut = (
        "Nothing is cut."
        if threshold is None
        else f"The dashed line is the threshold, {threshold:.4g}."
    )
    if record.threshold.cuts:
        cut = "The dashed line is the threshold, at each silo its own."
    caption = (
        f"{cut} Top: public anchors, clean and corrupted, as the scorer sees them from held-out "
        "folds; the further apart, the better the cut. Below: what the silos' histograms say. "
        "Runs of small cells are merged before a histogram leaves its silo, so bars are flat there."
    )
    histograms = picture(charts.score_histogram_figure(record), "histograms", caption)
    return section("scores", "Scores", histograms)


_EVIDENCE: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"expected_recall"}), "It should keep {expected_recall:.0%} of clean samples."),
    (
        frozenset({"recall_low", "recall_high"}),
        "The 95% interval of that recall is {recall_low:.0%} to {recall_high:.0%}.",
    ),
    (
        frozenset({"corrupted_pass"}),
        "{corrupted_pass:.0%} of the corrupted public rows pass as well.",
    ),
    (frozenset({"clean_share"}), "About {clean_share:.0%} of the silos' samples look clean."),
    (
        frozenset({"clean_share_error"}),
        "The standard error of that share is {clean_share_error:.1%}.",
    ),
    (
        frozenset({"expected_precision"}),
        "What is kept should be about {expected_precision:.0%} clean.",
    ),
    (
        frozenset({"buckets_kept", "buckets", "samples_seen", "expected_loss"}),
        (
            "For {samples_seen:.0f} samples seen, the best {buckets_kept:.0f} of {buckets:.0f} "
            "equal quality buckets are worth most (expected loss {expected_loss:.4f}), by a law "
            "that is an experiment for LoRA."
        ),
    ),
    (
        frozenset({"rank_error"}),
        "At worst, the histogram misplaces the threshold by {rank_error:.1%} of all samples.",
    ),
)


def evidence(record: RunRecord) -> Section:
    """Build the section on the threshold and the evidence for it."""
    found, forecast = record.threshold.evidence, record.forecast
    blocks = []
    if found.get("inseparable"):
        warning = (
            "Clean and corrupted anchors cannot be told apart, so everything is kept. A larger "
            "model, more anchors or other signals may help."
        )
        blocks.append(text(warning, warning=True))
    words = [f"Threshold rule: {record.threshold.name}; scorer: {record.scorer.name}."]
    if found.get("clean_rows") and found.get("corrupted_rows"):
        words.append(
            f"It looked at {found['clean_rows']:.0f} clean and {found['corrupted_rows']:.0f} "
            "corrupted public rows."
        )
    words += [say.format(**found) for keys, say in _EVIDENCE if keys <= found.keys()]
    if "auroc" in forecast:
        spread = f" ± {forecast['auroc_se']:.3f}" if "auroc_se" in forecast else ""
        words.append(f"Forecast AUROC on public rows: {forecast['auroc']:.3f}{spread}.")
    blocks.append(text(" ".join(words)))
    if forecast:
        kinds = sorted(
            key.removeprefix("auroc_left_out_")
            for key in forecast
            if key.startswith("auroc_left_out_")
        )
        rows = [
            [kind, *(number(forecast.get(f"auroc_{left}{kind}")) for left in ("", "left_out_"))]
            for kind in kinds
        ]
        if rows:
            hardest = min(kinds, key=lambda kind: forecast[f"auroc_left_out_{kind}"])
            caption = (
                "Forecast on public anchors before anything is dropped. Right column: fitted "
                "without that kind, as if nobody had foreseen it; hardest to foresee is "
                f"{hardest}, {forecast[f'auroc_left_out_{hardest}']:.3f}."
            )
            blocks.append(
                table(["corruption", "forecast AUROC", "if unforeseen"], rows, caption=caption)
            )
    return section("evidence", "Threshold and evidence", *blocks)


def comparison(record: RunRecord) -> Section | None:
    """Build the section that compares scorers against planted truth."""
    selection, own = record.selection, record.scorer.name
    if selection is None:
        return None
    kinds = sorted(selection.auroc_by_corruption)
    others = {name: one.auroc for name, one in selection.comparison.items() if name != own}
    best = max(others, key=lambda name: others[name], default=None)
    caption = f"{own} reaches {selection.auroc:.3f}"
    caption += f"; the best other scorer, {best}, {others[best]:.3f}." if best else "."
    rows = [
        [
            name,
            number(one.auroc),
            number(one.auroc_within),
            *(number(one.auroc_by_corruption.get(kind), 2) for kind in kinds),
            number(one.precision, 2),
            number(one.recall, 2),
        ]
        for name, one in record.figures_by_scorer.items()
    ]
    return section(
        "comparison",
        "Scorers against the planted truth",
        picture(charts.scorer_auroc_figure(record), "scorers", caption),
        table(
            ["scorer", "AUROC", "within silo", *kinds, "precision", "recall"],
            rows,
            own=0,
            caption="Comparison scorers keep the same number of samples over all silos.",
        ),
    )


SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    kept,
    clusters,
    scores,
    evidence,
    comparison,
    arms,
    merging,
    cost,
    generations,
    provenance,
)
