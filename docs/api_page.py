"""The reference of docs/api.md: signatures and docstrings of the names of ``import fedwinnow``."""

import ast
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

MARK = "<!-- Below: computed by python docs/generate.py -->\n"
WIDTH = 88
_SECTION = re.compile(r"^(Args|Returns|Raises):$")
_ITEM = re.compile(r"^    (\*{0,2}[\w.]+): (.*)$")


def reference() -> str:
    """Return the part of the page that is computed: a heading for each name of ``__all__``."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this tree, not an installed one
    import fedwinnow as fw  # noqa: PLC0415 - behind the path

    parts = []
    for name in fw.__all__:
        thing = getattr(fw, name)
        if isinstance(thing, ModuleType):
            text = _module(thing)
        elif inspect.isclass(thing) and name in thing.__name__:
            text = _class(thing)
        elif inspect.isfunction(thing):
            text = _function(thing)
        else:
            text = _alias(name, inspect.getmodule(fw.Sample))
        parts.append(f"### `{name}`\n\n{text}")
    return "\n" + "\n".join(parts)


def _function(thing: Any) -> str:  # noqa: ANN401 - any function
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body
    assert isinstance(node, ast.FunctionDef)  # noqa: S101 - the source of a function
    return f"```python\n{_signature(node)}\n```\n\n{_documentation(inspect.getdoc(thing) or '')}"


def _signature(node: ast.FunctionDef) -> str:
    """The call as it is written in the source; one argument a line where one line is too long."""
    args = node.args
    places = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(places) - len(args.defaults)) + [*args.defaults]
    given = [_argument(arg, default) for arg, default in zip(places, defaults, strict=True)]
    if args.posonlyargs:
        given.insert(len(args.posonlyargs), "/")
    given += ["*"] if args.kwonlyargs else []
    given += [_argument(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    given += [f"**{_argument(args.kwarg, None)}"] if args.kwarg else []
    end = f") -> {ast.unparse(node.returns)}" if node.returns else ")"
    line = f"fw.{node.name}({', '.join(given)}{end}"
    if len(line) > WIDTH:
        line = f"fw.{node.name}(\n" + "".join(f"    {one},\n" for one in given) + end
    return line.replace("'", '"')


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    sign = " = " if kind else "="
    return f"{arg.arg}{kind}" + (f"{sign}{ast.unparse(default)}" if default else "")


def _class(thing: type) -> str:
    """The class in words, its fields, and its own methods and properties."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - the source of a class
    lines = [_documentation(inspect.getdoc(thing) or "")]
    for one, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign):
            lines.append(
                f"- `{ast.unparse(one.target)}: {ast.unparse(one.annotation)}`{_said(after)}"
            )
        elif isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            held = any(ast.unparse(mark) == "property" for mark in one.decorator_list)
            call = one.name if held else f"{one.name}({_arguments(one)})"
            first = (ast.get_docstring(one) or "").partition("\n\n")[0]
            lines.append(f"- `.{call}`: {_inline(first)}")
    return "\n".join(lines) + "\n"


def _arguments(method: ast.FunctionDef) -> str:
    return ", ".join(arg.arg for arg in (*method.args.args[1:], *method.args.kwonlyargs))


def _alias(name: str, module: ModuleType | None) -> str:
    """A type alias and the sentence below it."""
    assert module is not None  # noqa: S101 - the module of a class
    body = ast.parse(inspect.getsource(module)).body
    for one, after in pairwise(body):
        if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == name and one.value:
            return f"`{ast.unparse(one.value)}`{_said(after)}\n"
    message = f"docs/api.md: {name} is no function, class, module or alias of {module.__name__}"
    raise SystemExit(message)


def _said(node: ast.stmt | None) -> str:
    """What a string below a field or an alias says of it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return f": {_inline(inspect.cleandoc(str(node.value.value)))}"
    return ""


def _module(thing: ModuleType) -> str:
    """The module's documentation, with its drawing."""
    text = inspect.getdoc(thing) or ""
    head, _, rest = text.partition("\n::\n\n")
    drawing, _, tail = rest.partition("\n\n")
    return f"{_inline(head)}\n\n```text\n{textwrap.dedent(drawing)}\n```\n\n{_inline(tail)}\n"


def _documentation(text: str) -> str:
    """Paragraphs, then Google's Args, Returns and Raises as lists; other sections are left out."""
    blocks: dict[str, list[str]] = {"": []}
    section = ""
    for line in text.split("\n"):
        if re.match(r"^[A-Z][A-Za-z ]*:$", line):
            section = line[:-1]
            blocks[section] = []
        else:
            blocks[section].append(line)
    said = "\n".join(blocks[""]).strip()
    lines = ["\n\n".join(_paragraph(part) for part in said.split("\n\n"))]
    for name in ("Args", "Raises"):
        lines += [f"{name}:\n\n" + _items(blocks[name])] if name in blocks else []
    if "Returns" in blocks:
        lines.insert(1 + ("Args" in blocks), f"Returns: {_inline(' '.join(blocks['Returns']))}")
    return "\n\n".join(lines) + "\n"


def _paragraph(text: str) -> str:
    """A paragraph on one line, or a list with one line an item."""
    if not text.startswith("- "):
        return _inline(text)
    return "\n".join(
        f"- {_inline(item)}" for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    )


def _items(lines: list[str]) -> str:
    found: list[str] = []
    for line in lines:
        if match := _ITEM.match(line):
            found.append(f"- `{match[1]}`: {match[2]}")
        elif line.strip():
            found[-1] += f" {line.strip()}"
    return "\n".join(_inline(one) for one in found)


def _inline(text: str) -> str:
    """Words on one line; roles and doubled ticks of reStructuredText become Markdown's."""
    line = " ".join(text.split())
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)
    return line.replace("``", "`")
