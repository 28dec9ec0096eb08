"""Answers about a scene, shown as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geollava.answering import geojson, overlay
from geollava.answering.generating import Answer
from geollava.answering.measures import Stopwatch, peak_memory_mib
from geollava.answering.session import Seen, Session
from geollava.commands.console import note, progress_of, show_rows
from geollava.common.outputs import check_output
from geollava.imagery import Scene
from geollava.model.default_model import DEMONSTRATION, is_default

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Files:
    """What is written of a scene; checked before an image is read."""

    overlay: Path | None
    tokens_geojson: Path | None

    def __post_init__(self) -> None:
        if self.overlay is not None:
            check_output(self.overlay, "the overlay", overlay.SUFFIXES)
        if self.tokens_geojson is not None:
            check_output(self.tokens_geojson, "the GeoJSON file", geojson.SUFFIXES)

    def write(self, seen: Seen, stopwatch: Stopwatch) -> None:
        asked = seen.reduction.asked_method
        if asked is not None and (self.overlay or self.tokens_geojson):
            note(f"what is drawn is kept before a question is read; {asked} chooses among it")
        if self.overlay is not None:
            with stopwatch.stage("overlay"):
                overlay.save(seen.overlay(), self.overlay)
        if self.tokens_geojson is not None:
            with stopwatch.stage("geojson"):
                (tokens,) = seen.encode()
                geojson.save(geojson.token_features(tokens), self.tokens_geojson)


@dataclass
class AskedScene:
    """A scene that is asked about, and how its answers are shown.

    Attributes:
        max_new_tokens: length limit of an answer.
        as_json: an object on each line, instead of text.
        files: written after the first answer.
        seconds: what was done before it, by stage; its seconds hold them too.
        may_follow: more questions may come, so it is told what is kept for them.
        answered: so many questions.
    """

    session: Session
    scene: Scene
    max_new_tokens: int
    as_json: bool
    files: Files
    seconds: dict[str, float] = field(default_factory=dict)
    may_follow: bool = False
    answered: int = 0

    def answer(self, question: str, ask: Callable[..., Answer], seen: Seen) -> None:
        """Asks, and shows the answer.

        Args:
            ask: `Seen.ask`, or `Conversation.ask` of the same.

        Raises:
            ValueError: see `Seen.ask`.
        """
        first = self.answered == 0
        stopwatch = Stopwatch(dict(self.seconds) if first else {})
        with progress_of("crops") as progress:
            answer = ask(
                question,
                max_new_tokens=self.max_new_tokens,
                stopwatch=stopwatch,
                progress=progress,
            )
        if first:
            self.files.write(seen, stopwatch)
        self.answered += 1
        if self.as_json:
            print(json.dumps(self.report(question, answer, seen), ensure_ascii=False), flush=True)
        else:
            print(answer.text, flush=True)
            self.show(answer, seen, first)
        if first and self.may_follow and not seen.keeps_prefix:
            asked = self.session.reduction.asked_method
            reason = f"{asked} chooses among them" if asked else "--session-memory is too small"
            note(f"each question reads all visual tokens anew: {reason}")

    def announce(self) -> None:
        """Says what no answer of this model can be taken for."""
        if is_default(self.session.name):
            note(DEMONSTRATION)
        if self.session.model.config.untrained:
            note("this model's weights are untrained, its answer means nothing")

    def report(self, question: str, answer: Answer, seen: Seen) -> dict[str, Any]:
        """What is known of an answer, as JSON."""
        memory = self.session.memory
        return {
            "question": question,
            "answer": answer.text,
            "model": self.session.name,
            "method": self.session.reduction.name,
            "demonstration": is_default(self.session.name),
            "untrained": self.session.model.config.untrained,
            "image_size": list(self.scene.size),
            "canvas_size": list(seen.canvases[0].size),
            "crops": answer.crops,
            "tokens_before": answer.tokens_before,
            "tokens_after": answer.tokens_after,
            "seconds": {name: round(value, 3) for name, value in answer.seconds.items()},
            "session_memory_mib": round(memory.nbytes / 2**20, 1),
            "peak_memory_mib": peak_memory_mib(),
        }

    def show(self, answer: Answer, seen: Seen, first: bool) -> None:
        """What an answer took; of the first, what was seen too."""
        stages = [f"{name} {value:.1f}" for name, value in answer.seconds.items()]
        rows = [("seconds", f"{sum(answer.seconds.values()):.1f}: " + ", ".join(stages))]
        if first:
            peak = ("peak memory", f"{peak_memory_mib():,} MiB")
            rows = [*self.of_tokens(seen), *rows, peak, self.of_memory()]
            if self.files.overlay is not None:
                rows.append(("overlay", str(self.files.overlay)))
        show_rows(rows)

    def of_tokens(self, seen: Seen) -> Rows:
        """Rows about the scene and its tokens, whether it is encoded or not."""
        width, height = self.scene.size
        (canvas,), (after,) = seen.canvases, seen.lengths
        rows, cols = self.session.model.config.grid_size
        before = canvas.crops * rows * cols
        found = [
            ("image", f"{width:,} x {height:,} px, {canvas.crops} crops"),
            ("visual tokens", f"{before:,} -> {after:,} ({before / after:.0f} times fewer)"),
        ]
        chosen = seen.reduction
        if chosen.asked_method is not None:
            share = f"{chosen.asked_keep} of {chosen.num_keep} per crop, by {chosen.asked_method}"
            found.append(("for each question", share))
        return found

    def of_memory(self) -> tuple[str, str]:
        memory = self.session.memory
        kept, limit = memory.nbytes / 2**20, memory.limit / 2**20
        return "kept", f"{kept:,.1f} of {limit:,.0f} MiB, for more questions"
