"""Answer a training request: warm up, or train one arm on its kept samples."""

import logging
from dataclasses import replace

import numpy as np

from fedwinnow.client.phases.sample_losses import largest_loss
from fedwinnow.client.runs.refusals import refused_by
from fedwinnow.client.runs.site_run import SiteRun, load_checked_adapter, public_result_key
from fedwinnow.client.training.anchor_gradient import anchor_gradient
from fedwinnow.client.training.local_training import train
from fedwinnow.client.training.round_plan import plan_arm_round, plan_warm_up
from fedwinnow.client.training.site_adapter import (
    check_shared_factor,
    cut_to_site,
    untrained_modules,
)
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.model.base_change import apply_base_change
from fedwinnow.curation.model.lora_model import freeze_factors
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.phases import Phase
from fedwinnow.curation.protocol.replies import TrainedAdapter
from fedwinnow.curation.protocol.requests import TrainRequest

logger = logging.getLogger(__name__)


def train_round(run: SiteRun, request: TrainRequest) -> Reply:
    """Run a warm-up round, or train an arm on its kept samples."""
    checked = load_checked_adapter(run, request.header, request.adapter, request.change)
    left = untrained_modules(request.adapter, run.config.site)
    with refused_by("terms"):
        check_shared_factor(request.adapter, run.config.site, request.frozen)
    with apply_base_change(run.loaded, request.change):
        gradient = None
        if run.site in request.gradients_from:
            key = ("anchor gradient", *public_result_key(run, checked))
            gradient = run.cache.cached_public(key, lambda: anchor_gradient(run))
            gradient = replace(gradient, base=request.adapter.base)
        with freeze_factors(run.loaded, request.frozen, left):
            return replace(_train(run, request, checked), gradient=gradient)


def _train(run: SiteRun, request: TrainRequest, checked: str) -> TrainedAdapter:
    terms, header = run.terms, request.header
    warm_up = header.phase == Phase.WARM_UP.value
    plan = plan_warm_up(run, request) if warm_up else plan_arm_round(run, request, checked)
    if len(plan.samples) == 0 or not plan.fills_steps:
        logger.info(
            "site %s has %d samples for %s, too few for a step, and does not train",
            run.site, len(plan.samples), header.arm or "warm-up",
        )  # fmt: skip
        return TrainedAdapter(
            header=header, site=run.site, samples=0, adapter=None, losses=(), learning_rate=0.0
        )
    trained = train(
        run.loaded,
        plan.samples,
        adapter=cut_to_site(replace(request.adapter, base=run.loaded.fingerprint), run.config.site),
        section=terms.training,
        steps=plan.steps,
        step_offset=request.step_offset,
        total_steps=request.total_steps,
        first_step=plan.first_step,
        make_up=plan.make_up,
        order=plan.order,
        objective=plan.objective,
        weights=plan.weights,
        learning_rate=plan.learning_rate,
        schedule=plan.schedule,
        seed=plan.seed,
        options=run.pass_options,
        cap=None if run.config.simulation else largest_loss(run),
        on_progress=run.cache.on_progress(f"{run.site} trains {header.arm or 'warm-up'}"),
    )
    if header.arm:  # for the silo's operator, and for a simulation that compares recipes
        norms = [norm for norm in trained.gradient_norms if np.isfinite(norm)]
        write_json(run.files.gradient_norms(header.arm, header.round), {"norms": norms})
    return TrainedAdapter(
        header=header,
        site=run.site,
        samples=run.rounded_group(plan.kept),
        adapter=replace(trained.adapter, base=request.adapter.base),
        losses=trained.losses,
        learning_rate=trained.learning_rate,
    )
