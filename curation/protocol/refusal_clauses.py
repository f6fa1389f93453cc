"""List the clauses that a refusal may name; no other word can stand in its clause.

The list is closed, so that no clause is made of what a site measured: a class of an error tells one
thing more than "it failed", and so does a text.
"""

import secrets
import string

_POLICY = (
    "coordinator",
    "anchors_hash",
    "allow_individual_updates",
    "share_adapter_with_members",
    "privacy_budget",
    "phases",
    "plugins",
    "plugin_settings",
    "summaries",
    "max_clusters",
    "max_cluster_rounds",
    "min_change",
    "smallest_group",
    "max_sample_grad_norm",
    "min_grad_norm",
    "max_learning_rate",
    "max_weight_decay",
    "max_objective_strength",
    "max_rounds",
    "max_steps",
    "max_rank",
    "max_adapter_mb",
    "max_reviewers",
    "max_draws",
    "max_pass_tokens",
    "max_repeats",
    "max_open_runs",
    "arms",
    "public_rows",
    "own_holdout",
)
"""Keys of ``[policy]`` in ``site.toml`` (a test compares them), and three that have no key."""
FAILED = "failed"
"""Clause of everything that is not another clause: the site's own log says what it was."""
CLAUSES = frozenset(
    {
        *(f"policy.{name}" for name in _POLICY),
        "adapter",
        "clusters",
        "protocol",
        "public_rows",
        "reviewers",
        "terms",
        "threshold",
        FAILED,
    }
)
"""Every clause that a refusal may name."""
LONGEST_REASON = 2_000
"""Most characters of a reason that a refusal made here holds."""
_LETTERS, _LENGTH = string.ascii_lowercase, 8


def new_reference() -> str:
    """Return a random reference, by which operator and coordinator speak about one refusal."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def why_no_clause(clause: str) -> str:
    """Return why a text is none of the clauses; "" where it is one."""
    known = ", ".join(sorted(CLAUSES))
    return "" if clause in CLAUSES else f"expected one of {known}, got {clause[:80]!r}"


def why_no_reference(reference: str) -> str:
    """Return why a text is no reference; "" where it is one, or empty as in simulations."""
    if not reference or (len(reference) == _LENGTH and set(reference) <= set(_LETTERS)):
        return ""
    return f"expected {_LENGTH} letters a to z, got {reference[:80]!r}"
