"""The language of rules: pure functions and values, no file, process or clock."""
