"""Memory that does not suffice: what says so, and a process that really has too little."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import EXHAUSTED, exhaust

from blockrank.errors import is_out_of_memory

# A request of a few thousand tokens takes a hundred MB beside the model; what is allowed here is a third of that.
TOO_LITTLE = """
import resource
from blockrank import Ranker
from blockrank.types import CapacityError
ranker = Ranker.from_pretrained(device="cpu")
ranker.rank("rivers", ["the sea"])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (32 << 20), resource.RLIM_INFINITY))
try:
    ranker.rank("rivers", [f"{i} " + "river and sea " * 80 for i in range(200)], query_id="7")
except CapacityError as error:
    message = str(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(message, len(ranker.rank("rivers", ["the sea", "a lake"])))
"""


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_what_says_that_memory_does_not_suffice(kind: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        exhaust(kind)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("can't allocate memory")])
def test_what_does_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_process_with_too_little_memory_is_told_and_goes_on() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the size of a process is read from /proc")
    found = subprocess.run([sys.executable, "-c", TOO_LITTLE], capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("query_id '7': its ")
    assert found.stdout.endswith("tokens do not fit into the memory of cpu; rank fewer documents at once or lower "
                                 "max_segment_tokens. 2\n")  # fmt: skip
