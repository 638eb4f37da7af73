"""The command line (layer 6): the only code that prints, prompts or exits."""
