"""What the plug-ins of a run read: the signal columns that its sites measure for them.

The server asks too, as columns of other members' opinions need its help: it carries the reviewers.
"""

from fedwinnow.curation.config.scoring import PluginSection, ScorerSection
from fedwinnow.curation.signal_columns import REVIEWS
from fedwinnow.strategies.interfaces.objective import WeighingObjective
from fedwinnow.strategies.interfaces.scorer import Scorer
from fedwinnow.strategies.registry import build

FEWEST = 3
"""Members of a run with reviews: fewer leave a sample one reviewer, who disagrees with nobody."""


def scorers(section: ScorerSection) -> dict[str, Scorer]:
    """The deciding scorer first, then those of the comparison.

    Raises:
        PluginError: a plug-in or a setting is unknown here.
    """
    chosen = {section.name: build("scorer", section.name, section.settings)}
    return chosen | {
        name: build("scorer", name, {}) for name in section.comparison if name not in chosen
    }


def weighing(section: PluginSection) -> WeighingObjective | None:
    """The objective, where it lets samples count unequally."""
    objective = build("objective", section.name, section.settings)
    return objective if isinstance(objective, WeighingObjective) else None


def readers(scorer: ScorerSection, objective: PluginSection) -> dict[str, frozenset[str]]:
    """Plug-in, as "kind 'name'" → the columns that it reads; the deciding scorer comes first.

    Raises:
        PluginError: a plug-in or a setting is unknown here.
    """
    found = {f"scorer {name!r}": one.columns for name, one in scorers(scorer).items()}
    weigher = weighing(objective)
    if weigher is not None:
        found[f"objective {objective.name!r}"] = weigher.columns
    return found


def reviewing(scorer: ScorerSection, objective: PluginSection) -> str:
    """The first plug-in that reads reviews, in the words of :func:`readers`; "" for none."""
    for name, columns in readers(scorer, objective).items():
        if columns & REVIEWS:
            return name
    return ""
