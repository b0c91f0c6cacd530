"""Files and folders: files that are whole or absent, one process at a time in a folder, hashes.

Not here: what is in the files.
"""
