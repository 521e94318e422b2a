"""Which proxy a connection uses, from the environment variables."""

from __future__ import annotations

import pytest

from common import proxy
from common.errors import ConfigurationError

VENDOR = "wss://ws.twelvedata.com/v1/quotes/price"
PASSWORD = "pa55"


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        (VENDOR, {}, None),
        (VENDOR, {"https_proxy": "http://proxy:3128"}, "the proxy proxy:3128 (https_proxy)"),
        (VENDOR, {"HTTPS_PROXY": "proxy:3128"}, "the proxy proxy:3128 (HTTPS_PROXY)"),
        (VENDOR, {"http_proxy": "http://proxy:3128"}, None),
        (
            VENDOR,
            {"https_proxy": "http://first:1", "HTTPS_PROXY": "http://second:2"},
            "the proxy first:1 (https_proxy)",
        ),
        (VENDOR, {"https_proxy": "", "HTTPS_PROXY": "http://second:2"}, None),
        (VENDOR, {"ALL_PROXY": "http://[2001:db8::1]"}, "the proxy [2001:db8::1]:80 (ALL_PROXY)"),
        (VENDOR, {"all_proxy": "http://u:p@all:1", "https_proxy": "http://own:2"}, "the proxy own:2 (https_proxy)"),
        ("ws://host.example/", {"http_proxy": "proxy:3128"}, "the proxy proxy:3128 (http_proxy)"),
        ("https://api.twelvedata.com", {"https_proxy": "proxy:3128"}, "the proxy proxy:3128 (https_proxy)"),
    ],
)
def test_the_variable_is_chosen_by_the_scheme(url: str, environ: dict[str, str], expected: str | None) -> None:
    found = proxy.for_url(url, environ)
    assert (str(found) if found else None) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        (VENDOR, "*", True),
        (VENDOR, "ws.twelvedata.com", True),
        (VENDOR, " .twelvedata.com , other", True),
        (VENDOR, "*.TwelveData.com", True),
        (VENDOR, "twelvedata.com:443", True),
        (VENDOR, "twelvedata.com:80", False),
        (VENDOR, "data.com", False),
        (VENDOR, ".", False),
        (VENDOR, "10.0.0.0/8", False),
        ("wss://10.1.2.3/", "10.0.0.0/8", True),
        ("wss://10.1.2.3:8443/", "10.1.2.3:8443", True),
        ("wss://[2001:db8::5]/", "[2001:db8::5]", True),
        ("wss://[2001:db8::5]/", "2001:db8::/32", True),
        ("wss://10.1.2.3/", "11.0.0.0/8, ::/0", False),
    ],
)
def test_no_proxy_takes_names_addresses_and_ranges(url: str, no_proxy: str, direct: bool) -> None:
    found = proxy.for_url(url, {"https_proxy": "http://proxy:3128", "NO_PROXY": no_proxy})
    assert (found is None) == direct


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.8.7",
        "127.1",
        "localhost",
        "LocalHost.",
        "a.localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ],
)
@pytest.mark.parametrize("value", ["http://proxy:3128", "http://:bad:port:", "socks5://proxy:1080"])
def test_a_loopback_address_never_has_a_proxy(host: str, value: str) -> None:
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for scheme in ("ws", "wss", "http", "https"):
        for name in names:
            assert proxy.for_url(f"{scheme}://{host}:8765/", {name: value, "no_proxy": "elsewhere"}) is None


@pytest.mark.parametrize(
    "value",
    [
        f"http://user:{PASSWORD}#more@proxy:3128",
        f"http://user:123#{PASSWORD}@proxy:3128",
        f"http://user:{PASSWORD}/more@proxy:3128",
        f"http://user:{PASSWORD}",
        f"http://user:{PASSWORD}@",
        f"http://user:{PASSWORD}@proxy:port",
        f"http://user:{PASSWORD}@proxy:0",
        f"http://user:{PASSWORD}@proxy:99999",
        f"http://user:{PASSWORD}@[::1",
        f"http://user:{PASSWORD}@a b:3128",
        f"user:{PASSWORD}@:3128",
        f"socks5://user:{PASSWORD}@proxy:1080",
        f"https://user:{PASSWORD}@proxy:443",
        "://",
        "http://",
    ],
)
def test_an_invalid_value_is_a_configuration_error_without_the_password(value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        proxy.for_url(VENDOR, {"HTTPS_PROXY": value})
    assert str(refused.value).startswith("HTTPS_PROXY: ")
    assert "http://[user:password@]host:port" in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_credentials_are_decoded_and_never_shown() -> None:
    found = proxy.for_url(VENDOR, {"https_proxy": f"http://us%40er:{PASSWORD}%23@proxy:3128"})
    assert found
    assert found.login == ("us@er", f"{PASSWORD}#")
    assert PASSWORD not in f"{found} {found!r}"
    assert "us" not in str(found)
