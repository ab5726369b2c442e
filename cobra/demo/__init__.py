"""The demonstration: rendered scenes in the form of the real data sets, and the chain that trains `cobra-tiny`.

Nothing here is needed to import or use :mod:`cobra` with real data.
"""
