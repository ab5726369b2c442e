"""Examination of a machine: software, hardware, network, caches; imports no torch."""
