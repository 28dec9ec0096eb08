"""What a training step takes of a device's memory: a step is run on tensors without data.

The model's own modules run forward and backward on fake tensors (`torch._subclasses`), and every
storage that lives is counted. What cannot run without data is stood in for: which tokens are kept,
four-bit weights, and the optimizer, whose two states are added.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from geollava.model.configuration import GeoLlavaConfig
from geollava.model.modeling import CHUNK_SIZE, GeoLlavaForConditionalGeneration
from geollava.training.config import TrainConfig
from geollava.training.machine import CHECKPOINTING
from geollava.training.parts import add_adapters, parameters_of

GIB = 2**30
NF4_BYTES = 0.5 + 0.016  # four bits, and block scales that are quantized themselves
ADAMW_BYTES = 8  # two float32 states
ANSWER_TOKENS = 64  # of a pack, at most, that logits are computed for


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made within it, for as long as each lives.

    Attributes:
        live, peak: bytes now, and the most that there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.count(value.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def memory(
    config: TrainConfig, model_config: GeoLlavaConfig, tokens: int, crops: int
) -> dict[str, float]:
    """GiB of each kind that a step on one pack needs on one device.

    Args:
        tokens: of the pack, visual and text. crops: of its images.
    """
    half = config.precision == "bfloat16"
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(FakeTensorMode())
        counted = stack.enter_context(LiveBytes())
        model = fake_model(config, model_config)
        need = dict.fromkeys(("frozen weights", "trained weights", "gradients", "AdamW"), 0)
        spared, largest = 0.0, 0
        for name, parameter, learns in parameters_of(config, model):
            size = parameter.numel() * parameter.element_size()
            need["trained weights" if learns else "frozen weights"] += size
            if learns:
                need["gradients"] += size
                need["AdamW"] += ADAMW_BYTES * parameter.numel()
            elif is_quantized(config, name):
                spared += size - NF4_BYTES * parameter.numel()
                largest = max(largest, size)  # a layer's weight is whole while it is used
        weights = counted.live
        counted.peak = weights
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            for _ in range(min(config.accumulate, 2)):
                fake_loss(config, model, tokens, crops).backward()
        found: dict[str, float] = {name: float(value) for name, value in need.items()}
        found["frozen weights"] -= spared
        found["activations"] = counted.peak - weights - need["gradients"] + largest
    return {name: value / GIB for name, value in found.items()}


def fake_model(
    config: TrainConfig, model_config: GeoLlavaConfig
) -> GeoLlavaForConditionalGeneration:
    """The model with its parts frozen and adapted, trained weights in float32."""
    with torch.device("meta"):  # fake tensors cannot be adapted, nor cast in their modules
        model = GeoLlavaForConditionalGeneration(model_config)
        add_adapters(config, model)
    half = config.precision == "bfloat16"
    learning = {name for name, _, learns in parameters_of(config, model) if learns}
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            learns = f"{prefix}.{name}" in learning
            dtype = torch.bfloat16 if half and not learns else torch.float32
            if id(parameter) not in made:  # tied ones are the same
                empty = torch.empty(parameter.shape, dtype=dtype)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=learns)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    if config.gradient_checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    return model.train()


def is_quantized(config: TrainConfig, name: str) -> bool:
    """Whether a frozen weight is kept in four bits: those that adapters adapt."""
    return (
        config.lora is not None
        and config.lora.quantize == "4bit"
        and name.endswith(".base_layer.weight")
    )


def fake_loss(
    config: TrainConfig, model: GeoLlavaForConditionalGeneration, tokens: int, crops: int
) -> Tensor:
    """The loss of a step on one pack; see `memory`."""
    embeds = model.get_input_embeddings()(torch.zeros(1, tokens, dtype=torch.long))
    if crops:
        features = [fake_crops(config, model, chunk) for chunk in chunks_of(crops)]
        visual = model.project(torch.cat(features))
        embeds = torch.cat([visual[None].to(embeds.dtype), embeds[:, len(visual) :]], 1)
    hidden = model.model(
        inputs_embeds=embeds,
        position_ids=torch.arange(tokens)[None],
        attention_mask={"full_attention": None},  # causal
        use_cache=False,
    ).last_hidden_state
    asked = min(tokens, ANSWER_TOKENS)
    logits = model.lm_head(hidden[0, :asked])
    return functional.cross_entropy(logits.float(), torch.zeros(asked, dtype=torch.long))


def chunks_of(crops: int) -> Iterator[int]:
    """Sizes of the chunks that pass the tower at a time on a GPU."""
    for start in range(0, crops, CHUNK_SIZE):
        yield min(CHUNK_SIZE, crops - start)


def fake_crops(config: TrainConfig, model: GeoLlavaForConditionalGeneration, crops: int) -> Tensor:
    """[crops, K, D]: kept tokens of a chunk, as if the first of each crop were kept."""
    num_keep, tower = model.config.num_keep, model.model.vision_tower
    if config.data.encode_once:  # the tower is done with before the first step
        return torch.zeros(crops, num_keep, model.config.vision_config.hidden_size)
    rows, cols = model.config.grid_size

    def encode(pixels: Tensor) -> Tensor:
        kept: Tensor = tower(model.prepare_pixels(pixels))[:, 1 : 1 + num_keep]
        if config.assignment != "hard":  # a walk of rows + cols steps over the padded grid
            torch.empty(crops, rows + cols, rows + 2, cols + 2, num_keep)
        return kept

    side = model.config.vision_config.image_size
    pixels = torch.zeros(crops, 3, side, side, dtype=torch.uint8)
    if config.gradient_checkpointing:
        return checkpoint(encode, pixels, use_reentrant=False)
    return encode(pixels)
