"""Cost of executing programs: latency, throughput, memory and recovery, for each isolation tier.

    python -m benchmarks.executions
    python -m benchmarks.executions --tiers=seccomp --num_workers=8

Prints a table in Markdown. Times are medians. Processor time counts the executor's processes and
the trusted side. The column "in process" is the published procedure in one process.
"""

import contextlib
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]
from absl import flags

from env import command_line, isolation
from env.datasets import Dataset, load_dataset
from env.executor import CodeExecutor
from env.tables.splits import split_rows
from env.tasks import prompts

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
    """Measures every tier and prints the table."""
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
    return 0


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


if __name__ == "__main__":
    command_line.run(main, errors=(ValueError,))
