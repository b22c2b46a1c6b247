"""An OpenID provider on loopback, strict about PKCE, codes, addresses and the client's secret."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from studio.server.openid import OpenIdSettings

CLIENT, SECRET = "client-1", "planted-client-secret"


class OpenIdProvider:
    """The provider; `approve` stands for a user who answers its page.

    Attributes:
        requests: method and path of each request.
        answers: path -> (status, body) in place of the right answer.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self._codes: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self._tokens: dict[str, dict[str, Any]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 (of http.server)
                self._answer(b"")

            def do_POST(self) -> None:  # noqa: N802
                self._answer(self.rfile.read(int(self.headers["content-length"])))

            def _answer(self, body: bytes) -> None:
                path = urlsplit(self.path).path
                provider.requests.append(f"{self.command} {path}")
                status, content = provider.answers.get(path) or provider.answer(path, body, self.headers)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *values: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def settings(self, host: str, **more: Any) -> OpenIdSettings:
        return OpenIdSettings(CLIENT, self.url, host, "owner-org", SECRET, **more)

    def approve(self, address: str, user: dict[str, Any]) -> str:
        """The address to which the browser is led back when a user agrees."""
        asked = dict(parse_qsl(urlsplit(address).query))
        code = secrets.token_urlsafe(16)
        self._codes[code] = (asked, {"sub": "1", **user})
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def decline(self, address: str) -> str:
        """The address to which the browser is led back when a user declines."""
        asked = dict(parse_qsl(urlsplit(address).query))
        return f"{asked['redirect_uri']}?{urlencode({'error': 'access_denied', 'state': asked['state']})}"

    def answer(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes]:
        """Status and body of the right answer."""
        if path == "/.well-known/openid-configuration":
            names = ("authorization", "token", "userinfo")
            return 200, json.dumps({f"{n}_endpoint": f"{self.url}/oauth/{n}" for n in names}).encode()
        if path == "/oauth/token":
            return self._exchange({k: v[0] for k, v in parse_qs(body.decode()).items()}, headers)
        if path == "/oauth/userinfo":
            user = self._tokens.get(headers.get("authorization", "").removeprefix("Bearer "))
            return (200, json.dumps(user).encode()) if user else (401, b"{}")
        return 404, b""

    def _exchange(self, form: dict[str, str], headers: Any) -> tuple[int, bytes]:
        login = base64.b64decode(headers.get("authorization", "").removeprefix("Basic ")).decode()
        asked, user = self._codes.pop(form.get("code", ""), ({}, {}))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        is_right = (
            login == f"{CLIENT}:{SECRET}"
            and form.get("grant_type") == "authorization_code"
            and form.get("redirect_uri") == asked.get("redirect_uri", "-")
            and asked.get("code_challenge") == base64.urlsafe_b64encode(digest).decode().rstrip("=")
            and asked.get("code_challenge_method") == "S256"
        )
        if not is_right:
            return 400, b'{"error": "invalid_grant"}'
        token = f"planted-token-{secrets.token_hex(4)}"
        self._tokens[token] = user
        return 200, json.dumps({"access_token": token, "token_type": "bearer"}).encode()
