"""A run's folder: save, load, verify. Safetensors and JSON only."""
