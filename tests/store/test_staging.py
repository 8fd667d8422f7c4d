"""What lies beside an output is the user's: nothing of it is deleted, followed or taken for a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qdeploy.errors import OutputError
from qdeploy.store import staging
from qdeploy.store.output import REPORT, content_hash, refuse_existing, staged, write_json

FIELDS: dict[str, Any] = {k: {} for k in ("qdeploy", "source", "target", "options", "summary", "tensors")}


def output(path: Path, **more: Any) -> Path:
    path.mkdir()
    (path / "model").write_bytes(b"1" * 100_000)
    (path / REPORT).write_text(json.dumps({**FIELDS, **more}))
    return path


def marked(path: Path) -> Path:
    return output(path, content=content_hash(output(path.with_name("twin"))))


@pytest.mark.parametrize("name", ["out.partial", "out.old", ".out.lock", "out.tmp"])
def test_a_folder_or_file_of_the_users_beside_the_output_is_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("x")
    for plan in ("one", "two"):
        with staged(tmp_path / "out", plan, force=True) as stage:
            stage.write("a", [b"1"])
            stage.write_json(REPORT, FIELDS)
    assert (tmp_path / name / "precious").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out"])


def test_links_with_the_names_of_staging_are_not_followed(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "precious").write_text("x")
    (home / staging.MARK).write_text("0" * 64)
    target = tmp_path / "out"
    link = tmp_path / f"{staging.prefix(target)}-{'0' * 16}"
    link.symlink_to(home)
    with staged(target, "plan") as stage:
        stage.write("a", [b"1"])
    assert link.is_symlink() and (home / "precious").exists()


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / f"{staging.prefix(tmp_path / 'out')}.lock").symlink_to(tmp_path / "file")
    with pytest.raises(OutputError), staged(tmp_path / "out", "plan"):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_that_only_looks_like_staging_is_left_alone(tmp_path: Path):
    folder = tmp_path / f"{staging.prefix(tmp_path / 'out')}-{'a' * 16}"
    folder.mkdir()
    (folder / "precious").write_text("x")
    with staged(tmp_path / "out", "plan"):
        pass
    assert (folder / "precious").exists()


def test_force_replaces_an_output_as_it_was_written(tmp_path: Path):
    target = marked(tmp_path / "out")
    with staged(target, "plan", force=True) as stage:
        stage.write("new", [b"1"])
    assert os.listdir(target) == ["new"]


@pytest.mark.parametrize("change", ["added", "changed", "cut", "removed", "link"])
def test_force_refuses_an_output_that_the_user_has_changed(tmp_path: Path, change: str):
    target = marked(tmp_path / "out")
    if change == "added":
        (target / "notes.txt").write_text("x")
    elif change == "link":
        (target / "link").symlink_to(tmp_path)
    elif change == "removed":
        (target / "model").unlink()
    else:
        (target / "model").write_bytes(b"2" * 100_000 if change == "changed" else b"1" * 99_999)
    with pytest.raises(OutputError, match="changed since"):
        refuse_existing(target, True)


@pytest.mark.parametrize("report", ["{}", "[]", "no JSON", '{"qdeploy": 1, "target": "onnx"}', '"x"'])
def test_force_refuses_a_folder_with_somebody_elses_report(tmp_path: Path, report: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / REPORT).write_text(report)
    with pytest.raises(OutputError):
        refuse_existing(tmp_path / "out", True)


def test_force_replaces_files_of_ours_alone(tmp_path: Path):
    for name, content, fine in (("a.qd", b"precious", False), ("a.json", b"{}", True), ("b.json", b"[", False)):
        (tmp_path / name).write_bytes(content)
        if fine:
            write_json(tmp_path / name, {"a": 1}, force=True)
        else:
            with pytest.raises(OutputError):
                refuse_existing(tmp_path / name, True, file=True)


@pytest.mark.parametrize("supported", [True, False])
def test_the_outputs_name_leads_to_a_whole_output_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
):
    target = output(tmp_path / "out")
    if not supported:
        monkeypatch.setattr(staging, "_renameat2", lambda *_: False)
    with staged(target, "plan", force=True) as stage:
        stage.write("new", [b"1"])
        assert (target / "model").exists()
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["out"]


def test_what_appears_under_the_name_in_the_meantime_is_not_replaced(tmp_path: Path):
    target = tmp_path / "out"
    with pytest.raises(OutputError), staged(target, "plan") as stage:
        stage.write("a", [b"1"])
        target.mkdir()
        (target / "precious").write_text("x")
    assert os.listdir(target) == ["precious"]


RACE = """
import os, sys, time
from pathlib import Path
from qdeploy.errors import OutputError
from qdeploy.store.staging import lock, unlock
path, inside, end, both = Path(sys.argv[1]), Path(sys.argv[2]), time.time() + 2, 0
while time.time() < end:
    try:
        descriptor = lock(path)
    except OutputError:
        continue
    try:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        os.unlink(inside)
    except OSError:
        both += 1
    unlock(descriptor, path)
print(both)
"""


def test_two_processes_never_hold_the_lock_at_once(tmp_path: Path):
    command = [sys.executable, "-c", RACE, str(tmp_path / "lock"), str(tmp_path / "inside")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [run.communicate()[0].strip() for run in runs] == ["0"] * 4
