"""Imported by OpenRLHF and not called here; it needs CUDA."""
