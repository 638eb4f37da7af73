"""cloche.kernel"""
