"""Laws of a deployment over Unix sockets whose coordinator, agents, disks and lines break."""

import pytest
from fault_agents import Deployment, SocketBox
from fault_box import KILLED, LONG, result
from fault_laws import alone, cells, few, goes_on_without, once, two

from fedwinnow.curation.adapters.checks import adapter_hash

pytestmark = pytest.mark.faults
WHERE = "sockets"
COORDINATOR = ("asked", "answered", "torn", "behind")
AGENT = ("gone", "arrives", "computed", "half", "stored", "entered")


@pytest.fixture(scope="module")
def deployment():
    """Keys, data, model and configurations of three silos."""
    made = Deployment.write()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(deployment, context):
    """The run over sockets that nothing happened to."""
    run = SocketBox.of(deployment, context)
    codes = run.live()
    run.close()
    assert codes == [0], run.told()
    return run


@pytest.fixture
def make(deployment, context):
    """Makes runs, and stops their agents."""
    made = []

    def one(**rest):
        made.append(SocketBox.of(deployment, context, **rest))
        return made[-1]

    yield one
    for run in made:
        run.close()


def survives(run, broken, whole):
    """The run goes on, and ends as if nothing had been; nothing is released a second time."""
    codes = run.live(broken)
    assert broken.spared() == set()
    assert codes[-1] == 0, run.told()
    assert result(run.box.state()) == result(whole.box.state())
    assert run.released() == whole.released()
    broken.story["outcome"] = "same adapter"
    return codes[:-1]


def test_faults_sockets_end_with_the_adapter_of_one_process(whole, unbroken):
    """Encryption, policies, ledgers and sockets change nothing: the same adapter, bit for bit."""
    one, other = (x.state().finals["curated"] for x in (whole.box, unbroken))
    assert adapter_hash(one) == adapter_hash(other)


@pytest.mark.parametrize(("point", "at"), cells(COORDINATOR, few()))
def test_faults_sockets_coordinator_killed_resumes_to_the_same_end(make, whole, breaks, point, at):
    """Agents outlive their coordinator; what it asked before it died is asked again."""
    broken = breaks(what="kill", point=point, at=at)
    assert survives(make(), broken, whole) == [KILLED] * len(at)


@pytest.mark.parametrize(("point", "at"), [*cells(AGENT, few()), *cells(("computing",), LONG)])
def test_faults_sockets_agent_killed_comes_back_to_the_same_end(make, whole, breaks, point, at):
    """The middle agent dies between two requests, in its work, or before its reply leaves."""
    broken = breaks(what="kill", point=point, at=at, site="south")
    assert set(survives(make(), broken, whole)) <= {1}


@pytest.mark.parametrize(
    ("point", "at"), [("stored", (("train", 1),)), *alone(("arrives", "stored"), few()[1:])]
)
def test_faults_sockets_agent_killed_is_named_where_two_suffice(make, breaks, point, at):
    """The run does not wait for the third: its record says who was missing and why."""
    broken = breaks(what="kill", point=point, at=at, site="south")
    run = make(quorum=two())
    goes_on_without(run.box, run.live(broken), broken)
    run.released()


@pytest.mark.parametrize(("point", "at"), cells(("refused", "up", "down"), few()))
def test_faults_sockets_line_cut_is_asked_again(make, whole, breaks, point, at):
    """Refused, or cut inside the request or the reply: asked again, to the same end."""
    broken = breaks(what="cut", point=point, at=at, site="south")
    assert survives(make(), broken, whole) == [1] * len(at)


@pytest.mark.parametrize(("point", "at"), cells(("silent",), (("probe", 0), ("train", 1))))
def test_faults_sockets_silent_line_ends_at_the_deadline(make, whole, breaks, point, at):
    """A reply that never comes is waited for until the phase's deadline, and no longer."""
    broken = breaks(what="cut", point=point, at=at, site="south")
    assert survives(make(wait=8.0), broken, whole) == [1] * len(at)


@pytest.mark.parametrize(("point", "at"), cells(("asked", "commit"), few()))
def test_faults_sockets_coordinator_without_disk_ends_and_resumes(make, whole, breaks, point, at):
    """A full disk at the coordinator ends the run with an error; with room again it goes on."""
    broken = breaks(what="full", point=point, at=at)
    codes = survives(make(), broken, whole)
    assert len(codes) == len(at)
    assert set(codes) <= {1, 2}


@pytest.mark.parametrize(("point", "at"), cells(("admit", "work", "ledger"), once()))
def test_faults_sockets_agent_without_disk_releases_nothing(make, whole, breaks, point, at):
    """A site whose disk is full sends nothing but its word for it, and goes on with room again."""
    broken = breaks(what="full", point=point, at=at, site="south")
    assert survives(make(), broken, whole) == [1] * len(at)
