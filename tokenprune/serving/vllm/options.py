"""What a server, and a request, is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokenprune.budget import Budget
from tokenprune.config import ReductionConfig
from tokenprune.method import BUDGET, Method
from tokenprune.words import nearest, suggestion

KEY = "tokenprune"  # in --hf-overrides, and in a request's mm_processor_kwargs


@dataclass(frozen=True)
class ServingOptions:
    """Those of a server, `--hf-overrides '{"tokenprune": {"method": ..., "keep_ratio": ...}}'`.

    Attributes:
        method: a name of `list_methods()`.
        options: of the method.
        num_keep, keep_ratio: one of them; what a request without options keeps of each image.
    """

    method: str
    options: Mapping[str, Any]
    num_keep: int | None = None
    keep_ratio: float | None = None

    @staticmethod
    def of(hf_config: Any) -> ServingOptions | None:
        """Those in a model's configuration, or None where it has none.

        Raises:
            ValueError: what they must not be.
        """
        given = getattr(hf_config, KEY, None)
        if given is None:
            return None
        known = [field.name for field in fields(ServingOptions)]
        given = checked(given, known, "the server's options")
        if "method" not in given:
            raise ValueError(f"{KEY} must name a method, got {given}")
        options = given.get("options", {})
        if not isinstance(options, Mapping):
            raise ValueError(f"{KEY}.options must be an object, got {options!r}")
        try:
            config = ReductionConfig(
                given["method"], options, given.get("num_keep"), given.get("keep_ratio")
            )
        except TypeError as error:
            raise ValueError(f"{KEY}: {error}") from error
        return ServingOptions(config.method, dict(options), config.num_keep, config.keep_ratio)

    @property
    def budget(self) -> Budget:
        return Budget(self.num_keep, self.keep_ratio)

    def build(self) -> Method:
        """The method. It does not look for tokens that are not finite: an error in the engine would
        end every request, not only the one."""
        method = ReductionConfig(self.method, self.options, self.num_keep, self.keep_ratio).build()
        method = method.without_budget()
        method.strict = False
        return method

    def budget_of(self, request: Mapping[str, Any]) -> Budget:
        """The budget of a request.

        Args:
            request: its mm_processor_kwargs, with or without ours: `num_keep` or `keep_ratio`.
                What is the image processor's own is let through.

        Raises:
            ValueError: what is neither, or ours in the wrong place or misspelled.
        """
        others = [name for name in request if name != KEY]
        if misplaced := [name for name in others if name in BUDGET or nearest(name, [KEY])]:
            raise ValueError(
                f"a request's options must be inside {KEY}, as in "
                f'{{"{KEY}": {{"keep_ratio": 0.5}}}}, got {", ".join(misplaced)}'
            )
        if KEY not in request:
            return self.budget
        given = checked(request[KEY], BUDGET, "a request's options")
        try:
            return Budget(given.get("num_keep"), given.get("keep_ratio"))
        except TypeError as error:
            raise ValueError(f"{KEY}: {error}") from error

    def identity(self, budget: Budget) -> dict[str, Any]:
        """What an image's tokens depend on besides the image."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "num_keep": budget.num_keep,
            "keep_ratio": budget.keep_ratio,
        }


def checked(given: Any, known: Any, whose: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: no object, or keys that are not known.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{KEY} must be an object, got {given!r}")
    unknown = {name: value for name, value in given.items() if name not in known}
    if unknown:
        raise ValueError(
            f"{KEY}: {whose} must be among {', '.join(known)}, got "
            f"{', '.join(unknown)}{suggestion(unknown, known)}"
        )
    return dict(given)
