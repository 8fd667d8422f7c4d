"""How `verify` and `diff` show what the comparison engine found."""

from __future__ import annotations

import math
from typing import Any

from qdeploy.cli.tables import console, table


def print_comparison(report: dict[str, Any], every: bool) -> None:
    """Prints tensors that differ (or all), and a line that counts the rest."""
    screen = console()
    rows = [_row(t) for t in report["tensors"] if every or not t["codes_equal"]]
    if rows:
        screen.print(table(["tensor", "codes", "max error", "SNR", "note"], rows, right=(2, 3)))
    equal = sum(t["codes_equal"] for t in report["tensors"])
    screen.print(f"{equal} of {len(report['tensors'])} tensors hold the same codes and parameters")
    for name in report["only"][:10]:
        screen.print(f"  only in one of them: {name}")
    if "logits" in report:
        logits = report["logits"]
        screen.print(
            f"logits of {logits['tokens']} tokens: relative L2 {logits['relative_l2']:.1e} "
            f"(limit {logits['limit']:.2g}), same most likely token at {logits['same_top1']:.0%}"
        )


def _row(row: dict[str, Any]) -> list[str]:
    snr = row["snr_db"]
    shown = "" if snr is None else "-inf" if math.isinf(snr) else f"{snr:.1f} dB"
    return [row["name"], "equal" if row["codes_equal"] else "differ", f"{row['max_error']:.2e}", shown, row["note"]]
