"""A conversation about an image: it is encoded and reduced once, every turn goes on in the cache.

    python examples/conversation.py                      a tiny random model, no downloads
    python examples/conversation.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg \
        "What is in the picture?" "What color is it?" --method divprune --keep-ratio 0.25

The later turns run after the block: the cache remembers which tokens left. Random weights say
nothing, so without a model only the numbers are of interest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import tokenprune

QUESTIONS = ["What is in the picture?", "What color is it?", "Where is it?"]


def load(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(model, processor, image)."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if options.model is not None:
        model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto")
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        processor = AutoProcessor.from_pretrained(options.model)
        return model, processor, Image.open(options.image).convert("RGB")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.tokenprune.checkpoint import write_llava

    with tempfile.TemporaryDirectory() as folder:
        write_llava(Path(folder))
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
    return model, processor, Image.linear_gradient("L").convert("RGB")


def converse(model: Any, processor: Any, image: Any, options: argparse.Namespace) -> None:
    first, *later = options.questions
    content = [{"type": "image", "image": image}, {"type": "text", "text": first}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    with tokenprune.apply(model, options.method, keep_ratio=options.keep_ratio) as handle:
        said = model.generate(**inputs, **settings)
    print(handle.report())
    asked = inputs["input_ids"].shape[1]
    show(processor, said, asked, first, options)
    for question in later:
        answer = processor.decode(said.sequences[0, asked:])
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": [{"type": "text", "text": question}]},
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        # What was said is in the cache token by token; only what comes after it is encoded anew.
        new = processor.tokenizer(
            text.rsplit(answer, 1)[1], add_special_tokens=False, return_tensors="pt"
        ).input_ids.to(model.device)
        ids = torch.cat([said.sequences, new], 1)
        asked = ids.shape[1]
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **cache_of(said), **settings
        )
        show(processor, said, asked, question, options)


def cache_of(said: Any) -> dict[str, Any]:
    """The cache under the name that this transformers calls it by."""
    name = "cache" if "cache" in said else "past_key_values"
    return {name: said[name]}


def show(processor: Any, said: Any, asked: int, question: str, options: argparse.Namespace) -> None:
    answer = processor.decode(said.sequences[0, asked:], skip_special_tokens=True)
    (cache,) = cache_of(said).values()
    held = max(layer.keys.shape[2] for layer in cache.layers)
    print(f"\n{question}\n{answer if options.model else '(random words)'}")
    print(f"the conversation has {cache.get_seq_length()} tokens, the cache holds {held}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", help="a folder or hub name; a tiny random model without it")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--method", default="divprune", help=", ".join(tokenprune.list_methods()))
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    options = parser.parse_args()
    if options.model is not None and options.image is None:
        parser.error("--model needs an --image")
    converse(*load(options), options)


if __name__ == "__main__":
    main()
