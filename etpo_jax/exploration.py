"""The value of `--explore`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from etpo_jax.settings import parse_options

_KINDS: Mapping[str, type] = {
    "share": float,
    "source": str,
    "temperature": float,
    "redraws": int,
    "start": int,
}


@dataclasses.dataclass(frozen=True)
class Exploration:
    """How a share of the environments explores.

    Attributes:
      share: share of the environments, the last ones; 0 is no exploration.
      source: "policy" or "reference", which their actions are sampled from.
      temperature: divisor of the logits of their actions beside `--temperature`; the support stays.
      redraws: number of further draws for an action that has been executed before.
      start: environment step from which on they explore.
    """

    share: float = 0.0
    source: str = "policy"
    temperature: float = 1.0
    redraws: int = 8
    start: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a value such as `share=0.25,redraws=8`; an empty text is no exploration.

        Raises:
          ValueError: naming the flag, its value and what is allowed.
        """
        values: dict[str, Any] = parse_options("explore", text, _KINDS)
        if values and "share" not in values:
            raise ValueError(f"--explore={text}: needs share=..., a share of the environments")
        found = cls(**values)
        for is_wrong, reason in (
            (not 0 <= found.share < 1, "share must be >= 0 and < 1"),
            (found.source not in ("policy", "reference"), "source must be policy or reference"),
            (not 0 < found.temperature <= 10, "temperature must be > 0 and <= 10"),
            (found.redraws < 0, "redraws must be >= 0"),
            (found.start < 0, "start must be >= 0"),
        ):
            if is_wrong:
                raise ValueError(f"--explore={text}: {reason}")
        return found

    def num_exploring(self, num_envs: int) -> int:
        """Number of the environments that explore, at least one if any should.

        Raises:
          ValueError: none would be left that does not.
        """
        count = math.ceil(self.share * num_envs)
        if count == num_envs and count:
            raise ValueError(
                f"--num_envs={num_envs}: one environment at least must not explore; lower the "
                "share of --explore"
            )
        return count
