"""The guest kernels: built, fetched, the host's own, and their initramfs (layer 3)."""
