"""Load base models, attach adapters, encode and generate, through transformers and PEFT.

No other module of a run imports transformers or PEFT. The rest of the code uses ``LoadedModel``
(``curation/model/lora_model.py``), ``Encoding`` (``curation/tokens/tokenization.py``) and
``Adapter``.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from fedwinnow.curation.config.scoring import AdapterSection, ModelSection, TeacherSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.errors import ModelError
from fedwinnow.curation.model.adapter_targets import target_modules
from fedwinnow.curation.model.load_checks import (
    check_embeddings,
    check_positions,
    check_template,
    positions,
)
from fedwinnow.curation.model.lora_model import (
    NAME,
    LoadedModel,
    base_weights,
    fingerprint,
    fingerprint_of,
    initial_adapter,
    set_adapter,
)
from fedwinnow.curation.model.modes import evaluation_mode
from fedwinnow.curation.model.own_model import check_bare, check_causal, check_lora
from fedwinnow.curation.tokens.chat_templates import ChatFormat, TemplateRefusal
from fedwinnow.curation.tokens.tokenization import (
    Encoding,
    encode_sample,
    encode_samples,
    prompt_tokens,
)

logger = logging.getLogger(__name__)


def load_model(model: ModelSection, adapter: AdapterSection, *, seed: int) -> LoadedModel:
    """Load a base model and attach a seeded LoRA adapter.

    A local folder never makes a network call.

    Raises:
        ModelError: the model is not there or cannot be loaded, an adapter target is no linear layer
            of it, or 4-bit weights are asked for without CUDA and bitsandbytes.
    """
    tokenizer = load_tokenizer(model)
    base, device = _load_base(model), _device()
    check_embeddings(base, tokenizer, f"model.name: {model.name!r}")
    check_positions(positions(base), model.max_length)
    chat = ChatFormat.of(tokenizer)
    chat.check_system(model.system_prompt)
    check_template(chat)
    wrapped, found = _attach(base, adapter, repr(model.name))
    if model.quantization == "none":
        wrapped.to(device)
    loaded = LoadedModel(model=wrapped, tokenizer=tokenizer, fingerprint=found, device=device)
    _begin(loaded, seed)
    logger.info("loaded %s on %s, base %s", model.name, device, found[:12])
    return loaded


def adopt_model(
    model: Any,  # noqa: ANN401 - transformers' models and PEFT's share no typed base
    tokenizer: Any,  # noqa: ANN401 - see load_tokenizer
    adapter: AdapterSection,
    *,
    seed: int,
) -> LoadedModel:
    """Take a causal language model that the caller has loaded; it is used as it is, not copied.

    A ``PeftModel`` keeps its adapter, and nothing of it is changed. To any other model a seeded
    LoRA adapter with B = 0 is attached in place, as by ``get_peft_model``: its weights are frozen,
    its key-value cache is off and it is in evaluation mode from then on.

    Args:
        model: On any device.
        tokenizer: The model's.
        adapter: What to attach; not read for a ``PeftModel``.
        seed: Of the attached adapter.

    Raises:
        ModelError: the model is no causal language model of transformers, its adapter is not plain
            LoRA, an adapter target is no linear layer of it, or the tokenizer is another model's.
    """
    own = isinstance(model, PeftModel)
    base = model.get_base_model() if own else model
    if not isinstance(base, transformers.PreTrainedModel):
        message = (
            "load_model: expected a hub name, a folder, or a model of transformers or PEFT, got "
            f"{type(base).__name__}; give one of these"
        )
        raise ModelError(message)
    check_causal(base, tokenizer)
    check_template(ChatFormat.of(tokenizer))
    if own:
        check_lora(model)
        found = fingerprint_of(base_weights(model))
        return LoadedModel(model=model, tokenizer=tokenizer, fingerprint=found, device=model.device)
    check_bare(base)
    wrapped, found = _attach(base, adapter, type(base).__name__)
    base.config.use_cache = False
    loaded = LoadedModel(
        model=wrapped, tokenizer=tokenizer, fingerprint=found, device=wrapped.device
    )
    _begin(loaded, seed)
    return loaded


def _attach(base: Any, adapter: AdapterSection, called: str) -> tuple[Any, str]:  # noqa: ANN401 - any causal language model
    """Freeze a base and attach an adapter; return PEFT's model and the base's fingerprint.

    Raises:
        ModelError: an adapter target is no linear layer of the base.
    """
    targets = target_modules(base, adapter, called)
    found = _frozen(base)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT divides it, a float serves
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers renamed
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # PEFT sets it by the layer
        return get_peft_model(base, config), found


def _begin(loaded: LoadedModel, seed: int) -> None:
    """Give the attached adapter its seeded start, in float32, and put the model into eval mode."""
    for _, layer in loaded.layers():
        for factors in (layer.lora_A, layer.lora_B):
            factors[NAME].weight.data = factors[NAME].weight.data.float()
    set_adapter(loaded, initial_adapter(loaded, seed=seed))
    loaded.model.eval()


def load_teacher(teacher: TeacherSection, student: ModelSection) -> LoadedModel:
    """Load a teacher: frozen, without an adapter, and with the student's tokenizer.

    Both read the same tokens: those of the student's tokenizer and chat template.

    Raises:
        ModelError: it cannot be loaded, or its tokens are not the student's.
    """
    section = ModelSection(
        name=teacher.name,
        gguf_file=teacher.gguf_file,
        dtype=teacher.dtype,
        quantization=teacher.quantization,
    )
    tokenizer = load_tokenizer(student)
    _check_same_tokens(load_tokenizer(section, "teacher"), tokenizer, teacher.name)
    base = _load_base(section, "teacher").eval()
    check_embeddings(base, tokenizer, f"teacher.name: {teacher.name!r}")
    check_positions(positions(base), student.max_length, "teacher.name")
    found, device = _frozen(base), _device()
    if teacher.quantization == "none":
        base.to(device)
    logger.info("loaded teacher %s on %s, %s", teacher.name, device, found[:12])
    return LoadedModel(model=base, tokenizer=tokenizer, fingerprint=found, device=device)


def _frozen(base: torch.nn.Module) -> str:
    """Freeze every weight of a model and return its fingerprint."""
    for parameter in base.parameters():
        parameter.requires_grad = False
    return fingerprint(base)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_same_tokens(teacher: Any, student: Any, name: str) -> None:  # noqa: ANN401 - see load_tokenizer
    """Refuse a teacher whose vocabulary gives a token another number than the student's."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs == ours:
        return
    differing = sorted({token for token, _ in theirs.items() ^ ours.items()})
    token = differing[0]
    message = (
        f"teacher.name: {name!r} has another tokenizer than model.name: {len(differing)} tokens "
        f"differ, such as {token!r} (number {theirs.get(token, 'none')} there, "
        f"{ours.get(token, 'none')} here); choose a teacher of the same family"
    )
    raise ModelError(message)


def load_tokenizer(model: ModelSection, section: str = "model") -> Any:  # noqa: ANN401 - transformers' tokenizers share no typed base
    """Load the model's tokenizer.

    Raises:
        ModelError: it is not there or cannot be loaded.
    """
    if not model.name:
        message = f"{section}.name is empty; give a hub name or the folder of a model"
        raise ModelError(message)
    try:
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(model.name, **_source(model))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _not_loaded(model, "tokenizer", error, section) from error


def encode(
    loaded: LoadedModel, sample: Sample, *, max_length: int, system_prompt: str = ""
) -> Encoding:
    """Encode a sample with the loaded tokenizer; see :func:`encode_sample`.

    Raises:
        ModelError: ``max_length`` is more than the model has positions for.
    """
    check_positions(loaded.positions, max_length)
    return encode_sample(
        loaded.tokenizer,
        sample,
        max_length=max_length,
        system_prompt=system_prompt,
        chat=loaded.chat,
    )


def encode_all(
    loaded: LoadedModel, samples: Iterable[Sample], *, max_length: int, system_prompt: str = ""
) -> Iterator[Encoding]:
    """Encode samples as :func:`encode` does, many at a time.

    Raises:
        ModelError: see :func:`encode`.
    """
    check_positions(loaded.positions, max_length)
    return encode_samples(
        loaded.tokenizer,
        samples,
        max_length=max_length,
        system_prompt=system_prompt,
        chat=loaded.chat,
    )


def generate(
    loaded: LoadedModel, samples: Sequence[Sample], *, max_new_tokens: int, system_prompt: str = ""
) -> tuple[str, ...]:
    """Generate greedy answers to the samples' prompts, one after the other.

    An answer stops at the template's end of turn, or at the tokenizer's EOS. It is "" where the
    chat template refuses the sample, which is logged.
    """
    tokenizer, answers = loaded.tokenizer, []
    stops = dict.fromkeys([*loaded.end_tokens[-1:], tokenizer.eos_token_id])
    stop = [int(token) for token in stops if token is not None]
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop or None,
        pad_token_id=stop[0] if stop else 0,
    )
    loaded.chat.check_system(system_prompt)
    room = (loaded.positions or 10**9) - max_new_tokens
    with evaluation_mode(loaded.model), torch.no_grad():
        for sample in samples:
            try:
                prompt = prompt_tokens(loaded.chat, sample, system_prompt)
            except TemplateRefusal as refusal:
                logger.warning("sample %s is not answered: %s", sample.id, refusal)
                answers.append("")
                continue
            tokens = torch.tensor([prompt[-max(1, room) :]], device=loaded.device)
            made = loaded.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=config,
            )
            new = made[0, tokens.shape[1] :].tolist()
            new = new[: min((new.index(one) for one in stop if one in new), default=len(new))]
            answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return tuple(answers)


def _load_base(model: ModelSection, section: str = "model") -> Any:  # noqa: ANN401 - any causal language model
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype)}
    if model.quantization == "4bit":
        if not torch.cuda.is_available():
            message = (
                f"{section}.quantization = '4bit' needs CUDA, and none is here; set it to 'none'"
            )
            raise ModelError(message)
        if importlib.util.find_spec("bitsandbytes") is None:
            message = (
                f"{section}.quantization = '4bit' needs bitsandbytes, and it is not installed; "
                "pip install 'fedwinnow[quantized]', or set it to 'none'"
            )
            raise ModelError(message)
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        with _quiet():
            base = transformers.AutoModelForCausalLM.from_pretrained(
                model.name, **_source(model), **options
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(model, "model", error, section) from error
    base.config.use_cache = False
    return base


def _source(model: ModelSection) -> dict[str, Any]:
    """Return loading options: a local folder never asks the hub, no code comes with a model."""
    source: dict[str, Any] = {"trust_remote_code": False}
    if Path(model.name).exists():
        source["local_files_only"] = True
    if model.gguf_file:
        source["gguf_file"] = model.gguf_file
    return source


def _not_loaded(model: ModelSection, part: str, error: Exception, section: str) -> ModelError:
    first = str(error).strip().split("\n")[0]
    place = f"{model.name!r}" + (f" ({model.gguf_file})" if model.gguf_file else "")
    return ModelError(
        f"{section}.name: the {part} of {place} cannot be loaded ({type(error).__name__}: {first})"
        "; give a local folder, or a hub name where there is internet"
    )


class _quiet:  # noqa: N801 - used as a word
    """Context manager that hides transformers' progress bars inside the block."""

    def __enter__(self) -> None:
        self.shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.shown:
            transformers.utils.logging.enable_progress_bar()
