"""A run's folder and files, its metrics and pictures; grids of runs."""
