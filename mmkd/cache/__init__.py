"""Teacher outputs on disk: the files, and the geometry that converts them to other views of an image."""
