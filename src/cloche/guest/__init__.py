"""cloche.guest"""
