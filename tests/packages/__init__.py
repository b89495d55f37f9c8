"""The packages: built once, looked into, and installed, upgraded, removed and purged where they will be."""
