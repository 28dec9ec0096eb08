"""Methods in the language model's layers, written down once more: one prompt, layer by layer.

What the library does with masks, caches and batches is here a loop over the layers of the whole
model, on hidden states, in eager attention. Words after the prompt run along: layers are causal, so
the logits of the last columns are those of generation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.hosts.registry import find_adapter

from .hosts import IMAGE, Host


@dataclass(frozen=True)
class Stream:
    """What goes from layer to layer.

    Attributes:
        states: [C, D].
        positions: [.., C].
        start, count: of the visual rows.
        end: columns of the prompt; after them come further words.
        sizes: [C], how many tokens each column stands for in attention.
    """

    states: Tensor
    positions: Tensor
    start: int
    count: int
    end: int
    sizes: Tensor

    @property
    def visual(self) -> slice:
        return slice(self.start, self.start + self.count)

    def with_rows(self, kept: Tensor, rows: Tensor, sizes: Tensor, numbered_anew: bool) -> Stream:
        """The visual rows become `rows` [M, D]; the first are at the positions of `kept`."""

        def joined(values: Tensor, middle: Tensor) -> Tensor:
            before, after = values[..., : self.start], values[..., self.visual.stop :]
            return torch.cat([before, middle, after], -1)

        if numbered_anew:
            length = self.states.shape[0] - self.count + len(rows)
            positions = torch.arange(length).expand(*self.positions.shape[:-1], -1)
        else:
            positions = joined(self.positions, self.positions[..., self.start + kept])
        return replace(
            self,
            states=joined(self.states.T, rows.T).T,
            positions=positions,
            count=len(rows),
            end=self.end - self.count + len(rows),
            sizes=joined(self.sizes, sizes),
        )


class Plain:
    """A method, one prompt with one image at a time. It changes nothing."""

    def begin(self, stream: Stream) -> None:
        """Before the first layer."""

    def before(self, number: int, layer: Any, stream: Stream, rotary: Any) -> Stream:
        return stream

    def after(
        self, number: int, layer: Any, given: Stream, rotary: Any, weights: Tensor, made: Stream
    ) -> Stream:
        """`weights`: [H, C, C]; `given` went into the layer, `made` comes out."""
        return made


def plain_logits(host: Host, inputs: dict[str, Any], words: Tensor, method: Plain) -> Tensor:
    """[C, V] of a prompt of one row without padding, and of `words` [T] after it."""
    adapter = find_adapter(host.model)
    model: Any = adapter.language_model
    given: dict[str, Any] = {}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        given.update(kwargs)

    ids = inputs["input_ids"]
    start, count = int((ids[0] == IMAGE).nonzero()[0]), int((ids == IMAGE).sum())
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    implementation = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            host.model(**inputs)
            hook.remove()
            new = host.model.get_input_embeddings()(words)
            states = torch.cat([given["inputs_embeds"][0], new])
            positions = host.positions(inputs)[..., 0, :]
            following = positions.max() + 1 + torch.arange(len(words))
            positions = torch.cat([positions, following.expand(*positions.shape[:-1], -1)], -1)
            length = ids.shape[1]
            stream = Stream(states, positions, start, count, length, torch.ones(len(states)))
            method.begin(stream)
            for number, layer in enumerate(model.layers):
                stream = run_layer(model, number, layer, stream, method)
            logits: Tensor = host.model.lm_head(model.norm(stream.states))
            return logits
    finally:
        hook.remove()
        host.model.set_attn_implementation(implementation)


def run_layer(model: Any, number: int, layer: Any, stream: Stream, method: Plain) -> Stream:
    stream = method.before(number, layer, stream, rotary_of(model, stream))
    rotary = rotary_of(model, stream)
    length = len(stream.states)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = stream.sizes.log().expand(length, -1).masked_fill(hidden, -torch.inf)
    weights: list[Tensor] = []
    hook = layer.self_attn.register_forward_hook(lambda module, args, out: weights.append(out[1]))
    output = layer(
        stream.states[None],
        attention_mask=mask[None, None],
        position_embeddings=tuple(part[None] for part in rotary),
    )
    hook.remove()
    states = (output[0] if isinstance(output, tuple) else output)[0]
    return method.after(
        number, layer, stream, rotary, weights[0][0], replace(stream, states=states)
    )


def rotary_of(model: Any, stream: Stream) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [C, d] each."""
    cosine, sine = model.rotary_emb(stream.states[None], stream.positions[..., None, :])
    return cosine[0], sine[0]


def heads_of(projection: Any, layer: Any, states: Tensor) -> Tensor:
    """[C, D] -> [C, H, d], a projection of the layer's input."""
    flat = projection(layer.input_layernorm(states))
    heads: Tensor = flat.unflatten(1, (-1, layer.self_attn.head_dim))
    return heads


def turned(vectors: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """[C, H, d] by their rotary embedding: pairs of channels half a head apart."""
    cosine, sine = (part[:, None] for part in rotary)
    first, second = vectors.chunk(2, -1)
    return vectors * cosine + torch.cat([-second, first], -1) * sine


@dataclass
class PlainSparseVLM(Plain):
    """Layers 2, 6 and 15 in the paper, and as many kept in each as its tables say."""

    layers: tuple[int, ...]
    kept: tuple[int, ...]
    version: int
    heads: int

    def begin(self, stream: Stream) -> None:
        image = stream.states[stream.visual]
        text = stream.states[stream.visual.stop : stream.end]
        relevance = torch.stack([(text @ token).softmax(0) for token in image]).mean(0)
        self.raters = [at for at, value in enumerate(relevance) if value > relevance.mean()]

    def after(
        self, number: int, layer: Any, given: Stream, rotary: Any, weights: Tensor, made: Stream
    ) -> Stream:
        if number not in self.layers:
            return made
        raters = torch.tensor(self.raters) + given.visual.stop
        attention = weights[:, raters, given.visual]
        if self.version == 2:
            ones = turned(torch.ones_like(rotary[0])[:, None], rotary)[:, 0]
            products = ones[raters] @ ones[given.visual].T / ones.shape[1] ** 0.5
            attention = attention / products
            attention = attention[attention.sum((1, 2)).topk(self.heads).indices]
        scores = attention.mean(0).mean(0)
        count = min(self.kept[self.layers.index(number)], made.count - 1)
        chosen = scores.topk(count).indices.sort().values
        states = made.states[made.visual]
        rows = states[chosen]
        if self.version == 1:
            left = torch.tensor([at for at in range(made.count) if at not in chosen.tolist()])
            best = left[scores[left].topk(int(0.3 * len(left)) + 1).indices.sort().values]
            rows = torch.cat([rows, clustered(states[best], len(best) // 10 + 1)])
        return made.with_rows(chosen, rows, torch.ones(len(rows)), numbered_anew=self.version == 1)


def clustered(states: Tensor, number: int) -> Tensor:
    """[M, D] -> [number, D], means of clusters around dense tokens far from denser ones."""
    distance = torch.cdist(states, states) / states.shape[1] ** 0.5
    density = (-distance.topk(number, largest=False).values.square().mean(1)).exp()
    gaps = []
    for token, own in enumerate(density):
        denser = [
            float(distance[token, other])
            for other, value in enumerate(density)
            if value > own or (value == own and other < token)
        ]
        gaps.append(min(denser, default=float(distance.max())))
    centers = (torch.tensor(gaps) * density).topk(number).indices
    cluster = distance[centers].argmin(0)
    cluster[centers] = torch.arange(number)
    return torch.stack([states[cluster == one].mean(0) for one in range(number)])


@dataclass
class PlainPACT(Plain):
    """Before layer 4 in the paper: 55 in 100 may be centers, farther apart than the cutoff."""

    layer: int
    share: float
    cutoff: float
    reach: float

    def before(self, number: int, layer: Any, stream: Stream, rotary: Any) -> Stream:
        if number != self.layer:
            return stream
        visual, stop = stream.visual, stream.visual.stop
        keys = heads_of(layer.self_attn.k_proj, layer, stream.states)
        queries = heads_of(layer.self_attn.q_proj, layer, stream.states)[:stop].mean(0)
        times = len(queries) // keys.shape[1]
        attention = [
            (keys[:stop, head // times] @ query / len(query) ** 0.5).softmax(0)
            for head, query in enumerate(queries)
        ]
        states = stream.states[visual]
        scores = torch.stack(attention).mean(0)[visual] * states.norm(dim=1)
        able = scores.topk(int(self.share * stream.count)).indices.sort().values.tolist()
        flat = turned(keys, rotary)[visual].flatten(1)
        distance = 1 - functional.cosine_similarity(flat[:, None], flat[None], dim=2)
        density = {one: float((-((distance[one, able] / 2) ** 2)).exp().sum()) for one in able}
        centers: list[int] = []
        for one in sorted(able, key=lambda one: -density[one]):
            if all(distance[one, center] > self.cutoff for center in centers):
                centers.append(one)
        members: dict[int, list[int]] = {center: [] for center in sorted(centers)}
        for one in range(stream.count):
            nearest = min(members, key=lambda center: float(distance[one, center]))
            nearest = one if one in members else nearest
            if distance[one, nearest] <= self.reach * self.cutoff:
                members[nearest].append(one)
        rows = torch.stack([states[of].mean(0) for of in members.values()])
        sizes = torch.tensor([float(len(of)) for of in members.values()])
        return stream.with_rows(torch.tensor([*members]), rows, sizes, numbered_anew=False)


@dataclass
class PlainDART(Plain):
    """4 image pivots and 4 of the text after the image in the paper; each takes T tokens."""

    layer: int
    taken: int
    pivots: int
    norm: Any

    def after(
        self, number: int, layer: Any, given: Stream, rotary: Any, weights: Tensor, made: Stream
    ) -> Stream:
        if number != self.layer - 1:
            return made
        keys = turned(heads_of(layer.self_attn.k_proj, layer, given.states), rotary)
        norms = keys.flatten(1).norm(p=1, dim=1).tolist()
        outside = range(given.visual.stop, given.end)
        image, text = (
            sorted(columns, key=lambda column: -norms[column])[: self.pivots]
            for columns in (range(given.start, given.visual.stop), outside)
        )
        states = self.norm(made.states)
        kept, left = [*image], sorted({*range(given.start, given.visual.stop)} - {*image})
        for pivot in {*image, *text}:  # in the order of a set, as there
            similar = {
                column: float(functional.cosine_similarity(states[pivot], states[column], dim=0))
                for column in left
            }
            least = sorted(left, key=lambda column: similar[column])[: self.taken]
            kept += least
            left = [column for column in left if column not in least]
        chosen = torch.tensor(sorted(kept)) - given.start
        rows = made.states[made.visual][chosen]
        return made.with_rows(chosen, rows, torch.ones(len(rows)), numbered_anew=False)
