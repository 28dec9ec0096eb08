"""What methods need of the vision tower reaches them: keys, queries, layers, the class token."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune
from tokenprune import Method, VisionTokens, get_method
from tokenprune.hosts.compat import image_features
from tokenprune.hosts.registry import find_adapter
from tokenprune.hosts.tower_of_host import tower_layers
from tokenprune.selection import best, select_tokens
from tokenprune.testing import check_method

from .families import FAMILIES
from .families.any_size import PIXTRAL
from .families.common import family, sized
from .families.gemmas import shieldgemma2
from .hosts import HOSTS, IMAGE, NEEDS_CACHE, TEXT, TOWER, Host, fixed
from .test_apply import CHUNKS_ENCODED_IMAGES, logits_of, traces

ONE = [[3, 0, 4, 0, 5]]
LAYERS = {"keys": (-2,), "queries": (-1,), "hidden_states": (-1, -2, 0)}
OF_PROMPT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def llava_pixtral() -> Host:
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**PIXTRAL),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return family(hf.LlavaForConditionalGeneration(config), sized(14))


OTHERS = {
    "llava_pixtral": llava_pixtral,
    "shieldgemma2": shieldgemma2,
    "glm4v": FAMILIES["glm4v"],
    "granite_docling": FAMILIES["granite_docling"],
}
BUILD = {**HOSTS, **OTHERS}


@functools.cache
def build(name: str) -> Host:
    torch.manual_seed(0)
    return BUILD[name]()


@pytest.fixture(params=BUILD)
def host(request) -> Host:
    return build(request.param)


@pytest.fixture
def llava() -> Host:
    return build("llava")


@dataclass(kw_only=True)
class Noting(Method):
    """Keeps the tokens whose keys are longest, and notes what it is handed."""

    needs: ClassVar[tuple[str, ...]] = ("keys", "queries", "hidden_states")
    tower_layers: ClassVar[dict[str, tuple[int, ...]]] = LAYERS

    def __post_init__(self) -> None:
        self.noted: list[VisionTokens] = []

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> Any:
        self.noted.append(tokens)
        compared = next(iter(read_of(tokens).values()))
        scores = compared.norm(dim=2)
        return select_tokens(tokens, best(scores, num_keep), scores)


def transformers_types() -> set[str]:
    return {host.model_type for host in tokenprune.list_hosts()}


def needing(**layers: tuple[int, ...]) -> Noting:
    method = Noting()
    method.declare(needs=tuple(layers), tower_layers=layers)
    return method


def read_of(tokens: VisionTokens) -> dict[str, Tensor]:
    """[G, N, D] by name, without the features."""
    return {
        name: value
        for name, value in tokens.tensors().items()
        if name not in ("features", "attention", "cls", "text")
    }


def noted(host: Host, method: Noting, inputs: dict[str, Any], **budget: Any) -> None:
    with tokenprune.apply(host.model, method, **(budget or {"keep_ratio": 0.5})):
        logits_of(host, inputs)


# -- what a plain run gives --------------------------------------------------------------------


@dataclass
class Plain:
    """A run of the whole model's encoder.

    Attributes:
        features: [T, D] of all images' tokens.
        members: [T, P], which patches of the tower each is made of.
        read: by name, [P, D] of all patches, in the tower's own order.
    """

    features: Tensor
    members: Tensor
    read: dict[str, Tensor]

    def expected(self, name: str) -> Tensor:
        """[T, D], the mean over the patches of each token."""
        shares = self.members / self.members.sum(1, keepdim=True).clamp(min=1)
        return shares @ self.read[name]


def projected(attention: Any, name: str, states: Tensor) -> Tensor:
    """Keys or queries, written out."""
    if hasattr(attention, "qkv"):
        rows = slice(*((0, 32) if name == "queries" else (32, 64)))  # [queries | keys | values]
        layer = attention.qkv
    else:
        rows, layer = slice(None), attention.q_proj if name == "queries" else attention.k_proj
    return functional.linear(
        states, layer.weight[rows], layer.bias[rows] if layer.bias is not None else None
    )


def plain_run(host: Host, inputs: dict[str, Any]) -> Plain:
    adapter = find_adapter(host.model)
    layers = tower_layers(adapter.vision_tower)
    cut = layers[getattr(host.model.config, "vision_feature_layer", -1)]
    leaves: list[Tensor] = []
    read: dict[str, list[Tensor]] = {}
    hooks = []

    def note(name: str, value: Tensor) -> None:
        read.setdefault(name, []).append(value.detach().flatten(0, -2))

    def leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    # From here on a token is made of its own patches alone: the gradient says of which.
    hooks.append(cut.register_forward_hook(leaf, prepend=True))
    for number in LAYERS["hidden_states"]:
        name = f"hidden_states[{number}]"
        hooks.append(
            layers[number].register_forward_hook(
                lambda module, args, output, name=name: note(name, output)
            )
        )
    for name in ("keys", "queries"):
        layer = layers[LAYERS[name][0]]
        attention = next(
            module
            for kind, module in layer.named_children()
            if kind in ("self_attn", "attention", "attn")
        )

        def before(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
            note(name, projected(module, name, args[0] if args else kwargs["hidden_states"]))

        hooks.append(attention.register_forward_pre_hook(before, with_kwargs=True))
    images = {name: value for name, value in inputs.items() if name not in OF_PROMPT}
    output = image_features(host.model.base_model.get_image_features(**images, return_dict=True))
    for hook in hooks:
        hook.remove()
    features = torch.cat([part.reshape(-1, part.shape[-1]) for part in output])
    direction = torch.randn(features.shape[1])
    members = []
    for row in features @ direction:
        grads = torch.autograd.grad(row, leaves, retain_graph=True, allow_unused=True)
        moved = [
            torch.zeros(one.shape[:-1]) if grad is None else grad.norm(dim=-1)
            for one, grad in zip(leaves, grads, strict=True)
        ]
        members.append(torch.cat([one.flatten() for one in moved]) > 0)
    return Plain(
        features.detach(),
        torch.stack(members).float(),
        {name: torch.cat(parts) for name, parts in read.items()},
    )


def in_order(tokens: VisionTokens, features: Tensor) -> Tensor:
    """[G * N]: which of the host's features [T, D] a method's tokens are; hosts may scale them."""
    rows = functional.normalize(tokens.features.flatten(0, 1), dim=1)
    match = (rows @ functional.normalize(features, dim=1).T).max(1)
    assert (match.values > 1 - 1e-5).all()
    return match.indices


def test_a_method_gets_what_a_plain_run_gives(host):
    inputs = host.inputs(ONE)
    plain = plain_run(host, inputs)
    method = Noting()
    noted(host, method, inputs)
    places = torch.cat([in_order(tokens, plain.features) for tokens in method.noted])
    shown = (plain.members.sum(1) > 0).nonzero()[:, 0]  # newline tokens are of no patch
    assert torch.equal(places.sort().values, shown)
    names = {"keys", "queries", *(f"hidden_states[{n}]" for n in LAYERS["hidden_states"])}
    for tokens in method.noted:
        assert set(read_of(tokens)) == names
        assert tokens.num_heads == 4
    for name in names:
        got = torch.cat([read_of(tokens)[name].flatten(0, 1) for tokens in method.noted])
        assert got.shape[1] == 32
        assert got.std(0).min() > 0
        assert_close(got, plain.expected(name)[places], atol=1e-5, rtol=1e-5)


def test_a_token_of_one_patch_gets_its_very_own(llava):
    inputs = llava.inputs(ONE)
    plain, method = plain_run(llava, inputs), Noting()
    noted(llava, method, inputs)
    (tokens,) = method.noted
    assert tokens.features.shape[:2] == (2, 16)
    for name, value in read_of(tokens).items():
        patches = plain.read[name].unflatten(0, (2, 17))[:, 1:]
        assert_close(value, patches, atol=1e-6, rtol=0)


def a_patch(inputs: dict[str, Any]) -> Tensor:
    """A view of the pixels that one patch is made of, somewhere in the first image."""
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:
        return pixels[7]
    while pixels.ndim > 3:
        pixels = pixels[0]
    return pixels[:, 28:42, 14:28]


def test_a_patch_moves_its_own_token(host):
    """Keys of the first layer depend on one patch alone; features move most where they do."""
    inputs = host.inputs(ONE)

    def run() -> tuple[Tensor, Tensor]:
        method = needing(keys=(0,))
        noted(host, method, inputs)
        parts = [
            (read_of(one)["keys"].flatten(0, 1), one.features.flatten(0, 1)) for one in method.noted
        ]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    keys, features = run()
    a_patch(inputs).mul_(-5)
    other_keys, other_features = run()
    moved = (other_keys - keys).norm(dim=1)
    (token,) = (moved > 1e-6).nonzero()[:, 0].tolist()
    assert int((other_features - features).norm(dim=1).argmax()) == token


# -- methods that use it -----------------------------------------------------------------------


def test_a_method_by_keys_is_the_masked_model(host):
    method = needing(keys=(-2,), hidden_states=(-1,))
    report = tokenprune.verify(host.model, host.inputs(ONE), method=method, keep_ratio=0.4)
    # Where the whole model says something else without a cache, it is no reference.
    generation = {"generation"} if host.model_type in NEEDS_CACHE else set()
    bad = {check.name for check in report.checks if check.status != "ok"} - generation
    assert not bad, report
    assert report.tokens_after < report.tokens_before
    assert method.noted


BY_KEYS = [
    ("visionzip", {"compared": "keys", "contextual_ratio": 0.5}),
    ("prumerge", {"compared": "keys", "neighbors": 3}),
    ("prumerge", {"compared": "keys"}),
    ("tome", {"compared": "keys"}),
]


@pytest.mark.parametrize(("name", "options"), BY_KEYS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3"])
def test_forms_that_compare_keys_run_in_hosts(kind, name, options):
    """As standalone on what another method is handed."""
    host = build(kind)
    inputs = host.inputs([[3, 0, 4]])
    method = get_method(name, **options)
    spy = needing(keys=method.tower_layers["keys"])
    spy.declare(needs=("keys", "attention"))
    noted(host, spy, inputs)
    with tokenprune.apply(host.model, method, num_keep=6) as handle:
        logits_of(host, inputs)
    (tokens,) = spy.noted
    alone = method.reduce(tokens, 6)
    assert torch.equal(alone.keep_indices, handle.last.keep_indices)
    assert torch.equal(alone.features, handle.last.features)
    by_features = get_method(name, **options | {"compared": "features"}).reduce(tokens, 6)
    assert not torch.equal(by_features.assignment, alone.assignment)
    report = tokenprune.verify(host.model, inputs, method=method, keep_ratio=0.4)
    assert report.ok, report


def test_forms_that_add_rows_are_refused_for_their_rows(llava):
    for name, options in (
        ("visionzip", {"compared": "keys", "keep_cls": True}),
        ("prumerge", {"compared": "keys", "keep_rest": True}),
    ):
        with pytest.raises(NotImplementedError, match="gives 5 rows for a budget of 4 tokens"):
            tokenprune.apply(llava.model, get_method(name, **options), num_keep=3)


def test_a_chain_hands_on_what_it_was_handed(llava):
    inputs = llava.inputs(ONE)
    last = needing(keys=(-2,))
    chain = tokenprune.Chain(get_method("fastervlm"), last, budgets=[9])
    first = needing(keys=(-2,))
    noted(llava, first, inputs)
    with tokenprune.apply(llava.model, chain, num_keep=4) as handle:
        logits_of(llava, inputs)
    (whole,), (left,) = first.noted, last.noted
    assert left.keys.shape == (2, 9, 32)
    by_token = {tuple(one.tolist()) for one in whole.keys.flatten(0, 1)}
    assert {tuple(one.tolist()) for one in left.keys.flatten(0, 1)} < by_token
    assert handle.last.features.shape[1] == 4


# -- the class token -----------------------------------------------------------------------------


class ByAttention(Noting):
    """Notes the attention too."""

    needs: ClassVar[tuple[str, ...]] = ("attention", "hidden_states")
    tower_layers: ClassVar[dict[str, tuple[int, ...]]] = {"hidden_states": (-2,)}


@pytest.mark.parametrize("name", ["scope", "vispruner"])
def test_methods_that_compare_what_the_projector_takes(llava, name):
    """In a model they keep what they keep of the tower's states by themselves, features or not."""
    inputs, method = llava.inputs(ONE), ByAttention()
    noted(llava, method, inputs)
    (handed,) = method.noted
    tower = llava.model.model.vision_tower
    with torch.no_grad():
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    num_keep = handed.features.shape[1] // 2
    with tokenprune.apply(llava.model, name, num_keep=num_keep) as handle:
        logits_of(llava, inputs)
        kept = handle.last.keep_indices
    by_hand = VisionTokens(
        states, handed.grid_size, attention=handed.attention, hidden_states={-2: states}
    )
    assert torch.equal(kept, get_method(name).reduce(by_hand, num_keep).keep_indices)
    of_features = get_method(name, compared="features").reduce(handed, num_keep)
    assert not torch.equal(kept, of_features.keep_indices)


@dataclass(kw_only=True)
class ByClass(Noting):
    """Keeps the tokens that are most like the class token."""

    needs: ClassVar[tuple[str, ...]] = ("cls",)
    tower_layers: ClassVar[dict[str, tuple[int, ...]]] = {}

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> Any:
        self.noted.append(tokens)
        scores = (tokens.features @ tokens.cls[:, :, None])[..., 0]
        return select_tokens(tokens, best(scores, num_keep), scores)


def class_tokens(host: Host, pixels: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Through the projector by hand."""
    model = host.model.model
    with torch.no_grad():
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        cls = torch.cat([states[layer][:, 0] for layer in layers], -1)
        projector = model.multi_modal_projector
        return projector.linear_2(projector.act(projector.linear_1(cls)))


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [-2, [-2, -3]])
def test_the_class_token_comes_in_the_space_of_the_features(strategy, layers):
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=layers,
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(0)
    host = fixed(hf.LlavaForConditionalGeneration(config))
    inputs, method = host.inputs(ONE), ByClass()
    noted(host, method, inputs)
    (tokens,) = method.noted
    chosen = (layers,) if isinstance(layers, int) else tuple(layers)
    assert_close(tokens.cls, class_tokens(host, inputs["pixel_values"], chosen), atol=1e-6, rtol=0)
    assert tokens.cls.std(0).max() > 0
    assert tokenprune.verify(host.model, inputs, method=ByClass(), keep_ratio=0.4).ok


def test_background_anchored_runs_with_weights_of_ones_own(llava):
    weights = {"dw_weight": (32, 1, 3, 3), "pw_weight": (9, 32, 1, 1), "pw_bias": (9,)}
    weights |= {"q_weight": (32, 32), "q_bias": (32,), "k_weight": (32, 32), "k_bias": (32,)}
    torch.manual_seed(0)
    method = get_method("background_anchored", **{n: torch.randn(s) for n, s in weights.items()})
    inputs, spy = llava.inputs(ONE), ByClass()
    noted(llava, spy, inputs)
    with tokenprune.apply(llava.model, method, num_keep=4) as handle:
        logits_of(llava, inputs)
    alone = method.reduce(spy.noted[0], 4)
    assert torch.equal(handle.last.keep_indices, alone.keep_indices)
    assert torch.equal(handle.last.features, alone.features)


def test_a_host_without_one_class_token_per_image_refuses(llava):
    for name in ("llava_next", "internvl", "qwen2_vl", "paligemma", "llava_pixtral"):
        model = build(name).model
        kind = type(model.base_model).__name__
        with pytest.raises(NotImplementedError, match=f"ByClass needs cls, {kind} hands over"):
            tokenprune.apply(model, ByClass(), num_keep=3)


# -- said and refused ------------------------------------------------------------------------------


def test_adapters_say_what_they_hand_over(host):
    offers = find_adapter(host.model).offers
    assert {"features", "text", "keys", "queries", "hidden_states"} <= offers
    pixtral = host.model.config.vision_config.model_type == "pixtral"
    assert ("attention" in offers) is ("received" in offers) is not pixtral
    class_token = host.model_type in ("llava", "llava_next", "internvl")
    assert ("cls_logits" in offers) is (class_token and not pixtral)
    one_crop = host.model_type in ("llava", "internvl")
    assert ("single_head_attention" in offers) is (one_crop and not pixtral)
    assert ("roots" in offers) is (host.model_type == "llava" and not pixtral)
    assert ("cls" in offers) is (host.model_type == "llava" and not pixtral)
    assert offers <= set(VisionTokens.__dataclass_fields__)


def test_what_is_not_handed_over_is_refused_by_name():
    with pytest.raises(
        NotImplementedError, match="is not read of a Pixtral tower: it packs images"
    ):
        tokenprune.apply(build("llava_pixtral").model, "fastervlm", num_keep=3)

    @dataclass(kw_only=True)
    class Deep(Noting):
        needs: ClassVar[tuple[str, ...]] = ("depth",)

    with pytest.raises(
        NotImplementedError, match="Deep needs depth, LlavaModel hands over attention"
    ):
        tokenprune.apply(build("llava").model, Deep(), num_keep=3)
    generic = FAMILIES["aya_vision"]().model
    for needs, message in (
        ({"keys": (-1,)}, "needs keys of the tower, whose order is not known"),
        ({"queries": (-1,), "hidden_states": (0,)}, "needs queries, hidden_states of the tower"),
    ):
        with pytest.raises(NotImplementedError, match=f"Noting {message}"):
            tokenprune.apply(generic, needing(**needs), num_keep=3)
    assert find_adapter(generic).offers == {"features", "text"}


@pytest.mark.parametrize("name", ["idefics2", "molmo2", "granite4_vision"])
def test_hosts_whose_tokens_are_of_no_patches_of_their_own_refuse(name):
    if name not in transformers_types():
        pytest.skip(f"this transformers has no {name}")
    model = FAMILIES[name]().model
    assert find_adapter(model).offers == {"features", "text"}
    for needs in ({"keys": (-1,)}, {"hidden_states": (-1,)}):
        with pytest.raises(NotImplementedError, match=r"Noting (needs|is refused)"):
            tokenprune.apply(model, needing(**needs), keep_ratio=0.5)


def test_layers_that_are_not_there_are_refused(llava):
    before = traces(llava.model)
    for layers, message in (
        ({"keys": (3,)}, "Noting needs keys of layer 3, CLIPVisionModel has 3 layers"),
        ({"hidden_states": (-1, -4)}, "needs hidden_states of layer -4"),
        ({"keys": (-1, -2)}, r"tower_layers must name one for keys, got \[-1, -2\]"),
        ({"queries": ()}, r"must name one for queries, got \[\]"),
        ({"hidden_states": ()}, r"must name at least one for hidden_states, got \[\]"),
        ({"received": ()}, r"must name at least one for received, got \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenprune.apply(llava.model, needing(**layers), num_keep=3)
    assert traces(llava.model) == before


class MapsAttention(type(find_adapter(HOSTS["llava"]().model))):  # type: ignore[misc]
    """As adapters were before vectors could be read: their mapping may not be the default's."""

    token_values = tokenprune.Adapter.token_values

    def token_attention(self, received: Tensor, sizes: Any) -> list[Tensor]:
        return list(received[:, -16:])


def test_an_adapter_that_maps_attention_alone_offers_attention_alone(llava):
    offers = tokenprune.Adapter.offers.fget(MapsAttention(llava.model.model))
    of_attention = {"attention", "received", "cls_logits", "single_head_attention"}
    assert offers == {"features", "text"} | of_attention


@pytest.mark.skipif(not CHUNKS_ENCODED_IMAGES, reason="images are encoded in the forward alone")
def test_images_encoded_before_carry_what_was_read_then(llava):
    """What was read of one layer must not stand for another."""
    inputs = llava.inputs(ONE)
    pixels = inputs.pop("pixel_values")
    with torch.no_grad(), tokenprune.apply(llava.model, needing(keys=(-2,)), num_keep=3):
        encoded = llava.model.base_model.get_image_features(pixels, return_dict=True)
        llava.model(**inputs, mm_encoder_outputs={"image": encoded})
        with tokenprune.apply(llava.model, needing(keys=(-2,)), num_keep=3):
            llava.model(**inputs, mm_encoder_outputs={"image": encoded})
        for layers in ({"keys": (-1,)}, {"keys": (-2,), "hidden_states": (0,)}):
            with (
                tokenprune.apply(llava.model, needing(**layers), num_keep=3),
                pytest.raises(ValueError, match=r"Noting needs .* encoded before; pass pixel_val"),
            ):
                llava.model(**inputs, mm_encoder_outputs={"image": encoded})


# -- nothing disturbed -------------------------------------------------------------------------


def test_methods_of_two_handles_read_each_their_own(llava):
    inputs = llava.inputs(ONE)
    plain = plain_run(llava, inputs)
    keys = plain.read["keys"].unflatten(0, (2, 17))[:, 1:]
    before = traces(llava.model)
    outer, inner = needing(keys=(-2,)), needing(keys=(-2,), queries=(-1,), hidden_states=(-1,))
    with tokenprune.apply(llava.model, outer, num_keep=4):
        logits_of(llava, inputs)
        with tokenprune.apply(llava.model, inner, num_keep=4):
            logits_of(llava, inputs)
        with tokenprune.apply(llava.model, "random", num_keep=4):
            logits_of(llava, inputs)
        logits_of(llava, inputs)
    assert traces(llava.model) == before
    assert [len(method.noted) for method in (outer, inner)] == [2, 1]
    for tokens in (*outer.noted, *inner.noted):
        assert tokens.keys.shape == keys.shape
        assert_close(tokens.keys, keys, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_thread_reads_what_it_runs_itself(name):
    host = build(name)
    prompts = [host.inputs([[3, 0, 4]], seed=seed) for seed in range(4)]
    alone = []
    for inputs in prompts:
        method = Noting()
        noted(host, method, inputs)
        alone += map(read_of, method.noted)
    method = Noting()
    with tokenprune.apply(host.model, method, keep_ratio=0.5):

        def run(inputs: dict[str, Any]) -> None:
            torch.set_num_threads(1)
            for _ in range(5):
                logits_of(host, inputs)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, prompts))
    assert len(method.noted) == 5 * len(alone)

    def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(
            value.shape == other[name].shape and torch.allclose(value, other[name], atol=1e-5)
            for name, value in one.items()
        )

    for expected in alone:
        assert sum(equal(expected, read_of(tokens)) for tokens in method.noted) == 5


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for one in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return output


def test_reading_makes_nothing_that_the_tower_does_not(host):
    """Attention weights, [heads, patches, patches], would be larger than what any layer gives."""
    inputs = host.inputs(ONE)
    images = {name: value for name, value in inputs.items() if name not in OF_PROMPT}
    sizes = []
    for method in (get_method("random"), Noting()):
        with (
            tokenprune.apply(host.model, method, keep_ratio=0.5),
            torch.no_grad(),
            Largest() as largest,
        ):
            host.model.base_model.get_image_features(**images, return_dict=True)
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1]


def test_training_with_checkpoints_reads_once_and_without_gradients(llava):
    inputs = llava.inputs(ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    model = HOSTS["llava"]().model.train()
    model.gradient_checkpointing_enable()
    method = Noting()
    with tokenprune.apply(model, method, num_keep=5):
        model(**inputs, labels=labels).loss.backward()
    (tokens,) = method.noted
    assert tokens.features.requires_grad
    for value in read_of(tokens).values():
        assert value.shape == (2, 16, 32)
        assert not value.requires_grad


def test_compiled_inside(llava):
    inputs, method = llava.inputs(ONE), Noting()
    noted(llava, method, inputs, num_keep=5)
    with tokenprune.apply(llava.model, method, num_keep=5):
        torch.compiler.reset()
        with torch.no_grad():
            torch.compile(llava.model, backend="aot_eager")(**inputs)
    torch.compiler.reset()
    plain, compiled = map(read_of, method.noted)
    for name, value in plain.items():
        assert_close(compiled[name], value, atol=1e-5, rtol=1e-4)


def test_the_contract_takes_a_method_of_keys():
    check_method(needing(keys=(-2,), hidden_states=(-1, 0)))
