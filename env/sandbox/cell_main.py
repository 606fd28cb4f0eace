"""The main program of a cell, the process that runs one split of one untrusted program.

Nothing in this process is trusted once the program's first byte has been executed: the trusted side
checks every frame that it sends.
"""

import json
import os
import random
import socket
from typing import Any, NoReturn

from env.sandbox import canary, frames, wire
from env.sandbox.output import Output


def live(sock: socket.socket, output: Output) -> NoReturn:
    """Waits for a program, runs it and ends the process; `output` counts what it prints."""
    try:
        output.redirect()
        _work(sock, output)
    finally:
        # Skips the program's exit handlers, destructors and buffered output.
        os._exit(0)


def _work(sock: socket.socket, output: Output) -> None:
    job = json.loads(wire.receive(sock, wire.JOB))
    source = wire.receive(sock, wire.PROGRAM).decode()
    columns, classes = job["columns"], job["classes"]
    x_train = _receive_features(sock, wire.TRAIN_X, job["train_rows"], columns)
    label_type = "int64" if classes else "float64"
    y_train = _receive_array(sock, wire.TRAIN_Y, (job["train_rows"],), label_type)
    _seed(job["split"])
    try:
        model = _fit(source, job["function"], x_train, y_train)
        output.check()
        wire.send(sock, wire.FITTED)
        rows = job["validation_rows"]
        x_validation = _receive_features(sock, wire.VALIDATION_X, rows, columns)
        predictions = _predict(model, x_validation, (rows, classes) if classes else (rows,))
        output.check()
        wire.send(sock, wire.PREDICTIONS, predictions.reshape(-1).data.cast("B"))
    except BaseException as error:
        wire.send(sock, wire.ERROR, _describe(error))


def _receive_features(sock: socket.socket, kind: bytes, rows: int, columns: Any) -> Any:
    """Returns an array `[rows, columns]`, or a data frame where `columns` names its columns."""
    if isinstance(columns, int):
        return _receive_array(sock, kind, (rows, columns), "float64")
    return frames.decode(wire.receive(sock, kind), columns)


def _receive_array(sock: socket.socket, kind: bytes, shape: tuple[int, ...], dtype: str) -> Any:
    import numpy as np

    array = np.empty(shape, dtype)
    wire.receive_into(sock, kind, array.reshape(-1).data.cast("B"))
    return array


def _seed(split: int) -> None:
    """Seeds the random numbers of programs that name no seed.

    Sources are the generator of `random`, the global one of numpy, which scikit-learn uses, and the
    entropy of `numpy.random.default_rng()` and its relatives.
    """
    import numpy as np

    random.seed(split)
    np.random.seed(split)
    # numpy's C code looks `secrets.randbits` up under this name.
    vars(np.random.bit_generator)["randbits"] = random.Random(split).getrandbits


def _fit(source: str, function: str, x_train: Any, y_train: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
    return namespace[function](x_train, y_train)


def _predict(model: Any, x: Any, shape: tuple[int, ...]) -> Any:
    """Returns predictions as a C-contiguous float64 array.

    They are class probabilities where `shape` is `[rows, classes]`, and numbers where it is
    `[rows]`.
    """
    import numpy as np

    method = "predict_proba" if len(shape) == 2 else "predict"
    predictions = np.asarray(getattr(model, method)(x))
    if predictions.dtype.kind not in "biuf":
        raise TypeError(f"{method} returned values of type {predictions.dtype}, not numbers")
    if predictions.shape != shape:
        raise ValueError(
            f"{method} returned an array of shape {predictions.shape}, expected {shape}"
        )
    return np.ascontiguousarray(predictions, np.float64)


def _describe(error: BaseException) -> bytes:
    """Returns an exception as an ERROR payload; `__str__` may be code of the program."""
    try:
        # File name and line are left out: a prompt shows the function only.
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"{type(error).__name__}\n{message}"
        return text.encode("utf-8", "replace")[: wire.MAX_ERROR_BYTES]
    except BaseException:
        return b"Exception\nthe exception has no message"


def report(sock: socket.socket) -> NoReturn:
    """Runs the canary and sends its findings."""
    try:
        wire.send(
            sock,
            wire.REPORT,
            json.dumps({"possible": canary.succeeded(), "impossible": canary.failed()}).encode(),
        )
    finally:
        os._exit(0)
