"""The specification of a conversion: one value that convert, verify, plan and the records of outputs share.

    ConversionSpec
        to        the target's name
        source    how the source is read        (SourceOptions)
        passes    what is done to it first      (Passes, with Integers)
        target    the options of the target      (its own dataclass)
        check     how much of the output is run

All options of it have names of their own, so that a flat JSON object, the keyword arguments of `qdeploy.convert` and
the options of the command line are the same thing. An option that the target cannot honour is an error that says where
it is allowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdeploy import registry
from qdeploy.calibrate.integers import Integers
from qdeploy.catalog.table import is_built_in
from qdeploy.contracts.backends import LEVELS, Level
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.options import Option, SourceOptions, TargetOptions, option, options_of, refuse_unknown, requested

PACKAGE, SOURCE = "ir", "source"
_RECORDED: dict[str, object] = {"activations": "exact", "quantize": [], "requantize": False, "check": "auto"}
"""Options that the record of every output holds, even at their defaults."""
_CALL = {"to", "src", "dst", "source", "output", "force", "progress", "as_json", "json", "quiet", "debug", "help"}
"""What else `qdeploy.convert` and its command line take, which no option of a target may be called."""
_ANYWHERE: dict[str, object] = {"activations": "exact", "requantize": False, "jobs": 1}
"""Options of some targets that `qdeploy.convert` names for all: these values leave them off."""


@dataclass(frozen=True)
class Passes:
    """What is done to the source before the target takes it.

    Attributes:
        recover: The grid that float weights lie on, which become its codes (`qdeploy.recover.spec.parse`).
        quantize: Specs of quantizers for float weights; the first that takes a tensor has it (`qdeploy.quantize`).
        lower: Another form for sums of signs times low-rank products ("sign-planes:group=128").
        allocate: A limit within which the bits of layers are chosen (`qdeploy.allocation.AllocationSpec.parse`).
        integers: How a network becomes one of integers, where the target takes one.
    """

    recover: str = option(
        "",
        "For fake-quantized floats: the codes and scales that they were made from, proven bit for bit. auto, or "
        "FAMILY[,group=N|row|tensor][,skip=REGEX][,only=REGEX].",
        metavar="auto|SPEC",
    )
    quantize: tuple[str, ...] = option((), "For float sources: METHOD[:TYPE][,option=value...].", metavar="SPEC")
    lower: str = option(
        "",
        "sign-planes[:group=128]: BitStack's blocks as residual sign planes; the loss is reported.",
        metavar="FORM",
    )
    allocate: str = option(
        "",
        "Choose the bits of each layer within size:0.5, size:3.5MB, bops:72G or latency:12ms"
        "[,sensitivity=NAME][,choices=8x8/4x8][,latency=FILE]; see qdeploy allocate.",
        metavar="LIMIT",
    )
    integers: Integers = field(default_factory=Integers)

    def __post_init__(self) -> None:
        """Refuses specs that do not parse."""
        refuse_unknown(self)
        if self.recover:
            from qdeploy.recover.spec import parse as parse_recovery

            parse_recovery(self.recover)
        if self.quantize or self.lower:
            from qdeploy.quantize.specs import parse, parse_lowering

            for spec in self.quantize:
                parse(spec)
            if self.lower:
                parse_lowering(self.lower)


@dataclass(frozen=True)
class PackageOptions(TargetOptions):
    """The options of the package writer, which writes `jobs` shards at a time."""

    jobs: int = option(1, "Shards written at a time.", least=1, most=64, recorded=False)

    def __post_init__(self) -> None:
        """Refuses values that are not allowed."""
        refuse_unknown(self)

    @property
    def reads_rows(self) -> bool:
        """Packages are read by rows."""
        return True


@dataclass(frozen=True)
class ConversionSpec:
    """All options of a conversion; see the module.

    Raises:
        BadArgumentError: A value is not allowed, or values contradict each other.
    """

    to: str = "onnx"
    source: SourceOptions = field(default_factory=SourceOptions)
    passes: Passes = field(default_factory=Passes)
    target: TargetOptions = field(default_factory=TargetOptions)
    check: Level = option(
        "auto",
        "How much of the output runs against numpy: one node per form, or the whole model.",
        choices=LEVELS,
    )

    def __post_init__(self) -> None:
        """Refuses combinations of options that each part alone allows."""
        refuse_unknown(self)
        passes = requested(self.passes)
        if self.to == SOURCE and passes:
            raise BadArgumentError("source files are written as they were", found=", ".join(passes))
        if self.to in (PACKAGE, SOURCE) and self.check not in ("auto", "none"):
            raise BadArgumentError(
                f"the target {self.to} has nothing that could be run",
                where="check",
                found=self.check,
                allowed="auto, none",
            )

    @classmethod
    def of(cls, to: str, values: Mapping[str, object]) -> ConversionSpec:
        """The spec of a target and options by name.

        Raises:
            UnsupportedError: There is no such target.
            BadArgumentError: The target has no such option, or the option no such value.
        """
        settings = options_class(to)
        values = _with_ladders(settings, dict(values))
        _refuse_unhonoured(to, settings, values)
        source, passes, integers, target = (
            _taken(part, values) for part in (SourceOptions, Passes, Integers, settings)
        )
        check = _taken(cls, values)
        spec = cls(
            to,
            SourceOptions(**source),
            Passes(**passes, integers=Integers(**integers)),
            settings(**target),
            **check,
        )
        return spec.with_arithmetic()

    def with_arithmetic(self) -> ConversionSpec:
        """The same, with sums of 8 bits where the target computes so."""
        narrow = self.target.arithmetic == "narrow"
        integers = dataclasses.replace(self.passes.integers, narrow_sums=narrow)
        return dataclasses.replace(self, passes=dataclasses.replace(self.passes, integers=integers))

    @property
    def integers(self) -> Integers | None:
        """How the network becomes one of integers; None where the output holds what the source does."""
        wanted = self.target.arithmetic or (self.to == PACKAGE and self.passes.integers.calibrate)
        return self.passes.integers if wanted else None

    def with_layer_bits(self, bits: Mapping[str, Any]) -> ConversionSpec:
        """The same, with bits for single layers."""
        integers = dataclasses.replace(self.passes.integers, layer_bits=bits)
        return dataclasses.replace(self, passes=dataclasses.replace(self.passes, integers=integers))

    def with_quantizers(self, specs: tuple[str, ...]) -> ConversionSpec:
        """The same, with these specs of quantizers."""
        return dataclasses.replace(self, passes=dataclasses.replace(self.passes, quantize=specs))

    def to_json(self) -> dict[str, object]:
        """The specification as a flat JSON object: the target, and the options that differ from their defaults."""
        values = {"to": self.to, **requested(self.source), **self._passes(), **requested(self.target)}
        return {**values, "check": self.check} if self.check != "auto" else values

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> ConversionSpec:
        """The inverse of `to_json`; raises as `of`."""
        return cls.of(str(values.get("to", "onnx")), {name: v for name, v in values.items() if name != "to"})

    def record(self) -> dict[str, object]:
        """The options that an output records, as JSON: those that its content depends on.

        For a package these are the passes; `recorded` reads them.
        """
        passes = {**self._source(), **self._passes()}
        if self.to in (PACKAGE, SOURCE):
            return {"quantize": [], **passes} if self.to == PACKAGE else {}
        kept = {known.name for known in options_of(type(self.target)) if known.recorded}
        own = {name: value for name, value in requested(self.target).items() if name in kept}
        return {**_RECORDED, "check": self.check, **passes, **own}

    def _source(self) -> dict[str, object]:
        kept = {known.name for known in options_of(SourceOptions) if known.recorded}
        return {name: value for name, value in requested(self.source).items() if name in kept}

    def _passes(self) -> dict[str, object]:
        passes = requested(self.passes)
        allocate = {"allocate": passes.pop("allocate")} if "allocate" in passes else {}
        return {**passes, **requested(self.passes.integers), **allocate}

    def embedded_record(self) -> dict[str, object]:
        """What a file says of the conversion besides the options of its own target."""
        recover = {"recover": self.passes.recover} if self.passes.recover else {}
        return {**self._source(), **recover, "quantize": list(self.passes.quantize), "lower": self.passes.lower}


def options_class(to: str) -> type[TargetOptions]:
    """The dataclass of a target's options; UnsupportedError where there is no such target."""
    if to == SOURCE:
        return TargetOptions
    if to == PACKAGE:
        return PackageOptions
    settings = registry.backend(to).options
    if not is_built_in(registry.BACKENDS.get(to)):
        _refuse_clashes(to, settings, target_options(before=to))
    return settings


def shared_options() -> dict[str, Option]:
    """The options that no target owns, by name: of the source, of the passes, and the check."""
    groups: tuple[type[Any], ...] = (SourceOptions, Passes, Integers, ConversionSpec)
    return {known.name: known for group in groups for known in options_of(group)}


def target_options(before: str = "") -> dict[str, type[TargetOptions]]:
    """The dataclasses of options of all targets that can be loaded, by the target's name; those in front of `before`.

    A plug-in whose options cannot be told from others is left out, as one that cannot be imported.
    """
    targets: dict[str, type[TargetOptions]] = {PACKAGE: PackageOptions}
    for name, row in registry.BACKENDS.rows().items():
        if name == before:
            break
        try:
            settings = row.load().options
            if not is_built_in(row):
                _refuse_clashes(name, settings, targets)
            targets[name] = settings
        except UnsupportedError:  # `qdeploy formats` says why
            continue
    return targets


def _refuse_clashes(to: str, settings: type[TargetOptions], others: Mapping[str, type[TargetOptions]]) -> None:
    """Raises UnsupportedError where an option of a plug-in's target has the name of something else.

    Targets may share the name of an option, which then is one option of the command line, of one type.
    """
    taken = _CALL | set(shared_options()) | {known.flag for known in shared_options().values() if known.flag}
    elsewhere = [known for other in others.values() for known in options_of(other)]
    for known in options_of(settings):
        alike = [other for other in elsewhere if known.name == other.name]
        flags = {other.flag or other.name for other in elsewhere if other.name != known.name}
        clash = {known.name, known.flag} & taken or {known.flag or known.name} & flags
        if clash or any(type(other.default) is not type(known.default) for other in alike):
            raise UnsupportedError(
                f"an option of the target {to} has the name of another option",
                where=registry.BACKENDS.get(to).place,
                found=known.name,
                todo="Report it to whoever brings the target.",
            )


def _taken(part: type[Any], values: Mapping[str, object]) -> dict[str, Any]:
    """The values that are options of a part, as its fields hold them."""
    return {known.name: known.parsed(values[known.name]) for known in options_of(part) if known.name in values}


def _refuse_unhonoured(to: str, settings: type[TargetOptions], values: dict[str, object]) -> None:
    """Raises for options that a target does not have; takes out those that every record and call has at a default."""
    own = {known.name for known in options_of(settings)}
    for name, default in _ANYWHERE.items():
        if name not in own and values.get(name) == default and type(values.get(name)) is type(default):
            del values[name]
    integers = {known.name for known in options_of(Integers)} | {"allocate"}
    taken = own | set(shared_options()) - (set() if _makes_integers(to, settings, values) else integers)
    wrong = [name for name in values if name not in taken]
    if not wrong:
        return
    todo = [_where(name) for name in wrong if name not in integers]
    if set(wrong) & integers:
        todo.append("Integers are made with --to tvm, --to onnx --integer strict|fast, or --to ir --calibrate.")
    raise BadArgumentError(
        f"the target {to} has no such option",
        found=", ".join(map(str, wrong)),
        allowed=", ".join(known.name for known in options_of(settings)) or "none of its own",
        todo=" ".join(filter(None, todo)),
    )


def _with_ladders(settings: type[TargetOptions], values: dict[str, object]) -> dict[str, object]:
    """A calibration text as what it means to a target that reads one: ladders, whose losses are measured on it."""
    if not values.get("calibrate") or not settings().reads_text:
        return values
    text = str(values.pop("calibrate"))
    measure = {} if os.path.isdir(text) else {"measure": text}
    return {**measure, **values, "quantize": values.get("quantize") or (f"ladder:calibrate={text}",)}


def _makes_integers(to: str, settings: type[TargetOptions], values: Mapping[str, object]) -> bool:
    if to == PACKAGE:
        return bool(values.get("calibrate"))
    return bool(settings(**_taken(settings, values)).arithmetic)


def _where(name: str) -> str:
    """Where an option is allowed, as a sentence; empty where nothing has it."""
    owners = [to for to, settings in target_options().items() if name in {o.name for o in options_of(settings)}]
    return f"{name} is an option of {' and '.join(f'--to {to}' for to in owners)}." if owners else ""
