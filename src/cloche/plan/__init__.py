"""From facts to plans, purely (layer 2)."""
