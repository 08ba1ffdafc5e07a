"""What of a checkpoint must be loaded for those who read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """What is read of a model; decides where it is cut when it is loaded.

    layers: whose queries and keys; none above the deepest of them and the spec's is loaded. logits: of the next token,
    which takes the language-model head and every layer. hidden: last hidden states, which take every layer. generation:
    tokens are written one after the other, which takes the head too, and layers that keep their keys and values.
    score: the head with one output of a checkpoint for sequence classification, and every layer. encoder_decoder: the
    two stacks of a T5, without its head, in the library's own layers and attention; no layout is packed for them.
    """

    layers: tuple[int, ...] = ()
    logits: bool = False
    hidden: bool = False
    generation: bool = False
    score: bool = False
    encoder_decoder: bool = False

    @property
    def head(self) -> bool:
        """Whether the language-model head is read."""
        return self.logits or self.generation

    @property
    def every_layer(self) -> bool:
        """Whether no layer can be left out."""
        return self.head or self.hidden or self.score or self.encoder_decoder

    def depth(self, layer: int) -> int:
        """How many layers must be there where not all are; `layer`: the spec's own."""
        return 1 + max(layer, *self.layers, 0)

    def joined(self, other: Needs, layer: int) -> Needs:
        """What serves both. layer: of the other's spec, which need not be the spec's that is loaded under."""
        assert self.score == other.score, "a model has one head"
        return Needs(
            tuple(sorted({*self.layers, *other.layers, layer})),
            self.logits or other.logits,
            self.hidden or other.hidden,
            self.generation or other.generation,
            self.score,
        )
