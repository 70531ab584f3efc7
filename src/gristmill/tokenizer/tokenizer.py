"""The tokenizer: any `tokenizer.json`, with text that cannot become a control token, and chat templates."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from gristmill.errors import RequestError, nearest
from gristmill.files import read_json, write_json, write_text
from gristmill.tokenizer.chat import Piece, render, render_pieces
from gristmill.tokenizer.patterns import BYTE_OF_CHARACTER, to_bytes

# What ends a turn or a document in the families we know; those that a vocabulary has become its stop ids.
_STOPS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")


class Tokenizer:
    """Wraps the `tokenizers` library, which defines what a `tokenizer.json` means.

    `config` is the content of `tokenizer_config.json`. Ids are ints below `vocab_size`.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], stop_ids: Iterable[int] = ()
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.config = backend, dict(config)
        added = backend.get_added_tokens_decoder()
        self._added: dict[int, str] = {id: token.content for id, token in sorted(added.items())}
        self._special = {id for id, token in added.items() if token.special}
        # Whitespace runs are ordinary text even where a vocabulary lists them as added tokens (GPT-NeoX).
        self._control = {text: id for id, text in self._added.items() if text.strip()}
        self.plain = _without_control_tokens(backend, set(self._control))
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        stops = {self._control[name] for name in _STOPS if name in self._control}
        eos = self._named("eos_token")
        self.eos_id = eos
        self.stop_ids = frozenset(stops | set(stop_ids) | (set() if eos is None else {eos}))
        self.bos_id = self._named("bos_token")
        self.pad_id = self._named("pad_token")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a directory that holds `tokenizer.json`, or that file. Raises RequestError."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise RequestError(
                f"{path} holds no tokenizer: tokenizer.json is missing"
                if path.is_dir()
                else f"no tokenizer at {path}: give a directory with tokenizer.json, or that file"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise RequestError(f"{file} is not a tokenizer.json: {error}") from error
        config = _read_object(file.parent / "tokenizer_config.json")
        template = file.parent / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        eos = _read_object(file.parent / "generation_config.json").get("eos_token_id") or []
        return cls(backend, config, stop_ids=[eos] if isinstance(eos, int) else eos)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`; `transformers` loads the directory."""
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True) + "\n")
        write_json(directory / "tokenizer_config.json", self.config)

    # Text and ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing is added, and no text becomes a control token."""
        return self.plain.encode(encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel. For megabytes of text use `BulkEncoder`."""
        encoded = self.plain.encode_batch_fast(
            [encodable(text) for text in texts], add_special_tokens=False
        )
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, special tokens '' or their own text."""
        if not self._byte_level:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special)
        kept = (id for id in ids if not (skip_special and id in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; an added token's are those of its text, padding's are none."""
        if id in self._added:
            return self._added[id].encode("utf-8")
        token = self.backend.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            return to_bytes(token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode("utf-8")

    def special(self, name: str) -> int:
        """Id of a control token such as "<|im_end|>". Raises RequestError, naming the nearest."""
        if name not in self._control:
            raise RequestError(
                f'the tokenizer has no control token "{name}".{nearest(name, self._control)}'
            )
        return self._control[name]

    @property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens and their ids, in order of id."""
        return dict(self._control)

    def is_special(self, id: int) -> bool:
        """Whether `decode` leaves the token out."""
        return id in self._special

    # Conversations

    @property
    def chat_template(self) -> str:
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several named ones: [{"name", "template"}]
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if not isinstance(template, str):
            raise RequestError(
                "this tokenizer has no chat template, so it cannot format a conversation; "
                "use a chat model, or give plain text"
            )
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as text. To get ids use `chat_ids`: encoding this text would let people write
        control tokens."""
        return render(
            self.chat_template, messages, **self._variables(add_generation_prompt, variables)
        )

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Ids of a conversation. Control tokens come from the template alone, never from a message."""
        pieces = self._pieces(messages, add_generation_prompt, variables)
        ids: list[int] = []
        for piece in pieces:
            ids += [self._control[piece.text]] if piece.control else self.encode(piece.text)
        return ids

    def chat_ids_with_mask(
        self, messages: Sequence[Mapping[str, Any]], **variables: Any
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and, for each, whether the assistant says it (its <|im_end|> included)."""
        if "generation" not in self.chat_template:
            raise RequestError(
                "the chat template does not mark what the assistant says with {% generation %}, "
                "so there is nothing to train on; add the marks to the template"
            )
        ids: list[int] = []
        mask: list[bool] = []
        for piece in self._pieces(messages, False, variables):
            if piece.control:
                ids.append(self._control[piece.text])
                mask.append(bool(piece.generated))
                continue
            encoding = self.plain.encode(encodable(piece.text), add_special_tokens=False)
            inside = [False] * len(encoding.ids)
            for start, end in piece.generated:
                first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
                if first is not None and last is not None:
                    # char_to_token gives the first token of a character that several tokens spell.
                    while (
                        last + 1 < len(inside)
                        and encoding.offsets[last + 1] == encoding.offsets[last]
                    ):
                        last += 1
                    inside[first : last + 1] = [True] * (last + 1 - first)
            ids += encoding.ids
            mask += inside
        return ids, mask

    def _pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> list[Piece]:
        values = self._variables(add_generation_prompt, variables)
        return render_pieces(self.chat_template, messages, self._control, **values)

    def _variables(self, add_generation_prompt: bool, given: Mapping[str, Any]) -> dict[str, Any]:
        named = {
            key: _token_text(value)
            for key, value in self.config.items()
            if key.endswith("_token") and _token_text(value) is not None
        }
        return {**named, "add_generation_prompt": add_generation_prompt, **given}

    def _named(self, key: str) -> int | None:
        text = _token_text(self.config.get(key))
        return None if text is None else self.backend.token_to_id(text)

    @cached_property
    def _byte_level(self) -> bool:
        decoder = json.loads(self.backend.to_str()).get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        return any(step.get("type") == "ByteLevel" for step in steps)


class StreamDecoder:
    """Text of tokens as they come; a character appears when its last byte has. Special tokens are left out.

    The pushed pieces and `finish()` joined equal `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        self._shown = ""

    def push(self, id: int) -> str:
        if self._tokenizer._byte_level:
            if self._tokenizer.is_special(id):
                return ""
            return self._utf8.decode(self._tokenizer.token_bytes(id))
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids)
        return self._show(text) if not text.endswith("\ufffd") else ""

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, usually ''."""
        if self._tokenizer._byte_level:
            return self._utf8.decode(b"", final=True)
        return self._show(self._tokenizer.decode(self._ids))

    def _show(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new


def _without_control_tokens(
    backend: tokenizers.Tokenizer, control: set[str]
) -> tokenizers.Tokenizer:
    """A copy that reads every control token as plain text.

    `encode_special_tokens` would still match added tokens that are not flagged special (<think>, <tool_call>),
    so they are taken out; also out of a BPE vocabulary, where `ignore_merges` could still find them.
    """
    content = json.loads(backend.to_str())
    kept = [token for token in content["added_tokens"] if token["content"] not in control]
    content["added_tokens"], content["post_processor"] = kept, None
    model = content["model"]
    if model.get("type") == "BPE":
        merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        needed = {part for merge in merges for part in (*merge, "".join(merge))}
        needed |= {model.get("unk_token"), *BYTE_OF_CHARACTER}
        for text in control - needed:
            model["vocab"].pop(text, None)
        # An added token outside the vocabulary is numbered anew on reading; one inside keeps its id.
        model["vocab"].update({token["content"]: token["id"] for token in kept})
    plain = tokenizers.Tokenizer.from_str(json.dumps(content))
    for token in kept:
        if plain.token_to_id(token["content"]) != token["id"]:
            raise RequestError(
                f"cannot read this tokenizer: its added token {token['content']!r} has no id of its own"
            )
    return plain


def encodable(text: str) -> str:
    """Lone surrogates (from undecodable file names, broken JSON escapes) have no UTF-8: U+FFFD for each."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _token_text(value: Any) -> str | None:
    """A named token is a string, or an object that holds it as `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object")
    return value
