"""Program templates, which turn the body that an agent writes into a program."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ProgramTemplate:
    """The source text around a body.

    Attributes:
      before: source before the body; the body's first line continues the last line of this text.
      after: source after the body.
      function: name of the function that the program defines. It is called with `x_train`, float64
        `[rows, features]`, and `y_train`, int64 `[rows]`, and returns a fitted classifier, of which
        `predict_proba` is called.
    """

    before: str
    after: str
    function: str

    def source(self, body: str) -> str:
        """Returns the program around `body`, a Python file that runs as it stands."""
        return f"{self.before}{body.rstrip()}{self.after}"


SIGNATURE = "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
RETURN = "    return model\n"
BUILD_MODEL = ProgramTemplate(
    before=f"import numpy as np\n\n\n{SIGNATURE}    ", after=f"\n{RETURN}", function="build_model"
)
"""The template of the paper's task (Figure 6): the body assigns the classifier to `model`."""
