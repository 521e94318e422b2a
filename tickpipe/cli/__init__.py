"""The `tickpipe` command line: one file for each command.

A command that needs an optional extra imports it when it runs, so that the others work without it.
"""
