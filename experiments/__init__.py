"""What docs/results.md says, made again; the runs behind it are rows of docs/results/*.csv."""
