"""Twelve Data's REST interface, by the vendor's wrapper: one-minute bars, at the pace of a plan's credits."""

from __future__ import annotations

import json
import logging
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

logger = logging.getLogger("tickpipe.rest")

DEFAULT_URL = "https://api.twelvedata.com"
#: The most bars in one answer.
MOST_BARS = 5000
#: Bytes of an answer, unpacked, at most: MOST_BARS bars are under one million.
MAX_ANSWER = 16 * 1024 * 1024
#: Seconds: until the connection stands, and between two pieces of an answer.
TIMEOUT = (5.0, 30.0)
#: How often a call is tried. After outages the waits are up to 1, 2, 4 … seconds, no longer than LONGEST.
TRIES, LONGEST = 5, 8.0


class RefusedKeyError(ConfigurationError):
    """Twelve Data refuses the API key: check TWELVE_DATA_API_KEY."""


class OutOfCreditsError(OutageError):
    """The plan's API credits are used up, for this minute or for this day."""


class RefusedSymbolError(TickpipeError):
    """Twelve Data has no such symbol, or not in this plan."""


class NoBarsError(TickpipeError):
    """Twelve Data has no bars in this span."""


class StoppedError(TickpipeError):
    """Stopped: what was stored is kept; run it again for the rest."""


class Bar(NamedTuple):
    """What a symbol did in the minute that begins `at`; `volume` is None where the vendor has none."""

    at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float | None


class Answer(NamedTuple):
    """An answer as the wrapper reads it."""

    content: dict[str, Any]

    def json(self) -> dict[str, Any]:
        """Its JSON."""
        return self.content


class TwelveDataRest:
    """Asks by the wrapper, and is the wrapper's HTTP client, too.

    The key goes in a header, as the vendor recommends: no URL has it, and so no error and no log of a URL.
    Raises ConfigurationError for a URL that is none.
    """

    def __init__(self, url: str, key: Secret, environ: Mapping[str, str] | None = None) -> None:
        """`environ` has the proxy variables."""
        try:
            parts = urlsplit(url)
            sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and "@" not in url
        except ValueError:  # brackets that do not close, a port that is none
            sound = False
        if not sound:
            raise ConfigurationError(
                f"--rest-url {'' if '@' in url else repr(url) + ' '}is no web address: it looks like {DEFAULT_URL}"
            )
        self._url, self._host, self._key = url.rstrip("/"), parts.netloc, key
        proxy = for_url(url, environ or {}, schemes=("http", "https"))
        self._route = f" through {proxy}" if proxy else ""
        # Empty texts: requests then reads no variable of the environment itself.
        self._proxies = dict.fromkeys(("http", "https"), proxy.url.reveal() if proxy else "")
        self._session = requests.Session()
        self._session.auth = self._sign  # not a header of the session: a .netrc would replace it

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def bars(self, symbol: str, exchange: str | None, since: datetime, until: datetime) -> list[Bar]:
        """The bars of the minutes that begin in this span of UTC, MOST_BARS at most, the earliest first.

        Raises RefusedKeyError, RefusedSymbolError; OutOfCreditsError and other OutageErrors, after which the same call
        may succeed.
        """
        context = Context()  # a TDClient would make a blocking REST call here
        context.http_client, context.base_url = self, self._url
        context.defaults = {
            "symbol": symbol, "exchange": exchange, "interval": "1min", "timezone": "UTC", "order": "ASC",
            "outputsize": MOST_BARS, "dp": None,  # the wrapper would have all rounded to 5 decimals
            # Just before the end: it is the same whether the vendor counts the end in or not.
            "start_date": f"{since:%Y-%m-%d %H:%M:%S}", "end_date": f"{until - timedelta(seconds=1):%Y-%m-%d %H:%M:%S}",
        }  # fmt: skip
        try:
            return [_bar(values) for values in TimeSeries(context).as_json()]
        except NoBarsError:
            return []
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutageError(f"{self._host} gives bars that make no sense ({type(error).__name__})") from None

    def get(self, path: str, params: Mapping[str, str | int | None]) -> Answer:
        """What the wrapper asks of its HTTP client. Raises what `bars` raises, and NoBarsError."""
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
                        f"{self._host} answers with HTTP status {response.status_code}, a redirect; redirects are not "
                        "followed, since the request holds the key: check --rest-url"
                    )
                answer = dict(json.loads(self._body(response)))
        except (OSError, ValueError, TypeError, RecursionError) as error:  # requests' texts may hold a password
            raise OutageError(
                f"{self._host}{self._route} gives no answer that makes sense ({type(error).__name__})"
            ) from None
        if response.ok and answer.get("status") == "ok":
            return Answer(answer)
        code, words = answer.get("code", response.status_code), str(answer.get("message", response.reason))
        raise _error(code, f"{self._host} says {code}: {words.replace(self._key.reveal(), '…')}")

    def _body(self, response: requests.Response) -> bytes:
        body = bytearray()
        for part in response.iter_content(65_536):
            body += part
            if len(body) > MAX_ANSWER:
                raise OutageError(f"{self._host} gives an answer that is larger than {MAX_ANSWER:,} bytes")
        return bytes(body)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"apikey {self._key.reveal()}"
        return request


def _error(code: object, words: str) -> TickpipeError:
    """By its code; but that there are no bars (the market was closed) is a bad request, known by its words alone."""
    if "no data is available" in words.lower():
        return NoBarsError(words)
    if code in {401, 403}:
        return RefusedKeyError(f"{docstring(RefusedKeyError)} {words}")
    if code == 429:
        return OutOfCreditsError(words)
    return RefusedSymbolError(words) if isinstance(code, int) and 400 <= code < 500 else OutageError(words)


def _bar(values: Mapping[str, Any]) -> Bar:
    at = datetime.fromisoformat(values["datetime"]).replace(tzinfo=UTC)
    opened, high, low, closed = (float(values[name]) for name in ("open", "high", "low", "close"))
    volume = None if values.get("volume") is None else float(values["volume"])
    bar = Bar(at, opened, high, low, closed, volume)
    if not all(math.isfinite(number or 0.0) for number in bar[1:]):
        raise ValueError(f"not finite: {bar}")
    return bar
