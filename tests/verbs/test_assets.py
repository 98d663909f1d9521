"""`vla-razor assets fetch` against a server that breaks off, lacks, changes and repeats files; and from a folder."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from vla_razor import cli
from vla_razor.provenance import versions
from vla_razor.runs import Run
from vla_razor.verbs import assets
from vla_razor_envs import assets as files

CONTENTS = {"LICENSE": b"terms", "robot/arm one.obj": b"mesh" * 1000, "stage.glb": b"stage"}
GROUPS = {
    "tasks": {
        path: f"sha256:{hashlib.sha256(CONTENTS[path]).hexdigest()}" for path in ("LICENSE", "robot/arm one.obj")
    },
    "can_stage": {"stage.glb": f"git:{hashlib.sha1(b'blob 5' + bytes(1) + b'stage').hexdigest()}"},
}
ARM = "/robot/arm%20one.obj"
runner = CliRunner()


class Server(ThreadingHTTPServer):
    """Serves CONTENTS. `faults`: path -> how often it still breaks off (int), an HTTP status, or other content."""

    faults: dict[str, int | bytes]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = CONTENTS[self.path[1:].replace("%20", " ")]
        fault = self.server.faults.get(self.path, 0)
        if isinstance(fault, int) and fault >= 400:
            self.send_error(fault)
            return
        body = fault if isinstance(fault, bytes) else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault and isinstance(fault, int):
            self.server.faults[self.path] = fault - 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    served = Server(("127.0.0.1", 0), Handler)
    served.faults, served.asked = {}, []
    Thread(target=served.serve_forever, daemon=True).start()
    for module in (assets, files):
        monkeypatch.setattr(module, "GROUPS", GROUPS)
    monkeypatch.setattr(assets, "URL", f"http://127.0.0.1:{served.server_port}/")
    monkeypatch.setattr(assets, "PAUSE", 0.0)
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VLA_RAZOR_ASSETS", raising=False)
    yield served
    served.shutdown()
    served.server_close()


def fetch(*arguments: str) -> tuple[int, str]:
    result = runner.invoke(cli.app, ["assets", "fetch", *arguments])
    return result.exit_code, result.output


def present() -> set[str]:
    folder = files.cache_folder()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_comes_once(server: Server):
    status, output = fetch()
    assert status == 0, output
    assert "Apache" in output
    assert present() == set(CONTENTS)
    assert files.asset_root() == files.cache_folder()
    assert files.has("can_stage")
    server.asked.clear()
    assert fetch()[0] == 0
    assert server.asked == []


def test_a_transfer_that_breaks_off_is_tried_again(server: Server):
    server.faults[ARM] = 2
    assert fetch()[0] == 0
    assert server.asked.count(ARM) == 3
    assert present() == set(CONTENTS)


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [(99, "received 2000 bytes", 3), (404, "HTTP 404", 1), (503, "HTTP 503", 3), (b"mash" * 1000, "checksum", 1)],
)
def test_what_cannot_be_had_is_named_and_a_second_call_goes_on(
    server: Server, fault: int | bytes, reason: str, requests: int
):
    server.faults[ARM] = fault
    status, output = fetch()
    assert status == 1
    assert "robot/arm one.obj" in output
    assert reason in output
    assert "again" in output
    assert server.asked.count(ARM) == requests
    assert present() == {"LICENSE", "stage.glb"}
    with pytest.raises(files.AssetsUnusable, match="vla-razor assets fetch"):
        files.asset_root()
    server.faults.clear()
    server.asked.clear()
    assert fetch()[0] == 0
    assert server.asked == [ARM]


def test_an_optional_file_may_be_absent(server: Server):
    server.faults["/stage.glb"] = 404
    status, output = fetch()
    assert status == 0
    assert "stage.glb: HTTP 404" in output
    assert files.asset_root()
    assert not files.has("can_stage")


def test_a_host_that_cannot_be_reached_is_said_once(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assets, "URL", "http://127.0.0.1:1/")
    status, output = fetch()
    assert status == 1
    assert output.count("cannot be reached") == 1
    assert "--from DIR" in output


def test_a_folder_serves_as_well(server: Server, tmp_path: Path):
    source = tmp_path / "source"
    for path, content in CONTENTS.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    (source / "stage.glb").unlink()
    assert fetch("--from", str(source))[0] == 0
    assert present() == {"LICENSE", "robot/arm one.obj"}
    assert server.asked == []
    (source / "LICENSE").write_bytes(b"other terms")
    (files.cache_folder() / "LICENSE").write_bytes(b"ter")
    status, output = fetch("--from", str(source))
    assert status == 2
    assert "LICENSE: not the file that is expected" in output
    assert fetch("--from", str(tmp_path / "absent"))[0] == 2


@pytest.mark.parametrize("content", [b"ter", b"other"])
def test_a_file_cut_short_or_changed_is_refused_and_mended(server: Server, content: bytes):
    fetch()
    (files.cache_folder() / "LICENSE").write_bytes(content)
    with pytest.raises(files.AssetsUnusable, match=r"LICENSE.*vla-razor assets fetch"):
        files.asset_root()
    server.asked.clear()
    fetch()
    assert server.asked == ["/LICENSE"]
    assert files.asset_root()


def test_a_run_records_what_the_can_stands_on(server: Server, tmp_path: Path):
    assert "real2sim" not in versions()
    server.faults["/stage.glb"] = 404
    fetch()
    assert "standing in" in versions()["real2sim"]
    server.faults.clear()
    fetch()
    assert versions()["real2sim"] == "ef7a4d4, with its stage"
    for robot in ("google_robot", "simpler_env"):
        with Run.create(tmp_path / robot, OmegaConf.create({"robot": robot}), "eval") as run:
            run.finish({})
        recorded = json.loads((tmp_path / robot / "summary.json").read_text())["versions"]
        assert ("real2sim" in recorded) == (robot == "google_robot"), "SimplerEnv itself has files of its own"


def test_a_named_folder_is_used_in_place(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(tmp_path))
    advice = f"VLA_RAZOR_ASSETS names {tmp_path}: mend that folder, or unset the variable and run: vla-razor assets"
    with pytest.raises(files.AssetsUnusable, match=f"2 of 2 asset files missing in {tmp_path}: .*{advice}"):
        files.asset_root()
    for path in GROUPS["tasks"]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"other")
    with pytest.raises(files.AssetsUnusable, match=f"Asset files in {tmp_path} that are not those of .*{advice}"):
        files.asset_root()


def test_the_reference_copy_is_complete(shared: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shared / "assets" / "real2sim"
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(folder))
    assert files.asset_root() == folder
    assert files.has("cabinets")
    assert not files.has("recolored_robots")


@pytest.mark.parametrize(
    "words",
    [["eval"], ["rl"], ["collect"], ["sweep"], ["eval", "env=drawer"], ["rl", "prior=null"], ["sft", "demos=x"]],
    ids=" ".join,
)
def test_missing_files_are_noticed_before_anything_slow(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(tmp_path))
    monkeypatch.setattr(cli, "module_of", lambda verb: pytest.fail("torch and the model are being loaded"))
    result = runner.invoke(cli.app, [*words, "robot=google_robot", f"out={tmp_path / 'run'}"])
    assert result.exit_code == 2, result.output
    assert f"asset files missing in {tmp_path}" in result.stderr and "vla-razor assets fetch" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["eval"], ["eval", "robot=simpler_env"], ["mnist"], ["llm", "eval"]], ids=" ".join)
def test_who_needs_no_files_is_not_asked_for_them(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(tmp_path))
    monkeypatch.setattr(cli, "module_of", lambda verb: SimpleNamespace(run=lambda config, run: begun.append(verb)))
    assert runner.invoke(cli.app, [*words, "logger=none", f"out={tmp_path / 'run'}"]).exit_code == 0
    assert begun
