"""Runs the whole pipeline on this machine."""
