"""One run on this machine: settings, device, batches, progress."""
