"""Laws of the named studies: frozen seeds, strict files, silos as they are written."""

import pytest

from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.settings import load
from fedwinnow.simulations import splits
from fedwinnow.simulations.splits import FOLDER, Study, load_study, names, plan


@pytest.mark.parametrize("name", sorted(set(names()) - {"demo"}))
def test_study_of_the_package_is_whole(name):
    """Three frozen seeds at least, an own name for each silo, a sentence for each split."""
    study = load_study(name)
    assert len(study.seeds) >= 3
    assert (FOLDER / study.scenario).exists()
    for split in study.splits:
        assert split.about.endswith(".")
        assert len({silo.name for silo in split.silos}) == len(split.silos)


def test_study_clues_splits_is_the_one_of_the_bar():
    """Four silos of at least 60 samples with 80, 20, 10 and 50 % bad ones, of all five kinds."""
    (split,) = (one for one in load_study("clues_splits").splits if one.name == "quality")
    assert [silo.bad for silo in split.silos] == [0.8, 0.2, 0.1, 0.5]
    assert all(silo.samples >= 60 for silo in split.silos)
    assert set(split.kinds) == {"swap", "cut", "delete", "substitute", "noise"}


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
        ('[[splits]]\nname = "x"\n', "splits.silos"),
        ('[[splits]]\nname = "x"\nsilos = [{name = "s", domain = "medicine", bad = 2.0}]\n', "bad"),
        ('[[splits]]\nname = "x"\nsilos = [{name = "s", domain = "cooking"}]\n', "domain"),
        ('[[splits]]\nnames = "x"\n', "names"),
        ("anchors = 2\n", "anchors"),
    ],
    ids=["no seed", "no silo", "share", "domain", "key", "anchors"],
)
def test_study_file_is_strict(tmp_path, text, said):
    """A wrong key or value is an error that names it and the file."""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load(file, Study)
    assert "mine.toml" in str(error.value)


def test_names_are_those_of_the_files():
    """Every TOML file beside the demo's is a study."""
    assert set(splits.names()) == {path.stem for path in FOLDER.glob("*.toml")}
