"""The operator's tool: commands, embedded servers, simulator, terminal view and dashboard."""
