"""Files that run without this package: written, run, compared, and only then kept."""
