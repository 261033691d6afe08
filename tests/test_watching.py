"""`prenas watch` shows a run as it is now, to this machine alone, and changes nothing."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from prenas.cli.watching import LivePage, Server, watch
from prenas.runs.log import MetricsLog
from training.runs import contents

pytest_plugins = "training.runs"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


class Browser:
    """Asks a server for things."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_port

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
        finally:
            connection.close()


@pytest.fixture
def served(searched: Path) -> Iterator[Browser]:
    """A browser on a searched run that is being watched."""
    with Server(LivePage(searched), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Browser(server)
        server.shutdown()
        thread.join()


def test_the_page_follows_the_log(served: Browser, searched: Path) -> None:
    before = json.loads(served.ask("/data.json").text)
    assert before["runs"][0]["trainings"] == []
    assert "No process works on it." in before["live"]
    log = MetricsLog(searched / "metrics.jsonl", step=0)
    for epoch in range(2):
        log.append("epoch", epoch=epoch, step=9 * epoch + 9, loss=2.5 - epoch, lr=0.01, skipped=0)
    after = json.loads(served.ask("/data.json").text)
    assert after["runs"][0]["trainings"][0]["epochs"] == [[1, 2.5, 0.01], [2, 1.5, 0.01]]
    assert "epoch 2 of 3" in after["live"]
    page = served.ask("/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in page.text
    assert "[2,1.5,0.01]" in page.text


def test_what_has_not_changed_is_not_sent_again(served: Browser) -> None:
    first = served.ask("/data.json")
    again = served.ask("/data.json", If_None_Match=first.headers["ETag"])
    assert (again.status, again.text) == (304, "")
    assert served.ask("/data.json", If_None_Match='"another"').status == 200


def test_a_damaged_file_leaves_the_last_page(served: Browser, searched: Path) -> None:
    before = json.loads(served.ask("/data.json").text)
    (searched / "metrics.jsonl").write_text("nonsense\n")
    after = json.loads(served.ask("/data.json").text)
    assert after["runs"] == before["runs"]
    assert "line 1 of" in after["live"]


@pytest.mark.parametrize("host", ["example.org", "example.org:80", "127.0.0.1", "", "localhost:1"])
def test_other_hosts_are_refused(served: Browser, host: str) -> None:
    """A site elsewhere could point its name at this machine and read the page."""
    for path in ("/", "/data.json"):
        refused = served.ask(path, Host=host)
        assert refused.status == 403
        assert "digits" not in refused.text


def test_both_names_of_this_machine_are_answered(served: Browser) -> None:
    for name in ("127.0.0.1", "localhost"):
        assert served.ask("/data.json", Host=f"{name}:{served.port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(served: Browser, searched: Path, method: str) -> None:
    before = contents(searched)
    refused = served.ask("/data.json", method)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert served.ask("/", "HEAD").text == ""
    assert served.ask("/", "TRACE").status == 501
    assert contents(searched) == before


@pytest.mark.parametrize("path", ["/recipe.json", "/../recipe.json", "/subnets/00", "/data.json?a"])
def test_there_are_two_paths_only(served: Browser, path: str) -> None:
    assert served.ask(path).status == 404


def test_no_other_machine_can_connect(searched: Path) -> None:
    with Server(LivePage(searched), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named(searched: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} .*choose another --port"):
            watch(searched, port)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        watch(tmp_path / "nowhere", 0)
    with pytest.raises(ValueError, match="no finished search"):
        watch(tmp_path, 0)


def test_a_run_that_is_not_searched_yet_can_be_watched(searched: Path) -> None:
    (searched / "preferred.json").unlink()
    (run,) = LivePage(searched).content()["runs"]
    assert run["waiting"] == "The subnets are not chosen yet."
