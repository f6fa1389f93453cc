"""Make the plug-ins of a run, and tell what each of them needs.

A site makes its plug-ins once and keeps them with the run (:class:`RunPlugins`). The server makes
the weighting and the merging rule anew for every exchange (:class:`MergePlugins`), so that a run
resumes from what is committed and from nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedwinnow.curation.config.run import RunConfig, RunTerms
from fedwinnow.curation.signal_columns import (
    CONTRASTS,
    GRADIENTS,
    ONCE,
    REVIEWS,
)
from fedwinnow.strategies.interfaces.merging import FactorMerging, Merging
from fedwinnow.strategies.interfaces.objective import Objective, WeighingObjective
from fedwinnow.strategies.interfaces.ordering import Ordering, StagedOrdering
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.interfaces.weighting import (
    AligningWeighting,
    JudgedWeighting,
    Weighting,
)
from fedwinnow.strategies.registry import build

FEWEST = 3
"""Fewest members of a run with reviews: with fewer, a lone reviewer disagrees with nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlugins:
    """Plug-ins that every site runs, made from the agreed terms."""

    terms: RunTerms
    scorers: Mapping[str, Scorer]
    """Name → scorer; the deciding one first, then those of the comparison."""
    ordering: Ordering
    objective: Objective
    stage_scorer: Scorer | None
    """Scorer that ranks before each stage; None where the ordering has no stages."""

    @classmethod
    def of(cls, terms: RunTerms) -> "RunPlugins":
        """Make the plug-ins of a run.

        Raises:
            PluginError: a plug-in or a setting is unknown here.
        """
        section, training = terms.scorer, terms.training
        scorers = {section.name: build("scorer", section.name, section.settings)}
        for name in section.comparison:
            if name not in scorers:
                scorers[name] = build("scorer", name, {})
        ordering = build("ordering", training.ordering.name, training.ordering.settings)
        staged = isinstance(ordering, StagedOrdering)
        return cls(
            terms=terms,
            scorers=scorers,
            ordering=ordering,
            objective=build("objective", training.objective.name, training.objective.settings),
            stage_scorer=build("scorer", ordering.scorer, {}) if staged else None,
        )

    @property
    def scorer(self) -> Scorer:
        """Return the deciding scorer."""
        return self.scorers[self.terms.scorer.name]

    @property
    def staged_ordering(self) -> StagedOrdering | None:
        """Return the ordering where it has stages, else None."""
        return self.ordering if isinstance(self.ordering, StagedOrdering) else None

    @property
    def weighing_objective(self) -> WeighingObjective | None:
        """Return the objective where it weighs samples, else None."""
        return self.objective if isinstance(self.objective, WeighingObjective) else None

    @property
    def columns_read(self) -> dict[str, frozenset[str]]:
        """Return the signal columns that each plug-in reads, by "kind 'name'"; scorers first."""
        found = {f"scorer {name!r}": scorer.columns for name, scorer in self.scorers.items()}
        if self.weighing_objective is not None:
            name = self.terms.training.objective.name
            found[f"objective {name!r}"] = self.weighing_objective.columns
        return found

    @property
    def reviews_reader(self) -> str:
        """Return the first plug-in that reads reviews, as "kind 'name'"; "" for none."""
        return next((name for name, columns in self.columns_read.items() if columns & REVIEWS), "")

    def columns_at(self, checkpoint: int) -> frozenset[str]:
        """Return the signal columns to measure at a checkpoint, for scorers and objective."""
        terms = self.terms
        needed = frozenset().union(*self.columns_read.values())
        needed |= {"loss"} if terms.clusters.count else frozenset()
        needed -= unmeasured_columns(terms)
        if checkpoint == 0:
            return needed - GRADIENTS - REVIEWS
        return needed - ONCE if checkpoint == terms.warm_up.rounds else needed - ONCE - REVIEWS


def unmeasured_columns(terms: RunTerms) -> frozenset[str]:
    """Return the columns that no plug-in gets: the contrasts, where no other prompts are set."""
    return frozenset() if terms.measuring.contrast_prompts else CONTRASTS


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlugins:
    """Plug-ins that merge the adapters of a round, made from the run's configuration."""

    weighting: Weighting
    merging: Merging

    @classmethod
    def of(cls, config: RunConfig) -> "MergePlugins":
        """Make the weighting and the merging rule.

        Raises:
            PluginError: the weighting, the rule or a setting of theirs is unknown or wrong.
        """
        return cls(
            weighting=build("weighting", config.weighting.name, config.weighting.settings),
            merging=build("merging", config.merging.name, config.merging.settings),
        )

    @property
    def reads_alignments(self) -> bool:
        """Return whether the weighting reads how updates change the anchors' loss."""
        return isinstance(self.weighting, AligningWeighting)

    @property
    def reads_judgements(self) -> bool:
        """Return whether the weighting reads the members' measurements of each adapter."""
        return isinstance(self.weighting, JudgedWeighting)

    @property
    def factor_merging(self) -> FactorMerging | None:
        """Return the rule where all sites share one factor, else None."""
        return self.merging if isinstance(self.merging, FactorMerging) else None

    def frozen_factor(self, number: int) -> str:
        """Return the factor no site trains in a round, counted from 1: "a", "b", or ""."""
        if self.factor_merging is None:
            return ""
        trained = self.factor_merging.trains(number - 1)
        return next((factor for factor in ("a", "b") if factor not in trained), "")
