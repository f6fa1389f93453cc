"""Load a model for measuring: by name, or one that the caller has loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model import pretrained
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.simulations.datasets.demo_scenario import local_model


def load_model(
    model: Any,  # noqa: ANN401 - a name, or any model of transformers or PEFT
    *,
    tokenizer: Any = None,  # noqa: ANN401 - transformers' tokenizers share no typed base
    rank: int = 16,
    alpha: float = 32.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    gguf_file: str = "",
    seed: int = 0,
) -> LoadedModel:
    """Load a causal language model with one LoRA adapter, by name or as the caller's own.

    By name, the base is loaded frozen onto the GPU, or the CPU where there is none, and a seeded
    adapter with B = 0 is attached. A model of your own is used as it is, not copied, where it is:

    - a ``peft.PeftModel`` with one plain LoRA adapter is left unchanged: nothing is attached, and
      every weight, mode and gradient is after a measuring pass what it was before;
    - to any other model of transformers the adapter is attached in place (``get_peft_model``); its
      weights are frozen, its key-value cache is off and it is in evaluation mode from then on.

    Args:
        model: Hub name or folder; or a loaded model of transformers, or a ``PeftModel``.
        tokenizer: Of a model of your own; a name brings its own.
        rank: Rank of the attached adapter, at least 1; not read for a ``PeftModel``, nor are the
            next two and the seed.
        alpha: Numerator of its scale alpha / rank, above 0.
        targets: Last name parts of the linear layers that get it, or "all-linear": every one but
            the output head.
        dtype: Number format of a base that is loaded by name.
        gguf_file: File name of a GGUF inside the folder or hub repository; "" for none.
        seed: Of the attached adapter, at least 0.

    Returns:
        The model with its tokenizer and the fingerprint of its base, for :func:`measure_public`
        and :func:`measure`; ``.model`` is the ``PeftModel``.

    Raises:
        ModelError: the model cannot be loaded, is no causal language model, lacks a target, has an
            adapter that is not plain LoRA (DoRA, biases, several adapters, merged, disabled, of
            another task), or comes without its tokenizer.
        ConfigError: ``rank`` or ``alpha`` is out of range.
    """
    ends = (targets,) if isinstance(targets, str) else tuple(targets)
    adapter = AdapterSection(rank=rank, alpha=alpha, targets=ends)
    named = isinstance(model, str | Path)
    if named == (tokenizer is not None):
        message = (
            "load_model: expected tokenizer= with a model of your own, and only with one; "
            + ("leave it out, a name brings its own" if named else "give the model's tokenizer")
        )
        raise ModelError(message)
    if not named:
        return pretrained.adopt_model(model, tokenizer, adapter, seed=seed)
    section = ModelSection(name=str(model), dtype=dtype, gguf_file=gguf_file)
    return pretrained.load_model(local_model(section), adapter, seed=seed)
