"""How a checkpoint is read: a spec, its parts, what is refused, and files of earlier releases."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockrank import (
    BUILT_IN_SPECS,
    Exits,
    InputError,
    Limits,
    ModelError,
    Pattern,
    Ranker,
    RankSpec,
    Readout,
    Template,
)
from blockrank.evaluate.settings import RankingSettings
from blockrank.model.sources import EMBEDDED_MODEL
from blockrank.spec import SPEC_FILE, TEMPLATES, rewritten

# As `to_dict` of the last release with version 1 gave them, and the file that it shipped.
VERSION_1: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "specs-version-1.json").read_text(encoding="utf-8")
)
PRUNED = RankSpec.of(layer=14, prune=((6, 0.5), (10, 0.25)), prune_by="layer")
SPECS = {
    "defaults": RankSpec.of(layer=3),
    "others": RankSpec.of(layer=3, signal_tokens="query", heads=(1, 2), cosine="keys", query_offset=None, notes="n"),
    "own prompt": RankSpec.of(layer=3, template=Template(("a {query}",), ("{text}",), ("{query}",), answer="[")),
    "causal": RankSpec.of(layer=3, pattern="causal", long_queries="cut"),
    "pruned": PRUNED,
}


# Parts, and fields by their own names


def test_fields_go_to_their_parts() -> None:
    named = RankSpec.of(layer=4, template="query-free", pattern="causal", long_queries="cut", prune=((1, 0.5),))
    assert named == RankSpec(
        readout=Readout(layer=4),
        template="query-free",
        pattern=Pattern(kind="causal"),
        exits=Exits(prune=((1, 0.5),), prune_by="lens"),
        limits=Limits(long_queries="cut"),
    )


def test_names_of_fields_are_unique_over_the_parts() -> None:
    counts = [len(fields(part)) for part in (Readout, Pattern, Exits, Limits)]
    assert len(PRUNED.fields) == sum(counts) + len(("template", "scorer", "notes"))
    assert {"pattern", "layer", "prune", "long_queries", "template"} <= PRUNED.fields.keys()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_is_what_its_fields_say(spec: RankSpec) -> None:
    assert RankSpec.of(**spec.fields) == spec
    assert RankSpec.of(layer=30).changed(**spec.fields) == spec
    assert spec.changed() == spec


def test_a_copy_differs_in_the_named_fields_alone() -> None:
    found = PRUNED.changed(max_segment_tokens=9, pattern="causal", notes="shorter")
    assert (found.limits.max_segment_tokens, found.pattern.kind, found.notes) == (9, "causal", "shorter")
    assert (found.readout, found.exits, found.template) == (PRUNED.readout, PRUNED.exits, PRUNED.template)
    assert PRUNED.limits.max_segment_tokens == Limits().max_segment_tokens


def test_without_a_schedule_nothing_is_left_of_how_documents_leave() -> None:
    assert PRUNED.changed(prune=()).exits == Exits()
    assert PRUNED.changed(prune=((1, 0.5),)).exits == Exits(((1, 0.5),), "layer")
    with pytest.raises(InputError, match="prune_by 'lens' needs a schedule"):
        PRUNED.changed(prune=(), prune_by="lens")


@pytest.mark.parametrize("name", ["layers", "kind", "readout", "version", "cls", "self"])
def test_unknown_names_are_told(name: str, mini: Ranker) -> None:
    with pytest.raises(InputError, match=f"RankSpec: unknown key '{name}'; there are "):
        RankSpec.of(**{"layer": 1, name: 1})
    with pytest.raises(InputError, match=f"RankSpec: unknown key '{name}'; there are "):
        PRUNED.changed(**{name: 1})


def test_a_spec_needs_a_layer() -> None:
    for made in (RankSpec.of, lambda: RankSpec.from_dict({})):
        with pytest.raises(InputError, match=r"^RankSpec: 'layer' is missing\.$"):
            made()
    with pytest.raises(InputError, match=r"^RankSpec \[readout\]: 'layer' is missing.$"):
        RankSpec.from_dict({"version": 2, "readout": {}})


# What has no sense


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"layer": -1}, "layer counts from 0; -1 is negative"),
    ({"layer": 1 << 40}, "layer must be at most 2147483647"),
    ({"signal_tokens": 0}, "signal_tokens must be positive or 'query', not 0"),
    ({"signal_tokens": 1 << 70}, "signal_tokens must be at most 2147483647"),
    ({"heads": ()}, "heads is empty"),
    ({"heads": (3, 3)}, r"heads names a head twice: \[3, 3\]"),
    ({"heads": (0, -1)}, "heads counts from 0; -1 is negative"),
    ({"logit_scale": 0}, "logit_scale is 0: every document would get the same score"),
    ({"logit_scale": -1}, "logit_scale must be positive, not -1: the least attended would come first"),
    ({"logit_scale": 1e-60}, "logit_scale must be a number that float32 holds, not 1e-60"),
    ({"logit_scale": 1e60}, "logit_scale must be a number that float32 holds, not 1e[+]60"),
    ({"logit_scale": float("nan")}, "logit_scale must be a finite number, not nan"),
    ({"logit_scale": float("inf")}, "logit_scale must be a finite number, not inf"),
    ({"length_norm": 1.5}, "length_norm must lie in"),
    ({"length_norm": float("nan")}, "length_norm must be a finite number, not nan"),
    ({"query_offset": -5}, "query_offset counts from 0; -5 is negative"),
    ({"query_offset": 1 << 64}, "query_offset must be at most 2147483647"),
    ({"max_segment_tokens": 0}, "max_segment_tokens must be positive, not 0"),
    ({"max_query_tokens": -1}, "max_query_tokens must be positive, not -1"),
    ({"max_query_tokens": 1 << 64}, "max_query_tokens must be at most 2147483647"),
    ({"prune_by": "layer"}, "prune_by 'layer' needs a schedule, and RankSpec.prune has none: give prune too"),
    ({"prune": ((3, 0.5),)}, r"prune names layers \[3\]; they must rise and stay below layer 3"),
    ({"prune": ((1, 0.5), (1, 0.2))}, r"prune names layers \[1, 1\]; they must rise"),
    ({"prune": ((-1, 0.5),)}, "prune counts from 0; -1 is negative"),
    ({"prune": ((1, 1.0),)}, r"prune keeps shares \[1.0\]; they must fall and lie in \(0, 1\)"),
    ({"prune": ((1, 0.5), (2, 0.5))}, r"prune keeps shares \[0.5, 0.5\]; they must fall"),
    ({"pattern": "causal", "query_reads": "own"}, "pattern 'causal' needs query_reads 'all'; it is 'own'"),
    ({"pattern": "full"}, r"pattern must be one of \('block', 'causal'\), not 'full'"),
    ({"cosine": "queries"}, r"cosine must be one of \('none', 'keys', 'both'\)"),
    ({"template": "unknown"}, "template 'unknown' is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "words"), SENSELESS, ids=[str(values) for values, _ in SENSELESS])
def test_what_has_no_sense_is_refused_wherever_it_comes_from(values: dict[str, Any], words: str) -> None:
    whole = {"layer": 3, **values}
    with pytest.raises(InputError, match=rf"^RankSpec\.{words}"):
        RankSpec.of(**whole)
    with pytest.raises(InputError, match=rf"^RankSpec\.{words}"):
        SPECS["defaults"].changed(**values)
    with pytest.raises(InputError, match=rf"^RankSpec\.{words}"):
        RankSpec.from_dict({"version": 1, **_listed(whole)})
    with pytest.raises(InputError, match=r"^RankSpec"):
        RankSpec.from_dict(_listed(_in_parts(whole)))


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a file holds them."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _in_parts(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"version": 2}
    whole = RankSpec.of(layer=3).to_dict()
    for name, value in values.items():
        inner = "kind" if name == "pattern" else name
        part = next((part for part in ("readout", "pattern", "exits", "limits") if inner in whole[part]), None)
        if part is None:
            found[name] = value
        else:
            found.setdefault(part, {})[inner] = value
    return found


def test_a_template_counts_from_zero_or_above() -> None:
    with pytest.raises(InputError, match="id_base must not be negative; it is -1"):
        Template((), ("{id} {text}",), ("{query}",), id_base=-1)


def test_changes_of_a_loaded_ranker_are_checked(mini: Ranker) -> None:
    for changes in ({"logit_scale": -1}, {"query_offset": -5}, {"heads": (3, 3)}, {"prune_by": "lens"}):
        with pytest.raises(InputError, match=f"RankSpec.{next(iter(changes))}"):
            mini.with_spec(**changes)


# What askers want to know


def test_what_may_be_reused() -> None:
    apart = RankSpec.of(layer=3, template="query-free", query_reads="own")
    assert apart.documents_stand_alone and apart.reuses_documents and not apart.leaves_early  # noqa: PT018
    pruned = apart.changed(prune=((1, 0.5),))
    assert pruned.documents_stand_alone and pruned.leaves_early and not pruned.reuses_documents  # noqa: PT018
    apart.check_none_leaves("this needs every document")
    with pytest.raises(InputError, match=r"^this needs every document: not with RankSpec\.prune\.$"):
        pruned.check_none_leaves("this needs every document")


def test_one_place_knows_what_an_empty_schedule_means() -> None:
    """Nothing outside the package asks `prune` whether it is empty; who leaves where is asked of `Exits.shares`."""
    source = Path(__file__).parents[1] / "src" / "blockrank"
    askers = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if "exits.prune" in path.read_text(encoding="utf-8").replace("exits.prune_by", "")
    }
    assert askers <= {"spec/rank_spec.py", "bench/run.py"}  # a benchmark's record shows the schedule itself


def test_what_a_template_depends_on() -> None:
    assert TEMPLATES["blockrank"].reads_query_first
    assert TEMPLATES["blockrank"].numbers_documents
    assert not TEMPLATES["query-free"].reads_query_first
    assert not TEMPLATES["query-free"].numbers_documents


# Files


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_is_read_back(spec: RankSpec, tmp_path: Path) -> None:
    assert json.loads(spec.save(tmp_path).read_text(encoding="utf-8")) == spec.to_dict()
    found = RankSpec.load(tmp_path)
    assert (found, found.notes) == (spec, spec.notes)
    assert RankSpec.from_dict({name: value for name, value in spec.to_dict().items() if name != "version"}) == spec


@given(
    st.fixed_dictionaries(
        {"layer": st.integers(4, 40)},
        optional={
            "signal_tokens": st.one_of(st.integers(1, 99), st.just("query")),
            "heads": st.none() | st.lists(st.integers(0, 63), min_size=1, unique=True).map(tuple),
            "logit_scale": st.floats(1e-3, 1e3),
            "length_norm": st.floats(0, 1),
            "query_offset": st.none() | st.integers(0, 1 << 20),
            "prune": st.sampled_from([(), ((0, 0.5),), ((1, 0.5), (3, 0.1))]),
            "max_query_tokens": st.integers(1, 4096),
            "template": st.sampled_from(sorted(TEMPLATES)),
        },
    )
)
def test_both_versions_of_a_file_say_the_same(named: dict[str, Any]) -> None:
    spec = RankSpec.of(**named)
    assert RankSpec.from_dict(spec.to_dict()) == spec
    assert RankSpec.from_dict({"version": 1, **_listed(named)}) == spec


@pytest.mark.parametrize("name", VERSION_1)
def test_version_1_is_read_exactly(name: str, tmp_path: Path) -> None:
    (tmp_path / SPEC_FILE).write_text(json.dumps(VERSION_1[name]), encoding="utf-8")
    spec = RankSpec.load(tmp_path)
    written = {name: value for name, value in VERSION_1[name].items() if name != "version"}
    found = _listed({name: spec.to_dict()["template"] if name == "template" else spec.fields[name] for name in written})
    if not spec.leaves_early:
        assert written.pop("prune_by", "lens") == "lens"
        assert found.pop("prune_by", None) is None
    if isinstance(written.get("template"), dict):  # fields that came later have their defaults
        found["template"] = {name: value for name, value in found["template"].items() if name in written["template"]}
    assert found == written
    defaults = RankSpec.of(layer=0).fields  # what a file does not name
    assert all(spec.fields[other] == defaults[other] for other in defaults.keys() - VERSION_1[name].keys())


def test_specs_that_are_built_in_are_those_of_version_1() -> None:
    there = {**BUILT_IN_SPECS, "embedded": RankSpec.load(EMBEDDED_MODEL)}
    known = there.keys() & VERSION_1.keys()
    assert len(known) == 3, "what came later was never written in version 1"
    for name in known:
        assert RankSpec.from_dict(VERSION_1[name]) == there[name]
        assert RankSpec.from_dict(VERSION_1[name]).notes == there[name].notes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": 1, "layers": 3}, "RankSpec: unknown key 'layers'"),
        ({"version": 1, "readout": {"layer": 3}}, "RankSpec: unknown key 'readout'"),
        ({"version": 1, "layer": 3, "prune_by": "layer"}, "prune_by 'layer' needs a schedule"),
        ({"version": 2, "layer": 3}, "RankSpec: unknown key 'layer'; there are "),
        ({"version": 2}, "RankSpec: 'readout' is missing"),
        ({"version": 2, "readout": 3}, "RankSpec: readout must be a table, not 3"),
        ({"version": 2, "readout": {"layer": "3"}}, r"RankSpec \[readout\]: layer must be an integer, not '3'"),
        (
            {"version": 2, "readout": {"layer": 3}, "limits": {"tokens": 3}},
            r"RankSpec \[limits\]: unknown key 'tokens'",
        ),
        ({"version": 2, "readout": {"layer": 3}, "pattern": "causal"}, "RankSpec: pattern must be a table"),
        ({"version": 3, "readout": {"layer": 3}}, "version 3 is not supported; this release reads 1 and 2"),
        ({"version": True, "layer": 3}, "version must be an integer, not True"),
    ],
)
def test_files_that_are_none_are_refused_in_one_sentence(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / SPEC_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match=words) as caught:
        RankSpec.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / SPEC_FILE} is not a valid RankSpec: ")
    assert str(caught.value).count("\n") == 0


# Settings that were saved with a spec


@pytest.mark.parametrize("name", VERSION_1)
def test_settings_saved_with_version_1_go_on(name: str, tmp_path: Path) -> None:
    spec = RankSpec.from_dict(VERSION_1[name])
    earlier = {"depth": 10, "of": {"ranker": "Window", "spec": VERSION_1[name]}, "spec": VERSION_1[name]}
    (tmp_path / "settings.json").write_text(json.dumps({"systems": {"a": earlier}}), encoding="utf-8")
    settings, now = RankingSettings(tmp_path), spec.to_dict()
    settings.claim("systems", "a", {"depth": 10, "of": {"ranker": "Window", "spec": now}, "spec": now})
    other = spec.changed(max_segment_tokens=7).to_dict()
    with pytest.raises(InputError, match=r"spec\.limits\.max_segment_tokens was \d+, now 7"):
        settings.claim("systems", "a", {"depth": 10, "of": {"ranker": "Window", "spec": now}, "spec": other})
    with pytest.raises(InputError, match=r"of\.spec\.limits\.max_segment_tokens was \d+, now 7"):
        settings.claim("systems", "a", {"depth": 10, "of": {"ranker": "Window", "spec": other}, "spec": now})


def test_what_is_no_spec_stays_as_it_was() -> None:
    for values in ({"spec": {"layers": 3}}, {"spec": "a"}, {"spec": None}, [1, {"a": {"spec": []}}]):
        assert rewritten(values) == values
    spec = SPECS["pruned"].to_dict()
    assert rewritten([{"spec": spec}]) == [{"spec": spec}]
