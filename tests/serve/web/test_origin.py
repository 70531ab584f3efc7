"""Only the app's own pages may change something, and only with the two content types no plain form can send."""

from __future__ import annotations

import pytest

BODY = {
    "title": "t",
    "model": "m",
    "system": "",
    "settings": {},
    "nodes": [],
    "current": None,
    "revision": 0,
}
CHANGES = [
    ("PUT", "/app/conversations/c", {"json": BODY}),
    ("DELETE", "/app/conversations/c", {}),
    ("POST", "/app/votes", {"json": {}}),
    (
        "POST",
        "/app/attachments?name=a.txt",
        {"content": b"x", "headers": {"content-type": "application/octet-stream"}},
    ),
    ("DELETE", "/app/attachments/a", {}),
]
ELSEWHERE = [
    {"origin": "http://evil.example"},
    {"origin": "http://testserver.evil.example"},
    {"origin": "http://testserver:81"},
    {"origin": "http://[bad"},
    {"origin": "null"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://testserver"},
]
OWN = [
    {},
    {"origin": "http://testserver"},
    {"origin": "https://TESTSERVER", "sec-fetch-site": "same-origin"},
    {"origin": "https://chat.example", "sec-fetch-site": "same-origin"},  # a proxy renamed the host
    {"sec-fetch-site": "none"},
]


def send(client, method, path, sent, headers):
    return client.request(
        method, path, **{**sent, "headers": {**sent.get("headers", {}), **headers}}
    )


@pytest.mark.parametrize("headers", ELSEWHERE)
@pytest.mark.parametrize(("method", "path", "sent"), CHANGES)
def test_other_pages_change_nothing(client, store, method, path, sent, headers):
    response = send(client, method, path, sent, headers)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "cross_origin"
    assert store.conversations() == []


@pytest.mark.parametrize("headers", OWN)
@pytest.mark.parametrize(("method", "path", "sent"), CHANGES)
def test_the_own_page_and_programs_may(client, method, path, sent, headers):
    assert send(client, method, path, sent, headers).status_code in (200, 404, 400)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"],
)
def test_what_a_form_can_send_is_refused(client, kind):
    for method, path, _ in CHANGES:
        if method != "DELETE":
            response = client.request(method, path, content=b"{}", headers={"content-type": kind})
            assert response.status_code == 415


def test_parameters_of_a_content_type_are_none_of_our_business(client):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    sent = (
        '{"title":"t","model":"m","system":"","settings":{},"nodes":[],"current":null,"revision":0}'
    )
    response = client.put("/app/conversations/c", content=sent, headers=headers)
    assert (response.status_code, response.json()) == (200, {"revision": 1})
