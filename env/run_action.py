"""Runs one program as the trainer would, and prints its reward as one JSON line.

    etpo run_action --dataset=balance_scale --action_file=runs/demo/best_code.py

The file is a run's `best_code.py`, a program that defines `build_model(x_train, y_train)`, or the
body of this function, indented or not. A body may also have the paper's form, as in
`episodes.jsonl`: it replaces `<FILL_ME>` in the prompt, where four spaces stand before its first
line. Exit code: 0 when the program was scored, 1 when it failed, 2 for bad input.
"""

import json
import sys
from pathlib import Path

from absl import flags

from env import command_line
from env.base import UsageError
from env.datasets import load_dataset
from env.execution import metrics
from env.execution.program import ProgramTemplate, template_of
from env.executor import CodeExecutor, ExecutorError, Limits
from env.isolation import CHOICES
from env.tables.loading import MAX_ROWS, RARE_CLASSES
from env.tables.splits import NUM_SPLITS
from env.tasks import answers

_DATASET = flags.DEFINE_string(
    "dataset", "balance_scale", "Table of the paper, or the path of a table of your own."
)
_ACTION_FILE = flags.DEFINE_string(
    "action_file", None, "File with the program; - reads standard input. Required."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with raw tables, see docs/tasks.md.")
_TARGET = flags.DEFINE_string("target", None, "Target column of a table of your own.")
_METRIC = flags.DEFINE_string(
    "metric",
    metrics.DEFAULT_METRIC,
    f"Score of the predictions: {', '.join(metrics.METRICS + metrics.REGRESSION_METRICS)}, or "
    "module:function.",
)
_TABLE_FORM = flags.DEFINE_enum(
    "table_form", "array", ("array", "frame"), "Form in which programs get the table."
)
_MAX_ROWS = flags.DEFINE_integer("max_rows", MAX_ROWS, "Rows kept of a table of your own.")
_HOLDOUT = flags.DEFINE_float(
    "holdout",
    None,
    "Share of the rows that is left out; default: 0.2 for a table of your own, 0 for the paper's.",
    lower_bound=0,
    upper_bound=0.9,
)
_RARE_CLASSES = flags.DEFINE_enum(
    "rare_classes", "refuse", RARE_CLASSES, "What is done with classes of too few rows."
)
_NUM_SPLITS = flags.DEFINE_integer(
    "num_splits", NUM_SPLITS, "Train/validation splits that the reward averages.", lower_bound=1
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 1, "Splits that run at the same time.", lower_bound=1
)
_TIMEOUT_S = flags.DEFINE_float("timeout_s", Limits.timeout_s, "Wall-clock seconds of one split.")
_CPU_S = flags.DEFINE_integer(
    "cpu_s", None, "Processor seconds of one split; default: half of --timeout_s."
)
_MEMORY_MB = flags.DEFINE_integer(
    "memory_mb", Limits.memory_bytes >> 20, "MiB that a program may use on top of its libraries."
)
_MAX_THREADS = flags.DEFINE_integer(
    "max_threads", Limits.max_threads, "Threads of a program beside its first."
)
_MAX_OUTPUT_KB = flags.DEFINE_integer(
    "max_output_kb", Limits.max_output_bytes >> 10, "KiB that a program may print on one split."
)
_LIBRARIES = flags.DEFINE_list(
    "libraries",
    [],
    "Modules that programs may import beyond the standard library and numpy, scipy, scikit-learn, "
    "pandas.",
)
_ISOLATION = flags.DEFINE_enum(
    "isolation",
    "auto",
    CHOICES,
    "Wall around the program; unsafe has only a process of its own. See docs/execution.md.",
)


def main() -> int:
    """Runs the program."""
    if _ACTION_FILE.value is None:
        raise UsageError("--action_file is missing: name the file with the program; - reads stdin")
    text = _read(_ACTION_FILE.value)
    dataset = load_dataset(
        _DATASET.value,
        data_dir=_DATA_DIR.value,
        target=_TARGET.value,
        max_rows=_MAX_ROWS.value,
        num_splits=_NUM_SPLITS.value,
        table_form=_TABLE_FORM.value,  # type: ignore[arg-type]
        holdout=_HOLDOUT.value,
        rare_classes=_RARE_CLASSES.value,
        regression=_METRIC.value in metrics.REGRESSION_METRICS,
    )
    template = template_of(dataset)
    try:
        with CodeExecutor(
            dataset,
            num_workers=_NUM_WORKERS.value,
            num_splits=_NUM_SPLITS.value,
            isolation=_ISOLATION.value,
            limits=Limits(
                timeout_s=_TIMEOUT_S.value,
                cpu_s=_CPU_S.value,
                memory_bytes=_MEMORY_MB.value * 2**20,
                max_threads=_MAX_THREADS.value,
                max_output_bytes=_MAX_OUTPUT_KB.value * 2**10,
            ),
            libraries=_LIBRARIES.value,
            metric=metrics.find(_METRIC.value),
            template=ProgramTemplate("", "", template.function),
        ) as executor:
            (result,) = executor.run([answers.program_of(text, template)])
            isolation = executor.isolation
    except ValueError as error:
        raise UsageError(str(error)) from None
    line = {
        "dataset": dataset.name,
        "reward": result.reward,
        "split_scores": result.split_scores,
        "error": result.error,
        "wall_s": round(result.wall_s, 4),
        "isolation": isolation,
    }
    print(json.dumps(line))
    return 1 if result.error else 0


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except FileNotFoundError:
        raise UsageError(f"--action_file={path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"--action_file={path}: not a text in UTF-8 ({error})") from None


if __name__ == "__main__":
    command_line.run(main, errors=(ExecutorError,))
