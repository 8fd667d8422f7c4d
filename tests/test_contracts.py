"""The contracts: what is built in satisfies them, and options are fields, JSON and the command line at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest

import qdeploy
from qdeploy import registry
from qdeploy.backends import BUILT_IN as BACKENDS
from qdeploy.backends.native.naming import MAGIC
from qdeploy.calibrate.integers import Integers
from qdeploy.calibrate.methods import METHODS
from qdeploy.cli import VERBS, cli
from qdeploy.cli.fields import FieldOption
from qdeploy.contracts.backends import LEVELS, Backend, BackendRow, Level
from qdeploy.contracts.formats import Format, Writer
from qdeploy.contracts.results import Lowered
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.formats import BUILT_IN as FORMATS
from qdeploy.ir.integer_arithmetic import SINGLE_ROUNDINGS
from qdeploy.options import SourceOptions, TargetOptions, option, options_of
from qdeploy.proof.compare import recorded_spec
from qdeploy.quantize import BUILT_IN as QUANTIZERS
from qdeploy.quantize.contract import Grid, Quantizer, Weight
from qdeploy.quantize.specs import parse, usage
from qdeploy.spec import ConversionSpec, Passes, shared_options, target_options

EXAMPLES = Path(__file__).resolve().parents[1] / "examples/models"
GPTQ, FLOAT = EXAMPLES / "tiny-llama-gptq", EXAMPLES / "tiny-llama"
SCREEN = {"src", "dst", "to", "force", "no_timing", "as_json", "quiet", "debug", "_click_default_help"}


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_every_format_satisfies_its_contract(row: Any):
    loaded = row.load()
    assert isinstance(loaded, Format)
    assert isinstance(loaded, Writer) or not loaded.WRITES or row.name == "package"


@pytest.mark.parametrize("row", BACKENDS, ids=lambda row: row.name)
def test_every_backend_satisfies_its_contract(row: BackendRow):
    backend = row.load()
    assert isinstance(backend, Backend)
    assert backend.name == row.name and backend.title
    assert is_dataclass(backend.options) and issubclass(backend.options, TargetOptions)
    assert (backend.file is not None) == bool(row.magic)
    for part in (backend.file, backend.integers, backend.memory, backend.layers, backend.text):
        assert part is None or [name for name in dir(part) if not name.startswith("_")]


def test_the_row_knows_the_files_of_its_backend():
    assert [row.magic for row in BACKENDS if row.magic] == [MAGIC]


@pytest.mark.parametrize("row", QUANTIZERS, ids=lambda row: row.name)
def test_every_quantizer_satisfies_its_contract(row: Any):
    method = row.load()
    needed = {"calibrate": "text"} if row.name == "gptq" else {}
    assert isinstance(method(**needed), Quantizer)
    assert all(name in usage(row.name) for name in (o.name for o in options_of(method)))


def test_choices_are_those_of_what_carries_them_out():
    choices = {known.name: known.choices for known in options_of(Integers)}
    assert set(choices["calibrate_method"]) == set(METHODS)
    assert set(choices["rounding"]) == set(SINGLE_ROUNDINGS)
    assert get_args(Level) == LEVELS


@pytest.mark.parametrize(("to", "settings"), target_options().items(), ids=lambda v: v if isinstance(v, str) else "")
def test_what_outputs_record_is_declared_as_options(to: str, settings: type[TargetOptions]):
    undeclared = {field.name for field in fields(settings)} - {known.name for known in options_of(settings)}
    assert undeclared <= {"conversion", "losses"}, "only what a file records is no option"
    assert not {known.name for known in options_of(settings)} & set(shared_options()), "a name means one thing"


SPECS: list[tuple[str, dict[str, Any]]] = [
    ("onnx", {}),
    ("onnx", {"activations": "int8", "requantize": True, "jobs": 3, "check": "full"}),
    ("onnx", {"quantize": ["rtn:int4,group=32", "bitstack:blocks=2"], "format": "gptq", "trust_links": True}),
    ("onnx", {"integer": "fast", "calibrate": "data.npz", "weight_bits": 4, "layer_bits": {"w": [4, 8]}}),
    ("native", {"layout": "whole", "order": "uniform", "lower": "sign-planes:group=64"}),
    ("native", {"sensitivities": {"a": 1.5}}),
    ("tvm", {"forms": ["bare"], "axes": {"n": 2}, "target": "aarch64+dotprod", "rounding": "half_even"}),
    ("tvm", {"allocate": "size:0.5", "calibrate": "data.npz"}),
    ("ir", {"jobs": 2, "calibrate": "data.npz", "calibrate_method": "mse"}),
    ("source", {"check": "none"}),
]


@pytest.mark.parametrize(("to", "values"), SPECS)
def test_a_spec_comes_back_from_its_json(to: str, values: dict[str, Any]):
    spec = ConversionSpec.of(to, values)
    text = json.dumps(spec.to_json())
    assert ConversionSpec.from_json(json.loads(text)) == spec
    assert json.loads(text) == {"to": to, **values}


@pytest.mark.parametrize(("to", "values"), [s for s in SPECS if s[0] != "source"])
def test_a_record_gives_the_same_work(to: str, values: dict[str, Any]):
    spec = ConversionSpec.of(to, values)
    again = ConversionSpec.of(to, json.loads(json.dumps(spec.record())))
    assert again.passes == spec.passes
    kept = [known.name for known in options_of(type(spec.target)) if known.recorded]
    assert [getattr(again.target, name) for name in kept] == [getattr(spec.target, name) for name in kept]


def test_the_written_spelling_of_a_record_stays():
    assert list(ConversionSpec.of("onnx", {}).record()) == ["activations", "quantize", "requantize", "check"]
    assert ConversionSpec.of("ir", {"jobs": 4}).record() == {"quantize": []}


def test_an_output_says_its_spec(tmp_path: Path):
    for to, values in (("onnx", {"activations": "int8"}), ("native", {"order": "uniform"}), ("ir", {})):
        qdeploy.convert(FLOAT, tmp_path / to, to=to, quantize="rtn:int4,skip=embed", check="none", **values)
        spec = recorded_spec(tmp_path / to)
        assert (spec.to, spec.passes.quantize) == (to, ("rtn:int4,skip=embed",))
        assert all(getattr(spec.target, name) == value for name, value in values.items())


@pytest.mark.parametrize("options", [[1], {"quantize": 3}, {"activations": "int5"}, {"colour": "red"}, "text"])
def test_a_report_that_lies_is_a_bad_file(tmp_path: Path, options: Any):
    qdeploy.convert(GPTQ, tmp_path / "out", check="none")
    report = json.loads((tmp_path / "out/report.json").read_text())
    (tmp_path / "out/report.json").write_text(json.dumps({**report, "options": options}))
    with pytest.raises(BadFileError, match=r"does not record its options|another form"):
        qdeploy.verify(GPTQ, tmp_path / "out")


@pytest.mark.parametrize(
    ("to", "values", "said"),
    [
        ("onnx", {"layout": "whole"}, ["target onnx", "found layout", "--to native"]),
        ("native", {"activations": "int8"}, ["target native", "found activations", "--to onnx"]),
        ("native", {"requantize": True, "jobs": 2}, ["found requantize, jobs", "--to ir and --to onnx"]),
        ("tvm", {"integer": "fast"}, ["target tvm", "--to onnx"]),
        ("ir", {"forms": ("bare",)}, ["target ir", "--to tvm"]),
        ("ir", {"rounding": "half_even"}, ["--to ir --calibrate"]),
        ("onnx", {"calibrate": "a.npz"}, ["--to onnx --integer strict|fast"]),
        ("source", {"jobs": 2}, ["none of its own"]),
        ("source", {"lower": "sign-planes"}, ["as they were", "lower"]),
        ("ir", {"check": "full"}, ["nothing that could be run"]),
        ("onnx", {"colour": "red"}, ["found colour"]),
        ("onnx", {"jobs": "two"}, ["unknown jobs"]),
        ("onnx", {"jobs": 0}, ["unknown jobs", "1..64"]),
        ("onnx", {"activations": "int5"}, ["unknown activations", "exact, int8"]),
        ("onnx", {"requantize": "yes"}, ["unknown requantize"]),
        ("onnx", {"quantize": [3]}, ["unknown quantize"]),
        ("onnx", {"quantize": "rtn:int4,colour=red"}, ["no such option of rtn", "clip=search|none"]),
        ("onnx", {"quantize": "rnt"}, ["no such quantization method", "rtn"]),
        ("onnx", {"check": "some"}, ["unknown check", "nodes"]),
        ("native", {"sensitivities": {"a": "much"}}, ["unknown sensitivities", "names to numbers"]),
        ("native", {"sensitivities": {"a": True}}, ["unknown sensitivities", "names to numbers"]),
        ("native", {"sensitivities": {"a": float("nan")}}, ["unknown sensitivities", "names to numbers"]),
        ("native", {"sensitivities": {"a": -1.0}}, ["unknown sensitivities", "names to numbers"]),
        ("native", {"sensitivities": [1.0]}, ["unknown sensitivities"]),
        ("tvm", {"axes": {3: 4}}, ["unknown axes", "names to numbers"]),
        ("onnx", {"future": {"depth": 3}, "check": "none"}, ["found future"]),
    ],
)
def test_what_a_target_cannot_honour_is_one_error_that_says_where_it_can(
    tmp_path: Path, to: str, values: dict[str, Any], said: list[str]
):
    with pytest.raises(BadArgumentError) as caught:
        qdeploy.convert(GPTQ, tmp_path / "out", to=to, **values)
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert not (tmp_path / "out").exists()


def parameters(verb: str) -> list[click.Parameter]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return command.get_params(click.Context(command))


def test_every_option_of_convert_comes_from_a_field():
    known = {o.name for part in (SourceOptions, Passes, Integers, ConversionSpec) for o in options_of(part)}
    known |= {o.name for settings in target_options().values() for o in options_of(settings)}
    derived = {p.name for p in parameters("convert") if isinstance(p, FieldOption)}
    assert derived == known
    assert {p.name for p in parameters("convert")} - derived <= SCREEN


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_declares_again_what_a_field_declares(verb: str):
    plain = {p.name for p in parameters(verb) if isinstance(p, click.Option) and not isinstance(p, FieldOption)}
    owned = {o.name for part in (SourceOptions, Passes, registry.backend("native").options) for o in options_of(part)}
    assert not plain & owned


def test_help_groups_options_by_target(capsys: Any):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    text = capsys.readouterr().out
    native = text[text.index("Options of --to native:") :]
    assert "--layout" in native[: native.index("\n\n")]
    assert "--axis NAME=EXTENT" in text[text.index("Options of --to tvm:") :]
    assert "clip=search|none" in text and "rank=N" in text, "the options of each quantizer"


@dataclass(frozen=True)
class ToyOptions(TargetOptions):
    shade: str = option("dark", "Of the toy.", choices=("dark", "light"))


class Toy(Backend):
    """A backend with what every backend must have, and no more."""

    name, title, options = "toy", "a toy", ToyOptions

    def lower(self, model: Any, folder: Path, options: TargetOptions, progress: Any = None) -> Lowered:
        (folder / "toy.txt").write_text(ToyOptions.of(options).shade)
        return Lowered(("toy.txt",), (), ())

    def check(self, model: Any, folder: Path, lowered: Lowered, level: Level = "auto") -> list[Any]:
        return []

    def compare(self, model: Any, path: str, options: TargetOptions, progress: Any = None) -> Any:
        yield "(shade)", (Path(path) / "toy.txt").read_text() == ToyOptions.of(options).shade, 0.0, None, ""


def test_a_backend_needs_none_of_the_optional_parts(tmp_path: Path):
    registry.add_backend(BackendRow("toy", Toy(), "a test"))
    try:
        qdeploy.convert(GPTQ, tmp_path / "out", to="toy", shade="light")
        assert qdeploy.verify(GPTQ, tmp_path / "out")["equal"]
        with pytest.raises(UnsupportedError, match="cannot be run on a text"):
            qdeploy.verify(GPTQ, tmp_path / "out", text="To be")
        with pytest.raises(UnsupportedError, match="only the native runtime"):
            qdeploy.plan(tmp_path / "out")
        with pytest.raises(BadArgumentError, match="unknown shade"):
            qdeploy.convert(GPTQ, tmp_path / "no", to="toy", shade="green")
        (tmp_path / "out/toy.txt").write_text("dark")
        assert not qdeploy.verify(GPTQ, tmp_path / "out")["equal"]
    finally:
        registry.BACKENDS.remove("toy")


def test_options_and_results_of_one_target_are_none_of_another(tmp_path: Path):
    model = qdeploy.load(GPTQ)
    with pytest.raises(BadArgumentError, match="another target"):
        registry.backend("onnx").lower(model, tmp_path, registry.backend("native").options())
    with pytest.raises(BadArgumentError, match="another backend"):
        registry.backend("onnx").check(model, tmp_path, Lowered((), (), ()))


def test_a_backend_that_is_none_is_refused(tmp_path: Path):
    registry.add_backend(BackendRow("half", object(), "a test"))
    try:
        with pytest.raises(UnsupportedError, match=r"contracts\.backends\.Backend"):
            qdeploy.convert(GPTQ, tmp_path / "out", to="half")
    finally:
        registry.BACKENDS.remove("half")


def test_gptq_leaves_less_error_in_the_outputs_than_rounding(tmp_path: Path):
    shutil.copy(GPTQ / "config.json", tmp_path)
    rng = np.random.default_rng(1)
    from qdeploy.ir.tensor import Buffer, plain
    from qdeploy.quantize.contract import Statistics

    mixed = rng.standard_normal((64, 64)) * np.exp(rng.standard_normal(64))
    x = rng.standard_normal((500, 64)) @ mixed
    weight = plain(Buffer.of("data", rng.standard_normal((40, 64)).astype(np.float32), "F32"), "f32")
    moments = Statistics(moments=x.T @ x / len(x))
    error = {}
    for spec in ("rtn:int3,group=32", "gptq:int3,group=32,calibrate=text"):
        parsed = parse(spec)
        losses: dict[str, float] = {}
        output = parsed.quantizer.quantize(Weight("w", weight, losses), (moments,), Grid(3, 32))
        error[parsed.method] = np.linalg.norm(x @ (output.decode() - weight.decode()).T)
        assert 5 < losses["w"] < 30
    assert error["gptq"] < 0.8 * error["rtn"]
    with pytest.raises(BadArgumentError, match="needs a calibration text"):
        parse("gptq:int4")
