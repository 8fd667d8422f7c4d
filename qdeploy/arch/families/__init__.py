"""Families of models, one file each: how a graph follows from config.json, and the family's row at the end.

A file that is added here is listed in `qdeploy.arch.family.BUILT_IN` with its model types.
"""
