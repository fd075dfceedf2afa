"""Serving: the network of a run behind a page and an HTTP address on this machine."""
