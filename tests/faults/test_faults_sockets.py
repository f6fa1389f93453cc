"""Laws of a deployment over Unix sockets whose coordinator, agents, disks and lines break."""

import pytest
from fault_agents import Deployment, SocketBox
from fault_box import KILLED, LONG, result
from fault_breaks import Break
from fault_laws import few, goes_on_without, names, two

from fedwinnow.curation.adapters import adapter_hash

pytestmark = pytest.mark.faults
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
    assert run.live() == [0], run.told()
    run.close()
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


def survives(run, broken, whole, *codes):
    """The run goes on, and ends as if nothing had been; nothing is released a second time."""
    found = run.live(broken)
    assert broken.marker.exists(), "the break never happened"
    assert found in codes, run.told()
    assert result(run.box.state()) == result(whole.box.state())
    assert run.released() == whole.released()


def test_faults_sockets_end_with_the_adapter_of_one_process(whole, unbroken):
    """Seals, policies, ledgers and sockets change nothing: the same adapter, bit for bit."""
    one, other = (x.state().finals["curated"] for x in (whole.box, unbroken))
    assert adapter_hash(one) == adapter_hash(other)


@pytest.mark.parametrize(("point", "phase", "number"), names(COORDINATOR, few()))
def test_faults_sockets_coordinator_killed_resumes_to_the_same_end(
    make, whole, tmp_path, point, phase, number
):
    """Agents outlive their coordinator; what it asked before it died is asked again."""
    broken = Break(what="kill", point=point, phase=phase, round=number, marker=tmp_path / "broken")
    survives(make(), broken, whole, [KILLED, 0])


@pytest.mark.parametrize(
    ("point", "phase", "number"), [*names(AGENT, few()), *names(("computing",), LONG)]
)
def test_faults_sockets_agent_killed_comes_back_to_the_same_end(
    make, whole, tmp_path, point, phase, number
):
    """The middle agent dies between two requests, in its work, or before its reply leaves."""
    broken = Break(
        what="kill", point=point, phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    survives(make(), broken, whole, [1, 0], [0])


@pytest.mark.parametrize(("phase", "number"), few())
def test_faults_sockets_agent_killed_is_named_where_two_suffice(make, tmp_path, phase, number):
    """The run does not wait for the third: its record says who was missing and why."""
    broken = Break(
        what="kill", point="arrives", phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    run = make(quorum=two())
    goes_on_without(run.box, run.live(broken), broken)
    run.released()


@pytest.mark.parametrize(
    ("point", "phase", "number"), names(("refused", "up", "down", "silent"), few())
)
def test_faults_sockets_line_cut_is_asked_again_or_named(
    make, whole, tmp_path, point, phase, number
):
    """Refused, cut inside the request or the reply, or silent until the deadline."""
    broken = Break(
        what="cut", point=point, phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    survives(make(wait=5.0), broken, whole, [1, 0])


@pytest.mark.parametrize(("point", "phase", "number"), names(("asked", "commit"), few()))
def test_faults_sockets_coordinator_without_disk_ends_and_resumes(
    make, whole, tmp_path, point, phase, number
):
    """A full disk at the coordinator ends the run with an error; with room again it goes on."""
    broken = Break(what="full", point=point, phase=phase, round=number, marker=tmp_path / "broken")
    survives(make(), broken, whole, [1, 0], [2, 0])


@pytest.mark.parametrize(("point", "phase", "number"), names(("admit", "work", "ledger"), few()))
def test_faults_sockets_agent_without_disk_releases_nothing(
    make, whole, tmp_path, point, phase, number
):
    """A site whose disk is full sends nothing but its word for it, and goes on with room again."""
    broken = Break(
        what="full", point=point, phase=phase, round=number, site="south",
        marker=tmp_path / "broken",
    )  # fmt: skip
    survives(make(), broken, whole, [1, 0])
