"""Laws of the configuration: defaults hold, ranges are named, terms hold no path."""

import dataclasses
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from fedwinnow.curation.config import run as words
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.config.run import RunConfig, RunTerms
from fedwinnow.curation.config.scoring import (
    AnchorsSection,
    ColumnsSection,
    ModelSection,
    RunSection,
)
from fedwinnow.curation.config.site import SiteConfig, SiteSection
from fedwinnow.curation.config.strict_toml import canonical_json, load_toml, parse, to_toml
from fedwinnow.curation.config.training import StudySection
from fedwinnow.curation.errors import ConfigError

SECRET = "/secret/place"  # noqa: S105 - a path, not a password


def full() -> RunConfig:
    """A configuration with a path wherever one can stand."""
    return RunConfig(
        run=RunSection(name="r", output=SECRET),
        model=ModelSection(name=f"{SECRET}/model", gguf_file="secret.gguf", system_prompt="Hi."),
        anchors=AnchorsSection(
            path=f"{SECRET}/anchors", columns=ColumnsSection(prompt="secret_q", labels=("secret",))
        ),
        sites=(
            SiteSection(name="a", data=f"{SECRET}/a.jsonl"),
            SiteSection(name="b", data=f"{SECRET}/b.jsonl", columns=ColumnsSection(labels=("x",))),
        ),
    )


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("run.seed=-1", "at least 0"),
        ("run.threads=0", "at least 1"),
        ('run.name="../x"', "letters, digits"),
        ('run.name=".."', "letters, digits"),
        ('run.name=""', "letters, digits"),
        ("run.trajectory=local", "'global', 'none'"),
        ("run.minimum_sites=0", "at least 1"),
        ("model.max_length=4", "at least 8"),
        ("model.dtype=int8", "'float32', 'bfloat16', 'float16'"),
        ("adapter.rank=0", "at least 1"),
        ("adapter.alpha=0", "above 0"),
        ("adapter.dropout=1.0", "[0, 1)"),
        ("adapter.targets=[]", "at least one layer name"),
        ("anchors.reference=0", "(0, 1)"),
        ("anchors.calibration=0.9", "below 1 − anchors.reference"),
        ("anchors.copies=0", "at least 1"),
        ("anchors.corruptions=[]", "at least one kind"),
        ("measuring.batch_tokens=7", "at least 8"),
        ("measuring.backend=piggyback", "'auto', 'hooks', 'probe', 'forward'"),
        ("measuring.contrast_prompts=-1", "at least 0"),
        ("summary.bins=1", "2 to 4096"),
        ("summary.smallest_cell=0", "at least 1"),
        ("warm_up.rounds=0", "at least 1"),
        ("training.rounds=-1", "at least 0"),
        ("training.learning_rate=0", "above 0"),
        ("training.warmup_share=1", "[0, 1)"),
        ("training.schedule=step", "'auto', 'constant', 'linear', 'cosine'"),
        ("evaluation.every=0", "at least 1"),
        ("evaluation.own_holdout=1", "[0, 1)"),
        ('study.arms=["random"]', "'curated' first"),
        ('study.arms=["curated", "curated"]', "no arm twice"),
        ('study.arms=["curated", "oracle"]', "a label column"),
        ('study.arms=["curated", "best"]', "'keep_all'"),
        ("sites.0.gate.near_duplicates=0", "(0, 1]"),
        ("sites.0.round_counts_to=-1", "at least 0"),
        ('sites.0.name="a/b"', "letters, digits"),
        ('sites.1.name="a"', "every site named once"),
        ("threshold.settings=3", "a table"),
    ],
)
def test_config_out_of_range_names_key_range_and_file(tmp_path, override, allowed):
    """Each bad value is a ConfigError with its key, what is allowed, and the file."""
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(full()), encoding="utf-8")
    *_, section, key = re.sub(r"\.\d+", "", override.split("=")[0]).split(".")
    with pytest.raises(ConfigError) as caught:
        load_toml(file, RunConfig, [override])
    said = str(caught.value)
    assert str(file) in said
    assert allowed in said
    assert f"{section}.{key}" in said


@pytest.mark.parametrize(
    ("cls", "node"),
    [
        (RunConfig, RunConfig()),
        (RunConfig, full()),
        (SiteConfig, site_configs(full(), "work")[1]),
        (RunTerms, full().terms()),
    ],
)
def test_config_toml_round_trip(cls, node):
    """to_toml writes what parse reads back as the same configuration."""
    assert parse(tomllib.loads(to_toml(node)), cls) == node
    assert parse(json.loads(canonical_json(node)), cls) == node


def test_config_terms_hold_no_path():
    """What travels to the sites names no folder, file or column of anyone.

    Column settings that came later are left out, so that terms and run ids stay what they were.
    """
    text = canonical_json(full().terms())
    columns = json.loads(text)["anchors"]["columns"]
    assert set(columns) == {"prompt", "response", "messages", "domain", "labels"}
    assert SECRET not in text
    assert "secret" not in text
    assert ".jsonl" not in text
    assert '"sites"' not in text


def test_config_terms_are_those_of_the_run():
    """Apart from blanked paths, the terms repeat the run's own sections."""
    config = full()
    terms = config.terms()
    blanked = {"run", "model", "anchors"}
    for section in dataclasses.fields(RunTerms):
        if section.name not in blanked:
            assert getattr(terms, section.name) == getattr(config, section.name)
    assert terms.run == replace(config.run, output="")
    assert terms.model.system_prompt == "Hi."
    assert terms.anchors.copies == config.anchors.copies


def test_config_scenario_resolves_paths_beside_the_file(tmp_path):
    """Relative names of files beside the scenario become paths; hub names stay."""
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "anchors.jsonl").touch()
    config = RunConfig(
        model=ModelSection(name="org/hub-model"),
        anchors=AnchorsSection(path="anchors.jsonl"),
        sites=(
            SiteSection(name="a", data="a.jsonl"),
            SiteSection(name="b", data="org/hub-data"),
            SiteSection(name="c", data="c:test"),
        ),
    )
    (tmp_path / "c").mkdir()
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    found = load_scenario(file)
    assert found.sites[0].data == str(tmp_path / "a.jsonl")
    assert found.sites[1].data == "org/hub-data"
    assert found.sites[2].data == str(tmp_path / "c:test")
    assert found.anchors.path == str(tmp_path / "anchors.jsonl")
    assert found.model.name == "org/hub-model"


def test_config_scenario_without_sites_is_an_error(tmp_path):
    """A simulation needs a site; the message names the file and the missing table."""
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(RunConfig()), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"scenario\.toml: no \[\[sites\]\] entry"):
        load_scenario(file)


def test_config_run_id_is_a_function_of_the_settings():
    """Equal settings give one id, wherever the run folder lies; another seed gives another id."""
    config = full()
    assert run_id(config) == run_id(replace(config, run=replace(config.run, output="elsewhere")))
    assert run_id(config) != run_id(replace(config, run=replace(config.run, seed=1)))
    named = replace(config, run=replace(config.run, name="v1.2"))
    assert re.fullmatch(r"v1-2-[0-9a-f]{12}", run_id(named))


def test_config_sites_of_a_simulation_have_folders_of_their_own():
    """Each simulated site works in its own folder inside the run folder."""
    config = full()
    folder = str(sites_folder(config))
    assert Path(folder) == Path(SECRET) / "r" / "sites"
    sites = site_configs(config, folder)
    assert [site.work for site in sites] == [f"{folder}/a", f"{folder}/b"]
    assert all(site.simulation for site in sites)
    assert not SiteConfig(site=config.sites[0]).simulation


def test_config_study_needs_truth_for_its_oracle():
    """The oracle arm is taken where the truth is named."""
    assert StudySection(arms=("curated", "oracle"), truth="corruption").truth == "corruption"


def test_config_sections_are_frozen():
    """No section can be changed after it was checked."""
    sections = [
        cls for cls in vars(words).values() if dataclasses.is_dataclass(cls) and cls is not None
    ]
    assert len(sections) > 15
    assert all(cls.__dataclass_params__.frozen for cls in sections)
