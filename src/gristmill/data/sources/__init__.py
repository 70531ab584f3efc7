"""What a source gives: items to read, and the texts that readers find in them."""

from gristmill.data.sources.item import Group, Item, Raw, file_url, modified, printable

__all__ = ["Group", "Item", "Raw", "file_url", "modified", "printable"]
