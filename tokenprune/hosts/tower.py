"""What a method needs of the vision tower besides features, read while the host encodes its images.

Keys and queries are the outputs of their projections, by a forward hook: what methods' papers take,
the same in all towers, before any norm or rotary embedding. Hidden states are the outputs of
layers, by the same hook. Attention comes from the queries and keys of a layer on their way to its
softmax, see `AttentionReader`. Nothing that is read carries a gradient, and nothing is larger than
the outputs of the layers that a method names.

Hooks stay as long as the reduction is applied. They tell the reader of the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenprune.budget import Budget
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.attention import AttentionReader
from tokenprune.hosts.merging_tower import Merging, merging_by
from tokenprune.hosts.stopwatch import Stopwatch
from tokenprune.hosts.tower_of_host import OF_ATTENTION, self_attention_of, tower_layers
from tokenprune.hosts.videos import Videos
from tokenprune.method import OF_TOWER, OF_TOWER_LAYER, Method
from tokenprune.tokens import BY_LAYER


class Need(NamedTuple):
    """A field of `VisionTokens` that a method needs of the tower.

    Attributes:
        name: of the field; "features" where they are the projector's input.
        layer: that the method names.
        by_crop: it is handed crop by crop, see `Method.by_crop`.
    """

    name: str
    layer: int | None = None
    by_crop: bool = False


def needs_of_tower(method: Method) -> tuple[Need, ...]:
    """Those of a method; its layers are counted as Python's lists count.

    Raises:
        ValueError: a field that comes from a layer, and no layer or, of keys or queries, several.
    """
    by_crop = method.by_crop
    needs = [Need("features", None, by_crop)] if method.before_projector else []
    for name in OF_TOWER:
        layers = method.tower_layers.get(name, ()) if name in OF_TOWER_LAYER else (None,)
        if name not in method.needs:
            continue
        if not layers or (len(layers) > 1 and name not in BY_LAYER):
            number = "at least one" if name in BY_LAYER else "one"
            raise ValueError(
                f"{type(method).__name__}.tower_layers must name {number} for {name}, "
                f"got {list(layers)}"
            )
        needs += [Need(name, layer, by_crop) for layer in layers]
    return tuple(needs)


@dataclass(frozen=True)
class Point:
    """Where something is read.

    Attributes:
        need: what it is read for.
        module: of the tower, whose output it is in.
        part: of that output.
        head_dim: of keys and queries, else 0.
    """

    need: Need
    module: nn.Module
    part: Callable[[Tensor], Tensor]
    head_dim: int = 0


def points_of(adapter: Adapter, method: Method) -> list[Point]:
    """Where keys, queries and hidden states are read that a method needs.

    Raises:
        ValueError: a layer that the tower does not have.
        NotImplementedError: a tower that is not known.
    """
    points = []
    for need in needs_of_tower(method):
        if need.layer is None or need.name in OF_ATTENTION:
            continue
        layer = layer_of(adapter, method, need)
        if need.name == "hidden_states":
            points.append(Point(need, layer, lambda output: output))
            continue
        attention: Any = self_attention_of(layer)
        projection = adapter.projection(attention, need.name)
        assert projection is not None  # the adapter offers it
        points.append(Point(need, *projection, attention.head_dim))
    return points


def attention_layers(adapter: Adapter, method: Method) -> dict[nn.Module, list[Need]]:
    """The tower's self-attentions that are read on their way, and what for.

    Raises:
        ValueError: a layer that the tower does not have.
        NotImplementedError: a tower that is not known.
    """
    found: dict[nn.Module, list[Need]] = {}
    for need in needs_of_tower(method):
        if need.name == "attention":
            found.setdefault(adapter.attention_layer, []).append(need)
        elif need.name in OF_ATTENTION:
            layer = layer_of(adapter, method, need)
            found.setdefault(self_attention_of(layer), []).append(need)
    return found


def layer_of(adapter: Adapter, method: Method, need: Need) -> nn.Module:
    """The tower's layer that a need names, the last where it names none.

    Raises:
        ValueError: the tower does not have it.
    """
    layers = tower_layers(adapter.vision_tower)
    number = -1 if need.layer is None else need.layer
    if not -len(layers) <= number < len(layers):
        raise ValueError(
            f"{type(method).__name__} needs {need.name} of layer {number}, "
            f"{type(adapter.vision_tower).__name__} has {len(layers)} layers"
        )
    return layers[number]


@dataclass(frozen=True)
class TowerValues:
    """What was read for one image, or for one of its grids.

    Attributes:
        values: for each need [tokens in its grids, D]; those of `OF_ATTENTION` [tokens in its
            grids], and the class token [D].
        num_heads: that lie side by side in keys and queries.
    """

    values: Mapping[Need, Tensor]
    num_heads: int = 1

    def split(self, sizes: Sequence[int]) -> list[TowerValues]:
        """For each grid of so many tokens."""
        parts: list[dict[Need, Tensor]] = [{} for _ in sizes]
        for need, value in self.values.items():
            of_grids = [value] * len(sizes) if need.name == "cls" else value.split(list(sizes))
            for part, of_grid in zip(parts, of_grids, strict=True):
                part[need] = of_grid
        return [TowerValues(part, self.num_heads) for part in parts]

    def crops(self) -> list[TowerValues]:
        """For each crop, where an image was read crop by crop: [C, N, ...] -> [N, ...] each."""
        numbers = range(len(next(iter(self.values.values()), ())))
        return [
            TowerValues(
                {need: value[number] for need, value in self.values.items()}, self.num_heads
            )
            for number in numbers
        ]

    @staticmethod
    def fields(grids: Sequence[TowerValues], device: torch.device) -> dict[str, Any]:
        """Fields of `VisionTokens` for G grids of one shape: [G, N, D], or [G, N] and [G, D]."""
        if not grids:
            return {}
        fields: dict[str, Any] = {"num_heads": grids[0].num_heads}
        for need in grids[0].values:
            value = torch.stack([grid.values[need] for grid in grids]).to(device)
            if need.name in BY_LAYER:
                fields.setdefault(need.name, {})[need.layer] = value
            else:
                fields[need.name] = value
        return fields


class TowerReader:
    """Reads what a method needs, in one call of the function that encodes.

    Args:
        source: what is encoded, the adapter's images or its videos.
        budget: of an image, for methods that merge inside the tower.

    Attributes:
        needs: of the method.
        stopwatches: time spent on it.
    """

    def __init__(
        self, adapter: Adapter, source: Adapter | Videos, method: Method, budget: Budget
    ) -> None:
        self.needs = needs_of_tower(method)
        self._by_crop = method.by_crop
        self._source = source
        self.stopwatches: list[Stopwatch] = []
        self._adapter = adapter
        self._points = points_of(adapter, method)
        self._parts: dict[Need, list[Tensor]] = {point.need: [] for point in self._points}
        # Who needs nothing of the tower needs no tower, which not every host has.
        self._num_prefix_tokens = adapter.num_prefix_tokens if self.needs else 0
        self._attention: dict[nn.Module, AttentionReader] = {}
        self._reader_of: dict[Need, AttentionReader] = {}
        for layer, needs in attention_layers(adapter, method).items():
            names = sorted({need.name for need in needs})
            self._attention[layer] = AttentionReader(self._num_prefix_tokens, names)
            self._reader_of |= dict.fromkeys(needs, self._attention[layer])
        self._merging: Merging | None = None
        if any(need.name == "roots" for need in self.needs):
            layout = adapter.layout(None)
            (grid,) = layout.grids
            num_keep = min(budget.kept_of(layout.num_tokens), grid.num_tokens)
            self._merging = Merging(len(adapter.merging_layers), num_keep, self._num_prefix_tokens)

    @property
    def has_hooks(self) -> bool:
        """Whether hooks in the tower's modules must reach us, or its layers merge."""
        return bool(self._points) or self._merging is not None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For as long as it lasts, this thread's hooks tell us what passes through the tower."""
        token = _reading.set(self)
        try:
            with ExitStack() as stack:
                stack.enter_context(merging_by(self._merging))
                for layer, reader in self._attention.items():
                    stack.enter_context(reader.reading(layer))
                yield
        finally:
            _reading.reset(token)

    def note(self, module: nn.Module, output: Any) -> None:
        states: Tensor = output[0] if isinstance(output, tuple) else output
        for point in self._points:
            if point.module is module:
                self._parts[point.need].append(point.part(states))

    @torch.no_grad()
    def values(
        self, output: Any, arguments: Mapping[str, Any], sizes: Sequence[Any]
    ) -> list[TowerValues] | None:
        """For each image what was read, or None where the method needs nothing.

        Args:
            output: of `get_image_features`.
            arguments: of `get_image_features`.
            sizes: one entry per image.

        Raises:
            RuntimeError: a layer that the host did not run.
        """
        if not self.needs:
            return None
        adapter, source = self._adapter, self._source
        read: dict[Need, Sequence[Tensor]] = {}
        with Stopwatch(next(adapter.vision_tower.parameters()).device) as stopwatch:
            for need in self.needs:
                if need.name in OF_ATTENTION:
                    read[need] = self._attention_of_images(need, sizes)
                elif need.name == "roots":
                    read[need] = self._roots(arguments)
                elif need.name == "features":
                    read[need] = self._projected_states(output, arguments, sizes)
                elif need.name == "cls":
                    read[need] = self._class_tokens(output, arguments, sizes)
                else:
                    values = self._joined(need)
                    read[need] = (
                        adapter.crop_values(values, sizes)
                        if self._by_crop
                        else source.token_values(values, sizes)
                    )
                if len(read[need]) != len(sizes):
                    raise RuntimeError(
                        f"{need.name} of {len(sizes)} images expected from "
                        f"{type(adapter).__name__}, got those of {len(read[need])}"
                    )
        for reader in self._attention.values():
            self.stopwatches += reader.stopwatches
        self.stopwatches.append(stopwatch)
        num_heads = self._num_heads(read)
        return [
            TowerValues({need: values[number] for need, values in read.items()}, num_heads)
            for number in range(len(sizes))
        ]

    def _attention_of_images(self, need: Need, sizes: Sequence[Any]) -> list[Tensor]:
        """For each image [tokens], or [crops, patches]."""
        received = self._reader_of[need].joined(need.name)
        if not self._by_crop:
            return self._source.token_attention(received, sizes)
        of_images = self._adapter.crop_values(received[:, :, None], sizes)
        return [image[..., 0] for image in of_images]

    def _roots(self, arguments: Mapping[str, Any]) -> list[Tensor]:
        """For each image [patches] int64."""
        chosen, known = arguments.get("vision_feature_layer"), self._adapter.config
        if chosen not in (None, known.vision_feature_layer):
            raise NotImplementedError(
                f"tokens merge up to layer {known.vision_feature_layer}, got "
                f"vision_feature_layer={chosen}"
            )
        if self._merging is None or self._merging.roots is None:
            raise RuntimeError("the tower's layers did not run, their tokens cannot have merged")
        return list(self._merging.roots)

    def _projected_states(
        self, output: Any, arguments: Mapping[str, Any], sizes: Sequence[Any]
    ) -> list[Tensor]:
        """For each image [crops, patches, D'], what the projector takes."""
        states = self._adapter.projected_states(output, arguments)
        return self._adapter.crop_values(states[:, self._num_prefix_tokens :], sizes)

    def _class_tokens(
        self, output: Any, arguments: Mapping[str, Any], sizes: Sequence[Any]
    ) -> list[Tensor]:
        """For each image [D], or [crops, D]; as the tower has them before the projector."""
        if not self._by_crop:
            return list(self._source.class_tokens(output, arguments))
        adapter = self._adapter
        if any(need.name == "features" for need in self.needs):
            tokens = adapter.projected_states(output, arguments)[:, :1]
        else:
            tokens = adapter.class_tokens(output, arguments)[:, None]
        return [image[:, 0] for image in adapter.crop_values(tokens, sizes)]

    def _num_heads(self, read: Mapping[Need, Sequence[Tensor]]) -> int:
        """That lie side by side in keys and queries; 1 where none are read."""
        found = {
            read[point.need][0].shape[-1] // point.head_dim
            for point in self._points
            if point.head_dim and read[point.need]
        }
        if len(found) > 1:
            raise NotImplementedError("keys and queries have different numbers of heads")
        return found.pop() if found else 1

    def _joined(self, need: Need) -> Tensor:
        """[crops, patches, D] of all calls; a tower that packs all images gives [patches, D]."""
        parts = self._parts[need]
        if not parts:
            raise RuntimeError(
                f"layer {need.layer} of the tower did not run, its {need.name} cannot be read"
            )
        if parts[0].ndim == 2:
            return torch.cat(parts)[None]
        return torch.cat(parts)[:, self._num_prefix_tokens :]


_reading: ContextVar[TowerReader | None] = ContextVar("reading", default=None)


def tell_reader(module: nn.Module, args: Any, output: Any) -> None:
    """The forward hook of the modules that `points_of` names."""
    reader = _reading.get()
    if reader is not None:
        reader.note(module, output)
