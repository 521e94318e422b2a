"""Twelve Data's REST interface, through the vendor's wrapper: one-minute bars."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import requests
from twelvedata.context import Context
from twelvedata.time_series import TimeSeries

from common.docstrings import docstring
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.settings import Secret
from tickpipe.backfill import DEFAULT_URL
from tickpipe.backfill.plan import MAX_BARS
from tickpipe.backfill.rest_client import RestClient


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
        self._client = RestClient(url, environ or {}, example=DEFAULT_URL, sign=self._sign)
        self._host, self._key = self._client.host, key

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def bars(self, symbol: str, exchange: str | None, since: datetime, until: datetime) -> list[Bar]:
        """The bars of the minutes that begin between two times (UTC), at most MAX_BARS, in order.

        Raises RefusedKeyError, RefusedSymbolError, and OutOfCreditsError or another OutageError, after which the same
        call may succeed.
        """
        context = Context()  # a TDClient would make a blocking REST call
        context.http_client, context.base_url = self, self._client.url
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
            reply = self._client.get(path, params)
            answer = dict(json.loads(reply.body))
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
        ) as error:  # its text may contain a password
            message = f"{self._host}{self._client.route} sent no valid answer ({type(error).__name__})"
            raise OutageError(message) from None
        if reply.ok and answer.get("status") == "ok":
            return Answer(answer)
        code, message = answer.get("code", reply.status), str(answer.get("message", reply.reason))
        raise _error(code, f"{self._host} says {code}: {message.replace(self._key.reveal(), '…')}")

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
