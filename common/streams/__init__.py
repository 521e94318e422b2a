"""Redis Streams: the client, one stream, one consumer group, and the statistics that consumers publish."""
