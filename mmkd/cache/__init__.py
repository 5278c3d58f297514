"""Outputs of a teacher on disk: files, and the geometry that maps them to other views of an image."""
