"""Silos without a model whose losses and scores are made up: what tests of clusters ask."""

from types import SimpleNamespace

import numpy as np

from fedwinnow.client.phases import cluster
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.datatypes import SignalTable, Status
from fedwinnow.curation.protocol import messages as m
from fedwinnow.strategies.run_plugins import RunPlugins

CHECKPOINTS = 2
EDGES = np.linspace(0.0, 1.0, 5)


def trajectory(losses, prefix):
    """Tables of made-up losses, one for each checkpoint; NaN has no loss there."""
    number = len(losses)
    return tuple(
        SignalTable(
            ids=tuple(f"{prefix}-{i:04}" for i in range(number)),
            domains=("",) * number,
            checkpoint=t,
            status=np.where(np.isnan(losses[:, -1]), Status.NON_FINITE, 0).astype(np.int8),
            columns={"loss": losses[:, t].astype(np.float32)},
        )
        for t in range(CHECKPOINTS)
    )


def public(seed=0, rows=40):
    """Public rows of three kinds of trajectory."""
    draw = np.random.default_rng(seed)
    centres = np.array([[2.0, 1.0], [4.0, 4.0], [3.0, 0.5]])[draw.integers(0, 3, size=rows)]
    return trajectory(centres + draw.normal(scale=0.3, size=(rows, CHECKPOINTS)), "public")


def terms_of(**clusters):
    """Terms of a run with clusters."""
    section = {"count": 4, "iterations": 3, "budget": 0.5} | clusters
    return parse(
        {"clusters": section, "scorer": {"name": "perplexity"}, "summary": {"smallest_cell": 1}},
        RunTerms,
    )


def silo(folder, losses, scores, *, site="north", terms=None, policy=None, **section):
    """A site that has scored: its folder holds scores, and standardised trajectories."""
    folder.mkdir(parents=True, exist_ok=True)
    private = trajectory(losses, site)
    config = SiteConfig(
        site=SiteSection(name=site, data="d", **section),
        simulation=policy is None,
        policy=policy or PolicySection(),
    )
    terms = terms or terms_of()
    work = SiteRun(
        config=config, terms=terms, folder=folder, plugins=RunPlugins.of(terms),
        data=SimpleNamespace(samples=()), model=None, cache=None,
    )  # fmt: skip
    tables.write_scores(folder / "scores.parquet", private[-1], {"perplexity": scores}, EDGES)
    cluster.write_trajectories(work, public(), private)
    return work


def points_of(work):
    """Standardised trajectories of all samples, and the start."""
    return tables.read_trajectories(work.folder / "trajectories.parquet")


def ask(number, centroids, threshold=float("-inf"), **per_site):
    """A request of an exchange."""
    header = m.Header(run="run", phase="cluster", round=number)
    return m.ClusterRequest(
        header=header, threshold=threshold, per_site=per_site, centroids=centroids
    )


def quotas(totals, threshold=float("-inf"), extra=None, **per_site):
    """A request of a selection by quotas."""
    header = m.Header(run="run", phase="select")
    return m.QuotaRequest(
        header=header, threshold=threshold, per_site=per_site, totals=tuple(totals),
        extra=extra or {},
    )  # fmt: skip
