"""Laws of the list of what may leave: it is whole, it is enforced, and it is what people read."""

import html
import math
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_silo import adapter_of

from fedwinnow.client.boundary.disclosed_parts import PARTS, check_parts, leaves, paths_of
from fedwinnow.client.boundary.disclosure import disclosed_numbers
from fedwinnow.client.boundary.disclosure_page import disclosure_page
from fedwinnow.curation.config.site import PolicySection, SiteConfig, SiteSection
from fedwinnow.curation.datatypes import Metrics, ScoreSummary
from fedwinnow.curation.protocol import messages as m

HEAD = m.Header(run="r", phase="score")
CONFIG = SiteConfig(site=SiteSection(name="law", data="d"), policy=PolicySection())
SUMMARY = m.SummaryReply(
    header=HEAD,
    site="law",
    summary=ScoreSummary(edges=np.array([0.0, 1.0]), counts=np.array([2.5, 7.5, 20.0])),
    public_scores=np.zeros(2),
    forecast={"auroc": 0.7},
    unscored=10,
)
TRAINED = m.TrainedAdapter(
    header=HEAD, site="law", samples=40, adapter=adapter_of(4), losses=(1.5,), learning_rate=1e-4
)
METRICS = m.MetricsReply(
    header=HEAD, site="law", public_losses=np.ones(2), own=Metrics(loss_sum=40.0, samples=40)
)
KEPT = m.KeptReply(header=HEAD, site="law", kept={"curated": 30})


@pytest.mark.parametrize("reply", typing.get_args(m.Reply))
def test_every_part_of_every_reply_is_listed_once(reply):
    """Law: a field that a message gains has no way out until somebody says what bounds it."""
    listed = [part.path for part in PARTS if part.reply is reply]
    assert len(listed) == len(set(listed))
    assert set(listed) == paths_of(reply)


@pytest.mark.parametrize("reply", [SUMMARY, TRAINED, METRICS, KEPT])
def test_what_is_rounded_and_bounded_passes(reply):
    """Oracle: replies as the site makes them hold their bounds, and hold listed parts alone."""
    check_parts(reply, CONFIG)
    assert {path for path, _ in leaves(reply)} <= paths_of(type(reply))


BROKEN = {
    "exact count": replace(KEPT, kept={"curated": 31}),
    "negative count": replace(KEPT, kept={"curated": -10}),
    "exact unscored": replace(SUMMARY, unscored=1),
    "exact total": replace(
        SUMMARY, summary=replace(SUMMARY.summary, counts=np.array([2.5, 7.5, 21.0]))
    ),
    "negative cell": replace(
        SUMMARY, summary=replace(SUMMARY.summary, counts=np.array([-10.0, 20.0, 20.0]))
    ),
    "infinite group": replace(SUMMARY, summary=replace(SUMMARY.summary, largest_merged=math.inf)),
    "rank": replace(TRAINED, adapter=adapter_of(65, 70)),
    "factor": replace(
        TRAINED, adapter=replace(adapter_of(4), a={"layer": torch.full((4, 6), math.inf)})
    ),
    "loss": replace(TRAINED, losses=(99.0,)),
    "own sum": replace(METRICS, own=Metrics(loss_sum=math.nan, samples=40)),
    "own count": replace(METRICS, own=Metrics(loss_sum=40.0, samples=41)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_number_outside_its_bound_does_not_leave(case):
    """Edge: each bound stops what breaks it, by the name of the part and without the number."""
    with pytest.raises(TypeError, match="does not hold its bound") as error:
        check_parts(BROKEN[case], CONFIG)
    assert "31" not in str(error.value)


def test_disclosure_follows_the_policy_and_the_page_holds_it():
    """Law: the numbers of the policy stand in the words; what is refused is left out of them."""
    policy = replace(CONFIG.policy, phases=("probe", "score"), summaries=3, max_rank=7)
    config = replace(CONFIG, policy=policy, site=replace(CONFIG.site, round_counts_to=25))
    numbers = disclosed_numbers(config)
    assert {one.phase for one in numbers} == {"join", "probe", "score", "instead of any"}
    (unscored,) = [one for one in numbers if one.what == "number of samples without a score"]
    assert "multiple of 25" in unscored.bound
    assert unscored.budget == "3 times for each sample, over all runs"
    assert all(bool(one.bound) == (one.source == "your samples") for one in numbers)
    page = html.unescape(disclosure_page(config))
    assert all(one.what in page for one in numbers)
    assert "multiple of 25" in page
    assert "<script" not in page
