"""Runs as seen from outside: start, list, watch, stop, resume."""
