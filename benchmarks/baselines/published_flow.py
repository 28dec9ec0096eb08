"""The published flow of GeoLLaVA-8K from a file to the first answer token, eager.

What `geollava` is measured against from end to end. It takes our model's weights. As published: the
image is decoded and cut as a whole and becomes float32; all layers of the tower run and every
hidden state is kept; the reduction is the dense one; nothing overlaps; the language model computes
logits, in float32, at every position. Attention is PyTorch's fused one, for the published tower
uses FlashAttention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.baselines.background_anchored_dense import background_anchored_dense
from geollava import GeoLlavaForConditionalGeneration

CHUNK = 144  # crops at a time


@torch.inference_mode()
def kept_tokens(model: GeoLlavaForConditionalGeneration, crops: Tensor) -> Tensor:
    """[1 + C, 3, h, w] float32, the thumbnail first -> [C, K, D]."""
    crops = crops.to(model.device, model.dtype)[1:]
    return torch.cat([reduce_chunk(model, chunk) for chunk in crops.split(CHUNK)])


def reduce_chunk(model: GeoLlavaForConditionalGeneration, crops: Tensor) -> Tensor:
    tower = model.model.vision_tower
    encoder = tower.encoder
    hidden = encoder.pre_layrnorm(encoder.embeddings(crops))
    states = [hidden]
    for layer in encoder.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
        states.append(hidden)
    encoder.post_layernorm(hidden[:, 0])
    features = states[tower.feature_layer]
    head, anchor = model.reghead, tower.anchor
    assert head.pw.bias is not None
    return background_anchored_dense(
        features[:, 1:],
        features[:, 0],
        model.config.grid_size,
        head.dw.weight,
        head.pw.weight,
        head.pw.bias,
        anchor.q_proj.weight,
        anchor.q_proj.bias,
        anchor.v_proj.weight,
        anchor.v_proj.bias,
        model.config.num_keep,
    ).features


@torch.inference_mode()
def first_logits(
    model: GeoLlavaForConditionalGeneration, before: Tensor, after: Tensor, kept: Tensor
) -> Tensor:
    """Prompt ids [L] before and after the image, kept tokens [C, K, D] -> [vocabulary]."""
    embed = model.get_input_embeddings()
    visual = model.model.mm_projector(kept).flatten(0, 1)
    embeds = torch.cat([embed(before), visual, embed(after)])[None]
    hidden = model.model(inputs_embeds=embeds, use_cache=True).last_hidden_state
    return model.lm_head(hidden).float()[0, -1]
