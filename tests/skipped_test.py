"""What was skipped is summed up by reason."""

from tests.skipped import lines_by_reason


def test_one_line_a_reason_the_commonest_first():
    reasons = ["needs torch", "bwrap:  not\ninstalled", "bwrap: not installed"]
    assert lines_by_reason(reasons) == ["    2  bwrap: not installed", "    1  needs torch"]
    assert lines_by_reason([]) == []
