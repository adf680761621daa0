"""Self-supervised methods, one file each; a file that defines METHOD registers itself."""
