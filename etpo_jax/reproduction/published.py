"""Published results of the paper (arXiv 2402.06700, Tables 2 to 5), for comparison with ours.

A score is the ROC AUC of the best program of one run, with the deviation over its five splits; the
paper gives neither seeds nor intervals.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Score(NamedTuple):
    """Mean and standard deviation over the five splits of the best program."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.3f}"


GPT_4, REFLECTION, PPO_KL, ETPO = "GPT-4 reflection", "reflection", "PPO-KL", "ETPO"
DISCOUNTED, ONE_STEP, CAAFE = "ETPO(DISC.)", "ETPO(1-STEP)", "CAAFE (GPT-4)"

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

SCORES: Mapping[str, Mapping[str, Score]] = {
    name: {method: Score(*pair) for method, pair in row.items()}
    for name, row in _TABLES["scores"].items()
}
"""Scores by data set and method, in the order of the paper."""

PERPLEXITY: Mapping[str, tuple[float, float]] = {
    text: (before, after) for text, (before, after) in _TABLES["perplexity"].items()
}
"""Perplexity of CodeLlama-7B before and after training (Table 3)."""
