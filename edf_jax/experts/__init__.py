"""Expert trajectories: networks trained on the real data, a snapshot after every epoch."""
