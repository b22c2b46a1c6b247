"""The OpenID provider of a Space: its settings, the exchange of a code, and the role that a user has here.

A Space whose card says `hf_oauth: true` has the settings in its environment
(https://huggingface.co/docs/hub/spaces-oauth). The user's token is used once, to read the user's name and
organisations, and is then forgotten: nothing of it is stored or sent to the browser.

Gradio's own flow (`gradio/oauth.py` of 6.31) is not used. It keeps the token in a cookie that is signed and
readable, has no PKCE, and adds a `/logout` that a link of another site can open.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from core.errors import AccessError, SpecError
from core.server.access import Principal
from core.server.protection import is_loopback
from core.spec.access import Role
from core.store.json_text import parse_json

REQUIRED = ("OAUTH_CLIENT_SECRET", "OPENID_PROVIDER_URL", "SPACE_HOST")
TRAINERS_VARIABLE = "ADAPTER_STUDIO_TRAINERS"
SCOPES = "openid profile"
TIMEOUT_SECONDS = 10.0
ANSWER_BYTES = 200_000  # of one answer of the provider
USER_NAME = re.compile(r"[\w.-]{1,96}", re.ASCII)
ADMINS = ("admin", "owner")  # roles in an organisation whose members own its Spaces
UNREACHABLE = "The sign-in service did not answer as expected."


@dataclass(frozen=True)
class OpenIdSettings:
    """What a Space tells its app about signing in.

    Attributes:
        provider: URL of the OpenID provider.
        host: the host name of the Space, to which the provider sends the browser back.
        owner: the user or organisation whose Space this is.
        trainers: names of users who may train.
    """

    client_id: str
    provider: str
    host: str
    owner: str
    client_secret: str = field(repr=False)
    scopes: str = SCOPES
    trainers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_url("OPENID_PROVIDER_URL", self.provider)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> OpenIdSettings | None:
        """The settings of an environment; None where the card of the Space does not ask for signing in.

        Raises:
            SpecError: a variable is missing or wrong.
        """
        client_id = environment.get("OAUTH_CLIENT_ID", "")
        if not client_id:
            return None
        if missing := [name for name in REQUIRED if not environment.get(name)]:
            raise SpecError(
                f"OAUTH_CLIENT_ID is set, and {', '.join(missing)} is missing.",
                "Set all of them, or none; on a Space, `hf_oauth: true` in its README does that.",
            )
        owner = environment.get("SPACE_AUTHOR_NAME") or environment.get("SPACE_ID", "").partition("/")[0]
        return cls(
            client_id,
            environment["OPENID_PROVIDER_URL"].rstrip("/"),
            environment["SPACE_HOST"].split(",")[0].strip(),
            owner,
            environment["OAUTH_CLIENT_SECRET"],
            environment.get("OAUTH_SCOPES") or SCOPES,
            frozenset(environment.get(TRAINERS_VARIABLE, "").replace(",", " ").split()),
        )

    def find_principal(self, user: Mapping[str, Any]) -> Principal:
        """The principal of a user, from the provider's record of the user.

        The owner of the Space is the owner here: the user of that name, or an administrator of that
        organisation. Users of the list of trainers are trainers, all others viewers.

        Raises:
            AccessError: the record has no usable name.
        """
        name = user.get("preferred_username")
        if not isinstance(name, str) or not USER_NAME.fullmatch(name):
            raise AccessError("The sign-in service gave no user name.", "Sign in with another account.")
        role = Role.VIEWER
        if self.owner and (name == self.owner or _is_admin(user.get("orgs"), self.owner)):
            role = Role.OWNER
        elif name in self.trainers:
            role = Role.TRAINER
        return Principal(f"hf:{name}", role)


def _is_admin(organisations: object, owner: str) -> bool:
    """Whether a user administers the organisation, and meets its own conditions, such as a second factor."""
    for item in organisations if isinstance(organisations, list) else []:
        if isinstance(item, dict) and item.get("preferred_username") == owner:
            return item.get("roleInOrg") in ADMINS and not item.get("securityRestrictions")
    return False


class Provider:
    """The OpenID provider. Its methods wait for the network: call them in a thread of their own."""

    def __init__(self, settings: OpenIdSettings) -> None:
        self._settings = settings
        self._addresses: dict[str, str] = {}

    def make_address(self, redirect: str, state: str, verifier: str) -> str:
        """The URL at which the provider asks the user.

        Args:
            redirect: the URL to which the provider sends the browser back.
            state: comes back unchanged.
            verifier: the secret of PKCE (RFC 7636), whose digest is sent.

        Raises:
            AccessError: the provider cannot be reached.
        """
        digest = hashlib.sha256(verifier.encode("ascii")).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect,
            "scope": self._settings.scopes,
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii"),
            "code_challenge_method": "S256",
        }
        return f"{self._find_address('authorization_endpoint')}?{urlencode(query)}"

    def find_user(self, code: str, redirect: str, verifier: str) -> Mapping[str, Any]:
        """Exchanges a code, and returns the provider's record of the user.

        Raises:
            AccessError: the provider refuses the code, or cannot be reached.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "client_id": self._settings.client_id,
            "code_verifier": verifier,
        }
        login = (self._settings.client_id, self._settings.client_secret)
        answer = _request("POST", self._find_address("token_endpoint"), data=form, auth=login)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise AccessError("The sign-in service refused the sign-in.", "Sign in again.")
        return _request(
            "GET", self._find_address("userinfo_endpoint"), headers={"Authorization": f"Bearer {token}"}
        )

    def _find_address(self, name: str) -> str:
        if not self._addresses:
            found = _request("GET", f"{self._settings.provider}/.well-known/openid-configuration")
            self._addresses = {key: value for key, value in found.items() if isinstance(value, str)}
        address = self._addresses.get(name, "")
        try:
            _check_url(name, address)
        except SpecError as e:
            self._addresses = {}
            raise AccessError(UNREACHABLE, "Try again later.") from e
        return address


def _check_url(name: str, url: str) -> None:
    """Raises SpecError for a URL that would send secrets in the clear."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise SpecError(f"{name} must be an address that begins with https://.", "Correct the variable.")


def _request(method: str, address: str, **options: Any) -> dict[str, Any]:
    """One request to the provider; what it answers is a JSON object.

    Raises:
        AccessError: it cannot be reached, or answers anything else. The message quotes nothing of it.
    """
    import httpx2

    content = b""
    try:
        with (
            httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream(method, address, **options) as response,
        ):
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > ANSWER_BYTES:
                    raise ValueError("the answer is too long")
        if response.status_code in (400, 401, 403):
            raise AccessError("The sign-in service refused the sign-in.", "Sign in again.")
        if response.status_code != 200:
            raise ValueError(f"the status is {response.status_code}")
        answer = parse_json(content)
        if not isinstance(answer, dict):
            raise ValueError("the answer is not a JSON object")
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
        raise AccessError(UNREACHABLE, "Try again later.") from e
    return answer
