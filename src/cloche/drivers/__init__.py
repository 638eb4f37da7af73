"""cloche.drivers"""
