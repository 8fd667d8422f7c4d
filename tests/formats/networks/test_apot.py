"""APoT networks: levels and weights by brute force, whole networks against a forward pass of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from residual_forward import F, State, cifar, convolutions, forward, mnist, network
from safetensors.numpy import load_file, save_file
from torch_files import save_legacy, save_zip

import qdeploy
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.formats.networks import apot
from qdeploy.formats.networks.apot_levels import cell_levels, denominator, fractions, weight_indices
from qdeploy.ir.run import Weights, run
from qdeploy.ir.views import Floats, view
from qdeploy.registry import open_model

SETS = {
    2: [[0, 1 / 2, 1 / 4, 1 / 8]],
    3: [[0, 1 / 2, 1 / 4, 1 / 16], [0, 1 / 8]],
    4: [[0, 1 / 2, 1 / 8, 1 / 32], [0, 1 / 4, 1 / 16, 1 / 64]],
    5: [[0, 1 / 2, 1 / 8, 1 / 64], [0, 1 / 4, 1 / 16, 1 / 128], [0, 1 / 32]],
}
"""The paper's base sets as the repository has them."""
FILES = {
    "mnist_resnet10_3bit_apot": (mnist, 500, 3, True, 495),
    "mnist_resnet10_4bit_uniform": (mnist, 500, 4, False, 496),
    "cifar_res20_4bit_apot": (cifar, 60, 4, True, 51),
}
"""Images, bits, the quantizer, and how many are right: of all images 9881 and 9873 of 10,000, and 226 of 249."""


def levels_of(bits: int, additive: bool) -> np.ndarray:
    if not additive or bits not in SETS:
        return (np.arange(1 << bits).astype(F) / F((1 << bits) - 1)).astype(F)
    sums = np.array([0.0])
    for part in SETS[bits]:
        sums = (sums[:, None] + np.array(part)).reshape(-1)
    return (np.unique(sums).astype(F) * (F(1) / F(sums.max()))).astype(F)


class Reference:
    """The repository's quantizers, level by level."""

    def __init__(self, state: State, bits: int, additive: bool, edges: int = 8) -> None:
        self.state = {name.removeprefix("module."): array for name, array in state.items()}
        self.bits, self.additive, self.edges = bits, additive, edges

    def snapped(self, x: np.ndarray, bits: int) -> np.ndarray:
        if not self.additive or bits == 1:
            top = F((1 << bits) - 1)
            return np.rint(x * top) / top
        levels = levels_of(bits, True)
        best, result = np.full(x.shape, np.inf, F), np.zeros(x.shape, F)
        for level in levels:
            nearer = np.abs(x - level) < best
            best, result = np.where(nearer, np.abs(x - level), best), np.where(nearer, level, result)
        return result

    def weight(self, name: str, w: np.ndarray) -> np.ndarray:
        if not name.startswith("layer"):
            top = w.max()
            return w if self.edges == 32 else np.rint(w / top * F(127)) / F(127) * top
        if self.bits == 32:
            return w
        key = next(k for k in (f"{name}.weight_alpha", f"{name}.weight_quant.wgt_alpha") if k in self.state)
        alpha = F(self.state[key].reshape(()))
        clipped = np.clip((w - F(w.mean(dtype=np.float64))) / F(w.std(ddof=1, dtype=np.float64)) / alpha, F(-1), F(1))
        return self.snapped(np.abs(clipped), self.bits - 1) * np.sign(clipped) * alpha

    def activation(self, name: str, x: np.ndarray) -> np.ndarray:
        if not name.startswith("layer") or self.bits == 32:
            return x
        alpha = F(self.state[f"{name}.act_alpha"].reshape(()))
        return self.snapped(np.clip(x / alpha, F(0), F(1)), self.bits) * alpha

    def logits(self, x: np.ndarray) -> np.ndarray:
        return forward(self.state, x, self.weight, self.activation)


def trained(bits: int, part: str = "weight_alpha", **how: Any) -> State:
    """A small network with clips."""
    state = network(**({"blocks": (1, 1), "widths": (8, 12)} | how))
    random = np.random.default_rng(bits)
    for name in convolutions(state):
        state[f"{name}.act_alpha"] = np.array(random.uniform(1, 3), F)
        state[f"{name}.{part}"] = np.array(random.uniform(1.5, 3), F)
    return state


def write(folder: Path, state: State, **said: Any) -> Path:
    prefixed = {f"module.{name}": array for name, array in state.items()}
    save_zip(folder / "model_best.pth.tar", {"epoch": 3, "state_dict": prefixed, "best_prec": 90.5})
    (folder / apot.CONFIG).write_text(json.dumps(said))
    return folder


def logits(path: Path, x: np.ndarray) -> np.ndarray:
    model = open_model(path)
    return run(model.graph, {"input": x}, None, Weights(model))[0]["logits"]


def agree(found: np.ndarray, wanted: np.ndarray, share: float = 0.85) -> None:
    """Sums in another order may move an activation that lies on a tie, and with it an image, a little."""
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max()
    assert (error < 1e-3).mean() >= share and error.max() < 0.1, np.sort(error)


# ---- levels


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_levels_are_all_sums_over_the_greatest(bits: int):
    np.testing.assert_allclose([float(n) for n in fractions(bits, True)], levels_of(bits, True), atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_cells_of_half_a_step_find_the_nearest_level(bits: int):
    levels, random = fractions(bits, True), np.random.default_rng(bits)
    d = denominator(levels)
    x = random.uniform(0, 1, 100_000)
    cells = np.floor(x * 2 * d).astype(int)
    real = np.array([float(n) for n in levels])
    nearest = real[np.abs(x[:, None] - real).argmin(axis=1)]
    np.testing.assert_allclose(cell_levels(levels)[cells] / d, nearest, atol=1e-12)
    assert 2 * d < 256 and len(levels) == 1 << bits


@pytest.mark.parametrize(("bits", "additive"), [(2, True), (3, True), (4, True), (5, True), (3, False), (8, False)])
def test_every_weight_is_the_rules_to_the_last_bit(tmp_path: Path, bits: int, additive: bool):
    state = trained(bits)
    path = write(tmp_path, state, bit=bits, quantizer="apot" if additive else "uniform")
    constants, reference = open_model(path).graph.constants, Reference(state, bits, additive)
    for name in (*convolutions(state), "conv1", "fc"):
        wanted = reference.weight(name, state[f"{name}.weight"])
        np.testing.assert_array_equal(constants[f"{name}/weight"].decode(), wanted, name)


def test_edges_are_scaled_by_the_greatest_weight_and_not_by_the_greatest_magnitude(tmp_path: Path):
    state = trained(4)
    state["conv1.weight"][0, 0, 0, 0] = -4 * state["conv1.weight"].max()
    result = open_model(write(tmp_path, state, bit=4)).graph.constants["conv1/weight"].decode()
    np.testing.assert_array_equal(result, Reference(state, 4, True).weight("conv1", state["conv1.weight"]))
    assert result.min() < -3 * result.max()


def test_a_tie_between_levels_goes_to_one_of_them():
    levels = levels_of(2, True)
    weight = np.array([-1.5, -0.5, 0.5, 1.5], F)
    assert set(weight_indices(weight, F(1), levels)) <= set(range(7))


# ---- networks


@pytest.mark.parametrize("name", FILES)
def test_real_networks_equal_a_forward_pass_of_their_own(testdata: Path, name: str):
    images, count, bits, additive, right = FILES[name]
    path = testdata / f"vision/apot/{name}.safetensors"
    x, y = images(testdata, count)
    result, wanted = logits(path, x), Reference(load_file(path), bits, additive).logits(x)
    agree(result, wanted, 0.75)  # how many images round at a tie depends on the order in which a machine sums
    assert (result.argmax(axis=1) == y).sum() == (wanted.argmax(axis=1) == y).sum() == right


def test_a_real_float_network_has_edges_of_8_bits(testdata: Path):
    path = testdata / "vision/apot/cifar_res20_fp32.safetensors"
    x, _ = cifar(testdata, 25)
    agree(logits(path, x), Reference(load_file(path), 32, False).logits(x))


@pytest.mark.parametrize(
    ("bits", "quantizer", "how"),
    [
        (3, "apot", {"kernel": 7, "channels": 1, "blocks": (1, 1, 1, 1), "widths": (4, 6, 8, 10)}),
        (4, "uniform", {"kernel": 7, "three": True, "blocks": (2, 1), "widths": (4, 6)}),
        (5, "apot", {"blocks": (2, 1, 1), "widths": (6, 8, 12)}),
        (2, "apot", {"blocks": (1, 2), "projected": False}),
        (32, "none", {"blocks": (1, 2)}),
    ],
)
def test_networks_of_every_kind(tmp_path: Path, bits: int, quantizer: str, how: dict[str, Any]):
    state = trained(bits, "weight_quant.wgt_alpha", **how)
    side = 28 if how.get("channels") == 1 else 64 if how.get("kernel") == 7 else 32
    channels = how.get("channels", 3)
    write(tmp_path, state, bit=bits, quantizer=quantizer, image=[channels, side, side])
    x = np.random.default_rng(1).standard_normal((4, channels, side, side)).astype(F)
    wanted = Reference(state, bits, quantizer == "apot").logits(x)
    agree(logits(tmp_path, x), wanted, 0.75)


def test_edges_may_be_floats(tmp_path: Path):
    state = trained(3)
    x = np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(F)
    agree(logits(write(tmp_path, state, bit=3, edges=32), x), Reference(state, 3, True, 32).logits(x), 0.75)


def test_stored_tensors_stay_as_they_are(tmp_path: Path):
    state = trained(4)
    model = open_model(write(tmp_path, state, bit=4))
    assert {name.removeprefix("module.") for name in model.tensors} == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(model.tensors[f"module.{name}"].decode(), array)
    assert all(isinstance(view(model.tensors[f"module.{name}.weight"]), Floats) for name in convolutions(state))
    assert all(origin.proven for origin in model.origins)


def test_a_package_gives_the_safetensors_file_back(tmp_path: Path):
    source = tmp_path / "net.safetensors"
    save_file(trained(3), source, {"bit": "3", "quantizer": "apot"})
    qdeploy.convert(source, tmp_path / "package", to="ir")
    qdeploy.convert(tmp_path / "package", tmp_path / "back", to="source")
    assert (tmp_path / "back/net.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_both_forms_of_torch_are_read_and_a_bare_state_dict(tmp_path: Path, save: Any):
    state = trained(3)
    save(tmp_path / "checkpoint.pth", state)
    (tmp_path / apot.CONFIG).write_text('{"bit": 3}')
    model = open_model(tmp_path / "checkpoint.pth")
    assert model.format == "apot" and len(model.graph.constants) > 8


def test_metadata_says_what_a_file_of_safetensors_is(tmp_path: Path):
    source = tmp_path / "net.safetensors"
    save_file(trained(3), source, {"bit": "3", "quantizer": "uniform"})
    assert open_model(source).graph.meta["ranges"] and open_model(source).format == "apot"
    save_file(trained(3), source)
    with pytest.raises(UnsupportedError, match="how many bits") as caught:
        open_model(source)
    assert "apot.json" in str(caught.value)


# ---- what is refused


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"quantizer": "apot"}, "how many bits"),
        ({"bit": 4, "quantizer": "learned"}, "quantizer"),
        ({"bit": 6}, "no levels"),
        ({"bit": 1}, "no levels"),
        ({"bit": 9, "quantizer": "uniform"}, "no levels"),
        ({"bit": 10**30}, "not a number"),
        ({"bit": "four"}, "not a number"),
        ({"bit": True}, "not a number"),
        ({"bit": -4}, "not a number"),
        ({"bit": 4.0}, "not a number"),
        ({"bit": None}, "not a number"),
        ({"bit": 4, "edges": 4}, "first and last"),
        ({"bit": 4, "arch": 20}, "name"),
        ({"bit": 4, "arch": "resnet20"}, "another network"),
        ({"bit": 4, "bits": 4}, "unknown key"),
        ({"bit": 4, "image": [3, 32]}, "shape of an image"),
        ({"bit": 4, "image": [3, 0, 32]}, "shape of an image"),
        ({"bit": 4, "image": "32"}, "shape of an image"),
        ({"bit": 4, "mean": [0.5]}, "mean or spread"),
        ({"bit": 4, "std": [0, 1, 1]}, "mean or spread"),
        ({"bit": 4, "quantizer": ["apot"]}, "quantizer"),
        ({"bit": 4, "image": [1, 28, 28]}, "does not fit"),
    ],
)
def test_a_side_file_that_says_nonsense_is_refused(tmp_path: Path, said: dict[str, Any], what: str):
    with pytest.raises(QdeployError, match=what):
        _ = open_model(write(tmp_path, trained(4), **said)).graph


@pytest.mark.parametrize("text", ["[]", "4", '"apot"', "null", "{", '{"bit": 4, "bit": 3}', '{"bit": NaN}'])
def test_a_side_file_of_another_type_is_refused(tmp_path: Path, text: str):
    write(tmp_path, trained(4))
    (tmp_path / apot.CONFIG).write_text(text)
    with pytest.raises(QdeployError):
        open_model(tmp_path)


@pytest.mark.parametrize("key", ["act_alpha", "weight_alpha"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-44, np.nan, np.inf, [1.0, 2.0], None])
def test_clips_that_are_none_are_refused_by_name(tmp_path: Path, key: str, value: Any):
    state = trained(4)
    name = f"layer1.0.conv2.{key}"
    if value is None:
        del state[name]
    else:
        state[name] = np.array(value, F)
    with pytest.raises(BadFileError) as caught:
        _ = open_model(write(tmp_path, state, bit=4)).graph
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer1.0.conv1.weight", lambda a: a[:, :4]),
        ("layer1.0.conv2.weight", lambda a: a[:, :, :2]),
        ("layer1.0.conv1.weight", lambda a: a.reshape(8, -1)),
        ("layer1.0.bn2.running_var", lambda a: a[:3]),
        ("fc.weight", lambda a: a[:, :5]),
        ("fc.bias", lambda a: a[:5]),
        ("conv1.weight", lambda a: a[:, :, 0, 0]),
        ("layer2.0.downsample.0.weight", lambda a: a[:6]),
        ("layer1.0.conv1.weight", lambda a: a * np.inf),
        ("layer1.0.conv1.weight", lambda a: np.ones_like(a)),
        ("conv1.weight", lambda a: -np.abs(a)),
        ("fc.weight", lambda a: a * 0),
        ("fc.weight", lambda a: np.where(a > 0, F(1e-44), F(-1))),
        ("bn1.running_var", lambda a: -a),
        ("layer1.0.bn1.bias", lambda a: a * np.nan),
        ("fc.bias", lambda a: np.full_like(a, np.inf)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, change: Any):
    state = trained(4)
    state[name] = np.ascontiguousarray(change(state[name]))
    with np.errstate(all="ignore"), pytest.raises(QdeployError):
        _ = open_model(write(tmp_path, state, bit=4)).graph


@pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_mean", "layer2.0.conv2.weight", "fc.bias", "fc.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str):
    state = trained(4)
    del state[name]
    with pytest.raises(BadFileError) as caught:
        _ = open_model(write(tmp_path, state, bit=4)).graph
    assert name in str(caught.value)


def test_a_tensor_that_occurs_twice_is_refused(tmp_path: Path):
    state = trained(4)
    save_zip(tmp_path / "a.pth", {**state, "module.fc.bias": state["fc.bias"]})
    (tmp_path / apot.CONFIG).write_text('{"bit": 4}')
    with pytest.raises(BadFileError, match="twice"):
        _ = open_model(tmp_path).graph


def test_tensors_without_a_place_are_refused(tmp_path: Path):
    state = trained(4) | {"layer1.0.se.weight": np.ones((4, 4), F)}
    with pytest.raises(UnsupportedError, match="not a residual network"):
        _ = open_model(write(tmp_path, state, bit=4)).graph


def test_an_image_that_nobody_knows_is_asked_for(tmp_path: Path):
    state = trained(4, channels=2)
    with pytest.raises(UnsupportedError, match="how large an image is"):
        _ = open_model(write(tmp_path, state, bit=4)).graph
    (tmp_path / apot.CONFIG).write_text('{"bit": 4, "image": [2, 16, 16], "mean": [0.5, 0.5], "std": [0.5, 0.25]}')
    graph = open_model(tmp_path).graph
    assert graph.inputs[0].shape == ("batch", 2, 16, 16) and graph.meta["ranges"] == {"input": [-2.0, 2.0]}


@pytest.mark.parametrize(
    "value", [{"state_dict": []}, {"state_dict": {}}, [1, 2], {"state_dict": {"conv1.weight": 3}}, 7]
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, value: Any):
    save_zip(tmp_path / "model_best.pth.tar", value)
    (tmp_path / apot.CONFIG).write_text('{"bit": 4}')
    with pytest.raises(BadFileError):
        open_model(tmp_path)


def test_damaged_files_and_several_files_are_refused(tmp_path: Path):
    write(tmp_path, trained(4), bit=4)
    whole = (tmp_path / "model_best.pth.tar").read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model_best.pth.tar").write_bytes(whole[:size])
        with pytest.raises(QdeployError):
            open_model(tmp_path)
    (tmp_path / "model_best.pth.tar").write_bytes(whole)
    (tmp_path / "checkpoint.pth").write_bytes(whole)
    with pytest.raises(QdeployError):
        open_model(tmp_path)
