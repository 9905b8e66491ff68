"""Numbers that a config leaves to the data: found on training images, before they are needed."""
