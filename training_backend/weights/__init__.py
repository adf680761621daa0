"""Safe loading, import and export of weights."""
