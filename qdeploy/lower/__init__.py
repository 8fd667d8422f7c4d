"""From one form of a tensor to another that an engine runs better; each says what it requires and what is lost."""
