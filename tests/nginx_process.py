"""A real nginx in front of a server, with the configuration that docs/clients.md gives to users."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "clients.md").read_text()
NAME = "chat.example.com"  # as the page has it
# Debian keeps nginx where few paths but root's look.
PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
WAIT = 120.0  # seconds; only a hang takes as long


def block(language: str, mark: str) -> str:
    """The one example of the page in this language that holds `mark`."""
    examples = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for spoken, text in examples if spoken == language and mark in text]
    return str(found)


def flags() -> list[str]:
    """What the page says the server must be told about its name: flags of `headrace serve`."""
    words = block("", "--allow-host").split()
    assert words[:4] == ["headrace", "serve", "--api-key-file", "keys"]
    return words[4:]


def _replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, f"the page's configuration has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


class Nginx:
    """The page's configuration in front of `upstream`, from birth until `stop`; what it writes lies in `folder`.

    Only what belongs to a machine is another than the page's: the port, the server's address, the files of the
    certificate. `port` is a port of loopback; `trust` believes the certificate, which is for NAME."""

    def __init__(self, folder: Path, upstream: str) -> None:
        program, openssl = (shutil.which(each, path=PATH) for each in ("nginx", "openssl"))
        assert program and openssl, "sh .ci/nginx installs what these tests need"
        self._log = folder / "error.log"
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        subprocess.run(
            [
                *(
                    openssl,
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ),
                *("-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
            timeout=WAIT,
        )
        self.trust = ssl.create_default_context(cafile=str(certificate))
        self.trust.verify_flags &= (
            ~ssl.VERIFY_X509_STRICT
        )  # it is its own authority, without the papers of one
        # The socket is made here and handed over, as nginx does itself when a new version of it takes over from
        # the old one: nobody else can take the port, and whoever connects early waits until nginx is up.
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
            self.port = listening.getsockname()[1]
            site = _replaced(
                block("nginx", "proxy_pass"),
                ("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;"),
                ("http://127.0.0.1:8000", upstream),
                ("/etc/ssl/chat.example.com.pem", str(certificate)),
                ("/etc/ssl/private/chat.example.com.key", str(key)),
            )
            (folder / "site.conf").write_text(site)
            (folder / "nginx.conf").write_text(self._main(folder))
            command = [program, "-p", f"{folder}/", "-c", "nginx.conf", "-g", "daemon off;"]
            inherited: dict[str, Any] = {
                "env": {**os.environ, "NGINX": f"{listening.fileno()};"},
                "pass_fds": [listening.fileno()],
                "stdin": subprocess.DEVNULL,
            }
            checked = subprocess.run([*command, "-t"], capture_output=True, timeout=WAIT, **inherited)
            assert checked.returncode == 0, checked.stderr.decode()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(command, stderr=log, **inherited)

    @staticmethod
    def _main(folder: Path) -> str:
        # Started as root, nginx would hand its work to a user who may not read this folder.
        owner = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        lines = [f"user {' '.join(owner)};"] if os.geteuid() == 0 else []
        lines += [f"error_log {folder}/error.log;", f"pid {folder}/pid;", "worker_processes 1;"]
        lines += ["events {}", "http {", "access_log off;", "include site.conf;"]
        for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi"):
            lines.append(f"{kind}_temp_path {folder}/{kind};")
        return "\n".join([*lines, "}", ""])

    def http(self) -> httpx.Client:
        """An HTTP client for which NAME lies here, as a name server would have it."""
        return httpx.Client(transport=_Here(self), timeout=WAIT)

    def openai(self, key: str) -> openai.OpenAI:
        """The unmodified client, with the address that a user gives it."""
        return openai.OpenAI(
            base_url=f"https://{NAME}/v1", api_key=key, max_retries=0, http_client=self.http()
        )

    def socket_options(self) -> dict[str, Any]:
        """What makes `websockets` connect here for wss://NAME."""
        return {
            **{"address": ("127.0.0.1", self.port), "ssl": self.trust, "proxy": None},
            **{"open_timeout": WAIT, "close_timeout": WAIT},
        }

    def connect(self) -> ssl.SSLSocket:
        """A bare connection to NAME."""
        bare = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        return self.trust.wrap_socket(bare, server_hostname=NAME)

    def stop(self) -> None:
        """End it. It must have lived until now."""
        assert self._process.poll() is None, self._log.read_text()
        self._process.terminate()
        assert self._process.wait(WAIT) == 0, self._log.read_text()


class _Here(httpx.HTTPTransport):
    def __init__(self, nginx: Nginx) -> None:
        super().__init__(verify=nginx.trust)
        self._port = nginx.port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        # Host and the name that TLS asks for stay those of the request.
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return super().handle_request(request)
