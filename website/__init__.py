"""What makes the site of the documentation: the hooks of mkdocs, the generated reference, a look by a browser."""
