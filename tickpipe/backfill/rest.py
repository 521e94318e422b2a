"""Twelve Data's REST interface, through the vendor's wrapper: one-minute bars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from twelvedata.context import Context
from twelvedata.time_series import TimeSeries

from common.docstrings import docstring
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.proxy import for_url
from common.settings import Secret
from tickpipe.backfill import DEFAULT_URL
from tickpipe.backfill.plan import MAX_BARS

#: Maximum size of an answer in bytes, uncompressed. MAX_BARS bars take less than one million.
MAX_ANSWER = 16 * 1024 * 1024
#: Timeouts in seconds: to connect, and between two parts of an answer.
TIMEOUT = (5.0, 30.0)


class RefusedKeyError(ConfigurationError):
    """Twelve Data refuses the API key: check TWELVE_DATA_API_KEY."""


class OutOfCreditsError(OutageError):
    """The plan's API credits are used up, for this minute or for this day."""


class RefusedSymbolError(TickpipeError):
    """Twelve Data does not have this symbol, or your plan does not include it."""


class NoBarsError(TickpipeError):
    """Twelve Data has no bars of this time."""


class StoppedError(TickpipeError):
    """The backfill was stopped. Stored bars are kept; run it again for the rest."""


class Bar(NamedTuple):
    """Prices of a symbol in the minute that begins at `at`. `volume` is None if the vendor has none."""

    at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None


class Answer(NamedTuple):
    """An HTTP answer, as the wrapper expects it."""

    content: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """The JSON body."""
        return self.content


class TwelveDataRest:
    """Uses the vendor's wrapper, and is the wrapper's HTTP client.

    A header carries the API key, as the vendor recommends, so that errors and logs of URLs do not contain it.
    Raises ConfigurationError for an invalid URL.
    """

    def __init__(self, url: str, key: Secret, environ: Mapping[str, str] | None = None) -> None:
        """`environ` contains the proxy variables."""
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and "@" not in url
        except ValueError:  # unbalanced brackets, an invalid port
            valid = False
        if not valid:
            raise ConfigurationError(
                f"--rest-url {'' if '@' in url else repr(url) + ' '}is not a web address. Example: {DEFAULT_URL}"
            )
        self._url, self._host, self._key = url.rstrip("/"), parts.netloc, key
        proxy = for_url(url, environ or {}, schemes=("http", "https"))
        self._route = f" through {proxy}" if proxy else ""
        # Empty strings keep requests from reading the environment.
        self._proxies = dict.fromkeys(("http", "https"), proxy.url.reveal() if proxy else "")
        self._session = requests.Session()
        self._session.auth = self._sign  # a header of the session would be replaced by a .netrc file

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def bars(self, symbol: str, exchange: str | None, since: datetime, until: datetime) -> list[Bar]:
        """The bars of the minutes that begin between two times (UTC), at most MAX_BARS, in order.

        Raises RefusedKeyError, RefusedSymbolError, and OutOfCreditsError or another OutageError, after which the same
        call may succeed.
        """
        context = Context()  # a TDClient would make a blocking REST call
        context.http_client, context.base_url = self, self._url
        context.defaults = {
            "symbol": symbol, "exchange": exchange, "interval": "1min", "timezone": "UTC", "order": "ASC",
            "outputsize": MAX_BARS, "dp": None,  # else the wrapper requests 5 decimals
            # One second before the end, whether the vendor includes the end or not.
            "start_date": f"{since:%Y-%m-%d %H:%M:%S}", "end_date": f"{until - timedelta(seconds=1):%Y-%m-%d %H:%M:%S}",
        }  # fmt: skip
        try:
            return [_bar(values) for values in TimeSeries(context).as_json()]
        except NoBarsError:
            return []
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutageError(f"{self._host} sent invalid bars ({type(error).__name__})") from None

    def get(self, path: str, params: Mapping[str, str | int | None]) -> Answer:
        """A GET request of the wrapper. Raises NoBarsError and the errors of `bars`."""
        try:
            with self._session.get(
                self._url + path,
                params=params,
                timeout=TIMEOUT,
                proxies=self._proxies,
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.is_redirect:
                    raise OutageError(
                        f"{self._host} answers with HTTP status {response.status_code}, a redirect. Redirects are not "
                        "followed, since the request contains the API key. Check --rest-url"
                    )
                answer = dict(json.loads(self._body(response)))
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
        ) as error:  # its text may contain a password
            raise OutageError(f"{self._host}{self._route} sent no valid answer ({type(error).__name__})") from None
        if response.ok and answer.get("status") == "ok":
            return Answer(answer)
        code, message = answer.get("code", response.status_code), str(answer.get("message", response.reason))
        raise _error(code, f"{self._host} says {code}: {message.replace(self._key.reveal(), '…')}")

    def _body(self, response: requests.Response) -> bytes:
        body = bytearray()
        for part in response.iter_content(65_536):
            body += part
            if len(body) > MAX_ANSWER:
                raise OutageError(f"{self._host} sent an answer larger than {MAX_ANSWER:,} bytes")
        return bytes(body)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"apikey {self._key.reveal()}"
        return request


def _error(code: object, message: str) -> TickpipeError:
    """The error for a code. Missing bars, as of a closed market, have the code of a bad request and this text."""
    if "no data is available" in message.lower():
        return NoBarsError(message)
    if code in {401, 403}:
        return RefusedKeyError(f"{docstring(RefusedKeyError)} {message}")
    if code == 429:
        return OutOfCreditsError(message)
    return RefusedSymbolError(message) if isinstance(code, int) and 400 <= code < 500 else OutageError(message)


def _bar(values: Mapping[str, Any]) -> Bar:
    at = datetime.fromisoformat(values["datetime"]).replace(tzinfo=UTC)
    opened, high, low, closed = (float(values[name]) for name in ("open", "high", "low", "close"))
    volume = None if values.get("volume") is None else float(values["volume"])
    bar = Bar(at, opened, high, low, closed, volume)
    if not all(math.isfinite(number or 0.0) for number in bar[1:]):
        raise ValueError(f"not finite: {bar}")
    return bar
