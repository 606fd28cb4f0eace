"""The two halves of a split, for runs and, as a part of its text, for the script of a program."""

import numpy as np


def draw_halves(num_rows, seed, strata=None):
    """Returns the row positions of both halves of split `seed`.

    Plain halves are those of scikit-learn's `train_test_split(test_size=0.5, random_state=seed,
    shuffle=True)`, which is not imported for it.

    Args:
      num_rows: number of rows of the table.
      seed: number of the split.
      strata: class or number of each row; the halves then hold equally many rows of each, but for
        one. None draws plain halves.

    Returns: int64 positions of the training half (`num_rows // 2`) and of the validation half.
    """
    permutation = np.random.RandomState(seed).permutation(num_rows)
    if strata is None:
        num_validation = num_rows - num_rows // 2
        return permutation[num_validation:], permutation[:num_validation]
    in_validation = np.zeros(num_rows, np.bool_)
    in_validation[permutation[np.argsort(strata[permutation], kind="stable")][::2]] = True
    chosen = in_validation[permutation]
    return permutation[~chosen], permutation[chosen]
