"""Stages over the rounds: the best remaining share of what an arm keeps, ranked anew by the model.

With K stages over R rounds, round r (from 0) belongs to stage ⌊r · K / R⌋; K is at most R and at
most the number n of kept samples. Stage i takes ⌊n (i + 1) / K⌋ − ⌊n i / K⌋ samples: the best of
those that no other stage took, by a scorer's opinion at the adapter that the stage begins with.
What a stage took is kept on the disk, so that every sample is in one stage, and a repeated or
resumed round trains on the same samples in the same order. Nothing of it leaves the site.

Reference:
    Y. Du et al., FedDQC, Findings of ACL 2025, section 3.3, https://arxiv.org/abs/2410.11540
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.client.signals.collect import measure_public_rows, signal_measurer
from fedwinnow.client.signals.shards import remove_shards
from fedwinnow.curation.datatypes import Scores
from fedwinnow.curation.errors import ProtocolError
from fedwinnow.curation.signal_columns import GRADIENTS
from fedwinnow.strategies.run_plugins import unmeasured_columns

Places = Int[np.ndarray, " samples"]
"""Positions of samples in the silo's data order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run's training rounds at one site."""

    number: int
    """From 0."""
    count: int
    """How many stages there are, at least 1."""
    first_round: int
    """The round that it begins with, from 1."""

    def size(self, samples: int) -> int:
        """How many of so many kept samples it trains on."""
        return samples * (self.number + 1) // self.count - samples * self.number // self.count


def stage_of(number: int, *, rounds: int, stages: int, samples: int) -> Stage:
    """The stage of a round, counted from 1; a round beyond the last belongs to the last stage."""
    count = max(1, min(stages, rounds, samples))
    stage = (min(max(number, 1), rounds) - 1) * count // rounds
    first = -(-stage * rounds // count) + 1
    return Stage(number=stage, count=count, first_round=first)


def choose_stage_samples(
    run: SiteRun, arm: str, stage: Stage, kept: Places, score: Callable[[Places], Scores]
) -> tuple[Places, Scores]:
    """The samples of a stage, best first, with the scores by which they were chosen.

    A sample without a score at this adapter comes after all others. A site that was not there when
    the stage began ranks at the first round of it that it sees.

    Args:
        run: The run at this site.
        arm: The arm whose kept samples are meant.
        stage: Which stage.
        kept: What the arm keeps.
        score: Scores samples with the adapter of this round; called for those still to be taken.
    """
    own = run.files.stage(arm, stage.number)
    if not own.exists():
        taken = [tables.read_stage(file)[0] for file in run.files.all_stages(arm)]
        rest = np.setdiff1d(kept, np.concatenate([np.zeros(0, dtype=np.int64), *taken]))
        scores = score(rest)
        ranks = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
        best = ranks[: stage.size(len(kept))]
        tables.write_stage(own, rest[best], scores[best])
    return tables.read_stage(own)


def stage_scoring(run: SiteRun, adapter: str) -> Callable[[Places], Scores]:
    """What scores samples of the silo at the held adapter, by one forward-only scorer.

    The scorer is fitted on the site's own measurement of the public rows at the same adapter.
    """
    scorer = run.plugins.stage_scorer
    if scorer is None:  # pragma: no cover - called only for an ordering with stages
        message = "this run's ordering has no stages"
        raise ProtocolError(message)
    columns = scorer.columns - GRADIENTS - unmeasured_columns(run.terms)
    table = signal_measurer(run, adapter, columns=columns, checkpoint=0)

    def score(places: Places) -> Scores:
        public = measure_public_rows(run, adapter, table, columns=columns, checkpoint=0)
        samples = run.data.samples.subset(places.tolist())
        mine = table(samples, f"{run.site} ranks its samples")
        remove_shards(run.files)
        return scorer.score((mine,), scorer.fit(public))

    return score
