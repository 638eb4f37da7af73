"""What touches the host (layer 3a)."""
