"""One file for every way in which others save a model."""
