"""Laws of the named studies: frozen seeds, strict files, silos as they are written."""

import pytest

from fedwinnow.curation.config.load_files import load_scenario
from fedwinnow.curation.config.strict_toml import load_toml
from fedwinnow.curation.errors import ConfigError
from fedwinnow.simulations.datasets.demo_texts import Silo
from fedwinnow.simulations.studies.definitions import (
    Split,
    Study,
    load_study,
    plan,
)
from fedwinnow.simulations.studies.study_names import BEDS, FOLDER, names


@pytest.mark.parametrize("name", names())
def test_study_of_the_package_is_whole(name):
    """Three frozen seeds, own silo names, a sentence and valid settings a split."""
    study = load_study(name)
    assert len(study.seeds) >= 3
    assert (FOLDER / study.scenario).exists()
    for split in study.splits:
        assert split.about.endswith(".")
        load_scenario(FOLDER / study.scenario, (*study.settings, *split.settings))
        silos = study.silos_of(split)
        assert len({silo.name for silo in silos}) == len(silos) > 0
    assert study.about.endswith(".")


def test_study_clues_splits_is_the_one_of_the_bar():
    """Four silos of at least 60 samples with 80, 20, 10 and 50 % bad ones, of all five kinds."""
    study = load_study("clues_splits")
    (split,) = (one for one in study.splits if one.name == "quality")
    assert [silo.bad for silo in split.silos] == [0.8, 0.2, 0.1, 0.5]
    assert all(silo.samples >= 60 for silo in split.silos)
    assert set(split.kinds or study.kinds) == {"swap", "cut", "delete", "substitute", "noise"}


def test_plan_takes_frozen_seeds_first_and_counts_on():
    """Fewer seeds are the first ones; further ones follow the last."""
    assert plan("clues_splits", 2).seeds == (0, 1)
    assert plan("clues_splits", 5).seeds == (0, 1, 2, 3, 4)
    assert (plan("demo", 2).title, plan("demo", 2).seeds) == ("demo", (0, 1))


def test_plan_of_an_unknown_study_lists_the_known_ones():
    """A misspelt name is an error that lists what there is."""
    with pytest.raises(ConfigError, match="clues_splits"):
        plan("clues_split", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = []\n", "seeds"),
        ('[[splits]]\nname = "x"\n', "silos"),
        ('[[splits]]\nname = "x"\nsilos = [{name = "s", domain = "medicine", bad = 2.0}]\n', "bad"),
        ('silos = [{name = "s", domain = "a+b", shares = [0.5]}]\n', "shares"),
        ('[[splits]]\nnames = "x"\n', "names"),
        ("anchors = 2\n", "anchors"),
    ],
    ids=["no seed", "no silo", "share", "shares", "key", "anchors"],
)
def test_study_file_is_strict(tmp_path, text, said):
    """A wrong key or value is an error that names it and the file."""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load_toml(file, Study)
    assert "mine.toml" in str(error.value)


def test_names_are_those_of_the_files():
    """Every TOML file but the beds' scenarios is a study."""
    files = {path.stem for path in FOLDER.glob("*.toml")}
    assert set(names()) == files - set(BEDS)


def test_silo_counts_add_up_and_follow_the_shares():
    """Counts of the domains sum to the samples; equal shares differ by what rounding leaves."""
    silo = Silo(name="s", domain="sums+lists+records", samples=20, shares=(0.9, 0.05, 0.05))
    assert [silo.count(name) for name in silo.domains] == [18, 1, 1]
    assert silo.count("law") == 0
    even = Silo(name="s", domain="sums+lists+records", samples=20)
    assert [even.count(name) for name in even.domains] == [8, 6, 6]


def test_split_with_copies_names_each_silo():
    """A split of copies has each silo as often as it says, under names of their own."""
    silo = Silo(name="s", domain="sums", bad=0.4)
    study = Study(silos=(silo,), splits=(Split(name="x", copies=3), Split(name="y")))
    assert [one.name for one in study.silos_of(study.splits[0])] == ["s-1", "s-2", "s-3"]
    assert {one.bad for one in study.silos_of(study.splits[0])} == {0.4}
    assert study.silos_of(study.splits[1]) == (silo,)
