"""Forwards of small layouts as CUDA graphs: one launch in place of hundreds, where they take longer than the computing.

A graph belongs to a *size*: numbers of tokens, tiles and signal tokens, each rounded up. A layout is padded to its size
with tokens that read only themselves, its tables with repetitions; both are copied into the graph's inputs before it is
replayed. A size is captured when it occurs for the second time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blockrank.attention import AttentionBackend
from blockrank.attention.tiles import TilePlan, TileTables, cut_tiles, tile_tokens
from blockrank.attention.triton import TritonBackend
from blockrank.engine.block import Decoder
from blockrank.layout import PackedLayout
from blockrank.spec import RankSpec

# A larger layout keeps a GPU busy for longer than its launches take: tokens x weights of a layer.
GRAPH_WORK, GRAPH_TOKENS = 1 << 38, 1 << 15
MOST_GRAPHS = 32  # sizes kept, the least recently used goes first
_STEPS = 8  # sizes between a number of tokens and its double


class Size(NamedTuple):
    """What a graph was captured for."""

    layer: int
    tokens: int
    signals: int
    tables: tuple[int, int, int, int, int]


class Graphs:
    """The captured forwards of one decoder. For use from several threads, which take turns."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._seen: Counter[Size] = Counter()
        self._captured: OrderedDict[Size, _Graph] = OrderedDict()
        self._lock = Lock()  # a replay's outputs are copied before the next one writes to the same place
        self._pool: Any = None  # torch's handle, shared by all graphs: they never run at the same time

    def __len__(self) -> int:
        return len(self._captured)

    def forward(
        self, layout: PackedLayout, layer: int, spec: RankSpec, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor] | None:
        """Queries (G, N, H) of the signal tokens and keys (T, K, H) at a layer; None for a layout that is not for
        graphs: large, of a size seen for the first time, or pruned."""
        if not self._fits(layout, spec, backend):
            return None
        padded = layout.padded(rounded(layout.tokens + 1))
        block = self._decoder.blocks[0]
        tables = cut_tiles(padded, tile_tokens(block.heads, block.kv_heads, block.width, self._decoder.dtype)).padded()
        size = Size(layer, padded.tokens, rounded(len(layout.signal_G)), tables.sizes)
        with self._lock:
            self._seen[size] += 1
            if size not in self._captured:
                if self._seen[size] < 2:
                    return None
                self._capture(size, padded, tables, backend)
            self._captured.move_to_end(size)
            q_GNH, k_TKH = self._captured[size].replay(padded, tables)
            return q_GNH[: len(layout.signal_G)].clone(), k_TKH[: layout.tokens].clone()

    def _fits(self, layout: PackedLayout, spec: RankSpec, backend: AttentionBackend) -> bool:
        weights = sum(linear.weight_ND.numel() for linear in self._decoder.blocks[0].linears)
        work = layout.tokens * weights
        small = layout.tokens <= GRAPH_TOKENS and work <= GRAPH_WORK
        return (
            small
            and not layout.cached_rows
            and isinstance(backend, TritonBackend)
            and not spec.leaves_early
            and self._decoder.capturable
        )

    def _capture(self, size: Size, padded: PackedLayout, tables: TileTables, backend: AttentionBackend) -> None:
        with torch.cuda.device(self._decoder.device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._captured[size] = _Graph(self._decoder, size, padded, tables, backend, self._pool)
        while len(self._captured) > MOST_GRAPHS:
            self._captured.popitem(last=False)


class _Graph:
    """One captured forward with its inputs and outputs."""

    def __init__(
        self,
        decoder: Decoder,
        size: Size,
        padded: PackedLayout,
        tables: TileTables,
        backend: AttentionBackend,
        pool: Any,
    ) -> None:
        self._decoder, self._size, self._backend = decoder, size, backend
        self._indices = torch.empty(2 * size.tokens + size.signals, dtype=torch.int64, device=decoder.device)
        self._tables = torch.empty(tables.flat().size, dtype=torch.int32, device=decoder.device)
        self._plan = TilePlan(padded, decoder.device, {tables.tokens: tables.on(self._tables)})
        self._fill(padded, tables)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()  # compiles kernels and makes workspaces, which must not happen during the capture
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = self._run()

    def replay(self, padded: PackedLayout, tables: TileTables) -> tuple[Tensor, Tensor]:
        """Outputs for another layout of the size; they last until the next replay."""
        self._fill(padded, tables)
        self._graph.replay()
        return self._outputs

    def _fill(self, padded: PackedLayout, tables: TileTables) -> None:
        signals = np.pad(padded.signal_G, (0, self._size.signals - len(padded.signal_G)), mode="edge")
        indices = np.concatenate([padded.ids_T, padded.positions_T, signals])
        self._indices.copy_(torch.from_numpy(indices), non_blocking=True)
        self._tables.copy_(torch.from_numpy(tables.flat()), non_blocking=True)

    def _run(self) -> tuple[Tensor, Tensor]:
        size, blocks = self._size, self._decoder.blocks
        ids_T, positions_T, signal_G = torch.split(self._indices, [size.tokens, size.tokens, size.signals])
        stream = self._decoder.start(ids_T, positions_T)
        for block in blocks[: size.layer]:
            inputs = block.split(block.project(stream))
            block.finish(stream, self._backend.attend(*inputs, self._plan, block.scale))
        return blocks[size.layer].read(stream, signal_G)


def rounded(size: int) -> int:
    """The next of a few sizes, at most an eighth larger (and at least 8)."""
    step = max(1 << (max(size, 8) - 1).bit_length() - 1, _STEPS) // _STEPS
    return -(-max(size, 8) // step) * step
