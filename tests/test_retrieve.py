"""Documents cut into passages: nothing lost, nothing twice, every place right."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from blockrank import InputError, MissingExtraError
from blockrank.retrieve import Passage
from blockrank.retrieve.files import UnreadableError, list_files, read_passages
from blockrank.retrieve.passages import MOST, TextBlock, paragraphs, size, spans


def passages_of(path: Path) -> list[Passage]:
    files, _ = list_files(path)
    return [passage for file in files for passage in read_passages(file)]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(("module", "name"), [("bs4", "page.html"), ("pypdf", "page.pdf")])
def test_a_missing_reader_names_the_extra(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, name, "<p>text</p>")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blockrank\[search\]'"):
        passages_of(path)


# Passages: invariants

LINE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "# Head", "## Sub `x`", "```", "~~~py", "---", "===", "- item", "| a | b |", "    code"]),
    st.text("wörd, Satz. 漢字 e\u0301\u0323", min_size=0, max_size=80).map(lambda text: text * 12),
    st.integers(1, 4000).map(lambda count: "x" * count),
)
SOURCE = st.lists(LINE, max_size=14).map("\n".join)


@pytest.mark.parametrize("letter", ["e\u0301\u0323", "मि", "น้ำ", "שָׁ", "e" + "\u0301" * 40])
def test_no_cut_parts_a_letter_from_its_marks_unless_they_are_too_many(tmp_path: Path, letter: str) -> None:
    texts = [passage.text for passage in passages_of(written(tmp_path, "a.txt", letter * 700))]
    assert len(texts) > 3
    assert "".join(texts) == letter * 700
    assert all(size(text) <= MOST for text in texts)
    assert len(letter) > 9 or all(text[0] == letter[0] for text in texts)


def test_sentences_of_other_scripts_are_cut_at_their_ends(tmp_path: Path) -> None:
    for sentence in ("पानी जीवन है और सबको चाहिए।", "هل تعرف أين الكتاب؟", "ຂາຍນ້ຳສະອາດ. ", "ရေသောက်တယ်။"):
        for passage in passages_of(written(tmp_path, "a.txt", " ".join([sentence.strip()] * 150))):
            assert passage.text.endswith(sentence.strip())


@given(SOURCE, st.sampled_from(["a.md", "a.txt", "a.py"]))
@settings(max_examples=150, deadline=None)
def test_every_character_lies_in_one_passage_at_its_line(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("source")
    path = written(folder, name, text)
    text = path.read_bytes().decode("utf-8-sig")
    if not text.strip() or "\0" in text:
        with pytest.raises(UnreadableError):
            passages_of(path)
        return
    passages = passages_of(path)
    at = 0
    for passage in passages:  # in order, apart, with nothing but white space between them
        found = text.index(passage.text, at)
        assert not text[at:found].strip()
        assert passage.first_line == text.count("\n", 0, found) + 1
        at = found + len(passage.text)
        assert passage.last_line == text.count("\n", 0, at) + 1
        assert size(passage.text) <= MOST
        assert passage.text.strip()
        assert passage.title.startswith(name)
    assert not text[at:].strip()
    shutil.rmtree(folder)


@given(SOURCE)
@settings(max_examples=60, deadline=None)
def test_spans_do_not_cross_a_heading(text: str) -> None:
    blocks = [TextBlock(b.start, b.end, (str(i),), is_heading=i % 3 == 0) for i, b in enumerate(paragraphs(text))]
    starts = {block.start + len(text[block.start : block.end]) - len(text[block.start : block.end].lstrip())
              for block in blocks if block.is_heading}  # fmt: skip
    for span in spans(text, blocks):
        inside = [start for start in starts if span.start < start < span.end]
        headings = [b for b in blocks if b.is_heading and span.start <= b.start < span.end]
        first_text = min((b.start for b in blocks if not b.is_heading and b.start >= span.start), default=len(text))
        assert all(start < first_text for start in inside), (span, headings)


# Passages: formats


def test_markdown_passages_are_titled_with_their_headings(tmp_path: Path) -> None:
    text = "# Guide\n\nIntro.\n\n## Set up\n\nRun `make`.\n\nTitle\n-----\nBelow.\n\n# Other #\nEnd.\n"
    path = written(tmp_path, "docs/guide.md", text)
    found = [(passage.title, passage.first_line, passage.last_line) for passage in passages_of(tmp_path)]
    assert found == [
        ("docs/guide.md > Guide", 1, 3),
        ("docs/guide.md > Guide > Set up", 5, 7),
        ("docs/guide.md > Guide > Title", 9, 11),
        ("docs/guide.md > Other", 13, 14),
    ]
    assert passages_of(tmp_path)[1].text == "## Set up\n\nRun `make`."
    assert passages_of(path)[0].title == "guide.md > Guide"


def test_headings_without_text_go_with_the_next_one(tmp_path: Path) -> None:
    path = written(tmp_path, "a.md", "# A\n\n## B\n\ntext\n\n## C\n")
    assert [(p.title, p.first_line, p.last_line) for p in passages_of(path)] == [
        ("a.md > A > B", 1, 5),
        ("a.md > A > C", 7, 7),
    ]


def test_fenced_code_is_kept_together_and_holds_no_headings(tmp_path: Path) -> None:
    code = "```sh\n# a comment\n\nmake demo\n\n" + "echo word\n" * 20 + "```"
    path = written(tmp_path, "a.md", f"# A\n\n{'Some words here. ' * 30}\n\n{code}\n\nAfter.\n")
    passages = passages_of(path)
    assert {passage.title for passage in passages} == {"a.md > A"}
    assert any(code in passage.text for passage in passages)


@pytest.mark.parametrize(
    ("heading", "title"),
    [
        (
            "# A *word* and `co*de` &amp; [a link](https://example.org) ![a picture](x.png)",
            "A word and co*de & a link a picture",
        ),
        ('# <a name="x"></a>Anchored', "Anchored"),
        ("Over two\nlines\n===", "Over two lines"),
        ("# Windows\r", "Windows"),
        ("#\tA tab ##", "A tab"),
        ("> # quoted", None),
        ("- # listed", None),
        ("<!--\n# commented\n-->", None),
        ("    # indented code", None),
        ("`````\n```\n# in a longer fence\n`````", None),
        ("- item\n\n  ```\n  # in the fence of a list\n  ```", None),
        ("a | b\n--- | ---\nc | d", None),
    ],
)
def test_headings_are_those_that_a_reader_of_markdown_sees(tmp_path: Path, heading: str, title: str | None) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(f"{heading}\n\nText.\n".encode())
    assert {passage.title for passage in passages_of(path)} == {"a.md" if title is None else f"a.md > {title}"}
    assert passages_of(path)[-1].text.endswith("Text.")


def test_a_line_feed_alone_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"# A\r\n\r\nold\rMac\r\n\r\n# B\r\nend\r\n")
    found = [(passage.title, passage.first_line, passage.last_line) for passage in passages_of(path)]
    assert found == [("a.md > A", 1, 3), ("a.md > B", 5, 6)]


def test_missing_markdown_reader_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockrank.retrieve.markdown import _reader, markdown_blocks

    monkeypatch.setitem(sys.modules, "markdown_it", None)
    _reader.cache_clear()
    with pytest.raises(MissingExtraError, match=r"blockrank\[search\]"):
        list(markdown_blocks("# A"))


def test_front_matter_and_rules_are_no_headings(tmp_path: Path) -> None:
    path = written(tmp_path, "a.md", "---\ntitle: x\n---\n\n- list\n---\n\n|a|b|\n---\n\nlast\n")
    assert {passage.title for passage in passages_of(path)} == {"a.md"}


def test_a_long_section_is_cut_into_even_passages(tmp_path: Path) -> None:
    sentences = " ".join(f"Sentence number {index} has several plain words." for index in range(100))
    passages = passages_of(written(tmp_path, "a.txt", sentences))
    sizes = [len(passage.text.split()) for passage in passages]
    assert min(sizes) > 60
    assert max(sizes) <= 180
    assert all(passage.text.endswith(".") for passage in passages)
    assert {(passage.first_line, passage.last_line) for passage in passages} == {(1, 1)}


def test_a_huge_line_without_a_space_is_cut(tmp_path: Path) -> None:
    passages = passages_of(written(tmp_path, "a.txt", "0123456789" * 20_000))
    assert "".join(passage.text for passage in passages) == "0123456789" * 20_000
    assert len(passages) > 300


def test_html_passages_are_readable_text_at_the_lines_of_the_source(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "page.html",
        "<html><head><title>Page</title><style>p {color: red}</style></head>\n<body><nav>Menu</nav>\n"
        "<h2\n  class='x'>First <b>thing</b></h2>\n<p>One <i>t</i>wo\nthree.</p><script>var x;</script>\n"
        "<table><tr><td>cell</td><td>other</td></tr></table>\n<h2>Second</h2><pre>  keep\n    this</pre>\n<p>end",
    )
    first, second = passages_of(path)
    assert first.title == "page.html > Page > First thing"
    assert first.text == "First thing\n\nOne two three.\n\ncell other"
    assert (first.first_line, first.last_line) == (4, 7)
    assert second.title == "page.html > Page > Second"
    assert second.text == "Second\n\n  keep\n    this\n\nend"
    assert (second.first_line, second.last_line) == (8, 10)


def test_html_in_another_encoding_is_read_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes("<meta charset='iso-8859-1'><p>Grüße aus Köln".encode("latin-1"))
    assert passages_of(path)[0].text == "Grüße aus Köln"


def test_deeply_nested_html_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "page.html", "<div>" * 3000 + "deep")
    assert passages_of(path)[0].text == "deep"


def pdf_file(path: Path, pages: list[list[str]]) -> Path:
    """A PDF file with lines of text on its pages."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject({
        NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1"),
        NameObject("/BaseFont"): NameObject("/Helvetica"),
    })  # fmt: skip
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        drawn = " ".join(f"({line}) Tj 0 -14 Td" for line in lines)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 72 720 Td {drawn} ET".encode())
        page[NameObject("/Contents")] = stream
    with path.open("wb") as target:
        writer.write(target)
    return path


def test_pdf_passages_stand_on_pages(tmp_path: Path) -> None:
    path = pdf_file(tmp_path / "a.pdf", [["The first page."], [], ["A divi-", "ded word."]])
    first, last = passages_of(path)
    assert (first.text, first.place, first.first_line) == ("The first page.", "a.pdf:p1", None)
    assert (last.text, last.place) == ("A divided word.", "a.pdf:p3")


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7\nbroken", b"no pdf at all"])
def test_broken_pdf_is_counted(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="PDF files that cannot be read"):
        passages_of(path)


def test_locked_pdf_is_counted(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(pdf_file(tmp_path / "a.pdf", [["secret"]]))
    writer.encrypt("password", algorithm="RC4-128")
    path = tmp_path / "locked.pdf"
    buffer = io.BytesIO()
    writer.write(buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableError, match="PDF files that cannot be read"):
        passages_of(path)


def test_documents_of_json_lines_keep_id_and_line(tmp_path: Path) -> None:
    rows = [
        {"_id": "a", "title": "T", "text": "Short."},
        {"_id": "e", "title": "", "text": ""},
        {"_id": "b", "text": "Many words stand here. " * 100},
        {"_id": "t", "title": "Only a title", "text": ""},
    ]
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    passages = passages_of(tmp_path)
    assert [(p.doc_id, p.first_line) for p in passages if p.doc_id != "b"] == [("a", 1), ("t", 4)]
    assert [p.text for p in passages if p.doc_id == "t"] == ["Only a title"]
    long = [p for p in passages if p.doc_id == "b"]
    assert len(long) > 2
    assert {p.place for p in long} == {"corpus.jsonl.gz:3"}
    assert " ".join(p.text for p in long) == rows[2]["text"].strip()
    assert passages[0].title == "T"


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "not valid JSON"), ('{"_id": "b"}', "has no 'text'"), ('{"_id": "a", "text": "x"}', "that of line 1")],
)
def test_broken_json_lines_are_named(tmp_path: Path, line: str, problem: str) -> None:
    path = written(tmp_path, "docs.jsonl", '{"_id": "a", "text": "x"}\n' + line)
    with pytest.raises(InputError, match=rf"docs\.jsonl:2: .*{problem}"):
        passages_of(path)


def test_what_is_no_text_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockrank.retrieve.files.MOST_BYTES", 1_000_000)
    for name in ("a.txt", "sub/b.py", ".git/config", ".env", "node_modules/x.js", "venv/lib.py", "venv/pyvenv.cfg",
                 ".blockrank/own.txt", "sub/large.txt"):  # fmt: skip
        written(tmp_path, name, "text")
    written(tmp_path, "sub/large.txt", "x" * 1_000_001)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    files, skipped = list_files(tmp_path)
    assert [file.path for file in files] == ["a.txt", "sub/b.py"]
    assert +skipped == {
        "hidden files and folders": 2,
        "folders of installed packages": 2,
        "files over 1 MB": 1,
        "files that cannot be read": 2,
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"\x89PNG\0\0", "binary"), (b"caf\xe9", "not UTF-8"), (b" \n", "without text"), (b"", "without text")],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=kind):
        passages_of(path)


def test_text_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / "a.txt"
        path.write_bytes("Grüße\r\n\r\nund mehr".encode(encoding))
        (passage,) = passages_of(path)
        assert (passage.text, passage.last_line) == ("Grüße\r\n\r\nund mehr", 3)


def test_names_that_are_no_text_are_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    written(tmp_path, name, "text")
    assert passages_of(tmp_path)[0].path == "caf\N{REPLACEMENT CHARACTER}.txt"
