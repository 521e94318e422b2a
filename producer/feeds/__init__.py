"""The feeds by the value of --feed. Each is one file, and knows nothing about connections."""

from producer.feeds.binance import Binance
from producer.feeds.coinbase import Coinbase
from producer.feeds.kraken import Kraken
from producer.feeds.twelvedata import TwelveData
from producer.feeds.vendor import Vendor

VENDORS: dict[str, Vendor] = {vendor.name: vendor for vendor in (TwelveData(), Coinbase(), Kraken(), Binance())}
