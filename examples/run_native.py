"""One model file under three budgets: the same text is continued with everything, half of the way, and at the floor.

python examples/run_native.py MODEL.qd "ROMEO:" [--tokens 40]
"""

from __future__ import annotations

import argparse
import json
import math

from qdeploy.native import Runtime
from qdeploy.sizes import human


def perplexity(model: Runtime, rung: int) -> str:
    """What the file tells of the nearest rung that was measured and is not above this one."""
    points = json.loads(model.metadata("losses") or b"{}").get("points", [])
    below = [(measured, loss) for measured, loss in points if measured <= rung]
    return f", perplexity {math.exp(below[-1][1]):.2f} at rung {below[-1][0]}" if below else ""


def main() -> None:
    """Parses the command line and prints a text per budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    with Runtime(args.model, context=256) as model:
        floor, ceiling = model.stats["floor"], model.stats["ceiling"]
        for budget in (ceiling, (floor + ceiling) // 2, floor):
            model.memory = budget
            model.wait()
            model.reset()
            text = "".join(model.generate(args.prompt, args.tokens))
            stats = model.stats
            content = f"rung {stats['rung']} of {stats['rungs']}, {human(stats['total'])} held"
            print(f"--- {human(budget)}: {content}{perplexity(model, stats['rung'])}")
            print(args.prompt + text)


if __name__ == "__main__":
    main()
