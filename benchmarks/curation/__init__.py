"""Curation: our rules and datatrove's on the same pages."""
