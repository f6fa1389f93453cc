"""Laws of the start: help, version and mistakes need no torch, and help texts are whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import typer
from repository import ROOT

from fedwinnow.cli.main import app, command_line

HEAVY = ["torch", "transformers", "peft", "datasets", "pyarrow"]
HEAVY += ["flwr", "ray", "safetensors", "matplotlib", "scipy"]
RUNS = """
import contextlib, io, json, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise AssertionError(f"{name} is loaded")

sys.meta_path.insert(0, Refusing())
from fedwinnow.cli import main

told = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["fedwinnow", *words]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main.main()
        except SystemExit as stop:
            code = stop.code or 0
        except AssertionError as error:
            code = str(error)
    told.append([code, out.getvalue()])
print(json.dumps(told))
"""
SCENARIO = """
[model]
name = "toy"
[anchors]
path = "{anchors}"
[[sites]]
name = "north"
data = "missing.jsonl"
"""


def commands(tree, words: tuple[str, ...] = ()):
    """Every command with its words, the groups among them."""
    yield words, tree
    for name, one in getattr(tree, "commands", {}).items():
        yield from commands(one, (*words, name))


def run_without(modules, lines, folder: Path) -> list[tuple[int | str, str]]:
    """Exit code, or the module that was loaded, and the output of each command line."""
    done = subprocess.run(
        [sys.executable, "-c", RUNS, " ".join(modules)],
        input=json.dumps([list(map(str, line)) for line in lines]),
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "4000"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [(code, said) for code, said in json.loads(done.stdout)]


def test_help_version_and_unknown_options_need_no_torch(tmp_path):
    """Law: of every command and group; help loses no word in brackets to markup."""
    plain = dict(commands(typer.main.get_command(app)))
    every = [*plain, ("nonsense",)]
    asked = [("--version",), *((*words, "--help") for words in plain)]
    wrong = [(*words, "--no-such-option") for words in every]
    found = run_without(HEAVY, [*asked, *wrong], tmp_path)
    assert {code for code, _ in found[: len(asked)]} == {0}
    assert {code for code, _ in found[len(asked) :]} == {2}
    for (_, said), command in zip(found[1:], plain.values(), strict=False):
        texts = [command.help or "", *(getattr(one, "help", "") or "" for one in command.params)]
        words = {word for text in texts for word in re.findall(r"\[[a-z_.]+\]", text)}
        assert all(word in said for word in words), command.name
    assert "[threshold]" in found[1 + list(plain).index(("budget",))][1]


MISTAKES = {
    "simulate missing.toml": "missing.toml: cannot be read",
    "simulate missing.toml --runtime flower": "missing.toml: cannot be read",
    "simulate typo.toml": "unknown key run.sede",
    "simulate good.toml --set run.sede=1": "unknown key run.sede",
    "simulate good.toml --runtime none": "choose in-process or flower",
    "simulate good.toml": "missing.jsonl': no such data file",
    "demo --set run.sede=1": "unknown key run.sede",
    "init missing.jsonl": "missing.jsonl: no such file or folder",
    "report missing": "missing/record.json: expected the record",
    "diff missing missing": "missing: there is no such folder",
    "merge missing missing --out new": "missing: there is no such folder",
    "remerge missing --without north": "missing: there is no such folder",
    "mixture missing": "missing: there is no such folder",
    "budget missing.toml": "missing.toml: cannot be read",
    "budget typo.toml": "unknown key run.sede",
    "budget good.toml": "missing.jsonl': no such data file",
    "recipes compare missing.toml typo.toml": "missing.toml: cannot be read",
    "recipes compare typo.toml": "unknown key run.sede",
    "study missing.toml": "missing.toml: cannot be read",
    "study typo.toml": "unknown key run.sede",
    "run missing.toml": "missing.toml: cannot be read",
    "run typo.toml": "unknown key run.sede",
    "status missing": "missing/state/status.json: expected the status",
    "status typo.toml": "unknown key run.sede",
    "score missing.jsonl --anchors a.jsonl --model toy": "missing.jsonl': no such data file",
    "score a.jsonl --anchors missing.jsonl --model toy": "missing.jsonl': no such data file",
    "score a.jsonl --anchors a.jsonl --model toy --set run.sede=1": "unknown key run.sede",
    "score missing.toml --anchors a.jsonl --model toy": "missing.toml': no such data file",
    "plugins check": "Missing argument",
    "plugins check corre_svd": "no kind has it",
    "plugins check corre_svd --kind merging": "'corre_svd' is unknown",
    "bench scoring --model typo": "--model 'typo': expected one of tiny",
    "bench scoring --data typo": "--data 'typo': expected one of ragged",
    "study typo": "expected one of budgets",
    "study thresholds --set run.sede=1": "unknown key run.sede",
    "study demo --set run.sede=1": "unknown key run.sede",
    "plugins --kind scorers": "--kind 'scorers' is unknown",
    **{
        f"site {command} missing.toml": "cannot be read" for command in ("check", "serve", "egress")
    },
    **{f"site {command} site.toml": "unknown key site.nmae" for command in ("check", "serve")},
    "site status site.toml": "unknown key site.nmae",
    "site queue site.toml run": "unknown key site.nmae",
}
"""Command line → what its message says."""


def test_mistakes_are_said_before_torch_loads(tmp_path):
    """Law: a missing file, a typo in any kind of file and a bad value end with 2, and at once."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "response": "r"}\n', encoding="utf-8")
    good = SCENARIO.format(anchors="a.jsonl")
    (tmp_path / "good.toml").write_text(good, encoding="utf-8")
    (tmp_path / "typo.toml").write_text(f"run.sede = 3\n{good}", encoding="utf-8")
    (tmp_path / "site.toml").write_text('[site]\nnmae = "x"\n', encoding="utf-8")
    found = run_without(HEAVY, [line.split() for line in MISTAKES], tmp_path)
    for (line, words), (code, said) in zip(MISTAKES.items(), found, strict=True):
        assert code == 2, (line, code, said)
        assert words in said, (line, said)


def test_brackets_of_a_help_text_are_escaped_once():
    """Edge: the tree can be made again and again, and rich styles stay away from our words."""
    for _ in range(2):
        [budget] = [one for words, one in commands(command_line()) if words == ("budget",)]
        assert budget.help.count("\\[threshold]") == 1
