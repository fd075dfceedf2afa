"""The commands: one file each, thin layers on the trainer."""
