"""One module for each vendor: its messages as ticks and feed events. Pure."""
