"""Encoders: texts to vectors, by models of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blockrank.keep.identity import digest, file_digest
from blockrank.types import MissingExtraError, ModelError

Floats = NDArray[np.float32]

_BATCH = 32  # texts of one forward
_FILES = (
    ".json",
    ".safetensors",
    ".bin",
    ".txt",
    ".model",
    ".py",
)  # files of an encoder that can change its vectors


class Encoder(Protocol):
    """Texts to vectors whose dot product is the score.

    identity: JSON-ready, equal for encoders with equal vectors; None if unknown.
    """

    @property
    def identity(self) -> object:
        """Distinguishes this encoder from others."""

    def queries(self, texts: Sequence[str]) -> Floats:
        """Vectors of queries, (Q, D)."""

    def documents(self, texts: Sequence[str]) -> Floats:
        """Vectors of documents, (N, D)."""


class SentenceEncoder:
    """A model of sentence-transformers: a folder or a hub name.

    Queries and documents get the prompts that the model defines for them. Vectors have unit length if the model uses
    cosine similarity; `score` is its similarity.
    """

    def __init__(self, name_or_path: str | Path, *, device: str | None = None, batch_size: int = _BATCH) -> None:
        """Load the model in float32. device: None chooses automatically.

        Raises `ModelError` where it cannot be loaded or uses a distance, `MissingExtraError` without the extra.
        """
        self._name, self._batch_size = str(name_or_path), batch_size
        self.model = load_sentence_model("SentenceTransformer", self._name, device)
        self.score = str(self.model.similarity_fn_name)
        if self.score not in ("cosine", "dot"):
            raise ModelError(
                f"{self._name} compares by {self.score!r}; retrieval needs an encoder of 'cosine' or 'dot'."
            )

    @property
    def identity(self) -> object:
        """Hash of the folder's files, or the revision of a hub name; None where there is none."""
        if Path(self._name).is_dir():
            return {"files": _files_hash(Path(self._name)), "score": self.score}
        revision = getattr(self.model[0].auto_model.config, "_commit_hash", None)
        return {"hub": self._name, "revision": revision, "score": self.score} if revision else None

    def queries(self, texts: Sequence[str]) -> Floats:
        """Vectors of queries, (Q, D)."""
        return self._encoded(self.model.encode_query, texts)

    def documents(self, texts: Sequence[str]) -> Floats:
        """Vectors of documents, (N, D)."""
        return self._encoded(self.model.encode_document, texts)

    def _encoded(self, encode: Callable[..., Any], texts: Sequence[str]) -> Floats:
        vectors_ND = encode(
            list(texts),
            batch_size=self._batch_size,
            show_progress_bar=False,
            normalize_embeddings=self.score == "cosine",
        )
        found: Floats = np.asarray(vectors_ND, dtype=np.float32)
        if not np.isfinite(found).all():
            raise ModelError(f"{self._name}: the vectors of some texts are not finite.")
        return found


def _files_hash(folder: Path) -> str:
    """Of names and contents of the files that make an encoder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _FILES)
    names = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in files]
    return digest(names)


def load_sentence_model(kind: str, name_or_path: str, device: str | None) -> Any:
    """A `SentenceTransformer` or a `CrossEncoder` of sentence-transformers, in float32.

    Raises `ModelError` where it cannot be loaded, `MissingExtraError` without the extra.
    """
    from blockrank.model import quiet_libraries

    try:
        import sentence_transformers
    except ImportError as error:
        raise MissingExtraError(
            f"bi-encoders and cross-encoders need sentence-transformers ({error.name} is missing): "
            "pip install 'blockrank[dense]'."
        ) from None
    with quiet_libraries():
        try:
            return getattr(sentence_transformers, kind)(
                name_or_path,
                device=device,
                model_kwargs={"dtype": "float32"},
                local_files_only=Path(name_or_path).is_dir(),
            )
        except Exception as error:  # missing folder, no network, broken weights: each library raises its own errors
            raise ModelError(f"{name_or_path}: sentence-transformers cannot load it: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, as a sentence's end."""
    return f"{str(error).strip() or type(error).__name__}".splitlines()[0].rstrip(".") + "."
