"""What JAX compiles while a run starts, and how long it takes."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from jax import monitoring

_COMPILATION = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Context that counts compilations and reports those that take long.

    Attributes:
      count: programs that were compiled or read from the cache on the disk.
      from_cache: those of them that were read from the cache.
      seconds: time that this took, without the tracing of the programs.
      on_start: called with the name of each program when its compilation starts.
    """

    def __init__(self, say: Callable[[str], None], *, patience_s: float = 2.0) -> None:
        """Nothing is reported before the context is entered.

        Args:
          say: gets a line when a compilation has taken `patience_s`, from a thread, and a line
            when that compilation is done.
          patience_s: seconds.
        """
        self.count = self.from_cache = 0
        self.seconds = 0.0
        self._began = time.monotonic()
        self.on_start: Callable[[str], None] = lambda name: None
        self._say = say
        self._patience_s = patience_s
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        monitoring.register_scalar_listener(self._start)
        monitoring.register_event_duration_secs_listener(self._end)
        monitoring.register_event_listener(self._note_event)
        return self

    def __exit__(self, *exception: object) -> None:
        monitoring.unregister_scalar_listener(self._start)
        monitoring.unregister_event_duration_listener(self._end)
        monitoring.unregister_event_listener(self._note_event)
        self._cancel()

    def summary(self) -> str:
        """Time since the start: "14.2 s, 11.0 s of it compiling 35 programs"."""
        elapsed = time.monotonic() - self._began
        cached = f" ({self.from_cache} from the cache)" if self.from_cache else ""
        return (
            f"{elapsed:.1f} s, {self.seconds:.1f} s of it compiling {self.count} programs{cached}"
        )

    def _start(self, event: str, value: float, **facts: Any) -> None:
        if event == _COMPILATION:
            name = _name(facts)
            self._cancel()
            self._timer = threading.Timer(self._patience_s, self._say, [f"{name} ..."])
            self._timer.daemon = True
            self._timer.start()
            self.on_start(name)

    def _end(self, event: str, duration_secs: float, **facts: Any) -> None:
        if event == _COMPILATION:
            self._cancel()
            self.count += 1
            self.seconds += duration_secs
            if duration_secs >= self._patience_s:
                self._say(f"{_name(facts)} took {duration_secs:.1f} s")

    def _note_event(self, event: str, **facts: Any) -> None:
        self.from_cache += event == _CACHE_HIT

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _name(facts: dict[str, Any]) -> str:
    """Name of a compiled function, without the `jit(...)` around it."""
    name = str(facts.get("fun_name", "a program"))
    return name.removeprefix("jit(").removesuffix(")").lstrip("_")
