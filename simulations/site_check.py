"""``fedwinnow site check``: everything that could fail is tried before anything starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedwinnow.client.boundary import site_key
from fedwinnow.client.data import data_hash, open_samples
from fedwinnow.client.frames import address
from fedwinnow.client.gate import gate
from fedwinnow.client.ledger import file_of, verify
from fedwinnow.curation.config import AdapterSection, PolicySection, SiteConfig
from fedwinnow.curation.envelope import PublicKey
from fedwinnow.curation.errors import ConfigError, DataError, OutputError
from fedwinnow.curation.modeling import load_model as load_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found, what may leave, and what stays."""

    facts: dict[str, Any]
    may_leave: tuple[str, ...]
    stays: tuple[str, ...]


def check_site(config: SiteConfig, *, load_model: bool = True) -> Checked:
    """Try everything that the agent will need.

    Raises:
        InputError: the first thing that would fail, with what to change.
    """
    policy = config.policy
    if not policy.coordinator:
        message = (
            "policy.coordinator: expected the coordinator's public key, got ''; ask for the line "
            "that `fedwinnow keys` prints there"
        )
        raise ConfigError(message)
    coordinator = PublicKey.parse(policy.coordinator, "policy.coordinator")
    address(config.agent.socket)
    anchors = open_samples(config.anchors.path, config.anchors.columns)
    found = data_hash(anchors)
    if policy.anchors_hash not in {"", found}:
        message = (
            f"policy.anchors_hash: agreed is {policy.anchors_hash}, {config.anchors.path} has "
            f"{found}; get the agreed file, or agree anew"
        )
        raise ConfigError(message)
    samples = open_samples(config.site.data, config.site.columns, domain=config.site.domain)
    gated = gate(samples, anchors, config.site.gate)
    if not gated.kept:
        message = f"{config.site.data}: none of {len(samples)} samples passes site.gate; look at it"
        raise DataError(message)
    work = _writable(Path(config.work))
    if findings := verify(work):
        message = f"{file_of(work)}: {findings[0]}; keep it as evidence and find out who did it"
        raise OutputError(message)
    key = site_key(Path(config.agent.key))
    facts: dict[str, Any] = {
        "site": config.site.name,
        "public_key": key.public.text,
        "fingerprint": key.public.fingerprint,
        "coordinator_fingerprint": coordinator.fingerprint,
        "data": config.site.data,
        "data_readable_by_others": _open_to_others(config.site.data),
        "samples": len(samples),
        "samples_past_the_gate": len(gated.kept),
        "anchors": len(anchors),
        "anchors_hash": found,
        "socket": config.agent.socket,
        "work": str(work),
    }
    if load_model:
        loaded = load_base(config.model, AdapterSection(), seed=0)
        facts["model"] = config.model.name
        facts["base_fingerprint"] = loaded.fingerprint
        facts["device"] = str(loaded.device)
    return Checked(facts=facts, may_leave=may_leave(config), stays=STAYS)


STAYS = (
    "texts, prompts, answers and labels of your samples",
    "ids, and any score, loss or gradient of a single sample",
    "which samples were kept or dropped, and why",
    "paths, error texts and the log of this agent",
)
"""What no message has a field for."""


def may_leave(config: SiteConfig) -> tuple[str, ...]:
    """What the policy lets out, phase by phase, in plain words."""
    policy, site = config.policy, config.site
    counts = "exactly" if site.round_counts_to == 1 else f"in multiples of {site.round_counts_to}"
    join = f"join: this site's name, versions, its number of samples ({counts}), two hashes"
    probe = "probe, measure: signals of PUBLIC anchors, which the coordinator could compute itself"
    score = (
        f"score: {policy.summaries} histogram of scores for one data set and one anchor set, over "
        f"all runs; cells of fewer than {max(1, site.smallest_cell)} samples are merged (a run may "
        "ask for larger ones)"
    )
    select = f"select: how many samples were kept ({counts}), as often as histograms"
    evaluate = (
        "evaluate: losses of PUBLIC hold-out anchors; the sum of losses over this site's own "
        f"hold-out, if that has at least {policy.smallest_group} samples"
    )
    lines = [join, probe, *_by_adapter(policy), score, select, evaluate]
    if policy.phases:
        lines.append(f"besides join and close, only {', '.join(policy.phases)} are answered")
    return tuple(lines)


def _by_adapter(policy: PolicySection) -> tuple[str, ...]:
    if not policy.allow_unsealed_adapters:
        refused = (
            "in fact nothing: policy.allow_unsealed_adapters is false, so every run is refused at "
            "join (the coordinator would see this site's adapter and histogram by themselves)"
        )
        return (refused,)
    least = policy.smallest_group
    adapter = (
        f"warm_up, train: an adapter of rank up to {policy.max_rank}, trained on at least {least} "
        f"samples, in at most {policy.max_rounds} rounds over all runs; an adapter can reveal what "
        "it was trained on (docs/threat-model.md)"
    )
    return (adapter, f"warm_up, train: mean training losses over at least {least} samples each")


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".check"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = (
            f"work {folder}: cannot be written ({error.strerror}); give it to the agent's user"
        )
        raise OutputError(message) from error
    return folder


def _open_to_others(source: str) -> str:
    """Whether other users of this machine may read the data: the node's user must not."""
    path = Path(source)
    if not path.exists():
        return "not a local file"
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    loose = [file for file in files if file.stat().st_mode & 0o004]
    return f"YES: chmod o-r {loose[0]}" if loose else "no"
