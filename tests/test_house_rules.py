"""Guards of the house rules: layout, size, one-way imports, and a README that is true."""

import ast
import graphlib
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

import generate
import pytest

from fedwinnow.curation.config.flower_overrides import read_overrides
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.strategies.interfaces.scorer import Scorer

ROOT = Path(__file__).parent.parent
FOLDERS = ("curation", "strategies", "client", "server", "simulations")
TOP = ("fedwinnow/api", "fedwinnow/cli")
FILES = tuple(sorted(p for folder in (*FOLDERS, *TOP) for p in (ROOT / folder).rglob("*.py")))
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
RIM = FLOWER | {"simulations/runtimes/flower.py", "fedwinnow/api/flower.py"}


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
    """At most 400 lines a file and 50 a function, documentation not counted."""
    long = []
    for file in FILES:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        long += [f"{name_of(file)}: {lines} lines"] if lines > 400 else []
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > 50:
                long.append(f"{name_of(file)}: {node.name} has {lines_of(node)} lines")
    assert not long


ORDER = """
curation.errors curation.seeds curation.datatypes curation.versions curation.atomic_files
    curation.watchdog curation.process_guard
    curation.signal_columns curation.learning_rate curation.tabular
curation.scores curation.adapters
curation.protocol
curation.config
curation.tokens
curation.model
curation.gradients
strategies.interfaces
strategies.maths strategies.merge_maths strategies.setting_types strategies.registry
strategies.scorers strategies.thresholds strategies.orderings strategies.objectives
    strategies.weighting strategies.merging
strategies.run_plugins strategies.plugin_description
strategies.terms_check strategies.conformance
client.data_files
client.data client.measuring
client.runs
client.signals
client.training
client.phases
client.site
client.budget
client.boundary
client.agent
client.app
server.state server.transport
server.aggregation
server.phases
server.run
server.report server.deployment
server.adapter_tools server.strategy
server.app
simulations.scenarios simulations.datasets
simulations.runtimes
simulations.studies simulations.rehearsal
simulations.recipes simulations.attacks simulations.benchmarks
    simulations.score_settings simulations.single_silo
api
cli
"""
"""Sub-packages and single modules, one floor a line; an import never goes up."""
FLOORS = {
    name: floor
    for floor, line in enumerate(ORDER.strip().replace("\n    ", " ").split("\n"))
    for name in line.split()
}
ROOTS = {
    "curation": {"curation"},
    "strategies": {"curation", "strategies"},
    "client": {"curation", "strategies", "client"},
    "server": {"curation", "strategies", "server"},
    "simulations": {"curation", "strategies", "client", "server", "simulations"},
    "api": {"curation", "strategies", "client", "server", "simulations", "api"},
    "cli": {"curation", "strategies", "client", "server", "simulations", "api", "cli"},
}
"""Root folder → those that it may import from; client and server never see each other."""


def imports_of(file: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, without the import root's name."""
    found = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedwinnow."):
            module = (node.module or "").removeprefix("fedwinnow.")
            inner = {f"{module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {module}
    return found


MODULES = {module_of(file).removeprefix("fedwinnow."): file for file in FILES}


def unit_of(module: str) -> str:
    """The sub-package, or the single module, that the order speaks of."""
    root, *inner = module.split(".")
    return root if root in {"api", "cli"} or not inner else f"{root}.{inner[0]}"


def test_house_imports_never_go_up():
    """Imports go one way: between root folders, and between the floors of their sub-packages."""
    up = []
    for module, file in MODULES.items():
        if file.name == "__init__.py":
            continue
        assert unit_of(module) in FLOORS, f"{module}: give its folder a place in ORDER"
        roots = ROOTS[module.partition(".")[0]]
        up += [
            f"{module} imports {other}"
            for other in imports_of(file)
            if other.partition(".")[0] not in roots
            or FLOORS[unit_of(other)] > FLOORS[unit_of(module)]
        ]
    assert not up


def test_house_only_the_import_root_is_imported():
    """Root folders are imported as fedwinnow.NAME, never by their own name."""
    bare = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", flags=re.MULTILINE)
    assert not [name_of(file) for file in FILES if bare.search(file.read_text(encoding="utf-8"))]


def test_house_imports_have_no_circle():
    """No module imports itself over others, not even inside a function."""
    graph = {module: imports_of(file) & MODULES.keys() for module, file in MODULES.items()}
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError with the circle


def test_house_strings_name_no_module_above():
    """A string that names a module of ours names none of a root folder above: no way up."""
    named = re.compile(r"fedwinnow\.((?:curation|strategies|client|server|simulations)\.\w+)")
    for module, file in MODULES.items():
        for node in ast.walk(parsed(file)):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if "\n" in node.value or " " in node.value:
                continue  # prose, and programs of other processes
            found = {other.split(".")[0] for other in named.findall(node.value)}
            assert found <= ROOTS[module.split(".")[0]], f"{module}: {node.value}"


def test_house_strings_name_modules_that_exist():
    """A string that is a module's name (a logger, a registry's row) names one that is there."""
    whole = re.compile(r"fedwinnow((?:\.\w+)+)(?::\w+)?")
    there = {f"fedwinnow.{module}" for module in MODULES} | {
        f"fedwinnow.{name}" for name in FOLDERS
    }
    for module, file in MODULES.items():
        for node in ast.walk(parsed(file)):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and whole.fullmatch(text) and text.count(".") > 1:
                assert text.partition(":")[0] in there, f"{module}: {text}"


def test_house_deployed_commands_import_no_simulation():
    """What a coordinator or a silo deploys never imports ``simulations``."""
    deployed = ("run", "site", "adapters", "plugins", "init", "options", "progress")
    for name in deployed:
        found = {other for other in imports_of(MODULES[f"cli.{name}"]) if "simulations" in other}
        assert not found, name
        roots = {other.partition(".")[0] for other in imports_of(MODULES[f"cli.{name}"])}
        for node in ast.walk(parsed(MODULES[f"cli.{name}"])):  # a logger of what it never calls
            if isinstance(node, ast.Constant) and str(node.value).startswith("fedwinnow."):
                assert node.value.split(".")[1] in roots, f"{name}: {node.value}"


def test_house_folders_are_small():
    """At most 14 files a folder beside its ``__init__``; shelves of plug-ins excepted."""
    shelves = {ROOT / "strategies" / "scorers"}
    for folder in {file.parent for file in FILES} - shelves:
        assert len([*folder.glob("*.py")]) <= 15, name_of(folder)


@pytest.mark.parametrize("module", ["fedwinnow.client.agent.relay", "fedwinnow.client.app"])
def test_house_what_flower_ships_to_a_node_loads_no_model_code(module):
    """The relay and the ClientApp import neither torch nor the site's own code."""
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'peft', 'fedwinnow.client.site'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


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
    assert read_overrides({"scenario": "", "overrides": "", "resume": False, **flat}) == ()
    for app in PYPROJECT["tool"]["flwr"]["app"]["components"].values():
        module, _, attribute = app.partition(":")
        assert hasattr(importlib.import_module(module), attribute)


def test_house_readme_map_is_computed_from_the_folders():
    """The README's map is what ``docs/generate.py`` computes, in at most 40 lines."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert generate.MAP.findall(text) == [generate.house_map()], "run python docs/generate.py"
    assert generate.house_map().count("\n") <= 40


def test_house_questions_name_files_that_exist():
    """Every path of the twenty questions is there, and there are twenty."""
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 20
    for row in rows:
        named = re.findall(r"`([\w/.]+)`", row)
        assert named, row
        assert all((ROOT / path).exists() for path in named), row


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
