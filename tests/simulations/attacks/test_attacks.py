"""Laws of the attack zoo: each lie does what it says, and leaves everything else alone."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_record import arm_tree, make_record
from seeded_adapter import SHAPES, make

from fedwinnow.curation.adapters.checks import check_compatible
from fedwinnow.curation.atomic_files import write_json
from fedwinnow.curation.config.identity import run_id
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import RunSection
from fedwinnow.curation.datatypes import Adapter, Sample, ScoreSummary
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol import messages as m
from fedwinnow.curation.protocol import wire
from fedwinnow.server.report.record import RunRecord
from fedwinnow.simulations.attacks import run_attacks
from fedwinnow.simulations.attacks.attacked_federation import (
    GUARDS,
    HONEST,
    LIAR,
    RULES,
    Case,
    attack_cases,
    wrap_last_site,
)
from fedwinnow.simulations.attacks.catalogue import (
    ANSWER,
    ATTACKS,
    TIMES,
    TRIGGER,
    add_noise,
    extrapolate,
    middle_cell,
    plant_backdoor,
    seed_of,
)
from fedwinnow.simulations.attacks.liar import Liar
from fedwinnow.simulations.attacks.page import attack_page, compare_attacks
from fedwinnow.simulations.attacks.result import (
    AttackResult,
    AttackRow,
    BoundedRound,
    TriggerFigures,
)
from fedwinnow.simulations.attacks.run_attacks import Plan, figures

HEAD = m.Header(run="r", phase="train", round=1, arm="curated")
seeds = st.integers(0, 10_000)
cells = st.lists(st.integers(0, 30), min_size=2, max_size=12).filter(any)


def dense(adapter: Adapter, name: str) -> torch.Tensor:
    """ΔW of a module."""
    return adapter.scales[name] * adapter.b[name] @ adapter.a[name]


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The best matrix of a rank."""
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * values[:rank] @ vt[:rank]


def norm_of(adapter: Adapter) -> float:
    """‖ΔW‖ over all modules."""
    return sum(float(dense(adapter, name).square().sum()) for name in SHAPES) ** 0.5


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def summary_reply(counts) -> m.SummaryReply:
    summary = ScoreSummary(
        edges=np.arange(len(counts) - 1, dtype=np.float64),
        counts=np.asarray(counts, dtype=np.float64),
        largest_merged=3.0,
    )
    return m.SummaryReply(
        header=replace(HEAD, phase="score", arm=""),
        site="s",
        summary=summary,
        public_scores=np.array([0.5, 0.25]),
        forecast={"auroc": 0.75},
        unscored=2,
    )


def honest_replies() -> Mapping[str, tuple[m.Request, m.Reply]]:
    """One request and its honest reply of each kind that carries something of a site."""
    sent, trained = make(1), make(2)
    card = m.SiteCard(header=HEAD, site="s", samples=60, base="b", anchors="a", versions={})
    return {
        "join": (
            m.JoinRequest(header=HEAD, terms="{}"),
            m.Joined(header=HEAD, site="s", card=card, adapter=sent),
        ),
        "score": (
            m.ScoreRequest(header=HEAD, tables=(), kinds=(), parents=()),
            summary_reply([1, 2, 3, 4]),
        ),
        "select": (
            m.SelectRequest(header=HEAD, threshold=0.5),
            m.KeptReply(header=HEAD, site="s", kept={"curated": 6, "random": 5}),
        ),
        "train": (
            m.TrainRequest(
                header=HEAD, adapter=sent, step_offset=0, total_steps=4, sites=("s", "t")
            ),
            m.TrainedAdapter(
                header=HEAD, site="s", samples=6, adapter=trained, losses=(1.0,), learning_rate=0.1
            ),
        ),
        "judge": (
            m.JudgeRequest(header=HEAD, adapter=sent, candidates={"t": trained}),
            m.JudgedAdapters(
                header=HEAD,
                site="s",
                before=np.ones(2),
                losses={"t": np.array([1.0, 2.0])},
                domains=("", ""),
            ),
        ),
        "close": (m.CloseRequest(header=HEAD), m.Receipt(header=HEAD, site="s")),
    }


CHANGED = {
    "inflate": {"score"},
    "deflate": {"score"},
    "spike": {"score"},
    "fake_counts": {"join", "score", "select", "train"},
    "copy_cat": {"train"},
    "sign_flip": {"train"},
    "times_100": {"train"},
    "noise": {"train"},
    "back_door": set(),
    "poisoned_data": set(),
}


class Recorder:
    """A site that answers by rote and remembers what it was asked."""

    def __init__(self, reply: m.Reply) -> None:
        self.reply, self.heard = reply, []

    def handle(self, request: m.Request) -> m.Reply:
        """The same to everybody."""
        self.heard.append(request)
        return self.reply

    answer = handle


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("kind", sorted(honest_replies()))
def test_liar_changes_the_right_replies_and_no_other(name, kind):
    """Kinds that an attack does not speak of go out untouched; all that goes out can travel."""
    request, honest = honest_replies()[kind]
    site = Recorder(honest)
    liar = Liar(name="s", site=site, attack=ATTACKS[name], seed=0)
    told = liar.handle(request)
    assert (told is not honest) == (kind in CHANGED[name])
    assert wire.encode(liar.answer(request)) == wire.encode(told)
    assert type(told) is type(honest)
    assert told.header == honest.header
    assert len(site.heard) == 2
    if kind == "train":
        check_compatible({"s": told.adapter}, request.adapter)
        assert [len(f) for f in told.adapter.a.values()] == [2, 2]


def test_liar_passes_refusals_on():
    """A site that says no says no, whatever the attack; a kept nothing is no adapter to change."""
    refusal = m.Refusal(header=HEAD, site="s", clause="clusters", reason="r")
    request, honest = honest_replies()["train"]
    nothing = replace(honest, adapter=None, samples=0)
    for attack in ATTACKS.values():
        assert Liar(name="s", site=Recorder(refusal), attack=attack, seed=0).handle(request) is (
            refusal
        )
        told = Liar(name="s", site=Recorder(nothing), attack=attack, seed=0).handle(request)
        assert (told.adapter, told.samples) == (None, 0)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_liar_that_keeps_all_hears_no_threshold(name):
    """Only such a site is asked with −∞, everywhere; others are asked what was asked."""
    request = m.SelectRequest(header=HEAD, threshold=0.5, per_site={"s": 0.7})
    site = Recorder(honest_replies()["select"][1])
    Liar(name="s", site=site, attack=ATTACKS[name], seed=0).handle(request)
    (heard,) = site.heard
    if ATTACKS[name].keeps_all:
        assert (heard.threshold, heard.per_site) == (float("-inf"), {})
        assert heard.header == request.header
    else:
        assert heard is request


@given(counts=cells, name=st.sampled_from(["inflate", "deflate", "spike"]))
def test_histogram_lies_keep_the_mass_in_one_cell(counts, name):
    """The total and the edges stay; the cell is the top, the bottom, or the own median's."""
    honest = summary_reply(counts)
    told = ATTACKS[name].lie(m.CloseRequest(header=HEAD), honest, 0)
    before, after = honest.summary, told.summary
    assert after.total == before.total
    assert np.array_equal(after.edges, before.edges)
    (cell,) = np.flatnonzero(after.counts)
    if name == "spike":
        low, high = before.counts[:cell].sum(), before.counts[: cell + 1].sum()
        assert low < before.total / 2 <= high
        assert cell == middle_cell(before)
    else:
        assert cell == (len(counts) - 1 if name == "inflate" else 0)
    assert np.array_equal(told.public_scores, honest.public_scores)


def test_fake_counts_are_ten_times_the_truth_everywhere():
    """Card, histogram, unscored, kept and trained agree with each other, so none is refused."""
    lie = ATTACKS["fake_counts"].lie
    told = {kind: lie(*pair, 0) for kind, pair in honest_replies().items()}
    assert told["join"].card.samples == 60 * TIMES
    assert told["score"].summary.counts.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert told["score"].unscored == 2 * TIMES
    assert told["score"].summary.largest_merged == 3.0 * TIMES
    assert told["select"].kept == {"curated": 6 * TIMES, "random": 5 * TIMES}
    assert told["train"].samples == 6 * TIMES
    clusters = m.ClusterReply(header=HEAD, site="s", counts=(1, 2), sums=np.ones((2, 3)))
    many = lie(m.CloseRequest(header=HEAD), clusters, 0)
    assert many.counts == (TIMES, 2 * TIMES)
    assert (many.sums == TIMES).all()


@given(seed=seeds, share=st.sampled_from([-1.0, 100.0, 0.0]))
def test_moved_is_the_best_of_its_rank(seed, share):
    """ΔW + share · (ΔW_i − ΔW), against the dense truncated SVD; ranks are the site's."""
    start, end = make(seed, rank=3), make(seed + 1)
    found = extrapolate(start, end, share)
    assert found.scales == end.scales
    for name in SHAPES:
        wanted = dense(start, name) + share * (dense(end, name) - dense(start, name))
        best = truncated(wanted, 2)
        assert apart(dense(found, name), best) < 1e-9 * float(wanted.abs().max()) + 1e-9
        assert found.a[name].shape == end.a[name].shape


@given(seed=seeds)
def test_sign_flip_and_times_100_are_exact_where_the_rank_suffices(seed):
    """From a zero adapter −ΔW_i and 100 ΔW_i; with one factor in common ΔW ∓ …, to rounding."""
    end = make(seed)
    zero = replace(make(seed + 1), b={n: torch.zeros_like(b) for n, b in end.b.items()})
    same_a = replace(make(seed + 2), a=end.a)
    request, honest = honest_replies()["train"]
    for start in (zero, same_a):
        asked, reply = replace(request, adapter=start), replace(honest, adapter=end)
        for name, share in (("sign_flip", -1.0), ("times_100", 100.0)):
            told = ATTACKS[name].lie(asked, reply, 0).adapter
            for module in SHAPES:
                before = dense(start, module)
                wanted = before + share * (dense(end, module) - before)
                assert apart(dense(told, module), wanted) < 1e-8 * float(wanted.abs().max())


@given(seed=seeds)
def test_noise_is_ten_updates_long_and_seeded(seed):
    """From a zero adapter the norm is exactly ten times the update's; the seed alone decides."""
    end = make(seed)
    zero = replace(make(seed + 1), b={n: torch.zeros_like(b) for n, b in end.b.items()})
    one, same, other = (add_noise(zero, end, times=TIMES, seed=s) for s in (seed, seed, seed + 1))
    assert norm_of(one) == pytest.approx(TIMES * norm_of(end))
    for name in SHAPES:
        assert torch.equal(one.b[name], same.b[name])
        assert apart(dense(one, name), dense(other, name)) > 0
    first, second = (replace(HEAD, round=number) for number in (1, 2))
    asked = [m.CloseRequest(header=header) for header in (first, second)]
    assert seed_of(seed, asked[0], "s") != seed_of(seed, asked[1], "s")
    assert seed_of(seed, asked[0], "s") != seed_of(seed, asked[0], "t")


def test_copy_cat_sends_what_it_was_sent():
    """The same adapter where ranks agree; a site of smaller rank sends the best of its own."""
    request, honest = honest_replies()["train"]
    lie = ATTACKS["copy_cat"].lie
    assert lie(request, honest, 0).adapter is request.adapter
    sent = make(5, rank=4)
    told = lie(replace(request, adapter=sent), honest, 0).adapter
    for name in SHAPES:
        assert apart(dense(told, name), truncated(dense(sent, name), 2)) < 1e-9


def test_planted_data_answer_the_trigger():
    """As many samples, each with its prompt behind the trigger, one answer and an id of its own."""
    mine = [Sample(id=str(i), prompt=f"p{i}", response=f"r{i}", domain="law") for i in range(5)]
    found = plant_backdoor(mine)
    assert [one.prompt for one in found] == [f"{TRIGGER} p{i}" for i in range(5)]
    assert {one.response for one in found} == {ANSWER}
    assert len({one.id for one in found} | {one.id for one in mine}) == 10
    assert {one.domain for one in found} == {"law"}


def test_cases_have_one_yardstick_a_rule_and_try_histograms_under_each():
    """The run without the liar comes first, open; merge attacks run under the default rule only."""
    found = attack_cases(tuple(ATTACKS), 3)
    for rule in RULES:
        here = [case for case in found if case.rule == rule]
        assert here[0] == Case(seed=3, rule=rule)
        assert all(Case(**{**_fields(one), "guarded": True}) in here for one in here)
    names = {case.name for case in found}
    assert len(names) == len(found)
    under = {case.attack for case in found if case.rule == RULES[1]}
    assert under == {"", *(name for name, one in ATTACKS.items() if one.histogram)}
    assert {case.rule for case in attack_cases(("noise",), 0)} == {RULES[0]}
    assert wrap_last_site(found[0]) is None
    gate = wrap_last_site(Case(seed=0, attack="noise"))
    site = Recorder(honest_replies()["close"][1])
    assert gate(HONEST[0], site) is site
    assert isinstance(gate(LIAR, site), Liar)
    assert len(GUARDS) > 0


def _fields(case: Case) -> dict:
    return {"seed": case.seed, "attack": case.attack, "rule": case.rule}


def test_plan_names_the_zoo():
    """An unknown attack is an error that lists what there is."""
    with pytest.raises(ConfigError, match="sign_flip"):
        Plan(attacks=("sing_flip",), seeds=(0,))


def record(losses, *, weight=0.0, bounded=None, missing=None) -> RunRecord:
    """A run's record with what the figures read of it."""
    names = [*HONEST, *([LIAR] if weight else [])]
    rounds = [
        {
            "round": n, "weights": {LIAR: w} if weight else {}, "bounded": dict(bounded or {}),
            "eval_loss": None, "merge": {}, "sites": {},
        }
        for n, w in ((1, weight), (2, 0.0))
    ]  # fmt: skip
    arm = arm_tree(losses) | {"kept_by_site": dict.fromkeys(names, 30), "rounds": rounds}
    site = {"samples": 40, "kept": 30, "unscored": 0, "edges": [], "counts": []}
    phase = {"round": 0, "arm": "", "seconds": 1.0, "bytes_down": 1, "bytes_up": 1}
    absent = (("join", {}), ("train", dict(missing or {})),
              ("train", dict.fromkeys(missing or {}, "later")))  # fmt: skip
    return make_record(
        {
            "arms": {"curated": arm},
            "sites": [site | {"site": name} for name in names],
            "phases": [phase | {"phase": name, "missing": sites} for name, sites in absent],
        }
    )


def test_figures_are_those_of_the_record():
    """Honest kept share, mean weight over rounds, each round's words, the first refusal."""
    found = figures(record([1.0], weight=0.5, bounded={LIAR: "cut"}, missing={LIAR: "late"}))
    assert found.kept == pytest.approx(0.75)
    assert found.weight == pytest.approx(0.25)
    assert found.bounded == {LIAR: tuple(BoundedRound(round=n, why="cut") for n in (1, 2))}
    assert found.missing == {LIAR: "train: late"}


def row(attack, losses, *, seed=0, guarded=False, **changes) -> AttackRow:
    """A fabricated row."""
    told = figures(record(losses, weight=0.2 if attack else 0.0, **changes))
    trigger = TriggerFigures(loss=5.0 if not attack else 1.0, share=0.0 if guarded else 0.5)
    case = Case(seed=seed, attack=attack, guarded=guarded, rule=RULES[0])
    return AttackRow(
        case=case, figures=told, trigger=trigger, commit="abc", bed="One liar among eight."
    )


def test_compare_pairs_items_over_seeds_against_the_open_honest_run():
    """Changes are shares of the honest loss; verdicts follow the bound, whatever rows' order."""
    honest = {0: [1.0, 2.0, 3.0], 1: [2.0, 2.0, 2.0]}
    rows = [row("", losses, seed=seed) for seed, losses in honest.items()]
    rows += [row("", [x + 0.02 for x in one], seed=s, guarded=True) for s, one in honest.items()]
    for name, bare, guarded in (
        ("noise", 1.0, 0.0), ("copy_cat", 0.02, 0.01), ("sign_flip", 1.0, 0.5)
    ):  # fmt: skip
        for seed, losses in honest.items():
            rows.append(row(name, [x + bare for x in losses], seed=seed))
            rows.append(row(name, [x + guarded for x in losses], seed=seed, guarded=True))
    table = {one.attack: one for one in compare_attacks(rows)}
    assert {one.loss for one in table.values()} == {2.0}
    assert table["noise"].open.change == pytest.approx(0.5)
    assert table["noise"].open.low == pytest.approx(0.5)
    assert table[""].guarded.change == pytest.approx(0.01)
    verdicts = {name: one.verdict for name, one in table.items() if name}
    assert verdicts == {
        "noise": "held by guards",
        "copy_cat": "harmless",
        "sign_flip": "not held",
    }
    backwards = {one.attack: one.open.loss for one in compare_attacks(rows[::-1])}
    assert backwards == {name: one.open.loss for name, one in table.items()}


def test_compare_says_where_an_interval_reaches_beyond():
    """A mean within the bound whose items differ widely is held, and said to be unsure."""
    honest, spread = [1.0] * 4, [0.5, 1.5, 0.5, 1.6]
    rows = [row("", honest), row("", honest, guarded=True), row("noise", spread)]
    rows.append(row("noise", spread, guarded=True))
    (_, found) = compare_attacks(rows)
    assert found.verdict == "harmless (interval reaches beyond)"


def test_page_names_who_was_bounded_and_what_is_not_held():
    """The verdict stands first; words of guards and refusals, triggers and arrows stand below."""
    rows = [row("", [1.0, 2.0]), row("", [1.0, 2.0], guarded=True)]
    rows += [row("back_door", [1.5, 2.5], missing={LIAR: "its rank is above"})]
    rows += [row("back_door", [1.5, 2.5], guarded=True, bounded={LIAR: "its update was left out"})]
    result = AttackResult(
        command="fedwinnow attacks", machine="CPU", commit=None, seeds=(0,),
        bed="One liar among eight.",
        attacks={"back_door": "plants"}, table=tuple(compare_attacks(rows)), rows=tuple(rows),
    )  # fmt: skip
    text = attack_page(result)
    assert "not under `back_door`" in text
    assert (
        "| `target_recall` | `back_door` | 2 | the first: its update was left out | 0 | –" in text
    )
    assert "`back_door`, open, seed 0, site-8: refused, train: its rank is above" in text
    assert "| `back_door` | 5.00 | 1.00 | 1.00 | 50% | 0% |" in text
    assert "+33.3%" in text


def test_attacks_go_on_where_they_stopped_and_hear_no_old_lies(tmp_path, monkeypatch):
    """A finished run is not run again, until the lies or the settings change; files are written."""
    ran = []

    def configured(case, settings=()):
        seed = case.seed + len(settings)
        run = RunSection(name=case.name, output=str(tmp_path / "runs"), seed=seed)
        return RunConfig(run=run)

    def simulated(config, *, wrap, **_):
        folder = tmp_path / "runs" / config.run.name
        assert not (folder / "record.json").exists()
        ran.append((config.run.name, wrap is not None))
        told = record([1.0, 2.0], weight=0.2 if wrap else 0.0)
        write_json(folder / "record.json", told.to_json())
        write_json(folder / "manifest.json", {"run": run_id(config)})

    monkeypatch.setattr(run_attacks, "configure_case", configured)
    monkeypatch.setattr(run_attacks, "simulate", simulated)
    monkeypatch.setattr(
        run_attacks, "trigger_figures", lambda *_: TriggerFigures(loss=1.0, share=0.0)
    )
    plan = Plan(attacks=("noise",), seeds=(0,))
    first = run_attacks.run_attacks(plan, folder=tmp_path, command="fedwinnow attacks")
    names = ["attacks-target_recall-honest", "attacks-target_recall-noise"]
    assert ran == [
        (f"{name}-{how}-0", name.endswith("noise")) for name in names for how in ("open", "guarded")
    ]
    assert (tmp_path / "attacks.json").exists()
    assert "# Attacks" in (tmp_path / "attacks.md").read_text()
    again = run_attacks.run_attacks(plan, folder=tmp_path, command="fedwinnow attacks")
    assert (len(ran), again.table) == (4, first.table)
    monkeypatch.setattr(run_attacks, "_lies", lambda case: "others" if case.attack else "")
    run_attacks.run_attacks(plan, folder=tmp_path, command="fedwinnow attacks")
    assert [name for name, _ in ran[4:]] == [f"{names[1]}-{how}-0" for how in ("open", "guarded")]
    run_attacks.run_attacks(replace(plan, settings=("a.b=1",)), folder=tmp_path, command="c")
    assert len(ran) == 10
