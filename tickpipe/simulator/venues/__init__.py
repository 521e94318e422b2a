"""The exchanges by the value of --feed. Each is one file, and knows nothing about connections."""

from tickpipe.simulator.venues.binance import Binance
from tickpipe.simulator.venues.coinbase import Coinbase
from tickpipe.simulator.venues.kraken import Kraken
from tickpipe.simulator.venues.venue import Venue

VENUES: dict[str, Venue] = {venue.name: venue for venue in (Coinbase(), Kraken(), Binance())}
