"""Answers that need the model: join, probe, measure, train, evaluate."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from fedwinnow.client.measuring.evaluation import evaluate
from fedwinnow.client.measuring.token_cache import FOLDER
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.site_run import Work, columns_at, hold, public_key, spread
from fedwinnow.client.signals.collect import measuring, public_rows
from fedwinnow.client.signals.extra_columns import Beside, beside
from fedwinnow.client.signals.reviewers import check_reviewers, reviewed
from fedwinnow.client.signals.shards import forget
from fedwinnow.client.signals.teacher import taught, teacher_fingerprint
from fedwinnow.client.training.anchor_gradient import anchor_gradient
from fedwinnow.client.training.local_training import train
from fedwinnow.client.training.round_plan import arm_lesson, warm_up_lesson
from fedwinnow.client.training.site_adapter import check_own_part, check_shared, own_part, untrained
from fedwinnow.curation.adapters.algebra import adapter_hash, check_compatible
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.datatypes import Adapter, Metrics, Sample
from fedwinnow.curation.model.base_change import changed, changed_base
from fedwinnow.curation.model.pretrained import (
    encode_all,
    fixed,
    generate,
    initial_adapter,
    set_adapter,
)
from fedwinnow.curation.protocol.messages import (
    EvaluateRequest,
    Header,
    Joined,
    JoinRequest,
    JudgedAdapters,
    JudgeRequest,
    MeasureRequest,
    MetricsReply,
    ProbeRequest,
    PublicSignals,
    Reply,
    SiteCard,
    TrainedAdapter,
    TrainRequest,
)
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.signal_columns import GUESTS, REVIEWS, TEACHER
from fedwinnow.curation.versions import versions

logger = logging.getLogger(__name__)


def join(work: Work, request: JoinRequest) -> Reply:
    """Say who the site is and make the seeded initial adapter."""
    check_own_part(work.config.site, work.terms.adapter)
    teacher, scored = "", work.terms.measuring.layers
    if columns_at(0, work.terms) & TEACHER:  # before the base, so that one of them is in memory
        teacher = teacher_fingerprint(work)
    if scored:
        work.loaded.last_layers(scored)  # refused now rather than after a round of training
    card = SiteCard(
        header=request.header,
        site=work.site,
        samples=work.rounded(len(work.pool.samples)),
        base=work.loaded.fingerprint,
        anchors=work.pool.anchors_hash,
        versions=versions(),
        teacher=teacher,
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
        reviewers=request.reviewers,
    )


def _signals(
    work: Work,
    header: Header,
    adapter: Adapter,
    *,
    checkpoint: int,
    learning_rate: float,
    reviewers: Mapping[str, Adapter] = MappingProxyType({}),
) -> Reply:
    columns = columns_at(checkpoint, work.terms)
    guests = taught(work) if columns & TEACHER else Beside()  # before the student is loaded
    checked = hold(work, header, adapter)
    if columns & REVIEWS:
        check_reviewers(reviewers, adapter, work.site)
        guests = reviewed(work, reviewers)
        hold(work, header, adapter)
    table = measuring(
        work, checked, columns=columns - GUESTS, checkpoint=checkpoint, learning_rate=learning_rate
    )
    private = beside(table, guests.private)(work.pool.samples, f"{work.site} measures its samples")
    tables.write_signals(work.folder / f"signals-{checkpoint}.parquet", private)
    public = public_rows(
        work, checked, beside(table, guests.public),
        columns=columns, checkpoint=checkpoint, guests=guests.key,
    )  # fmt: skip
    shown = public.trajectory[0]
    tables.write_signals(work.folder / f"public-{checkpoint}.parquet", shown)
    forget(work.folder)
    return PublicSignals(
        header=header, site=work.site, table=shown, kinds=public.kinds, parents=public.parents
    )


def train_round(work: Work, request: TrainRequest) -> Reply:
    """Warm up on everything, or train an arm on what it keeps."""
    checked = hold(work, request.header, request.adapter, request.change)
    left = untrained(request.adapter, work.config.site)
    check_shared(request.adapter, work.config.site, request.frozen)
    with changed(work.loaded, request.change):
        gradient = None
        if work.site in request.gradients_from:
            key = ("anchor gradient", *public_key(work, checked))
            gradient = work.workshop.public(key, lambda: anchor_gradient(work))
            gradient = replace(gradient, base=request.adapter.base)
        with fixed(work.loaded, request.frozen, left):
            return replace(_train(work, request, checked), gradient=gradient)


def _train(work: Work, request: TrainRequest, checked: str) -> TrainedAdapter:
    terms, header = work.terms, request.header
    warm_up = header.phase == Phase.WARM_UP.value
    lesson = warm_up_lesson(work, request) if warm_up else arm_lesson(work, request, checked)
    if len(lesson.samples) == 0:
        logger.info("site %s keeps no sample for arm %s and does not train", work.site, header.arm)
        return TrainedAdapter(
            header=header, site=work.site, samples=0, adapter=None, losses=(), learning_rate=0.0
        )
    trained = train(
        work.loaded,
        lesson.samples,
        adapter=own_part(replace(request.adapter, base=work.loaded.fingerprint), work.config.site),
        section=terms.training,
        steps=lesson.steps,
        step_offset=request.step_offset,
        total_steps=request.total_steps,
        first_step=lesson.first_step,
        order=lesson.order,
        objective=lesson.objective,
        weights=lesson.weights,
        learning_rate=lesson.learning_rate,
        schedule=lesson.schedule,
        seed=lesson.seed,
        max_length=terms.model.max_length,
        system_prompt=terms.model.system_prompt,
        progress=work.workshop.watch(f"{work.site} trains {header.arm or 'warm-up'}"),
    )
    if header.arm:  # for the silo's own eyes, and for a simulation that compares recipes
        norms = [norm for norm in trained.gradient_norms if np.isfinite(norm)]
        file = work.folder / f"gradient-norms-{header.arm}-{header.round}.json"
        write_json(file, {"norms": norms})
    return TrainedAdapter(
        header=header,
        site=work.site,
        samples=work.rounded(lesson.kept),
        adapter=replace(trained.adapter, base=request.adapter.base),
        losses=trained.losses,
        learning_rate=trained.learning_rate,
    )


def evaluate_adapter(work: Work, request: EvaluateRequest) -> Reply:
    """Losses of public hold-out anchors one by one, sums for the own hold-out."""
    checked = hold(work, request.header, request.adapter)
    anchors = work.pool.split.holdout
    key = public_key(work, checked)
    own = Metrics()
    if len(work.pool.own_holdout) > 0:
        values = _losses(work, work.pool.own_holdout)
        own = Metrics(loss_sum=float(values.sum()), samples=len(values))
    shown = spread(anchors, request.generate)
    texts = work.workshop.public(
        ("generations", str(request.generate), *key),
        lambda: (
            generate(
                work.loaded, shown, max_new_tokens=48, system_prompt=work.terms.model.system_prompt
            )
            if shown
            else ()
        ),
    )
    return MetricsReply(
        header=request.header,
        site=work.site,
        public_losses=work.workshop.public(("holdout", *key), lambda: _losses(work, anchors)),
        own=own,
        prompts=tuple(sample.prompt for sample in shown),
        references=tuple(sample.response for sample in shown),
        generations=texts,
    )


def judge_adapters(work: Work, request: JudgeRequest) -> Reply:
    """Losses of public reference anchors under the other sites' adapters of a round."""
    anchors, loaded = _with_target(work, work.pool.split.reference), work.loaded
    before = hold(work, request.header, request.adapter, request.change)
    check_compatible(request.candidates, request.adapter)

    def losses(adapter: Adapter, name: str) -> np.ndarray:
        set_adapter(loaded, replace(adapter, base=loaded.fingerprint))
        key = ("reference", *public_key(work, name))
        return work.workshop.public(key, lambda: _losses(work, anchors))

    with changed(loaded, request.change):
        return JudgedAdapters(
            header=request.header,
            site=work.site,
            before=losses(request.adapter, before),
            losses={
                name: losses(adapter, changed_base(adapter_hash(adapter), request.change))
                for name, adapter in sorted(request.candidates.items())
                if name != work.site
            },
            domains=tuple(sample.domain for sample in anchors),
        )


def _with_target(work: Work, samples: Sequence[Sample]) -> list[Sample]:
    """Those that have a response token within the longest sample."""
    terms = work.terms.model
    encodings = encode_all(
        work.loaded, samples, max_length=terms.max_length, system_prompt=terms.system_prompt
    )
    return [one for one, tokens in zip(samples, encodings, strict=True) if tokens.has_target]


def _losses(work: Work, samples: Sequence[Sample]) -> np.ndarray:
    """Mean token loss of each sample that has a response token, nats."""
    values = evaluate(
        work.loaded,
        samples,
        batch_tokens=work.terms.measuring.batch_tokens,
        max_length=work.terms.model.max_length,
        system_prompt=work.terms.model.system_prompt,
        tokens=work.folder / FOLDER,
    )
    known: np.ndarray = values[~np.isnan(values)]
    return known
