"""Hold the state of one run at one site, parse its terms and load checked adapters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedwinnow.client.data.site_data import SiteData
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.runs.told_text import tell
from fedwinnow.curation.adapters.checks import adapter_hash, check_adapter
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import ModelSection, TeacherSection
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import canonical_json, parse
from fedwinnow.curation.datatypes import Adapter, SignalTable
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.model.base_change import changed_base_hash
from fedwinnow.curation.model.lora_model import LoadedModel, set_adapter
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.scores.rounded_counts import round_count, round_known_group
from fedwinnow.strategies.run_plugins import RunPlugins


@dataclass(slots=True, kw_only=True)
class SiteRun:
    """State of one run at one site: agreed terms, samples, and the folder of its tables."""

    config: SiteConfig
    terms: RunTerms
    folder: Path
    data: SiteData
    model: ModelSection
    """The agreed model section, with the site's own name of the base model."""
    cache: ProcessCache
    plugins: RunPlugins
    """The run's plug-ins, made once."""
    teacher: TeacherSection = field(default_factory=TeacherSection)
    """The agreed teacher section, with the site's own name of the teacher; "" where it has none."""

    @property
    def site(self) -> str:
        """Return the name of the site."""
        return self.config.site.name

    @property
    def loaded(self) -> LoadedModel:
        """Return the base model with an adapter attached, warm after first use."""
        return self.cache.model(self.model, self.terms.adapter, self.terms.run.seed)

    @property
    def files(self) -> RunFiles:
        """Return the paths of the run's files."""
        return RunFiles(self.folder)

    @property
    def pass_options(self) -> PassOptions:
        """Return how this run's passes read and batch samples; tokens stay in its folder."""
        return PassOptions.of(self.terms.model, self.terms.measuring, self.files.tokens)

    def rounded(self, number: int) -> int:
        """Round a count for release: to a multiple of ``round_counts_to``; 0 means few or none."""
        return round_count(number, self.config.site.round_counts_to)

    def rounded_group(self, number: int) -> int:
        """Round the count of a group whose existence is told anyway: at least one step."""
        return round_known_group(number, self.config.site.round_counts_to)


def parse_terms(text: str) -> RunTerms:
    """Parse the agreed terms from the text of a join request.

    Raises:
        ProtocolError: the text is no JSON object.
        ConfigError: a key, a type or a value is wrong.
    """
    try:
        tree = json.loads(text)
    except ValueError as error:
        message = f"terms are no JSON ({error})"
        raise ProtocolError(message) from error
    if not isinstance(tree, dict):
        message = "terms must be a JSON object"
        raise ProtocolError(message)
    return parse(tree, RunTerms)


def load_checked_adapter(
    run: SiteRun, header: Header, adapter: Adapter, change: Adapter | None = None
) -> str:
    """Load the request's adapter into the model, after checking its base and its hash.

    Returns:
        Key of the model's state: the adapter's hash, or a hash over adapter and change.
    """
    loaded = run.loaded
    with refused_by("adapter"):
        held = changed_base_hash(loaded.fingerprint, change)
        if adapter.base != held:
            message = f"adapter is for base {adapter.base[:12]}, this site holds {held[:12]}"
            told = tell("the adapter is for another base than this site holds")
            raise ProtocolError(message, clause="adapter", told=told)
        check_adapter(adapter)
        found = adapter_hash(adapter)
        if header.adapter != found:
            message = (
                f"adapter hash is {found[:12]}, the header says {header.adapter[:12]}; send it "
                "again"
            )
            told = tell("the adapter's hash is not the one in the header; send it again")
            raise ProtocolError(message, clause="adapter", told=told)
        set_adapter(loaded, replace(adapter, base=loaded.fingerprint))
    return changed_base_hash(found, change)


def public_result_key(run: SiteRun, adapter: str) -> tuple[str, ...]:
    """Return the cache key of results on public samples: adapter, anchors, terms, model."""
    return (adapter, run.data.anchors_hash, canonical_json(run.terms), canonical_json(run.model))


def take_rows(table: SignalTable, keep: Sequence[int]) -> SignalTable:
    """Return the table with only the given rows."""
    index = np.asarray(keep, dtype=np.int64)
    return SignalTable(
        ids=tuple(table.ids[i] for i in index),
        domains=tuple(table.domains[i] for i in index),
        checkpoint=table.checkpoint,
        status=table.status[index],
        columns={name: values[index] for name, values in table.columns.items()},
        references=table.references,
        reference_gram=table.reference_gram,
        learning_rate=table.learning_rate,
    )
