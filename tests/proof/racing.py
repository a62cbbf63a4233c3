"""Threads that stay for all rounds: they start each round together, and their answers come back in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from sqlalchemy import make_url

from agentcredits.errors import CreditsError

PATIENCE_SECONDS = 120


def kind_of(url: str) -> str:
    """The name that the report gives a database: sqlite or postgresql."""
    return make_url(url).get_backend_name()


class Racers:
    """``with Racers(64) as racers: racers.race(act)`` runs ``act(place)`` in 64 threads at once, as often as wanted."""

    def __init__(self, count: int) -> None:
        self._gate = threading.Barrier(count + 1)
        self._act: Callable[[int], Any] | None = None
        self._results: list[Any] = [None] * count
        self._threads = [threading.Thread(target=self._run, args=(place,), daemon=True) for place in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # A thread may hang, and the error matters more.
            self._gate.abort()
            return
        self._act = None
        self._gate.wait(PATIENCE_SECONDS)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _run(self, place: int) -> None:
        while True:
            self._gate.wait()
            if self._act is None:
                return
            try:
                self._results[place] = self._act(place)
            except BaseException as error:  # noqa: BLE001  # raised again in the main thread, or judged there
                self._results[place] = error
            self._gate.wait()

    def race(self, act: Callable[[int], Any]) -> list[Any]:
        """Results and credit errors in order; any other error is raised."""
        self._act = act
        self._gate.wait(PATIENCE_SECONDS)
        self._gate.wait(PATIENCE_SECONDS)
        for result in self._results:
            if isinstance(result, BaseException) and not isinstance(result, CreditsError):
                raise result
        return list(self._results)
