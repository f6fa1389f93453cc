"""Give the modules of several adapter folders one spelling, or refuse them; never half of them.

One module may be ``model.layers.0.self_attn.q_proj`` in one folder and, saved from another class of
the same base, ``layers.0.self_attn.q_proj`` or ``model.language_model.layers.0.self_attn.q_proj``
in the next. PEFT would load the one spelling and leave the other out without a word. Such names
agree from the list of layers on (or in the last part, outside the layers). Which of them is right
is read from the base's own files; where these do not say, the folders are refused.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fedwinnow.curation.adapters.base_files import base_shapes
from fedwinnow.curation.adapters.peft_reader import LazyFactor, StoredAdapter
from fedwinnow.curation.errors import ModelError


def common_spelling(
    opened: Sequence[StoredAdapter], base: str = ""
) -> tuple[list[StoredAdapter], dict[str, str]]:
    """Return the folders with one name for every module, and whose prefixes were changed.

    Args:
        opened: The folders.
        base: Folder of the base model; "" or another name: what the folders name, where it is here.

    Returns:
        The folders in their order; and folder → a name as it was and is, where they differ.

    Raises:
        ModelError: a module has two names, and the base's files do not say which is right.
    """
    bases = [base, *(str(one.config.get("base_model_name_or_path") or "") for one in opened)]
    names = changed_names({str(one.folder): _modules(one) for one in opened}, bases)
    changed, found = {}, []
    for one in opened:
        own = {name: names[name] for name in _modules(one) if names.get(name, name) != name}
        if own:
            first = min(own)
            changed[str(one.folder)] = f"{first} → {own[first]}"
        found.append(_renamed(one, own) if own else one)
    return found, changed


def changed_names(folders: Mapping[str, Collection[str]], bases: Sequence[str]) -> dict[str, str]:
    """Return name → the one to use in its place, for module names that change.

    Args:
        folders: Folder → names of its modules.
        bases: Names of the base model; the first that is a local folder is read, where it is asked.

    Raises:
        ModelError: a module has two names, and the base's files do not say which is right.
    """
    held: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, names in folders.items():
        for name in names:
            held[_core(name)][name].append(folder)
    chosen: dict[str, str] = {}
    doubtful = {core: names for core, names in held.items() if not _are_apart(names, folders)}
    known = _modules_of_base(bases) if doubtful else {}
    for core, names in doubtful.items():
        right = [name for name in names if name in known]
        if len(right) == len(names):
            continue
        alone = all(len(set(names) & set(own)) < 2 for own in folders.values())  # noqa: PLR2004 - two names, two modules
        bare = right == [core] and "." in core  # a base that was saved without its root
        if len(right) != 1 or not alone or bare:
            raise _two_names(core, names, read=bool(known))
        chosen.update(dict.fromkeys(names, right[0]))
    return chosen


def _are_apart(names: Collection[str], folders: Mapping[str, Collection[str]]) -> bool:
    """Return whether one folder holds all of some names: they are modules of their own."""
    return any(set(names) <= set(own) for own in folders.values())


def check_common_modules(folders: Mapping[str, Collection[str]]) -> None:
    """Refuse a folder that changes no module which another folder changes.

    Args:
        folders: Folder → names of the modules that it changes.

    Raises:
        ModelError: naming the folder.
    """
    for folder, own in folders.items() if len(folders) > 1 else ():
        others = {name for other in folders if other != folder for name in folders[other]}
        if not others & set(own):
            message = (
                f"{folder}: changes no module that another folder changes (it has {min(own)}, they "
                f"have {min(others)}); a merge would only shrink it to its share: merge adapters "
                "of the same modules"
            )
            raise ModelError(message)


def _modules_of_base(bases: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return modules of the first named base that is a local folder; empty where none is."""
    here = [Path(name) for name in bases if name and Path(name).is_dir()]
    return base_shapes(here[0]) if here else {}


def _modules(one: StoredAdapter) -> list[str]:
    """Return all modules that a folder holds something of, sorted."""
    whole = (name.rpartition(".")[0] for name in (*one.saved, *one.copies))
    return sorted({*one.adapter.a, *whole})


def _core(name: str) -> str:
    """Return a name from the list of layers on, or its last part outside the layers."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[max(place - 1, 0) :])


def _two_names(core: str, held: Mapping[str, Sequence[str]], *, read: bool) -> ModelError:
    (one, first), (other, second), *_ = sorted(held.items())
    why = "the base's files do not say" if read else "the base is not here to say"
    cure = "save one of them anew from the class of the other"
    if not read:
        cure = f"give --base with the base's local folder, or {cure}"
    return ModelError(
        f"{second[0]}: has a module {other}, and {first[0]} has {one}; both end in {core}, and "
        f"{why} which name is right; {cure}"
    )


def _renamed(one: StoredAdapter, names: Mapping[str, str]) -> StoredAdapter:
    """Return a folder's content under other module names."""

    def module(name: str) -> str:
        return names.get(name, name)

    def parameter(name: str) -> str:
        owner, _, part = name.rpartition(".")
        return f"{module(owner)}.{part}"

    def lazily(values: Mapping[str, Tensor], word: Callable[[str], str]) -> LazyFactor:
        before = {word(name): name for name in values}
        return LazyFactor(list(before), lambda name: values[before[name]])

    adapter = replace(
        one.adapter,
        a=lazily(one.adapter.a, module),
        b=lazily(one.adapter.b, module),
        scales={module(name): scale for name, scale in one.adapter.scales.items()},
    )
    return replace(
        one,
        adapter=adapter,
        saved=lazily(one.saved, parameter),
        copies=lazily(one.copies, parameter),
        shapes={module(name): shape for name, shape in one.shapes.items()},
        embeddings=frozenset(map(module, one.embeddings)),
        tied={module(head): module(embedding) for head, embedding in one.tied.items()},
    )
