"""The reader of Core ML's packages."""
