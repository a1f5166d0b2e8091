"""What is on disk is the old content or the new, whatever fails in between."""

from __future__ import annotations

import errno
import os
import platform
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.files import atomic_directory, atomic_path, check_apart, run_directory, write_json, write_text

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere; become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def failing(code: int) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


def put_directory(path: Path, text: str) -> None:
    with atomic_directory(path) as temporary:
        (temporary / "unet").mkdir()
        (temporary / "unet" / "config.json").write_text(text)


def read_directory(path: Path) -> str:
    return (path / "unet" / "config.json").read_text()


def names(directory: Path) -> list[str]:
    return sorted(item.name for item in directory.iterdir())


class TestFile:
    def test_writes_and_replaces_and_makes_parents(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "b.txt"
        write_text(target, "old")
        write_text(target, "new ⚔")
        assert target.read_text(encoding="utf-8") == "new ⚔"
        assert names(target.parent) == ["b.txt"]

    def test_json_keeps_key_order(self, tmp_path: Path) -> None:
        write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
        assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'

    @pytest.mark.parametrize("function", ["fsync", "replace"])
    def test_disk_full_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        target = tmp_path / "x.txt"
        write_text(target, "old")
        monkeypatch.setattr(os, function, failing(errno.ENOSPC))
        with pytest.raises(EnvironmentFault, match="No space left") as caught:
            write_text(target, "new")
        assert caught.value.exit_code == 4
        assert "free disk space" in str(caught.value) and str(tmp_path) in str(caught.value)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["x.txt"]

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
    def test_exception_in_the_block_passes_through(self, tmp_path: Path, interruption: type[BaseException]) -> None:
        write_text(tmp_path / "x.txt", "old")
        with pytest.raises(interruption), atomic_path(tmp_path / "x.txt") as temporary:
            temporary.write_text("half")
            raise interruption
        assert (tmp_path / "x.txt").read_text() == "old"
        assert names(tmp_path) == ["x.txt"]

    def test_block_that_writes_nothing_does_not_empty_the_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "x.txt", "old")
        with pytest.raises(EnvironmentFault), atomic_path(tmp_path / "x.txt"):
            pass
        assert (tmp_path / "x.txt").read_text() == "old"

    def test_permission_denied(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with unprivileged(), pytest.raises(EnvironmentFault, match="Permission denied") as caught:
            write_text(tmp_path / "x.txt", "new")
        tmp_path.chmod(0o700)
        assert "may write to" in caught.value.fix
        assert names(tmp_path) == []

    def test_target_is_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        with pytest.raises(EnvironmentFault, match="directory"):
            write_text(tmp_path / "x", "new")

    def test_symbolic_link_is_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "real.txt").write_text("old")
        (tmp_path / "link.txt").symlink_to("real.txt")
        write_text(tmp_path / "link.txt", "new")
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "real.txt").read_text() == "new"

    def test_permissions_follow_the_old_file_or_the_umask(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        write_text(tmp_path / "new", "1")
        assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
        (tmp_path / "new").chmod(0o640)
        write_text(tmp_path / "new", "2")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640

    def test_safetensors_failure_is_explained_and_file_is_readable_by_others(self, tmp_path: Path) -> None:
        numpy = pytest.importorskip("numpy")
        from safetensors.numpy import save_file

        with (
            pytest.raises(EnvironmentFault, match="No such file"),
            atomic_path(tmp_path / "x.safetensors") as temporary,
        ):
            save_file({"a": numpy.zeros(4)}, temporary / "below")
        with atomic_path(tmp_path / "x.safetensors") as temporary:
            save_file({"a": numpy.zeros(4)}, temporary)
        (tmp_path / "plain").touch()
        assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


class TestDirectory:
    def test_writes_and_replaces_as_a_whole(self, tmp_path: Path) -> None:
        put_directory(tmp_path / "m", "old")
        (tmp_path / "m" / "extra").touch()
        put_directory(tmp_path / "m", "new")
        assert read_directory(tmp_path / "m") == "new"
        assert names(tmp_path / "m") == ["unet"]
        assert names(tmp_path) == ["m"]

    @pytest.mark.parametrize("function", ["fsync", "replace"])
    def test_disk_full_leaves_the_old_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        put_directory(tmp_path / "m", "old")
        monkeypatch.setattr(os, function, failing(errno.ENOSPC))
        with pytest.raises(EnvironmentFault, match="No space left"):
            put_directory(tmp_path / "m", "new")
        assert read_directory(tmp_path / "m") == "old"
        assert names(tmp_path) == ["m"]

    def test_failure_between_the_two_renames_puts_the_old_directory_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_directory(tmp_path / "m", "old")
        rename, calls = os.replace, []

        def second_fails(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rename(source, target)

        monkeypatch.setattr(os, "replace", second_fails)
        with pytest.raises(EnvironmentFault):
            put_directory(tmp_path / "m", "new")
        assert len(calls) == 3
        assert read_directory(tmp_path / "m") == "old"
        assert names(tmp_path) == ["m"]

    def test_target_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "m").write_text("precious")
        with pytest.raises(EnvironmentFault, match="Not a directory"):
            put_directory(tmp_path / "m", "new")
        assert (tmp_path / "m").read_text() == "precious"

    def test_permission_denied(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with unprivileged(), pytest.raises(EnvironmentFault, match="Permission denied"):
            put_directory(tmp_path / "m", "new")
        tmp_path.chmod(0o700)
        assert names(tmp_path) == []

    def test_permissions_of_files_follow_the_umask(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        with atomic_directory(tmp_path / "m") as temporary:
            (temporary / "weights").touch(mode=0o600)
        assert (tmp_path / "m" / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode


def cached(cache: Path) -> Path:
    """A revision in a Hugging Face cache."""
    snapshot = cache / "models--owner--name" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    return snapshot


class TestApart:
    @pytest.mark.parametrize(
        "out", ["m", "m/", "m/../m", "m/unet", "m/new/deep", ".", "link", "link/new", "./m/unet/.."]
    )
    def test_an_output_in_or_around_what_is_read_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
    ) -> None:
        (tmp_path / "m" / "unet").mkdir(parents=True)
        (tmp_path / "link").symlink_to("m")
        monkeypatch.chdir(tmp_path)
        for place in (Path(out), tmp_path / out):
            for directory in (Path("m"), tmp_path / "m", Path("link")):
                with pytest.raises(UsageFault, match="the base model") as caught:
                    check_apart(place, directory, "the base model")
                assert caught.value.exit_code == 2 and caught.value.fix

    @pytest.mark.parametrize("out", ["m.hardened", "n/m", "mm", "n"])
    def test_any_other_is_not(self, tmp_path: Path, out: str) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "n").mkdir()
        check_apart(tmp_path / out, tmp_path / "m")
        check_apart(tmp_path / out, tmp_path / "m" / "policy.yaml")

    def test_an_output_around_a_file_that_is_read_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "policy.yaml").touch()
        with pytest.raises(UsageFault, match="holds the policy"):
            check_apart(tmp_path, tmp_path / "policy.yaml", "the policy")

    @pytest.mark.parametrize("out", ["blobs", "snapshots/fedcba", "snapshots/0123456789abcdef", ".", "../.."])
    def test_of_a_hub_cache_the_whole_repository_counts(self, tmp_path: Path, out: str) -> None:
        snapshot = cached(tmp_path / "hub")
        with pytest.raises(UsageFault):
            check_apart(snapshot.parents[1] / out, snapshot)
        check_apart(tmp_path / "hub" / "models--owner--other", snapshot)


class TestRunDirectory:
    def test_lies_beside_the_real_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "deep" / "m").mkdir(parents=True)
        (tmp_path / "link").symlink_to("deep/m")
        expected = tmp_path / "deep" / "m.certification"
        monkeypatch.chdir(tmp_path / "deep" / "m")
        for name in (Path("."), Path("../m"), tmp_path / "deep" / "m", tmp_path / "link"):
            assert run_directory(name) == expected

    def test_is_no_revision_of_a_hub_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = cached(tmp_path / "hub")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to(snapshot)
        for name in (snapshot, Path("link")):
            assert run_directory(name) == tmp_path / "owner_name-0123456789ab.certification"


CHILD = """
import os, signal, sys
from pathlib import Path
from safeguard import files
target, kind, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rename, count = os.replace, 0
def replace(source, destination):
    global count
    count += 1
    if moment == f"rename {count}":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, destination)
os.replace = replace
with getattr(files, f"atomic_{kind}")(target) as temporary:
    place = temporary / "text" if kind == "directory" else temporary
    place.write_text("n")
    if moment == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    place.write_text("new")
"""

FULL = """
import resource, signal, sys
from pathlib import Path
import numpy
from safetensors.numpy import save_file
from safeguard.errors import EnvironmentFault
from safeguard.files import atomic_path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_path(Path(sys.argv[1])) as temporary:
        save_file({"a": numpy.zeros(1000)}, temporary)
except EnvironmentFault as fault:
    print(fault)
"""


def kill_while(target: Path, kind: str, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(target), kind, moment], check=False)
    assert done.returncode == -signal.SIGKILL


class TestKilled:
    @pytest.mark.parametrize("moment", ["writing", "rename 1"])
    def test_file_is_the_old_one_and_the_next_write_clears_up(self, tmp_path: Path, moment: str) -> None:
        write_text(tmp_path / "x", "old")
        kill_while(tmp_path / "x", "path", moment)
        assert (tmp_path / "x").read_text() == "old"
        assert len(names(tmp_path)) == 2
        write_text(tmp_path / "x", "newer")
        assert (tmp_path / "x").read_text() == "newer"
        assert names(tmp_path) == ["x"]

    @pytest.mark.parametrize("moment", ["writing", "rename 1"])
    def test_directory_is_the_old_one(self, tmp_path: Path, moment: str) -> None:
        put_directory(tmp_path / "m", "old")
        kill_while(tmp_path / "m", "directory", moment)
        assert read_directory(tmp_path / "m") == "old"
        put_directory(tmp_path / "m", "newer")
        assert read_directory(tmp_path / "m") == "newer"
        assert names(tmp_path) == ["m"]

    def test_directory_killed_between_the_renames_comes_back_with_the_next_write(self, tmp_path: Path) -> None:
        put_directory(tmp_path / "m", "old")
        kill_while(tmp_path / "m", "directory", "rename 2")
        assert not (tmp_path / "m").exists()
        with pytest.raises(ValueError), atomic_directory(tmp_path / "m"):
            raise ValueError
        assert read_directory(tmp_path / "m") == "old"
        assert names(tmp_path) == ["m"]

    def test_leftover_with_our_own_process_number_is_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / f".m.{platform.node()}-{os.getpid()}.tmp").mkdir()
        put_directory(tmp_path / "m", "new")
        assert names(tmp_path) == ["m"]

    def test_what_a_living_process_writes_is_left_alone(self, tmp_path: Path) -> None:
        theirs = f".m.{platform.node()}-{os.getppid()}.tmp"
        (tmp_path / theirs).mkdir()
        put_directory(tmp_path / "m", "new")
        assert names(tmp_path) == sorted(["m", theirs])


def test_a_file_system_that_refuses_more_bytes(tmp_path: Path) -> None:
    """A real failed write inside safetensors, not a patched one."""
    (tmp_path / "x.safetensors").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "x.safetensors")], check=True, capture_output=True, text=True
    )
    assert "cannot write x.safetensors: File too large" in done.stdout
    assert (tmp_path / "x.safetensors").read_text() == "old"
