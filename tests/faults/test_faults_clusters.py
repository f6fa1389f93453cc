"""Laws of a run with clusters that is killed or loses a site at each exchange of them."""

from dataclasses import replace

import pytest
from fault_agents import Deployment, SocketBox
from fault_box import KILLED, Box, result
from fault_laws import goes_on_without, two

from fedwinnow.curation.adapters.checks import adapter_hash
from fedwinnow.curation.config.scoring import ClustersSection

pytestmark = pytest.mark.faults
WHERE = "in process"
AT = (("cluster", 1), ("cluster", 2), ("select", 0))
SECTION = ClustersSection(count=2, iterations=2, budget=0.75)


@pytest.fixture(scope="module")
def clustered(scenario):
    """The toy federation with clusters."""
    return replace(scenario, clusters=SECTION)


@pytest.fixture(scope="module")
def unharmed(clustered, context, tmp_path_factory):
    """The run that nothing happened to."""
    box = Box.of(clustered, tmp_path_factory.mktemp("unharmed"))
    assert box.live(context) == [0], box.log.read_text()
    return box


@pytest.mark.parametrize("point", ["asked", "answered", "torn", "behind"])
def test_faults_clusters_coordinator_killed_resumes_to_the_same_end(
    clustered, context, unharmed, tmp_path, breaks, point
):
    """Killed before an exchange, inside it, inside its commit or right after: the same end."""
    broken = breaks(what="kill", point=point, at=AT)
    box = Box.of(clustered, tmp_path)
    assert box.live(context, broken) == [KILLED] * len(AT) + [0], box.log.read_text()
    assert broken.spared() == set()
    assert result(box.state()) == result(unharmed.state())
    broken.story["outcome"] = "same adapter"


@pytest.mark.parametrize("point", ["arrives", "computed", "half", "stored"])
def test_faults_clusters_site_killed_resumes_to_the_same_end(
    clustered, context, unharmed, tmp_path, breaks, point
):
    """Dead between its table of clusters and its reply: what was told stays what it is."""
    broken = breaks(what="kill", point=point, at=AT, site="south")
    box = Box.of(clustered, tmp_path)
    assert box.live(context, broken) == [KILLED] * len(AT) + [0], box.log.read_text()
    assert broken.spared() == set()
    assert result(box.state()) == result(unharmed.state())
    broken.story["outcome"] = "same adapter"


@pytest.mark.parametrize("one", AT[:2])
def test_faults_clusters_lost_reply_is_done_without(clustered, context, tmp_path, breaks, one):
    """The run goes on with two of three, and the third takes part again afterwards."""
    broken = breaks(what="cut", point="reply", at=(one,), site="south")
    box = Box.of(clustered, tmp_path, quorum=two())
    goes_on_without(box, box.live(context, broken), broken)
    counted = box.state().clusters.counts
    assert ("south" in counted) == (one == AT[0])


def test_faults_clusters_over_sockets_are_those_of_one_process(unharmed, context):
    """Encryption, policies, ledgers and sockets change nothing: the same clusters and adapter."""
    deployment = Deployment.write()
    deployment.run = replace(deployment.run, clusters=SECTION)
    deployment.sites = {
        site: replace(config, policy=replace(config.policy, max_clusters=2))
        for site, config in deployment.sites.items()
    }
    run = SocketBox.of(deployment, context)
    try:
        assert run.live() == [0], run.told()
        one, other = run.box.state(), unharmed.state()
        assert adapter_hash(one.finals["curated"]) == adapter_hash(other.finals["curated"])
        assert one.clusters.quotas == other.clusters.quotas
        assert (one.clusters.centroids == other.clusters.centroids).all()
        assert one.kept == other.kept
        kinds = [kind for kind, _ in run.released()["north"]]
        assert kinds.count("ClusterReply") == SECTION.iterations
    finally:
        run.close()
        deployment.close()
