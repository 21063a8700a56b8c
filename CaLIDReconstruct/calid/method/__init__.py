"""The paper: tensors in, tensors out. No files but weights, no devices, no user settings."""
