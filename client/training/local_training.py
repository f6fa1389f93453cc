"""Train a site's adapter for an exact number of optimizer steps, repeatable on a CPU.

One step draws ``batch_size · accumulation`` samples from an endless stream of passes over the kept
samples, and takes θ ← AdamW(θ, ∇L) with L from the objective, a clipped gradient, and the learning
rate of a plan that spans all rounds. The optimizer starts fresh in every call.

Reference:
    I. Loshchilov, F. Hutter, Decoupled Weight Decay Regularization (AdamW), ICLR 2019,
    https://arxiv.org/abs/1711.05101
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from jaxtyping import Float

from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions
from fedwinnow.client.training.distinct_steps import StepGroup, step_batches
from fedwinnow.client.training.sample_stream import (
    TrainingBatch,
    check_order,
    sample_stream,
    training_batches,
)
from fedwinnow.client.training.watcher import Watch, Watcher
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.datatypes import Adapter, Sample
from fedwinnow.curation.errors import ConfigError, NonFiniteError
from fedwinnow.curation.gradients.clipped_sum import SampleClipper, clipped_gradients
from fedwinnow.curation.learning_rate import learning_rate as planned_rate
from fedwinnow.curation.model.lora_model import LoadedModel, get_adapter, set_adapter
from fedwinnow.curation.model.pretrained import encode
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.tokenization import Encoding
from fedwinnow.strategies.interfaces.objective import Objective
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.maths.order_schedule import why_undone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """Result of a round of local training."""

    adapter: Adapter
    losses: tuple[float, ...]
    """Per step: mean loss of the samples it drew, nats, without weights or a proximal term."""
    learning_rate: float
    """Mean learning rate of the round's steps."""
    gradient_norms: tuple[float, ...]
    """Per step: norm of the gradient before clipping; stays at the site."""


def train(  # noqa: PLR0913 - every choice is an argument, not a section of the config
    loaded: LoadedModel,
    samples: Sequence[Sample],
    *,
    adapter: Adapter,
    section: TrainingSection,
    steps: int,
    step_offset: int,
    total_steps: int,
    order: Order,
    objective: Objective,
    weights: Float[np.ndarray, " samples"] | None = None,
    first_step: int = 0,
    make_up: StepGroup | None = None,
    learning_rate: float,
    schedule: str,
    seed: int,
    options: PassOptions,
    on_progress: OnProgress | None = None,
    watch: Watch | None = None,
    cap: float | None = None,
) -> TrainingResult:
    """Train from ``adapter`` for exactly ``steps`` optimizer steps.

    The first pass follows ``order``; later passes repeat it where ``order.keep_order``, else each
    is shuffled by ``seed``. The stream goes on where earlier rounds stopped (``step_offset``), so a
    curriculum spans rounds. Samples without a target are passed over. On a CPU equal arguments give
    a bit-identical adapter, whatever the process did before; its random state is left alone.

    Args:
        loaded: Model to train with; holds the trained adapter afterwards.
        samples: The samples that the site kept.
        adapter: Adapter to start from.
        section: Batch size, accumulation, both clippings, decay, precision; its rate and schedule
            are NOT read, see ``learning_rate`` and ``schedule``.
        steps: Optimizer steps of this call, at least 1.
        step_offset: Optimizer steps of earlier rounds.
        total_steps: Optimizer steps of all rounds: the learning-rate plan spans them.
        order: A permutation of the samples' positions.
        objective: What a step minimises.
        weights: How much each sample counts: its loss is multiplied before the objective sees it.
        first_step: Optimizer step of the plan with which the passes over these samples begin.
        make_up: Make-up of each step, where its draws must be distinct; None lets a step that
            crosses passes draw a sample twice.
        learning_rate: Peak of the plan.
        schedule: Learning-rate schedule (``strategies/maths/order_schedule.py``); a warning is
            logged in the first round where it undoes the order.
        seed: Seed of later passes and of dropout.
        options: How samples are read; batches are ``section``'s, and no tokens are kept.
        on_progress: Called with (steps done, steps) after each.
        watch: Observes every pass (``client/training/watcher.py``); none in a run.
        cap: Largest loss of a sample that is told, nats. With one, no error tells that a loss or a
            gradient is not finite: such a step changes nothing. None tells losses as they are.

    Raises:
        ConfigError: the schedule is unknown, or the precision needs another device.
        EmptySelectionError: no sample, or none with a target token.
        IncompatibleAdapterError: the adapter does not fit the model.
        NonFiniteError: there is no ``cap``, and a loss is NaN or infinite; names the step.
        PluginError: the order is no permutation.
        ProtocolError: the steps lie outside the plan.
    """
    rates = [
        planned_rate(step_offset + step, total_steps, learning_rate, schedule, section.warmup_share)
        for step in range(steps)
    ]
    check_order(order, len(samples))
    if step_offset == 0 and (why := why_undone(order, total_steps, schedule, section.warmup_share)):
        logger.warning("%s", why)
    set_adapter(loaded, adapter)
    drawn = _batches(
        order,
        _encoder(loaded, samples, options),
        section,
        seed=seed,
        steps_before=step_offset - first_step,
        make_up=make_up,
        weights=np.ones(len(samples)) if weights is None else weights,
    )
    dropout = derive_seed(seed, "dropout", step_offset)
    with _training_mode(loaded, section, dropout) as clip, (watch or _unwatched)(loaded) as watcher:
        told = _run(loaded, drawn, section, objective, rates, on_progress, watcher, clip, cap)
    losses, norms = told
    logger.info("trained %d steps on %d samples, last loss %.4f", steps, len(samples), losses[-1])
    return TrainingResult(
        adapter=get_adapter(loaded),
        losses=tuple(losses),
        learning_rate=math.fsum(rates) / len(rates),
        gradient_norms=tuple(norms),
    )


def _batches(
    order: Order,
    encoding: Callable[[int], Encoding],
    section: TrainingSection,
    *,
    seed: int,
    steps_before: int,
    make_up: StepGroup | None,
    weights: Float[np.ndarray, " samples"],
) -> Iterator[TrainingBatch]:
    """Return the endless batches of the steps, as distinct as their make-up asks."""
    size = section.batch_size
    if make_up is not None:
        return step_batches(
            order, encoding, seed=seed, steps_before=steps_before, make_up=make_up,
            weights=weights, size=size,
        )  # fmt: skip
    stream = sample_stream(order, seed, steps_before * size * section.accumulation)
    return training_batches(stream, encoding, weights=weights, size=size, patience=len(weights))


def _encoder(
    loaded: LoadedModel, samples: Sequence[Sample], options: PassOptions
) -> Callable[[int], Encoding]:
    """Return the function that encodes the sample at a place; no tokens are kept."""
    length, system_prompt = options.max_length, options.system_prompt
    return lambda place: encode(
        loaded, samples[place], max_length=length, system_prompt=system_prompt
    )


@contextmanager
def _clipped(loaded: LoadedModel, section: TrainingSection) -> Iterator[SampleClipper | None]:
    """Clip samples' gradients inside the block, where the section asks for it."""
    if section.sample_grad_norm == 0:
        yield None
        return
    layers = dict(loaded.layers())
    with clipped_gradients(loaded.model, layers, section.sample_grad_norm) as clipper:
        yield clipper


@contextmanager
def _unwatched(_loaded: LoadedModel) -> Iterator[Watcher]:
    yield Watcher()


def _run(  # noqa: PLR0913, PLR0917 - one loop, and what it needs
    loaded: LoadedModel,
    stream: Iterator[TrainingBatch],
    section: TrainingSection,
    objective: Objective,
    rates: Sequence[float],
    on_progress: OnProgress | None,
    watcher: Watcher,
    clipper: SampleClipper | None,
    cap: float | None,
) -> tuple[list[float], list[float]]:
    """Run the optimizer loop; return the mean sample loss and the gradient norm of each step."""
    accelerator = _accelerator(loaded.device, section)
    parameters = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    initial = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = accelerator.prepare(_optimizer(parameters, section))
    optimizer.zero_grad()
    losses, norms, norm = [], [], torch.zeros(())
    draws = section.batch_size * section.accumulation
    for step, rate in enumerate(rates):
        _set_rate(optimizer, rate)
        mean = torch.zeros((), device=loaded.device)
        usable = torch.ones((), dtype=torch.bool, device=loaded.device)
        for _ in range(section.accumulation):
            drawn = next(stream)
            with accelerator.accumulate(loaded.model):
                with accelerator.autocast():
                    each = watcher.losses(loaded, drawn)
                value = objective(each * drawn.weights.to(each), parameters, initial)
                mean += _told(each.detach(), cap).mean() / section.accumulation
                accelerator.backward(value)
                if clipper is not None:
                    usable &= clipper.add_clipped(draws).isfinite().all() | (cap is not None)
                watcher.passed(drawn, step)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters.values(), section.max_grad_norm)
                    scaled = section.precision == "fp16"  # the scaler skips such a step itself
                    usable &= torch.isfinite(norm) | scaled
                    if cap is None:
                        finite = usable & torch.isfinite(mean) & torch.isfinite(value)
                        _check_finite(finite, mean, f"{step + 1} of {len(rates)}", rate)
                if bool(usable):
                    optimizer.step()
                optimizer.zero_grad()
        losses.append(float(mean))
        norms.append(float(norm))
        if on_progress is not None:
            on_progress(step + 1, len(rates))
    if cap is not None:
        _restore_unless_finite(parameters, initial)
    return losses, norms


def _optimizer(
    parameters: Mapping[str, torch.Tensor], section: TrainingSection
) -> torch.optim.Optimizer:
    """Return AdamW without a rate, which each step sets."""
    return torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=section.weight_decay)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _told(losses: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return losses within [0, cap], NaN and infinity as cap; as they are without cap."""
    if cap is None:
        return losses
    return losses.nan_to_num(nan=cap, posinf=cap, neginf=cap).clamp(0.0, cap)


def _restore_unless_finite(
    parameters: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> None:
    """Put the initial values back where a parameter is not finite, so that the adapter is."""
    if not all(bool(torch.isfinite(value).all()) for value in parameters.values()):
        logger.warning("training: the adapter left the finite numbers; the round changes nothing")
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(initial[name])


def _check_finite(finite: torch.Tensor, loss: torch.Tensor, step: str, rate: float) -> None:
    if not bool(finite):
        message = (
            f"training step {step}: expected a finite loss and gradient, got loss {float(loss)} at "
            f"learning rate {rate:.3g}; lower training.learning_rate or set "
            "training.precision = 'no'"
        )
        raise NonFiniteError(message)


def _accelerator(device: torch.device, section: TrainingSection) -> Accelerator:
    """Return an accelerator of this call alone."""
    if section.precision == "fp16" and device.type == "cpu":
        message = (
            "training.precision = 'fp16' needs a CUDA device, got cpu; set it to 'no' or 'bf16'"
        )
        raise ConfigError(message)
    # accelerate keeps one state per process and refuses a second precision; nothing of an earlier
    # call may live on, so its own reset is used (it offers no other).
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - see above
    GradientState._reset_state()  # noqa: SLF001 - see above
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=section.precision,
            gradient_accumulation_steps=section.accumulation,
        )
    except ValueError as error:
        message = (
            f"training.precision = {section.precision!r} does not run on {device}: {error}; "
            "set it to 'no' or 'bf16'"
        )
        raise ConfigError(message) from error


@contextmanager
def _training_mode(
    loaded: LoadedModel, section: TrainingSection, seed: int
) -> Iterator[SampleClipper | None]:
    """Set train mode, checkpointing, seeded dropout and clipping inside the block; restore all."""
    model, was_training = loaded.model, loaded.model.training
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.train()
        if section.gradient_checkpointing:
            _checkpointing(model, "enable")
        try:
            with _clipped(loaded, section) as clip:
                yield clip
        finally:
            if section.gradient_checkpointing:
                _checkpointing(model, "disable")
            model.zero_grad(set_to_none=True)
            model.train(was_training)


def _checkpointing(model: torch.nn.Module, change: Literal["enable", "disable"]) -> None:
    """Switch checkpointing under its newer or older name (transformers renamed it in 5.x)."""
    names = [f"{kind}_checkpointing_{change}" for kind in ("activation", "gradient")]
    switch = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    try:
        if switch is None:
            message = f"{type(model).__name__} has neither {' nor '.join(names)}"
            raise ValueError(message)  # noqa: TRY301 - the same as a model that refuses
        switch(*([{"use_reentrant": False}] if change == "enable" else []))
    except ValueError as error:
        message = (
            f"training.gradient_checkpointing: not supported by the model ({error}); set false"
        )
        raise ConfigError(message) from error
