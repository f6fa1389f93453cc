"""What a merge of adapter folders says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One folder's part in a merge."""

    folder: str
    weight: float
    """Share, of sum 1."""
    norm: float
    """‖ΔW_i‖ over all modules."""
    ranks: tuple[int, int]
    """Smallest and largest."""
    modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMerge:
    """What was merged, and what it cost."""

    out: str
    rule: str
    parts: tuple[Part, ...]
    norm: float
    """‖ΔW‖ of the result."""
    ranks: tuple[int, int]
    modules: int
    target_norm: float
    """‖ΔW*‖ of the weighted sum."""
    error: float | None
    """‖ΔW − ΔW*‖ / ‖ΔW*‖; None where the weighted sum is 0."""
    report: Mapping[str, float]
    """The rule's own words."""
    saved: tuple[str, ...]
    """Parameters of ``modules_to_save``, averaged."""
