"""Read a stranger's ``adapter_config.json``: its size, nesting, settings and patterns of names.

What a plain pair of LoRA factors cannot express is refused by the name of its setting, and so is
what would take a reader's time or memory without bound.
"""

import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import regex

from fedwinnow.curation.errors import ModelError

INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base as it is."""
READ = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "eva_config", "loftq_config", "qalora_group_size"),
        *("megatron_core", "runtime_config", "ensure_weight_tying"),
    }
)
"""Keys of the configuration that are read, or do not say what a weight is; any other must be empty
(``loftq_config`` counts only with ``init_lora_weights = "loftq"``)."""
SECONDS = 10.0
"""Longest time that all patterns of one folder together may take to match, seconds."""
PATTERNS = ("rank_pattern", "alpha_pattern")
"""Settings that are tables of regular expressions of module names."""
_BYTES = 16 * 2**20
_DEEPEST = 8
_MOST = 100_000
_DIGITS = 19
_LONGEST = 1000
_SHOWN = 100
_PLAIN = f"each of at most {_LONGEST} characters, with braces in no more than two counts below 100"
_EXACT = re.compile(r"\^(?:\w|\\[.-])+\$")
"""Pattern of one whole name, as :func:`re.escape` writes it."""
_BRACES = re.compile(r"[^{}]*(?:\{\d{0,2}(?:,\d{0,2})?\}[^{}]*){0,2}", flags=re.DOTALL)
"""Pattern whose braces are counts; compiling unfolds them, each times those around it."""


def shown(value: object) -> str:
    """Return a value as a message shows it, shortened to one line of a terminal."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter folder.

    Raises:
        ModelError: there is none, or PEFT writes none like it: too large, nested too deep, a number
            that is none, a setting of another kind.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        what = "there is none in it" if folder.is_dir() else "there is no such folder"
        message = f"{folder}: expected a PEFT adapter folder with {path.name}, and {what}"
        raise ModelError(message)
    try:
        config = _strict_json(path)
    except RecursionError as error:
        message = (
            f"{path}: expected a flat table of settings, got one nested too deep; save it anew"
        )
        raise ModelError(message) from error
    except (OSError, ValueError) as error:
        why = f"{error}"[:_SHOWN]
        message = f"{folder}: expected a PEFT adapter folder with {path.name} ({why})"
        raise ModelError(message) from error
    if not isinstance(config, dict):
        message = f"{path}: expected a table of settings, got {type(config).__name__}"
        raise ModelError(message)
    _check_content(config, folder)
    _check_kinds(config, folder)
    return config


def _strict_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse a JSON file of a stranger.

    Raises:
        ValueError: it is no UTF-8, no JSON or too large.
        RecursionError: it is nested too deep.
    """
    with path.open("rb") as file:
        data = file.read(_BYTES + 1)
    if len(data) > _BYTES:
        message = f"it has more than {_BYTES // 2**20} MiB"
        raise ValueError(message)
    tree = json.loads(data.decode("utf-8"), parse_int=_whole)
    json.dumps(tree, ensure_ascii=False).encode()  # half a surrogate pair could not be written
    return tree


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else math.inf  # refused with its setting's name


def _check_content(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse numbers that are none or too large, and nesting beyond ``_DEEPEST`` levels.

    Raises:
        ModelError: naming the folder and the setting.
    """
    for key, value in config.items():
        level = [value]
        for _ in range(_DEEPEST):
            if any(isinstance(one, float) and not math.isfinite(one) for one in level):
                message = (
                    f"{folder}: expected {shown(key)} with finite numbers of at most {_DIGITS} "
                    "digits, got a NaN, an infinity or more digits; correct adapter_config.json"
                )
                raise ModelError(message)
            level = [
                inner
                for one in level
                if isinstance(one, dict | list)
                for inner in (one.values() if isinstance(one, dict) else one)
            ]
        if level:
            message = (
                f"{folder}: expected {shown(key)} with at most {_DEEPEST} levels of lists and "
                "tables, got more; save the adapter anew"
            )
            raise ModelError(message)


def _check_kinds(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a value of another kind than every PEFT version writes for its setting.

    Raises:
        ModelError: naming the folder, the setting and its value.
    """
    for key, (holds, expected) in KINDS.items():
        value = config.get(key)
        if value is not None and not holds(value):
            message = (
                f"{folder}: expected {key} = {expected}; got {key} = {shown(value)}; correct "
                "adapter_config.json"
            )
            raise ModelError(message)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST and all(map(_is_text, value))


def _are_names_or_text(value: object) -> bool:
    return _is_text(value) or _are_names(value)


KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("base_model_name_or_path", "task_type", "bias"), (_is_text, "a text")),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "fan_in_fan_out", "ensure_weight_tying"),
        (_is_switch, "true or false"),
    ),
    "lora_dropout": (_is_share, "a number in [0, 1]"),
    "modules_to_save": (_are_names, f"a list of at most {_MOST} names"),
    **dict.fromkeys(
        ("target_modules", "exclude_modules"),
        (_are_names_or_text, f"a list of at most {_MOST} names, or one text"),
    ),
}
"""Setting of the configuration → whether a value is of its kind, and the kind in words."""


def check_plain_lora(config: Mapping[str, Any], folder: Path | str) -> None:
    """Refuse settings that make an adapter more than pairs of factors and whole modules.

    Args:
        config: PEFT's configuration of the adapter.
        folder: Where it comes from, for the message.

    Raises:
        ModelError: naming the folder, the setting and its value.
    """
    wrong = []
    if config.get("peft_type") != "LORA":
        sparse = " (SHiRA folders are added up by `fedwinnow merge --rule sparse_sum`)"
        wrong.append(("peft_type", f"'LORA'{sparse * (config.get('peft_type') == 'SHIRA')}"))
    if config.get("bias", "none") != "none":
        wrong.append(("bias", "'none'; biases belong to one adapter and cannot be summed"))
    if config.get("use_dora"):
        wrong.append(("use_dora", "false; DoRA's magnitudes make ΔW depend on the base's weights"))
    if config.get("init_lora_weights", True) not in INITIALISATIONS:
        cure = "save it with path_initial_model_for_weight_conversion"
        wrong.append(("init_lora_weights", f"one that leaves the base as it is; {cure}"))
    wrong += [(key, f"a table of at most {_MOST} regular expressions of module names, {_PLAIN}")
              for key in ("rank_pattern", "alpha_pattern")
              if not _are_patterns(config.get(key) or {})]  # fmt: skip
    wrong += [(key, "nothing; only plain LoRA is read") for key in sorted(set(config) - READ)
              if config[key]]  # fmt: skip
    if wrong:
        key, expected = wrong[0]
        message = f"{folder}: expected {key} = {expected}; got {key} = {shown(config.get(key))}"
        raise ModelError(message)


def _are_patterns(table: object) -> bool:
    """Return whether every key of a table is a regular expression that compiles in little time."""
    if not isinstance(table, Mapping) or len(table) > _MOST:
        return False
    return all(isinstance(one, str) and (_EXACT.fullmatch(one) or _is_plain(one)) for one in table)


def _is_plain(pattern: str) -> bool:
    """Return whether a pattern means one thing to ``re``, as in PEFT, and to ``regex``, as here."""
    if len(pattern) > _LONGEST or "[:" in pattern or not _BRACES.fullmatch(pattern):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # a set that later versions read anew
            re.compile(f"({pattern})")
            regex.compile(_ending_in(pattern))
    except (re.error, regex.error, OverflowError, RecursionError, FutureWarning):
        return False
    return True


def _ending_in(pattern: str) -> str:
    """Return what PEFT matches to a module's name: the pattern as the name or its end."""
    return rf"(.*\.)?({pattern})$"


class NamePatterns:
    """Tables of regular expressions for module names, matched as PEFT does, in bounded time.

    A stranger writes them, and a few characters can take longer than anyone waits. A pattern for
    one whole name, as a merge writes for every module, is looked up.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        """Take a configuration that :func:`check_plain_lora` passed, and where it comes from."""
        self.folder = folder
        self._left = SECONDS
        self._exact: dict[str, dict[str, tuple[int, str]]] = {}
        self._others: dict[str, list[tuple[int, str, regex.Pattern[str]]]] = {}
        for table in PATTERNS:
            exact = self._exact.setdefault(table, {})
            others = self._others.setdefault(table, [])
            for place, pattern in enumerate(config.get(table) or {}):
                if _EXACT.fullmatch(pattern):
                    exact[pattern[1:-1].replace("\\", "")] = place, pattern
                else:
                    others.append((place, pattern, regex.compile(_ending_in(pattern))))

    def first(self, table: str, names: tuple[str, str]) -> str | None:
        """Return the first pattern that matches a name or its end; None where none does.

        Args:
            table: ``rank_pattern`` or ``alpha_pattern``.
            names: The names of one module.

        Raises:
            ModelError: matching takes longer than ``SECONDS`` in all; names folder and pattern.
        """
        exact = self._exact[table]
        place, found = min((exact[name] for name in names if name in exact), default=(None, None))
        for at, text, pattern in self._others[table]:
            if place is not None and at > place:
                break
            if any(self._matches(pattern, name, table, text) for name in dict.fromkeys(names)):
                return text
        return found

    def _matches(self, pattern: "regex.Pattern[str]", name: str, table: str, text: str) -> bool:
        began = time.perf_counter()
        try:
            found = pattern.match(name, timeout=max(self._left, 1e-3))
        except TimeoutError as error:
            message = (
                f"{self.folder}: matching {table}[{shown(text)}] to names of modules takes longer "
                f"than {SECONDS:.0f} s; write it without a repeat within a repeat"
            )
            raise ModelError(message) from error
        self._left -= time.perf_counter() - began
        return found is not None
