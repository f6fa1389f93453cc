"""What speaks against a run's plan before it begins, in words for a person; nothing is refused.

The learning-rate plan spans the rounds, so an order that it undoes is seen here and not at a site.
"""

import numpy as np

from fedwinnow.curation.config import RunConfig
from fedwinnow.curation.errors import PluginError
from fedwinnow.curation.protocols import Ordering
from fedwinnow.curation.schedule import chosen, undone
from fedwinnow.strategies.registry import build


def remarks(config: RunConfig) -> tuple[str, ...]:
    """Remarks on the training of a run; none where the server lacks the ordering's package."""
    section, name = config.training, config.training.ordering.name
    if section.rounds == 0:
        return ()
    try:
        ordering: Ordering = build("ordering", name, section.ordering.settings)
    except PluginError:
        return ()  # sites need it, and say at join where they do not have it
    order = ordering(np.zeros(0), 0, ())
    schedule = chosen(section.schedule, order.schedule_hint)
    why = undone(order, section.rounds * section.steps, schedule, section.warmup_share)
    return (why,) if why else ()
