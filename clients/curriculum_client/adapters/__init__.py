"""Adapters to trainers, each importable only where its trainer is installed."""
