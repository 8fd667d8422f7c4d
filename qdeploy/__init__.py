"""qdeploy: any quantized checkpoint, any edge target, and proof that nothing was lost."""
