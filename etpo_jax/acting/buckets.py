"""Length buckets: arrays that jit sees have few lengths, so that few programs are compiled."""


def bucket(length: int, multiple: int, maximum: int) -> int:
    """The length that `length` tokens are padded to.

    Args:
      length: tokens, from 0 to `maximum`.
      multiple: buckets are multiples of this, at least 1.
      maximum: the largest bucket, whether or not it is a multiple.

    Returns:
      The smallest positive multiple that holds `length`, or `maximum` where that is smaller.

    Raises:
      ValueError: a length outside [0, maximum], or a multiple or maximum below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple}: must be at least 1")
    if maximum < 1:
        raise ValueError(f"maximum={maximum}: must be at least 1")
    if not 0 <= length <= maximum:
        raise ValueError(f"length={length}: must be from 0 to maximum={maximum}")
    return min(max(-(-length // multiple), 1) * multiple, maximum)
