"""The version of the package and of the bundles that are packed with it."""

__version__ = "0.1.0"
