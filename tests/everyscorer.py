"""Every built-in scorer over one tiny model whose answers mean nothing, and every strategy with small settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from string import ascii_uppercase
from typing import Any

import torch
from conftest import CPU, random_decoder
from labelled import CHAT
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from blockrank import FakeRanker, Ranker
from blockrank.attention import get_backend
from blockrank.decode import Generated
from blockrank.layout import TokenisedRequest
from blockrank.model import LoadedModel, RankModel
from blockrank.scorers import SCORERS, GroupwiseScorer, ReasonedChoiceScorer, Scored, Scorer
from blockrank.scorers.groupwise import BEST
from blockrank.spec import BARE_SPEC, RankSpec
from blockrank.strategies import STRATEGIES

END = "<|im_end|>"  # the control token of the tokenizer
QUERY = "which fox is quicker?"
TEXTS = ["red fox 12.", "Der Fuchs: springt", "", "lazy dogs, 1.234 of them;", "oak", "ash (tree)", " \n", "fox"]
# Settings that suit the tokenizer, and few tokens where a model writes.
SCORER_TEXTS = {
    "attention": "attention",
    "decode": "decode:beams=2",
    "embedding": "embedding:top=3,end=" + END,
    "first_token": "first_token",
    "groupwise": "groupwise:max_new_tokens=3",
    "icr": "icr",
    "listwise": "listwise",
    "pointwise": "pointwise:yes=y,no=n",
    "reasoned_choice": "reasoned_choice:temperature=0.7,max_new_tokens=1",
    "scalar": f"scalar:start={END},end={END}",
    "setwise": "setwise",
}
STRATEGY_TEXTS = {
    "adaptive": "adaptive:budget=5,size=3",
    "blocks": "blocks:size=3",
    "bubble": "bubble:size=3,top=2",
    "cascade": "cascade:keep=3",
    "fusion": "fusion",
    "heap": "heap:size=3,top=2",
    "multipass": "multipass:size=4,step=2,freeze=1",
    "partition": "partition:size=3,repeats=2",
    "sliding": "sliding:size=4,step=2",
    "topdown": "topdown:size=3,pivot=2",
}
OTHER_MODELS = {"multi_view"}  # of an encoder-decoder, which none of the others reads: its own tests have all of this
WRITERS = ("groupwise", "reasoned_choice")  # what these read is text that the model writes freely
# How a checkpoint is read that says so itself.
TRAINED = RankSpec.of(layer=1, template="blockrank", signal_tokens=2, query_offset=1024)


def built_in_scorers() -> set[str]:
    """Names of this package's own scorers."""
    made = {name: type(SCORERS.make(name)) for name in SCORERS.names}
    return {name for name, kind in made.items() if kind.__module__.startswith("blockrank.")} - OTHER_MODELS


def built_in_strategies() -> set[str]:
    """Names of this package's own strategies."""
    made = {name: type(STRATEGIES.make(name, FakeRanker())) for name in STRATEGIES.names}
    return {name for name, kind in made.items() if kind.__module__.startswith("blockrank.")}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the words of the longest prompt, which is short in its tokens; a letter with the space before it is
    one of them, as in most."""
    template = GroupwiseScorer().template
    letters = [f" {letter}" for letter in ascii_uppercase]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=510, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([template.system, *template.instruction, *template.query, *letters * 50], trainer)
    backend.add_special_tokens([AddedToken(END, special=True)])
    found = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=END, eos_token=END)
    found.chat_template = CHAT
    return found


@cache
def weights() -> LoadedModel:
    """One model for all, with a language-model head and a head of one output; its answers are far from even."""
    module: Any = random_decoder("qwen3", 2, head=True, tie_word_embeddings=False)
    for name, weight in module.named_parameters():
        weight.data *= 4 if weight.ndim > 1 and "embed" not in name else 1
    module.lm_head.weight.data *= 4
    module.score = torch.nn.Linear(module.config.hidden_size, 1)
    loaded = LoadedModel(module.eval(), tokenizer())
    loaded.fuse()
    return loaded


@dataclass(frozen=True)
class Grader(GroupwiseScorer):
    """Takes the tokens that the model writes for grades: some are none, and some documents have none."""

    def read(self, answer: Generated, prompt: TokenisedRequest) -> Scored:
        grades = {f"[{place}]": token % (BEST + 2) for place, token in enumerate(answer.tokens, start=1)}
        return super().read(replace(answer, text=f"<answer>{json.dumps(grades)}</answer>"), prompt)


@dataclass(frozen=True)
class Chooser(ReasonedChoiceScorer):
    """Takes the first token that the model writes for its choice, which may be of no document."""

    def read(self, answer: Generated, prompt: TokenisedRequest) -> Scored:
        choice = answer.tokens[0] % (len(prompt.documents) + 2)
        return super().read(replace(answer, text=f"<answer>[{choice}]</answer>"), prompt)


def scorer_of(text: str) -> Scorer:
    """A scorer; one that reads what the model writes finds some answer in any text."""
    made = SCORERS.make(text)
    if isinstance(made, GroupwiseScorer):
        return Grader(**vars(made))
    return Chooser(**vars(made)) if isinstance(made, ReasonedChoiceScorer) else made


@cache
def ranker_of(text: str) -> Ranker:
    """The model read by a scorer with settings."""
    scorer = scorer_of(text)
    spec = BARE_SPEC if scorer.zero_shot else TRAINED
    return Ranker(RankModel(weights(), spec, get_backend("sdpa", CPU, torch.float32)), scorer)


def ranker(name: str) -> Ranker:
    """The model read by a scorer, by its name."""
    return ranker_of(SCORER_TEXTS[name])
