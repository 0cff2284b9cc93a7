"""The command line: parsing, showing, and nothing that the Python API does not have too."""
