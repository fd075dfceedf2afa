"""What all commands share towards the terminal: flags, settings, tables, completion."""
