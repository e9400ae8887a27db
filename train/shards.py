"""Moved to `videomaker.data.shards`; kept for programs that were written against 0.1."""

from videomaker.data.shards import clip_file, load_image, write_shards

__all__ = ["clip_file", "load_image", "write_shards"]
