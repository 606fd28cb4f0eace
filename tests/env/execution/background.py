"""Programs that are executed while a test does something else."""

import concurrent.futures
import threading

from env.executor import CodeExecutor


def run_in_background(executor: CodeExecutor, bodies: list[str]) -> concurrent.futures.Future:
    """Executes bodies in a thread that never keeps the tests from ending."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(executor.run(bodies))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
