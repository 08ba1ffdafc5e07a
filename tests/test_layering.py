"""The order of the modules, read from their imports; and what importing the package must not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "blockrank"
FILES = sorted(SOURCE.rglob("*.py"))
# A module imports from its own line and the lines above it.
ORDER = (
    {""},  # the package itself: names and version, loaded lazily
    {"errors"},
    {"text"},
    {"types"},
    {"configfile"},
    {"keep"},
    {"registry"},
    {"spec"},
    {"layout"},
    {"attention"},
    {"readout"},
    {"reuse"},
    {"engine"},
    {"model"},
    {"decode"},
    {"scorers"},
    {"ranker"},
    {"data", "fake", "report"},
    {"retrieve", "serve"},
    {"analyze", "bench", "evaluate", "integrations", "mine", "strategies"},
    {"train"},  # a run is judged on a dev set, which is an evaluation
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
MOST_ROOMS = 12  # between `types` and `ranker`
MOST_FUNCTION_LINES, MOST_KERNEL_LINES, MOST_FILE_LINES = 60, 150, 400


def home(path: Path) -> str:
    """Name of the module or package under `blockrank` that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST) -> Iterator[tuple[str, int]]:
    """(module under blockrank, line) of every import that happens at run time."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            names = [child.module or ""]
            if child.module == "blockrank":  # a submodule or a name of the package itself
                names = [f"blockrank.{alias.name}" if alias.name in LEVEL else "blockrank" for alias in child.names]
        for name in names:
            if name == "blockrank" or name.startswith("blockrank."):
                yield [*name.split("."), ""][1], child.lineno
        yield from imports(child)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    own = home(path)
    assert own in LEVEL, f"{own} has no place in the order"
    for other, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert other in LEVEL, f"{path}:{line}: blockrank.{other} has no place in the order"
        assert LEVEL[other] <= LEVEL[own], f"{path}:{line}: {own or 'blockrank'} must not import {other}"


def test_few_rooms_stand_between_a_request_and_its_ranking() -> None:
    between = [name for name, level in LEVEL.items() if LEVEL["types"] < level < LEVEL["ranker"]]
    assert len(between) <= MOST_ROOMS


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Read from all imports, those inside functions and those for annotations alone too."""
    graph = {module_name(path): set(modules_imported(path)) - {module_name(path)} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"they import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", sorted((SOURCE / "serve").rglob("*.py")), ids=lambda path: path.stem)
def test_the_server_knows_rankers_by_their_steps_alone(path: Path) -> None:
    """Not by the class that this package has: what it needs of a ranker is `types.SteppedRanker`."""
    found = {name.split(".")[1] for name in modules_imported(path) if "." in name}
    assert found <= {"errors", "text", "types", "report", "serve"}


def module_name(path: Path) -> str:
    return ".".join(("blockrank", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def modules_imported(path: Path) -> Iterator[str]:
    """Full names of the modules of the package that a file imports anywhere."""
    known = {module_name(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else str(node.module)


TESTED_ELSEWHERE = {  # rooms without a test file of their own, and where they are tested
    "errors": "test_types",
    "configfile": "test_spec",
    "registry": "test_scorers",
    "fake": "test_types",
}
TESTED_ALONE = (
    "layout_prompt", "layout_packed", "attention_backend", "attention_sdpa", "attention_tiles", "readout_signals",
    "readout_exits", "reuse_keys", "reuse_memory", "engine_capture", "engine_parts", "model_seam", "model_probe",
)  # fmt: skip


@pytest.mark.parametrize("room", sorted(LEVEL.keys() - {"", "__main__"}))
def test_tests_are_named_after_what_they_test(room: str) -> None:
    tests = Path(__file__).parent
    if room in TESTED_ELSEWHERE:
        assert (tests / f"{TESTED_ELSEWHERE[room]}.py").exists()
    else:
        assert [*tests.glob(f"test_{room}.py"), *tests.glob(f"test_{room}_*.py")], f"{room} has no test file"


@pytest.mark.parametrize("name", TESTED_ALONE)
def test_modules_of_the_core_have_tests_of_their_own(name: str) -> None:
    assert (Path(__file__).parent / f"test_{name}.py").exists()
    assert (SOURCE / f"{name.replace('_', '/', 1)}.py").exists()


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=module_name)
def test_each_package_says_in_one_line_what_is_in_it(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = text.partition("\n")[0]
    assert first.endswith("."), f"{path} has no line of its own"


def test_no_two_public_classes_have_the_same_name() -> None:
    """A name that is met anywhere in the package means one thing."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module_name(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small_and_silent(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_FILE_LINES, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            most = MOST_KERNEL_LINES if is_kernel else MOST_FUNCTION_LINES
            assert lines <= most, f"{path}:{node.lineno}: {node.name} has {lines} lines"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno}: print"


@pytest.mark.parametrize(
    "module",
    [
        "blockrank",
        "blockrank.types",
        "blockrank.data",
        "blockrank.fake",
        "blockrank.evaluate",
        "blockrank.mine",
        "blockrank.bench",
        "blockrank.serve.server",
        "blockrank.cli",
    ],
)
def test_import_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
