"""Program templates, which turn the body that an agent writes into a program."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class ProgramTemplate:
    """The source text around a body.

    Attributes:
      before: source before the body; the body's first line continues the last line of this text.
      after: source after the body.
      function: name of the function that the program defines. It is called with `x_train`, float64
        `[rows, features]` or a pandas DataFrame, and `y_train`, int64 `[rows]` codes or float64
        `[rows]` numbers. It returns a fitted classifier, of which `predict_proba` is called, or a
        fitted regressor, of which `predict` is called.
    """

    before: str
    after: str
    function: str

    def source(self, body: str) -> str:
        """Returns the program around `body`, a Python file that runs as it stands."""
        return f"{self.before}{body.rstrip()}{self.after}"


SIGNATURE = "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
FRAME_SIGNATURE = "def build_model(x_train: pd.DataFrame, y_train: np.ndarray):\n"
RETURN = "    return model\n"
BUILD_MODEL = ProgramTemplate(
    before=f"import numpy as np\n\n\n{SIGNATURE}    ", after=f"\n{RETURN}", function="build_model"
)
"""The template of the paper's task (Figure 6): the body assigns the classifier to `model`."""

FRAME_MODEL = ProgramTemplate(
    before=f"import numpy as np\nimport pandas as pd\n\n\n{FRAME_SIGNATURE}    ",
    after=f"\n{RETURN}",
    function="build_model",
)
"""The template of tables whose rows reach programs as a pandas DataFrame."""


def template_of(table: Any) -> ProgramTemplate:
    """Returns the template for programs on a table, see `env.execution.scoring.ScoredTable`."""
    return BUILD_MODEL if getattr(table, "frame", None) is None else FRAME_MODEL
