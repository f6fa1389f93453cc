"""Describe what a site's policy lets out, phase by phase, in plain words."""

from fedwinnow.curation.config.site import PolicySection, SiteConfig, SiteSection
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
    least = policy.smallest_group
    adapter = (
        f"an adapter of rank up to {policy.max_rank} and at most {policy.max_adapter_mb} MB, "
        f"trained on at least {least} of your samples; mean training losses over at least {least} "
        "samples each. An adapter can reveal what it was trained on (docs/threat-model.md)"
    )
    often = "once" if policy.summaries == 1 else f"{policy.summaries} times"
    seldom = f"for each of your samples {often}, over all runs"
    cell = max(1, site.smallest_cell)
    public = "signals of PUBLIC anchors, which the coordinator could compute itself"
    words = {
        Phase.PROBE: public,
        Phase.MEASURE: public,
        Phase.WARM_UP: f"{adapter}{_shared(policy)}",
        Phase.SCORE: (
            f"{seldom}, one histogram of your samples' scores, whose cells hold at least {cell} "
            f"(a run may ask for larger ones), and how many have no score ({counts}); scores of "
            "PUBLIC anchors, and how well they are told apart"
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
