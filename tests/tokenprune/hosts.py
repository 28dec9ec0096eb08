"""Every family of hosts, tiny and random, and prompts for it as its processor would write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from packaging.version import Version
from torch import Tensor

from tokenprune.method import list_methods, method_class, required_options

# What this transformers calls the cache, in arguments and outputs alike.
CACHE = "cache" if Version(hf.__version__) >= Version("5.24") else "past_key_values"
# Hosts that, whole as they are, say something else without a cache than with one, or fail:
# generate() does not lengthen ERNIE's `moe_mm_token_type_ids`.
NEEDS_CACHE = {"ernie4_5_vl_moe"}
NEEDS_CACHE |= {"paligemma"} if Version(hf.__version__) < Version("5.18") else set()
# Methods that no prompt of images is for, or that need what no host hands over, and the refusal.
NOT_HANDED = {"image_embeds", "text_embeds"}
NOT_OF_IMAGES = {
    name: "compares the frames of videos" if method_class(name).over_time else "hands over"
    for name in list_methods()
    if method_class(name).over_time or NOT_HANDED & set(method_class(name).needs)
}
# Methods with weights that belong to one model, options for towers as shallow as these, and
# methods of a class token and of an image's crops, which few hosts have.
OF_ONE_MODEL = {name for name in list_methods() if required_options(method_class(name))}
IN_SHALLOW_TOWERS: dict[str, dict[str, Any]] = {
    "nuwa": {"layers": (-2,)},
    "hiprune": {"object_layer": 0},
}
BY_CROP = {name for name in list_methods() if method_class(name).by_crop}
IMAGE, VIDEO, START, END, PAD = 100, 101, 102, 103, 0
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]


def cache_in(output: Any) -> Any:
    """The cache of a forward's or of `generate`'s output."""
    return getattr(output, CACHE)


@dataclass
class Host:
    """A model, and how to write prompts with images for it.

    Attributes:
        model: in float32 and eval mode.
        images: images per row -> the arguments that they come as.
        sizes: the arguments' sizes as `retained_count` takes them.
        extra: token types that the processor adds, from input_ids.
        crop_tokens: placeholders per image where the host's features are not one entry per image.
        image: the placeholder.
        before, after: what stands around an image's placeholders.
        videos: videos per row -> the arguments that they come as; None where it takes none.
        runs: for each of them how many placeholders stand together; a timestamp between two runs.
        features: per image, of what get_image_features gives.
    """

    model: Any
    images: Callable[[list[int]], dict[str, Any]]
    sizes: Callable[[dict[str, Any]], list[Any]]
    extra: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    crop_tokens: int = 0
    image: int = IMAGE
    before: tuple[int, ...] = (START,)
    after: tuple[int, ...] = (END,)
    videos: Callable[[list[int]], dict[str, Any]] | None = None
    runs: Callable[[dict[str, Any]], list[list[int]]] = lambda inputs: []
    features: Callable[[Any], Any] = lambda output: output.pooler_output

    @property
    def model_type(self) -> str:
        return self.model.config.model_type

    def positions(self, inputs: dict[str, Any]) -> Tensor:
        """The positions that the whole model gives to the prompt, [A, B, L] or [B, L]."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if "mm_token_type_ids" in inputs:
            return self.model.model.get_rope_index(
                ids,
                inputs["mm_token_type_ids"],
                image_grid_thw=inputs.get("image_grid_thw"),
                video_grid_thw=inputs.get("video_grid_thw"),
                attention_mask=mask,
            )[0]
        # As generate() counts them: padding has none.
        return (mask.cumsum(1) - 1).clamp(min=0)

    def inputs(self, rows: list[list[int]], *, seed: int = 0, pad_left: bool = True) -> Any:
        """One prompt per row: 0 is an image, -1 a video, another number so many words."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        counts = [row.count(0) for row in rows]
        count = sum(counts)
        images = self.images(counts) if count else {}
        videos: dict[str, Any] = {}
        if any(-1 in row for row in rows):
            assert self.videos is not None
            videos = self.videos([row.count(-1) for row in rows])
        runs = iter(self.runs(videos))
        with torch.no_grad():
            lengths = iter(self.lengths(images) if count else [])
        prompts = []
        for row in rows:
            ids = [1]
            for part in row:
                if part == 0:
                    ids += [*self.before, *[self.image] * next(lengths), *self.after]
                elif part == -1:
                    for number, length in enumerate(next(runs)):
                        ids += [] if number == 0 else [60 + number]
                        ids += [*self.before, *[VIDEO] * length, *self.after]
                else:
                    ids += torch.randint(5, 90, (part,), generator=generator).tolist()
            prompts.append(ids)
        longest = max(map(len, prompts))
        pads = [[PAD] * (longest - len(ids)) for ids in prompts]
        padded = [
            pad + ids if pad_left else ids + pad for pad, ids in zip(pads, prompts, strict=True)
        ]
        input_ids = torch.tensor(padded)
        mask = (input_ids != PAD).long()
        given = {"input_ids": input_ids, "attention_mask": mask, **images, **videos}
        return given | self.extra(input_ids)

    def lengths(self, images: dict[str, Any]) -> list[int]:
        """Placeholders per image, from the host itself."""
        if self.crop_tokens:
            return [self.crop_tokens] * len(self.sizes(images))
        output = self.model.base_model.get_image_features(**images, return_dict=True)
        return [len(feature) for feature in self.features(output)]


def fixed(model: Any, side: int = 56, **options: Any) -> Host:
    return Host(
        model.eval(),
        lambda counts: {"pixel_values": torch.randn(sum(counts), 3, side, side)},
        lambda inputs: [None] * len(inputs["pixel_values"]),
        **options,
    )


def llava(text_config: Any = None) -> Host:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=text_config or hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    return fixed(hf.LlavaForConditionalGeneration(config))


def anyres(model: Any, **options: Any) -> Host:
    sizes = [(100, 90), (60, 120), (112, 40), (50, 50)]
    crops = {(100, 90): 5, (60, 120): 3, (112, 40): 3, (50, 50): 3}

    def images(counts: list[int]) -> dict[str, Any]:
        count = sum(counts)
        chosen = [sizes[i % len(sizes)] for i in range(count)]
        pixels = torch.zeros(count, 5, 3, 56, 56)
        for i, size in enumerate(chosen):
            pixels[i, : crops[size]] = torch.randn(crops[size], 3, 56, 56)
        return {"pixel_values": pixels, "image_sizes": torch.tensor(chosen)}

    return Host(model.eval(), images, lambda inputs: inputs["image_sizes"].tolist(), **options)


def llava_next() -> Host:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return anyres(hf.LlavaNextForConditionalGeneration(config))


def llava_onevision() -> Host:
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return anyres(hf.LlavaOnevisionForConditionalGeneration(config))


def qwen(config_class: Any, model_class: Any, vision: dict[str, Any], **text: Any) -> Host:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = config_class(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope, **text},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    grids = [(1, 8, 6), (1, 6, 8), (1, 4, 4), (1, 10, 6)]
    width = 3 * 2 * vision["patch_size"] ** 2

    def images(counts: list[int]) -> dict[str, Any]:
        chosen = torch.tensor([grids[i % len(grids)] for i in range(sum(counts))])
        pixels = torch.randn(int(chosen.prod(1).sum()), width)
        return {"pixel_values": pixels, "image_grid_thw": chosen}

    return Host(
        model_class(config).eval(),
        images,
        lambda inputs: inputs["image_grid_thw"].tolist(),
        lambda ids: {"mm_token_type_ids": (ids == IMAGE).int()},
    )


def qwen2_vl() -> Host:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "patch_size": 14,
        "mlp_ratio": 2,
    }
    return qwen(hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl() -> Host:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, vision)


def qwen3_vl() -> Host:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return qwen(hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, vision, head_dim=8)


def internvl() -> Host:
    config = hf.InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": [112, 112],
            "patch_size": [14, 14],
        },
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return fixed(hf.InternVLForConditionalGeneration(config), 112)


def gemma3(sliding_window: int = 512) -> Host:
    text = {
        **TEXT,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": sliding_window,
        "layer_types": ["sliding_attention", "full_attention"] * (TEXT["num_hidden_layers"] // 2),
    }
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**TOWER, "image_size": 112, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    # It is made as zeros, which would make all images alike.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return fixed(
        model,
        112,
        extra=lambda ids: {"token_type_ids": (ids == IMAGE).int()},
    )


def idefics(config_class: Any, model_class: Any) -> Host:
    config = config_class(
        vision_config={**TOWER, "image_size": 112},
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )

    def images(counts: list[int]) -> dict[str, Any]:
        pixels = torch.zeros(len(counts), max(counts), 3, 112, 112)  # zeros are no images
        for row, count in enumerate(counts):
            pixels[row, :count] = torch.randn(count, 3, 112, 112)
        return {"pixel_values": pixels}

    def sizes(inputs: dict[str, Any]) -> list[None]:
        return [None] * int(inputs["pixel_values"].flatten(2).any(2).sum())

    return Host(model_class(config).eval(), images, sizes, crop_tokens=16)


def idefics3() -> Host:
    return idefics(hf.Idefics3Config, hf.Idefics3ForConditionalGeneration)


def smolvlm() -> Host:
    return idefics(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration)


def paligemma() -> Host:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**TEXT, head_dim=8),
        vision_config={**TOWER, "projection_dim": 32, "vision_use_head": False},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
        vocab_size=128,
    )
    return fixed(
        hf.PaliGemmaForConditionalGeneration(config),
        extra=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
    )


HOSTS: dict[str, Callable[[], Host]] = {
    build.__name__: build
    for build in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        gemma3,
        idefics3,
        smolvlm,
        paligemma,
    )
}
