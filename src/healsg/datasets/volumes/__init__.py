"""Volumes: files, lists of cases, the common space, cases as a network sees them."""
