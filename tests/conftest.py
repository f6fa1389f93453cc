"""Fixtures of the whole suite: a tiny model on disk, no network, one thread a process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch loads, here and in every process that a test starts: two workers of several threads
# each would wait for one another on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.pretrained import load_model

# No test depends on how busy a machine is; --hypothesis-profile=thorough looks further.
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.register_profile("untimed", deadline=None, max_examples=40)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _heard_signals() -> None:
    """Signals that the suite was started to ignore (``nohup``, a shell's background) are heard."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler
            signal.signal(number, default)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A two-layer Llama and a character tokenizer, written once."""
    from fedwinnow.simulations.datasets.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture
def tiny_model(tiny_model_folder) -> LoadedModel:
    """A fresh loaded tiny model with a rank-4 adapter; a test may train it."""
    section = ModelSection(name=str(tiny_model_folder), max_length=96)
    adapter = AdapterSection(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))
    return load_model(section, adapter, seed=0)


@pytest.fixture
def make_grid(monkeypatch) -> Callable[..., Any]:
    """A Grid over ClientApps by node id, inside a Flower task that does not exist."""
    from flwr.supercore.task_identity import TaskIdentity
    from in_process_grid import InProcessGrid

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return InProcessGrid
