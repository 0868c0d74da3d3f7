"""urelay: a TCP relay for network namespaces, ruled by a policy language."""
