"""The main job: a checkpoint in, an artifact out, and the proof that nothing was lost.

path -> open -> sniff -> read -> (quantize) -> package or backend -> check against the numpy semantics -> report. The
output appears under its final name only when all of that went well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qdeploy import registry
from qdeploy.derive import INTEGER_OPTIONS, derived, integers_asked, option_names, target_options
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir import rules
from qdeploy.ir.model import Model
from qdeploy.progress import SILENT, Progress
from qdeploy.store.output import REPORT, Staged, refuse_existing, staged
from qdeploy.store.recode import keep_slabs
from qdeploy.version import VERSION

Report = dict[str, Any]
Check = Literal["auto", "nodes", "full", "none"]


def load(path: str | os.PathLike[str], *, format: str = "", trust_links: bool = False) -> Model:
    """Opens any readable checkpoint or package; tensors are read when they are asked for.

    Args:
        path: A checkpoint folder or file, or a package.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the folder.

    Returns:
        The model: `tensors` by the source's parameter names, `graph`, `config`.

    Raises:
        QdeployError: The path is no readable checkpoint; the error says what was found and what is allowed.

    Example:
        >>> model = load("examples/models/tiny-llama-gptq")
        >>> model.tensors["model.layers.0.mlp.up_proj.weight"].decode().shape
        (384, 128)
    """
    return registry.open_model(path, format, trust_links)


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    /,
    *,
    to: str = "onnx",
    activations: str = "exact",
    quantize: str | Sequence[str] = (),
    requantize: bool = False,
    jobs: int = 1,
    check: Check = "auto",
    force: bool = False,
    format: str = "",
    trust_links: bool = False,
    progress: Progress = SILENT,
    lower: str = "",
    **more: Any,
) -> Report:
    """Converts a checkpoint.

    Args:
        source: Checkpoint folder, file or package.
        output: The output folder, or file for "native"; appears when everything is done.
        to: "onnx", "native" (one file), "tvm" (integers only), "ir" (a package), "source" (a package's source files),
            or a plug-in's target.
        activations: "exact" (float32 arithmetic) or "int8" (activations rounded per block where that is faster).
        quantize: For float sources, for example "rtn:int4,group=128".
        requantize: Allow a target to quantize again what it cannot hold; the loss is reported.
        jobs: Shards that are written at the same time.
        check: What runs against numpy: "nodes" (each form once), "full" (also the model), "auto" (by size), "none".
        force: Replace an existing output.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the source folder.
        progress: Told of every stage.
        lower: Another form, for BitStack's tensors: "sign-planes:group=128"; the loss is reported.
        more: Options that only this target has: layout, order and sensitivities for "native", target, forms and axes
            for "tvm", integer ("strict" or "fast") for "onnx". And how a network becomes one of integers ("tvm",
            `integer`, or "ir" with calibration data): calibrate (an .npz file with inputs), calibrate_method,
            weight_bits, activation_bits, layer_bits, rounding; see `qdeploy.calibrate.network.Integers`. Or allocate: a
            limit within which the bits of layers are chosen, "size:0.5"; see `qdeploy.allocation.Asked.parse`.

    Returns:
        The report, which also stands in `report.json` of an output that is a folder.

    Raises:
        QdeployError: Bad input, unsupported content, a failed proof or check; nothing stands under `output` then.

    Example:
        >>> report = convert("examples/models/tiny-llama-gptq", "out", to="onnx")
        >>> report["tensors"]["model.layers.0.mlp.up_proj.weight"]["encoding"]
        'uint4 g128 scale f16 zero uint4'
    """
    path = Path(output)
    _refuse_nesting(Path(source), path)
    refuse_existing(path, force, to not in ("ir", "source") and bool(_file_of(registry.backend(to))))
    keep_slabs()
    specs = [quantize] if isinstance(quantize, str) else list(quantize)
    options = {"activations": activations, "quantize": specs, "requantize": requantize, "check": check}
    options |= {"lower": lower} if lower else {}
    settings, integers = _settings(to, {**options, "jobs": jobs}, more)
    model = _open(source, format, trust_links)
    if integers is not None and more.get("allocate"):
        chosen = _bits(derived(model, specs, lower), more, progress)
        more, integers = {**more, "layer_bits": chosen}, {**integers, "layer_bits": chosen}
    model = derived(model, specs, lower, integers, progress)
    options |= more
    if to == "ir":
        return _to_package(model, path, options, jobs, force, progress)
    if to == "source":
        return _to_source(model, path, force, progress)
    return _to_backend(model, path, to, options, settings, force, progress)


def _settings(to: str, options: dict[str, Any], more: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """The target's Options, and how to make integers; BadArgumentError names an option that there is not."""
    target = None if to in ("ir", "source") else registry.backend(to)
    own = [name for name in (option_names(target) if target else ()) if name not in ("conversion", *options)]
    integers = integers_asked(target, more) if to != "source" else None
    own += (*INTEGER_OPTIONS, "allocate") if integers is not None else ()
    unknown = [name for name in more if name not in own]
    if unknown:
        todo = "Integers are made with --to tvm, --to onnx --integer strict|fast, or --to ir --calibrate."
        raise BadArgumentError(
            f"the target {to} has no such option",
            found=", ".join(unknown),
            allowed=", ".join(own) or "none of its own",
            todo=todo if set(unknown) & {*INTEGER_OPTIONS, "allocate"} else "",
        )
    asked = {"quantize": options["quantize"], "lower": options.get("lower", "")}
    if to == "source" and any(asked.values()):
        raise BadArgumentError(
            "source files are written as they were", found=", ".join(k for k, v in asked.items() if v)
        )
    return (target_options(target, {**options, **more, "conversion": asked}) if target else None), integers


def _bits(model: Model, asked: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The bits of each layer, chosen within the limit that was asked for."""
    from qdeploy.allocation import Asked, allocated
    from qdeploy.calibrate.calibrate import read_data

    how = Asked.parse(asked["allocate"])
    given = [name for name in ("layer_bits", "weight_bits", "activation_bits") if asked.get(name)]
    if given or not asked.get("calibrate"):
        raise BadArgumentError(
            "bits are chosen by calibration data, and by nothing else",
            found=", ".join(given) or "no calibration data",
            todo="Pass --calibrate DATA.npz, and no bits beside --allocate.",
        )
    bits: dict[str, Any] = allocated(model, read_data(str(asked["calibrate"])), how, progress)["bits"]
    return bits


def _open(source: str | os.PathLike[str], format: str, trust_links: bool) -> Model:
    """The model, with every index and scale of it checked."""
    model = registry.open_model(source, format, trust_links)
    for name, tensor in model.tensors.items():
        rules.check(tensor, name)
        rules.check_values(tensor, name)
    return model


def _to_package(
    model: Model, path: Path, options: dict[str, Any], jobs: int, force: bool, progress: Progress
) -> Report:
    from qdeploy.ir.package_write import plan_package, write_package
    from qdeploy.proof.report import make_report

    try:
        graph = model.graph
    except UnsupportedError as error:  # tensors can be carried without a network
        graph = None
        model.notes.append(f"no graph: {error.what} {error.found}".strip())
    plan = plan_package(model.tensors, graph.constants if graph else {})
    with staged(path, _identity(model, "ir", plan.identity()), force) as stage:
        write_package(model, graph, stage, plan, progress, jobs)
        kept = {
            name: value
            for name, value in options.items()
            if name in ("quantize", "lower", "allocate", *INTEGER_OPTIONS)
        }
        report = make_report(model, "ir", kept, [], [])
        _write_report(stage, report)
    return report


def _to_backend(
    model: Model, path: Path, to: str, options: dict[str, Any], settings: Any, force: bool, progress: Progress
) -> Report:
    from qdeploy.proof.report import make_report
    from qdeploy.proof.roundtrip import prove

    target = registry.backend(to)
    only = _file_of(target)
    with staged(path, _identity(model, to, os.urandom(8).hex()), force, keep=False, only=only) as stage:
        lowered = target.lower(model, stage.path, settings, progress)
        prove(model, model.tensors, progress)
        checks = target.check(model, stage.path, lowered, options["check"])
        report = make_report(model, to, options, lowered.choices, checks, lowered.notes)
        if not only:
            _write_report(stage, report)
    return report


def _file_of(target: Any) -> str:
    """The one file that a backend writes, which is then the output; empty: the output is a folder."""
    return str(getattr(target, "FILE", ""))


def _to_source(model: Model, path: Path, force: bool, progress: Progress) -> Report:
    from qdeploy.proof.report import make_report
    from qdeploy.proof.restore import restore_files

    if model.format != "package":
        raise BadArgumentError(
            "only a package holds what is needed to write its source again",
            where=model.path,
            found=model.format,
            allowed="package",
            todo="Convert it with --to ir first.",
        )
    with staged(path, _identity(model, "source", os.urandom(8).hex()), force, keep=False) as stage:
        restore_files(model, stage, progress)
        return make_report(model, "source", {}, [], [])


def _identity(model: Model, to: str, plan: str) -> str:
    """What a partial output must agree in to be continued: the work, and the source files as they are now."""
    path = Path(model.path)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    stamps = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return json.dumps([VERSION, to, plan, stamps])


def _write_report(stage: Staged, report: Report) -> None:
    stage.write_json(REPORT, report)


def _refuse_nesting(source: Path, target: Path) -> None:
    inside, outside = target.resolve(), source.resolve()
    if inside == outside or inside in outside.parents or (outside.is_dir() and outside in inside.parents):
        raise BadArgumentError(
            "source and output overlap",
            where=str(target),
            found=str(source),
            todo="Choose an output folder outside of the source.",
        )
