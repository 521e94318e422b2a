"""What producer and consumer agree on: the tick, the stream, settings, errors, logging."""
