"""An identity of this machine, as Azure's App Service gives one to a process."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Identity:
    """An endpoint on this machine that hands out tokens, while the context is open.

    :param token: what it hands out; may be set
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.lives_s = 3_600
        self.asked: list[str] = []
        self.status = 200
        self._secret = "the header that proves who asks"
        identity = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["X-IDENTITY-HEADER"] == identity._secret
                [scope] = parse_qs(urlsplit(self.path).query)["resource"]
                identity.asked.append(scope)
                token = {
                    "access_token": identity.token,
                    "expires_on": str(int(time.time()) + identity.lives_s),
                    "resource": scope,
                    "token_type": "Bearer",
                }
                body = token if identity.status == 200 else {"statusCode": identity.status, "message": "no identity"}
                self.send_response(identity.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which azure-identity finds it."""
        return {
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}/msi/token",
            "IDENTITY_HEADER": self._secret,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
