"""Self-supervised learning on 3D medical images, inside napari."""

__version__ = "0.1.0"
