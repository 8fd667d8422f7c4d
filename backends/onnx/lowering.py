"""A graph to ONNX: nodes in order, weights by the rule table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from qdeploy.backends.onnx.attention import DecoderAttention, Heads, Lengths, padded_head
from qdeploy.backends.onnx.encoder_attention import EncoderAttention
from qdeploy.backends.onnx.forms import FloatForm, Form
from qdeploy.backends.onnx.nodes import emit
from qdeploy.backends.onnx.options import Options
from qdeploy.backends.onnx.passthrough import Literal, StoredForm, literal, needs_type, stored_form
from qdeploy.backends.onnx.proto import GraphBuilder, onnx_type
from qdeploy.backends.onnx.rules import Ruling, float_form, rule
from qdeploy.backends.onnx.transposed import transposed_weight
from qdeploy.backends.onnx.unsigned import with_unsigned_codes
from qdeploy.backends.onnx.weight_only import FoldedForm, folded_form
from qdeploy.backends.onnx.weights import AffineForm
from qdeploy.backends.onnx.widened import widened_form
from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.ir.views import Coded, Integers, view
from qdeploy.ir.views.multiples import as_integers
from qdeploy.passes.expand import expand_graph
from qdeploy.passes.experts import with_matrices
from qdeploy.passes.frequencies import within_first_frequencies
from qdeploy.quantize.networks import META as WEIGHT_ONLY

MASK = "attention_mask"
_KEPT = ("Linear", "SkipNorm", "Experts", "Hadamard")
"""Composites that have a form of their own in ONNX."""

FOLDED = "rounded alone; ONNX Runtime widens it when it opens the file, and computes in float32"
WIDENED = "many rows at once: ONNX Runtime widens it when it opens the file, and computes in float32"
_TABLES = 512 << 20
"""Bytes of rotation tables that a model may come with."""


class GraphLowering:
    """Lowers the graph of a model into a builder; satisfies `nodes.Scope`.

    Attributes:
        builder: What is filled.
        rulings: The form of each weight, in order of first use.
    """

    def __init__(self, model: Model, options: Options) -> None:
        model = with_matrices(model)
        self._model, self._options = model, options
        self.graph: Graph = expand_graph(within_first_frequencies(model.graph, model.notes), keep=_KEPT)
        self._network = self.graph.meta.get("kind") == "network"
        if self._network:
            self.graph = with_unsigned_codes(self.graph, model.tensors)
        listed = self.graph.meta.get(WEIGHT_ONLY, [])
        self._weight_only = frozenset(map(str, listed)) if isinstance(listed, list) else frozenset[str]()
        self.builder = GraphBuilder()
        if self._network:
            self.builder.source_opset = int(self.graph.meta.get("opset", 0))  # type: ignore[arg-type]
        self.rulings: dict[str, Ruling] = {}
        self._stacks = {n.outputs[0]: n.inputs for n in self.graph.nodes if n.op == "Stack"}
        self._kept: set[int] = set()
        self._tables = {node.inputs[0] for node in self.graph.nodes if node.op == "Gather"}
        self._states = {state.name: (place, state) for place, state in enumerate(self.graph.states)}
        self._computed = {v.name for v in self.graph.inputs} | {name for n in self.graph.nodes for name in n.outputs}
        self.builder.reserved = self._computed | set(model.tensors)
        self._attention: Callable[[Node], None] = self._encoder_attention

    def run(self) -> None:
        """Declares inputs and outputs and lowers every node."""
        for value in self.graph.inputs:
            self.builder.input(value.name, onnx_type(value.dtype), value.shape)
            needs_type(self.builder, value.dtype)
        if self._states:
            self._open_states()
        for node in self.graph.nodes:
            emit(self, node)
        for value in self.graph.outputs:
            self.builder.output(value.name, onnx_type(value.dtype), value.shape)
            needs_type(self.builder, value.dtype)
        for name in state_names(self.graph, "present"):
            self._declare_state(self.builder.output, name, "total_sequence_length")

    # ---- what nodes ask for

    def is_weight(self, name: str) -> bool:
        """Whether a name is a tensor of the model, and a matrix whose rows have a form of their own."""
        if self._network:  # tensors stay as their source stores them
            folded = self._folded(name)
            return folded is not None and (folded.by_rows or _is_packed(folded))
        return (
            name not in self._computed
            and name not in self.graph.constants
            and len(self._model.tensors[name].shape) == 2
        )

    def value(self, name: str) -> str:
        """The ONNX value of a name."""
        if not name or name in self._computed:
            return name
        return self._whole(name).value(self.builder)

    def linear(self, x: str, weight: str, output: str) -> None:
        """X @ weight.T."""
        self._form(weight).linear(self.builder, x, output)

    def product(self, x: str, weight: str, output: str) -> bool:
        """X @ weight, for weights of a network in blocks along the axis that is summed."""
        if not self._network or weight in self._computed or weight in self.graph.constants:
            return False
        transposed = transposed_weight(weight, self._model.tensors[weight])
        if transposed is None or (weight in self.rulings and not isinstance(self.rulings[weight].form, AffineForm)):
            return False
        if weight not in self.rulings:
            self.rulings[weight] = rule(weight, transposed, self._options.activations)
        self.rulings[weight].form.linear(self.builder, x, output)
        return True

    def gather_rows(self, weight: str, ids: str, output: str) -> None:
        """Rows of a weight."""
        self._form(weight).gather(self.builder, ids, output)

    def matrices(self, name: str) -> tuple[str, ...]:
        """The names of the matrices of a stack."""
        return self._stacks[name]

    def attention(self, node: Node) -> None:
        """Lowers an Attention node."""
        self._attention(node)

    # ---- weights

    def _folded(self, name: str) -> FoldedForm | None:
        """The form of a weight of a network that was rounded alone; None for any other tensor."""
        return folded_form(name, self._model.tensors[name]) if name in self._weight_only else None

    def _form(self, name: str) -> Form:
        if name not in self.rulings:
            tensor, folded = self._model.tensors[name], self._folded(name)
            if folded is not None and not _is_packed(folded):
                self.rulings[name] = Ruling(folded, FOLDED)
                return folded
            ruling = self._widened(name) or rule(name, tensor, self._options.activations, self._options.requantize)
            self.rulings[name] = ruling
        return self.rulings[name].form

    def _widened(self, name: str) -> Ruling | None:
        """Of a network without caches, the form of a layer's 8-bit matrix that floats are made of at the start."""
        if self._states or self._network or self._options.activations != "exact" or name in self._tables:
            return None
        seen = view(self._model.tensors[name])
        whole = seen.grouped if isinstance(seen, Coded) else None
        form = widened_form(name, whole) if whole is not None else None
        return Ruling(form, WIDENED) if form is not None else None

    def _whole(self, name: str) -> FloatForm | StoredForm | FoldedForm | Literal:
        """A tensor that a node takes as a whole (a norm, a bias, a constant): floats as they are, others decoded."""
        tensor = self.graph.constants[name] if name in self.graph.constants else self._model.tensors[name]
        own_integers = name in self.graph.constants and isinstance(view(tensor), Integers)
        small = literal(name, tensor) if self._network or own_integers else None
        if small is not None:
            return small
        folded = self._folded(name)
        if name not in self.rulings:
            stored = Ruling(folded, FOLDED) if folded else as_stored(name, tensor) if self._network else None
            self.rulings[name] = stored or whole(name, tensor)
        form = self.rulings[name].form
        return form if isinstance(form, FloatForm | StoredForm | FoldedForm) else decoded(f"{name}.decoded", tensor)

    # ---- states

    def _open_states(self) -> None:
        mask = self.builder.input(MASK, onnx_type("I64"), ("batch", "total_sequence_length"))
        for name in state_names(self.graph, "past"):
            self._declare_state(self.builder.input, name, "past_sequence_length")
        self._attention = self._decoder_attention
        self._lengths = Lengths(self.builder, self.graph.inputs[0].name, mask)

    def _declare_state(self, declare: Callable[..., str], name: str, length: str) -> None:
        state = self.graph.states[int(name.split(".")[1])]
        shape: tuple[int | str, ...] = ("batch", state.heads, length, padded_head(max(state.head_dim, state.value_dim)))
        if state.kind != "kv":
            shape = ("batch", state.heads, state.head_dim, *((state.value_dim,) if state.kind == "recurrent" else ()))
        declare(name, onnx_type(state.dtype), shape)

    def fixed_state(self, node: Node) -> tuple[str, str]:
        """The input that a node's state comes in by, and the output that it goes out by."""
        place, _ = self._states[str(node.attrs["state"])]
        return f"past_state.{place}", f"present_state.{place}"

    @cached_property
    def _decoder(self) -> DecoderAttention:
        context = int(self.graph.meta["context"])  # type: ignore[arg-type]
        size = 4 * context * max((state.head_dim for state in self.graph.states), default=0)
        if size > _TABLES:
            raise UnsupportedError(
                "so many positions need tables that are larger than models are",
                where="config.json: max_position_embeddings",
                found=f"{context} positions, {size >> 20} MB of cosines and sines",
                allowed=f"{_TABLES >> 20} MB",
                todo="Set max_position_embeddings to what you will use; --to native has no such tables.",
            )
        return DecoderAttention(self.builder, self.graph.constants, self._lengths, context)

    def _decoder_attention(self, node: Node) -> None:
        place, state = self._states[str(node.attrs["state"])]
        query, key, value = (self.value(name) for name in node.inputs[:3])
        past, present = ((f"{kind}.{place}.key", f"{kind}.{place}.value") for kind in ("past_key_values", "present"))
        if place in self._kept:  # the same keys once more, of which the first node's go out
            present = (self.builder.fresh("key"), self.builder.fresh("value"))
        self._kept.add(place)
        sinks = self.value(node.inputs[4]) if len(node.inputs) > 4 else ""
        heads = Heads(state.head_dim, state.value_dim or state.head_dim)
        self._decoder.emit(node, heads, (query, key, value, sinks), past, present)

    def rotary(self, node: Node) -> None:
        """Lowers a Rotary node."""
        _, state = self._states[str(node.attrs["length_of"])]
        self._decoder.rotary(node, state.head_dim, self.value(node.inputs[0]))

    def positions(self) -> str:
        """I64 [B, T]: the place of each new token behind the states."""
        return self._lengths.positions

    @cached_property
    def _encoder(self) -> EncoderAttention:
        return EncoderAttention(self.builder, self.graph.constants, int(self.graph.meta.get("context", 0)))  # type: ignore[arg-type]

    def _encoder_attention(self, node: Node) -> None:
        query, key, value, *mask = (self.value(name) for name in node.inputs[:4])
        self._encoder.emit(node, (query, key, value), mask[0] if mask else "", int(node.attrs.get("head_dim", 0)))  # type: ignore[arg-type]


def _is_packed(form: FoldedForm) -> bool:
    """Whether a matrix has kernels of its own for such codes: of at most 4 bits, in blocks along its rows."""
    codes, scale = form.codes, form.scale
    narrow = dtype(str(codes.table)).bits <= 4
    return len(form.shape) == 2 and narrow and codes.shape == form.shape and scale.shape[0] == form.shape[0]


def state_names(graph: Graph, side: str) -> list[str]:
    """Names of the inputs ("past") or outputs ("present") that states go by, in their order."""
    keys = "past_key_values" if side == "past" else side
    names: list[str] = []
    for place, state in enumerate(graph.states):
        kv = state.kind == "kv"
        names += [f"{keys}.{place}.key", f"{keys}.{place}.value"] if kv else [f"{side}_state.{place}"]
    return names


def as_stored(name: str, tensor: QTensor) -> Ruling | None:
    """The ruling for a tensor that stays as its source stores it, or in a codebook of multiples; None for floats."""
    form = stored_form(name, tensor)
    if form is not None:
        return Ruling(form, "stored as in the source")
    integers = as_integers(tensor)  # float weights behind quantized activations ONNX Runtime would round to 8 bits
    form = stored_form(name, integers) if integers is not None else None
    return None if form is None else Ruling(form, "levels are whole multiples of a step")


def whole(name: str, tensor: QTensor) -> Ruling:
    """The ruling for a tensor that is used as a whole."""
    stored = float_form(name, tensor)
    if stored is not None:
        return Ruling(stored, f"stored as {stored.storage} and widened to float32 in the graph")
    return Ruling(decoded(name, tensor), "decoded to float32: it is used as a whole")


def decoded(name: str, tensor: QTensor) -> FloatForm:
    """A tensor as the float32 that it decodes to."""
    return FloatForm(name, tensor, "F32", lambda start, stop: tensor.decode(slice(start, stop)))
