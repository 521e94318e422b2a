"""Everything that speaks Redis: the client, a stream, a consumer group, and the statistics that consumers publish."""
