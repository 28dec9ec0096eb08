"""Method: the one hook that a token-reduction method implements."""

from __future__ import annotations

import copy
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tokenprune.layer_tokens import LayerTokens
from tokenprune.ops.common.checks import check_finite, check_num_keep
from tokenprune.plugins import load_plugin, plugin_names, working_plugins
from tokenprune.selection import best, select_in_layer
from tokenprune.tokens import BY_LAYER, ReducedTokens, VisionTokens
from tokenprune.words import meant_by, nearest, suggestion

if TYPE_CHECKING:
    from typing_extensions import Self

BUDGET = ("num_keep", "keep_ratio")

# Fields of `VisionTokens` that a vision tower gives: of a layer that the method names, and others.
OF_TOWER_LAYER = ("keys", "queries", *BY_LAYER)
OF_TOWER = ("cls", "roots", "attention", "cls_logits", "single_head_attention", *OF_TOWER_LAYER)
ATTENTION = ("attention",)  # what `Method.reads` is where the prompt's end alone ranks tokens


class Cut(NamedTuple):
    """Where tokens leave: before layer `before`, by what layer `ranked_in` is read for, from 0.

    `ranked_in` is at most `before`: attention of the very layer is read ahead of its run. Hidden
    states are those that go into layer `before`.
    """

    before: int
    ranked_in: int


def check_below(layer: int, num_layers: int) -> None:
    """
    Raises:
        ValueError: the language model has no layer after `layer`, counted from 1.
    """
    if layer >= num_layers:
        raise ValueError(
            f"layer must lie below the {num_layers} layers of the language model, got {layer}"
        )


@dataclass(kw_only=True)
class Method(ABC):
    """A way to turn [B, N, D] vision tokens into [B, num_keep, D].

    A method is a dataclass of options with one hook, `_reduce`, in a file of its own in
    `tokenprune/methods/`; the file's name is the method's name. Other packages add theirs by an
    entry point in the group `tokenprune.methods`, name = "package.module:Class".

    Attributes:
        needs: the fields of `VisionTokens` that it cannot do without: "cls", "attention", "keys",
            "queries", "hidden_states", "received", "cls_logits", "single_head_attention", "text",
            "roots", "image_embeds", "text_embeds"; or "layers", those of a language model: then the
            method works between them, see `cuts`. A host that cannot hand one of them over refuses
            the method by name.
        tower_layers: for "keys", "queries", "hidden_states" and "received" among `needs`, the
            layers of the vision tower that they are read from, counted as Python's lists count: -2
            is the second last. Keys and queries are read from one layer each.
        query_agnostic: the result depends on the image alone, so that a prefix cache may hold it
            for the next question.
        reads: in the language model's layers, the fields of `LayerTokens` that it reads. Attention
            is what the prompt's last token pays, unless "raters" is among them, see
            `rating_columns`. A method that reads more than attention takes one image a prompt.
        normed: hidden states, among `reads`, come after the language model's final norm.
        merges: tokens are averaged, not only dropped.
        proportional: in the layers, the logarithm of how many tokens a kept one stands for is added
            to its attention logits, in all layers after the cut and for all that follows.
        uses_grid: the result depends on which tokens lie beside and below which. A host whose
            tokens are no grid, as they are after another reduction, refuses the method by name; to
            all others it hands them as a grid of one row.
        by_crop: the crops of an image share its budget. Such a method is handed each image as the
            vision tower's crops, B crops of one image with `VisionTokens.crop_grid` and `shown`; a
            host that does not say which crops are one image's refuses it by name.
        before_projector: features and the class token are the tower's, and a host projects the rows
            that come out, extra ones too; it reads them in `ReducedTokens.order`. Such a method is
            also `by_crop`, and `renumbers`.
        renumbers: positions are counted anew, without gaps, where tokens have left; `apply` then
            works with `positions="compact"` whatever it is told.
        over_time: the result depends on the order of a video's frames. Such a method is handed
            whole videos, and images not at all; all others are handed each frame by itself.
        paper: arXiv number; None for a method without a paper.
        faithful: "faithful to OWNER/REPOSITORY@COMMIT" where outputs recorded from that code are
            reproduced; "variant" where the method departs from its paper's code; "control" where it
            has none to follow; None where nothing is said. As `approximates`, an option may change
            it.
        approximates: in what the method departs from its paper's official code, in a few words;
            None where it does not depart, or has no paper. An option that lifts a departure changes
            the method's own value, see `declare`.
        strict: raise on tokens that are not finite. Costs one more read, and a synchronization on
            GPUs.
        num_keep, keep_ratio: a budget as `apply` takes it, for `method(model)` and `apply` alone.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    tower_layers: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    query_agnostic: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()
    normed: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    uses_grid: ClassVar[bool] = False
    by_crop: ClassVar[bool] = False
    before_projector: ClassVar[bool] = False
    over_time: ClassVar[bool] = False
    paper: ClassVar[str | None] = None
    faithful: ClassVar[str | None] = None
    approximates: ClassVar[str | None] = None
    _apply: ClassVar[Callable[..., Any]]  # `tokenprune.apply` sets it, which knows methods
    strict: bool = True
    num_keep: int | None = field(default=None, repr=False)
    keep_ratio: float | None = field(default=None, repr=False)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if any(meant_by(word, value) for word, value in options.items() if not hasattr(cls, word)):
            unknown = {word: value for word, value in options.items() if not hasattr(cls, word)}
            raise TypeError(
                f"{cls.__name__} takes no {', '.join(unknown)}{suggestion(unknown, BUDGET)}"
            )
        return super().__new__(cls)

    def __call__(
        self,
        model: nn.Module,
        *,
        per: str = "image",
        positions: str = "original",
        strict: bool = True,
    ) -> Any:
        """Reduces the visual tokens of `model` by this method's own budget.

        Example::

            with DivPrune(keep_ratio=0.25)(model) as handle:
                out = model.generate(**inputs)

        Returns:
            The `tokenprune.Handle` of `tokenprune.apply`, which says more.
        """
        return Method._apply(model, self, per=per, positions=positions, strict=strict)

    def without_budget(self) -> Self:
        """The same method, for who gives the budget."""
        if self.num_keep is None and self.keep_ratio is None:
            return self
        method = copy.copy(self)
        method.num_keep = method.keep_ratio = None
        return method

    def reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        """Reduces each crop to `num_keep` tokens.

        Args:
            tokens: B crops of N tokens.
            num_keep: tokens to keep per crop, 1 to N.

        Raises:
            ValueError: `num_keep` out of range, tokens that are not finite (when strict), a video
                for a method that does not work over time, or something that the method needs and
                the tokens do not carry.
            NotImplementedError: the method works in the language model's layers.
        """
        if self.in_layers:
            raise NotImplementedError(
                f"{type(self).__name__} ranks tokens by what it reads in a language model's "
                "layers, vision tokens alone have none: use tokenprune.apply(model, method)"
            )
        if not isinstance(tokens, VisionTokens):
            raise TypeError(f"tokens must be VisionTokens, got {type(tokens).__name__}")
        check_num_keep(num_keep, tokens.features.shape[1])
        if tokens.frames > 1 and not self.over_time:
            raise ValueError(
                f"{type(self).__name__} takes images, got videos of {tokens.frames} frames; give "
                "each frame as a crop, [B * frames, rows * cols, D]"
            )
        for name in self.needs:
            if getattr(tokens, name) is None:
                needed = f"VisionTokens.{name}"
                raise ValueError(f"{type(self).__name__} needs {needed}, got {needed} = None")
        for name in BY_LAYER:
            wanted, given = self.tower_layers.get(name, ()), tokens.of_layers(name)
            if not set(wanted) <= set(given):
                raise ValueError(
                    f"{type(self).__name__} needs VisionTokens.{name} of the layers "
                    f"{list(wanted)}, got those of {list(given)}"
                )
        if self.strict:
            check_finite(**tokens.tensors())
        # Scores decide what is kept: autocast must not round them to 8 bits of mantissa.
        with torch.autocast(tokens.features.device.type, enabled=False):
            return self._reduce(tokens, num_keep)

    @property
    def in_layers(self) -> bool:
        """Whether it works between the language model's layers, not on vision tokens."""
        return "layers" in self.needs

    def cuts(self, num_layers: int) -> list[Cut]:
        """Where tokens leave in a language model of so many layers, ascending.

        Raises:
            ValueError: the options do not fit so few layers.
            NotImplementedError: the method does not work in the language model.
        """
        raise self._of_vision_tokens()

    def counts(self, num_tokens: int, num_keep: int, num_cuts: int) -> list[int]:
        """Tokens of an image to keep at each cut, never growing, the last `num_keep`."""
        return [num_keep] * num_cuts

    def rating_columns(self, tokens: LayerTokens) -> list[Tensor]:
        """For each prompt the columns [T] int64 whose attention ranks, where `reads` has "raters".

        Args:
            tokens: `hidden_states` are the embeddings that go into the first layer.
        """
        raise self._of_vision_tokens()

    def reduce_in_layer(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        """Reduces the visual tokens that a layer of the language model holds.

        Args:
            tokens: what the method's docstring says that it reads of the layer.
            num_keep: visual tokens to keep, 1 to N.

        Raises:
            NotImplementedError: the method does not work in the language model.
        """
        raise self._of_vision_tokens()

    def _of_vision_tokens(self) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} works on vision tokens, not in the language model's layers"
        )

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


@dataclass(kw_only=True)
class LayerMethod(Method):
    """A method inside the language model: after some layers the tokens that rank lowest leave.

    A token's rank is the attention that it receives from the last token of the prompt, mean over
    heads. It works through `tokenprune.apply`, or on what a layer holds, see `reduce_in_layer`;
    `num_keep` and `keep_ratio` say, as of every method, what remains of an image in the end.
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    reads: ClassVar[tuple[str, ...]] = ATTENTION
    query_agnostic: ClassVar[bool] = False

    @abstractmethod
    def cuts(self, num_layers: int) -> list[Cut]:
        """As `Method.cuts`."""

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        return self.reduce(tokens, num_keep)  # which raises

    def reduce_in_layer(self, tokens: LayerTokens, num_keep: int) -> ReducedTokens:
        """Keeps the visual tokens that receive most of `tokens.attention`, mean over heads and T.

        Features are zero where `tokens` hold no hidden states.
        """
        check_num_keep(num_keep, tokens.num_tokens)
        (attention,) = tokens.needed("attention")
        scores = attention.mean((1, 2))
        return select_in_layer(tokens, best(scores, num_keep), scores)

    def position_ids(self, tokens: LayerTokens, kept: Tensor) -> Tensor:
        """[B, L - N + K]: positions of what goes on where visual tokens `kept`, [B, K], stay."""
        columns = tokens.columns_after(kept)
        if not self.renumbers:
            return columns
        return torch.arange(columns.shape[1], device=kept.device).expand_as(columns)


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
        known = list_methods()
        meant = nearest(str(name), known)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise ValueError(f"method must be one of {', '.join(known)}, got {name!r}{hint}")
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
        hint = suggestion({word: options[word] for word in unknown}, known)
        raise ValueError(
            f"{name} takes the options {', '.join(known)}, got {', '.join(unknown)}{hint}"
        )
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
