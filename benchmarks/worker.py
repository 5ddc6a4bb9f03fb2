"""The process of one contestant: `python -m benchmarks.worker MODULE NAME`; see `contest.Worker`.

`benchmarks.MODULE.build(NAME)` returns facts (a dictionary) and a function from a request to an answer. Runs in the
environment of a peer as well, so nothing of anyformer is imported here.
"""

import importlib
import json
import os
import sys

from benchmarks.contest import Missing


def main(module: str, name: str) -> None:
    """Answers requests until the input ends. What libraries print goes to stderr, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(data: dict) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    try:
        facts, serve = importlib.import_module(f"benchmarks.{module}").build(name)
    except ModuleNotFoundError as error:
        return answer({"missing": f"{error} (pip install 'anyformer[bench]')"})
    except Missing as error:
        return answer({"missing": str(error)})
    answer(facts)
    for line in sys.stdin:
        answer(serve(json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
