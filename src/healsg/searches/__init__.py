"""What proposes the values of a search: ``search=...``."""
