"""The fourteen tables of the paper: source, target, classes, shape and checksum.

Shapes are those of prepared tables; Table 1 of the paper prints others in places, for reasons given
in docs/tasks.md.
"""

import dataclasses
import difflib
from typing import Literal

from env.base import UsageError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One table of the paper.

    Attributes:
      name: value of `--dataset`.
      description: fills `"Classification with a {description} Prediction Dataset"` in the prompt.
      source: "rule" (generated, equal to the table on OpenML), "openml" or "kaggle".
      source_id: OpenML data set id, or Kaggle data set or competition.
      target: column to predict.
      classes: values of the target; the position of a value is its class code.
      raw_files: names of the published file that `--data_dir` accepts, relative to it, best first.
      raw_rows: rows of the published file, on which the random stream of preparation depends.
      shape: rows and features of the prepared table.
      paper_shape: rows and features as printed in Table 1.
      checksum: `Dataset.checksum` of the prepared table; None if no trusted copy was available.
    """

    name: str
    description: str
    source: Literal["rule", "openml", "kaggle"]
    source_id: str
    target: str
    classes: tuple[str, ...]
    raw_files: tuple[str, ...]
    raw_rows: int
    shape: tuple[int, int]
    paper_shape: tuple[int, int]
    checksum: str | None

    @property
    def origin(self) -> str:
        """Name of the source and identifier of the table there."""
        return f"{'Kaggle' if self.source == 'kaggle' else 'OpenML'} {self.source_id}"


_ENTRIES = (
    Entry(
        name="pharyngitis",
        description="Pharyngitis",
        source="kaggle",
        source_id="datasets/yoshifumimiya/pharyngitis",
        target="radt",
        classes=("0", "1"),
        raw_files=("pharyngitis.csv",),
        raw_rows=676,
        shape=(512, 18),
        paper_shape=(512, 19),
        checksum="2a343b5be33d76abb01a214dfba653ed0ee01c4e9dfcc4519737e73b97506ffc",
    ),
    Entry(
        name="kidney_stone",
        description="Kidney Stone",
        source="kaggle",
        source_id="competitions/playground-series-s3e12",
        target="target",
        classes=("0", "1"),
        raw_files=("kidney_stone.csv", "kidney_stone/train.csv"),
        raw_rows=414,
        shape=(414, 6),
        paper_shape=(414, 7),
        checksum="fcbea9ed0bc42cef6e1ae628303b73a6c6ff6ac53d8d05d86084999994525efe",
    ),
    Entry(
        name="health_insurance",
        description="Health Insurance",
        source="kaggle",
        source_id="datasets/owaiskhan9654/health-insurance-lead-prediction-raw-data",
        target="Response",
        classes=("0", "1"),
        raw_files=("health_insurance.csv", "health_insurance_head.csv"),
        raw_rows=50882,
        shape=(2000, 12),
        paper_shape=(2000, 13),
        checksum="0b716bdbe51b543bebbbbf3894ea4e903c10176ccefda42bbe3d02110937c9ef",
    ),
    Entry(
        name="spaceship_titanic",
        description="Spaceship Titanic",
        source="kaggle",
        source_id="competitions/spaceship-titanic",
        target="Transported",
        classes=("False", "True"),
        raw_files=(
            "spaceship_titanic.csv",
            "spaceship_titanic/train.csv",
            "spaceship_titanic_head.csv",
        ),
        raw_rows=8693,
        shape=(2000, 12),
        paper_shape=(2000, 13),
        checksum="0e76c38c20a88dcf807990be2d97526b9bf67b6fe281305307c352548b9e584e",
    ),
    Entry(
        name="airlines",
        description="Airlines",
        source="openml",
        source_id="1169",
        target="Delay",
        classes=("0", "1"),
        raw_files=("airlines.arff", "airlines_5pct_sample.arff"),
        raw_rows=539383,
        shape=(2000, 7),
        paper_shape=(2000, 7),
        checksum=None,
    ),
    Entry(
        name="balance_scale",
        description="Balance Scale Weight & Distance",
        source="rule",
        source_id="11",
        target="class",
        classes=("L", "B", "R"),
        raw_files=("balance-scale.arff",),
        raw_rows=625,
        shape=(125, 4),
        paper_shape=(125, 4),
        checksum="445ab1812ba4e9920c12957e29d3972796746b40fc6965230fd0363556f72cf9",
    ),
    Entry(
        name="breast_w",
        description="Breast Cancer Wisconsin",
        source="openml",
        source_id="15",
        target="Class",
        classes=("benign", "malignant"),
        raw_files=("breast-w.arff",),
        raw_rows=699,
        shape=(69, 9),
        paper_shape=(69, 9),
        checksum="0ee1647ff234e87cf66764e8b7aaf582d97d33a028fd636c64ed3352ec21d658",
    ),
    Entry(
        name="cmc",
        description="National Indonesia Contraceptive Prevalence",
        source="openml",
        source_id="23",
        target="Contraceptive_method_used",
        classes=("1", "2", "3"),
        raw_files=("cmc.arff",),
        raw_rows=1473,
        shape=(1473, 9),
        paper_shape=(1473, 9),
        checksum="c062ed96709eeb6fdcbdd6a803a17d18cf45106b290dfa6a0f001e613a46ddc8",
    ),
    Entry(
        name="credit_g",
        description="German Credit",
        source="openml",
        source_id="31",
        target="class",
        classes=("good", "bad"),
        raw_files=("credit-g.arff",),
        raw_rows=1000,
        shape=(1000, 20),
        paper_shape=(1000, 20),
        checksum="d13a01566d742d382675b9666c7a9c55750ffcddf52ba64276c38bd03e5007d0",
    ),
    Entry(
        name="diabetes",
        description="Diabetes",
        source="openml",
        source_id="37",
        target="class",
        classes=("tested_negative", "tested_positive"),
        raw_files=("diabetes.arff",),
        raw_rows=768,
        shape=(768, 8),
        paper_shape=(768, 8),
        checksum="731c5fea9dcf531eb528e2d06f17c7f392182a0ad7bb1291898ff08b564ef104",
    ),
    Entry(
        name="eucalyptus",
        description="Eucalyptus Soil Conservation",
        source="openml",
        source_id="188",
        target="Utility",
        classes=("none", "low", "average", "good", "best"),
        raw_files=("eucalyptus.arff",),
        raw_rows=736,
        shape=(641, 19),
        paper_shape=(736, 19),
        checksum="57e3470784dfabec30ea55da97ca8b40083ab72f3cd68fe043920659d0af3e7c",
    ),
    Entry(
        name="jungle_chess",
        description="Jungle Chess",
        source="openml",
        source_id="41027",
        target="class",
        classes=("w", "b", "d"),
        raw_files=("jungle_chess_2pcs_raw_endgame_complete.arff",),
        raw_rows=44819,
        shape=(2000, 6),
        paper_shape=(2000, 6),
        checksum="2dd50236768f9664defd5633460494bebce09c78402cab622931b09c82e9020f",
    ),
    Entry(
        name="pc1",
        description="PC1 Software Defect",
        source="openml",
        source_id="1068",
        target="defects",
        classes=("false", "true"),
        raw_files=("pc1.arff",),
        raw_rows=1109,
        shape=(1109, 21),
        paper_shape=(1109, 21),
        checksum="614dd2b50b6f2cbe0ebd77f6244aa4c71775818a6a720b595c6d4cdf5f793ea3",
    ),
    Entry(
        name="tic_tac_toe",
        description="Tic-Tac-Toe Endgame",
        source="rule",
        source_id="50",
        target="Class",
        classes=("negative", "positive"),
        raw_files=("tic-tac-toe.arff",),
        raw_rows=958,
        shape=(95, 9),
        paper_shape=(95, 9),
        checksum="fe15bb2f299ef899deb25e54cf06ae1b5ab9727de266430f182395beb6eea2e5",
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""The tables by name, in the order of the paper's Table 1."""


def find(name: str) -> Entry:
    """Returns the entry of that name; an unknown one raises `UsageError` with the nearest name."""
    if name in REGISTRY:
        return REGISTRY[name]
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {' '.join(REGISTRY)}"
    raise UsageError(f"unknown data set {name!r}; {hint} (or csv:PATH with --target=COLUMN)")
