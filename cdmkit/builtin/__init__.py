"""Built-in components, a module per kind, registered exactly as a plugin's are. Nothing imports this package by name."""
