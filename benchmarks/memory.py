"""Memory of an evaluation over its queries: `blockrank eval` in a process of its own, watched from outside.

    python benchmarks/memory.py COLLECTION [--queries 1000] [--depth 100] [--out FILE]

Samples the resident memory (VmRSS) of the process and counts the rankings in its journal. A flat curve means that
nothing grows with the number of queries.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import environment, write_record

_INTERVAL = 0.5  # seconds between two samples
_POINTS = 40  # points of the curve that are kept


def watch(process: subprocess.Popen[bytes], folder: Path) -> list[tuple[float, int, float]]:
    """(seconds, rankings written, resident MiB) until the process ends."""
    start, samples = time.perf_counter(), []
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        resident = next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
        done = sum(path.read_bytes().count(b'"query_id":') for path in folder.rglob("*.journal.jsonl"))
        samples.append((round(time.perf_counter() - start, 1), done, round(resident, 1)))
        time.sleep(_INTERVAL)
    return samples


def main() -> None:
    """Evaluate, watch and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from blockrank.cli import main; main()", "eval", str(options.collection)]
        command += ["--output", folder, "--max-queries", str(options.queries), "--depth", str(options.depth)]
        command += ["--latency-queries", "0", "--no-report"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        samples = watch(process, Path(folder))
    if process.returncode:
        sys.exit(f"the evaluation failed with exit code {process.returncode}")
    ranking = [sample for sample in samples if 0 < sample[1] < samples[-1][1]]  # between the first shard and the last
    done, resident = (np.array(column) for column in zip(*((sample[1], sample[2]) for sample in ranking), strict=True))
    figures = {
        "queries": samples[-1][1],
        "peak_mib": max(sample[2] for sample in samples),
        "ranking_lowest_mib": float(resident.min()),
        "ranking_highest_mib": float(resident.max()),
        "ranking_mib_per_1000_queries": round(1000 * float(np.polyfit(done, resident, 1)[0]), 1),
    }
    sys.stderr.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    if options.out:
        keep = sorted({round(i) for i in np.linspace(0, len(samples) - 1, _POINTS)})
        curve = [dict(zip(("seconds", "queries", "mib"), samples[i], strict=True)) for i in keep]
        write_record(options.out, {**environment(), "collection": options.collection.name, **figures, "curve": curve})


if __name__ == "__main__":
    main()
