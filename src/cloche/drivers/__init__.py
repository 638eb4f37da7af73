"""What starts and controls machines (layer 4)."""
