"""Published checkpoints by their names: the text that each model sees, and scores as the plain library computes them.

Models are tiny and random, in the files that the published ones come in, in a folder of the same name. Chat templates
write what those of the published tokenizers write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOLERANCE, failed, random_decoder
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from blockrank import BUILT_IN_SPECS, InputError, ModelError, Ranker, RankRequest
from blockrank.cli import app
from blockrank.decode import generate
from blockrank.layout import PromptTokenizer
from blockrank.scorers import SCORERS, PromptWriter, resolve_scorer
from blockrank.scorers.generation import GenerationScorer

# peft asks transformers by a name that will go one day.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUERY = "who wrote Dracula?"
TEXTS = ("Bram Stoker wrote it.", "A novel of 1897.")
REQUEST = RankRequest(QUERY, list(TEXTS))
LAYERS: tuple[Any, ...] = ("fused", "library")
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATS = {
    "Qwen2.5": TURNS + OPENING,
    "Qwen3": TURNS + OPENING + "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "Zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "Mistral": "{{ '<s>[INST] ' + messages[0].content + '\n\n' + messages[1].content + '[/INST]' }}",
    "none": None,
}
RANK_LLM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
FIRST = (
    "I will provide you with 2 passages, each indicated by a alphabetical identifier []. Rank the passages based on "
    "their relevance to the search query: who wrote Dracula?.\n\n"
    "[A] Bram Stoker wrote it.\n[B] A novel of 1897.\n"
    "Search Query: who wrote Dracula?.\nRank the 2 passages above based on their relevance to the search query. All "
    "the passages should be included and listed using identifiers, in descending order of relevance. The output format "
    "should be [] > [], e.g., [B] > [A], Only respond with the ranking results, do not say any word or explain."
)
NUMBERED = (
    "I will provide you with 2 passages, each indicated by a numerical identifier []. Rank the passages based on their "
    "relevance to the search query: who wrote Dracula?.\n\n"
    "[1] Bram Stoker wrote it.\n[2] A novel of 1897.\n"
    "Search Query: who wrote Dracula?.\nRank the 2 passages above based on their relevance to the search query. All "
    "the passages should be included and listed using identifiers, in descending order of relevance. The output format "
    "should be [] > [], e.g., [2] > [1], Only respond with the ranking results, do not say any word or explain."
)
QWEN3 = tuple(
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    f"<Query>: who wrote Dracula?\n<Document>: {text}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    for text in TEXTS
)
E2RANK = (
    "<|im_start|>user\nGiven a web search query and some relevant documents, rerank the documents that answer the "
    "query:\nDocuments:\n[1] Bram Stoker wrote it.\n[2] A novel of 1897.\nSearch Query: who wrote Dracula?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "Bram Stoker wrote it.<|endoftext|>",
    "A novel of 1897.<|endoftext|>",
)
RANK_R1 = (
    "<|im_start|>system\nA conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.<|im_end|>\n"
    '<|im_start|>user\nGiven the query: "who wrote Dracula?", which of the following documents is most relevant?\n'
    "[1] Bram Stoker wrote it.\n[2] A novel of 1897.\n"
    "After completing the reasoning process, please provide only the label of the most relevant document to the query, "
    "enclosed in square brackets, within the answer tags. For example, if the third document is the most relevant, the "
    "answer should be: <think> reasoning process here </think> <answer>[3]</answer>.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
GROUP_RANK = """\
<|im_start|>system
Your task is to evaluate and rank documents based on how well they help answer the given query. Follow this \
evaluation priority:
1. PRIMARY: Usefulness & Helpfulness - Does the document provide actionable information, solutions, or direct \
answers that help address the user's needs?
2. SECONDARY: Relevance - Does the document contain information related to the query topic?

Evaluation Process:
1. First, identify the user's core intent and what kind of help they need from the query
2. For each document, assess:
   - How directly it addresses the user's intent
   - What actionable information or answers it provides
   - How much it helps solve the user's problem or need
3. Compare documents against each other to ensure proper ranking
4. Assign scores that reflect the relative usefulness ranking

Scoring Scale (0-10):
- 9-10: Extremely helpful, directly answers the query with actionable information
- 7-8: Very helpful, provides substantial useful information for the query
- 5-6: Moderately helpful, contains some useful information but incomplete
- 3-4: Minimally helpful, limited useful information despite topic relevance
- 1-2: Barely helpful, mentions related topics but provides little useful information
- 0: Not helpful at all, cannot assist with answering the query
<|im_end|>
<|im_start|>user
I will provide you 2 documents, each indicated by a numerical identifier []. Score these documents based on their \
Usefulness and Relevance to the query.
Query:
who wrote Dracula?

Documents:
[1]. Bram Stoker wrote it.

[2]. A novel of 1897.



## Final Output Format
You must structure your response in exactly two parts: provide your brief reasoning process first, then output final \
scores in JSON format like below, with document IDs as string keys and integer scores as values for all 2 documents.\x20
The reasoning process and answer are enclosed within <reason> </reason> and <answer> </answer> tags, respectively. Do \
NOT output anything outside the specified tags. Follow this exact format:
<reason>\x20
[Analyze each document's usefulness and relevance to the query, explaining your scoring rationale]
</reason>
<answer>\x20
```json
{"[1]": 5, "[2]": 3, "[3]": 8}
```\x20
</answer>
<|im_end|>
<|im_start|>assistant
"""
VICUNA = (
    "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    f"and polite answers to the user's questions. USER: {NUMBERED.replace('[2] > [1]', '[4] > [2]')} ASSISTANT:["
)
SEEN: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"Qwen/Qwen3-Reranker-{size}": ("none", QWEN3) for size in ("0.6B", "4B", "8B")},
    "rryisthebest/First_Model": (
        "Zephyr",
        (f"<|system|>\n{RANK_LLM}</s>\n<|user|>\n{FIRST}</s>\n<|assistant|>\n[",),
    ),
    "castorini/first_mistral": ("Mistral", (f"<s>[INST] {RANK_LLM}.\n\n{FIRST}[/INST][",)),
    "castorini/rank_zephyr_7b_v1_full": (
        "Zephyr",
        (f"<|system|>\n{RANK_LLM}.</s>\n<|user|>\n{NUMBERED}</s>\n<|assistant|>\n[",),
    ),
    "castorini/rank_vicuna_7b_v1": ("none", (VICUNA,)),
    "liuwenhan/RankMistral100": ("Mistral", (f"<s>[INST] {RANK_LLM}.\n{NUMBERED} [/INST][",)),
    **{f"ielabgroup/Rank-R1-{size}-v0.1": ("Qwen2.5", (RANK_R1,)) for size in ("3B", "7B", "14B")},
    **{f"AQ-MedAI/Diver-GroupRank-{size}": ("Qwen2.5", (GROUP_RANK,)) for size in ("7B", "32B")},
    "castorini/rankllama-v1-7b-lora-passage": (
        "none",
        tuple(f"<s>query: who wrote Dracula?<s>document: {text}" for text in TEXTS),
    ),
    **{f"Alibaba-NLP/E2Rank-{size}": ("Qwen3", E2RANK) for size in ("0.6B", "4B", "8B")},
}
# BlockRank's prompts are templates with names of their own; MVP's is in the scorer that reads nothing else.
OTHERS = {"quicktensor/blockrank-msmarco-mistral-7b", "blockrank-qwen3-reranker-4b", "Jun421/MVP-base", "Jun421/MVP-3b"}


@cache
def tokenizer(chat: str) -> PreTrainedTokenizerFast:
    """A token a byte, `yes` and `no`, and the control tokens of all of these."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(name, special=False) for name in ("<think>", "</think>")])
    control = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]")
    backend.add_special_tokens([AddedToken(name, special=True) for name in control])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    made.chat_template = CHATS[chat]
    return made


@pytest.mark.parametrize("name", sorted(SEEN))
def test_the_model_sees_this_text(name: str) -> None:
    chat, expected = SEEN[name]
    scorer, spec = resolve_scorer(name)
    prompts = scorer.prompts(REQUEST, PromptWriter(PromptTokenizer(tokenizer(chat)), spec))
    texts = []
    for part in prompts.parts:
        first, *documents, last = (list(map(int, segment.ids)) for segment in part.segments)
        groups = [[one] for one in documents] if spec.pattern.kind == "block" else [documents]
        texts += [tokenizer(chat).decode([*first, *chain(*group), *last]) for group in groups]
    assert tuple(texts) == expected


def test_every_published_checkpoint_has_its_text() -> None:
    assert BUILT_IN_SPECS.keys() - OTHERS == SEEN.keys()
    for name in SEEN:
        scorer, spec = resolve_scorer(name)
        assert scorer == SCORERS.make(BUILT_IN_SPECS[name].scorer)
        assert scorer.adapted(spec) == spec
        assert spec.notes.endswith("The weights were not run here.")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, in which folders have the names of published checkpoints."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(name: str, kind: str, chat: str, **changes: Any) -> None:
    """A tiny causal model under a name, with weights so large that answers differ."""
    module = random_decoder(kind, head=True, **changes)
    for place, weight in module.named_parameters():
        weight.data *= 4 if weight.ndim > 1 and "embed" not in place else 1
    module.save_pretrained(name)
    tokenizer(chat).save_pretrained(name)


def plain(module: Any) -> Callable[..., Any]:
    """What a plain model of the library makes of a text, tokenised as a whole, and of tokens after it."""
    module.set_attn_implementation("eager")

    def outputs(text: str, *after: int) -> Any:
        ids = [*tokenizer("none").encode(text, add_special_tokens=False), *after]
        with torch.inference_mode():
            return module.eval()(torch.tensor([ids]), output_hidden_states=True)

    return outputs


def ranked(name: Any, **options: Any) -> list[float]:
    """Scores in the order of the request."""
    ranking = Ranker.from_pretrained(name, device="cpu", **options).rank(QUERY, list(TEXTS))
    return [entry.score for entry in sorted(ranking, key=lambda entry: entry.index)]


def ids_of(words: Iterable[str]) -> list[int]:
    return [tokenizer("none").encode(word, add_special_tokens=False)[0] for word in words]


@pytest.mark.parametrize("layers", LAYERS)
def test_qwen3_reranker_by_its_name_and_from_a_folder(there: Path, layers: Any) -> None:
    name = "Qwen/Qwen3-Reranker-0.6B"
    saved(name, "qwen3", "Qwen3", tie_word_embeddings=True)
    outputs = plain(AutoModelForCausalLM.from_pretrained(name))
    expected = [float(outputs(text).logits[0, -1, ids_of(("no", "yes"))].softmax(0)[1]) for text in QWEN3]
    assert abs(expected[0] - expected[1]) > 1e-3
    assert ranked(name, layers=layers) == pytest.approx(expected, abs=TOLERANCE["float32"])
    elsewhere = (there / name).rename(there / "downloaded")
    with pytest.raises(ModelError, match=r"has no blockrank.json"):
        ranked(elsewhere)
    assert ranked(elsewhere, spec=name) == pytest.approx(expected, abs=TOLERANCE["float32"])


def test_the_command_line_reads_a_folder_as_a_published_checkpoint(there: Path) -> None:
    name = "Qwen/Qwen3-Reranker-0.6B"
    saved("downloaded", "qwen3", "Qwen3")
    Path("texts").write_text("\n".join(TEXTS), encoding="utf-8")
    given = [QUERY, "--lines", "texts", "--model", "downloaded", "--json"]
    result = CliRunner().invoke(app, ["rank", *given, "--spec", name, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    found = {entry["index"]: entry["score"] for entry in json.loads(result.stdout)["results"]}
    assert [found[0], found[1]] == pytest.approx(ranked("downloaded", spec=name), abs=TOLERANCE["float32"])
    shown = CliRunner().invoke(app, ["inspect", *given, "--spec", name])
    assert "Judge whether the Document meets" in shown.stdout
    refused = CliRunner().invoke(app, ["rank", *given, "--spec", "nobody/nothing"])
    assert "spec 'nobody/nothing' is unknown; built in are ['AQ-MedAI/Diver-GroupRank-32B'" in failed(refused)


def test_another_instruction_takes_the_place_of_the_usual_one(there: Path) -> None:
    name, other = "Qwen/Qwen3-Reranker-4B", "Find the author"
    saved(name, "qwen3", "Qwen3")
    usual = "Given a web search query, retrieve relevant passages that answer the query"
    outputs = plain(AutoModelForCausalLM.from_pretrained(name))
    texts = [text.replace(usual, other) for text in QWEN3]
    expected = [float(outputs(text).logits[0, -1, ids_of(("no", "yes"))].softmax(0)[1]) for text in texts]
    scorer = f"pointwise:instruction={other}"
    assert ranked(name, scorer=scorer) == pytest.approx(expected, abs=TOLERANCE["float32"])
    template = BUILT_IN_SPECS[name].prompt
    bare = BUILT_IN_SPECS[name].changed(template={**template.__dict__, "instruction": ("<Query>: {query}",)})
    with pytest.raises(InputError, match="the checkpoint's own prompt has no place for another instruction"):
        ranked(name, scorer=scorer, spec=bare)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ["rryisthebest/First_Model", "castorini/first_mistral"])
def test_first_reads_the_letters_after_the_opening(there: Path, name: str, layers: Any) -> None:
    chat, (text,) = SEEN[name]
    saved(name, "mistral", chat)
    logits = plain(AutoModelForCausalLM.from_pretrained(name))(text).logits[0, -1]
    assert ranked(name, layers=layers) == pytest.approx(logits[ids_of("AB")].softmax(0).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "name", ["castorini/rank_zephyr_7b_v1_full", "castorini/rank_vicuna_7b_v1", "liuwenhan/RankMistral100"]
)
def test_listwise_models_write_the_likelier_id_first(there: Path, name: str) -> None:
    chat, (text,) = SEEN[name]
    saved(name, "llama" if "vicuna" in name else "mistral", chat)
    logits = plain(AutoModelForCausalLM.from_pretrained(name))(text).logits[0, -1]
    likelier = logits[ids_of("12")].argmax()
    assert ranked(name) == ([-1.0, -2.0] if likelier == 0 else [-2.0, -1.0])


@pytest.mark.parametrize("layers", LAYERS)
def test_e2rank_embeds_the_query_with_the_documents(there: Path, layers: Any) -> None:
    name = "Alibaba-NLP/E2Rank-0.6B"
    saved(name, "qwen3", "Qwen3", tie_word_embeddings=True)
    outputs = plain(AutoModelForCausalLM.from_pretrained(name))
    query_D, *documents = (F.normalize(outputs(text).hidden_states[-1][0, -1], dim=0) for text in E2RANK)
    expected = [float(vector_D @ query_D) for vector_D in documents]
    assert ranked(name, layers=layers) == pytest.approx(expected, abs=TOLERANCE["float32"])


def with_adapters(folder: str, base: Any, task: str, **settings: Any) -> None:
    """Adapters as peft writes them, beside nothing else; all that was trained is random."""
    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type=task, target_modules=names, **settings))
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = 0.3 * torch.randn_like(weight)
    adapted.save_pretrained(folder)


def scalar_adapters(name: str, base: str) -> None:
    """As RankLLaMA: a head with one output among the adapters of a causal model, which the config does not mention."""
    saved(base, "llama", "none")
    module = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    module.config.pad_token_id = None
    with_adapters(name, module, "SEQ_CLS")
    config = Path(name) / "adapter_config.json"
    values = {**json.loads(config.read_text()), "base_model_name_or_path": base, "modules_to_save": None}
    config.write_text(json.dumps(values))


def merged(kind: Any, base: str, name: str, **options: Any) -> Any:
    return PeftModel.from_pretrained(kind.from_pretrained(base, **options), name).merge_and_unload()


def scalar_reference(name: str, base: str) -> list[float]:
    module = merged(AutoModelForSequenceClassification, base, name, num_labels=1)
    module.config.pad_token_id = None
    outputs = plain(module)
    return [float(outputs(text).logits[0, 0]) for text in SEEN["castorini/rankllama-v1-7b-lora-passage"][1]]


@pytest.mark.parametrize("layers", LAYERS)
def test_rankllama_brings_its_head_among_the_adapters(there: Path, layers: Any) -> None:
    name, base = "castorini/rankllama-v1-7b-lora-passage", "meta-llama/Llama-2-7b-hf"
    scalar_adapters(name, base)
    expected = scalar_reference(name, base)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert ranked(name, layers=layers) == pytest.approx(expected, abs=TOLERANCE["float32"])


def test_adapters_that_name_their_head_are_read_alike(there: Path) -> None:
    name, base = "castorini/rankllama-v1-7b-lora-passage", "base"
    scalar_adapters(name, base)
    config = Path(name) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "modules_to_save": ["classifier", "score"]}))
    assert ranked(name) == pytest.approx(scalar_reference(name, base), abs=TOLERANCE["float32"])


def test_adapters_in_a_pickled_file_are_refused(there: Path) -> None:
    name = "castorini/rankllama-v1-7b-lora-passage"
    scalar_adapters(name, "base")
    (Path(name) / "adapter_model.safetensors").rename(Path(name) / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors; older files .* are not read, for they may"):
        ranked(name)


def test_adapters_of_the_hub_are_read_from_its_cache(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, base = "castorini/rankllama-v1-7b-lora-passage", "base"
    scalar_adapters(name, base)
    expected = scalar_reference(name, base)
    commit, cached = "0" * 40, there / "hub" / f"models--{name.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    Path(name).rename(cached / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(there / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ranked(name) == pytest.approx(expected, abs=TOLERANCE["float32"])


def test_rank_r1_writes_what_its_adapters_make_of_the_base(there: Path) -> None:
    name, base = "ielabgroup/Rank-R1-7B-v0.1", "Qwen/Qwen2.5-7B-Instruct"
    saved(base, "qwen2", "Qwen2.5")
    with_adapters(name, AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM")
    tokenizer("Qwen2.5").save_pretrained(name)
    assert json.loads((Path(name) / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    module = merged(AutoModelForCausalLM, base, name)
    assert written(name, RANK_R1) == greedy(module, RANK_R1)
    assert greedy(module, RANK_R1) != greedy(AutoModelForCausalLM.from_pretrained(base), RANK_R1)


def test_group_rank_writes_what_the_library_writes(there: Path) -> None:
    name = "AQ-MedAI/Diver-GroupRank-7B"
    saved(name, "qwen2", "Qwen2.5")
    assert written(name, GROUP_RANK) == greedy(AutoModelForCausalLM.from_pretrained(name), GROUP_RANK)


def written(name: str, text: str, count: int = 6) -> list[int]:
    """The first tokens that a ranker's model writes after its prompt, the most probable ones."""
    kind = BUILT_IN_SPECS[name].scorer
    ranker = Ranker.from_pretrained(name, device="cpu", scorer=f"{kind}:temperature=0,max_new_tokens={count}")
    assert isinstance(ranker.scorer, GenerationScorer)
    prompt = ranker.tokenise(REQUEST).only
    assert tokenizer("none").decode([int(i) for segment in prompt.segments for i in segment.ids]) == text
    [answer] = generate(ranker.model, [prompt], ranker.scorer.sampling, seeds=[0], max_tokens=4096)
    return list(answer.tokens)


def greedy(module: Any, text: str, count: int = 6) -> list[int]:
    """The same by the plain library, a forward a token."""
    outputs, ids = plain(module), list[int]()
    for _ in range(count):
        ids.append(int(outputs(text, *ids).logits[0, -1].argmax()))
    return ids
