"""GET requests to one base URL, with limits on time and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import requests

from common.errors import ConfigurationError, OutageError
from common.proxy import for_url

#: Maximum size of an answer in bytes, uncompressed. MAX_BARS bars take less than one million.
MAX_ANSWER = 16 * 1024 * 1024
#: Timeouts in seconds: to connect, and between two parts of an answer.
TIMEOUT = (5.0, 30.0)

Sign = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class Reply(NamedTuple):
    """Status, reason and body of an answer."""

    status: int
    reason: str
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the request has succeeded."""
        return self.status < 400


class RestClient:
    """Makes GET requests, directly or through a proxy. Never follows a redirect."""

    def __init__(self, url: str, environ: Mapping[str, str], *, example: str, sign: Sign | None = None) -> None:
        """`environ` contains the proxy variables. `example`: of a valid URL. `sign` adds a key to a request.

        Raises ConfigurationError for an invalid URL.
        """
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and "@" not in url
        except ValueError:  # unbalanced brackets, an invalid port
            valid = False
        if not valid:
            raise ConfigurationError(
                f"--rest-url {'' if '@' in url else repr(url) + ' '}is not a web address. Example: {example}"
            )
        self.url, self.host = url.rstrip("/"), parts.netloc
        proxy = for_url(url, environ, schemes=("http", "https"))
        self.route = f" through {proxy}" if proxy else ""
        # Empty strings keep requests from reading the environment.
        self._proxies = dict.fromkeys(("http", "https"), proxy.url.reveal() if proxy else "")
        self._session = requests.Session()
        # With an `auth`, requests reads no password from a .netrc file, which would replace a header.
        self._session.auth = sign or (lambda request: request)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def get(self, path: str, params: Mapping[str, str | int | None] | None = None) -> Reply:
        """Request a path. Raises OSError, and OutageError for a redirect or an answer that is too large."""
        with self._session.get(
            self.url + path, params=params, timeout=TIMEOUT, proxies=self._proxies, allow_redirects=False, stream=True
        ) as response:
            if response.is_redirect:
                raise OutageError(
                    f"{self.host} answers with HTTP status {response.status_code}, a redirect. Redirects are not "
                    "followed, since a request may contain an API key. Check --rest-url"
                )
            return Reply(response.status_code, response.reason, self._body(response))

    def _body(self, response: requests.Response) -> bytes:
        body = bytearray()
        for part in response.iter_content(65_536):
            body += part
            if len(body) > MAX_ANSWER:
                raise OutageError(f"{self.host} sent an answer larger than {MAX_ANSWER:,} bytes")
        return bytes(body)
