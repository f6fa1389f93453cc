"""Review a silo's samples with the other members' adapters, which travel to the data.

For reviewer j, ℓ_j the body's mean loss under its warm-up adapter, and d the sample's domain:

    m_jd           mean of ℓ_j over the PUBLIC clean rows of domain d (of all, where d has none)
    review_mean    (1/n) Σ_j ℓ_j            review_level   (1/n) Σ_j m_jd        nats
    review_spread  √( Σ_j (z_j − z̄)² / (n − 1) ),  z_j = ℓ_j − m_jd

An adapter that learned law is worse at all of medicine: without m that would look like disagreement
about every sample, and like low quality where the one who knows the domain may not review.

A private sample is reviewed by the others only: the site's own adapter was trained on it. Public
rows are reviewed by all, in order of name, so that honest copies of the rows agree. One adapter at
a time is in the model, which drops it afterwards.

Warm-up shows each public row to one member (equal exposure), so one of its reviewers has seen it,
while no reviewer has seen a private sample. Public rows therefore come out a little better than
they should; the effect shrinks with the number of members.

Reference:
    X. Gao et al., GRA: data synthesis by small models as generator, reviewer and adjudicator,
    ACL 2025, https://arxiv.org/abs/2504.12322, whose reviewers are prompted models that see texts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun, public_result_key
from fedwinnow.client.signals.extra_columns import ExtraColumns
from fedwinnow.curation.adapters.checks import adapter_hash, check_compatible
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import NonFiniteError, ProtocolError
from fedwinnow.curation.model.lora_model import set_adapter
from fedwinnow.strategies.run_plugins import FEWEST

Losses = Float64[np.ndarray, " samples"]
Table = Float64[np.ndarray, "reviewers samples"]


def check_reviewers(reviewers: Mapping[str, Adapter], own: Adapter, site: str) -> None:
    """Refuse reviewers whose adapters cannot review, by name.

    Args:
        reviewers: Site → adapter.
        own: The request's own adapter, which the site has checked and holds.
        site: The name of this site.

    Raises:
        ProtocolError: a name is malformed, there are too few others, or two send the same adapter.
        IncompatibleAdapterError: one fits another base, or other modules or shapes.
        NonFiniteError: a factor is NaN or infinite.
    """
    strange = sorted(n for n in reviewers if not all(c.isalnum() or c in "-_." for c in n))
    if strange:
        message = f"reviewer {strange[0]!r}: expected letters, digits, '-', '_', '.' in its name"
        raise ProtocolError(message)
    others = sorted(set(reviewers) - {site})
    if len(others) < FEWEST - 1:
        message = (
            f"reviewers: expected the adapters of at least {FEWEST - 1} other members, got "
            f"{len(others)} ({', '.join(others) or 'none'}); a review needs {FEWEST} members, so "
            "wait for them or choose another scorer than 'committee'"
        )
        raise ProtocolError(message)
    check_compatible(reviewers, own)
    hashes = {name: adapter_hash(reviewers[name]) for name in sorted(reviewers)}
    for one, other in combinations(hashes, 2):
        if hashes[one] == hashes[other]:
            message = (
                f"reviewers {one!r} and {other!r} are the same adapter, which would agree with "
                "itself; send each member's own"
            )
            raise ProtocolError(message)


def review_columns(run: SiteRun, reviewers: Mapping[str, Adapter]) -> ExtraColumns:
    """Compute the review columns of private samples and public rows.

    The model holds the last reviewer's adapter afterwards, so load the request's own again.

    Raises:
        NonFiniteError: a reviewer gives a NaN or an infinity on a public row.
    """
    every, others, public, levels, keys = [], [], [], [], []
    domains = run.data.samples.domains
    for name in sorted(reviewers):
        key = adapter_hash(reviewers[name])
        set_adapter(run.loaded, reviewers[name])
        asked = partial(_losses, run, run.data.rows.samples, f"{name} reviews anchors")
        rows = run.cache.cached_public(("review", key, *public_result_key(run, "")), asked)
        with refused_by("reviewers"):
            level = _levels(run, rows, name)
        every.append(rows)
        public.append(_of(level, [sample.domain for sample in run.data.rows.samples]))
        keys.append(key)
        if name != run.site:
            what = f"{name} reviews samples of {run.site}"
            others.append(_losses(run, run.data.samples, what))
            levels.append(_of(level, domains))
    return ExtraColumns(
        private=_columns(np.stack(others), np.stack(levels)),
        public=_columns(np.stack(every), np.stack(public)),
        key=tuple(keys),
    )


def _losses(run: SiteRun, samples: Sequence[Sample], what: str) -> Losses:
    """Return the mean loss of each body under the loaded adapter; NaN where there is none."""
    table = measure(
        run.loaded,
        samples,
        run.pass_options,
        columns=frozenset({"loss"}),
        checkpoint=0,
        references=None,
        contrast=(),
        contrast_prompts=0,
        on_progress=run.cache.on_progress(what),
    )
    losses: Losses = table.columns["loss"].astype(np.float64)
    return losses


def _levels(run: SiteRun, losses: Losses, reviewer: str) -> dict[str, float]:
    """Return domain → the reviewer's mean loss of its clean public rows; "" → of all.

    Raises:
        NonFiniteError: no loss is finite.
    """
    clean: dict[str, list[float]] = {}
    rows = zip(run.data.rows.samples, run.data.rows.kinds, losses.tolist(), strict=True)
    for sample, kind, loss in rows:
        if kind == "clean" and np.isfinite(loss):
            clean.setdefault(sample.domain, []).append(loss)
    if not clean:
        message = (
            f"reviewer {reviewer!r} gives a NaN or an infinity on every public anchor; its warm-up "
            "went astray: lower warm_up.learning_rate"
        )
        raise NonFiniteError(message)
    pooled = [loss for losses_d in clean.values() for loss in losses_d]
    return {domain: float(np.mean(found)) for domain, found in clean.items()} | {
        "": float(np.mean(pooled))
    }


def _of(levels: Mapping[str, float], domains: Sequence[str]) -> Losses:
    return np.array([levels.get(domain, levels[""]) for domain in domains], dtype=np.float64)


def _columns(losses: Table, levels: Table) -> dict[str, np.ndarray]:
    """Return mean, level and spread over the reviewers."""
    apart = losses - levels
    return {
        "review_mean": losses.mean(axis=0).astype(np.float32),
        "review_level": levels.mean(axis=0).astype(np.float32),
        "review_spread": apart.std(axis=0, ddof=1).astype(np.float32),
    }
