"""Share the loaded base model and results on PUBLIC samples among the sites of one process.

A real site has a process of its own, so the cache then only keeps its model warm between messages.
In a simulation the cache avoids loading the model and measuring the same public rows once per site.
Nothing that depends on private data is ever put here.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch

from fedwinnow.client.measuring.pass_options import OnProgress, OnTaskProgress
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.model.lora_model import BatchBudget, LoadedModel
from fedwinnow.curation.model.pretrained import load_model

G = TypeVar("G")
T = TypeVar("T")


@dataclass(slots=True)
class ProcessCache:
    """Models and public results of one process."""

    progress: OnTaskProgress | None = None
    """Called with the progress of long computations."""
    most_results: int = 64
    """Most public results kept; the oldest is dropped first."""
    _models: dict[tuple[str, str, int], LoadedModel] = field(default_factory=dict)
    _public: dict[tuple[str, ...], object] = field(default_factory=dict)
    _kept: dict[tuple[str, ...], object] = field(default_factory=dict)
    _sizes: dict[str, dict[str, BatchBudget]] = field(default_factory=dict)

    def model(self, section: ModelSection, adapter: AdapterSection, seed: int) -> LoadedModel:
        """Return the loaded model with its adapter; load it at first use.

        Raises:
            ModelError: the model cannot be loaded or lacks the LoRA targets.
        """
        key = (canonical_json(section), canonical_json(adapter), seed)
        if key not in self._models:
            self._models.clear()  # one base in memory at a time
            self._models[key] = load_model(section, adapter, seed=seed)
            self._remember(self._models[key])
        return self._models[key]

    def swap_in(self, load: Callable[[], G], use: Callable[[G], T]) -> T:
        """Load another model, use it and drop it; the warm model is dropped first.

        The two are never in memory together, as long as ``use`` returns nothing that holds
        the other model.
        """
        if self._models:
            self._models.clear()
            _free()
        guest = load()
        if isinstance(guest, LoadedModel):
            self._remember(guest)
        try:
            return use(guest)
        finally:
            del guest
            _free()

    def _remember(self, loaded: LoadedModel) -> None:
        """Keep a model's batch limits, so that they hold when it is loaded again."""
        loaded.sizes = self._sizes.setdefault(loaded.fingerprint, loaded.sizes)

    def cached_public(self, key: tuple[str, ...], compute: Callable[[], T]) -> T:
        """Return a result on public samples, computed once for its key."""
        if key not in self._public:
            while len(self._public) >= self.most_results:
                del self._public[next(iter(self._public))]
            self._public[key] = compute()
        return cast("T", self._public[key])

    def keep(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """Return what lives as long as the process, such as workers; made once for its key."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast("T", self._kept[key])

    def on_progress(self, what: str) -> OnProgress | None:
        """Return the callback that reports the progress of one piece of work; None without one."""
        if self.progress is None:
            return None
        report = self.progress
        return lambda done, total: report(what, done, total)


def _free() -> None:
    """Release the memory of models that nothing refers to any more."""
    gc.collect()  # PEFT's wrappers hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def set_deterministic(threads: int) -> None:
    """Fix the number of threads and PyTorch's algorithms, so that a run repeats bit for bit."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
