"""Which layers take the keys and values of an earlier one (Gemma 3n, 4: `num_kv_shared_layers`)."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.arch.config import Config


def producers(config: Config, kinds: Sequence[str], default: int = 0) -> list[int | None]:
    """For each layer, the one whose keys and values it takes; None for its own.

    The last `num_kv_shared_layers` layers have none: each takes those of the last layer before them of its kind.

    Args:
        config: The whole config.json.
        kinds: Of attention, per layer.
        default: Of the field.

    Raises:
        BadFileError: A kind has no layer to take them from.
    """
    field = "num_kv_shared_layers"
    count = 0 if config.fields.get(field, default) == 0 else config.size(field, default)
    config.read.add(field)
    first = len(kinds) - count
    last = {kind: i for i, kind in enumerate(kinds[: max(first, 0)])}
    missing = {kind for kind in kinds[max(first, 0) :] if kind not in last}
    if missing:
        raise config.contradiction(f"{field}, layer_types", f"{count}, no {min(missing)}", "a layer to share with")
    return [last[kind] if i >= first else None for i, kind in enumerate(kinds)]
