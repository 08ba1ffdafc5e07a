"""The examples of a page of the documentation, as the files that they say they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
_EXAMPLE = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES: dict[str, str] = dict(_EXAMPLE.findall(PAGE.read_text(encoding="utf-8")))


def example(name: str, folder: Path) -> ModuleType:
    """An example written into a file of its own and imported, which registers what is in it."""
    path = folder / f"{name}.py"
    path.write_text(EXAMPLES[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
