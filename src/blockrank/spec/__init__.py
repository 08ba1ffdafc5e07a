"""How a checkpoint is to be read: `RankSpec`, its parts, the prompts, and the specs of published checkpoints.

Literals that belong to one checkpoint (its layer, its query offset, its prompt) live here and nowhere else.
"""

from blockrank.spec.heads import HeadSet, head_set_names, prompt_hash
from blockrank.spec.parts import Attend, Exits, Limits, Pattern, Readout
from blockrank.spec.published import BARE_SPEC, BUILT_IN_SPECS
from blockrank.spec.rank_spec import SPEC_FILE, SPEC_VERSION, RankSpec, rewritten
from blockrank.spec.templates import TEMPLATES, Template

EMBEDDED = "embedded"  # the name of the embedded model, wherever a folder or a hub name can be

__all__ = [
    "BARE_SPEC",
    "BUILT_IN_SPECS",
    "EMBEDDED",
    "SPEC_FILE",
    "SPEC_VERSION",
    "TEMPLATES",
    "Attend",
    "Exits",
    "HeadSet",
    "Limits",
    "Pattern",
    "RankSpec",
    "Readout",
    "Template",
    "head_set_names",
    "prompt_hash",
    "rewritten",
]
