"""Settings (layer 2, pure): from the text of ``cloche.toml`` to what a run is told, and where each word came from."""
