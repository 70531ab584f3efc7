"""Real families' templates: what transformers renders of past calls is what our parsers read back; tools for others."""

from __future__ import annotations

import copy
import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gristmill.serve.parsing import Tool, detect, for_template, knows_tools
from gristmill.tokenizer.chat import CHATML, render
from tests.serve.parsing.kinds import DEEPSEEK, KINDS, TELLS, fold, seen
from tests.tokenizer.test_families import FAMILIES, TOOLS

WEATHER = [
    Tool(each["function"]["name"], each["function"]["description"], each["function"]["parameters"])
    for each in TOOLS
]
ARGUMENTS = '{"city": "Köln <3"}'
USER = {"role": "user", "content": "Wie ist das Wetter?"}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_0123456789",
            "type": "function",
            "function": {"name": "get_weather", "arguments": ARGUMENTS},
        }
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "content": "21", "tool_call_id": "call_0123456789"}
# The shape of DeepSeek's: arguments are joined as text.
DEEPSEEK_TEMPLATE = (
    TELLS + "{% for message in messages %}{% if message['tool_calls'] %}{% for tool in message['tool_calls'] %}"
    "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + "
    "'\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + "
    "'<｜tool▁call▁end｜><｜tool▁calls▁end｜>'}}"
    "{% endfor %}{% else %}{{ '<｜' + message['role'] + '｜>' + message['content'] }}{% endif %}{% endfor %}"
)  # fmt: skip
KNOWING = {name: FAMILIES[name][0] for name in ("llama", "qwen", "mistral")}
TEMPLATES = {**KNOWING, "deepseek": DEEPSEEK_TEMPLATE}
ENDS = {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "mistral": "</s>", "deepseek": ""}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(template: str, messages, tools=None, prompt=False) -> str:
    """transformers' own rendering."""
    rendered, _ = render_jinja_template(
        conversations=[messages],
        tools=tools or None,
        chat_template=template,
        add_generation_prompt=prompt,
        **TOKENS,
    )
    return rendered[0] if isinstance(rendered, list) else rendered


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_of_a_call_is_read_as_that_call(name):
    template = TEMPLATES[name]
    assert knows_tools(template)
    before = copy.deepcopy([USER, CALLS, RESULT])
    messages, tools = for_template(template, [USER, CALLS, RESULT], WEATHER)
    assert before == [USER, CALLS, RESULT], "the request's own are left as they were"
    with_call, without = (theirs(template, messages[:count], tools) for count in (2, 1))
    assert "get_weather" in without or name == "deepseek"
    said = with_call.removeprefix(without) if with_call.startswith(without) else ""
    if name == "mistral":  # it shows the tools with the last user message
        said = with_call[with_call.index("[TOOL_CALLS]") :]
    elif name == "qwen":
        said = with_call[with_call.rindex("<|im_start|>assistant\n") :].split("\n", 1)[1]
    elif name == "llama":
        said = with_call[with_call.rindex("<|end_header_id|>") :].split("\n\n", 1)[1]
    said = said.rstrip().removesuffix(ENDS[name])
    format = detect(template, {"<|python_tag|>": 7} if name == "llama" else {})
    message, _ = fold(format.parser(WEATHER), [said])
    ((called, written, complete),) = seen(message)[2]
    assert (called, json.loads(written), complete) == ("get_weather", json.loads(ARGUMENTS), True)
    assert theirs(template, messages, tools), "with the result, too"


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "arguments", ['{"city": ', "[1]", "", '"x"', None, {"city": "Köln"}, "[" * 100_000]
)
def test_malformed_history_is_passed_on(name, arguments):
    template = TEMPLATES[name]
    call = {"id": "x", "type": "function", "function": {"name": "get_weather"}}
    if arguments is not None:
        call["function"] = {"name": "get_weather", "arguments": arguments}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    messages, tools = for_template(template, [USER, asked, RESULT], WEATHER)
    function = messages[1]["tool_calls"][0]["function"]
    if isinstance(arguments, str):
        assert function["arguments"] == arguments
    if arguments is not None:
        text = theirs(template, messages, tools)
        assert render(template, messages, tools=tools, **TOKENS) == text


def test_malformed_calls_do_not_crash_either():
    odd = [
        None,
        "text",
        [],
        [None],
        ["x", 3],
        [{}],
        [{"function": "f"}],
        [{"function": {"name": None}}],
    ]
    for calls in odd:
        asked = {"role": "assistant", "content": None, "tool_calls": calls}
        for template in (KNOWING["mistral"], CHATML):
            messages, _ = for_template(template, [USER, asked, RESULT], WEATHER)
            assert messages[0]["role"] in ("user", "system")


def test_mistral_gets_ids_of_nine_letters():
    messages, _ = for_template(KNOWING["mistral"], [USER, CALLS, RESULT], WEATHER)
    (call,) = messages[1]["tool_calls"]
    assert len(call["id"]) == 9 and call["id"].isalnum()
    assert messages[2]["tool_call_id"] == call["id"]
    kept, _ = for_template(KNOWING["mistral"], [{**RESULT, "tool_call_id": "abcDEF123"}], WEATHER)
    assert kept[0]["tool_call_id"] == "abcDEF123"


@pytest.mark.parametrize("template", ["gemma", "phi", "chatml"])
def test_templates_without_tools_are_told_them_in_words(template):
    """Their own rendering, roles in turn, has tools, past calls and results; and the calls in it are read."""
    text = CHATML if template == "chatml" else FAMILIES[template][0]
    assert not knows_tools(text)
    system = {"role": "system", "content": "Be brief."}
    chat = [system, USER, CALLS, RESULT, RESULT, {"role": "user", "content": "And now?"}]
    messages, offered = for_template(text, chat, WEATHER)
    assert offered == []
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    shown = theirs(text, messages, prompt=True)
    for part in ("Be brief.", '"description": "Wetter in <Ort>', "<tools>", "And now?"):
        assert part in shown
    assert shown.count("<tool_response>\n21\n</tool_response>") == 2
    message, _ = fold(detect(text, {}).parser(WEATHER), [messages[2]["content"]])
    assert seen(message) == ("", "", [("get_weather", ARGUMENTS, True)])
    introduced, _ = for_template(text, [USER], WEATHER)
    assert [message["role"] for message in introduced] == ["system", "user"]
    told, _ = for_template(text, chat, [])
    assert told[0] == system and "<tool_call>" in told[2]["content"], "without tools of its own"


def test_a_template_that_refuses_system_messages_has_the_tools_in_the_first_of_the_user():
    gemma2 = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHATML
    )
    messages, _ = for_template(gemma2, [USER], WEATHER)
    assert [message["role"] for message in messages] == ["user"]
    assert messages[0]["content"].endswith(USER["content"]) and "<tools>" in messages[0]["content"]
    assert theirs(gemma2, messages)


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        (TELLS, True),
        ("{%- if tools is not none %}x{% endif %}", True),
        ("{{ raise_exception('no tools here') }}", False),
        ("{# tools #}{{ messages }} tools", False),
        ("{{ message.tools }}{{ builtin_tools }}", False),
    ],
)
def test_which_templates_know_tools(template, knows):
    assert knows_tools(template) == knows


def test_formats_are_known_by_template_and_vocabulary():
    for name, kind in KINDS.items():
        format = kind.format
        assert name.startswith(format.name) or name == "json"
        assert format.needs_special == (kind.special and bool(kind.marks))
    assert detect(None, {}).name == detect(CHATML, {"<|python_tag|>": 1}).name == "hermes"
    assert detect(TELLS + "<function=a>", {"<tool_call>": 1}).name == "json"
    assert detect(TELLS + DEEPSEEK, {}).shape != detect(TELLS + DEEPSEEK + "```json", {}).shape
    assert detect(None, {}).thought is None
    assert detect(CHATML, {"<think>": 1, "</think>": 2}).thought is not None


def test_where_a_thought_is_open():
    format = detect(KNOWING["qwen"], {})
    assert format.opens_thought("<|im_start|>assistant\n<think>\n")
    assert not format.opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not format.opens_thought("<|im_start|>assistant\n")
    assert not detect(CHATML, {}).opens_thought("<think>")
    assert format.still_in_thought("so far") and not format.still_in_thought("so</think> far")
