"""The training loop, its state on disk, and its conversation with the outside."""
