"""Laws of a silo's workers: the same table as one process, also when a worker dies."""

import gc
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from same_table import same
from warmed import OPTIONS, some, warmed

from fedwinnow.client.measuring.measuring_pass import measure
from fedwinnow.client.measuring.references import reference_state
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.signals.shards import measure_in_shards
from fedwinnow.client.signals.workers import MeasuringTask, WorkerModel, Workers
from fedwinnow.curation.config.scoring import AdapterSection, ModelSection
from fedwinnow.curation.config.site import ComputeSection
from fedwinnow.curation.errors import ConfigError, DataError, ModelError
from fedwinnow.curation.model.lora_model import get_adapter
from fedwinnow.curation.model.pretrained import load_model
from fedwinnow.curation.signal_columns import ADAM, KNOWN, REVIEWS, TEACHER

pytestmark = [  # Ray takes seconds to start, and does not wait for its own processes
    pytest.mark.flower,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def model(tiny_model_folder) -> WorkerModel:
    """What every worker loads."""
    return WorkerModel(
        section=ModelSection(name=str(tiny_model_folder), max_length=96),
        adapter=AdapterSection(rank=4, alpha=8.0, targets=("q_proj", "v_proj")),
        seed=0,
        threads=1,
    )


@pytest.fixture(scope="module")
def workers(model):
    """Two workers."""
    import ray

    yield Workers(section=ComputeSection(workers=2), model=model)
    ray.shutdown()
    gc.collect()


@pytest.fixture(scope="module")
def warm(model):
    """The model of this process, with an adapter that has learnt something."""
    loaded = load_model(model.section, model.adapter, seed=0)
    warmed(loaded)
    return loaded


@pytest.fixture(scope="module")
def arguments(warm) -> dict:
    """A pass over every column that one model can give."""
    anchors = some(6, "anchor")
    columns = KNOWN - TEACHER - REVIEWS - ADAM - {"representation_corrupted", "influence"}
    references = reference_state(warm, anchors, OPTIONS, columns=columns)
    return {
        "columns": columns,
        "checkpoint": 1,
        "references": references,
        "contrast": anchors,
        "contrast_prompts": 1,
    }


def test_a_model_that_cannot_be_loaded_is_said_before_a_shard_is_read(model, capfd):
    """Law: the start waits for the models; an error keeps its class, and no traceback floods."""
    missing = replace(model, section=replace(model.section, name="./missing"))
    broken = Workers(section=ComputeSection(workers=1), model=missing)
    with pytest.raises(ModelError, match=r"model\.name: .*'\./missing'"):
        next(broken.each(None, iter(lambda: pytest.fail("a shard was read"), None)))
    assert "Traceback" not in capfd.readouterr().err


def test_workers_give_the_table_of_one_process(workers, warm, arguments, tmp_path: Path):
    """Bit for bit, with a worker that is killed after the first shard."""
    task = MeasuringTask(adapter=get_adapter(warm), options=OPTIONS, arguments=arguments)
    samples = some(22, "s")
    whole = partial(measure, warm, options=OPTIONS, **arguments)
    alone = measure_in_shards(
        lambda shard, _: whole(shard),
        samples,
        files=RunFiles(tmp_path / "alone"),
        key=("a",),
        size=4,
    )

    def killing(shards):
        for number, found in enumerate(workers.each(task, shards)):
            if number == 0:
                os.kill(workers.processes()[0], signal.SIGKILL)
            yield found

    together = measure_in_shards(
        lambda shard, _: whole(shard),
        samples,
        files=RunFiles(tmp_path / "workers"),
        key=("a",),
        size=4,
        workers=killing,
    )
    same(together, alone)


def test_workers_raise_what_a_shard_raises(workers, warm, arguments):
    """An error of ours keeps its class and its words."""
    alike = some(2, "s")[1:]  # the prompt of one of the samples
    wrong = {**arguments, "contrast": alike, "columns": frozenset({"contrast_loss_mean"})}
    task = MeasuringTask(adapter=get_adapter(warm), options=OPTIONS, arguments=wrong)
    with pytest.raises(DataError, match="no public reference anchor has another prompt"):
        list(workers.each(task, [(0, some(4, "s"))]))


def test_more_workers_than_processors_are_refused(workers, warm):
    """A machine without room is named, with what to lower."""
    many = Workers(section=ComputeSection(workers=4096), model=workers.model)
    task = MeasuringTask(adapter=get_adapter(warm), options=OPTIONS, arguments={})
    with pytest.raises(ConfigError, match=r"compute\.workers = 4096"):
        next(many.each(task, []))
