"""Conversations over HTTP: what is kept, what is refused, two tabs at once, and the exported files."""

from __future__ import annotations

import email.message
import json
import threading

import pytest

from gristmill.files import read_jsonl
from gristmill.serve.web.conversations import MAX_BYTES, MAX_NODES
from tests.serve.web.conftest import State, client_of
from tests.tiny_model import random_model


def node(id, parent=None, role="user", content="?", **more):
    return {"id": id, "parent": parent, "role": role, "content": content, **more}


def document(*nodes, current=None, revision=0, **more):
    made = {
        "title": "Wheels & grain",
        "model": "tiny",
        "system": "Be brief.",
        "settings": {"temperature": 0.5, "stop": ["\n"], "seed": None},
        "nodes": list(nodes),
        "current": current,
        "revision": revision,
    }
    return made | more


FULL = document(
    node("q1", content="What does `mill` do?", attachments=[{"id": "att_1", "name": "naïve.md"}]),
    node("a1", "q1", "assistant", "It **grinds**.\n\n```python\nmill()\n```", finish="stop"),
    node(
        "a2",
        "q1",
        "assistant",
        "It mills. 🙂",
        model="tiny",
        finish="length",
        reasoning="Mills\nmill.",
        citations=[{"source": "notes/mill.md", "line": 3, "title": "The mill", "text": "…"}],
        tokens=[
            {
                "token": "It",
                "logprob": -0.25,
                "bytes": [73, 116],
                "top_logprobs": [{"token": "�", "logprob": -9999.0, "bytes": [240]}],
            }
        ],
    ),
    node("q2", "a2", content="Again?"),
    current="q2",
)


def put(client, body, id="c"):
    return client.put(f"/app/conversations/{id}", json=body)


def test_a_conversation_comes_back_as_it_was_sent(client):
    assert put(client, FULL).json() == {"revision": 1}
    kept = client.get("/app/conversations/c").json()
    assert kept.pop("updated") > 1.6e9
    assert kept == FULL | {"id": "c", "revision": 1}
    assert put(client, kept | {"title": "New"}).json() == {
        "revision": 2
    }  # as it was told, id and all
    (listed,) = client.get("/app/conversations").json()["conversations"]
    assert {**listed, "updated": 0} == {"id": "c", "title": "New", "model": "tiny", "updated": 0}


def test_a_stale_write_gets_the_stored_document(client):
    put(client, FULL)
    put(client, FULL | {"revision": 1, "title": "The other tab's"})
    stale = put(client, FULL | {"revision": 1, "title": "Mine"})
    assert stale.status_code == 409
    assert stale.json()["error"]["code"] == "revision_conflict"
    assert stale.json()["document"] == client.get("/app/conversations/c").json()
    assert stale.json()["document"]["title"] == "The other tab's"
    assert client.delete("/app/conversations/c").json() == {"id": "c", "deleted": True}
    gone = put(client, FULL | {"revision": 2})
    assert (gone.status_code, gone.json()["document"]) == (409, None)
    for response in (client.get("/app/conversations/c"), client.delete("/app/conversations/c")):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "conversation_not_found"


def test_two_tabs_that_write_at_once_lose_nothing(state):
    """Each adds its own messages; the tree that is left has all of them."""
    with client_of(state) as client:
        put(client, document())
        refused = []

        def tab(name):
            for i in range(15):
                while True:
                    held = client.get("/app/conversations/c").json()
                    held["nodes"].append(node(f"{name}{i}"))
                    answer = put(client, held | {"current": f"{name}{i}"})
                    if answer.status_code == 200:
                        break
                    refused.append(answer.status_code)

        tabs = [threading.Thread(target=tab, args=(name,)) for name in "ab"]
        for thread in tabs:
            thread.start()
        for thread in tabs:
            thread.join()
        held = client.get("/app/conversations/c").json()
        assert sorted(n["id"] for n in held["nodes"]) == sorted(
            f"{name}{i}" for name in "ab" for i in range(15)
        )
        assert held["revision"] == 31
        assert set(refused) <= {409}


def test_search_over_http(client):
    put(client, FULL)
    put(client, document(title="Bread"), "bread")

    def found(query):
        response = client.get("/app/conversations", params={"q": query})
        return [row["id"] for row in response.json()["conversations"]]

    assert found("again") == found("brief wheels") == found("grinds") == ["c"]
    assert found("bread") == ["bread"]
    assert found("brief") == ["bread", "c"]
    assert found('"') == found("grinds\0zzz") == []
    assert set(found("")) == {"bread", "c"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"extra": 1}, "extra"),
        ({"title": 5}, "title"),
        ({"title": "x" * 501}, "title"),
        ({"revision": -1}, "revision"),
        ({"revision": "1"}, "revision"),
        ({"revision": True}, "revision"),
        ({"settings": []}, "settings"),
        ({"nodes": [node("a b")]}, "nodes[0].id"),
        ({"nodes": [node("a", role="judge")]}, "nodes[0].role"),
        ({"nodes": [node("a", role=None)]}, "nodes[0].role"),
        ({"nodes": [node("a", colour="red")]}, "nodes[0].colour"),
        ({"nodes": [node("a"), node("a")]}, "nodes[1].id"),
        ({"nodes": [node("a", "b"), node("b", "a")]}, "nodes[0].parent"),
        ({"nodes": [node("a", "a")]}, "nodes[0].parent"),
        ({"nodes": [node("a")], "current": "b"}, "current"),
        ({"nodes": [], "current": "b"}, "current"),
        ({"nodes": [node("a", tokens=[{"token": "x"}])]}, "nodes[0].tokens[0].logprob"),
    ],
)
def test_a_document_that_is_none_is_refused_by_field(client, change, param):
    response = put(client, document() | change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert client.get("/app/conversations").json() == {"conversations": []}


@pytest.mark.parametrize(
    "missing", ["title", "model", "system", "settings", "nodes", "current", "revision"]
)
def test_every_field_is_needed(client, missing):
    response = put(client, {k: v for k, v in document().items() if k != missing})
    assert (response.status_code, response.json()["error"]["param"]) == (400, missing)
    assert response.json()["error"]["code"] == "missing"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"title": "\\ud800"}',
        b"[" * 20_000,
        json.dumps(document()).replace("0.5", "NaN").encode(),
        json.dumps(document()).replace("0.5", "1e999").encode(),
        json.dumps(document()).replace("0.5", "[" * 500 + "]" * 500).encode(),
    ],
)
def test_what_is_no_json_is_refused(client, raw):
    response = client.put(
        "/app/conversations/c", content=raw, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("id", ["a.b", "x" * 65, "a b", "ä", "a%00b", "a%0A"])
def test_ids_are_letters_digits_hyphens_and_underscores(client, id):
    for response in (client.get(f"/app/conversations/{id}"), put(client, document(), id)):
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "id"
    assert put(client, document(), "A_z-9" + "x" * 59).status_code == 200


def test_a_document_has_bounds(client):
    fits = document(node("a", content="x" * (MAX_BYTES - 1000)), current="a")
    assert put(client, fits).status_code == 200
    assert client.get("/app/conversations/c").json()["nodes"] == fits["nodes"]
    assert (
        put(client, document(node("a", content="x" * MAX_BYTES), current="a"), "d").status_code
        == 413
    )
    many = [node(f"n{i}") for i in range(MAX_NODES + 1)]
    assert put(client, document(*many[:-1], current="n0"), "e").status_code == 200
    response = put(client, document(*many, current="n0"), "f")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "nodes")


def name_of(response):
    """As a browser reads it: RFC 6266 through the standard library."""
    message = email.message.Message()
    message["content-disposition"] = response.headers["content-disposition"]
    assert message.get_content_disposition() == "attachment"
    return message.get_filename()


def test_the_messages_of_the_branch_are_a_row_to_train_on(client, tmp_path):
    put(client, FULL | {"title": "Räder / grain"})
    response = client.get("/app/conversations/c/export?format=messages")
    assert name_of(response) == "Räder-grain.jsonl"
    assert response.headers["content-type"].startswith("application/jsonl")
    path = tmp_path / "sft.jsonl"
    path.write_bytes(response.content)
    (row,) = read_jsonl(path)
    assert row == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What does `mill` do?"},
            {"role": "assistant", "content": "It mills. 🙂"},
            {"role": "user", "content": "Again?"},
        ]
    }
    ids, owned = random_model().tokenizer.chat_ids_with_mask(row["messages"])
    assert len(ids) == len(owned)
    assert any(owned)


def test_the_other_exports(client):
    put(client, FULL)
    whole = client.get("/app/conversations/c/export?format=json")
    assert whole.json() == client.get("/app/conversations/c").json()
    assert name_of(whole) == "Wheels-grain.json"
    read = client.get("/app/conversations/c/export?format=markdown")
    assert read.headers["content-type"] == "text/markdown; charset=utf-8"
    assert name_of(read) == "Wheels-grain.md"
    assert read.text == (
        "# Wheels & grain\n\n## System\n\nBe brief.\n\n## User\n\nAttached: naïve.md\n\n"
        "What does `mill` do?\n\n## Assistant (tiny)\n\n> Mills\n> mill.\n\nIt mills. 🙂\n\n"
        "- The mill (`notes/mill.md:3`)\n\n## User\n\nAgain?\n"
    )
    for path in ("c/export?format=pdf", "none/export", "none/export?format=json"):
        assert client.get(f"/app/conversations/{path}").status_code in (400, 404)


def test_calls_of_tools_are_exported_as_a_chat_template_takes_them(client):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "grind", "arguments": '{"n": 2}'},
    }
    put(
        client,
        document(
            node("q", content="Grind."),
            node("a", "q", "assistant", "", tool_calls=[call], finish="tool_calls"),
            node("t", "a", "tool", "done", tool_call_id="call_1"),
            node("b", "t", "assistant", "", finish="failed"),
            current="b",
            system="",
        ),
    )
    assert client.get("/app/conversations/c/export?format=messages").json() == {
        "messages": [
            {"role": "user", "content": "Grind."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "done", "tool_call_id": "call_1"},
        ]
    }
    text = client.get("/app/conversations/c/export?format=markdown").text
    assert 'Calls `grind`:\n\n```json\n{"n": 2}\n```\n\n## Tool\n\ndone\n' in text


def test_an_empty_conversation_can_be_exported(client):
    put(client, document(title="///", system=""))
    row = client.get("/app/conversations/c/export?format=messages")
    assert (row.json(), name_of(row)) == ({"messages": []}, "conversation.jsonl")
    assert client.get("/app/conversations/c/export?format=markdown").text == "# ///\n"


def test_a_server_without_a_store_says_so():
    with client_of(State()) as client:
        for path in ("conversations", "conversations/c", "votes/summary", "votes/export"):
            response = client.get(f"/app/{path}")
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "no_store"
