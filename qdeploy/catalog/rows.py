"""A row of a catalog: a name, who brings it, and the object itself or where it is imported from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Self

from qdeploy.errors import QdeployError, UnsupportedError
from qdeploy.extras import missing

BUILT_IN = "built-in"
ADDED = "the program that runs"
"""Who brings a row that was added at run time and does not say so itself."""


@dataclass(frozen=True)
class Row:
    """Something that is known by name and loaded when it is needed.

    Attributes:
        name: As in `--format`, `--to` or `--quantize`.
        target: The object, or where it is: "package.module" or "package.module:attribute".
        origin: "built-in", the distribution that brings it, or `ADDED`.
    """

    name: str
    target: Any
    origin: str = BUILT_IN

    def loaded(self) -> Any:
        """The object, imported now if it has not been.

        Raises:
            UnsupportedError: It cannot be imported; the error names the package that is missing, or what was raised.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            loaded = import_module(module)
            return getattr(loaded, attribute) if attribute else loaded
        except ModuleNotFoundError as error:
            if self.origin == BUILT_IN and (error.name or "").startswith("qdeploy"):
                raise
            if self.origin == BUILT_IN:
                raise missing(error.name or "", self.name) from error
            raise UnsupportedError(
                f"{self.name} needs a package that is not installed: {error.name}",
                where=module,
                todo=f"Install what {self.origin} needs.",
            ) from error
        except (Exception, SystemExit) as error:
            if self.origin == BUILT_IN:
                raise
            raise UnsupportedError(
                f"the plug-in {self.name} cannot be imported: {type(error).__name__}: {error}",
                where=self.place,
            ) from error

    @property
    def place(self) -> str:
        """Where the object is and who brings it, as errors say it."""
        kind = self.target if isinstance(self.target, type) else type(self.target)
        target = self.target if isinstance(self.target, str) else f"{kind.__module__}.{kind.__qualname__}"
        return f"{target} of {self.origin}"

    @contextmanager
    def blamed(self, doing: str) -> Iterator[None]:
        """Lets errors name the plug-in that raised them; what this project's own code raises passes as it is.

        Args:
            doing: When it was ("while it read"), for the message.

        Raises:
            UnsupportedError: A plug-in raised an error that is not of this family, or ended the process.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            if self.origin == BUILT_IN or isinstance(error, QdeployError | OSError | MemoryError):
                raise
            raise UnsupportedError(
                f"the plug-in {self.name} failed {doing}: {type(error).__name__}: {error}",
                where=self.place,
                todo="Report it to whoever brings the plug-in, with what --debug shows.",
            ) from error

    def resolved(self) -> Self:
        """The row that the target is, where a distribution names a row; else this one, also where nothing loads."""
        if self.origin == BUILT_IN:
            return self
        try:
            loaded = self.loaded()
        except UnsupportedError:  # whoever needs the object is told
            return self
        return replace(loaded, name=self.name, origin=self.origin) if isinstance(loaded, type(self)) else self

    def refused(self, loaded: Any, contract: str) -> UnsupportedError:
        """The error for an object that does not satisfy its contract."""
        return UnsupportedError(
            f"the plug-in {self.name} is not a {contract}",
            where=self.place,
            found=type(loaded).__name__,
            allowed=f"the protocol {contract}",
        )
