"""What every room stands on: errors, randomness, devices, processes, storage, progress."""
