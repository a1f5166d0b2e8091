"""Names and digests of everything in a model directory: what a certificate speaks about.

The manifest maps every file to its SHA-256. Its root digest is taken over (name, size, digest) triples, so that it
changes when a file is renamed, which a hash over digests alone would not notice. Left out are, at the top level only,
what version control and download tools keep there and no model is loaded from: ``.git``, ``.gitattributes``,
``.github``, ``.gitignore``, ``.gitmodules`` and ``.cache``. Nothing else is left out unless the caller names it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safeguard.errors import ModelFault
from safeguard.results.hardening import RECORD_FILE

IGNORED = frozenset({".git", ".gitattributes", ".github", ".gitignore", ".gitmodules", ".cache"})
"""Top-level names that belong to tools, not to the model."""
WEIGHTS_SUFFIX = ".safetensors"


def files(directory: Path, exclude: Collection[str] = ()) -> list[str]:
    """Relative POSIX paths of all files that count, sorted by code point; a link counts as what it shows.

    Args:
        directory: an existing directory; links to directories are not followed, and are listed so that they show.
        exclude: relative paths of files or folders to leave out, for example a certificate written beside the weights.
    """
    found = []
    for folder, folders, names in os.walk(directory):
        here = Path(folder).relative_to(directory)
        names += [name for name in folders if (Path(folder) / name).is_symlink()]
        kept = [name for name in folders if not _left_out((here / name).as_posix(), exclude)]
        folders[:] = kept
        found += [(here / name).as_posix() for name in names]
    return sorted(name for name in found if not _left_out(name, exclude))


def _left_out(name: str, exclude: Collection[str]) -> bool:
    return name in exclude or name in IGNORED


def manifest(directory: Path, exclude: Collection[str] = ()) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 in hexadecimal, sorted by path.

    Raises:
        ModelFault: there is no such directory, a file cannot be read, or a link leads nowhere or to a directory.
    """
    return _each_file(directory, _digest, exclude)


def _each_file(directory: Path, describe: Callable[[Path], str], exclude: Collection[str] = ()) -> dict[str, str]:
    """Relative path -> what is to be said of the file, sorted by path."""
    if not directory.is_dir():
        raise ModelFault("there is no such directory", fix="check the path", where=str(directory))
    found = {}
    for name in files(directory, exclude):
        try:
            found[name] = describe(directory / name)
        except OSError as error:
            advice = "check its permissions, or where the link leads"
            raise ModelFault(f"{name} cannot be read: {error.strerror}", fix=advice, where=str(directory)) from error
    return found


@dataclass(frozen=True)
class Snapshot:
    """A directory at one moment, told from later ones without reading its weights.

    Attributes:
        marks: relative path -> SHA-256, of weights what the file system says: a number, a size, times.
    """

    marks: dict[str, str]

    @classmethod
    def of(cls, directory: Path) -> Snapshot:
        """A directory as it is now.

        Raises:
            ModelFault: as :func:`manifest`.
        """
        return cls(_each_file(directory, _mark))

    def manifest(self, weights: Mapping[str, str]) -> dict[str, str]:
        """The manifest, given the digests of the weights that were read since."""
        return {name: weights.get(name, mark) for name, mark in self.marks.items()}


def _mark(path: Path) -> str:
    if path.suffix != WEIGHTS_SUFFIX:
        return _digest(path)
    seen = path.stat()
    return f"{seen.st_dev} {seen.st_ino} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _digest(path: Path) -> str:
    if not path.is_file():  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes(directory: Path, names: Collection[str]) -> dict[str, int]:
    """Relative path -> bytes, for the second argument of :func:`root_digest`."""
    return {name: (directory / name).stat().st_size for name in names}


def root_digest(manifest: Mapping[str, str], sizes: Mapping[str, int]) -> str:
    """One SHA-256 in hexadecimal for a whole directory.

    It is the hash of one line of ASCII JSON per file, ``["name", size, "digest"]``, in order of names: no two different
    directories give the same lines.

    Args:
        manifest: of :func:`manifest`.
        sizes: bytes of each of its files, of :func:`sizes`.
    """
    lines = [json.dumps([name, sizes[name], manifest[name]]) + "\n" for name in sorted(manifest)]
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def directory_digest(directory: Path, exclude: Collection[str] = ()) -> str:
    """:func:`root_digest` of what is in a directory now."""
    digests = manifest(directory, exclude)
    return root_digest(digests, sizes(directory, digests))


def model_digest(directory: Path, digests: Mapping[str, str] | None = None) -> str:
    """What identifies a model: the digest of everything in its directory but the record of how it was made.

    The record names times, so a hardening done again would otherwise be another model; the manifest has its digest.

    Args:
        digests: of :func:`manifest`, if it was made already: files of a model are large.
    """
    if digests is None:
        return directory_digest(directory, exclude=[RECORD_FILE])
    kept = {name: digest for name, digest in digests.items() if name != RECORD_FILE}
    return root_digest(kept, sizes(directory, kept))


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What distinguishes two manifests: ``added: x``, ``removed: y``, ``changed: z``; empty if nothing does."""
    return [
        *(f"added: {name}" for name in sorted(after.keys() - before.keys())),
        *(f"removed: {name}" for name in sorted(before.keys() - after.keys())),
        *(f"changed: {name}" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]),
    ]
