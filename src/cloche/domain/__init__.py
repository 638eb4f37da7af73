"""The life of a domain: plan, launch, states, end (layer 5)."""
