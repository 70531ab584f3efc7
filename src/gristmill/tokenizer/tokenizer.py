"""The tokenizer: text and ids, with text that cannot become a control token, and chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from gristmill.errors import RequestError, nearest
from gristmill.files import write_json, write_text
from gristmill.tokenizer.chat import Piece, render, render_pieces
from gristmill.tokenizer.plain import without_control_tokens
from gristmill.tokenizer.spelling import Spelling, spelling_of
from gristmill.tokenizer.unicode import check_unicode

# What ends a turn or a document in the families we know; those that a vocabulary has become its stop ids.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eot|>")
_STOPS = (*TURN_ENDS, "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "</s>")
_STOPS += ("<|return|>", "<|call|>")  # gpt-oss
_MOST_TOKENS = (
    1 << 24
)  # one absurd id must not become an allocation (tokenizers' to_str lists every gap)
_PIECES = Spelling(byte_level=False)


_LONG = 100_000  # characters; 0.1 s


class Tokenizer:
    """Wraps the `tokenizers` library, which defines what a `tokenizer.json` means.

    `config` is the content of `tokenizer_config.json`. Ids are ints below `vocab_size`.

    What the model's owner puts around a plain text is the backend's post-processor's to say, or add_bos_token and
    add_eos_token of `config` where either is there, as in transformers; `prompt_ids` is where it happens.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], stop_ids: Iterable[int] = ()
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend, self.config = backend, dict(config)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < self.vocab_size <= _MOST_TOKENS:
            raise RequestError(f"a tokenizer of {self.vocab_size} ids is none that can be used")
        added = backend.get_added_tokens_decoder()
        self._added: dict[int, str] = {id: token.content for id, token in sorted(added.items())}
        self._special = {id for id, token in added.items() if token.special}
        # Whitespace runs are ordinary text even where a vocabulary lists them as added tokens (GPT-NeoX).
        self._control = {text: id for id, text in self._added.items() if text.strip()}
        content = json.loads(backend.to_str())
        self.plain = without_control_tokens(content, self._control.keys())
        self.spelling = spelling_of(content["decoder"])
        stops = {self._control[name] for name in _STOPS if name in self._control}
        eos = self._named("eos_token")
        self.eos_id = eos
        self.stop_ids = frozenset(stops | set(stop_ids) | (set() if eos is None else {eos}))
        self.bos_id = self._named("bos_token")
        self.pad_id = self._named("pad_token")
        if "add_bos_token" in config or "add_eos_token" in config:
            backend.post_processor = self._template()
        self.before, self.after = self._around()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a directory or a file: `tokenizer.json`, a SentencePiece `tokenizer.model`, tiktoken's ranks
        (`cl100k_base.tiktoken`), GPT-2's `vocab.json` with `merges.txt`; the first of these that is there.

        Raises RequestError for a damaged file and for what could not be read exactly.
        """
        from gristmill.tokenizer.load import load  # it makes Tokenizers itself

        return load(Path(path))

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`; `transformers` loads the directory."""
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True) + "\n")
        write_json(directory / "tokenizer_config.json", self.config)
        # An older template beside it would win over the one in the configuration.
        (directory / "chat_template.jinja").unlink(missing_ok=True)

    # Text and ids

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing is added, and no text becomes a control token.

        Raises RequestError for a lone surrogate, naming the place, and for what the vocabulary cannot spell.
        """
        if len(text) > _LONG:  # a batch lets other threads run meanwhile
            return self.encode_batch([text])[0]
        text = check_unicode(text)
        with _spelling():
            return self.plain.encode(text, add_special_tokens=False).ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a text as its model's owner would feed it: with BOS (or EOS) where the family has it so.

        Equal to transformers' `tokenizer(text)["input_ids"]`, but that no text becomes a control token.
        """
        return [*self.before, *self.encode(text), *self.after]

    @property
    def document_start(self) -> list[int]:
        """What begins a document in training and measuring: what begins a prompt, else BOS, else EOS, else nothing.

        Qwen and GPT-2 put nothing before a prompt, yet learned documents that follow the end of another.
        """
        boundary = self.bos_id if self.bos_id is not None else self.eos_id
        return list(self.before) or ([] if boundary is None else [boundary])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel. For megabytes of text use `BulkEncoder`."""
        texts = [check_unicode(text) for text in texts]
        with _spelling():
            encoded = self.plain.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, special tokens '' or their own text."""
        if self.spelling is None:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special)
        kept = (id for id in ids if not (skip_special and id in self._special))
        return self.spelling.text(b"".join(map(self.token_bytes, kept)))

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; an added token's are those of its text, padding's are none."""
        if id in self._added:
            return self._added[id].encode("utf-8")
        token = self.backend.id_to_token(id)
        if token is None:
            return b""
        return (self.spelling or _PIECES).bytes_of(token)

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
            named = [entry for entry in template if isinstance(entry, Mapping)]
            template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
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
        given = {"add_generation_prompt": add_generation_prompt, **variables}
        return render(self.chat_template, messages, **{**self._named_tokens(), **given})

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
            with _spelling():
                encoding = self.plain.encode(piece.text, add_special_tokens=False)
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
        given = {"add_generation_prompt": add_generation_prompt, **variables}
        return render_pieces(
            self.chat_template, messages, self._control, self._named_tokens(), **given
        )

    def _named_tokens(self) -> dict[str, str]:
        texts = {key: _token_text(value) for key, value in self.config.items()}
        return {k: text for k, text in texts.items() if k.endswith("_token") and text is not None}

    def _named(self, key: str) -> int | None:
        text = _token_text(self.config.get(key))
        return None if text is None else self.backend.token_to_id(text)

    def _template(self) -> Any:
        """The post-processor that add_bos_token and add_eos_token of the config ask for."""
        names = [
            _token_text(self.config[key])
            if id is not None and self.config.get(f"add_{key}")
            else None
            for key, id in (("bos_token", self.bos_id), ("eos_token", self.eos_id))
        ]
        bos, eos = ([] if name is None else [f"{name}:0"] for name in names)
        known = [(name, self.backend.token_to_id(name)) for name in names if name is not None]
        try:
            single = [*bos, "$A:0", *eos]
            return processors.TemplateProcessing(
                single=single, pair=[*single, "$B:0"], special_tokens=known
            )
        except ValueError as error:
            raise RequestError(f"cannot put {known} around a text: {error}") from error

    def _spells(self, token: str) -> bool:
        try:
            return bool(self.encode(token))
        except RequestError:  # pieces such as "<s>" need not be spelled by others
            return False

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text."""
        text = next(filter(self._spells, self.plain.get_vocab()), "")
        encoding = self.backend.post_process(self.plain.encode(text, add_special_tokens=False))
        inside = [at for at, flag in enumerate(encoding.special_tokens_mask) if not flag]
        if not inside:  # a vocabulary that no text has ids in
            return encoding.ids, []
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


@contextmanager
def _spelling() -> Iterator[None]:
    """`tokenizers` raises a bare Exception where a text has no ids, as in a Unigram vocabulary without `<unk>`."""
    try:
        yield
    except Exception as error:
        raise RequestError(f"the tokenizer has no ids for this text: {error}") from error


def _token_text(value: Any) -> str | None:
    """A named token is a string, or an object that holds it as `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
