"""Which backend is taken where."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    CPU,
)

from blockrank import InputError
from blockrank.attention import default_backends, get_backend
from blockrank.attention.backend import kernels_unavailable


def test_the_table_of_default_backends() -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert default_backends(cuda, half) == ("triton", "varlen", "sdpa")
    assert default_backends(cuda, half, training=True) == ("varlen", "sdpa")
    assert default_backends(cuda, torch.float32) == ("sdpa",)
    assert default_backends(CPU, half) == default_backends(CPU, torch.float32, training=True) == ("sdpa",)
    assert get_backend(None, CPU, torch.float32).name == "sdpa"
    with pytest.raises(InputError, match="backend 'triton' cannot run here: it needs a CUDA device"):
        get_backend("triton", CPU, torch.float32)


def test_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"triton": object(), "gcc": "/usr/bin/gcc", "capability": (8, 0)}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found["triton"])
    monkeypatch.setattr("shutil.which", lambda name: found.get(name))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: found["capability"])
    monkeypatch.delenv("CC", raising=False)

    def reason(dtype: torch.dtype = torch.bfloat16) -> str | None:
        kernels_unavailable.cache_clear()
        return kernels_unavailable(torch.device("cuda"), dtype)

    try:
        assert reason() is reason(torch.float32) is None
        assert reason(torch.float64) == "it needs float16, bfloat16 or float32, not torch.float64."
        found["gcc"] = None
        assert reason() == "triton needs a C compiler: install gcc or clang, or set CC."
        monkeypatch.setenv("CC", "tcc")
        assert reason() is None
        found["capability"] = (7, 5)
        assert reason() == "it needs compute capability 8.0 or later."
        found["triton"] = None
        assert str(reason()).startswith("it needs the package triton")
    finally:
        kernels_unavailable.cache_clear()
