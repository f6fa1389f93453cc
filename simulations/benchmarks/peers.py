"""Compute per-sample gradients by other projects, where installed; nothing else needs them.

    bergson   ``InMemoryCollector`` with a ``Scorer`` against our references: hooks, as ours
    dattri    the per-sample gradients of ``AttributionTask``, which ``TracInAttributor`` runs on

Both get the same batches, adapter and loss as the other rows, and the references at no cost.
bergson's scores are divided by the sample's norm, so that norms are computed as in the other rows.
dattri's own attributor would also compute the gradients of the references anew for every batch.

References:
    bergson 2.5, https://github.com/EleutherAI/bergson, arXiv:2606.11660
    dattri 0.3, https://github.com/TRAIS-Lab/dattri, https://arxiv.org/abs/2410.04555
"""

import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedwinnow.client.measuring.length_buckets import plan_batches
from fedwinnow.curation.process_guard import scratch_folder
from fedwinnow.curation.tokens.tokenization import Encoding
from fedwinnow.simulations.benchmarks.gradient_methods import (
    Outcome,
    Row,
    factors,
    parameter_names,
    reference_rows,
    sample_loss,
)
from fedwinnow.simulations.benchmarks.workload import Bench


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Restore the process's logging setup after the block, as a peer's import changes it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers.copy()
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@_logging_as_it_is()
def bergson(bench: Bench) -> Outcome:
    """Score by bergson's hooks."""
    import bergson as peer  # type: ignore[import-not-found]  # noqa: PLC0415 - optional
    from bergson.score.score_writer import (  # type: ignore[import-not-found]  # noqa: PLC0415
        InMemorySequenceScoreWriter,
    )

    encodings, inner = bench.encodings(), bench.loaded.model.base_model
    lengths = np.array([len(encoding.tokens) for encoding in encodings])
    names = {
        factor: name.removeprefix("base_model.").removesuffix(".weight")
        for factor, name in parameter_names(bench).items()
    }
    queries = {names[factor]: mean for factor, mean in bench.references.means.items()}
    data = datasets.Dataset.from_list([_labelled(encoding) for encoding in encodings])
    writer = InMemorySequenceScoreWriter(len(data), len(bench.references.names))
    scorer = peer.Scorer(
        queries, list(queries), writer, bench.loaded.device, torch.float32, unit_normalize=True
    )
    with scratch_folder() as place, _silent():
        config = peer.IndexConfig(run_path=str(place / "run"), loss_reduction="mean")
        config.partial_run_path.mkdir(parents=True)
        collector = peer.InMemoryCollector(
            model=inner,
            cfg=config,
            processor=peer.GradientProcessor(),
            target_modules=set(queries),
            data=data,
            scorer=scorer,
        )
        computer = peer.CollectorComputer(
            model=bench.loaded.model,
            data=data,
            collector=collector,
            batches=[
                places.tolist() for places in plan_batches(lengths, bench.options.batch_tokens)
            ],
            cfg=config,
        )
        computer.run_with_collector_hooks()
    return Outcome(dots=writer.scores.numpy(), norms=None, kept=writer.scores.nbytes, unit=True)


@_logging_as_it_is()
def dattri(bench: Bench) -> Outcome:
    """Score by dattri's per-sample gradients."""
    from dattri.task import (  # type: ignore[import-not-found]  # noqa: PLC0415 - optional
        AttributionTask,
    )

    def loss(weights: Mapping[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return sample_loss(bench, weights, *data)

    model = bench.loaded.model
    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    each, (weights, _) = task.get_grad_loss_func(in_dims=(None, 0)), task.get_param(ckpt_idx=0)
    place = {id(weight): factor for factor, weight in factors(bench).items()}
    order = {place[id(p)]: p for p in model.parameters() if p.requires_grad}
    directions = reference_rows(bench, order)
    dots = np.zeros((len(bench.samples), len(directions)), dtype=np.float32)
    norms = np.zeros(len(bench.samples), dtype=np.float32)
    for places, batch in bench.batches():
        with sdpa_kernel(SDPBackend.MATH):
            gradients = each(weights.detach(), (batch.tokens, batch.targets))
        dots[places] = (gradients @ directions.T).detach().cpu().numpy()
        norms[places] = gradients.norm(dim=1).detach().cpu().numpy()
    return Outcome(dots=dots, norms=norms, kept=dots.nbytes + norms.nbytes)


PEERS: Mapping[str, Row] = {"bergson": bergson, "dattri": dattri}
"""Name of the package → row."""


@_logging_as_it_is()
def absent(name: str) -> str:
    """Return why a peer cannot be run; "" where it can."""
    if importlib.util.find_spec(name) is None:
        return "not installed"
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"not installed whole ({error})"
    return ""


def _labelled(encoding: Encoding) -> dict[str, list[int]]:
    """Return tokens, and labels with −100 where no loss is counted."""
    tokens = encoding.tokens.tolist()
    start = encoding.response_start
    return {"input_ids": tokens, "labels": [-100] * start + tokens[start:]}


@contextmanager
def _silent() -> Iterator[None]:
    """Silence progress bars, log lines and warnings of other projects inside the block."""
    quiet, level = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with redirect_stderr(quiet), redirect_stdout(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
