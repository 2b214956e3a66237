"""The plugin `reload`: new workers when a file of the application changes."""
