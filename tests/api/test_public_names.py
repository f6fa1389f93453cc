"""Laws of the public API: its names, its page, its laziness, and what its functions say."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import api_page
import pytest

import fedwinnow as fw
from fedwinnow.curation.config.run import RunConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FUNCTIONS = [name for name in fw.__all__ if inspect.isfunction(getattr(fw, name))]
VERBS = {
    *("Compute", "Count", "Describe", "Draw", "Fail", "Keep", "Load", "Make", "Measure", "Merge"),
    *("Open", "Read", "Run", "Score", "Write"),
}


def child(code):
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_api_names_are_the_headings_of_the_page():
    """docs/api.md has a heading for each name of ``__all__``, in its order, and no other."""
    assert re.findall(r"^### `(\w+)`$", PAGE, flags=re.MULTILINE) == fw.__all__
    assert len(set(fw.__all__)) == len(fw.__all__)


def test_api_page_is_computed_from_the_code():
    """The reference is what the generator computes now."""
    assert PAGE.partition(api_page.MARK)[2] == api_page.reference(), "run python docs/generate.py"


def test_api_lists_of_names_agree():
    """What is loaded by name, what type checkers see and ``__all__`` are the same names."""
    tree = ast.parse((ROOT / "fedwinnow" / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        (alias.name, (node.module or "").rpartition(".")[2])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedwinnow.api.")
        for alias in node.names
    }
    loaded = {(name, file) for file, names in fw._FILES.items() for name in names.split()}
    assert seen == loaded
    assert {name for name, _ in loaded} == set(fw.__all__)


def test_api_import_takes_no_time():
    """A fresh interpreter imports it in 0.3 s of processor time, without heavy packages."""
    seconds, heavy = child(
        "import sys, time\n"
        "begun = time.process_time()\n"
        "import fedwinnow as fw\n"
        "print(time.process_time() - begun)\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'peft', 'flwr', 'pandas', 'pyarrow', "
        "'matplotlib'} & sys.modules.keys()))\n"
    ).splitlines()
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_api_lists_its_names_where_nothing_heavy_is_installed():
    """With torch and its kin blocked, the import works and ``dir`` names everything."""
    names = child(
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'peft', 'flwr', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "import fedwinnow as fw\n"
        "print(' '.join(set(dir(fw)) & set(fw.__all__)))\n"
    )
    assert set(names.split()) == set(fw.__all__)


def test_api_nouns_load_without_flower():
    """Only the strategy loads Flower: every other name comes with Flower blocked."""
    child(
        "import sys\n"
        "sys.modules['flwr'] = None\n"
        "import fedwinnow as fw\n"
        "[getattr(fw, name) for name in fw.__all__ if name != 'CurationStrategy']\n"
    )


def test_api_unknown_name_is_an_attribute_error():
    """A misspelled name is refused as of any module, in ``from`` imports too."""
    with pytest.raises(AttributeError, match="module 'fedwinnow' has no attribute 'mesure'"):
        _ = fw.mesure
    with pytest.raises(ImportError, match="mesure"):
        from fedwinnow import mesure  # noqa: F401


@pytest.mark.parametrize("name", FUNCTIONS)
def test_api_function_says_what_it_does_takes_gives_and_refuses(name):
    """The documentation begins with a verb and has Args of every parameter, Returns and Raises."""
    function = getattr(fw, name)
    text = inspect.getdoc(function) or ""
    assert text.split()[0] in VERBS
    assert "\nRaises:\n" in text
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert re.search(rf"^    {parameter.name}: ", text, flags=re.MULTILINE), parameter.name
    if inspect.signature(function).return_annotation is not None:
        assert "\nReturns:\n" in text


def test_api_defaults_are_those_of_a_scenario():
    """Whoever gives no setting gets what a scenario without the key gets."""
    scenario = RunConfig()
    expected = {
        (fw.load_model, name): getattr(scenario.adapter, name) for name in ("rank", "alpha")
    }
    expected |= {
        (fw.load_model, "targets"): scenario.adapter.targets,
        (fw.load_model, "dtype"): scenario.model.dtype,
        (fw.load_model, "gguf_file"): scenario.model.gguf_file,
        (fw.load_model, "seed"): scenario.run.seed,
        (fw.edges, "bins"): scenario.summary.bins,
        (fw.summarise, "smallest_cell"): scenario.summary.smallest_cell,
        (fw.merge, "rule"): scenario.merging.name,
    }
    for (function, name), value in expected.items():
        assert inspect.signature(function).parameters[name].default == value, name
    assert {field.name for field in fields(fw.RunConfig)} == {f.name for f in fields(RunConfig)}
