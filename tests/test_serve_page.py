"""The web page: what is served, and what a reader does with it in a real Chromium against the real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from chromium import CONTROL, Tab, browser, find_chromium
from conftest import PATIENCE_S
from serving import Running, running, wait_until
from typer.testing import CliRunner

import blockrank.report
from blockrank import Ranker
from blockrank.cli import app
from blockrank.serve.settings import ServeSettings
from blockrank.serve.web import PAGE_PATHS

KEY = "key-of-this-test"
STATIC = files("blockrank.serve").joinpath("static")
DEMO = Path(__file__).parents[1] / "examples" / "demo.jsonl"
QUERY = "who wrote Dracula"
TEXTS = [
    "🦇🦇 Mary Shelley wrote Frankenstein in 1818.",
    "The Irish coast is rainy — 🌧️ and windy.",
    "𝔻 Bram Stoker wrote Dracula in 1897.",
]
in_browser = pytest.mark.skipif(
    find_chromium() is None,
    reason="no Chromium on this machine: install it (Debian: chromium), or name one in BLOCKRANK_CHROMIUM",
)


def static(name: str) -> str:
    return STATIC.joinpath(name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(mini: Ranker) -> Iterator[Running]:
    with running(mini) as found:
        yield found


# What is served


def test_files_types_and_policy(server: Running) -> None:
    types = {path: server.client.get(path).headers["content-type"].partition(";")[0] for path in PAGE_PATHS}
    assert types == {
        "/": "text/html", "/page/style.css": "text/css", "/page/page.js": "text/javascript",
        "/page/view.js": "text/javascript", "/page/examples.jsonl": "application/jsonl",
        "/page/icon.svg": "image/svg+xml",
    }  # fmt: skip
    for path in PAGE_PATHS:
        answer = server.client.get(path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert server.client.head(path).headers["content-length"] == str(len(answer.content))
        assert server.client.post(path).status_code == (400 if path == "/" else 405), "a POST to the address ranks"
    for path in ("/page", "/page/", "/page/nope.js", "/page/../web.py", "/page/%2e%2e/web.py", "/index.html"):
        assert server.client.get(path).status_code == 404, path


def test_page_asks_for_nothing_else() -> None:
    """No address of another machine is loaded, and no script or style stands in the markup."""
    page = static("index.html")
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {f"/{address}" for address in loaded} < PAGE_PATHS
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for name in ("page.js", "view.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Storage|cookie", static(name)
        )
    assert not re.search(r"url\(|@import", static("style.css"))


def test_page_is_closed_with_a_key_unless_asked_for(mini: Ranker) -> None:
    with running(mini, ServeSettings(keys=(KEY,))) as guarded:
        assert {guarded.client.get(path).status_code for path in PAGE_PATHS} == {401}
        assert guarded.client.get("/", headers={"authorization": f"Bearer {KEY}"}).status_code == 404
    with running(mini, ServeSettings(keys=(KEY,), page=True)) as guarded:
        assert {guarded.client.get(path).status_code for path in PAGE_PATHS} == {200}
        closed = ("/page/nope", "/page", "/page/page.js/", "/v1/models", "/metrics", "/openapi.json")
        assert {guarded.client.get(path).status_code for path in closed} == {401}
    with running(mini, ServeSettings(page=False)) as without:
        assert {without.client.get(path).status_code for path in PAGE_PATHS} == {404}


@pytest.mark.parametrize(("option", "page"), [((), None), (("--page",), True), (("--no-page",), False)])
def test_options(monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], page: bool | None) -> None:
    given: list[ServeSettings] = []
    monkeypatch.setattr("blockrank.serve.server.run", lambda settings, load, **_: not given.append(settings))
    assert CliRunner().invoke(app, ["serve", *option]).exit_code == 0
    assert given[0].page == page


def test_examples_are_those_of_the_demo_in_the_order_of_bm25() -> None:
    pytest.importorskip("bm25s", reason="the order is that of BM25, which needs the extra search")
    from blockrank.retrieve.bm25 import Bm25Index
    from blockrank.types import Document

    demo = {row["query_id"]: row for row in map(json.loads, DEMO.read_text(encoding="utf-8").splitlines())}
    examples = [json.loads(line) for line in static("examples.jsonl").splitlines()]
    assert [example["query_id"] for example in examples] == list(demo)
    for example in examples:
        row = demo[example["query_id"]]
        texts = [document["text"] for document in row["documents"]]
        index = Bm25Index.build([Document(text, str(place)) for place, text in enumerate(texts)])
        found = [place for place, _ in index.positions(row["query"], len(texts))]
        order = [*found, *(place for place in range(len(texts)) if place not in found)]
        assert example["documents"] == [texts[place] for place in order]
        assert (example["query"], example["order"]) == (row["query"], "BM25")


def report_style() -> str:
    return (Path(blockrank.report.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")


def variables(style: str) -> list[dict[str, str]]:
    """Colours of a style sheet: those for light, and those for dark."""
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    read = [dict(re.findall(r"--(\w+): ([^;]+);", part)) for part in (light, dark)]
    return [read[0], read[0] | read[1]]


def test_one_look() -> None:
    """The page and the reports share colours and type."""
    for page, report in zip(variables(static("style.css")), variables(report_style()), strict=True):
        assert {name: page[name] for name in report} == report
    family = re.compile(r"system-ui,[^;]*")
    assert family.search(static("style.css"))[0] == family.search(report_style())[0]  # type: ignore[index]


def luminance(color: tuple[float, ...]) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(color: str) -> tuple[float, ...]:
    if color.startswith("#"):
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        return tuple(int(digits[place : place + 2], 16) for place in (0, 2, 4))
    return tuple(map(float, color.split()))


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark: bool) -> None:
    """Text stands out by 4.5 to 1 (WCAG 2.2, 1.4.3) on every ground, the strongest heat too; bars by 3 to 1."""
    style = static("style.css")
    colors = {name: rgb(value) for name, value in variables(style)[dark].items() if name != "row"}
    for ground in ("page", "band"):
        for ink in ("ink", "soft", "link", "up", "down", "bad"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        assert contrast(colors["fill"], colors[ground]) >= 3
    shades = [float(found) for found in re.findall(r"rgb\(var\(--heat\) / ([.\d]+)\)", style)]
    assert shades == sorted(shades)
    assert len(shades) == 4
    for shade in shades:
        mixed = tuple(shade * a + (1 - shade) * b for a, b in zip(colors["heat"], colors["page"], strict=True))
        assert contrast(colors["ink"], mixed) >= 4.5, shade


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    executable = find_chromium()
    assert executable is not None
    with browser(executable, tmp_path_factory.mktemp("chromium")) as found:
        yield found


def opened(tab: Tab, server: Running, **look: Any) -> Tab:
    """The page, anew, with its examples and the model's name."""
    tab.emulate(**look)
    tab.open("about:blank")
    tab.requests.clear()
    tab.complaints.clear()
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait("document.querySelectorAll('#example option').length === 4")
    return tab


@pytest.fixture
def page(chromium: Tab, server: Running) -> Iterator[Tab]:
    """The page; afterwards nothing may have gone wrong in it, or have been asked of anyone else."""
    tab = opened(chromium, server)
    tab.wait("document.querySelector('#model').textContent.startsWith('blockrank/mini:')")
    yield tab
    server.gate.open.set()
    assert tab.complaints == []
    assert all(request.startswith((f"http://127.0.0.1:{server.port}/", "blob:")) for request in tab.requests), (
        tab.requests
    )


def put(tab: Tab, query: str, documents: list[str], form: str = "line") -> None:
    tab.run(f"document.querySelector('[value={form}]').click()")
    for name, text in (("query", query), ("documents", "\n".join(documents))):
        tab.run(f"{name}.value = ''; document.querySelector('#{name}').focus()")
        tab.write(text)


def ranked(tab: Tab) -> list[int]:
    """Rank, and the order on the screen."""
    tab.run("list.replaceChildren(); form.requestSubmit()")
    tab.wait("document.querySelector('#list li') && form.getAttribute('aria-busy') === 'false'")
    return order(tab)


def order(tab: Tab) -> list[int]:
    found: list[int] = tab.run("[...document.querySelectorAll('#list > li')].map((row) => Number(row.dataset.index))")
    return found


def text(tab: Tab, selector: str) -> str:
    return str(tab.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def from_api(server: Running, query: str, documents: list[Any]) -> list[dict[str, Any]]:
    body = {"query": query, "documents": documents, "evidence": True}
    results: list[dict[str, Any]] = server.post("/v1/rerank", body).json()["results"]
    return results


@in_browser
def test_paste_rank_and_evidence(page: Tab, server: Running) -> None:
    """Order, scores and marks are the server's; characters outside the basic plane do not shift them."""
    put(page, QUERY, TEXTS)
    results = from_api(server, QUERY, TEXTS)
    assert ranked(page) == [result["index"] for result in results]
    page.run("document.querySelector('#open-all').click()")
    page.wait("document.querySelectorAll('.body').length === 3")
    for place, result in enumerate(results):
        row, given = f"#list > li:nth-child({place + 1})", TEXTS[result["index"]]
        assert text(page, f"{row} .text") == given
        score = result["relevance_score"]
        assert text(page, f"{row} .score") == (f"score {score:.3f}" if score >= 0.0005 else "score <0.001")
        strongest = max(result["evidence"], key=lambda item: item["share"])
        token = given[strongest["start"] : strongest["end"]]
        assert token in page.run(f"[...document.querySelectorAll('{row} .heat-4')].map((mark) => mark.textContent)")
        assert "Most attention: " in text(page, f"{row} .words")
    assert text(page, "#list > li .move .unseen") == ", up 2 from 3, "
    assert "3 documents ranked in " in text(page, "#status")


@in_browser
def test_keyboard_alone(page: Tab, server: Running) -> None:
    """From a fresh page to an open document without a mouse; every control is reached, in order, and has a name."""
    page.call("Page.bringToFront")
    page.press("Tab")
    reached = []
    for _ in range(8):
        reached.append(page.run("document.activeElement.id || document.activeElement.value"))
        if reached[-1] == "query":
            page.write(QUERY)
        if reached[-1] == "documents":
            page.write("\n\n".join(TEXTS))
        page.press("Tab")
        if page.run("document.activeElement === document.body"):
            break
    assert reached == ["example", "query", "documents", "paragraph", "rank", "file"]
    page.run("document.querySelector('#documents').focus()")
    page.press("Enter", CONTROL)
    page.wait("document.querySelectorAll('#list > li').length === 3")
    assert order(page) == [result["index"] for result in from_api(server, QUERY, TEXTS)]
    assert page.run("document.activeElement.id") == "documents", "the focus stays where it was"
    reached = []
    for _ in range(11):
        page.press("Tab")
        reached.append(
            page.run("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")
        )
    assert reached == [
        "paragraph", "rank", "file", "baseline", "list", "open-all", "save", "copy", "SUMMARY", "SUMMARY", "SUMMARY",
    ]  # fmt: skip
    page.press("Enter")
    page.wait("document.querySelector('#list > li:nth-child(3) .text')")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "combobox", "radio", "DisclosureTriangle", "list", "region", "form"}
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert {role for role, _ in named} > {
        "button",
        "textbox",
        "combobox",
        "radio",
        "DisclosureTriangle",
        "status",
        "alert",
    }
    nameless = [role for role, name in named if role in controls and not name]
    assert nameless == []
    assert any(name.startswith("rank 1 , up 2 from 3,") or "up 2 from 3" in name for _, name in named)


@in_browser
def test_troubles_are_told_and_nothing_is_lost(page: Tab, server: Running) -> None:
    put(page, "  ", TEXTS)
    page.run("form.requestSubmit()")
    page.wait("document.querySelector('#error').textContent")
    assert text(page, "#error") == "Query must not be empty or only white space."
    assert page.run("document.activeElement.id + query.getAttribute('aria-invalid')") == "querytrue"
    assert page.run("documents.value") == "\n".join(TEXTS)
    put(page, QUERY, [json.dumps({"text": "one", "id": 7}), "", '{"text": '], "jsonl")
    page.run("form.requestSubmit()")
    assert text(page, "#error") == "Line 3 of the documents is not JSON."
    put(page, QUERY, ["one", "x" * 200_001])
    page.run("form.requestSubmit()")
    page.wait("document.querySelector('#error').textContent.startsWith('Document 2')")
    assert text(page, "#error") == "Document 2 has 200001 characters and the limit is 200000."
    server.gate.close()
    put(page, QUERY, TEXTS)
    page.run("form.requestSubmit()")
    server.gate.hold()
    page.run("document.querySelector('#stop').click()")
    page.wait("document.querySelector('#error').textContent.startsWith('Stopped')")
    server.gate.open.set()
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.run("form.requestSubmit()")
    page.wait("document.querySelector('#error').textContent.startsWith('The server does not answer')")
    assert page.run("documents.value") == "\n".join(TEXTS)
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    assert sorted(ranked(page)) == [0, 1, 2]
    assert text(page, "#error") == ""
    refused = [complaint for complaint in page.complaints if complaint.startswith("Failed to load resource")]
    assert refused == page.complaints, "what the browser itself says of a refused request"
    page.complaints.clear()


@in_browser
def test_texts_stay_texts(page: Tab, tmp_path: Path) -> None:
    """Markup in a query, a document, a title, an id, a server's sentence or a saved result is shown, not run."""
    bad = "<img src=http://example.org/x onerror=\"document.title='run'\"><script>document.title='run'</script><b>x</b>"
    rows = [{"text": bad, "title": bad, "id": bad}, {"text": f"{bad} again", "id": 2}]
    put(page, bad, [json.dumps(row) for row in rows], "jsonl")
    assert sorted(ranked(page)) == [0, 1]
    page.run("document.querySelector('#open-all').click()")
    page.wait("document.querySelectorAll('.body').length === 2")
    assert text(page, "#list li[data-index='0'] .text") == bad
    page.run("document.querySelector('[value=beside]').click()")
    saved = tmp_path / "<b>saved.json"
    response = {"results": [{"index": 1, "relevance_score": 1.0}], "model": bad, "meta": {"warnings": [bad]}}
    saved.write_text(json.dumps({"request": {"query": bad, "documents": rows}, "response": response}))
    page.choose("#file", saved)
    page.wait("document.querySelector('#warnings li')")
    assert text(page, "#warnings li") == bad
    assert page.run("document.querySelectorAll('img, main script, main b').length") == 0
    assert page.run("document.title") == "blockrank: rank documents"


@in_browser
def test_save_open_and_compare(page: Tab, tmp_path: Path) -> None:
    """A saved result comes back as it was, and stands for comparison with what is ranked after it."""
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    put(page, QUERY, TEXTS)
    first = ranked(page)
    page.run("save.click()")
    wait_until(lambda: bool(list(tmp_path.glob("ranking-*.json"))))
    found = list(tmp_path.glob("ranking-*.json"))
    saved = json.loads(found[0].read_text(encoding="utf-8"))
    assert saved["format"] == "blockrank.result/1"
    assert saved["request"]["documents"] == TEXTS
    assert [result["index"] for result in saved["response"]["results"]] == first
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.call("Page.bringToFront")
    page.run("copy.click()")
    page.wait("document.querySelector('#status').textContent.startsWith('Copied')")
    copied = json.loads(page.run("navigator.clipboard.readText()"))
    assert {**copied, "saved_at": ""} == {**saved, "saved_at": ""}
    opened_again = f"document.querySelector('#status').textContent.includes({json.dumps(QUERY)})"
    page.call("Page.reload")
    page.wait("document.querySelector('#shown')?.hidden && document.querySelectorAll('#example option').length === 4")
    page.choose("#file", found[0])
    page.wait(opened_again)
    assert order(page) == first
    assert page.run("query.value") == QUERY
    page.run("query.value = 'rain on the coast'")
    second = ranked(page)
    assert second != first
    page.run("baseline.value = '1'; baseline.dispatchEvent(new Event('change'))")
    page.run("document.querySelector('[value=beside]').click()")
    labels = "[...document.querySelectorAll('#beside .{} li')].map((row) => row.textContent)"
    assert page.run(labels.format("left")) == [TEXTS[index] for index in first]
    assert page.run(labels.format("right")) == [TEXTS[index] for index in second]
    assert text(page, "#beside h3") == found[0].name
    broken = tmp_path / "broken.json"
    broken.write_text('{"request": {"query": "x", "documents": []}, "response": {"results": [{"index": 0}]}}')
    page.choose("#file", broken)
    page.wait("document.querySelector('#error').textContent")
    assert "broken.json is not a result saved from this page" in text(page, "#error")
    assert page.run(labels.format("right")) == [TEXTS[index] for index in second], "what was shown stays"


@in_browser
def test_files_and_examples(page: Tab, tmp_path: Path) -> None:
    page.run("document.querySelector('[value=jsonl]').click()")
    for name, content, form, count in (
        ("lines.txt", "one\ntwo\r\nthree\n", "line", 3),
        ("paragraphs.txt", "one\nline\r\n \r\ntwo\n\n\nthree\n\n", "paragraph", 3),
        ("rows.jsonl", '{"text": "one", "title": "t", "_id": "a", "url": "x"}\n"two"\n', "jsonl", 2),
    ):
        (tmp_path / name).write_bytes(content.encode())
        page.choose("#file", tmp_path / name)
        page.wait(f"document.querySelector('[name=form]:checked').value === '{form}'")
        page.wait(f"document.querySelector('#count').textContent === '{count} documents.'")
    page.run("""(() => { const dropped = new DataTransfer();
        dropped.items.add(new File(["one\\ntwo"], "dropped.txt"));
        const options = {dataTransfer: dropped, bubbles: true, cancelable: true};
        documents.dispatchEvent(new DragEvent("drop", options)); })()""")
    page.wait("documents.value === 'one\\ntwo'")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    page.choose("#file", tmp_path / "latin.txt")
    page.wait("document.querySelector('#error').textContent === 'latin.txt is not text in UTF-8.'")
    assert "two" in page.run("documents.value")
    page.run("example.value = '0'; example.dispatchEvent(new Event('change'))")
    assert "CC BY 4.0" in text(page, "#credit")
    ranked(page)
    assert text(page, "#baseline option") == "BM25"
    assert "deposit" in text(page, "#list > li:first-child .text")


@in_browser
def test_key_is_asked_for_and_kept_nowhere(chromium: Tab, mini: Ranker) -> None:
    with running(mini, ServeSettings(keys=(KEY,), page=True)) as guarded:
        page = opened(chromium, guarded)
        page.wait("!document.querySelector('#key-part').hidden")
        assert text(page, "#model") == "This server wants a key."
        for given, told in (("wrong", "This is not a key of this server."), (KEY, "blockrank/mini:")):
            page.run("key.value = ''; key.focus()")
            page.write(given)
            page.run("key.blur()")
            page.wait(f"document.querySelector('#model').textContent.startsWith({json.dumps(told)})")
        put(page, QUERY, TEXTS)
        assert len(ranked(page)) == 3
        assert KEY not in page.run("document.documentElement.outerHTML + location + document.cookie")
        assert page.run("localStorage.length + sessionStorage.length") == 0
        chromium.open("about:blank")


@in_browser
def test_a_busy_server_says_when_to_try_again(chromium: Tab, mini: Ranker) -> None:
    with running(mini, ServeSettings(max_requests=1)) as busy, ThreadPoolExecutor(1) as pool:
        page = opened(chromium, busy)
        put(page, QUERY, TEXTS)
        busy.gate.close()
        other = pool.submit(busy.post)
        busy.gate.hold()
        page.run("form.requestSubmit()")
        page.wait("document.querySelector('#error').textContent")
        assert re.search(r"\. Try again in \d+ seconds?\.$", text(page, "#error"))
        busy.gate.open.set()
        assert other.result().status_code == 200
        assert len(ranked(page)) == 3
        chromium.open("about:blank")


@in_browser
def test_motion_and_width(chromium: Tab, server: Running) -> None:
    """Rows move from the given order, unless the reader wants no motion; nothing is wider than a phone."""
    note = """window.moves = []; const animate = Element.prototype.animate;
        Element.prototype.animate = function (frames, times) {
            moves.push(Math.sign(parseFloat(frames[0].transform.slice("translateY(".length))));
            return animate.call(this, frames, times); };"""
    for motion, moves in (("no-preference", [1, -1, -1]), ("reduce", [])):
        page = opened(
            chromium, server, width=390, height=800, prefers_reduced_motion=motion, prefers_color_scheme="dark"
        )
        page.run(note)
        put(page, QUERY, TEXTS)
        assert ranked(page) == [2, 0, 1]
        assert page.run("moves") == moves, "the first comes from below"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    put(page, QUERY, ["x" * 500, "word " * 90, *TEXTS])
    ranked(page)
    page.run("document.querySelector('#open-all').click()")
    for view in ("list", "beside"):
        page.run(f"document.querySelector('[value={view}]').click()")
        assert page.run("document.documentElement.scrollWidth") <= 390, view
    chromium.emulate()


# Pages of others


@contextmanager
def other_page() -> Iterator[str]:
    """The address of a page that is not the server's."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another page</title>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as pages:
        thread = Thread(target=pages.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{pages.server_address[1]}/"
        finally:
            pages.shutdown()
            thread.join(PATIENCE_S)


@in_browser
def test_a_page_of_another_origin_ranks_nothing(chromium: Tab, server: Running) -> None:
    """A simple request needs no leave of the server's to be sent: it arrives, and is refused."""
    body = json.dumps({"query": QUERY, "documents": ["a", "b"]})
    send = f"fetch('http://127.0.0.1:{server.port}/v1/rerank', {{method: 'POST', mode: 'no-cors', body: '{body}'}})"
    refused = server.metric('blockrank_rejections_total{cause="host"}')
    with other_page() as address:
        chromium.open(address)
        chromium.run(f"{send}.then(() => {{ document.title = 'sent' }})")
        chromium.wait("document.title === 'sent'")
    assert server.metric('blockrank_rejections_total{cause="host"}') == refused + 1
