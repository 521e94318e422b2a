"""Fills gaps of the feed with the vendor's one-minute bars. Importing this package needs no extra."""

#: Base URL of Twelve Data's REST interface.
DEFAULT_URL = "https://api.twelvedata.com"
