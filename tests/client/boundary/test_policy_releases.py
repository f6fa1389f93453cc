"""What leaves is counted over all runs, of enough samples, and never twice of nearly the same."""

import numpy as np
import pytest
from policy_silo import (
    evaluate,
    head,
    join,
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

from fedwinnow.client.budget.ledger import Ledger
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
    for request in (join("again"), score("again"), select(run="again"), train(run="again")):
        refused("policy.summaries", one.ask, request, again)
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


def test_policy_charges_summaries_to_samples_not_to_names(silo):
    """Changed data, another run, scorer or anchor set: a sample has one budget; new ones theirs."""
    one = silo(min_change=5)
    one.give(score(), summary(), one.work())
    for ids in (range(40), range(1, 40), range(44), range(45), range(35, 90), range(5, 40)):
        refused("policy.summaries", one.ask, score("b"), one.work("b", ids=ids))
    refused("policy.summaries", one.ask, score("b"), one.work("b", anchors="other"))
    one.ask(score("b"), one.work("b", ids=range(40, 45)))


@pytest.mark.parametrize("change", [range(1, 40), range(44), range(2, 42), range(40, 44)])
def test_policy_admits_no_data_that_differ_by_few(silo, change):
    """Edge: fewer than ``min_change`` samples added, removed, exchanged, or all there are."""
    one = silo(min_change=5, summaries=9)
    one.give(score(), summary(), one.work())
    words = {
        refused("policy.min_change", one.ask, request("b"), one.work("b", ids=change))
        for request in (score, join, lambda run: train(run=run))
    }
    assert len(words) == 1
    one.ask(score("c"), one.work("c", ids=range(45)))
    one.ask(score("d"), one.work("d", ids=range(5, 40)))


def test_policy_sees_drift_by_small_steps(silo):
    """Data are compared with every version that left, not with the first that was seen."""
    one = silo(min_change=5, summaries=9)
    one.ask(join("a"), one.work("a", ids=range(40)))  # seen, but nothing left
    one.give(score("b"), summary("b"), one.work("b", ids=range(43)))
    refused("policy.min_change", one.ask, score("c"), one.work("c", ids=range(46)))
    one.ask(score("c"), one.work("c", ids=range(48)))


def test_policy_takes_data_whose_ids_were_deleted_for_the_same(silo):
    """Whoever deletes what the site remembers of its data gains no further histogram."""
    one = silo()
    one.give(score(), summary(), one.work())
    one.policy.known.file.unlink()
    one.enact()
    refused("policy.summaries", one.ask, score("b"), one.work("b", ids=range(100, 200)))


def test_policy_divides_no_data_set_by_few(silo):
    """A division of the own hold-out that differs by few is refused, or its sums are withheld."""
    one = silo(summaries=9, min_change=5)
    half = one.work("a", ids=range(30), held=range(30, 40))
    one.ask(train(run="a"), half)

    def own(run, work):
        reply = metrics(head("evaluate", run=run), len(work.data.own_holdout))
        return one.give(evaluate(run=run), reply, work).own

    assert own("a", half).samples == 10
    closer = one.work("b", ids=range(29), held=range(29, 40))
    refused("policy.min_change", one.ask, join("b"), closer)
    refused("policy.min_change", one.ask, evaluate(run="b"), closer)
    more = one.work("c", ids=range(30), held=range(30, 44))
    assert own("c", more) == Metrics()
    again = one.work("d", ids=(*range(25), *range(30, 35)), held=(*range(25, 30), *range(35, 40)))
    assert own("d", again).samples == 10
    over = join("e", evaluation={"own_holdout": 0.51})
    refused("policy.own_holdout", one.ask, over, one.work("e"))


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
        work = one.work(run, held=range(40, 60), anchors=run)
        one.give(evaluate(run=run), metrics(head("evaluate", run=run)), work)
    for held in (range(40, 60), range(50, 99)):
        work = one.work("more", held=held)
        refused("policy.max_rounds", one.ask, evaluate(run="more"), work)
    one.ask(evaluate(run="more"), one.work("more"))  # no own hold-out: public losses alone


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
    work, header = one.work(held=range(40, 48)), head("evaluate")
    assert one.policy.release(metrics(header, 7), work, one.ledger).own == Metrics()
    assert one.policy.release(metrics(header, 25), work, one.ledger).own == Metrics()  # told as 0
    own = one.policy.release(metrics(header, 26), work, one.ledger).own
    assert own == Metrics(loss_sum=100.0, samples=50)
    exact = silo()
    own = exact.policy.release(metrics(header, 8), exact.work(held=range(8)), exact.ledger).own
    assert own == Metrics(loss_sum=16.0, samples=8)


def test_policy_gives_no_own_sums_of_slightly_changed_data(silo):
    """Two sums of one adapter over data that differ in one sample would tell that sample's loss.

    What is withheld is charged to the samples all the same, and stands in the way of nothing.
    """
    one = silo(summaries=9)
    held = range(40, 60)
    reply = one.give(evaluate(), metrics(head("evaluate")), one.work(held=held))
    assert reply.own.samples == 20
    changed = one.work("b", held=range(41, 60))
    reply = one.give(evaluate(run="b"), metrics(head("evaluate", run="b"), 19), changed)
    assert reply.own == Metrics()
    assert len(reply.public_losses) == 2
    name = one.policy.known.identify(changed).own_holdout
    assert name in one.ledger.released("PublicLosses")
    assert name not in one.ledger.released("MetricsReply")
    same = one.give(evaluate(run="c"), metrics(head("evaluate", run="c")), one.work("c", held=held))
    assert same.own.samples == 20


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
    assert one.policy.known.identify(work).samples[:8] not in words
    assert "40" not in words
    assert str(one.folder) not in words
    assert "sample-" not in words
