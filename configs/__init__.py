"""The configs, `<dataset>.py:<variant>`. Installed as edf_jax._configs."""
