"""The files of an analysis: numbers, pictures, one HTML page, and the spec that was chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from blockrank.analyze.measures import MEASURES
from blockrank.analyze.plots import pictures
from blockrank.analyze.result import MAIN, Analysis, setting_name
from blockrank.keep.files import atomic_file
from blockrank.report.page import Column, Page, code, details, facts, figure, items, listing, number, paragraph, table
from blockrank.spec import SPEC_FILE
from blockrank.types import InputError

RESULT_FILE = "analysis.json"
PAGE_FILE = "analysis.html"
_CLEAR = 1.2  # times the attention of another document, below which relevance hardly shows


def make_folder(folder: Path) -> None:
    """Make the output folder where it is missing. Raises `InputError` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}.") from None


def write_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """Write everything into a folder and return the paths; each file appears whole or not at all.

    Raises `InputError` where the folder cannot be written, `MissingExtraError` without matplotlib.
    """
    drawn = pictures(analysis)
    contents = {
        **drawn,
        SPEC_FILE: _json(analysis.spec.to_dict()),
        PAGE_FILE: page_html(analysis, drawn).encode("utf-8"),
        RESULT_FILE: _json(analysis.to_dict()),
    }
    make_folder(folder)
    for name, content in contents.items():
        with atomic_file(folder / name) as stream:
            stream.write(content)
    return [folder / name for name in contents]


def _json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def page_html(analysis: Analysis, drawn: Mapping[str, bytes]) -> str:
    """The page's text; `drawn` are the pictures of the analysis."""
    is_dev = analysis.is_dev_Q
    page = Page(
        f"Attention of {analysis.model}",
        f"Which layer, signal tokens and heads rank the documents of {analysis.collection} best, and where attention "
        f"goes. {len(is_dev)} judged queries: {int(is_dev.sum())} to choose on, {int((~is_dev).sum())} to test.",
    )
    page.section("What was chosen", *_chosen(analysis))
    page.section("Where attention goes", *_attention(analysis, drawn))
    page.section("Depth of evidence", *_evidence(analysis, drawn))
    page.section("Which tokens and heads rank", *_maps(analysis, drawn))
    page.section("How many heads", *_subsets(drawn))
    page.section("Settings", *_settings(analysis))
    return page.html()


def _chosen(analysis: Analysis) -> Iterator[str]:
    yield paragraph("Chosen: ", setting_name(analysis.choice.chosen), ". ", analysis.choice.rule)
    named = {name: setting_name(setting) for name, setting in analysis.named_settings().items()}
    halves = ("development", "test")
    header: list[str | Column] = ["setting", "what is read"]
    header += [Column(f"{measure}, {half}", best="high") for half in halves for measure in MEASURES]
    rows: list[list[str | float | None]] = []
    for name, found in analysis.figures().items():
        rows.append([name, named.get(name, ""), *(found[half][measure] for half in halves for measure in MEASURES)])
    yield table(
        header,
        rows[:-1],
        "Means over the queries of each half. Only the development half was looked at to choose; the test half says "
        "what the choice is worth. The best of each column in bold.",
        last=rows[-1:],
    )
    yield paragraph(
        code(SPEC_FILE), " in this folder holds the chosen setting: put it beside the model's weights, or pass it as ",
        code("RankSpec.load(folder)"), ".",
    )  # fmt: skip
    if analysis.notes:
        yield items(analysis.notes)


def _attention(analysis: Analysis, drawn: Mapping[str, bytes]) -> Iterator[str]:
    shares = analysis.shares
    own_L, other_L = shares.document_LF[:, 0], shares.document_LF[:, 2]
    own, other = int(own_L.argmax()), int(other_L.argmin())
    yield paragraph(
        f"Full attention over {analysis.settings.documents} documents, as in a plain prompt and without the block "
        f"pattern: {len(shares.positions)} prompts of {number(float(np.mean(shares.tokens)), 0)} tokens on average."
    )
    yield figure(
        drawn["attention.png"],
        "Stacked shares of attention by layer for tokens of documents and of the query segment, and the share of the "
        "most-read hundredth of the tokens.",
        f"Each bar is a layer; the last one is attention spread evenly over everything that may be read. Tokens of "
        f"documents give their own document {number(float(own_L.mean()), 2)} of their attention on average "
        f"(most in layer {own}: {number(float(own_L[own]), 2)}; evenly spread it would be "
        f"{number(float(shares.uniform_document_F[0]), 2)}) and the other documents "
        f"{number(float(other_L.mean()), 2)} (least in layer {other}: {number(float(other_L[other]), 2)}). What goes "
        "to other documents is what the block pattern leaves out. Below: how much of the attention falls on the "
        "most-read 1 % of the tokens that may be read.",
    )


def _evidence(analysis: Analysis, drawn: Mapping[str, bytes]) -> Iterator[str]:
    shares, chosen = analysis.shares, analysis.choice.chosen
    together_L = analysis.layer_by_token()[:, analysis.grid.axes.column(chosen.tokens)]
    over_L2 = shares.per_document_L2 / shares.uniform_per_document_2
    ratio_L = over_L2[:, 0] / over_L2[:, 1]
    best, clearest = int(together_L.argmax()), int(ratio_L.argmax())
    yield figure(
        drawn["evidence.png"],
        f"{MAIN} of the read-out by layer, and the query segment's attention to a relevant document and to another, by "
        "layer.",
        f"Above: {MAIN} (development half) when the candidates are ordered by one layer alone, at the chosen signal "
        f"tokens. All heads together rank best in layer {best} ({number(float(together_L[best]))}). Below, under full "
        "attention: how many times the evenly spread share the query segment gives to one relevant document and to one "
        f"other candidate. They differ most in layer {clearest}, where a relevant document gets "
        f"{number(float(ratio_L[clearest]), 2)} times what another of its length gets"
        f"{'.' if ratio_L[clearest] >= _CLEAR else ': over all heads, plain attention says next to nothing here.'}",
    )


def _maps(analysis: Analysis, drawn: Mapping[str, bytes]) -> Iterator[str]:
    yield figure(
        drawn["tokens.png"],
        f"Map of {MAIN} by layer and signal token.",
        "All heads together; each cell orders the candidates by one layer and one token, or one set of last tokens, "
        "alone. Token -1 is the last of the query segment. Single tokens that fewer than half of the queries have are "
        "left blank. Only sets of last tokens can be chosen, and the best of them is outlined.",
    )
    map_LN = analysis.layer_by_head(analysis.choice.chosen.tokens)
    layer, head = (int(place) for place in np.unravel_index(int(map_LN.argmax()), map_LN.shape))
    above = int((map_LN >= 0.95 * map_LN.max()).sum())
    yield figure(
        drawn["heads.png"],
        f"Map of {MAIN} by layer and head.",
        f"Each head alone, at the chosen signal tokens. The best one is head {head} of layer {layer} "
        f"({number(float(map_LN.max()))}); {above} of {map_LN.size} reach 95 % of it. The best of so many is "
        "flattered: trust the test half, not this map.",
    )
    rows: list[list[str | float | None]] = []
    test_LN = analysis.layer_by_head(analysis.choice.chosen.tokens, "test")
    for place in np.argsort(-map_LN, axis=None, kind="stable")[:10]:
        at = np.unravel_index(int(place), map_LN.shape)
        rows.append([f"layer {at[0]}, head {at[1]}", float(map_LN[at]), float(test_LN[at])])
    header: list[str | Column] = ["head", Column(f"{MAIN}, development"), Column(f"{MAIN}, test")]
    yield details("The ten best heads", table(header, rows, "Each alone, in the order of the development half."))


def _subsets(drawn: Mapping[str, bytes]) -> Iterator[str]:
    yield figure(
        drawn["head-subsets.png"],
        f"{MAIN} against the number of heads read together, for the most promising layers, on both halves.",
        "Heads were put in order by their own quality on the development half, and the best 1, 2, 4, ... read out "
        "together. The distance between a solid line and its dashed one is the difference between the halves and what "
        "choosing flattered: compare shapes, not heights.",
    )


def _settings(analysis: Analysis) -> Iterator[str]:
    settings, environment = analysis.settings, analysis.environment
    versions = environment["versions"]
    yield facts(
        {
            "model": f"{analysis.model} ({environment['architecture']})",
            "collection": f"{analysis.collection}, candidates by {analysis.first_stage}",
            "candidates": f"{settings.candidates} a query, in {'random order' if settings.shuffle else 'given order'}",
            "device": f"{environment['device']}, {environment['dtype']}, attention by {environment['backend']}",
            "seed": str(settings.seed),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "date": str(environment["date"]),
        }
    )
    spec = json.dumps(analysis.spec.to_dict(), indent=1, ensure_ascii=False)
    yield details(SPEC_FILE, listing(spec))
