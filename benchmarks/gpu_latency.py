"""How fast a 7B ranks on one GPU, and on several: the runs of `blockrank bench` that belong together.

    python benchmarks/gpu_latency.py [--parts latency prune growth memory] [--devices 2] [--repeats 5] [--out FILE]

Random weights in Mistral-7B's shape, from token ids to the sorted order, medians of the repeats. Parts:

    latency  in bfloat16 and fp8, against the prefill of the same model with full attention in transformers,
             in bfloat16, all layers: a ranker that decodes needs at least that
    prune    in fp8, most documents leaving early
    growth   over the number of documents, in bfloat16
    memory   one request that fills most of a GPU, in fp8 and in bfloat16
    devices  one request on one and on several GPUs, in bfloat16; needs --devices

`--model tiny --device cpu` tries the script where there is no GPU: small requests, float32 in place of fp8.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from record import environment, write_record

from blockrank.bench import HF_FULL, KNOWN_SHAPES, BenchResult, BenchSettings, Shape, Timing, bench, grid, read_shapes

PARTS = ("latency", "prune", "growth", "memory", "devices")
# Names of results.
SIXTEEN, EIGHT, PRUNED, GROWTH = "latency, 16 bits", "latency, 8 bits", "prune, 8 bits", "growth"
MEMORY = ("memory, 8 bits", "memory, 16 bits")
ONE, SEVERAL = "devices, one", "devices, several"
MOST_PEER_REPEATS = 3  # full attention takes seconds a call
MOST_MEMORY_REPEATS = 2  # what counts is that it runs

Results = Mapping[str, BenchResult]


@dataclass(frozen=True)
class Plan:
    """Shapes of each part, and the schedule by which documents leave."""

    latency: Sequence[Shape]
    growth: Sequence[Shape]
    memory: Sequence[Shape]
    devices: Sequence[Shape]
    prune: tuple[tuple[int, float], ...]


LARGE = Plan(
    latency=read_shapes("100x96,100x160,500x96,500x208"),
    growth=grid((100, 200, 500, 1000), (96,)),
    memory=read_shapes("2000x200"),
    devices=read_shapes("500x208"),
    prune=((6, 0.5), (10, 0.25), (14, 0.125)),
)
TINY = Plan(
    latency=read_shapes("10x8,20x16"),
    growth=grid((10, 20, 40), (8,)),
    memory=read_shapes("100x8"),
    devices=read_shapes("20x16"),
    prune=((0, 0.5),),
)


def runs(options: argparse.Namespace) -> dict[str, BenchSettings]:
    """What the options ask for, by name of the result."""
    plan = TINY if options.model == "tiny" else LARGE
    kind, repeats = options.device.partition(":")[0], options.repeats
    eight = "fp8" if kind == "cuda" else "float32"
    places = [f"{kind}:{index}" for index in range(options.devices)]
    new = partial(BenchSettings, options.model, device=options.device, repeats=repeats)
    full = {"against": (HF_FULL,), "peer_repeats": min(repeats, MOST_PEER_REPEATS)}
    filling = partial(new, shapes=plan.memory, repeats=min(repeats, MOST_MEMORY_REPEATS))
    parts = {
        "latency": {
            SIXTEEN: new(shapes=plan.latency, dtype="bfloat16", **full),
            EIGHT: new(shapes=plan.latency, dtype=eight),
        },
        "prune": {PRUNED: new(shapes=plan.latency, dtype=eight, prune=plan.prune)},
        "growth": {GROWTH: new(shapes=plan.growth, dtype="bfloat16")},
        "memory": {name: filling(dtype=dtype) for name, dtype in zip(MEMORY, (eight, "bfloat16"), strict=True)},
        "devices": {
            ONE: new(shapes=plan.devices, dtype="bfloat16", device=places[0]),
            SEVERAL: new(shapes=plan.devices, dtype="bfloat16", device=",".join(places)),
        },
    }
    return {name: settings for part in PARTS if part in options.parts for name, settings in parts[part].items()}


# Tables


def tables(results: Results) -> Iterator[str]:
    """What was found, in Markdown."""
    if any(name in results for name in (SIXTEEN, EIGHT, PRUNED)):
        yield latency_table(results)
    if GROWTH in results:
        yield from growth_table(results[GROWTH])
    if MEMORY[0] in results:
        yield memory_table([results[name] for name in MEMORY])
    if ONE in results:
        yield devices_table(results[ONE], results[SEVERAL])


def latency_table(results: Results) -> str:
    """A row a shape; what was not measured stays empty."""
    dtypes = [str(results[name].model["dtype"]) for name in (EIGHT, PRUNED) if name in results]
    eight = dtypes[0] if dtypes else "fp8"
    header = ["shape", "full attention (transformers)", "blockrank bf16", "ratio", eight, "ratio", f"{eight} pruned"]
    shapes = next(results[name] for name in (SIXTEEN, EIGHT, PRUNED) if name in results).settings.shapes
    rows = []
    for index, shape in enumerate(shapes):
        found = {name: results[name].rows[index] for name in (SIXTEEN, EIGHT, PRUNED) if name in results}
        sixteen, small, pruned = (
            found[name].timing if name in found else Timing() for name in (SIXTEEN, EIGHT, PRUNED)
        )
        full = found[SIXTEEN].peers[HF_FULL] if SIXTEEN in found else Timing()
        cells = [times(shape), ms(full), ms(sixteen), ratio(full, sixteen), ms(small), ratio(full, small), ms(pruned)]
        rows.append(cells)
    return markdown(header, rows)


def growth_table(result: BenchResult) -> Iterator[str]:
    """A row a number of documents, and the exponents."""
    yield markdown(["shape", "ms"], [[times(row.shape), ms(row.timing)] for row in result.rows])
    for line in result.growth():
        exponent = "not measured" if line["blockrank"] is None else f"{line['blockrank']:.2f}"
        yield f"time ~ documents^x at {line['length']} tokens: x = {exponent}\n"


def memory_table(results: Sequence[BenchResult]) -> str:
    """A row a type of numbers."""
    rows = []
    for result in results:
        for row in result.rows:
            peak = "" if row.timing.peak_gib is None else f"{row.timing.peak_gib:.1f}"
            rows.append([times(row.shape), str(row.tokens), str(result.model["dtype"]), ms(row.timing), peak])
    return markdown(["shape", "tokens", "type", "ms", "peak GiB"], rows)


def devices_table(one: BenchResult, several: BenchResult) -> str:
    """One device and several, in the same run."""
    rows = [
        [times(a.shape), ms(a.timing), ms(b.timing), ratio(a.timing, b.timing)]
        for a, b in zip(one.rows, several.rows, strict=True)
    ]
    return markdown(["shape", "one device", f"{several.ceiling.devices} devices", "ratio"], rows)


def times(shape: Shape) -> str:
    """Documents x tokens."""
    return f"{shape.documents} x {shape.length}"


def ms(timing: Timing) -> str:
    """The median in milliseconds, or what went wrong."""
    return timing.error or ("" if timing.p50 is None else f"{timing.p50:.1f}")


def ratio(longer: Timing, shorter: Timing) -> str:
    """How many times as long the first takes."""
    return f"{longer.p50 / shorter.p50:.2f}" if longer.p50 and shorter.p50 else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all, devices only with --devices, if left out")
    parser.add_argument("--devices", type=int, default=1, help="GPUs of the part devices")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=sorted(KNOWN_SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.parts is None:
        options.parts = PARTS if options.devices > 1 else PARTS[:-1]
    if "devices" in options.parts and options.devices < 2:
        parser.error("the part devices needs --devices 2 or more")
    return options


def main() -> None:
    """Measure, write a dated record after each run, and print the tables."""
    options = read_options()
    about, results = environment(), {}
    for name, settings in runs(options).items():
        sys.stderr.write(f"{name}: {settings.command}\n")
        results[name] = bench(settings)
        if options.out:
            found = {name: result.to_dict() for name, result in results.items()}
            write_record(options.out, {**about, "results": found})
    sys.stdout.write("\n".join(tables(results)))


if __name__ == "__main__":
    main()
