"""Write the final files of a run: adapter, record, summary, manifest, report.

Every file is a function of the committed state, so that it can be written again at any time.
"""

import logging
from typing import Any

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import export_adapter
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import to_plain
from fedwinnow.curation.datatypes import Adapter
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.server.report.build_record import build_record
from fedwinnow.server.report.comparisons import SelectionFigures
from fedwinnow.server.report.page import write_report
from fedwinnow.server.report.record import RecordedAdapter, RunRecord
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState, run_config

logger = logging.getLogger(__name__)


def finish(
    state: RunState,
    store: RunFolder,
    *,
    command: str = "",
    selection: SelectionFigures | None = None,
) -> RunRecord:
    """Write the final files of a run and return its record.

    Args:
        state: A state in phase done.
        store: The run folder.
        command: The command line that reproduces the run, for the report.
        selection: Figures against planted truth, where a simulation knows it.

    Raises:
        OutputError: a file cannot be written.
        ProtocolError: the run is not done.
    """
    if state.phase != Phase.DONE.value:
        message = f"run {state.run} is in phase {state.phase}; resume it before its report is made"
        raise ProtocolError(message)
    config = run_config(state)
    adapter = state.finals.get("curated")
    exported = None if adapter is None else _export(adapter, config, store)
    record = build_record(state, command=command, selection=selection, adapter=exported)
    write_json(store.folder / "record.json", record.to_json())
    write_json(store.folder / "summary.json", summary_json(record))
    write_json(store.folder / "manifest.json", _manifest(state, config, record))
    write_report(record, store.folder / "report.html")
    logger.info("report: %s", store.folder / "report.html")
    return record


def _export(adapter: Adapter, config: RunConfig, store: RunFolder) -> RecordedAdapter:
    """Write the adapter folder and return its entry in the record."""
    export_adapter(
        adapter,
        store.folder / "adapter",
        base_name=config.model.name,
        target_modules=config.adapter.names_of(adapter.modules),
        dropout=config.adapter.dropout,
    )
    ranks = [int(factor.shape[0]) for factor in adapter.a.values()]
    return RecordedAdapter(path="adapter", hash=adapter_hash(adapter), rank=max(ranks))


def _manifest(state: RunState, config: RunConfig, record: RunRecord) -> dict[str, Any]:
    section, recorded = config.training, record.to_json()
    return {
        "run": state.run,
        "name": config.run.name,
        "seed": config.run.seed,
        "versions": recorded["versions"],
        "members": [to_plain(card) for card in state.members],
        "adapter": recorded["adapter"],
        "threshold": recorded["threshold"],
        "plugins": {
            "scorer": to_plain(config.scorer),
            "threshold": to_plain(config.threshold),
            "ordering": to_plain(section.ordering),
            "objective": to_plain(section.objective),
            "weighting": to_plain(config.weighting),
            "merging": to_plain(config.merging),
        },
        "privacy": {
            "mode": "inspectable",
            "smallest_cell": config.summary.smallest_cell,
            "noise": "none",
        },
        "missing": [to_plain(r.missing) | {"phase": r.phase} for r in state.records if r.missing],
    }


def summary_json(record: RunRecord) -> dict[str, Any]:
    """Return the summary of a run's record; strict JSON, where an infinite threshold is null."""
    return {
        "run": record.run,
        "seconds": record.seconds,
        "scorer": record.scorer.name,
        "threshold": record.threshold.cut,
        "sites": [
            {"site": site.site, "samples": site.samples, "kept": site.kept} for site in record.sites
        ],
        "arms": {
            name: {"eval_loss": arm.eval_loss, "kept": arm.kept, "steps": arm.steps}
            for name, arm in record.arms.items()
        },
        "selection": to_plain(record.selection),
        "adapter": None if record.adapter is None else record.adapter.path,
    }
