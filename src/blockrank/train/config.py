"""The training configuration, as a TOML file: every key is checked, unknown ones are refused."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blockrank.configfile import build, read_toml
from blockrank.types import InputError


@dataclass(frozen=True)
class ModelConfig:
    """base: folder or hub name to start from. scorer: whose scores are trained, as `--scorer` takes it; None for the
    base's own. spec: overrides of its `RankSpec`. backend: attention backend, None for the device's default."""

    base: str
    scorer: str | None = None
    spec: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    sets: files or globs of training sets (`*.safetensors`, see `blockrank.train.sets`) or one JSONL of requests with
    `positives`. weights: share of a set by the stem of its file, relative to its number of queries (default 1).
    candidates: documents in a request. hard: how many of the negatives come from the mined ones; the rest is drawn at
    random from the same set. dense: whether negatives from dense retrieval are used too. drop_above: leave out a mined
    negative whose teacher score exceeds this share of the best positive's. max_document_tokens: stored documents are
    cut to this length. max_positives: how many of a query's positives enter a request. max_tokens: most tokens of the
    requests packed into one forward; a larger single request still runs, alone. curriculum: (share of the run,
    candidates) pairs: from that share of the steps on, a request has that number of documents.
    """

    sets: tuple[str, ...]
    weights: dict[str, float] = field(default_factory=dict)
    candidates: int = 16
    hard: int = 8
    dense: bool = True
    drop_above: float | None = None
    max_document_tokens: int = 160
    max_positives: int = 4
    max_tokens: int | None = None
    curriculum: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("candidates", 2), ("hard", 0), ("max_document_tokens", 1), ("max_positives", 1)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} must be at least {least}, not {getattr(self, name)}.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"data.max_tokens must be positive, not {self.max_tokens}.")
        if below := [(name, weight) for name, weight in self.weights.items() if weight < 0]:
            raise InputError("data.weights gives {!r} {}; a share is at least 0.".format(*below[0]))
        self._check_curriculum()

    def _check_curriculum(self) -> None:
        if any(len(pair) != 2 or pair[1] < 2 or pair[1] != int(pair[1]) for pair in self.curriculum):
            raise InputError(
                "data.curriculum must list pairs of a share of the run and a number of candidates, from 2."
            )
        shares = [pair[0] for pair in self.curriculum]
        if shares and (shares[0] != 0 or shares[-1] >= 1 or any(a >= b for a, b in itertools.pairwise(shares))):
            raise InputError("the shares in data.curriculum must begin with 0, increase, and stay below 1.")

    def candidates_at(self, step: int, steps: int) -> int:
        """Documents in a request at a step of a run."""
        reached = [int(count) for share, count in self.curriculum if step >= share * steps]
        return reached[-1] if reached else self.candidates


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts and their temperatures; a part of weight 0 is not computed.

    contrastive: "info_nce" (the paper) or "cross_entropy" on the shares themselves; "bce", binary cross-entropy, for
        scorers that score each document by itself.
    lm: weight of the LM loss on the answer. lm_loss: "plain", or "importance": tokens of the first ids count more, and
        those outside ids `lm_separator_weight`.
    answer_order: the ids of an answer in the order of the "candidates" (the released code), or by "relevance": the
        scores of the teacher "given", descending. answer_length: how many ids at most, positive or not; None lists the
        positives.
    distil: weight of the loss from teacher scores, `distil_loss`, a name in `losses.DISTIL_LOSSES`.
    teachers: weight of each teacher: "given" (scores or graded labels in the requests), "labels" (1 for a positive, 0
        for the others), "vectors" (a bi-encoder's, stored in training sets), "lexical" (BM25 over tokens of a training
        set), "model" (a frozen checkpoint, `teacher_checkpoint`, over the same prompt). Several are standardised within
        a request and added, so that the unit of `teacher_temperature` is one standard deviation; a single one is used
        as it is.
    teacher_temperature, distil_temperature: divide the teachers' scores and the student's log scores.
    orthogonality: weight of what keeps several signal tokens apart (`losses.orthogonality`); of attention alone.
    """

    contrastive: Literal["info_nce", "cross_entropy", "bce"] = "info_nce"
    contrastive_weight: float = 0.1
    temperature: float = 0.05
    lm: float = 1.0
    lm_loss: Literal["plain", "importance"] = "plain"
    lm_separator_weight: float = 1.0
    answer_order: Literal["candidates", "relevance"] = "candidates"
    answer_length: int | None = None
    distil: float = 0.0
    distil_loss: Literal[
        "list_kl",
        "margin_mse",
        "ranknet",
        "weighted_ranknet",
        "lambda",
        "lambda_rank",
        "listnet",
        "adr_mse",
        "bce",
        "bce_logits",
    ] = "list_kl"
    teachers: dict[str, float] = field(default_factory=dict)
    teacher_checkpoint: str | None = None
    teacher_temperature: float = 0.05
    distil_temperature: float = 1.0
    orthogonality: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "teacher_temperature", "distil_temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"loss.{name} must be positive, not {getattr(self, name)}.")
        for name in ("contrastive_weight", "lm", "distil", "orthogonality"):
            if getattr(self, name) < 0:
                raise InputError(f"loss.{name} must be at least 0, not {getattr(self, name)}.")
        if not 0 <= self.lm_separator_weight <= 1:
            raise InputError(f"loss.lm_separator_weight must lie in [0, 1], not {self.lm_separator_weight}.")
        if self.answer_length is not None and self.answer_length < 1:
            raise InputError(f"loss.answer_length must be at least 1, not {self.answer_length}.")
        if self.answer_order == "candidates" and (self.lm_loss == "importance" or self.answer_length is not None):
            name = "lm_loss = 'importance'" if self.lm_loss == "importance" else "answer_length"
            raise InputError(f"loss.{name} goes by the best ids of an answer: it needs answer_order = 'relevance'.")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of all weights. rank, alpha, dropout: of the adapters. targets: names of the linear
    layers that get one, all of them if empty. merge: save weights with the adapters added to them, not the adapters
    alone."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    merge: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank must be at least 1, not {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout must be in [0, 1), not {self.dropout}.")


@dataclass(frozen=True)
class DevConfig:
    """Evaluation during a run: the weights with the best score are kept.

    requests: JSONL of requests with `positives`, or a BEIR folder, of which `split` names the judgements and `run` the
    first stage: "bm25", or a TREC run in the folder. every: steps between evaluations. patience: evaluations without a
    better score after which the run ends. measure: decides which weights are best; higher is better. candidates: how
    many first documents of a query are ranked.
    """

    requests: str
    every: int = 500
    patience: int = 5
    measure: str = "nDCG@10"
    candidates: int = 100
    split: str = "dev"
    run: str = "bm25"

    def __post_init__(self) -> None:
        for name in ("every", "patience", "candidates"):
            if getattr(self, name) < 1:
                raise InputError(f"dev.{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. `trainer` is handed to `transformers.TrainingArguments` (learning_rate, max_steps, warmup_steps,
    bf16, fsdp, ...); per_device_train_batch_size is requests in a forward, under `data.max_tokens` at most."""

    output: str
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig | None = None
    dev: DevConfig | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed must lie in [0, 2^32), not {self.seed}.")

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a TOML file. Raises `InputError` naming the file and the key that is wrong."""
        raw = read_toml(path)
        try:
            config: TrainConfig = build(cls, raw, str(path))
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
        return config
