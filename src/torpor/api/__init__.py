"""The REST API (docs/api.md): the platform API that public clients speak, and Torpor's own."""
