"""The exact incremental sweep: only what an occluder changes is computed again."""
