"""What a method is handed of a layer of the language model: `LayerTokens`, out of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.attention import attention_of, device_of, projections_of
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.image_groups import ImageGroup
from tokenprune.hosts.prompt import Prompt
from tokenprune.hosts.sequence import KeptColumns
from tokenprune.layer_tokens import LayerTokens
from tokenprune.method import ATTENTION, Method

PLAIN = ("plain_keys", "plain_queries")
BY_HEAD = ("keys", *PLAIN)


@dataclass(frozen=True)
class Raters:
    """The columns whose attention ranks.

    Attributes:
        columns: [B, T] int64; a row with fewer repeats one.
        counts: for each row, how many are its own.
    """

    columns: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Reading:
    """What a layer was read for.

    Attributes:
        columns: those that were left; None for all.
        values: by the names of `LayerTokens`, of the whole batch, [B, ...] in these columns.
        raters: of the attention.
    """

    columns: KeptColumns | None
    values: Mapping[str, Tensor | tuple[Tensor, ...]]
    raters: Raters


@torch.no_grad()
def read_layer(
    method: Method,
    number: int,
    layer: Any,
    states: Tensor,
    given: Mapping[str, Any],
    columns: KeptColumns | None,
    raters: Raters,
) -> Reading:
    """Reads a layer that has not run yet.

    Args:
        states: [B, C, D], what it will run on.
        given: its other arguments, which fit the columns that are left.

    Raises:
        NotImplementedError: rotary embeddings that a method reads are not [B, C, d].
    """
    values: dict[str, Tensor | tuple[Tensor, ...]] = {}
    if "attention" in method.reads:
        queries = raters.columns
        queries = queries if columns is None else columns.places.gather(1, queries)
        values["attention"] = attention_of(layer, number, states, queries, given)
    if "keys" in method.reads:
        values["keys"] = projections_of(layer, states, given)[1]
    rotary = given["position_embeddings"]
    if set(PLAIN) & set(method.reads):
        # A rotation by nothing leaves them as they come.
        still = torch.ones_like(rotary[0]), torch.zeros_like(rotary[1])
        queries, keys = projections_of(layer, states, {**given, "position_embeddings": still})
        values |= {"plain_keys": keys, "plain_queries": queries}
    if "position_embeddings" in method.reads:
        width = getattr(layer.self_attn, "head_dim", None)
        if any(part.ndim != 3 or part.shape[2] != width for part in rotary):
            raise NotImplementedError(
                f"{type(method).__name__} reads rotary embeddings [B, L, {width}] of whole heads, "
                f"{type(layer).__name__} is given {[list(part.shape) for part in rotary]}"
            )
        values["position_embeddings"] = tuple(part.expand(len(states), -1, -1) for part in rotary)
    return Reading(columns, values, raters)


@dataclass(frozen=True)
class Alike:
    """Images of a group whose prompts have one shape: they go through the method together.

    Attributes:
        members: [g] int64, their numbers in the group.
        rows: [g] int64, their prompts' in the batch.
        columns: [g, L] int64, those that are left of the prompts, up to their ends.
        visual: [g, M] int64, those of the images.
        start: where the image begins among a prompt's columns.
    """

    members: Tensor
    rows: Tensor
    columns: Tensor
    visual: Tensor
    start: int

    @staticmethod
    def within(
        group: ImageGroup, method: Method, prompt: Prompt, left: Tensor, raters: Raters
    ) -> list[Alike]:
        """All of a group.

        Args:
            left: [B, L] bool, the columns that are left, without padding.

        Raises:
            NotImplementedError: other columns stand between an image's, and the method reads them.
        """
        # What follows a prompt's end, as answers do in training, takes no part.
        shown = left & (torch.arange(left.shape[1], device=left.device) <= prompt.ends[:, None])
        rank, lengths = shown.cumsum(1) - 1, shown.sum(1)
        rows, columns = prompt.placeholders.nonzero(as_tuple=True)
        visual = columns[group.standing]
        of = rows[group.positions[:, 0]]
        places = rank[of[:, None], visual]
        facts = torch.stack([of, places[:, 0], places[:, -1], lengths[of]], 1).tolist()
        by_shape: dict[tuple[int, int, int], list[int]] = {}
        for member, (row, first, last, length) in enumerate(facts):
            if method.reads != ATTENTION and last - first + 1 != visual.shape[1]:
                raise NotImplementedError(
                    f"{type(method).__name__} takes an image whose tokens stand side by side, "
                    "text stands between those of this prompt"
                )
            by_shape.setdefault((first, length, raters.counts[row]), []).append(member)
        order = (~shown).int().argsort(dim=1, stable=True)
        found = []
        for (start, length, _), numbers in by_shape.items():
            members = torch.tensor(numbers, device=left.device)
            alike = order[of[members], :length]
            found.append(Alike(members, of[members], alike, visual[members], start))
        return found

    def tokens(
        self,
        method: Method,
        adapter: Adapter,
        states: Tensor,
        columns: KeptColumns | None,
        reading: Reading,
    ) -> LayerTokens:
        """What `method` reads.

        Args:
            states: [B, C, D], what goes into the layer before which tokens leave.
            columns: those that are left there.
            reading: of the layer that ranks.
        """
        device = states.device
        rows = self.rows.to(device)[:, None]
        fields: dict[str, Any] = {}
        if "hidden_states" in method.reads:
            of = states[rows, self._slots(columns, self.columns).to(device)]
            fields["hidden_states"] = final_norm(adapter, of) if method.normed else of
        then = self._slots(reading.columns, self.columns).to(device)
        for name in BY_HEAD:
            if name in method.reads:
                value = reading.values[name]
                assert isinstance(value, Tensor)
                fields[name] = value.to(device).transpose(1, 2)[rows, then].transpose(1, 2)
        if "position_embeddings" in method.reads:
            fields["position_embeddings"] = tuple(
                part.to(device)[rows, then] for part in reading.values["position_embeddings"]
            )
        if "attention" in method.reads:
            fields |= self._attention(method, reading, device)
        length = max(self.columns.shape[1], self.start + self.visual.shape[1])
        return LayerTokens(length, self.start, self.visual.shape[1], **fields)

    def _attention(self, method: Method, reading: Reading, device: torch.device) -> dict[str, Any]:
        value, raters = reading.values["attention"], reading.raters
        assert isinstance(value, Tensor)
        number = raters.counts[int(self.rows[0])]  # of all of them
        seen = self._slots(reading.columns, self.visual).to(value.device)
        rated = value[self.rows.to(value.device), :, :number]
        index = seen[:, None, None].expand(-1, rated.shape[1], number, -1)
        fields = {"attention": rated.gather(3, index).to(device)}
        if "raters" in method.reads:
            columns = raters.columns[self.rows, :number]
            fields["raters"] = torch.searchsorted(self.columns, columns).to(device)
        return fields

    def _slots(self, columns: KeptColumns | None, wanted: Tensor) -> Tensor:
        """[g, W] columns of the whole prompt -> where they stand among `columns`."""
        return wanted if columns is None else columns.places[self.rows[:, None], wanted]


@torch.no_grad()
def find_raters(
    method: Method, groups: list[ImageGroup], prompt: Prompt, left: Tensor, states: Tensor
) -> Raters:
    """The prompts' ends, or the columns that a method itself names.

    Args:
        left: [B, L] bool, no padding.
        states: [B, L, D], what goes into the first layer.
    """
    ends = Raters(prompt.ends[:, None], [1] * len(prompt.ends))
    if "raters" not in method.reads:
        return ends
    named = list(ends.columns)
    for group in groups:
        for alike in Alike.within(group, method, prompt, left, ends):
            index = alike.columns.to(states.device)
            tokens = LayerTokens(
                index.shape[1],
                alike.start,
                alike.visual.shape[1],
                hidden_states=states[alike.rows.to(states.device)[:, None], index],
            )
            chosen = method.rating_columns(tokens)
            for row, columns, picked in zip(alike.rows, alike.columns, chosen, strict=True):
                named[int(row)] = columns[picked.to(columns.device)]
    most = max(map(len, named))
    padded = [torch.cat([one, one[:1].expand(most - len(one))]) for one in named]
    return Raters(torch.stack(padded), [len(one) for one in named])


def final_norm(adapter: Adapter, states: Tensor) -> Tensor:
    """The language model's norm after its last layer, of other states."""
    language_model: Any = adapter.language_model
    require_attributes(language_model, "norm")
    normed: Tensor = language_model.norm(states.to(device_of(language_model.norm)))
    return normed.to(states.device)
