"""cloche.domain"""
