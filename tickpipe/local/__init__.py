"""Runs the whole pipeline on this machine. Needs the extra `local`."""
