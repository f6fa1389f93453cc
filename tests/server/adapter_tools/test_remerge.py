"""Laws of merging anew: without nobody it is the run, without a site the run that never had it."""

from dataclasses import replace

import pytest
import torch
from fake_federation import SITES, FakeSites, FakeTransport, make_config
from typer.testing import CliRunner

from fedwinnow.cli.main import app
from fedwinnow.curation.adapters import algebra as maths
from fedwinnow.curation.adapters import checks
from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.adapters.peft_folder import load_adapter
from fedwinnow.curation.config.coordinator import GuardsSection, KeepSection
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.config.training import StudySection, TrainingSection
from fedwinnow.curation.errors import ConfigError, OutputError
from fedwinnow.server.adapter_tools.remerge import (
    move_factors,
    move_update,
    remerge,
    write_remerged,
)
from fedwinnow.server.aggregation.kept_adapters import load_round
from fedwinnow.server.run.driver import drive
from fedwinnow.server.run.fold import initial_state
from fedwinnow.server.run.run_folder import RunFolder

RULES = ("core_svd", "fedavg_factors", "stack", "ties", "freeze_a", "alternate", "fedsvd")
RULES += ("flower:FedAdam", "flower:FedMedian")


def run(folder, *, rounds=3, kept=None, keep=True, merging="core_svd", harmful=(), **changes):
    """A finished run of fake sites in a folder of its own; its state."""
    config = make_config(
        folder,
        keep=KeepSection(adapters=keep),
        training=TrainingSection(rounds=rounds, steps=5),
        study=StudySection(arms=("curated",)),
        merging=PluginSection(name=merging),
        **changes,
    )
    sites = FakeSites(arms=("curated",), harmful=harmful)
    if kept is not None:
        sites = replace(sites, kept={"curated": kept})
    store = RunFolder.open(config, resume=False)
    return drive(
        initial_state(config, "fake-run"), FakeTransport(sites=sites), store=store
    ), store.folder


@pytest.mark.parametrize(
    ("merging", "rounds"), [("core_svd", 1), *((merging, 3) for merging in RULES)]
)
def test_remerge_without_nobody_is_the_run(tmp_path, rounds, merging):
    """The same adapter bit for bit, from what lies in the folder."""
    state, folder = run(tmp_path, rounds=rounds, merging=merging)
    found = remerge(folder, ())
    assert adapter_hash(found.adapter) == adapter_hash(state.finals["curated"])
    assert found.exact == (rounds == 1)


@pytest.mark.parametrize("gone", SITES)
def test_remerge_of_one_round_is_the_run_without_the_site(tmp_path, gone):
    """A run in which the site kept nothing ends with the adapter of the remerge, bit for bit."""
    whole = {"alpha": 6, "beta": 3, "gamma": 1}
    _, folder = run(tmp_path / "with", rounds=1, kept=whole)
    without, _ = run(tmp_path / "without", rounds=1, kept=whole | {gone: 0})
    found = remerge(folder, (gone,))
    assert adapter_hash(found.adapter) == adapter_hash(without.finals["curated"])
    assert gone not in found.weights[0]


def test_remerge_of_several_rounds_adds_the_updates_of_those_who_stay(tmp_path):
    """By the exact rule the result is ΔW_0 + Σ_t Σ_i p_it U_it over the sites that stay."""
    state, folder = run(tmp_path, merging="stack")
    found = remerge(folder, ("beta",))
    for module in state.initial.modules:

        def dense(adapter, module=module):
            product = maths.delta(adapter, module)
            return product.left @ product.right

        goal = dense(state.initial)
        for number, weights in enumerate(found.weights, start=1):
            start, adapters, _ = load_round(folder, "curated", number, base="base")
            goal = goal + sum(
                weight * (dense(adapters[site]) - dense(start)) for site, weight in weights.items()
            )
        assert float((dense(found.adapter) - goal).norm() / goal.norm()) < 1e-5


@pytest.mark.parametrize("merging", RULES)
def test_remerge_of_several_rounds_goes_on_under_every_rule(tmp_path, merging):
    """A finite adapter of the run's rank (``stack``: its own) in which the site has no weight."""
    state, folder = run(tmp_path, merging=merging)
    found = remerge(folder, ("beta",))
    checks.check_adapter(found.adapter)
    assert found.rounds == 3
    assert not found.exact
    assert all("beta" not in weights for weights in found.weights)
    assert adapter_hash(found.adapter) != adapter_hash(state.finals["curated"])
    if merging != "stack":
        ranks = {module: len(factor) for module, factor in found.adapter.a.items()}
        assert ranks == {module: len(factor) for module, factor in state.initial.a.items()}


def test_remerge_of_factor_averages_adds_the_updates_of_the_factors(tmp_path):
    """``fedavg_factors`` is linear in A and in B: both end where their mean updates lead."""
    state, folder = run(tmp_path, merging="fedavg_factors")
    found = remerge(folder, ("beta",))
    for module in state.initial.modules:
        a, b = state.initial.a[module].double(), state.initial.b[module].double()
        for number, weights in enumerate(found.weights, start=1):
            start, adapters, _ = load_round(folder, "curated", number, base="base")
            a = a + sum(w * (adapters[s].a[module] - start.a[module]) for s, w in weights.items())
            b = b + sum(w * (adapters[s].b[module] - start.b[module]) for s, w in weights.items())
        assert torch.allclose(found.adapter.a[module].double(), a, atol=1e-5)
        assert torch.allclose(found.adapter.b[module].double(), b, atol=1e-5)


def test_moved_factors_keep_an_untrained_one_and_refuse_other_ranks(tmp_path):
    """A factor that nobody trained is the new start's bit for bit, whatever that is."""
    _, folder = run(tmp_path, rounds=1)
    start, adapters, _ = load_round(folder, "curated", 1, base="base")
    site = replace(adapters["alpha"], a=start.a)
    now = replace(adapters["beta"], b={k: v + 1.0 for k, v in start.b.items()})
    found = move_factors(site, start, now)
    for name in start.modules:
        assert torch.equal(found.a[name], now.a[name])
        assert torch.allclose(found.b[name], site.b[name] + 1.0, atol=1e-6)
    small = replace(
        now,
        a={k: v[:1] for k, v in now.a.items()},
        b={k: v[:, :1] for k, v in now.b.items()},
    )
    with pytest.raises(ConfigError, match="fedwinnow merge"):
        move_factors(site, start, small)


def test_moved_keeps_a_shared_factor(tmp_path):
    """Where A is one for all, the moved adapter has it too, at the same rank."""
    state, folder = run(tmp_path, rounds=1)
    start, adapters, _ = load_round(folder, "curated", 1, base="base")
    site = replace(adapters["alpha"], a=start.a)
    now = replace(start, b={k: v + 1.0 for k, v in start.b.items()})
    found = move_update(site, start, now)
    for name in start.modules:
        assert torch.equal(found.a[name], start.a[name])
        assert torch.allclose(found.b[name], site.b[name] + 1.0)
    assert state.phase == "done"


def test_remerge_writes_an_ordinary_folder_once(tmp_path):
    """PEFT's files and remerge.json; a folder that is there stays."""
    state, folder = run(tmp_path)
    found = remerge(folder, ("gamma",))
    config = make_config(tmp_path)
    write_remerged(found, tmp_path / "out", config)
    assert adapter_hash(load_adapter(tmp_path / "out", base="base")) == adapter_hash(found.adapter)
    assert '"gamma"' in (tmp_path / "out" / "remerge.json").read_text()
    with pytest.raises(OutputError, match="already"):
        write_remerged(found, tmp_path / "out", config)
    assert state.phase == "done"


def test_remerge_names_what_is_missing(tmp_path):
    """A stranger, a run that kept nothing, a changed file, and no run at all are named errors."""
    _, folder = run(tmp_path / "kept")
    with pytest.raises(ConfigError, match="delta"):
        remerge(folder, ("delta",))
    _, bare = run(tmp_path / "bare", keep=False)
    with pytest.raises(OutputError, match=r"keep\.adapters"):
        remerge(bare, ("beta",))
    with pytest.raises(OutputError, match="holds no run"):
        remerge(tmp_path / "nothing", ())
    place = folder / "kept" / "curated" / "round-1" / "sites"
    (place / "alpha" / "label.json").write_text((place / "beta" / "label.json").read_text())
    with pytest.raises(OutputError, match="label"):
        remerge(folder, ("gamma",))


def test_remerge_keeps_to_what_guards_and_judges_did(tmp_path):
    """Judged-out sites stay out, norms and weights are bounded again: the same adapter."""
    guards = GuardsSection(anchor_margin=0.1, norm=1.0, weight=0.6)
    state, folder = run(tmp_path, harmful=("alpha",), guards=guards)
    rounds = [one for one in state.records if one.phase == "train"]
    assert all(one.sites["alpha"].judged and not one.sites["beta"].judged for one in rounds)
    found = remerge(folder, ())
    assert adapter_hash(found.adapter) == adapter_hash(state.finals["curated"])
    assert all(weights["alpha"] == 0.0 for weights in found.weights)


def test_remerge_without_every_site_is_refused_at_once(tmp_path):
    """An input error that names the sites and the run, not a word of guards."""
    _, folder = run(tmp_path)
    words = [word for site in SITES for word in ("--without", site)]
    error = CliRunner().invoke(app, ["remerge", str(folder), *words]).exception
    assert isinstance(error, ConfigError)
    assert "names every site of run fake-run" in str(error)
    assert not [path for path in folder.iterdir() if path.name.startswith("adapter-without")]
