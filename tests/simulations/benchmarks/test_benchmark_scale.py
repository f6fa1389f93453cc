"""Laws of the benchmark of scale: stages are those of a site, and memory is measured outside."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from fedwinnow.cli import bench
from fedwinnow.curation.errors import RunError
from fedwinnow.curation.protocol.header import Header
from fedwinnow.curation.protocol.requests import CloseRequest
from fedwinnow.server.state import RunState
from fedwinnow.simulations.benchmarks import federation_scale, silo_scale
from fedwinnow.simulations.benchmarks.instruments import stage_monitor

pytestmark = pytest.mark.flower  # long: with `make flower`, not with the default run

MEGABYTE = 1_000_000
CHILD = """\
import time
import numpy as np
from fedwinnow.simulations.benchmarks.instruments.stage_monitor import size_of, stage
with stage("small") as held:
    kept = np.ones(1_000_000)
    held["array"] = lambda: size_of(kept)
with stage("large"):
    spent = np.ones(8_000_000)
    time.sleep(0.5)  # a busy machine looks late
    del spent
with stage("counting") as held:
    held["nothing"] = lambda: 0.0 * size_of(np.ones(40_000_000))
"""


def test_scale_stages_are_seen_from_outside(tmp_path, monkeypatch):
    """A peak that was let go again is seen; what is held is at its size; telling costs nothing."""
    (tmp_path / "child_of_scale.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    small, large, counting = stage_monitor.watch("child_of_scale")
    assert [one.name for one in (small, large, counting)] == ["small", "large", "counting"]
    assert 8 * MEGABYTE <= small.held["array"] < 8.1 * MEGABYTE
    assert large.peak_bytes - small.peak_bytes > 50 * MEGABYTE
    assert counting.peak_bytes < small.peak_bytes + 20 * MEGABYTE
    assert large.resident_bytes >= large.peak_bytes
    assert small.beyond_bytes == small.peak_bytes - small.held["array"]


def test_scale_child_that_fails_is_an_error(tmp_path, monkeypatch):
    """A process that ends with an error gives no figures."""
    (tmp_path / "failing_child.py").write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(RunError, match="ended with 3"):
        stage_monitor.watch("failing_child")


def test_scale_sizes_count_everything_once():
    """A collection weighs itself and what it holds, shared things once; a view weighs its part."""
    text = "x" * 1000
    assert stage_monitor.size_of([text, text]) < stage_monitor.size_of([text, text + "y"])
    whole = np.zeros(1000)
    assert stage_monitor.size_of(whole) >= 8000
    assert stage_monitor.size_of(whole[:500]) >= 4000
    assert stage_monitor.size_of({"a": whole}, (text,)) > 9000


@pytest.mark.parametrize(
    ("first", "most", "sizes"),
    [(10, 1000, (10, 100, 1000)), (10, 30, (10, 30)), (10, 10, (10,)), (10, 4, (4,))],
)
def test_scale_ladder_ends_with_what_was_asked(first, most, sizes):
    """Sizes grow tenfold and end with the largest."""
    assert silo_scale.ladder(first, most) == sizes


def test_scale_growth_is_over_the_first_size():
    """What is held does not count; the smallest size has growth 1."""
    small = stage_monitor.Stage(
        name="load", seconds=1, peak_bytes=110, resident_bytes=0, held={"a": 10.0}
    )
    large = stage_monitor.Stage(
        name="load", seconds=9, peak_bytes=350, resident_bytes=0, held={"a": 50.0}
    )
    rows = silo_scale.stages_with_growth([(1, [small]), (10, [large])], "samples")
    assert [row["samples"] for row in rows] == [1, 10]
    assert [row["stages"][0]["growth"] for row in rows] == [1.0, 3.0]


@pytest.fixture
def unwatched(monkeypatch) -> list[str]:
    """Stages run in this process, with nobody to answer; their names."""
    seen: list[str] = []

    def note(words):
        if words["is"] == "held":
            seen.append(words["stage"]["name"])
            assert all(size >= 0 for size in words["stage"]["held"].values())

    monkeypatch.setattr(stage_monitor, "_say", note)
    return seen


def test_scale_samples_are_unlike_and_cross_every_stage(tmp_path, unwatched):
    """No two generated samples are the same, and a small silo comes out of the last stage."""
    silo_scale.write_samples(tmp_path / "many.jsonl", 12_000)
    rows = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()]
    assert len({(row["prompt"], row["response"]) for row in rows}) == 12_000
    silo_scale.run_here(40, tmp_path)
    assert unwatched == ["load", "measure", "store", "score", "select"]
    assert (tmp_path / "selection.parquet").exists()


def test_scale_parts_of_a_stage_are_told(monkeypatch):
    """Processor time that the child adds up while the stage runs comes with its figures."""
    said = []
    monkeypatch.setattr(stage_monitor, "_say", said.append)
    spent = {"server": 0.0}
    with stage_monitor.stage("probe", spent):
        spent["server"] += 1.5
    assert said[-1]["stage"]["spent"] == {"server": 1.5}


def test_scale_silos_cross_the_whole_fold(unwatched):
    """Twelve virtual silos join, agree on a threshold that keeps its share, and select."""
    state = federation_scale.run_here(12)
    assert unwatched == ["join", "probe", "score", "select"]
    kept = state.kept["curated"]
    assert len(kept) == 12
    assert abs(sum(kept.values()) / (12 * federation_scale.SAMPLES) - 0.6) < 0.01
    assert not any(record.missing for record in state.records)


@pytest.mark.usefixtures("unwatched")
def test_scale_fold_asks_for_its_members_once_an_exchange(monkeypatch):
    """As often with sixteen silos as with four: nothing goes through all members for each reply."""
    asked: list[str] = []

    def counting(name: str) -> property:
        given = getattr(RunState, name).fget
        return property(lambda state: asked.append(name) or given(state))

    for name in ("sites", "joined"):
        monkeypatch.setattr(RunState, name, counting(name))
    federation_scale._fold(4, federation_scale.stage)
    few = list(asked)
    asked.clear()
    federation_scale._fold(16, federation_scale.stage)
    assert asked == few


def test_scale_silos_refuse_what_they_do_not_answer():
    """A virtual silo answers four requests and no other."""
    header = Header(run="r", phase="close", round=0, arm="", adapter="")
    with pytest.raises(TypeError, match="does not answer close"):
        federation_scale.answer("silo-0001", CloseRequest(header=header))


def test_scale_prints_tables_and_json(monkeypatch):
    """``bench scale`` shows each stage of each size both ways, samples and silos apart.

    On 80 columns nothing of a table is cut, and each stage is told of when it ends.
    """
    one = stage_monitor.Stage(
        name="measure", seconds=1809.3, peak_bytes=664_100_000, resident_bytes=664_100_000,
        held={"tokens": 140_000.0, "table": 265_000_000.0},
    )  # fmt: skip

    def watch(_module, _size, *, told):
        folded = replace(one, spent={"silos": 1.0, "server": 0.25})
        told(folded)
        return [folded]

    monkeypatch.setattr(
        silo_scale, "watch", lambda *words, told: [replace(*watch(*words, told=told), spent={})]
    )
    monkeypatch.setattr(federation_scale, "watch", watch)
    asked = ["scale", "--samples", "1000000", "--silos", "10"]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(bench.app, asked)
    assert shown.exit_code == 0, shown.output
    assert "…" not in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    sizes = ["664.1", "MB", "664.1", "MB", "265.1", "MB", "399.0", "MB", "1.00"]
    assert ["1,000,000", "measure", "1809.3", "s", *sizes] in lines
    assert ["10", "measure", "0.250", "s", "25.00", "ms", "1.00"] in lines
    assert "100,000 samples: measure took 1809.3 s, at most 664 MB" in shown.stderr
    told = json.loads(CliRunner().invoke(bench.app, [*asked, "--json"]).stdout)
    assert [row["samples"] for row in told["samples"]] == [10_000, 100_000, 1_000_000]
    assert [row["silos"] for row in told["silos"]] == [10]
    assert told["samples"][0]["stages"][0]["beyond_bytes"] == 664_100_000 - 265_140_000
