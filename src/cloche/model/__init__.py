"""cloche.model"""
