"""Tables: their sources, files, preparation and splits."""
