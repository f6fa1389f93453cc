"""Laws of the learning-rate plan over all rounds, and of orders that it undoes."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.scoring import PluginSection
from fedwinnow.curation.config.training import TrainingSection
from fedwinnow.curation.errors import ConfigError, ProtocolError
from fedwinnow.curation.learning_rate import SCHEDULES, learning_rate
from fedwinnow.server.run.advice import run_remarks
from fedwinnow.server.run.fold import initial_state
from fedwinnow.strategies.interfaces.ordering import Order
from fedwinnow.strategies.maths.order_schedule import choose_schedule, final_share, why_undone


@given(
    total=st.integers(1, 200),
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.floats(0.0, 0.99),
    peak=st.floats(1e-6, 1.0),
)
def test_learning_rate_rises_to_the_peak_and_never_rises_again(total, schedule, warmup, peak):
    """Rates are in (0, peak], the peak is reached, and there is one maximum plateau."""
    rates = [learning_rate(step, total, peak, schedule, warmup) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    top = int(np.argmax(np.array(rates) >= peak * (1 - 1e-12)))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_learning_rate_golden_values():
    """Closed forms at a few steps (by hand)."""
    assert [learning_rate(s, 4, 1.0, "constant", 0.0) for s in range(4)] == [1, 1, 1, 1]
    assert [learning_rate(s, 4, 1.0, "linear", 0.0) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    cosine = [learning_rate(s, 4, 2.0, "cosine", 0.0) for s in range(4)]
    assert cosine == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])
    warm = [learning_rate(s, 4, 1.0, "constant", 0.5) for s in range(4)]
    assert warm == [0.5, 1, 1, 1]


def test_learning_rate_refuses_what_is_outside():
    """An unknown schedule and a step beyond the plan are named."""
    with pytest.raises(ConfigError, match=r"'exponential' is unknown.*constant, linear, cosine"):
        learning_rate(0, 4, 1.0, "exponential", 0.0)
    for step in (-1, 4):
        with pytest.raises(ProtocolError, match="plan of 4 steps"):
            learning_rate(step, 4, 1.0, "constant", 0.0)


@given(hint=st.sampled_from((None, *SCHEDULES)), schedule=st.sampled_from(("auto", *SCHEDULES)))
def test_schedule_is_the_runs_else_the_hint_else_cosine(hint, schedule):
    """A schedule that the run names is obeyed; ``auto`` takes the hint, and cosine without one."""
    found = choose_schedule(schedule, hint)
    assert found == (schedule if schedule != "auto" else hint or "cosine")
    assert found in SCHEDULES


@pytest.mark.parametrize("best_last", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 3, 4, 50])
def test_schedule_undoes_an_ascending_order_below_a_third(best_last, schedule, total):
    """A remark comes exactly where the best come last and the last rate is below a third."""
    order = Order(indices=np.arange(3), best_last=best_last)
    last = learning_rate(total - 1, total, 1.0, schedule, 0.0)
    assert final_share(total, schedule, 0.0) == last
    said = why_undone(order, total, schedule, 0.0)
    assert bool(said) == (best_last and last < 1 / 3)
    assert not said or (schedule in said and "2511.18903" in said)


ASCENDING = PluginSection(name="by_score", settings={"descending": False})


@pytest.mark.parametrize(
    ("ordering", "schedule", "remarked"),
    [
        (ASCENDING, "cosine", True),
        (ASCENDING, "linear", True),
        (ASCENDING, "constant", False),
        (ASCENDING, "auto", False),
        (PluginSection(name="folding"), "cosine", True),
        (PluginSection(name="by_score"), "cosine", False),
        (PluginSection(name="shuffled"), "cosine", False),
        (PluginSection(name="of_another_package"), "cosine", False),
    ],
)
def test_server_says_once_what_undoes_the_order(caplog, ordering, schedule, remarked):
    """The plan is remarked on when the run begins; a package that sites alone hold is no error."""
    training = TrainingSection(ordering=ordering, schedule=schedule, rounds=4, steps=5)
    config = RunConfig(training=training)
    with caplog.at_level(logging.WARNING):
        initial_state(config, "run")
    assert len(caplog.records) == int(remarked)
    assert len(run_remarks(config)) == int(remarked)
    none = RunConfig(training=TrainingSection(ordering=ordering, schedule=schedule, rounds=0))
    assert run_remarks(none) == ()
