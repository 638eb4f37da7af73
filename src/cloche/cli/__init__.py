"""cloche.cli"""
