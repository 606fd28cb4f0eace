"""What was not tested, by reason, for the end of a test run."""

import collections
from collections.abc import Iterable


def lines_by_reason(reasons: Iterable[str]) -> list[str]:
    """One line for each reason with the number of tests that it skipped, the largest first."""
    counts = collections.Counter(" ".join(reason.split()) for reason in reasons)
    return [f"{count:5d}  {reason}" for reason, count in counts.most_common()]
