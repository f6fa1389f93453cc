"""Laws of stages over the rounds: an exact partition, ranked by the round's adapter, kept."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedwinnow.client.boundary.group_sizes import samples_behind
from fedwinnow.client.runs import tables
from fedwinnow.client.runs.agreed_terms import named_plugins
from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.runs.site_run import load_checked_adapter
from fedwinnow.client.site import Site
from fedwinnow.client.training import curriculum_stages, round_plan
from fedwinnow.client.training.curriculum_stages import choose_stage_samples, stage_of
from fedwinnow.curation.config.load_files import load_scenario, site_configs
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.run.fold import absorb, initial_state, next_request
from fedwinnow.simulations.datasets.toy_federation import write_toy_scenario
from fedwinnow.strategies.terms_check import check_terms

STAGED = (
    "training.rounds=3",
    "training.ordering.name=easy_to_hard",
    "training.ordering.settings.stages=2",
    "threshold.name=keep_all",
    "threshold.settings={}",
    "training.objective.name=adapt",
    "scorer.name=perplexity",
)


@given(rounds=st.integers(1, 12), count=st.integers(1, 9), samples=st.integers(1, 40))
def test_stages_cut_rounds_and_samples_into_equal_parts(rounds, count, samples):
    """Stages follow each other, each has a round and a sample, and sizes differ by one at most."""
    found = [
        stage_of(number, rounds=rounds, stages=count, samples=samples)
        for number in range(1, rounds + 1)
    ]
    numbers = [stage.number for stage in found]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(min(rounds, count, samples)))
    for stage in found:
        assert numbers.index(stage.number) + 1 == stage.first_round
    sizes = {stage.number: stage.size(samples) for stage in found}
    assert sum(sizes.values()) == samples
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert min(sizes.values()) >= 1
    assert stage_of(rounds + 5, rounds=rounds, stages=count, samples=samples) == found[-1]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(
    scores=st.lists(st.integers(-3, 3).map(float) | st.just(np.nan), min_size=1, max_size=15),
    rounds=st.integers(1, 6),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
    first=st.integers(1, 6),
)
def test_stages_hold_every_sample_once(tmp_path, scores, rounds, count, seed, first):
    """Each stage takes the best that are left, NaN last; one that was missed does so later."""
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    work, values = SimpleNamespace(files=RunFiles(tmp_path)), np.array(scores)
    kept = np.sort(np.random.default_rng(seed).permutation(3 * len(values))[: len(values)])
    order = [*range(first, rounds + 1), *range(1, min(first, rounds + 1))]  # back after an absence
    seen = {}
    for number in order:
        stage = stage_of(number, rounds=rounds, stages=count, samples=len(kept))
        asked = []

        def score(places, asked=asked):
            asked.append(places)
            return values[np.searchsorted(kept, places)]

        places, said = choose_stage_samples(work, "curated", stage, kept, score)
        assert len(places) == stage.size(len(kept))
        assert bool(asked) == (stage.number not in seen)
        if asked:
            left = set(kept.tolist()) - {p for taken in seen.values() for p in taken}
            assert set(asked[0].tolist()) == left
            rest = np.array(sorted(left - set(places.tolist())), dtype=int)
            worst = np.nan_to_num(said, nan=-9).min()
            others = np.nan_to_num(values[np.searchsorted(kept, rest)], nan=-9)
            assert (others <= worst).all()
        assert seen.setdefault(stage.number, places.tolist()) == places.tolist()
    assert sorted(p for taken in seen.values() for p in taken) == kept.tolist()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A staged run of one silo, with soft weights and nothing cut."""
    scenario = write_toy_scenario(tmp_path_factory.mktemp("toy"), samples=9)
    return load_scenario(scenario, STAGED), ProcessCache()


def walk(toy, folder, forget=()):
    """The whole run; before the rounds in ``forget`` the site is a new process without replies."""
    config, cache = toy
    site_config = site_configs(config, str(folder))[1]
    site, state, heard = (
        Site(config=site_config, cache=cache),
        initial_state(config, "run"),
        [],
    )
    while (request := next_request(state)) is not None:
        if (state.phase, state.round) in forget:
            site.answer(request)  # done, and killed before the answer came out
            shutil.rmtree(folder / site.name / "run" / "replies")
            site = Site(config=site_config, cache=cache)
        reply = site.answer(request)
        heard.append((request, reply))
        state = absorb(state, {site.name: reply})
    return heard, site.run_of("run")


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    """The run without a break."""
    return walk(toy, tmp_path_factory.mktemp("unbroken"))


def test_stages_of_a_run_are_a_partition_of_what_is_kept(unbroken):
    """Every kept sample is in exactly one stage, and the count that leaves is of the whole."""
    heard, work = unbroken
    files = sorted(work.folder.glob("stage-*.parquet"))
    assert [file.name for file in files] == ["stage-curated-0.parquet", "stage-curated-1.parquet"]
    taken = np.concatenate([tables.read_stage(file)[0] for file in files])
    kept, _ = round_plan.kept_samples(work, "curated")
    assert sorted(taken.tolist()) == kept.tolist()
    said = {r.samples for _, r in heard if isinstance(r, m.TrainedAdapter) and r.header.arm}
    assert said == {len(kept)}


def test_stages_resumed_equal_unbroken(toy, unbroken, tmp_path):
    """A site that is killed in any training round gives the same replies, bit for bit."""
    heard, _ = walk(toy, tmp_path, forget={("train", 1), ("train", 2), ("train", 3)})
    assert [wire.encode(r) for _, r in heard] == [wire.encode(r) for _, r in unbroken[0]]


def test_stages_rank_with_the_adapter_of_the_round(unbroken):
    """Oracle: the scores of stage 1 are those of the adapter that its first round sends."""
    heard, work = unbroken
    requests = [q for q, _ in heard if isinstance(q, m.TrainRequest) and q.header.arm]
    kept, _ = round_plan.kept_samples(work, "curated")
    opened = stage_of(3, rounds=3, stages=2, samples=len(kept))
    assert (opened.number, opened.first_round) == (1, 3)
    places, scores = tables.read_stage(work.files.stage("curated", opened.number))
    said = {}
    for number in (1, 3):
        request = requests[number - 1]
        adapter = load_checked_adapter(work, request.header, request.adapter)
        said[number] = curriculum_stages.stage_scoring(work, adapter)(places)
    assert said[3].tolist() == scores.tolist()
    assert said[1].tolist() != scores.tolist()


def test_policy_counts_the_samples_of_a_stage(unbroken):
    """Oracle: an adapter stands on its stage's samples, not on all that are kept."""
    heard, work = unbroken
    reply = next(r for _, r in heard if isinstance(r, m.TrainedAdapter) and r.header.arm)
    kept, _ = round_plan.kept_samples(work, "curated")
    size = stage_of(1, rounds=3, stages=2, samples=len(kept)).size(len(kept))
    assert samples_behind(reply, work) == size < len(kept)


def test_plugins_of_a_run_name_the_scorer_that_ranks(toy):
    """A site's policy sees the scorer that the ordering's setting names."""
    named = dict(named_plugins(toy[0].terms()))
    assert named["scorer:ira"] == {}
    assert named["ordering:easy_to_hard"] == {"stages": 2}


@pytest.mark.parametrize(
    ("section", "settings_", "said"),
    [
        ("ordering", {"scorer": "tracin"}, "needs gradient columns"),
        ("ordering", {"scorer": "no_such"}, "is unknown"),
        ("objective", {}, "choose scorer 'calibrated'"),
    ],
)
def test_terms_that_a_site_could_not_fulfil_are_refused_at_join(toy, section, settings_, said):
    """A ranking by gradients, an unknown scorer, and weights of no probability are named."""
    terms = toy[0].terms()
    name = {"ordering": "easy_to_hard", "objective": "weighted"}[section]
    changed = replace(getattr(terms.training, section), name=name, settings=settings_)
    with pytest.raises(PluginError, match=said):
        check_terms(replace(terms, training=replace(terms.training, **{section: changed})))


def test_weights_are_of_the_curated_arm_alone(unbroken):
    """Control arms count every sample the same; the curated arm's weights have mean 1."""
    _, work = unbroken
    kept, scores = round_plan.kept_samples(work, "curated")
    weights = round_plan.sample_weights(work, "curated", kept, scores)
    assert weights.mean() == pytest.approx(1.0)
    assert weights.std() > 0
    assert round_plan.sample_weights(work, "random", kept, scores) is None
