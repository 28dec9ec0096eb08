"""The one thread that runs the model, and those who wait for it in line.

A model answers one question at a time as fast as its machine can; two at once are each half as fast
and take twice the memory. So requests wait, a bounded number of them, and each hears how far its
own is. One whose browser is gone ends at the next crop or word.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from geollava.app.limits import Limits
from geollava.app.messages import FAULT, REFUSALS, RefusedError, public

log = logging.getLogger(__name__)

Event = dict[str, Any]
Tell = Callable[[Event], None]
ALIVE_SECONDS = 15.0  # after which a stream that has nothing to say says so


class AbandonedError(Exception):
    """Nobody waits for this work any more."""


class Desk:
    """Does work in one thread, in the order it comes.

    Args:
        names: paths that errors may hold, and what stands for them.
    """

    def __init__(self, limits: Limits, names: Mapping[str, str]) -> None:
        self.limits, self.names = limits, dict(names)
        self.waiting = 0
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="geollava-model")

    def admit(self) -> None:
        """Raises RefusedError while too many wait."""
        if self.waiting >= self.limits.waiting:
            raise RefusedError(503, "too many requests wait for the model: try again in a minute")

    async def events(
        self, work: Callable[[Tell], Event], names: Mapping[str, str] | None = None
    ) -> AsyncIterator[Event]:
        """What work tells while it is done, then what it returns or an `error`.

        Args:
            work: is given what it tells events with, which raises AbandonedError when it is to end.
            names: as of the desk, of this work alone.
        """
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Event | None]()
        gone = threading.Event()

        def say(content: Event | None) -> None:
            if not self._closed.is_set():  # else the loop may have ended
                loop.call_soon_threadsafe(told.put_nowait, content)

        def tell(content: Event) -> None:
            if gone.is_set() or self._closed.is_set():
                raise AbandonedError
            say(content)

        def run() -> None:
            try:
                tell({"stage": "begin"})
                say(work(tell))
            except AbandonedError:
                pass
            except REFUSALS as error:
                say({"error": public(error, self.names | dict(names or {}))})
            except Exception:
                log.exception("a request failed")
                say({"error": FAULT})
            finally:
                say(None)

        self.waiting += 1
        try:
            if self.waiting > 1:
                yield {"stage": "waiting", "before": self.waiting - 1}
            self._thread.submit(run)
            while True:
                try:
                    content = await asyncio.wait_for(told.get(), ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    content = {"stage": "alive"}
                if content is None:
                    return
                yield content
        finally:
            gone.set()
            self.waiting -= 1

    def close(self) -> None:
        """Ends the work at hand at its next step, and all that waits."""
        self._closed.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
