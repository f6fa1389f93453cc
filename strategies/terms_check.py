"""Check run terms against the plug-ins: columns, units, backend, reviewers, teacher."""

from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import TeacherSection
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.signal_columns import (
    BACKENDS,
    CONTRASTS,
    GRADIENTS,
    GUESTS,
    ONCE,
    REVIEWS,
    TEACHER,
)
from fedwinnow.strategies.interfaces.ordering import StagedOrdering
from fedwinnow.strategies.registry import build
from fedwinnow.strategies.run_plugins import readers, scorers, weighing


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
