"""Train a base model of less than a million weights on the generated skills, in minutes.

The model is a small Llama with a byte-pair tokenizer, trained on tasks from an endless generator
(``simulations/datasets/skills.py``): nine of ten in the plain manner, one in the house manner that
silos and anchors use, as a real model has met most manners and mastered few. It is written as an
ordinary model folder, whole or not at all; ``base.json`` in it records settings and last loss.
"""

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import IterableDataset

from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ConfigError, NonFiniteError, OutputError
from fedwinnow.curation.seeds import derive_seed
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.curation.tokens.tokenization import encode_sample
from fedwinnow.simulations.datasets.skills import SKILLS, Manner, pair
from fedwinnow.simulations.datasets.tiny_model import byte_pair_tokenizer, tiny_llama

_TEXTS = 3000
"""Tasks that the tokenizer is trained on."""
_KEY_TEXTS = 20
_MANNERS: tuple[Manner, ...] = ("plain", "house")
_IGNORED = -100
"""The label that transformers leaves out of its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSection:
    """Settings of the base model and its training."""

    seed: int = 0
    steps: int = 1000
    """Optimizer steps, at least 1."""
    batch_size: int = 32
    learning_rate: float = 3e-3
    house: float = 0.1
    """Share of tasks in the house manner, in [0, 1]: the model has met it, and not learnt it."""
    vocabulary: int = 512
    """Rows of the embedding: bytes, merges and special tokens."""
    hidden: int = 128
    layers: int = 4
    heads: int = 4


def base_model_folder(folder: Path, section: BaseSection) -> Path:
    """Return the folder below ``folder`` with the model of these settings; train it if missing.

    Raises:
        ConfigError: fewer than one step.
        NonFiniteError: the training loss is no number.
        OutputError: the folder cannot be written.
    """
    target = folder / f"skills-{_key(section)}"
    if not (target / "base.json").exists():
        write_base_model(target, section)
    return target


def write_base_model(target: Path, section: BaseSection) -> Path:
    """Train the model and write it; an interrupted run leaves nothing under the target's name.

    Raises:
        ConfigError: fewer than one step.
        NonFiniteError: the training loss is no number.
        OutputError: the target exists, or cannot be written.
    """
    if section.steps < 1:
        message = f"--steps {section.steps} is out of range; allowed: at least 1"
        raise ConfigError(message)
    if target.exists():
        message = f"{target}: already there; give a new folder or remove it"
        raise OutputError(message)
    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            _train(work, section)
        work.rename(target)
    except OSError as error:
        message = f"{target}: cannot be written ({error.strerror}); give another folder"
        raise OutputError(message) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _train(folder: Path, section: BaseSection) -> None:
    draw = random.Random(derive_seed(section.seed, "tokenizer"))  # noqa: S311 - generated texts, no secret
    texts = [f"{task.prompt} {task.response}" for task in (_task(draw, 0.5) for _ in range(_TEXTS))]
    tokenizer = byte_pair_tokenizer(texts, size=section.vocabulary)
    transformers.set_seed(derive_seed(section.seed, "weights") % 2**32)
    model = tiny_llama(
        tokenizer, hidden=section.hidden, layers=section.layers, heads=section.heads,
        intermediate=3 * section.hidden, tied=True,
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=section.steps,
        per_device_train_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, section.steps // 10),
        weight_decay=0.01,
        logging_steps=max(1, section.steps // 10),
        logging_nan_inf_filter=False,  # else a NaN is logged as 0
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=section.seed,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=_Tasks(tokenizer, derive_seed(section.seed, "tasks"), section.house),
        data_collator=_collate,
        callbacks=[_Told()],
    )
    trainer.remove_callback(
        transformers.PrinterCallback
    )  # it prints to standard output, where results go
    loss = trainer.train().training_loss
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(torch.isfinite(torch.tensor([loss, *losses]))):
        message = f"base model: the training loss is {loss}; lower the learning rate"
        raise NonFiniteError(message)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = sum(parameter.numel() for parameter in model.parameters())
    last = losses[-1] if losses else loss
    write_json(folder / "base.json", {**asdict(section), "weights": weights, "last_loss": last})


class _Told(transformers.TrainerCallback):
    """Callback that prints a line on standard error for every tenth of the steps."""

    def on_log(
        self,
        args: transformers.TrainingArguments,  # noqa: ARG002 - the callback's shape
        state: transformers.TrainerState,
        control: transformers.TrainerControl,  # noqa: ARG002 - likewise
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Print the step and its loss."""
        if logs and "loss" in logs:
            place = f"step {state.global_step} of {state.max_steps}"
            print(f"base model: {place}, loss {logs['loss']:.3f} nats", file=sys.stderr)


class _Tasks(IterableDataset[dict[str, list[int]]]):
    """Endless stream of encoded tasks."""

    def __init__(self, tokenizer: Any, seed: int, house: float) -> None:  # noqa: ANN401 - transformers' tokenizers share no typed base
        self.tokenizer, self.seed, self.house = tokenizer, seed, house

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        draw = random.Random(self.seed)  # noqa: S311 - generated texts, no secret
        chat = ChatFormat.of(self.tokenizer)
        while True:
            task = _task(draw, self.house)
            encoded = encode_sample(self.tokenizer, task, max_length=256, chat=chat)
            yield {"input_ids": encoded.tokens.tolist()}


def _task(draw: random.Random, house: float) -> Sample:
    manner: Manner = "house" if draw.random() < house else "plain"
    prompt, response = pair(draw.choice(list(SKILLS)), manner, draw)
    return Sample(id="", prompt=prompt, response=response)


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right; every token counts in the loss, padding does not."""
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=_IGNORED
    )
    known = tokens != _IGNORED
    return {
        "input_ids": tokens.clamp(min=0),
        "attention_mask": known.long(),
        "labels": tokens,
    }


def _key(section: BaseSection) -> str:
    """Return a hash of the settings and of sample texts of the generator."""
    draw = random.Random(section.seed)  # noqa: S311 - generated texts, no secret
    texts = [
        tuple(pair(name, manner, draw))
        for name in SKILLS
        for manner in _MANNERS
        for _ in range(_KEY_TEXTS)
    ]
    text = json.dumps([asdict(section), texts])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
