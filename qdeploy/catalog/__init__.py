"""Catalogs: tables of what can be added, by name, from this project, from other distributions, or at run time."""
