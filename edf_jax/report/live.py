"""Pages of runs that go on: written at evaluations, and served to a browser on this machine."""

from __future__ import annotations

import functools
import html
import http.server
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from edf_jax.report import page
from edf_jax.runs.files import open_run
from edf_jax.runtime.errors import UserError

PORT = 8008
# A page takes a second or two to draw: evaluations that follow each other faster share one.
_SECONDS_BETWEEN = 30.0
_REFRESH = 20
# What a page is drawn from, and changes while a run goes on.
_CHANGES = ("metrics.jsonl", "result.json", "tuned.json", "distilled")
_log = logging.getLogger(__name__)


class PageSoFar:
    """Writes a run's page when called, unless it did so a moment ago."""

    def __init__(self, workdir: Path, *, seconds_between: float = _SECONDS_BETWEEN):
        self._workdir, self._between = workdir, seconds_between
        self._written = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._written < self._between:
            return
        try:
            page.write_report(self._workdir)
        except Exception as error:  # A picture on the way is not worth a run.
            _log.warning("the page of the run so far can't be written: %s", error)
        self._written = time.monotonic()


def serve(workdirs: Sequence[str | Path], port: int = PORT) -> http.server.HTTPServer:
    """A server of runs' pages, drawn anew when their files change; `serve_forever` runs it.

    Of one run `/` is its page; of several `/` has them side by side, and `/0`, `/1`, ... one each.
    Only this machine is answered.

    Args:
        workdirs: folders of runs, finished or not.
        port: 0 takes any that is free (`server_address`).

    Raises:
        UserError: one is no run, or the port is taken.
    """
    folders = [open_run(workdir).workdir for workdir in workdirs]
    handler = functools.partial(_Handler, _Pages(folders))
    try:
        # With threads, since browsers hold connections open on which they ask for nothing.
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} can't be had ({error}): give another, --serve=PORT") from None


class _Pages:
    """The runs' pages, kept until a file that they are drawn from changes."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self._drawn: dict[Path, tuple[list[int], str]] = {}
        self._drawing = threading.Lock()

    def of(self, folder: Path) -> str:
        with self._drawing:
            paths = [folder / name for name in _CHANGES]
            stamps = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
            if folder not in self._drawn or self._drawn[folder][0] != stamps:
                drawn = page.render(open_run(folder), refresh=_REFRESH)
                self._drawn[folder] = stamps, drawn
            return self._drawn[folder][1]


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, pages: _Pages, *arguments):
        self._pages = pages
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers with a page; with a line and 503 while a run's files can't be read."""
        folders, name = self._pages.folders, self.path.strip("/")
        try:
            if not name and len(folders) > 1:
                self._answer(200, page.render_side_by_side([folder.name for folder in folders]))
            elif not name or (name.isdecimal() and int(name) < len(folders)):
                self._answer(200, self._pages.of(folders[int(name or 0)]))
            else:
                self.send_error(404)
        except (UserError, OSError, ValueError, LookupError, TypeError) as error:
            again = f'<meta http-equiv="refresh" content="{_REFRESH}">'
            self._answer(503, f"<!doctype html>{again}<p>{html.escape(str(error))}</p>")

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments) -> None:
        """Says nothing: the terminal is the user's."""
