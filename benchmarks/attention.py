"""What each mixer costs: `python -m benchmarks.attention [cost] [decode]` measures and writes docs/attention.md.

A mixer and the peers that do the same are measured together, in turns, each in two processes of its own, for time and
for memory (`benchmarks.attention_worker`). What was found is kept in benchmarks/results/, so `--only NAME` measures
some mixers again and leaves the others as they were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics

from benchmarks import attention_report, machine
from benchmarks.attention_mixers import DECODING, ENTRIES
from benchmarks.attention_peers import PEERS
from benchmarks.attention_results import (
    BYTES,
    CHECKED,
    CONTEXTS,
    LENGTHS,
    PATIENCE,
    RESULTS,
    ROUNDS,
    SECONDS,
    Found,
)
from benchmarks.contest import Died, Missing, Worker, turns
from benchmarks.report import replace


def main() -> None:
    """Measures what is asked for, then writes the report from all results that there are."""
    parser = argparse.ArgumentParser("python -m benchmarks.attention", description=__doc__)
    parser.add_argument("what", nargs="*", choices=("cost", "decode", "report", []), help="all but `report` by default")
    parser.add_argument("--only", default="", help="mixers whose name contains this")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="in tokens")
    arguments = parser.parse_args()
    chosen = [name for name in ENTRIES if arguments.only in name]
    if not chosen:
        parser.error(f"no mixer is called {arguments.only!r}; there is {', '.join(ENTRIES)}")
    what = arguments.what or ["cost", "decode"]
    busy = machine.busy()
    if "cost" in what:
        for name in chosen:
            keep("attention-cost", family(name, [n for n in LENGTHS if n <= arguments.longest], busy))
    if "decode" in what:
        keep("attention-decode", {name: decoding(name, busy) for name in DECODING if arguments.only in name})
    attention_report.write()


def keep(kind: str, results: dict[str, Found]) -> None:
    """Adds to what was found before; a mixer that is no longer measured is forgotten."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}.json"
    everything = {**(json.loads(path.read_text()) if path.exists() else {}), **results}
    known = {*ENTRIES, *PEERS, *DECODING}
    everything = {name: value for name, value in everything.items() if name in known}
    replace(path, json.dumps(everything, indent=1, sort_keys=True) + "\n")


def family(name: str, lengths: list[int], busy: float) -> dict[str, Found]:
    """A mixer and its peers at all lengths.

    A point is {"forward": [seconds a turn], "both": [...], "forward_bytes", "both_bytes"}; "stopped" says why there is
    no longer one.
    """
    rivals = {name: name, **{peer: f"peer: {peer}" for peer, p in PEERS.items() if p.ours == name}}
    results: dict[str, Found] = {}
    workers: dict[str, dict[str, Worker]] = {}
    for key, asked in rivals.items():
        results[key] = {"points": {}, "stopped": "", "busy": round(busy, 2), "machine": machine.facts()}
        try:
            workers[key] = {what: Worker("attention_worker", f"{what} of {asked}") for what in ("time", "memory")}
            if key != name:
                results[key]["error"] = workers[key]["time"].ask(error=CHECKED)["error"]
        except (Missing, Died) as error:
            if key == name:
                raise
            results[key]["stopped"] = f"was not measured: {' '.join(str(error).split())[-200:]}"
    for length in lengths:
        running = {key: pair for key, pair in workers.items() if not results[key]["stopped"]}
        if not running:
            break
        for key, point in points(running, length).items():
            say(key, length, point)
            results[key]["points"][str(length)] = point
            results[key]["stopped"] = why_stop(results[key]["points"], length)
    for worker in itertools.chain.from_iterable(pair.values() for pair in workers.values()):
        worker.close()
    return results


def points(workers: dict[str, dict[str, Worker]], length: int) -> dict[str, Found]:
    """One length: memory first, then time, in turns."""
    made: dict[str, Found] = {key: {} for key in workers}

    def ask(key: str, what: str, way: str) -> Found:
        if "over" in made[key]:
            return made[key]
        try:
            answer = workers[key][what].ask(length=length, backward=way == "both")
        except Died as error:
            answer = {"over": f"its process ended ({' '.join(str(error).split())[-80:]})"}
        made[key] |= {"over": answer["over"]} if "over" in answer else {}
        return answer

    slow: dict[str, float] = {}
    for way in ("forward", "both"):
        for key in workers:
            answer = ask(key, "memory", way)
            if "over" not in answer:
                made[key][f"{way}_bytes"], slow[key] = answer["bytes"], answer["seconds"]
        for turn, key in turns(list(workers), ROUNDS):
            if turn == 0 or slow.get(key, 0) < PATIENCE:
                answer = ask(key, "time", way)
                if "over" not in answer:
                    made[key].setdefault(way, []).append(answer["seconds"])
    return made


def why_stop(points: dict[str, Found], length: int) -> str:
    """Why no text of twice this length is measured, by how the last doubling grew; "" to go on."""
    now, before = points[str(length)], points.get(str(length // 2))
    if "over" in now:
        return f"{now['over']} at {length:,}"

    def expected(value: float, half: float) -> float:
        return value * min(4.0, max(1.0, value / half))  # nothing here grows faster than its square

    took, used = now["both"][0], now["both_bytes"]
    if took > SECONDS or (before and expected(took, before["both"][0]) > SECONDS):
        return f"more than {SECONDS:.0f} s beyond {length:,}"
    if used > BYTES or (before and expected(used, max(1, before["both_bytes"])) > BYTES):
        return f"more than {BYTES >> 30} GiB beyond {length:,}"
    return ""


def say(name: str, length: int, point: Found) -> None:
    """A line on the screen."""
    if "over" in point:
        print(f"  {name}, {length:,}: {point['over']}", flush=True)
        return
    forward, both = (1000 * statistics.median(point[way]) for way in ("forward", "both"))
    megabytes = point["both_bytes"] / 1e6
    print(f"  {name}, {length:,}: {forward:.1f} ms, with backward {both:.1f} ms and {megabytes:.0f} MB", flush=True)


def decoding(name: str, busy: float) -> Found:
    """Tokens a second and bytes of state of a decoder of this mixer, as its context grows."""
    worker = Worker("attention_decode", name)
    result: Found = {"busy": round(busy, 2), "machine": machine.facts(), "points": {}}
    for context in CONTEXTS:
        answer = worker.ask(context=context)
        result["points"][str(context)] = answer
        print(f"  {name}, {context:,}: {answer['rate']:.0f} tokens/s, {answer['bytes'] / 1e6:.2f} MB", flush=True)
    worker.close()
    return result


if __name__ == "__main__":
    main()
