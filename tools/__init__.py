"""Scripts of the maintainers: figures of the docs, and checks of wheels."""
