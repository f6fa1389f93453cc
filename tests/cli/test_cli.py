"""Laws of the command line: what it prints, what it leaves behind, and what bad input gets."""

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import load_toml
from fedwinnow.server.report import final_files
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.simulations.studies.study_names import names as studies
from fedwinnow.strategies import registry
from fedwinnow.strategies.plugin_description import undescribed
from fedwinnow.strategies.registry import KINDS, plugin_names

FAST = (
    "run.trajectory=none",
    "scorer.name=perplexity",
    "training.rounds=1",
    "training.steps=1",
    "anchors.copies=1",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with a toy federation."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=6).parent


@pytest.fixture
def place(toy, tmp_path) -> Path:
    """A copy of the data that a test may spoil; model and paths stay the toy's own."""
    folder = tmp_path / "place"
    shutil.copytree(toy, folder, ignore=shutil.ignore_patterns("model", "runs"))
    scenario = folder / "scenario.toml"
    text = scenario.read_text(encoding="utf-8")
    for path in folder.glob("*.jsonl"):
        text = text.replace(str(toy / path.name), str(path))
    scenario.write_text(text.replace(str(toy / "runs"), str(folder / "runs")), encoding="utf-8")
    return folder


@pytest.fixture
def plain_report(monkeypatch):
    """Where the page is not looked at, a plain one: drawing takes seconds."""
    monkeypatch.setattr(
        final_files, "write_report", lambda record, path: path.write_text(record.run)
    )


def settings(*lines: str) -> list[str]:
    """As options."""
    return [word for line in lines for word in ("--set", line)]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_cli_simulate_prints_tables_and_paths(place, fedwinnow):
    """Tables and paths go to standard output, progress to the other; a second start is refused."""
    words = ("simulate", place / "scenario.toml", *settings(*FAST))
    code, out, err = fedwinnow(*words)
    assert code == 0, err
    for word in ("Kept", "north", "Arms", "report.html", "adapter", "summary.json"):
        assert word in out
    assert "apply the threshold" in err
    assert "apply the threshold" not in out
    run = place / "runs" / "toy"
    before = tree(run)
    one_error(*fedwinnow(*words), "--resume", str(run))
    assert tree(run) == before
    (run / "report.html").unlink()
    code, out, err = fedwinnow("report", run)
    assert (code, out.strip()) == (0, str(run / "report.html"))
    assert len((run / "report.html").read_bytes()) == len(before["report.html"])


def test_cli_score_writes_one_row_per_sample(place, toy, fedwinnow):
    """Ids, signals, score, kept and reason, in the order of the file; duplicates say why.

    Law: what speaks against the selection stands in the JSON, the table and the log alike.
    """
    data = place / "south.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    out_file, kept_file = place / "scores.parquet", place / "kept.jsonl"
    code, out, err = fedwinnow(
        "score",
        data,
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model", "--out", out_file),
        *("--kept", kept_file, "--scorer", "perplexity", "--threshold", "keep_fraction", "--json"),
        *settings("threshold.settings.share=0.5", "summary.smallest_cell=1", "anchors.copies=1"),
    )
    assert code == 0, err
    found = json.loads(out)
    rows = pq.read_table(out_file).to_pylist()
    assert found["samples"] == len(rows) == len(lines) + 1
    assert rows[-1]["reason"] == "exact duplicate"
    assert rows[-1]["id"] == rows[0]["id"]
    assert not rows[-1]["kept"]
    assert all((row["reason"] == "") == row["kept"] for row in rows)
    assert all(row["score"] is not None and row["loss@0"] is not None for row in rows[:-1])
    chosen = [json.loads(line) for line in kept_file.read_text(encoding="utf-8").splitlines()]
    assert found["kept"] == len(chosen) == sum(row["kept"] for row in rows) > 0
    originals = [json.loads(line) for line, row in zip(lines, rows, strict=False) if row["kept"]]
    assert chosen == originals  # whole rows, every column
    assert [row["row"] for row in rows] == list(range(len(rows)))
    [warning] = found["warnings"]
    assert "clean anchors from corrupted ones" in warning
    assert json.loads(pq.read_schema(out_file).metadata[b"fedwinnow.warnings"]) == [warning]
    assert f"warning: {warning}" in err


@pytest.mark.flower
def test_cli_score_writes_for_a_person_too(place, toy, fedwinnow):
    """Without --json: how many are kept, and where the table lies."""
    code, out, err = fedwinnow(
        "score",
        place / "north.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *("--out", place / "s.parquet", "--threshold", "keep_all"),
        *settings("anchors.copies=1"),
    )
    assert code == 0, err
    assert out.startswith("6 of 6 samples kept; table in ")
    assert "forecast AUROC" in out


@pytest.mark.usefixtures("plain_report")
def test_cli_init_writes_a_scenario_that_runs(place, toy, fedwinnow):
    """What init writes loads, says what each key means, and simulates as it stands."""
    code, out, err = fedwinnow(
        "init",
        place / "north.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model", "--out", place / "new"),
    )
    assert code == 0, err
    assert f"next: fedwinnow simulate {place / 'new' / 'scenario.toml'}" in out
    site = load_toml(place / "new" / "site.toml", SiteConfig)
    assert (site.site.columns.prompt, site.site.columns.domain) == ("prompt", "domain")
    scenario = place / "new" / "scenario.toml"
    assert load_toml(scenario, RunConfig).sites[0].data == str(place / "north.jsonl")
    for file in ("scenario.toml", "site.toml"):
        lines = (place / "new" / file).read_text(encoding="utf-8").splitlines()
        keys = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
        assert len(keys) > 10
        assert all(lines[i - 1].startswith("# ") for i in keys)
    code, out, err = fedwinnow(
        "simulate", scenario, "--json", *settings(*FAST, f"run.output={place / 'runs'}")
    )
    assert code == 0, err
    summary = place / "runs" / "my-run" / "summary.json"
    assert json.loads(out) == json.loads(summary.read_text(encoding="utf-8"))
    assert json.loads(out)["sites"][0]["samples"] == 6


def test_cli_study_without_a_name_lists_the_studies(fedwinnow):
    """Every study by name with what it asks and its splits; an unknown one is exit code 2."""
    code, out, _ = fedwinnow("study")
    assert code == 0
    listed = {line.split(":")[0] for line in out.splitlines()}
    assert listed == set(studies())
    assert "wrong_domain" in out
    code, _, error = fedwinnow("study", "no_such_study")
    assert code == 2
    assert "noise_kinds" in error


@pytest.mark.flower  # long
def test_cli_base_writes_a_model_folder_once(fedwinnow, tmp_path):
    """Prints how the model came about; a folder that is there is exit code 2 and stays."""
    code, out, _ = fedwinnow("base", str(tmp_path / "base"), "--steps", "1")
    assert code == 0
    assert json.loads(out)["steps"] == 1
    assert (tmp_path / "base" / "model.safetensors").exists()
    code, _, error = fedwinnow("base", str(tmp_path / "base"), "--steps", "1")
    assert code == 2
    assert "already there" in error


def test_cli_plugins_lists_every_plug_in_with_its_source(fedwinnow):
    """--json holds a row per plug-in of each kind, with settings and a paper or "control"."""
    code, out, _ = fedwinnow("plugins", "--json")
    rows = json.loads(out)
    assert code == 0
    listed = [(row["kind"], row["name"]) for row in rows]
    assert [row for row in listed if not row[1].startswith("flower:")] == [
        (kind, name) for kind in KINDS for name in plugin_names(kind)
    ]
    assert all(row["about"] for row in rows)
    assert all("http" in row["paper"] or row["paper"] == "control" for row in rows)
    found = {(row["kind"], row["name"]): row for row in rows}
    cap = found["weighting", "samples_kept"]["settings"][0]
    assert (cap["name"], cap["default"], cap["required"]) == ("cap", 0.5, False)
    assert "in (0, 1]" in cap["about"]
    adam = found["merging", "flower:FedAdam"]
    assert adam["package"] == "flower"
    assert {one["name"] for one in adam["settings"]} == {"eta", "eta_l", "beta_1", "beta_2", "tau"}
    code, out, _ = fedwinnow("plugins", "--kind", "scorer")
    assert code == 0
    assert "calibrated" in out
    assert "core_svd" not in out
    assert fedwinnow("plugins", "--kind", "scorers")[0] == 2


def test_cli_explains_every_setting_of_a_built_in_plug_in():
    """Each setting of each built-in plug-in has a word under Args."""
    for kind in KINDS:
        for name in registry.BUILT_IN[kind]:
            assert not undescribed(registry.plugin_factory(kind, name)), (kind, name)


def test_cli_checks_a_plug_in_by_its_laws(fedwinnow):
    """Exit code 0 where laws hold, 1 where one fails, 2 where there is no such plug-in."""
    code, out, err = fedwinnow("plugins", "check", "samples_kept", "--set", "cap=0.7", "--json")
    assert code == 0, err
    assert all(one["holds"] for one in json.loads(out) if one["required"])
    code, out, _ = fedwinnow("plugins", "check", "core_svd", "--set", "rank=1", "--strict")
    assert code == 1
    assert "does not hold" in out
    assert fedwinnow("plugins", "check", "nothing")[0] == 2
    assert fedwinnow("plugins", "check", "uniform")[0] == 2  # a scorer and a weighting
    assert fedwinnow("plugins", "check", "uniform", "--kind", "weighting")[0] == 0


@pytest.mark.usefixtures("plain_report")
def test_cli_study_prints_its_page(place, fedwinnow):
    """A scenario over one seed: the page goes to standard output and to the evidence folder."""
    words = ("study", place / "scenario.toml", "--seeds", "1", "--evidence", place / "evidence")
    code, out, err = fedwinnow(*words, *settings(*FAST))
    assert code == 0, err
    assert out.strip() == (place / "evidence" / "scenario.md").read_text(encoding="utf-8").strip()


def spoil(place: Path, how: str) -> None:
    """Break the data of site south, or of the anchors."""
    file = place / ("anchors.jsonl" if how.startswith("anchors") else "south.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    if how.endswith("missing column"):
        rows = [json.loads(line) for line in lines]
        lines = [json.dumps({"question": r["prompt"], "reply": r["response"]}) for r in rows]
    if how.endswith("broken line"):
        lines[2] = lines[2][:20]
    if how.endswith("wrong type"):
        lines[3] = json.dumps(json.loads(lines[3]) | {"response": 7})
    if how.endswith("empty"):
        lines = []
    if how.endswith("gone"):
        file.unlink()
        return
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


BAD_DATA = {
    "missing column": ("south.jsonl", "prompt"),
    "broken line": ("south.jsonl", "line 3"),
    "wrong type": ("south.jsonl", "line 4", "response"),
    "empty": ("south.jsonl", "empty"),
    "gone": ("south.jsonl",),
    "anchors broken line": ("anchors.jsonl", "line 3"),
    "anchors empty": ("anchors.jsonl", "empty"),
    "anchors gone": ("anchors.jsonl",),
}


def one_error(code: int, out: str, err: str, *parts: str) -> None:
    """Exit code 2, nothing on standard output, one message with all its parts, no traceback."""
    assert code == 2, err
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err, err


@pytest.mark.parametrize("how", BAD_DATA)
def test_cli_simulate_with_bad_data_names_file_and_line(place, fedwinnow, how):
    """Whatever is wrong in a data file: one message, exit code 2, no run folder."""
    spoil(place, how)
    before = tree(place)
    result = fedwinnow("simulate", place / "scenario.toml", *settings(*FAST))
    one_error(*result, *BAD_DATA[how])
    assert tree(place) == before


@pytest.mark.parametrize("how", BAD_DATA)
def test_cli_score_with_bad_data_names_file_and_line(place, toy, fedwinnow, how):
    """Likewise for one silo alone: no table, no file of kept samples."""
    spoil(place, how)
    before = tree(place)
    result = fedwinnow(
        "score",
        place / "south.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *("--out", place / "s.parquet", "--kept", place / "k.jsonl"),
    )
    one_error(*result, *BAD_DATA[how])
    assert tree(place) == before


BAD_SETTINGS = {
    "scorer.name=magic": ("scorer 'magic' is unknown", "calibrated", "perplexity"),
    "threshold.name=magic": ("threshold 'magic' is unknown", "target_recall"),
    "merging.name=os.system": ("merging 'os.system' is unknown", "core_svd"),
    "weighting.name=magic": ("weighting 'magic' is unknown", "samples_kept"),
    "training.ordering.name=magic": ("ordering 'magic' is unknown", "shuffled"),
    "training.objective.name=magic": ("objective 'magic' is unknown", "sft"),
    "threshold.settings.shar=0.5": ("has no setting 'shar'", "share"),
    "threshold.settings.share=2": ("keep_fraction", "share"),
    "scorer.name=tracin": ("run.trajectory",),
    "adapter.targets=['nonsense']": ("nonsense", "adapter.targets"),
    "model.name=/no/such/model": ("/no/such/model",),
    "trainig.steps=3": ("unknown key trainig", "training", "scenario.toml"),
    "training.stesp=3": ("unknown key training.stesp", "steps", "scenario.toml"),
    "training.steps=many": ("training.steps", "a whole number", "scenario.toml"),
    "training.steps=0": ("training.steps", "at least 1", "scenario.toml"),
    "training.steps": ("section.key=value",),
    "study.truth=nonsense": ("study.truth", "sites.columns.labels"),
    "sites.0.columns.labels=['nonsense']": ("study.truth", "north"),
}


@pytest.mark.parametrize("line", BAD_SETTINGS)
def test_cli_simulate_with_a_bad_setting_names_key_and_choices(place, fedwinnow, line):
    """Unknown plug-in, key or value: named with what is allowed; exit code 2, no run folder."""
    before = tree(place)
    fast = [setting for setting in FAST if setting.split("=")[0] != line.split("=")[0]]
    result = fedwinnow("simulate", place / "scenario.toml", *settings(*fast, line))
    one_error(*result, *BAD_SETTINGS[line])
    assert tree(place) == before


def test_cli_simulate_with_a_typo_in_the_file_names_it(place, fedwinnow):
    """A misspelt key in scenario.toml: the key, the keys allowed there, and the file."""
    scenario = place / "scenario.toml"
    scenario.write_text(scenario.read_text().replace("batch_tokens", "batch_token"))
    result = fedwinnow("simulate", scenario)
    one_error(*result, str(scenario), "measuring.batch_token", "batch_tokens")
    scenario.write_text("[run\n")
    one_error(*fedwinnow("simulate", scenario), str(scenario), "not valid TOML")
    scenario.unlink()
    one_error(*fedwinnow("simulate", scenario), str(scenario), "cannot be read")


def test_cli_simulate_with_an_unknown_runtime_lists_them(place, fedwinnow):
    """--runtime takes two words."""
    result = fedwinnow("simulate", place / "scenario.toml", "--runtime", "magic")
    one_error(*result, "'magic'", "in-process or flower")


def test_cli_simulate_into_an_unwritable_folder_names_it(place, fedwinnow):
    """A run folder that cannot be made: its path, exit code 2, nothing elsewhere."""
    (place / "file").touch()
    before = tree(place)
    line = f"run.output={place / 'file' / 'runs'}"
    result = fedwinnow("simulate", place / "scenario.toml", *settings(*FAST, line))
    one_error(*result, str(place / "file" / "runs"), "cannot be written")
    assert tree(place) == before


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_cli_simulate_onto_a_full_disk_says_so(place, fedwinnow, monkeypatch, writes):
    """A disk that fills up after some writes: one message, exit code 2, no half-written file."""
    left = [writes]
    whole = Path.write_bytes

    def filling(self, data):
        left[0] -= 1
        if left[0] < 0:
            whole(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, data)

    before = tree(place)
    monkeypatch.setattr(Path, "write_bytes", filling)
    result = fedwinnow("simulate", place / "scenario.toml", *settings(*FAST))
    one_error(*result, "No space left on device", "cannot be written")
    assert tree(place) == before


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--out", "file/s.parquet"),
        ("--out", "folder"),
        ("--kept", "file/k.jsonl"),
        ("--kept", "folder.jsonl"),
    ],
)
def test_cli_score_into_an_unwritable_place_names_it(place, toy, fedwinnow, option, name):
    """What cannot be written is found before anything is computed; the other file is not left."""
    (place / "file").touch()
    (place / "folder").mkdir()
    (place / "folder.jsonl").mkdir()
    before = tree(place)
    result = fedwinnow(
        "score",
        place / "south.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *("--out", place / "s.parquet", option, place / name),
    )
    one_error(*result, str(place / name), "cannot be written")
    assert tree(place) == before


def test_cli_score_refuses_overlap_with_the_anchors(place, toy, fedwinnow):
    """Samples that stand among the anchors are named by their place in the file."""
    anchors = (place / "anchors.jsonl").read_text(encoding="utf-8").splitlines()
    data = place / "south.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([lines[0], anchors[4], *lines[1:]]) + "\n", encoding="utf-8")
    before = tree(place)
    result = fedwinnow(
        "score",
        data,
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *("--out", place / "s.parquet"),
    )
    one_error(*result, str(data), "1 of 7 samples", "samples 2)", "remove them")
    assert tree(place) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--scorer", "magic"), "scorer 'magic' is unknown"),
        (("--threshold", "magic"), "threshold 'magic' is unknown"),
        (("--trajectory", "magic"), "run.trajectory"),
        (("--model", "/no/such/model"), "/no/such/model"),
        (("--set", "modle.max_length=9"), "unknown key modle"),
    ],
)
def test_cli_score_with_a_bad_option_names_it(place, toy, fedwinnow, option, said):
    """Unknown plug-in, trajectory, model or key: one message, no table."""
    before = tree(place)
    result = fedwinnow(
        "score",
        place / "south.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *("--out", place / "s.parquet", *option),
    )
    one_error(*result, said)
    assert tree(place) == before


def test_cli_init_with_bad_input_writes_nothing(place, fedwinnow):
    """No such data, columns that cannot be guessed, files that are there: each is named."""
    result = fedwinnow("init", place / "none.jsonl", "--out", place / "new")
    one_error(*result, str(place / "none.jsonl"), "no such file")
    spoil(place, "missing column")
    (place / "odd.jsonl").write_text('{"a": "x", "b": "y"}\n', encoding="utf-8")
    result = fedwinnow("init", place / "odd.jsonl", "--out", place / "new")
    one_error(*result, "odd.jsonl", "columns a, b", "prompt", "response")
    assert not (place / "new").exists()
    (place / "new").mkdir()
    (place / "new" / "site.toml").write_text("mine")
    result = fedwinnow("init", place / "north.jsonl", "--out", place / "new")
    one_error(*result, "site.toml is already there", "--out")
    assert tree(place / "new") == {"site.toml": b"mine"}


def test_cli_report_of_what_is_no_run_names_the_file(place, fedwinnow):
    """A folder without a record, or with a broken one: the file is named."""
    one_error(*fedwinnow("report", place), str(place / "record.json"), "give a run folder")
    (place / "record.json").write_text("{")
    one_error(*fedwinnow("report", place), str(place / "record.json"))
    (place / "record.json").write_text("{}")
    one_error(*fedwinnow("report", place), str(place / "record.json"))


def test_cli_a_failed_run_exits_with_1(place, fedwinnow):
    """Nothing is kept: the input was right, the run failed; what was computed stays."""
    lines = ("threshold.name=fixed", "threshold.settings={value = 1e9}")
    code, out, err = fedwinnow("simulate", place / "scenario.toml", *settings(*FAST, *lines))
    assert (code, out) == (1, "")
    assert "error: 0 samples are kept" in err
    assert (place / "runs" / "toy" / "state" / "state.safetensors").exists()


def test_cli_help_and_usage_have_their_exit_codes():
    """As a process of its own: --help gives 0 and names the commands, a wrong word gives 2."""
    command = [sys.executable, "-m", "fedwinnow.cli.main"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (
        "demo",
        "init",
        "simulate",
        "score",
        "report",
        "study",
        "budget",
        "recipes",
        "plugins",
    ):
        assert name in done.stdout
    done = subprocess.run([*command, "simulat"], capture_output=True, text=True, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("out", "kept", "said"),
    [
        ("north.jsonl", None, "--out"),
        ("anchors.jsonl", None, "the anchors"),
        ("s.parquet", "north.jsonl", "--kept"),
        ("s.parquet", "s.parquet", "the file of --out"),
        ("s.parquet", "../{place}/north.jsonl", "the data"),
    ],
)
def test_cli_score_overwrites_nothing_that_it_reads(place, toy, fedwinnow, out, kept, said):
    """Data, anchors and the other result are safe, whatever path leads to them."""
    before = {file.name: file.read_bytes() for file in place.glob("*.jsonl")}
    options = ["--out", place / out]
    if kept is not None:
        options += ["--kept", place / kept.format(place=place.name)]
    code, _, err = fedwinnow(
        "score",
        place / "north.jsonl",
        *("--anchors", place / "anchors.jsonl", "--model", toy / "model"),
        *options,
    )
    assert code == 2
    assert said in err
    assert "overwritten" in err
    assert {file.name: file.read_bytes() for file in place.glob("*.jsonl")} == before
    assert not (place / "s.parquet").exists()


@pytest.mark.flower  # long
def test_cli_resume_refuses_changed_data(place, fedwinnow):
    """A finished or half-done run is of the data that it saw; other data is another run."""
    scenario, output = place / "scenario.toml", f"run.output={place / 'runs'}"
    code, _, err = fedwinnow("simulate", scenario, "--set", output)
    assert code == 0, err
    data = place / "north.jsonl"
    data.write_text(data.read_text() + data.read_text().splitlines()[0].replace("?", "!") + "\n")
    code, _, err = fedwinnow("simulate", scenario, "--resume", "--set", output)
    assert code == 2
    assert "data or anchors were changed" in err


def test_cli_lists_plugins_beside_a_broken_one(monkeypatch, fedwinnow):
    """An entry point that cannot be imported is marked; the others are listed."""
    point = EntryPoint(name="absent", value="no_such_package:absent", group="fedwinnow.scorer")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] * (group == point.group))
    code, out, err = fedwinnow("plugins", "--json")
    assert code == 0, err
    rows = {(row["kind"], row["name"]): row for row in json.loads(out)}
    assert rows["scorer", "absent"]["broken"].startswith("scorer 'absent'")
    assert "no_such_package" in rows["scorer", "absent"]["broken"]
    assert "Reference" not in rows["scorer", "less"]["paper"]
    assert rows["scorer", "less"]["paper"].startswith("M. Xia et al., LESS")


def test_cli_says_its_version(fedwinnow):
    """--version prints one line."""
    code, out, _ = fedwinnow("--version")
    assert code == 0
    assert out.startswith("fedwinnow ")
    assert len(out.splitlines()) == 1
