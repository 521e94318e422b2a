"""One file a vendor: the vendor's messages, as ticks and feed events. Pure."""
