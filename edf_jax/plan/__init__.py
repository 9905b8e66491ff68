"""The dry run: what a run would take of images, memory, disk and hours."""
