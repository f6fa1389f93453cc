"""The phases of a run."""

import enum


class Phase(enum.StrEnum):
    """A phase of a run; phases happen in this order."""

    JOIN = "join"
    PROBE = "probe"
    WARM_UP = "warm_up"
    MEASURE = "measure"
    SCORE = "score"
    CLUSTER = "cluster"
    """Only in runs with ``[clusters]``."""
    SELECT = "select"
    TRAIN = "train"
    JUDGE = "judge"
    """Only in runs with ``guards.anchor_margin``: after each training round, before its merge."""
    EVALUATE = "evaluate"
    CLOSE = "close"
    DONE = "done"
