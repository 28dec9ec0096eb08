"""The one way a scene is asked: load once, see once, ask many.

```python
session = Session("initiacms/GeoLLaVA-8K")
harbor = session.see("harbor.tif")
print(harbor.ask("How many ships are there?").text)
```
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from geollava.answering import overlay
from geollava.answering.encoding import SceneTokens, encode_scene
from geollava.answering.generating import Answer, Reply, reduced_reply, reply_to
from geollava.answering.loading import check_pair, load
from geollava.answering.measures import Stopwatch
from geollava.answering.memory import SESSION_MEMORY, SceneMemory, parse_memory
from geollava.answering.prefix import Prefix, prefix_bytes, shared_length, slides
from geollava.answering.prompts import Turn, check_question, prompt_ids
from geollava.answering.reduction import Reduction
from geollava.answering.source import Source
from geollava.common.choices import Dtype
from geollava.imagery import RESIZE_MODES, Scene
from geollava.model.checkpoint import resolve_folder
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.default_model import default_checkpoint
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor

Progress = Callable[[int, int], None]


class Session:
    """A loaded model that sees scenes and is asked about them.

    Args:
        model: folder or hub name of a checkpoint; None is the small one that is shipped.
        num_keep: visual tokens to keep per crop, instead of the checkpoint's own number.
        method: of token reduction, instead of the checkpoint's own. One that needs the question
            (`fastv`, `cdpruner`, ...) chooses among what the checkpoint's own leaves, for each
            question anew; then nothing that the language model reads is kept for the next.
        device, dtype: "auto" is the GPU where there is one, and bfloat16 there.
        resize: "pillow" gives pixels as published; "fast" starts from reduced forms.
        memory_budget: what encoding may take beside the weights, in bytes or as "8GiB"; see
            `encode_scene`.
        session_memory: what may be kept of scenes between questions, in bytes or as "4GiB": their
            visual tokens, and the language model's keys and values of them. The scene used longest
            ago is let go first, and read again when it is asked about. The tokens of the scene
            used last stay in any case, and those of scenes that were given open.

    Attributes:
        model, processor: the loaded pair.
        name: of the checkpoint.
        memory: what is kept of scenes, counted.
        reduction: how visual tokens become fewer now. own: as the loaded model does it.

    Raises:
        ValueError: no such checkpoint, device or method; a pair that does not fit.
    """

    model: GeoLlavaForConditionalGeneration
    processor: GeoLlavaProcessor
    name: str
    memory: SceneMemory
    reduction: Reduction
    own: Reduction

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        num_keep: int | None = None,
        method: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        resize: str = "pillow",
        memory_budget: int | str | None = None,
        session_memory: int | str = SESSION_MEMORY,
    ) -> None:
        for option, value, allowed in (
            ("resize", resize, RESIZE_MODES),
            ("dtype", dtype, get_args(Dtype)),
        ):
            if value not in allowed:
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
        name = os.fspath(model) if model is not None else str(default_checkpoint())
        # What can be wrong is found before weights are loaded.
        budget, memory = bytes_of(memory_budget), SceneMemory(session_memory)
        config = GeoLlavaConfig.from_pretrained(resolve_folder(name))
        reduction = Reduction.choose(config, method, num_keep)
        self._begin(*load(name, device, dtype), name, budget, memory)
        self.reduction = reduction
        self.processor.image_processor.resize = resize

    @classmethod
    def of(
        cls,
        model: GeoLlavaForConditionalGeneration,
        processor: GeoLlavaProcessor,
        *,
        name: str = "",
        memory_budget: int | str | None = None,
        session_memory: int | str = SESSION_MEMORY,
    ) -> Session:
        """A session of a pair that is loaded already, which it shares."""
        session = cls.__new__(cls)
        budget, memory = bytes_of(memory_budget), SceneMemory(session_memory)
        session._begin(model, processor, name, budget, memory)
        return session

    def _begin(
        self, model: Any, processor: Any, name: str, budget: int | None, memory: SceneMemory
    ) -> None:
        check_pair(model, processor)
        self.model, self.processor, self.name = model, processor, name
        self.memory_budget, self.memory = budget, memory
        self.own = self.reduction = Reduction.choose(model.config)

    def reduce(self, method: str | None = None, num_keep: int | None = None) -> None:
        """Reduces visual tokens otherwise in scenes that are seen from now on.

        Args:
            method, num_keep: as of `Session`; None is as the loaded model does.

        Raises:
            ValueError: no such method, or a number that it cannot keep.
        """
        config = copy.deepcopy(self.model.config)
        config.reduction_method, config.num_keep = self.own.method, self.own.num_keep
        self.reduction = Reduction.choose(config, method, num_keep)

    def see(
        self,
        *images: Any,
        bands: Sequence[int] | None = None,
        exif: str | None = None,
        max_pixels: int | None = None,
    ) -> Seen:
        """Opens images, to be asked about together; they are encoded for the first question, once.

        Args:
            images: paths, Pillow images, arrays [H, W, 3], tensors [3, H, W] or open scenes.
            bands, exif, max_pixels: of files; see `imagery.open_scene`.

        Raises:
            ValueError: a file that is no image, damaged, too large or too small.
        """
        options = {"bands": bands, "exif": exif, "max_pixels": max_pixels}
        return Seen(self, [Source(image, options) for image in images])

    def hold(self, tokens: Sequence[SceneTokens]) -> Seen:
        """Tokens of scenes that were encoded before, to be asked about."""
        return Seen(self, [], list(tokens))

    def encode(
        self, scene: Scene, *, reduction: Reduction | None = None, **options: Any
    ) -> SceneTokens:
        """The tokens that are kept of a scene.

        Args:
            reduction: instead of the session's.
            options: of `encode_scene`.
        """
        with (reduction or self.reduction).in_effect(self.model):
            return encode_scene(
                self.model, self.processor, scene, memory_budget=self.memory_budget, **options
            )


class Seen:
    """Scenes that a session has before it.

    What is kept of them counts towards the session's memory: visual tokens from the first question
    on, and the language model's keys and values of them as far as they fit.

    Attributes:
        canvases: that the scenes are fitted to.
    """

    def __init__(
        self,
        session: Session,
        sources: Sequence[Source],
        tokens: list[SceneTokens] | None = None,
    ) -> None:
        self.session, self.sources = session, sources
        self.reduction = session.reduction
        self._tokens = tokens
        self._prefix: Prefix | None = None
        self._closed = False
        if tokens is not None:
            self.canvases = [part.canvas for part in tokens]
            return
        choose = session.processor.image_processor.choose_canvas
        self.canvases = []
        for source in sources:
            with source.opened() as scene:
                self.canvases.append(choose(scene.size))

    def encode(
        self, *, stopwatch: Stopwatch | None = None, progress: Progress | None = None
    ) -> list[SceneTokens]:
        """The tokens that are kept of each scene: encoded now, unless they are there.

        Raises:
            ValueError: see `encode_scene`; a file that has changed.
        """
        if self._closed:
            raise ValueError("this was closed: see the scene again")
        if self._tokens is None:
            tokens = []
            for source, canvas in zip(self.sources, self.canvases, strict=True):
                with source.opened() as scene:
                    tokens.append(
                        self.session.encode(
                            scene,
                            reduction=self.reduction,
                            canvas=canvas,
                            stopwatch=stopwatch,
                            progress=progress,
                        )
                    )
            self._tokens = tokens
        self.session.memory.make_room(self, 0)
        return self._tokens

    @property
    def lengths(self) -> list[int]:
        """Visual tokens that the language model reads of each scene."""
        if self._tokens is not None:
            return [part.after for part in self._tokens]
        return [canvas.crops * self.reduction.num_keep for canvas in self.canvases]

    def prepare(
        self, question: str, max_new_tokens: int = 128, history: Sequence[Turn] = ()
    ) -> Tensor:
        """[L] token ids of the prompt, checked before an image is read.

        Raises:
            ValueError: an empty question; more tokens than the model can take.
        """
        check_question(question)
        model, processor = self.session.model, self.session.processor
        return prompt_ids(model, processor, question, self.lengths, max_new_tokens, history)

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 128,
        history: Sequence[Turn] = (),
        stopwatch: Stopwatch | None = None,
        progress: Progress | None = None,
        listen: Callable[[str], None] | None = None,
    ) -> Answer:
        """Asks a question about the scenes.

        Args:
            max_new_tokens: length limit of the answer.
            history: questions and answers before this one.
            stopwatch: is given the stages "crop", "encode", "prefill" (the language model reads
                the visual tokens) and "answer".
            progress: called with (crops done, crops in all) while a scene is encoded.
            listen: called with each piece of the answer's text while it is written.

        Raises:
            ValueError: see `prepare` and `encode`.
        """
        stopwatch = stopwatch or Stopwatch()
        prompt = self.prepare(question, max_new_tokens, history)
        tokens = self.encode(stopwatch=stopwatch, progress=progress)
        (reply,) = self.reply([prompt], max_new_tokens, stopwatch=stopwatch, listen=listen)
        return Answer(
            text=reply.text,
            confidence=reply.confidence,
            crops=sum(part.canvas.crops for part in tokens),
            tokens_before=sum(part.before for part in tokens),
            tokens_after=(
                sum(part.after for part in tokens) if reply.tokens is None else reply.tokens
            ),
            seconds=stopwatch.seconds,
        )

    @torch.no_grad()
    def reply(
        self,
        prompts: Sequence[Tensor],
        max_new_tokens: int,
        *,
        stopwatch: Stopwatch | None = None,
        listen: Callable[[str], None] | None = None,
    ) -> list[Reply]:
        """The most likely reply to each of the prompts that `prepare` made, all in one batch.

        Args:
            listen: as of `ask`, for one prompt alone.
        """
        stopwatch = stopwatch or Stopwatch()
        model, tokenizer = self.session.model, self.session.processor.tokenizer
        if len(prompts) > 1 and slides(model.config):
            # The padding of a batch would take places in the window.
            return [self.reply([ids], max_new_tokens, stopwatch=stopwatch)[0] for ids in prompts]
        tokens = self.encode(stopwatch=stopwatch)
        with self.reduction.in_effect(model):
            if self.reduction.asked_method is not None and tokens:
                with stopwatch.stage("answer"):
                    how = (max_new_tokens, tokens, self.reduction, listen)
                    return [reduced_reply(model, tokenizer, ids, *how) for ids in prompts]
            with stopwatch.stage("prefill"):
                prefix = self._prefix_of(prompts)
            with stopwatch.stage("answer"):
                return reply_to(model, tokenizer, prompts, max_new_tokens, prefix, listen=listen)

    def _prefix_of(self, prompts: Sequence[Tensor]) -> Prefix | None:
        """What all prompts begin with, up to the last visual token, as the model has read it."""
        model, first = self.session.model, prompts[0]
        length = shared_length(first, model.config.image_token_id)
        for ids in prompts[1:]:
            same = torch.equal(ids[:length], first[:length])
            if not same or shared_length(ids, model.config.image_token_id) != length:
                raise ValueError("prompts of a batch must begin alike, up to the last visual token")
        if length == 0:
            return None
        if self._prefix is not None and torch.equal(self._prefix.ids, first[:length]):
            return self._prefix
        features = torch.cat([part.project(model) for part in self.encode()])
        self._prefix = None
        size = prefix_bytes(model.config, length, model.dtype)
        fits = self.session.memory.make_room(self, size)
        prefix = Prefix.read(model, first[:length], features)
        if fits:
            self._prefix = prefix
        return prefix

    def overlay(self, index: int = 0) -> Image.Image:
        """A scene with what was kept of it drawn over it.

        Raises:
            ValueError: no such scene, or one of which only the tokens are held.
        """
        if not 0 <= index < len(self.sources):
            raise ValueError(f"an overlay needs one of {len(self.sources)} images, got {index}")
        tokens = self.encode()[index]
        with self.sources[index].opened() as scene:
            return overlay.draw(scene, tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept for further questions."""
        tokens = sum(part.nbytes for part in self._tokens or [])
        return tokens + (self._prefix.nbytes if self._prefix is not None else 0)

    @property
    def keeps_prefix(self) -> bool:
        """Whether the next question reads itself alone."""
        return self._prefix is not None

    def release(self) -> None:
        """Gives memory back: what the language model has read, if any of it is kept, else tokens.

        It is made again for the next question. Tokens of scenes that were given open stay.
        """
        if self._prefix is not None:
            self._prefix = None
        elif self.sources and not any(source.is_open for source in self.sources):
            self._tokens = None

    def close(self) -> None:
        """Lets go of everything."""
        self._closed = True
        self._tokens, self._prefix = None, None

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bytes_of(size: int | str | None) -> int | None:
    return parse_memory(size) if isinstance(size, str) else size
