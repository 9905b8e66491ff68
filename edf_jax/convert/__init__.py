"""Files of the official PyTorch codes, in and out."""
