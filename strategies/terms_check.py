"""Check run terms against the plug-ins: columns, units, backend, reviewers, teacher."""

from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.scoring import TeacherSection
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.signal_columns import (
    BACKENDS,
    GRADIENTS,
    OTHER_MODELS,
    REVIEWS,
    TEACHER,
)
from fedwinnow.strategies.run_plugins import RunPlugins


def check_terms(terms: RunTerms) -> RunPlugins:
    """Make the plug-ins of a run, and refuse terms that this site could not fulfil later.

    Returns:
        The plug-ins.

    Raises:
        PluginError: a plug-in or a setting is unknown here; ``run.trajectory`` is "none", but a
            scorer needs gradient columns or clusters need losses along the training; the ordering
            ranks by a scorer that is not forward-only; the objective weighs by scores of another
            unit; the backend cannot measure a column; or reviewers would all have learned the same.
    """
    plugins = RunPlugins.of(terms)
    ordering, ranker = plugins.staged_ordering, plugins.stage_scorer
    if ordering is not None and ranker is not None:
        needs = ranker.columns & (GRADIENTS | OTHER_MODELS)
        if needs:
            message = (
                f"training.ordering ranks by scorer {ordering.scorer!r}, which needs gradient "
                "columns or other models' opinions, and a stage measures neither "
                f"({', '.join(sorted(needs))}); choose a forward-only scorer such as 'ira'"
            )
            raise PluginError(message)
    objective, unit = plugins.weighing_objective, plugins.scorer.unit
    if objective is not None and objective.unit not in {"", unit}:
        message = (
            f"objective {terms.training.objective.name!r} weighs by scores in {objective.unit}, "
            f"scorer {terms.scorer.name!r} gives {unit}; choose scorer 'calibrated'"
        )
        raise PluginError(message)
    for name, scorer in plugins.scorers.items():
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
    _check_backend(terms, plugins)
    _check_reviews(terms, plugins)
    return plugins


def _check_backend(terms: RunTerms, plugins: RunPlugins) -> None:
    """Refuse a plug-in that reads columns which the chosen backend cannot measure."""
    backend = terms.measuring.backend
    if backend == "auto" or terms.run.trajectory == "none":
        return
    for name, columns in plugins.columns_read.items():
        if lacking := sorted(columns & GRADIENTS - BACKENDS[backend]):
            able = [repr(one) for one, given in BACKENDS.items() if set(lacking) <= given]
            message = (
                f"{name} reads {', '.join(lacking)}, which measuring.backend = {backend!r} cannot "
                f"give; set it to {' or '.join(able)}, or choose another scorer"
            )
            raise PluginError(message)


def _check_reviews(terms: RunTerms, plugins: RunPlugins) -> None:
    """Refuse reviews where sites have no different warm-up adapters to be the reviewers."""
    for name, columns in plugins.columns_read.items():
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


def check_teacher(plugins: RunPlugins, teacher: TeacherSection) -> None:
    """Refuse a run whose scorer needs a teacher that is not there.

    Raises:
        PluginError: naming the plug-in and the setting.
    """
    for name, columns in plugins.columns_read.items():
        if columns & TEACHER and not teacher.name:
            message = (
                f"{name} needs a teacher, and teacher.name is empty; name a model with the base's "
                "tokenizer there (in a deployment: in each site.toml), or choose another scorer"
            )
            raise PluginError(message)
