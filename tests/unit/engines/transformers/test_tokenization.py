"""Prompts as the model reads them: what a template or tokenizer refuses is an error of one line, with row and role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers
from tokenizers.processors import TemplateProcessing

import models
from seedtune.engines.toy.engine import Characters
from seedtune.engines.transformers.decoding.decoder import DecodeSequence, Stop
from seedtune.engines.transformers.tokenization import ModelTokenizer, warn_once
from seedtune.errors import ConfigError, DataError
from seedtune.types import Prompt, Sampling

STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
USER, SYSTEM = {"role": "user", "content": "a"}, {"role": "system", "content": "Be kind."}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


SIZES = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=models.VOCABULARY))


def of(hf: Any) -> ModelTokenizer:
    return ModelTokenizer(SimpleNamespace(tokenizer=lambda: hf, config=lambda: SIZES))


def read(template: str, *content: Any, **kwargs: Any) -> str:
    tokenizer = of(models.tokenizer(template))
    (ids,) = tokenizer.encode([Prompt(3, content, kwargs)])
    return tokenizer.hf.decode(ids)


@pytest.mark.parametrize(
    ("content", "role", "sentence"),
    [
        ((USER, USER), "user", "Roles must alternate"),
        ((SYSTEM, USER), "system", "System role not supported"),
        ((USER, CALLS, {"role": "tool", "content": "4"}, USER), "tool", "Roles must alternate"),
        ((USER, {"role": "assistant", "content": "b"}, SYSTEM, USER), "system", "System role not supported"),
        (({"role": "developer", "content": "b"}, USER), "developer", "Roles must alternate"),
    ],
)
def test_what_a_template_refuses_is_told_with_row_role_and_its_sentence(content, role, sentence):
    with pytest.raises(DataError) as caught:
        read(STRICT, *content)
    assert str(caught.value) == (
        f"prompt 3 is refused by the model's chat template at a message with the role {role!r}: {sentence}. Change the "
        "messages, or give another template (chat_template_kwargs.chat_template)."
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] + m['name'] }}{% endfor %}",
        "{{ messages[1]['content'] }}{{ 1 // 0 }}",
        "{{ messages.nothing.content }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_in_any_way_is_one_line(template):
    with pytest.raises(DataError, match="prompt 3 is refused by the model's chat template at a message with the role"):
        read(template, USER)


PARTS = [{"type": "text", "text": "hi"}]


@pytest.mark.parametrize("tokenizer", [of(models.tokenizer()), Characters()], ids=["transformers", "toy"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\ud800b", r"prompt 3 holds half a character \(a lone surrogate\) in 'a\\ud800b'"),
        (({"role": "user", "content": "\udc80"},), "prompt 3 holds half a character"),
        (({"role": "user", "content": PARTS},), r"the role 'user' and the content \[{'type': 'text'.* not text. Give"),
        (
            (USER, {"role": "assistant", "content": None}),
            "the role 'assistant' and the content None, which is not text",
        ),
        (({"role": "user", "content": 5},), "the content 5, which is not text"),
        (({"role": None, "content": "a"},), "the role None and the content 'a'"),
        (({"content": "a"},), "the role None"),
    ],
)
def test_what_is_not_text_is_told_with_row_role_and_value(tokenizer, content, message):
    with pytest.raises(DataError, match=message):
        tokenizer.lengths([Prompt(0, "fine"), Prompt(3, content)])


def test_calls_of_tools_need_no_content():
    assert read("{{ messages[1]['tool_calls'][0]['function']['name'] }}", USER, CALLS, USER) == "f"


def test_answers_with_half_a_character_are_refused():
    with pytest.raises(DataError, match="prompt 3 holds half a character"):
        of(models.tokenizer()).lengths([Prompt(3, "a", answers=("b", "c\ud800"))])
    assert of(models.tokenizer()).lengths([Prompt(3, "ab", answers=("c", "defg")), Prompt(4, "a")]) == [6, 1]


# ------------------------------------------------------------------------------ answers that have begun

PROMPT = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Let me think.\n<think>"})
TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMS = TURNS.replace("m['content']", "m['content'] | trim")


def text_of(template: str, messages: Any, **kwargs: Any) -> str:
    return of(models.tokenizer(template)).text(Prompt(3, messages, kwargs))


@pytest.mark.parametrize(
    ("template", "messages", "kwargs", "text"),
    [
        (TURNS, PROMPT, {}, "<user>2 + 2?<end><assistant>Let me think.\n<think>"),
        (TURNS, PROMPT, {"continue_final_message": True}, "<user>2 + 2?<end><assistant>Let me think.\n<think>"),
        (TURNS, PROMPT, {"add_generation_prompt": False}, "<user>2 + 2?<end><assistant>Let me think.\n<think>"),
        (TURNS, PROMPT[:1], {"continue_final_message": True}, "<user>2 + 2?<end><assistant>"),
        (TURNS, PROMPT[:1], {"add_generation_prompt": False}, "<user>2 + 2?<end>"),
        (TURNS, PROMPT[1:], {}, "<assistant>Let me think.\n<think>"),
        (TRIMS, (PROMPT[0], {"role": "assistant", "content": "So, "}), {}, "<user>2 + 2?<end><assistant>So,"),
        (TURNS, (PROMPT[0], {"role": "assistant", "content": "So, "}), {}, "<user>2 + 2?<end><assistant>So, "),
        (TURNS, (PROMPT[0], {"role": "assistant", "content": ""}), {}, "<user>2 + 2?<end><assistant>"),
        (
            TURNS,
            PROMPT,
            {"add_generation_prompt": True},
            "<user>2 + 2?<end><assistant>Let me think.\n<think><end><assistant>",
        ),
        (
            TURNS,
            (PROMPT[0], PROMPT[1], {"role": "tool", "content": "4"}),
            {},
            "<user>2 + 2?<end><assistant>Let me think.\n<think><end><tool>4<end><assistant>",
        ),
    ],
)
def test_a_prompt_that_ends_with_an_assistant_message_is_continued_as_in_trl(template, messages, kwargs, text):
    assert text_of(template, messages, **kwargs) == text


def test_a_template_that_leaves_the_begun_answer_out_is_refused():
    with pytest.raises(DataError, match="role 'assistant': continue_final_message is set but the final message"):
        text_of("{% for m in messages %}{{ m['content'].split('</think>')[-1][:3] }}{% endfor %}", PROMPT)
    with pytest.raises(DataError, match="continue_final_message and add_generation_prompt are not compatible"):
        text_of(TURNS, PROMPT, continue_final_message=True, add_generation_prompt=True)


LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}'
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today Date: {{ date_string }} {{ messages[0]['content'] }}"
)


@pytest.mark.parametrize(
    ("template", "kwargs", "text"),
    [
        (LLAMA, {}, "Today Date: 26 Jul 2024 a"),
        (LLAMA, {"date_string": "01 Jan 2025"}, "Today Date: 01 Jan 2025 a"),
        ("Current date: {{ strftime_now( '%Y-%m-%d' ) }}", {}, "Current date: 2024-07-26"),
        ("{{ messages[0]['content'] }}", {"chat_template": "{{ strftime_now('%Y') }}"}, "2024"),
        ("{% set day = '%B %-d' %}{{ strftime_now(day) }}", {}, "July 26"),
        ("{{ strftime_now(style) }}", {"style": "%%d is %d, %y"}, "%d is 26, 24"),
        ("{{ strftime_now(format='%A') }}", {}, "Friday"),
        ("{% macro day() %}{{ strftime_now('%Y' ~ '-%m') }}{% endmacro %}{{ day() }}", {}, "2024-07"),
        ("  {% if true %}\n a{% endif %}{{ strftime_now('%d') | int + 1 }}", {}, " a27"),
        ("\n  a {{ strftime_now('%d') }}", {}, "\n  a 26"),
    ],
)
def test_a_template_that_prints_the_date_prints_the_same_every_day(template, kwargs, text):
    assert of(models.tokenizer(template)).text(Prompt(0, (USER,), kwargs)) == text


@pytest.mark.parametrize(("kwargs", "warnings"), [({}, 1), ({"date_string": "01 Jan 2025"}, 0)])
def test_the_fixed_date_is_told_once_unless_the_settings_give_one(caplog, kwargs, warnings):
    warn_once.cache_clear()
    tokenizer = of(models.tokenizer(LLAMA))
    assert tokenizer.fingerprint
    tokenizer.encode([Prompt(0, (USER,), kwargs), Prompt(1, (USER,), kwargs)])
    assert [r.getMessage() for r in caplog.records] == [
        "the chat template prints the date; in all prompts of seedtune it is 26 Jul 2024"
    ] * warnings


TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMED = {"default": TURNS, "tool_use": "{{ tools[0]['function']['name'] }}", "short": "{{ messages[0]['content'] }}"}


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "<user>a<end><assistant>"),
        ({"chat_template": "short"}, "a"),
        ({"tools": TOOLS}, "f"),
        ({"tools": TOOLS, "chat_template": "tool_use"}, "f"),
    ],
)
def test_one_of_several_templates_is_named_or_has_the_tools(kwargs, text):
    assert of(models.tokenizer(NAMED)).text(Prompt(0, (USER,), kwargs)) == text


@pytest.mark.parametrize("name", ["short", "default"])
def test_a_named_template_without_tools_is_refused_with_them(name):
    with pytest.raises(DataError, match="chat template has no place for the environment's tools"):
        of(models.tokenizer(NAMED)).text(Prompt(0, (USER,), {"tools": TOOLS, "chat_template": name}))


@pytest.mark.parametrize("content", [None, "", "I ask."])
def test_a_prompt_that_ends_with_calls_of_tools_is_not_continued(content):
    template = TURNS.replace("<end>", "{% if m['tool_calls'] %}<calls>{% endif %}<end>")
    text = of(models.tokenizer(template)).text(Prompt(0, (USER, {**CALLS, "content": content})))
    assert text == f"<user>a<end><assistant>{content or ''}<calls><end><assistant>"


# ------------------------------------------------------------------------------ tokens of beginnings and ends

A, B = 4 + ord("a") - 32, 4 + ord("b") - 32
BOS, EOS = models.BOS, models.EOS


def with_tokens(before: str = "", after: str = "", *, template: str = TURNS) -> Any:
    """A tokenizer that puts special tokens around a text, as its post-processor."""
    hf = models.tokenizer(template)
    special = [("<bos>", BOS), ("<eos>", EOS), ("<unk>", 3)]
    if before or after:
        hf.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{before} $A {after}".strip(), special_tokens=special
        )
    return hf


@pytest.mark.parametrize(
    ("hf", "prompt", "ids"),
    [
        (with_tokens(), "ab", [A, B]),
        (with_tokens(), "<bos>ab", [BOS, A, B]),
        (with_tokens("<bos>"), "ab", [BOS, A, B]),
        (with_tokens("<bos>"), "<bos>ab", [BOS, A, B]),
        (with_tokens("<bos>"), "<bos>", [BOS]),
        (with_tokens("<bos>"), "", [BOS]),
        (with_tokens("<bos>", "<eos>"), "ab", [BOS, A, B]),
        (with_tokens("", "<eos>"), "ab", [A, B]),
        (with_tokens("<unk> <bos>"), "ab", [3, BOS, A, B]),
        (with_tokens("<unk> <bos>"), "<bos>ab", [3, BOS, BOS, A, B]),
    ],
)
def test_a_text_begins_with_the_tokenizers_tokens_once_and_never_ends_with_them(hf, prompt, ids):
    assert of(hf).encode([Prompt(0, "b"), Prompt(1, prompt)])[1] == ids


@pytest.mark.parametrize(
    ("written", "ids"), [("", [A]), ("{{ bos_token }}", [BOS, A]), ("{{ bos_token }}{{ bos_token }}", [BOS, A])]
)
@pytest.mark.parametrize("around", [(), ("<bos>",), ("<bos>", "<eos>")])
def test_a_template_writes_the_tokens_of_a_chat_itself(written, ids, around):
    hf = with_tokens(*around, template=written + "{{ messages[0]['content'] }}")
    wanted = ids if around else {2: [BOS, BOS, A]}.get(written.count("bos_token"), ids)
    assert of(hf).encode([Prompt(0, (USER,))])[0] == wanted


def ended(tokens: list[int], **sampling: Any) -> tuple[str | None, str]:
    """Why a row of these tokens ends, and its text; its tokens are cut where it ends."""
    hf = models.tokenizer()
    hf.add_tokens([AddedToken("<turn>", special=False)])
    stop = Stop.of(Sampling(8, **sampling), frozenset({EOS, len(hf) - 1}), of(hf))
    row = DecodeSequence(0, 0, 0, [A], len(tokens), None)
    for token in tokens:
        row.tokens.append(token)
        row.finish = stop.reached(row)
        if row.finish is not None:
            break
    return row.finish, stop.text(row.tokens)


TURN = models.VOCABULARY


@pytest.mark.parametrize(
    ("tokens", "sampling", "found"),
    [
        ([A, B, EOS], {}, ("stop", "ab")),
        ([A, B, TURN], {}, ("stop", "ab")),  # an end token that the tokenizer does not call special
        ([A, EOS, B], {"ignore_eos": True}, ("length", "ab")),
        ([A, BOS, B, A], {"stop": ("<bos>",)}, ("stop", "a")),
        ([A, B, BOS, A], {"stop": ("b<bos>",)}, ("stop", "a")),
        ([A, 3, BOS, B, A], {"stop": ("<bos>b",)}, ("stop", "a")),
        ([A, 3, B, A, B], {"stop": ("ba", "<bos>")}, ("stop", "a")),
        ([A, 3, B, BOS, B], {"stop": ("<bos>", "zz")}, ("stop", "ab")),
        ([A, B, EOS], {"stop": ("b<eos>",)}, ("stop", "a")),
        ([A, BOS, B], {"stop": ("ab",)}, ("stop", "")),
        ([A, B, A], {"stop_token_ids": (B,)}, ("stop", "a")),
        ([A, EOS, B, A], {"stop_token_ids": (B,), "ignore_eos": True}, ("stop", "a")),
        ([A, BOS], {"stop_token_ids": (BOS,), "stop": ("z",)}, ("stop", "a")),
    ],
)
def test_stops_may_be_special_tokens_and_are_no_part_of_the_text(tokens, sampling, found):
    assert ended(tokens, **sampling) == found


def test_a_token_that_the_model_does_not_have_is_refused():
    hf = models.tokenizer()
    hf.add_tokens(["<new>"])
    tokenizer = of(hf)
    tokenizer.check_ids("stop_token_ids", (98,))
    with pytest.raises(ConfigError, match=r"stop_token_ids=\[5, 99\]: the model has 99 tokens, and none is 99"):
        tokenizer.check_ids("stop_token_ids", (5, 99))
    for prompt in (Prompt(3, "a<new>"), Prompt(3, "a", answers=("b", "<new>"))):
        with pytest.raises(DataError, match=r"prompt 3 has the token '<new>' \(id 99\), but the model has only 99"):
            tokenizer.lengths([prompt])


def reading(change: str) -> str:
    hf = models.tokenizer()
    match change:
        case "template":
            hf.chat_template += " "
        case "text":
            hf.backend_tokenizer.normalizer = normalizers.Lowercase()
        case "vocabulary":
            hf.add_tokens(["entirely"])
        case "no template":
            hf.chat_template = None
    return of(hf).fingerprint


def test_the_fingerprint_of_a_tokenizer_is_of_how_it_reads():
    assert reading("nothing") == reading("nothing")
    found = [reading(change) for change in ("nothing", "template", "text", "vocabulary", "no template")]
    assert len(set(found)) == len(found)
