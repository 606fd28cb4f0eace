"""Published results of the paper (arXiv 2402.06700, Tables 2 to 5), for comparison with ours.

A score is the ROC AUC of the best program of one run, with the deviation over its five splits; the
paper gives neither seeds nor intervals.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Score(NamedTuple):
    """Mean and standard deviation over the five splits of the best program."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.3f}"


GPT_4, REFLECTION, PPO_KL, ETPO = "GPT-4 reflection", "reflection", "PPO-KL", "ETPO"
DISCOUNTED, ONE_STEP, CAAFE = "ETPO(DISC.)", "ETPO(1-STEP)", "CAAFE (GPT-4)"

_COLUMNS = (GPT_4, REFLECTION, PPO_KL, ETPO, DISCOUNTED, ONE_STEP, CAAFE)
# Mean and deviation per column: Table 2, the two ablations of Table 4, CAAFE of Table 5.
_ROWS: Mapping[str, str] = {
    "pharyngitis": ".6902 .008 .7129 .010 .7134 .009 .7317 .006 .7134 .009 .7357 .007 .7078 .040",
    "kidney_stone": ".7833 .019 .7825 .018 .7840 .015 .7881 .011 .7881 .011 .7861 .012 .7903 .040",
    "health_insurance": ".5826 .008 .5725 .014 .5849 .015 .5995 .011 .5849 .015 .5829 .016 "
    ".5748 .020",
    "spaceship_titanic": ".8532 .015 .8524 .015 .8575 .011 .8578 .015 .8574 .013 .8597 .013 "
    ".8405 .020",
    "airlines": ".6495 .013 .6476 .012 .6549 .011 .6580 .011 .6540 .011 .6564 .010 .6203 .040",
    "balance_scale": ".8833 .043 .8833 .043 .8833 .043 .9289 .038 .8966 .066 .9020 .043 .882 .260",
    "breast_w": ".9944 .004 .9941 .003 .9948 .003 .9948 .003 .9948 .003 .9941 .004 .9809 .020",
    "cmc": ".6940 .006 .7158 .006 .7278 .005 .7306 .003 .7278 .005 .7296 .004 .7393 .020",
    "credit_g": ".7883 .024 .7799 .021 .7850 .025 .7875 .023 .7850 .025 .7868 .024 .7832 .030",
    "diabetes": ".8327 .009 .8321 .009 .8322 .014 .8329 .008 .8327 .009 .8327 .009 .8425 .030",
    "eucalyptus": ".8960 .006 .8961 .004 .8961 .004 .8973 .006 .8961 .004 .8961 .004 .9319 .000",
    "jungle_chess": ".9100 .005 .9097 .006 .9107 .008 .9216 .007 .9100 .005 .9108 .006 .9453 .010",
    "pc1": ".8489 .009 .8414 .019 .8470 .021 .8492 .016 .8470 .021 .8468 .020 .9093 .010",
    "tic_tac_toe": ".7560 .039 .7304 .057 .7356 .036 .7483 .032 .7334 .033 .7314 .060 .9536 .060",
}


def _scores(row: str) -> dict[str, Score]:
    numbers = [float(text) for text in row.split()]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return {name: Score(*pair) for name, pair in zip(_COLUMNS, pairs, strict=True)}


SCORES: Mapping[str, Mapping[str, Score]] = {name: _scores(row) for name, row in _ROWS.items()}
"""Scores by data set and method, in the order of the paper."""

PERPLEXITY: Mapping[str, tuple[float, float]] = {
    "Github": (2.0633, 2.0648),
    "Wikitext": (5.9850, 5.9874),
    "arXiv": (3.5768, 3.5787),
}
"""Perplexity of CodeLlama-7B before and after training (Table 3)."""
