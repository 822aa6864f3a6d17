"""Cost functions: what a loss is, and which there are."""
