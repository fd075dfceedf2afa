"""HEALSg beside a bare loop and other frameworks: python -m benchmarks.peers (see ``__main__``)."""
