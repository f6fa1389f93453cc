"""Laws of a site's policy on reviewers: what it gives away, and what it lets in."""

import pytest
from policy_silo import Silo, adapter_of, head, join, refused

from fedwinnow.client.boundary.disclosure import describe_releases
from fedwinnow.curation.protocol import messages as m

COMMITTEE = {"scorer": {"name": "committee"}}


@pytest.fixture
def silo(tmp_path):
    """Makes a silo with a policy."""
    made = []

    def make(**section):
        made.append(Silo(tmp_path / str(len(made)), **section))
        return made[-1]

    yield make
    for one in made:
        one.ledger.close()


def measure(checkpoint, **reviewers):
    """A measure request with reviewers."""
    return m.MeasureRequest(
        header=head("measure", checkpoint),
        adapter=adapter_of(),
        checkpoint=checkpoint,
        learning_rate=0.5,
        reviewers=reviewers,
    )


def others(number, rank=4, width=6):
    """Adapters of so many other members."""
    return {f"site{i}": adapter_of(rank, width) for i in range(number)}


def test_policy_shares_no_adapter_unless_it_is_said(silo):
    """By default a committee is refused at join, and at every later message; other runs are not."""
    one = silo()
    said = refused("policy.share_adapter_with_members", one.ask, join(**COMMITTEE))
    assert "scorer 'committee'" in said
    compared = {"scorer": {"name": "perplexity", "comparison": ["committee"]}}
    refused("policy.share_adapter_with_members", one.ask, join(**compared))
    one.ask(join(scorer={"name": "perplexity"}))
    work = one.work(**COMMITTEE)
    clause = "policy.share_adapter_with_members"
    refused(clause, one.ask, measure(2, **others(2)), work)
    one.enact(share_adapter_with_members=True)
    one.ask(join(**COMMITTEE))
    one.ask(measure(2, **others(2)), work)
    one.enact(share_adapter_with_members=False)
    refused(clause, one.ask, measure(2, **others(2)), work)


def test_policy_holds_each_reviewer_to_its_limits(silo):
    """Number, rank and size of incoming adapters are the silo's own word; one is enough."""
    one = silo(share_adapter_with_members=True, max_reviewers=3, max_rank=4, max_adapter_mb=1)
    work = one.work(**COMMITTEE)
    one.ask(measure(2, **others(3)), work)
    refused("policy.max_reviewers", one.ask, measure(2, **others(4)), work)
    high = {**others(2), "west": adapter_of(5)}
    refused("policy.max_rank", one.ask, measure(2, **high), work)
    large = {**others(2), "west": adapter_of(4, 31_251)}
    refused("policy.max_adapter_mb", one.ask, measure(2, **large), work)


def test_policy_lets_reviewers_in_only_where_the_terms_announce_them(silo):
    """Not at an earlier checkpoint, and not in a run whose plug-ins read no reviews."""
    one = silo(share_adapter_with_members=True)
    work = one.work(**COMMITTEE)
    refused("terms", one.ask, measure(1, **others(2)), work)
    one.ask(measure(1), work)
    plain = one.work("plain", scorer={"name": "perplexity"})
    refused("terms", one.ask, measure(2, **others(2)), plain)
    one.ask(measure(2), plain)


def test_policy_says_in_plain_words_that_an_adapter_is_passed_on(silo):
    """The words of ``site check`` name it exactly where it is allowed."""
    config = silo().work().config
    for shares in (False, True):
        policy = type(config.policy)(share_adapter_with_members=shares)
        words = " ".join(describe_releases(type(config)(site=config.site, policy=policy)))
        assert ("pass it on to all members" in words) == shares
