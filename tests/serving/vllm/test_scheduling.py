"""However vLLM cuts, repeats and interrupts prompts, the answers are those of `apply`."""

from __future__ import annotations

import pytest

from .engine import Prompt, applied, ask, differences, given, open_engine, prompts
from .forks import in_fork

NAME, METHOD = "qwen2_5_vl", "divprune"
QUARTER = {"keep_ratio": 0.25}


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(NAME)


def reference(folder, asked, budget=QUARTER, **options):
    return in_fork(applied, folder, asked, METHOD, **budget, **options)


@pytest.mark.parametrize("name", [NAME, "qwen3_vl"])
def test_chunks_that_cut_an_image_and_a_cache_hit_inside_one(checkpoint, name):
    folder, asked, chunk, half = checkpoint(name), prompts(name), 16, {"keep_ratio": 0.5}
    others = [Prompt(one.text.replace("What", "Where"), one.images) for one in asked]
    expected = reference(folder, [*asked, *others], half)

    def ask_all():
        engine = open_engine(folder, **given(METHOD, **half), max_num_batched_tokens=chunk)
        first = ask(engine, [prompt.request() for prompt in asked])
        return first, ask(engine, [prompt.request() for prompt in others])

    first, second = in_fork(ask_all)
    assert differences([*first, *second], expected) == []
    for reply, other in zip(first[:2], second[:2], strict=True):  # of one image each
        assert any(reply.image_holds(n * chunk) for n in range(1, 9))
        assert reply.cached == 0
        assert other.image_holds(other.cached)


def test_compiled(folder):
    asked = prompts(NAME)
    replies = in_fork(
        lambda: ask(
            open_engine(folder, **given(METHOD, **QUARTER), enforce_eager=False),
            [prompt.request() for prompt in asked],
        )
    )
    assert differences(replies, reference(folder, asked)) == []


def test_several_budgets_of_one_image_on_one_server(folder):
    (prompt,) = prompts(NAME, ["landscape"])
    budgets = [None, {"keep_ratio": 1.0}, {"num_keep": 5}, {"keep_ratio": 0.5}, None]

    def ask_all():
        engine = open_engine(folder, **given(METHOD, **QUARTER))
        one_by_one = [ask(engine, [prompt.request(budget)])[0] for budget in budgets]
        return one_by_one, ask(engine, [prompt.request(budget) for budget in budgets])

    one_by_one, together = in_fork(ask_all)
    expected = [
        reference(folder, [prompt], QUARTER if budget is None else budget)[0] for budget in budgets
    ]
    assert len({reply.length for reply in expected}) == 4
    assert differences(one_by_one, expected) == []
    assert differences(together, expected) == []


def test_preempted_requests_go_on(folder):
    asked, new_tokens = prompts(NAME), 40
    expected = reference(folder, asked, new_tokens=new_tokens)

    def ask_all():
        few = {"num_gpu_blocks_override": 10, "max_model_len": 256, "max_num_seqs": 8}
        engine = open_engine(folder, **given(METHOD, **QUARTER), **few, enable_prefix_caching=False)
        replies = ask(engine, [prompt.request() for prompt in asked * 2], new_tokens)
        preempted = [m for m in engine.get_metrics() if m.name == "vllm:num_preemptions"]
        return replies, sum(metric.value for metric in preempted)

    replies, preempted = in_fork(ask_all)
    assert preempted > 0
    assert differences(replies, expected * 2) == []


def test_many_in_flight_beside_text(folder):
    texts = [Prompt(f"<|im_start|>user\nSay {n}.<|im_end|>\n") for n in range(4)]
    asked = [*prompts(NAME), *texts]
    expected = reference(folder, asked)

    def ask_all():
        engine = open_engine(folder, **given(METHOD, **QUARTER), max_num_seqs=32)
        return ask(engine, [prompt.request() for prompt in asked * 4])

    assert differences(in_fork(ask_all), expected * 4) == []


def test_without_options_nothing_of_ours_runs(folder):
    asked = prompts(NAME)

    def ask_all(**options):
        engine = open_engine(folder, **options)
        (model,) = engine.apply_model(type)
        names = [base.__name__ for base in model.__mro__]
        return "PrunedModel" in names, ask(engine, [prompt.request() for prompt in asked])

    pruned, plain = in_fork(ask_all)
    assert not pruned
    pruned, whole = in_fork(ask_all, **given(METHOD, keep_ratio=1.0))
    assert pruned
    assert differences(whole, plain) == []
    assert differences(plain, in_fork(applied, folder, asked)) == []
