"""Measure a teacher's confidence in each answer: the mean probability of the answer's tokens.

    c_b = (1 / T_b) Σ_t p_teacher(y_t | x, y_<t),  over the T_b body tokens; in [0, 1]

LLKD's confidence is the largest class probability of the teacher's own label. Here the silo's
answer is given and would be learned, so what counts is whether the teacher trusts THIS answer. The
largest probability of each next word would say how sure the teacher is of its own answer, and a
swapped answer would pass.

The teacher is no adapter of the base but another model, with the base's tokenizer. It is loaded
once for a message, while no student is in memory, and is dropped before the student is loaded.

Reference:
    J. Li et al., Learning with Less: Knowledge Distillation from Large Language Models via
    Unlabeled Data (LLKD), Findings of NAACL 2025, https://arxiv.org/abs/2411.08028
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from fedwinnow.client.measuring.batching import Places, run_in_batches
from fedwinnow.client.measuring.pass_options import OnProgress, PassOptions, PassProgress
from fedwinnow.client.measuring.token_cache import cached_encodings
from fedwinnow.client.runs.site_run import SiteRun, public_result_key
from fedwinnow.client.signals.extra_columns import ExtraColumns
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.pretrained import load_teacher
from fedwinnow.curation.model.token_losses import Batch, token_losses

_COLUMN = "teacher_confidence"


def teacher_fingerprint(run: SiteRun) -> str:
    """Return the teacher's fingerprint, stored in the run's folder for :func:`teacher_columns`.

    Raises:
        ModelError: the teacher cannot be loaded, or its tokens are not the base model's.
    """
    found = run.cache.swap_in(lambda: load_teacher(run.teacher, run.model), _fingerprint)
    write_atomically(run.files.teacher, found.encode("ascii"))
    return found


def teacher_columns(run: SiteRun) -> ExtraColumns:
    """Compute the teacher's column for private samples and public rows; drop the student first.

    Raises:
        ModelError: the teacher is not the one that the site joined with.
    """

    def use(teacher: LoadedModel) -> ExtraColumns:
        _check_same(run, teacher.fingerprint)

        def read(samples: Sequence[Sample], what: str) -> Float32[np.ndarray, " samples"]:
            on_progress = run.cache.on_progress(f"{what}, teacher")
            return teacher_confidences(teacher, samples, run.pass_options, on_progress)

        key = ("teacher", teacher.fingerprint, *public_result_key(run, ""))
        public = run.cache.cached_public(
            key, lambda: read(run.data.rows.samples, "reading public anchors")
        )
        private = read(run.data.samples, f"{run.site} reads its samples")
        return ExtraColumns(
            private={_COLUMN: private},
            public={_COLUMN: public},
            key=(teacher.fingerprint,),
        )

    return run.cache.swap_in(lambda: load_teacher(run.teacher, run.model), use)


def teacher_confidences(
    teacher: LoadedModel,
    samples: Sequence[Sample],
    options: PassOptions,
    on_progress: OnProgress | None = None,
) -> Float32[np.ndarray, " samples"]:
    """Return the mean probability of each body's tokens; NaN where a sample has no target.

    One forward pass, without gradients, of the logits that the losses need.
    """
    encodings = cached_encodings(teacher, samples, options)
    usable = np.array([i for i, e in enumerate(encodings) if e.has_target], dtype=np.int64)
    values = np.full(len(samples), np.nan, dtype=np.float32)
    progress = PassProgress(total=len(usable), on_progress=on_progress)

    def run(places: Places, batch: Batch) -> None:
        rows = usable[places]
        losses = token_losses(teacher.model, batch).float().cpu()
        for row, line in zip(rows, losses, strict=True):
            first, spans = batch.first, encodings[row].bodies
            body = torch.cat([line[begin - first : end - first] for begin, end in spans]).double()
            values[row] = float((-body).exp().mean())
        progress.add(len(rows))

    readable = [encodings[i] for i in usable]
    with evaluation_mode(teacher.model), torch.no_grad():
        run_in_batches(teacher, readable, run, batch_tokens=options.batch_tokens, kind="loss")
    return values


def _fingerprint(teacher: LoadedModel) -> str:
    return teacher.fingerprint


def _check_same(run: SiteRun, found: str) -> None:
    """Refuse another teacher than at join: no other site would agree with its columns."""
    file = run.files.teacher
    joined = file.read_text(encoding="ascii") if file.exists() else found
    if joined != found:
        message = (
            f"teacher.name: {run.teacher.name!r} is {found[:12]} now and was {joined[:12]} when "
            "the site joined; put the agreed teacher back, or start another run"
        )
        raise ModelError(message)
