"""Where attention goes when every segment may read every other: shares by layer, for tokens of documents and query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blockrank.analyze.full import FullLayout, full_attention
from blockrank.engine.capture import LayerCapture, Wanted
from blockrank.layout import Ints, PackedLayout, TokenisedRequest, pack
from blockrank.model import RankModel
from blockrank.types import InputError

DOCUMENT_PARTS = ("own document", "instruction", "other documents", "query")
QUERY_PARTS = ("relevant documents", "other candidates", "instruction", "query")
TOP = 0.01  # of the rows that a token may read
_CHUNK_WEIGHTS = 1 << 25  # attention weights held at once, in float32; bounds memory, not results

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AttentionShares:
    """Shares of attention under full attention, means over prompts, tokens and heads.

    document_LF, query_LF: of tokens of documents over `DOCUMENT_PARTS`, and of the query segment over `QUERY_PARTS`;
    each line sums to one. per_document_L2: of the query segment's, what one relevant document and one other candidate
    get. top_L2: share of the most-read 1 % of rows, for tokens of documents and of the query segment. uniform_*: what
    attention spread evenly over the rows that may be read would give. positions: see `FullLayout`, of each prompt.
    """

    document_LF: Floats
    query_LF: Floats
    per_document_L2: Floats
    top_L2: Floats
    uniform_document_F: Floats
    uniform_query_F: Floats
    uniform_per_document_2: Floats
    uniform_top_2: Floats
    positions: tuple[str, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptShares:
    """The same of one prompt: `layers` (L, F) and `uniform` (F,) over all its figures, in the order of `_figures`."""

    layers_LF: Floats
    uniform_F: Floats
    positions: str
    tokens: int


def readable_rows(layout: PackedLayout, rows_G: Ints) -> NDArray[np.bool_]:
    """(G, P) which rows the given tokens may read."""
    mask_GP = np.zeros((len(rows_G), layout.rows), dtype=np.bool_)
    segment_G = np.searchsorted(layout.ends_S, rows_G, side="right")
    for place, (segment, row) in enumerate(zip(segment_G, rows_G, strict=True)):
        for start, end in layout.reads_R2[layout.read_offsets_S1[segment] : layout.read_offsets_S1[segment + 1]]:
            mask_GP[place, start:end] = True
        own_end = row + 1 if layout.causal_S[segment] else layout.ends_S[segment]
        mask_GP[place, layout.cached_rows + layout.starts_S[segment] : layout.cached_rows + own_end] = True
    return mask_GP


def segment_shares(
    q_GNH: Tensor, k_PKH: Tensor, scale: float, allowed_GP: Tensor, segment_PS: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of some tokens: (G, S) share of each segment, and (G,) of the most-read 1 % of rows; means over heads.

    q_GNH, k_PKH: queries and keys at one layer; allowed_GP: what may be read; segment_PS: one where a row is a
    segment's. Heads are taken a few at a time, so that memory stays bounded.
    """
    tokens, heads = q_GNH.shape[:2]
    rows, groups = len(k_PKH), heads // k_PKH.shape[1]
    top_G = (allowed_GP.sum(1) * TOP).ceil().long()
    share_GS = q_GNH.new_zeros((tokens, segment_PS.shape[1]), dtype=torch.float32)
    most_G = q_GNH.new_zeros(tokens, dtype=torch.float32)
    step = max(1, _CHUNK_WEIGHTS // (tokens * rows))
    for start in range(0, heads, step):
        some = range(start, min(start + step, heads))
        k_PnH = k_PKH[:, [head // groups for head in some]].float()
        z_nGP = torch.einsum("gnh,pnh->ngp", q_GNH[:, some.start : some.stop].float(), k_PnH) * scale
        weight_nGP = z_nGP.masked_fill_(~allowed_GP, -torch.inf).softmax(-1)
        share_GS += (weight_nGP @ segment_PS).sum(0)
        largest_nGD = weight_nGP.topk(int(top_G.max()), dim=-1).values
        most_G += largest_nGD.cumsum(-1).sum(0).gather(1, top_G[:, None] - 1)[:, 0]
    return share_GS / heads, most_G / heads


def prompt_shares(
    model: RankModel,
    request: TokenisedRequest,
    relevant_C: NDArray[np.bool_],
    rows: int,
    generator: np.random.Generator,
) -> PromptShares:
    """Shares of one prompt under full attention, at most `rows` tokens of the documents and as many of the query
    segment looked at."""
    layout = pack([request], model.spec)
    rows_G = _drawn(layout, rows, generator)
    layout = replace(layout, signal_G=rows_G, signal_request_G=np.zeros_like(rows_G))
    full = _fitting(model, layout)
    allowed_GP = readable_rows(full.layout, rows_G)
    segment_P = np.repeat(np.arange(len(layout.starts_S)), layout.ends_S - layout.starts_S)
    segments = len(layout.starts_S)
    allowed = torch.from_numpy(allowed_GP).to(model.device)
    segment_PS = torch.eye(segments, device=model.device)[torch.from_numpy(segment_P).to(model.device)]
    found: list[Floats] = []

    def look(seen: LayerCapture) -> None:
        share_GS, most_G = segment_shares(seen.q_GNH, seen.k_PKH, seen.scale, allowed, segment_PS)
        found.append(_figures(share_GS.cpu().double().numpy(), most_G.cpu().double().numpy(), layout, relevant_C))

    with model.inference():
        model.forward(full.layout, Wanted(tuple(range(model.spec.readout.layer + 1)), observer=look))
    counts_GS = np.stack([np.bincount(segment_P[line], minlength=segments) for line in allowed_GP])
    readable_G = counts_GS.sum(1)
    uniform_F = _figures(
        counts_GS / readable_G[:, None], np.ceil(readable_G * TOP) / readable_G, layout, relevant_C
    )  # fmt: skip
    return PromptShares(np.stack(found), uniform_F, full.positions, layout.tokens)


def _fitting(model: RankModel, layout: PackedLayout) -> FullLayout:
    """Full attention over a layout, in positions that the model has."""
    full = full_attention(layout, getattr(model.module.config, "max_position_embeddings", None))
    try:
        model.check_positions(full.layout)
    except InputError as error:
        raise InputError(f"{error} Full attention needs room for the whole prompt: look at fewer documents.") from None
    return full


def _drawn(layout: PackedLayout, rows: int, generator: np.random.Generator) -> Ints:
    """Random tokens of the documents, then of the query segment, each ascending; all where there are no more."""
    drawn = []
    for chosen_S in (layout.is_document_S, layout.is_query_S):
        places = np.flatnonzero(layout.tokens_of(chosen_S))
        drawn.append(np.sort(generator.choice(places, min(rows, len(places)), replace=False)))
    return np.concatenate(drawn)


def _figures(
    share_GS: Floats, most_G: Floats, layout: PackedLayout, relevant_C: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(12,) means over the tokens: `DOCUMENT_PARTS`, `QUERY_PARTS`, a relevant document, another, the two tops."""
    segment_G = np.searchsorted(layout.ends_S, layout.signal_G, side="right")
    documents, queries = layout.is_document_S[segment_G], layout.is_query_S[segment_G]
    kinds = {"instruction": layout.is_instruction_S, "document": layout.is_document_S, "query": layout.is_query_S}
    own = share_GS[np.arange(len(segment_G)), segment_G][documents].mean()
    to_GK = {kind: share_GS[:, of_kind_S].sum(1) for kind, of_kind_S in kinds.items()}
    part = {kind: (float(sums[documents].mean()), float(sums[queries].mean())) for kind, sums in to_GK.items()}
    each_C = share_GS[queries][:, layout.is_document_S].mean(0)
    relevant, other = each_C[relevant_C], each_C[~relevant_C]
    of_documents = [own, part["instruction"][0], part["document"][0] - own, part["query"][0]]
    of_query = [relevant.sum(), other.sum(), part["instruction"][1], part["query"][1]]
    tops = [most_G[documents].mean(), most_G[queries].mean()]
    return np.array([*of_documents, *of_query, relevant.mean(), other.mean(), *tops])


def mean_shares(prompts: Sequence[PromptShares]) -> AttentionShares:
    """Means over prompts, each counting the same."""
    layers_LF = np.mean([prompt.layers_LF for prompt in prompts], axis=0)
    uniform_F = np.mean([prompt.uniform_F for prompt in prompts], axis=0)
    return AttentionShares(
        layers_LF[:, 0:4], layers_LF[:, 4:8], layers_LF[:, 8:10], layers_LF[:, 10:12],
        uniform_F[0:4], uniform_F[4:8], uniform_F[8:10], uniform_F[10:12],
        tuple(prompt.positions for prompt in prompts), tuple(prompt.tokens for prompt in prompts),
    )  # fmt: skip
