"""Laws of running from Python: silent, and the record of the run folder."""

import pytest

import fedwinnow as fw
from fedwinnow.server.report.record import read_record
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario


def test_simulate_is_silent_and_returns_the_record(tmp_path, capfd):
    """Nothing is printed; the record is that of the run folder; a configuration serves too."""
    path = write_toy_scenario(tmp_path)
    capfd.readouterr()
    record = fw.simulate(path)
    assert capfd.readouterr().out == ""
    assert isinstance(record, fw.RunRecord)
    assert record == read_record(tmp_path / "runs" / "toy" / "record.json")
    seen = []
    again = fw.simulate(
        fw.load_scenario(path),
        overrides=["run.name=again"],
        progress=lambda *said: seen.append(said),
    )
    assert (again.run, again.kept) == ("again", record.kept)
    assert [arm.eval_loss for arm in again.arms.values()] == [
        arm.eval_loss for arm in record.arms.values()
    ]
    assert seen


def test_scenario_takes_overrides(tmp_path):
    """Lines win over the file; a wrong key is refused by name."""
    path = write_toy_scenario(tmp_path)
    assert fw.load_scenario(str(path), overrides=["run.seed=3"]).run.seed == 3
    with pytest.raises(fw.errors.ConfigError, match=r"run\.sead"):
        fw.simulate(path, overrides=["run.sead=3"])
    with pytest.raises(fw.errors.ConfigError, match=r"run\.sead"):
        fw.simulate(fw.load_scenario(path), overrides=["run.sead=3"])
