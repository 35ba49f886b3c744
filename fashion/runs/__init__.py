"""Run folders: writing, resuming, and safe reading of untrusted ones."""
