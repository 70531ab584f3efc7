"""PDF: files written here by hand or by pypdf; what a page's edge repeats, and files without text."""

import io
from pathlib import Path

import pypdf

from gristmill.data.sources.pdf import pdf_text, read_pdf


def pdf(pages: list[list[str]]) -> bytes:
    """A PDF with these lines on its pages, in Helvetica."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    kids = []
    for lines in pages:
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        content = f"BT /F1 12 Tf 50 780 Td {shown}ET".encode("latin-1")
        number = len(objects) + 1
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % number
        )
        kids.append(b"%d 0 R" % (number + 1))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    return bytes(out)


PAGES = [
    [
        f"Journal of Things {number}",
        f"Body {'abcdef'[number]} of the page speaks about some-",
        f"thing long, {'uvwxyz'[number]} and",
        f"- {number} -",
    ]
    for number in range(6)
]


def test_a_paper(tmp_path: Path) -> None:
    (tmp_path / "p.pdf").write_bytes(pdf(PAGES))
    (raw,) = read_pdf(tmp_path / "p.pdf")
    assert raw.reason == "" and raw.detail["pages"] == 6
    assert "Journal" not in raw.text and "- 1 -" not in raw.text
    assert (
        raw.text.split()
        == " ".join(
            f"Body {letter} of the page speaks about something long, {other} and"
            for letter, other in zip("abcdef", "uvwxyz", strict=True)
        ).split()
    )


def test_few_pages_keep_their_edges() -> None:
    assert pdf_text(["Title\na b c", "Title\nd e f"]).split().count("Title") == 2
    assert pdf_text([]) == ""


def test_paragraphs_end_at_short_lines() -> None:
    long = "A line that is as wide as the column of the page goes on"
    assert pdf_text([f"{long}\nand ends here.\n{long}\nand ends."]).split("\n\n") == [
        f"{long} and ends here.",
        f"{long} and ends.",
    ]


def test_files_without_text(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(PAGES)))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    blank = pypdf.PdfWriter()
    blank.add_blank_page(100, 100)
    blank.write(tmp_path / "blank.pdf")
    (tmp_path / "text.pdf").write_text("hello")
    (tmp_path / "empty.pdf").write_bytes(b"")
    for name, reason in (
        ("locked", "encrypted"), ("blank", "no_text"), ("text", "unreadable"),
        ("empty", "unreadable"), ("absent", "unreadable"),
    ):  # fmt: skip
        assert [raw.reason for raw in read_pdf(tmp_path / f"{name}.pdf")] == [reason], name


def test_damage_is_never_an_error(tmp_path: Path) -> None:
    data = pdf(PAGES[:2])
    for place in range(0, len(data), 29):
        (tmp_path / "d.pdf").write_bytes(
            data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
        )
        assert len(list(read_pdf(tmp_path / "d.pdf"))) == 1
    for size in range(0, len(data), 97):
        (tmp_path / "d.pdf").write_bytes(data[:size])
        assert len(list(read_pdf(tmp_path / "d.pdf"))) == 1
