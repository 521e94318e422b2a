"""A local server of Twelve Data's websocket protocol and of its REST call `time_series`."""
