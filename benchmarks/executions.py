"""Cost of executing programs: latency, throughput, memory and recovery, for each isolation tier.

    python -m benchmarks.executions
    python -m benchmarks.executions --tiers=seccomp --num_workers=8
    python -m benchmarks.executions --what=forms

Prints tables in Markdown. Times are medians. Processor time counts the executor's processes and the
trusted side. The column "in process" is the published procedure in one process. `forms` compares
programs on data frames with programs on arrays of the same rows, which take turns.
"""

import contextlib
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
from absl import flags

from env import command_line, isolation
from env.base import UsageError
from env.datasets import Dataset, load_dataset
from env.execution.scoring import ScoredTable
from env.executor import CodeExecutor, ExecutorError
from env.tables.splits import split_rows
from env.tasks import prompts

_WHAT = flags.DEFINE_list("what", ["tiers", "forms"], "What is measured: tiers, forms.")
_TIERS = flags.DEFINE_list("tiers", [], "Isolation tiers; default: all that this machine has.")
_DATASET = flags.DEFINE_string("dataset", "balance_scale", "Data set that programs are scored on.")
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count() or 1, "Programs that run at the same time.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer("repeats", 20, "Executions per latency.", lower_bound=3)

PROGRAMS = {
    "syntax error": "model = = 1",
    "constant model": """\
from sklearn.dummy import DummyClassifier
    model = DummyClassifier().fit(x_train, y_train)""",
    "logistic regression": """\
from sklearn.linear_model import LogisticRegression
    model = LogisticRegression().fit(x_train, y_train)""",
    "random forest": """\
from sklearn.ensemble import RandomForestClassifier
    model = RandomForestClassifier(random_state=0).fit(x_train, y_train)""",
}
IN_FLIGHT = (1, 8, 64, 256)
_NUM_SPLITS = 5


def main() -> int:
    """Measures what is asked for and prints the tables."""
    for name in _WHAT.value:
        if name not in _TABLES:
            raise UsageError(f"--what={name}: must be among {', '.join(_TABLES)}")
    for name in _WHAT.value:
        _TABLES[name]()
    return 0


def _compare_tiers() -> None:
    dataset = load_dataset(_DATASET.value)
    tiers = _TIERS.value or [tier for tier in isolation.TIERS if not isolation.probe(tier)]
    print(
        f"{dataset.name}, {len(dataset.labels)} rows, {_NUM_SPLITS} splits;"
        f" {os.cpu_count()} cores, {_NUM_WORKERS.value} workers, Python {sys.version.split()[0]}\n"
    )
    columns = {"in process": _reference(dataset)} | {
        tier: _measure(tier, dataset) for tier in tiers
    }
    rows = list(columns[tiers[0]])
    print(f"| | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for row in rows:
        print(f"| {row} | {' | '.join(column.get(row, '') for column in columns.values())} |")
    print()


def _reference(dataset: Dataset) -> dict[str, str]:
    """The published procedure without any isolation, on one thread."""
    import sklearn.ensemble  # noqa: F401 - the time to import it is not what is measured
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    def run(body: str) -> None:
        for seed in range(_NUM_SPLITS):
            train, validation = split_rows(len(dataset.labels), seed)
            namespace: dict = {}
            exec(prompts.program(body), namespace)
            model = namespace["build_model"](dataset.features[train], dataset.labels[train])
            p = model.predict_proba(dataset.features[validation])
            scores = p[:, 1] if p.shape[1] == 2 else p
            roc_auc_score(dataset.labels[validation], scores, multi_class="ovo")

    column = {}
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, body in list(PROGRAMS.items())[1:]:
            run(body)
            column[f"{name}, ms"] = f"{1e3 * _median(lambda body=body: run(body)):.1f}"
            start = time.process_time()
            run(body)
            cpu_ms = 1e3 * (time.process_time() - start) / _NUM_SPLITS
            column[f"{name}, processor ms per split"] = f"{cpu_ms:.1f}"
    return column


def _measure(tier: str, dataset: Dataset) -> dict[str, str]:
    column = {}
    before_bytes = psutil.virtual_memory().available
    start = time.perf_counter()
    with CodeExecutor(
        dataset,
        num_workers=_NUM_WORKERS.value,
        timeout_s=60.0,
        memory_bytes=2**30,
        isolation=tier,
    ) as executor:
        executor.run([PROGRAMS["syntax error"]])
        column["start to first result, ms"] = f"{1e3 * (time.perf_counter() - start):.0f}"
        executor.run(list(PROGRAMS.values()))
        for name, body in PROGRAMS.items():
            start_s = _processor_s()
            column[f"{name}, ms"] = f"{1e3 * _median(lambda body=body: executor.run([body])):.1f}"
            time.sleep(0.2)
            per_run_ms = 1e3 * (_processor_s() - start_s) / _REPEATS.value
            num_cells = 1 if name == "syntax error" else _NUM_SPLITS
            column[f"{name}, processor ms per split"] = f"{per_run_ms / num_cells:.1f}"
        for in_flight in IN_FLIGHT:
            rate, peak_bytes = _throughput(executor, in_flight, before_bytes)
            column[f"logistic regressions per s, {in_flight} in flight"] = f"{rate:.1f}"
        column[f"memory, {IN_FLIGHT[-1]} in flight, MB"] = f"{peak_bytes / 1e6:.0f}"
        column["back after a killed worker, ms"] = f"{1e3 * _recovery_s(executor):.0f}"
    column["late at a wall limit of 1 s, ms"] = f"{1e3 * _lateness_s(tier, dataset):.0f}"
    return column


def _median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _throughput(executor: CodeExecutor, in_flight: int, before_bytes: int) -> tuple[float, int]:
    """Executions per second with `in_flight` waiting, and the most memory that they take."""
    body = PROGRAMS["logistic regression"]
    rounds = max(1, 64 // in_flight)
    lowest = [psutil.virtual_memory().available]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            lowest.append(psutil.virtual_memory().available)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    for _ in range(rounds):
        executor.run([body] * in_flight)
    elapsed_s = time.perf_counter() - start
    is_over.set()
    watcher.join()
    return rounds * in_flight / elapsed_s, before_bytes - min(lowest)


def _recovery_s(executor: CodeExecutor) -> float:
    """Seconds from the death of all workers to the next result."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # cells die with their zygote
            process.kill()
    start = time.perf_counter()
    executor.run([PROGRAMS["constant model"]])
    return time.perf_counter() - start


def _lateness_s(tier: str, dataset: Dataset) -> float:
    with CodeExecutor(
        dataset, num_workers=1, timeout_s=1.0, memory_bytes=2**30, isolation=tier
    ) as executor:
        executor.run([PROGRAMS["syntax error"]])
        start = time.perf_counter()
        executor.run(["import time; time.sleep(60)"])
        return time.perf_counter() - start - 1.0


def _processor_s() -> float:
    """Processor seconds of this process and of all descendants, ended ones included."""
    own = os.times()
    total_s = own.user + own.system
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total_s += sum(process.cpu_times()[:4])  # also of its children that have ended
    return total_s


_NUM_ROWS = 1000
_KINDS = {"numbers": 8, "whole numbers": 4, "dates": 2, "texts of five values": 4, "free texts": 2}

FORM_PROGRAMS = {
    "constant model": (PROGRAMS["constant model"], PROGRAMS["constant model"]),
    "gradient boosting": (
        """from sklearn.ensemble import HistGradientBoostingClassifier
    model = HistGradientBoostingClassifier(max_iter=20).fit(x_train, y_train)""",
        """from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder
    codes = OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1)
    days = FunctionTransformer(lambda frame: frame.astype('int64'))
    model = make_pipeline(make_column_transformer(
        (codes, x_train.select_dtypes('object').columns),
        (days, x_train.select_dtypes('datetime').columns),
        remainder='passthrough'), HistGradientBoostingClassifier(max_iter=20))
    model.fit(x_train, y_train)""",
    ),
}
"""The same model on arrays, where texts and dates are numbers already, and on data frames."""


def _compare_forms() -> None:
    """Runs the same models on the same rows in both forms, turn by turn."""
    array, frame = _same_rows()
    kinds = ", ".join(f"{count} {kind}" for kind, count in _KINDS.items())
    print(f"{_NUM_ROWS} rows of {kinds}; {_NUM_WORKERS.value} workers, {_REPEATS.value} turns\n")
    options = {"num_workers": _NUM_WORKERS.value, "timeout_s": 60.0, "memory_bytes": 2**30}
    print("| per split | array | frame | difference |\n|---|---:|---:|---:|")
    with CodeExecutor(array, **options) as of_array, CodeExecutor(frame, **options) as of_frame:
        for name, bodies in FORM_PROGRAMS.items():
            for what, measure in (("ms", _wall_s), ("processor ms", _cpu_s)):
                turns = [
                    [measure(executor, body) for executor, body in zip(pair, bodies, strict=True)]
                    for pair in [(of_array, of_frame)] * (_REPEATS.value + 1)
                ][1:]  # the first turn also starts the processes
                ms = [[1e3 * s / _NUM_SPLITS for s in turn] for turn in turns]
                a, b = (statistics.median(column) for column in zip(*ms, strict=True))
                difference = statistics.median(second - first for first, second in ms)
                print(f"| {name}, {what} | {a:.1f} | {b:.1f} | {difference:+.1f} |")


def _same_rows() -> tuple[ScoredTable, ScoredTable]:
    """A table with columns of all kinds, as arrays and as a data frame."""
    rng = np.random.default_rng(0)
    labels = np.arange(_NUM_ROWS) % 2
    words = [f"word {i} of a free text" for i in range(_NUM_ROWS)]
    columns = {
        "numbers": lambda: rng.normal(size=_NUM_ROWS),
        "whole numbers": lambda: rng.integers(0, 100, _NUM_ROWS),
        "dates": lambda: (
            rng.integers(0, 20_000, _NUM_ROWS).astype("datetime64[D]").astype("M8[ns]")
        ),
        "texts of five values": lambda: rng.choice(
            ["red", "green", "blue", "black", None], _NUM_ROWS
        ),
        "free texts": lambda: rng.permutation(words),
    }
    data = {f"{kind} {i}": columns[kind]() for kind, count in _KINDS.items() for i in range(count)}
    series = [
        pd.Series(values, dtype=object if values.dtype.kind in "UO" else values.dtype)
        for values in data.values()
    ]
    frame = pd.concat(series, axis=1, keys=data)
    coded = [pd.factorize(values)[0] if values.dtype == object else values for values in series]
    features = np.stack([np.asarray(values).astype(np.float64) for values in coded], axis=1)
    return ScoredTable(features, labels), ScoredTable(features, labels, frame)


def _wall_s(executor: CodeExecutor, body: str) -> float:
    start = time.perf_counter()
    (result,) = executor.run([body])
    if result.error:
        raise ExecutorError(result.error)
    return time.perf_counter() - start


def _cpu_s(executor: CodeExecutor, body: str) -> float:
    start = _processor_s()
    executor.run([body])
    time.sleep(0.1)  # ended processes are counted once their zygote has noticed
    return _processor_s() - start


_TABLES = {"tiers": _compare_tiers, "forms": _compare_forms}

if __name__ == "__main__":
    command_line.run(main, errors=(ValueError, ExecutorError))
