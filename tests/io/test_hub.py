"""Names become directories, and nothing is fetched for them that was not allowed to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from safeguard.errors import EnvironmentFault, ModelFault, UsageFault
from safeguard.io.hub import fetch, network, no_network, resolve
from safeguard.io.opening import open_pipeline
from tests.detect.clip_checkpoint import save_clip


def test_no_request_leaves_while_loading() -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with no_network(), pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint="http://127.0.0.1:9").model_info("owner/name")


class TestResolve:
    def test_existing_directory(self, pristine: Path) -> None:
        assert resolve(str(pristine), offline=True) == pristine

    def test_a_hub_id_is_never_a_directory_of_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "owner" / "name-that-nobody-has").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(EnvironmentFault, match="not downloaded yet"):
            resolve("owner/name-that-nobody-has", offline=True)
        assert resolve("./owner/name-that-nobody-has", offline=True).is_dir()

    @pytest.mark.parametrize("spec", ["./nowhere", "/no/where", "nowhere", "a/b/c", "../up/name", "", "owner/"])
    def test_no_such_directory(self, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelFault, match="no such directory"):
            resolve(spec, offline=True)

    def test_a_directory_has_no_revision(self, pristine: Path) -> None:
        with pytest.raises(UsageFault, match="has no revision"):
            resolve(str(pristine), "main", offline=True)

    def test_offline_and_never_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(EnvironmentFault, match="not downloaded yet") as caught:
            resolve("owner/name-that-nobody-has", offline=True)
        assert "local copy" in caught.value.fix


# -- a hub, in so far as it takes to download from one ----------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIENT = """
import sys, json
from safeguard.errors import SafeguardError
from safeguard.io.hub import resolve
answers = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        answers[name] = [str(resolve(name, revision, offline=False)), ""]
    except SafeguardError as error:
        answers[name] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


def hub(model: Path) -> type[BaseHTTPRequestHandler]:
    """Serves ``owner/fine``; ``owner/gated``, ``owner/missing`` and unknown revisions fail as the hub lets them."""
    present = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}

    class Hub(BaseHTTPRequestHandler):
        asked = 0

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            Hub.asked += 1
            path = self.path.partition("?")[0]
            if "/gated" in path:
                self.answer(403, b"{}", X_Error_Code="GatedRepo")
            elif "/missing" in path:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif "/old" in path:
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif "/resolve/" in path:
                name = path.partition(f"/resolve/{COMMIT}/")[2]
                self.answer(200, present[name], ETag=f'"{abs(hash(name))}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in path:
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": str(abs(hash(name)))}
                    for name, data in present.items()
                ]
                self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
            else:
                info = {"id": "owner/fine", "sha": COMMIT, "siblings": [{"rfilename": name} for name in present]}
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    return Hub


@pytest.fixture
def endpoint(model: Path) -> Iterator[str]:
    for name in ("pipeline.py", "model.ckpt", "one-file.safetensors", "unet/x.bin", "unet/x.fp16.safetensors"):
        (model / name).write_text("not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub(model))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def client(code: str, endpoint: str, home: Path, *arguments: str) -> str:
    """What a program prints whose hub is at that address."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(endpoint: str, home: Path, *wanted: tuple[str, str | None]) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = json.loads(client(CLIENT, endpoint, home, json.dumps(wanted)))
    return answers


def test_download(endpoint: str, tmp_path: Path, pristine: Path) -> None:
    answers = ask(
        endpoint, tmp_path, ("owner/fine", None), ("owner/gated", None), ("owner/missing", None), ("owner/old", "v9")
    )
    place = Path(answers["owner/fine"][0])
    assert place.name == COMMIT
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {path.relative_to(pristine).as_posix() for path in pristine.rglob("*") if path.is_file()}
    assert open_pipeline(place) is not None

    assert answers["owner/gated"][0] == "ModelFault" and "accept its terms" in answers["owner/gated"][1]
    assert answers["owner/missing"][0] == "ModelFault" and "no such model" in answers["owner/missing"][1]
    assert answers["owner/old"][0] == "ModelFault" and "no revision 'v9'" in answers["owner/old"][1]


def test_unreachable_hub(tmp_path: Path) -> None:
    kind, message = ask("http://127.0.0.1:9", tmp_path, ("owner/fine", None))["owner/fine"]
    assert kind == "EnvironmentFault"
    assert "owner/fine: the hub cannot be reached" in message


DETECTORS = """
import sys
from safeguard.detect.clip import ClipConfig, ClipDetector
from safeguard.errors import SafeguardError
from safeguard.io.hub import network
from safeguard.metrics.clip_score import ClipScore, ClipScoreConfig
def build(said):
    for make in (lambda: ClipDetector(ClipConfig(checkpoint=sys.argv[1], vocabulary=["a", "b"])),
                 lambda: ClipScore(ClipScoreConfig(checkpoint=sys.argv[1]))):
        try:
            print(said, type(make()).__name__)
        except SafeguardError as error:
            print(said, type(error).__name__, error)
build("unsaid")
with network(False):
    build("offline")
if sys.argv[2] == "online":
    with network(True):
        build("online")
    build("later")
"""


@pytest.mark.parametrize("said", ["offline", "online"])
def test_detectors_and_scores_fetch_only_where_it_was_allowed(tmp_path: Path, said: str) -> None:
    handler: Any = hub(save_clip(tmp_path / "clip"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    lines = client(DETECTORS, endpoint, tmp_path / "home", "owner/fine", said).splitlines()
    server.shutdown()
    server.server_close()
    refused = "EnvironmentFault owner/fine: not downloaded yet, and this is offline"
    assert [line for line in lines if not line.startswith("  ")][:4] == [f"unsaid {refused}"] * 2 + [
        f"offline {refused}"
    ] * 2
    assert (handler.asked > 0) == (said == "online")
    if said == "online":
        assert lines[-4:] == ["online ClipDetector", "online ClipScore", "later ClipDetector", "later ClipScore"]


def test_a_permission_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError), network(True):
        raise ValueError
    with pytest.raises(EnvironmentFault, match="this is offline"):
        fetch("owner/name-that-nobody-has", None, ["*"])
