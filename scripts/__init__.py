"""Command-line tools around `custom_components` and `monai.bundle`; each is run as `python -m scripts.NAME`."""
