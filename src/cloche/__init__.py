"""cloche: run any program of this machine inside a virtual machine of its own."""

__version__ = "0.1.0"
