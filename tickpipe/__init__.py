"""The whole pipeline, for the person who runs it."""
