"""Checkpoints of quantized vision networks that repositories of papers publish: HAWQ-V3, APoT, LSQ."""
