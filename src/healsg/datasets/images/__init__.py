"""Picture files: decoding, resizing, folders of them, and their bytes as they are stored."""
