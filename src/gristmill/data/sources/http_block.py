"""One HTTP response as an archive kept it: status, headers and the decoded body, within a byte limit.

Archives keep what came over the wire: the body may still be in chunks and compressed, or the headers may
say so although the crawler undid both. So each layer is undone only where the bytes agree.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

_MAX_HEADER_BYTES = 64 * 1024
_MAGIC = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


class TooLarge(Exception):
    """The decoded body is longer than the limit."""


class BadBody(Exception):
    """The body is not what its headers say."""


@dataclass(frozen=True, slots=True)
class Response:
    """status: 0 when the block has no HTTP header at all and `body` is the whole block."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def media_type(self) -> str:
        """Of the Content-Type header, in small letters without parameters; "" when there is none."""
        return media_type(self.headers.get("content-type", ""))

    @property
    def charset(self) -> str:
        return charset(self.headers.get("content-type", ""))


def media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def charset(value: str) -> str:
    """The charset parameter of a Content-Type value, or ""."""
    for parameter in value.split(";")[1:]:
        name, _, text = parameter.partition("=")
        if name.strip().lower() == "charset":
            return text.strip().strip("\"'").lower()
    return ""


def parse_response(block: bytes, limit: int) -> Response:
    """The response in `block`. Raises TooLarge when its body decodes to over `limit` bytes, BadBody when a
    compressed body is damaged from the start."""
    if not block.startswith(b"HTTP/"):
        return Response(body=block)
    head, _, body = _split(block)
    lines = head.decode("latin-1").splitlines()
    parts = lines[0].split(None, 2)
    status = int(parts[1]) if len(parts) > 1 and parts[1].isascii() and parts[1].isdigit() else 0
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _joined_chunks(body)
    for encoding in reversed(headers.get("content-encoding", "").lower().split(",")):
        body = _decoded(body, encoding.strip(), limit)
    if len(body) > limit:
        raise TooLarge
    return Response(status, headers, body)


def _split(block: bytes) -> tuple[bytes, bytes, bytes]:
    """Headers end at the first empty line, written with CRLF or with LF alone."""
    ends = [
        (at, mark)
        for mark in (b"\r\n\r\n", b"\n\n")
        if (at := block.find(mark, 0, _MAX_HEADER_BYTES)) >= 0
    ]
    if not ends:
        return block[:_MAX_HEADER_BYTES], b"", b""
    at, mark = min(ends)
    return block[:at], mark, block[at + len(mark) :]


def _joined_chunks(body: bytes) -> bytes:
    """The chunks' contents. A body that is not in chunks comes back as it is; one that breaks off in the
    middle gives what is whole."""
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        end = body.find(b"\r\n", at, at + 64)
        size_text = body[at:end].partition(b";")[0].strip() if end >= 0 else b""
        try:
            size = int(size_text, 16)
        except ValueError:
            return b"".join(parts) if parts else body
        if size <= 0:
            break
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts) if parts else body


def _decoded(body: bytes, encoding: str, limit: int) -> bytes:
    magic = _MAGIC.get(encoding)
    if magic and not body.startswith(magic):
        return body  # the crawler stored the decoded body under the headers of the encoded one
    if encoding in ("gzip", "x-gzip"):
        return _inflated(body, 31, limit)
    if encoding == "deflate":
        zlib_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] * 256 + body[1]) % 31 == 0
        return _inflated(body, 15 if zlib_header else -15, limit)
    if encoding == "zstd":
        return _unzstd(body, limit)
    if encoding == "br":
        return _unbrotli(body, limit)
    return body


def _inflated(body: bytes, window: int, limit: int) -> bytes:
    """A stream that breaks off gives what came before (crawlers cut long pages)."""
    stream = zlib.decompressobj(window)
    try:
        text = stream.decompress(body, limit + 1)
    except zlib.error as error:
        if window == -15:
            return body  # said to be deflated, stored plain
        raise BadBody(str(error)) from None
    if len(text) > limit:
        raise TooLarge
    return text


def _unzstd(body: bytes, limit: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(body) as stream:
            text = stream.read(limit + 1)
    except zstandard.ZstdError as error:
        raise BadBody(str(error)) from None
    if len(text) > limit:
        raise TooLarge
    return text


def _unbrotli(body: bytes, limit: int) -> bytes:
    import brotli

    stream = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    try:
        piece = stream.process(body, output_buffer_limit=1 << 20)
        while piece:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise TooLarge
            piece = stream.process(b"", output_buffer_limit=1 << 20)
    except brotli.error as error:
        if not parts:
            return body if body.lstrip()[:1] == b"<" else _refuse(error)
    return b"".join(parts)


def _refuse(error: Exception) -> bytes:
    raise BadBody(str(error)) from None
