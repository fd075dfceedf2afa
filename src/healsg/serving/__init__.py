"""Serving: the network of a run behind a local web page and HTTP API."""
