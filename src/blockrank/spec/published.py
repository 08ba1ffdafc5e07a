"""How published checkpoints that bring no `blockrank.json` are read."""

from __future__ import annotations

from blockrank.spec.rank_spec import RankSpec

# Where a checkpoint says nothing of how it is read: full attention, one segment after the other, as it was trained.
BARE_SPEC = RankSpec.of(layer=0, pattern="causal", query_offset=None)


def _multi_view(base: str) -> RankSpec:
    """MVP. Its code cuts query and passage together at 256 tokens; here the limit is the passage's."""
    return BARE_SPEC.changed(
        max_segment_tokens=256,
        scorer="multi_view",
        notes=f"MVP (arXiv 2509.07485), on {base}. The training data are for academic use. Not run here.",
    )


BUILT_IN_SPECS: dict[str, RankSpec] = {
    "quicktensor/blockrank-msmarco-mistral-7b": RankSpec.of(
        layer=20,
        template="blockrank-mistral",
        signal_tokens=2,
        notes="Trained on 10 % of MS MARCO with 30 candidates and segments of 160 tokens (arXiv 2510.05396).",
    ),
    "rryisthebest/First_Model": RankSpec.of(
        layer=0,
        template="listwise-letters",
        pattern="causal",
        query_offset=None,
        scorer="first_token:ids=letters",
        notes="FIRST (arXiv 2406.15657), on Zephyr-7B-beta; ranks up to 20 at once: strategy 'sliding'. Not run here.",
    ),
    "Jun421/MVP-base": _multi_view("T5-base"),
    "Jun421/MVP-3b": _multi_view("T5-3B"),
    "blockrank-qwen3-reranker-4b": RankSpec.of(
        layer=24,
        template="blockrank-qwen3",
        signal_tokens=1,
        softmax_over="all",
        notes="Upstream's later recipe on Qwen/Qwen3-Reranker-4B; no weights are published.",
    ),
}
