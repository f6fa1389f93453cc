"""Describe what a site's policy lets out, phase by phase and number by number.

:func:`disclosed_numbers` reads the list that the door enforces
(``client/boundary/disclosed_parts.py``), so that what a data-protection officer reads is what the
agent does.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedwinnow.client.boundary.disclosed_parts import PARTS, Source
from fedwinnow.client.boundary.release_budget import limit_of
from fedwinnow.curation.config.site import PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.protocol import replies as r
from fedwinnow.curation.protocol.phases import Phase

STAYS = (
    "texts, prompts, answers and labels of your samples",
    "ids, and the score or gradient of a single sample",
    "which samples were kept, dropped or left to a person to decide, and why",
    "paths, error texts and the log of this agent",
)
"""What never leaves: no message has a field for it."""


def describe_releases(config: SiteConfig) -> tuple[str, ...]:
    """Describe what the policy lets out, phase by phase, in plain words."""
    policy, site = config.policy, config.site
    counts = "exact" if site.round_counts_to == 1 else f"rounded to {site.round_counts_to}"
    adapter, least = _adapter(policy), policy.smallest_group
    often = "once" if policy.summaries == 1 else f"{policy.summaries} times"
    seldom = f"for each of your samples {often}, over all runs"
    cell = max(1, site.smallest_cell)
    public = "signals of PUBLIC anchors, which the coordinator could compute itself"
    words = {
        Phase.PROBE: public,
        Phase.MEASURE: public,
        Phase.WARM_UP: f"{adapter}{_shared(policy)}",
        Phase.SCORE: (
            f"{seldom}, one histogram of your samples' scores, in groups of cells that do not "
            f"depend on them ({counts}; below {cell}, or more where a run asks, 0 is told), and "
            f"how many have no score ({counts}); scores of PUBLIC anchors, and how well they are "
            "told apart"
        ),
        Phase.CLUSTER: _clusters(policy, site),
        Phase.SELECT: f"{seldom}, how many samples were kept ({counts})",
        Phase.TRAIN: f"in at most {policy.max_rounds} rounds with a sample, over all runs, "
        f"{adapter}; how many samples it was trained on ({counts})",
        Phase.EVALUATE: (
            "losses of PUBLIC hold-out anchors, and answers that the coordinator's adapter writes "
            f"to PUBLIC prompts; sum and number ({counts}) of losses over this site's own "
            f"hold-out, if that has at least {least} samples"
        ),
    }
    refused = "nothing: policy.phases leaves it out"
    lines = [
        (
            f"join: this site's name, versions of its programs, its number of samples ({counts}), "
            "hashes of base model and anchors, the untrained adapter that every site makes alike"
        ),
        *(
            f"{phase}: {said if not policy.phases or phase in policy.phases else refused}"
            for phase, said in words.items()
        ),
        "close: a receipt",
        "instead of any of these, a refusal: the clause that stands in the way and its limit",
        _charged(policy),
        "with each: when it was sent, its size, and the last hash of the egress ledger",
    ]
    if reason := why_all_refused(policy):
        lines.insert(0, f"as it stands only refusals, for every run is refused at join: {reason}")
    return tuple(lines)


def _adapter(policy: PolicySection) -> str:
    """Describe an adapter that leaves."""
    return (
        f"an adapter of rank up to {policy.max_rank} and at most {policy.max_adapter_mb} MB, "
        f"trained in steps of at least {policy.smallest_group} distinct samples of yours, "
        f"{_clipping(policy)}; a mean training loss of each step. An adapter can reveal what it "
        "was trained on (docs/threat-model.md)"
    )


def _clipping(policy: PolicySection) -> str:
    """Describe how far one sample may move a step."""
    most = policy.max_sample_grad_norm
    return "none clipped" if math.isinf(most) else f"each one's gradient clipped to {most} at most"


def _charged(policy: PolicySection) -> str:
    """Describe what every question about private samples costs them."""
    return (
        "each question about your samples is charged to them before it is computed, refused or "
        f"not; no sum or difference of releases is of fewer than {policy.min_change} samples"
    )


def _clusters(policy: PolicySection, site: SiteSection) -> str:
    """Describe what may leave in an exchange of clusters."""
    if policy.max_clusters == 0:
        return "nothing: policy.max_clusters is 0, runs with clusters are refused at join"
    step, least = site.round_counts_to, max(policy.smallest_group, site.smallest_cell)
    return (
        f"in at most {policy.max_cluster_rounds} exchanges of one run, for at most "
        f"{policy.max_clusters} clusters of loss trajectories: how many of the samples that pass "
        f"the threshold each holds (rounded down to {step}), and their mean losses, in groups of "
        f"at least {max(step, least)}"
    )


def _shared(policy: PolicySection) -> str:
    if not policy.share_adapter_with_members:
        return ""
    return (
        "; the coordinator may pass it on to all members, as a reviewer of their samples or to be "
        "judged on public anchors, and who carries requests (nodes, network) sees it too"
    )


def why_all_refused(policy: PolicySection) -> str:
    """Return why every run would be refused at join; "" where one could be joined."""
    if not policy.allow_individual_updates:
        return (
            "policy.allow_individual_updates is false, and sums that hide a single site's adapter "
            "and histogram from the coordinator are not built yet"
        )
    if policy.privacy_budget != float("inf"):
        return "policy.privacy_budget asks for noise, which no release has yet"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisclosedNumber:
    """One part of a message that may leave, as a policy bounds it."""

    phase: str
    what: str
    source: Source
    bound: str
    """Bound and rounding; "" where it tells nothing of the samples."""
    budget: str
    """How often, and over what."""


_REPLIES: Mapping[str, type] = {
    "join": r.Joined,
    Phase.PROBE: r.PublicSignals,
    Phase.MEASURE: r.PublicSignals,
    Phase.WARM_UP: r.TrainedAdapter,
    Phase.SCORE: r.SummaryReply,
    Phase.CLUSTER: r.ClusterReply,
    Phase.SELECT: r.KeptReply,
    Phase.TRAIN: r.TrainedAdapter,
    Phase.EVALUATE: r.MetricsReply,
    "judge": r.JudgedAdapters,
    "instead of any": r.Refusal,
}
"""Phase → kind of its reply."""


def disclosed_numbers(config: SiteConfig) -> tuple[DisclosedNumber, ...]:
    """Return every part of every message that may leave in a run, phase by phase."""
    return tuple(_numbers(config))


def _numbers(config: SiteConfig) -> Iterator[DisclosedNumber]:
    policy = config.policy
    for phase, reply in _REPLIES.items():
        free = phase in {"join", "instead of any"}
        if not free and policy.phases and phase not in policy.phases:
            continue
        if phase == Phase.CLUSTER and policy.max_clusters == 0:
            continue
        for part in PARTS:
            if part.reply is reply:
                private = part.bound is not None
                yield DisclosedNumber(
                    phase=str(phase),
                    what=part.what,
                    source=part.source,
                    bound=part.bound.words(config) if part.bound is not None else "",
                    budget=_budget(reply, policy) if private else "",
                )


def _budget(reply: type, policy: PolicySection) -> str:
    """Return how often a number of the samples leaves in a kind of reply."""
    limit = limit_of(reply, policy)[1]
    often = "once" if limit == 1 else f"{limit} times"
    if reply is r.ClusterReply:
        runs = "one run" if limit == 1 else f"{limit} runs"
        return f"{policy.max_cluster_rounds} times in each of {runs} for each sample"
    return f"{often} for each sample, over all runs"
