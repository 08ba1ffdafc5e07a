"""What the commands share: errors as one sentence, logs on standard error, data on standard output."""

from __future__ import annotations

import errno
import logging
import math
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from blockrank.cli.streams import tell
from blockrank.errors import is_out_of_memory
from blockrank.keep.files import atomic_file
from blockrank.types import BlockrankError, InputError, ServedRanker

if TYPE_CHECKING:
    from blockrank.ranker import Ranker
    from blockrank.scorers.checking import RequestCheck
    from blockrank.strategies.checking import StrategyCheck

_ARGUMENTS = {"long_queries='cut'": "cut_queries", "lower max_segment_tokens": "max_segment_tokens"}  # words -> option
_REPLACED = {"--decode": "--scorer decode", "--beams": "--scorer decode:beams=N"}  # options of earlier versions
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_INVISIBLE = frozenset("\u200c\u200d\u200e\u200f\u061c")  # joiners, and marks of direction that reach no further
_LEFT_OUT = frozenset("\u00ad\u200b\u2060\ufeff")  # places where a line may or may not break


def _checked_scorer(given: str | None) -> str | None:
    """A scorer that there is, with settings that it has; a usage error otherwise. Imports torch where one is named."""
    if given is not None:
        from blockrank.scorers import SCORERS

        try:
            SCORERS.make(given)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None
    return given


def _checked_scorers(given: list[str] | None) -> list[str] | None:
    for item in given or ():
        _checked_scorer(item)
    return given


def _checked_strategy(given: str | None) -> str | None:
    """Strategies that there are, with settings that they take; a usage error otherwise. Imports torch where one is
    named."""
    if given is not None:
        from blockrank.fake import FakeRanker
        from blockrank.strategies import in_strategies

        try:
            in_strategies(FakeRanker(), given)  # in place of the ranker, which takes time to load
        except InputError as error:
            raise typer.BadParameter(str(error)) from None
    return given


def _checked_strategies(given: list[str] | None) -> list[str] | None:
    for item in given or ():
        _checked_strategy(item)
    return given


ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Folder with blockrank.json, or a hub name; the embedded model if left out."),
]
SpecOption = Annotated[
    str | None,
    typer.Option(
        "--spec",
        metavar="NAME",
        help="Read the model as this published checkpoint, such as Qwen/Qwen3-Reranker-0.6B; by its own name or "
        "blockrank.json if left out.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, or several with commas; chosen if left out.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16, int8 (CPU) or fp8 (GPU); chosen if left out.")
]
BackendOption = Annotated[str | None, typer.Option("--backend", help="Attention backend; chosen if left out.")]
SegmentOption = Annotated[
    int | None,
    typer.Option(
        "--max-segment-tokens", min=1, help="Cut documents to this many tokens; the model's limit if left out."
    ),
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        "--pattern", metavar="block|causal", help="Attention pattern; causal is full attention, the baseline."
    ),
]
ScorerOption = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        metavar="NAME[:KEY=VALUE,...]",
        callback=_checked_scorer,
        help="How documents are scored: attention (if left out), decode:beams=10, or one that is installed.",
    ),
]
ScorersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer",
        metavar="NAME[:KEY=VALUE,...]",
        callback=_checked_scorers,
        show_default=False,
        help="How documents are scored, as in other commands; repeatable. The model's own scorer if left out.",
    ),
]
_STRATEGIES_HELP = (
    "Rank few candidates at once: sliding:size=20,step=10, heap:top=10, partition, topdown ...; all at once: full, or "
    "left out. One inside the other: sliding+cascade:keep=50, of which each asks the one before it."
)
StrategyOption = Annotated[
    str | None,
    typer.Option("--strategy", metavar="NAME[:KEY=VALUE,...][+...]", callback=_checked_strategy, help=_STRATEGIES_HELP),
]
StrategiesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        metavar="NAME[:KEY=VALUE,...][+...]",
        callback=_checked_strategies,
        show_default=False,
        help=f"{_STRATEGIES_HELP} Repeatable: each is compared.",
    ),
]
CutQueriesOption = Annotated[
    bool, typer.Option("--cut-queries", help="Cut queries over the model's limit instead of refusing them.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log progress to standard error.")]


class Command(TyperCommand):
    """A command whose numbers are numbers: what is not finite is no size, share or time. Of options that are gone it
    says what is in their place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        if any("--scorer" in param.opts for param in self.params):
            for given in takewhile(lambda item: item != "--", args):
                if now := _REPLACED.get(given.partition("=")[0]):
                    raise typer.BadParameter(f"{given} is now {now}.")
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """What was given on the command line, read."""
        ctx = super().make_context(*args, **kwargs)
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise typer.BadParameter(f"{value} is not a finite number.", param_hint=param.opts[0])
        return ctx


class Commands(TyperGroup):
    """The command group: a failure is one sentence on standard error and exit code 1, never a traceback."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Read the options before the command."""
        with _sentences():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with _sentences(lambda sentence: self._in_options(sentence, ctx)):
            return super().invoke(ctx)

    def _in_options(self, sentence: str, ctx: Any) -> str:
        """A sentence in the terms of the command line: the option, not the argument of Python, where there is one."""
        options = _options(self.get_command(ctx, ctx.invoked_subcommand or ""))
        for words, name in _ARGUMENTS.items():
            if name in options:
                sentence = sentence.replace(words, options[name])
        return sentence


@contextmanager
def _sentences(worded: Callable[[str], str] = str) -> Iterator[None]:
    """What fails in the block is reported in one sentence; worded: puts one into the terms of the command line."""
    try:
        yield
    except BlockrankError as error:
        _fail(worded(str(error)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("the device's memory does not suffice: take fewer or shorter documents, or --dtype bfloat16.")
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader has left: typer ends quietly
            raise
        where = error.filename or "input or output failed"
        _fail(f"{where}: {error.strerror}." if error.strerror else f"{error}.")


def _fail(sentence: str) -> NoReturn:
    tell(f"blockrank: error: {sentence}")
    raise typer.Exit(1)


def _options(command: Any) -> dict[str, str]:
    """The options of a command, and of those under it, by their names in Python."""
    under = getattr(command, "commands", {}).values()
    options = {name: option for item in under for name, option in _options(item).items()}
    return options | {item.name: item.opts[0] for item in getattr(command, "params", ())}


def note(sentence: str) -> None:
    """Tell the user something on standard error, apart from the data."""
    tell(f"blockrank: {sentence}")


@contextmanager
def logs(verbose: bool, level: int = logging.WARNING) -> Iterator[None]:
    """Send the package's log to standard error: from `level` on, all of it where verbose.

    Warnings about single documents are held back unless verbose: commands sum them up.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    handler.addFilter(lambda record: verbose or record.name != "blockrank.ranker")
    logger = logging.getLogger("blockrank")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def load_plain_ranker(
    model: str | None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    max_tokens: int | None = None,
    max_segment_tokens: int | None = None,
    cut_queries: bool = False,
    pattern: str | None = None,
    scorer: str | None = None,
    spec: str | None = None,
    probe: bool = True,
) -> Ranker:
    """The ranker that the options ask for, without a strategy. Imports torch."""
    from blockrank.ranker import DEFAULT_MAX_TOKENS, Ranker

    ranker = Ranker.from_pretrained(
        model,
        spec=spec,
        device=device,
        dtype=dtype,
        backend=backend,
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
        probe=probe,
        scorer=scorer,
    )
    changes = spec_changes(max_segment_tokens=max_segment_tokens, cut_queries=cut_queries, pattern=pattern)
    return ranker.with_spec(**changes) if changes else ranker


def load_ranker(model: str | None, *, strategy: str | None = None, **options: Any) -> ServedRanker:
    """The ranker that the options ask for, see `load_plain_ranker`, asked by the strategies that they name."""
    from blockrank.strategies import in_strategies

    return in_strategies(load_plain_ranker(model, **options), strategy)


def named_strategy(strategy: str | None) -> dict[str, Any]:
    """The option as one of `load_ranker`, where it names any: what is kept of results without one stays what it was,
    so that those of earlier versions are gone on with."""
    if strategy is None:
        return {}
    from blockrank.strategies import FULL

    return {} if strategy.strip() == FULL else {"strategy": strategy}


def named_spec(spec: str | None) -> dict[str, Any]:
    """The option as one of `load_ranker`, where it is given; see `named_strategy`."""
    return {} if spec is None else {"spec": spec}


def spec_changes(
    *, max_segment_tokens: int | None = None, cut_queries: bool = False, pattern: str | None = None, **others: Any
) -> dict[str, object]:
    """The fields of a spec that options change; other options, those of `load_ranker`, change none."""
    del others
    changes: dict[str, object] = {"max_segment_tokens": max_segment_tokens} if max_segment_tokens else {}
    if cut_queries:
        changes["long_queries"] = "cut"
    if pattern is not None:
        changes["pattern"] = pattern
    return changes


def load_check(
    model: str | None, *, scorer: str | None = None, strategy: str | None = None, **options: Any
) -> RequestCheck | StrategyCheck:
    """What tells, without the weights, whether `load_ranker` with these options gives a ranker that takes a
    request."""
    from blockrank.scorers.checking import RequestCheck

    check = RequestCheck.load(model, spec_changes(**options), scorer, options.get("spec"))
    if strategy is None or not named_strategy(strategy):
        return check
    from blockrank.strategies.checking import StrategyCheck

    return StrategyCheck(check, strategy)


@contextmanager
def data_stream(output: Path | None) -> Iterator[BinaryIO]:
    """Where data goes: a file that appears whole or not at all, or standard output, UTF-8 whatever the locale."""
    if output is not None:
        with atomic_file(output) as stream:
            yield stream
    else:
        standard = typer.get_binary_stream("stdout")
        yield standard
        standard.flush()


def write_data(text: str) -> None:
    """One piece of data on standard output, with a line end."""
    with data_stream(None) as stream:
        stream.write((text + "\n").encode())


def terminal(output: Path | None = None) -> Console | None:
    """The terminal that data goes to, None where it goes to a file or a pipe."""
    console = Console()
    return console if output is None and console.is_terminal else None


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), width: int | None = None) -> list[str]:
    """Rows of cells as lines of aligned columns, two spaces apart; `right` are columns set flush right.

    Lines over `width` columns of a terminal are cropped.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        gaps = [" " * (size - cell_len(cell)) for cell, size in zip(row, widths, strict=True)]
        cells = [
            gap + cell if at in right else cell + gap for at, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line if width is None or cell_len(line) <= width else set_cell_size(line, width - 1) + ELLIPSIS)
    return lines


def preview(text: str, length: int = 100) -> str:
    """The beginning of a text on one line, without control characters."""
    line = printable(" ".join(text[: 4 * length].split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + ELLIPSIS


def printable(text: str) -> str:
    """A text whose control characters are replaced: a terminal would obey them.

    What is invisible and part of how a script is written stays, or is left out where terminals would show it.
    """
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character in _INVISIBLE:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return "" if character in _LEFT_OUT else "\N{REPLACEMENT CHARACTER}"
