"""The store of keys in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import InputError
from blockrank.reuse.memory import MemoryStore


def test_a_store_drops_the_oldest_slab() -> None:
    entry = torch.arange(4.0).reshape(1, 1, 4)  # 16 bytes; a slab holds two
    store = MemoryStore(8 * 32)
    for number in range(16):
        store.write(b"%d" % number, entry + number)
    assert (len(store), store.used_bytes) == (16, 256)
    assert torch.equal(store.find([b"5"])[b"5"], entry + 5)
    store.write(b"16", entry + 16)
    assert list(store.find([b"0", b"1", b"2", b"16"])) == [b"2", b"16"]
    assert (store.hits, store.misses) == (3, 2)
    assert (len(store), store.used_bytes) == (15, 256)
    store.write(b"large", torch.zeros(17, 1, 4))
    store.write(b"5", torch.zeros(1, 1, 4))
    assert (len(store), store.used_bytes) == (15, 256)
    assert torch.equal(store.find([b"5"])[b"5"], entry + 5)
    store.write(b"wide", torch.zeros(9, 1, 4))
    assert b"wide" in store.find([b"wide"])
    assert store.used_bytes <= 256


def test_a_store_refuses_a_size_that_holds_nothing() -> None:
    with pytest.raises(InputError, match="max_bytes must be positive"):
        MemoryStore(0)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), max_size=60), most=st.integers(1, 40))
def test_a_store_stays_within_its_limit_and_keeps_the_newest(sizes: list[int], most: int) -> None:
    store = MemoryStore(16 * most)
    for number, size in enumerate(sizes):
        store.write(b"%d" % number, torch.full((size, 1, 4), float(number)))
        assert store.used_bytes <= 16 * most
        assert len(store.find([b"%d" % number])) == (size <= most)
    for number in range(len(sizes)):
        assert all(found.eq(number).all() for found in store.find([b"%d" % number]).values())
