"""The agent's client: the channel to a guest and what is said over it (layer 3)."""
