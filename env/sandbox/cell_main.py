"""What happens inside a cell: one split of one program.

All of this runs in the process of the program. Nothing here is trusted once the program's first
byte has been executed; the trusted side believes none of the frames that come from here.
"""

import json
import os
import random
import socket
from typing import Any, NoReturn

from env.sandbox import canary, wire
from env.sandbox.output import Output


def live(sock: socket.socket, output: Output) -> NoReturn:
    """Waits for a program, runs it and ends; what it prints goes to `output`."""
    try:
        output.redirect()
        _work(sock, output)
    finally:
        # Without the program's exit handlers, destructors and buffered output.
        os._exit(0)


def _work(sock: socket.socket, output: Output) -> None:
    job = json.loads(wire.receive(sock, wire.JOB))
    source = wire.receive(sock, wire.PROGRAM).decode()
    x_train = _receive_array(sock, wire.TRAIN_X, (job["train_rows"], job["columns"]), "float64")
    y_train = _receive_array(sock, wire.TRAIN_Y, (job["train_rows"],), "int64")
    _seed(job["split"])
    try:
        model = _fit(source, job["function"], x_train, y_train)
        output.check()
        wire.send(sock, wire.FITTED)
        shape = (job["validation_rows"], job["columns"])
        x_validation = _receive_array(sock, wire.VALIDATION_X, shape, "float64")
        predictions = _predict(model, x_validation, job["classes"])
        output.check()
        wire.send(sock, wire.PREDICTIONS, predictions.reshape(-1).data.cast("B"))
    except BaseException as error:
        wire.send(sock, wire.ERROR, _describe(error))


def _receive_array(sock: socket.socket, kind: bytes, shape: tuple[int, ...], dtype: str) -> Any:
    import numpy as np

    array = np.empty(shape, dtype)
    wire.receive_into(sock, kind, array.reshape(-1).data.cast("B"))
    return array


def _seed(split: int) -> None:
    """Seeds what a program draws from without naming a seed.

    That is the generator of `random`, the global one of numpy, which is scikit-learn's, and what
    `numpy.random.default_rng()` and its relatives take for entropy.
    """
    import numpy as np

    random.seed(split)
    np.random.seed(split)
    # Where numpy's C code looks `secrets.randbits` up.
    vars(np.random.bit_generator)["randbits"] = random.Random(split).getrandbits


def _fit(source: str, function: str, x_train: Any, y_train: Any) -> Any:
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "<program>", "exec", dont_inherit=True), namespace)
    return namespace[function](x_train, y_train)


def _predict(model: Any, x: Any, num_classes: int) -> Any:
    """Class probabilities as a C-contiguous float64 array `[rows, num_classes]`."""
    import numpy as np

    rows = len(x)
    predictions = np.asarray(model.predict_proba(x))
    if predictions.dtype.kind not in "biuf":
        raise TypeError(f"predict_proba returned values of type {predictions.dtype}, not numbers")
    if predictions.shape != (rows, num_classes):
        raise ValueError(
            f"predict_proba returned an array of shape {predictions.shape}, "
            f"expected {(rows, num_classes)}"
        )
    return np.ascontiguousarray(predictions, np.float64)


def _describe(error: BaseException) -> bytes:
    """The exception as an ERROR payload; its own code (`__str__`) belongs to the program."""
    try:
        # The name of the file and the line in it mean nothing to whoever sees the function only.
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"{type(error).__name__}\n{message}"
        return text.encode("utf-8", "replace")[: wire.MAX_ERROR_BYTES]
    except BaseException:
        return b"Exception\nthe exception has no message"


def report(sock: socket.socket) -> NoReturn:
    """Proves the walls from inside: sends what is possible and should not be, and the reverse."""
    try:
        wire.send(
            sock,
            wire.REPORT,
            json.dumps({"possible": canary.succeeded(), "impossible": canary.failed()}).encode(),
        )
    finally:
        os._exit(0)
