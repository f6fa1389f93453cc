"""One run at one site: terms, samples and folder, and what may be asked of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedwinnow.client.data.site_data import Pool
from fedwinnow.client.runs.process_cache import Workshop
from fedwinnow.curation.adapters.algebra import adapter_hash, check_adapter
from fedwinnow.curation.model.base_change import changed_base
from fedwinnow.curation.signal_columns import (
    BACKENDS,
    CONTRASTS,
    GRADIENTS,
    GUESTS,
    ONCE,
    REVIEWS,
    TEACHER,
)
from fedwinnow.curation.config.run import ModelSection, RunTerms, SiteConfig, TeacherSection
from fedwinnow.curation.errors import PluginError, ProtocolError
from fedwinnow.curation.protocol.messages import Header
from fedwinnow.curation.model.pretrained import LoadedModel, set_adapter
from fedwinnow.curation.datatypes import Adapter, Sample, SignalTable
from fedwinnow.strategies.interfaces.merging import StagedOrdering
from fedwinnow.curation.config.strict_toml import canonical, parse
from fedwinnow.strategies.run_plugins import readers, scorers, weighing
from fedwinnow.strategies.registry import build


@dataclass(slots=True, kw_only=True)
class Work:
    """One run at one site: its terms, its samples, and the folder that keeps its tables."""

    config: SiteConfig
    terms: RunTerms
    folder: Path
    pool: Pool
    model: ModelSection
    """The agreed model section, with the site's own name of the base model."""
    workshop: Workshop
    teacher: TeacherSection = field(default_factory=TeacherSection)
    """The agreed teacher section, with the site's own name of the teacher; "" where it has none."""

    @property
    def site(self) -> str:
        """Name of the site."""
        return self.config.site.name

    @property
    def loaded(self) -> LoadedModel:
        """The base model with an adapter attached, warm after first use."""
        return self.workshop.model(self.model, self.terms.adapter, self.terms.run.seed)

    def rounded(self, number: int) -> int:
        """A count as it may leave the site: a multiple of ``round_counts_to``, 0 only for 0."""
        step = self.config.site.round_counts_to
        return 0 if number == 0 else max(step, round(number / step) * step)


def parse_terms(text: str) -> RunTerms:
    """The agreed terms from the text of a join request.

    Raises:
        ProtocolError: it is no JSON object.
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


def check_terms(terms: RunTerms) -> None:
    """Refuse terms that this site could not fulfil later.

    Raises:
        PluginError: a plug-in or a setting is unknown here; where ``run.trajectory`` is "none", a
            scorer needs gradient columns, or clusters losses along the training; the ordering ranks
            by such a scorer, the objective weighs by scores of another unit, or reviewers would all
            have learned the same.
    """
    section = terms.training
    ordering = build("ordering", section.ordering.name, section.ordering.settings)
    if isinstance(ordering, StagedOrdering):
        needs = build("scorer", ordering.scorer, {}).columns & (GRADIENTS | GUESTS)
        if needs:
            message = (
                f"training.ordering ranks by scorer {ordering.scorer!r}, which needs gradient "
                "columns or other models' opinions, and a stage measures neither "
                f"({', '.join(sorted(needs))}); choose a forward-only scorer such as 'ira'"
            )
            raise PluginError(message)
    objective, unit = weighing(section.objective), scorers(terms.scorer)[terms.scorer.name].unit
    if objective is not None and objective.unit not in {"", unit}:
        message = (
            f"objective {section.objective.name!r} weighs by scores in {objective.unit}, scorer "
            f"{terms.scorer.name!r} gives {unit}; choose scorer 'calibrated'"
        )
        raise PluginError(message)
    for name, scorer in scorers(terms.scorer).items():
        if terms.run.trajectory == "none" and scorer.columns & GRADIENTS:
            message = (
                f"scorer {name!r} needs gradient columns, which run.trajectory = 'none' does not "
                "measure; set run.trajectory = 'global' or choose a forward-only scorer"
            )
            raise PluginError(message)
    if terms.clusters.count and terms.run.trajectory == "none":
        message = (
            f"clusters.count = {terms.clusters.count} clusters losses along the training, which "
            "run.trajectory = 'none' leaves out; set run.trajectory = 'global'"
        )
        raise PluginError(message)
    _check_backend(terms)
    _check_reviews(terms)


def _check_backend(terms: RunTerms) -> None:
    """Each reader's columns must be among those that the chosen way to measure gives."""
    backend = terms.measuring.backend
    if backend == "auto" or terms.run.trajectory == "none":
        return
    for name, columns in readers(terms.scorer, terms.training.objective).items():
        if lacking := sorted(columns & GRADIENTS - BACKENDS[backend]):
            able = [repr(one) for one, given in BACKENDS.items() if set(lacking) <= given]
            message = (
                f"{name} reads {', '.join(lacking)}, which measuring.backend = {backend!r} cannot "
                f"give; set it to {' or '.join(able)}, or choose another scorer"
            )
            raise PluginError(message)


def _check_reviews(terms: RunTerms) -> None:
    """Reviewers are the sites' own warm-up adapters, so there must be such."""
    for name, columns in readers(terms.scorer, terms.training.objective).items():
        if not columns & REVIEWS:
            continue
        if terms.run.trajectory == "none":
            message = f"{name} needs warm-up adapters as reviewers; set run.trajectory = 'global'"
            raise PluginError(message)
        if terms.warm_up.data == "anchors":
            message = (
                f"{name} needs reviewers that learned from different data, and warm_up.data = "
                "'anchors' trains the same adapter everywhere; set warm_up.data = 'all'"
            )
            raise PluginError(message)


def check_teacher(terms: RunTerms, teacher: TeacherSection) -> None:
    """Refuse a run whose scorer needs a teacher that is not there.

    Raises:
        PluginError: naming the plug-in and the setting.
    """
    for name, columns in readers(terms.scorer, terms.training.objective).items():
        if columns & TEACHER and not teacher.name:
            message = (
                f"{name} needs a teacher, and teacher.name is empty; name a model with the base's "
                "tokenizer there (in a deployment: in each site.toml), or choose another scorer"
            )
            raise PluginError(message)


def columns_at(checkpoint: int, terms: RunTerms) -> frozenset[str]:
    """Which columns the run's scorers and its objective need at a checkpoint."""
    needed = frozenset().union(*readers(terms.scorer, terms.training.objective).values())
    needed |= {"loss"} if terms.clusters.count else frozenset()
    needed -= unmeasured(terms)
    if checkpoint == 0:
        return needed - GRADIENTS - REVIEWS
    return needed - ONCE if checkpoint == terms.warm_up.rounds else needed - ONCE - REVIEWS


def unmeasured(terms: RunTerms) -> frozenset[str]:
    """Columns that no reader gets: without other prompts there is no mean over them."""
    return frozenset() if terms.measuring.contrast_prompts else CONTRASTS


def hold(work: Work, header: Header, adapter: Adapter, change: Adapter | None = None) -> str:
    """Load the request's adapter into the model, after checking that it is the one it names.

    Returns:
        What names the model's state: the adapter's hash, and with a change one over both.
    """
    held = changed_base(work.loaded.fingerprint, change)
    if adapter.base != held:
        message = f"adapter is for base {adapter.base[:12]}, this site holds {held[:12]}"
        raise ProtocolError(message)
    check_adapter(adapter)
    found = adapter_hash(adapter)
    if header.adapter != found:
        message = (
            f"adapter hash is {found[:12]}, the header says {header.adapter[:12]}; send it again"
        )
        raise ProtocolError(message)
    set_adapter(work.loaded, replace(adapter, base=work.loaded.fingerprint))
    return changed_base(found, change)


def public_key(work: Work, adapter: str) -> tuple[str, ...]:
    """What results on public samples depend on: adapter, anchors, terms, model."""
    return (adapter, work.pool.anchors_hash, canonical(work.terms), canonical(work.model))


def rows_of(table: SignalTable, keep: Sequence[int]) -> SignalTable:
    """The table with only the given rows."""
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


def spread(anchors: Sequence[Sample], number: int) -> tuple[Sample, ...]:
    """The first ``number`` anchors, taken from the domains in turn."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in anchors:
        by_domain.setdefault(sample.domain, []).append(sample)
    turns = [
        domain[i]
        for i in range(max(map(len, by_domain.values()), default=0))
        for _, domain in sorted(by_domain.items())
        if i < len(domain)
    ]
    return tuple(turns[:number])
