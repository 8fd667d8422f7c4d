"""One of each thing that can be added is added here, and nowhere else: then it is read, proven, converted and listed.

A toy checkpoint of a toy format holds weights of a toy number type for a model of a toy family, whose graph has a toy
op. It goes to ONNX, to the runtime and to a toy backend, and a float one through a toy quantizer. No other file knows
of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import qdeploy
from qdeploy import registry
from qdeploy.arch import family as families
from qdeploy.arch.builder import Builder, layer_count
from qdeploy.arch.config import Config
from qdeploy.arch.decoder import build_decoder, heads_of
from qdeploy.arch.family import Family
from qdeploy.arch.names import DECODER_ROWS, Names
from qdeploy.arch.prenorm import attention_layers, gated_mlp, rms_norm, standard_decoder
from qdeploy.arch.stack import Block
from qdeploy.cli import cli
from qdeploy.contracts.backends import Backend, BackendRow
from qdeploy.contracts.clues import Clues
from qdeploy.contracts.formats import NOT_MINE, FormatRow, Looks, Sniff
from qdeploy.contracts.results import Choice, Lowered
from qdeploy.errors import UnsupportedError
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.ir import dtype
from qdeploy.ir.dtype import DType
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.ops import table as ops
from qdeploy.ir.ops.row import QDEPLOY, Op
from qdeploy.ir.run import Weights, run
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Source, SourceTensor, Term
from qdeploy.options import TargetOptions, option
from qdeploy.quantize import QUANTIZERS
from qdeploy.quantize.contract import Grid, Needs, QuantizerRow, Statistics, Weight
from qdeploy.store.folder import Folder

HIDDEN, INNER, VOCABULARY, LAYERS = 32, 48, 40, 2
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])

# ---- a number type: one row

TOY_TYPE = DType("e3m4", 8, "float", "U8", ml_dtypes="float8_e3m4")

# ---- an op: one row


def doubled(x: Any) -> Any:
    return x + x


def doubled_nodes(node: Node, fresh: Any) -> list[Node]:
    return [Node("Add", (node.inputs[0], node.inputs[0]), node.outputs)]


TOY_OP = Op("ToyDouble", QDEPLOY, "x + x", doubled, doubled_nodes, monotone=True)

# ---- a family: how its graph follows from config.json, and its row


@dataclass(frozen=True)
class TwiceAsMuch:
    """A block that gives another block's result twice."""

    block: Block

    def add(self, builder: Builder, layer: int, x: str) -> str:
        once = self.block.add(builder, layer, x)
        return builder.node("ToyDouble", once, name=f"layers.{layer}.twice")


def toy_graph(model: Model) -> Graph:
    config = Config(model.config)
    head_dim, kv_heads = heads_of(config)
    attention = attention_layers(config, (0,) * layer_count(model, config), head_dim, kv_heads, 64)
    mlp = TwiceAsMuch(gated_mlp(config))
    return build_decoder(model, config, standard_decoder(config, TOY_FAMILY.names, attention, mlp, rms_norm(config)))


TOY_FAMILY = Family("toy", {"toy": ("ToyForCausalLM",)}, Names(DECODER_ROWS), toy_graph, genai={"toy": "llama"})

# ---- a format: what its checkpoints look like, and which stored tensors make up a parameter


class ToyFormat:
    """A Hugging Face folder with `<module>.toy_codes` (U8) and `<module>.toy_scale` (F32, one number per row)."""

    NAME, TITLE, WRITES = "toy", "toy checkpoints: small floats with a scale per row", False

    def sniff(self, folder: Folder) -> Sniff:
        return Sniff(100, "quant_method toy") if Clues(folder).method == "toy" else NOT_MINE

    def read(self, folder: Folder) -> Model:
        checkpoint = Checkpoint(folder)
        modules = [name.removesuffix(".toy_codes") for name in checkpoint.entries if name.endswith(".toy_codes")]
        return assemble(checkpoint, "toy", [self._claim(checkpoint, module) for module in modules])

    def _claim(self, checkpoint: Checkpoint, module: str) -> Claim:
        names = (f"{module}.toy_codes", f"{module}.toy_scale")

        def build() -> QTensor:
            codes, scale = (checkpoint.verbatim(key, name) for key, name in zip(("codes", "scale"), names, strict=True))
            rows, columns = codes.shape
            factor = Param(Codes((rows, 1), (scale,), PLAIN, "f32"), (1, columns))
            stored = tuple(
                SourceTensor(
                    checkpoint.entries[n].file.name, n, checkpoint.entries[n].dtype, checkpoint.entries[n].shape
                )
                for n in names
            )
            source = Source("toy", "", {}, stored)
            term = Term(Codes((rows, columns), (codes,), PLAIN, TOY_TYPE.name, scale=factor))
            return QTensor((rows, columns), "F32", (term,), source=source)

        return Claim(f"{module}.weight", names, build)


# ---- a quantizer: what it needs, and what it makes of a weight


@dataclass(frozen=True)
class Signs:
    """Signs, and one size per matrix."""

    TYPES = ()
    factor: int = option(1, "The size is so many times the mean.", least=1, most=9)

    @property
    def needs(self) -> Needs:
        return Needs()

    def quantize(self, weight: Weight, statistics: tuple[Statistics, ...], grid: Grid) -> QTensor:
        values = weight.tensor.decode()
        size = np.full((1, 1), np.abs(values).mean() * self.factor, np.float32)
        signs = Buffer.of("codes", np.where(values < 0, -1, 1).astype(np.int8), "I8")
        scale = Param(Codes((1, 1), (Buffer.of("scale", size, "F32"),), PLAIN, "f32"), weight.tensor.shape)
        codes = Codes(values.shape, (signs,), PLAIN, "int8", scale=scale)
        return QTensor(values.shape, weight.tensor.dtype, (Term(codes),))


# ---- a backend: it writes a model, checks it, and holds it against its source


@dataclass(frozen=True)
class NumbersOptions(TargetOptions):
    digits: int = option(9, "Digits of every number.", least=1, most=9)


class Numbers(Backend):
    """Every weight as lines of numbers."""

    name, title, options = "numbers", "numbers in text files", NumbersOptions

    def lower(self, model: Model, folder: Path, options: TargetOptions, progress: Any = None) -> Lowered:
        digits = NumbersOptions.of(options).digits
        for name, tensor in model.tensors.items():
            np.savetxt(folder / f"{name}.txt", tensor.decode().reshape(1, -1), f"%.{digits}g")
        choices = tuple(Choice(n, "text", "digits", False, t.nbytes) for n, t in model.tensors.items())
        return Lowered(tuple(f"{name}.txt" for name in model.tensors), choices, ())

    def check(self, model: Model, folder: Path, lowered: Lowered, level: str = "auto") -> list[Any]:
        return []

    def compare(self, model: Model, path: str, options: TargetOptions, progress: Any = None) -> Iterator[Any]:
        for name, tensor in model.tensors.items():
            error = float(np.abs(np.loadtxt(Path(path) / f"{name}.txt") - tensor.decode().reshape(-1)).max())
            yield name, error < 1e-6, error, None, ""

    def ops(self) -> frozenset[str]:
        return frozenset({"ToyDouble"})


# ---- all of them, for as long as this module runs


@pytest.fixture(scope="module", autouse=True)
def additions() -> Iterator[None]:
    dtype.register(TOY_TYPE)
    ops.register(TOY_OP)
    families.register(TOY_FAMILY)
    registry.add_format(FormatRow("toy", ToyFormat(), looks=(Looks(methods=("toy",)),)))
    QUANTIZERS.add(QuantizerRow("signs", Signs))
    registry.add_backend(BackendRow("numbers", Numbers()))
    yield
    registry.BACKENDS.remove("numbers")
    QUANTIZERS.remove("signs")
    registry.FORMATS.remove("toy")
    families.forget("toy")
    ops.forget("ToyDouble")
    dtype.unregister(TOY_TYPE.name)


def shapes() -> dict[str, tuple[int, ...]]:
    named: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (VOCABULARY, HIDDEN),
        "lm_head": (VOCABULARY, HIDDEN),
        "model.norm": (HIDDEN,),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        named |= {f"{layer}.self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"}
        named |= {f"{layer}.mlp.{part}_proj": (INNER, HIDDEN) for part in ("gate", "up")}
        named |= {f"{layer}.mlp.down_proj": (HIDDEN, INNER)}
        named |= {f"{layer}.{norm}_layernorm": (HIDDEN,) for norm in ("input", "post_attention")}
    return named


def write_checkpoint(folder: Path, quantized: bool) -> Path:
    rng = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {}
    finite = np.flatnonzero(np.isfinite(TOY_TYPE.values()) & (np.abs(TOY_TYPE.values()) < 4)).astype(np.uint8)
    for module, shape in shapes().items():
        if quantized and "proj" in module:
            tensors[f"{module}.toy_codes"] = rng.choice(finite, shape)
            tensors[f"{module}.toy_scale"] = rng.uniform(0.02, 0.06, (shape[0], 1)).astype(np.float32)
        else:
            near = 1 if len(shape) == 1 else 0
            tensors[f"{module}.weight"] = (near + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    config = {
        "model_type": "toy",
        "architectures": ["ToyForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
    } | ({"quantization_config": {"quant_method": "toy"}} if quantized else {})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "checkpoint", True)


def expected_logits(path: Path) -> np.ndarray:
    model = qdeploy.load(path)
    return run(model.graph, {"input_ids": IDS}, None, Weights(model))[0]["logits"][0]


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_format_is_sniffed_and_its_numbers_are_those_of_the_type(checkpoint: Path):
    model = qdeploy.load(checkpoint)
    assert model.format == "toy"
    from safetensors.numpy import load_file

    stored = load_file(checkpoint / "model.safetensors")
    module = "model.layers.1.mlp.up_proj"
    want = TOY_TYPE.values()[stored[f"{module}.toy_codes"]] * stored[f"{module}.toy_scale"]
    np.testing.assert_array_equal(model.tensors[f"{module}.weight"].decode(), want)


def test_the_family_builds_a_graph_with_the_op(checkpoint: Path):
    graph = qdeploy.load(checkpoint).graph
    assert sum(node.op == "ToyDouble" for node in graph.nodes) == LAYERS
    assert graph.meta["model_type"] == "toy"


def test_it_is_packaged_proven_and_read_back(checkpoint: Path, tmp_path: Path):
    report = qdeploy.convert(checkpoint, tmp_path / "package", to="ir")
    bytes_proven = report["lossless"]["tensor bytes"]
    assert bytes_proven["proven"] == bytes_proven["of"] > 0
    np.testing.assert_array_equal(expected_logits(tmp_path / "package"), expected_logits(checkpoint))
    assert qdeploy.verify(checkpoint, tmp_path / "package")["equal"]


def test_it_runs_in_onnx_runtime(checkpoint: Path, tmp_path: Path):
    report = qdeploy.convert(checkpoint, tmp_path / "onnx", to="onnx", check="full")
    assert any(check["kind"] == "model" for check in report["checks"])
    text = registry.backend("onnx").text
    assert text is not None
    assert distance(text.logits(str(tmp_path / "onnx"), IDS), expected_logits(checkpoint)) < 1e-5
    assert json.loads((tmp_path / "onnx/genai_config.json").read_text())["model"]["type"] == "llama"


def test_it_runs_in_the_native_runtime(checkpoint: Path, tmp_path: Path):
    pytest.importorskip("qdeploy._native", reason="the native runtime is not built", exc_type=ImportError)
    qdeploy.convert(checkpoint, tmp_path / "toy.qd", to="native")
    text = registry.backend("native").text
    assert text is not None
    assert distance(text.logits(str(tmp_path / "toy.qd"), IDS), expected_logits(checkpoint)) < 5e-3


def test_the_backend_writes_and_verifies_it(checkpoint: Path, tmp_path: Path):
    report = qdeploy.convert(checkpoint, tmp_path / "out", to="numbers", digits=8)
    assert report["options"]["digits"] == 8 and (tmp_path / "out/model.norm.weight.txt").is_file()
    assert qdeploy.verify(checkpoint, tmp_path / "out")["equal"]


def test_the_quantizer_is_asked_for_by_name(tmp_path: Path):
    floats = write_checkpoint(tmp_path / "floats", False)
    qdeploy.convert(floats, tmp_path / "package", to="ir", quantize="signs:factor=2")
    weight = qdeploy.load(tmp_path / "package").tensors["model.layers.0.mlp.up_proj.weight"].decode()
    assert len(np.unique(np.abs(weight))) == 1


def test_all_of_them_are_inspected_and_listed(checkpoint: Path):
    described = json.loads(invoke("inspect", checkpoint, "--tensors", "--json"))
    assert described["format"] == "toy" and described["model_type"] == "toy"
    assert "e3m4" in described["tensors"]["model.layers.0.mlp.up_proj.weight"]["encoding"]
    listed = {(row["kind"], row["name"]) for row in json.loads(invoke("formats", "--json"))}
    assert {("read", "toy"), ("target", "numbers"), ("quantize", "signs")} <= listed
    table = {row["op"]: row for row in json.loads(invoke("formats", "--ops", "--json"))}
    assert table["ToyDouble"]["backends"]["numbers"] == "yes"
    assert table["ToyDouble"]["backends"]["onnx"] == "expanded"
    assert "--digits" in invoke("convert", "--help")


def test_what_is_taken_back_is_unknown_again(checkpoint: Path):
    families.forget("toy")
    try:
        with pytest.raises(UnsupportedError, match="unknown architecture"):
            _ = qdeploy.load(checkpoint).graph
    finally:
        families.register(TOY_FAMILY)
