"""Networks and blocks shared by methods."""
