import tomllib

import pytest
from repository import ROOT

from fedwinnow.curation.config import strict_toml
from fedwinnow.curation.config.flower_overrides import OWN_KEYS, read_overrides, run_config_scenario
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import ConfigError


def flat(tree, prefix=""):
    """Nested tables as dotted keys, as Flower flattens them."""
    keys = {}
    for key, value in tree.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return keys


def app_config():
    """The run config that pyproject.toml offers."""
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return flat(tree["tool"]["flwr"]["app"]["config"])


def test_run_config_keys_are_scalars_of_the_configuration():
    """Every key of pyproject's run config is one of RunConfig, and unset there."""
    known = flat(strict_toml.to_plain(RunConfig()))
    for key, value in app_config().items():
        if key not in OWN_KEYS:
            assert key in known, key
            assert isinstance(known[key], str | int | float | bool), key
            assert value == "", key
    assert set(app_config()) >= OWN_KEYS


def test_run_config_without_changes_overrides_nothing():
    """The defaults of pyproject leave the scenario as it is."""
    assert read_overrides(app_config()) == ()


def test_run_config_keys_and_lines_override_the_scenario(tmp_path):
    """Keys give way to lines, lines win in order; types are those of the scenario."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[sites]]\nname = "a"\ndata = "a.jsonl"\n')
    given = app_config() | {
        "scenario": str(scenario),
        "training.rounds": 5,
        "training.learning_rate": 0.5,
        "run.name": "flower-1",
        "overrides": "training.steps=7\n\n training.rounds=6 \nmodel.max_length=64",
    }
    config = run_config_scenario(given)
    assert config.run.name == "flower-1"
    assert (config.training.rounds, config.training.steps) == (6, 7)
    assert config.training.learning_rate == 0.5
    assert config.model.max_length == 64


def test_run_config_without_a_scenario_says_how_to_give_one():
    """An empty scenario is an error with the command to type."""
    with pytest.raises(ConfigError, match="flwr run"):
        run_config_scenario(app_config())


def test_run_config_refuses_a_key_of_no_section(tmp_path):
    """A misspelt line is an error that names the key and the choices."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[sites]]\nname = "a"\ndata = "a.jsonl"\n')
    with pytest.raises(ConfigError, match=r"training\.runds"):
        run_config_scenario({"scenario": str(scenario), "overrides": "training.runds=3"})
