"""Choose the learning-rate schedule that suits an order of training."""

from fedwinnow.curation.learning_rate import AUTO, DEFAULT, GENTLE, learning_rate
from fedwinnow.strategies.interfaces.ordering import Order


def choose_schedule(schedule: str, hint: str | None) -> str:
    """Return the schedule of a run: its own, or for ``auto`` the ordering's hint, or cosine."""
    return schedule if schedule != AUTO else hint or DEFAULT


def final_share(total_steps: int, schedule: str, warmup_share: float) -> float:
    """Return the rate of the last step as a share of the largest, in (0, 1]."""
    return learning_rate(total_steps - 1, total_steps, 1.0, schedule, warmup_share)


def why_undone(order: Order, total_steps: int, schedule: str, warmup_share: float) -> str:
    """Return a warning where the best samples, put last, get the smallest steps; else ""."""
    share = final_share(total_steps, schedule, warmup_share)
    if not order.best_last or share >= GENTLE:
        return ""
    return (
        f"training.ordering puts the samples of most worth last, and training.schedule = "
        f"{schedule!r} ends at {share:.2g} of the peak rate, below {GENTLE:.2g}: they get the "
        'smallest steps; set training.schedule = "auto" or "constant" (arXiv 2511.18903)'
    )
