"""Controls: tokens dropped over the whole image."""

from __future__ import annotations

import torch

from geollava.evaluate.models import controls
from geollava.evaluate.models.opening import open_model
from geollava.imagery import as_scene
from geollava.model.token_reduction import ReducedTokens
from tests.geollava.evaluate.models.test_background import two_grounds_and_things
from tests.geollava.evaluate.studies.test_ablation import kept_all


def test_background_is_pruned_over_the_whole_image():
    tokens = two_grounds_and_things(torch.Generator().manual_seed(0))[:208].view(4, 52, 32)
    kept = kept_all(4, (4, 13))
    kept = ReducedTokens(tokens, kept.keep_indices, kept.valid, kept.assignment, kept.scores)
    mask = controls.remaining("background_pruned", kept, 2)
    assert mask.sum() == 8
    assert mask[-1, -8:].all()  # the things, all in the last crop
    lot = controls.remaining("random_pruned", kept, 2)
    assert lot.sum() == 8
    assert not torch.equal(lot, mask)
    assert controls.remaining("uniform", kept, 2).all()


def test_pruned_controls_in_the_model(guessing_checkpoint, questions):
    answerer = open_model(str(guessing_checkpoint), "background_pruned", 8, "cpu", "float32")
    scene = as_scene(questions.parent / "0.png")
    pruned = answerer.see([scene])
    assert pruned.tokens_after == 2 * 8
    model = answerer.model
    features = pruned.content.encode()[0].project(model)
    assert len(features) == 2 * 8
    answerer.reduce("spatial_pool", 16)
    whole = answerer.see([scene]).content.encode()[0].project(model)
    places = [(whole == token).all(1).nonzero().item() for token in features]
    assert places == sorted(places)
    (reply,) = answerer.ask(pruned, [answerer.prepare(pruned, "How many?", 2)], 2)
    assert reply.text
