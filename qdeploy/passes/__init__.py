"""From one graph to another that computes the same; each pass says what it requires and ensures."""
