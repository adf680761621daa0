"""Headless training for 3D medical images: data, methods, tasks, engine and runs, with no Qt and no napari.

Importing this package loads no torch; names below are imported on first use.
"""

__version__ = "0.1.0"
