"""Reinforcement learning of a ranker that writes its answer: GRPO by TRL, with the rewards of Rank-R1 and GroupRank.

    python recipes/grpo/train.py --model FOLDER --requests requests.jsonl --out OUT [--scorer groupwise]
                                 [--settings grpo.toml] [--graded]

The result holds adapters beside `blockrank.json`, and `blockrank rank --model OUT` reads it. Prompts are those that the
scorer ranks with, as text; TRL tokenises them as one, where a ranker tokenises each segment.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockrank import InputError, MissingExtraError
from blockrank.configfile import read_toml
from blockrank.data import json_objects, named, training_request
from blockrank.layout import PromptTokenizer
from blockrank.scorers import GroupwiseScorer, PromptWriter, ReasonedChoiceScorer, Scorer, resolve_scorer
from blockrank.spec import RankSpec
from blockrank.train.rewards import choice_rewards, grades_rewards

REWARDS: dict[type[Scorer], Any] = {ReasonedChoiceScorer: choice_rewards, GroupwiseScorer: grades_rewards}
# Rank-R1's settings (its released code); [settings] replaces them one by one.
SETTINGS = {"learning_rate": 1e-5, "num_generations": 8, "max_completion_length": 2048, "logging_steps": 10}
ADAPTERS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}

log = logging.getLogger("recipes.grpo")


def import_trl() -> Any:
    """TRL. Raises `MissingExtraError` without it."""
    try:
        import trl
    except ImportError as error:
        raise MissingExtraError("GRPO needs TRL: pip install 'blockrank[grpo]'.") from error
    return trl


def rows_of(path: Path, scorer: Scorer, spec: RankSpec, tokenizer: Any, *, graded: bool) -> Iterator[dict[str, Any]]:
    """For each training request its prompt and the relevance of the documents in it: 1 for positives and 0 for the
    others, or with `graded` the teacher's scores."""
    writer = PromptWriter(PromptTokenizer(tokenizer), spec)
    for line, value in json_objects(path):
        where = f"{path}:{line}"
        with named(where):
            item = training_request(value, str(line))
        labels = [float(place in item.positives) for place in range(len(item.request.candidates))]
        if graded:
            if item.teacher is None or min(item.teacher) < 0:
                raise InputError(f"{where}: with --graded it needs teacher, a score from 0 for each document.")
            labels = list(item.teacher)
        prompt = scorer.prompts(item.request, writer).only
        text = tokenizer.decode([int(token) for segment in prompt.segments for token in segment.ids])
        if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # TRL's call writes it again
            text = text.removeprefix(tokenizer.bos_token)
        yield {"prompt": text, "relevance": [labels[index] for index in prompt.indices]}


def train(model: str, requests: Path, out: Path, scorer: str, settings: dict[str, Any], *, graded: bool = False) -> Any:
    """Run GRPO and save what it made; returns the trainer."""
    trl = import_trl()
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen, spec = resolve_scorer(model, scorer)
    if type(chosen) not in REWARDS:
        raise InputError(f"there is a reward for {[kind.name for kind in REWARDS]}, not for {scorer!r}.")
    spec, tokenizer = spec.changed(scorer=scorer), AutoTokenizer.from_pretrained(model)
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=tokenizer,
        reward_funcs=REWARDS[type(chosen)],
        args=trl.GRPOConfig(output_dir=str(out), report_to="none", **{**SETTINGS, **settings.get("trainer", {})}),
        train_dataset=Dataset.from_list(list(rows_of(requests, chosen, spec, tokenizer, graded=graded))),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **{**ADAPTERS, **settings.get("lora", {})}),
    )
    trainer.train()
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    spec.save(out)
    return trainer


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="instruct model to start from")
    parser.add_argument("--requests", type=Path, required=True, help="JSON lines of training requests")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scorer", default="reasoned_choice", help="reasoned_choice or groupwise, with its settings")
    parser.add_argument("--settings", type=Path, help="TOML: [trainer] of trl.GRPOConfig, [lora] of peft.LoraConfig")
    parser.add_argument("--graded", action="store_true", help="relevance is the teacher's score of each document")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    settings = read_toml(args.settings) if args.settings else {}
    train(args.model, args.requests, args.out, args.scorer, settings, graded=args.graded)
    log.info("saved %s", args.out)


if __name__ == "__main__":
    main()
