"""Proofs: that a source comes back byte for byte, and that two models are one."""
