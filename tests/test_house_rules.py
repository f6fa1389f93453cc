"""Guards of the house rules: layout, size, one-way imports, and a README that is true."""

import ast
import importlib
import importlib.util
import re
import runpy
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from fedwinnow.curation.config.flower_overrides import overrides
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.strategies.interfaces.scorer import Scorer

ROOT = Path(__file__).parent.parent
FOLDERS = ("curation", "strategies", "client", "server", "simulations")
CLI = "fedwinnow/cli"
FILES = tuple(sorted(p for folder in (*FOLDERS, CLI) for p in (ROOT / folder).rglob("*.py")))
TESTS = tuple(sorted((ROOT / "tests").rglob("*.py")))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FLOWER = {
    "curation/protocol/flower_records.py",
    "curation/protocol/flower_messages.py",
    "client/app.py",
    "server/app.py",
    "server/transport/codec.py",
    "strategies/merging/flower/rule.py",
    "server/transport/flower_grid.py",
    "server/strategy.py",
}
RIM = FLOWER | {"simulations/runtimes/flower.py"}


def name_of(file: Path) -> str:
    """Path from the root, with slashes."""
    return file.relative_to(ROOT).as_posix()


def module_of(file: Path) -> str:
    """Dotted name under the import root."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    inner = parts[1:] if parts[0] == "fedwinnow" else parts
    return ".".join(["fedwinnow", *(part for part in inner if part != "__init__")])


def parsed(file: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its documentation."""
    text = ast.get_docstring(function, clean=False)
    said = 0 if text is None else text.count("\n") + 1
    return (function.end_lineno or 0) - function.lineno + 1 - said


def test_house_every_module_imports_and_says_what_it_is():
    """Each module can be imported, and its first line is a sentence."""
    for file in FILES:
        module = importlib.import_module(module_of(file))
        first = (module.__doc__ or "").strip().split("\n")[0]
        assert first.endswith((".", ":", "?")), name_of(file)


def test_house_no_file_is_long_and_no_function_either():
    """At most 300 lines a file and 50 a function, documentation not counted."""
    long = []
    for file in FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        long += [f"{name_of(file)}: {lines} lines"] if lines > 300 else []
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 50:
                long.append(f"{name_of(file)}: {node.name} has {lines_of(node)} lines")
    assert not long


def test_house_imports_go_one_way():
    """Curation ← strategies ← client, server ← simulations; only under the import root."""
    allowed = {
        "curation": {"curation"},
        "strategies": {"curation", "strategies"},
        "client": {"curation", "strategies", "client"},
        "server": {"curation", "strategies", "server"},
        "simulations": set(FOLDERS),
        "fedwinnow": {*FOLDERS, "cli"},
    }
    bare = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", flags=re.MULTILINE)
    ours = re.compile(r"^\s*(?:from|import) fedwinnow\.(\w+)", flags=re.MULTILINE)
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert set(ours.findall(text)) <= allowed[file.relative_to(ROOT).parts[0]], name_of(file)
        assert not bare.search(text), name_of(file)


def test_house_no_module_keeps_state():
    """No global statement, and nothing that can change under a lower-case name."""
    free = {"logger", "app", "__all__"}  # a logger, what Flower and typer look for, names
    for file in FILES:
        tree = parsed(file)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], name_of(file)
        for node in tree.body:
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
                    upper = target.id.lstrip("_")[0].isupper()
                    assert upper or target.id in free, f"{name_of(file)}: {target.id}"


@pytest.mark.flower
def test_house_everything_but_the_rim_imports_without_flower():
    """With ``flwr`` blocked, all pure modules can be imported."""
    pure = [module_of(file) for file in FILES if name_of(file) not in RIM]
    pure = [name for name in pure if not name.endswith("superlink")]
    code = (
        "import importlib, sys\n"
        "sys.modules['flwr'] = None\n"
        f"[importlib.import_module(name) for name in {pure!r}]\n"
        "assert not [m for m in sys.modules if m.startswith(('flwr.', 'ray.'))]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_house_packages_of_pyproject_are_those_of_the_tree():
    """pyproject.toml lists every folder with an __init__.py under the import root."""
    tree = {module_of(file) for file in FILES if file.name == "__init__.py"} | {"fedwinnow"}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == tree
    folders = {f"fedwinnow.{name}": name for name in FOLDERS} | {"fedwinnow": "fedwinnow"}
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == folders


def test_house_flower_run_config_is_valid():
    """Each dotted key is a scalar key of the scenario; the defaults override nothing."""
    given = PYPROJECT["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{section}.{key}": value
        for section, table in given.items()
        if isinstance(table, dict)
        for key, value in table.items()
    }
    for dotted in flat:
        section, key = dotted.split(".")
        inner = getattr(RunConfig(), section)
        assert is_dataclass(inner)
        assert key in {f.name for f in fields(inner)}
    assert overrides({"scenario": "", "overrides": "", "resume": False, **flat}) == ()
    for app in PYPROJECT["tool"]["flwr"]["app"]["components"].values():
        module, _, attribute = app.partition(":")
        assert hasattr(importlib.import_module(module), attribute)


def readme_tree() -> dict[str, str]:
    """Path → description of the README's block that starts with ``fedwinnow/``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n(fedwinnow/.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1, "README.md needs one ```text block that starts with fedwinnow/"
    found, above = {}, []
    for line in blocks[0].splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, about = line.strip().partition("  ")
        above = [*above[:depth], name.rstrip("/")]
        found["/".join(above) + ("/" if name.endswith("/") else "")] = about.strip()
    return found


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the README is written last")
def test_house_readme_tree_is_the_real_tree():
    """The README's tree names what is there, with a word on each, and all of our code."""
    tree = readme_tree()
    for path, about in tree.items():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
        assert about, f"{path} has no description"
    inner = {name_of(p) for p in FILES if p.name != "__init__.py" and len(p.parts)}
    packages = {f"{name_of(p.parent)}/" for p in FILES if p.name == "__init__.py"}
    covered = {path for path in packages if path in tree}
    hidden = {p for p in inner if any(p.startswith(c) for c in covered if c.count("/") > 1)}
    assert packages <= set(tree)
    assert inner - hidden <= set(tree), sorted(inner - hidden - set(tree))


def test_house_test_files_have_names_of_their_own():
    """No two test files share a name, as the tests are no package."""
    names = [file.name for file in TESTS if file.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_house_every_test_states_its_law():
    """Each test's documentation begins with the law, in a sentence."""
    for file in TESTS:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                law = (ast.get_docstring(node) or "").split("\n")[0]
                assert law.endswith((".", "?")), f"{name_of(file)}: {node.name}"


def test_house_documented_scorer_is_one(tmp_path):
    """The example of CONTRIBUTING.md runs as it stands and scores by its formula."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = textwrap.dedent(text.split("```python\n")[1].split("```")[0])
    (tmp_path / "margin.py").write_text(code, encoding="utf-8")
    scorer = runpy.run_path(str(tmp_path / "margin.py"))["margin"](bound=2.0)
    assert isinstance(scorer, Scorer)
    assert scorer.columns == {"loss"}
