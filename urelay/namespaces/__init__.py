"""Other network namespaces: open a socket there, stay here."""
