"""Volumes: reading, writing, datasets, the store, views and augmentation."""
