"""Answers that need the model: join, probe, measure, train, evaluate."""

import logging
from collections.abc import Sequence

import numpy as np

from fedwinnow.client import tables
from fedwinnow.client.anchors import calibration_rows
from fedwinnow.client.evaluation import evaluate
from fedwinnow.client.measuring import measure
from fedwinnow.client.pool import warm_up_samples
from fedwinnow.client.references import References, reference_state
from fedwinnow.client.training import train
from fedwinnow.client.work import Work, columns_at, hold, public_key, rows_of, spread
from fedwinnow.curation.files import write_json
from fedwinnow.curation.messages import (
    EvaluateRequest,
    Header,
    Joined,
    JoinRequest,
    MeasureRequest,
    MetricsReply,
    ProbeRequest,
    PublicSignals,
    Reply,
    SiteCard,
    TrainedAdapter,
    TrainRequest,
)
from fedwinnow.curation.modeling import generate, initial_adapter
from fedwinnow.curation.nouns import Adapter, Metrics, Sample, Scores, SignalTable, Status
from fedwinnow.curation.phases import Phase
from fedwinnow.curation.protocols import Objective, Ordering
from fedwinnow.curation.schedule import chosen
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.versions import versions
from fedwinnow.strategies.registry import build

logger = logging.getLogger(__name__)


def join(work: Work, request: JoinRequest) -> Reply:
    """Say who the site is and make the seeded initial adapter."""
    card = SiteCard(
        header=request.header,
        site=work.site,
        samples=work.rounded(len(work.pool.samples)),
        base=work.loaded.fingerprint,
        anchors=work.pool.anchors_hash,
        versions=versions(),
    )
    write_json(work.folder / "gate.json", work.pool.dropped)
    adapter = initial_adapter(work.loaded, seed=derive_seed(work.terms.run.seed, "adapter"))
    return Joined(header=request.header, site=work.site, card=card, adapter=adapter)


def probe(work: Work, request: ProbeRequest) -> Reply:
    """Forward-only signals with the untrained adapter."""
    return _signals(work, request.header, request.adapter, checkpoint=0, learning_rate=0.0)


def measure_checkpoint(work: Work, request: MeasureRequest) -> Reply:
    """Every signal at checkpoint t ≥ 1."""
    return _signals(
        work,
        request.header,
        request.adapter,
        checkpoint=request.checkpoint,
        learning_rate=request.learning_rate,
    )


def _signals(
    work: Work, header: Header, adapter: Adapter, *, checkpoint: int, learning_rate: float
) -> Reply:
    checked = hold(work, header, adapter)
    columns = columns_at(checkpoint, work.terms)
    key = (str(checkpoint), *public_key(work, checked))

    def references() -> References:
        return reference_state(
            work.loaded,
            work.pool.split.reference,
            columns=columns,
            max_length=work.terms.model.max_length,
            system_prompt=work.terms.model.system_prompt,
            batch_tokens=work.terms.measuring.batch_tokens,
            corrupted=corrupted_references(work) if "representation_corrupted" in columns else (),
        )

    def table(samples: Sequence[Sample], what: str) -> SignalTable:
        return measure(
            work.loaded,
            samples,
            columns=columns,
            checkpoint=checkpoint,
            references=work.workshop.public(("references", *key), references),
            contrast=work.pool.split.reference,
            contrast_prompts=work.terms.measuring.contrast_prompts,
            batch_tokens=work.terms.measuring.batch_tokens,
            max_length=work.terms.model.max_length,
            system_prompt=work.terms.model.system_prompt,
            learning_rate=learning_rate,
            progress=work.workshop.watch(f"{what}, checkpoint {checkpoint}"),
        )

    private = table(work.pool.samples, f"{work.site} measures its samples")
    tables.write_signals(work.folder / f"signals-{checkpoint}.parquet", private)
    public = work.workshop.public(
        ("rows", *key), lambda: table(work.pool.rows.samples, "measuring public anchors")
    )
    keep = np.flatnonzero(public.status == Status.OK)
    rows, shown = work.pool.rows, rows_of(public, keep.tolist())
    tables.write_signals(work.folder / f"public-{checkpoint}.parquet", shown)
    return PublicSignals(
        header=header,
        site=work.site,
        table=shown,
        kinds=tuple(rows.kinds[i] for i in keep),
        parents=tuple(rows.parents[i] for i in keep),
    )


def corrupted_references(work: Work) -> tuple[Sample, ...]:
    """Corruptions of the reference anchors: no copy of a calibration row, so scores stay honest.

    Raises:
        DataError: a kind cannot be made from so few anchors.
    """
    anchors, seed = work.terms.anchors, derive_seed(work.terms.run.seed, "corrupted references")
    rows = calibration_rows(
        work.pool.split.reference, corruptions=anchors.corruptions, copies=anchors.copies, seed=seed
    )
    return tuple(s for s, kind in zip(rows.samples, rows.kinds, strict=True) if kind != "clean")


def train_round(work: Work, request: TrainRequest) -> Reply:
    """Warm up on everything, or train an arm on what it keeps."""
    hold(work, request.header, request.adapter)
    terms, header = work.terms, request.header
    seed = derive_seed(terms.run.seed, work.site, header.phase)  # one stream over all rounds
    warm_up = header.phase == Phase.WARM_UP.value
    if warm_up:
        samples, seed = _warm_up(work, request, seed)
        scores = np.zeros(len(samples))
        ordering: Ordering = build("ordering", "shuffled", {})
        objective: Objective = build("objective", "sft", {})
        steps, rate, schedule = terms.warm_up.steps, terms.warm_up.learning_rate, "constant"
    else:
        samples, scores = _kept(work, header.arm)
        section = terms.training
        ordering = build("ordering", section.ordering.name, section.ordering.settings)
        objective = build("objective", section.objective.name, section.objective.settings)
        steps, rate, schedule = section.steps, section.learning_rate, section.schedule
    if len(samples) == 0:
        logger.info("site %s keeps no sample for arm %s and does not train", work.site, header.arm)
        return TrainedAdapter(
            header=header, site=work.site, samples=0, adapter=None, losses=(), learning_rate=0.0
        )
    order = ordering(scores, derive_seed(seed, "order"), samples)
    trained = train(
        work.loaded,
        samples,
        adapter=request.adapter,
        section=terms.training,
        steps=steps,
        step_offset=request.step_offset,
        total_steps=request.total_steps,
        order=order,
        objective=objective,
        learning_rate=rate,
        schedule=chosen(schedule, order.schedule_hint),
        seed=seed,
        max_length=terms.model.max_length,
        system_prompt=terms.model.system_prompt,
        progress=work.workshop.watch(f"{work.site} trains {header.arm or 'warm-up'}"),
    )
    return TrainedAdapter(
        header=header,
        site=work.site,
        samples=work.rounded(len(samples)),
        adapter=trained.adapter,
        losses=trained.losses,
        learning_rate=trained.learning_rate,
    )


def _warm_up(work: Work, request: TrainRequest, seed: int) -> tuple[Sequence[Sample], int]:
    """What a warm-up round trains on, and its seed: every site's own, but for public anchors."""
    terms, header = work.terms, request.header
    if terms.warm_up.data == "anchors":
        return work.pool.split.reference, derive_seed(terms.run.seed, header.phase)
    return warm_up_samples(work.pool, work.site, request.sites, terms.run.seed), seed


def _kept(work: Work, arm: str) -> tuple[Sequence[Sample], Scores]:
    """What an arm keeps, with its scores."""
    kept = np.flatnonzero(tables.read_kept(work.folder / "selection.parquet", arm))
    _, _, scores = tables.read_scores(work.folder / "scores.parquet", work.terms.scorer.name)
    return work.pool.samples.subset(kept.tolist()), scores[kept]


def evaluate_adapter(work: Work, request: EvaluateRequest) -> Reply:
    """Losses of public hold-out anchors one by one, sums for the own hold-out."""
    checked = hold(work, request.header, request.adapter)
    terms = work.terms
    anchors = work.pool.split.holdout
    key = public_key(work, checked)

    def losses(samples: Sequence[Sample]) -> np.ndarray:
        values = evaluate(
            work.loaded,
            samples,
            batch_tokens=terms.measuring.batch_tokens,
            max_length=terms.model.max_length,
            system_prompt=terms.model.system_prompt,
        )
        known: np.ndarray = values[~np.isnan(values)]  # NaN: no response token is left
        return known

    own = Metrics()
    if len(work.pool.own_holdout) > 0:
        values = losses(work.pool.own_holdout)
        own = Metrics(loss_sum=float(values.sum()), samples=len(values))
    shown = spread(anchors, request.generate)
    texts = work.workshop.public(
        ("generations", str(request.generate), *key),
        lambda: (
            generate(work.loaded, shown, max_new_tokens=48, system_prompt=terms.model.system_prompt)
            if shown
            else ()
        ),
    )
    return MetricsReply(
        header=request.header,
        site=work.site,
        public_losses=work.workshop.public(("holdout", *key), lambda: losses(anchors)),
        own=own,
        prompts=tuple(sample.prompt for sample in shown),
        references=tuple(sample.response for sample in shown),
        generations=texts,
    )
