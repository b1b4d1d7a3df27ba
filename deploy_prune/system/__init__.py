"""The operating system and untrusted files: processes, locks, caches, strict readers."""
