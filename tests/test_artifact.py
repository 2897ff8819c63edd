"""The output folder: complete or absent, and an earlier one intact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from optimizer import artifact
from optimizer.errors import UserError

OURS = json.dumps({"tool": {"name": artifact.TOOL}})


def entries(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def earlier(folder: Path) -> None:
    folder.mkdir()
    (folder / artifact.MANIFEST).write_text(OURS)
    (folder / "model.onnx").write_text("old")


def test_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "a") as temporary:
        (temporary / "model.onnx").write_text("new")
        assert not (tmp_path / "a").exists()
    assert entries(tmp_path) == ["a", "a/model.onnx"]


def test_makes_folders_above_it_only_at_the_end(tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "a/b/c") as temporary:
        (temporary / "x").touch()
        assert not (tmp_path / "a").exists()
    assert entries(tmp_path) == ["a", "a/b", "a/b/c", "a/b/c/x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    earlier(tmp_path / "a")

    def write() -> None:
        with artifact.writing(tmp_path / "a") as temporary:
            (temporary / "model.onnx").write_text("new")
            raise error

    with pytest.raises(error):
        write()
    assert entries(tmp_path) == ["a", "a/manifest.json", "a/model.onnx"]
    assert (tmp_path / "a/model.onnx").read_text() == "old"


def test_replaces_an_earlier_artifact_whole(tmp_path: Path) -> None:
    earlier(tmp_path / "a")
    with artifact.writing(tmp_path / "a") as temporary:
        (temporary / "new").touch()
    assert entries(tmp_path) == ["a", "a/new"]


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert artifact.destination(None, "onnx", tmp_path / "a") == tmp_path / "a"


def test_a_failed_rename_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier(tmp_path / "a")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".a.") and not self.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="No space left"), artifact.writing(tmp_path / "a") as temporary:
        (temporary / "model.onnx").write_text("new")
    assert (tmp_path / "a/model.onnx").read_text() == "old"
    assert entries(tmp_path) == ["a", "a/manifest.json", "a/model.onnx"]


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_not_ours_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").touch()
    with pytest.raises(UserError, match="choose another"):
        artifact.destination(None, "onnx", tmp_path / name)


def test_the_model_is_never_inside_the_output(tmp_path: Path) -> None:
    earlier(tmp_path / "a")
    with pytest.raises(UserError, match="inside the output"):
        artifact.destination(tmp_path / "a/model.onnx", "onnx", tmp_path / "a")


def test_default_place_is_named_after_model_and_target() -> None:
    assert artifact.destination(Path("/some/net.onnx"), "ort-int8", None) == Path("net.ort-int8")
    assert artifact.destination(Path("/some/net.onnx"), "onnx", None) == Path("net.optimized")


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert artifact.describe(tmp_path / "f") == {
        "file": "f",
        "bytes": 3,
        "sha256": hashlib.sha256(b"abc").hexdigest(),
    }
