"""Method: the one hook that a token-reduction method implements."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch

from tokenprune.ops.common.checks import check_finite, check_num_keep
from tokenprune.plugins import load_plugin, plugin_names, working_plugins
from tokenprune.tokens import ReducedTokens, VisionTokens

# Fields of `VisionTokens` that a vision tower gives: of a layer that the method names, and others.
OF_TOWER_LAYER = ("keys", "queries", "hidden_states")
OF_TOWER = ("cls", "attention", *OF_TOWER_LAYER)


@dataclass(kw_only=True)
class Method(ABC):
    """A way to turn [B, N, D] vision tokens into [B, num_keep, D].

    A method is a dataclass of options with one hook, `_reduce`, in a file of its own in
    `tokenprune/methods/`; the file's name is the method's name. Other packages add theirs by an
    entry point in the group `tokenprune.methods`, name = "package.module:Class".

    Attributes:
        needs: the fields of `VisionTokens` that it cannot do without: "cls", "attention", "keys",
            "queries", "hidden_states", "text"; or "layers", those of a language model, see
            `LayerMethod`. A host that cannot hand one of them over refuses the method by name.
        tower_layers: for "keys", "queries" and "hidden_states" among `needs`, the layers of the
            vision tower that they are read from, counted as Python's lists count: -2 is the second
            last. Keys and queries are read from one layer each.
        query_agnostic: the result depends on the image alone, so that a prefix cache may hold it
            for the next question.
        merges: tokens are averaged, not only dropped.
        uses_grid: the result depends on which tokens lie beside and below which. A host whose
            tokens are no grid, as they are after another reduction, refuses the method by name; to
            all others it hands them as a grid of one row.
        paper: arXiv number; None for a method without a paper.
        approximates: in what the method departs from its paper's official code, in a few words;
            None where it does not depart, or has no paper. An option that lifts a departure changes
            the method's own value, see `declare`.
        strict: raise on tokens that are not finite. Costs one more read, and a synchronization on
            GPUs.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    query_agnostic: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    uses_grid: ClassVar[bool] = False
    paper: ClassVar[str | None] = None
    approximates: ClassVar[str | None] = None
    strict: bool = True

    def reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        """Reduces each crop to `num_keep` tokens.

        Args:
            tokens: B crops of N tokens.
            num_keep: tokens to keep per crop, 1 to N.

        Raises:
            ValueError: `num_keep` out of range, tokens that are not finite (when strict), or
                something that the method needs and the tokens do not carry.
        """
        if not isinstance(tokens, VisionTokens):
            raise TypeError(f"tokens must be VisionTokens, got {type(tokens).__name__}")
        check_num_keep(num_keep, tokens.features.shape[1])
        for name in self.needs:
            if getattr(tokens, name) is None:
                needed = f"VisionTokens.{name}"
                raise ValueError(f"{type(self).__name__} needs {needed}, got {needed} = None")
        wanted, given = self.tower_layers.get("hidden_states", ()), tokens.layer_outputs
        if not set(wanted) <= set(given):
            raise ValueError(
                f"{type(self).__name__} needs VisionTokens.hidden_states of the layers "
                f"{list(wanted)}, got those of {list(given)}"
            )
        if self.strict:
            check_finite(**tokens.tensors())
        # Scores decide what is kept: autocast must not round them to 8 bits of mantissa.
        with torch.autocast(tokens.features.device.type, enabled=False):
            return self._reduce(tokens, num_keep)

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        """The rows that come out of a crop, extra ones included, before the crop is known.

        Args:
            num_tokens: N, tokens of the crop.
            num_keep: the budget, 1 to N.

        Returns:
            The number of rows, `num_keep` by default; None where it depends on the data.
        """
        return num_keep

    def known_count(self, num_tokens: int, num_keep: int) -> int:
        """As `count`, for callers that must lay rows out before they come.

        Raises:
            NotImplementedError: the number depends on the data.
        """
        count = self.count(num_tokens, num_keep)
        if count is None:
            raise NotImplementedError(
                f"how many tokens {type(self).__name__} keeps depends on the image, "
                "the number is not known before it is encoded"
            )
        return count

    def declare(self, **declarations: Any) -> None:
        """Sets what is declared of a class elsewhere, where it depends on a method's options.

        Hosts read `needs`, `tower_layers`, `approximates` and the like from the method itself.
        """
        vars(self).update(declarations)

    @abstractmethod
    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        """The method itself, on arguments that `reduce` has checked."""


class Cut(NamedTuple):
    """Where tokens leave: before layer `before`, by the attention of layer `ranked_in`, from 0.

    `ranked_in` is at most `before`: the attention of the very layer is read ahead of its run.
    """

    before: int
    ranked_in: int


@dataclass(kw_only=True)
class LayerMethod(Method):
    """A method inside the language model: after some layers the tokens that rank lowest leave.

    A token's rank is the attention that it receives from the last token of the prompt, mean over
    heads. It works through `tokenprune.apply` alone; `num_keep` and `keep_ratio` say, as of every
    method, what remains of an image in the end.
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    query_agnostic: ClassVar[bool] = False

    @abstractmethod
    def cuts(self, num_layers: int) -> list[Cut]:
        """Ascending, in a language model of so many layers.

        Raises:
            ValueError: the options do not fit so few layers.
        """

    @abstractmethod
    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        """Tokens of an image that remain after each cut, never growing, the last `num_keep`."""

    def reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        """Raises NotImplementedError: vision tokens come without a language model."""
        raise NotImplementedError(
            f"{type(self).__name__} ranks tokens by the attention in a language model's layers, "
            "vision tokens alone have none: use tokenprune.apply(model, method)"
        )

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        return self.reduce(tokens, num_keep)


def list_methods() -> list[str]:
    """Names of the methods, ascending: the files of `tokenprune/methods/`, and plug-ins.

    A plug-in that cannot be loaded is none; a warning names it once.
    """
    return sorted({*_own_names(), *working_plugins("tokenprune.methods", Method)})


def _own_names() -> list[str]:
    import tokenprune.methods

    return [module.name for module in pkgutil.iter_modules(tokenprune.methods.__path__)]


def method_class(name: str) -> type[Method]:
    """The class of that name, which carries the method's declarations.

    Raises:
        ValueError: no such method; the message lists the known ones.
        Exception: what importing another package's method raises.
    """
    if name not in {*_own_names(), *plugin_names("tokenprune.methods")}:
        raise ValueError(f"method must be one of {', '.join(list_methods())}, got {name!r}")
    return load_plugin("tokenprune.methods", name, Method)


def get_method(name: str, **options: Any) -> Method:
    """The method of that name, built with its options.

    Raises:
        ValueError: no such method or option, the message lists the known ones; or an option that
            has no default is missing.
    """
    chosen = method_class(name)
    known = [field.name for field in fields(chosen)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} takes the options {', '.join(known)}, got {', '.join(unknown)}")
    missing = [option for option in required_options(chosen) if option not in options]
    if missing:
        raise ValueError(f"{name} needs the model's weights as options: {', '.join(missing)}")
    return chosen(**options)


def required_options(method: type[Method]) -> list[str]:
    """Options without a default: the model's weights."""
    return [
        option.name
        for option in fields(method)
        if option.default is option.default_factory is MISSING
    ]
