"""The Teacher protocol and its adapters, one a file."""
