"""How visual tokens become fewer: crop by crop in the model, then with each question in mind."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from geollava.model.configuration import NO_REDUCTION, GeoLlavaConfig
from geollava.model.token_reduction import check_method, host_methods

# Sessions may share a model: what one has it do must not reach the other.
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locking = threading.Lock()


@dataclass(frozen=True)
class Reduction:
    """What is done to the visual tokens of a scene.

    Attributes:
        method, num_keep: of each crop, whatever is asked: the model's `reduction_method`.
        asked_method, asked_keep: of what that leaves, so many per crop on average, chosen anew for
            each question by `tokenprune.apply`; None where nothing is.
    """

    method: str
    num_keep: int
    asked_method: str | None = None
    asked_keep: int | None = None

    @classmethod
    def choose(
        cls, config: GeoLlavaConfig, method: str | None = None, num_keep: int | None = None
    ) -> Reduction:
        """The reduction of a name and a number per crop; None is as the configuration says.

        Raises:
            ValueError: no such method, or a number that it cannot keep.
        """
        own = config.num_keep
        if method in host_methods():
            if num_keep is None or not 1 <= num_keep <= own:
                raise ValueError(
                    f"the method {method} needs a number of tokens to keep per crop, from 1 to the "
                    f"{own} that the model keeps before the question is read, got {num_keep}"
                )
            return cls(config.reduction_method, own, method, num_keep)
        if method is not None:
            check_method(method, also=host_methods())
        chosen = copy.deepcopy(config)
        chosen.reduction_method = method or config.reduction_method
        if num_keep is not None:
            chosen.num_keep = num_keep
        elif method == NO_REDUCTION:
            chosen.num_keep = config.tokens_per_crop
        chosen.check()
        return cls(chosen.reduction_method, chosen.num_keep)

    @property
    def name(self) -> str:
        """As the command line takes it."""
        return self.asked_method or self.method

    @contextmanager
    def in_effect(self, model: Any) -> Iterator[None]:
        """The model reduces crops this way in the block, of which one runs at a time per model.

        Raises:
            ValueError: a model in training mode, whose dropout would have its say.
        """
        if model.training:
            raise ValueError("the model must be in evaluation mode: call model.eval()")
        with _locking:
            lock = _locks.setdefault(model, threading.RLock())
        config = model.config
        with lock:
            before = config.reduction_method, config.num_keep
            config.reduction_method, config.num_keep = self.method, self.num_keep
            try:
                yield
            finally:
                config.reduction_method, config.num_keep = before
