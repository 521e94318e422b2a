"""Reads the pipeline's state and changes nothing."""
