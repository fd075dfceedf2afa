"""What a run leaves behind: its folder, its lines, its checkpoints, and the locks around them."""
