"""Answer a training request: warm up, or train one arm on its kept samples."""

import logging
from dataclasses import replace

import numpy as np

from fedwinnow.client.runs.site_run import Work, hold, public_key
from fedwinnow.client.training.anchor_gradient import anchor_gradient
from fedwinnow.client.training.local_training import train
from fedwinnow.client.training.round_plan import arm_lesson, warm_up_lesson
from fedwinnow.client.training.site_adapter import check_shared, own_part, untrained
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.model.base_change import changed
from fedwinnow.curation.model.lora_model import fixed
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.curation.protocol.requests import TrainRequest

logger = logging.getLogger(__name__)


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
        options=work.pass_options,
        on_progress=work.workshop.on_progress(f"{work.site} trains {header.arm or 'warm-up'}"),
    )
    if header.arm:  # for the silo's own eyes, and for a simulation that compares recipes
        norms = [norm for norm in trained.gradient_norms if np.isfinite(norm)]
        write_json(work.files.gradient_norms(header.arm, header.round), {"norms": norms})
    return TrainedAdapter(
        header=header,
        site=work.site,
        samples=work.rounded(lesson.kept),
        adapter=replace(trained.adapter, base=request.adapter.base),
        losses=trained.losses,
        learning_rate=trained.learning_rate,
    )
