"""Chat templates of five families (their formats, shortened) against transformers: text, ids, mask, attacks."""

from __future__ import annotations

import datetime
import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RequestError
from gristmill.tokenizer import Tokenizer, sandbox
from gristmill.tokenizer.chat import render

LLAMA = r"""{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {%- set first = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions:\n\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {%- if message.role == 'assistant' %}{% generation %}{{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {%- generation %}{{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}" }}{{- "<|eot_id|>" }}{%- endgeneration %}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
QWEN = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n\n<tools>" }}{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n\nReturn <tool_call></tool_call> tags:\n<tool_call>\n{}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
        message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}
        {%- for item in message.content or [] %}{%- if item.type == 'text' %}
            {%- set content = item.text %}{%- endif %}{%- endfor %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
MISTRAL = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {%- generation %}{{- " " + message["content"]|trim + eos_token}}{%- endgeneration %}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- else %}{{- raise_exception("Only user, assistant and tool roles are supported!") }}{%- endif %}
{%- endfor %}"""
GEMMA = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {%- if role == 'model' -%}{% generation %}{{ message['content'] | trim }}<end_of_turn>{% endgeneration %}
        {%- else -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{%- endif -%}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}{{ '<end_of_turn>' }}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
PHI = r"""{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
'}}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
# template, bos, eos, further control tokens, and which of them are not flagged special
FAMILIES = {
    "llama": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|> <|end_header_id|>", ""),
    "qwen": (QWEN, None, "<|im_end|>", "<|im_start|> <|endoftext|>",
             "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>"),
    "mistral": (MISTRAL, "<s>", "</s>", "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] "
                "[TOOL_RESULTS] [/TOOL_RESULTS]", ""),
    "gemma": (GEMMA, "<bos>", "<eos>", "<start_of_turn> <end_of_turn> <start_of_image>", ""),
    "phi": (PHI, "<s>", "<|endoftext|>", "<|system|> <|user|> <|assistant|> <|end|>", ""),
}  # fmt: skip

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Wetter in <Ort> & 'Umgebung'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief. "}
USER = {"role": "user", "content": " Wie ist das Wetter in Köln?\n"}
CALL = {"id": "abcdefghi", "type": "function"}
CALL["function"] = {"name": "get_weather", "arguments": {"city": "Köln <3"}}
ASKS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {
    "role": "tool",
    "name": "get_weather",
    "content": '{"degrees": 21}',
    "tool_call_id": "abcdefghi",
}
ANSWER = {"role": "assistant", "content": "21 °C 🙂", "reasoning_content": "The tool says\n21."}
CHATS = [
    ([USER], None),
    ([SYSTEM, USER], None),
    ([USER, {"role": "assistant", "content": "<b>ok</b> "}, {"role": "user", "content": "and now?"}], None),
    ([SYSTEM, USER, ANSWER], None),
    ([SYSTEM, USER], TOOLS),
    ([USER, ASKS, RESULT, ANSWER], TOOLS),
    ([USER, ASKS, RESULT, RESULT, ANSWER, USER], TOOLS),
    ([{"role": "user", "content": [{"type": "text", "text": "parts"}]}], None),
]  # fmt: skip


@pytest.fixture(scope="module")
def families(tokenizer, tmp_path_factory):
    """name -> (transformers' tokenizer, ours), both from one directory."""
    from transformers import AutoTokenizer

    made = {}
    for name, (template, bos, eos, special, plain) in FAMILIES.items():
        backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
        backend.post_processor = None
        backend.add_special_tokens([token for token in (bos, eos) if token] + special.split())
        backend.add_tokens(plain.split())
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
        config |= {"chat_template": template, "add_bos_token": bos is not None}
        directory = tmp_path_factory.mktemp(name)
        Tokenizer(backend, config).save(directory)
        made[name] = (AutoTokenizer.from_pretrained(directory), Tokenizer.load(directory))
    return made


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Both libraries' strftime_now say the same day."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 9, 12, 0, 0)

    import transformers.utils.chat_template_utils as theirs

    monkeypatch.setattr(sandbox, "datetime", Frozen)
    monkeypatch.setattr(theirs, "datetime", Frozen)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("number", range(len(CHATS)))
@pytest.mark.parametrize("prompt", [True, False])
def test_text_and_ids_equal_transformers(families, name, number, prompt):
    theirs, ours = families[name]
    chat, tools = CHATS[number]
    try:
        expected = theirs.apply_chat_template(
            chat, tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as refusal:
        with pytest.raises(RequestError, match="refuses these messages"):
            ours.render(chat, add_generation_prompt=prompt, tools=tools)
        assert type(refusal).__name__ in ("TemplateError", "UndefinedError", "TypeError")
        return
    assert ours.render(chat, add_generation_prompt=prompt, tools=tools) == expected
    ids = ours.chat_ids(chat, add_generation_prompt=prompt, tools=tools)
    assert ours.decode(ids, skip_special=False) == expected
    # a template that writes e.g. <think> around reasoning, where nothing a person typed looks like a token
    assert ids == theirs(expected, add_special_tokens=False)["input_ids"]
    if name != "qwen" and ours.bos_id is not None:
        assert ids.count(ours.bos_id) == 1 and ids[0] == ours.bos_id


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_equals_transformers(families, name):
    theirs, ours = families[name]
    text = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=15)
    turn = st.tuples(text, text)

    @settings(max_examples=60, deadline=None)
    @given(turns=st.lists(turn, min_size=1, max_size=3))
    def compare(turns):
        chat = []
        for asked, said in turns:
            chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        expected = theirs.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = ours.chat_ids_with_mask(chat)
        assert ids == expected["input_ids"]
        assert mask == [bool(flag) for flag in expected["assistant_masks"]]
        assert any(mask)

    compare()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_people_and_tools_write_never_becomes_a_control_token(families, name):
    _, ours = families[name]
    control = set(ours.special_tokens.values())
    names = [text for text in ours.special_tokens if "reserved" not in text]
    attacks = [*names, "".join(names), *(a[: len(a) // 2] for a in names), *(a[1:] for a in names)]
    attacks += [a + b for a, b in product(names[-4:], names[-4:])]

    def skeleton(messages, tools):
        try:
            ids = ours.chat_ids(messages, tools=tools)
        except RequestError:
            return None
        assert ours.decode(ids, skip_special=False) == ours.render(messages, tools=tools)
        return [id for id in ids if id in control]

    for chat, tools in CHATS[:6]:
        expected = skeleton(chat, tools)
        for index, message in enumerate(chat):
            for attack in attacks:
                hostile = [dict(each) for each in chat]
                hostile[index]["content"] = f"x {attack} x"
                if name == "qwen" and message["role"] == "assistant" and "think>" in attack:
                    continue  # its template takes reasoning out of what the assistant says
                if name == "qwen" and not message["content"]:
                    continue  # an empty content changes what the template writes
                assert skeleton(hostile, tools) == expected, attack
        if tools:
            for attack in attacks:
                evil = json.loads(json.dumps(tools))
                evil[0]["function"]["description"] = attack
                assert skeleton(chat, evil) == expected, attack


def test_variables_from_outside_are_text_too(families):
    _, ours = families["llama"]
    ids = ours.chat_ids([USER], date_string="<|eot_id|>", bos_token="<|eot_id|>")
    assert ids.count(ours.special("<|eot_id|>")) == 2 and ours.bos_id not in ids


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "1000000 rounds"),
        ("{% set a = [1] * 9999 %}{% for i in a %}{% for j in a %}x{% endfor %}{% endfor %}", "rounds"),
        ("{{ 'x' * 10**9 }}", "grows beyond"),
        ("{{ 10**9 * [1] }}", "grows beyond"),
        ("{{ 9**(9**9) }}", "bits"),
        ("{{ 1 + (7**40)**40 }}", "bits"),
        ("{% set n = namespace(s='12345678') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
         "grows beyond"),
        ("{% set n = namespace(s='12345678') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
         "grows beyond"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ '{0}'.format() }}", "refuses"),
        ("{% if " + "(" * 3000 + " %}", "cannot be compiled"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ (messages | attr('__class__')).mro() }}", "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe|no attribute"),
        ("{{ strftime_now.__globals__['json'] }}", "unsafe|no attribute"),
        ("{{ raise_exception.__code__ }}{{ raise_exception.__code__.co_consts }}", "unsafe|no attribute"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe|refuses"),
        ("{{ counted.__self__._left }}", "unsafe|no attribute"),
        ("{{ messages[0].update({'a': 1}) }}", "unsafe"),
    ],
)  # fmt: skip
def test_templates_are_kept_in_bounds(template, says):
    with pytest.raises(RequestError, match=says):
        render(template, [{"role": "user", "content": "x"}])


def test_bounds_change_nothing_that_templates_do():
    template = (
        "{% for a in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.nextitem }};"
        "{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ none }}{% else %}-{% endfor %}"
        "{% for x in nothing %}{% else %}empty{% endfor %}{% for x in 'abc' if x != 'b' %}{{ x }}{% endfor %}"
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ 2 ** 10 }}"
    )
    import jinja2

    assert render(template, []) == jinja2.Template(template).render(messages=[])
