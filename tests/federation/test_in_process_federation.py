"""Laws of a whole federation in one process: repeatable, resumable, private on the wire."""

import json
import shutil
import struct
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.tables import read_signals
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse
from fedwinnow.curation.datatypes import PublicRows
from fedwinnow.curation.errors import ConfigError, EmptySelectionError, OutputError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.scores.ranking_metrics import auroc
from fedwinnow.server.report import final_files as outcome_files
from fedwinnow.server.report.record import read_record
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.simulations.datasets.toy_federation import SITES, write_toy_scenario
from fedwinnow.simulations.runtimes.in_process import simulate
from fedwinnow.simulations.studies.definitions import Plan
from fedwinnow.simulations.studies.run_study import run_study
from fedwinnow.simulations.studies.unforeseen_kinds import aurocs_on_unforeseen
from fedwinnow.strategies.registry import build

ARMS = ("curated", "keep_all", "random", "oracle")


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    """A toy federation of three silos of eight samples, half of the south's wrong."""
    return write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=8)


@pytest.fixture(scope="module")
def cache() -> ProcessCache:
    """One warm model for the module; results on public samples are shared, as in a simulation."""
    return ProcessCache()


@pytest.fixture(scope="module")
def config(scenario) -> RunConfig:
    """Four arms, a comparison scorer, generations, the silos' own hold-outs."""
    return load_scenario(
        scenario,
        (
            f"study.arms={json.dumps(ARMS)}",
            'scorer.comparison=["perplexity", "tracin"]',
            "evaluation.generate=1",
            "evaluation.own_holdout=0.15",
            "training.steps=1",
        ),
    )


def elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """The same run in another folder."""
    return replace(config, run=replace(config.run, output=str(folder)))


class Eavesdropper:
    """Keeps every byte that crosses the wire, and every state that is committed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.states: list[bytes] = []
        encode, commit = wire.encode, RunFolder.commit

        def listening(message):
            data = encode(message)
            self.sent.append(data)
            return data

        def committing(store, state):
            self.states.append(wire.dump(state))
            commit(store, state)

        patch.setattr(wire, "encode", listening)
        patch.setattr(RunFolder, "commit", committing)


@pytest.fixture(scope="module")
def finished(config, cache) -> Iterator[tuple[Path, RunConfig, Eavesdropper]]:
    """A finished run, everything that it sent, and every state that it committed."""
    with pytest.MonkeyPatch.context() as patch:
        ear = Eavesdropper(patch)
        folder = simulate(config, cache=cache, command="fedwinnow simulate toy.toml")
    yield folder, config, ear
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch):
    """Runs inside a test write a plain page, which is fast; ``finished`` draws a real one."""
    monkeypatch.setattr(
        outcome_files, "write_report", lambda record, path: path.write_text(record.run)
    )


def work_of(folder: Path, config: RunConfig, site: str) -> Path:
    """The folder of a site's own tables."""
    return folder / "sites" / site / run_id(config)


def outcome(folder: Path, config: RunConfig) -> dict[str, object]:
    """What must repeat bit for bit: adapter, arms, scores, selection."""
    state = wire.restore((folder / "state" / "state.safetensors").read_bytes(), RunState)
    found: dict[str, object] = {arm: adapter_hash(a) for arm, a in state.finals.items()}
    for site in SITES:
        for name in ("scores", "selection", "signals-0", "signals-1"):
            table = pq.read_table(work_of(folder, config, site) / f"{name}.parquet")
            found[f"{site} {name}"] = repr(table.to_pylist())
    found["public"] = state.public_scores
    found["losses"] = [record.public_losses for record in state.records]
    return found


def test_in_process_run_leaves_the_files_of_the_design(finished):
    """Configuration, state, adapter, metrics, summary, record, manifest, report and sites."""
    folder, _, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "manifest.json",
        "metrics.jsonl",
        "record.json",
        "report.html",
        "run.toml",
        "sites",
        "state",
        "summary.json",
    }
    assert not list(folder.rglob(".*"))  # no temporary file is left
    assert {p.name for p in (folder / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_in_process_run_toml_is_the_configuration(finished):
    """What ran can be read from the run folder, and runs again."""
    folder, config, _ = finished
    assert parse(tomllib.loads((folder / "run.toml").read_text()), RunConfig) == config


def test_in_process_record_is_read_as_it_was_written(finished, tmp_path):
    """record.json holds what the typed record writes, byte for byte, with the run's arms."""
    folder, config, _ = finished
    record = read_record(folder / "record.json")
    write_json(tmp_path / "again.json", record.to_json())
    assert (tmp_path / "again.json").read_bytes() == (folder / "record.json").read_bytes()
    assert record.run == config.run.name
    assert set(record.arms) == set(ARMS)
    assert set(record.figures_by_scorer) == {config.scorer.name, *config.scorer.comparison}


def test_in_process_summary_names_sites_arms_and_selection(finished):
    """summary.json has the keys of the contract, with counts that add up."""
    folder, config, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= {
        "run",
        "seconds",
        "scorer",
        "threshold",
        "sites",
        "arms",
        "selection",
        "adapter",
    }
    assert [site["site"] for site in summary["sites"]] == sorted(SITES)
    assert all(0 <= site["kept"] <= site["samples"] for site in summary["sites"])
    assert set(summary["arms"]) == set(ARMS)
    kept = sum(site["kept"] for site in summary["sites"])
    assert summary["arms"]["curated"]["kept"] == summary["arms"]["random"]["kept"] == kept
    assert summary["arms"]["keep_all"]["kept"] == sum(s["samples"] for s in summary["sites"])
    assert {arm["steps"] for arm in summary["arms"].values()} == {2}
    assert all(np.isfinite(arm["eval_loss"]) for arm in summary["arms"].values())
    assert (
        folder / summary["adapter"]["path"]
        if isinstance(summary["adapter"], dict)
        else folder / summary["adapter"]
    ).is_dir()
    figures = summary["selection"]
    assert set(figures) >= {
        "auroc",
        "auroc_within",
        "precision",
        "recall",
        "accuracy",
        "f1",
        "auroc_by_corruption",
        "recall_by_site",
        "comparison",
    }
    assert set(figures["comparison"]) == set(config.scorer.comparison)


def test_in_process_truth_figures_are_those_of_the_tables(finished):
    """AUROC, precision, recall and F1 agree with a plain count over all silos."""
    folder, config, _ = finished
    figures = json.loads((folder / "summary.json").read_text())["selection"]
    clean, kept, scores = [], [], []
    for site in config.sites:
        truth = {s.id: s.labels["truth"] == "clean" for s in open_samples(site.data, site.columns)}
        work = work_of(folder, config, site.name)
        rows = pq.read_table(work / "scores.parquet").to_pylist()
        chosen = pq.read_table(work / "selection.parquet").to_pylist()
        clean += [truth[row["id"]] for row in rows]
        scores += [row[config.scorer.name] for row in rows]
        kept += [row["kept"] for row in chosen]
    c, k = np.array(clean), np.array(kept)
    hits = float((c & k).sum())
    assert figures["auroc"] == pytest.approx(auroc(np.array(scores), c))
    assert figures["precision"] == pytest.approx(hits / k.sum())
    assert figures["recall"] == pytest.approx(hits / c.sum())
    assert figures["accuracy"] == pytest.approx((c == k).mean())
    assert figures["f1"] == pytest.approx(2 * hits / (k.sum() + c.sum()))
    assert set(figures["auroc_by_corruption"]) == {"swap"}


def test_in_process_oracle_keeps_what_is_clean(finished):
    """The oracle arm keeps exactly the clean samples of each silo."""
    folder, config, _ = finished
    for site in config.sites:
        truth = {s.id: s.labels["truth"] == "clean" for s in open_samples(site.data, site.columns)}
        table = pq.read_table(work_of(folder, config, site.name) / "selection.parquet")
        rows = table.to_pylist()
        assert [row["kept.oracle"] for row in rows] == [truth[row["id"]] for row in rows]


def test_in_process_manifest_says_what_ran(finished):
    """Versions, members, plug-ins with settings, hash of the adapter."""
    folder, config, _ = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    state = RunFolder(folder=folder).load()
    assert manifest["run"] == run_id(config)
    assert manifest["adapter"]["hash"] == adapter_hash(state.finals["curated"])
    assert [member["site"] for member in manifest["members"]] == sorted(SITES)
    assert manifest["plugins"]["threshold"]["settings"] == {"share": 0.75}
    assert manifest["versions"]["torch"] == torch.__version__


def test_in_process_adapter_loads_with_peft_and_is_the_final_one(finished):
    """PeftModel.from_pretrained loads adapter/; its factors are those of the last state."""
    folder, config, _ = finished
    base = AutoModelForCausalLM.from_pretrained(config.model.name)
    model = PeftModel.from_pretrained(base, folder / "adapter")
    final = RunFolder(folder=folder).load().finals["curated"]
    factors = {
        name.removeprefix("base_model.model.").removesuffix(".weight"): value
        for name, value in model.state_dict().items()
        if "lora_" in name
    }
    assert len(factors) == 2 * len(final.a)
    for module in final.a:
        (key,) = [name for name in factors if name.endswith(f"{module}.lora_A.default")]
        assert torch.equal(factors[key], final.a[module])
        assert torch.equal(factors[key.replace("lora_A", "lora_B")], final.b[module])


@pytest.mark.flower  # long
def test_in_process_equal_seeds_give_identical_results(finished, tmp_path):
    """A second run from nothing: adapters, scores and selections equal to the last bit."""
    folder, config, _ = finished
    again = simulate(elsewhere(config, tmp_path), cache=ProcessCache())
    assert outcome(again, config) == outcome(folder, config)


def resumed(finished, number: int, folder: Path, cache: ProcessCache, *, lost: str = "") -> Path:
    """Continue a copy of the run from its n-th commit; what matches ``lost`` is not copied."""
    old_folder, config, ear = finished
    moved, run = elsewhere(config, folder), folder / "toy"
    shutil.copytree(old_folder, run, ignore=shutil.ignore_patterns(lost))
    state = wire.restore(ear.states[number], RunState)
    old, new = json.dumps(config.run.output), json.dumps(moved.run.output)
    RunFolder(folder=run).commit(replace(state, config=state.config.replace(old, new)))
    assert simulate(moved, resume=True, cache=cache) == run
    return run


def commit_of(finished, phase: str) -> int:
    """Number of the first commit that waits for a phase."""
    phases = [wire.restore(data, RunState).phase for data in finished[2].states]
    return phases.index(phase)


@pytest.mark.parametrize("phase", ["probe", "measure", "select", "train", "done"])
def test_in_process_resumes_from_a_committed_state(finished, tmp_path, cache, phase):
    """From the first commit of a phase: the same adapters, scores and selections, bit for bit."""
    run = resumed(finished, commit_of(finished, phase), tmp_path, cache)
    assert outcome(run, finished[1]) == outcome(finished[0], finished[1])


@pytest.mark.slow
def test_in_process_resumes_from_every_committed_state(finished, tmp_path, cache):
    """From any commit of the run: the same adapters, scores and selections, bit for bit."""
    expected = outcome(finished[0], finished[1])
    for number in range(len(finished[2].states)):
        run = resumed(finished, number, tmp_path / str(number), cache)
        assert outcome(run, finished[1]) == expected, number


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("measure", marks=pytest.mark.slow),
        pytest.param("train", marks=pytest.mark.flower),
    ],
)
def test_in_process_resumes_when_a_site_lost_its_replies(finished, tmp_path, cache, phase):
    """Stored replies gone: what is asked again is computed again, to the same bits."""
    number = commit_of(finished, phase)
    run = resumed(finished, number, tmp_path, cache, lost="replies")
    assert outcome(run, finished[1]) == outcome(finished[0], finished[1])


def forms(value: float) -> Iterator[bytes]:
    """A score as it might stand in bytes: float32 and float64 of either order, and decimals."""
    for form in "<d", ">d", "<f", ">f":
        yield struct.pack(form, value)
    for text in (repr(value), str(np.float32(value)), f"{value:.6f}", f"{value:.5f}"):
        if len(text.strip("-0.")) >= 5:
            yield text.encode()


def test_in_process_wire_holds_no_id_text_or_score_of_a_silo(finished):
    """Every byte sent is searched for ids, texts, and each private score in six forms."""
    folder, config, ear = finished
    wire_bytes = b"\n".join(ear.sent)
    assert len(ear.sent) > 100
    public = {s.id for s in open_samples(config.anchors.path, config.anchors.columns)}
    state = RunFolder(folder=folder).load()
    shown = set(np.float64(state.public_scores).tolist())
    searched = 0
    for site in config.sites:
        for sample in open_samples(site.data, site.columns):
            assert sample.id not in public
            for text in (sample.id, sample.prompt, sample.response):
                assert text.encode() not in wire_bytes
                assert json.dumps(text)[1:-1].encode() not in wire_bytes
        table = pq.read_table(work_of(folder, config, site.name) / "scores.parquet")
        for name in (config.scorer.name, *config.scorer.comparison):
            for value in table[name].to_pylist():
                if value is None or value in shown or value == round(value, 3):
                    continue  # equal to a public score, or no number that stands out
                searched += 1
                for form in forms(value):
                    assert form not in wire_bytes, (name, value)
    assert searched > 30
    assert state.tables[0].ids[0].encode() in wire_bytes  # the search would find what is there


def test_in_process_signals_of_private_samples_stay(finished):
    """No measured number of a private sample is sent either."""
    folder, config, ear = finished
    wire_bytes = b"\n".join(ear.sent)
    columns = pq.read_table(work_of(folder, config, "south") / "signals-1.parquet")
    for name in ("loss", "end_loss"):
        if name in columns.column_names:
            for value in columns[name].to_pylist():
                assert struct.pack("<f", value) not in wire_bytes


def test_in_process_silo_that_keeps_nothing_is_carried_along(scenario, tmp_path, cache):
    """A threshold that drops a whole silo: weight 0, no adapter of it, a finished run."""
    config = load_scenario(
        scenario,
        (
            f"run.output={tmp_path}",
            "run.trajectory=none",
            "scorer.name=length",
            "threshold.name=keep_fraction",
            "threshold.settings.share=0.4",
            "training.rounds=1",
            "training.steps=1",
        ),
    )
    long = [json.loads(line) for line in Path(config.sites[0].data).read_text().splitlines()]
    short = tmp_path / "short.jsonl"
    rows = [row | {"response": f"{'abcdefghij'[i]}{i}."} for i, row in enumerate(long)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(config, sites=(config.sites[0], replace(config.sites[1], data=str(short))))
    run = simulate(config, cache=cache)
    summary = json.loads((run / "summary.json").read_text())
    kept = {site["site"]: site["kept"] for site in summary["sites"]}
    assert kept["south"] == 0 < kept["north"]
    (record,) = [r for r in RunFolder(folder=run).load().records if r.phase == "train"]
    assert record.sites["south"].weight == 0.0
    assert record.sites["north"].weight == 1.0


def test_in_process_nothing_kept_anywhere_is_an_error_with_the_cure(scenario, tmp_path, cache):
    """+inf keeps nothing: EmptySelectionError, and the scores are there to look at."""
    config = load_scenario(
        scenario,
        (
            f"run.output={tmp_path}",
            "run.trajectory=none",
            "scorer.name=perplexity",
            "threshold.name=fixed",
            "threshold.settings={value = 1e9}",
        ),
    )
    with pytest.raises(EmptySelectionError, match="0 samples are kept"):
        simulate(config, cache=cache)
    assert (sites_folder(config) / "south" / run_id(config) / "scores.parquet").exists()


def test_in_process_truth_that_no_site_carries_is_found_at_once(scenario, tmp_path):
    """study.truth must stand among sites.columns.labels; nothing is written before."""
    config = load_scenario(scenario, (f"run.output={tmp_path / 'x'}", "study.truth=nonsense"))
    with pytest.raises(ConfigError, match=r"study\.truth = 'nonsense': site north"):
        simulate(config)
    assert not (tmp_path / "x").exists()


@pytest.mark.flower
def test_in_process_study_writes_its_evidence(scenario, tmp_path, cache):
    """Two seeds: JSON with a row per seed and scorer or arm, a page, a picture; no second run."""

    def configure(seed: int) -> RunConfig:
        return load_scenario(
            scenario,
            (
                f"run.name=study-{seed}",
                f"run.seed={seed}",
                f"run.output={tmp_path / 'runs'}",
                "run.trajectory=none",
                "scorer.name=perplexity",
                'scorer.comparison=["length"]',
                'study.arms=["curated", "keep_all", "oracle"]',
                "training.rounds=1",
                "training.steps=1",
            ),
        )

    out = tmp_path / "evidence"
    planned = Plan(title="toy", seeds=(0, 1), splits={"toy split": configure}, about={})
    result = run_study(planned, folder=out, command="study toy", cache=cache).to_json()
    assert {path.name for path in out.iterdir()} == {"toy.json", "toy.md", "toy.svg"}
    assert json.loads((out / "toy.json").read_text()) == json.loads(json.dumps(result))
    arms = [(row["seed"], row["arm"]) for row in result["rows"] if row["arm"]]
    assert arms == [(s, a) for s in (0, 1) for a in ("curated", "keep_all", "oracle")]
    scorers = [(row["seed"], row["scorer"]) for row in result["rows"] if not row["arm"]]
    assert scorers == [(s, n) for s in (0, 1) for n in ("perplexity", "length")]
    assert set(result["differences"]["toy split"]) == {"keep_all", "oracle"}
    assert all(
        sum(row["kept_by_domain"].values()) == row["kept"] for row in result["rows"] if row["arm"]
    )
    losses = [row["eval_loss"] for row in result["rows"] if row["arm"] == "curated"]
    assert losses[0] != losses[1]  # the seed reaches anchors, adapter and training
    page = (out / "toy.md").read_text()
    assert "`perplexity`" in page
    assert "| keep_all |" in page
    before = (tmp_path / "runs" / "study-0" / "manifest.json").stat().st_mtime_ns
    run_study(planned, folder=out, command="study toy", cache=cache)
    assert (tmp_path / "runs" / "study-0" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.flower  # long
def test_left_out_is_the_auroc_of_a_kind_that_the_fit_never_saw(scenario, tmp_path, cache):
    """Pair by pair, fitted on rows without the kind; another run's folder is refused."""
    own = [f"run.output={tmp_path}", "run.name=left", "run.trajectory=none", "training.rounds=1"]
    own += ['study.arms=["curated"]', "training.steps=1"]
    config = load_scenario(scenario, own)
    folder = simulate(config, cache=cache)
    state = wire.restore((folder / "state" / "state.safetensors").read_bytes(), RunState)
    rows = [i for i, kind in enumerate(state.kinds) if kind != "swap"]
    table = state.tables[0]
    less = replace(
        table,
        ids=tuple(table.ids[i] for i in rows),
        domains=tuple(table.domains[i] for i in rows),
        status=table.status[rows],
        columns={name: values[rows] for name, values in table.columns.items()},
    )
    kinds, parents = ([each[i] for i in rows] for each in (state.kinds, state.parents))
    scorer = build("scorer", "calibrated", {})
    fitted = scorer.fit(PublicRows(trajectory=(less,), kinds=tuple(kinds), parents=tuple(parents)))
    good, bad = [], []
    for site in config.sites:
        signals = read_signals(work_of(folder, config, site.name) / "signals-0.parquet")
        samples = open_samples(site.data, site.columns)
        truth = {sample.id: sample.labels["truth"] for sample in samples}
        for name, score in zip(signals.ids, scorer.score((signals,), fitted), strict=True):
            (good if truth[name] == "clean" else bad).append(score)
    won = [(one > other) + (one == other) / 2 for one in good for other in bad]
    assert aurocs_on_unforeseen(config) == {"swap": pytest.approx(sum(won) / len(won))}
    plain = load_scenario(scenario, (*own, "scorer.name=perplexity"))
    with pytest.raises(OutputError, match="finished run of these settings"):
        aurocs_on_unforeseen(plain)
