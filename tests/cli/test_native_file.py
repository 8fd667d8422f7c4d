"""Files of the native runtime on the command line: known by their first bytes, compared, described, planned."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import qdeploy
from qdeploy.backends.native.checksum import crc32c
from qdeploy.backends.native.layout import HEADER
from qdeploy.cli import main
from qdeploy.native import Runtime
from qdeploy.quantize.bitstack import BitStack
from qdeploy.quantize.contract import Grid, Weight

ROOT = Path(__file__).resolve().parents[2]
GPTQ, FLOAT = ROOT / "examples/models/tiny-llama-gptq", ROOT / "examples/models/tiny-llama"
UP = "model.layers.0.mlp.up_proj.weight"


class Cli:
    """Runs the command line in this process; the exit code is that of the shell."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, code: int = 0) -> str:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        out, err = self.capsys.readouterr()
        assert (ended.value.code or 0) == code, out + err
        return out if code == 0 else out + err

    def json(self, *arguments: object) -> dict:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "no-suffix"
    qdeploy.convert(GPTQ, path, to="native")
    return path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float model as its BitStack checkpoint would be published: layer by layer from the last, and perplexities."""
    folder, model, tensors = tmp_path_factory.mktemp("stack"), qdeploy.load(FLOAT), {}
    layers = []
    for name, tensor in model.tensors.items():
        if "_proj" not in name:
            tensors[name] = tensor.decode()
            continue
        layers.append(name.removesuffix(".weight").replace("model.layers.", "layer."))
        for i, term in enumerate(BitStack(3, 4).quantize(Weight(name, tensor), (), Grid()).terms):
            stem = name.removesuffix(".weight")
            bits = np.unpackbits(term.values.data[0].read(), axis=1, bitorder="little")
            tensors[f"{stem}.qweight_{i}"] = np.packbits(bits.reshape(-1))
            product = term.values.scale.values
            tensors[f"{stem}.u_{i}"], tensors[f"{stem}.vt_{i}"] = (p.data[0].read() for p in (product.u, product.vt))
    save_file(tensors, folder / "model.safetensors")
    for side in ("config.json", "tokenizer.json"):
        shutil.copy(FLOAT / side, folder / side)
    content, order = dict.fromkeys(layers, 1), []
    order.append({"memory": 0, "layers": dict(content)})
    for layer in layers[::-1]:
        content[layer] += 1
        order.append({"memory": 0, "layers": dict(content)})
    (folder / "compression_config.json").write_text(json.dumps(order))
    rows = [{"bit": 1, "ppls": [{"layer": name, "ppl": 20.0 - i / 10} for i, name in enumerate(layers)]}]
    (folder / "reduced_ppl_average.json").write_text(json.dumps({"original_ppl": 9.0, "reduced_ppl": rows}))
    return folder


# ---- inspect


def test_inspect_shows_what_a_file_holds(run: Cli, file: Path):
    result = run.json("inspect", file)
    with Runtime(file) as runtime:
        rungs, parameters = runtime.rungs(), runtime.parameters
    assert result["format"] == "native" and result["source"] == "gptq" and result["model_type"] == "llama"
    assert result["tensors"][UP]["kinds"] == ["planes"] and result["tensors"][UP]["shape"] == [384, 128]
    assert 4 < result["tensors"][UP]["bits"] < 4.3 and len(result["tensors"][UP]["pieces"]) == 4
    assert [(r["bytes"], r["error"]) for r in result["rungs"]] == rungs
    assert result["floor"]["bytes"] < result["ceiling"]["bytes"] == result["bytes"]
    assert result["parameters"] == parameters
    assert result["plan"]["ops"]["attention"] == 5 and result["plan"]["kind"] == "decoder"
    assert result["metadata"]["tokenizer.json"] > 1000 and "tokenizer.json" in result["files"]
    assert result["file"]["bytes"] == file.stat().st_size
    text = run("inspect", file)
    for word in ("int4 group 128 in planes", "floor", "ceiling", "attention", "tokenizer.json", "predicted loss"):
        assert word in text
    assert UP in run("inspect", file, "--tensors")


def test_inspect_recomputes_the_checksums(run: Cli, file: Path, tmp_path: Path):
    assert run.json("inspect", file, "--verify-checksums")["checksums"] > 5
    bad = changed(file, tmp_path, -100)
    assert "damaged" in run("inspect", bad, "--verify-checksums", code=2)


def test_inspect_refuses_to_count_codes_of_an_output(run: Cli, file: Path):
    assert "codes to count" in run("inspect", file, "--histogram", code=2)


# ---- damage


def changed(file: Path, folder: Path, place: int, size: int | None = None) -> Path:
    data = bytearray(file.read_bytes()[:size])
    data[place] ^= 0x41
    (folder / "bad").write_bytes(data)
    return folder / "bad"


@pytest.mark.parametrize("verb", ["inspect", "plan", "verify", "diff"])
@pytest.mark.parametrize("size", [8, 100, 511, 512, 4000, 0.5, 0.999])
def test_a_cut_file_is_a_clear_error(run: Cli, file: Path, tmp_path: Path, verb: str, size: float):
    data = file.read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(data[: int(size if size > 1 else size * len(data))])
    text = run(verb, *([GPTQ] if verb in ("verify", "diff") else []), bad, code=2)
    assert "error: " in text and str(bad) in text


@pytest.mark.parametrize("place", [8, 12, 16, 24, 70, 130, 505, 509, 513, 5000])
def test_a_flipped_byte_of_the_front_is_a_clear_error(run: Cli, file: Path, tmp_path: Path, place: int):
    assert "error: " in run("inspect", changed(file, tmp_path, place), code=2)


def test_a_forged_front_with_right_checksums_never_ends_in_a_trace(run: Cli, file: Path, tmp_path: Path):
    whole, random = file.read_bytes(), np.random.default_rng(0)
    end = int(np.frombuffer(whole[: HEADER.itemsize], HEADER)["front_end"][0])
    refused = 0
    for _ in range(50):
        data = bytearray(whole)
        place = int(random.integers(8, 508)) if random.random() < 0.3 else int(random.integers(512, end))
        data[place : place + 4] = random.integers(0, 256, 4).astype(np.uint8).tobytes()[: len(data[place : place + 4])]
        data[12:16] = crc32c(bytes(data[512:end])).to_bytes(4, "little")
        data[508:512] = crc32c(bytes(data[:508])).to_bytes(4, "little")
        (tmp_path / "forged").write_bytes(data)
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(tmp_path / "forged"), "--json"])
        refused += ended.value.code == 2
    assert refused > 3


def test_an_output_is_no_source(run: Cli, file: Path, tmp_path: Path):
    assert "not a source" in run("convert", file, tmp_path / "out", code=2)
    assert "not a source" in run("verify", file, GPTQ, code=2)


# ---- verify and diff


def test_verify_says_equal_and_compares_logits(run: Cli, file: Path):
    assert run("verify", GPTQ, file).strip().endswith("equal")
    result = run.json("verify", GPTQ, file, "--text", "To be, or not to be")
    assert result["equal"] and result["logits"]["relative_l2"] < 1e-3


def test_verify_finds_a_changed_weight_and_another_source(run: Cli, file: Path, tmp_path: Path):
    text = run("verify", GPTQ, changed(file, tmp_path, -100), code=1)
    assert "DIFFERENT" in text and "damaged pages" in text
    assert "DIFFERENT" in run("verify", FLOAT, file, code=1)


def test_verify_finds_changed_norms(run: Cli, file: Path, tmp_path: Path):
    header = np.frombuffer(file.read_bytes()[: HEADER.itemsize], HEADER)
    text = run("verify", GPTQ, changed(file, tmp_path, int(header["resident_at"][0]) + 1), code=1)
    assert "small tensors" in text


def test_diff_measures_how_far_a_file_is_from_another_model(run: Cli, file: Path):
    rows = {row["name"]: row for row in run.json("diff", FLOAT, file)["tensors"]}
    assert 10 < rows[UP]["snr_db"] < 40 and rows[UP]["max_error"] > 0
    assert all(row["codes_equal"] for row in run.json("diff", GPTQ, file)["tensors"])


# ---- options of convert


def test_whole_codes_have_one_rung_per_matrix_and_run(run: Cli, tmp_path: Path):
    run("convert", GPTQ, tmp_path / "whole", "--to", "native", "--layout", "whole", "-q")
    result = run.json("inspect", tmp_path / "whole")
    assert result["tensors"][UP]["kinds"] == ["nibbles"] and result["floor"]["bytes"] == result["ceiling"]["bytes"]
    assert result["conversion"]["layout"] == "whole"
    assert run("verify", GPTQ, tmp_path / "whole").strip().endswith("equal")


def test_the_uniform_order_takes_level_by_level(run: Cli, file: Path, tmp_path: Path):
    run("convert", GPTQ, tmp_path / "uniform", "--to", "native", "--order", "uniform", "-q")
    losses = [[r["error"] for r in run.json("plan", path)["rungs"]] for path in (file, tmp_path / "uniform")]
    assert losses[0] != losses[1] and losses[0][0] == pytest.approx(losses[1][0])
    assert run("verify", GPTQ, tmp_path / "uniform").strip().endswith("equal")


def test_the_reference_order_is_that_of_the_checkpoint(run: Cli, stack: Path, tmp_path: Path):
    run("convert", stack, tmp_path / "own", "--to", "native", "--order", "reference", "-q")
    result = run.json("plan", tmp_path / "own", "--budget", "1GB")
    count = sum(row["of"] == 3 for row in result["tensors"].values())
    rung = result["rungs"][1]["rung"] - result["rungs"][0]["rung"]
    assert count == 35 and rung == 1 and len(result["rungs"]) == 1 + 2 * 35
    first = run.json("plan", tmp_path / "own", "--budget", str(result["rungs"][0]["total"]))
    ahead = {name for name, row in first["tensors"].items() if row["pieces"] > 1}
    last = {name for name in first["tensors"] if name.startswith("model.layers.4")}
    assert ahead <= last | {name for name in first["tensors"] if "model.layers.3" in name}
    assert run("verify", stack, tmp_path / "own").strip().endswith("equal")
    assert "no compression_config.json" in run("plan", GPTQ, "--order", "reference", code=2)


def test_sensitivities_weigh_the_order(run: Cli, stack: Path, tmp_path: Path):
    measured = stack / "reduced_ppl_average.json"
    run("convert", stack, tmp_path / "own", "--to", "native", "--sensitivities", measured, "-q")
    assert len(run.json("inspect", tmp_path / "own")["conversion"]["sensitivities"]) == 35
    losses = [run.json("plan", path)["rungs"][0]["error"] for path in (stack, tmp_path / "own")]
    assert losses[0] != pytest.approx(losses[1])
    assert run("verify", stack, tmp_path / "own").strip().endswith("equal")
    assert run.json("plan", GPTQ, "--sensitivities", measured)["rungs"]  # any model with these layers
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    assert "list of perplexities" in run(
        "convert", GPTQ, tmp_path / "x", "--to", "native", "--sensitivities", bad, code=2
    )


def test_blocks_become_sign_planes_and_the_loss_is_reported(run: Cli, stack: Path, tmp_path: Path):
    report = run.json("convert", stack, tmp_path / "planes", "--to", "native", "--lower", "sign-planes:group=64")
    assert 1 < report["tensors"][UP]["snr_db"] < 40 and "sign planes" in " ".join(report["notes"])
    assert report["tensors"][UP]["forms"][0]["form"] == "3 x signs group 64"
    result = run.json("inspect", tmp_path / "planes")
    assert result["tensors"][UP]["kinds"] == ["planes"] * 3 and result["conversion"]["lower"] == "sign-planes:group=64"
    assert len(result["rungs"]) > result["floor"]["rung"]  # planes come one by one
    assert run("verify", stack, tmp_path / "planes", "--text", "To be").strip().endswith("equal")


def test_a_float_model_is_decomposed_lowered_and_verified_in_one_go(run: Cli, tmp_path: Path):
    options = ("--quantize", "bitstack:blocks=2,rank=4", "--lower", "sign-planes")
    both = run.json("convert", FLOAT, tmp_path / "both", "--to", "native", *options)["tensors"][UP]["snr_db"]
    alone = run.json("convert", FLOAT, tmp_path / "alone", "--to", "ir", *options[:2])["tensors"][UP]["snr_db"]
    assert both < alone
    run("verify", FLOAT, tmp_path / "both")
    run("convert", FLOAT, tmp_path / "package", "--to", "ir", *options, "-q")
    run("verify", FLOAT, tmp_path / "package")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--to", "native", "--layout", "flat"), "elastic, whole"),
        (("--to", "native", "--order", "random"), "gain"),
        (("--layout", "whole"), "no such option"),
        (("--to", "ir", "--order", "gain"), "no such option"),
        (("--to", "native", "--lower", "planes"), "sign-planes"),
        (("--lower", "sign-planes:group=0"), "number"),
        (("--to", "native", "--lower", "sign-planes"), "no tensor"),
        (("--to", "native", "--order", "uniform", "--sensitivities", "x"), "gain"),
        (("--to", "native", "--sensitivities", "/nowhere.json"), "nowhere"),
        (("--to", "source", "--lower", "sign-planes"), "as they were"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(run: Cli, tmp_path: Path, arguments, word: str):
    assert word in run("convert", GPTQ, tmp_path / "out", *arguments, code=2)
    assert not list(tmp_path.iterdir())


# ---- plan


def test_a_plan_is_what_the_runtime_counts(run: Cli, file: Path):
    for options in ({}, {"context": 100, "threads": 3, "kv": "int8"}):
        flags = [word for key, value in options.items() for word in (f"--{key}", value)]
        result = run.json("plan", file, *flags)
        with Runtime(file, **options) as runtime:
            stats, rungs = runtime.stats, runtime.rungs()
            assert (result["floor"], result["ceiling"]) == (stats["floor"], stats["ceiling"])
            middle = result["rungs"][len(result["rungs"]) // 2]
            runtime.set_rung(middle["rung"])
            assert runtime.stats["total"] == middle["total"]
        assert [
            (r["stack"] <= size, r["error"]) for r, (size, _) in zip(result["rungs"][1:], rungs[37:], strict=True)
        ] == [(True, pytest.approx(loss, abs=1e-9)) for _, loss in rungs[37:]]


def test_checkpoint_package_and_file_have_the_same_plan(run: Cli, file: Path, tmp_path: Path):
    run("convert", GPTQ, tmp_path / "package", "--to", "ir", "-q")
    wanted = run.json("plan", file, "--budget", "3MB", "--threads", 1)
    for source in (GPTQ, tmp_path / "package"):
        result = run.json("plan", source, "--budget", "3MB", "--threads", 1)
        assert result["path"] == str(source)
        for key in ("rung", "tensors", "layers", "fits"):
            assert result[key] == wanted[key]
        assert [r["stack"] for r in result["rungs"]] == [r["stack"] for r in wanted["rungs"]]
        assert abs(result["floor"] - wanted["floor"]) <= 65536  # the metadata says where it was made from
    assert sorted(p.name for p in tmp_path.iterdir()) == ["package"]


def test_a_plan_reads_no_weights(run: Cli, file: Path, tmp_path: Path):
    wanted = run.json("plan", file)
    header = np.frombuffer(file.read_bytes()[: HEADER.itemsize], HEADER)[0]
    data = bytearray(file.read_bytes())
    data[int(header["stack_at"]) :] = bytes(len(data) - int(header["stack_at"]))
    (tmp_path / "hollow").write_bytes(data)
    assert {**run.json("plan", tmp_path / "hollow"), "path": ""} == {**wanted, "path": ""}


def test_bits_of_every_layer_follow_the_budget(run: Cli, file: Path):
    full = run.json("plan", file, "--threads", 1)
    half = run.json("plan", file, "--threads", 1, "--budget", str((full["floor"] + full["ceiling"]) // 2))
    assert half["fits"] == half["rung"] < full["rung"]
    assert list(full["layers"])[1:3] == ["model.layers.0", "model.layers.1"]
    for name in ("model.layers.0", "model.layers.4"):
        assert 1 < half["layers"][name]["bits"] < full["layers"][name]["bits"] < 4.3
    assert sum(row["bytes"] for row in half["tensors"].values()) == half["rungs"][half["rung"] - 37]["stack"]
    text = run("plan", file, "--threads", 1, "--budget", str(half["rungs"][-1]["total"]))
    assert "model.layers.3" in text and "fits" in text and "loss  █" in text
    assert UP in run("plan", file, "--tensors")


def test_a_budget_below_the_floor_names_it(run: Cli, file: Path):
    floor = run.json("plan", file)["floor"]
    assert str(floor) in run("plan", file, "--budget", "1kB", code=2)


def test_only_native_files_among_outputs_are_planned(run: Cli, tmp_path: Path):
    run("convert", GPTQ, tmp_path / "onnx", "--check", "none", "-q")
    assert "only the native runtime" in run("plan", tmp_path / "onnx", code=2)


# ---- the plot


@pytest.mark.parametrize(("name", "head"), [("curve.png", b"\x89PNG"), ("curve.SVG", b"<?xml")])
def test_the_curve_is_drawn(run: Cli, file: Path, tmp_path: Path, name: str, head: bytes):
    pytest.importorskip("matplotlib", reason="pip install 'qdeploy[plot]'")
    floor = run.json("plan", file)["floor"]
    run("plan", file, "--budget", str(floor + 100_000), "--plot", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(head)


@pytest.mark.parametrize("name", ["measured.png", "measured.svg"])
def test_what_was_measured_is_drawn(run: Cli, file: Path, tmp_path: Path, name: str):
    pytest.importorskip("matplotlib", reason="pip install 'qdeploy[plot]'")
    np.save(tmp_path / "ids.npy", np.arange(3, 43).reshape(2, 20))
    arguments = ("eval", file, "--text", tmp_path / "ids.npy", "--plot", tmp_path / name)
    assert "--budgets" in run(*arguments, code=2)
    run(*arguments, "--budgets", "3")
    assert (tmp_path / name).stat().st_size > 5000


def test_a_plot_that_cannot_be_drawn_is_refused_first(run: Cli, file: Path, tmp_path: Path, monkeypatch):
    assert ".svg" in run("plan", file, "--plot", tmp_path / "curve.gif", code=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'qdeploy[plot]'" in run("plan", file, "--plot", tmp_path / "curve.png", code=2)
