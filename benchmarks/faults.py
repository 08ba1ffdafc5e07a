"""A server under faults and attacks, seen by its other clients.

    python benchmarks/faults.py [--only NAME ...] [--turns 1] [--out FILE]

For each attack of `fault_attacks.py` a `blockrank serve` of its own with the embedded model. While the attack runs, a
process asks `/livez` ten times a second and for a small ranking twice (`probes.py`). Recorded: the worst time and the
statuses of both, what the attack got, and resident memory before it, at its highest, and afterwards, once it has been
flat or for half a minute. An attack is held where `/livez` came within 1 s and every ranking within 3 s, all with 200,
and memory is back within 10 % (less what the cache of documents' keys grew by, which has a limit of its own). At last
SIGTERM while the server is busy: how long it takes to end at `--drain 3`.

Threads are those of the environment (OMP_NUM_THREADS). Everything runs on this machine and ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

from fault_attacks import ATTACKS, Attack, as_record, busy
from load import Server, serving
from record import environment, write_record

LIVEZ_S, GOOD_S, GROWTH_PERCENT = 1.0, 3.0, 10.0
_DRAIN_S = 3
_SETTLE_S = 30.0
_WARM = 30  # small requests before memory is read


def played(attack: Attack) -> dict[str, Any]:
    """One attack on a server of its own."""
    with serving(*attack.options, shell=attack.shell, reads_log=attack.reads_log) as server:
        for _ in range(_WARM):
            server.post({"query": "warm", "documents": ["one", "two", "three"]})
        cached = server.metric("blockrank_cache_bytes")
        server.close()
        before = settled(server, _SETTLE_S)
        highest, end = [before], Event()
        watcher = Thread(target=watch, args=(server, highest, end))
        watcher.start()
        probes = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("probes.py")), str(server.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1)
        started = time.perf_counter()
        statuses = attack.play(server.port)
        took = time.perf_counter() - started
        time.sleep(1)
        found = json.loads(probes.communicate("")[0])
        end.set()
        watcher.join()
        after = settled(server, _SETTLE_S, before)
        cached = (server.metric("blockrank_cache_bytes") - cached) / (1 << 20)
    growth = 100 * ((after - cached) / before - 1)
    quick = found["livez"]["worst_s"] <= LIVEZ_S and found["good"]["worst_s"] <= GOOD_S
    right = all(set(found[name]["statuses"]) == {"200"} for name in ("livez", "good"))
    return {
        "attack": attack.name,
        "options": [*attack.options, attack.shell] if attack.shell else [*attack.options],
        "seconds": round(took, 1),
        "answers": as_record(statuses),
        **found,
        "resident_mib": {"before": round(before), "highest": round(max(highest)), "after": round(after)},
        "more_keys_mib": round(cached, 1),
        "growth_percent": round(growth, 1),
        "held": quick and right and growth <= GROWTH_PERCENT,
    }


def watch(server: Server, found: list[float], end: Event) -> None:
    """Resident memory, five times a second."""
    while not end.wait(0.2):
        found.append(server.resident_mib())


def settled(server: Server, seconds: float, target: float | None = None) -> float:
    """Resident memory once it is flat (or near the target) for some seconds, or when the time is over."""
    end, last = time.monotonic() + seconds, list[float]()
    while time.monotonic() < end:
        last = [*last[-9:], server.resident_mib()]
        is_flat = len(last) == 10 and max(last) - min(last) < 0.01 * max(last)
        if is_flat and (target is None or last[-1] <= (1 + GROWTH_PERCENT / 200) * target):
            break
        time.sleep(0.5)
    return statistics.median(last)


def end_while_busy() -> dict[str, Any]:
    """SIGTERM while requests are prepared and ranked."""
    with serving("--drain", str(_DRAIN_S), "--timeout", "30") as server:
        answers: list[Any] = []
        thread = Thread(target=lambda: answers.append(busy(server.port)))
        thread.start()
        time.sleep(1)
        started = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
        took = time.perf_counter() - started
        thread.join()
    return {"drain_s": _DRAIN_S, "seconds": round(took, 1), "exit_code": code, "answers": as_record(answers[0])}


def row(found: dict[str, Any]) -> str:
    """A line for people."""
    memory = found["resident_mib"]
    return (
        f"{'held' if found['held'] else 'NOT HELD':9}{found['attack']:34} livez {found['livez']['worst_s']:6.2f} s  "
        f"good {found['good']['worst_s']:6.2f} s  {memory['before']} > {memory['highest']} > {memory['after']} MiB  "
        f"good {found['good']['statuses']} attack {found['answers']}\n"
    )


def main() -> None:
    """Play what was asked for, and write a dated record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="attacks whose name begins so")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    content: dict[str, Any] = {**environment(), "threads": os.environ.get("OMP_NUM_THREADS", "all cores")}
    content["attacks"] = []
    chosen = [each for each in ATTACKS if not options.only or each.name.startswith(tuple(options.only))]
    for attack in [attack for attack in chosen for _ in range(options.turns)]:
        load = os.getloadavg()[0]
        content["attacks"].append({**played(attack), "load_before": round(load, 1)})
        sys.stdout.write(row(content["attacks"][-1]))
        sys.stdout.flush()
        if options.out:
            write_record(options.out, content)
    if not options.only or "end" in options.only:
        content["end_while_busy"] = end_while_busy()
        sys.stdout.write(f"SIGTERM while busy: {content['end_while_busy']}\n")
    if options.out:
        write_record(options.out, content)


if __name__ == "__main__":
    main()
