"""The main job: a checkpoint in, an artifact out, and the proof that nothing was lost.

path -> open -> sniff -> read -> (quantize) -> package or backend -> check against the numpy semantics -> report. The
output appears under its final name only when all of that went well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdeploy import registry
from qdeploy.contracts import answers
from qdeploy.contracts.backends import BackendRow, Level
from qdeploy.contracts.results import CheckResult
from qdeploy.derive import completed, derived, restated
from qdeploy.errors import BadArgumentError, BadFileError, UnsupportedError
from qdeploy.extras import require
from qdeploy.ir import rules
from qdeploy.ir.data_rules import first_nonfinite
from qdeploy.ir.model import Model
from qdeploy.options import requested
from qdeploy.progress import SILENT, Progress
from qdeploy.spec import PACKAGE, SOURCE, ConversionSpec, PackageOptions
from qdeploy.store.codec import keep_slabs
from qdeploy.store.finished import folder_beside, forget
from qdeploy.store.output import Staged, content_hash, refuse_existing, staged
from qdeploy.store.report_form import REPORT
from qdeploy.version import VERSION

Report = dict[str, Any]
_SLOWER = 1.05
"""A ratio of times above which a user is told."""
_NONFINITE = "carried as it is, and the output is not run"


def load(path: str | os.PathLike[str], *, format: str = "", trust_links: bool = False, **more: Any) -> Model:
    """Opens any readable checkpoint or package; a tensor is read at its first use.

    Args:
        path: A checkpoint folder or file, or a package.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the folder.
        more: The other fields of `qdeploy.options.SourceOptions`: signature, allow_nonfinite, no_verify.

    Returns:
        The model: `tensors` by the source's parameter names, `graph`, `config`.

    Raises:
        QdeployError: The path is not a readable checkpoint; the error says what was found and what is allowed.

    Example:
        >>> model = load("examples/models/tiny-llama-gptq")
        >>> model.tensors["model.layers.0.mlp.up_proj.weight"].decode().shape
        (384, 128)
    """
    return registry.open_model(path, format, trust_links, **more)


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
    check: Level = "auto",
    force: bool = False,
    format: str = "",
    trust_links: bool = False,
    progress: Progress = SILENT,
    lower: str = "",
    timing: bool | None = False,
    **more: Any,
) -> Report:
    """Converts a checkpoint.

    Args:
        source: Checkpoint folder, file or package.
        output: The output folder, or file for "native"; appears when everything is done.
        to: "onnx", "native" (one file), "tvm" (integers only), "ir" (a package), "source" (a package's source files),
            or a plug-in's target.
        activations: For "onnx": "exact" (float32 arithmetic) or "int8" (activations rounded per block).
        quantize: For float sources, for example "rtn:int4,group=128". Embeddings are rounded to 8 bits besides, where
            the target reads them by rows and no method names or skips them.
        requantize: Allow a target to quantize again what it cannot hold; the loss is reported.
        jobs: Shards that are written at the same time ("onnx", "ir").
        check: What runs against numpy: "nodes" (each form once), "full" (also the model), "auto" (by size), "none".
        force: Replace an existing output.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the source folder.
        progress: Told of every stage.
        timing: Measure what quantizing has done to a network's time on this machine ("onnx"), for about a second; the
            report then has "timing". None: not of decoders, which is never said.
        lower: Another form, for BitStack's tensors: "sign-planes:group=128"; the loss is reported.
        more: Options of the target, by the fields of its `Options` (`qdeploy convert --help` lists them by target). And
            where it takes integers, those of `qdeploy.calibrate.integers.Integers`, and allocate: a limit within which
            the bits of layers are chosen, "size:0.5"; see `qdeploy.allocation.AllocationSpec.parse`.

    Returns:
        The report, which also stands in `report.json` of an output that is a folder.

    Raises:
        QdeployError: Bad input, unsupported content, a failed proof or check; nothing stands under `output` then.

    Example:
        >>> report = convert("examples/models/tiny-llama-gptq", "out", to="onnx")
        >>> report["tensors"]["model.layers.0.mlp.up_proj.weight"]["encoding"]
        'uint4 g128 scale f16 zero uint4'
    """
    values = {"activations": activations, "quantize": quantize, "requantize": requantize, "jobs": jobs, "check": check}
    values |= {"lower": lower, "format": format, "trust_links": trust_links, **more}
    return run(ConversionSpec.of(to, values), source, output, force=force, progress=progress, timing=timing)


def run(
    spec: ConversionSpec,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress = SILENT,
    timing: bool | None = False,
) -> Report:
    """Converts a checkpoint as a spec says; arguments, result and errors are those of `convert`."""
    path = Path(output)
    row = None if spec.to in (PACKAGE, SOURCE) else registry.BACKENDS.get(spec.to).resolved()
    require(*(row.packages if row is not None else ()), purpose=f"the target {spec.to}")
    _refuse_nesting(Path(source), path)
    refuse_existing(path, force, row is not None and row.load().file is not None, row.magic if row is not None else b"")
    keep_slabs()
    model = _open(source, spec)
    spec = completed(model, spec)
    if spec.integers is not None and spec.passes.allocate:
        spec = spec.with_layer_bits(_bits(restated(model, spec), spec, progress))
    finished = folder_beside(path)
    floats, model = model, derived(model, spec, progress, finished)
    report = _written(floats, model, path, row, spec, force, progress, timing)
    forget(finished)
    return report


def _written(
    floats: Model,
    model: Model,
    path: Path,
    row: BackendRow | None,
    spec: ConversionSpec,
    force: bool,
    progress: Progress,
    timing: bool | None,
) -> Report:
    """The output of a model that was derived from `floats`."""
    if row is not None:
        quantized = timing is not False and (spec.passes.quantize or spec.integers is not None)
        quantized = quantized and (timing or not floats.graph.states)
        return _to_backend(model, path, row, spec, force, progress, floats if quantized else None)
    if spec.to == SOURCE:
        return _to_source(model, path, spec, force, progress)
    return _to_package(model, path, spec, force, progress)


def _bits(model: Model, spec: ConversionSpec, progress: Progress) -> dict[str, Any]:
    """The bits of each layer, chosen within the limit of the spec."""
    from qdeploy.allocation import allocated
    from qdeploy.calibrate.calibrate import read_data
    from qdeploy.limits import AllocationSpec

    how, integers = AllocationSpec.parse(spec.passes.allocate), requested(spec.passes.integers)
    explicit = [name for name in ("layer_bits", "weight_bits", "activation_bits") if name in integers]
    if explicit or not spec.passes.integers.calibrate:
        raise BadArgumentError(
            "bits are chosen by calibration data, and by nothing else",
            found=", ".join(explicit) or "no calibration data",
            todo="Pass --calibrate DATA.npz, and no bits beside --allocate.",
        )
    bits: dict[str, Any] = allocated(model, read_data(spec.passes.integers.calibrate), how, progress)["bits"]
    return bits


def _open(source: str | os.PathLike[str], spec: ConversionSpec) -> Model:
    """The model, with every index and scale of it checked."""
    model = registry.open_model(source, **vars(spec.source))
    with registry.FORMATS.get(model.format).blamed("while its tensors were read"):
        for name, tensor in model.tensors.items():
            rules.check(tensor, name)
            rules.check_values(tensor, name)
            _check_finite(model, name, spec.source.allow_nonfinite)
    model.notes.extend(_damage(model))
    return model


def _damage(model: Model) -> list[str]:
    """A note where the tokenizer.json that a model carries is none: weights are converted, texts cannot be run."""
    carried = next((file for file in model.files if file.path == "tokenizer.json"), None)
    if carried is None:
        return []
    try:
        loaded = json.loads(carried.data.read().tobytes())
    except (ValueError, RecursionError) as error:
        return [f"texts cannot be run: tokenizer.json is damaged: {str(error)[:100]}"]
    whole = isinstance(loaded, dict) and isinstance(loaded.get("model"), dict)
    return [] if whole else ["texts cannot be run: tokenizer.json is damaged: it has no object model"]


def _check_finite(model: Model, name: str, allowed: bool) -> None:
    """Refuses, or notes, a weight that is no number. A network's constants may hold infinities: masks do."""
    nonfinite = first_nonfinite(model.tensors[name], model.dialect in ("hf", "gguf"))
    if nonfinite is None:
        return
    row, what = nonfinite
    if not allowed:
        raise BadFileError(
            f"a weight is {what}",
            where=f"{name}, row {row}",
            allowed="finite numbers",
            todo="The checkpoint is damaged, or its training failed. --allow-nonfinite carries it as it is.",
        )
    model.notes.append(f"{name} holds {what} (row {row}): {_NONFINITE}")


def _to_package(model: Model, path: Path, spec: ConversionSpec, force: bool, progress: Progress) -> Report:
    from qdeploy.ir.package_write import plan_package, write_package
    from qdeploy.proof.report import make_report

    try:
        graph = model.graph
    except UnsupportedError as error:  # tensors can be carried without a network
        graph = None
        model.notes.append(f"no graph: {error.what} {error.found}".strip())
    plan = plan_package(model.tensors, graph.constants if graph else {})
    with staged(path, _identity(model, PACKAGE, plan.identity()), force) as stage:
        write_package(model, graph, stage, plan, progress, PackageOptions.of(spec.target).jobs)
        report = make_report(model, PACKAGE, spec.record(), [], [])
        _write_report(stage, report)
    return report


def _to_backend(
    model: Model,
    path: Path,
    row: BackendRow,
    spec: ConversionSpec,
    force: bool,
    progress: Progress,
    floats: Model | None = None,
) -> Report:
    """The output and its report; where `floats` are given, with the times of both."""
    from qdeploy.proof.report import make_report
    from qdeploy.proof.roundtrip import prove

    file, options = row.load().file, spec.target
    if file is not None:
        answers.refuse_file_name(row, file.name)
        with row.blamed("while it recorded the conversion"):
            options = file.recording(options, spec.embedded_record())
    identity, only = _identity(model, spec.to, os.urandom(8).hex()), file.name if file is not None else ""
    with staged(path, identity, force, keep=False, only=only, magic=row.magic) as stage:
        lowered = answers.lower(row, model, stage.path, options, progress)
        prove(model, model.tensors, progress)
        level = "none" if any(_NONFINITE in note for note in model.notes) else spec.check
        progress.start("running the output against its source", 1, "check")
        checks = answers.check(row, model, stage.path, lowered, level)
        progress.advance(1, spec.to)
        unrun = _not_run(level, checks)
        notes = [*lowered.notes, *([unrun] if unrun else [])]
        ran = [check for check in checks if not check.unrun]
        report = make_report(model, spec.to, spec.record(), lowered.choices, ran, notes)
        report |= {"not_run": unrun} if unrun else {}
        if floats is not None and not unrun:
            _add_timing(report, row, floats, model, stage.path, progress)
        if file is None:
            _write_report(stage, report)
    return report


def _add_timing(report: Report, row: BackendRow, floats: Model, model: Model, folder: Path, progress: Progress) -> None:
    """Says what quantizing has done to the time, where the target can tell."""
    speed = row.load().speed
    if speed is None:
        return
    progress.start("timing the output and the network in floats", 1, "model")
    timing = speed.against_floats(floats, model, folder)
    progress.advance(1, row.name)
    if isinstance(timing, str):
        report["notes"].append(f"not timed: {timing}")
        return
    report["timing"] = {"floats": timing.floats, "output": timing.output, "ratio": timing.ratio}
    if timing.ratio > _SLOWER:
        report["notes"].append(
            f"slower than in floats on this machine: {timing.output * 1e3:.3g} ms instead of {timing.floats * 1e3:.3g}"
        )


def _not_run(level: Level, checks: Sequence[CheckResult]) -> str:
    """Why an output stands here that nothing has run as a whole, as a sentence; empty where it ran, or need not."""
    if level == "none":
        return ""
    reasons = list(dict.fromkeys(check.unrun for check in checks if check.unrun))
    whole = any(check.name == "model" and not check.unrun for check in checks)
    if not reasons and checks and (whole or level != "full"):
        return ""
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"nothing here can run the output{why}, so it was written without this check; --check none accepts that"


def _to_source(model: Model, path: Path, spec: ConversionSpec, force: bool, progress: Progress) -> Report:
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
        restore_files(model, stage, progress, spec.source.no_verify)
        return make_report(model, "source", {}, [], [])


def _identity(model: Model, to: str, plan: str) -> str:
    """What a partial output must agree in to be continued: the work, and the source files as they are now."""
    path = Path(model.path)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    stamps = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return json.dumps([VERSION, to, plan, stamps])


def _write_report(stage: Staged, report: Report) -> None:
    report["content"] = content_hash(stage.path)
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
