"""What the tests of every ring share; fixtures made of it are in ``tests/conftest.py``."""
