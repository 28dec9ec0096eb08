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
    "one module": "one module puts image features into the prompt and runs the layers, nothing is "
    "called in between",
    "inside the language model": "its language model itself puts the image features into the "
    "prompt",
    "cross attention": "its language model looks at images by cross-attention, no visual tokens "
    "stand in the sequence",
    "chunked attention": "its chunked attention counts columns, which move when tokens leave",
    "recurrent": "its language model has recurrent layers of a kind that is not known here, or "
    "ones that do not take the batch's padding as a mask",
    "counted distances": "its attention counts how many columns lie between two tokens, fewer when "
    "tokens leave",
    "blocks of columns": "its layers choose among blocks of columns, which hold other columns when "
    "tokens leave",
    "n-grams": "its layers look up runs of neighboring tokens, which are others when tokens leave",
    "prompt beside a window": "its cache keeps the prompt apart from a sliding window over what "
    "follows, and counts the two apart",
    "unknown layers": "it has kinds of attention layers whose masks are not known here",
    "positions": "its language model has no rotary positions, which leave a token its own when "
    "others are taken out",
    "flat features": "its get_image_features gives the tokens of all images in one row, which does "
    "not say where an image ends",
    "features per row": "its get_image_features gives one entry per prompt, which does not say "
    "where an image ends",
    "Q-Former": "its generate calls the language model's own generate, past the forward in which "
    "tokens leave",
    "diffusion": "it writes whole blocks by diffusion, in a decoder that reads the encoder's cache",
    "text alone": "it takes text alone",
    "proteins": "it takes proteins, not images",
    "actions": "it gives a robot's actions, not text",
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
        "no placeholders": "git",
        "inside the language model": "kosmos-2 kosmos-2.5",
        "one module": "chameleon",
        "flat features": "fuyu",
        "n-grams": "qwen4_exp",
        "counted distances": "inkling_mm_model inkling2 inkling2_loop",
        "chunked attention": "llama4",
        "blocks of columns": "minimax_m3_vl glm5_next",
        "prompt beside a window": "unlimited_ocr",
        "diffusion": "diffusion_gemma",
        "text alone": "mistral4",
        "proteins": "evolla",
        "actions": "pi0",
    }.items()
    for name in names.split()
}


def reason_of(model_type: str) -> str:
    """One sentence."""
    mechanism = MECHANISMS.get(model_type)
    return NOT_TESTED if mechanism is None else REASONS[mechanism]
