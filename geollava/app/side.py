"""A scene under one reduction: what is kept of it, and a conversation about it."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import numpy as np

from geollava.answering import geojson, overlay
from geollava.answering.conversation import Conversation
from geollava.answering.encoding import SceneTokens
from geollava.answering.measures import Stopwatch, peak_memory_mib
from geollava.answering.session import Seen, Session
from geollava.answering.settings import Settings
from geollava.app.desk import Event, Tell
from geollava.app.limits import QUESTION_CHARACTERS
from geollava.app.opening import OpenScene

LEFT_OUT = -1  # in place of a root, of a token that no kept one is the mean of


class Side:
    """What a viewer sees of a scene. All of it runs in the desk's thread, but for `close`.

    Attributes:
        layers: gzipped int32 [rows, cols] over the canvas's tokens: the place of the token that
            each is averaged into, or `LEFT_OUT`. A token that is kept has its own.
    """

    def __init__(self, session: Session, scene: OpenScene, settings: Settings) -> None:
        self.session, self.scene, self.settings = session, scene, settings
        self.conversation: Conversation | None = None
        self.layers = b""

    def see(self, method: str, num_keep: int | None, tell: Tell) -> Event:
        """Encodes the scene under a method; what was said of it before stays.

        Raises:
            ValueError: no such method, or a number that it cannot keep.
        """
        self.session.reduce(method, num_keep)
        options = self.settings.of_scenes() | {"max_pixels": None}  # it was opened before
        seen = self.session.see(self.scene.path, **options)
        stopwatch = Stopwatch()

        def progress(done: int, total: int) -> None:
            tell({"stage": "crops", "done": done, "total": total})

        try:
            (tokens,) = seen.encode(stopwatch=stopwatch, progress=progress)
            roots = root_map(tokens)
        except BaseException:
            seen.close()
            raise
        self.layers = gzip.compress(roots.astype("<i4").tobytes(), compresslevel=1)
        if self.conversation is None:
            self.conversation = Conversation(seen)
        else:
            self.conversation.seen.close()
            self.conversation.seen = seen
        return {
            "seen": {
                "method": seen.reduction.name,
                "num_keep": seen.reduction.asked_keep or seen.reduction.num_keep,
                **layout_of(tokens, roots),
                **self.measures(stopwatch.seconds),
            }
        }

    def ask(self, question: str, tell: Tell) -> Event:
        """Answers a question, and tells the answer's words as they come.

        Raises:
            ValueError: an empty or too long question; see `Seen.ask`.
        """
        if len(question) > QUESTION_CHARACTERS:
            raise ValueError(
                f"a question must have at most {QUESTION_CHARACTERS:,} characters, "
                f"got {len(question):,}"
            )
        assert self.conversation is not None
        answer = self.conversation.ask(
            question,
            max_new_tokens=self.settings.max_new_tokens,
            progress=lambda done, total: tell({"stage": "crops", "done": done, "total": total}),
            listen=lambda text: tell({"text": text}),
        )
        return {
            "answer": {
                "text": answer.text,
                "tokens_before": answer.tokens_before,
                "tokens_after": answer.tokens_after,
                **self.measures(answer.seconds),
            }
        }

    def measures(self, seconds: dict[str, float]) -> Event:
        """Seconds by stage, and memory in MiB."""
        return {
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "peak_memory_mib": peak_memory_mib(),
            "session_memory_mib": round(self.session.memory.nbytes / 2**20, 1),
        }

    def overlay(self, tell: Tell) -> Event:
        """The scene with what was kept drawn over it, as PNG."""
        written = io.BytesIO()
        self.seen.overlay().save(written, "PNG")
        return {"bytes": written.getvalue()}

    def geojson(self, tell: Tell) -> Event:
        """What was kept as GeoJSON."""
        (tokens,) = self.seen.encode()
        collection = geojson.token_features(tokens)
        return {"bytes": json.dumps(collection, allow_nan=False).encode()}

    @property
    def seen(self) -> Seen:
        assert self.conversation is not None
        return self.conversation.seen

    def close(self) -> None:
        if self.conversation is not None:
            self.conversation.seen.close()


def root_map(tokens: SceneTokens) -> np.ndarray:
    """int64 [rows, cols] over the canvas's tokens: see `Side.layers`."""
    _, members = overlay.token_maps(tokens)
    rows, cols = tokens.map.cells(tokens.kept.assignment.cpu().numpy())
    places = tokens.map.over_canvas(rows * tokens.map.shape[1] + cols)
    return np.where(members, places, LEFT_OUT)


def layout_of(tokens: SceneTokens, roots: np.ndarray) -> dict[str, Any]:
    """Where the map of roots lies over the image, in its pixels, and what it counts."""
    canvas = tokens.canvas
    left, top, _, _ = canvas.image_box
    across = canvas.image_size[0] / canvas.fitted_size[0]
    down = canvas.image_size[1] / canvas.fitted_size[1]
    kept = int((roots.ravel() == np.arange(roots.size)).sum())
    return {
        "grid": list(roots.shape),
        "crops": list(canvas.grid),
        "box": [-left * across, -top * down, canvas.size[0] * across, canvas.size[1] * down],
        "tokens_before": tokens.before,
        "tokens_after": tokens.after,
        "kept": kept,
        "merged": int((roots != LEFT_OUT).sum()) - kept,
        "left_out": int((roots == LEFT_OUT).sum()),
        "empty": tokens.after - kept,
    }
