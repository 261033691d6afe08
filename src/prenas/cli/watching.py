"""`prenas watch`: serves the page of a run, which follows its training, to this machine alone."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prenas import artifacts
from prenas.cli.output import console
from prenas.cli.status import training_line
from prenas.report.html import content_of, document
from prenas.runs.run import Run
from prenas.runs.status import read_status

_HOME = "127.0.0.1"
_FOLLOWED = (
    artifacts.RECIPE,
    artifacts.PREFERRED,
    artifacts.DATA,
    artifacts.METRICS,
    artifacts.SUPERNET,
    artifacts.EVOLUTION,
    artifacts.EVALUATION,
    artifacts.MEASURED,
    artifacts.SUBNETS,
)
"""The files of a run that its page depends on."""


class LivePage:
    """The page of a run as it is now: made again after a file of the run has changed."""

    def __init__(self, folder: Path) -> None:
        """Reads the run once.

        Raises:
            ValueError: the folder is not a run, or a file of it is damaged.
        """
        self._folder, self._lock = folder, threading.Lock()
        self._state: object = None
        self._content: dict[str, Any] = {}
        self._read()

    def content(self) -> dict[str, Any]:
        """The content of the page; if a file cannot be read just now, the last one, and why."""
        with self._lock:
            try:
                self._read()
            except (ValueError, OSError) as error:
                return {**self._content, "live": f"The run cannot be read just now: {error}"}
            return self._content

    def _read(self) -> None:
        state = (self._files(), self._progress())
        if state != self._state:
            run = Run(self._folder, device="cpu")
            self._content = content_of([run], live=state[1])
            self._state = state

    def _files(self) -> list[tuple[str, int, int]]:
        """Name, size and time of every file that the page depends on, runs inside included."""
        folders = [self._folder, *self._folder.glob(artifacts.SOURCE)]
        folders += self._folder.glob(f"{artifacts.RIVALS}/*")
        paths = [folder / name for folder in folders for name in _FOLLOWED]
        found = []
        for path in paths:
            try:
                state = path.stat()
            except OSError:  # not written yet
                continue
            found.append((str(path), state.st_size, state.st_mtime_ns))
        return found

    def _progress(self) -> str:
        """What is going on, in a sentence or two."""
        status = read_status(self._folder)
        inner = self._folder / artifacts.SOURCE
        progress = status.progress
        if status.search != "done" and (inner / artifacts.RECIPE).exists():
            progress = read_status(inner).progress  # the whole network is trained before the cuts
        line = training_line(progress)
        doing = "A process is working on this run." if status.is_busy else "No process works on it."
        return " ".join(filter(None, [f"{self._folder}:", f"{line}." if line else "", doing]))


class Server(ThreadingHTTPServer):
    """Serves one live page on the loopback interface."""

    daemon_threads = True

    def __init__(self, page: LivePage, port: int) -> None:
        """Binds the port; OSError if it is taken. 0 takes any free one."""
        self.page = page
        super().__init__((_HOME, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{_HOME}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names under which a browser may ask for it.

        A site elsewhere can point a name of its own at this machine, and its scripts could then
        read the page: such a request has that name.
        """
        return tuple(f"{name}:{self.server_port}" for name in (_HOME, "localhost"))


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for two paths, with what the run is now."""

    server: Server
    server_version, sys_version = "prenas", ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        """The page, or its content as JSON."""
        makers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html", lambda: document(self.server.page.content())),
            "/data.json": ("application/json", lambda: json.dumps(self.server.page.content())),
        }
        if self.headers.get("Host") not in self.server.hosts:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"open {self.server.address} instead\n")
        elif self.path not in makers:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "there are only / and /data.json\n")
        else:
            kind, make = makers[self.path]
            self._send(HTTPStatus.OK, kind, make())

    def do_POST(self) -> None:
        """Refuses: nothing can be changed here."""
        self.close_connection = True  # the body of the request is not read
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "this page is read-only\n")

    do_HEAD = do_GET  # noqa: N815
    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        is_known = status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if is_known else status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(0 if is_known else len(body)),
            "ETag": tag,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and not is_known:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a browser that follows a training asks every two seconds."""


def watch(folder: Path, port: int) -> None:
    """Serves the page of a run until Ctrl-C.

    Raises:
        ValueError: the folder is not a run, a file of it is damaged, or the plotting library is not
            installed.
        OSError: the port is taken; the message says what to do.
    """
    page = LivePage(folder)
    document(page.content())  # whatever is missing is said now, not in the browser
    try:
        server = Server(page, port)
    except OSError as error:
        raise OSError(
            f"cannot serve on port {port} of this machine ({error.strerror}): choose another "
            "--port, or leave it out for any free one"
        ) from None
    with server:
        console.print(f"Page      {server.address}\nCtrl-C ends it.", soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Stopped", soft_wrap=True)
