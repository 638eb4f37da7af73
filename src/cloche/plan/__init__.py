"""cloche.plan"""
