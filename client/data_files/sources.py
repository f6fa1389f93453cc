"""Find which files a data source names: one file, the shards of one split, or a data set.

Names are taken as they are: brackets, stars and question marks are no patterns.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedwinnow.curation.errors import DataError
from fedwinnow.curation.tabular import counted

Kind = Literal["json", "csv", "arrow"]
KINDS: dict[str, Kind] = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".json.gz": "json",
    ".parquet": "arrow",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
}
"""Ending of a data file, in any case → kind of its rows."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_OTHER_FILES = frozenset(
    [
        ".arrow",
        ".bin",
        ".docx",
        ".gz",
        ".h5",
        ".html",
        ".log",
        ".md",
        ".ndjson",
        ".npy",
        ".npz",
        ".pdf",
        ".pickle",
        ".pkl",
        ".pt",
        ".py",
        ".safetensors",
        ".sqlite",
        ".tar",
        ".toml",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
        ".zst",
    ]
)
"""Endings of files that are no data here; a hub's name has none of them."""
_SPLITS = {
    "train": ("train", "training", "trainset"),
    "test": ("test", "testing", "testset", "eval", "evaluation", "evalset"),
    "validation": ("validation", "valid", "val", "dev", "validset", "valset", "devset"),
}
_ABOUT = {"dataset_infos.json", "dataset_info.json", "config.json"}
"""Files beside the data of a hub data set that hold no rows."""
_OTHER_DATA = {
    *(".arrow", ".avro", ".feather", ".orc", ".pq", ".msgpack", ".pkl", ".pickle", ".txt", ".xml"),
    *(".xls", ".xlsx", ".ods", ".ndjson", ".db", ".sqlite", ".tar", ".zip", ".7z", ".rar"),
    *(".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4"),
}
"""Endings of files that may hold rows and are not read."""
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """Files or data set that a source names."""

    name: str
    kind: Kind
    files: tuple[Path, ...] = ()
    """Files in the order of reading; none for a saved data set and for the hub."""
    saved: Path | None = None
    """Folder that ``save_to_disk`` wrote."""
    split: str = ""
    """Split that is read; "" where the names tell none."""
    left_out: tuple[str, ...] = ()
    """Files beside those read: of other splits, empty, or of kinds that are not read."""

    @property
    def described(self) -> str:
        """Return in words which files are read; "" for the one that the source names."""
        if self.files == (Path(self.name),):
            return ""
        split = f" of split {self.split}" if self.split else ""
        if not self.files:
            return f" of a data set{split}"
        names = ", ".join(file.name for file in self.files[:_SHOWN])
        more = ", …" if len(self.files) > _SHOWN else ""
        return f" of {counted(len(self.files), 'file')}{split} ({names}{more})"


def ending_of(path: Path) -> str:
    """Return a file's ending in lower case, with that before ``.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def local_path(source: str) -> Path:
    """Return the path that a source names, without the split that may follow a folder."""
    stem = source.rpartition(":")[0]
    named = stem and not Path(source).exists() and Path(stem).is_dir()
    return Path(stem if named else source)


def find_source(source: str) -> DataSource:
    """Return what a source names: a file, a folder (``:split`` may follow) or a hub name.

    Raises:
        DataError: nothing is there, or it is not clear which of several things is meant.
    """
    path = local_path(source)
    if source and path.is_file():
        return _one_file(source, path)
    if source and path.is_dir():
        split = "" if Path(source).is_dir() else source.rpartition(":")[2]
        return _folder(source, path, split)
    refuse_missing(source)
    return DataSource(name=source, kind="arrow", split=source.partition(":")[2] or "train")


def refuse_missing(source: str) -> None:
    """Refuse a path that leads nowhere; what can be a hub's name passes.

    Raises:
        DataError: there is no such file or folder.
    """
    path = local_path(source)
    if source and (path.is_file() or path.is_dir()):
        return
    parent = Path(source).parent
    path_like = (
        not _HUB_NAME.fullmatch(source)
        or ending_of(Path(source)) in KINDS
        or Path(source).suffix.lower() in _OTHER_FILES
        or source.startswith(".")
        or (parent != Path() and parent.is_dir())
    )
    if path_like:
        message = f"{source!r}: no such data file; give its path, a folder or a hub name"
        raise DataError(message)


def _one_file(source: str, path: Path) -> DataSource:
    ending = ending_of(path)
    if ending not in KINDS:
        message = f"{path}: ending {ending!r} is unknown; give one of {', '.join(KINDS)}"
        raise DataError(message)
    if path.stat().st_size == 0:
        message = f"{path}: the file is empty; give a file with at least one row"
        raise DataError(message)
    return DataSource(name=source, kind=KINDS[ending], files=(path,))


def _folder(source: str, folder: Path, split: str) -> DataSource:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        several = (folder / "dataset_dict.json").exists()
        chosen = split or ("train" if several else "")
        return DataSource(name=source, kind="arrow", saved=folder, split=chosen)
    found = _data_files(folder)
    place = folder
    if not found and (folder / "data").is_dir():  # the layout of a hub repository
        place = folder / "data"
        found = _data_files(place)
    if not found:
        below = sorted(inner.name for inner in folder.glob("*/") if _holds_data(inner))
        there = f"; name one of its folders ({', '.join(below)})" if below else ""
        message = f"{folder}: expected files of one kind ({', '.join(KINDS)}), found none of them"
        raise DataError(message + there)
    chosen, files = _one_split(place, found, split)
    full = [file for file in files if file.stat().st_size]
    if not full:
        message = f"{folder}: its data files are empty; give a file with at least one row"
        raise DataError(message)
    endings = {ending_of(file): None for file in full}
    if len(endings) > 1:
        known = ", ".join(ending for ending in KINDS if ending in endings)
        message = (
            f"{place}: expected files of one kind ({', '.join(KINDS)}), found {known}; name one "
            "file, or move the others away"
        )
        raise DataError(message)
    return DataSource(
        name=source,
        kind=KINDS[next(iter(endings))],
        files=tuple(full),
        split=chosen,
        left_out=(*_left_out(found, files, full), *_unknown(place)),
    )


def _data_files(folder: Path) -> list[Path]:
    """Return a folder's data files by name, less hidden ones and descriptions of data sets.

    Raises:
        DataError: one is a link to a file that is not there, so that its rows would be missing.
    """
    found = sorted(
        file
        for file in folder.iterdir()
        if ending_of(file) in KINDS
        and not file.name.startswith(".")
        and file.name not in _ABOUT
        and not file.is_dir()
    )
    for file in found:
        if not file.exists():
            message = (
                f"{file}: a link to a file that is not there; fetch the file or remove the link"
            )
            raise DataError(message)
    return [file for file in found if file.is_file()]


def _unknown(folder: Path) -> list[str]:
    """Return in words what else in a folder may hold rows: files of other kinds, and folders."""
    inner = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [
        path.name
        for path in inner
        if path.is_file() and ending_of(path) not in KINDS and path.suffix.lower() in _OTHER_DATA
    ]
    folders = [f"folder {path.name}" for path in inner if path.is_dir() and _holds_data(path)]
    names = [*files, *folders]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [*names[:_SHOWN], *more]


def _holds_data(folder: Path) -> bool:
    """Return whether data files lie in a folder, without a look at what is in them."""
    return any(
        ending_of(path) in KINDS and path.name not in _ABOUT and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def _one_split(folder: Path, files: list[Path], wanted: str) -> tuple[str, list[Path]]:
    """Return the split to read and its files; all files where no name tells a split.

    Raises:
        DataError: the split is not there, or other splits are mixed with files of none.
    """
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    if wanted or "train" in by_split or len(by_split) == 1:
        split = wanted or ("train" if "train" in by_split else next(iter(by_split)))
        if split in by_split:
            return split, by_split[split]
    there = ", ".join(name or "files of no split" for name in sorted(by_split, reverse=True))
    message = (
        f"{folder}: no split {wanted or 'train'!r}, only {there}; name one file, or a split as "
        f"{folder}:{next(name for name in sorted(by_split, reverse=True)) or 'train'}"
    )
    raise DataError(message)


def _split_of(file: Path) -> str:
    """Return the split that a file's name tells, as ``train-00000-of-00002``; "" for none."""
    words = re.split(r"[^a-z]+", file.name.lower().removesuffix(ending_of(file)))
    return next((split for word in words for split, names in _SPLITS.items() if word in names), "")


def _left_out(found: list[Path], files: list[Path], full: list[Path]) -> tuple[str, ...]:
    """Return in words which files beside those read are left out, and why."""
    others: dict[str, int] = {}
    for file in found:
        if file not in files:
            split = _split_of(file) or "no split"
            others[split] = others.get(split, 0) + 1
    empty = [file.name for file in files if file not in full]
    told = [f"{split} ({counted(count, 'file')})" for split, count in others.items()]
    return (*told, *(f"{name} (empty)" for name in empty))
