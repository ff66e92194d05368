"""Keys and trust: stores, TLS contexts, configuration files, and `cmapppki`."""
