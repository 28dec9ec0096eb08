"""The pipeline "pruned-image-text-to-text": one image, many questions, encoded and reduced once.

Importing this file registers it with transformers (needs the extra hf)::

    import tokenprune.pipelines
    from transformers import pipeline

    pipe = pipeline("pruned-image-text-to-text", model="llava-hf/llava-1.5-7b-hf")
    answers = pipe("scene.jpg", ["What is it?", "Where?"], method="divprune", keep_ratio=0.25)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.config import ReductionConfig
from tokenprune.hosts.apply import apply, open_host
from tokenprune.hosts.compat import Call, cache_of
from tokenprune.method import Method, get_method

try:
    from transformers import AutoModelForImageTextToText, GenerationConfig, Pipeline
    from transformers.image_utils import load_images
    from transformers.pipelines import PIPELINE_REGISTRY
except ImportError as error:
    raise ImportError("a pipeline needs transformers; install tokenprune-vlm[hf]") from error

TASK = "pruned-image-text-to-text"


class PrunedImageTextToTextPipeline(Pipeline):
    """Answers questions about one image, or about several in one prompt.

    The prompt up to the last visual token runs once, with the reduction applied; every question
    goes on in a copy of its cache.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __call__(self, images: Any, questions: str | Sequence[str], **options: Any) -> Any:
        """
        Args:
            images: one, or a list for one prompt: PIL images, paths or URLs.
            questions: one or more.
            options: `method` (a name, a `Method` or a `ReductionConfig`; "divprune" by default),
                `num_keep`, `keep_ratio` and `positions` as `tokenprune.apply` takes them, and
                `max_new_tokens` or `generate_kwargs` for `generate`.

        Returns:
            One dictionary for each question, in order: `question`, `generated_text`,
            `tokens_before` and `tokens_after`, visual tokens of all images.

        Raises:
            ValueError: no question, or a method that chooses tokens by the question.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        if not asked or not all(isinstance(question, str) for question in asked):
            raise ValueError(f"questions must be one text or more, got {questions!r}")
        return super().__call__({"images": images, "questions": asked}, **options)

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **reduction: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        generate = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            generate["max_new_tokens"] = max_new_tokens
        given = {"generate": generate} if generate else {}
        return {}, given | ({"reduction": reduction} if reduction else {}), {}

    def preprocess(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        images = load_images(inputs["images"])
        images = images if isinstance(images, list) else [images]
        prompts = [self.prompt(images, question) for question in inputs["questions"]]
        return {"questions": inputs["questions"], "prompts": prompts}

    def prompt(self, images: list[Any], question: str) -> dict[str, Any]:
        """What the processor makes of one question."""
        shown = [{"type": "image", "image": image} for image in images]
        message = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        if getattr(self.processor, "chat_template", None) is None:
            text = f"{self.processor.image_token * len(images)}\n{question}"
            made = self.processor(images=images, text=text, return_tensors="pt")
        else:
            made = self.processor.apply_chat_template(
                [message],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        return dict(made.to(dtype=self.dtype))

    def _forward(
        self,
        model_inputs: dict[str, Any],
        reduction: Mapping[str, Any] | None = None,
        generate: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        given = dict(reduction or {})
        method = method_of(given.pop("method", "divprune"))
        chosen = method.build() if isinstance(method, ReductionConfig) else method
        if not chosen.query_agnostic:
            raise ValueError(
                f"{type(chosen).__name__} chooses tokens by the question, which comes after an "
                "image that is encoded once; use image-text-to-text inside tokenprune.apply"
            )
        prompts = model_inputs["prompts"]
        model, adapter = open_host(self.model)
        host: Any = model
        length = shared_length(prompts, adapter.image_token_id)
        name = Call.of(adapter.model.forward).cache_name
        config = getattr(self, "generation_config", None)
        options = {"generation_config": config} | dict(generate or {})
        tokens = []
        with apply(host, method, **given) as handle:
            cache = cache_of(host(**beginning(prompts[0], length), use_cache=True))
            for prompt in prompts:
                goes_on = {name: copy.deepcopy(cache)}
                said = host.generate(**columns_of(prompt), **goes_on, **options)
                tokens.append(said[:, prompt["input_ids"].shape[1] :])
            report = handle.report()
        return {
            "questions": model_inputs["questions"],
            "tokens": tokens,
            "counts": (sum(report.tokens_before), sum(report.tokens_after)),
        }

    def postprocess(self, model_outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        before, after = model_outputs["counts"]
        return [
            {
                "question": question,
                "generated_text": self.processor.decode(tokens[0], skip_special_tokens=True),
                "tokens_before": before,
                "tokens_after": after,
            }
            for question, tokens in zip(
                model_outputs["questions"], model_outputs["tokens"], strict=True
            )
        ]


def method_of(method: str | Method | ReductionConfig) -> Method | ReductionConfig:
    return get_method(method) if isinstance(method, str) else method


def columns_of(prompt: Mapping[str, Any]) -> dict[str, Tensor]:
    """What has a column for each token: [1, L]."""
    shape = prompt["input_ids"].shape
    return {
        name: value
        for name, value in prompt.items()
        if isinstance(value, Tensor) and value.shape == shape
    }


def beginning(prompt: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The prompt's first columns, with its images."""
    return {**prompt, **{name: value[:, :length] for name, value in columns_of(prompt).items()}}


def shared_length(prompts: Sequence[Mapping[str, Any]], image_token: int) -> int:
    """Columns up to the last visual token, which all prompts have in common.

    Raises:
        ValueError: they do not, or there are none.
    """
    first = prompts[0]["input_ids"]
    marks = (first[0] == image_token).nonzero()[:, 0]
    if not len(marks):
        raise ValueError("the prompt must hold the image's visual tokens, the processor wrote none")
    length = int(marks[-1]) + 1
    for prompt in prompts[1:]:
        ids = prompt["input_ids"]
        if not torch.equal(ids[:, :length], first[:, :length]) or bool(
            (ids[:, length:] == image_token).any()
        ):
            raise ValueError("the questions must come after the image in the processor's template")
    return length


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=PrunedImageTextToTextPipeline,
    pt_model=AutoModelForImageTextToText,
    type="multimodal",
)
