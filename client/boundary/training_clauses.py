"""Check the clauses on how a run trains: the group of a step, clipping, rates and strengths.

AdamW moves each entry by about the learning rate, whatever the gradient. Where the gradient is far
below its ε (1e-8) it is linear instead, and a large rate then makes an adapter the gradient of what
little was drawn first; so norms are bounded from below, and rate and strengths from above.

Reference:
    D. P. Kingma, J. Ba, Adam, ICLR 2015, section 2.1, https://arxiv.org/abs/1412.6980
"""

import math
from collections.abc import Mapping

from fedwinnow.client.boundary.clauses import require
from fedwinnow.client.boundary.group_sizes import step_draws, trains_on_private
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import PolicySection


def check_training(terms: RunTerms, section: PolicySection) -> None:
    """Refuse terms whose training on private samples breaks a clause.

    Raises:
        RefusalError: a clause does not hold; the message holds numbers of the terms alone.
    """
    if not trains_on_private(terms):
        return
    training, draws = terms.training, step_draws(terms)
    came = f"steps of {draws} samples (training.batch_size · training.accumulation)"
    least = section.smallest_group
    require("smallest_group", came, draws >= least, f"steps of at least {least}")
    rates = {"training": training.learning_rate, "warm_up": terms.warm_up.learning_rate}
    for name, rate in rates.items():
        most = section.max_learning_rate
        require(
            "max_learning_rate", f"{name}.learning_rate {rate}", rate <= most, f"at most {most}"
        )
    norms = {"max_grad_norm": training.max_grad_norm}
    most = section.max_sample_grad_norm
    clips = training.sample_grad_norm > 0
    came = f"training.sample_grad_norm {training.sample_grad_norm} (0 clips no sample)"
    allowed = f"at most {most} and above 0"
    require(
        "max_sample_grad_norm",
        came,
        math.isinf(most) or (clips and training.sample_grad_norm <= most),
        allowed,
    )
    if clips:
        norms["sample_grad_norm"] = training.sample_grad_norm
    for name, norm in norms.items():
        least_norm = section.min_grad_norm
        said = f"training.{name} {norm}"
        require("min_grad_norm", said, norm >= least_norm, f"at least {least_norm}")
    decay, most = training.weight_decay, section.max_weight_decay
    require("max_weight_decay", f"training.weight_decay {decay}", decay <= most, f"at most {most}")
    _check_strength(training.objective.settings, section.max_objective_strength)


def _check_strength(settings: Mapping[str, object], most: float) -> None:
    """Refuse an objective with a number beyond the bound, however deep it stands."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            _check_strength(value, most)
            continue
        for number in value if isinstance(value, list | tuple) else (value,):
            holds = not isinstance(number, int | float) or abs(number) <= most
            said = f"training.objective.settings.{name} {number}"
            require("max_objective_strength", said, holds, f"numbers from {-most} to {most}")
