"""Teachers as assets: ensembles and their stored targets."""
