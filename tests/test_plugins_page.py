"""docs/plugins.md does what it says: its code is run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdeploy import registry
from qdeploy.arch import family
from qdeploy.cli import main
from qdeploy.ir.dtype import dtype, is_known, unregister
from qdeploy.ir.ops import table as ops
from qdeploy.quantize import QUANTIZERS

PAGE = Path(__file__).resolve().parents[1] / "docs/plugins.md"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's code has run in a folder of its own."""
    import qdeploy.cli.convert  # noqa: F401  (what is added later counts as well)

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "plugins_page"}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        yield names
    finally:
        for table, name in (
            (registry.FORMATS, "flat"),
            (registry.FORMATS, "inverted"),
            (registry.BACKENDS, "text"),
            (QUANTIZERS, "signs"),
        ):
            table.remove(name)
        if is_known("e3m4"):
            unregister("e3m4")
        ops.forget("Doubled")
        family.forget("mine")


def test_the_additions_of_the_page_are_found_read_converted_and_listed(ran: dict[str, Any], capsys: Any):
    assert dtype("e3m4").values()[1] == 2.0**-6
    assert ops.op("Doubled").expand is not None and "mine" in family.model_types()
    written = np.loadtxt("out/w.txt", ndmin=2)
    size = 2 * np.abs(ran["matrix"]).mean()
    np.testing.assert_allclose(written, np.where(ran["matrix"] < 0, -size, size), rtol=1e-6)
    for arguments, message in (
        (["inspect", "a.flat"], "one matrix in a file"),
        (["formats"], "signs:[factor=N]"),
        (["convert", "--help"], "Options of --to text"),
        (["verify", "a.flat", "out"], "equal"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        assert message in capsys.readouterr().out, arguments
    assert json.loads(Path("out/report.json").read_text())["options"]["quantize"] == ["signs:factor=2"]
