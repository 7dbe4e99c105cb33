"""Checkpoints to blobs: `convert`, `plan`, `compare` and `report`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Union

import numpy as np

from . import _ttrec
from ._ttrec import Blob

Path = str | os.PathLike[str]
#: The path of a checkpoint, a `state_dict` or another mapping of names to arrays, or a module.
Source = Path | Mapping[str, Any] | Any
#: The path of a spec, its text in TOML, a plan, or what the TOML means as dicts and lists.
Spec = Union[Path, "Plan", Mapping[str, Any], None]

_log = logging.getLogger("ttrec")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A spec that `plan` chose, which `convert` takes."""

    #: The spec.
    toml: str
    #: The length of the blob.
    bytes: int
    #: The bytes of the tables and layers as f32.
    f32_bytes: int
    #: The relative error of all tables and layers together.
    error: float
    #: For each table its choice, its cost, the reason and the other candidates.
    tables: list[dict[str, Any]]
    #: The layers of the model, if there is one.
    layers: dict[str, Any] | None

    def save(self, path: Path) -> None:
        """Write the spec to a file."""
        pathlib.Path(path).write_text(self.toml, encoding="utf-8")


def convert(
    source: Source,
    spec: Spec = None,
    out: Path | None = None,
    *,
    frequencies: Path | None = None,
    memory: int | str = "512MiB",
    progress: bool = True,
) -> Blob:
    """Convert a checkpoint to a blob at `out`, which is replaced only when it is complete.

    Without `out`, the blob is in memory. Without `spec`, the tables and the model are those that
    the names of the tensors tell. `frequencies` is a file of counts, which weigh the errors of a
    factorisation, and `memory` limits what a factorisation uses. A progress bar needs tqdm; notes
    go to the logger "ttrec".
    """
    with _checkpoint(source) as path:
        return _ttrec.convert(
            path, _toml(spec), _fspath(out), _fspath(frequencies), str(memory), _Progress(progress)
        )


def plan(
    source: Source,
    *,
    budget: int | str | None = None,
    max_error: float | None = None,
    max_nanoseconds: float | None = None,
    spec: Spec = None,
    frequencies: Path | None = None,
    memory: int | str = "512MiB",
    progress: bool = True,
) -> Plan:
    """Choose how to store each table within `budget`, such as "28MiB", 500000 or "25%".

    Without a budget, return the smallest plan whose relative errors are at most `max_error`.
    """
    if budget is None and max_error is None:
        raise ValueError("neither budget nor max_error: give one of them")
    with _checkpoint(source) as path:
        facts, toml, warning = _ttrec.plan(
            path,
            _toml(spec),
            None if budget is None else str(budget),
            max_error,
            max_nanoseconds,
            _fspath(frequencies),
            str(memory),
            _Progress(progress),
        )
    if warning:
        warnings.warn(warning, stacklevel=2)
    fields = (facts["bytes"], facts["f32_bytes"], facts["error"], facts["tables"])
    return Plan(toml, *fields, facts.get("layers"))


def compare(
    blob: Blob | Path, source: Source, spec: Spec = None, *, progress: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Check a blob's checksums, and compare each row and layer with the checkpoint's.

    Returns the errors of all "tables" and "layers": `relative_error` is the norm of the difference
    over that of the table.
    """
    if not isinstance(blob, Blob):
        blob = Blob.open(blob)
    with _checkpoint(source) as path:
        return _ttrec.compare(blob, path, _toml(spec), _Progress(progress))


def report(blob: Path, source: Source, out: Path, spec: Spec = None) -> None:
    """Write a page about what a conversion cost, as `ttrec report` does."""
    with _checkpoint(source) as path, tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "ttrec", "report", os.fspath(blob), "--against", path]
        toml = _toml(spec)
        if toml is not None:
            file = pathlib.Path(directory, "spec.toml")
            file.write_text(toml, encoding="utf-8")
            command += ["--spec", os.fspath(file)]
        command += ["-o", os.fspath(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _ttrec.ConvertError(done.stderr.strip().removeprefix("ttrec: "))


class _Progress:
    """What the extension module reports to."""

    def __init__(self, shown: bool) -> None:
        self._bar = None
        self._tqdm = None
        if shown:
            with contextlib.suppress(ImportError):
                from tqdm.auto import tqdm

                self._tqdm = tqdm

    def begin(self, what: str, total: int) -> None:
        if self._tqdm is not None:
            # A short step needs no bar.
            self._bar = self._tqdm(desc=what, total=total or None, delay=1, leave=False)

    def advance(self, units: int) -> None:
        if self._bar is not None:
            self._bar.update(units)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def note(self, text: str) -> None:
        _log.info("%s", text)


@contextlib.contextmanager
def _checkpoint(source: Source) -> Iterator[str]:
    """The path of a checkpoint; arrays in memory are written to a temporary file."""
    if isinstance(source, (str, os.PathLike)):
        yield os.fspath(source)
        return
    if hasattr(source, "state_dict"):
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(f"source: {type(source).__name__}: expected a path, a mapping or a module")
    with tempfile.TemporaryDirectory(prefix="ttrec-") as directory:
        path = os.path.join(directory, "state_dict.npz")
        # numpy.savez has names that it does not take for arrays.
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in _arrays(source):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        yield path


def _arrays(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The tensors as arrays; what is no tensor is left out, as in a file."""
    for name, value in tensors.items():
        name = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _arrays(value, "" if name == "state_dict" else f"{name}.")
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # numpy has none
                value = value.float()
            value = value.numpy()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            yield name, value


def _fspath(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _toml(spec: Spec) -> str | None:
    """The text of a spec."""
    if spec is None:
        return None
    if isinstance(spec, Plan):
        return spec.toml
    if isinstance(spec, Mapping):
        return _written(spec)
    if isinstance(spec, str) and ("\n" in spec or "[" in spec):
        return spec
    return pathlib.Path(spec).read_text(encoding="utf-8")


def _written(spec: Mapping[str, Any]) -> str:
    """TOML of a spec in dicts and lists, as `tomllib.loads` returns one."""

    def lines(facts: Mapping[str, Any]) -> Iterator[str]:
        for key, value in facts.items():
            if not re.fullmatch("[A-Za-z0-9_]+", key):
                raise ValueError(f"spec: {key!r} is not a key")
            if value is not None:
                # A text, number, bool or list of these is the same in JSON.
                yield f"{key} = {json.dumps(value, allow_nan=False)}"

    unknown = set(spec) - {"model", "table"}
    if unknown:
        raise ValueError(f"spec: {sorted(unknown)}: expected `model` and `table`")
    text: list[str] = []
    if spec.get("model") is not None:
        text += ["[model]", *lines(spec["model"])]
    for table in spec.get("table", []):
        text += ["[[table]]", *lines(table)]
    return "\n".join([*text, ""])
