"""What is measured: each file states its command."""
