"""Atomic files, under the name the engine uses; they live in `training_backend.files` so that weights may use them."""

from training_backend.files import atomic, disk_error, sync_folder, write_json, write_text

__all__ = ["atomic", "disk_error", "sync_folder", "write_json", "write_text"]
