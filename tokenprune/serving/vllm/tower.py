"""What a method needs of the vision tower besides features, read in vLLM's own tower.

The layers are those that `tokenprune.apply` reads, and so is what is read: keys and queries as they
leave their projection, attention from the queries and keys that enter the attention itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.attention import AttentionReader
from tokenprune.hosts.tower import Need, TowerValues, needs_of_tower
from tokenprune.hosts.tower_of_host import PROJECTIONS, self_attention_of, tower_layers
from tokenprune.method import Method

OFFERS = frozenset({"features", "attention", "keys", "queries", "hidden_states"})
FUSED = ("qkv_proj", "qkv")  # what vLLM calls the projection to queries, keys and values


class ServedTower:
    """Reads a method's needs while the tower runs.

    Args:
        adapter: of the transformers model without weights; it names the layers.
        tower: vLLM's vision tower.
        packed: it runs on the patches of all images in one row, [patches, 1, D].

    Raises:
        NotImplementedError: a layer that vLLM's tower does not have.
    """

    def __init__(self, adapter: Adapter, method: Method, tower: nn.Module, packed: bool) -> None:
        self.needs = needs_of_tower(method)
        self._adapter, self._packed = adapter, packed
        self._spans: Sequence[int] = ()
        self._reads = False
        self._parts: dict[Need, list[Tensor]] = {}
        self._num_prefix_tokens = adapter.num_prefix_tokens if self.needs else 0
        self._attention = AttentionReader(self._num_prefix_tokens)
        self._num_heads = 1
        for need in self.needs:
            self._watch(need, tower_layers(adapter.vision_tower), tower_layers(tower))

    def _watch(self, need: Need, known: nn.ModuleList, layers: nn.ModuleList) -> None:
        """Finds the layer by its number among transformers' own: vLLM leaves out the last ones."""
        if need.name == "attention":
            wanted = self._adapter.attention_layer
            number = next(i for i, layer in enumerate(known) if self_attention_of(layer) is wanted)
        else:
            assert need.layer is not None
            number = range(len(known))[need.layer]
        if number >= len(layers):
            raise NotImplementedError(
                f"{need.name} of layer {number} is asked for, vLLM runs {len(layers)} layers of "
                f"the vision tower's {len(known)}"
            )
        layer = layers[number]
        attention: Any = self_attention_of(layer)
        if need.name == "attention":
            attention.attn.register_forward_pre_hook(self._note_attention, with_kwargs=True)
        elif need.name == "hidden_states":
            self._watch_output(need, layer)
        else:
            self._num_heads = attention.attn.num_heads
            fused = [getattr(attention, name) for name in FUSED if hasattr(attention, name)]
            if not fused:
                projection = getattr(attention, PROJECTIONS[need.name])
                projection.register_forward_hook(lambda *call: self._note(need, call[2]))
                return
            third = ("queries", "keys").index(need.name)
            fused[0].register_forward_hook(
                lambda *call: self._note(need, call[2][0].chunk(3, dim=-1)[third])
            )

    def _watch_output(self, need: Need, layer: Any) -> None:
        """Not by a hook: vLLM calls blocks that could be compiled past their hooks."""
        forward = layer.forward

        def noting(*args: Any, **given: Any) -> Any:
            output = forward(*args, **given)
            self._note(need, output)
            return output

        layer.forward = noting

    @contextmanager
    def reading(self, spans: Sequence[int]) -> Iterator[None]:
        """For as long as it lasts, what passes through the tower is kept.

        Args:
            spans: patches of each image, where the tower is packed.
        """
        self._spans, self._reads = spans, True
        self._attention = AttentionReader(self._num_prefix_tokens)
        self._parts = {need: [] for need in self.needs}
        try:
            yield
        finally:
            self._reads = False

    def _note(self, need: Need, output: Any) -> None:
        """[B, N, D], or [patches, 1, D] of a packed tower."""
        if self._reads:
            states: Tensor = output[0] if isinstance(output, tuple) else output
            self._parts[need].append(states.transpose(0, 1) if self._packed else states)

    def _note_attention(self, core: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        """Queries and keys [B, N, H * d] or [B, N, H, d], of a packed tower B = 1."""
        if not self._reads:
            return
        known = dict(zip(("query", "key"), args, strict=False)) | dict(given)
        query, key = (
            known[name].reshape(*known[name].shape[:2], core.num_heads, -1).transpose(1, 2)
            for name in ("query", "key")
        )
        spans = list(self._spans) if self._packed else [query.shape[2]]
        for one, other in zip(query.split(spans, dim=2), key.split(spans, dim=2), strict=True):
            self._attention.read(one.contiguous(), other.contiguous(), core.scale)

    def values(self, sizes: Sequence[Any]) -> list[TowerValues] | None:
        """For each image, or crop where budgets count for crops, what was read.

        Args:
            sizes: as the adapter's `layout` takes them.
        """
        if not self.needs:
            return None
        adapter = self._adapter
        read: dict[Need, list[Tensor]] = {}
        for need in self.needs:
            if need.name == "attention":
                read[need] = adapter.token_attention(self._attention.joined(), sizes)
            else:
                joined = torch.cat(self._parts[need])[:, self._num_prefix_tokens :]
                read[need] = adapter.token_values(joined, sizes)
        return [
            TowerValues({need: read[need][number] for need in self.needs}, self._num_heads)
            for number in range(len(sizes))
        ]
