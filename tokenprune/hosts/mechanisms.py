"""Why a host is refused, by the mechanism that a model has; and which of transformers' types do.

The generic adapter gives these reasons for what it finds in a model; `list_hosts` gives them for
types that no model was built of.
"""

from __future__ import annotations

REASONS = {
    "no features": "it has no get_image_features, where a host encodes its images",
    "encoder-decoder": "it is an encoder-decoder, which keeps its visual tokens in the encoder",
    "no placeholders": "it does not put image features at placeholders in the prompt that "
    "get_placeholder_mask finds",
    "no image token": "its configuration names no image token",
    "no language model": "it does not call a language model with a list of layers with "
    "inputs_embeds, attention_mask and position_ids",
    "cross attention": "its language model looks at images by cross-attention, not at visual "
    "tokens in the sequence",
    "chunked attention": "its chunked attention counts columns, which move when tokens leave",
    "recurrent": "its language model has recurrent or convolutional layers, which go on from every "
    "column before and would not be those of the masked model",
    "unknown layers": "it has kinds of attention layers whose masks are not known here",
    "positions": "its language model has no rotary positions, which leave a token its own when "
    "others are taken out",
    "flat features": "its get_image_features gives the tokens of all images in one row, which does "
    "not say where an image ends",
    "features per row": "its get_image_features gives one entry per prompt, which does not say "
    "where an image ends",
    "Q-Former": "a Q-Former gives it a few query tokens, of which none stands for a place",
    "early fusion": "it makes images into tokens of its own vocabulary, or takes patches as they "
    "are",
    "text alone": "it takes text alone",
    "not a language model": "it does not generate text from a prompt with visual tokens",
    "transformers": "this release of transformers cannot run it",
    "features elsewhere": "the features that it puts into the prompt are not those of "
    "get_image_features",
}
NOT_TESTED = "not tested"

# model_type -> the mechanism, of what was looked at.
MECHANISMS = {
    name: mechanism
    for mechanism, names in {
        "encoder-decoder": "florence2 t5gemma2 pix2struct pp_formulanet vision-encoder-decoder "
        "udop",
        "cross attention": "mllama idefics blip",
        "Q-Former": "blip-2 instructblip instructblipvideo",
        "no placeholders": "kosmos-2 kosmos-2.5 git",
        "early fusion": "chameleon fuyu",
        "recurrent": "qwen3_5 qwen3_5_moe minicpm_ocr minicpmv4_6 minicpmv4_7 lfm2_vl lfm3_vl "
        "nemotron_h_omni glm5_next inkling2 inkling2_loop inkling_mm_model qwen4_exp",
        "chunked attention": "llama4",
        "unknown layers": "minimax_m3_vl unlimited_ocr",
        "features elsewhere": "granite4_vision",
        "text alone": "mistral4",
        "not a language model": "pi0 evolla diffusion_gemma",
    }.items()
    for name in names.split()
}


def reason_of(model_type: str) -> str:
    """One sentence."""
    mechanism = MECHANISMS.get(model_type)
    return NOT_TESTED if mechanism is None else REASONS[mechanism]
