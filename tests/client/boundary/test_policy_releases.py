"""What leaves is counted over all runs, of enough samples, and never twice of nearly the same."""

import numpy as np
import pytest
from policy_silo import (
    evaluate,
    head,
    joined,
    kept,
    metrics,
    refused,
    score,
    select,
    summary,
    train,
    trained,
    write_kept,
)

from fedwinnow.client.boundary.ledger import Ledger
from fedwinnow.curation.datatypes import Metrics, SignalTable
from fedwinnow.curation.protocol import messages as m


def test_policy_gives_one_summary_and_one_selection(silo):
    """One histogram and one threshold a data set, over all runs; the same request is no second."""
    one = silo()
    work = one.work()
    one.give(score(), summary(), work)
    one.give(score(), summary(), work)
    refused("policy.summaries", one.ask, score(kinds=("clean", "cut")), work)
    one.give(select(), kept(), work)
    one.ask(select(), work)
    refused("policy.summaries", one.ask, select(0.75), work)
    one.ask(train(), work)
    again = one.work("again")
    for request in (score("again"), select(run="again"), train(run="again")):
        assert "2" in refused("policy.summaries", one.ask, request, again)
    refused("policy.summaries", one.policy.release, joined(run="again"), again, one.ledger)
    one.ask(m.CloseRequest(header=head("close", run="again")), again)


def test_policy_gives_another_threshold_to_no_run_that_has_one(silo):
    """However many runs a silo allows, within a run there is one threshold."""
    one = silo(summaries=3)
    one.give(select(), kept(), one.work())
    refused("policy.summaries", one.ask, select(0.75), one.work())
    one.ask(select(0.75, run="again"), one.work("again"))


def test_policy_counts_over_a_restart(silo):
    """The count stands in the ledger, not in the process."""
    one = silo()
    one.give(score(), summary(), one.work())
    one.ledger.close()
    one.ledger = Ledger.open(one.folder)
    one.enact()
    refused("policy.summaries", one.ask, score("again"), one.work("again"))


def test_policy_summaries_are_per_data_and_anchors(silo):
    """Other data or other anchors are another histogram; slightly changed data are the same."""
    one = silo(min_change=5)
    one.give(score(), summary(), one.work())
    for change in (range(1, 40), range(44), range(2, 42)):
        refused("policy.summaries", one.ask, score("b"), one.work("b", ids=change))
    one.ask(score("b"), one.work("b", ids=range(45)))
    one.ask(score("b"), one.work("b", ids=range(5, 40)))
    one.ask(score("b"), one.work("b", anchors="other"))


def test_policy_sees_drift_by_small_steps(silo):
    """Data are compared with every version that left, not with the first that was seen."""
    one = silo(min_change=5, summaries=1)
    one.ask(score("a"), one.work("a", ids=range(40)))  # seen, but nothing left
    one.policy.known.identify(one.work("a", ids=range(40)))
    one.give(score("b"), summary("b"), one.work("b", ids=range(43)))
    refused("policy.summaries", one.ask, score("c"), one.work("c", ids=range(46)))
    one.ask(score("c"), one.work("c", ids=range(48)))


def test_policy_takes_data_whose_ids_were_deleted_for_the_same(silo):
    """Whoever deletes what the site remembers of its data gains no further histogram."""
    one = silo()
    one.give(score(), summary(), one.work())
    for file in (one.folder / "datasets").glob("*.ids"):
        file.unlink()
    one.enact()
    refused("policy.summaries", one.ask, score("b"), one.work("b", ids=range(100, 200)))


def test_policy_divides_a_data_set_once(silo):
    """Seeds and shares of the own hold-out that differ by one sample would tell of that sample."""
    one = silo(summaries=9)
    half = {"evaluation": {"own_holdout": 0.5}}
    one.policy.release(joined(), one.work(**half), one.ledger)
    one.ask(evaluate(), one.work(**half))
    for other in ({}, {"evaluation": {"own_holdout": 0.501}}, half | {"run": {"seed": 1}}):
        work = one.work("b", ids=range(39), **other)
        refused("policy.own_holdout", one.policy.release, joined(run="b"), work, one.ledger)
        refused("policy.own_holdout", one.ask, evaluate(run="b"), work)
    far = one.work("c", ids=range(100, 200), run={"seed": 1})
    one.policy.release(joined(run="c"), far, one.ledger)
    one.policy.release(joined(run="d"), one.work("d", ids=range(100, 200)), one.ledger)


def test_policy_counts_rounds_over_all_runs_and_anchors(silo):
    """``max_rounds``: warm-up and training of every run on the data; a repeat is no round."""
    one = silo(max_rounds=6, summaries=9)
    for run in ("a", "b"):
        work = one.work(run, anchors=run)
        for request in (train(1, "warm_up", run), train(2, "warm_up", run), train(1, run=run)):
            write_kept(work, 40)
            one.give(request, trained(request.header), work)
            one.ask(request, work)
    refused("policy.max_rounds", one.ask, train(2, run="b"), one.work("b", anchors="b"))
    one.enact(max_rounds=7, summaries=9)
    one.ask(train(2, run="b"), one.work("b", anchors="b"))


@pytest.mark.parametrize("kind", [train, lambda rank=4: evaluate(1, "curated", rank=rank)])
def test_policy_trains_and_evaluates_each_round_once(silo, kind):
    """The same round with another adapter is a second answer about the same samples."""
    one = silo(max_rounds=20)
    work = one.work()
    write_kept(work, 40)
    first = kind()
    reply = trained(first.header) if kind is train else metrics(first.header)
    one.give(first, reply, work)
    one.ask(first, work)
    refused("policy.max_rounds", one.ask, kind(rank=3), work)


def test_policy_counts_evaluations_over_all_runs(silo):
    """Own-hold-out sums of ever new adapters are bounded like rounds (and one before training)."""
    one = silo(max_rounds=5, summaries=9)
    for number in range(6):
        run = f"run-{number}"
        one.give(evaluate(run=run), metrics(head("evaluate", run=run)), one.work(run))
    refused("policy.max_rounds", one.ask, evaluate(run="more"), one.work("more"))


@pytest.mark.parametrize("round_to", [1, 100])
def test_policy_withholds_adapters_of_few(silo, round_to):
    """Fewer private samples than ``smallest_group``: no adapter, loss or rate; 8 are enough."""
    one = silo(round_counts_to=round_to)
    work, header = one.work(), head("train", 1, "curated")
    write_kept(work, 7)
    reply = one.policy.release(trained(header, samples=100), work, one.ledger)
    assert (reply.adapter, reply.samples, reply.losses, reply.learning_rate) == (None, 0, (), 0.0)
    write_kept(work, 8)
    assert one.policy.release(trained(header), work, one.ledger).adapter is not None
    few = one.work("few", ids=range(7))
    assert one.policy.release(trained(head("warm_up", 1)), few, one.ledger).adapter is None


def test_policy_lets_warm_up_on_public_anchors_out(silo):
    """An adapter of public anchors alone tells of no sample, however few the silo has."""
    one = silo()
    few = one.work("few", ids=range(2), warm_up={"data": "anchors", "rounds": 1, "steps": 1})
    reply = trained(head("warm_up", 1), losses=(1.0, 2.0))
    assert one.policy.release(reply, few, one.ledger) == reply
    write_kept(few, 2)
    later = one.policy.release(trained(head("train", 1, "curated")), few, one.ledger)
    assert later.adapter is None


def test_policy_rounds_losses_of_steps(silo):
    """Law: the mean loss of a step, which draws a group, leaves on a grid of one draw's step."""
    one = silo(smallest_group=8)
    work, losses = one.work(), (1.0, 3.5, 5.0, 7.0, 9.0)
    write_kept(work, 40)
    reply = one.policy.release(trained(head("train", 1, "curated"), losses), work, one.ledger)
    assert reply.losses == (0.0, 4.0, 4.0, 8.0, 8.0)  # a grid of 2 ≥ ln(2^18) / 8


def test_policy_gives_own_sums_of_enough_samples(silo):
    """Own-hold-out sums of few are withheld; the count of others is rounded, their mean is not."""
    one = silo(round_counts_to=50)
    work, header = one.work(), head("evaluate")
    assert one.policy.release(metrics(header, 7), work, one.ledger).own == Metrics()
    assert one.policy.release(metrics(header, 25), work, one.ledger).own == Metrics()  # told as 0
    own = one.policy.release(metrics(header, 26), work, one.ledger).own
    assert own == Metrics(loss_sum=100.0, samples=50)
    exact = silo()
    own = exact.policy.release(metrics(header, 8), exact.work(), exact.ledger).own
    assert own == Metrics(loss_sum=16.0, samples=8)


def test_policy_gives_no_own_sums_of_slightly_changed_data(silo):
    """Two sums of one adapter over data that differ in one sample would tell that sample's loss."""
    one = silo(summaries=9)
    assert one.give(evaluate(), metrics(head("evaluate")), one.work()).own.samples == 20
    changed = one.work("b", ids=range(1, 40))
    reply = one.give(evaluate(run="b"), metrics(head("evaluate", run="b")), changed)
    assert reply.own == Metrics()
    same = one.give(evaluate(run="c"), metrics(head("evaluate", run="c")), one.work("c"))
    assert same.own == Metrics()  # the changed data's entry stands between
    assert len(same.public_losses) == 2


def test_policy_lets_out_rows_of_anchors_alone(silo):
    """Signal rows of a private sample would be refused, whatever went wrong before."""
    one = silo()

    def rows(*ids):
        table = SignalTable(
            ids=ids, domains=("",) * len(ids), checkpoint=0,
            status=np.zeros(len(ids), dtype=np.int8), columns={}, references=(),
            reference_gram=np.zeros((0, 0)), learning_rate=0.0,
        )  # fmt: skip
        return m.PublicSignals(
            header=head("probe"), site="law", table=table, kinds=("clean",) * len(ids), parents=ids
        )

    assert one.policy.release(rows("anchor-1"), one.work(), one.ledger).table.ids == ("anchor-1",)
    words = refused(
        "policy.public_rows", one.policy.release, rows("anchor-1", "sample-3"), one.work(),
        one.ledger,
    )  # fmt: skip
    assert "sample-3" not in words


def test_policy_refusals_name_nothing_of_the_silo(silo):
    """No id, path or hash of data stands in the words of a refusal."""
    one = silo()
    work = one.work()
    one.give(score(), summary(), work)
    words = refused("policy.summaries", one.ask, score("b"), one.work("b"))
    assert one.policy.known.identify(work)[:8] not in words
    assert str(one.folder) not in words
    assert "sample-" not in words
