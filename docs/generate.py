"""Write the parts of the documentation that are computed from the code.

``python docs/generate.py`` rewrites the map in README.md and the reference in docs/api.md. Tests
compare them with what this folder computes, so that they cannot be stale.
"""

import ast
import re
from itertools import groupby
from pathlib import Path

from api_page import MARK, reference

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fedwinnow", "curation", "strategies", "client", "server", "simulations")
MAP = re.compile(r"```text\n(fedwinnow/.*?)```", flags=re.DOTALL)
WIDTH = 29


def house_map() -> str:
    """Return the folders that hold code, two levels deep, each with its ``__init__`` sentence."""
    lines = []
    for root in FOLDERS:
        lines.append(_row(f"{root}/", _sentence(ROOT / root)))
        inner = [path.parent for path in sorted((ROOT / root).glob("*/__init__.py"))]
        inner = [path for path in inner if not path.is_symlink() and len([*path.glob("*.py")]) > 1]
        for sentence, paths in groupby(inner, key=_sentence):
            names = " ".join(f"{path.name}/" for path in paths)
            lines += [_row(f"  {names}", sentence)] if len(names) < WIDTH - 3 else []
            lines += [f"  {names}", _row("", sentence)] if len(names) >= WIDTH - 3 else []
    return "\n".join(lines) + "\n"


def _row(name: str, sentence: str) -> str:
    return f"{name:<{WIDTH}}{sentence}".rstrip()


def _sentence(folder: Path) -> str:
    """Return the first line of a package's documentation, without its full stop."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def main() -> None:
    """Rewrite the computed parts."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if len(MAP.findall(text)) != 1:
        message = "README.md: expected one ```text block that starts with fedwinnow/"
        raise SystemExit(message)
    readme.write_text(
        MAP.sub(lambda _: f"```text\n{house_map()}```", text, count=1), encoding="utf-8"
    )
    page = ROOT / "docs" / "api.md"
    head, found, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not found:
        message = f"docs/api.md: expected the line {MARK!r} above the reference"
        raise SystemExit(message)
    page.write_text(head + MARK + reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
