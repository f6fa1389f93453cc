"""Store and load the sites' own adapters of a round, each with a label of the data behind it.

``kept/ARM/round-N/sites/SITE/`` is an ordinary PEFT folder with ``label.json`` beside the factors,
and ``kept/ARM/round-N/start/`` holds the adapter that the round started from. Adapters are stored
only with ``keep.adapters = true``: who reads the run folder sees what each site learned.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import export_adapter, load_adapter
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import OutputError
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.server.state import RunState, run_config

FOLDER = "kept"
START = "start"
"""Name of the folder with the adapter that a round started from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLabel:
    """Label of a kept adapter: its run, site, arm and round, and the data behind it."""

    run: str
    site: str
    arm: str
    round: int
    samples: int
    """Number of samples it was trained on, as the site reported it (rounded)."""
    data: str
    """The data behind it, in words."""
    adapter: str
    """SHA-256 of the factors."""


def store_adapters(folder: Path, state: RunState, replies: Mapping[str, Reply]) -> None:
    """Write the adapters that accepted sites sent in a training round; nothing in other phases.

    Args:
        folder: The run folder.
        state: The state before the replies were absorbed.
        replies: Site → reply, of those that were accepted.

    Raises:
        OutputError: the folder cannot be written.
    """
    config = run_config(state)
    if not config.keep.adapters or state.phase != Phase.TRAIN.value or state.adapter is None:
        return
    place = round_folder(folder, state.arm, state.round)
    _export(state.adapter, place / START, config)
    for site, reply in sorted(replies.items()):
        if not isinstance(reply, TrainedAdapter) or reply.adapter is None:
            continue
        _export(reply.adapter, place / "sites" / site, config)
        label = AdapterLabel(
            run=state.run,
            site=site,
            arm=state.arm,
            round=state.round,
            samples=reply.samples,
            data=f"samples of {site} that arm {state.arm} keeps, up to round {state.round}",
            adapter=adapter_hash(reply.adapter),
        )
        write_json(place / "sites" / site / "label.json", asdict(label))


def round_folder(folder: Path, arm: str, number: int) -> Path:
    """Return the folder of a round's adapters."""
    return folder / FOLDER / arm / f"round-{number}"


def load_round(
    folder: Path, arm: str, number: int, *, base: str
) -> tuple[Adapter, dict[str, Adapter], dict[str, AdapterLabel]]:
    """Load the start of a round, its adapters by site and their labels by site.

    Raises:
        OutputError: the run did not keep its adapters, or one has another hash than its label.
    """
    place = round_folder(folder, arm, number)
    if not (place / START).is_dir():
        message = (
            f"{place}: no adapters of arm {arm}, round {number}; only runs with keep.adapters = "
            "true can be merged anew"
        )
        raise OutputError(message)
    adapters, labels = {}, {}
    for one in sorted((place / "sites").iterdir()):
        adapters[one.name] = load_adapter(one, base=base)
        labels[one.name] = AdapterLabel(
            **json.loads((one / "label.json").read_text(encoding="utf-8"))
        )
        found = adapter_hash(adapters[one.name])
        if found != labels[one.name].adapter:
            message = (
                f"{one}: adapter {found[:12]} is not {labels[one.name].adapter[:12]} of its label"
            )
            raise OutputError(message)
    return load_adapter(place / START, base=base), adapters, labels


def _export(adapter: Adapter, folder: Path, config: RunConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    export_adapter(
        adapter,
        folder,
        base_name=config.model.name,
        target_modules=config.adapter.names_of(adapter.modules),
        dropout=config.adapter.dropout,
    )
