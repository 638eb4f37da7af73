"""cloche.host"""
