"""The silo's own word on clusters: none unless allowed, few, in one run, and of enough samples."""

import numpy as np
import pytest
from policy_silo import Silo, digest_of, head, join, kept, refused, score, select, summary

from fedwinnow.curation.config.site import PolicySection
from fedwinnow.curation.errors import ConfigError
from fedwinnow.curation.protocol import messages as m

TERMS = {"clusters": {"count": 4, "iterations": 3}}


@pytest.fixture
def silo(tmp_path):
    """Make silos with policies; their ledgers are closed at the end."""
    made = []

    def make(**section):
        section = {"max_clusters": 4} | section
        made.append(Silo(tmp_path / str(len(made)), **section))
        return made[-1]

    yield make
    for one in made:
        one.ledger.close()


def ask(number=1, run="run", count=4, value=0.0):
    """An exchange of clusters."""
    return m.ClusterRequest(
        header=head("cluster", number, run=run), threshold=0.5, per_site={},
        centroids=np.full((count, 2), value),
    )  # fmt: skip


def told(number=1, run="run", counts=(8, 9, 0, 20)):
    """What a site tells of its clusters."""
    return m.ClusterReply(
        header=head("cluster", number, run=run), site="law", counts=counts,
        sums=np.zeros((len(counts), 2)),
    )  # fmt: skip


def choose(run="run", totals=(9, 9, 9, 9)):
    """A selection by quotas."""
    return m.QuotaRequest(
        header=head("select", run=run), threshold=0.5, per_site={}, totals=totals, extra={}
    )


def test_cluster_policy_allows_none_unless_it_says_so(silo):
    """By default a run with clusters is refused at join; one without is none of its concern."""
    assert PolicySection().max_clusters == 0
    one = silo(max_clusters=0)
    assert "4 clusters" in refused("policy.max_clusters", one.ask, join(**TERMS))
    one.ask(join())
    one.ask(join(clusters={"count": 0, "iterations": 99}))


@pytest.mark.parametrize(
    ("section", "much", "fair"),
    [
        ({"max_clusters": 4}, {"count": 5}, {"count": 4}),
        ({"max_cluster_rounds": 3}, {"iterations": 4}, {"iterations": 3}),
    ],
)
def test_cluster_policy_limits_clusters_and_exchanges(silo, section, much, fair):
    """At join and at every message: more than the clause says is refused by its name."""
    one, (clause,) = silo(**section), section
    wide, fit = ({"clusters": TERMS["clusters"] | change} for change in (much, fair))
    refused(f"policy.{clause}", one.ask, join(**wide))
    refused(f"policy.{clause}", one.ask, ask(), one.work(**wide))
    one.ask(join(**fit))
    one.ask(ask(), one.work(**fit))


def test_cluster_policy_consent_withdrawn_ends_it_in_the_middle(silo):
    """A clause that is made stricter between two exchanges holds from then on."""
    one = silo()
    work = one.work(**TERMS)
    one.give(ask(), told(), work)
    one.enact(max_clusters=0)
    refused("policy.max_clusters", one.ask, ask(2), work)


@pytest.mark.parametrize(
    ("terms", "request_"),
    [
        (TERMS, ask(0)),
        (TERMS, ask(4)),
        (TERMS, ask(count=5)),
        (TERMS, ask(count=0)),
        (TERMS, select()),
        ({}, ask()),
        ({}, choose()),
    ],
)
def test_cluster_policy_holds_a_run_to_its_terms(silo, terms, request_):
    """Exchanges, clusters and the kind of selection are those that the terms announce."""
    one = silo()
    refused("terms", one.ask, request_, one.work(**terms))


def test_cluster_policy_gives_one_content_for_each_exchange(silo):
    """The same request again is no second release; other centroids in the same round are."""
    one = silo()
    work = one.work(**TERMS)
    for number in (1, 2):
        one.give(ask(number), told(number), work)
        one.ask(ask(number), work)
        refused("policy.summaries", one.ask, ask(number, value=1.0), work)
    one.give(choose(), kept(), work)
    refused("policy.summaries", one.ask, choose(totals=(1, 1, 1, 1)), work)


def test_cluster_policy_gives_one_run_a_data_set(silo):
    """All exchanges of one run are one release; another run on the same data gets none."""
    one = silo()
    one.give(ask(), told(), one.work(**TERMS))
    again = one.work("again", **TERMS)
    refused("policy.summaries", one.ask, ask(run="again"), again)
    one.enact(summaries=2, max_clusters=4)
    one.give(ask(run="again"), told(run="again"), again)
    refused("policy.summaries", one.ask, ask(run="third"), one.work("third", **TERMS))


def test_cluster_policy_a_histogram_of_another_run_stands_in_the_way(silo):
    """A data set whose summary went to one run tells another nothing of its clusters."""
    one = silo()
    one.give(score(), summary(), one.work(**TERMS))
    refused("policy.summaries", one.ask, ask(run="again"), one.work("again", **TERMS))


def test_cluster_policy_releases_no_small_group(silo):
    """Whatever was computed: a cell below ``smallest_group`` does not leave; its limit does."""
    one = silo(smallest_group=8)
    work = one.work(**TERMS)
    release = lambda reply: one.policy.release(reply, work, one.ledger)  # noqa: E731 - shorthand
    assert release(told(counts=(8, 0, 0, 9))).counts == (8, 0, 0, 9)
    refused("policy.smallest_group", release, told(counts=(8, 7, 0, 9)))


def test_cluster_policy_counts_rounding_when_it_judges_a_group(silo):
    """A group of 8 that is told as 5 is a group of 8 still."""
    one = silo(smallest_group=8, round_counts_to=5)
    reply = told(counts=(5, 10, 0, 0))
    assert one.policy.release(reply, one.work(**TERMS), one.ledger) == reply


def test_cluster_policy_ledger_tells_counts_and_sums(silo):
    """What left stands there: kind, round, and the shape of the sums."""
    one = silo()
    one.give(ask(2), told(2), one.work(**TERMS))
    ((requests),) = one.ledger.released("ClusterReply").values()
    assert requests == {digest_of(ask(2)): "run"}
    assert one.ledger.at(("run", "cluster", 2, "")) == set(requests)
    assert '"ClusterReply.sums":"float64[4, 2]"' in (
        one.folder / "egress.jsonl"
    ).read_text().replace('": "', '":"')


@pytest.mark.parametrize("wrong", [{"max_clusters": -1}, {"max_cluster_rounds": 0}])
def test_cluster_policy_out_of_range_is_refused_by_name(wrong):
    """A clause names itself and its range."""
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"policy.{name}"):
        PolicySection(**wrong)
