"""Metrics, sliding windows and probes."""
