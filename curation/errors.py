"""The tree of errors that fedwinnow raises on purpose.

::

    CurationError
    ├── InputError              wrong input of a person: exit code 2
    │   ├── ConfigError             a key of a TOML file or of the command line
    │   ├── DataError               a data file, a line of it, a column
    │   ├── ModelError              a model, a tokenizer or an adapter that cannot be used
    │   ├── PluginError             an unknown plug-in, or a setting that it does not have
    │   └── OutputError             a folder or file that cannot be written
    └── RunError                failure during a run: exit code 1
        ├── EmptySelectionError     nothing is kept
        ├── EmptySummaryError       no site contributed a sample
        ├── IncompatibleAdapterError adapters that cannot be merged or loaded
        ├── NonFiniteError          a NaN or an infinity where a number must be
        ├── ProtocolError           a message that does not match the run
        │   └── UnauthorisedError       the sender must not be answered
        ├── RefusalError            a site's policy says no
        └── TransportError          Flower or a site did not answer

A message has four parts: the setting or site, what was expected, what came, what to change. It is
for whoever owns the process: from a site in a deployment no message leaves. Such a site answers
with the error's ``clause`` and ``told``, which hold nothing measured
(``client/runs/told_text.py``).
"""


class CurationError(Exception):
    """Base class of every error that fedwinnow raises on purpose."""

    exit_code = 1
    clause = "failed"
    """Clause of the refusal that a site answers with (``curation/protocol/refusal_clauses.py``)."""
    told = ""
    """Text of that refusal: constants of the request, of the agreed terms and of the policy."""


class InputError(CurationError):
    """Wrong input of a person; nothing was computed and nothing is half-written."""

    exit_code = 2


class ConfigError(InputError):
    """A key of a configuration is unknown, of the wrong type or out of range."""


class DataError(InputError):
    """A data file, a line of it or a column is missing or malformed."""


class ModelError(InputError):
    """A model, tokenizer or adapter set-up is missing or not supported."""


class PluginError(InputError):
    """A plug-in is unknown, named twice, or does not have the given setting."""


class OutputError(InputError):
    """A folder or file cannot be written."""


class RunError(CurationError):
    """A run could not go on."""


class EmptySelectionError(RunError):
    """No sample is kept where at least one is needed."""


class EmptySummaryError(RunError):
    """No site contributed a score."""


class IncompatibleAdapterError(RunError):
    """Adapters differ in base, modules or shapes."""


class NonFiniteError(RunError):
    """A NaN or an infinity came up where a number must be."""


class ProtocolError(RunError):
    """A message does not match the run, phase or round."""

    def __init__(self, message: str, *, clause: str = "failed", told: str = "") -> None:
        """Take the message for the own log, and the clause and text that may leave a site."""
        super().__init__(message)
        self.clause, self.told = clause, told


class UnauthorisedError(ProtocolError):
    """A sender must not be answered: not signed by the pinned key, misaddressed, or a replay."""


class RefusalError(RunError):
    """A site refuses a request by its own policy or by the agreed terms; names the clause."""

    def __init__(self, message: str, *, clause: str = "failed", told: str = "") -> None:
        """Take the message for the own log, and the clause and text that may leave a site."""
        super().__init__(message)
        self.clause, self.told = clause, told


class TransportError(RunError):
    """Messages could not be carried, or no reply came in time."""
