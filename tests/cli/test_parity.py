"""parity on the command line, with the HTTP server among the paths."""

from __future__ import annotations

import json
import sys

from gristmill.formats import Model
from gristmill.tokenizer import Tokenizer


def test_all_paths_and_the_server(gristmill, taught, tmp_path) -> None:
    Model.load(taught).save(tmp_path / "copy.gguf")
    result = gristmill("parity", taught, "--against", tmp_path / "copy.gguf", "--json")
    found = json.loads(result.out)
    assert result.code == 0 and found["passed"], result.err
    paths = {path["path"]: path for path in found["paths"]}
    server = paths["HTTP server"]
    assert (server["status"], server["same_chat"]) == ("same", True) and server["tokens"] > 3
    assert paths[str(tmp_path / "copy.gguf")]["status"] == "same"
    shown = gristmill("parity", taught, "--no-http")
    assert shown.code == 0 and shown.out.count("✓") == len(paths) - 2


def test_no_chat_is_claimed_where_none_was_rendered(gristmill, taught, tmp_path) -> None:
    model = Model.load(taught)
    config = {k: v for k, v in model.tokenizer.config.items() if k != "chat_template"}
    bare = Model(model.network, Tokenizer(model.tokenizer.backend, config))
    bare.save(tmp_path / "bare")
    bare.save(tmp_path / "bare.gguf")
    both = gristmill("parity", tmp_path / "bare", "--against", tmp_path / "bare.gguf")
    assert both.code == 0 and "no chat template on either side" in both.out
    assert "HTTP server: not run: the model has no chat template" in both.out
    assert "became the same" not in both.out
    one = gristmill("parity", taught, "--no-http", "--against", tmp_path / "bare")
    assert one.code == 0 and "the copy has no chat template, so no chat was compared" in one.out
    assert "became the same" not in one.out
    rows = [line for line in one.out.splitlines() if "≤" in line]
    assert len(rows) == one.out.count("✓") and all("same bits" in row for row in rows[:-1])


def test_a_broken_copy_ends_with_1(gristmill, taught, tmp_path) -> None:
    copy = Model.load(taught)
    copy.network.head.weight.data[7] += 0.5
    copy.save(tmp_path / "copy")
    result = gristmill("parity", taught, "--no-http", "--against", tmp_path / "copy")
    assert result.code == 1 and "✗" in result.out and f"broken: {tmp_path / 'copy'}" in result.err


def test_wrong_requests(gristmill, taught, monkeypatch) -> None:
    result = gristmill("parity", taught, "--against", "nowhere")
    assert result.code == 2 and "there is no model at nowhere" in result.err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [
        n for n in sys.modules if n.startswith(("gristmill.serve", "gristmill.cli.parity_"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    result = gristmill("parity", taught, "--http")
    assert result.code == 2 and "gristmill[serve]" in result.err
