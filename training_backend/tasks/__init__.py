"""Downstream tasks, one file each; a file that defines TASK registers itself."""
