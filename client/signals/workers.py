"""Measure shards side by side in worker processes, each with a base model of its own.

Workers run on this machine (one a GPU, where there are GPUs), or on a Ray cluster of the silo's
own. Samples travel to them in memory, never over the disk; they return numbers. The silo's
``site.toml`` alone decides whether there are workers: nothing that a server sends can.
"""

import atexit
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.pass_options import PassOptions
from fedwinnow.client.runs.process_cache import set_deterministic
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.site import ComputeSection
from fedwinnow.curation.datatypes import Adapter, Sample, SignalTable
from fedwinnow.curation.errors import ConfigError, CurationError, ModelError
from fedwinnow.curation.model.lora_model import LoadedModel, set_adapter
from fedwinnow.curation.model.pretrained import load_model
from fedwinnow.curation.process_guard import marked_children, scratch_folder

logger = logging.getLogger(__name__)

RESTARTS = 2
"""How often a shard is measured again after its worker died."""
AHEAD = 2
"""Shards handed out to each worker: one being measured, one waiting."""
_SURROUNDINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No usage statistics go to Ray's makers; a worker without a GPU keeps the machine's settings."""
_HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""On every system: a local Ray takes 127.0.0.1 as its address, so that no other machine joins."""
_OWN: Mapping[str, Any] = {
    "include_dashboard": False,
    "_system_config": {"automatic_object_spilling_enabled": False},  # no sample goes to the disk
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerModel:
    """Settings of the model that a worker loads once."""

    section: ModelSection
    adapter: AdapterSection
    seed: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringTask:
    """Measuring pass: the adapter to load, and the arguments of :func:`measure`."""

    adapter: Adapter
    options: PassOptions
    arguments: Mapping[str, Any]


class Worker:
    """Model of one process, and the adapter that it holds."""

    def __init__(self, model: WorkerModel) -> None:
        """Load the model; keep the error of a model that cannot be loaded for the first call.

        Ray would start a worker that raises here again and again, and print each traceback.
        """
        set_deterministic(model.threads)
        self._loaded: LoadedModel | CurationError
        try:
            self._loaded = load_model(model.section, model.adapter, seed=model.seed)
        except CurationError as error:
            self._loaded = error
        self._held = ""

    def model(self) -> LoadedModel:
        """Return the loaded model.

        Raises:
            ModelError: it cannot be loaded here.
        """
        if isinstance(self._loaded, CurationError):
            raise self._loaded
        return self._loaded

    def process(self) -> int:
        """Return the worker's process id on its machine, once its model is loaded.

        Raises:
            ModelError: it cannot be loaded here.
        """
        self.model()
        return os.getpid()

    def measure(self, task: MeasuringTask, samples: Sequence[Sample]) -> SignalTable:
        """Measure samples with a task's adapter.

        Raises:
            CurationError: whatever stands in the way.
        """
        wanted = adapter_hash(task.adapter)
        if wanted != self._held:
            set_adapter(self.model(), task.adapter)
            self._held = wanted
        return measure(self.model(), samples, task.options, **task.arguments)


@dataclass(slots=True, kw_only=True)
class Workers:
    """Workers of a silo, started at first use and warm afterwards."""

    section: ComputeSection
    model: WorkerModel
    _actors: list[Any] = field(default_factory=list)

    def each(
        self, task: MeasuringTask, shards: Iterable[tuple[int, Sequence[Sample]]]
    ) -> Iterator[tuple[int, SignalTable]]:
        """Measure shards side by side, and yield their tables in the order in which they finish.

        Shards are read only as workers become free. A worker that dies is started again.

        Raises:
            CurationError: a shard cannot be measured.
            ModelError: a worker died again and again.
            ConfigError: ``compute.ray`` cannot be reached, or has no room for a worker.
        """
        import ray  # noqa: PLC0415 - seconds, and only where there are workers

        actors = self._started()
        shared = ray.put(task)
        waiting: dict[Any, tuple[Any, int]] = {}
        free = [actor for actor in actors for _ in range(AHEAD)]
        coming = iter(shards)
        while True:
            while free and (shard := next(coming, None)) is not None:
                actor = free.pop(0)
                waiting[actor.measure.remote(shared, list(shard[1]))] = (actor, shard[0])
            if not waiting:
                return
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            actor, index = waiting.pop(done)
            free.append(actor)
            yield index, _result(done)

    def processes(self) -> list[int]:
        """Return the process ids of the workers, each on its own machine."""
        import ray  # noqa: PLC0415 - as above

        found: list[int] = ray.get([actor.process.remote() for actor in self._started()])
        return found

    def _started(self) -> list[Any]:
        """Return the actors, started at first use."""
        if not self._actors:
            self._actors = _start(self.section, self.model)
        return self._actors


def _result(reference: Any, during: str = "measured one shard") -> Any:  # noqa: ANN401 - Ray is not typed
    """Return what a worker answered.

    Raises:
        CurationError: the worker raised it.
        ModelError: the worker died again and again.
    """
    import ray  # noqa: PLC0415 - as above

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CurationError):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        message = (
            f"compute.workers: a worker died {RESTARTS + 1} times while it {during}; "
            "lower measuring.batch_tokens, or compute.workers if memory ran out"
        )
        raise ModelError(message) from error


def _start(section: ComputeSection, model: WorkerModel) -> list[Any]:
    """Start or reach Ray, and start the workers, each of which loads its model."""
    os.environ.update(_SURROUNDINGS | ({} if section.ray else _HERE))
    import ray  # noqa: PLC0415 - as above

    gpus = _gpus(section)
    try:
        if not ray.is_initialized():
            _reach_ray(section.ray)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        message = f"compute.ray {section.ray!r}: no Ray there ({error}); start it, or leave it ''"
        raise ConfigError(message) from error
    room = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray is not typed
    if room.get("CPU", 0) < section.workers or room.get("GPU", 0) < gpus * section.workers:
        message = (
            f"compute.workers = {section.workers} with {gpus:g} GPUs each: expected as many "
            f"processors and GPUs, Ray has {room.get('CPU', 0):g} and {room.get('GPU', 0):g}; "
            "lower compute.workers or compute.gpus"
        )
        raise ConfigError(message)
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=RESTARTS)(
        Worker
    )
    logger.info("%d workers load the model", section.workers)
    actors: list[Any] = [actor.remote(model) for _ in range(section.workers)]
    for worker in actors:  # a model that cannot be loaded is said before a shard waits for it
        _result(worker.process.remote(), "loaded its model")
    logger.info("%d workers hold the model", section.workers)
    return actors


def _reach_ray(address: str) -> None:
    """Reach the silo's Ray cluster, or start one here whose processes and files go with us."""
    import ray  # noqa: PLC0415 - as above

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address:
        ray.init(address=address, **common)
        return
    with ExitStack() as cleaning:
        folder = cleaning.enter_context(scratch_folder("ray", short=True))  # it holds sockets
        with marked_children():
            ray.init(address="local", _temp_dir=str(folder), **common, **_OWN)
        cleaning.callback(ray.shutdown)
        atexit.register(cleaning.pop_all().close)


def _gpus(section: ComputeSection) -> float:
    """Return the GPUs of a worker: as set, or one where this machine has any."""
    return section.gpus if section.gpus >= 0 else float(torch.cuda.is_available())
