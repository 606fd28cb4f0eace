"""Length buckets: each holds its length, they are few, and bad arguments are refused by name."""

import pytest

from etpo_jax.acting.transitions import bucket


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 64), (1, 64), (64, 64), (65, 128), (129, 150), (150, 150)]
)
def test_smallest_multiple_that_fits(length, expected):
    assert bucket(length, 64, 150) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((151, 64, 150), "length=151"), ((-1, 64, 150), "length=-1"), ((1, 0, 150), "multiple=0"),
     ((0, 64, 0), "maximum=0")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        bucket(*arguments)
