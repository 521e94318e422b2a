"""A local server that speaks Twelve Data's websocket protocol and its REST call `time_series`."""
