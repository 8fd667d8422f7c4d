"""Whether the directory of a model file can be followed: every section, range and number that it holds.

The checksums say that a file is as it was written; they do not say who wrote it. The runtime checks far more, on its
own; this is what the readers in Python rely on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qdeploy.backends.native.layout import HEADER, NONE, PAGE, RECORDS, NumberKind, Op, SectionId, TensorKind, TermKind
from qdeploy.errors import BadFileError


def check_header(header: Any, size: int, path: str) -> None:
    """Checks the header's ranges against the size of the file.

    Raises:
        BadFileError: One lies outside.
    """
    if int(header["file_bytes"]) != size:
        raise BadFileError(
            "the model file is cut short, or longer than it says",
            where=path,
            found=f"{size} bytes",
            allowed=f"{header['file_bytes']} bytes",
            todo="Fetch or convert it again.",
        )
    end = int(header["front_end"])
    ranges = [("front", HEADER.itemsize, end - HEADER.itemsize)]
    ranges += [(part, int(header[f"{part}_at"]), int(header[f"{part}_bytes"])) for part in ("resident", "stack")]
    for name, at, count in ranges:
        if count < 0 or at < HEADER.itemsize or at + count > size:
            raise _wrong(name, f"bytes {at}..{at + count}", f"{HEADER.itemsize}..{size}", path)
    for which in SectionId:
        at, count = (int(n) for n in header["sections"][which])
        if at < HEADER.itemsize or at + count * RECORDS[which].itemsize > end:
            raise _wrong(which.name.lower(), f"{count} records at {at}", f"inside of {HEADER.itemsize}..{end}", path)
    pages = -(-(size - int(header["resident_at"])) // PAGE)
    if int(header["sections"][SectionId.PAGES]["count"]) != pages:
        raise _wrong("pages", header["sections"][SectionId.PAGES]["count"], str(pages), path)


def check_directory(sections: dict[SectionId, Any], header: Any, path: str) -> None:
    """Checks every record that readers follow; `sections` are their records.

    Raises:
        BadFileError: One points outside of what it points into, or names a kind that there is not.
    """
    matrices, terms, blocks, rungs, tensors = (
        sections[s] for s in (SectionId.MATRICES, SectionId.TERMS, SectionId.BLOCKS, SectionId.RUNGS, SectionId.TENSORS)
    )
    stack, names, nodes = int(header["stack_bytes"]), len(sections[SectionId.METADATA]), sections[SectionId.NODES]
    claims = [
        ("matrices", _inside(matrices["first_term"], matrices["terms"], len(terms)) & (matrices["name_at"] < names)),
        ("matrices", _index(matrices["map_tensor"], tensors) & _index(matrices["scale_tensor"], tensors)),
        ("terms", _one_of(terms["kind"], TermKind) & (terms["planes"] > 0) & (terms["planes"] <= 8)),
        ("terms", _inside(terms["first_block"], terms["planes"], len(blocks)) & _index(terms["table_tensor"], tensors)),
        ("terms", _one_of(terms["element"], NumberKind)),
        *(("terms", _one_of(terms[p]["kind"], NumberKind)) for p in ("scale", "zero", "offset")),
        *(("terms", _one_of(terms[p]["super_kind"], NumberKind)) for p in ("scale", "zero", "offset")),
        ("terms", _one_of(terms["bias_kind"], (NumberKind.NO, NumberKind.F16, NumberKind.F32)) & (terms["ladder"] < 2)),
        ("blocks", _inside(blocks["at"], blocks["bytes"], stack) & (blocks["term"] < len(terms))),
        ("rungs", (rungs["bytes"] <= stack) & np.isfinite(rungs["error"])),
        ("rungs", np.array([len(rungs) == len(blocks) and int(header["floor_rung"]) <= len(rungs)])),
        ("tensors", _inside(tensors["at"], tensors["bytes"], int(header["resident_bytes"]))),
        ("tensors", _one_of(tensors["kind"], TensorKind)),
        ("nodes", _one_of(nodes["op"], Op)),
        ("blocks", np.array([_owners(matrices, terms, blocks)])),
    ]
    for name, right in claims:
        if not right.all():
            raise _wrong(name, f"record {int(np.nonzero(~right)[0][0])}", "", path)


def _owners(matrices: Any, terms: Any, blocks: Any) -> bool:
    """Terms belong to matrices one after the other, and blocks to terms."""
    own_terms, own_blocks = matrices["terms"].astype(np.int64), terms["planes"].astype(np.int64)
    return (
        np.array_equal(matrices["first_term"], np.cumsum(own_terms) - own_terms)
        and int(own_terms.sum()) == len(terms)
        and np.array_equal(terms["first_block"], np.cumsum(own_blocks) - own_blocks)
        and np.array_equal(blocks["term"], np.repeat(np.arange(len(terms)), own_blocks))
        and np.array_equal(blocks["plane"], np.arange(len(blocks)) - np.repeat(terms["first_block"], own_blocks))
    )


def _inside(at: Any, count: Any, limit: int) -> Any:
    """At + count <= limit, without a sum that could overflow."""
    counts = np.asarray(count, np.uint64)
    return (counts <= limit) & (at <= np.uint64(limit) - np.minimum(counts, np.uint64(limit)))


def _index(indices: Any, owner: Any) -> Any:
    return (indices == NONE) | (indices < len(owner))


def _one_of(numbers: Any, kinds: Iterable[int]) -> Any:
    return np.isin(numbers, [int(kind) for kind in kinds])


def _wrong(section: str, found: object, allowed: str, path: str) -> BadFileError:
    return BadFileError(
        "the model file contradicts itself",
        where=f"{path}: {section}",
        found=found,
        allowed=allowed,
        todo="Fetch or convert it again.",
    )
