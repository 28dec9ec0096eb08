"""What the small model's language model learns from: scenes, questions about them, one sequence.

All questions about a scene stand in one sequence behind its visual tokens, each blind to the others
and at the positions that it would have alone: the scene is read once, and every question is asked
as a `Session` asks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from geollava import GeoLlavaForConditionalGeneration, GeoLlavaProcessor
from geollava.model.processing import IMAGE_TOKEN
from geollava.scenes import Asked, Facts, Scene, ask_in_words, facts_of, plan, plan_varied
from geollava.scenes.questions import DESCRIBE, describe, prompt_of
from geollava.scenes.varied_plan import SCALES
from geollava.training.tokens import IGNORED

QUESTIONS = 13  # about a scene, at least
FEW = 8  # things of a scene that is told thing by thing
TELL = "tell"
OTHER_WORDS = ("please", "ok", "hello", "so", "then", "hey", "well", "now", "just", "kindly")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Lesson(NamedTuple):
    """A scene, and what is asked about it."""

    scene: Scene
    asked: list[Asked]


def lesson(seed: int, size: int, most: int, letters: float) -> Lesson:
    """The same for the same arguments; now and then a scene of `plan` with its own questions.

    Args:
        most: things in the scene; others are left out of it.
        letters: share of the questions that are asked once more, for a letter.
    """
    rng = np.random.default_rng([seed, 21])
    asked: list[Asked] = []
    if most > 20 and rng.random() < 0.15:
        largest = min(SCALES[1], size / 520)
        scene = plan(
            seed, size, round(float(np.exp(rng.uniform(*np.log((SCALES[0], largest))))), 2)
        )
        asked = own_questions(scene, letters, rng)
    else:
        scene = plan_varied(seed, size)
        kept = sorted(rng.permutation(len(scene.things))[: int(rng.integers(1, most + 1))])
        scene.things = [scene.things[index] for index in kept]
    if 0 < len(scene.things) <= FEW:
        # Thing by thing, with color, motion and land use: many words for few tokens.
        asked.append(Asked(TELL, DESCRIBE, describe(scene), (), False))
    return Lesson(scene, ask_enough(facts_of(scene), rng, letters, asked))


def ask_enough(
    facts: Facts, rng: np.random.Generator, letters: float, asked: Sequence[Asked] = ()
) -> list[Asked]:
    """`QUESTIONS` or more in words for training, none of them twice."""
    found = {one.question: one for one in asked}
    while len(found) < QUESTIONS:
        found |= {one.question: one for one in ask_in_words(facts, rng, "train", letters)}
    return list(found.values())


def own_questions(scene: Scene, letters: float, rng: np.random.Generator) -> list[Asked]:
    """The eight of a scene of `plan`, some in the form of XLRS-Bench too."""
    asked = []
    for question in scene.questions:
        right = question.choices[question.answer]
        asked.append(Asked("own", question.text, right, question.choices, False))
        if rng.random() < letters:
            letter, text = chr(65 + question.answer), prompt_of(question)
            asked.append(Asked("own", text, letter, question.choices, False, letters=True))
    return asked


def loosened(question: str, rng: np.random.Generator) -> str:
    """As people type: without a capital or an end, or with a word that says nothing."""
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    if rng.random() < 0.15:
        letters = [ALPHABET[index] for index in rng.integers(26, size=int(rng.integers(2, 7)))]
        word = "".join(letters)
        if rng.random() < 0.5:
            word = OTHER_WORDS[rng.integers(len(OTHER_WORDS))]
        words = question.split(" ")
        words.insert(int(rng.integers(len(words) + 1)), word)
        question = " ".join(words)
    return question


class Prompts:
    """The chat format around a scene and a question, as token ids.

    Attributes:
        prefix: before the visual tokens.
    """

    def __init__(self, processor: GeoLlavaProcessor) -> None:
        self.tokenizer = processor.tokenizer
        before, after = processor.build_prompt("@", num_images=1).split(IMAGE_TOKEN)
        self.prefix = self.ids(before)
        self.before, self.after = after.split("@")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def turn(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """What follows the visual tokens, and what the model is to say."""
        return self.ids(self.before + question + self.after), self.ids(f"{answer}<|im_end|>")


def answer_all(
    model: GeoLlavaForConditionalGeneration,
    prompts: Prompts,
    visual: Tensor,
    turns: Sequence[tuple[str, str]],
) -> tuple[Tensor, list[bool]]:
    """(the loss of all answers, of each whether its every token is the likeliest).

    Args:
        visual: [V, text width], a scene's tokens.
        turns: questions and answers. A long answer counts as the root of its length.
    """
    base = len(prompts.prefix) + len(visual)
    ids, positions, blocks = [*prompts.prefix], [*range(base)], [0] * base
    labels, starts = [IGNORED] * base, []
    for block, (question, answer) in enumerate(turns, 1):
        asked, said = prompts.turn(question, answer)
        starts.append(len(ids) + len(visual) + len(asked) - 1)
        ids += asked + said
        positions += range(base, base + len(asked) + len(said))
        blocks += [block] * (len(asked) + len(said))
        labels += [IGNORED] * len(asked) + said
    block = torch.tensor(blocks)
    seen = (block[:, None] == block[None]) | (block[None] == 0)
    embeds = model.get_input_embeddings()(torch.tensor(ids))
    split = len(prompts.prefix)
    hidden = model.model(
        inputs_embeds=torch.cat([embeds[:split], visual, embeds[split:]])[None],
        attention_mask=seen.tril()[None, None],
        position_ids=torch.tensor(positions)[None],
        use_cache=False,
    ).last_hidden_state[0]
    following = torch.tensor([*labels[1:], IGNORED])
    places = (following != IGNORED).nonzero().flatten()
    whose = torch.bucketize(places, torch.tensor(starts), right=True) - 1
    logits = model.lm_head(hidden[places])
    losses = functional.cross_entropy(logits, following[places], reduction="none")
    lengths = torch.bincount(whose, minlength=len(turns))
    total = torch.zeros(len(turns)).index_add(0, whose, losses) / lengths.sqrt()
    wrong = torch.zeros(len(turns)).index_add(
        0, whose, (logits.argmax(1) != following[places]).float()
    )
    return total.mean(), (wrong == 0).tolist()
