"""One model file under three budgets: the same text is continued with everything, half of the way, and at the floor.

python examples/run_native.py MODEL.qd "ROMEO:" [--tokens 40]
"""

from __future__ import annotations

import argparse

from qdeploy.native import Runtime
from qdeploy.sizes import human


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
            print(f"--- {human(budget)}: rung {stats['rung']} of {stats['rungs']}, {human(stats['total'])} held")
            print(args.prompt + text)


if __name__ == "__main__":
    main()
