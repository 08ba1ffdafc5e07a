"""How published checkpoints that bring no `blockrank.json` are read.

Each names its scorer. Where the scorer has a prompt of its own, the checkpoint was trained with that one; else the
prompt stands here. docs/models.md says where each prompt was read, and what of it is tested.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from blockrank.spec.rank_spec import RankSpec
from blockrank.spec.templates import TEMPLATES, Template

# Where a checkpoint says nothing of how it is read: full attention, one segment after the other, as it was trained.
BARE_SPEC = RankSpec.of(layer=0, pattern="causal", query_offset=None)

# What RankLLM's training data call the assistant: with a full stop, which FIRST's own code leaves out.
_RANK_LLM = f"{TEMPLATES['listwise'].system}."
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def _between(before: str, after: str, example: str = "[2] > [1]") -> Template:
    """The listwise prompt by numbers in markup that the checkpoint's tokenizer does not bring itself."""
    base = TEMPLATES["listwise"]
    (instruction,), (query,) = base.instruction, base.query
    query = query.replace("[2] > [1]", example)
    return replace(base, instruction=(before + instruction,), query=(query + after,), chat=False, system="")


_ZEPHYR = replace(TEMPLATES["listwise"], system=_RANK_LLM)
_FIRST_MISTRAL = replace(TEMPLATES["listwise-letters"], system=_RANK_LLM)
# The markup that FastChat writes for names with "mistral", which is not that of Mistral's own chat template.
_RANK_MISTRAL = _between(f"<s>[INST] {_RANK_LLM}\n", " [/INST]")
# FastChat's for names with "vicuna". Its lists always had twenty passages, and the example is of such a list. The space
# between "ASSISTANT:" and the answer is what Llama's tokenizer writes before a piece.
_RANK_VICUNA = _between(f"<s>{_VICUNA} USER: ", " ASSISTANT:", example="[4] > [2]")
# In full, for what the chat template of this tokenizer is to write has changed since.
_POINTWISE = TEMPLATES["pointwise"]
_QWEN3 = replace(
    _POINTWISE,
    instruction=(f"<|im_start|>system\n{_POINTWISE.system}<|im_end|>\n<|im_start|>user\n{_POINTWISE.instruction[0]}",),
    document=(_POINTWISE.document[0] + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    chat=False,
    system="",
)


def _published(scorer: str, notes: str, **fields: Any) -> RankSpec:
    """Full attention, as all of these were trained."""
    return BARE_SPEC.changed(scorer=scorer, notes=f"{notes} The weights were not run here.", **fields)


_QWEN3_RERANKER = _published(
    "pointwise",
    "Qwen3-Reranker (arXiv 2506.05176); its released code reads up to 8192 tokens of a pair.",
    template=_QWEN3,
    max_segment_tokens=8192,
)
_E2RANK = _published("embedding", "E2Rank (arXiv 2510.22733).", max_segment_tokens=2048)
_RANK_R1 = _published(
    "reasoned_choice",
    "Rank-R1 (arXiv 2503.06034), an adapter of Qwen2.5-Instruct; chooses one of up to 20: strategy 'heap'.",
    max_segment_tokens=512,
)
_GROUP_RANK = _published(
    "groupwise", "GroupRank (arXiv 2511.11653); grades 20 at once: strategy 'partition'.", max_segment_tokens=1024
)


def _multi_view(base: str) -> RankSpec:
    """MVP. Its code cuts query and passage together at 256 tokens; here the limit is the passage's."""
    return _published(
        "multi_view",
        f"MVP (arXiv 2509.07485), on {base}. The training data are for academic use.",
        max_segment_tokens=256,
    )


BUILT_IN_SPECS: dict[str, RankSpec] = {
    "quicktensor/blockrank-msmarco-mistral-7b": RankSpec.of(
        layer=20,
        template="blockrank-mistral",
        signal_tokens=2,
        notes="Trained on 10 % of MS MARCO with 30 candidates and segments of 160 tokens (arXiv 2510.05396).",
    ),
    "rryisthebest/First_Model": _published(
        "first_token:ids=letters",
        "FIRST (arXiv 2406.15657), on Zephyr-7B-beta; ranks up to 20 at once: strategy 'sliding'.",
        template="listwise-letters",
    ),
    "castorini/first_mistral": _published(
        "first_token:prompt=checkpoint",
        "FIRST on Mistral-7B-Instruct-v0.3 (arXiv 2411.05508); ranks up to 20 at once: strategy 'sliding'.",
        template=_FIRST_MISTRAL,
    ),
    "castorini/rank_zephyr_7b_v1_full": _published(
        "listwise:prompt=checkpoint",
        "RankZephyr (arXiv 2312.02724); ranks 2 to 20 at once: strategy 'sliding'.",
        template=_ZEPHYR,
    ),
    "castorini/rank_vicuna_7b_v1": _published(
        "listwise:prompt=checkpoint",
        "RankVicuna (arXiv 2309.15088); ranks 20 at once: strategy 'sliding'. Llama 2 licence.",
        template=_RANK_VICUNA,
    ),
    "liuwenhan/RankMistral100": _published(
        "listwise:prompt=checkpoint",
        "FullRank (arXiv 2412.14574), on Mistral-7B-Instruct-v0.3; ranks 100 passages of 100 words at once.",
        template=_RANK_MISTRAL,
    ),
    "castorini/rankllama-v1-7b-lora-passage": _published(
        "scalar", "RankLLaMA (arXiv 2310.08319), an adapter of Llama-2-7B. Llama 2 licence."
    ),
    **{f"Qwen/Qwen3-Reranker-{size}": _QWEN3_RERANKER for size in ("0.6B", "4B", "8B")},
    **{f"Alibaba-NLP/E2Rank-{size}": _E2RANK for size in ("0.6B", "4B", "8B")},
    **{f"ielabgroup/Rank-R1-{size}-v0.1": _RANK_R1 for size in ("3B", "7B", "14B")},
    **{f"AQ-MedAI/Diver-GroupRank-{size}": _GROUP_RANK for size in ("7B", "32B")},
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
