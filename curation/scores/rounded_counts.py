"""Round the counts that leave a site.

A count n becomes the nearest multiple of the step s, halves to the even multiple, so that whatever
lies in 0 … s / 2 is told as 0: zero means "few". Two counts that differ by one sample are told
alike, or one step apart.
"""


def round_count(number: int, step: int) -> int:
    """Return the nearest multiple of ``step``, at least 1; 0 for a count of at most half a step."""
    whole, rest = divmod(number, step)
    return (whole + (2 * rest > step or (2 * rest == step and whole % 2 == 1))) * step


def round_known_group(number: int, step: int) -> int:
    """Return a rounded count of at least one step, for a group whose existence is told anyway.

    A site that joins has samples, and an adapter has some behind it: a count of 0 would take the
    weight from it, and one step says no more than that it is there. Exact where the step is 1.
    """
    return number if step == 1 else max(step, round_count(number, step))


def fewest_of_count(told: int, step: int) -> int:
    """Return the fewest samples that are told as a count: what follows from it tells no more."""
    return told - step // 2
