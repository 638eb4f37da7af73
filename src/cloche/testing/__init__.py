"""cloche.testing"""
