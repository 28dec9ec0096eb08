"""Load once, see once, ask many: answers are those of the whole model, memory is bounded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geollava
import tokenprune
from geollava import imagery
from geollava.answering.conversation import Conversation
from geollava.answering.memory import SceneMemory
from geollava.answering.prefix import Prefix, prefix_bytes
from geollava.answering.session import Session
from geollava.model.token_reduction import host_methods
from tests.geollava.conftest import noise

QUESTIONS = [
    "How many ships?",
    "What?",
    "Is the purple vehicle to the left of the lake moving or standing still?",
]


def one_pass(model, processor, images, question, history=(), tokens=6):
    """[T] ids that transformers' own generate says, and logits [T, V], nothing read before."""
    text = processor.build_prompt(question, num_images=len(images), history=history)
    inputs = processor(images=images or None, text=text)
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    return ids, torch.cat(out.logits)


def same_answer(model, processor, answer, images, question, history=(), tokens=6):
    """Whether an answer is that of one pass, until two words are as good as each other."""
    ids, logits = one_pass(model, processor, images, question, history, tokens)
    best = logits.topk(2).values
    close = ((best[:, 0] - best[:, 1]) < 1e-3).nonzero().flatten()
    sure = int(close[0]) if len(close) else len(ids)
    assert sure  # or nothing is compared
    text = processor.tokenizer.decode(ids[:sure], skip_special_tokens=True).strip()
    return answer.text.startswith(text) if len(close) else answer.text == text


@pytest.fixture
def reads(monkeypatch):
    """Lengths of the prefixes that are read."""
    lengths, original = [], Prefix.read
    monkeypatch.setattr(
        Prefix,
        "read",
        lambda model, ids, *more: lengths.append(len(ids)) or original(model, ids, *more),
    )
    return lengths


def test_the_contract(complete_checkpoint, tmp_path):
    noise(120, 80).save(tmp_path / "scene.png")
    session = geollava.Session(model=complete_checkpoint)
    answer = session.see(tmp_path / "scene.png").ask("How many ships?")
    assert isinstance(answer.text, str)
    assert 0 < answer.confidence <= 1
    assert answer.tokens_after < answer.tokens_before
    assert set(answer.seconds) == {"crop", "encode", "prefill", "answer"}
    with pytest.raises(ValueError, match="does not exist"):
        geollava.Session(model=tmp_path / "nothing")


@pytest.mark.parametrize("which", ["pair", "default_pair"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_question_is_answered_as_in_one_pass(which, count, request, reads):
    model, processor = request.getfixturevalue(which)
    images = [noise(300 + 90 * seed, 200, seed=seed) for seed in range(count)]
    seen = Session.of(model, processor).see(*images)
    for question in [*QUESTIONS, QUESTIONS[0]]:
        answer = seen.ask(question, max_new_tokens=6)
        assert same_answer(model, processor, answer, images, question)
    assert len(reads) == min(count, 1)  # what the questions share is read once


def test_questions_together(pair, reads):
    seen = Session.of(*pair).see(noise(300, 200))
    alone = [seen.ask(question, max_new_tokens=6).text for question in QUESTIONS]
    together = seen.reply([seen.prepare(question, 6) for question in QUESTIONS], 6)
    assert [reply.text for reply in together] == alone
    assert len(reads) == 1
    other = Session.of(*pair).see(noise(300, 200), noise(60, 60)).prepare("What?")
    with pytest.raises(ValueError, match="must begin alike"):
        seen.reply([seen.prepare("What?"), other], 6)


def test_a_question_leaves_nothing_behind(pair):
    """...in the keys and values that the next one goes on from."""
    seen = Session.of(*pair).see(noise(300, 200))
    first = seen.ask(QUESTIONS[0], max_new_tokens=6)
    layers = seen._prefix._cache.layers
    before = [(layer.keys.clone(), layer.values.clone()) for layer in layers]
    for question in QUESTIONS:
        seen.ask(question, max_new_tokens=9)
    seen.reply([seen.prepare(question, 6) for question in QUESTIONS], 6)
    for layer, (keys, values) in zip(layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    again = seen.ask(QUESTIONS[0], max_new_tokens=6)
    assert (again.text, again.confidence) == (first.text, first.confidence)


def test_a_failed_question_leaves_nothing_behind(pair, monkeypatch):
    model, processor = pair
    seen = Session.of(model, processor).see(noise(300, 200))
    expected = seen.ask("What?", max_new_tokens=6).text
    layer, calls = model.model.layers[1], []
    original = layer.forward

    def breaks(*args, **kwargs):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", breaks)
    with pytest.raises(KeyboardInterrupt):
        seen.ask(QUESTIONS[2], max_new_tokens=6)
    assert seen.ask("What?", max_new_tokens=6).text == expected


def test_a_scene_is_encoded_once_and_its_file_closed(pair, tmp_path, monkeypatch):
    path, opened = tmp_path / "scene.png", []
    noise(300, 200).save(path)
    original, closed = imagery.open_scene, []

    def counted(*args, **kwargs):
        opened.append(original(*args, **kwargs))
        close = opened[-1].close
        opened[-1].close = lambda: closed.append(None) or close()
        return opened[-1]

    monkeypatch.setattr("geollava.answering.source.open_scene", counted)
    seen = Session.of(*pair).see(path)
    assert len(opened) == len(closed) == 1  # for its size
    for question in QUESTIONS:
        seen.ask(question, max_new_tokens=2)
    assert len(opened) == len(closed) == 2
    path.unlink()  # of no use any more
    seen.ask("What?", max_new_tokens=2)


def test_questions_are_checked_before_anything_is_encoded(pair, tmp_path, monkeypatch):
    noise(300, 200).save(tmp_path / "scene.png")
    session = Session.of(*pair)
    monkeypatch.setattr("geollava.answering.session.encode_scene", lambda *_, **__: 1 / 0)
    seen = session.see(tmp_path / "scene.png")
    for question, message in (
        (" ", "must say something"),
        ("a\ud800", "UTF-8 can write"),
        ("words " * 60_000, "must fit the model's"),
        ("<image> and?", "one <image> per image: expected 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            seen.ask(question)
    with pytest.raises(ValueError, match="does not exist"):
        session.see(tmp_path / "nothing.png")


def test_a_conversation_reads_all_that_was_said(pair, reads):
    model, processor = pair
    image = noise(300, 200)
    conversation = Conversation(Session.of(model, processor).see(image))
    for question in QUESTIONS:
        history = list(conversation.turns)
        answer = conversation.ask(question, max_new_tokens=6)
        assert same_answer(model, processor, answer, [image], question, history)
    assert [asked for asked, _ in conversation.turns] == QUESTIONS
    assert len(reads) == 1
    prompt = conversation.seen.prepare("And now?", history=conversation.turns)
    text = processor.tokenizer.decode(prompt)
    assert all(said in text for turn in conversation.turns for said in turn)


def test_memory_is_counted(pair):
    model, processor = pair
    session = Session.of(model, processor)
    seen = session.see(noise(300, 200))
    assert (session.memory.nbytes, len(session.memory)) == (0, 0)
    (tokens,) = seen.encode()
    assert session.memory.nbytes == seen.nbytes == tokens.nbytes > 0
    prompt = seen.prepare("What?", 4)
    seen.ask("What?", max_new_tokens=4)
    length = int((prompt == model.config.image_token_id).nonzero()[-1]) + 1
    keys = prefix_bytes(model.config, length, model.dtype)
    assert session.memory.nbytes == tokens.nbytes + keys
    cache = seen._prefix._cache
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == keys
    del seen
    assert session.memory.nbytes == 0


def test_the_scene_used_longest_ago_goes_first(pair, tmp_path, reads):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        noise(300, 200, seed=seed).save(paths[-1])
    expected = [Session.of(*pair).see(path).ask("What?", max_new_tokens=4).text for path in paths]
    whole = Session.of(*pair).see(paths[0])
    whole.ask("What?", max_new_tokens=4)
    tokens = whole.encode()[0].nbytes
    # Two scenes and the tokens of a third.
    session = Session.of(*pair, session_memory=2 * whole.nbytes + tokens)
    first, second, third = (session.see(path) for path in paths)
    reads.clear()
    for seen in (first, second, first, third):
        seen.ask("What?", max_new_tokens=4)
        assert session.memory.nbytes <= session.memory.limit
    assert len(reads) == 3
    assert [seen.keeps_prefix for seen in (first, second, third)] == [True, False, True]
    assert second.nbytes == tokens  # what is cheap to make again has gone first
    assert len(session.memory) == 3
    for seen, text in zip((first, second, third), expected, strict=True):
        assert seen.ask("What?", max_new_tokens=4).text == text
        assert session.memory.nbytes <= session.memory.limit
    session.memory.limit = whole.nbytes
    first.ask("What?", max_new_tokens=4)
    assert (second.nbytes, third.nbytes) == (0, 0)


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_scene_that_is_too_large_to_keep_is_read_each_time(pair, reads, limit):
    seen = Session.of(*pair, session_memory=limit).see(noise(300, 200))
    texts = {seen.ask("What?", max_new_tokens=4).text for _ in range(3)}
    assert len(texts) == 1
    assert len(reads) == 3
    assert seen._prefix is None


def test_a_file_that_changes_is_not_taken_for_what_was_seen(pair, tmp_path):
    path = tmp_path / "scene.png"
    noise(300, 200).save(path)
    seen = Session.of(*pair).see(path)
    text = seen.ask("What?", max_new_tokens=4).text
    noise(300, 200, seed=1).save(path)
    assert seen.ask("What?", max_new_tokens=4).text == text  # of what is kept
    seen.release()
    seen.release()
    with pytest.raises(ValueError, match="has changed since it was seen"):
        seen.ask("What?", max_new_tokens=4)
    with pytest.raises(ValueError, match="has changed since it was seen"):
        seen.overlay()
    seen.close()
    with pytest.raises(ValueError, match="was closed"):
        seen.ask("What?")


def test_session_memory_as_text(pair):
    assert Session.of(*pair, session_memory="2MiB").memory.limit == 2 * 2**20
    assert Session.of(*pair, session_memory="0").memory.limit == 0
    with pytest.raises(ValueError, match="must be a size such as 8GiB"):
        Session.of(*pair, session_memory="much")
    with pytest.raises(TypeError, match="must be bytes or a size, got None"):
        Session.of(*pair, session_memory=None)
    with pytest.raises(ValueError, match="must be 0 bytes or more"):
        Session.of(*pair, session_memory=-1)


def test_another_budget(pair):
    model, processor = pair
    session, image = Session.of(model, processor), noise(300, 200)
    before, late = session.see(image), session.see(image)
    answer = before.ask("What?", max_new_tokens=4)
    session.reduce(num_keep=3)
    after = session.see(image).ask("What?", max_new_tokens=4)
    assert after.tokens_after == 3 * after.crops
    few, few_processor = copy.deepcopy(model), copy.deepcopy(processor)
    few.config.num_keep = few_processor.num_keep = 3
    assert same_answer(few, few_processor, after, [image], "What?", tokens=4)
    for seen in (before, late):  # as they were seen
        assert seen.ask("What?", max_new_tokens=4).text == answer.text
    with pytest.raises(ValueError, match="num_keep"):
        session.reduce(num_keep=10_000)
    assert session.reduction.num_keep == 3


def test_sessions_that_share_a_model_leave_each_other_alone(pair):
    model, processor = pair
    image, own = noise(300, 200), model.config.num_keep
    first, second = Session.of(model, processor), Session.of(model, processor)
    early = first.see(image)
    second.reduce("uniform", 2)
    expected = Session.of(copy.deepcopy(model), processor).see(image).encode()[0].kept
    uniform = second.see(image).encode()[0].kept
    assert torch.equal(early.encode()[0].kept.keep_indices, expected.keep_indices)
    assert uniform.keep_indices.shape[1] == 2
    assert (model.config.reduction_method, model.config.num_keep) == ("background_anchored", own)
    second.reduce("cdpruner", own)
    asked = second.see(image)
    asked.encode()
    second.reduce("divprune", 1)
    assert asked.ask("What?", max_new_tokens=2).tokens_after == own * asked.canvases[0].crops


def test_a_model_in_training_is_refused(pair):
    model = copy.deepcopy(pair[0]).train()
    seen = Session.of(model, pair[1]).see(noise(300, 200))
    with pytest.raises(ValueError, match=r"evaluation mode: call model.eval\(\)"):
        seen.ask("What?")


def test_nothing_is_kept_for_gradients(pair):
    seen = Session.of(*pair).see(noise(300, 200))
    seen.ask("What?", max_new_tokens=2)
    assert not seen.encode()[0].kept.features.requires_grad
    layers = seen._prefix._cache.layers
    assert not any(layer.keys.requires_grad or layer.keys.grad_fn for layer in layers)


def test_an_image_in_memory_is_what_it_was(pair):
    expected = Session.of(*pair).see(noise(300, 200)).ask("What?", max_new_tokens=4)
    image, pixels = noise(300, 200), np.array(noise(300, 200))
    seen = [Session.of(*pair).see(image), Session.of(*pair).see(pixels)]
    image.paste((0, 0, 0), (0, 0, 300, 200))
    pixels[:] = 0
    for shown in seen:
        assert shown.ask("What?", max_new_tokens=4).confidence == expected.confidence
    with pytest.raises(ValueError, match="bands: an option of files, got Image for an image"):
        Session.of(*pair).see(noise(60, 60), bands=(1, 2, 3))


@pytest.mark.parametrize("method", [None, "fastv"])
def test_an_answer_is_heard_while_it_is_written(default_pair, method):
    session = Session.of(*default_pair)
    session.reduce(method, 6 if method else None)
    seen, pieces = session.see(noise(400, 300)), []
    answer = seen.ask("Is it standing still?", listen=pieces.append, max_new_tokens=12)
    assert "".join(pieces).strip() == answer.text != ""

    def interrupt(piece):
        raise KeyError(piece)

    with pytest.raises(KeyError):
        seen.ask("Is it standing still?", listen=interrupt, max_new_tokens=12)
    again = seen.ask("Is it standing still?", max_new_tokens=12)
    assert again.text == answer.text


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}])
def test_penalties_are_for_the_words_of_the_reply(default_pair, penalty):
    """...as where `generate` is given embeddings, which is how it is published."""
    model, processor = copy.deepcopy(default_pair[0]), default_pair[1]
    for name, value in penalty.items():
        setattr(model.generation_config, name, value)
    image = noise(700, 400)
    seen = Session.of(model, processor).see(image)
    for question in QUESTIONS:
        inputs = processor(images=[image], text=processor.build_prompt(question))
        features = model.get_image_features(inputs["pixel_values"], inputs["num_crops"])
        ids = model.generate(
            inputs_embeds=model.embed_prompt(inputs["input_ids"], features),
            attention_mask=inputs["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[0]
        expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert seen.ask(question, max_new_tokens=6).text == expected


@pytest.mark.parametrize(
    "setting",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"return_dict_in_generate": True}],
)
def test_what_a_checkpoint_says_of_generating_does_not_stop_a_session(pair, setting):
    model = copy.deepcopy(pair[0])
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
        if hasattr(model.config.text_config, name):
            setattr(model.config.text_config, name, value)
    expected = Session.of(*pair).see(noise(300, 200)).ask("What?", max_new_tokens=4)
    answer = Session.of(model, pair[1]).see(noise(300, 200)).ask("What?", max_new_tokens=4)
    assert answer.text == expected.text


def test_only_tokens_are_held(pair):
    session = Session.of(*pair)
    (tokens,) = session.see(noise(300, 200)).encode()
    held = session.hold([tokens])
    assert held.ask("What?", max_new_tokens=2).tokens_after == tokens.after
    with pytest.raises(ValueError, match="needs one of 0 images"):
        held.overlay()


@pytest.mark.parametrize("method", host_methods())
def test_methods_that_need_the_question(default_pair, reads, method):
    """...choose among what the model's own reduction leaves, as under `tokenprune.apply`."""
    model, processor = default_pair
    session, image, own = Session.of(model, processor), noise(700, 700), model.config.num_keep
    session.reduce(method, own // 2)
    seen = session.see(image)
    for question in QUESTIONS[:2]:
        answer = seen.ask(question, max_new_tokens=4)
        inputs = processor(images=[image], text=processor.build_prompt(question))
        with tokenprune.apply(model, method, keep_ratio=0.5) as handle:
            ids = model.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                eos_token_id=processor.tokenizer.eos_token_id,
                pad_token_id=processor.tokenizer.pad_token_id,
            )[0, inputs["input_ids"].shape[1] :]
            assert answer.tokens_after == sum(handle.report().tokens_after)
        assert answer.tokens_after < answer.crops * own
        assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert not reads
    whole = Session.of(model, processor).see(image)  # nothing of it is left in the model
    assert same_answer(
        model, processor, whole.ask("What?", max_new_tokens=4), [image], "What?", (), 4
    )


def test_methods_are_checked_before_weights_are_loaded(complete_checkpoint, monkeypatch):
    monkeypatch.setattr("geollava.answering.session.load", lambda *_: 1 / 0)
    for method, num_keep, message in (
        ("nothing", None, "method must be one of background_anchored, cdpruner, .*fastv"),
        ("fastv", None, "the method fastv needs a number of tokens to keep per crop, from 1 to"),
        ("fastv", 10_000, "from 1 to the"),
        ("uniform", 10_000, "num_keep must be between 1 and"),
        (None, 0, "num_keep must be between 1 and"),
        ("none", 3, "num_keep must be the"),
    ):
        with pytest.raises(ValueError, match=message):
            Session(complete_checkpoint, method=method, num_keep=num_keep)


def test_no_reduction_at_all(pair):
    model, processor = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
    session, image = Session.of(model, processor), noise(300, 200)
    session.reduce("none")
    answer = session.see(image).ask("What?", max_new_tokens=4)
    assert answer.tokens_after == answer.tokens_before
    model.config.reduction_method = "none"
    model.config.num_keep = processor.num_keep = model.config.tokens_per_crop
    assert same_answer(model, processor, answer, [image], "What?", tokens=4)
    session.reduce()
    assert session.reduction == session.own


class Thing:
    """Takes as many bytes as it is told, and gives back half of them at a time."""

    def __init__(self):
        self.cheap, self.dear = 0, 0

    @property
    def nbytes(self):
        return self.cheap + self.dear

    def release(self):
        if self.cheap:
            self.cheap = 0
        else:
            self.dear = 0


sizes = st.integers(0, 60)


@given(
    limit=st.integers(0, 100),
    uses=st.lists(st.tuples(st.integers(0, 5), sizes, sizes), max_size=30),
)
def test_memory_holds_the_newest_that_fit(limit, uses):
    memory, things = SceneMemory(limit), [Thing() for _ in range(6)]
    for number, dear, cheap in uses:
        thing = things[number]
        thing.cheap = 0
        others = sum(other.nbytes for other in things if other is not thing)
        if dear <= limit:
            thing.dear = dear
            assert memory.make_room(thing, 0)
        before = [other.nbytes for other in things]
        fits = memory.make_room(thing, cheap)
        assert fits == (thing.dear + cheap <= limit)
        if fits:
            thing.cheap = cheap
        else:
            assert [other.nbytes for other in things] == before  # none goes in vain
        assert memory.nbytes == sum(other.nbytes for other in things) <= limit
        if others + thing.nbytes <= limit:  # none goes where all fit
            assert memory.nbytes == others + thing.nbytes
