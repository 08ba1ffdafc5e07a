"""The server under load, in a process of its own, with the embedded model.

    python benchmarks/serve_load.py soak overload batching latency [--requests 10000] [--seconds 30] [--out FILE]

soak: mixed requests from 32 clients, some of them wrong; every answer is compared with the ranker's own. Counts what
is wrong or lost, and the growth of resident memory after the first fifth. overload: 20 documents a request at four
times the rate that one client reaches, with a queue of `--queue` requests. batching: requests a second at 32 clients
with and without requests sharing forwards, both servers in turn. latency: what HTTP adds to the call in the process,
20 documents, both in turn, and what of an answer's time was neither tokenising nor forward (by its Server-Timing).
Threads are those of the environment (OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from load import Answer, Server, closed_loop, milliseconds, open_loop, percentile, request, serving, words
from record import environment, write_record
from tqdm import tqdm

from blockrank import Ranker, RankRequest

CLIENTS = 32
_TOLERANCE = 1e-4
_POOL = 1000  # distinct requests of a soak
_NO_CACHE = ("--cache-mib", "0")
# Of a soak: share, documents, words.
_MIX = ((0.8, 3, 12), (0.15, 10, 15), (0.01, 50, 20))
_WRONG: tuple[tuple[Any, int], ...] = (
    ({"query": "q", "documents": []}, 422),
    ({"query": "q", "documents": ["a"], "top_k": 1}, 422),
    ({"query": "q", "documents": ["a"], "model": "another"}, 404),
    ({"query": "q", "documents": ["a", ""]}, 422),
)


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    generator = random.Random(0)
    bodies = mixed(generator, _POOL)
    rankings = Ranker.from_pretrained(device="cpu").rank_many(
        RankRequest(body["query"], body["documents"], str(i)) for i, body in enumerate(bodies)
    )
    expected = [{entry.index: entry.score for entry in ranking} for ranking in rankings]
    picks = [generator.randrange(_POOL) if generator.random() < 0.96 else None for _ in range(options.requests)]
    bar, resident = tqdm(total=options.requests, desc="soak", disable=None), list[tuple[int, float]]()

    def send(number: int) -> str:
        bar.update()
        if number % max(options.requests // 200, 1) == 0:
            resident.append((number, server.resident_mib()))
        pick = picks[number]
        try:
            if pick is None:
                body, status = _WRONG[number % len(_WRONG)]
                return "right" if server.post(body).status == status else "wrong"
            return judged(server.post(bodies[pick], request_id=f"r{number}"), expected[pick], f"r{number}")
        except OSError:
            return "lost"

    with serving("--cache-mib", "16", "--max-queue-tokens", "10000000") as server:
        results, seconds = closed_loop(options.requests, CLIENTS, send)
    bar.close()
    fifth = options.requests // 5
    early = [mib for number, mib in resident if fifth <= number < 2 * fifth]
    late = [mib for number, mib in resident if number >= 4 * fifth]
    return {
        "requests": options.requests,
        "clients": CLIENTS,
        "right": results.count("right"),
        "wrong": results.count("wrong"),
        "lost": results.count("lost"),
        "seconds": round(seconds, 1),
        "requests_per_second": round(options.requests / seconds, 1),
        "resident_mib": {
            "second_fifth": round(statistics.mean(early), 1),
            "last_fifth": round(statistics.mean(late), 1),
        },
        "resident_mib_curve": [
            [number, round(mib)] for number, mib in sorted(resident)[:: max(len(resident) // 20, 1)]
        ],
        "growth_percent": round(100 * (statistics.mean(late) / statistics.mean(early) - 1), 2),
    }


def mixed(generator: random.Random, count: int) -> list[dict[str, Any]]:
    """Requests of a soak's shapes."""
    shapes = generator.choices([kind[1:] for kind in _MIX], [kind[0] for kind in _MIX], k=count)
    return [request(generator, *shape) for shape in shapes]


def judged(answer: Answer, expected: dict[int, float], request_id: str) -> str:
    """Whether an answer is the request's own: its id, every document once, its scores, in their order."""
    if answer.status != 200 or answer.body["id"] != request_id:
        return "wrong"
    found = [(item["index"], item["relevance_score"]) for item in answer.body["results"]]
    scores = [score for _, score in found]
    right = sorted(index for index, _ in found) == sorted(expected) and scores == sorted(scores, reverse=True)
    right = right and all(abs(score - expected[index]) < _TOLERANCE for index, score in found)
    return "right" if right else "wrong"


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    generator = random.Random(1)
    bodies = [request(generator, 20, options.words) for _ in range(64)]
    tokens = max(Ranker.from_pretrained(device="cpu").tokenise(RankRequest(**body)).length for body in bodies)

    def send(number: int) -> Answer:
        return server.post(bodies[number % len(bodies)])

    with serving(*_NO_CACHE, "--max-queue-tokens", str(int(options.queue * tokens))) as server:
        closed_loop(5, 1, send)
        alone, seconds = closed_loop(max(20, options.requests // 100), 1, send)
        rate = 4 * len(alone) / seconds
        answers = open_loop(rate, options.seconds, send, clients=4 * CLIENTS)
        after = [send(0).status for _ in range(3)]
    admitted = [answer.seconds for answer in answers if answer.status == 200]
    unloaded = milliseconds([answer.seconds for answer in alone])
    statuses = {str(status): sum(answer.status == status for answer in answers) for status in (200, 429)}
    retry = [int(answer.headers["retry-after"]) for answer in answers if answer.status == 429]
    return {
        "tokens_of_a_request": tokens,
        "queue_requests": options.queue,
        "offered_per_second": round(rate, 1),
        "seconds": options.seconds,
        "statuses": statuses,
        "other_statuses": sorted({answer.status for answer in answers} - {200, 429}),
        "unloaded": unloaded,
        "admitted": milliseconds(admitted),
        "refused": milliseconds([answer.seconds for answer in answers if answer.status == 429]),
        "p99_ratio": round(milliseconds(admitted)["p99_ms"] / unloaded["p99_ms"], 2),
        "served_of_capacity": round(len(admitted) / options.seconds / (rate / 4), 2),
        "retry_after_s": [min(retry), max(retry)] if retry else [],
        "statuses_afterwards": after,
    }


def batching(options: argparse.Namespace) -> list[dict[str, Any]]:
    """See the module."""
    generator = random.Random(2)
    pool = [words(generator, 60) for _ in range(200)]

    def hot() -> dict[str, Any]:
        return {"query": words(generator, 6), "documents": generator.sample(pool, 10)}

    cases = {
        "one new document of 12 words": (_NO_CACHE, [request(generator, 1, 12) for _ in range(400)]),
        "3 new documents of 12 words": (_NO_CACHE, [request(generator, 3, 12) for _ in range(400)]),
        "20 new documents of 40 words": (_NO_CACHE, [request(generator, 20, 40) for _ in range(400)]),
        "those of a soak": (_NO_CACHE, mixed(generator, 400)),
        "10 of 200 documents that are asked for again and again": ((), [hot() for _ in range(400)]),
    }
    rows = []
    for name, (arguments, bodies) in cases.items():
        rates: dict[str, list[float]] = {"on": [], "off": []}
        with (
            serving(*arguments, "--max-queue-tokens", "10000000") as on,
            serving(*arguments, "--max-queue-tokens", "10000000", "--no-batching") as off,
        ):
            for turn in range(options.turns + 1):  # the first warms up
                for mode, server in (("on", on), ("off", off)):
                    rates[mode].append(_rate(server, bodies, options.seconds / 3))
                    sys.stderr.write(f"{name}, batching {mode}, turn {turn}: {rates[mode][-1]:.1f} requests/s\n")
        means = {mode: statistics.mean(found[1:]) for mode, found in rates.items()}
        rows.append(
            {
                "requests": name,
                "clients": CLIENTS,
                **{f"{mode}_per_second": round(mean, 1) for mode, mean in means.items()},
                "ratio": round(means["on"] / means["off"], 2),
                "ratio_of_each_turn": [round(a / b, 2) for a, b in zip(rates["on"][1:], rates["off"][1:], strict=True)],
            }
        )
    return rows


def _rate(server: Server, bodies: list[dict[str, Any]], seconds: float) -> float:
    """Requests a second over about so many seconds."""
    end = time.perf_counter() + seconds

    def send(number: int) -> int | None:
        return None if time.perf_counter() > end else server.post(bodies[number % len(bodies)]).status

    statuses, took = closed_loop(100_000, CLIENTS, send)
    done = [status for status in statuses if status is not None]
    if set(done) != {200}:
        sys.exit(f"statuses {sorted(set(done))}")
    return len(done) / took


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    generator = random.Random(3)
    ranker, times = (
        Ranker.from_pretrained(device="cpu"),
        {"in_process": list[float](), "http": list[float](), "around_the_model": list[float]()},
    )
    with serving(*_NO_CACHE) as server:
        for turn in tqdm(range(max(40, options.requests // 50)), desc="latency", disable=None):
            body = request(generator, 20, options.words)
            started = time.perf_counter()
            ranker.rank(body["query"], body["documents"])
            own = time.perf_counter() - started
            answer = server.post(body)
            http, stages = answer.seconds, answer.headers["server-timing"].split(", ")
            model = {name: float(took) / 1000 for name, took in (stage.split(";dur=") for stage in stages)}
            if turn >= 5:
                times["in_process"].append(own)
                times["http"].append(http)
                times["around_the_model"].append(http - model["tokenise"] - model["forward"])
    added = [http - own for own, http in zip(times["in_process"], times["http"], strict=True)]
    return {
        "documents": 20,
        "words_a_document": options.words,
        **{name: milliseconds(found) for name, found in times.items()},
        "added_p50_ms": round(1000 * (percentile(times["http"], 0.5) - percentile(times["in_process"], 0.5)), 2),
        "median_of_differences_ms": round(1000 * statistics.median(added), 2),
    }


def main() -> None:
    """Measure what was asked for, and write a dated record."""
    scenarios = {"soak": soak, "overload": overload, "batching": batching, "latency": latency}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+", choices=scenarios)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--queue", type=float, default=2.5, help="requests that an overloaded server holds")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    content: dict[str, Any] = {**environment(), "threads": os.environ.get("OMP_NUM_THREADS", "all cores")}
    for name in options.scenarios:
        content[name] = scenarios[name](options)
        sys.stdout.write(f"{name}: {content[name]}\n")
        sys.stdout.flush()
        if options.out:
            write_record(options.out, content)


if __name__ == "__main__":
    main()
