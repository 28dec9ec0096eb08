"""The two things that pass between an encoder, a method and a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

BY_LAYER = ("hidden_states", "received")  # fields of `VisionTokens` that hold several tower layers
BY_SLOT = ("features", "keep_indices", "valid", "scores")  # of `ReducedTokens`, [B, K] or [T]


@dataclass(frozen=True)
class VisionTokens:
    """Patch tokens of a batch of crops, as a vision tower hands them over.

    Features are always there. All else is None unless a method declares that it needs it, see
    `Method.needs` and `Method.tower_layers`. Under `tokenprune.apply` the N tokens are those that
    enter the language model; what is read of several patches that make one is their mean.

    Attributes:
        features: [B, N, D] floating point, the patch tokens in raster order, without class token;
            those of a video frame by frame.
        grid_size: (rows, cols) of the patch grid, with frames * rows * cols == N.
        cls: [B, D], the class token's output; None where the tower has none.
        attention: [B, N] float32, the attention that each token receives in the tower's last used
            layer, from the class token where there is one, else from all tokens; mean over heads.
        keys: [B, N, Dk], the patches' keys in the tower layer that the method names, as they leave
            the projection; the heads lie side by side.
        queries: [B, N, Dk], their queries in the layer that the method names.
        hidden_states: for each further tower layer that the method names, its output [B, N, D'].
        text: [B, T, D], embeddings of the question's words in the space of the features. In hosts
            the language model's, of the prompt's other tokens: none has a text tower.
        num_heads: how many heads lie side by side in keys and queries; it divides Dk.
        received: for each tower layer that the method names, the attention [B, N] that each token
            receives there from all tokens, the class token among them: sum over queries, mean over
            heads and over the patches that make a token.
        cls_logits: [B, N], the class token's attention in the tower's last layer before the
            softmax: scaled products of its query and the patches' keys, mean over heads.
        single_head_attention: [B, N], the class token's attention in the tower's last layer, as one
            head that is as wide as all heads side by side would give it. Of hosts that show an
            image in one crop.
        image_embeds: [B, N, C], the patches in the joint space of a contrastive model, such as
            CLIP's. No host hands it over.
        text_embeds: [B, T, C], the question in that space, in one piece or several.
        roots: [B, N] int64, the token in whose place each has come to lie where tokens have merged
            inside the tower; those of one place carry the same features.
        sizes: [B, N] at least 1, how many tokens of the image each stands for where some have
            merged before; None for one each.
        frames: of a video, or 1. Only a method that works `over_time` takes more.
        shown: [B, N] bool, False where a crop shows padding, which the host cuts away; None where
            crops show their image alone.
        crop_grid: (rows, cols) of tiles, where the B crops are those of one image: its thumbnail,
            then its tiles row by row. None where nothing is said.
    """

    features: Tensor
    grid_size: tuple[int, int]
    cls: Tensor | None = None
    attention: Tensor | None = None
    keys: Tensor | None = None
    queries: Tensor | None = None
    hidden_states: Mapping[int, Tensor] | None = None
    text: Tensor | None = None
    num_heads: int = 1
    received: Mapping[int, Tensor] | None = None
    cls_logits: Tensor | None = None
    single_head_attention: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    roots: Tensor | None = None
    sizes: Tensor | None = None
    frames: int = 1
    shown: Tensor | None = None
    crop_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        from tokenprune.ops.common.checks import (
            check_cls,
            check_features,
            check_grid,
            check_int,
            check_of_patches,
            check_shape,
            check_text,
        )

        check_features(self.features)
        check_int("frames", self.frames, low=1)
        check_grid(self.grid_size, self.features.shape[1], self.frames)
        check_int("num_heads", self.num_heads, low=1)
        batch, num_tokens, _ = self.features.shape
        if self.cls is not None:
            check_cls(self.cls, self.features)
        given = {
            "attention": self.attention,
            "cls_logits": self.cls_logits,
            "single_head_attention": self.single_head_attention,
            "sizes": self.sizes,
        }
        for name, value in given.items():
            if value is not None:
                check_shape(name, value, (batch, num_tokens), "[B, N]", like=self.features)
        if self.roots is not None and self.roots.shape != (batch, num_tokens):
            raise ValueError(
                f"roots must be [B, N] = {[batch, num_tokens]}, got {list(self.roots.shape)}"
            )
        if self.shown is not None and self.shown.shape != (batch, num_tokens):
            raise ValueError(
                f"shown must be [B, N] = {[batch, num_tokens]}, got {list(self.shown.shape)}"
            )
        for name, value in (("keys", self.keys), ("queries", self.queries)):
            if value is not None:
                check_of_patches(name, value, "[B, N, Dk]", self.features)
                if value.shape[2] % self.num_heads:
                    raise ValueError(
                        f"num_heads must divide Dk = {value.shape[2]} of {name}, "
                        f"got {self.num_heads}"
                    )
        for layer, received in self.of_layers("received").items():
            name, shape = f"received[{layer}]", (batch, num_tokens)
            check_shape(name, received, shape, "[B, N]", like=self.features)
        for layer, states in self.of_layers("hidden_states").items():
            check_of_patches(f"hidden_states[{layer}]", states, "[B, N, D']", self.features)
        if self.text is not None:
            check_text("text", self.text, self.features)
        if self.image_embeds is not None:
            check_of_patches("image_embeds", self.image_embeds, "[B, N, C]", self.features)
        if self.text_embeds is not None:
            like = self.features if self.image_embeds is None else self.image_embeds
            check_text("text_embeds", self.text_embeds, like)

    def of_layers(self, name: str) -> Mapping[int, Tensor]:
        """`hidden_states` or `received` by layer, an empty mapping where there are none."""
        return getattr(self, name) or {}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its field's name, those of a layer as "hidden_states[layer]"."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in BY_LAYER:
            values |= {f"{name}[{layer}]": value for layer, value in self.of_layers(name).items()}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def crop(self, number: int) -> VisionTokens:
        """One crop alone, B = 1."""
        one = slice(number, number + 1)
        return self.with_tensors({name: value[one] for name, value in self.tensors().items()})

    def with_tensors(self, changed: Mapping[str, Tensor], **other: Any) -> VisionTokens:
        """A copy in which tensors, named as `tensors` names them, and other fields are replaced."""
        direct: dict[str, Any] = {name: value for name, value in changed.items() if "[" not in name}
        for name in BY_LAYER:
            if getattr(self, name) is not None:
                direct[name] = {
                    layer: changed.get(f"{name}[{layer}]", value)
                    for layer, value in self.of_layers(name).items()
                }
        return replace(self, **{**direct, **other})


@dataclass(frozen=True)
class ReducedTokens:
    """The tokens that remain of each crop, and where every token went.

    Attributes:
        features: [B, K, D], dtype of the input. They are zero where `valid` is False.
        keep_indices: [B, K] int64, ascending and unique positions in the crop's raster order.
        valid: [B, K] bool, False where the crop had fewer clusters than K and the slot is empty.
        assignment: [B, N] int64, each token's root. A token whose root is not among the valid
            `keep_indices` was dropped; the others are averaged into their root's slot.
        scores: [B, K] float32, the rank that kept each slot; -inf where `valid` is False.
        grid_size: (rows, cols) of the patch grid where it is known, else None; of a video, of one
            frame.
        cu_seqlens: None, or [B + 1] int32 where each crop had a quota of its own: then the slots of
            all crops lie packed, features [T, D] and keep_indices, valid and scores [T], those of
            crop b from cu_seqlens[b] to cu_seqlens[b + 1], as FlashAttention's varlen functions
            take them.
        extra: None, or [B, E, D] in the dtype of the input: rows that stand for no single token,
            such as the class token or a mean of the rest. They come after the kept tokens unless
            the method says otherwise.
        order: None, or [R] int64, a permutation of the rows of all crops, crop after crop, each
            crop's extra ones last: how a language model reads them. Of a method `by_crop` the crops
            are one image's, and their rows may mix.
    """

    features: Tensor
    keep_indices: Tensor
    valid: Tensor
    assignment: Tensor
    scores: Tensor
    grid_size: tuple[int, int] | None = None
    cu_seqlens: Tensor | None = None
    extra: Tensor | None = None
    order: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """[B, K + E, D]: the features, then the extra rows; what a language model is to read.

        Raises:
            NotImplementedError: the slots lie packed, and rows belong to no slot.
        """
        if self.extra is None:
            return self.features
        if self.cu_seqlens is not None:
            raise NotImplementedError("extra rows cannot be joined to packed slots")
        return torch.cat([self.features, self.extra], dim=1)

    @property
    def counts(self) -> Tensor:
        """[B, K] or [T] int64: how many tokens each slot stands for, 0 where not valid."""
        per_root = torch.zeros_like(self.assignment)
        per_root.scatter_add_(1, self.assignment, torch.ones_like(self.assignment))
        if self.cu_seqlens is None:
            return per_root.gather(1, self.keep_indices) * self.valid
        return per_root[crops_of(self.cu_seqlens), self.keep_indices] * self.valid

    def unpacked(self) -> list[ReducedTokens]:
        """Each crop alone, [1, K, ...] with a K of its own."""
        sizes = None if self.cu_seqlens is None else self.cu_seqlens.diff().tolist()
        parts = {
            name: value.split(1) if sizes is None else [one[None] for one in value.split(sizes)]
            for name in BY_SLOT
            for value in (getattr(self, name),)
        }
        return [
            replace(
                self,
                **{name: of_crops[crop] for name, of_crops in parts.items()},
                assignment=self.assignment[crop : crop + 1],
                extra=None if self.extra is None else self.extra[crop : crop + 1],
                cu_seqlens=None,
                order=None,
            )
            for crop in range(len(self.assignment))
        ]

    @staticmethod
    def cat(parts: Sequence[ReducedTokens]) -> ReducedTokens:
        """Joins results of several batches along B. All must have the same K, N, D and E."""
        if not parts:
            raise ValueError("ReducedTokens.cat expects at least one part, got none")
        if len(parts) == 1:
            return parts[0]
        extra = [part.extra for part in parts if part.extra is not None]
        if extra and len(extra) != len(parts):
            raise ValueError(
                "ReducedTokens.cat expects extra rows in all parts or in none, "
                f"got them in {len(extra)} of {len(parts)}"
            )
        return ReducedTokens(
            features=torch.cat([part.features for part in parts]),
            keep_indices=torch.cat([part.keep_indices for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            assignment=torch.cat([part.assignment for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
            grid_size=parts[0].grid_size,
            cu_seqlens=_cat_cu_seqlens([part.cu_seqlens for part in parts]),
            extra=torch.cat(extra) if extra else None,
            order=_cat_orders([part.order for part in parts]),
        )

    @staticmethod
    def pack(parts: Sequence[ReducedTokens]) -> ReducedTokens:
        """Lays results of any K side by side: packed slots with `cu_seqlens`.

        Args:
            parts: [B, K, ...] each, with one N, D and E; slots that lie packed already are refused.

        Raises:
            ValueError: no parts, or extra rows in some of them only.
            NotImplementedError: parts that lie packed.
        """
        if any(part.cu_seqlens is not None for part in parts):
            raise NotImplementedError("ReducedTokens.pack expects slots [B, K], got packed ones")
        flat = [
            replace(
                part,
                features=part.features.flatten(0, 1),
                keep_indices=part.keep_indices.flatten(),
                valid=part.valid.flatten(),
                scores=part.scores.flatten(),
                cu_seqlens=_bounds(part.keep_indices),
            )
            for part in parts
        ]
        return ReducedTokens.cat(flat)


def _bounds(keep_indices: Tensor) -> Tensor:
    """[B, K] -> [B + 1] int32, where each crop's slots start once they lie packed."""
    batch, num_keep = keep_indices.shape
    starts = torch.arange(batch + 1, dtype=torch.int32, device=keep_indices.device)
    return starts * num_keep


def refuse_extra(name: str, result: ReducedTokens, where: str) -> None:
    """Raises where a result has rows that stand for no token, and `where` cannot place them.

    Args:
        name: of the method, for the message.
        where: what has no place for them, as in "GeoLLaVA-8K".

    Raises:
        NotImplementedError: the result has extra rows.
    """
    if result.extra is not None and result.extra.shape[1]:
        raise NotImplementedError(
            f"{name} adds {result.extra.shape[1]} rows that stand for no single token, "
            f"{where} has no place for them"
        )


def cu_seqlens_of(quotas: Tensor) -> Tensor:
    """[B] slots per crop -> [B + 1] int32, where each crop's slots start."""
    return torch.nn.functional.pad(quotas.cumsum(0), (1, 0)).int()


def crops_of(cu_seqlens: Tensor, total: int | None = None) -> Tensor:
    """[T] int64: the crop of each packed slot. Knowing `total` = T spares a synchronization."""
    crops = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return crops.repeat_interleave(cu_seqlens.diff(), output_size=total)


def _cat_orders(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One part's rows after the other's."""
    orders = [part for part in parts if part is not None]
    if len(orders) != len(parts):
        return None
    starts = torch.tensor([0, *(len(order) for order in orders[:-1])]).cumsum(0).tolist()
    return torch.cat([order + start for order, start in zip(orders, starts, strict=True)])


def _cat_cu_seqlens(parts: Sequence[Tensor | None]) -> Tensor | None:
    packed = [part for part in parts if part is not None]
    if len(packed) != len(parts):
        return None
    return cu_seqlens_of(torch.cat([part.diff() for part in packed]))
