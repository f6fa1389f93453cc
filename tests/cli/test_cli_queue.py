"""Laws of ``fedwinnow site queue``: what waits for a person, for the silo's own operator."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_deployment_files import write_toy_deployment
from typer.testing import CliRunner

from fedwinnow.cli.main import app
from fedwinnow.client.data.samples import open_samples
from fedwinnow.client.runs import tables
from fedwinnow.curation.config.load_files import load_scenario, load_site
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.datatypes import SignalTable
from fedwinnow.curation.scores.selection import select_above

RUN = "toy-0123456789ab"
SCORES = np.array([0.5, -2.0, 3.0, 0.25, np.nan, -9.0, 1.0, 2.0])
DOUBTFUL = np.array([True, True, True, False, True, False, False, False])


@pytest.fixture
def site(tmp_path) -> Path:
    """A site.toml beside the tables of a run in which a committee was asked."""
    write_toy_deployment(tmp_path, samples=8)
    file = tmp_path / "north" / "site.toml"
    config = load_site(file)
    terms = load_scenario(tmp_path / "scenario.toml", ["scorer.name=committee"]).terms()
    folder = Path(config.work) / RUN
    folder.mkdir(parents=True)
    (folder / "terms.json").write_text(canonical_json(terms))
    ids = open_samples(config.site.data, config.site.columns).ids
    table = SignalTable(
        ids=ids, domains=("d",) * 8, checkpoint=1, status=np.zeros(8, np.int8), columns={}
    )
    tables.write_scores(folder / "scores.parquet", table, {"committee": SCORES}, np.zeros(1))
    tables.write_queue(folder / "queue.parquet", ids, DOUBTFUL)
    chosen = select_above(ids, SCORES, table.status, 0.0, queued=DOUBTFUL)
    tables.write_selection(folder / "selection.parquet", {"curated": chosen})
    return file


def test_queue_lists_rows_ids_and_scores_best_first(site):
    """What passes and is doubtful, by line and as JSON; nothing that is dropped or kept."""
    ids = open_samples(load_site(site).site.data, load_site(site).site.columns).ids
    shown = CliRunner().invoke(app, ["site", "queue", str(site), RUN])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [ids[2] in lines[0], ids[0] in lines[1]] == [True, True]
    assert len(lines) == 3
    assert lines[2].startswith("2 samples are for a person to decide")
    listed = CliRunner().invoke(app, ["site", "queue", str(site), RUN, "--json"])
    assert json.loads(listed.output) == [
        {"row": 3, "id": ids[2], "score": 3.0},
        {"row": 1, "id": ids[0], "score": 0.5},
    ]


def test_queue_knows_samples_that_left_the_data_and_none_at_all(site):
    """A row that is not in the data any more is row 0; nobody to ask is an empty list."""
    config = load_site(site)
    data = Path(config.site.data)
    rows = data.read_text().splitlines()
    data.write_text("\n".join([*rows[:2], *rows[3:]]) + "\n")
    listed = CliRunner().invoke(app, ["site", "queue", str(site), RUN, "--json"])
    assert [one["row"] for one in json.loads(listed.output)] == [0, 1]
    folder = Path(config.work) / RUN
    ids, status, scores = tables.read_scores(folder / "scores.parquet", "committee")
    chosen = select_above(ids, scores, status, 0.0, queued=np.zeros(8, bool))
    tables.write_selection(folder / "selection.parquet", {"curated": chosen})
    shown = CliRunner().invoke(app, ["site", "queue", str(site), RUN])
    assert shown.output.startswith("0 samples are for a person")


def test_queue_of_another_run_is_an_error_that_lists_the_runs(site):
    """Exit 2 with the runs of this site."""
    from fedwinnow.client.runs.review_queue import read_questions
    from fedwinnow.curation.errors import DataError

    with pytest.raises(DataError, match=f"choose one of {RUN}"):
        read_questions(load_site(site), "elsewhere")
    bare = replace(load_site(site), work=str(site.parent / "nothing"))
    with pytest.raises(DataError, match="choose one of none"):
        read_questions(bare, RUN)
