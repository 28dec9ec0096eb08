"""FlashVID: attended and diverse tokens, and trees of the rest over time (arXiv 2602.08024)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune import ops
from tokenprune.clustering import density_peaks
from tokenprune.method import Method
from tokenprune.ops.common.checks import check_int
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

NEIGHBORS = 7  # of the density


@dataclass(kw_only=True)
class FlashVID(Method):
    r"""Keeps attended, diverse tokens of each frame, and merges the rest over time, then in place.

    The stage before the language model. It works on videos alone; images in the same prompt stay
    whole.

    Attributes:
        alpha: share of the budget for attended, diverse tokens, in [0, 1].
        temporal_threshold: tokens more alike than this to one of the frame before merge into it,
            within a segment.
        segment_threshold: a new segment begins where frames' means are less alike than this.
        min_segments: at least so many segments, as long as there are frames.
        ratio: the official retention ratio in (0, 1], by which counts are rounded up; the budget is
            then no limit, and slots lie packed. One video at a time. None keeps the budget exactly.
        expansion: what the official code keeps more of here, for the language model to prune;
            with `ratio` alone.

    Raises:
        ValueError: an option out of range.

    Formula:
        Of each frame of P tokens, $n$ are chosen greedily by the distance
        $d_{ij} = a_i (1 - \cos(x_i, x_j))$ to the nearest chosen token $j$, as in `divprune`, with
        $a$ the attention received. Of the others, within a segment,

        $$t(i) = \arg\max_{j \text{ one frame before}} \cos(x_i, x_j), \qquad
        i \to t(i) \;\text{ if }\; \cos(x_i, x_{t(i)}) > \theta,$$

        where $\theta$ is `temporal_threshold`, raised until no fewer than the budget's tokens are
        left. A tree's mean stands at its root. The roots of a frame form clusters by density peaks,
        7 neighbors, whose means stand at their centers.

        With budget K and F frames $n = \lfloor \alpha K / F \rfloor$, and the $K - n F$ clusters
        are dealt out by the frames' roots. With `ratio` $\beta = \lceil 1.25\, r P \rceil$,
        $n = \lceil \alpha \beta \rceil$, and a segment of G frames and m roots forms
        $\lceil m_f G (\beta - n) / m \rceil$ clusters in a frame of $m_f$.

    Cost:
        $F P^2 D$ products twice, and as much memory as $F P^2$; loops over frames and choices.

    Fails when:
        - attention sinks: distances are weighted by attention, so that diverse tokens that nobody
          attends to are merged.
        - things move fast: their tokens find no like one in the frame before, and clusters of a
          frame mix them with the ground.
        - the budget is below a token for each frame: nothing is chosen by attention.

    Faithful:
        With `ratio`, indices and merged rows equal those recorded from the official code in two
        cases (`tests/tokenprune/test_replay.py`), with its quirks: a root divides by its direct
        children alone, and a segment of one frame clusters the chosen tokens too, so that an index
        may stand for two rows (the second is an extra row here). The official clustering adds
        random noise of $10^{-6}$ to densities, which is left out here: of two tokens as dense the
        first counts as denser. The later cut inside the language model is not part.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    merges: ClassVar[bool] = True
    over_time: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2602.08024"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "an exact budget for rounded counts; means of whole trees; no cut in the language model"
    )
    alpha: float = 0.7
    temporal_threshold: float = 0.8
    segment_threshold: float = 0.9
    min_segments: int = 4
    ratio: float | None = None
    expansion: float = 1.25

    def __post_init__(self) -> None:
        check_int("min_segments", self.min_segments, low=1)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.ratio is None:
            return
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")
        self.declare(
            faithful="faithful to Fanziyang-v/FlashVID@1d37422",
            approximates="no noise in densities; no cut in the language model",
        )

    def count(self, num_tokens: int, num_keep: int) -> int | None:
        return num_keep if self.ratio is None else None

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        videos = [tokens.crop(number) for number in range(len(tokens.features))]
        if self.ratio is not None:
            if len(videos) != 1:
                raise NotImplementedError(f"ratio takes one video at a time, got {len(videos)}")
            return ReducedTokens.pack([self._one(videos[0], num_keep)])
        if not videos:
            return select_tokens(tokens, best(tokens.attention, num_keep), tokens.attention)
        return ReducedTokens.cat([self._one(video, num_keep) for video in videos])

    def _one(self, video: VisionTokens, num_keep: int) -> ReducedTokens:
        assert video.attention is not None  # it is in `needs`
        features = video.features[0].unflatten(0, (video.frames, -1))  # [F, P, D]
        states = features.to(wide_dtype(features.dtype))
        num_frames, places, _ = states.shape
        chosen_each, per_frame = self._budget(num_frames, places, num_keep)
        attention = video.attention[0].detach().view(num_frames, places)
        chosen = attended_and_diverse(states.detach(), attention, chosen_each)
        free = torch.ones_like(attention, dtype=torch.bool).scatter_(1, chosen, False)

        lengths = self.segments(states.detach())
        trees = [
            self._trees(part, available, per_frame)
            for part, available in zip(states.split(lengths), free.split(lengths), strict=True)
        ]
        means, is_root, parent = (torch.cat(parts) for parts in zip(*trees, strict=True))
        if self.ratio is None:
            clusters = dealt_out(is_root.sum(1), num_keep - chosen.numel())
        else:
            clusters = []
            for part in is_root.split(lengths):
                share = (per_frame - chosen_each) * len(part) / max(int(part.sum()), 1)
                clusters += [math.ceil(n * min(share, 1)) for n in part.sum(1).tolist()]

        numbers = torch.arange(num_frames * places, device=states.device).view(num_frames, places)
        root = numbers.clone()
        kept = [numbers.gather(1, chosen).flatten()]
        made = [rows(states, chosen).flatten(0, 1)]
        for frame in range(num_frames):
            places_of = is_root[frame].nonzero()[:, 0]
            if clusters[frame]:
                members = means[frame, places_of][None]
                number = clusters[frame]
                centers, cluster = density_peaks(members.detach(), number, min(number, NEIGHBORS))
                made.append(ops.cluster_mean(members, centers.gather(1, cluster), centers)[0])
                kept.append(numbers[frame, places_of[centers[0]]])
                moves = kept[-1][cluster[0]]
                moved = places_of[free[frame, places_of]]
                root[frame, moved] = moves[free[frame, places_of]]
            merged = parent[frame] >= 0
            root[frame, merged] = root[frame - 1, parent[frame, merged]]
        return self._result(video, torch.cat(kept), torch.cat(made), root.flatten())

    def _budget(self, num_frames: int, places: int, num_keep: int) -> tuple[int, float]:
        """Tokens of a frame that are chosen, and how many remain of it in all, on average."""
        if self.ratio is None:
            return int(self.alpha * num_keep / num_frames), num_keep / num_frames
        per_frame = min(math.ceil(places * self.ratio * self.expansion), places)
        return math.ceil(per_frame * self.alpha), per_frame

    def segments(self, states: Tensor) -> list[int]:
        """[F, P, D] -> how many frames each segment has."""
        means = functional.normalize(states.mean(1), dim=1)
        alike = (means[:-1] * means[1:]).sum(1)
        cut = alike < self.segment_threshold
        missing = min(self.min_segments - 1, len(alike)) - int(cut.sum())
        if missing > 0:
            least = alike.masked_fill(cut, torch.inf).argsort(stable=True)[:missing]
            cut[least] = True
        ends = [*(cut.nonzero()[:, 0] + 1).tolist(), len(states)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def _trees(
        self, states: Tensor, free: Tensor, per_frame: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a segment that resemble one of the frame before merge into it.

        Args:
            states: [G, P, D].
            free: [G, P], whether a token may merge.
            per_frame: so many tokens of a frame stay at least, on average.

        Returns:
            [G, P, D] with the means of the trees at their roots, [G, P] the roots, and [G, P] the
            place in the frame before that a token merges into, or -1.
        """
        official = self.ratio is not None
        parent = torch.full(free.shape, -1, device=states.device)
        if len(states) == 1:  # the official code clusters the chosen tokens once more
            return states, torch.ones_like(free) if official else free, parent
        units = functional.normalize(states.detach(), dim=2)
        alike = units[1:] @ units[:-1].mT
        alike = alike.masked_fill(~(free[1:, :, None] & free[:-1, None]), -1)
        closest, match = functional.pad(alike, (0, 0, 0, 0, 1, 0), value=-1).max(2)
        merges = closest > self.temporal_threshold
        lower = math.ceil(per_frame * len(states))
        if int((~merges).sum()) < lower:
            spare = closest.numel() - lower
            ranked = closest.flatten().sort(descending=True).values
            merges = closest > ranked[max(spare - 1, 0)].clamp(min=-1 + 1e-6)
        parent[merges] = match[merges]
        sums, counts = list(states), list(torch.ones_like(states[..., :1]))
        for frame in range(len(states) - 1, 0, -1):
            moving = merges[frame]
            to = match[frame, moving]
            one = torch.ones_like(counts[frame][moving])
            sums[frame - 1] = sums[frame - 1].index_add(0, to, sums[frame][moving])
            carried = one if official else counts[frame][moving]
            counts[frame - 1] = counts[frame - 1].index_add(0, to, carried)
        return torch.stack(sums) / torch.stack(counts), free & ~merges, parent

    @staticmethod
    def _result(video: VisionTokens, kept: Tensor, made: Tensor, root: Tensor) -> ReducedTokens:
        """Rows [M, D] of the tokens [M]; the second row of a token becomes an extra one."""
        assert video.attention is not None  # it is in `needs`
        kept, order = kept.sort(stable=True)
        made = made[order].to(video.features.dtype)
        again = torch.zeros_like(kept, dtype=torch.bool)
        again[1:] = kept[1:] == kept[:-1]
        result = select_tokens(video, kept[~again][None], video.attention)
        extra = made[again][None] if again.any() else None
        return replace(result, features=made[~again][None], assignment=root[None], extra=extra)


def attended_and_diverse(states: Tensor, attention: Tensor, number: int) -> Tensor:
    """[F, P, D] and [F, P] -> [F, number] places, ascending: far from each other, and attended."""
    units = functional.normalize(states, dim=2)
    between = (1 - units @ units.mT) * attention[:, None]  # of each column, to the rows
    frames = torch.arange(len(states), device=states.device)
    chosen = torch.empty(len(states), 0, dtype=torch.int64, device=states.device)
    # The first is the one whose nearest other is farthest; a token itself is the nearest.
    nearest = between.sort(dim=1).values[:, min(1, between.shape[1] - 1)]
    for _ in range(number):
        place = nearest.scatter(1, chosen, -torch.inf).argmax(1)
        distance = between[frames, place]
        nearest = torch.minimum(nearest, distance) if chosen.shape[1] else distance
        chosen = torch.cat([chosen, place[:, None]], 1)
    return chosen.sort(1).values


def dealt_out(sizes: Tensor, total: int) -> list[int]:
    """[F] sizes -> shares of `total` in proportion to them, none larger than its size."""
    largest = int(sizes.max())
    seats = torch.arange(largest, device=sizes.device)
    price = (seats + 0.5) / sizes[:, None].clamp(min=1)
    price = price.masked_fill(seats >= sizes[:, None], torch.inf)
    taken = best(-price.flatten()[None], total)[0]
    return torch.bincount(taken // max(largest, 1), minlength=len(sizes)).tolist()
