"""What the authors of a BitStack checkpoint (arXiv 2410.23918, section 3.3) say of its blocks, in two files beside it.

    compression_config.json     [{"memory": bytes, "layers": {"layer.0.self_attn.q_proj": blocks, ...}}, ...]: one entry
                                per block that is added, so for a large model tens of megabytes that hold one order
    reduced_ppl_average.json    {"original_ppl": p, "reduced_ppl": [{"bit": b, "ppls": [{"layer": name, "ppl": p}]}]}:
                                the perplexity when every layer has b blocks, and this one has b + 1

`layer.0.` there is `model.layers.0.` in the names of the tensors. The list is read entry by entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from qdeploy.elastic.pieces import Piece
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import JSON_LIMIT, Folder, parse_json

ORDER, PERPLEXITIES = "compression_config.json", "reduced_ppl_average.json"
_CHUNK = 4 << 20
_ENTRY = re.compile(rb"\{[^{}]*\{[^{}]*\}[^{}]*\}")  # names of layers hold no braces
_BETWEEN = re.compile(rb"[\[\],\s]*")
_LEAST = 0.01  # of the mean: a layer that made no difference in the measurement still has some


def reference_steps(model: Model) -> list[tuple[str, int]]:
    """The authors' order: (tensor, number of the block that is added), the first blocks of all layers left out.

    Raises:
        UnsupportedError: The checkpoint has no such list.
        BadFileError: The list names layers that are not there, or is not a sequence of additions.
    """
    entries = list[dict[str, int]]()  # the one before, and the smallest
    names: dict[str, str] = {}
    steps: list[tuple[str, int]] = []
    rising = True
    for number, entry in enumerate(_entries(_side_file(model, ORDER))):
        if not entries:
            names = {layer: _tensor(layer, model.tensors, ORDER) for layer in entry}
            entries = [entry, entry]
        rising = rising if steps else sum(entry.values()) >= sum(entries[0].values())
        low, high = (entries[0], entry) if rising else (entry, entries[0])
        _check_added(low, high, number)
        added = [(names[layer], i) for layer, count in low.items() for i in range(count, high[layer])]
        steps += added if rising else added[::-1]
        entries = [entry, entries[1] if rising else entry]
    more = [layer for layer, count in entries[1].items() if count != 1] if entries else ["an empty list"]
    if more:
        raise BadFileError(
            "the smallest configuration is not one block of every layer", where=ORDER, found=", ".join(more[:3])
        )
    return steps if rising else steps[::-1]


def sensitivities(model: Model, pieces: Iterable[Piece], path: str = "") -> dict[str, float]:
    """What a relative squared error of each layer costs, from the perplexities that its authors measured.

    A layer's sensitivity is how much log perplexity its added blocks took away, over how much relative error they did.
    The perplexity without the added block is not in the file: the highest of a row, of the layer that mattered least,
    stands for it. The result is scaled to a mean of 1, so that tensors without a measurement keep their weight.

    Args:
        model: Its tensors are named; without a path, the measurements come with it.
        pieces: Of all tensors; what was measured are those after the first of each.
        path: A file of such measurements.

    Raises:
        UnsupportedError: The checkpoint has no such measurements.
        BadFileError: They name layers that are not there, or are not positive numbers.
    """
    tree = parse_json(_text(_file(path) if path else _side_file(model, PERPLEXITIES)), path or PERPLEXITIES)
    gains: dict[str, float] = {}
    for row in _rows(tree):
        highest = math.log(max(row.values()))
        for layer, perplexity in row.items():
            name = _tensor(layer, model.tensors, PERPLEXITIES)
            gains[name] = gains.get(name, 0.0) + highest - math.log(perplexity)
    errors: dict[str, float] = {}
    for piece in pieces:
        if (piece.term, piece.plane) > (0, 0):
            errors[piece.tensor] = errors.get(piece.tensor, 0.0) + piece.gain
    costs = {name: gain / errors[name] for name, gain in gains.items() if errors.get(name, 0.0) > 0}
    least = _LEAST * sum(costs.values()) / max(1, len(costs))
    raised = {name: max(value, least) for name, value in costs.items()}
    mean = sum(raised.values()) / max(1, len(raised))
    return {name: value / mean for name, value in raised.items()} if mean > 0 else {}


def _check_added(low: dict[str, int], high: dict[str, int], number: int) -> None:
    odd = [layer for layer in {**low, **high} if layer not in low or high.get(layer, 0) < low[layer]]
    if odd:
        raise BadFileError(
            "a configuration does not continue the one before",
            where=f"{ORDER}: entry {number}",
            found=", ".join(odd[:3]),
            allowed="the same layers, no block taken away",
        )


def _entries(file: Buffer) -> Iterator[dict[str, int]]:
    """The layers of each entry of the list, read in chunks."""
    text, place = b"", 0
    while place < file.shape[0] or text:
        more = bytes(file.read(place, min(place + _CHUNK, file.shape[0]))) if place < file.shape[0] else b""
        text, place, end = text + more, place + len(more), 0
        for entry in _ENTRY.finditer(text):
            if not _BETWEEN.fullmatch(text, end, entry.start()):
                break
            yield _layers(parse_json(entry.group(), ORDER))
            end = entry.end()
        text = text[end:]
        if len(text) > 2 * _CHUNK or not more:
            if not _BETWEEN.fullmatch(text):
                raise BadFileError(
                    "not a list of configurations",
                    where=ORDER,
                    found=ascii(text[:60]),
                    allowed='[{"memory": bytes, "layers": {name: blocks}}, ...]',
                )
            return


def _layers(entry: Any) -> dict[str, int]:
    layers = entry.get("layers")
    if not isinstance(layers, dict) or not layers:
        raise BadFileError("a configuration names no layers", where=ORDER, found=", ".join(entry))
    for layer, count in layers.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 16:
            raise BadFileError("a number of blocks is impossible", where=f"{ORDER}: {layer}", found=count)
    return layers


def _rows(tree: Any) -> Iterator[dict[str, float]]:
    """{layer: perplexity} of each row."""
    try:
        rows = [{item["layer"]: item["ppl"] for item in row["ppls"]} for row in tree["reduced_ppl"]]
    except (TypeError, KeyError) as error:
        raise BadFileError(
            "not a list of perplexities",
            where=PERPLEXITIES,
            allowed='{"reduced_ppl": [{"bit", "ppls": [{"layer", "ppl"}]}]}',
        ) from error
    for row in rows:
        for layer, value in row.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not isinstance(layer, str) or not number or not 0 < value < math.inf:
                raise BadFileError(
                    "a perplexity is not a positive number", where=f"{PERPLEXITIES}: {layer}", found=value
                )
        if row:
            yield row


def _tensor(layer: str, tensors: Collection[str], where: str) -> str:
    """The tensor of a layer's name in these files."""
    name = f"{re.sub('^layer[.]', 'model.layers.', layer)}.weight"
    if name not in tensors:
        raise BadFileError(
            "a layer is named that the checkpoint does not have",
            where=where,
            found=layer,
            todo="The file belongs to another checkpoint; fetch it again.",
        )
    return name


def _side_file(model: Model, name: str) -> Buffer:
    for file in model.files:
        if file.path == name:
            return file.data
    raise UnsupportedError("the checkpoint does not say this", where=model.path, found=f"no {name}")


def _file(path: str) -> Buffer:
    folder = Folder(path, trust_links=True)
    if not folder.only:
        raise BadFileError("the file of perplexities is a folder", where=path, allowed=PERPLEXITIES)
    return Buffer(folder.only, "U8", (folder.size(folder.only),), folder.rows(folder.only))


def _text(file: Buffer) -> bytes:
    if file.shape[0] > JSON_LIMIT:
        raise BadFileError(
            "a JSON file is too large", where=PERPLEXITIES, found=file.shape[0], allowed=f"<= {JSON_LIMIT}"
        )
    return bytes(file.read())
