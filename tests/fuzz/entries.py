"""Every reader of bytes that others wrote."""

from __future__ import annotations

from fuzz import image_entries, recipe_entries, run_entries, store_entries, table_entries

ENTRIES = (
    *image_entries.ENTRIES,
    *table_entries.ENTRIES,
    *recipe_entries.ENTRIES,
    *store_entries.ENTRIES,
    *run_entries.ENTRIES,
)
