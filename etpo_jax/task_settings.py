"""Settings of the task: the table or the task of one's own, its prompts and its score."""

import dataclasses

from env.tables.loading import RARE_CLASSES
from env.tasks.prompts import FORMATS, STYLES
from etpo_jax.settings import Section, option


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """Task: what the agent is asked to do, and how it is rewarded."""

    task: str = option(
        "",
        "Your own etpo_jax.Task as module:Class or module:function; by default the task is that of "
        "--dataset.",
    )
    dataset: str = option(
        "balance_scale",
        "Table of the code task (etpo datasets lists them), the path of a table of your own, "
        "questions:NAME for questions about a table, or toy.",
    )
    target: str | None = option(None, "Target column of a table of your own.")
    task_description: str | None = option(
        None, "Description of a table of your own for the prompt, such as 'Churn of Customers'."
    )
    data_dir: str | None = option(None, "Folder with published raw tables, see docs/tasks.md.")
    max_steps: int = option(5, "Environment steps of an episode at most.", lower=1)
    prompt_format: str = option(
        "auto",
        "Format in which prompts reach the model: infill, complete, chat (docs/tasks.md), or auto, "
        "which follows the tokenizer. The style of the code task's text may stand after a colon: "
        f"{', '.join(STYLES)}, such as infill:official for the prompts of the authors' code.",
    )
    num_splits: int = option(5, "Train/validation splits that a reward averages.", lower=1)
    metric: str = option(
        "roc_auc",
        "Score of a split: roc_auc (the paper), accuracy, log_loss, average_precision, or your own "
        "as module:function. r2, rmse and mae make the target of a table of your own a number to "
        "predict instead of a class.",
    )
    table_form: str = option(
        "array",
        "Form in which programs get a table: array, numbers alone (the paper), or frame, a pandas "
        "DataFrame with the table's own columns and types, which prompts then describe.",
        choices=("array", "frame"),
    )
    max_rows: int = option(2000, "Rows kept of a table of your own.", lower=8)
    holdout: float | None = option(
        None,
        "Share of the rows that no reward ever sees, on which the best program is scored at the "
        "end; default: 0.2 for a table of your own, 0 for the paper's.",
        lower=0,
        upper=0.9,
    )
    rare_classes: str = option(
        "refuse",
        "What is done with classes that have too few rows for the splits: refuse the table, merge "
        "them into one class, or drop their rows. With +stratify after it, as in merge+stratify, "
        "all splits keep the shares of the classes.",
        choices=RARE_CLASSES,
    )
    strict_data: bool | None = option(
        None,
        "Refuse a table if anything about it is doubtful. By default doubts are only reported, but "
        "a table of the paper must have the paper's rows; --nostrict_data accepts other rows, too.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        name, colon, style = self.prompt_format.partition(":")
        if name not in ("auto", *FORMATS) or (colon and style not in STYLES):
            raise ValueError(
                f"--prompt_format={self.prompt_format}: must be one of auto, {', '.join(FORMATS)}, "
                f"alone or with a style after a colon: {', '.join(STYLES)}"
            )

    @property
    def format_name(self) -> str:
        """The prompt format without its style; may be auto."""
        return self.prompt_format.partition(":")[0]

    @property
    def prompt_style(self) -> str:
        """The style of the code task's text; empty is the task's choice."""
        return self.prompt_format.partition(":")[2]

    @property
    def title(self) -> str:
        """Name of what is done, for messages."""
        return self.task or self.dataset
