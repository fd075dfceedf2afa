"""Published files: download, checksums, archives, and what is published of them."""
