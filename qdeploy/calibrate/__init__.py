"""Ranges of activations, from data that is run through a float network."""
