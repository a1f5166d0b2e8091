"""The one way anything is written: beside its target, flushed to disk, then renamed into place.

Whoever reads the target sees the old content or the new one, whatever happens in between: an exception, a full disk,
``kill -9``. What a killed process left beside the target is cleared by the next write to it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from safeguard.errors import EnvironmentFault, UsageFault

_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _explain(error: OSError | SafetensorError, path: Path) -> EnvironmentFault:
    if isinstance(error, SafetensorError):  # safetensors hides the errno of a failed write in its message
        code = re.search(r"os error (\d+)", str(error))
        error = OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
    remedy = "free disk space or " if error.errno in _SPACE else ""
    place = f" ({error.filename})" if error.filename else ""
    return EnvironmentFault(
        f"cannot write {path.name}: {error.strerror or error}{place}",
        fix=f"{remedy}choose another output directory, one you may write to; what was there before is untouched",
        where=str(path.parent),
    )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # our own number on a leftover: an earlier process had it


def _clear(path: Path) -> None:
    """Remove what killed processes of this host left; put back a directory killed between its two renames."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(platform.node())}-(\d+)\.(tmp|old)")
    for sibling in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])):
            if match[2] == "old" and not path.exists():
                os.replace(sibling, path)
            _remove(sibling)


def _prepare(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)


def _usual_mode(path: Path) -> int:
    """The permissions a new file gets here, found by making one: safetensors would leave 0600 whatever the umask."""
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    path.unlink()
    return mode


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write a file to; it replaces ``path`` only when the block succeeds.

    A symbolic link is written through; permissions of an existing file are kept.

    Raises:
        EnvironmentFault: no space, no permission, or another failure to write; ``path`` is as it was.
    """
    path = path.resolve()
    temporary = _sibling(path, "tmp")
    try:
        _prepare(path)
        mode = _usual_mode(temporary)
        yield temporary
        temporary.chmod(path.stat().st_mode if path.exists() else mode)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _explain(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def check_writable(path: Path) -> None:
    """Try, before long work, whether something could be written at ``path``, in the nearest directory there is.

    Raises:
        EnvironmentFault: it could not.
    """
    path = path.resolve()
    try:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=nearest(path.parent)):
            pass
    except OSError as error:
        raise _explain(error, path) from error


def check_apart(out: Path, inputs: Path, what: str = "the model") -> None:
    """Refuse, before any work, an output that would be written over, into or around something that is read.

    Links are followed, and what is compared are directories, not their names: neither case nor a mount hides one. Of a
    model in a Hugging Face cache the whole repository counts, since its snapshots are links to blobs.

    Args:
        out: what will be written, or a directory that will be replaced.
        inputs: a file or directory that is read.
        what: what it is, in words.

    Raises:
        UsageFault: they are not apart.
    """
    real, kept = out.resolve(), inputs.resolve()
    kept = kept.parents[1] if in_hub_cache(kept) else kept
    if _within(real, kept):
        relation = "is" if _within(kept, real) else "lies inside"
    elif _within(kept, real):
        relation = "holds"
    else:
        return
    raise UsageFault(
        f"the output directory {relation} {what} ({kept}), which must stay as it is",
        fix="choose another output directory, one that is apart from it",
        where=str(out),
    )


def _within(inner: Path, outer: Path) -> bool:
    """Whether a path is another one, or lies below it; both may be missing."""
    if not outer.exists():
        return inner.is_relative_to(outer)
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


def in_hub_cache(real: Path) -> bool:
    """Whether a real path is a revision of a model in a Hugging Face cache."""
    return real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")


def run_directory(model: Path) -> Path:
    """Where a model is certified unless told otherwise: beside its real directory, ``.certification`` appended.

    A revision in a Hugging Face cache has no place beside it, where the run would look like another revision: its run
    lies in the working directory, named after model and revision.
    """
    real = model.resolve()
    if in_hub_cache(real):
        name = real.parents[1].name.removeprefix("models--").replace("--", "_")
        return Path.cwd() / f"{name}-{real.name[:12]}.certification"
    return real.parent / f"{real.name}.certification"


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling directory that becomes ``path`` when the block succeeds, in place of what was there.

    A kill between the last two renames leaves the old directory beside ``path``; the next write puts it back first.

    Raises:
        EnvironmentFault: no space, no permission, or another failure to write; ``path`` is as it was.
    """
    path = path.resolve()
    temporary, retired = _sibling(path, "tmp"), _sibling(path, "old")
    try:
        _prepare(path)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        temporary.mkdir()
        mode = _usual_mode(temporary / "mode")
        yield temporary
        for item in sorted(temporary.rglob("*"), reverse=True):
            if item.is_file():
                item.chmod(mode)
            _flush(item)
        _flush(temporary)
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _explain(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(retired) and not os.path.exists(path):  # Path.exists raises without permission
            with suppress(OSError):  # another process may have put its own there
                os.replace(retired, path)
        shutil.rmtree(retired, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, keys in their given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
