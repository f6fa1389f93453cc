"""Settings of a run changed by lines of ``section.key=value``, as on the command line."""

from collections.abc import Sequence

from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.config.strict_toml import parse, to_plain, with_overrides


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with lines ``section.key=value`` applied.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    if not overrides:
        return config
    return parse(with_overrides(to_plain(config), overrides), RunConfig)
