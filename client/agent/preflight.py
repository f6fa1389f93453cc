"""Check a site before it starts (``fedwinnow site check``): try everything that could fail."""

import grp
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedwinnow.client.agent.frames import socket_address
from fedwinnow.client.agent.relay import agent_status
from fedwinnow.client.boundary.disclosure import STAYS, describe_releases, why_all_refused
from fedwinnow.client.boundary.guarded_site import site_key
from fedwinnow.client.budget.ledger_chain import file_of, verify_chain
from fedwinnow.client.data.gate import GateResult, apply_gates
from fedwinnow.client.data.samples import Samples, data_hash, open_samples
from fedwinnow.client.data_files.sources import local_path
from fedwinnow.client.signals.workers import WorkerModel, Workers
from fedwinnow.curation.config.scoring import AdapterSection
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.errors import ConfigError, DataError, OutputError, TransportError
from fedwinnow.curation.model.pretrained import load_model as load_base
from fedwinnow.curation.model.pretrained import load_teacher, load_tokenizer
from fedwinnow.curation.protocol.exchanges import EXCHANGES
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.strategies.registry import KINDS, plugin_names


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """Findings of a site check: facts, what may leave, what stays, warnings."""

    facts: dict[str, Any]
    may_leave: tuple[str, ...]
    stays: tuple[str, ...]
    warnings: tuple[str, ...]
    """Settings that work, but hardly as intended."""


def check_settings(config: SiteConfig) -> tuple[PublicKey, PrivateKey]:
    """Check what needs neither data nor model, in a second; also before the agent listens.

    Returns:
        The coordinator's key and the site's own, which is made where there is none.

    Raises:
        InputError: the first thing that would fail, with what to change.
    """
    policy = config.policy
    if not policy.coordinator:
        message = (
            "policy.coordinator: expected the coordinator's public key, got ''; ask for the line "
            "that `fedwinnow keys` printed there, and compare its fingerprint by phone"
        )
        raise ConfigError(message)
    coordinator = PublicKey.parse(policy.coordinator, "policy.coordinator")
    for plugin in policy.plugins:
        _check_plugin(plugin)
    _check_socket(config)
    work = _writable(Path(config.work))
    if findings := verify_chain(work):
        message = f"{file_of(work)}: {findings[0]}; keep it as evidence and find out who did it"
        raise OutputError(message)
    key = site_key(Path(config.agent.key))
    if key.public == coordinator:
        message = (
            "policy.coordinator: this is the site's own public key, so nobody else could ask; put "
            "the coordinator's there"
        )
        raise ConfigError(message)
    return coordinator, key


def check_site(config: SiteConfig, *, load_model: bool = True) -> SiteReport:
    """Check everything that the agent will need.

    Raises:
        InputError: the first thing that would fail, with what to change.
    """
    coordinator, key = check_settings(config)
    anchors = open_samples(config.anchors.path, config.anchors.columns)
    found, pinned = data_hash(anchors), config.policy.anchors_hash
    if pinned not in {"", found}:
        message = (
            f"policy.anchors_hash: agreed is {pinned}, {config.anchors.path} has {found}; get the "
            "agreed file, or agree anew"
        )
        raise ConfigError(message)
    samples = open_samples(config.site.data, config.site.columns, domain=config.site.domain)
    gated = _gated(config, samples, anchors, with_tokenizer=load_model)
    facts: dict[str, Any] = {
        "site": config.site.name,
        "public_key": key.public.text,
        "fingerprint": key.public.fingerprint,
        "coordinator_fingerprint": coordinator.fingerprint,
        "data": config.site.data,
        "data_read": samples.reading,
        "samples": len(samples),
        "samples_past_the_gate": len(gated.kept),
        "left_out": _counted_reasons(gated.reasons.values()),
        "anchors": len(anchors),
        "anchors_hash": found,
        "anchors_agreed": "as pinned" if pinned else "not pinned",
        "socket": config.agent.socket,
        "agent": _listening(config),
        "work": config.work,
        "ledger": "unchanged" if file_of(Path(config.work)).exists() else "empty",
    }
    if load_model:
        loaded = load_base(config.model, AdapterSection(), seed=0)
        facts["model"] = config.model.name
        facts["base_fingerprint"] = loaded.fingerprint
        facts["device"] = str(loaded.device)
        if config.compute.workers > 1 or config.compute.ray:
            facts["workers"] = _try_workers(config)
        if config.teacher.name:
            del loaded  # one of them in memory at a time
            facts["teacher"] = config.teacher.name
            facts["teacher_fingerprint"] = load_teacher(config.teacher, config.model).fingerprint
    return SiteReport(
        facts=facts,
        may_leave=describe_releases(config),
        stays=STAYS,
        warnings=(*_warnings(config, len(gated.kept)), *samples.notes, *anchors.notes),
    )


def _counted_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often the gate gave each reason, lengths apart."""
    plain = (re.sub(r"of \d+ characters ", "", reason) for reason in reasons)
    return dict(sorted(Counter(plain).items()))


def _gated(
    config: SiteConfig, samples: Samples, anchors: Samples, *, with_tokenizer: bool
) -> GateResult:
    """Gate the site's samples; the tokenizer's control tokens are known only with it.

    Raises:
        DataError: no sample passes.
    """
    control = ChatFormat.of(load_tokenizer(config.model)).control if with_tokenizer else None
    gated = apply_gates(samples, anchors, config.site.gate, control)
    if not gated.kept:
        message = f"{config.site.data}: none of {len(samples)} samples passes site.gate; look at it"
        raise DataError(message)
    return gated


def _try_workers(config: SiteConfig) -> int:
    """Start the workers, each with its own model, and stop them; return how many ran."""
    model = WorkerModel(section=config.model, adapter=AdapterSection(), seed=0, threads=1)
    return len(Workers(section=config.compute, model=model).processes())


FEW = 5
"""Group size below which a histogram cell or a mean may reveal a single sample."""


def _warnings(config: SiteConfig, kept: int) -> Iterator[str]:
    policy = config.policy
    for name, place in (("site.data", local_path(config.site.data)), ("work", Path(config.work))):
        if loose := first_exposed(place, config.agent.group):
            yield f"{name}: other users of this machine can read {loose}; run chmod -R go-rwx on it"
    if os.geteuid() == 0:
        yield "you are root: key, work folder and socket become root's; run as the agent's user"
    if not policy.anchors_hash:
        yield "policy.anchors_hash is empty: whatever stands in anchors.path counts as agreed"
    if reason := why_all_refused(policy):
        yield f"every run is refused at join: {reason}"
    if kept < policy.smallest_group:
        yield (
            f"{kept} samples pass the gate and policy.smallest_group is {policy.smallest_group}: "
            "no adapter and no loss of your samples can leave"
        )
    for setting, value in (
        ("site.smallest_cell", config.site.smallest_cell),
        ("policy.smallest_group", policy.smallest_group),
    ):
        if value < FEW:
            yield (
                f"{setting} is {value}: what leaves may tell of single samples; set it to {FEW} or "
                "more, unless each of them may be known"
            )
    lacking = {phase for row in EXCHANGES.values() for phase in row.phases}
    lacking -= {Phase.JOIN, Phase.CLOSE, *policy.phases}
    lacking -= set() if policy.max_clusters else {Phase.CLUSTER}
    if policy.phases and lacking:
        yield f"policy.phases leaves out {', '.join(sorted(lacking))}: runs miss this site there"


def first_exposed(path: Path, group: str) -> str:
    """Return the first path at or below ``path`` that other users can read, or "".

    Args:
        path: A file, a folder, or something that is no local path.
        group: Group of the node's user; its members count as others.
    """
    if not path.exists():
        return ""
    shared = {entry.gr_gid for entry in grp.getgrall() if entry.gr_name == group}

    def open_to_others(one: Path, by_others: int, by_group: int) -> bool:
        found = one.stat()
        return bool(
            found.st_mode & by_others or (found.st_mode & by_group and found.st_gid in shared)
        )

    if not all(open_to_others(folder, 0o001, 0o010) for folder in path.resolve().parents):
        return ""
    if path.is_file():
        return str(path) if open_to_others(path, 0o004, 0o040) else ""
    for folder, inner, files in os.walk(path):
        if not open_to_others(Path(folder), 0o005, 0o050):
            inner.clear()
            continue
        for name in files:
            file = Path(folder, name)
            if file.exists() and open_to_others(file, 0o004, 0o040):
                return str(file)
    return ""


def _check_plugin(plugin: str) -> None:
    """Refuse a misspelt plug-in name, which would refuse every run that uses the plug-in.

    Raises:
        ConfigError: no installed plug-in has this kind and name.
    """
    kind, _, name = plugin.partition(":")
    if kind not in KINDS:
        expected = f'"kind:name" with a kind of {", ".join(KINDS)}'
    elif name not in plugin_names(kind):
        expected = ", ".join(f"{kind}:{one}" for one in plugin_names(kind))
    else:
        return
    message = f"policy.plugins: expected {expected}, got {plugin!r}; `fedwinnow plugins` lists all"
    raise ConfigError(message)


def _check_socket(config: SiteConfig) -> None:
    """Check path, folder and group of the socket.

    Raises:
        ConfigError: the path is too long, or there is no such group.
        OutputError: the folder cannot be the agent's.
    """
    agent = config.agent
    socket_address(agent.socket)
    path = Path(agent.socket)
    if path.exists() and not path.is_socket():
        message = f"agent.socket {path}: a file that is no socket stands there; move it away"
        raise OutputError(message)
    groups = {entry.gr_name: entry.gr_gid for entry in grp.getgrall()}
    if agent.group and agent.group not in groups:
        message = (
            f"agent.group {agent.group!r} does not exist; make it (groupadd {agent.group}), or "
            "leave it empty"
        )
        raise ConfigError(message)
    mine = {os.getgid(), *os.getgroups()}
    if agent.group and groups[agent.group] not in mine and os.geteuid() != 0:
        message = (
            f"agent.group {agent.group!r}: you are not in it, so the socket cannot be given to it; "
            f"run usermod -aG {agent.group} on this user, and log in again"
        )
        raise ConfigError(message)
    folder = next(one for one in path.absolute().parents if one.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        message = (
            f"agent.socket {path}: {folder} cannot be written by this user; make the folder for "
            "it, or name another"
        )
        raise OutputError(message)


def _listening(config: SiteConfig) -> str:
    try:
        status = agent_status(config.agent.socket, config.agent.token, timeout=2.0)
    except TransportError:
        return "not running"
    return f"running, process {status['process']}, {status['state']}"


def _writable(folder: Path) -> Path:
    """Create the work folder for its owner alone, and check that it can be written.

    It holds scores and decisions by sample.
    """
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        probe = folder / f".check.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = (
            f"work {folder}: cannot be written ({error.strerror}); give it to the agent's user"
        )
        raise OutputError(message) from error
    return folder
