"""Run folders: written, resumed, read with suspicion."""
