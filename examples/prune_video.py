"""A video with fewer tokens: what has changed since the frame before stays, the rest leaves.

    python examples/prune_video.py --picture kept.png        a tiny random model, a drawn video
    python examples/prune_video.py --model Qwen/Qwen3-VL-2B-Instruct --video clip.mp4 \
        --question "What moves?" --method evs --keep-ratio 0.3

The drawn video is a square that moves over noise. What remains of it is printed frame by frame, and
drawn where `--picture` says: tokens that left are dark.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokenprune

FRAMES, SIDE, PATCH, MERGE = 6, 128, 16, 2  # in pixels; 2 x 2 patches make a token


def draw_video() -> Tensor:
    """[2 * FRAMES, 3, SIDE, SIDE] in [0, 1]: two pictures make a frame of tokens."""
    generator = torch.Generator().manual_seed(0)
    ground = 0.4 * torch.rand(3, SIDE, SIDE, generator=generator)
    frames = ground.repeat(2 * FRAMES, 1, 1, 1)
    for number, frame in enumerate(frames):
        left = 8 + 32 * (number // 2) % (SIDE - 32)
        frame[:, 40:72, left : left + 32] = torch.tensor([1.0, 0.8, 0.2])[:, None, None]
    return frames


def patches_of(frames: Tensor) -> tuple[Tensor, Tensor]:
    """What Qwen's video processor makes of frames: [patches, values], and their grid [1, 3]."""
    grid = (len(frames) // 2, SIDE // PATCH, SIDE // PATCH)
    cut = frames.unflatten(0, (-1, 2)).unflatten(4, (-1, MERGE, PATCH))
    cut = cut.unflatten(3, (-1, MERGE, PATCH))  # frame, picture, color, y, y, y, x, x, x
    patches = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(0, 4)
    return (patches - 0.5) / 0.5, torch.tensor([grid])


def prune_drawn_video(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.tokenprune.families.videos import with_videos

    frames = draw_video()
    pixels, grid = patches_of(frames)
    host = with_videos("qwen3_vl")
    a_frame = (SIDE // PATCH // MERGE) ** 2
    ids = [1, 20, 21]
    for _ in range(FRAMES):
        ids += [30, 102, *[101] * a_frame, 103]  # a time, and a frame between its marks
    ids = torch.tensor([[*ids, 22, 23]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
        "mm_token_type_ids": 2 * (ids == 101).int(),
    }
    budget = {"keep_ratio": options.keep_ratio, "per": options.per}
    with torch.no_grad(), tokenprune.apply(host.model, options.method, **budget) as handle:
        host.model(**inputs)
    print(handle.report())
    remain = torch.zeros(ids.shape[1], dtype=torch.bool)
    remain[handle.kept_positions[0]] = True
    kept = remain[ids[0] == 101].unflatten(0, (FRAMES, -1))
    for number, frame in enumerate(kept):
        print(f"frame {number + 1}: {int(frame.sum())} of {a_frame} tokens remain")
    if options.picture is not None:
        draw_kept(frames[::2], kept, options.picture)


def draw_kept(frames: Tensor, kept: Tensor, path: Path) -> None:
    from PIL import Image

    side = SIDE // PATCH // MERGE
    light = kept.unflatten(1, (1, side, side)).float().clamp(min=0.15)
    light = light.repeat_interleave(SIDE // side, 2).repeat_interleave(SIDE // side, 3)
    strip = torch.cat(list(frames * light), dim=2)
    image = (255 * strip).byte().permute(1, 2, 0).contiguous()
    Image.frombytes("RGB", (strip.shape[2], SIDE), image.numpy().tobytes()).save(path)
    print(f"drawn in {path}")


def ask_real_model(options: argparse.Namespace) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(options.model)
    content = [
        {"type": "video", "path": str(options.video)},
        {"type": "text", "text": options.question},
    ]
    inputs: Any = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    budget = {"keep_ratio": options.keep_ratio, "per": options.per}
    with tokenprune.apply(model, options.method, **budget) as handle:
        said = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    print(handle.report())
    answer = said[:, inputs["input_ids"].shape[1] :]
    print(processor.batch_decode(answer, skip_special_tokens=True)[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="a folder or hub name; a tiny random model without it")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--question", default="What moves?")
    parser.add_argument("--method", default="evs", help="evs, or a method that works by frame")
    parser.add_argument("--keep-ratio", type=float, default=0.4)
    parser.add_argument("--per", default="image", help="image: of the video; frame: of each frame")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.model is None:
        prune_drawn_video(options)
    elif options.video is None:
        parser.error("--model needs a --video")
    else:
        ask_real_model(options)


if __name__ == "__main__":
    main()
