"""Fewer visual tokens in a transformers model: what remains, what is saved, what comes out.

    python examples/reduce_any_vlm.py                     tiny random models, no downloads
    python examples/reduce_any_vlm.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg \
        --question "What is in the picture?" --method divprune --keep-ratio 0.25
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import tokenprune


def ask(model: Any, inputs: dict[str, Any], options: argparse.Namespace) -> torch.Tensor:
    """The two lines that it takes; the rest is printing."""
    with tokenprune.apply(model, options.method, keep_ratio=options.keep_ratio) as handle:
        tokens = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
    print(handle.report())
    return tokens[:, inputs["input_ids"].shape[1] :]


def ask_real_model(options: argparse.Namespace) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(options.model)
    content = [
        {"type": "image", "image": Image.open(options.image).convert("RGB")},
        {"type": "text", "text": options.question},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    print(processor.batch_decode(ask(model, inputs, options), skip_special_tokens=True)[0])


def ask_tiny_models(options: argparse.Namespace) -> None:
    """One image, one prompt; the words of random weights mean nothing, so none are shown."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.tokenprune.hosts import HOSTS

    for name, build in HOSTS.items():
        torch.manual_seed(0)
        host = build()
        print(f"\n{name}")
        ask(host.model, host.inputs([[4, 0, 6]]), options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="a folder or hub name; tiny random models without it")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--question", default="What is in the picture?")
    parser.add_argument("--method", default="divprune", help=", ".join(tokenprune.list_methods()))
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    if options.model is None:
        ask_tiny_models(options)
    elif options.image is None:
        parser.error("--model needs an --image")
    else:
        ask_real_model(options)


if __name__ == "__main__":
    main()
