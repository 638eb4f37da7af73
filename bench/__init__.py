"""How fast cloche is, compared with what: see docs/performance.md. ``make bench`` runs it."""
