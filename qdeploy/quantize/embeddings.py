"""Embeddings that no linear layer shares: rounded to 8 bits where the target reads a table by its rows.

They are most of a small model's bytes, and a row of 8 bits costs nothing in speed. What is rounded is written out as a
spec of its own (`rtn:int8,clip=none,group=128,only=NAMES`), so that outputs record it, and can be held against their
source. At 8 bits a search of the scale gains less than 0.01 dB, and takes as long as all else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qdeploy.errors import UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.ir.views import Floats, view
from qdeploy.quantize.driver import embedding_tables, integer_weights
from qdeploy.quantize.specs import parse
from qdeploy.sizes import human

EMBEDDINGS = "rtn:int8,clip=none,group=128"
"""How they are rounded."""
_READ_BY_ROWS = ("decoder", "encoder")
"""Kinds of graphs whose tables are read by rows; a network's are as its source stores them."""
_LISTED = 3


def with_embeddings(model: Model, specs: Sequence[str]) -> tuple[str, ...]:
    """The specs, and one more for the float embeddings that none of them speaks of.

    A table is left alone where a spec names it with only=REGEX (that spec has it), where one skips it with skip=REGEX,
    and where all specs are for named tensors only.

    Args:
        model: As its reader gives it.
        specs: What the user asks for.

    Raises:
        BadArgumentError: A spec does not parse.
    """
    if any(_is_ladder(spec) for spec in specs):
        return _deep_heads(model, specs)
    tables = _default_tables(model, specs)
    if not tables:
        return tuple(specs)
    names = "|".join(re.escape(name).replace(",", ".") for name in tables)  # a comma would end the option
    model.notes.append(
        f"embeddings are rounded to 8 bits: {_named(model, tables)}; skip=REGEX leaves one float, "
        "and a --quantize of its own with only=REGEX rounds it otherwise"
    )
    return (*specs, f"{EMBEDDINGS},only=^({names})$")


def _is_ladder(spec: str) -> bool:
    parsed = parse(spec)
    return parsed.method == "ladder" and not parsed.names.only


def _deep_heads(model: Model, specs: Sequence[str]) -> tuple[str, ...]:
    """The specs, and before them ladders of eight planes for embeddings and output projections.

    Those are what a budget cuts least: a row of an embedding is all that the network sees of a token.
    """
    try:
        nodes, kind = model.graph.nodes, model.graph.meta.get("kind")
    except UnsupportedError:
        return tuple(specs)
    spoken_for = [parse(spec).names for spec in specs if parse(spec).names.only]
    gathered = [node.inputs[0] for node in nodes if node.op == "Gather"]
    heads = [node.inputs[1] for node in nodes if node.op == "Linear" and "logits" in node.outputs]
    general = next(spec for spec in specs if _is_ladder(spec))
    if integer_weights(model):
        model.notes.append(
            "ladders of the checkpoint's own integers: all planes are the source, and floats stay floats"
        )
        return tuple(specs)
    chosen = [
        name
        for name in dict.fromkeys((*gathered, *heads))
        if name in model.tensors
        and len(model.tensors[name].shape) == 2
        and isinstance(view(model.tensors[name]), Floats)
        and parse(general).names.take(name)
        and not any(names.take(name) for names in spoken_for)
    ]
    if not chosen or kind not in _READ_BY_ROWS:
        return tuple(specs)
    names = "|".join(re.escape(name).replace(",", ".") for name in chosen)
    model.notes.append(f"eight planes, of which a budget takes as many as it has room for: {_named(model, chosen)}")
    method, _, options = general.partition(":")
    deep = ",".join([part for part in options.split(",") if part and not part.startswith("profile=")])
    return (f"{method}:{deep}{',' if deep else ''}profile=deep,only=^({names})$", *specs)


def note_floats(model: Model) -> None:
    """Adds a note of what stays float in a model of which weights are quantized, and how to change it."""
    floats = {name for name in _used(model) if isinstance(view(model.tensors[name]), Floats)}
    matrices = [name for name in floats if len(model.tensors[name].shape) > 1]
    vectors = sum(model.tensors[name].nbytes for name in floats - set(matrices))
    rest = f"norms and biases ({human(vectors)})"
    if not matrices:
        model.notes.append(f"stays float: {rest}")
        return
    quantizable = " only=REGEX quantizes what linear layers and embeddings have." if _any_taken(model, matrices) else ""
    model.notes.append(f"stays float: {_named(model, matrices)}; {rest}.{quantizable}")


def _used(model: Model) -> set[str]:
    """The tensors that the network reads; all of them where there is none."""
    try:
        nodes = model.graph.nodes
    except UnsupportedError:
        return set(model.tensors)
    return {name for node in nodes for name in node.inputs if name in model.tensors}


def _any_taken(model: Model, names: Sequence[str]) -> bool:
    """Whether a quantizer could take one of these."""
    from qdeploy.quantize.driver import linear_weights

    return not {*linear_weights(model), *embedding_tables(model)}.isdisjoint(names)


def _default_tables(model: Model, specs: Sequence[str]) -> list[str]:
    parsed = [parse(spec).names for spec in specs]
    general = [names for names in parsed if not names.only]
    try:
        kind = model.graph.meta.get("kind")
    except UnsupportedError:  # tensors without a network: nobody knows what is an embedding
        return []
    if not general or kind not in _READ_BY_ROWS:
        return []
    named = [names for names in parsed if names.only]
    return [
        name
        for name in embedding_tables(model)
        if isinstance(view(model.tensors[name]), Floats)
        and all(names.take(name) for names in general)
        and not any(names.take(name) for names in named)
    ]


def _named(model: Model, names: Sequence[str]) -> str:
    """Names with their sizes, the largest first: "a (3.1 MB), b (2 kB) and 4 more (1 kB)"."""
    sizes = sorted(((model.tensors[name].nbytes, name) for name in names), reverse=True)
    listed = ", ".join(f"{name} ({human(size)})" for size, name in sizes[:_LISTED])
    more = sizes[_LISTED:]
    return listed + (f" and {len(more)} more ({human(sum(size for size, _ in more))})" if more else "")
